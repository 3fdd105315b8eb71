/*-------------------------------------------------------------------------
 *
 * message.c
 *	  The table of messages, idem_message: the only room that touches it.
 *
 * A row is written three times at the most in the life of a message that goes
 * well: by the enqueue, by the lease, and by the acknowledgement, which deletes
 * it.  The lease changes columns that are in no index, and finds room on the page
 * of the row, so that it is a heap-only update: the index entries of a message
 * are made once.
 *
 * Messages are taken by the truth of now: SnapshotDirty shows what is committed
 * and what this transaction did, and tells of others who are at it.  Those are
 * passed by.  With one snapshot for the transaction (REPEATABLE READ,
 * SERIALIZABLE) messages that it does not show are passed by, too: whoever takes
 * one must be able to see what its producer has written with it.
 *
 * The fixed-width columns are never null and come first, so they lie in a tuple
 * as MessageState lays them out, and can be read and changed in place.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/instrument.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "message.h"
#include "realm.h"
#include "store.h"

/* Columns of idem_message, as message.sql creates them. */
enum
{
	Anum_id = 1,
	Anum_place,
	Anum_queue_hash,
	Anum_enqueued_at,
	Anum_due_at,
	Anum_lease_until,
	Anum_token,
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

static const StoreColumn message_columns[] =
{
	{"id", INT8OID, true},
	{"place", INT8OID, true},
	{"queue_hash", INT8OID, true},
	{"enqueued_at", TIMESTAMPTZOID, true},
	{"due_at", TIMESTAMPTZOID, true},
	{"lease_until", TIMESTAMPTZOID, true},
	{"token", INT8OID, true},
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

static const AttrNumber message_key[] = {Anum_id};

static const StoreShape message_shape =
{
	message_columns, lengthof(message_columns),
	message_key, lengthof(message_key), "id"
};

/* The index of what is due, and its columns that are no constants in a scan. */
static const AttrNumber message_due_index[] =
{Anum_queue_hash, Anum_owner, Anum_priority, Anum_due_at, Anum_id};

#define DUE_INDEX_PRIORITY	3
#define DUE_INDEX_DUE_AT	4

/* The index of groups. */
static const AttrNumber message_group_index[] =
{Anum_owner, Anum_queue, Anum_message_group, Anum_place};

/* What is in a tuple in the form of MessageState: up to its last column. */
#define MESSAGE_STATE_SIZE	(offsetof(MessageState, priority) + sizeof(int16))

struct MessageScan
{
	Relation	rel;
	const Queue *queue;
	bool		one_snapshot;	/* pass by what the transaction does not see */
	SnapshotData dirty;
	Relation	due_index;
	IndexScanDesc due;
	TupleTableSlot *slot;
	int64		pages;			/* of the index that were visited */
	Relation	group_index;	/* NULL until it is needed */
	Snapshot	snapshot;		/* of the time when it was opened */
	IndexScanDesc group;
	TupleTableSlot *group_slot;
};

static Relation message_table(void);
static void message_form(Relation rel, const Message *message, StoreRow *row);
static void message_decode(Relation rel, HeapTuple tuple, Message *message);
static void message_rescan(MessageScan *scan, StrategyNumber strategy,
						   int16 priority, TimestampTz due_at);
static HeapTuple message_slot_tuple(TupleTableSlot *slot);
static const text *message_slot_queue(TupleTableSlot *slot);

/* Open the table, and lock it to the end of the (sub)transaction. */
static Relation
message_table(void)
{
	static uint64 checked = 0;

	StaticAssertStmt(offsetof(MessageState, priority) == 68,
					 "MessageState is laid out as the columns are");

	return store_open(realm_get()->message_table, RowExclusiveLock, &message_shape, &checked);
}

/* ----------------------------------------------------------------
 *						One message
 * ----------------------------------------------------------------
 */

int64
message_new_id(void)
{
	const bool	check_permissions = false;

	return nextval_internal(realm_get()->message_sequence, check_permissions);
}

void
message_insert(Message *messages, int n)
{
	Relation	rel = message_table();
	StoreRow   *rows = palloc(n * sizeof(StoreRow));

	for (int i = 0; i < n; i++)
		message_form(rel, &messages[i], &rows[i]);
	store_insert(rel, rows, n, NULL);
	table_close(rel, NoLock);
}

/*
 * The current version of a message: committed, or of this transaction.  Somebody
 * may be changing it right now.  What it says stays as it is stored, compressed or
 * out of line: good enough to be written again.
 *
 * Looks twice, not to miss it if it is moved to another page meanwhile: whoever
 * extends a lease may do so beside whoever ends it.
 */
bool
message_find(int64 id, Message *message)
{
	const bool	index_ok = true;
	Relation	rel = message_table();
	bool		found = false;
	ScanKeyData scan_key;

	ScanKeyInit(&scan_key, Anum_id, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(id));
	for (int look = 0; look < 2 && !found; look++)
	{
		SnapshotData dirty;
		SysScanDesc scan;
		HeapTuple	tuple;

		InitDirtySnapshot(dirty);
		scan = systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
								  index_ok, &dirty, 1, &scan_key);
		while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			if (TransactionIdIsValid(dirty.xmin))
				continue;
			message_decode(rel, heap_copytuple(tuple), message);
			found = true;
		}
		systable_endscan(scan);
	}
	table_close(rel, NoLock);
	return found;
}

