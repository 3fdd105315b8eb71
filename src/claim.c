/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  The protocol, and its first half: idem_claim.
 *
 * Words
 *
 *	key			what (owner, scope, key) names: one logical operation
 *	claim		the right to do the work of a key; at most one holder
 *	record		the row of a key that is finished, has failed, or is leased
 *	lease		a claim that is itself a committed record, see lease.c
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
 *	3. A record that counts: give the lock back and answer (replayed, mismatch,
 *	   failed, held, retry_later).  This holds without the lock, too, so replays
 *	   of one key never queue, and a session whose last claim was a replay does
 *	   not even ask for the lock before it has looked.
 *	4. A live lease: give the lock back, for its holder may need it.  Busy, or
 *	   wait for the lease as the caller allows, and start again.
 *	5. Not got the lock: somebody is at it.  Wait as the caller allows; with
 *	   the lock, look again, for that somebody may have finished.
 *	6. Somebody without the lock is changing the record (expiry, forget, the
 *	   holder of a lease): wait for the end of that transaction, start again.
 *	7. No record, or one that may be claimed over: expired, a failure whose time
 *	   has come, a lease that ran out under policy "rerun", or our own holder's
 *	   lease.  Pin it by a tuple lock, so that nobody else changes it: claimed.
 *
 * What makes the claim last is decided in claim_hold().
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

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "claim.h"
#include "compat.h"
#include "counter.h"
#include "errors.h"
#include "key.h"
#include "lease.h"
#include "lock.h"
#include "pending.h"
#include "record.h"

/* What a record says to a claim. */
typedef enum ClaimVerdict
{
	CLAIM_OPEN,					/* nothing: the key may be claimed */
	CLAIM_LEASED,				/* a lease is live: come again at retry_at */
	CLAIM_ANSWERED				/* the last word */
} ClaimVerdict;

/*
 * Was the last claim of this session answered by a replay?  Then the next one may
 * be, too, and looks before it asks for the lock.  A guess that costs a second look
 * if it is wrong, nothing else.
 */
static bool claim_repeats = false;

PG_FUNCTION_INFO_V1(idem_claim);

static void claim_decide_one(const ClaimRequest *request, ClaimSeries *series,
							 ClaimAnswer *answer);
static bool claim_wait_for_key(const ClaimRequest *request);
static bool claim_wait_for_xact(const ClaimRequest *request,
								TransactionId xid);
static bool claim_pause(const ClaimRequest *request, TimestampTz until,
						int pauses);
static ClaimVerdict claim_hear(const ClaimRequest *request,
							   const IdemRecord *record, ClaimAnswer *answer);
static bool claim_is_own_lease(const ClaimRequest *request,
							   const IdemRecord *record, TimestampTz now);
static bool claim_hold(const ClaimRequest *request, const IdemRecord *under,
					   ClaimSeries *series, ClaimAnswer *answer);
static void claim_write_ahead(ClaimSeries *series);
static bool claim_hold_by_lease(const ClaimRequest *request,
								const IdemRecord *under,
								const PendingWork *work, ClaimAnswer *answer);
static IdemTakeover claim_takeover_argument(const char *name);

/*
 * idem_claim(key text, ttl interval, request jsonb, scope text, wait interval,
 *			  lease interval, takeover text, holder text)
 *		-> (outcome text, response jsonb, token bigint, attempt int,
 *			retry_after interval)
 *
 * Claims the key, or tells why not.
 *
 *	key			1 to 512 bytes
 *	ttl			how long the record is kept after the finish (or the failure, or
 *				the end of the lease), at least 1 ms; NULL: the settings
 *	request		what the operation was asked to do; compared with that of the
 *				record by fingerprint; NULL never differs
 *	scope		up to 128 bytes
 *	wait		NULL: until a rival transaction ends, but not for a lease; 0: not
 *				at all; else at most so long, for transactions and leases
 *	lease		NULL: a claim for the rest of the transaction; else a claim that
 *				outlives it and is valid so long, at least 1 ms
 *	takeover	what shall happen when this lease runs out: rerun, fail or hold
 *	holder		names one request, up to 512 bytes: the same holder gets its own
 *				live lease again, with a new token
 *
 * A transactional claim takes ROW EXCLUSIVE on idem_key and an advisory lock of
 * class 0x4944, both until the end of the transaction.  A leased claim writes
 * the record.  May block, see "wait".  Claiming over a record takes a
 * transaction ID, and so does claiming more keys than a transaction may lock;
 * a transactional claim else takes none.
 *
 * Raises 22004 and 22023 (bad arguments), 22008 (interval out of range), 54000
 * (too long), 25006 (read-only transaction, standby), 40001 (isolation, see
 * above).
 */
