-- Failures: idem_fail of leases and of transactional claims, retries, attempts
-- and their limit, backoff. Each statement is a transaction of its own, unless
-- BEGIN says otherwise. Nobody sleeps: time passes by UPDATE.

SET client_min_messages = warning;
SET statement_timeout = '60s';
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

CREATE TABLE idem.effect (key text);
CREATE TABLE idem.taken (name text PRIMARY KEY, token int8 NOT NULL);
CREATE FUNCTION idem.token_of(text) RETURNS int8 LANGUAGE sql STABLE
	AS 'SELECT token FROM idem.taken WHERE name = $1';
-- Claims with a lease, remembers the token by the key, answers the attempt.
CREATE FUNCTION idem.take(key text, ttl interval = NULL) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	c record;
BEGIN
	SELECT * INTO STRICT c FROM idem_claim(key, lease => '1 h', ttl => ttl);
	IF c.token IS NOT NULL THEN
		INSERT INTO idem.taken VALUES (key, c.token)
			ON CONFLICT (name) DO UPDATE SET token = c.token;
	END IF;
	RETURN concat_ws(' ', c.outcome, c.attempt);
END $$;
-- The time of the retry has come.
CREATE FUNCTION idem.come(text) RETURNS void LANGUAGE sql VOLATILE AS $$
	UPDATE idem_key SET retry_at = clock_timestamp() - interval '1 s' WHERE key = $1
$$;

SELECT plan(149);

-- A lease fails, to be retried.

SELECT is(idem.take('k'), 'claimed 1', 'a lease');
SELECT results_eq(
	$$SELECT outcome, response, token, attempt, retry_after BETWEEN '59 min 59 s' AND '1 h'
	    FROM idem_fail('k', '"down"', '1 h', token => idem.token_of('k'))$$,
	$$VALUES ('retry_later', '"down"'::jsonb, NULL::int8, 1, true)$$,
	'it fails: to be retried later');
SELECT results_eq(
	$$SELECT state, response, attempt, lease_until, retry_at - finished_at, expires_at - retry_at
		FROM idem_lookup('k')$$,
	$$VALUES ('retry_later', '"down"'::jsonb, 1, NULL::timestamptz, interval '1 h', interval '24 h')$$,
	'looked up');
SELECT results_eq(
	format($$SELECT outcome, response, token, attempt, retry_after BETWEEN '59 min' AND '1 h'
	           FROM idem_claim('k', lease => %L, wait => %L)$$, lease, wait),
	$$VALUES ('retry_later', '"down"'::jsonb, NULL::int8, 1, true)$$,
	format('claimed before its time, lease %s, wait %s', lease, wait))
  FROM (VALUES (NULL::interval, NULL::interval), ('1 h', NULL), (NULL, '0'), ('1 h', '1 h'))
	AS how (lease, wait);
SELECT is_empty($$SELECT * FROM idem_in_flight$$, 'nothing is in flight');
SELECT results_eq(
	$$SELECT outcome, attempt FROM idem_fail('k', '"other"', '2 h', final => true, token => idem.token_of('k'))$$,
	$$VALUES ('retry_later', 1)$$, 'failed again with the same token: what is stored');
SELECT results_eq($$SELECT state, response FROM idem_lookup('k')$$,
	$$VALUES ('retry_later', '"down"'::jsonb)$$, 'and nothing changes');
SELECT throws_ok(command, 'ID002', NULL, 'failed: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_release(''k'', token => idem.token_of(''k''))',
	'SELECT idem_renew(''k'', ''2 hours'', token => idem.token_of(''k''))',
	'SELECT idem_guard(''k'', token => idem.token_of(''k''))']) AS command;
SELECT throws_ok(command, 'ID003', NULL, 'failed, another token: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => 1)',
	'SELECT idem_fail(''k'', ''"bad"'', token => 1)',
	'SELECT idem_release(''k'', token => 1)',
	'SELECT idem_renew(''k'', ''2 hours'', token => 1)',
	'SELECT idem_guard(''k'', token => 1)']) AS command;
SELECT throws_ok(command, 'ID001', NULL, 'failed, no token: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'')', 'SELECT idem_fail(''k'')', 'SELECT idem_release(''k'')']) AS command;
SELECT throws_ok($$SELECT idem_resolve('k')$$, 'ID004', NULL, 'failed: nothing to resolve');
SELECT is(idem_expire(), 0::bigint, 'failed: not expired yet');

-- Its time comes: the next attempt.

