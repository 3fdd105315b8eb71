/* record.c: the managed table -------------------------------------------- */

/*
 * Fixed-width columns first: no padding, and they are read without walking
 * the row.  Not more than eight columns, so that a row with a NULL fits its
 * header into 24 bytes.  Text is COLLATE "C", which record.c relies on.
 *
 * There is no index on expires_at: see record_expire().  Rows are written once,
 * so the heap is filled to the brim; each is deleted some day, so vacuum comes
 * when a twentieth is dead.  bench/NOTES.md has the figures behind all three.
 *
 * The primary key begins with the key because that column alone decides nearly
 * every comparison on the way down the index, and is all that its inner pages
 * have to keep.
 */
CREATE TABLE @extschema@.idem_key
(
	expires_at	pg_catalog.timestamptz NOT NULL,
	claimed_at	pg_catalog.timestamptz NOT NULL,
	finished_at	pg_catalog.timestamptz,
	owner		pg_catalog.regrole NOT NULL,
	scope		pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	key			pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	fingerprint	pg_catalog.bytea,
	response	pg_catalog.jsonb,
	PRIMARY KEY (key, scope, owner)
) USING heap
WITH (autovacuum_vacuum_scale_factor = 0.05,
	  toast.autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE @extschema@.idem_key IS
'Finished idempotency keys. Written by the idem_* functions only: triggers, defaults, CHECK constraints and row security are not honoured.';
COMMENT ON COLUMN @extschema@.idem_key.expires_at IS
'From this time on the key may be claimed anew, and the row may be removed.';
COMMENT ON COLUMN @extschema@.idem_key.claimed_at IS
'When the claim that finished was made, by the server''s clock.';
COMMENT ON COLUMN @extschema@.idem_key.finished_at IS
'When idem_finish was called, by the server''s clock. Null only in uncommitted rows: those of a transaction that claims more keys than it may hold locks.';
COMMENT ON COLUMN @extschema@.idem_key.owner IS
'The role that claimed the key (current_user); keys of different owners never meet.';
COMMENT ON COLUMN @extschema@.idem_key.scope IS
'Namespace chosen by the caller; empty by default; at most 128 bytes.';
COMMENT ON COLUMN @extschema@.idem_key.key IS
'The client''s name for one logical operation; 1 to 512 bytes.';
COMMENT ON COLUMN @extschema@.idem_key.fingerprint IS
'SHA-256 of the canonical request; null if the claim gave no request.';
COMMENT ON COLUMN @extschema@.idem_key.response IS
'What idem_finish was given, for replay.';

-- The functions are the only way in: they know whose key is whose.
REVOKE ALL ON TABLE @extschema@.idem_key FROM PUBLIC;

-- What has been done stays done in a restored database; but a role that is gone
-- would be dumped as a number, which may be somebody else's over there.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_key',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)');

