"""Torture: many clients, everything that the extension offers, and all that can
go wrong; then the books are checked.

    torture.py DIRECTORY

The environment says how: DURATION in seconds (120), SEED (drawn, and printed),
CLIENTS (16). The time is divided into rounds, each with keys of its own; in every
third of them the clock of the server is stepped, and times are not looked at; in two
of three the library is preloaded, and the janitor at work. The output is TAP: for each round one line for each promise, see check.sql.
"""

import collections
import faulthandler
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import threading
import time
from contextlib import closing

import psycopg2

import breakers
import client
import faults
import operations
import queues
import server

ROUND = 40                              # seconds, or somewhat less or more
TABLES = ['idem_key', 'idem_step', 'idem_message', 'idem_dead_letter', 'idem_queue', 'idem_breaker']
HERE = pathlib.Path(__file__).parent


class Run:
    """What faults may touch."""

    def __init__(self, directory, seed, clients):
        self.directory = directory
        self.seed = seed
        self.clients = clients
        self.server = server.Server(directory, connections=clients + 12)


class Shared:
    """What the clients of a round share."""

    def __init__(self, run, seed):
        self.host = str(run.server.directory)
        self.port = run.server.port
        self.directory = run.directory
        self.preloaded = run.server.preloaded
        self.seed = seed
        self.stop = multiprocessing.Event()
        self.progress = multiprocessing.Array('i', run.clients, lock=False)


class Report:
    """TAP."""

    def __init__(self):
        self.tests = 0
        self.failed = 0
        self.violations = 0

    def test(self, passed, name, rows=()):
        self.tests += 1
        self.failed += not passed
        self.violations += 0 if passed else max(1, len(rows))
        print(f"{'ok' if passed else 'not ok'} {self.tests} - {name}")
        for row in rows[:5]:
            print('#', ' '.join(' | '.join(str(value) for value in row).split())[:500])
        if len(rows) > 5:
            print(f'# … {len(rows)} in all')
        sys.stdout.flush()

    def note(self, text):
        print('#', text, flush=True)


def execute(run, text, *arguments):
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(text, arguments or None)
        return cursor.fetchall() if cursor.description else []


def for_each_role(run, function):
    """Calls it with a cursor, and with the role that the cursor has."""
    for role in ('alice', 'bob'):
        with closing(run.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f'SET SESSION AUTHORIZATION {role}')
            function(cursor, role)


