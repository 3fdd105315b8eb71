-- The end of a transaction: nobody forgets to finish.
CREATE EXTENSION idempotency;
CREATE TABLE effect (key text);
\set SHOW_CONTEXT never

BEGIN;
SELECT outcome FROM idem_claim('k1');
INSERT INTO effect VALUES ('k1');
COMMIT;
\echo :SQLSTATE
SELECT * FROM effect;

-- the oldest is named, the others are counted
BEGIN;
SELECT outcome FROM idem_claim('k1');
SELECT outcome FROM idem_claim('k2');
COMMIT;
BEGIN;
SELECT outcome FROM idem_claim('k1');
SELECT outcome FROM idem_claim('k2');
SELECT outcome FROM idem_claim('k3');
SELECT idem_finish('k2');
SELECT outcome FROM idem_claim('k4');
COMMIT;
SELECT count(*) FROM idem_key;

-- a statement by itself is a transaction, too
SELECT outcome FROM idem_claim('k1');

-- prepared transactions
BEGIN;
SELECT outcome FROM idem_claim('k1');
PREPARE TRANSACTION 'idem';
\echo :SQLSTATE
BEGIN;
SELECT outcome FROM idem_claim('k1');
INSERT INTO effect VALUES ('k1');
SELECT idem_finish('k1', '1');
PREPARE TRANSACTION 'idem';
SELECT outcome FROM idem_claim('k1', wait => '0');
SELECT outcome FROM idem_claim('k1', wait => '10 ms');
SELECT pid, prepared, state, scope, key FROM idem_in_flight;
COMMIT PREPARED 'idem';
SELECT outcome, response FROM idem_claim('k1', wait => '0');
SELECT * FROM effect;

-- a procedure may commit between its claims, but not over an open one
CREATE PROCEDURE two(finish boolean) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_claim('p1');
	IF finish THEN
		PERFORM idem_finish('p1');
	END IF;
	COMMIT;
	PERFORM idem_claim('p2');
	PERFORM idem_finish('p2');
END
$$;
CALL two(false);
SELECT key FROM idem_key WHERE key LIKE 'p%';
CALL two(true);
SELECT key FROM idem_key WHERE key LIKE 'p%' ORDER BY key;
DROP PROCEDURE two;

-- deferred triggers may still claim and finish
CREATE FUNCTION finish() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_claim(NEW.key || ' by trigger');
	PERFORM idem_finish(NEW.key || ' by trigger');
	PERFORM idem_finish(NEW.key, '"late"');
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON effect
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION finish();
BEGIN;
SELECT outcome FROM idem_claim('t1');
INSERT INTO effect VALUES ('t1');
COMMIT;
SELECT response FROM idem_claim('t1');
SELECT outcome FROM idem_claim('t1 by trigger');
-- one that claims and forgets is caught
CREATE OR REPLACE FUNCTION finish() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_claim(NEW.key);
	RETURN NULL;
END
$$;
INSERT INTO effect VALUES ('t2');
SELECT * FROM effect;
DROP TRIGGER late ON effect;
DROP FUNCTION finish;

-- COMMIT AND CHAIN: the next transaction starts clean
BEGIN;
SELECT outcome FROM idem_claim('c1');
SELECT idem_finish('c1');
COMMIT AND CHAIN;
SELECT count(*) FROM idem_in_flight;
SELECT outcome FROM idem_claim('c1');
COMMIT;

-- what poolers send does not touch a claim
BEGIN;
SELECT outcome FROM idem_claim('d1');
SELECT pg_advisory_unlock_all();
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';
SELECT idem_finish('d1');
COMMIT;
DISCARD ALL;
SELECT outcome FROM idem_claim('d1');

-- more keys than one transaction may hold locks: the rows are written ahead
SELECT current_setting('max_locks_per_transaction')::int < 1000 AS more;
BEGIN;
SELECT outcome, count(*) FROM generate_series(1, 1000) AS i, LATERAL idem_claim('m' || i) GROUP BY 1;
SELECT outcome, count(*) FROM generate_series(1, 1000) AS i, LATERAL idem_claim('m' || i) GROUP BY 1;
SELECT count(*) = current_setting('max_locks_per_transaction')::int AS capped
FROM pg_locks WHERE locktype = 'advisory';
SELECT state, count(*) FROM idem_in_flight GROUP BY 1;
SELECT state, finished_at FROM idem_lookup('m1000');
SAVEPOINT a;
SELECT count(idem_finish('m' || i)) FROM generate_series(1, 1000) AS i;
ROLLBACK TO a;
SAVEPOINT b;
SELECT outcome, count(*) FROM generate_series(1001, 1100) AS i, LATERAL idem_claim('m' || i) GROUP BY 1;
ROLLBACK TO b;
SELECT outcome, count(*) FROM generate_series(1001, 1100) AS i, LATERAL idem_claim('m' || i) GROUP BY 1;
SELECT idem_expire();
SELECT count(idem_release('m' || i)) IS NOT NULL AS released FROM generate_series(901, 1100) AS i;
SELECT outcome, count(*) FROM generate_series(951, 1000) AS i, LATERAL idem_claim('m' || i) GROUP BY 1;
SELECT count(idem_finish('m' || i, to_jsonb(i))) FROM generate_series(1, 900) AS i;
SELECT count(idem_finish('m' || i, to_jsonb(-i))) FROM generate_series(951, 1000) AS i;
COMMIT;
SELECT count(*), count(finished_at), sum(response::int), count(*) FILTER (WHERE expires_at > now() + interval '25 hours')
FROM idem_key WHERE key LIKE 'm%';
-- left unfinished they are refused like others
BEGIN;
SELECT count(*) FROM generate_series(2001, 2100) AS i, LATERAL idem_claim('m' || i);
COMMIT;
SELECT count(*) FROM idem_key WHERE key LIKE 'm2___';

-- rewriting the table moves rows written ahead: their claims are lost, not confused
BEGIN;
SELECT count(*) FROM generate_series(3001, 3100) AS i, LATERAL idem_claim('m' || i);
CLUSTER idem_key USING idem_key_pkey;
SAVEPOINT a;
SELECT idem_release('m3100');
ROLLBACK TO a;
SELECT idem_finish('m3100');
ROLLBACK;

-- the extension goes, and its pending claims with it
BEGIN;
SELECT outcome FROM idem_claim('x1');
INSERT INTO effect VALUES ('x1');
DROP EXTENSION idempotency;
COMMIT;
SELECT * FROM effect;
-- but not if that is rolled back
CREATE EXTENSION idempotency;
BEGIN;
SELECT outcome FROM idem_claim('x1');
SAVEPOINT a;
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency;
SELECT outcome FROM idem_claim('x1');
SELECT idem_finish('x1', '"new"');
ROLLBACK TO a;
SELECT outcome FROM idem_claim('x1');
SELECT idem_finish('x1', '"old"');
COMMIT;
SELECT response FROM idem_claim('x1');

DROP TABLE effect;
DROP EXTENSION idempotency;
