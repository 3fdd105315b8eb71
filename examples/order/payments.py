#!/usr/bin/python3
"""The payment service: somebody else's, and not always well.

    payments.py LOG [PORT]

Listens on the loopback; without PORT, on a free port. Prints its number.

    POST /charges
    Idempotency-Key: 6165d98e-7806-81ce-83b6-38dcc3d6e93a
    {"order": 7, "amount": 30, "card": "tok_ok"}

A charge is made once for each key, and every time if there is none; a key that comes with
another request is answered 422. The card says what befalls the first request for an order:

    tok_failing     is answered 500, and not done
    tok_lost        is done, and gets no answer
    tok_hanging     is not done, and not answered; the connection stays open

Later ones, and all for other cards, are done and answered, but for tok_declined, which is
answered 402, each time. While there is a file LOG.down, all requests are answered 503.

Each request is a line in LOG: order, amount, key, card, status (0: no answer), and the
number of the charge that was made by it (or 0), separated by tabs. It is written before
the answer is sent.
"""

import collections
import http.server
import json
import os
import sys
import threading

LOG, PORT = (sys.argv[1:] + ['0'])[:2]

lock = threading.Lock()
requests = collections.Counter()        # by order
answers = {}                            # by key: request and answer
charges = 0


def charge(key, message):
    """Under the lock: status, answer, and whether the answer is sent."""
    global charges
    if os.path.exists(f'{LOG}.down'):
        return 503, {}, True
    requests[message['order']] += 1
    first = requests[message['order']] == 1
    card = message['card']
    if first and card in ('tok_failing', 'tok_hanging'):
        return 500, {}, card == 'tok_failing'
    if key in answers:
        former, status, answer = answers[key]
        return (status, answer, True) if former == message else (422, {}, True)
    if card == 'tok_declined':
        status, answer = 402, {'declined': 'insufficient funds'}
    else:
        charges += 1
        status, answer = 200, {'charge': f'ch_{charges}'}
    if key:
        answers[key] = message, status, answer
    return status, answer, not (first and card == 'tok_lost')


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        key = self.headers['Idempotency-Key']
        message = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with lock:
            before = charges
            status, answer, answered = charge(key, message)
            print(message['order'], message['amount'], key, message['card'],
                  status if answered else 0, charges if charges > before else 0,
                  sep='\t', file=log, flush=True)
        if answered:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif message['card'] == 'tok_hanging':
            self.connection.recv(1)     # nothing, once the client has gone

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):
        """A client that was killed."""


with open(LOG, 'a') as log:
    server = Server(('127.0.0.1', int(PORT)), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
