-- A superuser can alter the tables. What would be misread, or written wrongly,
-- is refused; what does no harm is let be; and once the change is undone
-- everything works as before, in the same session.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(341);

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

-- The same for the tables of queues. Whoever comes to one is refused.

SELECT is(idem_enqueue('q', '1', 'message', message_group => 'g'), 1::bigint, 'a message');
SELECT is(idem_enqueue('q', '2'), 2::bigint, 'another one');
SELECT is(idem_nack(id, token, final => true), NULL, 'a dead letter')
  FROM idem_enqueue('dead', '3'), idem_dequeue('dead');
CREATE TEMPORARY TABLE delivery AS SELECT id, token FROM idem_dequeue('q', 10, '1 hour') WHERE id = 2;
UPDATE idem_message SET token = 0, lease_until = '-infinity', attempt = 0 WHERE id = 1;
CREATE FUNCTION pg_temp.queues_still_work(n int) RETURNS SETOF text LANGUAGE plpgsql AS
$$
BEGIN
	PERFORM idem_enqueue('new', to_jsonb(n), 'k' || n, message_group => 'g' || n);
	RETURN NEXT payload FROM idem_dequeue('new');
	RETURN NEXT idem_extend(id, token, '1 day') > now() FROM delivery;
	RETURN NEXT state FROM idem_messages WHERE id = 1;
	RETURN NEXT payload FROM idem_dead_letters;
END
$$;
CREATE TEMPORARY TABLE queue_tampering (n int GENERATED ALWAYS AS IDENTITY, change text, of text);
-- without the views, which would take the extension along
CREATE FUNCTION pg_temp.without_views() RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
	ALTER EXTENSION idempotency DROP FUNCTION idem_status();
	DROP FUNCTION idem_status();
	ALTER EXTENSION idempotency DROP VIEW idem_queues;
	ALTER EXTENSION idempotency DROP VIEW idem_messages;
	ALTER EXTENSION idempotency DROP VIEW idem_dead_letters;
	DROP VIEW idem_queues, idem_messages, idem_dead_letters;
END
$$;
INSERT INTO queue_tampering (change, of)
SELECT format(change, name), name
  FROM unnest('{idem_message,idem_dead_letter}'::text[]) AS name,
	   unnest(ARRAY[
	'ALTER TABLE %s ADD COLUMN extra text',
	'SELECT pg_temp.without_views(); ALTER TABLE %s DROP COLUMN payload',
	'SELECT pg_temp.without_views(); ALTER TABLE %s DROP COLUMN history; ALTER TABLE %1$s ADD COLUMN history jsonb',
	'ALTER TABLE %s RENAME COLUMN payload TO contents',
	'ALTER TABLE %s SET UNLOGGED',
	'UPDATE %s SET headers = ''{}''; ALTER TABLE %1$s ALTER COLUMN headers SET NOT NULL',
	'ALTER TABLE %s ALTER COLUMN priority DROP NOT NULL',
	'ALTER TABLE %s DROP CONSTRAINT %1$s_pkey',
	'ALTER TABLE %s DROP CONSTRAINT %1$s_pkey; ALTER TABLE %1$s ADD PRIMARY KEY (id, owner)',
	'ALTER TABLE %s DROP CONSTRAINT %1$s_pkey; ALTER TABLE %1$s ADD PRIMARY KEY (id) DEFERRABLE',
	'CREATE UNIQUE INDEX ON %s (owner, queue, id)',
	'CREATE INDEX ON %s (lower(queue))',
	'CREATE INDEX ON %s (attempt) WHERE attempt > 1',
	'CREATE INDEX ON %s USING gin (payload)',
	'CREATE INDEX ON %s USING brin (enqueued_at)',
	'ALTER EXTENSION idempotency DROP TABLE %s; ALTER TABLE %1$s RENAME TO gone']) AS change;
