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

SELECT plan(78);

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

-- Batches, steps, commands.

SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{k,many}')$$,
	$$VALUES ('k', 'replayed', '"ann"'::jsonb), ('many', 'claimed', NULL)$$, 'a batch of ann');
SELECT is(idem_step_finish('many', 's', '"ann"'), '"ann"', 'with a step');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is_empty($$SELECT * FROM idem_steps('many')$$, 'which bob does not see');
SELECT throws_ok($$SELECT * FROM idem_step('many', 's')$$, 'ID001', NULL, 'nor ask for');
SELECT throws_ok($$SELECT idem_step_finish('many', 't')$$, 'ID001', NULL, 'nor add one');
SELECT throws_ok($$SELECT * FROM idem_finish_many('{many}')$$, 'ID001', NULL,
	'nor finish the batch');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{k,many}')$$,
	$$VALUES ('k', 'claimed', NULL::jsonb), ('many', 'claimed', NULL)$$, 'he has his own');
SELECT results_eq($$SELECT done, result FROM idem_step('many', 's')$$,
	$$VALUES (false, NULL::jsonb)$$, 'in which nothing is done');
SELECT is(idem_step_finish('many', 's', '"bob"'), '"bob"', 'and then his');
SELECT results_eq($$SELECT * FROM idem_finish_many('{k,many}', '{"\"bob\"","\"bob\""}')$$,
	$$VALUES ('k', '"bob"'::jsonb), ('many', '"bob"')$$, 'bob finishes his batch');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT step, result FROM idem_steps('many')$$,
	$$VALUES ('s', '"ann"'::jsonb)$$, 'which does not touch that of ann');
SELECT results_eq($$SELECT * FROM idem_finish_many('{many}', '{"\"ann\""}')$$,
	$$VALUES ('many', '"ann"'::jsonb)$$, 'ann finishes hers');
SELECT results_eq($$SELECT outcome, token IS NOT NULL FROM idem_claim_many('{lease}', lease => '1 hour')$$,
	$$VALUES ('claimed', true)$$, 'a lease of ann');
RESET SESSION AUTHORIZATION;
CREATE TEMPORARY TABLE lease AS SELECT token FROM idem_key WHERE key = 'lease';
GRANT SELECT ON lease TO PUBLIC;
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT throws_ok(format(command, token), 'ID003', NULL, format(command, '…') || ': the token opens nothing for bob')
  FROM lease, unnest(ARRAY[
	'SELECT * FROM idem_step(''lease'', ''s'', token => %s)',
	'SELECT idem_step_finish(''lease'', ''s'', token => %s)',
	'SELECT * FROM idem_finish_many(''{lease}'', tokens => ''{%s}'')']) AS command;
SELECT results_eq($$SELECT outcome, response FROM idem_once('cmd', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_bob"'::jsonb)$$, 'a command of bob');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT is_empty($$SELECT * FROM idem_lookup('cmd')$$, 'is not one of ann');
SELECT results_eq($$SELECT outcome, response FROM idem_once('cmd', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_ann"'::jsonb)$$, 'the same of ann runs anew');
SELECT set_config('request.headers', '{"idempotency-key": "http"}', true) \g /dev/null
SELECT is(idem_http('SELECT current_user'), '"idem_ann"', 'a request of ann');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT is(idem_http('SELECT current_user'), '"idem_bob"', 'is not one of bob');
SELECT is(idem_http('SELECT current_user'), '"idem_bob"', 'who repeats his own');
SELECT is(current_setting('response.headers')::jsonb, '[{"Idempotency-Replayed": "true"}]',
	'as the answer says');
RESET SESSION AUTHORIZATION;
SELECT set_eq(
	$$SELECT k.owner::text, s.step, s.result FROM idem_step AS s JOIN idem_key AS k USING (generation)$$,
	$$VALUES ('idem_ann', 's', '"ann"'::jsonb), ('idem_bob', 's', '"bob"')$$,
	'each step belongs to the key of its owner');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT ok(bool_and(idem_forget(key)), 'bob forgets again')
  FROM unnest(ARRAY['k', 'many', 'cmd']) AS key;
SELECT ok(idem_forget('http', ''), 'and his request');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT step, result FROM idem_steps('many')$$,
	$$VALUES ('s', '"ann"'::jsonb)$$, 'the steps of ann stay');
SELECT ok(bool_and(idem_forget(key)), 'until she forgets')
  FROM unnest(ARRAY['many', 'lease', 'cmd', 'http']) AS key;
RESET SESSION AUTHORIZATION;
SELECT is_empty('SELECT * FROM idem_step', 'nothing is left of either');

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
SET LOCAL SESSION AUTHORIZATION idem_shop;
CREATE FUNCTION idem.shop_once(order_id text, command text, OUT outcome text, OUT response jsonb)
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = idem, pg_temp
	AS 'SELECT outcome, response FROM idem_once(order_id, command, scope => ''shop'')';
CREATE FUNCTION idem.shop_once_here(order_id text, command text, OUT outcome text, OUT response jsonb)
	LANGUAGE sql VOLATILE
	AS 'SELECT outcome, response FROM idem.idem_once(order_id, command, scope => ''shop'')';
CREATE FUNCTION idem.shop_many(order_ids text[]) RETURNS SETOF idem.idem_claim_many_answer
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = idem, pg_temp
	AS 'SELECT * FROM idem_claim_many(order_ids, scope => ''shop'')';
CREATE FUNCTION idem.shop_step(order_id text, step text, result jsonb) RETURNS jsonb
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = idem, pg_temp
	AS 'SELECT idem_step_finish(order_id, step, result, scope => ''shop'')';
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT results_eq($$SELECT outcome, response FROM shop_once('o2', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_shop"'::jsonb)$$, 'ann runs a command through a wrapper');
SELECT results_eq($$SELECT outcome, response FROM shop_once_here('o2', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_ann"'::jsonb)$$, 'through one that keeps her role it is hers');
SET LOCAL SESSION AUTHORIZATION idem_bob;
SELECT results_eq($$SELECT outcome, response FROM shop_once('o2', 'SELECT session_user')$$,
	$$VALUES ('replayed', '"idem_shop"'::jsonb)$$, 'bob shares the former');
SELECT results_eq($$SELECT outcome, response FROM shop_once_here('o2', 'SELECT current_user')$$,
	$$VALUES ('claimed', '"idem_bob"'::jsonb)$$, 'but not the latter');
SELECT results_eq($$SELECT key, outcome FROM shop_many('{o2,o3}')$$,
	$$VALUES ('o2', 'replayed'), ('o3', 'claimed')$$, 'bob claims through the wrapper');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT is(shop_step('o3', 's', '"of the shop"'), '"of the shop"',
	'ann, in the same transaction, does a step');
SELECT is_empty($$SELECT * FROM idem_steps('o3', 'shop')$$, 'that is not hers');
SELECT is(shop_finish('o3', '"sold"'), '"sold"', 'and finishes');
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
