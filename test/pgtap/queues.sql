-- What is put into a queue: idem_enqueue, idem_enqueue_many, idem_receive; in
-- which order it comes out; and whose queue is whose. What becomes of it then is
-- in deliveries.sql.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE idem_eve;
CREATE ROLE idem_crew;
CREATE ROLE idem_hand IN ROLE idem_crew;
CREATE ROLE idem_watch IN ROLE pg_monitor;

SELECT plan(264);

-- A message.

SELECT is(idem_enqueue('q', '{"n": 1}'), 1::bigint, 'the first message');
SELECT is(idem_enqueue('q', '{"n": 1}'), 2::bigint, 'the same again is another one');
SELECT is(idem_enqueue('other', '{"n": 1}'), 3::bigint, 'ids are those of all queues');
SELECT results_eq(
	$$SELECT id, owner, queue COLLATE "default", state, priority, attempt, due_at = enqueued_at, lease_until,
			 message_group COLLATE "default", key COLLATE "default", headers, payload, history
	    FROM idem_messages WHERE queue = 'q' ORDER BY id$$,
	$$SELECT id, current_user::regrole, 'q', 'ready', 0::smallint, 0, true, NULL::timestamptz,
			 NULL, NULL, NULL::jsonb, '{"n": 1}'::jsonb, NULL::jsonb
	    FROM unnest('{1,2}'::bigint[]) AS id$$,
	'as the view shows it');
SELECT ok(bool_and(enqueued_at BETWEEN now() AND clock_timestamp()), 'with the time of the call')
  FROM idem_messages;
SELECT is_empty('SELECT * FROM idem_key', 'without a key nothing is remembered');
SELECT is(idem_enqueue('q', payload, headers => headers), id::bigint, concat('payload ', payload))
  FROM (VALUES (4, '"text"'::jsonb, NULL::jsonb), (5, 'null', 'null'), (6, '[]', '[1, 2]'),
			   (7, '{"a": {"b": [1.50, null]}}', '{"trace": "4bf9"}'), (8, '0', '{}')) AS t(id, payload, headers);
SELECT results_eq(
	$$SELECT id, payload, headers FROM idem_dequeue('q', 10) WHERE id > 3$$,
	$$VALUES (4::bigint, '"text"'::jsonb, NULL::jsonb), (5, 'null', 'null'), (6, '[]', '[1, 2]'),
			 (7, '{"a": {"b": [1.50, null]}}', '{"trace": "4bf9"}'), (8, '0', '{}')$$,
	'payloads and headers come out as they went in');
SELECT is(idem_enqueue(queue, '1'), idem_enqueue(queue, '2') - 1, format('a queue of %s bytes', octet_length(queue)))
  FROM unnest(ARRAY['x', repeat('q', 63), repeat(U&'\00e9', 31) || 'x', ' ', E'\n']) AS queue;
SELECT results_eq(
	format('SELECT payload FROM idem_dequeue(%L, 2)', queue), $$VALUES ('1'::jsonb), ('2')$$,
	format('taken from a queue of %s bytes', octet_length(queue)))
  FROM unnest(ARRAY['x', repeat('q', 63), repeat(U&'\00e9', 31) || 'x', ' ', E'\n']) AS queue;
SELECT is_empty($$SELECT * FROM idem_dequeue('X')$$, 'names are taken as they are');

-- Under a key: once within its ttl, and as often as one likes after that.

SELECT is(idem_enqueue('keyed', '1', 'k'), idem_enqueue('keyed', '2', 'k'), 'the same key, the same message');
SELECT set_eq($$SELECT key, payload FROM idem_messages WHERE queue = 'keyed'$$,
	$$VALUES ('k', '1'::jsonb)$$, 'which is the first one');
SELECT results_eq(
	$$SELECT l.state, l.response = to_jsonb(m.id), expires_at - finished_at
	    FROM idem_lookup('k', 'queue:keyed') AS l, idem_messages AS m WHERE m.key = 'k'$$,
	$$VALUES ('finished', true, interval '24 hours')$$,
	'the key is like any other: finished with the id, and kept for default_ttl');
SELECT isnt(idem_enqueue('keyed 2', '3', 'k'), idem_enqueue('keyed', '2', 'k'), 'another queue, another key');
SELECT isnt(idem_enqueue('keyed', '3', 'K'), idem_enqueue('keyed', '2', 'k'), 'keys are taken as they are');
SELECT isnt(idem_enqueue('keyed', '4', 'ttl', ttl => '2 days'), NULL, 'with a ttl');
SELECT is(expires_at - finished_at, interval '2 days', 'it is kept for so long')
  FROM idem_lookup('ttl', 'queue:keyed');
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'acknowledged: ' || key)
  FROM idem_dequeue('keyed', 10);
SELECT ok(response = to_jsonb(idem_enqueue('keyed', '5', 'k')),
	'the key outlives its message: nothing is enqueued')
  FROM idem_lookup('k', 'queue:keyed');
SELECT is_empty($$SELECT * FROM idem_messages WHERE queue = 'keyed'$$, 'and nothing is there');
SELECT ok(idem_forget('k', 'queue:keyed'), 'the key is forgotten');
SELECT ok(idem_enqueue('keyed', '6', 'k') = id, 'and a message is enqueued under it')
  FROM (SELECT last_value + 1 FROM idem_message_id) AS s(id);
