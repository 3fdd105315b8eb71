-- Flows that resume: steps are remembered with the key that they belong to.
CREATE EXTENSION idempotency;
CREATE TABLE effect (what text);

-- under a lease: the first step of the flow is done and committed
SELECT outcome, token FROM idem_claim('order-1', lease => '1 hour') \gset
SELECT :'outcome' AS outcome;
SELECT * FROM idem_step('order-1', 'reserve', token => :token);
BEGIN;
INSERT INTO effect VALUES ('reserved');
SELECT idem_step_finish('order-1', 'reserve', '{"seat": 7}', token => :token);
COMMIT;
SELECT * FROM idem_step('order-1', 'reserve', token => :token);
-- the second one goes wrong: neither its writes nor its result remain
BEGIN;
INSERT INTO effect VALUES ('charged');
SELECT idem_step_finish('order-1', 'charge', '{"charge": 1}', token => :token);
ROLLBACK;
SELECT * FROM idem_step('order-1', 'charge', token => :token);
-- the holder dies, and another one takes over: it goes on at the second step
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'order-1';
\set old :token
SELECT outcome, attempt, token FROM idem_claim('order-1', lease => '1 hour') \gset
SELECT :'outcome' AS outcome, :attempt AS attempt;
SELECT * FROM idem_step('order-1', 'reserve', token => :token);
SELECT * FROM idem_step('order-1', 'charge', token => :token);
BEGIN;
INSERT INTO effect VALUES ('charged');
SELECT idem_step_finish('order-1', 'charge', '{"charge": 2}', token => :token);
COMMIT;
-- the former holder is late: it learns nothing, and does nothing
SELECT * FROM idem_step('order-1', 'reserve', token => :old);
BEGIN;
INSERT INTO effect VALUES ('charged');
SELECT idem_step_finish('order-1', 'charge', '{"charge": 3}', token => :old);
COMMIT;
SELECT step, result, attempt FROM idem_steps('order-1');
SELECT idem_finish('order-1', '{"done": true}', token => :token);
SELECT * FROM effect;
-- a finished key has its steps, but takes no more
SELECT step, result, attempt, finished_at <= clock_timestamp() AS past FROM idem_steps('order-1');
SELECT * FROM idem_step('order-1', 'mail', token => :token);
SELECT idem_step_finish('order-1', 'mail', token => :token);
SELECT * FROM idem_step('order-1', 'mail');

-- a step is finished once
SELECT token FROM idem_claim('twice', lease => '1 hour') \gset
SELECT idem_step_finish('twice', 's', '1', token => :token);
SELECT idem_step_finish('twice', 's', '2', token => :token);
SELECT step, result FROM idem_steps('twice');

-- a step that has another meaning now is found out
SELECT idem_step_finish('twice', 'r', '1', request => '{"amount": 1, "to": "x"}', token => :token);
SELECT * FROM idem_step('twice', 'r', request => '{"to": "x", "amount": 1.0}', token => :token);
SELECT * FROM idem_step('twice', 'r', token => :token);
\set VERBOSITY sqlstate
SELECT * FROM idem_step('twice', 'r', request => '{"amount": 2, "to": "x"}', token => :token);
\set VERBOSITY default
SELECT idem_step_finish('twice', 'r', '1', request => '{"amount": 2, "to": "x"}', token => :token);
SELECT idem_release('twice', token => :token);

-- arguments
SELECT token FROM idem_claim('a', lease => '1 hour') \gset
SELECT * FROM idem_step('a', NULL, token => :token);
SELECT * FROM idem_step('a', '', token => :token);
SELECT * FROM idem_step('a', repeat('s', 129), token => :token);
SELECT idem_step_finish('a', repeat('s', 128), token => :token);
SELECT octet_length(step) FROM idem_steps('a');
SELECT * FROM idem_step('nobody', 's');
SELECT * FROM idem_step('nobody', 's', token => 1);
SELECT idem_step_finish('a', 's', token => :token + 1);
SELECT idem_step_finish('a', 's');
SELECT * FROM idem_steps(NULL);
SELECT idem_release('a', token => :token);

-- in the transaction that takes the lease no token is needed
BEGIN;
SELECT token > 0 AS leased FROM idem_claim('l', lease => '1 hour');
SELECT idem_step_finish('l', 's', '1');
SELECT * FROM idem_step('l', 's');
COMMIT;
SELECT step, result FROM idem_steps('l');

-- under a transactional claim: all commits with the finish
BEGIN;
SELECT outcome FROM idem_claim('t');
SELECT * FROM idem_step('t', 's1');
SELECT idem_step_finish('t', 's1', '"first"');
SELECT * FROM idem_step('t', 's1');
SAVEPOINT a;
SELECT idem_step_finish('t', 's2', '"second"');
ROLLBACK TO a;
SELECT * FROM idem_step('t', 's2');
SELECT step, result FROM idem_steps('t');
SELECT idem_finish('t', '1');
SELECT step, result FROM idem_steps('t');
COMMIT;
SELECT step, result FROM idem_steps('t');
-- or with the failure: the retry finds the steps
BEGIN;
SELECT outcome FROM idem_claim('f');
SELECT idem_step_finish('f', 's1', '"first"');
SAVEPOINT a;
SELECT idem_step_finish('f', 's2', '"second"');
ROLLBACK TO a;
SELECT outcome FROM idem_fail('f', retry_in => '0');
COMMIT;
BEGIN;
SELECT outcome, attempt FROM idem_claim('f');
SELECT * FROM idem_step('f', 's1');
SELECT * FROM idem_step('f', 's2');
SELECT idem_step_finish('f', 's2', '"second, again"');
SELECT idem_finish('f', '1');
COMMIT;
SELECT step, result, attempt FROM idem_steps('f');

-- steps belong to one life of a key, and go with it
SELECT count(*) FROM idem_step;
SELECT idem_forget('f');
SELECT * FROM idem_steps('f');
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 't';
SELECT * FROM idem_steps('t');
BEGIN;
SELECT outcome FROM idem_claim('t');
SELECT * FROM idem_step('t', 's1');
SELECT idem_step_finish('t', 's1', '"of the next life"');
SELECT idem_finish('t', '2');
COMMIT;
SELECT step, result FROM idem_steps('t');
SELECT token FROM idem_key WHERE key = 'l' \gset
SELECT idem_release('l', token => :token);
BEGIN;
SELECT outcome FROM idem_claim('l');
SELECT * FROM idem_step('l', 's');
SELECT idem_step_finish('l', 's', '2');
SELECT idem_release('l');
COMMIT;
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 'order-1';
SELECT idem_expire();
SELECT result FROM idem_step;
SELECT idem_forget('t');
SELECT count(*) FROM idem_step;

-- a held key keeps its steps until it is settled, also if it is reopened
SELECT token FROM idem_claim('h', lease => '1 hour', takeover => 'hold') \gset
SELECT idem_step_finish('h', 's', '1', token => :token);
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'h';
SELECT outcome FROM idem_claim('h');
SELECT idem_resolve('h', reopen => true);
BEGIN;
SELECT outcome, attempt FROM idem_claim('h');
SELECT * FROM idem_step('h', 's');
SELECT idem_finish('h');
COMMIT;

DROP TABLE effect;
DROP EXTENSION idempotency;
