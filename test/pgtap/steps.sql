-- Flows that resume: steps that are done stay done for as long as the key lives
-- its present life, and go with it. A lease is committed by its claimant, so
-- each statement here is a transaction of its own, unless BEGIN says otherwise.
-- Nobody sleeps: time passes by UPDATE, as a superuser may.

SET client_min_messages = warning;
SET statement_timeout = '60s';
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET search_path = public, idem;

CREATE FUNCTION run_out(text) RETURNS void LANGUAGE sql AS
$$UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s' WHERE key = $1$$;
CREATE FUNCTION grow_old(text) RETURNS void LANGUAGE sql AS
$$UPDATE idem_key SET expires_at = clock_timestamp() - interval '1 s',
		lease_until = lease_until - interval '2 hours' WHERE key = $1$$;
-- The rows of a key, and those of none.
CREATE FUNCTION rows_of(text) RETURNS bigint LANGUAGE sql AS
$$SELECT count(*) FROM idem_step JOIN idem_key USING (generation) WHERE key = $1$$;
CREATE FUNCTION orphans() RETURNS bigint LANGUAGE sql AS
$$SELECT count(*) FROM idem_step WHERE generation NOT IN
	(SELECT generation FROM idem_key WHERE generation IS NOT NULL)$$;

SELECT plan(217);

-- Under a claim of the transaction.

BEGIN;
SELECT is(outcome, 'claimed', 'a flow') FROM idem_claim('f');
SELECT is_empty($$SELECT * FROM idem_steps('f')$$, 'has no steps at first');
SELECT results_eq($$SELECT * FROM idem_step('f', 'reserve')$$,
	$$VALUES (false, NULL::jsonb)$$, 'a step is to be done');
SELECT results_eq($$SELECT * FROM idem_step('f', 'reserve')$$,
	$$VALUES (false, NULL::jsonb)$$, 'and still is: asking does not do it');
SELECT is(idem_step_finish('f', 'reserve', '{"a": [1, null]}'), '{"a": [1, null]}', 'it is done');
SELECT results_eq($$SELECT * FROM idem_step('f', 'reserve')$$,
	$$VALUES (true, '{"a": [1, null]}'::jsonb)$$, 'and is not to be done again');
SELECT results_eq(format('SELECT done FROM idem_step(''f'', %L)', step),
	$$VALUES (false)$$, format('another one is: "%s"', step))
  FROM unnest(ARRAY['charge', 'Reserve', 'reserve ', ' reserve', 'reserv', U&'r\00e9serve']) AS step;
SELECT is(idem_step_finish('f', 'charge'), NULL, 'a step without a result');
SELECT results_eq($$SELECT * FROM idem_step('f', 'charge')$$,
	$$VALUES (true, NULL::jsonb)$$, 'is done without');
SELECT is(idem_step_finish('f', 'accept', 'null'), 'null', 'a step whose result is null in json');
SELECT results_eq($$SELECT * FROM idem_step('f', 'accept')$$,
	$$VALUES (true, 'null'::jsonb)$$, 'is done with this');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('f')$$,
	$$VALUES ('reserve', '{"a": [1, null]}'::jsonb, 1), ('charge', NULL, 1), ('accept', 'null', 1)$$,
	'steps in the order in which they were finished');
SELECT ok(bool_and(finished_at BETWEEN now() AND clock_timestamp()), 'and when') FROM idem_steps('f');
SELECT is(idem_finish('f', '"flown"'), '"flown"', 'the flow is finished');
COMMIT;
SELECT results_eq($$SELECT outcome, response FROM idem_claim('f')$$,
	$$VALUES ('replayed', '"flown"'::jsonb)$$, 'and replayed');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('f')$$,
	$$VALUES ('reserve', '{"a": [1, null]}'::jsonb, 1), ('charge', NULL, 1), ('accept', 'null', 1)$$,
	'its steps can still be seen');
SELECT is(rows_of('f'), 3::bigint, 'a row each');

