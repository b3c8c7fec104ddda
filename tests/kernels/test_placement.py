"""Threads find a core of their own, and may use the same cores as before."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from rnnpar.kernels import placement
from rnnpar.kernels.atomics import LINE, take_core, wait_in_team
from rnnpar.kernels.jit import jit

pytestmark = pytest.mark.skipif(not placement.LINUX, reason="only Linux lets a thread choose its core")


@jit()
def here():
    return placement.current_core()


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


def test_a_thread_leaves_a_core_and_may_come_back(two):
    for core in two:
        _, after, same = on_core(core, lambda core=core: placement.leave(core, 2))
        assert after != core
        assert same


def test_it_stays_where_there_is_nowhere_to_go(two):
    def pinned():
        os.sched_setaffinity(0, {two[0]})
        placement.leave(two[0], 2)
        return here(), os.sched_getaffinity(0)

    assert in_a_thread(pinned) == (two[0], {two[0]})


def test_fewer_cores_than_threads_are_shared(two):
    many = len(os.sched_getaffinity(0)) + 1
    cores = [on_core(two[0], lambda: placement.leave(two[0], many))[1] for _ in range(20)]
    assert two[0] in cores  # the system may move a thread too, but not each time and at once
    assert placement.count(np.array([-1, 0, 5], np.int64)) == 64 + 2


def test_who_finds_another_on_its_core_goes_elsewhere(two):
    first = two[0]
    cores = np.zeros(2 * LINE, np.int64)
    cores[1] = first + 1  # thread 0 has said that it is there
    _, after, same = on_core(first, lambda: take_core(cores, 1, 2))
    assert after != first
    assert same
    assert cores[LINE + 1] != first + 1
    assert cores[LINE + 1] > 0


def test_who_is_alone_says_where(two):
    cores = np.zeros(2 * LINE, np.int64)
    cores[1] = two[1] + 1

    def pinned():
        os.sched_setaffinity(0, {two[0]})
        take_core(cores, 1, 2)

    in_a_thread(pinned)
    assert cores[LINE + 1] == two[0] + 1
    assert not np.delete(cores, [1, LINE + 1]).any()


def test_a_long_wait_looks_for_a_core():
    flag, cores = np.zeros(LINE, np.int64), np.zeros(2 * LINE, np.int64)
    wait_in_team(flag, 0, 0, (cores, 1, 2))  # compiles, and has nothing to wait for
    assert not cores.any()
    waiting = threading.Thread(target=wait_in_team, args=(flag, 0, 1, (cores, 1, 2)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    flag[0] = 1
    waiting.join(60)
    assert not waiting.is_alive()
    assert cores[LINE + 1] - 1 in os.sched_getaffinity(0)
