-- Leases: claims that outlive their transaction.  Times are set by hand.
CREATE EXTENSION idempotency;

-- taken and committed: others are told when to come again
SELECT outcome, attempt, token > 0 AS token FROM idem_claim('k', lease => '1 hour');
SELECT outcome, response, token, attempt, retry_after BETWEEN '59 min' AND '1 hour' AS retry_after
FROM idem_claim('k');
SELECT outcome FROM idem_claim('k', wait => '10 ms');
SELECT state, attempt, finished_at, lease_until > now() AS live FROM idem_lookup('k');
SELECT pid, owner = current_user::regrole AS own, state, key, holder, attempt, remaining > '59 min' AS remaining, overdue
FROM idem_in_flight;

-- a token is the fence: none, a wrong one, the right one, the right one again
SELECT idem_finish('k', '1');
SELECT idem_finish('k', '1', token => 1);
SELECT idem_finish('k', '1', token => 0);
SELECT token FROM idem_key WHERE key = 'k' \gset
SELECT idem_renew('k', '2 hours', token => :token) > now() + interval '119 min' AS extended;
SELECT idem_renew('k', '1 minute', token => :token) > now() + interval '119 min' AS not_shortened;
BEGIN;
SELECT idem_guard('k', token => :token);
SELECT idem_finish('k', '"done"', token => :token);
COMMIT;
SELECT idem_finish('k', '"other"', token => :token);
SELECT idem_renew('k', '1 hour', token => :token);
SELECT idem_guard('k', token => :token);
SELECT idem_release('k', token => :token);
SELECT outcome FROM idem_fail('k', token => :token);
SELECT outcome, response, attempt FROM idem_claim('k');
SELECT expires_at - finished_at AS kept FROM idem_lookup('k');

-- rerun: the next one takes over, and the former holder is out
SELECT outcome, token AS old FROM idem_claim('r', lease => '1 hour', request => '1') \gset
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'r';
SELECT state FROM idem_lookup('r');
SELECT outcome FROM idem_claim('r', request => '2');
SELECT outcome, attempt, token AS new FROM idem_claim('r', lease => '1 hour') \gset
SELECT :'outcome' AS outcome, :attempt AS attempt, :new <> :old AS new_token;
SELECT outcome FROM idem_claim('r', request => '2');
SELECT idem_renew('r', '1 hour', token => :old);
SELECT idem_guard('r', token => :old);
SELECT idem_finish('r', '"stale"', token => :old);
SELECT idem_release('r', token => :old);
SELECT outcome FROM idem_fail('r', token => :old);
SELECT idem_finish('r', '"fresh"', token => :new);
SELECT outcome, response, attempt FROM idem_claim('r');
-- also by a transactional claim
SELECT outcome, token AS old FROM idem_claim('t', lease => '1 hour') \gset
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 't';
BEGIN;
SELECT outcome, attempt FROM idem_claim('t');
SAVEPOINT a;
SELECT idem_guard('t', token => :old);
ROLLBACK TO a;
SELECT idem_finish('t', '"stale"', token => :old);
ROLLBACK TO a;
SELECT idem_finish('t', '"in a transaction"');
COMMIT;
SELECT idem_finish('t', '"stale"', token => :old);
SELECT outcome, response, attempt FROM idem_claim('t');

-- late, but nobody took over: welcome
SELECT token FROM idem_claim('l', lease => '1 hour') \gset
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'l';
SELECT idem_finish('l', '"late"', token => :token);

-- fail: nobody takes over
SELECT token FROM idem_claim('f', lease => '1 hour', takeover => 'fail') \gset
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'f';
SELECT outcome, response FROM idem_claim('f', lease => '1 hour', takeover => 'rerun');
SELECT state FROM idem_lookup('f');

