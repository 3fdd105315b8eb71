#!/usr/bin/python3
"""Imports january.csv and february.csv by importer.py, readings.csv by chunks.py, kills
these, and looks.

    e2e.py

To be run by examples/import/run, which has started a server and written the files in
$SANDBOX. The importer of january.csv is killed in the middle of a batch, and once more in
a COMMIT; the third one meets the importer of february.csv in a batch that has rows of
both. The importer of readings.csv is killed in the middle of a chunk, too, and two others
start at once. All of this waits for the right moment, nothing for a time. Prints a line for each
promise; the exit status is 1 if one is broken.
"""

import collections
import csv
import decimal
import itertools
import json
import os
import subprocess
import sys
import time

import psycopg2

SANDBOX = os.environ['SANDBOX']
PATIENCE = 60                           # seconds, for what comes at once if all is well
KEY_LOCK = 18756                        # objsubid of the lock of a key


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            for importer in importers:
                show_errors(importer)
            sys.exit(f'e2e.py: waited in vain until {what}')
        time.sleep(0.01)


failed = False


def promise(what, broken):
    """Nothing, or what breaks it."""
    global failed
    broken = list(itertools.islice(broken, 10))
    print(f'BROKEN  {what}: {broken}' if broken else f'ok      {what}', flush=True)
    failed = failed or bool(broken)


def say(what):
    print(what, flush=True)


#
# The database
#

db = psycopg2.connect('')
db.autocommit = True


def query(statement, *args):
    with db.cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchall() if cursor.description else None


def value(statement, *args):
    return query(statement, *args)[0][0]


# Once there are 13000 payments, or 4000 readings, importers wait for one lock in the
# middle of a batch, and for another one in COMMIT.
GATES = '''
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_ARGV[0] = '2'
           OR TG_TABLE_NAME = 'payment' AND (SELECT count(*) FROM payment) >= 13000
           OR TG_TABLE_NAME = 'reading' AND (SELECT count(*) FROM reading) >= 4000
        THEN
            PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::int);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER in_batch AFTER INSERT ON payment FOR EACH STATEMENT EXECUTE FUNCTION gate(1);
    CREATE CONSTRAINT TRIGGER in_commit AFTER INSERT ON payment DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION gate(2);
    CREATE TRIGGER in_batch AFTER INSERT ON reading FOR EACH STATEMENT EXECUTE FUNCTION gate(1);
    CREATE CONSTRAINT TRIGGER in_commit AFTER INSERT ON reading DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION gate(2);
'''


def close(gate):
    query('SELECT pg_advisory_lock(%s)', gate)


def open_(gate):
    query('SELECT pg_advisory_unlock(%s)', gate)


def waits(importer, gate):
    return value('''SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                     WHERE locktype = 'advisory' AND objsubid = 1 AND objid = %s AND NOT granted
                       AND application_name = %s''', gate, importer.name) > 0


def waits_for_key(importer):
    """For the lock of the key, or, if the holder has more keys than locks, for its
    transaction."""
    return value('''SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                     WHERE (locktype = 'advisory' AND objsubid = %s OR locktype = 'transactionid')
                       AND NOT granted AND application_name = %s''', KEY_LOCK, importer.name) > 0


def is_gone(importer):
    return not query('SELECT pid FROM pg_stat_activity WHERE application_name = %s', importer.name)


#
# Importers
#

importers = []


def start(name, file, program='importer.py'):
    """With its name as application_name, so that its backend is found."""
    with open(f'{SANDBOX}/{name}.err', 'w') as errors:
        importer = subprocess.Popen(
            [sys.executable, program, f'{SANDBOX}/{file}'],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {'PGAPPNAME': name, 'LEASE': '3'})
    importer.name = name
    importers.append(importer)
    return importer


def show_errors(importer):
    with open(f'{SANDBOX}/{importer.name}.err') as errors:
        print(f'{importer.name}:', *errors.readlines()[-10:], file=sys.stderr)


def kill(importer):
    importer.kill()
    importer.wait()


def end(importer):
    """What it has counted; None if it has failed."""
    output, _ = importer.communicate(timeout=PATIENCE)
    until('its backend is gone, and has told its statistics', lambda: is_gone(importer))
    say(f'{importer.args[-1].rpartition("/")[2]}: {output.strip()}')
    if importer.returncode == 0:
        return {what: int(count) for count, what in
                (part.split() for part in output.strip().split(', '))}
    show_errors(importer)
    return None


#
# What is looked at
#

def read(file):
    """(file, line): values, but for the head."""
    with open(f'{SANDBOX}/{file}', encoding='utf-8', newline='') as text:
        lines = csv.reader(text)
        return {(file, lines.line_num): values for values in lines if lines.line_num > 1}


def is_payment(values):
    return values[1] < 'R-000800'       # see generate.py


def normal(account, reference, booked_on, amount, purpose):
    return account, reference, str(booked_on), decimal.Decimal(amount), purpose


def snapshot():
    return (sorted(query('SELECT * FROM payment')),
            sorted(query('SELECT file, line, reason, content FROM reject')))


