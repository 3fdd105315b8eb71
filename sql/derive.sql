-- idem_derive: the key to hand to the next system. These values may never change.
CREATE EXTENSION idempotency;

SELECT idem_derive('order-1', 'charge');
SELECT idem_derive('order-1', 'mail');
SELECT idem_derive('order-1', '');
SELECT idem_derive('order-1', 'charge', 'tenant');
SELECT idem_derive('order-1', 'charge', namespace => '6ba7b810-9dad-11d1-80b4-00c04fd430c8');
SELECT idem_derive(U&'Bestellung \00e4\20ac\+01F511', U&'\00e9');
SELECT idem_derive(repeat('k', 512), repeat('s', 128), repeat('c', 128), 'ffffffff-ffff-ffff-ffff-ffffffffffff');

-- The same, made by hand: version 8, variant 2, over length-prefixed UTF-8.
CREATE FUNCTION derive(key text, step text, scope text, namespace uuid) RETURNS uuid LANGUAGE sql AS $$
	WITH d AS (
		SELECT sha256(uuid_send(namespace)
					  || int4send(octet_length(convert_to(scope, 'UTF8'))) || convert_to(scope, 'UTF8')
					  || int4send(octet_length(convert_to(key, 'UTF8'))) || convert_to(key, 'UTF8')
					  || int4send(octet_length(convert_to(step, 'UTF8'))) || convert_to(step, 'UTF8')) AS digest
	)
	SELECT encode(set_byte(set_byte(substr(digest, 1, 16),
									6, (get_byte(digest, 6) & 15) | 128),
						   8, (get_byte(digest, 8) & 63) | 128), 'hex')::uuid
	FROM d
$$;
SELECT bool_and(idem_derive(key, step, scope, n) = derive(key, step, scope, COALESCE(n, 'f47ff103-c916-4f03-a0f7-ada3d7810fe9')))
FROM unnest(ARRAY['k', 'order-1', repeat('k', 512), U&'\00e4\20ac\+01F511']) AS key,
	 unnest(ARRAY['', 's', repeat('s', 128), U&'\00e9']) AS step,
	 unnest(ARRAY['', 'c', repeat('c', 128)]) AS scope,
	 unnest(ARRAY[NULL, '00000000-0000-0000-0000-000000000000', '6ba7b810-9dad-11d1-80b4-00c04fd430c8']::uuid[]) AS n;

-- No two are the same, wherever the one argument ends and the next begins.
SELECT count(DISTINCT idem_derive(key, step, scope)), count(*)
FROM (VALUES ('a', 'bc', ''), ('ab', 'c', ''), ('abc', '', ''), ('a', 'b', 'c'), ('b', 'a', 'c'),
			 ('c', 'b', 'a'), ('ab', '', 'c'), ('c', '', 'ab'), ('a', '', 'bc')) AS v(key, step, scope);

-- Nobody and nothing but the arguments has a say.
CREATE ROLE regress_idem_other;
SET ROLE regress_idem_other;
SELECT idem_derive('order-1', 'charge');
RESET ROLE;
DROP ROLE regress_idem_other;

SELECT idem_derive(NULL, 's');
SELECT idem_derive('k', NULL);
SELECT idem_derive('k', 's', NULL);
SELECT idem_derive('', 's');
SELECT idem_derive(repeat('k', 513), 's');
SELECT idem_derive('k', repeat('s', 129));
SELECT idem_derive('k', 's', repeat('c', 129));

DROP FUNCTION derive;
DROP EXTENSION idempotency;
