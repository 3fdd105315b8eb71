/*-------------------------------------------------------------------------
 *
 * store.h
 *	  Rows of our own tables, written in the way of the catalogs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_H
#define IDEM_STORE_H

#include "postgres.h"

#include "access/genam.h"
#include "access/htup.h"
#include "storage/itemptr.h"
#include "utils/rel.h"

#include "compat.h"

/* How a table was created, as far as it matters: see store_check_shape(). */
typedef struct StoreColumn
{
	const char *name;
	Oid			type;
	bool		not_null;
} StoreColumn;

typedef struct StoreShape
{
	const StoreColumn *columns;
	int			ncolumns;
	const AttrNumber *key;		/* columns of the primary key */
	int			nkeys;
	const char *key_names;		/* for messages */
} StoreShape;

/* A row in the form that the table and its indexes take. */
typedef struct StoreRow
{
	Datum	   *values;
	bool	   *isnull;
	HeapTuple	tuple;
} StoreRow;

/* Names one version of one row; opaque to those above record.c. */
typedef struct StoreVersion
{
	ItemPointerData tid;		/* invalid: no version at all */
} StoreVersion;

/* What became of an attempt to pin, replace or remove one version. */
typedef enum StoreResult
{
	STORE_OK,
	STORE_BUSY,					/* another transaction has locked it */
	STORE_CHANGED				/* it is not the current version any more */
} StoreResult;

extern void store_check_shape(Relation rel, const StoreShape *shape);
extern Relation store_open(Oid table, LOCKMODE mode, const StoreShape *shape,
						   uint64 *checked);
extern void store_put(Relation rel, StoreRow *row, SysScanDesc scan);

extern Relation store_open_index(Oid index);
extern Oid	store_find_index(Relation rel, const AttrNumber *columns,
							 int ncolumns);
extern void store_new_row(Relation rel, const StoreShape *shape,
						  StoreRow *row);
extern void store_insert(Relation rel, StoreRow *rows, int nrows,
						 volatile int *current);
extern bool store_try_insert(Relation rel, StoreRow *row,
							 StoreVersion *version);
extern StoreResult store_replace(Relation rel, StoreRow *row,
								 const StoreVersion *version, bool wait);
extern bool store_is_current(Relation rel, const StoreVersion *version);
extern StoreResult store_pin(Relation rel, const StoreVersion *version);
extern TransactionId store_locker(Relation rel, const StoreVersion *version);
extern StoreResult store_delete(Relation rel, const StoreVersion *version,
								bool wait);

#endif							/* IDEM_STORE_H */
