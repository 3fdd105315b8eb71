-- Leased claims: every outcome, and the fence. A lease is committed by its
-- claimant, so each statement here is a transaction of its own, unless BEGIN
-- says otherwise. Nobody sleeps: time passes by UPDATE, as a superuser may.

SET client_min_messages = warning;
SET statement_timeout = '60s';
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

-- Tokens by the name of their lease.
CREATE TABLE idem.taken (name text PRIMARY KEY, token int8 NOT NULL);
GRANT SELECT, INSERT ON idem.taken TO PUBLIC;
CREATE FUNCTION idem.token_of(text) RETURNS int8 LANGUAGE sql STABLE
	AS 'SELECT token FROM idem.taken WHERE name = $1';
-- Time passes for a key of the current role: its lease has run out, and so has
-- its retention.
CREATE FUNCTION idem.run_out(text) RETURNS void LANGUAGE sql VOLATILE AS $$
	UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s'
	 WHERE key = $1
$$;
CREATE FUNCTION idem.grow_old(text) RETURNS void LANGUAGE sql VOLATILE AS $$
	UPDATE idem_key SET expires_at = clock_timestamp() - interval '1 s'
	 WHERE key = $1
$$;

SELECT plan(272);

-- A fresh key.

WITH c AS (SELECT * FROM idem_claim('k', request => '[1]', lease => '1 hour', holder => 'job 1')),
	 i AS (INSERT INTO idem.taken SELECT 'k', token FROM c)
SELECT results_eq(
	$$SELECT 'claimed', NULL::jsonb, 1, NULL::interval$$,
	format('SELECT %L, %L::jsonb, %L::int, %L::interval', outcome, response, attempt, retry_after),
	'a fresh key is claimed') FROM c;
SELECT cmp_ok(idem.token_of('k'), '>', 0::int8, 'with a positive token');
SELECT results_eq(
	$$SELECT state, response, attempt, finished_at, retry_at, lease_until - claimed_at BETWEEN '59 min 59 s' AND '1 hour',
			 expires_at - lease_until FROM idem_lookup('k')$$,
	$$VALUES ('in_progress', NULL::jsonb, 1, NULL::timestamptz, NULL::timestamptz, true, interval '7 days')$$,
	'and looked up: kept for abandoned_ttl after the lease');
SELECT is_empty($$SELECT * FROM pg_locks WHERE locktype = 'advisory'$$,
	'no lock is left');
SELECT results_eq(
	$$SELECT outcome, response, token, attempt,
			 retry_after > '59 min' AND retry_after <= '1 hour' FROM idem_claim('k')$$,
	$$VALUES ('in_progress', NULL::jsonb, NULL::int8, NULL::int, true)$$,
	'busy for a transactional claim, which does not wait for a lease');
SELECT results_eq(
	$$SELECT outcome, token, retry_after > '59 min'
	    FROM idem_claim('k', lease => '1 hour')$$,
	$$VALUES ('in_progress', NULL::int8, true)$$, 'busy for a leased claim');
SELECT results_eq(
	$$SELECT outcome, token, retry_after > '59 min'
	    FROM idem_claim('k', lease => '1 hour', holder => 'job 2')$$,
	$$VALUES ('in_progress', NULL::int8, true)$$, 'and for another holder');
SELECT results_eq(
	$$SELECT outcome, retry_after > '59 min' FROM idem_claim('k', holder => 'job 1')$$,
	$$VALUES ('in_progress', true)$$,
	'and for the same holder, if it does not ask for a lease');
SELECT results_eq(
	format($$SELECT outcome, retry_after > '59 min' FROM idem_claim('k', wait => %L)$$, wait),
	$$VALUES ('in_progress', true)$$, format('busy after a wait of %s', wait))
  FROM unnest('{0,10 ms}'::interval[]) AS wait;
SELECT results_eq($$SELECT outcome, retry_after FROM idem_claim('k', request => '[2]')$$,
	$$VALUES ('mismatch', NULL::interval)$$, 'another request is a mismatch under a live lease');
SELECT results_eq($$SELECT outcome FROM idem_claim('k', request => '[1]', lease => '1 s')$$,
	$$VALUES ('in_progress')$$, 'the same request is not');

-- Who has no token, or a wrong one, can do nothing to it. Zero and negative
-- tokens are nobody's.

SELECT throws_ok(format(command, bad), 'ID003', NULL, format(command, bad))
  FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => %s)',
	'SELECT idem_fail(''k'', ''"bad"'', token => %s)',
	'SELECT idem_release(''k'', token => %s)',
	'SELECT idem_renew(''k'', ''2 hours'', token => %s)',
	'SELECT idem_guard(''k'', token => %s)']) AS command,
	   unnest(ARRAY[1, -1, -9223372036854775808, 9223372036854775807]) AS bad;
SELECT throws_ok(command, 'ID003', NULL, command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => 0)',
	'SELECT idem_fail(''k'', ''"bad"'', token => 0)',
	'SELECT idem_release(''k'', token => 0)']) AS command;
SELECT throws_ok(command, 'ID001', NULL, command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'')',
	'SELECT idem_fail(''k'', ''"bad"'')',
	'SELECT idem_release(''k'')']) AS command;
SELECT throws_ok(command, '22004', NULL, command) FROM unnest(ARRAY[
	'SELECT idem_renew(''k'', ''2 hours'')',
	'SELECT idem_guard(''k'')']) AS command;