Datum
idem_claim(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	ClaimAnswer answer;

	args_may_write("idem_claim()");
	record_open(true);
	args_key(&request.key, fcinfo, 0, 3);
	key_fingerprint(&request.fingerprint,
					PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	claim_terms(&request.terms, fcinfo, 1, 4, 5);

	claim_decide(&request, &answer);
	PG_RETURN_DATUM(claim_answer_row(fcinfo, &answer));
}

/*
 * The terms of a claim, from the arguments of an SQL function: "ttl", "wait", and
 * from "lease" on also "takeover" and "holder".  No lease_arg (negative): a
 * transactional claim.
 */
void
claim_terms(ClaimTerms *terms, FunctionCallInfo fcinfo, int ttl_arg,
			int wait_arg, int lease_arg)
{
	int			takeover_arg = lease_arg + 1;
	int			holder_arg = lease_arg + 2;

	memset(terms, 0, sizeof(*terms));
	terms->has_ttl = args_ttl(&terms->ttl, fcinfo, ttl_arg);
	args_wait(&terms->wait, fcinfo, wait_arg);
	if (lease_arg < 0)
		return;

	terms->leased = !PG_ARGISNULL(lease_arg);
	if (terms->leased)
		args_lease(&terms->lease, fcinfo, lease_arg);
	terms->takeover =
		claim_takeover_argument(PG_ARGISNULL(takeover_arg) ? NULL :
								text_to_cstring(PG_GETARG_TEXT_PP(takeover_arg)));
	terms->holder = PG_ARGISNULL(holder_arg) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(holder_arg));
	if (terms->holder != NULL && strlen(terms->holder) > IDEM_MAX_KEY_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s is too long", "holder"),
				 errdetail("It has %d bytes, the limit is %d.",
						   (int) strlen(terms->holder), IDEM_MAX_KEY_LEN),
				 errhint("Use a digest of the long value instead.")));
}

/* Claim a key, or find out why not: see above. */
void
claim_decide(const ClaimRequest *request, ClaimAnswer *answer)
{
	ClaimSeries series;

	series.scan = NULL;
	series.nahead = 0;
	claim_decide_next(request, &series, answer);
	claim_write_ahead(&series);
}

/*
 * The same for many keys, which come in their order: claim_decide_next() for each,
 * between these two.
 */
void
claim_begin_series(ClaimSeries *series, Oid table)
{
	const bool	for_writing = true;

	series->scan = record_begin_looks(table, for_writing);
	series->nahead = 0;
}

void
claim_end_series(ClaimSeries *series)
{
	record_end_looks(series->scan);
	claim_write_ahead(series);
}

void
claim_decide_next(const ClaimRequest *request, ClaimSeries *series,
				  ClaimAnswer *answer)
{
	static const Counter counters[] = {
		[CLAIM_CLAIMED] = COUNTER_CLAIMED,
		[CLAIM_REPLAYED] = COUNTER_REPLAYED,
		[CLAIM_IN_PROGRESS] = COUNTER_IN_PROGRESS,
		[CLAIM_MISMATCH] = COUNTER_MISMATCH,
		[CLAIM_RETRY_LATER] = COUNTER_RETRY_LATER,
		[CLAIM_FAILED] = COUNTER_FAILED,
		[CLAIM_HELD] = COUNTER_HELD
	};

	claim_decide_one(request, series, answer);
	counter_add(counters[answer->outcome], 1);
}

