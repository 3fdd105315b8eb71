-- The verdict: one view for each thing that must not be, with the rows that
-- show it. No view may have a row. Its comment is what is promised.

SET search_path = torture, public;

CREATE INDEX ON effect (id);
CREATE INDEX ON effect (op);
CREATE INDEX ON ended (id);
CREATE INDEX ON claimed (id);
CREATE INDEX ON history (event);
CREATE INDEX ON enqueued (message);
CREATE INDEX ON enqueued (queue, key);
CREATE INDEX ON delivered (message);
CREATE INDEX ON delivered (queue, message_group);
CREATE INDEX ON delivery_effect (message);
CREATE INDEX ON given_back (message);
CREATE INDEX ON extended (message);
ANALYZE;

-- All writes of a transaction.
CREATE VIEW written AS
	SELECT op, count(*) AS writes
	  FROM (SELECT op FROM claimed UNION ALL SELECT op FROM effect
			UNION ALL SELECT op FROM step_effect UNION ALL SELECT op FROM guarded
			UNION ALL SELECT op FROM ended UNION ALL SELECT op FROM enqueued
			UNION ALL SELECT op FROM delivered UNION ALL SELECT op FROM delivery_effect
			UNION ALL SELECT op FROM given_back UNION ALL SELECT op FROM extended
			UNION ALL SELECT op FROM redriven
			UNION ALL SELECT op FROM purged UNION ALL SELECT op FROM configured) AS t
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
	 WHERE locktype = 'advisory' AND objsubid IN (18756, 18757, 18758);
COMMENT ON VIEW violation_stuck IS 'no key is held longer than its lease, or its transaction';

-- Every message that was enqueued, and what has become of it. Those that were thrown
-- away are only counted.
CREATE TABLE message AS
	SELECT e.message, min(e.queue) AS queue, min(e.queue) LIKE '%/scrap' AS scrap, min(e.op) AS op,
		   (SELECT count(*) FROM delivery_effect AS d WHERE d.message = e.message) AS effects,
		   (SELECT count(*) FROM idem_message AS m WHERE m.id = e.message) AS waiting,
		   (SELECT count(*) FROM idem_dead_letter AS l WHERE l.id = e.message) AS dead
	  FROM enqueued AS e GROUP BY e.message;

-- What only who has a message may commit.
CREATE VIEW held_message AS
	SELECT message, op, token, xid, 'effect' AS what FROM delivery_effect
	UNION ALL SELECT message, op, token, xid, 'given back' FROM given_back
	UNION ALL SELECT message, op, token, xid, 'extended' FROM extended;

CREATE VIEW violation_message_lost AS
	SELECT * FROM message WHERE effects + waiting + dead = 0 AND NOT scrap;
COMMENT ON VIEW violation_message_lost IS 'every message that was enqueued is done, or dead, or there';

CREATE VIEW violation_message_twice AS
	SELECT m.*, (SELECT array_agg(op) FROM delivery_effect AS d WHERE d.message = m.message) AS ops
	  FROM message AS m WHERE effects > 1 OR effects + waiting + dead > 1;
COMMENT ON VIEW violation_message_twice IS 'a message is done once, and gone then';

CREATE VIEW violation_message_of_nobody AS
	SELECT t.* FROM (
		SELECT message, op, enqueued_by FROM delivered
		UNION ALL SELECT id, 'waiting', payload ->> 'op' FROM idem_message
		UNION ALL SELECT id, 'dead', payload ->> 'op' FROM idem_dead_letter) AS t
	 WHERE NOT EXISTS (SELECT FROM enqueued AS e
						WHERE e.message = t.message AND e.op = t.enqueued_by AND e.duplicate IS NOT TRUE)
	UNION ALL
	SELECT message, op, 'not taken' FROM delivery_effect AS d
	 WHERE NOT EXISTS (SELECT FROM delivered AS t WHERE t.message = d.message AND t.token = d.token);
COMMENT ON VIEW violation_message_of_nobody IS 'there is no message but those that were enqueued';

-- When somebody first got an answer of a key, at the latest, and how long it lasts.
CREATE VIEW asked AS
	SELECT queue, key, message, min(sent) AS sent, min(at) AS at, min(ttl) AS ttl, min(op) AS op
	  FROM enqueued WHERE key IS NOT NULL
	 GROUP BY queue, key, message;

