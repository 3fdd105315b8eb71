-- The extension lives in whatever schema it was created in, and need not be
-- in anybody's search_path.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;

CREATE ROLE idem_ann;
SELECT plan(51);

CREATE SCHEMA "My Ext.%s (ä)";
GRANT USAGE ON SCHEMA "My Ext.%s (ä)" TO idem_ann;
ALTER DEFAULT PRIVILEGES IN SCHEMA "My Ext.%s (ä)" GRANT ALL ON TABLES TO idem_ann;
SELECT lives_ok($$CREATE EXTENSION idempotency SCHEMA "My Ext.%s (ä)"$$,
	'a schema whose name needs quotes');
SELECT results_eq(
	$$SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'idempotency'$$,
	$$VALUES ('"My Ext.%s (ä)"')$$, 'holds the extension');
SELECT is_empty(
	$$SELECT * FROM pg_class, LATERAL aclexplode(relacl) AS a
	   WHERE relnamespace = '"My Ext.%s (ä)"'::regnamespace
	     AND relkind = 'r' AND a.grantee <> relowner$$,
	'with its tables to itself');

SET LOCAL search_path = public;
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT throws_ok($$SELECT * FROM idem_claim('k')$$, '42883', NULL,
	'out of search_path, not found by the bare name');
SELECT results_eq(
	$$SELECT outcome FROM "My Ext.%s (ä)".idem_claim('k', request => '1')$$,
	$$VALUES ('claimed')$$, 'but by the full one');
SELECT results_eq(
	$$SELECT key, state FROM "My Ext.%s (ä)".idem_in_flight$$,
	$$VALUES ('k', 'in_progress')$$, 'the view works');
SELECT is("My Ext.%s (ä)".idem_finish('k', '1'), '1', 'finish');
SELECT results_eq(
	$$SELECT outcome, response FROM "My Ext.%s (ä)".idem_claim('k')$$,
	$$VALUES ('replayed', '1'::jsonb)$$, 'replay');
SELECT results_eq(
	$$SELECT state FROM "My Ext.%s (ä)".idem_lookup('k')$$,
	$$VALUES ('finished')$$, 'lookup');
SELECT ok("My Ext.%s (ä)".idem_forget('k'), 'forget');
SELECT is("My Ext.%s (ä)".idem_expire(), 0::bigint, 'expire');
SELECT lives_ok(
	$$SELECT "My Ext.%s (ä)".idem_release('k') FROM "My Ext.%s (ä)".idem_claim('k')$$,
	'release');
SELECT results_eq(
	$$SELECT key, outcome FROM "My Ext.%s (ä)".idem_claim_many('{a,b}')$$,
	$$VALUES ('a', 'claimed'), ('b', 'claimed')$$, 'claim many');
SELECT is("My Ext.%s (ä)".idem_step_finish('a', 's', '1'), '1', 'finish a step');
SELECT results_eq(
	$$SELECT done, result FROM "My Ext.%s (ä)".idem_step('a', 's')$$,
	$$VALUES (true, '1'::jsonb)$$, 'ask for it');
SELECT results_eq(
	$$SELECT step, result FROM "My Ext.%s (ä)".idem_steps('a')$$,
	$$VALUES ('s', '1'::jsonb)$$, 'list it');
SELECT results_eq(
	$$SELECT * FROM "My Ext.%s (ä)".idem_finish_many('{a,b}', '{1,2}')$$,
	$$VALUES ('a', '1'::jsonb), ('b', '2')$$, 'finish many');
SELECT results_eq(
	$$SELECT outcome, response FROM "My Ext.%s (ä)".idem_once('c', 'SELECT current_schemas(false)::text')$$,
	$$VALUES ('claimed', '"{public}"'::jsonb)$$, 'run a command, in the search_path of the caller');
SELECT set_config('request.headers', '{"idempotency-key": "d"}', true) \g /dev/null
SELECT is("My Ext.%s (ä)".idem_http('SELECT 1'), '1', 'for a request, too');
SELECT is("My Ext.%s (ä)".idem_derive('k', 's', namespace => '00000000-0000-4000-8000-000000000000')::text ~ '-8...-[89ab]',
	true, 'derive');
SELECT is("My Ext.%s (ä)".idem_enqueue('q', '1', 'k'), 1::bigint, 'enqueue');
SELECT results_eq(
	$$SELECT id, duplicate FROM "My Ext.%s (ä)".idem_enqueue_many('q', '{1,2}', '{k,l}')$$,
	$$VALUES (1::bigint, true), (2, false)$$, 'enqueue many');
SELECT results_eq(
	$$SELECT id, duplicate FROM "My Ext.%s (ä)".idem_receive('q', '1', '3')$$,
	$$VALUES (3::bigint, false)$$, 'receive');
