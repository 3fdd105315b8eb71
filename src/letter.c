/*-------------------------------------------------------------------------
 *
 * letter.c
 *	  Dead letters: messages that have used up their attempts; and what can be
 *	  done with them.
 *
 * They are kept in a table of their own, idem_dead_letter, which this room alone
 * touches: those who look for work never meet them.
 *
 * Rows are inserted and deleted, never updated.  Decisions go by SnapshotSelf, and
 * what somebody else is about to move is left to him.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "counter.h"
#include "history.h"
#include "key.h"
#include "letter.h"
#include "lock.h"
#include "realm.h"
#include "record.h"
#include "store.h"
#include "wake.h"

/* Columns of idem_dead_letter, as letter.sql creates them. */
enum
{
	Anum_id = 1,
	Anum_enqueued_at,
	Anum_died_at,
	Anum_expires_at,
	Anum_attempt,
	Anum_owner,
	Anum_max_attempts,
	Anum_priority,
	Anum_queue,
	Anum_message_group,
	Anum_key,
	Anum_headers,
	Anum_payload,
	Anum_history
};

static const StoreColumn letter_columns[] =
{
	{"id", INT8OID, true},
	{"enqueued_at", TIMESTAMPTZOID, true},
	{"died_at", TIMESTAMPTZOID, true},
	{"expires_at", TIMESTAMPTZOID, true},
	{"attempt", INT4OID, true},
	{"owner", REGROLEOID, true},
	{"max_attempts", INT4OID, true},
	{"priority", INT2OID, true},
	{"queue", TEXTOID, true},
	{"message_group", TEXTOID, false},
	{"key", TEXTOID, false},
	{"headers", JSONBOID, false},
	{"payload", JSONBOID, true},
	{"history", JSONBOID, false}
};

static const AttrNumber letter_key[] = {Anum_id};

static const StoreShape letter_shape =
{
	letter_columns, lengthof(letter_columns),
	letter_key, lengthof(letter_key), "id"
};

static const AttrNumber letter_queue_index[] = {Anum_owner, Anum_queue, Anum_id};

PG_FUNCTION_INFO_V1(idem_redrive);
PG_FUNCTION_INFO_V1(idem_purge);

static Relation letter_table(void);
static void letter_read(Relation rel, HeapTuple tuple, Message *message);
static SysScanDesc letter_begin_scan(Relation rel, const Queue *queue);
static int64 letter_limit(FunctionCallInfo fcinfo, int arg);
static int64 letter_redrive_found(Relation rel, SysScanDesc scan,
								  const Queue *queue, int64 max_messages);
static int64 letter_purge_messages(const Queue *queue, int64 max_messages);
static int64 letter_purge(const Queue *queue, int64 max_messages);

/* Open the table, and lock it to the end of the (sub)transaction. */
static Relation
letter_table(void)
{
	static uint64 checked = 0;

	return store_open(realm_get()->letter_table, RowExclusiveLock, &letter_shape, &checked);
}

/* ----------------------------------------------------------------
 *						Rows
 * ----------------------------------------------------------------
 */

/* A message has died; the caller deletes it from its queue. */
void
letter_write(const Message *message, const Queue *queue, TimestampTz died_at)
{
	const MessageState *state = &message->state;
	Relation	rel = letter_table();
	StoreRow	row;

	store_new_row(rel, &letter_shape, &row);
	row.values[Anum_id - 1] = Int64GetDatum(state->id);
	row.values[Anum_enqueued_at - 1] = TimestampTzGetDatum(state->enqueued_at);
	row.values[Anum_died_at - 1] = TimestampTzGetDatum(died_at);
	row.values[Anum_expires_at - 1] =
		TimestampTzGetDatum(queue_letter_expiry(queue, died_at));
	row.values[Anum_attempt - 1] = Int32GetDatum(state->attempt);
	row.values[Anum_owner - 1] = ObjectIdGetDatum(state->owner);
	row.values[Anum_max_attempts - 1] = Int32GetDatum(state->max_attempts);
	row.values[Anum_priority - 1] = Int16GetDatum(state->priority);
	row.values[Anum_queue - 1] = PointerGetDatum(message->queue);
	row.values[Anum_message_group - 1] = PointerGetDatum(message->group);
	row.isnull[Anum_message_group - 1] = message->group == NULL;
	row.values[Anum_key - 1] = PointerGetDatum(message->key);
	row.isnull[Anum_key - 1] = message->key == NULL;
	row.values[Anum_headers - 1] = PointerGetDatum(message->headers);
	row.isnull[Anum_headers - 1] = message->headers == NULL;
	row.values[Anum_payload - 1] = PointerGetDatum(message->payload);
	row.values[Anum_history - 1] = PointerGetDatum(message->history);
	row.isnull[Anum_history - 1] = message->history == NULL;
	store_insert(rel, &row, 1, NULL);
	table_close(rel, NoLock);
	counter_add(COUNTER_DEAD, 1);
}

