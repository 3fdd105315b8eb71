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
#include "backoff.h"
#include "breaker.h"
#include "compat.h"
#include "counter.h"
#include "janitor.h"
#include "once.h"
#include "pending.h"
#include "queue.h"
#include "realm.h"
#include "shmem.h"
#include "wake.h"

PG_MODULE_MAGIC_EXT(
					.name = "idempotency",
					.version = IDEM_VERSION
);

/* The settings, all of them integers; see doc/reference.md. */
typedef struct IdemSetting
{
	const char *name;
	const char *short_desc;
	const char *long_desc;
	int		   *value;
	int			boot;
	int			min;
	int			max;
	GucContext	context;
	int			flags;
} IdemSetting;

static const IdemSetting settings[] = {
	{
		"idempotency.abandoned_ttl",
		"Sets how long the record of a lease that ran out is kept if idem_claim was not told.",
		"Counted from the end of the lease.",
		&args_abandoned_ttl, 7 * 24 * 60 * 60, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_S
	},
	{
		"idempotency.backoff_base",
		"Sets the first delay of the backoff of idem_fail and of queues.",
		NULL,
		&backoff_base, 1000, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_MS
	},
	{
		"idempotency.backoff_cap",
		"Sets the longest delay of the backoff of idem_fail and of queues.",
		NULL,
		&backoff_cap, 60 * 60 * 1000, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_MS
	},
	{
		"idempotency.dead_letter_ttl",
		"Sets how long a dead letter is kept if its queue is not configured otherwise.",
		"Counted from its death.",
		&queue_dead_letter_ttl, 30 * 24 * 60 * 60, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_S
	},
	{
		"idempotency.default_ttl",
		"Sets how long the record of a finished key is kept if idem_claim was not told.",
		"Counted from the finish.",
		&args_default_ttl, 24 * 60 * 60, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_S
	},
	{
		"idempotency.failed_ttl",
		"Sets how long the record of a failed key is kept if idem_claim was not told.",
		"Counted from the failure, or from the time of the retry.",
		&args_failed_ttl, 24 * 60 * 60, 1, INT_MAX,
		PGC_USERSET, GUC_UNIT_S
	},
	{
		"idempotency.janitor_batch",
		"Sets how many expired rows the janitor removes in one transaction.",
		NULL,
		&janitor_batch, 1000, 1, 1000000,
		PGC_SIGHUP, 0
	},
	{
		"idempotency.janitor_interval",
		"Sets the time between two rounds of the janitor.",
		"0 turns it off. After a long round it waits ten times as long as that took.",
		&janitor_interval, 60, 0, INT_MAX / 1000,
		PGC_SIGHUP, GUC_UNIT_S
	},
	{
		"idempotency.janitor_pause",
		"Sets how long the janitor pauses after each transaction.",
		NULL,
		&janitor_pause, 20, 0, 60 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS
	},
	{
		"idempotency.max_attempts",
		"Sets after how many attempts a failure is final if idem_fail is not told, or a queue is not configured.",
		"0 means no limit.",
		&backoff_max_attempts, 10, 0, INT_MAX,
		PGC_USERSET, 0
	},
	{
		"idempotency.max_response_size",
		"Sets the largest response, error or payload that is stored.",
		NULL,
		&args_max_response_size, 8 * 1024, 1, 255 * 1024,
		PGC_SUSET, GUC_UNIT_KB
	},
};

extern PGDLLEXPORT void _PG_init(void);

/*
 * If this raises an error, the server calls it again on the next use, but will
 * not have a setting defined twice.  And raise it may: a value that was set
 * before, and is refused now, is warned of, and the client's encoding may lack
 * a character of that.  So each setting is tried once.
 */
void
_PG_init(void)
{
	static size_t tried = 0;

	while (tried < lengthof(settings))
	{
		const IdemSetting *setting = &settings[tried++];

		DefineCustomIntVariable(setting->name,
								setting->short_desc,
								setting->long_desc,
								setting->value,
								setting->boot,
								setting->min,
								setting->max,
								setting->context,
								setting->flags,
								NULL, NULL, NULL);
	}

	MarkGUCPrefixReserved("idempotency");

	realm_init();
	pending_init();
	once_init();
	wake_init();
	breaker_init();
	counter_init();
	janitor_init();
	shmem_init();
}
