-- idem_status(): all of it on one screen, and a warning for what is to be worried about.
-- Each is made to appear, and to go away again where it can.

SET statement_timeout = '60s';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

SELECT current_setting('shared_preload_libraries') ~ 'idempotency' AS preloaded,
	   CASE WHEN current_setting('server_version_num')::int >= 170000 THEN 'dynamic'
			WHEN current_setting('shared_preload_libraries') ~ 'idempotency' THEN 'static'
			ELSE 'none' END AS memory \gset

SELECT plan(33);

CREATE FUNCTION public.warned() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT (item || ': ' || warning) COLLATE "default" FROM idem.idem_status()
	 WHERE warning IS NOT NULL AND item NOT IN ('shared memory', 'janitor')
$$;
CREATE FUNCTION public.status_of(text) RETURNS text LANGUAGE sql AS
$$ SELECT value COLLATE "default" FROM idem.idem_status() WHERE item = $1 $$;

-- The screen.

SELECT results_eq(
	$$SELECT item COLLATE "default" FROM idem_status() WHERE item <> 'claims so far'$$,
	ARRAY['extension', 'server', 'shared memory', 'janitor', 'kept for', 'retries', 'locks', 'idem_key',
		  'idem_step', 'idem_message', 'idem_dead_letter', 'claims', 'prepared', 'leases', 'overdue leases',
		  'held keys', 'queues', 'dead letters', 'breakers'],
	'what is shown, in its order');
SELECT is((SELECT count(*) FROM idem_status() WHERE item = 'claims so far'), (:'memory' <> 'none')::int::bigint,
	'numbers are shown if there are any');
SELECT is_empty('SELECT item FROM idem_status() WHERE value IS NULL', 'everything has a value');
SELECT is_empty($$SELECT item FROM idem_status()
				   WHERE length(item) > 16 OR length(value) > 45 OR length(warning) > 40$$,
	'and all fits on the screen');
SELECT is(status_of('extension'), extversion || ' in schema idem', 'the version, and where it is')
  FROM pg_extension WHERE extname = 'idempotency';
SELECT is(status_of('server'), 'primary', 'the server');
SELECT is(status_of('shared memory'), :'memory', 'the shared memory');
SELECT is((SELECT warning FROM idem_status() WHERE item = 'shared memory'),
	CASE WHEN :'memory' = 'none' THEN 'preload for breakers and statistics' END, 'what is missing without');
SELECT is(status_of('janitor'), CASE WHEN :'preloaded' THEN 'off' ELSE 'none' END, 'the janitor');
SELECT is((SELECT warning FROM idem_status() WHERE item = 'janitor'),
	CASE WHEN :'preloaded' THEN 'call idem_expire' ELSE 'preload, or call idem_expire' END,
	'what to do without one');
SELECT is(status_of('kept for'), 'finished 1d, failed 1d, lost 7d, dead 30d', 'for how long records are kept');
SET idempotency.default_ttl = '90min';
SELECT is(status_of('kept for'), 'finished 90min, failed 1d, lost 7d, dead 30d', 'as the session has it');
SELECT is(status_of('retries'), '10 attempts, 1s to 1h apart', 'how failures are retried');
SET idempotency.max_attempts = 0;
SELECT is(status_of('retries'), 'unlimited attempts, 1s to 1h apart', 'without a limit');
RESET idempotency.max_attempts;
SELECT is_empty('SELECT warned()', 'at first there is nothing to worry about');

-- What is there.

DO $$ BEGIN PERFORM idem_finish('done', '1') FROM idem_claim('done'); END $$;
SELECT idem_enqueue('mail', '1'), idem_enqueue('mail', '2', delay => '1 h') \g /dev/null
ANALYZE idem_key;
SELECT matches(status_of('idem_key'), '^[0-9]+ kB, about 1 rows$', 'size and rows');
SELECT matches(status_of('queues'), '^1: 1 ready, 0 in flight, 1 later, oldest due 00:00:[0-9]+$', 'messages');
BEGIN;
SELECT outcome FROM idem_claim('now') \g /dev/null
SELECT matches(status_of('claims'), '^1, oldest 00:00:[0-9]+$', 'a claim');
ROLLBACK;
SELECT outcome FROM idem_claim('leased', lease => '1 h') \g /dev/null
SELECT matches(status_of('leases'), '^1, oldest 00:00:[0-9]+$', 'a lease');
SET ROLE idem_ann;
SELECT is(status_of('leases') || status_of('queues'), '00: 0 ready, 0 in flight, 0 later', 'others do not see it');
SET ROLE idem_watch;
SELECT matches(status_of('leases'), '^1, oldest', 'but members of pg_monitor');
RESET ROLE;

