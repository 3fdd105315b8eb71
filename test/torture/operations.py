"""What a client of a torture run does: one function for each operation.

An operation takes the client and the plan, a generator of random numbers that is
the same on every try of the request. To add one, write a function and mark it
with its weight; whatever must be checked of it goes into the tables of schema.sql
in the same transaction, or into the history, and into check.sql.
Those on queues are in queues.py.

Keys come in three kinds, which check.sql tells apart by name:

    once    is kept, and never given up: its work is done once for ever
    short   is kept for milliseconds: done once within them
    gone    is forgotten, or released, now and then
"""

import json

# What a holder may be told by everything that presents his token: it is finished
# already, or his no more.
LOST = ('ID002', 'ID003')

LEASES = (0.15, 0.3, 0.6)               # seconds
STEPS = ('charge', 'mail', 'ship')
LONGEST_LEASE = max(LEASES)

_operations = []


def operation(weight):
    def register(function):
        _operations.append((function, weight))
        return function
    return register


def draw(plan):
    functions, weights = zip(*_operations)
    return plan.choices(functions, weights)[0]


class Key:
    """A key in its scope, and for how long its record is kept."""

    def __init__(self, client, plan, kinds=('once', 'once', 'short', 'gone'), number=None):
        self.kind = plan.choice(kinds)
        if number is None:              # a window that moves on
            number = client.request // 3 + plan.randrange(12)
        self.key = f'{self.kind}-{number}'
        self.scope = plan.choice(('', 'tenant')) if self.kind == 'gone' else ''
        self.ttl = '50 ms' if self.kind == 'short' else '7 days'
        self.id = f'{client.role}/{self.scope}/{self.key}'


def claim(client, trans, key, wait=None, lease=None, takeover='rerun', holder=None):
    """Claims the key, notes what came of it, and answers the claim if there is one."""
    (outcome, response, token, attempt, retry_after, at), = trans.query(
        'SELECT outcome, response, token, attempt, extract(epoch FROM retry_after)::float8,'
        ' clock_timestamp()'
        ' FROM idem_claim(%s, ttl => %s, scope => %s, wait => %s, lease => %s,'
        ' takeover => %s, holder => %s)',
        key.key, key.ttl, key.scope, wait, seconds(lease), takeover, holder)
    note_answer(client, key.id, outcome, response, retry_after)
    if outcome != 'claimed':
        return None
    trans.insert('claimed', id=key.id, token=token, attempt=attempt)
    return Claim(key, token, None if holder else attempt, at, lease)


class Claim:
    """A claim, committed or not. The attempt of a holder that may have claimed before
    does not tell whether he is the first in the life of the key: then it is None."""

    def __init__(self, key, token, attempt, at, lease):
        self.key = key
        self.token = token
        self.attempt = attempt
        self.at = at
        self.lease = lease


def seconds(number):
    return None if number is None else f'{number} s'


def note_answer(client, key_id, outcome, response, retry_after):
    client.note('answer', key=key_id, detail=outcome)
    if outcome == 'replayed':
        client.note('replayed', key=key_id, response=response)
    elif outcome == 'in_progress' and retry_after is not None:
        client.note('busy', key=key_id, seconds=retry_after)


def work(trans, claim):
    """The effect of a key, and the end of its claim with it."""
    key = claim.key
    response = json.dumps({'op': trans.op, 'key': key.key, 'n': trans.writes})
    trans.query(
        'INSERT INTO torture.effect (id, op, token, response, claimed_at, kept_until)'
        ' VALUES (%s, %s, %s, %s, %s, clock_timestamp() + %s::interval)',
        key.id, trans.op, claim.token, response, claim.at, key.ttl)
    trans.writes += 1
    trans.query('SELECT idem_finish(%s, %s, %s, %s)', key.key, response, key.scope, claim.token)


