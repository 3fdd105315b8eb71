"""The server under torture: a cluster of its own, with a disk that can be full
and a clock that can be stepped."""

import os
import signal
import struct
import subprocess
import time

import psycopg2

CONF = """
listen_addresses = ''
unix_socket_directories = '{directory}'
max_connections = {connections}
superuser_reserved_connections = 5
max_prepared_transactions = 30
max_locks_per_transaction = 16
deadlock_timeout = 20ms
fsync = off
synchronous_commit = on
min_wal_size = 32MB
max_wal_size = 64MB
checkpoint_timeout = 30s
shared_buffers = 32MB
log_line_prefix = '%m [%p] %a %e '
log_min_messages = error
log_min_error_statement = panic
"""

# The janitor has little to remove, and is to be seen at it.
PRELOADED = ('-c', 'shared_preload_libraries=idempotency', '-c', 'idempotency.janitor_interval=1',
             '-c', 'idempotency.janitor_batch=20', '-c', 'idempotency.janitor_pause=1')


class Server:
    port = 5432

    def __init__(self, directory, connections):
        self.directory = directory
        self.data = directory / 'data'
        self.log = directory / 'server.log'
        self.full = directory / 'disk-is-full'
        self.clock = directory / 'clock'
        self.offset = 0.0               # of the clock, in seconds
        self.preloaded = False
        self.process = None
        self.set_clock(0.0)
        subprocess.run(['initdb', '-D', self.data, '-U', 'postgres', '-A', 'trust', '-N',
                        '-E', 'UTF8', '--no-locale', '--wal-segsize=1'],
                       check=True, stdout=subprocess.DEVNULL)
        with open(self.data / 'postgresql.conf', 'a') as conf:
            conf.write(CONF.format(directory=directory, connections=connections))
        subprocess.run(['cc', '-shared', '-fPIC', '-o', directory / 'machine.so',
                        os.path.join(os.path.dirname(__file__), 'machine.c'), '-ldl'], check=True)

    def start(self):
        environment = dict(os.environ, LD_PRELOAD=str(self.directory / 'machine.so'),
                           TORTURE_DISK_FULL=str(self.full), TORTURE_CLOCK=str(self.clock))
        deadline = time.monotonic() + 60
        while True:
            if self.process is None:
                with open(self.log, 'a') as log:
                    self.process = subprocess.Popen(
                        ['postgres', '-D', self.data, *(PRELOADED if self.preloaded else ())], env=environment,
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                self.connect().close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
            if self.process.poll() is not None:
                self.process = None     # a postmaster before it may still have children
            time.sleep(0.02)

    def stop(self, how=signal.SIGQUIT):
        """SIGQUIT: immediate; SIGINT: fast; SIGKILL: the postmaster alone."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def revive(self):
        """After whatever has happened to it."""
        if self.process is not None and self.process.poll() is not None:
            self.process = None
        self.start()

    def connect(self):
        connection = psycopg2.connect(host=str(self.directory), port=self.port,
                                      dbname='postgres', user='postgres',
                                      application_name='torture')
        connection.autocommit = True
        return connection

    def set_clock(self, offset):
        """So many seconds off, for all processes at once; see machine.c."""
        self.offset = offset
        with open(self.clock, 'r+b' if self.clock.exists() else 'wb') as file:
            file.write(struct.pack('=q', int(offset * 1000000)))

    def panics(self):
        """Lines of the log that tell of a crash that nobody caused: a disk may be full."""
        with open(self.log, errors='replace') as log:
            lines = [line.rstrip() for line in log]
        strange = [line for line in lines
                   if 'TRAP:' in line
                   or ('PANIC:' in line and 'No space left on device' not in line)
                   or any(f'terminated by signal {n}:' in line for n in (4, 7, 8, 11))]
        if not any('PANIC:' in line for line in lines):
            strange += [line for line in lines if 'terminated by signal 6:' in line]
        return strange
