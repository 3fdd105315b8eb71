"""Databases with so many keys present, and the state in which a case finds them.

The small one is emptied and filled anew before every measurement. A large one is
filled once, used by all cases of its size and kind of key, and dropped.
"""

import contextlib
import os
import threading
import time

import psycopg2
import psycopg2.extensions

from cases import LARGE_SETTINGS, SETTINGS, SMALL, SNAPSHOT_SETTINGS
from variants import PAYLOAD, RESPONSE

HERE = os.path.dirname(os.path.abspath(__file__))

# How the tables of those who do it by hand are filled: with rows as they are when all is
# done, but without the dead ones of the UPDATE.
FILL = {
    "hand": "INSERT INTO hand SELECT '', KEY, now(), now(), now() + '24 hours', RESPONSE",
    "hand_pl": "INSERT INTO hand_pl SELECT '', KEY, now(), now(), now() + '24 hours', RESPONSE",
    "hand_lease": "INSERT INTO hand_lease SELECT '', KEY, gen_random_uuid(), now(), now(), now(), "
                  "now() + '24 hours', RESPONSE",
    "hand_step": "INSERT INTO hand_step SELECT KEY, 'step-1', now(), RESPONSE",
    "lean": "INSERT INTO lean SELECT KEY, now(), now() + '24 hours', RESPONSE",
    "lean_uuid": "INSERT INTO lean_uuid SELECT KEY::uuid, now(), now() + '24 hours', RESPONSE",
    "floor": "INSERT INTO floor (expires_at, claimed_at, finished_at, id, owner, scope, key, response) "
             "SELECT now() + '24 hours', now(), now(), KEY::uuid, 10, '', NULL, RESPONSE",
}

# The tables of queues, and how they are filled; ours is by its functions.
FILL_QUEUE = {
    "job": "INSERT INTO job (payload) SELECT PAYLOAD FROM generate_series(1, %s)",
    "mq_bench": "INSERT INTO mq_bench (vt, message) SELECT clock_timestamp(), PAYLOAD FROM generate_series(1, %s)",
    "idem_message": "CALL fill_queue(%s, PAYLOAD)",
}
QUEUE_TABLE = {"idem": "idem_message", "hand": "job", "direct": "job", "pgmq": "mq_bench", "statements": "mq_bench"}

UUIDS = ("floor", "lean_uuid")          # where a key is a UUID or nothing

# Which table a variant writes to; those for leases and steps are never large.
TABLE = {"idem": "idem_key", "hand": "hand", "select": "hand", "plpgsql": "hand_pl", "lean": "lean",
         "uuid": "lean_uuid", "floor": "floor"}


def connect(database, name="bench"):
    connection = psycopg2.connect(dbname=database, application_name=name)
    connection.autocommit = True
    return connection


def configure(admin, settings):
    """Sets and reloads; what needs a restart is for whoever starts the server."""
    with admin.cursor() as cursor:
        for name, value in settings.items():
            cursor.execute(f"ALTER SYSTEM SET {name} = %s", (value,))
        cursor.execute("SELECT pg_reload_conf()")


def fill(connection, table, kind, present):
    """Puts so many keys of a kind into one table."""
    with connection.cursor() as cursor:
        if table == "idem_key":
            cursor.execute(f"CALL fill_idem(%s, %s, {RESPONSE})", (kind, present))
        else:
            statement = FILL[table].replace("KEY", "present_key(%(kind)s, n)").replace("RESPONSE", RESPONSE)
            cursor.execute(statement + " FROM generate_series(0, %(present)s - 1) AS n",
                           {"kind": kind, "present": present})


