"""What is done to the server, and to everybody at once: one function for each
fault. It takes the run (see torture.py) and a generator of random numbers, and
answers how long to leave things as they are, in seconds, before it is undone: as a
generator function, it yields that and goes on afterwards. What single clients do to
themselves (cut their connection, forget, come late) is in client.py."""

import os
import signal
from contextlib import closing

import psycopg2

_faults = []


def fault(weight, needs_clock=False, needs_preload=False):
    def register(function):
        _faults.append((function, weight, needs_clock, needs_preload))
        return function
    return register


def draw(rng, clock, preloaded):
    chosen = [(function, weight) for function, weight, needs_clock, needs_preload in _faults
              if (clock or not needs_clock) and (preloaded or not needs_preload)]
    functions, weights = zip(*chosen)
    return rng.choices(functions, weights)[0]


def backends(run, rng, most):
    """Process IDs of some clients' backends."""
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity"
                       " WHERE backend_type = 'client backend' AND application_name LIKE 'client %'"
                       ' ORDER BY application_name')
        pids = [pid for pid, in cursor]
    return rng.sample(pids, min(len(pids), rng.randint(1, most)))


def tell(run, function, pids):
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f'SELECT {function}(pid) FROM unnest(%s::int[]) AS pid', (pids,))


@fault(10)
def terminate(run, rng):
    tell(run, 'pg_terminate_backend', backends(run, rng, 6))
    yield 0


@fault(6)
def cancel(run, rng):
    tell(run, 'pg_cancel_backend', backends(run, rng, 6))
    yield 0


@fault(3, needs_preload=True)
def send_home(run, rng):
    """The janitor, or the worker that he has sent."""
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute('SELECT pid FROM pg_stat_activity'
                       " WHERE backend_type = 'idempotency janitor' ORDER BY datid NULLS FIRST")
        pids = [pid for pid, in cursor]
    if pids:
        tell(run, 'pg_terminate_backend', [rng.choice(pids)])
    yield 0


@fault(3)
def kill(run, rng):
    """A backend dies, and takes all the others with it: a crash restart."""
    for pid in backends(run, rng, 1):
        os.kill(pid, signal.SIGKILL)
    yield 0.2
    run.server.revive()


@fault(2)
def immediate(run, rng):
    run.server.stop(signal.SIGQUIT)
    yield rng.choice((0, 0.2))
    run.server.start()


@fault(1)
def restart(run, rng):
    run.server.stop(signal.SIGINT)
    yield 0
    run.server.start()


@fault(1)
def orphan(run, rng):
    """The postmaster dies alone; the next one waits for the children to notice."""
    run.server.stop(signal.SIGKILL)
    yield 0
    run.server.start()


@fault(2)
def crowd(run, rng):
    """All connections are taken; clients that had to connect again stay outside."""
    guests = []
    try:
        tell(run, 'pg_terminate_backend', backends(run, rng, 4))
        while True:
            guests.append(psycopg2.connect(host=str(run.server.directory), port=run.server.port,
                                           dbname='postgres', user='guest'))
    except psycopg2.OperationalError:
        pass
    yield 0.3
    for guest in guests:
        guest.close()


@fault(3)
def lock_table(run, rng):
    """Somebody has filled the lock table."""
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute('BEGIN')
        for first in range(0, 100000, 200):
            try:
                cursor.execute('SAVEPOINT s')
                cursor.execute('SELECT count(pg_advisory_xact_lock(i))'
                               ' FROM generate_series(%s, %s) AS i', (first, first + 199))
            except psycopg2.errors.OutOfMemory:
                # what did fit in went with the error; now the last ones, one by one
                cursor.execute('ROLLBACK TO SAVEPOINT s')
                break
        for i in range(200000, 200200):
            try:
                cursor.execute('SAVEPOINT s')
                cursor.execute('SELECT pg_advisory_xact_lock(%s)', (i,))
            except psycopg2.errors.OutOfMemory:
                cursor.execute('ROLLBACK TO SAVEPOINT s')
                break
        yield 0.2
        cursor.execute('ROLLBACK')


@fault(3)
def disk_full(run, rng):
    run.server.full.touch()
    yield rng.choice((0.2, 0.6))
    run.server.full.unlink()
    run.server.revive()


@fault(30, needs_clock=True)
def step_clock(run, rng):
    """The server's timeouts go by the same clock: one that was set before a step back
    ends as much later. Whoever waits for a lock is not left to it."""
    step = rng.choice((-1, 1)) * rng.choice((0.2, 1, 30, 1800))
    run.server.set_clock(min(max(run.server.offset + step, -20000), 20000))
    yield 0.05
    with closing(run.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                       " WHERE application_name LIKE 'client %' AND wait_event_type = 'Lock'")
