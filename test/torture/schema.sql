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

-- Messages are named by their numbers, queues by "owner/name", and "n" is the order
-- of what one transaction did. What an enqueue has answered: unless it says so, it
-- may be a message of before. The call was sent before "sent", and over by "at".
CREATE TABLE enqueued (
	message bigint, op text, queue text, key text, message_group text, max_attempts int,
	duplicate boolean, sent timestamptz, at timestamptz, ttl interval,
	xid xid8 DEFAULT pg_current_xact_id());

CREATE TABLE delivered (
	message bigint, op text, n int, token bigint, queue text, message_group text, place bigint,
	attempt int, at timestamptz, lease_until timestamptz, downstream_key uuid, enqueued_by text,
	xid xid8 DEFAULT pg_current_xact_id(),
	seen pg_snapshot DEFAULT pg_current_snapshot(),
	fresh boolean DEFAULT current_setting('transaction_isolation') = 'read committed');

-- What a message was for, to be done once: always together with its acknowledgement.
CREATE TABLE delivery_effect (
	message bigint, op text, n int, token bigint, queue text,
	xid xid8 DEFAULT pg_current_xact_id());

CREATE TABLE given_back (
	message bigint, op text, token bigint, final boolean,
	xid xid8 DEFAULT pg_current_xact_id());

CREATE TABLE extended (
	message bigint, op text, token bigint, lease_until timestamptz,
	xid xid8 DEFAULT pg_current_xact_id());

CREATE TABLE redriven (queue text, op text, messages bigint);

CREATE TABLE purged (queue text, op text, messages bigint);

CREATE TABLE configured (queue text, op text, max_attempts int);

-- Where a message stands in its group; the clients may not look.
CREATE FUNCTION place(message bigint) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = public
AS 'SELECT place FROM idem_message WHERE id = message';

GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA torture TO PUBLIC;

-- What the clients have seen, loaded when the round is over.
CREATE TABLE history (
	client int, request int, op text, event text, id text, sqlstate text,
	writes int, response jsonb, seconds float8, detail text,
	token bigint, attempt int);

-- What circuit breakers had counted at the end, and in which life of the memory.
CREATE TABLE breaker (life text, name text, calls int);

-- The last look at every key.
CREATE TABLE last_look (id text, state text, response jsonb, outcome text);

-- Of the round. Where the clock was stepped, times say nothing.
CREATE TABLE round (clock_stepped boolean, longest_lease interval);
