/*-------------------------------------------------------------------------
 *
 * pending.c
 *	  What this transaction has claimed.
 *
 * A claim is a lock (lock.c) and a memory, and this is the memory.  It must be
 * true in every turn that a transaction can take: a claim made in a savepoint
 * that is rolled back never happened; a finish or a release that is rolled
 * back leaves the claim pending again.
 *
 * So a claim has versions, one per nesting level that changed it, the newest
 * on top, and each level has a list of the versions it made:
 *
 *		level 1 (transaction)	CLAIMED k1		CLAIMED k2
 *		level 2 (savepoint)		FINISHED k1						CLAIMED k3
 *
 * When a level is rolled back, its versions are taken off: k1 is claimed
 * again, k3 is forgotten.  When it is released, its versions sink to the level
 * below, replacing what that level had.  Both walk the level's own list and
 * nothing else, allocate nothing and cannot fail, as befits code that runs
 * while a (sub)transaction aborts.
 *
 * The states of a claim:
 *
 *		        idem_claim               idem_finish
 *		(none) ------------> CLAIMED ----------------> FINISHED
 *		           ^             |                         |
 *		           | idem_claim  | idem_release            | idem_claim, after
 *		           |             v                         | idem_forget
 *		           +--------- RELEASED                     v
 *		                                               CLAIMED
 *
 * A transaction that reaches COMMIT or PREPARE with a claim in state CLAIMED is
 * refused.  It would release the lock and leave no record, so the next retry
 * would do the work a second time, and nobody would ever be told.
 *
 * The key's lock is taken on the same nesting level as the claim and goes with
 * it in every case.  A released claim keeps its lock to the end of its
 * (sub)transaction: a rollback may make the claim pending again, and then the
 * lock must never have been gone.
 *
 * The lock table is shared and of fixed size, so one transaction holds at most
 * max_locks_per_transaction keys by locks; beyond that a claim is held by its
 * row, see claim_hold().  pending_nlocked counts the former.
 *
 * All memory is in one context that is reset when the transaction ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "storage/lock.h"
#include "utils/memutils.h"

#include "compat.h"
#include "errors.h"
#include "pending.h"
#include "record.h"

/* Which claim belongs to a key. */
typedef struct PendingEntry
{
	const IdemKey *key;			/* in the claim */
	PendingClaim *claim;
	char		status;
} PendingEntry;

#define SH_PREFIX		pending_table
#define SH_ELEMENT_TYPE	PendingEntry
#define SH_KEY_TYPE		const IdemKey *
#define SH_KEY			key
#define SH_HASH_KEY(tb, key)	((uint32) (key)->hash)
#define SH_EQUAL(tb, a, b)		key_equal(a, b)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* The versions that one nesting level made. */
typedef struct PendingLevel
{
	int			level;
	PendingVersion *versions;
} PendingLevel;

#define PENDING_INITIAL_CLAIMS	8
#define PENDING_INITIAL_LEVELS	8

static MemoryContext pending_context = NULL;
static pending_table_hash *pending_table = NULL;	/* NULL: no claims */
static PendingLevel *pending_levels = NULL; /* lowest first */
static int	pending_nlevels = 0;
static int	pending_maxlevels = 0;
static int	pending_nlocked = 0;	/* claims that are held by a lock */

static PendingVersion *pending_version_here(PendingClaim *claim);
static void pending_sink(PendingLevel *level);
static void pending_take_off(PendingLevel *level);
static void pending_check(void);
static void pending_reset(void);
static void pending_on_xact(XactEvent event, void *arg);
static void pending_on_subxact(SubXactEvent event, SubTransactionId subid,
							   SubTransactionId parent_subid, void *arg);

/* Register the callbacks; once, when the library is loaded. */
void
pending_init(void)
{
	pending_context = AllocSetContextCreate(TopMemoryContext,
											"idempotency claims",
											ALLOCSET_DEFAULT_SIZES);
	RegisterXactCallback(pending_on_xact, NULL);
	RegisterSubXactCallback(pending_on_subxact, NULL);
}

/* The claim of this transaction on a key, in whatever state, or NULL. */
PendingClaim *
pending_find(const IdemKey *key)
{
	PendingEntry *entry;

	if (pending_table == NULL)
		return NULL;
	entry = pending_table_lookup(pending_table, key);
	return entry ? entry->claim : NULL;
}

/*
 * The unfinished claim of this transaction on a key, or NULL.  Raises 40001 if
 * it was lost.
 */
