-- A superuser can alter idem_key and idem_step. What would be misread, or written wrongly,
-- is refused; what does no harm is let be; and once the change is undone
-- everything works as before, in the same session.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(225);

SELECT is(idem_finish('k', '"kept"'), '"kept"', 'a record')
  FROM idem_claim('k', request => '1');

-- Apply a change, see what the functions say, and undo it.

CREATE FUNCTION pg_temp.refusals(change text, commands text[]) RETURNS SETOF text LANGUAGE plpgsql AS
$$
DECLARE
	command text;
BEGIN
	FOREACH command IN ARRAY commands
	LOOP
		BEGIN
			EXECUTE change;
			EXECUTE command;
			RAISE 'not refused' USING ERRCODE = 'XXXXX';
		EXCEPTION
			WHEN undefined_table OR object_not_in_prerequisite_state THEN
				RETURN NEXT SQLSTATE;
			WHEN OTHERS THEN
				RETURN NEXT SQLSTATE || ' ' || command || ': ' || SQLERRM;
		END;
	END LOOP;
END
$$;
SELECT set_config('request.headers', '{"idempotency-key": "k"}', true) \g /dev/null
CREATE FUNCTION pg_temp.still_works(n int) RETURNS SETOF text LANGUAGE plpgsql AS
$$
BEGIN
	RETURN NEXT outcome || response FROM idem_claim('k', request => '1');
	RETURN NEXT outcome FROM idem_claim('n' || n);
	PERFORM idem_finish('n' || n, to_jsonb(n));
	RETURN NEXT outcome || response FROM idem_claim('n' || n);
END
$$;

CREATE TEMPORARY TABLE tampering (n int GENERATED ALWAYS AS IDENTITY, change text);
INSERT INTO tampering (change) VALUES
	('ALTER TABLE idem_key ADD COLUMN extra text'),
	('ALTER TABLE idem_key DROP COLUMN fingerprint'),
	('ALTER TABLE idem_key DROP COLUMN response'),
	('ALTER TABLE idem_key DROP COLUMN fingerprint; ALTER TABLE idem_key ADD COLUMN fingerprint bytea'),
	('ALTER TABLE idem_key RENAME COLUMN response TO answer'),
	('ALTER TABLE idem_key SET UNLOGGED'),
	('ALTER TABLE idem_key ALTER COLUMN response TYPE json'),
	('ALTER TABLE idem_key ALTER COLUMN key TYPE varchar(1000)'),
	('ALTER TABLE idem_key ALTER COLUMN owner TYPE oid'),
	('ALTER TABLE idem_key ALTER COLUMN expires_at TYPE timestamp'),
	('ALTER TABLE idem_key ALTER COLUMN key TYPE text COLLATE "ucs_basic"'),
	('ALTER TABLE idem_key ALTER COLUMN scope TYPE text COLLATE "default"'),
	('ALTER TABLE idem_key ALTER COLUMN response SET NOT NULL'),
	('ALTER TABLE idem_key ALTER COLUMN claimed_at DROP NOT NULL'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (owner, id)'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (id, owner, claimed_at)'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (id, owner) DEFERRABLE'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; CREATE UNIQUE INDEX ON idem_key (id, owner)'),
	('CREATE INDEX ON idem_key (lower(key))'),
	('CREATE INDEX ON idem_key (key) WHERE response IS NULL'),
	('CREATE UNIQUE INDEX ON idem_key ((octet_length(key)))'),
	('ALTER TABLE idem_key ADD UNIQUE (expires_at) DEFERRABLE INITIALLY DEFERRED'),
	('CREATE UNIQUE INDEX ON idem_key (key)'),
	('CREATE INDEX ON idem_key USING brin (expires_at)'),
	('CREATE INDEX ON idem_key USING gin (response)'),
	('CREATE INDEX ON idem_key USING hash (key)'),
	('ALTER TABLE idem_key ADD EXCLUDE USING btree (key WITH =)'),
	('ALTER EXTENSION idempotency DROP TABLE idem_key; ALTER TABLE idem_key RENAME TO gone'),
	('ALTER EXTENSION idempotency DROP TABLE idem_key; DROP TABLE idem_key CASCADE'),
	('ALTER EXTENSION idempotency DROP TABLE idem_key; DROP TABLE idem_key CASCADE; CREATE VIEW idem.idem_key AS SELECT 1 AS one'),
	('ALTER EXTENSION idempotency DROP TABLE idem_key; DROP TABLE idem_key CASCADE; CREATE TABLE idem.idem_key (one int) PARTITION BY LIST (one)'),
	('ALTER EXTENSION idempotency DROP TABLE idem_key; DROP TABLE idem_key CASCADE; CREATE SEQUENCE idem.idem_key'),
	('ALTER EXTENSION idempotency DROP TABLE idem_secret; DROP TABLE idem_secret'),
	('ALTER TABLE idem_secret RENAME COLUMN secret TO secret2; ALTER TABLE idem_secret ADD COLUMN secret text; ALTER TABLE idem_secret DROP COLUMN secret2'),
	('ALTER TABLE idem_secret ALTER COLUMN secret TYPE text'),
	('TRUNCATE idem_secret');