BEGIN;
SELECT * FROM idem_claim('undone') \g /dev/null
SELECT idem_step_finish('undone', 's', '1') \g /dev/null
SELECT idem_finish('undone') \g /dev/null
ROLLBACK;
SELECT is(orphans(), 0::bigint, 'a flow that is rolled back leaves no steps');
SELECT is_empty($$SELECT * FROM idem_steps('undone')$$, 'none at all');
SELECT is_empty($$SELECT * FROM idem_steps('nobody')$$, 'a key that was never claimed has none');

BEGIN;
SELECT is(outcome, 'claimed', 'the same key in another scope') FROM idem_claim('f', scope => 's');
SELECT is_empty($$SELECT * FROM idem_steps('f', 's')$$, 'has steps of its own');
SELECT results_eq($$SELECT done FROM idem_step('f', 'reserve', scope => 's')$$, $$VALUES (false)$$,
	'and none of them is done');
SELECT is(idem_step_finish('f', 'reserve', '2', 's'), '2', 'one is');
SELECT is(idem_finish('f', scope => 's'), NULL, '(finished)');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('f', 's')$$, $$VALUES ('reserve', '2'::jsonb)$$, 'and seen there');
SELECT is((SELECT count(*) FROM idem_steps('f')), 3::bigint, 'and not here');

SELECT results_eq(
	$$SELECT outcome, idem_finish('plain') FROM idem_claim('plain')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'a key without steps');
SELECT set_eq($$SELECT key, scope, generation IS NOT NULL FROM idem_key$$,
	$$VALUES ('f', '', true), ('f', 's', true), ('plain', '', false)$$, 'needs no generation');
SELECT is(count(DISTINCT generation), 2::bigint, 'others have one of their own') FROM idem_key;

-- Savepoints.

BEGIN;
SELECT is(outcome, 'claimed', 'a flow with savepoints') FROM idem_claim('sp');
SAVEPOINT a;
SELECT idem_step_finish('sp', 'first', '"undone"') \g /dev/null
ROLLBACK TO a;
SELECT results_eq($$SELECT * FROM idem_step('sp', 'first')$$, $$VALUES (false, NULL::jsonb)$$,
	'the first step was rolled back');
SELECT is_empty($$SELECT * FROM idem_steps('sp')$$, 'and is not to be seen');
SELECT is(idem_step_finish('sp', 'first', '1'), '1', 'it is done again');
SAVEPOINT b;
SELECT idem_step_finish('sp', 'second', '"undone"') \g /dev/null
SAVEPOINT c;
SELECT idem_step_finish('sp', 'third', '"undone"') \g /dev/null
RELEASE c;
ROLLBACK TO b;
SELECT results_eq($$SELECT step, result FROM idem_steps('sp')$$, $$VALUES ('first', '1'::jsonb)$$,
	'the second and the third were rolled back');
SAVEPOINT d;
SELECT is(idem_step_finish('sp', 'third', '3'), '3', 'the third is done');
RELEASE d;
SELECT is(idem_step_finish('sp', 'second', '2'), '2', 'and the second');
SAVEPOINT e;
SELECT idem_finish('sp') \g /dev/null
ROLLBACK TO e;
SELECT results_eq($$SELECT * FROM idem_step('sp', 'third')$$, $$VALUES (true, '3'::jsonb)$$,
	'a finish that is rolled back changes nothing of it');
SAVEPOINT f;
SELECT idem_release('sp') \g /dev/null
ROLLBACK TO f;
SELECT results_eq($$SELECT step, result FROM idem_steps('sp')$$,
	$$VALUES ('first', '1'::jsonb), ('third', '3'), ('second', '2')$$, 'nor does a release');
SELECT is(idem_finish('sp'), NULL, '(finished)');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('sp')$$,
	$$VALUES ('first', '1'::jsonb), ('third', '3'), ('second', '2')$$, 'committed');
SELECT is(rows_of('sp'), 3::bigint, 'a row each');