SELECT throws_ok(command, 'ID003', NULL, command) FROM unnest(ARRAY[
	'SELECT idem_renew(''k'', ''2 hours'', token => 0)',
	'SELECT idem_guard(''k'', token => 0)']) AS command;
SELECT throws_ok($$SELECT idem_finish('k', '"bad"', 's', idem.token_of('k'))$$, 'ID003', NULL,
	'the token is worth nothing in another scope');
SELECT throws_ok($$SELECT idem_finish('K', '"bad"', token => idem.token_of('k'))$$, 'ID003', NULL,
	'nor for another key');
WITH c AS (SELECT * FROM idem_claim('k', scope => 's', lease => '1 hour'))
INSERT INTO idem.taken SELECT 'k s', token FROM c;
SELECT throws_ok($$SELECT idem_finish('k', '"bad"', 's', idem.token_of('k'))$$, 'ID003', NULL,
	'even if that has a lease of its own');
SELECT throws_ok($$SELECT idem_guard('k', '', idem.token_of('k s'))$$, 'ID003', NULL,
	'nor the other way round');
SET ROLE idem_bob;
SELECT throws_ok(command, 'ID003', NULL, 'another role: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_fail(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_release(''k'', token => idem.token_of(''k''))',
	'SELECT idem_renew(''k'', ''2 hours'', token => idem.token_of(''k''))',
	'SELECT idem_guard(''k'', token => idem.token_of(''k''))']) AS command;
SELECT throws_ok($$SELECT idem_resolve('k', '"bad"')$$, 'ID004', NULL, 'another role: resolve');
SELECT ok(NOT idem_forget('k'), 'another role: forget');
SELECT is_empty($$SELECT * FROM idem_lookup('k')$$, 'another role: lookup');
WITH c AS (SELECT * FROM idem_claim('k', request => '[2]', lease => '1 hour')),
	 i AS (INSERT INTO idem.taken SELECT 'k bob', token FROM c)
SELECT is(outcome, 'claimed', 'another role claims its own k') FROM c;
RESET ROLE;
SELECT throws_ok($$SELECT idem_finish('k', token => idem.token_of('k bob'))$$, 'ID003', NULL,
	'and its token is worth nothing here');
SELECT is(count(DISTINCT token), 3::bigint, 'no two tokens are the same') FROM idem.taken;

-- The holder's own claim: the same attempt, a new token, and never a shorter
-- lease.

CREATE TEMPORARY TABLE before AS SELECT * FROM idem_lookup('k');
WITH c AS (SELECT * FROM idem_claim('k', lease => '2 hours', holder => 'job 1')),
	 i AS (INSERT INTO idem.taken SELECT 'k again', token FROM c)
SELECT is(row(outcome, attempt)::text, '(claimed,1)', 'the same holder gets its lease back') FROM c;
SELECT isnt(idem.token_of('k again'), idem.token_of('k'), 'with a new token');
SELECT ok(a.lease_until >= b.lease_until + interval '1 hour', 'and it is longer')
  FROM before AS b, idem_lookup('k') AS a;
SELECT throws_ok(command, 'ID003', NULL, 'the old token is void: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_fail(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_release(''k'', token => idem.token_of(''k''))',
	'SELECT idem_renew(''k'', ''2 hours'', token => idem.token_of(''k''))',
	'SELECT idem_guard(''k'', token => idem.token_of(''k''))']) AS command;
DROP TABLE before;
CREATE TEMPORARY TABLE before AS SELECT * FROM idem_lookup('k');
WITH c AS (SELECT * FROM idem_claim('k', lease => '1 s', holder => 'job 1'))
UPDATE idem.taken SET token = c.token FROM c WHERE name = 'k again';
SELECT is(a.lease_until, b.lease_until, 'a shorter lease leaves it as long as it was')
  FROM before AS b, idem_lookup('k') AS a;
SELECT is(expires_at - lease_until, interval '7 days', 'and so does its retention')
  FROM idem_lookup('k');
SELECT results_eq($$SELECT outcome FROM idem_claim('k', request => '[2]', lease => '1 s', holder => 'job 1')$$,
	$$VALUES ('mismatch')$$, 'the request is still that of the first claim');

-- Renew.

SELECT is(u, (SELECT lease_until FROM before), 'renew with less changes nothing')
  FROM idem_renew('k', '1 s', token => idem.token_of('k again')) AS u;
SELECT ok(u BETWEEN clock_timestamp() + interval '2 h 59 min' AND clock_timestamp() + interval '3 h',
	'renew extends, and says until when')
  FROM idem_renew('k', '3 h', token => idem.token_of('k again')) AS u;
SELECT ok(lease_until > clock_timestamp() + interval '2 h 59 min', 'which is stored')
  FROM idem_lookup('k');
BEGIN;
SELECT idem_renew('k', '5 h', token => idem.token_of('k again')) \g /dev/null
ROLLBACK;
SELECT ok(lease_until < clock_timestamp() + interval '3 h', 'a renew that is rolled back is none')
  FROM idem_lookup('k');
WITH c AS (SELECT * FROM idem_claim('kept', ttl => '1 min', lease => '1 s'))
INSERT INTO idem.taken SELECT 'kept', token FROM c;
SELECT idem_renew('kept', '1 h', token => idem.token_of('kept')) \g /dev/null
SELECT is(expires_at - lease_until, interval '1 min', 'the retention moves along')
  FROM idem_lookup('kept');

