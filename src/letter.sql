/* letter.c: dead letters --------------------------------------------------- */

CREATE TABLE @extschema@.idem_dead_letter
(
	id				pg_catalog.int8 NOT NULL,
	enqueued_at		pg_catalog.timestamptz NOT NULL,
	died_at			pg_catalog.timestamptz NOT NULL,
	expires_at		pg_catalog.timestamptz NOT NULL,
	attempt			pg_catalog.int4 NOT NULL,
	owner			pg_catalog.regrole NOT NULL,
	max_attempts	pg_catalog.int4 NOT NULL,
	priority		pg_catalog.int2 NOT NULL,
	queue			pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	message_group	pg_catalog.text COLLATE pg_catalog."C",
	key				pg_catalog.text COLLATE pg_catalog."C",
	headers			pg_catalog.jsonb,
	payload			pg_catalog.jsonb NOT NULL,
	history			pg_catalog.jsonb,
	PRIMARY KEY (id)
) USING heap;

CREATE INDEX idem_dead_letter_queue ON @extschema@.idem_dead_letter
	(owner, queue, id);

COMMENT ON TABLE @extschema@.idem_dead_letter IS
'Messages that have used up their attempts. Written by the idem_* functions only; better read through the view idem_dead_letters.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.id IS
'Number of the message.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.enqueued_at IS
'When it was enqueued.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.died_at IS
'When its last attempt failed, or when it was found that nobody had answered.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.expires_at IS
'From when on it may be removed.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.attempt IS
'How often it was taken.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.owner IS
'The role whose queue it was in.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.max_attempts IS
'After how many attempts it was to die; 0: never, -1: as the queue has it.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.priority IS
'Lower numbers first.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.queue IS
'Name of the queue.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.message_group IS
'The group that it was in; null for none.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.key IS
'The key under which it was enqueued once; null for none.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.headers IS
'What the producer says about the payload.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.payload IS
'What was to be delivered.';
COMMENT ON COLUMN @extschema@.idem_dead_letter.history IS
'Attempts that failed, with times and errors, and redrives; the latest twenty.';

REVOKE ALL ON TABLE @extschema@.idem_dead_letter FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_dead_letter',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)');

