/* backoff.c: delays between attempts ------------------------------------- */

CREATE FUNCTION @extschema@.idem_backoff(
	attempt pg_catalog.int4,
	base pg_catalog.interval,
	cap pg_catalog.interval,
	jitter pg_catalog.text DEFAULT 'full')
RETURNS pg_catalog.interval
AS 'MODULE_PATHNAME', 'idem_backoff'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION @extschema@.idem_backoff(pg_catalog.int4, pg_catalog.interval, pg_catalog.interval, pg_catalog.text) IS
'How long to wait before the next attempt: min(cap, base * 2^(attempt - 1)), with jitter none, full, equal or decorrelated. Uses random(): repeatable after setseed().';