/*
 * Write a message over the version that was read, all of it, or delete it.  False
 * if that is not the current version any more, or, without waiting for him, if
 * somebody is changing it.
 */
bool
message_replace(const Message *message, bool wait)
{
	Relation	rel = message_table();
	StoreRow	row;
	bool		done;

	message_form(rel, message, &row);
	done = store_replace(rel, &row, &message->version, wait) == STORE_OK;
	table_close(rel, NoLock);
	return done;
}

/* The same if nothing has changed but its state, and not its place in an index. */
bool
message_replace_state(const Message *message, bool wait)
{
	Relation	rel = message_table();
	StoreRow	row = {NULL, NULL, message->tuple};
	bool		done;

	memcpy(GETSTRUCT(row.tuple), &message->state, MESSAGE_STATE_SIZE);
	done = store_replace(rel, &row, &message->version, wait) == STORE_OK;
	table_close(rel, NoLock);
	return done;
}

bool
message_delete(const Message *message, bool wait)
{
	Relation	rel = message_table();
	bool		done = store_delete(rel, &message->version, wait) == STORE_OK;

	table_close(rel, NoLock);
	return done;
}

static void
message_form(Relation rel, const Message *message, StoreRow *row)
{
	const MessageState *state = &message->state;
	Datum	   *values;
	bool	   *isnull;

	store_new_row(rel, &message_shape, row);
	values = row->values;
	isnull = row->isnull;
	values[Anum_id - 1] = Int64GetDatum(state->id);
	values[Anum_place - 1] = Int64GetDatum(state->place);
	values[Anum_queue_hash - 1] = Int64GetDatum(state->queue_hash);
	values[Anum_enqueued_at - 1] = TimestampTzGetDatum(state->enqueued_at);
	values[Anum_due_at - 1] = TimestampTzGetDatum(state->due_at);
	values[Anum_lease_until - 1] = TimestampTzGetDatum(state->lease_until);
	values[Anum_token - 1] = Int64GetDatum(state->token);
	values[Anum_attempt - 1] = Int32GetDatum(state->attempt);
	values[Anum_owner - 1] = ObjectIdGetDatum(state->owner);
	values[Anum_max_attempts - 1] = Int32GetDatum(state->max_attempts);
	values[Anum_priority - 1] = Int16GetDatum(state->priority);
	values[Anum_queue - 1] = PointerGetDatum(message->queue);
	values[Anum_message_group - 1] = PointerGetDatum(message->group);
	isnull[Anum_message_group - 1] = message->group == NULL;
	values[Anum_key - 1] = PointerGetDatum(message->key);
	isnull[Anum_key - 1] = message->key == NULL;
	values[Anum_headers - 1] = PointerGetDatum(message->headers);
	isnull[Anum_headers - 1] = message->headers == NULL;
	values[Anum_payload - 1] = PointerGetDatum(message->payload);
	values[Anum_history - 1] = PointerGetDatum(message->history);
	isnull[Anum_history - 1] = message->history == NULL;
}

/* The parts of a tuple, which stays where it is. */
static void
message_decode(Relation rel, HeapTuple tuple, Message *message)
{
	int			natts = RelationGetDescr(rel)->natts;	/* dropped ones, too */
	Datum	   *values = palloc(natts * sizeof(Datum));
	bool	   *isnull = palloc(natts * sizeof(bool));

	heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);
	message->version.tid = tuple->t_self;
	message->tuple = tuple;
	memcpy(&message->state, GETSTRUCT(tuple), MESSAGE_STATE_SIZE);
	message->queue = DatumGetTextPP(values[Anum_queue - 1]);
	message->group = isnull[Anum_message_group - 1] ? NULL :
		DatumGetTextPP(values[Anum_message_group - 1]);
	message->key = isnull[Anum_key - 1] ? NULL :
		(text *) DatumGetPointer(values[Anum_key - 1]);
	message->headers = isnull[Anum_headers - 1] ? NULL :
		(Jsonb *) DatumGetPointer(values[Anum_headers - 1]);
	message->payload = (Jsonb *) DatumGetPointer(values[Anum_payload - 1]);
	message->history = isnull[Anum_history - 1] ? NULL :
		(Jsonb *) DatumGetPointer(values[Anum_history - 1]);
	pfree(values);
	pfree(isnull);
}

