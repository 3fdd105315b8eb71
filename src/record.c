/*-------------------------------------------------------------------------
 *
 * record.c
 *	  The managed table, idem_key: the only room that touches it.
 *
 * Rows are read and written through store.c, without the executor.  Privileges
 * come from GetUserId() being part of every key.
 *
 * Locks.  record_open() locks the table for the rest of the (sub)transaction,
 * under CurTransactionResourceOwner like the key locks (see lock.c); the other
 * functions rely on it and open the table without locking; those who may write
 * lock its indexes as long (store.c).  Nobody can
 * drop, rewrite or alter it while a claim is remembered, except the very
 * transaction that holds it, which is why a version that was remembered is
 * looked up again before it is written.
 *
 * Snapshots.  A claim must know the truth of now, not of its snapshot, so
 * record_look() uses SnapshotDirty and sees uncommitted rows as well.  Under
 * REPEATABLE READ and SERIALIZABLE it compares with the transaction snapshot
 * in the same scan, see there.  No MVCC scan is made on behalf of a claim:
 * predicate locks on whole index pages would make SERIALIZABLE transactions on
 * unrelated keys fail.
 *
 * Steps (memo.c) belong to one life of a key, its generation: they go with the
 * row that carries it, whoever replaces or removes that row.
 *
 * Responses and other values that are returned are copied, detoasted, into
 * the caller's memory context before the buffer is let go.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "memo.h"
#include "realm.h"
#include "record.h"
#include "store.h"

/* Columns of idem_key, as record.sql creates them. */
enum
{
	Anum_expires_at = 1,
	Anum_claimed_at,
	Anum_finished_at,
	Anum_id,
	Anum_owner,
	Anum_scope,
	Anum_key,
	Anum_fingerprint,
	Anum_response,
	Anum_state,
	Anum_attempt,
	Anum_token,
	Anum_generation,
	Anum_lease_until,
	Anum_retry_at,
	Anum_ttl,
	Anum_takeover,
	Anum_holder
};

static const StoreColumn record_columns[] =
{
	{"expires_at", TIMESTAMPTZOID, true},
	{"claimed_at", TIMESTAMPTZOID, true},
	{"finished_at", TIMESTAMPTZOID, false},
	{"id", UUIDOID, true},
	{"owner", REGROLEOID, true},
	{"scope", TEXTOID, true},
	{"key", TEXTOID, false},
	{"fingerprint", BYTEAOID, false},
	{"response", JSONBOID, false},
	{"state", CHAROID, true},
	{"attempt", INT4OID, false},
	{"token", INT8OID, false},
	{"generation", INT8OID, false},
	{"lease_until", TIMESTAMPTZOID, false},
	{"retry_at", TIMESTAMPTZOID, false},
	{"ttl", INTERVALOID, false},
	{"takeover", CHAROID, false},
	{"holder", TEXTOID, false}
};

static const AttrNumber record_key[] = {Anum_id, Anum_owner};

static const StoreShape record_shape =
{
	record_columns, lengthof(record_columns),
	record_key, lengthof(record_key), "id, owner"
};

/* An index scan over the primary key. */
struct RecordScan
{
	MemoryContext context;
	Relation	rel;
	Relation	index;
	LOCKMODE	lock;			/* of the index, to be released with the scan */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData keys[lengthof(record_key)];
};

/* Where record_expire() goes on: see there. */
static BlockNumber record_hand = InvalidBlockNumber;

static void record_seek(RecordScan *scan, const IdemKey *key,
						Snapshot snapshot);
static HeapTuple record_next(RecordScan *scan);
static void record_decode(Relation rel, HeapTuple tuple, const IdemKey *key,
						  IdemRecord *record);
static bool record_id_is(Datum datum, const IdemKey *key);
static bool record_text_is(Datum datum, const char *data, int len);
static void record_decode_lease(const Datum *values, const bool *isnull,
								IdemLease *lease);
static void record_encode_lease(const IdemLease *lease,
								Datum *values, bool *isnull);
