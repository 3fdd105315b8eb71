-- Who may do what. The tables are for nobody but their owner, whatever
-- ALTER DEFAULT PRIVILEGES says; the functions are for everybody.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;

CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE "idem Eve, ""the"" 3rd";
CREATE ROLE idem_reader IN ROLE pg_read_all_data;
CREATE ROLE idem_creator SUPERUSER;
CREATE SCHEMA idem;
GRANT ALL ON SCHEMA idem TO PUBLIC;

-- A careless administrator, in every way there is.
ALTER DEFAULT PRIVILEGES FOR ROLE idem_creator
	GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE idem_creator
	GRANT ALL ON TABLES TO idem_bob WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE idem_creator
	GRANT ALL ON SEQUENCES TO PUBLIC, idem_bob;
ALTER DEFAULT PRIVILEGES FOR ROLE idem_creator IN SCHEMA idem
	GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO "idem Eve, ""the"" 3rd";
ALTER DEFAULT PRIVILEGES FOR ROLE idem_creator IN SCHEMA idem
	GRANT SELECT ON TABLES TO idem_ann, idem_creator, pg_monitor;

SET LOCAL ROLE idem_creator;
CREATE TABLE idem.control (x serial);
CREATE EXTENSION idempotency SCHEMA idem;
RESET ROLE;
SET LOCAL search_path = public, idem;

SELECT plan(197);

SELECT isnt_empty(
	$$SELECT 1 FROM pg_class, LATERAL aclexplode(relacl) AS a
	   WHERE oid = 'idem.control'::regclass AND a.grantee <> relowner$$,
	'default privileges are in force for a table of somebody else''s');
SELECT isnt_empty(
	$$SELECT 1 FROM pg_class, LATERAL aclexplode(relacl) AS a
	   WHERE oid = 'idem.control_x_seq'::regclass AND a.grantee <> relowner$$,
	'and for its sequence');
SELECT is_empty(
	$$SELECT relname, a.grantee, a.privilege_type
	    FROM pg_class, LATERAL aclexplode(relacl) AS a
	   WHERE oid IN ('idem.idem_key'::regclass, 'idem.idem_step'::regclass,
					 'idem.idem_queue'::regclass, 'idem.idem_message'::regclass,
					 'idem.idem_message_id'::regclass, 'idem.idem_dead_letter'::regclass,
					 'idem.idem_secret'::regclass)
	     AND a.grantee <> relowner$$,
	'but not for the tables of the extension, and its sequence');
SELECT results_eq(
	$$SELECT relname::text COLLATE "default", relowner::regrole::text FROM pg_class
	   WHERE relnamespace = 'idem'::regnamespace AND relname LIKE 'idem\_%'
	     AND relkind IN ('r', 'v', 'S') ORDER BY 1$$,
	$$VALUES ('idem_breaker', 'idem_creator'), ('idem_breakers', 'idem_creator'),
			 ('idem_dead_letter', 'idem_creator'), ('idem_dead_letters', 'idem_creator'),
			 ('idem_in_flight', 'idem_creator'), ('idem_key', 'idem_creator'),
			 ('idem_message', 'idem_creator'), ('idem_message_id', 'idem_creator'),
			 ('idem_messages', 'idem_creator'), ('idem_queue', 'idem_creator'),
			 ('idem_queues', 'idem_creator'),
			 ('idem_secret', 'idem_creator'), ('idem_stats', 'idem_creator'),
			 ('idem_step', 'idem_creator')$$,
	'they belong to whoever created the extension');
SELECT is_empty(
	$$SELECT attname FROM pg_attribute
	   WHERE attrelid IN ('idem.idem_key'::regclass, 'idem.idem_step'::regclass,
						  'idem.idem_queue'::regclass, 'idem.idem_message'::regclass,
						  'idem.idem_message_id'::regclass, 'idem.idem_dead_letter'::regclass,
						  'idem.idem_secret'::regclass)
	     AND attacl IS NOT NULL$$,
	'no privileges on columns either');

SELECT table_privs_are('idem', t.name, r.name, '{}',
	format('no privilege on %s for %s', t.name, r.name))
  FROM unnest(ARRAY['idem_key', 'idem_step', 'idem_queue', 'idem_message',
					'idem_dead_letter', 'idem_secret']::name[]) AS t(name),
	   unnest(ARRAY['idem_ann', 'idem_bob', 'idem Eve, "the" 3rd', 'pg_monitor']::name[]) AS r(name);
SELECT sequence_privs_are('idem', 'idem_message_id', r.name, '{}',
	format('no privilege on idem_message_id for %s', r.name))
  FROM unnest(ARRAY['idem_ann', 'idem_bob', 'idem Eve, "the" 3rd', 'pg_monitor']::name[]) AS r(name);
