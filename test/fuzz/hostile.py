"""What statements and settings the extension may meet; see plan.py for how."""

import re

from values import BIRD

# Of sessions and transactions.
SETTINGS = (
    'search_path = trap, pg_catalog', 'search_path = trap, pg_catalog', "search_path = ''",
    'search_path = pg_temp, trap, pg_catalog', 'search_path = pg_catalog, pg_temp',
    "DateStyle = 'SQL, DMY'", "DateStyle = 'German'", 'IntervalStyle = sql_standard',
    'IntervalStyle = iso_8601', "TimeZone = 'Pacific/Apia'", "TimeZone = '<x>-167:59:59'",
    'client_encoding = LATIN1', 'client_encoding = EUC_JP', 'client_encoding = SQL_ASCII',
    'client_encoding = WIN1252', 'standard_conforming_strings = off', "work_mem = '64kB'",
    'temp_file_limit = 100', 'jit = on', 'jit_above_cost = 0', 'extra_float_digits = -15',
    'bytea_output = escape', 'plan_cache_mode = force_generic_plan', 'row_security = off',
    'session_replication_role = replica', 'parallel_setup_cost = 0', 'parallel_tuple_cost = 0',
    'min_parallel_table_scan_size = 0', 'enable_material = off', "max_stack_depth = '150kB'",
    'default_transaction_isolation = serializable', 'default_transaction_read_only = on',
    'idle_in_transaction_session_timeout = 5', 'exit_on_error = off', 'check_function_bodies = off',
    'enable_indexscan = off', 'quote_all_identifiers = on', 'synchronous_commit = off',
    "xmloption = document", "lc_time = 'C'", 'array_nulls = off', 'transform_null_equals = on',
    'debug_parallel_query = on', 'force_parallel_mode = on', 'force_parallel_mode = regress',
)

# What a web server tells of a request. KEY stands for one.
REQUEST = {
    'request.headers': (
        '{"Idempotency-Key": "KEY"}', '{"idempotency-key": "\\"KEY\\";a=b"}', '{"IDEMPOTENCY-KEY": ""}',
        '{"Idempotency-Key": "%s"}' % ('x' * 513), '{"Idempotency-Key": 1}', '[]', '{', '"Idempotency-Key"',
        '{"Idempotency-Key": "\\"\\\\"}', '{"a": {"Idempotency-Key": "x"}}'),
    'request.method': ('POST', '', '\u00e9'),
    'request.path': ('/rpc/pay', '/rpc/pay', '/' + 'x' * 200, '/ \u00e9'),
    'request.jwt.claims': ('{"sub": "ann"}', '{"sub": 42}', '{"sub": {"a": [1]}}', '[]', '5', '{'),
    'response.status': ('201', '', 'x', '-1'),
    'response.headers': ('', '[]', '[{"a": "b"}]', '{}', '5', '['),
}

