/*-------------------------------------------------------------------------
 *
 * breaker.c
 *	  Circuit breakers that all connections of a database share.
 *
 * What a breaker has counted is in shared memory, so that it survives the rollback of
 * the very transaction whose call has failed, and so that it is gone after a restart
 * of the server.  How it is configured is in a table, idem_breaker, which this room
 * alone touches: that is dumped, and replicated.
 *
 * There is a fixed number of places, found by (database, name), each under a spinlock
 * of its own: whatever happens to a breaker takes some dozens of instructions, see
 * circuit.c.  A place is taken when a breaker is first used, by whoever holds the lock
 * of the directory, and given back by idem_breaker_reset, or when there is none left
 * and its database is gone.
 *
 * Each backend remembers where the breakers that it uses are, and how they are
 * configured, until a relcache invalidation of the table makes it a new realm.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inet.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "backoff.h"
#include "breaker.h"
#include "circuit.h"
#include "compat.h"
#include "lock.h"
#include "realm.h"
#include "record.h"
#include "shmem.h"
#include "store.h"

/* Columns of idem_breaker, as breaker.sql creates them. */
enum
{
	Anum_name = 1,
	Anum_failure_rate,
	Anum_minimum_calls,
	Anum_window_length,
	Anum_open_for,
	Anum_half_open_probes,
	Anum_slow_call,
	Anum_slow_rate,
	Anum_quorum
};

static const StoreColumn breaker_columns[] =
{
	{"name", TEXTOID, true},
	{"failure_rate", FLOAT8OID, true},
	{"minimum_calls", INT4OID, true},
	{"window_length", INTERVALOID, true},
	{"open_for", INTERVALOID, true},
	{"half_open_probes", INT4OID, true},
	{"slow_call", INTERVALOID, false},
	{"slow_rate", FLOAT8OID, true},
	{"quorum", INT4OID, true}
};

static const AttrNumber breaker_key[] = {Anum_name};

static const StoreShape breaker_shape =
{
	breaker_columns, lengthof(breaker_columns),
	breaker_key, lengthof(breaker_key), "name"
};

/* In one server; remembered by one backend. */
#define BREAKER_MAX_PLACES		256
#define BREAKER_MAX_REMEMBERED	256

/* A breaker that is not configured; as the defaults of idem_breaker_configure. */
static const CircuitRules breaker_defaults =
{
	.failure_rate = 50,
	.minimum_calls = 20,
	.window_length = USECS_PER_MINUTE,
	.open_for = 30 * USECS_PER_SEC,
	.half_open_probes = 3,
	.slow_call = PG_INT64_MAX,
	.slow_rate = 100,
	.quorum = 1
};

typedef struct BreakerPlace
{
	slock_t		mutex;			/* protects all that follows */
	Oid			database;		/* InvalidOid: free */
	char		name[ARGS_MAX_NAME_LEN + 1];
	Circuit		circuit;
} BreakerPlace;

/* A place on cache lines of its own. */
typedef union BreakerSlot
{
	BreakerPlace place;
	char		pad[TYPEALIGN(PG_CACHE_LINE_SIZE, sizeof(BreakerPlace))];
} BreakerSlot;

typedef struct BreakerShared
{
	slock_t		directory;		/* held to take a place, and to give it back */
	BreakerSlot slots[BREAKER_MAX_PLACES];
} BreakerShared;

/* What a backend remembers. */
typedef struct BreakerKnown
{
	char		name[ARGS_MAX_NAME_LEN + 1];	/* hash key */
	CircuitRules rules;
	BreakerPlace *place;		/* may be another's by now */
} BreakerKnown;

static HTAB *breakers_known = NULL;

PG_FUNCTION_INFO_V1(idem_breaker_configure);
PG_FUNCTION_INFO_V1(idem_breaker_allow);
PG_FUNCTION_INFO_V1(idem_breaker_record);
PG_FUNCTION_INFO_V1(idem_breaker_force);
PG_FUNCTION_INFO_V1(idem_breaker_reset);
PG_FUNCTION_INFO_V1(idem_breaker_states);