static void record_encode(Relation rel, const IdemKey *key,
						  const IdemRecord *record, StoreRow *row);
static Oid	record_expire_whose(Relation rel);
static bool record_lease_keeps(const IdemLease *lease, TimestampTz now);
static bool record_slot_is_kept(TupleTableSlot *slot, TimestampTz now);
static int64 record_expire_range(Relation rel, BlockNumber start,
								 BlockNumber nblocks, Oid owner,
								 int64 max_rows, BlockNumber max_changed);

/* ----------------------------------------------------------------
 *						Opening
 * ----------------------------------------------------------------
 */

/*
 * Find the table, lock it until the end of the (sub)transaction and make sure
 * that it is what we expect.  To be called first by every SQL function, before
 * it makes a key.
 *
 * What realm.c remembers is a hint.  Once the lock is held and the table
 * turns out to exist, it stays true.
 */
void
record_open(bool for_writing)
{
	static uint64 checked = 0;	/* serial of the realm whose table was checked */
	static LocalTransactionId locked_by = InvalidLocalTransactionId;
	ResourceOwner saved = CurrentResourceOwner;
	Relation	rel;

	/*
	 * If this transaction has locked the table for writing outside of any
	 * savepoint, it still has, and nothing can have changed.
	 */
	if (locked_by == MyLocalTransactionId && checked == realm_get()->serial)
		return;

	CurrentResourceOwner = CurTransactionResourceOwner;
	for (;;)
	{
		Oid			table = realm_get()->key_table;

		rel = try_table_open(table,
							 for_writing ? RowExclusiveLock : AccessShareLock);
		if (rel != NULL && realm_get()->key_table == table)
			break;
		if (rel != NULL)
			table_close(rel, NoLock);
		else
			realm_forget();
	}
	if (unlikely(checked != realm_get()->serial))
	{
		store_check_shape(rel, &record_shape);
		checked = realm_get()->serial;
	}
	table_close(rel, NoLock);
	CurrentResourceOwner = saved;

	if (for_writing && GetCurrentTransactionNestLevel() == 1)
		locked_by = MyLocalTransactionId;
}

/* False once the table was dropped, by this transaction or before it. */
bool
record_table_exists(Oid table)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(table));
}

/* ----------------------------------------------------------------
 *						Reading
 * ----------------------------------------------------------------
 */

/*
 * Get ready for looks at many keys; the table is open and locked.  If rows may be
 * written afterwards, the index is locked for that already.
 */
RecordScan *
record_begin_looks(Oid table, bool for_writing)
{
	const int	no_order = 0;
	RecordScan *scan = palloc(sizeof(RecordScan));
	Oid			index;

	scan->context = CurrentMemoryContext;
	scan->rel = table_open(table, NoLock);
	index = RelationGetPrimaryKeyIndex(scan->rel, false);
	scan->lock = for_writing ? NoLock : AccessShareLock;
	scan->index = for_writing ? store_open_index(index) :
		index_open(index, scan->lock);
	scan->slot = table_slot_create(scan->rel, NULL);

	/* in the order of the index; the arguments follow with each key */
	ScanKeyInit(&scan->keys[0], 1, BTEqualStrategyNumber, F_UUID_EQ, (Datum) 0);
	ScanKeyInit(&scan->keys[1], 2, BTEqualStrategyNumber, F_OIDEQ, (Datum) 0);
	scan->scan = index_beginscan(scan->rel, scan->index, SnapshotAny, NULL,
								 lengthof(scan->keys), no_order);
	return scan;
}

void
record_end_looks(RecordScan *scan)
{
	index_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	index_close(scan->index, scan->lock);
	table_close(scan->rel, NoLock);
	pfree(scan);
}

/*
 * Start to read the versions of a key.
 *
 * What the scan needs for itself is allocated where the scan is: the callers
 * of many looks may not keep the memory of one.
 */
