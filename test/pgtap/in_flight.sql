-- The view idem_in_flight: every role sees its own claims, pg_monitor all of
-- them. Other transactions are prepared ones here, so that one session will
-- do; those of other sessions are in test/t.
--
-- This commits, so it clears up at the end.

SET statement_timeout = '60s';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
DROP ROLE IF EXISTS idem_ann, idem_bob, idem_watch;
CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

SELECT plan(42);

-- This transaction: by key, and only what is claimed.

SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing in flight');
BEGIN;
SELECT results_eq($$SELECT outcome FROM idem_claim('a', scope => 's')$$,
	$$VALUES ('claimed')$$, 'a is claimed');
SELECT results_eq($$SELECT outcome, idem_finish('b') FROM idem_claim('b')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'b is finished');
SELECT lives_ok($$SELECT idem_release('c') FROM idem_claim('c')$$, 'c is released');
SELECT lives_ok($$SELECT * FROM idem_claim('b')$$, 'b is replayed');
SELECT set_eq(
	$$SELECT pid, prepared, owner, state, scope, key FROM idem_in_flight$$,
	$$VALUES (pg_backend_pid(), NULL::text, current_user::regrole, 'in_progress', 's', 'a'),
			 (pg_backend_pid(), NULL, current_user::regrole, 'finished', '', 'b')$$,
	'claims of this transaction are shown by key');
SELECT ok(bool_and(since BETWEEN now() AND clock_timestamp()), 'and when they were made')
  FROM idem_in_flight;
SAVEPOINT s;
SELECT * FROM idem_claim('d') \g /dev/null
ROLLBACK TO s;
SELECT is(count(*), 2::bigint, 'but not what was rolled back') FROM idem_in_flight;
SELECT is_empty(
	$$SELECT * FROM idem_in_flight WHERE key IS NULL$$,
	'nor the same claims as locks');
SELECT lives_ok($$SELECT idem_release('a', 's')$$, 'a is released');
COMMIT;
SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing is left after the commit');

-- Batches, steps and commands are claims like any other.

BEGIN;
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{c,a,b}', scope => 'many')$$,
	$$VALUES ('c', 'claimed'), ('a', 'claimed'), ('b', 'claimed')$$, 'a batch');
SELECT lives_ok($$SELECT idem_step_finish('a', 's', '1', 'many')$$, 'a step');
SELECT results_eq($$SELECT * FROM idem_finish_many('{c}', '{3}', 'many')$$,
	$$VALUES ('c', '3'::jsonb)$$, 'a part of it is finished');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_once('once',
		'SELECT state, scope, key FROM idem_in_flight WHERE key = $1', '{once}')$$,
	$$VALUES ('claimed', '{"key": "once", "scope": "", "state": "in_progress"}'::jsonb)$$,
	'a command sees its own claim');
SELECT set_eq(
	$$SELECT pid, owner, state, scope, key, holder, attempt, remaining FROM idem_in_flight$$,
	$$VALUES (pg_backend_pid(), current_user::regrole, 'in_progress', 'many', 'a', NULL::text, NULL::int, NULL::interval),
			 (pg_backend_pid(), current_user::regrole, 'in_progress', 'many', 'b', NULL, NULL, NULL),
			 (pg_backend_pid(), current_user::regrole, 'finished', 'many', 'c', NULL, NULL, NULL),
			 (pg_backend_pid(), current_user::regrole, 'finished', '', 'once', NULL, NULL, NULL)$$,
	'each key is shown');
SELECT lives_ok($$SELECT idem_finish_many('{a,b}', scope => 'many')$$, 'the rest is finished');
COMMIT;
SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing is left after the commit');
BEGIN;
CREATE TEMPORARY TABLE lease AS
SELECT key, token FROM idem_claim_many('{d,e}', lease => '1 hour', holder => 'me');
COMMIT;
SELECT set_eq(
	$$SELECT pid, owner, state, scope, key, holder, attempt, overdue FROM idem_in_flight$$,
	$$VALUES (NULL::int, current_user::regrole, 'in_progress', '', 'd', 'me', 1, false),
			 (NULL, current_user::regrole, 'in_progress', '', 'e', 'me', 1, false)$$,
	'a batch of leases is shown after the commit, too');
BEGIN;
SELECT results_eq(
	$$SELECT key, outcome, retry_after > '59 min' FROM idem_claim_many('{e,f,d}', wait => '2 hours')$$,
	$$VALUES ('e', 'in_progress', true), ('f', 'claimed', NULL), ('d', 'in_progress', true)$$,
	'a batch waits for no lease');
