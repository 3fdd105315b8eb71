-- Arguments of the circuit breaker: what is refused, with which SQLSTATE, and what
-- lies just within the limits.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

-- Where there is shared memory.
SELECT current_setting('server_version_num')::int >= 170000
	   OR current_setting('shared_preload_libraries') ~ 'idempotency' AS shared,
	   current_setting('server_version_num')::int >= 170000 AS infinite \gset

SELECT plan(CASE WHEN :'shared' THEN 133 ELSE 103 END + CASE WHEN :'infinite' THEN 6 ELSE 0 END
			+ CASE WHEN :'shared' AND :'infinite' THEN 2 ELSE 0 END);

-- Names: as long as any name in PostgreSQL, in bytes.

SELECT throws_ok(format(command, bad), code, message, format(command, bad))
  FROM unnest(ARRAY[
	'SELECT idem_breaker_configure(%s)',
	'SELECT * FROM idem_breaker_allow(%s)',
	'SELECT idem_breaker_record(%s, true)',
	'SELECT idem_breaker_force(%s, ''open'')']) AS command,
	   (VALUES ('NULL', '22004', 'name must not be null'),
			   ('''''', '22023', 'name must not be empty'),
			   ('repeat(''a'', 64)', '54000', 'name is too long'),
			   ('repeat(''ä'', 32)', '54000', 'name is too long')) AS v (bad, code, message);
SELECT lives_ok(format('SELECT idem_breaker_configure(%L)', name), format('%s bytes are a name', octet_length(name)))
  FROM unnest(ARRAY['a', repeat('a', 63), repeat('ä', 31) || 'a', ' ', 'a''b"c\d']) AS name;
SELECT is(count(*), 5::bigint, 'five are configured') FROM idem_breakers;

-- Rates.

SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => NULL)', rate), '22004', NULL, rate || ' null')
  FROM unnest('{failure_rate,slow_rate}'::text[]) AS rate;
SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => %L)', rate, bad), '22023',
	rate || ' must be a percentage above 0', format('%s %s', rate, bad))
  FROM unnest('{failure_rate,slow_rate}'::text[]) AS rate,
	   unnest('{0,-0,-1,100.00001,101,NaN,Infinity,-Infinity}'::float8[]) AS bad;
SELECT lives_ok(format('SELECT idem_breaker_configure(''b'', %s => %L)', rate, good), format('%s %s', rate, good))
  FROM unnest('{failure_rate,slow_rate}'::text[]) AS rate,
	   unnest('{5e-324,0.5,100}'::float8[]) AS good;

-- Numbers.

SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => NULL)', number), '22004', NULL, number || ' null')
  FROM unnest('{minimum_calls,half_open_probes,quorum}'::text[]) AS number;
SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => %s)', number, bad), '22023',
	format('%s must be a number from 1 to %s', number, max), format('%s %s', number, bad))
  FROM (VALUES ('minimum_calls', 2147483647, '{-1,0}'::int[]), ('half_open_probes', 32, '{-1,0,33,2147483647}'),
			   ('quorum', 16, '{-2147483648,0,17}')) AS v (number, max, bads), unnest(bads) AS bad;
SELECT lives_ok(format('SELECT idem_breaker_configure(''b'', %s => %s)', number, good), format('%s %s', number, good))
  FROM (VALUES ('minimum_calls', 2147483647), ('half_open_probes', 32), ('quorum', 16)) AS v (number, max),
	   unnest(ARRAY[1, max]) AS good;

-- Spans of time.

SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => NULL)', span), '22004', NULL, span || ' null')
  FROM unnest('{window_length,open_for}'::text[]) AS span;
SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => %L)', span, bad), '22023', NULL,
	format('%s %s', span, bad))
  FROM unnest('{window_length,open_for,slow_call}'::text[]) AS span,
	   unnest('{0,-1 s,1 us,9999 us,365 days 1 us,13 mons}'::interval[]) AS bad;
SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => ''178956970 years'')', span), '22008', NULL,
	span || ' out of range')
  FROM unnest('{window_length,open_for,slow_call}'::text[]) AS span;
SELECT lives_ok(format('SELECT idem_breaker_configure(''b'', %s => %L)', span, good), format('%s %s', span, good))
  FROM unnest('{window_length,open_for,slow_call}'::text[]) AS span,
	   unnest('{10 ms,365 days}'::interval[]) AS good;
SELECT lives_ok($$SELECT idem_breaker_configure('b', slow_call => NULL)$$, 'slow_call null');
\if :infinite
SELECT throws_ok(format('SELECT idem_breaker_configure(''b'', %s => %L)', span, bad), '22023',
	span || ' must be finite', format('%s %s', span, bad))
  FROM unnest('{window_length,open_for,slow_call}'::text[]) AS span,
	   unnest('{infinity,-infinity}'::text[]) AS bad;
\endif

-- What was refused has changed nothing.

SELECT idem_breaker_configure('kept', 10, 11, '12 s', '13 s', 14, '15 s', 16, 15) \g /dev/null
SELECT throws_ok($$SELECT idem_breaker_configure('kept', quorum => 17)$$, '22023', NULL, 'a configuration is refused');
SELECT results_eq(
	$$SELECT failure_rate, minimum_calls, window_length, open_for, half_open_probes, slow_call, slow_rate, quorum
	    FROM idem_breakers WHERE name = 'kept'$$,
	$$VALUES (10::float8, 11, interval '12 s', interval '13 s', 14, interval '15 s', 16::float8, 15)$$,
	'and the one before stands');

