/* once.c: one round trip ------------------------------------------------- */

CREATE TYPE @extschema@.idem_once_answer AS
(
	outcome		pg_catalog.text,
	response	pg_catalog.jsonb,
	retry_after	pg_catalog.interval
);

COMMENT ON TYPE @extschema@.idem_once_answer IS
'What idem_once answers: see idem_claim_answer; if claimed, the response is that of this run.';
COMMENT ON COLUMN @extschema@.idem_once_answer.outcome IS
'claimed, replayed, in_progress, mismatch, retry_later, failed or held.';
COMMENT ON COLUMN @extschema@.idem_once_answer.response IS
'The result of the command, now or when it ran; or the error of a failed key.';
COMMENT ON COLUMN @extschema@.idem_once_answer.retry_after IS
'When to come again, if it is known: the end of a lease, or the time of a retry.';

CREATE FUNCTION @extschema@.idem_once(
	key pg_catalog.text,
	command pg_catalog.text,
	params pg_catalog.text[] DEFAULT '{}',
	ttl pg_catalog.interval DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	wait pg_catalog.interval DEFAULT NULL)
RETURNS @extschema@.idem_once_answer
AS 'MODULE_PATHNAME', 'idem_once'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_once(pg_catalog.text, pg_catalog.text, pg_catalog.text[], pg_catalog.interval, pg_catalog.jsonb, pg_catalog.text, pg_catalog.interval) IS
'Claim, run one statement as the caller, and finish with its result as jsonb, in one round trip; the statement must never come from a client; a repeat gets the stored result. Parameters $1, $2, ... are given as text. Result: the value of a single column, an object for more columns, an array for more rows, null for none.';

