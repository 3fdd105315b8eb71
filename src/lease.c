/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  Claims that outlive their transaction: token, renew, guard, resolve.
 *
 * A leased claim is a record in state "in progress", committed by its
 * claimant before the work is done: work that leaves the transaction, such as
 * a call to a partner.  It has a token, and is valid until its lease runs out.
 * What then happens is the policy that the lease was taken with:
 *
 *		rerun	the next claim takes over, with the next attempt
 *		fail	the key counts as failed
 *		hold	nobody knows whether the work was done: the key is held until
 *				idem_resolve says
 *
 *							 lease runs out
 *		 IN PROGRESS ----+--------------------> taken over: IN PROGRESS again,
 *		   |   |   ^     |   (rerun)			with a new token
 *		   |   |   |     |
 *		   |   |   renew +--------------------> failed		(fail)
 *		   |   |		 |
 *		   |   |		 +--------------------> held		(hold) -- resolve
 *		   |   |
 *		   |   +-- fail ---> RETRY (claimed again when its time has come), FAILED
 *		   +------ finish -> FINISHED
 *
 * The fence.  Whoever holds the lease proves it by its token, a random number
 * that every claim draws anew and that is stored in the row.  A takeover, a
 * resolve or the holder's own new claim replaces it, and release, forget and
 * expiry remove it, so whoever presents an old token is told (ID003).  It is
 * compared for equality only: random numbers, unlike counters, do not go back
 * when a key starts its life anew or a standby that lags is promoted.
 *
 * No lock of the key is needed to present a token.  The row is updated with
 * every TM_Result handled: if somebody takes over at the same moment, one of
 * the two updates comes second, waits for the first, and looks again.  Since
 * the token is the check, none of this raises 40001 under REPEATABLE READ or
 * SERIALIZABLE.
 *
 * A lease that has run out is still good for its token as long as nobody took
 * over.  Leases are judged by clock_timestamp() of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "counter.h"
#include "errors.h"
#include "key.h"
#include "lease.h"
#include "lock.h"
#include "pending.h"
#include "record.h"

#define LEASE_POOL		32

PG_FUNCTION_INFO_V1(idem_renew);
PG_FUNCTION_INFO_V1(idem_guard);
PG_FUNCTION_INFO_V1(idem_resolve);

pg_noreturn static void lease_raise_stale(const IdemKey *key, bool exists);

/* A token: positive, and never the same twice but by a chance of 2^-63. */
int64
lease_new_token(void)
{
	static uint64 pool[LEASE_POOL];
	static int	left = 0;
	uint64		token;

	do
	{
		/* drawn for some at once, which costs hardly more than for one */
		if (left == 0)
		{
			if (!pg_strong_random(pool, sizeof(pool)))
				ereport(ERROR,
						(errcode(ERRCODE_INTERNAL_ERROR),
						 errmsg("could not generate random values")));
			left = LEASE_POOL;
		}
		token = pool[--left] & PG_INT64_MAX;
	} while (token == 0);
	return (int64) token;
}

/*
 * The token to use for a key: the given one, or, if none is given (0), that of
 * a lease which this very transaction has taken or written.  0 if there is
 * none, either.
 */
int64
lease_resolve_token(const IdemKey *key, int64 token)
{
	IdemLook	look;

	if (token != 0)
		return token;
	record_look_twice(key, &look);
	if (look.found && look.record.ours && look.record.lease.token != 0 &&
		look.record.state == IDEM_IN_PROGRESS)
		return look.record.lease.token;
	return 0;
}

/*
 * Whose claim does a caller mean?  One of this transaction, which is returned;
 * or, with a token, a lease, and then the result is NULL.  Without a token a
 * lease that this very transaction has taken will do, and its token is set.
 * Raises ID001 or ID002 if it is none of these.
 */
PendingClaim *
lease_whose_claim(const IdemKey *key, int64 *token)
{
	PendingClaim *pending;
	IdemLook	look;

	if (*token != 0)
		return NULL;

	pending = pending_unfinished(key);
	if (pending != NULL)
		return pending;
	*token = lease_resolve_token(key, 0);
	if (*token != 0)
		return NULL;

	record_look_twice(key, &look);
	if (look.found && look.record.state == IDEM_FINISHED &&
		record_is_live(&look.record, GetCurrentTimestamp()))
		lease_raise_finished(key);
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_NOT_CLAIMED),
			 errmsg("key \"%s\" is not claimed by this transaction",
					key_name(key)),
			 errhint("Call idem_claim first, in the same transaction, as the same role and with the same scope, or pass the token of a lease. A release, or a rollback to a savepoint before it, ends a claim.")));
}

/*
 * The record that a token belongs to.  Raises ID003 if there is none, or if this
 * very transaction has taken the key over with a claim of its own.
 */
