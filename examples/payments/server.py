#!/usr/bin/python3
"""A payment service that honours the Idempotency-Key header.

    POST /payments       {"amount": 950, "currency": "EUR"}: from the customer's account, all
                         of it in the database
    POST /card-payments  {"amount": 950, "currency": "EUR", "card": "..."}: by way of a card
                         processor, which is not

The environment names the database (PGHOST and the like) and the PROCESSOR (its URL), and may
change PORT (0, the default, is any that is free; it is printed) and, in seconds, LEASE (how
soon a repeat takes over from a service that died) and TIMEOUT (of a call of the processor;
less than LEASE).
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import queue
import random
import re
import sys
import time
import urllib.error
import urllib.request
import uuid

import flask
import psycopg2
import psycopg2.extras
import werkzeug.exceptions
import werkzeug.serving

PORT = int(os.environ.get('PORT', 0))
PROCESSOR = os.environ.get('PROCESSOR')
LEASE = float(os.environ.get('LEASE', 30))
TIMEOUT = float(os.environ.get('TIMEOUT', 20))

pool = queue.LifoQueue()                # connections, or None for one yet to be made
for _ in range(10):
    pool.put(None)


#
# To be copied: requests under a key
#

class CallFailed(Exception):
    """The call to the outside; if it is final, it is not tried again."""

    def __init__(self, message, final=False):
        super().__init__(message)
        self.final = final


def idempotent(check, call=None):
    """Makes a view, which gives a status and a body, answer under the Idempotency-Key.

    check(body)             what is wrong with the request, if anything
    call(body, key)         the part outside the database, if there is one, with the key to be
                            handed on; raises CallFailed
    view(db, key[, called]) the part in the database; db is a cursor
    """
    def decorate(view):
        @functools.wraps(view)
        def handler():
            request = flask.request
            key = key_of(request.headers.get('Idempotency-Key', ''))
            if not key:
                return send(*problem(
                    400, 'missing', 'Idempotency-Key is missing or malformed',
                    'This operation needs the header Idempotency-Key: a string of 1 to 512 '
                    'characters, new for each operation and the same for its retries.'))
            body = request.get_json()
            wrong = check(body)
            if wrong:                   # not stored: the key is free for a better request
                return send(*problem(400, 'invalid', 'The request is invalid', wrong))

            # The key is the customer's own. With the endpoint in what is compared, the same
            # key at another endpoint is a mistake, and not another operation.
            claim = {
                'key': key, 'scope': flask.g.customer, 'holder': str(uuid.uuid4()),
                'request': json.dumps(
                    {'method': request.method, 'path': request.path, 'body': body}),
            }
            if call:
                return send(*persist(
                    under_lease, claim, functools.partial(call, body), view))
            return send(*persist(in_transaction, claim, view))
        return handler
    return decorate


def in_transaction(claim, work):
    """Claim, work and finish commit together, or nothing does."""
    with transaction() as db:
        db.execute('''SELECT outcome, response, NULL AS retry_after
                        FROM idem_claim(%(key)s, scope => %(scope)s, request => %(request)s,
                                        wait => '0')''', claim)
        claimed = db.fetchone()
        if claimed.outcome != 'claimed':
            return answer_to(claimed)
        return finish(db, claim, None, work)


def under_lease(claim, call, work):
    """The claim is committed before the call and outlives this process. When the lease has
    run out, a repeat takes over and calls again, with the same downstream key; whoever lost
    the lease can book nothing. The holder makes it possible to claim again after a lost
    answer."""
    with connection() as db:
        db.execute('''SELECT outcome, response, token, idem_derive(%(key)s, 'call', %(scope)s) AS
                             downstream, ceil(extract(epoch FROM retry_after)) AS retry_after
                        FROM idem_claim(%(key)s, scope => %(scope)s, request => %(request)s,
                                        wait => '0', lease => %(lease)s, holder => %(holder)s)''',
                   {**claim, 'lease': f'{LEASE} s'})
        claimed = db.fetchone()
    if claimed.outcome != 'claimed':
        return answer_to(claimed)

    try:
        called = call(claimed.downstream)
    except CallFailed as error:
        print(f'{claimed.downstream}: {error}', file=sys.stderr)
        refused = problem(502, 'refused', 'The request was refused', str(error))
        # No limit to the attempts: nobody knows whether it was done, until a call says so.
        with connection() as db:
            db.execute('''SELECT outcome, response,
                                 ceil(extract(epoch FROM retry_after)) AS retry_after
                            FROM idem_fail(%s, %s, scope => %s, token => %s, final => %s,
                                           max_attempts => 0)''',
                       (claim['key'], stored(*refused[:2]), claim['scope'], claimed.token,
                        error.final))
            failure = db.fetchone()
        return refused if failure.outcome == 'failed' else answer_to(failure)

    with transaction() as db:
        db.execute('SELECT idem_guard(%s, %s, %s)',
                   (claim['key'], claim['scope'], claimed.token))
        return finish(db, claim, claimed.token, work, called)


def finish(db, claim, token, work, *args):
    """Of work that fails nothing is left but its answer. What is answered is what was stored,
    so that a repeat gets the same to the letter."""
    db.execute('SAVEPOINT work')
    status, body = work(db, claim['key'], *args)[:2]
    if status >= 400:
        db.execute('ROLLBACK TO SAVEPOINT work')
    db.execute('SELECT idem_finish(%s, %s, %s, %s) AS response',
               (claim['key'], stored(status, body), claim['scope'], token))
    response = db.fetchone().response
    return response['status'], response['body']


def stored(status, body):
    return json.dumps({'status': status, 'body': body})


@contextlib.contextmanager
def connection():
    """A cursor, of which each statement is a transaction by itself."""
    db = pool.get()
    try:
        if db is None or db.closed:
            db = None                   # if there will be none
            db = psycopg2.connect('', cursor_factory=psycopg2.extras.NamedTupleCursor)
            db.autocommit = True
        with db.cursor() as cursor:
            yield cursor
    finally:
        pool.put(db)


@contextlib.contextmanager
def transaction():
    with connection() as cursor:
        cursor.execute('BEGIN')
        try:
            yield cursor
            cursor.execute('COMMIT')
            if cursor.statusmessage != 'COMMIT':        # somebody has swallowed an error
                raise RuntimeError(f'COMMIT was answered {cursor.statusmessage}')
        except BaseException:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute('ROLLBACK')
            raise


def persist(attempt, *args):
    """All of it again, with the same key, if the connection was lost (perhaps with the answer
    to COMMIT), the server cannot do it now, or the lease is somebody else's."""
    for n in itertools.count(1):
        try:
            return attempt(*args)
        except psycopg2.Error as error:
            if not re.match('08|40|53|57P|ID003', error.pgcode or '08'):
                raise
            print(f'database: {error}'.splitlines()[0], file=sys.stderr)
            if n == 8:
                return later('The database is not available', 1)
        time.sleep(random.uniform(0, min(1, 0.02 * 2 ** n)))


