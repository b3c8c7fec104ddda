"""NumPy's BLAS, held to one thread while a serial method runs: its pool would otherwise join in, and fight ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_before: list[int] = []


@cache
def _libraries() -> list:
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS in this process to one thread; the last to leave restores what the first one found.

    threadpoolctl's own context manager looks all libraries up anew, which takes longer than a short sequence.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [library.get_num_threads() for library in _libraries()]
            for library in _libraries():
                library.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for library, threads in zip(_libraries(), _before, strict=True):
                    library.set_num_threads(threads)


def _forked() -> None:
    """In a forked child nobody is inside."""
    global _lock, _inside
    _lock = threading.Lock()
    if _inside:
        _inside = 0
        for library, threads in zip(_libraries(), _before, strict=True):
            library.set_num_threads(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