SELECT ok(bool_and(got IN ('55000', '42P01')) AND count(*) = 14,
		  'refused: ' || change)
	   || CASE WHEN bool_and(got IN ('55000', '42P01')) AND count(*) = 14 THEN ''
			   ELSE E'\n' || diag(string_agg(got, E'\n')) END
  FROM tampering, LATERAL pg_temp.refusals(change, ARRAY[
		'SELECT 1 FROM idem_claim(''k'')',
		'SELECT 1 FROM idem_claim(''new'')',
		'SELECT 1 FROM idem_lookup(''k'')',
		'SELECT 1 FROM idem_finish(''k'')',
		'SELECT 1 FROM idem_release(''k'')',
		'SELECT 1 FROM idem_forget(''k'')',
		'SELECT 1 FROM idem_expire()',
		'SELECT 1 FROM idem_claim_many(''{k,new}'')',
		'SELECT 1 FROM idem_finish_many(''{k}'')',
		'SELECT 1 FROM idem_once(''new'', ''SELECT 1'')',
		'SELECT 1 FROM idem_http(''SELECT 1'')',
		'SELECT 1 FROM idem_step(''k'', ''s'')',
		'SELECT 1 FROM idem_step_finish(''k'', ''s'')',
		'SELECT 1 FROM idem_steps(''k'')']) AS r(got)
 GROUP BY n, change ORDER BY n;
SELECT results_eq(format('SELECT * FROM pg_temp.still_works(%s)', n),
	format('VALUES (''replayed"kept"''), (''claimed''), (''replayed%s'')', n),
	'undone: ' || change)
  FROM tampering ORDER BY n;

-- So are the types of what functions answer.

SELECT throws_ok(format('DO $do$ BEGIN ALTER TYPE %s %s; PERFORM * FROM %s; END $do$',
						split_part(change, ' ', 1), substr(change, strpos(change, ' ')), call),
	'55000', NULL, 'refused: ' || change)
  FROM (VALUES
	('idem_claim(''k'')', ARRAY[
		'idem_claim_answer DROP ATTRIBUTE token',
		'idem_claim_answer ADD ATTRIBUTE extra text',
		'idem_claim_answer DROP ATTRIBUTE token, ADD ATTRIBUTE token bigint',
		'idem_claim_answer ALTER ATTRIBUTE outcome TYPE bigint',
		'idem_claim_answer ALTER ATTRIBUTE attempt TYPE text']),
	('idem_claim_many(''{k}'')', ARRAY[
		'idem_claim_many_answer DROP ATTRIBUTE token',
		'idem_claim_many_answer DROP ATTRIBUTE key',
		'idem_claim_many_answer ADD ATTRIBUTE extra text',
		'idem_claim_many_answer DROP ATTRIBUTE token, ADD ATTRIBUTE token bigint',
		'idem_claim_many_answer ALTER ATTRIBUTE key TYPE varchar',
		'idem_claim_many_answer ALTER ATTRIBUTE retry_after TYPE text']),
	('idem_claim_many(''{}'')', ARRAY[
		'idem_claim_many_answer ADD ATTRIBUTE extra text']),
	('idem_finish_many(''{k}'')', ARRAY[
		'idem_finish_many_answer DROP ATTRIBUTE response',
		'idem_finish_many_answer ADD ATTRIBUTE extra text',
		'idem_finish_many_answer ALTER ATTRIBUTE response TYPE json']),
	('idem_once(''k'', ''SELECT 1'')', ARRAY[
		'idem_once_answer DROP ATTRIBUTE retry_after',
		'idem_once_answer ADD ATTRIBUTE extra text',
		'idem_once_answer ALTER ATTRIBUTE response TYPE text']),
	('idem_once(''new'', ''SELECT 1'')', ARRAY[
		'idem_once_answer DROP ATTRIBUTE retry_after, ADD ATTRIBUTE retry_after interval']),
	('idem_claim(''new''), LATERAL (SELECT outcome AS a OFFSET 0) AS c, LATERAL idem_step(left(a, 0) || ''new'', ''s'')', ARRAY[
		'idem_step_answer DROP ATTRIBUTE result',
		'idem_step_answer ADD ATTRIBUTE extra text',
		'idem_step_answer ALTER ATTRIBUTE done TYPE int',
		'idem_step_answer ALTER ATTRIBUTE result TYPE bytea']))
	AS t(call, changes), unnest(changes) AS change;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '1')$$,
	$$VALUES ('replayed', '"kept"'::jsonb)$$, 'undone: idem_claim');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{k,many}', requests => '{1,2}')$$,
	$$VALUES ('k', 'replayed', '"kept"'::jsonb), ('many', 'claimed', NULL)$$, 'undone: idem_claim_many');
