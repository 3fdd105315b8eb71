-- One error for every way to go wrong, each with its SQLSTATE, and a session
-- that goes on as if nothing had happened. What the messages say is tested
-- with pg_regress; ID005 comes at COMMIT and is tested there and in test/t.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(543);

-- NULL and empty arguments. The header of a request, for idem_http.

SELECT set_config('request.headers', '{"Idempotency-Key": "of http"}', true) \g /dev/null
SELECT throws_ok(command, '22004', NULL, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(NULL)',
	'SELECT * FROM idem_claim(''k'', scope => NULL)',
	'SELECT idem_finish(NULL)',
	'SELECT idem_finish(''k'', scope => NULL)',
	'SELECT idem_release(NULL)',
	'SELECT idem_release(''k'', NULL)',
	'SELECT * FROM idem_lookup(NULL)',
	'SELECT * FROM idem_lookup(''k'', NULL)',
	'SELECT idem_forget(NULL)',
	'SELECT idem_forget(''k'', NULL)',
	'SELECT idem_expire(NULL)',
	'SELECT * FROM idem_claim_many(''{k}'', scope => NULL)',
	'SELECT * FROM idem_claim_many(''{k}'', takeover => NULL)',
	'SELECT * FROM idem_claim_many(''{a,NULL,b}'')',
	'SELECT * FROM idem_finish_many(''{k}'', scope => NULL)',
	'SELECT * FROM idem_finish_many(''{NULL}'')',
	'SELECT * FROM idem_once(NULL, ''SELECT 1'')',
	'SELECT * FROM idem_once(''k'', ''SELECT 1'', scope => NULL)',
	'SELECT * FROM idem_once(''k'', NULL)',
	'SELECT idem_http(NULL)',
	'SELECT idem_derive(NULL, ''s'')',
	'SELECT idem_derive(''k'', NULL)',
	'SELECT idem_derive(''k'', ''s'', NULL)',
	'SELECT * FROM idem_step(NULL, ''s'')',
	'SELECT * FROM idem_step(''k'', NULL)',
	'SELECT * FROM idem_step(''k'', ''s'', scope => NULL)',
	'SELECT idem_step_finish(NULL, ''s'')',
	'SELECT idem_step_finish(''k'', NULL)',
	'SELECT idem_step_finish(''k'', ''s'', scope => NULL)',
	'SELECT * FROM idem_steps(NULL)',
	'SELECT * FROM idem_steps(''k'', NULL)']) AS command;
