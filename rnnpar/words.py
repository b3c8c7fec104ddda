"""Numbers as people write them, for figures, chapters and the command line; and output that takes all of them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

import numpy as np

ALIKE = 0.6  # names whose parts are at least so much alike may be slips of each other


def plain(value: float) -> str:
    """A number as people write it: 0.5, 1, 2,048; never 1e-1."""
    if abs(value) >= 1:
        return f"{value:,.10g}"
    return np.format_float_positional(value, trim="-")


def short(value: float) -> str:
    """A number to two figures, as people write it."""
    return plain(float(f"{value:.2g}"))


def percent(share: float) -> str:
    """A share that does not round to nothing."""
    return f"{100 * share:.0f}%" if share > 0.095 else f"{100 * share:.1f}%" if share > 0.001 else f"{100 * share:.2g}%"


def ratio(value: float) -> str:
    """A ratio with as many figures as say something: 0.071, 0.30, 1.04, 2.3, 17."""
    return f"{value:.2g}" if value < 0.0995 else f"{value:.2f}" if value < 1.995 else f"{value:.{int(value < 9.95)}f}"


def duration(seconds: float) -> str:
    """Seconds to two figures in the unit that people would take: 260 ns, 2.6 µs, 8 ms."""
    value = float(f"{seconds:.2g}")
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * 0.999:
            return f"{float(f'{value / size:.2g}'):,.10g} {unit}"
    return f"{float(f'{1e9 * value:.2g}'):,.10g} ns"


def gibibytes(size: float) -> str:
    """Bytes as gibibytes: 0.5 GiB, 24 GiB, 37,000 GiB."""
    return f"{short(size / 2**30)} GiB"


def write_anything() -> None:
    """From now on stdout and stderr replace characters that their encoding lacks, such as × in ASCII.

    Else a terminal or a pipe that is not UTF-8 would end a command with UnicodeEncodeError. Every command calls this
    first. An error handler that the user chose (PYTHONIOENCODING=ascii:backslashreplace) stays.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """ ": did you mean threads/rows or mpi/rows?", the names that `given` may be a slip of; empty where none is near.

    A part of a name between its slashes counts as near: "rows" is what threads/rows and mpi/rows end in.
    """
    small = {name.lower(): name for name in names}
    key = given.strip().lower()
    near = [key] if key in small else [name for name in small if key in name.split("/")][:3]
    best = max(small, key=lambda name: _alike(key, name), default="")
    near = near or [best] * (_alike(key, best) >= ALIKE)
    return f": did you mean {' or '.join(small[name] for name in near)}?" if near else ""


def _alike(one: str, other: str) -> float:
    """From 0 to 1: how alike two names are in the part that is least alike, between slashes."""
    pairs = zip(*(name.split("/") for name in (one, other)), strict=False)
    same_parts = one.count("/") == other.count("/")
    return min(difflib.SequenceMatcher(None, *pair).ratio() for pair in (pairs if same_parts else [(one, other)]))
