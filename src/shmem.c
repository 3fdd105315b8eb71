/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Memory that all backends of a server share: the one place that asks for it.
 *
 * Before PostgreSQL 17 there is some only if the library is preloaded
 * (shared_preload_libraries); from 17 on whoever needs it first makes it, through
 * the registry of dynamic shared memory.  Nothing that must be right may depend on
 * it: shmem_get() returns NULL where there is none.
 *
 * What is in it is made of atomics, so it is never left half changed, whoever is
 * killed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "compat.h"
#include "shmem.h"

#define SHMEM_NAME	"idempotency"

static IdemShared *shmem_shared = NULL;

static Size
shmem_size(void)
{
	return add_size(offsetof(IdemShared, waiting),
					mul_size(MaxBackends, sizeof(pg_atomic_uint64)));
}

static void
shmem_fill(void *place)
{
	IdemShared *shared = place;

	pg_atomic_init_u32(&shared->nwaiting, 0);
	for (int i = 0; i < MaxBackends; i++)
		pg_atomic_init_u64(&shared->waiting[i], 0);
}

#ifdef IDEM_HAVE_DSM_REGISTRY

void
shmem_init(void)
{
}

IdemShared *
shmem_get(void)
{
	bool		found;

	if (shmem_shared == NULL)
		shmem_shared = GetNamedDSMSegment(SHMEM_NAME, shmem_size(), shmem_fill,
										  &found);
	return shmem_shared;
}

#else

static shmem_request_hook_type shmem_next_request = NULL;
static shmem_startup_hook_type shmem_next_startup = NULL;

static void
shmem_request(void)
{
	if (shmem_next_request != NULL)
		shmem_next_request();
	RequestAddinShmemSpace(shmem_size());
}

static void
shmem_startup(void)
{
	bool		found;

	if (shmem_next_startup != NULL)
		shmem_next_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shmem_shared = ShmemInitStruct(SHMEM_NAME, shmem_size(), &found);
	if (!found)
		shmem_fill(shmem_shared);
	LWLockRelease(AddinShmemInitLock);
}

/* Ask for it; in time only if the library is being preloaded. */
void
shmem_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;

	shmem_next_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	shmem_next_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* NULL if the library was not preloaded. */
IdemShared *
shmem_get(void)
{
	return shmem_shared;
}

#endif							/* IDEM_HAVE_DSM_REGISTRY */
