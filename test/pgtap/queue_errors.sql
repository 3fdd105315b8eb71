-- One error for every way to go wrong with a queue: its SQLSTATE, its message, and
-- a hint for whatever a caller can mend. After each of them the session goes on.

BEGIN;
SET LOCAL statement_timeout = '60s';
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
SET LOCAL search_path = public, idem;

SELECT plan(357);

-- What a command raises: SQLSTATE, message, and whether there is a hint.

CREATE FUNCTION pg_temp.raised(command text) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' ', SQLSTATE, SQLERRM, CASE WHEN hint = '' THEN '(no hint)' END);
END
$$;

-- Calls whose missing argument is the one in question; "…" stands for it.

CREATE TEMPORARY TABLE call (function text, argument text, command text);
INSERT INTO call VALUES
	('idem_enqueue', 'queue', 'SELECT idem_enqueue(…, ''1'')'),
	('idem_enqueue_many', 'queue', 'SELECT * FROM idem_enqueue_many(…, ''{1}'')'),
	('idem_enqueue_many', 'queue', 'SELECT * FROM idem_enqueue_many(…, ''{}'')'),
	('idem_receive', 'queue, if any', 'SELECT * FROM idem_receive(''s'', ''1'', ''1'', …)'),
	('idem_dequeue', 'queue', 'SELECT * FROM idem_dequeue(…)'),
	('idem_redrive', 'queue', 'SELECT idem_redrive(…)'),
	('idem_purge', 'queue', 'SELECT idem_purge(…)'),
	('idem_configure_queue', 'queue', 'SELECT idem_configure_queue(…)'),
	('idem_enqueue', 'owner', 'SELECT idem_enqueue(''q'', ''1'', owner => …)'),
	('idem_enqueue_many', 'owner', 'SELECT * FROM idem_enqueue_many(''q'', ''{1}'', owner => …)'),
	('idem_receive', 'owner', 'SELECT * FROM idem_receive(''s'', ''1'', ''1'', owner => …)'),
	('idem_dequeue', 'owner', 'SELECT * FROM idem_dequeue(''q'', owner => …)'),
	('idem_redrive', 'owner', 'SELECT idem_redrive(''q'', owner => …)'),
	('idem_purge', 'owner', 'SELECT idem_purge(''q'', owner => …)'),
	('idem_enqueue', 'payload', 'SELECT idem_enqueue(''q'', …)'),
	('idem_enqueue_many', 'payload', 'SELECT * FROM idem_enqueue_many(''q'', ARRAY[''1'', …]::jsonb[])'),
	('idem_receive', 'payload', 'SELECT * FROM idem_receive(''s'', ''1'', …)'),
	('idem_enqueue', 'headers', 'SELECT idem_enqueue(''q'', ''1'', headers => …)'),
	('idem_enqueue_many', 'headers', 'SELECT * FROM idem_enqueue_many(''q'', ''{1,2}'', headers => ARRAY[NULL, …]::jsonb[])'),
	('idem_receive', 'headers', 'SELECT * FROM idem_receive(''s'', ''1'', ''1'', headers => …)'),
	('idem_enqueue', 'key', 'SELECT idem_enqueue(''q'', ''1'', …)'),
	('idem_enqueue_many', 'key', 'SELECT * FROM idem_enqueue_many(''q'', ''{1,2}'', ARRAY[NULL, …])'),
	('idem_enqueue', 'message_group', 'SELECT idem_enqueue(''q'', ''1'', message_group => …)'),
	('idem_enqueue_many', 'message_group', 'SELECT * FROM idem_enqueue_many(''q'', ''{1,2}'', message_groups => ARRAY[NULL, …])'),
	('idem_receive', 'message_group', 'SELECT * FROM idem_receive(''s'', ''1'', ''1'', message_group => …)'),
	('idem_receive', 'source', 'SELECT * FROM idem_receive(…, ''1'', ''1'')'),
	('idem_receive', 'source', 'SELECT * FROM idem_receive(…, ''1'', ''1'', ''q'')'),
	('idem_receive', 'message_id', 'SELECT * FROM idem_receive(''s'', …, ''1'')'),
	('idem_enqueue', 'delay', 'SELECT idem_enqueue(''q'', ''1'', delay => …)'),
	('idem_enqueue_many', 'delay', 'SELECT * FROM idem_enqueue_many(''q'', ''{1}'', delay => …)'),
	('idem_enqueue_many', 'delay', 'SELECT * FROM idem_enqueue_many(''q'', ''{}'', delay => …)'),
	('idem_enqueue', 'max_attempts', 'SELECT idem_enqueue(''q'', ''1'', max_attempts => …)'),
	('idem_enqueue_many', 'max_attempts', 'SELECT * FROM idem_enqueue_many(''q'', ''{1}'', max_attempts => …)'),
	('idem_configure_queue', 'max_attempts', 'SELECT idem_configure_queue(''q'', max_attempts => …)'),
	('idem_enqueue', 'priority', 'SELECT idem_enqueue(''q'', ''1'', priority => …)'),
	('idem_enqueue_many', 'priority', 'SELECT * FROM idem_enqueue_many(''q'', ''{1}'', priority => …)'),
	('idem_enqueue', 'ttl', 'SELECT idem_enqueue(''q'', ''1'', ttl => …)'),
	('idem_enqueue', 'ttl', 'SELECT idem_enqueue(''q'', ''1'', ''k'', ttl => …)'),
	('idem_enqueue_many', 'ttl', 'SELECT * FROM idem_enqueue_many(''q'', ''{1}'', ttl => …)'),
	('idem_receive', 'ttl', 'SELECT * FROM idem_receive(''s'', ''1'', ''1'', ttl => …)'),
	('idem_dequeue', 'max_messages (taken)', 'SELECT * FROM idem_dequeue(''q'', …)'),
	('idem_redrive', 'max_messages', 'SELECT idem_redrive(''q'', max_messages => …)'),
	('idem_redrive', 'max_messages', 'SELECT idem_redrive(''q'', ''{1}'', …)'),
	('idem_purge', 'max_messages', 'SELECT idem_purge(''q'', max_messages => …)'),
	('idem_purge', 'max_messages', 'SELECT idem_purge(''q'', true, …)'),
	('idem_dequeue', 'lease', 'SELECT * FROM idem_dequeue(''q'', lease => …)'),
	('idem_extend', 'lease', 'SELECT idem_extend(1, 1, …)'),
	('idem_extend_many', 'lease', 'SELECT idem_extend_many(''{1}'', ''{1}'', …)'),
	('idem_extend_many', 'lease', 'SELECT idem_extend_many(''{}'', ''{}'', …)'),
	('idem_dequeue', 'wait', 'SELECT * FROM idem_dequeue(''q'', wait => …)'),
	('idem_nack', 'retry_in', 'SELECT idem_nack(1, 1, retry_in => …)'),
	('idem_nack_many', 'retry_in', 'SELECT idem_nack_many(''{1}'', ''{1}'', retry_in => …)'),
	('idem_nack_many', 'retry_in', 'SELECT idem_nack_many(''{}'', ''{}'', retry_in => …)'),
	('idem_nack', 'final', 'SELECT idem_nack(1, 1, final => …)'),
	('idem_nack_many', 'final', 'SELECT idem_nack_many(''{}'', ''{}'', final => …)'),
	('idem_nack', 'error', 'SELECT idem_nack(1, 1, …)'),
	('idem_ack', 'id', 'SELECT idem_ack(…, 1)'),
	('idem_nack', 'id', 'SELECT idem_nack(…, 1)'),
	('idem_extend', 'id', 'SELECT idem_extend(…, 1)'),
	('idem_ack', 'token', 'SELECT idem_ack(1, …)'),
	('idem_nack', 'token', 'SELECT idem_nack(1, …)'),
	('idem_extend', 'token', 'SELECT idem_extend(1, …)'),
	('idem_ack_many', 'ids', 'SELECT idem_ack_many(…, ''{1,2}'')'),
	('idem_nack_many', 'ids', 'SELECT idem_nack_many(…, ''{1,2}'')'),
	('idem_extend_many', 'ids', 'SELECT idem_extend_many(…, ''{1,2}'')'),
	('idem_ack_many', 'tokens', 'SELECT idem_ack_many(''{1,2}'', …)'),
	('idem_nack_many', 'tokens', 'SELECT idem_nack_many(''{1,2}'', …)'),
	('idem_extend_many', 'tokens', 'SELECT idem_extend_many(''{1,2}'', …)'),
	('idem_purge', 'dead_letters', 'SELECT idem_purge(''q'', …)'),
	('idem_configure_queue', 'paused', 'SELECT idem_configure_queue(''q'', paused => …)'),
	('idem_configure_queue', 'backoff_base', 'SELECT idem_configure_queue(''q'', backoff_base => …)'),
	('idem_configure_queue', 'backoff_cap', 'SELECT idem_configure_queue(''q'', backoff_cap => …)'),
	('idem_configure_queue', 'dead_letter_ttl', 'SELECT idem_configure_queue(''q'', dead_letter_ttl => …)'),
	('idem_configure_queue', 'jitter', 'SELECT idem_configure_queue(''q'', jitter => …)'),
	('idem_configure_queue', 'shared_with', 'SELECT idem_configure_queue(''q'', shared_with => …)');