BEGIN;
SAVEPOINT a;
SELECT * FROM idem_claim('sp2') \g /dev/null
SELECT idem_step_finish('sp2', 's', '"undone"') \g /dev/null
ROLLBACK TO a;
SELECT throws_ok($$SELECT * FROM idem_step('sp2', 's')$$, 'ID001', NULL, 'a claim that was rolled back, and its step');
SELECT is(outcome, 'claimed', 'claimed again') FROM idem_claim('sp2');
SELECT results_eq($$SELECT done FROM idem_step('sp2', 's')$$, $$VALUES (false)$$, 'nothing is done');
SELECT is(idem_finish('sp2'), NULL, '(finished)');
COMMIT;
SELECT is(orphans(), 0::bigint, 'no steps are left of that');

-- Release: the next claim starts afresh, steps included.

BEGIN;
SELECT is(outcome, 'claimed', 'a flow') FROM idem_claim('rel');
SELECT is(idem_step_finish('rel', 's', '1'), '1', 'with a step');
SELECT lives_ok($$SELECT idem_release('rel')$$, 'is released');
SELECT is_empty($$SELECT * FROM idem_steps('rel')$$, 'its step is gone');
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('rel')$$, $$VALUES ('claimed', 1)$$, 'claimed again');
SELECT results_eq($$SELECT done FROM idem_step('rel', 's')$$, $$VALUES (false)$$, 'nothing is done');
SELECT is(idem_step_finish('rel', 's', '2'), '2', 'it is done anew');
SELECT is(idem_finish('rel'), NULL, '(finished)');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('rel')$$, $$VALUES ('s', '2'::jsonb)$$, 'as the second claim did it');
SELECT is(orphans(), 0::bigint, 'nothing is left of the first');

-- A failure that may be retried keeps them.

BEGIN;
SELECT is(outcome, 'claimed', 'a flow that fails') FROM idem_claim('retry');
SELECT is(idem_step_finish('retry', 'one', '1', request => '"r"'), '1', 'one step is done');
SAVEPOINT work;
SELECT idem_step_finish('retry', 'two', '"undone"') \g /dev/null
ROLLBACK TO work;
SELECT results_eq($$SELECT outcome, attempt FROM idem_fail('retry', '"oops"', '0')$$,
	$$VALUES ('retry_later', 1)$$, 'the next one fails');
COMMIT;
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('retry')$$, $$VALUES ('one', '1'::jsonb, 1)$$,
	'the step of a failed key can be seen');
BEGIN;
SELECT * FROM idem_claim('retry') \g /dev/null
SELECT idem_step_finish('retry', 'two', '"undone"') \g /dev/null
ROLLBACK;
SELECT is(rows_of('retry'), 1::bigint, 'a retry that is rolled back changes nothing');
BEGIN;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('retry')$$, $$VALUES ('claimed', 2)$$, 'the retry');
SELECT results_eq($$SELECT * FROM idem_step('retry', 'one', '"r"')$$, $$VALUES (true, '1'::jsonb)$$, 'finds the step done');
SELECT throws_ok($$SELECT * FROM idem_step('retry', 'one', '"other"')$$, 'ID006', NULL, 'but not with another request');
SELECT results_eq($$SELECT * FROM idem_step('retry', 'two')$$, $$VALUES (false, NULL::jsonb)$$, 'and the next one not');
SELECT is(idem_step_finish('retry', 'two', '2'), '2', 'does it');
SELECT results_eq($$SELECT outcome, attempt FROM idem_fail('retry', '"oops"', '0')$$,
	$$VALUES ('retry_later', 2)$$, 'and fails again');
COMMIT;
BEGIN;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('retry')$$, $$VALUES ('claimed', 3)$$, 'the next retry');
SELECT is(idem_step_finish('retry', 'another', '3'), '3', 'does a third one');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('retry')$$,
	$$VALUES ('one', '1'::jsonb, 1), ('two', '2', 2), ('another', '3', 3)$$, 'each step names the attempt that did it');
