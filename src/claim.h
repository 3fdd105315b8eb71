/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  What idem_claim answers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CLAIM_H
#define IDEM_CLAIM_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* In SQL a row of type idem_claim_answer, with so many columns. */
#define CLAIM_ANSWER_COLUMNS	5

typedef struct ClaimAnswer
{
	const char *outcome;
	Jsonb	   *response;		/* NULL for none */
	int64		token;			/* 0 for none */
	int			attempt;		/* 0 for none */
	TimestampTz retry_at;		/* 0 for unknown */
} ClaimAnswer;

extern Datum claim_answer_row(FunctionCallInfo fcinfo,
							  const ClaimAnswer *answer);

#endif							/* IDEM_CLAIM_H */
