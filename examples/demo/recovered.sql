-- the key is free again, and the half-made payment is gone
BEGIN;
SELECT outcome, response FROM idem_claim('pay-4', request => '{"amount": 100}');
INSERT INTO payment VALUES ('pay-4', 100);
SELECT idem_finish('pay-4', '{"payment": 4}');
COMMIT;
SELECT * FROM payment ORDER BY key;
