#!/usr/bin/python3
"""Checks dashboard.json and alerts.yaml, by what the exporter has told.

check.py static METRICS              the dashboard, and the names in the documentation
check.py until URL EXPR VALUE        waits until Prometheus answers so
check.py live METRICS URL ALERT...   Prometheus evaluates all expressions, and these alerts,
                                     and no others, are pending or firing

METRICS is a file with what the exporter has answered.
"""

import collections
import datetime
import http.client
import json
import re
import sys
import time
import urllib.parse

PATIENCE = 120

# What stands in an expression where Grafana puts in what the reader has chosen.
CHOSEN = {
    "instance": ".*",
    "datname": "(shop)",
    "queue": "(mail|print)",
    "ttl": "1s",
    "__rate_interval": "5m",
}

# Labels that Prometheus adds to what it is told.
ADDED = {"instance", "job"}

WORDS = {"and", "or", "unless", "bool", "offset", "Inf", "NaN"}
GROUPINGS = r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"

problems = []


def problem(text):
    problems.append(text)
    print(text)


class Told:
    """Which metrics there are, with which labels, and which values of these."""

    def __init__(self, file):
        self.labels = collections.defaultdict(lambda: collections.defaultdict(set))
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                match = re.match(r"([a-z_:]\w*)(?:\{(.*)\})? \S+$", line, re.I)
                if match:
                    metric = self.labels[match[1]]
                    for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""):
                        metric[label].add(value)


def check_names(where, expr, told):
    """Metrics and labels of an expression are those that the exporter knows."""
    seen = set()
    for metric, matchers in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expr):
        known = told.labels.get(metric, {})
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label not in ADDED and label not in known:
                problem(f"{where}: {metric} has no label {label}")
            elif label in known and operator == "=" and value not in known[label]:
                problem(f"{where}: there is no {metric} with {label}={value}")
            elif label in known and operator == "=~" and "$" not in value:
                for one in value.strip("()").split("|"):
                    if one != ".*" and one not in known[label]:
                        problem(f"{where}: there is no {metric} with {label}={one}")
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    rest = re.sub(r"\{[^}]*\}", "{}", rest)
    rest = re.sub(r"\[[^\]]*\]", "", rest)
    grouped = set()
    for _, labels in re.findall(GROUPINGS, rest):
        grouped.update(labels.replace(",", " ").split())
    rest = re.sub(GROUPINGS, "", rest)
    for name in re.findall(r"(?<![\w$.])[A-Za-z_:][\w:]*(?![\w:]*\s*\()", rest):
        if name not in WORDS:
            seen.add(name)
            if name not in told.labels:
                problem(f"{where}: the exporter tells no {name}")
    if not seen:
        problem(f"{where}: no metric in {expr}")
    labels = ADDED.union(*(told.labels.get(name, {}) for name in seen))
    for label in grouped - labels:
        problem(f"{where}: nothing in the expression has the label {label}")
    return labels


def choose(where, expr):
    """The expression as Grafana would send it."""
    def chosen(match):
        name = match[1] or match[2]
        if name not in CHOSEN:
            problem(f"{where}: unknown variable {name}")
        return CHOSEN.get(name, "")
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", chosen, expr)


def panels_of(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard):
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            yield f"panel {panel['id']}, {panel['title']}, {target['refId']}", target


def need(where, what, **fields):
    """The fields are there, and of that type; true if all are."""
    good = True
    for name, kind in fields.items():
        if not isinstance(what.get(name), kind):
            problem(f"{where}: no {name}, or of another type")
            good = False
    return good


def check_panel(panel):
    where = f"panel {panel.get('id')}, {panel.get('title')}"
    if not need(where, panel, id=int, type=str, title=str, gridPos=dict):
        return
    place = panel["gridPos"]
    if need(where, place, x=int, y=int, w=int, h=int) and not (
            place["x"] >= 0 and place["y"] >= 0 and place["w"] > 0 and place["h"] > 0
            and place["x"] + place["w"] <= 24):
        problem(f"{where}: outside of the grid")
    if panel["type"] == "row":
        return
    if not need(where, panel, description=str, datasource=dict, fieldConfig=dict, options=dict,
                targets=list):
        return
    defaults = panel["fieldConfig"].get("defaults", {})
    if not need(where, panel["fieldConfig"], defaults=dict, overrides=list) or \
            not need(where, defaults, unit=str, thresholds=dict):
        return
    steps = defaults["thresholds"].get("steps", [])
    values = [step["value"] for step in steps]
    if not steps or values[0] is not None or values[1:] != sorted(values[1:]):
        problem(f"{where}: thresholds begin without a value and ascend")
    red = any(step["color"] == "red" for step in steps)
    if not re.search(r"\bRed(, if it stays)?: " if red else r"\bNever red", panel["description"]):
        problem(f"{where}: the description does not say what to do when it is red")
    if not panel["targets"]:
        problem(f"{where}: no targets")
    refs = [target.get("refId") for target in panel["targets"]]
    if len(set(refs)) < len(refs):
        problem(f"{where}: a refId comes twice")
    for source in [panel, *panel["targets"]]:
        if source.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
            problem(f"{where}: the data source is not the variable")
    for target in panel["targets"]:
        need(where, target, refId=str, expr=str, legendFormat=str)
        if not target.get("refId") or not target.get("expr"):
            problem(f"{where}: a target without refId or expr")


def check_grid(panels):
    taken = {}
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["id"])
                if other != panel["id"]:
                    problem(f"panel {panel['id']} lies over panel {other}")
                    return


