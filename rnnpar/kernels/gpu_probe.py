"""What a GPU's peaks are measured with: launches, meetings, loads, multiply-adds and copies, each repeated by itself.

The model of the GPU predicts from these (rnnpar/model_gpu.py). Each is measured as a difference between many and few
repetitions within one launch, so that the launch drops out; the least of some tries counts. Needs numba-cuda and a
GPU; launches from CuPy, graphs and clusters are measured too where CuPy is installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda, float32, int32

from rnnpar.kernels import ptx
from rnnpar.kernels.gpu import ALIGNED, Gpu, open_gpu
from rnnpar.kernels.launch import FOUR, MIB, WARP

TRIES = 5
LAUNCHES = 200
NODES = 200  # of a graph
THREADS = 512
GROUPS = 4  # 128-bit loads that a thread has under way
ROWS = 16  # sums that a thread keeps for multiply-adds: as many as hide their latency
CHASE = 4096  # loads, one after another
TOGETHER = SimpleNamespace(registers=64)  # the plan of a launch whose blocks wait for each other: small ones

CLUSTER = 8  # blocks that any card with clusters can have in one
NOTHING = 'extern "C" __global__ void nothing() {}'


# --- kernels -----------------------------------------------------------------------------------------------------


@cuda.jit
def nothing():
    pass


@cache
def meetings_kernel(kind: str) -> Any:
    """`count` meetings of all blocks, by the functions that numba_cuda/persistent meets by."""
    from rnnpar.backends.numba_cuda import MEETINGS  # to measure another copy of them would be to measure another thing

    wait, arrive = MEETINGS[kind]

    @cuda.jit
    def meetings(sync, base, count):
        n, blocks = cuda.blockIdx.x, cuda.gridDim.x
        for t in range(count):
            if t > 0:
                wait(sync, base, 0, n, blocks, t)
            arrive(sync, base, 0, n, blocks, t)

    return meetings


@cuda.jit
def values_kernel(words, base, count):
    """The same by values: each block hands out one that carries its step's number, and polls everybody's."""
    tid, n, blocks = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
    for t in range(count):
        at = (base + t + 1) % 2 * blocks
        if tid == 0:
            ptx.st_tagged(words, at + n, float32(0.5), int32(base + t + 1))
        if FOUR * tid < blocks:
            _, ready = ptx.ld_tagged(words, at + FOUR * tid, 0, 1, int32(base + t + 1))
            while not ready:
                _, ready = ptx.ld_tagged(words, at + FOUR * tid, 0, 1, int32(base + t + 1))
        cuda.syncthreads()


@cuda.jit
def block_meetings(seen, count):
    """`count` meetings of a block's threads, with a word through shared memory so that none can be left out."""
    memory = cuda.shared.array(WARP, float32)
    tid = cuda.threadIdx.x
    total = float32(0)
    for t in range(count):
        if tid == t & 31:
            memory[tid] = total
        cuda.syncthreads()
        total += memory[t & 31]
    seen[tid] = total


@cuda.jit
def read_kernel(a, size, repeat, seen):
    """Every element of a[:size], `repeat` times; each time a block reads another block's part, which its own first
    cache does not hold."""
    step = cuda.blockDim.x * FOUR * GROUPS
    part = size // cuda.gridDim.x // step * step
    total = float32(0)
    for r in range(repeat):
        start = (cuda.blockIdx.x + r * 37) % cuda.gridDim.x * part
        for i in range(start + cuda.threadIdx.x * FOUR, start + part, step):
            four = ptx.tile_load(a, i, 0, cuda.blockDim.x * FOUR, 1, GROUPS)
            total += four[0] + four[5] + four[10] + four[15]
    seen[cuda.grid(1)] = total


@cuda.jit
def shared_kernel(size, repeat, seen):
    """The block's shared memory, `size` elements of it (a power of two), 16 bytes a thread at a time."""
    memory = cuda.shared.array(0, float32, alignment=ALIGNED)
    tid = cuda.threadIdx.x
    for i in range(tid, size, cuda.blockDim.x):
        memory[i] = float32(i)
    cuda.syncthreads()
    total = float32(0)
    for r in range(repeat):
        four = ptx.tile_load(memory, tid * FOUR + r * 1024 & size - 1, 0, 0, 1, 1)
        total += four[0] + four[1] + four[2] + four[3]
    seen[cuda.grid(1)] = total


@cuda.jit
def multiply_kernel(a, repeat, seen):
    """Multiply-adds from register to register."""
    tile = ptx.tile_load(a, cuda.threadIdx.x * FOUR, 0, 0, ROWS, 1)
    h = ptx.tile_load(a, cuda.threadIdx.x * FOUR, 0, 0, 1, 1)
    sums = ptx.zeros(ROWS)
    for _ in range(repeat):
        sums = ptx.tile_times(tile, h, sums)
    total = float32(0)
    for value in sums:
        total += value
    seen[cuda.grid(1)] = total


