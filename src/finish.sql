/* finish.c: finish, fail, release ---------------------------------------- */

CREATE FUNCTION @extschema@.idem_finish(
	key pg_catalog.text,
	response pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.jsonb
AS 'MODULE_PATHNAME', 'idem_finish'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_finish(pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.int8) IS
'Finish a key: store the response that every repeat gets, and return it. Without a token a claim of this transaction, with one a lease. Takes effect with the commit.';

CREATE FUNCTION @extschema@.idem_fail(
	key pg_catalog.text,
	error pg_catalog.jsonb DEFAULT NULL,
	retry_in pg_catalog.interval DEFAULT NULL,
	final pg_catalog.bool DEFAULT false,
	max_attempts pg_catalog.int4 DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS @extschema@.idem_claim_answer
AS 'MODULE_PATHNAME', 'idem_fail'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_fail(pg_catalog.text, pg_catalog.jsonb, pg_catalog.interval, pg_catalog.bool, pg_catalog.int4, pg_catalog.text, pg_catalog.int8) IS
'Record that the work of a key has failed, and answer what the next claim is told: retry_later until retry_in is over (null: the backoff of the attempt), or failed, if final or past max_attempts (null: idempotency.max_attempts, 0: no limit).';

CREATE FUNCTION @extschema@.idem_release(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_release'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_release(pg_catalog.text, pg_catalog.text, pg_catalog.int8) IS
'Give a claim up: the next one starts afresh. Without a token a claim of this transaction, which may then commit without a finish; with one a lease.';

