-- crash of the holder: kill -9 in the middle of its work
SELECT pg_backend_pid() AS holder \gset
\setenv HOLDER :holder
BEGIN;
SELECT outcome, response FROM idem_claim('pay-4', request => '{"amount": 100}');
INSERT INTO payment VALUES ('pay-4', 100);
\! kill -9 $HOLDER
SELECT idem_finish('pay-4', '{"payment": 4}');
