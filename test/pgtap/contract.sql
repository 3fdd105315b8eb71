-- The contract as the catalogs show it. Applications, drivers and pg_dump rely
-- on every line of this; a change here is a change of the interface.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(209);

-- What belongs to the extension; newer releases count row types of tables, and
-- array types, which come by themselves.

CREATE TEMPORARY VIEW members AS
SELECT d.classid, d.objid
  FROM pg_depend AS d
 WHERE d.refclassid = 'pg_extension'::regclass
   AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
   AND d.deptype = 'e'
   AND NOT EXISTS (
		SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
		 WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid
		   AND (t.typcategory = 'A' OR c.relkind <> 'c'));

SELECT is(e.extversion, a.default_version, 'the version is that of the control file')
  FROM pg_extension AS e JOIN pg_available_extensions AS a ON a.name = e.extname
 WHERE a.name = 'idempotency';
SELECT ok(NOT extrelocatable, 'it stays in its schema')
  FROM pg_extension WHERE extname = 'idempotency';
SELECT results_eq(
	$$SELECT superuser, trusted, requires IS NULL
	    FROM pg_available_extension_versions
	   WHERE name = 'idempotency' AND installed$$,
	$$VALUES (true, false, true)$$,
	'a superuser creates it, and it needs no other extension');

SELECT set_eq(
	$$SELECT p.proname::text FROM members AS m
	    JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid$$,
	ARRAY['idem_claim', 'idem_finish', 'idem_release', 'idem_lookup',
		  'idem_forget', 'idem_expire', 'idem_backoff', 'idem_own_claims',
		  'idem_fail', 'idem_renew', 'idem_guard', 'idem_resolve', 'idem_leases',
		  'idem_claim_many', 'idem_finish_many', 'idem_once', 'idem_http',
		  'idem_derive', 'idem_key_id', 'idem_step', 'idem_step_finish', 'idem_steps',
		  'idem_enqueue', 'idem_enqueue_many', 'idem_receive', 'idem_dequeue', 'idem_await',
		  'idem_ack', 'idem_ack_many', 'idem_nack', 'idem_nack_many',
		  'idem_extend', 'idem_extend_many', 'idem_redrive', 'idem_purge',
		  'idem_configure_queue', 'idem_queue_hash', 'idem_counters', 'idem_stats_reset',
		  'idem_breaker_allow', 'idem_breaker_record', 'idem_breaker_configure',
		  'idem_breaker_force', 'idem_breaker_reset', 'idem_breaker_states',
		  'idem_library', 'idem_status'],
	'functions');
SELECT set_eq(
	$$SELECT c.relname::text, c.relkind::text FROM members AS m
	    JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid$$,
	$$VALUES ('idem_key', 'r'), ('idem_step', 'r'), ('idem_secret', 'r'),
			 ('idem_in_flight', 'v'), ('idem_queue', 'r'), ('idem_message', 'r'),
			 ('idem_message_id', 'S'), ('idem_dead_letter', 'r'), ('idem_queues', 'v'),
			 ('idem_messages', 'v'), ('idem_dead_letters', 'v'), ('idem_stats', 'v'),
			 ('idem_breaker', 'r'), ('idem_breakers', 'v')$$,
	'tables, views, and a sequence');
SELECT set_eq(
	$$SELECT pg_describe_object(classid, objid, 0) FROM members
	   WHERE classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass)$$,
	ARRAY['type idem_claim_answer', 'type idem_claim_many_answer',
		  'type idem_finish_many_answer', 'type idem_once_answer',
		  'type idem_step_answer', 'type idem_enqueue_answer',
		  'type idem_dequeue_answer', 'type idem_breaker_answer'],
	'types of answers, and nothing else');
SELECT is_empty(
	$$SELECT pg_describe_object(m.classid, m.objid, 0) FROM members AS m
	    LEFT JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	    LEFT JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
	   WHERE COALESCE(p.pronamespace, c.relnamespace) <> 'idem'::regnamespace$$,
	'everything is in the schema of the extension');

-- Signatures: names, types and defaults of arguments, and what comes back.

CREATE TEMPORARY TABLE signature (name text, arguments text, result text);
INSERT INTO signature VALUES
('idem_claim',
 'key text, ttl interval DEFAULT NULL::interval, request jsonb DEFAULT NULL::jsonb, scope text DEFAULT ''''::text, wait interval DEFAULT NULL::interval, lease interval DEFAULT NULL::interval, takeover text DEFAULT ''rerun''::text, holder text DEFAULT NULL::text',
 'idem_claim_answer'),
('idem_finish',
 'key text, response jsonb DEFAULT NULL::jsonb, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint',
 'jsonb'),
('idem_release', 'key text, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint', 'void'),
('idem_fail',
 'key text, error jsonb DEFAULT NULL::jsonb, retry_in interval DEFAULT NULL::interval, final boolean DEFAULT false, max_attempts integer DEFAULT NULL::integer, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint',
 'idem_claim_answer'),
('idem_renew',
 'key text, lease interval, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint',
 'timestamp with time zone'),
('idem_guard', 'key text, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint', 'void'),
('idem_resolve',
 'key text, response jsonb DEFAULT NULL::jsonb, reopen boolean DEFAULT false, scope text DEFAULT ''''::text',
 'void'),