CREATE VIEW violation_message_key AS
	SELECT queue, key, array_agg(DISTINCT message) AS messages, array_agg(op) AS ops
	  FROM enqueued
	 WHERE key NOT LIKE '%short-%'
	 GROUP BY queue, key
	HAVING count(DISTINCT message) > 1 OR count(*) FILTER (WHERE NOT duplicate) > 1
	UNION ALL
	SELECT a.queue, a.key, ARRAY[a.message, b.message], ARRAY[a.op, b.op]
	  FROM asked AS a JOIN asked AS b ON a.queue = b.queue AND a.key = b.key AND a.message < b.message
	 WHERE a.key LIKE '%short-%' AND b.at < a.sent + a.ttl AND NOT (SELECT clock_stepped FROM round);
COMMENT ON VIEW violation_message_key IS 'a key enqueues one message within its time';

-- As for keys: whoever takes a message over must know of all that its former holder
-- ever commits; and a message that is done cannot be taken over.
CREATE VIEW violation_message_stale AS
	SELECT w.message, w.what, w.op, newer.op AS overtaken_by
	  FROM held_message AS w
	  JOIN delivered AS own ON own.message = w.message AND own.token = w.token
	  JOIN delivered AS newer ON newer.message = w.message AND newer.token <> w.token
	 WHERE newer.xid <> own.xid
	   AND pg_visible_in_snapshot(own.xid, newer.seen)
	   AND (w.what = 'effect' OR (newer.fresh AND NOT pg_visible_in_snapshot(w.xid, newer.seen)));
COMMENT ON VIEW violation_message_stale IS 'nobody ends or extends what somebody else has taken over';

-- A lease that was not given back runs its time, as far as the next one could know.
-- What one transaction did is not ordered by its snapshots.
CREATE VIEW violation_message_early AS
	SELECT d.message, d.op, newer.op AS other, l.lease_until, newer.at
	  FROM delivered AS d
	  JOIN (SELECT message, token, lease_until, xid FROM delivered
			UNION ALL SELECT message, token, lease_until, xid FROM extended) AS l USING (message, token)
	  JOIN delivered AS newer ON newer.message = d.message AND newer.token <> d.token
	 WHERE CASE WHEN d.xid = newer.xid THEN d.n < newer.n AND l.xid = d.xid
				ELSE pg_visible_in_snapshot(d.xid, newer.seen) AND l.xid <> newer.xid
					 AND pg_visible_in_snapshot(l.xid, newer.seen) END
	   AND newer.at < l.lease_until AND NOT (SELECT clock_stepped FROM round)
	   AND NOT EXISTS (SELECT FROM given_back AS g WHERE g.message = d.message AND g.token = d.token);
COMMENT ON VIEW violation_message_early IS 'a message is not taken from whom it was lent to';

CREATE VIEW violation_message_token AS
	SELECT message, token, array_agg(op) AS ops
	  FROM delivered GROUP BY message, token HAVING count(*) > 1;
COMMENT ON VIEW violation_message_token IS 'every delivery of a message has a token of its own';

CREATE VIEW violation_message_downstream AS
	SELECT message, array_agg(DISTINCT downstream_key) AS keys
	  FROM delivered GROUP BY message HAVING count(DISTINCT downstream_key) > 1;
COMMENT ON VIEW violation_message_downstream IS 'a message shows others one key in all its attempts';

-- Who takes one must find that those before it are done. Those that died are not in
-- the way; redriven, they have another place.
CREATE VIEW violation_message_order AS
	SELECT later.queue, later.message_group, later.message, later.op, e.message AS earlier, e.op AS earlier_op
	  FROM delivered AS later
	  JOIN delivered AS d ON d.queue = later.queue AND d.message_group = later.message_group
						 AND d.place < later.place
	  JOIN delivery_effect AS e ON e.message = d.message AND e.token = d.token
	 WHERE later.fresh
	   AND CASE WHEN e.xid = later.xid THEN e.n > later.n OR e.op = 'drain' AND later.op = 'drain'
				ELSE NOT pg_visible_in_snapshot(e.xid, later.seen) END;
COMMENT ON VIEW violation_message_order IS 'the messages of a group are done one at a time, in order';

