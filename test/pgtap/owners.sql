-- Keys of different roles never meet, unless a SECURITY DEFINER function makes
-- them meet on purpose.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO PUBLIC;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

CREATE ROLE idem_ann;
CREATE ROLE idem_bob;
CREATE ROLE idem_shop;
CREATE ROLE idem_staff;
CREATE ROLE idem_clerk IN ROLE idem_staff;

SELECT plan(41);

-- One key, two roles, at the same time.

SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT outcome FROM idem_claim('k', request => '1')$$,
	$$VALUES ('claimed')$$, 'ann claims k');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT throws_ok($$SELECT idem_finish('k', '"bob"')$$, 'ID001', NULL,
	'bob cannot finish it');
SELECT throws_ok($$SELECT idem_release('k')$$, 'ID001', NULL,
	'nor release it');
SELECT is_empty($$SELECT * FROM idem_lookup('k')$$, 'nor see it');
SELECT results_eq($$SELECT outcome FROM idem_claim('k', request => '2')$$,
	$$VALUES ('claimed')$$, 'but he can claim his own k');
SELECT is(idem_finish('k', '"bob"'), '"bob"', 'and finish it');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT state, response FROM idem_lookup('k')$$,
	$$VALUES ('in_progress', NULL::jsonb)$$, 'which does not touch that of ann');
SELECT is(idem_finish('k', '"ann"'), '"ann"', 'ann finishes hers');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '1')$$,
	$$VALUES ('replayed', '"ann"'::jsonb)$$, 'replay for ann');
SELECT results_eq($$SELECT outcome FROM idem_claim('k', request => '2')$$,
	$$VALUES ('mismatch')$$, 'who learns nothing about the request of bob');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k', request => '2')$$,
	$$VALUES ('replayed', '"bob"'::jsonb)$$, 'replay for bob');
SELECT ok(idem_forget('k'), 'bob forgets');
SELECT is_empty($$SELECT * FROM idem_lookup('k')$$, 'his own record');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT response FROM idem_lookup('k')$$,
	$$VALUES ('"ann"'::jsonb)$$, 'and no other');

-- It is the current role that counts, not the one that logged in, and
-- membership opens nothing by itself.

SET LOCAL SESSION AUTHORIZATION idem_clerk;
SELECT is(idem_finish(outcome), NULL, 'a key of the clerk')
  FROM (SELECT 'badge' AS outcome FROM idem_claim('badge')) AS c;
SET LOCAL ROLE idem_staff;
SELECT is_empty($$SELECT * FROM idem_lookup('badge')$$,
	'is not one of the group');
SELECT is(idem_finish(outcome), NULL, 'a key of the group')
  FROM (SELECT 'rota' AS outcome FROM idem_claim('rota')) AS c;
RESET ROLE;
SELECT is_empty($$SELECT * FROM idem_lookup('rota')$$,
	'is not one of the clerk');
SET LOCAL ROLE idem_staff;
SELECT isnt_empty($$SELECT * FROM idem_lookup('rota')$$,
	'but of whoever acts as the group');
RESET SESSION AUTHORIZATION;
SELECT is_empty($$SELECT * FROM idem_lookup('k')$$,
	'not even a superuser meets the keys of others');
SELECT set_eq($$SELECT owner::text, scope, key FROM idem_key$$,
	$$VALUES ('idem_clerk', '', 'badge'), ('idem_ann', '', 'k'),
			 ('idem_staff', '', 'rota')$$,
	'though he can read the table');

-- idem_expire removes one's own, and everybody's for the tables' owner.

UPDATE idem_key SET expires_at = 'epoch';
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is(idem_expire(), 0::bigint, 'bob has nothing that has expired');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT is(idem_expire(), 1::bigint, 'ann removes hers');
SET LOCAL SESSION AUTHORIZATION idem_clerk;
SELECT is(idem_expire(), 1::bigint, 'the clerk removes his, not those of the group');
RESET SESSION AUTHORIZATION;
SELECT is(idem_expire(), 1::bigint, 'the owner of the tables removes the rest');

-- Sharing on purpose: whoever may call the wrapper shares its keys, and
-- meets none of them otherwise.

GRANT CREATE ON SCHEMA idem TO idem_shop;
SET LOCAL SESSION AUTHORIZATION idem_shop;
CREATE FUNCTION idem.shop_claim(order_id text, OUT outcome text, OUT response jsonb)
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = idem, pg_temp
	AS 'SELECT outcome, response FROM idem_claim(order_id, scope => ''shop'')';
CREATE FUNCTION idem.shop_finish(order_id text, response jsonb) RETURNS jsonb
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = idem, pg_temp
	AS 'SELECT idem_finish(order_id, response, scope => ''shop'')';
REVOKE EXECUTE ON FUNCTION idem.shop_claim, idem.shop_finish FROM PUBLIC;
GRANT EXECUTE ON FUNCTION idem.shop_claim, idem.shop_finish TO idem_ann, idem_bob;

SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT outcome, response FROM shop_claim('o1')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'ann claims through the wrapper');
SELECT is_empty($$SELECT * FROM idem_in_flight WHERE key = 'o1'$$,
	'but does not see the key that the wrapper made of it');
SELECT throws_ok($$SELECT idem_finish('o1', NULL, 'shop')$$, 'ID001', NULL,
	'and cannot finish beside it');
SELECT is(shop_finish('o1', '"sold"'), '"sold"', 'but through it');
SELECT is_empty($$SELECT * FROM idem_lookup('o1', 'shop')$$,
	'the record is not hers');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT results_eq($$SELECT outcome, response FROM shop_claim('o1')$$,
	$$VALUES ('replayed', '"sold"'::jsonb)$$, 'bob gets it replayed through the wrapper');
SELECT is_empty($$SELECT * FROM idem_lookup('o1', 'shop')$$,
	'the record is not his');
SELECT results_eq($$SELECT outcome FROM idem_claim('o1', scope => 'shop')$$,
	$$VALUES ('claimed')$$, 'beside it he claims a key of his own');
SELECT lives_ok($$SELECT idem_release('o1', 'shop')$$, 'and releases it');
SET LOCAL SESSION AUTHORIZATION idem_clerk;
SELECT throws_ok($$SELECT * FROM shop_claim('o1')$$, '42501', NULL,
	'the clerk may not share');
SET LOCAL SESSION AUTHORIZATION idem_shop;
SELECT results_eq($$SELECT response FROM idem_lookup('o1', 'shop')$$,
	$$VALUES ('"sold"'::jsonb)$$, 'the record is that of the owner of the wrapper');

-- A role that is gone leaves records that nobody meets and that expire.

RESET SESSION AUTHORIZATION;
CREATE ROLE idem_temp;
SET LOCAL SESSION AUTHORIZATION idem_temp;
SELECT is(idem_finish('last', '"words"'), '"words"', 'a key of a role')
  FROM idem_claim('last');
RESET SESSION AUTHORIZATION;
SELECT lives_ok($$DROP ROLE idem_temp$$, 'that can be dropped');
UPDATE idem_key SET expires_at = 'epoch' WHERE key = 'last';
SELECT ok(owner::text ~ '^[0-9]+$', 'the record has lost its name')
  FROM idem_key WHERE key = 'last';
SELECT is(idem_expire(), 1::bigint, 'and expires');
SELECT is(idem_expire(), 0::bigint, 'once');

SELECT * FROM finish();
ROLLBACK;