INSERT INTO queue_tampering (change, of) VALUES
	('SELECT pg_temp.without_views(); ALTER TABLE idem_message ALTER COLUMN due_at TYPE timestamp', 'idem_message'),
	('SELECT pg_temp.without_views(); ALTER TABLE idem_message ALTER COLUMN queue TYPE text COLLATE "default"', 'idem_message'),
	('SELECT pg_temp.without_views(); ALTER TABLE idem_dead_letter ALTER COLUMN owner TYPE oid', 'idem_dead_letter'),
	('ALTER EXTENSION idempotency DROP SEQUENCE idem_message_id; ALTER SEQUENCE idem_message_id RENAME TO gone', 'idem_message'),
	('ALTER TABLE idem_queue ADD COLUMN extra text', 'idem_queue'),
	('ALTER TABLE idem_queue DROP COLUMN jitter', 'idem_queue'),
	('ALTER TABLE idem_queue RENAME COLUMN jitter TO noise', 'idem_queue'),
	('ALTER TABLE idem_queue ALTER COLUMN max_attempts SET NOT NULL', 'idem_queue'),
	('ALTER TABLE idem_queue DROP CONSTRAINT idem_queue_pkey', 'idem_queue'),
	('CREATE UNIQUE INDEX ON idem_queue (queue)', 'idem_queue'),
	('ALTER EXTENSION idempotency DROP TABLE idem_queue; ALTER TABLE idem_queue RENAME TO gone', 'idem_queue');
CREATE TEMPORARY TABLE queue_call (command text, of text[]);
INSERT INTO queue_call VALUES
	('SELECT idem_enqueue(''q'', ''1'')', '{idem_message,idem_queue}'),
	('SELECT idem_enqueue(''q'', ''1'', message_group => ''g'')', '{idem_message,idem_queue}'),
	('SELECT FROM idem_enqueue_many(''q'', ''{1,2}'')', '{idem_message,idem_queue}'),
	('SELECT FROM idem_receive(''q'', ''1'', ''1'')', '{idem_message,idem_queue}'),
	('SELECT FROM idem_dequeue(''q'')', '{idem_message,idem_queue}'),
	('SELECT idem_ack(id, token) FROM delivery', '{idem_message}'),
	('SELECT idem_ack_many(array_agg(id), array_agg(token)) FROM delivery', '{idem_message}'),
	('SELECT idem_nack(id, token) FROM delivery', '{idem_message,idem_queue}'),
	('SELECT idem_nack(id, token, final => true) FROM delivery', '{idem_message,idem_queue,idem_dead_letter}'),
	('SELECT idem_extend(id, token) FROM delivery', '{idem_message}'),
	('SELECT idem_redrive(''dead'')', '{idem_message,idem_queue,idem_dead_letter}'),
	('SELECT idem_purge(''q'')', '{idem_message,idem_queue}'),
	('SELECT idem_purge(''dead'', true)', '{idem_queue,idem_dead_letter}'),
	('SELECT idem_expire()', '{idem_dead_letter}'),
	('SELECT idem_configure_queue(''q'')', '{idem_queue}');
SELECT is((SELECT string_agg(got, E'\n')
			 FROM pg_temp.refusals(change, ARRAY(SELECT command FROM queue_call AS c WHERE t.of = ANY (c.of))) AS r(got)
			WHERE got NOT IN ('55000', '42P01')),
	NULL, 'refused: ' || change)
  FROM queue_tampering AS t ORDER BY n;
SELECT results_eq(format('SELECT * FROM pg_temp.queues_still_work(%s)', n),
	format('VALUES (''%s''), (''true''), (''ready''), (''3'')', n),
	'undone: ' || change)
  FROM queue_tampering ORDER BY n;
SELECT throws_ok($$DO $do$ BEGIN
		DROP INDEX idem_message_due;
		PERFORM * FROM idem_dequeue('q');
	END $do$ $$, '55000', NULL, 'refused: without the index of what is due');
SELECT throws_ok($$DO $do$ BEGIN
		DROP INDEX idem_message_group;
		PERFORM * FROM idem_dequeue('q');
	END $do$ $$, '55000', NULL, 'refused: without that of groups');
SELECT throws_ok($$DO $do$ BEGIN
		DROP INDEX idem_dead_letter_queue;
		PERFORM idem_redrive('dead');
	END $do$ $$, '55000', NULL, 'refused: without that of dead letters');
