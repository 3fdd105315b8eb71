-- The verdict: one view for each thing that must not be, with the rows that
-- show it. No view may have a row. Its comment is what is promised.

SET search_path = torture, public;

CREATE INDEX ON effect (id);
CREATE INDEX ON effect (op);
CREATE INDEX ON ended (id);
CREATE INDEX ON claimed (id);
CREATE INDEX ON history (event);
ANALYZE;

-- All writes of a transaction.
CREATE VIEW written AS
	SELECT op, count(*) AS writes
	  FROM (SELECT op FROM claimed UNION ALL SELECT op FROM effect
			UNION ALL SELECT op FROM step_effect UNION ALL SELECT op FROM guarded
			UNION ALL SELECT op FROM ended) AS t
	 GROUP BY op;

-- What only the holder of a lease may commit.
CREATE VIEW held AS
	SELECT id, op, token, xid, 'effect' AS what FROM effect WHERE token IS NOT NULL
	UNION ALL SELECT id, op, token, xid, 'step' FROM step_effect WHERE token IS NOT NULL
	UNION ALL SELECT id, op, token, xid, 'guard' FROM guarded;

-- A short-lived key may be claimed again after its time, a key that has been
-- forgotten or released as often as that was done.
CREATE VIEW violation_twice AS
	SELECT id, count(*) AS effects, array_agg(op) AS ops
	  FROM effect AS e
	 WHERE id NOT LIKE '%/short-%'
	 GROUP BY id
	HAVING count(*) > 1 + (SELECT count(*) FROM ended AS d WHERE d.id = e.id);
COMMENT ON VIEW violation_twice IS 'the work of a key is done once';

CREATE VIEW violation_early AS
	SELECT a.id, a.op, b.op AS other, a.claimed_at, a.kept_until, b.claimed_at AS other_claimed_at
	  FROM effect AS a JOIN effect AS b ON a.id = b.id AND a.op <> b.op
	   AND a.claimed_at <= b.claimed_at AND b.claimed_at < a.kept_until
	 WHERE a.id LIKE '%/short-%' AND NOT (SELECT clock_stepped FROM round);
COMMENT ON VIEW violation_early IS 'a key is not claimed anew before its record expires';

CREATE VIEW violation_overlap AS
	SELECT a.id, a.op, b.op AS other
	  FROM effect AS a JOIN effect AS b ON a.id = b.id AND a.op < b.op
	 WHERE a.fresh AND b.fresh
	   AND NOT pg_visible_in_snapshot(a.xid, b.seen)
	   AND NOT pg_visible_in_snapshot(b.xid, a.seen);
COMMENT ON VIEW violation_overlap IS 'a key has one holder at a time';

CREATE VIEW violation_lost AS
	SELECT h.op, h.writes, coalesce(w.writes, 0) AS found
	  FROM history AS h LEFT JOIN written AS w USING (op)
	 WHERE h.event = 'committed' AND h.writes <> coalesce(w.writes, 0);
COMMENT ON VIEW violation_lost IS 'what was acknowledged is there';

CREATE VIEW violation_undead AS
	SELECT h.op, w.writes
	  FROM history AS h JOIN written AS w USING (op)
	 WHERE h.event = 'aborted'
	   AND NOT EXISTS (SELECT FROM history AS c WHERE c.op = h.op AND c.event IN ('committed', 'unknown'));
COMMENT ON VIEW violation_undead IS 'what was rolled back is not there';

CREATE VIEW violation_half AS
	SELECT id, e.op, l.state, l.response
	  FROM (SELECT id, min(op) AS op FROM effect WHERE id LIKE '%/once-%' GROUP BY id) AS e
	  FULL JOIN (SELECT * FROM last_look WHERE id LIKE '%/once-%') AS l USING (id)
	 WHERE (e.op IS NULL AND l.state = 'finished')
		OR (e.op IS NOT NULL AND (l.state = 'finished' AND l.response ->> 'op' = e.op) IS NOT TRUE);
COMMENT ON VIEW violation_half IS 'work and record are both there, or neither is';

CREATE VIEW violation_replay AS
	SELECT h.client, h.op, h.id, h.response
	  FROM history AS h
	 WHERE h.event = 'replayed' AND h.response ->> 'op' IS DISTINCT FROM h.op
	   AND NOT EXISTS (SELECT FROM effect AS e
						WHERE e.op = h.response ->> 'op' AND e.id = h.id AND e.response = h.response)
	UNION ALL
	SELECT NULL, 'last look', id, response
	  FROM last_look AS l
	 WHERE state = 'finished'
	   AND NOT EXISTS (SELECT FROM effect AS e WHERE e.id = l.id AND e.response = l.response);
