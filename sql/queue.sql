-- A queue for mail: from the order that asks for one to the dead letter, and back.
-- Times are set by hand.
CREATE EXTENSION idempotency;
CREATE TABLE orders (id int PRIMARY KEY, buyer text);
CREATE TABLE sent (message_id bigint, recipient text);

-- three attempts, an hour between them, then twice as long, without jitter
SELECT idem_configure_queue('mail', max_attempts => 3, backoff_base => '1 hour', jitter => 'none');

-- the outbox: the message leaves with the order, or not at all
BEGIN;
INSERT INTO orders VALUES (1, 'ann');
SELECT idem_enqueue('mail', '{"to": "ann", "about": "order 1"}', key => 'order 1') AS id;
COMMIT;
BEGIN;
INSERT INTO orders VALUES (2, 'bob');
SELECT idem_enqueue('mail', '{"to": "bob", "about": "order 2"}', key => 'order 2') AS id;
ROLLBACK;
SELECT queue, ready, in_flight, delayed, retrying, dead, paused FROM idem_queues;

-- the same key again: the id of the first one, and nothing is enqueued
SELECT idem_enqueue('mail', '{"to": "ann", "about": "order 1"}', key => 'order 1') AS id;
-- a webhook that comes twice says so
SELECT * FROM idem_receive('shop', 'evt_3', '{"to": "eve", "about": "order 3"}', queue => 'mail');
SELECT * FROM idem_receive('shop', 'evt_3', '{"to": "eve", "about": "order 3"}', queue => 'mail');
-- many at once; the urgent one comes first, the reminder tomorrow
SELECT * FROM idem_enqueue_many('mail', '{"{\"to\": \"dan\"}","{\"to\": \"ann\"}"}', keys => '{order 4,order 1}');
SELECT idem_enqueue('mail', '{"to": "ops", "about": "fire"}', key => 'fire', priority => -10) AS id;
SELECT idem_enqueue('mail', '{"to": "ann", "about": "reminder"}', delay => '1 day') AS id;
SELECT id, state, priority, key, payload FROM idem_messages ORDER BY id;

-- a consumer takes what is due, and nobody else gets it
SELECT id, key, payload, attempt, token > 0 AS token, lease_until > now() AS leased,
	downstream_key = idem_derive(key, 'message', 'queue:mail') AS derived
FROM idem_dequeue('mail', max_messages => 3, lease => '1 hour');
SELECT id, key FROM idem_dequeue('mail', max_messages => 3, lease => '1 hour');
SELECT id, key FROM idem_dequeue('mail', max_messages => 3, lease => '1 hour');
SELECT state, count(*) FROM idem_messages GROUP BY state ORDER BY state;

-- done: the effect and the acknowledgement commit together
SELECT id, token FROM idem_message WHERE key = 'fire' \gset
BEGIN;
INSERT INTO sent VALUES (:id, 'ops');
SELECT idem_ack(:id, :token);
COMMIT;
SELECT recipient FROM sent;
-- once
SELECT idem_ack(:id, 1);

-- failed: again in an hour
SELECT id, token FROM idem_message WHERE key = 'order 1' \gset
SELECT idem_nack(:id, :token, '"greylisted"') >= now() + interval '1 hour' AS in_an_hour;
SELECT id, state, attempt FROM idem_messages WHERE id = :id;
UPDATE idem_message SET due_at = '2000-01-01' WHERE id = :id;
SELECT id, attempt FROM idem_dequeue('mail');

-- no answer: the lease runs out, somebody else takes the message over
SELECT token AS old FROM idem_message WHERE id = :id \gset
UPDATE idem_message SET lease_until = '2000-01-01 UTC' WHERE id = :id;
SELECT id, attempt, token AS new FROM idem_dequeue('mail') \gset
SELECT :attempt AS attempt, :new <> :old AS new_token;
SELECT idem_ack(:id, :old);
SELECT idem_extend(:id, :new, '1 hour') > now() + interval '59 min' AS extended;