# To be run under a key.
COMMANDS = (
    '', ' ', ';', '--', '/*', 'SELEC', 'SELECT 1;', 'SELECT 1; SELECT 2', "SELECT '", 'SELECT $$', '$1',
    'COMMIT', 'ROLLBACK', 'BEGIN', 'SAVEPOINT s1', 'ROLLBACK TO s1', 'RELEASE s1', "PREPARE TRANSACTION 'x'",
    'CALL fuzz.commit()', 'DO $x$BEGIN COMMIT; END$x$', 'DO $x$BEGIN NULL; END$x$', "CALL fuzz.insert('a')",
    'SET search_path = trap', 'SET ROLE bob', 'SET LOCAL work_mem = 64', 'RESET ALL', 'DISCARD ALL',
    'DISCARD PLANS', 'SET TRANSACTION READ ONLY', 'SET CONSTRAINTS ALL IMMEDIATE', 'LISTEN x', 'NOTIFY x',
    'PREPARE once AS SELECT 1', 'EXECUTE once', 'DEALLOCATE ALL', 'DECLARE once CURSOR FOR SELECT 1',
    'DECLARE once CURSOR WITH HOLD FOR SELECT 1', 'FETCH once', 'CLOSE ALL', 'SHOW ALL', 'EXPLAIN SELECT 1',
    'COPY fuzz.sink TO STDOUT', 'COPY fuzz.sink FROM STDIN', "COPY fuzz.sink TO '/dev/null'",
    'CREATE TEMP TABLE once (a int)', 'CREATE TEMP TABLE once AS SELECT 1 AS a', 'DROP TABLE IF EXISTS once',
    'TABLE once', 'VACUUM', 'ANALYZE fuzz.sink', 'REINDEX TABLE fuzz.wide', 'CREATE DATABASE x',
    'LOCK TABLE fuzz.wide', 'TRUNCATE fuzz.sink', 'CREATE INDEX ON fuzz.sink (x)', 'CHECKPOINT',
    'SELECT', 'SELECT FROM pg_catalog.generate_series(1, 3)', 'SELECT NULL', 'SELECT NULL::text, 1',
    'SELECT 1 AS a, 2 AS a', 'SELECT $1', 'SELECT $2::int', 'SELECT $1::int / 0', 'SELECT $1 IS NULL',
    'SELECT $1::fuzz.small', 'SELECT $1::fuzz.pair', 'SELECT $1::anyelement', 'SELECT $1::record',
    'SELECT fuzz.same($1)', 'SELECT fuzz.same($1::text)', 'SELECT ($1::int[])[1]', 'SELECT $65536::int',
    'SELECT fuzz.void()', 'SELECT fuzz.record()', 'SELECT * FROM fuzz.record() AS r(a int, b text)',
    'SELECT ROW(1, 2)', 'SELECT s FROM fuzz.sink AS s LIMIT 2', 'SELECT ROW()', 'SELECT ARRAY[[1, 2], [3, 4]]',
    "SELECT fuzz.fail('22012')", "SELECT fuzz.fail('40001')", "SELECT fuzz.fail('ID001')",
    'SELECT pg_catalog.pg_cancel_backend(pg_catalog.pg_backend_pid())', 'SELECT pg_catalog.pg_sleep(0.001)',
    "SELECT 'NaN'::numeric, 'infinity'::timestamptz, '-0'::float8", "SELECT '1e1000'::numeric",
    "SELECT E'\\\\001'::bytea, '[1,5)'::int4range", "SELECT '{\"a\": \"\\u0000\"}'::json", "SELECT '<a/>'::xml",
    f"SELECT g, pg_catalog.repeat({BIRD}, 10) FROM pg_catalog.generate_series(1, 20000) AS g",
    f"SELECT pg_catalog.repeat({BIRD}, 2000000)", "SELECT pg_catalog.repeat('[', 20000)::json",
    "DELETE FROM fuzz.sink WHERE id < 1000 RETURNING id", "UPDATE fuzz.wide SET b = $1 WHERE a = 1",
    "MERGE INTO fuzz.wide AS w USING (VALUES (1)) AS v(a) ON w.a = v.a WHEN MATCHED THEN UPDATE SET b = $1",
    "SELECT pg_catalog.count(*) FROM fuzz.wide", "SELECT a FROM fuzz.wide WHERE a = $1 FOR UPDATE",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 100) SELECT n FROM r",
    "SELECT pg_catalog.set_config('response.status', '418', true)",
    "SELECT pg_catalog.set_config('response.headers', '[', true)",
    "SELECT pg_catalog.set_config('search_path', 'trap, pg_catalog', false)",
)

