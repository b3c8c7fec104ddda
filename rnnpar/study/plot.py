"""How the chapters draw: one style, one colour and marker a method, and a few functions that take a table of results.

    ax = plot.lines(one, x="H")            # medians with bands, gaps, predictions dashed, names at the ends
    plot.show(ax, "03_time_against_H", one)

`show` names the machine and the day of what was drawn, and writes figures/<machine>/<name>.svg and .png. Whatever else
a chapter draws, it draws with seaborn or matplotlib on the axes that `panels` returns.
"""

from __future__ import annotations

import io
import os
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from rnnpar import registry
from rnnpar.study.results import REFERENCE, drawn_for
from rnnpar.words import percent, plain, ratio, short

# --- style -----------------------------------------------------------------------------------------------------------

INK, QUIET, FAINT = "#222222", "#5f6368", "#d7dade"
BLACK, BLUE, SKY, GREEN, ORANGE, RED, PINK = "#3c3c3c", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlesize": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef0",
    "lines.linewidth": 1.8, "figure.facecolor": "white", "savefig.dpi": 160, "legend.frameon": False,
    "svg.fonttype": "path", "svg.hashsalt": "rnnpar",  # the same figure is the same file
}  # fmt: skip
mpl.rcParams.update(STYLE)
WIDE = 7.4  # inches: a notebook's column
BANDS = "Medians; the bands are 95% bootstrap intervals."
DASHES, DOTS = (0, (4, 2)), (0, (1, 1.5))


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
STATUS = {  # what a gap says
    "unsupported": "not run here",
    "oom": "does not fit",
    "error": "failed",
    "inaccurate": "too inaccurate to count",
}
GROWS = {"H": "the hidden state grows", "T": "the sequence grows", "B": "more sequences run side by side",
         "layers": "layers are stacked", "threads": "more threads share the work"}  # fmt: skip
LABELS = {  # of axes
    "H": "hidden size H",
    "T": "time steps T",
    "B": "sequences side by side, B",
    "layers": "layers",
    "threads": "threads",
    "us_per_step": "time a step (µs)",
    "speed_up": "times as fast",
}


