-- Circuit breakers, as one session sees them: states, counts, quorum, force, reset,
-- privileges. Windows are hours long, so that no test runs into their end; how they
-- slide is tested in test/circuit, where time is an argument.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

-- Where there is shared memory; without, breakers can only be configured.
SELECT current_setting('server_version_num')::int >= 170000
	   OR current_setting('shared_preload_libraries') ~ 'idempotency' AS shared \gset

SELECT plan(CASE WHEN :'shared' THEN 132 ELSE 33 END);

-- So many calls of a breaker; returns the state after the last one.
CREATE FUNCTION idem.calls(name text, n int, success bool, duration interval = NULL) RETURNS text
LANGUAGE sql VOLATILE AS $$
	SELECT (array_agg(idem_breaker_record($1, $3, $4)))[$2] FROM generate_series(1, $2)
$$;
-- Whether a breaker comes into a state by itself.
CREATE FUNCTION idem.comes_to_be(name text, wanted text) RETURNS bool
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	patience timestamptz := clock_timestamp() + interval '30 s';
BEGIN
	WHILE clock_timestamp() < patience LOOP
		IF EXISTS (SELECT FROM idem_breakers AS b WHERE b.name = $1 AND b.state = $2) THEN
			RETURN true;
		END IF;
	END LOOP;
	RETURN false;
END
$$;
CREATE VIEW idem.seen AS
	SELECT name COLLATE "default" AS name, state, calls, failures, slow, failing_clients, probes FROM idem_breakers;
CREATE VIEW idem.rules AS
	SELECT name COLLATE "default" AS name, failure_rate, minimum_calls, window_length, open_for, half_open_probes,
		   slow_call, slow_rate, quorum FROM idem_breakers;

-- What there is.

SELECT columns_are('idem', 'idem_breakers', ARRAY['name', 'state', 'forced', 'retry_after', 'calls', 'failures', 'slow',
	'failing_clients', 'probes', 'failure_rate', 'minimum_calls', 'window_length', 'open_for', 'half_open_probes',
	'slow_call', 'slow_rate', 'quorum']);
SELECT is_empty(
	$$SELECT attrelid::regclass, attname FROM pg_attribute
	   WHERE attrelid IN ('idem_breakers'::regclass, 'idem_breaker'::regclass, 'idem_breaker_answer'::regclass)
	     AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL$$,
	'every column has a comment');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM pg_proc
	   WHERE pronamespace = 'idem'::regnamespace AND proname LIKE 'idem\_breaker%'
	     AND obj_description(oid, 'pg_proc') IS NULL$$, 'and every function');
SELECT is_empty('SELECT * FROM idem_breakers', 'no breaker is known');

-- Configuration. As a whole: what is not given has its default.

SELECT lives_ok($$SELECT idem_breaker_configure('plain')$$, 'a breaker is configured by its name');
SELECT results_eq('SELECT * FROM rules',
	$$VALUES ('plain', 50::float8, 20, interval '1 minute', interval '30 seconds', 3, NULL::interval, 100::float8, 1)$$,
	'with the defaults');
SELECT lives_ok($$SELECT idem_breaker_configure('plain', 10, 11, '12 s', '13 s', 14, '15 s', 16, 15)$$,
	'all of it');
SELECT results_eq('SELECT * FROM rules',
	$$VALUES ('plain', 10::float8, 11, interval '12 s', interval '13 s', 14, interval '15 s', 16::float8, 15)$$,
	'is kept');
SELECT lives_ok($$SELECT idem_breaker_configure('plain', quorum => 2)$$, 'once more, with less');
SELECT results_eq('SELECT * FROM rules',
	$$VALUES ('plain', 50::float8, 20, interval '1 minute', interval '30 seconds', 3, NULL::interval, 100::float8, 2)$$,
	'and the rest is default again');
SAVEPOINT s;
SELECT lives_ok($$SELECT idem_breaker_configure('plain', 1)$$, 'a configuration');
ROLLBACK TO s;
SELECT is(failure_rate, 50::float8, 'is rolled back as any other write') FROM rules;
SELECT lives_ok($$SELECT idem_breaker_configure('Plain')$$, 'case tells names apart');
SELECT is(count(*), 2::bigint, 'two breakers') FROM rules;

-- Who may do what.

