-- Failures: to be retried, or final.
CREATE EXTENSION idempotency;
CREATE TABLE effect (key text);

-- a transactional claim: the work is rolled back, the failure recorded
BEGIN;
SELECT outcome FROM idem_claim('k', request => '1');
SAVEPOINT work;
INSERT INTO effect VALUES ('k');
ROLLBACK TO work;
SELECT outcome, response, token, attempt, retry_after BETWEEN '59 min' AND '1 hour' AS retry_after
FROM idem_fail('k', '"partner down"', retry_in => '1 hour');
SELECT outcome, attempt FROM idem_claim('k');
COMMIT;
SELECT * FROM effect;
SELECT outcome, response, attempt, retry_after BETWEEN '59 min' AND '1 hour' AS retry_after FROM idem_claim('k');
SELECT outcome FROM idem_claim('k', request => '2');
SELECT state, response, attempt, finished_at IS NOT NULL AS finished, retry_at > now() AS ahead,
	expires_at - retry_at AS kept
FROM idem_lookup('k');
SELECT idem_finish('k');

-- its time has come: the next attempt
UPDATE idem_key SET retry_at = '2000-01-01';
BEGIN;
SELECT outcome, attempt FROM idem_claim('k');
SELECT outcome FROM idem_claim('k', request => '2');
ROLLBACK;
SELECT outcome, attempt, token FROM idem_claim('k', lease => '1 hour') \gset
SELECT :'outcome' AS outcome, :attempt AS attempt;
SELECT outcome, attempt, retry_after = '0' AS at_once FROM idem_fail('k', retry_in => '0', token => :token);
SELECT outcome, attempt FROM idem_fail('k', retry_in => '0', token => :token);
SELECT outcome, attempt, token FROM idem_claim('k', lease => '1 hour') \gset
SELECT :attempt AS attempt;

-- past the limit it is final
SELECT outcome, response, attempt, retry_after FROM idem_fail('k', '"given up"', max_attempts => 3, token => :token);
SELECT outcome, response, attempt, retry_after FROM idem_claim('k');
SELECT idem_finish('k', token => :token);
SELECT state FROM idem_lookup('k');
SELECT idem_forget('k');
SELECT outcome, attempt, idem_release('k') FROM idem_claim('k');

-- the setting, and no limit
SET idempotency.max_attempts = 1;
BEGIN;
SELECT outcome FROM idem_claim('s');
SELECT outcome FROM idem_fail('s');
SELECT outcome FROM idem_claim('s2');
SELECT outcome FROM idem_fail('s2', max_attempts => 0);
COMMIT;
RESET idempotency.max_attempts;

-- final at once
BEGIN;
SELECT outcome FROM idem_claim('x', ttl => '2 hours');
SELECT outcome, response, retry_after FROM idem_fail('x', '"card declined"', final => true);
COMMIT;
SELECT outcome, response FROM idem_claim('x');
SELECT expires_at - finished_at AS kept FROM idem_lookup('x');

-- the backoff of the attempt: full jitter, so between nothing and the limit
SET idempotency.backoff_base = '10s';
SET idempotency.backoff_cap = '15s';
BEGIN;
SELECT count(*) FROM generate_series(1, 50) AS i, LATERAL idem_claim('j' || i);
SELECT bool_and(f.retry_after BETWEEN '0' AND '10 s') AS within, count(DISTINCT f.retry_after) > 1 AS spread
FROM generate_series(1, 50) AS i, LATERAL idem_fail('j' || i) AS f;
COMMIT;
UPDATE idem_key SET retry_at = '2000-01-01' WHERE key LIKE 'j%';
BEGIN;
SELECT count(*) FROM generate_series(1, 50) AS i, LATERAL idem_claim('j' || i);
SELECT bool_and(f.retry_after BETWEEN '0' AND '15 s') AS within, max(f.retry_after) > '10 s' AS grown, min(f.attempt)
FROM generate_series(1, 50) AS i, LATERAL idem_fail('j' || i) AS f;
COMMIT;
RESET idempotency.backoff_base;
RESET idempotency.backoff_cap;

-- released after a failure: the next one starts afresh
UPDATE idem_key SET retry_at = '2000-01-01' WHERE key = 'j1';
BEGIN;
SELECT outcome, attempt FROM idem_claim('j1');
SELECT idem_release('j1');
SELECT outcome, attempt FROM idem_claim('j1');
SELECT idem_finish('j1');
COMMIT;
-- a failure in a savepoint that is rolled back leaves the claim pending
BEGIN;
SELECT outcome FROM idem_claim('p');
SAVEPOINT a;
SELECT outcome FROM idem_fail('p', final => true);
ROLLBACK TO a;
SELECT idem_finish('p', '"after all"');
COMMIT;
SELECT outcome, response FROM idem_claim('p');

-- bad input
SELECT idem_fail(NULL);
SELECT idem_fail('nobody');
SELECT idem_fail('nobody', token => 7);
SELECT idem_fail('p');
SELECT idem_fail('p', retry_in => '-1 s');
SELECT idem_fail('p', final => NULL);
SELECT idem_fail('p', max_attempts => -1);
BEGIN READ ONLY;
SELECT idem_fail('p');
ROLLBACK;

DROP TABLE effect;
DROP EXTENSION idempotency;
