"""Atomics and barriers, by threads that would lose counts or run ahead without them."""

import threading

import numpy as np
import pytest

from rnnpar.kernels.atomics import barrier, counter_barrier, fetch_add, load_acquire, store_release, wait
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import FLAGS, LINE, STOP


def run_threads(size, function, *arguments):
    threads = [threading.Thread(target=function, args=(rank, size, *arguments)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"


@jit()
def add_many(rank, size, counter, times):
    for _ in range(times):
        fetch_add(counter, 0, 1)


def test_no_addition_is_lost():
    counter = np.zeros(1, np.int64)
    run_threads(4, add_many, counter, 100_000)
    assert counter[0] == 400_000


@jit()
def pass_baton(rank, size, flag, payload, seen, times):
    for i in range(times):
        if rank == 0:
            payload[0] = i * 3
            store_release(flag, 0, 2 * i + 1)
            while load_acquire(flag, 0) != 2 * i + 2:
                pass
        else:
            while load_acquire(flag, 0) != 2 * i + 1:
                pass
            seen[i] = payload[0]
            store_release(flag, 0, 2 * i + 2)


def test_release_publishes_what_was_written_before():
    seen = np.zeros(200, np.int64)
    run_threads(2, pass_baton, np.zeros(1, np.int64), np.zeros(1, np.int64), seen, len(seen))
    assert np.array_equal(seen, 3 * np.arange(len(seen)))


def control_of(size):
    """What a job's `control` points to: see rnnpar/kernels/job.py."""
    return np.zeros(FLAGS + size * LINE, np.int64)


# Rank 0 of these is no calling thread that could ask Python for signals, so all say that they are rank 1.


@jit()
def count_between_counter(rank, size, counter, progress, ahead, times, control):
    for epoch in range(1, times + 1):
        progress[rank * LINE] = epoch
        counter_barrier(counter, 1, size, 2 * epoch - 1, control)
        for other in range(size):
            if progress[other * LINE] < epoch:
                ahead[rank] += 1
        counter_barrier(counter, 1, size, 2 * epoch, control)


@pytest.mark.parametrize("size", [1, 2, 3, 8])  # more threads than cores too: slower, never stuck
def test_counter_barrier_lets_nobody_run_ahead(size):
    ahead, counter = np.zeros(size, np.int64), np.zeros(LINE, np.int64)
    run_threads(size, count_between_counter, counter, np.zeros(size * LINE, np.int64), ahead, 100, control_of(size))
    assert not ahead.any()


@jit()
def rounds(rank, size, flags, log, times, control):
    for epoch in range(1, times + 1):
        log[rank, epoch] = log[(rank + 1) % size, epoch - 1] + 1
        barrier(flags, rank, size, epoch, control, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_flag_barrier_orders_every_round(size):
    log, control = np.zeros((size, 201), np.int64), control_of(size)
    run_threads(size, rounds, control[FLAGS:], log, 200, control)
    assert (log == np.arange(201)).all()


@jit()
def wait_alone(rank, size, flags, control):
    wait(flags, 0, 1, control, 1, (flags, 0, 1))


def test_a_wait_ends_where_the_call_is_given_up():
    control = control_of(1)
    waiting = threading.Thread(target=wait_alone, args=(0, 1, control[FLAGS:], control), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    control[STOP] = 1
    waiting.join(60)
    assert not waiting.is_alive()
