#!/usr/bin/python3
"""Fuzzing: sessions call whatever the extension has, with whatever there is; and
nothing may come of it but what is documented.

    fuzz.py SERVER-LOG

The environment says how: DURATION in seconds (60), SEED (drawn, and printed),
SESSIONS (4), EPISODE (one of those that a finding names, to be repeated alone).

The time is divided into rounds. In every fourth of them others drop the extension
and create it again while the sessions are at work. Looked at is:

    answers     no SQLSTATE but those that doc/reference.md names for the function,
                those of plan.ANYWHERE, and what the arguments themselves may raise
    messages    no response in any of them, nor in the server's log
    server      no crash, no failed assertion, no internal error, no warning of
                something that was leaked
    tables      check.sql
    depth       every function has succeeded once: else the run was too shallow

The same seed makes the same statements, but for tokens, which the server draws; how
sessions meet is the machine's affair. So a finding comes with all statements of its
episode, and if these show it by themselves, with as few of them as will do.
"""

import multiprocessing
import os
import pathlib
import queue
import random
import re
import sys
import time
from collections import Counter
from contextlib import closing

import psycopg2

import session
from catalog import REFERENCE, Catalog, Reference
from plan import Planner
from values import CANARY

ROUND = 15                              # seconds, or a bit more
PATIENCE = 60                           # for a session to come to an end
SMALLER = 20                            # seconds, to make a finding smaller
SESSIONS = "application_name ~ '^fuzz [0-9]'"
HERE = pathlib.Path(__file__).parent

CRASH = re.compile(r'TRAP:|PANIC:|server process \(PID \d+\) was terminated by signal')
INTERNAL = re.compile(r'^XX\d\w\w \[\d+\] (ERROR|FATAL|PANIC)')
# A warning without a SQLSTATE of its own: leaks, locks that are not held, ...
WARNING = re.compile(r'^01000 .*WARNING:(?!  skipping )')


class Log:
    """What is new in the server's log."""

    def __init__(self, path):
        self.file = open(path, errors='replace')
        self.file.seek(0, os.SEEK_END)

    def lines(self):
        return self.file.readlines()


