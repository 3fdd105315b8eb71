-- What becomes of a message: taken on lease, acknowledged, given back, taken over,
-- dead, redriven, purged, expired. A lease is committed by whoever takes it, so each
-- statement here is a transaction of its own, unless BEGIN says otherwise. Nobody
-- sleeps: time passes by UPDATE, as a superuser may, or by waiting for something.

SET client_min_messages = warning;
SET statement_timeout = '60s';
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE idem_eve;
CREATE ROLE idem_watch IN ROLE pg_monitor;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

-- Take one message, and remember the delivery under a name.
CREATE TABLE idem.taken (name text PRIMARY KEY, LIKE idem_dequeue_answer);
CREATE FUNCTION idem.take(name text, queue text, lease interval = '1 hour')
RETURNS SETOF idem_dequeue_answer LANGUAGE sql VOLATILE AS $$
	WITH d AS (SELECT * FROM idem_dequeue(queue, 1, lease)),
		 i AS (INSERT INTO idem.taken SELECT $1, d.* FROM d)
	SELECT * FROM d
$$;
-- The arguments of that delivery, for idem_ack and the like.
CREATE FUNCTION idem.args(text) RETURNS text LANGUAGE sql STABLE AS
	'SELECT format(''%s, %s'', id, token) FROM idem.taken WHERE name = $1';
CREATE FUNCTION idem.ack(text) RETURNS void LANGUAGE sql VOLATILE AS
	'SELECT idem_ack(id, token) FROM idem.taken WHERE name = $1';
CREATE FUNCTION idem.nack(name text, error jsonb = NULL, retry_in interval = NULL, final bool = false)
RETURNS timestamptz LANGUAGE sql VOLATILE AS
	'SELECT idem_nack(id, token, error, retry_in, final) FROM idem.taken AS t WHERE t.name = $1';
-- Time passes for what is in a queue: leases have run out, delays are over.
CREATE FUNCTION idem.run_out(queue text) RETURNS void LANGUAGE sql VOLATILE AS $$
	UPDATE idem_message SET lease_until = clock_timestamp() - interval '1 s'
	 WHERE queue = $1 AND lease_until > '-infinity'
$$;
CREATE FUNCTION idem.come_due(queue text) RETURNS void LANGUAGE sql VOLATILE AS $$
	UPDATE idem_message SET due_at = clock_timestamp()
	 WHERE queue = $1 AND due_at > clock_timestamp()
$$;
-- What a message has behind it, without the times.
CREATE FUNCTION idem.past(history jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
	'SELECT jsonb_agg(e - ''at'' ORDER BY n) FROM jsonb_array_elements(history) WITH ORDINALITY AS h(e, n)';

SELECT plan(337);

-- What is answered.

SELECT is(idem_enqueue('q', '{"to": "ann"}', 'k', message_group => 'g', headers => '{"trace": 1}'), 1::bigint, 'a message');
SELECT is(idem_enqueue('q', '2'), 2::bigint, 'and one with nothing but a payload');
SELECT results_eq(
	$$SELECT id, key, payload, headers, attempt, token > 0,
			 lease_until BETWEEN now() + interval '1 hour' AND clock_timestamp() + interval '1 hour', message_group
	    FROM idem.take('first', 'q')$$,
	$$VALUES (1::bigint, 'k', '{"to": "ann"}'::jsonb, '{"trace": 1}'::jsonb, 1, true, true, 'g')$$, 'taken');
SELECT results_eq(
	$$SELECT m.enqueued_at = t.enqueued_at, m.lease_until = t.lease_until, m.attempt, m.state
	    FROM idem_messages AS m JOIN idem.taken AS t USING (id)$$,
	$$VALUES (true, true, 1, 'in_flight')$$, 'as it is stored');
SELECT results_eq(
	$$SELECT id, key, payload, headers, attempt,
			 lease_until BETWEEN now() + interval '30 s' AND clock_timestamp() + interval '30 s', message_group
	    FROM idem_dequeue('q', 10000)$$,
	$$VALUES (2::bigint, NULL, '2'::jsonb, NULL::jsonb, 1, true, NULL)$$,
	'nobody else gets it, but the other one, for half a minute if nothing is said');
SELECT is_empty($$SELECT * FROM pg_locks WHERE locktype = 'advisory'$$, 'no lock is left');
SELECT is(count(DISTINCT token), 2::bigint, 'each delivery has a token of its own') FROM idem_message;
SELECT is(count(*), 100::bigint, 'many') FROM idem_enqueue_many('batch', ARRAY(SELECT to_jsonb(n) FROM generate_series(1, 100) AS n));
SELECT results_eq($$SELECT count(*), min(payload::int), max(payload::int), bool_and(attempt = 1) FROM idem_dequeue('batch', 60, '1 hour')$$,
	$$VALUES (60::bigint, 1, 60, true)$$, 'no more than was asked for');
SELECT results_eq($$SELECT count(*), min(payload::int) FROM idem_dequeue('batch', 60)$$,
	$$VALUES (40::bigint, 61)$$, 'and no more than there is');
BEGIN;
SELECT idem_enqueue('undone', '1') \g /dev/null
SELECT is(payload, '1', 'one''s own message is taken in the same transaction') FROM idem_dequeue('undone');
COMMIT;
SELECT idem.run_out('undone') \g /dev/null
BEGIN;
SELECT is(attempt, 2, 'taken') FROM idem_dequeue('undone');
ROLLBACK;
SELECT is(attempt, 2, 'a delivery that is rolled back is none') FROM idem_dequeue('undone');

-- A lease that runs out: the next one who looks takes the message over.

SELECT idem_enqueue('over', '1') \g /dev/null
SELECT is(attempt, 1, 'on a short lease') FROM idem.take('over 1', 'over', '1 ms');
SELECT is(lease_until < clock_timestamp(), true, 'somebody waits until it has run out')
  FROM (SELECT t.lease_until FROM idem.taken AS t, idem_dequeue('over', lease => '1 hour', wait => '30 s') AS d
		 WHERE t.name = 'over 1' AND t.id = d.id AND d.attempt = 2 AND d.token <> t.token) AS x;
SELECT results_eq($$SELECT attempt, state, idem.past(history) FROM idem_messages WHERE queue = 'over'$$,
	$$VALUES (2, 'in_flight', '[{"attempt": 1, "lease": "ran out"}]'::jsonb)$$, 'and takes it: the next attempt');
SELECT is((history -> 0 ->> 'at')::timestamptz, t.lease_until, 'since when nobody had it')
  FROM idem_messages AS m JOIN idem.taken AS t USING (id) WHERE t.name = 'over 1';
SELECT throws_ok(format(command, idem.args('over 1')), 'ID003', format('message %s is not the caller''s any more', id), 'taken over: ' || command)
  FROM idem_messages, unnest(ARRAY[
	'SELECT idem_ack(%s)',
	'SELECT idem_nack(%s)',
	'SELECT idem_nack(%s, final => true)',
	'SELECT idem_extend(%s)']) AS command WHERE queue = 'over';
SELECT results_eq($$SELECT attempt, state, jsonb_array_length(history) FROM idem_messages WHERE queue = 'over'$$,
	$$VALUES (2, 'in_flight', 1)$$, 'which changes nothing');

SELECT idem_enqueue_many('late', '{1,2,3,4}') \g /dev/null
SELECT is(count(*), 4::bigint, 'four on lease') FROM generate_series(1, 4) AS n, LATERAL idem.take('late ' || n, 'late');
SELECT idem.run_out('late') \g /dev/null
SELECT is(count(*), 4::bigint, 'have run out') FROM idem_messages WHERE queue = 'late' AND state = 'ready' AND lease_until < clock_timestamp();
SELECT lives_ok($$SELECT idem.ack('late 1')$$, 'late, but nobody took over: ack is welcome');
SELECT ok(idem.nack('late 2', retry_in => '1 hour') > now(), 'so is nack');
SELECT ok(idem_extend(id, token, '1 hour') > now(), 'and extend') FROM idem.taken WHERE name = 'late 3';
SELECT is(idem.nack('late 4', final => true), NULL, 'and the end');
SELECT is_empty($$SELECT * FROM idem_dequeue('late', 10)$$, 'so that there is nothing to take over');
SELECT set_eq($$SELECT payload, state, history -> 0 -> 'error' FROM idem_messages WHERE queue = 'late'$$,
	$$VALUES ('2'::jsonb, 'retrying', 'null'::jsonb), ('3', 'in_flight', NULL)$$, 'they are as their holders have said');

-- Extend.

SELECT idem_enqueue('extend', '1') \g /dev/null
SELECT is(count(*), 1::bigint, 'taken') FROM idem.take('extend', 'extend', '1 hour');
SELECT ok(u BETWEEN now() + interval '2 h' AND clock_timestamp() + interval '2 h', 'extended to so long from now, which is returned')
  FROM idem.taken, idem_extend(id, token, '2 hours') AS u WHERE name = 'extend';
CREATE TEMPORARY TABLE before AS SELECT lease_until FROM idem_messages WHERE queue = 'extend';
SELECT is(idem_extend(id, token), before.lease_until, 'but never shortened') FROM idem.taken, before WHERE name = 'extend';
BEGIN;
SELECT ok(idem_extend(id, token, '1 day') > now() + interval '23 hours', 'extended') FROM idem.taken WHERE name = 'extend';
ROLLBACK;
SELECT is(m.lease_until, b.lease_until, 'an extension that is rolled back is none') FROM idem_messages AS m, before AS b WHERE queue = 'extend';
SELECT is(attempt, 1, 'it is still the same attempt') FROM idem_messages WHERE queue = 'extend';
DROP TABLE before;

-- ID003: nobody's token, that of another message, of a delivery that is over, of a
-- message that is gone.

SELECT idem_enqueue_many('fence', '{1,2,3,4,5,6}') \g /dev/null
SELECT is(count(*), 6::bigint, 'taken') FROM unnest('{live,neighbour,acked,retried,dead,purged}'::text[]) AS name, LATERAL idem.take(name, 'fence');
SELECT idem.ack('acked') \g /dev/null
SELECT idem.nack('retried', retry_in => '0') \g /dev/null
SELECT idem.nack('dead', final => true) \g /dev/null
UPDATE idem_message SET lease_until = clock_timestamp() - interval '1 s' WHERE id = (SELECT id FROM idem.taken WHERE name = 'purged');
SELECT is(idem_purge('fence'), 2::bigint, 'two are purged');
SELECT idem_enqueue('fence', '7') \g /dev/null
SELECT is(count(*), 1::bigint, 'and another one is taken') FROM idem.take('again', 'fence');
SELECT idem.nack('again', retry_in => '0') \g /dev/null
SELECT idem.take('again 2', 'fence') \g /dev/null
SELECT throws_ok(format(command, f.args), 'ID003', format('message %s is not the caller''s any more', split_part(f.args, ',', 1)),
	f.what || ': ' || command)
  FROM (SELECT name, idem.args(name) FROM unnest('{acked,retried,dead,purged,again}'::text[]) AS name
		UNION ALL
		SELECT 'token ' || bad, format('%s, %s', t.id, bad) FROM idem.taken AS t,
			   unnest('{0,1,-1,9223372036854775807,-9223372036854775808}'::int8[]) AS bad WHERE name = 'live'
		UNION ALL
		SELECT 'token of another message', format('%s, %s', t.id, n.token) FROM idem.taken AS t, idem.taken AS n
		 WHERE t.name = 'live' AND n.name = 'neighbour'
		UNION ALL
		SELECT 'no such message', format('%s, %s', bad, token)
		  FROM idem.taken, unnest('{0,-1,9223372036854775807}'::int8[]) AS bad WHERE name = 'live') AS f(what, args),
	   unnest(ARRAY[
	'SELECT idem_ack(%s)',
	'SELECT idem_nack(%s, ''"bad"'')',
	'SELECT idem_nack(%s, final => true)',
	'SELECT idem_extend(%s, ''1 day'')']) AS command;
SELECT throws_ok(format('SELECT idem_ack(%s)', format('%s, %s', id, 0)), 'ID003', NULL, 'nor is 0 the token of what nobody has')
  FROM idem_enqueue('fence', '8') AS id;
SELECT set_eq($$SELECT payload, state, attempt, jsonb_array_length(history) FROM idem_messages WHERE queue = 'fence'$$,
	$$VALUES ('1'::jsonb, 'in_flight', 1, NULL), ('2', 'in_flight', 1, NULL), ('7', 'in_flight', 2, 1), ('8', 'ready', 0, NULL)$$,
	'what there is, is as it was');
SELECT lives_ok(format('SELECT idem.ack(%L)', name), 'and the right token is good: ' || name)
  FROM unnest('{live,neighbour,again 2}'::text[]) AS name;
SELECT throws_ok(format('SELECT idem_ack(%s)', idem.args('live')), 'ID003', NULL, 'once');
BEGIN;
SELECT idem_ack(id, token) FROM idem_dequeue('fence') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_messages WHERE queue = 'fence'$$, 'acknowledged');
ROLLBACK;
SELECT isnt_empty($$SELECT * FROM idem_messages WHERE queue = 'fence'$$, 'but not if that is rolled back');

