/* lookup.c: lookup, forget ----------------------------------------------- */

CREATE FUNCTION @extschema@.idem_lookup(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '',
	OUT state pg_catalog.text,
	OUT response pg_catalog.jsonb,
	OUT attempt pg_catalog.int4,
	OUT claimed_at pg_catalog.timestamptz,
	OUT finished_at pg_catalog.timestamptz,
	OUT lease_until pg_catalog.timestamptz,
	OUT retry_at pg_catalog.timestamptz,
	OUT expires_at pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_lookup'
LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 1;

COMMENT ON FUNCTION @extschema@.idem_lookup(pg_catalog.text, pg_catalog.text) IS
'What is known of a key, without claiming it: no row if there is no record or it has expired. Works on a standby; claims in progress in other transactions do not show.';

CREATE FUNCTION @extschema@.idem_forget(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '')
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idem_forget'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_forget(pg_catalog.text, pg_catalog.text) IS
'Drop the record of a key, so that it can be claimed anew; true if there was one. Waits for a transaction that has it claimed.';