-- What is wrong with it, and what is raised; values are SQL.

CREATE TEMPORARY TABLE wrong (argument text, value text, raised text);
INSERT INTO wrong VALUES
	('queue', 'NULL', '22004 queue must not be null'),
	('queue', '''''', '22023 queue must not be empty'),
	('queue', 'repeat(''q'', 64)', '54000 queue is too long'),
	('queue', 'repeat(''é'', 32)', '54000 queue is too long'),
	('queue', 'repeat(''q'', 1000000)', '54000 queue is too long'),
	('queue, if any', '''''', '22023 queue must not be empty'),
	('queue, if any', 'repeat(''q'', 64)', '54000 queue is too long'),
	('owner', '''no such role''', '42704 role "no such role" does not exist (no hint)'),
	('owner', '''''', '42704 role "" does not exist (no hint)'),
	('owner', '''public''', '42704 role "public" does not exist (no hint)'),
	('payload', 'NULL', '22004 payload must not be null'),
	('payload', 'to_jsonb(repeat(''x'', 1017))', '54000 payload of the message is too large'),
	('payload', 'to_jsonb(repeat(''x'', 1000000))', '54000 payload of the message is too large'),
	('headers', 'to_jsonb(repeat(''x'', 1017))', '54000 headers of the message is too large'),
	('error', 'to_jsonb(repeat(''x'', 1017))', '54000 error of the message is too large'),
	('key', '''''', '22023 key must not be empty'),
	('key', 'repeat(''k'', 513)', '54000 key is too long'),
	('key', 'repeat(''é'', 257)', '54000 key is too long'),
	('message_group', '''''', '22023 message_group must not be empty'),
	('message_group', 'repeat(''g'', 513)', '54000 message_group is too long'),
	('source', 'NULL', '22004 source must not be null'),
	('source', '''''', '22023 source must not be empty'),
	('source', 'repeat(''s'', 64)', '54000 source is too long'),
	('source', '''a/b''', '22023 source must not contain a slash'),
	('source', '''/''', '22023 source must not contain a slash'),
	('message_id', 'NULL', '22004 message_id must not be null'),
	('message_id', '''''', '22023 message_id must not be empty'),
	('message_id', 'repeat(''m'', 511)', '54000 key is too long'),
	('delay', '''-1 second''', '22023 delay must be finite and not negative'),
	('delay', '''-1 microsecond''', '22023 delay must be finite and not negative'),
	('delay', '''1 day -24:00:01''', '22023 delay must be finite and not negative'),
	('delay', '''300000 years''', '22008 timestamp out of range (no hint)'),
	('delay', '''infinity''', '22023 delay must be finite and not negative'),
	('delay', '''-infinity''', '22023 delay must be finite and not negative'),
	('max_attempts', '-1', '22023 max_attempts must not be negative'),
	('max_attempts', '-2147483648', '22023 max_attempts must not be negative'),
	('priority', 'NULL', '22004 priority must be a number from -32768 to 32767'),
	('priority', '-32769', '22023 priority must be a number from -32768 to 32767'),
	('priority', '32768', '22023 priority must be a number from -32768 to 32767'),
	('priority', '2147483647', '22023 priority must be a number from -32768 to 32767'),
	('ttl', '''0''', '22023 ttl must be at least 1 millisecond'),
	('ttl', '''999 microseconds''', '22023 ttl must be at least 1 millisecond'),
	('ttl', '''-1 month''', '22023 ttl must be at least 1 millisecond'),
	('ttl', '''300000 years''', '22008 timestamp out of range (no hint)'),
	('ttl', '''infinity''', '22023 ttl must be finite'),
	('ttl', '''-infinity''', '22023 ttl must be finite'),
	('max_messages (taken)', 'NULL', '22004 max_messages must be a number from 1 to 10000'),
	('max_messages (taken)', '0', '22023 max_messages must be a number from 1 to 10000'),
	('max_messages (taken)', '-1', '22023 max_messages must be a number from 1 to 10000'),
	('max_messages (taken)', '10001', '22023 max_messages must be a number from 1 to 10000'),
	('max_messages', '0', '22023 max_messages must be greater than zero'),
	('max_messages', '-1', '22023 max_messages must be greater than zero'),
	('lease', 'NULL', '22004 lease must not be null'),
	('lease', '''0''', '22023 lease must be at least 1 millisecond'),
	('lease', '''999 microseconds''', '22023 lease must be at least 1 millisecond'),
	('lease', '''-1 second''', '22023 lease must be at least 1 millisecond'),
	('lease', '''300000 years''', '22008 timestamp out of range (no hint)'),
	('lease', '''infinity''', '22023 lease must be finite'),
	('lease', '''-infinity''', '22023 lease must be finite'),
	('wait', '''-1 microsecond''', '22023 wait must be finite and not negative'),
	('wait', '''-1 month''', '22023 wait must be finite and not negative'),
	('wait', '''30.000001 seconds''', '22023 wait must not be longer than 30 seconds'),
	('wait', '''1 month''', '22023 wait must not be longer than 30 seconds'),
	('wait', '''300000 years''', '22008 timestamp out of range (no hint)'),
	('wait', '''infinity''', '22023 wait must be finite and not negative'),
	('wait', '''-infinity''', '22023 wait must be finite and not negative'),
	('retry_in', '''-1 second''', '22023 retry_in must be finite and not negative'),
	('retry_in', '''300000 years''', '22008 timestamp out of range (no hint)'),
	('retry_in', '''infinity''', '22023 retry_in must be finite and not negative'),
	('retry_in', '''-infinity''', '22023 retry_in must be finite and not negative'),
	('final', 'NULL', '22004 final must not be null'),
	('id', 'NULL', '22004 id must not be null'),
	('token', 'NULL', '22004 token must not be null'),
	('ids', '''{1}''', '2202E tokens must have an element for each id'),
	('ids', '''{1,2,3}''', '2202E tokens must have an element for each id'),
	('ids', '''{}''', '2202E tokens must have an element for each id'),
	('ids', 'NULL', '2202E tokens must have an element for each id'),
	('ids', '''{1,NULL}''', '22004 ids must not contain nulls'),
	('ids', '''{{1,2}}''', '2202E ids must be an array of one dimension'),
	('ids', '''{{1},{2}}''', '2202E ids must be an array of one dimension'),
	('tokens', '''{1}''', '2202E tokens must have an element for each id'),
	('tokens', '''{1,2,3}''', '2202E tokens must have an element for each id'),
	('tokens', '''{}''', '2202E tokens must have an element for each id'),
	('tokens', 'NULL', '2202E tokens must have an element for each id'),
	('tokens', '''{1,NULL}''', '22004 tokens must not contain nulls'),
	('tokens', '''{{1,2}}''', '2202E tokens must be an array of one dimension'),
	('dead_letters', 'NULL', '22004 dead_letters must not be null'),
	('paused', 'NULL', '22004 paused must not be null'),
	('backoff_base', '''0''', '22023 backoff_base must be positive'),
	('backoff_base', '''-1 month''', '22023 backoff_base must be positive'),
	('backoff_base', '''300000 years''', '22008 backoff_base is out of range'),
	('backoff_base', '''infinity''', '22023 backoff_base must be finite'),
	('backoff_cap', '''0''', '22023 backoff_cap must be positive'),
	('backoff_cap', '''-1 second''', '22023 backoff_cap must be positive'),
	('backoff_cap', '''999 ms''', '22023 backoff_cap must not be less than backoff_base'),
	('backoff_cap', '''1 s'', backoff_base => ''1.000001 s''', '22023 backoff_cap must not be less than backoff_base'),
	('backoff_cap', '''infinity''', '22023 backoff_cap must be finite'),
	('dead_letter_ttl', '''0''', '22023 dead_letter_ttl must be positive'),
	('dead_letter_ttl', '''-1 day''', '22023 dead_letter_ttl must be positive'),
	('dead_letter_ttl', '''infinity''', '22023 dead_letter_ttl must be finite'),
	('jitter', '''much''', '22023 jitter "much" is not known'),
	('jitter', '''FULL''', '22023 jitter "FULL" is not known'),
	('jitter', '''''', '22023 jitter "" is not known'),
	('shared_with', '''{no such role}''', '42704 role "no such role" does not exist (no hint)'),
	('shared_with', '''{pg_monitor,NULL}''', '22004 shared_with must not contain nulls'),
	('shared_with', '''{{pg_monitor}}''', '2202E shared_with must be an array of one dimension');

