-- Bad input: a SQLSTATE, a message, a hint, and nothing half written.
CREATE EXTENSION idempotency;

-- What a command raises, whole.
CREATE FUNCTION raised(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ': ' || message,
		'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''));
END
$$;
\pset format unaligned
\pset tuples_only on

-- keys
SELECT raised($$SELECT * FROM idem_claim(NULL)$$);
SELECT raised($$SELECT * FROM idem_claim('')$$);
SELECT raised($$SELECT * FROM idem_claim(repeat('k', 513))$$);
SELECT raised($$SELECT * FROM idem_claim(repeat('€', 171))$$);
SELECT raised($$SELECT * FROM idem_claim(E'\xff')$$);
SELECT raised($$SELECT * FROM idem_claim('k', scope => NULL)$$);
SELECT raised($$SELECT * FROM idem_claim('k', scope => repeat('s', 129))$$);
SELECT raised($$SELECT idem_finish(NULL)$$);
SELECT raised($$SELECT idem_finish('')$$);
SELECT raised($$SELECT idem_finish('k', scope => NULL)$$);
SELECT raised($$SELECT idem_release(NULL)$$);
SELECT raised($$SELECT * FROM idem_lookup(NULL)$$);
SELECT raised($$SELECT * FROM idem_lookup('')$$);
SELECT raised($$SELECT idem_forget(NULL)$$);

-- ttl
SELECT raised($$SELECT * FROM idem_claim('k', ttl => '0')$$);
SELECT raised($$SELECT * FROM idem_claim('k', ttl => '999 microseconds')$$);
SELECT raised($$SELECT * FROM idem_claim('k', ttl => '-1 hour')$$);
SELECT raised($$SELECT * FROM idem_claim('k', ttl => '-1 month 20 days')$$);
SELECT raised($$SELECT * FROM idem_claim('k', ttl => '293000 years')$$);

-- wait
SELECT raised($$SELECT * FROM idem_claim('k', wait => '-1 microsecond')$$);
SELECT raised($$SELECT * FROM idem_claim('k', wait => '-1 month')$$);
SELECT raised($$SELECT * FROM idem_claim('k', wait => '293000 years')$$);

-- expire
SELECT raised($$SELECT idem_expire(NULL)$$);
SELECT raised($$SELECT idem_expire(0)$$);
SELECT raised($$SELECT idem_expire(-1)$$);

-- responses
BEGIN;
SET LOCAL idempotency.max_response_size = '1kB';
SELECT outcome FROM idem_claim('k');
SAVEPOINT s;
SELECT raised($$SELECT idem_finish('k', to_jsonb(repeat('r', 1024)))$$);
ROLLBACK TO s;
SELECT length(idem_finish('k', to_jsonb(repeat('r', 1000)))::text);
COMMIT;
SELECT length(response::text) FROM idem_claim('k');

-- settings (the server's own words, which differ between versions)
\set VERBOSITY sqlstate
SET idempotency.default_ttl = '0';
SET idempotency.default_ttl = '-1 h';
SET idempotency.max_response_size = '0';
SET idempotency.no_such_setting = 1;
\set VERBOSITY default

-- where one cannot claim
BEGIN READ ONLY;
SELECT raised($$SELECT * FROM idem_claim('k')$$);
ROLLBACK;
BEGIN READ ONLY;
SELECT raised($$SELECT outcome FROM idem_claim('k2')$$);
ROLLBACK;
BEGIN READ ONLY;
SELECT raised($$SELECT idem_expire()$$);
ROLLBACK;
BEGIN READ ONLY;
SELECT raised($$SELECT idem_forget('k')$$);
ROLLBACK;
BEGIN READ ONLY;
SELECT state FROM idem_lookup('k');
COMMIT;
BEGIN;
SELECT outcome FROM idem_claim('k2');
SET TRANSACTION READ ONLY;
SELECT raised($$SELECT idem_finish('k2')$$);
SELECT raised($$SELECT idem_release('k2')$$);
ROLLBACK;

-- limits that are just kept
BEGIN;
SELECT outcome FROM idem_claim(repeat('k', 512), scope => repeat('s', 128));
SELECT idem_finish(repeat('k', 512), '1', scope => repeat('s', 128));
SELECT outcome FROM idem_claim('minimal', ttl => '1 ms');
SELECT idem_release('minimal');
SELECT outcome FROM idem_claim('months', ttl => '1 month', wait => '1 month');
SELECT idem_finish('months');
SELECT outcome FROM idem_claim('default', ttl => NULL, wait => NULL, request => NULL);
SELECT idem_finish('default');
SET LOCAL idempotency.default_ttl = '2d';
SELECT outcome FROM idem_claim('setting');
SELECT idem_finish('setting');
SELECT outcome FROM idem_claim('long', ttl => '1000 years');
SELECT idem_finish('long');
COMMIT;
SELECT response FROM idem_claim(repeat('k', 512), scope => repeat('s', 128));
SELECT key, expires_at - finished_at AS kept FROM idem_key
WHERE key IN ('default', 'setting') ORDER BY key;
SELECT expires_at = finished_at + interval '1 month' AS calendar FROM idem_lookup('months');

-- a large response goes out of line and comes back
BEGIN;
SELECT outcome FROM idem_claim('large');
SELECT length(idem_finish('large', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 30000) AS i))::text);
COMMIT;
SELECT length(response::text), md5(response::text) = md5((SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 30000) AS i)::text) AS same
FROM idem_claim('large');
-- also one that is stored out of line already
CREATE TABLE stored (response jsonb);
INSERT INTO stored SELECT response FROM idem_lookup('large');
BEGIN;
SELECT outcome FROM idem_claim('copied');
SELECT length(idem_finish('copied', (SELECT response FROM stored))::text);
COMMIT;
DROP TABLE stored;
SELECT length(response::text) FROM idem_claim('copied');

DROP FUNCTION raised;
DROP EXTENSION idempotency;