-- Guard: no answer but that it is ours, and no change.

SELECT lives_ok($$SELECT idem_guard('k', token => idem.token_of('k again'))$$, 'guard');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT lives_ok($$SELECT idem_guard('k', '', idem.token_of('k again'))$$, 'guard, serializable');
SELECT lives_ok($$SELECT idem_guard('k', '', idem.token_of('k again'))$$, 'and again');
COMMIT;

-- Finish, and again.

SELECT is(idem_finish('k', '"done"', token => idem.token_of('k again')), '"done"',
	'finish with the token');
SELECT is(idem_finish('k', '"other"', token => idem.token_of('k again')), '"done"',
	'finish again with the same token: the stored response');
SELECT results_eq(
	$$SELECT state, response, attempt, lease_until, expires_at - finished_at FROM idem_lookup('k')$$,
	$$VALUES ('finished', '"done"'::jsonb, 1, NULL::timestamptz, interval '24 hours')$$,
	'finished, and kept for default_ttl from then on');
SELECT results_eq($$SELECT outcome, response, token, attempt FROM idem_claim('k', lease => '1 h', holder => 'job 1')$$,
	$$VALUES ('replayed', '"done"'::jsonb, NULL::int8, 1)$$, 'replayed, also for the holder');
SELECT throws_ok(command, 'ID002', NULL, 'finished: ' || command) FROM unnest(ARRAY[
	'SELECT idem_fail(''k'', ''"bad"'', token => idem.token_of(''k again''))',
	'SELECT idem_release(''k'', token => idem.token_of(''k again''))',
	'SELECT idem_renew(''k'', ''2 hours'', token => idem.token_of(''k again''))',
	'SELECT idem_guard(''k'', token => idem.token_of(''k again''))',
	'SELECT idem_finish(''k'')',
	'SELECT idem_fail(''k'')',
	'SELECT idem_release(''k'')']) AS command;
SELECT throws_ok(command, 'ID003', NULL, 'finished, old token: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_fail(''k'', ''"bad"'', token => idem.token_of(''k''))',
	'SELECT idem_release(''k'', token => idem.token_of(''k''))',
	'SELECT idem_renew(''k'', ''2 hours'', token => idem.token_of(''k''))',
	'SELECT idem_guard(''k'', token => idem.token_of(''k''))']) AS command;
SELECT throws_ok($$SELECT idem_resolve('k', '"bad"')$$, 'ID004', NULL, 'finished: nothing to resolve');
SELECT is(idem_finish('kept', NULL, token => idem.token_of('kept')), NULL, 'finish with no response');
SELECT is(idem_finish('kept', '1', token => idem.token_of('kept')), NULL, 'which is a response');
SELECT is(expires_at - finished_at, interval '1 min', 'kept for the ttl that the claim asked for')
  FROM idem_lookup('kept');

-- Takeover: policy rerun.

WITH c AS (SELECT * FROM idem_claim('rerun', request => '[1]', lease => '1 h', holder => 'job 1'))
INSERT INTO idem.taken SELECT 'rerun 1', token FROM c;
SELECT idem.run_out('rerun') \g /dev/null
SELECT results_eq($$SELECT state, attempt, lease_until < clock_timestamp() FROM idem_lookup('rerun')$$,
	$$VALUES ('in_progress', 1, true)$$, 'a lease that ran out waits for somebody to take over');
SELECT lives_ok($$SELECT idem_guard('rerun', token => idem.token_of('rerun 1'))$$,
	'until then it is still good for a guard');
SELECT ok(idem_renew('rerun', '1 h', token => idem.token_of('rerun 1')) > clock_timestamp(),
	'and for a renew');
SELECT results_eq($$SELECT outcome FROM idem_claim('rerun', lease => '1 h')$$,
	$$VALUES ('in_progress')$$, 'by which it is live again');
SELECT idem.run_out('rerun') \g /dev/null
SELECT results_eq($$SELECT outcome FROM idem_claim('rerun', request => '[2]', lease => '1 h')$$,
	$$VALUES ('mismatch')$$, 'another request does not take over');
WITH c AS (SELECT * FROM idem_claim('rerun', lease => '1 h', holder => 'job 1')),
	 i AS (INSERT INTO idem.taken SELECT 'rerun 2', token FROM c)
SELECT is(row(outcome, attempt)::text, '(claimed,2)',
	'the next claim takes over, even that of the same holder: the next attempt') FROM c;
SELECT isnt(idem.token_of('rerun 2'), idem.token_of('rerun 1'), 'with a new token');
SELECT throws_ok(command, 'ID003', NULL, 'taken over: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''rerun'', ''"bad"'', token => idem.token_of(''rerun 1''))',
	'SELECT idem_fail(''rerun'', ''"bad"'', token => idem.token_of(''rerun 1''))',
	'SELECT idem_release(''rerun'', token => idem.token_of(''rerun 1''))',
	'SELECT idem_renew(''rerun'', ''2 hours'', token => idem.token_of(''rerun 1''))',
	'SELECT idem_guard(''rerun'', token => idem.token_of(''rerun 1''))']) AS command;