class Store:
    """A database, and a connection to it that stays."""

    def __init__(self, admin, name):
        self.admin, self.name = admin, name
        self.seconds_to_fill = {}
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        self.connection = connect(name)
        with open(os.path.join(HERE, "setup.sql"), encoding="utf-8") as file:
            self.execute(file.read())

    def execute(self, statement, *args):
        with self.connection.cursor() as cursor:
            cursor.execute(statement, args or None)
            return cursor.fetchone() if cursor.description else None

    def drop(self):
        self.connection.close()
        with self.admin.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {self.name}")

    def checkpoint(self):
        self.execute("CHECKPOINT")

    def usage(self):
        """What the tables and indexes take, in bytes; dead rows in them, and row versions outlived so far."""
        self.execute("SELECT pg_stat_force_next_flush()")
        return self.execute(
            "SELECT sum(pg_table_size(relid))::int8, sum(pg_indexes_size(relid))::int8, "
            "sum(n_dead_tup)::int8, sum(n_tup_upd + n_tup_del)::int8 FROM pg_stat_user_tables")

    def cpu_us(self):
        """CPU that this connection's backend has used so far."""
        with open(f"/proc/{self.connection.info.backend_pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1000

    def vacuum(self):
        self.execute("VACUUM (ANALYZE) idem_key, idem_step, orders, " + ", ".join(FILL))


class Small(Store):
    """Few keys present, the same ones before each measurement."""

    def __init__(self, admin):
        super().__init__(admin, "small")
        configure(admin, SETTINGS)

    def prepare(self, case):
        self.execute("TRUNCATE idem_key, idem_step, orders, " + ", ".join(FILL))
        self.execute("SET synchronous_commit = off")
        kind = "text" if case.key == "text" else "repeat"
        used = {TABLE.get(variant.split("@")[0]) for variant in case.variants.split()}
        for table in ("idem_key", *FILL):
            # a text is no UUID
            fill(self.connection, table, "repeat" if table in UUIDS else kind,
                 case.present if table in used else SMALL)
        self.vacuum()
        self.checkpoint()


class Large(Store):
    """As many keys present as the plan says, in the tables of the variants."""

    def __init__(self, admin, key, present, variants):
        super().__init__(admin, f"large_{key}_{present}")
        configure(admin, {"max_wal_size": "16GB"})
        self.execute("CHECKPOINT")
        threads = []
        for table in sorted({TABLE[variant] for variant in variants}):
            threads.append(threading.Thread(target=self.fill, args=(table, key, present)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        if len(self.seconds_to_fill) < len(threads):
            raise psycopg2.Error(f"cannot fill {self.name}")
        self.vacuum()
        configure(admin, LARGE_SETTINGS)

    def fill(self, table, key, present):
        start = time.monotonic()
        connection = connect(self.name)
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
        fill(connection, table, key, present)
        connection.close()
        self.seconds_to_fill[table] = round(time.monotonic() - start, 1)

    def prepare(self, _):
        self.checkpoint()

    def drop(self):
        super().drop()
        configure(self.admin, SETTINGS)


class Queues(Store):
    """So many messages that wait, in the table of one variant, the same before each measurement."""

    def __init__(self, admin):
        super().__init__(admin, "queues")
        configure(admin, SETTINGS)

    def prepare(self, case, variant):
        self.execute("TRUNCATE orders, " + ", ".join(FILL_QUEUE))
        self.execute("SET synchronous_commit = off")
        table = QUEUE_TABLE.get(variant)
        if table:
            self.execute(FILL_QUEUE[table].replace("PAYLOAD", PAYLOAD), case.present)
        self.execute("VACUUM (ANALYZE) orders, " + ", ".join(FILL_QUEUE))
        self.checkpoint()

    def waiting(self, variant):
        return self.execute("SELECT count(*) FROM " + QUEUE_TABLE[variant])[0]

    @contextlib.contextmanager
    def old_snapshot(self):
        """Held by a session that has read something and goes on to wait; with autovacuum."""
        configure(self.admin, SNAPSHOT_SETTINGS)
        connection = connect(self.name, "old snapshot")
        try:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT count(*) FROM orders")
            yield
        finally:
            connection.close()
            configure(self.admin, SETTINGS)