SELECT is(has_function_privilege('public', oid, 'EXECUTE'), proname IN ('idem_breaker_allow', 'idem_breaker_record',
	'idem_breaker_states'), format('is %s for PUBLIC?', proname))
  FROM pg_proc WHERE pronamespace = 'idem'::regnamespace AND proname LIKE 'idem\_breaker%' ORDER BY proname;
SELECT table_privs_are('idem', 'idem_breaker', who, '{}', 'no privilege on the table for ' || who)
  FROM unnest('{idem_ann,idem_watch}'::name[]) AS who;
SELECT table_privs_are('idem', 'idem_breakers', who, '{SELECT}', 'the view can be read by ' || who)
  FROM unnest('{idem_ann,idem_watch}'::name[]) AS who;
SET LOCAL ROLE idem_ann;
SELECT throws_ok(command, '42501', NULL, 'refused to a plain role: ' || command)
  FROM unnest(ARRAY[
	'SELECT idem_breaker_configure(''plain'')',
	'SELECT idem_breaker_force(''plain'', ''open'')',
	'SELECT idem_breaker_reset(''plain'')',
	'SELECT * FROM idem_breaker',
	'UPDATE idem_breaker SET quorum = 1',
	'DELETE FROM idem_breaker']) AS command;
SELECT is(count(*), 2::bigint, 'a plain role sees all breakers') FROM idem_breakers;
RESET ROLE;
SET LOCAL ROLE idem_watch;
SELECT is(count(*), 2::bigint, 'so does pg_monitor') FROM idem_breakers;
RESET ROLE;
GRANT EXECUTE ON FUNCTION idem_breaker_configure, idem_breaker_force, idem_breaker_reset TO idem_ann;
SET LOCAL ROLE idem_ann;
SELECT lives_ok($$SELECT idem_breaker_configure('of ann')$$, 'whoever was granted EXECUTE configures');
RESET ROLE;

\if :shared

SET LOCAL ROLE idem_ann;
SELECT lives_ok($$SELECT idem_breaker_force('of ann', 'open')$$, 'forces');
SELECT lives_ok($$SELECT idem_breaker_reset('of ann')$$, 'and resets');
SELECT results_eq($$SELECT allowed, state FROM idem_breaker_allow('plain')$$, $$VALUES (true, 'closed')$$,
	'anybody may ask');
SELECT is(idem_breaker_record('plain', true), 'closed', 'and tell');
RESET ROLE;
SELECT is(calls, 1::bigint, 'for everybody') FROM seen WHERE name = 'plain';

-- One that is not configured: 50 percent of at least 20 calls, then 30 seconds, then 3.

SELECT results_eq($$SELECT * FROM idem_breaker_allow('unheard of')$$, $$VALUES (true, 'closed', NULL::interval)$$,
	'one that nobody has configured is closed');
SELECT results_eq(
	$$SELECT failure_rate, minimum_calls, window_length, open_for, half_open_probes, slow_call, slow_rate, quorum
	    FROM rules WHERE name = 'unheard of'$$,
	$$SELECT failure_rate, minimum_calls, window_length, open_for, half_open_probes, slow_call, slow_rate, quorum
	    FROM rules WHERE name = 'Plain'$$,
	'and shown with the defaults of idem_breaker_configure');
SELECT is(calls('unheard of', 19, false), 'closed', '19 failures are too few calls');
SELECT is(idem_breaker_record('unheard of', false), 'open', 'the 20th call opens it');
SELECT results_eq($$SELECT allowed, state, retry_after > '29 s' AND retry_after <= '30 s' FROM idem_breaker_allow('unheard of')$$,
	$$VALUES (false, 'open', true)$$, 'for 30 seconds');
SELECT is(calls('half and half', 11, true, '1 day'), 'closed', '11 good ones, slow as they are');
SELECT is(calls('half and half', 10, false, '1 day'), 'closed', 'and 10 failures are less than 50 percent');
SELECT is(idem_breaker_record('half and half', false), 'open', '11 of each are 50 percent');
SELECT is(calls('half and half, too', 10, false), 'closed', '10 failures');
SELECT is(calls('half and half, too', 10, true), 'open', 'and 10 good ones, the last of which opens it');

-- Closed, open, half open, closed. What was counted is forgotten from state to state.

