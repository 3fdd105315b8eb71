-- Objects of other people earlier in search_path, or in the schema that the
-- extension is created in, change no answer and are never called.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA evil;

SELECT plan(24);

-- Whatever is called raises, so that it shows.

CREATE FUNCTION evil.trap() RETURNS text LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'EVIL0'; END$$;
SELECT format('CREATE FUNCTION evil.trap(a %s, b %s) RETURNS %s LANGUAGE sql AS ''SELECT evil.trap()::pg_catalog.%3$s''',
	a, b, 'bool')
  FROM (SELECT unnest(ARRAY['text', 'oid', 'regrole', 'regclass', 'name', 'int4', 'int8', 'uuid',
			'jsonb', 'bytea', 'interval', 'timestamptz', 'bool', 'xid', '"char"'])) AS t(a),
	   LATERAL (SELECT a UNION SELECT 'int4' UNION SELECT 'oid') AS u(b)
\gexec
SELECT format('CREATE OPERATOR evil.%s (FUNCTION = evil.trap, LEFTARG = %s, RIGHTARG = %s)',
	o, a, b)
  FROM (SELECT unnest(ARRAY['text', 'oid', 'regrole', 'regclass', 'name', 'int4', 'int8', 'uuid',
			'jsonb', 'bytea', 'interval', 'timestamptz', 'bool', 'xid', '"char"'])) AS t(a),
	   LATERAL (SELECT a UNION SELECT 'int4' UNION SELECT 'oid') AS u(b),
	   unnest(ARRAY['=', '<>', '<', '>', '<=', '>=', '||', '+', '-']) AS o
\gexec
SELECT format('CREATE FUNCTION evil.%s RETURNS %s LANGUAGE sql AS ''SELECT evil.trap()::pg_catalog.%2$s''', f, r)
  FROM (VALUES
	('pg_backend_pid()', 'int4'), ('current_database()', 'name'),
	('pg_has_role(name, text)', 'bool'), ('gen_random_uuid()', 'uuid'),
	('format(text, regclass, text)', 'text'), ('format(text, text, text)', 'text'),
	('aclexplode(aclitem[])', 'bool'), ('clock_timestamp()', 'timestamptz'),
	('now()', 'timestamptz'),
	('timestamptz_pl_interval(timestamptz, interval)', 'timestamptz'),
	('texteq(text, text)', 'bool'), ('oideq(oid, oid)', 'bool'),
	('pg_extension_config_dump(regclass, text)', 'text'),
	('idem_helper(text)', 'text')) AS v(f, r)
\gexec
SELECT format('CREATE DOMAIN evil.%I AS int4', t)
  FROM unnest(ARRAY['jsonb', 'interval', 'uuid', 'regclass', 'regrole', 'bytea',
	'timestamptz', 'oid', 'bool', 'int8', 'int4', 'record', 'text']) AS t
\gexec
SELECT format('CREATE TABLE evil.%I ()', t)
  FROM unnest(ARRAY['pg_locks', 'pg_stat_activity', 'pg_prepared_xacts', 'pg_roles',
	'pg_database', 'pg_class', 'pg_extension']) AS t
\gexec
CREATE COLLATION evil."C" FROM pg_catalog."POSIX";

-- The SQLSTATE that a command ends with, run with the search_path of the time.

CREATE TEMPORARY TABLE answer (what text, got text);
CREATE FUNCTION public.sqlstate_of(command text) RETURNS text LANGUAGE plpgsql AS
$$
BEGIN
	EXECUTE command;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- Into a schema full of traps. ALTER DEFAULT PRIVILEGES makes the script do
-- all that it can do.

ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC, pg_monitor;
SAVEPOINT before_create;
SELECT is(public.sqlstate_of('CREATE EXTENSION idempotency SCHEMA evil'), '00000',
	'CREATE EXTENSION in a schema full of traps calls none of them');
SELECT is(public.sqlstate_of('SELECT * FROM evil.idem_in_flight'), '00000',
	'nor does the view there');
DROP EXTENSION IF EXISTS idempotency;

CREATE FUNCTION evil.idem_release(key text, scope text, token bigint) RETURNS void
	LANGUAGE sql AS 'SELECT 1';
SELECT throws_ok('CREATE EXTENSION idempotency SCHEMA evil', '42723', NULL,
	'a function that is there already is not taken over');
DROP FUNCTION evil.idem_release;
CREATE TABLE evil.idem_key ();
SELECT throws_ok('CREATE EXTENSION idempotency SCHEMA evil', '42P07', NULL,
	'nor is a table');
DROP TABLE evil.idem_key;

-- Into a schema of its own, but with the traps first in search_path.

CREATE SCHEMA idem;
CREATE TABLE evil.idem_key (key text);
CREATE TABLE evil.idem_secret (secret uuid);
SET LOCAL search_path = evil, pg_catalog, public;
CREATE EXTENSION idempotency SCHEMA idem;

