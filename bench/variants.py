"""What each variant sends to the server: pgbench scripts, by operation and variant.

A script is the making of a key (KEYS), the same for all variants of a case, and
what follows (SCRIPTS). The measured figures are of both; "empty" has the same
round trips as the rest of its operation and does nothing in them. The tables and
functions of those who do it by hand are in setup.sql.

    idem      this extension
    hand      two statements: INSERT ... ON CONFLICT DO NOTHING, then UPDATE
    lean      the same on the least table that works: key, two times, response
    uuid      that, with a key of type uuid instead of text
    plpgsql   the same two steps as a pair of functions, which take an advisory lock first
    cte       one statement for key and work; it cannot answer a repeat
    select    a SELECT by primary key, for repeats
    guarded   steps by hand that check the token of the lease, as ours do
    floor     one bare INSERT of the very row that we leave behind
    empty     nothing, in as many round trips

and for queues

    skip      a table of jobs with a state, by SKIP LOCKED
    mq        the method of pgmq: functions in PL/pgSQL with the name of the queue
    mq_sql    the same statements, prepared, without the functions
"""

NAMES = {
    "idem": "idempotency",
    "hand": "by hand",
    "lean": "by hand, lean",
    "uuid": "by hand, lean, key uuid",
    "plpgsql": "PL/pgSQL pair",
    "cte": "CTE by hand",
    "select": "prepared SELECT",
    "guarded": "by hand, with guard",
    "floor": "bare INSERT",
    "empty": "empty transaction",
    "skip": "SKIP LOCKED by hand",
    "mq": "pgmq's method",
    "mq_sql": "pgmq's method, prepared",
}

# 49 bytes as text, 60 or so as stored
RESPONSE = """'{"id": 1234567, "status": "paid", "amount": 4200}'"""

# The number of a key that is there already, among the first 1000 or the first 10.
REPEAT = r"\set n 100000000000 + random(0, 999)"
HOT = r"\set n 100000000000 + random(0, 9)"
LARGE = r"\set n random(0, :present - 1)"

# How a fresh key of 36 bytes is made, and what the keys are called that are there
# (REPEATED in the scripts; present_key() in setup.sql says the same).
# random: a UUIDv4. ordered: like a UUIDv7, milliseconds first. text: not a UUID.
KEYS = {
    "random": (
        r"SELECT gen_random_uuid() AS key \gset",
        "'00000000-0000-4000-8000-' || :n"),
    "ordered": (
        r"SELECT left(t, 8) || '-' || right(t, 4) || '-7' || substr(gen_random_uuid()::text, 16) AS key FROM "
        r"lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') AS t \gset",
        "'00000000-0000-4000-8000-' || :n"),
    "text": (
        r"SELECT 'order-' || left(encode(uuid_send(gen_random_uuid()), 'hex'), 30) AS key \gset",
        "'order-made-by-somebody-x' || :n"),
}
REPEATED_LARGE = "md5(:n::text)::uuid::text"

# A hundred fresh keys, and a response for each.
BATCH = (r"SELECT array_agg(gen_random_uuid()::text) AS keys, "
         r"array_fill(RESPONSE::jsonb, ARRAY[100]) AS responses FROM generate_series(1, 100) \gset")

# Few keys, and all clients at the same ones: a client does four transactions with
# four keys to choose from, and goes on to the next four. About one in 16 is fresh.
STAMPEDE = r"""
\set i :i + 1
\set n 200000000000 + :i / 4 * 10 + random(0, 3)
""".strip()

SCRIPTS = {}

# Claim and finish of a fresh key, in one transaction.
SCRIPTS["fresh"] = {
    "empty": """
BEGIN;
SELECT :key::text;
SELECT :key::text;
COMMIT;
""",
    "idem": """
BEGIN;
SELECT outcome, response FROM idem_claim(:key);
SELECT idem_finish(:key, RESPONSE);
COMMIT;
""",
    "hand": """
BEGIN;
INSERT INTO hand (scope, key, created_at, expires_at)
VALUES ('', :key, clock_timestamp(), clock_timestamp() + '24 hours') ON CONFLICT DO NOTHING;
UPDATE hand SET response = RESPONSE, finished_at = clock_timestamp() WHERE scope = '' AND key = :key;
COMMIT;
""",
    "lean": """
BEGIN;
INSERT INTO lean (key, expires_at) VALUES (:key, now() + '24 hours') ON CONFLICT DO NOTHING;
UPDATE lean SET response = RESPONSE WHERE key = :key;
COMMIT;
""",
    "uuid": """
BEGIN;
INSERT INTO lean_uuid (key, expires_at) VALUES (:key, now() + '24 hours') ON CONFLICT DO NOTHING;
UPDATE lean_uuid SET response = RESPONSE WHERE key = :key;
COMMIT;
""",
    "plpgsql": """
BEGIN;
SELECT outcome, response FROM hand_claim(:key);
SELECT hand_finish(:key, RESPONSE);
COMMIT;
""",
    "floor": """
BEGIN;
INSERT INTO floor (expires_at, claimed_at, finished_at, id, owner, scope, key, response)
VALUES (clock_timestamp() + '24 hours', clock_timestamp(), clock_timestamp(), :key::uuid, 10, '', NULL,
RESPONSE);
SELECT :key::text;
COMMIT;
""",
}

