-- Sets of keys: each is answered as by idem_claim and idem_finish, in the order
-- given, and a set is finished all or none. Nobody sleeps: time passes by
-- UPDATE, as a superuser may.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(117);

-- A row for each key, in the order given.

SELECT results_eq(
	$$SELECT * FROM idem_claim_many('{c,a,b}')$$,
	$$VALUES ('c', 'claimed', NULL::jsonb, NULL::int8, 1, NULL::interval),
			 ('a', 'claimed', NULL, NULL, 1, NULL),
			 ('b', 'claimed', NULL, NULL, 1, NULL)$$,
	'three fresh keys');
SELECT results_eq(
	$$SELECT * FROM idem_claim_many('{b,d,c}')$$,
	$$VALUES ('b', 'in_progress', NULL::jsonb, NULL::int8, NULL::int, NULL::interval),
			 ('d', 'claimed', NULL, NULL, 1, NULL),
			 ('c', 'in_progress', NULL, NULL, NULL, NULL)$$,
	'two of them again, and another one');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many('{b,d,a,c}', '{2,4,1,3}')$$,
	$$VALUES ('b', '2'::jsonb), ('d', '4'), ('a', '1'), ('c', '3')$$,
	'finished in an order of its own');
SELECT results_eq(
	$$SELECT * FROM idem_claim_many('{d,c,b,a}')$$,
	$$VALUES ('d', 'replayed', '4'::jsonb, NULL::int8, 1, NULL::interval),
			 ('c', 'replayed', '3', NULL, 1, NULL),
			 ('b', 'replayed', '2', NULL, 1, NULL),
			 ('a', 'replayed', '1', NULL, 1, NULL)$$,
	'each with its own response');
SELECT results_eq(
	$$SELECT key, response FROM unnest('{a,b,c,d}'::text[]) AS key, LATERAL idem_claim(key)$$,
	$$VALUES ('a', '1'::jsonb), ('b', '2'), ('c', '3'), ('d', '4')$$,
	'for idem_claim, too');
SELECT is_empty($$SELECT * FROM idem_claim_many('{}')$$, 'no keys, no rows');
SELECT is_empty($$SELECT * FROM idem_claim_many('{}', requests => '{}', lease => '1 min')$$,
	'in every way');
SELECT is_empty($$SELECT * FROM idem_finish_many('{}')$$, 'nothing to finish');
SELECT is_empty($$SELECT * FROM idem_finish_many('{}', '{}', '', '{}')$$, 'in every way');

-- By idem_claim or by a set, a claim is a claim.

SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{one,two}', scope => 's')$$,
	$$VALUES ('one', 'claimed'), ('two', 'claimed')$$, 'claimed as a set');
SELECT is(idem_finish('one', '1', 's'), '1', 'one finished by itself');
SELECT is(outcome, 'claimed', 'and one') FROM idem_claim('three', scope => 's');
SELECT results_eq($$SELECT * FROM idem_finish_many('{two,three}', '{2,3}', 's')$$,
	$$VALUES ('two', '2'::jsonb), ('three', '3')$$, 'claimed by itself, finished as a set');
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{one,two,three}')$$,
	$$VALUES ('one', 'claimed'), ('two', 'claimed'), ('three', 'claimed')$$, 'other scopes do not care');
SELECT lives_ok($$SELECT idem_release('one'), idem_release('two')$$, 'two of these are released');
SELECT results_eq($$SELECT outcome, attempt FROM idem_fail('three', '"no"', '1 hour')$$,
	$$VALUES ('retry_later', 1)$$, 'one fails');
SELECT results_eq(
	$$SELECT key, outcome, response, attempt, retry_after BETWEEN '59 min' AND '1 hour'
	    FROM idem_claim_many('{three,two,one}')$$,
	$$VALUES ('three', 'retry_later', '"no"'::jsonb, 1, true),
			 ('two', 'claimed', NULL, 1, NULL), ('one', 'claimed', NULL, 1, NULL)$$,
	'and so says the next set');
