/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  The protocol: claim, finish, release, lookup, forget.
 *
 * Words
 *
 *	key			what (owner, scope, key) names: one logical operation
 *	claim		the right to do the work of a key; at most one holder
 *	record		the row of a finished key, with the response that it replays
 *	outcome		what a claim answers; a normal answer is never an error,
 *				since an error would abort the caller's transaction
 *
 * What is where, and who may touch it
 *
 *	the lock (lock.c)		held from the claim to the end of the transaction;
 *							only its holder writes the record
 *	the memory (pending.c)	what this transaction has claimed, per savepoint
 *	the record (record.c)	written once, complete, by idem_finish
 *
 * The unique index is the guarantee that nothing is done twice; the lock only
 * makes waiting cheap and failing rare.  Whoever writes a record without the
 * lock costs somebody a 40001, never a second execution.
 *
 * How a claim is decided, in claim_decide():
 *
 *	1. This transaction has claimed the key already: in_progress.
 *	2. Try the lock, and look at the record, by a snapshot of this moment.
 *	3. A live record: give the lock back and replay, or mismatch.  This holds
 *	   without the lock, too, so replays of one key never queue.
 *	4. Not got the lock: somebody is at it.  Wait as the caller allows; with
 *	   the lock, look again, for that somebody may have finished.
 *	5. Somebody without the lock is changing the record (expiry, forget): wait
 *	   for the end of that transaction, and look again.
 *	6. No record, or an expired one, which is then pinned by a tuple lock so
 *	   that it is neither removed nor claimed by others: claimed.
 *
 * Isolation.  Under READ COMMITTED the look is newer than the snapshot of the
 * statement that called idem_claim.  Under REPEATABLE READ and SERIALIZABLE a
 * record that changed under the transaction's snapshot raises 40001, whatever
 * the outcome would be.  Claims leave no predicate locks: a transaction that
 * replays a key and one that forgets it are not serialized against each other.
 *
 * Time is the server's clock_timestamp(), never the start of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "key.h"
#include "lock.h"
#include "pending.h"
#include "record.h"

/* Settings, see idempotency.c. */
int			claim_default_ttl = SECS_PER_DAY;
int			claim_max_response_size = 8 * 1024;

/* No record is kept for less. */
#define CLAIM_MIN_TTL_USEC	1000

/* What idem_claim was asked. */
typedef struct ClaimRequest
{
	IdemKey		key;
	Interval	ttl;
	IdemFingerprint fingerprint;
	IdemWait	wait;
} ClaimRequest;

/* What idem_claim answers, in SQL a row of type idem_claim_answer. */
#define CLAIM_ANSWER_COLUMNS	5

typedef struct ClaimAnswer
{
	const char *outcome;
	Jsonb	   *response;		/* NULL for none */
	int			attempt;		/* 0 for none */
} ClaimAnswer;

PG_FUNCTION_INFO_V1(idem_claim);
PG_FUNCTION_INFO_V1(idem_finish);
PG_FUNCTION_INFO_V1(idem_release);
PG_FUNCTION_INFO_V1(idem_lookup);
PG_FUNCTION_INFO_V1(idem_forget);

static void claim_decide(const ClaimRequest *request, ClaimAnswer *answer);
static void claim_hold(const ClaimRequest *request,
					   const IdemVersion *expired);
static bool claim_answer_from(const ClaimRequest *request,
							  const IdemRecord *record, ClaimAnswer *answer);
static void claim_write(PendingClaim *pending, const IdemRecord *record);
static bool claim_row_is_there(PendingClaim *pending);
static PendingClaim *claim_pending(const IdemKey *key);
static bool claim_is_live(const IdemRecord *record, TimestampTz now);
pg_noreturn static void claim_raise_changed(const IdemKey *key);
pg_noreturn static void claim_raise_not_ours(const IdemKey *key);
static void claim_must_be_allowed(const char *function);
static void claim_make_key(IdemKey *key, FunctionCallInfo fcinfo,
						   int key_arg, int scope_arg);