SAVEPOINT a;
SELECT idem_release('retry') \g /dev/null
ROLLBACK TO a;
SELECT is((SELECT count(*) FROM idem_steps('retry')), 3::bigint, 'a release that is rolled back');
SELECT lives_ok($$SELECT idem_release('retry')$$, 'a release');
SELECT is_empty($$SELECT * FROM idem_steps('retry')$$, 'drops those of all attempts');
COMMIT;
SELECT is_empty($$SELECT * FROM idem_steps('retry')$$, 'for good');
SELECT is(orphans(), 0::bigint, 'and leaves none behind');
BEGIN;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('retry')$$, $$VALUES ('claimed', 1)$$, 'a fresh start');
SELECT results_eq($$SELECT done FROM idem_step('retry', 'one')$$, $$VALUES (false)$$, 'with nothing done');
SELECT is(idem_step_finish('retry', 'one', '"anew"', request => '"other"'), '"anew"', 'does it anew');
SELECT results_eq($$SELECT outcome FROM idem_fail('retry', '"never"', final => true)$$, $$VALUES ('failed')$$, 'and fails for good');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('retry')$$, $$VALUES ('one', '"anew"'::jsonb)$$, 'what was done is still known');
SELECT ok(idem_forget('retry'), 'forgotten');
SELECT is_empty($$SELECT * FROM idem_steps('retry')$$, 'with its steps');
SELECT is(orphans(), 0::bigint, 'all of them');

-- Forget, rolled back and not.

BEGIN;
SELECT idem_forget('sp') \g /dev/null
ROLLBACK;
SELECT is((SELECT count(*) FROM idem_steps('sp')), 3::bigint, 'a forget that is rolled back');
SELECT ok(idem_forget('sp'), 'a forget');
SELECT is_empty($$SELECT * FROM idem_steps('sp')$$, 'drops the steps');
SELECT is(orphans(), 0::bigint, 'rows and all');

-- Under a lease: with its token.

SELECT token AS t1 FROM idem_claim('l', lease => '1 hour') \gset
SELECT results_eq(format('SELECT * FROM idem_step(''l'', ''one'', token => %s)', :t1),
	$$VALUES (false, NULL::jsonb)$$, 'a step under a lease');
SELECT is(idem_step_finish('l', 'one', '1', token => :t1), '1', 'is done');
SELECT results_eq(format('SELECT * FROM idem_step(''l'', ''one'', token => %s)', :t1),
	$$VALUES (true, '1'::jsonb)$$, 'and not again');
SELECT throws_ok(format('SELECT idem_step_finish(''l'', ''one'', ''2'', token => %s)', :t1), 'ID002', NULL,
	'not even by who does not ask');
SELECT throws_ok($$SELECT * FROM idem_step('l', 'one')$$, 'ID001', NULL, 'no token, no answer');
SELECT throws_ok($$SELECT idem_step_finish('l', 'two')$$, 'ID001', NULL, 'and no step');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('l')$$, $$VALUES ('one', '1'::jsonb, 1)$$, 'seen by anybody of the role');
BEGIN;
SELECT idem_step_finish('l', 'two', '"undone"', token => :t1) \g /dev/null
ROLLBACK;
SELECT results_eq(format('SELECT * FROM idem_step(''l'', ''two'', token => %s)', :t1),
	$$VALUES (false, NULL::jsonb)$$, 'a step is rolled back with its transaction');
SELECT generation AS g1 FROM idem_key WHERE key = 'l' \gset

-- A lease that has run out is good until somebody takes over, who finds the
-- steps done; the former holder then gets no further.

SELECT run_out('l') \g /dev/null
SELECT is(idem_step_finish('l', 'two', '2', token => :t1), '2', 'a lease that has run out, not taken over');
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('l', lease => '1 hour', holder => 'h')$$,
	$$VALUES ('claimed', 2)$$, 'taken over');
SELECT token AS t2 FROM idem_claim('l', lease => '1 hour', holder => 'h') \gset
SELECT results_eq(format('SELECT s, i.done, i.result FROM unnest(''{one,two,three}''::text[]) AS s, LATERAL idem_step(''l'', s, token => %s) AS i', :t2),
	$$VALUES ('one', true, '1'::jsonb), ('two', true, '2'), ('three', false, NULL)$$, 'with the steps that are done');