-- Nack: the next attempt comes after the backoff of the queue, or when the caller says.

SET idempotency.backoff_base = '7s';
SET idempotency.backoff_cap = '1min';
SELECT idem_configure_queue('backoff', backoff_base => '10 s', backoff_cap => '35 s', jitter => 'none') \g /dev/null
SELECT idem_configure_queue('settings', jitter => 'none') \g /dev/null
SELECT idem_configure_queue('slow', backoff_base => '2 min', jitter => 'none') \g /dev/null
SELECT idem_configure_queue('equal', backoff_base => '10 s', jitter => 'equal') \g /dev/null
SELECT idem_enqueue(queue, '1') FROM unnest('{backoff,settings,slow,equal,full}'::text[]) AS queue \g /dev/null
-- One attempt, which fails: how long until the next one, by the clock of the history.
CREATE FUNCTION idem.attempt(queue text, error jsonb = NULL, retry_in interval = NULL) RETURNS interval LANGUAGE plpgsql AS
$$
DECLARE
	retry_at timestamptz;
	message record;
BEGIN
	SELECT idem_nack(d.id, d.token, error, retry_in) INTO STRICT retry_at FROM idem_dequeue(queue) AS d;
	SELECT * INTO message FROM idem_messages AS m WHERE m.queue = $1;
	ASSERT message.due_at IS NOT DISTINCT FROM retry_at;
	PERFORM idem.come_due(queue);
	RETURN retry_at - (message.history -> -1 ->> 'at')::timestamptz;
END
$$;
SELECT is(idem.attempt('backoff', to_jsonb(n)), delay::interval, format('attempt %s: %s', n, delay))
  FROM unnest('{10 s,20 s,35 s,35 s}'::text[]) WITH ORDINALITY AS t(delay, n);
SELECT is(idem.past(history), '[{"attempt": 1, "error": 1}, {"attempt": 2, "error": 2}, {"attempt": 3, "error": 3}, {"attempt": 4, "error": 4}]',
	'each of them has an entry') FROM idem_messages WHERE queue = 'backoff';
