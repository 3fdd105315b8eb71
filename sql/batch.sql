-- Sets of keys: claimed and finished in one call, answered in the order given.
CREATE EXTENSION idempotency;

-- an import of five lines, one of them twice, one already done, one busy
SELECT idem_finish('line-3', '"earlier"') FROM idem_claim('line-3');
SELECT outcome FROM idem_claim('line-4', lease => '1 hour');
BEGIN;
SELECT key, outcome, response, attempt FROM idem_claim_many('{line-5,line-3,line-1,line-4,line-1}');
SELECT * FROM idem_finish_many('{line-5,line-1}', '{5,1}');
COMMIT;
SELECT key, outcome, response FROM idem_claim_many('{line-1,line-3,line-4,line-5}', wait => '0');

-- the same request is the same, another one is a mismatch, and none never differs
BEGIN;
SELECT key, outcome FROM idem_claim_many('{r1,r2,r3,r1,r1}',
	requests => ARRAY['{"a": 1}', '{"a": 2}', NULL, '{"a": 1.0}', '{"a": 3}']::jsonb[]);
SELECT * FROM idem_finish_many('{r1,r2,r3}');
COMMIT;
SELECT key, outcome FROM idem_claim_many('{r1,r2,r3}', requests => array_fill('{"a": 1}'::jsonb, ARRAY[3]));

-- all or none: a key that is not claimed, or given twice
BEGIN;
SELECT key, outcome FROM idem_claim_many('{x,y}');
SAVEPOINT a;
SELECT * FROM idem_finish_many('{x,y,z}');
ROLLBACK TO a;
SELECT * FROM idem_finish_many('{x,y,x}');
ROLLBACK TO a;
COMMIT;
SELECT state FROM idem_lookup('x');

-- leases, finished by their tokens, in any order
SELECT key, outcome, token > 0 AS token, attempt, retry_after
FROM idem_claim_many('{l1,l2,l3}', lease => '1 hour', holder => 'h');
-- each begins when its key is claimed
SELECT key, lease_until - claimed_at AS lease FROM idem_key WHERE key ~ '^l\d' ORDER BY key;
-- and is not waited for
SELECT key, outcome, token, retry_after > '59 min' AS retry_after
FROM idem_claim_many('{l3,l1}', wait => '1 hour');
-- the same holder gets its leases again, but a key that comes again is busy
SELECT key, outcome, token > 0 AS token FROM idem_claim_many('{l1,l3,l1}', lease => '1 hour', holder => 'h');
SELECT array_agg(key ORDER BY key DESC) AS keys, array_agg(token ORDER BY key DESC) AS tokens
FROM idem_key WHERE key ~ '^l\d' \gset
SELECT * FROM idem_finish_many(:'keys', '{3,2,1}', tokens => :'tokens');
-- again: the stored responses
SELECT * FROM idem_finish_many(:'keys', '{30,20,10}', tokens => :'tokens');
SELECT key, outcome, response FROM idem_claim_many('{l1,l2,l3}');
-- one whose lease is lost: none is finished
SELECT array_agg(token) AS tokens FROM idem_claim_many('{m1,m2}', lease => '1 hour') \gset
SELECT idem_forget('m2');
SELECT * FROM idem_finish_many('{m1,m2}', tokens => :'tokens');
SELECT state FROM idem_lookup('m1');

-- past max_locks_per_transaction keys are held by rows; locks are few in all
BEGIN;
SELECT outcome, count(*), min(key), max(key)
FROM idem_claim_many((SELECT array_agg('many-' || n) FROM generate_series(1, 1000) AS n)) GROUP BY outcome;
SELECT count(*) <= current_setting('max_locks_per_transaction')::int AS few
FROM pg_locks WHERE objsubid = 18756 AND pid = pg_backend_pid();
SELECT outcome, count(*)
FROM idem_claim_many((SELECT array_agg('many-' || n) FROM generate_series(1, 1000) AS n)) GROUP BY outcome;
SELECT count(*), sum(response::int)
FROM idem_finish_many((SELECT array_agg('many-' || n) FROM generate_series(1, 1000) AS n),
					  (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 1000) AS n));
COMMIT;
SELECT outcome, count(*), sum(response::int)
FROM idem_claim_many((SELECT array_agg('many-' || n) FROM generate_series(1, 1000) AS n)) GROUP BY outcome;

-- nothing to do
SELECT * FROM idem_claim_many('{}');
SELECT * FROM idem_finish_many('{}');
SELECT * FROM idem_finish_many((SELECT array_agg(key) FROM idem_claim_many('{l1,l2}') WHERE outcome = 'claimed'));

-- arguments
SELECT * FROM idem_claim_many('{}', scope => NULL);
SELECT * FROM idem_claim_many('{a,NULL}');
SELECT * FROM idem_claim_many(ARRAY['a', '']);
SELECT * FROM idem_claim_many('{{a,b},{c,d}}');
SELECT * FROM idem_claim_many('{a,b}', requests => '{1}');
SELECT * FROM idem_claim_many('{a}', requests => '{}');
SELECT * FROM idem_finish_many('{a}', '{{1}}');
SELECT * FROM idem_finish_many('{a,b}', tokens => '{1}');
SELECT * FROM idem_claim_many('{a,b}');

DROP EXTENSION idempotency;