static Size breaker_shared_size(void);
static void breaker_shared_fill(void *place);
static BreakerShared *breaker_shared(void);
static const text *breaker_name_argument(FunctionCallInfo fcinfo);
static BreakerKnown *breaker_known(const char *name, int len);
static void breaker_read_rules(CircuitRules *rules, const char *name);
static Circuit *breaker_enter(BreakerKnown *known);
static void breaker_leave(BreakerKnown *known);
static BreakerPlace *breaker_find_place(const char *name);
static BreakerPlace *breaker_take_place(BreakerShared *shared,
										const char *name);
static int64 breaker_duration(const Interval *given);
static uint64 breaker_client(void);
static Relation breaker_table(LOCKMODE mode);
static SysScanDesc breaker_begin_scan(Relation rel, const char *name);
static Datum breaker_interval(int64 usecs);
static void breaker_check_rate(FunctionCallInfo fcinfo, int arg,
							   const char *name);
static void breaker_check_number(FunctionCallInfo fcinfo, int arg,
								 const char *name, int max);
static void breaker_check_span(FunctionCallInfo fcinfo, int arg,
							   const char *name);

static ShmemPart breaker_part = {breaker_shared_size, breaker_shared_fill, 0};

static const char *const breaker_state_names[] =
{
	[CIRCUIT_CLOSED] = "closed",
	[CIRCUIT_OPEN] = "open",
	[CIRCUIT_HALF_OPEN] = "half_open"
};

/* Once, when the library is loaded. */
void
breaker_init(void)
{
	shmem_reserve(&breaker_part);
}

static Size
breaker_shared_size(void)
{
	return sizeof(BreakerShared);
}

static void
breaker_shared_fill(void *place)
{
	BreakerShared *shared = place;

	memset(shared, 0, sizeof(*shared));
	SpinLockInit(&shared->directory);
	for (int i = 0; i < BREAKER_MAX_PLACES; i++)
		SpinLockInit(&shared->slots[i].place.mutex);
}

static BreakerShared *
breaker_shared(void)
{
	BreakerShared *shared = shmem_get(&breaker_part);

	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("circuit breakers need shared memory"),
				 errhint("Add \"idempotency\" to shared_preload_libraries and restart the server.")));
	return shared;
}

/* ----------------------------------------------------------------
 *						Use
 * ----------------------------------------------------------------
 */

/*
 * idem_breaker_allow(name text)
 *		-> (allowed boolean, state text, retry_after interval)
 *
 * May the outside system be called?  If so, idem_breaker_record is to follow.  In the
 * half open state so many callers as there are probes are allowed to try.
 *
 *	name	of the breaker, 1 to 63 bytes; it need not be configured
 *
 * Writes nothing, and works on a standby, of which it is one of its own.  Waits for
 * nobody.
 *
 * Raises 22004, 22023, 54000 (bad name), 53400 (256 breakers are in use), 55000 (no
 * shared memory).
 */