SELECT is(idem.attempt('settings'), delay::interval, format('by the settings: %s', delay)) FROM unnest('{7 s,14 s,28 s,56 s,1 min}'::text[]) AS delay;
SELECT is(idem.attempt('slow'), '2 min', 'the longest delay is at least the first one') FROM generate_series(1, 2);
SELECT ok(delay BETWEEN '5 s' AND '10 s', 'jitter: equal') FROM idem.attempt('equal') AS delay;
SELECT ok(delay BETWEEN '0' AND '7 s', 'jitter: full, if the queue says nothing') FROM idem.attempt('full') AS delay;
SELECT is(idem.attempt('backoff', '"down"', delay::interval), delay::interval, 'in ' || delay) FROM unnest('{0,1 hour}'::text[]) AS delay;
SELECT idem_nack(id, token, NULL, '1 month') FROM idem_dequeue('backoff') \g /dev/null
SELECT is(due_at, (history -> -1 ->> 'at')::timestamptz + interval '1 month', 'in a month, by the calendar')
  FROM idem_messages WHERE queue = 'backoff';
SELECT is_empty($$SELECT * FROM idem_dequeue('backoff')$$, 'until then it is not taken');
SELECT results_eq($$SELECT state, attempt, lease_until FROM idem_messages WHERE queue = 'backoff'$$,
	$$VALUES ('retrying', 7, NULL::timestamptz)$$, 'and shown so');
RESET idempotency.backoff_base;
RESET idempotency.backoff_cap;

-- The last attempt: by the message, by the queue, by the setting; 0 is never.

SELECT idem_configure_queue('limit', max_attempts => 2) \g /dev/null
SELECT idem_configure_queue('no limit', max_attempts => 0) \g /dev/null
-- After how many attempts it is dead; NULL if it outlives twelve.
CREATE FUNCTION idem.lifetime(queue text, max_attempts int) RETURNS int LANGUAGE plpgsql AS
$$
DECLARE
	message idem_dequeue_answer;
BEGIN
	PERFORM idem_enqueue(queue, '1', max_attempts => max_attempts);
	FOR n IN 1 .. 12 LOOP
		SELECT * INTO STRICT message FROM idem_dequeue(queue);
		ASSERT message.attempt = n;
		IF idem_nack(message.id, message.token, to_jsonb(n), '0') IS NULL THEN
			RETURN n;
		END IF;
	END LOOP;
	PERFORM idem_purge(queue);
	RETURN NULL;
END
$$;
SELECT is(idem.lifetime(queue, max), lifetime, format('queue: %s, message: %s', queue, coalesce(max::text, 'as the queue has it')))
  FROM (VALUES ('plain', NULL, 10), ('plain', 1, 1), ('plain', 11, 11), ('plain', 0, NULL),
			   ('limit', NULL, 2), ('limit', 1, 1), ('limit', 3, 3), ('limit', 0, NULL),
			   ('no limit', NULL, NULL), ('no limit', 4, 4)) AS t(queue, max, lifetime);
SET idempotency.max_attempts = 3;
SELECT is(idem.lifetime(queue, max), lifetime, format('setting: 3, queue: %s, message: %s', queue, coalesce(max::text, 'as the queue has it')))
  FROM (VALUES ('plain', NULL, 3), ('plain', 1, 1), ('limit', NULL, 2), ('no limit', NULL, NULL)) AS t(queue, max, lifetime);
SET idempotency.max_attempts = 0;
SELECT is(idem.lifetime('plain', NULL), NULL, 'setting: 0');
RESET idempotency.max_attempts;
SELECT results_eq(
	$$SELECT attempt, last_error, jsonb_array_length(history) FROM idem_dead_letters WHERE queue = 'limit' ORDER BY id$$,
	$$VALUES (2, '2'::jsonb, 2), (1, '1', 1), (3, '3', 3), (2, '2', 2)$$, 'the dead ones have their history');

SELECT idem_enqueue('silent', '1', max_attempts => 1) \g /dev/null
SELECT is(count(*), 1::bigint, 'the last attempt') FROM idem.take('silent', 'silent');
SELECT idem.run_out('silent') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_dead_letters WHERE queue = 'silent'$$, 'whose lease has run out is not dead yet');
SELECT is_empty($$SELECT * FROM idem_dequeue('silent')$$, 'but whoever looks finds it');
SELECT results_eq($$SELECT attempt, last_error, idem.past(history) FROM idem_dead_letters WHERE queue = 'silent'$$,
	$$VALUES (1, NULL::jsonb, '[{"attempt": 1, "lease": "ran out"}]'::jsonb)$$, 'dead, and why');
SELECT throws_ok(format('SELECT idem_ack(%s)', idem.args('silent')), 'ID003', NULL, 'too late');
SELECT idem_enqueue('stricter', '1') \g /dev/null
SELECT idem_enqueue('stricter', '2') \g /dev/null
SELECT is(count(*), 1::bigint, 'an attempt') FROM idem.take('stricter', 'stricter');
SELECT ok(idem.nack('stricter', '"down"', '0') IS NOT NULL, 'that is not the last');
SELECT idem_configure_queue('stricter', max_attempts => 1) \g /dev/null
SELECT results_eq($$SELECT payload FROM idem_dequeue('stricter', 10)$$, $$VALUES ('2'::jsonb)$$, 'until the queue is configured so');
SELECT results_eq($$SELECT payload, attempt, last_error FROM idem_dead_letters WHERE queue = 'stricter'$$,
	$$VALUES ('1'::jsonb, 1, '"down"'::jsonb)$$, 'then it is dead without another one');
SELECT idem_enqueue('final', '1', max_attempts => 0) \g /dev/null
SELECT is(idem_nack(id, token, '{"code": 410}', '1 hour', true), NULL, 'final: no retry, whatever retry_in says') FROM idem_dequeue('final');
SELECT results_eq($$SELECT attempt, last_error FROM idem_dead_letters WHERE queue = 'final'$$,
	$$VALUES (1, '{"code": 410}'::jsonb)$$, 'dead');
BEGIN;
SELECT idem_redrive('final') \g /dev/null
SELECT is(idem_nack(id, token, final => true), NULL, 'dead again') FROM idem_dequeue('final');
ROLLBACK;
SELECT results_eq($$SELECT last_error FROM idem_dead_letters WHERE queue = 'final'$$, $$VALUES ('{"code": 410}'::jsonb)$$, 'but for the rollback');

-- The history keeps twenty entries, the latest.

SELECT idem_configure_queue('long', max_attempts => 0) \g /dev/null
SELECT idem_enqueue('long', '1') \g /dev/null
SELECT is(count(idem.attempt('long', to_jsonb(n), '0')), 20::bigint, 'twenty failures') FROM generate_series(1, 20) AS n;
SELECT results_eq($$SELECT jsonb_array_length(history), history -> 0 -> 'attempt' FROM idem_messages WHERE queue = 'long'$$,
	$$VALUES (20, '1'::jsonb)$$, 'are all there');
SELECT is(count(idem.attempt('long', to_jsonb(n), '0')), 2::bigint, 'two more') FROM generate_series(21, 22) AS n;
SELECT is(idem.past(history), (SELECT jsonb_agg(jsonb_build_object('attempt', n, 'error', n)) FROM generate_series(3, 22) AS n),
	'make the first two go') FROM idem_messages WHERE queue = 'long';
SELECT idem.take('long', 'long') \g /dev/null
SELECT idem.run_out('long') \g /dev/null
SELECT idem.take('long 2', 'long') \g /dev/null
SELECT is(idem.nack('long 2', final => true), NULL, 'a lease that ran out, and the end');
SELECT is(idem_redrive('long'), 1::bigint, 'a redrive');
SELECT results_eq($$SELECT jsonb_array_length(history), history -> 0 -> 'attempt',
			jsonb_path_query_array(idem.past(history), '$[17 to 19]') FROM idem_messages WHERE queue = 'long'$$,
	format($$VALUES (20, '6'::jsonb, '[{"attempt": 23, "lease": "ran out"}, {"attempt": 24, "error": null}, {"attempt": 24, "redriven_by": "%s"}]'::jsonb)$$, current_user),
	'each is an entry, and each makes one go');

-- Dead letters.

