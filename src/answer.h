/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  Results: rows of our own composite types, and jsonb.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ANSWER_H
#define IDEM_ANSWER_H

#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/jsonb.h"

extern Datum answer_row(FunctionCallInfo fcinfo, const Oid *columns,
						int ncolumns, const Datum *values, const bool *isnull);
extern ReturnSetInfo *answer_rows(FunctionCallInfo fcinfo, const Oid *columns,
								  int ncolumns);

extern JsonbValue answer_jsonb_value(Jsonb *jsonb);

#endif							/* IDEM_ANSWER_H */