/* ----------------------------------------------------------------
 *						Along a queue
 * ----------------------------------------------------------------
 */

/*
 * A walk along the messages of a queue, in the order in which they are to be
 * taken.  It begins with a seek, and goes by the index alone: the places of
 * messages that are gone are met, too.
 */
MessageScan *
message_begin_scan(const Queue *queue)
{
	const int	nkeys = 4;
	const int	no_order = 0;
	MessageScan *scan = palloc0(sizeof(MessageScan));

	scan->rel = message_table();
	scan->queue = queue;
	scan->one_snapshot = IsolationUsesXactSnapshot();
	InitDirtySnapshot(scan->dirty);
	scan->due_index =
		store_open_index(store_find_index(scan->rel, message_due_index,
										  lengthof(message_due_index)));
	scan->due = index_beginscan(scan->rel, scan->due_index, &scan->dirty, NULL,
								nkeys, no_order);
	scan->due->xs_want_itup = true;
	scan->slot = table_slot_create(scan->rel, NULL);
	return scan;
}

void
message_end_scan(MessageScan *scan)
{
	index_endscan(scan->due);
	ExecDropSingleTupleTableSlot(scan->slot);
	index_close(scan->due_index, NoLock);
	if (scan->group_index != NULL)
	{
		index_endscan(scan->group);
		ExecDropSingleTupleTableSlot(scan->group_slot);
		UnregisterSnapshot(scan->snapshot);
		index_close(scan->group_index, NoLock);
	}
	table_close(scan->rel, NoLock);
	pfree(scan);
}

/* From the first place of this priority, or of a later one, to the end. */
void
message_seek(MessageScan *scan, int32 priority)
{
	if (priority > PG_INT16_MAX)
		message_rescan(scan, BTGreaterStrategyNumber, PG_INT16_MAX, DT_NOBEGIN);
	else
		message_rescan(scan, BTGreaterEqualStrategyNumber, priority, DT_NOBEGIN);
}

/* From a time on, within one priority. */
void
message_seek_due(MessageScan *scan, int16 priority, TimestampTz due_at)
{
	message_rescan(scan, BTEqualStrategyNumber, priority, due_at);
}

static void
message_rescan(MessageScan *scan, StrategyNumber strategy, int16 priority,
			   TimestampTz due_at)
{
	ScanKeyData keys[4];
	RegProcedure compare = F_INT2EQ;

	if (strategy == BTGreaterStrategyNumber)
		compare = F_INT2GT;
	else if (strategy == BTGreaterEqualStrategyNumber)
		compare = F_INT2GE;

	/* in the order of the index */
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(scan->queue->hash));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(scan->queue->owner));
	ScanKeyInit(&keys[2], DUE_INDEX_PRIORITY, strategy, compare,
				Int16GetDatum(priority));
	ScanKeyInit(&keys[3], DUE_INDEX_DUE_AT, BTGreaterEqualStrategyNumber,
				F_TIMESTAMPTZ_GE, TimestampTzGetDatum(due_at));
	index_rescan(scan->due, keys, lengthof(keys), NULL, 0);
}

/* How many pages of the index the scan has visited, whatever it found there. */
int64
message_pages(const MessageScan *scan)
{
	return scan->pages;
}

/* The next place; false at the end. */
bool
message_next_place(MessageScan *scan, MessagePlace *place)
{
	IndexScanDesc due = scan->due;
	const BufferUsage *usage = &pgBufferUsage;
	int64		before = usage->shared_blks_hit + usage->shared_blks_read;
	bool		found = index_getnext_tid(due, ForwardScanDirection) != NULL;
	bool		isnull;

	scan->pages += usage->shared_blks_hit + usage->shared_blks_read - before;
	if (!found)
		return false;

	place->priority =
		DatumGetInt16(index_getattr(due->xs_itup, DUE_INDEX_PRIORITY,
									due->xs_itupdesc, &isnull));
	place->due_at =
		DatumGetTimestampTz(index_getattr(due->xs_itup, DUE_INDEX_DUE_AT,
										  due->xs_itupdesc, &isnull));
	return true;
}

/*
 * What is at the place that the scan has come to; NULL if there is nothing that
 * this transaction could take.  The result, and that of message_group(), are valid
 * until the scan goes on.
 */
