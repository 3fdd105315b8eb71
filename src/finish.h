/*-------------------------------------------------------------------------
 *
 * finish.h
 *	  How claims are finished.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FINISH_H
#define IDEM_FINISH_H

#include "postgres.h"

#include "utils/jsonb.h"

#include "compat.h"
#include "key.h"
#include "pending.h"

extern void finish_claims(PendingClaim *const *claims,
						  Jsonb *const *responses, int n);
extern Jsonb *finish_lease(const IdemKey *key, int64 token, Jsonb *response);

#endif							/* IDEM_FINISH_H */
