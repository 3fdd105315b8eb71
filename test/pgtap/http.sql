-- idem_http: from the header of a request to status, headers and body of the
-- response, by the settings of PostgREST.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(211);

CREATE TABLE ran (what text);
CREATE FUNCTION work(what text) RETURNS text LANGUAGE sql AS
$$INSERT INTO ran VALUES (what); SELECT 'did ' || what$$;
CREATE FUNCTION create_order(what text) RETURNS jsonb LANGUAGE sql AS
$$
	INSERT INTO ran VALUES (what);
	SELECT set_config('response.status', '201', true),
		   set_config('response.headers', '[{"Location": "/orders/1"}, {"X-Order": "1"}]', true);
	SELECT jsonb_build_object('order', what);
$$;

-- One request: its answer.

CREATE TYPE answer AS (body jsonb, status text, headers jsonb);
CREATE FUNCTION request(headers jsonb, command text, params text[] = '{}', scope text = NULL,
	request jsonb = NULL, wait interval = '0', method text = 'POST', path text = '/orders', claims jsonb = NULL)
RETURNS answer LANGUAGE plpgsql AS
$$
DECLARE
	a answer;
BEGIN
	PERFORM set_config('request.headers', COALESCE(headers::text, ''), true),
			set_config('request.method', COALESCE(method, ''), true),
			set_config('request.path', COALESCE(path, ''), true),
			set_config('request.jwt.claims', COALESCE(claims::text, ''), true),
			set_config('response.status', '', true),
			set_config('response.headers', '', true);
	a.body := idem.idem_http(command, params, request => request, scope => scope, wait => wait);
	a.status := current_setting('response.status');
	a.headers := NULLIF(current_setting('response.headers'), '')::jsonb;
	RETURN a;
END
$$;
CREATE FUNCTION key(text) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('idempotency-key', $1)$$;
-- Of an array of objects with one member each.
CREATE FUNCTION header(headers jsonb, name text) RETURNS text LANGUAGE sql AS
$$SELECT h ->> name FROM jsonb_array_elements(headers) AS h WHERE h ? name$$;
CREATE FUNCTION problem(a answer) RETURNS text LANGUAGE sql AS
$$
	SELECT concat_ws(' ', (a).status, (a).body -> 'status', header((a).headers, 'Content-Type'),
		CASE WHEN (a).body ->> 'title' <> '' AND (a).body ->> 'detail' <> '' THEN 'explained' END)
$$;

-- Without a request at all, before any of its settings exist.

SELECT lives_ok($$SELECT idem_http('SELECT work(''nothing'')')$$, 'without a request nothing is raised');
SELECT is(current_setting('response.status'), '400', 'it is a bad request');
SELECT is_empty('TABLE ran', 'and nothing is done');

-- 400: a key is needed, and must be well formed.

