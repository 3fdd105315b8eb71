-- What must be true of the tables after any run: each query answers with the rows for
-- which it is not. "idem" stands for the schema of the extension.

-- rows of idem_key are well-formed
SELECT k.* FROM idem.idem_key AS k
 WHERE state NOT IN ('p', 'f', 'r', 'x')
	OR octet_length(key) NOT BETWEEN 1 AND 512
	OR octet_length(scope) > 128
	OR octet_length(holder) > 512
	OR octet_length(fingerprint) <> 32
	OR NOT isfinite(expires_at)
	OR NOT isfinite(claimed_at)
	OR attempt < 1
	OR token < 1
	OR claimed_at > clock_timestamp()
	OR (finished_at IS NULL) <> (state = 'p')
	OR finished_at < claimed_at
	OR expires_at <= finished_at
	OR (retry_at IS NULL) <> (state <> 'r')
	OR (state = 'p' AND (token IS NULL OR lease_until IS NULL OR takeover IS NULL OR response IS NOT NULL))
	OR (token IS NULL) <> (lease_until IS NULL)
	OR takeover NOT IN ('r', 'f', 'h')
	OR NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = owner);

-- rows of idem_step are well-formed
SELECT s.* FROM idem.idem_step AS s
 WHERE octet_length(step) NOT BETWEEN 1 AND 128
	OR octet_length(fingerprint) <> 32
	OR attempt < 1
	OR NOT isfinite(finished_at);

-- rows of idem_message are well-formed
SELECT m.* FROM idem.idem_message AS m
 WHERE octet_length(queue) NOT BETWEEN 1 AND 63
	OR octet_length(message_group) NOT BETWEEN 1 AND 512
	OR octet_length(key) NOT BETWEEN 1 AND 512
	OR attempt < 0
	OR max_attempts < -1
	OR place < id
	OR NOT isfinite(enqueued_at)
	OR NOT isfinite(due_at)
	OR enqueued_at > clock_timestamp()
	OR lease_until = 'infinity'
	OR (token = 0) <> (lease_until = '-infinity')
	OR token < 0
	OR (token <> 0 AND attempt = 0)
	OR jsonb_array_length(history) NOT BETWEEN 1 AND 20
	OR NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = owner);

-- rows of idem_dead_letter are well-formed
SELECT l.* FROM idem.idem_dead_letter AS l
 WHERE octet_length(queue) NOT BETWEEN 1 AND 63
	OR attempt < 1
	OR died_at < enqueued_at
	OR died_at > clock_timestamp()
	OR expires_at <= died_at
	OR jsonb_array_length(history) NOT BETWEEN 1 AND 20
	OR NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = owner);

-- a message waits, or is dead
SELECT id FROM idem.idem_message JOIN idem.idem_dead_letter USING (id);

-- rows of idem_queue are well-formed
SELECT q.* FROM idem.idem_queue AS q
 WHERE octet_length(queue) NOT BETWEEN 1 AND 63
	OR max_attempts < 0
	OR backoff_base <= '0'
	OR backoff_cap <= '0'
	OR jitter NOT IN ('none', 'full', 'equal', 'decorrelated')
	OR dead_letter_ttl <= '0';

-- every step belongs to a key
SELECT s.* FROM idem.idem_step AS s
 WHERE NOT EXISTS (SELECT FROM idem.idem_key AS k WHERE k.generation = s.generation);

-- every key has a life of its own, and every lease a token
SELECT generation, count(*) FROM idem.idem_key WHERE generation IS NOT NULL GROUP BY 1 HAVING count(*) > 1
UNION ALL
SELECT token, count(*) FROM idem.idem_key WHERE token IS NOT NULL GROUP BY 1 HAVING count(*) > 1;

-- values can be read
SELECT key FROM idem.idem_key WHERE length(response::text) < 1
UNION ALL
SELECT step FROM idem.idem_step WHERE length(result::text) < 1
UNION ALL
SELECT key FROM idem.idem_message WHERE length(payload::text || headers::text || history::text) < 1
UNION ALL
SELECT key FROM idem.idem_dead_letter WHERE length(payload::text || headers::text || history::text) < 1;

-- no claim is left
SELECT l.* FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid IN (18756, 18757, 18758);

-- no prepared transaction is left
SELECT * FROM pg_prepared_xacts;

-- the heap is sound
SELECT c.relname, v.* FROM pg_class AS c, LATERAL verify_heapam(c.oid) AS v
 WHERE c.relnamespace = 'idem'::regnamespace AND c.relkind = 'r';

-- the indexes are sound, and agree with the heap (they are not, if this raises)
SELECT * FROM (SELECT i.indexrelid::regclass, bt_index_parent_check(i.indexrelid, true)::text AS said
				 FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
				WHERE c.relnamespace = 'idem'::regnamespace AND i.indisvalid) AS i
 WHERE said <> '';
