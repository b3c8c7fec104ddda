"""Drawings of ideas, in the style of the figures: the unrolled recurrence, a pipeline, caches, a cluster, a scan.

Each returns its axes: `plot.show(diagrams.wavefront(), "03_wavefront")`. Nothing in them is measured, and no machine
changes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from rnnpar.study.plot import BLUE, GREEN, INK, ORANGE, PINK, QUIET, RED, ink_for, panels

OWNERS = (BLUE, ORANGE, GREEN, PINK)  # of four threads or blocks


def _canvas(title: str, about: str, inches: float, width: float, height: float) -> Axes:
    """A page with one empty panel of these inches, `width` by `height` in the drawing's own units, y downwards."""
    ax = panels(title, about, height=inches)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _pale(colour: str, much: float = 0.35) -> tuple[float, ...]:
    """A colour mixed with white, light enough for dark words on it."""
    return tuple(1 - much * (1 - part) for part in to_rgb(colour))


def _box(ax: Axes, x: float, y: float, wide: float, high: float, colour: str, text: str = "", size: float = 8.5,
         much: float = 0.35) -> None:  # fmt: skip
    ax.add_patch(Rectangle((x, y), wide, high, fc=_pale(colour, much), ec=colour, lw=1, zorder=2))
    ax.text(x + wide / 2, y + high / 2, text, size=size, color=INK, ha="center", va="center", zorder=3, linespacing=1.3)


def dependency_graph(steps: int = 4) -> Axes:
    """The recurrence as a graph over time: which arrows wait for the step before, and which leave the loop."""
    ax = _canvas("Only one kind of arrow waits for the step before",
                 "An arrow's head needs its tail. Blue and green arrows can be followed for all time steps at once.",
                 4.5, steps + 2.47, 5.0)  # fmt: skip
    ax.set(xlim=(-0.75, steps + 1.72), ylim=(-0.5, 4.5))
    rows = {"x": 0.0, "a": 1.2, "h": 2.1, "o": 3.2, "y": 4.05}
    bands = [
        (-0.42, 0.62, BLUE, "before the loop", "U x[t] for every t:\none product"),
        (0.74, 2.56, RED, "the loop", "W h[t-1], tanh:\none step\nafter another"),
        (2.68, 4.46, GREEN, "after the loop", "V h[t], softmax\nfor every t:\none product"),
    ]
    for bottom, top, colour, name, text in bands:
        ax.add_patch(Rectangle((-0.7, bottom), steps + 2.4, top - bottom, color=colour, alpha=0.07, lw=0))
        ax.text(steps + 0.25, top - 0.1, name, color=ink_for(colour), weight="bold", va="top", size=9.5)
        ax.text(steps + 0.25, (bottom + top) / 2 - 0.12, text, color=INK, va="center", size=8.5)

    def arrow(tail: Sequence[float], head: Sequence[float], colour: str, text: str = "", wide: float = 1.4,
              beside: Sequence[float] = (0.09, 0.0)) -> None:  # fmt: skip
        ax.add_patch(FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=11, color=colour, lw=wide,
                                     shrinkA=16, shrinkB=16, zorder=2))  # fmt: skip
        middle = (tail[0] + head[0]) / 2 + beside[0], (tail[1] + head[1]) / 2 + beside[1]
        ax.text(*middle, text, color=ink_for(colour), size=9, va="center", weight="bold")

    for t in range(steps):
        index = f"t{t - 1:+d}" if t != 1 else "t"
        arrow((t, rows["x"]), (t, rows["a"]), BLUE, "U")
        arrow((t, rows["a"]), (t, rows["h"]), RED, "tanh", beside=(0.07, -0.14))
        arrow((t, rows["h"]), (t, rows["o"]), GREEN, "V")
        arrow((t, rows["o"]), (t, rows["y"]), GREEN, "softmax")
        before = (t - 1, rows["h"]) if t else (-0.62, rows["h"] - 0.55)
        arrow(before, (t, rows["a"]), RED, "W" if t else "", wide=2.6, beside=(0.06, 0.17))
        for name, level in rows.items():
            colour = BLUE if name == "x" else RED if name in "ah" else GREEN
            ax.plot(t, level, "o", ms=32, mfc="white", mec=colour, mew=1.4, zorder=3)
            ax.text(t, level - 0.01, f"{name}[{index}]", ha="center", va="center", size=6.8, zorder=4)
    arrow((steps - 1, rows["h"]), (steps - 0.42, rows["a"] + 0.38), RED, wide=2.6)
    return ax