@operation(30)
def pay(client, plan):
    """Some keys in one transaction."""
    keys = distinct(Key(client, plan) for _ in range(plan.choice((1, 1, 1, 2, 3))))
    wait = plan.choice((None, None, None, '0', '20 ms'))
    with client.transaction(prepare=client.chance(0.1)) as trans:
        for key in keys:
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    mine = claim(client, trans, key, wait)
                    if mine and client.chance(0.7):
                        work(trans, mine)
            if client.chance(0.1):
                with trans.savepoint(rollback=False):
                    mine = claim(client, trans, key, wait)
            else:
                mine = claim(client, trans, key, wait)
            if not mine:
                continue
            if client.chance(0.02):
                client.vanish()
            if client.chance(0.1):
                with trans.savepoint(rollback=True):
                    work(trans, mine)
            if client.chance(0.1):
                with trans.savepoint(rollback=False):
                    work(trans, mine)
            else:
                work(trans, mine)


def distinct(keys):
    return list({key.id: key for key in keys}.values())


@operation(3)
def forget_to_finish(client, plan):
    """Works, and commits, but does not finish: must be refused."""
    key = Key(client, plan)
    with client.transaction(expected=('ID005',)) as trans:
        mine = claim(client, trans, key)
        if mine:
            response = json.dumps({'op': trans.op})
            trans.insert('effect', id=key.id, response=response)
            if client.chance(0.3):      # in a savepoint that takes the finish with it
                with trans.savepoint(rollback=True):
                    trans.query('SELECT idem_finish(%s, %s, %s)', key.key, response, key.scope)


@operation(6)
def batch(client, plan):
    """Many keys, more than may be locked, of those that are claimed singly, too."""
    first = client.request // 3
    numbers = plan.sample(range(first, first + 60), plan.choice((2, 5, 20, 40)))
    keys = {key.key: key for key in (Key(client, plan, ('once',), n) for n in numbers)}
    with client.transaction() as trans:
        answers = trans.query(
            "SELECT key, outcome, response, extract(epoch FROM retry_after)::float8, attempt"
            " FROM idem_claim_many(%s, ttl => '7 days', wait => %s)",
            list(keys), plan.choice((None, None, '0', '20 ms')))
        for name, outcome, response, retry_after, _ in answers:
            note_answer(client, keys[name].id, outcome, response, retry_after)
        mine = [answer[0] for answer in answers if answer[1] == 'claimed']
        attempts = {answer[0]: answer[4] for answer in answers}
        while mine and client.chance(0.1):
            # only a fresh one may be given up: others may have done steps
            trans.query('SELECT idem_release(%s)' if attempts[mine[-1]] == 1 else
                        "SELECT FROM idem_fail(%s, retry_in => '10 ms')", mine.pop())
        ids = [keys[name].id for name in mine]
        responses = [json.dumps({'op': trans.op, 'key': name}) for name in mine]
        trans.query(
            'INSERT INTO torture.claimed (id, op) SELECT id, %s FROM unnest(%s::text[]) AS id',
            trans.op, ids)
        trans.query(
            'INSERT INTO torture.effect (id, op, response, claimed_at, kept_until)'
            " SELECT id, %s, response, clock_timestamp(), clock_timestamp() + '7 days'"
            ' FROM unnest(%s::text[], %s::jsonb[]) AS u(id, response)',
            trans.op, ids, responses)
        trans.writes += 2 * len(mine)
        trans.query('SELECT FROM idem_finish_many(%s::text[], %s::jsonb[])', mine, responses)


@operation(8)
def once(client, plan):
    """Claim, work and finish in one round trip, in a transaction or by itself."""
    key = Key(client, plan, ('once', 'short'))
    with client.transaction() as trans:
        (outcome, response, retry_after), = trans.query(
            'SELECT outcome, response, extract(epoch FROM retry_after)::float8'
            ' FROM idem_once(%s, $$INSERT INTO torture.effect'
            ' (id, op, response, claimed_at, kept_until)'
            " VALUES ($1, $2, jsonb_build_object('op', $2::text), clock_timestamp(),"
            ' clock_timestamp() + $3::interval) RETURNING response$$,'
            ' %s, ttl => %s, wait => %s)',
            key.key, [key.id, trans.op, key.ttl], key.ttl, plan.choice((None, None, '0')))
        note_answer(client, key.id, outcome, response, retry_after)
        if outcome == 'claimed':
            trans.writes += 1