SELECT results_eq($$SELECT * FROM idem_step('many', 's')$$,
	$$VALUES (false, NULL::jsonb)$$, 'undone: idem_step');
SELECT results_eq($$SELECT * FROM idem_finish_many('{many}', '{3}')$$,
	$$VALUES ('many', '3'::jsonb)$$, 'undone: idem_finish_many');
SELECT results_eq($$SELECT * FROM idem_once('many', 'SELECT 4')$$,
	$$VALUES ('replayed', '3'::jsonb, NULL::interval)$$, 'undone: idem_once');

-- The same for idem_step. Keys without steps need not care, but whoever comes
-- to the table is refused, and so is whoever would leave steps behind.

SELECT is(outcome, 'claimed', 'a flow') FROM idem_claim('flow');
SELECT is(idem_step_finish('flow', 's', '1'), '1', 'has a step');
SELECT is(idem_step_finish(key, 's', '1'), '1', 'more flows')
  FROM unnest(ARRAY['forgotten', 'expired', 'over']) AS key, idem_claim(key);
SELECT is(idem_finish(key), NULL, 'that are finished')
  FROM unnest(ARRAY['forgotten', 'expired', 'over']) AS key;
UPDATE idem_key SET expires_at = 'epoch' WHERE key IN ('expired', 'over');
CREATE TEMPORARY TABLE lease AS
SELECT token FROM idem_claim('lease', lease => '1 hour');
SELECT is(idem_step_finish('lease', 's', '1', token => token), '1', 'and one with a lease') FROM lease;

CREATE FUNCTION pg_temp.steps_still_work(n int) RETURNS SETOF text LANGUAGE plpgsql AS
$$
BEGIN
	RETURN NEXT done || ':' || result FROM idem_step('flow', 's');
	RETURN NEXT done FROM idem_step('flow', 't' || n);
	PERFORM idem_step_finish('flow', 't' || n, to_jsonb(n));
	RETURN NEXT done || ':' || result FROM idem_step('flow', 't' || n);
	RETURN NEXT step || ':' || result FROM idem_steps('lease');