static void
record_seek(RecordScan *scan, const IdemKey *key, Snapshot snapshot)
{
	MemoryContext saved;

	scan->keys[0].sk_argument = UUIDPGetDatum(key_id(key));
	scan->keys[1].sk_argument = ObjectIdGetDatum(key->owner);

	saved = MemoryContextSwitchTo(scan->context);
	scan->scan->xs_snapshot = snapshot;
	index_rescan(scan->scan, scan->keys, lengthof(scan->keys), NULL, 0);
	MemoryContextSwitchTo(saved);
}

/* The next version, valid until the next call; NULL, and no page pinned, at the end. */
static HeapTuple
record_next(RecordScan *scan)
{
	const bool	materialize = false;
	MemoryContext saved = MemoryContextSwitchTo(scan->context);
	HeapTuple	tuple = NULL;
	bool		should_free;

	if (index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		tuple = ExecFetchSlotHeapTuple(scan->slot, materialize, &should_free);
	else
	{
		ExecClearTuple(scan->slot);
		index_rescan(scan->scan, NULL, lengthof(scan->keys), NULL, 0);
	}
	MemoryContextSwitchTo(saved);
	return tuple;
}

/*
 * Look at a key on behalf of a claim: what is true now?  "scan" is NULL if it is
 * the only look.
 *
 * look->found: there is a record, committed or our own.  It may be deleted or
 * updated by a transaction in progress, in which case look->rival names that
 * transaction; its record is still the one that counts.
 * look->rival without a record: another transaction has inserted one and is
 * not over.
 *
 * A race that is accepted: a non-HOT update of the row, committed between our
 * visits to the index page and to the heap, makes us miss both versions.  Only
 * rows that are not protected by the lock of the key are updated so.  The claim
 * then ends at the unique index; who has no such backstop looks twice.
 *
 * look->changed (REPEATABLE READ and SERIALIZABLE only): the current record is
 * neither our own nor visible to the transaction snapshot, or a record visible
 * to it is gone.  An answer would then contradict what the transaction reads
 * elsewhere, and SSI does not see it because our reads leave no predicate
 * locks; the caller raises 40001, as INSERT ... ON CONFLICT does.
 */
void
record_look(RecordScan *scan, const IdemKey *key, IdemLook *look)
{
	const bool	for_writing = true;
	const bool	only_look = scan == NULL;
	const bool	one_snapshot = IsolationUsesXactSnapshot();
	Snapshot	xact_snapshot = one_snapshot ? GetTransactionSnapshot() : NULL;
	SnapshotData dirty;
	HeapTuple	tuple;

	if (only_look)
		scan = record_begin_looks(key->table, for_writing);

	look->found = false;
	look->changed = false;
	look->rival = InvalidTransactionId;

	/*
	 * With one snapshot for the transaction go through all versions, so as to
	 * judge each by both snapshots.
	 */
	InitDirtySnapshot(dirty);
	record_seek(scan, key, one_snapshot ? SnapshotAny : &dirty);
	while ((tuple = record_next(scan)) != NULL)
	{
		TransactionId xmin = HeapTupleHeaderGetXmin(tuple->t_data);
		bool		current = true;
		bool		committed;

		/* record_next() has just set the fields of "dirty" otherwise */
		if (one_snapshot)
			current = table_tuple_satisfies_snapshot(scan->rel, scan->slot,
													 &dirty);
		committed = current && !TransactionIdIsValid(dirty.xmin);

		if (one_snapshot)
		{
			bool		visible;

			visible = table_tuple_satisfies_snapshot(scan->rel, scan->slot,
													 xact_snapshot);
			if (visible && !current)
				look->changed = true;
			if (committed && !visible &&
				!TransactionIdIsCurrentTransactionId(xmin))
				look->changed = true;
		}

		if (current && TransactionIdIsValid(dirty.xmin))
			look->rival = dirty.xmin;
		else if (current && TransactionIdIsValid(dirty.xmax))
			look->rival = dirty.xmax;

		if (committed)
		{
			look->found = true;
			record_decode(scan->rel, tuple, key, &look->record);
		}
	}
	if (only_look)
		record_end_looks(scan);
}

/*
 * Look at a key whose record is expected to be there, not to miss it by the
 * race above.
 */
void
record_look_twice(const IdemKey *key, IdemLook *look)
{
	record_look(NULL, key, look);
	if (!look->found)
		record_look(NULL, key, look);
}

void
record_raise_changed(const IdemKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to key \"%s\"", key_name(key)),
			 errdetail("Its record changed after the snapshot of this transaction was taken."),
			 errhint("Retry the transaction.")));
}