static void claim_make_ttl(Interval *ttl, const Interval *given);
static void claim_make_wait(IdemWait *wait, const Interval *given);
static TimestampTz claim_expiry(TimestampTz from, const Interval *ttl);
static Datum claim_answer_row(FunctionCallInfo fcinfo,
							  Datum *values, bool *isnull);

/* ----------------------------------------------------------------
 *						idem_claim
 * ----------------------------------------------------------------
 */

/*
 * idem_claim(key text, ttl interval, request jsonb, scope text, wait interval)
 *		-> (outcome text, response jsonb, token bigint, attempt int,
 *			retry_after interval)
 *
 * Claims the key for the rest of the transaction, or tells why not.
 *
 *	key			1 to 512 bytes
 *	ttl			how long the record is kept after the finish, at least 1 ms;
 *				NULL: idempotency.default_ttl
 *	request		what the operation was asked to do; compared with that of the
 *				record by fingerprint; NULL never differs
 *	scope		up to 128 bytes
 *	wait		NULL: until a rival transaction ends; 0: not at all; else at
 *				most so long
 *
 * "token" and "retry_after" belong to leases and failures: a transactional
 * claim has no token, and its end cannot be foretold.  Parameters to come are
 * added behind "wait".
 *
 * Takes ROW EXCLUSIVE on idem_key and, if claimed, an advisory lock of class
 * 0x4944, both until the end of the transaction.  May block, see "wait".
 * Claiming over an expired record takes a transaction ID, and so does claiming
 * more keys than a transaction may lock; nothing else does.
 *
 * Raises 22004 and 22023 (bad arguments), 22008 (ttl out of range), 54000 (too
 * long), 25006 (read-only transaction, standby), 40001 (isolation, see above).
 */
Datum
idem_claim(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	ClaimAnswer answer;
	Datum		values[CLAIM_ANSWER_COLUMNS];
	bool		isnull[CLAIM_ANSWER_COLUMNS] = {false, true, true, true, true};

	claim_must_be_allowed("idem_claim()");
	record_open(true);
	claim_make_key(&request.key, fcinfo, 0, 3);
	claim_make_ttl(&request.ttl,
				   PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1));
	key_fingerprint(&request.fingerprint,
					PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	claim_make_wait(&request.wait,
					PG_ARGISNULL(4) ? NULL : PG_GETARG_INTERVAL_P(4));

	claim_decide(&request, &answer);

	values[0] = CStringGetTextDatum(answer.outcome);
	if (answer.response != NULL)
	{
		values[1] = JsonbPGetDatum(answer.response);
		isnull[1] = false;
	}
	if (answer.attempt > 0)
	{
		values[3] = Int32GetDatum(answer.attempt);
		isnull[3] = false;
	}
	PG_RETURN_DATUM(claim_answer_row(fcinfo, values, isnull));
}

static void
claim_decide(const ClaimRequest *request, ClaimAnswer *answer)
{
	const IdemKey *key = &request->key;
	PendingClaim *pending = claim_pending(key);
	bool		locked = false;
	IdemLook	look;

	answer->outcome = "in_progress";
	answer->response = NULL;
	answer->attempt = 0;

	if (pending != NULL)
	{
		if (key_fingerprints_differ(&request->fingerprint,
									&pending->top->work.fingerprint))
			answer->outcome = "mismatch";
		return;
	}

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();

		locked = locked || lock_key_try(key->hash);
		record_look(key, &look);
		if (look.changed)
		{
			/* somebody is at it: the answer is true in any snapshot */
			if (!locked && request->wait.mode == IDEM_WAIT_NONE)
				return;
			claim_raise_changed(key);
		}
		if (look.found && claim_answer_from(request, &look.record, answer))
		{
			if (locked)
				lock_key_give_back(key->hash);
			return;
		}

		if (!locked)
		{
			locked = lock_key_wait(key->hash, &request->wait);
			if (!locked)
				return;
			continue;
		}

		/*
		 * Never wait for a transaction while holding the lock of the key: it
		 * may want to claim this very key.
		 */
		if (TransactionIdIsValid(look.rival))
		{
			lock_key_give_back(key->hash);
			locked = false;
			if (!record_wait_for_xact(look.rival, &request->wait))
				return;
			continue;
		}
		if (look.found)
		{
			IdemRecordResult pinned = record_pin(key, &look.record.version);

			if (pinned == IDEM_RECORD_BUSY)
			{
				TransactionId locker = record_locker(key, &look.record.version);

				lock_key_give_back(key->hash);
				locked = false;
				if (request->wait.mode == IDEM_WAIT_NONE ||
					(TransactionIdIsValid(locker) &&
					 !record_wait_for_xact(locker, &request->wait)))
					return;
			}
			if (pinned != IDEM_RECORD_OK)
				continue;
		}

		claim_hold(request, look.found ? &look.record.version : NULL);
		answer->outcome = "claimed";
		answer->attempt = 1;
		return;
	}
}

