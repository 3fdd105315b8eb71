/* breaker.c: circuit breakers ---------------------------------------------- */

CREATE TABLE @extschema@.idem_breaker
(
	name				pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	failure_rate		pg_catalog.float8 NOT NULL,
	minimum_calls		pg_catalog.int4 NOT NULL,
	window_length		pg_catalog.interval NOT NULL,
	open_for			pg_catalog.interval NOT NULL,
	half_open_probes	pg_catalog.int4 NOT NULL,
	slow_call			pg_catalog.interval,
	slow_rate			pg_catalog.float8 NOT NULL,
	quorum				pg_catalog.int4 NOT NULL,
	PRIMARY KEY (name)
) USING heap;

COMMENT ON TABLE @extschema@.idem_breaker IS
'Circuit breakers that were configured by idem_breaker_configure, which is the only way to write here. Their state is in shared memory.';
COMMENT ON COLUMN @extschema@.idem_breaker.name IS
'Name of the breaker; 1 to 63 bytes.';
COMMENT ON COLUMN @extschema@.idem_breaker.failure_rate IS
'It opens when so many percent of the calls in the window have failed.';
COMMENT ON COLUMN @extschema@.idem_breaker.minimum_calls IS
'But not before there were so many.';
COMMENT ON COLUMN @extschema@.idem_breaker.window_length IS
'Calls count for so long.';
COMMENT ON COLUMN @extschema@.idem_breaker.open_for IS
'So long it allows no calls, and then some to try.';
COMMENT ON COLUMN @extschema@.idem_breaker.half_open_probes IS
'So many are tried before it closes or opens again.';
COMMENT ON COLUMN @extschema@.idem_breaker.slow_call IS
'Calls that take longer are slow; null: none are.';
COMMENT ON COLUMN @extschema@.idem_breaker.slow_rate IS
'It opens when so many percent of the calls in the window were slow.';
COMMENT ON COLUMN @extschema@.idem_breaker.quorum IS
'It opens only if so many clients have seen failures or slow calls.';

REVOKE ALL ON TABLE @extschema@.idem_breaker FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_breaker', '');

CREATE FUNCTION @extschema@.idem_breaker_configure(
	name pg_catalog.text,
	failure_rate pg_catalog.float8 DEFAULT 50,
	minimum_calls pg_catalog.int4 DEFAULT 20,
	window_length pg_catalog.interval DEFAULT '1 minute',
	open_for pg_catalog.interval DEFAULT '30 seconds',
	half_open_probes pg_catalog.int4 DEFAULT 3,
	slow_call pg_catalog.interval DEFAULT NULL,
	slow_rate pg_catalog.float8 DEFAULT 100,
	quorum pg_catalog.int4 DEFAULT 1)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_breaker_configure'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_breaker_configure(pg_catalog.text, pg_catalog.float8, pg_catalog.int4, pg_catalog.interval, pg_catalog.interval, pg_catalog.int4, pg_catalog.interval, pg_catalog.float8, pg_catalog.int4) IS
'Configure a circuit breaker, as a whole: what is not given has its default. For whoever was granted EXECUTE.';

CREATE TYPE @extschema@.idem_breaker_answer AS
(
	allowed		pg_catalog.bool,
	state		pg_catalog.text,
	retry_after	pg_catalog.interval
);

COMMENT ON TYPE @extschema@.idem_breaker_answer IS
'What idem_breaker_allow answers.';
COMMENT ON COLUMN @extschema@.idem_breaker_answer.allowed IS
'Whether to make the call.';
COMMENT ON COLUMN @extschema@.idem_breaker_answer.state IS
'closed, open or half_open.';
COMMENT ON COLUMN @extschema@.idem_breaker_answer.retry_after IS
'When to ask again; null if allowed, if it was forced open, or if others are trying.';

CREATE FUNCTION @extschema@.idem_breaker_allow(name pg_catalog.text)
RETURNS @extschema@.idem_breaker_answer
AS 'MODULE_PATHNAME', 'idem_breaker_allow'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_breaker_allow(pg_catalog.text) IS
'May an outside system be called now? To be followed by idem_breaker_record if so. Shared by all connections of the database; a breaker need not be configured. To be called in FROM.';

CREATE FUNCTION @extschema@.idem_breaker_record(
	name pg_catalog.text,
	success pg_catalog.bool,
	duration pg_catalog.interval DEFAULT NULL)
RETURNS pg_catalog.text
AS 'MODULE_PATHNAME', 'idem_breaker_record'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_breaker_record(pg_catalog.text, pg_catalog.bool, pg_catalog.interval) IS
'Tell how a call went, and how long it took; returns the state of the breaker. Counts at once, whatever becomes of the transaction.';

CREATE FUNCTION @extschema@.idem_breaker_force(
	name pg_catalog.text,
	state pg_catalog.text)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_breaker_force'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_breaker_force(pg_catalog.text, pg_catalog.text) IS
