#!/usr/bin/python3
"""Renders results: report.py FILE.json writes report.md and charts beside the file."""

import inspect
import os
import sys

import charts
import variants
from cases import SMALL
from figures import (load, name_of, ratio, spread, target_rows, targets, typical, with_spread)

__all__ = ["targets", "targets_as_text", "write"]

OPERATIONS = {
    "fresh": "A fresh key",
    "replay": "A key that is finished comes again",
    "hot": "Hot keys: repeats of 10 finished keys",
    "stampede": "Stampede: all clients at the same 4 keys, then at the next",
    "batch": "100 fresh keys a transaction",
    "once": "Key and an INSERT in one round trip",
    "once-replay": "A repeat of that",
    "lease": "A lease that is committed, and the finish in a second transaction",
    "steps": "A lease, five steps, each of them asked for and committed, and the finish",
    "stored": "What a key takes on disk",
    "expiry": "Expiry",
    "queue": "A message: enqueue, dequeue, ack, a transaction each",
    "queue-batch": "The same by 100 messages at a time; figures are of a hundred",
    "queue-in": "Enqueue only",
    "queue-effect": "Dequeue, an INSERT and ack in one transaction",
    "queue-depth": "Enqueue, dequeue, ack with many messages waiting",
    "queue-snapshot": "The same while an old snapshot is held; CPU is with autovacuum's",
}


def table(rows, right=1):
    """Markdown: the first columns to the left, the others to the right."""
    head = rows[0]
    rule = ["---" if i < right else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows[1:]]) + "\n"


def targets_as_text(results):
    rows = target_rows(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}".replace(",", " ")


def base_of(case):
    return "empty" if "empty" in case["variants"].split() else ""


def case_table(case):
    columns = [("per second", "tps", 0), ("latency µs", "latency_us", 0), ("p50", "p50_us", 0),
               ("p99", "p99_us", 0), ("p99.9", "p999_us", 0), ("CPU user µs", "cpu_user_us", 1),
               ("CPU µs", "cpu_us", 1), ("WAL bytes", "wal_bytes", 0), ("WAL records", "wal_records", 2),
               ("full pages", "wal_fpi", 3), ("dead rows made", "dead_made", 2), ("left", "dead", 2)]
    rows = [("", *(title for title, _, _ in columns))]
    for variant in case["variants"].split():
        cells = [number(typical(case, variant, metric), digits) for _, metric, digits in columns]
        rows.append((bold(variant), *cells))
    return table(rows)


def bold(variant):
    return f"**{name_of(variant)}**" if variant == "idem" else name_of(variant)


RATIOS = [("throughput", "tps", False), ("time", "call_us", False), ("p99", "p99_us", False),
          ("CPU user", "cpu_user_us", True), ("CPU", "cpu_us", True), ("WAL bytes", "wal_bytes", False)]


OTHER_RATIOS = {
    "stored": [("bytes", "stored_bytes", False)],
    "expiry": [("CPU of expiry", "expire_cpu_us", False), ("WAL bytes of expiry", "expire_wal_bytes", False)],
}


def ratio_table(case):
    base = base_of(case)
    rows = [("ours to …", *(title for title, _, _ in RATIOS))]
    for variant in case["variants"].split():
        if variant in ("idem", base):
            continue
        cells = []
        for _, metric, minus in RATIOS:
            # what writes nothing has no ratio of what is written
            writes = metric != "wal_bytes" or typical(case, variant, metric) > 20
            values = ratio(case, metric, "idem", variant, base if minus else "") if writes else None
            cells.append(with_spread(values) if values else "")
        rows.append((name_of(variant), *cells))
    return table(rows) if len(rows) > 1 else ""


def stored_table(case):
    columns = ["table_bytes", "index_bytes", "stored_bytes",
               "table_bytes_vacuumed", "index_bytes_vacuumed", "stored_bytes_vacuumed"]
    rows = [("bytes per key", "table", "index", "both", "after VACUUM: table", "index", "both",
             "dead rows made")]
    for variant in case["variants"].split():
        rows.append((bold(variant), *(number(typical(case, variant, metric)) for metric in columns),
                     number(typical(case, variant, "dead_made"), 2)))
    return table(rows)


def expiry_table(case):
    rows = [("per key", "CPU µs", "WAL bytes", "WAL records")]
    for variant in case["variants"].split():
        for prefix, what in (("", "claim and finish"), ("expire_", "expiry"), ("vacuum_", "VACUUM after it")):
            cells = [typical(case, variant, prefix + metric)
                     for metric in ("cpu_us", "wal_bytes", "wal_records")]
            if cells[0] is not None:
                what = "the same transaction" if variant == "empty" else what
                rows.append((f"{bold(variant)}, {what}",
                             *(number(cell, digits) for cell, digits in zip(cells, (2, 0, 3)))))
    return table(rows)


def snapshot_table(case):
    """The first three windows, and the last three, of the first round."""
    figures = case["rounds"][0]
    shown = (0, 1, 2, -3, -2, -1)
    length = case["seconds"] / len(figures["idem"]["per_window"])
    last = len(figures["idem"]["per_window"])
    rows = [(f"a second, in window … of {length:g} s", *(str(1 + i % last) for i in shown), "fall",
             "found nothing")]
    for variant in case["variants"].split():
        of = figures[variant]
        rows.append((bold(variant), *(number(of["per_window"][i]) for i in shown), f"{of['fall']:.0%}",
                     f"{of['found_nothing']:.2%}"))
    return table(rows)


