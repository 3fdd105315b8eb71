/*-------------------------------------------------------------------------
 *
 * counter.c
 *	  Counting what happens: in shared memory, where there is some.
 *
 * Each backend has counters of its own, so that to count is to add to a number that
 * nobody else writes.  When it ends they are added to those of its database, and
 * whoever wants to know adds up what is there: the counters of the database, and of
 * the backends that work in it.
 *
 * What is counted counts at once, whatever becomes of the transaction.
 *
 * There are no numbers for each owner or scope: every call would have to find their
 * place in a table that all share, which costs more than all that is here.  And the
 * cumulative statistics that PostgreSQL 18 lends to libraries, and keeps over a restart,
 * are not used: they are for those who preload only, all of this would be needed beside
 * them for the versions before, and who reads numbers reads rates.
 *
 * To reset them, the sum of what the backends have is subtracted from what the
 * database has, modulo 2^64: nobody writes to the counters of another backend.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "counter.h"
#include "shmem.h"

/* Databases that are counted for. */
#define COUNTER_MAX_DATABASES	128

/* What one backend counts, on cache lines of its own. */
typedef union CounterBackend
{
	struct
	{
		Oid			database;	/* InvalidOid: nothing is counted here */
		pg_atomic_uint64 counters[COUNTERS];
	}			now;
	char		pad[TYPEALIGN(PG_CACHE_LINE_SIZE, (COUNTERS + 1) * 8)];
} CounterBackend;

/* What backends that are gone have counted in one database. */
typedef struct CounterDatabase
{
	Oid			database;		/* InvalidOid: free */
	TimestampTz since;
	uint64		counters[COUNTERS];
} CounterDatabase;

typedef struct CounterShared
{
	slock_t		mutex;			/* protects all but the counters */
	CounterDatabase databases[COUNTER_MAX_DATABASES];
	CounterBackend backends[FLEXIBLE_ARRAY_MEMBER];
} CounterShared;

static Size counter_shared_size(void);
static void counter_shared_fill(void *place);
static void counter_end(int code, Datum arg);
static CounterDatabase *counter_database(CounterShared *shared);
static void counter_sum(CounterShared *shared, uint64 *counts);

static ShmemPart counter_part = {counter_shared_size, counter_shared_fill, 0};

pg_atomic_uint64 *counter_own = NULL;
bool		counter_kept = true;

/* Once, when the library is loaded. */
void
counter_init(void)
{
	shmem_reserve(&counter_part);
}

static Size
counter_shared_size(void)
{
	return add_size(offsetof(CounterShared, backends),
					mul_size(MaxBackends, sizeof(CounterBackend)));
}

static void
counter_shared_fill(void *place)
{
	CounterShared *shared = place;

	memset(shared, 0, counter_shared_size());
	SpinLockInit(&shared->mutex);
	for (int i = 0; i < MaxBackends; i++)
		for (int c = 0; c < COUNTERS; c++)
			pg_atomic_init_u64(&shared->backends[i].now.counters[c], 0);
}

/* The first count of this backend. */
void
counter_begin(void)
{
	CounterShared *shared = shmem_get(&counter_part);
	CounterBackend *own;
	CounterDatabase *database = NULL;

	counter_kept = shared != NULL && MyProcNumber < MaxBackends;
	if (!counter_kept)
		return;

	own = &shared->backends[MyProcNumber];
	for (int attempt = 0; attempt < 2 && database == NULL; attempt++)
	{
		SpinLockAcquire(&shared->mutex);
		database = counter_database(shared);
		if (database != NULL)
			own->now.database = MyDatabaseId;
		SpinLockRelease(&shared->mutex);

		/* make room if there are databases that are gone */
		for (int i = 0; database == NULL && i < COUNTER_MAX_DATABASES; i++)
		{
			Oid			other = shared->databases[i].database;

			if (SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(other)))
				continue;
			SpinLockAcquire(&shared->mutex);
			if (shared->databases[i].database == other)
				shared->databases[i].database = InvalidOid;
			SpinLockRelease(&shared->mutex);
		}
	}

	/* with more databases than that, this one is not counted for */
	counter_kept = database != NULL;
	if (!counter_kept)
		return;
	counter_own = own->now.counters;
	before_shmem_exit(counter_end, (Datum) 0);
}

/* The end of this backend: what it has counted passes to its database. */
static void
counter_end(int code, Datum arg)
{
	CounterShared *shared = shmem_get(&counter_part);
	CounterBackend *own = &shared->backends[MyProcNumber];
	CounterDatabase *database;

	SpinLockAcquire(&shared->mutex);
	database = counter_database(shared);
	for (int c = 0; c < COUNTERS; c++)
	{
		if (database != NULL)
			database->counters[c] += pg_atomic_read_u64(&own->now.counters[c]);
		pg_atomic_write_u64(&own->now.counters[c], 0);
	}
	own->now.database = InvalidOid;
	SpinLockRelease(&shared->mutex);
	counter_own = NULL;
	counter_kept = false;
}

/* The caller holds the lock; NULL if there are too many. */
static CounterDatabase *
counter_database(CounterShared *shared)
{
	CounterDatabase *empty = NULL;

	for (int i = 0; i < COUNTER_MAX_DATABASES; i++)
	{
		CounterDatabase *database = &shared->databases[i];

		if (database->database == MyDatabaseId)
			return database;
		if (empty == NULL && database->database == InvalidOid)
			empty = database;
	}
	if (empty != NULL)
	{
		memset(empty, 0, sizeof(*empty));
		empty->database = MyDatabaseId;
		empty->since = GetCurrentTimestamp();
	}
	return empty;
}

/* What the backends in this database have; the caller holds the lock. */
static void
counter_sum(CounterShared *shared, uint64 *counts)
{
	memset(counts, 0, COUNTERS * sizeof(uint64));
	for (int i = 0; i < MaxBackends; i++)
	{
		CounterBackend *backend = &shared->backends[i];

		if (backend->now.database != MyDatabaseId)
			continue;
		for (int c = 0; c < COUNTERS; c++)
			counts[c] += pg_atomic_read_u64(&backend->now.counters[c]);
	}
}

/* All that was counted in this database; false if nothing is. */
bool
counter_read(uint64 *counts, TimestampTz *since)
{
	CounterShared *shared = shmem_get(&counter_part);
	CounterDatabase *database;

	if (shared == NULL)
		return false;

	SpinLockAcquire(&shared->mutex);
	database = counter_database(shared);
	if (database != NULL)
	{
		counter_sum(shared, counts);
		for (int c = 0; c < COUNTERS; c++)
			counts[c] += database->counters[c];
		*since = database->since;
	}
	SpinLockRelease(&shared->mutex);
	return database != NULL;
}

/* Begin anew, in this database; false if nothing is counted. */
bool
counter_reset(void)
{
	CounterShared *shared = shmem_get(&counter_part);
	CounterDatabase *database;
	uint64		counts[COUNTERS];
	TimestampTz now = GetCurrentTimestamp();

	if (shared == NULL)
		return false;

	SpinLockAcquire(&shared->mutex);
	database = counter_database(shared);
	if (database != NULL)
	{
		counter_sum(shared, counts);
		for (int c = 0; c < COUNTERS; c++)
			database->counters[c] = -counts[c];
		database->since = now;
	}
	SpinLockRelease(&shared->mutex);
	return database != NULL;
}