SELECT results_eq($$SELECT outcome FROM idem_claim('rerun', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'a takeover without a request keeps that of the first claim');
SELECT idem.run_out('rerun') \g /dev/null
BEGIN;
SELECT results_eq($$SELECT outcome, token, attempt FROM idem_claim('rerun')$$,
	$$VALUES ('claimed', NULL::int8, 3)$$, 'a transactional claim takes over, too');
ROLLBACK;
SELECT is(idem_finish('rerun', '"late"', token => idem.token_of('rerun 2')), '"late"',
	'but was rolled back: a finish after the lease ran out is welcome');
WITH c AS (SELECT * FROM idem_claim('over', lease => '1 h'))
INSERT INTO idem.taken SELECT 'over', token FROM c;
SELECT idem.run_out('over') \g /dev/null
BEGIN;
SELECT is(idem_finish('over', '"tx"'), '"tx"', 'a transactional claim takes over and finishes')
  FROM idem_claim('over');
COMMIT;
SELECT throws_ok($$SELECT idem_finish('over', token => idem.token_of('over'))$$, 'ID003', NULL,
	'the late finish of the lease is refused');
SELECT results_eq($$SELECT state, response, attempt FROM idem_lookup('over')$$,
	$$VALUES ('finished', '"tx"'::jsonb, 2)$$, 'and nothing is changed');

-- Policy fail. A finish, renew or fail is welcome as long as it was not expired.

WITH c AS (SELECT * FROM idem_claim('fail', lease => '1 h', takeover => 'fail'))
INSERT INTO idem.taken SELECT 'fail', token FROM c;
SELECT results_eq($$SELECT outcome FROM idem_claim('fail', lease => '1 s', takeover => 'rerun')$$,
	$$VALUES ('in_progress')$$, 'policy fail: busy under a live lease');
SELECT idem.run_out('fail') \g /dev/null
SELECT results_eq($$SELECT outcome, response, token, attempt, retry_after FROM idem_claim('fail', lease => '1 s', takeover => 'rerun')$$,
	$$VALUES ('failed', NULL::jsonb, NULL::int8, 1, NULL::interval)$$,
	'policy fail: failed, whatever policy the newcomer would like');
SELECT results_eq($$SELECT state, attempt FROM idem_lookup('fail')$$, $$VALUES ('failed', 1)$$,
	'policy fail: looked up');
SELECT ok(idem_renew('fail', '1 h', token => idem.token_of('fail')) > clock_timestamp(),
	'policy fail: a late renew brings it back');
SELECT results_eq($$SELECT outcome FROM idem_claim('fail')$$,
	$$VALUES ('in_progress')$$, 'policy fail: busy again');
SELECT idem.run_out('fail') \g /dev/null
SELECT is(idem_finish('fail', '"late"', token => idem.token_of('fail')), '"late"',
	'policy fail: a late finish is welcome');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('fail')$$,
	$$VALUES ('replayed', '"late"'::jsonb)$$, 'policy fail: and replayed');

-- Policy hold, and idem_resolve.

INSERT INTO idem.taken SELECT key, token FROM unnest('{held,settled,reopened,late,failed}'::text[]) AS key,
	LATERAL idem_claim(key, request => '[1]', lease => '1 h', takeover => 'hold', holder => 'job 1');
SELECT throws_ok($$SELECT idem_resolve('held')$$, 'ID004', NULL, 'a live lease is not held');
SELECT throws_ok($$SELECT idem_resolve('nothing')$$, 'ID004', NULL, 'nor is a key without a record');
SELECT idem.run_out(key) FROM unnest('{held,settled,reopened,late,failed}'::text[]) AS key \g /dev/null
SELECT results_eq($$SELECT outcome, response, token, attempt, retry_after
		 FROM idem_claim('held', lease => '1 h', takeover => 'rerun', holder => 'job 1')$$,
	$$VALUES ('held', NULL::jsonb, NULL::int8, 1, NULL::interval)$$,
	'policy hold: held, even for the same holder');
SELECT results_eq($$SELECT outcome FROM idem_claim('held', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'policy hold: mismatch goes first');
SELECT results_eq($$SELECT state, attempt FROM idem_lookup('held')$$, $$VALUES ('held', 1)$$,
	'policy hold: looked up');
SELECT idem.grow_old('held') \g /dev/null
SELECT is(idem_expire(), 0::bigint, 'policy hold: idem_expire leaves it');
SELECT results_eq($$SELECT state FROM idem_lookup('held')$$, $$VALUES ('held')$$,
	'policy hold: it does not expire');
SELECT results_eq($$SELECT outcome FROM idem_claim('held')$$, $$VALUES ('held')$$,
	'policy hold: nor for a claim');
SELECT throws_ok($$SELECT idem_resolve('held', '1', true)$$, '22023', NULL,
	'resolve: no response with reopen');
SELECT throws_ok($$SELECT idem_resolve('held', scope => 's')$$, 'ID004', NULL, 'resolve: another scope');
SELECT lives_ok($$SELECT idem_resolve('settled', '"settled"')$$, 'resolve with a response');
SELECT results_eq($$SELECT state, response, attempt, expires_at - finished_at FROM idem_lookup('settled')$$,
	$$VALUES ('finished', '"settled"'::jsonb, 1, interval '24 hours')$$, 'it is finished');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('settled', request => '[1]')$$,
	$$VALUES ('replayed', '"settled"'::jsonb)$$, 'and replayed');
SELECT results_eq($$SELECT outcome FROM idem_claim('settled', request => '[2]')$$,
	$$VALUES ('mismatch')$$, 'to the same request');