# A key that is finished comes again.
SCRIPTS["replay"] = SCRIPTS["hot"] = {
    "idem": """
SELECT outcome, response FROM idem_claim(REPEATED);
""",
    "select": """
SELECT response FROM hand WHERE scope = '' AND key = REPEATED AND expires_at > clock_timestamp();
""",
    "plpgsql": """
SELECT outcome, response FROM hand_claim(REPEATED);
""",
}

# Whoever claims the key does the work; all others get the response.
SCRIPTS["stampede"] = {
    "idem": r"""
BEGIN;
SELECT (outcome = 'claimed')::int AS mine, response FROM idem_claim(REPEATED) \gset
\if :mine
SELECT idem_finish(REPEATED, RESPONSE);
\endif
COMMIT;
""",
    "hand": r"""
BEGIN;
WITH k AS (INSERT INTO hand (scope, key, created_at, expires_at)
VALUES ('', REPEATED, clock_timestamp(), clock_timestamp() + '24 hours') ON CONFLICT DO NOTHING RETURNING 1)
SELECT count(*) AS mine FROM k \gset
\if :mine
UPDATE hand SET response = RESPONSE, finished_at = clock_timestamp() WHERE scope = '' AND key = REPEATED;
\else
SELECT response FROM hand WHERE scope = '' AND key = REPEATED;
\endif
COMMIT;
""",
    "plpgsql": r"""
BEGIN;
SELECT (outcome = 'claimed')::int AS mine, response FROM hand_claim(REPEATED) \gset
\if :mine
SELECT hand_finish(REPEATED, RESPONSE);
\endif
COMMIT;
""",
}

# A hundred fresh keys in a transaction.
SCRIPTS["batch"] = {
    "empty": """
BEGIN;
SELECT :keys::text[];
SELECT cardinality(:responses::jsonb[]);
COMMIT;
""",
    "idem": """
BEGIN;
SELECT key, outcome FROM idem_claim_many(:keys);
SELECT count(*) FROM idem_finish_many(:keys, :responses);
COMMIT;
""",
    "hand": """
BEGIN;
INSERT INTO hand (scope, key, created_at, expires_at)
SELECT '', k, clock_timestamp(), clock_timestamp() + '24 hours' FROM unnest(:keys::text[]) AS k
ON CONFLICT DO NOTHING RETURNING key;
UPDATE hand SET response = r.response, finished_at = clock_timestamp()
FROM unnest(:keys::text[], :responses::jsonb[]) AS r (key, response)
WHERE hand.scope = '' AND hand.key = r.key;
COMMIT;
""",
    "floor": """
BEGIN;
SELECT :keys::text[];
INSERT INTO floor (expires_at, claimed_at, finished_at, id, owner, scope, key, response)
SELECT clock_timestamp() + '24 hours', clock_timestamp(), clock_timestamp(), k::uuid, 10, '', NULL, r
FROM unnest(:keys::text[], :responses::jsonb[]) AS u (k, r);
COMMIT;
""",
}

# Key and work (a row in a table of orders) in one round trip. Both variants store a
# number as the response; ours is the order's, which a CTE cannot know in advance.
SCRIPTS["once"] = {
    "empty": """
SELECT :key::text, 'x', '{"id":1}'::jsonb;
""",
    "idem": """
SELECT outcome, response
FROM idem_once(:key, 'INSERT INTO orders (account, amount) VALUES ($1, $2) RETURNING id',
ARRAY['7', '42.00']);
""",
    "cte": """
WITH k AS (INSERT INTO hand (scope, key, created_at, finished_at, expires_at, response)
VALUES ('', :key, clock_timestamp(), clock_timestamp(), clock_timestamp() + '24 hours', '1234567')
ON CONFLICT DO NOTHING RETURNING key),
o AS (INSERT INTO orders (account, amount) SELECT 7, 42.00 FROM k RETURNING id)
SELECT 'claimed' AS outcome, to_jsonb(id) AS response FROM o;
""",
}

SCRIPTS["once-replay"] = {
    "idem": """
SELECT outcome, response
FROM idem_once(REPEATED, 'INSERT INTO orders (account, amount) VALUES ($1, $2) RETURNING id',
ARRAY['7', '42.00']);
""",
    "select": SCRIPTS["replay"]["select"],
}