-- hold: until it is resolved
SELECT idem_resolve('f');
SELECT token AS old FROM idem_claim('h', lease => '1 hour', takeover => 'hold') \gset
SELECT idem_resolve('h');
UPDATE idem_key SET lease_until = '2000-01-01', expires_at = '2000-01-01' WHERE key = 'h';
SELECT outcome FROM idem_claim('h');
SELECT idem_expire(), state FROM idem_lookup('h');
SELECT state, overdue FROM idem_in_flight WHERE key = 'h';
SELECT idem_resolve('h', '"x"', reopen => true);
SELECT idem_resolve('h', reopen => NULL);
SELECT idem_resolve('h', reopen => true);
SELECT idem_finish('h', token => :old);
SELECT outcome, attempt, token AS old FROM idem_claim('h', lease => '1 hour', takeover => 'hold') \gset
SELECT :attempt AS attempt;
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'h';
SELECT idem_resolve('h', '"it was done"');
SELECT idem_finish('h', token => :old);
SELECT outcome, response FROM idem_claim('h');

-- the same holder gets its own lease again: same attempt, longer, new token
SELECT token AS old FROM idem_claim('o', lease => '1 hour', holder => 'request 7') \gset
SELECT outcome FROM idem_claim('o', lease => '1 hour', holder => 'request 8');
SELECT outcome FROM idem_claim('o', lease => '1 hour');
SELECT outcome, attempt, token AS new FROM idem_claim('o', lease => '1 minute', holder => 'request 7') \gset
SELECT :'outcome' AS outcome, :attempt AS attempt, lease_until > now() + interval '59 min' AS not_shortened
FROM idem_lookup('o');
SELECT idem_finish('o', token => :old);
SELECT idem_finish('o', '"by 7"', token => :new);

-- release and forget end the life of the key
SELECT token AS old FROM idem_claim('g', lease => '1 hour') \gset
SELECT idem_release('g', token => :old);
SELECT outcome, attempt FROM idem_claim('g', lease => '1 hour');
SELECT idem_release('g', token => :old);
SELECT token AS old FROM idem_key WHERE key = 'g' \gset
SELECT idem_forget('g');
SELECT idem_finish('g', token => :old);

-- expiry: never a live lease; an abandoned one after its ttl
SELECT token AS old FROM idem_claim('e', lease => '1 hour', ttl => '1 minute') \gset
SELECT expires_at - lease_until AS kept FROM idem_lookup('e');
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 'e';
SELECT idem_expire();
SELECT outcome FROM idem_claim('e');
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'e';
SELECT idem_finish('e', token => :old);
SELECT idem_expire();

-- in the transaction of the claim the token may be left out; a savepoint undoes it
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_claim('s', lease => '1 hour');
ROLLBACK TO a;
SELECT idem_finish('s');
ROLLBACK TO a;
SELECT outcome FROM idem_claim('s', lease => '1 hour');
SELECT outcome FROM idem_claim('s');
SELECT idem_renew('s', '2 hours') > now() AS renewed;
SELECT idem_guard('s');
SELECT idem_finish('s', '"s"');
COMMIT;

-- the finish is a heap-only update
CREATE TABLE lease AS
SELECT 'hot' || i AS key, c.token FROM generate_series(1, 20) AS i, LATERAL idem_claim('hot' || i, lease => '1 hour') AS c;
SELECT pg_stat_force_next_flush();
SELECT n_tup_upd AS upd, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'idem_key' \gset
SELECT count(idem_finish(key, to_jsonb(key), token => token)) FROM lease;
SELECT pg_stat_force_next_flush();
SELECT n_tup_upd - :upd AS updates, n_tup_hot_upd - :hot AS heap_only FROM pg_stat_user_tables WHERE relname = 'idem_key';
DROP TABLE lease;

-- bad input
SELECT * FROM idem_claim('b', lease => '0');
SELECT * FROM idem_claim('b', lease => '-1 s');
SELECT * FROM idem_claim('b', lease => '1 s', takeover => NULL);
SELECT * FROM idem_claim('b', lease => '1 s', takeover => 'steal');
SELECT * FROM idem_claim('b', lease => '1 s', holder => repeat('h', 513));
SELECT idem_renew('b', NULL, token => 1);
SELECT idem_renew('b', '1 s');
SELECT idem_renew('b', '1 s', token => 1);
SELECT idem_guard('b');
SELECT idem_guard('b', token => 1);
SELECT idem_resolve('b');

DROP EXTENSION idempotency;
