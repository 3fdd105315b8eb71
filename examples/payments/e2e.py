#!/usr/bin/python3
"""Does to the payment services what clients, networks and operators do, and counts.

    e2e.py LANGUAGE ...

Starts the processor and, for each LANGUAGE (python, node), a service; kills and starts it
again. The environment names the database, on a Unix socket, in which setup.sql has been run.
The services reach it through a relay, which loses connections on purpose.

Each promise is a line "ok" or "BROKEN"; the exit status is 0 if all are kept.
"""

import collections
import contextlib
import functools
import http.client
import itertools
import json
import os
import queue
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import psycopg2

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = {'python': ['/usr/bin/python3', f'{HERE}/server.py'],
            'node': ['node', f'{HERE}/server.js']}
PATHS = {'/payments': {}, '/card-payments': {'card': 'visa'}}
FUNDS = 1000000                         # of each customer, see setup.sql
PATIENCE = 60                           # seconds; nothing takes as long

# What is long enough never to run out here, or shall run out soon.
PATIENT = {'LEASE': '300', 'TIMEOUT': '200'}
SHORT_TIMEOUT = {'LEASE': '300', 'TIMEOUT': '1'}
SHORT_LEASE = {'LEASE': '1', 'TIMEOUT': '200'}
HASTY = {'LEASE': '2', 'TIMEOUT': '1'}
SERIALIZABLE = {'PGOPTIONS': '-c default_transaction_isolation=serializable'}

directory = tempfile.mkdtemp()
charges_log = f'{directory}/charges'
random.seed(1)


class Broken(Exception):
    pass


def expect(condition, *what):
    if not condition:
        raise Broken(' '.join(str(each) for each in what))


def until(condition, what):
    """Waits, and returns what is waited for."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        expect(time.monotonic() < end, f'waited in vain until {what}')
        time.sleep(0.01)
    return value


#
# Processes
#

class Process:
    """A program that prints the port it listens on."""

    def __init__(self, name, *command):
        self.name, self.command = name, command

    def start(self, **settings):
        with open(f'{directory}/{self.name}.err', 'a') as errors:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, 'PORT': '0', **settings})
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f'{self.name} does not start: {errors_of(self.name)}')
        self.port = int(line)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def errors_of(name):
    with open(f'{directory}/{name}.err') as file:
        return file.read()


class Service(Process):
    def start(self, **settings):
        super().start(PGHOST=relay.directory,
                      PROCESSOR=f'http://127.0.0.1:{processor.port}', **settings)

    def again(self, **settings):
        self.kill()
        self.start(**settings)


class Relay:
    """Between the services and the database."""

    def __init__(self):
        port = os.environ.get('PGPORT', '5432')
        self.server = f'{os.environ["PGHOST"]}/.s.PGSQL.{port}'
        self.directory = f'{directory}/relay'
        os.mkdir(self.directory)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f'{self.directory}/.s.PGSQL.{port}')
        self.listener.listen(128)
        self.rate = 0                   # how many messages of a thousand are a connection's last
        self.victim = None              # the statement whose answer is to be lost
        self.lost = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self.server)
            except OSError:
                client.close()
                continue
            link = {'client': client, 'server': server, 'doomed': False}
            threading.Thread(target=self.ask, args=(link,), daemon=True).start()
            threading.Thread(target=self.answer, args=(link,), daemon=True).start()

    def ask(self, link):
        with contextlib.suppress(OSError):
            while data := link['client'].recv(65536):
                if self.fate():
                    break
                victim = self.victim
                if victim and victim in data:
                    self.victim = None
                    link['doomed'] = True
                link['server'].sendall(data)
        self.cut(link)

    def answer(self, link):
        swallowed = b''
        with contextlib.suppress(OSError):
            while data := link['server'].recv(65536):
                if link['doomed']:
                    swallowed = swallowed[-6:] + data
                    if swallowed[-6:-1] == b'Z\0\0\0\5':       # the server is done with it
                        self.lost += 1
                        break
                elif self.fate():
                    break
                else:
                    link['client'].sendall(data)
        self.cut(link)

    def fate(self):
        return random.random() * 1000 < self.rate

    @staticmethod
    def cut(link):
        for end in (link['client'], link['server']):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def loses(self, victim):
        before = self.lost
        self.victim = victim
        yield
        expect(self.lost == before + 1, f'the answer to {victim} was not lost')


#
# The client
#

Answer = collections.namedtuple('Answer', 'status body headers')
paid = {}                               # (customer, key): path, where somebody was told 201
numbers = itertools.count(1)


def new_key():
    return f'key-{next(numbers)}'


def payment(path, amount=950, **members):
    return {'amount': amount, 'currency': 'EUR', **PATHS[path], **members}


def send(service, path, key, body, customer='ann', headers=None):
    """Sends a request, and returns the connection. The headers are those of the key, if they
    are not what they should be."""
    connection = http.client.HTTPConnection('127.0.0.1', service.port, timeout=PATIENCE)
    connection.putrequest('POST', path)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.putheader('Authorization', f'Bearer key-of-{customer}')
    connection.putheader('Content-Type', 'application/json')
    connection.putheader('Content-Length', str(len(data)))
    for header in [f'"{key}"'] if headers is None else headers:
        connection.putheader('Idempotency-Key', header)
    connection.endheaders(data)
    return connection


def request(service, path, key, body, customer='ann', headers=None):
    with contextlib.closing(send(service, path, key, body, customer, headers)) as connection:
        response = connection.getresponse()
        answer = Answer(response.status, response.read(), response.headers)
    if answer.status == 201:
        paid[customer, key] = path
    if answer.status >= 400:
        expect(answer.headers['Content-Type'].startswith('application/problem+json'), answer)
        problem = json.loads(answer.body)
        expect(problem['status'] == answer.status, problem)
        expect(all(problem[name] for name in ('type', 'title', 'detail')), problem)
    if answer.status in (409, 503):
        expect(int(answer.headers['Retry-After']) >= 1, answer)
    return answer


def persist(service, path, key, body, customer='ann'):
    """As a client does it: until there is an answer that is not to be repeated."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = request(service, path, key, body, customer)
            if answer.status not in (409, 503):
                return answer
        time.sleep(0.02)
    raise Broken(f'no answer for {key} in {PATIENCE} seconds')


