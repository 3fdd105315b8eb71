-- Objects of other people earlier in search_path, or in the schema that the
-- extension is created in, change no answer and are never called. But a command
-- under a key means what it means to its caller, who is not always the same.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA evil;

SELECT plan(103);

-- Whatever is called raises, so that it shows.

CREATE FUNCTION evil.trap() RETURNS text LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'EVIL0'; END$$;
SELECT format('CREATE FUNCTION evil.trap(a %s, b %s) RETURNS %s LANGUAGE sql AS ''SELECT evil.trap()::pg_catalog.%3$s''',
	a, b, 'bool')
  FROM (SELECT unnest(ARRAY['text', 'oid', 'regrole', 'regclass', 'name', 'int4', 'int8', 'uuid',
			'jsonb', 'bytea', 'interval', 'timestamptz', 'bool', 'xid', '"char"'])) AS t(a),
	   LATERAL (SELECT a UNION SELECT 'int4' UNION SELECT 'oid') AS u(b)
\gexec
SELECT format('CREATE OPERATOR evil.%s (FUNCTION = evil.trap, LEFTARG = %s, RIGHTARG = %s)',
	o, a, b)
  FROM (SELECT unnest(ARRAY['text', 'oid', 'regrole', 'regclass', 'name', 'int4', 'int8', 'uuid',
			'jsonb', 'bytea', 'interval', 'timestamptz', 'bool', 'xid', '"char"'])) AS t(a),
	   LATERAL (SELECT a UNION SELECT 'int4' UNION SELECT 'oid') AS u(b),
	   unnest(ARRAY['=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '->']) AS o
\gexec
SELECT format('CREATE FUNCTION evil.%s RETURNS %s LANGUAGE sql AS ''SELECT evil.trap()::pg_catalog.%2$s''', f, r)
  FROM (VALUES
	('pg_backend_pid()', 'int4'), ('current_database()', 'name'),
	('pg_has_role(name, text)', 'bool'), ('pg_has_role(regrole, text)', 'bool'),
	('unnest(regrole[])', 'regrole'), ('nextval(regclass)', 'int8'),
	('gen_random_uuid()', 'uuid'),
	('format(text, regclass, text)', 'text'), ('format(text, text, text)', 'text'),
	('aclexplode(aclitem[])', 'bool'), ('clock_timestamp()', 'timestamptz'),
	('now()', 'timestamptz'),
	('timestamptz_pl_interval(timestamptz, interval)', 'timestamptz'),
	('texteq(text, text)', 'bool'), ('oideq(oid, oid)', 'bool'),
	('pg_extension_config_dump(regclass, text)', 'text'),
	('to_jsonb(anyelement)', 'jsonb'), ('to_json(anyelement)', 'text'),
	('sha256(bytea)', 'bytea'), ('set_config(text, text, bool)', 'text'),
	('current_setting(text)', 'text'), ('current_setting(text, bool)', 'text'),
	('jsonb_build_object()', 'jsonb'),
	('idem_claim(text)', 'text'), ('idem_finish(text)', 'text'),
	('idem_enqueue(text, jsonb)', 'int8'), ('idem_dequeue(text)', 'int8'),
	('idem_ack(int8)', 'bool'),
	('idem_helper(text)', 'text')) AS v(f, r)
\gexec
SELECT format('CREATE DOMAIN evil.%I AS int4', t)
  FROM unnest(ARRAY['jsonb', 'interval', 'uuid', 'regclass', 'regrole', 'bytea',
	'timestamptz', 'oid', 'bool', 'int8', 'int4', 'record', 'text']) AS t
\gexec
SELECT format('CREATE TABLE evil.%I ()', t)
  FROM unnest(ARRAY['pg_locks', 'pg_stat_activity', 'pg_prepared_xacts', 'pg_roles',
	'pg_database', 'pg_class', 'pg_extension']) AS t
\gexec
CREATE COLLATION evil."C" FROM pg_catalog."POSIX";

-- The SQLSTATE that a command ends with, run with the search_path of the time.

CREATE TEMPORARY TABLE answer (what text, got text);
CREATE FUNCTION public.sqlstate_of(command text) RETURNS text LANGUAGE plpgsql AS
$$
BEGIN
	EXECUTE command;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- Into a schema full of traps. ALTER DEFAULT PRIVILEGES makes the script do
-- all that it can do.

ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC, pg_monitor;
SAVEPOINT before_create;
SELECT is(public.sqlstate_of('CREATE EXTENSION idempotency SCHEMA evil'), '00000',
	'CREATE EXTENSION in a schema full of traps calls none of them');
SELECT is(public.sqlstate_of('SELECT * FROM evil.idem_in_flight'), '00000',
	'nor does the view there');
SELECT is(public.sqlstate_of('SELECT * FROM evil.' || v), '00000', 'nor does ' || v)
  FROM unnest('{idem_queues,idem_messages,idem_dead_letters}'::text[]) AS v;
DROP EXTENSION IF EXISTS idempotency;

CREATE FUNCTION evil.idem_release(key text, scope text, token bigint) RETURNS void
	LANGUAGE sql AS 'SELECT 1';
SELECT throws_ok('CREATE EXTENSION idempotency SCHEMA evil', '42723', NULL,
	'a function that is there already is not taken over');
DROP FUNCTION evil.idem_release;
CREATE TABLE evil.idem_key ();
SELECT throws_ok('CREATE EXTENSION idempotency SCHEMA evil', '42P07', NULL,
	'nor is a table');
DROP TABLE evil.idem_key;

-- Into a schema of its own, but with the traps first in search_path.

CREATE SCHEMA idem;
CREATE TABLE evil.idem_key (key text);
CREATE TABLE evil.idem_step (generation int8, step text);
CREATE TABLE evil.idem_secret (secret uuid);
CREATE TABLE evil.idem_queue (owner regrole, queue text, paused bool, shared_with regrole[]);
CREATE TABLE evil.idem_message (id int8, owner regrole, queue text, payload jsonb);
CREATE TABLE evil.idem_dead_letter (id int8, owner regrole, queue text, payload jsonb);
CREATE TABLE evil.idem_messages (LIKE evil.idem_message);
CREATE TABLE evil.idem_dead_letters (LIKE evil.idem_dead_letter);
CREATE SEQUENCE evil.idem_message_id START 1000;
SET LOCAL search_path = evil, pg_catalog, public;
CREATE EXTENSION idempotency SCHEMA idem;

INSERT INTO pg_temp.answer SELECT 'the trap snaps',
	public.sqlstate_of('SELECT ''a''::pg_catalog.text = ''b''::pg_catalog.text');
INSERT INTO pg_temp.answer SELECT 'the types are not those of PostgreSQL',
	public.sqlstate_of('SELECT ''a''::text');
INSERT INTO pg_temp.answer SELECT 'first claim', outcome
  FROM idem.idem_claim('k', '1 month 1 day', '{"a": 1}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'claim again', outcome
  FROM idem.idem_claim('k', '1 month 1 day', '{"a": 1}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'in flight', f.key
  FROM idem.idem_in_flight AS f;
INSERT INTO pg_temp.answer SELECT 'lookup', state
  FROM idem.idem_lookup('k', 's');
INSERT INTO pg_temp.answer SELECT 'finish',
	pg_catalog.jsonb_out(idem.idem_finish('k', '{"b": 2.50}', 's'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'replay', pg_catalog.jsonb_out(response)::pg_catalog.text
  FROM idem.idem_claim('k', request => '{"a": 1}', scope => 's');
INSERT INTO pg_temp.answer SELECT 'mismatch', outcome
  FROM idem.idem_claim('k', request => '{"a": 2}', scope => 's');
INSERT INTO pg_temp.answer SELECT 'released',
	public.sqlstate_of('SELECT idem.idem_release(''l'') FROM idem.idem_claim(''l'')');
INSERT INTO pg_temp.answer SELECT 'claimed again after a release', outcome
  FROM idem.idem_claim('l');
INSERT INTO pg_temp.answer SELECT 'finish again',
	public.sqlstate_of('SELECT idem.idem_finish(''k'', NULL, ''s'')');
INSERT INTO pg_temp.answer SELECT pg_catalog.concat('claim many ', key), outcome
  FROM idem.idem_claim_many('{k,m}', '1 month 1 day', '{"{\"a\": 1}",2}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'step before', pg_catalog.boolout(done)::pg_catalog.text
  FROM idem.idem_step('m', 't', '1', 's');
INSERT INTO pg_temp.answer SELECT 'step finish',
	pg_catalog.jsonb_out(idem.idem_step_finish('m', 't', '2.50', 's', request => '1'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'step after', pg_catalog.jsonb_out(result)::pg_catalog.text
  FROM idem.idem_step('m', 't', '1.0', 's');
INSERT INTO pg_temp.answer SELECT 'steps', step
  FROM idem.idem_steps('m', 's');
INSERT INTO pg_temp.answer SELECT 'finish many', pg_catalog.jsonb_out(response)::pg_catalog.text
  FROM idem.idem_finish_many('{m}', '{3}', 's');
INSERT INTO pg_temp.answer SELECT 'derive', pg_catalog.uuid_out(idem.idem_derive('k', 't', 's', '11111111-1111-4111-8111-111111111111'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'once', pg_catalog.jsonb_out(response)::pg_catalog.text
  FROM idem.idem_once('o', 'VALUES ($1::pg_catalog.text, $2::pg_catalog.int4), (NULL, 2)', '{x,1}', '1 month', '{"a": 1}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'once again', pg_catalog.jsonb_out(response)::pg_catalog.text
  FROM idem.idem_once('o', 'SELECT evil.trap()', scope => 's');
INSERT INTO pg_temp.answer SELECT 'a command that uses the traps',
	public.sqlstate_of('SELECT idem.idem_once(''p'', ''SELECT ''''a''''::pg_catalog.text = ''''b''''::pg_catalog.text'')');
INSERT INTO pg_temp.answer SELECT 'a command that calls them',
	public.sqlstate_of('SELECT idem.idem_once(''p'', ''SELECT trap()'')');
SELECT pg_catalog.set_config('request.headers', '{"idempotency-key": "h"}', true) \g /dev/null
SELECT pg_catalog.set_config('request.path', '/p', true) \g /dev/null
INSERT INTO pg_temp.answer SELECT 'http', pg_catalog.jsonb_out(idem.idem_http('SELECT $1::pg_catalog.int4', '{1}'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'http again', pg_catalog.jsonb_out(idem.idem_http('SELECT $1::pg_catalog.int4', '{1}'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'http header', pg_catalog.current_setting('response.headers');
INSERT INTO pg_temp.answer SELECT 'http otherwise', pg_catalog.jsonb_out(pg_catalog.jsonb_object_field(idem.idem_http('SELECT $1::pg_catalog.int4', '{2}'), 'status'))::pg_catalog.text;
UPDATE idem.idem_key SET expires_at = 'epoch';
INSERT INTO pg_temp.answer SELECT 'expired', pg_catalog.int8out(idem.idem_expire())::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'forgotten', pg_catalog.boolout(idem.idem_forget('k', 's'))::pg_catalog.text;
SELECT idem.idem_configure_queue('q', 2, '1 day', '1 month', 'none', '1 month', '{pg_monitor}') \g /dev/null
INSERT INTO pg_temp.answer SELECT 'enqueue', pg_catalog.int8out(idem.idem_enqueue('q', '{"a": 1}', 'k', headers => '{"b": 2.50}', message_group => 'g'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'enqueue again', pg_catalog.int8out(idem.idem_enqueue('q', '{"a": 2}', 'k'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT pg_catalog.concat('enqueue many ', id), pg_catalog.boolout(duplicate)::pg_catalog.text
  FROM idem.idem_enqueue_many('q', '{3,4}', '{k,l}', priority => 1);
INSERT INTO pg_temp.answer SELECT 'receive', pg_catalog.int8out(id)::pg_catalog.text
  FROM idem.idem_receive('s', '1', '5', 'q', message_group => 'g');
INSERT INTO pg_temp.answer SELECT 'receive again', pg_catalog.boolout(duplicate)::pg_catalog.text
  FROM idem.idem_receive('s', '1', '5', 'q');
CREATE TABLE public.taken AS SELECT * FROM idem.idem_dequeue('q', 10, '1 day', '1 second');
INSERT INTO pg_temp.answer SELECT pg_catalog.concat('dequeue ', id), pg_catalog.concat(key, ' ', pg_catalog.jsonb_out(payload))
  FROM public.taken;
INSERT INTO pg_temp.answer SELECT 'downstream key', pg_catalog.uuid_out(downstream_key)::pg_catalog.text
  FROM public.taken WHERE pg_catalog.int8eq(id, 1);
INSERT INTO pg_temp.answer SELECT pg_catalog.concat('view ', id), state
  FROM idem.idem_messages;
INSERT INTO pg_temp.answer SELECT 'extended', pg_catalog.boolout(pg_catalog.timestamptz_gt(idem.idem_extend(id, token, '1 month'), lease_until))::pg_catalog.text
  FROM public.taken WHERE pg_catalog.int8eq(id, 1);
INSERT INTO pg_temp.answer SELECT 'nack', pg_catalog.boolout(pg_catalog.timestamptz_gt(idem.idem_nack(id, token, '"down"'), pg_catalog.clock_timestamp()))::pg_catalog.text
  FROM public.taken WHERE pg_catalog.int8eq(id, 1);
INSERT INTO pg_temp.answer SELECT 'nack, final', pg_catalog.timestamptz_out(idem.idem_nack(id, token, '"broken"', final => true))::pg_catalog.text
  FROM public.taken WHERE pg_catalog.int8eq(id, 2);
INSERT INTO pg_temp.answer SELECT 'dead letter', pg_catalog.jsonb_out(last_error)::pg_catalog.text
  FROM idem.idem_dead_letters;
INSERT INTO pg_temp.answer SELECT 'queue', pg_catalog.concat_ws(' ', ready, in_flight, delayed, retrying, dead, paused)
  FROM idem.idem_queues;
INSERT INTO pg_temp.answer SELECT 'redrive', pg_catalog.int8out(idem.idem_redrive('q'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'ack', public.sqlstate_of(pg_catalog.format('SELECT idem.idem_ack(%s, %s)', id, token))
  FROM idem.idem_dequeue('q');
INSERT INTO pg_temp.answer SELECT 'ack again', public.sqlstate_of(pg_catalog.format('SELECT idem.idem_ack(%s, %s)', id, token))
  FROM public.taken WHERE pg_catalog.int8eq(id, 2);
INSERT INTO pg_temp.answer SELECT 'purge', pg_catalog.int8out(idem.idem_purge('q'))::pg_catalog.text;
DROP TABLE public.taken;

RESET search_path;
CREATE FUNCTION pg_temp.derive() RETURNS text LANGUAGE sql AS
$$
	SELECT (encode(substr(d, 1, 6), 'hex') || '8' || substr(encode(substr(d, 7, 2), 'hex'), 2) ||
			to_hex((get_byte(d, 8) & 63) | 128) || encode(substr(d, 10, 7), 'hex'))::uuid::text
	  FROM sha256('\x11111111111141118111111111111111'::bytea ||
				  '\x00000001'::bytea || 's'::bytea || '\x00000001'::bytea || 'k'::bytea ||
				  '\x00000001'::bytea || 't'::bytea) AS d
$$;
SELECT is(a.got, e.got, e.what)
  FROM (VALUES
	(1, 'the trap snaps', 'EVIL0'),
	(2, 'the types are not those of PostgreSQL', '22P02'),
	(3, 'first claim', 'claimed'),
	(4, 'claim again', 'in_progress'),
	(5, 'in flight', 'k'),
	(6, 'lookup', 'in_progress'),
	(7, 'finish', '{"b": 2.50}'),
	(8, 'replay', '{"b": 2.50}'),
	(9, 'mismatch', 'mismatch'),
	(10, 'released', '00000'),
	(11, 'claimed again after a release', 'claimed'),
	(12, 'finish again', 'ID002'),
	(13, 'claim many k', 'replayed'),
	(14, 'claim many m', 'claimed'),
	(15, 'step before', 'f'),
	(16, 'step finish', '2.50'),
	(17, 'step after', '2.50'),
	(18, 'steps', 't'),
	(19, 'finish many', '3'),
	(20, 'derive', pg_temp.derive()),
	(21, 'once', '[{"column1": "x", "column2": 1}, {"column1": null, "column2": 2}]'),
	(22, 'once again', '[{"column1": "x", "column2": 1}, {"column1": null, "column2": 2}]'),
	(23, 'a command that uses the traps', 'EVIL0'),
	(24, 'a command that calls them', 'EVIL0'),
	(25, 'http', '1'),
	(26, 'http again', '1'),
	(27, 'http header', '[{"Idempotency-Replayed": "true"}]'),
	(28, 'http otherwise', '422'),
	(29, 'expired', '4'),
	(30, 'forgotten', 'f'),
	(31, 'enqueue', '1'),
	(32, 'enqueue again', '1'),
	(33, 'enqueue many 1', 't'),
	(34, 'enqueue many 2', 'f'),
	(35, 'receive', '3'),
	(36, 'receive again', 't'),
	(37, 'dequeue 1', 'k {"a": 1}'),
	(38, 'dequeue 2', 'l 4'),
	(39, 'dequeue 3', NULL),
	(40, 'downstream key', idem.idem_derive('k', 'message', 'queue:q')::text),
	(41, 'view 1', 'in_flight'),
	(42, 'view 2', 'in_flight'),
	(43, 'view 3', 'ready'),
	(44, 'extended', 't'),
	(45, 'nack', 't'),
	(46, 'nack, final', NULL),
	(47, 'dead letter', '"broken"'),
	(48, 'queue', '1 0 0 1 1 f'),
	(49, 'redrive', '1'),
	(50, 'ack', '00000'),
	(51, 'ack again', 'ID003'),
	(52, 'purge', '2')) AS e(n, what, got)
	   LEFT JOIN answer AS a USING (what)
 ORDER BY n;
SELECT is((SELECT count(*) FROM evil.idem_key), 0::bigint,
	'a table of the same name earlier in search_path is not met');
SELECT is((SELECT count(*) FROM evil.idem_step), 0::bigint,
	'nor is one for steps');
SELECT is((SELECT count(*) FROM evil.idem_message), 0::bigint, 'or for messages');
SELECT is((SELECT count(*) FROM evil.idem_dead_letter), 0::bigint, 'or for dead letters');
SELECT is((SELECT count(*) FROM evil.idem_queue), 0::bigint, 'or for queues');
SELECT is(last_value, 1000::bigint, 'nor is a sequence') FROM evil.idem_message_id;
SELECT is_empty(
	$$SELECT attname FROM pg_attribute
	    JOIN pg_type AS t ON t.oid = atttypid
	   WHERE attrelid IN ('idem.idem_key'::regclass, 'idem.idem_secret'::regclass,
						  'idem.idem_step'::regclass, 'idem.idem_queue'::regclass,
						  'idem.idem_message'::regclass, 'idem.idem_dead_letter'::regclass,
						  'idem.idem_in_flight'::regclass, 'idem.idem_queues'::regclass,
						  'idem.idem_messages'::regclass, 'idem.idem_dead_letters'::regclass,
						  'idem.idem_enqueue_answer'::regclass,
						  'idem.idem_dequeue_answer'::regclass,
						  'idem.idem_claim_answer'::regclass,
						  'idem.idem_claim_many_answer'::regclass,
						  'idem.idem_finish_many_answer'::regclass,
						  'idem.idem_once_answer'::regclass,
						  'idem.idem_step_answer'::regclass,
						  'idem.idem_breaker'::regclass, 'idem.idem_breakers'::regclass,
						  'idem.idem_stats'::regclass, 'idem.idem_breaker_answer'::regclass)
	     AND t.typnamespace <> 'pg_catalog'::regnamespace$$,
	'columns have the types of PostgreSQL');
SELECT is_empty(
	$$SELECT proname FROM pg_proc AS p,
		LATERAL unnest(p.proargtypes::oid[] || p.prorettype) AS a(type)
	    JOIN pg_type AS t ON t.oid = a.type
	   WHERE pronamespace = 'idem'::regnamespace
	     AND t.typnamespace <> 'pg_catalog'::regnamespace
	     AND t.oid <> ALL ('{idem.idem_claim_answer,idem.idem_claim_many_answer,idem.idem_finish_many_answer,idem.idem_once_answer,idem.idem_step_answer,idem.idem_enqueue_answer,idem.idem_dequeue_answer,idem.idem_breaker_answer}'::regtype[])$$,
	'and so have arguments');

-- A temporary table of the same name, which is searched first of all.

CREATE TEMPORARY TABLE idem_key (LIKE idem.idem_key);
CREATE TEMPORARY TABLE idem_step (LIKE idem.idem_step);
CREATE TEMPORARY TABLE idem_queue (LIKE idem.idem_queue);
CREATE TEMPORARY TABLE idem_message (LIKE idem.idem_message);
CREATE TEMPORARY TABLE idem_dead_letter (LIKE idem.idem_dead_letter);
CREATE TEMPORARY SEQUENCE idem_message_id START 1000;
SET LOCAL search_path = pg_temp, idem, public;
SELECT is(idem_finish('temp', '1'), '1', 'a claim beside a temporary idem_key')
  FROM idem_claim('temp');
SELECT is((SELECT count(*) FROM pg_temp.idem_key), 0::bigint, 'which stays empty');
SELECT is((SELECT count(*) FROM idem.idem_key WHERE key = 'temp'), 1::bigint,
	'for the record is where it belongs');
SELECT is(outcome, 'claimed', 'a flow') FROM idem_claim('flow');
SELECT is(idem_step_finish('flow', 's', '1'), '1', 'a step beside a temporary idem_step');
SELECT is((SELECT count(*) FROM pg_temp.idem_step), 0::bigint, 'which stays empty');
SELECT results_eq($$SELECT step, result FROM idem_steps('flow')$$,
	$$VALUES ('s', '1'::jsonb)$$, 'for the step is where it belongs');
SELECT is(idem_finish('flow'), NULL, '(finished)');
SELECT lives_ok($$SELECT idem_configure_queue('temp', 1)$$, 'a queue beside a temporary idem_queue');
SELECT is(idem_enqueue('temp', to_jsonb(n)), n + 3::bigint, 'a message beside a temporary idem_message')
  FROM generate_series(1, 2) AS n;
SELECT is(idem_nack(id, token), NULL, 'a dead letter beside a temporary idem_dead_letter')
  FROM idem_dequeue('temp');
SELECT is((SELECT count(*) FROM pg_temp.idem_queue) + (SELECT count(*) FROM pg_temp.idem_message)
	+ (SELECT count(*) FROM pg_temp.idem_dead_letter), 0::bigint, 'which stay empty');
SELECT results_eq($$SELECT ready, dead FROM idem_queues WHERE queue = 'temp'$$,
	$$VALUES (1::bigint, 1::bigint)$$, 'for what there is is where it belongs');

-- One command, two callers: their schemas, their tables, their rights. Plans
-- are kept, but not for others.

RESET search_path;
ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM PUBLIC, pg_monitor;
CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE SCHEMA ann AUTHORIZATION idem_ann;
CREATE SCHEMA bob AUTHORIZATION idem_bob;
CREATE TABLE ann.who AS SELECT 'ann' AS name, current_user AS seen;
CREATE TABLE bob.who AS SELECT 'bob' AS name;
CREATE TABLE public.secret AS SELECT 42 AS n;
GRANT SELECT ON ann.who TO idem_ann, idem_bob;
GRANT SELECT ON bob.who, public.secret TO idem_bob;
CREATE FUNCTION ann.me() RETURNS text LANGUAGE sql AS 'SELECT ''ann '' || current_user';
CREATE FUNCTION bob.me() RETURNS text LANGUAGE sql AS 'SELECT ''bob '' || current_user';
GRANT USAGE ON SCHEMA ann, bob TO idem_ann, idem_bob;

CREATE SEQUENCE public.key;
GRANT USAGE ON SEQUENCE public.key TO PUBLIC;
-- a fresh key each time, so that the command always runs
CREATE FUNCTION public.run(command text, VARIADIC params text[] = '{}') RETURNS jsonb LANGUAGE sql AS
'SELECT response FROM idem.idem_once(nextval(''public.key'')::text, command, params) WHERE outcome = ''claimed''';
CREATE FUNCTION public.run_as_ann(command text) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS
'SELECT response FROM idem.idem_once(nextval(''public.key'')::text, command) WHERE outcome = ''claimed''';
CREATE FUNCTION public.run_as_ann_there(command text) RETURNS jsonb LANGUAGE sql
SECURITY DEFINER SET search_path = ann, public AS
'SELECT response FROM idem.idem_once(nextval(''public.key'')::text, command) WHERE outcome = ''claimed''';
ALTER FUNCTION public.run_as_ann OWNER TO idem_ann;
ALTER FUNCTION public.run_as_ann_there OWNER TO idem_ann;

SET LOCAL search_path = ann, public;
SELECT is(run('SELECT name FROM who'), '"ann"', 'the search_path of the caller');
SET LOCAL search_path = bob, public;
SELECT is(run('SELECT name FROM who'), '"bob"', 'another one, the same command');
SET LOCAL search_path = ann, public;
SELECT is(run('SELECT name FROM who'), '"ann"', 'and back');
SET LOCAL search_path = bob, ann, public;
SELECT is(run('SELECT name FROM who WHERE name <> $1', ''), '"bob"', 'with a parameter');
SET LOCAL search_path = ann, bob, public;
SELECT is(run('SELECT name FROM who WHERE name <> $1', ''), '"ann"', 'in another order');
SELECT is(run('SELECT me()'), to_jsonb('ann ' || current_user), 'functions, too');
SET LOCAL search_path = bob, ann, public;
SELECT is(run('SELECT me()'), to_jsonb('bob ' || current_user), 'are those of the caller');
SET LOCAL search_path = public;
SELECT throws_ok($$SELECT run('SELECT me()')$$, '42883', NULL, 'and gone if they are out of sight');
SELECT throws_ok($$SELECT run('SELECT name FROM who')$$, '42P01', NULL, 'like tables');

SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is(run('SELECT n FROM secret'), '42', 'bob may');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT throws_ok($$SELECT run('SELECT n FROM secret')$$, '42501', NULL, 'ann may not, by no plan of bob');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is(run('SELECT n FROM secret'), '42', 'bob still may');
SELECT throws_ok($$SELECT run_as_ann('SELECT n FROM secret')$$, '42501', NULL,
	'but not as ann');
SELECT is(run('SELECT current_user'), '"idem_bob"', 'bob is bob');
SELECT is(run_as_ann('SELECT current_user'), '"idem_ann"', 'and ann through the wrapper');
SELECT is(run('SELECT current_user'), '"idem_bob"', 'and bob again');
SET LOCAL search_path = bob, public;
SELECT throws_ok($$SELECT run_as_ann('SELECT * FROM secret')$$, '42501', NULL,
	'a wrapper without a search_path');
SELECT is(run('SELECT name FROM who'), '"bob"', 'bob sees his table');
SELECT is(run_as_ann_there('SELECT name FROM who'), '"ann"',
	'a wrapper with a search_path sees that of ann');
SELECT is(run('SELECT name FROM who'), '"bob"', 'and bob his again');
SET LOCAL search_path = ann, public;
SELECT is(run('SELECT seen FROM who'), to_jsonb('postgres'::name), 'bob in the schema of ann');
RESET SESSION AUTHORIZATION;
REVOKE SELECT ON ann.who FROM idem_bob;
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT throws_ok($$SELECT run('SELECT seen FROM who')$$, '42501', NULL,
	'whose privilege is checked at each run');
RESET SESSION AUTHORIZATION;

SELECT * FROM finish();
ROLLBACK;
