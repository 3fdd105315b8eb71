-- One statement under a key: what its result is as jsonb, which types its
-- parameters have, and that it always means what it would mean if it had been
-- sent instead, although plans are kept.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(269);

-- Once, and then replayed.

CREATE TABLE payment (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int);
SELECT results_eq(
	$$SELECT * FROM idem_once('k', 'INSERT INTO payment (amount) VALUES ($1) RETURNING id, amount', '{100}', request => '1')$$,
	$$VALUES ('claimed', '{"id": 1, "amount": 100}'::jsonb, NULL::interval)$$, 'a command is run');
SELECT results_eq(
	format('SELECT * FROM idem_once(''k'', %L, %L, request => %L)', command, params, request),
	format('VALUES (%L, %L::jsonb, NULL::interval)', outcome, CASE outcome WHEN 'replayed' THEN '{"id": 1, "amount": 100}' END),
	format('%s: %s, %s', outcome, command, request))
  FROM (VALUES
	('replayed', 'INSERT INTO payment (amount) VALUES ($1) RETURNING id, amount', '{100}', '1'),
	('replayed', 'INSERT INTO payment (amount) VALUES ($1) RETURNING id, amount', '{100}', NULL),
	('mismatch', 'INSERT INTO payment (amount) VALUES ($1) RETURNING id, amount', '{100}', '2'),
	('replayed', 'SELECT 1', '{}', '1'),
	('replayed', 'not even SQL', '{1,2,3}', '1')) AS t(outcome, command, params, request);
SELECT results_eq('TABLE payment', 'VALUES (1, 100)', 'once');
SELECT results_eq($$SELECT state, response, expires_at - finished_at FROM idem_lookup('k')$$,
	$$VALUES ('finished', '{"id": 1, "amount": 100}'::jsonb, interval '1 day')$$, 'the record is like any other');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k')$$,
	$$VALUES ('replayed', '{"id": 1, "amount": 100}'::jsonb)$$, 'and replayed by idem_claim');
SELECT results_eq($$SELECT outcome, response FROM idem_once('k', 'SELECT 2', scope => 's', ttl => '1 hour')$$,
	$$VALUES ('claimed', '2'::jsonb)$$, 'another scope');
SELECT results_eq($$SELECT expires_at - finished_at FROM idem_lookup('k', 's')$$, $$VALUES (interval '1 hour')$$, 'and another ttl');

-- Other answers of a claim; nothing is run.

CREATE FUNCTION pg_temp.run_out(text) RETURNS void LANGUAGE sql AS
$$UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = $1$$;
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	$$SELECT * FROM idem_claim('own')$$,
	$$SELECT * FROM idem_claim('live', lease => '1 hour')$$,
	$$SELECT idem_fail('later', '"not now"', '1 hour') FROM idem_claim('later')$$,
	$$SELECT idem_fail('again', '"again"', '0') FROM idem_claim('again')$$,
	$$SELECT idem_fail('failed', '"never"', final => true) FROM idem_claim('failed')$$,
	$$SELECT pg_temp.run_out('held') FROM idem_claim('held', lease => '1 hour', takeover => 'hold')$$,
	$$SELECT pg_temp.run_out('over') FROM idem_claim('over', lease => '1 hour', takeover => 'rerun')$$]) AS command;