def replayed(answer):
    return answer.headers['Idempotency-Replayed'] == 'true'


def same(answer, first):
    """A replay of the first one."""
    expect(replayed(answer), 'no Idempotency-Replayed:', answer)
    expect(answer[:2] == first[:2], 'a replay is', answer[:2], 'and not', first[:2])


def in_background(function, *args):
    """A thread; outcome() is what the function returned, or raises."""
    def run():
        try:
            thread.result = function(*args)
        except Exception as error:
            thread.error = error

    def outcome():
        thread.join()
        if thread.error:
            raise thread.error
        return thread.result

    thread = threading.Thread(target=run, daemon=True)
    thread.result = thread.error = None
    thread.outcome = outcome
    thread.start()
    return thread


#
# What there is to be seen
#

def sql(statement, *args):
    with contextlib.closing(psycopg2.connect('')) as db:
        db.autocommit = True
        with db.cursor() as cursor:
            cursor.execute(statement, args or None)
            return cursor.fetchall() if cursor.description else None


def rows(key, customer='ann'):
    return sql('SELECT count(*) FROM payment WHERE key = %s AND customer = %s', key, customer)[0][0]


@contextlib.contextmanager
def held(count=1):
    """Nobody can write a payment, until this ends. Gives a function that waits until so many
    try, and returns the pids of their backends."""
    def waiting():
        found = sql("SELECT pid FROM pg_locks WHERE relation = 'payment'::regclass AND NOT granted")
        return [pid for pid, in found] if len(found) == count else None

    with contextlib.closing(psycopg2.connect('')) as db, db.cursor() as cursor:
        cursor.execute('LOCK TABLE payment IN SHARE MODE')
        yield functools.partial(until, waiting, f'{count} are about to write a payment')


def charges(key, customer='ann'):
    """What the processor knows of a key: its status and, if one was made, its charge."""
    [(downstream,)] = sql("SELECT idem_derive(%s, 'call', %s)", key, customer)
    return [line[3:] for line in all_charges() if line[0] == downstream]


def all_charges():
    with open(charges_log) as file:
        return [line.rstrip('\n').split('\t') for line in file.read().splitlines(keepends=True)]


@contextlib.contextmanager
def slow_cards():
    """Answers to slow cards come when this ends."""
    go = f'{charges_log}.go'
    with contextlib.suppress(FileNotFoundError):
        os.remove(go)
    try:
        yield
    finally:
        open(go, 'w').close()


def once(path, key, customer='ann'):
    expect(rows(key, customer) == 1, f'{rows(key, customer)} payments of {key}')
    if path == '/card-payments':
        made = [charge for _, charge in charges(key, customer) if charge]
        expect(len(made) == 1, f'charges of {key}: {made}')


