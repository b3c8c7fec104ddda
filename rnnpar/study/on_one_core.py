"""Chapter 02 in figures and words: where a serial program's time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from rnnpar.study import plots, tell
from rnnpar.study.plots import FAINT, QUIET
from rnnpar.study.tell import (
    NOT_MEASURED,
    as_times,
    compared_with,
    costs_of,
    fared_at,
    on,
    outcome,
    ratios_of,
    say,
    table_of,
)
from rnnpar.words import ratio, short

NO_PEAKS = "The peaks of this machine have not been measured, so there is nothing to compare with."
STAIRS = ("serial/naive", "serial/hoisted", "serial/compiled")

# --- figures ---------------------------------------------------------------------------------------------------------


@plots.styled
def stairs_figure(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> Figure:
    """From naive to hoisted to compiled at some H: each step's share of the way, on a log axis where gains add up."""
    rows, fixed = plots.along(frame, "H", STAIRS)
    rows = rows[rows["H"].isin(sizes)]
    times, missing = plots.medians(rows, ["H", "method"]), plots.gaps(rows, ["H", "method"])
    figure, (ax,) = plots.page(
        "From naive to hoisted to compiled",
        f"{plots.says_of(fixed, rows, 'H')}.\n"
        "A bar is what one change takes off the time of a step; its marker is what is left.",
        plots.corner_of(frame, rows), [0.34 * 3 * len(sizes) + 0.1], left=1.75, right=1.0,
    )  # fmt: skip
    steps = {key: value.over(fixed["T"] * 1e-6) for key, value in times.items()}
    if not steps:
        plots.nothing(ax)
        return figure
    low, high = min(v.low for v in steps.values()) / 1.3, max(v.high for v in steps.values()) * 1.4
    plots.log_axis(ax.xaxis, low, high)
    ax.set(xlim=(low, high), xlabel="time a step (µs)", ylim=(3 * len(sizes) - 0.35, -0.65))
    ax.grid(False, axis="y")
    for block, H in enumerate(sizes):
        before: plots.Median | None = None
        for index, method in enumerate(STAIRS):
            row, (colour, marker) = 3 * block + index - 0.12 * index + 0.12, plots.look(method)
            now = steps.get((H, method))
            if now is None:
                why = plots.STATUS.get(missing.get((H, method), ""), "not measured")
                ax.text(0.01, row, why, transform=ax.get_yaxis_transform(), size=8, color=QUIET, va="center")
                continue
            if before is not None:
                ax.plot([before.value] * 2, [row - 0.88, row], color=FAINT, lw=1.2, zorder=1)
                ax.barh(row, before.value - now.value, left=now.value, height=0.5, color=colour, alpha=0.35, lw=0)
            ax.plot([now.low, now.high], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(now.value, row, color=colour, marker=marker, ms=7.5, mec="white", mew=0.6)
            gain = f"   {ratio(before.value / now.value)}×" if before else ""
            plots.value_label(
                ax, max(now.high, before.value if before else 0), row, f"{short(now.value)} µs{gain}", colour
            )
            before = now
        if block:
            ax.axhline(3 * block - 0.5, color=FAINT, lw=0.8)
        ax.text(-0.225, 3 * block + 1, f"H = {H:,}", transform=ax.get_yaxis_transform(), size=9.5, weight="bold",
                va="center", rotation=90, ha="right")  # fmt: skip
    places = [3 * block + index - 0.12 * index + 0.12 for block in range(len(sizes)) for index in range(3)]
    ax.set_yticks(places, list(STAIRS) * len(sizes), size=9)
    ax.tick_params(axis="y", length=0)
    return figure


# --- tables, predictions and verdicts --------------------------------------------------------------------------------


def hoisting(frame: pd.DataFrame) -> Markdown:
    """How much taking U x and V h out of the loop brings."""
    ratios, fixed = ratios_of(frame, "H", "serial/hoisted", "serial/naive")
    fared = fared_at("2 to 4 times as fast as serial/naive at every H", "H", ratios, lambda r: 2 <= r <= 4)
    if not ratios:
        return say(NOT_MEASURED, fared)
    small, large = min(ratios), max(ratios)
    return say(
        f"{on(frame)}, taking U x and V h out of the loop makes serial/hoisted "
        f"{compared_with(ratios[small], 'serial/naive')} at H = {small:,} and {as_times(ratios[large])} at "
        f"H = {large:,} ({fixed})",
        fared,
    )


def compiling(frame: pd.DataFrame) -> Markdown:
    """What compiling the loop adds to hoisting."""
    ratios, fixed = ratios_of(frame, "H", "serial/compiled", "serial/hoisted")
    both, _ = ratios_of(frame, "H", "serial/compiled", "serial/naive")
    fared = [
        fared_at("at least 10 times as fast as serial/hoisted up to H = 32", "H", ratios, lambda r: r >= 10, most=32),
        fared_at("less than 3 times from H = 1,024 on", "H", ratios, lambda r: r < 3, least=1024),
    ]
    if not ratios or not both:
        return say(NOT_MEASURED, *fared)
    small, large = min(ratios), max(ratios)
    return say(
        f"{on(frame)}, serial/compiled is {compared_with(ratios[small], 'serial/hoisted')} at H = {small:,} and "
        f"{as_times(ratios[large])} at H = {large:,}; over serial/naive, hoisting and compiling together bring "
        f"{as_times(both[min(both)])} and {as_times(both[max(both)])} ({fixed})",
        *fared,
    )


def lengths(frame: pd.DataFrame) -> Markdown:
    """What a step costs in short and in long sequences."""
    costs, fixed = costs_of(frame, "T")
    level = {
        f"{method} at T = {T:,}": cost < 1.25 * each[max(each)]
        for method, each in costs.items()
        for T, cost in each.items()
        if 64 <= T < max(each)
    }
    mine = costs.get("serial/compiled", {})
    long = max(mine, default=0)
    steep = {1: mine[1] / mine[long]} if 1 in mine and long > 1 else {}
    fared = [
        outcome("from T = 64 on, a step costs at most a quarter more than in the longest sequence", level),
        fared_at("serial/compiled, more than 3 times as much in a sequence of one step", "T", steep, lambda r: r > 3),
    ]
    if len(mine) < 2:
        return say(NOT_MEASURED, *fared)
    short = min(mine)
    call = max(0.0, short * (mine[short] - mine[long]))
    return say(
        f"{on(frame)}, a step of serial/compiled costs {plots.short(mine[short])} µs in a sequence of {short:,} "
        f"and {plots.short(mine[long])} µs in one of {long:,}: a call as such costs {plots.short(call)} µs ({fixed})",
        *fared,
    )


def batches(frame: pd.DataFrame) -> Markdown:
    """What a sequence gains from company."""
    costs, fixed = costs_of(frame, "B")
    gains = {method: each[min(each)] / each[max(each)] for method, each in costs.items() if len(each) > 1}
    fared = [
        outcome(f"a sequence among the most gains {text} in {method}",
               {as_times(gains[method]): holds(gains[method])} if method in gains else {})
        for method, text, holds in (("serial/naive", "at least 4 times", lambda r: r >= 4),
                                    ("serial/compiled", "less than 3 times", lambda r: r < 3))
    ]  # fmt: skip
    if not {"serial/naive", "serial/compiled"} <= set(gains):
        return say(NOT_MEASURED, *fared)
    few, many = min(costs["serial/naive"]), max(costs["serial/naive"])
    return say(
        f"{on(frame)}, per sequence, B = {many:,} is {as_times(gains['serial/naive'])} as fast as B = {few:,} "
        f"in serial/naive and {as_times(gains['serial/compiled'])} in serial/compiled ({fixed})",
        *fared,
    )


def stairs(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> Markdown:
    """What each change brings, from naive to hoisted to compiled."""
    hoisted, fixed = ratios_of(frame, "H", "serial/hoisted", "serial/naive")
    compiled, _ = ratios_of(frame, "H", "serial/compiled", "serial/hoisted")
    both = {H: (hoisted[H], compiled[H]) for H in sizes if H in hoisted and H in compiled}
    outcomes = {f"H = {H:,} ({as_times(first)} and {as_times(second)})": second > first if H < 200 else first > second
                for H, (first, second) in both.items()}  # fmt: skip
    fared = outcome("compiling brings more than hoisting in the small network, hoisting more in the others", outcomes)
    if not both:
        return say(NOT_MEASURED, fared)
    parts = [f"{as_times(first)} by hoisting and {as_times(second)} by compiling at H = {H:,}"
             for H, (first, second) in both.items()]  # fmt: skip
    return say(f"{on(frame)}, from serial/naive to serial/compiled one gains {'; '.join(parts)} ({fixed})", fared)


def tile_table(name: str = "", sizes: Sequence[int] = (64, 256, 1024), rows: Sequence[int] = (1, 4, 64)) -> Markdown:
    """One product alone: NumPy's time over the tile's, on one thread, from a machine's peaks."""
    found = tell.peaks(name)
    tile = {(H, r): seconds for H, r, seconds in found.get("products", {}).get("1", [])}
    blas = {(H, r): seconds for H, r, seconds in found.get("blas", [])}
    there = [(H, [r for r in rows if (H, r) in tile and (H, r) in blas]) for H in sizes]
    lines = [[f"H = {H:,}", *(f"{plots.ratio(blas[H, r] / tile[H, r])}×" if r in some else "–" for r in rows)]
             for H, some in there if some]  # fmt: skip
    if not lines:
        return Markdown(NO_PEAKS)
    heads = ["NumPy's product over the tile's", *(f"{r} row{'s' * (r > 1)}" for r in rows)]
    return table_of(heads, lines)


def arithmetic_peak(found: Mapping[str, Any]) -> float:
    """Floating-point operations a second of the fastest product that one thread was seen to do."""
    return max(2 * H * H * rows / seconds for H, rows, seconds in found["products"]["1"])


def bandwidth(found: Mapping[str, Any], sizes: Mapping[str, int], H: int) -> tuple[str, float]:
    """The level of cache that holds a W of H x H, and the bytes a second at which one thread multiplies by such."""
    levels = [(level, size) for level, size in sorted(sizes.items()) if size >= 4 * H * H]
    level, most = levels[0] if levels else ("memory", np.inf)
    least = max([size for size in sizes.values() if size < most], default=0) if sizes else 0
    speeds = {side: 4 * side * side / seconds for side, rows, seconds in found["products"]["1"] if rows == 1}
    inside = [speed for side, speed in speeds.items() if least < 4 * side * side <= most]
    return level, max(inside) if inside else speeds[min(speeds, key=lambda side: abs(side - H))]


def peak_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """What share of the machine's peak serial/compiled reaches: of arithmetic for many sequences, of bytes for one.

    For one sequence the least time is that of the bytes of W, from the cache that holds it, and that of the arithmetic
    of U x and V h, which are products of matrices; the share is the least time over the measured one.
    """
    rows = plots.square(frame).query("method == 'serial/compiled' and layers == 1")
    found = tell.peaks(frame["machine"].iloc[0]) if len(rows) else {}
    table = []
    if found:
        sizes, flops = tell.caches(frame["machine"].iloc[0]), arithmetic_peak(found)
        for (H, T, B), value in plots.medians(rows, ["H", "T", "B"]).items():
            step = value.value / T
            if B >= 16:
                rate, least = f"{6e-9 * H * H * B / step:.0f} of {1e-9 * flops:.0f} GFLOP/s", 6 * H * H * B / flops
                table.append(dict(H=H, T=T, B=B, bound="arithmetic", reached=rate, share=least / step))
            elif B == 1 and T >= 64:
                level, speed = bandwidth(found, sizes, H)
                least = 4 * H * H / speed + 4 * H * H / flops
                rate = f"{4e-9 * H * H / max(step - 4 * H * H / flops, 1e-12):.0f} of {1e-9 * speed:.0f} GB/s"
                table.append(dict(H=H, T=T, B=B, bound=f"bytes of W, {level}", reached=rate, share=least / step))
    return pd.DataFrame(table, columns=["H", "T", "B", "bound", "reached", "share"])


def peak_table(shares: pd.DataFrame, sizes: Sequence[int] = (64, 256, 512, 1024, 2048)) -> Markdown:
    """`peak_shares` at some sizes, a line a point."""
    some = shares[shares["H"].isin(sizes) & shares["B"].isin([1, 16, 64])].drop_duplicates(["H", "B"], keep="last")
    if some.empty:
        return Markdown(NO_PEAKS)
    lines = [(f"{s.H:,}", f"{s.B:,}", f"{s.T:,}", s.bound, s.reached, plots.percent(s.share))
             for s in some.sort_values(["B", "H"]).itertuples()]  # fmt: skip
    return table_of(("H", "B", "T", "bound by", "reached, of the peak", "share"), lines)


def peak(frame: pd.DataFrame, shares: pd.DataFrame) -> Markdown:
    """How near serial/compiled comes to the machine's measured peak."""
    many = shares[(shares["bound"] == "arithmetic") & (shares["H"] >= 128)]
    one = shares[(shares["bound"] != "arithmetic") & (shares["H"] >= 128)]
    said = lambda s: f"H = {s.H:,}, B = {s.B:,} ({plots.percent(s.share)})"  # noqa: E731
    fared = [
        outcome("from 16 sequences and H = 128 on, at least 75% of the arithmetic peak",
               {said(s): s.share >= 0.75 for s in many.itertuples()}),
        outcome("one sequence, from H = 128 on, at least 70% of what W's cache level gives",
               {said(s): s.share >= 0.7 for s in one.itertuples()}),
    ]  # fmt: skip
    if many.empty or one.empty:
        return say(NOT_MEASURED, *fared)
    return say(
        f"{on(frame)}, serial/compiled reaches, in the median from H = 128 on, "
        f"{plots.percent(many['share'].median())} of the core's measured arithmetic peak with 16 sequences or more, "
        f"and with one sequence {plots.percent(one['share'].median())} of what arithmetic and the cache level that "
        "holds W allow",
        *fared,
    )
