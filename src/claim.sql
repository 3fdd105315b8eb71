/* claim.c: claim, finish, release, lookup, forget ------------------------ */

/*
 * A type of its own and not OUT parameters: the executor looks up the columns
 * of a function's result anew in each execution, and it does so several times
 * faster for a named type.
 */
CREATE TYPE @extschema@.idem_claim_answer AS
(
	outcome		pg_catalog.text,
	response	pg_catalog.jsonb,
	token		pg_catalog.int8,
	attempt		pg_catalog.int4,
	retry_after	pg_catalog.interval
);

COMMENT ON TYPE @extschema@.idem_claim_answer IS
'What idem_claim answers.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.outcome IS
'claimed, replayed, in_progress or mismatch.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.response IS
'The response to replay.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.token IS
'Fencing token of a lease; null for a transactional claim.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.attempt IS
'Which claim of the key this is, from 1.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.retry_after IS
'When to come again, if it is known; null for transactional claims.';

CREATE FUNCTION @extschema@.idem_claim(
	key pg_catalog.text,
	ttl pg_catalog.interval DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	wait pg_catalog.interval DEFAULT NULL)
RETURNS @extschema@.idem_claim_answer
AS 'MODULE_PATHNAME', 'idem_claim'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_claim(pg_catalog.text, pg_catalog.interval, pg_catalog.jsonb, pg_catalog.text, pg_catalog.interval) IS
'Claim a key for this transaction. Outcome: claimed (do the work, then idem_finish), replayed (return the response), in_progress (busy), mismatch (key reused with another request). Call it in FROM. ttl: how long the record is kept, null for idempotency.default_ttl; wait: for a rival transaction, null until it ends, 0 not at all.';

CREATE FUNCTION @extschema@.idem_finish(
	key pg_catalog.text,
	response pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '')
RETURNS pg_catalog.jsonb
AS 'MODULE_PATHNAME', 'idem_finish'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_finish(pg_catalog.text, pg_catalog.jsonb, pg_catalog.text) IS
'Finish a key that this transaction has claimed: store the response that every repeat gets, and return it. Takes effect with the commit.';

CREATE FUNCTION @extschema@.idem_release(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '')
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_release'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_release(pg_catalog.text, pg_catalog.text) IS
'Give up a key that this transaction has claimed: the transaction may commit without a finish, and the next claim starts afresh.';

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