def settle(run, history, rng, age=None):
    """Nobody else may do the second half of a two-phase commit that was left."""
    for gid, in execute(run, 'SELECT gid FROM pg_prepared_xacts'
                        ' WHERE (prepared <= clock_timestamp() - %s::interval) IS NOT FALSE', age):
        op, writes = gid.split('/')
        commit = rng.random() < 0.7
        # noted before, because the answer may be lost: then the row decides
        history.append((op, 'unknown', None))
        try:
            execute(run, f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED %s", gid)
        except psycopg2.Error:
            continue
        history.append((op, 'committed' if commit else 'aborted', writes))


def play(run, number, seconds, clock, preloaded):
    """A round: the clients at work, and one fault after the other."""
    seed = f'{run.seed}/{number}'
    rng = random.Random(f'{seed}/faults')
    run.server.set_clock(0.0)
    run.server.stop(signal.SIGINT)
    run.server.preloaded = preloaded
    run.server.start()
    execute(run, 'DROP SCHEMA IF EXISTS torture CASCADE; DROP EXTENSION IF EXISTS idempotency')
    execute(run, 'CREATE EXTENSION idempotency; CREATE EXTENSION IF NOT EXISTS amcheck')
    execute(run, (HERE / 'schema.sql').read_text())
    execute(run, 'INSERT INTO torture.round VALUES (%s, %s)', clock,
            f'{operations.LONGEST_LEASE} s')
    for_each_role(run, queues.begin)
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        breakers.begin(cursor)

    shared = Shared(run, seed)
    processes = [multiprocessing.Process(target=client.run, args=(shared, i))
                 for i in range(run.clients)]
    for process in processes:
        process.start()
    settled = []
    counts = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.1, 0.6))
        fault = faults.draw(rng, clock, preloaded)
        counts[fault.__name__] = counts.get(fault.__name__, 0) + 1
        try:
            for pause in fault(run, rng):
                time.sleep(pause)
            settle(run, settled, rng, None if clock else '300 ms')
        except psycopg2.Error:
            pass                        # what it did before is still going on
        run.server.revive()
    shared.stop.set()
    run.server.full.unlink(missing_ok=True)
    # Some may wait for what nobody but us will settle, and some backends may
    # not know yet that their client is gone.
    while any(process.is_alive() for process in processes):
        settle(run, settled, rng)
        if clock:                       # see faults.step_clock
            execute(run, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'client %' AND wait_event_type = 'Lock'")
        time.sleep(0.05)
    while execute(run, "SELECT EXISTS (SELECT FROM pg_stat_activity"
                  " WHERE backend_type = 'client backend' AND application_name LIKE 'client %')"
                  ' OR EXISTS (SELECT FROM pg_prepared_xacts)')[0][0]:
        settle(run, settled, rng)
        time.sleep(0.05)
    died = [process.exitcode for process in processes if process.exitcode != 0]
    if clock:
        run.server.set_clock(86400)     # past any lease, but not past any record
        (now,), = execute(run, 'SELECT extract(epoch FROM clock_timestamp())::float8')
        assert abs(now - time.time() - 86400) < 3600, 'the clock was not stepped'
    return settled, counts, died


def close(run, settled):
    """Collect the histories, wait for the last leases, drain the queues, and look at
    every key."""
    for i in range(run.clients):
        with closing(run.server.connect()) as connection, connection.cursor() as cursor, \
                open(run.directory / f'history.{i}', newline='') as file:
            cursor.copy_expert('COPY torture.history FROM STDIN (FORMAT csv)', file)
    for op, event, writes in settled:
        execute(run, 'INSERT INTO torture.history (op, event, writes) VALUES (%s, %s, %s)',
                op, event, writes)
    execute(run, 'INSERT INTO torture.breaker SELECT extract(epoch FROM stats_reset)::text, name, calls'
            ' FROM idem_stats, idem_breakers' if run.server.preloaded else 'SELECT')
    deadline = time.monotonic() + 10 * operations.LONGEST_LEASE
    while not (over := execute(run, 'SELECT count(*) = 0 FROM idem_in_flight WHERE NOT overdue')[0][0]) \
            and time.monotonic() < deadline:
        time.sleep(0.05)
    for_each_role(run, queues.drain)
    execute(run, """
        CREATE TABLE torture.name AS
        SELECT DISTINCT id, split_part(id, '/', 1) AS role, split_part(id, '/', 2) AS scope,
               split_part(id, '/', 3) AS key
          FROM (SELECT id FROM torture.history UNION ALL SELECT id FROM torture.effect) AS h
         WHERE id IS NOT NULL;
        GRANT SELECT ON torture.name TO PUBLIC""")
    for role in ('alice', 'bob'):
        with closing(run.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f'SET SESSION AUTHORIZATION {role}')
            cursor.execute("""
                SELECT id, state, response::text
                  FROM torture.name LEFT JOIN LATERAL idem_lookup(key, scope) ON true
                 WHERE role = current_user""")
            looks = cursor.fetchall()
            cursor.execute('BEGIN')     # claims all that can be claimed
            cursor.execute("""
                SELECT id, outcome
                  FROM torture.name CROSS JOIN LATERAL idem_claim(key, scope => scope, wait => '0')
                 WHERE role = current_user""")
            outcomes = dict(cursor.fetchall())
            cursor.execute('ROLLBACK')
            cursor.execute('RESET SESSION AUTHORIZATION')
            cursor.executemany('INSERT INTO torture.last_look VALUES (%s, %s, %s, %s)',
                               [(*look, outcomes[look[0]]) for look in looks])
    return over


def swept(run):
    """Waits for the janitor, who stays away for a minute at most where he has met errors."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if execute(run, "SELECT count(*) = 0 FROM idem_key WHERE state = 'f' AND expires_at < clock_timestamp()")[0][0]:
            return True
        time.sleep(0.1)
    return False


def check(run, report, label):
    execute(run, (HERE / 'check.sql').read_text())
    for view, promise in execute(run, """
            SELECT oid::regclass::text, obj_description(oid) FROM pg_class
             WHERE relnamespace = 'torture'::regnamespace AND relname LIKE 'violation\\_%'
             ORDER BY oid"""):
        rows = execute(run, f'SELECT * FROM {view}')
        report.test(not rows, f'{label}: {promise}', rows)


def sound(run):
    """What amcheck finds in the managed tables."""
    try:
        rows = execute(run, """
            SELECT c.relname, v.msg FROM pg_class AS c, LATERAL verify_heapam(c.oid) AS v
             WHERE c.relname = ANY (%s)""", TABLES)
        execute(run, """
            SELECT bt_index_check(i.indexrelid, true) FROM pg_index AS i
             WHERE i.indrelid::regclass::text = ANY (%s)""", TABLES)
        return rows
    except psycopg2.Error as error:
        return [(str(error),)]


def count(run, column, condition):
    return dict(execute(run, f'SELECT {column}, count(*) FROM torture.history'
                        f' WHERE {condition} GROUP BY 1'))


def messages(run):
    """How much of the queues' work there was to judge."""
    (counts,), = execute(run, """
        SELECT json_build_object(
            'enqueued', (SELECT count(DISTINCT message) FROM torture.enqueued),
            'taken', (SELECT count(*) FROM torture.delivered),
            'taken again', (SELECT count(*) FROM torture.delivered WHERE attempt > 1),
            'given back', (SELECT count(*) FROM torture.given_back),
            'done', (SELECT count(*) FROM torture.delivery_effect),
            'done at the end', (SELECT count(*) FROM torture.delivery_effect WHERE op = 'drain'),
            'dead', (SELECT count(*) FROM idem_dead_letter),
            'redriven', (SELECT coalesce(sum(messages), 0) FROM torture.redriven),
            'purged', (SELECT coalesce(sum(messages), 0) FROM torture.purged))""")
    return counts


def listing(counts):
    return ', '.join(f'{n} {name}' for name, n in sorted(counts.items()))


def give_up(run, report):
    """A run that hangs has failed, and says where. It leaves nobody behind who would
    keep others waiting for the end of its output."""
    try:
        tell_where(run, report)
    finally:
        os._exit(1)


def tell_where(run, report):
    try:
        rows = execute(run, """
            SELECT pid, application_name, state, wait_event_type, wait_event,
                   clock_timestamp() - query_start, query
              FROM pg_stat_activity WHERE state <> 'idle'""")
    except psycopg2.Error as error:
        rows = [(str(error),)]
    report.test(False, 'the run comes to its end')
    for row in rows:
        report.note(' | '.join(str(value) for value in row))
    faulthandler.dump_traceback(file=sys.stdout)
    for process in multiprocessing.active_children():
        process.kill()
    run.server.stop()


def main():
    duration = float(os.environ.get('DURATION') or 120)
    seed = os.environ.get('SEED') or str(random.SystemRandom().randrange(10 ** 9))
    clients = int(os.environ.get('CLIENTS') or 16)
    rounds = max(1, round(duration / ROUND))
    report = Report()
    report.note(f'SEED={seed} DURATION={duration:g} CLIENTS={clients}')
    run = Run(pathlib.Path(sys.argv[1]), seed, clients)
    watchdog = threading.Timer(2 * duration + 120, give_up, (run, report))
    watchdog.daemon = True
    watchdog.start()
    faulthandler.dump_traceback_later(2 * duration + 180, exit=True)
    totals = collections.Counter()
    run.server.start()
    execute(run, 'CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE guest LOGIN;'
            "ALTER ROLE alice SET statement_timeout = '10s'; ALTER ROLE bob SET statement_timeout = '10s'")
    try:
        for number in range(rounds):
            clock = number % 3 == 1
            preloaded = number % 3 != 2
            label = f'round {number + 1}' + (' with clock steps' if clock else '')
            settled, counts, died = play(run, number, duration / rounds, clock, preloaded)
            over = close(run, settled)
            events = count(run, 'event', 'true')
            totals.update(transactions=sum(events.get(event, 0) for event in
                                           ('committed', 'aborted', 'unknown')),
                          replays=events.get('replayed', 0), faults=sum(counts.values()))
            report.note(f'{label}: {listing(events)}')
            report.note('  requests: ' + listing(count(run, 'detail', "event = 'request'")))
            report.note('  outcomes: ' + listing(count(run, 'detail', "event = 'answer'")))
            report.note('  errors: ' + listing(count(run, 'sqlstate', 'sqlstate IS NOT NULL')))
            report.note('  messages: ' + listing(messages(run)))
            report.note('  breakers: ' + listing(count(run, "event || coalesce(' ' || detail, '')",
                                                       "event IN ('allowed', 'refused', 'recorded')")))
            report.note('  faults: ' + listing(counts))
            report.test(not died, f'{label}: no client has failed', [died] if died else [])
            report.test(over, f'{label}: all leases run out')
            if preloaded:
                report.test(swept(run), f'{label}: the janitor removes what has expired')
            report.test(events.get('committed', 0) > 0, f'{label}: something was done')
            check(run, report, label)
            rows = sound(run)
            report.test(not rows, f'{label}: the managed tables are sound', rows)
            rows = [(line,) for line in run.server.panics()]
            report.test(not rows, f'{label}: no crash but those that were made', rows)
    finally:
        run.server.stop()
    report.note(f'{duration:g} s, {listing(totals)}, {report.violations} violations')
    print(f'1..{report.tests}')
    return 1 if report.failed else 0


if __name__ == '__main__':
    sys.exit(main())