SET LOCAL idempotency.max_response_size = '1kB';
SELECT set_eq('SELECT DISTINCT argument FROM wrong', 'SELECT DISTINCT argument FROM call', 'no argument is left out');
-- 15 and 16 refuse the literal, 17 and later know it and we refuse it.
SELECT CASE WHEN w.value LIKE '%infinity%' AND current_setting('server_version_num')::int < 170000
	THEN alike(r.got, '22007 %', r.command)
	ELSE is(r.got, w.raised, r.command) END
  FROM wrong AS w JOIN call AS c USING (argument),
	   LATERAL (SELECT replace(c.command, '…', w.value)) AS x(command),
	   LATERAL (SELECT left(x.command, 120), pg_temp.raised(x.command)) AS r(command, got);

-- Arrays beside the payloads.

SELECT is(pg_temp.raised(format('SELECT * FROM idem_enqueue_many(''q'', %s)', arguments)), raised, arguments)
  FROM (VALUES
	('''{{1,2}}''', '2202E payloads must be an array of one dimension'),
	('''{{1},{2}}''', '2202E payloads must be an array of one dimension'),
	('''{1,2}'', ''{{a,b}}''', '2202E keys must be an array of one dimension'),
	('''{1,2}'', ''{a}''', '2202E keys must have an element for each payload'),
	('''{1,2}'', ''{a,b,c}''', '2202E keys must have an element for each payload'),
	('''{1,2}'', ''{}''', '2202E keys must have an element for each payload'),
	('''{}'', ''{a}''', '2202E keys must have an element for each payload'),
	('NULL, ''{a}''', '2202E keys must have an element for each payload'),
	('''{1,2}'', message_groups => ''{{a,b}}''', '2202E message_groups must be an array of one dimension'),
	('''{1,2}'', message_groups => ''{a}''', '2202E message_groups must have an element for each payload'),
	('''{1,2}'', message_groups => ''{}''', '2202E message_groups must have an element for each payload'),
	('''{1,2}'', headers => ''{{1,2}}''', '2202E headers must be an array of one dimension'),
	('''{1,2}'', headers => ''{1,2,3}''', '2202E headers must have an element for each payload'),
	('''{1,2}'', headers => ''{}''', '2202E headers must have an element for each payload')) AS t(arguments, raised);
