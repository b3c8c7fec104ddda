"""Numba's njit as this package uses it: no GIL, and an on-disk cache that knows when any kernel has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit


def jit(**options: Any) -> Callable[[Callable], Any]:
    """`@jit(...)`: njit with nogil and a disk cache, recompiled when a file of the backends or kernels changes.

    Numba's own cache looks at the time stamp of the one file in which a function stands. A backend's compiled
    code also contains the kernels that it calls, so a change there would leave the old code in use; and after
    `git checkout` time stamps say nothing at all. Hence a stamp of the contents of all of them.
    """

    def compile_lazily(function: Callable) -> Any:
        # Python's division raises on zero, and that branch would keep every loop with a division from vectorising.
        dispatcher = njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        # Numba has no public way to say what makes a cached function stale; without the attribute it stays as it was.
        index = getattr(dispatcher._cache, "_cache_file", None)
        if hasattr(index, "_source_stamp"):
            index._source_stamp = _stamp()
        return dispatcher

    return compile_lazily


@cache
def _stamp() -> str:
    package = Path(__file__).parents[1]
    files = sorted([*(package / "kernels").glob("*.py"), *(package / "backends").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
