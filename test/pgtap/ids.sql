-- The IDs under which keys are stored: they are dumped and replicated, so none may
-- ever change. Vectors are pinned, and everything is computed a second time, in SQL.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(54);

-- A UUID in its usual form, without a scope and not of version 8, is its own ID.
-- Of all else it is made of the SHA-256 of scope and key in the encoding of the
-- database, which is UTF-8 here, each behind its length; version 8, variant 10.

CREATE FUNCTION with_length(value text) RETURNS bytea LANGUAGE sql IMMUTABLE AS
$$SELECT int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8')$$;
CREATE FUNCTION expected(key text, scope text = '') RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$
	SELECT CASE
		WHEN scope = '' AND key COLLATE "C" ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-79a-f][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN key::uuid
		ELSE encode(set_byte(set_byte(d, 6, (get_byte(d, 6) & 15) | 128), 8, (get_byte(d, 8) & 63) | 128), 'hex')::uuid
	END
	  FROM substr(sha256(with_length(scope) || with_length(key)), 1, 16) AS d
$$;
CREATE TEMPORARY TABLE vector (n int GENERATED ALWAYS AS IDENTITY, key text, scope text, id uuid);
INSERT INTO vector (key, scope, id) VALUES
	('550e8400-e29b-41d4-a716-446655440000', '', '550e8400-e29b-41d4-a716-446655440000'),
	('01890a5d-ac96-774b-bcce-b302099a8057', '', '01890a5d-ac96-774b-bcce-b302099a8057'),
	('00000000-0000-0000-0000-000000000000', '', '00000000-0000-0000-0000-000000000000'),
	('ffffffff-ffff-ffff-ffff-ffffffffffff', '', 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
	('550e8400-e29b-81d4-a716-446655440000', '', '980cf729-f326-8d69-a7e3-abb7ae5dd8f2'),
	('550e8400-e29b-41d4-a716-446655440000', 'shop', '7f133f5c-894c-830c-8740-36eafd209e78'),
	('550E8400-E29B-41D4-A716-446655440000', '', '8c54d415-3fe1-8dc5-ac6e-90a0cd46983f'),
	('550e8400e29b41d4a716446655440000', '', '18d20ec3-f06d-8a38-bf4f-534369c06ba7'),
	('{550e8400-e29b-41d4-a716-446655440000}', '', '207c4eaa-5110-8c94-b8ba-e52ead3650d2'),
	('550e8400-e29b-41d4-a716-44665544000g', '', '13422e77-0b76-826f-8c0b-d1d2d9496714'),
	('order-1', '', 'ac724b77-4f05-8003-a1b1-995ecbb9890f'),
	('order-1', 'shop', 'a8ef18bb-db26-8c5a-8b22-848d20a82d14'),
	(U&'Gr\00fc\00dfe, \4e16\754c', '', '17c42c5d-4368-83a4-b498-c585cc505c9d'),
	(repeat('k', 512), repeat('s', 128), 'afa53cf5-a41f-8643-88eb-9a287a7da62c');
SELECT is(idem_key_id(key, scope), id, format('pinned: %s, %s', left(key, 40), left(scope, 10)))
  FROM vector ORDER BY n;
SELECT is(expected(key, scope), id, format('computed: %s, %s', left(key, 40), left(scope, 10)))
  FROM vector ORDER BY n;
SELECT is(idem_key_id('order-1'), 'ac724b77-4f05-8003-a1b1-995ecbb9890f', 'the scope may be left out');

-- Many, of every length; and UUIDs with one character changed, at each place.

CREATE TEMPORARY TABLE many AS
SELECT repeat(chr(97 + i % 26), i % 512) || i % 10 AS key, repeat('s', i % 129) AS scope
  FROM generate_series(1, 3000) AS i
UNION
SELECT overlay('550e8400-e29b-41d4-a716-446655440000' PLACING c FROM place), scope
  FROM generate_series(1, 36) AS place, unnest('{0,8,9,a,f,g,A,F,/,:,`,@,-,"",00}'::text[]) AS c, unnest('{"",s}'::text[]) AS scope
UNION
SELECT gen_random_uuid()::text, '' FROM generate_series(1, 1000);
SELECT is_empty($$SELECT key, scope FROM many WHERE idem_key_id(key, scope) IS DISTINCT FROM expected(key, scope)$$,
	'as computed in SQL');
SELECT results_eq($$SELECT count(DISTINCT idem_key_id(key, scope)) FROM many$$, $$SELECT count(*) FROM many$$,
	'no two keys have the same');

-- Bad arguments are those of a claim.

SELECT throws_ok($$SELECT idem_key_id(NULL)$$, '22004', NULL, 'no key');
SELECT throws_ok($$SELECT idem_key_id('k', NULL)$$, '22004', NULL, 'no scope');
SELECT throws_ok($$SELECT idem_key_id('')$$, '22023', NULL, 'an empty key');
SELECT throws_ok($$SELECT idem_key_id(repeat('k', 513))$$, '54000', NULL, 'a long key');
SELECT throws_ok($$SELECT idem_key_id('k', repeat('s', 129))$$, '54000', NULL, 'a long scope');

-- Rows have the ID of their key, whoever writes them, and are found by it.

SELECT set_eq(
	$$SELECT key FROM vector, LATERAL idem_claim(key, scope => scope) AS c, LATERAL idem_finish(key, '1', scope) WHERE outcome = 'claimed'$$,
	$$SELECT key FROM vector$$, 'all are claimed');
SELECT set_eq($$SELECT coalesce(key, id::text), scope, id FROM idem_key$$, $$SELECT key, scope, id FROM vector$$, 'and stored under their IDs');
SELECT set_eq($$SELECT id FROM idem_key WHERE key IS NULL$$, $$SELECT id FROM vector WHERE key = id::text$$, 'but for the key itself where that is the ID');
SELECT set_eq($$SELECT key, state FROM vector, LATERAL idem_lookup(key, scope)$$, $$SELECT key, 'finished' FROM vector$$, 'and are looked up');
SELECT is_empty($$SELECT outcome FROM vector, LATERAL idem_claim(key, scope => scope) WHERE outcome <> 'replayed'$$, 'and found');
SELECT throws_ok($$UPDATE idem_key SET id = gen_random_uuid() WHERE key = 'order-1' AND scope = ''$$, '23514', NULL,
	'no row gets another ID');
SELECT throws_ok($$UPDATE idem_key SET key = 'order-2' WHERE key = 'order-1' AND scope = ''$$, '23514', NULL,
	'nor another key under its ID');
SELECT throws_ok($$INSERT INTO idem_key (expires_at, claimed_at, id, owner, scope, key)
		VALUES ('infinity', now(), gen_random_uuid(), current_user::regrole, '', 'new')$$, '23514', NULL,
	'nor is one written under a wrong one');
SELECT throws_ok($$UPDATE idem_key SET key = NULL WHERE key = 'order-1' AND scope = ''$$, '23514', NULL,
	'nor without its key');
SELECT throws_ok($$UPDATE idem_key SET scope = 's' WHERE key IS NULL$$, '23514', NULL,
	'nor in a scope without its key');
SELECT lives_ok($$UPDATE idem_key SET key = id::text WHERE key IS NULL$$, 'a key may be written that need not be');
SELECT is_empty($$SELECT outcome FROM vector, LATERAL idem_claim(key, scope => scope) WHERE outcome <> 'replayed'$$, 'and is found as well');

-- A lease under a UUID is listed by its key.

SELECT is(outcome, 'claimed', 'a lease') FROM idem_claim('0d1f1c1a-7b3c-4d5e-8f90-123456789abc', lease => '1 min');
SELECT results_eq($$SELECT key, state FROM idem_in_flight WHERE key ~ '^0d1f'$$, $$VALUES ('0d1f1c1a-7b3c-4d5e-8f90-123456789abc', 'in_progress')$$, 'and listed by its key');
SELECT ok(idem_release('0d1f1c1a-7b3c-4d5e-8f90-123456789abc', token => token) IS NOT NULL, 'and released') FROM idem_key WHERE state = 'p';

-- A row under the ID of another key, as it would be if SHA-256 were broken.

ALTER TABLE idem_key DROP CONSTRAINT idem_key_check;
UPDATE idem_key SET key = 'order-2' WHERE key = 'order-1' AND scope = '';
SELECT throws_ok($$SELECT outcome FROM idem_claim('order-1')$$, 'XX002', NULL, 'is not taken for that of the key');
SELECT is(outcome, 'claimed', 'and is not found under its own') FROM idem_claim('order-2');
UPDATE idem_key SET key = NULL WHERE key = 'order-2';
SELECT throws_ok($$SELECT outcome FROM idem_claim('order-1')$$, 'XX002', NULL, 'nor is one without any key');

SELECT * FROM finish();
ROLLBACK;