SELECT is(pg_temp.raised(format('SELECT idem_nack_many(''{1,2}'', ''{1,2}'', %s)', errors)), raised, 'errors: ' || errors)
  FROM (VALUES
	('''{{1,2}}''', '2202E errors must be an array of one dimension'),
	('''{1}''', '2202E errors must have an element for each id'),
	('''{1,2,3}''', '2202E errors must have an element for each id'),
	('''{}''', '2202E errors must have an element for each id'),
	('ARRAY[to_jsonb(repeat(''x'', 1017)), NULL]', '54000 error of the message is too large')) AS t(errors, raised);
SELECT is(pg_temp.raised('SELECT idem_redrive(''q'', ''{{1,2}}'')'), '2202E ids must be an array of one dimension', 'ids of a redrive');
SELECT results_eq(
	$$SELECT e.duplicate FROM idem_enqueue_many('bounds', '[5:6]={1,2}', '[-1:0]={a,b}', message_groups => '[2:3]={NULL,g}', headers => '[7:8]={1,NULL}') AS e$$,
	$$VALUES (false), (false)$$, 'where an array begins does not matter');
SELECT lives_ok(
	$$SELECT idem_nack_many(('[5:6]={' || string_agg(id::text, ',') || '}')::int8[], ('[0:1]={' || string_agg(token::text, ',') || '}')::int8[], '[-7:-6]={1,2}') FROM idem_dequeue('bounds', 2)$$,
	'nor for the others');