#
# Promises of each service
#

promises = []


def promise(text, **settings):
    """Of a service that was started with such settings."""
    def register(function):
        promises.append((text, settings, function))
        return function
    return register


def keep(text, function, *args):
    try:
        function(*args)
    except Exception as error:
        failed.append(text)
        what = str(error) if isinstance(error, Broken) else repr(error)
        print(f'BROKEN  {text}: {what[:500]}', flush=True)
    else:
        print(f'ok      {text}', flush=True)


failed = []


@promise('a request without a key, or with a malformed one, is 400, and is not done', **PATIENT)
def malformed(service):
    for path in PATHS:
        for headers in ((), ['""'], ['"open'], ['"a"b'], ['a b'], ['"a"', '"b"'], ['"\xe4"'],
                        ['"' + 'x' * 513 + '"']):
            answer = request(service, path, None, payment(path), headers=headers)
            expect(answer.status == 400, headers, answer)
    expect(rows('') + rows('open') + rows('a') == 0, 'a payment')


@promise('the first request is 201, a repeat has its status and body and is marked', **PATIENT)
def first_and_repeat(service):
    for path in PATHS:
        key = new_key()
        first = request(service, path, key, payment(path))
        expect(first.status == 201 and not replayed(first), first)
        same(request(service, path, key, payment(path)), first)
        body = json.dumps(dict(reversed(payment(path).items())), indent=3).encode()
        same(request(service, path, key, body), first)
        once(path, key)


@promise('a key may be bare, have parameters, escapes and 512 characters', **PATIENT)
def forms_of_keys(service):
    plain, odd, long = new_key(), f'"{new_key()}\\', f'{new_key():x<512}'
    escaped = re.sub(r'(["\\])', r'\\\1', odd)
    for key, forms in ((plain, [f'"{plain}"', plain, f' "{plain}";v=1']),
                       (odd, [f'"{escaped}"']),
                       (long, [f'"{long}"', long])):
        answers = [request(service, '/payments', key, payment('/payments'), headers=[form])
                   for form in forms]
        expect(answers[0].status == 201 and not replayed(answers[0]), key, answers)
        for answer in answers[1:]:
            same(answer, answers[0])
        once('/payments', key)


@promise('a key that was used with another payload, or at another endpoint, is 422', **PATIENT)
def reused(service):
    for path, other in zip(PATHS, reversed(PATHS)):
        key = new_key()
        first = request(service, path, key, payment(path))
        for answer in (request(service, path, key, payment(path, 951)),
                       request(service, other, key, payment(other))):
            expect(answer.status == 422, answer)
        same(request(service, path, key, payment(path)), first)
        once(path, key)


@promise('a key is its customer\'s own', **PATIENT)
def customers(service):
    for path in PATHS:
        key = new_key()
        for customer in ('ann', 'bob'):
            answer = request(service, path, key, payment(path), customer)
            expect(answer.status == 201 and not replayed(answer), answer)
            once(path, key, customer)
        answer = request(service, path, new_key(), payment(path), 'eve')
        expect(answer.status == 401, answer)


@promise('an invalid request is 400, and leaves the key free', **PATIENT)
def invalid(service):
    for path in PATHS:
        key = new_key()
        bodies = [payment(path, amount) for amount in (0, -1, 1.5, '10', None)]
        bodies += [payment(path, currency=currency) for currency in ('', 'euro', ['EUR'], 'E\0R')]
        bodies += [payment(path, note='a'), {}, [], b'{"amount"', b'']
        for body in bodies:
            answer = request(service, path, key, body)
            expect(answer.status == 400, body, answer)
        answer = request(service, path, key, payment(path))
        expect(answer.status == 201 and not replayed(answer), answer)
        once(path, key)


@promise('a declined payment is 402, also when it comes again, and leaves nothing', **PATIENT)
def declined(service):
    cases = (('/payments', payment('/payments', FUNDS * 2)),
             ('/card-payments', payment('/card-payments', card='declined')))
    for path, body in cases:
        key = new_key()
        first = request(service, path, key, body)
        expect(first.status == 402 and not replayed(first), first)
        try:
            sql('UPDATE account SET balance = balance + %s', FUNDS * 2)
            same(request(service, path, key, body), first)
        finally:
            sql('UPDATE account SET balance = balance - %s', FUNDS * 2)
        expect(rows(key) == 0, 'a payment')
        expect(len(charges(key)) == (path == '/card-payments'), 'the processor was asked again')