('idem_leases',
 'OUT owner regrole, OUT scope text, OUT key text, OUT state text, OUT since timestamp with time zone, OUT holder text, OUT attempt integer, OUT lease_until timestamp with time zone',
 'SETOF record'),
('idem_lookup',
 'key text, scope text DEFAULT ''''::text, OUT state text, OUT response jsonb, OUT attempt integer, OUT claimed_at timestamp with time zone, OUT finished_at timestamp with time zone, OUT lease_until timestamp with time zone, OUT retry_at timestamp with time zone, OUT expires_at timestamp with time zone',
 'SETOF record'),
('idem_forget', 'key text, scope text DEFAULT ''''::text', 'boolean'),
('idem_expire', 'max_rows integer DEFAULT 10000', 'bigint'),
('idem_backoff',
 'attempt integer, base interval, cap interval, jitter text DEFAULT ''full''::text',
 'interval'),
('idem_claim_many',
 'keys text[], ttl interval DEFAULT NULL::interval, requests jsonb[] DEFAULT NULL::jsonb[], scope text DEFAULT ''''::text, wait interval DEFAULT NULL::interval, lease interval DEFAULT NULL::interval, takeover text DEFAULT ''rerun''::text, holder text DEFAULT NULL::text',
 'SETOF idem_claim_many_answer'),
('idem_finish_many',
 'keys text[], responses jsonb[] DEFAULT NULL::jsonb[], scope text DEFAULT ''''::text, tokens bigint[] DEFAULT NULL::bigint[]',
 'SETOF idem_finish_many_answer'),
('idem_once',
 'key text, command text, params text[] DEFAULT ''{}''::text[], ttl interval DEFAULT NULL::interval, request jsonb DEFAULT NULL::jsonb, scope text DEFAULT ''''::text, wait interval DEFAULT NULL::interval',
 'idem_once_answer'),
('idem_http',
 'command text, params text[] DEFAULT ''{}''::text[], ttl interval DEFAULT NULL::interval, request jsonb DEFAULT NULL::jsonb, scope text DEFAULT NULL::text, wait interval DEFAULT NULL::interval',
 'jsonb'),
('idem_derive', 'key text, step text, scope text DEFAULT ''''::text, namespace uuid DEFAULT NULL::uuid', 'uuid'),
('idem_key_id', 'key text, scope text DEFAULT ''''::text', 'uuid'),
('idem_step',
 'key text, step text, request jsonb DEFAULT NULL::jsonb, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint',
 'idem_step_answer'),
('idem_step_finish',
 'key text, step text, result jsonb DEFAULT NULL::jsonb, scope text DEFAULT ''''::text, token bigint DEFAULT NULL::bigint, request jsonb DEFAULT NULL::jsonb',
 'jsonb'),
