/* memo.c: steps that are done -------------------------------------------- */

/*
 * Rows are inserted and deleted, never updated, and found by generation only.
 * That number is random and so are the places of the flows in the index, but the
 * steps of one flow are together.
 */
CREATE TABLE @extschema@.idem_step
(
	generation	pg_catalog.int8 NOT NULL,
	finished_at	pg_catalog.timestamptz NOT NULL,
	attempt		pg_catalog.int4 NOT NULL,
	step		pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	fingerprint	pg_catalog.bytea,
	result		pg_catalog.jsonb,
	PRIMARY KEY (generation, step)
) USING heap
WITH (autovacuum_vacuum_scale_factor = 0.05,
	  toast.autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE @extschema@.idem_step IS
'Steps that are done, of flows under a key. Written by the idem_* functions only; removed with the key.';
COMMENT ON COLUMN @extschema@.idem_step.generation IS
'The life of the key to which the step belongs: idem_key.generation.';
COMMENT ON COLUMN @extschema@.idem_step.finished_at IS
'When idem_step_finish was called, by the server''s clock.';
COMMENT ON COLUMN @extschema@.idem_step.attempt IS
'Which attempt of the key did the step.';
COMMENT ON COLUMN @extschema@.idem_step.step IS
'The caller''s name for the step; 1 to 128 bytes.';
COMMENT ON COLUMN @extschema@.idem_step.fingerprint IS
'SHA-256 of the canonical request of the step; null if none was given.';
COMMENT ON COLUMN @extschema@.idem_step.result IS
'What idem_step_finish was given.';

-- The functions are the only way in: they know whose step is whose.
REVOKE ALL ON TABLE @extschema@.idem_step FROM PUBLIC;

-- With the keys that are dumped, and no others.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_step',
	'WHERE generation OPERATOR(pg_catalog.=) ANY (SELECT k.generation FROM @extschema@.idem_key AS k JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) k.owner)');

