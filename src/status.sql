/* status: all of it on one screen ------------------------------------------ */

/*
 * Nothing here is news; it is there for whoever looks for the first time, or in a
 * hurry.  Counts are of what the caller may see.
 */
CREATE FUNCTION @extschema@.idem_status(
	OUT item pg_catalog.text,
	OUT value pg_catalog.text,
	OUT warning pg_catalog.text)
RETURNS SETOF pg_catalog.record
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 20
BEGIN ATOMIC
WITH library AS MATERIALIZED (
	SELECT * FROM @extschema@.idem_library()
), extension AS (
	SELECT e.extversion, e.extnamespace
	  FROM pg_catalog.pg_extension AS e
	 WHERE e.extname OPERATOR(pg_catalog.=) 'idempotency'
), flight AS MATERIALIZED (
	SELECT f.attempt IS NOT NULL AS leased, f.prepared, f.state, f.overdue,
		   pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) f.since) AS age
	  FROM @extschema@.idem_in_flight AS f
), at_work AS (
	SELECT pg_catalog.count(*) FILTER (WHERE NOT f.leased AND f.prepared IS NULL) AS claims,
		   pg_catalog.max(f.age) FILTER (WHERE NOT f.leased AND f.prepared IS NULL) AS oldest_claim,
		   pg_catalog.count(*) FILTER (WHERE f.prepared IS NOT NULL) AS prepared,
		   pg_catalog.max(f.age) FILTER (WHERE f.prepared IS NOT NULL) AS oldest_prepared,
		   pg_catalog.count(*) FILTER (WHERE f.leased AND NOT f.overdue) AS leases,
		   pg_catalog.max(f.age) FILTER (WHERE f.leased AND NOT f.overdue) AS oldest_lease,
		   pg_catalog.count(*) FILTER (WHERE f.overdue AND f.state OPERATOR(pg_catalog.=) 'in_progress') AS overdue,
		   pg_catalog.count(*) FILTER (WHERE f.state OPERATOR(pg_catalog.=) 'held') AS held
	  FROM flight AS f
), queue AS (
	SELECT pg_catalog.count(*) AS queues,
		   COALESCE(pg_catalog.sum(q.ready), 0) AS ready,
		   COALESCE(pg_catalog.sum(q.in_flight), 0) AS in_flight,
		   COALESCE(pg_catalog.sum(q.delayed OPERATOR(pg_catalog.+) q.retrying), 0) AS later,
		   COALESCE(pg_catalog.sum(q.dead), 0) AS dead,
		   pg_catalog.date_trunc('second', pg_catalog.max(q.oldest)) AS oldest,
		   pg_catalog.string_agg(q.queue, ', ' ORDER BY q.queue) FILTER (WHERE q.paused) AS paused
	  FROM @extschema@.idem_queues AS q
), breaker AS (
	SELECT pg_catalog.count(*) AS breakers,
		   pg_catalog.string_agg(b.name, ', ' ORDER BY b.name) FILTER
			   (WHERE b.state OPERATOR(pg_catalog.<>) 'closed' OR b.forced) AS not_closed
	  FROM @extschema@.idem_breakers AS b
), relation AS (
	SELECT n.i, c.relname, c.reltuples, c.oid,
		   (pg_catalog.current_setting('autovacuum') OPERATOR(pg_catalog.=) 'off'
			OR EXISTS (SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) AS o
						WHERE o.option_name OPERATOR(pg_catalog.=) 'autovacuum_enabled'
						  AND NOT o.option_value::pg_catalog.bool)) AS not_vacuumed,
		   pg_catalog.pg_stat_get_dead_tuples(c.oid) AS dead,
		   pg_catalog.pg_stat_get_live_tuples(c.oid) AS live
	  FROM extension AS e,
		   pg_catalog.unnest(ARRAY['idem_key', 'idem_step', 'idem_message', 'idem_dead_letter']::pg_catalog.name[])
		   WITH ORDINALITY AS n (name, i)
		   JOIN pg_catalog.pg_class AS c ON c.relname OPERATOR(pg_catalog.=) n.name
	 WHERE c.relnamespace OPERATOR(pg_catalog.=) e.extnamespace
), line AS (
	SELECT 1 AS part, 0 AS i, v.*
	  FROM library AS l, extension AS e, LATERAL (VALUES
		('extension', pg_catalog.format('%s in schema %s', e.extversion, e.extnamespace::pg_catalog.regnamespace),
		 CASE WHEN l.version OPERATOR(pg_catalog.<>) e.extversion
			  THEN pg_catalog.format('library is %s: restart, or update', l.version) END)) AS v (item, value, warning)
	UNION ALL
	SELECT 2, 0, 'server',
		   CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby: keys can be looked up only'
				ELSE 'primary' END, NULL
	UNION ALL
	SELECT 3, 0, 'shared memory', l.memory,
		   CASE WHEN l.memory OPERATOR(pg_catalog.=) 'none' THEN 'preload for breakers and statistics' END
	  FROM library AS l
	UNION ALL
	SELECT 4, 0, 'janitor',
		   CASE WHEN NOT l.preloaded THEN 'none'
				WHEN pg_catalog.current_setting('idempotency.janitor_interval') OPERATOR(pg_catalog.=) '0' THEN 'off'
				ELSE pg_catalog.format('every %s, %s rows at a time',
					pg_catalog.current_setting('idempotency.janitor_interval'),
					pg_catalog.current_setting('idempotency.janitor_batch')) END,
		   CASE WHEN NOT l.preloaded THEN 'preload, or call idem_expire'
				WHEN pg_catalog.current_setting('idempotency.janitor_interval') OPERATOR(pg_catalog.=) '0'
				THEN 'call idem_expire' END
	  FROM library AS l
	UNION ALL
	SELECT 5, 0, 'kept for', pg_catalog.format('finished %s, failed %s, lost %s, dead %s',
			   pg_catalog.current_setting('idempotency.default_ttl'), pg_catalog.current_setting('idempotency.failed_ttl'),
			   pg_catalog.current_setting('idempotency.abandoned_ttl'), pg_catalog.current_setting('idempotency.dead_letter_ttl')),
		   NULL
	UNION ALL
	SELECT 6, 0, 'retries', pg_catalog.format('%s attempts, %s to %s apart',
			   CASE WHEN pg_catalog.current_setting('idempotency.max_attempts') OPERATOR(pg_catalog.=) '0' THEN 'unlimited'
					ELSE pg_catalog.current_setting('idempotency.max_attempts') END,
			   pg_catalog.current_setting('idempotency.backoff_base'), pg_catalog.current_setting('idempotency.backoff_cap')),
		   NULL
	UNION ALL
	SELECT 7, 0, 'locks', pg_catalog.format('%s for each of %s transactions',
			   pg_catalog.current_setting('max_locks_per_transaction'),
			   pg_catalog.current_setting('max_connections')::pg_catalog.int4
			   OPERATOR(pg_catalog.+) pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4),
		   CASE WHEN pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int4 OPERATOR(pg_catalog.<) 64
				THEN 'few: large batches leave dead rows' END
	UNION ALL
	SELECT 8, r.i, r.relname,
		   pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(r.oid))
		   OPERATOR(pg_catalog.||) CASE WHEN r.reltuples OPERATOR(pg_catalog.>=) 0::pg_catalog.float4
					 THEN pg_catalog.format(', about %s rows', r.reltuples::pg_catalog.int8) ELSE ', never analyzed' END,
		   CASE WHEN r.not_vacuumed THEN 'autovacuum is off'
				WHEN r.dead OPERATOR(pg_catalog.>) 10000 AND r.dead OPERATOR(pg_catalog.>) r.live
				THEN pg_catalog.format('%s dead rows: what holds VACUUM back?', r.dead) END
	  FROM relation AS r
	UNION ALL
	SELECT 9, v.i, v.item, v.value, v.warning
	  FROM at_work AS w, LATERAL (VALUES
		(1, 'claims', w.claims::pg_catalog.text OPERATOR(pg_catalog.||) COALESCE(', oldest ' OPERATOR(pg_catalog.||) w.oldest_claim::pg_catalog.text, ''),
		 CASE WHEN w.oldest_claim OPERATOR(pg_catalog.>) '10 minutes'::pg_catalog.interval
			  THEN 'open for long: see idem_in_flight' END),
		(2, 'prepared', w.prepared::pg_catalog.text OPERATOR(pg_catalog.||) COALESCE(', oldest ' OPERATOR(pg_catalog.||) w.oldest_prepared::pg_catalog.text, ''),
		 CASE WHEN w.oldest_prepared OPERATOR(pg_catalog.>) '5 minutes'::pg_catalog.interval
			  THEN 'keys are held until COMMIT PREPARED' END),
		(3, 'leases', w.leases::pg_catalog.text OPERATOR(pg_catalog.||) COALESCE(', oldest ' OPERATOR(pg_catalog.||) w.oldest_lease::pg_catalog.text, ''), NULL),
		(4, 'overdue leases', w.overdue::pg_catalog.text,
		 CASE WHEN w.overdue OPERATOR(pg_catalog.>) 0 THEN 'whoever claims the key next takes over' END),
		(5, 'held keys', w.held::pg_catalog.text,
		 CASE WHEN w.held OPERATOR(pg_catalog.>) 0 THEN 'check the work, then idem_resolve' END)
	  ) AS v (i, item, value, warning)
	UNION ALL
	SELECT 10, v.i, v.item, v.value, v.warning
	  FROM queue AS q, LATERAL (VALUES
		(1, 'queues', pg_catalog.format('%s: %s ready, %s in flight, %s later', q.queues, q.ready, q.in_flight, q.later)
					  OPERATOR(pg_catalog.||) COALESCE(', oldest due ' OPERATOR(pg_catalog.||) q.oldest::pg_catalog.text, ''),
		 'paused: ' OPERATOR(pg_catalog.||) q.paused),
		(2, 'dead letters', q.dead::pg_catalog.text,
		 CASE WHEN q.dead OPERATOR(pg_catalog.>) 0::pg_catalog.numeric THEN 'see idem_dead_letters, idem_redrive' END)
	  ) AS v (i, item, value, warning)
	UNION ALL
	SELECT 11, 0, 'breakers', b.breakers::pg_catalog.text, 'open or forced: ' OPERATOR(pg_catalog.||) b.not_closed
	  FROM breaker AS b
	UNION ALL
	SELECT 12, 0, 'claims so far', pg_catalog.format('%s claimed, %s replayed, %s busy', s.claimed, s.replayed, s.in_progress),
		   CASE WHEN s.mismatch OPERATOR(pg_catalog.>) 0
				THEN pg_catalog.format('%s mismatches: keys used for two things', s.mismatch) END
	  FROM @extschema@.idem_stats AS s
)
SELECT n.item, n.value, n.warning
  FROM line AS n
 ORDER BY n.part, n.i;
END;

COMMENT ON FUNCTION @extschema@.idem_status() IS
'Settings, sizes, what is in flight, and what to worry about, on one screen. Each role sees its own, pg_monitor all. Reads all of idem_key, and all messages.';

