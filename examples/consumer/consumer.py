#!/usr/bin/python3
"""Delivers the messages of a queue by HTTP.

    consumer.py QUEUE URL

The environment names the database (PGHOST and the like), and may change SLOTS (how
many deliveries at a time) and, in seconds, LEASE (how soon others take over from a
consumer that died), TIMEOUT (of a delivery; it may be longer than the lease) and GRACE
(how long deliveries may take to end after SIGTERM or SIGINT).

The main thread alone talks to the database; each delivery has a thread of its own, and
says in `results` how it went. That may be after the message was taken from `busy`,
because it has timed out or is somebody else's: then nobody listens.
"""

import contextlib
import email.utils
import itertools
import json
import os
import queue
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras

QUEUE, URL = sys.argv[1:]
SLOTS = int(os.environ.get('SLOTS', 10))
LEASE = float(os.environ.get('LEASE', 30))
TIMEOUT = float(os.environ.get('TIMEOUT', 60))
GRACE = float(os.environ.get('GRACE', 20))
WAIT = '5 s'                            # for messages, before asking again

db = None
polling = False
stop_at = None                          # once a signal has come
busy = {}                               # (id, token): times; a batch has one token
results = queue.SimpleQueue()


#
# The outside system
#

class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET."""

    def redirect_request(self, *args):
        return None


opener = urllib.request.build_opener(NoRedirect)


def deliver(delivery, payload, key):
    """In a thread. No error: delivered."""
    error = retry_in = None
    final = False
    try:
        request = urllib.request.Request(URL, payload.encode(), {
            'Content-Type': 'application/json', 'Idempotency-Key': key})
        opener.open(request, timeout=TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        error = {'status': answer.code}
        final = 400 <= answer.code < 500 and answer.code not in (408, 409, 425, 429)
        retry_in = seconds(answer.headers.get('Retry-After'))
        answer.close()
    except Exception as failure:        # no connection, no answer in time, no HTTP
        error = {'message': str(failure).replace('\0', '')}
    results.put((delivery, error, retry_in, final))


def seconds(retry_after):
    """Of a Retry-After, which is a number or a date; None for none."""
    try:
        if not retry_after.isdigit():
            date = email.utils.parsedate_to_datetime(retry_after)
            retry_after = max(0, date.timestamp() - time.time())
        return f'{min(float(retry_after), 86400)} s'
    except (AttributeError, TypeError, ValueError):
        return None


#
# The database
#

def sql(statement, *args):
    """A statement, in a transaction of its own; again, if the connection is lost or the
    server cannot do it now. What had been done before is ID003 then."""
    global db
    for attempt in itertools.count():
        try:
            if db is None or db.closed:
                db = psycopg2.connect('', keepalives_idle=30)
                db.autocommit = True
            with db.cursor() as cursor:
                cursor.execute(statement, args)
                return cursor.fetchall()
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if db and error.pgcode is None:
                db.close()
            if polling and (stop_at or isinstance(error, psycopg2.errors.QueryCanceled)):
                return []
            if stop_at and time.monotonic() > stop_at + 5:
                raise
            print(f'database: {error}', file=sys.stderr)
            time.sleep(random.uniform(0, min(5, 0.1 * 2 ** attempt)))


def ours(statement, *args):
    """The same about a message; false if it is not ours any more (ID003)."""
    try:
        return sql(statement, *args)
    except psycopg2.Error as error:
        if error.pgcode != 'ID003':
            raise
        return []


def take():
    """If there is nothing else to do, wait for messages."""
    global polling
    polling = True                      # from here on stop() ends the waiting
    rows = [] if stop_at else sql(
        '''SELECT id, token, payload::text, downstream_key::text
             FROM idem_dequeue(%s, %s, lease => %s, wait => %s)''',
        QUEUE, SLOTS - len(busy), f'{LEASE} s', None if busy else WAIT)
    polling = False
    now = time.monotonic()
    for id, token, payload, key in rows:
        busy[id, token] = {'beat': now, 'deadline': now + TIMEOUT}
        threading.Thread(target=deliver, args=((id, token), payload, key), daemon=True).start()


def settle(delivery, error=None, retry_in=None, final=False):
    if busy.pop(delivery, None) is None:
        return
    if error is None:
        ours('SELECT idem_ack(%s, %s)', *delivery)
    else:
        ours('SELECT idem_nack(%s, %s, %s, %s, %s)',
             *delivery, json.dumps(error), retry_in, final)


def look_after():
    """The heartbeat."""
    for delivery, times in list(busy.items()):
        now = time.monotonic()
        if now > times['deadline']:
            settle(delivery, {'message': 'timed out'})
        elif now > times['beat'] + LEASE / 3:
            times['beat'] = now
            if not ours('SELECT idem_extend(%s, %s, %s)', *delivery, f'{LEASE} s'):
                del busy[delivery]


def stop(*_):
    """A second signal allows no more time."""
    global stop_at
    stop_at = time.monotonic() + (0 if stop_at else GRACE)
    if polling and db and not db.closed:
        with contextlib.suppress(psycopg2.Error):
            db.cancel()


def main():
    # Python hears signals while it waits for the server.
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    while not stop_at or (busy and time.monotonic() < stop_at):
        if not stop_at and len(busy) < SLOTS:
            take()
        try:
            pause = min(0.5, LEASE / 10)
            while busy:
                settle(*results.get(timeout=pause))
                pause = 0
        except queue.Empty:
            pass
        look_after()
    for delivery in list(busy):
        settle(delivery, {'message': 'the consumer was stopped'}, retry_in='0')


main()
