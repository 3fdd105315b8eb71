/*-------------------------------------------------------------------------
 *
 * lookup.c
 *	  Records as they are: look one up, forget it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "key.h"
#include "lease.h"
#include "lock.h"
#include "pending.h"
#include "record.h"

PG_FUNCTION_INFO_V1(idem_lookup);
PG_FUNCTION_INFO_V1(idem_forget);

/*
 * idem_lookup(key text, scope text)
 *		-> setof (state text, response jsonb, attempt int,
 *				  claimed_at, finished_at, lease_until, retry_at, expires_at)
 *
 * What is known of a key, without claiming it: a row, or none if there is no
 * record or an expired one.  Reads by the snapshot of the statement, like a
 * query; works in read-only transactions and on a standby; never blocks.
 * "state" is "in_progress" (leased, or an unfinished claim of this very
 * transaction; transactional claims of others do not show), "finished",
 * "retry_later", "failed" or "held".  A lease that has run out and waits for
 * somebody to take over is in_progress with a "lease_until" that is past.
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
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[8];
	bool		isnull[8] = {false, true, true, true, true, true, true, true};

	record_open(false);
	args_key(&key, fcinfo, 0, 1);
	InitMaterializedSRF(fcinfo, 0);

	pending = pending_find(&key);
	if (pending != NULL && pending->top->state == PENDING_CLAIMED)
	{
		values[0] = CStringGetTextDatum("in_progress");
		values[2] = Int32GetDatum(pending->top->work.attempt);
		values[3] = TimestampTzGetDatum(pending->top->work.claimed_at);
		isnull[2] = isnull[3] = false;
	}
	else if (record_read(&key, &record) &&
			 record_is_live(&record, now))
	{
		values[0] = CStringGetTextDatum(lease_state_name(&record, now));
		isnull[1] = record.response == NULL;
		values[1] = JsonbPGetDatum(record.response);
		values[2] = Int32GetDatum(record.attempt);
		values[3] = TimestampTzGetDatum(record.claimed_at);
		isnull[4] = record.state == IDEM_IN_PROGRESS;
		values[4] = TimestampTzGetDatum(record.finished_at);
		isnull[5] = record.state != IDEM_IN_PROGRESS;
		values[5] = TimestampTzGetDatum(record.lease.until);
		isnull[6] = record.state != IDEM_RETRY;
		values[6] = TimestampTzGetDatum(record.retry_at);
		values[7] = TimestampTzGetDatum(record.expires_at);
		isnull[2] = isnull[3] = isnull[7] = false;
	}
	else
		return (Datum) 0;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	return (Datum) 0;
}

/*
 * idem_forget(key text, scope text) -> boolean
 *
 * Drops the record of a key, so that it can be claimed anew: true if there was
 * one.  Waits for a transaction that has the key claimed, and for one that is
 * changing its record.  Until this transaction commits, others still replay.
 * A lease is forgotten, too: its holder's token is void.  Written to the server
 * log.
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

	args_may_write("idem_forget()");
	record_open(true);
	args_key(&key, fcinfo, 0, 1);

	if (pending_unfinished(&key) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot forget key \"%s\" because this transaction has claimed it",
						key_name(&key)),
				 errhint("Use idem_release to give the claim up.")));

	do
	{
		CHECK_FOR_INTERRUPTS();

		(void) lock_key_wait(key.hash, &forever);
		record_look_twice(&key, &look);
		if (look.changed)
			record_raise_changed(&key);

		/*
		 * The lock is not needed any longer: a deleted row itself holds off
		 * whoever wants to claim the key before we commit.
		 */
		lock_key_give_back(key.hash);

		if (TransactionIdIsValid(look.rival))
		{
			(void) lock_xact_wait(look.rival, &forever);
			gone = false;
		}
		else if (look.found)
		{
			gone = record_delete(&key, &look.record.version) == STORE_OK;
			forgotten = gone && record_is_live(&look.record,
											   GetCurrentTimestamp());
		}
		else
			gone = true;
	} while (!gone);

	/* what this transaction finished is not there to be shown any more */
	pending = pending_find(&key);
	if (pending != NULL && pending->top->state == PENDING_FINISHED)
		pending_change(pending, PENDING_RELEASED);

	if (forgotten)
		ereport(LOG,
				(errmsg("key \"%s\" was forgotten by role \"%s\"", key_name(&key),
						GetUserNameFromId(GetUserId(), false)),
				 errhidestmt(true)));
	PG_RETURN_BOOL(forgotten);
}