SELECT idem_breaker_configure('one', 30, 5, '1 hour', '1 hour', 3) \g /dev/null
SELECT is(calls('one', 3, true), 'closed', 'three good calls');
SELECT is(idem_breaker_record('one', false), 'closed', 'a failure');
SELECT results_eq($$SELECT * FROM seen WHERE name = 'one'$$,
	$$VALUES ('one', 'closed', 4::bigint, 1::bigint, 0::bigint, 1, 0)$$, 'are counted');
SELECT is(idem_breaker_record('one', true), 'closed', '1 of 5 is less than 30 percent');
SELECT is(idem_breaker_record('one', false), 'open', '2 of 6 are more');
SELECT results_eq($$SELECT * FROM seen WHERE name = 'one'$$,
	$$VALUES ('one', 'open', 0::bigint, 0::bigint, 0::bigint, 0, 0)$$, 'and forgotten when it has opened');
SELECT results_eq($$SELECT allowed, state, retry_after BETWEEN '59 min' AND '1 hour' FROM idem_breaker_allow('one')$$,
	$$VALUES (false, 'open', true)$$, 'nothing is allowed while it is open');
SELECT ok(retry_after BETWEEN '59 min' AND '1 hour', 'for how long, says the view') FROM idem_breakers WHERE name = 'one';
SELECT is(calls('one', 9, true), 'open', 'late answers change nothing');
SELECT is(calls, 0::bigint, 'and are not counted') FROM seen WHERE name = 'one';

SELECT idem_breaker_configure('two', 50, 2, '1 hour', '10 ms', 3) \g /dev/null
SELECT is(calls('two', 1, false), 'closed', 'one failure is too few calls');
-- opened for 10 ms; the probes will be waited for for an hour
SELECT idem_breaker_record('two', false) \g /dev/null
SELECT idem_breaker_configure('two', 50, 2, '1 hour', '1 hour', 3) \g /dev/null
SELECT ok(comes_to_be('two', 'half_open'), 'being open ends by itself');
SELECT results_eq($$SELECT a.* FROM generate_series(1, 5) AS i, idem_breaker_allow(CASE WHEN i > 0 THEN 'two' END) AS a$$,
	$$VALUES (true, 'half_open', NULL::interval), (true, 'half_open', NULL), (true, 'half_open', NULL),
			 (false, 'half_open', NULL), (false, 'half_open', NULL)$$,
	'half open, three may try');
SELECT results_eq($$SELECT * FROM seen WHERE name = 'two'$$,
	$$VALUES ('two', 'half_open', 0::bigint, 0::bigint, 0::bigint, 0, 3)$$, 'three probes are out');
SELECT is(idem_breaker_record('two', false), 'half_open', 'one fails');
SELECT results_eq($$SELECT * FROM seen WHERE name = 'two'$$,
	$$VALUES ('two', 'half_open', 1::bigint, 1::bigint, 0::bigint, 1, 2)$$, 'and two are out');
SELECT is(allowed, false, 'in its place nobody else may try') FROM idem_breaker_allow('two');
SELECT is(idem_breaker_record('two', true), 'half_open', 'the next one goes well');
SELECT is(idem_breaker_record('two', true), 'closed', 'so does the last one, and 1 of 3 is less than 50 percent');
SELECT results_eq($$SELECT * FROM seen WHERE name = 'two'$$,
	$$VALUES ('two', 'closed', 0::bigint, 0::bigint, 0::bigint, 0, 0)$$, 'it is closed, and begins to count anew');
SELECT is(allowed, true, 'all calls are allowed') FROM idem_breaker_allow('two');

-- The probes fail: open again.

SELECT idem_breaker_configure('three', 50, 1, '1 hour', '10 ms', 2) \g /dev/null
SELECT is(idem_breaker_record('three', false), 'open', 'with minimum_calls 1 the first failure opens it');
SELECT idem_breaker_configure('three', 50, 1, '1 hour', '1 hour', 2) \g /dev/null
SELECT ok(comes_to_be('three', 'half_open'), 'half open');
SELECT is(idem_breaker_record('three', false), 'half_open', 'an answer that nobody waits for is nothing');
SELECT results_eq($$SELECT allowed FROM generate_series(1, 3) AS i, idem_breaker_allow(CASE WHEN i > 0 THEN 'three' END)$$,
	$$VALUES (true), (true), (false)$$, 'two may try');