SELECT throws_ok($$SELECT idem_resolve('settled')$$, 'ID004', NULL, 'resolve once');
SELECT throws_ok(command, 'ID003', NULL, 'resolved: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''settled'', ''"bad"'', token => idem.token_of(''settled''))',
	'SELECT idem_fail(''settled'', ''"bad"'', token => idem.token_of(''settled''))',
	'SELECT idem_release(''settled'', token => idem.token_of(''settled''))',
	'SELECT idem_renew(''settled'', ''2 hours'', token => idem.token_of(''settled''))',
	'SELECT idem_guard(''settled'', token => idem.token_of(''settled''))']) AS command;
SELECT lives_ok($$SELECT idem_resolve('reopened', reopen => true)$$, 'reopen');
SELECT throws_ok(command, 'ID003', NULL, 'reopened: ' || command) FROM unnest(ARRAY[
	'SELECT idem_finish(''reopened'', ''"bad"'', token => idem.token_of(''reopened''))',
	'SELECT idem_renew(''reopened'', ''2 hours'', token => idem.token_of(''reopened''))',
	'SELECT idem_guard(''reopened'', token => idem.token_of(''reopened''))']) AS command;
SELECT throws_ok($$SELECT idem_resolve('reopened', reopen => true)$$, 'ID004', NULL, 'reopen once');
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('reopened', lease => '1 h')$$,
	$$VALUES ('claimed', 2)$$, 'the next claim gets the next attempt');
SELECT is(idem_finish('late', '"late"', token => idem.token_of('late')), '"late"',
	'policy hold: a late finish is welcome');
SELECT throws_ok($$SELECT idem_resolve('late', '"bad"')$$, 'ID004', NULL, 'and leaves nothing to resolve');
SELECT results_eq($$SELECT outcome, response FROM idem_fail('failed', '"no"', final => true, token => idem.token_of('failed'))$$,
	$$VALUES ('failed', '"no"'::jsonb)$$, 'policy hold: so is a late fail');
BEGIN;
SELECT idem_resolve('held', '"undone"') \g /dev/null
ROLLBACK;
SELECT results_eq($$SELECT outcome FROM idem_claim('held')$$, $$VALUES ('held')$$,
	'a resolve that is rolled back is none');
SELECT is(idem_finish('held', '"last"', token => idem.token_of('held')), '"last"',
	'and leaves the token good');

-- Release, forget and expiry end the life of the key, and that of its tokens.

INSERT INTO idem.taken SELECT key, token FROM unnest('{released,forgotten,expired}'::text[]) AS key,
	LATERAL idem_claim(key, lease => '1 h');
SELECT idem.run_out(key) FROM unnest('{released,forgotten,expired}'::text[]) AS key \g /dev/null
WITH c AS (SELECT key, (SELECT c.token FROM idem_claim(key, lease => '1 h') AS c)
	FROM unnest('{released,forgotten,expired}'::text[]) AS key)
UPDATE idem.taken AS t SET token = c.token FROM c WHERE name = key;
SELECT results_eq($$SELECT attempt FROM idem_lookup('released')$$, 'VALUES (2)', 'a second attempt');
SELECT lives_ok($$SELECT idem_release('released', token => idem.token_of('released'))$$,
	'release with the token');
SELECT ok(idem_forget('forgotten'), 'forget a live lease');
SELECT idem.grow_old('expired') \g /dev/null
SELECT results_eq($$SELECT outcome FROM idem_claim('expired')$$, $$VALUES ('in_progress')$$,
	'a live lease does not expire');
SELECT is(idem_expire(), 0::bigint, 'nor is it removed');
SELECT isnt_empty($$SELECT * FROM idem_lookup('expired')$$, 'nor is it hidden');
SELECT idem.run_out('expired') \g /dev/null
SELECT is_empty(format('SELECT * FROM idem_lookup(%L)', key), key || ': no record')
  FROM unnest('{released,forgotten,expired}'::text[]) AS key;
SELECT throws_ok(format(command, key, key), 'ID003', NULL, format(command, key, key))
  FROM unnest('{released,forgotten,expired}'::text[]) AS key, unnest(ARRAY[
	'SELECT idem_finish(%L, token => idem.token_of(%L))',
	'SELECT idem_fail(%L, token => idem.token_of(%L))',
	'SELECT idem_release(%L, token => idem.token_of(%L))',
	'SELECT idem_renew(%L, ''1 h'', token => idem.token_of(%L))',
	'SELECT idem_guard(%L, token => idem.token_of(%L))']) AS command;
SELECT results_eq(
	format($$SELECT outcome, attempt, token IS DISTINCT FROM idem.token_of(%L)
			   FROM idem_claim(%L, request => '[7]', lease => '1 h')$$, key, key),
	$$VALUES ('claimed', 1, true)$$, key || ': starts afresh')
  FROM unnest('{released,forgotten,expired}'::text[]) AS key;
SELECT throws_ok(format('SELECT idem_finish(%L, token => idem.token_of(%L))', key, key), 'ID003', NULL,
	key || ': the token of the earlier life does not pass')
  FROM unnest('{released,forgotten,expired}'::text[]) AS key;
SELECT idem.run_out('expired'), idem.grow_old('expired') \g /dev/null
SELECT is(idem_expire(), 1::bigint, 'a lease that ran out is removed when its time has come');

-- A lease of this very transaction needs no token.