@cuda.jit
def chase_kernel(next_one, count, seen):
    """Loads from the L2 cache, each at the place that the one before it found."""
    at = int32(0)
    for _ in range(count):
        at = ptx.ld_relaxed(next_one, at)
    seen[0] = at


@cuda.jit
def alone_kernel(a, size, count, seen):
    """One thread's product with a vector, as numba_cuda/timestep does it."""
    total = float32(0)
    for _ in range(count // size):
        for k in range(size):
            total += a[k] * a[size + k]
    seen[0] = total


# --- timing ------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """The least time of `work` from an idle GPU to one that is idle again."""
    least = np.inf
    work()  # compiles
    wait()
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        wait()
        least = min(least, time.perf_counter() - begin)
    return least


def each(run: Callable[[int], Any], wait: Callable[[], Any], few: int, many: int) -> float:
    """Seconds of one repetition within a launch: `run(count)` with many less that with few."""
    return max(seconds(lambda: run(many), wait) - seconds(lambda: run(few), wait), 0.0) / (many - few)


def line(copy: Callable[[int], Any], wait: Callable[[], Any], few: int, many: int) -> tuple[float, float]:
    """(seconds a call, seconds a byte) of something that takes so many bytes."""
    short, long = seconds(lambda: copy(few), wait), seconds(lambda: copy(many), wait)
    a_byte = max(long - short, 0.0) / (many - few)
    return max(short - few * a_byte, 0.0), a_byte


# --- what is measured --------------------------------------------------------------------------------------------


def launches(gpu: Gpu) -> dict[str, float]:
    """Seconds of a launch, when one follows another: of a kernel of Numba's, and by CuPy where it is installed."""

    def many() -> None:
        for _ in range(LAUNCHES):
            gpu.launch(nothing, 1, WARP)

    found = {"numba": seconds(many, gpu.synchronize) / LAUNCHES}
    if importlib.util.find_spec("cupy"):
        kernel, wait = empty_cupy_kernel(), cupy_wait()

        def many_cupy() -> None:
            for _ in range(LAUNCHES):
                kernel((1,), (WARP,), ())

        found["cupy"] = seconds(many_cupy, wait) / LAUNCHES
    return found


def graph_node(gpu: Gpu) -> float:
    """Seconds from a kernel to the next in a CUDA graph that CuPy has captured."""
    import cupy

    kernel, stream = empty_cupy_kernel(), cupy.cuda.Stream(non_blocking=True)

    def captured(count: int) -> Any:
        with stream:
            stream.begin_capture()
            for _ in range(count):
                kernel((1,), (WARP,), ())
            return stream.end_capture()

    graphs = {count: captured(count) for count in (NODES // 10, NODES)}
    return each(lambda count: graphs[count].launch(stream), stream.synchronize, NODES // 10, NODES)


def meeting(gpu: Gpu, kind: str) -> float:
    """Seconds of one meeting of a block on every multiprocessor."""
    from rnnpar.backends.numba_cuda import APART

    blocks = gpu.device.multiprocessors
    if kind == "values":
        blocks = max(FOUR, blocks // FOUR * FOUR)  # it polls for four at a time
    state = {"base": 0}
    memory = gpu.send(np.zeros(2 * blocks, np.int32) if kind == "values" else np.zeros(blocks * APART, np.int32))
    kernel = values_kernel if kind == "values" else meetings_kernel(kind)

    def run(count: int) -> None:
        arguments = (memory, state["base"], count)
        gpu.launch(kernel, blocks, 256, *arguments, plan=TOGETHER, what=f"a meeting by {kind}")
        state["base"] += count

    return each(run, gpu.synchronize, 100, 2100)


def cluster(gpu: Gpu) -> float:
    """Seconds of a hand-over within a cluster: from each block to each, and it is known to have come."""
    import cupy

    from rnnpar.kernels import cuda_source

    kernel = cuda_source.kernel(cupy, "hand_over", "rnn_hand_over", CLUSTER=CLUSTER)
    last, shared = cupy.empty((CLUSTER, CLUSTER), np.int32), 128 + 2 * 16 * CLUSTER

    def run(count: int) -> None:
        kernel((CLUSTER,), (WARP,), (last, np.int32(count)), shared_mem=shared)

    return each(run, cupy_wait(), 100, 5100)


def block_barrier(gpu: Gpu) -> float:
    seen = gpu.empty((256,))
    return each(lambda count: block_meetings[1, 256](seen, count), gpu.synchronize, 1000, 51000)


def bandwidth(gpu: Gpu, size: int, few: int, many: int) -> float:
    """Bytes a second when all multiprocessors read so many bytes again and again."""
    blocks = 2 * gpu.device.multiprocessors
    a, seen = gpu.empty((size // 4,)), gpu.empty((blocks * THREADS,))
    step = THREADS * FOUR * GROUPS
    bytes_read = 4 * blocks * (size // 4 // blocks // step * step)
    return bytes_read / each(lambda n: read_kernel[blocks, THREADS](a, size // 4, n, seen), gpu.synchronize, few, many)


def shared_bandwidth(gpu: Gpu) -> float:
    blocks, size = 2 * gpu.device.multiprocessors, 8192  # 32 KB
    seen = gpu.empty((blocks * THREADS,))
    run = lambda count: shared_kernel[blocks, THREADS, 0, 4 * size](size, count, seen)  # noqa: E731
    return 16 * blocks * THREADS / each(run, gpu.synchronize, 1000, 21000)


def flops(gpu: Gpu) -> float:
    """float32 operations a second, two a multiply-add."""
    blocks = 2 * gpu.device.multiprocessors
    a, seen = gpu.send(np.full(FOUR * THREADS, 1e-3, np.float32)), gpu.empty((blocks * THREADS,))
    one = each(lambda count: multiply_kernel[blocks, THREADS](a, count, seen), gpu.synchronize, 1000, 21000)
    return 2 * FOUR * ROWS * blocks * THREADS / one


def latency(gpu: Gpu) -> float:
    """Seconds of a load that the L2 cache answers."""
    apart = 128 // 4  # a cache line
    order = np.random.default_rng(0).permutation(CHASE) * apart
    chain = np.zeros(CHASE * apart, np.int32)
    chain[order] = np.roll(order, -1)
    next_one, seen = gpu.send(chain), gpu.empty((1,), np.int32)
    return each(lambda count: chase_kernel[1, 1](next_one, count, seen), gpu.synchronize, CHASE, 5 * CHASE)


def thread(gpu: Gpu) -> float:
    """Seconds of a multiply-add by one thread alone, its factors in the first cache."""
    a, seen = gpu.send(np.zeros(2048, np.float32)), gpu.empty((1,))
    return each(lambda count: alone_kernel[1, 1](a, 1024, count, seen), gpu.synchronize, 10 * 1024, 110 * 1024)


def copies(gpu: Gpu) -> dict[str, tuple[float, float]]:
    """(seconds a copy, seconds a byte) to the device and from it, of ordinary memory as a caller's arrays are."""
    few, many = 4096, 64 * MIB
    host = {size: np.ones(size // 4, np.float32) for size in (few, many)}
    device = {size: gpu.empty((size // 4,)) for size in (few, many)}
    return {
        "to_device": line(lambda size: device[size].copy_to_device(host[size]), gpu.synchronize, few, many),
        "from_device": line(lambda size: device[size].copy_to_host(host[size]), gpu.synchronize, few, many),
    }


def waiting(gpu: Gpu) -> float:
    """Seconds that a launch and a wait for it take, beyond the launch."""
    return max(seconds(lambda: gpu.launch(nothing, 1, WARP), gpu.synchronize) - launches(gpu)["numba"], 0.0)


@cache
def empty_cupy_kernel() -> Any:
    import cupy

    return cupy.RawKernel(NOTHING, "nothing", options=("--std=c++17",))


def cupy_wait() -> Callable[[], Any]:
    import cupy

    return cupy.cuda.get_current_stream().synchronize


def parts(gpu: Gpu) -> dict[str, Callable[[], Any]]:
    """What can be measured on this device, by its name in the peaks; barriers a name a kind."""
    device = gpu.device
    found: dict[str, Callable[[], Any]] = {
        "launch": lambda: launches(gpu),
        "wait": lambda: waiting(gpu),
        "block_barrier": lambda: block_barrier(gpu),
        "latency": lambda: latency(gpu),
        "thread": lambda: thread(gpu),
        "flops": lambda: flops(gpu),
        "shared": lambda: shared_bandwidth(gpu),
        "l2": lambda: bandwidth(gpu, device.l2 // 3, 20, 220),
        "memory": lambda: bandwidth(gpu, min(device.memory // 4, 16 * device.l2), 1, 9),
        "copies": lambda: copies(gpu),
    }
    found |= {
        f"barrier {kind}": lambda kind=kind: meeting(gpu, kind) for kind in ("flags", "counter", "grid", "values")
    }
    if importlib.util.find_spec("cupy"):
        found["graph_node"] = lambda: graph_node(gpu)
        if device.cluster > 1:
            found["cluster"] = lambda: cluster(gpu)
    return found


def measure(number: int = 0) -> dict[str, Any]:
    """The peaks by the names of model_gpu.Rates: seconds, bytes a second, operations a second; about 20 s.

    What fails is left out, and why it failed stands under `failed`: the model then takes what is published.
    """
    gpu = open_gpu(number)
    found: dict[str, Any] = {"barrier": {}, "failed": {}}
    with gpu:
        for name, probe in parts(gpu).items():
            try:
                value = probe()
            except Exception as error:  # whatever a library or a driver raises; the other peaks are worth having
                found["failed"][name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                continue
            if name == "copies":
                found |= value
            elif name.startswith("barrier "):
                found["barrier"][name.split()[1]] = value
            else:
                found[name] = value
    return found
