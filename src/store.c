/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Rows of our own tables, written in the way of the catalogs.
 *
 * The tables are written without the executor: two to three times cheaper than
 * SPI with kept plans.  The price is that nothing of SQL happens by itself: no
 * defaults, CHECKs, triggers, privileges, row security.  So whoever calls fills
 * and checks every column, and store_check_shape() refuses a table that does
 * not look as we created it.
 *
 * Callers have the table open and locked.  Its indexes are looked up in the
 * open relation each time: REINDEX CONCURRENTLY gives them new OIDs under our
 * lock.
 *
 * Rows that exist may be touched by others (expiry, an administrator), so they
 * are locked, updated and deleted through table_tuple_*() with every TM_Result
 * handled.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "nodes/primnodes.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "realm.h"
#include "store.h"

/* Why index entries are made. */
typedef enum StoreWrite
{
	STORE_INSERT,
	STORE_SPECULATIVE,			/* a duplicate is no error */
	STORE_UPDATE
} StoreWrite;

/* So many rows go into one WAL record at the most; PostgreSQL fits in fewer. */
#define STORE_MAX_MULTI		256

static void store_check_index(Relation rel, const StoreShape *shape,
							  Oid index_oid);
pg_noreturn static void store_refuse_shape(Relation rel, const char *detail);
static AttrNumber store_index_wants(List *predicate);
static void store_deform_tuple(Relation rel, StoreRow *row);
static void store_insert_tuples(Relation rel, StoreRow *rows, int nrows);
static bool store_insert_index_entries(Relation rel, const StoreRow *rows,
									   int nrows, StoreWrite write,
									   volatile int *current);
static TransactionId store_locker_among(MultiXactId multi, uint16 infomask);
static StoreResult store_result(TM_Result result);

/* ----------------------------------------------------------------
 *						Shape
 * ----------------------------------------------------------------
 */

/*
 * A superuser can alter a table.  What we would misread or, worse, write
 * wrongly is refused; what does no harm (storage parameters, statistics
 * targets, a plain index more) is not our business.
 */
void
store_check_shape(Relation rel, const StoreShape *shape)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *indexes;
	ListCell   *lc;

	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		rel->rd_tableam != GetHeapamTableAmRoutine())
		store_refuse_shape(rel, "It is not an ordinary heap table.");
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		store_refuse_shape(rel, "It is not logged: a crash would empty it, and all work be done again.");
	for (int i = 0; i < Max(desc->natts, shape->ncolumns); i++)
	{
		const StoreColumn *column = &shape->columns[i];
		Form_pg_attribute att;

		/* a column that was added must have been dropped again */
		if (i >= shape->ncolumns)
		{
			if (!TupleDescAttr(desc, i)->attisdropped)
				store_refuse_shape(rel, psprintf("Column \"%s\" was added.",
												 NameStr(TupleDescAttr(desc, i)->attname)));
			continue;
		}

		att = i < desc->natts ? TupleDescAttr(desc, i) : NULL;
		if (att == NULL || att->attisdropped ||
			att->atttypid != column->type ||
			(att->atttypid == TEXTOID && att->attcollation != C_COLLATION_OID) ||
			att->attnotnull != column->not_null ||
			strcmp(NameStr(att->attname), column->name) != 0)
			store_refuse_shape(rel, psprintf("Column \"%s\" was altered.",
											 column->name));
	}

	if (!OidIsValid(RelationGetPrimaryKeyIndex(rel, false)))
		store_refuse_shape(rel, "It has no valid primary key.");
	indexes = RelationGetIndexList(rel);
	foreach(lc, indexes)
		store_check_index(rel, shape, lfirst_oid(lc));
	list_free(indexes);
}

/*
 * Open a table of ours, and lock it to the end of the (sub)transaction, whatever
 * portal we may run in: under CurTransactionResourceOwner for the reasons given in
 * lock.c.  The caller has opened idem_key before, so the installation stays what it
 * is.  *checked is the serial of the realm whose table has the shape.
 */
Relation
store_open(Oid table, LOCKMODE mode, const StoreShape *shape, uint64 *checked)
{
	const uint64 serial = realm_get()->serial;
	ResourceOwner saved = CurrentResourceOwner;
	Relation	rel;

	CurrentResourceOwner = CurTransactionResourceOwner;
	LockRelationOid(table, mode);
	CurrentResourceOwner = saved;
	rel = table_open(table, NoLock);

	if (unlikely(*checked != serial))
	{
		store_check_shape(rel, shape);
		*checked = serial;
	}
	return rel;
}

/*
 * Open an index of a table that is locked for writing, for the look before an
 * insertion as well.
 *
 * It stays locked to the end of the (sub)transaction, so that one which claims a
 * key and finishes it asks the lock manager once; under CurTransactionResourceOwner
 * for the reasons given in lock.c.
 */
