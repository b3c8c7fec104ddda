"""The checks of the hardware on the executor: each runs, says what it saw, and fails where something is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install 'numba-cuda[cu13]'")
pytest.importorskip("greenlet", reason="pip install greenlet")

from rnnpar import device_arrays, registry
from rnnpar.backends import numba_cuda
from rnnpar.kernels import gpu, launch
from rnnpar.study import gpu_checks
from rnnpar.study.gpu_checks import Fault
from tests import executor
from tests.backends.test_numba_cuda import numpy_product
from tests.executor import GlobalArray

SMALL = replace(launch.H100, name="a Hopper of 3 multiprocessors", multiprocessors=3, shared_per_block=16 * 1024)


@pytest.fixture
def card(monkeypatch):
    """A card of three multiprocessors, whose methods run on the executor; small sizes."""
    fake = executor.FakeGpu(SMALL, seed=5)
    for place in (gpu, numba_cuda):
        monkeypatch.setattr(place, "open_gpu", lambda number: open_fake(number, fake))
    monkeypatch.setattr(gpu.Pass, "multiply", numpy_product)
    monkeypatch.setattr(registry, "_probed", lambda probe: "")
    monkeypatch.setattr(registry, "_importable", lambda module: module == "numba_cuda")
    monkeypatch.setattr(launch.Device, "current", classmethod(lambda cls, number=0: only_one(number)))
    monkeypatch.setattr(device_arrays, "put", lambda array, backend: GlobalArray(array.copy()))
    monkeypatch.setattr(device_arrays, "fetch", lambda array: array.values.copy())
    monkeypatch.setattr(device_arrays, "zeros", lambda like, shape: GlobalArray(np.zeros(shape, np.float32)))
    monkeypatch.setattr(device_arrays, "device_of", lambda pointer: 0)
    monkeypatch.setattr(gpu_checks, "no_host_copies", NoCopies)
    monkeypatch.setattr(gpu_checks, "REPEATS", 2)
    monkeypatch.setattr(gpu_checks, "SAME_BITS", ((12, 2),))
    monkeypatch.setattr(gpu_checks, "SAME_BITS_STEPS", 4)
    monkeypatch.setattr(gpu_checks, "RESIDENT", (8,))
    monkeypatch.setattr(gpu_checks, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu_checks, "STAY", (2, 1, 4))
    return fake


class NoCopies:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def only_one(number):
    if number:
        raise ValueError(f"device is {number}; this machine has 1 GPU(s), numbered from 0")
    return SMALL


def open_fake(number, fake):
    only_one(number)
    return fake


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("same bits", "2 calls each, all bits the same: numba_cuda/persistent counter H=12"),
        ("co-residency", "blocks of 32 at H=8 B=1"),
        ("too many blocks", "refused: .*blocks that are resident together"),
        ("devices", "not among the cards written down; device 1: device is 1.*there is one GPU"),
    ],
)
def test_what_a_check_sees(card, name, words):
    import re

    assert re.search(words, gpu_checks.run(name))


def test_other_bits_are_a_fault(card, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(gpu_checks, "prepare", lambda net, method, **_: Wavering(net, calls))
    with pytest.raises(Fault, match="call 1 gave other bits than the first"):
        gpu_checks.same_bits()


class Wavering:
    """A runner that is right to float32's last digit, and never twice the same."""

    def __init__(self, net, calls):
        self.net, self.calls = net, calls

    def __call__(self, x):
        from rnnpar.reference import reference

        return tuple((part * (1 + 1e-7 * next(self.calls))).astype(np.float32) for part in reference(self.net, x))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_a_plan_that_is_refused_at_its_launch_is_a_fault(card, monkeypatch):
    def refuse(H, B, method, **options):
        raise launch.DoesNotFit(method, "blocks that are resident together", 4, 3)

    monkeypatch.setattr(gpu_checks, "answer", refuse)
    with pytest.raises(Fault, match=r"planned for \d+ blocks at H = 8, B = 1, and then refused"):
        gpu_checks.co_residency()


def test_the_largest_size_of_a_plan_is_found():
    def plan(H):
        if H > 332:
            raise launch.DoesNotFit("W", "bytes", H, 332)

    assert gpu_checks.largest(plan) == 332


def test_a_wrong_answer_is_a_fault():
    from rnnpar.network import RNN
    from rnnpar.reference import reference

    net = RNN.random(2, 3, 4)
    x = np.ones((2, 1, 2), np.float32)
    y, h = reference(net, x)
    gpu_checks.check_answer(net, x, (y, h), "a method")
    with pytest.raises(Fault, match=r"a method: relative error 0\.1"):
        gpu_checks.check_answer(net, x, (y, 1.1 * h), "a method")


def test_limits_that_differ_from_what_is_written_down_are_a_fault(card, monkeypatch):
    wrong = replace(SMALL, name=launch.H100.name)
    monkeypatch.setattr(gpu_checks, "current", lambda: wrong)
    with pytest.raises(Fault, match="multiprocessors 3, not 132, shared_per_block 16384"):
        gpu_checks.devices()


def test_device_arrays_that_come_back_as_something_else_are_a_fault(card, monkeypatch):
    monkeypatch.setattr(gpu_checks, "available", lambda: ["numba_cuda/steps"])
    assert gpu_checks.device_arrays_stay() == "numba_cuda/steps"
    monkeypatch.setattr(executor.FakeGpu, "hand_back", lambda self, like, array: array.values.copy())
    with pytest.raises(Fault, match=r"was given a tests.GlobalArray and returned ndarray"):
        gpu_checks.device_arrays_stay()
