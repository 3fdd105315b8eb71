/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Waking those who wait for messages: through shared memory, where there is
 *	  some.
 *
 * Whoever waits says so in a slot of his own, looks once more, and sleeps on his
 * latch.  Whoever has put something into a queue sets the latches of those who wait
 * for that queue once he has committed: after his message has become visible.  So
 * either the one who looks sees it, or he is woken.
 *
 * This only saves time.  Those who wait look again after a while anyway, since what
 * they wait for may come without anybody who could wake them: a lease runs out, a
 * delivery is rolled back, a prepared transaction is committed.
 *
 * Queues are told apart by a hash, and the slot of a backend that was killed may be
 * left as it was: then somebody is woken in vain.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"

#include "compat.h"
#include "shmem.h"
#include "wake.h"

/* Queues that a transaction has put something into; more are too many to tell. */
#define WAKE_MAX_QUEUES		16

/* For which queue each backend waits, 0 for none. */
typedef struct WakeShared
{
	pg_atomic_uint32 nwaiting;
	pg_atomic_uint64 waiting[FLEXIBLE_ARRAY_MEMBER];
} WakeShared;

static uint64 wake_queues[WAKE_MAX_QUEUES];
static int	wake_nqueues = 0;	/* WAKE_MAX_QUEUES + 1: all of them */

static Size wake_shared_size(void);
static void wake_shared_fill(void *place);
static void wake_xact_callback(XactEvent event, void *arg);
static void wake_all(WakeShared *shared);
static void wake_end(int code, Datum arg);

static ShmemPart wake_part = {wake_shared_size, wake_shared_fill, 0};

/* Once, when the library is loaded. */
void
wake_init(void)
{
	shmem_reserve(&wake_part);
	RegisterXactCallback(wake_xact_callback, NULL);
}

static Size
wake_shared_size(void)
{
	return add_size(offsetof(WakeShared, waiting),
					mul_size(MaxBackends, sizeof(pg_atomic_uint64)));
}

static void
wake_shared_fill(void *place)
{
	WakeShared *shared = place;

	pg_atomic_init_u32(&shared->nwaiting, 0);
	for (int i = 0; i < MaxBackends; i++)
		pg_atomic_init_u64(&shared->waiting[i], 0);
}

/* The name of a queue in the slots: never 0. */
static uint64
wake_hash(const Queue *queue)
{
	uint64		seed = (uint64) MyDatabaseId << 32 | queue->owner;
	uint64		hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(queue->name),
										   VARSIZE_ANY_EXHDR(queue->name), seed);

	return hash == 0 ? 1 : hash;
}

/* This transaction has put something into the queue. */
void
wake_at_commit(const Queue *queue)
{
	uint64		hash;

	if (wake_nqueues > WAKE_MAX_QUEUES)
		return;
	hash = wake_hash(queue);
	for (int i = 0; i < wake_nqueues; i++)
		if (wake_queues[i] == hash)
			return;
	if (wake_nqueues < WAKE_MAX_QUEUES)
		wake_queues[wake_nqueues] = hash;
	wake_nqueues++;
}

/*
 * Subtransactions are not told apart: after a rollback to a savepoint somebody may be
 * woken in vain.
 */
static void
wake_xact_callback(XactEvent event, void *arg)
{
	if (wake_nqueues == 0)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		WakeShared *shared = shmem_get(&wake_part);

		if (shared != NULL)
			wake_all(shared);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		wake_nqueues = 0;
}

/* Everybody who waits for one of the queues; the transaction is over. */
static void
wake_all(WakeShared *shared)
{
	/* after our commit has become visible, before we look who waits */
	pg_memory_barrier();
	if (pg_atomic_read_u32(&shared->nwaiting) == 0)
		return;

	for (int backend = 0; backend < MaxBackends; backend++)
	{
		uint64		hash = pg_atomic_read_u64(&shared->waiting[backend]);
		bool		meant = wake_nqueues > WAKE_MAX_QUEUES;

		for (int i = 0; hash != 0 && !meant && i < wake_nqueues; i++)
			meant = wake_queues[i] == hash;
		if (hash != 0 && meant)
			SetLatch(&ProcGlobal->allProcs[backend].procLatch);
	}
}

/*
 * From now on this backend is woken when something comes into the queue.  To be
 * called before it looks for the last time, and undone by wake_me_no_more(), also
 * after an error; the end of the process sees to itself.
 */
void
wake_me_for(const Queue *queue)
{
	static bool registered = false;
	WakeShared *shared = shmem_get(&wake_part);

	if (shared == NULL)
		return;
	if (!registered)
	{
		before_shmem_exit(wake_end, (Datum) 0);
		registered = true;
	}
	if (pg_atomic_exchange_u64(&shared->waiting[MyProcNumber],
							   wake_hash(queue)) == 0)
		pg_atomic_fetch_add_u32(&shared->nwaiting, 1);
}

void
wake_me_no_more(void)
{
	WakeShared *shared = shmem_get(&wake_part);

	if (shared == NULL)
		return;
	if (pg_atomic_exchange_u64(&shared->waiting[MyProcNumber], 0) != 0)
		pg_atomic_fetch_sub_u32(&shared->nwaiting, 1);
}

static void
wake_end(int code, Datum arg)
{
	wake_me_no_more();
}