static void
claim_decide_one(const ClaimRequest *request, ClaimSeries *series,
				 ClaimAnswer *answer)
{
	const IdemKey *key = &request->key;
	PendingClaim *pending = pending_unfinished(key);
	bool		look_first = claim_repeats;
	bool		locked = false;
	int			pauses = 0;

	memset(answer, 0, sizeof(*answer));
	answer->outcome = CLAIM_IN_PROGRESS;
	if (pending != NULL)
	{
		if (key_fingerprints_differ(&request->fingerprint,
									&pending->top->work.fingerprint))
			answer->outcome = CLAIM_MISMATCH;
		return;
	}

	for (;;)
	{
		IdemLook	look;
		ClaimVerdict verdict;

		CHECK_FOR_INTERRUPTS();

		answer->retry_at = 0;
		locked = locked || (!look_first && lock_key_try(key->hash));
		record_look(series->scan, key, &look);
		verdict = look.found && !look.changed ?
			claim_hear(request, &look.record, answer) : CLAIM_OPEN;
		if (look_first)
		{
			look_first = false;
			if (verdict == CLAIM_OPEN)
				continue;
		}
		if (look.changed)
		{
			/* somebody is at it: the answer is true in any snapshot */
			if (!locked && request->terms.wait.mode == IDEM_WAIT_NONE)
				return;
			record_raise_changed(key);
		}
		if (verdict != CLAIM_OPEN)
		{
			if (locked)
				lock_key_give_back(key->hash);
			locked = false;
			claim_repeats = answer->outcome == CLAIM_REPLAYED;

			/*
			 * Do not wait for a lease that this transaction has not
			 * committed, since nobody else can end it; nor with the locks of
			 * other keys of a series, since its holder may need them to end
			 * it.
			 */
			if (verdict == CLAIM_ANSWERED || look.record.ours ||
				series->scan != NULL ||
				!claim_pause(request, answer->retry_at, pauses++))
				return;
			continue;
		}

		if (!locked)
		{
			locked = claim_wait_for_key(request);
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
			if (!claim_wait_for_xact(request, look.rival))
				return;
			continue;
		}
		if (look.found)
		{
			StoreResult pinned = record_pin(key, &look.record.version);

			if (pinned == STORE_BUSY)
			{
				TransactionId locker = record_locker(key, &look.record.version);

				lock_key_give_back(key->hash);
				locked = false;
				if (request->terms.wait.mode == IDEM_WAIT_NONE ||
					(TransactionIdIsValid(locker) &&
					 !claim_wait_for_xact(request, locker)))
					return;
			}
			if (pinned != STORE_OK)
				continue;
		}

		if (claim_hold(request, look.found ? &look.record : NULL, series, answer))
			return;
	}
}

/*
 * Waiting, and counting it.  One that ends with an error is not counted.
 */
static void
claim_waited(int64 since, int waits)
{
	counter_add(COUNTER_WAITS, waits);
	counter_add(COUNTER_WAIT_USECS, lock_clock() - since);
}

static bool
claim_wait_for_key(const ClaimRequest *request)
{
	int64		since;
	bool		got;

	if (request->terms.wait.mode == IDEM_WAIT_NONE)
		return false;
	since = lock_clock();
	got = lock_key_wait(request->key.hash, &request->terms.wait);
	claim_waited(since, 1);
	return got;
}

static bool
claim_wait_for_xact(const ClaimRequest *request, TransactionId xid)
{
	int64		since = lock_clock();
	bool		over = lock_xact_wait(xid, &request->terms.wait);

	claim_waited(since, 1);
	return over;
}

/* The pauses of one claim are one wait. */
static bool
claim_pause(const ClaimRequest *request, TimestampTz until, int pauses)
{
	int64		since = lock_clock();
	bool		paused = lock_pause(&request->terms.wait, until, pauses,
									IDEM_PAUSE_LEASE);

	if (paused)
		claim_waited(since, pauses == 0 ? 1 : 0);
	return paused;
}

/*
 * What a record says to a claim.  Unless it leaves the key open, the answer is
 * filled in.
 */
static ClaimVerdict
claim_hear(const ClaimRequest *request, const IdemRecord *record,
		   ClaimAnswer *answer)
{
	TimestampTz now = GetCurrentTimestamp();

	answer->outcome = CLAIM_IN_PROGRESS;
	if (!record_is_live(record, now))
		return CLAIM_OPEN;
	if (key_fingerprints_differ(&request->fingerprint, &record->fingerprint))
	{
		answer->outcome = CLAIM_MISMATCH;
		return CLAIM_ANSWERED;
	}

	switch (record->state)
	{
		case IDEM_FINISHED:
			answer->outcome = CLAIM_REPLAYED;
			break;

		case IDEM_FAILED:
			answer->outcome = CLAIM_FAILED;
			break;

		case IDEM_RETRY:
			if (record->retry_at <= now)
				return CLAIM_OPEN;
			answer->outcome = CLAIM_RETRY_LATER;
			answer->retry_at = record->retry_at;
			break;

		case IDEM_IN_PROGRESS:
			if (record->lease.until > now)
			{
				if (claim_is_own_lease(request, record, now))
					return CLAIM_OPEN;
				answer->retry_at = record->lease.until;
				return CLAIM_LEASED;
			}
			if (record->lease.takeover == IDEM_RERUN)
				return CLAIM_OPEN;
			answer->outcome = record->lease.takeover == IDEM_HOLD ?
				CLAIM_HELD : CLAIM_FAILED;
			break;

		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("record of key \"%s\" has an unrecognized state",
							key_name(&request->key))));
	}

	answer->response = record->response;
	answer->attempt = record->attempt;
	return CLAIM_ANSWERED;
}

