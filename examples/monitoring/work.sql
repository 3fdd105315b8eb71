-- A role that looks after the database, and finds the views by their names.
CREATE DATABASE shop;
\connect shop
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
CREATE ROLE prometheus LOGIN IN ROLE pg_monitor;
ALTER ROLE prometheus IN DATABASE shop SET search_path = idem;
SET search_path = idem, public;

-- Some work: two keys, one of which comes again, twice, and once for something else.
SELECT outcome, idem_finish('order-1', '1') FROM idem_claim('order-1', request => '1');
SELECT outcome, idem_finish('order-2', '2') FROM idem_claim('order-2', request => '2');
SELECT outcome FROM idem_claim('order-1', request => '1');
SELECT outcome FROM idem_claim('order-1', request => '1');
SELECT outcome FROM idem_claim('order-1', request => '3');

-- A lease, one that has run out and is held, and a transaction that somebody has forgotten.
SELECT outcome FROM idem_claim('charge-1', lease => '1 hour');
SELECT outcome FROM idem_claim('charge-2', lease => '1 ms', takeover => 'hold');
BEGIN;
SELECT outcome FROM idem_claim('charge-3');
SELECT idem_finish('charge-3', '3');
PREPARE TRANSACTION 'forgotten';

-- Messages: one is done, one has failed for good, one is out, two are left.
SELECT count(*) FROM idem_enqueue_many('mail', '{1,2,3,4,5}');
SELECT idem_ack(id, token) FROM idem_dequeue('mail');
SELECT idem_nack(id, token, '"no such address"', final => true) IS NULL AS dead FROM idem_dequeue('mail');
SELECT attempt FROM idem_dequeue('mail', lease => '1 hour');

-- The payment service does not answer; the mail server does.
SELECT idem_breaker_configure('mail', window_length => '1 hour');
SELECT idem_breaker_record('payments', false) AS state FROM generate_series(1, 20) GROUP BY 1;
SELECT idem_breaker_record('mail', true) AS state;
SELECT idem_breaker_force('maps', 'open');

-- VACUUM has been there once.
VACUUM idem_key;