def flow_key(client, plan):
    """Most flows are among themselves, or somebody quicker has always been there."""
    number = f'flow-{client.request // 6 + plan.randrange(3)}' if plan.random() < 0.8 else None
    return Key(client, plan, ('once', 'once', 'once', 'gone', 'short'), number)


@operation(24)
def flow(client, plan):
    """A lease, some steps, an effect with the finish; late, or dead, now and then."""
    key = flow_key(client, plan)
    lease = plan.choice(LEASES)
    takeover = plan.choice(('rerun', 'rerun', 'hold', 'fail'))
    holder = f'{client.number}.{client.request}' if plan.random() < 0.5 else None
    wait = plan.choice((None, '0', '100 ms'))
    with client.transaction() as trans:
        mine = claim(client, trans, key, wait, lease, takeover, holder)
    if not mine:
        return
    for step in STEPS[:plan.randint(1, 3)]:
        take_step(client, mine, step)
    if client.chance(0.2):
        with client.transaction(expected=LOST) as trans:
            trans.query('SELECT idem_renew(%s, %s, %s, %s)',
                        key.key, seconds(lease), key.scope, mine.token)
    dawdle(client, lease)
    with client.transaction(expected=LOST, prepare=client.chance(0.05)) as trans:
        if client.chance(0.5):
            guard(trans, mine)
        work(trans, mine)
        dawdle(client, lease)


def dawdle(client, lease):
    if client.chance(0.06):
        client.vanish()
    if client.chance(0.2):
        client.pause(client.luck.choice((0.1, 0.9, 1.1, 1.5)) * lease)


def guard(trans, claim):
    trans.query('SELECT idem_guard(%s, %s, %s)', claim.key.key, claim.key.scope, claim.token)
    trans.insert('guarded', id=claim.key.id, token=claim.token)


def take_step(client, claim, step):
    """As one with a call to the outside: ask, call, and then write down what it did."""
    with client.transaction(expected=LOST) as trans:
        done = step_is_done(client, trans, claim, step)
    if not done:
        dawdle(client, claim.lease)
        with client.transaction(expected=LOST) as trans:
            finish_step(trans, claim, step)
            dawdle(client, claim.lease)


def step_is_done(client, trans, claim, step):
    (done, result), = trans.query(
        'SELECT done, result FROM idem_step(%s, %s, scope => %s, token => %s)',
        claim.key.key, step, claim.key.scope, claim.token)
    if done:
        client.note('step replayed', key=claim.key.id, response=result, detail=step,
                    token=claim.token, attempt=claim.attempt)
    return done


def finish_step(trans, claim, step):
    result = json.dumps({'op': trans.op, 'step': step})
    trans.insert('step_effect', id=claim.key.id, step=step, token=claim.token, result=result)
    trans.query('SELECT idem_step_finish(%s, %s, %s, %s, %s)',
                claim.key.key, step, result, claim.key.scope, claim.token)


@operation(4)
def steps_at_once(client, plan):
    """The steps of a transactional claim commit with its finish."""
    key = flow_key(client, plan)
    with client.transaction() as trans:
        mine = claim(client, trans, key)
        if mine:
            for step in STEPS[:2]:
                if not step_is_done(client, trans, mine, step):
                    with trans.savepoint(rollback=client.chance(0.2)):
                        finish_step(trans, mine, step)
            work(trans, mine)


