"""CuPy: an NVIDIA GPU as an array library, and as a place for our own CUDA C++. From plain to clever.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
In all strategies U x of all steps is one product of cuBLAS before the recurrence, and V h one behind it, so that the
strategies differ only in how they take the steps in between: `run(layer, states, h0)` finds U x in states (T,B,H) and
leaves h there. NumPy arrays in, NumPy arrays out; arrays on the GPU in (CuPy's, Numba's, PyTorch's), the same kind
out, without a way through the host. Inside, H is padded to a multiple of 4 with zeros, which stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from rnnpar.kernels import cluster_plan, cublas, cuda_source
from rnnpar.kernels.launch import Device, round_up
from rnnpar.kernels.tile import to_bfloat16
from rnnpar.network import RNN

Array = Any  # of NumPy or CuPy
WARPS = 8  # of a block, in kernels that need no more of each other than a warp
SHORT = 1024  # outputs up to which a warp takes a whole row of the softmax


# --- what all strategies share ------------------------------------------------------------------------------------


class Forward:
    """The forward pass around a recurrence: `forward(x, h0) -> (y, h)`. `xp` is the array module, cupy or numpy."""

    def __init__(self, net: RNN, xp: Any, device: int, recurrence: Recurrence, softmax: Callable[..., None]):
        self.net, self.xp, self.device = net, xp, device
        self.recurrence, self.softmax = recurrence, softmax
        H = round_up(net.hidden_size, 4)
        with self.on_device():
            self.U = [
                xp.asarray(padded(layer.U, H, net.input_size if index == 0 else H))
                for index, layer in enumerate(net.layers)
            ]
            self.V = xp.asarray(padded(net.V, net.output_size, H))
            self.c = xp.asarray(net.c)

    def __call__(self, x: Array, h0: Array) -> tuple[Array, Array]:
        xp, H = self.xp, self.net.hidden_size
        with self.on_device():
            given, below = x, xp.asarray(x)
            begin, h = self.beginning(xp.asarray(h0)), None
            T, B, _ = x.shape
            for layer, U in enumerate(self.U):
                states = self.recurrence.room(layer, T, B)
                self.multiply(below, U, states)
                self.recurrence.run(layer, states, begin[layer])
                if h is None:
                    h = xp.empty(h0.shape, np.float32)  # the GPU is busy: this costs no time, nor what follows
                h[layer] = states[-1, :, :H]
                below = states
            y = xp.empty((T, B, self.net.output_size), np.float32)
            self.multiply(below, self.V, y)
            self.softmax(y.reshape(T * B, -1), self.c)
            give_back = same_kind_as(given, xp)
            return give_back(y), give_back(h)

    def multiply(self, left: Array, weights: Array, out: Array) -> None:
        """out (T,B,N) = left (T,B,K) weights^T, weights (N,K)."""
        (T, B, K), N = left.shape, len(weights)
        if self.xp is np:
            np.matmul(left.reshape(T * B, K), weights.T, out=out.reshape(T * B, N))
        else:
            addresses = (address(left), K, address(weights), K, address(out), N)
            cublas.product(self.xp.cuda, *addresses, T * B, N, K)

    def beginning(self, h0: Array) -> Array:
        """h0 with zeros behind each state where it has to be padded, and where 16 bytes at a time can be read."""
        H = round_up(self.net.hidden_size, 4)
        if self.net.hidden_size == H and address(h0) % 16 == 0:
            return h0
        wide = self.xp.zeros((*h0.shape[:2], H), np.float32)
        wide[:, :, : self.net.hidden_size] = h0
        return wide

    @property
    def info(self) -> dict[str, Any]:
        """What the recurrence has to tell of its launch, such as its plan."""
        return self.recurrence.info

    def synchronize(self) -> None:
        """Wait until all that was asked of the device's current stream is done."""
        if self.xp is not np:
            with self.on_device():
                self.xp.cuda.get_current_stream().synchronize()

    def on_device(self) -> Any:
        return nullcontext() if self.xp is np else self.xp.cuda.Device(self.device)