PendingClaim *
pending_unfinished(const IdemKey *key)
{
	PendingClaim *claim = pending_find(key);

	if (claim == NULL || claim->top->state != PENDING_CLAIMED)
		return NULL;
	if (claim->lost)
		pending_raise_lost(claim);
	return claim;
}

/*
 * May a claim of this key be held by a lock?  If it is already, it costs
 * nothing more.
 */
bool
pending_may_lock(const IdemKey *key)
{
	PendingClaim *claim;

	if (pending_nlocked < max_locks_per_xact)
		return true;
	claim = pending_find(key);
	return claim != NULL && claim->locked;
}

/*
 * Remember a claim made just now; "locked" tells that the lock of the key is
 * held, and will be until the end of the (sub)transaction.
 */
PendingClaim *
pending_remember(const IdemKey *key, const PendingWork *work, bool locked)
{
	PendingClaim *claim = pending_find(key);
	PendingVersion *version;

	if (claim == NULL)
	{
		MemoryContext saved = MemoryContextSwitchTo(pending_context);
		PendingEntry *entry;
		char	   *strings;
		bool		found;

		claim = palloc(sizeof(PendingClaim) + key->scope_len + key->key_len);
		strings = (char *) (claim + 1);
		claim->key = *key;
		claim->key.scope = memcpy(strings, key->scope, key->scope_len);
		claim->key.key = memcpy(strings + key->scope_len,
								key->key, key->key_len);
		claim->locked = false;
		claim->lost = false;
		claim->top = NULL;

		/*
		 * In this order: if memory runs out, the abort finds a version whose
		 * claim is not in the table yet, which it can cope with.
		 */
		if (pending_table == NULL)
			pending_table = pending_table_create(pending_context,
												 PENDING_INITIAL_CLAIMS, NULL);
		version = pending_version_here(claim);
		entry = pending_table_insert(pending_table, &claim->key, &found);
		Assert(!found);
		entry->claim = claim;
		MemoryContextSwitchTo(saved);
	}
	else
		version = pending_version_here(claim);

	version->state = PENDING_CLAIMED;
	version->work = *work;
	claim->lost = false;
	if (locked && !claim->locked)
	{
		claim->locked = true;
		pending_nlocked++;
	}
	return claim;
}

/* The row of a claim that is not held by a lock was written. */
void
pending_write_ahead(PendingClaim *claim, const IdemVersion *row)
{
	PendingVersion *version = pending_version_here(claim);

	version->work.row = *row;
	version->work.row_is_ours = true;
}

/* The claim was finished or released at the present nesting level. */
void
pending_change(PendingClaim *claim, PendingState state)
{
	pending_version_here(claim)->state = state;
}

/* The first step under the claim was done at the present nesting level. */
void
pending_begin_steps(PendingClaim *claim, int64 generation)
{
	pending_version_here(claim)->work.generation = generation;
}

/* Somebody wrote or moved the record of a key that we had claimed. */
void
pending_raise_lost(const PendingClaim *claim)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("claim of key \"%s\" was lost",
					key_name(&claim->key)),
			 errdetail("Its record was written or moved without the claim."),
			 errhint("Retry the transaction.")));
}

/* Visit all claims, in no particular order.  The visitor changes none. */
void
pending_visit(void (*visit) (const PendingClaim *claim, void *arg), void *arg)
{
	pending_table_iterator it;
	PendingEntry *entry;

	if (pending_table == NULL)
		return;
	pending_table_start_iterate(pending_table, &it);
	while ((entry = pending_table_iterate(pending_table, &it)) != NULL)
		visit(entry->claim, arg);
}

/*
 * The version of a claim that belongs to the present nesting level: the top
 * one, or a copy of it on top.
 */
static PendingVersion *
pending_version_here(PendingClaim *claim)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	PendingVersion *version = claim->top;
	PendingLevel *level;

	if (version != NULL && version->level == nest_level)
		return version;
	Assert(version == NULL || version->level < nest_level);

	version = MemoryContextAllocZero(pending_context, sizeof(PendingVersion));

	if (pending_nlevels == pending_maxlevels)
	{
		int			newmax = Max(2 * pending_maxlevels, PENDING_INITIAL_LEVELS);
		PendingLevel *newlevels;

		newlevels = MemoryContextAlloc(pending_context,
									   newmax * sizeof(PendingLevel));
		if (pending_nlevels > 0)
			memcpy(newlevels, pending_levels,
				   pending_nlevels * sizeof(PendingLevel));
		pending_levels = newlevels;
		pending_maxlevels = newmax;
	}
	if (pending_nlevels == 0 ||
		pending_levels[pending_nlevels - 1].level < nest_level)
	{
		level = &pending_levels[pending_nlevels++];
		level->level = nest_level;
		level->versions = NULL;
	}
	level = &pending_levels[pending_nlevels - 1];
	Assert(level->level == nest_level);

	if (claim->top != NULL)
		*version = *claim->top;
	version->level = nest_level;
	version->claim = claim;
	version->prev = claim->top;
	version->next_in_level = level->versions;
	level->versions = version;
	claim->top = version;

	return version;
}

