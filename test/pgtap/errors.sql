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

SELECT plan(162);

-- NULL and empty arguments.

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
	'SELECT idem_expire(NULL)']) AS command;
SELECT throws_ok(command, '22023', NULL, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_claim('''')',
	'SELECT idem_finish('''')',
	'SELECT idem_release('''')',
	'SELECT * FROM idem_lookup('''')',
	'SELECT idem_forget('''')',
	'SELECT idem_expire(0)',
	'SELECT idem_expire(-1)']) AS command;
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	'SELECT idem_finish(''n1'', NULL) FROM idem_claim(''n1'', NULL, NULL, '''', NULL)',
	'SELECT idem_finish(''n2'', ''null'') FROM idem_claim(''n2'', request => ''null'')',
	'SELECT idem_finish('' '') FROM idem_claim('' '')',
	'SELECT idem_expire(2147483647)']) AS command;

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
	'SELECT idem_forget(%L, %L)']) AS command
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

-- ttl and wait.

SELECT throws_ok(format('SELECT * FROM idem_claim(''t'', ttl => %L)', ttl),
	code, NULL, format('ttl %s', ttl))
  FROM (VALUES ('0', '22023'), ('-1 second', '22023'), ('-1 month', '22023'),
			   ('999 microseconds', '22023'), ('1 day -24:00:01', '22023'),
			   ('300000 years', '22008'), ('-300000 years', '22008')) AS t(ttl, code);
SELECT throws_ok(format('SELECT * FROM idem_claim(''t'', wait => %L)', wait),
	code, NULL, format('wait %s', wait))
  FROM (VALUES ('-1 second', '22023'), ('-1 microsecond', '22023'),
			   ('-1 month', '22023'), ('300000 years', '22008')) AS t(wait, code);
-- 15 and 16 refuse the literal, 17 and later know it and we refuse it.
SELECT throws_ok(command,
	CASE WHEN current_setting('server_version_num')::int < 170000
		 THEN '22007' ELSE '22023' END, NULL, command)
  FROM unnest(ARRAY[
	'SELECT * FROM idem_claim(''t'', ttl => ''infinity'')',
	'SELECT * FROM idem_claim(''t'', ttl => ''-infinity'')',
	'SELECT * FROM idem_claim(''t'', wait => ''infinity'')',
	'SELECT * FROM idem_claim(''t'', wait => ''-infinity'')']) AS command;
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

-- 55006: forget what this transaction has claimed.

SELECT lives_ok($$SELECT * FROM idem_claim('held')$$, 'a claim');
SELECT throws_ok($$SELECT idem_forget('held')$$, '55006', NULL,
	'cannot be forgotten');
SELECT is(idem_finish('held'), NULL, 'but finished');
SELECT ok(idem_forget('held'), 'and then forgotten');
SELECT ok(NOT idem_forget('held'), 'once');

-- 40001: somebody wrote the record without claiming the key.

SELECT lives_ok($$SELECT * FROM idem_claim('stolen')$$, 'a claim');
INSERT INTO idem_key (expires_at, claimed_at, finished_at, owner, scope, key, response)
VALUES ('infinity', now(), now(), current_user::regrole, '', 'stolen', '"of a thief"');
SELECT throws_ok($$SELECT idem_finish('stolen', '1')$$, '40001', NULL,
	'finish finds the record of a foreign writer');
SELECT throws_ok($$SELECT idem_finish('stolen', '1')$$, '40001', NULL,
	'and the claim is lost');
SELECT throws_ok($$SELECT idem_release('stolen')$$, '40001', NULL,
	'for a release, too');
SELECT throws_ok($$SELECT * FROM idem_claim('stolen')$$, '40001', NULL,
	'and for another claim');
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
	'SELECT idem_expire()']) AS command;
SELECT lives_ok(
	$sql$DO $do$ BEGIN
		SET LOCAL transaction_read_only = on;
		ASSERT (SELECT response = '2' FROM idem_lookup('again'));
		PERFORM FROM idem_in_flight;
	END $do$ $sql$,
	'read-only: idem_lookup and idem_in_flight work');

-- After all that the session works as ever.

SELECT results_eq(
	$$SELECT outcome FROM idem_claim('after all')$$, $$VALUES ('claimed')$$,
	'claim after all that');
SELECT is(idem_finish('after all', '{"ok": true}'), '{"ok": true}', 'finish');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim('after all')$$,
	$$VALUES ('replayed', '{"ok": true}'::jsonb)$$, 'replay');
SELECT set_eq($$SELECT key FROM idem_in_flight WHERE state = 'in_progress'$$,
	ARRAY['stolen'], 'no claim is left but the lost one');

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
