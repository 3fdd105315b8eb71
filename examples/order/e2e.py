#!/usr/bin/python3
"""The shop, its payment service and all that can go wrong; started by run, which prepares
the database.

Each order is under way with a key of its own, and it is known what is to become of it.
Programs are stopped, killed and let go on at points that they report; the end of a lease
is set back, or waited for by asking the database. At last the orders, the log of the
payment service, the shipments and the mails are compared. The exit status is 0 only if
all of it is as it should be.
"""

import collections
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import psycopg2

SCRATCH = os.environ['SANDBOX'] + '/order'     # what the programs say, and the charges
LOG = f'{SCRATCH}/charges'
SCOPE = 'POST /orders'
STOCK = 100

Order = collections.namedtuple('Order', 'item quantity card state')

failed = 0
orders = {}                             # by key
answers = collections.defaultdict(set)  # by key: those that are final
processes = []
payments = ''                           # URL
port = main_shop = None
number = itertools.count(1)


#
# Verdicts
#

def check(what, good, seen=''):
    global failed
    print(f'{"ok    " if good else "BROKEN"}  {what}{"" if good else f": {seen}"}', flush=True)
    failed += not good


@contextlib.contextmanager
def scenario(name):
    """One that cannot go on is broken, and the next ones have their chance."""
    global failed
    print(f'== {name}', flush=True)
    try:
        yield
    except Exception as error:
        failed += 1
        place = error.__traceback__
        while place.tb_next and place.tb_next.tb_frame.f_code.co_filename == __file__:
            place = place.tb_next
        print(f'BROKEN  it did not come to an end: line {place.tb_lineno}: {error!r}', flush=True)


def until(what, holds, limit=30):
    end = time.monotonic() + limit
    while not (result := holds()):
        if time.monotonic() > end:
            raise TimeoutError(f'waited in vain until {what}')
        time.sleep(0.01)
    return result


#
# The database
#

def connect(user):
    db = psycopg2.connect(user=user)
    db.autocommit = True
    return db


def query(db, statement, *args):
    with db.cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchall() if cursor.description else None


def one(statement, *args):
    return query(admin, statement, *args)[0][0]


def lookup(expression, key):
    """Keys belong to the role shop."""
    rows = query(shop, f'SELECT {expression} FROM idem_lookup(%s, %s)', key, SCOPE)
    return rows[0][0] if rows else None


def may_be_claimed(key):
    return lookup('''state = 'finished' OR state = 'in_progress' AND lease_until < clock_timestamp()
                     OR state = 'retry_later' AND retry_at < clock_timestamp()''', key) is not False


def end_leases(*keys):
    """Nobody shall wait for them; waits for transactions that are about to end."""
    query(admin, '''UPDATE idem_key SET lease_until = clock_timestamp()
                     WHERE lease_until IS NOT NULL AND key = ANY (%s)''', list(keys))


def state_of(key):
    return [row[0] for row in query(admin, 'SELECT state FROM orders WHERE key = %s', key)]


def is_over(key):
    return lookup("state = 'finished'", key)


#
# Programs
#

class Program:
    """One that prints its port, unless it is a sweeper."""

    def __init__(self, *command, listens=True, **environment):
        self.errors = f'{SCRATCH}/{next(number)}.err'
        with open(self.errors, 'w') as errors:
            self.process = subprocess.Popen(
                ['/usr/bin/python3', *command], text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, 'PGUSER': 'shop', 'PAYMENTS': payments, **environment})
        processes.append(self)
        if listens:
            self.port = int(self.process.stdout.readline() or 0)
            if not self.port:
                raise ChildProcessError(self.stderr())

    def stderr(self):
        with open(self.errors) as errors:
            return errors.read()

    def stopped(self):
        """Waits until it has stopped at its point."""
        def state():
            if self.process.poll() is not None:
                raise ChildProcessError(f'it has ended: {self.stderr()}')
            with open(f'/proc/{self.process.pid}/stat') as stat:
                return stat.read().rpartition(')')[2].split()[0] == 'T'
        until(f'{self.process.args} stops', state)
        return self

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def over(self):
        """Waits for its end."""
        if self.process.wait(30):
            raise ChildProcessError(self.stderr())
        return self


