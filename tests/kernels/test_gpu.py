"""The host side of a launch, with a stand-in for what Numba compiles: what is asked before, and what errors say."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pytest

from rnnpar.kernels import gpu
from rnnpar.kernels.launch import H100, DoesNotFit, plan_persistent
from tests.kernels.fake_cupy import sgemm


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


class Launch:
    """gpu.Launch without a driver."""

    def __init__(self, function, *shape, cooperative):
        self.function, self.shape, function.cooperative = function, shape, cooperative

    def __call__(self, args):
        if self.function.error:
            raise self.function.error
        self.function.calls.append((self.shape, args))


@pytest.fixture
def device(monkeypatch):
    made = object.__new__(gpu.Gpu)
    made.device, made.number, made._ready, made._pools = H100, 0, {}, {}
    monkeypatch.setattr(gpu, "Launch", Launch)
    monkeypatch.setattr(gpu, "allow_shared", lambda function, size: setattr(function, "shared", size))
    return made


def test_a_kernel_is_compiled_once_for_a_shape_of_launch(device):
    kernel = Kernel()
    for _ in range(3):
        device.launch(kernel, 4, 64, np.zeros((2, 3)), 5)
    assert kernel.compilations == 1
    assert not kernel.cooperative
    assert kernel.shared is None
    shape, (array, number) = kernel.calls[0]
    assert (*shape, array.shape, number) == (4, 64, 0, (2, 3), 5)


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


def test_a_launch_gives_the_driver_what_numba_s_kernels_expect(monkeypatch):
    """Arrays as no owner, no parent, elements, bytes of one, address, length, stride; whole numbers as they are."""
    asked = []

    def ask(function, *arguments):
        *shape, where, extra = arguments
        first = ctypes.cast(where, ctypes.POINTER(ctypes.POINTER(ctypes.c_int64)))
        asked.append(([first[i].contents.value for i in range(9)], shape, extra))
        return (gpu.driver.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(gpu.driver, "cuLaunchKernel", ask)
    array = types.SimpleNamespace(
        size=6, dtype=np.dtype(np.float32), device_ctypes_pointer=types.SimpleNamespace(value=4096)
    )
    gpu.Launch(types.SimpleNamespace(handle=7), (3, 2), 64, 100, cooperative=False)((array, -5, 2**40))
    assert asked == [([0, 0, 6, 4, 4096, 6, 4, -5, 2**40], [3, 2, 1, 64, 1, 1, 100, 0], 0)]


def test_a_launch_that_the_driver_refuses_says_what_it_said(monkeypatch):
    refused = gpu.driver.CUresult.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    monkeypatch.setattr(gpu.driver, "cuLaunchCooperativeKernel", lambda *arguments: (refused,))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"):
        gpu.Launch(types.SimpleNamespace(handle=7), 3, 64, 0, cooperative=True)((1,))


class OnHost:
    """A device array as far as its address goes."""

    def __init__(self, values):
        self.values = np.ascontiguousarray(values, np.float32)
        self.device_ctypes_pointer = types.SimpleNamespace(value=self.values.ctypes.data)


def test_cublas_multiplies_parts_of_padded_matrices_in_the_kernels_stream(monkeypatch):
    """Rows begin at an offset and lie further apart than they are long; what lies between them is left alone."""
    streams = []

    class Stream:
        def __enter__(self):
            streams.append("null")

        def __exit__(self, *_):
            streams.append("left")

    def product(*arguments):
        assert streams == ["null"]
        sgemm(*arguments)

    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(
        Stream=types.SimpleNamespace(null=Stream()),
        cublas=types.SimpleNamespace(sgemm=product),
        device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    rng = np.random.default_rng(0)
    left, weights, C = rng.standard_normal((9, 20)), rng.standard_normal((7, 20)), OnHost(np.full((12, 8), 5))
    made = object.__new__(gpu.Pass)
    made.products = "cublas"
    made.multiply(OnHost(left), 20, 20, OnHost(weights), 20, C, 8, 8, 8, 7, 17)
    np.testing.assert_allclose(C.values[1:9, :7], left[1:9, :17] @ weights[:, :17].T, atol=1e-5)
    assert (C.values[:, 7] == 5).all()
    assert (C.values[[0, 9, 10, 11]] == 5).all()
    assert streams == ["null", "left"]
