#!/usr/bin/python3
"""Stands between clients and the server, and spoils the answer of a COMMIT.

    proxy.py SOCKET FAULT

Listens on a port of 127.0.0.1, which it prints, and passes all on to the server's
SOCKET. If there is a file FAULT when a COMMIT is answered, it is removed, and what it
says is done: "lose" cuts the connection, so that the transaction is committed and its
client does not know; "rollback" says ROLLBACK instead, as the server does after an error.
"""

import contextlib
import os
import socket
import struct
import sys
import threading

SOCKET, FAULT = sys.argv[1:]
REFUSED = (80877103, 80877104)          # requests for TLS and for GSSAPI encryption
COMMIT = b'COMMIT\0'


def message(source, has_type):
    """One message as it is; empty at the end."""
    head = exactly(source, 5 if has_type else 4)
    if not head:
        return b''
    return head + exactly(source, struct.unpack('!I', head[-4:])[0] - 4)


def exactly(source, size):
    data = b''
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            return b''
        data += more
    return data


def fault():
    try:
        with open(FAULT) as file:
            what = file.read().strip()
        os.unlink(FAULT)
        return what
    except FileNotFoundError:
        return None


def answers(client, server):
    """From the server to the client."""
    with contextlib.suppress(OSError):
        while data := message(server, has_type=True):
            if data[:1] == b'C' and data[5:] == COMMIT:
                what = fault()
                if what == 'lose':
                    break
                if what == 'rollback':
                    data = b'C' + struct.pack('!I', 13) + b'ROLLBACK\0'
            client.sendall(data)
    end(client, server)


def requests(client, server):
    """From the client to the server, after the start-up packet."""
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            server.sendall(data)
    end(client, server)


def end(*sockets):
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def serve(client):
    server = socket.socket(socket.AF_UNIX)
    with client, server, contextlib.suppress(OSError):
        while data := message(client, has_type=False):
            if struct.unpack('!I', data[4:8])[0] not in REFUSED:
                break
            client.sendall(b'N')
        else:
            return
        server.connect(SOCKET)
        server.sendall(data)
        thread = threading.Thread(target=requests, args=(client, server), daemon=True)
        thread.start()
        answers(client, server)
        thread.join()


def main():
    listener = socket.create_server(('127.0.0.1', 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


main()