def check_variables(dashboard, told):
    variables = dashboard["templating"]["list"]
    names = [variable.get("name") for variable in variables]
    if len(set(names)) < len(names):
        problem("a variable comes twice")
    text = json.dumps(dashboard)
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"}
    for name in used.symmetric_difference(names):
        problem(f"variable {name} is not there, or is not used")
    for variable in variables:
        where = f"variable {variable.get('name')}"
        if not need(where, variable, name=str, type=str, query=(str, dict)):
            continue
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        if not match:
            problem(f"{where}: not label_values(…)")
        elif match[2] not in check_names(where, match[1], told):
            problem(f"{where}: there is no label {match[2]}")


def check_documentation(told):
    with open("../../doc/monitoring.md", encoding="utf-8") as file:
        text = file.read()
    with open("alerts.yaml", encoding="utf-8") as file:
        alerts = re.findall(r"^ *- alert: (\w+)$", file.read(), re.M)
    tests = ""
    for name in ("alerts_test.yaml", "alerts_days_test.yaml", "breakers_test.yaml"):
        with open(name, encoding="utf-8") as file:
            tests += file.read()
    documented = set(re.findall(r"^\| `(idem_\w+)`", text, re.M))
    ours = {name for name in told.labels if name.startswith("idem_")}
    for name in documented.symmetric_difference(ours):
        problem(f"doc/monitoring.md and the exporter do not agree on {name}")
    for name in set(re.findall(r"^\| `(Idem\w+)`", text, re.M)).symmetric_difference(alerts):
        problem(f"doc/monitoring.md and alerts.yaml do not agree on {name}")
    for name in alerts:
        # silent, and fires
        cases = re.findall(rf"alertname: {name}\n( +exp_alerts:\n)?", tests)
        if "" not in cases or not any(cases):
            problem(f"no test shows {name} silent and firing")


def static(metrics):
    told = Told(metrics)
    with open("dashboard.json", encoding="utf-8") as file:
        dashboard = json.load(file)
    if not need("dashboard", dashboard, title=str, uid=str, schemaVersion=int, version=int,
                panels=list, templating=dict, time=dict, tags=list, annotations=dict):
        return
    for panel in dashboard["panels"]:
        check_panel(panel)
    if problems:
        return
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) < len(ids):
        problem("the id of a panel comes twice")
    check_grid(dashboard["panels"])
    check_variables(dashboard, told)
    for where, target in expressions(dashboard):
        labels = check_names(where, target["expr"], told)
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            if label not in labels:
                problem(f"{where}: no label {label} for the legend")
        choose(where, target["expr"])
    check_documentation(told)
    if not problems:
        print(f"{len(panels_of(dashboard))} panels, {len(list(expressions(dashboard)))} expressions")


def ask(url, path, **arguments):
    """What Prometheus says; in "error" why not."""
    connection = http.client.HTTPConnection(url, timeout=PATIENCE)
    try:
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(arguments)}")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def query(url, expr):
    answer = ask(url, "query", query=expr)
    if answer["status"] != "success":
        raise ValueError(answer.get("error"))
    return answer["data"]["result"]


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.1)


def rules_of(url):
    groups = ask(url, "rules")["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def check_rule(rule, told):
    where = f"alert {rule['name']}"
    labels = check_names(where, rule["query"], told)
    if rule["health"] != "ok":
        problem(f"{where}: {rule['health']}: {rule.get('lastError', '')}")
    if rule["labels"].get("severity") not in ("critical", "warning", "info"):
        problem(f"{where}: no severity")
    if not rule["duration"] > 0:
        problem(f"{where}: no for")
    for annotation in ("summary", "description"):
        text = rule["annotations"].get(annotation, "")
        if not text:
            problem(f"{where}: no {annotation}")
        for label in re.findall(r"\$labels\.(\w+)", text):
            if label not in labels:
                problem(f"{where}: no label {label} for the {annotation}")
    for alert in rule["alerts"]:
        for annotation, text in alert["annotations"].items():
            if "<no value>" in text or "error expanding" in text:
                problem(f"{where}: {annotation} became: {text}")


def live(metrics, url, *expected):
    told = Told(metrics)
    with open("dashboard.json", encoding="utf-8") as file:
        dashboard = json.load(file)
    for where, target in expressions(dashboard):
        expr = choose(where, target["expr"])
        try:
            result = query(url, expr)
        except ValueError as error:
            problem(f"{where}: {error}")
            continue
        if not any(sample["value"][1] != "NaN" for sample in result):
            problem(f"{where}: no data: {expr}")
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            if not all(label in sample["metric"] for sample in result):
                problem(f"{where}: the answer has no {label} for the legend")

    # all of them evaluated since now, when all has been scraped
    since = float(query(url, "time()")[1])
    until("the rules", lambda: all(evaluated(rule) > since for rule in rules_of(url)))
    rules = rules_of(url)
    for rule in rules:
        check_rule(rule, told)
    active = {rule["name"] for rule in rules if rule["alerts"]}
    for name in sorted(active.symmetric_difference(expected)):
        problem(f"alert {name} " + ("is active" if name in active else "is not active"))
    print(f"{len(rules)} alerts, {len(active)} of them active: " + ", ".join(sorted(active)))


def evaluated(rule):
    """When a rule was evaluated last, in seconds."""
    # not yet: year 1; and nanoseconds, which Python does not know
    stamp = re.sub(r"(\.\d{6})\d+", r"\1", rule["lastEvaluation"]).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(stamp).timestamp()


def main(command, *arguments):
    if command == "static":
        static(*arguments)
    elif command == "until":
        url, expr, value = arguments
        until(f"{expr} to be {value}", lambda: [s["value"][1] for s in query(url, expr)] == [value])
    else:
        live(*arguments)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
