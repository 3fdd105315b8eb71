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
#include "pending.h"

PG_FUNCTION_INFO_V1(idem_own_claims);

/* Text from a string that is not null-terminated. */
static Datum
stats_text(const char *data, int len)
{
	return PointerGetDatum(cstring_to_text_with_len(data, len));
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
	if (claim->key.owner != GetUserId() &&
		!has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
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
