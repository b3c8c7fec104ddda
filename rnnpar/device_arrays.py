"""Arrays in a GPU's memory, whichever library made them: what `Runner` checks of them, and the few that it makes.

An array is known by its `__cuda_array_interface__` (shape, dtype, strides and address, as CuPy, Numba, PyTorch and JAX
all give it). Nothing here copies one to the host, and nothing here is imported before somebody brings such an array.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
from functools import cache
from typing import Any

import numpy as np

DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL in cuda.h


def is_device_array(array: Any) -> bool:
    """Whether `array` lies in a GPU's memory. TypeError where it says so and will not be read as one."""
    try:
        return hasattr(array, "__cuda_array_interface__")
    except Exception as error:  # PyTorch's, for a tensor that requires a gradient
        raise TypeError(f"{kind(array)} cannot be read as a device array: {error}") from None


def kind(array: Any) -> str:
    """The array's type as people write it: cupy.ndarray, torch.Tensor."""
    module = type(array).__module__.split(".")[0]
    return f"{'numba.cuda' if module.startswith('numba') else module}.{type(array).__name__}"


def check(name: str, array: Any, shape: str, device: int) -> tuple[int, ...]:
    """The shape of a device array that a kernel on `device` may take as it is; `shape` says what it should be.

    TypeError for another dtype, ValueError for gaps between its elements or another device: nothing is converted or
    copied behind the caller's back.
    """
    interface = array.__cuda_array_interface__
    found = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    if dtype != np.float32:
        raise TypeError(f"{name} has dtype {dtype}; it must be float32, as {name}.astype('float32') makes it")
    if interface.get("mask") is not None:
        raise TypeError(f"{name} is a masked device array; it must be a plain one of shape {shape}")
    strides = interface.get("strides")
    if strides is not None and 0 not in found:
        right, gaps = dtype.itemsize, False
        for n, stride in zip(reversed(found), reversed(strides), strict=True):
            gaps |= n > 1 and stride != right
            right *= n
        if gaps:
            raise ValueError(
                f"{name} has strides {tuple(strides)} at shape {found}; a device array must be C-contiguous, since it "
                f"is not copied: cupy.ascontiguousarray({name}), or {name}.contiguous() in PyTorch, makes it so"
            )
    pointer = interface["data"][0]
    where = device_of(pointer) if pointer and 0 not in found else None
    if where is not None and where != device:
        raise ValueError(
            f"{name} lies on device {where} and this runner computes on device {device}: "
            f"prepare(net, method, device={where}), or copy {name} to device {device}"
        )
    return found


def device_of(pointer: int) -> int | None:
    """The number of the GPU in whose memory an address lies, as the driver knows it; None where it does not."""
    driver = _driver()
    ordinal = ctypes.c_int(-1)
    if driver is None or driver.cuPointerGetAttribute(ctypes.byref(ordinal), DEVICE_ORDINAL, ctypes.c_uint64(pointer)):
        return None
    return ordinal.value


@cache
def _driver() -> Any:
    """The CUDA driver's library, which is loaded already wherever a device array is; None without one."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def empty(like: Any, shape: tuple[int, ...]) -> Any:
    """A new float32 device array of the kind of `like`, on its device. It is not filled."""
    if kind(like).startswith("torch."):
        return like.new_empty(shape)
    if kind(like).startswith("cupy."):
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(like.device):
            return cupy.empty(shape, "float32")
    return importlib.import_module("numba.cuda").device_array(shape, "float32")


def zeros(like: Any, shape: tuple[int, ...]) -> Any:
    """A new float32 device array of zeros, of the kind of `like`, on its device."""
    if kind(like).startswith("torch."):
        return like.new_zeros(shape)
    made = empty(like, shape)
    if kind(like).startswith("cupy."):
        made.fill(0)
    elif 0 not in shape:
        made.copy_to_device(np.zeros(shape, np.float32))
    return made


def put(array: np.ndarray, backend: str) -> Any:
    """A copy of a NumPy array on the GPU, of the kind that a backend's library makes: CuPy's or Numba's."""
    if backend == "cupy_gpu":
        return importlib.import_module("cupy").asarray(array)
    return importlib.import_module("numba.cuda").to_device(array)


def fetch(array: Any) -> np.ndarray:
    """A copy of a device array in NumPy's memory; waits for what fills it."""
    if kind(array).startswith("torch."):
        return array.cpu().numpy()
    if kind(array).startswith("cupy."):
        return array.get()
    return array.copy_to_host()


def duplicate(array: Any) -> Any:
    """A copy of a device array, of its kind, in the GPU's memory."""
    if kind(array).startswith("torch."):
        return array.clone()
    if kind(array).startswith("cupy."):
        return array.copy()
    made = empty(array, tuple(array.shape))
    if 0 not in made.shape:
        made.copy_to_device(array)
    return made
