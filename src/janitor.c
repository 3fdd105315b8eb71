/*-------------------------------------------------------------------------
 *
 * janitor.c
 *	  Removal of what has expired: idem_expire, and, if the library is preloaded, a
 *	  background worker that does it.
 *
 * Expiry is judged when a key is claimed or looked up; removal only gives the
 * space back and may come at any time later, or never.
 *
 * The janitor is a launcher that goes from database to database, and starts a worker
 * in each, one at a time, since only a process that lives in a database can work in
 * it, and one that stays there keeps it from being dropped.  A worker finds out
 * whether the extension is there, works for no longer than JANITOR_SHIFT, says in
 * shared memory how far it has come, and ends; the launcher sends the next one there
 * until the table has been swept once.
 *
 * A worker removes some rows, or looks at some pages, in a transaction, commits, and
 * pauses.  It waits for no lock for long, waits for no row at all, and has no snapshot:
 * it keeps nobody from anything.  What it is stopped by, it is stopped by: the
 * launcher comes again, later and later if a worker fails time and again.
 *
 * The state of a database is a hint.  If there are more databases than places, those
 * without one are swept from the beginning, as far as a shift goes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/spin.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "counter.h"
#include "janitor.h"
#include "letter.h"
#include "lock.h"
#include "record.h"
#include "shmem.h"

/*
 * So long a worker works at the most, in microseconds: DROP DATABASE waits for 5 s. Not
 * much shorter, since to start one is most of what others feel of it.
 */
#define JANITOR_SHIFT			(3 * USECS_PER_SEC)

/* So many pages are looked at in one transaction. */
#define JANITOR_PAGES			1000

/*
 * So many rows of the kind fill a page.  A transaction changes no more pages than its
 * batch would fill: where few rows of each have expired, it is the pages that cost.
 */
#define JANITOR_ROWS_PER_PAGE	50

/* A round that took t, without the pauses, is followed by a rest of JANITOR_PATIENCE * t. */
#define JANITOR_PATIENCE		10

/* A database where workers fail is left alone for longer and longer, in intervals. */
#define JANITOR_MAX_BACKOFF		60

#define JANITOR_MAX_DATABASES	128

/* How far the janitor has come in a database. */
typedef struct JanitorPlace
{
	Oid			database;		/* InvalidOid: free */
	BlockNumber hand;			/* where to go on */
	bool		swept;			/* this round is done */
	bool		failed;			/* the last worker has not come to its end */
	int			skip;			/* leave it alone for so many rounds */
	int			backoff;		/* and for so many after the next failure */
} JanitorPlace;

typedef struct JanitorShared
{
	slock_t		mutex;
	int64		paused;			/* in this round, microseconds */
	JanitorPlace places[JANITOR_MAX_DATABASES];
} JanitorShared;

static Size janitor_shared_size(void);
static void janitor_shared_fill(void *shared);
static List *janitor_databases(void);
static void janitor_round(void);
static bool janitor_send_worker(Oid database);
static void janitor_work(JanitorPlace *place);
static JanitorPlace *janitor_place(Oid database);
static void janitor_sleep(long msecs);
static void janitor_check_signals(void);
static void janitor_rest(void);
static int64 janitor_paused(void);
static void janitor_tidy_places(const List *databases);

extern PGDLLEXPORT void idem_janitor_launcher(Datum arg);
extern PGDLLEXPORT void idem_janitor_worker(Datum arg);

static ShmemPart janitor_part = {janitor_shared_size, janitor_shared_fill, 0};

int			janitor_batch = 1000;
int			janitor_interval = 60;
int			janitor_pause = 20;

PG_FUNCTION_INFO_V1(idem_expire);

/* ----------------------------------------------------------------
 *						The launcher
 * ----------------------------------------------------------------
 */