UPDATE idem_key SET expires_at = clock_timestamp() - interval '1 s' WHERE key = 'k' AND scope = 'queue:keyed';
SELECT ok(idem_enqueue('keyed', '7', 'k') = id, 'once more, since the key has expired')
  FROM (SELECT last_value + 1 FROM idem_message_id) AS s(id);
SELECT results_eq($$SELECT key, payload FROM idem_dequeue('keyed', 10)$$,
	$$VALUES ('k', '6'::jsonb), ('k', '7')$$, 'two messages, one key');
SELECT ok(response = to_jsonb(max(m.id)), 'which is that of the latest')
  FROM idem_lookup('k', 'queue:keyed'), idem_messages AS m WHERE m.key = 'k' AND queue = 'keyed' GROUP BY response;
SELECT is(idem_expire(), 0::bigint, 'what has been replaced does not expire');
SELECT is(idem_enqueue('keyed', '8', key), idem_enqueue('keyed', '9', key), format('a key of %s bytes', octet_length(key)))
  FROM unnest(ARRAY['x', repeat('k', 512), '550e8400-e29b-41d4-a716-446655440000']) AS key;

-- Somebody else's record in the scope of a queue is no message.

SELECT is(idem_finish('mine', '"done"', 'queue:keyed'), '"done"', 'a key of one''s own')
  FROM idem_claim('mine', scope => 'queue:keyed');
SELECT throws_ok($$SELECT idem_enqueue('keyed', '1', 'mine')$$, 'ID002',
	'key "mine" is used for something else than a message', 'cannot be that of a message');
SELECT is(idem_finish('null', NULL, 'queue:keyed'), NULL, 'one without a response')
  FROM idem_claim('null', scope => 'queue:keyed');
SELECT is(idem_finish('array', '[1]', 'queue:keyed'), '[1]', 'one with an array')
  FROM idem_claim('array', scope => 'queue:keyed');
SELECT is(outcome, 'claimed', 'one that is pending') FROM idem_claim('pending', scope => 'queue:keyed');
SELECT is(outcome, 'claimed', 'one on lease') FROM idem_claim('leased', scope => 'queue:keyed', lease => '1 hour');
SELECT is(outcome, 'claimed', 'one that is to fail') FROM idem_claim('failed', scope => 'queue:keyed');
SELECT is(outcome, 'failed', 'and does') FROM idem_fail('failed', final => true, scope => 'queue:keyed');
SELECT throws_ok(format(command, key), 'ID002', format('key "%s" is used for something else than a message', key),
	format('%s: %s', key, split_part(command, '(', 1)))
  FROM unnest('{"null",array,pending,leased,failed}'::text[]) AS key,
	   unnest(ARRAY[
	'SELECT idem_enqueue(''keyed'', ''1'', %L)',
	'SELECT * FROM idem_enqueue_many(''keyed'', ''{1,2,3}'', ARRAY[''fresh'', %L, NULL])']) AS command;
SELECT is_empty($$SELECT * FROM idem_lookup('fresh', 'queue:keyed')$$, 'and nothing of the batch remains');
SELECT lives_ok($$SELECT idem_release('pending', 'queue:keyed')$$, '(released)');
SELECT ok(idem_enqueue('keyed', '1', 'pending') > 0, 'a key that was released is free');
SELECT is(outcome, 'replayed', 'and for a claim it is finished') FROM idem_claim('pending', scope => 'queue:keyed');

-- Many at once.

SELECT results_eq(
	$$SELECT e.id - min(e.id) OVER (), e.duplicate
	    FROM idem_enqueue_many('many', '{1,2,3,4}') WITH ORDINALITY AS e(id, duplicate, n) ORDER BY n$$,
	$$VALUES (0::bigint, false), (1, false), (2, false), (3, false)$$, 'without keys: ids in the order given');
SELECT results_eq($$SELECT payload FROM idem_dequeue('many', 10)$$,
	$$VALUES ('1'::jsonb), ('2'), ('3'), ('4')$$, 'and they are taken in that order');
CREATE TEMPORARY TABLE answer AS
SELECT * FROM idem_enqueue_many('many keys', '{0,1,2,3,4,5,6}', '{d,a,NULL,c,a,NULL,d}') WITH ORDINALITY AS e(id, duplicate, n);
SELECT results_eq('SELECT duplicate FROM answer ORDER BY n',
	$$VALUES (false), (false), (false), (false), (true), (false), (true)$$,
	'with keys, some of them twice');
SELECT results_eq(
	$$SELECT a.n, b.n FROM answer AS a JOIN answer AS b ON a.id = b.id AND a.n < b.n ORDER BY 1$$,
	$$VALUES (1::bigint, 7::bigint), (2, 5)$$, 'which get the id of the first of them');
SELECT results_eq($$SELECT key COLLATE "default", payload FROM idem_messages WHERE queue = 'many keys' ORDER BY id$$,
	$$VALUES ('d', '0'::jsonb), ('a', '1'), (NULL, '2'), ('c', '3'), (NULL, '5')$$,
	'and are enqueued once, in the order given');