SELECT idem_enqueue_many('dead', '{1,2,3,4,5}', '{a,b,NULL,d,e}', headers => '{10,20,30,40,50}', priority => 3) \g /dev/null
SELECT is(count(idem_nack(id, token, payload, final => true)), 0::bigint, 'five die') FROM idem_dequeue('dead', 5);
SELECT results_eq(
	$$SELECT owner, key COLLATE "default", payload, headers, attempt, last_error, message_group COLLATE "default", expires_at - died_at, died_at = (history -> 0 ->> 'at')::timestamptz
	    FROM idem_dead_letters WHERE queue = 'dead' ORDER BY id$$,
	$$SELECT current_user::regrole, key, payload, headers, 1, payload, NULL, interval '30 days', true
	    FROM (VALUES ('a', '1'::jsonb, '10'::jsonb), ('b', '2', '20'), (NULL, '3', '30'), ('d', '4', '40'), ('e', '5', '50')) AS v(key, payload, headers)$$,
	'with all that they were');
SELECT is_empty($$SELECT * FROM idem_messages WHERE queue = 'dead'$$, 'they are in no queue');
SELECT is(response, to_jsonb(id), 'their keys are as they were')
  FROM idem_dead_letters, LATERAL idem_lookup(key, 'queue:dead') WHERE queue = 'dead' AND key IS NOT NULL;
CREATE TABLE idem.dead AS SELECT * FROM idem_dead_letters WHERE queue = 'dead';
SELECT is(idem_redrive('dead', ARRAY(SELECT id FROM idem.dead WHERE key IN ('b', 'd') ORDER BY id DESC)), 2::bigint, 'two are redriven by their ids');
SELECT results_eq(
	$$SELECT m.id = d.id, m.key COLLATE "default", m.payload, m.headers, m.state, m.attempt, m.priority, m.enqueued_at = d.enqueued_at, m.due_at > d.died_at, idem.past(m.history)
	    FROM idem_messages AS m JOIN idem.dead AS d USING (id) WHERE m.queue = 'dead' ORDER BY id$$,
	format($$SELECT true, key, payload, headers, 'ready', 0, 3::smallint, true, true, history
	    FROM (VALUES ('b', '2'::jsonb, '20'::jsonb, '[{"attempt": 1, "error": 2}, {"attempt": 1, "redriven_by": "%1$s"}]'::jsonb),
					 ('d', '4', '40', '[{"attempt": 1, "error": 4}, {"attempt": 1, "redriven_by": "%1$s"}]')) AS v(key, payload, headers, history)$$, current_user),
	'and are as they were, but that their attempts are counted anew');
SELECT is(idem_redrive(queue, ids), 0::bigint, 'passed by: ' || what)
  FROM (VALUES ('dead', '{}'::int8[], 'none'),
			   ('dead', ARRAY(SELECT id FROM idem.dead WHERE key IN ('b', 'd')), 'what lives'),
			   ('other', ARRAY(SELECT id FROM idem.dead), 'those of another queue'),
			   ('dead', ARRAY(SELECT id FROM idem_dead_letters WHERE queue <> 'dead'), 'the other way round'),
			   ('dead', '{NULL,0,-1,9223372036854775807}', 'what there is not')) AS t(queue, ids, what);
SELECT is(idem_redrive('dead', ARRAY(SELECT id FROM idem.dead, generate_series(1, 3) WHERE key IN ('a', 'b')) || NULL), 1::bigint,
	'one that is named three times, among others, is one');
SELECT is(idem_redrive('dead', max_messages => 1), 1::bigint, 'one of the others');
SELECT results_eq($$SELECT payload FROM idem_dead_letters WHERE queue = 'dead'$$, $$VALUES ('5'::jsonb)$$, 'the oldest');
SELECT is(count(idem_nack(id, token, payload, final => true)), 0::bigint, 'all die again') FROM idem_dequeue('dead', 5) WHERE attempt = 1;
SELECT is(idem_redrive('dead', (SELECT array_agg(id ORDER BY id DESC) FROM idem.dead), 2), 2::bigint, 'no more than so many of those named');
SELECT set_eq($$SELECT payload FROM idem_messages WHERE queue = 'dead'$$, $$VALUES ('5'::jsonb), ('4')$$, 'in the order given');
SELECT is(idem_redrive('dead'), 3::bigint, 'all that are left');
SELECT is(idem_redrive('dead'), 0::bigint, 'and no more');
SELECT results_eq($$SELECT array_agg(attempt), array_agg(payload ORDER BY payload) FROM idem_dequeue('dead', 10)$$,
	$$VALUES ('{1,1,1,1,1}'::int[], '{1,2,3,4,5}'::jsonb[])$$, 'all are taken again');
SELECT idem_enqueue('dead 2', '1', max_attempts => 1) \g /dev/null
SELECT idem_nack(id, token) FROM idem_dequeue('dead 2') \g /dev/null
SELECT idem_redrive('dead 2') \g /dev/null
SELECT is(idem_nack(id, token), NULL, 'after a redrive the limit of the message holds as before') FROM idem_dequeue('dead 2');
BEGIN;
SELECT is(idem_redrive('dead 2'), 1::bigint, 'redriven');
ROLLBACK;
SELECT isnt_empty($$SELECT * FROM idem_dead_letters WHERE queue = 'dead 2'$$, 'but not if that is rolled back');
BEGIN;
SELECT idem_configure_queue('dead 2', paused => true) \g /dev/null
SELECT is(idem_redrive('dead 2'), 1::bigint, 'also into a queue that is paused');
ROLLBACK;

-- Purge.

SELECT idem_enqueue_many('purge', '{1,2}', '{k,NULL}') \g /dev/null
SELECT idem_enqueue('purge', '3', priority => -5) \g /dev/null
SELECT is(payload, '3', 'one is out') FROM idem.take('purge out', 'purge');
SELECT is(payload, '1', 'one is to be retried') FROM idem.take('purge retry', 'purge');
SELECT idem.nack('purge retry', retry_in => '1 hour') \g /dev/null
SELECT idem_enqueue('purge', '4', delay => '1 hour', priority => 7, message_group => 'g') \g /dev/null
SELECT idem_enqueue('purge', '5', message_group => 'g', max_attempts => 1, priority => -6) \g /dev/null
SELECT idem_enqueue('purge', '6', priority => -9) \g /dev/null
SELECT is(payload, '6', 'one dies') FROM idem.take('purge dead', 'purge');
SELECT idem.nack('purge dead', final => true) \g /dev/null
SELECT is(idem_purge('purge', max_messages => 1), 1::bigint, 'one is purged');
SELECT is(idem_purge('purge'), 3::bigint, 'then all: those that are ready, delayed, to be retried, or wait for their turn');
SELECT results_eq($$SELECT payload, state FROM idem_messages WHERE queue = 'purge'$$, $$VALUES ('3'::jsonb, 'in_flight')$$, 'but what is in flight');
SELECT is(idem_purge('purge'), 0::bigint, 'nothing is left to be purged');
SELECT lives_ok($$SELECT idem.ack('purge out')$$, 'who has it can acknowledge it');
SELECT results_eq($$SELECT payload FROM idem_dead_letters WHERE queue = 'purge'$$, $$VALUES ('6'::jsonb)$$, 'the dead letter stays');
SELECT is(state, 'finished', 'so does the key') FROM idem_lookup('k', 'queue:purge');
SELECT idem_enqueue_many('purge', '{7,8,9}') \g /dev/null
SELECT idem_nack(id, token, final => true) FROM idem_dequeue('purge', 2) \g /dev/null
SELECT is(idem_purge('purge', true, 1), 1::bigint, 'a dead letter is purged');
SELECT results_eq($$SELECT payload FROM idem_dead_letters WHERE queue = 'purge' ORDER BY id$$, $$VALUES ('7'::jsonb), ('8')$$, 'the oldest');
SELECT is(idem_purge('purge', true), 2::bigint, 'then all');
SELECT results_eq($$SELECT payload FROM idem_messages WHERE queue = 'purge'$$, $$VALUES ('9'::jsonb)$$, 'and no messages');
SELECT isnt_empty($$SELECT * FROM idem_dead_letters WHERE queue = 'dead 2'$$, 'nor dead letters of other queues');
SELECT idem.take('purge late', 'purge') \g /dev/null
SELECT idem.run_out('purge') \g /dev/null
SELECT is(idem_purge('purge'), 1::bigint, 'what a consumer had once is purged');
SELECT throws_ok(format('SELECT idem_ack(%s)', idem.args('purge late')), 'ID003', NULL, 'and he is told');

