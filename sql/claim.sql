-- The main job: claim, work, finish; every repeat gets the response.
CREATE EXTENSION idempotency;
CREATE TABLE payment (id int, amount int);

BEGIN;
SELECT * FROM idem_claim('pay-1');
INSERT INTO payment VALUES (1, 100);
SELECT idem_finish('pay-1', '{"payment": 1}');
COMMIT;
SELECT * FROM idem_claim('pay-1');
SELECT * FROM payment;

-- a NULL response is a response like any other
BEGIN;
SELECT outcome FROM idem_claim('pay-2');
SELECT idem_finish('pay-2') IS NULL AS nothing;
COMMIT;
SELECT outcome, response IS NULL AS nothing FROM idem_claim('pay-2');

-- so is a JSON null, and it is not the same
BEGIN;
SELECT outcome FROM idem_claim('pay-3');
SELECT idem_finish('pay-3', 'null');
COMMIT;
SELECT outcome, response FROM idem_claim('pay-3');

-- a claim of this very transaction: in progress until finished, then replayed
BEGIN;
SELECT outcome FROM idem_claim('pay-4');
SELECT outcome, retry_after FROM idem_claim('pay-4');
SELECT outcome FROM idem_claim('pay-4', wait => '0');
SELECT outcome FROM idem_claim('pay-4', wait => '1 hour');
SELECT idem_finish('pay-4', '4');
SELECT outcome, response FROM idem_claim('pay-4');
COMMIT;

-- a rolled-back claim never was
BEGIN;
SELECT outcome FROM idem_claim('pay-5');
SELECT idem_finish('pay-5', '5');
ROLLBACK;
SELECT count(*) FROM idem_lookup('pay-5');

-- release: the transaction may commit, the next claim starts afresh
BEGIN;
SELECT outcome FROM idem_claim('pay-6');
SELECT idem_release('pay-6');
SELECT idem_release('pay-6');
ROLLBACK;
BEGIN;
SELECT outcome FROM idem_claim('pay-6');
SELECT idem_release('pay-6');
SELECT outcome FROM idem_claim('pay-6');
SELECT outcome FROM idem_claim('pay-6');
SELECT idem_finish('pay-6', '6');
COMMIT;
SELECT response FROM idem_claim('pay-6');
BEGIN;
SELECT outcome FROM idem_claim('pay-7');
SELECT idem_release('pay-7');
COMMIT;
SELECT count(*) FROM idem_lookup('pay-7');

-- scopes are worlds of their own
BEGIN;
SELECT outcome FROM idem_claim('pay-1', scope => 'tenant 2');
SELECT idem_finish('pay-1', '"other"', scope => 'tenant 2');
COMMIT;
SELECT response FROM idem_claim('pay-1');
SELECT response FROM idem_claim('pay-1', scope => 'tenant 2');
-- and no concatenation confuses them
BEGIN;
SELECT outcome FROM idem_claim('bc', scope => 'a');
SELECT outcome FROM idem_claim('c', scope => 'ab');
SELECT outcome FROM idem_claim('abc');
ROLLBACK;

-- finish what is not ours to finish
SELECT idem_finish('pay-8', '8');
SELECT idem_finish('pay-1', '8');
BEGIN;
SELECT outcome FROM idem_claim('pay-8');
SELECT idem_finish('pay-8', '8');
SELECT idem_finish('pay-8', '9');
ROLLBACK;
BEGIN;
SELECT outcome FROM idem_claim('pay-1');
SELECT idem_finish('pay-1', '9');
ROLLBACK;
BEGIN;
SELECT outcome FROM idem_claim('pay-1');
SELECT idem_release('pay-1');
ROLLBACK;

-- lookup does not claim
SELECT state, response, attempt, claimed_at <= finished_at AS in_order,
	lease_until, retry_at, expires_at - finished_at AS kept
FROM idem_lookup('pay-1');
SELECT count(*) FROM idem_lookup('pay-8');
BEGIN;
SELECT outcome FROM idem_claim('pay-8');
SELECT state, response, attempt, finished_at, expires_at FROM idem_lookup('pay-8');
SELECT idem_finish('pay-8', '8');
SELECT state, response, attempt FROM idem_lookup('pay-8');
COMMIT;

-- forget: the key can be claimed anew
SELECT idem_forget('pay-8');
SELECT idem_forget('pay-8');
BEGIN;
SELECT outcome FROM idem_claim('pay-8');
SELECT idem_finish('pay-8', '"again"');
COMMIT;
SELECT outcome, response FROM idem_claim('pay-8');
-- in one transaction, and rolled back
BEGIN;
SELECT idem_forget('pay-8');
SELECT outcome FROM idem_claim('pay-8');
SELECT idem_finish('pay-8', '"third"');
SELECT state FROM idem_in_flight;
SELECT idem_forget('pay-8');
SELECT state FROM idem_in_flight;
SELECT outcome FROM idem_claim('pay-8');
SELECT idem_forget('pay-8');
ROLLBACK;
SELECT outcome, response FROM idem_claim('pay-8');

-- all in one statement: each call sees what the ones before it did
SELECT c.outcome, idem_finish('pay-9', '9') AS finish, idem_forget('pay-9') AS forget
FROM idem_claim('pay-9') AS c;
SELECT count(*) FROM idem_lookup('pay-9');

-- a replay assigns no transaction ID and leaves no lock behind
BEGIN;
SELECT outcome FROM idem_claim('pay-1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';
COMMIT;
-- nor does a claim
BEGIN;
SELECT outcome FROM idem_claim('pay-10');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT objsubid, count(*) FROM pg_locks WHERE locktype = 'advisory' GROUP BY 1;
ROLLBACK;

-- every key was written once: no dead tuple but those of the forgotten
SELECT key, scope, response, fingerprint FROM idem_key ORDER BY key, scope;

DROP TABLE payment;
DROP EXTENSION idempotency;