-- What is to be worried about.

SELECT FROM idem_claim('lost', lease => '1 ms') AS a, idem_claim('held', lease => '1 ms', takeover => 'hold') AS b \g /dev/null
DO $$ BEGIN
	WHILE EXISTS (SELECT FROM idem_key WHERE key IN ('lost', 'held') AND lease_until > clock_timestamp()) LOOP END LOOP;
END $$;
SELECT results_eq('SELECT warned()',
	ARRAY['overdue leases: whoever claims the key next takes over', 'held keys: check the work, then idem_resolve'],
	'leases that ran out');
SELECT idem_resolve('held', '1'), idem_forget('lost') \g /dev/null
SELECT is_empty('SELECT warned()', 'and were dealt with');
SELECT idem_nack(id, token, final => true) FROM idem_dequeue('mail') \g /dev/null
SELECT results_eq('SELECT warned()', ARRAY['dead letters: see idem_dead_letters, idem_redrive'], 'a dead letter');
SELECT idem_purge('mail', true), idem_configure_queue('mail', paused => true) \g /dev/null
SELECT results_eq('SELECT warned()', ARRAY['queues: paused: mail'], 'a queue that pauses');
SELECT idem_configure_queue('mail') \g /dev/null
ALTER TABLE idem_message SET (autovacuum_enabled = off);
SELECT results_eq('SELECT warned()', ARRAY['idem_message: autovacuum is off'], 'a table that is not vacuumed');
ALTER TABLE idem_message RESET (autovacuum_enabled);
BEGIN;
UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'idempotency';
SELECT matches((SELECT warned()), '^extension: library is [0-9.]+: restart, or update$', 'two versions');
ROLLBACK;
\if :preloaded
SELECT FROM idem_breaker_force('payments', 'open') \g /dev/null
SELECT results_eq('SELECT warned()', ARRAY['breakers: open or forced: payments'], 'a breaker that is open');
SELECT is(status_of('breakers'), '1', 'one of one');
SELECT FROM idem_breaker_force('payments', 'auto'), idem_breaker_reset('payments') \g /dev/null
DO $$ BEGIN PERFORM FROM idem_claim('done', request => '1'); END $$;
DO $$ BEGIN PERFORM idem_finish('asked', '1') FROM idem_claim('asked', request => '1'); END $$;
DO $$ BEGIN PERFORM FROM idem_claim('asked', request => '2'); END $$;
SELECT matches((SELECT warned()), '^claims so far: [0-9]+ mismatches: keys used for two things$', 'a mismatch');
SELECT idem_stats_reset() \g /dev/null
SELECT is(status_of('claims so far'), '0 claimed, 0 replayed, 0 busy', 'numbers begin anew');
\else
SELECT skip('nothing is shared', 4);
\endif
SELECT is_empty('SELECT warned()', 'at last there is nothing to worry about');

-- Whatever the caller's search_path is, it is ours that is read.
CREATE SCHEMA hostile;
CREATE VIEW hostile.pg_extension AS SELECT 'hostile' AS extversion, 0::regnamespace AS extnamespace, 'idempotency' AS extname;
CREATE VIEW hostile.idem_stats AS SELECT 1/0 AS claimed;
SET search_path = hostile, pg_catalog, public;
SELECT public.is(pg_catalog.count(*) > 15 AND pg_catalog.bool_and(value !~ 'hostile'), true, 'names are not looked up')
  FROM idem.idem_status();
SET search_path = public, idem;

SELECT * FROM finish();
DROP EXTENSION idempotency;
DROP ROLE idem_ann, idem_watch;