END
$$;
CREATE TEMPORARY TABLE step_tampering (n int GENERATED ALWAYS AS IDENTITY, change text);
INSERT INTO step_tampering (change) VALUES
	('ALTER TABLE idem_step ADD COLUMN extra text'),
	('ALTER TABLE idem_step DROP COLUMN fingerprint'),
	('ALTER TABLE idem_step DROP COLUMN result'),
	('ALTER TABLE idem_step DROP COLUMN result; ALTER TABLE idem_step ADD COLUMN result jsonb'),
	('ALTER TABLE idem_step RENAME COLUMN result TO answer'),
	('ALTER TABLE idem_step SET UNLOGGED'),
	('ALTER TABLE idem_step ALTER COLUMN result TYPE json'),
	('ALTER TABLE idem_step ALTER COLUMN step TYPE varchar(1000)'),
	('ALTER TABLE idem_step ALTER COLUMN step TYPE text COLLATE "default"'),
	('ALTER TABLE idem_step ALTER COLUMN generation TYPE numeric'),
	('ALTER TABLE idem_step ALTER COLUMN attempt TYPE bigint'),
	('ALTER TABLE idem_step ALTER COLUMN finished_at TYPE timestamp'),
	('ALTER TABLE idem_step ALTER COLUMN result SET NOT NULL'),
	('ALTER TABLE idem_step ALTER COLUMN attempt DROP NOT NULL'),
	('ALTER TABLE idem_step DROP CONSTRAINT idem_step_pkey'),
	('ALTER TABLE idem_step DROP CONSTRAINT idem_step_pkey; ALTER TABLE idem_step ADD PRIMARY KEY (step, generation)'),
	('ALTER TABLE idem_step DROP CONSTRAINT idem_step_pkey; ALTER TABLE idem_step ADD PRIMARY KEY (generation, step, attempt)'),
	('ALTER TABLE idem_step DROP CONSTRAINT idem_step_pkey; ALTER TABLE idem_step ADD PRIMARY KEY (generation, step) DEFERRABLE'),
	('ALTER TABLE idem_step DROP CONSTRAINT idem_step_pkey; CREATE UNIQUE INDEX ON idem_step (generation, step)'),
	('CREATE UNIQUE INDEX ON idem_step (generation, step, attempt)'),
	('CREATE INDEX ON idem_step (lower(step))'),
	('CREATE INDEX ON idem_step (attempt) WHERE attempt > 1'),
	('CREATE INDEX ON idem_step USING gin (result)'),
	('CREATE INDEX ON idem_step USING hash (step)'),
	('ALTER EXTENSION idempotency DROP TABLE idem_step; ALTER TABLE idem_step RENAME TO gone'),
	('ALTER EXTENSION idempotency DROP TABLE idem_step; DROP TABLE idem_step'),
	('ALTER EXTENSION idempotency DROP TABLE idem_step; DROP TABLE idem_step; CREATE VIEW idem.idem_step AS SELECT 1 AS one'),
	('ALTER EXTENSION idempotency DROP TABLE idem_step; DROP TABLE idem_step; CREATE TABLE idem.idem_step (one int) PARTITION BY LIST (one)'),
	('ALTER EXTENSION idempotency DROP TABLE idem_step; DROP TABLE idem_step; CREATE SEQUENCE idem.idem_step');
SELECT ok(bool_and(got IN ('55000', '42P01')) AND count(*) = 11,
		  'refused: ' || change)
	   || CASE WHEN bool_and(got IN ('55000', '42P01')) AND count(*) = 11 THEN ''
			   ELSE E'\n' || diag(string_agg(got, E'\n')) END
  FROM step_tampering, lease, LATERAL pg_temp.refusals(change, ARRAY[
		'SELECT 1 FROM idem_step(''flow'', ''s'')',
		'SELECT 1 FROM idem_step_finish(''flow'', ''t'')',
		'SELECT 1 FROM idem_steps(''flow'')',
		'SELECT 1 FROM idem_steps(''forgotten'')',
		'SELECT 1 FROM idem_release(''flow'')',
		'SELECT 1 FROM idem_forget(''forgotten'')',
		'SELECT 1 FROM idem_expire()',
		'SELECT idem_finish(''over'') FROM idem_claim(''over'')',
		format('SELECT 1 FROM idem_step(''lease'', ''s'', token => %s)', token),
		format('SELECT 1 FROM idem_step_finish(''lease'', ''t'', token => %s)', token),
		format('SELECT 1 FROM idem_release(''lease'', token => %s)', token)]) AS r(got)
 GROUP BY n, change ORDER BY n;
SELECT results_eq(format('SELECT * FROM pg_temp.steps_still_work(%s)', n),
	format('VALUES (''true:1''), (''false''), (''true:%s''), (''s:1'')', n),
	'undone: ' || change)
  FROM step_tampering ORDER BY n;
SELECT is(idem_finish('flow', '"flown"'), '"flown"', 'the flow is finished');
SELECT is(count(*), 30::bigint, 'with all its steps') FROM idem_steps('flow');

-- A claim that is pending while the table changes is not lost silently.

SELECT results_eq($$SELECT outcome FROM idem_claim('pending')$$,
	$$VALUES ('claimed')$$, 'a claim is pending');
SELECT throws_ok($$DO $do$ BEGIN
		ALTER TABLE idem_key ADD COLUMN extra text;
		PERFORM idem_finish('pending', '1');
	END $do$ $$, '55000', NULL, 'it cannot be finished into an altered table');
SELECT is(idem_finish('pending', '1'), '1', 'but when the change is undone');

-- Corrupted contents.

UPDATE idem_key SET fingerprint = '\xabcd' WHERE key = 'k';
SELECT throws_ok($$SELECT * FROM idem_claim('k', request => '1')$$, 'XX001', NULL,
	'a fingerprint that is none');
