"""What starting other processes takes, whatever they do: no interrupt in between, no child of a fork that ends them."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STARTED: weakref.WeakSet[Any] = weakref.WeakSet()  # what has processes; each hears of a fork on both sides of it


def _in_parent() -> None:
    for owner in list(STARTED):
        owner.stay_with_parent()


def _in_child() -> None:
    for owner in list(STARTED):
        owner.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


@contextmanager
def held_back() -> Iterator[None]:
    """What is begun in here is not left half done: signals that Python handles are heard after it.

    An interrupt between the start of a process and the note of it would leave a process that nobody ends.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def listen(pipe: Any, words: deque[str]) -> None:
    """Keep the last lines that a pipe brings, then close it.

    The pipe has no buffer, but this reading of it: a buffer has a lock, which a forked child would find taken for ever.
    """
    with pipe, open(pipe.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            words.append(line.decode(errors="replace"))