CREATE TEMPORARY TABLE old AS SELECT idem.token_of('k') AS token;
SELECT idem.come('k') \g /dev/null
SELECT is(state, 'retry_later', 'it waits for somebody') FROM idem_lookup('k');
SELECT is(idem.take('k'), 'claimed 2', 'its time has come: the next attempt');
SELECT isnt(idem.token_of('k'), token, 'a new token') FROM old;
SELECT throws_ok(format('SELECT idem_finish(''k'', token => %s)', token), 'ID003', NULL,
	'the old one is void') FROM old;
SELECT throws_ok(format('SELECT idem_fail(''k'', token => %s)', token), 'ID003', NULL,
	'for a failure, too') FROM old;
SELECT results_eq(
	$$SELECT outcome, attempt FROM idem_fail('k', '"down"', '0', token => idem.token_of('k'))$$,
	$$VALUES ('retry_later', 2)$$, 'it fails again, to be retried at once');
SELECT is(idem.take('k'), 'claimed 3', 'the third attempt');
SELECT is(idem_finish('k', '"up"', token => idem.token_of('k')), '"up"', 'which succeeds');
SELECT results_eq($$SELECT outcome, response, attempt FROM idem_claim('k')$$,
	$$VALUES ('replayed', '"up"'::jsonb, 3)$$, 'and is replayed');
SELECT throws_ok($$SELECT idem_fail('k', token => idem.token_of('k'))$$, 'ID002', NULL,
	'what has succeeded cannot fail');

-- The request of the first attempt is that of all.

SELECT is(outcome, 'claimed', 'a claim with a request')
  FROM idem_claim('req', request => '[1]', lease => '1 h') AS c,
	   LATERAL (SELECT idem_fail('req', retry_in => '1 h', token => c.token)) AS f;
SELECT results_eq($$SELECT outcome FROM idem_claim('req', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'another request, before its time');
SELECT results_eq($$SELECT outcome FROM idem_claim('req', request => '[1]')$$,
	$$VALUES ('retry_later')$$, 'the same request');
SELECT idem.come('req') \g /dev/null
SELECT results_eq($$SELECT outcome FROM idem_claim('req', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'another request, when its time has come');
SELECT is(idem.take('req'), 'claimed 2', 'a retry without a request');
SELECT idem_fail('req', '"no"', final => true, token => idem.token_of('req')) \g /dev/null
SELECT results_eq($$SELECT outcome FROM idem_claim('req', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'another request, when it has failed for good');
SELECT results_eq($$SELECT outcome FROM idem_claim('req', request => '[1]')$$,
	$$VALUES ('failed')$$, 'the first request is still the one');

-- For good.

SELECT is(idem.take('final'), 'claimed 1', 'a lease');
SELECT results_eq(
	$$SELECT outcome, response, token, attempt, retry_after
	    FROM idem_fail('final', '{"code": 402}', '1 h', true, token => idem.token_of('final'))$$,
	$$VALUES ('failed', '{"code": 402}'::jsonb, NULL::int8, 1, NULL::interval)$$,
	'it fails for good, whatever retry_in says');
SELECT results_eq(
	format($$SELECT outcome, response, token, attempt, retry_after FROM idem_claim('final', lease => %L)$$, lease),
	$$VALUES ('failed', '{"code": 402}'::jsonb, NULL::int8, 1, NULL::interval)$$,
	'the error is replayed')
  FROM unnest('{NULL,1 h}'::interval[]) AS lease;
SELECT results_eq(
	$$SELECT state, response, attempt, retry_at, expires_at - finished_at FROM idem_lookup('final')$$,
	$$VALUES ('failed', '{"code": 402}'::jsonb, 1, NULL::timestamptz, interval '24 h')$$, 'looked up');
SELECT results_eq($$SELECT outcome, response FROM idem_fail('final', '"other"', token => idem.token_of('final'))$$,
	$$VALUES ('failed', '{"code": 402}'::jsonb)$$, 'failed again with the same token: what is stored');
SELECT throws_ok($$SELECT idem_finish('final', token => idem.token_of('final'))$$, 'ID002', NULL,
	'what has failed for good cannot succeed');
UPDATE idem_key SET expires_at = 'epoch' WHERE key = 'final';
SELECT is_empty($$SELECT * FROM idem_lookup('final')$$, 'it expires');
SELECT throws_ok($$SELECT idem_finish('final', token => idem.token_of('final'))$$, 'ID003', NULL,
	'with its token');
SELECT is(idem.take('final'), 'claimed 1', 'and starts afresh');
SELECT is(idem.take('null'), 'claimed 1', 'a lease');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_fail('null', final => true, token => idem.token_of('null'))$$,
	$$VALUES ('failed', NULL::jsonb)$$, 'a failure without an error');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('null')$$,
	$$VALUES ('failed', NULL::jsonb)$$, 'which is replayed, too');

-- Transactional claims: the work is rolled back to a savepoint, the failure is
-- committed.

BEGIN;
SELECT is(row(outcome, attempt)::text, '(claimed,1)', 'tx: claimed') FROM idem_claim('tx', request => '[1]');
SAVEPOINT work;
INSERT INTO idem.effect VALUES ('tx');
ROLLBACK TO work;
SELECT results_eq(
	$$SELECT outcome, response, token, attempt, retry_after BETWEEN '59 min' AND '1 h'
	    FROM idem_fail('tx', '"down"', '1 h')$$,
	$$VALUES ('retry_later', '"down"'::jsonb, NULL::int8, 1, true)$$, 'tx: failed');
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('tx', wait => '0')$$,
	$$VALUES ('retry_later', 1)$$, 'tx: so it is for the transaction itself');
