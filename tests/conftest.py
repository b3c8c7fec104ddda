"""What the tests share: the error bound of the house, and inputs."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest

import rnnpar
from rnnpar import registry
from rnnpar.reference import relative_error
from rnnpar.runner import Runner

# What runs on the CPU of any machine, in this process; the others need more, and have tests of their own.
OTHERS = ("peers", "mpi", "numba_cuda", "cupy_gpu")
CPU = [method.name for method in rnnpar.methods() if method.available and method.backend not in OTHERS]
BOUND = 1e-5  # relative to the float64 oracle, for float32 methods


def random_input(net: rnnpar.RNN, T: int, B: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((T, B, net.input_size)).astype(np.float32)


def prepare_on_two(net: rnnpar.RNN, name: str, **options: Any) -> Runner:
    """A runner on two threads, if the method has any use for them."""
    if "threads" in registry.find(name).options():
        options["threads"] = 2
    return rnnpar.prepare(net, name, **options)


def assert_matches_oracle(run, x: np.ndarray, h0: np.ndarray | None = None, bound: float = BOUND) -> None:
    """y and h of a runner are within `bound` of the oracle's, relative, in norm."""
    y, h = run(x, h0)
    wanted_y, wanted_h = rnnpar.reference(run.net, x, h0)
    assert y.dtype == h.dtype == np.float32
    assert y.shape == wanted_y.shape
    assert h.shape == wanted_h.shape
    assert relative_error(y, wanted_y) < bound
    assert relative_error(h, wanted_h) < bound


@pytest.fixture(autouse=True)
def the_same_peaks_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the models choose must not depend on what this machine measured, nor should a test wait for that."""
    from rnnpar import model
    from rnnpar.kernels.tile import WIDTH
    from tests.test_model import simple_peaks

    monkeypatch.setattr(model, "here", lambda: model.Model(simple_peaks(), WIDTH))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class Interrupted(TimeoutError):
    """As a handler of SIGALRM raises it; many a system call raises a TimeoutError, too."""


@pytest.fixture
def interrupt():
    """interrupt(seconds): a signal's handler raises Interrupted so many seconds later."""

    def handler(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    timers = []

    def after(seconds: float) -> float:
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1)))
        timers[-1].start()
        return time.monotonic() + seconds

    yield after
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


def children() -> set[int]:
    """The processes that this one has, of whatever test."""
    return {child.pid for child in psutil.Process().children(recursive=True)}