def slower(results):
    """Where somebody else does better, by the median; and whether in all rounds."""
    rows = [("case", "against", "what", "ours to theirs")]
    for case in results["cases"]:
        base = base_of(case)
        metrics = OTHER_RATIOS.get(case["operation"], RATIOS)
        for variant in case["variants"].split():
            if variant in ("idem", "empty", "floor") or "@" in variant:
                continue
            for title, metric, minus in metrics:
                if metric == "wal_bytes" and typical(case, variant, metric) <= 20:
                    continue
                values = ratio(case, metric, "idem", variant, base if minus else "")
                if values and (values[0] < 1 if metric == "tps" else values[0] > 1):
                    sure = values[2] < 1 if metric == "tps" else values[1] > 1
                    doubt = "" if sure else ", within the noise"
                    if len(case["rounds"]) == 1:
                        doubt = ", one round"
                    rows.append((case["name"], name_of(variant), title, with_spread(values) + doubt))
    return rows


def noise(results):
    """How far apart the rounds of one and the same thing are."""
    spreads = sorted(spread(case, variant, "tps") for case in results["cases"] if len(case["rounds"]) > 1
                     for variant in case["variants"].split())
    if not spreads:
        return "There was one round only: nothing is known of the noise."
    middle = spreads[len(spreads) // 2]
    return (f"The throughput of one and the same variant differed between its rounds by {middle:.0%} in the\n"
            f"  middle and by {spreads[-1]:.0%} at worst (largest less smallest, of the median).")


SHORT = "\n**The short form of a run, to see that it works: its figures mean little.**\n"


def head(results):
    machine, plan = results["machine"], results["plan"]
    settings = "\n".join(f"{name} = {value}" for name, value in results["settings"].items())
    large = ", ".join(f"`{name} = {value}`" for name, value in results["settings_large"].items())
    return f"""# Benchmark
{SHORT if plan["quick"] else ""}
`bench/run` wrote this on {results["date"]}, at commit `{results["commit"] or "unknown"}`,
in {-(-results["seconds"] // 60)} minutes. Nothing here was written by hand, or left out: `bench/variants.py`
has every statement, `{results["file"]}` every round.

- {results["postgresql"]}
- {machine["cores"]} cores ({machine["cpu"]}), {machine["memory_mb"]} MB, Linux {machine["kernel"]},
  {machine["file_system"]}.
- Clients are pgbench's, on the same machine and over a socket, with prepared statements.
- The variants of a case take turns, in alternating order, for some rounds. Figures are medians. A ratio is
  taken within a round, and given as median (min..max).
- Each measurement begins with a CHECKPOINT. With small tables none comes after it; with large ones
  ({large}) they come as they would.
- Commit is asynchronous unless a case says otherwise; `fsync` is {results["settings"]["fsync"]} throughout.
  There is no autovacuum, but beside an old snapshot: what it would spend on dead rows is not in the figures
  of those who make them.
- CPU is that of the backends. Its ratios are of what is left after the empty transaction with the same round
  trips, the making of the key included. *Time* is the latency without the making of the key.
- Keys are of 36 bytes: random (UUIDv4), ordered (as UUIDv7), or text that is no UUID. Unless a case says
  more, {SMALL} keys are present when a measurement begins.
- {noise(results)}

The variants, with the names that they have in `variants.py`:

```
{inspect.cleandoc(variants.__doc__[variants.__doc__.index("    idem"):])}
```

<details><summary>Settings of the server that differ from the defaults, or matter</summary>

```
{settings}
```
</details>
"""


def write(path):
    """Renders a file of results; the report and the charts go beside it."""
    results = load(path)
    results["file"] = os.path.basename(path)
    place = os.path.dirname(os.path.abspath(path))
    parts = [head(results), "## Targets\n", table(target_rows(results), 3)]
    for name, title in charts.draw(results, place):
        parts.append(f"![{title}]({name})\n")
    worse = slower(results)
    parts.append("## Where the others do better\n")
    parts.append(table(worse, 3) if len(worse) > 1 else "Nowhere in this run.\n")
    parts.append("## Cases\n")
    shown = None
    for case in sorted(results["cases"], key=lambda case: list(OPERATIONS).index(case["operation"])):
        if case["operation"] != shown:
            shown = case["operation"]
            parts.append(f"### {OPERATIONS[shown]}\n")
        rounds = len(case["rounds"])
        what = (f"of {case['seconds']} s" if case["seconds"] else
                f"of {results['plan']['messages']} messages" if shown == "queue-effect" else
                f"of {results['plan']['keys']} keys")
        parts.append(f"**{case['name']}**, {rounds} round{'s' * (rounds > 1)} {what}\n")
        if shown == "stored":
            parts.append(stored_table(case))
            continue
        parts.append(expiry_table(case) if shown == "expiry" else case_table(case))
        if shown == "queue-snapshot":
            parts.append(snapshot_table(case))
        if shown != "expiry":
            parts.append(ratio_table(case))
    with open(os.path.join(place, "report.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(part for part in parts if part))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: report.py FILE.json")
    write(sys.argv[1])
