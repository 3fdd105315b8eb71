/* message.c: messages that wait, or are being worked on -------------------- */

/*
 * Fixed-width columns first, and none of them null: message.c reads and changes
 * them in place, and a lease changes twenty bytes of a row.  Half of each page is
 * left free for the version that the lease writes, so that it is a heap-only one:
 * no index entry is made between the enqueue and the acknowledgement, whatever
 * VACUUM may remove meanwhile.  bench/NOTES.md has the figures.
 */
CREATE TABLE @extschema@.idem_message
(
	id				pg_catalog.int8 NOT NULL,
	place			pg_catalog.int8 NOT NULL,
	queue_hash		pg_catalog.int8 NOT NULL,
	enqueued_at		pg_catalog.timestamptz NOT NULL,
	due_at			pg_catalog.timestamptz NOT NULL,
	lease_until		pg_catalog.timestamptz NOT NULL,
	token			pg_catalog.int8 NOT NULL,
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
	PRIMARY KEY (id),
	CHECK (queue_hash OPERATOR(pg_catalog.=) @extschema@.idem_queue_hash(queue))
) USING heap
WITH (fillfactor = 50,
	  autovacuum_vacuum_scale_factor = 0.05,
	  toast.autovacuum_vacuum_scale_factor = 0.05);

/*
 * What to take next, and which message of a group is the first.  A scan for one message
 * reads a page of the former: the hash of the queue makes all its columns of fixed
 * width, which are compared several times faster than a text.
 */
CREATE INDEX idem_message_due ON @extschema@.idem_message
	(queue_hash, owner, priority, due_at, id);
CREATE INDEX idem_message_group ON @extschema@.idem_message
	(owner, queue, message_group, place) WHERE message_group IS NOT NULL;

COMMENT ON TABLE @extschema@.idem_message IS
'Messages that wait to be taken, or are being worked on. Written by the idem_* functions only: triggers, defaults and row security are not honoured, nor are added constraints.';
COMMENT ON COLUMN @extschema@.idem_message.id IS
'Number of the message, of a sequence; never used twice in one database.';
COMMENT ON COLUMN @extschema@.idem_message.place IS
'Where it stands in its group: its id, or, after a redrive, a later number.';
COMMENT ON COLUMN @extschema@.idem_message.queue_hash IS
'Stands for the name of the queue in the index: idem_queue_hash(queue).';
COMMENT ON COLUMN @extschema@.idem_message.enqueued_at IS
'When it was enqueued, by the server''s clock.';
COMMENT ON COLUMN @extschema@.idem_message.due_at IS
'From when on it may be taken: the time of the enqueue and its delay, or of the next attempt.';
COMMENT ON COLUMN @extschema@.idem_message.lease_until IS
'Until when it belongs to whoever took it last; -infinity if nobody has it.';
COMMENT ON COLUMN @extschema@.idem_message.token IS
'Fencing token of the latest lease; 0 if nobody has it.';
COMMENT ON COLUMN @extschema@.idem_message.attempt IS
'How often it was taken.';
COMMENT ON COLUMN @extschema@.idem_message.owner IS
'The role whose queue it is in.';
COMMENT ON COLUMN @extschema@.idem_message.max_attempts IS
'After how many attempts it becomes a dead letter; 0: never, -1: as the queue has it.';
COMMENT ON COLUMN @extschema@.idem_message.priority IS
'Lower numbers first.';
COMMENT ON COLUMN @extschema@.idem_message.queue IS
'Name of the queue; 1 to 63 bytes.';
COMMENT ON COLUMN @extschema@.idem_message.message_group IS
'Messages of one group are taken one at a time, in order; null for none.';
COMMENT ON COLUMN @extschema@.idem_message.key IS
'The key under which it was enqueued once; null for none.';
COMMENT ON COLUMN @extschema@.idem_message.headers IS
'What the producer says about the payload.';
COMMENT ON COLUMN @extschema@.idem_message.payload IS
'What is to be delivered.';
COMMENT ON COLUMN @extschema@.idem_message.history IS
'Attempts that failed, with times and errors, and redrives; the latest twenty.';

CREATE SEQUENCE @extschema@.idem_message_id AS pg_catalog.int8
	OWNED BY @extschema@.idem_message.id;

COMMENT ON SEQUENCE @extschema@.idem_message_id IS
'Numbers the messages, in all queues.';

-- The functions are the only way in: they know whose queue is whose.
REVOKE ALL ON TABLE @extschema@.idem_message FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.idem_message_id FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_message',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_message_id', '');