BEGIN;
SELECT is(outcome, 'claimed', 'claimed in this transaction')
  FROM idem_claim('own', lease => '1 h');
SELECT results_eq($$SELECT outcome FROM idem_claim('own', wait => '0')$$,
	$$VALUES ('in_progress')$$, 'busy for itself');
SELECT lives_ok($$SELECT idem_guard('own')$$, 'guard without a token');
SELECT ok(idem_renew('own', '2 h') > clock_timestamp() + interval '1 h', 'renew without a token');
SAVEPOINT s;
SELECT is(idem_finish('own', '"done"'), '"done"', 'finish without a token');
SELECT throws_ok($$SELECT idem_release('own')$$, 'ID002', NULL, 'it is finished then');
ROLLBACK TO s;
SELECT results_eq($$SELECT outcome FROM idem_fail('own', retry_in => '1 h')$$,
	$$VALUES ('retry_later')$$, 'fail without a token');
ROLLBACK TO s;
SELECT lives_ok($$SELECT idem_release('own')$$, 'release without a token');
SELECT throws_ok($$SELECT idem_guard('own')$$, '22004', NULL, 'it is gone then');
ROLLBACK TO s;
RELEASE s;
COMMIT;
SELECT throws_ok($$SELECT idem_finish('own')$$, 'ID001', NULL,
	'finish without a token after the commit');
BEGIN;
SAVEPOINT s;
SELECT * FROM idem_claim('own 2', lease => '1 h') \g /dev/null
ROLLBACK TO s;
SELECT throws_ok($$SELECT idem_finish('own 2')$$, 'ID001', NULL, 'nor after a rollback');
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('own 2', lease => '1 h')$$,
	$$VALUES ('claimed', 1)$$, 'which undoes the lease');
COMMIT;
SELECT pass('a lease that is not finished does not hinder the commit');
BEGIN;
SELECT * FROM idem_claim('own 3', lease => '1 h') \g /dev/null
ROLLBACK;
SELECT is_empty($$SELECT * FROM idem_lookup('own 3')$$, 'a lease that is rolled back is none');
BEGIN;
SELECT results_eq($$SELECT outcome FROM idem_claim('tx')$$, $$VALUES ('claimed')$$, 'a transactional claim');
SELECT results_eq($$SELECT outcome, token FROM idem_claim('tx', lease => '1 h')$$,
	$$VALUES ('in_progress', NULL::int8)$$, 'does not become a lease');
SELECT throws_ok($$SELECT idem_renew('tx', '1 h')$$, '22004', NULL, 'and is not renewed');
SELECT idem_release('tx') \g /dev/null
COMMIT;

-- Retention: the ttl, or the settings.

SET idempotency.default_ttl = '3 h';
SET idempotency.failed_ttl = '2 h';
SET idempotency.abandoned_ttl = '1 h';
INSERT INTO idem.taken SELECT key, token FROM unnest('{ttl f,ttl r,ttl x,ttl h}'::text[]) AS key,
	LATERAL idem_claim(key, lease => '10 min', takeover => 'hold');
SELECT is(count(*), 4::bigint, 'abandoned_ttl from the end of the lease')
  FROM unnest('{ttl f,ttl r,ttl x,ttl h}'::text[]) AS key, LATERAL idem_lookup(key)
 WHERE expires_at - lease_until = interval '1 h';
SELECT idem_finish('ttl f', token => idem.token_of('ttl f')) \g /dev/null
SELECT idem_fail('ttl r', retry_in => '5 h', token => idem.token_of('ttl r')) \g /dev/null
SELECT idem_fail('ttl x', final => true, token => idem.token_of('ttl x')) \g /dev/null
SELECT idem.run_out('ttl h') \g /dev/null
SELECT idem_resolve('ttl h') \g /dev/null
SELECT is(expires_at - finished_at, interval '3 h', 'default_ttl from the finish') FROM idem_lookup('ttl f');
SELECT is(expires_at - retry_at, interval '2 h', 'failed_ttl from the retry') FROM idem_lookup('ttl r');
SELECT is(expires_at - finished_at, interval '2 h', 'failed_ttl from the failure') FROM idem_lookup('ttl x');
SELECT is(expires_at - finished_at, interval '3 h', 'default_ttl from the resolve') FROM idem_lookup('ttl h');
RESET idempotency.default_ttl;
RESET idempotency.failed_ttl;
RESET idempotency.abandoned_ttl;
INSERT INTO idem.taken SELECT key, token FROM unnest('{ttl 1f,ttl 1r,ttl 1x,ttl 1h}'::text[]) AS key,
	LATERAL idem_claim(key, ttl => '1 day 1 min', lease => '10 min', takeover => 'hold');
SELECT idem_finish('ttl 1f', token => idem.token_of('ttl 1f')) \g /dev/null
SELECT idem_fail('ttl 1r', retry_in => '5 h', token => idem.token_of('ttl 1r')) \g /dev/null
SELECT idem_fail('ttl 1x', final => true, token => idem.token_of('ttl 1x')) \g /dev/null
SELECT idem.run_out('ttl 1h') \g /dev/null
SELECT idem_resolve('ttl 1h') \g /dev/null
SELECT is(count(*), 4::bigint, 'or the ttl of the claim, however it ends')
  FROM unnest('{ttl 1f,ttl 1r,ttl 1x,ttl 1h}'::text[]) AS key, LATERAL idem_lookup(key)
 WHERE expires_at = coalesce(retry_at, finished_at) + interval '1 day 1 min';
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('ttl 1f', lease => '1 h')$$,
	$$VALUES ('replayed', 1)$$, 'replayed within it');