SELECT results_eq(
	$$SELECT e.id = a.id, e.duplicate
	    FROM idem_enqueue_many('many keys', '{7,8,9}', '{e,c,a}') WITH ORDINALITY AS e(id, duplicate, n)
	    LEFT JOIN answer AS a ON a.n = CASE e.n WHEN 2 THEN 4 WHEN 3 THEN 2 END ORDER BY e.n$$,
	$$VALUES (NULL, false), (true, true), (true, true)$$, 'again: what is there has its id');
SELECT ok(bool_and(response = to_jsonb(id)), 'so has each key')
  FROM answer JOIN idem_messages USING (id), LATERAL idem_lookup(key, 'queue:many keys')
 WHERE key IS NOT NULL;
SELECT is(id, idem_enqueue('many keys', '1', 'a'), 'one by one it is the same') FROM answer WHERE n = 2;
SELECT is_empty(command, command) FROM unnest(ARRAY[
	'SELECT * FROM idem_enqueue_many(''many'', ''{}'')',
	'SELECT * FROM idem_enqueue_many(''many'', NULL)',
	'SELECT * FROM idem_enqueue_many(''many'', ''{}'', ''{}'', message_groups => ''{}'', headers => ''{}'')']) AS command;
SELECT lives_ok(
	$$SELECT * FROM idem_enqueue_many('terms', '{1,2}', keys => '{a,NULL}', delay => '1 hour', max_attempts => 7,
		priority => -1, message_groups => '{g,NULL}', headers => '{NULL,3}', ttl => '2 hours')$$,
	'many on terms');
SELECT results_eq(
	$$SELECT payload, key COLLATE "default", date_trunc('second', due_at - enqueued_at), max_attempts, priority, message_group COLLATE "default", headers
	    FROM idem_message WHERE queue = 'terms' ORDER BY id$$,
	$$VALUES ('1'::jsonb, 'a', interval '1 hour', 7, (-1)::smallint, 'g', NULL::jsonb),
			 ('2', NULL, '1 hour', 7, (-1)::smallint, NULL, '3')$$, 'which are those of each of them');
SELECT is(expires_at - finished_at, interval '2 hours', 'and of the key') FROM idem_lookup('a', 'queue:terms');
SELECT is(count(*) FILTER (WHERE NOT duplicate), 3000::bigint, 'thousands')
  FROM idem_enqueue_many('thousands', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 6000) AS n),
						 (SELECT array_agg('k' || n % 3000) FROM generate_series(1, 6000) AS n));
SELECT is((SELECT string_agg(payload::text, ',' ORDER BY n) FROM (SELECT payload, row_number() OVER () AS n FROM idem_dequeue('thousands', 10000)) AS d),
	(SELECT string_agg(n::text, ',' ORDER BY n) FROM generate_series(1, 3000) AS n), 'in order');

-- What a source sends.

CREATE TEMPORARY TABLE received AS SELECT * FROM idem_receive('stripe', 'evt_1', '{"type": "paid"}', headers => '{"v": 1}');
SELECT results_eq('SELECT id > 0, duplicate FROM received', $$VALUES (true, false)$$, 'received');
SELECT results_eq(
	$$SELECT r.id = f.id, r.duplicate FROM received AS f, idem_receive('stripe', 'evt_1', '{"type": "again"}') AS r$$,
	$$VALUES (true, true)$$, 'received again: it says so');
SELECT set_eq($$SELECT queue, key, payload, headers FROM idem_messages WHERE id = (SELECT id FROM received)$$,
	$$VALUES ('stripe', 'stripe/evt_1', '{"type": "paid"}'::jsonb, '{"v": 1}'::jsonb)$$,
	'in the queue of the source''s name, under a key of both names');
SELECT is(r.id, idem_enqueue('stripe', '0', 'stripe/evt_1'), 'which is that of idem_enqueue') FROM received AS r;
SELECT results_eq($$SELECT duplicate FROM idem_receive('stripe', 'evt_2', '0')$$, $$VALUES (false)$$, 'another message');
SELECT results_eq($$SELECT duplicate FROM idem_receive('paypal', 'evt_1', '0')$$, $$VALUES (false)$$, 'another source');
SELECT results_eq($$SELECT duplicate FROM idem_receive('stripe', 'evt_1', '0', queue => 'payments')$$,
	$$VALUES (false)$$, 'another queue');
SELECT results_eq($$SELECT duplicate FROM idem_receive('paypal', 'evt_1', '0', queue => 'payments')$$,
	$$VALUES (false)$$, 'two sources in one queue do not meet');
SELECT results_eq($$SELECT duplicate FROM idem_receive('s', 'a/b', '0'), idem_receive('s', 'a', '0') AS x(id, d)$$,
	$$VALUES (false)$$, 'a slash in the name of a message');
SELECT results_eq($$SELECT duplicate FROM idem_receive(repeat('s', 63), repeat('m', 448), '0')$$,
	$$VALUES (false)$$, 'names of 63 and 448 bytes');
SELECT results_eq($$SELECT duplicate FROM idem_receive('z', repeat('m', 510), '0', ttl => '1 min', message_group => 'g')$$,
	$$VALUES (false)$$, 'of 1 and 510');
SELECT set_eq($$SELECT m.message_group, l.expires_at - l.finished_at
		FROM idem_messages AS m, LATERAL idem_lookup(key, 'queue:z') AS l WHERE queue = 'z'$$,
	$$VALUES ('g', interval '1 min')$$, 'with a group, and a ttl');