CREATE VIEW violation_message_dead AS
	SELECT l.id, l.owner, l.queue, l.attempt, l.max_attempts, l.history
	  FROM idem_dead_letter AS l
	 WHERE NOT (l.max_attempts <> 0 AND l.attempt >= CASE WHEN l.max_attempts > 0 THEN l.max_attempts ELSE
				(SELECT min(c.max_attempts) FROM configured AS c WHERE c.queue = l.owner || '/' || l.queue) END)
	   AND NOT EXISTS (SELECT FROM given_back AS g
						WHERE g.message = l.id AND g.final AND g.op = l.history -> -1 -> 'error' ->> 'op');
COMMENT ON VIEW violation_message_dead IS 'the dead have used up their attempts, or were given up';

CREATE VIEW violation_message_attempts AS
	SELECT d.message, d.op, d.attempt, e.max_attempts
	  FROM delivered AS d JOIN enqueued AS e ON e.message = d.message AND e.op = d.enqueued_by
	 WHERE d.attempt < 1 OR d.attempt > CASE e.max_attempts WHEN 0 THEN d.attempt ELSE
			coalesce(e.max_attempts, (SELECT max(c.max_attempts) FROM configured AS c WHERE c.queue = d.queue)) END;
COMMENT ON VIEW violation_message_attempts IS 'no message is taken more often than it may be';

CREATE VIEW violation_message_stuck AS
	SELECT id, owner, queue, message_group, attempt, due_at, lease_until, clock_timestamp() AS now
	  FROM idem_message;
COMMENT ON VIEW violation_message_stuck IS 'at the end the queues can be emptied';

CREATE VIEW violation_message_sum AS
	SELECT m.*, p.purged
	  FROM (SELECT queue, count(*) AS enqueued, sum(effects) AS effects, sum(waiting) AS waiting,
				   sum(dead) AS dead FROM message GROUP BY queue) AS m,
		   LATERAL (SELECT coalesce(sum(messages), 0) AS purged FROM purged AS p WHERE p.queue = m.queue) AS p
	 WHERE enqueued <> effects + waiting + dead + purged;
COMMENT ON VIEW violation_message_sum IS 'the numbers of messages add up';

-- Of the last life of the shared memory: no update is lost, and none comes from nowhere. Who
-- has no answer may have been counted.
CREATE VIEW violation_breaker_count AS
	SELECT b.*, h.recorded, h.recording
	  FROM breaker AS b,
		   LATERAL (SELECT count(*) FILTER (WHERE event = 'recorded' AND response ->> 'life' = life) AS recorded,
						   count(*) FILTER (WHERE event = 'recording')
						   - count(*) FILTER (WHERE event = 'recorded') AS unanswered,
						   count(*) FILTER (WHERE event = 'recording') AS recording
					  FROM history WHERE id = name) AS h
	 WHERE name = 'counted' AND calls NOT BETWEEN recorded AND recorded + unanswered;
COMMENT ON VIEW violation_breaker_count IS 'a circuit breaker counts each call once';

-- Each answer was given between two readings of the clock.
CREATE VIEW answered AS
	SELECT op, event, detail AS state, response ->> 'life' AS life, seconds AS retry_after,
		   (response ->> 'from')::float8 AS begun, (response ->> 'to')::float8 AS ended
	  FROM history WHERE event IN ('allowed', 'refused');

CREATE VIEW violation_breaker_open AS
	SELECT r.op, r.begun, r.ended, r.retry_after, a.op AS other, a.begun AS other_begun, a.ended AS other_ended
	  FROM answered AS r JOIN answered AS a USING (life)
	 WHERE r.event = 'refused' AND r.state = 'open' AND a.event = 'allowed'
	   AND a.begun > r.ended AND a.ended < r.begun + r.retry_after
	   AND NOT (SELECT clock_stepped FROM round)
	UNION ALL
	SELECT op, begun, ended, retry_after, 'itself', NULL, NULL
	  FROM answered WHERE event = 'allowed' AND state = 'open';
COMMENT ON VIEW violation_breaker_open IS 'nobody is allowed through an open breaker';

-- The clients note here what none of them may be told.
CREATE VIEW violation_error AS
	SELECT client, op, sqlstate, detail FROM history WHERE event = 'strange';
COMMENT ON VIEW violation_error IS 'no error but those that are documented';