/* ----------------------------------------------------------------
 *						Ends of (sub)transactions
 * ----------------------------------------------------------------
 */

/* Release of a savepoint: its versions replace those of the level below. */
static void
pending_sink(PendingLevel *level)
{
	int			below = level->level - 1;
	PendingVersion *version = level->versions;
	PendingLevel *target;

	pending_nlevels--;
	if (pending_nlevels > 0 &&
		pending_levels[pending_nlevels - 1].level == below)
		target = &pending_levels[pending_nlevels - 1];
	else
	{
		/* nothing there yet: the slot just freed takes its place */
		target = &pending_levels[pending_nlevels++];
		target->level = below;
		target->versions = NULL;
	}

	while (version != NULL)
	{
		PendingVersion *next = version->next_in_level;
		PendingVersion *prev = version->prev;

		if (prev != NULL && prev->level == below)
		{
			prev->state = version->state;
			prev->work = version->work;
			version->claim->top = prev;
			pfree(version);
		}
		else
		{
			version->level = below;
			version->next_in_level = target->versions;
			target->versions = version;
		}
		version = next;
	}
}

/* Rollback of a savepoint: its versions never were. */
static void
pending_take_off(PendingLevel *level)
{
	PendingVersion *version = level->versions;

	pending_nlevels--;
	while (version != NULL)
	{
		PendingVersion *next = version->next_in_level;
		PendingClaim *claim = version->claim;

		claim->top = version->prev;
		if (claim->top == NULL)
		{
			pending_table_delete(pending_table, &claim->key);
			if (claim->locked)
				pending_nlocked--;
			pfree(claim);
		}
		pfree(version);
		version = next;
	}
}

/*
 * Refuse to end the transaction with an unfinished claim.  Runs after deferred
 * triggers, so these may still claim and finish.
 */
static void
pending_check(void)
{
	const PendingClaim *unfinished = NULL;
	int			others = -1;

	if (pending_nlevels == 0)
		return;
	Assert(pending_nlevels == 1 && pending_levels[0].level == 1);

	for (PendingVersion *version = pending_levels[0].versions;
		 version != NULL; version = version->next_in_level)
	{
		if (version->state != PENDING_CLAIMED)
			continue;

		/* this transaction has dropped the extension: no key, no promise */
		if (!record_table_exists(version->claim->key.table))
			continue;

		if (version->claim->lost)
			pending_raise_lost(version->claim);

		/* the list has the newest first; name the oldest */
		unfinished = version->claim;
		others++;
	}

	if (unfinished != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_UNFINISHED),
				 errmsg("key \"%s\" is claimed but not finished at the end of the transaction",
						key_name(&unfinished->key)),
				 others > 0 ?
				 errdetail_plural("So is %d other key.",
								  "So are %d other keys.",
								  others, others) : 0,
				 IsTransactionBlock() ?
				 errhint("Call idem_finish when the work is done, or idem_release to give the key up.") :
				 errhint("Call idem_finish when the work is done, or idem_release to give the key up, in the same transaction. Outside of BEGIN and COMMIT every statement is a transaction of its own.")));
}

static void
pending_reset(void)
{
	if (pending_levels == NULL)
		return;
	MemoryContextReset(pending_context);
	pending_table = NULL;
	pending_levels = NULL;
	pending_nlevels = 0;
	pending_maxlevels = 0;
	pending_nlocked = 0;
}

static void
pending_on_xact(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			pending_check();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			pending_reset();
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			/* parallel workers cannot claim */
			break;
	}
}

static void
pending_on_subxact(SubXactEvent event, SubTransactionId subid,
				   SubTransactionId parent_subid, void *arg)
{
	PendingLevel *level;

	if (pending_nlevels == 0)
		return;
	level = &pending_levels[pending_nlevels - 1];
	if (level->level != GetCurrentTransactionNestLevel())
		return;

	switch (event)
	{
		case SUBXACT_EVENT_COMMIT_SUB:
			pending_sink(level);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			pending_take_off(level);
			break;
		case SUBXACT_EVENT_START_SUB:
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			break;
	}
}
