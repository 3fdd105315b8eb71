/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Module load: settings and callbacks; no logic.
 *
 * The library may be preloaded or not; the core does not care.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/guc.h"

#include "args.h"
#include "compat.h"
#include "finish.h"
#include "once.h"
#include "pending.h"
#include "realm.h"

PG_MODULE_MAGIC_EXT(
					.name = "idempotency",
					.version = IDEM_VERSION
);

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	DefineCustomIntVariable("idempotency.abandoned_ttl",
							"Sets how long the record of a lease that ran out is kept if idem_claim was not told.",
							"Counted from the end of the lease.",
							&args_abandoned_ttl,
							7 * 24 * 60 * 60,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.backoff_base",
							"Sets the first delay of the backoff of idem_fail.",
							NULL,
							&finish_backoff_base,
							1000,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.backoff_cap",
							"Sets the longest delay of the backoff of idem_fail.",
							NULL,
							&finish_backoff_cap,
							60 * 60 * 1000,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.default_ttl",
							"Sets how long the record of a finished key is kept if idem_claim was not told.",
							"Counted from the finish.",
							&args_default_ttl,
							24 * 60 * 60,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.failed_ttl",
							"Sets how long the record of a failed key is kept if idem_claim was not told.",
							"Counted from the failure, or from the time of the retry.",
							&args_failed_ttl,
							24 * 60 * 60,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_attempts",
							"Sets after how many attempts a failure is final if idem_fail is not told.",
							"0 means no limit.",
							&finish_max_attempts,
							10,
							0,
							INT_MAX,
							PGC_USERSET,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_response_size",
							"Sets the largest response or error that is stored.",
							NULL,
							&args_max_response_size,
							8 * 1024,
							1,
							255 * 1024,
							PGC_SUSET,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("idempotency");

	realm_init();
	pending_init();
	once_init();
}
