"""Chapter 01 in figures and words: what the recurrence is, how much arithmetic it has, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnnpar.study import corpus, measure, plots
from rnnpar.study.plots import BLUE, FAINT, GREEN, INK, ORANGE, PINK, QUIET, RED
from rnnpar.study.tell import NOT_MEASURED, as_times, compared_with, on, outcome, say, table_of
from rnnpar.words import percent

SIZES = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]

# --- figures ---------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """The sizes of one layer's workload."""

    I: int
    H: int
    O: int

    def shares(self) -> dict[str, float]:
        """The share of each product in the multiplications of a step."""
        work = {"U x": self.I * self.H, "W h": self.H * self.H, "V h": self.O * self.H}
        return {name: value / sum(work.values()) for name, value in work.items()}


@plots.styled
def arithmetic_figure(shapes: Mapping[str, Shape], marked: Sequence[str] = ()) -> Figure:
    """Where the arithmetic of a step is: shares of U x, W h and V h by workload; W h's share by hidden size below."""
    figure, (bars, lines) = plots.page(
        "Where the arithmetic of a step is, and how much of it must wait",
        "Share of a step's multiplications. Only W h (red) waits for the step before.", plots.COMPUTED,
        [0.36 * len(shapes) + 0.1, 2.6], right=1.5, left=2.3, gap=0.6,
    )  # fmt: skip
    colours = {"U x": BLUE, "W h": RED, "V h": GREEN}
    for row, (name, shape) in enumerate(shapes.items()):
        start = 0.0
        for product, share in shape.shares().items():
            bars.barh(row, share, left=start, color=colours[product], height=0.72, ec="white", lw=0.8)
            if share > 0.12:
                bars.text(
                    start + share / 2, row, product, color="white", weight="bold", size=8.5, ha="center", va="center"
                )
            start += share
        bars.text(1.02, row, f"W h: {percent(shape.shares()['W h'])}", size=9, va="center", color=plots.ink_for(RED))
        bars.text(
            -0.015, row - 0.15, name, size=9, va="center", ha="right", weight="bold" if name in marked else "normal"
        )
        bars.text(-0.015, row + 0.21, f"I {shape.I:,}  H {shape.H:,}  O {shape.O:,}", size=7.5, va="center", ha="right",
                  color=QUIET)  # fmt: skip
    bars.set(xlim=(0, 1), ylim=(len(shapes) - 0.5, -0.5), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    bars.set_xticklabels(["0%", "25%", "50%", "75%", "100%"])
    bars.grid(False)
    bars.spines[["left", "bottom"]].set_visible(False)
    _share_lines(lines, {name: shapes[name] for name in marked if name in shapes})
    return figure


def _share_lines(ax: Axes, marked: Mapping[str, Shape]) -> None:
    """W h's share against H, for outputs as large as an alphabet, a vocabulary, and H itself."""
    box = ax.get_position()
    ax.set_position((0.82 / plots.WIDTH, box.y0, box.x1 - 0.82 / plots.WIDTH, box.height))
    sizes = 2.0 ** np.arange(4, 13)
    ends = []
    families: dict[str, Callable[[float], float]] = {
        "I = O = H": lambda H: 1 / 3, "I = O = 64": lambda H: H / (H + 128),
        "I = 64, O = 1,000": lambda H: H / (H + 1064), "I = 64, O = 10,000": lambda H: H / (H + 10064),
    }  # fmt: skip
    for rank, (name, share) in enumerate(families.items()):
        shares = [100 * share(H) for H in sizes]
        colour = (INK, "#7a3b00", RED, "#f0904e")[rank]
        ax.plot(sizes, shares, color=colour, lw=1.8, ls="-" if rank else (0, (1, 1)))
        ends.append((sizes[-1], shares[-1], name, colour))
    plots.size_axis(ax, list(sizes), "hidden size H")
    plots.log_axis(ax.yaxis, 0.1, 130, (0.1, 0.3, 1, 3, 10, 30, 100), suffix="%")
    ax.set(ylim=(0.1, 130), ylabel="share of W h")
    for name, shape in marked.items():
        ax.plot(
            shape.H, 100 * shape.shares()["W h"], marker="*", ms=13, color=ORANGE, mec=INK, mew=0.6, ls="", zorder=4
        )
        ax.annotate(
            name, (shape.H, 100 * shape.shares()["W h"]), (9, -5), textcoords="offset points", size=8.5, va="top"
        )
    plots.label_ends(ax, ends)


@plots.styled
def floor_figure(parts: Mapping[str, Sequence[float]], sizes: Sequence[int], subtitle: str, corner: str) -> Figure:
    """The least time of a step against H, in seconds, by what it is bound by; the largest of the parts is the floor."""
    figure, (ax,) = plots.page(
        "What a step must cost, whatever the program", subtitle, corner, [3.2], right=1.75, left=0.8
    )
    colours = dict(zip(parts, (BLUE, RED, GREEN, PINK, ORANGE), strict=False))
    series = {name: 1e6 * np.asarray(values, float) for name, values in parts.items()}
    most = np.max(list(series.values()), axis=0)
    plots.size_axis(ax, sizes, "hidden size H")
    low, high = min(map(np.min, series.values())) / 1.4, most.max() * 1.4
    plots.log_axis(ax.yaxis, low, high)
    ax.set(ylim=(low, high), ylabel="time a step (µs)")
    ax.plot(sizes, most, color=FAINT, lw=9, solid_capstyle="round", zorder=1)
    for name, values in series.items():
        ax.plot(sizes, values, color=colours[name], lw=1.8)
    ends = [(sizes[-1], values[-1], name, colours[name]) for name, values in series.items()]
    plots.label_ends(ax, ends)
    return figure


# --- tables, predictions and verdicts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """What one core can do at most: float32 operations and bytes a second, and the latency of a step."""

    name: str
    flops: float
    levels: tuple[tuple[float, float], ...]  # (holds up to so many bytes, gives so many bytes a second)
    latency: float  # of one step: a chain of multiply-adds, a sum over them, a tanh, none of which can overlap

    def bandwidth(self, size: float) -> float:
        """Bytes a second of the nearest level that holds `size` bytes."""
        return next((speed for holds, speed in self.levels if size <= holds), self.levels[-1][1])


# Measured on one core of the machine that this study began on, but for the latency, which is an estimate; kept here as
# an example of a present-day core.
EXAMPLE = Core("an AMD Zen 5 core with AVX-512", 235e9, ((2**20, 200e9), (32 * 2**20, 95e9), (np.inf, 36e9)), 30e-9)


def floor_parts(B: int = 1, core: Core = EXAMPLE, sizes: Sequence[int] = SIZES) -> dict[str, list[float]]:
    """Seconds that W h alone must take in a step by each of its bounds, for each H in `sizes`."""
    return {
        "arithmetic": [2 * H * H * B / core.flops for H in sizes],
        "bytes of W": [4 * H * H / core.bandwidth(4 * H * H) for H in sizes],
        "latency": [core.latency for _ in sizes],
    }


def floor(B: int = 1, core: Core = EXAMPLE, sizes: Sequence[int] = SIZES) -> tuple[list[int], list[float]]:
    """Seconds of a whole step at least, on one core, I = O = H: W h by its largest bound, U x and V h by arithmetic."""
    waits = np.max(list(floor_parts(B, core, sizes).values()), axis=0)
    return list(sizes), [float(w) + 4 * H * H * B / core.flops for w, H in zip(waits, sizes, strict=True)]


def shapes() -> dict[str, Shape]:
    """The workloads whose arithmetic chapter 01 looks at: the origin's, the trained networks', and square ones."""
    found = {name: Shape(I, H, O) for name, (H, I, O, _, _) in measure.ORIGIN.items()}
    try:
        trained = corpus.models()
    except FileNotFoundError:
        trained = {}
    for name, entry in trained.items():
        if entry["num_layers"] == 1:
            found[name] = Shape(entry["input_size"], entry["hidden_size"], entry["output_size"])
    return found | {"I = O = H": Shape(256, 256, 256)}


def amdahl(threads: Sequence[int] = (2, 4, 8, 64)) -> Markdown:
    """The largest speed-up over one thread where W h is done by one thread at a time, and all else is shared."""
    rows = []
    for name, shape in shapes().items():
        waits = shape.shares()["W h"]
        limits = [plots.ratio(1 / (waits + (1 - waits) / count)) for count in threads]
        rows.append((name, plots.percent(waits), *limits, plots.ratio(1 / waits)))
    return table_of(("workload", "share of W h", *(f"{count} threads" for count in threads), "any number"), rows)


def arithmetic() -> Markdown:
    """The verdict of chapter 01, which needs no measurement."""
    origin = {name: Shape(I, H, O).shares()["W h"] for name, (H, I, O, _, _) in measure.ORIGIN.items()}
    parts = " and ".join(f"{plots.percent(share)} of {name}" for name, share in origin.items())
    return say(
        f"W h, the only product that waits for the step before, is {parts}, counted in multiplications: the rest, "
        f"{100 * (1 - max(origin.values())):.0f}% or more, can be done for all time steps at once"
    )


def hoisting_the_origin(frame: pd.DataFrame) -> Markdown:
    """What hoisting alone, on one thread, brings on the origin's workloads."""
    rows = plots.steady(frame)
    times = plots.medians(rows[rows["workload"].isin(measure.ORIGIN)], ["workload", "method"])
    gains = {name: times[name, "serial/naive"].value / times[name, "serial/hoisted"].value for name in measure.ORIGIN
             if {(name, "serial/naive"), (name, "serial/hoisted")} <= set(times)}  # fmt: skip
    outcomes = {f"{name} ({as_times(gain)})": 1.2 <= gain <= 3 for name, gain in gains.items()}
    fared = outcome("1.2 to 3 times as fast as serial/naive on both", outcomes)
    if not gains:
        return say(NOT_MEASURED, fared)
    parts = " and ".join(f"{compared_with(gain, 'serial/naive')} on {name}" for name, gain in gains.items())
    return say(f"{on(frame)}, hoisting alone, still on one thread, makes serial/hoisted {parts}", fared)
