-- The whole pattern in one round trip.
CREATE EXTENSION idempotency;
CREATE TABLE payment (id int GENERATED ALWAYS AS IDENTITY, amount numeric, memo text);

SELECT * FROM idem_once('pay-1', 'INSERT INTO payment (amount, memo) VALUES ($1, $2) RETURNING id', ARRAY['4.50', 'tea']);
SELECT * FROM idem_once('pay-1', 'INSERT INTO payment (amount, memo) VALUES ($1, $2) RETURNING id', ARRAY['4.50', 'tea']);
SELECT * FROM payment;
-- a repeat is found before the command is looked at
SELECT * FROM idem_once('pay-1', 'no such command');

-- what becomes of the result
SELECT * FROM idem_once('value', 'SELECT amount FROM payment');
SELECT * FROM idem_once('row', 'SELECT * FROM payment');
SELECT * FROM idem_once('rows', 'SELECT n, n % 2 = 0 AS even FROM generate_series(1, 3) AS n');
SELECT * FROM idem_once('values', 'SELECT NULLIF(n, 2) FROM generate_series(1, 3) AS n');
SELECT * FROM idem_once('no row', 'SELECT 1 WHERE false');
SELECT * FROM idem_once('null', 'SELECT NULL');
SELECT * FROM idem_once('null in a row', 'SELECT NULL AS a, 1 AS b');
SELECT * FROM idem_once('names', 'SELECT 1, 2');
SELECT * FROM idem_once('no column', 'SELECT FROM payment');
SELECT * FROM idem_once('no result', 'UPDATE payment SET memo = upper(memo)');
SELECT * FROM idem_once('void', 'SELECT pg_advisory_xact_lock(1)');
SELECT * FROM idem_once('no result, either', 'CREATE TABLE made_once ()');
SELECT * FROM idem_once('jsonb', $$SELECT '{"a": [1, null]}'::jsonb$$);
SELECT * FROM idem_once('json null', $$SELECT 'null'::jsonb$$);
SELECT * FROM idem_once('array', 'SELECT ARRAY[1, 2]');
SELECT * FROM idem_once('explained', 'EXPLAIN (COSTS off) SELECT 1');
SELECT key, outcome, response FROM unnest('{value,row,rows,values,no row,"null",json null,no result,explained}'::text[]) AS key,
	LATERAL idem_once(key, 'SELECT 1/0');

-- parameters have the types that the statement wants
SELECT * FROM idem_once('types', 'SELECT $1 + 1 AS sum, $2::date - 1 AS day, $3 = ANY ($4::text[]) AS found, $5::int IS NULL AS nothing',
						ARRAY['41', '2020-03-01', 'b', '{a,b}', NULL]);
SELECT outcome, response FROM idem_once('none', 'SELECT 1', NULL);

-- an error is that of the command, and leaves the key free
SELECT * FROM idem_once('e', 'SELECT 1/0');
SELECT * FROM idem_once('e', 'SELECT nothing');
SELECT * FROM idem_once('e', 'SELEC 1');
SELECT * FROM idem_once('e', 'SELECT $1::int', ARRAY['x']);
SELECT count(*) FROM idem_lookup('e');
BEGIN;
SAVEPOINT a;
SELECT * FROM idem_once('e', 'INSERT INTO payment (amount) SELECT 1/0');
ROLLBACK TO a;
SELECT * FROM idem_once('e', 'INSERT INTO payment (amount) VALUES (1) RETURNING id', wait => '0');
COMMIT;

-- the rest is as for idem_claim
SELECT * FROM idem_once('r', 'SELECT 1', request => '{"a": 1}', scope => 's', ttl => '1 hour');
SELECT * FROM idem_once('r', 'SELECT 1', request => '{"a": 2}', scope => 's');
SELECT expires_at - finished_at AS kept FROM idem_lookup('r', 's');
SELECT outcome FROM idem_claim('l', lease => '1 hour');
SELECT outcome, response, retry_after > '59 min' AS retry_after FROM idem_once('l', 'SELECT 1');
BEGIN;
SELECT outcome FROM idem_claim('mine');
SELECT * FROM idem_once('mine', 'SELECT 1');
SELECT idem_finish('mine', '"by hand"');
SELECT * FROM idem_once('mine', 'SELECT 1');
COMMIT;

-- one statement, inside our transaction, without the client
SELECT * FROM idem_once('x', NULL);
SELECT * FROM idem_once('x', '');
SELECT * FROM idem_once('x', 'SELECT 1; SELECT 2');
SELECT * FROM idem_once('x', 'COMMIT');
SELECT * FROM idem_once('x', 'SAVEPOINT a');
SELECT * FROM idem_once('x', 'DO $$BEGIN COMMIT; END$$');
SELECT * FROM idem_once('x', 'COPY payment TO STDOUT');
SELECT * FROM idem_once('x', 'VACUUM payment');
SELECT * FROM idem_once('x', 'SELECT $1', '{}');
SELECT * FROM idem_once('x', 'SELECT $1::int', ARRAY['1', '2']);
SELECT * FROM idem_once('x', 'SELECT $2::int', ARRAY['1', '2']);
SELECT * FROM idem_once('x', 'SELECT 1', ARRAY[ARRAY['1']]);