# Of one call: how often, the statement, and what else it may raise: set-returning
# functions, and those that return void, may not stand everywhere.
STATEMENTS = (
    (20, 'SELECT * FROM {call} AS x', ''),
    (5, 'SELECT {call} AS x', ''),
    (1, 'SELECT ({call}).*', '42809'),
    (1, 'SELECT g, x FROM pg_catalog.generate_series(1, 3) AS g, LATERAL {call} AS x', ''),
    (1, 'SELECT * FROM {call} AS x WHERE false', ''),
    (1, 'SELECT * FROM {call} AS x LIMIT 0', ''),
    (1, 'SELECT * FROM {call} AS x(a int, b text)', '42601 42703 42804 42P10 42P16'),
    (1, 'SELECT * FROM ROWS FROM ({call}, pg_catalog.generate_series(1, 3)) WITH ORDINALITY AS x', '42P16'),
    (1, 'WITH x AS MATERIALIZED (SELECT * FROM {call} AS x) TABLE x UNION ALL TABLE x', '42804 42P16'),
    (1, 'SELECT (SELECT pg_catalog.count(*) FROM {call} AS x), ARRAY(SELECT 1 FROM {call} AS x)', ''),
    (1, 'SELECT 1 WHERE {call} IS NOT NULL', '0A000'),
    (1, 'SELECT pg_catalog.count(*) FROM fuzz.wide WHERE {call} IS NOT NULL', '0A000'),
    (1, 'SELECT pg_catalog.count(*) FROM fuzz.wide ORDER BY ({call}) IS NULL', '0A000'),
    (1, 'SELECT CASE WHEN a < 3 THEN {call} END FROM fuzz.wide LIMIT 4', '0A000'),
    (1, 'SELECT DISTINCT ({call})::text AS x', '0A000 42846'),
    (1, 'SELECT pg_catalog.pg_typeof(x), pg_catalog.row_to_json(x) FROM {call} AS x', '42725 42883'),
    (1, 'VALUES ({call}), ({call})', '0A000'),
    (1, 'EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM {call} AS x', ''),
    (1, 'CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT * FROM {call} AS x', '25006 42P07 42P16'),
    (1, 'COPY (SELECT * FROM {call} AS x) TO STDOUT', ''),
    (1, 'COPY (SELECT * FROM {call} AS x) TO STDOUT (FORMAT binary)', '42883'),
    (1, 'UPDATE fuzz.wide SET b = ({call})::text WHERE a = 1{some}', '0A000 25006 40001 42846'),
    (1, 'MERGE INTO fuzz.wide AS w USING (VALUES (10)) AS v(a) ON w.a = v.a'
        ' WHEN MATCHED THEN UPDATE SET b = ({call})::text', '0A000 25006 40001 42846'),
    (1, 'INSERT INTO fuzz.sink (x) SELECT * FROM {call} AS x RETURNING *', '25006 42601 42804'),
    (1, 'SELECT fuzz.caught({query})', ''),
    (1, 'SELECT fuzz.undone({query})', ''),
    (1, 'SELECT fuzz.definer({query})', ''),
    (1, 'SELECT fuzz.deep({depth}, {query})', ''),
    (1, 'SELECT fuzz.nested({depth}, {some}, {query})', ''),
    (1, 'DO $do$BEGIN PERFORM * FROM {call} AS x; END$do$', ''),
    (1, 'DO $do$BEGIN PERFORM * FROM {call} AS x; COMMIT; PERFORM * FROM {call} AS x; END$do$', '2D000 ID005 40001'),
    (1, 'DO $do$BEGIN PERFORM * FROM {call} AS x; ROLLBACK; PERFORM * FROM {call} AS x; END$do$', '2D000'),
    (1, 'DO $do$DECLARE r record; BEGIN FOR r IN SELECT * FROM {call} AS x LOOP'
        ' PERFORM * FROM {call} AS x; COMMIT; END LOOP; END$do$', '2D000 40001 ID005'),
)

# Of these: may succeed though the call was not made, or has failed.
UNSURE = re.compile(r'WHERE|LIMIT|ORDER BY|CASE|MERGE|caught')