SELECT throws_ok(format(command, :t1), 'ID003', NULL, 'the former holder: ' || split_part(command, '(', 1))
  FROM unnest(ARRAY['SELECT * FROM idem_step(''l'', ''three'', token => %s)',
					'SELECT * FROM idem_step(''l'', ''one'', token => %s)',
					'SELECT idem_step_finish(''l'', ''three'', token => %s)']) AS command;
SELECT is(idem_step_finish('l', 'three', '3', token => :t2), '3', 'the new one goes on');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('l')$$,
	$$VALUES ('one', '1'::jsonb, 1), ('two', '2', 1), ('three', '3', 2)$$, 'attempt by attempt');
SELECT is(generation, :g1::bigint, 'it is the same life of the key') FROM idem_key WHERE key = 'l';

-- A lease that fails, a claim of a transaction in its place, and the finish.

SELECT results_eq(format('SELECT outcome, attempt FROM idem_fail(''l'', ''"oops"'', ''0'', token => %s)', :t2),
	$$VALUES ('retry_later', 2)$$, 'the lease fails');
BEGIN;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('l')$$, $$VALUES ('claimed', 3)$$, 'a claim of the transaction goes on');
SELECT results_eq($$SELECT * FROM idem_step('l', 'three')$$, $$VALUES (true, '3'::jsonb)$$, 'with the steps that are done');
SELECT throws_ok(format('SELECT * FROM idem_step(''l'', ''three'', token => %s)', :t2), 'ID003', NULL, 'the lease does not');
SELECT is(idem_step_finish('l', 'four', '4'), '4', 'a fourth one');
SELECT is(idem_finish('l', '"done"'), '"done"', 'and the finish');
COMMIT;
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('l')$$,
	$$VALUES ('one', '1'::jsonb, 1), ('two', '2', 1), ('three', '3', 2), ('four', '4', 3)$$, 'of three attempts');
SELECT is(rows_of('l'), 4::bigint, 'a row each');

-- Expiry: the steps go with the key.

SELECT grow_old('l') \g /dev/null
SELECT is_empty($$SELECT * FROM idem_steps('l')$$, 'an expired key has no steps');
SELECT is(idem_expire(), 1::bigint, 'it is removed');
SELECT is(orphans(), 0::bigint, 'with their rows');

SELECT token AS t3 FROM idem_claim('old', lease => '1 hour') \gset
SELECT is(idem_step_finish('old', 's', '1', token => :t3), '1', 'a step of a lease');
SELECT grow_old('old') \g /dev/null
SELECT throws_ok(format('SELECT * FROM idem_step(''old'', ''s'', token => %s)', :t3), 'ID003', NULL, 'that has expired');
SELECT throws_ok(format('SELECT idem_step_finish(''old'', ''t'', token => %s)', :t3), 'ID003', NULL, 'can go no further');
SELECT token AS t4 FROM idem_claim('old', lease => '1 hour') \gset
SELECT results_eq(format('SELECT done FROM idem_step(''old'', ''s'', token => %s)', :t4),
	$$VALUES (false)$$, 'nothing is done in the next life of the key');
SELECT is(orphans(), 0::bigint, 'and nothing left of the former');
SELECT is(idem_step_finish('old', 's', '2', token => :t4), '2', 'it is done anew');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('old')$$, $$VALUES ('s', '2'::jsonb, 1)$$, 'and seen');

SELECT grow_old('old') \g /dev/null
BEGIN;
SELECT is(outcome, 'claimed', 'a claim of a transaction over an expired key') FROM idem_claim('old');
SELECT results_eq($$SELECT done FROM idem_step('old', 's')$$, $$VALUES (false)$$, 'has nothing done');
SELECT is(idem_step_finish('old', 's', '3'), '3', 'does it anew');
SELECT lives_ok($$SELECT idem_release('old')$$, 'and is released');
SELECT is_empty($$SELECT * FROM idem_steps('old')$$, 'with that');
SELECT is(outcome, 'claimed', 'claimed once more') FROM idem_claim('old');
SELECT is(idem_step_finish('old', 's', '4'), '4', 'done once more');
SELECT is(idem_finish('old'), NULL, 'and finished');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('old')$$, $$VALUES ('s', '4'::jsonb)$$, 'the last life counts');
SELECT is(rows_of('old') + orphans(), 1::bigint, 'and is the only one left');