SELECT throws_ok(command, '22023', NULL, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim('''')',
	'SELECT idem_finish('''')',
	'SELECT idem_release('''')',
	'SELECT * FROM idem_lookup('''')',
	'SELECT idem_forget('''')',
	'SELECT idem_expire(0)',
	'SELECT idem_expire(-1)',
	'SELECT * FROM idem_claim_many(ARRAY[''a'', ''''])',
	'SELECT * FROM idem_claim_many(''{k}'', takeover => ''maybe'')',
	'SELECT * FROM idem_finish_many(ARRAY[''''])',
	'SELECT * FROM idem_once('''', ''SELECT 1'')',
	'SELECT idem_derive('''', ''s'')',
	'SELECT * FROM idem_step('''', ''s'')',
	'SELECT * FROM idem_step(''k'', '''')',
	'SELECT idem_step_finish('''', ''s'')',
	'SELECT idem_step_finish(''k'', '''')',
	'SELECT * FROM idem_steps('''')']) AS command;
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	'SELECT idem_finish(''n1'', NULL) FROM idem_claim(''n1'', NULL, NULL, '''', NULL)',
	'SELECT idem_finish(''n2'', ''null'') FROM idem_claim(''n2'', request => ''null'')',
	'SELECT idem_finish('' '') FROM idem_claim('' '')',
	'SELECT idem_expire(2147483647)',
	'SELECT idem_derive(''k'', '''')',
	'SELECT * FROM idem_claim_many(''{}'', NULL, NULL, '''', NULL, NULL, ''rerun'', NULL)',
	'SELECT * FROM idem_finish_many(''{}'', NULL, '''', NULL)',
	'SELECT * FROM idem_once(''n3'', ''SELECT 1'', NULL, NULL, NULL, '''', NULL)',
	'SELECT idem_http(''SELECT 1'', NULL, NULL, NULL, NULL, NULL)']) AS command;

-- Lengths are counted in bytes: 1 to 512 for a key, up to 128 for a scope.

CREATE TEMPORARY TABLE word (what text, fits bool, key text, scope text);
INSERT INTO word VALUES
	('key of 512 bytes', true, repeat('k', 512), ''),
	('key of 513 bytes', false, repeat('k', 513), ''),
	('key of 256 characters of 2 bytes', true, repeat(U&'\00e9', 256), ''),
	('the same and one byte', false, repeat(U&'\00e9', 256) || 'k', ''),
	('key of 128 characters of 4 bytes', true, repeat(U&'\+01F511', 128), ''),
	('key of 129 characters of 4 bytes', false, repeat(U&'\+01F511', 129), ''),
	('key of 1 MB', false, repeat('k', 1024 * 1024), ''),
	('scope of 128 bytes', true, 'k', repeat('s', 128)),
	('scope of 129 bytes', false, 'k', repeat('s', 129)),
	('scope of 64 characters of 2 bytes', true, 'k', repeat(U&'\00e9', 64)),
	('the same and one byte', false, 'k', repeat(U&'\00e9', 64) || 's'),
	('both at their limits', true, repeat('K', 512), repeat('S', 128));
SELECT is(octet_length(key) <= 512 AND octet_length(scope) <= 128, fits, what)
  FROM word;
SELECT throws_ok(format(command, key, scope), '54000', NULL,
	what || ': ' || split_part(command, '(', 1))
  FROM word, unnest(ARRAY[
	'SELECT * FROM idem_claim(%L, scope => %L)',
	'SELECT idem_finish(%L, NULL, %L)',
	'SELECT idem_release(%L, %L)',
	'SELECT * FROM idem_lookup(%L, %L)',
	'SELECT idem_forget(%L, %L)',
	'SELECT * FROM idem_claim_many(ARRAY[''x'', %L], scope => %L)',
	'SELECT * FROM idem_finish_many(ARRAY[%L], NULL, %L)',
	'SELECT * FROM idem_once(%L, ''SELECT 1'', scope => %L)',
	'SELECT idem_derive(%L, ''s'', %L)',
	'SELECT * FROM idem_step(%L, ''s'', scope => %L)',
	'SELECT idem_step_finish(%L, ''s'', scope => %L)',
	'SELECT * FROM idem_steps(%L, %L)']) AS command
 WHERE NOT fits;
SELECT results_eq(
	format('SELECT c.outcome, idem_finish(%1$L, %3$L, %2$L)
			  FROM idem_claim(%1$L, scope => %2$L) AS c', key, scope, to_jsonb(what)),
	format('VALUES (''claimed'', %L::jsonb)', to_jsonb(what)),
	what || ' is claimed and finished')
  FROM word WHERE fits;
SELECT results_eq(
	format('SELECT c.outcome, c.response, l.response
			  FROM idem_claim(%1$L, scope => %2$L) AS c, idem_lookup(%1$L, %2$L) AS l',
		   key, scope),
	format('VALUES (''replayed'', %1$L::jsonb, %1$L::jsonb)', to_jsonb(what)),
	what || ' is replayed and found')
  FROM word WHERE fits;
SELECT is_empty(
	$$SELECT what FROM word AS w WHERE fits AND NOT EXISTS (
		SELECT FROM idem_key AS k
		 WHERE k.key = w.key COLLATE "C" AND k.scope = w.scope COLLATE "C")$$,
	'and stored to the last byte');
SELECT results_eq(
	format('SELECT c.key, c.outcome, c.response
			  FROM idem_claim_many(ARRAY[%L], scope => %L) AS c', key, scope),
	format('VALUES (%L, ''replayed'', %L::jsonb)', key, to_jsonb(what)),
	what || ' is replayed in a batch')
  FROM word WHERE fits;
SELECT lives_ok(
	format('SELECT idem_derive(%L, repeat(''s'', 128), %L)', key, scope),
	what || ' fits idem_derive')
  FROM word WHERE fits;
SELECT throws_ok(format('SELECT idem_http(''SELECT 1'', scope => repeat(%L, 129))', 's'),
	'54000', NULL, 'scope of 129 bytes: idem_http');

-- 128 bytes for a step, 512 for a holder.

SELECT lives_ok($$SELECT * FROM idem_claim('steps')$$, 'a claim for steps');
SELECT throws_ok(format(command, step), '54000', NULL,
	format('step of %s bytes: %s', octet_length(step), split_part(command, '(', 1)))
  FROM unnest(ARRAY[repeat('s', 129), repeat(U&'\00e9', 64) || 's', repeat('s', 1024 * 1024)]) AS step,
	   unnest(ARRAY[
	'SELECT * FROM idem_step(''steps'', %L)',
	'SELECT idem_step_finish(''steps'', %L)',
	'SELECT idem_derive(''k'', %L)']) AS command;
SELECT is(idem_step_finish('steps', step, to_jsonb(step)), to_jsonb(step),
	format('step of %s bytes is finished', octet_length(step)))
  FROM unnest(ARRAY[repeat('s', 128), repeat(U&'\00e9', 64), repeat(U&'\+01F511', 32)]) AS step;
SELECT results_eq(
	format('SELECT done, result FROM idem_step(''steps'', %L)', step),
	format('VALUES (true, %L::jsonb)', to_jsonb(step)),
	format('and done: %s', step))
  FROM unnest(ARRAY[repeat('s', 128), repeat(U&'\00e9', 64), repeat(U&'\+01F511', 32)]) AS step;
SELECT lives_ok($$SELECT idem_release('steps')$$, '(released)');
SELECT throws_ok(
	$$SELECT * FROM idem_claim_many('{k}', lease => '1 min', holder => repeat('h', 513))$$,
	'54000', NULL, 'holder of 513 bytes');
SELECT results_eq(
	$$SELECT outcome, idem_release('512', token => token)::text
	    FROM idem_claim_many('{512}', lease => '1 min', holder => repeat('h', 512))$$,
	$$VALUES ('claimed', '')$$, 'holder of 512 bytes');

-- Arrays: of one dimension, with an element for each key.

SELECT throws_ok(command, '2202E', NULL, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim_many(''{{a,b},{c,d}}'')',
	'SELECT * FROM idem_claim_many(''{{a}}'')',
	'SELECT * FROM idem_claim_many(''{a,b}'', requests => ''{{1,2}}'')',
	'SELECT * FROM idem_claim_many(''{a,b}'', requests => ''{1}'')',
	'SELECT * FROM idem_claim_many(''{a,b}'', requests => ''{1,2,3}'')',
	'SELECT * FROM idem_claim_many(''{a,b}'', requests => ''{}'')',
	'SELECT * FROM idem_claim_many(''{}'', requests => ''{1}'')',
	'SELECT * FROM idem_finish_many(''{{a,b},{c,d}}'')',
	'SELECT * FROM idem_finish_many(''{a}'', ''{{1}}'')',
	'SELECT * FROM idem_finish_many(''{a}'', ''{1,2}'')',
	'SELECT * FROM idem_finish_many(''{a}'', ''{}'')',
	'SELECT * FROM idem_finish_many(''{}'', ''{1}'')',
	'SELECT * FROM idem_finish_many(''{a}'', NULL, '''', ''{{1}}'')',
	'SELECT * FROM idem_finish_many(''{a,b}'', NULL, '''', ''{1}'')',
	'SELECT * FROM idem_finish_many(''{a}'', NULL, '''', ''{}'')',
	'SELECT * FROM idem_once(''a'', ''SELECT $1, $2'', ''{{1,2}}'')',
	'SELECT * FROM idem_once(''a'', ''SELECT $1'', ''{{1}}'')']) AS command;
SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many('[5:6]={low,bound}', requests => '[0:1]={1,2}')$$,
	$$VALUES ('low', 'claimed'), ('bound', 'claimed')$$,
	'where an array begins does not matter');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many('[-1:0]={low,bound}', '[2:3]={1,2}', tokens => '[7:8]={NULL,NULL}')$$,
	$$VALUES ('low', '1'::jsonb), ('bound', '2')$$,
	'for the finish neither');

-- ttl and wait.

CREATE TEMPORARY TABLE timed (call text);
INSERT INTO timed VALUES
	('idem_claim(''t'', %s => %L)'),
	('idem_claim_many(''{t}'', %s => %L)'),
	('idem_once(''t'', ''SELECT 1'', %s => %L)'),
	('idem_http(''SELECT 1'', %s => %L, scope => ''t'')');
SELECT throws_ok(format('SELECT * FROM ' || call, 'ttl', ttl),
	code, NULL, format('ttl %s: %s', ttl, split_part(call, '(', 1)))
  FROM timed, (VALUES ('0', '22023'), ('-1 second', '22023'), ('-1 month', '22023'),
			   ('999 microseconds', '22023'), ('1 day -24:00:01', '22023'),
			   ('300000 years', '22008'), ('-300000 years', '22008')) AS t(ttl, code);
SELECT throws_ok(format('SELECT * FROM ' || call, 'wait', wait),
	code, NULL, format('wait %s: %s', wait, split_part(call, '(', 1)))
  FROM timed, (VALUES ('-1 second', '22023'), ('-1 microsecond', '22023'),
			   ('-1 month', '22023'), ('300000 years', '22008')) AS t(wait, code);
SELECT throws_ok(format('SELECT * FROM ' || call, 'lease', lease),
	code, NULL, format('lease %s: %s', lease, split_part(call, '(', 1)))
  FROM timed, (VALUES ('0', '22023'), ('-1 second', '22023'),
			   ('999 microseconds', '22023'), ('300000 years', '22008')) AS t(lease, code)
 WHERE call LIKE 'idem_claim%';
-- 15 and 16 refuse the literal, 17 and later know it and we refuse it.
SELECT throws_ok(format('SELECT * FROM ' || call, argument, value),
	CASE WHEN current_setting('server_version_num')::int < 170000
		 THEN '22007' ELSE '22023' END, NULL,
	format('%s %s: %s', argument, value, split_part(call, '(', 1)))
  FROM timed, unnest(ARRAY['ttl', 'wait', 'lease']) AS argument,
	   unnest(ARRAY['infinity', '-infinity']) AS value
 WHERE argument <> 'lease' OR call LIKE 'idem_claim%';
SELECT results_eq(
	format('SELECT outcome, idem_finish(%1$L) FROM idem_claim(%1$L, ttl => %1$L, wait => %2$L)',
		   ttl, wait),
	$$VALUES ('claimed', NULL::jsonb)$$,
	format('ttl %s, wait %s', ttl, wait))
  FROM (VALUES ('1 millisecond', '0'), ('00:00:00.0015', '1 microsecond'),
			   ('1 month', '1 month'), ('1 month -1 day', '1 day -23:00'),
			   ('200000 years', '200000 years')) AS t(ttl, wait);
SELECT results_eq(
	$$SELECT expires_at = finished_at + interval '1 month -1 day'
		FROM idem_lookup('1 month -1 day')$$,
	$$VALUES (true)$$,
	'months are those of the calendar');
SELECT results_eq(
	format('SELECT outcome, idem_finish(%1$L) FROM idem_claim_many(ARRAY[%1$L], ttl => %2$L, wait => %3$L)',
		   'many ' || ttl, ttl, wait),
	$$VALUES ('claimed', NULL::jsonb)$$,
	format('idem_claim_many: ttl %s, wait %s', ttl, wait))
  FROM (VALUES ('1 millisecond', '0'), ('1 month -1 day', '1 day -23:00'),
			   ('200000 years', '200000 years')) AS t(ttl, wait);
