#!/usr/bin/python3
"""Runs the cases of cases.py against the server of the sandbox; see bench/run."""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psycopg2

import measure
import report
from cases import GROUPS, LARGE_SETTINGS, QUICK, SETTINGS, SMALL, SNAPSHOT_SETTINGS, WINDOWS, Plan, count
from stores import TABLE, Large, Queues, Small, connect
from variants import EXPIRE, script

SANDBOX = os.environ["SANDBOX"]


def chosen_plan():
    """The plan, and whether it is one of the two that are declared, unaltered."""
    plan = QUICK if os.environ.get("QUICK") else Plan()
    changes = {}
    for variable, fields in (("SECONDS_PER_CASE", ("seconds", "seconds_large", "seconds_long")),
                             ("ROUNDS", ("rounds", "rounds_target")),
                             ("KEYS_PRESENT", ("largest",))):
        if os.environ.get(variable):
            changes.update(dict.fromkeys(fields, int(os.environ[variable])))
    if "seconds" in changes:
        changes["seconds_snapshot"] = 10 * changes["seconds"]
    return replace(plan, **changes), not changes


def chosen_cases(plan, groups):
    """(group, case) of this run; tables no larger than the plan allows."""
    for group in groups:
        seen = set()
        for case in GROUPS[group]:
            if plan.quick and not case.quick:
                continue
            case = replace(case, present=min(case.present, plan.largest))
            if case.name not in seen:
                seen.add(case.name)
                yield group, case


def machine():
    def first(path, name):
        with open(path, encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), "unknown")
    return {
        "cores": os.cpu_count(),
        "cpu": first("/proc/cpuinfo", "model name"),
        "memory_mb": int(first("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "file_system": subprocess.run(["df", "--output=fstype", SANDBOX], capture_output=True, text=True,
                                      check=False).stdout.split()[-1],
    }


def server_settings(admin):
    """What differs from the defaults, and what one wants to know anyway."""
    with admin.cursor() as cursor:
        cursor.execute("""
            SELECT name, current_setting(name) FROM pg_settings
            WHERE source NOT IN ('default', 'client', 'override')
                AND name !~ '^(lc_|log_|Date|Time|default_text|unix_|listen|dynamic|application|client_)'
                OR name IN ('fsync', 'full_page_writes', 'wal_compression', 'wal_level', 'data_checksums',
                    'max_locks_per_transaction', 'checkpoint_completion_target', 'shared_preload_libraries')
            ORDER BY name""")
        return dict(cursor.fetchall())


class Run:
    def __init__(self, plan):
        self.plan = plan
        self.admin = connect("postgres")
        with open(os.path.join(SANDBOX, "data/postmaster.pid"), encoding="ascii") as file:
            postmaster = int(file.readline())
        self.meter = measure.Meter(self.admin, postmaster)
        self.small = Small(self.admin)
        self.queues = Queues(self.admin)
        self.large = None
        self.present = None

    def store_for(self, group_cases, case, variant):
        if not case.large:
            self.leave_large()
        if not case.large or variant.endswith("@small"):
            return self.small
        wanted = (case.key, case.present)
        if self.present != wanted:
            self.leave_large()
            variants = {v for _, c in group_cases if (c.key, c.present) == wanted
                        for v in c.variants.split() if "@" not in v}
            print(f"  filling {count(case.present)} {case.key} keys", flush=True)
            self.large, self.present = Large(self.admin, *wanted, variants), wanted
            print("  " + ", ".join(f"{t}: {s} s" for t, s in self.large.seconds_to_fill.items()), flush=True)
        return self.large

    def leave_large(self):
        if self.large:
            self.large.drop()
        self.large = self.present = None

    def seconds(self, case):
        if case.operation in ("stored", "expiry", "queue-effect"):
            return 0                            # so many keys, however long it takes
        if case.operation == "queue-snapshot":
            return self.plan.seconds_snapshot
        if case.long:
            return self.plan.seconds_long
        writes_large = case.large and case.operation == "fresh"
        return self.plan.seconds_large if writes_large else self.plan.seconds

    def queue(self, case, variant):
        name, _, small = variant.partition("@")
        store, text, seconds = self.queues, script(case, name), self.seconds(case)
        self.leave_large()
        if small:
            case = replace(case, present=SMALL)
        if case.operation == "queue-effect":    # nothing is enqueued meanwhile
            store.prepare(replace(case, present=self.plan.messages + SMALL), name)
            return measure.measure(self.meter, store, case, text, keys=self.plan.messages)
        store.prepare(case, name)
        if case.operation == "queue-snapshot":
            with store.old_snapshot():
                result = measure.measure(self.meter, store, case, text, seconds, windows=WINDOWS)
            result["found_nothing"] = round((store.waiting(name) - case.present) / result["n"], 4)
            return result
        return measure.measure(self.meter, store, case, text, seconds)

    def one(self, cases, case, variant):
        if case.queue:
            return self.queue(case, variant)
        seconds = self.seconds(case)
        store = self.store_for(cases, case, variant)
        if case.large and store is self.small:
            case = replace(case, present=SMALL)
        store.prepare(case)
        text = script(case, variant.split("@")[0])
        if case.operation == "stored":
            return measure.stored(self.meter, store, case, text, self.plan.keys)
        if case.operation == "expiry":
            return measure.expiry(self.meter, store, case, text, EXPIRE.get(variant), TABLE.get(variant),
                                  self.plan.keys)
        return measure.measure(self.meter, store, case, text, seconds)

    def case(self, cases, group, case):
        rounds = self.plan.rounds_target if case.target else self.plan.rounds
        if case.operation == "queue-snapshot":
            rounds = 1
        variants = case.variants.split()
        print(f"{group}: {case.name}: {rounds} x {case.variants}", flush=True)
        results = []
        for number in range(rounds):
            results.append({variant: self.one(cases, case, variant)
                            for variant in (variants if number % 2 == 0 else reversed(variants))})
        return {"group": group, "name": case.name, **asdict(case), "per": case.per,
                "seconds": self.seconds(case), "rounds": results}


def main():
    groups = sys.argv[1:] or list(GROUPS)
    plan, as_declared = chosen_plan()
    started = time.monotonic()
    with open(SANDBOX + "/data/postgresql.conf", "a", encoding="ascii") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
    subprocess.run(["pg_ctl", "-D", SANDBOX + "/data", "-l", SANDBOX + "/server.log", "-s", "-w", "restart"],
                   check=True)

    run = Run(plan)
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": os.environ.get("COMMIT", ""),
        "machine": machine(),
        "postgresql": run.meter.value("SELECT version()")[0],
        "settings": server_settings(run.admin),
        "settings_large": LARGE_SETTINGS,
        "settings_snapshot": SNAPSHOT_SETTINGS,
        "plan": asdict(plan),
        "cases": [],
    }
    cases = list(chosen_cases(plan, groups))
    failures = []
    for group, case in cases:
        try:
            results["cases"].append(run.case(cases, group, case))
        except (measure.Failed, psycopg2.Error) as error:
            failures.append(f"{case.name}: {error}")
    run.leave_large()
    results["seconds"] = round(time.monotonic() - started)
    results["targets"] = report.targets(results)

    # Nothing but a full run may take the place of the full results.
    place = "quick" if plan.quick else ""
    if not as_declared or sys.argv[1:] or failures:
        place = "partial"
    place = os.path.join(SANDBOX, "results", place)
    os.makedirs(place, exist_ok=True)
    path = os.path.join(place, "latest.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    report.write(path)
    print("\n" + report.targets_as_text(results))
    if failures:
        sys.exit("\nnot measured:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
