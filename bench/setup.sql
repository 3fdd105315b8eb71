-- The tables of the variants, and what fills them. "hand" is what people write, and
-- keeps what an idempotency key is kept for: whose it is, when it was claimed and
-- finished, until when it counts, and the response.
CREATE EXTENSION idempotency;

CREATE TABLE hand (
	scope text NOT NULL,
	key text NOT NULL,
	created_at timestamptz NOT NULL,
	finished_at timestamptz,
	expires_at timestamptz NOT NULL,
	response jsonb,
	PRIMARY KEY (scope, key)
);

-- The least that works, for one application and nobody to ask when it was.
CREATE TABLE lean (
	key text PRIMARY KEY,
	created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL,
	response jsonb
);

-- The same for those whose keys are all UUIDs.
CREATE TABLE lean_uuid (
	key uuid PRIMARY KEY,
	created_at timestamptz NOT NULL DEFAULT now(),
	expires_at timestamptz NOT NULL,
	response jsonb
);

-- The floor: the very row that claim + finish leave behind, inserted by SQL.
CREATE TABLE floor (LIKE idem_key INCLUDING DEFAULTS INCLUDING INDEXES);

-- Two functions on a table like "hand".
CREATE TABLE hand_pl (LIKE hand INCLUDING INDEXES);

CREATE FUNCTION hand_claim(k text, OUT outcome text, OUT response jsonb) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(k, 0));
	SELECT h.response INTO response FROM hand_pl AS h
	WHERE h.scope = '' AND h.key = k AND h.expires_at > clock_timestamp();
	IF FOUND THEN
		outcome := 'replayed';
	ELSE
		outcome := 'claimed';
		INSERT INTO hand_pl (scope, key, created_at, expires_at)
		VALUES ('', k, clock_timestamp(), clock_timestamp() + '24 hours')
		ON CONFLICT (scope, key) DO UPDATE SET created_at = EXCLUDED.created_at,
			expires_at = EXCLUDED.expires_at, finished_at = NULL, response = NULL;
	END IF;
END $$;

