-- The cases' tables.  "hand" is what people write, and keeps what an idempotency
-- key is kept for: whose it is, when it was claimed and finished, until when it
-- counts, and the response.
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

-- The floor: the very row that claim + finish leave behind, inserted by SQL.
CREATE TABLE floor (
	expires_at timestamptz NOT NULL,
	claimed_at timestamptz NOT NULL,
	finished_at timestamptz,
	owner regrole NOT NULL,
	scope text COLLATE "C" NOT NULL,
	key text COLLATE "C" NOT NULL,
	fingerprint bytea,
	response jsonb,
	PRIMARY KEY (key, scope, owner)
);

-- 10 000 finished keys to repeat.
BEGIN;
INSERT INTO hand
SELECT '', 'repeat-0000-0000-0000-0000-00000' || lpad(i::text, 4, '0'), now(), now(), now() + '24 hours',
	'{"id": 1234567, "status": "paid", "amount": 4200}'
FROM generate_series(0, 9999) AS i;
INSERT INTO lean SELECT key, created_at, expires_at, response FROM hand;
INSERT INTO idem_key (expires_at, claimed_at, finished_at, id, owner, scope, key, fingerprint, response)
SELECT now() + '24 hours', now(), now(), idem_key_id('repeat-0000-0000-0000-0000-00000' || lpad(i::text, 4, '0')), current_user::regrole, '',
	'repeat-0000-0000-0000-0000-00000' || lpad(i::text, 4, '0'), NULL,
	'{"id": 1234567, "status": "paid", "amount": 4200}'
FROM generate_series(0, 9999) AS i;
COMMIT;
VACUUM ANALYZE;

-- What the one round trip writes beside its key.
CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account int NOT NULL,
	amount numeric NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
