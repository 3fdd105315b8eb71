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

and of queues:

    hand        a table of jobs: SKIP LOCKED, a state, and a partial index of those that are ready
    direct      the same, which deletes the job as it takes it: one statement, no lease
    pgmq        what users of pgmq call: PL/pgSQL that makes a statement of the name of the queue
    statements  those statements, prepared: what its method costs without the functions
    empty     nothing, in as many round trips
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
    "direct": "by hand, no lease",
    "pgmq": "pgmq's functions",
    "statements": "pgmq's statements",
    "empty": "empty transaction",
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

# 92 bytes as text
PAYLOAD = """'{"order": 1234567, "customer": 7654321, "amount": 4200, "currency": "EUR", "status": "paid"}'"""
PAYLOADS = r"SELECT array_fill(PAYLOAD::jsonb, ARRAY[100]) AS payloads \gset"

# Messages: into the queue, out of it, done. Who takes one gets it, and has it for 30 s.
ENQUEUE = {
    "empty": "SELECT PAYLOAD::jsonb;",
    "idem": "SELECT idem_enqueue('bench', PAYLOAD);",
    "hand": "INSERT INTO job (payload) VALUES (PAYLOAD) RETURNING id;",
    "pgmq": "SELECT * FROM mq_send('bench', PAYLOAD);",
    "statements": "INSERT INTO mq_bench (vt, message, headers) VALUES (clock_timestamp(), PAYLOAD, NULL) "
                  "RETURNING msg_id;",
}
ENQUEUE["direct"] = ENQUEUE["hand"]

JOB = """
UPDATE job SET state = 'running', attempt = attempt + 1, locked_until = clock_timestamp() + '30 s'
WHERE id = ANY (ARRAY(SELECT id FROM job WHERE state = 'ready' AND run_at <= clock_timestamp()
ORDER BY run_at LIMIT COUNT FOR UPDATE SKIP LOCKED)) RETURNING id, attempt, payload
""".strip()
MQ_READ = """
WITH c AS (SELECT msg_id FROM mq_bench WHERE vt <= clock_timestamp() ORDER BY msg_id LIMIT COUNT
FOR UPDATE SKIP LOCKED)
UPDATE mq_bench AS m SET vt = clock_timestamp() + '30 s', read_ct = read_ct + 1
FROM c WHERE m.msg_id = c.msg_id RETURNING m.msg_id, read_ct, enqueued_at, vt, message, headers
""".strip()

DEQUEUE = {
    "empty": r"SELECT 1 AS id, 2 AS token, PAYLOAD::jsonb AS payload \gset",
    "idem": r"SELECT id, token, payload FROM idem_dequeue('bench') \gset",
    "hand": JOB.replace("COUNT", "1") + r" \gset",
    "direct": r"""
DELETE FROM job WHERE id = (SELECT id FROM job WHERE state = 'ready' AND run_at <= clock_timestamp()
ORDER BY run_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, attempt, payload \gset
""".strip(),
    "pgmq": r"SELECT * FROM mq_read('bench', 30, 1) \gset",
    "statements": MQ_READ.replace("COUNT", "1") + r" \gset",
}

ACK = {
    "empty": "SELECT :id::bigint, :token::bigint;",
    "idem": "SELECT idem_ack(:id, :token);",
    "hand": "DELETE FROM job WHERE id = :id AND attempt = :attempt RETURNING id;",
    "direct": "",
    "pgmq": "SELECT mq_delete('bench', :msg_id);",
    "statements": "DELETE FROM mq_bench WHERE msg_id = :msg_id RETURNING msg_id;",
}

SCRIPTS["queue"] = {variant: f"{ENQUEUE[variant]}\n{DEQUEUE[variant]}\n{ACK[variant]}\n"
                    for variant in ("empty", "idem", "hand", "pgmq", "statements")}
SCRIPTS["queue-depth"] = SCRIPTS["queue"]
SCRIPTS["queue-in"] = {variant: text + "\n" for variant, text in ENQUEUE.items()}

