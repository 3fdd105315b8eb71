#!/usr/bin/python3
"""The shop: takes orders by HTTP.

    shop.py [PORT]

    POST /orders
    Idempotency-Key: 5f0e
    {"item": "book", "quantity": 1, "card": "tok_1"}

Listens on the loopback; port 0 stands for a free one. Prints its number. The environment
names the database, and PAYMENTS, the URL of the payment service; see also flow.py and
outside.py.

    201  the order is shipped
    402  the payment was declined, and nothing is reserved any more
    410  there are not so many
    400  no order, or no key
    409  another request is at work on it            } come again with the same key,
    503  it is not done yet, and will be gone on with  } after Retry-After
    422  the key was used for another order

201, 402 and 410 are the same for every repeat, which is marked Idempotency-Replayed.
`app` is for a WSGI server; this one is Flask's own.
"""

import math
import os
import re
import sys

import flask
import psycopg2
import werkzeug.serving
from psycopg2.extras import Json

import outside
from flow import run, told

PAYMENTS = os.environ.get('PAYMENTS', 'http://127.0.0.1:8081')
SCOPE = 'POST /orders'      # where clients are told apart, who asks belongs in here, too

app = flask.Flask(__name__)


#
# The flow
#

def place_order(flow, order):
    """reserve, charge, ship, and a mail. The price is what it was when the item was
    reserved: the result of a step is the same in every run."""

    def reserve(sql):
        taken = sql('''UPDATE stock SET available = available - %s
                        WHERE item = %s AND available >= %s RETURNING price''',
                    order['quantity'], order['item'], order['quantity'])
        if taken is None:
            return None
        sql('INSERT INTO reservation VALUES (%s, %s, %s)',
            order['id'], order['item'], order['quantity'])
        return {'amount': taken[0] * order['quantity']}

    def charge(key):
        status, answer = outside.ask(flow.sql, 'payments', f'{PAYMENTS}/charges', {
            'order': order['id'], 'amount': reserved['amount'], 'card': order['card']}, key)
        if status not in (200, 402):
            raise RuntimeError(f'payments: status {status}')    # not a yes, and not a no
        return answer

    def pay(sql, answer):
        if 'charge' in answer:
            sql('INSERT INTO payment VALUES (%s, %s, %s)',
                order['id'], answer['charge'], reserved['amount'])
        return answer

    def ship(sql):
        sql('INSERT INTO shipment VALUES (%s, %s, %s)',
            order['id'], order['item'], order['quantity'])

    reserved = flow.step('reserve', reserve)
    if reserved is None:
        return end(flow, order, 'sold out', 410)
    paid = flow.step('charge', pay, call=charge, request=reserved)
    if 'declined' in paid:
        return end(flow, order, 'declined', 402, reason=paid['declined'])
    flow.step('ship', ship)
    return end(flow, order, 'shipped', 201, charge=paid['charge'], **reserved)


def end(flow, order, state, status, **more):
    def write(sql):
        if state != 'shipped':
            release(sql, order)
        sql('UPDATE orders SET state = %s WHERE id = %s', state, order['id'])
        sql('SELECT idem_enqueue(%s, %s)', 'mail', Json(body))     # leaves with the commit

    body = {'order': order['id'], 'state': state, **more}
    return flow.finish(status, body, write)


def release(sql, order):
    """Undoes the reservation, if there is one."""
    sql('''WITH gone AS (DELETE FROM reservation WHERE order_id = %s RETURNING item, quantity)
           UPDATE stock SET available = available + quantity FROM gone
            WHERE stock.item = gone.item''', order['id'])


def handle(key, request, wait='0'):
    """An order, be it new, repeated or left by somebody who died."""
    def opened(sql):
        row = (sql("SELECT id FROM orders WHERE key = %s AND state = 'open'", key)
               or sql('INSERT INTO orders (key, request) VALUES (%s, %s) RETURNING id',
                      key, Json(request)))
        return {'id': row[0], **request}

    return run(place_order, key, SCOPE, request, opened, wait)


#
# HTTP
#

@app.post('/orders')
def post_order():
    key = key_of(flask.request.headers.get('Idempotency-Key', ''))
    order = order_of(flask.request.get_json(silent=True))
    if not key or not order:
        return {'error': 'no order' if key else 'no Idempotency-Key'}, 400
    try:
        answer = handle(key, order, wait='1 s')
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        # nothing is claimed; or it is, and nobody got to know: then that lease runs out
        app.logger.exception('database')
        answer = told('retry_later')
    headers = {}
    if answer.retry_after is not None:
        headers['Retry-After'] = max(1, math.ceil(answer.retry_after))
    if answer.replayed:
        headers['Idempotency-Replayed'] = 'true'
    return answer.body, answer.status, headers


def key_of(header):
    """A quoted string, or the same bare; of up to 512 bytes."""
    match = re.fullmatch(r'"([\x20-\x7e]+)"|([\x21-\x7e]+)', header)
    key = match and (match[1] or match[2])
    return key if key and len(key) <= 512 else None


def order_of(body):
    """None, if it is none."""
    match body:
        case {'item': str(item), 'quantity': int(quantity), 'card': str(card)} if (
                re.fullmatch(r'[\w-]{1,100}', item) and re.fullmatch(r'\w{1,100}', card)
                and 0 < quantity <= 1000 and quantity is not True):
            return {'item': item, 'quantity': quantity, 'card': card}
    return None


def main(port='8080'):
    server = werkzeug.serving.make_server('127.0.0.1', int(port), app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main(*sys.argv[1:])