@promise('while the first is at work a repeat is 409 with Retry-After, then a replay', **PATIENT)
def outstanding(service):
    for path in PATHS:
        key = new_key()
        with held() as waiting:
            first = in_background(request, service, path, key, payment(path))
            waiting()
            answer = request(service, path, key, payment(path))
            expect(answer.status == 409, answer)
        expect(first.outcome().status == 201, first.result)
        same(request(service, path, key, payment(path)), first.result)
        once(path, key)


@promise('the same while the processor is slow; it is asked once', **PATIENT)
def slow(service):
    key, body = new_key(), payment('/card-payments', card='slow')
    with slow_cards():
        first = in_background(request, service, '/card-payments', key, body)
        until(lambda: charges(key), 'the processor is asked')
        answer = request(service, '/card-payments', key, body)
        expect(answer.status == 409, answer)
    expect(first.outcome().status == 201, first.result)
    same(request(service, '/card-payments', key, body), first.result)
    expect(len(charges(key)) == 1, charges(key))
    once('/card-payments', key)


@promise('of 20 duplicates at a time one is done, the others replay it', **PATIENT)
def duplicates(service):
    for path in PATHS:
        key = new_key()
        barrier = threading.Barrier(20)

        def client():
            barrier.wait()
            return persist(service, path, key, payment(path))

        answers = [thread.outcome() for thread in [in_background(client) for _ in range(20)]]
        expect({answer[:2] for answer in answers} == {answers[0][:2]}, answers)
        expect(answers[0].status == 201, answers)
        expect(sum(not replayed(answer) for answer in answers) == 1, answers)
        once(path, key)


@promise('a client that has gone before the answer finds it when it comes again', **PATIENT)
def impatient(service):
    for path in PATHS:
        key = new_key()
        with held() as waiting:
            connection = send(service, path, key, payment(path))
            waiting()
            connection.close()
        answer = persist(service, path, key, payment(path))
        expect(answer.status == 201 and replayed(answer), answer)
        once(path, key)

        key = new_key()                 # and one that has gone amid the request
        data = json.dumps(payment(path)).encode()
        with contextlib.closing(socket.create_connection(('127.0.0.1', service.port))) as raw:
            raw.sendall(f'POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-of-ann\r\n'
                        f'Idempotency-Key: "{key}"\r\nContent-Type: application/json\r\n'
                        f'Content-Length: {len(data)}\r\n\r\n'.encode() + data[:-1])
        answer = persist(service, path, key, payment(path))
        expect(answer.status == 201 and not replayed(answer), answer)
        once(path, key)


@promise('a processor that fails is 503 with Retry-After, and asked again', **PATIENT)
def failing(service):
    key, body = new_key(), payment('/card-payments', card='failing')
    answer = request(service, '/card-payments', key, body)
    expect(answer.status == 503, answer)
    expect(rows(key) == 0, 'a payment')
    answer = persist(service, '/card-payments', key, body)
    expect(answer.status == 201, answer)
    expect([status for status, _ in charges(key)] == ['500', '201'], charges(key))
    once('/card-payments', key)


@promise('what the processor refuses is 502 for good, and not asked again', **PATIENT)
def refused(service):
    key, body = new_key(), payment('/card-payments', card='refused')
    first = request(service, '/card-payments', key, body)
    expect(first.status == 502 and not replayed(first), first)
    same(request(service, '/card-payments', key, body), first)
    expect(len(charges(key)) == 1, charges(key))


@promise('an answer of the database that is lost, to whatever, changes nothing', **PATIENT)
def lost_answers(service):
    transaction = [b'COMMIT', b'idem_finish', b'idem_claim']
    for path, statements in (('/payments', transaction),
                             ('/card-payments', [b'idem_guard', *transaction])):
        for statement in statements:
            key = new_key()
            with relay.loses(statement):
                answer = persist(service, path, key, payment(path))
            expect(answer.status == 201, statement, answer)
            once(path, key)
    key, body = new_key(), payment('/card-payments', card='failing')
    with relay.loses(b'idem_fail'):
        answer = persist(service, '/card-payments', key, body)
    expect(answer.status == 201, answer)
    once('/card-payments', key)


@promise('a backend that is terminated at work is no error', **PATIENT)
def terminated(service):
    for path in PATHS:
        key = new_key()
        with held() as waiting:
            client = in_background(persist, service, path, key, payment(path))
            [before] = waiting()
            sql('SELECT pg_terminate_backend(%s)', before)
            until(lambda: waiting() != [before], 'another backend is at it')
        expect(client.outcome().status == 201, client.result)
        once(path, key)


