/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  A queue: whose it is, who may use it, and how it is configured.
 *
 * A queue is what (owner, name) names.  It exists because somebody uses it; a row
 * in idem_queue, which this room alone touches, only says how it differs from the
 * settings, and with whom it is shared.
 *
 * A role uses its own queues, those of roles that it is a member of, and those
 * that are shared with it or with such a role.  Somebody else's queue is always
 * meant explicitly, by naming its owner: nobody can put a queue in the way of
 * another role's messages.
 *
 * Each backend remembers what it has read, until a relcache invalidation of the
 * table, which idem_configure_queue sends with its commit, makes it a new realm.
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
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "key.h"
#include "lock.h"
#include "queue.h"
#include "realm.h"
#include "record.h"
#include "store.h"

/* Columns of idem_queue, as queue.sql creates them. */
enum
{
	Anum_owner = 1,
	Anum_queue,
	Anum_paused,
	Anum_max_attempts,
	Anum_backoff_base,
	Anum_backoff_cap,
	Anum_jitter,
	Anum_dead_letter_ttl,
	Anum_shared_with
};

static const StoreColumn queue_columns[] =
{
	{"owner", REGROLEOID, true},
	{"queue", TEXTOID, true},
	{"paused", BOOLOID, true},
	{"max_attempts", INT4OID, false},
	{"backoff_base", INTERVALOID, false},
	{"backoff_cap", INTERVALOID, false},
	{"jitter", TEXTOID, false},
	{"dead_letter_ttl", INTERVALOID, false},
	{"shared_with", REGROLEARRAYOID, false}
};

static const AttrNumber queue_key[] = {Anum_owner, Anum_queue};

static const StoreShape queue_shape =
{
	queue_columns, lengthof(queue_columns),
	queue_key, lengthof(queue_key), "owner, queue"
};

/* No delay and no retention is longer, in microseconds. */
#define QUEUE_MAX_SPAN			(36500 * USECS_PER_DAY)

/* What is remembered of one queue; of no more than so many. */
#define QUEUE_MAX_REMEMBERED	256

typedef struct QueueName
{
	Oid			owner;
	char		name[ARGS_MAX_NAME_LEN + 1];
} QueueName;

typedef struct QueueConfig
{
	QueueName	name;			/* hash key: padded with zeros */
	bool		paused;
	bool		has_max_attempts;
	int32		max_attempts;
	int64		backoff_base;	/* 0 if not configured */
	int64		backoff_cap;	/* likewise */
	IdemJitter	jitter;
	bool		has_dead_letter_ttl;
	Interval	dead_letter_ttl;
	int			nshared;
	Oid		   *shared_with;
} QueueConfig;

static HTAB *queue_configs = NULL;
static MemoryContext queue_context = NULL;

int			queue_dead_letter_ttl = 30 * SECS_PER_DAY;

PG_FUNCTION_INFO_V1(idem_queue_hash);
PG_FUNCTION_INFO_V1(idem_configure_queue);

static int64 queue_hash(const text *name);
static Oid	queue_role(const char *name);
static const QueueConfig *queue_config(Oid owner, const text *name);
static void queue_read_config(QueueConfig *config);
static Relation queue_table(LOCKMODE mode);
static SysScanDesc queue_begin_scan(Relation rel, Snapshot snapshot, Oid owner,
									const text *name);
static int64 queue_span(const char *what, const Interval *given);
static ArrayType *queue_roles(Datum given);

/*
 * The queue that the caller means, with the rules that hold for it.  Raises 42501
 * if it is not his to use, and 42704 if there is no such owner.
 */
void
queue_argument(Queue *queue, FunctionCallInfo fcinfo, int queue_arg,
			   int owner_arg)
{
	queue_of_owner(queue, queue_name_argument(fcinfo, queue_arg, "queue"),
				   fcinfo, owner_arg);
}

/* The same by a name that is known already. */
void
queue_of_owner(Queue *queue, const text *name, FunctionCallInfo fcinfo,
			   int owner_arg)
{
	Oid			owner = GetUserId();

	/* it may have been configured anew, and all locks be held already */
	AcceptInvalidationMessages();
	if (!PG_ARGISNULL(owner_arg))
		owner = queue_role(text_to_cstring(PG_GETARG_TEXT_PP(owner_arg)));
	queue_check(owner, name);
	queue_use(queue, owner, name);
}

/* Raises 42501 if the queue is not the current user's to use. */
void
queue_check(Oid owner, const text *name)
{
	const bool	no_error = true;
	char	   *role;

	if (queue_may_use(owner, name))
		return;
	role = GetUserNameFromId(owner, no_error);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for queue \"%s\" of role \"%s\"",
					text_to_cstring(name),
					role != NULL ? role : psprintf("%u", owner)),
			 errhint("Its owner can share it: see idem_configure_queue.")));
}

