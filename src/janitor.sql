/* janitor.c: expiry ------------------------------------------------------ */

CREATE FUNCTION @extschema@.idem_expire(
	max_rows pg_catalog.int4 DEFAULT 10000)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idem_expire'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_expire(pg_catalog.int4) IS
'Remove up to max_rows expired records and dead letters (your own, or all for the extension''s owner) and return how many. Waits for nobody.';

