/* key.c: IDs of keys, derived keys -------------------------------------- */

CREATE FUNCTION @extschema@.idem_key_id(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '')
RETURNS pg_catalog.uuid
AS 'MODULE_PATHNAME', 'idem_key_id'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

COMMENT ON FUNCTION @extschema@.idem_key_id(pg_catalog.text, pg_catalog.text) IS
'The id of a key in table idem_key, to find its row by hand: the key itself if it is a UUID without a scope, else a hash of both.';

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

