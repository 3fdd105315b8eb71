#!/usr/bin/python3
"""What the janitor costs those who work meanwhile, and whether the tables stay as large as they are.

Three parts, against a server that has the library preloaded:

    preload     a fresh key with the library preloaded and without, in turns
    expiry      10 M keys, of which 1 M have expired, all over the table; clients claim and finish fresh
                ones at half the rate that the machine can do, and the janitor is turned on and off
    churn       clients at a steady rate, keys that expire after a while, 20 such whiles long

QUICK=1 is a short form, which says whether it works. The results go to results/janitor.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from statistics import median

import measure
from bench import machine
from cases import LARGE_SETTINGS, SETTINGS, Case
from stores import Store, connect
from variants import script

SANDBOX = os.environ["SANDBOX"]
QUICK = bool(os.environ.get("QUICK"))

KEYS = 300_000 if QUICK else 10_000_000
EXPIRED_OF = 10                         # one key in so many
WINDOW = 2 if QUICK else 6              # seconds for which the janitor is on, or off
WINDOWS = 4 if QUICK else 24
MARGIN = 0.5                            # what begins so shortly after a turn belongs to neither
ROUNDS = 1 if QUICK else 5
GENERATIONS = 5 if QUICK else 20
TTL = 2 if QUICK else 10                # seconds: a generation

FRESH = Case("fresh", "idem")


def settings(store, **values):
    for name, value in values.items():
        store.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    store.execute("SELECT pg_reload_conf()")


def restart(preload):
    with open(SANDBOX + "/data/bench.conf", "w", encoding="ascii") as file:
        file.write(f"shared_preload_libraries = '{'idempotency' if preload else ''}'\n")
    subprocess.run(["pg_ctl", "-D", SANDBOX + "/data", "-l", SANDBOX + "/server.log", "-s", "-w", "-m", "fast",
                    "restart"], check=True)


class Bench:
    def __init__(self):
        self.store = None
        self.meter = None

    def open(self, preload):
        """A server that has, or has not, the library, and a store of its own."""
        if self.store:
            self.store.connection.close()
        restart(preload)
        admin = connect("postgres")
        with open(os.path.join(SANDBOX, "data/postmaster.pid"), encoding="ascii") as file:
            self.meter = measure.Meter(admin, int(file.readline()))
        with admin.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = 'janitor'")
            if cursor.rowcount:
                cursor.execute("DROP DATABASE janitor")
        self.store = Store(admin, "janitor")
        return self.store

    def foreground(self, rate):
        """Clients that claim and finish so many fresh keys a second, until they are terminated; and the
        prefix of their log."""
        prefix = os.path.join(SANDBOX, "foreground")
        with open(prefix + ".sql", "w", encoding="ascii") as file:
            file.write(script(FRESH, "idem")[0])
        return subprocess.Popen(
            ["pgbench", "-n", "-l", "--log-prefix", prefix + "-log", "-M", "prepared", "-c", str(FRESH.clients),
             "-j", str(measure.CORES), "-R", str(rate), "-T", "3600", "-D", "i=0", "-D", "present=1000",
             "-f", prefix + ".sql", self.store.name],
            env=dict(os.environ, PGAPPNAME="pgbench", PGOPTIONS="-c synchronous_commit=off"),
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT), prefix + "-log"

    #
    # Preload
    #

    def preload(self):
        """Medians of turns: CPU of a fresh key in microseconds, its WAL, and a second's transactions."""
        rounds = []
        for number in range(ROUNDS):
            figures = {}
            for preload in ((True, False) if number % 2 == 0 else (False, True)):
                store = self.open(preload)
                store.execute("CHECKPOINT")
                figures[preload] = measure.measure(self.meter, store, FRESH, script(FRESH, "idem"),
                                                   2 if QUICK else 5)
            rounds.append({name: figures[True][name] / figures[False][name]
                           for name in ("tps", "cpu_us", "cpu_user_us", "wal_bytes")})
        return {name: [median(values), min(values), max(values)]
                for name in rounds[0] for values in [[each[name] for each in rounds]]}

    #
    # Expiry beside those who work
    #

    def fill(self, keys, expired_of):
        """Rows as a claim and its finish leave them; one in expired_of has had its day."""
        self.store.execute(f"""
            INSERT INTO idem_key (expires_at, claimed_at, finished_at, id, owner, scope, state, response)
            SELECT now() + CASE WHEN n % {expired_of} = 0 THEN interval '-1 min' ELSE '1 day' END,
                   now() - interval '1 day', now() - interval '1 day', gen_random_uuid(),
                   current_user::regrole, '', 'f', '{{"id": 1234567, "status": "paid", "amount": 4200}}'
              FROM generate_series(1, {keys}) AS n""")
        self.store.execute("VACUUM (ANALYZE) idem_key")

    def expired(self):
        return self.store.execute("SELECT expired FROM idem_stats")[0]

    def turn(self, on):
        settings(self.store, **{"idempotency.janitor_interval": 1 if on else 0})

    def expiry(self):
        store = self.open(True)
        settings(store, max_wal_size="16GB")
        print(f"filling {KEYS} keys", flush=True)
        self.fill(KEYS, EXPIRED_OF)
        settings(store, **LARGE_SETTINGS)
        store.execute("CHECKPOINT")
        text = script(FRESH, "idem")[0]
        result, _, _ = measure.pgbench(FRESH, text, store.name, seconds=5)
        rate = int(result["tps"] / 2)
        print(f"{rate} keys a second, with the janitor and without, in turns", flush=True)

        # One run of pgbench through all turns; its log tells which transaction belongs where.
        foreground, log = self.foreground(rate)
        windows, on = [], False
        while len(windows) < WINDOWS:
            if foreground.poll() is not None:
                raise measure.Failed("pgbench has ended")
            begun, before = time.time(), self.expired()
            time.sleep(WINDOW)
            windows.append({"on": on, "from": begun + MARGIN, "to": time.time(),
                            "removed": self.expired() - before})
            on = not on
            self.turn(on)
        self.turn(False)
        foreground.terminate()
        foreground.wait()
        times, ends = measure.logged(log)
        for window in windows:
            inside = [t for t, end in zip(times, ends)
                      if window["from"] * 1e6 <= end - t and end <= window["to"] * 1e6]
            window.update(measure.percentiles(inside), n=len(inside))
        # those in which there was something to remove
        worked = [w for w in windows if w["on"] and w["removed"]]
        idle = [w for w in windows if not w["on"]]
        growth = {name: median(w[name] for w in worked) / median(w[name] for w in idle)
                  for name in ("p50_us", "p99_us", "p999_us")}
        return {"rate": rate, "windows": windows, "growth": growth,
                "removed_per_second": median(w["removed"] / (w["to"] - w["from"] + MARGIN) for w in worked),
                "idle": {name: median(w[name] for w in idle) for name in ("p50_us", "p99_us", "p999_us")},
                "worked": {name: median(w[name] for w in worked) for name in ("p50_us", "p99_us", "p999_us")}}

    #
    # A row that is removed, with nobody else there
    #

    def row(self, expired_of):
        store = self.open(True)
        keys = (30_000 if QUICK else 300_000) * expired_of
        self.fill(keys, expired_of)
        store.execute("CHECKPOINT")
        before, removed = self.meter.read(store), self.expired()
        begun = time.monotonic()
        self.turn(True)
        while self.expired() - removed < keys // expired_of:
            if time.monotonic() - begun > 600:
                raise measure.Failed("the janitor does not come to an end")
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        self.turn(False)
        # until its worker has gone, and has been waited for
        while self.meter.value("SELECT count(*) FROM pg_stat_activity WHERE datname = 'janitor'"
                               " AND backend_type = 'idempotency janitor'")[0]:
            time.sleep(0.02)
        spent = measure.spent(before, self.meter.read(store), keys // expired_of)
        return {"rows": keys // expired_of, "per_page": "all" if expired_of == 1 else f"one in {expired_of}",
                "us": round(seconds * 1e6 / (keys // expired_of), 2),
                **{name: spent[name] for name in ("cpu_us", "wal_bytes", "wal_records", "wal_fpi")}}

    #
    # Churn
    #

    def churn(self):
        store = self.open(True)
        settings(store, autovacuum="on", autovacuum_naptime="1s",
                 **{"idempotency.default_ttl": f"{TTL}s", "idempotency.janitor_interval": 1})
        result, _, _ = measure.pgbench(FRESH, script(FRESH, "idem")[0], store.name, seconds=3)
        rate = int(result["tps"] / 4)
        foreground, log = self.foreground(rate)
        sizes = []
        for _ in range(GENERATIONS):
            time.sleep(TTL)
            sizes.append(dict(zip(("table", "index", "rows", "expired"), store.execute(
                "SELECT pg_table_size('idem_key'), pg_indexes_size('idem_key'),"
                " count(*), count(*) FILTER (WHERE expires_at < now()) FROM idem_key"))))
            print(sizes[-1], flush=True)
        foreground.terminate()
        foreground.wait()
        measure.logged(log)                     # removes it
        settings(store, autovacuum="off", **{"idempotency.janitor_interval": 0})
        store.execute("ALTER SYSTEM RESET idempotency.default_ttl")
        return {"rate": rate, "ttl": TTL, "sizes": sizes}


def report(results):
    expiry, churn = results["expiry"], results["churn"]
    machine_ = results["machine"]
    lines = [
        "# The janitor",
        "",
        f"`bench/run janitor` wrote this on {results['date']}, at commit `{results['commit'] or 'unknown'}`.",
        f"{results['postgresql'].split(',')[0]}, {machine_['cores']} cores ({machine_['cpu']}), {machine_['memory_mb']} MB.",
        "" if not QUICK else "\n**The short form of a run: its figures mean little.**\n",
        "## With preload and without",
        "",
        f"A fresh key, 8 clients, {ROUNDS} rounds in turns: preloaded to not preloaded, median (min..max).",
        "",
        "| throughput | CPU | CPU in user mode | WAL |",
        "| ---: | ---: | ---: | ---: |",
        "| " + " | ".join("{:.2f} ({:.2f}..{:.2f})".format(*results["preload"][name])
                          for name in ("tps", "cpu_us", "cpu_user_us", "wal_bytes")) + " |",
        "",
        "## Beside those who work",
        "",
        f"{KEYS:,} keys, one in {EXPIRED_OF} has expired, all over the table. 8 clients claim and finish {expiry['rate']:,} fresh",
        f"keys a second, half of what they can do. The janitor, as it is by default, is on and off in turns of {WINDOW} s; medians.",
        "",
        "| latency, µs | median | p99 | p99.9 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, label in (("idle", "off"), ("worked", "on")):
        lines.append(f"| {label} | " + " | ".join(f"{expiry[name][p]:,.0f}" for p in ("p50_us", "p99_us", "p999_us")) + " |")
    lines.append("| on to off | " + " | ".join(f"{expiry['growth'][p]:.2f}" for p in ("p50_us", "p99_us", "p999_us")) + " |")
    lines += [
        "",
        f"It removes {expiry['removed_per_second']:,.0f} rows a second meanwhile.",
        "",
        "| turn | janitor | rows removed | keys | median | p99 |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
        *[f"| {i} | {'on' if w['on'] else 'off'} | {w['removed']:,} | {w['n']:,} | {w['p50_us']:,} | {w['p99_us']:,} |"
          for i, w in enumerate(expiry["windows"], 1)],
        "",
        "## A row that is removed",
        "",
        "With nobody else at work, after a CHECKPOINT: each page that is touched is written to the WAL as a whole. Time includes the pauses.",
        "",
        "| which rows have expired | rows | time, µs | CPU, µs | WAL bytes | WAL records | full-page images |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *[f"| {row['per_page']} | {row['rows']:,} | {row['us']:.1f} | {row['cpu_us']:.1f} | {row['wal_bytes']:,.0f} |"
          f" {row['wal_records']:.2f} | {row['wal_fpi']:.3f} |" for row in results["rows"]],
        "",
        "## Churn",
        "",
        f"{churn['rate']:,} keys a second that expire after {churn['ttl']} s; autovacuum and the janitor once a second. After each generation:",
        "",
        "| generation | rows | of them expired | table, kB | index, kB |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *[f"| {i} | {s['rows']:,} | {s['expired']:,} | {s['table'] // 1024:,} | {s['index'] // 1024:,} |"
          for i, s in enumerate(churn["sizes"], 1)],
        "",
    ]
    return "\n".join(lines)


def main():
    with open(SANDBOX + "/data/postgresql.conf", "a", encoding="ascii") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        file.write("idempotency.janitor_interval = 0\ninclude 'bench.conf'\n")
    bench = Bench()
    bench.open(False)
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": os.environ.get("COMMIT", ""), "machine": machine(),
        "postgresql": bench.store.execute("SELECT version()")[0], "quick": QUICK,
    }
    for part in ("preload", "churn", "expiry"):
        print(part, flush=True)
        results[part] = getattr(bench, part)()
    print("rows", flush=True)
    results["rows"] = [bench.row(1), bench.row(10)]
    place = os.path.join(SANDBOX, "results", "quick" if QUICK else "", "janitor")
    os.makedirs(place)
    with open(os.path.join(place, "latest.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    text = report(results)
    with open(os.path.join(place, "report.md"), "w", encoding="utf-8") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