const MessageState *
message_at(MessageScan *scan)
{
	ExecClearTuple(scan->slot);
	if (!index_fetch_heap(scan->due, scan->slot))
		return NULL;
	if (TransactionIdIsValid(scan->dirty.xmin) ||
		TransactionIdIsValid(scan->dirty.xmax))
		return NULL;
	if (!queue_is_named(scan->queue, message_slot_queue(scan->slot)))
		return NULL;			/* another one with the same hash */
	if (scan->one_snapshot)
	{
		HeapTuple	tuple = message_slot_tuple(scan->slot);

		if (!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) &&
			!table_tuple_satisfies_snapshot(scan->rel, scan->slot,
											GetTransactionSnapshot()))
			return NULL;
	}
	return (const MessageState *) GETSTRUCT(message_slot_tuple(scan->slot));
}

static const text *
message_slot_queue(TupleTableSlot *slot)
{
	bool		isnull;

	return DatumGetTextPP(slot_getattr(slot, Anum_queue, &isnull));
}

/* The group of that message; NULL for none. */
const text *
message_group(MessageScan *scan)
{
	bool		isnull;
	Datum		group = slot_getattr(scan->slot, Anum_message_group, &isnull);

	return isnull ? NULL : DatumGetTextPP(group);
}

/* All of it, in the caller's memory, ready to be given away. */
void
message_read(MessageScan *scan, Message *message)
{
	message_decode(scan->rel, heap_copytuple(message_slot_tuple(scan->slot)),
				   message);
	if (message->key != NULL)
		message->key = DatumGetTextPP(PointerGetDatum(message->key));
	if (message->headers != NULL)
		message->headers = DatumGetJsonbP(JsonbPGetDatum(message->headers));
	message->payload = DatumGetJsonbP(JsonbPGetDatum(message->payload));
}

/*
 * Give the message that the scan has come to another state, with the same place in
 * the indexes.  Waits for nobody: false if somebody else has it, or has had it.
 */
bool
message_try_lease(MessageScan *scan, const MessageState *state)
{
	const bool	wait = false;
	HeapTuple	read = message_slot_tuple(scan->slot);
	StoreVersion version = {read->t_self};
	StoreRow	row = {NULL, NULL, heap_copytuple(read)};
	bool		done;

	memcpy(GETSTRUCT(row.tuple), state, MESSAGE_STATE_SIZE);
	done = store_replace(scan->rel, &row, &version, wait) == STORE_OK;
	heap_freetuple(row.tuple);
	return done;
}

/* Delete that message; false if somebody else has it. */
bool
message_try_delete_at(MessageScan *scan)
{
	const bool	wait = false;
	StoreVersion version = {scan->slot->tts_tid};

	return store_delete(scan->rel, &version, wait) == STORE_OK;
}

static HeapTuple
message_slot_tuple(TupleTableSlot *slot)
{
	const bool	materialize = false;
	bool		should_free;

	return ExecFetchSlotHeapTuple(slot, materialize, &should_free);
}

/*
 * Is this the place of the first message of a group?
 *
 * By a snapshot of the time when it is first asked for: SnapshotDirty may miss a row
 * that is moved to another page between the visits to index and heap, and the one
 * behind it would be taken for the first.  What has gone since is seen nevertheless,
 * and what has come since stands behind the others, see enqueue.c.
 */
bool
message_is_first(MessageScan *scan, const text *group, int64 place)
{
	const int	nkeys = 3;
	const int	no_order = 0;
	ScanKeyData keys[3];
	bool		first = false;

	if (scan->group_index == NULL)
	{
		scan->group_index =
			store_open_index(store_find_index(scan->rel, message_group_index,
											  lengthof(message_group_index)));
		scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
		scan->group = index_beginscan(scan->rel, scan->group_index,
									  scan->snapshot, NULL, nkeys, no_order);
		scan->group_slot = table_slot_create(scan->rel, NULL);
	}

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(scan->queue->owner));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, TEXTOID,
						   C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(scan->queue->name));
	ScanKeyEntryInitialize(&keys[2], 0, 3, BTEqualStrategyNumber, TEXTOID,
						   C_COLLATION_OID, F_TEXTEQ, PointerGetDatum(group));
	index_rescan(scan->group, keys, lengthof(keys), NULL, 0);
	if (index_getnext_slot(scan->group, ForwardScanDirection, scan->group_slot))
	{
		HeapTuple	tuple = message_slot_tuple(scan->group_slot);

		first = ((const MessageState *) GETSTRUCT(tuple))->place == place;
	}
	ExecClearTuple(scan->group_slot);
	return first;
}