-- Release and forget under a lease.

SELECT token AS t5 FROM idem_claim('lrel', lease => '1 hour') \gset
SELECT is(idem_step_finish('lrel', 's', '1', token => :t5), '1', 'a step of a lease');
BEGIN;
SELECT idem_release('lrel', token => :t5) \g /dev/null
ROLLBACK;
SELECT is(rows_of('lrel'), 1::bigint, 'that is released, which is rolled back');
SELECT lives_ok(format('SELECT idem_release(''lrel'', token => %s)', :t5), 'that is released');
SELECT is(orphans(), 0::bigint, 'goes with it');
SELECT token AS t6 FROM idem_claim('lrel', lease => '1 hour') \gset
SELECT results_eq(format('SELECT done FROM idem_step(''lrel'', ''s'', token => %s)', :t6),
	$$VALUES (false)$$, 'nothing is done for the next');
SELECT is(idem_step_finish('lrel', 's', '1', token => :t6), '1', 'a step again');
SELECT ok(idem_forget('lrel'), 'of a lease that is forgotten');
SELECT is(orphans(), 0::bigint, 'goes with it, too');
SELECT throws_ok(format('SELECT idem_step_finish(''lrel'', ''t'', token => %s)', :t6), 'ID003', NULL, 'and its token with it');

-- The same holder gets its lease again, and goes on.

SELECT token AS h1 FROM idem_claim('hold er', lease => '1 hour', holder => 'h') \gset
SELECT is(idem_step_finish('hold er', 's', '1', token => :h1), '1', 'a step of a holder');
SELECT token AS h2 FROM idem_claim('hold er', lease => '1 hour', holder => 'h') \gset
SELECT results_eq(format('SELECT * FROM idem_step(''hold er'', ''s'', token => %s)', :h2),
	$$VALUES (true, '1'::jsonb)$$, 'who lost an answer, and goes on');
SELECT throws_ok(format('SELECT * FROM idem_step(''hold er'', ''s'', token => %s)', :h1), 'ID003', NULL, 'its earlier incarnation does not');
SELECT is(idem_step_finish('hold er', 't', '2', token => :h2), '2', 'another step');
SELECT results_eq($$SELECT step, attempt FROM idem_steps('hold er')$$, $$VALUES ('s', 1), ('t', 1)$$, 'of the same attempt');
SELECT is(idem_finish('hold er', '"ok"', token => :h2), '"ok"', '(finished)');
SELECT throws_ok(format('SELECT * FROM idem_step(''hold er'', ''s'', token => %s)', :h2), 'ID002', NULL, 'a finished flow answers no more');

-- Held, then reopened or settled.

SELECT token AS r1 FROM idem_claim('held', lease => '1 hour', takeover => 'hold') \gset
SELECT is(idem_step_finish('held', 's', '1', token => :r1), '1', 'a step of a lease');
SELECT run_out('held') \g /dev/null
SELECT results_eq($$SELECT outcome FROM idem_claim('held')$$, $$VALUES ('held')$$, 'that is held');
SELECT results_eq($$SELECT step, result FROM idem_steps('held')$$, $$VALUES ('s', '1'::jsonb)$$, 'whoever is to settle it sees what was done');
SELECT lives_ok($$SELECT idem_resolve('held', reopen => true)$$, 'it is reopened');
SELECT throws_ok(format('SELECT * FROM idem_step(''held'', ''s'', token => %s)', :r1), 'ID003', NULL, 'not for the former holder');
SELECT token AS r2 FROM idem_claim('held', lease => '1 hour', takeover => 'hold') \gset
SELECT results_eq(format('SELECT * FROM idem_step(''held'', ''s'', token => %s)', :r2),
	$$VALUES (true, '1'::jsonb)$$, 'the next one finds the step done');