COMMIT;
SELECT is_empty('SELECT * FROM idem.effect', 'tx: the work is undone');
SELECT results_eq($$SELECT outcome, response, attempt FROM idem_claim('tx', request => '[1]')$$,
	$$VALUES ('retry_later', '"down"'::jsonb, 1)$$, 'tx: to be retried later');
SELECT results_eq($$SELECT outcome FROM idem_claim('tx', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'tx: with the same request');
SELECT throws_ok($$SELECT idem_finish('tx', token => 0)$$, 'ID003', NULL, 'tx: it has no token');
SELECT throws_ok($$SELECT idem_finish('tx', token => -1)$$, 'ID003', NULL, 'tx: nor a negative one');
SELECT idem.come('tx') \g /dev/null
BEGIN;
SELECT is(row(outcome, attempt)::text, '(claimed,2)', 'tx: the second attempt') FROM idem_claim('tx');
SELECT results_eq($$SELECT state, attempt FROM idem_lookup('tx')$$,
	$$VALUES ('in_progress', 2)$$, 'tx: in progress for itself');
SAVEPOINT s;
SELECT is(row(outcome, attempt)::text, '(failed,2)', 'tx: failed for good')
  FROM idem_fail('tx', '"no"', final => true);
ROLLBACK TO s;
SELECT is(row(outcome, attempt)::text, '(retry_later,2)',
	'tx: on second thoughts not')
  FROM idem_fail('tx', '"again"', '0');
COMMIT;
BEGIN;
SELECT is(row(outcome, attempt)::text, '(claimed,3)', 'tx: the third attempt') FROM idem_claim('tx');
ROLLBACK;
SELECT results_eq($$SELECT state, response, attempt FROM idem_lookup('tx')$$,
	$$VALUES ('retry_later', '"again"'::jsonb, 2)$$, 'tx: rolled back, it does not count');
BEGIN;
SELECT is(row(outcome, attempt)::text, '(claimed,3)', 'tx: so the next one is the third') FROM idem_claim('tx');
INSERT INTO idem.effect VALUES ('tx');
SELECT idem_finish('tx', '"done"') \g /dev/null
COMMIT;
SELECT results_eq($$SELECT outcome, response, attempt FROM idem_claim('tx', request => '[1]')$$,
	$$VALUES ('replayed', '"done"'::jsonb, 3)$$, 'tx: replayed');
BEGIN;
SELECT outcome FROM idem_claim('undone') \g /dev/null
SELECT idem_fail('undone', final => true) \g /dev/null
ROLLBACK;
SELECT is_empty($$SELECT * FROM idem_lookup('undone')$$, 'a failure that is rolled back is none');
BEGIN;
SELECT outcome FROM idem_claim('once') \g /dev/null
SELECT idem_fail('once', retry_in => '1 h') \g /dev/null
SELECT throws_ok(command, 'ID001', NULL, 'a failed claim is at its end: ' || command) FROM unnest(ARRAY[
	'SELECT idem_fail(''once'')', 'SELECT idem_finish(''once'')', 'SELECT idem_release(''once'')']) AS command;
COMMIT;

-- Release of a retried claim: the next one starts afresh.

SELECT is(idem.take('fresh'), 'claimed 1', 'a lease');
SELECT idem_fail('fresh', retry_in => '0', token => idem.token_of('fresh')) \g /dev/null
SELECT is(idem.take('fresh'), 'claimed 2', 'its second attempt');
SELECT idem_release('fresh', token => idem.token_of('fresh')) \g /dev/null
SELECT is_empty($$SELECT * FROM idem_lookup('fresh')$$, 'released');
SELECT is(idem.take('fresh'), 'claimed 1', 'starts afresh');
SELECT idem_fail('fresh', retry_in => '0', token => idem.token_of('fresh')) \g /dev/null
BEGIN;
SELECT is(row(outcome, attempt)::text, '(claimed,2)', 'its second attempt, in a transaction')
  FROM idem_claim('fresh');
SELECT idem_release('fresh') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_lookup('fresh')$$, 'released');
SELECT is(row(outcome, attempt)::text, '(claimed,1)', 'starts afresh in the same transaction')
  FROM idem_claim('fresh');