def look(name: str) -> Look:
    """The look of a method; one that is not in the table gets one made from its name, so that it keeps it."""
    code = zlib.crc32(name.encode())
    colours, markers = (BLUE, GREEN, RED, ORANGE, PINK, SKY), ("d", "*", "h", "p", "<", ">", "H", "8")
    return LOOKS.get(name, Look(colours[code % 6], markers[code // 6 % 8]))


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the registry's order, plain to clever; those that it does not know come last."""
    known = [method.name for method in registry.methods()]
    return sorted(set(methods), key=lambda name: (known.index(name) if name in known else len(known), name))


def ink_for(colour: str) -> tuple[float, ...]:
    """The colour, darkened until it can be read as text on white (contrast 4.5)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5:
            return tuple(rgb)
        rgb = rgb * 0.96


# --- pages and files -------------------------------------------------------------------------------------------------


def panels(title: str, about: str = "", rows: int = 1, columns: int = 1, height: float = 3.4, **options: Any) -> Any:
    """Axes on a page with a title and a line or two about what is drawn; an array of them, where there are several.

    `height` is a row's, in inches, with its axis labels; `options` are those of plt.subplots, as height_ratios.
    """
    lines = [part for line in about.split("\n") for part in textwrap.wrap(line, 112)]
    head, foot = 0.42 + 0.185 * len(lines), 0.24
    whole = head + rows * height + foot
    figure = Figure(figsize=(WIDE, whole), label=f"{title}. {' '.join(lines)}", layout="constrained")
    figure.get_layout_engine().set(rect=(0.01, foot / whole, 0.98, 1 - (head + foot) / whole), h_pad=0.06, hspace=0.04)
    text = dict(x=0.12 / WIDE, va="top")
    figure.text(y=1 - 0.12 / whole, s=title, size=12, weight="bold", **text)
    figure.text(y=1 - 0.38 / whole, s="\n".join(lines), size=9, color=QUIET, linespacing=1.35, **text)
    return figure.subplots(rows, columns, **options)


def show(ax: Axes | np.ndarray | Any, name: str, *tables: pd.DataFrame, day: str = "", by: str = "") -> Any:
    """Write the figure as figures/<machine>/<name>.svg and .png, and return the picture for a notebook to display.

    The machine and the last day of what was drawn, as the tables have them (or `by` and `day`), stand in its corner.
    Only the machine for which a chapter is drawn (RNNPAR_MACHINE, this one by default) has files written: another's
    lie in its own folder already. Without any table it is a drawing that no machine changes, figures/<name>: it is
    written where it is missing, and anew with the reference machine's chapters. OSError says which folder cannot be
    written; RNNPAR_FIGURES can name another one.
    """
    from IPython.display import Image

    figure = getattr(ax, "figure", None) or np.ravel(ax)[0].figure
    names = dict.fromkeys(str(name) for runs in tables for name in runs["machine"].unique())
    by = by or ", ".join(names) or (drawn_for() if tables else "")
    day = day or max((str(date)[:10] for runs in tables for date in runs["date"].dropna()), default="")
    sign(figure, " · ".join(filter(None, [by, day])) or "not measured: the same on every machine")
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # it is laid out once, not again for each file
    drawing, picture = io.BytesIO(), io.BytesIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(picture, format="png", metadata={"Software": None})
    folder = figures_folder() / by
    if by == drawn_for() or (not by and (drawn_for() == REFERENCE or not (folder / f"{name}.png").exists())):
        write(folder / f"{name}.svg", drawing.getvalue())
        write(folder / f"{name}.png", picture.getvalue())
    return Image(data=picture.getvalue(), format="png", width=int(WIDE * 100), alt=figure.get_label() or name)


def sign(figure: Figure, corner: str) -> None:
    """Put into the corner where the figure's numbers come from."""
    at = (1 - 0.1 / WIDE, 0.08 / figure.get_figheight())
    figure.text(*at, corner, size=7.5, color="#70757a", ha="right", va="bottom")


def figures_folder() -> Path:
    """Where figures go: RNNPAR_FIGURES if that is set, else figures/ beside the package."""
    named = os.environ.get("RNNPAR_FIGURES")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "figures"


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. OSError says which folder cannot be written."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; RNNPAR_FIGURES can name another folder"
        ) from error


def nothing(ax: Axes, text: str = "not measured on this machine") -> Axes:
    """An empty panel that says so."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=QUIET)
    return ax


def stamp(ax: Axes, measured: bool, x: float = 0.02, y: float = 0.97) -> None:
    """Say in the picture that nothing of it was measured, where that is so."""
    if not measured:
        ax.text(x, y, "predicted, not measured", transform=ax.transAxes, va="top", color=RED, size=9.5, weight="bold")


def about(runs: pd.DataFrame, x: str = "") -> str:
    """What the rows hold fixed, and what is drawn of them, as a page says it below its title."""
    measured = runs[runs["source"] == "measured"] if len(runs) else runs
    same = {letter: measured[letter].iloc[0] for letter in ("H", "T", "B") if measured[letter].nunique() == 1}
    parts = [f"{letter} = {value:,}" for letter, value in same.items() if letter != x]
    parts += ["I = O = H"] if len(runs) and (runs["I"] == runs["H"]).all() and (runs["O"] == runs["H"]).all() else []
    layers, threads = measured["layers"].unique(), max(measured["threads"], default=1)
    parts += [f"{layers[0]} layers" if layers[0] > 1 else "one layer"] if len(layers) == 1 and x != "layers" else []
    parts += [f"{threads} threads"] if threads > 1 and x != "threads" else []
    dashed = " Dashed: predicted." if (runs["source"] == "predicted").any() else ""
    return f"{', '.join(parts)}. {BANDS}{dashed}" if parts else BANDS + dashed


# --- axes ------------------------------------------------------------------------------------------------------------


def log_axis(axis: Any, ticks: Sequence[float] | None = None, suffix: str = "") -> None:
    """Make an axis logarithmic, with plain numbers at powers of two or ten, whichever are few enough, or at `ticks`."""
    low, high = sorted(axis.get_view_interval())
    axis._set_axes_scale("log")
    if ticks is None and high / low <= 2**7.2:
        ticks = 2.0 ** np.arange(np.floor(np.log2(low)), np.ceil(np.log2(high)) + 1)
    elif ticks is None:
        tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        ticks = tens if high / low > 2000 else np.ravel(np.outer(tens, (1, 3)))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(float(f"{value:.9g}")) + suffix))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def size_axis(ax: Axes, sizes: Iterable[float], label: str) -> None:
    """A logarithmic x axis with a tick at each size that was tried, thinned out where there is no room."""
    sizes = sorted(set(sizes)) or [1.0]
    room = (sizes[-1] / sizes[0]) ** 0.03 if sizes[-1] > sizes[0] else 2.0
    ax.set_xlim(sizes[0] / room, sizes[-1] * room)
    ticks = sizes[-1:]
    for size in reversed(sizes):
        if size * (sizes[-1] / sizes[0]) ** 0.085 < ticks[-1]:  # a number takes some 8% of the axis
            ticks.append(size)
    log_axis(ax.xaxis, sorted(ticks))
    ax.set_xlabel(LABELS.get(label, label))


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 9) -> None:
    """Names at the ends of lines, (x, y, text, colour), moved apart where they would touch, with a thin lead."""
    inches = 0.85 * ax.figure.get_figheight() * ax.get_position().height  # the page's title takes the rest
    into = ax.transData + ax.transAxes.inverted()
    at = [(x, min(max(y, 0.0), 1.0)) for x, y in (into.transform(end[:2]) for end in ends)]  # a lead stays on the page
    places = spread([y for _, y in at], size * 1.35 / 72 / inches)
    for (x, y), level, (_, _, text, colour) in zip(at, places, ends, strict=True):
        lead = dict(transform=ax.transAxes, clip_on=False, color=colour, lw=0.8, alpha=0.6)
        ax.plot([x, 1.012, 1.03], [y, level if x > 0.97 else y, level], **lead)
        ax.text(1.04, level, text, transform=ax.transAxes, size=size, color=ink_for(colour), va="center")


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """The places in 0..1 nearest to those wanted that are at least `apart`, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of the wanted places as for the block's first member, members]
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * apart, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    starts = [start / members for start, members in blocks for _ in range(int(members))]
    top = max(0.0, 1 - (len(wanted) - 1) * apart)
    places = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        places[index] = min(max(starts[rank], 0.0), top) + rank * apart
    return places


# --- figures ---------------------------------------------------------------------------------------------------------


def lines(runs: pd.DataFrame, x: str, y: str = "us_per_step", by: str = "method", title: str = "",
          ax: Axes | None = None, baseline: str = "", looks: Mapping[str, Look] | None = None) -> Axes:  # fmt: skip
    """y against x on two log axes, a line for each value of `by`: measured whole, with bands; predicted dashed.

    A line is broken where a size was tried and has no time, and the reason stands at the top. `baseline` names what
    y = 1 is. `looks` are those of what `by` holds, where that is not a method. Draws on a page of its own, or on `ax`.
    Of a table that is not one of results, x, y and `by` are enough: all counts as measured, without intervals.
    """
    defaults = {"source": "measured", "status": "ok", f"{y}_low": np.nan, f"{y}_high": np.nan}
    runs = runs.assign(**{name: value for name, value in defaults.items() if name not in runs})
    ax = ax if ax is not None else panels(title or _title(x, y, baseline), about(runs, x), height=3.9)
    find = lambda name: (looks or {}).get(name) or look(name)  # noqa: E731
    good = runs.dropna(subset=y)
    if good.empty:
        return nothing(ax, "nothing ran here" if len(runs) else "not measured on this machine")
    measured, dashed = good[good["source"] == "measured"], good[good["source"] == "predicted"]
    sizes = runs.loc[runs["source"] == "measured", x] if len(measured) else dashed[x]
    dashed = dashed[dashed[x].between(sizes.min(), sizes.max())]  # what was measured keeps its room
    size_axis(ax, sizes, x)
    _y_axis(ax, measured, dashed, y, baseline, mark_gaps(ax, runs[runs["status"] != "ok"], x, by, find))
    ends = []
    for name in in_order(good[by]):
        tried = runs.loc[(runs[by] == name) & (runs["source"] == "measured"), x].unique()
        line = measured[measured[by] == name].groupby(x)[[y, f"{y}_low", f"{y}_high"]].median().reindex(sorted(tried))
        guess, (colour, marker) = dashed[dashed[by] == name].groupby(x)[y].median(), find(name)
        ax.fill_between(line.index, line[f"{y}_low"], line[f"{y}_high"], color=colour, alpha=0.18, lw=0)
        wide = 1.2 if name.startswith("peers/") else 1.8
        ax.plot(line.index, line[y], color=colour, marker=marker, lw=wide, mec="white", mew=0.6, ms=7, zorder=3)
        dot = "." if len(guess) == 1 else ""  # one point has no dashes
        ax.plot(guess.index, guess, color=colour, marker=dot, ls=DASHES, lw=1.3, zorder=2)
        last = line[y].dropna() if line[y].notna().any() else guess
        ends.append((last.index[-1], last.iloc[-1], name, colour))
    if baseline:
        colour = find(baseline).colour if "/" in baseline else QUIET
        ax.axhline(1, color=colour, lw=1.2, ls=DOTS, zorder=2)
        ends.append((runs[x].max(), 1.0, f"{baseline} = 1", colour))
    label_ends(ax, ends)
    return ax


def _title(x: str, y: str, baseline: str) -> str:
    what = {"us_per_step": "Time a step", "speed_up": f"Speed-up over {baseline}"}.get(y, LABELS.get(y, y))
    return f"{what} as {GROWS.get(x, f'{x} grows')}"


def _y_axis(ax: Axes, measured: pd.DataFrame, dashed: pd.DataFrame, y: str, baseline: str, free: float) -> None:
    """A log axis that holds what is drawn in its lower part, `free` of it."""
    extent, guessed = measured[[y, f"{y}_low", f"{y}_high"]].to_numpy(float).ravel(), dashed[y].to_numpy(float)
    guessed = np.clip(guessed, np.nanmin(extent) / 3, np.nanmax(extent) * 3) if len(extent) else guessed
    extent = np.concatenate([extent[np.isfinite(extent)], guessed, [1.0] if baseline else []])
    low, high = extent.min() / 1.25, extent.max() * 1.25
    if high / low < 4:
        low, high = np.sqrt(low * high) / 2, np.sqrt(low * high) * 2
    ax.set_ylim(low, low * (high / low) ** (1 / free))
    log_axis(ax.yaxis, suffix="×" if y == "speed_up" else "")
    ax.set_ylabel(f"times as fast as {baseline}" if baseline else LABELS.get(y, y))


def mark_gaps(ax: Axes, gaps: pd.DataFrame, x: str, by: str, find: Callable[[str], Look] = look) -> float:
    """A row at the top for each line with sizes that have no time: hollow markers, and why. The share left below."""
    tall, rows = 0.75 * ax.figure.get_figheight() * ax.get_position().height, gaps.groupby([by, "status"])[x].unique()
    for rank, ((name, status), sizes) in enumerate(rows.items()):
        (colour, marker), level = find(name), 1 - 0.19 * (rank + 0.5) / tall
        ax.plot(sizes, [level] * len(sizes), transform=ax.get_xaxis_transform(), ls="", marker=marker, mfc="white",
                mec=colour, ms=6, clip_on=False)  # fmt: skip
        ends = (ax.transData + ax.transAxes.inverted()).transform([(min(sizes), 1), (max(sizes), 1)])[:, 0]
        before = ends[0] > max(1 - ends[1], 0.3)  # the side with more room; to the right, where neither has any
        ax.annotate(f"{name}: {STATUS.get(status, status)}", (ends[0] if before else ends[1], level),
                    (-8 if before else 8, 0), xycoords="axes fraction", textcoords="offset points", size=8,
                    ha="right" if before else "left", va="center", color=ink_for(colour))  # fmt: skip
    return max(0.3, 1 - 0.19 * len(rows) / tall)


def facets(runs: pd.DataFrame, x: str, y: str, panel: str, title: str, text: str = "", height: float = 2.4,
           **options: Any) -> np.ndarray:  # fmt: skip
    """`lines` once for each value of the column `panel`, one panel below the other; `options` are those of `lines`."""
    values = list(dict.fromkeys(runs[panel])) or [""]
    axes = np.atleast_1d(panels(title, text or about(runs, x), len(values), height=height))
    for ax, value in zip(axes, values, strict=True):
        lines(runs[runs[panel] == value], x, y, ax=ax, **options)
        ax.set_title(value if isinstance(value, str) else f"{panel} = {value:,}")
    return axes


def dots(table: pd.DataFrame, value: str, rows: str = "method", start: float | None = 1.0, suffix: str = "×",
         ax: Axes | None = None, title: str = "", text: str = "") -> Axes:  # fmt: skip
    """A row a line of the table on a log axis: a marker at `value`, a stem from `start`, an interval, and the number.

    The columns <value>_low and <value>_high are the interval's; `colour` and `text`, where they are there, are a row's
    colour and what it says in place of the number. Rows without a value show their `status`.
    """
    ax = ax if ax is not None else panels(title, text, height=0.29 * max(len(table), 3) + 0.6)
    good = table[value].dropna()
    if good.empty:
        return nothing(ax)
    ends = [good.min(), good.max(), *(good.iloc[:0] if start is None else [start])]
    low, high = min(ends) / 1.3, max(ends) * max(1.6, (max(ends) / min(ends)) ** 0.2)
    ax.set(xlim=(low, high), ylim=(len(table) - 0.4, -0.6))
    log_axis(ax.xaxis, suffix=suffix)
    columns = [column for column in table if column != "samples"]
    for row, line in enumerate(table[columns].to_dict("records")):
        line = {key: one for key, one in line.items() if not pd.isna(one)}
        colour, marker = look(line[rows]) if rows == "method" else Look(BLUE, "o")
        colour = line.get("colour", colour)
        style = dict(color=colour, solid_capstyle="butt")
        if value not in line:
            text = STATUS.get(line.get("status", ""), "not measured")
            ax.annotate(
                text, (start or low, row), (9, 0), textcoords="offset points", va="center", size=8.5, color=QUIET
            )
            ax.plot(start or low, row, mfc="white", mec=colour, marker=marker, ms=7)
            continue
        bottom, top = line.get(f"{value}_low", line[value]), line.get(f"{value}_high", line[value])
        ax.plot([low if start is None else start, line[value]], [row, row], lw=2.2, alpha=0.5, **style)
        ax.plot([bottom, top], [row, row], lw=5, alpha=0.3, **style)
        ax.plot(line[value], row, marker=marker, ms=7.5, mec="white", mew=0.6, color=colour)
        said = line.get("text", f"{ratio(line[value])}{suffix}")
        ax.annotate(said, (max(top, start or 0), row), (9, 0), textcoords="offset points", va="center", size=8.5,
                    color=ink_for(colour))  # fmt: skip
    ax.set_yticks(range(len(table)), list(table[rows]))
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    if start is not None:
        ax.axvline(start, color=QUIET, lw=0.8)
    return ax


def best_map(runs: pd.DataFrame, title: str = "Which method is fastest where") -> Axes:
    """The fastest method at each H and B of the rows, its time a step, and its lead over the next."""
    good = runs[runs["source"] == "measured"].dropna(subset="us_per_step").sort_values("us_per_step")
    shape = [sorted(runs["H"].unique(), reverse=True), sorted(runs["B"].unique())]
    text = f"The fastest method, its time a step, and its lead over the next. {about(runs).replace(BANDS, 'Medians.')}"
    text += " Hatched: not measured." if len(good.groupby(["H", "B"])) < len(shape[0]) * len(shape[1]) else ""
    ax = panels(title, text, height=max(0.62 * len(shape[0]), 1.5) + 0.5)
    if good.empty:
        return nothing(ax)
    cells = good.groupby(["H", "B"])
    best = cells.first()
    lead = cells["us_per_step"].nth(1).set_axis(cells.nth(1).set_index(["H", "B"]).index) / best["us_per_step"]
    name = best["method"] if len(shape[1]) <= 5 else best["method"].str.replace("/", "/\n")
    words = name + "\n" + best["us_per_step"].map(short) + " µs\n" + lead.reindex(best.index).map(
        lambda value: f"{ratio(value)}×" if value > 0 else "alone")  # fmt: skip
    winners = in_order(best["method"])
    grid = lambda values: values.unstack().reindex(index=shape[0], columns=shape[1])  # noqa: E731
    tints = [tuple(1 - 0.4 * (1 - np.array(to_rgb(look(name).colour)))) for name in winners]
    heat(grid(best["method"].map(winners.index)), grid(words), ax, ListedColormap(tints), -0.5, len(winners) - 0.5)
    return ax


def heat(values: pd.DataFrame, words: pd.DataFrame, ax: Axes, colours: Any, low: float, high: float) -> None:
    """Cells over H and B: a colour by the value from low to high, and words; a cell without a value is hatched."""
    if values.empty:
        nothing(ax)
        return
    seaborn.heatmap(values.astype(float), annot=words.fillna(""), fmt="", cbar=False, ax=ax, cmap=colours, vmin=low,
                    vmax=high, linewidths=2, linecolor="white",
                    annot_kws=dict(size=7.5, color=INK, linespacing=1.3))  # fmt: skip
    ax.set(xlabel=LABELS["B"], ylabel=LABELS["H"])
    ax.patch.set(hatch="////", edgecolor=FAINT)
    ax.grid(False)
    ax.set_xticks(np.arange(values.shape[1]) + 0.5, [plain(B) for B in values.columns])
    ax.set_yticks(np.arange(len(values)) + 0.5, [plain(H) for H in values.index], rotation=0)
    ax.tick_params(length=0)


def predicted_over_measured(points: pd.DataFrame, within: float = 0.25) -> Axes:
    """`results.beside` as a scatter: predicted over measured against the measured time, a colour a method."""
    text = ("Predicted over measured time of a call, every point. Beside a name: the median of how far off the "
            f"prediction is, either way. Shaded: within {100 * within:.0f}%.")  # fmt: skip
    ax = panels("The model against the measurement", text, height=3.9)
    if points.empty:
        return nothing(ax, "no prediction to show: the peaks or the measurements are missing")
    points = points.assign(off=points["predicted"] / points["seconds"], us=1e6 * points["seconds"])
    names = in_order(points["method"])
    away = (points["off"] - 1).abs().groupby(points["method"]).median()
    ax.set(xlim=(points["us"].min() / 1.4, points["us"].max() * 1.4))
    ax.set(ylim=(min(0.45, points["off"].min() / 1.2), max(2.2, points["off"].max() * 1.2)))
    seaborn.scatterplot(points, x="us", y="off", hue="method", hue_order=names, palette=[look(n).colour for n in names],
                        style="method", style_order=names, markers=[look(n).marker for n in names], ax=ax, s=38,
                        alpha=0.8)  # fmt: skip
    handles = ax.get_legend().legend_handles
    ax.legend(handles, [f"{n}  {percent(away[n])}" for n in names], loc="upper left", bbox_to_anchor=(1, 1))
    ax.axhspan(1 / (1 + within), 1 + within, color="#e3e6ea", lw=0, zorder=0)
    ax.axhline(1, color=QUIET, lw=1, zorder=1)
    ax.set(xlabel="measured time of a call (µs)", ylabel="predicted / measured")
    log_axis(ax.xaxis)
    log_axis(ax.yaxis, suffix="×")
    return ax
