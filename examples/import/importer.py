#!/usr/bin/python3
"""Imports payments from CSV, each row once, whoever else imports the same.

    importer.py FILE

A row is known by its account and reference: these are the key under which it is claimed.
BATCH rows at a time (1000) are claimed, written and finished in one transaction, so that
either all of that happens or nothing. When an importer has died, start it again: it goes
through the file from the beginning, and what was imported is passed by. Importers of files
that overlap wait for each other where they meet, and do not deadlock.

A row that comes again with other data is not imported, and neither is what is no payment.
Both are written into the table reject, with the reason. The environment names the database
(PGHOST and the like). Prints how many rows have become what.
"""

import collections
import contextlib
import csv
import datetime
import itertools
import json
import os
import random
import re
import sys
import time

import psycopg2

BATCH = int(os.environ.get('BATCH', 1000))
COLUMNS = ['account', 'reference', 'booked_on', 'amount', 'purpose']
SCOPE = 'payment'                       # keys of other imports do not meet these
TTL = '400 days'                        # after that a row that comes again is a new one

db = None


#
# The file
#

class Row:
    def __init__(self, line, values):
        self.line = line
        self.values = values
        self.reason = self.flaw()

    def flaw(self):
        """Why this is no payment; None if it is one. What passes here the table takes: one
        row that it does not take would undo the batch, in each attempt."""
        if len(self.values) != len(COLUMNS):
            return f'it has {len(self.values)} columns'
        if any(re.search('[\0\ud800-\udfff]', value) for value in self.values):
            return 'it has characters that are none'
        account, reference, booked_on, amount, _ = self.values
        if not all(re.fullmatch('[!-~]{1,100}', name) for name in (account, reference)):
            return 'it has no account and reference'
        if not is_date(booked_on):
            return 'its date is none'
        if not re.fullmatch(r'-?[0-9]{1,10}\.[0-9]{2}', amount):
            return 'its amount is none'
        return None

    def key(self):
        """There is no blank in either of them."""
        return f'{self.values[0]} {self.values[1]}'

    def content(self):
        """What is compared when the key comes again."""
        return json.dumps(self.values)


def is_date(text):
    with contextlib.suppress(ValueError):
        return bool(re.fullmatch('[0-9]{4}-[0-9]{2}-[0-9]{2}', text) and
                    datetime.date.fromisoformat(text))
    return False


def rows_of(path):
    """Bytes that are no UTF-8 become surrogates, and the row a reject."""
    with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
        lines = csv.reader(file)
        try:
            if next(lines, None) != COLUMNS:
                sys.exit(f'importer.py: {path} has other columns than {", ".join(COLUMNS)}')
            for values in lines:
                if values:              # not a blank line
                    yield Row(lines.line_num, values)
        except csv.Error as error:      # a quote that is never closed, for one
            sys.exit(f'importer.py: {path}, line {lines.line_num}: {error}')


def batches_of(rows):
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


#
# The database
#

def load(cursor, file, batch):
    """A batch, in a transaction of the caller; how many rows have become what."""
    counts = collections.Counter()
    payments = [row for row in batch if not row.reason]
    cursor.execute(
        'SELECT outcome FROM idem_claim_many(%s::text[], %s, %s::jsonb[], %s)',
        [[row.key() for row in payments], TTL, [row.content() for row in payments], SCOPE])
    claimed = []
    for row, (outcome,) in zip(payments, cursor.fetchall()):
        if outcome == 'claimed':
            claimed.append(row)
        elif outcome == 'mismatch':
            row.reason = 'its account and reference came before, with other data'
        # replayed: it came before; in_progress: it did in this very batch
        counts[{'mismatch': 'rejected', 'claimed': 'imported'}.get(outcome, 'known')] += 1
    counts['rejected'] += len(batch) - len(payments)

    # The work. Whatever it is: it is done once for each row that is claimed.
    if claimed:
        cursor.execute(
            f'''INSERT INTO payment ({", ".join(COLUMNS)})
                SELECT * FROM unnest(%s::text[], %s::text[], %s::date[], %s::numeric[],
                                     %s::text[])''',
            [list(column) for column in zip(*(row.values for row in claimed))])

    for row in batch:
        if row.reason:
            cursor.execute(
                '''INSERT INTO reject (file, line, reason, content) VALUES (%s, %s, %s, %s)
                   ON CONFLICT (file, line) DO UPDATE SET reason = excluded.reason,
                       content = excluded.content, rejected_at = DEFAULT''',
                [file, row.line, row.reason, row.content()])

    # The response says where the row came from: idem_lookup(key, 'payment') shows it.
    cursor.execute(
        'SELECT count(*) FROM idem_finish_many(%s::text[], %s::jsonb[], %s)',
        [[row.key() for row in claimed],
         [json.dumps({'file': file, 'line': row.line}) for row in claimed], SCOPE])
    return counts


def is_outage(error):
    """The connection, or what the server cannot do now. If that was in COMMIT, nobody knows
    whether it went through: the claims do."""
    if error.pgcode is None:
        # a connection that breaks is any of these
        return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) or \
            type(error) is psycopg2.DatabaseError
    return error.pgcode[:2] in ('08', '40', '53', '55', '57')


def transaction(work, *args):
    """Again, if it could not be done; what had been done nevertheless is not done twice."""
    global db
    for attempt in itertools.count():
        try:
            if db is None:
                db = psycopg2.connect('', keepalives_idle=30)
            with db, db.cursor() as cursor:         # COMMIT, or ROLLBACK
                return work(cursor, *args)
        except psycopg2.Error as error:
            if not is_outage(error) or attempt == 10:
                raise
            print(f'database: {error}', file=sys.stderr)
            if db is not None:
                db.close()
                db = None
            time.sleep(random.uniform(0, min(5, 0.1 * 2 ** attempt)))


def forget_rejects(cursor, file):
    """Of an earlier import: they are found again, if nobody has corrected them."""
    cursor.execute('DELETE FROM reject WHERE file = %s', [file])


def main(path):
    file = os.path.basename(path)
    transaction(forget_rejects, file)
    counts = collections.Counter()
    for batch in batches_of(rows_of(path)):
        counts += transaction(load, file, batch)
    print(', '.join(f'{counts[what]} {what}' for what in ('imported', 'known', 'rejected')))


main(sys.argv[1])
