-- Parallel query: idem_lookup and idem_steps go on in the leader, where the
-- transaction's claims are known; whoever declares a claim parallel safe is
-- refused. idem_derive knows nothing of transactions and runs anywhere.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(58);

CREATE TABLE request AS
SELECT 'k' || i AS key, repeat('x', 100) AS padding FROM generate_series(1, 10000) AS i;
ANALYZE request;
SELECT is(count(idem_finish(key, to_jsonb(key))), 50::bigint, 'records')
  FROM (SELECT key FROM request LIMIT 50) AS r, LATERAL idem_claim(key);

CREATE FUNCTION pg_temp.plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS
$$BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS off) ' || query; END$$;

SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL max_parallel_workers_per_gather = 2;
SELECT matches((SELECT string_agg(p, E'\n') FROM pg_temp.plan_of(
		'SELECT count(*) FROM request WHERE padding <> ''''') AS p),
	'Gather', 'the table is worth a parallel plan');

PREPARE looked_up AS
SELECT count(l.response), count(*) FILTER (WHERE l.state = 'in_progress')
  FROM request AS r LEFT JOIN LATERAL idem_lookup(r.key) AS l ON true
 WHERE r.padding <> '';
SELECT results_eq('looked_up', $$VALUES (50::bigint, 0::bigint)$$,
	'idem_lookup in a parallel plan');
SELECT results_eq($$SELECT outcome FROM idem_claim('k77')$$,
	$$VALUES ('claimed')$$, 'a claim of this transaction');
SELECT results_eq('looked_up', $$VALUES (50::bigint, 1::bigint)$$,
	'is seen there, too');
SELECT is(count((SELECT state FROM idem_lookup(key))), 51::bigint,
	'idem_lookup in a target list')
  FROM request WHERE padding <> '';
SELECT is(idem_step_finish('k77', 's' || i, to_jsonb(i)), to_jsonb(i), 'a step of it')
  FROM generate_series(1, 2) AS i;
PREPARE stepped AS
SELECT r.key, s.step, s.result FROM request AS r, LATERAL idem_steps(r.key) AS s
 WHERE r.padding <> '';
SELECT set_eq('stepped', $$VALUES ('k77', 's1', '1'::jsonb), ('k77', 's2', '2')$$,
	'idem_steps in a parallel plan');
PREPARE derived AS
SELECT count(DISTINCT idem_derive(r.key, '')) FROM request AS r WHERE r.padding <> '';
SELECT results_eq('derived', $$VALUES (10000::bigint)$$, 'idem_derive in a parallel plan');
SELECT matches((SELECT string_agg(p, E'\n') FROM pg_temp.plan_of(
		'SELECT count(*) FROM request AS r WHERE idem_derive(r.key, padding) IS NOT NULL') AS p),
	'Gather.*idem_derive', 'whose workers compute it');
SELECT doesnt_match((SELECT string_agg(p, E'\n') FROM pg_temp.plan_of(
		'SELECT count(*) FROM request AS r
		  WHERE EXISTS (SELECT FROM idem_once(r.key, ''SELECT 1'')) AND padding <> ''''') AS p),
	'Gather', 'a query with idem_once has no workers');

-- Every query through a worker that can be (for tests only).

SELECT set_config(
	CASE WHEN current_setting('server_version_num')::int < 160000
		 THEN 'force_parallel_mode' ELSE 'debug_parallel_query' END, 'on', true) \g /dev/null
SELECT results_eq('looked_up', $$VALUES (50::bigint, 1::bigint)$$,
	'forced: idem_lookup');
SELECT results_eq($$SELECT state, response FROM idem_lookup('k1')$$,
	$$VALUES ('finished', '"k1"'::jsonb)$$, 'forced: idem_lookup by itself');
SELECT results_eq($$SELECT state FROM idem_lookup('k77')$$,
	$$VALUES ('in_progress')$$, 'forced: of its own claim');
SELECT results_eq($$SELECT key, state FROM idem_in_flight WHERE state = 'in_progress'$$,
	$$VALUES ('k77', 'in_progress')$$, 'forced: idem_in_flight');
SELECT results_eq($$SELECT outcome, response FROM idem_claim('k2')$$,
	$$VALUES ('replayed', '"k2"'::jsonb)$$, 'forced: a replay');
SELECT results_eq(
	$$SELECT outcome, idem_finish('forced') FROM idem_claim('forced')$$,
	$$VALUES ('claimed', NULL::jsonb)$$, 'forced: claim and finish');