CREATE FUNCTION @extschema@.idem_redrive(
	queue pg_catalog.text,
	ids pg_catalog.int8[] DEFAULT NULL,
	max_messages pg_catalog.int4 DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idem_redrive'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_redrive(pg_catalog.text, pg_catalog.int8[], pg_catalog.int4, pg_catalog.text) IS
'Put dead letters back into their queue, the ones named or all, oldest first, up to max_messages; return how many. Attempts are counted anew, and the history says who did it.';

CREATE FUNCTION @extschema@.idem_purge(
	queue pg_catalog.text,
	dead_letters pg_catalog.bool DEFAULT false,
	max_messages pg_catalog.int4 DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idem_purge'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_purge(pg_catalog.text, pg_catalog.bool, pg_catalog.int4, pg_catalog.text) IS
'Throw away the messages of a queue, but for those that a consumer has, or its dead letters; return how many. Their keys stay.';

/*
 * Each role sees what is in the queues that it may use; pg_monitor sees all, but not
 * what the messages say.
 */
CREATE VIEW @extschema@.idem_messages WITH (security_barrier) AS
SELECT m.id,
	   m.owner,
	   m.queue,
	   CASE WHEN m.lease_until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN 'in_flight'
			WHEN m.due_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() THEN 'ready'
			WHEN m.attempt OPERATOR(pg_catalog.=) 0 THEN 'delayed'
			ELSE 'retrying' END AS state,
	   m.priority,
	   m.attempt,
	   m.due_at,
	   CASE WHEN m.lease_until OPERATOR(pg_catalog.<>) '-infinity' THEN m.lease_until END AS lease_until,
	   m.enqueued_at,
	   m.message_group,
	   m.key,
	   CASE WHEN u.may_use THEN m.headers END AS headers,
	   CASE WHEN u.may_use THEN m.payload END AS payload,
	   CASE WHEN u.may_use THEN m.history END AS history
  FROM @extschema@.idem_message AS m
	   LEFT JOIN @extschema@.idem_queue AS q
			  ON q.owner OPERATOR(pg_catalog.=) m.owner
			 AND q.queue OPERATOR(pg_catalog.=) m.queue,
	   LATERAL (SELECT pg_catalog.pg_has_role(m.owner, 'USAGE')
					   OR EXISTS (SELECT FROM pg_catalog.unnest(q.shared_with) AS r (oid)
								   WHERE pg_catalog.pg_has_role(r.oid, 'USAGE')) AS may_use) AS u
 WHERE u.may_use OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW @extschema@.idem_messages IS
'Messages that wait or are being worked on, in the queues that you may use; pg_monitor sees all, but not what they say.';
COMMENT ON COLUMN @extschema@.idem_messages.id IS
'Id of the message.';
COMMENT ON COLUMN @extschema@.idem_messages.owner IS
'The role whose queue it is in.';
COMMENT ON COLUMN @extschema@.idem_messages.queue IS
'Name of the queue.';
COMMENT ON COLUMN @extschema@.idem_messages.state IS
'ready, delayed (not due yet), retrying (not due again yet) or in_flight (out on lease).';
COMMENT ON COLUMN @extschema@.idem_messages.priority IS
'Lower numbers first.';
COMMENT ON COLUMN @extschema@.idem_messages.attempt IS
'How often it was taken.';
COMMENT ON COLUMN @extschema@.idem_messages.due_at IS
'From when on it may be taken.';
COMMENT ON COLUMN @extschema@.idem_messages.lease_until IS
'Until when it belongs, or belonged, to whoever took it last.';
COMMENT ON COLUMN @extschema@.idem_messages.enqueued_at IS
'When it was enqueued.';
COMMENT ON COLUMN @extschema@.idem_messages.message_group IS
'The group that it is in; null for none.';
COMMENT ON COLUMN @extschema@.idem_messages.key IS
'The key under which it was enqueued; null for none.';
COMMENT ON COLUMN @extschema@.idem_messages.headers IS
'What the producer says about the payload.';
COMMENT ON COLUMN @extschema@.idem_messages.payload IS
'What is to be delivered.';
COMMENT ON COLUMN @extschema@.idem_messages.history IS
'Attempts that failed, with times and errors, and redrives; the latest twenty.';

CREATE VIEW @extschema@.idem_dead_letters WITH (security_barrier) AS
SELECT l.id,
	   l.owner,
	   l.queue,
	   l.died_at,
	   l.attempt,
	   CASE WHEN u.may_use THEN l.history OPERATOR(pg_catalog.->) -1 OPERATOR(pg_catalog.->) 'error' END AS last_error,
	   l.enqueued_at,
	   l.expires_at,
	   l.message_group,
	   l.key,
	   CASE WHEN u.may_use THEN l.headers END AS headers,
	   CASE WHEN u.may_use THEN l.payload END AS payload,
	   CASE WHEN u.may_use THEN l.history END AS history
  FROM @extschema@.idem_dead_letter AS l
	   LEFT JOIN @extschema@.idem_queue AS q
			  ON q.owner OPERATOR(pg_catalog.=) l.owner
			 AND q.queue OPERATOR(pg_catalog.=) l.queue,
	   LATERAL (SELECT pg_catalog.pg_has_role(l.owner, 'USAGE')
					   OR EXISTS (SELECT FROM pg_catalog.unnest(q.shared_with) AS r (oid)
								   WHERE pg_catalog.pg_has_role(r.oid, 'USAGE')) AS may_use) AS u
 WHERE u.may_use OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW @extschema@.idem_dead_letters IS
'Messages that have used up their attempts, of the queues that you may use; pg_monitor sees all, but not what they say. idem_redrive puts them back, idem_purge throws them away.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.id IS
'Id of the message, for idem_redrive.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.owner IS
'The role whose queue it was in.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.queue IS
'Name of the queue.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.died_at IS
'When its last attempt failed, or when it was found that nobody had answered.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.attempt IS
'How often it was taken.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.last_error IS
'What the last idem_nack said; null if its lease ran out.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.enqueued_at IS
'When it was enqueued.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.expires_at IS
'From when on it may be removed.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.message_group IS
'The group that it was in; null for none.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.key IS
'The key under which it was enqueued; null for none.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.headers IS
'What the producer says about the payload.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.payload IS
'What was to be delivered.';
COMMENT ON COLUMN @extschema@.idem_dead_letters.history IS
'Attempts that failed, with times and errors, and redrives; the latest twenty.';

CREATE VIEW @extschema@.idem_queues WITH (security_barrier) AS
WITH message AS (
	SELECT m.owner, m.queue,
		   pg_catalog.count(*) FILTER (WHERE m.state OPERATOR(pg_catalog.=) 'ready') AS ready,
		   pg_catalog.count(*) FILTER (WHERE m.state OPERATOR(pg_catalog.=) 'in_flight') AS in_flight,
		   pg_catalog.count(*) FILTER (WHERE m.state OPERATOR(pg_catalog.=) 'delayed') AS delayed,
		   pg_catalog.count(*) FILTER (WHERE m.state OPERATOR(pg_catalog.=) 'retrying') AS retrying,
		   pg_catalog.min(m.due_at) FILTER (WHERE m.state OPERATOR(pg_catalog.=) 'ready') AS due_at
	  FROM @extschema@.idem_messages AS m
	 GROUP BY m.owner, m.queue
), letter AS (
	SELECT l.owner, l.queue, pg_catalog.count(*) AS dead
	  FROM @extschema@.idem_dead_letters AS l
	 GROUP BY l.owner, l.queue
), name AS (
	SELECT m.owner, m.queue FROM message AS m
	UNION
	SELECT l.owner, l.queue FROM letter AS l
	UNION
	SELECT q.owner, q.queue FROM @extschema@.idem_queue AS q
	 WHERE pg_catalog.pg_has_role(q.owner, 'USAGE')
		OR EXISTS (SELECT FROM pg_catalog.unnest(q.shared_with) AS r (oid)
					WHERE pg_catalog.pg_has_role(r.oid, 'USAGE'))
		OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
)
SELECT n.owner,
	   n.queue,
	   COALESCE(m.ready, 0) AS ready,
	   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) m.due_at AS oldest,
	   COALESCE(m.in_flight, 0) AS in_flight,
	   COALESCE(m.delayed, 0) AS delayed,
	   COALESCE(m.retrying, 0) AS retrying,
	   COALESCE(l.dead, 0) AS dead,
	   COALESCE(q.paused, false) AS paused
  FROM name AS n
	   LEFT JOIN message AS m
			  ON m.owner OPERATOR(pg_catalog.=) n.owner
			 AND m.queue OPERATOR(pg_catalog.=) n.queue
	   LEFT JOIN letter AS l
			  ON l.owner OPERATOR(pg_catalog.=) n.owner
			 AND l.queue OPERATOR(pg_catalog.=) n.queue
	   LEFT JOIN @extschema@.idem_queue AS q
			  ON q.owner OPERATOR(pg_catalog.=) n.owner
			 AND q.queue OPERATOR(pg_catalog.=) n.queue;

COMMENT ON VIEW @extschema@.idem_queues IS
'The queues that you may use and what is in them; pg_monitor sees all. Reads all messages.';
COMMENT ON COLUMN @extschema@.idem_queues.owner IS
'The role whose queue it is.';
COMMENT ON COLUMN @extschema@.idem_queues.queue IS
'Name of the queue.';
COMMENT ON COLUMN @extschema@.idem_queues.ready IS
'Messages that can be taken, or, in a group, wait for their turn.';
COMMENT ON COLUMN @extschema@.idem_queues.oldest IS
'For how long the oldest of these has been due; null if there are none.';
COMMENT ON COLUMN @extschema@.idem_queues.in_flight IS
'Messages that are out on lease.';
COMMENT ON COLUMN @extschema@.idem_queues.delayed IS
'Messages that are not due yet.';
COMMENT ON COLUMN @extschema@.idem_queues.retrying IS
'Messages that have failed and are not due again yet.';
COMMENT ON COLUMN @extschema@.idem_queues.dead IS
'Dead letters.';
COMMENT ON COLUMN @extschema@.idem_queues.paused IS
'Whether the queue is paused.';

GRANT SELECT ON @extschema@.idem_messages TO PUBLIC;
GRANT SELECT ON @extschema@.idem_dead_letters TO PUBLIC;
GRANT SELECT ON @extschema@.idem_queues TO PUBLIC;