# A claim that is committed before the work, and finished in a second transaction.
CLAIM_LEASE = r"SELECT outcome, token FROM idem_claim(:key, lease => '30 s') \gset"
HAND_LEASE = r"""
INSERT INTO hand_lease AS l (scope, key, token, created_at, lease_until, expires_at)
VALUES ('', :key, gen_random_uuid(), clock_timestamp(), clock_timestamp() + '30 s',
clock_timestamp() + '24 hours')
ON CONFLICT (scope, key) DO UPDATE SET token = EXCLUDED.token, lease_until = EXCLUDED.lease_until
WHERE l.finished_at IS NULL AND l.lease_until < now() RETURNING token \gset
""".strip()
HAND_FINISH = """
UPDATE hand_lease SET response = RESPONSE, finished_at = clock_timestamp()
WHERE scope = '' AND key = :key AND token = :token::uuid;
""".strip()

SCRIPTS["lease"] = {
    "empty": r"""
SELECT :key::text AS token \gset
SELECT :key::text, :token::text;
""",
    "idem": f"""
{CLAIM_LEASE}
SELECT idem_finish(:key, RESPONSE, token => :token);
""",
    "hand": f"""
{HAND_LEASE}
{HAND_FINISH}
""",
}


def flow(first, ask, done, last):
    """A flow of five steps: for each, is it done? and then: now it is."""
    steps = "\n".join(f"{ask}\n{done}".replace("STEP", f"step-{i}") for i in range(1, 6))
    return f"{first}\n{steps}\n{last}\n"


HAND_ASK = "SELECT result FROM hand_step WHERE key = :key AND step = 'STEP';"

# A lease, five steps, each of them committed, and the finish.
SCRIPTS["steps"] = {
    "empty": flow(r"SELECT :key::text AS token \gset", "SELECT :key::text, :token::text;",
                  "SELECT :key::text, :token::text;", "SELECT :key::text, :token::text;"),
    "idem": flow(
        CLAIM_LEASE,
        "SELECT done, result FROM idem_step(:key, 'STEP', token => :token);",
        """SELECT idem_step_finish(:key, 'STEP', '{"done": true}', token => :token);""",
        "SELECT idem_finish(:key, RESPONSE, token => :token);"),
    "hand": flow(
        HAND_LEASE, HAND_ASK,
        """INSERT INTO hand_step (key, step, finished_at, result)
VALUES (:key, 'STEP', clock_timestamp(), '{"done": true}') ON CONFLICT DO NOTHING;""",
        HAND_FINISH),
    "guarded": flow(
        HAND_LEASE, HAND_ASK,
        """INSERT INTO hand_step (key, step, finished_at, result)
SELECT key, 'STEP', clock_timestamp(), '{"done": true}' FROM hand_lease
WHERE scope = '' AND key = :key AND token = :token::uuid FOR UPDATE ON CONFLICT DO NOTHING;""",
        HAND_FINISH),
}

# As fresh, but what is written expires at once, and is then removed (EXPIRE).
SCRIPTS["expiry"] = {
    "empty": SCRIPTS["fresh"]["empty"],
    "idem": SCRIPTS["fresh"]["idem"].replace("idem_claim(:key)", "idem_claim(:key, '1 ms')"),
    "hand": SCRIPTS["fresh"]["hand"].replace("24 hours", "1 ms"),
}

# Each removes up to 10000 rows, and says how many there were.
EXPIRE = {
    "idem": "SELECT idem_expire(10000)",
    "hand": """
WITH d AS (DELETE FROM hand WHERE ctid = ANY (ARRAY(
SELECT ctid FROM hand WHERE expires_at < clock_timestamp() LIMIT 10000)) RETURNING 1)
SELECT count(*) FROM d
""",
}

SCRIPTS["stored"] = SCRIPTS["fresh"]


# Messages: in, out on lease, done; each in a transaction of its own. One at a time, and a
# hundred at a time.
PAYLOAD = """'{"to": "somebody@example.org", "template": "receipt", "order": 1234567, "amount": "42.00"}'"""

SKIP_TAKE = """
UPDATE job SET state = 'running', attempts = attempts + 1, locked_until = clock_timestamp() + '30 s'
WHERE id = ANY (ARRAY(SELECT id FROM job WHERE state = 'ready' AND run_at <= clock_timestamp()
ORDER BY run_at, id LIMIT {n} FOR UPDATE SKIP LOCKED)) RETURNING id, payload, attempts
""".strip()
MQ_TAKE = """
WITH next AS (SELECT msg_id FROM mq WHERE vt <= clock_timestamp()
ORDER BY msg_id LIMIT {n} FOR UPDATE SKIP LOCKED)
UPDATE mq AS m SET vt = clock_timestamp() + '30 s', read_ct = m.read_ct + 1
FROM next WHERE m.msg_id = next.msg_id RETURNING m.msg_id, m.message, m.read_ct
""".strip()