SELECT is(problem(request(headers, 'SELECT work(''bad'')')), '400 400 application/problem+json explained', what)
  FROM (VALUES
	('no headers', NULL),
	('no header', '{}'::jsonb),
	('other headers only', '{"accept": "application/json", "x-idempotency-key": "k"}'),
	('headers that are no object', '["idempotency-key"]'),
	('an empty key', key('')),
	('a blank key', key('  ')),
	('an empty string', key('""')),
	('a key of 513 bytes', key(repeat('k', 513))),
	('a string of 513 bytes', key('"' || repeat('k', 513) || '"')),
	('257 characters of 2 bytes', key(repeat(U&'\00e9', 257))),
	('a string that does not end', key('"k')),
	('one that ends in its escape', key('"k\')),
	('one that ends in an escaped quote', key('"k\"')),
	('one that is followed by something', key('"k"k')),
	('two strings', key('"k" "k"')),
	('a number', '{"idempotency-key": 1}'),
	('null', '{"idempotency-key": null}')) AS t(what, headers);
SELECT is_empty('TABLE ran', 'nothing is done');
SELECT is_empty($$SELECT * FROM idem_in_flight$$, 'nothing is claimed');
SELECT throws_ok($$SELECT request(key('k'), NULL)$$, '22004', NULL, 'without a command it is an error');

-- A request, and its repeats in any spelling of the header.

SELECT results_eq(
	$$SELECT * FROM request('{"Accept": "*/*", "Idempotency-Key": "k1"}', 'SELECT work($1)', '{one}')$$,
	$$VALUES ('"did one"'::jsonb, '', NULL::jsonb)$$, 'the first one is done, and answered as without a key');
SELECT results_eq(
	format('SELECT * FROM request(%L, ''SELECT work($1)'', ''{one}'')', headers),
	$$VALUES ('"did one"'::jsonb, '', '[{"Idempotency-Replayed": "true"}]'::jsonb)$$, 'replayed: ' || headers)
  FROM unnest(ARRAY['{"Idempotency-Key": "k1"}', '{"idempotency-key": "k1"}', '{"IDEMPOTENCY-KEY": "k1", "host": "h"}',
	'{"idempotency-key": "\"k1\""}', '{"idempotency-key": " k1\t"}', '{"idempotency-key": "  \"k1\" "}',
	'{"idempotency-key": "\"\\k1\""}', '{"idempotency-key": "\"k1\";p=1"}', '{"idempotency-key": "\"k1\" ; p"}']) AS headers;
SELECT results_eq('TABLE ran', $$VALUES ('one')$$, 'once');
SELECT results_eq(
	format('SELECT * FROM request(key(%L), ''SELECT work($1)'', ''{other}'')', other),
	$$VALUES ('"did other"'::jsonb, '', NULL::jsonb)$$, 'another key: ' || other)
  FROM unnest(ARRAY['K1', 'k 1', 'k1"', '" k1"', U&'k\00e9', '''k1''']) AS other;
SELECT results_eq(
	format('SELECT * FROM request(key(%L), ''SELECT work($1)'', ''{other}'')', other),
	$$VALUES ('"did other"'::jsonb, '', '[{"Idempotency-Replayed": "true"}]'::jsonb)$$, 'the same as a string: ' || other)
  FROM unnest(ARRAY['"K1"', '"k 1"', '"k1\""', U&'"k\00e9"', '"''k1''"']) AS other;
SELECT results_eq(
	format('SELECT (request(key(%L), ''SELECT work($1)'', ''{long}'')).body', k),
	$$VALUES ('"did long"'::jsonb)$$, format('a key of %s bytes', octet_length(k)))
  FROM unnest(ARRAY[repeat('k', 512), repeat(U&'\00e9', 256)]) AS k;
SELECT is(header((request(key('"' || repeat('k', 512) || '"'), 'SELECT work($1)', '{long}')).headers, 'Idempotency-Replayed'), 'true',
	'a string of as many');

-- Status and headers are part of the answer.

SELECT results_eq($$SELECT * FROM request(key('order'), 'SELECT create_order($1)', '{x}')$$,
	$$VALUES ('{"order": "x"}'::jsonb, '201', '[{"Location": "/orders/1"}, {"X-Order": "1"}]'::jsonb)$$, 'created');
SELECT results_eq($$SELECT * FROM request(key('order'), 'SELECT create_order($1)', '{x}')$$,
	$$VALUES ('{"order": "x"}'::jsonb, '201', '[{"Location": "/orders/1"}, {"X-Order": "1"}, {"Idempotency-Replayed": "true"}]'::jsonb)$$,
	'replayed with the same status and headers, ' || i) FROM generate_series(1, 2) AS i;
SELECT is(count(*), 1::bigint, 'done once') FROM ran WHERE what = 'x';
SELECT is(response, '{"idem_http": 1, "body": {"order": "x"}, "status": "201", "headers": [{"Location": "/orders/1"}, {"X-Order": "1"}]}', 'as it is stored')
  FROM idem_key WHERE key = 'order';
SELECT ok(first.body IS NOT DISTINCT FROM again.body AND header(again.headers, 'Idempotency-Replayed') = 'true', 'the same body: ' || command)
  FROM unnest(ARRAY['SELECT NULL', 'SELECT ''null''::jsonb', 'SELECT 1 WHERE false', 'SELECT 5', 'VALUES (1), (2)', 'SELECT 1 AS a, NULL AS b',
					'INSERT INTO ran VALUES (''y'')', 'SELECT ''{"body": 1, "status": "2", "headers": 3}''::jsonb', 'SELECT ''[]''::jsonb',
					'SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 10000) AS i']) AS command,
	   LATERAL request(key(command), command) AS first, LATERAL request(key(command || left(first.status, 0)), command) AS again;
SELECT is((request(key('body'), 'SELECT ''{"body": 1, "status": "202", "headers": 3}''::jsonb')).status, '', 'a body is no status');
SELECT is(request(key('body'), 'SELECT 1'),
	ROW('{"body": 1, "status": "202", "headers": 3}'::jsonb, '', '[{"Idempotency-Replayed": "true"}]'::jsonb)::answer, 'nor when it is replayed');

-- 422: the key was used for something else. What is asked are the parameters,
-- unless a request is given.

SELECT is(problem(request(key('k1'), 'SELECT work($1)', '{two}')), '422 422 application/problem+json explained', 'other parameters');
SELECT is(problem(request(key('k1'), 'SELECT work($1)', '{NULL}')), '422 422 application/problem+json explained', 'null is another one');
SELECT is(problem(request(key('k1'), 'SELECT work($1)', '{one,one}')), '422 422 application/problem+json explained', 'and so are more');
SELECT is(header((request(key('k1'), 'SELECT work($1)', '{two}')).headers, 'Idempotency-Replayed'), NULL, 'not replayed');
SELECT is(problem(request(key('k1'), 'SELECT work(''one'')', NULL)), '422 422 application/problem+json explained', 'and so are none');
SELECT is((request(key('none'), 'SELECT work(''none'')', '{}')).body, '"did none"', 'no parameters');
SELECT is(header((request(key('none'), 'SELECT work(''none'')', NULL)).headers, 'Idempotency-Replayed'), 'true', 'by null, the same');
SELECT is((request(key('asked'), 'SELECT work($1)', '{asked}', request => '{"a": 1}')).body, '"did asked"', 'a request is given');
SELECT is((request(key('asked'), 'SELECT work($1)', '{otherwise}', request => '{"a": 1.0}')).body, '"did asked"', 'then the parameters do not count');
SELECT is(problem(request(key('asked'), 'SELECT work($1)', '{asked}', request => '{"a": 2}')), '422 422 application/problem+json explained', 'but the request does');

-- Scope: who asks for what.

SELECT results_eq(
	format('SELECT body, header(headers, ''Idempotency-Replayed'') FROM request(key(''scoped''), ''SELECT work($1)'', ''{same}'',
		method => %L, path => %L, claims => %L)', method, path, claims),
	format('VALUES (''"did same"''::jsonb, %L::text)', replayed),
	format('%s %s %s: %s', method, left(path, 10), left(claims::text, 30), CASE replayed WHEN 'true' THEN 'replayed' ELSE 'new' END))
  FROM (VALUES
	(1, 'POST', '/a', NULL, NULL), (2, 'POST', '/a', NULL, 'true'),
	(3, 'PUT', '/a', NULL, NULL), (4, 'POST', '/b', NULL, NULL), (5, 'POST', '/A', NULL, NULL), (6, 'PUT', '/a', NULL, 'true'),
	(7, 'POST', '/a', '{"sub": "ann"}', NULL), (8, 'POST', '/a', '{"sub": "bob"}', NULL),
	(9, 'POST', '/a', '{"sub": "ann", "exp": 7}', 'true'), (10, 'POST', '/a', '{"exp": 7}', 'true'), (11, 'POST', '/a', '{"sub": 5}', NULL),
	(11.1, 'POST', '/a', '{"sub": "5"}', NULL), (11.2, 'POST', '/a', '{"sub": 5}', 'true'), (11.3, 'POST', '/a', '{"sub": "5"}', 'true'),
	(12, 'POST', '/b', '{"sub": "ann"}', NULL), (13, 'POST', '/b', '{"sub": "ann"}', 'true'),
	(14, NULL, NULL, NULL, NULL), (15, NULL, NULL, NULL, 'true'), (16, NULL, NULL, '{"sub": "ann"}', NULL),
	(17, 'POST', '/' || repeat('x', 500), NULL, NULL), (18, 'POST', '/' || repeat('x', 500), NULL, 'true'),
	(19, 'POST', '/' || repeat('x', 499) || 'y', NULL, NULL), (20, 'PUT', '/' || repeat('x', 500), NULL, NULL),
	(21, 'POST', '/a', jsonb_build_object('sub', repeat(U&'\00e9', 200)), NULL),
	(22, 'POST', '/a', jsonb_build_object('sub', repeat(U&'\00e9', 200)), 'true'),
	(23, 'POST', '/a', jsonb_build_object('sub', repeat(U&'\00e9', 199)), NULL)) AS t(n, method, path, claims, replayed)
 ORDER BY n;
SELECT isnt_empty($$SELECT * FROM idem_lookup('scoped', '"ann" POST /b')$$, 'subject as JSON, method and path, with a blank between them');
SELECT results_eq(
	format('SELECT body, header(headers, ''Idempotency-Replayed'') FROM request(key(''explicit''), ''SELECT work($1)'', ''{same}'',
		scope => %L, method => %L, path => %L, claims => %L)', scope, method, path, claims),
	format('VALUES (''"did same"''::jsonb, %L::text)', replayed), format('scope %s: %s %s %s', scope, method, path, claims))
  FROM (VALUES
	(1, 's', 'POST', '/a', NULL, NULL), (2, 's', 'PUT', '/b', '{"sub": "ann"}', 'true'), (3, 't', 'POST', '/a', NULL, NULL),
	(4, '', 'POST', '/a', NULL, NULL), (5, '', 'PUT', '/b', '{"sub": "ann"}', 'true'), (6, NULL, 'POST', '/a', NULL, NULL))
	AS t(n, scope, method, path, claims, replayed)
 ORDER BY n;
SELECT set_eq($$SELECT scope FROM idem_key WHERE key = 'explicit' AND octet_length(scope) < 2$$, ARRAY['s', 't', ''], 'the scope is the one that was given');
SELECT throws_ok($$SELECT request(key('k'), 'SELECT 1', scope => repeat('s', 129))$$, '54000', NULL, 'if it is not too long');

-- Not done yet, not to be done now, or never.

CREATE FUNCTION pg_temp.run_out(text) RETURNS void LANGUAGE sql AS
$$UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = $1$$;
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	$$SELECT * FROM idem_claim('own', scope => 's')$$,
	$$SELECT * FROM idem_claim('live', scope => 's', lease => '1 hour')$$,
	$$SELECT idem_fail('later', '{"status": 402}', '90 s', scope => 's') FROM idem_claim('later', scope => 's')$$,
	$$SELECT idem_fail('again', '"again"', '0', scope => 's') FROM idem_claim('again', scope => 's')$$,
	$$SELECT pg_temp.run_out('held') FROM idem_claim('held', scope => 's', lease => '1 hour', takeover => 'hold')$$,
	$$SELECT pg_temp.run_out('ran out') FROM idem_claim('ran out', scope => 's', lease => '1 hour', takeover => 'fail')$$,
	$$SELECT pg_temp.run_out('over') FROM idem_claim('over', scope => 's', lease => '1 hour', takeover => 'rerun')$$]) AS command;
