-- The contract as the catalogs show it. Applications, drivers and pg_dump rely
-- on every line of this; a change here is a change of the interface.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(112);

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
		  'idem_derive', 'idem_key_id', 'idem_step', 'idem_step_finish', 'idem_steps'],
	'functions');
SELECT set_eq(
	$$SELECT c.relname::text, c.relkind::text FROM members AS m
	    JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid$$,
	$$VALUES ('idem_key', 'r'), ('idem_step', 'r'), ('idem_secret', 'r'),
			 ('idem_in_flight', 'v')$$,
	'tables and views');
SELECT set_eq(
	$$SELECT pg_describe_object(classid, objid, 0) FROM members
	   WHERE classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass)$$,
	ARRAY['type idem_claim_answer', 'type idem_claim_many_answer',
		  'type idem_finish_many_answer', 'type idem_once_answer',
		  'type idem_step_answer'],
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
 'SETOF record');

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
	$$VALUES ('idem_backoff', 'v', 'r'),
			 ('idem_claim', 'v', 'u'), ('idem_claim_many', 'v', 'u'),
			 ('idem_derive', 'i', 's'), ('idem_expire', 'v', 'u'),
			 ('idem_fail', 'v', 'u'),
			 ('idem_finish', 'v', 'u'), ('idem_finish_many', 'v', 'u'),
			 ('idem_forget', 'v', 'u'),
			 ('idem_guard', 'v', 'u'), ('idem_http', 'v', 'u'),
			 ('idem_key_id', 'i', 's'), ('idem_leases', 's', 'r'),
			 ('idem_lookup', 's', 'r'), ('idem_once', 'v', 'u'),
			 ('idem_own_claims', 'v', 'r'),
			 ('idem_release', 'v', 'u'), ('idem_renew', 'v', 'u'),
			 ('idem_resolve', 'v', 'u'), ('idem_step', 'v', 'u'),
			 ('idem_step_finish', 'v', 'u'), ('idem_steps', 's', 'r')$$,
	'volatility and parallel safety');
SELECT is_empty(
	$$SELECT proname FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
	   WHERE pronamespace = 'idem'::regnamespace
	     AND (l.lanname <> 'c' OR prosecdef OR proleakproof OR proisstrict
			  OR proconfig IS NOT NULL OR prokind <> 'f')$$,
	'C functions, with the rights of the caller, that answer a null themselves');
SELECT is_empty(
	$$SELECT proname FROM pg_proc WHERE pronamespace = 'idem'::regnamespace
	     AND (prosrc <> proname OR probin <> 'idempotency')$$,
	'the C symbol is the name of the function');
SELECT is_empty(
	$$SELECT proname FROM pg_proc WHERE pronamespace = 'idem'::regnamespace
	     AND NOT has_function_privilege('public', oid, 'EXECUTE')$$,
	'everybody may call them');

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
SELECT results_eq(
	$$SELECT name COLLATE "default", parameter_types::text FROM pg_prepared_statements ORDER BY name$$,
	$$VALUES ('claim_many_untyped', '{text[],interval,jsonb[],text,interval,interval,text,text}'),
			 ('claim_untyped', '{text,interval,jsonb,text,interval}'),
			 ('derive_untyped', '{text,text,text,uuid}'),
			 ('finish_many_untyped', '{text[],jsonb[],text,bigint[]}'),
			 ('finish_untyped', '{text,jsonb,text}'),
			 ('http_untyped', '{text,text[],interval,jsonb,text,interval}'),
			 ('once_untyped', '{text,text,text[],interval,jsonb,text,interval}'),
			 ('others_untyped', '{text,text,text,text,integer,text,text}'),
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

-- Tables and view.

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
	('idem_step_answer', '{done,result}', '{boolean,jsonb}')) AS t(name, columns, types);
SELECT col_is_pk('idem', 'idem_key', ARRAY['id', 'owner'],
	'the primary key is (id, owner)');
SELECT col_is_pk('idem', 'idem_step', ARRAY['generation', 'step'],
	'that of idem_step is (generation, step)');
SELECT is_empty(
	$$SELECT attrelid::regclass, attname FROM pg_attribute
	   WHERE attrelid IN ('idem.idem_key'::regclass, 'idem.idem_step'::regclass)
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
	'idem_in_flight is a security barrier')
  FROM pg_class WHERE oid = 'idem.idem_in_flight'::regclass;

-- What pg_dump takes along: what has been done, but not the secret.

SELECT results_eq(
	$$SELECT e.config::regclass::text COLLATE "default", e.condition COLLATE "default" FROM pg_extension,
		LATERAL unnest(extconfig, extcondition) AS e(config, condition)
	   WHERE extname = 'idempotency' ORDER BY 1$$,
	$$VALUES ('idem_key', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)'),
			 ('idem_step', 'WHERE generation OPERATOR(pg_catalog.=) ANY (SELECT k.generation FROM idem.idem_key AS k JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) k.owner)')$$,
	'the keys of living roles are dumped, with their steps, and nothing else');

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
	   WHERE attnum > 0 AND NOT attisdropped
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
			 ('idempotency.default_ttl', 'user', 'integer', 's', '86400'),
			 ('idempotency.failed_ttl', 'user', 'integer', 's', '86400'),
			 ('idempotency.max_attempts', 'user', 'integer', NULL, '10'),
			 ('idempotency.max_response_size', 'superuser', 'integer', 'kB', '8192')$$,
	'settings');
SELECT is_empty(
	$$SELECT name FROM pg_settings
	   WHERE name LIKE 'idempotency.%' AND short_desc IS NULL$$,
	'settings are described');

SELECT * FROM finish();
ROLLBACK;