SELECT ok(has_table_privilege('idem_ann', 'idem.' || v, 'SELECT'),
	'everybody may look at ' || v)
  FROM unnest('{idem_in_flight,idem_queues,idem_messages,idem_dead_letters}'::text[]) AS v;

-- A plain role: the functions, and nothing but the functions.

INSERT INTO idem.idem_key (expires_at, claimed_at, finished_at, id, owner, scope, key, response)
VALUES ('infinity', now(), now(), idem.idem_key_id('k'), 'idem_bob', '', 'k', '"of bob"');
CREATE TABLE public.account (n int);

SET LOCAL ROLE idem_ann;

SELECT throws_ok(command, '42501', NULL, 'refused to a plain role: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_key',
	'SELECT count(*) FROM idem_key',
	'SELECT key FROM idem_key WHERE owner = current_user::regrole',
	'INSERT INTO idem_key (key) VALUES (NULL)',
	'UPDATE idem_key SET response = NULL',
	'DELETE FROM idem_key',
	'TRUNCATE idem_key',
	'LOCK TABLE idem_key IN ACCESS SHARE MODE',
	'LOCK TABLE idem_key IN ACCESS EXCLUSIVE MODE',
	'CREATE TABLE mine (key text REFERENCES idem_secret)',
	'ALTER TABLE idem_key ADD COLUMN x int',
	'CREATE INDEX ON idem_key (claimed_at)',
	'CREATE TRIGGER t BEFORE INSERT ON idem_key EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'ALTER TABLE idem_key ENABLE ROW LEVEL SECURITY',
	'DROP TABLE idem_key',
	'SELECT * FROM idem_step',
	'SELECT count(*) FROM idem_step',
	'INSERT INTO idem_step (generation, step, attempt, finished_at) VALUES (1, ''s'', 1, now())',
	'UPDATE idem_step SET result = NULL',
	'DELETE FROM idem_step',
	'TRUNCATE idem_step',
	'LOCK TABLE idem_step IN ACCESS SHARE MODE',
	'LOCK TABLE idem_step IN ACCESS EXCLUSIVE MODE',
	'ALTER TABLE idem_step DROP COLUMN result',
	'CREATE INDEX ON idem_step (finished_at)',
	'CREATE TRIGGER t BEFORE INSERT ON idem_step EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'DROP TABLE idem_step',
	'SELECT * FROM idem_queue',
	'INSERT INTO idem_queue (owner, queue, paused) VALUES (''idem_ann'', ''q'', true)',
	'UPDATE idem_queue SET shared_with = NULL',
	'DELETE FROM idem_queue',
	'LOCK TABLE idem_queue IN ACCESS SHARE MODE',
	'SELECT * FROM idem_message',
	'SELECT count(*) FROM idem_message',
	'SELECT token FROM idem_message WHERE owner = current_user::regrole',
	'INSERT INTO idem_message (id) VALUES (1)',
	'UPDATE idem_message SET payload = ''0''',
	'DELETE FROM idem_message',
	'TRUNCATE idem_message',
	'LOCK TABLE idem_message IN ACCESS SHARE MODE',
	'LOCK TABLE idem_message IN ACCESS EXCLUSIVE MODE',
	'CREATE INDEX ON idem_message (attempt)',
	'CREATE TRIGGER t BEFORE INSERT ON idem_message EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'DROP TABLE idem_message',
	'SELECT nextval(''idem_message_id'')',
	'SELECT currval(''idem_message_id'')',
	'SELECT setval(''idem_message_id'', 1)',
	'SELECT last_value FROM idem_message_id',
	'ALTER SEQUENCE idem_message_id RESTART',
	'SELECT * FROM idem_dead_letter',
	'INSERT INTO idem_dead_letter (id) VALUES (1)',
	'UPDATE idem_dead_letter SET payload = ''0''',
	'DELETE FROM idem_dead_letter',
	'TRUNCATE idem_dead_letter',
	'LOCK TABLE idem_dead_letter IN ACCESS SHARE MODE',
	'CREATE OR REPLACE VIEW idem.idem_queues AS SELECT 1',
	'ALTER TYPE idem_once_answer ADD ATTRIBUTE extra text',
	'DROP TYPE idem_step_answer',
	'DROP TYPE idem_dequeue_answer',
	'SELECT * FROM idem_secret',
	'UPDATE idem_secret SET secret = gen_random_uuid()',
	'DELETE FROM idem_secret',
	'TRUNCATE idem_secret',
	'DROP EXTENSION idempotency',
	'CREATE OR REPLACE FUNCTION idem.idem_expire(max_rows int) RETURNS bigint LANGUAGE sql AS ''SELECT 1''',
	'SET idempotency.max_response_size = ''100MB''']) AS command;

SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim('k')$$,
	$$VALUES ('claimed', NULL::jsonb)$$,
	'a plain role may claim');
SELECT results_eq(
	$$SELECT owner::text, state, key FROM idem_in_flight$$,
	$$VALUES ('idem_ann', 'in_progress', 'k')$$,
	'see its claim');
SELECT is(idem_finish('k', '"of ann"'), '"of ann"', 'finish');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim('k')$$,
	$$VALUES ('replayed', '"of ann"'::jsonb)$$,
	'get the response replayed');
SELECT results_eq(
	$$SELECT state, response FROM idem_lookup('k')$$,
	$$VALUES ('finished', '"of ann"'::jsonb)$$,
	'look up');
SELECT lives_ok($$SELECT * FROM idem_claim('l')$$, 'claim another key');
SELECT lives_ok($$SELECT idem_release('l')$$, 'and release it');
SELECT lives_ok($$SELECT * FROM idem_own_claims()$$, 'ask for its claims');
SELECT ok(idem_forget('k'), 'forget');
SELECT is(idem_expire(), 0::bigint, 'expire');
SELECT lives_ok($$SET LOCAL idempotency.default_ttl = '1 min'$$,
	'choose its default ttl');
SELECT lives_ok($$SELECT idem_finish('k') FROM idem_claim('k')$$,
	'claim and finish again');
SELECT is(expires_at - finished_at, '1 min', 'and have it kept for so long')
  FROM idem_lookup('k');

SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many('{m1,m2}')$$,
	$$VALUES ('m1', 'claimed'), ('m2', 'claimed')$$,
	'claim many');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many('{m1,m2}', '{1,2}')$$,
	$$VALUES ('m1', '1'::jsonb), ('m2', '2')$$,
	'finish many');
SELECT lives_ok($$SELECT * FROM idem_claim('flow')$$, 'claim a flow');
SELECT is(idem_step_finish('flow', 's', '"of ann"'), '"of ann"', 'do a step');
SELECT results_eq($$SELECT done, result FROM idem_step('flow', 's')$$,
	$$VALUES (true, '"of ann"'::jsonb)$$, 'have it done');
SELECT results_eq($$SELECT step, result FROM idem_steps('flow')$$,
	$$VALUES ('s', '"of ann"'::jsonb)$$, 'see it');
SELECT lives_ok($$SELECT idem_release('flow')$$, 'and drop it with the flow');
SELECT results_eq($$SELECT outcome, response FROM idem_once('once', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_ann"'::jsonb)$$, 'run a command');
SELECT set_config('request.headers', '{"idempotency-key": "http"}', true) \g /dev/null
SELECT is(idem_http('SELECT current_user'), '"idem_ann"', 'for a request, too');
SELECT isnt(idem_derive('k', 's'), NULL, 'derive a key');
SELECT lives_ok($$SELECT idem_configure_queue('q', backoff_base => '1 hour')$$, 'configure a queue');
SELECT isnt(idem_enqueue('q', '"of ann"', 'k'), NULL, 'enqueue');
SELECT results_eq($$SELECT duplicate FROM idem_enqueue_many('q', '{1,2}', '{k,l}')$$,
	$$VALUES (true), (false)$$, 'enqueue many');
SELECT results_eq($$SELECT duplicate FROM idem_receive('partner', '1', '3', 'q')$$,
	$$VALUES (false)$$, 'receive');
CREATE TEMPORARY TABLE taken AS SELECT * FROM idem_dequeue('q', 10);
SELECT is(count(*), 3::bigint, 'dequeue') FROM taken;
SELECT lives_ok(format('SELECT idem_extend(%s, %s)', id, token), 'extend')
  FROM taken WHERE key = 'k';
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'ack')
  FROM taken WHERE key = 'k';
SELECT is(idem_nack(id, token, final => true), NULL, 'nack') FROM taken WHERE key = 'l';
SELECT results_eq($$SELECT owner::text, ready, in_flight, dead FROM idem_queues$$,
	$$VALUES ('idem_ann', 0::bigint, 1::bigint, 1::bigint)$$, 'see it');
SELECT is(idem_redrive('q'), 1::bigint, 'redrive');
SELECT is(idem_purge('q'), 1::bigint, 'purge');
SELECT lives_ok(format('SELECT idem_nack_many(''{%s}'', ''{%s}'')', id, token), 'nack many')
  FROM taken WHERE key = 'partner/1';
DROP TABLE taken;

-- A command under a key has the rights of its caller, and no others.

RESET ROLE;
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT throws_ok(format('SELECT * FROM idem_once(''refused'', %L)', command), '42501', NULL,
	'refused to a command of a plain role: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM account',
	'INSERT INTO account VALUES (1)',
	'SELECT * FROM idem_key',
	'SELECT * FROM idem_step',
	'DELETE FROM idem_key',
	'SELECT * FROM idem_message',
	'DELETE FROM idem_message',
	'SELECT * FROM idem_dead_letter',
	'UPDATE idem_queue SET paused = true',
	'SELECT nextval(''idem_message_id'')',
	'SELECT * FROM idem_secret',
	'CREATE ROLE idem_other',
	'SET ROLE idem_bob',
	'DROP EXTENSION idempotency']) AS command;