SELECT idem_release('fresh') \g /dev/null
COMMIT;
SELECT is(idem.take('fresh'), 'claimed 1', 'and in the next');
SELECT idem_fail('fresh', retry_in => '0', token => idem.token_of('fresh')) \g /dev/null
BEGIN;
SAVEPOINT s;
SELECT idem_release('fresh') FROM idem_claim('fresh') \g /dev/null
ROLLBACK TO s;
SELECT is(row(outcome, attempt)::text, '(claimed,2)', 'but not if the release is rolled back')
  FROM idem_claim('fresh');
SELECT idem_finish('fresh') \g /dev/null
COMMIT;
SELECT results_eq($$SELECT state, attempt FROM idem_lookup('fresh')$$,
	$$VALUES ('finished', 2)$$, 'and finishes as the second');

-- Limits: the argument, or the setting.

SELECT is(idem.take('max'), 'claimed 1', 'max_attempts 3: the first attempt');
SELECT is(outcome, 'retry_later', 'max_attempts 3: fails, to be retried')
  FROM idem_fail('max', retry_in => '0', max_attempts => 3, token => idem.token_of('max'));
SELECT is(idem.take('max'), 'claimed 2', 'max_attempts 3: the second');
SELECT is(outcome, 'retry_later', 'max_attempts 3: fails, to be retried')
  FROM idem_fail('max', retry_in => '0', max_attempts => 3, token => idem.token_of('max'));
SELECT is(idem.take('max'), 'claimed 3', 'max_attempts 3: the third');
SELECT is(row(outcome, response, attempt)::text, '(failed,"""last""",3)', 'max_attempts 3: fails for good')
  FROM idem_fail('max', '"last"', '0', max_attempts => 3, token => idem.token_of('max'));
SELECT results_eq($$SELECT outcome, response, attempt FROM idem_claim('max')$$,
	$$VALUES ('failed', '"last"'::jsonb, 3)$$, 'max_attempts 3: and is replayed');
SELECT results_eq($$SELECT state, retry_at FROM idem_lookup('max')$$,
	$$VALUES ('failed', NULL::timestamptz)$$, 'max_attempts 3: there is no retry');
SET idempotency.max_attempts = 2;
BEGIN;
SELECT is(f.outcome, 'retry_later', 'setting 2: the first failure')
  FROM idem_claim('set') AS c, LATERAL idem_fail('set' || left(c.outcome, 0), retry_in => '0') AS f;
COMMIT;
BEGIN;
SELECT is(f.outcome, 'failed', 'setting 2: the second is final')
  FROM idem_claim('set') AS c, LATERAL idem_fail('set' || left(c.outcome, 0), retry_in => '0') AS f;
COMMIT;
SELECT is(idem.take('arg'), 'claimed 1', 'the argument goes first');
SELECT is(outcome, 'failed', 'if it is less')
  FROM idem_fail('arg', retry_in => '0', max_attempts => 1, token => idem.token_of('arg'));
SELECT is(idem.take('zero'), 'claimed 1', 'no limit');
UPDATE idem_key SET attempt = 1000000 WHERE key = 'zero';
SELECT is(row(outcome, attempt)::text, '(retry_later,1000000)', 'after a million of attempts')
  FROM idem_fail('zero', retry_in => '0', max_attempts => 0, token => idem.token_of('zero'));
SELECT is(idem.take('zero'), 'claimed 1000001', 'one more');
SET idempotency.max_attempts = 0;
SELECT is(row(outcome, attempt)::text, '(retry_later,1000001)', 'nor by setting')
  FROM idem_fail('zero', retry_in => '0', token => idem.token_of('zero'));
