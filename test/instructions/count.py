"""How many instructions a transaction takes, and whether that has grown.

    count.py DATA [SCENARIO...]

Instructions are counted by valgrind, in user mode, in a server of a single process:
the difference of two runs of different length, so that neither start nor end
counts. They depend on nothing but the code, and show what a clock on a busy machine
cannot. What is compared with the recorded figures is the share of the two statements
that people write by hand, beyond an empty transaction, all in the same run; other
compilers and libraries change that less. A share may be larger than the recorded one
by TOLERANCE. Whoever makes something faster records the new share.
"""

import hashlib
import re
import subprocess
import sys
import uuid

SHORT, LONG = 500, 1500                 # transactions
TOLERANCE = 0.04
BATCH = 100

RESPONSE = """'{"id": 1234567, "status": "paid", "amount": 4200}'"""

PREPARE = """
SET synchronous_commit = off
PREPARE nothing (text) AS SELECT $1
PREPARE hand_claim (text) AS INSERT INTO hand (scope, key, created_at, expires_at) VALUES ('', $1, clock_timestamp(), clock_timestamp() + '24 hours') ON CONFLICT DO NOTHING
PREPARE hand_finish (text, jsonb) AS UPDATE hand SET response = $2, finished_at = clock_timestamp() WHERE scope = '' AND key = $1
PREPARE hand_insert (text, jsonb) AS INSERT INTO hand VALUES ('', $1, clock_timestamp(), clock_timestamp(), clock_timestamp() + '24 hours', $2)
PREPARE hand_select (text) AS SELECT response FROM hand WHERE scope = '' AND key = $1 AND expires_at > clock_timestamp()
PREPARE claim (text) AS SELECT outcome, response FROM idem_claim($1)
PREPARE finish (text, jsonb) AS SELECT idem_finish($1, $2)
PREPARE claim_many (text[]) AS SELECT count(*) FROM idem_claim_many($1)
PREPARE finish_many (text[], jsonb[]) AS SELECT count(*) FROM idem_finish_many($1, $2)
PREPARE lease (text) AS SELECT idem_finish($1, '1', token => token) FROM idem_claim($1, lease => '1 minute')
PREPARE step (text) AS SELECT idem_step_finish($1, 's', '1') FROM idem_step($1, 's')
PREPARE once (text) AS SELECT outcome FROM idem_once($1, 'INSERT INTO orders (account, amount) VALUES ($1, $2) RETURNING id', '{7,42.00}')
"""

# What one transaction consists of. Keys are UUIDs; in "hashed" they are in upper case,
# and so no UUIDs to us.
SCENARIOS = {
    'empty': ('BEGIN', 'EXECUTE nothing({key})', 'EXECUTE nothing({key})', 'COMMIT'),
    'hand': ('BEGIN', 'EXECUTE hand_claim({key})', 'EXECUTE hand_finish({key}, {response})', 'COMMIT'),
    'insert': ('BEGIN', 'EXECUTE nothing({key})', 'EXECUTE hand_insert({key}, {response})', 'COMMIT'),
    'fresh': ('BEGIN', 'EXECUTE claim({key})', 'EXECUTE finish({key}, {response})', 'COMMIT'),
    'hashed': ('BEGIN', 'EXECUTE claim({upper})', 'EXECUTE finish({upper}, {response})', 'COMMIT'),
    'step': ('BEGIN', 'EXECUTE claim({key})', 'EXECUTE step({key})', 'EXECUTE finish({key}, {response})',
             'COMMIT'),
    'batch': ('BEGIN', 'EXECUTE claim_many({keys})', 'EXECUTE finish_many({keys}, {responses})', 'COMMIT'),
    'lease': ('EXECUTE lease({key})',),
    'once': ('EXECUTE once({key})',),
    'nothing': ('EXECUTE nothing({old})',),
    'select': ('EXECUTE hand_select({old})',),
    'replay': ('EXECUTE claim({old})',),
}

# What a scenario takes beyond its empty form, as a share of what people's own way
# takes beyond its empty form; and the recorded share.
SHARES = {
    'insert': ('empty', 'hand', 'empty', None),     # for comparison
    'fresh': ('empty', 'hand', 'empty', 0.685),
    'hashed': ('empty', 'hand', 'empty', 0.738),
    'step': ('empty', 'hand', 'empty', 1.486),
    'batch': ('empty', 'hand', 'empty', 0.613),      # by key
    'lease': ('nothing', 'hand', 'empty', 0.872),
    'once': ('nothing', 'hand', 'empty', 0.812),
    'replay': ('nothing', 'select', 'nothing', 1.256),
}


def quoted(name):
    return f"'{uuid.UUID(hashlib.md5(name.encode()).hexdigest())}'"


def script(scenario, number):
    """What the session sends, one line a statement."""
    lines = PREPARE.strip().splitlines()
    for i in range(number):
        key = quoted(f'{scenario} {number} {i}')
        values = {'key': key, 'upper': key.upper(), 'old': quoted(f'old {i % 5000 + 1}'), 'response': RESPONSE}
        if scenario == 'batch':
            keys = ','.join(quoted(f'{scenario} {number} {i} {j}') for j in range(BATCH))
            values['keys'] = f'ARRAY[{keys}]'
            values['responses'] = f"ARRAY[{','.join([RESPONSE] * BATCH)}]::jsonb[]"
        lines += [line.format(**values) for line in SCENARIOS[scenario]]
    return '\n'.join(lines) + '\n'


def instructions(data, scenario, number):
    done = subprocess.run(
        ['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null', 'postgres', '--single',
         '-D', data, '-c', 'autovacuum=off', '-c', 'checkpoint_timeout=1d', '-c', 'shared_buffers=256MB',
         '-c', 'log_min_messages=error', 'postgres'],
        input=script(scenario, number), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found = re.search(r'Collected : (\d+)', done.stderr)
    errors = re.findall(r'^.*(?:ERROR|FATAL|PANIC):.*$', done.stderr, re.M)
    if errors or not found:
        sys.exit('\n'.join([f'{scenario}: cannot count'] + (errors or [done.stderr])[:5]))
    return int(found.group(1))


def per_transaction(data, scenario):
    short, long = (SHORT, LONG) if scenario != 'batch' else (SHORT // 25, LONG // 25)
    return (instructions(data, scenario, long) - instructions(data, scenario, short)) / (long - short)


def main():
    data, wanted = sys.argv[1], sys.argv[2:] or list(SHARES)
    counts = {}
    passed = failed = 0

    def count(scenario):
        if scenario not in counts:
            counts[scenario] = per_transaction(data, scenario)
            print(f'{scenario:10} {counts[scenario]:10.0f} instructions', flush=True)
        return counts[scenario]

    for name in wanted:
        base, theirs, their_base, recorded = SHARES[name]
        ours = (count(name) - count(base)) / (BATCH if name == 'batch' else 1)
        share = ours / (count(theirs) - count(their_base))
        if recorded is None:
            print(f'{name}: {share:.3f} of {theirs}')
            continue
        ok = share <= recorded * (1 + TOLERANCE)
        passed += ok
        failed += not ok
        print(f"{'ok' if ok else 'not ok'} - {name}: {share:.3f} of {theirs}, recorded {recorded}")
    print(f'{passed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
