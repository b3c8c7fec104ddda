"""A GPU that is none: device arrays over host memory, and methods that compute "there" on the CPU.

What runs around the kernels (checks of arrays, timing, `make check-gpu`) is tested with these on any machine. A process
of its own gets them by `worker`, as the factory of a `Child`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rnnpar import device_arrays, registry
from rnnpar.reference import reference

GPU = {"name": "NVIDIA Imaginary 9", "driver": "999.1", "memory_bytes": 2**30, "compute_capability": "9.0"}


class DeviceArray:
    """A NumPy array that can be read only through the interface of device arrays."""

    def __init__(self, array: np.ndarray, device: int = 0):
        self.host, self.device = array, device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(shape=self.host.shape, typestr=self.host.dtype.str, version=3, data=(self.host.ctypes.data, False),
                    strides=None if self.host.flags.c_contiguous else self.host.strides)  # fmt: skip

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("a device array was copied to the host")


@dataclass(frozen=True)
class FakeMethod(registry.Method):
    """A row of the table whose function is given with it, and needs no module."""

    function: Any = None

    def load(self):
        return self.function

    def source_hash(self) -> str:
        return f"fake-{self.name}"


class Forward:
    """The oracle's answer in float32, on the kind of array that was given; `synchronize` counts what is waited for."""

    def __init__(self, net, seconds: float = 0.0, spoil: Any = None):
        self.net, self.seconds_, self.spoil = net, seconds, spoil
        self.waits = 0
        self.given: list[tuple[Any, Any]] = []
        self.info = {"plan": "imaginary"}

    def __call__(self, x, h0):
        self.given.append((x, h0))
        on_device = isinstance(x, DeviceArray)
        time.sleep(self.seconds_)
        y, h = reference(self.net, *((x.host, h0.host) if on_device else (x, h0)))
        y, h = y.astype(np.float32), h.astype(np.float32)
        if self.spoil:
            self.spoil(y, h)
        return (DeviceArray(y), DeviceArray(h)) if on_device else (y, h)

    def synchronize(self) -> None:
        self.waits += 1


def good(net, dtype: str = "float32", barrier: str = "flags", device: int = 0) -> Forward:
    """Parallelises nothing. Synchronises nothing. Moves nothing."""
    return Forward(net)


def wrong(net, device: int = 0) -> Forward:
    """Parallelises nothing. Synchronises nothing. Moves nothing. The last probability is off by a thousandth."""

    def spoil(y, h):
        y[-1] *= 1.001

    return Forward(net, spoil=spoil)


def broken(net, device: int = 0) -> Forward:
    """Parallelises nothing. Synchronises nothing. Moves nothing. It cannot even launch."""

    def spoil(y, h):
        raise RuntimeError("the launch failed: too many resources requested")

    return Forward(net, spoil=spoil)


def hanging(net, device: int = 0) -> Forward:
    """Parallelises nothing. Synchronises nothing. Moves nothing. It never comes back."""

    def spoil(y, h):
        time.sleep(3600)

    return Forward(net, spoil=spoil)


def dying(net, device: int = 0) -> Forward:
    """Parallelises nothing. Synchronises nothing. Moves nothing. It takes its process along."""

    def spoil(y, h):
        os._exit(139)

    return Forward(net, spoil=spoil)


def row(name: str, function: Any, **changes: Any) -> FakeMethod:
    return replace(FakeMethod(name, "nothing", "nothing", function=function), **changes)


ROWS = tuple(row(f"numba_cuda/{function.__name__}", function) for function in (good, wrong, broken, hanging, dying))


def install(rows: tuple[FakeMethod, ...] = ROWS, setting: Any = setattr) -> None:
    """Put the fake methods into the table, and fake arrays in the place of a library's; `setting` as setattr."""
    others = [method for method in registry.TABLE if method.name not in {row.name for row in rows}]
    setting(registry, "TABLE", registry.Methods([*others, *rows]))
    setting(device_arrays, "empty", lambda like, shape: DeviceArray(np.empty(shape, np.float32)))
    setting(device_arrays, "zeros", lambda like, shape: DeviceArray(np.zeros(shape, np.float32)))
    setting(device_arrays, "duplicate", lambda array: DeviceArray(array.host.copy()))
    setting(device_arrays, "put", lambda array, backend: DeviceArray(array.copy()))
    setting(device_arrays, "fetch", lambda array: array.host.copy())
    setting(device_arrays, "device_of", lambda pointer: 0)


# --- in processes of their own -----------------------------------------------------------------------------------


def worker(method: str, options: dict[str, Any]) -> Any:
    """The factory of a Child: check_gpu's worker, with the fakes in place."""
    install()
    from rnnpar.study.gpu_worker import Worker

    return Worker(method, options)


def looks_fine(name: str) -> str:
    return f"{name}: nothing unusual"


def finds_fault(name: str) -> str:
    from rnnpar.study.gpu_checks import Fault

    raise Fault(f"{name}: 3 of 10 messages were stale")


def check_small(*arguments: str) -> int:
    """check_gpu's command on the fakes, with a small sweep: what the tests kill."""
    from rnnpar import machine
    from rnnpar.study import check_gpu

    install()
    machine.gpu = lambda: GPU
    machine.name = lambda: "imaginary-9-2c-0000"
    check_gpu.FACTORY = f"{__name__}:worker"
    check_gpu.SWEEP, check_gpu.T_SWEEP = [(8, 1), (6, 2), (5, 3)], 4
    check_gpu.SAMPLES, check_gpu.NUMPY_SAMPLES = 3, 2
    return check_gpu.main(list(arguments))


if __name__ == "__main__":
    import sys

    sys.exit(__import__("tests.fake_gpu", fromlist=["check_small"]).check_small(*sys.argv[1:]))