@promise('a serialization failure is no error', **PATIENT, **SERIALIZABLE)
def serialization(service):
    key, body = new_key(), payment('/payments')
    with contextlib.closing(psycopg2.connect('')) as db, db.cursor() as cursor:
        cursor.execute("UPDATE account SET balance = balance WHERE customer = 'ann'")
        client = in_background(request, service, '/payments', key, body)
        until(lambda: sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                          "AND query LIKE 'UPDATE account%'"), 'the service waits for the account')
        db.commit()
    expect(client.outcome().status == 201, client.result)
    expect('could not serialize' in errors_of(service.name), 'there was none')
    once('/payments', key)


@promise('a processor that answers too late is 503, and asked again with the same key',
         **SHORT_TIMEOUT)
def late(service):
    key, body = new_key(), payment('/card-payments', card='late')
    answer = request(service, '/card-payments', key, body)
    expect(answer.status == 503, answer)
    expect(rows(key) == 0, 'a payment')
    answer = persist(service, '/card-payments', key, body)
    expect(answer.status == 201, answer)
    expect(len(charges(key)) >= 2, charges(key))
    once('/card-payments', key)


@promise('a service that is killed before, amid and after the call is no harm', **SHORT_LEASE)
def killed(service):
    at_processor = new_key()
    bodies = {new_key(): ('/payments', payment('/payments')),
              new_key(): ('/card-payments', payment('/card-payments')),
              at_processor: ('/card-payments', payment('/card-payments', card='slow'))}
    with slow_cards(), held(2) as waiting:
        clients = [in_background(request, service, path, key, body)
                   for key, (path, body) in bodies.items()]
        waiting()
        until(lambda: charges(at_processor), 'the processor is asked')
        service.again(**SHORT_LEASE)
    for client in clients:
        with contextlib.suppress(OSError, http.client.HTTPException):
            expect(not client.outcome(), 'an answer of the dead', client.result)
    clients = [in_background(persist, service, path, key, body)
               for key, (path, body) in bodies.items()]
    for client, (key, (path, body)) in zip(clients, bodies.items()):
        expect(client.outcome().status == 201, key, client.result)
        expect(path == '/payments' or len(charges(key)) >= 2, charges(key))
        once(path, key)


@promise('who comes back from the processor when another has taken over books nothing',
         **SHORT_LEASE)
def taken_over(service):
    key, body = new_key(), payment('/card-payments', card='slow')
    with slow_cards():
        late = in_background(request, service, '/card-payments', key, body)
        until(lambda: charges(key), 'the processor is asked')
        first = persist(service, '/card-payments', key, body)
        expect(first.status == 201 and not replayed(first), first)
    same(late.outcome(), first)
    once('/card-payments', key)


#
# All of them together
#

def replay_elsewhere(services):
    """The services share their database, so a repeat may come to another."""
    for path in PATHS:
        key = new_key()
        first = request(services[0], path, key, payment(path))
        expect(first.status == 201, first)
        for service in services[1:]:
            same(request(service, path, key, payment(path)), first)
        once(path, key)