/* Once, when the library is loaded: the launcher is for those who preload it. */
void
janitor_init(void)
{
	BackgroundWorker worker;

	shmem_reserve(&janitor_part);
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 10;
	strlcpy(worker.bgw_library_name, "idempotency", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "idem_janitor_launcher",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "idempotency janitor", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "idempotency janitor", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

static Size
janitor_shared_size(void)
{
	return sizeof(JanitorShared);
}

static void
janitor_shared_fill(void *shared)
{
	memset(shared, 0, sizeof(JanitorShared));
	SpinLockInit(&((JanitorShared *) shared)->mutex);
}

void
idem_janitor_launcher(Datum arg)
{
	const uint32 no_flags = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, no_flags);

	for (;;)
	{
		int64		begun = lock_clock();
		int64		rest = janitor_interval * USECS_PER_SEC;

		if (janitor_interval > 0)
		{
			janitor_round();
			rest = Max(rest, JANITOR_PATIENCE * (lock_clock() - begun - janitor_paused()));
		}
		else
			rest = USECS_PER_MINUTE;
		janitor_sleep(Min(rest / 1000, INT_MAX));
	}
}

/* Each database once, and again until it has been swept, or the janitor is turned off. */
static void
janitor_round(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "idempotency janitor",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext saved = MemoryContextSwitchTo(context);
	List	   *databases = janitor_databases();
	ListCell   *lc;

	janitor_tidy_places(databases);
	foreach(lc, databases)
	{
		JanitorPlace *place = janitor_place(lfirst_oid(lc));

		if (place != NULL)
			place->swept = false;
	}

	while (databases != NIL && janitor_interval > 0)
	{
		List	   *left = NIL;

		foreach(lc, databases)
		{
			Oid			database = lfirst_oid(lc);

			if (janitor_send_worker(database))
				left = lappend_oid(left, database);
		}
		if (left != NIL)
			janitor_rest();
		databases = left;
	}
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(context);
}

/* Those that one may connect to, but for templates. */
static List *
janitor_databases(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *databases = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) shmem_get(&janitor_part);	/* while there is a transaction */
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext saved;

		if (!form->datallowconn || form->datistemplate ||
			form->datconnlimit == DATCONNLIMIT_INVALID_DB)
			continue;
		saved = MemoryContextSwitchTo(caller);
		databases = lappend_oid(databases, form->oid);
		MemoryContextSwitchTo(saved);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return databases;
}

/* Have a worker work there for a shift.  True if another one is to follow. */
static bool
janitor_send_worker(Oid database)
{
	JanitorPlace *place = janitor_place(database);
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	pid_t		pid;

	janitor_check_signals();
	if (place != NULL && place->skip > 0)
	{
		place->skip--;
		return false;
	}

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "idempotency", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "idem_janitor_worker",
			sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "idempotency janitor of database %u", database);
	strlcpy(worker.bgw_type, "idempotency janitor", sizeof(worker.bgw_type));
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;

	/* no slot is free: next time */
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return false;
	if (place != NULL)
		place->failed = true;
	if (WaitForBackgroundWorkerStartup(handle, &pid) == BGWH_STARTED &&
		WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
		proc_exit(1);
	pfree(handle);

	if (place == NULL)
		return false;
	if (place->failed)
	{
		place->backoff = Min(Max(2 * place->backoff, 1), JANITOR_MAX_BACKOFF);
		place->skip = place->backoff;
		return false;
	}
	place->backoff = 0;
	return !place->swept;
}

/* The place of a database; NULL if there are too many. */
static JanitorPlace *
janitor_place(Oid database)
{
	JanitorShared *shared = shmem_get(&janitor_part);
	JanitorPlace *place = NULL;

	if (shared == NULL)
		return NULL;
	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < JANITOR_MAX_DATABASES; i++)
	{
		JanitorPlace *other = &shared->places[i];

		if (other->database == database)
		{
			place = other;
			break;
		}
		if (place == NULL && other->database == InvalidOid)
			place = other;
	}
	if (place != NULL && place->database == InvalidOid)
	{
		memset(place, 0, sizeof(*place));
		place->database = database;
	}
	SpinLockRelease(&shared->mutex);
	return place;
}

/* The pause after a transaction; it does not count as work. */
static void
janitor_rest(void)
{
	JanitorShared *shared = shmem_get(&janitor_part);
	int64		since = lock_clock();

	janitor_sleep(janitor_pause);
	if (shared != NULL)
		shared->paused += lock_clock() - since;
}

/* For how long there were pauses in this round; begins to count anew. */
static int64
janitor_paused(void)
{
	JanitorShared *shared = shmem_get(&janitor_part);
	int64		paused = 0;

	if (shared != NULL)
	{
		paused = shared->paused;
		shared->paused = 0;
	}
	return paused;
}