@operation(8)
def keep_guarding(client, plan):
    """Work under a lease in several transactions, each of them guarded."""
    key = flow_key(client, plan)
    lease = plan.choice(LEASES)
    with client.transaction() as trans:
        mine = claim(client, trans, key, '0', lease)
    if mine:
        for _ in range(3):
            dawdle(client, lease)
            with client.transaction(expected=LOST) as trans:
                guard(trans, mine)
                dawdle(client, lease)   # nobody takes over meanwhile
        with client.transaction(expected=LOST) as trans:
            work(trans, mine)


@operation(4)
def fail(client, plan):
    """The work fails: to be tried again soon, or never."""
    key = Key(client, plan, ('gone', 'short'))
    lease = plan.choice((None, 0.3))
    final = plan.random() < 0.2
    with client.transaction() as trans:
        mine = claim(client, trans, key, None, lease)
        if mine and lease is None:
            if client.chance(0.9):
                record_failure(trans, mine, final)
            else:
                release(trans, mine)
    if mine and lease is not None:
        dawdle(client, lease)
        with client.transaction(expected=LOST) as trans:
            record_failure(trans, mine, final)


def record_failure(trans, claim, final):
    trans.query("SELECT FROM idem_fail(%s, '\"declined\"', '20 ms', %s, scope => %s, token => %s)",
                claim.key.key, final, claim.key.scope, claim.token)


def release(trans, claim):
    trans.query('SELECT idem_release(%s, %s, %s)', claim.key.key, claim.key.scope, claim.token)
    trans.insert('ended', id=claim.key.id)


@operation(3)
def forget(client, plan):
    key = Key(client, plan, ('gone',))
    with client.transaction() as trans:
        (was,), = trans.query('SELECT idem_forget(%s, %s)', key.key, key.scope)
        if was:
            trans.insert('ended', id=key.id)


@operation(2)
def give_up(client, plan):
    """A lease that is released: what comes next is another life."""
    key = Key(client, plan, ('gone',))
    lease = plan.choice(LEASES)
    with client.transaction() as trans:
        mine = claim(client, trans, key, '0', lease)
    if mine:
        take_step(client, mine, STEPS[0])
        dawdle(client, lease)
        with client.transaction(expected=LOST) as trans:
            release(trans, mine)


@operation(6)
def reconcile(client, plan):
    """Settle the keys that are held: the work was done by hand, or is to be done."""
    key = flow_key(client, plan)
    reopen = plan.random() < 0.5
    with client.transaction(expected=('ID004',)) as trans:
        if reopen:
            trans.query('SELECT idem_resolve(%s, reopen => true, scope => %s)', key.key, key.scope)
        else:
            response = json.dumps({'op': trans.op, 'by': 'hand'})
            trans.query('SELECT idem_resolve(%s, %s, scope => %s)', key.key, response, key.scope)
            trans.insert('effect', id=key.id, response=response)


@operation(6)
def look(client, plan):
    key = Key(client, plan, ('once', 'gone'), max(client.request // 3 - plan.randrange(20), 0))
    with client.transaction() as trans:
        for state, response in trans.query(
                'SELECT state, response FROM idem_lookup(%s, %s)', key.key, key.scope):
            if state == 'finished':
                client.note('replayed', key=key.id, response=response)


@operation(6)
def repeat(client, plan):
    """Somebody comes late, with a key that has been dealt with long ago."""
    key = Key(client, plan, ('once',), max(client.request // 3 - plan.randrange(20), 0))
    with client.transaction() as trans:
        mine = claim(client, trans, key, '0')
        if mine:
            work(trans, mine)


@operation(2)
def expire(client, plan):
    with client.transaction('READ COMMITTED') as trans:
        trans.query('SELECT idem_expire(%s)', plan.choice((1, 20, 1000)))


@operation(2)
def settle(client, plan):
    """Second half of somebody's two-phase commit."""
    gids = client.query('SELECT gid FROM pg_prepared_xacts WHERE owner = current_user ORDER BY prepared')
    if gids:
        client.settle(client.luck.choice(gids)[0], client.chance(0.7))