SELECT set_eq('stepped', $$VALUES ('k77', 's1', '1'::jsonb), ('k77', 's2', '2')$$,
	'forced: idem_steps');
SELECT results_eq('derived', $$VALUES (10000::bigint)$$, 'forced: idem_derive');
SELECT results_eq($$SELECT done, result FROM idem_step('k77', 's1')$$,
	$$VALUES (true, '1'::jsonb)$$, 'forced: idem_step');
SELECT is(idem_step_finish('k77', 's3', '3'), '3', 'forced: idem_step_finish');
SELECT results_eq($$SELECT key, outcome, response FROM idem_claim_many('{k3,forced many}')$$,
	$$VALUES ('k3', 'replayed', '"k3"'::jsonb), ('forced many', 'claimed', NULL)$$,
	'forced: idem_claim_many');
SELECT results_eq($$SELECT * FROM idem_finish_many('{forced many}', '{1}')$$,
	$$VALUES ('forced many', '1'::jsonb)$$, 'forced: idem_finish_many');
SELECT results_eq($$SELECT outcome, response
		FROM idem_once('forced once', 'SELECT count(*) FROM request WHERE padding <> $1', '{""}')$$,
	$$VALUES ('claimed', '10000'::jsonb)$$, 'forced: idem_once');
SELECT set_config('request.headers', '{"idempotency-key": "forced"}', true) \g /dev/null
SELECT is(idem_http('SELECT count(*) FROM request WHERE padding <> $1', '{""}', scope => 'http'),
	'10000', 'forced: idem_http');
SELECT is(idem_enqueue('q', '1', 'forced'), idem_enqueue('q', '2', 'forced'), 'forced: idem_enqueue');
SELECT results_eq($$SELECT state, payload FROM idem_messages$$,
	$$VALUES ('ready', '1'::jsonb)$$, 'forced: idem_messages');
SELECT results_eq($$SELECT payload, idem_nack(id, token, final => true) FROM idem_dequeue('q')$$,
	$$VALUES ('1'::jsonb, NULL::timestamptz)$$, 'forced: idem_dequeue and idem_nack');
SELECT set_eq($$SELECT queue, ready, dead FROM idem_queues$$,
	$$VALUES ('q', 0::bigint, 1::bigint)$$, 'forced: idem_queues');
SELECT is(idem_redrive('q'), 1::bigint, 'forced: idem_redrive');
SELECT is(idem_finish('k77', '77'), '77', 'forced: finish');
SELECT ok(idem_forget('k77'), 'forced: forget');

-- Wrongly declared parallel safe.

CREATE FUNCTION wrong(command text) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
$$
DECLARE
	answer text;
BEGIN
	EXECUTE command INTO answer;
	RETURN answer;
END
$$;
SELECT throws_ok(
	format('SELECT wrong(%L) FROM request WHERE padding <> '''' LIMIT 1', command),
	'25000', NULL, 'in parallel mode: ' || command)
  FROM unnest(ARRAY[
	'SELECT outcome FROM idem_claim(''k1'')',
	'SELECT idem_finish(''k1'')',
	'SELECT idem_release(''k1'')',
	'SELECT idem_forget(''k1'')',
	'SELECT idem_expire()',
	'SELECT outcome FROM idem_claim_many(''{k1}'')',
	'SELECT key FROM idem_finish_many(''{k1}'')',
	'SELECT outcome FROM idem_once(''k1'', ''SELECT 1'')',
	'SELECT idem_http(''SELECT 1'')',
	'SELECT done FROM idem_step(''k1'', ''s'')',
	'SELECT idem_step_finish(''k1'', ''s'')',
	'SELECT idem_enqueue(''q'', ''1'')',
	'SELECT id FROM idem_enqueue_many(''q'', ''{1}'')',
	'SELECT id FROM idem_receive(''q'', ''1'', ''1'')',
	'SELECT id FROM idem_dequeue(''q'')',
	'SELECT idem_ack(1, 1)',
	'SELECT idem_ack_many(''{1}'', ''{1}'')',
	'SELECT idem_nack(1, 1)',
	'SELECT idem_nack_many(''{1}'', ''{1}'')',
	'SELECT idem_extend(1, 1)',
	'SELECT idem_extend_many(''{1}'', ''{1}'')',
	'SELECT idem_redrive(''q'')',
	'SELECT idem_purge(''q'')',
	'SELECT idem_configure_queue(''q'')']) AS command;

SELECT results_eq($$SELECT outcome FROM idem_claim('k1')$$,
	$$VALUES ('replayed')$$, 'the session goes on');

SELECT * FROM finish();
ROLLBACK;
