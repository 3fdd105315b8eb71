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

SELECT plan(25);

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

-- Other transactions.

BEGIN;
SET LOCAL ROLE idem_ann;
SELECT idem_finish('k1', '"secret of ann"') FROM idem_claim('k1') \g /dev/null
SELECT idem_finish('k2', '"secret of ann"') FROM idem_claim('k2') \g /dev/null
PREPARE TRANSACTION 'idem of ann';
BEGIN;
SET LOCAL ROLE idem_bob;
SELECT idem_finish('k1') FROM idem_claim('k1') \g /dev/null
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
COMMIT;
COMMIT PREPARED 'idem of ann';
ROLLBACK PREPARED 'idem of bob';
SELECT is_empty('SELECT * FROM idem_in_flight', 'nothing is left in flight');
BEGIN;
SET LOCAL ROLE idem_ann;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '0')$$,
	$$VALUES ('replayed', '"secret of ann"'::jsonb)$$, 'what was committed is replayed');
SET LOCAL ROLE idem_bob;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k1', wait => '0')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'what was rolled back is free');
SELECT idem_release('k1') \g /dev/null
COMMIT;

SELECT * FROM finish();
DROP EXTENSION idempotency;
DROP SCHEMA idem;
DROP ROLE idem_ann, idem_bob, idem_watch;
