/* record.c: the managed table -------------------------------------------- */

/*
 * Fixed-width columns first: no padding, and they are read without walking
 * the row.  The state and what only leases and failures need come last; the
 * latter is NULL otherwise, which costs nothing.  Text is COLLATE "C", which record.c relies on.
 *
 * There is no index on expires_at: see record_expire().  Rows are written once,
 * so the heap is filled to the brim; each is deleted some day, so vacuum comes
 * when a twentieth is dead.  bench/NOTES.md has the figures behind all three.
 *
 * The primary key is an ID of 16 bytes that stands for key and scope, see
 * key_id(), with the owner: half the size of an index on the key itself, and half
 * the pages to write in full after a checkpoint.  A key that is its own ID is not
 * stored a second time.  The constraint is for those who write rows by hand: under
 * a wrong ID a key would not be found, and be done again.
 */
CREATE TABLE @extschema@.idem_key
(
	expires_at	pg_catalog.timestamptz NOT NULL,
	claimed_at	pg_catalog.timestamptz NOT NULL,
	finished_at	pg_catalog.timestamptz,
	id			pg_catalog.uuid NOT NULL,
	owner		pg_catalog.regrole NOT NULL,
	scope		pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	key			pg_catalog.text COLLATE pg_catalog."C",
	fingerprint	pg_catalog.bytea,
	response	pg_catalog.jsonb,
	state		pg_catalog."char" NOT NULL DEFAULT 'f',
	attempt		pg_catalog.int4,
	token		pg_catalog.int8,
	generation	pg_catalog.int8,
	lease_until	pg_catalog.timestamptz,
	retry_at	pg_catalog.timestamptz,
	ttl			pg_catalog.interval,
	takeover	pg_catalog."char",
	holder		pg_catalog.text COLLATE pg_catalog."C",
	PRIMARY KEY (id, owner),
	CHECK (id OPERATOR(pg_catalog.=) @extschema@.idem_key_id(COALESCE(key, id::pg_catalog.text), scope))
) USING heap
WITH (autovacuum_vacuum_scale_factor = 0.05,
	  toast.autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE @extschema@.idem_key IS
'Idempotency keys: finished, failed, or leased. Written by the idem_* functions only: triggers, defaults and row security are not honoured, nor are added constraints.';
COMMENT ON COLUMN @extschema@.idem_key.expires_at IS
'From this time on the key may be claimed anew, and the row may be removed; but not while a lease is live, nor as long as the key is held.';
COMMENT ON COLUMN @extschema@.idem_key.claimed_at IS
'When the latest claim was made, by the server''s clock.';
COMMENT ON COLUMN @extschema@.idem_key.finished_at IS
'When idem_finish or idem_fail was called, by the server''s clock; null while in progress.';
COMMENT ON COLUMN @extschema@.idem_key.id IS
'Stands for key and scope: idem_key_id(key, scope).';
COMMENT ON COLUMN @extschema@.idem_key.owner IS
'The role that claimed the key (current_user); keys of different owners never meet.';
COMMENT ON COLUMN @extschema@.idem_key.scope IS
'Namespace chosen by the caller; empty by default; at most 128 bytes.';
COMMENT ON COLUMN @extschema@.idem_key.key IS
'The client''s name for one logical operation; 1 to 512 bytes. Null if it is the id.';
COMMENT ON COLUMN @extschema@.idem_key.fingerprint IS
'SHA-256 of the canonical request; null if the claim gave no request.';
COMMENT ON COLUMN @extschema@.idem_key.response IS
'What idem_finish was given, for replay; the error of a failed key.';
COMMENT ON COLUMN @extschema@.idem_key.state IS
'p: in progress (leased; or, uncommitted, written ahead by a transaction that claims more keys than it may lock), f: finished, r: failed and to be retried, x: failed for good.';
COMMENT ON COLUMN @extschema@.idem_key.attempt IS
'Which claim of this life of the key the row stands for; null for the first.';
COMMENT ON COLUMN @extschema@.idem_key.token IS
'Fencing token of the latest lease.';
COMMENT ON COLUMN @extschema@.idem_key.generation IS
'Names this life of the key; steps belong to it. Null as long as there are none.';
COMMENT ON COLUMN @extschema@.idem_key.lease_until IS
'Until when the lease is valid; from then on the takeover policy rules.';
COMMENT ON COLUMN @extschema@.idem_key.retry_at IS
'From when on a failed key may be claimed again.';
COMMENT ON COLUMN @extschema@.idem_key.ttl IS
'The ttl that a leased claim asked for; null for the settings.';
COMMENT ON COLUMN @extschema@.idem_key.takeover IS
'What happens when the lease runs out: r: rerun, f: fail, h: hold.';
COMMENT ON COLUMN @extschema@.idem_key.holder IS
'Who asked for the lease, as the caller named it.';

-- The functions are the only way in: they know whose key is whose.
REVOKE ALL ON TABLE @extschema@.idem_key FROM PUBLIC;

-- What has been done stays done in a restored database; but a role that is gone
-- would be dumped as a number, which may be somebody else's over there.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_key',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) owner)');

