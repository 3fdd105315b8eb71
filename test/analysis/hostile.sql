-- The extension in a database where every name of pg_catalog has a look-alike
-- that is found first, also while CREATE EXTENSION runs its script (version
-- "hostile" of it begins with that search_path). None of them is met: no object
-- of ours depends on one, and no function and no view of ours calls one.
--
-- Look-alikes of functions, and so of operators, raise; those of views do when
-- they are read, those of types are another type.

\set QUIET on
SET client_min_messages = warning;
CREATE SCHEMA hostile;

SET search_path = pg_catalog;
SELECT format('CREATE FUNCTION hostile.%I(%s) RETURNS %s LANGUAGE internal AS ''internal_in''',
			  proname,
			  CASE WHEN prokind IN ('f', 'w') THEN pg_get_function_arguments(oid)
				   ELSE array_to_string(ARRAY(SELECT format_type(a, NULL) FROM unnest(proargtypes) AS a), ', ') END,
			  pg_get_function_result(oid))
  FROM pg_proc
 WHERE pronamespace = 'pg_catalog'::regnamespace
	-- not those of which only initdb can make more
   AND (prorettype::regtype::text !~ '^any' OR oidvectortypes(proargtypes) ~ 'any')
   AND (prorettype <> 'internal'::regtype OR oidvectortypes(proargtypes) ~ 'internal')
\gexec
SELECT format('CREATE OPERATOR hostile.%s (FUNCTION = hostile.%I%s, RIGHTARG = %s)',
			  oprname, proname,
			  CASE WHEN oprleft <> 0 THEN ', LEFTARG = ' || format_type(oprleft, NULL) ELSE '' END,
			  format_type(oprright, NULL))
  FROM pg_operator JOIN pg_proc AS p ON p.oid = oprcode
 WHERE oprnamespace = 'pg_catalog'::regnamespace
\gexec
SELECT format('CREATE VIEW hostile.%I AS SELECT * FROM hostile.now() AS raised', relname)
  FROM pg_class
 WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
\gexec
SELECT format('CREATE COLLATION hostile.%I FROM pg_catalog."POSIX"', collname)
  FROM pg_collation
 WHERE collnamespace = 'pg_catalog'::regnamespace AND collencoding IN (-1, 6)
   AND collname <> 'default'
\gexec
SELECT format('CREATE DOMAIN hostile.%I AS int4', typname)
  FROM pg_type
 WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype <> 'c'
   AND typcategory <> 'A'
\gexec

SET search_path = hostile, pg_catalog;
DO $$
BEGIN
	PERFORM now();
	RAISE 'the trap does not snap';
EXCEPTION WHEN feature_not_supported THEN
END
$$;

-- so that the script does all that it can do
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC, pg_monitor;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem VERSION 'hostile';

-- What depends on a look-alike, directly or through a part of its own.