SELECT results_eq($$SELECT payload, history -> 0 -> 'error' FROM idem_messages WHERE queue = 'bounds' ORDER BY id$$,
	$$VALUES ('1'::jsonb, '1'::jsonb), ('2', '2')$$, 'of which each element goes to its message');

-- What fits.

SELECT lives_ok(command, left(command, 120)) FROM unnest(ARRAY[
	'SELECT idem_enqueue(repeat(''q'', 63), ''1'', repeat(''k'', 512), ''200000 years'', 2147483647, -32768, repeat(''g'', 512), ''1'', ''200000 years'', current_user)',
	'SELECT idem_enqueue(''q'', ''1'', NULL, NULL, NULL, 32767, NULL, NULL, NULL, NULL)',
	'SELECT idem_enqueue(''q'', ''1'', NULL, ''0'', 0)',
	'SELECT idem_enqueue(''q'', to_jsonb(repeat(''x'', 1016)), headers => to_jsonb(repeat(''x'', 1016)))',
	'SELECT idem_enqueue(''q'', ''1'', ''k'', ttl => ''1 ms'')',
	'SELECT * FROM idem_receive(repeat(''s'', 63), repeat(''m'', 448), ''1'', repeat(''q'', 63), NULL, NULL, NULL, NULL)',
	'SELECT * FROM idem_dequeue(''none'', 10000, ''200000 years'', ''0'', NULL)',
	'SELECT * FROM idem_dequeue(''none'', 1, ''1 ms'', NULL)',
	'SELECT * FROM idem_dequeue(''q'', wait => ''30 seconds'')',
	'SELECT idem_nack(id, token, to_jsonb(repeat(''x'', 1016)), ''200000 years'') FROM idem_dequeue(''q'')',
	'SELECT idem_redrive(''q'', NULL, 2147483647, NULL)',
	'SELECT idem_purge(''none'', true, NULL, NULL)',
	'SELECT idem_configure_queue(''c'', 0, ''1 ms'', ''1 ms'', ''none'', ''1 ms'', ''{}'', true)',
	'SELECT idem_configure_queue(''c'', 2147483647, ''36500 days'', ''36500 days'', ''decorrelated'', ''36500 days'', ARRAY[current_user::text], false)',
	'SELECT idem_configure_queue(''c'', NULL, NULL, NULL, NULL, NULL, NULL, false)']) AS command;
