#!/usr/bin/python3
"""A card processor, of the kind that has bad days.

    processor.py LOG

Listens on a free port of the loopback, and prints its number. POST /charges with an
Idempotency-Key and {"amount": ..., "currency": ..., "card": ...} charges a card, once for each
key, and answers 201 with {"charge": ...}. The card says what befalls the first request with a
key:

    declined    is answered 402, and every later one, too
    refused     is answered 400, and every later one, too
    failing     is answered 500, and nothing is done
    late        is done, and answered only after the client has gone
    slow        is done, and answered once there is a file named LOG.go
    any other   is done, and answered

Each request is a line in LOG: the key, the card, the amount, the status of the answer, and the
charge if this request has made one, separated by tabs. It is written before the answer is sent.
"""

import collections
import http.server
import json
import os
import sys
import threading
import time

LOG = sys.argv[1]

lock = threading.Lock()
requests = collections.Counter()        # by key
charges = {}                            # by key: the charge, and for what


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        key = self.headers.get('Idempotency-Key', '').strip('"')
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        card = body['card']
        made = ''
        with lock:
            requests[key] += 1
            first = requests[key] == 1
            status = {'declined': 402, 'refused': 400}.get(card, 201)
            if not key:
                status = 400
            elif first and card == 'failing':
                status = 500
            elif charges.get(key, (None, body))[1] != body:
                status = 422
            elif status == 201 and key not in charges:
                made = f'ch_{len(charges) + 1}'
                charges[key] = made, body
            print(key, card, body['amount'], status, made, sep='\t', file=log, flush=True)
        if first and card == 'late':
            self.connection.recv(1)     # nothing, once the client has gone
        elif first and card == 'slow':
            while not os.path.exists(f'{LOG}.go'):
                time.sleep(0.01)
        self.answer(status, {201: lambda: {'charge': charges[key][0]},
                             402: lambda: {'reason': 'The bank says no.'}}.get(status, dict)())

    def answer(self, status, body):
        body = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:                 # it has gone
            self.close_connection = True

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args):
        """A client that was killed."""


with open(LOG, 'a') as log:
    server = Server(('127.0.0.1', 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