SELECT lives_ok($$SELECT * FROM idem_finish_many('{one,two}')$$, '(finished)');

-- Keys are strings of bytes, up to the last one.

CREATE TEMPORARY TABLE odd AS
SELECT key, n FROM unnest(ARRAY['b', 'a', 'ab', 'aa', ' ', 'A', E'a\t', U&'\00e9', U&'\+01F511', U&'e\0301', 'NULL', 'a b',
	repeat('z', 512), repeat('z', 511)]) WITH ORDINALITY AS o(key, n);
SELECT results_eq(
	$$SELECT c.key, c.outcome FROM (SELECT array_agg(key ORDER BY n) AS keys FROM odd) AS o,
		LATERAL idem_claim_many(keys, scope => 'odd') AS c$$,
	$$SELECT key, 'claimed'::text FROM odd ORDER BY n$$, 'odd keys are claimed');
SELECT results_eq(
	$$SELECT f.key, f.response FROM (SELECT array_agg(key ORDER BY n DESC) AS keys, array_agg(to_jsonb(key) ORDER BY n DESC) AS responses FROM odd) AS o,
		LATERAL idem_finish_many(keys, responses, 'odd') AS f$$,
	$$SELECT key, to_jsonb(key) FROM odd ORDER BY n DESC$$, 'and finished');
SELECT results_eq(
	$$SELECT c.key, c.outcome, c.response FROM (SELECT array_agg(key ORDER BY n) AS keys FROM odd) AS o,
		LATERAL idem_claim_many(keys, scope => 'odd') AS c$$,
	$$SELECT key, 'replayed'::text, to_jsonb(key) FROM odd ORDER BY n$$, 'and replayed');

-- The same key again.

SELECT results_eq(
	$$SELECT key, outcome, attempt FROM idem_claim_many('{y,x,y,y}')$$,
	$$VALUES ('y', 'claimed', 1), ('x', 'claimed', 1),
			 ('y', 'in_progress', NULL), ('y', 'in_progress', NULL)$$,
	'a key that is given again is in progress');
SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many('{z,z,z}', requests => '{1,2,NULL}')$$,
	$$VALUES ('z', 'claimed'), ('z', 'mismatch'), ('z', 'in_progress')$$,
	'with another request it is a mismatch');
SELECT is(idem_finish(key, to_jsonb(key)), to_jsonb(key), '(finished)') FROM unnest('{x,y,z}'::text[]) AS key;
SELECT results_eq(
	$$SELECT key, outcome, response FROM idem_claim_many('{z,z,x,z}', requests => '{1,2,NULL,NULL}')$$,
	$$VALUES ('z', 'replayed', '"z"'::jsonb), ('z', 'mismatch', NULL),
			 ('x', 'replayed', '"x"'), ('z', 'replayed', '"z"')$$,
	'a finished key is replayed as often as it is given');

-- Requests and responses, null or not. json's null is a request like any other.

SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many('{r1,r2,r3,r4}', requests => '{"{\"a\": 1}",NULL,"null",1.50}')$$,
	$$SELECT 'r' || i, 'claimed' FROM generate_series(1, 4) AS i$$, 'requests');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many('{r1,r2,r3,r4}', '{NULL,"null",1,"{\"b\": [true]}"}')$$,
	$$VALUES ('r1', NULL::jsonb), ('r2', 'null'), ('r3', '1'), ('r4', '{"b": [true]}')$$,
	'responses');
