/*-------------------------------------------------------------------------
 *
 * record.c
 *	  The managed table, idem_key: the only room that touches it.
 *
 * The table is read and written in the way of the catalogs, without the
 * executor: two to three times cheaper than SPI with kept plans.  The price is
 * that nothing of SQL happens by itself: no defaults, CHECKs, triggers,
 * privileges, row security.  So every column is filled and checked here,
 * privileges come from GetUserId() being part of every key, and
 * record_check_shape() refuses a table that does not look as we created it.
 *
 * Locks.  record_open() locks the table for the rest of the (sub)transaction,
 * under CurTransactionResourceOwner like the key locks (see lock.c); the other
 * functions rely on it and open the table without locking.  Nobody can
 * drop, rewrite or alter it while a claim is remembered, except the very
 * transaction that holds it, which is why a version that was remembered is
 * looked up again before it is written.  Indexes are looked up in the open relation
 * each time: REINDEX CONCURRENTLY gives them new OIDs under our lock.
 *
 * Snapshots.  A claim must know the truth of now, not of its snapshot, so
 * record_look() uses SnapshotDirty and sees uncommitted rows as well.  Under
 * REPEATABLE READ and SERIALIZABLE it compares with the transaction snapshot
 * in the same scan, see there.  No MVCC scan is made on behalf of a claim:
 * predicate locks on whole index pages would make SERIALIZABLE transactions on
 * unrelated keys fail.
 *
 * Concurrent writers.  A fresh row is protected by the primary key.  Rows that
 * exist may be touched by others (expiry, idem_forget, an administrator), so
 * they are locked, updated and deleted through table_tuple_*() with every
 * TM_Result handled.
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
#include "access/multixact.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "realm.h"
#include "record.h"

/* Columns of idem_key, as record.sql creates them. */
enum
{
	Anum_expires_at = 1,
	Anum_claimed_at,
	Anum_finished_at,
	Anum_owner,
	Anum_scope,
	Anum_key,
	Anum_fingerprint,
	Anum_response,
	Anum_state,
	Anum_attempt,
	Anum_token,
	Anum_lease_until,
	Anum_retry_at,
	Anum_ttl,
	Anum_takeover,
	Anum_holder,
	Natts_idem_key = Anum_holder
};

static const struct
{
	const char *name;
	Oid			type;
	bool		not_null;
}			record_columns[Natts_idem_key] =
{
	{"expires_at", TIMESTAMPTZOID, true},
	{"claimed_at", TIMESTAMPTZOID, true},
	{"finished_at", TIMESTAMPTZOID, false},
	{"owner", REGROLEOID, true},
	{"scope", TEXTOID, true},
	{"key", TEXTOID, true},
	{"fingerprint", BYTEAOID, false},
	{"response", JSONBOID, false},
	{"state", CHAROID, true},
	{"attempt", INT4OID, false},
	{"token", INT8OID, false},
	{"lease_until", TIMESTAMPTZOID, false},
	{"retry_at", TIMESTAMPTZOID, false},
	{"ttl", INTERVALOID, false},
	{"takeover", CHAROID, false},
	{"holder", TEXTOID, false}
};

/* A record in the form that the table and its indexes take. */
typedef struct RecordRow
{
	Datum	   *values;
	bool	   *isnull;
	HeapTuple	tuple;
} RecordRow;

/* Why index entries are made. */
typedef enum RecordWrite
{
	RECORD_INSERT,
	RECORD_SPECULATIVE,			/* a duplicate is no error */
	RECORD_UPDATE
} RecordWrite;

/* Where record_expire() goes on: see there. */
static BlockNumber record_hand = InvalidBlockNumber;

static void record_check_shape(Relation rel);
static void record_check_index(Relation rel, Oid index_oid);
pg_noreturn static void record_refuse_shape(Relation rel, const char *detail);
static SysScanDesc record_begin_scan(Relation rel, Snapshot snapshot,
									 const IdemKey *key);
static void record_decode(Relation rel, HeapTuple tuple, const IdemKey *key,
						  IdemRecord *record);
static bool record_text_is(Datum datum, const char *data, int len);
static void record_decode_lease(const Datum *values, const bool *isnull,
								IdemLease *lease);
static void record_encode_lease(const IdemLease *lease,
								Datum *values, bool *isnull);
static void record_encode(Relation rel, const IdemKey *key,
						  const IdemRecord *record, RecordRow *row);
static bool record_insert_index_entries(Relation rel, const RecordRow *row,
										ItemPointer tid, RecordWrite write);