SELECT is(idem_breaker_record('three', true), 'half_open', 'one is well');
SELECT is(idem_breaker_record('three', false), 'open', 'one is not: 50 percent, and open again');
SELECT ok(retry_after BETWEEN '59 min' AND '1 hour', 'for open_for') FROM idem_breaker_allow('three');

-- A probe whose client has died is given to somebody else.

SELECT idem_breaker_configure('four', 50, 1, '1 hour', '10 ms', 1) \g /dev/null
SELECT is(idem_breaker_record('four', false), 'open', 'open');
SELECT ok(comes_to_be('four', 'half_open'), 'half open');
SELECT is(allowed, true, 'one may try') FROM idem_breaker_allow('four');
DO $$
DECLARE
	patience timestamptz := clock_timestamp() + interval '30 s';
BEGIN
	WHILE NOT (SELECT allowed FROM idem_breaker_allow('four')) LOOP
		ASSERT clock_timestamp() < patience, 'nobody else may try';
	END LOOP;
END
$$;
SELECT is(probes, 1, 'and after open_for somebody else, in its place') FROM seen WHERE name = 'four';
SELECT is(idem_breaker_record('four', true), 'closed', 'who closes it');

-- Slow calls. One that takes as long as slow_call is not slow.

SELECT idem_breaker_configure('slow', slow_call => '1 s', slow_rate => 40, minimum_calls => 5, window_length => '1 hour',
	open_for => '1 hour') \g /dev/null
SELECT is(calls('slow', 4, true, '1 s'), 'closed', 'calls of slow_call');
SELECT is(calls('slow', 2, true), 'closed', 'and of no duration');
SELECT is(slow, 0::bigint, 'are not slow') FROM seen WHERE name = 'slow';
SELECT is(calls('slow', 3, true, '1.000001 s'), 'closed', 'three calls of nine are slow: less than 40 percent');
SELECT results_eq($$SELECT calls, failures, slow FROM seen WHERE name = 'slow'$$, $$VALUES (9::bigint, 0::bigint, 3::bigint)$$,
	'as the view says');
SELECT is(idem_breaker_record('slow', true, '1 month'), 'open', 'four of ten open it, though none has failed');
SELECT idem_breaker_configure('slow probes', 100, 1, '1 hour', '10 ms', 1, '1 s', 100) \g /dev/null
SELECT is(idem_breaker_record('slow probes', false), 'open', 'open');
SELECT ok(comes_to_be('slow probes', 'half_open'), 'half open');
SELECT is(allowed, true, 'a probe') FROM idem_breaker_allow('slow probes');
SELECT is(idem_breaker_record('slow probes', true, '2 s'), 'open', 'that is slow opens it again');

-- Quorum: clients are told apart by application_name, here.

SELECT idem_breaker_configure('quorum', 50, 4, '1 hour', '10 ms', 1, quorum => 3) \g /dev/null
SET LOCAL application_name = 'client 1';
SELECT is(calls('quorum', 10, false), 'closed', 'one client does not open it');
SET LOCAL application_name = 'client 2';
SELECT is(calls('quorum', 10, false), 'closed', 'two do not');
SELECT is(failing_clients, 2, 'two are counted') FROM seen WHERE name = 'quorum';
SET LOCAL application_name = 'client 3';
SELECT is(calls('quorum', 5, true), 'closed', 'good calls of a third one do not');
SELECT is(idem_breaker_record('quorum', false), 'open', 'its first failure does');
SELECT ok(comes_to_be('quorum', 'half_open'), 'half open');
SELECT is(allowed, true, 'a probe') FROM idem_breaker_allow('quorum');
SELECT is(idem_breaker_record('quorum', false), 'open', 'that fails opens it, whoever it was');

-- Counts survive the rollback of the transaction whose call has failed.

SELECT idem_breaker_configure('rollback', 50, 2, '1 hour', '1 hour') \g /dev/null
SAVEPOINT s;
SELECT is(idem_breaker_record('rollback', false), 'closed', 'a failure');
ROLLBACK TO s;
SELECT is(failures, 1::bigint, 'is counted after a rollback') FROM seen WHERE name = 'rollback';
SAVEPOINT s;
SELECT is(idem_breaker_record('rollback', false), 'open', 'the next one opens it');
ROLLBACK TO s;
SELECT is(state, 'open', 'for good') FROM idem_breaker_allow('rollback');

-- Another configuration.

