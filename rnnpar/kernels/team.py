"""One team of threads for the whole process: they wait inside compiled code for a function and a job.

A parallel region runs one function, `(rank, size, job)`, on `size` threads at once: rank 0 is the calling thread, the
others are the team's workers, which are started when they are first needed and kept. Each worker has a mailbox: the
caller writes a function's address, a job's and then a ticket there, and the worker, which watches the ticket, runs it
and writes the ticket back. That costs two cache lines a worker and call. A worker without work spins, then yields its
core, and after about a millisecond waits on a condition variable, where it costs nothing.

No worker ever needs the GIL, and all of a region's threads surely run at the same time, as code that waits for other
threads must have it. Whoever calls while a region runs waits for its end.

A region that is given up (a signal's handler raised, as that of Ctrl-C does) is left by every thread before it returns:
whatever comes after finds nobody in its arrays. After a fork the child has a team of its own.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from rnnpar.kernels.atomics import ONE, ZERO, fence, load_acquire, store_release, wait
from rnnpar.kernels.jit import c_address, jit
from rnnpar.kernels.job import ERROR, FLAGS, LINE, LOOKED, STOP, WORK, Job, note_main_thread
from rnnpar.kernels.placement import allow, keep_off
from rnnpar.kernels.pointers import address_of, at, int64s
from rnnpar.kernels.system import (
    POSIX,
    call_address,
    current_core,
    init_condition,
    init_mutex,
    lock,
    nap,
    now,
    pause,
    signal_one,
    unlock,
    wait_for_signal,
    yield_core,
)
from rnnpar.kernels.tile import aligned

# A mailbox: a line that the caller and the worker pass to and fro, then a mutex, a condition variable and, while the
# worker is being woken, the cores that it may use.
TICKET, FUNCTION, JOB, SIZE, RANK, DONE, ASLEEP, THREAD, MOVED, SPIN, PARK = range(11)
MUTEX, CONDITION, CORES, BOX = LINE, 2 * LINE, 3 * LINE, 4 * LINE
BUSY, COUNT = 0, 1  # of the team's words: whether a region runs; the last ticket; then the mailboxes' addresses
TWO = np.int64(2)
GIVEN_UP, NESTED = 1, 2  # how a region may end
SPINS = 4000  # looks, each a pause, before a worker without work offers its core to others
PARK_NS = 1_000_000  # how long it does that before it sleeps
HEADER = object.__basicsize__  # of a Python object; an ndarray has its data's address behind it (NumPy's C interface)


# --- What a worker does ------------------------------------------------------------------------------------------


@jit()
def serve(box):
    """Run what comes into a mailbox, until a job without a function comes. box: the mailbox's address."""
    box = int64s(box)
    ticket = ZERO
    init_mutex((address_of(at(box, MUTEX)), 0))  # before it says for the first time that it sleeps
    init_condition((address_of(at(box, CONDITION)), 0))
    while True:
        ticket = next_ticket(box, ticket)
        if box[FUNCTION] == 0:
            return
        call_address(box[FUNCTION], (box[RANK], box[SIZE], box[JOB]))
        store_release(box, DONE, ticket)


@jit()
def next_ticket(box, last):
    """Wait for a ticket other than the last one."""
    polls = since = 0
    while True:
        ticket = load_acquire(box, TICKET)
        if ticket != last:
            return ticket
        polls += 1
        if polls < box[SPIN]:
            pause()
            continue
        if since == 0:
            since = now()
        if now() - since < box[PARK]:
            yield_core()
        else:
            park(box, last)


@jit()
def park(box, last):
    """Sleep until the ticket is another than the last one.

    The worker says that it sleeps and then looks at the ticket; the caller writes the ticket and then looks whether it
    sleeps. With a fence between the two on both sides, one of them sees the other.
    """
    mutex, condition = address_of(at(box, MUTEX)), address_of(at(box, CONDITION))
    if POSIX:
        lock((mutex,))
    box[ASLEEP] = 1
    fence()
    while load_acquire(box, TICKET) == last:
        if POSIX:
            wait_for_signal((condition, mutex))
        else:
            nap()
    box[ASLEEP] = 0
    if box[MOVED] != 0:
        box[MOVED] = 0
        allow(np.int64(0), at(box, CORES))
    if POSIX:
        unlock((mutex,))


# --- What the caller does ----------------------------------------------------------------------------------------


@jit()
def launch(team, function, job, size, x, h0, y, h):
    """One region of a function and a job on `size` threads: 0 when it is done, GIVEN_UP, or NESTED if nothing was done.

    team, function, job: addresses. x, h0, y, h: the call's arrays as Python's objects, by their addresses, or zeros.
    """
    words = int64s(team)
    if size > 1 and words[BUSY] != 0:  # a signal's handler, called from a region, wants another
        return NESTED
    fields = int64s(job)
    control = int64s(fields[0])
    control[STOP] = control[WORK] = control[LOOKED] = 0
    for rank in range(size):
        control[FLAGS + rank * LINE] = 0
    if x != 0:
        fields[1], fields[2] = int64s(x + HEADER)[0], int64s(h0 + HEADER)[0]
        fields[3], fields[4] = int64s(y + HEADER)[0], int64s(h + HEADER)[0]
    if size == 1:
        call_address(function, (0, 1, job))
        return control[STOP]
    words[BUSY] = 1
    words[COUNT] += 1
    ticket = words[COUNT]
    boxes = at(words, COUNT)  # so that worker 1's comes at 1
    for rank in range(1, size):
        box = int64s(boxes[rank])
        box[FUNCTION], box[JOB], box[SIZE] = function, job, size
        store_release(box, TICKET, ticket)
    fence()
    for rank in range(1, size):
        wake(int64s(boxes[rank]))
    call_address(function, (0, size, job))
    for rank in range(1, size):
        box = int64s(boxes[rank])
        while load_acquire(box, DONE) != ticket:  # a wait that is given up is not enough: all have to be gone
            wait(box, np.int64(DONE), ticket, control, ZERO, (box, ZERO, ONE))
            if control[STOP] != 0:
                yield_core()
    words[BUSY] = 0
    return control[STOP]