-- Expiry of dead letters: by the setting or the queue, from their death on.

SELECT idem_purge(queue, true) FROM (SELECT DISTINCT queue FROM idem_dead_letters) AS q \g /dev/null
SELECT idem_configure_queue('kept', dead_letter_ttl => '1 month') \g /dev/null
SET idempotency.dead_letter_ttl = '2d';
SELECT idem_enqueue(queue, '1') FROM unnest('{kept,short}'::text[]) AS queue \g /dev/null
SELECT idem_nack(id, token, final => true) FROM unnest('{kept,short}'::text[]) AS queue, LATERAL idem_dequeue(queue) \g /dev/null
RESET idempotency.dead_letter_ttl;
SELECT results_eq($$SELECT queue COLLATE "default", expires_at = died_at + interval '1 month', expires_at - died_at = interval '2 days' FROM idem_dead_letters ORDER BY queue$$,
	$$VALUES ('kept', true, false), ('short', false, true)$$, 'kept for so long');
SELECT is(idem_expire(), 0::bigint, 'until then it is');
SET ROLE idem_ann;
SELECT idem_enqueue('kept', '1') \g /dev/null
SELECT is(idem_nack(id, token, final => true), NULL, 'a dead letter of ann') FROM idem_dequeue('kept');
RESET ROLE;
UPDATE idem_dead_letter SET expires_at = clock_timestamp() - interval '1 s' WHERE queue = 'kept';
SET ROLE idem_bob;
SELECT is(idem_expire(), 0::bigint, 'bob removes nothing of hers');
SET ROLE idem_ann;
SELECT isnt_empty('SELECT * FROM idem_dead_letters', 'what has expired is there until it is removed');
SELECT is(idem_expire(), 1::bigint, 'ann removes her own');
SELECT is_empty('SELECT * FROM idem_dead_letters', 'and has none');
RESET ROLE;
SELECT is(idem_expire(1), 1::bigint, 'the owner of the tables removes the rest');
SELECT set_eq('SELECT queue FROM idem_dead_letters', $$VALUES ('short')$$, 'what has not expired stays');
UPDATE idem_dead_letter SET expires_at = 'epoch';
UPDATE idem_key SET expires_at = 'epoch' WHERE key = 'k' AND scope = 'queue:purge';
SELECT results_eq('SELECT idem_expire(1), idem_expire(1), idem_expire(1)', $$VALUES (1::bigint, 1::bigint, 0::bigint)$$,
	'max_rows counts keys and dead letters');

-- Groups: one at a time, in order.

SELECT idem_enqueue_many('group', '{1,2,3,4,5,6}', message_groups => '{a,a,b,NULL,a,A}') \g /dev/null
CREATE TEMPORARY TABLE out AS SELECT * FROM idem_dequeue('group', 10, '1 hour');
SELECT set_eq('SELECT payload, message_group FROM out',
	$$VALUES ('1'::jsonb, 'a'), ('3', 'b'), ('4', NULL), ('6', 'A')$$, 'the first of each group, and what is in none');
SELECT is_empty($$SELECT * FROM idem_dequeue('group', 10)$$, 'the others wait for it');
SELECT results_eq($$SELECT payload, state FROM idem_messages WHERE queue = 'group' AND state <> 'in_flight' ORDER BY id$$,
	$$VALUES ('2'::jsonb, 'ready'), ('5', 'ready')$$, 'though they are ready');
SELECT idem_ack(id, token) FROM out WHERE payload = '3' \g /dev/null
SELECT is_empty($$SELECT * FROM idem_dequeue('group', 10)$$, 'another group does not help them');
SELECT ok(idem_nack(id, token, retry_in => '1 hour') > now(), 'the first one is to be retried') FROM out WHERE payload = '1';
SELECT is_empty($$SELECT * FROM idem_dequeue('group', 10)$$, 'and holds up the others');
SELECT idem_enqueue('group', '7', message_group => 'a', priority => -10) \g /dev/null
SELECT is_empty($$SELECT * FROM idem_dequeue('group', 10)$$, 'whatever their priority');
SELECT idem.come_due('group') \g /dev/null
SELECT results_eq($$SELECT payload, attempt FROM idem.take('a 1', 'group')$$, $$VALUES ('1'::jsonb, 2)$$, 'until it is due');
SELECT idem.run_out('group') \g /dev/null
SELECT set_eq($$SELECT payload, attempt FROM idem_dequeue('group', 10, '1 hour')$$,
	$$VALUES ('1'::jsonb, 3), ('4', 2), ('6', 2)$$, 'a lease that runs out lets nobody pass either');
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'when it is done')
  FROM idem_message WHERE queue = 'group' AND payload = '1';
BEGIN;
SELECT results_eq($$SELECT payload FROM idem_dequeue('group', 10)$$, $$VALUES ('2'::jsonb)$$, 'the next one has its turn');
ROLLBACK;
BEGIN;
SELECT results_eq($$SELECT payload, idem_ack(id, token)::text FROM idem_dequeue('group', 10)$$, $$VALUES ('2'::jsonb, '')$$, 'all of them');
SELECT results_eq($$SELECT payload, idem_ack(id, token)::text FROM idem_dequeue('group', 10)$$, $$VALUES ('5'::jsonb, '')$$, 'in one transaction');
SELECT results_eq($$SELECT payload, idem_ack(id, token)::text FROM idem_dequeue('group', 10)$$, $$VALUES ('7'::jsonb, '')$$, 'one after the other');
ROLLBACK;
SELECT results_eq($$SELECT payload FROM idem.take('a 2', 'group')$$, $$VALUES ('2'::jsonb)$$, 'as if nothing had been');
SELECT is(idem.nack('a 2', final => true), NULL, 'it dies');
SELECT results_eq($$SELECT payload FROM idem.take('a 5', 'group')$$, $$VALUES ('5'::jsonb)$$, 'which makes way, too');
SELECT is(idem.nack('a 5', final => true), NULL, 'and the next one');
SELECT idem_enqueue('group', '8', message_group => 'a') \g /dev/null
SELECT is(idem_redrive('group'), 2::bigint, 'both are redriven');
SELECT idem_enqueue('group', '9', message_group => 'a') \g /dev/null
CREATE FUNCTION idem.one_by_one(queue text) RETURNS SETOF jsonb LANGUAGE plpgsql AS
$$
DECLARE
	message idem_dequeue_answer;
BEGIN
	LOOP
		SELECT * INTO message FROM idem_dequeue(queue, 1);
		EXIT WHEN NOT FOUND;
		PERFORM idem_ack(message.id, message.token);
		RETURN NEXT message.payload;
	END LOOP;
END
$$;
SELECT results_eq($$SELECT * FROM idem.one_by_one('group')$$, $$VALUES ('7'::jsonb), ('8'), ('2'), ('5'), ('9')$$,
	'they stand where the group ended when they came back');
