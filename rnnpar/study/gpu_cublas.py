"""cuBLAS alone: the products of a forward pass and nothing else, as `make check-gpu` times them beside our methods.

With many sequences a step is mostly a product of matrices, and cuBLAS is what a method's products are held against. A
call here is one product for U x of all steps, T products for W h, one after another, and one for V h. There is no sum,
no tanh, no softmax in it, and Python's launches are not in it either: the work is asked for while the GPU is still busy
with something else, and timed by the GPU's own events.

Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnnpar.network import RNN
from rnnpar.reference import relative_error

METHOD = "cublas/products"
LARGE = 256  # sequences from which on a step's product is called large
IN_A_ROW = 64  # products of W h that are timed together
BUSY = 4096  # rows and columns of the product that the GPU is busy with meanwhile: milliseconds
MOST_BUSY = 256  # of them, before giving up


class Products:
    """Answers as gpu_worker.Worker does, so that the sweep can ask it in turn with the methods. float32, no TF32."""

    def __init__(self, method: str, options: Mapping[str, Any], xp: Any = None):
        if xp is None:
            from rnnpar.kernels.cuda_source import open_cupy

            xp = open_cupy()
        self.xp = xp
        self.busy, self.times = xp.ones((BUSY, BUSY), np.float32), 1
        self.pairs: list[tuple[Any, Any, Any, int]] = []  # left (rows,k), right (k,n), room (rows,n), products a call

    def prepare(self, net: RNN) -> str:
        """Take a network's weights; "", as nothing is refused."""
        self.close()
        self.net = net
        return ""

    def load(self, folder: str) -> None:
        """Take x (T,B,I) from x.npy. States of the same sizes, whatever is in them, are what W and V multiply."""
        self.pairs = []
        x = np.load(Path(folder) / "x.npy")
        T, B, I = x.shape
        H, send = self.net.hidden_size, self.xp.asarray
        states = send(np.random.default_rng(0).uniform(-1, 1, (T * B, H)).astype(np.float32))
        for index, layer in enumerate(self.net.layers):
            below = send(x.reshape(T * B, I)) if index == 0 else states
            self.pairs += [self._pair(below, layer.U, 1), self._pair(states[:B], layer.W, T)]
        self.pairs.append(self._pair(states, self.net.V, 1))

    def start(self, on_device: bool) -> dict[str, Any]:
        """The first call, and how far its products are from those in float64."""
        begin = time.perf_counter()
        for left, right, room, _ in self.pairs:
            self.xp.matmul(left, right, out=room)
        self.xp.cuda.get_current_stream().synchronize()
        first_s = time.perf_counter() - begin
        info = {"products": f"cuBLAS by CuPy {self.xp.__version__}"}
        return {"first_s": first_s, "call_s": self._call_s(), "error": self._error(), "info": info}

    def sample(self, on_device: bool, count: int, check: bool) -> dict[str, Any]:
        """Seconds of `count` calls by the GPU's clock; with `check` also the products' error."""
        seconds = [self._call_s() for _ in range(count)]
        return {"seconds": seconds, "error": self._error() if check else 0.0}

    def close(self) -> None:
        self.pairs = []

    def _pair(self, left: Any, weights: np.ndarray, times: int) -> tuple[Any, Any, Any, int]:
        room = self.xp.empty((len(left), len(weights)), np.float32)
        return left, self.xp.asarray(weights).T, room, times

    def _call_s(self) -> float:
        """Seconds of all products: those that are done more than once are timed in a row, and scaled."""
        total = 0.0
        for left, right, room, times in self.pairs:
            count = min(times, IN_A_ROW)

            def products(left: Any = left, right: Any = right, room: Any = room, count: int = count) -> None:
                for _ in range(count):
                    self.xp.matmul(left, right, out=room)

            total += times / count * self._on_the_gpu(products)
        return total

    def _on_the_gpu(self, work: Callable[[], None]) -> float:
        """Seconds that the GPU takes for what `work` asks of it, all of which waits in line when the first begins.

        RuntimeError where the GPU cannot be kept busy for as long as the asking takes.
        """
        cuda = self.xp.cuda
        while self.times <= MOST_BUSY:
            begin, end = cuda.Event(), cuda.Event()
            for _ in range(self.times):
                self.xp.matmul(self.busy, self.busy)
            begin.record()
            work()
            asked_in_time = not begin.done
            end.record()
            end.synchronize()
            if asked_in_time:
                return cuda.get_elapsed_time(begin, end) / 1e3
            self.times *= 2
        self.times = 1
        raise RuntimeError(
            "the GPU was done before Python had asked for all products: unset CUDA_LAUNCH_BLOCKING if it is set"
        )

    def _error(self) -> float:
        """The largest relative error of a product, over its last rows, against NumPy's in float64."""
        some = slice(-256, None)
        errors = [
            relative_error(self.xp.asnumpy(room[some]), self._float64(left[some]) @ self._float64(right))
            for left, right, room, _ in self.pairs
        ]
        return float(np.max(errors, initial=0.0))

    def _float64(self, array: Any) -> np.ndarray:
        return self.xp.asnumpy(array).astype(np.float64)


def source() -> str:
    """The hash of this file: what is stored was timed by it."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:10]