SELECT is(problem(request(key(k), 'SELECT work($1)', '{never}', 's')), problem, what)
  FROM (VALUES ('own', '409 409 application/problem+json explained', 'in progress'),
			   ('live', '409 409 application/problem+json explained', 'under a lease'),
			   ('held', '409 409 application/problem+json explained', 'held'),
			   ('later', '503 503 application/problem+json explained', 'failed for now'),
			   ('ran out', '500 500 application/problem+json explained', 'a lease that ran out, and failed')) AS t(k, problem, what);
SELECT is(header((request(key(k), 'SELECT work($1)', '{never}', 's')).headers, 'Retry-After')::int BETWEEN low AND high, known, what)
  FROM (VALUES ('own', 1, 1, true, 'come again soon: nobody knows when a transaction ends'),
			   ('live', 3540, 3600, true, 'when the lease has run out'),
			   ('later', 30, 90, true, 'when it may be retried'),
			   ('held', 0, 0, NULL, 'nobody knows'),
			   ('ran out', 0, 0, NULL, 'never')) AS t(k, low, high, known, what);
SELECT is(jsonb_array_length((request(key(k), 'SELECT work($1)', '{never}', 's')).headers), n, format('no other headers: %s', k))
  FROM (VALUES ('own', 2), ('live', 2), ('later', 2), ('held', 1), ('ran out', 1)) AS t(k, n);
