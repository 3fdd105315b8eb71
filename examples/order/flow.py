"""Flows: work of several steps under an idempotency key, which resumes where it has ended.

run() claims a key with a lease, and runs a program, which is a function that is handed
a Flow. Whoever runs it after a crash, or after a failure, goes through the same program,
and does only what is left. A program consists of

    flow.step(name, write, call)    what was done is not done again
    flow.finish(status, body, write)    the answer for every repeat

`write` writes into this database, in the transaction in which the step or the flow is
finished: both, or neither. `call` asks an outside system, under a key that is the same
in every run; it may be called again, if somebody dies before its answer is written down.

Whoever has lost the lease (ID003) is refused with all that it was about to write, and
goes no further. The environment names the database, and may change LEASE, which is how
soon, in seconds, others take over from somebody who died.

What happens is logged at level DEBUG, on a line that ends in what was reached.
"""

import collections
import contextlib
import logging
import os

import psycopg2
from psycopg2.extras import Json

LEASE = float(os.environ.get('LEASE', 30))
TTL = '30 days'         # longer than clients repeat requests, and than a flow is left open

log = logging.getLogger('flow')

# status: of HTTP; retry_after: seconds, or None
Answer = collections.namedtuple('Answer', 'status body retry_after replayed',
                                defaults=(None, False))


class NotNow(Exception):
    """Something cannot be done now: the flow is to be tried again, in `retry_in` (an
    interval as a timedelta; None: after the backoff of the settings)."""

    def __init__(self, reason, retry_in=None):
        super().__init__(reason)
        self.retry_in = retry_in


def connect():
    """Whoever stops within a transaction does not keep its locks for longer than its lease."""
    db = psycopg2.connect('', keepalives_idle=30)
    db.autocommit = True                # "with db" is a transaction all the same
    with db.cursor() as cursor:
        cursor.execute('SET idle_in_transaction_session_timeout = %s', [int(LEASE * 1000)])
    return db


def run(program, key, scope, request, opened, wait='0'):
    """Runs a flow as far as it goes, and returns an Answer.

    opened(sql) writes, with the claim, that there is such a flow; the program is handed
    what it returns."""
    with contextlib.closing(connect()) as db:
        flow = Flow(db, key, scope)
        with db:
            outcome, response, flow.token, retry_after = flow.sql(
                '''SELECT outcome, response, token, retry_after
                     FROM idem_claim(%s, scope => %s, request => %s, ttl => %s, wait => %s,
                                     lease => %s, takeover => 'rerun')''',
                key, scope, Json(request), TTL, wait, f'{LEASE} s')
            if outcome == 'claimed':
                given = opened(flow.sql)
        if outcome != 'claimed':
            return told(outcome, response, retry_after)
        flow.reached('claimed')
        try:
            return program(flow, given)
        except psycopg2.Error as error:
            if error.pgcode != 'ID003':
                return flow.fail(error)
            flow.reached(f'lost: {error}')
            return told('in_progress')
        except Exception as error:
            return flow.fail(error)


def told(outcome, response=None, retry_after=None):
    """The answer to somebody whose claim has this outcome."""
    if outcome == 'replayed':
        return Answer(response['status'], response['body'], replayed=True)
    status = {'mismatch': 422, 'in_progress': 409, 'retry_later': 503}.get(outcome, 500)
    seconds = retry_after.total_seconds() if retry_after else 1
    return Answer(status, {'outcome': outcome}, seconds if status in (409, 503) else None)


class Flow:
    def __init__(self, db, key, scope):
        self.db, self.key, self.scope, self.token = db, key, scope, None

    def sql(self, statement, *args):
        """A statement; its first row."""
        with self.db.cursor() as cursor:
            cursor.execute(statement, args)
            return cursor.fetchone() if cursor.description else None

    def reached(self, point):
        log.debug('%s: %s', self.key, point)

    def step(self, name, write, call=None, request=None):
        """A step, and its result, which write(sql) or, with a call, write(sql, answer)
        returns. `request`: what it is asked to do, which may not differ from run to run."""
        request = None if request is None else Json(request)
        done, result = self.sql(
            '''SELECT done, result
                 FROM idem_step(%s, %s, scope => %s, token => %s, request => %s)''',
            self.key, name, self.scope, self.token, request)
        if done:
            return result
        self.reached(f'{name} to do')
        answer = ()
        if call:
            self.sql('SELECT idem_renew(%s, %s, scope => %s, token => %s)',
                     self.key, f'{LEASE} s', self.scope, self.token)
            derived, = self.sql('SELECT idem_derive(%s, %s, scope => %s)::text',
                                self.key, name, self.scope)
            answer = (call(derived),)
            self.reached(f'{name} called')
        with self.db:
            result = write(self.sql, *answer)
            self.reached(f'{name} written')
            self.sql(
                'SELECT idem_step_finish(%s, %s, %s, scope => %s, token => %s, request => %s)',
                self.key, name, Json(result), self.scope, self.token, request)
            self.reached(f'{name} finished')
        self.reached(f'{name} done')
        return result

    def finish(self, status, body, write):
        """The end of the flow; what write(sql) writes commits with the answer."""
        with self.db:
            # a finish alone would not notice that all of this has committed before
            self.sql('SELECT idem_guard(%s, scope => %s, token => %s)',
                     self.key, self.scope, self.token)
            write(self.sql)
            self.reached('answer written')
            self.sql('SELECT idem_finish(%s, %s, scope => %s, token => %s)',
                     self.key, Json({'status': status, 'body': body}), self.scope, self.token)
            self.reached('answer finished')
        self.reached('answer done')
        return Answer(status, body)

    def fail(self, error):
        """The flow is to be tried again, by its client or by whoever resumes flows. There is
        no last attempt: what was asked for outside may have been done, so somebody has to
        go on until that is known. If this fails too, the lease runs out by itself."""
        log.warning('%s: failed: %s', self.key, str(error).strip(),
                    exc_info=not isinstance(error, NotNow))
        try:
            if self.db.closed:
                with contextlib.closing(connect()) as self.db:
                    return self.fail_now(error)
            return self.fail_now(error)
        except psycopg2.Error as another:
            log.warning('%s: %s', self.key, str(another).strip())
            return told('in_progress' if another.pgcode == 'ID003' else 'retry_later')

    def fail_now(self, error):
        outcome, retry_after = self.sql(
            '''SELECT outcome, retry_after
                 FROM idem_fail(%s, %s, retry_in => %s, max_attempts => 0, scope => %s,
                                token => %s)''',
            self.key, Json({'message': str(error).replace('\0', '')}),
            getattr(error, 'retry_in', None), self.scope, self.token)
        return told(outcome, retry_after=retry_after)