SELECT results_eq(
	format('SELECT key, outcome, response FROM idem_claim_many(''{r1,r2,r3,r4}'', requests => %L)', requests),
	format('SELECT ''r'' || i, o, CASE WHEN o = ''replayed'' THEN r END
			  FROM unnest(%L::text[], ''{NULL,"null",1,"{\"b\": [true]}"}''::jsonb[])
			  WITH ORDINALITY AS t(o, r, i)', outcomes),
	format('requests %s: %s', requests, outcomes))
  FROM (VALUES
	('{"{\"a\": 1.0}",7,"null",1.5}', '{replayed,replayed,replayed,replayed}'),
	('{"{\"a\": 2}",NULL,0,1.51}', '{mismatch,replayed,mismatch,mismatch}'),
	('{NULL,NULL,NULL,NULL}', '{replayed,replayed,replayed,replayed}'),
	(NULL, '{replayed,replayed,replayed,replayed}')) AS t(requests, outcomes);
SELECT results_eq(
	$$SELECT response, fingerprint IS NULL FROM idem_key WHERE key ~ '^r[1-4]$' ORDER BY key$$,
	$$VALUES (NULL::jsonb, false), ('null', true), ('1', false), ('{"b": [true]}', false)$$,
	'as it is stored');
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{n1,n2}')$$,
	$$VALUES ('n1', 'claimed'), ('n2', 'claimed')$$, 'claims');
SELECT results_eq($$SELECT * FROM idem_finish_many('{n1,n2}', NULL)$$,
	$$VALUES ('n1', NULL::jsonb), ('n2', NULL)$$, 'finished without responses');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{n1,n2}')$$,
	$$VALUES ('n1', 'replayed', NULL::jsonb), ('n2', 'replayed', NULL)$$, 'replayed without');

-- ttl.

SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{t1,t2}', '90 min')$$,
	$$VALUES ('t1', 'claimed'), ('t2', 'claimed')$$, 'claims with a ttl');
SELECT lives_ok($$SELECT idem_finish_many('{t1,t2}')$$, 'finished');
SELECT results_eq(
	$$SELECT expires_at - finished_at FROM unnest('{t1,t2,n1}'::text[]) AS key, LATERAL idem_lookup(key)$$,
	$$VALUES (interval '90 min'), ('90 min'), ('1 day')$$, 'are kept for so long');
UPDATE idem_key SET expires_at = 'epoch' WHERE key = 't1';
SELECT results_eq($$SELECT key, outcome, attempt FROM idem_claim_many('{t1,t2}')$$,
	$$VALUES ('t1', 'claimed', 1), ('t2', 'replayed', 1)$$, 'what has expired is claimed anew');
SELECT results_eq($$SELECT * FROM idem_finish_many('{t1}', '{2}')$$,
	$$VALUES ('t1', '2'::jsonb)$$, 'and finished anew');
SELECT is(count(*), 1::bigint, 'in the same row') FROM idem_key WHERE key = 't1';

-- Every outcome in one call.

CREATE FUNCTION pg_temp.run_out(text) RETURNS void LANGUAGE sql AS
$$UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = $1$$;
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	$$SELECT idem_finish('o replayed', '"done"') FROM idem_claim('o replayed', request => '1')$$,
	$$SELECT * FROM idem_claim('o own')$$,
	$$SELECT * FROM idem_claim('o live', lease => '1 hour')$$,
	$$SELECT idem_finish('o mismatch', '"done"') FROM idem_claim('o mismatch', request => '1')$$,
	$$SELECT idem_fail('o later', '"not now"', '1 hour') FROM idem_claim('o later')$$,
	$$SELECT idem_fail('o again', '"again"', '0') FROM idem_claim('o again')$$,
	$$SELECT idem_fail('o failed', '"never"', final => true) FROM idem_claim('o failed')$$,
	$$SELECT pg_temp.run_out('o held') FROM idem_claim('o held', lease => '1 hour', takeover => 'hold')$$,
	$$SELECT pg_temp.run_out('o ran out') FROM idem_claim('o ran out', lease => '1 hour', takeover => 'fail')$$,
	$$SELECT pg_temp.run_out('o over') FROM idem_claim('o over', lease => '1 hour', takeover => 'rerun')$$]) AS command;
CREATE TEMPORARY TABLE expected (n int GENERATED ALWAYS AS IDENTITY, key text, request jsonb,
	outcome text, response jsonb, attempt int, known bool);