SELECT results_eq(
	format('SELECT outcome, response FROM idem_once(%L, ''SELECT 1'', ttl => %L, wait => %L)',
		   'once ' || ttl, ttl, wait),
	$$VALUES ('claimed', '1'::jsonb)$$,
	format('idem_once: ttl %s, wait %s', ttl, wait))
  FROM (VALUES ('1 millisecond', '0'), ('1 month -1 day', '1 day -23:00'),
			   ('200000 years', '200000 years')) AS t(ttl, wait);
SELECT results_eq(
	$$SELECT expires_at = finished_at + interval '1 month -1 day'
		FROM unnest(ARRAY['many 1 month -1 day', 'once 1 month -1 day']) AS key,
			 LATERAL idem_lookup(key)$$,
	$$VALUES (true), (true)$$,
	'months are those of the calendar there, too');

-- The size of a response: what its jsonb takes, without the header. A string
-- takes its length and 8 bytes.

SET LOCAL idempotency.max_response_size = '1kB';
SELECT lives_ok($$SELECT * FROM idem_claim('big')$$, 'a claim for a big response');
SELECT throws_ok(
	format('SELECT idem_finish(''big'', to_jsonb(repeat(''x'', %s)))', n),
	'54000', NULL, format('response of %s bytes', n + 8))
  FROM unnest(ARRAY[1017, 100000, 10000000]) AS n;
SELECT is(idem_finish('big', to_jsonb(repeat('x', 1016))), to_jsonb(repeat('x', 1016)),
	'response of 1024 bytes, in the claim that was refused a bigger one');
SELECT is(response, to_jsonb(repeat('x', 1016)), 'and it is stored')
  FROM idem_lookup('big');
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{big 1,big 2}')$$,
	$$VALUES ('big 1', 'claimed'), ('big 2', 'claimed')$$, 'claims for big responses');
SELECT throws_ok(
	format('SELECT * FROM idem_finish_many(''{big 1,big 2}'', ARRAY[''1'', to_jsonb(repeat(''x'', %s))])', n),
	'54000', NULL, format('one response of %s bytes in a batch', n + 8))
  FROM unnest(ARRAY[1017, 100000]) AS n;
