-- Savepoints: the memory of a claim, its lock and its row go together.
CREATE EXTENSION idempotency;
CREATE VIEW claims AS SELECT key, state FROM idem_in_flight ORDER BY key;
CREATE VIEW locks AS
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- a claim in a savepoint that is rolled back never was
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_claim('k');
ROLLBACK TO a;
SELECT * FROM claims;
SELECT * FROM locks;
SELECT idem_finish('k');
ROLLBACK TO a;
SELECT outcome FROM idem_claim('k');
SELECT idem_finish('k', '1');
RELEASE a;
COMMIT;
SELECT response FROM idem_claim('k');

-- a finish that is rolled back leaves the claim pending
BEGIN;
SELECT outcome FROM idem_claim('k2');
SAVEPOINT a;
SELECT idem_finish('k2', '"first"');
SELECT * FROM claims;
ROLLBACK TO a;
SELECT * FROM claims;
SELECT outcome FROM idem_claim('k2');
SELECT idem_finish('k2', '"second"');
COMMIT;
SELECT response FROM idem_claim('k2');

-- so does a release
BEGIN;
SELECT outcome FROM idem_claim('k3');
SAVEPOINT a;
SELECT idem_release('k3');
SELECT * FROM claims;
SELECT * FROM locks;
SELECT outcome FROM idem_claim('k3');
SELECT idem_finish('k3', '"inner"');
ROLLBACK TO a;
SELECT * FROM claims;
SELECT * FROM locks;
SELECT idem_finish('k3', '"outer"');
COMMIT;
SELECT response FROM idem_claim('k3');

-- many levels: what sinks, replaces; what is taken off, uncovers
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SAVEPOINT c;
SELECT outcome FROM idem_claim('k4');
RELEASE c;
SELECT * FROM claims;
SAVEPOINT d;
SELECT idem_finish('k4', '4');
SAVEPOINT e;
SELECT idem_forget('k4');
SELECT outcome FROM idem_claim('k4');
SELECT * FROM claims;
RELEASE e;
SELECT * FROM claims;
ROLLBACK TO d;
SELECT * FROM claims;
SELECT idem_finish('k4', '"last"');
RELEASE d;
RELEASE b;
SELECT * FROM claims;
ROLLBACK TO a;
SELECT * FROM claims;
SELECT * FROM locks;
COMMIT;

-- a released savepoint hands its claim up; the outer one still rules
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_claim('k5');
SAVEPOINT b;
SELECT outcome FROM idem_claim('k6');
RELEASE b;
ROLLBACK TO a;
SELECT * FROM claims;
COMMIT;

-- PL/pgSQL exception blocks are savepoints
DO $$
BEGIN
	BEGIN
		PERFORM idem_claim('k7');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		RAISE NOTICE 'claims: %', (SELECT count(*) FROM claims);
	END;
	PERFORM idem_claim('k7');
	BEGIN
		PERFORM idem_finish('k7', '"lost"');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		RAISE NOTICE 'state: %', (SELECT state FROM claims);
	END;
	PERFORM idem_finish('k7', '"kept"');
END
$$;
SELECT response FROM idem_claim('k7');

-- an error in idem_finish itself: the claim is as before
BEGIN;
SELECT outcome FROM idem_claim('k8');
SAVEPOINT a;
SELECT idem_finish('k8', '1', scope => NULL);
ROLLBACK TO a;
SELECT idem_finish('k8', '8');
COMMIT;
SELECT response FROM idem_claim('k8');

-- a cursor opened before the savepoint and fetched in it
BEGIN;
DECLARE c CURSOR FOR SELECT outcome FROM idem_claim('k9');
SAVEPOINT a;
FETCH c;
SELECT * FROM locks;
ROLLBACK TO a;
SELECT * FROM claims;
SELECT * FROM locks;
FETCH c;
ROLLBACK;
-- and the other way round: the cursor is closed, the claim stays
BEGIN;
DECLARE c CURSOR FOR SELECT outcome FROM idem_claim('k9');
FETCH c;
CLOSE c;
SELECT * FROM claims;
SELECT * FROM locks;
SELECT idem_finish('k9', '9');
COMMIT;
SELECT response FROM idem_claim('k9');

-- over an expired record
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 'k9';
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_claim('k9');
SELECT idem_finish('k9', '"a"');
ROLLBACK TO a;
SELECT outcome FROM idem_claim('k9');
SAVEPOINT b;
SELECT idem_finish('k9', '"b"');
ROLLBACK TO b;
SELECT idem_expire();
SELECT idem_finish('k9', '"c"');
COMMIT;
SELECT response FROM idem_claim('k9');

DROP VIEW claims, locks;
DROP EXTENSION idempotency;
