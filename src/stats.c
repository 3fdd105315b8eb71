/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Sight of what goes on.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "counter.h"
#include "lease.h"
#include "pending.h"
#include "record.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(idem_own_claims);
PG_FUNCTION_INFO_V1(idem_leases);
PG_FUNCTION_INFO_V1(idem_counters);
PG_FUNCTION_INFO_V1(idem_stats_reset);
PG_FUNCTION_INFO_V1(idem_library);

/* Text from a string that is not null-terminated. */
static Datum
stats_text(const char *data, int len)
{
	return PointerGetDatum(cstring_to_text_with_len(data, len));
}

/* Each role sees its own keys, pg_monitor all. */
static bool
stats_may_see(Oid owner)
{
	return owner == GetUserId() ||
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

static void
stats_put_claim(const PendingClaim *claim, void *arg)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) arg;
	const PendingVersion *version = claim->top;
	Datum		values[5];
	bool		isnull[5] = {false};

	if (version->state == PENDING_RELEASED)
		return;

	/* a SECURITY DEFINER function may have claimed in our transaction */
	if (!stats_may_see(claim->key.owner))
		return;

	values[0] = ObjectIdGetDatum(claim->key.owner);
	values[1] = stats_text(claim->key.scope, claim->key.scope_len);
	values[2] = stats_text(claim->key.key, claim->key.key_len);
	values[3] = CStringGetTextDatum(version->state == PENDING_FINISHED ?
									"finished" : "in_progress");
	values[4] = TimestampTzGetDatum(version->work.claimed_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/*
 * idem_own_claims() -> setof (owner regrole, scope text, key text, state text,
 *							   since timestamptz)
 *
 * The claims of this transaction, from backend memory: in_progress, or
 * finished and not committed yet.  Released ones are left out, and so are those
 * of other roles unless the caller is a member of pg_monitor.
 */
Datum
idem_own_claims(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	pending_visit(stats_put_claim, fcinfo->resultinfo);
	return (Datum) 0;
}

static void
stats_put_lease(const IdemKey *key, const IdemRecord *record, void *arg)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) arg;
	const IdemLease *lease = &record->lease;
	Datum		values[8];
	bool		isnull[8] = {false};

	/* a row written ahead is a claim of this transaction, not a lease */
	if (lease->token == 0 || !stats_may_see(key->owner))
		return;

	values[0] = ObjectIdGetDatum(key->owner);
	values[1] = stats_text(key->scope, key->scope_len);
	values[2] = stats_text(key->key, key->key_len);
	values[3] = CStringGetTextDatum(lease_state_name(record,
													 GetCurrentTimestamp()));
	values[4] = TimestampTzGetDatum(record->claimed_at);
	isnull[5] = lease->holder == NULL;
	if (lease->holder != NULL)
		values[5] = CStringGetTextDatum(lease->holder);
	values[6] = Int32GetDatum(record->attempt);
	values[7] = TimestampTzGetDatum(lease->until);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/*
 * idem_leases() -> setof (owner regrole, scope text, key text, state text,
 *						   since timestamptz, holder text, attempt int,
 *						   lease_until timestamptz)
 *
 * The leases that are not finished, failed or released: in_progress, or, once
 * they have run out, held or failed by their policy, or still in_progress if
 * whoever comes next takes over.  Reads the whole table.
 */
Datum
idem_leases(PG_FUNCTION_ARGS)
{
	const bool	for_writing = false;

	record_open(for_writing);
	InitMaterializedSRF(fcinfo, 0);
	record_visit_leases(stats_put_lease, fcinfo->resultinfo);
	return (Datum) 0;
}

/*
 * idem_counters() -> setof (claimed bigint, ..., wait_time interval, ...,
 *							  stats_reset timestamptz)
 *
 * What was counted in this database, in one row; none if nothing is counted, for want
 * of shared memory or because the server has more than 128 databases that use us.
 */
Datum
idem_counters(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	uint64		counts[COUNTERS];
	Interval	wait_time = {0};
	TimestampTz since;
	Datum		values[COUNTERS + 1];
	bool		isnull[COUNTERS + 1] = {false};

	InitMaterializedSRF(fcinfo, 0);
	if (!counter_read(counts, &since))
		return (Datum) 0;

	for (int c = 0; c < COUNTERS; c++)
		values[c] = Int64GetDatum((int64) counts[c]);
	wait_time.time = (int64) counts[COUNTER_WAIT_USECS];
	values[COUNTER_WAIT_USECS] = IntervalPGetDatum(&wait_time);
	values[COUNTERS] = TimestampTzGetDatum(since);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	return (Datum) 0;
}

/*
 * idem_stats_reset() -> void
 *
 * Begins to count anew in this database, at once.  Raises 55000 if nothing is
 * counted.
 */
Datum
idem_stats_reset(PG_FUNCTION_ARGS)
{
	if (!counter_reset())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("nothing is counted without shared memory"),
				 errhint("Add \"idempotency\" to shared_preload_libraries and restart the server.")));
	PG_RETURN_VOID();
}

/*
 * idem_library() -> setof (version text, memory text, preloaded bool)
 *
 * Of the library that this session has loaded: its version, the shared memory it
 * has (static, dynamic or none), and whether the server loaded it at its start.
 * One row.
 */
Datum
idem_library(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[3];
	bool		isnull[3] = {false};

	InitMaterializedSRF(fcinfo, 0);
	values[0] = CStringGetTextDatum(IDEM_VERSION);
	values[1] = CStringGetTextDatum(shmem_kind());
	values[2] = BoolGetDatum(shmem_preloaded);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	return (Datum) 0;
}
