"""What a client of a torture run does with queues: operations, as in operations.py.

There are three queues, which check.sql tells apart by name: "mail", of each role;
"shared", of alice, which bob uses, too; and "scrap", of each role, which is purged
now and then, so that of its messages only the number is known.

An effect is written in the transaction of the acknowledgement, always: it must be
there once for each message. A message says which transaction has enqueued it.
"""

import json
import time

from operations import LONGEST_LEASE, LOST, operation, seconds

NAMES = ('mail', 'shared', 'scrap')
LEASES = (0.03, 0.1, 0.3)              # seconds
ATTEMPTS = (3, 4, 5)                    # that a queue may grant, by configuration


class Queue:
    def __init__(self, client, plan, names=('mail', 'mail', 'shared', 'shared', 'scrap')):
        self.name = plan.choice(names)
        self.owner = 'alice' if self.name == 'shared' else client.role
        self.id = f'{self.owner}/{self.name}'


class Letter:
    """A message that is to be enqueued. Keys are "once" or "short", as in operations.py."""

    def __init__(self, client, plan, kinds=(None, None, 'once', 'once', 'short')):
        kind = plan.choice(kinds)
        number = client.request // 3 + plan.randrange(6)
        self.key = kind and f'{kind}-{number}'
        self.ttl = '50 ms' if kind == 'short' else '7 days'
        self.group = plan.choice((None, f'group-{client.request // 8 + plan.randrange(2)}'))
        self.delay = plan.choice((None, None, None, '0', '20 ms', '200 ms'))
        self.max_attempts = plan.choice((None, None, 0, 1, 2, 5))
        self.priority = plan.choice((0, 0, 0, 0, -1, 5))


class Delivery:
    """A message that was taken."""

    def __init__(self, queue, message, token):
        self.queue = queue
        self.message = message
        self.token = token


def note_enqueued(trans, queue, letter, message, duplicate, sent, at):
    trans.insert('enqueued', message=message, queue=queue.id, key=letter.key,
                 message_group=letter.group, max_attempts=letter.max_attempts,
                 duplicate=duplicate, sent=sent, at=at, ttl=letter.ttl)


def put(trans, queue, letter):
    """One message. If it has a key, nobody says whether it has been enqueued now."""
    (message, sent, at), = trans.query(
        'SELECT id, statement_timestamp(), clock_timestamp()'
        ' FROM idem_enqueue(%s, %s, key => %s, delay => %s, max_attempts => %s, priority => %s,'
        ' message_group => %s, ttl => %s, owner => %s) AS id',
        queue.name, json.dumps({'op': trans.op}), letter.key, letter.delay, letter.max_attempts,
        letter.priority, letter.group, letter.ttl, queue.owner)
    note_enqueued(trans, queue, letter, message, None if letter.key else False, sent, at)


def different(letters):
    """No two with the same key."""
    return list({letter.key or letter: letter for letter in letters}.values())


def change_mind(client, trans):
    """What has been enqueued so far is not to be found by anybody."""
    if client.chance(0.05):
        client.vanish()
    if client.chance(0.05):
        trans.roll_back()


def linger(client, lease):
    """Often too long: there are others who wait for the lease to run out."""
    if client.chance(0.04):
        client.vanish()
    if client.chance(0.3):
        client.pause(client.luck.choice((0.5, 1.2, 3)) * lease)


@operation(12)
def enqueue(client, plan):
    """Some messages in one transaction."""
    queue = Queue(client, plan)
    letters = different(Letter(client, plan) for _ in range(plan.choice((1, 1, 1, 2, 3))))
    with client.transaction(prepare=client.chance(0.1)) as trans:
        for letter in letters:
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    put(trans, queue, letter)
            if client.chance(0.1):
                with trans.savepoint(rollback=False):
                    put(trans, queue, letter)
            else:
                put(trans, queue, letter)
        change_mind(client, trans)


@operation(4)
def enqueue_many(client, plan):
    """A batch; some of them have the same key."""
    queue = Queue(client, plan)
    letters = [Letter(client, plan) for _ in range(plan.choice((2, 5, 20)))]
    terms = letters[0]
    for letter in letters:
        letter.max_attempts, letter.ttl = terms.max_attempts, '7 days'
        letter.key = letter.key and letter.key.replace('short', 'once')
    with client.transaction() as trans:
        answers = trans.query(
            'SELECT id, duplicate, statement_timestamp(), clock_timestamp()'
            ' FROM idem_enqueue_many(%s, array_fill(%s::jsonb, ARRAY[%s]), keys => %s::text[],'
            ' delay => %s, max_attempts => %s, priority => %s, message_groups => %s::text[],'
            ' ttl => %s, owner => %s)',
            queue.name, json.dumps({'op': trans.op}), len(letters),
            [letter.key for letter in letters], terms.delay, terms.max_attempts, terms.priority,
            [letter.group for letter in letters], terms.ttl, queue.owner)
        for letter, answer in zip(letters, answers, strict=True):
            note_enqueued(trans, queue, letter, *answer)
        change_mind(client, trans)


