-- Some more of it, between two looks: what is a rate needs both.
\connect shop
SET search_path = idem, public;
SELECT outcome FROM idem_claim('order-2', request => '4');
SELECT outcome FROM idem_claim('order-2', request => '2');
SELECT outcome, idem_finish('order-3', '3') FROM idem_claim('order-3', request => '3');
SELECT idem_breaker_record('payments', false) AS state;
SELECT idem_nack(id, token, '"no such address"', final => true) IS NULL AS dead FROM idem_dequeue('mail');