@jit()
def wake(box):
    """Wake a worker, if it sleeps: on another core than this one, which is busy.

    The system may well put it on the core of who wakes it, and leave it waiting there for the rest of the call.
    """
    if load_acquire(box, ASLEEP) == 0 or not POSIX:
        return
    mutex = address_of(at(box, MUTEX))
    lock((mutex,))
    if box[ASLEEP] != 0:  # and as long as the mutex is ours, it goes on sleeping
        box[MOVED] = keep_off(current_core(), box[THREAD], at(box, CORES), TWO)
    unlock((mutex,))
    signal_one((address_of(at(box, CONDITION)),))


@jit()
def dismiss(box):
    """End the worker of a mailbox. box: its address."""
    box = int64s(box)
    box[FUNCTION] = 0
    store_release(box, TICKET, box[TICKET] + 1)
    fence()
    wake(box)


class Team:
    """Workers that wait for work, started as they are needed; `lock` is held while a region runs on them.

    spins, park_ns: when a worker without work offers its core to others, and how long it does so before it sleeps.
    """

    def __init__(self, size: int = 1, spins: int | None = None, park_ns: int | None = None):
        _compile()
        self.launcher = launch
        self.lock = threading.RLock()
        self.size = 1  # threads that a region may have
        self._spins = SPINS if spins is None else spins
        self._park_ns = PARK_NS if park_ns is None else park_ns
        self._boxes: list[np.ndarray] = []
        self._threads: list[threading.Thread] = []
        self._words = np.zeros(2, np.int64)  # BUSY, COUNT, and where the mailboxes are
        self.address = self._words.ctypes.data
        self.grow(size)

    def grow(self, size: int) -> None:
        """Have `size` - 1 workers at least; `lock` is held."""
        for rank in range(self.size, size):
            box = aligned(BOX, np.int64)
            box[[RANK, SPIN, PARK]] = rank, self._spins, self._park_ns
            self._boxes.append(box)  # before its thread begins: an interrupt in here must not free what that watches
            thread = threading.Thread(target=serve, args=(box.ctypes.data,), name=f"rnnpar-{rank}", daemon=True)
            thread.start()
            box[THREAD] = thread.native_id
            self._threads.append(thread)
            self._words = np.append(self._words, box.ctypes.data)
            self.address = self._words.ctypes.data
            self.size += 1

    def close(self) -> None:
        """End the workers, when no region runs any more."""
        with self.lock:
            for box in self._boxes:
                dismiss(box.ctypes.data)
            for thread in self._threads:
                thread.join()
            self._boxes, self._threads, self.size = [], [], 1


_team: Team | None = None  # made by the first region


def team_here() -> Team:
    """The team of this process."""
    global _team
    if _team is None:
        with _making:
            _team = _team or Team()
    return _team


_making = threading.Lock()


def _forked() -> None:
    """A forked child has none of its parent's threads."""
    global _team, _making
    _team, _making = None, threading.Lock()
    note_main_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_restore = ctypes.pythonapi.PyErr_Restore
_restore.argtypes, _restore.restype = [ctypes.c_void_p] * 3, None


class Region:
    """A function, `(rank, size, job)`, compiled for a job; `run()` runs it on `job.size` threads."""

    def __init__(self, function: Callable[..., None], job: Job):
        self.job = job
        self._size = job.size
        self._address = job.address
        self._function = c_address(function, types.void(types.intp, types.intp, job.type))
        _compile()

    def run(self, x: Any = None, h0: Any = None, y: Any = None, h: Any = None) -> None:
        """Run it; with arrays, C-contiguous ones, they become the job's first fields after `control`.

        Raises what a signal's handler raised meanwhile, such as KeyboardInterrupt; no thread is in the region then.
        """
        arrays = (0, 0, 0, 0) if x is None else (id(x), id(h0), id(y), id(h))
        if self._size == 1:
            ended = launch(0, self._function, self._address, 1, *arrays)
        else:
            team = _team or team_here()
            with team.lock:
                if team.size < self._size:
                    team.grow(self._size)
                ended = team.launcher(team.address, self._function, self._address, self._size, *arrays)
        if ended:
            self._raise(ended)

    def _raise(self, ended: int) -> None:
        if ended == NESTED:
            raise RuntimeError("a signal's handler called a runner while this thread was in the middle of a call: let "
                               "it set a flag, and call later")  # fmt: skip
        error = self.job.control[ERROR : ERROR + 3].tolist()
        self.job.control[ERROR : ERROR + 3] = 0
        _restore(*error)  # ctypes raises what is set after a call


@cache
def _compile() -> None:
    """All that a call needs, so that none is compiled in the first one. RuntimeError in a Python it does not know."""
    array = np.zeros(1)
    if ctypes.c_void_p.from_address(id(array) + HEADER).value != array.ctypes.data:
        raise RuntimeError("in this build of Python an array's data is not where NumPy's C interface says; rnnpar "
                           "needs an ordinary CPython")  # fmt: skip
    launch.compile((types.int64,) * 8)
    serve.compile((types.int64,))