/* A role by its name; one that is gone by its number, as regrole shows it. */
static Oid
queue_role(const char *name)
{
	const bool	missing_ok = true;
	Oid			role = get_role_oid(name, missing_ok);

	if (!OidIsValid(role) && name[0] != '\0' &&
		strspn(name, "0123456789") == strlen(name))
	{
		unsigned long long number = strtoull(name, NULL, 10);

		if (number > 0 && number <= OID_MAX &&
			!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum((Oid) number)))
			return (Oid) number;
	}
	return OidIsValid(role) ? role : get_role_oid(name, !missing_ok);
}

/* A queue by its names, with the rules that hold for it. */
void
queue_use(Queue *queue, Oid owner, const text *name)
{
	const QueueConfig *config = queue_config(owner, name);

	queue->owner = owner;
	queue->name = name;
	queue->hash = queue_hash(name);
	queue->paused = config->paused;
	queue->max_attempts = config->has_max_attempts ?
		config->max_attempts : backoff_max_attempts;
	queue->backoff_base = config->backoff_base > 0 ?
		config->backoff_base : backoff_setting_base();
	queue->backoff_cap = config->backoff_cap > 0 ?
		config->backoff_cap : backoff_setting_cap();
	queue->backoff_cap = Max(queue->backoff_base, queue->backoff_cap);
	queue->jitter = config->jitter;
	queue->has_dead_letter_ttl = config->has_dead_letter_ttl;
	queue->dead_letter_ttl = config->dead_letter_ttl;
}

bool
queue_is_named(const Queue *queue, const text *name)
{
	return VARSIZE_ANY_EXHDR(name) == VARSIZE_ANY_EXHDR(queue->name) &&
		memcmp(VARDATA_ANY(name), VARDATA_ANY(queue->name),
			   VARSIZE_ANY_EXHDR(name)) == 0;
}

/*
 * FNV-1a (Fowler, Noll, Vo) of the bytes of the name.  It is stored, so it may never
 * change; who makes two names with the same hash makes his own queues slower.
 */
static int64
queue_hash(const text *name)
{
	uint64		hash = UINT64CONST(0xcbf29ce484222325);

	for (int i = 0; i < (int) VARSIZE_ANY_EXHDR(name); i++)
		hash = (hash ^ (uint8) VARDATA_ANY(name)[i]) * UINT64CONST(0x100000001b3);
	return (int64) hash;
}

/*
 * idem_queue_hash(queue text) -> bigint
 *
 * What stands for the name of a queue in the index of idem_message, for those who write
 * rows there by hand; and for the constraint that keeps such rows right.
 *
 * Raises 22004, 22023, 54000 for a name that no queue can have.
 */
Datum
idem_queue_hash(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(queue_hash(queue_name_argument(fcinfo, 0, "queue")));
}

/* May the current user put messages into a queue, and take them? */
bool
queue_may_use(Oid owner, const text *name)
{
	const QueueConfig *config;

	if (has_privs_of_role(GetUserId(), owner))
		return true;
	config = queue_config(owner, name);
	for (int i = 0; i < config->nshared; i++)
		if (has_privs_of_role(GetUserId(), config->shared_with[i]))
			return true;
	return false;
}

/*
 * Whoever puts a message into a group holds this lock to the end of his
 * (sub)transaction, and numbers the message under it: the messages of a group are
 * numbered in the order in which they become visible.
 */
void
queue_lock_group(const Queue *queue, const text *group)
{
	lock_group(queue_group_hash(queue, group));
}

uint64
queue_group_hash(const Queue *queue, const text *group)
{
	return key_hash(queue->owner, queue->name, group);
}

/* The scope of the keys under which messages are enqueued once. */
text *
queue_scope(const Queue *queue)
{
	return cstring_to_text(psprintf("queue:%s", text_to_cstring(queue->name)));
}

/* Until when a message that has died is kept. */
TimestampTz
queue_letter_expiry(const Queue *queue, TimestampTz from)
{
	if (queue->has_dead_letter_ttl)
		return args_add(from, &queue->dead_letter_ttl);
	return args_later(from, queue_dead_letter_ttl * USECS_PER_SEC);
}

/* The argument as the name of a queue; "what" is what it is called. */
const text *
queue_name_argument(FunctionCallInfo fcinfo, int arg, const char *what)
{
	return args_name(fcinfo, arg, what,
					 "A queue is a name, such as 'mail'; it need not be created.");
}