def restart():
    """The shop that clients know."""
    global port, main_shop
    if main_shop:
        main_shop.kill()
    main_shop = Program('shop.py', '0')
    port = main_shop.port


def sweep():
    return Program('resume.py', '--once', listens=False).over()


#
# Clients
#

def order(card='tok_ok', state='shipped', item=None, quantity=1):
    """A new key. Each item belongs to one order, unless it is named."""
    key = f'order-{next(number)}'
    if item is None:
        item = f'item-{next(number)}'
        query(admin, 'INSERT INTO stock VALUES (%s, 10, %s)', item, STOCK)
    orders[key] = Order(item, quantity, card, state)
    return key


def send(port, key, **other):
    """Does not wait for the answer."""
    wanted = orders.get(key) or Order('none', 1, 'tok_ok', None)
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    body = {'item': wanted.item, 'quantity': wanted.quantity, 'card': wanted.card, **other}
    connection.request('POST', '/orders', json.dumps(body), {
        'Content-Type': 'application/json', **({'Idempotency-Key': key} if key else {})})
    return key, connection


def receive(sent):
    key, connection = sent
    with contextlib.closing(connection):
        response = connection.getresponse()
        body = json.loads(response.read())
    if response.status in (201, 402, 410):
        answers[key].add((response.status, json.dumps(body, sort_keys=True)))
    return response.status, body, response.headers


def post(port, key, **other):
    return receive(send(port, key, **other))


def insist(port, key):
    """As a client does: again, until there is an answer; told not yet, it waits."""
    statuses = []
    while True:
        until(f'{key} may be claimed', lambda: may_be_claimed(key))
        status, body, headers = post(port, key)
        statuses.append(status)
        if status not in (409, 503):
            return statuses, body
        if not headers['Retry-After']:
            raise ValueError(f'{status} without Retry-After')
        if len(statuses) > 100:
            raise TimeoutError(f'{key}: {statuses}')


def went_unanswered(sent):
    try:
        return not receive(sent)
    except (ConnectionError, http.client.HTTPException):
        return True


def calls(keys):
    """Of the payment service, for these orders."""
    ids = query(admin, 'SELECT id::text FROM orders WHERE key = ANY (%s)', list(keys))
    with open(LOG) as log:
        return sum((line.split('\t')[0],) in ids for line in log)


#
# Scenarios
#

def plain():
    key = order()
    status, body, headers = post(port, key)
    check('an order is answered 201', status == 201 and body['state'] == 'shipped',
          (status, body))
    again = post(port, key)
    check('a repeat gets the same answer, marked as one',
          again[:2] == (status, body) and again[2]['Idempotency-Replayed'] == 'true'
          and 'Idempotency-Replayed' not in headers, again)
    again = post(port, f'"{key}"')[0], post(port, key, quantity=2)[0]
    check('the same key with another order is answered 422', again == (422, 422), again)
    status = {post(port, '')[0], post(port, 'x' * 513)[0],
              post(port, order(state=None), quantity=0)[0]}
    check('no key, too long a key, no order: 400', status == {400}, status)

    key = order(card='tok_declined', state='declined')
    status, body, _ = post(port, key)
    check('a declined payment is answered 402', status == 402 and body['state'] == 'declined',
          (status, body))
    again = post(port, key)
    check('and so is its repeat, without another call',
          again[:2] == (status, body) and calls([key]) == 1, again)
    key = order(quantity=STOCK + 1, state='sold out')
    status = post(port, key)[0], post(port, key)[0]
    check('what is sold out is answered 410, without a call',
          status == (410, 410) and not calls([key]), status)