CREATE FUNCTION hand_finish(k text, r jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	UPDATE hand_pl SET response = r, finished_at = clock_timestamp() WHERE scope = '' AND key = k;
	RETURN r;
END $$;

-- Leases by hand, and the steps of flows.
CREATE TABLE hand_lease (
	scope text NOT NULL,
	key text NOT NULL,
	token uuid NOT NULL,
	created_at timestamptz NOT NULL,
	lease_until timestamptz NOT NULL,
	finished_at timestamptz,
	expires_at timestamptz NOT NULL,
	response jsonb,
	PRIMARY KEY (scope, key)
);

CREATE TABLE hand_step (
	key text NOT NULL,
	step text NOT NULL,
	finished_at timestamptz NOT NULL,
	result jsonb,
	PRIMARY KEY (key, step)
);

-- What the one round trip writes beside its key.
CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account int NOT NULL,
	amount numeric NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A queue by hand: jobs that are ready are found by a partial index, one who takes a job
-- changes its state. A table for the one queue, and its attempts are the token.
CREATE TABLE job (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	state text NOT NULL DEFAULT 'ready',
	run_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	attempt int NOT NULL DEFAULT 0,
	locked_until timestamptz,
	payload jsonb NOT NULL
);
CREATE INDEX ON job (run_at) WHERE state = 'ready';

-- The method of pgmq: a table for each queue, and functions that make their statements of
-- its name.
CREATE TABLE mq_bench (
	msg_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	read_ct int NOT NULL DEFAULT 0,
	enqueued_at timestamptz NOT NULL DEFAULT now(),
	vt timestamptz NOT NULL,
	message jsonb,
	headers jsonb
);
CREATE INDEX ON mq_bench (vt);

CREATE TYPE mq_message AS (
	msg_id bigint, read_ct int, enqueued_at timestamptz, vt timestamptz, message jsonb, headers jsonb
);

CREATE FUNCTION mq_table(queue text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF queue !~ '^[[:alnum:]_]+$' THEN
		RAISE EXCEPTION 'not the name of a queue: %', queue;
	END IF;
	RETURN 'mq_' || lower(queue);
END $$;

CREATE FUNCTION mq_send_at(queue text, message jsonb, headers jsonb, vt timestamptz) RETURNS SETOF bigint
LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE format('INSERT INTO %I (vt, message, headers) VALUES ($1, $2, $3) RETURNING msg_id',
		mq_table(queue)) USING vt, message, headers;
END $$;

CREATE FUNCTION mq_send(queue text, message jsonb) RETURNS SETOF bigint LANGUAGE sql AS $$
SELECT * FROM mq_send_at(queue, message, NULL, clock_timestamp())
$$;

CREATE FUNCTION mq_send_batch_at(queue text, messages jsonb[], vt timestamptz) RETURNS SETOF bigint
LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE format(
		'INSERT INTO %I (vt, message, headers) SELECT $1, unnest($2), NULL RETURNING msg_id',
		mq_table(queue)) USING vt, messages;
END $$;

CREATE FUNCTION mq_send_batch(queue text, messages jsonb[]) RETURNS SETOF bigint LANGUAGE sql AS $$
SELECT * FROM mq_send_batch_at(queue, messages, clock_timestamp())
$$;

CREATE FUNCTION mq_read(queue text, seconds int, number int) RETURNS SETOF mq_message LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE format(
		'WITH c AS (SELECT msg_id FROM %1$I WHERE vt <= clock_timestamp() ORDER BY msg_id LIMIT $1
			FOR UPDATE SKIP LOCKED)
		UPDATE %1$I AS m SET vt = clock_timestamp() + %2$L, read_ct = read_ct + 1
		FROM c WHERE m.msg_id = c.msg_id
		RETURNING m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers',
		mq_table(queue), make_interval(secs => seconds)) USING number;
END $$;

CREATE FUNCTION mq_delete(queue text, id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deleted bigint;
BEGIN
	EXECUTE format('DELETE FROM %I WHERE msg_id = $1 RETURNING msg_id', mq_table(queue)) INTO deleted USING id;
	RETURN deleted IS NOT NULL;
END $$;

CREATE FUNCTION mq_delete_batch(queue text, ids bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE format('DELETE FROM %I WHERE msg_id = ANY ($1) RETURNING msg_id', mq_table(queue))
		USING ids;
END $$;

-- Messages that wait.
CREATE PROCEDURE fill_queue(total bigint, payload jsonb) LANGUAGE plpgsql AS $$
DECLARE
	chunk CONSTANT int := 10000;
BEGIN
	FOR start IN 0 .. total - 1 BY chunk LOOP
		PERFORM FROM idem_enqueue_many('bench',
			array_fill(payload, ARRAY[least(chunk, total - start)::int]));
		COMMIT;
	END LOOP;
END $$;

-- The keys that are there before a case begins. The first two are repeated by number,
-- the other two fill large tables: random ones, and ones of times long past.
CREATE FUNCTION present_key(kind text, n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT CASE kind
	WHEN 'repeat' THEN '00000000-0000-4000-8000-' || (100000000000 + n)
	WHEN 'text' THEN 'order-made-by-somebody-x' || (100000000000 + n)
	WHEN 'random' THEN md5(n::text)::uuid::text
	ELSE overlay(overlay(md5(n::text) PLACING lpad(to_hex(1600000000000 + n), 12, '0') FROM 1)
		PLACING '7' FROM 13)::uuid::text
END $$;

-- Ours are claimed and finished like all others, no more in a transaction than it may
-- lock, so that each row is written once.
CREATE PROCEDURE fill_idem(kind text, total bigint, response jsonb) LANGUAGE plpgsql AS $$
DECLARE
	chunk CONSTANT int := 50;
	keys text[];
BEGIN
	FOR start IN 0 .. total - 1 BY chunk LOOP
		keys := ARRAY(SELECT present_key(kind, n)
			FROM generate_series(start, least(start + chunk, total) - 1) AS n);
		PERFORM FROM idem_claim_many(keys);
		PERFORM FROM idem_finish_many(keys, array_fill(response, ARRAY[cardinality(keys)]));
		COMMIT;
	END LOOP;
END $$;