INSERT INTO expected (key, request, outcome, response, attempt, known) VALUES
	('o over', '2', 'claimed', NULL, 2, false),
	('o live', '2', 'in_progress', NULL, NULL, true),
	('o failed', NULL, 'failed', '"never"', 1, false),
	('o fresh', '2', 'claimed', NULL, 1, false),
	('o own', '2', 'in_progress', NULL, NULL, false),
	('o mismatch', '2', 'mismatch', NULL, NULL, false),
	('o held', '2', 'held', NULL, 1, false),
	('o fresh', '2', 'in_progress', NULL, NULL, false),
	('o replayed', '1', 'replayed', '"done"', 1, false),
	('o later', '2', 'retry_later', '"not now"', 1, true),
	('o ran out', '2', 'failed', NULL, 1, false),
	('o again', '2', 'claimed', NULL, 2, false);
SELECT results_eq(
	$$SELECT c.key, c.outcome, c.response, c.token, c.attempt, c.retry_after IS NOT NULL
	    FROM (SELECT array_agg(key ORDER BY n) AS keys, array_agg(request ORDER BY n) AS requests FROM expected) AS e,
			 LATERAL idem_claim_many(keys, requests => requests, wait => '0') AS c$$,
	$$SELECT key, outcome, response, NULL::int8, attempt, known FROM expected ORDER BY n$$,
	'every outcome in one call');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many('{o again,o fresh,o over,o own}', '{1,2,3,4}')$$,
	$$VALUES ('o again', '1'::jsonb), ('o fresh', '2'), ('o over', '3'), ('o own', '4')$$,
	'those that were claimed can be finished');
SELECT results_eq(
	$$SELECT key, outcome, response, attempt
	    FROM idem_claim_many('{o again,o fresh,o over,o own,o live,o failed,o held,o later,o ran out}', wait => '0')$$,
	$$VALUES ('o again', 'replayed', '1'::jsonb, 2), ('o fresh', 'replayed', '2', 1),
			 ('o over', 'replayed', '3', 2), ('o own', 'replayed', '4', 1),
			 ('o live', 'in_progress', NULL, NULL), ('o failed', 'failed', '"never"', 1),
			 ('o held', 'held', NULL, 1), ('o later', 'retry_later', '"not now"', 1),
			 ('o ran out', 'failed', NULL, 1)$$,
	'and replayed; the others are what they were');

-- Leases: a token each.

CREATE TEMPORARY TABLE lease AS
SELECT * FROM idem_claim_many('{l2,l1,l3}', '1 hour', '{2,1,3}', lease => '30 min', takeover => 'hold', holder => 'me');
SELECT results_eq($$SELECT key, outcome, response, attempt, retry_after FROM lease$$,
	$$VALUES ('l2', 'claimed', NULL::jsonb, 1, NULL::interval), ('l1', 'claimed', NULL, 1, NULL),
			 ('l3', 'claimed', NULL, 1, NULL)$$, 'leases');
SELECT is(count(DISTINCT token), 3::bigint, 'have a positive token each') FROM lease WHERE token > 0;
SELECT results_eq(
	$$SELECT key, state, takeover::text COLLATE "default", holder COLLATE "default", ttl, lease_until - claimed_at BETWEEN '29 min' AND '30 min', expires_at - lease_until
	    FROM idem_key WHERE key IN ('l1', 'l2', 'l3') ORDER BY key$$,
	$$SELECT key COLLATE "C", 'p'::"char", 'h', 'me', interval '1 hour', true, interval '1 hour'
	    FROM unnest('{l1,l2,l3}'::text[]) AS key$$, 'and are stored as they were asked for');
SELECT results_eq(
	$$SELECT key, outcome, token, retry_after BETWEEN '29 min' AND '30 min' FROM idem_claim_many('{l1,l2}', lease => '1 hour')$$,
	$$VALUES ('l1', 'in_progress', NULL::int8, true), ('l2', 'in_progress', NULL, true)$$,
	'others are told when to come again');
SELECT results_eq(
	$$SELECT f.* FROM (SELECT array_agg(key ORDER BY key DESC) AS keys, array_agg(token ORDER BY key DESC) AS tokens FROM lease) AS l,
		LATERAL idem_finish_many(keys, '{3,2,1}', tokens => tokens) AS f$$,
	$$VALUES ('l3', '3'::jsonb), ('l2', '2'), ('l1', '1')$$, 'finished with their tokens');