SELECT throws_ok($$SELECT idem_http('SELECT * FROM idem_key', scope => 'x')$$, '42501', NULL,
	'nor for a request');
SELECT is_empty($$SELECT * FROM idem_lookup('refused')$$, 'its key is free');
RESET SESSION AUTHORIZATION;

SET LOCAL ROLE idem_bob;
SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim('k')$$,
	$$VALUES ('replayed', '"of bob"'::jsonb)$$,
	'another role has its own key of that name');

-- Who may read all data may read this, too; that is what it is for.

SET LOCAL ROLE idem_reader;
SELECT lives_ok($$SELECT * FROM idem_key$$, 'pg_read_all_data reads idem_key');
SELECT throws_ok($$DELETE FROM idem_key$$, '42501', NULL, 'but may not write it');
SELECT lives_ok($$SELECT * FROM idem_step$$, 'and idem_step');
SELECT throws_ok($$DELETE FROM idem_step$$, '42501', NULL, 'as little');
SELECT lives_ok('SELECT * FROM ' || t, 'and ' || t)
  FROM unnest('{idem_queue,idem_message,idem_dead_letter,idem_message_id}'::text[]) AS t;
SELECT throws_ok('DELETE FROM ' || t, '42501', NULL, 'but may not write ' || t)
  FROM unnest('{idem_queue,idem_message,idem_dead_letter}'::text[]) AS t;

-- Without EXECUTE there is no way at all.

RESET ROLE;
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA idem FROM PUBLIC;
SET LOCAL ROLE idem_ann;
SELECT throws_ok(command, '42501', NULL, 'revoked: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(''x'')',
	'SELECT idem_finish(''x'')',
	'SELECT idem_release(''x'')',
	'SELECT * FROM idem_lookup(''x'')',
	'SELECT idem_forget(''x'')',
	'SELECT idem_expire()',
	'SELECT * FROM idem_claim_many(''{x}'')',
	'SELECT * FROM idem_claim_many(''{}'')',
	'SELECT * FROM idem_finish_many(''{x}'')',
	'SELECT * FROM idem_once(''x'', ''SELECT 1'')',
	'SELECT idem_http(''SELECT 1'')',
	'SELECT idem_derive(''x'', ''s'')',
	'SELECT * FROM idem_step(''x'', ''s'')',
	'SELECT idem_step_finish(''x'', ''s'')',
	'SELECT * FROM idem_steps(''x'')',
	'SELECT idem_enqueue(''x'', ''1'')',
	'SELECT * FROM idem_enqueue_many(''x'', ''{1}'')',
	'SELECT * FROM idem_receive(''x'', ''1'', ''1'')',
	'SELECT * FROM idem_dequeue(''x'')',
	'CALL idem_await(''x'', ''0'')',
	'SELECT idem_ack(1, 1)',
	'SELECT idem_ack_many(''{1}'', ''{1}'')',
	'SELECT idem_nack(1, 1)',
	'SELECT idem_nack_many(''{1}'', ''{1}'')',
	'SELECT idem_extend(1, 1)',
	'SELECT idem_extend_many(''{1}'', ''{1}'')',
	'SELECT idem_redrive(''x'')',
	'SELECT idem_purge(''x'')',
	'SELECT idem_configure_queue(''x'')']) AS command;
RESET ROLE;
GRANT EXECUTE ON FUNCTION idem.idem_once TO idem_ann;
SET LOCAL ROLE idem_ann;
SELECT results_eq($$SELECT outcome, response FROM idem_once('granted', 'SELECT 1')$$,
	$$VALUES ('claimed', '1'::jsonb)$$, 'idem_once needs no other function to be granted');
RESET ROLE;
GRANT EXECUTE ON FUNCTION idem.idem_enqueue TO idem_ann;
SET LOCAL ROLE idem_ann;
SELECT isnt(idem_enqueue('q', '1', 'granted'), NULL, 'nor does idem_enqueue');

RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