SCRIPTS["message"] = {
    "empty": r"""
SELECT PAYLOAD::jsonb;
SELECT 1 AS id, PAYLOAD::jsonb AS payload \gset
SELECT :id::bigint;
""",
    "idem": r"""
SELECT idem_enqueue('q', PAYLOAD);
SELECT id, token, payload, attempt FROM idem_dequeue('q') \gset
SELECT idem_ack(:id, :token);
""",
    "skip": rf"""
INSERT INTO job (payload) VALUES (PAYLOAD) RETURNING id;
{SKIP_TAKE.format(n=1)} \gset
DELETE FROM job WHERE id = :id;
""",
    "mq": r"""
SELECT mq_send('mq', ARRAY[PAYLOAD::jsonb]);
SELECT msg_id, message, read_ct FROM mq_read('mq', 1) \gset
SELECT mq_delete('mq', ARRAY[:msg_id::bigint]);
""",
    "mq_sql": rf"""
INSERT INTO mq (message) VALUES (PAYLOAD) RETURNING msg_id;
{MQ_TAKE.format(n=1)} \gset
DELETE FROM mq WHERE msg_id = :msg_id RETURNING msg_id;
""",
}
SCRIPTS["horizon"] = SCRIPTS["message"]

SCRIPTS["messages"] = {
    "idem": r"""
SELECT count(*) FROM idem_enqueue_many('q', array_fill(PAYLOAD::jsonb, ARRAY[100]));
SELECT array_agg(id) AS ids, array_agg(token) AS tokens, count(payload) FROM idem_dequeue('q', 100) \gset
SELECT idem_ack_many(:ids, :tokens);
""",
    "skip": rf"""
INSERT INTO job (payload) SELECT unnest(array_fill(PAYLOAD::jsonb, ARRAY[100])) RETURNING id;
WITH taken AS ({SKIP_TAKE.format(n=100)})
SELECT array_agg(id) AS ids, count(payload) FROM taken \gset
DELETE FROM job WHERE id = ANY (:ids::bigint[]);
""",
    "mq": r"""
SELECT count(*) FROM mq_send('mq', array_fill(PAYLOAD::jsonb, ARRAY[100]));
SELECT array_agg(msg_id) AS ids, count(message) FROM mq_read('mq', 100) \gset
SELECT count(*) FROM mq_delete('mq', :ids::bigint[]);
""",
    "mq_sql": rf"""
INSERT INTO mq (message) SELECT unnest(array_fill(PAYLOAD::jsonb, ARRAY[100])) RETURNING msg_id;
WITH next AS (SELECT msg_id FROM mq WHERE vt <= clock_timestamp()
ORDER BY msg_id LIMIT 100 FOR UPDATE SKIP LOCKED),
taken AS (UPDATE mq AS m SET vt = clock_timestamp() + '30 s', read_ct = m.read_ct + 1
FROM next WHERE m.msg_id = next.msg_id RETURNING m.msg_id, m.message)
SELECT array_agg(msg_id) AS ids, count(message) FROM taken \gset
DELETE FROM mq WHERE msg_id = ANY (:ids::bigint[]);
""",
}

# The outbox, and the consumer whose effect commits with the acknowledgement.
SCRIPTS["enqueue"] = {
    "idem": "SELECT idem_enqueue('q', PAYLOAD);",
    "skip": "INSERT INTO job (payload) VALUES (PAYLOAD) RETURNING id;",
    "mq": "SELECT mq_send('mq', ARRAY[PAYLOAD::jsonb]);",
    "mq_sql": "INSERT INTO mq (message) VALUES (PAYLOAD) RETURNING msg_id;",
}

QUEUE = ("message", "messages", "enqueue", "horizon")


def script(case, variant):
    """The script of a variant, and how many of its commands make the key."""
    if case.operation in QUEUE:
        return SCRIPTS[case.operation][variant].strip().replace("PAYLOAD", PAYLOAD) + "\n", 0
    fresh, repeated = KEYS[case.key]
    if case.operation in ("replay", "once-replay") and case.large:
        prelude, repeated = LARGE, REPEATED_LARGE
    else:
        prelude = {"replay": REPEAT, "once-replay": REPEAT, "hot": HOT, "stampede": STAMPEDE,
                   "batch": BATCH}.get(case.operation, fresh)
    text = prelude + "\n" + SCRIPTS[case.operation][variant].lstrip()
    return text.replace("REPEATED", repeated).replace("RESPONSE", RESPONSE), len(prelude.splitlines())