COMMENT ON VIEW violation_replay IS 'a replay is the response of work that was committed';

CREATE VIEW violation_replays_differ AS
	SELECT id, array_agg(DISTINCT response)
	  FROM history
	 WHERE event = 'replayed' AND id LIKE '%/once-%' AND response ->> 'op' IS DISTINCT FROM op
	 GROUP BY id
	HAVING count(DISTINCT response) > 1;
COMMENT ON VIEW violation_replays_differ IS 'every replay of a key is the same';

-- Later claims of a key begin where the earlier holder has ended: a claim that
-- knows of his must know of all that he ever commits.
CREATE VIEW violation_stale AS
	SELECT w.id, w.what, w.op, newer.op AS overtaken_by
	  FROM held AS w
	  JOIN claimed AS own ON own.id = w.id AND own.token = w.token
	  JOIN claimed AS newer ON newer.id = w.id AND newer.token IS DISTINCT FROM w.token
	 WHERE newer.fresh AND newer.xid <> own.xid
	   AND pg_visible_in_snapshot(own.xid, newer.seen)
	   AND NOT pg_visible_in_snapshot(w.xid, newer.seen);
COMMENT ON VIEW violation_stale IS 'nobody commits what he did under a lease that was taken over';

CREATE VIEW violation_token AS
	SELECT token, array_agg(id) AS ids, array_agg(op) AS ops
	  FROM claimed WHERE token IS NOT NULL
	 GROUP BY token HAVING count(*) > 1;
COMMENT ON VIEW violation_token IS 'every lease has a token of its own';

CREATE VIEW violation_step_twice AS
	SELECT id, step, count(*), array_agg(op) AS ops
	  FROM step_effect AS s
	 WHERE id NOT LIKE '%/short-%'
	 GROUP BY id, step
	HAVING count(*) > 1 + (SELECT count(*) FROM ended AS d WHERE d.id = s.id);
COMMENT ON VIEW violation_step_twice IS 'a step is done once';

CREATE VIEW violation_step_replay AS
	SELECT h.op, h.id, h.detail AS step, h.response
	  FROM history AS h
	 WHERE h.event = 'step replayed' AND h.response ->> 'op' IS DISTINCT FROM h.op
	   AND NOT EXISTS (SELECT FROM step_effect AS s
						WHERE s.id = h.id AND s.step = h.detail AND s.result = h.response);
COMMENT ON VIEW violation_step_replay IS 'the result of a step is that of its committed run';

-- Who is the first in the life of a key finds no steps but his own.
CREATE VIEW violation_step_of_another_life AS
	SELECT h.op, h.id, s.step, s.op AS done_by
	  FROM history AS h
	  JOIN step_effect AS s ON s.id = h.id AND s.step = h.detail AND s.result = h.response
	 WHERE h.event = 'step replayed' AND h.attempt = 1
	   AND (s.token IS DISTINCT FROM h.token OR (h.token IS NULL AND s.op <> h.op));
COMMENT ON VIEW violation_step_of_another_life IS 'a new life of a key begins without steps';

CREATE VIEW violation_stuck AS
	SELECT id, op, 'to be retried after ' || seconds || ' s' AS what
	  FROM history
	 WHERE event = 'busy' AND NOT (SELECT clock_stepped FROM round)
	   AND seconds > extract(epoch FROM (SELECT longest_lease FROM round))
	UNION ALL
	SELECT id, 'last look', outcome FROM last_look WHERE outcome = 'in_progress'
	UNION ALL
	SELECT id, op, 'no answer after ' || seconds || ' s' FROM history
	 WHERE event IN ('request', 'unanswered') AND NOT (SELECT clock_stepped FROM round)
	   AND seconds > 30
	UNION ALL
	SELECT NULL, pid::text, 'a lock is left' FROM pg_locks
	 WHERE locktype = 'advisory' AND objsubid IN (18756, 18757);
COMMENT ON VIEW violation_stuck IS 'no key is held longer than its lease, or its transaction';

-- The clients note here what none of them may be told.
CREATE VIEW violation_error AS
	SELECT client, op, sqlstate, detail FROM history WHERE event = 'strange';
COMMENT ON VIEW violation_error IS 'no error but those that are documented';