SELECT throws_ok($$SELECT * FROM idem_claim('k')$$, 'XX001', NULL,
	'is not overlooked without a request either');
SELECT throws_ok($$SELECT * FROM idem_lookup('k')$$, 'XX001', NULL,
	'nor by a lookup');
SELECT results_eq($$SELECT outcome FROM idem_claim('other')$$,
	$$VALUES ('claimed')$$, 'other keys do not care');
SELECT lives_ok($$SELECT idem_release('other')$$, '(released)');
UPDATE idem_key SET fingerprint = sha256('<d\000\000\000\012'::bytea || numeric_send(1) || ']'::bytea) WHERE key = 'k';
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '1')$$,
	$$VALUES ('replayed', '"kept"'::jsonb)$$,
	'the fingerprint is SHA-256 of the canonical form');
UPDATE idem_key SET fingerprint = NULL WHERE key = 'k';
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '2')$$,
	$$VALUES ('replayed', '"kept"'::jsonb)$$, 'without one there is nothing to differ from');
UPDATE idem_key SET expires_at = 'infinity' WHERE key = 'k';
SELECT results_eq($$SELECT state, expires_at FROM idem_lookup('k')$$,
	$$VALUES ('finished', 'infinity'::timestamptz)$$, 'a record may be kept for ever');
UPDATE idem_key SET expires_at = '-infinity' WHERE key = 'k';
SELECT is_empty($$SELECT * FROM idem_lookup('k')$$, 'or be long gone');
SELECT results_eq($$SELECT outcome, idem_finish('k', '"kept"') FROM idem_claim('k', request => '1')$$,
	$$VALUES ('claimed', '"kept"'::jsonb)$$, 'and claimed anew');
SELECT is(count(*), 1::bigint, 'over the same row') FROM idem_key WHERE key = 'k';

UPDATE idem_step SET fingerprint = '\xabcd' FROM idem_key AS k
 WHERE k.generation = idem_step.generation AND k.key = 'lease';
SELECT throws_ok(format('SELECT * FROM idem_step(''lease'', ''s'', token => %s)', token), 'XX001', NULL,
	'a fingerprint of a step that is none') FROM lease;
UPDATE idem_step SET fingerprint = sha256('<d\000\000\000\012'::bytea || numeric_send(1) || ']'::bytea) FROM idem_key AS k
 WHERE k.generation = idem_step.generation AND k.key = 'lease';
SELECT results_eq(format('SELECT * FROM idem_step(''lease'', ''s'', ''1.0'', token => %s)', token),
	$$VALUES (true, '1'::jsonb)$$, 'that of a step is made like that of a key') FROM lease;
SELECT throws_ok(format('SELECT * FROM idem_step(''lease'', ''s'', ''2'', token => %s)', token), 'ID006', NULL,
	'and compared') FROM lease;

-- What does no harm: it works, and is kept up to date.

CREATE TEMPORARY TABLE harmless (n int, change text);
INSERT INTO harmless VALUES
	(101, 'CREATE INDEX harmless_expires ON idem_key (expires_at)'),
	(102, 'CREATE INDEX harmless_owner ON idem_key (owner DESC NULLS FIRST, finished_at)'),
	(103, 'CREATE INDEX harmless_response ON idem_key (response)'),
	(104, 'CREATE INDEX harmless_include ON idem_key (finished_at) INCLUDE (response)'),
	(105, 'ALTER TABLE idem_key SET (fillfactor = 50, autovacuum_enabled = false)'),
	(106, 'ALTER TABLE idem_key ALTER COLUMN response SET STORAGE EXTERNAL'),
	(107, 'ALTER TABLE idem_key ALTER COLUMN response SET STATISTICS 0'),
	(108, 'ALTER TABLE idem_key ALTER COLUMN scope SET DEFAULT ''x'''),
	(109, 'ALTER TABLE idem_key ADD CHECK (key <> ''n109'')'),
	(110, 'ALTER TABLE idem_key ENABLE ROW LEVEL SECURITY'),
	(111, 'CREATE RULE harmless AS ON INSERT TO idem_key DO INSTEAD NOTHING'),
	(112, 'CLUSTER idem_key USING idem_key_pkey'),
	(113, 'REINDEX TABLE idem_key'),
	(114, 'ALTER TABLE idem_key REPLICA IDENTITY FULL'),
	(115, 'ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (id, owner) INCLUDE (finished_at)'),
	(116, 'ALTER TABLE idem_key ADD COLUMN extra text; ALTER TABLE idem_key DROP COLUMN extra'),
	(117, 'ANALYZE idem_key');
