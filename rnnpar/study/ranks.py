"""Chapter 06: what ranks cost, measured on the ranks at hand and computed for those that are not.

The sweep's profile "mpi" measures: what a message and an exchange of the state cost into mpi.json (messages_probe.py),
and the strategies of `mpi` beside those of `threads` into mpi.csv, where "threads" counts the ranks.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rnnpar
from rnnpar import machine, model_ranks, registry
from rnnpar.model_ranks import Link
from rnnpar.reference import relative_error
from rnnpar.study import plots, simulate, store, tell
from rnnpar.study.messages_probe import FILE
from rnnpar.work import Work

EXPERIMENT = "mpi"

# H, T, B, layers of the points, I = O = H; what is timed there beside serial/compiled
LINES = {
    "rows": [(H, 128 if H < 2048 else 32, 1, 1) for H in (64, 128, 256, 512, 1024, 2048)],
    "batch": [(256, 32, B, 1) for B in (1, 4, 16, 64, 256)],
    "pipeline": [(256, 128, 1, L) for L in (1, 2, 4, 8)],
}
TWINS = {"mpi/rows": "threads/rows", "mpi/batch": "threads/batch", "mpi/pipeline": "threads/wavefront"}


# --- What was measured ---------------------------------------------------------------------------------------------


def results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its results of this experiment: this machine's, or else those of another that has some."""
    known = [other for other in store.machines() if (store.results_folder(other) / f"{EXPERIMENT}.csv").exists()]
    wanted = name or machine.name()
    chosen = wanted if wanted in known or not known else known[0]
    if chosen != wanted or not known:
        shown = f"what follows was measured on {chosen}" if known else "what follows is therefore empty"
        display(Markdown(f"Ranks have not been measured on {wanted}{_missing()}; {shown}."))
    frame = store.load(EXPERIMENT, chosen) if known else pd.DataFrame(columns=["machine", *store.COLUMNS])
    return chosen, frame


def messages(name: str) -> dict[str, Any]:
    """What messages cost on a machine (mpi.json); empty where that was not measured."""
    file = store.results_folder(name) / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def link(found: Mapping[str, Any]) -> Link:
    """alpha and beta from the ping-pong: the least message, and the slope up to 256 KB."""
    table = dict(map(tuple, found.get("messages", [])))
    if not table:
        return model_ranks.NEAR
    alpha, size = table[min(table)], 262144
    return Link(alpha, (table[size] - alpha) / size, alpha / 2)


def exchange(found: Mapping[str, Any], kind: str, ranks: int) -> Callable[[int, float], float]:
    """meet(ranks, elements) as model_ranks.rows takes it: a line through the measured exchanges of a kind."""
    points = found["exchange"][str(ranks)][kind]
    sizes, seconds = zip(*points, strict=True)
    return lambda _, elements: (
        float(np.interp(elements, sizes, seconds))
        if elements <= sizes[-1]
        else float(seconds[-1] * elements / sizes[-1])
    )


def window_link(found: Mapping[str, Any], ranks: int) -> Link:
    """The same for ranks that share memory, so that an allgather of a state takes what its exchange was measured to."""
    meet, (small, large) = exchange(found, "window", ranks), (64, 8192)
    rounds, sent = math.ceil(math.log2(ranks)), 4.0 * (ranks - 1) / ranks  # as model_ranks.allgather has them
    beta = max(0.0, meet(ranks, large) - meet(ranks, small)) / (sent * (large - small))
    return Link((meet(ranks, small) - beta * sent * small) / rounds, beta)


def predict(name: str, method: str, shape: Mapping[str, Any], ranks: int) -> float:
    """Seconds of a call on the ranks of the machine that was measured; NaN without its peaks."""
    costs, found = tell.cost_model(name), messages(name)
    if costs is None or not found:
        return float("nan")
    work = Work(**{letter: int(shape[letter]) for letter in ("T", "B", "I", "H", "O", "layers")})
    # More ranks than cores take turns: each computes as slowly as if the others' work were its own.
    turns = max(1.0, ranks / model_ranks.cores(costs))
    start = found["call"][str(ranks)]
    if method == "mpi/rows":
        meet = exchange(found, "window", ranks) if ranks > 1 else lambda *_: 0.0
        computing = model_ranks.rows(costs, work, ranks, lambda *_: 0.0)
        meetings = work.layers * work.T * meet(ranks, work.B * work.H) if ranks > 1 else 0.0
        return start + turns * computing + meetings
    if method == "mpi/batch":
        return start + turns * model_ranks.batch(costs, work, ranks)
    return start + turns * model_ranks.pipeline(costs, work, ranks, link(found))