'Force a circuit breaker open or closed until it is forced to auto, or the server is restarted. For whoever was granted EXECUTE.';

CREATE FUNCTION @extschema@.idem_breaker_reset(name pg_catalog.text)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_breaker_reset'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_breaker_reset(pg_catalog.text) IS
'Forget what a circuit breaker has counted, and close it. For whoever was granted EXECUTE.';

REVOKE EXECUTE ON FUNCTION @extschema@.idem_breaker_configure(pg_catalog.text, pg_catalog.float8, pg_catalog.int4, pg_catalog.interval, pg_catalog.interval, pg_catalog.int4, pg_catalog.interval, pg_catalog.float8, pg_catalog.int4) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION @extschema@.idem_breaker_force(pg_catalog.text, pg_catalog.text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION @extschema@.idem_breaker_reset(pg_catalog.text) FROM PUBLIC;

CREATE FUNCTION @extschema@.idem_breaker_states(
	OUT name pg_catalog.text,
	OUT state pg_catalog.text,
	OUT forced pg_catalog.bool,
	OUT calls pg_catalog.int8,
	OUT failures pg_catalog.int8,
	OUT slow pg_catalog.int8,
	OUT failing_clients pg_catalog.int4,
	OUT probes pg_catalog.int4,
	OUT retry_after pg_catalog.interval)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_breaker_states'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION @extschema@.idem_breaker_states() IS
'The circuit breakers of this database that were used since the server was started; better read through the view idem_breakers.';

CREATE VIEW @extschema@.idem_breakers WITH (security_barrier) AS
SELECT COALESCE(s.name, b.name) AS name,
	   COALESCE(s.state, 'closed') AS state,
	   COALESCE(s.forced, false) AS forced,
	   s.retry_after,
	   COALESCE(s.calls, 0) AS calls,
	   COALESCE(s.failures, 0) AS failures,
	   COALESCE(s.slow, 0) AS slow,
	   COALESCE(s.failing_clients, 0) AS failing_clients,
	   COALESCE(s.probes, 0) AS probes,
	   COALESCE(b.failure_rate, 50) AS failure_rate,
	   COALESCE(b.minimum_calls, 20) AS minimum_calls,
	   COALESCE(b.window_length, '1 minute') AS window_length,
	   COALESCE(b.open_for, '30 seconds') AS open_for,
	   COALESCE(b.half_open_probes, 3) AS half_open_probes,
	   b.slow_call,
	   COALESCE(b.slow_rate, 100) AS slow_rate,
	   COALESCE(b.quorum, 1) AS quorum
  FROM @extschema@.idem_breaker_states() AS s
	   FULL JOIN @extschema@.idem_breaker AS b
			  ON b.name OPERATOR(pg_catalog.=) s.name;

COMMENT ON VIEW @extschema@.idem_breakers IS
'The circuit breakers of this database: their state, what they have counted in their window, and how they are configured.';
COMMENT ON COLUMN @extschema@.idem_breakers.name IS
'Name of the breaker.';
COMMENT ON COLUMN @extschema@.idem_breakers.state IS
'closed, open or half_open.';
COMMENT ON COLUMN @extschema@.idem_breakers.forced IS
'Whether somebody has forced it to be so.';
COMMENT ON COLUMN @extschema@.idem_breakers.retry_after IS
'How long it stays open; null if it is not, or was forced.';
COMMENT ON COLUMN @extschema@.idem_breakers.calls IS
'Calls in the window.';
COMMENT ON COLUMN @extschema@.idem_breakers.failures IS
'Those that failed.';
COMMENT ON COLUMN @extschema@.idem_breakers.slow IS
'Those that were slow.';
COMMENT ON COLUMN @extschema@.idem_breakers.failing_clients IS
'Clients that have seen failures or slow calls in the window, up to 16.';
COMMENT ON COLUMN @extschema@.idem_breakers.probes IS
'Calls that are being tried while it is half open.';
COMMENT ON COLUMN @extschema@.idem_breakers.failure_rate IS
'It opens when so many percent of the calls in the window have failed.';
COMMENT ON COLUMN @extschema@.idem_breakers.minimum_calls IS
'But not before there were so many.';
COMMENT ON COLUMN @extschema@.idem_breakers.window_length IS
'Calls count for so long.';
COMMENT ON COLUMN @extschema@.idem_breakers.open_for IS
'So long it allows no calls, and then some to try.';
COMMENT ON COLUMN @extschema@.idem_breakers.half_open_probes IS
'So many are tried before it closes or opens again.';
COMMENT ON COLUMN @extschema@.idem_breakers.slow_call IS
'Calls that take longer are slow; null: none are.';
COMMENT ON COLUMN @extschema@.idem_breakers.slow_rate IS
'It opens when so many percent of the calls in the window were slow.';
COMMENT ON COLUMN @extschema@.idem_breakers.quorum IS
'It opens only if so many clients have seen failures or slow calls.';

GRANT SELECT ON @extschema@.idem_breakers TO PUBLIC;

