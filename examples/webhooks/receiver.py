#!/usr/bin/python3
"""Receives webhooks, and puts each event into the inbox, once.

    WEBHOOK_SECRETS='{"shop": ["secret"]}' receiver.py [PORT]

Listens on PORT, or a free one, and prints its number. The environment names the database
(PGHOST and the like) and the secrets of each source, several while they are being
changed; and may change HOST (the address to listen on, 127.0.0.1), TOLERANCE (how old, in
seconds, a signature may be) and CONNECTIONS (to the database).

POST /webhooks/<source> takes {"id": …, "customer": …}, and what else the worker knows. The
header is

    Webhook-Signature: t=<seconds since 1970>,v1=<hex of HMAC-SHA256(secret, "<t>.<body>")>

with a v1 for each secret that the sender knows. Answers

    200  the event is in the inbox for good, {"duplicate": true} if it was already
    400  the event is none; 413: it is too large
    401  no signature, or not of this body, or not of this time
    404  nobody knows the source
    503  the database is away or busy: send it again

What is not answered, or not with 200, is to be sent again by the source, signed anew.
"""

import hmac
import json
import os
import queue
import re
import signal
import sys
import threading
import time

import flask
import psycopg2
import werkzeug.serving

SECRETS = json.loads(os.environ.get('WEBHOOK_SECRETS', '{}'))
HOST = os.environ.get('HOST', '127.0.0.1')
TOLERANCE = int(os.environ.get('TOLERANCE', 300))
CONNECTIONS = int(os.environ.get('CONNECTIONS', 8))
QUEUE = 'webhooks'
TTL = '30 days'                         # longer than any source goes on repeating

LARGEST = 1 << 20                       # body, in bytes

app = flask.Flask(__name__)


#
# The signature
#

def is_signed(header, body, secrets):
    """Of the body, by one of the secrets, and not too long ago: what somebody has
    overheard is of no use for ever."""
    parts = [part.strip().partition('=') for part in header.split(',')]
    times = [value for name, _, value in parts if name == 't']
    if len(times) != 1 or not re.fullmatch('[0-9]{1,12}', times[0]):
        return False
    if abs(time.time() - int(times[0])) > TOLERANCE:
        return False
    known = [hmac.new(secret.encode(), times[0].encode() + b'.' + body, 'sha256').hexdigest()
             for secret in secrets]
    return any(hmac.compare_digest(value.encode(), digest.encode())
               for name, _, value in parts if name == 'v1' for digest in known)


#
# The event
#

def parse(body):
    """Its text, id and customer. All else is the worker's business, and a dead letter if
    he cannot stand it: a source that hears 400 sends it again, or gives up."""
    text = body.decode()
    event = json.loads(text)
    if not isinstance(event, dict):
        raise ValueError('an event is an object')
    for name in 'id', 'customer':
        if not is_name(event.get(name)) and (name == 'id' or name in event):
            raise ValueError(f'"{name}" is to be 1 to 255 visible ASCII characters')
    return text, event['id'], event.get('customer')


def is_name(value):
    return isinstance(value, str) and re.fullmatch('[!-~]{1,255}', value)


#
# The database
#

class Busy(Exception):
    """All connections are in use."""


idle = queue.LifoQueue()                # connections
slots = threading.BoundedSemaphore(CONNECTIONS)


def receive(source, event_id, text, customer, header):
    """Puts the event into the inbox; true if it was there. The statement is a transaction
    of its own. Events of one customer are taken in the order of their commits."""
    if not slots.acquire(timeout=5):
        raise Busy('no connection is free')
    try:
        while True:
            db, is_new = connection()
            try:
                with db.cursor() as cursor:
                    cursor.execute(
                        '''SELECT duplicate
                             FROM idem_receive(%s, %s, %s::jsonb, queue => %s, headers => %s::jsonb,
                                               ttl => %s, message_group => %s)''',
                        [source, event_id, text, QUEUE, json.dumps({'signature': header}),
                         TTL, customer and f'{source}/{customer}'])
                    duplicate, = cursor.fetchone()
            except psycopg2.Error as error:
                if not is_outage(error):
                    idle.put(db)
                    raise
                lost = db.closed or error.pgcode is None
                db.close()
                if is_new or not lost:
                    raise
                continue                # the server may have been restarted since its last use
            idle.put(db)
            return duplicate
    finally:
        slots.release()


def is_outage(error):
    """Not the fault of the event: the connection, or what the server cannot do now."""
    if error.pgcode is None:
        # a connection that breaks is any of these
        return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) or \
            type(error) is psycopg2.DatabaseError
    return error.pgcode[:2] in ('08', '40', '53', '55', '57')


def connection():
    """Of the pool, or a new one."""
    try:
        return idle.get_nowait(), False
    except queue.Empty:
        # A rival that hangs with the same event must not hang us.
        db = psycopg2.connect('', connect_timeout=3, keepalives_idle=30,
                              options='-c statement_timeout=5s')
        db.autocommit = True
        return db, True


#
# HTTP
#

@app.post('/webhooks/<source>')
def webhook(source):
    if source not in SECRETS:
        return refuse(404, 'nobody knows this source')
    if (flask.request.content_length or 0) > LARGEST:
        return refuse(413, 'this is too large')
    body = flask.request.get_data()
    header = flask.request.headers.get('Webhook-Signature', '')
    if not is_signed(header, body, SECRETS[source]):
        return refuse(401, 'the signature is missing, wrong or too old')
    try:
        text, event_id, customer = parse(body)
    except (ValueError, RecursionError) as error:
        return refuse(400, str(error))
    try:
        return {'duplicate': receive(source, event_id, text, customer, header)}
    except (Busy, psycopg2.Error) as error:
        if isinstance(error, Busy) or is_outage(error):
            app.logger.warning('database: %s', error)
            return refuse(503, 'try again later', {'Retry-After': '1'})
        # 22: JSON that jsonb does not take, such as \u0000; 54: too large
        if error.pgcode and error.pgcode[:2] in ('22', '54'):
            return refuse(400, error.diag.message_primary)
        raise                           # our own mistake: 500


def refuse(status, message, headers=()):
    return {'error': message}, status, headers


class Handler(werkzeug.serving.WSGIRequestHandler):
    timeout = 30                        # for who connects and says nothing


def main():
    server = werkzeug.serving.make_server(HOST, int(sys.argv[1]) if sys.argv[1:] else 0, app,
                                          threaded=True, request_handler=Handler)
    server.daemon_threads = False       # server_close() waits for them

    def stop(*_):
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(server.port, flush=True)
    server.serve_forever()
    server.server_close()


if __name__ == '__main__':
    main()