/*
 * Read a key as a query does: by the snapshot of the calling statement.
 */
bool
record_read(const IdemKey *key, IdemRecord *record)
{
	const bool	for_writing = false;
	RecordScan *scan = record_begin_looks(key->table, for_writing);
	HeapTuple	tuple;

	record_seek(scan, key, GetActiveSnapshot());
	tuple = record_next(scan);
	if (tuple != NULL)
		record_decode(scan->rel, tuple, key, record);
	record_end_looks(scan);
	return tuple != NULL;
}

/*
 * The row that the index led to, as a record.  It must be the row that was asked
 * for: with a corrupted index it might be another role's, and if SHA-256 were
 * broken two keys might have the same ID.
 */
static void
record_decode(Relation rel, HeapTuple tuple, const IdemKey *key,
			  IdemRecord *record)
{
	int			natts = RelationGetDescr(rel)->natts;	/* dropped ones, too */
	Datum	   *values = palloc(natts * sizeof(Datum));
	bool	   *isnull = palloc(natts * sizeof(bool));

	heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);

	if (DatumGetObjectId(values[Anum_owner - 1]) != key->owner ||
		!record_text_is(values[Anum_scope - 1], key->scope, key->scope_len) ||
		!(isnull[Anum_key - 1] ?
		  record_id_is(values[Anum_id - 1], key) :
		  record_text_is(values[Anum_key - 1], key->key, key->key_len)))
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("primary key index of table \"%s\" leads to the wrong row",
						RelationGetRelationName(rel)),
				 errhint("Please REINDEX it.")));

	record->generation = isnull[Anum_generation - 1] ? 0 :
		DatumGetInt64(values[Anum_generation - 1]);
	record->version.row.tid = tuple->t_self;
	record->version.generation = record->generation;
	record->ours =
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	record->state = (IdemState) DatumGetChar(values[Anum_state - 1]);
	record->expires_at = DatumGetTimestampTz(values[Anum_expires_at - 1]);
	record->claimed_at = DatumGetTimestampTz(values[Anum_claimed_at - 1]);
	record->finished_at = isnull[Anum_finished_at - 1] ? 0 :
		DatumGetTimestampTz(values[Anum_finished_at - 1]);
	record->attempt = isnull[Anum_attempt - 1] ? 1 :
		DatumGetInt32(values[Anum_attempt - 1]);
	record->retry_at = isnull[Anum_retry_at - 1] ? 0 :
		DatumGetTimestampTz(values[Anum_retry_at - 1]);
	record_decode_lease(values, isnull, &record->lease);

	key_read_fingerprint(&record->fingerprint, values[Anum_fingerprint - 1],
						 isnull[Anum_fingerprint - 1]);
	record->response = isnull[Anum_response - 1] ? NULL :
		DatumGetJsonbPCopy(values[Anum_response - 1]);
}

static void
record_decode_lease(const Datum *values, const bool *isnull, IdemLease *lease)
{
	memset(lease, 0, sizeof(*lease));
	if (isnull[Anum_token - 1] || isnull[Anum_lease_until - 1] ||
		isnull[Anum_takeover - 1])
		return;

	lease->token = DatumGetInt64(values[Anum_token - 1]);
	lease->until = DatumGetTimestampTz(values[Anum_lease_until - 1]);
	lease->takeover = (IdemTakeover) DatumGetChar(values[Anum_takeover - 1]);
	lease->has_ttl = !isnull[Anum_ttl - 1];
	if (lease->has_ttl)
		lease->ttl = *DatumGetIntervalP(values[Anum_ttl - 1]);
	if (!isnull[Anum_holder - 1])
		lease->holder = TextDatumGetCString(values[Anum_holder - 1]);
}

