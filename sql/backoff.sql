-- How long to wait before the next attempt.
CREATE EXTENSION idempotency;

-- without jitter: the limit itself
SELECT a AS attempt, idem_backoff(a, '1 second', '5 minutes', 'none')
FROM generate_series(1, 12) AS a;
SELECT idem_backoff(2147483647, '1 microsecond', '100000 years', 'none') = '100000 years' AS capped;
SELECT idem_backoff(2147483647, '1 day', '1 day', j) <= '1 day' AS capped
FROM unnest('{none,full,equal,decorrelated}'::text[]) AS j;
SELECT idem_backoff(1, '1 month', '2 months', 'none'), idem_backoff(2, '1 month', '2 months', 'none');

-- the rest by their distributions, from a fixed seed
SELECT setseed(0.25);
CREATE TABLE draw AS
SELECT a, j, extract(epoch FROM idem_backoff(a, '1 second', '60 seconds', j))::float8 AS d
FROM unnest('{full,equal,decorrelated}'::text[]) AS j,
	generate_series(1, 8) AS a, generate_series(1, 4000);

-- full: uniform from 0 to the limit, so mean limit/2 and deviation limit/sqrt(12)
-- equal: uniform from limit/2 to the limit
SELECT j, a, min(d) >= low AS above, max(d) <= high AS below,
	abs(avg(d) - (low + high) / 2) < 0.03 * high AS mean,
	abs(stddev(d) - (high - low) / sqrt(12)) < 0.03 * high AS deviation
FROM draw, LATERAL (SELECT least(60, 2 ^ (a - 1)) AS high) AS h,
	LATERAL (SELECT CASE j WHEN 'full' THEN 0 ELSE high / 2 END AS low) AS l
WHERE j IN ('full', 'equal')
GROUP BY j, a, low, high ORDER BY j, a;

-- decorrelated: the first is the base; the second uniform from base to three
-- bases; all within base and cap, and growing on the average
SELECT a, min(d) >= 1 AS above, max(d) <= 60 AS below,
	CASE a WHEN 1 THEN avg(d) = 1
		WHEN 2 THEN abs(avg(d) - 2) < 0.05
		WHEN 3 THEN abs(avg(d) - 3.5) < 0.1 END AS mean,
	avg(d) > lag(avg(d)) OVER (ORDER BY a) AS grows
FROM draw WHERE j = 'decorrelated' GROUP BY a ORDER BY a;

-- the same seed, the same delays
SELECT setseed(0.5);
SELECT array_agg(idem_backoff(5, '1 s', '1 min')) AS once FROM generate_series(1, 10) \gset
SELECT setseed(0.5);
SELECT array_agg(idem_backoff(5, '1 s', '1 min')) = :'once' AS again FROM generate_series(1, 10);

-- bad input
SELECT idem_backoff(NULL, '1 s', '1 min');
SELECT idem_backoff(0, '1 s', '1 min');
SELECT idem_backoff(-1, '1 s', '1 min');
SELECT idem_backoff(1, NULL, '1 min');
SELECT idem_backoff(1, '1 s', NULL);
SELECT idem_backoff(1, '0', '1 min');
SELECT idem_backoff(1, '-1 s', '1 min');
SELECT idem_backoff(1, '1 min', '1 s');
SELECT idem_backoff(1, '1 s', '170000000 years');
SELECT idem_backoff(1, '1 s', '1 min', NULL);
SELECT idem_backoff(1, '1 s', '1 min', 'some');

DROP TABLE draw;
DROP EXTENSION idempotency;
