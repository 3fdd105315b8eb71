/*-------------------------------------------------------------------------
 *
 * finish.c
 *	  How a claim ends: finish, fail, release.
 *
 * Each of the three has two ways to know that the claim is the caller's.
 *
 * Without a token it is a claim of this transaction: pending.c remembers it, and
 * the lock of the key (or the row written ahead, or the tuple lock on the
 * record under the claim) keeps everybody else away.  The record is written
 * here, once and complete.
 *
 * With a token it is a lease: lease.c finds the record that carries the token,
 * and updates it.  The update is heap-only as long as the page has room, since
 * no index is on a column that it changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "args.h"
#include "backoff.h"
#include "claim.h"
#include "compat.h"
#include "counter.h"
#include "errors.h"
#include "finish.h"
#include "key.h"
#include "lease.h"
#include "memo.h"
#include "pending.h"
#include "record.h"

/* What shall become of a record. */
typedef struct FinishOutcome
{
	IdemState	state;
	Jsonb	   *response;
	TimestampTz now;
	bool		has_retry_in;	/* else the backoff of the attempt */
	Interval	retry_in;
	int			max_attempts;	/* 0: no limit */
} FinishOutcome;

PG_FUNCTION_INFO_V1(idem_finish);
PG_FUNCTION_INFO_V1(idem_fail);
PG_FUNCTION_INFO_V1(idem_release);

static void finish_settle(IdemRecord *record, const FinishOutcome *outcome,
						  const Interval *ttl);
static void finish_settle_lease(IdemRecord *record, void *arg);
static void finish_settle_claims(PendingClaim *const *claims,
								 const FinishOutcome *outcomes, int n,
								 IdemInsert *inserts);
static void finish_count(IdemState state);
static bool finish_row_is_there(PendingClaim *pending);

/*
 * idem_finish(key text, response jsonb, scope text, token bigint) -> jsonb
 *
 * Writes the record of a key that the caller has claimed, and returns the
 * response.  It becomes visible, and the work final, with the commit.
 *
 *	response	what every repeat gets, up to idempotency.max_response_size;
 *				NULL is a response like any other
 *	token		of a lease; NULL for a claim of this transaction.  Repeated with
 *				the same token, it returns the stored response.
 *
 * Raises ID001 (no token, and not claimed by this transaction), ID002 (finished
 * already), ID003 (the lease is not the caller's any more), 40001 (somebody
 * wrote the record without the lock), 54000 (response too large), 25006.  Takes
 * a transaction ID.  Blocks only for a transaction that is taking the lease
 * over, or that writes without the lock.
 */
