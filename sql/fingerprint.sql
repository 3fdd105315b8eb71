-- Is it the same request?  Equal as jsonb, and only then.
CREATE EXTENSION idempotency;

CREATE FUNCTION same(a jsonb, b jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	PERFORM idem_forget('k');
	PERFORM idem_claim('k', request => a);
	PERFORM idem_finish('k');
	SELECT outcome INTO answer FROM idem_claim('k', request => b);
	RETURN answer;
END
$$;

-- every value against every other: replayed on the diagonal and for the equal
WITH v(n, j) AS (VALUES
	(1, '{"amount": 100, "to": "x"}'::jsonb),
	(2, '{"to":   "x", "amount": 100.00}'),
	(3, '{"to": "y", "to": "x", "amount": 1e2}'),
	(4, '{"amount": "100", "to": "x"}'),
	(5, '{"amount": 100, "to": ["x"]}'),
	(6, '{"amount": 100, "to": "x", "n": null}'),
	(7, '{}'), (8, '[]'), (9, '""'), (10, 'null'), (11, '[null]'), (12, '[[]]'),
	(13, '0'), (14, '-0.0'), (15, 'false'), (16, '"false"'), (17, '["a", "b"]'),
	(18, '["b", "a"]'), (19, '["ab"]'), (20, '{"a": "b"}'), (21, '[{"a": "b"}]'),
	(22, '["a", ["b"]]'), (23, '[["a", "b"]]'), (24, '12345678901234567890.1'),
	(25, '12345678901234567890.10'), (26, '["s", "ns"]'), (27, '["sn", "s"]'))
SELECT a.n, b.n, same(a.j, b.j), a.j = b.j AS equal
FROM v AS a, v AS b
WHERE (same(a.j, b.j) = 'replayed') <> (a.j = b.j) OR (a.j = b.j AND a.n < b.n)
ORDER BY 1, 2;

-- an exponent that would fill a gigabyte if it were written out
SELECT same(format('[%s1]', repeat('1e131071, ', 9000))::jsonb,
	format('[%s1.0]', repeat('1.00e131071, ', 9000))::jsonb);

-- NULL on either side never mismatches
SELECT same(NULL, '1'), same('1', NULL), same(NULL, NULL);

-- looked at first, in any state
BEGIN;
SELECT outcome FROM idem_claim('p', request => '{"a": 1}');
SELECT outcome FROM idem_claim('p', request => '{"a": 2}');
SELECT outcome FROM idem_claim('p', request => '{"a": 1}');
SELECT outcome FROM idem_claim('p');
SELECT idem_finish('p', '"done"');
SELECT outcome, response FROM idem_claim('p', request => '{"a": 2}');
SELECT outcome, response FROM idem_claim('p', request => '{"a": 1}');
COMMIT;
SELECT outcome, response FROM idem_claim('p', request => '{"a": 2}');
-- but not in an expired record
UPDATE idem_key SET expires_at = '2000-01-01' WHERE key = 'p';
BEGIN;
SELECT outcome FROM idem_claim('p', request => '{"a": 2}');
SELECT idem_finish('p');
COMMIT;
SELECT outcome FROM idem_claim('p', request => '{"a": 1}');

-- the encoding is stored: it may never change
SELECT encode(fingerprint, 'hex') AS stored,
	fingerprint = sha256('{k\000\000\000\001ad\000\000\000\012'::bytea || numeric_send(2) || '}') AS as_documented
FROM idem_key WHERE key = 'p';

DROP FUNCTION same;
DROP EXTENSION idempotency;
