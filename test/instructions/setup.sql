-- What count.py compares: see there.
CREATE EXTENSION idempotency;

-- What people write by hand, keeping what we keep.
CREATE TABLE hand (
	scope text NOT NULL,
	key text NOT NULL,
	created_at timestamptz NOT NULL,
	finished_at timestamptz,
	expires_at timestamptz NOT NULL,
	response jsonb,
	PRIMARY KEY (scope, key)
);
CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account int NOT NULL,
	amount numeric NOT NULL
);

-- Keys to repeat, in both.
INSERT INTO hand
SELECT '', md5('old ' || i)::uuid, now(), now(), now() + '100 years', '{"id": 1234567, "status": "paid", "amount": 4200}'
  FROM generate_series(1, 5000) AS i;
DO $$
BEGIN
	PERFORM FROM idem_claim_many((SELECT array_agg(key ORDER BY key) FROM hand), ttl => '100 years');
	PERFORM FROM idem_finish_many((SELECT array_agg(key ORDER BY key) FROM hand), (SELECT array_agg(response ORDER BY key) FROM hand));
END $$;
VACUUM ANALYZE;