CREATE FUNCTION pg_temp.harmless(n int, change text) RETURNS SETOF text LANGUAGE plpgsql AS
$$
BEGIN
	EXECUTE change;
	RETURN QUERY SELECT * FROM pg_temp.still_works(n);
END
$$;
SELECT results_eq(format('SELECT * FROM pg_temp.harmless(%s, %L)', n, change),
	format('VALUES (''replayed"kept"''), (''claimed''), (''replayed%s'')', n),
	'harmless: ' || change)
  FROM harmless ORDER BY n;
SELECT is(outcome, 'claimed', 'a flow') FROM idem_claim('flow 2');
SELECT is(idem_step_finish('flow 2', 's', '1'), '1', 'with a step');
CREATE FUNCTION pg_temp.harmless_step(n int, change text) RETURNS SETOF text LANGUAGE plpgsql AS
$$
BEGIN
	EXECUTE change;
	RETURN NEXT done || ':' || result FROM idem_step('flow 2', 's');
	PERFORM idem_step_finish('flow 2', 'h' || n, to_jsonb(n));
	RETURN NEXT done || ':' || result FROM idem_step('flow 2', 'h' || n);
	RETURN NEXT count(*) FROM idem_steps('flow 2');
END
$$;
SELECT results_eq(format('SELECT * FROM pg_temp.harmless_step(%s, %L)', n, change),
	format('VALUES (''true:1''), (''true:%s''), (''%s'')', n, n + 1),
	'harmless: ' || change)
  FROM (VALUES
	(1, 'CREATE INDEX harmless_attempt ON idem_step (attempt, finished_at)'),
	(2, 'CREATE INDEX harmless_result_2 ON idem_step (result)'),
	(3, 'ALTER TABLE idem_step SET (fillfactor = 50, autovacuum_enabled = false)'),
	(4, 'ALTER TABLE idem_step ALTER COLUMN result SET STORAGE EXTERNAL'),
	(5, 'ALTER TABLE idem_step ALTER COLUMN step SET DEFAULT ''x'''),
	(6, 'ALTER TABLE idem_step ADD CHECK (step <> ''h6'')'),
	(7, 'ALTER TABLE idem_step ENABLE ROW LEVEL SECURITY'),
	(8, 'CREATE RULE harmless AS ON INSERT TO idem_step DO INSTEAD NOTHING'),
	(9, 'CLUSTER idem_step USING idem_step_pkey'),
	(10, 'REINDEX TABLE idem_step'),
	(11, 'ALTER TABLE idem_step ADD COLUMN extra text; ALTER TABLE idem_step DROP COLUMN extra')) AS t(n, change)
 ORDER BY n;
SET LOCAL enable_seqscan = off;
SELECT results_eq(
	$$SELECT count(*) FROM idem_step WHERE attempt = 1$$,
	$$SELECT count(*) FROM idem_step WHERE attempt + 0 = 1$$,
	'steps are in all these indexes');
RESET enable_seqscan;
SELECT lives_ok($$SELECT idem_release('flow 2')$$, 'they are dropped');
SELECT set_eq(
	$$SELECT k.key FROM idem_step AS s LEFT JOIN idem_key AS k USING (generation)$$,
	ARRAY['flow', 'forgotten', 'expired', 'over', 'lease'],
	'and no step is left without a key');

UPDATE idem_key SET expires_at = 'epoch' WHERE key IN ('n1', 'n2', 'n3');
SELECT results_eq(
	$$SELECT outcome, idem_finish(key, '{"again": true}')
	    FROM unnest(ARRAY['n1', 'n2', 'n3']) AS key, LATERAL idem_claim(key)$$,
	$$SELECT 'claimed'::text, '{"again": true}'::jsonb FROM generate_series(1, 3)$$,
	'records are replaced under all these indexes');
SET LOCAL enable_seqscan = off;
SELECT is(count(*), 3::bigint, 'which find them')
  FROM idem_key WHERE response @> '{"again": true}';
SELECT results_eq(
	$$SELECT count(*) FROM idem_key WHERE expires_at > '1999-01-01'$$,
	$$SELECT count(*) FROM idem_key WHERE expires_at + '0' > '1999-01-01'$$,
	'each of them');

SELECT * FROM finish();
ROLLBACK;