/*
 * The key is ours: its lock is held, and an expired record of it is pinned.
 * Make that last to the end of the transaction.
 *
 * Normally the lock is kept and nothing is written.  A transaction that holds
 * as many locks as it may writes the row ahead instead, for idem_finish to
 * update, and gives the lock back: others then find the row, uncommitted, and
 * wait for our transaction.  An expired record need not even be written, since
 * the tuple lock on it does the same.
 */
static void
claim_hold(const ClaimRequest *request, const IdemVersion *expired)
{
	const IdemKey *key = &request->key;
	bool		keep_lock = pending_may_lock(key);
	PendingWork work;

	work.claimed_at = GetCurrentTimestamp();
	work.ttl = request->ttl;
	work.fingerprint = request->fingerprint;
	work.row_is_ours = false;
	if (expired != NULL)
		work.row = *expired;
	else if (keep_lock)
		record_no_version(&work.row);
	else
	{
		IdemRecord	ahead;

		ahead.finished = false;
		ahead.claimed_at = work.claimed_at;
		ahead.expires_at = DT_NOEND;
		ahead.fingerprint = work.fingerprint;
		ahead.response = NULL;
		work.row = record_insert(key, &ahead, NULL);
		work.row_is_ours = true;
	}
	pending_remember(key, &work, keep_lock);
	if (!keep_lock)
		lock_key_give_back(key->hash);
}

/* The answer that a record gives; false if it has expired and gives none. */
static bool
claim_answer_from(const ClaimRequest *request, const IdemRecord *record,
				  ClaimAnswer *answer)
{
	if (!claim_is_live(record, GetCurrentTimestamp()))
		return false;

	if (key_fingerprints_differ(&request->fingerprint, &record->fingerprint))
		answer->outcome = "mismatch";
	else
	{
		answer->outcome = "replayed";
		answer->response = record->response;
		answer->attempt = 1;
	}
	return true;
}

/* ----------------------------------------------------------------
 *						idem_finish, idem_release
 * ----------------------------------------------------------------
 */

/*
 * idem_finish(key text, response jsonb, scope text) -> jsonb
 *
 * Writes the record of a key that this transaction has claimed, and returns
 * the response.  It becomes visible, and the work final, with the commit.
 *
 *	response	what every repeat gets, up to idempotency.max_response_size;
 *				NULL is a response like any other
 *
 * Raises ID001 (not claimed by this transaction), ID002 (finished already),
 * 40001 (somebody wrote the record without the lock), 54000 (response too
 * large), 25006.  Takes a transaction ID.  Does not block, but for such a
 * writer without the lock.
 */