static void
record_encode_lease(const IdemLease *lease, Datum *values, bool *isnull)
{
	const bool	none = lease->token == 0;

	isnull[Anum_token - 1] = none;
	isnull[Anum_lease_until - 1] = none;
	isnull[Anum_takeover - 1] = none;
	isnull[Anum_ttl - 1] = none || !lease->has_ttl;
	isnull[Anum_holder - 1] = none || lease->holder == NULL;
	if (none)
		return;

	values[Anum_token - 1] = Int64GetDatum(lease->token);
	values[Anum_lease_until - 1] = TimestampTzGetDatum(lease->until);
	values[Anum_takeover - 1] = CharGetDatum(lease->takeover);
	values[Anum_ttl - 1] = IntervalPGetDatum(&lease->ttl);
	if (lease->holder != NULL)
		values[Anum_holder - 1] = CStringGetTextDatum(lease->holder);
}

/*
 * Does the record still count?  Past its expiry it is as good as absent, unless
 * a lease on it is live, or has run out and must be resolved by hand.
 *
 * A record in progress without a lease was written ahead of its finish and
 * cannot be committed; if there is one nevertheless, it does not count.
 */
bool
record_is_live(const IdemRecord *record, TimestampTz now)
{
	if (record->state == IDEM_IN_PROGRESS)
	{
		if (record->lease.token == 0)
			return false;
		if (record_lease_keeps(&record->lease, now))
			return true;
	}
	return record->expires_at > now;
}

/* A lease in progress that is live, or must be resolved, outlasts any expiry. */
static bool
record_lease_keeps(const IdemLease *lease, TimestampTz now)
{
	return lease->token != 0 &&
		(lease->until > now || lease->takeover == IDEM_HOLD);
}

static bool
record_id_is(Datum datum, const IdemKey *key)
{
	return key_is_id(key) &&
		memcmp(DatumGetUUIDP(datum), key_id(key), sizeof(pg_uuid_t)) == 0;
}

static bool
record_text_is(Datum datum, const char *data, int len)
{
	text	   *value = DatumGetTextPP(datum);

	return (int) VARSIZE_ANY_EXHDR(value) == len &&
		memcmp(VARDATA_ANY(value), data, len) == 0;
}

/* ----------------------------------------------------------------
 *						Writing
 * ----------------------------------------------------------------
 */

static void
record_encode(Relation rel, const IdemKey *key, const IdemRecord *record,
			  StoreRow *row)
{
	Datum	   *values;
	bool	   *isnull;

	store_new_row(rel, &record_shape, row);
	values = row->values;
	isnull = row->isnull;

	values[Anum_expires_at - 1] = TimestampTzGetDatum(record->expires_at);
	values[Anum_claimed_at - 1] = TimestampTzGetDatum(record->claimed_at);
	isnull[Anum_finished_at - 1] = record->state == IDEM_IN_PROGRESS;
	values[Anum_finished_at - 1] = TimestampTzGetDatum(record->finished_at);
	values[Anum_state - 1] = CharGetDatum(record->state);
	isnull[Anum_attempt - 1] = record->attempt == 1;
	values[Anum_attempt - 1] = Int32GetDatum(record->attempt);
	isnull[Anum_generation - 1] = record->generation == 0;
	values[Anum_generation - 1] = Int64GetDatum(record->generation);
	isnull[Anum_retry_at - 1] = record->state != IDEM_RETRY;
	values[Anum_retry_at - 1] = TimestampTzGetDatum(record->retry_at);
	record_encode_lease(&record->lease, values, isnull);
	values[Anum_id - 1] = UUIDPGetDatum(key_id(key));
	values[Anum_owner - 1] = ObjectIdGetDatum(key->owner);
	values[Anum_scope - 1] =
		PointerGetDatum(cstring_to_text_with_len(key->scope, key->scope_len));
	isnull[Anum_key - 1] = key_is_id(key);
	if (!isnull[Anum_key - 1])
		values[Anum_key - 1] =
			PointerGetDatum(cstring_to_text_with_len(key->key, key->key_len));

	key_store_fingerprint(&record->fingerprint,
						  &values[Anum_fingerprint - 1],
						  &isnull[Anum_fingerprint - 1]);
	isnull[Anum_response - 1] = record->response == NULL;
	values[Anum_response - 1] = PointerGetDatum(record->response);
}

