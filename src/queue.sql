/* queue.c: queues that are configured -------------------------------------- */

-- A queue needs no row: without one, or with nulls in it, the settings rule.
CREATE TABLE @extschema@.idem_queue
(
	owner			pg_catalog.regrole NOT NULL,
	queue			pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	paused			pg_catalog.bool NOT NULL,
	max_attempts	pg_catalog.int4,
	backoff_base	pg_catalog.interval,
	backoff_cap		pg_catalog.interval,
	jitter			pg_catalog.text COLLATE pg_catalog."C",
	dead_letter_ttl	pg_catalog.interval,
	shared_with		pg_catalog.regrole[],
	PRIMARY KEY (owner, queue)
) USING heap;

COMMENT ON TABLE @extschema@.idem_queue IS
'Queues that were configured by idem_configure_queue, which is the only way to write here.';
COMMENT ON COLUMN @extschema@.idem_queue.owner IS
'The role whose queue it is.';
COMMENT ON COLUMN @extschema@.idem_queue.queue IS
'Name of the queue; 1 to 63 bytes.';
COMMENT ON COLUMN @extschema@.idem_queue.paused IS
'Whether nothing is to be taken for now.';
COMMENT ON COLUMN @extschema@.idem_queue.max_attempts IS
'After how many attempts a message becomes a dead letter; 0: never, null: setting idempotency.max_attempts.';
COMMENT ON COLUMN @extschema@.idem_queue.backoff_base IS
'First delay of the backoff; null: setting idempotency.backoff_base.';
COMMENT ON COLUMN @extschema@.idem_queue.backoff_cap IS
'Longest delay of the backoff; null: setting idempotency.backoff_cap.';
COMMENT ON COLUMN @extschema@.idem_queue.jitter IS
'Jitter of the backoff: none, full, equal or decorrelated; null: full.';
COMMENT ON COLUMN @extschema@.idem_queue.dead_letter_ttl IS
'How long dead letters are kept; null: setting idempotency.dead_letter_ttl.';
COMMENT ON COLUMN @extschema@.idem_queue.shared_with IS
'Roles that may use the queue as its owner does; null for none.';

REVOKE ALL ON TABLE @extschema@.idem_queue FROM PUBLIC;

-- But not if it is shared with a role that is gone, whose number may be somebody
-- else's where the dump is restored.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_queue',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner) AND NOT EXISTS (SELECT FROM pg_catalog.unnest(shared_with) AS s (oid) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) s.oid))');

CREATE FUNCTION @extschema@.idem_queue_hash(queue pg_catalog.text)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idem_queue_hash'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

COMMENT ON FUNCTION @extschema@.idem_queue_hash(pg_catalog.text) IS
'What stands for the name of a queue in the index of idem_message, for those who write rows by hand.';

CREATE FUNCTION @extschema@.idem_configure_queue(
	queue pg_catalog.text,
	max_attempts pg_catalog.int4 DEFAULT NULL,
	backoff_base pg_catalog.interval DEFAULT NULL,
	backoff_cap pg_catalog.interval DEFAULT NULL,
	jitter pg_catalog.text DEFAULT NULL,
	dead_letter_ttl pg_catalog.interval DEFAULT NULL,
	shared_with pg_catalog.text[] DEFAULT NULL,
	paused pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_configure_queue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_configure_queue(pg_catalog.text, pg_catalog.int4, pg_catalog.interval, pg_catalog.interval, pg_catalog.text, pg_catalog.interval, pg_catalog.text[], pg_catalog.bool) IS
'Configure one of your queues, as a whole: what is not given is as the settings have it. shared_with names roles that may use the queue, too; paused stops its consumers.';

