#!/usr/bin/python3
"""Books the events of the inbox, exactly once, those of one customer in order.

    worker.py

The event is taken, booked and acknowledged in one transaction: all of it happens, or
none. There is no lease to care for: whatever ends this program or its connection undoes
what is not committed, and gives the event back at once. As many workers may run as there
is work for; two of them never have events of one customer at the same time, because these
are in one group.

An event that cannot be booked is undone alone (the savepoint), and that failure is what
commits: so attempts are counted, and an event that has used up its attempts becomes a
dead letter with its last error. SIGTERM and SIGINT let it finish the event that it has.
The environment names the database.
"""

import contextlib
import json
import random
import re
import signal
import sys
import time

import psycopg2
import psycopg2.extensions
import psycopg2.extras

QUEUE = 'webhooks'

db = None
waiting = False
stopping = False


class Malformed(Exception):
    """No retry will help."""


def book(cursor, message, key, event):
    """The effect: to be replaced by your own. It may do whatever this transaction undoes."""
    source, _, event_id = key.partition('/')
    kind, customer, amount, currency = (
        event.get(name) for name in ('type', 'customer', 'amount', 'currency'))
    if kind not in ('payment', 'refund'):
        raise Malformed(f'nobody knows what to do on {json.dumps(kind)}')
    if not isinstance(amount, str) or not re.fullmatch(r'[0-9]{1,9}\.[0-9]{2}', amount):
        raise Malformed(f'this is no amount: {json.dumps(amount)}')
    if kind == 'refund':
        amount = f'-{amount}'
    cursor.execute(
        '''INSERT INTO ledger (source, event, customer, amount, currency, message)
           VALUES (%s, %s, %s, %s, %s, %s)''',
        [source, event_id, customer, amount, currency, message])


def is_outage(error):
    """Not the fault of the event: the connection, or what the server cannot do now."""
    if getattr(error, 'pgcode', None) is None:
        # a connection that breaks is any of these
        return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) or \
            type(error) is psycopg2.DatabaseError
    return error.pgcode[:2] in ('08', '40', '53', '55', '57')


def work(cursor):
    """On one event; false if there is none."""
    cursor.execute('BEGIN')
    cursor.execute('SELECT id, token, key, payload FROM idem_dequeue(%s)', [QUEUE])
    message = cursor.fetchone()
    if message:
        id, token, key, event = message
        cursor.execute('SAVEPOINT event')
        try:
            book(cursor, id, key, event)
            cursor.execute('SELECT idem_ack(%s, %s)', [id, token])
        except Exception as failure:
            if is_outage(failure):
                raise                   # all of it again
            cursor.execute('ROLLBACK TO SAVEPOINT event')
            error = {'sqlstate': getattr(failure, 'pgcode', None),
                     'message': str(failure).strip().replace('\0', '')}
            cursor.execute('SELECT idem_nack(%s, %s, %s, final => %s)',
                           [id, token, json.dumps(error), isinstance(failure, Malformed)])
    cursor.execute('COMMIT')
    return message is not None


def wait(cursor):
    """For events, without a transaction."""
    global waiting
    waiting = True                      # from here on stop() ends the waiting
    try:
        if not stopping:
            cursor.execute('CALL idem_await(%s, %s)', [QUEUE, '2 s'])
    except psycopg2.errors.QueryCanceled:
        if not stopping:
            raise
    finally:
        waiting = False


def stop(*_):
    global stopping
    stopping = True
    if waiting:
        with contextlib.suppress(psycopg2.Error):
            db.cancel()


def main():
    global db
    # Python hears signals while it waits for the server.
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    attempt = 0
    while not stopping:
        try:
            with contextlib.closing(psycopg2.connect('', keepalives_idle=30)) as db:
                db.autocommit = True    # BEGIN and COMMIT are ours
                cursor = db.cursor()
                while not stopping:
                    if not work(cursor):
                        wait(cursor)
                    attempt = 0
        except psycopg2.Error as error:
            if not is_outage(error):
                raise
            print(f'database: {error}', file=sys.stderr)
            time.sleep(random.uniform(0, min(2, 0.1 * 2 ** attempt)))
            attempt += 1


main()