@operation(6)
def receive(client, plan):
    """The same webhook comes to several at once."""
    queue = Queue(client, plan, ('mail', 'shared', 'shared'))
    letter = Letter(client, plan, ('once', 'once', 'short'))
    letter.max_attempts = None
    webhook = f'{letter.key[:-1]}0'     # ten of them are one
    with client.transaction() as trans:
        (message, duplicate, sent, at), = trans.query(
            "SELECT id, duplicate, statement_timestamp(), clock_timestamp()"
            " FROM idem_receive('bank', %s, %s, %s, ttl => %s, message_group => %s, owner => %s)",
            webhook, json.dumps({'op': trans.op}), queue.name, letter.ttl, letter.group, queue.owner)
        letter.key = f'bank/{webhook}'
        note_enqueued(trans, queue, letter, message, duplicate, sent, at)
        change_mind(client, trans)


def take(trans, queue, most, lease, wait=None):
    """Dequeues, notes what there was, and answers it."""
    rows = trans.query(
        "SELECT id, token, attempt, lease_until - %s::interval, lease_until, message_group,"
        " downstream_key, payload ->> 'op'"
        ' FROM idem_dequeue(%s, %s, %s, %s, %s)',
        lease, queue.name, most, lease, wait, queue.owner)
    for message, token, attempt, at, until, group, downstream, by in rows:
        trans.query(
            'INSERT INTO torture.delivered (message, op, n, token, queue, message_group, place,'
            ' attempt, at, lease_until, downstream_key, enqueued_by)'
            ' VALUES (%s, %s, %s, %s, %s, %s, torture.place(%s), %s, %s, %s, %s, %s)',
            message, trans.op, trans.writes, token, queue.id, group, message, attempt, at, until,
            downstream, by)
        trans.writes += 1
    return [Delivery(queue, message, token) for message, token, *_ in rows]


def deliver(trans, deliveries):
    """The effects of messages, and the end of them."""
    for delivery in deliveries:
        trans.insert('delivery_effect', n=trans.writes, message=delivery.message,
                     token=delivery.token, queue=delivery.queue.id)
    if len(deliveries) == 1:
        trans.query('SELECT idem_ack(%s, %s)', deliveries[0].message, deliveries[0].token)
    else:
        trans.query('SELECT idem_ack_many(%s::bigint[], %s::bigint[])',
                    [delivery.message for delivery in deliveries],
                    [delivery.token for delivery in deliveries])


def give_back(trans, delivery, retry_in, final):
    trans.query('SELECT idem_nack(%s, %s, %s, %s, %s)', delivery.message, delivery.token,
                json.dumps({'op': trans.op}), retry_in, final)
    trans.insert('given_back', message=delivery.message, token=delivery.token, final=final)


def extend(trans, delivery, lease):
    (until,), = trans.query('SELECT idem_extend(%s, %s, %s)', delivery.message, delivery.token, lease)
    trans.insert('extended', message=delivery.message, token=delivery.token, lease_until=until)


@operation(30)
def deliver_at_once(client, plan):
    """Takes messages, and is done with them, in one transaction: nothing can be late."""
    queue = Queue(client, plan)
    most = plan.choice((1, 2, 5, 20))
    wait = plan.choice((None, None, None, '30 ms'))
    with client.transaction(prepare=client.chance(0.05)) as trans:
        for _ in range(client.luck.choice((1, 1, 2))):
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    deliver(trans, take(trans, queue, most, '1 min'))
            taken = take(trans, queue, most, '1 min', wait)
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    deliver(trans, taken)
            if taken and client.chance(0.1):
                give_back(trans, taken.pop(), '0', False)
            with trans.savepoint(rollback=False):
                deliver(trans, taken)
        if client.chance(0.02):
            client.vanish()


@operation(30)
def deliver_later(client, plan):
    """Takes messages, commits, and is done with each of them later, or too late."""
    queue = Queue(client, plan)
    lease = plan.choice(LEASES)
    with client.transaction(prepare=client.chance(0.03)) as trans:
        taken = take(trans, queue, plan.choice((1, 1, 2, 4)), seconds(lease),
                     plan.choice((None, None, '30 ms')))
    for delivery in taken:
        fate = client.luck.random()
        if fate < 0.2:
            with client.transaction(expected=LOST) as trans:
                extend(trans, delivery, seconds(client.luck.choice(LEASES)))
        linger(client, lease)
        with client.transaction(expected=LOST, prepare=client.chance(0.05)) as trans:
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    deliver(trans, [delivery])
            if fate < 0.8:
                deliver(trans, [delivery])
            elif fate < 0.97:
                give_back(trans, delivery, client.luck.choice((None, '0', '0', '20 ms')), False)
            else:
                give_back(trans, delivery, None, True)
            linger(client, lease)


