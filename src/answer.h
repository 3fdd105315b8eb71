/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  Rows of our own composite types.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ANSWER_H
#define IDEM_ANSWER_H

#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"

extern Datum answer_row(FunctionCallInfo fcinfo, const Oid *columns,
						int ncolumns, const Datum *values, const bool *isnull);
extern ReturnSetInfo *answer_rows(FunctionCallInfo fcinfo, const Oid *columns,
								  int ncolumns);

#endif							/* IDEM_ANSWER_H */