/* Is this the live lease of the same holder, who asks for it again? */
static bool
claim_is_own_lease(const ClaimRequest *request, const IdemRecord *record,
				   TimestampTz now)
{
	return request->terms.leased &&
		record->state == IDEM_IN_PROGRESS &&
		record->lease.until > now &&
		request->terms.holder != NULL &&
		record->lease.holder != NULL &&
		strcmp(request->terms.holder, record->lease.holder) == 0;
}

/*
 * The key is ours: its lock is held, and the record under the claim, if there is
 * one, is pinned.  Make that last.  False: look again.
 *
 * A lease is written into the record; its lock is not needed any more.
 *
 * For a transactional claim normally the lock is kept and nothing is written.
 * A transaction that holds as many locks as it may writes the row ahead
 * instead, see claim_write_ahead().  A record under the claim need not even be
 * written, since the tuple lock on it does the same.
 */
static bool
claim_hold(const ClaimRequest *request, const IdemRecord *under,
		   ClaimSeries *series, ClaimAnswer *answer)
{
	const IdemKey *key = &request->key;
	PendingWork work;

	memset(&work, 0, sizeof(work));
	work.claimed_at = GetCurrentTimestamp();
	work.has_ttl = request->terms.has_ttl;
	work.ttl = request->terms.ttl;
	work.fingerprint = request->fingerprint;
	work.attempt = 1;
	record_no_version(&work.row);
	if (under != NULL)
	{
		work.row = under->version;

		/* the same life of the key goes on, unless the record has expired */
		if (record_is_live(under, work.claimed_at))
		{
			work.attempt = under->attempt < PG_INT32_MAX ?
				under->attempt + 1 : PG_INT32_MAX;
			if (claim_is_own_lease(request, under, work.claimed_at))
				work.attempt = under->attempt;
			work.generation = under->generation;
			if (!work.fingerprint.given)
				work.fingerprint = under->fingerprint;
		}
	}

	if (request->terms.leased)
	{
		if (!claim_hold_by_lease(request, under, &work, answer))
		{
			answer->token = 0;
			return false;
		}
		lock_key_give_back(key->hash);
	}
	else
	{
		const bool	keep_lock = pending_may_lock(key);
		PendingClaim *claim = pending_remember(key, &work, keep_lock);

		if (!keep_lock && under == NULL)
		{
			series->ahead[series->nahead++] = claim;
			if (series->nahead == CLAIM_MAX_AHEAD)
				claim_write_ahead(series);
		}
		else if (!keep_lock)
			lock_key_give_back(key->hash);
	}

	if (under != NULL && under->state == IDEM_IN_PROGRESS &&
		work.attempt > under->attempt)
		counter_add(COUNTER_TAKEN_OVER, 1);
	claim_repeats = false;
	answer->outcome = CLAIM_CLAIMED;
	answer->response = NULL;
	answer->attempt = work.attempt;
	answer->retry_at = 0;
	return true;
}

/*
 * Write the rows of claims that the transaction may not keep locked, for
 * idem_finish to update, and give the locks back: others then find the rows,
 * uncommitted, and wait for our transaction.
 */