SELECT throws_ok(format('DO $do$ BEGIN ALTER TYPE %s; PERFORM * FROM %s; END $do$', change, call),
	'55000', NULL, 'refused: ' || change)
  FROM (VALUES
	('idem_enqueue_answer ADD ATTRIBUTE extra text', 'idem_enqueue_many(''q'', ''{1}'')'),
	('idem_enqueue_answer DROP ATTRIBUTE duplicate', 'idem_enqueue_many(''q'', ''{1}'')'),
	('idem_enqueue_answer ALTER ATTRIBUTE id TYPE int', 'idem_receive(''q'', ''1'', ''1'')'),
	('idem_dequeue_answer ADD ATTRIBUTE extra text', 'idem_dequeue(''q'')'),
	('idem_dequeue_answer DROP ATTRIBUTE token', 'idem_dequeue(''q'')'),
	('idem_dequeue_answer ALTER ATTRIBUTE downstream_key TYPE text', 'idem_dequeue(''q'')')) AS t(change, call);
SELECT results_eq($$SELECT id, payload FROM idem_dequeue('q')$$,
	$$VALUES (1::bigint, '1'::jsonb)$$, 'undone: idem_dequeue');
SELECT lives_ok($$SELECT idem_ack(id, token) FROM delivery$$, 'undone: idem_ack');
SELECT is(idem_redrive('dead'), 1::bigint, 'undone: idem_redrive');

-- What does no harm there.

CREATE FUNCTION pg_temp.harmless_queue(n int, change text) RETURNS SETOF text LANGUAGE plpgsql AS
$$
DECLARE
	answer idem_dequeue_answer;
BEGIN
	EXECUTE change;
	PERFORM idem_enqueue('harmless', to_jsonb(n), 'h' || n, message_group => 'g', headers => '{}');
	SELECT * INTO answer FROM idem_dequeue('harmless');
	RETURN NEXT answer.payload;
	RETURN NEXT idem_nack(answer.id, answer.token, final => true) IS NULL;
	RETURN NEXT idem_redrive('harmless');
	SELECT * INTO answer FROM idem_dequeue('harmless');
	RETURN NEXT answer.payload;
	PERFORM idem_ack(answer.id, answer.token);
END
$$;
SELECT results_eq(format('SELECT * FROM pg_temp.harmless_queue(%s, %L)', n, change),
	format('VALUES (''%1$s''), (''true''), (''1''), (''%1$s'')', n),
	'harmless: ' || change)
  FROM (VALUES
	(1, 'CREATE INDEX harmless_due ON idem_message (due_at)'),
	(2, 'CREATE INDEX harmless_key ON idem_message (key) WHERE key IS NOT NULL'),
	(3, 'CREATE INDEX harmless_token ON idem_message (token, attempt)'),
	(4, 'CREATE INDEX harmless_headers ON idem_dead_letter (headers)'),
	(5, 'ALTER TABLE idem_message SET (fillfactor = 100, autovacuum_enabled = false)'),
	(6, 'ALTER TABLE idem_message ALTER COLUMN payload SET STORAGE EXTERNAL'),
	(7, 'ALTER TABLE idem_message ENABLE ROW LEVEL SECURITY'),
	(8, 'CREATE RULE harmless AS ON INSERT TO idem_message DO INSTEAD NOTHING'),
	(9, 'ALTER TABLE idem_message ADD COLUMN extra text; ALTER TABLE idem_message DROP COLUMN extra'),
	(10, 'ALTER TABLE idem_dead_letter ADD COLUMN extra text; ALTER TABLE idem_dead_letter DROP COLUMN extra'),
	(11, 'ALTER TABLE idem_queue ADD COLUMN extra text; ALTER TABLE idem_queue DROP COLUMN extra; SELECT idem_configure_queue(''harmless'')'),
	(12, 'CLUSTER idem_message USING idem_message_due'),
	(13, 'REINDEX TABLE idem_message'),
	(14, 'REINDEX TABLE idem_dead_letter')) AS t(n, change)
 ORDER BY n;
SET LOCAL enable_seqscan = off;
SELECT results_eq(
	$$SELECT count(*) FROM idem_message WHERE due_at > '1999-01-01'$$,
	$$SELECT count(*) FROM idem_message WHERE due_at + '0' > '1999-01-01'$$,
	'messages are in all these indexes');
RESET enable_seqscan;

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