SELECT results_eq(
	format('SELECT outcome, response, retry_after BETWEEN ''59 min'' AND ''1 hour''
			  FROM idem_once(%L, ''INSERT INTO payment (amount) SELECT -1 RETURNING amount'', wait => ''0'')', key),
	format('VALUES (%L, %L::jsonb, %L::bool)', outcome, response, known), 'answered: ' || outcome || ', ' || key)
  FROM (VALUES ('own', 'in_progress', NULL, NULL), ('live', 'in_progress', NULL, true),
			   ('later', 'retry_later', '"not now"', true), ('failed', 'failed', '"never"', NULL),
			   ('held', 'held', NULL, NULL)) AS t(key, outcome, response, known);
SELECT is_empty('SELECT * FROM payment WHERE amount < 0', 'nothing of it was run');
SELECT results_eq(format('SELECT outcome, response FROM idem_once(%L, ''SELECT 1'')', key),
	$$VALUES ('claimed', '1'::jsonb)$$, 'open again: ' || key)
  FROM unnest(ARRAY['again', 'over']) AS key;
SELECT is(attempt, 2, 'as the next attempt: ' || key) FROM unnest(ARRAY['again', 'over']) AS key, LATERAL idem_lookup(key);
SELECT lives_ok($$SELECT idem_release('own')$$, '(released)');

-- Results. A fresh key each time.

CREATE SEQUENCE key;
CREATE FUNCTION run(command text, VARIADIC params text[] = '{}') RETURNS jsonb LANGUAGE sql AS
$$SELECT response FROM idem.idem_once('run ' || nextval('public.key'), command, params) WHERE outcome = 'claimed'$$;
CREATE FUNCTION outcome_of(command text, VARIADIC params text[] = '{}') RETURNS text LANGUAGE sql AS
$$SELECT outcome || COALESCE(' ' || response::text, '') FROM idem.idem_once('run ' || nextval('public.key'), command, params)$$;
CREATE TABLE thing (id int PRIMARY KEY, name text, price numeric(10, 2), tags text[], extra jsonb);
CREATE PROCEDURE quiet() LANGUAGE sql AS 'INSERT INTO thing (id) VALUES (-1)';
CREATE PROCEDURE one(a int, INOUT b int) LANGUAGE plpgsql AS 'BEGIN b := a + b; END';
CREATE PROCEDURE two(INOUT a int, INOUT b text) LANGUAGE plpgsql AS 'BEGIN a := a + 1; b := b || ''!''; END';

-- No result, or no rows: null.

SELECT is(outcome_of(command), 'claimed', 'no result: ' || split_part(command, E'\n', 1)) FROM unnest(ARRAY[
	$$INSERT INTO thing VALUES (1, 'apple', 1.50, '{a,b}', '{"x": null}'), (2, NULL, 0, NULL, 'null')$$,
	$$UPDATE thing SET price = price + 1$$,
	$$DELETE FROM thing WHERE id = 0$$,
	$$DELETE FROM thing WHERE id = 0 RETURNING *$$,
	$$SELECT 1 WHERE false$$,
	$$SELECT id, name FROM thing WHERE false$$,
	$$MERGE INTO thing USING (VALUES (2, 'pear'), (3, 'plum')) AS v(id, name) ON thing.id = v.id
		WHEN MATCHED THEN UPDATE SET name = v.name WHEN NOT MATCHED THEN INSERT (id, name, price) VALUES (v.id, v.name, 9)$$,
	$$DO 'BEGIN UPDATE thing SET extra = ''7'' WHERE id = 3; END'$$,
	$$CALL quiet()$$,
	$$CREATE TABLE made (x int)$$,
	$$ALTER TABLE made ADD COLUMN y int$$,
	$$CREATE TABLE made_as AS SELECT 1 AS x$$,
	$$SELECT 1 AS x INTO made_into$$,
	$$CREATE INDEX ON made (x)$$,
	$$COMMENT ON TABLE made IS 'made'$$,
	$$GRANT SELECT ON made TO PUBLIC$$,
	$$ANALYZE made$$,
	$$LOCK TABLE made$$,
	$$TRUNCATE made_as$$,
	$$DROP TABLE made$$,
	$$NOTIFY made$$,
	$$SET LOCAL application_name = 'set under a key'$$,
	$$SET CONSTRAINTS ALL DEFERRED$$]) AS command;
SELECT results_eq($$SELECT id, name, price, extra FROM thing ORDER BY id$$,
	$$VALUES (-1, NULL, NULL, NULL), (1, 'apple', 2.50, '{"x": null}'::jsonb), (2, 'pear', 1.00, 'null'), (3, 'plum', 9.00, '7')$$,
	'but an effect');
SELECT is(current_setting('application_name'), 'set under a key', 'on settings, too');
SELECT is((SELECT count(*) FROM made_into) + (SELECT count(*) FROM made_as), 1::bigint, 'and on tables');

-- One row of one column: its value, as by to_jsonb(). A null of SQL is a null.

CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN document AS jsonb;
CREATE TYPE mood AS ENUM ('sad', 'merry');
CREATE TYPE pair AS (a int, b text);
CREATE TYPE odd AS ENUM ('1', '2', '3');
CREATE FUNCTION odd_to_json(odd) RETURNS json LANGUAGE sql AS 'SELECT to_json(''odd '' || $1::text)';
CREATE CAST (odd AS json) WITH FUNCTION odd_to_json;
CREATE TABLE dropped (a int, gone text, b text);
INSERT INTO dropped VALUES (1, 'gone', 'b');
ALTER TABLE dropped DROP COLUMN gone;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS 'UPDATE thing SET price = NULL WHERE id = -1';
CREATE FUNCTION empty() RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE TEMPORARY TABLE expr (n int GENERATED ALWAYS AS IDENTITY, expr text);
INSERT INTO expr (expr) VALUES
	('1'), ('(-9223372036854775808)::bigint'), ('1.50'), ('1e400::numeric'), ('''NaN''::float8'), ('''-Infinity''::float8'),
	('0.1::float4'), ('true'), ('''text''::text'), ('''5''::text'), ('''"quoted"'' || chr(10)'), ('U&''\00e9\+01F511''::text'),
	('''x''::"char"'), ('''name''::name'), ('''pad''::char(5)'),
	('''null''::jsonb'), ('''{"a": [1, {"b": 2.50}]}''::jsonb'), ('''[]''::jsonb'), ('''"s"''::jsonb'), ('''{ "z": 1, "a": 2 }''::json'),
	('''\x00ff''::bytea'), ('''2020-02-29''::date'), ('''2020-02-29 12:00:00.5+02''::timestamptz'), ('''infinity''::timestamp'),
	('''1 month 2 days''::interval'), ('''f47ff103-c916-4f03-a0f7-ada3d7810fe9''::uuid'), ('''[1,5)''::int4range'),
	('''{1,NULL,3}''::int[]'), ('''{{1,2},{3,4}}''::int[]'), ('''{}''::text[]'), ('ARRAY[''{"a": 1}''::jsonb, NULL]'),
	('5::positive'), ('''{"d": 1}''::document'), ('''merry''::mood'), ('''{sad,NULL}''::mood[]'),
	('ROW(1, ''x'')::pair'), ('ROW(NULL, NULL)::pair'), ('ROW(1, ''x'', ROW(2, NULL))'), ('ARRAY[ROW(1, ''x'')::pair]'),
	('''1''::odd'), ('ARRAY[''1''::odd]'), ('ROW(''1''::odd)'),
	('(SELECT thing FROM thing WHERE id = 1)'), ('(SELECT dropped FROM dropped)'),
	('''pg_class''::regclass'), ('''(1,2)''::point'), ('to_jsonb(repeat(''x'', 100000))'),
	('(SELECT jsonb_agg(i) FROM generate_series(1, 10000) AS i)');
CREATE FUNCTION as_jsonb(expr text) RETURNS jsonb LANGUAGE plpgsql AS
$$DECLARE result jsonb; BEGIN EXECUTE format('SELECT to_jsonb(%s)', expr) INTO result; RETURN result; END$$;
SELECT is(run('SELECT ' || expr), as_jsonb(expr), 'value: ' || left(expr, 60)) FROM expr ORDER BY n;
SELECT is(run('SELECT ' || expr), NULL, 'null: ' || expr)
  FROM unnest(ARRAY['NULL', 'NULL::int', 'NULL::jsonb', 'NULL::pair', 'NULL::odd', 'NULL::int[]', 'NULL::document', 'nothing()', 'empty()', 'pg_sleep(0)']) AS expr;
SELECT is((SELECT count(*) FROM idem_key WHERE key LIKE 'run %' AND response = 'null'), 1::bigint,
	'a null of json is something else');

-- One row of more columns: an object. More rows: an array.

CREATE TEMPORARY TABLE query (n int GENERATED ALWAYS AS IDENTITY, query text, result jsonb);
INSERT INTO query (query, result) VALUES
	('SELECT 1 AS a, ''x'' AS b, NULL::int AS c', '{"a": 1, "b": "x", "c": null}'),
	('SELECT 1 AS "A b", ARRAY[1,2] AS arr, ROW(1, ''y'')::pair AS p, ''2''::odd AS o, ''{"k": []}''::jsonb AS j',
	 '{"A b": 1, "arr": [1, 2], "p": {"a": 1, "b": "y"}, "o": "odd 2", "j": {"k": []}}'),
	('SELECT * FROM thing WHERE id = 1', '{"id": 1, "name": "apple", "price": 2.50, "tags": ["a", "b"], "extra": {"x": null}}'),
	('SELECT * FROM dropped', '{"a": 1, "b": "b"}'),
	('SELECT ''untyped''', '"untyped"'),
	('SELECT ''''', '""'),
	('SELECT generate_series(1, 3)', '[1, 2, 3]'),
	('VALUES (1), (NULL), (3)', '[1, null, 3]'),
	('VALUES (''[]''::jsonb), (''{"a": 1}''), (''"s"''), (''null'')', '[[], {"a": 1}, "s", null]'),
	('VALUES (1, ''x''), (2, NULL)', '[{"column1": 1, "column2": "x"}, {"column1": 2, "column2": null}]'),
	('VALUES (ARRAY[1,2]), (ARRAY[3])', '[[1, 2], [3]]'),
	('VALUES (''1''::odd), (NULL), (''3''::odd)', '["odd 1", null, "odd 3"]'),
	('SELECT id, name FROM thing WHERE id > 0 ORDER BY id DESC', '[{"id": 3, "name": "plum"}, {"id": 2, "name": "pear"}, {"id": 1, "name": "apple"}]'),
	('TABLE dropped', '{"a": 1, "b": "b"}'),
	('WITH u AS (UPDATE thing SET price = 5 WHERE id = 3 RETURNING id, price) SELECT * FROM u', '{"id": 3, "price": 5.00}'),
	('WITH i AS (INSERT INTO thing (id) VALUES (10), (11) RETURNING id), d AS (DELETE FROM thing WHERE id = -1 RETURNING id) SELECT id FROM i UNION ALL SELECT id FROM d ORDER BY 1', '[-1, 10, 11]'),
	('INSERT INTO thing (id, name) VALUES (12, ''new'') RETURNING name', '"new"'),
	('INSERT INTO thing (id, name) VALUES (12, ''newer'') ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING id, name', '{"id": 12, "name": "newer"}'),
	('UPDATE thing SET name = upper(name) WHERE id IN (10, 12) RETURNING name', '[null, "NEWER"]'),
	('CALL one(1, 2)', '3'),
	('CALL two(1, ''x'')', '{"a": 2, "b": "x!"}'),
	('SHOW application_name', '"set under a key"'),
	('EXPLAIN (COSTS off) SELECT 1', '"Result"'),
	('  /* a comment */ SELECT 1 ; -- another', '1'),
	(E'SELECT\n\t''\u00e9'' AS "\u00fc", 2 AS x', E'{"\u00fc": "\u00e9", "x": 2}');
INSERT INTO query (query, result) VALUES
	('WITH d AS (DELETE FROM thing WHERE id > 9 RETURNING id) SELECT * FROM d ORDER BY id', '[10, 11, 12]');
SELECT is(run(query), result, 'result: ' || translate(query, E'\n\t', '  ')) FROM query ORDER BY n;
SELECT is(run('SELECT to_jsonb(md5(i::text)) AS a, i FROM generate_series(1, 10000) AS i'),
	(SELECT jsonb_agg(jsonb_build_object('a', md5(i::text), 'i', i) ORDER BY i) FROM generate_series(1, 10000) AS i), 'ten thousand rows');
PREPARE prepared AS SELECT 1 AS a, 2 AS b;
SELECT is(run('EXECUTE prepared'), '{"a": 1, "b": 2}', 'a prepared statement');
DECLARE c CURSOR FOR SELECT generate_series(1, 5);
SELECT is(run('FETCH 2 FROM c'), '[1, 2]', 'rows of a cursor');
SELECT is(run('FETCH 2 FROM c'), '[3, 4]', 'the next ones');
SELECT is(run('FETCH ALL FROM c'), '5', 'the last one');
SELECT is(run('FETCH ALL FROM c'), NULL, 'none');
CLOSE c;

-- Parameters have the types that the statement infers.

CREATE TABLE typed (i int, s varchar(5), n numeric(4, 1), p positive, m mood, a int[], j jsonb, t timestamptz, r pair, b bytea);
SELECT is(run('INSERT INTO typed VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *',
			  '7', 'five5', '12.34', '3', 'merry', '{1,NULL}', '{"a":1}', '2020-01-01 00:00+00', '(1,"x y")', '\xff'),
	(SELECT to_jsonb(x) FROM (SELECT 7 AS i, 'five5' AS s, 12.3 AS n, 3 AS p, 'merry' AS m, '{1,NULL}'::int[] AS a, '{"a":1}'::jsonb AS j,
		'2020-01-01 00:00+00'::timestamptz AS t, ROW(1, 'x y')::pair AS r, '\xff'::bytea AS b) AS x), 'those of columns');
SELECT is(run('INSERT INTO typed VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING i, s, n, p, m, a, j, t, r, b',
			  VARIADIC array_fill(NULL::text, '{10}')),
	'{"i": null, "s": null, "n": null, "p": null, "m": null, "a": null, "j": null, "t": null, "r": null, "b": null}', 'nulls');
SELECT throws_ok($$SELECT run('INSERT INTO typed (s) VALUES ($1)', 'too long')$$, '22001', NULL, 'a string that is too long for its column');
SELECT throws_ok($$SELECT run('INSERT INTO typed (p) VALUES ($1)', '-3')$$, '23514', NULL, 'a value that its domain refuses');
SELECT throws_ok($$SELECT run('INSERT INTO typed (m) VALUES ($1)', 'angry')$$, '22P02', NULL, 'one that is none of an enum');
SELECT is(run(command, VARIADIC params), result, format('%s: %s', command, params))
  FROM (VALUES
	('SELECT $1', '{x}'::text[], '"x"'::jsonb),
	('SELECT $1', '{NULL}', NULL),
	('SELECT $1', '{""}', '""'),
	('SELECT $1', '{"null"}', '"null"'),
	('SELECT $1 || $2', '{a,b}', '"ab"'),
	('SELECT $1 || ''!''', '{a}', '"a!"'),
	('SELECT $1 = $2', '{01,1}', 'false'),
	('SELECT $1::int = $2', '{01,1}', 'true'),
	('SELECT $2::int - $1::int', '{1,10}', '9'),
	('SELECT $1::int + $1', '{4}', '8'),
	('SELECT $1 + 1', '{4}', '5'),
	('SELECT $1 + 1.5', '{4}', '5.5'),
	('SELECT 4 = ANY ($1)', '{"{3,4}"}', 'true'),
	('SELECT count(*) FROM unnest($1::int[], $2::text[])', '{"{1,2,3}","{a}"}', '3'),
	('SELECT generate_series(1, 10) LIMIT $1 OFFSET $2', '{2,3}', '[4, 5]'),
	('SELECT $1::jsonb -> $2 -> $3', '{"{\"a\": [1, 2]}",a,1}', NULL),
	('SELECT $1::jsonb -> $2::text -> $3::int', '{"{\"a\": [1, 2]}",a,1}', '2'),
	('SELECT ''2020-01-31''::date + $1::interval', '{1 month}', '"2020-02-29T00:00:00"'),
	('SELECT COALESCE($1, 5)', '{NULL}', '5'),
	('SELECT CASE WHEN $1 THEN $2 ELSE 0 END', '{true,8}', '8'),
	('SELECT ($1::pair).b', '{"(1,two)"}', '"two"'),
	('SELECT $1::positive', '{NULL}', NULL),
	('SELECT $1::mood > ''sad''', '{merry}', 'true'),
	('SELECT name FROM thing WHERE id = $1 AND price > $2', '{1,0.5}', '"apple"'),
	('SELECT 1 WHERE $1 IN (SELECT id FROM thing)', '{1}', '1'),
	('UPDATE thing SET price = $2 WHERE id = $1 RETURNING price', '{1,3.456}', '3.46'),
	('WITH x AS (SELECT $1::int AS a) SELECT a * 2 FROM x', '{21}', '42'),
	('CALL one($1, $2)', '{3,4}', '7'),
	('MERGE INTO thing USING (SELECT $1::int AS id, $2 AS name) AS v ON thing.id = v.id WHEN MATCHED THEN UPDATE SET name = v.name', '{3,prune}', NULL))
	AS t(command, params, result);
SELECT is(name, 'prune', 'merged') FROM thing WHERE id = 3;
SELECT is(run(format('SELECT %s', (SELECT string_agg(format('$%s::int', i), ' + ') FROM generate_series(1, 200) AS i)),
			  VARIADIC ARRAY(SELECT i::text FROM generate_series(1, 200) AS i)), '20100', 'two hundred parameters');
SELECT is(run('SELECT length($1)', repeat('x', 1000000)), '1000000', 'a large one');
SELECT results_eq($$SELECT outcome, response FROM idem_once('no params', 'SELECT 1', NULL)$$, $$VALUES ('claimed', '1'::jsonb)$$, 'none at all');
SELECT results_eq($$SELECT outcome, response FROM idem_once('bounds', 'SELECT $1::int - $2::int', '[5:6]={9,2}')$$, $$VALUES ('claimed', '7'::jsonb)$$,
	'where the array begins does not matter');

-- Rows of a query, each under a key of its own.

SELECT results_eq(
	$$SELECT o.outcome, o.response FROM generate_series(1, 4) AS i,
		LATERAL idem_once('row ' || i % 3, 'SELECT $1::int * 10', ARRAY[i::text]) AS o$$,
	$$VALUES ('claimed', '10'::jsonb), ('claimed', '20'), ('claimed', '30'), ('replayed', '10')$$, 'for the rows of a query');

-- More commands than plans are kept.

SELECT is(array_agg(run(format('SELECT $1::int + %s', i), '1') ORDER BY i), array_agg(to_jsonb(i + 1) ORDER BY i), 'many commands: round ' || round)
  FROM generate_series(1, 200) AS i, generate_series(1, 3) AS round GROUP BY round ORDER BY round;
SELECT is(array_agg(run(format('SELECT $1::int + %s', i), '1') ORDER BY i), array_agg(to_jsonb(i + 1) ORDER BY i), 'and in no order')
  FROM (SELECT (j * 67) % 200 + 1 AS i FROM generate_series(1, 400) AS j) AS x;

-- DDL between calls: the command means what it would mean now.

DROP TABLE typed;
CREATE TABLE d (v int);
INSERT INTO d VALUES (1), (2);
CREATE FUNCTION d_value() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW d_view AS SELECT 1 AS w;
CREATE TEMPORARY TABLE probe (n int GENERATED ALWAYS AS IDENTITY, command text, params text[]);
INSERT INTO probe (command, params) VALUES
	('SELECT v FROM d WHERE v = $1', '{2}'), ('SELECT * FROM d WHERE v > $1', '{1}'),
	('INSERT INTO d VALUES ($1) RETURNING *', '{3}'), ('SELECT d_value()', '{}'), ('SELECT * FROM d_view', '{}'),
	('SELECT $1::positive', '{3}');
CREATE FUNCTION probe() RETURNS SETOF jsonb LANGUAGE plpgsql AS
$$
DECLARE
	p record;
BEGIN
	FOR p IN SELECT * FROM pg_temp.probe ORDER BY n LOOP
		BEGIN
			RETURN NEXT run(p.command, VARIADIC p.params);
		EXCEPTION WHEN OTHERS THEN
			RETURN NEXT to_jsonb('error ' || SQLSTATE);
		END;
	END LOOP;
END
$$;
CREATE FUNCTION change(change text) RETURNS SETOF jsonb LANGUAGE plpgsql AS
$$BEGIN EXECUTE change; RETURN QUERY SELECT probe(); END$$;
SELECT results_eq(format('SELECT change(%L)', change), format('SELECT unnest(%L::jsonb[])', results), 'after ' || change)
  FROM (VALUES
	(0, 'SELECT 1', ARRAY['2', '2', '3', '1', '1', '3']),
	(1, 'SELECT 1', ARRAY['2', '[2, 3]', '3', '1', '1', '3']),
	(2, 'ALTER TABLE d ALTER COLUMN v TYPE text', ARRAY['"2"', '["2", "3", "3"]', '"3"', '1', '1', '3']),
	(3, 'ALTER TABLE d ADD COLUMN w int DEFAULT 9', ARRAY['"2"', '[{"v": "2", "w": 9}, {"v": "3", "w": 9}, {"v": "3", "w": 9}, {"v": "3", "w": 9}]',
		'{"v": "3", "w": 9}', '1', '1', '3']),
	(4, 'ALTER TABLE d RENAME COLUMN v TO x', ARRAY['"error 42703"', '"error 42703"', '{"x": "3", "w": 9}', '1', '1', '3']),
	(5, 'DROP TABLE d', ARRAY['"error 42P01"', '"error 42P01"', '"error 42P01"', '1', '1', '3']),
	(6, 'CREATE TABLE d (v numeric(3, 1), PRIMARY KEY (v)); INSERT INTO d VALUES (2)', ARRAY['2.0', '2.0', '3.0', '1', '1', '3']),
	(7, 'CREATE UNIQUE INDEX ON d ((v > 2)) WHERE v > 2', ARRAY['2.0', '[2.0, 3.0]', '"error 23505"', '1', '1', '3']),
	(8, 'DROP TABLE d; CREATE VIEW d AS SELECT 2::bigint AS v', ARRAY['2', '2', '"error 55000"', '1', '1', '3']),
	(9, 'CREATE OR REPLACE FUNCTION d_value() RETURNS int LANGUAGE sql AS ''SELECT 2''', ARRAY['2', '2', '"error 55000"', '2', '1', '3']),
	(10, 'DROP FUNCTION d_value(); CREATE FUNCTION d_value() RETURNS text LANGUAGE sql AS ''SELECT ''''three''''''', ARRAY['2', '2', '"error 55000"', '"three"', '1', '3']),
	(11, 'DROP FUNCTION d_value()', ARRAY['2', '2', '"error 55000"', '"error 42883"', '1', '3']),
	(12, 'CREATE OR REPLACE VIEW d_view AS SELECT 1 AS w, 2 AS x', ARRAY['2', '2', '"error 55000"', '"error 42883"', '{"w": 1, "x": 2}', '3']),
	(13, 'DROP VIEW d_view; CREATE TABLE d_view AS SELECT ''x'' AS y', ARRAY['2', '2', '"error 55000"', '"error 42883"', '"x"', '3']),
	(14, 'ALTER DOMAIN positive ADD CHECK (VALUE <> 3)', ARRAY['2', '2', '"error 55000"', '"error 42883"', '"x"', '"error 23514"']))
	AS t(n, change, results)
 ORDER BY n;

-- The same for the types of parameters.

CREATE TYPE fleeting AS ENUM ('a', 'b');
SELECT is(run('SELECT $1::fleeting', 'a'), '"a"', 'an enum');
DROP TYPE fleeting;
SELECT throws_ok($$SELECT run('SELECT $1::fleeting', 'a')$$, '42704', NULL, 'is dropped');
CREATE TYPE fleeting AS ENUM ('b', 'c');
SELECT is(run('SELECT $1::fleeting', 'c'), '"c"', 'and made again');
SELECT throws_ok($$SELECT run('SELECT $1::fleeting', 'a')$$, '22P02', NULL, 'with other values');
ALTER TYPE fleeting ADD VALUE 'd';
ALTER TYPE fleeting RENAME VALUE 'c' TO 'z';
SELECT is(run('SELECT $1::fleeting', 'z'), '"z"', 'of which one is renamed');
DROP TYPE fleeting;
CREATE TYPE fleeting AS (a int, b text);
SELECT is(run('SELECT $1::fleeting', '(1,x)'), '{"a": 1, "b": "x"}', 'made again as a row');
ALTER TYPE fleeting ADD ATTRIBUTE c int;
SELECT is(run('SELECT $1::fleeting', '(1,x,2)'), '{"a": 1, "b": "x", "c": 2}', 'that gets longer');
DROP TYPE fleeting;
CREATE DOMAIN fleeting AS int[];
SELECT is(run('SELECT $1::fleeting', '{1,2}'), '[1, 2]', 'and as a domain');

-- And for what the session has set literals to mean.

SET LOCAL DateStyle = 'ISO, DMY';
SELECT is(run('SELECT ''01/02/2020''::date'), '"2020-02-01"', 'day and month');
SET LOCAL DateStyle = 'ISO, MDY';
SELECT is(run('SELECT ''01/02/2020''::date'), '"2020-01-02"', 'month and day');
SELECT is(run('SELECT $1::date', '01/02/2020'), '"2020-01-02"', 'in a parameter');
SET LOCAL DateStyle = 'ISO, DMY';
SELECT is(run('SELECT ''01/02/2020''::date'), '"2020-02-01"', 'and back');
SELECT is(run('SELECT $1::date', '01/02/2020'), '"2020-02-01"', 'in a parameter, too');
SET LOCAL TimeZone = 'UTC';
SELECT is(run('SELECT ''2020-01-01 12:00''::timestamptz = ''2020-01-01 12:00 UTC''::timestamptz'), 'true', 'a time here');
SET LOCAL TimeZone = 'Asia/Tokyo';
SELECT is(run('SELECT ''2020-01-01 12:00''::timestamptz = ''2020-01-01 12:00 UTC''::timestamptz'), 'false', 'and there');
SET LOCAL IntervalStyle = 'postgres';
SELECT is(run('SELECT ''-1 2:00''::interval = ''-22 hours''::interval'), 'true', 'an interval');
SET LOCAL IntervalStyle = 'sql_standard';
SELECT is(run('SELECT ''-1 2:00''::interval = ''-26 hours''::interval'), 'true', 'in the style of the standard');
SELECT is(run('SELECT ''-1 2:00''::interval = ''-22 hours''::interval'), 'false', 'it is another one');

-- A long command, of which no plan is kept.

SELECT is(run('SELECT $1::int + 1 /*' || repeat('x', 100000) || '*/', i::text), to_jsonb(i + 1), 'a long command')
  FROM generate_series(1, 2) AS i;

-- A table that hides another, and goes.

CREATE TABLE shade (v int);
INSERT INTO shade VALUES (1);
CREATE TEMPORARY TABLE shade (v text);
INSERT INTO pg_temp.shade VALUES ('temporary');
SELECT is(run('SELECT v FROM shade WHERE v <> $1', 'x'), '"temporary"', 'a temporary table hides another one');
DROP TABLE pg_temp.shade;
SELECT is(run('SELECT v FROM shade WHERE v <> $1', '7'), '1', 'until it is dropped');

-- What was made in a subtransaction that is rolled back is not remembered.

SAVEPOINT s;
CREATE TABLE brief (v int);
SELECT run('SELECT count(*) FROM brief WHERE v = $1', '1') \g /dev/null
ROLLBACK TO s;
SELECT throws_ok($$SELECT run('SELECT count(*) FROM brief WHERE v = $1', '1')$$, '42P01', NULL, 'a table that was rolled back');
CREATE TABLE brief (v text);
SELECT is(run('SELECT count(*) FROM brief WHERE v = $1', 'one'), '0', 'made again, otherwise');

-- Commands may nest.

CREATE FUNCTION product_to(n int) RETURNS numeric LANGUAGE plpgsql AS
$$
BEGIN
	RETURN CASE WHEN n < 2 THEN 1 ELSE n * run('SELECT product_to($1)', (n - 1)::text)::numeric END;
END
$$;
SELECT is(run('SELECT product_to($1)', '20'), '2432902008176640000', 'the same command twenty times over');
CREATE FUNCTION deep(n int) RETURNS int LANGUAGE plpgsql AS
$$
BEGIN
	RETURN n + CASE WHEN n = 0 THEN 0 ELSE run(format('SELECT deep($1) /* %s */', n - 1), (n - 1)::text)::int END;
END
$$;
SELECT is(run('SELECT deep($1) /* 100 */', '100'), '5050', 'a hundred different ones, which drop the plans that are running');
CREATE FUNCTION flush() RETURNS bigint LANGUAGE sql AS
$$SELECT count(run(format('SELECT %s', i))) FROM generate_series(1000, 1100) AS i$$;
SELECT is(run('SELECT i, flush() FROM generate_series(1, $1) AS i', '3'),
	'[{"i": 1, "flush": 101}, {"i": 2, "flush": 101}, {"i": 3, "flush": 101}]', 'a plan is dropped while it runs, and goes on');
SELECT is(run('SELECT i, flush() FROM generate_series(1, $1) AS i', '1'), '{"i": 1, "flush": 101}', 'and is made again');

CREATE FUNCTION version() RETURNS int LANGUAGE sql AS 'SELECT 0';
CREATE FUNCTION replace(n int) RETURNS jsonb LANGUAGE plpgsql AS
$$
BEGIN
	EXECUTE format('CREATE OR REPLACE FUNCTION public.version() RETURNS int LANGUAGE sql AS ''SELECT %s''', n);
	RETURN CASE WHEN n > 0 THEN run('SELECT public.replace($1), public.version() > -1 AS ok', (n - 1)::text) END;
END
$$;
SELECT is(run('SELECT public.replace($1), public.version() > -1 AS ok', '3'),
	'{"ok": true, "replace": {"ok": true, "replace": {"ok": true, "replace": {"ok": true, "replace": null}}}}',
	'a plan that is invalidated while it runs, and run again within');
CREATE FUNCTION careful(depth int) RETURNS text LANGUAGE plpgsql AS
$$
BEGIN
	IF depth = 0 THEN RAISE division_by_zero; END IF;
	BEGIN
		PERFORM run('SELECT careful($1)', (depth - 1)::text);
		PERFORM flush();
		RAISE 'no error' USING ERRCODE = 'P0002';
	EXCEPTION WHEN division_by_zero THEN
		IF depth < 3 THEN RAISE; END IF;
		PERFORM flush();
		RETURN 'caught';
	END;
END
$$;
SELECT is(run('SELECT careful($1)', '3'), '"caught"', 'errors pass through nested commands: ' || i) FROM generate_series(1, 3) AS i;

-- So may the input of their parameters.

CREATE FUNCTION welcome(v text) RETURNS bool LANGUAGE plpgsql AS
$$
BEGIN
	PERFORM flush();
	RETURN v = 'x' OR run('SELECT $1::guest', 'x') = '"x"';
END
$$;
CREATE DOMAIN guest AS text CHECK (welcome(VALUE));
SELECT is(run('SELECT $1::guest', 'y'), '"y"', 'a domain whose check runs the same command, and many others');
CREATE FUNCTION unsettled(v int) RETURNS bool LANGUAGE plpgsql AS
$$
BEGIN
	ALTER DOMAIN public.restless SET DEFAULT 1;
	ALTER TABLE public.thing ADD COLUMN spare int;
	PERFORM run('SELECT $1::restless, count(*) FROM thing', NULL);
	ALTER TABLE public.thing DROP COLUMN spare;
	RETURN true;
END
$$;
CREATE DOMAIN restless AS int CHECK (VALUE IS NULL OR unsettled(VALUE));
SELECT is(run('SELECT $1::restless AS a, count(*) > 0 AS b FROM thing', '5'), '{"a": 5, "b": true}', 'one whose check alters what the command reads');

-- A command sees its own key, may use others, and leaves them to the caller.

SELECT results_eq(
	$$SELECT outcome, response FROM idem_once('self', 'SELECT outcome, response FROM idem_once($1, ''SELECT 1'')', '{self}')$$,
	$$VALUES ('claimed', '{"outcome": "in_progress", "response": null}'::jsonb)$$, 'its own key is in progress');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_once('outer', 'SELECT outcome, response FROM idem_once($1, ''SELECT 1'')', '{inner}')$$,
	$$VALUES ('claimed', '{"outcome": "claimed", "response": 1}'::jsonb)$$, 'another one is claimed');
SELECT is(response, '1', 'and finished') FROM idem_claim('inner') WHERE outcome = 'replayed';
SELECT results_eq(
	$$SELECT outcome, response FROM idem_once('leaves', 'SELECT outcome FROM idem_claim($1)', '{left}')$$,
	$$VALUES ('claimed', '"claimed"'::jsonb)$$, 'a claim is made');
SELECT is(idem_finish('left', '1'), '1', 'and left to be finished');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_once('steps', 'SELECT idem_step_finish($1, ''s'', ''"of a command"'')', '{steps}')$$,
	$$VALUES ('claimed', '"of a command"'::jsonb)$$, 'a step under its own key');
SELECT results_eq($$SELECT step, result FROM idem_steps('steps')$$, $$VALUES ('s', '"of a command"'::jsonb)$$, 'is done');

-- Triggers, rules, constraints that are deferred.

CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED, note text);
CREATE TABLE audit (what text);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN NEW.note := 'noted ' || NEW.id; RETURN NEW; END$$;
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN INSERT INTO audit VALUES (TG_WHEN || ' ' || TG_LEVEL); RETURN NULL; END$$;
CREATE TRIGGER noted BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION noted();
CREATE TRIGGER audited_row AFTER INSERT ON child FOR EACH ROW EXECUTE FUNCTION audited();
CREATE TRIGGER audited_statement AFTER INSERT ON child FOR EACH STATEMENT EXECUTE FUNCTION audited();
CREATE VIEW child_view AS SELECT id FROM child;
SELECT is(run('INSERT INTO child (id) VALUES ($1) RETURNING *', '1'), '{"id": 1, "note": "noted 1"}', 'a trigger changes the row');
SELECT set_eq('TABLE audit', ARRAY['AFTER ROW', 'AFTER STATEMENT'], 'and others have been run');
SELECT is(count(*), 2::bigint, 'once each') FROM audit;
SELECT throws_ok('SET CONSTRAINTS ALL IMMEDIATE', '23503', NULL, 'what is deferred is not forgotten');
SELECT is(run('INSERT INTO parent VALUES ($1)', '1'), NULL, 'it is put right');
SELECT lives_ok('SET CONSTRAINTS ALL IMMEDIATE', 'in time');
SELECT throws_ok($$SELECT * FROM idem_once('fk', 'INSERT INTO child (id) VALUES (2)')$$, '23503', NULL, 'or raised by the command, if not deferred');
SELECT is_empty($$SELECT * FROM idem_lookup('fk')$$, 'whose key is free then');
SELECT is(run('INSERT INTO child_view VALUES ($1) RETURNING id', '1'), '1', 'into a view');

-- Row security and privileges are those of the caller, of each caller.

CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
GRANT USAGE ON SEQUENCE key TO PUBLIC;
CREATE TABLE own (owner name, secret text);
INSERT INTO own VALUES ('idem_ann', 'of ann'), ('idem_bob', 'of bob');
ALTER TABLE own ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON own USING (owner = current_user);
GRANT SELECT, INSERT ON own TO idem_ann, idem_bob;
CREATE FUNCTION run_as_ann(command text) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS 'SELECT public.run(command)';
ALTER FUNCTION run_as_ann OWNER TO idem_ann;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '["of ann", "of bob"]', 'a superuser sees all rows');
SET LOCAL ROLE idem_ann;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '"of ann"', 'ann hers');
SET LOCAL ROLE idem_bob;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '"of bob"', 'bob his');
SELECT is(run_as_ann('SELECT secret FROM own ORDER BY 1'), '"of ann"', 'bob those of ann, if she lets him');
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '"of bob"', 'and his own again');
SELECT throws_ok($$SELECT run('INSERT INTO own VALUES (''idem_ann'', ''x'')')$$, '42501', NULL, 'a policy refuses a row');
SET LOCAL ROLE idem_ann;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '"of ann"', 'ann hers again');
RESET ROLE;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '["of ann", "of bob"]', 'and the superuser all');
ALTER TABLE own DISABLE ROW LEVEL SECURITY;
SET LOCAL ROLE idem_ann;
SELECT is(run('SELECT secret FROM own ORDER BY 1'), '["of ann", "of bob"]', 'without row security everybody does');
RESET ROLE;
REVOKE SELECT ON own FROM idem_ann;
SET LOCAL ROLE idem_ann;
SELECT throws_ok($$SELECT run('SELECT secret FROM own ORDER BY 1')$$, '42501', NULL, 'or nobody, without a privilege');
RESET ROLE;

-- The role may change under the command; the key is that of who claimed it.

SET LOCAL ROLE idem_ann;
SELECT results_eq($$SELECT outcome, response FROM idem_once('role', 'SET LOCAL ROLE idem_bob')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'a command changes the role');
SELECT is(current_user, 'idem_bob'::name, 'of what comes then');
RESET ROLE;
SELECT results_eq($$SELECT owner::text, response FROM idem_key WHERE key = 'role'$$,
	$$VALUES ('idem_ann', NULL::jsonb)$$, 'but not of its key');

SELECT is_empty($$SELECT * FROM idem_in_flight WHERE state = 'in_progress' AND key <> 'live'$$, 'nothing is left to be finished');

SELECT * FROM finish();
ROLLBACK;
