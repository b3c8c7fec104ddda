"""One style, one figure a function: what the chapters draw from the frame that `store.load` returns.

Every function returns a matplotlib Figure and draws what there is: a point whose status is not ok is never drawn as
a time, it is marked as a gap. `show` writes a figure as figures/<machine>/<name>.svg and .png and displays it.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.  A step's time is a call's over T.
"""

from __future__ import annotations

import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from PIL import Image

from rnnpar import registry
from rnnpar.study.measure import BOUND
from rnnpar.words import duration, percent, plain, ratio, short

# --- style -----------------------------------------------------------------------------------------------------------

INK, QUIET, FAINT = "#222222", "#5f6368", "#d7dade"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "axes.labelsize": 9.5,
    "axes.labelpad": 5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",  # crisp and the same everywhere, whatever fonts the reader has
    "svg.hashsalt": "rnnpar",  # the same figure is the same file
}
WIDTH = 7.4  # inches: a notebook's column
BLACK, BLUE, SKY, GREEN, ORANGE, RED, PINK = "#3c3c3c", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"


class Look(NamedTuple):
    """How a method is drawn, everywhere: its colour (Okabe and Ito's, told apart by everyone) and its marker."""

    colour: str
    marker: str


LOOKS = {
    "serial/naive": Look(BLACK, "o"),
    "serial/hoisted": Look(SKY, "^"),
    "serial/compiled": Look(BLUE, "s"),
    "threads/timestep": Look(RED, "X"),
    "threads/rows": Look(ORANGE, "D"),
    "threads/batch": Look(GREEN, "v"),
    "threads/wavefront": Look(PINK, "P"),
    "in_time/jacobi": Look("#8c564b", "<"),
    "in_time/segments": Look(GREEN, "*"),
    "in_time/quasi_deer": Look(PINK, "h"),
    "in_time/deer": Look(RED, "d"),
    "mpi/batch": Look("#00664b", "v"),
    "mpi/pipeline": Look("#8f5076", "P"),
    "mpi/rows": Look("#a86f00", "D"),
    "numba_cuda/timestep": Look(RED, "*"),
    "numba_cuda/steps": Look(SKY, "d"),
    "numba_cuda/block": Look(GREEN, "p"),
    "numba_cuda/persistent": Look(ORANGE, "H"),
    "cupy_gpu/steps": Look("#7d6b5d", "<"),
    "cupy_gpu/fused": Look("#b07aa1", "v"),
    "cupy_gpu/graph": Look(BLUE, "8"),
    "cupy_gpu/cluster": Look("#7b3294", "P"),
    "peers/cudnn tf32=False": Look("#6e7378", "H"),
    "peers/cudnn tf32=True": Look("#a9adb1", "d"),
    "peers/jax_gpu": Look("#b9bdc1", "*"),
    "peers/torch": Look("#8a8f94", "<"),
    "peers/onnxruntime": Look("#a9adb1", ">"),
    "peers/openvino": Look("#6e7378", "p"),
    "peers/jax": Look("#b9bdc1", "h"),
}
TIMED = ("steady", "transfer")  # a call's time; results that hold both for a method are parted before they are drawn
STATUS = {  # what a gap says
    "unsupported": "not run here",
    "oom": "does not fit",
    "error": "failed",
    "inaccurate": "too inaccurate to count",
}
AXES = {
    "H": "hidden size H",
    "T": "time steps T",
    "B": "sequences side by side, B",
    "layers": "layers",
    "threads": "threads",
}
SLICES = {  # what the quick sweep holds fixed along each axis
    "H": {"T": 128, "B": 1},
    "T": {"H": 128, "B": 1},
    "B": {"H": 256, "T": 32},
    "layers": {"H": 256, "T": 128, "B": 1},
}
SCALED = ((256, 128, 1), (1024, 128, 1), (256, 32, 64))  # H, T, B at which threads are compared


