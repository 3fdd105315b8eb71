/*-------------------------------------------------------------------------
 *
 * memo.c
 *	  The table of steps that are done, idem_step: the only room that touches
 *	  it.
 *
 * A step belongs to one life of a key, not to the key: to its generation, a
 * random number that the row of the key carries once the first step is done.
 * When that life ends (expiry, release, forget) the number is gone for good, so
 * what was done in it can never be taken for done again, not even by those who
 * have not seen the rows go.
 *
 * There is no locking here: steps are written, and removed, only by whoever has
 * the key, be it by a lock or by its row.  Reading for a decision therefore
 * goes by SnapshotSelf: what is committed, and what this transaction has done.
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
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "memo.h"
#include "realm.h"
#include "store.h"

/* Columns of idem_step, as memo.sql creates them. */
enum
{
	Anum_generation = 1,
	Anum_finished_at,
	Anum_attempt,
	Anum_step,
	Anum_fingerprint,
	Anum_result
};

static const StoreColumn memo_columns[] =
{
	{"generation", INT8OID, true},
	{"finished_at", TIMESTAMPTZOID, true},
	{"attempt", INT4OID, true},
	{"step", TEXTOID, true},
	{"fingerprint", BYTEAOID, false},
	{"result", JSONBOID, false}
};

static const AttrNumber memo_key[] = {Anum_generation, Anum_step};

static const StoreShape memo_shape =
{
	memo_columns, lengthof(memo_columns),
	memo_key, lengthof(memo_key), "generation, step"
};

static Relation memo_open(LOCKMODE mode);
static SysScanDesc memo_begin_scan(Relation rel, Snapshot snapshot,
								   int64 generation,
								   const char *step, int step_len);
static void memo_decode(Relation rel, HeapTuple tuple, Memo *memo);

/* Open the table, and lock it to the end of the (sub)transaction. */
static Relation
memo_open(LOCKMODE mode)
{
	static uint64 checked = 0;

	return store_open(realm_get()->step_table, mode, &memo_shape, &checked);
}

/*
 * Is a step done?  Then *memo is what is known of it.  With one snapshot for the
 * transaction, memo->seen tells whether that shows it, too, or whether it was done
 * since.
 */
bool
memo_look(int64 generation, const char *step, int step_len, Memo *memo)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	if (generation == 0)
		return false;

	rel = memo_open(AccessShareLock);
	scan = memo_begin_scan(rel, SnapshotSelf, generation, step, step_len);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		memo_decode(rel, tuple, memo);
		memo->seen = !IsolationUsesXactSnapshot() ||
			TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) ||
			table_tuple_satisfies_snapshot(rel, scan->slot,
										   GetTransactionSnapshot());
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	return found;
}

/* Write a step that is not there. */
void
memo_write(int64 generation, const Memo *memo)
{
	Relation	rel = memo_open(RowExclusiveLock);
	StoreRow	row;

	Assert(generation != 0);
	store_new_row(rel, &memo_shape, &row);
	row.values[Anum_generation - 1] = Int64GetDatum(generation);
	row.values[Anum_finished_at - 1] = TimestampTzGetDatum(memo->finished_at);
	row.values[Anum_attempt - 1] = Int32GetDatum(memo->attempt);
	row.values[Anum_step - 1] =
		PointerGetDatum(cstring_to_text_with_len(memo->step, memo->step_len));
	key_store_fingerprint(&memo->fingerprint,
						  &row.values[Anum_fingerprint - 1],
						  &row.isnull[Anum_fingerprint - 1]);
	row.isnull[Anum_result - 1] = memo->result == NULL;
	row.values[Anum_result - 1] = PointerGetDatum(memo->result);

	store_insert(rel, &row, 1, NULL);
	table_close(rel, NoLock);
}

/* Remove the steps of a life of a key that has ended; 0 had none. */
void
memo_forget(int64 generation)
{
	const bool	wait = true;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (generation == 0)
		return;

	rel = memo_open(RowExclusiveLock);
	scan = memo_begin_scan(rel, SnapshotSelf, generation, NULL, 0);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		StoreVersion version = {tuple->t_self};

		(void) store_delete(rel, &version, wait);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/*
 * Visit the steps of a generation as a query sees them: by the snapshot of the
 * calling statement.  In no particular order; what is visited is valid during
 * the visit.
 */
void
memo_visit(int64 generation,
		   void (*visit) (const Memo *memo, void *arg), void *arg)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (generation == 0)
		return;

	rel = memo_open(AccessShareLock);
	scan = memo_begin_scan(rel, GetActiveSnapshot(), generation, NULL, 0);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Memo		memo;

		memo_decode(rel, tuple, &memo);
		visit(&memo, arg);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
}

/* All steps of a generation, or, with a name, one. */
static SysScanDesc
memo_begin_scan(Relation rel, Snapshot snapshot, int64 generation,
				const char *step, int step_len)
{
	const bool	index_ok = true;
	ScanKeyData scan_keys[2];

	/* in the order of the index */
	ScanKeyInit(&scan_keys[0], Anum_generation, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum(generation));
	if (step != NULL)
		ScanKeyInit(&scan_keys[1], Anum_step, BTEqualStrategyNumber, F_TEXTEQ,
					PointerGetDatum(cstring_to_text_with_len(step, step_len)));
	return systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel, false),
							  index_ok, snapshot, step != NULL ? 2 : 1,
							  scan_keys);
}

static void
memo_decode(Relation rel, HeapTuple tuple, Memo *memo)
{
	int			natts = RelationGetDescr(rel)->natts;	/* dropped ones, too */
	Datum	   *values = palloc(natts * sizeof(Datum));
	bool	   *isnull = palloc(natts * sizeof(bool));
	text	   *step;

	heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);

	step = DatumGetTextPP(values[Anum_step - 1]);
	memo->step_len = VARSIZE_ANY_EXHDR(step);
	memo->step = pnstrdup(VARDATA_ANY(step), memo->step_len);
	memo->attempt = DatumGetInt32(values[Anum_attempt - 1]);
	memo->finished_at = DatumGetTimestampTz(values[Anum_finished_at - 1]);
	key_read_fingerprint(&memo->fingerprint, values[Anum_fingerprint - 1],
						 isnull[Anum_fingerprint - 1]);
	memo->result = isnull[Anum_result - 1] ? NULL :
		DatumGetJsonbPCopy(values[Anum_result - 1]);
}
