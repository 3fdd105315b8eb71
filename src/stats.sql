/* stats.c: sight --------------------------------------------------------- */

CREATE FUNCTION @extschema@.idem_own_claims(
	OUT owner pg_catalog.regrole,
	OUT scope pg_catalog.text,
	OUT key pg_catalog.text,
	OUT state pg_catalog.text,
	OUT since pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_own_claims'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 10;

COMMENT ON FUNCTION @extschema@.idem_own_claims() IS
'The claims of this transaction; better read through the view idem_in_flight.';

CREATE FUNCTION @extschema@.idem_leases(
	OUT owner pg_catalog.regrole,
	OUT scope pg_catalog.text,
	OUT key pg_catalog.text,
	OUT state pg_catalog.text,
	OUT since pg_catalog.timestamptz,
	OUT holder pg_catalog.text,
	OUT attempt pg_catalog.int4,
	OUT lease_until pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_leases'
LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 100;

COMMENT ON FUNCTION @extschema@.idem_leases() IS
'The leases that are not finished, failed or released; better read through the view idem_in_flight.';

/*
 * Another transaction's claim is nothing but a lock (18756 is class 0x4944, and
 * claims beyond max_locks_per_transaction, held by rows, do not show at all),
 * and the name of the key is hidden in its hash.  The lock of a prepared
 * transaction has no process, but is held under the same virtual transaction
 * as the lock on the transaction ID that pg_prepared_xacts names.
 */
CREATE VIEW @extschema@.idem_in_flight WITH (security_barrier) AS
WITH locks AS MATERIALIZED (
	SELECT * FROM pg_catalog.pg_locks AS l WHERE l.granted
)
SELECT pg_catalog.pg_backend_pid() AS pid,
	   NULL::pg_catalog.text AS prepared,
	   c.owner,
	   c.state,
	   c.since,
	   c.scope,
	   c.key,
	   NULL::pg_catalog.text AS holder,
	   NULL::pg_catalog.int4 AS attempt,
	   NULL::pg_catalog.interval AS remaining,
	   NULL::pg_catalog.bool AS overdue
  FROM @extschema@.idem_own_claims() AS c
UNION ALL
SELECT NULL, NULL, s.owner, s.state, s.since, s.scope, s.key, s.holder, s.attempt,
	   GREATEST(s.lease_until OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp(), '0'::pg_catalog.interval),
	   s.lease_until OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()
  FROM @extschema@.idem_leases() AS s
UNION ALL
SELECT l.pid,
	   p.gid,
	   r.oid::pg_catalog.regrole,
	   'in_progress',
	   COALESCE(p.prepared, a.xact_start),
	   NULL, NULL, NULL, NULL, NULL, NULL
  FROM locks AS l
	   LEFT JOIN pg_catalog.pg_stat_activity AS a
			  ON a.pid OPERATOR(pg_catalog.=) l.pid
	   LEFT JOIN locks AS x
			  ON l.pid IS NULL
			 AND x.pid IS NULL
			 AND x.locktype OPERATOR(pg_catalog.=) 'transactionid'
			 AND x.virtualtransaction OPERATOR(pg_catalog.=) l.virtualtransaction
	   LEFT JOIN pg_catalog.pg_prepared_xacts AS p
			  ON p.transaction OPERATOR(pg_catalog.=) x.transactionid
	   JOIN pg_catalog.pg_roles AS r
		 ON r.rolname OPERATOR(pg_catalog.=) COALESCE(p.owner, a.usename)
 WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'
   AND l.objsubid OPERATOR(pg_catalog.=) 18756
   AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database AS d
										   WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
   AND (r.rolname OPERATOR(pg_catalog.=) CURRENT_USER
		OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));

COMMENT ON VIEW @extschema@.idem_in_flight IS
'What is being worked on: this transaction''s claims by key, other transactions'' as locks, and leases. Each role sees its own, pg_monitor all. Reads the whole table for the leases.';
COMMENT ON COLUMN @extschema@.idem_in_flight.pid IS
'Process that holds the claim; null for a prepared transaction and for a lease.';
COMMENT ON COLUMN @extschema@.idem_in_flight.prepared IS
'Name of the prepared transaction that holds the claim; it holds the key until COMMIT PREPARED or ROLLBACK PREPARED.';
COMMENT ON COLUMN @extschema@.idem_in_flight.owner IS
'Role of the claim; for other transactions the role of the session.';
COMMENT ON COLUMN @extschema@.idem_in_flight.state IS
'in_progress, or finished but not committed; of other transactions only that they are at it. A lease that ran out may be held or failed.';
COMMENT ON COLUMN @extschema@.idem_in_flight.since IS
'When the claim was made; for other transactions when the transaction began or was prepared.';
COMMENT ON COLUMN @extschema@.idem_in_flight.scope IS
'Scope of the key; null for other transactions.';
COMMENT ON COLUMN @extschema@.idem_in_flight.key IS
'The key; null for other transactions.';

COMMENT ON COLUMN @extschema@.idem_in_flight.holder IS
'Who asked for the lease; null for transactional claims.';
COMMENT ON COLUMN @extschema@.idem_in_flight.attempt IS
'Attempt of the lease; null for transactional claims.';
COMMENT ON COLUMN @extschema@.idem_in_flight.remaining IS
'How long the lease is still valid; null for transactional claims.';
COMMENT ON COLUMN @extschema@.idem_in_flight.overdue IS
'Whether the lease has run out; null for transactional claims.';

GRANT SELECT ON @extschema@.idem_in_flight TO PUBLIC;

/*
 * Numbers only, which tell nobody's keys: everybody may see them.
 */
CREATE FUNCTION @extschema@.idem_counters(
	OUT claimed pg_catalog.int8,
	OUT replayed pg_catalog.int8,
	OUT in_progress pg_catalog.int8,
	OUT mismatch pg_catalog.int8,
	OUT retry_later pg_catalog.int8,
	OUT failed pg_catalog.int8,
	OUT held pg_catalog.int8,
	OUT waits pg_catalog.int8,
	OUT wait_time pg_catalog.interval,
	OUT taken_over pg_catalog.int8,
	OUT stale pg_catalog.int8,
	OUT finishes pg_catalog.int8,
	OUT failures pg_catalog.int8,
	OUT expired pg_catalog.int8,
	OUT enqueued pg_catalog.int8,
	OUT duplicates pg_catalog.int8,
	OUT dequeued pg_catalog.int8,
	OUT acked pg_catalog.int8,
	OUT nacked pg_catalog.int8,
	OUT dead pg_catalog.int8,
	OUT redriven pg_catalog.int8,
	OUT stats_reset pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_counters'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;

COMMENT ON FUNCTION @extschema@.idem_counters() IS
'What was counted in this database; better read through the view idem_stats.';

CREATE VIEW @extschema@.idem_stats WITH (security_barrier) AS
SELECT * FROM @extschema@.idem_counters();

COMMENT ON VIEW @extschema@.idem_stats IS
'What has happened in this database since the server was started or idem_stats_reset was called; no row if there is no shared memory to count in.';
COMMENT ON COLUMN @extschema@.idem_stats.claimed IS
'Claims that were answered claimed.';
COMMENT ON COLUMN @extschema@.idem_stats.replayed IS
'Claims that were answered replayed.';
COMMENT ON COLUMN @extschema@.idem_stats.in_progress IS
'Claims that were answered in_progress: busy.';
COMMENT ON COLUMN @extschema@.idem_stats.mismatch IS
'Claims that were answered mismatch: the key came with another request.';
COMMENT ON COLUMN @extschema@.idem_stats.retry_later IS
'Claims that were answered retry_later.';
COMMENT ON COLUMN @extschema@.idem_stats.failed IS
'Claims that were answered failed.';
COMMENT ON COLUMN @extschema@.idem_stats.held IS
'Claims that were answered held.';
COMMENT ON COLUMN @extschema@.idem_stats.waits IS
'How often a claim has waited for somebody else.';
COMMENT ON COLUMN @extschema@.idem_stats.wait_time IS
'For how long claims have waited, in all.';
COMMENT ON COLUMN @extschema@.idem_stats.taken_over IS
'Leases of keys that ran out and were claimed by somebody else.';
COMMENT ON COLUMN @extschema@.idem_stats.stale IS
'Calls that came with a token that was not valid any more: ID003.';
COMMENT ON COLUMN @extschema@.idem_stats.finishes IS
'Keys that were finished.';
COMMENT ON COLUMN @extschema@.idem_stats.failures IS
'Keys that idem_fail has recorded as failed.';
COMMENT ON COLUMN @extschema@.idem_stats.expired IS
'Records and dead letters that were removed after they had expired.';
COMMENT ON COLUMN @extschema@.idem_stats.enqueued IS
'Messages that were enqueued.';
COMMENT ON COLUMN @extschema@.idem_stats.duplicates IS
'Messages that were not, since their key had come before.';
COMMENT ON COLUMN @extschema@.idem_stats.dequeued IS
'Messages that were taken.';
COMMENT ON COLUMN @extschema@.idem_stats.acked IS
'Messages that were done.';
COMMENT ON COLUMN @extschema@.idem_stats.nacked IS
'Messages that were given back.';
COMMENT ON COLUMN @extschema@.idem_stats.dead IS
'Messages that became dead letters.';
COMMENT ON COLUMN @extschema@.idem_stats.redriven IS
'Dead letters that were put back.';
COMMENT ON COLUMN @extschema@.idem_stats.stats_reset IS
'Since when it is counted.';

GRANT SELECT ON @extschema@.idem_stats TO PUBLIC;

CREATE FUNCTION @extschema@.idem_stats_reset()
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'idem_stats_reset'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.idem_stats_reset() IS
'Begin to count anew in this database. For whoever was granted EXECUTE.';

REVOKE EXECUTE ON FUNCTION @extschema@.idem_stats_reset() FROM PUBLIC;

CREATE FUNCTION @extschema@.idem_library(
	OUT version pg_catalog.text,
	OUT memory pg_catalog.text,
	OUT preloaded pg_catalog.bool)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idem_library'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;

COMMENT ON FUNCTION @extschema@.idem_library() IS
'Version of the library, and which shared memory it has: static, dynamic or none; better read through idem_status.';

