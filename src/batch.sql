/* batch.c: sets of keys -------------------------------------------------- */

CREATE TYPE @extschema@.idem_claim_many_answer AS
(
	key			pg_catalog.text,
	outcome		pg_catalog.text,
	response	pg_catalog.jsonb,
	token		pg_catalog.int8,
	attempt		pg_catalog.int4,
	retry_after	pg_catalog.interval
);

COMMENT ON TYPE @extschema@.idem_claim_many_answer IS
'What idem_claim_many answers for each key: see idem_claim_answer.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.key IS
'The key, as it was given.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.outcome IS
'claimed, replayed, in_progress, mismatch, retry_later, failed or held.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.response IS
'The response to replay, or the error of a failed key.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.token IS
'Fencing token of the lease that was claimed; null for a transactional claim.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.attempt IS
'Which claim of the key this is, from 1.';
COMMENT ON COLUMN @extschema@.idem_claim_many_answer.retry_after IS
'When to come again, if it is known: the end of a lease, or the time of a retry.';

CREATE FUNCTION @extschema@.idem_claim_many(
	keys pg_catalog.text[],
	ttl pg_catalog.interval DEFAULT NULL,
	requests pg_catalog.jsonb[] DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	wait pg_catalog.interval DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	takeover pg_catalog.text DEFAULT 'rerun',
	holder pg_catalog.text DEFAULT NULL)
RETURNS SETOF @extschema@.idem_claim_many_answer
AS 'MODULE_PATHNAME', 'idem_claim_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION @extschema@.idem_claim_many(pg_catalog.text[], pg_catalog.interval, pg_catalog.jsonb[], pg_catalog.text, pg_catalog.interval, pg_catalog.interval, pg_catalog.text, pg_catalog.text) IS
'Claim many keys at once: an answer as of idem_claim for each, in the order given. A key that is given twice is in_progress the second time. Batches that overlap do not deadlock: keys are claimed in one order by all.';

CREATE TYPE @extschema@.idem_finish_many_answer AS
(
	key			pg_catalog.text,
	response	pg_catalog.jsonb
);

COMMENT ON TYPE @extschema@.idem_finish_many_answer IS
'What idem_finish_many answers for each key.';
COMMENT ON COLUMN @extschema@.idem_finish_many_answer.key IS
'The key, as it was given.';
COMMENT ON COLUMN @extschema@.idem_finish_many_answer.response IS
'The response that is stored.';

CREATE FUNCTION @extschema@.idem_finish_many(
	keys pg_catalog.text[],
	responses pg_catalog.jsonb[] DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	tokens pg_catalog.int8[] DEFAULT NULL)
RETURNS SETOF @extschema@.idem_finish_many_answer
AS 'MODULE_PATHNAME', 'idem_finish_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION @extschema@.idem_finish_many(pg_catalog.text[], pg_catalog.jsonb[], pg_catalog.text, pg_catalog.int8[]) IS
'Finish many keys at once, each with its response and, for leases, its token; all or none. Answers with the responses, in the order given.';