-- Read-only transactions may use breakers, but not configure them.

SAVEPOINT s;
SET LOCAL transaction_read_only = on;
SELECT throws_ok($$SELECT idem_breaker_configure('b')$$, '25006', NULL, 'no configuration in a read-only transaction');
\if :shared
SELECT lives_ok(command, 'in a read-only transaction: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_breaker_allow(''b'')',
	'SELECT idem_breaker_record(''b'', true)',
	'SELECT idem_breaker_force(''b'', ''open'')',
	'SELECT idem_breaker_reset(''b'')',
	'SELECT * FROM idem_breakers']) AS command;
\endif
ROLLBACK TO s;

\if :shared

-- The other functions.

SELECT throws_ok(format('SELECT idem_breaker_reset(%s)', bad), code, NULL, 'reset of ' || bad)
  FROM (VALUES ('NULL', '22004'), ('''''', '22023'), ('repeat(''a'', 64)', '54000')) AS v (bad, code);
SELECT lives_ok($$SELECT idem_breaker_reset('never seen')$$, 'reset of one that nobody knows');
SELECT is_empty($$SELECT * FROM idem_breakers WHERE name = 'never seen'$$, 'nor does now');

SELECT throws_ok($$SELECT idem_breaker_record('b', NULL)$$, '22004', 'success must not be null', 'success null');
SELECT throws_ok(format('SELECT idem_breaker_record(''b'', true, %L)', bad), '22023', NULL, 'duration ' || bad)
  FROM unnest('{-1 us,-1 s,-1 mon}'::interval[]) AS bad;
SELECT throws_ok($$SELECT idem_breaker_record('b', true, '178956970 years')$$, '22008', NULL, 'duration out of range');
SELECT lives_ok(format('SELECT idem_breaker_record(''b'', true, %L)', good), 'duration ' || coalesce(good::text, 'null'))
  FROM unnest('{NULL,1 us,1 s,1 year}'::interval[]) AS good;
SELECT is(calls, 4::bigint, 'what was refused was not counted') FROM idem_breakers WHERE name = 'b';
\if :infinite
SELECT throws_ok(format('SELECT idem_breaker_record(''b'', true, %L)', bad), '22023', NULL, 'duration ' || bad)
  FROM unnest('{infinity,-infinity}'::text[]) AS bad;
\endif

SELECT throws_ok($$SELECT idem_breaker_force('b', NULL)$$, '22004', 'state must not be null', 'state null');
SELECT throws_ok(format('SELECT idem_breaker_force(''b'', %L)', bad), '22023', NULL, format('state "%s"', bad))
  FROM unnest(ARRAY['', 'half_open', 'OPEN', ' open', 'closed ', 'autos']) AS bad;
SELECT results_eq($$SELECT state, forced FROM idem_breakers WHERE name = 'b'$$, $$VALUES ('closed', false)$$,
	'what was refused has not forced it');

-- There is memory for 256 of them in a server.

SELECT idem_breaker_reset(name) FROM idem_breakers \g /dev/null
SELECT throws_ok($$SELECT count(*) FROM generate_series(1, 257) AS i, idem_breaker_allow('many ' || i)$$, '53400',
	'too many circuit breakers', 'one breaker too many');
SELECT cmp_ok(count(*), '>', 1::bigint, 'the others have their places') FROM idem_breakers WHERE name LIKE 'many %';
SELECT lives_ok($$SELECT idem_breaker_record('many 1', true)$$, 'and work');
SELECT throws_ok($$SELECT idem_breaker_force('another', 'open')$$, '53400', NULL, 'there is no place for another one');
SELECT throws_ok($$SELECT idem_breaker_record('another', true)$$, '53400', NULL, 'whatever is asked of it');
SELECT lives_ok($$SELECT idem_breaker_reset('many 2')$$, 'a reset gives a place back');
SELECT lives_ok($$SELECT idem_breaker_record('another', true)$$, 'for the next one');
SELECT idem_breaker_reset(name) FROM idem_breakers \g /dev/null
SELECT is_empty($$SELECT * FROM idem_breakers WHERE name LIKE 'many %'$$, 'and all of them are given back');

\else

-- Without shared memory breakers can be configured, and seen, but not used.

SELECT throws_ok(command, '55000', 'circuit breakers need shared memory', 'without shared memory: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_breaker_allow(''b'')',
	'SELECT idem_breaker_record(''b'', true)',
	'SELECT idem_breaker_force(''b'', ''open'')',
	'SELECT idem_breaker_reset(''b'')']) AS command;
SELECT results_eq(
	$$SELECT state, forced, retry_after, calls, failures, slow, failing_clients, probes
	    FROM idem_breakers WHERE name = 'b'$$,
	$$VALUES ('closed', false, NULL::interval, 0::bigint, 0::bigint, 0::bigint, 0, 0)$$,
	'the view shows the configured ones');
SELECT is_empty('SELECT * FROM idem_breaker_states()', 'of which none has a state');

\endif

SELECT * FROM finish();
ROLLBACK;
