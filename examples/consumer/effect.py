#!/usr/bin/python3
"""Works on the messages of a queue inside the database, exactly once.

    effect.py QUEUE

The message is taken, its effect written and the message acknowledged in one
transaction: all of it happens, or none. There is no lease to care for, and nothing to
give back: whatever ends this program or its connection undoes it.

An effect that fails is undone alone (the savepoint), and the failure is what commits:
else nobody would count the attempts. The environment names the database.
"""

import contextlib
import json
import random
import signal
import sys
import time

import psycopg2
import psycopg2.extensions
import psycopg2.extras

stopping = False


def effect(cursor, payload):
    cursor.execute('INSERT INTO invoice (n) VALUES (%s)', [payload['n']])


def work(cursor, queue):
    """On one message; false if there is none."""
    cursor.execute('BEGIN')
    cursor.execute('SELECT id, token, payload FROM idem_dequeue(%s)', [queue])
    message = cursor.fetchone()
    if message:
        id, token, payload = message
        cursor.execute('SAVEPOINT effect')
        try:
            effect(cursor, payload)
            cursor.execute('SELECT idem_ack(%s, %s)', [id, token])
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            raise                       # not the fault of the message: all of it again
        except Exception as failure:
            cursor.execute('ROLLBACK TO SAVEPOINT effect')
            error = json.dumps({'message': str(failure).replace('\0', '')})
            cursor.execute('SELECT idem_nack(%s, %s, %s)', [id, token, error])
    cursor.execute('COMMIT')
    return message is not None


def stop(*_):
    global stopping
    stopping = True


def main(queue):
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
                    if not work(cursor, queue):
                        cursor.execute('CALL idem_await(%s, %s)', [queue, '2 s'])
                    attempt = 0
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            print(f'database: {error}', file=sys.stderr)
            time.sleep(random.uniform(0, min(5, 0.1 * 2 ** attempt)))
            attempt += 1


main(sys.argv[1])