('idem_steps',
 'key text, scope text DEFAULT ''''::text, OUT step text, OUT result jsonb, OUT attempt integer, OUT finished_at timestamp with time zone',
 'SETOF record'),
('idem_own_claims',
 'OUT owner regrole, OUT scope text, OUT key text, OUT state text, OUT since timestamp with time zone',
 'SETOF record'),
('idem_enqueue',
 'queue text, payload jsonb, key text DEFAULT NULL::text, delay interval DEFAULT NULL::interval, max_attempts integer DEFAULT NULL::integer, priority integer DEFAULT 0, message_group text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, ttl interval DEFAULT NULL::interval, owner text DEFAULT NULL::text',
 'bigint'),
('idem_enqueue_many',
 'queue text, payloads jsonb[], keys text[] DEFAULT NULL::text[], delay interval DEFAULT NULL::interval, max_attempts integer DEFAULT NULL::integer, priority integer DEFAULT 0, message_groups text[] DEFAULT NULL::text[], headers jsonb[] DEFAULT NULL::jsonb[], ttl interval DEFAULT NULL::interval, owner text DEFAULT NULL::text',
 'SETOF idem_enqueue_answer'),
('idem_receive',
 'source text, message_id text, payload jsonb, queue text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, ttl interval DEFAULT NULL::interval, message_group text DEFAULT NULL::text, owner text DEFAULT NULL::text',
 'idem_enqueue_answer'),
('idem_dequeue',
 'queue text, max_messages integer DEFAULT 1, lease interval DEFAULT ''00:00:30''::interval, wait interval DEFAULT NULL::interval, owner text DEFAULT NULL::text',
 'SETOF idem_dequeue_answer'),
('idem_await',
 'IN queue text, IN wait interval DEFAULT ''00:00:30''::interval, IN owner text DEFAULT NULL::text',
 NULL),
('idem_ack', 'id bigint, token bigint', 'void'),
('idem_ack_many', 'ids bigint[], tokens bigint[]', 'void'),
('idem_nack',
 'id bigint, token bigint, error jsonb DEFAULT NULL::jsonb, retry_in interval DEFAULT NULL::interval, final boolean DEFAULT false',
 'timestamp with time zone'),
('idem_nack_many',
 'ids bigint[], tokens bigint[], errors jsonb[] DEFAULT NULL::jsonb[], retry_in interval DEFAULT NULL::interval, final boolean DEFAULT false',
 'void'),
('idem_extend', 'id bigint, token bigint, lease interval DEFAULT ''00:00:30''::interval',
 'timestamp with time zone'),
('idem_extend_many', 'ids bigint[], tokens bigint[], lease interval DEFAULT ''00:00:30''::interval',
 'void'),
('idem_redrive',
 'queue text, ids bigint[] DEFAULT NULL::bigint[], max_messages integer DEFAULT NULL::integer, owner text DEFAULT NULL::text',
 'bigint'),
('idem_purge',
 'queue text, dead_letters boolean DEFAULT false, max_messages integer DEFAULT NULL::integer, owner text DEFAULT NULL::text',
 'bigint'),
('idem_configure_queue',
 'queue text, max_attempts integer DEFAULT NULL::integer, backoff_base interval DEFAULT NULL::interval, backoff_cap interval DEFAULT NULL::interval, jitter text DEFAULT NULL::text, dead_letter_ttl interval DEFAULT NULL::interval, shared_with text[] DEFAULT NULL::text[], paused boolean DEFAULT false',
 'void'),
('idem_queue_hash', 'queue text', 'bigint'),
('idem_stats_reset', '', 'void'),
('idem_status', 'OUT item text, OUT value text, OUT warning text', 'SETOF record'),
('idem_breaker_allow', 'name text', 'idem_breaker_answer'),
('idem_breaker_record', 'name text, success boolean, duration interval DEFAULT NULL::interval', 'text'),
('idem_breaker_configure',
 'name text, failure_rate double precision DEFAULT 50, minimum_calls integer DEFAULT 20, window_length interval DEFAULT ''00:01:00''::interval, open_for interval DEFAULT ''00:00:30''::interval, half_open_probes integer DEFAULT 3, slow_call interval DEFAULT NULL::interval, slow_rate double precision DEFAULT 100, quorum integer DEFAULT 1',
 'void'),
('idem_breaker_force', 'name text, state text', 'void'),
('idem_breaker_reset', 'name text', 'void');

SELECT is(pg_get_function_arguments(p.oid), s.arguments, 'arguments of ' || s.name)
  FROM signature AS s LEFT JOIN pg_proc AS p ON p.proname = s.name
 ORDER BY s.name;
SELECT is(pg_get_function_result(p.oid), s.result, 'result of ' || s.name)
  FROM signature AS s LEFT JOIN pg_proc AS p ON p.proname = s.name
 ORDER BY s.name;
SELECT is(count(*), 1::bigint, 'one signature for ' || s.name)
  FROM signature AS s LEFT JOIN pg_proc AS p ON p.proname = s.name
 GROUP BY s.name ORDER BY s.name;

-- How the planner may treat them, and with whose rights they run.

SELECT results_eq(
	$$SELECT proname::text COLLATE "default", provolatile::text, proparallel::text FROM pg_proc
	   WHERE pronamespace = 'idem'::regnamespace ORDER BY proname COLLATE "C"$$,
	$$VALUES ('idem_ack', 'v', 'u'), ('idem_ack_many', 'v', 'u'),
			 ('idem_await', 'v', 'u'), ('idem_backoff', 'v', 'r'),
			 ('idem_breaker_allow', 'v', 'u'), ('idem_breaker_configure', 'v', 'u'),
			 ('idem_breaker_force', 'v', 'u'), ('idem_breaker_record', 'v', 'u'),
			 ('idem_breaker_reset', 'v', 'u'), ('idem_breaker_states', 'v', 'u'),
			 ('idem_claim', 'v', 'u'), ('idem_claim_many', 'v', 'u'),
			 ('idem_configure_queue', 'v', 'u'), ('idem_counters', 'v', 'r'),
			 ('idem_dequeue', 'v', 'u'),
			 ('idem_derive', 'i', 's'), ('idem_enqueue', 'v', 'u'),
			 ('idem_enqueue_many', 'v', 'u'), ('idem_expire', 'v', 'u'),
			 ('idem_extend', 'v', 'u'), ('idem_extend_many', 'v', 'u'),
			 ('idem_fail', 'v', 'u'),
			 ('idem_finish', 'v', 'u'), ('idem_finish_many', 'v', 'u'),
			 ('idem_forget', 'v', 'u'),
			 ('idem_guard', 'v', 'u'), ('idem_http', 'v', 'u'),
			 ('idem_key_id', 'i', 's'), ('idem_leases', 's', 'r'),
			 ('idem_library', 'v', 'r'), ('idem_lookup', 's', 'r'), ('idem_nack', 'v', 'u'),
			 ('idem_nack_many', 'v', 'u'), ('idem_once', 'v', 'u'),
			 ('idem_own_claims', 'v', 'r'), ('idem_purge', 'v', 'u'),
			 ('idem_queue_hash', 'i', 's'),
			 ('idem_receive', 'v', 'u'), ('idem_redrive', 'v', 'u'),
			 ('idem_release', 'v', 'u'), ('idem_renew', 'v', 'u'),
			 ('idem_resolve', 'v', 'u'), ('idem_stats_reset', 'v', 'u'),
			 ('idem_status', 'v', 'u'), ('idem_step', 'v', 'u'),
			 ('idem_step_finish', 'v', 'u'), ('idem_steps', 's', 'r')$$,
	'volatility and parallel safety');
SELECT is_empty(
	$$SELECT proname FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
	   WHERE pronamespace = 'idem'::regnamespace
	     AND (l.lanname <> CASE proname WHEN 'idem_status' THEN 'sql' ELSE 'c' END OR prosecdef OR proleakproof OR proisstrict
			  OR proconfig IS NOT NULL
			  OR prokind <> CASE proname WHEN 'idem_await' THEN 'p' ELSE 'f' END)$$,
	'C functions, and a procedure, with the rights of the caller, that answer a null themselves');
SELECT is_empty(
	$$SELECT proname FROM pg_proc WHERE pronamespace = 'idem'::regnamespace
	     AND (prosrc <> proname OR probin <> 'idempotency') AND prosqlbody IS NULL$$,
	'the C symbol is the name of the function');
SELECT is_empty(
	$$SELECT proname FROM pg_proc WHERE pronamespace = 'idem'::regnamespace
	     AND has_function_privilege('public', oid, 'EXECUTE') = (proname IN
			('idem_breaker_configure', 'idem_breaker_force', 'idem_breaker_reset', 'idem_stats_reset'))$$,
	'everybody may call them, but what concerns everybody');

-- Drivers send parameters without types, in order or by name.

PREPARE claim_untyped AS SELECT * FROM idem_claim($1, $2, $3, $4, $5);
PREPARE finish_untyped AS SELECT idem_finish($1, $2, $3);
PREPARE others_untyped AS
 SELECT idem_release($1, $2), idem_forget($3, $4), idem_expire($5)
   FROM idem_lookup($6, $7);
PREPARE claim_many_untyped AS
 SELECT * FROM idem_claim_many($1, $2, $3, $4, $5, $6, $7, $8);
PREPARE finish_many_untyped AS SELECT * FROM idem_finish_many($1, $2, $3, $4);
PREPARE once_untyped AS SELECT * FROM idem_once($1, $2, $3, $4, $5, $6, $7);
PREPARE http_untyped AS SELECT idem_http($1, $2, $3, $4, $5, $6);
PREPARE derive_untyped AS SELECT idem_derive($1, $2, $3, $4);
PREPARE step_untyped AS
 SELECT idem_step($1, $2, $3, $4, $5),
		idem_step_finish($6, $7, $8, $9, $10, $11)
   FROM idem_steps($12, $13);
PREPARE enqueue_untyped AS SELECT idem_enqueue($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);
PREPARE enqueue_many_untyped AS
 SELECT * FROM idem_enqueue_many($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);
PREPARE receive_untyped AS SELECT * FROM idem_receive($1, $2, $3, $4, $5, $6, $7, $8);
PREPARE dequeue_untyped AS SELECT * FROM idem_dequeue($1, $2, $3, $4, $5);
PREPARE answer_untyped AS
 SELECT idem_ack($1, $2), idem_nack($3, $4, $5, $6, $7), idem_extend($8, $9, $10);
PREPARE answer_many_untyped AS
 SELECT idem_ack_many($1, $2), idem_nack_many($3, $4, $5, $6, $7), idem_extend_many($8, $9, $10);
PREPARE queue_untyped AS
 SELECT idem_redrive($1, $2, $3, $4), idem_purge($5, $6, $7, $8),
		idem_configure_queue($9, $10, $11, $12, $13, $14, $15, $16);
SELECT results_eq(
	$$SELECT name COLLATE "default", parameter_types::text FROM pg_prepared_statements ORDER BY name$$,
	$$VALUES ('answer_many_untyped', '{bigint[],bigint[],bigint[],bigint[],jsonb[],interval,boolean,bigint[],bigint[],interval}'),
			 ('answer_untyped', '{bigint,bigint,bigint,bigint,jsonb,interval,boolean,bigint,bigint,interval}'),
			 ('claim_many_untyped', '{text[],interval,jsonb[],text,interval,interval,text,text}'),
			 ('claim_untyped', '{text,interval,jsonb,text,interval}'),
			 ('dequeue_untyped', '{text,integer,interval,interval,text}'),
			 ('derive_untyped', '{text,text,text,uuid}'),
			 ('enqueue_many_untyped', '{text,jsonb[],text[],interval,integer,integer,text[],jsonb[],interval,text}'),
			 ('enqueue_untyped', '{text,jsonb,text,interval,integer,integer,text,jsonb,interval,text}'),
			 ('finish_many_untyped', '{text[],jsonb[],text,bigint[]}'),
			 ('finish_untyped', '{text,jsonb,text}'),
			 ('http_untyped', '{text,text[],interval,jsonb,text,interval}'),
			 ('once_untyped', '{text,text,text[],interval,jsonb,text,interval}'),
			 ('others_untyped', '{text,text,text,text,integer,text,text}'),
			 ('queue_untyped', '{text,bigint[],integer,text,text,boolean,integer,text,text,integer,interval,interval,text,interval,text[],boolean}'),
			 ('receive_untyped', '{text,text,jsonb,text,jsonb,interval,text,text}'),
			 ('step_untyped', '{text,text,jsonb,text,bigint,text,text,jsonb,text,bigint,jsonb,text,text}')$$,
	'parameters need no types');
SELECT results_eq(
	$$SELECT outcome, response FROM idem_claim(wait => '0', scope => 's',
		request => '{}', ttl => '1 hour', key => 'named')$$,
	$$VALUES ('claimed', NULL::jsonb)$$,
	'idem_claim by names');
SELECT is(idem_finish(scope => 's', response => '[1]', key => 'named'), '[1]',
	'idem_finish by names');
SELECT results_eq(
	$$SELECT state, response FROM idem_lookup(scope => 's', key => 'named')$$,
	$$VALUES ('finished', '[1]'::jsonb)$$,
	'idem_lookup by names');
SELECT ok(idem_forget(scope => 's', key => 'named'), 'idem_forget by names');
SELECT is(idem_expire(max_rows => 1), 0::bigint, 'idem_expire by names');
SELECT lives_ok(
	$$SELECT idem_release(scope => 's', key => 'again')
	    FROM idem_claim(scope => 's', key => 'again')$$,
	'idem_release by names');
SELECT results_eq(
	$$SELECT key, outcome, response, token IS NULL, attempt
	    FROM idem_claim_many(holder => NULL, takeover => 'hold', lease => NULL,
			wait => '0', scope => 's', requests => '{1,2}', ttl => '1 hour',
			keys => '{m1,m2}')$$,
	$$VALUES ('m1', 'claimed', NULL::jsonb, true, 1),
			 ('m2', 'claimed', NULL, true, 1)$$,
	'idem_claim_many by names');
SELECT results_eq(
	$$SELECT key, response FROM idem_finish_many(tokens => NULL, scope => 's',
		responses => '{3,4}', keys => '{m1,m2}')$$,
	$$VALUES ('m1', '3'::jsonb), ('m2', '4')$$,
	'idem_finish_many by names');
SELECT results_eq(
	$$SELECT outcome, response, retry_after FROM idem_once(wait => '0',
		scope => 's', request => '{}', ttl => '1 hour', params => '{7}',
		command => 'SELECT $1::int + 1', key => 'once')$$,
	$$VALUES ('claimed', '8'::jsonb, NULL::interval)$$,
	'idem_once by names');
SELECT set_config('request.headers', '{"idempotency-key": "named"}', true) \g /dev/null
SELECT is(idem_http(wait => '0', scope => 'http', request => '{}', ttl => '1 hour',
		params => '{7}', command => 'SELECT $1::int + 2'), '9',
	'idem_http by names');
SELECT is(idem_derive(namespace => NULL, scope => 's', step => 'pay', key => 'named'),
	idem_derive('named', 'pay', 's', NULL), 'idem_derive by names');
SELECT lives_ok($$SELECT * FROM idem_claim('flow', scope => 's')$$, 'a flow');
SELECT results_eq(
	$$SELECT done, result FROM idem_step(token => NULL, scope => 's',
		request => '1', step => 'pay', key => 'flow')$$,
	$$VALUES (false, NULL::jsonb)$$,
	'idem_step by names');
SELECT is(idem_step_finish(request => '1', token => NULL, scope => 's',
		result => '"paid"', step => 'pay', key => 'flow'), '"paid"',
	'idem_step_finish by names');
SELECT results_eq(
	$$SELECT step, result, attempt FROM idem_steps(scope => 's', key => 'flow')$$,
	$$VALUES ('pay', '"paid"'::jsonb, 1)$$,
	'idem_steps by names');
SELECT lives_ok(
	$$SELECT idem_configure_queue(paused => false, shared_with => '{pg_monitor}',
		dead_letter_ttl => '1 day', jitter => 'none', backoff_cap => '1 hour',
		backoff_base => '1 hour', max_attempts => 2, queue => 'named')$$,
	'idem_configure_queue by names');
SELECT is(idem_enqueue(owner => current_user, ttl => '1 hour', headers => '{}',
		message_group => 'g', priority => 1, max_attempts => 3, delay => '0',
		key => 'named', payload => '1', queue => 'named'), 1::bigint,
	'idem_enqueue by names');
SELECT results_eq(
	$$SELECT id, duplicate FROM idem_enqueue_many(owner => NULL, ttl => NULL,
		headers => '{2,3}', message_groups => '{NULL,NULL}', priority => 2,
		max_attempts => 0, delay => NULL, keys => '{named,other}', payloads => '{2,3}',
		queue => 'named')$$,
	$$VALUES (1::bigint, true), (2, false)$$,
	'idem_enqueue_many by names');
SELECT results_eq(
	$$SELECT id, duplicate FROM idem_receive(owner => NULL, message_group => NULL,
		ttl => '1 hour', headers => NULL, queue => 'named', payload => '4',
		message_id => '4', source => 'partner')$$,
	$$VALUES (3::bigint, false)$$,
	'idem_receive by names');
CREATE TEMPORARY TABLE taken AS
SELECT * FROM idem_dequeue(owner => NULL, wait => NULL, lease => '1 hour',
	max_messages => 3, queue => 'named');
SELECT set_eq('SELECT id, key, payload FROM taken',
	$$VALUES (1::bigint, 'named', '1'::jsonb), (2, 'other', '3'), (3, 'partner/4', '4')$$,
	'idem_dequeue by names');
SELECT ok(idem_extend(lease => '2 hours', token => token, id => id) > lease_until,
	'idem_extend by names') FROM taken WHERE id = 1;
SELECT ok(idem_nack(final => false, retry_in => '1 min', error => '1', token => token, id => id) > now(),
	'idem_nack by names') FROM taken WHERE id = 1;
SELECT lives_ok(format('SELECT idem_ack(token => %s, id => %s)', token, id),
	'idem_ack by names') FROM taken WHERE id = 2;
SELECT lives_ok(format('SELECT idem_extend_many(lease => ''1 hour'', tokens => ''{%s}'', ids => ''{%s}'')', token, id),
	'idem_extend_many by names') FROM taken WHERE id = 3;
SELECT lives_ok(format('SELECT idem_nack_many(final => true, retry_in => NULL, errors => NULL, tokens => ''{%s}'', ids => ''{%s}'')', token, id),
	'idem_nack_many by names') FROM taken WHERE id = 3;
SELECT lives_ok($$SELECT idem_ack_many(tokens => '{}', ids => '{}')$$,
	'idem_ack_many by names');
SELECT is(idem_redrive(owner => NULL, max_messages => 1, ids => '{3}', queue => 'named'), 1::bigint,
	'idem_redrive by names');
SELECT is(idem_purge(owner => NULL, max_messages => 10, dead_letters => false, queue => 'named'), 2::bigint,
	'idem_purge by names');

-- Tables and views.

SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_key'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('expires_at', 'timestamp with time zone', true),
			 ('claimed_at', 'timestamp with time zone', true),
			 ('finished_at', 'timestamp with time zone', false),
			 ('id', 'uuid', true),
			 ('owner', 'regrole', true),
			 ('scope', 'text', true),
			 ('key', 'text', false),
			 ('fingerprint', 'bytea', false),
			 ('response', 'jsonb', false),
			 ('state', '"char"', true),
			 ('attempt', 'integer', false),
			 ('token', 'bigint', false),
			 ('generation', 'bigint', false),
			 ('lease_until', 'timestamp with time zone', false),
			 ('retry_at', 'timestamp with time zone', false),
			 ('ttl', 'interval', false),
			 ('takeover', '"char"', false),
			 ('holder', 'text', false)$$,
	'columns of idem_key');
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod)
	    FROM pg_attribute WHERE attrelid = 'idem.idem_claim_answer'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('outcome', 'text'), ('response', 'jsonb'), ('token', 'bigint'),
			 ('attempt', 'integer'), ('retry_after', 'interval')$$,
	'columns of what idem_claim answers');
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_step'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('generation', 'bigint', true),
			 ('finished_at', 'timestamp with time zone', true),
			 ('attempt', 'integer', true),
			 ('step', 'text', true),
			 ('fingerprint', 'bytea', false),
			 ('result', 'jsonb', false)$$,
	'columns of idem_step');
SELECT results_eq(
	format('SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod)
			  FROM pg_attribute WHERE attrelid = %L::regclass
			   AND attnum > 0 ORDER BY attnum', 'idem.' || name),
	format('SELECT * FROM unnest(%L::text[], %L::text[])', columns, types),
	'columns of ' || name)
  FROM (VALUES
	('idem_claim_many_answer', '{key,outcome,response,token,attempt,retry_after}',
	 '{text,text,jsonb,bigint,integer,interval}'),
	('idem_finish_many_answer', '{key,response}', '{text,jsonb}'),
	('idem_once_answer', '{outcome,response,retry_after}', '{text,jsonb,interval}'),
	('idem_step_answer', '{done,result}', '{boolean,jsonb}'),
	('idem_enqueue_answer', '{id,duplicate}', '{bigint,boolean}'),
	('idem_dequeue_answer',
	 '{id,key,payload,headers,attempt,token,enqueued_at,lease_until,message_group,downstream_key}',
	 '{bigint,text,jsonb,jsonb,integer,bigint,timestamp with time zone,timestamp with time zone,text,uuid}'),
	('idem_queues', '{owner,queue,ready,oldest,in_flight,delayed,retrying,dead,paused}',
	 '{regrole,text,bigint,interval,bigint,bigint,bigint,bigint,boolean}'),
	('idem_messages',
	 '{id,owner,queue,state,priority,attempt,due_at,lease_until,enqueued_at,message_group,key,headers,payload,history}',
	 '{bigint,regrole,text,text,smallint,integer,timestamp with time zone,timestamp with time zone,timestamp with time zone,text,text,jsonb,jsonb,jsonb}'),
	('idem_dead_letters',
	 '{id,owner,queue,died_at,attempt,last_error,enqueued_at,expires_at,message_group,key,headers,payload,history}',
	 '{bigint,regrole,text,timestamp with time zone,integer,jsonb,timestamp with time zone,timestamp with time zone,text,text,jsonb,jsonb,jsonb}'))
	AS t(name, columns, types);
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_message'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('id', 'bigint', true),
			 ('place', 'bigint', true),
			 ('queue_hash', 'bigint', true),
			 ('enqueued_at', 'timestamp with time zone', true),
			 ('due_at', 'timestamp with time zone', true),
			 ('lease_until', 'timestamp with time zone', true),
			 ('token', 'bigint', true),
			 ('attempt', 'integer', true),
			 ('owner', 'regrole', true),
			 ('max_attempts', 'integer', true),
			 ('priority', 'smallint', true),
			 ('queue', 'text', true),
			 ('message_group', 'text', false),
			 ('key', 'text', false),
			 ('headers', 'jsonb', false),
			 ('payload', 'jsonb', true),
			 ('history', 'jsonb', false)$$,
	'columns of idem_message');
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_dead_letter'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('id', 'bigint', true),
			 ('enqueued_at', 'timestamp with time zone', true),
			 ('died_at', 'timestamp with time zone', true),
			 ('expires_at', 'timestamp with time zone', true),
			 ('attempt', 'integer', true),
			 ('owner', 'regrole', true),
			 ('max_attempts', 'integer', true),
			 ('priority', 'smallint', true),
			 ('queue', 'text', true),
			 ('message_group', 'text', false),
			 ('key', 'text', false),
			 ('headers', 'jsonb', false),
			 ('payload', 'jsonb', true),
			 ('history', 'jsonb', false)$$,
	'columns of idem_dead_letter');
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_queue'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('owner', 'regrole', true),
			 ('queue', 'text', true),
			 ('paused', 'boolean', true),
			 ('max_attempts', 'integer', false),
			 ('backoff_base', 'interval', false),
			 ('backoff_cap', 'interval', false),
			 ('jitter', 'text', false),
			 ('dead_letter_ttl', 'interval', false),
			 ('shared_with', 'regrole[]', false)$$,
	'columns of idem_queue');
SELECT col_is_pk('idem', 'idem_key', ARRAY['id', 'owner'],
	'the primary key is (id, owner)');
SELECT col_is_pk('idem', 'idem_step', ARRAY['generation', 'step'],
	'that of idem_step is (generation, step)');
SELECT col_is_pk('idem', 'idem_queue', ARRAY['owner', 'queue'],
	'that of idem_queue is (owner, queue)');
SELECT col_is_pk('idem', 'idem_message', 'id', 'that of idem_message is the id');
SELECT col_is_pk('idem', 'idem_dead_letter', 'id', 'that of idem_dead_letter, too');
SELECT results_eq(
	$$SELECT indexrelid::regclass::text COLLATE "default",
			 regexp_replace(pg_get_indexdef(indexrelid), '^.* USING ', '') COLLATE "default"
	    FROM pg_index
	   WHERE indrelid IN ('idem_message'::regclass, 'idem_dead_letter'::regclass)
	     AND NOT indisunique ORDER BY 1$$,
	$$VALUES ('idem_dead_letter_queue', 'btree (owner, queue, id)'),
			 ('idem_message_due', 'btree (queue_hash, owner, priority, due_at, id)'),
			 ('idem_message_group', 'btree (owner, queue, message_group, place) WHERE (message_group IS NOT NULL)')$$,
	'messages are found by when they are due, and by their group');
SELECT is(pg_get_serial_sequence('idem.idem_message', 'id'), 'idem.idem_message_id',
	'the sequence goes with the table');
SELECT is_empty(
	$$SELECT attrelid::regclass, attname FROM pg_attribute
	   WHERE attrelid IN ('idem.idem_key'::regclass, 'idem.idem_step'::regclass,
						  'idem.idem_queue'::regclass, 'idem.idem_message'::regclass,
						  'idem.idem_dead_letter'::regclass)
	     AND atttypid = 'text'::regtype
	     AND attcollation <> 'pg_catalog."C"'::regcollation$$,
	'texts are compared byte by byte');
SELECT is_empty(
	$$SELECT relname FROM pg_class
	   WHERE relnamespace = 'idem'::regnamespace AND relkind = 'r'
	     AND (relpersistence <> 'p' OR relam <>
			  (SELECT oid FROM pg_am WHERE amname = 'heap'))$$,
	'tables are logged heaps');
SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod)
	    FROM pg_attribute WHERE attrelid = 'idem.idem_in_flight'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('pid', 'integer'), ('prepared', 'text'), ('owner', 'regrole'),
			 ('state', 'text'), ('since', 'timestamp with time zone'),
			 ('scope', 'text'), ('key', 'text'), ('holder', 'text'),
			 ('attempt', 'integer'), ('remaining', 'interval'),
			 ('overdue', 'boolean')$$,
	'columns of idem_in_flight');
SELECT ok('security_barrier=true' = ANY (reloptions)
	OR 'security_barrier' = ANY (reloptions),
	relname || ' is a security barrier')
  FROM pg_class WHERE relnamespace = 'idem'::regnamespace AND relkind = 'v'
 ORDER BY relname;

-- What pg_dump takes along: what has been done, but not the secret.

SELECT results_eq(
	$$SELECT e.config::regclass::text COLLATE "default", e.condition COLLATE "default" FROM pg_extension,
		LATERAL unnest(extconfig, extcondition) AS e(config, condition)
	   WHERE extname = 'idempotency' ORDER BY 1$$,
	$$VALUES ('idem_breaker', ''),
			 ('idem_dead_letter', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)'),
			 ('idem_key', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)'),
			 ('idem_message', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)'),
			 ('idem_message_id', ''),
			 ('idem_queue', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner) AND NOT EXISTS (SELECT FROM pg_catalog.unnest(shared_with) AS s (oid) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) s.oid))'),
			 ('idem_step', 'WHERE generation OPERATOR(pg_catalog.=) ANY (SELECT k.generation FROM idem.idem_key AS k JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) k.owner)')$$,
	'the keys and queues of living roles are dumped, with steps and messages, and nothing else');

-- Everything is explained where it is.

SELECT is_empty(
	$$SELECT pg_describe_object(classid, objid, 0) FROM members
	   WHERE COALESCE(obj_description(objid, classid::regclass::name), '') = ''$$,
	'every object has a comment');
SELECT is_empty(
	$$SELECT attrelid::regclass, attname FROM pg_attribute
	    JOIN pg_class AS c ON c.oid = attrelid
	    JOIN members ON (classid, objid) IN (('pg_class'::regclass, c.oid),
											 ('pg_type'::regclass, c.reltype))
	   WHERE attnum > 0 AND NOT attisdropped AND c.relkind <> 'S'
	     AND COALESCE(col_description(attrelid, attnum), '') = ''$$,
	'every column has a comment');
SELECT isnt(obj_description(oid, 'pg_extension'), NULL, 'so has the extension')
  FROM pg_extension WHERE extname = 'idempotency';

-- Settings.

SELECT results_eq(
	$$SELECT name, context, vartype, unit, boot_val FROM pg_settings
	   WHERE name LIKE 'idempotency.%' ORDER BY name$$,
	$$VALUES ('idempotency.abandoned_ttl', 'user', 'integer', 's', '604800'),
			 ('idempotency.backoff_base', 'user', 'integer', 'ms', '1000'),
			 ('idempotency.backoff_cap', 'user', 'integer', 'ms', '3600000'),
			 ('idempotency.dead_letter_ttl', 'user', 'integer', 's', '2592000'),
			 ('idempotency.default_ttl', 'user', 'integer', 's', '86400'),
			 ('idempotency.failed_ttl', 'user', 'integer', 's', '86400'),
			 ('idempotency.janitor_batch', 'sighup', 'integer', NULL, '1000'),
			 ('idempotency.janitor_interval', 'sighup', 'integer', 's', '60'),
			 ('idempotency.janitor_pause', 'sighup', 'integer', 'ms', '20'),
			 ('idempotency.max_attempts', 'user', 'integer', NULL, '10'),
			 ('idempotency.max_response_size', 'superuser', 'integer', 'kB', '8192')$$,
	'settings');
SELECT is_empty(
	$$SELECT name FROM pg_settings
	   WHERE name LIKE 'idempotency.%' AND short_desc IS NULL$$,
	'settings are described');

SELECT * FROM finish();
ROLLBACK;