SELECT idem.grow_old('ttl 1f') \g /dev/null
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('ttl 1f', lease => '1 h')$$,
	$$VALUES ('claimed', 1)$$, 'and claimed afresh after it');

-- In sight.

TRUNCATE idem_key, idem.taken;
SET ROLE idem_ann;
INSERT INTO idem.taken SELECT key, token FROM unnest('{live,over,held,failed,finished,released}'::text[]) AS key,
	LATERAL idem_claim(key, lease => '1 h', scope => 'sight', holder => 'job ' || key,
		takeover => CASE key WHEN 'held' THEN 'hold' WHEN 'failed' THEN 'fail' ELSE 'rerun' END);
SELECT idem_finish('finished', '"secret"', 'sight', idem.token_of('finished')) \g /dev/null
SELECT idem_release('released', 'sight', idem.token_of('released')) \g /dev/null
SET ROLE idem_bob;
SELECT * FROM idem_claim('bob', lease => '1 h') \g /dev/null
RESET ROLE;
SELECT idem.run_out(key) FROM unnest('{over,held,failed}'::text[]) AS key \g /dev/null
SET ROLE idem_ann;
SELECT set_eq(
	$$SELECT pid, prepared, owner::text, state, scope, key, holder, attempt, remaining > '59 min' AS lots,
			 remaining >= '0' AS some, overdue
		FROM idem_in_flight$$,
	$$VALUES (NULL::int, NULL::text, 'idem_ann', 'in_progress', 'sight', 'live', 'job live', 1, true, true, false),
			 (NULL, NULL, 'idem_ann', 'in_progress', 'sight', 'over', 'job over', 1, false, true, true),
			 (NULL, NULL, 'idem_ann', 'held', 'sight', 'held', 'job held', 1, false, true, true),
			 (NULL, NULL, 'idem_ann', 'failed', 'sight', 'failed', 'job failed', 1, false, true, true)$$,
	'a role sees its leases in idem_in_flight');
SELECT set_eq(
	$$SELECT owner::text, scope, key, state, holder, attempt, lease_until > clock_timestamp() FROM idem_leases()$$,
	$$VALUES ('idem_ann', 'sight', 'live', 'in_progress', 'job live', 1, true),
			 ('idem_ann', 'sight', 'over', 'in_progress', 'job over', 1, false),
			 ('idem_ann', 'sight', 'held', 'held', 'job held', 1, false),
			 ('idem_ann', 'sight', 'failed', 'failed', 'job failed', 1, false)$$,
	'and in idem_leases');
SELECT ok(bool_and(since < clock_timestamp() AND since > clock_timestamp() - interval '1 min'),
	'and since when') FROM idem_in_flight;
SELECT * FROM idem_claim('over', scope => 'sight', lease => '1 h', holder => 'heir') \g /dev/null
SELECT results_eq($$SELECT holder, attempt, overdue FROM idem_in_flight WHERE key = 'over'$$,
	$$VALUES ('heir', 2, false)$$, 'after a takeover it is the heir''s');
SET ROLE idem_bob;
SELECT results_eq('SELECT owner::text, key, holder FROM idem_in_flight',
	$$VALUES ('idem_bob', 'bob', NULL::text)$$, 'bob sees his own');
SELECT throws_ok('SELECT * FROM idem_key', '42501', NULL, 'and not the table');
SET ROLE idem_watch;
SELECT is(count(*), 5::bigint, 'a member of pg_monitor sees all') FROM idem_in_flight;
SELECT throws_ok('SELECT * FROM idem_key', '42501', NULL, 'but not the table');
RESET ROLE;
SELECT is(count(*), 5::bigint, 'a superuser sees all') FROM idem_in_flight;
SELECT hasnt_column('idem', 'idem_in_flight', 'token', 'there is no token to be seen');

-- The finish of a lease is a HOT update.

TRUNCATE idem_key;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT n_tup_upd AS upd, n_tup_hot_upd AS hot, n_tup_ins AS ins
  FROM pg_stat_user_tables WHERE relid = 'idem_key'::regclass \gset before_
DO $$
DECLARE
	t int8;
BEGIN
	FOR i IN 1 .. 100 LOOP
		t := (SELECT token FROM idem_claim('hot ' || i, lease => '1 h', holder => 'somebody'));
		COMMIT;
		PERFORM idem_finish('hot ' || i, '{"status": 200}', token => t);
		COMMIT;
	END LOOP;
END $$;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT pg_stat_clear_snapshot() \g /dev/null
SELECT is(n_tup_ins - :before_ins, 100::bigint, '100 leases are 100 inserts')
  FROM pg_stat_user_tables WHERE relid = 'idem_key'::regclass;
SELECT is(n_tup_upd - :before_upd, 100::bigint, 'and 100 updates')
  FROM pg_stat_user_tables WHERE relid = 'idem_key'::regclass;
SELECT is(n_tup_hot_upd - :before_hot, 100::bigint, 'all of them HOT')
  FROM pg_stat_user_tables WHERE relid = 'idem_key'::regclass;

-- Bad arguments.

