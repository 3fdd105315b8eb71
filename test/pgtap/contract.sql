-- The contract as the catalogs show it. Applications, drivers and pg_dump rely
-- on every line of this; a change here is a change of the interface.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(70);

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
		  'idem_fail', 'idem_renew', 'idem_guard', 'idem_resolve', 'idem_leases'],
	'functions');
SELECT set_eq(
	$$SELECT c.relname::text, c.relkind::text FROM members AS m
	    JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid$$,
	$$VALUES ('idem_key', 'r'), ('idem_secret', 'r'), ('idem_in_flight', 'v')$$,
	'tables and views');
SELECT set_eq(
	$$SELECT pg_describe_object(classid, objid, 0) FROM members
	   WHERE classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass)$$,
	ARRAY['type idem_claim_answer'],
	'a type, and nothing else');
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
			 ('idem_claim', 'v', 'u'), ('idem_expire', 'v', 'u'),
			 ('idem_fail', 'v', 'u'),
			 ('idem_finish', 'v', 'u'), ('idem_forget', 'v', 'u'),
			 ('idem_guard', 'v', 'u'), ('idem_leases', 's', 'r'),
			 ('idem_lookup', 's', 'r'), ('idem_own_claims', 'v', 'r'),
			 ('idem_release', 'v', 'u'), ('idem_renew', 'v', 'u'),
			 ('idem_resolve', 'v', 'u')$$,
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
SELECT results_eq(
	$$SELECT name COLLATE "default", parameter_types::text FROM pg_prepared_statements ORDER BY name$$,
	$$VALUES ('claim_untyped', '{text,interval,jsonb,text,interval}'),
			 ('finish_untyped', '{text,jsonb,text}'),
			 ('others_untyped', '{text,text,text,text,integer,text,text}')$$,
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

-- Tables and view.

SELECT results_eq(
	$$SELECT attname::text COLLATE "default", format_type(atttypid, atttypmod), attnotnull
	    FROM pg_attribute WHERE attrelid = 'idem.idem_key'::regclass
	     AND attnum > 0 ORDER BY attnum$$,
	$$VALUES ('expires_at', 'timestamp with time zone', true),
			 ('claimed_at', 'timestamp with time zone', true),
			 ('finished_at', 'timestamp with time zone', false),
			 ('owner', 'regrole', true),
			 ('scope', 'text', true),
			 ('key', 'text', true),
			 ('fingerprint', 'bytea', false),
			 ('response', 'jsonb', false),
			 ('state', '"char"', true),
			 ('attempt', 'integer', false),
			 ('token', 'bigint', false),
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
SELECT col_is_pk('idem', 'idem_key', ARRAY['key', 'scope', 'owner'],
	'the primary key is (key, scope, owner)');
SELECT is_empty(
	$$SELECT attname FROM pg_attribute WHERE attrelid = 'idem.idem_key'::regclass
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
	$$SELECT e.config::regclass::text, e.condition COLLATE "default" FROM pg_extension,
		LATERAL unnest(extconfig, extcondition) AS e(config, condition)
	   WHERE extname = 'idempotency'$$,
	$$VALUES ('idem_key', 'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)')$$,
	'of idem_key the rows of living roles are dumped, and nothing else');

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