Datum
idem_finish(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	PendingClaim *pending;
	const PendingWork *work;
	IdemRecord	record;

	claim_must_be_allowed("idem_finish()");
	record_open(true);
	claim_make_key(&key, fcinfo, 0, 2);

	pending = claim_pending(&key);
	if (pending == NULL)
		claim_raise_not_ours(&key);
	work = &pending->top->work;

	record.response = NULL;
	if (!PG_ARGISNULL(1))
	{
		Size		limit = (Size) claim_max_response_size * 1024;
		Size		size = toast_raw_datum_size(PG_GETARG_DATUM(1)) - VARHDRSZ;

		if (size > limit)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("response of key \"%s\" is too large",
							key_name(&key)),
					 errdetail("It has %zu bytes, the limit is %zu.",
							   size, limit),
					 errhint("Store the data elsewhere and a reference to it here, or raise \"idempotency.max_response_size\".")));
		record.response = PG_GETARG_JSONB_P(1);
	}
	record.finished = true;
	record.claimed_at = work->claimed_at;
	record.finished_at = GetCurrentTimestamp();
	record.expires_at = claim_expiry(record.finished_at, &work->ttl);
	record.fingerprint = work->fingerprint;

	claim_write(pending, &record);
	pending_change(pending, PENDING_FINISHED);

	if (PG_ARGISNULL(1))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(1));
}

/* Write the record of a claim, over the row under it if there is one. */
static void
claim_write(PendingClaim *pending, const IdemRecord *record)
{
	const IdemKey *key = &pending->key;
	const PendingWork *work = &pending->top->work;

	if (!claim_row_is_there(pending))
		(void) record_insert(key, record, &pending->lost);
	else if (record_replace(key, &work->row, record) != IDEM_RECORD_OK)
	{
		pending->lost = true;
		pending_raise_lost(pending);
	}
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
claim_row_is_there(PendingClaim *pending)
{
	const PendingWork *work = &pending->top->work;
	IdemLook	look;

	if (!record_is_version(&work->row))
		return false;

	record_look(&pending->key, &look);
	if (look.found ?
		!record_same_version(&look.record.version, &work->row) :
		work->row_is_ours)
	{
		pending->lost = true;
		pending_raise_lost(pending);
	}
	return look.found;
}

/*
 * idem_release(key text, scope text) -> void
 *
 * Gives up a claim of this transaction: the transaction may commit without a
 * finish, and the next claim starts afresh.  Others who wait for the key go on
 * waiting until the transaction ends, since until then it may be undone.
 *
 * Raises ID001, ID002, 40001 and 25006 like idem_finish.  Never blocks.
 */
Datum
idem_release(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	PendingClaim *pending;

	claim_must_be_allowed("idem_release()");
	record_open(true);
	claim_make_key(&key, fcinfo, 0, 1);

	pending = claim_pending(&key);
	if (pending == NULL)
		claim_raise_not_ours(&key);
	if (pending->top->work.row_is_ours && claim_row_is_there(pending))
		(void) record_delete(&key, &pending->top->work.row);
	pending_change(pending, PENDING_RELEASED);

	PG_RETURN_VOID();
}

/*
 * The unfinished claim of this transaction on a key, or NULL.  Raises 40001 if
 * it was lost.
 */
static PendingClaim *
claim_pending(const IdemKey *key)
{
	PendingClaim *pending = pending_find(key);

	if (pending == NULL || pending->top->state != PENDING_CLAIMED)
		return NULL;
	if (pending->lost)
		pending_raise_lost(pending);
	return pending;
}

/* Why a key cannot be finished or released without a claim on it. */
static void
claim_raise_not_ours(const IdemKey *key)
{
	IdemLook	look;

	record_look(key, &look);
	if (look.found && claim_is_live(&look.record, GetCurrentTimestamp()))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_FINISHED),
				 errmsg("key \"%s\" is finished already", key_name(key)),
				 errhint("Finish a key only if idem_claim answered \"claimed\".")));
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_NOT_CLAIMED),
			 errmsg("key \"%s\" is not claimed by this transaction",
					key_name(key)),
			 errhint("Call idem_claim first, in the same transaction, as the same role and with the same scope. A rollback to a savepoint undoes a claim made after it.")));
}

/* ----------------------------------------------------------------
 *						idem_lookup, idem_forget
 * ----------------------------------------------------------------
 */