SELECT results_eq($$SELECT payload FROM idem_dequeue('payments', 10)$$, $$VALUES ('0'::jsonb), ('0')$$, 'and taken');

-- Order: priority, then the time when they are due, then that of the enqueue.

SELECT lives_ok(format('SELECT idem_enqueue(''order'', %L, priority => %s)', priority, priority), 'priority ' || priority)
  FROM unnest('{5,0,-1,32767,-32768,5,0}'::int[]) AS priority;
SELECT results_eq($$SELECT payload FROM idem_dequeue('order', 3, '1 hour')$$,
	$$VALUES ('-32768'::jsonb), ('-1'), ('0')$$, 'lower numbers first');
SELECT lives_ok($$SELECT idem_enqueue('order', '"late"', priority => -5)$$, 'what comes late');
SELECT results_eq($$SELECT payload FROM idem_dequeue('order', 10)$$,
	$$VALUES ('"late"'::jsonb), ('0'), ('5'), ('5'), ('32767')$$, 'and is urgent goes first');
SELECT lives_ok($$SELECT idem_enqueue_many('equal', ARRAY(SELECT to_jsonb(n) FROM generate_series(1, 50) AS n))$$, 'many at one time');
SELECT is(count(DISTINCT due_at), 50::bigint, 'no two are due at the same moment') FROM idem_messages WHERE queue = 'equal';
UPDATE idem_message SET due_at = enqueued_at WHERE queue = 'equal';
SELECT results_eq($$SELECT payload FROM generate_series(1, 5) AS i, LATERAL idem_dequeue('equal', 10 + 0 * i, '1 hour')$$,
	$$SELECT to_jsonb(n) FROM generate_series(1, 50) AS n$$, 'those that are, are taken by their ids');

-- Delay.

SELECT lives_ok($$SELECT idem_enqueue('delayed', to_jsonb(delay), delay => delay) FROM unnest('{1 month,0,1 hour}'::interval[]) AS delay$$,
	'delays');
SELECT results_eq($$SELECT payload FROM idem_dequeue('delayed', 10, '1 hour')$$, $$VALUES ('"00:00:00"'::jsonb)$$, 'only what is due is taken');
SELECT results_eq(
	$$SELECT payload, state, due_at = enqueued_at + (payload #>> '{}')::interval FROM idem_messages WHERE queue = 'delayed' ORDER BY due_at$$,
	$$VALUES ('"00:00:00"'::jsonb, 'in_flight', true), ('"01:00:00"', 'delayed', true), ('"1 mon"', 'delayed', true)$$,
	'the rest is due later, by the calendar');
UPDATE idem_message SET due_at = clock_timestamp() WHERE queue = 'delayed' AND payload = '"1 mon"';
UPDATE idem_message SET due_at = clock_timestamp() - interval '1 s' WHERE queue = 'delayed' AND payload = '"01:00:00"';
SELECT results_eq($$SELECT payload FROM idem_dequeue('delayed', 10, '1 hour')$$,
	$$VALUES ('"01:00:00"'::jsonb), ('"1 mon"')$$, 'and is taken then, in order');
SELECT lives_ok($$SELECT idem_enqueue('delayed', '"urgent"', delay => '1 hour', priority => -1), idem_enqueue('delayed', '"now"')$$,
	'one that is urgent, but not due');
SELECT results_eq($$SELECT payload FROM idem_dequeue('delayed', 10, '1 hour')$$, $$VALUES ('"now"'::jsonb)$$, 'does not hold up the others');

-- Attempts: the message says how many, or the queue does.

SELECT lives_ok($$SELECT idem_enqueue('attempts', '1', max_attempts => n) FROM unnest('{0,1,2147483647,NULL}'::int[]) AS n$$, 'limits');
SELECT results_eq($$SELECT max_attempts FROM idem_message WHERE queue = 'attempts' ORDER BY id$$,
	$$VALUES (0), (1), (2147483647), (-1)$$, 'stored with the message');

-- Paused.

SELECT lives_ok($$SELECT idem_configure_queue('paused', paused => true)$$, 'a queue is paused before it is used');
SELECT ok(idem_enqueue('paused', '1') > 0, 'and takes messages');
SELECT is_empty($$SELECT * FROM idem_dequeue('paused')$$, 'but gives none away');
SELECT results_eq($$SELECT ready, paused FROM idem_queues WHERE queue = 'paused'$$,
	$$VALUES (1::bigint, true)$$, 'as the view shows');
SELECT lives_ok($$SELECT idem_configure_queue('paused')$$, 'until it is configured otherwise');
SELECT results_eq($$SELECT payload FROM idem_dequeue('paused')$$, $$VALUES ('1'::jsonb)$$, 'then it does');
SELECT lives_ok(format('SELECT idem_configure_queue(''paused'', paused => true), idem_ack(%s, %s)', id, token),
	'what was taken before can be acknowledged in a queue that is paused')
  FROM idem_message WHERE queue = 'paused';
SELECT lives_ok($$SELECT idem_configure_queue('only', max_attempts => 3), idem_configure_queue('only', jitter => 'none')$$,
	'each configuration is a whole');
SELECT set_eq($$SELECT owner, max_attempts, jitter, paused, shared_with FROM idem_queue WHERE queue = 'only'$$,
	$$VALUES (current_user::regrole, NULL::int, 'none', false, NULL::regrole[])$$, 'that replaces the one before');
SELECT results_eq($$SELECT ready, in_flight, delayed, retrying, dead, oldest FROM idem_queues WHERE queue = 'only'$$,
	$$VALUES (0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, NULL::interval)$$, 'a queue without messages is listed if it is configured');
SELECT lives_ok(
	$$SELECT idem_configure_queue('all', 3, '2 s', '1 min', 'equal', '1 day', '{idem_ann,idem_crew}', true)$$, 'all of it');
SELECT set_eq($$SELECT * FROM idem_queue WHERE queue = 'all'$$,
	$$VALUES (current_user::regrole, 'all', true, 3, interval '2 s', interval '1 min', 'equal',
			  interval '1 day', '{idem_ann,idem_crew}'::regrole[])$$, 'is stored');
SELECT lives_ok($$SELECT idem_configure_queue('all')$$, '(and taken back)');

-- Savepoints and rollbacks.

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
SELECT lives_ok(format('SELECT pg_temp.undone(%L)', command), 'undone: ' || command)
  FROM unnest(ARRAY[
	'SELECT idem_enqueue(''undo'', ''1'', ''k'')',
	'SELECT * FROM idem_enqueue_many(''undo'', ''{1,2}'', ''{k,l}'', message_groups => ''{g,g}'')',
	'SELECT * FROM idem_receive(''undo'', ''1'', ''1'')',
	'SELECT idem_configure_queue(''undo'', paused => true)']) AS command;
SELECT is_empty($$SELECT * FROM idem_queues WHERE queue = 'undo'$$, 'nothing is left');
SELECT is_empty($$SELECT * FROM idem_key WHERE scope = 'queue:undo'$$, 'no keys either');
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE scope LIKE 'queue:%' AND state = 'in_progress' AND key <> 'leased'$$, 'nor claims');
SELECT ok(idem_enqueue('undo', '2', 'k') > 0, 'the key is free');
SELECT results_eq($$SELECT payload FROM idem_dequeue('undo', 10)$$, $$VALUES ('2'::jsonb)$$, 'the queue is not paused');
SELECT lives_ok($$SELECT pg_temp.undone('SELECT idem_forget(''k'', ''queue:undo''), idem_enqueue(''undo'', ''3'', ''k'')')$$,
	'a key is forgotten, and used anew, and all that undone');