def check(lines):
    versions = collections.defaultdict(dict)
    for place, values in lines.items():
        if is_payment(values):
            versions[values[0], values[1]][place] = normal(*values)
    rows = [normal(*row) for row in query('SELECT * FROM payment')]
    counts = collections.Counter(row[:2] for row in rows)
    promise('each payment of both files is there',
            [key for key in versions if key not in counts])
    promise('each is there once, and nothing else is',
            [(key, count) for key, count in counts.items() if count != 1 or key not in versions])
    promise('each is as it is in a file',
            [row for row in rows if row not in versions[row[:2]].values()])

    imported = {row[:2]: row for row in rows}
    rejects = {(file, line): (reason, json.loads(content)) for file, line, reason, content in
               query('SELECT file, line, reason, content FROM reject')}
    others = {place for key, places in versions.items() for place, values in places.items()
              if values != imported.get(key)}
    broken = {place for place, values in lines.items() if not is_payment(values)}
    promise(f'{len(others)} rows came again with other data, and are rejected for that',
            [place for place in others if 'other data' not in rejects.get(place, '-')[0]])
    promise(f'{len(broken)} rows are no payments, and are rejected for that',
            [place for place in broken if rejects.get(place, '-')[0][:3] not in ('it ', 'its')
             or 'other data' in rejects[place][0]])
    promise('no other row is rejected, and what is says what was in the file',
            [place for place, (_, content) in rejects.items()
             if place not in others | broken or content != lines[place]])

    responses = query(
        '''SELECT key, response->>'file', (response->>'line')::int
             FROM unnest(%s::text[]) AS key LEFT JOIN idem_lookup(key, 'payment') ON true''',
        [' '.join(key) for key in versions])
    promise('the key of each payment knows the line that it came from',
            [(key, *place) for key, *place in responses
             if versions[tuple(key.split())].get(tuple(place)) != imported.get(tuple(key.split()))])


def deadlocks():
    return value('SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()')


def import_chunks():
    with open(f'{SANDBOX}/readings.csv', encoding='utf-8', newline='') as text:
        rows = collections.Counter(map(tuple, list(csv.reader(text))[1:]))

    close(1)
    first = start('chunks-1', 'readings.csv', 'chunks.py')
    until('an importer is in the middle of a chunk', lambda: waits(first, 1))
    kill(first)
    open_(1)
    until('its backend is gone', lambda: is_gone(first))
    say('Killed an importer in the middle of a chunk.')
    close(2)
    others = [start(f'chunks-{n}', 'readings.csv', 'chunks.py') for n in (2, 3)]
    until('another one is in COMMIT', lambda: any(waits(other, 2) for other in others))
    second, third = sorted(others, key=lambda other: not waits(other, 2))
    kill(second)
    open_(2)
    until('its backend is gone', lambda: is_gone(second))
    say('Killed the next one in COMMIT.')
    output, _ = third.communicate(timeout=PATIENCE)
    say(f'readings.csv: {output.strip()}')
    promise('the third one has imported the chunks that were left, and no more',
            [output] * (output != '6000 imported, 4000 known\n'))
    found = collections.Counter(query(
        """SELECT sensor, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MIZ'), value::text
             FROM reading"""))
    promise('each row is there as often as in the file', list((rows - found) + (found - rows)))
    output, _ = start('chunks-4', 'readings.csv', 'chunks.py').communicate(timeout=PATIENCE)
    promise('who imports the file once more is told so',
            [output] * (output != 'imported before: 10000 rows\n'))


def main():
    lines = read('january.csv') | read('february.csv')
    say(f'Importing two files with {len(lines)} rows.')
    query(GATES)

    close(1)
    first = start('importer-1', 'january.csv')
    until('an importer is in the middle of a batch', lambda: waits(first, 1))
    before = snapshot()
    kill(first)
    open_(1)
    until('its backend is gone', lambda: is_gone(first))
    say(f'Killed an importer in the middle of a batch, after {len(before[0])} payments.')
    promise('nothing is left of that batch', ['something'] * (snapshot() != before))

    close(2)
    second = start('importer-2', 'january.csv')
    until('it is in COMMIT', lambda: waits(second, 2))
    kill(second)
    open_(2)
    until('its backend is gone', lambda: is_gone(second))
    payments = value('SELECT count(*) FROM payment')
    say(f'Killed the next one in COMMIT; now there are {payments} payments.')

    close(1)
    third = start('importer-3', 'january.csv')
    until('it is in the middle of a batch', lambda: waits(third, 1))
    fourth = start('importer-4', 'february.csv')
    until('the importer of the other file has got somewhere',
          lambda: waits_for_key(fourth) or waits(fourth, 1) or fourth.poll() is not None)
    promise('the importer of the other file waits where it meets a row of this batch',
            [fourth.name] * (not waits_for_key(fourth)))
    pid = value('SELECT pid FROM pg_stat_activity WHERE application_name = %s', fourth.name)
    query('SELECT pg_terminate_backend(%s)', pid)
    until('its connection is cut',
          lambda: not query('SELECT pid FROM pg_stat_activity WHERE pid = %s', pid))
    say('Cut its connection: it is to connect again.')
    open_(1)
    promise('both come to an end',
            [importer.name for importer in (third, fourth) if not end(importer)])
    promise('without a deadlock', [deadlocks()] * (deadlocks() != 0))
    check(lines)

    before = snapshot()
    again = [start('importer-5', 'february.csv'), start('importer-6', 'january.csv')]
    counts = [end(importer) for importer in again]
    promise('who imports both once more imports nothing',
            [count for count in counts if not count or count['imported'] != 0])
    promise('and rejects the same rows', ['other rows'] * (snapshot() != before))
    promise('without a deadlock', [deadlocks()] * (deadlocks() != 0))

    import_chunks()
    return failed


try:
    sys.exit(main())
finally:
    for importer in importers:
        if importer.poll() is None:
            importer.kill()