void
lease_find(const IdemKey *key, int64 token, IdemRecord *record)
{
	IdemLook	look;
	bool		exists;

	record_look_twice(key, &look);
	exists = look.found && record_is_live(&look.record, GetCurrentTimestamp());
	if (!exists || pending_unfinished(key) != NULL ||
		look.record.lease.token != token)
		lease_raise_stale(key, exists);
	*record = look.record;
}

/*
 * Change the record that a token belongs to, if it is in progress.
 *
 * False if it is settled.  *record is what is stored now.  Waits for a
 * transaction that is changing it, and looks again.
 */
bool
lease_change(const IdemKey *key, int64 token, IdemRecord *record,
			 LeaseChange change, void *arg)
{
	for (;;)
	{
		IdemRecord	changed;

		CHECK_FOR_INTERRUPTS();

		lease_find(key, token, record);
		if (record->state != IDEM_IN_PROGRESS)
			return false;
		changed = *record;
		change(&changed, arg);
		if (record_replace(key, &record->version, &changed) == STORE_OK)
		{
			*record = changed;
			return true;
		}
	}
}

/*
 * Delete the record that a token belongs to.  Raises ID002 if it is settled;
 * waits like lease_change().
 */
void
lease_delete(const IdemKey *key, int64 token)
{
	IdemRecord	record;

	do
	{
		CHECK_FOR_INTERRUPTS();

		lease_find(key, token, &record);
		if (record.state != IDEM_IN_PROGRESS)
			lease_raise_settled(key, &record);
	} while (record_delete(key, &record.version) != STORE_OK);
}

/*
 * Lock the record that a token belongs to, in progress, until the end of the
 * (sub)transaction: nobody takes it over before.  Waits for a transaction that
 * is doing so.  Raises ID003 and ID002.
 */
void
lease_guard(const IdemKey *key, int64 token, IdemRecord *record)
{
	const IdemWait forever = {IDEM_WAIT_FOREVER, 0};
	StoreResult result;

	do
	{
		TransactionId locker;

		CHECK_FOR_INTERRUPTS();

		lease_find(key, token, record);
		if (record->state != IDEM_IN_PROGRESS)
			lease_raise_settled(key, record);
		result = record_pin(key, &record->version);
		if (result == STORE_BUSY &&
			TransactionIdIsValid(locker = record_locker(key, &record->version)))
			(void) lock_xact_wait(locker, &forever);
	} while (result != STORE_OK);
}

/* Whoever comes without a token and finds the key finished. */
void
lease_raise_finished(const IdemKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_FINISHED),
			 errmsg("key \"%s\" is finished already", key_name(key)),
			 errhint("Finish or release a key only if idem_claim answered \"claimed\".")));
}

static void
lease_raise_stale(const IdemKey *key, bool exists)
{
	counter_add(COUNTER_STALE, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_STALE),
			 errmsg("lease of key \"%s\" is not yours any more", key_name(key)),
			 exists ?
			 errdetail("It has another token: it was taken over or resolved, or the token is not the one that was claimed with it.") :
			 errdetail("This role has none in scope \"%s\": it was released or forgotten or has expired, or key, scope or role are not those of the claim.",
					   pnstrdup(key->scope, key->scope_len)),
			 errhint("Undo the work if you can; do not repeat it under this token.")));
}

void
lease_raise_settled(const IdemKey *key, const IdemRecord *record)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_FINISHED),
			 record->state == IDEM_FINISHED ?
			 errmsg("key \"%s\" is finished already", key_name(key)) :
			 errmsg("key \"%s\" has failed already", key_name(key)),
			 errhint("A lease ends with idem_finish, idem_fail or idem_release; idem_claim answers with what was stored.")));
}

/* How idem_lookup calls the state of a record that has not expired. */
const char *
lease_state_name(const IdemRecord *record, TimestampTz now)
{
	switch (record->state)
	{
		case IDEM_FINISHED:
			return "finished";
		case IDEM_RETRY:
			return "retry_later";
		case IDEM_FAILED:
			return "failed";
		case IDEM_IN_PROGRESS:
			break;
	}
	if (record->lease.until <= now)
	{
		if (record->lease.takeover == IDEM_HOLD)
			return "held";
		if (record->lease.takeover == IDEM_FAIL)
			return "failed";
	}
	return "in_progress";
}

/* ----------------------------------------------------------------
 *						idem_renew, idem_guard
 * ----------------------------------------------------------------
 */

/* The token argument, required but for a lease of this very transaction. */
static int64
lease_token_argument(const IdemKey *key, FunctionCallInfo fcinfo, int arg)
{
	int64		token = lease_resolve_token(key, args_token(PG_ARGISNULL(arg), PG_GETARG_DATUM(arg)));

	if (token == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("token must not be null"),
				 errhint("Pass the token that idem_claim returned for the lease.")));
	return token;
}