def predictions(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a point of mpi: measured and predicted seconds of a call, as plots.model_error takes it."""
    rows = plots.steady(frame)
    rows = rows[rows["method"].str.startswith("mpi/")]
    by = ["workload", "H", "I", "O", "T", "B", "layers", "method", "threads"]
    found = []
    for key, value in plots.medians(rows, by).items():
        shape = dict(zip(by, key, strict=True))
        seconds = predict(name, shape["method"], shape, int(shape["threads"]))
        if seconds > 0:
            found.append(shape | dict(machine=name, date=tell.last_day(rows), measured=value.value, predicted=seconds))
    return pd.DataFrame(found, columns=["machine", "date", *by, "measured", "predicted"])


# --- Figures -------------------------------------------------------------------------------------------------------

KIND_LOOKS = {"window": plots.Look(plots.GREEN, "o"), "messages": plots.Look(plots.BLUE, "s"),
              "allgather": plots.Look(plots.ORANGE, "D")}  # fmt: skip
NETWORK_COLOURS = (plots.GREEN, plots.BLUE, plots.ORANGE, plots.RED)
POWERS = [2**k for k in range(11)]
Points = Mapping[float, Any]  # x -> plots.Median or a number


def draw(ax: Axes, series: Mapping[str, tuple[plots.Look, Points]], label: str, suffix: str = "", ticks=None) -> None:
    """Lines on two log axes with names at their ends, and bands where the points are medians."""
    series = {name: line for name, line in series.items() if line[1]}
    if not series:
        plots.nothing(ax)
        return
    xs = sorted({x for _, points in series.values() for x in points})
    plots.size_axis(ax, xs, label)
    value = lambda point: getattr(point, "value", point)  # noqa: E731
    extent = [value(point) for _, points in series.values() for point in points.values()]
    low, high = min(extent) / 1.3, max(extent) * 1.3
    plots.log_axis(ax.yaxis, low, high, ticks, suffix)
    ax.set_ylim(low, high)
    ends = []
    for name, (look, points) in series.items():
        here = sorted(points)
        ys = [value(points[x]) for x in here]
        if all(hasattr(points[x], "low") for x in here):
            bounds = [[getattr(points[x], side) for x in here] for side in ("low", "high")]
            ax.fill_between(here, *bounds, color=look.colour, alpha=0.18, lw=0)
        style = dict(ls=(0, (4, 2)), lw=1.3) if not look.marker else dict(marker=look.marker, mec="white", mew=0.6)
        ax.plot(here, ys, color=look.colour, **style)
        if look.marker:
            ends.append((here[-1], ys[-1], name, look.colour))
    plots.label_ends(ax, ends)


@plots.styled
def message_costs(found: Mapping[str, Any], name: str) -> Figure:
    """What a message takes by its size, with alpha + beta n through it; and an exchange of a state by each way."""
    figure, (left, right) = plots.page(
        "What a message costs",
        "Above: one way of a ping-pong between two ranks, from compiled code. Dashed: alpha + beta n.\n"
        "Below: an exchange of a state of H floats between two ranks, each with half of them.",
        " · ".join(filter(None, [name, found.get("measured", "")])), [2.2, 1.9], left=0.95,
    )  # fmt: skip
    table = {int(size): 1e6 * seconds for size, seconds in found.get("messages", [])}
    fit = link(found)
    line = {size: 1e6 * fit.message(size) for size in table}
    dashed = plots.Look(plots.QUIET, "")
    draw(left, {"measured": (plots.Look(plots.BLUE, "o"), table), "fit": (dashed, line)}, "bytes of the message")
    left.set_ylabel("one way (µs)")
    kinds = {kind: (KIND_LOOKS[kind], {int(H): 1e6 * seconds for H, seconds in points})
             for kind, points in found.get("exchange", {}).get("2", {}).items()}  # fmt: skip
    draw(right, kinds, "hidden size H")
    right.set_ylabel("an exchange (µs)")
    return figure


def speeds(frame: pd.DataFrame, strategy: str) -> tuple[str, dict[str, dict[float, plots.Median]]]:
    """Over one rank of the same strategy, along its axis: by "2 ranks", "4 ranks" and the threaded twin's name."""
    axis = {"rows": "H", "batch": "B", "pipeline": "layers"}[strategy]
    lines: dict[str, dict[float, plots.Median]] = {}
    times = plots.medians(plots.steady(frame), ["H", "T", "B", "layers", "method", "threads"])
    for H, T, B, layers in LINES[strategy]:
        here = {key[4:]: value for key, value in times.items() if key[:4] == (H, T, B, layers)}
        one, x = here.get((f"mpi/{strategy}", 1)), {"H": H, "B": B, "layers": layers}[axis]
        for (method, count), value in here.items():
            if (
                one
                and (method, count) != (f"mpi/{strategy}", 1)
                and method in (f"mpi/{strategy}", TWINS[f"mpi/{strategy}"])
            ):
                said = f"{count} ranks" if method.startswith("mpi/") else f"{method}, {count} threads"
                lines.setdefault(said, {})[x] = one.over(value)
    return axis, lines


@plots.styled
def strategies(frame: pd.DataFrame) -> Figure:
    """Each strategy on 2 and 4 ranks, and its twin on threads, over one rank."""
    rows = plots.steady(frame)
    figure, panels = plots.page(
        "Ranks against threads on one machine",
        f"Times as fast as the same strategy on one rank, I = O = H, one thread a rank, {cores_said(frame)}.\n"
        f"{plots.BANDS}",
        corner(frame, rows), [1.75] * 3, gap=0.85, head=0.28, right=2.15, left=0.95,
    )  # fmt: skip
    fixed = {"rows": "B = 1, one layer", "batch": "H = 256, T = 32, one layer", "pipeline": "H = 256, T = 128, B = 1"}
    for ax, strategy in zip(panels, LINES, strict=True):
        axis, lines = speeds(frame, strategy)
        looks = {"2": plots.Look(plots.ORANGE, "D"), "4": plots.Look(plots.RED, "X"), "t": plots.Look(plots.BLUE, "s")}
        draw(ax, {name: (looks[name[0]], points) for name, points in sorted(lines.items())}, plots.AXES[axis], "×")
        ax.set_title(f"mpi/{strategy}: {fixed[strategy]}", loc="left", size=9.5, weight="bold")
        ax.set_ylabel("over one rank")
    return figure


def cores_said(frame: pd.DataFrame) -> str:
    """How many cores the ranks had to share."""
    counts = frame.loc[frame["method"].str.startswith("threads/"), "threads"]
    return f"{int(counts.max())} cores" if len(counts) else "cores unknown"


def corner(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    names = [str(name) for name in frame["machine"].unique()] if "machine" in frame else []
    return " · ".join([*names, *([tell.last_day(rows)] if len(rows) else [])])


SCALED = (4096, 16384)  # H of the networks that are computed for 1,024 ranks


@cache
def scaling(name: str) -> dict[tuple[int, str], dict[str, dict[int, float]]]:
    """(H, network) -> {"simulated": ..., "formula": ...}: speed-up of `mpi/rows` over one rank, by ranks."""
    costs = tell.cost_model(name)
    if costs is None:
        return {}
    found = {}
    for H in SCALED:
        work = Work(T=1000, B=1, I=256, H=H, O=256)
        one = model_ranks.rows(costs, work, 1, lambda *_: 0.0)
        for network, wire in simulate.NETWORKS.items():
            meet = lambda ranks, elements, wire=wire: model_ranks.allgather(wire, ranks, 4 * elements)  # noqa: E731
            simulated = simulate.curve(costs, "mpi/rows", work, POWERS[1:], wire)
            found[H, network] = {
                "simulated": {ranks: one / seconds for ranks, seconds in simulated.items()},
                "formula": {ranks: one / model_ranks.rows(costs, work, ranks, meet) for ranks in POWERS[1:]},
            }
    return found


@plots.styled
def to_1024(name: str) -> Figure:
    """`mpi/rows` on up to 1,024 ranks, over one rank, by network: simulated, and by the formula."""
    figure, panels = plots.page(
        "One sequence on up to 1,024 ranks: an allgather a step",
        "mpi/rows over one rank, B = 1, I = O = 256: simulated; dashed: by formula. Dotted: as many times as ranks.\n"
        "Computed from the peaks of one core of the machine below, and from what the networks are assumed to do.",
        tell.peaks_corner(name), [2.3] * len(SCALED), gap=0.85, head=0.28, right=1.95,
    )  # fmt: skip
    found = scaling(name)
    for ax, H in zip(panels, SCALED, strict=True):
        series: dict[str, tuple[plots.Look, Points]] = {}
        for colour, marker, network in zip(NETWORK_COLOURS, "osDX", simulate.NETWORKS, strict=True):
            lines = found.get((H, network), {})
            series[network] = plots.Look(colour, marker), lines.get("simulated", {})
            series[f"{network}, formula"] = plots.Look(colour, ""), lines.get("formula", {})
        draw(ax, series, "ranks", "×", [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000])
        if found:
            ax.plot(POWERS[1:], POWERS[1:], color=plots.QUIET, ls=(0, (1, 1.5)), lw=1.2, scaley=False)
        ax.set_title(f"H = {H:,}: W has {4 * H * H / 2**20:,.0f} MB", loc="left", size=9.5, weight="bold")
        ax.set_ylabel("over one rank")
    return figure


THROUGHPUT = Work(T=512, B=256, I=1024, H=1024, O=1024, layers=8)


@cache
def shares(name: str, network: str = "InfiniBand, 400 Gb/s") -> dict[str, dict[int, float]]:
    """method -> speed-up over one rank by ranks: a stack of layers and many sequences, so that all three have work."""
    costs = tell.cost_model(name)
    if costs is None:
        return {}
    one = model_ranks.batch(costs, THROUGHPUT, 1)
    wire = simulate.NETWORKS[network]
    return {
        method: {n: one / took for n, took in simulate.curve(costs, method, THROUGHPUT, POWERS[1:], wire).items()}
        for method in ("mpi/rows", "mpi/batch", "mpi/pipeline")
    }


@plots.styled
def three_ways(name: str, network: str = "InfiniBand, 400 Gb/s") -> Figure:
    """The three strategies on up to 1,024 ranks, where there are layers and sequences to share out."""
    work = THROUGHPUT
    figure, (ax,) = plots.page(
        "Allgather a step, pipeline, or batch",
        f"Simulated speed-up over one rank, H = I = O = {work.H:,}, {work.layers} layers, B = {work.B}, T = {work.T}, "
        f"on {network}.\nDotted: as many times as ranks.",
        tell.peaks_corner(name), [2.8], right=1.6,
    )  # fmt: skip
    lines = shares(name, network)
    draw(ax, {method: (plots.look(method), points) for method, points in lines.items()}, "ranks", "×",
         [1, 3, 10, 30, 100, 300, 1000])  # fmt: skip
    if lines:
        ax.plot(POWERS[1:], POWERS[1:], color=plots.QUIET, ls=(0, (1, 1.5)), lw=1.2, scaley=False)
    ax.set_ylabel("over one rank")
    return figure


# --- What the chapter says -----------------------------------------------------------------------------------------


def _missing() -> str:
    why = registry.find("mpi/rows").why_not
    return f" (mpi {why}; then `make mpi`)" if why else " (`make mpi` measures it)"


def no_verdict(*rest: str) -> Markdown:
    return tell.say(tell.NOT_MEASURED + _missing(), *rest)


def messages_verdict(name: str) -> Markdown:
    """What a message costs between two ranks of one machine, and how the ways of exchanging a state compare."""
    found = messages(name)
    fared = [
        "a small message takes less than 2 µs",
        "the window is the cheapest way to exchange a state of 1,024 floats",
    ]
    if not found:
        return no_verdict(*(tell.outcome(text, {}) for text in fared))
    wire = link(found)
    costs = {kind: dict(map(tuple, points))[1024] for kind, points in found["exchange"]["2"].items()}
    least = min(costs, key=costs.__getitem__)
    outcomes = [
        {plots.duration(wire.alpha): wire.alpha < 2e-6},
        {f"{kind} ({plots.duration(seconds)})": least == "window" or kind != least for kind, seconds in costs.items()},
    ]
    return tell.say(
        f"On {name}, with {found['library']}, a message between two ranks takes {plots.duration(wire.alpha)} and "
        f"{plots.plain(round(1e-9 / wire.beta, 1))} GB/s beyond, so no more than {1 / wire.alpha / 1e6:.2g} million "
        f"messages pass in a second; an exchange of 1,024 floats takes "
        + ", ".join(f"{plots.duration(seconds)} by {kind}" for kind, seconds in costs.items()),
        *(tell.outcome(text, outcome) for text, outcome in zip(fared, outcomes, strict=True)),
    )


def _against(frame: pd.DataFrame, strategy: str) -> tuple[dict[int, float], dict[int, float], str]:
    """Two ranks over one rank, and over the twin on two threads, along the strategy's axis."""
    axis, lines = speeds(frame, strategy)
    two = {int(x): value.value for x, value in lines.get("2 ranks", {}).items()}
    twin = next((points for name, points in lines.items() if name.startswith("threads/")), {})
    return two, {x: two[x] / twin[x].value for x in two if x in twin}, axis


def verdict(frame: pd.DataFrame, strategy: str) -> Markdown:
    """How a strategy fares on two ranks: over one rank, and beside its twin on threads."""
    over_one, beside, axis = _against(frame, strategy)
    twin = TWINS[f"mpi/{strategy}"]
    letter = "layers" if axis == "layers" else axis
    predictions = {
        "rows": [
            ("two ranks are at least 1.5 times as fast as one from H = 1,024 on", over_one, lambda r: r >= 1.5, 1024),
            (f"and there not more than 1.4 times as slow as {twin}", beside, lambda r: r >= 1 / 1.4, 1024),
        ],
        "batch": [(f"from B = 64 on, within 1.1 times the time of {twin}", beside, lambda r: r >= 1 / 1.1, 64)],
        "pipeline": [
            ("with 4 layers, at least 1.4 times as fast as one rank", over_one, lambda r: r >= 1.4, 4),
            (f"and within 1.3 times the time of {twin}", beside, lambda r: r >= 1 / 1.3, 4),
        ],
    }[strategy]
    fared = [tell.fared_at(text, letter, values, holds, least=least) for text, values, holds, least in predictions]
    if not over_one:
        return no_verdict(*fared)
    best = max(over_one, key=over_one.__getitem__)
    lag = f"; there it takes {plots.ratio(1 / beside[best])} times as long as {twin}" if best in beside else ""
    return tell.say(
        f"On {frame['machine'].iloc[0]}, mpi/{strategy} on two ranks is at best {tell.as_times(over_one[best])} as "
        f"fast as on one (at {letter} = {best:,}){lag}",
        *fared,
    )


def model_verdict(table: pd.DataFrame) -> Markdown:
    """Whether the model predicts what two ranks take."""
    two = table[table["threads"] == 2]
    text = "every time on two ranks is predicted within 30%"
    if two.empty:
        return no_verdict(tell.outcome(text, {}))
    off = two["predicted"] / two["measured"]
    outcomes = {
        f"{row.method} at {tell.label(row._asdict())} ({plots.ratio(ratio)}×)": abs(ratio - 1) <= 0.3
        for row, ratio in zip(two.itertuples(), off, strict=True)
    }
    more = table[table["threads"] > 2]
    crowd = (more["predicted"] / more["measured"] - 1).abs()
    turns = f"; on 4 ranks, which take turns on the cores, by {plots.percent(crowd.median())}" if len(more) else ""
    return tell.say(
        f"On {two['machine'].iloc[0]}, the model is off by {plots.percent((off - 1).abs().median())} in the median "
        f"over {len(two)} points on two ranks, {sum(outcomes.values())} of them within 30%{turns}",
        tell.outcome(text, outcomes),
    )


def crossings(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a point at which `rows` and another strategy ran on two ranks: times as fast as rows, measured and said."""
    table, found = predictions(frame, name).query("threads == 2"), []
    for strategy, axis in (("batch", "B"), ("pipeline", "layers")):
        for H, T, B, layers in LINES[strategy]:
            here = table[(table["H"] == H) & (table["T"] == T) & (table["B"] == B) & (table["layers"] == layers)]
            here = here.set_index("method")
            if {f"mpi/{strategy}", "mpi/rows"} <= set(here.index):
                other, rows = here.loc[f"mpi/{strategy}"], here.loc["mpi/rows"]
                ratios = (rows[column] / other[column] for column in ("measured", "predicted"))
                found.append((f"mpi/{strategy}", f"{axis} = {B if axis == 'B' else layers}", *ratios))
    columns = ["strategy", "at", "times as fast as mpi/rows, measured", "predicted"]
    return pd.DataFrame(found, columns=columns).round(2)


def crossing_verdict(table: pd.DataFrame) -> Markdown:
    """From where on another strategy is ahead of rows, on two ranks, and whether the model says the same."""
    text = "the model names the faster of the two wherever one is 1.25 times as fast as the other"
    if table.empty:
        return no_verdict(tell.outcome(text, {}))
    _, _, measured, predicted = table.columns
    clear = table[np.abs(np.log(table[measured])) > np.log(1.25)]
    outcomes = {
        f"{row.strategy}, {row.at} ({plots.ratio(row[3])} and {plots.ratio(row[4])})": (row[3] > 1) == (row[4] > 1)
        for row in clear.itertuples()
    }
    parts = []
    for strategy, group in table.groupby("strategy", sort=False):
        said = []
        for column in (measured, predicted):
            values = list(group[column])
            first = next((i for i in range(len(values)) if all(value > 1 for value in values[i:])), None)
            said.append("nowhere for good" if first is None else f"from {group['at'].iloc[first]} on")
        parts.append(f"{strategy} is ahead of mpi/rows {said[0]} (the model says {said[1]})")
    return tell.say(f"On two ranks {'; '.join(parts)}", tell.outcome(text, outcomes))


def networks_table() -> Markdown:
    """The networks as they are assumed."""
    rows = [
        (network, plots.duration(wire.alpha), f"{1e-9 / wire.beta:.3g} GB/s", plots.duration(wire.busy))
        for network, wire in simulate.NETWORKS.items()
    ]
    return tell.table_of(("network", "alpha", "1 / beta", "the sender is busy"), rows)


def simulation_check(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a measured point on 2 and 4 ranks: measured and simulated milliseconds of a call, and their ratio.

    Two ranks have a core each, and the link that ping-pong measured, or in `rows`, whose states lie in a window, the
    exchange there. More ranks than cores take turns: computing takes as many times as long, and a message as long as
    an exchange was measured to take on as many ranks.
    """
    costs, found = tell.cost_model(name), messages(name)
    columns = ["method", "point", "ranks", "measured (ms)", "simulated (ms)", "simulated / measured"]
    if costs is None or not found:
        return pd.DataFrame(columns=columns)
    table = []
    for row in predictions(frame, name).itertuples():
        ranks = int(row.threads)
        if ranks == 1:
            continue
        work = Work(row.T, row.B, row.I, row.H, row.O, row.layers)
        turns, wire = max(1.0, ranks / model_ranks.cores(costs)), link(found)
        if turns == 1 and row.method == "mpi/rows":
            wire = window_link(found, ranks)
        elif turns > 1:
            wire = Link(exchange(found, "window", ranks)(ranks, 64), wire.beta)
        computing = simulate.SIMULATED[row.method](costs, work, ranks, Link(0.0, 0.0), jitter=0.0)
        sending = simulate.SIMULATED[row.method](costs, work, ranks, wire) - computing
        seconds = found["call"][str(ranks)] + turns * computing + sending
        table.append((row.method, tell.label(row._asdict()), ranks, 1e3 * row.measured, 1e3 * seconds,
                      seconds / row.measured))  # fmt: skip
    return pd.DataFrame(table, columns=columns).round(3)


def simulation_verdict(table: pd.DataFrame) -> Markdown:
    """How near the simulation comes to what was measured."""
    text = "the simulation is within 30% of every measured time on 2 ranks, and within a factor of 2 on 4"
    if table.empty:
        return no_verdict(tell.outcome(text, {}))
    ratios = table["simulated / measured"]
    bounds = np.where(table["ranks"] == 2, 1.3, 2.0)
    outcomes = {
        f"{row.method} at {row.point} on {row.ranks} ({plots.ratio(ratio)}×)": 1 / bound <= ratio <= bound
        for row, ratio, bound in zip(table.itertuples(), ratios, bounds, strict=True)
    }
    medians = [f"{plots.ratio(group.median())} times what was measured on {ranks}"
               for ranks, group in ratios.groupby(table["ranks"])]  # fmt: skip
    return tell.say(f"The simulation says, in the median, {' and '.join(medians)} ranks", tell.outcome(text, outcomes))


def scale_verdict(name: str) -> Markdown:
    """How far one sequence scales on each network."""
    found = scaling(name)
    texts = [
        "with H = 4,096 no network brings 16 times one rank",
        "Ethernet with TCP is never faster than one rank at H = 4,096",
        "with H = 16,384 InfiniBand brings at least 32 times one rank",
    ]
    if not found:
        return no_verdict(*(tell.outcome(text, {}) for text in texts))
    best = {key: max(lines["simulated"].items(), key=lambda item: item[1]) for key, lines in found.items()}
    tcp, fast = list(simulate.NETWORKS)[-1], list(simulate.NETWORKS)[1]
    outcomes = [
        {f"{network} ({tell.as_times(best[SCALED[0], network][1])})": best[SCALED[0], network][1] < 16
         for network in simulate.NETWORKS},
        {f"{best[SCALED[0], tcp][0]} ranks ({tell.as_times(best[SCALED[0], tcp][1])})": best[SCALED[0], tcp][1] <= 1},
        {tell.as_times(best[SCALED[1], fast][1]): best[SCALED[1], fast][1] >= 32},
    ]  # fmt: skip
    parts = [
        f"{network} {tell.as_times(best[H, network][1])} (on {best[H, network][0]:,} ranks)"
        for H in SCALED[:1] for network in simulate.NETWORKS
    ]  # fmt: skip
    return tell.say(
        f"Computed from the core of {name}: one sequence at H = {SCALED[0]:,} gains at most, over one rank, "
        f"{', '.join(parts)}",
        *(tell.outcome(text, outcome) for text, outcome in zip(texts, outcomes, strict=True)),
    )


def ways_verdict(name: str) -> Markdown:
    """Which strategy to take where there are layers and sequences to share out."""
    lines = shares(name)
    texts = [
        "batch is the best of the three up to as many ranks as sequences",
        f"the pipeline ends at {2 * THROUGHPUT.layers + 1} ranks, one a stage",
    ]
    if not lines:
        return no_verdict(*(tell.outcome(text, {}) for text in texts))
    leader = {n: max(lines, key=lambda method: lines[method][n]) for n in POWERS[1:]}
    best = {method: max(points.items(), key=lambda item: item[1]) for method, points in lines.items()}
    outcomes = [
        {f"{n} ranks ({leader[n]})": leader[n] == "mpi/batch" for n in POWERS[1:] if n <= THROUGHPUT.B},
        {f"{n} ranks": lines["mpi/pipeline"][n] <= 1.02 * lines["mpi/pipeline"][32] for n in POWERS[6:]},
    ]
    parts = [f"{method} {tell.as_times(value)} (on {n:,} ranks)" for method, (n, value) in best.items()]
    return tell.say(
        f"Computed from the core of {name}: with {THROUGHPUT.B} sequences and {THROUGHPUT.layers} layers the three "
        f"reach, over one rank, {', '.join(parts)}",
        *(tell.outcome(text, outcome) for text, outcome in zip(texts, outcomes, strict=True)),
    )


def live(ranks: int, H: int, T: int = 128, B: int = 1) -> pd.DataFrame | Markdown:
    """All three strategies here and now on ranks started for it, checked like every timed point."""
    missing = registry.find("mpi/rows").why_not
    if missing:
        return Markdown(f"mpi {missing}. Nothing is run here.")
    net, x = rnnpar.RNN.random(H, H, H), np.random.default_rng(1).standard_normal((T, B, H), dtype=np.float32)
    wanted, table = rnnpar.reference(net, x)[0], []
    for method in tell.family("mpi"):
        with warnings.catch_warnings(), rnnpar.prepare(net, method, ranks=ranks) as run:
            warnings.simplefilter("ignore", UserWarning)
            seconds, y = min((run.timed(x)[:2] for _ in range(5)), key=lambda pair: pair[0])
            table.append({"method": method, "time a step (µs)": round(1e6 * seconds / T, 2),
                          "error, millionths": round(1e6 * relative_error(y, wanted), 2),
                          "exchange": run.info["exchange"]})  # fmt: skip
    return pd.DataFrame(table).set_index("method")
