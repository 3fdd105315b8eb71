/* claim.c: claim --------------------------------------------------------- */

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
'claimed, replayed, in_progress, mismatch, retry_later, failed or held.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.response IS
'The response to replay, or the error of a failed key.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.token IS
'Fencing token of the lease that was claimed; null for a transactional claim.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.attempt IS
'Which claim of the key this is, from 1.';
COMMENT ON COLUMN @extschema@.idem_claim_answer.retry_after IS
'When to come again, if it is known: the end of a lease, or the time of a retry.';

CREATE FUNCTION @extschema@.idem_claim(
	key pg_catalog.text,
	ttl pg_catalog.interval DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	wait pg_catalog.interval DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	takeover pg_catalog.text DEFAULT 'rerun',
	holder pg_catalog.text DEFAULT NULL)
RETURNS @extschema@.idem_claim_answer
AS 'MODULE_PATHNAME', 'idem_claim'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_claim(pg_catalog.text, pg_catalog.interval, pg_catalog.jsonb, pg_catalog.text, pg_catalog.interval, pg_catalog.interval, pg_catalog.text, pg_catalog.text) IS
'Claim a key, for this transaction or with a lease. Outcome: claimed (do the work, then idem_finish), replayed (return the response), in_progress (busy), mismatch (key reused with another request), retry_later and failed (return the error), held (reconcile, then idem_resolve). Call it in FROM. ttl: how long the record is kept, null for the settings; wait: null until a rival transaction ends, 0 not at all; lease: how long a claim that outlives the transaction is valid; takeover: rerun, fail or hold once it has run out; holder: the same holder gets its live lease again, with a new token.';