/* As a message that nobody has taken yet. */
static void
letter_read(Relation rel, HeapTuple tuple, Message *message)
{
	int			natts = RelationGetDescr(rel)->natts;	/* dropped ones, too */
	Datum	   *values = palloc(natts * sizeof(Datum));
	bool	   *isnull = palloc(natts * sizeof(bool));
	MessageState *state = &message->state;

	heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);
	memset(message, 0, sizeof(*message));
	state->id = DatumGetInt64(values[Anum_id - 1]);
	state->enqueued_at = DatumGetTimestampTz(values[Anum_enqueued_at - 1]);
	state->lease_until = DT_NOBEGIN;
	state->attempt = DatumGetInt32(values[Anum_attempt - 1]);
	state->owner = DatumGetObjectId(values[Anum_owner - 1]);
	state->max_attempts = DatumGetInt32(values[Anum_max_attempts - 1]);
	state->priority = DatumGetInt16(values[Anum_priority - 1]);
	message->queue = DatumGetTextPCopy(values[Anum_queue - 1]);
	if (!isnull[Anum_message_group - 1])
		message->group = DatumGetTextPCopy(values[Anum_message_group - 1]);
	if (!isnull[Anum_key - 1])
		message->key = DatumGetTextPCopy(values[Anum_key - 1]);
	if (!isnull[Anum_headers - 1])
		message->headers = DatumGetJsonbPCopy(values[Anum_headers - 1]);
	message->payload = DatumGetJsonbPCopy(values[Anum_payload - 1]);
	if (!isnull[Anum_history - 1])
		message->history = DatumGetJsonbPCopy(values[Anum_history - 1]);
}

/* The dead letters of a queue, the oldest messages first. */
static SysScanDesc
letter_begin_scan(Relation rel, const Queue *queue)
{
	const bool	index_ok = true;
	ScanKeyData scan_keys[2];
	Oid			index = store_find_index(rel, letter_queue_index,
										 lengthof(letter_queue_index));

	/* in the order of the index */
	ScanKeyInit(&scan_keys[0], Anum_owner, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(queue->owner));
	ScanKeyEntryInitialize(&scan_keys[1], 0, Anum_queue, BTEqualStrategyNumber,
						   TEXTOID, C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(queue->name));
	return systable_beginscan(rel, index, index_ok, SnapshotSelf,
							  lengthof(scan_keys), scan_keys);
}

/* Remove up to max_rows dead letters whose time has come; as record_expire(). */
int64
letter_expire(int64 max_rows)
{
	const bool	wait = false;
	const TimestampTz now = GetCurrentTimestamp();
	Relation	rel = letter_table();
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	bool		anybodys = has_privs_of_role(GetUserId(), rel->rd_rel->relowner);
	int64		removed = 0;

	while (removed < max_rows &&
		   table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		StoreVersion version = {slot->tts_tid};
		bool		isnull;

		CHECK_FOR_INTERRUPTS();

		if (DatumGetTimestampTz(slot_getattr(slot, Anum_expires_at, &isnull)) > now)
			continue;
		if (!anybodys &&
			DatumGetObjectId(slot_getattr(slot, Anum_owner, &isnull)) != GetUserId())
			continue;
		if (store_delete(rel, &version, wait) == STORE_OK)
			removed++;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	if (removed > 0)
		CommandCounterIncrement();
	return removed;
}

/* ----------------------------------------------------------------
 *						Redrive
 * ----------------------------------------------------------------
 */

/* NULL is no limit. */
static int64
letter_limit(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		return PG_INT64_MAX;
	if (PG_GETARG_INT32(arg) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_messages must be greater than zero"),
				 errhint("Use null for no limit.")));
	return PG_GETARG_INT32(arg);
}

/*
 * idem_redrive(queue text, ids bigint[], max_messages int, owner text) -> bigint
 *
 * Puts dead letters back into their queue, due at once, and returns how many.  A
 * message keeps its id, its key and the key that it shows to others; its attempts
 * are counted anew; it goes to the end of its group, and its history says who has
 * redriven it, and when.
 *
 *	queue			as for idem_enqueue
 *	ids				of the messages; those that are no dead letters of the queue are
 *					passed by; NULL for all, the oldest first
 *	max_messages	no more than so many; NULL for no limit
 *	owner			as for idem_enqueue
 *
 * Passes by what another transaction is moving.  Takes the locks of the groups, as
 * idem_enqueue does.
 *
 * Raises 22004, 22023, 2202E, 54000 (bad arguments), 42501 (not shared), 42704 (no
 * such role), 25006.
 */