SELECT idem_enqueue('head', '1', message_group => 'g', delay => '1 hour') \g /dev/null
SELECT idem_enqueue('head', '2', message_group => 'g') \g /dev/null
SELECT idem_enqueue('head', '3', message_group => 'h', priority => 5) \g /dev/null
SELECT results_eq($$SELECT * FROM idem.one_by_one('head')$$, $$VALUES ('3'::jsonb)$$, 'a message that is delayed holds up its group');
SELECT is(idem_purge('head', max_messages => 1), 1::bigint, '(one is purged)');
SELECT results_eq($$SELECT payload FROM idem_messages WHERE queue = 'head'$$, $$VALUES ('1'::jsonb)$$, 'in the order in which they are due');
SELECT idem_enqueue('head', '4', message_group => 'g') \g /dev/null
SELECT idem.come_due('head') \g /dev/null
SELECT results_eq($$SELECT * FROM idem.one_by_one('head')$$, $$VALUES ('1'::jsonb), ('4')$$, 'until it is due');
SELECT idem_enqueue('head', '5', message_group => 'g') \g /dev/null
SELECT idem_enqueue('head 2', '6', message_group => 'g') \g /dev/null
SELECT is(count(*), 1::bigint, 'a group') FROM idem_dequeue('head', lease => '1 hour');
SELECT results_eq($$SELECT payload FROM idem_dequeue('head 2')$$, $$VALUES ('6'::jsonb)$$, 'is one of its queue');
SELECT idem_enqueue_many('silent group', '{1,2}', max_attempts => 1, message_groups => '{g,g}') \g /dev/null
SELECT results_eq($$SELECT payload FROM idem_dequeue('silent group')$$, $$VALUES ('1'::jsonb)$$, 'the first one of a group');
SELECT idem.run_out('silent group') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_dequeue('silent group')$$, 'is found dead');
SELECT results_eq($$SELECT payload FROM idem_dequeue('silent group')$$, $$VALUES ('2'::jsonb)$$, 'and whoever looks again gets the next one');
SELECT is(count(*), 200::bigint, 'a long group')
  FROM idem_enqueue_many('line', ARRAY(SELECT to_jsonb(n) FROM generate_series(1, 200) AS n), message_groups => array_fill('g'::text, '{200}'));
SELECT results_eq($$SELECT payload::int FROM idem.one_by_one('line') AS payload$$, $$SELECT n FROM generate_series(1, 200) AS n$$, 'goes one by one');

-- A key for the system that gets the message: the same in every attempt.

SELECT idem_enqueue_many('down', '{1,2,3}', '{k,NULL,NULL}') \g /dev/null
SELECT idem_receive('s', '4', '4', 'down') \g /dev/null
CREATE TABLE idem.shown AS SELECT payload, key, downstream_key, attempt, id, token FROM idem_dequeue('down', 10, '1 hour');
SELECT is(downstream_key, idem_derive(key, 'message', 'queue:down'), 'of a key: ' || key) FROM idem.shown WHERE key IS NOT NULL;
SELECT is(count(DISTINCT downstream_key), 4::bigint, 'no two are the same') FROM idem.shown;
SELECT ok(bool_and(downstream_key::text ~ '-8...-[89ab]'), 'all are UUIDs of version 8') FROM idem.shown;
SELECT ok(bool_and(idem_nack(id, token, retry_in => '0') IS NOT NULL), 'all fail') FROM idem.shown;
CREATE TABLE idem.shown_again AS SELECT * FROM idem_dequeue('down', 10, '1 hour');
SELECT results_eq('SELECT downstream_key, 2 FROM idem.shown ORDER BY id', 'SELECT downstream_key, attempt FROM idem.shown_again ORDER BY id', 'it is the same in the next attempt');
SELECT idem.run_out('down') \g /dev/null
SELECT set_eq('SELECT downstream_key, 3 FROM idem.shown', $$SELECT downstream_key, attempt FROM idem_dequeue('down', 10, '1 hour')$$, 'after a lease that ran out');
SELECT ok(bool_and(idem_nack(id, token, final => true) IS NULL), 'all die') FROM idem_message WHERE queue = 'down';
SELECT is(idem_redrive('down'), 4::bigint, 'and are redriven');
SELECT set_eq('SELECT downstream_key, 1 FROM idem.shown', $$SELECT downstream_key, attempt FROM idem_dequeue('down', 10, '1 hour')$$, 'it is the same even then');
SELECT idem_enqueue('down 2', '1', 'k') \g /dev/null
SELECT isnt_empty($$SELECT * FROM idem_dequeue('down 2') AS d WHERE d.downstream_key NOT IN (SELECT downstream_key FROM idem.shown)$$, 'another queue, another one');
SELECT idem_forget('k', 'queue:down') \g /dev/null
SELECT idem_enqueue('down', '5', 'k') \g /dev/null
SELECT is(d.downstream_key, s.downstream_key, 'the same key, though anew, shows the same') FROM idem_dequeue('down') AS d JOIN idem.shown AS s USING (key);

-- Many at once, all or none.

SELECT idem_enqueue_many('set', '{1,2,3,4,5,6}') \g /dev/null
CREATE TABLE idem.set AS SELECT * FROM idem_dequeue('set', 6);
SELECT throws_ok(format(command, ids, tokens), 'ID003', NULL, format('%s: %s', what, split_part(command, '(', 1)))
  FROM (SELECT 'one bad token', array_agg(id ORDER BY id), array_agg(CASE payload WHEN '5' THEN 1 ELSE token END ORDER BY id) FROM idem.set
		UNION ALL
		SELECT 'one id that is none', array_agg(id) || 0::int8, array_agg(token) || 1::int8 FROM idem.set) AS b(what, ids, tokens),
	   unnest(ARRAY[
	'SELECT idem_ack_many(%L, %L)',
	'SELECT idem_nack_many(%L, %L)',
	'SELECT idem_nack_many(%L, %L, final => true)',
	'SELECT idem_extend_many(%L, %L, ''1 day'')']) AS command;
SELECT throws_ok(format(command, ids, tokens), 'ID003', NULL, 'one that is named twice: ' || split_part(command, '(', 1))
  FROM (SELECT array_agg(id), array_agg(token) FROM idem.set, generate_series(1, 2)) AS b(ids, tokens),
	   unnest(ARRAY[
	'SELECT idem_ack_many(%L, %L)',
	'SELECT idem_nack_many(%L, %L)',
	'SELECT idem_nack_many(%L, %L, final => true)']) AS command;
SELECT results_eq($$SELECT count(*), bool_and(m.lease_until = s.lease_until AND m.history IS NULL)
		FROM idem_messages AS m JOIN idem.set AS s USING (id)$$, $$VALUES (6::bigint, true)$$, 'nothing has happened');
SELECT is_empty($$SELECT * FROM idem_dead_letters WHERE queue = 'set'$$, 'none has died');
SELECT lives_ok(command, command) FROM unnest(ARRAY[
	'SELECT idem_ack_many(''{}'', ''{}''), idem_ack_many(NULL, NULL), idem_ack_many(''{}'', NULL)',
	'SELECT idem_nack_many(''{}'', ''{}''), idem_nack_many(NULL, NULL), idem_nack_many(''{}'', ''{}'', ''{}'')',
	'SELECT idem_extend_many(''{}'', ''{}''), idem_extend_many(NULL, NULL)',
	'SELECT idem_extend_many(array_agg(id ORDER BY id DESC), array_agg(token ORDER BY id DESC), ''1 day'') FROM idem.set']) AS command;
SELECT ok(bool_and(lease_until > clock_timestamp() + interval '23 hours'), 'all are extended') FROM idem_messages WHERE queue = 'set';
SELECT lives_ok($$SELECT idem_nack_many(array_agg(id ORDER BY id DESC), array_agg(token ORDER BY id DESC), '{6,NULL}', '0') FROM idem.set WHERE payload IN ('5', '6')$$,
	'two are given back');
SELECT results_eq($$SELECT payload, state, idem.past(history) FROM idem_messages WHERE queue = 'set' AND state <> 'in_flight' ORDER BY id$$,
	$$VALUES ('5'::jsonb, 'ready', '[{"attempt": 1, "error": null}]'::jsonb), ('6', 'ready', '[{"attempt": 1, "error": 6}]')$$, 'each with its error');