SELECT is(payload, '2', 'it is that of the first message still')
  FROM idem_messages WHERE id = idem_enqueue('undo', '4', 'k');
SAVEPOINT s;
SELECT is(count(*), 2::bigint, 'enqueued after a savepoint') FROM idem_enqueue_many('undo 2', '{1,2}', '{a,b}');
SELECT is(count(*), 2::bigint, 'and taken') FROM idem_dequeue('undo 2', 10);
SAVEPOINT t;
SELECT ok(idem_enqueue('undo 2', '3', 'c') > 0, 'after another one');
RELEASE t;
SELECT results_eq($$SELECT duplicate FROM idem_enqueue_many('undo 2', '{4,5,6}', '{c,a,d}')$$,
	$$VALUES (true), (true), (false)$$, 'released, it is known');
ROLLBACK TO s;
SELECT is_empty($$SELECT * FROM idem_messages WHERE queue = 'undo 2'$$, 'rolled back, all is gone');
SELECT results_eq($$SELECT duplicate FROM idem_enqueue_many('undo 2', '{4,5,6}', '{c,a,d}')$$,
	$$VALUES (false), (false), (false)$$, 'and the keys are free');
SELECT results_eq($$SELECT payload FROM idem_dequeue('undo 2', 10)$$, $$VALUES ('4'::jsonb), ('5'), ('6')$$, 'for others');

-- Whose is whose: the same name, two owners.

SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT ok(idem_enqueue('mail', '"of ann"', 'k', headers => '"of ann"') > 0, 'ann has a queue');
SELECT ok(idem_enqueue('mail', '"of ann, 2"') > 0, 'with two messages');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is_empty('SELECT * FROM idem_messages', 'bob sees nothing of it');
SELECT is_empty('SELECT * FROM idem_queues', 'nor the queue');
SELECT is_empty($$SELECT * FROM idem_dequeue('mail')$$, 'that of his is empty');
SELECT ok(idem_enqueue('mail', '"of bob"', 'k') > 0, 'he enqueues under the same key');
SELECT results_eq($$SELECT owner::text, payload FROM idem_messages$$,
	$$VALUES ('idem_bob', '"of bob"'::jsonb)$$, 'in a queue of his own');
SELECT results_eq($$SELECT payload FROM idem_dequeue('mail', 10, '1 hour')$$, $$VALUES ('"of bob"'::jsonb)$$, 'from which he takes his own');
SELECT is(idem_purge('mail'), 0::bigint, 'he purges his');
SELECT is(idem_purge('mail', true), 0::bigint, 'and its dead letters');
SELECT is(idem_redrive('mail'), 0::bigint, 'and redrives his');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT owner::text, ready FROM idem_queues$$, $$VALUES ('idem_ann', 2::bigint)$$, 'ann has hers');
SELECT isnt_empty($$SELECT * FROM idem_lookup('k', 'queue:mail')$$, 'and her key');
SELECT is(idem_enqueue('mail', '"again"', 'k'), id, 'which is that of her message') FROM idem_messages WHERE key = 'k';