def duplicates():
    item = orders[order(state=None)].item
    keys = [order(item=item) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        statuses = [status for status, _, _ in pool.map(lambda key: post(port, key), keys * 8)]
    check('of 8 requests for each of 4 orders at once each is answered 201 or 409',
          set(statuses) <= {201, 409} and 201 in statuses, statuses)
    for key in keys:
        insist(port, key)
    check('there was one call of the payment service for each', calls(keys) == 4, calls(keys))


def failures():
    impatient = Program('shop.py', '0', TIMEOUT='1')
    keys = {card: order(card=f'tok_{card}') for card in ('failing', 'lost', 'hanging')}
    for card, key in keys.items():
        status, _, headers = post(impatient.port, key)
        check(f'{card}: answered 503 with Retry-After', status == 503 and headers['Retry-After'],
              status)
        check(f'{card}: reserved once, and not shipped', steps(key) == ['reserve'], steps(key))
    insist(port, keys['lost'])
    until('the others may be tried again', lambda: all(map(may_be_claimed, keys.values())))
    sweep()
    check('the client of one comes again, the others are resumed',
          all(map(is_over, keys.values())), [state_of(key) for key in keys.values()])
    impatient.kill()


def steps(key):
    return [row[0] for row in query(shop, 'SELECT step FROM idem_steps(%s, %s)', key, SCOPE)]


def points(card, state):
    """Those that a flow passes."""
    program = Program('accident.py', 'none', 'shop.py', '0')
    post(program.port, order(card, state))
    program.kill()
    return [line.partition(' ')[2] for line in program.stderr().splitlines()
            if line.startswith('reached ')]


def die_at(point, card, state):
    """Returns the key of an order whose shop was killed there."""
    program = Program('accident.py', point, 'shop.py', '0')
    key = order(card, state)
    sent = send(program.port, key)
    program.stopped()
    program.kill()
    if not went_unanswered(sent):
        raise ValueError('there was an answer')
    # The price that was promised is kept; where nothing was promised, this is the price.
    query(admin, 'UPDATE stock SET price = 11 WHERE item = %s', orders[key].item)
    end_leases(key)
    return key


def amounts(key):
    return query(admin, '''SELECT amount FROM orders JOIN payment ON order_id = id
                            WHERE key = %s''', key)


def deaths(resume, card='tok_ok', state='shipped', first='claimed'):
    where = points(card, state)
    where = where[where.index(first):]
    check(f'there are {len(where)} points at which to die', len(where) > 6, where)
    died = {point: die_at(point, card, state) for point in where}
    resume(died.values())
    wrong = [point for point, key in died.items() if not is_over(key) or state_of(key) != [state]]
    check('wherever the shop was killed, the order is done', not wrong, wrong)
    if state == 'shipped':
        promised = where[where.index('reserve done'):]
        wrong = [point for point, key in died.items()
                 if amounts(key) != [(10 if point in promised else 11,)]]
        check('at the price that was reserved', not wrong, wrong)
    again = ('charge called', 'charge written', 'charge finished')
    wrong = [point for point, key in died.items() if calls([key]) != 1 + (point in again)]
    check('a charge is asked for again only if the answer was not written down', not wrong, wrong)


def by_clients(keys):
    restart()
    for key in keys:
        insist(port, key)


def by_a_sweeper(keys):
    sweep()


def death_of_a_sweeper():
    key = die_at('reserve done', 'tok_ok', 'shipped')
    sweeper = Program('accident.py', 'charge called', 'resume.py', '--once', listens=False)
    sweeper.stopped()
    status, _, headers = post(port, key)
    check('while a sweeper is at work on it, its client is told 409',
          status == 409 and headers['Retry-After'], status)
    sweep()
    check('and other sweepers leave it alone', not is_over(key) and calls([key]) == 1,
          calls([key]))
    sweeper.kill()
    end_leases(key)
    sweep()
    check('one that was killed is followed by another', is_over(key), state_of(key))


LATE = ('claimed', 'reserve to do', 'reserve written', 'charge to do', 'charge called',
        'charge written', 'ship to do', 'ship finished', 'answer written')


def late():
    """These leases run out by themselves."""
    late = {point: Program('accident.py', point, 'shop.py', '0', LEASE='3') for point in LATE}
    sent = {point: send(program.port, order()) for point, program in late.items()}
    keys = {point: key for point, (key, _) in sent.items()}
    for program in late.values():
        program.stopped()
    for key in keys.values():
        insist(port, key)
    check('when the lease of one that has stopped has run out, another does the work',
          all(map(is_over, keys.values())))
    before = {point: calls([key]) for point, key in keys.items()}
    seen = contents()
    for program in late.values():
        program.go_on()
    told = {point: receive(sent)[0] for point, sent in sent.items()}
    check('the late one is refused', set(told.values()) == {409}, told)
    check('it has written nothing', contents() == seen)
    check('it has called nobody', before == {point: calls([key]) for point, key in keys.items()})
    for program in late.values():
        program.kill()


def contents():
    return [query(admin, f'SELECT t::text FROM {table} AS t ORDER BY 1') for table in (
        'stock', 'orders', 'reservation', 'payment', 'shipment',
        'idem_key', 'idem_step', 'idem_message')]


def connections():
    """The server ends the connection of a flow, and the flow has to make do."""
    def others():
        return [row[0] for row in query(admin, '''
            SELECT pid FROM pg_stat_activity WHERE usename = 'shop' AND pid <> %s''',
            shop.info.backend_pid)]

    wrong = {}
    for point in ('reserve written', 'charge called', 'charge finished', 'answer finished'):
        program = Program('accident.py', point, 'shop.py', '0')
        key = order()
        sent = send(program.port, key)
        program.stopped()
        until('it has the only connection', lambda: len(others()) == 1)
        one('SELECT pg_terminate_backend(%s, 30000)', others()[0])
        program.go_on()
        status = receive(sent)[0]
        if status != 503 or lookup('state', key) != 'retry_later':
            wrong[point] = status, lookup('state', key)
        program.kill()
        insist(port, key)
    check('a flow that loses its connection gives the key back, and is gone on with', not wrong,
          wrong)


def breaker():
    def begin(open_for):
        query(admin, '''SELECT idem_breaker_configure('payments', minimum_calls => 5,
                                                       half_open_probes => 1, open_for => %s),
                               idem_breaker_reset('payments')''', open_for)

    def state():
        return one("SELECT state FROM idem_breakers WHERE name = 'payments'")

    begin('1 hour')
    keys = [order() for _ in range(8)]
    open(f'{LOG}.down', 'w').close()
    told = [post(port, key) for key in keys]
    check('while the payment service is down, orders are answered 503',
          {status for status, _, _ in told} == {503}, [status for status, _, _ in told])
    check('five have called it, and then the breaker is open',
          calls(keys) == 5 and state() == 'open', (calls(keys), state()))
    put_off = [int(headers['Retry-After']) for _, _, headers in told[5:]]
    check('the others are put off for as long as that', min(put_off) > 3000, put_off)

    # the same once more, but open for a moment only
    begin('50 ms')
    query(admin, 'UPDATE idem_key SET retry_at = clock_timestamp() WHERE key = ANY (%s)', keys)
    sweeper = Program('resume.py', listens=False, PAUSE='0.05')
    until('the breaker has opened again', lambda: state() != 'closed')
    check('nothing is done meanwhile', not any(map(is_over, keys)))
    os.remove(f'{LOG}.down')
    until('the orders are done', lambda: all(map(is_over, keys)))
    check('when it is back, all of them are done, and the breaker is closed', state() == 'closed',
          state())
    sweeper.kill()


#
# At last
#

def totals():
    query(admin, 'CREATE TEMP TABLE wanted (key text, item text, quantity int, state text)')
    for key, wanted in orders.items():
        if wanted.state:
            query(admin, 'INSERT INTO wanted VALUES (%s, %s, %s, %s)',
                  key, wanted.item, wanted.quantity, wanted.state)
    query(admin, '''CREATE TEMP TABLE request (order_id int, amount int, key text, card text,
                                             status int, charge int)''')
    with open(LOG) as log, admin.cursor() as cursor:
        cursor.copy_from(log, 'request')

    def promise(what, broken):
        rows = query(admin, broken)
        check(what, not rows, [row[0] for row in rows])

    def per_order(rows):
        """Orders with another number of these than one if shipped, and else none."""
        return f'''SELECT w.key FROM wanted w LEFT JOIN orders o USING (key)
                     LEFT JOIN ({rows}) AS r (order_id) ON order_id = o.id
                    GROUP BY w.key, w.state HAVING count(order_id) <> (w.state = 'shipped')::int
                   UNION ALL SELECT 'order ' || order_id FROM ({rows}) AS r (order_id)
                    WHERE order_id NOT IN (SELECT id FROM orders)'''

    promise('each order is there once, and as it was to be', '''
        SELECT key FROM wanted w FULL JOIN orders o USING (key) GROUP BY key, w.state
        HAVING count(o.key) <> 1 OR max(o.state) IS DISTINCT FROM w.state''')
    promise('each that is shipped has one reservation, and the others none',
            per_order('SELECT order_id FROM reservation'))
    promise('of what was ordered', '''
        SELECT w.key FROM wanted w JOIN orders o USING (key)
          JOIN (TABLE reservation UNION ALL TABLE shipment) r ON order_id = o.id
         WHERE (w.item, w.quantity) <> (r.item, r.quantity)''')
    promise('one charge at the payment service',
            per_order('SELECT order_id FROM request WHERE charge > 0'))
    promise('one payment, which is that charge',
            per_order('''SELECT p.order_id FROM payment p JOIN request r
                            ON p.charge = 'ch_' || r.charge AND r.charge > 0
                           AND (p.order_id, p.amount) = (r.order_id, r.amount)''')
            + ' UNION ALL SELECT charge FROM payment GROUP BY charge HAVING count(*) > 1')
    promise('one shipment', per_order('SELECT order_id FROM shipment'))
    promise('each order, shipped or not, has one mail, which says so', '''
        SELECT o.key FROM orders o LEFT JOIN idem_messages m
            ON queue = 'mail' AND (payload->>'order', payload->>'state') = (o.id::text, o.state)
         GROUP BY o.key HAVING count(m.id) <> 1
        UNION ALL SELECT 'messages: ' || count(*) FROM idem_messages
        HAVING count(*) <> (SELECT count(*) FROM wanted)''')
    promise('what was taken from the stock is what is reserved', f'''
        SELECT item FROM stock LEFT JOIN reservation USING (item) GROUP BY item, available
        HAVING available + coalesce(sum(quantity), 0) <> {STOCK}''')
    promise('the payment service was asked under one key for each order', f'''
        SELECT o.key FROM orders o JOIN request r ON order_id = id
         WHERE r.key <> idem_derive(o.key, 'charge', '{SCOPE}')::text''')
    wrong = [key for key, seen in answers.items() if len(seen) > 1]
    check('all clients of an order were told the same', not wrong, wrong)
    print(*query(admin, '''
        SELECT format('%%s orders, of which %%s are shipped; %%s calls and %%s charges; %%s mails',
                      (SELECT count(*) FROM wanted), (SELECT count(*) FROM shipment), count(*),
                      count(*) FILTER (WHERE charge > 0), (SELECT count(*) FROM idem_messages))
          FROM request''')[0])


def main():
    global payments
    os.makedirs(SCRATCH)
    payments = f'http://127.0.0.1:{Program("payments.py", LOG).port}'
    restart()
    with scenario('orders and their repeats'):
        plain()
    with scenario('many requests at once'):
        duplicates()
    with scenario('the payment service fails'):
        failures()
    with scenario('the shop is killed, and its clients come again'):
        deaths(by_clients)
    with scenario('the shop is killed, and its orders are resumed'):
        deaths(by_a_sweeper)
    with scenario('the same with payments that are declined'):
        deaths(by_a_sweeper, 'tok_declined', 'declined', first='charge called')
    with scenario('a sweeper is killed'):
        death_of_a_sweeper()
    with scenario('one that is late'):
        late()
    with scenario('connections are lost'):
        connections()
    with scenario('the payment service is down for a while'):
        breaker()
    with scenario('at last'):
        totals()


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
admin, shop = connect('postgres'), connect('shop')
try:
    main()
finally:
    for one_of_them in processes:
        one_of_them.kill()
sys.exit(failed > 0)