class Run:
    def __init__(self, log):
        self.seed = os.environ.get('SEED') or str(random.SystemRandom().randrange(10 ** 6))
        self.duration = float(os.environ.get('DURATION') or 60)
        self.sessions = int(os.environ.get('SESSIONS') or 4)
        self.reference = Reference(REFERENCE.read_text())
        self.log = Log(log)
        self.findings = {}              # signature -> Finding
        self.lost = {}                  # process of the server -> Finding
        self.crashed = set()            # processes, too
        self.unsettled = False
        self.answers = Counter()
        self.calls = Counter()
        self.outcomes = Counter()
        self.episodes = 0
        self.passed = self.failed = 0

    def test(self, passed, name):
        self.passed += passed
        self.failed += not passed
        if not passed:
            print('FAILED', name, flush=True)

    #
    # The server
    #

    def connect(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                connection = psycopg2.connect(user='postgres', application_name='fuzz master')
                connection.autocommit = True
                return connection
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)        # it may be recovering from a crash

    def execute(self, sql):
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def attempt(self, sql):
        """The same, if it can be done at the moment."""
        try:
            return self.execute(sql)
        except psycopg2.Error:
            return []

    def create(self):
        """The extension as new."""
        self.execute('DROP EXTENSION IF EXISTS idempotency CASCADE')
        self.execute('DROP SCHEMA IF EXISTS idem CASCADE')
        self.execute('CREATE SCHEMA idem')
        self.execute('CREATE EXTENSION idempotency SCHEMA idem')
        # also what is not for everybody otherwise
        self.execute('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA idem TO PUBLIC')
        self.execute('GRANT USAGE ON SCHEMA idem TO alice, bob, watcher')

    def catalog(self):
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("LOAD 'idempotency'")
            return Catalog(cursor, self.reference)

    #
    # Findings
    #

    def find(self, finding):
        if finding.what == 'connection lost':
            self.lost.setdefault(finding.pid, finding)
        else:
            self.findings.setdefault(signature(finding), finding)

    def watch(self):
        """What the log has to say."""
        for line in self.log.lines():
            line = line.rstrip()
            if CRASH.search(line):
                what = 'crash'
            elif CANARY in line:
                what = 'a response is in the log'
            elif INTERNAL.match(line) and not (self.unsettled and session.LATE.search(line)):
                what = 'internal error in the log'
            elif WARNING.match(line):
                what = 'warning in the log'
            else:
                continue
            process = re.search(r'\bPID:? (\d+)', line) or re.search(r'\[(\d+)\]', line)
            pid = int(process.group(1)) if process else 0
            if what == 'crash' and pid in self.crashed:
                continue                # it was said before: first TRAP, then its signal
            if what == 'crash':
                self.crashed.add(pid)
            self.find(session.Finding(what, '', '', line, '', pid, []))

    def alone(self, steps):
        """What a session finds if it takes these steps by itself."""
        self.create()
        self.watch()
        before, self.findings = self.findings, {}
        one = session.Session(self.catalog(), 0, False, report=self.find)
        one.episode(steps)
        one.disconnect()
        self.execute('SELECT 1')        # there again, if it has crashed
        self.watch()
        found, self.findings = self.findings, before
        return found

    def smaller(self, finding, steps):
        """As few of the steps as show it; none if not even all of them do."""
        deadline = time.monotonic() + SMALLER
        if signature(finding) not in self.alone(steps):
            return []
        for step in list(steps):
            rest = [other for other in steps if other is not step]
            if time.monotonic() < deadline and signature(finding) in self.alone(rest):
                steps = rest
        return steps

    def show(self, finding):
        known = self.lost.get(finding.pid)
        if not finding.steps and known:
            finding = finding._replace(label=known.label, steps=known.steps)
        print(f'\n{finding.what}: {finding.function} {finding.code} {finding.message}')
        if finding.label:
            print(f'-- EPISODE={finding.label}')
        if finding.steps:
            steps = self.smaller(finding, finding.steps)
            print('-- by itself:' if steps else '-- not by itself, but at the end of:')
            for step in steps or finding.steps:
                print(session.shown(step))
        sys.stdout.flush()

    #
    # A round
    #

    def play(self, number, seconds):
        rng = random.Random(f'{self.seed}/{number}/aside')
        self.unsettled = unsettled(number)
        self.create()
        self.watch()
        stop = multiprocessing.Event()
        answers = multiprocessing.Queue()
        catalog = self.catalog()
        sessions = [multiprocessing.Process(target=session.run, args=(
            catalog, i, self.unsettled, f'{self.seed}/{number}', stop, answers))
            for i in range(self.sessions)]
        for process in sessions:
            process.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.collect(answers, rng.uniform(0.02, 0.3))
            self.disturb(rng)
            self.watch()
        stop.set()
        deadline = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in sessions) and time.monotonic() < deadline:
            # Some may wait for what nobody else will end; and a deferred trigger does
            # so as long as it likes, since it runs when statement_timeout is over.
            self.settle()
            self.attempt(f'SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {SESSIONS}'
                         " AND state = 'active' AND query_start < clock_timestamp() - '6 s'::interval")
            self.collect(answers, 0.05)
        hung = [process for process in sessions if process.is_alive()]
        self.test(not hung, f'round {number}: the sessions come to an end')
        if hung:
            for row in self.attempt('SELECT pid, state, wait_event_type, wait_event, query_start, query'
                                    f' FROM pg_stat_activity WHERE {SESSIONS}'):
                print('   ', ' | '.join(str(column) for column in row)[:1000])
            for process in hung:
                process.kill()
            self.attempt(f'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {SESSIONS}')
        for process in sessions:
            process.join()
        self.test(all(process.exitcode == 0 for process in sessions if process not in hung),
                  f'round {number}: the fuzzer itself has not failed')
        self.collect(answers, 0)
        self.settle()

    def collect(self, answers, seconds):
        """What the sessions say, for so long."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                kind, what = answers.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                return
            if kind == 'finding':
                self.find(what)
            else:
                answered, calls, outcomes, episodes = what
                self.answers += answered
                self.calls += calls
                self.outcomes += outcomes
                self.episodes += episodes

    def disturb(self, rng):
        """What others do meanwhile."""
        victim = f"application_name = 'fuzz {rng.randrange(self.sessions)}'"
        sql = rng.choice((
            f'SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {victim}',
            f'SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {victim}',
            f'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {victim}',
            'VACUUM idem.idem_key', 'VACUUM (FREEZE) idem.idem_step', 'VACUUM FULL idem.idem_step',
            'REINDEX TABLE CONCURRENTLY idem.idem_key', 'ANALYZE idem.idem_key', 'CHECKPOINT',
            'VACUUM idem.idem_message', 'VACUUM FULL idem.idem_message', 'VACUUM idem.idem_dead_letter',
            'REINDEX TABLE CONCURRENTLY idem.idem_message', 'SELECT * FROM idem.idem_queues',
            'SELECT pg_reload_conf()', 'SELECT * FROM idem.idem_in_flight', 'SELECT idem.idem_expire()'))
        if self.unsettled and rng.random() < 0.3:
            sql = rng.choice(('DROP EXTENSION idempotency CASCADE', 'DROP SCHEMA idem CASCADE',
                              'BEGIN; DROP EXTENSION idempotency; ROLLBACK',
                              'ALTER EXTENSION idempotency UPDATE'))
        self.settle('100 ms')
        try:
            with closing(self.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '300ms'")
                cursor.execute(sql)
        except psycopg2.Error as error:
            # what it waits for, or works on, is others' at the moment
            if error.pgcode not in (None, '55P03', '40P01', '57014', '57P02', '57P03',
                                    '2BP01', '3F000', '40001', '42704', '42P01'):
                self.find(session.Finding('undocumented error', error.pgcode, '',
                                          f'{error} on {sql}', '', 0, []))
        if self.unsettled:
            self.attempt('CREATE SCHEMA IF NOT EXISTS idem;'
                         'GRANT USAGE ON SCHEMA idem TO alice, bob, watcher;'
                         'CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA idem')

    def settle(self, age='0'):
        """The second half of two-phase commits that were left behind."""
        for gid, in self.attempt('SELECT gid FROM pg_prepared_xacts'
                                 f" WHERE prepared <= clock_timestamp() - '{age}'::interval"):
            self.attempt(f"ROLLBACK PREPARED '{gid}'")

    def check(self, number):
        if self.unsettled:
            self.execute('CREATE SCHEMA IF NOT EXISTS idem')
            self.execute('CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA idem')
        # the last backends may still be on their way out
        deadline = time.monotonic() + PATIENCE
        while self.execute(f'SELECT FROM pg_stat_activity WHERE {SESSIONS}'):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for query in (HERE / 'check.sql').read_text().split(';\n'):
            name = re.findall('^-- (.*)$', query, re.MULTILINE)
            if name:
                try:
                    rows = self.execute(query)
                except psycopg2.Error as error:
                    rows = [(str(error),)]
                self.test(not rows, f'round {number}: {name[-1]}')
                for row in rows[:5]:
                    print('   ', ' | '.join(str(column) for column in row)[:1000])

    def summary(self):
        print(f'\n{self.episodes} episodes, {sum(self.answers.values())} statements with a call')
        print('outcomes:', ', '.join(f'{name} {n}' for name, n in self.outcomes.most_common()))
        # Some statements succeed without the call that is in them, such as PREPARE. Those
        # do not count as calls.
        print(f"{'function':20}{'statements':>10}{'calls':>8}{'succeeded':>11}  SQLSTATEs of the statements")
        for function in self.catalog().functions:
            codes = Counter({code: n for (name, code), n in self.answers.items() if name == function.name})
            statements = sum(codes.values())
            del codes['00000']
            done = self.calls[function.name, True]
            calls = done + self.calls[function.name, False]
            print(f'{function.name:20}{statements:10}{calls:8}{100 * done / max(1, calls):10.1f}% ',
                  ' '.join(f'{code}:{n}' for code, n in codes.most_common()))
            self.test(done > 0, f'{function.name} has succeeded')


def signature(finding):
    words = re.sub(r' \(\w+\.\w+:\d+\)$', '', finding.message)
    words = re.sub(r'"[^"]*"|[0-9]+', '…', words)
    return finding.what, finding.code, finding.function, words[:100]


def unsettled(number):
    return number % 4 == 3


def main():
    run = Run(sys.argv[1])
    label = os.environ.get('EPISODE')
    try:
        run.create()
        run.catalog()
    except LookupError as error:
        run.test(False, error)
        print(f'\n{run.passed} passed, {run.failed} failed')
        return 1
    if label:
        *_, number, one, _ = label.split('/')
        run.unsettled = unsettled(int(number))
        run.create()
        steps = Planner(run.catalog(), int(one), run.unsettled).episode(label)
        for step in steps:
            print(session.shown(step))
        for finding in run.alone(steps).values():
            run.findings[signature(finding)] = finding
    else:
        rounds = max(1, round(run.duration / ROUND))
        print(f'SEED={run.seed} DURATION={run.duration:g} SESSIONS={run.sessions}', flush=True)
        for number in range(rounds):
            run.play(number, run.duration / rounds)
            run.check(number)
        run.watch()
        run.unsettled = False
        run.create()
        run.summary()
    findings = list(run.findings.values())
    for finding in findings:
        run.show(finding)
    run.test(not findings, f'nothing but what is documented ({len(findings)} findings)')
    print(f'\n{run.passed} passed, {run.failed} failed')
    return 1 if run.failed else 0


if __name__ == '__main__':
    sys.exit(main())