ROLLBACK;
SELECT is(count(*), 2::bigint, 'until it is finished')
  FROM (SELECT array_agg(key) AS keys, array_agg(token) AS tokens FROM lease) AS l,
	   LATERAL idem_finish_many(keys, tokens => tokens);
SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing is left then');

-- Other transactions.

BEGIN;
SET LOCAL ROLE idem_ann;
SELECT idem_finish('k1', '"secret of ann"') FROM idem_claim('k1') \g /dev/null
SELECT * FROM idem_claim_many('{k2}') \g /dev/null
SELECT idem_step_finish('k2', 's', '1') \g /dev/null
SELECT * FROM idem_finish_many('{k2}', '{"\"secret of ann\""}') \g /dev/null
PREPARE TRANSACTION 'idem of ann';
BEGIN;
SET LOCAL ROLE idem_bob;
SELECT * FROM idem_once('k1', 'SELECT 1') \g /dev/null
PREPARE TRANSACTION 'idem of bob';

SET ROLE idem_ann;
SELECT results_eq(
	$$SELECT pid, prepared, owner::text, state, scope, key FROM idem_in_flight$$,
	$$VALUES (NULL::int, 'idem of ann', 'idem_ann', 'in_progress', NULL::text, NULL::text),
			 (NULL, 'idem of ann', 'idem_ann', 'in_progress', NULL, NULL)$$,
	'ann sees her two claims, and none of bob');
SELECT ok(bool_and(since <= now() AND since > now() - interval '1 hour'),
	'and when they were prepared') FROM idem_in_flight;
SET ROLE idem_bob;
SELECT results_eq(
	$$SELECT prepared, owner::text FROM idem_in_flight$$,
	$$VALUES ('idem of bob', 'idem_bob')$$,
	'bob sees his, and none of ann');
SET ROLE idem_watch;
SELECT set_eq(
	$$SELECT prepared, owner::text FROM idem_in_flight$$,
	$$VALUES ('idem of ann', 'idem_ann'), ('idem of bob', 'idem_bob')$$,
	'a member of pg_monitor sees all');
SELECT is(count(*), 3::bigint, 'each of them') FROM idem_in_flight;
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE key IS NOT NULL OR scope IS NOT NULL$$,
	'but not the keys');
RESET ROLE;
SELECT is(count(*), 3::bigint, 'a superuser sees all, too') FROM idem_in_flight;

SELECT is(count(DISTINCT objid), 3::bigint,
	'one key of two roles is two locks in pg_locks')
  FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- They block whoever comes with the same key until they are decided.

BEGIN;
SET LOCAL ROLE idem_ann;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '0')$$,
	$$VALUES ('in_progress', NULL::jsonb)$$, 'a prepared transaction holds its key');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '10 ms')$$,
	$$VALUES ('in_progress', NULL::jsonb)$$, 'however long one waits');
SELECT is_empty($$SELECT * FROM idem_lookup('k1')$$, 'and there is no record yet');
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{k2,k3,k1}', wait => '0')$$,
	$$VALUES ('k2', 'in_progress'), ('k3', 'claimed'), ('k1', 'in_progress')$$,
	'a batch claims what is free');
SELECT results_eq($$SELECT outcome, response FROM idem_once('k1', 'SELECT 1', wait => '0')$$,
	$$VALUES ('in_progress', NULL::jsonb)$$, 'a command does not run');
SELECT is_empty($$SELECT * FROM idem_steps('k2')$$, 'nor does the step show');
SELECT lives_ok($$SELECT idem_release('k3')$$, '(released)');
COMMIT;
COMMIT PREPARED 'idem of ann';
ROLLBACK PREPARED 'idem of bob';
SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing is left in flight');
BEGIN;
SET LOCAL ROLE idem_ann;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '0')$$,
	$$VALUES ('replayed', '"secret of ann"'::jsonb)$$, 'what was committed is replayed');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{k2}')$$,
	$$VALUES ('k2', 'replayed', '"secret of ann"'::jsonb)$$, 'in a batch, too');
SELECT results_eq($$SELECT step, result FROM idem_steps('k2')$$,
	$$VALUES ('s', '1'::jsonb)$$, 'with its step');
SET LOCAL ROLE idem_bob;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '0')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'what was rolled back is free');
SELECT idem_release('k1') \g /dev/null
COMMIT;

SELECT * FROM finish();
DROP EXTENSION idempotency;
DROP SCHEMA idem;
DROP ROLE idem_ann, idem_bob, idem_watch;