Relation
store_open_index(Oid index)
{
	ResourceOwner saved = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	LockRelationOid(index, RowExclusiveLock);
	CurrentResourceOwner = saved;
	return index_open(index, NoLock);
}

/*
 * The index of a table whose columns are these, in this order.  Indexes have no
 * names to go by: REINDEX CONCURRENTLY makes another one under our lock.
 */
Oid
store_find_index(Relation rel, const AttrNumber *columns, int ncolumns)
{
	List	   *indexes = RelationGetIndexList(rel);
	Oid			found = InvalidOid;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID,
											ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index form;

		if (!HeapTupleIsValid(tuple))
			continue;
		form = (Form_pg_index) GETSTRUCT(tuple);
		if (form->indisvalid && form->indnkeyatts == ncolumns &&
			memcmp(form->indkey.values, columns,
				   ncolumns * sizeof(AttrNumber)) == 0)
			found = lfirst_oid(lc);
		ReleaseSysCache(tuple);
		if (OidIsValid(found))
			break;
	}
	list_free(indexes);
	if (!OidIsValid(found))
		store_refuse_shape(rel, "An index was dropped, or is not valid.");
	return found;
}

/*
 * The column that an index asks not to be null for a row to be in it; 0 if it has
 * all rows, and -1 if it asks for something else.
 */
static AttrNumber
store_index_wants(List *predicate)
{
	NullTest   *test;

	if (predicate == NIL)
		return 0;
	test = (NullTest *) linitial(predicate);
	if (list_length(predicate) != 1 || !IsA(test, NullTest) ||
		test->nulltesttype != IS_NOT_NULL || !IsA(test->arg, Var))
		return -1;
	return ((Var *) test->arg)->varattno;
}

/*
 * Indexes are maintained without the executor, which sets limits to them: plain
 * columns, all rows but those where a column is null, entries for every version
 * that is not heap-only.  A unique
 * index on anything else than the key would refuse rows for reasons that no
 * retry can mend; one on the key is what REINDEX CONCURRENTLY makes for a while.
 */
static void
store_check_index(Relation rel, const StoreShape *shape, Oid index_oid)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		on_key;

	on_key = form->indnkeyatts == shape->nkeys;
	for (int i = 0; on_key && i < shape->nkeys; i++)
		on_key = form->indkey.values[i] == shape->key[i];

	if (form->indisprimary && !on_key)
		store_refuse_shape(rel, psprintf("Its primary key is not (%s).",
										 shape->key_names));
	if (index->rd_rel->relam != BTREE_AM_OID ||
		!form->indimmediate ||
		form->indisexclusion ||
		(form->indisunique && !on_key) ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) ||
		store_index_wants(RelationGetIndexPredicate(index)) < 0)
		store_refuse_shape(rel, psprintf("Index \"%s\" is not a plain b-tree: it is unique, partial, deferrable, on expressions, or of another access method.",
										 RelationGetRelationName(index)));
	index_close(index, AccessShareLock);
}

static void
store_refuse_shape(Relation rel, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is not as extension \"%s\" created it",
					RelationGetRelationName(rel), "idempotency"),
			 errdetail_internal("%s", detail),
			 errhint("Undo the change, or use ALTER EXTENSION idempotency UPDATE if the library is newer than the extension.")));
}

/* ----------------------------------------------------------------
 *						Writing
 * ----------------------------------------------------------------
 */

/*
 * A row to be filled in by the caller: its values are zero, not null, but for
 * columns that were added and dropped again.
 */
void
store_new_row(Relation rel, const StoreShape *shape, StoreRow *row)
{
	int			natts = RelationGetDescr(rel)->natts;

	row->values = palloc0(natts * sizeof(Datum));
	row->isnull = palloc0(natts * sizeof(bool));
	memset(row->isnull + shape->ncolumns, true, natts - shape->ncolumns);
	row->tuple = NULL;
}

static void
store_form_tuple(Relation rel, StoreRow *row)
{
	row->tuple = heap_form_tuple(RelationGetDescr(rel),
								 row->values, row->isnull);
}

static void
store_deform_tuple(Relation rel, StoreRow *row)
{
	int			natts = RelationGetDescr(rel)->natts;

	row->values = palloc(natts * sizeof(Datum));
	row->isnull = palloc(natts * sizeof(bool));
	heap_deform_tuple(row->tuple, RelationGetDescr(rel),
					  row->values, row->isnull);
}

/*
 * Insert rows.  A duplicate raises 23505 as ever, and *current tells then which
 * row it was; pages are met best if the rows come in the order of the key
 * (that of UUIDs as text is that of their IDs).
 */
