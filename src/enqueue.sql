/* enqueue.c: messages come in ---------------------------------------------- */

CREATE TYPE @extschema@.idem_enqueue_answer AS
(
	id			pg_catalog.int8,
	duplicate	pg_catalog.bool
);

COMMENT ON TYPE @extschema@.idem_enqueue_answer IS
'What idem_enqueue_many and idem_receive answer for each message.';
COMMENT ON COLUMN @extschema@.idem_enqueue_answer.id IS
'Id of the message, or of the one that was enqueued with this key before.';
COMMENT ON COLUMN @extschema@.idem_enqueue_answer.duplicate IS
'Whether there was one before, so that nothing was enqueued now.';

CREATE FUNCTION @extschema@.idem_enqueue(
	queue pg_catalog.text,
	payload pg_catalog.jsonb,
	key pg_catalog.text DEFAULT NULL,
	delay pg_catalog.interval DEFAULT NULL,
	max_attempts pg_catalog.int4 DEFAULT NULL,
	priority pg_catalog.int4 DEFAULT 0,
	message_group pg_catalog.text DEFAULT NULL,
	headers pg_catalog.jsonb DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idem_enqueue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_enqueue(pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.interval, pg_catalog.int4, pg_catalog.int4, pg_catalog.text, pg_catalog.jsonb, pg_catalog.interval, pg_catalog.text) IS
'Put a message into a queue, in your own transaction: it can be taken once that commits. The same key enqueues once within its ttl, and answers the id of the first. Returns the id.';

CREATE FUNCTION @extschema@.idem_enqueue_many(
	queue pg_catalog.text,
	payloads pg_catalog.jsonb[],
	keys pg_catalog.text[] DEFAULT NULL,
	delay pg_catalog.interval DEFAULT NULL,
	max_attempts pg_catalog.int4 DEFAULT NULL,
	priority pg_catalog.int4 DEFAULT 0,
	message_groups pg_catalog.text[] DEFAULT NULL,
	headers pg_catalog.jsonb[] DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS SETOF @extschema@.idem_enqueue_answer
AS 'MODULE_PATHNAME', 'idem_enqueue_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION @extschema@.idem_enqueue_many(pg_catalog.text, pg_catalog.jsonb[], pg_catalog.text[], pg_catalog.interval, pg_catalog.int4, pg_catalog.int4, pg_catalog.text[], pg_catalog.jsonb[], pg_catalog.interval, pg_catalog.text) IS
'Put many messages into a queue at once: as idem_enqueue for each payload, with the key, group and headers at the same place. Answers in the order given.';

CREATE FUNCTION @extschema@.idem_receive(
	source pg_catalog.text,
	message_id pg_catalog.text,
	payload pg_catalog.jsonb,
	queue pg_catalog.text DEFAULT NULL,
	headers pg_catalog.jsonb DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL,
	message_group pg_catalog.text DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS @extschema@.idem_enqueue_answer
AS 'MODULE_PATHNAME', 'idem_receive'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_receive(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb, pg_catalog.text, pg_catalog.jsonb, pg_catalog.interval, pg_catalog.text, pg_catalog.text) IS
'Inbox: put what a source has sent into a queue (by default of the source''s name), once for each message_id of the source within the ttl. To be called in FROM.';