-- Another role can do nothing, even if it knows everything, and what it is told
-- does not depend on whether there is such a message or queue.

RESET SESSION AUTHORIZATION;
CREATE TABLE known (what text PRIMARY KEY, id int8, token int8);
GRANT SELECT, INSERT ON known TO PUBLIC;
SET LOCAL SESSION AUTHORIZATION idem_ann;
INSERT INTO known SELECT 'in flight', id, token FROM idem_dequeue('mail', lease => '1 hour');
INSERT INTO known SELECT 'ready', id, 0 FROM idem_messages WHERE state = 'ready';
INSERT INTO known SELECT 'dead', d.id, d.token FROM idem_enqueue('mail 2', '"dead"') AS e, idem_dequeue('mail 2') AS d;
SELECT is(idem_nack(id, token, final => true), NULL, '(a dead letter)') FROM known WHERE what = 'dead';
INSERT INTO known VALUES ('none', 999999, 7);
CREATE FUNCTION pg_temp.refusal(command text) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws('|', SQLSTATE, SQLERRM, NULLIF(detail, ''), hint);
END
$$;
SET LOCAL SESSION AUTHORIZATION idem_bob;
CREATE TEMPORARY TABLE told AS
SELECT what, command, replace(pg_temp.refusal(format(command, id, token)), id::text, '…') AS text
  FROM known, unnest(ARRAY[
	'SELECT idem_ack(%s, %s)',
	'SELECT idem_nack(%s, %s)',
	'SELECT idem_nack(%s, %s, final => true)',
	'SELECT idem_extend(%s, %s)',
	'SELECT idem_ack_many(''{%s}'', ''{%s}'')',
	'SELECT idem_nack_many(''{%s}'', ''{%s}'')',
	'SELECT idem_extend_many(''{%s}'', ''{%s}'')']) AS command;
SELECT is(count(*), 28::bigint, 'bob tries') FROM told;
SELECT ok(bool_and(text LIKE 'ID003|message … is not the caller''s any more|%'), 'in vain: ' || command)
  FROM told GROUP BY command;
SELECT is(count(DISTINCT text), 1::bigint, 'and is told the same each time') FROM told;
SELECT is(idem_redrive('mail 2', ARRAY(SELECT id FROM known)), 0::bigint, 'he cannot redrive by ids');
SELECT is(replace(pg_temp.refusal(format(command, queue)), queue, '…'),
	'42501|permission denied for queue "…" of role "idem_ann"|Its owner can share it: see idem_configure_queue.',
	format(command, queue))
  FROM unnest('{mail,mail 2,no such queue}'::text[]) AS queue, unnest(ARRAY[
	'SELECT idem_enqueue(%L, ''1'', owner => ''idem_ann'')',
	'SELECT idem_enqueue(%L, ''1'', ''k'', owner => ''idem_ann'')',
	'SELECT * FROM idem_enqueue_many(%L, ''{1}'', owner => ''idem_ann'')',
	'SELECT * FROM idem_receive(''s'', ''1'', ''1'', %L, owner => ''idem_ann'')',
	'SELECT * FROM idem_dequeue(%L, owner => ''idem_ann'')',
	'SELECT idem_redrive(%L, owner => ''idem_ann'')',
	'SELECT idem_purge(%L, owner => ''idem_ann'')',
	'SELECT idem_purge(%L, true, owner => ''idem_ann'')']) AS command;
SELECT is(idem_forget('k', 'queue:mail'), true, 'his own key he can forget');
SELECT lives_ok($$SELECT idem_configure_queue('mail', paused => true)$$, 'and pause his queue');
DROP TABLE told;
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT queue COLLATE "default", ready, in_flight, dead, paused FROM idem_queues ORDER BY queue$$,
	$$VALUES ('mail', 1::bigint, 1::bigint, 0::bigint, false), ('mail 2', 0, 0, 1, false)$$, 'ann still has all of hers');
SELECT lives_ok(format('SELECT idem_extend(%s, %s)', id, token), 'and her token is good') FROM known WHERE what = 'in flight';

-- Shared: who is named may use it as its owner does, until he is not named any more.

SELECT lives_ok($$SELECT idem_configure_queue('mail', backoff_base => '1 hour', jitter => 'none', shared_with => '{idem_bob,idem_crew}')$$,
	'ann shares a queue');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT set_eq($$SELECT owner::text, queue, ready, in_flight FROM idem_queues WHERE owner = 'idem_ann'::regrole$$,
	$$VALUES ('idem_ann', 'mail', 1::bigint, 1::bigint)$$, 'bob sees it, and no other of hers');
SELECT results_eq($$SELECT payload, headers FROM idem_messages WHERE owner = 'idem_ann'::regrole ORDER BY id$$,
	$$VALUES ('"of ann"'::jsonb, '"of ann"'::jsonb), ('"of ann, 2"', NULL)$$, 'and what is in it');
