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

#include "claim.h"
#include "compat.h"
#include "pending.h"
#include "realm.h"

PG_MODULE_MAGIC_EXT(.name = "idempotency", .version = IDEM_VERSION);

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	DefineCustomIntVariable("idempotency.default_ttl",
							"Sets how long a record is kept if idem_claim is not told.",
							"Counted from the finish.",
							&claim_default_ttl,
							24 * 60 * 60,
							1,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_response_size",
							"Sets the largest response that idem_finish stores.",
							NULL,
							&claim_max_response_size,
							8 * 1024,
							1,
							255 * 1024,
							PGC_SUSET,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("idempotency");

	realm_init();
	pending_init();
}