void
store_insert(Relation rel, StoreRow *rows, int nrows, volatile int *current)
{
	for (int i = 0; i < nrows; i++)
		store_form_tuple(rel, &rows[i]);
	if (nrows == 1)
		simple_heap_insert(rel, rows[0].tuple);
	else
		store_insert_tuples(rel, rows, nrows);
	(void) store_insert_index_entries(rel, rows, nrows, STORE_INSERT, current);

	/* the rest of this command may look at them, and change them */
	CommandCounterIncrement();
}

/* Many tuples at once: a WAL record a page, not one a row. */
static void
store_insert_tuples(Relation rel, StoreRow *rows, int nrows)
{
	const int	no_options = 0;
	const bool	should_free = false;
	TupleTableSlot *slots[STORE_MAX_MULTI];
	int			nslots = Min(nrows, STORE_MAX_MULTI);

	for (int i = 0; i < nslots; i++)
		slots[i] = MakeSingleTupleTableSlot(RelationGetDescr(rel),
											&TTSOpsHeapTuple);
	for (int from = 0; from < nrows; from += nslots)
	{
		int			n = Min(nrows - from, nslots);

		CHECK_FOR_INTERRUPTS();

		for (int i = 0; i < n; i++)
			ExecStoreHeapTuple(rows[from + i].tuple, slots[i], should_free);
		table_multi_insert(rel, slots, n, GetCurrentCommandId(true),
						   no_options, NULL);
		for (int i = 0; i < n; i++)
			rows[from + i].tuple->t_self = slots[i]->tts_tid;
	}
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
}

/*
 * Insert a row unless there is one with its key: by speculative insertion, as
 * INSERT ... ON CONFLICT does it, so that a duplicate is an answer (false) and
 * not an error.  For rows that are written while their transaction goes on.
 */
bool
store_try_insert(Relation rel, StoreRow *row, StoreVersion *version)
{
	const int	no_options = 0;
	const bool	should_free = false;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsHeapTuple);
	uint32		token;
	bool		inserted;

	store_form_tuple(rel, row);
	ExecStoreHeapTuple(row->tuple, slot, should_free);
	token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	table_tuple_insert_speculative(rel, slot, GetCurrentCommandId(true),
								   no_options, NULL, token);
	row->tuple->t_self = slot->tts_tid;
	inserted = store_insert_index_entries(rel, row, 1, STORE_SPECULATIVE, NULL);
	table_tuple_complete_speculative(rel, slot, token, inserted);
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());

	version->tid = slot->tts_tid;
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();
	return inserted;
}

/*
 * Write a row over an existing version, which the caller has pinned, or waiting
 * for whoever has it locked or is changing it.  A row may come as a tuple alone,
 * without values.
 */
StoreResult
store_replace(Relation rel, StoreRow *row, const StoreVersion *version,
			  bool wait)
{
	const bool	should_free = false;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsHeapTuple);
	ItemPointerData tid = version->tid;
	TU_UpdateIndexes update_indexes = TU_None;
	LockTupleMode lock_mode;
	TM_FailureData failure;
	TM_Result	result;

	if (row->values != NULL)
		store_form_tuple(rel, row);
	ExecStoreHeapTuple(row->tuple, slot, should_free);
	result = table_tuple_update(rel, &tid, slot, GetCurrentCommandId(true),
								InvalidSnapshot, InvalidSnapshot, wait,
								&failure, &lock_mode, &update_indexes);
	if (result == TM_Ok && update_indexes != TU_None)
	{
		if (row->values == NULL)
			store_deform_tuple(rel, row);
		row->tuple->t_self = slot->tts_tid;
		(void) store_insert_index_entries(rel, row, 1, STORE_UPDATE, NULL);
	}
	ExecDropSingleTupleTableSlot(slot);
	if (result == TM_Ok)
		CommandCounterIncrement();

	return store_result(result);
}

/*
 * Write a row in the place of the one that a scan finds, which ends with that, or
 * beside the others if it finds none.  The caller holds a lock under which nobody else
 * writes.  Whoever remembers what is in the table is to read it again.
 */
void
store_put(Relation rel, StoreRow *row, SysScanDesc scan)
{
	const bool	wait = true;
	HeapTuple	tuple = systable_getnext(scan);
	bool		found = HeapTupleIsValid(tuple);
	StoreVersion version;

	if (found)
		version.tid = tuple->t_self;
	systable_endscan(scan);

	if (!found)
		store_insert(rel, row, 1, NULL);
	else if (store_replace(rel, row, &version, wait) != STORE_OK)
		elog(ERROR, "a row of table \"%s\" was changed under an exclusive lock",
			 RelationGetRelationName(rel));
	CacheInvalidateRelcache(rel);
	CommandCounterIncrement();
}

