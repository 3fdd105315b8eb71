"""Charts of the results, by gnuplot, as SVG on a light ground of their own."""

import os
import subprocess

from cases import SMALL, count
from figures import find, name_of, typical

COLOURS = {"idem": "#0b6e99", "hand": "#c2571a", "plpgsql": "#7a5195", "lean": "#d98c5f", "uuid": "#e3b091",
           "floor": "#8a8f98", "empty": "#c4c8ce", "select": "#c2571a", "cte": "#c2571a"}

HEAD = """
set terminal svg size {width},{height} background "#ffffff" font "Helvetica,13" enhanced
set output "{output}"
set encoding utf8
set border 3 lc rgb "#666666"
set tics nomirror scale 0.5 tc rgb "#222222"
set grid ytics lc rgb "#e4e4e4" lt 1
set key below horizontal samplen 2 tc rgb "#222222"
set title tc rgb "#222222"
set format y "%'.0f"
set yrange [0:*]
set lmargin 10
"""


def gnuplot(text):
    subprocess.run(["gnuplot"], input=text, encoding="utf-8", check=True,
                   env={**os.environ, "LC_ALL": "C.UTF-8"})


def block(name, rows):
    return f"${name} << EOD\n" + "".join(" ".join(str(cell) for cell in row) + "\n" for row in rows) + "EOD\n"


def colour(variant, pale):
    """As a number; pale is half way to white."""
    channels = [int(COLOURS[variant][i:i + 2], 16) for i in (1, 3, 5)]
    if pale:
        channels = [(channel + 255) // 2 for channel in channels]
    return channels[0] << 16 | channels[1] << 8 | channels[2]


def bars(variants, values, pale=False):
    """A block's rows: position, value, colour, label."""
    return [(i, value, colour(variant, pale), label(name_of(variant)))
            for i, (variant, value) in enumerate(zip(variants, values))]


def label(name):
    """Long names in several lines."""
    if "," in name:
        return '"' + name.replace(", ", ",\\n") + '"'
    return '"' + (name.replace(" ", "\\n") if len(name) > 8 else name) + '"'


def fresh(results, output):
    cases = find(results, "fresh", clients=8, present=SMALL)
    if not cases:
        return None
    case = cases[0]
    variants = ("floor", "idem", "uuid", "lean", "hand", "plpgsql")
    base = {m: typical(case, "empty", m) for m in ("cpu_us", "cpu_user_us")}
    rows = [[typical(case, v, m) - base.get(m, 0) for v in variants]
            for m in ("cpu_us", "cpu_user_us", "wal_bytes")]
    text = HEAD.format(width=980, height=400, output=output) + "".join(
        block(name, bars(variants, values, name == "all"))
        for name, values in zip(("all", "user", "wal"), rows))
    text += f"""
set multiplot layout 1,2
set boxwidth 0.7
set xrange [-0.6:{len(variants) - 0.4}]
set xtics font ",10"
set bmargin 5
set style fill solid 1
set title "CPU of a fresh key over the empty transaction, µs (pale: in the kernel)"
plot $all using 1:2:3:xtic(4) with boxes lc rgb variable notitle, \\
    $user using 1:2:3 with boxes lc rgb variable notitle
set title "WAL of a fresh key, bytes"
plot $wal using 1:2:3:xtic(4) with boxes lc rgb variable notitle
unset multiplot
"""
    gnuplot(text)
    return "What a fresh key costs"


def lines(names):
    """Plots of blocks of two columns, in the variants' colours."""
    return ", ".join(
        f'${name} using 1:2 with linespoints lw 2 pt 7 ps 0.6 {style} lc rgb "{COLOURS[v]}" title "{title}"'
        for name, v, style, title in names)


def clients(results, output):
    variants = ("empty", "idem", "hand", "plpgsql")
    text, panels = HEAD.format(width=980, height=400, output=output), []
    for sync in (False, True):
        cases = sorted(find(results, "fresh", sync=sync, present=SMALL), key=lambda case: case["clients"])
        if len(cases) < 2:
            return None
        for v in variants:
            text += block(f"{v}{sync:d}", [(c["clients"], typical(c, v, "tps")) for c in cases])
        commit = "synchronous" if sync else "asynchronous"
        panels.append(f'set title "Fresh keys a second, by clients, {commit} commit"\nplot '
                      + lines([(f"{v}{sync:d}", v, "", name_of(v)) for v in variants]))
    gnuplot(text + """
set multiplot layout 1,2
set logscale x 2
set xrange [0.9:36]
""" + "\n".join(panels) + "\nunset multiplot\n")
    return "Throughput by clients"


def size(results, output):
    text, panels, found = HEAD.format(width=980, height=400, output=output), [], False
    for metric, title in (("wal_bytes", "WAL of a fresh key, bytes"), ("tps", "Fresh keys a second")):
        plots = []
        for key, style in (("random", ""), ("ordered", "dt 2")):
            cases = sorted(find(results, "fresh", key, clients=8), key=lambda case: case["present"])
            found = found or len(cases) > 1
            for v in ("idem", "hand"):
                name = f"{metric}_{key}_{v}"
                if cases:
                    text += block(name, [(c["present"], typical(c, v, metric)) for c in cases])
                    plots.append((name, v, style, f"{name_of(v)}, {key}"))
        panels.append(f'set title "{title}, by keys present"\nplot ' + lines(plots))
    if not found:
        return None
    ticks = ", ".join(f'"{count(n)}" {n}' for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000))
    gnuplot(text + f"""
set multiplot layout 1,2
set logscale x 10
set xtics ({ticks})
{panels[0]}
{panels[1]}
unset multiplot
""")
    return f"WAL and throughput by size of the table ({count(SMALL)}: without checkpoints)"


def latency(results, output):
    text, panels = HEAD.format(width=980, height=400, output=output), []
    for operation, title, order in (("fresh", "a fresh key", ("idem", "hand", "plpgsql")),
                                    ("replay", "a replay", ("idem", "select", "plpgsql"))):
        cases = find(results, operation, clients=8, present=SMALL)
        if not cases:
            return None
        text += block(operation, [
            [part] + [typical(cases[0], v, metric) for v in order]
            for part, metric in (("median", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))])
        panels.append(f'set title "Latency of {title}, µs, 8 clients"\nplot ' + ", ".join(
            f'${operation} using {i + 2}:xtic(1) lc rgb "{COLOURS[v]}" title "{name_of(v)}"'
            for i, v in enumerate(order)))
    gnuplot(text + """
set multiplot layout 1,2
set style data histogram
set style histogram clustered gap 1
set style fill solid 1
set logscale y 10
set yrange [10:*]
""" + "\n".join(panels) + "\nunset multiplot\n")
    return "Latency"


def draw(results, place):
    """(file, title) of each chart for which the run has the figures; no others are left lying about."""
    drawn = []
    for chart in (fresh, clients, size, latency):
        name = chart.__name__ + ".svg"
        path = os.path.join(place, name)
        if os.path.exists(path):
            os.remove(path)
        title = chart(results, path)
        if title:
            drawn.append((name, title))
    return drawn
