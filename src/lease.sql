/* lease.c: renew, guard, resolve ----------------------------------------- */

CREATE FUNCTION @extschema@.idem_renew(
	key pg_catalog.text,
	lease pg_catalog.interval,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idem_renew'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_renew(pg_catalog.text, pg_catalog.interval, pg_catalog.text, pg_catalog.int8) IS
'Extend a lease to so long from now, and return until when it is valid; it is never shortened.';

CREATE FUNCTION @extschema@.idem_guard(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_guard'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_guard(pg_catalog.text, pg_catalog.text, pg_catalog.int8) IS
'Verify that the lease is still ours, and keep it from being taken over until this transaction ends. To be called in the transaction that commits the effect.';

CREATE FUNCTION @extschema@.idem_resolve(
	key pg_catalog.text,
	response pg_catalog.jsonb DEFAULT NULL,
	reopen pg_catalog.bool DEFAULT false,
	scope pg_catalog.text DEFAULT '')
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_resolve'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_resolve(pg_catalog.text, pg_catalog.jsonb, pg_catalog.bool, pg_catalog.text) IS
'Settle a held key, one whose lease ran out under takeover policy hold: with a response if its work was done, or reopen it if it was not.';