SELECT is_empty($$SELECT * FROM ran WHERE what = 'never'$$, 'nothing of it is done');
SELECT results_eq(format('SELECT body, status, headers FROM request(key(%L), ''SELECT work($1)'', ''{now}'', ''s'')', k),
	$$VALUES ('"did now"'::jsonb, '', NULL::jsonb)$$, 'done: ' || what)
  FROM (VALUES ('again', 'a failure whose time has come'), ('over', 'a lease that may be taken over')) AS t(k, what);
SELECT lives_ok($$SELECT idem_release('own', 's')$$, 'what was in progress is given up');
SELECT is((request(key('own'), 'SELECT work($1)', '{now}', 's')).body, '"did now"', 'and done');

-- Failed for good: the error, with its status.

CREATE TEMPORARY TABLE failed (n int GENERATED ALWAYS AS IDENTITY, error jsonb, status text);
INSERT INTO failed (error, status) VALUES
	('{"status": 402, "title": "declined"}', '402'), ('{"status": 599}', '599'), ('{"status": 400}', '400'),
	('{"title": "no status"}', '500'), ('{"status": 200}', '500'), ('{"status": 399}', '500'), ('{"status": 600}', '500'), ('{"status": -402}', '500'),
	('{"status": "402"}', '500'), ('{"status": null}', '500'), ('{"status": 1e100}', '500'), ('{"status": [402]}', '500'),
	('{"Status": 402}', '500'), ('"text"', '500'), ('402', '500'), ('[{"status": 402}]', '500'), ('["status", 402]', '500'), ('null', '500');