SELECT lives_ok($$SELECT idem_nack_many(array_agg(id), array_agg(token), array_agg(payload), final => true) FROM idem.set WHERE payload IN ('3', '4')$$, 'two die');
SELECT results_eq($$SELECT payload, last_error FROM idem_dead_letters WHERE queue = 'set' ORDER BY id$$, $$VALUES ('3'::jsonb, '3'::jsonb), ('4', '4')$$, 'each of its error');
SELECT lives_ok($$SELECT idem_ack_many(array_agg(id ORDER BY id DESC), array_agg(token ORDER BY id DESC)) FROM idem.set WHERE payload IN ('1', '2')$$, 'two are done');
SELECT set_eq($$SELECT payload FROM idem_messages WHERE queue = 'set'$$, $$VALUES ('5'::jsonb), ('6')$$, 'and gone');
SELECT throws_ok($$SELECT idem_ack_many(array_agg(id), array_agg(token)) FROM idem.set$$, 'ID003', NULL, 'once');

-- The views: to the owner, to whom it is shared with, to pg_monitor, to others.

SET ROLE idem_ann;
SELECT idem_configure_queue('v', shared_with => '{idem_bob}') \g /dev/null
SELECT idem_enqueue_many('v', '{1,2,3,4}', headers => '{1,2,3,4}') \g /dev/null
SELECT idem_enqueue('v', '5', delay => '1 hour', headers => '5') \g /dev/null
SELECT idem_nack(id, token, '"no"', final => true) FROM idem_dequeue('v') \g /dev/null
SELECT idem_nack(id, token, '"wait"', '1 hour') FROM idem_dequeue('v') \g /dev/null
SELECT id FROM idem_dequeue('v', lease => '1 hour') \g /dev/null
RESET ROLE;
CREATE FUNCTION idem.see(OUT ready bigint, OUT oldest bool, OUT in_flight bigint, OUT delayed bigint, OUT retrying bigint, OUT dead bigint,
	OUT messages text, OUT letters text) RETURNS SETOF record LANGUAGE sql STABLE AS $$
	SELECT q.ready, q.oldest >= '0', q.in_flight, q.delayed, q.retrying, q.dead,
		   (SELECT string_agg(concat(m.state, ' ', m.payload, m.headers, idem.past(m.history)), ', ' ORDER BY m.id) FROM idem_messages AS m WHERE m.queue = 'v'),
		   (SELECT string_agg(concat(l.payload, l.headers, l.last_error, idem.past(l.history)), ', ' ORDER BY l.id) FROM idem_dead_letters AS l WHERE l.queue = 'v')
	  FROM idem_queues AS q WHERE q.queue = 'v'
$$;
SET ROLE idem_ann;
SELECT results_eq('SELECT * FROM idem.see()',
	$$VALUES (1::bigint, true, 1::bigint, 1::bigint, 1::bigint, 1::bigint,
		'retrying 22[{"error": "wait", "attempt": 1}], in_flight 33, ready 44, delayed 55', '11"no"[{"error": "no", "attempt": 1}]')$$, 'ann sees it all');
SET ROLE idem_bob;
SELECT results_eq('SELECT * FROM idem.see()',
	$$VALUES (1::bigint, true, 1::bigint, 1::bigint, 1::bigint, 1::bigint,
		'retrying 22[{"error": "wait", "attempt": 1}], in_flight 33, ready 44, delayed 55', '11"no"[{"error": "no", "attempt": 1}]')$$, 'so does bob, with whom she shares it');
SET ROLE idem_watch;
SELECT results_eq('SELECT * FROM idem.see()',
	$$VALUES (1::bigint, true, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 'retrying , in_flight , ready , delayed ', '')$$, 'pg_monitor sees how many there are, but not what they say');
SET ROLE idem_eve;
SELECT is_empty('SELECT * FROM idem.see()', 'eve sees nothing');
SELECT is_empty('SELECT * FROM idem_messages', 'no message');
SELECT is_empty('SELECT * FROM idem_dead_letters', 'no dead letter');
RESET ROLE;
SELECT lives_ok('SELECT * FROM idem.see()', 'a superuser may look');
UPDATE idem_message SET lease_until = clock_timestamp() - interval '1 s' WHERE queue = 'v' AND payload = '3';
SET ROLE idem_ann;
SELECT results_eq('SELECT ready, in_flight FROM idem.see()', $$VALUES (2::bigint, 0::bigint)$$, 'a lease that has run out holds nothing');
RESET ROLE;

-- What is too large for a page goes through everything.

CREATE TABLE idem.big AS SELECT n, to_jsonb(string_agg(md5(n || ' ' || i), '')) AS payload
  FROM generate_series(1, 3) AS n, generate_series(1, 32768) AS i GROUP BY n;