/*
 * idem_lookup(key text, scope text)
 *		-> setof (state text, response jsonb, attempt int,
 *				  claimed_at, finished_at, lease_until, retry_at, expires_at)
 *
 * What is known of a key, without claiming it: a row, or none if there is no
 * record or an expired one.  Reads by the snapshot of the statement, like a
 * query; works in read-only transactions and on a standby; never blocks.
 * "state" is "finished", or "in_progress" for an unfinished claim of this very
 * transaction; claims of other transactions do not show.  "lease_until" and
 * "retry_at" are null for transactional claims.
 *
 * Raises 22004, 22023, 54000 for bad arguments.
 */
Datum
idem_lookup(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemKey		key;
	PendingClaim *pending;
	IdemRecord	record;
	Datum		values[8];
	bool		isnull[8] = {false, true, true, true, true, true, true, true};

	record_open(false);
	claim_make_key(&key, fcinfo, 0, 1);
	InitMaterializedSRF(fcinfo, 0);

	pending = pending_find(&key);
	if (pending != NULL && pending->top->state == PENDING_CLAIMED)
	{
		values[0] = CStringGetTextDatum("in_progress");
		values[3] = TimestampTzGetDatum(pending->top->work.claimed_at);
		isnull[3] = false;
	}
	else if (record_read(&key, &record) &&
			 claim_is_live(&record, GetCurrentTimestamp()))
	{
		values[0] = CStringGetTextDatum("finished");
		if (record.response != NULL)
		{
			values[1] = JsonbPGetDatum(record.response);
			isnull[1] = false;
		}
		values[3] = TimestampTzGetDatum(record.claimed_at);
		values[4] = TimestampTzGetDatum(record.finished_at);
		values[7] = TimestampTzGetDatum(record.expires_at);
		isnull[3] = isnull[4] = isnull[7] = false;
	}
	else
		return (Datum) 0;

	values[2] = Int32GetDatum(1);
	isnull[2] = false;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	return (Datum) 0;
}

/*
 * idem_forget(key text, scope text) -> boolean
 *
 * Drops the record of a key, so that it can be claimed anew: true if there was
 * one.  Waits for a transaction that has the key claimed, and for one that is
 * changing its record.  Until this transaction commits, others still replay.
 *
 * Raises 55006 if this transaction has itself claimed the key and not finished
 * it, 40001 (isolation), 22004, 22023, 54000, 25006.
 */
Datum
idem_forget(PG_FUNCTION_ARGS)
{
	const IdemWait forever = {IDEM_WAIT_FOREVER, 0};
	IdemKey		key;
	PendingClaim *pending;
	IdemLook	look;
	bool		gone;
	bool		forgotten = false;

	claim_must_be_allowed("idem_forget()");
	record_open(true);
	claim_make_key(&key, fcinfo, 0, 1);

	if (claim_pending(&key) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot forget key \"%s\" because this transaction has claimed it",
						key_name(&key)),
				 errhint("Use idem_release to give the claim up.")));

	do
	{
		CHECK_FOR_INTERRUPTS();

		(void) lock_key_wait(key.hash, &forever);
		record_look(&key, &look);
		if (look.changed)
			claim_raise_changed(&key);

		/*
		 * The lock is not needed any longer: a deleted row itself holds off
		 * whoever wants to claim the key before we commit.
		 */
		lock_key_give_back(key.hash);

		if (TransactionIdIsValid(look.rival))
		{
			(void) record_wait_for_xact(look.rival, &forever);
			gone = false;
		}
		else if (look.found)
		{
			gone = record_delete(&key, &look.record.version) == IDEM_RECORD_OK;
			forgotten = gone && claim_is_live(&look.record,
											  GetCurrentTimestamp());
		}
		else
			gone = true;
	} while (!gone);

	/* what this transaction finished is not there to be shown any more */
	pending = pending_find(&key);
	if (pending != NULL && pending->top->state == PENDING_FINISHED)
		pending_change(pending, PENDING_RELEASED);

	PG_RETURN_BOOL(forgotten);
}

