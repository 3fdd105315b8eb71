-- The view idem_stats: what it looks like, who may see it, who may begin anew, and
-- that each counter counts what its column says. Without shared memory there is
-- nothing to count in.
--
-- A lease that others wait for is committed, so this clears up at the end.

SET statement_timeout = '60s';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

SELECT current_setting('server_version_num')::int >= 170000
	   OR current_setting('shared_preload_libraries') ~ 'idempotency' AS shared \gset

SELECT plan(CASE WHEN :'shared' THEN 64 ELSE 12 END);

SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod) COLLATE "default" FROM pg_attribute
	   WHERE attrelid = 'idem_stats'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum$$,
	$$VALUES ('claimed', 'bigint'), ('replayed', 'bigint'), ('in_progress', 'bigint'), ('mismatch', 'bigint'),
			 ('retry_later', 'bigint'), ('failed', 'bigint'), ('held', 'bigint'), ('waits', 'bigint'),
			 ('wait_time', 'interval'), ('taken_over', 'bigint'), ('stale', 'bigint'), ('finishes', 'bigint'),
			 ('failures', 'bigint'), ('expired', 'bigint'), ('enqueued', 'bigint'), ('duplicates', 'bigint'),
			 ('dequeued', 'bigint'), ('acked', 'bigint'), ('nacked', 'bigint'), ('dead', 'bigint'),
			 ('redriven', 'bigint'), ('stats_reset', 'timestamp with time zone')$$,
	'the columns, in their order');
SELECT is_empty(
	$$SELECT attname FROM pg_attribute WHERE attrelid = 'idem_stats'::regclass AND attnum > 0
	     AND col_description(attrelid, attnum) IS NULL$$,
	'each has a comment');
SELECT isnt(obj_description('idem_stats'::regclass, 'pg_class'), NULL, 'so has the view');
SELECT isnt(obj_description(oid, 'pg_proc'), NULL, 'and ' || proname)
  FROM pg_proc WHERE pronamespace = 'idem'::regnamespace AND proname IN ('idem_counters', 'idem_stats_reset');

SELECT table_privs_are('idem', 'idem_stats', who, '{SELECT}', who || ' may look')
  FROM unnest('{idem_ann,idem_watch}'::name[]) AS who;
SELECT function_privs_are('idem', 'idem_stats_reset', '{}', who, '{}', who || ' may not reset')
  FROM unnest('{idem_ann,idem_watch}'::name[]) AS who;
SET ROLE idem_ann;
SELECT throws_ok('SELECT idem_stats_reset()', '42501', NULL, 'refused to a plain role');
RESET ROLE;

\if :shared

SELECT results_eq('SELECT count(*) FROM idem_stats', 'VALUES (1::bigint)', 'there is one row');

-- What has changed since the last time.
CREATE TABLE idem.before (counter text COLLATE "default" PRIMARY KEY, n numeric NOT NULL);
CREATE VIEW idem.counters AS
	SELECT key AS counter, CASE key WHEN 'wait_time' THEN extract(epoch FROM value::interval) ELSE value::numeric END AS n
	  FROM idem_stats, jsonb_each_text(to_jsonb(idem_stats) - 'stats_reset');
INSERT INTO idem.before SELECT * FROM idem.counters;
CREATE FUNCTION idem.news() RETURNS jsonb LANGUAGE sql VOLATILE AS $$
	WITH change AS (SELECT c.counter, c.n - b.n AS n FROM idem.counters AS c JOIN idem.before AS b USING (counter)),
		 kept AS (UPDATE idem.before SET n = c.n FROM idem.counters AS c WHERE c.counter = before.counter)
	SELECT coalesce(jsonb_object_agg(counter, n), '{}') FROM change WHERE n <> 0
$$;
SELECT is(idem.news(), '{}', 'nothing is counted when nothing happens');

-- Waits, and for how long. A wait for a lease is one of many pauses.

SELECT outcome FROM idem_claim('w', lease => '1 h') \g /dev/null
SELECT idem.news() \g /dev/null
SELECT is(outcome, 'in_progress', 'a wait for a lease') FROM idem_claim('w', wait => '20 ms');
SELECT is(array_agg(counter ORDER BY counter), '{in_progress,wait_time,waits}', 'is counted')
  FROM jsonb_object_keys(idem.news()) AS counter;