def _arrow(ax: Axes, tail: Sequence[float], head: Sequence[float], colour: str = QUIET, wide: float = 1.2,
           bend: float = 0.0) -> None:  # fmt: skip
    ax.add_patch(FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=9, color=colour, lw=wide, zorder=4,
                                 shrinkA=0, shrinkB=0, connectionstyle=f"arc3,rad={bend}"))  # fmt: skip


def wavefront(layers: int = 2, chunks: int = 6) -> Axes:
    """The stages of stacked layers over time: which chunk each of them has in hand, and where the pipeline is full."""
    stages = [(f"layer {n + 1}: {word}", colour) for n in range(layers) for word, colour in
              (("U x", BLUE), ("W h, tanh", RED))] + [("output: V h, softmax", GREEN)]  # fmt: skip
    slots = len(stages) + chunks - 1
    ax = _canvas(
        "A wavefront: every stage a chunk behind the one above it",
        "A number is a chunk of time steps. A box needs the one with its number in the row above;\n"
        "in a red row it needs the box before it, too.",
        0.42 * len(stages) + 0.75, slots + 3.2, len(stages) + 1.7,
    )  # fmt: skip
    ax.text(3.1, 0.45, "time →", size=8.5, color=QUIET, va="center")
    full = range(len(stages) - 1, chunks)  # the slots in which no stage idles
    if full:
        ax.add_patch(Rectangle((3.1 + full[0], 0.8), len(full), len(stages) + 0.1, fc="#f1f3f4", ec="none", zorder=0))
    for row, (name, colour) in enumerate(stages):
        ax.text(3.0, row + 1.35, name, size=8.5, color=INK, ha="right", va="center")
        for chunk in range(chunks):
            x = 3.14 + row + chunk
            _box(ax, x, row + 0.98, 0.92, 0.74, colour, str(chunk + 1), much=0.6 if row + chunk in full else 0.3)
            if chunk and colour == RED:
                _arrow(ax, (x - 0.18, row + 1.35), (x + 0.14, row + 1.35), RED, 1.8)
            if row and chunk == 0:
                _arrow(ax, (x - 0.3, row + 0.62), (x + 0.08, row + 1.04))
    below = len(stages) + 1.3
    ax.text(3.1, below, "fills: some have nothing to do yet", size=8, color=QUIET, va="center")
    ax.text(3.1 + (full[0] if full else 0), below, "full", size=8, color=INK, va="center", weight="bold")
    ax.text(3.1 + slots, below, "drains", size=8, color=QUIET, va="center", ha="right")
    return ax


def rows_over_caches(cores: int = 4) -> Axes:
    """W cut into bands of rows, each in the cache of the core that owns it; h goes to all, and all meet."""
    ax = _canvas(
        "Rows over caches: each core keeps its share of W",
        "W is read in every step, and never moves: each band stays in the cache nearest to its reader.\n"
        "Only h travels.",
        3.3, 12.0, 7.2,
    )  # fmt: skip
    _box(ax, 3.4, 0.3, 8.4, 0.75, QUIET, "h[t-1], all of it, to every core", much=0.18)
    ax.text(1.3, 0.68, "W, by rows", size=8.5, color=INK, ha="center", va="center", weight="bold")
    wide = 8.4 / cores
    for core in range(cores):
        colour, x = OWNERS[core % len(OWNERS)], 3.4 + core * wide
        _box(ax, 0.3, 1.1 + core * 4.0 / cores, 2.0, 4.0 / cores, colour, f"rows of core {core}", 8)
        ax.add_patch(Rectangle((x + 0.1, 1.75), wide - 0.2, 2.75, fc="white", ec=QUIET, lw=1, zorder=1))
        ax.text(x + wide / 2, 2.08, f"core {core}", size=8.5, color=INK, ha="center", va="center", weight="bold")
        _box(ax, x + 0.28, 2.4, wide - 0.56, 0.95, colour, "its rows of W\nin its own L2", 8)
        _box(ax, x + 0.28, 3.55, wide - 0.56, 0.72, QUIET, "W h, tanh", 8, much=0.1)
        _arrow(ax, (x + wide / 2, 1.08), (x + wide / 2, 1.72))
        _arrow(ax, (x + wide / 2, 4.53), (x + wide / 2, 5.02), colour, 1.8)
        _box(ax, x + 0.02, 5.06, wide - 0.04, 0.6, colour, "a piece of h[t]", 8)
    ax.plot([3.2, 11.9], [6.15, 6.15], color=RED, lw=2.4)
    ax.text(3.1, 6.15, "barrier", size=9, color=INK, ha="right", va="center", weight="bold")
    ax.text(7.6, 6.75, "no core begins step t+1 before all pieces of h[t] are there", size=8.5, color=INK, ha="center",
            va="center")  # fmt: skip
    return ax


