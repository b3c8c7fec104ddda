"""Chapter 03 in figures and words: what sharing the work among threads brings, and what meeting costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter

import rnnpar
from rnnpar import machine, registry
from rnnpar.advice import cautions
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.study import corpus, measure, plots, tell
from rnnpar.study.measure import BOUND
from rnnpar.study.plots import BLACK, BLUE, GREEN, INK, ORANGE, PINK, QUIET, RED, SKY
from rnnpar.study.tell import (
    NOT_MEASURED,
    as_times,
    compared_with,
    fared_at,
    on,
    outcome,
    ratios_of,
    say,
    table_of,
)
from rnnpar.words import duration, percent, plain, ratio, short

MEETINGS = {
    "barrier": "a barrier of flags",
    "counter_barrier": "a barrier with one counter",
    "launch": "a new parallel region",
}
HALVED = ("serial/compiled", "threads/rows", "threads/batch", "threads/wavefront")  # have the option dtype="bfloat16"
SCALED = ((256, 128, 1), (1024, 128, 1), (256, 32, 64))  # H, T, B at which threads are compared
REPORTED = {"origin-large": 4.0, "origin-small": 4.0}  # the origin's report, over its own one-thread baselines
BITS = 1e-4  # how far a method's bits per character may be from the oracle's
SLIDES = (1.06, 1.19)  # the origin's slides: OpenMP without the approximation that changes the answer

# --- figures ---------------------------------------------------------------------------------------------------------


@plots.styled
def origin_figure(frame: pd.DataFrame, over: str = "serial/naive") -> Figure:
    """The origin's two workloads: what it reported, and every method here over `over`."""
    rows = plots.all_cores(plots.steady(frame))
    rows = rows[rows["workload"].isin(REPORTED)]
    times, missing = plots.medians(rows, ["workload", "method"]), plots.gaps(rows, ["workload", "method"])
    methods = plots.in_order(rows["method"].unique()) or [over]
    names = ["the origin's report", "the origin's slides", *methods]
    figure, panels = plots.page(
        "The origin's two workloads",
        f"Ours: times as fast as {over}, medians and 95% bootstrap intervals. The origin's: over its own\n"
        "one-thread baselines, on its own machine; its slides: OpenMP without the approximation.",
        plots.corner_of(frame, rows), [0.27 * len(names) + 0.05] * 2, left=1.6, right=0.3, gap=0.68, head=0.32,
        foot=0.6,
    )  # fmt: skip
    speeds = {key: times[key[0], over].over(value) for key, value in times.items() if (key[0], over) in times}
    highest = max([5.0, *(value.high for value in speeds.values())])
    lowest = min([0.8, *(value.low for value in speeds.values())])
    for ax, (workload, reported) in zip(panels, REPORTED.items(), strict=True):
        sizes = rows[rows["workload"] == workload]
        text = (
            f"T = {sizes['T'].iloc[0]:,}, H = {sizes['H'].iloc[0]:,}, O = {sizes['O'].iloc[0]:,}" if len(sizes) else ""
        )
        ax.set_title(f"{workload}   {text}", loc="left", size=9.5, weight="bold")
        ax.set(ylim=(len(names) - 0.4, -0.6))
        ax.set_yticks(range(len(names)), names, size=9)
        low, high = lowest / 1.15, highest * max(1.25, (highest / lowest) ** 0.12)
        plots.log_axis(ax.xaxis, low, high, suffix="×")
        ax.set_xlim(low, high)
        ax.grid(False, axis="y")
        ax.axvline(1, color=QUIET, lw=0.8)
        ax.barh(0, reported - 1, left=1, height=0.55, fc="white", ec=QUIET, hatch="////", lw=0.8)
        plots.value_label(ax, reported, 0, f"about {reported:g}×", QUIET)
        ax.plot(SLIDES, [1, 1], color=QUIET, lw=1.4, marker="|", ms=9)
        plots.value_label(ax, SLIDES[1], 1, " and ".join(f"{value:g}×" for value in SLIDES), QUIET)
        for row, method in enumerate(methods, 2):
            key, (colour, marker) = (workload, method), plots.look(method)
            if key in speeds:
                value = speeds[key]
                ax.plot([1, value.value], [row, row], color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
                ax.plot([value.low, value.high], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
                ax.plot(value.value, row, color=colour, marker=marker, ms=7.5, mec="white", mew=0.6)
                plots.value_label(ax, max(value.high, 1.0), row, f"{ratio(value.value)}×", colour)
            else:
                why = plots.STATUS.get(missing.get(key, ""), "not measured")
                ax.plot(1, row, mfc="white", mec=colour, marker=marker, ms=7)
                plots.value_label(
                    ax, 1.0, row, why if key in missing or key not in times else f"{over} not measured", QUIET
                )
    return figure


@plots.styled
def bits_figure(table: pd.DataFrame, machine: str = "", date: str = "") -> Figure:
    """Bits per character and error to the oracle by method on the trained networks.

    `table` has a row a network and method: network, method, bits, oracle (the oracle's bits), error (relative), and
    status; where the status is not ok, bits and error are not drawn.
    """
    methods = plots.in_order(table["method"].unique())
    networks = list(dict.fromkeys(table["network"]))
    corner = " · ".join(filter(None, [machine, date]))
    figure, (left, right) = _beside(
        "Bits per character, and error to the oracle",
        "Left: bits per character on held-out text, the dashed lines are the float64 oracle's. Right: relative error\n"
        "to the oracle in millionths, against the bound that every timed point must keep.",
        corner, 0.33 * max(len(methods), 3) + 0.1, left=1.7,
    )  # fmt: skip
    if not methods:
        plots.nothing(left)
        plots.nothing(right)
        return figure
    good = table[table["status"] == "ok"]
    colours = dict(zip(networks, (BLUE, RED, GREEN, ORANGE, PINK, SKY) * 3, strict=False))
    markers = dict(zip(networks, "osDv^P" * 3, strict=False))
    oracle = table.groupby("network")["oracle"].first().dropna()
    low, high = (oracle.min(), oracle.max()) if len(oracle) else (0.0, 1.0)
    room = max(high - low, 0.02) * 0.25
    left.set(xlim=(low - room, high + room), xlabel="bits per character")
    places = plots.spread_labels(
        [(oracle.get(name, low) - low + room) / (high - low + 2 * room) for name in networks], 0.27, 0.1, 0.9
    )
    for name, place in zip(networks, places, strict=True):
        if name in oracle:
            left.axvline(oracle[name], color=colours[name], ls=(0, (4, 2)), lw=1.1)
            left.annotate(f"{name}\n{oracle[name]:.4f}", (oracle[name], 1), (place, 6), size=8, ha="center",
                          va="bottom", color=plots.ink_for(colours[name]), xycoords=("data", "axes fraction"),
                          textcoords=("axes fraction", "offset points"),
                          arrowprops=dict(arrowstyle="-", color=colours[name], lw=0.8, alpha=0.6))  # fmt: skip
    errors = 1e6 * good["error"].clip(lower=1e-9)
    least, most = min([0.03, *errors]) / 1.6, max([BOUND * 1e6 * 2, *errors]) * 1.3
    plots.log_axis(right.xaxis, least, most, (0.001, 0.01, 0.1, 1, 10, 100, 1000))
    right.set(xlim=(least, most), xlabel="error to the oracle (millionths)")
    right.axvline(BOUND * 1e6, color=INK, lw=1.1)
    right.annotate(f"bound\n{BOUND * 1e6:g}", (BOUND * 1e6, 1), (0, 4), xycoords=("data", "axes fraction"),
                   textcoords="offset points", size=8, ha="center")  # fmt: skip
    shift = np.linspace(-0.2, 0.2, len(networks)) if len(networks) > 1 else [0.0]
    for row, method in enumerate(methods):
        for dy, name in zip(shift, networks, strict=True):
            here = good[(good["method"] == method) & (good["network"] == name)]
            style = dict(color=colours[name], marker=markers[name], ms=6, mec="white", mew=0.5, ls="")
            left.plot(here["bits"], [row + dy] * len(here), **style)
            right.plot(1e6 * here["error"].clip(lower=1e-9), [row + dy] * len(here), **style)
        bad = table[(table["method"] == method) & (table["status"] != "ok")]
        if len(bad):
            text = ", ".join(dict.fromkeys(plots.STATUS.get(status, str(status)) for status in bad["status"]))
            which = "" if len(bad) == len(networks) else f"{', '.join(bad['network'])}: "
            low = 0.36 if which else 0.0  # below the markers of the other networks
            right.annotate(which + text, (0, row + low), (4, 0), xycoords=("axes fraction", "data"),
                           textcoords="offset points", va="center", size=8, color=QUIET)  # fmt: skip
    for ax in (left, right):
        ax.set(ylim=(len(methods) - 0.5, -0.5))
        ax.set_yticks(range(len(methods)), methods if ax is left else [""] * len(methods), size=9)
        ax.tick_params(axis="y", length=0)
    return figure


def _beside(
    title: str, subtitle: str, corner: str, inches: float, left: float = 1.35
) -> tuple[Figure, tuple[Axes, Axes]]:
    """A page with two panels side by side that share their rows, and room above them for names."""
    figure, (first, spare) = plots.page(title, subtitle, corner, [0.3, inches], left=left, right=0.2, gap=0.0)
    box = spare.get_position()
    half = (box.width - 0.25 / plots.WIDTH) / 2
    spare.remove()
    first.set_position((box.x0, box.y0, half, box.height))
    return figure, (first, figure.add_axes((box.x0 + half + 0.25 / plots.WIDTH, box.y0, half, box.height)))


@plots.styled
def thread_scaling_figure(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> Figure:
    """Speed-up over one thread of the same method, and efficiency, against threads: a row of panels a shape."""
    rows = plots.square(frame).query("layers == 1")
    if methods is not None:
        rows = rows[rows["method"].isin(methods)]
    by = ["H", "T", "B", "method", "threads"]
    rows = rows[rows.groupby(by[:-1])["threads"].transform("nunique") > 1]
    times, missing = plots.medians(rows, by), plots.gaps(rows, by)
    measured = sorted({key[:3] for key in [*times, *missing]})
    shapes = [shape for shape in SCALED if shape in measured] or measured[: len(SCALED)] or [(0, 0, 0)]
    figure, panels = plots.page(
        "What more threads bring",
        "Left: speed-up over the same method on one thread. Right: efficiency, the same per thread.\n"
        f"Dotted: the ideal. {plots.BANDS}",
        plots.corner_of(frame, rows), [1.75] * len(shapes), columns=2, head=0.32, left=0.75, right=1.2,
    )  # fmt: skip
    for row, shape in enumerate(shapes):
        left, right = panels[2 * row : 2 * row + 2]
        here = {key[3:]: value for key, value in times.items() if key[:3] == shape}
        speeds: dict[str, dict[float, plots.Median]] = {}
        for (method, threads), value in here.items():
            if (method, 1) in here:
                speeds.setdefault(method, {})[threads] = here[method, 1].over(value)
        found = {key[3:]: why for key, why in missing.items() if key[:3] == shape}
        plots.draw_lines(left, speeds, found, plots.AXES["threads"], suffix="×")
        _efficiency(right, speeds)
        if speeds:
            text = ", ".join(f"{name} = {value:,}" for name, value in zip("HTB", shape, strict=True))
            left.set_title(text, loc="left", size=9.5, weight="bold")
            left.set_ylabel("speed-up")
            ideal = left.get_xlim()
            left.plot(ideal, ideal, color=QUIET, lw=1.2, ls=(0, (1, 1.5)), scalex=False, scaley=False)
    return figure


def _efficiency(ax: Axes, speeds: Mapping[str, Mapping[float, plots.Median]]) -> None:
    """Speed-ups over their number of threads, in percent."""
    if not speeds:
        plots.nothing(ax, "")
        return
    shares = {method: {n: value.over(n / 100) for n, value in points.items()} for method, points in speeds.items()}
    plots.size_axis(ax, sorted({n for points in shares.values() for n in points}), plots.AXES["threads"])
    ends = [plots.draw_curve(ax, method, shares[method]) for method in plots.in_order(shares)]
    highest = max(105.0, *(1.03 * value.high for points in shares.values() for value in points.values()))
    ticks = range(0, int(highest) + 1, 50)
    ax.set(ylim=(0, highest), ylabel="efficiency", yticks=ticks)
    ax.set_yticklabels([f"{tick}%" for tick in ticks])
    ax.axhline(100, color=QUIET, ls=(0, (1, 1.5)), lw=1.2)
    plots.label_ends(ax, [(x, y, percent(y / 100), colour) for x, y, _, colour in ends])


@plots.styled
def meetings_figure(
    costs: Mapping[str, Mapping[int, float]], steps: Mapping[str, float], corner: str, threads: Sequence[int] = ()
) -> Figure:
    """Seconds of a meeting by kind and by threads, on a log axis; `steps` are times of a step to hold beside them."""
    rows = [(kind, n) for kind, by in costs.items() for n in sorted(by) if not threads or n in threads]
    figure, (ax,) = plots.page(
        "What it costs to meet",
        "Seconds of one meeting of so many threads, each kind by itself. Dotted: a whole step of serial/compiled\n"
        "with one sequence, I = O = H, which the meeting has to be small against.",
        corner, [0.3 * max(len(rows), 3) + 0.1], left=2.55, right=0.75, head=0.34, foot=0.62,
    )  # fmt: skip
    values = [costs[kind][n] for kind, n in rows]
    if not values:
        plots.nothing(ax, "the peaks of this machine have not been measured")
        return figure
    low, high = min([*values, *steps.values()]) / 2, max([*values, *steps.values()]) * 2
    tens = [10.0**k for k in range(-9, 1)]
    plots.log_axis(ax.xaxis, low, high, tens)
    ax.xaxis.set_major_formatter(FixedFormatter([duration(t) for t in tens if low * 0.999 <= t <= high * 1.001]))
    ax.set(xlim=(low, high), ylim=(len(rows) - 0.45, -0.55))
    ax.grid(False, axis="y")
    kinds = list(costs)
    for row, (kind, n) in enumerate(rows):
        colour = (BLUE, GREEN, ORANGE, RED, PINK, BLACK)[kinds.index(kind) % 6]
        ax.plot([low, costs[kind][n]], [row, row], color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
        ax.plot(costs[kind][n], row, color=colour, marker="o", ms=7.5, mec="white", mew=0.6)
        plots.value_label(ax, costs[kind][n], row, duration(costs[kind][n]), colour)
        ax.texts[-1].set_bbox(dict(fc="white", ec="none", pad=1))  # a dotted line may pass behind it
    into = ax.transData + ax.transAxes.inverted()
    wide = ax.get_position().width * plots.WIDTH
    places = plots.spread_labels([into.transform((seconds, 0))[0] for seconds in steps.values()], 0.62 / wide, 0.0, 1.0)
    for (text, seconds), place in zip(steps.items(), places, strict=True):
        ax.axvline(seconds, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, zorder=1)
        ax.annotate(text, (seconds, 1), (place, 1.07), xycoords=("data", "axes fraction"), textcoords="axes fraction",
                    size=8, ha="center", color=QUIET,
                    arrowprops=dict(arrowstyle="-", color=QUIET, lw=0.6, alpha=0.6))  # fmt: skip
    ax.set_yticks(range(len(rows)), [f"{kind}, {n} threads" for kind, n in rows], size=9)
    ax.tick_params(axis="y", length=0)
    return figure


@plots.styled
def rows_or_batch_figure(frame: pd.DataFrame, pair: tuple[str, str] = ("threads/rows", "threads/batch")) -> Figure:
    """Two ways to share, and where they cross: over B at one H, and over H and B."""
    first, second = pair
    rows, fixed = plots.along(frame, "B", pair)
    table = plots.over_both(frame, pair)
    heights, widths = sorted(set(table["H"]), reverse=True), sorted(set(table["B"]))
    figure, (ax, grid) = plots.page(
        f"{first} or {second}",
        f"Above: {plots.says_of(fixed, rows, 'B')}. {plots.BANDS}\nBelow: how many times as fast {second} is; T = "
        f"{table['T'].iloc[0] if len(table) else fixed['T']:,}.",
        plots.corner_of(frame, pd.concat([rows, table])), [2.5, max(0.36 * len(heights), 1.0)], head=0.14,
    )  # fmt: skip
    lines: dict[str, dict[float, plots.Median]] = {}
    for (method, B), value in plots.medians(rows, ["method", "B"]).items():
        lines.setdefault(method, {})[B] = value.over(fixed["T"] * 1e-6)
    plots.draw_lines(ax, lines, plots.gaps(rows, ["method", "B"]), plots.AXES["B"])
    ax.set_ylabel("time a step (µs), all B sequences" if lines else "")
    found = crossing({B: lines[first][B].value / lines[second][B].value for B in lines.get(first, {})
                      if B in lines.get(second, {})})  # fmt: skip
    if found:
        ax.axvline(found, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, zorder=1)
        ax.annotate(f"level from B = {short(found)} on", (found, 0), (4, 5), xycoords=("data", "axes fraction"),
                    textcoords="offset points", size=8, color=QUIET)  # fmt: skip
    times = plots.medians(table, ["H", "B", "method"])
    leads = {(H, B): times[H, B, first].value / value.value for (H, B, method), value in times.items()
             if method == second and (H, B, first) in times}  # fmt: skip
    _lead_map(grid, heights, widths, leads, (plots.look(first).colour, plots.look(second).colour))
    return figure


def crossing(ratios: Mapping[float, float], level: float = 0.97) -> float | None:
    """The size from which on a ratio stays above `level`; where it passes 1 right there, that, by logarithms.

    None where it is so from the first size on, or at no size.
    """
    sizes = sorted(ratios)
    low, high = next(((low, high) for low, high in reversed(list(pairwise(sizes))) if ratios[low] <= level), (None, 0))
    if low is None or ratios[high] <= level:
        return None
    if ratios[high] <= 1:
        return float(high)
    part = -np.log(ratios[low]) / (np.log(ratios[high]) - np.log(ratios[low]))
    return float(low * (high / low) ** part)


def _lead_map(
    ax: Axes, heights: Sequence[int], widths: Sequence[int], leads: Mapping[tuple[int, int], float],
    colours: tuple[str, str],
) -> None:  # fmt: skip
    """Cells that say by which factor one of two is ahead, in that one's colour, the deeper the larger the lead."""
    if not leads:
        plots.nothing(ax)
        return
    for row, column in np.ndindex(len(heights), len(widths)):
        lead = leads.get((heights[row], widths[column]))
        if lead is None:
            ax.text(column + 0.5, row + 0.5, "no time", ha="center", va="center", size=8, color=QUIET)
            continue
        depth = 0.0 if 0.97 <= lead <= 1.03 else min(0.75, 0.12 + 0.6 * abs(np.log2(lead)))
        tint = 1 - depth * (1 - np.array(to_rgb(colours[lead > 1])))
        ax.add_patch(Rectangle((column + 0.03, row + 0.05), 0.94, 0.9, fc=tint if depth else "#f3f4f5", lw=0))
        ax.text(column + 0.5, row + 0.5, f"{ratio(lead)}×", ha="center", va="center", size=8)
    ax.set(xlim=(0, len(widths)), ylim=(len(heights), 0), xlabel=plots.AXES["B"], ylabel=plots.AXES["H"])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(len(widths)) + 0.5, [plain(B) for B in widths])
    ax.set_yticks(np.arange(len(heights)) + 0.5, [plain(H) for H in heights])
    ax.tick_params(length=0)


@plots.styled
def pipeline_figure(frame: pd.DataFrame, ideals: Mapping[str, Mapping[int, float]], threads: int) -> Figure:
    """threads/wavefront over serial/compiled against layers, beside what a pipeline could bring at most."""
    rows, fixed = plots.along(frame, "layers", ["serial/compiled", "threads/wavefront"])
    times = plots.medians(rows, ["method", "layers"])
    speeds: dict[float, plots.Median] = {
        layers: times["serial/compiled", layers].over(value)
        for (method, layers), value in times.items()
        if method == "threads/wavefront" and ("serial/compiled", layers) in times
    }
    figure, (ax,) = plots.page(
        "The pipeline, and what it could bring at most",
        f"Speed-up over serial/compiled. {plots.says_of(fixed, rows, 'layers')}.\n{plots.BANDS}",
        plots.corner_of(frame, rows), [2.7], right=2.1,
    )  # fmt: skip
    if not speeds:
        plots.nothing(ax)
        return figure
    sizes = sorted({*speeds, *(layers for line in ideals.values() for layers in line)})
    plots.size_axis(ax, sizes, plots.AXES["layers"])
    tops = [value for line in ideals.values() for value in line.values()]
    highest = max([threads, *tops, *(value.high for value in speeds.values())])
    low, high = min([0.9, *(value.low / 1.1 for value in speeds.values())]), 1.15 * highest
    plots.log_axis(ax.yaxis, low, high, suffix="×")
    ax.set(ylim=(low, high), ylabel="times as fast as serial/compiled")
    ends = [plots.draw_curve(ax, "threads/wavefront", speeds)]
    for index, (name, line) in enumerate(ideals.items()):
        colour = (BLUE, BLACK, GREEN)[index % 3]
        ax.plot(list(line), list(line.values()), color=colour, lw=1.3, ls=(0, (4, 2)), zorder=2)
        ends.append((max(line), line[max(line)], name, colour))
    ax.axhline(threads, color=QUIET, lw=1.2, ls=(0, (1, 1.5)), zorder=1)
    ends.append((sizes[-1], threads, f"{threads} threads", QUIET))
    plots.label_ends(ax, ends)
    return figure


@plots.styled
def weight_bytes_figure(
    frame: pd.DataFrame,
    caches: Mapping[str, int],
    peaks: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    methods: Sequence[str] = ("serial/compiled", "threads/rows"),
) -> Figure:
    """Bytes of W a second by method against H, the sizes at which W fills a cache, and `peaks` (H, bytes a second)."""
    rows, fixed = plots.along(frame, "H", methods)
    lines: dict[str, dict[float, plots.Median]] = {}
    for (method, H), value in plots.medians(rows, ["method", "H"]).items():
        work = 4e-9 * H * H * fixed["T"]
        lines.setdefault(method, {})[H] = plots.Median(work / value.value, work / value.resampled)
    figure, (ax,) = plots.page(
        "How fast W is read",
        f"{plots.says_of(fixed, rows, 'H')}. Bytes of W over the time of a whole step, U x and V h "
        "included.\nDashed: W h alone, in the machine's peaks. Dotted: where W fills one core's cache of that level.",
        plots.corner_of(frame, rows), [3.1], head=0.3, right=1.6,
    )  # fmt: skip
    shown = {name: (list(xs), [1e-9 * y for y in ys]) for name, (xs, ys) in (peaks or {}).items()}
    plots.draw_lines(ax, lines, plots.gaps(rows, ["method", "H"]), plots.AXES["H"], predicted=shown)
    ax.set_ylabel("W read (GB/s)" if lines else "")
    if lines:
        least, most = ax.get_xlim()
        for level, size in caches.items():
            if least < (size / 4) ** 0.5 < most:
                at = (size / 4) ** 0.5
                ax.axvline(at, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, zorder=1)
                ax.annotate(f"W = {level}", (at, 1), (0, 4), xycoords=("data", "axes fraction"), size=8, ha="center",
                            textcoords="offset points", color=QUIET)  # fmt: skip
    return figure


# --- tables, predictions and verdicts --------------------------------------------------------------------------------


def bits(batch: int = 8, steps: int = 1000) -> pd.DataFrame:
    """Bits per character and error to the oracle of every method on every trained network, computed here and now.

    But for the peers and mpi: each would need processes of its own, and some seconds to start them.
    """
    rows = []
    x, targets = corpus.sequences(batch, steps)
    methods = [method for method in registry.methods() if method.backend not in measure.ELSEWHERE]
    for network in corpus.models():
        net = corpus.load(network)
        wanted, _ = reference(net, x)
        shared = dict(network=network, oracle=corpus.bits_per_character(wanted, targets))
        rows += [shared | _bits_of(method, net, x, targets, wanted) for method in methods]
    return pd.DataFrame(rows)


def _bits_of(
    method: registry.Method, net: RNN, x: np.ndarray, targets: np.ndarray, wanted: np.ndarray
) -> dict[str, Any]:
    row = dict(method=method.name, bits=np.nan, error=np.nan, status="unsupported")
    try:
        with rnnpar.prepare(net, method.name) as run:
            y, _ = run(x)
    except registry.Unavailable:
        return row
    except MemoryError:
        return row | dict(status="oom")
    error = relative_error(y, wanted)
    status = "ok" if error <= getattr(method, "bound", measure.BOUND) else "inaccurate"
    return row | dict(bits=corpus.bits_per_character(y, targets), error=error, status=status)


def _stays_ahead(ratios: Mapping[int, float]) -> int | None:
    """The size from which on every speed-up is above 1."""
    ahead = [size for size in ratios if all(value > 1 for other, value in ratios.items() if other >= size)]
    return min(ahead, default=None)


def timestep(frame: pd.DataFrame) -> Markdown:
    """The origin's idea against one thread that hoists."""
    ratios, fixed = ratios_of(frame, "H", "threads/timestep", "serial/compiled")
    fared = [
        fared_at("it loses to serial/compiled below H = 128", "H", ratios, lambda r: r < 1, most=127),
        fared_at("it is nowhere twice as fast", "H", ratios, lambda r: r < 2),
    ]
    if not ratios:
        return say(NOT_MEASURED, *fared)
    worst, best = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    return say(
        f"{on(frame)}, threads/timestep on {tell.team_size(frame)} threads is at best "
        f"{compared_with(ratios[best], 'serial/compiled')} on one (at H = {best:,}), and at worst "
        f"{as_times(ratios[worst])} (at H = {worst:,}; {fixed})",
        *fared,
    )


def rows(frame: pd.DataFrame, name: str = "") -> Markdown:
    """Rows of W over threads against one thread; the machine's name leads to the size of its caches."""
    ratios, fixed = ratios_of(frame, "H", "threads/rows", "serial/compiled")
    fared = [
        fared_at("up to H = 64 the barrier costs more than it saves", "H", ratios, lambda r: r < 1, most=64),
        fared_at("at least 1.5 times as fast from H = 256 on", "H", ratios, lambda r: r >= 1.5, least=256),
    ]
    if not ratios:
        return say(NOT_MEASURED, *fared)
    threads, cache = tell.team_size(frame), tell.caches(name).get("L2", 0) if name else 0
    fits = {H: value for H, value in ratios.items() if 0.75 * cache < 4 * H * H <= 0.75 * cache * threads}
    if fits:
        text = f"more than {threads} times where W fits all the threads' L2 caches but not one"
        fared.append(fared_at(text, "H", fits, lambda r: r > threads))
    ahead, best = _stays_ahead(ratios), max(ratios, key=ratios.__getitem__)
    crossing = f"is ahead of serial/compiled from H = {ahead:,} on" if ahead else "never stays ahead of serial/compiled"
    return say(
        f"{on(frame)}, threads/rows on {threads} threads {crossing}, and is at best "
        f"{as_times(ratios[best])} as fast (at H = {best:,}; {fixed})",
        *fared,
    )


def batch(frame: pd.DataFrame) -> Markdown:
    """Sequences over threads against one thread, and against rows."""
    ratios, fixed = ratios_of(frame, "B", "threads/batch", "serial/compiled")
    against, _ = ratios_of(frame, "B", "threads/batch", "threads/rows")
    threads, most = tell.team_size(frame), max(against, default=0)
    fared = [
        fared_at("alone, a sequence gains nothing", "B", ratios, lambda r: r < 1.1, most=1),
        fared_at("with 8 sequences a thread or more, at least 85% of the ideal", "B", ratios,
                   lambda r: r >= 0.85 * threads, least=8 * threads),
        fared_at("batch loses to rows at B = 1", "B", against, lambda r: r < 1, most=1),
        fared_at("and beats it at the most sequences", "B", against, lambda r: r > 1, least=max(2, most)),
    ]  # fmt: skip
    if not ratios:
        return say(NOT_MEASURED, *fared)
    large, ahead = max(ratios), _stays_ahead(against)
    stays = (
        f"it stays ahead of threads/rows from B = {ahead:,} on" if ahead else "it does not stay ahead of threads/rows"
    )
    crossing = f"; {stays}" if against else ""
    return say(
        f"{on(frame)}, threads/batch on {threads} threads is {compared_with(ratios[large], 'serial/compiled')} at "
        f"B = {large:,}{crossing} ({fixed})",
        *fared,
    )


def wavefront(frame: pd.DataFrame) -> Markdown:
    """Stacked layers, pipelined over time, against one thread."""
    ratios, fixed = ratios_of(frame, "layers", "threads/wavefront", "serial/compiled")
    threads = tell.team_size(frame)
    text = "with 4 layers, at least 70% of the ideal (as many times as there are threads, but not more than 7)"
    fared = fared_at(text, "layers", ratios, lambda r: r >= 0.7 * min(threads, 7), least=4, most=4)
    if not ratios:
        return say(NOT_MEASURED, fared)
    few, many = min(ratios), max(ratios)
    return say(
        f"{on(frame)}, threads/wavefront on {threads} threads is {compared_with(ratios[few], 'serial/compiled')} with "
        f"{few} layer{'s' * (few > 1)} and {as_times(ratios[many])} with {many} ({fixed})",
        fared,
    )


def scaling(frame: pd.DataFrame) -> Markdown:
    """What the last thread still brings, where threads were varied."""
    rows = plots.square(frame).query("layers == 1")
    times = plots.medians(rows, ["H", "T", "B", "method", "threads"])
    best: dict[str, tuple[float, int, str]] = {}
    for (H, T, B, method, threads), value in times.items():
        one = times.get((H, T, B, method, 1))
        if threads > 1 and threads == tell.team_size(frame) and one is not None:
            found = (one.value / value.value, threads, f"H = {H:,}, T = {T:,}, B = {B:,}")
            best[method] = max(best.get(method, found), found)
    if not best:
        return say(NOT_MEASURED)
    parts = [f"{method} {as_times(gain)} ({plots.percent(gain / threads)} of the ideal, at {where})"
             for method, (gain, threads, where) in sorted(best.items(), key=lambda item: -item[1][0])]  # fmt: skip
    return say(
        f"{on(frame)}, {tell.team_size(frame)} threads bring, over one of the same method, at best {'; '.join(parts)}"
    )


def origin(frame: pd.DataFrame) -> Markdown:
    """The origin's workloads: the best of ours over both baselines."""
    drawn = plots.all_cores(plots.steady(frame))
    times = plots.medians(drawn[drawn["workload"].isin(measure.ORIGIN)], ["workload", "method"])
    parts, outcomes = [], {}
    for workload in measure.ORIGIN:
        here = {method: value.value for (name, method), value in times.items() if name == workload}
        if {"serial/naive", "serial/compiled"} <= set(here):
            best = min(here, key=here.__getitem__)
            naive, compiled = (here[name] / here[best] for name in ("serial/naive", "serial/compiled"))
            parts.append(f"{best} on {workload}, {compared_with(naive, 'serial/naive')} and "
                         f"{compared_with(compiled, 'serial/compiled')}")  # fmt: skip
            outcomes[f"{workload} ({as_times(naive)})"] = naive >= 4
    fared = outcome("the best method is at least 4 times as fast as serial/naive on both", outcomes)
    if not parts:
        return say(NOT_MEASURED, fared)
    return say(f"{on(frame)}, the best method is {'; '.join(parts)}", fared)


def same_bits(table: pd.DataFrame) -> Markdown:
    """Whether all methods give the oracle's bits per character."""
    ran = table[table["status"].isin(["ok", "inaccurate"])]
    away = (ran["bits"] - ran["oracle"]).abs()
    outcomes = dict(zip(ran["method"] + " on " + ran["network"], away < BITS, strict=True))
    fared = outcome(f"every method within {plots.plain(BITS)} bits of the oracle", outcomes)
    if ran.empty:
        return say(NOT_MEASURED, fared)
    bits, error = (plots.short(1e6 * value) for value in (away.max(), ran["error"].max()))
    methods, networks = ran["method"].nunique(), ran["network"].nunique()
    return say(
        f"On this machine {methods} methods ran on {networks} trained networks: none is more than {bits} millionths of "
        f"a bit per character away from the float64 oracle, and none has a relative error above {error} millionths",
        fared,
    )


def meeting_costs(name: str = "") -> dict[str, dict[int, float]]:
    """Seconds of a meeting by kind and number of threads, from a machine's peaks; empty where none were measured."""
    found = tell.peaks(name)
    tables = {text: {int(n): s for n, s in found.get(key, {}).items() if int(n) > 1} for key, text in MEETINGS.items()}
    return {text: by for text, by in tables.items() if by}


def step_times(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> dict[str, float]:
    """Seconds of a step of serial/compiled at some H, by "H = 64"."""
    rows, fixed = plots.along(frame, "H", ["serial/compiled"])
    times = plots.medians(rows, ["H"])
    return {f"H = {H:,}": times[H].value / fixed["T"] for H in sizes if H in times}


def meetings(frame: pd.DataFrame, name: str) -> Markdown:
    """What it costs to meet, by kind, with all threads."""
    costs = meeting_costs(name)
    flags, counter, region = (costs.get(text, {}) for text in MEETINGS.values())
    most = max(flags, default=0)
    over = lambda a, b: {n: a[n] / b[n] for n in sorted(a) if n in b}  # noqa: E731
    fared = [
        fared_at("a new parallel region costs at least 5 barriers of flags", "threads", over(region, flags),
                   lambda r: r >= 5),
        fared_at("a counter is cheaper than flags for 2 threads", "threads", over(counter, flags), lambda r: r < 1,
                   most=2),
        fared_at("and dearer from 8 threads on", "threads", over(counter, flags), lambda r: r > 1, least=8),
    ]  # fmt: skip
    if not most:
        return say(NOT_MEASURED, *fared)
    others = [f"{text} {as_times(by[most] / flags[most])} as much" for text, by in costs.items()
              if by is not flags and most in by]  # fmt: skip
    steps = step_times(frame)
    beside = f"; a whole step of serial/compiled takes {_listed(steps)}" if steps else ""
    return say(
        f"On {name}, with {most} threads, a barrier of flags costs {plots.duration(flags[most])}"
        f"{', ' if others else ''}{', '.join(others)}{beside}",
        *fared,
        *cautions(tell.peaks(name)),
    )


def _listed(times: Mapping[str, float]) -> str:
    return ", ".join(f"{plots.duration(seconds)} at {where}" for where, seconds in times.items())


def rows_or_batch(frame: pd.DataFrame) -> Markdown:
    """From which B on sequences should be shared out rather than rows, at one H and over the map."""
    line, fixed = ratios_of(frame, "B", "threads/batch", "threads/rows")
    table = plots.over_both(frame, ["threads/rows", "threads/batch"])
    times = plots.medians(table, ["H", "B", "method"])
    at: dict[int, dict[int, float]] = {}
    for (H, B, method), value in times.items():
        if method == "threads/batch" and (H, B, "threads/rows") in times:
            at.setdefault(H, {})[B] = times[H, B, "threads/rows"].value / value.value
    level = {H: {B: value / 0.97 for B, value in ratios.items()} for H, ratios in at.items()}
    from_on = {H: _stays_ahead(ratios) for H, ratios in level.items()}
    many = 8 * tell.team_size(frame)
    large = {f"H = {H:,}, B = {B:,} ({as_times(value)})": value > 0.97
             for H, ratios in at.items() for B, value in ratios.items() if many <= B}  # fmt: skip
    alone = {
        f"H = {H:,} ({as_times(ratios[1])})": ratios[1] < 1 for H, ratios in at.items() if 1 in ratios and H >= 128
    }
    fared = [
        outcome("from 8 sequences a thread on, threads/batch is nowhere more than 3% behind", large),
        outcome("one sequence, from H = 128 on: threads/rows is ahead", alone),
    ]
    if not line:
        return say(NOT_MEASURED, *fared)
    found = crossing(line)
    if found:
        cross = f"is level with threads/rows or ahead from about B = {plots.short(found)} on"
    elif line[max(line)] > 0.97:
        cross = f"is level with threads/rows or ahead from B = {min(line):,} on"
    else:
        cross = f"does not reach threads/rows up to B = {max(line):,}"
    where = ", ".join(f"{f'from B = {B:,} on' if B else 'never'} at H = {H:,}" for H, B in sorted(from_on.items()))
    mapped = f"; of the sizes in the map: {where}" if where else ""
    return say(f"{on(frame)}, threads/batch {cross} ({fixed}){mapped}", *fared)


def pipeline_ideals(frame: pd.DataFrame) -> dict[str, dict[int, float]]:
    """What a pipeline could bring at most: all the work over its longest stage, and as many times as there are layers.

    The stages follow from serial/compiled alone: a further layer costs U x and the recurrence, and what one layer costs
    beyond that is the output. U x is taken to cost as much as the output, which is the same product.
    """
    rows, _ = plots.along(frame, "layers", ["serial/compiled"])
    times = {layers: value.value for layers, value in plots.medians(rows, ["layers"]).items()}
    if len(times) < 2 or 1 not in times:
        return {}
    layer = (times[max(times)] - times[1]) / (max(times) - 1)
    output = min(max(times[1] - layer, 0.0), layer / 2)
    longest = layer - output
    if longest <= 0:
        return {}
    return {
        "all work / longest stage": {layers: max(1.0, seconds / longest) for layers, seconds in times.items()},
        "layers": {layers: float(layers) for layers in times},
    }


def pipeline(frame: pd.DataFrame) -> Markdown:
    """How much of the ideal threads/wavefront reaches, by layers."""
    ratios, fixed = ratios_of(frame, "layers", "threads/wavefront", "serial/compiled")
    threads, ideals = tell.team_size(frame), pipeline_ideals(frame)
    most = {layers: min(threads, value) for layers, value in next(iter(ideals.values()), {}).items()}
    shares = {layers: ratios[layers] / most[layers] for layers in ratios if layers in most}
    outcomes = {f"{n} layer{'s' * (n > 1)} ({plots.percent(share)})": share >= 0.8 for n, share in shares.items()}
    fared = outcome("at least 80% of what the longest stage and the threads allow, with 1 layer as with more", outcomes)
    if not shares:
        return say(NOT_MEASURED, fared)
    parts = [f"{plots.percent(share)} with {n} layer{'s' * (n > 1)} ({plots.ratio(ratios[n])} of "
             f"{plots.ratio(most[n])} times)" for n, share in shares.items()]  # fmt: skip
    return say(
        f"{on(frame)}, threads/wavefront on {threads} threads reaches, over serial/compiled, of what the longest "
        f"stage and the threads allow: {', '.join(parts)} ({fixed})",
        fared,
    )


def weight_peaks(frame: pd.DataFrame) -> dict[str, tuple[list[int], list[float]]]:
    """Bytes a second of W h alone, from the machine's peaks, as serial/compiled and as threads/rows share it."""
    rows, _ = plots.along(frame, "H", ["serial/compiled", "threads/rows"])
    costs = tell.cost_model(frame["machine"].iloc[0]) if len(rows) else None
    if costs is None:
        return {}
    sizes, threads = sorted({int(H) for H in rows["H"] if H >= 32}), tell.team_size(frame)
    shared = [-(-H // (threads * costs.width)) * costs.width for H in sizes]  # a thread's rows, in whole panels
    return {
        "serial/compiled": (sizes, [4 * H * H / costs.product(1, H, H) for H in sizes]),
        "threads/rows": (
            sizes,
            [4 * H * H / costs.product(1, mine, H, threads) for H, mine in zip(sizes, shared, strict=True)],
        ),
    }


def weights(frame: pd.DataFrame, name: str) -> Markdown:
    """How fast W is read, and what becomes of it where W leaves a cache."""
    rows, fixed = plots.along(frame, "H", ["serial/compiled", "threads/rows"])
    speeds: dict[str, dict[int, float]] = {}
    for (method, H), value in plots.medians(rows, ["method", "H"]).items():
        speeds.setdefault(method, {})[H] = 4e-9 * H * H * fixed["T"] / value.value
    one, many = speeds.get("serial/compiled", {}), speeds.get("threads/rows", {})
    threads, L2 = tell.team_size(frame), tell.caches(name).get("L2", 0)
    gain = {H: many[H] / one[H] for H in one if H in many}
    inside = {H: value for H, value in gain.items() if H >= 256 and 4 * H * H <= 0.75 * L2}
    between = {H: value for H, value in gain.items() if 0.75 * L2 < 4 * H * H <= 0.75 * threads * L2}
    falls = {H: one[H] / max(one.values()) for H in one if L2 and 4 * H * H > 2 * L2}
    fared = [
        fared_at("serial/compiled reads a W of more than twice its L2 at less than 85% of its best rate", "H", falls,
                   lambda r: r < 0.85),
        outcome("threads/rows gains most where W has left one core's L2 and not yet all threads'",
               {f"H = {H:,} ({as_times(between[H])})": between[H] > max(inside.values()) for H in between if inside}),
    ]  # fmt: skip
    if not one or not many:
        return say(NOT_MEASURED, *fared)
    best = {method: max(by, key=by.__getitem__) for method, by in speeds.items()}
    last = {method: max(by) for method, by in speeds.items()}
    parts = [f"{method} reads W at up to {plots.short(speeds[method][best[method]])} GB/s (at H = {best[method]:,}) "
             f"and at {plots.short(speeds[method][last[method]])} at H = {last[method]:,}"
             for method in plots.in_order(speeds)]  # fmt: skip
    return say(f"{on(frame)}, U x and V h included, {'; '.join(parts)} ({tell.fixed_sizes(fixed)})", *fared)


def bfloat16_bits(batch: int = 8, steps: int = 500, methods: Sequence[str] = HALVED) -> pd.DataFrame:
    """Bits per character and error to the oracle with float32 and with bfloat16 weights, computed here and now."""
    rows = []
    x, targets = corpus.sequences(batch, steps)
    for network in corpus.models():
        net = corpus.load(network)
        wanted, _ = reference(net, x)
        for method in methods:
            row: dict[str, Any] = dict(method=method, network=network)
            for dtype in ("float32", "bfloat16"):
                with rnnpar.prepare(net, method, dtype=dtype) as run:
                    y, _ = run(x)
                row |= {dtype: corpus.bits_per_character(y, targets), f"error {dtype}": relative_error(y, wanted)}
            rows.append(row)
    return pd.DataFrame(rows)


def bfloat16_speed(
    sizes: Mapping[int, int] | None = None, methods: Sequence[str] = HALVED, rounds: int = 9
) -> dict[tuple[str, int], plots.Median]:
    """Speed-up of bfloat16 weights over float32, one sequence, by (method, H): interleaved rounds, here and now.

    `sizes` is the number of steps for each H.
    """
    found: dict[tuple[str, int], plots.Median] = {}
    rng = np.random.default_rng(0)
    for H, T in (sizes or {512: 64, 1024: 32, 2048: 16}).items():
        net = RNN.random(H, H, H, seed=0)
        x = rng.standard_normal((T, 1, H), dtype=np.float32)
        keys = [(method, dtype) for method in methods for dtype in ("float32", "bfloat16")]
        runs = {(method, dtype): rnnpar.prepare(net, method, dtype=dtype) for method, dtype in keys}
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
        for _ in range(rounds + 1):
            for index in rng.permutation(len(keys)):
                runs[keys[index]].timed(x)  # the ones before it have taken the caches
                seconds[keys[index]].append(runs[keys[index]].timed(x)[0])
        for run in runs.values():
            run.close()
        for method in methods:
            full, half = (plots.median(seconds[method, dtype][1:]) for dtype in ("float32", "bfloat16"))
            found[method, H] = full.over(half)
    return found


def bfloat16_table(bits: pd.DataFrame, speed: Mapping[tuple[str, int], plots.Median]) -> Markdown:
    """Both, a line a method: error, bits per character beside float32's, and speed-up over float32."""
    networks, sizes = list(dict.fromkeys(bits["network"])), sorted({H for _, H in speed})
    lines = []
    for method, group in bits.groupby("method", sort=False):
        cells = [f"{half:.4f} ({full:.4f})" for full, half in zip(group["float32"], group["bfloat16"], strict=True)]
        times = [speed.get((method, H)) for H in sizes]
        gains = [" to ".join(f"{plots.ratio(end)}×" for end in (t.low, t.high)) if t else "–" for t in times]
        half, full = (plots.short(1e6 * group[f"error {dtype}"].max()) for dtype in ("bfloat16", "float32"))
        lines.append((f"`{method}`", f"{half} ({full})", *cells, *gains))
    heads = ("method", "largest error, millionths", *networks, *(f"H = {H:,}" for H in sizes))
    return table_of(heads, lines)


def bfloat16(bits: pd.DataFrame, speed: Mapping[tuple[str, int], plots.Median]) -> Markdown:
    """What half the bytes of W bring, and what they cost."""
    lost = (bits["bfloat16"] - bits["float32"]).abs()
    where = bits["method"] + " on " + bits["network"]
    L2, one = machine.caches().get("L2", 0), "serial/compiled"
    past = {H: value.value for (method, H), value in speed.items() if method == one and 4 * H * H > 2 * L2}
    worst_of = bits.groupby("network")["error bfloat16"].max()
    errors = {
        f"{network} ({plots.short(1e6 * value)} millionths)": value <= 2e-3 for network, value in worst_of.items()
    }
    fared = [
        outcome("an error of a thousandth or two", errors),
        outcome("no more than 0.01 bits lost", dict(zip(where, lost <= 0.01, strict=True))),
        fared_at("serial/compiled at least 1.4 times as fast where W is more than twice the core's L2", "H", past,
                   lambda r: r >= 1.4),
    ]  # fmt: skip
    gains = {key: value.value for key, value in speed.items()}
    if bits.empty or not gains:
        return say(NOT_MEASURED, *fared)
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    error = plots.short(1e6 * bits["error bfloat16"].max())
    return say(
        f"On {machine.name()}, here and now, bfloat16 weights are {compared_with(gains[worst], 'float32')} in "
        f"{worst[0]} at H = {worst[1]:,} and {as_times(gains[best])} in {best[0]} at H = {best[1]:,}, with one "
        f"sequence; on the trained networks they change the bits per character by at most "
        f"{plots.short(1e3 * lost.max())} thousandths, "
        f"with errors up to {error} millionths",
        *fared,
    )
