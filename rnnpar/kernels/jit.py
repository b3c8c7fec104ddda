"""Numba's njit and cfunc as this package uses them: no GIL, and a disk cache that is checked and never in the way."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

PACKAGE = Path(__file__).parents[1]
# Python's division raises on zero, and that branch would keep every loop with a division from vectorising.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def jit(**options: Any) -> Callable[[Callable], Any]:
    """`@jit(...)`: njit without the GIL, with a `Cache`."""

    def compile_lazily(function: Callable) -> Any:
        dispatcher = numba.njit(**OPTIONS, **options)(function)
        dispatcher._cache = cache_of(function)
        return dispatcher

    return compile_lazily


def c_address(function: Callable, signature: Any) -> int:
    """Compile a Python function for one signature, or find it in the cache; returns the address of the C function."""
    return _compiled(function, signature).address


@cache
def _compiled(function: Callable, signature: Any) -> Any:
    from numba.core.ccallback import CFunc

    compiled = CFunc(function, (signature.args, signature.return_type), {}, {"nopython": True, **OPTIONS})
    compiled._cache = cache_of(function)
    compiled.compile()
    return compiled


def cache_of(function: Callable) -> Any:
    """The disk cache of a function; one that keeps nothing where no folder can be written."""
    from numba.core.caching import NullCache

    try:
        return Cache(function)
    except RuntimeError:
        say_once("no folder for compiled code can be written, so each process compiles anew; NUMBA_CACHE_DIR names one")
        return NullCache()


class Cache(FunctionCache):
    """Numba's disk cache, but stale when any kernel has changed, and no error where a file is damaged or unwritable.

    Numba's own looks at the time stamp of the one file in which a function stands. A backend's compiled code also
    contains the kernels that it calls, so a change there would leave the old code in use; and after `git checkout`
    time stamps say nothing at all. Hence a stamp of the contents of all of them, and Numba's for a file of yours.
    """

    def __init__(self, function: Callable):
        super().__init__(function)
        ours = Path(function.__code__.co_filename).is_relative_to(PACKAGE)
        stamps = stamp(), None if ours else self._impl.locator.get_source_stamp()
        self._cache_file = CheckedFile(self._cache_path, f"{self._impl.filename_base}.checked", stamps)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged pickle may raise anything
            say_once(f"compiled code in {self._cache_path} is damaged and is compiled anew: {error!r}")
            with suppress(OSError):
                os.unlink(self._cache_file._index_path)  # else it would be found damaged again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            say_once(f"compiled code cannot be kept in {self._cache_path}, so the next process compiles anew: {error}")


class CheckedFile(IndexDataCacheFile):
    """A function's index and data files, each with a digest at its end: what was changed on the disk is never run."""

    def _dump(self, obj: Any) -> bytes:
        data = super()._dump(obj)
        return data + hashlib.sha256(data).digest()  # pickle ignores what comes after its end

    def _load_index(self) -> dict:
        with suppress(FileNotFoundError), open(self._index_path, "rb") as file:
            if pickle.load(file) == self._version:  # written in front of what `_dump` made
                self._check(file.read())
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            self._check(file.read())
        return super()._load_data(name)

    def _check(self, data: bytes) -> None:
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ValueError("its digest is another")


@cache
def stamp() -> str:
    """A hash of every file whose code is compiled."""
    files = sorted([*(PACKAGE / "kernels").glob("*.py"), *(PACKAGE / "backends").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def say_once(words: str) -> None:
    """A line on stderr, the first time; no warning, since a caller may have made errors of those."""
    print(f"rnnpar: {words}", file=sys.stderr, flush=True)