Datum
idem_finish(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	PendingClaim *pending;
	Jsonb	   *response;
	int64		token;

	args_may_write("idem_finish()");
	record_open(true);
	args_key(&key, fcinfo, 0, 2);
	token = args_token(PG_ARGISNULL(3), PG_GETARG_DATUM(3));
	pending = lease_whose_claim(&key, &token);
	response = args_response(&key, "response",
							 PG_ARGISNULL(1), PG_GETARG_DATUM(1));

	if (pending != NULL)
		finish_claims(&pending, &response, 1);
	else
		response = finish_lease(&key, token, response);

	if (response == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(response);
}

/*
 * idem_fail(key text, error jsonb, retry_in interval, final boolean,
 *			 max_attempts int, scope text, token bigint)
 *		-> (outcome text, response jsonb, token bigint, attempt int,
 *			retry_after interval)
 *
 * Records that the work of a key has failed, and answers what the next claim
 * will be told: retry_later, or failed.
 *
 *	error			stored like a response, and replayed if the failure is final
 *	retry_in		when the key may be claimed again, not negative; NULL: full
 *					jitter over the exponential backoff of the attempt, by the
 *					settings idempotency.backoff_base and backoff_cap
 *	final			true: never
 *	max_attempts	the failure of this attempt (or a later one) is final; NULL:
 *					idempotency.max_attempts; 0: no limit
 *	token			of a lease; NULL for a claim of this transaction, which rolls
 *					the work back to a savepoint, fails the key, and commits
 *
 * Raises as idem_finish, and 22004 and 22023 for its own arguments.
 */
Datum
idem_fail(PG_FUNCTION_ARGS)
{
	FinishOutcome outcome = {.state = IDEM_RETRY};
	ClaimAnswer answer = {0};
	IdemKey		key;
	IdemRecord	record;
	PendingClaim *pending;
	int64		token;

	args_may_write("idem_fail()");
	record_open(true);
	args_key(&key, fcinfo, 0, 5);
	outcome.now = GetCurrentTimestamp();
	outcome.has_retry_in =
		args_delay(&outcome.retry_in, fcinfo, 2, "retry_in",
				   "Use null for the backoff of the attempt, or final => true for no retry.");
	if (args_flag(fcinfo, 3, "final",
				  "Use true for a failure that no retry can mend."))
		outcome.state = IDEM_FAILED;
	outcome.max_attempts = args_max_attempts(fcinfo, 4, backoff_max_attempts);
	token = args_token(PG_ARGISNULL(6), PG_GETARG_DATUM(6));
	pending = lease_whose_claim(&key, &token);
	outcome.response = args_response(&key, "error",
									 PG_ARGISNULL(1), PG_GETARG_DATUM(1));

	if (pending != NULL)
	{
		IdemInsert	written;

		finish_settle_claims(&pending, &outcome, 1, &written);
		record = written.record;
	}
	else if (lease_change(&key, token, &record, finish_settle_lease, &outcome))
		finish_count(record.state);
	else if (record.state == IDEM_FINISHED)
		lease_raise_settled(&key, &record);

	answer.outcome = record.state == IDEM_RETRY ? CLAIM_RETRY_LATER : CLAIM_FAILED;
	answer.response = record.response;
	answer.attempt = record.attempt;
	answer.retry_at = record.state == IDEM_RETRY ? record.retry_at : 0;
	PG_RETURN_DATUM(claim_answer_row(fcinfo, &answer));
}

/*
 * idem_release(key text, scope text, token bigint) -> void
 *
 * Gives up a claim: the next one starts afresh.  A transaction may commit
 * without a finish then; others who wait for the key go on waiting until it
 * ends, since until then the release may be undone.
 *
 * Raises as idem_finish.
 */
Datum
idem_release(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	PendingClaim *pending;
	int64		token;

	args_may_write("idem_release()");
	record_open(true);
	args_key(&key, fcinfo, 0, 1);
	token = args_token(PG_ARGISNULL(2), PG_GETARG_DATUM(2));
	pending = lease_whose_claim(&key, &token);

	if (pending == NULL)
		lease_delete(&key, token);
	else
	{
		const PendingWork *work = &pending->top->work;

		/* an expired record may stay; one of this life of the key may not */
		if ((work->row_is_ours || work->attempt > 1) &&
			finish_row_is_there(pending))
			(void) record_delete(&key, &work->row);
		if (work->generation != work->row.generation)
			memo_forget(work->generation);
		pending_change(pending, PENDING_RELEASED);
	}
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 *						Writing the outcome
 * ----------------------------------------------------------------
 */

/* Fill in the outcome; attempt, claim time and lease are there already. */
static void
finish_settle(IdemRecord *record, const FinishOutcome *outcome,
			  const Interval *ttl)
{
	record->state = outcome->state;
	record->finished_at = outcome->now;
	record->response = outcome->response;
	record->retry_at = 0;

	if (record->state == IDEM_FINISHED)
	{
		record->expires_at = args_expiry(outcome->now, ttl, ARGS_FINISHED);
		return;
	}

	if (outcome->max_attempts > 0 && record->attempt >= outcome->max_attempts)
		record->state = IDEM_FAILED;
	if (record->state == IDEM_RETRY)
	{
		if (outcome->has_retry_in)
			record->retry_at = args_add(outcome->now, &outcome->retry_in);
		else
			record->retry_at = outcome->now +
				backoff_delay(record->attempt, backoff_setting_base(),
							  backoff_setting_cap(), IDEM_JITTER_FULL);
	}
	record->expires_at = args_expiry(Max(outcome->now, record->retry_at),
									 ttl, ARGS_FAILED);
}

static void
finish_count(IdemState state)
{
	counter_add(state == IDEM_FINISHED ? COUNTER_FINISHES : COUNTER_FAILURES, 1);
}

static void
finish_settle_lease(IdemRecord *record, void *arg)
{
	finish_settle(record, (const FinishOutcome *) arg,
				  record->lease.has_ttl ? &record->lease.ttl : NULL);
}

/*
 * Write the outcomes of claims of this transaction, in the order of their keys:
 * over the row under the claim, if there is one.  "inserts" has room for all of
 * them; the first one tells what was written if n is 1.
 */
static void
finish_settle_claims(PendingClaim *const *claims,
					 const FinishOutcome *outcomes, int n,
					 IdemInsert *inserts)
{
	int			fresh = 0;

	for (int i = 0; i < n; i++)
	{
		PendingClaim *claim = claims[i];
		const PendingWork *work = &claim->top->work;
		IdemInsert *insert = &inserts[fresh];
		IdemRecord *record = &insert->record;

		memset(insert, 0, sizeof(*insert));
		insert->key = &claim->key;
		insert->duplicate = &claim->lost;
		record->attempt = work->attempt;
		record->generation = work->generation;
		record->claimed_at = work->claimed_at;
		record->fingerprint = work->fingerprint;
		finish_settle(record, &outcomes[i], work->has_ttl ? &work->ttl : NULL);

		if (!finish_row_is_there(claim))
			fresh++;
		else if (record_replace(&claim->key, &work->row, record) != STORE_OK)
		{
			claim->lost = true;
			pending_raise_lost(claim);
		}
	}
	if (fresh > 0)
		record_insert(inserts, fresh);
	for (int i = 0; i < n; i++)
	{
		pending_change(claims[i], PENDING_FINISHED);
		finish_count(outcomes[i].state);
	}
}

/* Finish claims of this transaction, in the order of their keys. */
void
finish_claims(PendingClaim *const *claims, Jsonb *const *responses, int n)
{
	TimestampTz now = GetCurrentTimestamp();
	FinishOutcome *outcomes;
	IdemInsert *inserts;

	outcomes = palloc0(n * sizeof(FinishOutcome));
	inserts = palloc(n * sizeof(IdemInsert));
	for (int i = 0; i < n; i++)
	{
		outcomes[i].state = IDEM_FINISHED;
		outcomes[i].response = responses[i];
		outcomes[i].now = now;
	}
	finish_settle_claims(claims, outcomes, n, inserts);
}

/* Finish a lease; returns the response that is stored now, which may be another. */
Jsonb *
finish_lease(const IdemKey *key, int64 token, Jsonb *response)
{
	FinishOutcome outcome = {.state = IDEM_FINISHED};
	IdemRecord	record;

	outcome.response = response;
	outcome.now = GetCurrentTimestamp();
	if (lease_change(key, token, &record, finish_settle_lease, &outcome))
		finish_count(record.state);
	else if (record.state != IDEM_FINISHED)
		lease_raise_settled(key, &record);
	return record.response;
}

/*
 * Is the row still there that was under the claim when it was made?  False if
 * there was none, too.
 *
 * A row written ahead is our own, and an expired record was pinned, so nobody
 * else can have touched them.  This very transaction may have forgotten an
 * expired record, which does no harm, or rewritten the whole table, which does.
 */
static bool
finish_row_is_there(PendingClaim *pending)
{
	const PendingWork *work = &pending->top->work;
	IdemLook	look;

	if (!record_is_version(&work->row))
		return false;
	if (record_is_current(&pending->key, &work->row))
		return true;

	record_look_twice(&pending->key, &look);
	if (look.found ?
		!record_same_version(&look.record.version, &work->row) :
		work->row_is_ours)
	{
		pending->lost = true;
		pending_raise_lost(pending);
	}
	return look.found;
}