WITH c AS (SELECT * FROM idem_claim('bad', lease => '1 h'))
INSERT INTO idem.taken SELECT 'bad', token FROM c;
SELECT throws_ok(command, code, NULL, command) FROM (VALUES
	('22004', 'SELECT * FROM idem_claim(NULL, lease => ''1 h'')'),
	('22004', 'SELECT * FROM idem_claim(''b'', lease => ''1 h'', takeover => NULL)'),
	('22004', 'SELECT * FROM idem_claim(''b'', takeover => NULL)'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''1 h'', takeover => '''')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''1 h'', takeover => ''Rerun'')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''0'')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''999 us'')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''-1 h'')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''1 month -40 days'')'),
	('22023', 'SELECT * FROM idem_claim(''b'', lease => ''1 h'', ttl => ''0'')'),
	('22008', 'SELECT * FROM idem_claim(''b'', lease => ''300000 years'')'),
	('22008', 'SELECT * FROM idem_claim(''b'', lease => ''200000 years'', ttl => ''200000 years'')'),
	('54000', 'SELECT * FROM idem_claim(''b'', lease => ''1 h'', holder => repeat(''h'', 513))'),
	('54000', 'SELECT * FROM idem_claim(repeat(''b'', 513), lease => ''1 h'')'),
	('22004', 'SELECT idem_renew(NULL, ''1 h'', token => 1)'),
	('22004', 'SELECT idem_renew(''bad'', NULL, token => idem.token_of(''bad''))'),
	('22004', 'SELECT idem_renew(''bad'', ''1 h'', NULL, 1)'),
	('22023', 'SELECT idem_renew('''', ''1 h'', token => 1)'),
	('22023', 'SELECT idem_renew(''bad'', ''0'', token => idem.token_of(''bad''))'),
	('22023', 'SELECT idem_renew(''bad'', ''-1 h'', token => idem.token_of(''bad''))'),
	('22008', 'SELECT idem_renew(''bad'', ''300000 years'', token => idem.token_of(''bad''))'),
	('54000', 'SELECT idem_renew(repeat(''b'', 513), ''1 h'', token => 1)'),
	('54000', 'SELECT idem_renew(''bad'', ''1 h'', repeat(''s'', 129), 1)'),
	('22004', 'SELECT idem_guard(NULL, token => 1)'),
	('22004', 'SELECT idem_guard(''bad'', NULL, 1)'),
	('22023', 'SELECT idem_guard('''', token => 1)'),
	('54000', 'SELECT idem_guard(repeat(''b'', 513), token => 1)'),
	('22004', 'SELECT idem_resolve(NULL)'),
	('22004', 'SELECT idem_resolve(''bad'', scope => NULL)'),
	('22004', 'SELECT idem_resolve(''bad'', reopen => NULL)'),
	('22023', 'SELECT idem_resolve('''')'),
	('54000', 'SELECT idem_resolve(repeat(''b'', 513))'),
	('54000', 'SELECT idem_resolve(''bad'', jsonb_build_array(repeat(''r'', 8 * 1024 * 1024)))'),
	('54000', 'SELECT idem_finish(''bad'', jsonb_build_array(repeat(''r'', 8 * 1024 * 1024)), token => idem.token_of(''bad''))')
) AS bad (code, command);
SELECT is_empty($$SELECT * FROM idem_lookup('b')$$, 'none of which claimed anything');
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(''holder 512'', lease => ''1 h'', holder => repeat(''h'', 512))',
	'SELECT * FROM idem_claim(''no name'', lease => ''1 h'', holder => '''')',
	'SELECT * FROM idem_claim(''1 ms'', lease => ''1 ms'')',
	'SELECT * FROM idem_claim(''long'', lease => ''1000 years'')']) AS command;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('no name', lease => '1 h', holder => '')$$,
	$$VALUES ('claimed', 1)$$, 'an empty holder is a holder');
SELECT results_eq($$SELECT outcome, retry_after > '365000 days' FROM idem_claim('long', lease => '1 h')$$,
	$$VALUES ('in_progress', true)$$, 'a lease for 1000 years');
WITH c AS (SELECT * FROM idem_claim('far', ttl => '200000 years', lease => '1 s'))
INSERT INTO idem.taken SELECT 'far', token FROM c;
SELECT throws_ok($$SELECT idem_renew('far', '200000 years', token => idem.token_of('far'))$$,
	'22008', NULL, 'renew: the expiry is out of range');

BEGIN READ ONLY;
SELECT throws_ok(command, '25006', NULL, 'read only: ' || command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(''bad'', lease => ''1 h'')',
	'SELECT idem_finish(''bad'', token => idem.token_of(''bad''))',
	'SELECT idem_release(''bad'', token => idem.token_of(''bad''))',
	'SELECT idem_renew(''bad'', ''1 h'', token => idem.token_of(''bad''))',
	'SELECT idem_guard(''bad'', token => idem.token_of(''bad''))',
	'SELECT idem_resolve(''bad'')',
	'SELECT idem_forget(''bad'')']) AS command;
SELECT isnt_empty($$SELECT * FROM idem_in_flight WHERE key = 'bad'$$, 'but leases can be seen');
COMMIT;
SELECT is(idem_finish('bad', '"good"', token => idem.token_of('bad')), '"good"',
	'nothing of all that has hurt the lease');

SELECT * FROM finish();
DROP EXTENSION idempotency;
DROP SCHEMA idem CASCADE;
DROP ROLE idem_ann, idem_bob, idem_watch;