SELECT results_eq(
	$$SELECT f.* FROM (SELECT array_agg(key ORDER BY key) AS keys, array_agg(token ORDER BY key) AS tokens FROM lease) AS l,
		LATERAL idem_finish_many(keys, '{7,8,9}', tokens => tokens) AS f$$,
	$$VALUES ('l1', '1'::jsonb), ('l2', '2'), ('l3', '3')$$, 'once more: the responses that are stored');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{l1,l2,l3}')$$,
	$$VALUES ('l1', 'replayed', '1'::jsonb), ('l2', 'replayed', '2'), ('l3', 'replayed', '3')$$,
	'and replayed');

-- A lease is not finished by the token of another one, and then none of the set is.

CREATE TEMPORARY TABLE swapped AS
SELECT * FROM idem_claim_many('{s1,s2,s3}', lease => '30 min');
SELECT throws_ok(
	format('SELECT * FROM idem_finish_many(''{s1,s2,s3}'', tokens => %L)', ARRAY[a.token, c.token, b.token]),
	'ID003', NULL, 'two tokens swapped')
  FROM swapped AS a, swapped AS b, swapped AS c WHERE a.key = 's1' AND b.key = 's2' AND c.key = 's3';
SELECT results_eq($$SELECT state FROM unnest('{s1,s2,s3}'::text[]) AS key, LATERAL idem_lookup(key)$$,
	$$VALUES ('in_progress'), ('in_progress'), ('in_progress')$$, 'none is finished');

-- Together with claims of the transaction; and in the transaction of the lease
-- the token may be left out.

SELECT is(outcome, 'claimed', 'a claim') FROM idem_claim('s0');
SELECT results_eq(
	format('SELECT * FROM idem_finish_many(''{s2,s0,s3,s1}'', ''{2,0,3,1}'', tokens => %L)', ARRAY[NULL, NULL, NULL, token]),
	$$VALUES ('s2', '2'::jsonb), ('s0', '0'), ('s3', '3'), ('s1', '1')$$,
	'leases and a claim are finished together') FROM swapped WHERE key = 's1';
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{s0,s1,s2,s3}')$$,
	$$VALUES ('s0', 'replayed', '0'::jsonb), ('s1', 'replayed', '1'), ('s2', 'replayed', '2'), ('s3', 'replayed', '3')$$,
	'and replayed together');
CREATE TEMPORARY TABLE twice AS SELECT token FROM idem_claim_many('{twice}', lease => '1 hour');
SELECT results_eq(
	format('SELECT * FROM idem_finish_many(''{twice,twice}'', ''{1,2}'', tokens => %L)', ARRAY[token, token]),
	$$VALUES ('twice', '1'::jsonb), ('twice', '1')$$,
	'a lease that is finished twice in one set keeps the first response') FROM twice;

-- The same holder gets its leases again, with new tokens; but not within one set.

CREATE TEMPORARY TABLE held AS
SELECT * FROM idem_claim_many('{h1,h2,h1}', lease => '1 hour', holder => 'me') WITH ORDINALITY;
SELECT results_eq($$SELECT key, outcome, token IS NOT NULL, attempt, retry_after > '59 min' FROM held ORDER BY ordinality$$,
	$$VALUES ('h1', 'claimed', true, 1, NULL), ('h2', 'claimed', true, 1, NULL), ('h1', 'in_progress', false, NULL, true)$$,
	'a key that comes again is busy for its holder, too');
CREATE TEMPORARY TABLE held_again AS
SELECT * FROM idem_claim_many('{h2,h1,h3}', lease => '1 hour', holder => 'me');
SELECT results_eq($$SELECT key, outcome, attempt FROM held_again$$,
	$$VALUES ('h2', 'claimed', 1), ('h1', 'claimed', 1), ('h3', 'claimed', 1)$$,
	'in the next set it gets them, as the same attempt');
