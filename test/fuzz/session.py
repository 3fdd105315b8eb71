"""A session: one process, one connection at a time, one episode after the other; and
what is thought of the answers."""

import io
import re
import signal
import time
from collections import Counter, namedtuple

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR

import wire
from plan import ANYWHERE, UNSETTLED, Planner
from values import CANARY

Finding = namedtuple('Finding', 'what code function message label pid steps')

# While others drop and create the extension, the server's own look-ups may come too
# late; it says so in these words.
LATE = re.compile('cache lookup failed for|could not open relation with OID|tuple concurrently '
                  '|could not find tuple for|relation .* does not exist')

# Values are not to be understood, only to be had: these would be parsed.
psycopg2.extensions.register_type(psycopg2.extensions.new_type(
    (17, 114, 199, 1082, 1114, 1184, 1185, 1186, 1187, 3802, 3807), 'RAW', lambda text, cursor: text))


TOKEN = re.compile('\x01(.*?)/(.*?)\x01')  # see values.py


def shown(step):
    """A step as SQL, or, if it is not all SQL, nearly so."""
    sql = step.sql
    if step.wire:
        sql = f"SELECT * FROM {step.call.sql} /* by {step.wire.replace('_', ' ')} */"
    return TOKEN.sub(r':token_\1', sql) + ';'


class Lost(Exception):
    """The connection is gone."""


