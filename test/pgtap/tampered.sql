-- A superuser can alter idem_key. What would be misread, or written wrongly,
-- is refused; what does no harm is let be; and once the change is undone
-- everything works as before, in the same session.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(115);

SELECT is(idem_finish('k', '"kept"'), '"kept"', 'a record')
  FROM idem_claim('k', request => '1');

-- Apply a change, see what the functions say, and undo it.

CREATE FUNCTION pg_temp.refusals(change text) RETURNS SETOF text LANGUAGE plpgsql AS
$$
DECLARE
	command text;
	i int := 0;
BEGIN
	FOREACH command IN ARRAY ARRAY[
		'SELECT 1 FROM idem_claim(''k'')',
		'SELECT 1 FROM idem_claim(''new'')',
		'SELECT 1 FROM idem_lookup(''k'')',
		'SELECT 1 FROM idem_finish(''k'')',
		'SELECT 1 FROM idem_release(''k'')',
		'SELECT 1 FROM idem_forget(''k'')',
		'SELECT 1 FROM idem_expire()']
	LOOP
		BEGIN
			EXECUTE change;
			BEGIN
				EXECUTE command;
				RAISE 'not refused' USING ERRCODE = 'XXXXX';
			EXCEPTION
				WHEN division_by_zero THEN
			END;
		EXCEPTION
			WHEN undefined_table OR object_not_in_prerequisite_state OR data_corrupted THEN
				RETURN NEXT SQLSTATE;
			WHEN OTHERS THEN
				RETURN NEXT SQLSTATE || ' ' || command || ': ' || SQLERRM;
		END;
	END LOOP;
END
$$;
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
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (owner, scope, key)'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (key, scope, owner, claimed_at)'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (key, scope, owner) DEFERRABLE'),
	('ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; CREATE UNIQUE INDEX ON idem_key (key, scope, owner)'),
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
SELECT ok(bool_and(got IN ('55000', '42P01')) AND count(*) = 7,
		  'refused: ' || change)
	   || CASE WHEN bool_and(got IN ('55000', '42P01')) AND count(*) = 7 THEN ''
			   ELSE E'\n' || diag(string_agg(got, E'\n')) END
  FROM tampering, LATERAL pg_temp.refusals(change) AS r(got)
 GROUP BY n, change ORDER BY n;
SELECT results_eq(format('SELECT * FROM pg_temp.still_works(%s)', n),
	format('VALUES (''replayed"kept"''), (''claimed''), (''replayed%s'')', n),
	'undone: ' || change)
  FROM tampering ORDER BY n;

-- So is the type of what idem_claim answers.

SELECT throws_ok(format('DO $do$ BEGIN %s; PERFORM outcome FROM idem_claim(''k''); END $do$', change),
	'55000', NULL, 'refused: ' || change)
  FROM unnest(ARRAY[
	'ALTER TYPE idem_claim_answer DROP ATTRIBUTE token',
	'ALTER TYPE idem_claim_answer ADD ATTRIBUTE extra text',
	'ALTER TYPE idem_claim_answer DROP ATTRIBUTE token, ADD ATTRIBUTE token bigint',
	'ALTER TYPE idem_claim_answer ALTER ATTRIBUTE outcome TYPE bigint',
	'ALTER TYPE idem_claim_answer ALTER ATTRIBUTE attempt TYPE text']) AS change;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '1')$$,
	$$VALUES ('replayed', '"kept"'::jsonb)$$, 'undone: all of that');

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
	(115, 'ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey; ALTER TABLE idem_key ADD PRIMARY KEY (key, scope, owner) INCLUDE (finished_at)'),
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
