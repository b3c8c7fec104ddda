"""Numbers as people write them, for figures, chapters and the command line."""

from __future__ import annotations

import numpy as np


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