/*
 * Insert the records of keys that have none.
 *
 * Whoever calls this holds the locks of the keys and has looked, so a duplicate
 * means that somebody wrote without our lock: an administrator, a logical
 * replication worker.  The rows are in the heap by then and the
 * (sub)transaction cannot be saved; the insert is marked and 40001 raised, since
 * a retry will find that row and be answered properly.
 */
void
record_insert(IdemInsert *inserts, int n)
{
	Relation	rel = table_open(inserts[0].key->table, NoLock);
	MemoryContext context = CurrentMemoryContext;
	StoreRow	single;
	StoreRow   *rows = n == 1 ? &single : palloc(n * sizeof(StoreRow));
	volatile int current = 0;

	for (int i = 0; i < n; i++)
		record_encode(rel, inserts[i].key, &inserts[i].record, &rows[i]);

	PG_TRY();
	{
		store_insert(rel, rows, n, &current);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() == ERRCODE_UNIQUE_VIOLATION)
		{
			*inserts[current].duplicate = true;
			FlushErrorState();
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access to key \"%s\"",
							key_name(inserts[current].key)),
					 errdetail("Another transaction wrote the record of this key without claiming it."),
					 errhint("Retry the transaction.")));
		}
		PG_RE_THROW();
	}
	PG_END_TRY();

	for (int i = 0; i < n; i++)
	{
		inserts[i].version.row.tid = rows[i].tuple->t_self;
		inserts[i].version.generation = inserts[i].record.generation;
	}
	table_close(rel, NoLock);
}

/*
 * Insert the record of a key unless there is one; false is an answer and not an
 * error.  For rows that are written while their transaction goes on.
 */
bool
record_try_insert(const IdemKey *key, const IdemRecord *record,
				  IdemVersion *version)
{
	Relation	rel = table_open(key->table, NoLock);
	StoreRow	row;
	bool		inserted;

	record_encode(rel, key, record, &row);
	inserted = store_try_insert(rel, &row, &version->row);
	version->generation = record->generation;
	table_close(rel, NoLock);
	return inserted;
}

/*
 * Write the record over an existing version, which the caller has pinned, or
 * waiting for whoever has it locked or is changing it.  If the new record begins
 * another life of the key, the steps of the old one go.
 */
StoreResult
record_replace(const IdemKey *key, const IdemVersion *version,
			   const IdemRecord *record)
{
	const bool	wait = true;
	Relation	rel = table_open(key->table, NoLock);
	StoreRow	row;
	StoreResult result;

	record_encode(rel, key, record, &row);
	result = store_replace(rel, &row, &version->row, wait);
	table_close(rel, NoLock);
	if (result == STORE_OK && version->generation != record->generation)
		memo_forget(version->generation);
	return result;
}

/*
 * Is a version that this transaction has written or pinned still the current
 * one?  If not, or if that is not known, look at the key.
 */
bool
record_is_current(const IdemKey *key, const IdemVersion *version)
{
	Relation	rel = table_open(key->table, NoLock);
	bool		current = store_is_current(rel, &version->row);

	table_close(rel, NoLock);
	return current;
}

/*
 * Keep a version from being removed, changed or pinned by anybody else until
 * the end of the (sub)transaction, by a tuple lock.  Does not wait.
 */
StoreResult
record_pin(const IdemKey *key, const IdemVersion *version)
{
	Relation	rel = table_open(key->table, NoLock);
	StoreResult result = store_pin(rel, &version->row);

	table_close(rel, NoLock);
	return result;
}

