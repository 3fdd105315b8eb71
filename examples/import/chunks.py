#!/usr/bin/python3
"""Imports readings from CSV whose rows have no names, each file once, chunk by chunk.

    chunks.py FILE

Two rows of a file may be equal, and both count. So it is not the row that is known, but
the file, by its SHA-256: that is the key, which is claimed with a lease. CHUNK rows at a
time (1000) are written in one transaction with idem_step_finish. When an importer has
died, start it again: it takes over once the lease has run out, and does the chunks that
are left. Of those who import one file at once, one does it; the others wait, and are told
what he has imported.

The environment names the database (PGHOST and the like), and may change CHUNK and LEASE
(in seconds: longer than a chunk takes).
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import sys

import psycopg2

CHUNK = int(os.environ.get('CHUNK', 1000))
LEASE = f"{os.environ.get('LEASE', 30)} s"
WAIT = '10 min'                         # for another importer of this file
SCOPE = 'readings'
TTL = '400 days'                        # after that the file is a new one


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def chunks_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        rows = csv.reader(file)
        next(rows, None)                # the head
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield chunk


def value(db, statement, *args):
    """Of a statement, in a transaction of its own."""
    with db, db.cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchone()


def load(db, key, token, step, chunk):
    """The chunk and the step, both or neither."""
    with db, db.cursor() as cursor:
        cursor.execute('SELECT done FROM idem_step(%s, %s, scope => %s, token => %s)',
                       [key, step, SCOPE, token])
        done, = cursor.fetchone()
        if not done:
            cursor.execute(
                '''INSERT INTO reading (sensor, at, value)
                   SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::numeric[])''',
                [list(column) for column in zip(*chunk, strict=True)])
            # an error, if somebody has taken over: then nothing is written
            cursor.execute(
                'SELECT idem_step_finish(%s, %s, %s, scope => %s, token => %s)',
                [key, step, json.dumps(len(chunk)), SCOPE, token])
        cursor.execute('SELECT idem_renew(%s, %s, %s, %s)', [key, LEASE, SCOPE, token])
    return done


def main(path):
    key = digest_of(path)
    with contextlib.closing(psycopg2.connect('')) as db:
        # The size of a chunk is part of what is asked for: with another one the steps that
        # are done would be other rows.
        outcome, response, token = value(
            db, '''SELECT outcome, response, token
                     FROM idem_claim(%s, %s, %s, %s, lease => %s, wait => %s)''',
            key, TTL, json.dumps({'chunk': CHUNK}), SCOPE, LEASE, WAIT)
        if outcome == 'replayed':
            print(f"imported before: {response['rows']} rows")
            return
        if outcome != 'claimed':
            sys.exit(f'chunks.py: {path}: {outcome}')
        rows = known = 0
        try:
            for n, chunk in enumerate(chunks_of(path)):
                rows += len(chunk)
                if load(db, key, token, f'chunk {n}', chunk):
                    known += len(chunk)
        except Exception as error:
            # Steps that are done stay so. Who comes next need not wait for the lease.
            with contextlib.suppress(psycopg2.Error):
                value(db, "SELECT idem_fail(%s, %s, '0', scope => %s, token => %s)",
                      key, json.dumps({'message': str(error).replace('\0', '')}), SCOPE, token)
            raise
        value(db, 'SELECT idem_finish(%s, %s, %s, %s)',
              key, json.dumps({'rows': rows}), SCOPE, token)
        print(f'{rows - known} imported, {known} known')


main(sys.argv[1])