static TransactionId record_locker_among(MultiXactId multi, uint16 infomask);
static TM_Result record_delete_version(Relation rel, ItemPointer tid,
									   bool wait);
static IdemRecordResult record_result(TM_Result result);
static bool record_lease_keeps(const IdemLease *lease, TimestampTz now);
static bool record_slot_is_kept(TupleTableSlot *slot, TimestampTz now);
static int64 record_expire_range(Relation rel, BlockNumber start,
								 BlockNumber nblocks, Oid owner,
								 int64 max_rows);

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
		record_check_shape(rel);
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

/*
 * A superuser can alter the table.  What we would misread or, worse, write
 * wrongly is refused; what does no harm (storage parameters, statistics
 * targets, a plain index more) is not our business.
 */
static void
record_check_shape(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *indexes;
	ListCell   *lc;

	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		rel->rd_tableam != GetHeapamTableAmRoutine())
		record_refuse_shape(rel, "It is not an ordinary heap table.");
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		record_refuse_shape(rel, "It is not logged: a crash would empty it, and all work be done again.");
	for (int i = 0; i < Max(desc->natts, Natts_idem_key); i++)
	{
		Form_pg_attribute att;

		/* a column that was added must have been dropped again */
		if (i >= Natts_idem_key)
		{
			if (!TupleDescAttr(desc, i)->attisdropped)
				record_refuse_shape(rel, psprintf("Column \"%s\" was added.",
												  NameStr(TupleDescAttr(desc, i)->attname)));
			continue;
		}

		att = i < desc->natts ? TupleDescAttr(desc, i) : NULL;
		if (att == NULL || att->attisdropped ||
			att->atttypid != record_columns[i].type ||
			(att->atttypid == TEXTOID && att->attcollation != C_COLLATION_OID) ||
			att->attnotnull != record_columns[i].not_null ||
			strcmp(NameStr(att->attname), record_columns[i].name) != 0)
			record_refuse_shape(rel, psprintf("Column \"%s\" was altered.",
											  record_columns[i].name));
	}

	if (!OidIsValid(RelationGetPrimaryKeyIndex(rel, false)))
		record_refuse_shape(rel, "It has no valid primary key.");
	indexes = RelationGetIndexList(rel);
	foreach(lc, indexes)
		record_check_index(rel, lfirst_oid(lc));
	list_free(indexes);
}

/*
 * Indexes are maintained without the executor, which sets limits to them: plain
 * columns, all rows, entries for every version that is not heap-only.  A unique
 * index on anything else than the key would refuse rows for reasons that no
 * retry can mend; one on the key is what REINDEX CONCURRENTLY makes for a while.
 */
static void
record_check_index(Relation rel, Oid index_oid)
{
	static const AttrNumber key_columns[] = {Anum_key, Anum_scope, Anum_owner};
	Relation	index = index_open(index_oid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		on_key;

	on_key = form->indnkeyatts == lengthof(key_columns);
	for (int i = 0; on_key && i < (int) lengthof(key_columns); i++)
		on_key = form->indkey.values[i] == key_columns[i];

	if (form->indisprimary && !on_key)
		record_refuse_shape(rel, "Its primary key is not (key, scope, owner).");
	if (index->rd_rel->relam != BTREE_AM_OID ||
		!form->indimmediate ||
		form->indisexclusion ||
		(form->indisunique && !on_key) ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		record_refuse_shape(rel, psprintf("Index \"%s\" is not a plain b-tree: it is unique, partial, deferrable, on expressions, or of another access method.",
										  RelationGetRelationName(index)));
	index_close(index, AccessShareLock);
}

static void
record_refuse_shape(Relation rel, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is not as extension \"%s\" created it",
					RelationGetRelationName(rel), "idempotency"),
			 errdetail_internal("%s", detail),
			 errhint("Undo the change, or use ALTER EXTENSION idempotency UPDATE if the library is newer than the extension.")));
}

/* ----------------------------------------------------------------
 *						Reading
 * ----------------------------------------------------------------
 */