class Session:
    def __init__(self, catalog, number, unsettled, stop=None, report=None):
        self.catalog = catalog
        self.number = number
        self.unsettled = unsettled
        self.stop = stop
        self.report = report            # called with each finding
        self.connection = None
        self.pid = 0
        self.tokens = {}                # (key, scope) -> the one that was last seen
        self.label = ''
        self.commits = False            # the statement is a transaction of its own
        self.done = []                  # steps of the episode so far
        self.answers = Counter()        # (function, SQLSTATE), of statements with a call
        self.calls = Counter()          # (function, whether it succeeded), if that is sure
        self.outcomes = Counter()

    def connect(self):
        self.connection = psycopg2.connect(user='postgres', application_name=f'fuzz {self.number}',
                                           options='-c statement_timeout=5s')
        self.connection.autocommit = True
        self.pid = self.connection.info.backend_pid

    def disconnect(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.pid = 0

    def run(self, seed):
        """Episodes until we are told to stop."""
        planner = Planner(self.catalog, self.number, self.unsettled)
        number = 0
        while not self.stop.is_set():
            self.label = f'{seed}/{self.number}/{number}'
            steps = planner.episode(self.label)
            if planner.rng.random() < 0.05:
                self.disconnect()       # maybe in the middle of something
            self.episode(steps)
            number += 1
        self.disconnect()
        return number

    def episode(self, steps):
        """Executes the steps, and judges what comes of them."""
        self.done = []
        try:
            if self.connection is None:
                self.connect()
            self.execute('ROLLBACK')
            self.execute('DISCARD ALL')
            for step in steps:
                if self.stop is not None and self.stop.is_set():
                    break
                failed = self.status() == TRANSACTION_STATUS_INERROR
                if step.undo and not failed:
                    continue
                # once in a while, to see what they say
                if failed and not (step.rescue or step.undo) and len(self.done) % 5:
                    continue
                self.step(step)
        except (Lost, psycopg2.Error):
            # the server may have crashed; then its log knows this process
            self.find('connection lost', '', None, '')
            self.disconnect()
            time.sleep(0.05)            # others are not as patient as the postmaster

    def status(self):
        return self.connection.info.transaction_status

    def step(self, step):
        sql = TOKEN.sub(lambda match: str(self.tokens.get(match.groups(), 'NULL')), step.sql)
        self.done.append(step)
        self.commits = self.status() == TRANSACTION_STATUS_IDLE
        try:
            names, rows = self.execute(sql, step.copy)
            code = '00000'
            if step.wire:
                code = self.send(step, rows[0])
            else:
                self.remember(step, names, rows)
        except psycopg2.Error as error:
            code = error.pgcode
            if self.connection.closed and code is None:
                raise Lost from error
            if code is not None:
                self.judge(step, code, error.diag)
        except UnicodeDecodeError:
            code = '00000'              # an encoding that the client does not know of
        if step.function and code and code != '25P02':
            self.answers[step.function.name, code] += 1
            if step.sure:
                self.calls[step.function.name, code == '00000'] += 1
        if step.must_fail and code == '00000':
            self.find('went through', code, step.function, sql)
        for notice in self.connection.notices:
            match = re.search(r'caught (\w{5}) (.*)', notice, re.DOTALL)
            if match:
                self.judge(step, match.group(1), None, match.group(2).strip())
            if CANARY in notice:
                self.find('a response is shown', code, step.function, notice)
        self.connection.notices.clear()
        if self.connection.closed:
            raise Lost

    def execute(self, sql, copy=False):
        with self.connection.cursor() as cursor:
            if copy:
                cursor.copy_expert(sql, io.BytesIO())
                return (), ()
            cursor.execute(sql)
            if cursor.description is None:
                return (), ()
            return [column.name for column in cursor.description], cursor.fetchall()

    def send(self, step, parameters):
        """A call by other means than psycopg2's; the answer's SQLSTATE."""
        values = [None if value is None else bytes.fromhex(value) for value in parameters]
        call = step.call
        if step.wire == 'fast_path':
            name = f'{call.function.schema}.{call.function.name}'
            _, ((oid,),) = self.execute(f"SELECT '{name}'::pg_catalog.regproc::oid")
            answer = wire.fast_path(self.connection, oid, values)
        else:
            answer = wire.extended(self.connection, call.parameterised(),
                                   [argument.oid for argument, _ in call.values], values)
        if answer.failed and answer.sqlstate is None:
            raise Lost
        if not (answer.failed and answer.sqlstate.startswith('57P')):
            self.connection.poll()      # for the notices, if it is still there
        if not answer.failed:
            return '00000'
        self.judge(step, answer.sqlstate, answer)
        return answer.sqlstate

    def remember(self, step, names, rows):
        """What later calls are fed with."""
        for row in rows[:100]:
            answer = dict(zip(names, row))
            for name in ('outcome', 'state'):
                if isinstance(answer.get(name), str):
                    self.outcomes[answer[name]] += 1
            if answer.get('token') is not None and answer.get('id') is not None:
                self.tokens['id', 'message'] = answer['id']
                self.tokens['token', 'message'] = answer['token']
            elif answer.get('token') is not None:
                key = answer.get('key', step.key)
                self.tokens[key, step.scope] = answer['token']

    #
    # Judgement
    #

    def judge(self, step, code, diag, message=None):
        said = [message] if diag is None else [
            diag.message_primary, diag.message_detail, diag.message_hint, diag.context,
            diag.internal_query]
        message = message or diag.message_primary
        if any(CANARY in text for text in said if text):
            self.find('a response is shown', code, step.function, ' / '.join(filter(None, said)))
        if code in ANYWHERE or code in step.errors:
            return
        if code in ('40001', 'ID005') and self.commits:
            return                      # outside of a transaction each statement is one
        if step.function and code in step.function.errors:
            return
        if self.unsettled and (code in UNSETTLED or code == 'XX000' and LATE.search(message)):
            return
        if step.anything and code[:2] != 'XX':
            # even that of a trap, which a command may have fallen into itself
            return
        where = f' ({diag.source_file}:{diag.source_line})' if diag is not None else ''
        self.find('undocumented error', code, step.function, message + where)

    def find(self, what, code, function, message):
        self.report(Finding(what, code, function.name if function else '', message[:2000], self.label,
                            self.pid, list(self.done)))


def run(catalog, number, unsettled, seed, stop, queue):
    """Of a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = Session(catalog, number, unsettled, stop, lambda finding: queue.put(('finding', finding)))
    episodes = session.run(seed)
    queue.put(('done', (session.answers, session.calls, session.outcomes, episodes)))