Datum
idem_breaker_allow(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {BOOLOID, TEXTOID, INTERVALOID};
	const text *name = breaker_name_argument(fcinfo);
	BreakerKnown *known = breaker_known(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	int64		now = lock_clock();
	CircuitSight sight;
	Circuit    *circuit;
	bool		allowed;
	Datum		values[lengthof(columns)];
	bool		isnull[lengthof(columns)] = {false};

	circuit = breaker_enter(known);
	allowed = circuit_allow(circuit, &known->rules, now);
	circuit_see(circuit, &known->rules, now, &sight);
	breaker_leave(known);

	values[0] = BoolGetDatum(allowed);
	values[1] = CStringGetTextDatum(breaker_state_names[sight.state]);
	isnull[2] = allowed || sight.open_for == 0;
	values[2] = isnull[2] ? (Datum) 0 : breaker_interval(sight.open_for);
	PG_RETURN_DATUM(answer_row(fcinfo, columns, lengthof(columns),
							   values, isnull));
}

/*
 * idem_breaker_record(name text, success boolean, duration interval) -> text
 *
 * A call went so.  Counts at once, whatever becomes of the transaction, and returns
 * the state that the breaker is in now.
 *
 *	duration	how long it took, not negative; NULL: not slow
 *
 * Locks and raises as idem_breaker_allow.
 */
Datum
idem_breaker_record(PG_FUNCTION_ARGS)
{
	const text *name = breaker_name_argument(fcinfo);
	BreakerKnown *known = breaker_known(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	int64		now = lock_clock();
	int64		duration = 0;
	uint64		client = breaker_client();
	bool		success;
	Circuit    *circuit;
	CircuitSight sight;

	success = args_flag(fcinfo, 1, "success",
						"Use false if the call has failed.");
	if (!PG_ARGISNULL(2))
		duration = breaker_duration(PG_GETARG_INTERVAL_P(2));

	circuit = breaker_enter(known);
	circuit_record(circuit, &known->rules, now, success, duration, client);
	circuit_see(circuit, &known->rules, now, &sight);
	breaker_leave(known);

	PG_RETURN_TEXT_P(cstring_to_text(breaker_state_names[sight.state]));
}

/*
 * idem_breaker_force(name text, state text) -> void
 *
 * Forces a breaker "open" or "closed" until it is forced to "auto", or the server is
 * restarted; at once, whatever becomes of the transaction.  Beneath, the breaker goes
 * on as it does otherwise, so far as calls are made and recorded.
 *
 * Locks and raises as idem_breaker_allow.
 */
Datum
idem_breaker_force(PG_FUNCTION_ARGS)
{
	static const char *const names[] =
	{
		[CIRCUIT_AUTO] = "auto",
		[CIRCUIT_FORCED_CLOSED] = "closed",
		[CIRCUIT_FORCED_OPEN] = "open"
	};
	const text *name = breaker_name_argument(fcinfo);
	BreakerKnown *known = breaker_known(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	char	   *state;
	int			force = lengthof(names) - 1;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("state must not be null"),
				 errhint("Valid values are auto, closed and open.")));
	state = text_to_cstring(PG_GETARG_TEXT_PP(1));
	while (force >= 0 && strcmp(state, names[force]) != 0)
		force--;
	if (force < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("state \"%s\" is not known", state),
				 errhint("Valid values are auto, closed and open.")));

	breaker_enter(known)->force = (CircuitForce) force;
	breaker_leave(known);
	PG_RETURN_VOID();
}

/*
 * idem_breaker_reset(name text) -> void
 *
 * Forgets what a breaker has counted, and whether it was forced; it is closed.  At
 * once, whatever becomes of the transaction.
 *
 * Locks and raises as idem_breaker_allow.
 */
Datum
idem_breaker_reset(PG_FUNCTION_ARGS)
{
	BreakerShared *shared = breaker_shared();
	const text *name = breaker_name_argument(fcinfo);
	char	   *wanted = text_to_cstring(name);

	SpinLockAcquire(&shared->directory);
	for (int i = 0; i < BREAKER_MAX_PLACES; i++)
	{
		BreakerPlace *place = &shared->slots[i].place;

		if (place->database != MyDatabaseId || strcmp(place->name, wanted) != 0)
			continue;
		SpinLockAcquire(&place->mutex);
		place->database = InvalidOid;
		SpinLockRelease(&place->mutex);
	}
	SpinLockRelease(&shared->directory);
	PG_RETURN_VOID();
}

static const text *
breaker_name_argument(FunctionCallInfo fcinfo)
{
	return args_name(fcinfo, 0, "name",
					 "A breaker has a name, such as 'payments'; it need not be configured.");
}

/* As an application has measured it, which may be by a clock that stands still. */
static int64
breaker_duration(const Interval *given)
{
	if (given->time == 0 && given->day == 0 && given->month == 0)
		return 0;
	return backoff_usecs("duration", given);
}

/*
 * Who sees the failures: a client is told from others by its name and its address.
 * Never 0.
 */
static uint64
breaker_client(void)
{
	static uint64 address = 0;	/* 0: not known yet */
	uint64		hash;

	if (address == 0)
	{
		LOCAL_FCINFO(fcinfo, 0);
		Datum		given;

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
		given = inet_client_addr(fcinfo);
		address = 1;			/* a socket has none */
		if (!fcinfo->isnull)
		{
			inet	   *client = DatumGetInetPP(given);

			address = hash_bytes_extended((const unsigned char *) VARDATA_ANY(client),
										  VARSIZE_ANY_EXHDR(client), 0) | 2;
		}
	}
	hash = hash_bytes_extended((const unsigned char *) application_name,
							   strlen(application_name), address);
	return hash == 0 ? 1 : hash;
}

