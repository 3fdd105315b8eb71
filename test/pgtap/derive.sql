-- Derived keys: other systems remember them, so none may ever change. Vectors
-- are pinned, and everything is computed a second time, in SQL.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(47);

-- As the reference has it: the first 16 bytes of the SHA-256 of the namespace and
-- of scope, key and step in UTF-8, each behind its length; version 8, variant 10.

CREATE FUNCTION with_length(value text) RETURNS bytea LANGUAGE sql IMMUTABLE AS
$$SELECT int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8')$$;
CREATE FUNCTION expected(key text, step text, scope text = '', namespace uuid = NULL) RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$
	SELECT encode(set_byte(set_byte(d, 6, (get_byte(d, 6) & 15) | 128), 8, (get_byte(d, 8) & 63) | 128), 'hex')::uuid
	  FROM substr(sha256(uuid_send(COALESCE(namespace, 'f47ff103-c916-4f03-a0f7-ada3d7810fe9'))
		|| with_length(scope) || with_length(key) || with_length(step)), 1, 16) AS d
$$;
CREATE TEMPORARY TABLE vector (n int GENERATED ALWAYS AS IDENTITY, key text, step text, scope text, namespace uuid, derived uuid);
INSERT INTO vector (key, step, scope, namespace, derived) VALUES
	('order-1', 'charge', '', NULL, '6165d98e-7806-81ce-83b6-38dcc3d6e93a'),
	('order-1', 'mail', '', NULL, 'e0d41e94-1d7e-8efb-b3e6-2a9740c91f6f'),
	('order-1', '', '', NULL, '1bd2b7d5-9a8e-8c15-8e0f-2a12ef9d81fb'),
	('order-1', 'charge', 'tenant', NULL, '3c43251b-2749-8406-9a59-799a74d5d030'),
	('order-1', 'charge', '', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '2d75c41b-b4a4-887c-a534-ee3ea921e7f3'),
	('ab', 'c', '', NULL, '33722d64-e399-81c3-af49-f4c68d89ec39'),
	('a', 'bc', '', NULL, '7b26179e-9f69-840d-8aeb-b5ef34ed5d59'),
	(' ', ' ', ' ', NULL, 'bd04b7c3-e5f4-8ac4-8d31-4b238690a229'),
	(U&'\00e9', U&'\20ac', U&'\+01F511', NULL, 'd2a47924-0164-8159-89f3-be6e091f507e'),
	(U&'e\0301', 's', '', NULL, 'b8eb49c4-4ec4-827d-bdbb-b58fa6ad2763'),
	(U&'\00e9', 's', '', NULL, '6fdf643f-1a65-8bc9-81c8-ed2f91657d42'),
	(repeat('k', 512), repeat('s', 128), repeat('t', 128), NULL, '2b6befba-8346-8f31-9192-768457289823'),
	('k', 's', '', '00000000-0000-0000-0000-000000000000', 'f219b01d-8ddc-8720-9a62-8b33fc19e3f3'),
	('k', 's', '', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'd976708e-1076-841a-8396-f6d488880185');
SELECT is(idem_derive(key, step, scope, namespace), derived, format('pinned: %s, %s, %s, %s', left(key, 10), left(step, 10), left(scope, 10), namespace))
  FROM vector ORDER BY n;
SELECT is(expected(key, step, scope, namespace), derived, format('computed: %s, %s, %s, %s', left(key, 10), left(step, 10), left(scope, 10), namespace))
  FROM vector ORDER BY n;
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'scope and namespace may be left out');
SELECT is(idem_derive('order-1', 'charge', namespace => 'f47ff103-c916-4f03-a0f7-ada3d7810fe9'), idem_derive('order-1', 'charge'),
	'the default namespace is no secret');

-- Many, of every length.

CREATE TEMPORARY TABLE many AS
SELECT i, repeat(chr(97 + i % 26), i % 512) || i % 10 AS key, repeat(U&'\00e9', i % 65) AS step, repeat('s', i % 129) AS scope,
	   CASE WHEN i % 3 > 0 THEN md5(i::text)::uuid END AS namespace
  FROM generate_series(1, 3000) AS i;
