"""Figures from results: medians, ratios with their spread, targets."""

import json
import os
from statistics import median

from cases import PEER_TARGETS, SMALL, SMALL_MOST, TARGETS, count
from variants import NAMES

HERE = os.path.dirname(os.path.abspath(__file__))


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def name_of(variant):
    base, _, where = variant.partition("@")
    return NAMES[base] + (f", {count(SMALL)} present" if where else "")


def cost(figures, variant, metric, over=""):
    """What a variant has spent in one round, beyond what another has."""
    return figures[variant][metric] - (figures[over][metric] if over else 0)


def typical(case, variant, metric):
    """Median of the rounds, or None where there is no such figure."""
    values = [figures[variant][metric] for figures in case["rounds"] if metric in figures[variant]]
    return median(values) if values else None


def ratio(case, metric, ours, theirs, over=""):
    """Median, least and largest of the rounds' ratios; None if a round has no sensible one."""
    values = []
    for figures in case["rounds"]:
        below = cost(figures, theirs, metric, over)
        if below <= 0:
            return None
        values.append(cost(figures, ours, metric, over) / below)
    return median(values), min(values), max(values)


def spread(case, variant, metric):
    """How far the rounds are apart, as a part of their median."""
    values = [figures[variant][metric] for figures in case["rounds"]]
    return (max(values) - min(values)) / median(values)


def find(results, operation, key="random", **wanted):
    """The cases of an operation with these properties, synchronous or not as is asked."""
    wanted = {"sync": False, **wanted, "operation": operation, "key": key}
    return [case for case in results["cases"] if all(case[name] == value for name, value in wanted.items())]


def case_of(results, target):
    """The case of a target; if the run has no table so large, the largest."""
    exact = find(results, target.operation, clients=target.clients, present=target.present, sync=target.sync)
    if exact or target.present <= SMALL_MOST:
        return exact[0] if exact else None
    return max((case for case in find(results, target.operation, clients=target.clients) if case["large"]),
               key=lambda case: case["present"], default=None)


def measured(case, target):
    """(median, least, largest) of what the target is about."""
    if not target.against:
        values = [figures[target.ours][target.metric] for figures in case["rounds"]]
        return median(values), min(values), max(values)
    if target.against.startswith("claim:"):     # another metric of the same variant
        whole = target.against.split(":")[1]
        values = [figures[target.ours][target.metric] / cost(figures, target.ours, whole, target.over)
                  for figures in case["rounds"]]
        return median(values), min(values), max(values)
    return ratio(case, target.metric, target.ours, target.against, target.over)


def targets(results):
    """A line for each target: text, against, limit, what was measured, whether it is met (or None)."""
    lines = []
    for target in TARGETS:
        case = case_of(results, target)
        line = {
            "case": target.text,
            "against": "its claim + finish" if target.against.startswith("claim:") else
                       name_of(target.against) if target.against else "",
            "target": (("≤ " if target.less else "≥ ") + f"{target.limit:g}") if target.judged else "",
            "measured": measured(case, target) if case else None,
            "met": None,
        }
        if case and case["present"] != target.present:
            line["case"] += f" (here only {count(case['present'])})"
        elif line["measured"] and target.judged:
            value = line["measured"][0]
            line["met"] = value <= target.limit if target.less else value >= target.limit
        lines.append(line)
    return lines + peer_targets()


def peer_targets():
    path = os.path.join(HERE, "results", "peers.json")
    rows = load(path)["rows"] if os.path.exists(path) and os.path.getsize(path) else []
    lines = []
    for text, peer, what, beside, limit in PEER_TARGETS:
        row = next((row for row in rows if row["peer"].startswith(peer) and row["case"] == what
                    and row["beside"] == beside), None)
        lines.append({"case": text + " (bench/peers)", "against": row["peer"] if row else peer,
                      "target": f"≥ {limit:g}", "measured": row["ratio"] if row else None,
                      "met": row["ratio"][0] >= limit if row else None})
    return lines


def with_spread(values):
    if values is None:
        return "not measured"
    middle, least, largest = values
    if least == largest:
        return f"{middle:.2f}"
    return f"{middle:.2f} ({least:.2f}..{largest:.2f})"


def target_rows(results):
    rows = [("case", "against", "target", "measured (min..max)", "met?")]
    for line in targets(results):
        met = {True: "yes", False: "no", None: ""}[line["met"]]
        rows.append((line["case"], line["against"], line["target"], with_spread(line["measured"]), met))
    return rows