SELECT idem_breaker_configure('anew', 100, 100, '1 hour', '1 hour') \g /dev/null
SELECT is(calls('anew', 9, false), 'closed', 'nine calls');
SELECT idem_breaker_configure('anew', 100, 10, '1 hour', '1 hour') \g /dev/null
SELECT is(calls, 9::bigint, 'are still there under other rules') FROM seen WHERE name = 'anew';
SELECT idem_breaker_configure('anew', 100, 10, '2 hours', '1 hour') \g /dev/null
SELECT is(calls, 0::bigint, 'but not in another window') FROM seen WHERE name = 'anew';
SELECT is(idem_breaker_record('anew', false), 'closed', 'which begins anew');
SELECT is(calls, 1::bigint, 'with its first call') FROM seen WHERE name = 'anew';
SAVEPOINT s;
SELECT idem_breaker_configure('anew', 100, 2, '2 hours', '1 hour') \g /dev/null
ROLLBACK TO s;
SELECT is(idem_breaker_record('anew', false), 'closed', 'rules that were rolled back do not count');

-- Forced.

SELECT idem_breaker_configure('forced', 50, 2, '1 hour', '1 hour') \g /dev/null
SELECT lives_ok($$SELECT idem_breaker_force('forced', 'open')$$, 'forced open');
SELECT results_eq($$SELECT * FROM idem_breaker_allow('forced')$$, $$VALUES (false, 'open', NULL::interval)$$,
	'nobody knows for how long');
SELECT results_eq($$SELECT state, forced, retry_after FROM idem_breakers WHERE name = 'forced'$$,
	$$VALUES ('open', true, NULL::interval)$$, 'the view says so, too');
SELECT is(idem_breaker_record('forced', true), 'open', 'calls that were made all the same');
SELECT is(calls, 1::bigint, 'are counted') FROM seen WHERE name = 'forced';
SELECT lives_ok($$SELECT idem_breaker_force('forced', 'auto')$$, 'given back');
SELECT results_eq($$SELECT state, forced, calls FROM idem_breakers WHERE name = 'forced'$$,
	$$VALUES ('closed', false, 1::bigint)$$, 'it is as if nothing had been');
SELECT lives_ok($$SELECT idem_breaker_force('forced', 'closed')$$, 'forced closed');
SELECT is(calls('forced', 9, false), 'closed', 'no failures open it');
SELECT results_eq($$SELECT * FROM idem_breaker_allow('forced')$$, $$VALUES (true, 'closed', NULL::interval)$$,
	'all is allowed');
SELECT lives_ok($$SELECT idem_breaker_force('forced', 'auto')$$, 'given back');
SELECT results_eq($$SELECT allowed, state FROM idem_breaker_allow('forced')$$, $$VALUES (false, 'open')$$,
	'what it would have been it is now');
SAVEPOINT s;
SELECT idem_breaker_force('forced', 'closed') \g /dev/null
ROLLBACK TO s;
SELECT is(forced, true, 'to force survives a rollback') FROM idem_breakers WHERE name = 'forced';

-- Reset.

SELECT lives_ok($$SELECT idem_breaker_reset('forced')$$, 'reset');
SELECT results_eq($$SELECT state, forced, calls, failures FROM idem_breakers WHERE name = 'forced'$$,
	$$VALUES ('closed', false, 0::bigint, 0::bigint)$$, 'not forced, and nothing counted');
SELECT is(minimum_calls, 2, 'but configured as it was') FROM rules WHERE name = 'forced';
SELECT is_empty($$SELECT * FROM idem_breaker_states() WHERE name = 'forced'$$, 'its place is free');
SELECT is(idem_breaker_record('forced', false), 'closed', 'and taken again');
SELECT is(calls, 1::bigint, 'with one call') FROM seen WHERE name = 'forced';
SELECT is(state, 'open', 'one that is open') FROM idem_breaker_allow('unheard of');
SELECT lives_ok($$SELECT idem_breaker_reset('unheard of')$$, 'is reset');
SELECT is_empty($$SELECT * FROM idem_breakers WHERE name = 'unheard of'$$, 'and unknown, if it was not configured');
SELECT results_eq($$SELECT allowed, state FROM idem_breaker_allow('unheard of')$$, $$VALUES (true, 'closed')$$,
	'or closed');

\endif

SELECT * FROM finish();
ROLLBACK;