/*
 * Look at a key on behalf of a claim: what is true now?
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
record_look(const IdemKey *key, IdemLook *look)
{
	const bool	one_snapshot = IsolationUsesXactSnapshot();
	Snapshot	xact_snapshot = one_snapshot ? GetTransactionSnapshot() : NULL;
	SnapshotData dirty;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	look->found = false;
	look->changed = false;
	look->rival = InvalidTransactionId;

	InitDirtySnapshot(dirty);
	rel = table_open(key->table, NoLock);

	/*
	 * With one snapshot for the transaction go through all versions, so as to
	 * judge each by both snapshots.
	 */
	scan = record_begin_scan(rel, one_snapshot ? SnapshotAny : &dirty, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TransactionId xmin = HeapTupleHeaderGetXmin(tuple->t_data);
		bool		current = true;
		bool		committed;

		/* systable_getnext() has just set the fields of "dirty" otherwise */
		if (one_snapshot)
			current = table_tuple_satisfies_snapshot(rel, scan->slot, &dirty);
		committed = current && !TransactionIdIsValid(dirty.xmin);

		if (one_snapshot)
		{
			bool		visible;

			visible = table_tuple_satisfies_snapshot(rel, scan->slot,
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
			record_decode(rel, tuple, key, &look->record);
		}
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
}

/*
 * Look at a key whose record is expected to be there, not to miss it by the
 * race above.
 */
void
record_look_twice(const IdemKey *key, IdemLook *look)
{
	record_look(key, look);
	if (!look->found)
		record_look(key, look);
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
	Relation	rel = table_open(key->table, NoLock);
	SysScanDesc scan = record_begin_scan(rel, GetActiveSnapshot(), key);
	HeapTuple	tuple = systable_getnext(scan);
	bool		found = HeapTupleIsValid(tuple);

	if (found)
		record_decode(rel, tuple, key, record);
	systable_endscan(scan);
	table_close(rel, NoLock);
	return found;
}

static SysScanDesc
record_begin_scan(Relation rel, Snapshot snapshot, const IdemKey *key)
{
	const bool	index_ok = true;
	ScanKeyData scan_keys[3];

	/* in the order of the index */
	ScanKeyInit(&scan_keys[0], Anum_key, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(cstring_to_text_with_len(key->key,
														 key->key_len)));
	ScanKeyInit(&scan_keys[1], Anum_scope, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(cstring_to_text_with_len(key->scope,
														 key->scope_len)));
	ScanKeyInit(&scan_keys[2], Anum_owner, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(key->owner));
	return systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
							  index_ok, snapshot,
							  lengthof(scan_keys), scan_keys);
}

/*
 * The row that the index led to, as a record.  It must be the row that was asked
 * for: with a corrupted index it might be another role's.
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
		!record_text_is(values[Anum_key - 1], key->key, key->key_len))
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("primary key index of table \"%s\" leads to the wrong row",
						RelationGetRelationName(rel)),
				 errhint("Please REINDEX it.")));

	record->version.tid = tuple->t_self;
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

	record->fingerprint.given = !isnull[Anum_fingerprint - 1];
	if (record->fingerprint.given)
	{
		bytea	   *digest = DatumGetByteaPP(values[Anum_fingerprint - 1]);

		if (VARSIZE_ANY_EXHDR(digest) != IDEM_FINGERPRINT_LEN)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("fingerprint in table \"%s\" has %d bytes instead of %d",
							RelationGetRelationName(rel),
							(int) VARSIZE_ANY_EXHDR(digest),
							IDEM_FINGERPRINT_LEN)));
		memcpy(record->fingerprint.digest, VARDATA_ANY(digest),
			   IDEM_FINGERPRINT_LEN);
	}

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
			  RecordRow *row)
{
	int			natts = RelationGetDescr(rel)->natts;	/* dropped ones, too */
	Datum	   *values = palloc0(natts * sizeof(Datum));
	bool	   *isnull = palloc0(natts * sizeof(bool));

	memset(isnull + Natts_idem_key, true, natts - Natts_idem_key);
	values[Anum_expires_at - 1] = TimestampTzGetDatum(record->expires_at);
	values[Anum_claimed_at - 1] = TimestampTzGetDatum(record->claimed_at);
	isnull[Anum_finished_at - 1] = record->state == IDEM_IN_PROGRESS;
	values[Anum_finished_at - 1] = TimestampTzGetDatum(record->finished_at);
	values[Anum_state - 1] = CharGetDatum(record->state);
	isnull[Anum_attempt - 1] = record->attempt == 1;
	values[Anum_attempt - 1] = Int32GetDatum(record->attempt);
	isnull[Anum_retry_at - 1] = record->state != IDEM_RETRY;
	values[Anum_retry_at - 1] = TimestampTzGetDatum(record->retry_at);
	record_encode_lease(&record->lease, values, isnull);
	values[Anum_owner - 1] = ObjectIdGetDatum(key->owner);
	values[Anum_scope - 1] =
		PointerGetDatum(cstring_to_text_with_len(key->scope, key->scope_len));
	values[Anum_key - 1] =
		PointerGetDatum(cstring_to_text_with_len(key->key, key->key_len));

	isnull[Anum_fingerprint - 1] = !record->fingerprint.given;
	if (record->fingerprint.given)
	{
		bytea	   *digest = palloc(VARHDRSZ + IDEM_FINGERPRINT_LEN);

		SET_VARSIZE(digest, VARHDRSZ + IDEM_FINGERPRINT_LEN);
		memcpy(VARDATA(digest), record->fingerprint.digest,
			   IDEM_FINGERPRINT_LEN);
		values[Anum_fingerprint - 1] = PointerGetDatum(digest);
	}

	isnull[Anum_response - 1] = record->response == NULL;
	values[Anum_response - 1] = PointerGetDatum(record->response);

	row->values = values;
	row->isnull = isnull;
	row->tuple = heap_form_tuple(RelationGetDescr(rel), values, isnull);
}