INSERT INTO pg_temp.answer SELECT 'the trap snaps',
	public.sqlstate_of('SELECT ''a''::pg_catalog.text = ''b''::pg_catalog.text');
INSERT INTO pg_temp.answer SELECT 'the types are not those of PostgreSQL',
	public.sqlstate_of('SELECT ''a''::text');
INSERT INTO pg_temp.answer SELECT 'first claim', outcome
  FROM idem.idem_claim('k', '1 month 1 day', '{"a": 1}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'claim again', outcome
  FROM idem.idem_claim('k', '1 month 1 day', '{"a": 1}', 's', '1 day');
INSERT INTO pg_temp.answer SELECT 'in flight', f.key
  FROM idem.idem_in_flight AS f;
INSERT INTO pg_temp.answer SELECT 'lookup', state
  FROM idem.idem_lookup('k', 's');
INSERT INTO pg_temp.answer SELECT 'finish',
	pg_catalog.jsonb_out(idem.idem_finish('k', '{"b": 2.50}', 's'))::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'replay', pg_catalog.jsonb_out(response)::pg_catalog.text
  FROM idem.idem_claim('k', request => '{"a": 1}', scope => 's');
INSERT INTO pg_temp.answer SELECT 'mismatch', outcome
  FROM idem.idem_claim('k', request => '{"a": 2}', scope => 's');
INSERT INTO pg_temp.answer SELECT 'released',
	public.sqlstate_of('SELECT idem.idem_release(''l'') FROM idem.idem_claim(''l'')');
INSERT INTO pg_temp.answer SELECT 'claimed again after a release', outcome
  FROM idem.idem_claim('l');
INSERT INTO pg_temp.answer SELECT 'finish again',
	public.sqlstate_of('SELECT idem.idem_finish(''k'', NULL, ''s'')');
UPDATE idem.idem_key SET expires_at = 'epoch';
INSERT INTO pg_temp.answer SELECT 'expired', pg_catalog.int8out(idem.idem_expire())::pg_catalog.text;
INSERT INTO pg_temp.answer SELECT 'forgotten', pg_catalog.boolout(idem.idem_forget('k', 's'))::pg_catalog.text;

RESET search_path;
SELECT is(a.got, e.got, e.what)
  FROM (VALUES
	(1, 'the trap snaps', 'EVIL0'),
	(2, 'the types are not those of PostgreSQL', '22P02'),
	(3, 'first claim', 'claimed'),
	(4, 'claim again', 'in_progress'),
	(5, 'in flight', 'k'),
	(6, 'lookup', 'in_progress'),
	(7, 'finish', '{"b": 2.50}'),
	(8, 'replay', '{"b": 2.50}'),
	(9, 'mismatch', 'mismatch'),
	(10, 'released', '00000'),
	(11, 'claimed again after a release', 'claimed'),
	(12, 'finish again', 'ID002'),
	(13, 'expired', '1'),
	(14, 'forgotten', 'f')) AS e(n, what, got)
	   LEFT JOIN answer AS a USING (what)
 ORDER BY n;
SELECT is((SELECT count(*) FROM evil.idem_key), 0::bigint,
	'a table of the same name earlier in search_path is not met');
SELECT is_empty(
	$$SELECT attname FROM pg_attribute
	    JOIN pg_type AS t ON t.oid = atttypid
	   WHERE attrelid IN ('idem.idem_key'::regclass, 'idem.idem_secret'::regclass,
						  'idem.idem_in_flight'::regclass,
						  'idem.idem_claim_answer'::regclass)
	     AND t.typnamespace <> 'pg_catalog'::regnamespace$$,
	'columns have the types of PostgreSQL');
SELECT is_empty(
	$$SELECT proname FROM pg_proc AS p,
		LATERAL unnest(p.proargtypes::oid[] || p.prorettype) AS a(type)
	    JOIN pg_type AS t ON t.oid = a.type
	   WHERE pronamespace = 'idem'::regnamespace
	     AND t.typnamespace <> 'pg_catalog'::regnamespace
	     AND t.oid <> 'idem.idem_claim_answer'::regtype$$,
	'and so have arguments');

-- A temporary table of the same name, which is searched first of all.

CREATE TEMPORARY TABLE idem_key (LIKE idem.idem_key);
SET LOCAL search_path = pg_temp, idem, public;
SELECT is(idem_finish('temp', '1'), '1', 'a claim beside a temporary idem_key')
  FROM idem_claim('temp');
SELECT is((SELECT count(*) FROM pg_temp.idem_key), 0::bigint, 'which stays empty');
SELECT is((SELECT count(*) FROM idem.idem_key WHERE key = 'temp'), 1::bigint,
	'for the record is where it belongs');

SELECT * FROM finish();
ROLLBACK;
