"""What `make check-gpu` runs in processes of its own: a method each, so that what hangs or dies takes nothing along.

`Worker` is the factory of a `peers.Child`: the methods below are asked for by name. Arrays of any size come in files.
Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rnnpar import device_arrays
from rnnpar.auto import prepare
from rnnpar.backends import peers
from rnnpar.network import RNN
from rnnpar.reference import relative_error

REFUSED = "refused"  # what begins the message of a method that says that a size does not fit the device


class Worker:
    """One method with its options, for one network after another."""

    def __init__(self, method: str, options: Mapping[str, Any]):
        self.method, self.options = method, dict(options)
        self.backend = method.split("/")[0]
        self.run: Any = None
        self.arrays: dict[str, Any] = {}
        self.checked: dict[bool, tuple[np.ndarray, np.ndarray]] = {}  # answers that the oracle has seen, by kind of x

    def prepare(self, net: RNN) -> str:
        """Make the runner for a network; "" or why the method refuses it."""
        self.close()
        self.net = net
        try:
            if self.backend == "peers":
                self.run = peers.fastest_on_gpu(self.method.split("/")[1], net, self.options)
            else:
                self.run = prepare(net, self.method, **self.options)
        except ValueError as error:
            return refusal(error)
        return ""

    def answer(self, x: np.ndarray, h0: np.ndarray | None, on_device: bool) -> tuple[str, Any, Any]:
        """("", y, h) as NumPy arrays, from NumPy or device arrays; or why the method refuses the shape."""
        try:
            _, y, h = self._calls(*self._given(x, h0, on_device), on_device, 1)
        except ValueError as error:
            return refusal(error), None, None
        return "", *self._fetched(y, h, on_device)

    def load(self, folder: str) -> None:
        """Take x, and the oracle's y and h, from files."""
        self.x, self.y, self.h = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in "xyh")
        self.x = np.array(self.x)
        self.arrays, self.checked = {}, {}

    def start(self, on_device: bool) -> dict[str, Any]:
        """The first call, which compiles, and how far its answer is from the oracle's."""
        begin = time.perf_counter()
        try:
            self._timed(on_device, 1)
        except ValueError as error:
            return {"refused": refusal(error)}
        first_s = time.perf_counter() - begin
        again = self.sample(on_device, 1, True)
        info = {key: value for key, value in getattr(self.run, "info", {}).items() if isinstance(value, str)}
        return {"first_s": first_s, "call_s": again["seconds"][0], "error": again["error"], "info": info}

    def sample(self, on_device: bool, count: int, check: bool) -> dict[str, Any]:
        """Seconds of `count` calls, each waited for, after one that wakes the GPU up.

        With `check` also how far the last answer is from the oracle's: 0 where every bit is as in one seen before.
        """
        self._timed(on_device, 1)
        seconds, y, h = self._timed(on_device, count)
        if not check:
            return {"seconds": seconds, "error": 0.0}
        y, h = self._fetched(y, h, on_device)
        seen = self.checked.get(on_device)
        if seen and np.array_equal(y, seen[0]) and np.array_equal(h, seen[1]):
            return {"seconds": seconds, "error": 0.0}
        error = float(np.max([relative_error(y, self.y), relative_error(h, self.h)]))
        self.checked[on_device] = (y, h)
        return {"seconds": seconds, "error": error}

    def call(self, function: str, arguments: tuple = ()) -> Any:
        """What "module:function" returns here."""
        module, name = function.split(":")
        return getattr(importlib.import_module(module), name)(*arguments)

    def close(self) -> None:
        run, self.run = self.run, None
        self.arrays, self.checked = {}, {}
        if hasattr(run, "close"):
            run.close()

    def _timed(self, on_device: bool, count: int) -> tuple[list[float], Any, Any]:
        if on_device not in self.arrays:
            self.arrays[on_device] = self._given(self.x, None, on_device)
        return self._calls(*self.arrays[on_device], on_device, count)

    def _given(self, x: np.ndarray, h0: np.ndarray | None, on_device: bool) -> tuple[Any, Any]:
        """x and h0 as they are handed over. The peers put theirs on the device themselves."""
        if h0 is None:
            h0 = np.zeros((self.net.num_layers, x.shape[1], self.net.hidden_size), np.float32)
        if not on_device or self.backend == "peers":
            return x, h0
        kind = "cupy_gpu" if self.backend == "in_time" else self.backend
        return device_arrays.put(x, kind), device_arrays.put(h0, kind)

    def _calls(self, x: Any, h0: Any, on_device: bool, count: int) -> tuple[list[float], Any, Any]:
        if self.backend == "peers":
            how = self.run.device_calls if on_device else self._peer_calls
            return how(x, h0, count)[:3]
        seconds = []
        for _ in range(count):
            took, y, h = self.run.timed(x, h0)
            seconds.append(took)
        return seconds, y, h

    def _peer_calls(self, x: np.ndarray, h0: np.ndarray, count: int) -> tuple[list[float], Any, Any]:
        return peers.timed_calls(self.run, x, h0, count)

    def _fetched(self, y: Any, h: Any, on_device: bool) -> tuple[np.ndarray, np.ndarray]:
        if not on_device or self.backend == "peers":
            return np.array(y), np.array(h)
        return device_arrays.fetch(y), device_arrays.fetch(h)


def refusal(error: ValueError) -> str:
    """Why a method refuses a size. Any other ValueError is a fault, and raised again."""
    if type(error).__name__ != "DoesNotFit":
        raise error
    return f"{REFUSED}: {error}"


def limits() -> dict[str, Any]:
    """The limits of this machine's GPU as its driver tells them; empty where it does not."""
    from rnnpar.kernels import cuda_source
    from rnnpar.kernels.launch import Device

    try:
        device = Device.current()
    except (RuntimeError, ValueError):
        return {}
    if device.cluster > 1 and importlib.util.find_spec("cupy"):
        device = replace(device, clusters=cuda_source.resident_clusters(cuda_source.open_cupy(), device.cluster))
    return asdict(device)