static Datum
breaker_interval(int64 usecs)
{
	Interval   *result = palloc0(sizeof(Interval));

	result->time = usecs;
	return IntervalPGetDatum(result);
}

/* ----------------------------------------------------------------
 *						Places
 * ----------------------------------------------------------------
 */

/* What this backend knows of a breaker. */
static BreakerKnown *
breaker_known(const char *name, int len)
{
	static uint64 serial = 0;	/* of the realm that was read */
	char		key[ARGS_MAX_NAME_LEN + 1] = {0};
	BreakerKnown *known;

	(void) breaker_shared();
	if (breakers_known != NULL &&
		(serial != realm_get()->serial ||
		 hash_get_num_entries(breakers_known) >= BREAKER_MAX_REMEMBERED))
	{
		hash_destroy(breakers_known);
		breakers_known = NULL;
	}
	if (breakers_known == NULL)
	{
		HASHCTL		control = {0};

		serial = realm_get()->serial;
		control.keysize = sizeof(known->name);
		control.entrysize = sizeof(BreakerKnown);
		control.hcxt = TopMemoryContext;
		breakers_known = hash_create("idempotency breakers", 16, &control,
									 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}

	memcpy(key, name, len);
	known = hash_search(breakers_known, key, HASH_FIND, NULL);
	if (known == NULL)
	{
		CircuitRules rules;
		BreakerPlace *place;

		breaker_read_rules(&rules, key);
		place = breaker_find_place(key);
		known = hash_search(breakers_known, key, HASH_ENTER, NULL);
		known->rules = rules;
		known->place = place;
	}
	return known;
}

/*
 * Lock the place of a breaker.  Until breaker_leave() nothing may raise an error, or
 * take long.
 */
static Circuit *
breaker_enter(BreakerKnown *known)
{
	for (;;)
	{
		BreakerPlace *place = known->place;

		SpinLockAcquire(&place->mutex);
		if (place->database == MyDatabaseId &&
			strcmp(place->name, known->name) == 0)
			return &place->circuit;

		/* it was given back, and is free or somebody else's */
		SpinLockRelease(&place->mutex);
		known->place = breaker_find_place(known->name);
	}
}

static void
breaker_leave(BreakerKnown *known)
{
	SpinLockRelease(&known->place->mutex);
}

/* The place of a breaker; a new one if it has none. */
static BreakerPlace *
breaker_find_place(const char *name)
{
	BreakerShared *shared = breaker_shared();

	for (int attempt = 0;; attempt++)
	{
		BreakerPlace *place;

		SpinLockAcquire(&shared->directory);
		place = breaker_take_place(shared, name);
		SpinLockRelease(&shared->directory);
		if (place != NULL)
			return place;

		if (attempt > 0)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many circuit breakers"),
					 errdetail("There is memory for %d of them.",
							   BREAKER_MAX_PLACES),
					 errhint("Use idem_breaker_reset for those that are not needed any more.")));

		/* look for those of databases that are gone */
		for (int i = 0; i < BREAKER_MAX_PLACES; i++)
		{
			Oid			database = shared->slots[i].place.database;

			place = &shared->slots[i].place;
			if (SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
				continue;
			SpinLockAcquire(&shared->directory);
			SpinLockAcquire(&place->mutex);
			if (place->database == database)
				place->database = InvalidOid;
			SpinLockRelease(&place->mutex);
			SpinLockRelease(&shared->directory);
		}
	}
}