SELECT results_eq(
	$$SELECT id, key COLLATE "default" FROM "My Ext.%s (ä)".idem_messages ORDER BY id$$,
	$$VALUES (1::bigint, 'k'), (2, 'l'), (3, 'q/1')$$, 'list messages');
SELECT results_eq(
	$$SELECT d.id, "My Ext.%s (ä)".idem_ack(d.id, d.token)::text
		FROM "My Ext.%s (ä)".idem_dequeue('q') AS d$$,
	$$VALUES (1::bigint, '')$$, 'dequeue and ack');
SELECT results_eq(
	$$SELECT d.id, "My Ext.%s (ä)".idem_nack(d.id, d.token, final => true)
		FROM "My Ext.%s (ä)".idem_dequeue('q') AS d$$,
	$$VALUES (2::bigint, NULL::timestamptz)$$, 'or nack');
SELECT results_eq(
	$$SELECT id FROM "My Ext.%s (ä)".idem_dead_letters$$,
	$$VALUES (2::bigint)$$, 'list dead letters');
SELECT is("My Ext.%s (ä)".idem_redrive('q'), 1::bigint, 'redrive');
SELECT lives_ok($$SELECT "My Ext.%s (ä)".idem_configure_queue('q', paused => true)$$, 'configure');
RESET SESSION AUTHORIZATION;

-- Schemas may be renamed, extensions may not move.

SET LOCAL search_path = public;
SELECT lives_ok($$ALTER SCHEMA "My Ext.%s (ä)" RENAME TO plain$$,
	'the schema is renamed');
GRANT USAGE ON SCHEMA plain TO PUBLIC;
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq(
	$$SELECT outcome, plain.idem_finish('l') FROM plain.idem_claim('l')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'and the extension works there');
SELECT isnt_empty($$SELECT * FROM plain.idem_in_flight$$, 'and its view');
SELECT results_eq(
	$$SELECT outcome, response FROM plain.idem_once('c', 'SELECT 2')$$,
	$$VALUES ('replayed', '"{public}"'::jsonb)$$, 'with what was done before');
SELECT results_eq(
	$$SELECT step, result FROM plain.idem_steps('a')$$,
	$$VALUES ('s', '1'::jsonb)$$, 'step by step');
SELECT results_eq(
	$$SELECT key, outcome, response FROM plain.idem_claim_many('{b,a}')$$,
	$$VALUES ('b', 'replayed', '2'::jsonb), ('a', 'replayed', '1')$$, 'key by key');
SELECT set_eq(
	$$SELECT owner::text, queue, ready, paused FROM plain.idem_queues$$,
	$$VALUES ('idem_ann', 'q', 2::bigint, true)$$, 'queue by queue');
SELECT is(plain.idem_purge('q'), 2::bigint, 'message by message');
RESET SESSION AUTHORIZATION;
SELECT throws_ok($$ALTER EXTENSION idempotency SET SCHEMA public$$, '0A000', NULL,
	'the extension does not move');

-- Dropped with a claim pending, and created elsewhere, in one session.

SELECT results_eq($$SELECT outcome FROM plain.idem_claim('pending')$$,
	$$VALUES ('claimed')$$, 'a claim');
SELECT is(plain.idem_step_finish('pending', 's', '1'), '1', 'with a step');
SELECT isnt(plain.idem_enqueue('q', '1', 'k'), NULL, 'and a message');
SELECT lives_ok($$SELECT plain.idem_configure_queue('q', paused => true)$$, 'in a queue that is paused');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public;
SELECT throws_ok($$SELECT idem_finish('pending')$$, 'ID001', NULL,
	'goes with the extension');
SELECT throws_ok($$SELECT * FROM idem_step('pending', 's')$$, 'ID001', NULL,
	'so does its step');
SELECT results_eq($$SELECT outcome, response FROM idem_once('c', 'SELECT 3')$$,
	$$VALUES ('claimed', '3'::jsonb)$$, 'and all that was done');
SELECT results_eq($$SELECT outcome FROM idem_claim('pending')$$,
	$$VALUES ('claimed')$$, 'it can be made in its successor');
SELECT results_eq($$SELECT done, result FROM idem_step('pending', 's')$$,
	$$VALUES (false, NULL::jsonb)$$, 'with no step done');
SELECT is_empty($$SELECT * FROM idem_queues$$, 'there is no queue');
SELECT is(idem_enqueue('q', '2', 'k'), 1::bigint, 'but for the next message');
SELECT results_eq($$SELECT id, payload FROM idem_dequeue('q')$$,
	$$VALUES (1::bigint, '2'::jsonb)$$, 'which nothing pauses');
SELECT is(idem_finish('pending', '1'), '1', 'and finished');

SELECT * FROM finish();
ROLLBACK;