/*
 * Insert the record of a key that has none; returns its version.
 *
 * Whoever calls this holds the lock of the key and has looked, so a duplicate
 * means that somebody wrote without our lock: an administrator, a logical
 * replication worker.  The row is in the heap by then and the (sub)transaction
 * cannot be saved; *duplicate is set and 40001 raised, since a retry will find
 * that row and be answered properly.
 */
IdemVersion
record_insert(const IdemKey *key, const IdemRecord *record, bool *duplicate)
{
	Relation	rel = table_open(key->table, NoLock);
	MemoryContext context = CurrentMemoryContext;
	RecordRow	row;
	IdemVersion version;

	record_encode(rel, key, record, &row);
	PG_TRY();
	{
		simple_heap_insert(rel, row.tuple);
		(void) record_insert_index_entries(rel, &row, &row.tuple->t_self,
										   RECORD_INSERT);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() == ERRCODE_UNIQUE_VIOLATION)
		{
			*duplicate = true;
			FlushErrorState();
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access to key \"%s\"",
							key_name(key)),
					 errdetail("Another transaction wrote the record of this key without claiming it."),
					 errhint("Retry the transaction.")));
		}
		PG_RE_THROW();
	}
	PG_END_TRY();

	table_close(rel, NoLock);

	/* the rest of this command may look at it, and change it */
	CommandCounterIncrement();

	version.tid = row.tuple->t_self;
	return version;
}

/*
 * Insert the record of a key unless there is one: by speculative insertion, as
 * INSERT ... ON CONFLICT does it, so that a duplicate is an answer (false) and
 * not an error.  For rows that are written while their transaction goes on.
 */
bool
record_try_insert(const IdemKey *key, const IdemRecord *record,
				  IdemVersion *version)
{
	const int	no_options = 0;
	const bool	should_free = false;
	Relation	rel = table_open(key->table, NoLock);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsHeapTuple);
	RecordRow	row;
	uint32		token;
	bool		inserted;

	record_encode(rel, key, record, &row);
	ExecStoreHeapTuple(row.tuple, slot, should_free);
	token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	table_tuple_insert_speculative(rel, slot, GetCurrentCommandId(true),
								   no_options, NULL, token);
	inserted = record_insert_index_entries(rel, &row, &slot->tts_tid,
										   RECORD_SPECULATIVE);
	table_tuple_complete_speculative(rel, slot, token, inserted);
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());

	version->tid = slot->tts_tid;
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return inserted;
}

/*
 * Write the record over an existing version, which the caller has pinned, or
 * waiting for whoever has it locked or is changing it.
 */
IdemRecordResult
record_replace(const IdemKey *key, const IdemVersion *version,
			   const IdemRecord *record)
{
	const bool	wait = true;
	const bool	should_free = false;
	Relation	rel = table_open(key->table, NoLock);
	RecordRow	row;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsHeapTuple);
	ItemPointerData tid = version->tid;
	TU_UpdateIndexes update_indexes = TU_None;
	LockTupleMode lock_mode;
	TM_FailureData failure;
	TM_Result	result;

	record_encode(rel, key, record, &row);
	ExecStoreHeapTuple(row.tuple, slot, should_free);
	result = table_tuple_update(rel, &tid, slot, GetCurrentCommandId(true),
								InvalidSnapshot, InvalidSnapshot, wait,
								&failure, &lock_mode, &update_indexes);
	if (result == TM_Ok && update_indexes != TU_None)
		(void) record_insert_index_entries(rel, &row, &slot->tts_tid,
										   RECORD_UPDATE);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	if (result == TM_Ok)
		CommandCounterIncrement();

	return record_result(result);
}