def cluster_exchange(blocks: int = 4) -> Axes:
    """What a block of a cluster sends at the end of a step, to whom, and how the receiver knows that it is there."""
    ax = _canvas(
        "A cluster's exchange: messages, and a count of their bytes",
        "One step, seen from block 0, whose messages of 16 bytes are the blue arrows. All others do the same at the\n"
        "same time. Nobody asks and nobody answers.",
        3.3, 12.0, 7.4,
    )  # fmt: skip
    wide = 12.0 / blocks
    for block in range(blocks):
        x, colour = block * wide, OWNERS[block % len(OWNERS)]
        ax.add_patch(Rectangle((x + 0.1, 0.2), wide - 0.2, 6.2, fc="white", ec=QUIET, lw=1, zorder=1))
        ax.text(x + wide / 2, 0.55, f"block {block}", size=9, color=INK, ha="center", va="center", weight="bold")
        _box(ax, x + 0.3, 0.9, wide - 0.6, 0.95, colour, "its rows of W\nin registers", 8)
        _box(ax, x + 0.3, 2.1, wide - 0.6, 0.62, QUIET, "reads h[t-1], all of it", 7.5, much=0.18)
        ax.text(x + wide / 2, 4.02, "next buffer: h[t]", size=7.5, color=QUIET, ha="center", va="center")
        part = (wide - 0.6) / blocks
        for piece in range(blocks):
            _box(ax, x + 0.3 + piece * part, 4.3, part, 0.7, OWNERS[piece % len(OWNERS)],
                 much=0.75 if piece == 0 else 0.15)  # fmt: skip
        _box(ax, x + 0.3, 5.4, wide - 0.6, 0.72, RED, "counter: bytes come\n= all? then go on", 7.5, much=0.15)
        into = x + 0.3 + part / 2
        if block:
            _arrow(ax, (wide - 0.3, 3.2), (into, 4.26), BLUE, 1.6, bend=-0.06)
        else:
            _box(ax, 0.3, 3.0, wide - 0.6, 0.6, colour, "its piece of h[t]", 7.5, much=0.75)
            _arrow(ax, (into, 3.62), (into, 4.26), BLUE, 1.6)
        _arrow(ax, (into, 5.02), (into, 5.37), RED)
    below = "Two buffers take turns, so that a message for t+1 never falls on a state that is still read."
    ax.text(6.0, 6.95, below, size=8.5, color=INK, ha="center", va="center")
    return ax


def scan_tree(steps: int = 8) -> Axes:
    """All prefixes of an associative operation: a chain of steps - 1 links, or log2(steps) rounds of a tree."""
    rounds = (steps - 1).bit_length()
    ax = _canvas(
        f"A scan: {steps} steps in {rounds} rounds",
        "A box a..b is the map that leads from the state before step a to the state after step b.\n"
        "Two that follow each other make one. Green: it begins at step 1, so the state after step b is known.",
        0.72 * (rounds + 1) + 0.2, steps + 2.1, rounds + 1.1,
    )  # fmt: skip
    first = list(range(steps))  # where the map that ends at a step begins
    for level in range(rounds + 1):
        word = "a map a step" if level == 0 else f"round {level}"
        ax.text(0.05, level + 0.5, word, size=8.5, color=INK, va="center")
        before = list(first)
        for step in range(steps):
            half = 1 << (level - 1) if level else 0
            x = 2.05 + step
            if level and step & half:
                joined = (step & ~(2 * half - 1)) + half - 1  # the last step of the half before
                first[step] = before[joined]
                _arrow(ax, (2.05 + joined, level - 0.2), (x - 0.06, level + 0.24), RED, 1.5)
            if level:
                _arrow(ax, (x, level - 0.2), (x, level + 0.24))
            begin = first[step]
            name = str(step + 1) if begin == step else f"{begin + 1}..{step + 1}"
            _box(ax, x - 0.38, level + 0.26, 0.76, 0.5, GREEN if begin == 0 else QUIET, name, 8.5,
                 much=0.45 if begin == 0 else 0.15)  # fmt: skip
    return ax
