/* key.c: derived keys ---------------------------------------------------- */

CREATE FUNCTION @extschema@.idem_derive(
	key pg_catalog.text,
	step pg_catalog.text,
	scope pg_catalog.text DEFAULT '',
	namespace pg_catalog.uuid DEFAULT NULL)
RETURNS pg_catalog.uuid
AS 'MODULE_PATHNAME', 'idem_derive'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

COMMENT ON FUNCTION @extschema@.idem_derive(pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.uuid) IS
'The idempotency key to hand to the next system: a uuid that is always the same for the same arguments. namespace keeps staging and production apart.';

