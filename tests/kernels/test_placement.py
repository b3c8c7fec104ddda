"""Threads find a core of their own, and may use the same cores as before."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from rnnpar.kernels import atomics, placement, system
from rnnpar.kernels.atomics import wait
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import FLAGS, LINE
from rnnpar.kernels.pointers import at

pytestmark = pytest.mark.skipif(not placement.LINUX, reason="only Linux lets a thread choose its core")


@jit()
def here():
    return system.current_core()


@jit()
def count(cores):
    return placement.count(at(cores, 0))


@jit()
def leave(core, size):
    placement.leave(core, size)


@jit()
def take_core(cores, rank, size):
    atomics.take_core(cores, rank, size)


def in_a_thread(function, *arguments):
    """What `function` returns in a thread of its own, whose cores nobody else has to suffer."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join(60)
    return found[0]


def on_core(core, then):
    """Call `then` on that core, as a thread that was just woken there: it may use all, but has not moved yet."""

    def run():
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        os.sched_setaffinity(0, allowed)
        return then(), here(), os.sched_getaffinity(0) == allowed

    return in_a_thread(run)


@pytest.fixture
def two():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core only")
    return cores[:2]


def test_the_core_is_one_that_is_allowed():
    assert in_a_thread(here) in os.sched_getaffinity(0)


@jit()
def keep_off(core, cores, least):
    return placement.keep_off(core, 0, at(cores, 0), least)


@jit()
def allow(cores):
    placement.allow(0, at(cores, 0))


def test_a_thread_is_kept_off_a_core_and_allowed_to_come_back(two):
    def kept(core):
        before, cores = os.sched_getaffinity(0), np.zeros(placement.WORDS, np.int64)
        assert keep_off(core, cores, 2)
        meanwhile, where = os.sched_getaffinity(0), here()
        allow(cores)
        return before - meanwhile, where, os.sched_getaffinity(0) == before

    for core in two:
        left, where, same = in_a_thread(kept, core)
        assert left == {core}
        assert where != core
        assert same


def elsewhere(core, then):
    """Whether the thread was on another core after it at least once: the system may send it back at any time."""
    return any(on_core(core, then)[1] != core for _ in range(50))


def test_a_thread_leaves_a_core_and_may_come_back(two):
    for core in two:
        assert elsewhere(core, lambda core=core: leave(core, 2))
        assert on_core(core, lambda core=core: leave(core, 2))[2]


def test_it_stays_where_there_is_nowhere_to_go(two):
    def pinned():
        os.sched_setaffinity(0, {two[0]})
        leave(two[0], 2)
        return here(), os.sched_getaffinity(0)

    assert in_a_thread(pinned) == (two[0], {two[0]})


def test_fewer_cores_than_threads_are_shared(two):
    many = len(os.sched_getaffinity(0)) + 1
    assert not in_a_thread(keep_off, two[0], np.zeros(placement.WORDS, np.int64), many)
    assert count(np.array([-1, 0, 5] + [0] * (placement.WORDS - 3), np.int64)) == 64 + 2


def test_who_finds_another_on_its_core_goes_elsewhere(two):
    first = two[0]
    cores = np.zeros(2 * LINE, np.int64)
    cores[1] = first + 1  # thread 0 has said that it is there
    said = set()

    def take():
        take_core(cores, 1, 2)
        said.add(int(cores[LINE + 1]) - 1)

    assert elsewhere(first, take)
    assert on_core(first, take)[2]
    assert said - {first}
    assert min(said) >= 0


def test_who_is_alone_says_where(two):
    cores = np.zeros(2 * LINE, np.int64)
    cores[1] = two[1] + 1

    def pinned():
        os.sched_setaffinity(0, {two[0]})
        take_core(cores, 1, 2)

    in_a_thread(pinned)
    assert cores[LINE + 1] == two[0] + 1
    assert not np.delete(cores, [1, LINE + 1]).any()


@jit()
def wait_as_second(flag, cores, control):
    wait(flag, 0, 1, control, 1, (cores, 1, 2))


def test_a_long_wait_looks_for_a_core():
    control = np.zeros(FLAGS + 2 * LINE, np.int64)
    flag, cores = np.ones(LINE, np.int64), control[FLAGS:]
    wait_as_second(flag, cores, control)  # compiles, and has nothing to wait for
    assert not cores.any()
    flag[0] = 0
    waiting = threading.Thread(target=wait_as_second, args=(flag, cores, control))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    flag[0] = 1
    waiting.join(60)
    assert not waiting.is_alive()
    assert cores[LINE + 1] - 1 in os.sched_getaffinity(0)