class Recurrence:
    """How a strategy takes the steps of one layer, and where it wants the states."""

    def __init__(self, net: RNN, xp: Any):
        self.xp = xp
        self.H = round_up(net.hidden_size, 4)
        self.b = [xp.asarray(padded(layer.b[None], 1, self.H)[0]) for layer in net.layers]
        self.info: dict[str, Any] = {}

    def room(self, layer: int, T: int, B: int) -> Array:
        """(T,B,H) for U x and then h of one layer."""
        return self.xp.empty((T, B, self.H), np.float32)

    def run(self, layer: int, states: Array, h0: Array) -> None:
        """states (T,B,H): U x on the way in, h on the way out; h0 (B,H)."""
        raise NotImplementedError


def address(array: Array) -> int:
    """Where an array begins, in the device's memory or NumPy's."""
    return array.data.ptr if hasattr(array.data, "ptr") else array.ctypes.data


def padded(weights: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32 with zeros where `weights` has nothing: they make states that are zero, and stay so."""
    out = np.zeros((rows, columns), np.float32)
    out[: weights.shape[0], : weights.shape[1]] = weights
    return out


def same_kind_as(x: Array, xp: Any) -> Callable[[Array], Array]:
    """What turns an array of ours into the kind that the caller came with; on a GPU nothing is copied for that."""
    if xp is np:
        return lambda array: array
    if isinstance(x, np.ndarray):
        return xp.asnumpy
    origin = type(x).__module__.split(".")[0]
    if origin == "numba":
        from numba import cuda

        return lambda array: cuda.as_cuda_array(array, sync=False)
    if origin == "torch":
        import torch

        return torch.from_dlpack
    return lambda array: array


def weights_as(W: np.ndarray, dtype: str) -> np.ndarray:
    """float32, or bfloat16 as uint16. ValueError for another dtype."""
    check_dtype(dtype)
    return W if dtype == "float32" else to_bfloat16(W)


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32' or 'bfloat16'")


def raw_softmax(cupy: Any) -> Callable[[Array, Array], None]:
    """softmax(y + c) in place, as one launch: a warp a row, or a block a row where rows are long."""

    def softmax(y: Array, c: Array) -> None:
        rows, O = y.shape
        short = O <= SHORT
        kernel = cuda_source.kernel(cupy, "softmax", "softmax_warps" if short else "softmax_blocks", WARPS=WARPS)
        blocks = -(-rows // WARPS) if short else rows
        kernel((blocks,), (WARPS * 32,), (y, c, np.int32(rows), np.int32(O)))

    return softmax


# --- steps: array code, a product a step --------------------------------------------------------------------------


class Steps(Recurrence):
    """Three array operations a step. The same lines run on NumPy, which is how they are tested without a GPU."""

    def __init__(self, net: RNN, xp: Any):
        super().__init__(net, xp)
        self.W = [xp.asarray(padded(layer.W, self.H, self.H)) for layer in net.layers]

    def run(self, layer: int, states: Array, h0: Array) -> None:
        xp, W = self.xp, self.W[layer].T
        states += self.b[layer]
        product, h = xp.empty_like(h0), h0
        for now in states:
            xp.matmul(h, W, out=product)
            now += product
            h = xp.tanh(now, out=now)


def array_softmax(xp: Any) -> Callable[[Array, Array], None]:
    """softmax(y + c) in place, in array operations."""

    def softmax(y: Array, c: Array) -> None:
        y += c
        y -= y.max(axis=-1, keepdims=True)
        xp.exp(y, out=y)
        y /= y.sum(axis=-1, keepdims=True)

    return softmax


def array_code(net: RNN, xp: Any, device: int = 0) -> Forward:
    """`steps` on any array module: cupy, or numpy."""
    return Forward(net, xp, device, Steps(net, xp), array_softmax(xp))


def steps(net: RNN, device: int = 0) -> Forward:
    """Array code, as one would write it first: a product of cuBLAS, a sum and a tanh in each step.

    Parallelises: within each of a step's three operations, rows of W and sequences. Synchronises: three launches a
    step, each of which waits for the one before; Python asks for every one of them. Moves: W from the second-level
    cache (or memory) in every step, and h three times to memory and back.
    """
    cupy = cuda_source.open_cupy(device)
    with cupy.cuda.Device(device):
        return array_code(net, cupy, device)


# --- fused: one launch a step -------------------------------------------------------------------------------------


class Fused(Recurrence):
    """One launch a step: product, bias and tanh together (kernels/step.cuh)."""

    def __init__(self, net: RNN, xp: Any, dtype: str):
        super().__init__(net, xp)
        self.half = int(dtype == "bfloat16")
        self.W = [xp.asarray(weights_as(padded(layer.W, self.H, self.H), dtype)) for layer in net.layers]

    def run(self, layer: int, states: Array, h0: Array) -> None:
        _, B, H = states.shape
        rows, sequences = step_tile(B)
        kernel = cuda_source.kernel(
            self.xp, "step", "rnn_step", ROWS=rows, SEQUENCES=sequences, WARPS=WARPS, BFLOAT16=self.half
        )
        grid = (-(-H // (rows * WARPS)), -(-B // sequences))
        W, b, sizes, before = self.W[layer], self.b[layer], (np.int32(H), np.int32(B)), h0
        self.info = dict(launches=len(states), grid=grid, tile=(rows, sequences))
        for now in states:
            kernel(grid, (WARPS * 32,), (W, b, before, now, *sizes))
            before = now


def step_tile(B: int) -> tuple[int, int]:
    """(rows, sequences) of a warp: one row where the batch is one, so that all of the GPU has something to do; with
    more sequences 4 by 8, where a loaded weight serves 8 products and a loaded h serves 4."""
    sequences = min(8, 1 << (B - 1).bit_length())
    return min(4, sequences), sequences


def fused(net: RNN, dtype: str = "float32", device: int = 0) -> Forward:
    """One kernel of our own a step: the product, the bias and tanh need no array between them.

    Parallelises: tiles of rows of W and sequences over warps. Synchronises: one launch a step, asked for by Python.
    Moves: W from the second-level cache (or memory) in every step; h once to memory and back. dtype="bfloat16" halves
    the bytes of W; arithmetic and states stay float32.
    """
    check_dtype(dtype)
    cupy = cuda_source.open_cupy(device)
    with cupy.cuda.Device(device):
        return Forward(net, cupy, device, Fused(net, cupy, dtype), raw_softmax(cupy))


# --- graph: all launches asked for at once ------------------------------------------------------------------------


class Graph(Fused):
    """The launches of `Fused`, recorded once for a shape and then replayed.

    A graph keeps the addresses that it was recorded with, so it needs arrays that stay. It begins behind U x and ends
    before V h, which cuBLAS does outside (its calls cannot be recorded): the product writes right into the graph's own
    states, and V reads them there. So only h0, B x H numbers, has to be copied into the graph's arrays, whatever
    arrays the caller brings, and it is recorded again only when T or B change.
    """

    def __init__(self, net: RNN, xp: Any, dtype: str):
        super().__init__(net, xp, dtype)
        self.shape: tuple[int, int] | None = None
        self.captures = 0

    def room(self, layer: int, T: int, B: int) -> Array:
        if self.shape != (T, B):
            self.shape, self.kept = (T, B), {}
        if layer not in self.kept:
            self.kept[layer] = self.capture(layer, super().room(layer, T, B))
        return self.kept[layer][0]

    def capture(self, layer: int, states: Array) -> tuple[Array, Array, Any]:
        """(states, h0, graph): arrays that stay, and the graph that works on them."""
        h0 = self.xp.zeros(states.shape[1:], np.float32)
        stream = self.xp.cuda.Stream(non_blocking=True)
        # The kernel is compiled and loaded before: while a stream records, nothing else may be asked of the device.
        Fused.run(self, layer, states[:1], h0)
        self.xp.cuda.get_current_stream().synchronize()
        with stream:
            stream.begin_capture()
            try:
                Fused.run(self, layer, states, h0)
            finally:
                graph = stream.end_capture()
        self.captures += 1
        return states, h0, graph

    def run(self, layer: int, states: Array, h0: Array) -> None:
        _, begin, graph = self.kept[layer]
        begin[...] = h0
        graph.launch(stream=self.xp.cuda.get_current_stream())
        self.info = self.info | dict(captures=self.captures)


def graph(net: RNN, dtype: str = "float32", device: int = 0) -> Forward:
    """The launches of `fused` as one CUDA graph a layer: recorded once, replayed by one call.

    Parallelises: as `fused`. Synchronises: one launch a step, but started by the GPU itself; Python asks once a layer.
    Moves: as `fused`. Costs: the recording, once for each new T or B (`info["captures"]` counts).
    """
    check_dtype(dtype)
    cupy = cuda_source.open_cupy(device)
    with cupy.cuda.Device(device):
        return Forward(net, cupy, device, Graph(net, cupy, dtype), raw_softmax(cupy))


# --- cluster: the whole sequence in one launch --------------------------------------------------------------------


class Cluster(Recurrence):
    """One launch a sequence (kernels/cluster.cuh; with bfloat16 weights kernels/cluster_mma.cuh)."""

    def __init__(self, net: RNN, xp: Any, dtype: str, on: Device, blocks: int | None):
        super().__init__(net, xp)
        self.layers, self.dtype, self.on, self.blocks = net.layers, dtype, on, blocks
        self.packed: dict[cluster_plan.ClusterPlan, list[Array]] = {}
        self.ready: dict[int, tuple[cluster_plan.ClusterPlan, Any]] = {}  # by batch: planned and compiled once
        self.plan(1)  # refuses what does not fit before any call

    def plan(self, B: int) -> cluster_plan.ClusterPlan:
        return cluster_plan.plan(self.H, B, self.dtype, self.on, self.blocks)

    def prepare(self, B: int) -> None:
        plan = self.plan(B)
        if plan not in self.packed:
            self.packed[plan] = [self.xp.asarray(cluster_plan.pack(it.W, plan)) for it in self.layers]
        kernel = cuda_source.kernel(self.xp, plan.kernel, f"rnn_{plan.kernel}", **plan.constants())
        cuda_source.allow_shared(kernel, plan.shared)
        if plan.blocks > 8:
            cuda_source.allow_large_cluster(self.xp, kernel)
        self.ready[B] = plan, kernel

    def run(self, layer: int, states: Array, h0: Array) -> None:
        T, B, H = states.shape
        if B not in self.ready:
            self.prepare(B)
        plan, kernel = self.ready[B]
        self.info = dict(plan=plan, clusters=plan.clusters(B))
        W, b = self.packed[plan][layer], self.b[layer]
        grid, sizes = (plan.blocks * plan.clusters(B),), (np.int32(T), np.int32(B), np.int32(H))
        kernel(grid, (plan.threads,), (W, b, h0, states, *sizes), shared_mem=plan.shared)


def cluster(net: RNN, dtype: str = "float32", device: int = 0, blocks: int | None = None) -> Forward:
    """The whole sequence in one launch, by clusters of 1 to 16 blocks that write into each other's shared memory.

    Parallelises: rows of W over the blocks of a cluster, slices of the batch over clusters. Synchronises: no grid
    barrier, and no barrier between blocks at all: each block counts the bytes of h that have come to it. Moves: h, 4
    bytes an element (6 with bfloat16), from block to block in every step; W stays in registers and shared memory for
    the whole sequence. dtype="bfloat16": weights only; the products go to the tensor cores, with h in three parts, so
    that they are those of a float32 h. `blocks` asks for a size of cluster; by default the plan chooses.

    Needs compute capability 9.0. Raises launch.DoesNotFit where W is larger than a cluster's registers and shared
    memory (on an H100, H beyond about 1,150 in float32 and 1,500 in bfloat16).
    """
    check_dtype(dtype)
    on = Device.current(device)
    if on.capability < cuda_source.CLUSTERS:
        raise cuda_source.CudaUnavailable(
            f"{on.name} has compute capability {on.capability[0]}.{on.capability[1]}; thread-block clusters need 9.0 "
            "(Hopper) or newer: take cupy_gpu/graph, or numba_cuda/persistent"
        )
    cupy = cuda_source.open_cupy(device)
    with cupy.cuda.Device(device):
        on = replace(on, clusters=cuda_source.resident_clusters(cupy, on.cluster))
        return Forward(net, cupy, device, Cluster(net, cupy, dtype, on, blocks), raw_softmax(cupy))
