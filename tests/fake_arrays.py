"""CuPy's arrays as far as rnnpar's array code uses them, in NumPy's memory, and as strict as CuPy's are.

An array of the "GPU" takes part in operations with others of it and with plain numbers only; NumPy's functions and
`numpy.asarray` refuse it, as they refuse CuPy's. What crosses over is counted: `uploads`, `downloads` (elements).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class OnDevice(NDArrayOperatorsMixin):
    """One array; `module` is the FakeArrays that it belongs to."""

    __module__ = "cupy"  # what device_arrays.kind goes by

    def __init__(self, host: np.ndarray, module: FakeArrays):
        self.host, self.module = host, module

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.host.__array_interface__ | {"version": 3, "strides": self.host.strides}

    device = 0

    def get(self) -> np.ndarray:
        self.module.downloads += self.host.size
        return self.host.copy()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return self.module.call(function, *inputs, **options)

    def __getitem__(self, key: Any) -> OnDevice:
        return OnDevice(self.host[self.module.bare(key)], self.module)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[self.module.bare(key)] = self.module.bare(value)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        self.module.downloads += 1
        return float(self.host)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.host, name)
        if callable(found):
            return lambda *arguments, **options: self.module.call(found, *arguments, **options)
        return OnDevice(found, self.module) if isinstance(found, np.ndarray) else found


class FakeArrays:
    """The module: NumPy's functions on arrays that are OnDevice."""

    def __init__(self, free: int = 2**30):
        self.uploads = self.downloads = self.waits = 0
        self.pooled = 0
        stream = SimpleNamespace(synchronize=lambda: setattr(self, "waits", self.waits + 1))

        class Device:
            mem_info = (free, free)

            def __init__(self, number: int = 0):
                pass

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

        self.cuda = SimpleNamespace(
            Device=Device, get_current_stream=lambda: stream, runtime=SimpleNamespace(getDeviceCount=lambda: 1)
        )

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: self.pooled)

    def asarray(self, values: Any, dtype: Any = None) -> OnDevice:
        if isinstance(values, OnDevice):
            return OnDevice(np.asarray(values.host, dtype), self)
        self.uploads += np.size(values)
        return OnDevice(np.array(values, dtype), self)

    def array(self, values: Any, dtype: Any = None) -> OnDevice:
        return OnDevice(self.asarray(values, dtype).host.copy(), self)

    def bare(self, value: Any) -> Any:
        """What NumPy takes in place of a value; TypeError for an array that is not on the device."""
        if isinstance(value, OnDevice):
            return value.host
        if isinstance(value, tuple | list):
            return type(value)(self.bare(item) for item in value)
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")
        return value

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        options = {name: self.bare(value) for name, value in options.items()}
        found = function(*self.bare(arguments), **options)
        return OnDevice(np.asarray(found), self) if isinstance(found, np.ndarray | np.generic) else found

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return (lambda *arguments, **options: self.call(found, *arguments, **options)) if callable(found) else found