@operation(4)
def abandon(client, plan):
    """Takes messages, and is not heard of again: others take them over."""
    queue = Queue(client, plan)
    with client.transaction() as trans:
        take(trans, queue, plan.choice((1, 2, 5)), seconds(plan.choice(LEASES)))


@operation(2)
def wait_for_messages(client, plan):
    queue = Queue(client, plan)
    client.by_itself('CALL idem_await(%s, %s, %s)', queue.name, plan.choice(('0', '50 ms')), queue.owner)


@operation(3)
def redrive(client, plan):
    """Dead letters get another chance: all, some, or those that are named."""
    queue = Queue(client, plan)
    by_name = plan.random() < 0.5
    most = plan.choice((None, 1, 5))
    with client.transaction() as trans:
        ids = None
        if by_name:
            ids = [message for message, in trans.query(
                'SELECT id FROM idem_dead_letters WHERE queue = %s AND owner = %s::regrole'
                ' ORDER BY id DESC LIMIT 10', queue.name, queue.owner)]
        with trans.savepoint(rollback=client.chance(0.1)):
            (messages,), = trans.query('SELECT idem_redrive(%s, %s::bigint[], %s, %s)',
                                       queue.name, ids, most, queue.owner)
            trans.insert('redriven', queue=queue.id, messages=messages)


@operation(2)
def purge(client, plan):
    queue = Queue(client, plan, ('scrap',))
    with client.transaction() as trans:
        (messages,), = trans.query('SELECT idem_purge(%s, %s, %s)', queue.name,
                                   plan.random() < 0.3, plan.choice((None, 1, 10)))
        trans.insert('purged', queue=queue.id, messages=messages)


@operation(2)
def configure(client, plan):
    """Other rules; or a pause, after which there must be work again."""
    queue = Queue(client, plan, NAMES if client.role == 'alice' else ('mail', 'scrap'))
    attempts = plan.choice(ATTEMPTS)
    if plan.random() < 0.3:
        with client.transaction() as trans:
            set_rules(trans, queue, attempts, True)
        linger(client, LEASES[0])
    with client.transaction() as trans:
        set_rules(trans, queue, attempts, False)


def set_rules(trans, queue, attempts, paused):
    trans.query("SELECT idem_configure_queue(%s, %s, '5 ms', '50 ms', shared_with => %s::text[],"
                ' paused => %s)',
                queue.name, attempts, ['bob'] if queue.name == 'shared' else None, paused)
    trans.insert('configured', queue=queue.id, max_attempts=attempts)


#
# Before and after
#

def begin(cursor, role):
    """The rules that hold at first, and again when all is over."""
    for name in NAMES:
        if name != 'shared' or role == 'alice':
            cursor.execute("SELECT idem_configure_queue(%s, %s, '5 ms', '50 ms', shared_with => %s::text[])",
                           (name, max(ATTEMPTS), ['bob'] if name == 'shared' else None))
            cursor.execute("INSERT INTO torture.configured VALUES (%s, 'begin', %s)",
                           (f'{role}/{name}', max(ATTEMPTS)))


def drain(cursor, role):
    """Does what is left to be done, until there is nothing, or nothing comes any more."""
    begin(cursor, role)
    patience = 10 * LONGEST_LEASE
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        cursor.execute('SELECT count(*) FROM idem_messages WHERE owner = current_user::regrole')
        if cursor.fetchone() == (0,):
            return
        for name in NAMES:
            cursor.execute('BEGIN')
            cursor.execute("""
                WITH taken AS MATERIALIZED (
                    SELECT * FROM idem_dequeue(%s, 1000, '1 min')
                ), effect AS (
                    INSERT INTO torture.delivery_effect (op, n, message, token, queue)
                    SELECT 'drain', 0, id, token, current_user || '/' || %s FROM taken
                )
                INSERT INTO torture.delivered (message, op, n, token, queue, message_group, place,
                                               attempt, at, lease_until, downstream_key, enqueued_by)
                SELECT id, 'drain', 0, token, current_user || '/' || %s, message_group, torture.place(id),
                       attempt, lease_until - '1 min'::interval, lease_until, downstream_key, payload ->> 'op'
                  FROM taken
                RETURNING message, token""", (name, name, name))
            taken = cursor.fetchall()
            if taken:
                cursor.execute('SELECT idem_ack_many(%s::bigint[], %s::bigint[])',
                               ([message for message, _ in taken], [token for _, token in taken]))
                deadline = time.monotonic() + patience
            cursor.execute('COMMIT')
        time.sleep(0.01)