static void
claim_write_ahead(ClaimSeries *series)
{
	IdemInsert	inserts[CLAIM_MAX_AHEAD];

	if (series->nahead == 0)
		return;

	memset(inserts, 0, series->nahead * sizeof(IdemInsert));
	for (int i = 0; i < series->nahead; i++)
	{
		PendingClaim *claim = series->ahead[i];
		const PendingWork *work = &claim->top->work;
		IdemRecord *record = &inserts[i].record;

		inserts[i].key = &claim->key;
		inserts[i].duplicate = &claim->lost;
		record->state = IDEM_IN_PROGRESS;
		record->attempt = work->attempt;
		record->claimed_at = work->claimed_at;
		record->expires_at = DT_NOEND;
		record->fingerprint = work->fingerprint;
	}
	record_insert(inserts, series->nahead);
	for (int i = 0; i < series->nahead; i++)
	{
		pending_write_ahead(series->ahead[i], &inserts[i].version);
		lock_key_give_back(series->ahead[i]->key.hash);
	}
	series->nahead = 0;
}

static bool
claim_hold_by_lease(const ClaimRequest *request, const IdemRecord *under,
					const PendingWork *work, ClaimAnswer *answer)
{
	IdemRecord	record;
	IdemVersion version;

	memset(&record, 0, sizeof(record));
	record.state = IDEM_IN_PROGRESS;
	record.attempt = work->attempt;
	record.generation = work->generation;
	record.claimed_at = work->claimed_at;
	record.fingerprint = work->fingerprint;
	record.lease.token = lease_new_token();
	record.lease.until = args_add(work->claimed_at, &request->terms.lease);
	record.lease.takeover = request->terms.takeover;
	record.lease.has_ttl = work->has_ttl;
	record.lease.ttl = work->ttl;
	record.lease.holder = request->terms.holder;

	/* the same holder's lease gets longer, never shorter */
	if (under != NULL &&
		claim_is_own_lease(request, under, work->claimed_at) &&
		under->lease.until > record.lease.until)
		record.lease.until = under->lease.until;
	record.expires_at = args_expiry(record.lease.until,
									work->has_ttl ? &work->ttl : NULL,
									ARGS_ABANDONED);

	answer->token = record.lease.token;
	if (under == NULL)
		return record_try_insert(&request->key, &record, &version);
	return record_replace(&request->key, &under->version, &record) == STORE_OK;
}

static IdemTakeover
claim_takeover_argument(const char *name)
{
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("takeover must not be null"),
				 errhint("Valid values are rerun, fail and hold.")));
	if (strcmp(name, "rerun") == 0)
		return IDEM_RERUN;
	if (strcmp(name, "fail") == 0)
		return IDEM_FAIL;
	if (strcmp(name, "hold") == 0)
		return IDEM_HOLD;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("takeover policy \"%s\" is not known", name),
			 errhint("Valid values are rerun, fail and hold.")));
}

/* How long from now, and not less than nothing. */
static Datum
claim_time_left(TimestampTz until)
{
	Interval   *left = palloc0(sizeof(Interval));

	left->time = Max(until - GetCurrentTimestamp(), 0);
	return IntervalPGetDatum(left);
}

/* An answer as the columns of type idem_claim_answer. */
void
claim_answer_values(const ClaimAnswer *answer, Datum *values, bool *isnull)
{
	static const char *const names[] = {
		[CLAIM_CLAIMED] = "claimed",
		[CLAIM_REPLAYED] = "replayed",
		[CLAIM_IN_PROGRESS] = "in_progress",
		[CLAIM_MISMATCH] = "mismatch",
		[CLAIM_RETRY_LATER] = "retry_later",
		[CLAIM_FAILED] = "failed",
		[CLAIM_HELD] = "held"
	};

	isnull[0] = false;
	values[0] = CStringGetTextDatum(names[answer->outcome]);
	isnull[1] = answer->response == NULL;
	values[1] = JsonbPGetDatum(answer->response);
	isnull[2] = answer->token == 0;
	values[2] = Int64GetDatum(answer->token);
	isnull[3] = answer->attempt == 0;
	values[3] = Int32GetDatum(answer->attempt);
	isnull[4] = answer->retry_at == 0;
	values[4] = isnull[4] ? (Datum) 0 : claim_time_left(answer->retry_at);
}

/* And as a row of it. */
Datum
claim_answer_row(FunctionCallInfo fcinfo, const ClaimAnswer *answer)
{
	static const Oid columns[] = {CLAIM_ANSWER_TYPES};
	Datum		values[lengthof(columns)];
	bool		isnull[lengthof(columns)];

	claim_answer_values(answer, values, isnull);
	return answer_row(fcinfo, columns, lengthof(columns), values, isnull);
}