/* ----------------------------------------------------------------
 *						Helpers
 * ----------------------------------------------------------------
 */

static bool
claim_is_live(const IdemRecord *record, TimestampTz now)
{
	return record->finished && record->expires_at > now;
}

static void
claim_raise_changed(const IdemKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to key \"%s\"", key_name(key)),
			 errdetail("Its record changed after the snapshot of this transaction was taken."),
			 errhint("Retry the transaction.")));
}

/* Standby, read-only transactions, parallel workers. */
static void
claim_must_be_allowed(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

static void
claim_make_key(IdemKey *key, FunctionCallInfo fcinfo,
			   int key_arg, int scope_arg)
{
	key_make(key,
			 PG_ARGISNULL(key_arg) ? NULL : PG_GETARG_TEXT_PP(key_arg),
			 PG_ARGISNULL(scope_arg) ? NULL : PG_GETARG_TEXT_PP(scope_arg));
}

static void
claim_make_ttl(Interval *ttl, const Interval *given)
{
	TimestampTz now;

	if (given == NULL)
	{
		ttl->time = claim_default_ttl * USECS_PER_SEC;
		ttl->day = 0;
		ttl->month = 0;
		return;
	}

	*ttl = *given;
	if (INTERVAL_NOT_FINITE(ttl))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be finite"),
				 errhint("Use an interval such as '100 years' to keep a record for good.")));
	now = GetCurrentTimestamp();
	if (claim_expiry(now, ttl) < now + CLAIM_MIN_TTL_USEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be at least 1 millisecond"),
				 errhint("Use null for the default, setting \"idempotency.default_ttl\".")));
}

static void
claim_make_wait(IdemWait *wait, const Interval *given)
{
	TimestampTz now;

	if (given == NULL)
	{
		wait->mode = IDEM_WAIT_FOREVER;
		return;
	}

	if (INTERVAL_NOT_FINITE(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must be finite"),
				 errhint("Use null to wait until the other transaction ends.")));
	now = GetCurrentTimestamp();
	wait->deadline = claim_expiry(now, given);
	if (wait->deadline < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must not be negative"),
				 errhint("Use '0' not to wait at all, or null to wait until the other transaction ends.")));
	wait->mode = wait->deadline == now ? IDEM_WAIT_NONE : IDEM_WAIT_UNTIL;
}

/*
 * As "timestamptz + interval" does it: months and days go by the calendar of
 * the session's time zone.  Raises 22008 out of range.
 */
static TimestampTz
claim_expiry(TimestampTz from, const Interval *ttl)
{
	if (ttl->month == 0 && ttl->day == 0 &&
		ttl->time >= 0 && ttl->time < INT64CONST(100000) * USECS_PER_DAY)
		return from + ttl->time;
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(from),
												   IntervalPGetDatum(ttl)));
}

/* A row of type idem_claim_answer. */
static Datum
claim_answer_row(FunctionCallInfo fcinfo, Datum *values, bool *isnull)
{
	static const Oid columns[CLAIM_ANSWER_COLUMNS] =
	{TEXTOID, JSONBOID, INT8OID, INT4OID, INTERVALOID};
	const int32 no_typmod = -1;
	Oid			type = get_fn_expr_rettype(fcinfo->flinfo);
	TupleDesc	desc;
	HeapTuple	tuple;

	if (!OidIsValid(type))
		type = get_func_rettype(fcinfo->flinfo->fn_oid);
	desc = lookup_rowtype_tupdesc(type, no_typmod);
	for (int i = 0; i < Max(desc->natts, CLAIM_ANSWER_COLUMNS); i++)
		if (i >= desc->natts || i >= CLAIM_ANSWER_COLUMNS ||
			TupleDescAttr(desc, i)->atttypid != columns[i])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("type \"%s\" is not as extension \"%s\" created it",
							format_type_be(type), "idempotency"),
					 errhint("Undo the change, or use ALTER EXTENSION idempotency UPDATE if the library is newer than the extension.")));
	tuple = heap_form_tuple(desc, values, isnull);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}
