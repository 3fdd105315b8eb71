/*-------------------------------------------------------------------------
 *
 * realm.c
 *	  One installation of the extension in the current database.
 *
 * The extension may be installed in any schema, and may be dropped and
 * created again under a running session.  This room finds the tables of the
 * present installation and its secret, once per backend, and finds them
 * again when a relcache invalidation says that they may have changed.
 *
 * Tables are found through pg_extension and never through search_path, so a
 * table of the same name that a role puts in its own schema is never met.
 *
 * The secret is 122 random bits drawn by CREATE EXTENSION.  It seeds the hash
 * that names a key in the lock table, which every role can read through
 * pg_locks: without the secret nobody can compute the hash of a guessed key,
 * nor construct a key that collides with another role's.  It is not dumped; a
 * restored database has a secret of its own, since nothing stored depends on
 * it.
 *
 * The answer is only a hint until the table is locked: whoever opens it (see
 * record.c) must be prepared to find it gone, call realm_forget() and ask
 * again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "compat.h"
#include "realm.h"

static IdemRealm realm;
static bool realm_valid = false;
static Oid	realm_secret_table = InvalidOid;

/* The relations that others want to know. */
static const struct
{
	const char *name;
	Oid		   *oid;
}			realm_relations[] =

{
	{"idem_key", &realm.key_table},
	{"idem_step", &realm.step_table},
	{"idem_queue", &realm.queue_table},
	{"idem_message", &realm.message_table},
	{"idem_message_id", &realm.message_sequence},
	{"idem_dead_letter", &realm.letter_table},
	{"idem_breaker", &realm.breaker_table}
};

static void realm_load(void);
static void realm_invalidate(Datum arg, Oid relid);

/* Register for invalidations; once, when the library is loaded. */
void
realm_init(void)
{
	StaticAssertStmt(IDEM_SECRET_LEN == UUID_LEN, "the secret is a uuid");

	CacheRegisterRelcacheCallback(realm_invalidate, (Datum) 0);
}

/*
 * The installation in this database.  Raises 42704 when there is none.
 *
 * The result points to backend-wide memory whose contents change only here,
 * so a caller that goes through the catalogs copies what it needs.
 */
const IdemRealm *
realm_get(void)
{
	if (unlikely(!realm_valid))
		realm_load();
	return &realm;
}

/* Distrust what is cached. */
void
realm_forget(void)
{
	realm_valid = false;
}

/*
 * A relcache callback may come with InvalidOid, which means any relation.
 */
static void
realm_invalidate(Datum arg, Oid relid)
{
	if (relid == InvalidOid ||
		relid == realm_secret_table)
		realm_valid = false;
	for (int i = 0; i < (int) lengthof(realm_relations); i++)
		if (relid == *realm_relations[i].oid)
			realm_valid = false;
}

/* The schema of the extension, or InvalidOid if there is no extension. */
static Oid
realm_schema(void)
{
	const bool	index_ok = true;
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData scan_key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	ScanKeyInit(&scan_key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("idempotency"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, index_ok, NULL,
							  1, &scan_key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	return schema;
}

static void
realm_load(void)
{
	Oid			found[lengthof(realm_relations)];
	Oid			secret_table;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		isnull = true;
	Datum		datum;

	/* again, if the extension is dropped while we wait for its table */
	do
	{
		Oid			schema = realm_schema();
		bool		missing = false;

		if (!OidIsValid(schema))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("extension \"%s\" is not installed in this database",
							"idempotency"),
					 errhint("Use CREATE EXTENSION idempotency.")));

		for (int i = 0; i < (int) lengthof(realm_relations); i++)
		{
			found[i] = get_relname_relid(realm_relations[i].name, schema);
			missing = missing || !OidIsValid(found[i]);
		}
		secret_table = get_relname_relid("idem_secret", schema);
		if (missing || !OidIsValid(secret_table))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("a table of extension \"%s\" is missing",
							"idempotency"),
					 errhint("Use ALTER EXTENSION idempotency UPDATE if the library is newer than the extension; else restore the table, or drop the extension and create it again.")));

		rel = try_table_open(secret_table, AccessShareLock);
	} while (rel == NULL);

	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple) &&
		TupleDescAttr(RelationGetDescr(rel), 0)->atttypid == UUIDOID)
	{
		datum = heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull);
		if (!isnull)
			memcpy(realm.secret, DatumGetUUIDP(datum)->data, UUID_LEN);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the secret of extension \"%s\" is missing",
						"idempotency"),
				 errhint("While no transaction has a key claimed, insert a new one: gen_random_uuid().")));

	realm.serial++;
	for (int i = 0; i < (int) lengthof(realm_relations); i++)
		*realm_relations[i].oid = found[i];
	realm_secret_table = secret_table;

	/*
	 * Only now: an invalidation that came while we were reading refers to
	 * what was cached before, and whoever opens the table finds out.
	 */
	realm_valid = true;
}
