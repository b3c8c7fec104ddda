"""Which cores a thread may use, and how it comes to another one: asked of Linux from compiled code."""

from __future__ import annotations

import numpy as np

from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import address_of
from rnnpar.kernels.system import SYSTEM, c_function, sixteen_words

LINUX = SYSTEM == "Linux"  # others do not let a thread choose; there the core is never known, and `leave` never called
WORDS = 16  # of 64 cores each, in the system's set of cores

# Of a thread by its number, 0 for this one: (thread, bytes, address of a set); negative if that failed.
_get_cores, _set_cores = c_function("sched_getaffinity"), c_function("sched_setaffinity")


@jit()
def leave(core, size):
    """Go to another of the cores that this thread may use, if there are `size` at least; it may come back later."""
    mine = sixteen_words()
    if keep_off(core, np.int64(0), mine, size):
        allow(np.int64(0), mine)


@jit()
def keep_off(core, thread, cores, least):
    """Let a thread use all cores that it may use but this one, if there are `least` at least; returns whether it does.

    cores: room for a set, which becomes the one that `allow` gives back.
    """
    if core < 0 or core >= 64 * WORDS or _get_cores((thread, 8 * WORDS, address_of(cores))) < 0 or count(cores) < least:
        return False
    bit = np.int64(1) << (core % 64)
    cores[core // 64] &= ~bit
    moved = _set_cores((thread, 8 * WORDS, address_of(cores))) >= 0
    cores[core // 64] |= bit
    return moved


@jit()
def allow(thread, cores):
    """Let a thread use a set of cores."""
    _set_cores((thread, 8 * WORDS, address_of(cores)))


@jit()
def count(cores):
    """How many cores a set has."""
    found = 0
    for word in range(WORDS):
        for bit in range(64):
            found += (cores[word] >> bit) & 1
    return found
