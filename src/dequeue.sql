/* dequeue.c: messages go out ----------------------------------------------- */

CREATE TYPE @extschema@.idem_dequeue_answer AS
(
	id				pg_catalog.int8,
	key				pg_catalog.text,
	payload			pg_catalog.jsonb,
	headers			pg_catalog.jsonb,
	attempt			pg_catalog.int4,
	token			pg_catalog.int8,
	enqueued_at		pg_catalog.timestamptz,
	lease_until		pg_catalog.timestamptz,
	message_group	pg_catalog.text,
	downstream_key	pg_catalog.uuid
);

COMMENT ON TYPE @extschema@.idem_dequeue_answer IS
'What idem_dequeue answers for each message.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.id IS
'Id of the message, for idem_ack, idem_nack, idem_extend.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.key IS
'The key under which it was enqueued; null for none.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.payload IS
'What is to be delivered.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.headers IS
'What the producer says about the payload.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.attempt IS
'Which attempt this is, from 1.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.token IS
'Fencing token of this delivery, the same for all messages of the call; for idem_ack, idem_nack, idem_extend.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.enqueued_at IS
'When it was enqueued.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.lease_until IS
'Until when nobody else gets it.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.message_group IS
'The group that it is in; null for none.';
COMMENT ON COLUMN @extschema@.idem_dequeue_answer.downstream_key IS
'A key for the system that it is delivered to, the same in every attempt.';

CREATE FUNCTION @extschema@.idem_dequeue(
	queue pg_catalog.text,
	max_messages pg_catalog.int4 DEFAULT 1,
	lease pg_catalog.interval DEFAULT '30 seconds',
	wait pg_catalog.interval DEFAULT NULL,
	owner pg_catalog.text DEFAULT NULL)
RETURNS SETOF @extschema@.idem_dequeue_answer
AS 'MODULE_PATHNAME', 'idem_dequeue'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION @extschema@.idem_dequeue(pg_catalog.text, pg_catalog.int4, pg_catalog.interval, pg_catalog.interval, pg_catalog.text) IS
'Take up to max_messages that are due, by priority and time; nobody else gets them until the lease runs out. With wait, up to 30 seconds until there are some. Waits for no other consumer.';

CREATE FUNCTION @extschema@.idem_ack(
	id pg_catalog.int8,
	token pg_catalog.int8)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_ack'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_ack(pg_catalog.int8, pg_catalog.int8) IS
'The message is done: remove it. In the transaction of its effect, that happens exactly once in this database. ID003 if somebody else has taken it over.';

CREATE FUNCTION @extschema@.idem_nack(
	id pg_catalog.int8,
	token pg_catalog.int8,
	error pg_catalog.jsonb DEFAULT NULL,
	retry_in pg_catalog.interval DEFAULT NULL,
	final pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idem_nack'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_nack(pg_catalog.int8, pg_catalog.int8, pg_catalog.jsonb, pg_catalog.interval, pg_catalog.bool) IS
'The message has failed: try again after retry_in (null: the backoff of its queue), and return when; or null, if it is a dead letter now, for it is final or has used up its attempts.';

CREATE FUNCTION @extschema@.idem_extend(
	id pg_catalog.int8,
	token pg_catalog.int8,
	lease pg_catalog.interval DEFAULT '30 seconds')
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idem_extend'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_extend(pg_catalog.int8, pg_catalog.int8, pg_catalog.interval) IS
'Still at it: extend the lease to so long from now, and return until when it is valid.';

CREATE FUNCTION @extschema@.idem_ack_many(
	ids pg_catalog.int8[],
	tokens pg_catalog.int8[])
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_ack_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_ack_many(pg_catalog.int8[], pg_catalog.int8[]) IS
'As idem_ack for each, all or none.';

CREATE FUNCTION @extschema@.idem_nack_many(
	ids pg_catalog.int8[],
	tokens pg_catalog.int8[],
	errors pg_catalog.jsonb[] DEFAULT NULL,
	retry_in pg_catalog.interval DEFAULT NULL,
	final pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_nack_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_nack_many(pg_catalog.int8[], pg_catalog.int8[], pg_catalog.jsonb[], pg_catalog.interval, pg_catalog.bool) IS
'As idem_nack for each, all or none.';

CREATE FUNCTION @extschema@.idem_extend_many(
	ids pg_catalog.int8[],
	tokens pg_catalog.int8[],
	lease pg_catalog.interval DEFAULT '30 seconds')
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_extend_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_extend_many(pg_catalog.int8[], pg_catalog.int8[], pg_catalog.interval) IS
'As idem_extend for each, all or none.';

CREATE PROCEDURE @extschema@.idem_await(
	queue pg_catalog.text,
	wait pg_catalog.interval DEFAULT '30 seconds',
	owner pg_catalog.text DEFAULT NULL)
AS 'MODULE_PATHNAME', 'idem_await'
LANGUAGE C;

COMMENT ON PROCEDURE @extschema@.idem_await(pg_catalog.text, pg_catalog.interval, pg_catalog.text) IS
'Wait until a queue has a message that can be taken, up to 30 seconds, without a snapshot or a transaction: what waits here keeps VACUUM from nothing. To be called outside of a transaction block.';