/* The caller holds the lock of the directory; NULL if there is no place left. */
static BreakerPlace *
breaker_take_place(BreakerShared *shared, const char *name)
{
	BreakerPlace *empty = NULL;

	for (int i = 0; i < BREAKER_MAX_PLACES; i++)
	{
		BreakerPlace *place = &shared->slots[i].place;

		if (place->database == MyDatabaseId && strcmp(place->name, name) == 0)
			return place;
		if (empty == NULL && place->database == InvalidOid)
			empty = place;
	}
	if (empty == NULL)
		return NULL;

	SpinLockAcquire(&empty->mutex);
	memset(&empty->circuit, 0, sizeof(empty->circuit));
	strlcpy(empty->name, name, sizeof(empty->name));
	empty->database = MyDatabaseId;
	SpinLockRelease(&empty->mutex);
	return empty;
}

/*
 * idem_breaker_states() -> setof (name text, state text, forced boolean, calls bigint,
 *								   failures bigint, slow bigint,
 *								   failing_clients int, probes int,
 *								   retry_after interval)
 *
 * The breakers of this database that have a place.  None, if there is no shared
 * memory.
 */
Datum
idem_breaker_states(PG_FUNCTION_ARGS)
{
	BreakerShared *shared = shmem_get(&breaker_part);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; shared != NULL && i < BREAKER_MAX_PLACES; i++)
	{
		BreakerPlace *place = &shared->slots[i].place;
		BreakerPlace copy;
		CircuitRules rules;
		CircuitSight sight;
		Datum		values[9];
		bool		isnull[9] = {false};

		if (place->database != MyDatabaseId)
			continue;
		SpinLockAcquire(&place->mutex);
		copy = *place;
		SpinLockRelease(&place->mutex);
		if (copy.database != MyDatabaseId)
			continue;

		breaker_read_rules(&rules, copy.name);
		circuit_see(&copy.circuit, &rules, lock_clock(), &sight);
		values[0] = CStringGetTextDatum(copy.name);
		values[1] = CStringGetTextDatum(breaker_state_names[sight.state]);
		values[2] = BoolGetDatum(sight.forced);
		values[3] = Int64GetDatum(sight.counts.calls);
		values[4] = Int64GetDatum(sight.counts.failures);
		values[5] = Int64GetDatum(sight.counts.slow);
		values[6] = Int32GetDatum(sight.failing_clients);
		values[7] = Int32GetDatum(sight.probes);
		isnull[8] = sight.open_for == 0;
		values[8] = isnull[8] ? (Datum) 0 : breaker_interval(sight.open_for);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 *						Configuration
 * ----------------------------------------------------------------
 */

/*
 * idem_breaker_configure(name text, failure_rate float8, minimum_calls int,
 *						  window_length interval, open_for interval,
 *						  half_open_probes int, slow_call interval,
 *						  slow_rate float8, quorum int) -> void
 *
 * Configures a breaker, as a whole.
 *
 *	failure_rate		opens at so many percent of failures, above 0 up to 100
 *	minimum_calls		but not before so many calls
 *	window_length		which count for so long; at least 10 ms
 *	open_for			allows no calls for so long
 *	half_open_probes	and then so many to try, up to 32
 *	slow_call			what takes longer is slow; NULL: nothing is
 *	slow_rate			opens at so many percent of slow calls, above 0 up to 100
 *	quorum				clients that must have seen failures or slow calls, up to 16
 *
 * Counts for others from the commit on.  Takes SHARE ROW EXCLUSIVE on idem_breaker:
 * waits for another one that configures.
 *
 * Raises 22004, 22023, 22008, 54000 (bad arguments), 25006.
 */
Datum
idem_breaker_configure(PG_FUNCTION_ARGS)
{
	const text *name;
	Relation	rel;
	StoreRow	row;

	args_may_write("idem_breaker_configure()");
	record_open(true);
	name = breaker_name_argument(fcinfo);
	breaker_check_rate(fcinfo, 1, "failure_rate");
	breaker_check_number(fcinfo, 2, "minimum_calls", PG_INT32_MAX);
	breaker_check_span(fcinfo, 3, "window_length");
	breaker_check_span(fcinfo, 4, "open_for");
	breaker_check_number(fcinfo, 5, "half_open_probes", CIRCUIT_MAX_PROBES);
	if (!PG_ARGISNULL(6))
		breaker_check_span(fcinfo, 6, "slow_call");
	breaker_check_rate(fcinfo, 7, "slow_rate");
	breaker_check_number(fcinfo, 8, "quorum", CIRCUIT_MAX_CLIENTS);

	rel = breaker_table(ShareRowExclusiveLock);
	store_new_row(rel, &breaker_shape, &row);
	for (int i = 0; i < (int) lengthof(breaker_columns); i++)
	{
		row.isnull[i] = PG_ARGISNULL(i);
		if (!PG_ARGISNULL(i))
			row.values[i] = PG_GETARG_DATUM(i);
	}

	store_put(rel, &row, breaker_begin_scan(rel, text_to_cstring(name)));
	table_close(rel, NoLock);
	PG_RETURN_VOID();
}

static void
breaker_check_rate(FunctionCallInfo fcinfo, int arg, const char *name)
{
	double		rate = PG_ARGISNULL(arg) ? 0 : PG_GETARG_FLOAT8(arg);

	if (!(rate > 0 && rate <= 100))
		ereport(ERROR,
				(errcode(PG_ARGISNULL(arg) ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a percentage above 0", name),
				 errhint("Use a number up to 100.")));
}

static void
breaker_check_number(FunctionCallInfo fcinfo, int arg, const char *name,
					 int max)
{
	if (PG_ARGISNULL(arg) ||
		PG_GETARG_INT32(arg) < 1 || PG_GETARG_INT32(arg) > max)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(arg) ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a number from 1 to %d", name, max),
				 errhint("Leave the argument out for the default.")));
}

