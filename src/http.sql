/* http.c: the Idempotency-Key header ------------------------------------- */

CREATE FUNCTION @extschema@.idem_http(
	command pg_catalog.text,
	params pg_catalog.text[] DEFAULT '{}',
	ttl pg_catalog.interval DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	scope pg_catalog.text DEFAULT NULL,
	wait pg_catalog.interval DEFAULT NULL)
RETURNS pg_catalog.jsonb
AS 'MODULE_PATHNAME', 'idem_http'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_http(pg_catalog.text, pg_catalog.text[], pg_catalog.interval, pg_catalog.jsonb, pg_catalog.text, pg_catalog.interval) IS
'For servers such as PostgREST: run one statement once under the key in the request''s Idempotency-Key header (setting request.headers), return the body, and set response.status and response.headers: 400 without a key, 409 busy, 422 key reused, 503 retry later, Idempotency-Replayed.';

