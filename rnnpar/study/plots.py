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
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from PIL import Image

from rnnpar import registry
from rnnpar.words import duration, percent, plain, ratio, short  # noqa: F401

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


def corner_of(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
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


def ink_for(colour: str) -> tuple[float, ...]:
    """The colour, darkened until it can be read as text on white (contrast 4.5)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5:
            return tuple(rgb)
        rgb = rgb * 0.96


def spread_labels(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
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
    places = spread_labels([y for _, y in at], size * 1.3 / 72 / inches, 0.0, 1.0)
    for (x, y), place, (_, _, text, colour) in zip(at, places, ends, strict=True):
        points = dict(transform=ax.transAxes, clip_on=False, color=colour, lw=0.8, alpha=0.6)
        ax.plot([x, 1.012, 1.03], [y, place if x > 0.97 else y, place], **points)
        ax.text(1.04, place, text, transform=ax.transAxes, size=size, color=ink_for(colour), va="center")


def mark_gaps(
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
        text, style = f"{method}: {STATUS.get(status, status)}", dict(size=8, va="center", color=ink_for(colour))
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


def draw_curve(ax: Axes, method: str, points: Mapping[float, Median], broken: Iterable[float] = ()) -> tuple:
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
    low, high = mark_gaps(ax, found, lines, low, high)
    log_axis(ax.yaxis, low, high, suffix=suffix)
    ax.set_ylim(low, high)
    ends = [
        draw_curve(ax, method, lines[method], [x for name, x in found if name == method]) for method in in_order(lines)
    ]
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


def says_of(fixed: Mapping[str, int], rows: pd.DataFrame, axis: str) -> str:
    """What a slice of the sweep holds fixed, as a subtitle says it."""
    parts = [f"{letter} = {value:,}" for letter, value in fixed.items()] + ["I = O = H"]
    parts += [] if axis == "layers" else ["one layer"]
    threads = rows["threads"].max() if len(rows) else 1
    return ", ".join(parts + ([f"{int(threads)} threads"] if threads > 1 else []))


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
        f"Time a step as {what}", f"{says_of(fixed, rows, axis)}.\n{BANDS}{dashed}", corner_of(frame, rows), [3.5]
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
    figure, panels = page(title, f"{says_of(fixed, rows, axis)}.\n{BANDS}", corner_of(frame, rows), [2.9] * len(over))
    for ax, baseline in zip(panels, over, strict=True):
        lines: dict[str, dict[float, Median]] = {}
        for (method, size), value in times.items():
            if method in wanted and method != baseline and (baseline, size) in times:
                lines.setdefault(method, {})[size] = times[baseline, size].over(value)
        found = {key: status for key, status in missing.items() if key[0] in wanted and key[0] != baseline}
        draw_lines(ax, lines, found, AXES[axis], suffix="×", baseline=baseline)
        ax.set_ylabel(f"times as fast as {baseline}")
    return figure


def value_label(ax: Axes, x: float, row: float, text: str, colour: str) -> None:
    ax.annotate(text, (x, row), (9, 0), textcoords="offset points", va="center", size=8.5, color=ink_for(colour))


def over_both(frame: pd.DataFrame, methods: Sequence[str] | None = None, all_sizes: bool = False) -> pd.DataFrame:
    """The rows of the sweep's map over H and B, of one layer; the T with most such points is taken.

    Unless `all_sizes` are asked for, a line of the sweep that only crosses the map is no part of it.
    """
    rows = all_cores(square(frame).query("layers == 1"))
    if methods is not None:
        rows = rows[rows["method"].isin(methods)]
    if len(rows):
        rows = rows[rows["T"] == rows.drop_duplicates(["T", "H", "B"])["T"].mode().iloc[0]]
        for one, other in () if all_sizes else (("B", "H"), ("H", "B")):
            across = rows.groupby(one)[other].transform("nunique")
            rows = rows[across >= across.max() / 2]
    return rows


@styled
def best_map(frame: pd.DataFrame, methods: Sequence[str] | None = None, all_sizes: bool = False) -> Figure:
    """The fastest method at each measured H and B of the map, with its time a step."""
    rows = over_both(frame, methods, all_sizes)
    tried = set(zip(rows["H"], rows["B"], strict=True))
    heights, widths = sorted({H for H, _ in tried}, reverse=True), sorted({B for _, B in tried})
    fixed = f" T = {rows['T'].iloc[0]:,}, I = O = H, one layer." if len(rows) else ""
    figure, (ax,) = page(
        "Which method is fastest where", f"The fastest method, its time a step, and its lead over the next.{fixed}",
        corner_of(frame, rows), [max(0.72 * len(heights), 1.5)], right=0.2,
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


# --- figures of what was predicted -----------------------------------------------------------------------------------


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
        corner_of(table, table), [3.6], right=2.15,
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
                color=ink_for(colour))  # fmt: skip
    return figure
