#!/usr/bin/python3
"""An outside system that is not well.

    receiver.py LOG [NAME=COUNT ...]

Listens on a free port of the loopback, and prints its number. Takes {"n": 7, "kind": ...}
by POST, and has an effect once for each Idempotency-Key. A request for the first time of
the kind

    ok        is done, and answered
    slow      is done, and answered once there is a file named LOG.go
    failing   is answered 500, and not done
    hanging   is not done, and not answered
    late      is done, and answered only after the client has gone
    refused   is answered 422, and every later one, too
    busy      is answered 429, with a Retry-After of 1 second, and not done

and is done and answered when it comes again. Clients are told apart by the path, /NAME;
from its COUNTth request on a client gets no answers: it is to be stopped with messages
in its hands.

Each request is a line in LOG: its time, client, n, kind, answer (0 for none), effect (0
or 1), separated by tabs. It is written before the answer is sent.
"""

import collections
import http.server
import json
import os
import sys
import threading
import time

LOG = sys.argv[1]
silent_from = {name: int(count) for name, count in (arg.split('=') for arg in sys.argv[2:])}

lock = threading.Lock()
requests = collections.Counter()        # by client, and by key
done = set()                            # keys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        client = self.path.strip('/')
        key = self.headers['Idempotency-Key']
        message = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        kind = message['kind']
        with lock:
            requests[client] += 1
            requests[key] += 1
            first = requests[key] == 1
            silent = requests[client] >= silent_from.get(client, sys.maxsize)
            status = {'refused': 422}.get(kind, 200)
            if first:
                status = {'failing': 500, 'busy': 429}.get(kind, status)
            effect = status == 200 and key not in done and not (first and kind == 'hanging')
            if effect:
                done.add(key)
            unanswered = silent or first and kind in ('hanging', 'late')
            print(time.time(), client, message['n'], kind, 0 if unanswered else status,
                  int(effect), sep='\t', file=log, flush=True)
        if unanswered:
            self.connection.recv(1)     # nothing, once the client has gone
        elif first and kind == 'slow':
            while not os.path.exists(f'{LOG}.go'):
                time.sleep(0.01)
        self.answer(status)

    def answer(self, status):
        body = b'{}'
        try:
            self.send_response(status)
            if status == 429:
                self.send_header('Retry-After', '1')
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