SELECT lives_ok(format('SELECT idem_fail(%L, %L, final => true, scope => ''f'') FROM idem_claim(%1$L, scope => ''f'')', 'f' || n, error), 'failed: ' || error::text)
  FROM failed ORDER BY n;
SELECT is(request(key('f' || n), 'SELECT work($1)', '{never}', 'f')::text,
	ROW(error, status, '[{"Idempotency-Replayed": "true"}]'::jsonb)::answer::text, format('answered: %s, %s', error, status))
  FROM failed ORDER BY n;
SELECT lives_ok($$SELECT idem_fail('none', final => true, scope => 'f') FROM idem_claim('none', scope => 'f')$$, 'failed without an error');
SELECT is(problem(request(key('none'), 'SELECT work($1)', '{never}', 'f')), '500 500 application/problem+json explained', 'is explained');
SELECT is_empty($$SELECT * FROM ran WHERE what = 'never'$$, 'nothing of it is done');

-- Finished by other means: the response is the body.

CREATE TEMPORARY TABLE other (n int GENERATED ALWAYS AS IDENTITY, response jsonb);
INSERT INTO other (response) VALUES ('{"x": 1}'), ('[1]'), ('5'), ('"s"'), ('null'), ('{}'), ('["body"]'),
	('{"body": 1}'), ('{"body": 1, "status": "299", "headers": []}'), (NULL);
SELECT is(idem_finish('o' || n, other.response, 'o'), other.response, 'finished: ' || COALESCE(other.response::text, 'NULL'))
  FROM other, LATERAL idem_claim('o' || n, scope => 'o') ORDER BY n;
SELECT is(request(key('o' || n), 'SELECT work($1)', '{never}', 'o')::text,
	ROW(response, '', '[{"Idempotency-Replayed": "true"}]'::jsonb)::answer::text, 'replayed: ' || COALESCE(response::text, 'NULL'))
  FROM other WHERE response IS NOT NULL ORDER BY n;
SELECT is(header((request(key('o' || n), 'SELECT work($1)', '{never}', 'o')).headers, 'Idempotency-Replayed'), 'true', 'replayed without a response')
  FROM other WHERE response IS NULL;
SELECT is_empty($$SELECT * FROM ran WHERE what = 'never'$$, 'nothing of it is done');

-- Errors of the command are errors.

SELECT throws_ok(format('SELECT request(key(''error''), %L)', command), code, NULL, command || ': ' || code)
  FROM (VALUES ('SELECT 1 / 0', '22012'), ('SELECT * FROM no_such_table', '42P01'), ('SELECT $1::int', '22023'), ('COMMIT', '0A000'),
			   ('SELECT 1; SELECT 2', '42601'),
			   ('DO $do$ BEGIN INSERT INTO ran VALUES (''x''); RAISE ''no'' USING ERRCODE = ''PT402''; END $do$', 'PT402'))
	AS t(command, code);
SELECT throws_ok($$SELECT request(key('error'), 'SELECT $1, $2, $3, $4', '{{1,2},{3,4}}')$$, '2202E', NULL, 'parameters in two dimensions');
SELECT throws_ok(format('DO $do$ BEGIN PERFORM set_config(''request.headers'', ''{"idempotency-key": "json"}'', true), set_config(%L, ''{'', true), idem_http(''SELECT 1''); END $do$', setting),
	'22P02', NULL, setting || ' that is not JSON')
  FROM unnest(ARRAY['request.headers', 'request.jwt.claims', 'response.headers']) AS setting;
SELECT is(request(key('error'), 'SELECT work($1)', '{after all}')::text, ROW('"did after all"'::jsonb, '', NULL)::answer::text, 'the key is free');

-- The server's settings are those of the transaction, with what was there before.

SELECT set_config('response.headers', '[{"X-Before": "1"}]', true), set_config('request.headers', '{}', true) \g /dev/null
SELECT is(idem_http('SELECT 1') ->> 'status', '400', 'headers that were set before');
SELECT is(current_setting('response.headers')::jsonb, '[{"X-Before": "1"}, {"Content-Type": "application/problem+json"}]', 'stay');
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE state = 'in_progress' AND key <> 'live'$$, 'nothing is left to be finished');

SELECT * FROM finish();
ROLLBACK;