SELECT is_empty($$SELECT * FROM idem_dequeue('mail')$$, 'without an owner it is his own that he means');
SELECT ok(idem_enqueue('mail', '"of bob"', 'b', owner => 'idem_ann') > 0, 'he puts a message into it');
SELECT is(idem_enqueue('mail', '"of bob"', 'k', owner => 'idem_ann'), id, 'the keys are those of the owner')
  FROM known WHERE what = 'in flight';
SELECT is_empty($$SELECT * FROM idem_lookup('b', 'queue:mail')$$, 'so he does not see his');
SELECT results_eq($$SELECT duplicate FROM idem_enqueue_many('mail', '{1,2}', '{b,k}', owner => 'idem_ann')$$,
	$$VALUES (true), (true)$$, 'but is told');
SELECT results_eq($$SELECT duplicate FROM idem_receive('s', '1', '"from s"', 'mail', owner => 'idem_ann')$$,
	$$VALUES (false)$$, 'he receives into it');
CREATE TEMPORARY TABLE taken AS SELECT * FROM idem_dequeue('mail', 10, '1 hour', owner => 'idem_ann');
SELECT results_eq('SELECT payload FROM taken', $$VALUES ('"of ann, 2"'::jsonb), ('"of bob"'), ('"from s"')$$, 'takes what is there');
SELECT ok(idem_extend(id, token, '2 hours') > lease_until, 'extends') FROM taken WHERE payload = '"of bob"';
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'acknowledges') FROM taken WHERE payload = '"of bob"';
SELECT ok(idem_nack(id, token, '"bob"') >= now() + interval '1 hour',
	'gives back, by the backoff of the queue') FROM taken WHERE payload = '"of ann, 2"';
SELECT is(idem_nack(id, token, '"bob"', final => true), NULL, 'gives up') FROM taken WHERE payload = '"from s"';
SELECT results_eq($$SELECT owner::text, payload, last_error FROM idem_dead_letters$$,
	$$VALUES ('idem_ann', '"from s"'::jsonb, '"bob"'::jsonb)$$, 'sees dead letters');
SELECT is(idem_redrive('mail', owner => 'idem_ann'), 1::bigint, 'redrives');
SELECT is(history -> -1 ->> 'redriven_by', 'idem_bob', 'as the history tells') FROM idem_messages WHERE payload = '"from s"';
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'and acknowledges what ann has taken') FROM known WHERE what = 'in flight';
SELECT throws_ok(format('SELECT idem_ack(%s, %s)', id, token), 'ID003', NULL, 'but not of another queue of hers') FROM known WHERE what = 'dead';
SELECT is_empty($$SELECT * FROM idem_dead_letters$$, 'whose dead letters he does not see');
SELECT throws_ok($$SELECT idem_purge('mail 2', true, owner => 'idem_ann')$$, '42501', NULL, 'nor purge');
SELECT is(idem_purge('mail', owner => 'idem_ann'), 2::bigint, 'he purges the one');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT isnt_empty($$SELECT * FROM idem_lookup('b', 'queue:mail')$$, 'ann sees the key that bob has used');
SELECT ok(idem_forget('b', 'queue:mail'), 'and can forget it');
SET LOCAL SESSION AUTHORIZATION idem_hand;
SELECT ok(idem_enqueue('mail', '"of a hand"', owner => 'idem_ann') > 0, 'a member of a role that it is shared with may, too');
SELECT results_eq($$SELECT payload FROM idem_messages$$, $$VALUES ('"of a hand"'::jsonb)$$, 'and sees it');
SET LOCAL SESSION AUTHORIZATION idem_eve;
SELECT throws_ok($$SELECT * FROM idem_dequeue('mail', owner => 'idem_ann')$$, '42501', NULL, 'others may not');
SELECT is_empty('SELECT * FROM idem_queues', 'and see nothing');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT lives_ok($$SELECT idem_configure_queue('mail', shared_with => '{}')$$, 'ann shares it no longer');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT throws_ok($$SELECT * FROM idem_dequeue('mail', owner => 'idem_ann')$$, '42501', NULL, 'and it is not bob''s to use');
SELECT is_empty($$SELECT * FROM idem_messages WHERE owner = 'idem_ann'::regrole$$, 'nor to see');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT throws_ok($$SELECT idem_configure_queue('mail', shared_with => '{idem_bob,idem_nobody}')$$, '42704', NULL, 'it is shared with roles that exist');
SELECT lives_ok($$SELECT idem_configure_queue('mail', shared_with => '{idem_ann}')$$, 'or with oneself');

-- A member of the owner's role uses its queues, and names the owner.

SET LOCAL SESSION AUTHORIZATION idem_crew;
SELECT ok(idem_enqueue('rota', '"of the crew"', 'k') > 0, 'a queue of a crew');
SET LOCAL SESSION AUTHORIZATION idem_hand;
SELECT is_empty($$SELECT * FROM idem_dequeue('rota')$$, 'is not one of a member');
SELECT set_eq($$SELECT owner::text, queue, ready FROM idem_queues WHERE queue = 'rota'$$,
	$$VALUES ('idem_crew', 'rota', 1::bigint)$$, 'who sees it');
SELECT ok(idem_enqueue('rota', '"of a hand"', 'k', owner => 'idem_crew') = id, 'meets its keys') FROM idem_messages WHERE queue = 'rota';
SELECT is_empty($$SELECT * FROM idem_lookup('k', 'queue:rota')$$, 'though they are not his');
SELECT results_eq($$SELECT payload, idem_ack(id, token)::text FROM idem_dequeue('rota', owner => 'idem_crew')$$,
	$$VALUES ('"of the crew"'::jsonb, '')$$, 'and works in it');
