#!/usr/bin/python3
"""Sends webhooks to receiver.py, lets worker.py book them, kills both, and looks.

    e2e.py

To be run by examples/webhooks/run, which has started a server in $SANDBOX. Each event is
sent four times, by eight senders at once, in an order that is mixed but the same in each
run; some answers the sender does not wait for. A delivery that is not answered by 200 is
repeated. Meanwhile

    one worker is killed between BEGIN and COMMIT, and one in COMMIT,
    the receiver is killed with a request of each sender in its hands,
    the server is stopped at once, and started again.

All of these wait for the right moment, none for a time. Prints a line for each promise;
the exit status is 1 if one is broken.
"""

import collections
import contextlib
import hmac
import http.client
import itertools
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time

import psycopg2

SANDBOX = os.environ['SANDBOX']
SECRETS = ['the new one', 'the old one']
SENDERS = 8
CUSTOMERS = 20
PATIENCE = 60                           # seconds, for what comes at once if all is well


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            for program in programs:
                with open(f'{SANDBOX}/{program.name}.err') as errors:
                    print(f'{program.name}:', *errors.readlines()[-10:], file=sys.stderr)
            sys.exit(f'e2e.py: waited in vain until {what}')
        time.sleep(0.01)


failed = False


def promise(what, broken):
    """Nothing, or what breaks it."""
    global failed
    broken = list(itertools.islice(broken, 10))
    print(f'BROKEN  {what}: {broken}' if broken else f'ok      {what}', flush=True)
    failed = failed or bool(broken)


#
# The database
#

def connect():
    db = psycopg2.connect('')
    db.autocommit = True
    return db


def query(db, statement, *args):
    with db.cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchall() if cursor.description else None


def value(db, statement, *args):
    return query(db, statement, *args)[0][0]


def pg_ctl(*args):
    subprocess.run(['pg_ctl', '-D', f'{SANDBOX}/data', '-s', '-w', *args], check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


#
# The programs
#

programs = []


def start(name, *command):
    """With its name as application_name, so that its backend is found."""
    with open(f'{SANDBOX}/{name}.err', 'w') as errors:
        program = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {'PGAPPNAME': name, 'WEBHOOK_SECRETS': json.dumps({'shop': SECRETS})})
    program.name = name
    programs.append(program)
    return program


def start_receiver(name):
    receiver = start(name, 'receiver.py')
    receiver.port = int(receiver.stdout.readline())
    return receiver


def kill(program):
    program.kill()
    program.wait()


#
# The sender
#

class Event:
    def __init__(self, id, **members):
        self.id = id
        self.customer = members['customer']
        self.currency = members['currency']
        self.amount = members['amount']
        self.sign = '-' if members['type'] == 'refund' else ''
        self.body = json.dumps({'id': id, **members}).encode()
        self.sent = self.answered = None    # the first time
        self.answers = []                   # duplicate?

    def is_bookable(self):
        return '.' in self.amount


def sign(body, secrets, at):
    stamp = str(int(at)).encode()
    digests = [hmac.new(secret.encode(), stamp + b'.' + body, 'sha256').hexdigest()
               for secret in secrets]
    return ','.join([f't={stamp.decode()}', *(f'v1={digest}' for digest in digests)])


def post(body, path='/webhooks/shop', secrets=SECRETS[:1], at=None, headers=None):
    """A connection with a request on its way."""
    connection = http.client.HTTPConnection('127.0.0.1', receiver.port, timeout=PATIENCE)
    if headers is None:
        headers = {'Webhook-Signature': sign(body, secrets, at or time.time())}
    connection.request('POST', path, body, headers | {'Content-Type': 'application/json'})
    return connection


def answer_to(connection):
    """Status, and members. What is cut off is no answer: ValueError."""
    with contextlib.closing(connection):
        response = connection.getresponse()
        is_json = response.getheader('Content-Type') == 'application/json'
        body = response.read()
        return response.status, json.loads(body) if response.status == 200 or is_json else None


lock = threading.Lock()
deliveries = queue.Queue()              # (event, does anybody wait for the answer?)
waiting = 0                             # senders, for an answer
statuses = collections.Counter()        # of answers; None: the connection broke