# While a look takes long all that it might find may be taken by others; whoever finds
# nothing looks once more, and gives up then.
ONE = {
    "idem": r"SELECT count(*) AS found, max(id) AS id, max(token) AS token, (array_agg(payload))[1] AS payload "
            r"FROM idem_dequeue('bench') \gset",
    "hand": rf"""
WITH j AS ({JOB.replace("COUNT", "1")})
SELECT count(*) AS found, max(id) AS id, max(attempt) AS attempt, (array_agg(payload))[1] AS payload FROM j \gset
""".strip(),
    "pgmq": r"SELECT count(*) AS found, max(msg_id) AS msg_id, (array_agg(message))[1] AS message "
            r"FROM mq_read('bench', 30, 1) \gset",
    "statements": rf"""
WITH r AS ({MQ_READ.replace("COUNT", "1")})
SELECT count(*) AS found, max(msg_id) AS msg_id, (array_agg(message))[1] AS message FROM r \gset
""".strip(),
}
SCRIPTS["queue-snapshot"] = {
    variant: f"{ENQUEUE[variant]}\n{one}\n\\if :found = 0\n{one}\n\\endif\n"
             f"\\if :found > 0\n{ACK[variant]}\n\\endif\n"
    for variant, one in ONE.items()}

# The effect and the end of the message in one transaction.
EFFECT = "INSERT INTO orders (account, amount) VALUES (7, 42.00);"
SCRIPTS["queue-effect"] = {
    variant: "\n".join(["BEGIN;", DEQUEUE[variant], "SELECT 1;" if variant == "empty" else EFFECT, ACK[variant],
                        "COMMIT;", ""]).replace("\n\n", "\n")
    for variant in DEQUEUE}

# A hundred at a time.
SCRIPTS["queue-batch"] = {
    "empty": r"""
SELECT cardinality(:payloads::jsonb[]);
SELECT array_fill(1, ARRAY[100]) AS ids, :payloads::jsonb[] AS got \gset
SELECT cardinality(:ids::bigint[]);
""",
    "idem": r"""
SELECT id FROM idem_enqueue_many('bench', :payloads);
SELECT array_agg(id) AS ids, array_agg(token) AS tokens, array_agg(payload) AS got
FROM idem_dequeue('bench', 100) \gset
SELECT idem_ack_many(:ids, :tokens);
""",
    "hand": rf"""
INSERT INTO job (payload) SELECT unnest(:payloads::jsonb[]) RETURNING id;
WITH j AS ({JOB.replace("COUNT", "100")})
SELECT array_agg(id) AS ids, array_agg(attempt) AS attempts, array_agg(payload) AS got FROM j \gset
DELETE FROM job USING unnest(:ids::bigint[], :attempts::int[]) AS u (id, attempt)
WHERE job.id = u.id AND job.attempt = u.attempt RETURNING job.id;
""",
    "pgmq": r"""
SELECT * FROM mq_send_batch('bench', :payloads);
SELECT array_agg(msg_id) AS ids, array_agg(message) AS got FROM mq_read('bench', 30, 100) \gset
SELECT * FROM mq_delete_batch('bench', :ids);
""",
    "statements": rf"""
INSERT INTO mq_bench (vt, message, headers) SELECT clock_timestamp(), unnest(:payloads::jsonb[]), NULL
RETURNING msg_id;
WITH r AS ({MQ_READ.replace("COUNT", "100")})
SELECT array_agg(msg_id) AS ids, array_agg(message) AS got FROM r \gset
DELETE FROM mq_bench WHERE msg_id = ANY (:ids::bigint[]) RETURNING msg_id;
""",
}


def script(case, variant):
    """The script of a variant, and how many of its commands make the key."""
    fresh, repeated = KEYS[case.key]
    if case.operation in ("replay", "once-replay") and case.large:
        prelude, repeated = LARGE, REPEATED_LARGE
    else:
        prelude = {"replay": REPEAT, "once-replay": REPEAT, "hot": HOT, "stampede": STAMPEDE,
                   "batch": BATCH, "queue-batch": PAYLOADS}.get(case.operation, "" if case.queue else fresh)
    text = prelude + "\n" + SCRIPTS[case.operation][variant].lstrip()
    for word, value in (("REPEATED", repeated), ("RESPONSE", RESPONSE), ("PAYLOAD", PAYLOAD)):
        text = text.replace(word, value)
    return text.lstrip(), len(prelude.splitlines())
