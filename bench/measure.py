"""One measurement: pgbench for so long, and what the server spent meanwhile.

A result has, per transaction unless it says otherwise:

    n, tps            transactions, and how many a second
    latency_us        average, and p50_us, p99_us, p999_us: from pgbench's log of all of them
    call_us           the average without the making of the key
    cpu_us            CPU of the backends, and cpu_user_us, in user mode
    wal_bytes         by the position in the WAL: with page headers and full-page images
    wal_records, wal_fpi
    dead_made, dead   row versions outlived, and dead rows that are left of them
    table_bytes, index_bytes

With an old snapshot also

    per_window        transactions a second, in each window of the run
    fall              by which part of the first window the last one is below it
    found_nothing     of all transactions, those that found no message, though many wait
"""

import array
import glob
import os
import re
import subprocess
import time
from collections import Counter

TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count()


class Failed(Exception):
    pass


class Meter:
    """Reads the server's counters. Backends count when they have ended: the postmaster
    has waited for them, the kernel has added up their CPU, and they have reported what
    they did. Connections that stay open during the run do not count."""

    def __init__(self, admin, postmaster):
        self.admin, self.postmaster = admin, postmaster

    def value(self, query):
        with self.admin.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()

    def settle(self):
        while self.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")[0]:
            time.sleep(0.02)
        time.sleep(0.1)

    def cpu(self):
        """Of the postmaster's children that have ended: microseconds, in user mode and in all."""
        with open(f"/proc/{self.postmaster}/stat", encoding="ascii") as file:
            user, system = file.read().rsplit(")", 1)[1].split()[13:15]
        return int(user) * TICK, (int(user) + int(system)) * TICK

    def read(self, store):
        self.settle()
        user, both = self.cpu()
        # first: what our own connections did is reported by it
        table, index, dead, dead_made = store.usage()
        position, records, images = self.value(
            "SELECT pg_current_wal_insert_lsn() - '0/0', wal_records, wal_fpi FROM pg_stat_wal")
        return {"cpu_user_us": user, "cpu_us": both, "wal_bytes": float(position), "wal_records": records,
                "wal_fpi": images, "table_bytes": table, "index_bytes": index,
                "dead": dead, "dead_made": dead_made}


def spent(before, after, n):
    return {name: round((after[name] - before[name]) / n, 4) for name in before}


def logged(prefix):
    """Of all transactions in pgbench's logs, which are removed: how long they took, and when they ended."""
    times, ends = array.array("q"), array.array("q")
    for name in glob.glob(prefix + ".*"):
        with open(name, encoding="ascii") as file:
            for line in file:
                if not line.endswith("\n"):
                    continue                # cut off, with the run
                _, _, time_us, _, epoch, us = line.split(" ")[:6]
                times.append(int(time_us))
                ends.append(int(epoch) * 1_000_000 + int(us))
        os.remove(name)
    if not times:
        raise Failed("pgbench has logged nothing")
    return times, ends


def percentiles(times):
    times = sorted(times)
    return {name: times[min(len(times) - 1, int(len(times) * part))]
            for name, part in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999))}


def per_window(times, ends, seconds, windows):
    """Transactions a second in each part of a run, and by how much the last is below the first."""
    begun = min(end - time for time, end in zip(times, ends))
    length = seconds * 1_000_000 / windows
    numbers = Counter(int((end - begun) // length) for end in ends)
    rates = [round(numbers[i] / length * 1_000_000, 1) for i in range(windows)]
    return {"per_window": rates, "fall": round(1 - rates[-1] / rates[0], 4) if rates[0] else 1}


def pgbench(case, text, database, seconds=0, keys=0, windows=0):
    """Runs a script for some seconds, or for a number of transactions; what pgbench says."""
    scratch = os.path.join(os.environ["SANDBOX"], "pgbench")
    with open(scratch + ".sql", "w", encoding="ascii") as file:
        file.write(text)
    command = ["pgbench", "-n", "-r", "-l", "--log-prefix", scratch + "-log", "-M", "prepared",
               "-c", str(case.clients), "-j", str(min(case.clients, CORES)),
               "-D", "i=0", "-D", f"present={case.present}", "-f", scratch + ".sql"]
    command += ["-T", str(seconds)] if seconds else ["-t", str(keys // case.clients)]
    environment = dict(os.environ, PGAPPNAME="pgbench",
                       PGOPTIONS="-c synchronous_commit=" + ("on" if case.sync else "off"))
    done = subprocess.run(command + [database], env=environment, capture_output=True, text=True, check=False)
    out = done.stdout
    if done.returncode or not re.search(r"^number of failed transactions: 0 ", out, re.M):
        raise Failed(f"pgbench:\n{text}\n{out[-500:]}{done.stderr[:2000]}")
    head, commands = out.split("statement latencies in milliseconds", 1)
    result = {
        "n": int(re.search(r"^number of transactions actually processed: (\d+)", head, re.M)[1]),
        "tps": float(re.search(r"^tps = ([0-9.]+)", head, re.M)[1]),
    }
    times, ends = logged(scratch + "-log")
    result.update(percentiles(times))
    if windows:
        result.update(per_window(times, ends, seconds, windows))
    latency = re.search(r"^latency average = ([0-9.]+) ms", head, re.M)
    return result, float(latency[1]) * 1000, [
        float(line.split()[0]) * 1000 for line in commands.splitlines()[1:]]


def measure(meter, store, case, script, seconds=0, keys=0, windows=0):
    text, prelude = script
    before = meter.read(store)
    result, latency, commands = pgbench(case, text, store.name, seconds, keys, windows)
    after = meter.read(store)
    result.update(latency_us=latency, call_us=round(latency - sum(commands[:prelude]), 1))
    result.update(spent(before, after, result["n"]))
    return result


def stored(meter, store, case, script, keys):
    """So many keys, and what they take then and after VACUUM, in bytes per key."""
    before = store.usage()
    result = measure(meter, store, case, script, keys=keys)
    for suffix in ("", "_vacuumed"):
        if suffix:
            store.vacuum()
        after = store.usage()
        table, index = (round((after[i] - before[i]) / result["n"], 1) for i in (0, 1))
        result.update({"table_bytes" + suffix: table, "index_bytes" + suffix: index,
                       "stored_bytes" + suffix: table + index})
    return result


def expiry(meter, store, case, script, statement, table, keys):
    """So many keys that expire at once; then their removal, and VACUUM, per key."""
    result = measure(meter, store, case, script, keys=keys)
    if not statement:
        return result
    store.execute("SELECT pg_sleep(0.1)")
    for prefix, work in (("expire_", lambda: remove(store, statement, result["n"])),
                         ("vacuum_", lambda: store.execute("VACUUM " + table))):
        before, cpu = meter.read(store), store.cpu_us()
        work()
        cpu = store.cpu_us() - cpu
        figures = spent(before, meter.read(store), result["n"])
        result[prefix + "cpu_us"] = round(cpu / result["n"], 4)
        result.update({prefix + name: figures[name] for name in ("wal_bytes", "wal_records", "wal_fpi")})
    return result


def remove(store, statement, expected):
    rows, removed = 10_000, 0
    while rows == 10_000:
        rows = store.execute(statement)[0]
        removed += rows
    if removed != expected:
        raise Failed(f"{removed} of {expected} expired keys removed")