SELECT is(idem_step_finish('held', 't', '2', token => :r2), '2', 'and does another');
SELECT run_out('held') \g /dev/null
SELECT lives_ok($$SELECT idem_resolve('held', '"settled"')$$, 'held again, and settled');
SELECT results_eq($$SELECT step, result, attempt FROM idem_steps('held')$$, $$VALUES ('s', '1'::jsonb, 1), ('t', '2', 2)$$,
	'what was done is still known');

-- In the transaction that took the lease the token may be left out.

BEGIN;
SELECT is(outcome, 'claimed', 'a lease, not committed yet') FROM idem_claim('own', lease => '1 hour');
SELECT results_eq($$SELECT done FROM idem_step('own', 's')$$, $$VALUES (false)$$, 'a step without a token');
SELECT is(idem_step_finish('own', 's', '1'), '1', 'is done');
COMMIT;
SELECT results_eq($$SELECT step, result FROM idem_steps('own')$$, $$VALUES ('s', '1'::jsonb)$$, 'and committed with it');
SELECT throws_ok($$SELECT * FROM idem_step('own', 's')$$, 'ID001', NULL, 'from then on the token is needed');

-- With a token no isolation level minds.

SELECT token AS i1 FROM idem_claim('iso', lease => '1 hour') \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(idem_step_finish('iso', 's', '1', token => :i1), '1', 'REPEATABLE READ');
SELECT results_eq(format('SELECT * FROM idem_step(''iso'', ''s'', token => %s)', :i1), $$VALUES (true, '1'::jsonb)$$, 'sees its own');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(idem_step_finish('iso', 't', '2', token => :i1), '2', 'SERIALIZABLE');
SELECT results_eq($$SELECT step FROM idem_steps('iso')$$, $$VALUES ('s'), ('t')$$, 'sees its own');
COMMIT;

-- Requests: compared if both are given.

BEGIN;
SELECT is(outcome, 'claimed', 'a flow with requests') FROM idem_claim('req');
SELECT is(idem_step_finish('req', 'given', '1', request => '{"a": 1, "b": [2.0]}'), '1', 'a step with a request');
SELECT is(idem_step_finish('req', 'null', '1', request => 'null'), '1', 'one with a null of json');
SELECT is(idem_step_finish('req', 'none', '1'), '1', 'one without');
SELECT results_eq(format('SELECT done FROM idem_step(''req'', %L, %L)', step, request),
	$$VALUES (true)$$, format('%s: not different from %s', step, COALESCE(request, 'NULL')))
  FROM (VALUES ('given', '{"b":[2],"a":1.00}'), ('given', NULL), ('null', ' null '), ('null', NULL),
			   ('none', NULL), ('none', '1'), ('none', 'null')) AS r(step, request);
SELECT throws_ok(format('SELECT * FROM idem_step(''req'', %L, %L)', step, request),
	'ID006', NULL, format('%s: different from %s', step, request))
  FROM (VALUES ('given', '{"a": 1}'), ('given', 'null'), ('given', '[]'), ('null', '{}'), ('null', '"null"')) AS r(step, request);
SELECT results_eq($$SELECT done FROM idem_step('req', 'new', '1')$$, $$VALUES (false)$$, 'a step that is to be done has no request yet');
SELECT results_eq($$SELECT done FROM idem_step('req', 'new', '2')$$, $$VALUES (false)$$, 'asking does not give it one');
SELECT lives_ok($$SELECT idem_release('req')$$, '(released)');
COMMIT;

-- Large results.

BEGIN;
CREATE TEMPORARY TABLE big AS SELECT jsonb_agg(md5(i::text)) AS value FROM generate_series(1, 20000) AS i;
SELECT is(outcome, 'claimed', 'a flow with a large result') FROM idem_claim('big');
SELECT ok(idem_step_finish('big', 's', value) = value, 'a step') FROM big;
SELECT results_eq($$SELECT done, result FROM idem_step('big', 's')$$, $$SELECT true, value FROM big$$, 'its result');
SELECT is(idem_finish('big'), NULL, '(finished)');
COMMIT;
SELECT results_eq($$SELECT result FROM idem_steps('big')$$, $$SELECT value FROM big$$, 'is the same after the commit');
SELECT ok(idem_forget('big'), 'forgotten');
SELECT is(orphans(), 0::bigint, 'it is gone');