SELECT is_empty($$SELECT i FROM many WHERE idem_derive(key, step, scope, namespace) IS DISTINCT FROM expected(key, step, scope, namespace)$$,
	'as computed in SQL');
SELECT is_empty($$SELECT i FROM many WHERE idem_derive(key, step, scope, namespace)::text !~ '^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'$$,
	'version and variant');
SELECT results_eq($$SELECT count(DISTINCT idem_derive(key, step, scope, namespace)) FROM many$$,
	$$SELECT count(*) FROM (SELECT DISTINCT key, step, scope, namespace FROM many) AS d$$, 'others for others');
SELECT set_eq($$SELECT DISTINCT get_byte(uuid_send(idem_derive('k' || i, '')), 8) >> 4 FROM generate_series(1, 1000) AS i$$,
	ARRAY[8, 9, 10, 11], 'the rest of these bytes is not fixed');
SELECT is(count(DISTINCT get_byte(uuid_send(idem_derive('k' || i, '')), 6)), 16::bigint, 'in either') FROM generate_series(1, 1000) AS i;

-- Where one argument ends and the next begins is part of it, and which is which.

CREATE TEMPORARY TABLE alike AS
SELECT * FROM (VALUES ('ab', 'c', ''), ('a', 'bc', ''), ('abc', '', ''), ('a', '', 'bc'), ('c', '', 'ab'), ('a', 'b', 'c'), ('a', 'c', 'b'), ('b', 'a', 'c'),
	('b', 'c', 'a'), ('c', 'a', 'b'), ('c', 'b', 'a'), ('bc', '', 'a'), ('bc', 'a', ''), ('c', 'ab', ''), ('b', 'ac', ''), ('abc', ' ', ''), ('abc', '', ' '), ('abc ', '', ''),
	('ABC', '', ''), (E'a\nbc', '', '')) AS a(key, step, scope);
SELECT is_empty(
	$$SELECT a, b FROM alike AS a JOIN alike AS b ON a <> b AND idem_derive(a.key, a.step, a.scope) = idem_derive(b.key, b.step, b.scope)$$,
	'the same letters in other places');
SELECT isnt(idem_derive('k', 's'), idem_derive('k', 's', namespace => '00000000-0000-0000-0000-000000000000'), 'a namespace makes another one, all zeros too');
SELECT isnt(idem_derive('k', 's', namespace => '11111111-1111-4111-8111-111111111111'), idem_derive('k', 's', namespace => '11111111-1111-4111-8111-111111111112'),
	'by a single bit');

-- Nothing else has a say in it: no owner, no installation, no setting, no claim.

CREATE ROLE idem_ann;
SET LOCAL ROLE idem_ann;
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'for another role');
RESET ROLE;
SELECT is(outcome, 'claimed', 'a claim') FROM idem_claim('order-1', request => '1');
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'of the key');
SELECT is(idem_finish('order-1', '1'), '1', 'and the finish');
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'change nothing');
UPDATE idem_secret SET secret = gen_random_uuid();
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'nor does the secret');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA idem;
SELECT is(idem_derive('order-1', 'charge'), '6165d98e-7806-81ce-83b6-38dcc3d6e93a', 'nor another installation');

-- Immutable: it may be stored, and indexed.

CREATE TABLE outgoing (key text, derived uuid GENERATED ALWAYS AS (idem.idem_derive(key, 'charge')) STORED);
CREATE UNIQUE INDEX ON outgoing (idem.idem_derive(key, 'mail'));
INSERT INTO outgoing VALUES ('order-1'), ('order-2');
SELECT results_eq($$SELECT derived FROM outgoing WHERE idem_derive(key, 'mail') = 'e0d41e94-1d7e-8efb-b3e6-2a9740c91f6f'$$,
	$$VALUES ('6165d98e-7806-81ce-83b6-38dcc3d6e93a'::uuid)$$, 'in a column and in an index');
SELECT throws_ok($$INSERT INTO outgoing VALUES ('order-1')$$, '23505', NULL, 'that is unique');

SELECT * FROM finish();
ROLLBACK;
