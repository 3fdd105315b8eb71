"""A client of a torture run: one process, one connection at a time.

It works through requests. A request is drawn from a generator seeded by (seed,
round, client, number of the request), so the same seed asks for the same work
on the same keys; how the clients meet is the machine's affair. A request is
tried until it has an answer, as applications do, and what goes wrong on a try
(a cut connection, a rollback, an early death) is drawn anew for each of them.

All that a client does is noted in its history: see schema.sql for what becomes
of it, and check.sql for what must be true of it.
"""

import csv
import json
import os
import random
import select
import signal
import socket
import struct
import time
from contextlib import contextmanager

import psycopg2

import operations

LEVELS = ('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')

# A client may be ahead of the slowest one by so many requests: they shall meet.
HEAD_START = 30

# What may befall a transaction that does nothing wrong, under these faults.
MISFORTUNE = {
    '40001': 'serialization failure',
    '40P01': 'deadlock',
    '53100': 'disk full',
    '53200': 'lock table full, or too many prepared transactions',
    '53300': 'too many connections',
    '55P03': 'lock_timeout',
    '57014': 'statement_timeout, or cancelled',
    '57P01': 'terminated',
    '57P02': 'another backend has crashed',
    '57P03': 'starting up or shutting down',
    '25P03': 'idle in transaction for too long',
    '58030': 'input/output error',
}


class Failed(Exception):
    """The transaction has failed for certain; sqlstate says why."""

    def __init__(self, sqlstate):
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Lost(Exception):
    """The connection is gone, and what has become of the transaction is not known."""


class Vanished(Exception):
    """The client has died, as far as the server can tell."""


class Stopped(Exception):
    """The round is over."""


class Transaction:
    """What a transaction has written; its op is the name of all that it does."""

    def __init__(self, client, op):
        self.client = client
        self.op = op
        self.writes = 0
        self.committing = False         # from here on, who loses the connection knows nothing
        self.prepared = False           # from here on, an error is not the end of it

    def query(self, text, *arguments):
        """Rows of a query."""
        return self.client.query(text, *arguments)

    def insert(self, table, **columns):
        self.query('INSERT INTO torture.%s (op, %s) VALUES (%%s%s)'
                   % (table, ', '.join(columns), ', %s' * len(columns)),
                   self.op, *columns.values())
        self.writes += 1

    def roll_back(self):
        """As if it had failed: it is tried again."""
        self.query('ROLLBACK')
        raise Failed('40001')

    @contextmanager
    def savepoint(self, rollback):
        """A savepoint, to be rolled back or released."""
        before = self.writes
        self.query('SAVEPOINT s')
        yield
        if rollback:
            self.query('ROLLBACK TO SAVEPOINT s')
            self.writes = before
        self.query('RELEASE SAVEPOINT s')