-- the last attempt fails, too: a dead letter
SELECT idem_nack(:id, :new, '"mailbox full"') AS retry_at;
SELECT id, queue, attempt, last_error, key, payload, expires_at - died_at AS kept FROM idem_dead_letters;
SELECT e -> 'attempt' AS attempt, e -> 'error' AS error, e -> 'lease' AS lease
FROM idem_dead_letters, jsonb_array_elements(history) AS e;
-- no retry will help
SELECT id, token FROM idem_message WHERE key = 'shop/evt_3' \gset
SELECT idem_nack(:id, :token, '"no such user"', final => true) AS retry_at;
SELECT id, attempt, last_error FROM idem_dead_letters ORDER BY id;
SELECT queue, ready, in_flight, delayed, retrying, dead FROM idem_queues;

-- the mailbox was emptied: once more, with all attempts
SELECT idem_redrive('mail', ids => ARRAY(SELECT id FROM idem_dead_letters WHERE last_error = '"mailbox full"')) AS redriven;
SELECT id, token, attempt, key, downstream_key = idem_derive('order 1', 'message', 'queue:mail') AS same_key FROM idem_dequeue('mail') \gset
SELECT :id AS id, :attempt AS attempt, :'key' AS key, :'same_key' AS same_key;
SELECT history -> -1 -> 'attempt' AS after, history -> -1 ? 'redriven_by' AS redriven FROM idem_messages WHERE id = :id;
SELECT idem_ack(:id, :token);
-- the other one goes
SELECT idem_purge('mail', dead_letters => true) AS purged;
-- the key is still known
SELECT idem_enqueue('mail', '{"to": "ann", "about": "order 1"}', key => 'order 1') = :id AS same_id;
SELECT state, response = to_jsonb(:id) AS its_id FROM idem_lookup('order 1', 'queue:mail');

-- one after the other: messages of a group
SELECT count(*) FROM idem_enqueue_many('steps', '{1,2,3}', message_groups => '{a,a,b}');
SELECT payload, message_group FROM idem_dequeue('steps', 10);
SELECT payload, state FROM idem_messages WHERE queue = 'steps' ORDER BY id;
SELECT count(idem_ack(id, token)) AS acknowledged FROM idem_message WHERE queue = 'steps' AND token <> 0;
SELECT payload FROM idem_dequeue('steps', 10);

-- paused, and gone on
SELECT idem_configure_queue('jobs', paused => true);
SELECT idem_enqueue('jobs', '"job"') > 0 AS enqueued;
SELECT payload FROM idem_dequeue('jobs');
SELECT idem_configure_queue('jobs');
SELECT payload FROM idem_dequeue('jobs');

-- nothing comes
SELECT * FROM idem_dequeue('nothing', wait => '10 ms');
CALL idem_await('nothing', '10 ms');
BEGIN;
CALL idem_await('nothing', '10 ms');
ROLLBACK;

-- whose queue it is, and with whom it is shared
CREATE ROLE regress_idem_ann;
CREATE ROLE regress_idem_bob;
SET ROLE regress_idem_ann;
SELECT idem_enqueue('mail', '"of ann"') > 0 AS enqueued;
SET ROLE regress_idem_bob;
SELECT * FROM idem_dequeue('mail');
SELECT * FROM idem_dequeue('mail', owner => 'regress_idem_ann');
SELECT count(*) FROM idem_messages;
SET ROLE regress_idem_ann;
SELECT idem_configure_queue('mail', shared_with => '{regress_idem_bob}');
SET ROLE regress_idem_bob;
SELECT owner, queue, ready FROM idem_queues;
SELECT payload FROM idem_dequeue('mail', owner => 'regress_idem_ann');
RESET ROLE;

-- bad input
SELECT idem_enqueue(NULL, '1');
SELECT idem_enqueue(repeat('q', 64), '1');
SELECT idem_enqueue('mail', NULL);
SELECT idem_enqueue('mail', '1', priority => 40000);
SELECT idem_enqueue_many('mail', '{1,2}', keys => '{a}');
SELECT idem_receive('a/b', '1', '1');
SELECT * FROM idem_dequeue('mail', 0);
SELECT * FROM idem_dequeue('mail', lease => '0');
SELECT * FROM idem_dequeue('mail', wait => '1 min');
SELECT idem_ack(NULL, 1);
SELECT idem_ack_many('{1,2}', '{1}');
SELECT idem_nack(1, 1, retry_in => '-1 s');
SELECT idem_redrive('mail', max_messages => 0);
SELECT idem_configure_queue('mail', jitter => 'much');

DROP TABLE orders, sent;
DROP EXTENSION idempotency;
DROP ROLE regress_idem_ann, regress_idem_bob;