-- a command that meddles with its own key
SELECT * FROM idem_once('m', $$SELECT outcome FROM idem_claim('m')$$);
SELECT * FROM idem_once('n', $$SELECT idem_finish('n', '1')$$);
SELECT * FROM idem_once('n', $$SELECT idem_release('n')$$);
SELECT * FROM idem_once('n', $$SELECT idem_release('n'), outcome FROM idem_claim('n', lease => '1 hour')$$);
SELECT * FROM idem_once('n', $$SELECT idem_release('n'), idem_claim('n', lease => '1 hour')$$);
SELECT * FROM idem_once('n', 'DROP EXTENSION idempotency');
SELECT * FROM idem_once('n', 'DO $$BEGIN DROP EXTENSION idempotency; CREATE EXTENSION idempotency; END$$');
BEGIN;
SELECT * FROM idem_once('n', 'SET TRANSACTION READ ONLY');
ROLLBACK;
SELECT count(*) FROM idem_lookup('n');
-- commands may nest, also beyond the plans that are kept
CREATE FUNCTION nest(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF n > 0 THEN
		PERFORM idem_once('nest-' || n, format('SELECT nest($1) + %s', n), ARRAY[(n - 1)::text]);
	END IF;
	RETURN n;
END $$;
SELECT outcome, response FROM idem_once('nest', 'SELECT nest($1)', ARRAY['100']);
SELECT count(*), bool_and(response IS NOT NULL) FROM generate_series(1, 100) AS n, idem_lookup('nest-' || n);

-- also from the check of a parameter's domain
CREATE FUNCTION checked(v text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_once(format('check-%s-%s', v, n), format('SELECT $1::text || %s', n), ARRAY[v])
	FROM generate_series(1, 100) AS n;
	RETURN true;
END $$;
CREATE DOMAIN checked_text AS text CHECK (checked(value));
SELECT outcome, response FROM idem_once('checked', 'SELECT $1::checked_text', ARRAY['x']);
SELECT outcome, response FROM idem_once('checked again', 'SELECT $1::checked_text', ARRAY['y']);

-- a plan is kept, but not beyond what it stands for
CREATE SCHEMA other;
CREATE TABLE other.t (a bool);
CREATE TABLE t (a int);
SELECT response FROM idem_once('p1', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['1']);
ALTER TABLE t ALTER a TYPE text;
SELECT response FROM idem_once('p2', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['one']);
ALTER TABLE t ADD b int DEFAULT 5;
SELECT response FROM idem_once('p3', 'SELECT * FROM t WHERE a = $1', ARRAY['one']);
DROP TABLE t;
SELECT response FROM idem_once('p4', 'SELECT * FROM t WHERE a = $1', ARRAY['one']);
CREATE TABLE t (a date);
SELECT response FROM idem_once('p5', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['2020-02-29']);
SET search_path = other, public;
SELECT response FROM idem_once('p6', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['yes']);
RESET search_path;
CREATE TEMP TABLE t (a text);
SELECT response FROM idem_once('p7', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['temporary']);
DROP TABLE pg_temp.t;
SELECT response FROM idem_once('p8', 'INSERT INTO t VALUES ($1) RETURNING a', ARRAY['2021-01-01']);

CREATE TYPE mood AS ENUM ('fine');
SELECT response FROM idem_once('p9', 'SELECT $1::mood', ARRAY['fine']);
DROP TYPE mood;
CREATE TYPE mood AS ENUM ('better');
SELECT response FROM idem_once('p10', 'SELECT $1::mood', ARRAY['better']);
SET timezone = 'UTC';
SELECT response FROM idem_once('p11', $$SELECT timestamptz '2020-01-01 00:00' AT TIME ZONE 'UTC'$$);
SET timezone = '+05';
SELECT response FROM idem_once('p12', $$SELECT timestamptz '2020-01-01 00:00' AT TIME ZONE 'UTC'$$);
RESET timezone;
-- nor for ever if it is long
SELECT length(response::text) FROM idem_once('p13', format('SELECT %L', repeat('x', 100000)));
SELECT length(response::text) FROM idem_once('p14', format('SELECT %L', repeat('x', 100000)));

-- with the rights of the caller
CREATE ROLE regress_idem_clerk;
SET ROLE regress_idem_clerk;
SELECT * FROM idem_once('pay-1', 'INSERT INTO payment (amount) VALUES (1)');
RESET ROLE;
GRANT INSERT ON payment TO regress_idem_clerk;
SET ROLE regress_idem_clerk;
SELECT * FROM idem_once('pay-1', 'INSERT INTO payment (amount, memo) VALUES (1, current_user)');
SELECT * FROM idem_once('sum', 'SELECT sum(amount) FROM payment');
RESET ROLE;
SELECT amount, memo FROM payment ORDER BY id;

-- a deferred constraint is checked at the end, as ever: the key is free again
CREATE TABLE child (payment int, UNIQUE (payment) DEFERRABLE INITIALLY DEFERRED);
SELECT outcome FROM idem_once('d', 'INSERT INTO child VALUES (1), (1)');
SELECT count(*) FROM idem_lookup('d');

DROP SCHEMA other CASCADE;
DROP TABLE payment, made_once, t, child;
DROP DOMAIN checked_text;
DROP FUNCTION nest, checked;
DROP TYPE mood;
DROP ROLE regress_idem_clerk;
DROP EXTENSION idempotency;