SET LOCAL idempotency.max_response_size = '8MB';

-- idem_await, which answers nowhere but outside of a transaction block: see
-- deliveries.sql. Here it says so before it looks at anything.

SELECT is(pg_temp.raised(command), '25001 cannot wait without a snapshot inside a transaction block', command)
  FROM unnest(ARRAY['CALL idem_await(''q'')', 'CALL idem_await(NULL, NULL, NULL)', 'CALL idem_await(''q'', ''-1 s'')']) AS command;

-- 42501, ID002, ID003: whose queue, whose key, whose message.

CREATE ROLE idem_ann;
GRANT USAGE ON SCHEMA idem TO idem_ann;
SELECT is(outcome, 'claimed', 'a key of one''s own in the scope of a queue') FROM idem_claim('mine', scope => 'queue:q');
CREATE FUNCTION pg_temp.tell(command text) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE, SQLERRM, NULLIF(detail, ''), hint);
END
$$;
SELECT is(pg_temp.tell('SELECT idem_enqueue(''q'', ''1'', ''mine'')'), 'ID002
key "mine" is used for something else than a message
It is a key in the scope "queue:q", which is that of the messages of a queue.
Use another scope for keys of your own.', 'ID002');
SELECT is(pg_temp.tell('SELECT idem_ack(987654321, 1)'), 'ID003
message 987654321 is not the caller''s any more
It is not in a queue of the caller: it was acknowledged or purged, or is a dead letter.
Undo the work if you can; do not repeat it under this token.', 'ID003: gone');
SELECT is(replace(pg_temp.tell(format('SELECT idem_extend(%s, 1)', id)), id::text, '…'), 'ID003
message … is not the caller''s any more
It has another token: the lease ran out and somebody took it over, or it was given back.
Undo the work if you can; do not repeat it under this token.', 'ID003: another token') FROM idem_enqueue('id003', '1') AS id;
SELECT is(pg_temp.tell('SELECT * FROM idem_enqueue_many(''q'', ''{1,2}'', ''{a,b,c}'')'), '2202E
keys must have an element for each payload
The number of payloads is 2, that of elements 3.
Put null where a message has none, or pass null instead of the array.', '2202E');
SELECT is(pg_temp.tell('SELECT idem_ack_many(''{1,2}'', ''{1}'')'), '2202E
tokens must have an element for each id
The number of ids is 2, that of elements 1.
Pass the ids and the tokens that idem_dequeue returned for the messages.', '2202E for tokens');
SELECT is(pg_temp.tell('SELECT idem_enqueue(repeat(''é'', 32), ''1'')'), '54000
queue is too long
It has 64 bytes, the limit is 63.
A queue is a name, such as ''mail''; it need not be created.', '54000');
SET LOCAL SESSION AUTHORIZATION idem_ann;
SELECT is(pg_temp.tell(format('SELECT idem_enqueue(''q'', ''1'', owner => %L)', owner)), format('42501
permission denied for queue "q" of role "%s"
Its owner can share it: see idem_configure_queue.', owner), '42501') FROM unnest('{pg_monitor,postgres}'::text[]) AS owner;
RESET SESSION AUTHORIZATION;

-- 25006: read-only transaction, and before anything else is looked at.

SELECT is(pg_temp.raised(format('DO $do$ BEGIN SET LOCAL transaction_read_only = on; EXECUTE %L; END $do$', command)),
	format('25006 cannot execute %s() in a read-only transaction (no hint)', substring(command FROM 'idem_\w+')),
	'read-only: ' || command)
  FROM unnest(ARRAY[
	'SELECT idem_enqueue(''q'', ''1'')',
	'SELECT idem_enqueue(NULL, NULL)',
	'SELECT * FROM idem_enqueue_many(''q'', ''{1}'')',
	'SELECT * FROM idem_enqueue_many(''q'', ''{}'')',
	'SELECT * FROM idem_receive(''s'', ''1'', ''1'')',
	'SELECT * FROM idem_dequeue(''q'')',
	'SELECT * FROM idem_dequeue(''none'')',
	'SELECT idem_ack(1, 1)',
	'SELECT idem_ack_many(''{}'', ''{}'')',
	'SELECT idem_nack(1, 1)',
	'SELECT idem_nack_many(''{}'', ''{}'')',
	'SELECT idem_extend(1, 1)',
	'SELECT idem_extend_many(''{}'', ''{}'')',
	'SELECT idem_redrive(''q'')',
	'SELECT idem_redrive(''q'', ''{}'')',
	'SELECT idem_purge(''q'')',
	'SELECT idem_configure_queue(''q'')']) AS command;
SELECT lives_ok(
	$sql$DO $do$ BEGIN
		SET LOCAL transaction_read_only = on;
		PERFORM FROM idem_queues;
		PERFORM FROM idem_messages;
		PERFORM FROM idem_dead_letters;
	END $do$ $sql$, 'read-only: the views work');

-- Not in the encoding of the database: never gets as far as us.

SELECT throws_ok($$SELECT idem_enqueue(E'\xff', '1')$$, '22021', NULL, 'a queue that is not UTF-8');
SELECT throws_ok($$SELECT * FROM idem_receive(E'a\000b', '1', '1')$$, '22021', NULL, 'a source with a zero byte');
SELECT throws_ok($$SET LOCAL idempotency.dead_letter_ttl = 0$$, '22023', NULL, 'dead_letter_ttl is not zero');

-- What was refused has left nothing.

SELECT set_eq($$SELECT queue FROM idem_queues$$, ARRAY[repeat('q', 63), 'q', 'bounds', 'c', 'id003'], 'there is what was done');
SELECT results_eq($$SELECT count(*), count(*) FILTER (WHERE state = 'ready') FROM idem_messages WHERE queue = 'q'$$,
	$$VALUES (4::bigint, 2::bigint)$$, 'and no message else');
SELECT set_eq($$SELECT key FROM idem_key$$, ARRAY[repeat('k', 512), 'k', repeat('s', 63) || '/' || repeat('m', 448), 'a', 'b'], 'no key else');
SELECT lives_ok($$SELECT idem_release('mine', 'queue:q')$$, '(released)');
SELECT results_eq($$SELECT payload, idem_ack(id, token)::text FROM idem_enqueue('after all', '1', 'k', message_group => 'g') AS e, idem_dequeue('after all')$$,
	$$VALUES ('1'::jsonb, '')$$, 'the session works as ever');

-- Without the extension.

DROP EXTENSION idempotency;
SELECT throws_ok($$SELECT idem_enqueue('q', '1')$$, '42883', NULL, 'no function without the extension');
CREATE FUNCTION lonely_enqueue(queue text, payload jsonb, key text, delay interval, max_attempts int, priority int,
	message_group text, headers jsonb, ttl interval, owner text) RETURNS int8 LANGUAGE c AS 'idempotency', 'idem_enqueue';
CREATE FUNCTION lonely_ack(id int8, token int8) RETURNS void LANGUAGE c AS 'idempotency', 'idem_ack';
SELECT throws_ok(command, '42704', NULL, 'made by hand, it finds no extension: ' || command)
  FROM unnest(ARRAY['SELECT lonely_enqueue(''q'', ''1'', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL)', 'SELECT lonely_ack(1, 1)']) AS command;
CREATE EXTENSION idempotency SCHEMA idem;
SELECT is(idem_enqueue('q', '1', 'k'), 1::bigint, 'created again, in the same transaction, it works');
SELECT set_eq($$SELECT queue, ready, dead, paused FROM idem_queues$$, $$VALUES ('q', 1::bigint, 0::bigint, false)$$, 'and knows nothing of before');

SELECT * FROM finish();
ROLLBACK;
