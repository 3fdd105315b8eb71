-- What the statements of the fuzzer find in the database, and the server's settings.

\set ON_ERROR_STOP on
SET client_min_messages = warning;

-- The log shall tell SQLSTATEs, and no statement: what a client has sent is not
-- what the extension has let out. The rest is for deadlocks and deaths to come soon.
ALTER SYSTEM SET log_line_prefix = '%e [%p] ';
ALTER SYSTEM SET log_min_messages = 'warning';
ALTER SYSTEM SET log_min_error_statement = 'panic';
ALTER SYSTEM SET deadlock_timeout = '20ms';
ALTER SYSTEM SET max_locks_per_transaction = 16;
ALTER SYSTEM SET autovacuum_naptime = '1s';

CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE guest LOGIN;		-- may not even use the schema of the extension
CREATE ROLE watcher LOGIN;
GRANT pg_monitor TO watcher;
CREATE EXTENSION amcheck;

CREATE SCHEMA fuzz;
GRANT USAGE ON SCHEMA fuzz TO PUBLIC;

CREATE TABLE fuzz.sink (id serial, x text);
CREATE TABLE fuzz.wide AS SELECT g AS a, NULL::text AS b FROM generate_series(1, 30) AS g;
CREATE DOMAIN fuzz.small AS int CHECK (VALUE < 10);
CREATE TYPE fuzz.pair AS (a int, b text);
GRANT ALL ON fuzz.sink, fuzz.wide, fuzz.sink_id_seq TO PUBLIC;

CREATE FUNCTION fuzz.void() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION fuzz.record() RETURNS record LANGUAGE sql AS 'SELECT 1, NULL::text';
CREATE FUNCTION fuzz.same(x anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT x';
CREATE FUNCTION fuzz.fail(sqlstate text) RETURNS int LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'failed' USING ERRCODE = sqlstate; END$$;
CREATE PROCEDURE fuzz.commit() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE PROCEDURE fuzz.insert(x text) LANGUAGE sql AS 'INSERT INTO fuzz.sink (x) VALUES (x)';

-- Runs a statement as another role.
CREATE FUNCTION fuzz.definer(command text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
$$BEGIN EXECUTE command; END$$;
ALTER FUNCTION fuzz.definer(text) OWNER TO bob;

-- Runs a statement with less of the stack left.
CREATE FUNCTION fuzz.deep(depth int, command text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN
	IF depth > 0 THEN PERFORM fuzz.deep(depth - 1, command);
	ELSE EXECUTE command;
	END IF;
END$$;

-- Runs a statement in a subtransaction, and goes on whatever comes of it. The
-- notice is for the fuzzer, which judges the error all the same.
CREATE FUNCTION fuzz.caught(command text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN
	EXECUTE command;
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE 'caught % %', SQLSTATE, SQLERRM;
END$$;

-- Runs a statement in a subtransaction, and undoes it.
CREATE FUNCTION fuzz.undone(command text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN
	EXECUTE command;
	RAISE SQLSTATE 'UNDO0';
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	NULL;
END$$;

-- Runs a statement in so many subtransactions, and undoes all from one of them on.
CREATE FUNCTION fuzz.nested(depth int, undone int, command text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN
	IF depth > 0 THEN PERFORM fuzz.nested(depth - 1, undone, command);
	ELSE EXECUTE command;
	END IF;
	IF depth = undone THEN RAISE SQLSTATE 'UNDO0'; END IF;
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	NULL;
END$$;

-- For triggers: runs the statement that they are given.
CREATE FUNCTION fuzz.trigger() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN EXECUTE TG_ARGV[0]; RETURN NEW; END$$;

-- Comes first in the search_path of some: the extension shall find nothing here.
CREATE SCHEMA trap;
GRANT USAGE ON SCHEMA trap TO PUBLIC;
CREATE FUNCTION trap.snap() RETURNS text LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'TRAP0'; END$$;
SELECT format('CREATE FUNCTION trap.snap(a %s, b %1$s) RETURNS %s LANGUAGE sql AS ''SELECT trap.snap()::%2$s''', a, r)
  FROM (VALUES ('text', 'bool'), ('oid', 'bool'), ('name', 'bool'), ('int8', 'bool'), ('uuid', 'bool'),
			   ('timestamptz', 'bool'), ('regrole', 'bool'), ('jsonb', 'bool')) AS t(a, r)
\gexec
SELECT format('CREATE OPERATOR trap.%s (FUNCTION = trap.snap, LEFTARG = %s, RIGHTARG = %2$s)', o, a)
  FROM unnest(ARRAY['text', 'oid', 'name', 'int8', 'uuid', 'timestamptz', 'regrole', 'jsonb']) AS a,
	   unnest(ARRAY['=', '<>', '<', '>', '<=', '>=']) AS o
\gexec
SELECT format('CREATE FUNCTION trap.%s RETURNS %s LANGUAGE sql AS ''SELECT trap.snap()::%2$s''', f, r)
  FROM (VALUES ('clock_timestamp()', 'timestamptz'), ('now()', 'timestamptz'), ('random()', 'float8'),
			   ('pg_backend_pid()', 'int'), ('current_database()', 'name'), ('to_jsonb(anyelement)', 'jsonb'),
			   ('pg_has_role(name, text)', 'bool'), ('sha256(bytea)', 'bytea')) AS v(f, r)
\gexec
CREATE TABLE trap.idem_key ();
CREATE TABLE trap.idem_step ();
CREATE TABLE trap.idem_message ();
CREATE TABLE trap.idem_dead_letter ();
CREATE TABLE trap.idem_queue ();
CREATE TABLE trap.idem_secret ();
CREATE TABLE trap.pg_locks ();
CREATE TABLE trap.pg_extension ();

-- Breakers and counters live in shared memory; nothing else is to remove rows.
LOAD 'idempotency';
ALTER SYSTEM SET shared_preload_libraries = 'idempotency';
ALTER SYSTEM SET idempotency.janitor_interval = 0;