/* Give back the places of databases that are gone. */
static void
janitor_tidy_places(const List *databases)
{
	JanitorShared *shared = shmem_get(&janitor_part);

	for (int i = 0; shared != NULL && i < JANITOR_MAX_DATABASES; i++)
	{
		JanitorPlace *place = &shared->places[i];

		/* nobody but the launcher takes places for databases that are new */
		if (OidIsValid(place->database) &&
			!list_member_oid(databases, place->database))
		{
			SpinLockAcquire(&shared->mutex);
			place->database = InvalidOid;
			SpinLockRelease(&shared->mutex);
		}
	}
}

/* Until the time is up, or the configuration is loaded anew. */
static void
janitor_sleep(long msecs)
{
	lock_sleep(msecs, IDEM_PAUSE_JANITOR);
	janitor_check_signals();
}

/* Of the launcher, and of workers, which set no ShutdownRequestPending but die. */
static void
janitor_check_signals(void)
{
	CHECK_FOR_INTERRUPTS();

	/* not 0, with which the postmaster would not start it again */
	if (ShutdownRequestPending)
		proc_exit(1);
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* ----------------------------------------------------------------
 *						A worker
 * ----------------------------------------------------------------
 */

void
idem_janitor_worker(Datum arg)
{
	const uint32 no_flags = 0;
	Oid			database = DatumGetObjectId(arg);
	JanitorPlace *place;
	bool		installed;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, no_flags);

	/* wait for no DDL, and for no disk */
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);

	StartTransactionCommand();
	installed = OidIsValid(get_extension_oid("idempotency", true));
	place = janitor_place(database);
	CommitTransactionCommand();

	if (installed)
		janitor_work(place);
	else if (place != NULL)
		place->swept = true;
	if (place != NULL)
		place->failed = false;
}

/* For a shift, or until the janitor is turned off. */
static void
janitor_work(JanitorPlace *place)
{
	int64		begun = lock_clock();
	BlockNumber hand = place != NULL ? place->hand : 0;
	int64		shift_end = begun + JANITOR_SHIFT;
	bool		end = false;	/* of the keys; then come the letters */
	int64		letters = PG_INT64_MAX;

	while ((!end || letters >= janitor_batch) && lock_clock() < shift_end &&
		   janitor_interval > 0)
	{
		int64		removed;

		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING, "removing what has expired");
		StartTransactionCommand();
		record_open(true);
		if (!end)
			removed = record_expire_part(&hand, JANITOR_PAGES,
										 Max(janitor_batch / JANITOR_ROWS_PER_PAGE, 1),
										 janitor_batch, &end);
		else
			letters = removed = letter_expire(janitor_batch);
		counter_add(COUNTER_EXPIRED, removed);
		CommitTransactionCommand();
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);

		if (place != NULL)
		{
			place->hand = end ? 0 : hand;
			place->swept = end;
		}

		/* a pause that is longer than the shift is the launcher's */
		if (lock_clock() + janitor_pause * INT64CONST(1000) < shift_end)
			janitor_rest();
	}
}

/* ----------------------------------------------------------------
 *						By hand
 * ----------------------------------------------------------------
 */

/*
 * idem_expire(max_rows int) -> bigint
 *
 * Removes up to max_rows expired records and dead letters, those of the current user, or
 * anybody's if the current user is a member of the role that owns the
 * extension's tables.  Returns how many; fewer than max_rows means that none
 * are left, except those that others have locked.
 *
 * Waits for nobody, and nobody who claims a live key waits for it.  A claim
 * over an expired record that was removed waits for the commit, so commit
 * soon: call it by itself, in batches.
 *
 * Raises 22004, 22023 (max_rows), 25006.
 */
Datum
idem_expire(PG_FUNCTION_ARGS)
{
	int64		max_rows;
	int64		removed;

	args_may_write("idem_expire()");

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("max_rows must not be null"),
				 errhint("Leave the argument out for the default.")));
	if (PG_GETARG_INT32(0) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero"),
				 errhint("Leave the argument out for the default.")));

	max_rows = PG_GETARG_INT32(0);

	record_open(true);
	removed = record_expire(max_rows);
	if (removed < max_rows)
		removed += letter_expire(max_rows - removed);
	counter_add(COUNTER_EXPIRED, removed);
	PG_RETURN_INT64(removed);
}