SELECT is_empty($$SELECT * FROM held JOIN held_again USING (token)$$, 'with new tokens');
SELECT throws_ok(format('SELECT * FROM idem_finish_many(ARRAY[%L], tokens => ARRAY[%s])', key, token), 'ID003', NULL,
	'the old token of ' || key || ' is void') FROM held WHERE token IS NOT NULL;
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{h1,h2}', lease => '1 hour', holder => 'you')$$,
	$$VALUES ('h1', 'in_progress'), ('h2', 'in_progress')$$, 'others do not get them');
SELECT is(count(*), 3::bigint, 'the new ones are good')
  FROM (SELECT array_agg(key) AS keys, array_agg(token) AS tokens FROM held_again) AS h,
	   LATERAL idem_finish_many(keys, tokens => tokens);

-- Savepoints.

SAVEPOINT s;
SELECT * FROM idem_claim_many('{p1,p2}') \g /dev/null
SELECT * FROM idem_finish_many('{p2}', '{"\"undone\""}') \g /dev/null
ROLLBACK TO s;
SELECT throws_ok($$SELECT * FROM idem_finish_many('{p1}')$$, 'ID001', NULL, 'a set that was rolled back is gone');
SELECT is_empty($$SELECT * FROM idem_lookup('p2')$$, 'with what was finished');
SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{p1,p2,p3}')$$,
	$$VALUES ('p1', 'claimed'), ('p2', 'claimed'), ('p3', 'claimed')$$, 'and can be claimed again');
SAVEPOINT s;
SELECT * FROM idem_finish_many('{p1,p2,p3}', '{7,8,9}') \g /dev/null
ROLLBACK TO s;
SELECT results_eq($$SELECT state, response FROM unnest('{p1,p2,p3}'::text[]) AS key, LATERAL idem_lookup(key)$$,
	$$VALUES ('in_progress', NULL::jsonb), ('in_progress', NULL), ('in_progress', NULL)$$,
	'a finish that was rolled back leaves the claims');
SAVEPOINT s;
SELECT * FROM idem_claim_many('{p4}') \g /dev/null
RELEASE s;
SELECT results_eq($$SELECT * FROM idem_finish_many('{p4,p3,p2,p1}', '{4,3,2,1}')$$,
	$$VALUES ('p4', '4'::jsonb), ('p3', '3'), ('p2', '2'), ('p1', '1')$$,
	'to be finished');

-- An error undoes the whole set, the claims that came before it as well.

SELECT throws_ok($$SELECT * FROM idem_claim_many(ARRAY['e1', 'e2', repeat('x', 513)])$$, '54000', NULL,
	'one key is too long');
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE key IN ('e1', 'e2')$$, 'and none is claimed');

-- Large responses.

SELECT results_eq($$SELECT key, outcome FROM idem_claim_many('{big 1,small,big 2}')$$,
	$$VALUES ('big 1', 'claimed'), ('small', 'claimed'), ('big 2', 'claimed')$$, 'claims');
CREATE TEMPORARY TABLE big AS
SELECT jsonb_agg(md5(i::text)) AS one, jsonb_agg(md5((-i)::text)) AS two FROM generate_series(1, 20000) AS i;
SELECT results_eq(
	$$SELECT f.* FROM big, LATERAL idem_finish_many('{big 1,small,big 2}', ARRAY[one, '1', two]) AS f$$,
	$$SELECT 'big 1', one FROM big UNION ALL SELECT 'small', '1' UNION ALL SELECT 'big 2', two FROM big$$,
	'large and small responses');
SELECT results_eq(
	$$SELECT key, outcome, response FROM idem_claim_many('{big 2,small,big 1}')$$,
	$$SELECT 'big 2', 'replayed', two FROM big UNION ALL SELECT 'small', 'replayed', '1'
		UNION ALL SELECT 'big 1', 'replayed', one FROM big$$,
	'are replayed');

-- A thousand keys: more than may be locked. The others are held by rows that are
-- written ahead.