/*
 * Is a version that this transaction has written or pinned still the current
 * one?  False may also mean that it is not known, because this very transaction
 * has given the table another file (or the table itself is new), and nobody knows
 * what is in the place of the version now.
 */
bool
store_is_current(Relation rel, const StoreVersion *version)
{
	TupleTableSlot *slot;
	ItemPointerData tid = version->tid;
	bool		current;

	if (rel->rd_createSubid != InvalidSubTransactionId ||
		rel->rd_firstRelfilelocatorSubid != InvalidSubTransactionId)
		return false;

	slot = table_slot_create(rel, NULL);
	current = table_tuple_fetch_row_version(rel, &tid, SnapshotSelf, slot);
	ExecDropSingleTupleTableSlot(slot);
	return current;
}

/*
 * Keep a version from being removed, changed or pinned by anybody else until
 * the end of the (sub)transaction, by a tuple lock.  Does not wait.
 */
StoreResult
store_pin(Relation rel, const StoreVersion *version)
{
	const uint8 flags = 0;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData tid = version->tid;
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(rel, &tid, SnapshotAny, slot,
							  GetCurrentCommandId(true), LockTupleExclusive,
							  LockWaitSkip, flags, &failure);
	ExecDropSingleTupleTableSlot(slot);
	return store_result(result);
}

/*
 * A transaction that has a version locked, or InvalidTransactionId if there is
 * none any more.
 *
 * Blocking in table_tuple_lock() instead would wait several times in a row, each
 * time anew for as long as the caller wanted to wait in all.
 */
TransactionId
store_locker(Relation rel, const StoreVersion *version)
{
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
			locker = store_locker_among(xmax, infomask);
		if (!TransactionIdIsInProgress(locker))
			locker = InvalidTransactionId;
	}
	ExecDropSingleTupleTableSlot(slot);
	return locker;
}

/* Somebody else who is in progress, of those who share a lock. */
static TransactionId
store_locker_among(MultiXactId multi, uint16 infomask)
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

/*
 * Delete one version.  If somebody has it locked or is changing it, wait for
 * him, or let it be.
 */
StoreResult
store_delete(Relation rel, const StoreVersion *version, bool wait)
{
	const bool	changing_part = false;
	ItemPointerData tid = version->tid;
	TM_FailureData failure;

	return store_result(table_tuple_delete(rel, &tid, GetCurrentCommandId(true),
										   InvalidSnapshot, InvalidSnapshot,
										   wait, &failure, changing_part));
}

static StoreResult
store_result(TM_Result result)
{
	switch (result)
	{
		case TM_Ok:
			return STORE_OK;
		case TM_BeingModified:
		case TM_WouldBlock:
			return STORE_BUSY;
		case TM_SelfModified:
		case TM_Updated:
		case TM_Deleted:
			return STORE_CHANGED;
		case TM_Invisible:
			break;
	}
	elog(ERROR, "unexpected result of a tuple operation: %d", (int) result);
	pg_unreachable();
}

/*
 * The index entries of new rows, or of an updated one whose new version is not
 * heap-only.  store_check_index() has made sure that all indexes are on plain
 * columns and cover every row.  False if a speculative row is a duplicate.
 */
static bool
store_insert_index_entries(Relation rel, const StoreRow *rows, int nrows,
						   StoreWrite write, volatile int *current)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	bool		unique = true;

	foreach(lc, indexes)
	{
		Relation	index = store_open_index(lfirst_oid(lc));
		IndexInfo  *info = BuildIndexInfo(index);
		IndexUniqueCheck check = UNIQUE_CHECK_NO;
		AttrNumber	wanted = store_index_wants(info->ii_Predicate);

		if (index->rd_index->indisunique)
			check = write == STORE_SPECULATIVE ?
				UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_YES;

		for (int n = 0; info->ii_ReadyForInserts && n < nrows; n++)
		{
			const StoreRow *row = &rows[n];
			Datum		values[INDEX_MAX_KEYS];
			bool		isnull[INDEX_MAX_KEYS];

			if (wanted > 0 && row->isnull[wanted - 1])
				continue;
			for (int i = 0; i < info->ii_NumIndexAttrs; i++)
			{
				AttrNumber	attnum = info->ii_IndexAttrNumbers[i];

				values[i] = row->values[attnum - 1];
				isnull[i] = row->isnull[attnum - 1];
			}
			if (current != NULL)
				*current = n;
			if (!index_insert(index, values, isnull, &row->tuple->t_self, rel,
							  check, write == STORE_UPDATE, info) &&
				check == UNIQUE_CHECK_PARTIAL)
				unique = false;
		}
		index_close(index, NoLock);
	}
	list_free(indexes);
	return unique;
}