SELECT cmp_ok(wait_time, '>=', interval '20 ms', 'with its time') FROM idem_stats;
SELECT is(outcome, 'in_progress', 'a claim that does not wait') FROM idem_claim('w', wait => '0');
SELECT is(idem.news(), '{"in_progress": 1}', 'is not');

BEGIN;

-- Claims, by their outcome.

SELECT * FROM idem_claim('k') \g /dev/null
SELECT is(idem.news(), '{"claimed": 1}', 'a claim');
SELECT * FROM idem_claim('k') \g /dev/null
SELECT is(idem.news(), '{"in_progress": 1}', 'once more: in progress');
SELECT idem_finish('k', '1') \g /dev/null
SELECT is(idem.news(), '{"finishes": 1}', 'a finish');
SELECT * FROM generate_series(1, 3) AS i, idem_claim('k', wait => i * interval '1 s') \g /dev/null
SELECT is(idem.news(), '{"replayed": 3}', 'three replays');
SELECT * FROM idem_lookup('k') \g /dev/null
SELECT is(idem.news(), '{}', 'a look is not counted');
SELECT * FROM idem_claim('m', request => '1') \g /dev/null
SELECT * FROM idem_claim('m', request => '2') \g /dev/null
SELECT is(idem.news(), '{"claimed": 1, "mismatch": 1}', 'a mismatch');
SELECT idem_release('m') \g /dev/null
SELECT is(idem.news(), '{}', 'a release is not counted');
SELECT * FROM idem_claim('r') \g /dev/null
SELECT * FROM idem_fail('r', retry_in => '1 h') \g /dev/null
SELECT is(idem.news(), '{"claimed": 1, "failures": 1}', 'a failure');
SELECT * FROM idem_claim('r') \g /dev/null
SELECT is(idem.news(), '{"retry_later": 1}', 'to be tried later');
SELECT * FROM idem_claim('f') \g /dev/null
SELECT * FROM idem_fail('f', final => true) \g /dev/null
SELECT * FROM idem_claim('f') \g /dev/null
SELECT is(idem.news(), '{"claimed": 1, "failures": 1, "failed": 1}', 'a final one');

-- Sets and commands are claims like any other.

SELECT * FROM idem_claim_many('{a,b,a}') \g /dev/null
SELECT * FROM idem_finish_many('{a,b}') \g /dev/null
SELECT is(idem.news(), '{"claimed": 2, "in_progress": 1, "finishes": 2}', 'a set of keys');
SELECT * FROM idem_once('o', 'SELECT 1') \g /dev/null
SELECT * FROM idem_once('o', 'SELECT 1') \g /dev/null
SELECT is(idem.news(), '{"claimed": 1, "finishes": 1, "replayed": 1}', 'a command');

-- Leases.

SELECT token AS lease FROM idem_claim('l', lease => '1 h', takeover => 'hold') \gset
SELECT is(idem.news(), '{"claimed": 1}', 'a lease');
SELECT throws_ok('SELECT idem_finish(''l'', token => 1)', 'ID003', NULL, 'another token');
SELECT is(idem.news(), '{"stale": 1}', 'is stale');
UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = 'l';
SELECT outcome FROM idem_claim('l') \g /dev/null
SELECT is(idem.news(), '{"held": 1}', 'it has run out, and is held');
SELECT idem_resolve('l', '1') \g /dev/null
SELECT is(idem.news() - 'finishes', '{}', 'a resolution');
SELECT token AS lease FROM idem_claim('t', lease => '1 h') \gset
UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = 't';
SELECT outcome FROM idem_claim('t', lease => '1 h') \g /dev/null
SELECT is(idem.news(), '{"claimed": 2, "taken_over": 1}', 'one that is taken over');

-- Expiry.

UPDATE idem_key SET expires_at = clock_timestamp() - interval '1 s' WHERE key IN ('k', 'a', 'b');
SELECT is(idem_expire(2), 2::bigint, 'two records are removed');
SELECT is(idem.news(), '{"expired": 2}', 'and counted');
SELECT is(idem_expire(), 1::bigint, 'one more');
SELECT is(idem.news(), '{"expired": 1}', 'is, too');
SELECT is(idem_forget('o'), true, 'what is forgotten');
SELECT is(idem.news(), '{}', 'has not expired');

-- Messages. A key of a message is claimed and finished like any other.