def deliver(event, is_heard):
    """Until the answer is 200, or nobody is there to hear it."""
    global waiting
    while True:
        with lock:
            event.sent = event.sent or time.monotonic()
        status = None
        try:
            connection = post(event.body)
            if not is_heard:
                connection.close()
                return
            with lock:
                waiting += 1
            try:
                status, answer = answer_to(connection)
            finally:
                with lock:
                    waiting -= 1
        except (OSError, http.client.HTTPException, ValueError):
            pass
        with lock:
            statuses[status] += 1
            if status == 200:
                event.answered = event.answered or time.monotonic()
                event.answers.append(answer['duplicate'])
        if status not in (503, None):
            return
        time.sleep(0.05)                # of a source: hours


def send():
    while True:
        event, is_heard = deliveries.get()
        try:
            deliver(event, is_heard)
        finally:
            deliveries.task_done()


def put(stage):
    for delivery in stage:
        deliveries.put(delivery)


def all_delivered():
    return deliveries.unfinished_tasks == 0


#
# The events
#

def make_events():
    """Ten for each customer. Some are in a currency that is unknown until somebody adds it,
    and two are no amounts and never will be."""
    events = []
    for n in range(CUSTOMERS * 10):
        customer, place = n % CUSTOMERS, n // CUSTOMERS
        currency, amount = ('EUR', 'USD')[n % 2], f'{n + 1}.{n % 100:02}'
        if (customer, place) in ((3, 2), (8, 1), (13, 2), (8, 6)):
            currency = 'CHF'
        elif (customer, place) in ((5, 2), (8, 2)):
            amount = '12,50'
        events.append(Event(f'evt_{n}', type='refund' if n % 7 == 0 else 'payment',
                            customer=f'cus_{customer}', amount=amount, currency=currency))
    return events