def answer_to(claimed):
    """How others are answered who come with a key that was claimed before."""
    if claimed.outcome in ('replayed', 'failed'):
        return (claimed.response['status'], claimed.response['body'],
                {'Idempotency-Replayed': 'true'})
    if claimed.outcome == 'mismatch':
        return problem(422, 'reused', 'Idempotency-Key is already used',
                       'The key was used before with another request. '
                       'Use a new key for a new operation.')
    if claimed.outcome == 'in_progress':        # likely to be done soon, whatever the lease
        return problem(409, 'outstanding', 'A request with this Idempotency-Key is outstanding',
                       'The first request is still being processed. '
                       'Repeat it later, with the same key.', {'Retry-After': '1'})
    if claimed.outcome == 'retry_later':
        return later('The operation has failed for now', claimed.retry_after)
    raise RuntimeError(f'the outcome of the claim is {claimed.outcome}')


def key_of(header):
    """The draft has a string in double quotes, which may have parameters. Many clients send it
    bare; it means the same."""
    match = re.fullmatch(r' *(?:"((?:[ !#-\[\]-~]|\\["\\])*)" *(?:;.*)?|([!#-+\--:<-~]+) *)',
                         header)
    if match is None:
        return None
    key = match[2] or re.sub(r'\\(.)', r'\1', match[1])
    return key if len(key) <= 512 else None