def look(method: str) -> Look:
    """The method's look; one that is not in the table gets one made from its name, so that it keeps it."""
    if method in LOOKS:
        return LOOKS[method]
    code = zlib.crc32(method.encode())
    return Look(
        (BLUE, GREEN, RED, ORANGE, PINK, SKY)[code % 6], ("d", "*", "h", "p", "<", ">", "H", "8")[code // 6 % 8]
    )


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house's style, whatever the caller has set."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


# --- files -----------------------------------------------------------------------------------------------------------


def figures_folder() -> Path:
    """Where figures go: RNNPAR_FIGURES if that is set, else figures/ beside the package."""
    named = os.environ.get("RNNPAR_FIGURES")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "figures"


def save(figure: Figure, name: str, machine: str) -> Path:
    """Write figures/<machine>/<name>.svg and .png, each whole or not at all; returns the .png.

    The same figure is the same file, byte for byte. OSError says which folder cannot be written.
    """
    folder = figures_folder() / machine
    with mpl.rc_context(STYLE):
        drawing, picture, small = io.BytesIO(), io.BytesIO(), io.BytesIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(picture, format="png", metadata={"Software": None})
    # A palette that covers every colour of a figure, rare ones too, takes a third of the bytes.
    palette = Image.open(picture).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    _write(folder / f"{name}.svg", drawing.getvalue())
    _write(folder / f"{name}.png", small.getvalue())
    return folder / f"{name}.png"


def _write(path: Path, content: bytes) -> None:
    """Write to a file of its own beside `path`, then move it there."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"cannot write {path}: {reason}; RNNPAR_FIGURES can name another folder") from error


def show(figure: Figure, name: str, machine: str) -> Any:
    """`save`, and the picture for a notebook to display, with its title as the text for those who cannot see it."""
    from IPython import display

    picture = save(figure, name, machine).read_bytes()
    return display.Image(data=picture, format="png", width=int(WIDTH * 100), alt=figure.get_label() or name)


# --- what is drawn: medians of steady samples, and the gaps ----------------------------------------------------------


def steady(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that tell a steady time, or why there is none. ValueError where two machines' results are mixed."""
    if "machine" in frame and frame["machine"].nunique() > 1:
        raise ValueError(f"the results are of several machines, {', '.join(frame['machine'].unique())}: take one's")
    return frame[frame["kind"].isin(TIMED) | (frame["status"] != "ok")]


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the registry's order, plain to clever; those that it does not know come last."""
    known = [method.name for method in registry.methods()]
    return sorted(set(methods), key=lambda name: (known.index(name) if name in known else len(known), name))


def all_cores(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the methods measured at several numbers of threads, the rows of the largest."""
    threads = rows["threads"].fillna(0)
    return rows[threads == threads.groupby(rows["method"]).transform("max")]


def square(frame: pd.DataFrame) -> pd.DataFrame:
    """Random weights with I = O = H: the sweep's own workload."""
    rows = steady(frame)
    return rows[(rows["workload"] == "random") & (rows["H"] == rows["I"]) & (rows["H"] == rows["O"])]


def along(frame: pd.DataFrame, axis: str, methods: Sequence[str] | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """The sweep's rows along one of H, T, B and layers, and what the others are; one layer where it is not the axis.

    Where those that the quick sweep holds fixed were not measured, the ones that give the longest line are taken.
    """
    rows = square(frame)
    rows = all_cores(rows if axis == "layers" else rows[rows["layers"] == 1])
    if methods is not None:
        rows = rows[rows["method"].isin(methods)]
    others = list(SLICES[axis])
    if rows.empty:
        return rows, SLICES[axis]
    lengths = rows.groupby(others)[axis].nunique()
    wanted = tuple(SLICES[axis].values())
    best = wanted if lengths.get(wanted, 0) > 1 else lengths.idxmax()
    fixed = {letter: int(value) for letter, value in zip(others, best, strict=True)}
    return rows[np.logical_and.reduce([rows[letter] == value for letter, value in fixed.items()])], fixed


class Median(NamedTuple):
    """A median of steady seconds a call, with the bootstrap's own medians: their spread is its uncertainty."""

    value: float
    resampled: np.ndarray

    @property
    def low(self) -> float:
        return float(np.quantile(self.resampled, 0.025))

    @property
    def high(self) -> float:
        return float(np.quantile(self.resampled, 0.975))

    def over(self, divisor: Median | float) -> Median:
        """This median in units of another, or of a number; the interval is that of the quotient."""
        if isinstance(divisor, Median):  # reversed, so that equal seeds do not pair equal draws
            return Median(self.value / divisor.value, self.resampled / divisor.resampled[::-1])
        return Median(self.value / divisor, self.resampled / divisor)


def median(seconds: Iterable[float], draws: int = 400) -> Median:
    """The median of some samples, and `draws` medians of samples drawn from them; the draws are always the same."""
    samples = np.asarray(list(seconds), float)
    chosen = np.random.default_rng(0).integers(0, len(samples), (draws, len(samples)))
    return Median(float(np.median(samples)), np.median(samples[chosen], axis=1))


def medians(rows: pd.DataFrame, by: Sequence[str]) -> dict[Any, Median]:
    """The medians of the samples that are ok, by the columns named: (method, H) -> Median of seconds a call."""
    good = rows[(rows["status"] == "ok") & rows["kind"].isin(TIMED) & (rows["seconds"] > 0)]
    return {
        key if len(by) > 1 else key[0]: median(group) for key, group in good.groupby(list(by), sort=True)["seconds"]
    }


def gaps(rows: pd.DataFrame, by: Sequence[str]) -> dict[Any, str]:
    """The points that have no time, by the columns named, and the status that says why."""
    bad = rows[rows["status"] != "ok"]
    found = {key if len(by) > 1 else key[0]: str(group.iloc[-1]) for key, group in bad.groupby(list(by))["status"]}
    there = medians(rows, by)
    return {key: status for key, status in found.items() if key not in there}


# --- the parts of a page ---------------------------------------------------------------------------------------------


def page(
    title: str,
    subtitle: str,
    corner: str,
    heights: Sequence[float],
    right: float = 1.45,
    left: float = 0.85,
    gap: float = 0.75,
    head: float = 0.08,
    foot: float = 0.78,
    columns: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A figure with a title, a quiet corner, and panels of these heights, row by row; all lengths in inches.

    `head` is room between the subtitle and the first panel, `foot` below the last one, for its axis and the corner.
    """
    top = 0.34 + 0.185 * (subtitle.count("\n") + 1) + head
    height = top + sum(heights) + gap * (len(heights) - 1) + foot
    said = f"{title}. {subtitle}".replace("\n", " ")  # what `show` tells those who cannot see it
    figure = Figure(figsize=(WIDTH, height), label=said)
    figure.text(0.12 / WIDTH, 1 - 0.12 / height, title, size=12, weight="bold", va="top")
    figure.text(0.12 / WIDTH, 1 - 0.38 / height, subtitle, size=9, color=QUIET, va="top", linespacing=1.35)
    figure.text(1 - 0.1 / WIDTH, 0.08 / height, corner, size=7.5, color="#70757a", ha="right", va="bottom")
    panels, wide = [], WIDTH / columns - left - right
    for inches in heights:
        top += inches
        for column in range(columns):
            at = column / columns + left / WIDTH
            panels.append(figure.add_axes((at, 1 - top / height, wide / WIDTH, inches / height)))
        top += gap
    return figure, panels


def _corner(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Which machine measured, and the day of the last sample that is drawn."""
    names = [str(name) for name in frame["machine"].unique()] if "machine" in frame else []
    dates = rows["date"].dropna().astype(str)
    return " · ".join([*names, *([dates.max()[:10]] if len(dates) else [])])


COMPUTED = "computed from the sizes: the same on every machine"


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of two where few are enough, else powers of ten, or 1, 2, 5 and so on between them."""
    if high / low <= 2**7.2:
        return [2.0**k for k in range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)]
    tens = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [round(10.0**k * step, 9) for k in tens for step in ((1,) if high / low > 2000 else (1, 3))]


def log_axis(axis: Any, low: float, high: float, ticks: Sequence[float] | None = None, suffix: str = "") -> None:
    """A log axis from low to high that reads as plain numbers."""
    axis._set_axes_scale("log")
    shown = [
        tick for tick in (ticks if ticks is not None else _log_ticks(low, high)) if low * 0.999 <= tick <= high * 1.001
    ]
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(FixedFormatter([plain(tick) + suffix for tick in shown]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def size_axis(ax: Axes, sizes: Sequence[float], label: str) -> None:
    """The x axis of sizes: a tick at each that was measured, thinned out where there is no room."""
    ax.set_xlabel(label)
    sizes = sorted(set(sizes)) or [1.0]
    low, high = sizes[0], sizes[-1]
    log_axis(ax.xaxis, low, high, sizes[:: -(-len(sizes) // 12)])
    room = (high / low) ** 0.03 if high > low else 2.0
    ax.set_xlim(low / room, high * room)


def _ink(colour: str) -> tuple[float, ...]:
    """The colour, darkened until it can be read as text on white (contrast 4.5)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5:
            return tuple(rgb)
        rgb = rgb * 0.96


def _spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """The places nearest to those wanted that are at least `apart`, in the same order, between low and high."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of the wanted places as for the block's first member, members]
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * apart, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    starts = [start / members for start, members in blocks for _ in range(int(members))]
    top = max(low, high - (len(wanted) - 1) * apart)
    places = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        places[index] = min(max(starts[rank], low), top) + rank * apart
    return places


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 9) -> None:
    """Names at the ends of lines, (x, y, text, colour), moved apart where they would touch, with a thin lead."""
    inches = ax.get_position().height * ax.figure.get_figheight()
    into = ax.transData + ax.transAxes.inverted()
    at = [tuple(into.transform((x, y))) for x, y, _, _ in ends]
    places = _spread([y for _, y in at], size * 1.3 / 72 / inches, 0.0, 1.0)
    for (x, y), place, (_, _, text, colour) in zip(at, places, ends, strict=True):
        points = dict(transform=ax.transAxes, clip_on=False, color=colour, lw=0.8, alpha=0.6)
        ax.plot([x, 1.012, 1.03], [y, place if x > 0.97 else y, place], **points)
        ax.text(1.04, place, text, transform=ax.transAxes, size=size, color=_ink(colour), va="center")


def _mark_gaps(
    ax: Axes, found: Mapping[tuple[str, float], str], drawn: Iterable[str], low: float, high: float
) -> tuple[float, float]:
    """A row at the panel's top for each method with gaps: a hollow marker at each, and why; returns the y range.

    A method that has no time at all (not in `drawn`) gets a line of text. The y range leaves the rows free.
    """
    rows = sorted({(method, status) for (method, _), status in found.items()})
    wide, tall = ax.figure.get_size_inches() * ax.get_position().size
    place = ax.get_xaxis_transform()
    for rank, (method, status) in enumerate(rows):
        colour, marker = look(method)
        level = 1 - 0.19 * (rank + 0.5) / tall
        text, style = f"{method}: {STATUS.get(status, status)}", dict(size=8, va="center", color=_ink(colour))
        hollow = dict(ls="", marker=marker, mfc="white", mec=colour, ms=6, clip_on=False)
        if method not in drawn:
            ax.plot(0.02, level, transform=ax.transAxes, **hollow)
            ax.annotate(text, (0.02, level), (8, 0), xycoords="axes fraction", textcoords="offset points", **style)
            continue
        at = sorted(x for (name, x), why in found.items() if (name, why) == (method, status))
        ax.plot(at, [level] * len(at), transform=place, **hollow)
        first, last = ((ax.transData + ax.transAxes.inverted()).transform((x, low))[0] for x in (at[0], at[-1]))
        before = first > 1 - last  # the side with more room
        if max(first, 1 - last) * wide < 0.062 * len(text):  # the marker says which method
            text = STATUS.get(status, status)
        x, away, side = (at[0], -8, "right") if before else (at[-1], 8, "left")
        ax.annotate(text, (x, level), (away, 0), xycoords=place, textcoords="offset points", ha=side, **style)
    free = max(0.3, 1 - 0.19 * len(rows) / tall)
    return low, low * (high / low) ** (1 / free)


def nothing(ax: Axes, text: str = "not measured on this machine") -> None:
    """An empty panel that says so."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=QUIET)


def _curve(ax: Axes, method: str, points: Mapping[float, Median], broken: Iterable[float] = ()) -> tuple:
    """A method's line with its band, broken where it has no time; returns its end for `label_ends`."""
    colour, marker = look(method)
    xs = sorted({*points, *broken})
    here = [points.get(x) for x in xs]
    low, middle, high = ([getattr(p, name) if p else np.nan for p in here] for name in ("low", "value", "high"))
    ax.fill_between(xs, low, high, color=colour, alpha=0.18, lw=0)
    wide = 1.2 if method.startswith("peers/") else 1.8
    ax.plot(xs, middle, color=colour, marker=marker, lw=wide, mec="white", mew=0.6, ms=7, zorder=3)
    return max(points), points[max(points)].value, method, colour


def draw_lines(
    ax: Axes,
    lines: Mapping[str, Mapping[float, Median]],
    found: Mapping[tuple[str, float], str],
    label: str,
    suffix: str = "",
    predicted: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    baseline: str = "",
) -> None:
    """Medians as lines on two log axes, their intervals as bands, breaks where a point has none, names at the ends."""
    lines = {method: points for method, points in lines.items() if points}
    sizes = sorted({x for points in lines.values() for x in points} | {x for _, x in found})
    extent = [v for points in lines.values() for m in points.values() for v in (m.low, m.high)]
    dashed = {
        name: pairs
        for name, (xs, ys) in (predicted or {}).items()
        if (pairs := [(x, y) for x, y in zip(xs, ys, strict=True) if not sizes or sizes[0] <= x <= sizes[-1]])
    }
    guessed = [y for pairs in dashed.values() for _, y in pairs]
    if extent:  # a prediction far off leaves the panel; what was measured keeps its room
        guessed = list(np.clip(guessed, min(extent) / 3, max(extent) * 3))
    extent += guessed
    sizes = sizes or sorted({x for pairs in dashed.values() for x, _ in pairs})
    if not extent:
        nothing(ax, "nothing ran here" if found else "not measured on this machine")
        return
    size_axis(ax, sizes, label)
    extent += [1.0] if baseline else []
    low, high = min(extent) / 1.25, max(extent) * 1.25
    if high / low < 4:
        middle = np.sqrt(low * high)
        low, high = middle / 2, middle * 2
    ax.set_yscale("log")
    low, high = _mark_gaps(ax, found, lines, low, high)
    log_axis(ax.yaxis, low, high, suffix=suffix)
    ax.set_ylim(low, high)
    ends = [_curve(ax, method, lines[method], [x for name, x in found if name == method]) for method in in_order(lines)]
    for name, pairs in dashed.items():
        colour = look(name).colour if "/" in name else QUIET  # a method's name, or what a bound is called
        ax.plot(*zip(*pairs, strict=True), color=colour, ls=(0, (4, 2)), lw=1.3, zorder=2)
        if name not in lines:
            ends.append((*pairs[-1], name, colour))
    if baseline:
        ax.axhline(1, color=look(baseline).colour, lw=1.2, ls=(0, (1, 1.5)), zorder=2)
        ends.append((sizes[-1], 1.0, f"{baseline} = 1", look(baseline).colour))
    label_ends(ax, ends)


BANDS = "Medians; the bands are 95% bootstrap intervals."


def _says(fixed: Mapping[str, int], rows: pd.DataFrame, axis: str) -> str:
    """What a slice of the sweep holds fixed, as a subtitle says it."""
    parts = [f"{letter} = {value:,}" for letter, value in fixed.items()] + ["I = O = H"]
    parts += [] if axis == "layers" else ["one layer"]
    threads = rows["threads"].max() if len(rows) else 1
    return ", ".join(parts + ([f"{int(threads)} threads"] if threads > 1 else []))


# --- figures that are computed ---------------------------------------------------------------------------------------


@styled
def dependency_graph(steps: int = 4) -> Figure:
    """The recurrence as a graph over time: which arrows wait for the step before, and which leave the loop."""
    figure, (ax,) = page(
        "Only one kind of arrow waits for the step before",
        "An arrow's head needs its tail. Blue and green arrows can be followed for all time steps at once.",
        "drawn from the equations", [4.4], right=0.12, left=0.12, foot=0.4,
    )  # fmt: skip
    ax.set(xlim=(-0.75, steps + 1.72), ylim=(-0.5, 4.5), xticks=[], yticks=[], aspect="auto")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    rows = {"x": 0.0, "a": 1.2, "h": 2.1, "o": 3.2, "y": 4.05}
    bands = [
        (-0.42, 0.62, BLUE, "before the loop", "U x[t] for every t:\none product"),
        (0.74, 2.56, RED, "the loop", "W h[t-1], tanh:\none step\nafter another"),
        (2.68, 4.46, GREEN, "after the loop", "V h[t], softmax\nfor every t:\none product"),
    ]
    for bottom, top, colour, name, text in bands:
        ax.add_patch(Rectangle((-0.7, bottom), steps + 2.4, top - bottom, color=colour, alpha=0.07, lw=0))
        centre = (bottom + top) / 2
        ax.text(steps + 0.25, top - 0.1, name, color=_ink(colour), weight="bold", va="top", size=9.5)
        ax.text(
            steps + 0.25, centre - 0.12 if top - bottom > 1.5 else centre - 0.1, text, color=INK, va="center", size=8.5
        )
    scale = ((WIDTH - 0.24) / (steps + 2.47)) / (4.4 / 5.0)  # circles stay round

    def arrow(tail: tuple[float, float], head: tuple[float, float], colour: str, text: str = "", wide: float = 1.4,
              beside: tuple[float, float] = (0.09, 0.0)) -> None:  # fmt: skip
        ax.add_patch(FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=11, color=colour, lw=wide,
                                     shrinkA=16, shrinkB=16, zorder=2))  # fmt: skip
        if text:
            middle = (tail[0] + head[0]) / 2 + beside[0], (tail[1] + head[1]) / 2 + beside[1]
            ax.text(*middle, text, color=_ink(colour), size=9, va="center", weight="bold")

    for t in range(steps):
        index = ("t-1", "t", "t+1", "t+2", "t+3", "t+4")[t] if t < 6 else f"t+{t - 1}"
        arrow((t, rows["x"]), (t, rows["a"]), BLUE, "U")
        arrow((t, rows["a"]), (t, rows["h"]), RED, "tanh", beside=(0.07, -0.14))
        arrow((t, rows["h"]), (t, rows["o"]), GREEN, "V")
        arrow((t, rows["o"]), (t, rows["y"]), GREEN, "softmax")
        arrow((t - 0.62 if t == 0 else t - 1, rows["h"] - (0.55 if t == 0 else 0)), (t, rows["a"]), RED,
              "W" if t else "", wide=2.6, beside=(0.06, 0.17))  # fmt: skip
        for name, level in rows.items():
            colour = BLUE if name == "x" else RED if name in "ah" else GREEN
            node = Circle((0, 0), 0.2, fc="white", ec=colour, lw=1.4, zorder=3)
            node.set_transform(mpl.transforms.Affine2D().scale(1, scale).translate(t, level) + ax.transData)
            ax.add_patch(node)
            ax.text(t, level - 0.01, f"{name}[{index}]", ha="center", va="center", size=6.8, zorder=4)
    arrow((steps - 1, rows["h"]), (steps - 0.42, rows["a"] + 0.38), RED, wide=2.6)
    return figure


class Shape(NamedTuple):
    """The sizes of one layer's workload."""

    I: int
    H: int
    O: int

    def shares(self) -> dict[str, float]:
        """The share of each product in the multiplications of a step."""
        work = {"U x": self.I * self.H, "W h": self.H * self.H, "V h": self.O * self.H}
        return {name: value / sum(work.values()) for name, value in work.items()}


@styled
def arithmetic(shapes: Mapping[str, Shape], marked: Sequence[str] = ()) -> Figure:
    """Where the arithmetic of a step is: shares of U x, W h and V h by workload; W h's share by hidden size below."""
    figure, (bars, lines) = page(
        "Where the arithmetic of a step is, and how much of it must wait",
        "Share of a step's multiplications. Only W h (red) waits for the step before.", COMPUTED,
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
        bars.text(1.02, row, f"W h: {percent(shape.shares()['W h'])}", size=9, va="center", color=_ink(RED))
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
    ax.set_position((0.82 / WIDTH, box.y0, box.x1 - 0.82 / WIDTH, box.height))
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
    size_axis(ax, list(sizes), "hidden size H")
    log_axis(ax.yaxis, 0.1, 130, (0.1, 0.3, 1, 3, 10, 30, 100), suffix="%")
    ax.set(ylim=(0.1, 130), ylabel="share of W h")
    for name, shape in marked.items():
        ax.plot(
            shape.H, 100 * shape.shares()["W h"], marker="*", ms=13, color=ORANGE, mec=INK, mew=0.6, ls="", zorder=4
        )
        ax.annotate(
            name, (shape.H, 100 * shape.shares()["W h"]), (9, -5), textcoords="offset points", size=8.5, va="top"
        )
    label_ends(ax, ends)


@styled
def floor(parts: Mapping[str, Sequence[float]], sizes: Sequence[int], subtitle: str, corner: str) -> Figure:
    """The least time of a step against H, in seconds, by what it is bound by; the largest of the parts is the floor."""
    figure, (ax,) = page("What a step must cost, whatever the program", subtitle, corner, [3.2], right=1.75, left=0.8)
    colours = dict(zip(parts, (BLUE, RED, GREEN, PINK, ORANGE), strict=False))
    series = {name: 1e6 * np.asarray(values, float) for name, values in parts.items()}
    most = np.max(list(series.values()), axis=0)
    size_axis(ax, sizes, "hidden size H")
    low, high = min(map(np.min, series.values())) / 1.4, most.max() * 1.4
    log_axis(ax.yaxis, low, high)
    ax.set(ylim=(low, high), ylabel="time a step (µs)")
    ax.plot(sizes, most, color=FAINT, lw=9, solid_capstyle="round", zorder=1)
    for name, values in series.items():
        ax.plot(sizes, values, color=colours[name], lw=1.8)
    ends = [(sizes[-1], values[-1], name, colours[name]) for name, values in series.items()]
    label_ends(ax, ends)
    return figure


# --- figures of what was measured ------------------------------------------------------------------------------------


@styled
def step_time(
    frame: pd.DataFrame,
    axis: str = "H",
    methods: Sequence[str] | None = None,
    predicted: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Time a step against H, T or B, by method. `predicted`: name -> (sizes, seconds a step), drawn dashed."""
    rows, fixed = along(frame, axis, methods)
    lines: dict[str, dict[float, Median]] = {}
    for (method, size, T), value in medians(
        rows, ["method", axis, "T"] if axis != "T" else ["method", "T", "T"]
    ).items():
        lines.setdefault(method, {})[size] = value.over(T * 1e-6)
    what = {"H": "the hidden state grows", "T": "the sequence grows", "B": "more sequences run side by side"}[axis]
    dashed = " Dashed: predicted." if predicted else ""
    figure, (ax,) = page(
        f"Time a step as {what}", f"{_says(fixed, rows, axis)}.\n{BANDS}{dashed}", _corner(frame, rows), [3.5]
    )
    scaled = {name: (list(xs), [1e6 * y for y in ys]) for name, (xs, ys) in (predicted or {}).items()}
    draw_lines(ax, lines, gaps(rows, ["method", axis]), AXES[axis], predicted=scaled)
    ax.set_ylabel("time a step (µs)" + (", all B sequences" if axis == "B" else ""))
    return figure


@styled
def speed_up(
    frame: pd.DataFrame,
    axis: str = "H",
    methods: Sequence[str] | None = None,
    over: Sequence[str] = ("serial/naive", "serial/compiled"),
) -> Figure:
    """Speed-up over named baselines against H, T, B or layers, by method: one panel a baseline."""
    rows, fixed = along(frame, axis)
    times = medians(rows, ["method", axis])
    missing = gaps(rows, ["method", axis])
    wanted = in_order(rows["method"].unique() if methods is None else methods)
    title = f"Speed-up over {' and over '.join(over)}" + (" as layers are stacked" if axis == "layers" else "")
    figure, panels = page(title, f"{_says(fixed, rows, axis)}.\n{BANDS}", _corner(frame, rows), [2.9] * len(over))
    for ax, baseline in zip(panels, over, strict=True):
        lines: dict[str, dict[float, Median]] = {}
        for (method, size), value in times.items():
            if method in wanted and method != baseline and (baseline, size) in times:
                lines.setdefault(method, {})[size] = times[baseline, size].over(value)
        found = {key: status for key, status in missing.items() if key[0] in wanted and key[0] != baseline}
        draw_lines(ax, lines, found, AXES[axis], suffix="×", baseline=baseline)
        ax.set_ylabel(f"times as fast as {baseline}")
    return figure


REPORTED = {"origin-large": 4.0, "origin-small": 4.0}  # the origin's report, over its own one-thread baselines
SLIDES = (1.06, 1.19)  # the origin's slides: OpenMP without the approximation that changes the answer


@styled
def origin(frame: pd.DataFrame, over: str = "serial/naive") -> Figure:
    """The origin's two workloads: what it reported, and every method here over `over`."""
    rows = all_cores(steady(frame))
    rows = rows[rows["workload"].isin(REPORTED)]
    times, missing = medians(rows, ["workload", "method"]), gaps(rows, ["workload", "method"])
    methods = in_order(rows["method"].unique()) or [over]
    names = ["the origin's report", "the origin's slides", *methods]
    figure, panels = page(
        "The origin's two workloads",
        f"Ours: times as fast as {over}, medians and 95% bootstrap intervals. The origin's: over its own\n"
        "one-thread baselines, on its own machine; its slides: OpenMP without the approximation.",
        _corner(frame, rows), [0.27 * len(names) + 0.05] * 2, left=1.6, right=0.3, gap=0.68, head=0.32, foot=0.6,
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
        log_axis(ax.xaxis, low, high, suffix="×")
        ax.set_xlim(low, high)
        ax.grid(False, axis="y")
        ax.axvline(1, color=QUIET, lw=0.8)
        ax.barh(0, reported - 1, left=1, height=0.55, fc="white", ec=QUIET, hatch="////", lw=0.8)
        _value(ax, reported, 0, f"about {reported:g}×", QUIET)
        ax.plot(SLIDES, [1, 1], color=QUIET, lw=1.4, marker="|", ms=9)
        _value(ax, SLIDES[1], 1, " and ".join(f"{value:g}×" for value in SLIDES), QUIET)
        for row, method in enumerate(methods, 2):
            key, (colour, marker) = (workload, method), look(method)
            if key in speeds:
                value = speeds[key]
                ax.plot([1, value.value], [row, row], color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
                ax.plot([value.low, value.high], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
                ax.plot(value.value, row, color=colour, marker=marker, ms=7.5, mec="white", mew=0.6)
                _value(ax, max(value.high, 1.0), row, f"{ratio(value.value)}×", colour)
            else:
                why = STATUS.get(missing.get(key, ""), "not measured")
                ax.plot(1, row, mfc="white", mec=colour, marker=marker, ms=7)
                _value(ax, 1.0, row, why if key in missing or key not in times else f"{over} not measured", QUIET)
    return figure


def _value(ax: Axes, x: float, row: float, text: str, colour: str) -> None:
    ax.annotate(text, (x, row), (9, 0), textcoords="offset points", va="center", size=8.5, color=_ink(colour))


@styled
def bits(table: pd.DataFrame, machine: str = "", date: str = "") -> Figure:
    """Bits per character and error to the oracle by method on the trained networks.

    `table` has a row a network and method: network, method, bits, oracle (the oracle's bits), error (relative), and
    status; where the status is not ok, bits and error are not drawn.
    """
    methods = in_order(table["method"].unique())
    networks = list(dict.fromkeys(table["network"]))
    corner = " · ".join(filter(None, [machine, date]))
    figure, (left, right) = _beside(
        "Bits per character, and error to the oracle",
        "Left: bits per character on held-out text, the dashed lines are the float64 oracle's. Right: relative error\n"
        "to the oracle in millionths, against the bound that every timed point must keep.",
        corner, 0.33 * max(len(methods), 3) + 0.1, left=1.7,
    )  # fmt: skip
    if not methods:
        nothing(left)
        nothing(right)
        return figure
    good = table[table["status"] == "ok"]
    colours = dict(zip(networks, (BLUE, RED, GREEN, ORANGE, PINK, SKY) * 3, strict=False))
    markers = dict(zip(networks, "osDv^P" * 3, strict=False))
    oracle = table.groupby("network")["oracle"].first().dropna()
    low, high = (oracle.min(), oracle.max()) if len(oracle) else (0.0, 1.0)
    room = max(high - low, 0.02) * 0.25
    left.set(xlim=(low - room, high + room), xlabel="bits per character")
    places = _spread(
        [(oracle.get(name, low) - low + room) / (high - low + 2 * room) for name in networks], 0.27, 0.1, 0.9
    )
    for name, place in zip(networks, places, strict=True):
        if name in oracle:
            left.axvline(oracle[name], color=colours[name], ls=(0, (4, 2)), lw=1.1)
            left.annotate(f"{name}\n{oracle[name]:.4f}", (oracle[name], 1), (place, 6), size=8, ha="center",
                          va="bottom", color=_ink(colours[name]), xycoords=("data", "axes fraction"),
                          textcoords=("axes fraction", "offset points"),
                          arrowprops=dict(arrowstyle="-", color=colours[name], lw=0.8, alpha=0.6))  # fmt: skip
    errors = 1e6 * good["error"].clip(lower=1e-9)
    least, most = min([0.03, *errors]) / 1.6, max([BOUND * 1e6 * 2, *errors]) * 1.3
    log_axis(right.xaxis, least, most, (0.001, 0.01, 0.1, 1, 10, 100, 1000))
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
            text = ", ".join(dict.fromkeys(STATUS.get(status, str(status)) for status in bad["status"]))
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
    figure, (first, spare) = page(title, subtitle, corner, [0.3, inches], left=left, right=0.2, gap=0.0)
    box = spare.get_position()
    half = (box.width - 0.25 / WIDTH) / 2
    spare.remove()
    first.set_position((box.x0, box.y0, half, box.height))
    return figure, (first, figure.add_axes((box.x0 + half + 0.25 / WIDTH, box.y0, half, box.height)))


@styled
def thread_scaling(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> Figure:
    """Speed-up over one thread of the same method, and efficiency, against threads: a row of panels a shape."""
    rows = square(frame).query("layers == 1")
    if methods is not None:
        rows = rows[rows["method"].isin(methods)]
    by = ["H", "T", "B", "method", "threads"]
    rows = rows[rows.groupby(by[:-1])["threads"].transform("nunique") > 1]
    times, missing = medians(rows, by), gaps(rows, by)
    measured = sorted({key[:3] for key in [*times, *missing]})
    shapes = [shape for shape in SCALED if shape in measured] or measured[: len(SCALED)] or [(0, 0, 0)]
    figure, panels = page(
        "What more threads bring",
        "Left: speed-up over the same method on one thread. Right: efficiency, the same per thread.\n"
        f"Dotted: the ideal. {BANDS}",
        _corner(frame, rows), [1.75] * len(shapes), columns=2, head=0.32, left=0.75, right=1.2,
    )  # fmt: skip
    for row, shape in enumerate(shapes):
        left, right = panels[2 * row : 2 * row + 2]
        here = {key[3:]: value for key, value in times.items() if key[:3] == shape}
        speeds: dict[str, dict[float, Median]] = {}
        for (method, threads), value in here.items():
            if (method, 1) in here:
                speeds.setdefault(method, {})[threads] = here[method, 1].over(value)
        found = {key[3:]: why for key, why in missing.items() if key[:3] == shape}
        draw_lines(left, speeds, found, AXES["threads"], suffix="×")
        _efficiency(right, speeds)
        if speeds:
            text = ", ".join(f"{name} = {value:,}" for name, value in zip("HTB", shape, strict=True))
            left.set_title(text, loc="left", size=9.5, weight="bold")
            left.set_ylabel("speed-up")
            ideal = left.get_xlim()
            left.plot(ideal, ideal, color=QUIET, lw=1.2, ls=(0, (1, 1.5)), scalex=False, scaley=False)
    return figure


def _efficiency(ax: Axes, speeds: Mapping[str, Mapping[float, Median]]) -> None:
    """Speed-ups over their number of threads, in percent."""
    if not speeds:
        nothing(ax, "")
        return
    shares = {method: {n: value.over(n / 100) for n, value in points.items()} for method, points in speeds.items()}
    size_axis(ax, sorted({n for points in shares.values() for n in points}), AXES["threads"])
    ends = [_curve(ax, method, shares[method]) for method in in_order(shares)]
    highest = max(105.0, *(1.03 * value.high for points in shares.values() for value in points.values()))
    ticks = range(0, int(highest) + 1, 50)
    ax.set(ylim=(0, highest), ylabel="efficiency", yticks=ticks)
    ax.set_yticklabels([f"{tick}%" for tick in ticks])
    ax.axhline(100, color=QUIET, ls=(0, (1, 1.5)), lw=1.2)
    label_ends(ax, [(x, y, percent(y / 100), colour) for x, y, _, colour in ends])


def over_both(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of the sweep's map over H and B, of one layer; the T with most such points is taken."""
    rows = all_cores(square(frame).query("layers == 1"))
    if methods is not None:
        rows = rows[rows["method"].isin(methods)]
    if len(rows):
        rows = rows[rows["T"] == rows.drop_duplicates(["T", "H", "B"])["T"].mode().iloc[0]]
        for one, other in (("B", "H"), ("H", "B")):  # a line of the sweep that only crosses the map is no part of it
            across = rows.groupby(one)[other].transform("nunique")
            rows = rows[across >= across.max() / 2]
    return rows


@styled
def best_map(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> Figure:
    """The fastest method at each measured H and B of the map, with its time a step."""
    rows = over_both(frame, methods)
    tried = set(zip(rows["H"], rows["B"], strict=True))
    heights, widths = sorted({H for H, _ in tried}, reverse=True), sorted({B for _, B in tried})
    fixed = f" T = {rows['T'].iloc[0]:,}, I = O = H, one layer." if len(rows) else ""
    figure, (ax,) = page(
        "Which method is fastest where", f"The fastest method, its time a step, and its lead over the next.{fixed}",
        _corner(frame, rows), [max(0.72 * len(heights), 1.5)], right=0.2,
    )  # fmt: skip
    best: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for (H, B, method), value in medians(rows, ["H", "B", "method"]).items():
        best.setdefault((H, B), []).append((1e6 * value.value / rows["T"].iloc[0], method))
    if not best:
        nothing(ax)
        return figure
    _draw_map(ax, heights, widths, {key: sorted(found) for key, found in best.items()}, tried)
    ax.set(xlabel=AXES["B"], ylabel=AXES["H"])
    return figure


def _draw_map(
    ax: Axes,
    heights: Sequence[int],
    widths: Sequence[int],
    best: Mapping[tuple[int, int], Sequence[tuple[float, str]]],
    tried: set[tuple[int, int]],
) -> None:
    """The cells of a map: `best` has the (microseconds, method) pairs of a cell, the fastest first."""
    import seaborn

    winners = in_order({found[0][1] for found in best.values()})
    codes = np.full((len(heights), len(widths)), np.nan)
    texts = np.full(codes.shape, "", object)
    for (H, B), found in best.items():
        at = heights.index(H), widths.index(B)
        (micro, method), *others = found
        lead = f"{ratio(others[0][0] / micro)}×" if others else "alone"
        name = method if len(widths) * len(method) <= 108 else method.replace("/", "/\n")  # what a cell has room for
        codes[at] = winners.index(method)
        texts[at] = f"{name}\n{short(micro)} µs\n{lead}"
    tints = [tuple(1 - 0.4 * (1 - np.array(to_rgb(look(name).colour)))) for name in winners]
    seaborn.heatmap(
        codes, mask=np.isnan(codes), annot=texts, fmt="", cmap=ListedColormap(tints), vmin=-0.5,
        vmax=len(winners) - 0.5, cbar=False, linewidths=2, linecolor="white",
        annot_kws=dict(size=7.5, color=INK, linespacing=1.3), ax=ax,
    )  # fmt: skip
    for row, column in zip(*np.nonzero(np.isnan(codes)), strict=True):
        ax.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, fc="white", ec=FAINT, hatch="///", lw=0))
        why = "does not run" if (heights[row], widths[column]) in tried else "not measured"
        ax.text(column + 0.5, row + 0.5, why.replace(" ", "\n", 1), ha="center", va="center", size=7.5, color=QUIET)
    ax.grid(False)
    ax.set_xticks(np.arange(len(widths)) + 0.5, [plain(B) for B in widths])
    ax.set_yticks(np.arange(len(heights)) + 0.5, [plain(H) for H in heights], rotation=0)
    ax.tick_params(length=0)


# --- chapter 02: where a serial program's time goes ------------------------------------------------------------------

STAIRS = ("serial/naive", "serial/hoisted", "serial/compiled")


@styled
def stairs(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> Figure:
    """From naive to hoisted to compiled at some H: each step's share of the way, on a log axis where gains add up."""
    rows, fixed = along(frame, "H", STAIRS)
    rows = rows[rows["H"].isin(sizes)]
    times, missing = medians(rows, ["H", "method"]), gaps(rows, ["H", "method"])
    figure, (ax,) = page(
        "From naive to hoisted to compiled",
        f"{_says(fixed, rows, 'H')}.\n"
        "A bar is what one change takes off the time of a step; its marker is what is left.",
        _corner(frame, rows), [0.34 * 3 * len(sizes) + 0.1], left=1.75, right=1.0,
    )  # fmt: skip
    steps = {key: value.over(fixed["T"] * 1e-6) for key, value in times.items()}
    if not steps:
        nothing(ax)
        return figure
    low, high = min(v.low for v in steps.values()) / 1.3, max(v.high for v in steps.values()) * 1.4
    log_axis(ax.xaxis, low, high)
    ax.set(xlim=(low, high), xlabel="time a step (µs)", ylim=(3 * len(sizes) - 0.35, -0.65))
    ax.grid(False, axis="y")
    for block, H in enumerate(sizes):
        before: Median | None = None
        for index, method in enumerate(STAIRS):
            row, (colour, marker) = 3 * block + index - 0.12 * index + 0.12, look(method)
            now = steps.get((H, method))
            if now is None:
                why = STATUS.get(missing.get((H, method), ""), "not measured")
                ax.text(0.01, row, why, transform=ax.get_yaxis_transform(), size=8, color=QUIET, va="center")
                continue
            if before is not None:
                ax.plot([before.value] * 2, [row - 0.88, row], color=FAINT, lw=1.2, zorder=1)
                ax.barh(row, before.value - now.value, left=now.value, height=0.5, color=colour, alpha=0.35, lw=0)
            ax.plot([now.low, now.high], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(now.value, row, color=colour, marker=marker, ms=7.5, mec="white", mew=0.6)
            gain = f"   {ratio(before.value / now.value)}×" if before else ""
            _value(ax, max(now.high, before.value if before else 0), row, f"{short(now.value)} µs{gain}", colour)
            before = now
        if block:
            ax.axhline(3 * block - 0.5, color=FAINT, lw=0.8)
        ax.text(-0.225, 3 * block + 1, f"H = {H:,}", transform=ax.get_yaxis_transform(), size=9.5, weight="bold",
                va="center", rotation=90, ha="right")  # fmt: skip
    places = [3 * block + index - 0.12 * index + 0.12 for block in range(len(sizes)) for index in range(3)]
    ax.set_yticks(places, list(STAIRS) * len(sizes), size=9)
    ax.tick_params(axis="y", length=0)
    return figure


# --- chapter 03: what meeting costs, and what sharing brings ---------------------------------------------------------


@styled
def meetings(
    costs: Mapping[str, Mapping[int, float]], steps: Mapping[str, float], corner: str, threads: Sequence[int] = ()
) -> Figure:
    """Seconds of a meeting by kind and by threads, on a log axis; `steps` are times of a step to hold beside them."""
    rows = [(kind, n) for kind, by in costs.items() for n in sorted(by) if not threads or n in threads]
    figure, (ax,) = page(
        "What it costs to meet",
        "Seconds of one meeting of so many threads, each kind by itself. Dotted: a whole step of serial/compiled\n"
        "with one sequence, I = O = H, which the meeting has to be small against.",
        corner, [0.3 * max(len(rows), 3) + 0.1], left=2.55, right=0.75, head=0.34, foot=0.62,
    )  # fmt: skip
    values = [costs[kind][n] for kind, n in rows]
    if not values:
        nothing(ax, "the peaks of this machine have not been measured")
        return figure
    low, high = min([*values, *steps.values()]) / 2, max([*values, *steps.values()]) * 2
    tens = [10.0**k for k in range(-9, 1)]
    log_axis(ax.xaxis, low, high, tens)
    ax.xaxis.set_major_formatter(FixedFormatter([duration(t) for t in tens if low * 0.999 <= t <= high * 1.001]))
    ax.set(xlim=(low, high), ylim=(len(rows) - 0.45, -0.55))
    ax.grid(False, axis="y")
    kinds = list(costs)
    for row, (kind, n) in enumerate(rows):
        colour = (BLUE, GREEN, ORANGE, RED, PINK, BLACK)[kinds.index(kind) % 6]
        ax.plot([low, costs[kind][n]], [row, row], color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
        ax.plot(costs[kind][n], row, color=colour, marker="o", ms=7.5, mec="white", mew=0.6)
        _value(ax, costs[kind][n], row, duration(costs[kind][n]), colour)
        ax.texts[-1].set_bbox(dict(fc="white", ec="none", pad=1))  # a dotted line may pass behind it
    into = ax.transData + ax.transAxes.inverted()
    wide = ax.get_position().width * WIDTH
    places = _spread([into.transform((seconds, 0))[0] for seconds in steps.values()], 0.62 / wide, 0.0, 1.0)
    for (text, seconds), place in zip(steps.items(), places, strict=True):
        ax.axvline(seconds, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, zorder=1)
        ax.annotate(text, (seconds, 1), (place, 1.07), xycoords=("data", "axes fraction"), textcoords="axes fraction",
                    size=8, ha="center", color=QUIET,
                    arrowprops=dict(arrowstyle="-", color=QUIET, lw=0.6, alpha=0.6))  # fmt: skip
    ax.set_yticks(range(len(rows)), [f"{kind}, {n} threads" for kind, n in rows], size=9)
    ax.tick_params(axis="y", length=0)
    return figure


@styled
def rows_or_batch(frame: pd.DataFrame, pair: tuple[str, str] = ("threads/rows", "threads/batch")) -> Figure:
    """Two ways to share, and where they cross: over B at one H, and over H and B."""
    first, second = pair
    rows, fixed = along(frame, "B", pair)
    table = over_both(frame, pair)
    heights, widths = sorted(set(table["H"]), reverse=True), sorted(set(table["B"]))
    figure, (ax, grid) = page(
        f"{first} or {second}",
        f"Above: {_says(fixed, rows, 'B')}. {BANDS}\nBelow: how many times as fast {second} is; T = "
        f"{table['T'].iloc[0] if len(table) else fixed['T']:,}.",
        _corner(frame, pd.concat([rows, table])), [2.5, max(0.36 * len(heights), 1.0)], head=0.14,
    )  # fmt: skip
    lines: dict[str, dict[float, Median]] = {}
    for (method, B), value in medians(rows, ["method", "B"]).items():
        lines.setdefault(method, {})[B] = value.over(fixed["T"] * 1e-6)
    draw_lines(ax, lines, gaps(rows, ["method", "B"]), AXES["B"])
    ax.set_ylabel("time a step (µs), all B sequences" if lines else "")
    found = crossing({B: lines[first][B].value / lines[second][B].value for B in lines.get(first, {})
                      if B in lines.get(second, {})})  # fmt: skip
    if found:
        ax.axvline(found, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, zorder=1)
        ax.annotate(f"level from B = {short(found)} on", (found, 0), (4, 5), xycoords=("data", "axes fraction"),
                    textcoords="offset points", size=8, color=QUIET)  # fmt: skip
    times = medians(table, ["H", "B", "method"])
    leads = {(H, B): times[H, B, first].value / value.value for (H, B, method), value in times.items()
             if method == second and (H, B, first) in times}  # fmt: skip
    _lead_map(grid, heights, widths, leads, (look(first).colour, look(second).colour))
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
        nothing(ax)
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
    ax.set(xlim=(0, len(widths)), ylim=(len(heights), 0), xlabel=AXES["B"], ylabel=AXES["H"])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(len(widths)) + 0.5, [plain(B) for B in widths])
    ax.set_yticks(np.arange(len(heights)) + 0.5, [plain(H) for H in heights])
    ax.tick_params(length=0)


@styled
def pipeline(frame: pd.DataFrame, ideals: Mapping[str, Mapping[int, float]], threads: int) -> Figure:
    """threads/wavefront over serial/compiled against layers, beside what a pipeline could bring at most."""
    rows, fixed = along(frame, "layers", ["serial/compiled", "threads/wavefront"])
    times = medians(rows, ["method", "layers"])
    speeds: dict[float, Median] = {
        layers: times["serial/compiled", layers].over(value)
        for (method, layers), value in times.items()
        if method == "threads/wavefront" and ("serial/compiled", layers) in times
    }
    figure, (ax,) = page(
        "The pipeline, and what it could bring at most",
        f"Speed-up over serial/compiled. {_says(fixed, rows, 'layers')}.\n{BANDS}",
        _corner(frame, rows), [2.7], right=2.1,
    )  # fmt: skip
    if not speeds:
        nothing(ax)
        return figure
    sizes = sorted({*speeds, *(layers for line in ideals.values() for layers in line)})
    size_axis(ax, sizes, AXES["layers"])
    tops = [value for line in ideals.values() for value in line.values()]
    highest = max([threads, *tops, *(value.high for value in speeds.values())])
    low, high = min([0.9, *(value.low / 1.1 for value in speeds.values())]), 1.15 * highest
    log_axis(ax.yaxis, low, high, suffix="×")
    ax.set(ylim=(low, high), ylabel="times as fast as serial/compiled")
    ends = [_curve(ax, "threads/wavefront", speeds)]
    for index, (name, line) in enumerate(ideals.items()):
        colour = (BLUE, BLACK, GREEN)[index % 3]
        ax.plot(list(line), list(line.values()), color=colour, lw=1.3, ls=(0, (4, 2)), zorder=2)
        ends.append((max(line), line[max(line)], name, colour))
    ax.axhline(threads, color=QUIET, lw=1.2, ls=(0, (1, 1.5)), zorder=1)
    ends.append((sizes[-1], threads, f"{threads} threads", QUIET))
    label_ends(ax, ends)
    return figure


@styled
def weight_bytes(
    frame: pd.DataFrame,
    caches: Mapping[str, int],
    peaks: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    methods: Sequence[str] = ("serial/compiled", "threads/rows"),
) -> Figure:
    """Bytes of W a second by method against H, the sizes at which W fills a cache, and `peaks` (H, bytes a second)."""
    rows, fixed = along(frame, "H", methods)
    lines: dict[str, dict[float, Median]] = {}
    for (method, H), value in medians(rows, ["method", "H"]).items():
        work = 4e-9 * H * H * fixed["T"]
        lines.setdefault(method, {})[H] = Median(work / value.value, work / value.resampled)
    figure, (ax,) = page(
        "How fast W is read", f"{_says(fixed, rows, 'H')}. Bytes of W over the time of a whole step, U x and V h "
        "included.\nDashed: W h alone, in the machine's peaks. Dotted: where W fills one core's cache of that level.",
        _corner(frame, rows), [3.1], head=0.3, right=1.6,
    )  # fmt: skip
    shown = {name: (list(xs), [1e-9 * y for y in ys]) for name, (xs, ys) in (peaks or {}).items()}
    draw_lines(ax, lines, gaps(rows, ["method", "H"]), AXES["H"], predicted=shown)
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


# --- chapter 08: which method? ---------------------------------------------------------------------------------------


@styled
def model_error(table: pd.DataFrame, within: float = 0.25) -> Figure:
    """Predicted over measured for every point: x what was measured, a colour a method.

    `table` has the columns machine, date, method, measured and predicted (both seconds a call).
    """
    methods = in_order(table["method"])
    figure, (ax,) = page(
        "The model against the measurement",
        "Predicted over measured time of a call, every point of the sweep. Beside a name: the median of how far off\n"
        f"the prediction is, either way. Shaded: within {100 * within:.0f}%.",
        _corner(table, table), [3.6], right=2.15,
    )  # fmt: skip
    if table.empty:
        nothing(ax, "no prediction to show: the peaks or the sweep are missing")
        return figure
    measured, off = 1e6 * table["measured"], table["predicted"] / table["measured"]
    low, high = min(0.45, off.min() / 1.2), max(2.2, off.max() * 1.2)
    least, most = measured.min() / 1.4, measured.max() * 1.4
    log_axis(ax.xaxis, least, most)
    log_axis(ax.yaxis, low, high, (0.1, 0.2, 0.5, 1, 2, 5, 10) if high / low < 200 else None, suffix="×")
    ax.set(xlim=(least, most), ylim=(low, high), xlabel="measured time of a call (µs)", ylabel="predicted / measured")
    ax.axhspan(1 / (1 + within), 1 + within, color="#e3e6ea", lw=0, zorder=0)
    ax.axhline(1, color=QUIET, lw=1.0, zorder=1)
    for row, method in enumerate(methods):
        here, (colour, marker) = table["method"] == method, look(method)
        style = dict(color=colour, marker=marker, ls="", mec="white", mew=0.4, clip_on=False)
        ax.plot(measured[here], off[here], ms=5.5, alpha=0.8, zorder=3, **style)
        level = 1 - (0.1 + 0.2 * row) / 3.6
        away = float((off[here] - 1).abs().median())
        ax.plot(1.05, level, transform=ax.transAxes, ms=7, **style)
        ax.text(1.085, level, f"{method}  {percent(away)}", transform=ax.transAxes, size=9, va="center",
                color=_ink(colour))  # fmt: skip
    return figure


@styled
def choices(times: pd.DataFrame, machine: str = "", date: str = "") -> Figure:
    """What a choice costs: the share of points at which it takes at most so many times as long as the best method.

    `times` has a row a point and a column a way of choosing, in multiples of the best measured time; "auto" is ours.
    """
    names = [name for name in times if times[name].notna().any()]
    figure, (ax,) = page(
        "What a wrong choice costs",
        "How many of the sweep's points a way of choosing does within so much of the fastest method measured there.\n"
        "The further up and to the left, the better. One method for everything, and auto, which asks the model.",
        " · ".join(filter(None, [machine, date])), [3.0], right=2.2,
    )  # fmt: skip
    if not names:
        nothing(ax, "no choice to show: the peaks or the sweep are missing")
        return figure
    most = max(1.3, float(times[names].max().max())) * 1.02
    ticks = [1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100]
    log_axis(ax.xaxis, 0.995, most, [tick for tick in ticks if most < 3 or tick not in (1.1, 1.2)], suffix="×")
    ax.set(xlim=(0.99, most), ylim=(0, 103), yticks=range(0, 101, 25), xlabel="time over the best method's")
    ax.set_yticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
    ax.set_ylabel("share of the points")
    for row, name in enumerate(names):
        losses = np.sort(times[name].dropna().to_numpy())
        share = 100 * np.arange(1, len(losses) + 1) / len(losses)
        colour, wide = (RED, 2.6) if name == "auto" else (look(name).colour, 1.4)
        ax.step([1, *losses, most], [0, *share, 100], where="post", color=colour, lw=wide, zorder=3 + (name == "auto"))
        level = 1 - (0.14 + 0.2 * row) / 3.0
        ax.plot([1.03, 1.07], [level, level], transform=ax.transAxes, color=colour, lw=wide, clip_on=False)
        ax.text(1.085, level, name if name == "auto" else f"always {name}", transform=ax.transAxes, size=9,
                va="center", color=_ink(colour))  # fmt: skip
    return figure


@styled
def against_peers(frame: pd.DataFrame, table: pd.DataFrame, ours: str = "auto") -> Figure:
    """Peers over ours by shape, a row a shape, sorted by the best peer's; left of 1 a peer is ahead.

    `table` has a row a shape, sorted: label, ours (seconds a call), best (a peer's name), and a column a peer with the
    seconds of its call; ratio is best over ours, low and high its interval.
    """
    figure, (ax,) = page(
        f"What a user would pick instead, over {ours}",
        f"Time of the best peer over that of {ours}, a row a shape, with its 95% bootstrap interval.\n"
        f"Right of 1, {ours} is ahead by so much. Small and grey: the other peers.",
        _corner(frame, frame), [max(0.235 * len(table), 1.0) + 0.1], left=2.5, right=1.45, foot=0.62,
    )  # fmt: skip
    if table.empty:
        nothing(ax, "no shape has both a peer's time and ours")
        return figure
    peers = [name for name in in_order(table.columns) if name.startswith("peers/")]
    others = table[peers].div(table["ours"], axis=0)
    low, high = min(0.8, table["low"].min() / 1.1), max(2.2, np.nanmax(others.to_numpy()) * 1.1)
    cut = max(2.2, 1.25 * table["high"].max())  # a peer far behind leaves the panel
    high = min(high, 3 * cut)
    log_axis(ax.xaxis, low, high, [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high], "×")
    ax.set(xlim=(low, high), ylim=(len(table) - 0.4, -0.6), xlabel=f"best peer's time over {ours}'s")
    ax.grid(False, axis="y")
    ax.axvline(1, color=INK, lw=1.0)
    for row, (_, shape) in enumerate(table.iterrows()):
        colour = RED if shape["ratio"] < 1 else BLUE
        ax.plot([low, high], [row, row], color="#f1f2f4", lw=0.8, zorder=0)
        for peer in peers:
            at = shape[peer] / shape["ours"]
            if peer != shape["best"] and at <= high:
                ax.plot(at, row, color="#a9adb1", marker=look(peer).marker, ms=4.5, mew=0, ls="")
        ax.plot([1, shape["ratio"]], [row, row], color=colour, lw=2.0, alpha=0.4, solid_capstyle="butt")
        ax.plot([shape["low"], shape["high"]], [row, row], color=colour, lw=4.5, alpha=0.3, solid_capstyle="butt")
        ax.plot(shape["ratio"], row, color=colour, marker=look(shape["best"]).marker, ms=7, mec="white", mew=0.5, ls="")
        said = f"{ratio(shape['ratio'])}×  {shape['best'].removeprefix('peers/')}"
        ax.text(1.02, row, said, transform=ax.get_yaxis_transform(), size=8.5, va="center", color=_ink(colour))
    ax.set_yticks(range(len(table)), list(table["label"]), size=8)
    ax.tick_params(axis="y", length=0)
    return figure