/* Long enough to be cut into tenths, short enough for sums of times. */
static void
breaker_check_span(FunctionCallInfo fcinfo, int arg, const char *name)
{
	int64		usecs = backoff_usecs(name, PG_ARGISNULL(arg) ? NULL :
									  PG_GETARG_INTERVAL_P(arg));

	if (usecs < 10 * INT64CONST(1000) || usecs > 365 * USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be from 10 milliseconds to 365 days", name),
				 errhint("Use an interval such as '30 seconds'.")));
}

/* What the table says, or the defaults. */
static void
breaker_read_rules(CircuitRules *rules, const char *name)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	record_open(false);
	rel = breaker_table(AccessShareLock);
	*rules = breaker_defaults;
	scan = breaker_begin_scan(rel, name);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[lengthof(breaker_columns)];
		bool		isnull[lengthof(breaker_columns)];

		for (int i = 0; i < (int) lengthof(breaker_columns); i++)
			values[i] = heap_getattr(tuple, i + 1, RelationGetDescr(rel),
									 &isnull[i]);
		rules->failure_rate = DatumGetFloat8(values[Anum_failure_rate - 1]);
		rules->minimum_calls = DatumGetInt32(values[Anum_minimum_calls - 1]);
		rules->window_length =
			backoff_usecs("window_length",
						  DatumGetIntervalP(values[Anum_window_length - 1]));
		rules->open_for =
			backoff_usecs("open_for",
						  DatumGetIntervalP(values[Anum_open_for - 1]));
		rules->half_open_probes = DatumGetInt32(values[Anum_half_open_probes - 1]);
		rules->slow_call = isnull[Anum_slow_call - 1] ? PG_INT64_MAX :
			backoff_usecs("slow_call",
						  DatumGetIntervalP(values[Anum_slow_call - 1]));
		rules->slow_rate = DatumGetFloat8(values[Anum_slow_rate - 1]);
		rules->quorum = DatumGetInt32(values[Anum_quorum - 1]);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
}

/* Open the table, and lock it to the end of the (sub)transaction. */
static Relation
breaker_table(LOCKMODE mode)
{
	static uint64 checked = 0;

	return store_open(realm_get()->breaker_table, mode, &breaker_shape, &checked);
}

/* SnapshotSelf: what is committed, and what this transaction has done. */
static SysScanDesc
breaker_begin_scan(Relation rel, const char *name)
{
	const bool	index_ok = true;
	ScanKeyData scan_key;

	ScanKeyEntryInitialize(&scan_key, 0, Anum_name, BTEqualStrategyNumber,
						   TEXTOID, C_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(name));
	return systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
							  index_ok, SnapshotSelf, 1, &scan_key);
}