CREATE FUNCTION pg_temp.locks() RETURNS bigint LANGUAGE sql AS
$$SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid()$$;
CREATE FUNCTION pg_temp.keys(prefix text, n int) RETURNS text[] LANGUAGE sql AS
$$SELECT array_agg(prefix || i ORDER BY md5(i::text)) FROM generate_series(1, n) AS i$$;
CREATE FUNCTION pg_temp.responses(keys text[]) RETURNS jsonb[] LANGUAGE sql AS
$$SELECT array_agg(jsonb_build_object('of', key) ORDER BY n) FROM unnest(keys) WITH ORDINALITY AS u(key, n)$$;
SELECT pg_temp.locks() AS before \gset

SELECT results_eq(
	$$SELECT key, outcome, attempt FROM idem_claim_many(pg_temp.keys('many ', 1000))$$,
	$$SELECT key, 'claimed'::text, 1 FROM unnest(pg_temp.keys('many ', 1000)) AS key$$,
	'a thousand keys');
SELECT cmp_ok(pg_temp.locks(), '<=', current_setting('max_locks_per_transaction')::bigint, 'no more locks than a transaction may have');
SELECT is(pg_temp.locks() - :before + count(*), 1000::bigint, 'a key without a lock has a row')
  FROM idem_key WHERE state = 'p' AND key LIKE 'many %';
SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many(pg_temp.keys('many ', 1001))$$,
	$$SELECT key, CASE key WHEN 'many 1001' THEN 'claimed' ELSE 'in_progress' END FROM unnest(pg_temp.keys('many ', 1001)) AS key$$,
	'claimed again: in progress, but for a new one');
SELECT is(count(*), 1001::bigint, 'all of them are in flight') FROM idem_in_flight WHERE key LIKE 'many %' AND state = 'in_progress';
SELECT throws_ok($$SELECT * FROM idem_finish_many(pg_temp.keys('many ', 1002))$$, 'ID001', NULL,
	'a set with a key more that is not claimed');
SELECT is(count(*), 1001::bigint, 'finishes none') FROM idem_in_flight WHERE key LIKE 'many %' AND state = 'in_progress';
SELECT lives_ok($$SELECT idem_release('many 1'), idem_release('many 1001')$$, 'two are released');
SELECT lives_ok($$SELECT * FROM idem_fail('many 2', '"no"', final => true)$$, 'one fails');
SELECT results_eq(
	$$SELECT * FROM idem_finish_many(array_remove(array_remove(pg_temp.keys('many ', 1000), 'many 1'), 'many 2'),
		pg_temp.responses(array_remove(array_remove(pg_temp.keys('many ', 1000), 'many 1'), 'many 2')))$$,
	$$SELECT key, jsonb_build_object('of', key) FROM unnest(pg_temp.keys('many ', 1000)) AS key WHERE key NOT IN ('many 1', 'many 2')$$,
	'and the others are finished');
SELECT results_eq(
	$$SELECT key, outcome, response FROM idem_claim_many(pg_temp.keys('many ', 1000), wait => '0')$$,
	$$SELECT key, CASE key WHEN 'many 1' THEN 'claimed' WHEN 'many 2' THEN 'failed' ELSE 'replayed' END,
			 CASE key WHEN 'many 1' THEN NULL WHEN 'many 2' THEN '"no"' ELSE jsonb_build_object('of', key) END
	    FROM unnest(pg_temp.keys('many ', 1000)) AS key$$,
	'each answers for itself');
SELECT is_empty($$SELECT key FROM idem_key WHERE key LIKE 'many %' AND state = 'p' AND key <> 'many 1'$$,
	'no row is left in progress');
SELECT lives_ok($$SELECT idem_finish('many 1')$$, '(finished)');
SELECT is(count(*), 1000::bigint, 'a thousand rows') FROM idem_key WHERE key LIKE 'many %';

