"""The host side of a launch, with a stand-in for what Numba compiles: what is asked before, and what errors say."""

from __future__ import annotations

import types

import numpy as np
import pytest

from rnnpar.kernels import gpu
from rnnpar.kernels.launch import H100, DoesNotFit, plan_persistent


class Kernel:
    """As much of a compiled kernel as Gpu.launch uses."""

    def __init__(self, room=132, registers=200, error=None):
        self.room, self.regs_per_thread, self.error = room, registers, error
        self.cooperative, self.compilations, self.calls, self.shared = False, 0, [], None
        self.library = types.SimpleNamespace(get_cufunc=lambda: self)
        self.py_func = types.SimpleNamespace(__name__="kernel")

    typeof_pyval = staticmethod(type)

    def compile(self, types):
        self.compilations += 1
        return self

    def max_cooperative_grid_blocks(self, threads, shared):
        return self.room

    def __getitem__(self, configuration):
        def call(*args):
            if self.error:
                raise self.error
            self.calls.append((configuration, args))

        return call


@pytest.fixture
def device(monkeypatch):
    made = object.__new__(gpu.Gpu)
    made.device, made.number, made._ready, made._pools = H100, 0, {}, {}
    monkeypatch.setattr(gpu, "allow_shared", lambda function, size: setattr(function, "shared", size))
    return made


def test_a_kernel_is_compiled_once_for_a_shape_of_launch(device):
    kernel = Kernel()
    for _ in range(3):
        device.launch(kernel, 4, 64, np.zeros((2, 3)), 5)
    assert kernel.compilations == 1
    assert not kernel.cooperative
    assert kernel.shared is None
    (grid, threads, stream, shared), (array, number) = kernel.calls[0]
    assert (grid, threads, stream, shared, array.shape, number) == (4, 64, 0, 0, (6,), 5)


def test_more_shared_memory_is_asked_for(device):
    kernel = Kernel()
    device.launch(kernel, 4, 64, shared=100_000)
    assert kernel.shared == 100_000


def test_blocks_that_wait_for_each_other_are_launched_cooperatively(device):
    plan, kernel = plan_persistent(H100, 1024, 1), Kernel()
    device.launch(kernel, plan.grid, plan.threads, shared=plan.shared, plan=plan, what="numba_cuda/persistent")
    assert kernel.cooperative
    assert len(kernel.calls) == 1


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (Kernel(room=100), "needs 128 blocks that are resident together, and there are 100: on NVIDIA H100"),
        (Kernel(registers=256), "needs 256 registers a thread, and there are 255"),
    ],
)
def test_what_the_driver_counts_is_checked_before_the_launch(device, kernel, words):
    """The plan may be wrong about registers: the compiled kernel's own, and the driver's count, have the last word."""
    plan = plan_persistent(H100, 1024, 1)
    with pytest.raises(DoesNotFit, match=f"numba_cuda/persistent {words}"):
        device.launch(kernel, plan.grid, plan.threads, shared=plan.shared, plan=plan, what="numba_cuda/persistent")
    assert kernel.calls == []


def test_a_launch_that_fails_says_which(device):
    kernel = Kernel(error=OSError("CUDA_ERROR_LAUNCH_FAILED"))
    with pytest.raises(RuntimeError, match=r"launch of kernel on NVIDIA H100.*failed \(4 blocks of 64 threads.*LAUNCH"):
        device.launch(kernel, 4, 64)


def test_no_room_on_the_device(device, monkeypatch):
    def refuse(shape, dtype):
        raise OSError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(gpu.cuda, "device_array", refuse)
    with pytest.raises(MemoryError, match=r"no room for 4,000 bytes more, for an array \(10, 100\): take fewer steps"):
        device.empty((10, 100))


def test_no_gpu_says_why(monkeypatch):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "no NVIDIA driver here")
    with pytest.raises(RuntimeError, match="no GPU can be used here: no NVIDIA driver here"):
        gpu.open_gpu(0)