/* Who has a version locked, or InvalidTransactionId if nobody has any more. */
TransactionId
record_locker(const IdemKey *key, const IdemVersion *version)
{
	Relation	rel = table_open(key->table, NoLock);
	TransactionId locker = store_locker(rel, &version->row);

	table_close(rel, NoLock);
	return locker;
}

/* Delete one version, and its steps, waiting for whoever has it locked. */
StoreResult
record_delete(const IdemKey *key, const IdemVersion *version)
{
	const bool	wait = true;
	Relation	rel = table_open(key->table, NoLock);
	StoreResult result = store_delete(rel, &version->row, wait);

	table_close(rel, NoLock);
	if (result == STORE_OK)
	{
		CommandCounterIncrement();
		memo_forget(version->generation);
	}
	return result;
}

/* ----------------------------------------------------------------
 *						Expiry
 * ----------------------------------------------------------------
 */

/*
 * Remove up to max_rows expired records: those of the current user, or anybody's
 * for members of the table's owner.  Returns how many; fewer than max_rows
 * means that there are no more, but for those that somebody has locked.
 *
 * There is no index on expires_at, on purpose: it would have to be written by
 * every claim.  The table is swept like a clock, each call going on where the
 * last one of this backend stopped, so that repeated calls do not look at
 * the same rows again; a new backend starts somewhere.
 *
 * Rows are deleted without waiting.  A row that is locked or being changed
 * by somebody, say by a claim over it (even our own), is skipped.  What was found expired is
 * the very version that is deleted, or nothing is: the page stays pinned by
 * the scan, and the deletion checks that the version is still current.
 */
int64
record_expire(int64 max_rows)
{
	Relation	rel = table_open(realm_get()->key_table, NoLock);
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	Oid			owner = record_expire_whose(rel);
	BlockNumber start;
	int64		removed = 0;

	if (nblocks > 0)
	{
		start = record_hand == InvalidBlockNumber ?
			(BlockNumber) MyProcPid : record_hand;
		start %= nblocks;

		removed = record_expire_range(rel, start, nblocks - start,
									  owner, max_rows, nblocks);
		if (removed < max_rows)
			removed += record_expire_range(rel, 0, start,
										   owner, max_rows - removed, nblocks);
	}

	table_close(rel, NoLock);
	if (removed > 0)
		CommandCounterIncrement();
	return removed;
}

/*
 * The same in a part of the table: up to max_blocks from *hand on, of which no more
 * than max_changed are changed.  *hand goes on to where the next call is to begin; *end
 * is set if that is the end of the table, and beyond it comes the beginning.
 */
int64
record_expire_part(BlockNumber *hand, BlockNumber max_blocks,
				   BlockNumber max_changed, int64 max_rows, bool *end)
{
	Relation	rel = table_open(realm_get()->key_table, NoLock);
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	BlockNumber start = *hand < nblocks ? *hand : 0;
	int64		removed;

	max_blocks = Min(max_blocks, nblocks - start);
	removed = record_expire_range(rel, start, max_blocks,
								  record_expire_whose(rel), max_rows, max_changed);
	*hand = nblocks > 0 ? record_hand : 0;
	*end = *hand >= nblocks;

	table_close(rel, NoLock);
	if (removed > 0)
		CommandCounterIncrement();
	return removed;
}

/* Whose records the current user may remove; InvalidOid: anybody's. */
static Oid
record_expire_whose(Relation rel)
{
	if (has_privs_of_role(GetUserId(), rel->rd_rel->relowner))
		return InvalidOid;
	return GetUserId();
}

/* Is there a lease in the slot that outlasts the expiry? */
static bool
record_slot_is_kept(TupleTableSlot *slot, TimestampTz now)
{
	IdemLease	lease;

	slot_getallattrs(slot);
	if (DatumGetChar(slot->tts_values[Anum_state - 1]) != IDEM_IN_PROGRESS)
		return false;
	record_decode_lease(slot->tts_values, slot->tts_isnull, &lease);
	return record_lease_keeps(&lease, now);
}

