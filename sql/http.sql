-- The Idempotency-Key header, for servers that pass a request in settings and
-- take status and headers from there, as PostgREST does.
CREATE EXTENSION idempotency;
CREATE TABLE payment (id int GENERATED ALWAYS AS IDENTITY, amount int);

-- An endpoint: what it does, and what it says besides its result.
CREATE FUNCTION pay(amount int) RETURNS payment LANGUAGE plpgsql AS $$
DECLARE
	paid payment;
BEGIN
	IF amount > 1000 THEN
		RAISE 'too much' USING ERRCODE = 'PT402';
	END IF;
	INSERT INTO payment (amount) VALUES (pay.amount) RETURNING * INTO paid;
	PERFORM set_config('response.status', '201', true),
			set_config('response.headers', format('[{"Location": "/payment/%s"}]', paid.id), true);
	RETURN paid;
END $$;
CREATE FUNCTION endpoint(amount int) RETURNS jsonb LANGUAGE sql AS
	$$SELECT idem_http('SELECT * FROM pay($1)', ARRAY[amount::text], wait => '0')$$;

-- The server: a request is a transaction.
CREATE FUNCTION request(headers text, amount int, who text DEFAULT '"ann"', path text DEFAULT '/rpc/pay',
						OUT status text, OUT headers_out text, OUT body jsonb) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.headers', request.headers, true),
			set_config('request.method', 'POST', true),
			set_config('request.path', path, true),
			set_config('request.jwt.claims', format('{"sub": %s, "role": "web"}', who), true),
			set_config('response.status', '', true),
			set_config('response.headers', '', true);
	body := endpoint(amount);
	status := current_setting('response.status');
	headers_out := current_setting('response.headers');
END $$;

\x on
\pset null '(null)'
-- no key
SELECT * FROM request('{}', 100);
SELECT * FROM request('', 100);
SELECT status FROM request('{"idempotency-key": ""}', 100);
SELECT status FROM request('{"idempotency-key": "\"open"}', 100);
SELECT status FROM request('{"idempotency-key": "\"closed\" early"}', 100);
SELECT status FROM request(format('{"idempotency-key": "%s"}', repeat('k', 513)), 100);
-- the first one, and its repeats: quoted as the draft wants it, or bare
SELECT * FROM request('{"host": "x", "idempotency-key": "\"8e03978e-40d5\""}', 100);
SELECT * FROM request('{"Idempotency-Key": "8e03978e-40d5"}', 100);
SELECT * FROM request('{"IDEMPOTENCY-KEY": " \"8e03978e-40d5\" "}', 100);
SELECT headers_out FROM request('{"idempotency-key": "\"8e03978e-40d5\";v=1"}', 100);
SELECT count(*) FROM payment;
-- another request, another caller, another operation
SELECT * FROM request('{"idempotency-key": "8e03978e-40d5"}', 200);
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "8e03978e-40d5"}', 200, '"bob"');
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "8e03978e-40d5"}', 200, path => '/rpc/pay_again');
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "8e03978e-40d5"}', 200, '42');
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "8e03978e-40d5"}', 200, '"42"');
-- a scope may be as long as it likes
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "k"}', 300, path => '/' || repeat('x', 500));
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "k"}', 300, path => '/' || repeat('x', 500));
SELECT status, body->'id' AS id FROM request('{"idempotency-key": "k"}', 300, path => '/' || repeat('x', 501));
SELECT scope, key FROM idem_key ORDER BY scope COLLATE "C";

-- an error of the command is an error, and the key is free
SELECT * FROM request('{"idempotency-key": "much"}', 2000);
SELECT status FROM request('{"idempotency-key": "much"}', 2);

-- what else can be in the way: a lease, a failure, a question
SELECT token FROM idem_claim('leased', scope => '"ann" POST /rpc/pay', lease => '00:10:00.5') \gset
SELECT status, (headers_out::jsonb->0->>'Retry-After')::int BETWEEN 1 AND 601 AS retry_after, body->>'title' AS title
FROM request('{"idempotency-key": "leased"}', 1);
SELECT outcome FROM idem_fail('leased', retry_in => '1 hour', scope => '"ann" POST /rpc/pay', token => :token);
SELECT status, (headers_out::jsonb->0->>'Retry-After')::int BETWEEN 602 AND 3600 AS retry_after, body->>'title' AS title
FROM request('{"idempotency-key": "leased"}', 1);
SELECT outcome FROM idem_claim('declined', scope => '"ann" POST /rpc/pay', lease => '1 hour'),
	LATERAL (SELECT idem_fail('declined', '{"title": "Card declined", "status": 402}', final => true,
							  scope => '"ann" POST /rpc/pay', token => token)) AS f;
SELECT * FROM request('{"idempotency-key": "declined"}', 1);
SELECT outcome FROM idem_claim('broken', scope => '"ann" POST /rpc/pay', lease => '1 hour'),
	LATERAL (SELECT idem_fail('broken', final => true, scope => '"ann" POST /rpc/pay', token => token)) AS f;
SELECT * FROM request('{"idempotency-key": "broken"}', 1);
SELECT outcome FROM idem_claim('held', scope => '"ann" POST /rpc/pay', lease => '1 hour', takeover => 'hold');
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key = 'held';
SELECT * FROM request('{"idempotency-key": "held"}', 1);
BEGIN;
SELECT outcome FROM idem_claim('busy', scope => '"ann" POST /rpc/pay');
SELECT * FROM request('{"idempotency-key": "busy"}', 1);
-- finished by hand: the response is the body
SELECT idem_finish('busy', '{"body": "by hand", "status": "299"}', scope => '"ann" POST /rpc/pay');
SELECT * FROM request('{"idempotency-key": "busy"}', 1);
COMMIT;
SELECT idem_finish('nothing', scope => 's') FROM idem_claim('nothing', scope => 's');
BEGIN;
SELECT set_config('request.headers', '{"idempotency-key": "nothing"}', true);
SELECT idem_http('SELECT 1', scope => 's');
SELECT idem_http('SELECT 1 AS one, 2 AS two', scope => 't');
SELECT idem_http('SELECT 3 AS three', scope => 't');
SELECT idem_http('SELECT 1 WHERE false', scope => 'u');
SELECT idem_http('SELECT 1', ARRAY['x'], scope => 'v');
ROLLBACK;

DROP FUNCTION request, endpoint, pay;
DROP TABLE payment;
DROP EXTENSION idempotency;
