-- What the clients of a torture run leave in the database besides the records of
-- the extension, always in the transaction that did what it says. A key is named
-- by its id, "owner/scope/key", a transaction by its op; see client.py.
--
-- "seen" is a snapshot taken after the claim. If it is "fresh" (READ COMMITTED)
-- it contains all that the claim could have known of: what was committed later
-- was committed under the eyes of a holder.

CREATE SCHEMA torture;
GRANT USAGE ON SCHEMA torture TO PUBLIC;
SET search_path = torture, public;

CREATE TABLE claimed (
	id text, op text, token bigint, attempt int,
	xid xid8 DEFAULT pg_current_xact_id(),
	seen pg_snapshot DEFAULT pg_current_snapshot(),
	fresh boolean DEFAULT current_setting('transaction_isolation') = 'read committed');

-- The work of a key, to be done once.
CREATE TABLE effect (
	id text, op text, token bigint, response jsonb,
	claimed_at timestamptz, kept_until timestamptz,
	xid xid8 DEFAULT pg_current_xact_id(),
	seen pg_snapshot DEFAULT pg_current_snapshot(),
	fresh boolean DEFAULT current_setting('transaction_isolation') = 'read committed');

CREATE TABLE step_effect (
	id text, step text, op text, token bigint, result jsonb,
	xid xid8 DEFAULT pg_current_xact_id());

CREATE TABLE guarded (
	id text, op text, token bigint, xid xid8 DEFAULT pg_current_xact_id());

-- A life of the key is over: forgotten or released.
CREATE TABLE ended (
	id text, op text, xid xid8 DEFAULT pg_current_xact_id());

GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA torture TO PUBLIC;

-- What the clients have seen, loaded when the round is over.
CREATE TABLE history (
	client int, request int, op text, event text, id text, sqlstate text,
	writes int, response jsonb, seconds float8, detail text,
	token bigint, attempt int);

-- The last look at every key.
CREATE TABLE last_look (id text, state text, response jsonb, outcome text);

-- Of the round. Where the clock was stepped, times say nothing.
CREATE TABLE round (clock_stepped boolean, longest_lease interval);