/*
 * Leaves record_hand behind the range, or where it has stopped.
 *
 * SnapshotSelf, because an MVCC snapshot would leave a predicate lock on the
 * whole table under SERIALIZABLE.
 */
static int64
record_expire_range(Relation rel, BlockNumber start, BlockNumber nblocks,
					Oid owner, int64 max_rows, BlockNumber max_changed)
{
	const bool	allow_strategy = true;
	const bool	allow_sync = false;
	const bool	wait = false;
	const TimestampTz now = GetCurrentTimestamp();
	TableScanDesc scan;
	TupleTableSlot *slot;
	BlockNumber last_changed = InvalidBlockNumber;
	BlockNumber nchanged = 0;
	int64		removed = 0;

	record_hand = start + nblocks;
	if (nblocks == 0)
		return 0;

	slot = table_slot_create(rel, NULL);
	scan = table_beginscan_strat(rel, SnapshotSelf, 0, NULL,
								 allow_strategy, allow_sync);
	heap_setscanlimits(scan, start, nblocks);
	while (removed < max_rows &&
		   table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		BlockNumber block = ItemPointerGetBlockNumber(&slot->tts_tid);
		bool		isnull;
		TimestampTz expires_at;
		StoreVersion version;
		Datum		generation;

		CHECK_FOR_INTERRUPTS();

		expires_at = DatumGetTimestampTz(slot_getattr(slot, Anum_expires_at,
													  &isnull));
		if (expires_at > now)
			continue;
		if (OidIsValid(owner) &&
			owner != DatumGetObjectId(slot_getattr(slot, Anum_owner, &isnull)))
			continue;
		if (record_slot_is_kept(slot, now))
			continue;
		if (block != last_changed && nchanged == max_changed)
		{
			record_hand = block;
			break;
		}
		version.tid = slot->tts_tid;
		if (store_delete(rel, &version, wait) != STORE_OK)
			continue;
		removed++;
		if (block != last_changed)
			nchanged++;
		last_changed = block;
		generation = slot_getattr(slot, Anum_generation, &isnull);
		if (!isnull)
			memo_forget(DatumGetInt64(generation));
	}
	if (removed == max_rows)
		record_hand = last_changed;
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);

	return removed;
}

/* ----------------------------------------------------------------
 *						Leases
 * ----------------------------------------------------------------
 */

/*
 * Visit the records in progress that the snapshot of the statement shows, of
 * all owners.  Reads the whole table.  What is visited is valid during the
 * visit.
 */
void
record_visit_leases(void (*visit) (const IdemKey *key,
								   const IdemRecord *record, void *arg),
					void *arg)
{
	Relation	rel = table_open(realm_get()->key_table, NoLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		IdemKey		key;
		IdemRecord	record;
		Datum		datum;
		text	   *value;

		CHECK_FOR_INTERRUPTS();

		if (DatumGetChar(slot_getattr(slot, Anum_state, &isnull)) != IDEM_IN_PROGRESS)
			continue;

		key.table = RelationGetRelid(rel);
		key.owner = DatumGetObjectId(slot_getattr(slot, Anum_owner, &isnull));
		key.hash = 0;
		key.has_id = false;
		value = DatumGetTextPP(slot_getattr(slot, Anum_scope, &isnull));
		key.scope = VARDATA_ANY(value);
		key.scope_len = VARSIZE_ANY_EXHDR(value);
		datum = slot_getattr(slot, Anum_key, &isnull);
		if (isnull)
		{
			datum = slot_getattr(slot, Anum_id, &isnull);
			key.key = DatumGetCString(DirectFunctionCall1(uuid_out, datum));
			key.key_len = strlen(key.key);
		}
		else
		{
			value = DatumGetTextPP(datum);
			key.key = VARDATA_ANY(value);
			key.key_len = VARSIZE_ANY_EXHDR(value);
		}
		record_decode(rel, ((HeapTupleTableSlot *) slot)->tuple, &key, &record);
		visit(&key, &record, arg);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}