SELECT results_eq(
	$$SELECT key, length(response #>> '{}')
	    FROM idem_finish_many('{big 1,big 2}', array_fill(to_jsonb(repeat('x', 1016)), '{2}'))$$,
	$$VALUES ('big 1', 1016), ('big 2', 1016)$$, 'two responses of 1024 bytes');
SELECT throws_ok(
	format('SELECT * FROM idem_once(''big once'', ''SELECT repeat($1, %s)'', ''{x}'')', n),
	'54000', NULL, format('result of %s bytes', n + 8))
  FROM unnest(ARRAY[1017, 100000]) AS n;
SELECT results_eq(
	$$SELECT outcome, length(response #>> '{}')
	    FROM idem_once('big once', 'SELECT repeat($1, 1016)', '{x}')$$,
	$$VALUES ('claimed', 1016)$$, 'result of 1024 bytes, under the key that was refused a bigger one');
SELECT throws_ok(
	$$SELECT idem_http('SELECT repeat($1, 10000)', '{x}', scope => 'big')$$,
	'54000', NULL, 'body of 10008 bytes');
SELECT lives_ok($$SELECT * FROM idem_claim('big step')$$, 'a claim for a big step');
SELECT throws_ok(
	format('SELECT idem_step_finish(''big step'', ''s'', to_jsonb(repeat(''x'', %s)))', n),
	'54000', NULL, format('result of a step of %s bytes', n + 8))
  FROM unnest(ARRAY[1017, 100000]) AS n;
SELECT is(idem_step_finish('big step', 's', to_jsonb(repeat('x', 1016))), to_jsonb(repeat('x', 1016)),
	'result of 1024 bytes, of the step that was refused a bigger one');
SELECT lives_ok($$SELECT idem_release('big step')$$, '(released)');
SET LOCAL idempotency.max_response_size = '8MB';
SELECT is(idem_finish(c, r), r, c)
  FROM (VALUES ('1 kB', 1024), ('1 MB', 1024 * 1024)) AS v(k, n),
	   LATERAL (SELECT v.k FROM idem_claim(v.k)) AS x(c),
	   LATERAL (SELECT to_jsonb(repeat('x', n))) AS y(r);
SELECT is(length(response #>> '{}'), 1024 * 1024, 'a megabyte is replayed')
  FROM idem_claim('1 MB') WHERE outcome = 'replayed';
SELECT throws_ok($$SET LOCAL idempotency.max_response_size = '255MB 1kB'$$,
	'22023', NULL, 'the limit has a limit');
SELECT throws_ok($$SET LOCAL idempotency.max_response_size = 0$$,
	'22023', NULL, 'and is not zero');
SELECT throws_ok($$SET LOCAL idempotency.default_ttl = 0$$,
	'22023', NULL, 'the default ttl is not zero');
SELECT throws_ok($$SET LOCAL idempotency.no_such_setting = 1$$,
	'42602', NULL, 'there are no other settings');

-- Not in the encoding of the database: never gets as far as us.

SELECT throws_ok($$SELECT * FROM idem_claim(E'\xff')$$, '22021', NULL,
	'a key that is not UTF-8');
SELECT throws_ok($$SELECT * FROM idem_claim('k', scope => E'\xc3')$$, '22021', NULL,
	'a scope that is not UTF-8');
SELECT throws_ok($$SELECT * FROM idem_claim(E'a\000b')$$, '22021', NULL,
	'a key with a zero byte');

-- ID001: not claimed by this transaction.

SELECT throws_ok($$SELECT idem_finish('nobody')$$, 'ID001', NULL,
	'finish without a claim');
SELECT throws_ok($$SELECT idem_release('nobody')$$, 'ID001', NULL,
	'release without a claim');
SELECT lives_ok($$SELECT * FROM idem_claim('mine', scope => 'a')$$, 'a claim in a scope');
SELECT throws_ok($$SELECT idem_finish('mine')$$, 'ID001', NULL,
	'finish in another scope');
SELECT throws_ok($$SELECT idem_release('mine', 'A')$$, 'ID001', NULL,
	'release in another scope');
SELECT lives_ok($$SELECT idem_release('mine', 'a')$$, 'release in the right scope');
SELECT throws_ok($$SELECT idem_release('mine', 'a')$$, 'ID001', NULL,
	'release again');
SELECT throws_ok($$SELECT idem_finish('mine', scope => 'a')$$, 'ID001', NULL,
	'finish what was released');

CREATE FUNCTION pg_temp.undone(command text) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
	BEGIN
		EXECUTE command;
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
	END;
END
$$;
SELECT lives_ok($$SELECT pg_temp.undone('SELECT * FROM idem_claim(''undone'')')$$,
	'a claim that is rolled back');
SELECT throws_ok($$SELECT idem_finish('undone')$$, 'ID001', NULL,
	'cannot be finished');
SELECT lives_ok($$SELECT * FROM idem_claim('again')$$, 'a claim');
SELECT lives_ok($$SELECT pg_temp.undone('SELECT idem_finish(''again'', ''1'')')$$,
	'a finish that is rolled back');
SELECT is(idem_finish('again', '2'), '2', 'can be done again');
SELECT lives_ok($$SELECT * FROM idem_claim('gone')$$, 'a claim');
SELECT lives_ok($$SELECT pg_temp.undone('SELECT idem_release(''gone'')')$$,
	'a release that is rolled back');
SELECT is(idem_finish('gone', '3'), '3', 'leaves the claim');

-- ID002: finished already.

SELECT throws_ok($$SELECT idem_finish('again', '2')$$, 'ID002', NULL,
	'finish twice, though with the same response');
SELECT throws_ok($$SELECT idem_release('again')$$, 'ID002', NULL,
	'release after the finish');
SELECT results_eq($$SELECT outcome FROM idem_claim('again')$$,
	$$VALUES ('replayed')$$, 'a replay');
SELECT throws_ok($$SELECT idem_finish('again', '4')$$, 'ID002', NULL,
	'cannot be finished');
SELECT is(response, '2', 'and the response stays')
  FROM idem_lookup('again');

-- The same in batches, and nothing of a batch is finished then.

SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{b1,b2}')$$,
	$$VALUES ('b1', 'claimed'), ('b2', 'claimed')$$, 'two claims');
SELECT throws_ok(command, code, NULL, command) FROM (VALUES
	('SELECT * FROM idem_finish_many(''{b1,nobody,b2}'')', 'ID001'),
	('SELECT * FROM idem_finish_many(''{b1,b2}'', scope => ''s'')', 'ID001'),
	('SELECT * FROM idem_finish_many(''{b1,again,b2}'')', 'ID002'),
	('SELECT * FROM idem_finish_many(''{b1,b2,b1}'')', 'ID002'),
	('SELECT * FROM idem_finish_many(''{b1,b2}'', tokens => ''{NULL,1}'')', 'ID003'),
	('SELECT * FROM idem_finish_many(''{b1,b2}'', tokens => ''{0,NULL}'')', 'ID003'))
	AS t(command, code);
SELECT results_eq($$SELECT key, state FROM unnest('{b1,b2}'::text[]) AS key, LATERAL idem_lookup(key)$$,
	$$VALUES ('b1', 'in_progress'), ('b2', 'in_progress')$$, 'both are as they were');
SELECT results_eq($$SELECT * FROM idem_finish_many('{b2,b1}', '{2,1}')$$,
	$$VALUES ('b2', '2'::jsonb), ('b1', '1')$$, 'and can be finished');
SELECT throws_ok($$SELECT * FROM idem_finish_many('{b2,b1}', '{2,1}')$$, 'ID002', NULL,
	'once');

-- Steps: ID001, ID002, ID003, ID006.

SELECT throws_ok(format(command, call), code, NULL, format(command, call))
  FROM unnest(ARRAY['SELECT * FROM idem_step(%s)', 'SELECT idem_step_finish(%s)']) AS command,
	   (VALUES ('''nobody'', ''s''', 'ID001'),
			   ('''again'', ''s''', 'ID002'),
			   ('''nobody'', ''s'', token => 1', 'ID003'),
			   ('''nobody'', ''s'', token => 0', 'ID003'),
			   ('''again'', ''s'', token => 1', 'ID003')) AS t(call, code);
SELECT lives_ok($$SELECT * FROM idem_claim('flow', scope => 'f')$$, 'a claim');
SELECT throws_ok(format(command, call), code, NULL, format(command, call))
  FROM unnest(ARRAY['SELECT * FROM idem_step(%s)', 'SELECT idem_step_finish(%s)']) AS command,
	   (VALUES ('''flow'', ''s''', 'ID001'),
			   ('''flow'', ''s'', scope => ''F''', 'ID001'),
			   ('''flow'', ''s'', scope => ''f'', token => 1', 'ID003')) AS t(call, code);
SELECT is(idem_step_finish('flow', 's', '1', 'f', request => '{"a": 1}'), '1', 'a step');
SELECT throws_ok($$SELECT idem_step_finish('flow', 's', '1', 'f', request => '{"a": 1}')$$,
	'ID002', NULL, 'finish a step twice, though with the same result');
SELECT throws_ok($$SELECT idem_step_finish('flow', 's', '1', 'f')$$,
	'ID002', NULL, 'or without its request');
SELECT throws_ok($$SELECT * FROM idem_step('flow', 's', '{"a": 2}', 'f')$$,
	'ID006', NULL, 'ask for a step with another request');
SELECT throws_ok($$SELECT idem_step_finish('flow', 's', '1', 'f', request => '{"a": 2}')$$,
	'ID006', NULL, 'finish it with another request');
SELECT results_eq($$SELECT done, result FROM idem_step('flow', 's', '{"a": 1.0}', 'f')$$,
	$$VALUES (true, '1'::jsonb)$$, 'the step is what it was');
SELECT is(idem_finish('flow', scope => 'f'), NULL, 'the flow is finished');
SELECT throws_ok($$SELECT * FROM idem_step('flow', 's', scope => 'f')$$, 'ID002', NULL,
	'and has no steps to ask for');
SELECT throws_ok($$SELECT idem_step_finish('flow', 't', scope => 'f')$$, 'ID002', NULL,
	'nor to finish');

CREATE TEMPORARY TABLE lease AS
SELECT * FROM unnest('{done,failed,released,forgotten,renewed,live}'::text[]) AS key,
	   LATERAL idem_claim(key, lease => '1 hour', holder => 'h', scope => 'leases');
SELECT idem_finish('done', scope => 'leases', token => token) FROM lease WHERE key = 'done' \g /dev/null
SELECT idem_fail('failed', final => true, scope => 'leases', token => token) FROM lease WHERE key = 'failed' \g /dev/null
SELECT idem_release('released', 'leases', token) FROM lease WHERE key = 'released' \g /dev/null
SELECT idem_forget('forgotten', 'leases') \g /dev/null
SELECT * FROM idem_claim('renewed', lease => '1 hour', holder => 'h', scope => 'leases') \g /dev/null
SELECT throws_ok(format(command, key, token), code, NULL,
	format('a lease that is %s: %s', key, split_part(command, '(', 1)))
  FROM lease
  JOIN (VALUES ('done', 'ID002'), ('failed', 'ID002'), ('released', 'ID003'),
			   ('forgotten', 'ID003'), ('renewed', 'ID003')) AS t(key, code) USING (key),
	   unnest(ARRAY['SELECT * FROM idem_step(%L, ''s'', scope => ''leases'', token => %s)',
					'SELECT idem_step_finish(%L, ''s'', scope => ''leases'', token => %s)']) AS command;
SELECT throws_ok(format('SELECT * FROM idem_finish_many(ARRAY[''live'', %L], NULL, ''leases'', ARRAY[%s, %s])',
						l.key, live.token, l.token), code, NULL,
	format('a lease that is %s: idem_finish_many', l.key))
  FROM lease AS l
  JOIN (VALUES ('failed', 'ID002'), ('released', 'ID003'),
			   ('forgotten', 'ID003'), ('renewed', 'ID003')) AS t(key, code) USING (key),
	   lease AS live
 WHERE live.key = 'live';
SELECT results_eq(
	format('SELECT done FROM idem_step(''live'', ''s'', NULL, ''leases'', %s)', token),
	$$VALUES (false)$$, 'the live one has a step to be done')
  FROM lease WHERE key = 'live';
SELECT is(idem_step_finish('live', 's', '1', 'leases', token), '1', 'and does it')
  FROM lease WHERE key = 'live';
SELECT throws_ok(
	format('SELECT idem_step_finish(''live'', ''s'', ''1'', ''leases'', %s)', token),
	'ID002', NULL, 'once')
  FROM lease WHERE key = 'live';

-- idem_once: what the command must be.

CREATE TABLE done (n int PRIMARY KEY CHECK (n < 1000));
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE TEMPORARY TABLE wrong (code text, command text, params text);
INSERT INTO wrong VALUES
	-- number of parameters
	('22023', 'SELECT 1', '{1}'),
	('22023', 'SELECT $1::int', '{}'),
	('22023', 'SELECT $1::int', NULL),
	('22023', 'SELECT $1::int', '{1,2}'),
	('22023', 'SELECT $1::int, $2::int', '{1}'),
	-- one statement
	('42601', '', '{}'),
	('42601', ';', '{}'),
	('42601', '-- nothing', '{}'),
	('42601', 'SELECT 1; SELECT 2', '{}'),
	('42601', 'INSERT INTO done VALUES (1); INSERT INTO done VALUES (2)', '{}'),
	('42601', 'SELEC 1', '{}'),
	('42601', 'SELECT ''', '{}'),
	-- transaction control
	('0A000', 'BEGIN', '{}'),
	('0A000', 'START TRANSACTION', '{}'),
	('0A000', 'COMMIT', '{}'),
	('0A000', 'COMMIT AND CHAIN', '{}'),
	('0A000', 'END', '{}'),
	('0A000', 'ROLLBACK', '{}'),
	('0A000', 'SAVEPOINT s', '{}'),
	('0A000', 'ROLLBACK TO s', '{}'),
	('0A000', 'RELEASE s', '{}'),
	('0A000', 'PREPARE TRANSACTION ''t''', '{}'),
	('0A000', 'COPY done TO STDOUT', '{}'),
	('0A000', 'COPY done FROM STDIN', '{}'),
	('2D000', 'DO $do$ BEGIN COMMIT; END $do$', '{}'),
	('2D000', 'DO $do$ BEGIN ROLLBACK; END $do$', '{}'),
	('2D000', 'CALL commits()', '{}'),
	-- not inside a transaction, not inside a function
	('25001', 'VACUUM done', '{}'),
	-- types of parameters
	('42P18', 'SELECT $2::int', '{1,2}'),
	('42P18', 'SELECT $3::int, $1::int', '{1,2,3}'),
	('42P18', 'SELECT $1 IS NULL', '{1}'),
	('42P02', 'SELECT $0', '{}'),
	-- values of parameters
	('22P02', 'SELECT $1::int', '{x}'),
	('22P02', 'INSERT INTO done VALUES ($1)', '{""}'),
	('22P02', 'SELECT $1::jsonb', '{x}'),
	('22P02', 'SELECT $1::int[]', '{x}'),
	('22003', 'SELECT $1::int', '{3000000000}'),
	('22007', 'SELECT $1::date', '{tomorrow or so}'),
	('23514', 'SELECT $1::small', '{10}'),
	-- what the command raises
	('22012', 'SELECT 1 / $1::int', '{0}'),
	('42P01', 'SELECT * FROM no_such_table', '{}'),
	('42703', 'SELECT no_such_column FROM done', '{}'),
	('42883', 'SELECT no_such_function()', '{}'),
	('42725', 'SELECT $1 + $2', '{1,2}'),
	('23514', 'INSERT INTO done VALUES ($1)', '{1000}'),
	('23505', 'INSERT INTO done SELECT 7 FROM generate_series(1, 2)', '{}'),
	('23502', 'INSERT INTO done VALUES ($1)', '{NULL}'),
	('P0001', 'DO $do$ BEGIN INSERT INTO done VALUES (8); RAISE ''no''; END $do$', '{}'),
	('55006', 'SELECT idem_forget(''wrong'', ''o'')', '{}'),
	-- what it does to the claim
	('ID001', 'SELECT idem_release(''wrong'', ''o'')', '{}'),
	('ID002', 'SELECT idem_finish(''wrong'', ''1'', ''o'')', '{}'),
	('40001', 'INSERT INTO idem_key (expires_at, claimed_at, finished_at, id, owner, scope, key)
			   VALUES (''infinity'', now(), now(), idem_key_id(''wrong'', ''o''), current_user::regrole, ''o'', ''wrong'')', '{}'),
	('ID001', 'DO $do$ BEGIN
				PERFORM idem_release(''wrong'', ''o'');
				PERFORM * FROM idem_claim(''wrong'', scope => ''o'', lease => ''1 min'');
			   END $do$', '{}'),
	-- and to the extension
	('ID001', 'DO $do$ BEGIN DROP EXTENSION idempotency; CREATE EXTENSION idempotency SCHEMA idem; END $do$', '{}'),
	('42704', 'DROP EXTENSION idempotency', '{}'),
	('55000', 'ALTER TABLE idem_key ADD COLUMN extra text', '{}');
SELECT throws_ok(
	format('SELECT * FROM idem_once(''wrong'', %L, %L, scope => ''o'')', command, params),
	code, NULL, 'idem_once: ' || concat_ws(', ', split_part(command, E'\n', 1), params))
  FROM wrong;
SELECT throws_ok(
	format('SELECT idem_http(%L, %L, scope => ''o'')', command, params),
	code, NULL, 'idem_http: ' || concat_ws(', ', split_part(command, E'\n', 1), params))
  FROM wrong WHERE command NOT LIKE '%''wrong''%';
SELECT is_empty($$SELECT * FROM done$$, 'nothing is done');
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE scope = 'o'$$, 'nothing is claimed');
SELECT results_eq($$SELECT outcome, response
		FROM idem_once('wrong', 'INSERT INTO done VALUES ($1) RETURNING n', '{9}', scope => 'o')$$,
	$$VALUES ('claimed', '9'::jsonb)$$, 'the key is free');
SELECT results_eq($$SELECT outcome, response
		FROM idem_once('wrong', 'INSERT INTO done VALUES ($1) RETURNING n', '{9}', scope => 'o')$$,
	$$VALUES ('replayed', '9'::jsonb)$$, 'until it is used');
SELECT throws_ok($$SELECT * FROM idem_once('wrong', NULL, scope => 'o')$$, '22004', NULL,
	'a command is needed for a replay, too');
SELECT results_eq($$TABLE done$$, $$VALUES (9)$$, 'this is done, and nothing else');

-- 55006: forget what this transaction has claimed.

SELECT lives_ok($$SELECT * FROM idem_claim('held')$$, 'a claim');
SELECT throws_ok($$SELECT idem_forget('held')$$, '55006', NULL,
	'cannot be forgotten');
SELECT is(idem_finish('held'), NULL, 'but finished');
SELECT ok(idem_forget('held'), 'and then forgotten');
SELECT ok(NOT idem_forget('held'), 'once');

-- 40001: somebody wrote the record without claiming the key.

SELECT lives_ok($$SELECT * FROM idem_claim('stolen')$$, 'a claim');
INSERT INTO idem_key (expires_at, claimed_at, finished_at, id, owner, scope, key, response)
VALUES ('infinity', now(), now(), idem_key_id('stolen'), current_user::regrole, '', 'stolen', '"of a thief"');
SELECT throws_ok($$SELECT idem_finish('stolen', '1')$$, '40001', NULL,
	'finish finds the record of a foreign writer');
SELECT throws_ok($$SELECT idem_finish('stolen', '1')$$, '40001', NULL,
	'and the claim is lost');
SELECT throws_ok($$SELECT idem_release('stolen')$$, '40001', NULL,
	'for a release, too');
SELECT throws_ok($$SELECT * FROM idem_claim('stolen')$$, '40001', NULL,
	'and for another claim');
SELECT throws_ok($$SELECT * FROM idem_finish_many('{stolen}')$$, '40001', NULL,
	'for a batch');
SELECT throws_ok($$SELECT * FROM idem_claim_many('{stolen}')$$, '40001', NULL,
	'and for a batch of claims');
SELECT throws_ok($$SELECT * FROM idem_once('stolen', 'SELECT 1')$$, '40001', NULL,
	'and for idem_once');
SELECT is(response, '"of a thief"', 'the record is that of the writer')
  FROM idem_key WHERE key = 'stolen';

-- 25006: read-only transaction.

SELECT throws_ok(
	format('DO $do$ BEGIN
				SET LOCAL transaction_read_only = on;
				EXECUTE %L;
			END $do$', command),
	'25006', NULL, 'read-only: ' || command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(''ro'')',
	'SELECT * FROM idem_claim(''again'')',
	'SELECT idem_finish(''ro'')',
	'SELECT idem_release(''ro'')',
	'SELECT idem_forget(''again'')',
	'SELECT idem_expire()',
	'SELECT * FROM idem_claim_many(''{ro}'')',
	'SELECT * FROM idem_claim_many(''{}'')',
	'SELECT * FROM idem_finish_many(''{ro}'')',
	'SELECT * FROM idem_once(''again'', ''SELECT 1'')',
	'SELECT idem_http(''SELECT 1'')',
	'SELECT * FROM idem_step(''again'', ''s'')',
	'SELECT idem_step_finish(''again'', ''s'')']) AS command;
SELECT lives_ok(
	$sql$DO $do$ BEGIN
		SET LOCAL transaction_read_only = on;
		ASSERT (SELECT response = '2' FROM idem_lookup('again'));
		ASSERT (SELECT result = '1' FROM idem_steps('flow', 'f'));
		PERFORM FROM idem_in_flight;
		PERFORM idem_derive('again', 's');
	END $do$ $sql$,
	'read-only: idem_lookup, idem_steps, idem_derive and idem_in_flight work');

-- After all that the session works as ever.

SELECT results_eq(
	$$SELECT outcome FROM idem_claim('after all')$$, $$VALUES ('claimed')$$,
	'claim after all that');
SELECT is(idem_finish('after all', '{"ok": true}'), '{"ok": true}', 'finish');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim('after all')$$,
	$$VALUES ('replayed', '{"ok": true}'::jsonb)$$, 'replay');
SELECT set_eq($$SELECT key FROM idem_in_flight WHERE state = 'in_progress'$$,
	ARRAY['stolen', 'renewed', 'live'], 'no claim is left but the lost one and leases');

-- Without the extension: neither functions nor tables.

DROP EXTENSION idempotency;
SELECT throws_ok($$SELECT * FROM idem_claim('k')$$, '42883', NULL,
	'no function without the extension');
CREATE FUNCTION lonely_claim(key text, ttl interval, request jsonb, scope text, wait interval,
	OUT outcome text, OUT response jsonb, OUT token bigint, OUT attempt int, OUT retry_after interval)
	LANGUAGE c AS 'idempotency', 'idem_claim';
CREATE FUNCTION lonely_lookup(key text, scope text, OUT state text, OUT response jsonb,
	OUT attempt int, OUT claimed_at timestamptz, OUT finished_at timestamptz,
	OUT lease_until timestamptz, OUT retry_at timestamptz, OUT expires_at timestamptz)
	RETURNS SETOF record LANGUAGE c AS 'idempotency', 'idem_lookup';
SELECT throws_ok($$SELECT * FROM lonely_claim('k', NULL, NULL, '', NULL)$$,
	'42704', NULL, 'a function that was made by hand finds no extension');
SELECT throws_ok($$SELECT * FROM lonely_lookup('k', '')$$,
	'42704', NULL, 'nor does this one');
CREATE EXTENSION idempotency SCHEMA idem;
SELECT results_eq(
	$$SELECT outcome, idem_finish('k', '5') FROM idem_claim('k')$$,
	$$VALUES ('claimed', '5'::jsonb)$$,
	'created again, in the same transaction, it works');
SELECT is_empty($$SELECT * FROM idem_lookup('after all')$$,
	'and knows nothing of before');

SELECT * FROM finish();
ROLLBACK;
