-- Expiry: judged at the claim, removed at leisure.
CREATE EXTENSION idempotency;
CREATE ROLE regress_idem_user;

CREATE FUNCTION done(key text) RETURNS void LANGUAGE sql AS $$
	SELECT idem_claim(key);
	SELECT idem_finish(key, to_jsonb(key));
$$;
SELECT count(done('k' || i)) IS NOT NULL AS done FROM generate_series(1, 100) AS i;
SET ROLE regress_idem_user;
SELECT count(done('u' || i)) IS NOT NULL AS done FROM generate_series(1, 10) AS i;
RESET ROLE;

SELECT idem_expire();
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key <> 'k1' AND key <> 'u1';

-- expired: not there, though the row is
SELECT count(*) FROM idem_lookup('k2');
SELECT idem_forget('k3');
SELECT outcome, response FROM idem_claim('k1');
BEGIN;
SELECT outcome, response, attempt FROM idem_claim('k2', request => '"new"');
SELECT idem_finish('k2', '"second life"');
COMMIT;
SELECT outcome, response FROM idem_claim('k2');
SELECT count(*) FROM idem_key WHERE key = 'k2';
-- released over an expired row: the row is as it was
BEGIN;
SELECT outcome FROM idem_claim('k4');
SELECT idem_release('k4');
COMMIT;
SELECT count(*) FROM idem_lookup('k4');

-- a role removes its own rows only, the extension's owner all
SET ROLE regress_idem_user;
SELECT idem_expire(4);
SELECT idem_expire(4);
SELECT idem_expire(4);
RESET ROLE;
SELECT idem_expire(50);
SELECT idem_expire();
SELECT idem_expire();
SELECT key, response FROM idem_key ORDER BY key;

-- rows of a vanished role go, too
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 'u1';
DROP ROLE regress_idem_user;
SELECT idem_expire();

-- our own claim over an expired row pins it against our own idem_expire
UPDATE idem_key SET expires_at = '2000-01-01';
BEGIN;
SELECT outcome FROM idem_claim('k1');
SELECT idem_expire();
SELECT idem_finish('k1', '"kept"');
COMMIT;
SELECT response FROM idem_claim('k1');
-- an empty table is swept quickly
SELECT idem_forget('k1');
TRUNCATE idem_key;
SELECT idem_expire();

-- isolation levels that keep one snapshot expire all the same
SELECT done('s1'), done('s2');
UPDATE idem_key SET expires_at = '2000-01-01';
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM idem_key;
SELECT idem_expire(1);
SELECT idem_expire(1);
SELECT idem_expire(1);
COMMIT;

DROP FUNCTION done;
DROP EXTENSION idempotency;
