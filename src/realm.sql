/* realm.c: the installation and its secret ------------------------------- */

CREATE TABLE @extschema@.idem_secret
(
	secret pg_catalog.uuid NOT NULL
) USING heap;

COMMENT ON TABLE @extschema@.idem_secret IS
'Seeds the hash by which keys appear in pg_locks; one row, drawn at CREATE EXTENSION, not dumped.';
COMMENT ON COLUMN @extschema@.idem_secret.secret IS
'122 random bits. Whoever can read them can test guesses of other roles'' keys against pg_locks.';

-- Readable by nobody but superusers and pg_read_all_data: see the comment on the
-- column.
REVOKE ALL ON TABLE @extschema@.idem_secret FROM PUBLIC;

INSERT INTO @extschema@.idem_secret VALUES (pg_catalog.gen_random_uuid());