SELECT is(idem.take('zero'), 'claimed 1000002', 'and one more');
SELECT is(outcome, 'failed', 'until the argument says so')
  FROM idem_fail('zero', retry_in => '0', max_attempts => 5, token => idem.token_of('zero'));
RESET idempotency.max_attempts;
SELECT is(current_setting('idempotency.max_attempts'), '10', 'by default there are ten');
SELECT is(idem.take('ten'), 'claimed 1', 'a lease');
UPDATE idem_key SET attempt = 9 WHERE key = 'ten';
SELECT is(outcome, 'retry_later', 'the ninth is retried')
  FROM idem_fail('ten', retry_in => '0', token => idem.token_of('ten'));
SELECT is(idem.take('ten'), 'claimed 10', 'the tenth');
SELECT is(outcome, 'failed', 'is not')
  FROM idem_fail('ten', retry_in => '0', token => idem.token_of('ten'));
SELECT is(idem.take('top'), 'claimed 1', 'a lease');
UPDATE idem_key SET attempt = 2147483647, lease_until = clock_timestamp() WHERE key = 'top';
SELECT ok(attempt > 0, 'attempts do not wrap around') FROM idem_claim('top', lease => '1 h');

-- Backoff: within [0, min(cap, base * 2^(attempt - 1))], and not always the same.

CREATE FUNCTION idem.backoff(OUT attempt int, OUT delay interval)
RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	c record;
BEGIN
	FOR i IN 1 .. 12 LOOP
		FOR j IN 1 .. 20 LOOP
			SELECT * INTO c FROM idem_claim(format('b %s %s', i, j), lease => '1 h');
			UPDATE idem_key SET attempt = i WHERE key = format('b %s %s', i, j);
			PERFORM idem_fail(format('b %s %s', i, j), max_attempts => 0, token => c.token);
			SELECT l.attempt, l.retry_at - l.finished_at INTO attempt, delay
			  FROM idem_lookup(format('b %s %s', i, j)) AS l;
			RETURN NEXT;
		END LOOP;
	END LOOP;
	DELETE FROM idem_key WHERE key LIKE 'b %';
END $$;
CREATE TEMPORARY TABLE delays AS SELECT * FROM idem.backoff();
SELECT is(count(*), 240::bigint, '240 failures') FROM delays;
SELECT is_empty(
	$$SELECT * FROM delays WHERE delay < '0' OR delay > least('1 h', interval '1 s' * 2 ^ (attempt - 1))$$,
	'default backoff: within [0, min(1 h, 1 s * 2^(attempt - 1))]');
SELECT cmp_ok(count(DISTINCT delay), '>', 200::bigint, 'with jitter') FROM delays;
SELECT ok(max(delay) > '10 min', 'which grows') FROM delays;
SET idempotency.backoff_base = '10 ms';
SET idempotency.backoff_cap = '40 ms';
TRUNCATE delays;
INSERT INTO delays SELECT * FROM idem.backoff();
SELECT is_empty(
	$$SELECT * FROM delays WHERE delay < '0' OR delay > least('40 ms', interval '10 ms' * 2 ^ (attempt - 1))$$,
	'backoff by settings');
SELECT ok(max(delay) > '20 ms', 'up to the cap') FROM delays WHERE attempt > 2;
SET idempotency.backoff_base = '20 ms';
SET idempotency.backoff_cap = '5 ms';
TRUNCATE delays;
INSERT INTO delays SELECT * FROM idem.backoff();
SELECT ok(bool_and(delay BETWEEN '0' AND '20 ms') AND max(delay) > '5 ms',
	'a cap below the base counts as the base') FROM delays;
SET idempotency.backoff_base = 2147483647;
SET idempotency.backoff_cap = 2147483647;
TRUNCATE delays;
INSERT INTO delays SELECT * FROM idem.backoff();
SELECT ok(bool_and(delay BETWEEN '0' AND '2147483647 ms'), 'the largest settings') FROM delays;
RESET idempotency.backoff_base;
RESET idempotency.backoff_cap;
SELECT is(idem.take('attempt'), 'claimed 1', 'a lease');
UPDATE idem_key SET attempt = 2147483647 WHERE key = 'attempt';
SELECT ok(retry_after BETWEEN '0' AND '1 h', 'backoff of the largest attempt')
  FROM idem_fail('attempt', max_attempts => 0, token => idem.token_of('attempt'));

-- Retention: failed_ttl, or the ttl of the claim, from the time of the retry.

