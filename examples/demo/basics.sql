-- payment.key has no unique constraint: the extension alone keeps it unique
CREATE EXTENSION idempotency;
CREATE TABLE payment (key text, amount int);

-- first claim: the key is new; claim, work and response commit together
BEGIN;
SELECT outcome, response FROM idem_claim('pay-1', request => '{"amount": 100}');
INSERT INTO payment VALUES ('pay-1', 100);
SELECT idem_finish('pay-1', '{"payment": 1}');
COMMIT;

-- replay: the same request again gets the same response, and nothing to do
SELECT outcome, response FROM idem_claim('pay-1', request => '{"amount": 100}');

-- concurrent duplicate: while we are at work, another session asks
BEGIN;
SELECT outcome, response FROM idem_claim('pay-2', request => '{"amount": 100}');
\! psql -Xa -P pager=off -v ON_ERROR_STOP=1 -f duplicate.sql
INSERT INTO payment VALUES ('pay-2', 100);
SELECT idem_finish('pay-2', '{"payment": 2}');
COMMIT;

-- mismatch: the key of one payment cannot be used for another
SELECT outcome, response FROM idem_claim('pay-2', request => '{"amount": 999}');

-- rollback frees the key: the failed attempt has left no trace
BEGIN;
SELECT outcome, response FROM idem_claim('pay-3', request => '{"amount": 100}');
ROLLBACK;
BEGIN;
SELECT outcome, response FROM idem_claim('pay-3', request => '{"amount": 100}');
INSERT INTO payment VALUES ('pay-3', 100);
SELECT idem_finish('pay-3', '{"payment": 3}');
COMMIT;