-- Many steps, in no order of their names.

BEGIN;
CREATE TEMPORARY TABLE many AS SELECT i, md5(i::text) AS step FROM generate_series(1, 1000) AS i;
SELECT is(outcome, 'claimed', 'a flow with a thousand steps') FROM idem_claim('many');
SELECT is(count(idem_step_finish('many', step, to_jsonb(i))), 1000::bigint, 'all are done')
  FROM (SELECT * FROM many ORDER BY i) AS m;
SELECT results_eq($$SELECT step, result FROM idem_steps('many')$$,
	$$SELECT step, to_jsonb(i) FROM many ORDER BY i$$, 'and seen in their order');
SELECT is(count(*), 1000::bigint, 'each for itself') FROM many AS m, LATERAL idem_step('many', m.step) AS s
 WHERE s.done AND s.result = to_jsonb(m.i);
SELECT results_eq($$SELECT outcome FROM idem_fail('many', NULL, '0')$$, $$VALUES ('retry_later')$$, 'the flow fails');
COMMIT;
SELECT is(rows_of('many'), 1000::bigint, 'a thousand rows');
BEGIN;
SELECT results_eq($$SELECT outcome, attempt FROM idem_claim('many')$$, $$VALUES ('claimed', 2)$$, 'the retry');
SELECT is(count(*), 1000::bigint, 'has nothing to do') FROM many AS m, LATERAL idem_step('many', m.step) AS s
 WHERE s.done AND s.result = to_jsonb(m.i);
SELECT lives_ok($$SELECT idem_release('many')$$, 'it is released');
COMMIT;
SELECT is(orphans(), 0::bigint, 'and a thousand rows are gone');

-- Keys of a set, also those that are held by rows.

BEGIN;
SELECT is(count(*), 200::bigint, 'a set of flows')
  FROM idem_claim_many(ARRAY(SELECT 'set ' || i FROM generate_series(1, 200) AS i)) WHERE outcome = 'claimed';
SELECT is(count(idem_step_finish('set ' || i, 's', to_jsonb(i))), 200::bigint, 'with a step each')
  FROM generate_series(1, 200) AS i;
SAVEPOINT a;
SELECT count(idem_step_finish('set ' || i, 't', '"undone"')) FROM generate_series(1, 200) AS i \g /dev/null
SELECT count(*) FROM idem_finish_many(ARRAY(SELECT 'set ' || i FROM generate_series(1, 200) AS i)) \g /dev/null
ROLLBACK TO a;
SELECT is(count(*), 200::bigint, 'and no other')
  FROM generate_series(1, 200) AS i, LATERAL idem_steps('set ' || i) AS s WHERE s.step = 's' AND s.result = to_jsonb(i);
SELECT is(count(idem_release('set ' || i)), 100::bigint, 'half of them are released')
  FROM generate_series(2, 200, 2) AS i;
SELECT is(count(*), 100::bigint, 'the others are finished')
  FROM idem_finish_many(ARRAY(SELECT 'set ' || i FROM generate_series(1, 200, 2) AS i));
COMMIT;
SELECT results_eq(
	$$SELECT i, result FROM generate_series(1, 200) AS i, LATERAL idem_steps('set ' || i)$$,
	$$SELECT i, to_jsonb(i) FROM generate_series(1, 200, 2) AS i$$, 'and have their steps');
SELECT is(orphans(), 0::bigint, 'those of the others are gone');
UPDATE idem_key SET expires_at = 'epoch' WHERE key LIKE 'set %';
SELECT is(idem_expire(), 100::bigint, 'the rest expires');
SELECT is(orphans(), 0::bigint, 'steps and all');

SELECT * FROM finish();