/*
 * Keep a version from being removed, changed or pinned by anybody else until
 * the end of the (sub)transaction, by a tuple lock.  Does not wait.
 */
IdemRecordResult
record_pin(const IdemKey *key, const IdemVersion *version)
{
	const uint8 flags = 0;
	Relation	rel = table_open(key->table, NoLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData tid = version->tid;
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(rel, &tid, SnapshotAny, slot,
							  GetCurrentCommandId(true), LockTupleExclusive,
							  LockWaitSkip, flags, &failure);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	return record_result(result);
}

/*
 * A transaction that has a version locked, or InvalidTransactionId if there is
 * none any more.
 *
 * Blocking in table_tuple_lock() instead would wait several times in a row, each
 * time anew for as long as the caller wanted to wait in all.
 */
TransactionId
record_locker(const IdemKey *key, const IdemVersion *version)
{
	Relation	rel = table_open(key->table, NoLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData tid = version->tid;
	TransactionId locker = InvalidTransactionId;

	if (table_tuple_fetch_row_version(rel, &tid, SnapshotAny, slot))
	{
		BufferHeapTupleTableSlot *heap_slot = (BufferHeapTupleTableSlot *) slot;
		HeapTupleHeader header = heap_slot->base.tuple->t_data;
		TransactionId xmax;
		uint16		infomask;

		/* the two must belong together */
		LockBuffer(heap_slot->buffer, BUFFER_LOCK_SHARE);
		xmax = HeapTupleHeaderGetRawXmax(header);
		infomask = header->t_infomask;
		LockBuffer(heap_slot->buffer, BUFFER_LOCK_UNLOCK);

		if (infomask & HEAP_XMAX_INVALID)
			locker = InvalidTransactionId;
		else if (!(infomask & HEAP_XMAX_IS_MULTI))
			locker = xmax;
		else
			locker = record_locker_among(xmax, infomask);
		if (!TransactionIdIsInProgress(locker))
			locker = InvalidTransactionId;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	return locker;
}

/* Somebody else who is in progress, of those who share a lock. */
static TransactionId
record_locker_among(MultiXactId multi, uint16 infomask)
{
	const bool	from_pgupgrade = HEAP_LOCKED_UPGRADED(infomask);
	const bool	only_lock = HEAP_XMAX_IS_LOCKED_ONLY(infomask);
	MultiXactMember *members;
	int			nmembers = GetMultiXactIdMembers(multi, &members,
												 from_pgupgrade, only_lock);

	for (int i = 0; i < nmembers; i++)
		if (!TransactionIdIsCurrentTransactionId(members[i].xid) &&
			TransactionIdIsInProgress(members[i].xid))
			return members[i].xid;
	return InvalidTransactionId;
}

static TM_Result
record_delete_version(Relation rel, ItemPointer tid, bool wait)
{
	const bool	changing_part = false;
	TM_FailureData failure;

	return table_tuple_delete(rel, tid, GetCurrentCommandId(true),
							  InvalidSnapshot, InvalidSnapshot, wait,
							  &failure, changing_part);
}

/* Delete one version, waiting for whoever has it locked. */
IdemRecordResult
record_delete(const IdemKey *key, const IdemVersion *version)
{
	const bool	wait = true;
	Relation	rel = table_open(key->table, NoLock);
	ItemPointerData tid = version->tid;
	TM_Result	result = record_delete_version(rel, &tid, wait);

	table_close(rel, NoLock);
	if (result == TM_Ok)
		CommandCounterIncrement();

	return record_result(result);
}

static IdemRecordResult
record_result(TM_Result result)
{
	switch (result)
	{
		case TM_Ok:
			return IDEM_RECORD_OK;
		case TM_BeingModified:
		case TM_WouldBlock:
			return IDEM_RECORD_BUSY;
		case TM_SelfModified:
		case TM_Updated:
		case TM_Deleted:
			return IDEM_RECORD_CHANGED;
		case TM_Invisible:
			break;
	}
	elog(ERROR, "unexpected result of a tuple operation: %d", (int) result);
	pg_unreachable();
}

/*
 * The index entries of a new row, or of an updated one whose new version is not
 * heap-only.  record_check_index() has made sure that all indexes are on plain
 * columns and cover every row.  False if a speculative row is a duplicate.
 */
static bool
record_insert_index_entries(Relation rel, const RecordRow *row,
							ItemPointer tid, RecordWrite write)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	bool		unique = true;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);
		IndexUniqueCheck check = UNIQUE_CHECK_NO;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		for (int i = 0; i < info->ii_NumIndexAttrs; i++)
		{
			AttrNumber	attnum = info->ii_IndexAttrNumbers[i];

			values[i] = row->values[attnum - 1];
			isnull[i] = row->isnull[attnum - 1];
		}
		if (index->rd_index->indisunique)
			check = write == RECORD_SPECULATIVE ?
				UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_YES;
		if (info->ii_ReadyForInserts &&
			!index_insert(index, values, isnull, tid, rel, check,
						  write == RECORD_UPDATE, info) &&
			check == UNIQUE_CHECK_PARTIAL)
			unique = false;
		index_close(index, RowExclusiveLock);
	}
	list_free(indexes);
	return unique;
}