def make_stages(events):
    """Four deliveries of each event, the first in the stage of the event, the others there
    or later. The stages follow each other, what is in one is mixed."""
    mixer = random.Random(42)
    stages = [[] for _ in range(5)]
    for n, event in enumerate(events):
        first = (0, 0, 0, 1, 1, 2, 2, 3, 4, 4)[n // CUSTOMERS]
        unheard = n % 4 == 0
        stages[first] += [(event, not unheard)]
        # two at the same time, if they are not pulled apart; the last one is heard
        stages[first] += [(event, True)]
        for stage in sorted(mixer.choices(range(first, 5), k=2)):
            stages[stage].append((event, True))
    for stage in stages:
        # neighbours mostly stay neighbours, so that duplicates meet
        order = sorted(range(len(stage)), key=lambda i: (mixer.random() < 0.5, i // 6, i))
        stage[:] = [stage[i] for i in order]
    return stages


#
# What is looked at
#

def check_refusals(db):
    body = json.dumps({'id': 'evt_x', 'customer': 'cus_x'}).encode()
    now = time.time()
    good = sign(body, SECRETS[:1], now)
    other = good.replace(f't={int(now)}', f't={int(now) - 1}')
    cases = [
        ('no signature', 401, post(body, headers={})),
        ('a signature without time', 401,
         post(body, headers={'Webhook-Signature': good.partition(',')[2]})),
        ('a signature of another time', 401,
         post(body, headers={'Webhook-Signature': other})),
        ('a signature by another secret', 401, post(body, secrets=['secret'])),
        ('a signature of another body', 401,
         post(body + b' ', headers={'Webhook-Signature': good})),
        ('a signature in Latin', 401,
         post(body, headers={'Webhook-Signature': f't={int(now)},v1=\xe9'})),
        ('a signature of long ago', 401, post(body, at=now - 400)),
        ('a signature of the future', 401, post(body, at=now + 400)),
        ('an unknown source', 404, post(body, path='/webhooks/bank')),
        ('no JSON', 400, post(b'id=evt_x')),
        ('no UTF-8', 400, post(b'{"id": "evt_x", "customer": "\xe9"}')),
        ('no object', 400, post(b'["evt_x"]')),
        ('too deep', 400, post(b'{"id": "evt_x", "a": ' + b'[' * 9999 + b']' * 9999 + b'}')),
        ('no id', 400, post(b'{"customer": "cus_x"}')),
        ('an id that is none', 400, post(b'{"id": 7}')),
        ('a long id', 400, post(b'{"id": "%s"}' % (b'x' * 256))),
        ('a customer that is none', 400, post(b'{"id": "evt_x", "customer": ""}')),
        ('a zero character', 400, post(b'{"id": "evt_x", "a": "\\u0000"}')),
        ('a number that is none', 400, post(b'{"id": "evt_x", "a": NaN}')),
        ('too large', 413, post(b'', headers={'Content-Length': str(1 << 30)})),
    ]
    promise(f'{len(cases)} requests that are wrong are refused',
            [what for what, status, connection in cases if answer_to(connection)[0] != status])
    promise('none of them has left anything in the database',
            query(db, '''SELECT queue, key FROM idem_messages
                          UNION ALL SELECT queue, key FROM idem_dead_letters'''))


def check_secrets(events):
    """While the secret is being changed."""
    new = [Event(f'secret_{n}', type='payment', customer='secret', amount='1.00', currency='EUR')
           for n in range(3)]
    signers = SECRETS[:1], SECRETS[1:], ['a newer one', *SECRETS]
    answers = [answer_to(post(event.body, secrets=secrets)) for event, secrets in zip(new, signers)]
    promise('a source may sign by each of its secrets, and by more than one',
            [answer for answer in answers if answer != (200, {'duplicate': False})])
    events += new


def check_lost_answer(db, events):
    event = Event('lost', type='payment', customer='lost', amount='1.00', currency='EUR')
    post(event.body).close()
    until('an event is in the inbox whose answer is lost', lambda: query(
        db, "SELECT id FROM idem_messages WHERE payload->>'id' = 'lost'"))
    answer = answer_to(post(event.body))
    promise('an event whose answer was lost is a duplicate when it comes again',
            [answer] * (answer != (200, {'duplicate': True})))
    events.append(event)


def check_lost_connection(db, events):
    event = Event('reconnect', type='payment', customer='reconnect', amount='1.00', currency='EUR')
    backends = 'FROM pg_stat_activity WHERE application_name = %s'
    query(db, f'SELECT pg_terminate_backend(pid) {backends}', receiver.name)
    until('the receiver has no connection',
          lambda: not query(db, f'SELECT pid {backends}', receiver.name))
    answer = answer_to(post(event.body))
    promise('a connection that was lost between two requests is nothing for the sender to know',
            [answer] * (answer != (200, {'duplicate': False})))
    events.append(event)


def check_books(db, events, is_fixed):
    """What is booked; and what is dead, if it is not fixed yet."""
    booked = collections.defaultdict(list)
    for event, *entry in query(
            db, '''SELECT event, entry, customer, amount, currency, message, booked_at
                     FROM ledger ORDER BY entry'''):
        booked[event].append(entry)
    dead = {event: rest for event, *rest in query(
        db, "SELECT payload->>'id', id, attempt, last_error, died_at FROM idem_dead_letters")}

    good = [event for event in events
            if event.is_bookable() and (is_fixed or event.currency != 'CHF')]
    expected = {event.id: [(event.customer, f'{event.sign}{event.amount}', event.currency)]
                for event in good}
    found = {id: [(customer, str(amount), currency)
                  for _, customer, amount, currency, *_ in entries]
             for id, entries in booked.items()}
    promise('each event is booked once' + (', now also those that were dead' if is_fixed else ''),
            [(id, expected.get(id), found.get(id)) for id in expected.keys() | found.keys()
             if expected.get(id) != found.get(id)])
    promise('dead letters are the others' + (' still' if is_fixed else ', which cannot be booked'),
            dead.keys() ^ {event.id for event in events if event not in good})
    if is_fixed:
        return

    promise('they say why',
            [(event.id, dead[event.id]) for event in events if event.id in dead and
             ('this is no amount: "12,50"' if not event.is_bookable() else 'Key (currency)=(CHF)')
             not in dead[event.id][2]['message']])
    promise('what a retry may mend is tried three times, what none can once',
            [(event.id, dead[event.id][1]) for event in events if event.id in dead and
             dead[event.id][1] != (3 if event.is_bookable() else 1)])

    single = {id: entries[0] for id, entries in booked.items()}
    pairs = [(a, b) for a, b in itertools.permutations(events, 2) if a.customer == b.customer]
    promise('events of a customer are booked in the order of the inbox',
            [(a.id, b.id) for a, b in pairs if a.id in single and b.id in single and
             (single[a.id][4] < single[b.id][4]) != (single[a.id][0] < single[b.id][0])])
    in_order = [(a, b) for a, b in pairs if a.answered and b.sent and a.answered < b.sent]
    promise('what was sent after another one was answered is booked after it',
            [(a.id, b.id) for a, b in in_order if a.id in single and b.id in single and
             single[a.id][0] >= single[b.id][0]] if in_order else ['there is no such event'])
    behind = [(a, b) for a, b in pairs
              if a.id in dead and b.id in single and dead[a.id][0] < single[b.id][4]]
    promise('what came behind an event that cannot be booked has waited for its death',
            [(a.id, b.id) for a, b in behind if dead[a.id][3] >= single[b.id][5]]
            if behind else ['there is no such event'])


#
# The course of events
#

# Once 30 events are booked, workers wait for one lock in the middle of their
# transactions, and for another one in their COMMIT.
GATES = '''
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_ARGV[0] <> '1' OR (SELECT count(*) FROM ledger) >= 30 THEN
            PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::int);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER before BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION gate(1);
    CREATE CONSTRAINT TRIGGER in_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION gate(2);
'''


def waits(db, program, gate):
    return value(db, '''SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                         WHERE locktype = 'advisory' AND objid = %s AND NOT granted AND objsubid = 1
                           AND application_name = %s''', gate, program.name) == 1


def kill_workers(db):
    query(db, GATES)
    query(db, 'SELECT pg_advisory_lock(1)')
    first, second = start('worker-1', 'worker.py'), start('worker-2', 'worker.py')
    until('both workers have an event in their hands',
          lambda: waits(db, first, 1) and waits(db, second, 1))
    kill(first)
    query(db, 'SELECT pg_advisory_lock(2)')
    query(db, 'SELECT pg_advisory_unlock(1)')
    until('a worker is in its COMMIT', lambda: waits(db, second, 2))
    kill(second)
    query(db, 'SELECT pg_advisory_unlock(2)')
    say('Killed a worker between BEGIN and COMMIT, and one in COMMIT.')


def kill_receiver(stages):
    global receiver
    put(stages[2])
    receiver.send_signal(signal.SIGSTOP)
    put(stages[3])
    until('each sender waits for an answer', lambda: waiting == SENDERS)
    kill(receiver)
    say(f'Killed the receiver with {SENDERS} requests in its hands.')
    receiver = start_receiver('receiver-2')
    until('all is delivered', all_delivered)


def stop_server(stages):
    pg_ctl('stop', '-m', 'immediate')
    put(stages[4])
    until('senders are told to come again', lambda: statuses[503] >= SENDERS)
    pg_ctl('start', '-l', f'{SANDBOX}/server.log')
    say('Stopped the server at once, and started it again.')
    until('all is delivered', all_delivered)


def is_queue_empty(db):
    return value(db, '''SELECT coalesce(sum(ready + in_flight + delayed + retrying), 0) = 0
                          FROM idem_queues''')


def say(what):
    print(what, flush=True)


def main():
    global receiver
    db = connect()
    receiver = start_receiver('receiver-1')
    events = make_events()
    stages = make_stages(events)
    sent = list(events)
    check_refusals(db)
    check_secrets(events)
    check_lost_answer(db, events)
    check_lost_connection(db, events)

    for _ in range(SENDERS):
        threading.Thread(target=send, daemon=True).start()
    for stage in stages[:2]:
        put(stage)
        until('all is delivered', all_delivered)
    say(f'Sent {len(sent)} events, {sum(map(len, stages))} times in all; of these now:'
        f' {len(stages[0] + stages[1])}.')
    kill_workers(db)
    workers = [start('worker-3', 'worker.py'), start('worker-4', 'worker.py')]
    kill_receiver(stages)
    stop_server(stages)
    db = connect()
    until('the queue is empty', lambda: is_queue_empty(db))

    promise('no answer was other than 200, none at all, and 503 while the database was away',
            statuses.keys() - {200, 503, None})
    promise('of no event two deliveries were told to be the first',
            [event.id for event in sent if event.answers.count(False) > 1])
    promise('all others were told to be duplicates',
            [event.id for event in sent if len(event.answers) < 3])
    check_books(db, events, is_fixed=False)

    query(db, "INSERT INTO currency VALUES ('CHF')")
    redriven = value(db, '''SELECT idem_redrive('webhooks', array_agg(id)) FROM idem_dead_letters
                             WHERE queue = 'webhooks' AND payload->>'currency' = 'CHF' ''')
    say(f'Added the currency, and put {redriven} dead letters back.')
    until('the queue is empty', lambda: is_queue_empty(db))
    check_books(db, events, is_fixed=True)

    for program in [receiver, *workers]:
        program.terminate()
    promise('SIGTERM ends all of them, without an error',
            [(program.name, program.returncode) for program in [receiver, *workers]
             if program.wait(timeout=PATIENCE) != 0])
    return failed


try:
    sys.exit(main())
finally:
    for program in programs:
        if program.poll() is None:
            program.kill()