def problem(status, type, title, detail, headers=None):
    """RFC 9457"""
    return (status, {'type': f'https://payments.example.com/problems#{type}', 'title': title,
                     'detail': detail, 'status': status}, headers or {})


def later(title, seconds):
    return problem(503, 'later', title, 'Repeat the request later, with the same key.',
                   {'Retry-After': str(max(1, int(seconds)))})


def send(status, body, headers=None):
    type = 'application/json' if status < 400 else 'application/problem+json'
    text = json.dumps(body, ensure_ascii=False, separators=(',', ':'))
    return flask.Response(text, status, headers, content_type=type)


#
# The service
#

CUSTOMERS = {'key-of-ann': 'ann', 'key-of-bob': 'bob'}

app = flask.Flask(__name__)


@app.before_request
def authenticate():
    scheme, _, api_key = flask.request.headers.get('Authorization', '').partition(' ')
    flask.g.customer = CUSTOMERS.get(api_key) if scheme == 'Bearer' else None
    if flask.g.customer is None:
        return send(*problem(401, 'unknown', 'Who are you?', 'An API key is needed.',
                             {'WWW-Authenticate': 'Bearer'}))
    return None


def check_payment(body, names=('amount', 'currency')):
    """What is wrong with a payment. Members that nobody knows are refused, so that what is
    compared with that of a repeat is all there is."""
    if not isinstance(body, dict) or body.keys() != set(names):
        return f'The members are {", ".join(names)}.'
    if type(body['amount']) is not int or not 1 <= body['amount'] <= 10 ** 9:
        return 'The amount is a number of cents, from 1 to 1000000000.'
    if not isinstance(body['currency'], str) or not re.fullmatch('[A-Z]{3}', body['currency']):
        return 'The currency is a code of three letters.'
    return None


def check_card_payment(body):
    wrong = check_payment(body, ('amount', 'currency', 'card'))
    if wrong:
        return wrong
    if not isinstance(body['card'], str) or not re.fullmatch('[a-z0-9]{1,40}', body['card']):
        return 'The card is a word.'
    return None


def charge_card(body, key):
    try:
        with urllib.request.urlopen(urllib.request.Request(
                f'{PROCESSOR}/charges', json.dumps(body).encode(),
                {'Content-Type': 'application/json', 'Idempotency-Key': f'"{key}"'}),
                timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 402:
                return json.load(error)
            raise CallFailed(f'the processor answers {error.code}',
                             400 <= error.code < 500 and error.code not in (408, 409, 425, 429))
    except Exception as error:          # no connection, no answer in time, no HTTP, no JSON
        raise CallFailed(str(error))


def book(db, key, charge=None):
    body = flask.request.get_json()
    db.execute('''INSERT INTO payment (customer, amount, currency, charge, key)
                  VALUES (%s, %s, %s, %s, %s) RETURNING id''',
               (flask.g.customer, body['amount'], body['currency'], charge, key))
    return 201, {'payment': db.fetchone().id, 'amount': body['amount'],
                 'currency': body['currency']}


def declined(detail):
    return problem(402, 'declined', 'The payment was declined', detail)


@app.post('/payments')
@idempotent(check_payment)
def pay(db, key):
    answer = book(db, key)
    db.execute('''UPDATE account SET balance = balance - %(amount)s
                   WHERE customer = %(customer)s AND balance >= %(amount)s''',
               {'customer': flask.g.customer, 'amount': flask.request.get_json()['amount']})
    return answer if db.rowcount else declined('The balance is too low.')


@app.post('/card-payments')
@idempotent(check_card_payment, charge_card)
def pay_by_card(db, key, called):
    if 'charge' in called:
        return book(db, key, called['charge'])
    return declined(called['reason'])


@app.errorhandler(werkzeug.exceptions.HTTPException)
def refuse(error):                      # 400 and the like: the body cannot be read
    if error.code >= 500:
        return send(*problem(error.code, 'internal', 'Something went wrong',
                             'Repeat the request, with the same key.'))
    return send(*problem(error.code, 'invalid', 'The request is invalid', error.description))


if __name__ == '__main__':
    logging.getLogger('werkzeug').setLevel(logging.WARNING)
    server = werkzeug.serving.make_server('127.0.0.1', PORT, app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()