SET search_path = pg_catalog;
WITH RECURSIVE ours AS (
	SELECT classid, objid FROM pg_depend
	 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
	UNION
	SELECT d.classid, d.objid FROM ours AS o
	  JOIN pg_depend AS d ON (d.refclassid, d.refobjid) = (o.classid, o.objid)
	 WHERE d.deptype IN ('i', 'a')
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on ' ||
	   pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
  FROM ours JOIN pg_depend AS d USING (classid, objid),
	   LATERAL pg_identify_object(d.refclassid, d.refobjid, 0) AS i
 WHERE i.schema = 'hostile'
 ORDER BY 1;

-- Functions whose bodies are looked at again whenever they are called.

SELECT p.oid::regprocedure || ' has a body in ' || lanname || ', but no search_path'
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = prolang
 WHERE pronamespace = 'idem'::regnamespace AND lanname <> 'c' AND prosqlbody IS NULL
   AND NOT EXISTS (SELECT FROM unnest(proconfig) AS c WHERE c ~ '^search_path=');

-- Every function and every view, in one transaction, so that their calls can be
-- counted.

BEGIN;
SET LOCAL track_functions = 'all';
SET LOCAL search_path = hostile, pg_catalog;
\o /dev/null
SELECT * FROM idem.idem_claim('k', '1 d', '{"a": 1}', 's', '1 d');
SELECT idem.idem_step_finish('k', 'a', '2.50', 's', request => '1');
SELECT * FROM idem.idem_step('k', 'a', '1.0', 's');
SELECT * FROM idem.idem_steps('k', 's');
SELECT * FROM idem.idem_in_flight;
SELECT idem.idem_finish('k', '{"b": 2.50}', 's');
SELECT * FROM idem.idem_claim('k', request => '{"a": 2}', scope => 's');
SELECT * FROM idem.idem_lookup('k', 's');
SELECT idem.idem_forget('k', 's');
SELECT * FROM idem.idem_claim('l');
SELECT idem.idem_release('l');
SELECT token FROM idem.idem_claim('m', lease => '1 d', takeover => 'hold', holder => 'h') \gset
SELECT idem.idem_renew('m', '2 d', token => :token);
SELECT idem.idem_guard('m', token => :token);
SELECT idem.idem_step_finish('m', 'a', token => :token);
SELECT * FROM idem.idem_in_flight;
UPDATE idem.idem_key SET lease_until = 'epoch';
SELECT * FROM idem.idem_claim('m', wait => '0');
SELECT idem.idem_resolve('m', '1');
SELECT * FROM idem.idem_claim('n');
SELECT * FROM idem.idem_fail('n', '"e"', '1 h');
SELECT * FROM idem.idem_claim_many('{o,p}', '1 d', '{1,2}', 's', '1 d');
SELECT * FROM idem.idem_finish_many('{o,p}', '{1,2}', 's');
SELECT * FROM idem.idem_once('q', 'VALUES ($1::pg_catalog.text, $2::pg_catalog.int4), (NULL, 2)', '{x,1}');
SET LOCAL request.headers = '{"idempotency-key": "r"}';
SET LOCAL request.path = '/p';
SELECT idem.idem_http('VALUES ($1::pg_catalog.int4)', '{1}');
SELECT idem.idem_http('VALUES ($1::pg_catalog.int4)', '{1}');
SELECT idem.idem_derive('k', 'a', 's', '11111111-1111-4111-8111-111111111111');
SELECT idem.idem_backoff(3, '1 s', '1 h', jitter)
  FROM (VALUES ('none'), ('full'), ('equal'), ('decorrelated')) AS v(jitter);
SELECT idem.idem_expire();
SELECT idem.idem_queue_hash('q');
SELECT idem.idem_configure_queue('q', 3, '1 s', '1 h', 'full', '1 d', '{}', false);
SELECT idem.idem_enqueue('q', '1', 'a', '0', 3, 1, 'g', '{}', '1 d');
SELECT * FROM idem.idem_enqueue_many('q', '{1,2,3}', '{a,b,c}');
SELECT * FROM idem.idem_receive('q', 'd', '4');
SELECT * FROM idem.idem_messages;
SELECT pg_catalog.min(id) AS one, pg_catalog.max(id) AS other, pg_catalog.min(token) AS token FROM idem.idem_dequeue('q', 10) \gset
SELECT idem.idem_extend(:one, :token);
SELECT idem.idem_extend_many(ARRAY[:one, :other]::pg_catalog.int8[], ARRAY[:token, :token]::pg_catalog.int8[]);
SELECT idem.idem_ack(:one, :token);
SELECT idem.idem_nack(:other, :token, '"e"', final => true);
SELECT * FROM idem.idem_dead_letters;
SELECT * FROM idem.idem_queues;
SELECT idem.idem_redrive('q');
SELECT idem.idem_nack_many('{}', '{}');
SELECT idem.idem_ack_many('{}', '{}');
SELECT idem.idem_purge('q');
SELECT idem.idem_purge('q', true);
SELECT * FROM idem.idem_stats;
SELECT idem.idem_breaker_configure('b');
SELECT * FROM idem.idem_breakers;
SELECT * FROM idem.idem_status();

-- and what pg_dump asks
SELECT pg_catalog.format('SELECT * FROM %s %s', config::pg_catalog.regclass, condition)
  FROM pg_catalog.pg_extension,
	   ROWS FROM (pg_catalog.unnest(extconfig), pg_catalog.unnest(extcondition)) AS c(config, condition)
 WHERE extname OPERATOR(pg_catalog.=) 'idempotency'
\gexec
\o

SET LOCAL search_path = pg_catalog;
SELECT p.oid::regprocedure || ' was not called'
  FROM pg_proc AS p LEFT JOIN pg_stat_xact_user_functions AS s ON s.funcid = p.oid
 WHERE pronamespace = 'idem'::regnamespace AND s.calls IS NULL AND p.prokind = 'f'
   -- needs shared memory; in C, like the others
   AND p.proname !~ '^idem_(breaker_(allow|record|force|reset)|stats_reset)$';
ROLLBACK;