SELECT pg_temp.locks() AS before \gset
SAVEPOINT s;
SELECT * FROM idem_claim_many(pg_temp.keys('undone ', 1000)) \g /dev/null
ROLLBACK TO s;
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE key LIKE 'undone %'$$, 'a thousand claims are rolled back');
SELECT is_empty($$SELECT * FROM idem_key WHERE key LIKE 'undone %'$$, 'rows and all');
SELECT is(pg_temp.locks(), :before::bigint, 'locks and all');
SELECT results_eq(
	$$SELECT key, outcome FROM idem_claim_many(pg_temp.keys('undone ', 1000), wait => '0')$$,
	$$SELECT key, 'claimed'::text FROM unnest(pg_temp.keys('undone ', 1000)) AS key$$, 'and can be made again');
SAVEPOINT s;
SELECT * FROM idem_finish_many(pg_temp.keys('undone ', 1000), pg_temp.responses(pg_temp.keys('undone ', 1000))) \g /dev/null
ROLLBACK TO s;
SELECT is(count(*), 1000::bigint, 'a finish that is rolled back leaves them')
  FROM idem_in_flight WHERE key LIKE 'undone %' AND state = 'in_progress';
SELECT results_eq(
	$$SELECT * FROM idem_finish_many(pg_temp.keys('undone ', 1000), pg_temp.responses(pg_temp.keys('undone ', 1000)))$$,
	$$SELECT key, jsonb_build_object('of', key) FROM unnest(pg_temp.keys('undone ', 1000)) AS key$$, 'to be finished');

-- As many leases need no locks at all.

SELECT pg_temp.locks() AS before \gset
CREATE TEMPORARY TABLE leases AS
SELECT * FROM idem_claim_many(pg_temp.keys('lease ', 2500), lease => '1 hour') WITH ORDINALITY;
SELECT results_eq($$SELECT key, outcome FROM leases ORDER BY ordinality$$,
	$$SELECT key, 'claimed'::text FROM unnest(pg_temp.keys('lease ', 2500)) AS key$$, '2500 leases');
SELECT is(count(DISTINCT token), 2500::bigint, 'have 2500 tokens') FROM leases;
SELECT is(pg_temp.locks(), :before::bigint, 'and no locks');
SELECT results_eq(
	$$SELECT f.* FROM (SELECT array_agg(key ORDER BY ordinality) AS keys, array_agg(token ORDER BY ordinality) AS tokens FROM leases) AS l,
		LATERAL idem_finish_many(keys, pg_temp.responses(keys), tokens => tokens) AS f$$,
	$$SELECT key, jsonb_build_object('of', key) FROM unnest(pg_temp.keys('lease ', 2500)) AS key$$,
	'all are finished');

-- And a set that is finished in several parts.

SELECT is(count(*), 3500::bigint, '3500 claims') FROM idem_claim_many(pg_temp.keys('parts ', 3500)) WHERE outcome = 'claimed';
SELECT throws_ok($$SELECT * FROM idem_finish_many(pg_temp.keys('parts ', 3500) || 'parts 3500'::text)$$, 'ID002', NULL,
	'one is given twice');
SELECT is(count(*), 3500::bigint, 'none is finished') FROM idem_in_flight WHERE key LIKE 'parts %' AND state = 'in_progress';
SELECT results_eq(
	$$SELECT * FROM idem_finish_many(pg_temp.keys('parts ', 3500), pg_temp.responses(pg_temp.keys('parts ', 3500)))$$,
	$$SELECT key, jsonb_build_object('of', key) FROM unnest(pg_temp.keys('parts ', 3500)) AS key$$,
	'all are finished');
SELECT results_eq(
	$$SELECT key, outcome, response FROM idem_claim_many(pg_temp.keys('parts ', 3500))$$,
	$$SELECT key, 'replayed'::text, jsonb_build_object('of', key) FROM unnest(pg_temp.keys('parts ', 3500)) AS key$$,
	'all are replayed');
SELECT is_empty($$SELECT key FROM idem_in_flight WHERE state = 'in_progress' AND pid IS NOT NULL$$,
	'nothing is left to be finished');
SELECT is(pg_temp.locks() <= current_setting('max_locks_per_transaction')::bigint, true,
	'and there never were too many locks');

SELECT * FROM finish();
ROLLBACK;
