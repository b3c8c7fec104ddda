"""CuPy as far as rnnpar uses it, on NumPy arrays and the CPU executor: a whole method runs, kernels and all.

What is real here: the source that is compiled, its constants, grids, arguments, packed weights and plans, and that a
graph is recorded and replayed. What is not: a device, its memory, streams that run at their own pace.
"""

from __future__ import annotations

import ctypes
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.kernels import cuda_on_cpu


class CompileException(Exception):
    pass


class Graph:
    def __init__(self, launches: list[Any]):
        self.launches = launches

    def launch(self, stream: Any = None) -> None:
        for launch in self.launches:
            launch()


class Stream:
    recording: list[Any] | None = None  # of the stream that records, for all: one at a time is enough

    def __init__(self, non_blocking: bool = False):
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_capture(self) -> None:
        Stream.recording = []

    def end_capture(self) -> Graph:
        recorded, Stream.recording = Stream.recording, None
        return Graph(recorded)

    def synchronize(self) -> None:
        assert Stream.recording is None, "synchronised while a stream records"


class Event:
    """An event of the GPU's clock, here the CPU's. `late`: how often the GPU has nothing left to do at once."""

    late = 0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        assert self.seconds

    @property
    def done(self) -> bool:
        Event.late -= 1
        return Event.late >= 0


def get_elapsed_time(begin: Event, end: Event) -> float:
    """Milliseconds, as there."""
    return 1e3 * (end.seconds - begin.seconds)


class Device:
    def __init__(self, number: int):
        pass

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class RawKernel:
    """A kernel: calls go to the executor. `limits` is what the launch had to ask for."""

    def __init__(self, cupy: FakeCupy, file: str, function: str, code: str, options: tuple[str, ...]):
        self.cupy, self.function = cupy, function
        self.program = cuda_on_cpu.build_text(code, file, function, options, cupy.sanitize)
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.kernel = SimpleNamespace(ptr=id(self))

    def __call__(self, grid: tuple, block: tuple, arguments: tuple, shared_mem: int = 0) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "more shared memory than was asked for"
        asked = self.cupy.attributes.get(self.kernel.ptr, {})
        assert self.program.cluster <= 8 or asked.get(14) == 1, "a cluster of 16 was not asked for"
        for it in arguments:
            assert isinstance(it, np.ndarray | np.int32), f"a kernel cannot take {type(it)}"

        def launch() -> None:
            self.cupy.launches.append((self.function, grid, block))
            self.program.launch(grid, block, arguments, shared_mem, self.cupy.seed)

        if Stream.recording is None:
            launch()
        else:
            Stream.recording.append(launch)


def sgemm(handle: int, of_A: int, of_B: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, B: int, ldb: int,
          beta: int, C: int, ldc: int) -> None:  # fmt: skip
    """cuBLAS's product by addresses, by columns: C (m,n) = alpha A^T B + beta C, A (k,m) and B (k,n)."""
    assert Stream.recording is None, "cuBLAS while a stream records"
    assert (handle, of_A, of_B) == (1, 1, 0)

    def columns(address: int, rows: int, count: int, pitch: int) -> np.ndarray:
        assert rows <= pitch
        values = np.ctypeslib.as_array((ctypes.c_float * (pitch * (count - 1) + rows)).from_address(address))
        return np.lib.stride_tricks.as_strided(values, (rows, count), (4, 4 * pitch))

    scale, keep = (ctypes.c_float.from_address(at).value for at in (alpha, beta))
    out = columns(C, m, n, ldc)
    out[...] = scale * (columns(A, k, m, lda).T @ columns(B, k, n, ldb)) + (keep * out if keep else 0)


class FakeCupy:
    """The module. Array functions are NumPy's; those that use cuBLAS are refused while a stream records, as there."""

    __version__ = "0 (fake)"

    def __init__(self, seed: int = 0, sanitize: bool = False):
        self.seed, self.sanitize = seed, sanitize
        self.launches: list[tuple] = []
        self.attributes: dict[int, dict[int, int]] = {}
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=Stream,
            Event=Event,
            get_elapsed_time=get_elapsed_time,
            get_current_stream=Stream,
            compiler=SimpleNamespace(CompileException=CompileException),
            cublas=SimpleNamespace(sgemm=sgemm),
            device=SimpleNamespace(get_cublas_handle=lambda: 1),
            driver=SimpleNamespace(funcSetAttribute=self.set_attribute),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def asnumpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def set_attribute(self, function: int, attribute: int, value: int) -> None:
        self.attributes.setdefault(function, {})[attribute] = value

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert backend == "nvrtc"
        file = code.rsplit('#line 1 "', 1)[1].split('"')[0]
        return SimpleNamespace(get_function=lambda function: RawKernel(self, file, function, code, options))
