/* step.c: flows that resume ---------------------------------------------- */

CREATE TYPE @extschema@.idem_step_answer AS
(
	done		pg_catalog.bool,
	result		pg_catalog.jsonb
);

COMMENT ON TYPE @extschema@.idem_step_answer IS
'What idem_step answers.';
COMMENT ON COLUMN @extschema@.idem_step_answer.done IS
'True: the step is done, do not do it again.';
COMMENT ON COLUMN @extschema@.idem_step_answer.result IS
'What idem_step_finish was given.';

CREATE FUNCTION @extschema@.idem_step(
	key pg_catalog.text,
	step pg_catalog.text,
	request pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL)
RETURNS @extschema@.idem_step_answer
AS 'MODULE_PATHNAME', 'idem_step'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_step(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.int8) IS
'Is this step of the work under a claimed key done? Then its result, and it must not be done again. Call it in FROM. Without a token under a claim of this transaction, with one under a lease.';

CREATE FUNCTION @extschema@.idem_step_finish(
	key pg_catalog.text,
	step pg_catalog.text,
	result pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT '',
	token pg_catalog.int8 DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL)
RETURNS pg_catalog.jsonb
AS 'MODULE_PATHNAME', 'idem_step_finish'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_step_finish(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.int8, pg_catalog.jsonb) IS
'Write that a step is done, in the transaction of the step''s own writes, and return its result. Until that transaction ends nobody takes the key over.';

CREATE FUNCTION @extschema@.idem_steps(
	key pg_catalog.text,
	scope pg_catalog.text DEFAULT '',
	OUT step pg_catalog.text,
	OUT result pg_catalog.jsonb,
	OUT attempt pg_catalog.int4,
	OUT finished_at pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_steps'
LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 10;

COMMENT ON FUNCTION @extschema@.idem_steps(pg_catalog.text, pg_catalog.text) IS
'The steps of a key that are done, in the order in which they were finished. Works on a standby.';