class Client:
    def __init__(self, shared, number):
        self.shared = shared            # see torture.py
        self.number = number
        self.role = 'bob' if number % 4 == 3 else 'alice'
        self.connection = None
        self.request = 0
        self.attempt = 0
        self.part = 0
        self.operation = None
        self.op = None
        self.luck = None                # what goes wrong on this try
        self.file = open(shared.directory / f'history.{number}', 'w', newline='')
        self.writer = csv.writer(self.file)

    #
    # Requests
    #

    def run(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while True:
                self.wait_for_others()
                self.one_request(f'{self.shared.seed}/{self.number}/{self.request}')
                self.request += 1
                self.shared.progress[self.number] = self.request
        except Stopped:
            pass
        finally:
            self.disconnect()
            self.file.close()

    def one_request(self, seed):
        began = time.monotonic()
        self.attempt = 0
        event = 'unanswered'
        try:
            while not self.one_try(seed):
                pass
            event = 'request'
        finally:
            self.note(event, seconds=time.monotonic() - began, detail=self.operation)

    def one_try(self, seed):
        """Answers whether the request has been dealt with."""
        plan = random.Random(seed)
        self.luck = random.Random(f'{seed}/{self.attempt}')
        self.attempt += 1
        self.part = 0
        work = operations.draw(plan)
        self.operation = work.__name__
        try:
            self.connect()
            work(self, plan)
            return True
        except Vanished:
            self.disconnect()
        except Lost:
            self.disconnect()
        except Failed as failure:
            if failure.sqlstate not in MISFORTUNE:
                return True             # noted; it would only come again
            # a machine that is short of something is not to be rushed
            self.pause(self.luck.uniform(0, 0.1 if failure.sqlstate.startswith('53') else 0.01))
        return False

    def wait_for_others(self):
        self.check_stop()
        while self.request > min(self.shared.progress) + HEAD_START:
            self.pause(0.01)

    def check_stop(self):
        if self.shared.stop.is_set():
            raise Stopped

    def pause(self, seconds):
        if self.shared.stop.wait(seconds):
            raise Stopped

    def chance(self, probability):
        return self.luck.random() < probability

    #
    # History
    #

    def note(self, event, key=None, sqlstate=None, writes=None, response=None,
             seconds=None, detail=None, op=None, token=None, attempt=None):
        self.writer.writerow((
            self.number, self.request, op or self.op, event, key, sqlstate, writes,
            None if response is None else json.dumps(response), seconds, detail, token, attempt))

    def failed(self, error):
        """Notes an error of the server, and answers the exception for it."""
        state = error.pgcode
        if self.connection.closed:
            self.disconnect()
        if state is None:
            return Lost()
        if state in MISFORTUNE:
            self.note('misfortune', sqlstate=state)
        return Failed(state)

    #
    # Connections
    #

    def connect(self):
        while self.connection is None:
            self.check_stop()
            try:
                self.connection = psycopg2.connect(
                    host=self.shared.host, port=self.shared.port, dbname='postgres',
                    user=self.role, application_name=f'client {self.number}')
                self.connection.autocommit = True
            except psycopg2.OperationalError:
                self.pause(0.02)

    def disconnect(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def query(self, text, *arguments):
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(text, arguments or None)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise self.failed(error) from error

    def vanish(self):
        """Cut the connection, and forget it."""
        self.cut()
        raise Vanished

    def cut(self, farewell=b'', wait=False):
        """Cut the connection, with some last bytes on it; maybe when they were answered."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as wire:
            wire.setblocking(True)
            try:
                if farewell:
                    wire.send(farewell)
                if wait:
                    select.select([wire], [], [], 5)
                wire.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass                    # the server was first
        self.disconnect()

    #
    # Transactions
    #

    @contextmanager
    def transaction(self, level=None, prepare=False, expected=()):
        """A transaction that ends in COMMIT, one way or another, or in PREPARE.

        Raises Failed if it was rolled back, Lost if nobody knows. Of errors, only
        MISFORTUNE and what is expected may come.
        """
        self.part += 1
        self.op = f'{self.number}.{self.request}.{self.attempt}.{self.part}'
        trans = Transaction(self, self.op)
        try:
            self.query('BEGIN ISOLATION LEVEL ' + (level or self.luck.choice(LEVELS)))
            if self.chance(0.03):
                self.query('SET LOCAL lock_timeout = %s', self.luck.choice((1, 5, 20)))
            if self.chance(0.03):
                self.query('SET LOCAL statement_timeout = %s', self.luck.choice((2, 10, 50)))
            yield trans
            if self.chance(0.01):
                self.pause(self.luck.choice((0.02, 0.2)))
            if self.chance(0.02):
                trans.roll_back()
            trans.committing = True
            if prepare:
                self.prepare(trans)
            else:
                self.commit(trans)
        except Failed as failure:
            if trans.prepared or (trans.committing and self.connection is None):
                self.note('unknown', sqlstate=failure.sqlstate)
            else:
                self.note('aborted', sqlstate=failure.sqlstate)
            if self.connection is not None:
                try:
                    self.query('ROLLBACK')
                except (Failed, Lost):
                    self.disconnect()
            self.judge(failure, expected)
            raise
        except (Lost, Vanished):
            self.note('unknown' if trans.committing else 'aborted')
            raise

    def judge(self, failure, expected=()):
        if failure.sqlstate not in MISFORTUNE and failure.sqlstate not in expected:
            self.note('strange', sqlstate=failure.sqlstate, detail=str(failure.__cause__))

    def by_itself(self, text, *arguments):
        """A statement that may not be in a transaction block."""
        try:
            return self.query(text, *arguments)
        except Failed as failure:
            self.judge(failure)
            raise

    def commit(self, trans):
        fate = self.luck.random()
        if fate < 0.03:
            self.cut_commit('COMMIT', trans)
        self.query('COMMIT')
        self.committed(trans.op, trans.writes)
        if fate > 0.99:
            self.vanish()               # the answer did arrive, and is lost now

    def committed(self, op, writes):
        self.note('committed', op=op, writes=writes)

    def cut_commit(self, command, trans):
        """Before, during and after it; whatever it was, nobody knows."""
        message = b'Q' + struct.pack('!i', len(command) + 5) + command.encode() + b'\0'
        part = self.luck.choice(('none', 'half', 'all', 'answered'))
        if part == 'none':
            trans.committing = False
            message = b''
        elif part == 'half':
            message = message[:len(message) // 2]
        self.cut(message, wait=part == 'answered')
        raise Lost

    def prepare(self, trans):
        """First half of a two-phase commit; the second may be anybody's."""
        self.query(f"PREPARE TRANSACTION '{trans.op}/{trans.writes}'")
        trans.prepared = True
        fate = self.luck.random()
        if fate < 0.4:
            self.settle(f'{trans.op}/{trans.writes}', True)
        elif fate < 0.5:
            self.settle(f'{trans.op}/{trans.writes}', False)
            raise Failed('40001')       # try again
        elif fate < 0.7:
            self.vanish()
        else:
            self.note('unknown')

    def settle(self, gid, commit):
        """Second half: of a transaction of one's own, or one that was left."""
        op, writes = gid.split('/')
        try:
            self.query('%s PREPARED %%s' % ('COMMIT' if commit else 'ROLLBACK'), gid)
        except Failed as failure:
            if failure.sqlstate not in ('42704', '55000'):
                raise
            return                      # somebody else was first, or is at it
        if commit:
            self.committed(op, writes)
        else:
            self.note('aborted', op=op)


def run(shared, number):
    Client(shared, number).run()