Datum
idem_redrive(PG_FUNCTION_ARGS)
{
	const bool	index_ok = true;
	Queue		queue;
	ArgsArray	ids;
	int64		max_messages;
	int64		redriven = 0;
	Relation	rel;
	SysScanDesc scan;

	args_may_write("idem_redrive()");
	record_open(true);
	queue_argument(&queue, fcinfo, 0, 3);
	max_messages = letter_limit(fcinfo, 2);
	rel = letter_table();

	if (PG_ARGISNULL(1))
	{
		scan = letter_begin_scan(rel, &queue);
		redriven = letter_redrive_found(rel, scan, &queue, max_messages);
		systable_endscan(scan);
	}
	else
	{
		args_array(&ids, PG_GETARG_DATUM(1), "ids", INT8OID);
		for (int i = 0; i < ids.n && redriven < max_messages; i++)
		{
			ScanKeyData scan_key;

			if (ids.isnull[i])
				continue;
			ScanKeyInit(&scan_key, Anum_id, BTEqualStrategyNumber, F_INT8EQ,
						ids.values[i]);
			scan = systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
									  index_ok, SnapshotSelf, 1, &scan_key);
			redriven += letter_redrive_found(rel, scan, &queue, 1);
			systable_endscan(scan);
		}
	}
	table_close(rel, NoLock);
	PG_RETURN_INT64(redriven);
}

/* What a scan finds of a queue, up to so many. */
static int64
letter_redrive_found(Relation rel, SysScanDesc scan, const Queue *queue,
					 int64 max_messages)
{
	const bool	wait = false;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "idempotency redrive",
												  ALLOCSET_DEFAULT_SIZES);
	int64		redriven = 0;
	HeapTuple	tuple;

	while (redriven < max_messages &&
		   HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		StoreVersion version = {tuple->t_self};
		Message		message;
		int32		attempts;

		CHECK_FOR_INTERRUPTS();

		MemoryContextSwitchTo(context);
		letter_read(rel, tuple, &message);
		if (message.state.owner == queue->owner &&
			queue_is_named(queue, message.queue) &&
			store_delete(rel, &version, wait) == STORE_OK)
		{
			attempts = message.state.attempt;
			message.state.attempt = 0;
			message.state.queue_hash = queue->hash;
			message.state.due_at = GetCurrentTimestamp();
			message.state.place = message.state.id;
			if (message.group != NULL)
			{
				queue_lock_group(queue, message.group);
				message.state.place = message_new_id();
			}
			message.history = history_redriven(message.history, attempts,
											   message.state.due_at, GetUserId());
			message_insert(&message, 1);
			redriven++;
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
	counter_add(COUNTER_REDRIVEN, redriven);
	if (redriven > 0)
		wake_at_commit(queue);
	return redriven;
}

/* ----------------------------------------------------------------
 *						Purge
 * ----------------------------------------------------------------
 */

/*
 * idem_purge(queue text, dead_letters boolean, max_messages int, owner text)
 *		-> bigint
 *
 * Throws away the messages of a queue that no consumer has, delayed ones and those
 * to be retried included, or its dead letters; returns how many.  The keys under
 * which they were enqueued stay: idem_forget.
 *
 * Arguments, locks and errors as for idem_redrive.
 */
Datum
idem_purge(PG_FUNCTION_ARGS)
{
	Queue		queue;
	int64		max_messages;
	bool		dead_letters;

	args_may_write("idem_purge()");
	record_open(true);
	queue_argument(&queue, fcinfo, 0, 3);
	dead_letters = args_flag(fcinfo, 1, "dead_letters",
							 "Use true for the dead letters, and false for the messages.");
	max_messages = letter_limit(fcinfo, 2);

	PG_RETURN_INT64(dead_letters ? letter_purge(&queue, max_messages) :
					letter_purge_messages(&queue, max_messages));
}

static int64
letter_purge_messages(const Queue *queue, int64 max_messages)
{
	const TimestampTz now = GetCurrentTimestamp();
	MessageScan *scan = message_begin_scan(queue);
	MessagePlace place;
	int64		purged = 0;

	message_seek(scan, PG_INT16_MIN);
	while (purged < max_messages && message_next_place(scan, &place))
	{
		const MessageState *state;

		CHECK_FOR_INTERRUPTS();

		state = message_at(scan);
		if (state != NULL && state->lease_until <= now &&
			message_try_delete_at(scan))
			purged++;
	}
	message_end_scan(scan);
	CommandCounterIncrement();
	return purged;
}

static int64
letter_purge(const Queue *queue, int64 max_messages)
{
	const bool	wait = false;
	Relation	rel = letter_table();
	SysScanDesc scan = letter_begin_scan(rel, queue);
	HeapTuple	tuple;
	int64		purged = 0;

	while (purged < max_messages &&
		   HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		StoreVersion version = {tuple->t_self};

		CHECK_FOR_INTERRUPTS();

		if (store_delete(rel, &version, wait) == STORE_OK)
			purged++;
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return purged;
}