def storm(services):
    """Each key is in the hands of two clients at a time or one after the other, of which some
    hang up before the answer; meanwhile connections to the database are lost, and the services
    are killed once."""
    cards = ['visa', 'declined', 'failing', 'visa', 'visa', 'late', 'visa', 'visa']
    work = queue.SimpleQueue()
    answers = collections.defaultdict(list)
    orders = {}
    for n in range(200):
        path = '/card-payments' if n % 2 else '/payments'
        members = {'card': cards[n // 2 % len(cards)]} if n % 2 else {}
        orders[f'storm-{n}'] = path, payment(path, n + 1, **members)
    for key in orders:
        work.put(key)
        work.put(key)

    def client():
        with contextlib.suppress(queue.Empty):
            while True:
                key = work.get_nowait()
                path, body = orders[key]
                while random.random() < 0.2:
                    with contextlib.suppress(OSError):
                        send(random.choice(services), path, key, body).close()
                answers[key].append(persist_anywhere(path, key, body))

    def persist_anywhere(path, key, body):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = request(random.choice(services), path, key, body)
                if answer.status in (201, 402):
                    return answer
                expect(answer.status in (409, 503), key, answer)
            time.sleep(0.02)
        raise Broken(f'no answer for {key} in {PATIENCE} seconds')

    relay.rate = 5
    clients = [in_background(client) for _ in range(16)]
    for n, service in enumerate(services, 1):
        until(lambda: work.qsize() < 400 - n * 100, 'a part of the storm is over')
        service.again(**HASTY)
    for each in clients:
        each.outcome()
    relay.rate = 0

    expect(answers.keys() == orders.keys(), 'keys without an answer')
    for key, (path, body) in orders.items():
        first, second = answers[key]
        expect(first[:2] == second[:2], key, first, second)
        expect((first.status == 402) == (body.get('card') == 'declined'), key, first)
        same(request(random.choice(services), path, key, body), first)


def payments_add_up():
    booked = sql('SELECT customer, key, count(*) FROM payment GROUP BY 1, 2')
    wrong = [row for row in booked if row[2] != 1]
    expect(not wrong, 'paid more than once:', wrong)
    expect({row[:2] for row in booked} == paid.keys(),
           'payments and answers differ:', {row[:2] for row in booked} ^ paid.keys())


def charges_add_up():
    made = sorted(line[4] for line in all_charges() if line[4])
    expect(len(set(made)) == len(made), 'a charge comes twice')
    found = sql('SELECT charge FROM payment WHERE charge IS NOT NULL')
    booked = sorted(charge for charge, in found)
    expect(made == booked, 'charges and payments differ:', set(made) ^ set(booked))
    by_card = [key for key, path in paid.items() if path == '/card-payments']
    expect(len(made) == len(by_card), f'{len(made)} charges, {len(by_card)} keys')


def accounts_add_up():
    wrong = sql('''SELECT customer, balance, spent FROM account
                     JOIN (SELECT customer, sum(amount) AS spent FROM payment WHERE charge IS NULL
                            GROUP BY customer) p USING (customer)
                    WHERE balance + spent <> %s''', FUNDS)
    expect(not wrong, wrong)


def all_is_over():
    expect(not sql('SELECT 1 FROM idem_in_flight'), sql('SELECT * FROM idem_in_flight'))


def dialogue(service):
    """What a reader wants to see first."""
    def say(path, key, body):
        header = f"-H 'Idempotency-Key: \"{key}\"' " if key else ''
        print(f"$ curl -i localhost:{service.port}{path} -H 'Authorization: Bearer key-of-ann' "
              f"-H 'Content-Type: application/json' \\\n       {header}-d '{json.dumps(body)}'")
        answer = request(service, path, key, body, headers=None if key else ())
        print(f'{answer.status} {http.client.responses[answer.status]}')
        for name in ('Retry-After', 'Idempotency-Replayed'):
            if name in answer.headers:
                print(f'{name}: {answer.headers[name]}')
        print(answer.body.decode(), end='\n\n', flush=True)

    say('/payments', None, payment('/payments'))
    say('/payments', 'lunch', payment('/payments'))
    say('/payments', 'lunch', payment('/payments'))
    say('/payments', 'lunch', payment('/payments', 5000))
    say('/card-payments', 'dinner', payment('/card-payments', 4200, card='failing'))
    persist(service, '/card-payments', 'dinner', payment('/card-payments', 4200, card='failing'))
    say('/card-payments', 'dinner', payment('/card-payments', 4200, card='failing'))


def main():
    services = [Service(language, *PROGRAMS[language]) for language in sys.argv[1:]]
    try:
        processor.start()
        for service in services:
            service.start(**PATIENT)
        keep('a client that goes on until it has an answer gets one', dialogue, services[0])
        for service in services:
            print(f'\n{service.name}:')
            now = PATIENT
            for text, settings, function in promises:
                if settings != now:
                    service.again(**settings)
                    now = settings
                keep(text, function, service)
        print('\ntogether:')
        for service in services:
            service.again(**HASTY)
        keep('a repeat may come to another service', replay_elsewhere, services)
        keep('a storm of 200 keys has one answer for each', storm, services)
        keep('each key that was answered 201 has one payment, and no other has', payments_add_up)
        keep('each payment by card has one charge, and each charge a payment', charges_add_up)
        keep('accounts have lost what was paid', accounts_add_up)
        keep('nothing is left in flight', all_is_over)
    finally:
        for process in (*services, processor):
            with contextlib.suppress(AttributeError):
                process.kill()
    if failed:
        for service in services:
            print(f'--- {service.name}, last errors', errors_of(service.name)[-2000:], sep='\n',
                  file=sys.stderr)
    sys.exit(bool(failed))


processor = Process('processor', '/usr/bin/python3', f'{HERE}/processor.py', charges_log)
relay = Relay()
main()
