/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  What a claim asks, and what it is answered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CLAIM_H
#define IDEM_CLAIM_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "key.h"
#include "lock.h"
#include "pending.h"
#include "record.h"

/* What a claim asks for, beside the key itself. */
typedef struct ClaimTerms
{
	bool		has_ttl;		/* else the settings decide */
	Interval	ttl;
	IdemWait	wait;
	bool		leased;			/* else transactional */
	Interval	lease;
	IdemTakeover takeover;
	char	   *holder;			/* NULL for none */
} ClaimTerms;

typedef struct ClaimRequest
{
	IdemKey		key;
	IdemFingerprint fingerprint;
	ClaimTerms	terms;
} ClaimRequest;

/* What a claim answers; claim_answer_values() has their names in SQL. */
typedef enum ClaimOutcome
{
	CLAIM_CLAIMED,				/* do the work, and finish the key */
	CLAIM_REPLAYED,				/* finished: here is the response */
	CLAIM_IN_PROGRESS,			/* somebody is at it */
	CLAIM_MISMATCH,				/* the key was used with another request */
	CLAIM_RETRY_LATER,			/* failed, may be claimed again at retry_at */
	CLAIM_FAILED,				/* failed for good */
	CLAIM_HELD					/* nobody knows whether the work was done */
} ClaimOutcome;

/* In SQL a row of type idem_claim_answer, with these columns. */
#define CLAIM_ANSWER_TYPES	TEXTOID, JSONBOID, INT8OID, INT4OID, INTERVALOID

typedef struct ClaimAnswer
{
	ClaimOutcome outcome;
	Jsonb	   *response;		/* NULL for none */
	int64		token;			/* 0 for none */
	int			attempt;		/* 0 for none */
	TimestampTz retry_at;		/* 0 for unknown */
} ClaimAnswer;

/*
 * What the claims of one call have in common.
 *
 * "ahead" are claims that are to be held by rows of their own which are not
 * written yet.  Until then they are held by the locks of their keys, a few more
 * than the transaction may keep.
 */
#define CLAIM_MAX_AHEAD		8

typedef struct ClaimSeries
{
	RecordScan *scan;			/* NULL: there is only one claim */
	int			nahead;
	PendingClaim *ahead[CLAIM_MAX_AHEAD];
} ClaimSeries;

extern void claim_terms(ClaimTerms *terms, FunctionCallInfo fcinfo,
						int ttl_arg, int wait_arg, int lease_arg);
extern void claim_decide(const ClaimRequest *request, ClaimAnswer *answer);
extern void claim_begin_series(ClaimSeries *series, Oid table);
extern void claim_decide_next(const ClaimRequest *request,
							  ClaimSeries *series, ClaimAnswer *answer);
extern void claim_end_series(ClaimSeries *series);
extern void claim_answer_values(const ClaimAnswer *answer,
								Datum *values, bool *isnull);
extern Datum claim_answer_row(FunctionCallInfo fcinfo,
							  const ClaimAnswer *answer);

#endif							/* IDEM_CLAIM_H */