SELECT lives_ok($$SELECT idem_configure_queue('rota', paused => true)$$, 'the queue that he configures is his own');
SELECT ok(idem_enqueue('rota', '"2"', owner => 'idem_crew') > 0, 'so that of the crew');
SELECT results_eq($$SELECT payload FROM idem_dequeue('rota', lease => '1 hour', owner => 'idem_crew')$$, $$VALUES ('"2"'::jsonb)$$, 'is not paused');
SET LOCAL ROLE idem_crew;
SELECT results_eq($$SELECT owner::text, in_flight, paused FROM idem_queues WHERE queue = 'rota'$$,
	$$VALUES ('idem_crew', 1::bigint, false)$$, 'the crew does not see those of its members');
SET LOCAL SESSION AUTHORIZATION idem_crew;
SELECT throws_ok($$SELECT idem_enqueue('rota', '1', owner => 'idem_hand')$$, '42501', NULL, 'nor may it use them');
RESET SESSION AUTHORIZATION;
SELECT ok(idem_enqueue('rota', '"3"', owner => 'idem_hand') > 0, 'a superuser may use all');
SELECT is(count(*), 0::bigint, 'but owns none of these') FROM idem_dequeue('rota');

-- Everything is seen by pg_monitor, but not what it says.

SET LOCAL SESSION AUTHORIZATION idem_watch;
SELECT results_eq($$SELECT owner::text, queue COLLATE "default", payload, headers, history FROM idem_messages WHERE queue IN ('mail', 'rota') ORDER BY id$$,
	$$VALUES ('idem_bob', 'mail', NULL::jsonb, NULL::jsonb, NULL::jsonb), ('idem_ann', 'mail', NULL, NULL, NULL),
			 ('idem_crew', 'rota', NULL, NULL, NULL), ('idem_hand', 'rota', NULL, NULL, NULL)$$, 'messages');
SELECT set_eq($$SELECT owner::text, queue, payload, history, last_error FROM idem_dead_letters$$,
	$$VALUES ('idem_ann', 'mail 2', NULL::jsonb, NULL::jsonb, NULL::jsonb)$$, 'dead letters');
SELECT set_eq($$SELECT owner::text, queue, paused FROM idem_queues WHERE queue IN ('mail', 'rota')$$,
	$$VALUES ('idem_ann', 'mail', false), ('idem_bob', 'mail', true), ('idem_crew', 'rota', false), ('idem_hand', 'rota', true)$$, 'queues');
SELECT throws_ok($$SELECT * FROM idem_dequeue('mail', owner => 'idem_ann')$$, '42501', NULL, 'which it may not use');
RESET SESSION AUTHORIZATION;

-- A role that is gone leaves a queue that only a superuser sees and uses, by its number.

CREATE ROLE idem_temp;
SET LOCAL SESSION AUTHORIZATION idem_temp;
SELECT ok(idem_enqueue('last', '"words"') > 0, 'a message of a role');
SELECT lives_ok($$SELECT idem_configure_queue('last', shared_with => '{idem_ann}')$$, 'that shares its queue');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT lives_ok($$SELECT idem_configure_queue('shared', shared_with => '{idem_temp,idem_bob}')$$, 'and that shares another one''s');
RESET SESSION AUTHORIZATION;
SELECT lives_ok('DROP ROLE idem_temp', 'can be dropped');
SELECT throws_ok($$SELECT * FROM idem_dequeue('last', owner => 'idem_temp')$$, '42704', NULL, 'its name is gone');
SELECT owner::oid::text AS gone FROM idem_messages WHERE queue = 'last' \gset
SELECT is(owner::text, :'gone', 'and a number is left') FROM idem_messages WHERE queue = 'last';
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is_empty($$SELECT * FROM idem_messages WHERE queue = 'last'$$, 'bob does not see it');
SELECT is(pg_temp.refusal(format('SELECT idem_purge(''last'', owner => %L)', :'gone')),
	format('42501|permission denied for queue "last" of role "%s"|Its owner can share it: see idem_configure_queue.', :'gone'),
	'nor may he use it');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT ok(idem_enqueue('last', '"2"', owner => :'gone') > 0, 'ann, with whom it was shared, may');
RESET SESSION AUTHORIZATION;
SELECT results_eq(format('SELECT payload, idem_nack(id, token, final => true) FROM idem_dequeue(''last'', owner => %L)', :'gone'),
	$$VALUES ('"words"'::jsonb, NULL::timestamptz)$$, 'so may a superuser');
SELECT is(idem_purge('last', owner => :'gone'), 1::bigint, 'and clear up');
SELECT is(idem_purge('last', true, owner => :'gone'), 1::bigint, 'all of it');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT ok(idem_enqueue('shared', '1', owner => 'idem_ann') > 0, 'the other queue does not suffer');
SELECT results_eq($$SELECT owner::text, ready FROM idem_queues WHERE queue = 'shared'$$, $$VALUES ('idem_ann', 1::bigint)$$, 'nor does the view');
RESET SESSION AUTHORIZATION;

SELECT * FROM finish();
ROLLBACK;
