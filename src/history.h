/*-------------------------------------------------------------------------
 *
 * history.h
 *	  What has become of a message so far.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_HISTORY_H
#define IDEM_HISTORY_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

extern Jsonb *history_failed(Jsonb *history, int32 attempt, TimestampTz at,
							 Jsonb *error);
extern Jsonb *history_ran_out(Jsonb *history, int32 attempt, TimestampTz at);
extern Jsonb *history_redriven(Jsonb *history, int32 attempt, TimestampTz at,
							   Oid role);

#endif							/* IDEM_HISTORY_H */
