/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The only file that names a PostgreSQL version.
 *
 * Calls are written everywhere else in the form of the newest release; this
 * file lends that form to the older ones.  Whoever raises the upper bound
 * has read the new release's changes to heap, snapshot, lock, resource owner
 * and transaction callback code.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMPAT_H
#define IDEM_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "storage/proc.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "idempotency needs PostgreSQL 15 or newer"
#endif

StaticAssertDecl(PG_VERSION_NUM < 190000,
				 "idempotency has not been reviewed for this PostgreSQL version");

/* 16: variable-length type macros moved out of postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16: table_tuple_update reports which indexes to update, not just whether */
#if PG_VERSION_NUM < 160000
typedef bool TU_UpdateIndexes;
#define TU_None false
#endif

/* 15.4: databases whose creation or removal has not come to its end */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

/* 16: the file of a relation has another name */
#if PG_VERSION_NUM < 160000
#define rd_firstRelfilelocatorSubid rd_firstRelfilenodeSubid
#endif

/* 17: intervals may be infinite */
#ifndef INTERVAL_NOT_FINITE
#define INTERVAL_NOT_FINITE(i) ((void) (i), false)
#endif

/* 17: where a process keeps the number of its transaction */
#if PG_VERSION_NUM < 170000
#define MyLocalTransactionId (MyProc->lxid)
#else
#define MyLocalTransactionId (MyProc->vxid.lxid)
#endif

/* 17: shared memory for those who were not preloaded */
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#define IDEM_HAVE_DSM_REGISTRY
#endif

/* 17: waits of extensions have names; before, all have one */
#if PG_VERSION_NUM < 170000
#define WaitEventExtensionNew(name) ((void) (name), PG_WAIT_EXTENSION)
#endif

/* 17: the number of a process */
#if PG_VERSION_NUM < 170000
#define MyProcNumber (MyProc->pgprocno)
#endif

/* 18: a module may tell its name and version */
#if PG_VERSION_NUM < 180000
#define PG_MODULE_MAGIC_EXT(...) PG_MODULE_MAGIC
#endif

/* 18: functions that do not return say so in front */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 18: index scans may be instrumented */
#if PG_VERSION_NUM < 180000
#define index_beginscan(heap, index, snapshot, instrument, nkeys, norderbys) \
	index_beginscan(heap, index, snapshot, nkeys, norderbys)
#endif

/* 18: a deferrable primary key may be asked for, too */
#if PG_VERSION_NUM < 180000
#define RelationGetPrimaryKeyIndex(rel, deferrable_ok) \
	RelationGetPrimaryKeyIndex(rel)
#endif

#endif							/* IDEM_COMPAT_H */