static void
lease_extend(IdemRecord *record, void *arg)
{
	TimestampTz until = args_add(GetCurrentTimestamp(), (const Interval *) arg);
	int64		kept = record->expires_at - record->lease.until;

	if (until > record->lease.until)
		record->lease.until = until;
	record->expires_at = args_later(record->lease.until, kept);
}

/*
 * idem_renew(key text, lease interval, scope text, token bigint) -> timestamptz
 *
 * Extends a lease to "lease" from now, and returns until when it is valid; it
 * is never shortened.  The record's expiry moves with it.
 *
 * Raises ID003 (another token, resolved, released, forgotten, expired), ID002
 * (finished or failed already), 22004, 22023, 22008, 54000, 25006.  Waits for a
 * transaction that is taking the lease over.
 */
Datum
idem_renew(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	IdemRecord	record;
	Interval	lease;
	int64		token;

	args_may_write("idem_renew()");
	record_open(true);
	args_key(&key, fcinfo, 0, 2);
	args_lease(&lease, fcinfo, 1);
	token = lease_token_argument(&key, fcinfo, 3);

	if (!lease_change(&key, token, &record, lease_extend, &lease))
		lease_raise_settled(&key, &record);
	PG_RETURN_TIMESTAMPTZ(record.lease.until);
}

/*
 * idem_guard(key text, scope text, token bigint) -> void
 *
 * Verifies that the lease is still ours, and keeps it so until the end of the
 * (sub)transaction: the row is locked, and a takeover waits.  Without a guard
 * (or a finish) in the transaction that commits the effect, the lease might be
 * taken over between the check and the commit.
 *
 * Raises as idem_renew.  Waits for a transaction that is taking the lease over.
 */
Datum
idem_guard(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	IdemRecord	record;
	int64		token;

	args_may_write("idem_guard()");
	record_open(true);
	args_key(&key, fcinfo, 0, 1);
	token = lease_token_argument(&key, fcinfo, 2);

	lease_guard(&key, token, &record);
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 *						idem_resolve
 * ----------------------------------------------------------------
 */

/*
 * idem_resolve(key text, response jsonb, reopen boolean, scope text) -> void
 *
 * Settles a held key: a lease that ran out under policy "hold", so that nobody
 * knows whether its work was done.  Whoever has found out says so:
 *
 *	reopen false	it was done; "response" is what every repeat gets
 *	reopen true		it was not; the next claim does it, as the next attempt
 *
 * The former holder's token is void from then on.  Written to the server log.
 *
 * Raises ID004 (the key is not held), 22023 (a response for a key that is
 * reopened), 22004, 54000, 25006.  Waits for a transaction that is changing the
 * record.
 */
Datum
idem_resolve(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	IdemRecord	record;
	bool		reopen;
	Jsonb	   *response;

	args_may_write("idem_resolve()");
	record_open(true);
	args_key(&key, fcinfo, 0, 3);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("reopen must not be null"),
				 errhint("Use true to let the work be done again, false to settle the key with a response.")));
	reopen = PG_GETARG_BOOL(2);
	response = args_response(&key, "response", PG_ARGISNULL(1), PG_GETARG_DATUM(1));
	if (reopen && response != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a key that is reopened has no response"),
				 errhint("Leave the response out, or leave the key closed.")));

	do
	{
		IdemLook	look;
		TimestampTz now = GetCurrentTimestamp();

		CHECK_FOR_INTERRUPTS();

		record_look_twice(&key, &look);
		if (!look.found ||
			look.record.state != IDEM_IN_PROGRESS ||
			look.record.lease.until > now ||
			look.record.lease.takeover != IDEM_HOLD)
			ereport(ERROR,
					(errcode(ERRCODE_IDEM_NOT_HELD),
					 errmsg("key \"%s\" is not held", key_name(&key)),
					 errhint("Only a lease that ran out under takeover policy \"hold\" is to be resolved.")));

		record = look.record;
		record.lease.token = lease_new_token();
		if (reopen)
		{
			record.lease.takeover = IDEM_RERUN;
			record.expires_at = args_expiry(now, record.lease.has_ttl ?
											&record.lease.ttl : NULL,
											ARGS_ABANDONED);
		}
		else
		{
			record.state = IDEM_FINISHED;
			record.finished_at = now;
			record.response = response;
			record.expires_at = args_expiry(now, record.lease.has_ttl ?
											&record.lease.ttl : NULL,
											ARGS_FINISHED);
		}
	} while (record_replace(&key, &record.version, &record) != STORE_OK);

	ereport(LOG,
			(errmsg("held key \"%s\" was %s by role \"%s\"", key_name(&key),
					reopen ? "reopened" : "resolved",
					GetUserNameFromId(GetUserId(), false)),
			 errhidestmt(true)));
	PG_RETURN_VOID();
}
