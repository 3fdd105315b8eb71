/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Memory that all backends of a server share: the one place that asks for it.
 *
 * Before PostgreSQL 17 there is some only if the library is preloaded
 * (shared_preload_libraries); from 17 on whoever needs it first makes it, in a
 * transaction, through the registry of dynamic shared memory.  Nothing that must be right may depend on
 * it: shmem_get() returns NULL where there is none.
 *
 * It is one piece, in which each room has a part.  The rooms reserve theirs when the
 * library is loaded, in the same order in every process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "shmem.h"

#define SHMEM_NAME		"idempotency"
#define SHMEM_MAX_PARTS	4

bool		shmem_preloaded = false;

static ShmemPart *shmem_parts[SHMEM_MAX_PARTS];
static int	shmem_nparts = 0;
static char *shmem_base = NULL;

#ifdef IDEM_HAVE_DSM_REGISTRY
#define SHMEM_KIND		"dynamic"

static bool shmem_failed = false;

static void shmem_attach(void);
#else
#define SHMEM_KIND		"static"
#endif

/* To be called by each room that has a part, before shmem_init(). */
void
shmem_reserve(ShmemPart *part)
{
	if (shmem_nparts == SHMEM_MAX_PARTS)
		elog(ERROR, "too many parts of shared memory");
	shmem_parts[shmem_nparts++] = part;
}

/* Of all parts; each begins on a cache line of its own. */
static Size
shmem_size(void)
{
	Size		size = 0;

	for (int i = 0; i < shmem_nparts; i++)
	{
		shmem_parts[i]->offset = size;
		size = add_size(size, CACHELINEALIGN(shmem_parts[i]->size()));
	}
	return size;
}

static void
shmem_fill(void *place)
{
	for (int i = 0; i < shmem_nparts; i++)
		shmem_parts[i]->fill((char *) place + shmem_parts[i]->offset);
}

#ifdef IDEM_HAVE_DSM_REGISTRY

void
shmem_init(void)
{
	shmem_preloaded = process_shared_preload_libraries_in_progress;
}

/* Once in a session, when it is first asked for in a transaction. */
static void
shmem_try(void)
{
	if (unlikely(shmem_base == NULL) && !shmem_failed && IsTransactionState())
		shmem_attach();
}

/*
 * The name is that of this build: another one, which was installed meanwhile, has
 * another piece.
 */
static pg_noinline char *
shmem_open(void)
{
	Size		size = shmem_size();
	char		name[NAMEDATALEN];
	bool		found;

	snprintf(name, sizeof(name), "%s %s %zu", SHMEM_NAME, IDEM_VERSION, size);
	return GetNamedDSMSegment(name, size, shmem_fill, &found);
}

/*
 * Once in a session.
 *
 * There may be no memory left, or no place in the registry.  That must not keep
 * anybody from claiming keys, so it is caught; it is in the server log.
 */
static void
shmem_attach(void)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	shmem_failed = true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		shmem_base = shmem_open();
		shmem_failed = false;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("could not get shared memory: %s", error->message),
				 errdetail("This session does without.")));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
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
	Size		size = shmem_size();
	bool		found;

	if (shmem_next_startup != NULL)
		shmem_next_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shmem_base = ShmemInitStruct(SHMEM_NAME, size, &found);
	if (!found)
		shmem_fill(shmem_base);
	LWLockRelease(AddinShmemInitLock);
}

/* Ask for it; in time only if the library is being preloaded. */
void
shmem_init(void)
{
	shmem_preloaded = process_shared_preload_libraries_in_progress;
	if (!shmem_preloaded)
		return;

	shmem_next_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	shmem_next_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* It is there since the start of the server, or not at all. */
static void
shmem_try(void)
{
}

#endif							/* IDEM_HAVE_DSM_REGISTRY */

/* NULL if it is not to be had. */
void *
shmem_get(const ShmemPart *part)
{
	shmem_try();
	return shmem_base == NULL ? NULL : shmem_base + part->offset;
}

/* Which kind there is, for those who look at it. */
const char *
shmem_kind(void)
{
	shmem_try();
	return shmem_base == NULL ? "none" : SHMEM_KIND;
}