/* ----------------------------------------------------------------
 *						What is remembered
 * ----------------------------------------------------------------
 */

/* The result is valid until the next call. */
static const QueueConfig *
queue_config(Oid owner, const text *name)
{
	static uint64 serial = 0;	/* of the realm that was read */
	QueueName	key;
	QueueConfig *config;

	if (serial != realm_get()->serial ||
		(queue_configs != NULL &&
		 hash_get_num_entries(queue_configs) >= QUEUE_MAX_REMEMBERED))
	{
		if (queue_context != NULL)
			MemoryContextDelete(queue_context);
		queue_context = NULL;
		queue_configs = NULL;
		serial = realm_get()->serial;
	}
	if (queue_configs == NULL)
	{
		HASHCTL		control = {0};

		queue_context = AllocSetContextCreate(TopMemoryContext,
											  "idempotency queues",
											  ALLOCSET_SMALL_SIZES);
		control.keysize = sizeof(QueueName);
		control.entrysize = sizeof(QueueConfig);
		control.hcxt = queue_context;
		queue_configs = hash_create("idempotency queues", 16, &control,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	memset(&key, 0, sizeof(key));
	key.owner = owner;
	memcpy(key.name, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	config = hash_search(queue_configs, &key, HASH_FIND, NULL);
	if (config == NULL)
	{
		QueueConfig read = {.name = key};

		queue_read_config(&read);
		config = hash_search(queue_configs, &key, HASH_ENTER, NULL);
		*config = read;
	}
	return config;
}

/* What the table says; what it leaves open stays as it is, zero. */
static void
queue_read_config(QueueConfig *config)
{
	Relation	rel = queue_table(AccessShareLock);
	const text *name = cstring_to_text(config->name.name);
	SysScanDesc scan;
	HeapTuple	tuple;

	config->jitter = IDEM_JITTER_FULL;
	scan = queue_begin_scan(rel, SnapshotSelf, config->name.owner, name);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[lengthof(queue_columns)];
		bool		isnull[lengthof(queue_columns)];

		for (int i = 0; i < (int) lengthof(queue_columns); i++)
			values[i] = heap_getattr(tuple, i + 1, RelationGetDescr(rel),
									 &isnull[i]);
		config->paused = DatumGetBool(values[Anum_paused - 1]);
		config->has_max_attempts = !isnull[Anum_max_attempts - 1];
		if (config->has_max_attempts)
			config->max_attempts = DatumGetInt32(values[Anum_max_attempts - 1]);
		if (!isnull[Anum_backoff_base - 1])
			config->backoff_base =
				backoff_usecs("backoff_base",
							  DatumGetIntervalP(values[Anum_backoff_base - 1]));
		if (!isnull[Anum_backoff_cap - 1])
			config->backoff_cap =
				backoff_usecs("backoff_cap",
							  DatumGetIntervalP(values[Anum_backoff_cap - 1]));
		if (!isnull[Anum_jitter - 1])
			config->jitter =
				backoff_jitter(TextDatumGetCString(values[Anum_jitter - 1]));
		config->has_dead_letter_ttl = !isnull[Anum_dead_letter_ttl - 1];
		if (config->has_dead_letter_ttl)
			config->dead_letter_ttl =
				*DatumGetIntervalP(values[Anum_dead_letter_ttl - 1]);
		if (!isnull[Anum_shared_with - 1])
		{
			ArgsArray	roles;

			args_array(&roles, values[Anum_shared_with - 1], "shared_with",
					   REGROLEOID);
			config->nshared = roles.n;
			config->shared_with = MemoryContextAlloc(queue_context,
													 roles.n * sizeof(Oid));
			for (int i = 0; i < roles.n; i++)
				config->shared_with[i] = DatumGetObjectId(roles.values[i]);
		}
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
}

/* Open the table, and lock it to the end of the (sub)transaction. */
static Relation
queue_table(LOCKMODE mode)
{
	static uint64 checked = 0;

	return store_open(realm_get()->queue_table, mode, &queue_shape, &checked);
}

static SysScanDesc
queue_begin_scan(Relation rel, Snapshot snapshot, Oid owner, const text *name)
{
	const bool	index_ok = true;
	ScanKeyData scan_keys[2];

	/* in the order of the index */
	ScanKeyInit(&scan_keys[0], Anum_owner, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(owner));
	ScanKeyEntryInitialize(&scan_keys[1], 0, Anum_queue, BTEqualStrategyNumber,
						   TEXTOID, C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(name));
	return systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
							  index_ok, snapshot, lengthof(scan_keys),
							  scan_keys);
}

/* ----------------------------------------------------------------
 *						Configuration
 * ----------------------------------------------------------------
 */

/*
 * idem_configure_queue(queue text, max_attempts int, backoff_base interval,
 *						backoff_cap interval, jitter text,
 *						dead_letter_ttl interval, shared_with text[],
 *						paused boolean) -> void
 *
 * Configures a queue of the current user, as a whole: what is NULL is as the
 * settings have it from now on.
 *
 *	max_attempts	after so many a message becomes a dead letter; 0: never
 *	backoff_base	the delay after the first attempt, without jitter; from 1 ms to
 *					36500 days, as all spans here
 *	backoff_cap		no delay is longer; not less than the base
 *	jitter			none, full, equal or decorrelated; NULL: full
 *	dead_letter_ttl	how long dead letters are kept
 *	shared_with		roles that may use the queue as its owner does
 *	paused			whether idem_dequeue finds nothing
 *
 * Counts for others from the commit on, for messages that are there, too.  Takes
 * SHARE ROW EXCLUSIVE on idem_queue: waits for another one that configures.
 *
 * Raises 22004, 22023, 22008, 2202E, 54000 (bad arguments), 42704 (no such role),
 * 25006.
 */
Datum
idem_configure_queue(PG_FUNCTION_ARGS)
{
	const text *name;
	Relation	rel;
	StoreRow	row;
	int64		base = backoff_setting_base();

	args_may_write("idem_configure_queue()");
	record_open(true);
	name = queue_name_argument(fcinfo, 0, "queue");
	(void) args_max_attempts(fcinfo, 1, 0);
	if (!PG_ARGISNULL(2))
		base = queue_span("backoff_base", PG_GETARG_INTERVAL_P(2));
	if (!PG_ARGISNULL(3) &&
		queue_span("backoff_cap", PG_GETARG_INTERVAL_P(3)) < base)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("backoff_cap must not be less than backoff_base"),
				 errhint("The base is the first delay, the cap the longest.")));
	if (!PG_ARGISNULL(4))
		(void) backoff_jitter(text_to_cstring(PG_GETARG_TEXT_PP(4)));
	if (!PG_ARGISNULL(5))
		(void) queue_span("dead_letter_ttl", PG_GETARG_INTERVAL_P(5));
	(void) args_flag(fcinfo, 7, "paused",
					 "Use true to stop the consumers of the queue.");

	rel = queue_table(ShareRowExclusiveLock);
	store_new_row(rel, &queue_shape, &row);
	row.values[Anum_owner - 1] = ObjectIdGetDatum(GetUserId());
	row.values[Anum_queue - 1] = PointerGetDatum(name);
	row.values[Anum_paused - 1] = PG_GETARG_DATUM(7);
	for (int i = 0; i < 5; i++)
	{
		row.isnull[Anum_max_attempts - 1 + i] = PG_ARGISNULL(1 + i);
		if (!PG_ARGISNULL(1 + i))
			row.values[Anum_max_attempts - 1 + i] = PG_GETARG_DATUM(1 + i);
	}
	row.isnull[Anum_shared_with - 1] = PG_ARGISNULL(6);
	if (!PG_ARGISNULL(6))
		row.values[Anum_shared_with - 1] =
			PointerGetDatum(queue_roles(PG_GETARG_DATUM(6)));

	store_put(rel, &row, queue_begin_scan(rel, SnapshotSelf, GetUserId(), name));
	table_close(rel, NoLock);
	PG_RETURN_VOID();
}

/* Not so long that the sum of a time and it could be out of range. */
static int64
queue_span(const char *what, const Interval *given)
{
	int64		usecs = backoff_usecs(what, given);

	if (usecs < 1000 || usecs > QUEUE_MAX_SPAN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be from 1 millisecond to 36500 days", what),
				 errhint("Use an interval such as '1 minute'.")));
	return usecs;
}

/* An array of regrole from the names of roles. */
static ArrayType *
queue_roles(Datum given)
{
	const bool	missing_ok = false;
	ArgsArray	names;
	Datum	   *roles;

	args_array(&names, given, "shared_with", TEXTOID);
	roles = palloc(names.n * sizeof(Datum));
	for (int i = 0; i < names.n; i++)
	{
		if (names.isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("shared_with must not contain nulls"),
					 errhint("Name the roles that may use the queue.")));
		roles[i] = ObjectIdGetDatum(get_role_oid(TextDatumGetCString(names.values[i]),
												 missing_ok));
	}
	return construct_array(roles, names.n, REGROLEOID, sizeof(Oid), true,
						   TYPALIGN_INT);
}