/* ----------------------------------------------------------------
 *						Waiting
 * ----------------------------------------------------------------
 */

static void
record_acquire_xact(void *arg)
{
	XactLockTableWait(*(TransactionId *) arg, NULL, NULL, XLTW_None);
}

/* Wait for the end of a transaction.  False if time ran out. */
bool
record_wait_for_xact(TransactionId rival, const IdemWait *wait)
{
	return lock_wait_for(wait, record_acquire_xact, &rival);
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
	Oid			owner = GetUserId();
	BlockNumber start;
	int64		removed = 0;

	if (has_privs_of_role(owner, rel->rd_rel->relowner))
		owner = InvalidOid;		/* anybody's */

	if (nblocks > 0)
	{
		start = record_hand == InvalidBlockNumber ?
			(BlockNumber) MyProcPid : record_hand;
		start %= nblocks;

		removed = record_expire_range(rel, start, nblocks - start,
									  owner, max_rows);
		if (removed < max_rows)
			removed += record_expire_range(rel, 0, start,
										   owner, max_rows - removed);
	}

	table_close(rel, NoLock);
	if (removed > 0)
		CommandCounterIncrement();
	return removed;
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
 * SnapshotSelf, because an MVCC snapshot would leave a predicate lock on the
 * whole table under SERIALIZABLE.
 */
static int64
record_expire_range(Relation rel, BlockNumber start, BlockNumber nblocks,
					Oid owner, int64 max_rows)
{
	const bool	allow_strategy = true;
	const bool	allow_sync = false;
	const bool	wait = false;
	const TimestampTz now = GetCurrentTimestamp();
	TableScanDesc scan;
	TupleTableSlot *slot;
	int64		removed = 0;

	if (nblocks == 0)
		return 0;

	slot = table_slot_create(rel, NULL);
	scan = table_beginscan_strat(rel, SnapshotSelf, 0, NULL,
								 allow_strategy, allow_sync);
	heap_setscanlimits(scan, start, nblocks);
	while (removed < max_rows &&
		   table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		TimestampTz expires_at;

		CHECK_FOR_INTERRUPTS();

		record_hand = ItemPointerGetBlockNumber(&slot->tts_tid);
		expires_at = DatumGetTimestampTz(slot_getattr(slot, Anum_expires_at,
													  &isnull));
		if (expires_at > now)
			continue;
		if (OidIsValid(owner) &&
			owner != DatumGetObjectId(slot_getattr(slot, Anum_owner, &isnull)))
			continue;
		if (record_slot_is_kept(slot, now))
			continue;
		if (record_delete_version(rel, &slot->tts_tid, wait) == TM_Ok)
			removed++;
	}
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
		text	   *value;

		CHECK_FOR_INTERRUPTS();

		if (DatumGetChar(slot_getattr(slot, Anum_state, &isnull)) != IDEM_IN_PROGRESS)
			continue;

		key.table = RelationGetRelid(rel);
		key.owner = DatumGetObjectId(slot_getattr(slot, Anum_owner, &isnull));
		key.hash = 0;
		value = DatumGetTextPP(slot_getattr(slot, Anum_scope, &isnull));
		key.scope = VARDATA_ANY(value);
		key.scope_len = VARSIZE_ANY_EXHDR(value);
		value = DatumGetTextPP(slot_getattr(slot, Anum_key, &isnull));
		key.key = VARDATA_ANY(value);
		key.key_len = VARSIZE_ANY_EXHDR(value);
		record_decode(rel, ((HeapTupleTableSlot *) slot)->tuple, &key, &record);
		visit(&key, &record, arg);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}