SELECT is(length(payload #>> '{}'), 1024 * 1024, 'a megabyte that does not compress') FROM idem.big;
SELECT idem_configure_queue('big', max_attempts => 4) \g /dev/null
SELECT idem_enqueue('big', b.payload, 'k', headers => h.payload, message_group => repeat('g', 512)) FROM idem.big AS b, idem.big AS h WHERE b.n = 1 AND h.n = 2 \g /dev/null
CREATE FUNCTION idem.same(payload jsonb, headers jsonb) RETURNS bool LANGUAGE sql STABLE AS
	'SELECT payload = (SELECT b.payload FROM idem.big AS b WHERE n = 1) AND headers = (SELECT b.payload FROM idem.big AS b WHERE n = 2)';
SELECT results_eq($$SELECT attempt, idem.same(payload, headers) FROM idem.take('big 1', 'big')$$, $$VALUES (1, true)$$, 'is taken');
SELECT ok(idem_extend(id, token, '2 hours') > now(), 'extended') FROM idem.taken WHERE name = 'big 1';
SELECT ok(idem.nack('big 1', (SELECT payload FROM idem.big WHERE n = 3), '0') IS NOT NULL, 'given back, with another megabyte');
SELECT results_eq($$SELECT attempt, idem.same(payload, headers) FROM idem.take('big 2', 'big')$$, $$VALUES (2, true)$$, 'is taken again');
SELECT idem.run_out('big') \g /dev/null
SELECT results_eq($$SELECT attempt, idem.same(payload, headers) FROM idem.take('big 3', 'big')$$, $$VALUES (3, true)$$, 'is taken over');
SELECT is(history -> 0 -> 'error', (SELECT payload FROM idem.big WHERE n = 3), 'keeps its history') FROM idem_messages WHERE queue = 'big';
SELECT idem.run_out('big') \g /dev/null
SELECT is(count(*), 1::bigint, 'the last attempt') FROM idem.take('big 4', 'big');
SELECT idem.run_out('big') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_dequeue('big')$$, 'nobody answers');
SELECT ok(idem.same(payload, headers) AND attempt = 4 AND jsonb_array_length(history) = 4 AND history -> 0 -> 'error' = (SELECT payload FROM idem.big WHERE n = 3), 'dead, and all is there')
  FROM idem_dead_letters WHERE queue = 'big';
SELECT is(idem_redrive('big'), 1::bigint, 'redriven');
SELECT results_eq($$SELECT attempt, idem.same(payload, headers) FROM idem.take('big 5', 'big')$$, $$VALUES (1, true)$$, 'is taken once more');
SELECT is(idem.nack('big 5', final => true), NULL, 'dies by a nack');
SELECT ok(idem.same(payload, headers) AND jsonb_array_length(history) = 6, 'dead as before') FROM idem_dead_letters WHERE queue = 'big';
SELECT idem_redrive('big') \g /dev/null
SELECT lives_ok(format('SELECT idem_ack(%s, %s)', id, token), 'and is done') FROM idem_dequeue('big');
CREATE FUNCTION idem.chunks() RETURNS bigint LANGUAGE plpgsql AS
$$
DECLARE
	t regclass;
	n bigint;
	chunks bigint = 0;
BEGIN
	FOR t IN SELECT reltoastrelid FROM pg_class WHERE oid IN ('idem.idem_message'::regclass, 'idem.idem_dead_letter'::regclass) LOOP
		EXECUTE format('SELECT count(*) FROM %s', t) INTO n;
		chunks = chunks + n;
	END LOOP;
	RETURN chunks;
END
$$;
SELECT is(idem.chunks(), 0::bigint, 'nothing of it is left');
SELECT is(count(*), 6::bigint, 'many of them') FROM idem_enqueue_many('big many',
	ARRAY(SELECT payload FROM idem.big, generate_series(1, 2) AS i ORDER BY i, n));
SELECT results_eq($$SELECT b.n, d.payload = b.payload FROM idem_dequeue('big many', 10) WITH ORDINALITY AS d(id, key, payload, headers, attempt, token, e, l, g, k, i)
		JOIN idem.big AS b ON b.n = (d.i - 1) % 3 + 1 ORDER BY d.i$$,
	$$VALUES (1, true), (2, true), (3, true), (1, true), (2, true), (3, true)$$, 'are taken in one go');
SELECT is(count(idem_nack(id, token, payload, final => true)), 0::bigint, 'die') FROM idem_message WHERE queue = 'big many';
SELECT is(idem_purge('big many', true), 6::bigint, 'and are purged');
SELECT is(idem.chunks(), 0::bigint, 'with all that they had');

-- One snapshot for the transaction: what it does not show is not taken, by whomever
-- it was enqueued meanwhile. The token is a check of its own.

SELECT current_database() AS db \gset
\setenv PGDATABASE :db
\setenv PGOPTIONS '-c search_path=idem -c client_min_messages=warning'
SELECT idem_enqueue('snap', '1') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(count(*), 1::bigint, 'repeatable read: one message') FROM idem_messages WHERE queue = 'snap';
\! psql -XqAtc "SELECT idem_enqueue('snap', '2')" >/dev/null
SELECT results_eq($$SELECT payload FROM idem.take('rr 1', 'snap')$$, $$VALUES ('1'::jsonb)$$, 'which is taken');
SELECT is_empty($$SELECT * FROM idem_dequeue('snap', 10)$$, 'but not what came after the snapshot');
SELECT idem_enqueue('snap', '3') \g /dev/null
SELECT results_eq($$SELECT payload FROM idem.take('rr 3', 'snap')$$, $$VALUES ('3'::jsonb)$$, 'one''s own is');
SET LOCAL statement_timeout = '20s';
SELECT is_empty($$SELECT * FROM idem_dequeue('snap', wait => '30 s')$$, 'and there is no waiting for what could not be seen');
COMMIT;
SELECT results_eq($$SELECT payload FROM idem.take('rr 2', 'snap')$$, $$VALUES ('2'::jsonb)$$, 'the next transaction takes it');
SELECT format('SELECT idem_extend(%s, ''1 day'')', idem.args('rr 1')) AS extend \gset
\setenv EXTEND :extend
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM idem_messages \g /dev/null
\! psql -XqAtc "$EXTEND" >/dev/null
SELECT lives_ok($$SELECT idem.ack('rr 1')$$, 'a message that was extended after the snapshot is acknowledged');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(count(*), 2::bigint, 'serializable: two are in flight') FROM idem_messages WHERE queue = 'snap';
\! psql -XqAtc "SELECT idem_enqueue('snap', '4')" >/dev/null
SELECT is_empty($$SELECT * FROM idem_dequeue('snap', 10, wait => '30 s')$$, 'what came after the snapshot is not taken');
SELECT lives_ok($$SELECT idem.ack('rr 2')$$, 'what was taken before is acknowledged');
SELECT ok(idem.nack('rr 3', retry_in => '0') IS NOT NULL, 'or given back');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT set_eq($$SELECT payload FROM idem_dequeue('snap', 10, '1 hour')$$, $$VALUES ('3'::jsonb), ('4')$$, 'the next one takes both');
COMMIT;
BEGIN;
SELECT is_empty($$SELECT * FROM idem_dequeue('snap', 10)$$, 'read committed: none');
\! psql -XqAtc "SELECT idem_enqueue('snap', '5')" >/dev/null
SELECT results_eq($$SELECT payload FROM idem_dequeue('snap')$$, $$VALUES ('5'::jsonb)$$, 'what comes meanwhile is taken');
ROLLBACK;

-- Waiting.

BEGIN;
SELECT is_empty($$SELECT * FROM idem_dequeue('wait', wait => '10 ms')$$, 'nothing comes, within a transaction');
SELECT ok(clock_timestamp() >= now() + interval '10 ms', 'and that took its time');
SELECT idem_enqueue('wait', '1', delay => '20 ms') \g /dev/null
SELECT idem_enqueue('wait', '2', delay => '1 hour') \g /dev/null
SELECT results_eq($$SELECT payload FROM idem_dequeue('wait', 10, '1 hour', '30 s')$$, $$VALUES ('1'::jsonb)$$, 'what is delayed is waited for, and is enough');
COMMIT;
SELECT idem_enqueue_many('wait', '{3,4}') \g /dev/null
SELECT results_eq($$SELECT payload FROM idem_dequeue('wait', 10, '1 hour', '30 s')$$, $$VALUES ('3'::jsonb), ('4')$$, 'what is there is taken at once');
SELECT is_empty($$SELECT * FROM idem_dequeue('wait', 10, wait => '0')$$, 'no time is no waiting');

SELECT idem_enqueue('await', '1', delay => '20 ms') \g /dev/null
CALL idem_await('await', '30 s');
SELECT results_eq($$SELECT payload FROM idem_dequeue('await', lease => '1 hour')$$, $$VALUES ('1'::jsonb)$$, 'idem_await returns when there is something to be taken');
SELECT clock_timestamp() AS before \gset
CALL idem_await('await', '10 ms');
SELECT ok(clock_timestamp() >= :'before'::timestamptz + interval '10 ms', 'or when its time is up: what is in flight is no reason');
SELECT idem_configure_queue('await', paused => true), idem_enqueue('await', '2') \g /dev/null
SELECT clock_timestamp() AS before \gset
CALL idem_await('await', wait => '10 ms');
SELECT ok(clock_timestamp() >= :'before'::timestamptz + interval '10 ms', 'nor is a queue that is paused');
SELECT idem_configure_queue('await') \g /dev/null
SET statement_timeout = '20s';
CALL idem_await('await');
DO $$ BEGIN CALL idem_await('await', owner => current_user); END $$;
RESET statement_timeout;
SET statement_timeout = '60s';
SELECT results_eq($$SELECT state, attempt FROM idem_messages WHERE queue = 'await' AND payload = '2'$$, $$VALUES ('ready', 0)$$, 'it takes nothing');
SELECT throws_ok($$CALL idem_await('await')$$, '25001', 'cannot wait without a snapshot inside a transaction block', 'not in a function');
\set ON_ERROR_STOP 0
BEGIN;
CALL idem_await('await', '0');
ROLLBACK;
SELECT is(:'LAST_ERROR_SQLSTATE'::text, '25001', 'not in a transaction block');
\set LAST_ERROR_SQLSTATE none
BEGIN;
DO $$ BEGIN CALL idem_await('await', '0'); END $$;
ROLLBACK;
\set ON_ERROR_STOP 1
SELECT is(:'LAST_ERROR_SQLSTATE'::text, '25001', 'nor in a block in one');

SELECT * FROM finish();
DROP EXTENSION idempotency CASCADE;
DROP SCHEMA idem CASCADE;
DROP ROLE idem_ann, idem_bob, idem_eve, idem_watch;
