-- The extension lives in any schema and trusts nobody's search_path.
CREATE SCHEMA "My ""Ext""";
CREATE SCHEMA "My Ext";
CREATE EXTENSION idempotency SCHEMA "My Ext";
SHOW search_path;
SELECT outcome FROM idem_claim('k');
BEGIN;
SELECT outcome FROM "My Ext".idem_claim('k');
SELECT "My Ext".idem_finish('k', '1');
COMMIT;
SELECT outcome, response FROM "My Ext".idem_claim('k');
SELECT count(*) FROM "My Ext".idem_in_flight;

-- hostile objects in front of everything
CREATE SCHEMA hostile;
CREATE TABLE hostile.idem_key (LIKE "My Ext".idem_key);
CREATE TABLE hostile.idem_secret (secret uuid);
CREATE FUNCTION hostile.no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION hostile.no(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION hostile.no(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.no);
CREATE OPERATOR hostile.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = hostile.no);
CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = name, FUNCTION = hostile.no);
CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''infinity''::timestamptz';
CREATE DOMAIN hostile.text AS int;
SET search_path = hostile, pg_catalog, "My Ext";
SELECT outcome, response FROM idem_claim('k');
BEGIN;
SELECT outcome FROM idem_claim('k2');
SELECT state, key FROM idem_in_flight;
SELECT idem_finish('k2', '2');
COMMIT;
SELECT outcome, response FROM idem_claim('k2');
SELECT state, response FROM idem_lookup('k2');
SELECT idem_forget('k2'), idem_expire();
SELECT count(*) FROM hostile.idem_key;
RESET search_path;
DROP SCHEMA hostile CASCADE;

-- privileges: the functions are the only way in, whatever the defaults were
DROP EXTENSION idempotency;
CREATE ROLE regress_idem_default;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, regress_idem_default;
CREATE EXTENSION idempotency SCHEMA "My Ext";
SELECT relname, relacl::text ~ 'regress_idem_default|[{,]=' AS others
FROM pg_class WHERE relnamespace = '"My Ext"'::regnamespace AND relkind = 'r' ORDER BY 1;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC, regress_idem_default;

-- every object is documented
SELECT pg_describe_object(classid, objid, 0) AS undocumented
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
	AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
	AND obj_description(objid, classid::regclass::name) IS NULL;
SELECT attrelid::regclass, attname AS undocumented
FROM pg_attribute
WHERE attrelid IN (SELECT objid FROM pg_depend
		WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid = 'pg_class'::regclass
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency'))
	AND attnum > 0 AND col_description(attrelid, attnum) IS NULL
	AND attrelid <> '"My Ext".idem_message_id'::regclass;

-- not installed here
SET search_path = "My Ext";
PREPARE claim AS SELECT outcome FROM idem_claim('k');
EXECUTE claim;
DROP EXTENSION idempotency;
EXECUTE claim;
CREATE EXTENSION idempotency;
BEGIN;
SELECT outcome FROM idem_claim('k');
SELECT idem_finish('k');
COMMIT;
RESET search_path;

-- a table that is not as we made it
SET search_path = "My Ext", public;
ALTER TABLE idem_key ADD COLUMN extra int;
SELECT outcome FROM idem_claim('k');
ALTER TABLE idem_key DROP COLUMN extra;
SELECT outcome FROM idem_claim('k');
ALTER TABLE idem_key DROP COLUMN response;
SELECT outcome FROM idem_claim('k');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency;
ALTER TABLE idem_key ADD COLUMN extra int;
ALTER TABLE idem_key DROP COLUMN extra;
BEGIN;
SELECT outcome FROM idem_claim('k');
SELECT idem_finish('k', '"kept"');
COMMIT;
SELECT response FROM idem_claim('k');
SELECT idem_forget('k');
CREATE INDEX partial ON idem_key (expires_at) WHERE response IS NULL;
SELECT outcome FROM idem_claim('k');
DROP INDEX partial;
CREATE INDEX expression ON idem_key ((length(key)));
SELECT outcome FROM idem_claim('k');
DROP INDEX expression;
CREATE INDEX plain ON idem_key (expires_at);
BEGIN;
SELECT outcome FROM idem_claim('k');
SELECT idem_finish('k');
COMMIT;
SELECT count(*) FROM idem_key;
DROP INDEX plain;
ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey;
SELECT outcome FROM idem_claim('k');
ALTER TABLE idem_key ADD PRIMARY KEY (owner, id);
SELECT outcome FROM idem_claim('k');
ALTER TABLE idem_key DROP CONSTRAINT idem_key_pkey;
ALTER TABLE idem_key ADD PRIMARY KEY (id, owner);
SELECT outcome FROM idem_claim('k');
ALTER TABLE idem_key RENAME TO elsewhere;
SELECT outcome FROM idem_claim('k');
ALTER TABLE elsewhere RENAME TO idem_key;
UPDATE idem_key SET fingerprint = 'short';
SELECT outcome FROM idem_claim('k');
UPDATE idem_key SET fingerprint = NULL;
DELETE FROM idem_secret;
\c
SET search_path = "My Ext";
SELECT outcome FROM idem_claim('k');
INSERT INTO idem_secret VALUES (gen_random_uuid());
SELECT outcome FROM idem_claim('k');
RESET search_path;

-- A value from before the library was loaded is refused, and the client cannot
-- be told in its encoding. The session goes on nevertheless.
\c
SET idempotency.default_ttl = U&'\3042';
SET client_encoding = 'LATIN1';
SELECT "My Ext".idem_backoff(1, '1 s', '1 s', 'none');
SELECT "My Ext".idem_backoff(1, '1 s', '1 s', 'none');
RESET client_encoding;
SHOW idempotency.default_ttl;

DROP EXTENSION idempotency;
DROP SCHEMA "My Ext", "My ""Ext""";
DROP ROLE regress_idem_default;
