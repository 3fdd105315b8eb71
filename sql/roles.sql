-- Keys of different roles never meet.
CREATE EXTENSION idempotency;
CREATE ROLE regress_idem_alice;
CREATE ROLE regress_idem_bob;
CREATE ROLE regress_idem_monitor IN ROLE pg_monitor;
GRANT CREATE ON SCHEMA public TO regress_idem_alice;

SET ROLE regress_idem_alice;
BEGIN;
SELECT outcome FROM idem_claim('k', request => '{"a": 1}');
SELECT idem_finish('k', '"alice"');
COMMIT;
SET ROLE regress_idem_bob;
SELECT count(*) FROM idem_lookup('k');
SELECT idem_forget('k');
SELECT idem_finish('k');
BEGIN;
SELECT outcome FROM idem_claim('k', request => '{"b": 2}');
SELECT idem_finish('k', '"bob"');
COMMIT;
SELECT outcome, response FROM idem_claim('k');
SET ROLE regress_idem_alice;
SELECT outcome, response FROM idem_claim('k');
SELECT outcome, response FROM idem_claim('k', request => '{"b": 2}');

-- a claim is the role's that made it, even in one transaction
BEGIN;
SELECT outcome FROM idem_claim('k2');
SET LOCAL ROLE regress_idem_bob;
SELECT idem_finish('k2');
ROLLBACK;

-- nobody reaches the tables
SELECT * FROM idem_key;
SELECT * FROM idem_secret;
DELETE FROM idem_key;
INSERT INTO idem_key SELECT * FROM idem_key;

-- a view shows each role its own
BEGIN;
SELECT outcome FROM idem_claim('k3');
SELECT owner, state, key FROM idem_in_flight;
ROLLBACK;

-- sharing on purpose: whoever calls, the definer claims
CREATE FUNCTION shared_claim(key text) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$ SELECT outcome FROM idem_claim(key, scope => 'shared') $$;
CREATE FUNCTION shared_finish(key text, response jsonb) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$ SELECT idem_finish(key, response, scope => 'shared') $$;
SET ROLE regress_idem_bob;
BEGIN;
SELECT shared_claim('s');
SELECT shared_finish('s', '"by bob, for all"');
COMMIT;
-- the definer's keys are not shown to the caller
BEGIN;
SELECT shared_claim('s2');
SELECT count(*) FROM idem_in_flight;
SELECT count(*) FROM idem_own_claims();
SET LOCAL ROLE regress_idem_alice;
SELECT owner, key FROM idem_in_flight;
SET LOCAL ROLE regress_idem_monitor;
SELECT owner, key FROM idem_in_flight;
ROLLBACK;
SET ROLE regress_idem_monitor;
SELECT shared_claim('s');
SELECT outcome FROM idem_claim('s', scope => 'shared');
SET ROLE regress_idem_alice;
SELECT response FROM idem_claim('s', scope => 'shared');

RESET ROLE;
SELECT owner, scope, key, response FROM idem_key ORDER BY key, owner::text;
DROP FUNCTION shared_claim, shared_finish;
REVOKE CREATE ON SCHEMA public FROM regress_idem_alice;
DROP EXTENSION idempotency;
DROP ROLE regress_idem_alice, regress_idem_bob, regress_idem_monitor;