SELECT idem_enqueue('q', '1', key => 'once') \g /dev/null
SELECT idem_enqueue('q', '1', key => 'once') \g /dev/null
SELECT is(idem.news() - '{claimed,finishes,replayed}'::text[], '{"enqueued": 1, "duplicates": 1}', 'a message, and the same again');
SELECT * FROM idem_enqueue_many('q', '{2,3,4}') \g /dev/null
SELECT is(idem.news(), '{"enqueued": 3}', 'three more');
SELECT * FROM generate_series(1, 2) AS i, idem_receive('s', CASE WHEN i > 0 THEN 'm' END, '5', queue => 'other') \g /dev/null
SELECT is(idem.news() - '{claimed,finishes,replayed}'::text[], '{"enqueued": 1, "duplicates": 1}', 'one from outside, twice');
CREATE TEMPORARY TABLE taken AS SELECT * FROM idem_dequeue('q', 4);
SELECT is(idem.news(), '{"dequeued": 4}', 'four are taken');
SELECT * FROM idem_dequeue('q', 4) \g /dev/null
SELECT is(idem.news(), '{}', 'none is left to take');
SELECT idem_ack(id, token) FROM taken WHERE payload = '1' \g /dev/null
SELECT is(idem.news(), '{"acked": 1}', 'one is done');
SELECT throws_ok('SELECT idem_ack(id, token) FROM taken WHERE payload = ''1''', 'ID003', NULL, 'and not done twice');
SELECT is(idem.news(), '{"stale": 1}', 'its token is stale');
SELECT idem_nack(id, token, retry_in => '1 h') FROM taken WHERE payload = '2' \g /dev/null
SELECT is(idem.news(), '{"nacked": 1}', 'one is given back');
SELECT idem_nack(id, token, final => true) FROM taken WHERE payload IN ('3', '4') \g /dev/null
SELECT is(idem.news(), '{"nacked": 2, "dead": 2}', 'two for good');
SELECT is(idem_redrive('q', max_messages => 1), 1::bigint, 'one is put back');
SELECT is(idem.news(), '{"redriven": 1}', 'which is counted');

-- What is counted counts, whatever becomes of the transaction.

SAVEPOINT s;
SELECT * FROM idem_claim('gone') \g /dev/null
ROLLBACK TO s;
SELECT is(idem.news(), '{"claimed": 1}', 'a claim that was rolled back');
SAVEPOINT s;
SET LOCAL transaction_read_only = on;
SELECT lives_ok('SELECT * FROM idem_stats', 'the view can be read in a read-only transaction');
ROLLBACK TO s;
SELECT is(idem.news(), '{}', 'and does not count itself');

-- Everybody sees the same.

SELECT claimed AS claimed FROM idem_stats \gset
SET LOCAL ROLE idem_ann;
SELECT is(claimed, :claimed::bigint, 'a plain role sees the counts of all') FROM idem_stats;
RESET ROLE;

-- Anew.

SELECT stats_reset AS before FROM idem_stats \gset
SELECT cmp_ok(:'before'::timestamptz, '<=', clock_timestamp(), 'it was counted since some time');
SELECT lives_ok('SELECT idem_stats_reset()', 'it is counted anew');
SELECT is(string_agg(counter, ','), NULL, 'from zero') FROM idem.counters WHERE n <> 0;
SELECT cmp_ok(stats_reset, '>', :'before'::timestamptz, 'since now') FROM idem_stats;
SELECT * FROM idem_claim('after') \g /dev/null
SELECT is(claimed, 1::bigint, 'and goes on') FROM idem_stats;
GRANT EXECUTE ON FUNCTION idem_stats_reset TO idem_watch;
SET LOCAL ROLE idem_watch;
SELECT lives_ok('SELECT idem_stats_reset()', 'whoever was granted EXECUTE may do so');
RESET ROLE;
SELECT is(claimed, 0::bigint, 'for everybody') FROM idem_stats;

SELECT * FROM finish();
ROLLBACK;

\else

SELECT is_empty('SELECT * FROM idem_stats', 'without shared memory there is no row');
SELECT throws_ok('SELECT idem_stats_reset()', '55000', 'nothing is counted without shared memory',
	'and nothing to begin anew');

SELECT * FROM finish();

\endif

DROP EXTENSION idempotency CASCADE;
DROP SCHEMA idem CASCADE;
DROP ROLE idem_ann, idem_watch;