SET idempotency.failed_ttl = '2 h';
BEGIN;
SELECT is(f.outcome, 'retry_later', 'tx: failed, by the settings')
  FROM idem_claim('ttl') AS c, LATERAL idem_fail('ttl' || left(c.outcome, 0), retry_in => '5 h') AS f;
SELECT is(f.outcome, 'failed', 'tx: failed for good, with a ttl')
  FROM idem_claim('ttl x', ttl => '3 h') AS c, LATERAL idem_fail('ttl x' || left(c.outcome, 0), final => true) AS f;
COMMIT;
SELECT is(expires_at - retry_at, interval '2 h', 'failed_ttl from the time of the retry') FROM idem_lookup('ttl');
SELECT is(expires_at - finished_at, interval '3 h', 'or the ttl of the claim') FROM idem_lookup('ttl x');
RESET idempotency.failed_ttl;
SELECT is(idem.take('short', '1 ms'), 'claimed 1', 'a lease with a ttl of 1 ms');
SELECT lives_ok($$SELECT idem_fail('short', jsonb_build_array(repeat(md5('x'), 250000)), '0', token => idem.token_of('short'))$$,
	'fails with a large error, while its record expires');

-- A failure belongs to its role, its scope and its key.

SELECT is(idem.take('mine'), 'claimed 1', 'a lease');
GRANT SELECT ON idem.taken TO idem_ann;
SET ROLE idem_ann;
SELECT throws_ok($$SELECT idem_fail('mine', token => idem.token_of('mine'))$$, 'ID003', NULL,
	'another role cannot fail it');
RESET ROLE;
SELECT throws_ok($$SELECT idem_fail('mine', scope => 's', token => idem.token_of('mine'))$$, 'ID003', NULL,
	'nor can it be failed in another scope');
SELECT throws_ok($$SELECT idem_fail('nobody')$$, 'ID001', NULL, 'nor what is not claimed');
SELECT throws_ok($$SELECT idem_fail('nobody', token => 1)$$, 'ID003', NULL, 'with or without a token');

-- Bad arguments.

SELECT throws_ok(command, code, NULL, command) FROM (VALUES
	('22004', 'SELECT idem_fail(NULL, token => 1)'),
	('22004', 'SELECT idem_fail(''mine'', scope => NULL, token => 1)'),
	('22004', 'SELECT idem_fail(''mine'', final => NULL, token => idem.token_of(''mine''))'),
	('22023', 'SELECT idem_fail('''', token => 1)'),
	('22023', 'SELECT idem_fail(''mine'', retry_in => ''-1 us'', token => idem.token_of(''mine''))'),
	('22023', 'SELECT idem_fail(''mine'', retry_in => ''1 month -40 days'', token => idem.token_of(''mine''))'),
	('22023', 'SELECT idem_fail(''mine'', max_attempts => -1, token => idem.token_of(''mine''))'),
	('22008', 'SELECT idem_fail(''mine'', retry_in => ''300000 years'', token => idem.token_of(''mine''))'),
	('54000', 'SELECT idem_fail(repeat(''m'', 513), token => 1)'),
	('54000', 'SELECT idem_fail(''mine'', scope => repeat(''s'', 129), token => 1)'),
	('54000', 'SELECT idem_fail(''mine'', jsonb_build_array(repeat(''r'', 8 * 1024 * 1024)), token => idem.token_of(''mine''))')
) AS bad (code, command);
SELECT throws_ok(format('SET %s = %s', setting, value), '22023', NULL, format('%s = %s', setting, value))
  FROM (VALUES ('idempotency.max_attempts', '-1'), ('idempotency.backoff_base', '0'),
	('idempotency.backoff_cap', '0'), ('idempotency.failed_ttl', '0'), ('idempotency.abandoned_ttl', '0'))
	AS bad (setting, value);
BEGIN READ ONLY;
SELECT throws_ok($$SELECT idem_fail('mine', token => idem.token_of('mine'))$$, '25006', NULL,
	'read only');
COMMIT;
SELECT results_eq($$SELECT state, attempt FROM idem_lookup('mine')$$,
	$$VALUES ('in_progress', 1)$$, 'nothing of all that has hurt the lease');
SELECT is(idem_finish('mine', '"good"', token => idem.token_of('mine')), '"good"', 'which finishes');

SELECT * FROM finish();
DROP EXTENSION idempotency;
DROP SCHEMA idem CASCADE;
DROP ROLE idem_ann;
