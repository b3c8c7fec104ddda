"""How `cupy_gpu/cluster` is launched: the size of the cluster, and where each block keeps its share of W.

Pure Python, for any `Device`. A plan says what the kernel is compiled with (kernels/cluster.cuh for float32,
kernels/cluster_mma.cuh for bfloat16 weights), and what a step should take: the instructions of the kernel's inner loop
over the rates of a Hopper multiprocessor, and the latencies of what follows it. The latencies were fitted to 400 plans'
times on an NVIDIA H200 (median error 4%); the rates came out of the same fit as they are published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnnpar.kernels.launch import Device, DoesNotFit, blocks_that_fit, round_up

BLOCKS = (1, 2, 4, 8, 16)  # a cluster's; more than 8 are not portable: they are asked for by an attribute
SEQUENCES = {"float32": (1, 2, 4, 8), "bfloat16": (1, 2, 8, 16)}  # that a cluster takes through the steps together
BARRIERS = 128  # bytes of shared memory that the mbarriers take, with what aligns the state behind them
# Registers of a thread that do not hold weights: seen in ptxas's report, and held by tests that allow no spills.
# By sequences; in float32 also by the lanes that share a row.
OTHER_REGISTERS = {
    "float32": {
        8: {1: 48, 2: 56, 4: 72, 8: 100}, 16: {1: 56, 2: 64, 4: 84, 8: 92}, 32: {1: 64, 2: 84, 4: 92, 8: 120},
    },
    "bfloat16": {1: 64, 2: 64, 8: 80, 16: 144},
}  # fmt: skip

# A Hopper multiprocessor, a cycle: multiply-adds in float32; bytes of shared memory, where a warp's 128 bits a lane are
# four times 128 bytes however many lanes read the same; messages of 16 bytes that come from other blocks.
MULTIPLY_ADDS, SHARED_BYTES, MESSAGES = 128, 128, 1.0
# Cycles of a step that nothing overlaps: its beginning and end; a round of shuffles; the way to the other blocks.
STEP, SHUFFLES = 230, 50
HAND_OVER = {1: 0, 2: 60, 4: 60, 8: 60, 16: 155}
# The same with tensor cores: a product in a chain of them, an element that a thread finishes, a share that it adds up.
MMA_STEP, MMA, ELEMENT, SHARE = 180, 13, 180, 18
MMA_MESSAGES = 0.67  # a cycle: they carry three bfloat16 an element, and come from shared memory
MMA_HAND_OVER = {1: 0, 2: 165, 4: 130, 8: 180, 16: 315}


@dataclass(frozen=True)
class ClusterPlan:
    """One way to launch. Sizes of one block unless said otherwise; bytes.

    A step of one cluster takes `latency` + `work` cycles; of `work` it takes more where blocks share a multiprocessor.
    """

    dtype: str
    H: int  # padded to a multiple of 4
    blocks: int  # of a cluster
    rows: int
    sequences: int  # of a cluster
    split: int  # lanes (float32) or warps (bfloat16) that share a row's columns
    spilled: int  # chunks of weights in shared memory instead of registers
    threads: int
    columns: int
    shared: int
    registers: int  # of a thread, about
    latency: float
    work: float

    @property
    def kernel(self) -> str:
        return "cluster" if self.dtype == "float32" else "cluster_mma"

    @property
    def chunks(self) -> int:
        """Chunks of weights that a thread has: of four float32, or of sixteen bfloat16."""
        return self.columns // 32 if self.dtype == "float32" else self.columns // 32 // self.split

    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return dict(CLUSTER=self.blocks, ROWS=self.rows, SEQUENCES=self.sequences, SPILLED=self.spilled,
                    SPLIT=self.split)  # fmt: skip

    def clusters(self, B: int) -> int:
        return -(-B // self.sequences)

    def turns(self, device: Device, B: int) -> tuple[int, int]:
        """(how often the device is filled until all clusters have run, how many blocks then share a multiprocessor)."""
        deep = math.ceil(self.clusters(B) / device.resident_clusters(self.blocks))
        together = blocks_that_fit(device, self.threads, self.registers, self.shared)
        turns = math.ceil(deep / together)
        return turns, math.ceil(deep / turns)

    def seconds(self, device: Device, B: int) -> float:
        """The predicted time of one step of B sequences."""
        turns, together = self.turns(device, B)
        return turns * (self.latency + together * self.work) / device.clock


def plan(H: int, B: int, dtype: str, device: Device, blocks: int | None = None) -> ClusterPlan:
    """The plan with the least predicted time; `blocks` asks for that size of cluster.

    Raises DoesNotFit where W does not fit into the registers and shared memory of the largest cluster, ValueError
    for a size of cluster that there is not.
    """
    largest = min(device.cluster, BLOCKS[-1])
    if blocks is not None and (isinstance(blocks, bool) or blocks not in BLOCKS or blocks > largest):
        sizes = ", ".join(str(size) for size in BLOCKS if size <= largest)
        raise ValueError(f"blocks is {blocks!r}; on {device.name} a cluster has one of {sizes} blocks")
    H = round_up(H, 4)
    fitting = candidates(H, B, dtype, device, BLOCKS if blocks is None else (blocks,))
    if not fitting:
        size = blocks or largest
        other = ", or dtype='bfloat16'" if dtype == "float32" else ""
        raise DoesNotFit(
            f"W in {dtype}, in the registers and shared memory of {size} block(s),", "hidden units", H,
            largest_hidden_size(dtype, device, size), f"take cupy_gpu/graph or numba_cuda/persistent{other}",
        )  # fmt: skip
    return min(fitting, key=lambda it: it.seconds(device, B))


def largest_hidden_size(dtype: str, device: Device, blocks: int) -> int:
    """The largest H whose W fits into a cluster of that many blocks."""
    low, high = 0, 4096  # times 4: what fits, and what surely does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if candidates(4 * middle, 1, dtype, device, (blocks,)) else (low, middle)
    return 4 * low


def candidates(H: int, B: int, dtype: str, device: Device, sizes: tuple[int, ...] = BLOCKS) -> list[ClusterPlan]:
    """All plans that the device can hold, H a multiple of 4."""
    make = _on_cores if dtype == "float32" else _on_tensor_cores
    found = []
    for blocks in (size for size in sizes if size <= device.cluster):
        for sequences in SEQUENCES[dtype]:
            if sequences < 2 * B:  # more than the batch, rounded up, is waste
                for split in (8, 16, 32) if dtype == "float32" else (1, 2, 4, 8):
                    it = make(H, blocks, sequences, split, device)
                    if it is not None:
                        found.append(it)
    return found


def _on_cores(H: int, blocks: int, sequences: int, split: int, device: Device) -> ClusterPlan | None:
    rows, lane_rows = round_up(math.ceil(H / blocks), 4), split // 8
    threads = rows * 8
    columns = round_up(blocks * rows, 4 * split)
    chunks = columns // 32
    others = OTHER_REGISTERS["float32"][split][sequences]
    kept = _registers(device, threads, others) // 4 // lane_rows * lane_rows
    spilled = max(0, chunks - kept)
    shared = BARRIERS + 2 * sequences * columns * 4 + spilled * threads * 16
    if kept < 0 or threads > device.threads_per_block or shared > device.shared_per_block:
        return None
    loads = threads // 32 * chunks // lane_rows * sequences * 512 + spilled * threads * 16
    latency = STEP + SHUFFLES * math.log2(split) + HAND_OVER[blocks]
    work = rows * columns * sequences / MULTIPLY_ADDS + loads / SHARED_BYTES
    work += rows * blocks * sequences * 4 / 16 / MESSAGES if blocks > 1 else 0
    registers = 40 + 5 * sequences + 4 * (chunks - spilled)  # about what the compiler takes, where nothing is short
    return ClusterPlan("float32", H, blocks, rows, sequences, split, spilled, threads, columns, shared, registers,
                       latency, work)  # fmt: skip


def _on_tensor_cores(H: int, blocks: int, sequences: int, split: int, device: Device) -> ClusterPlan | None:
    rows = round_up(math.ceil(H / blocks), 16)
    threads = rows * 2 * split
    columns = round_up(blocks * rows, 32 * split)
    chunks = columns // 32 // split
    kept = _registers(device, threads, OTHER_REGISTERS["bfloat16"][sequences]) // 8
    spilled = max(0, chunks - kept)
    together = sequences <= 2
    tiles, terms = (1, 1) if together else (sequences // 8, 3)
    pitch = columns + (0 if columns % 64 else 32)
    state = (8 if together else 3 * sequences) * pitch * 2
    sums = split * tiles * 8 * (rows + 4) * 4
    shared = BARRIERS + 2 * state + threads * 6 + sums + spilled * 2 * threads * 16
    if kept < 0 or threads > device.threads_per_block or shared > device.shared_per_block:
        return None
    loads = threads // 32 * (chunks * tiles * terms * 512 + spilled * 1024)
    finish = math.ceil(rows * sequences / threads) * (ELEMENT + split * (3 if together else 1) * SHARE)
    latency = MMA_STEP + chunks * terms / 2 * MMA + finish + MMA_HAND_OVER[blocks]  # two chains for each tile
    work = loads / SHARED_BYTES + (rows * blocks * sequences * 6 / 16 / MMA_MESSAGES if blocks > 1 else 0)
    registers = OTHER_REGISTERS["bfloat16"][sequences] + 8 * (chunks - spilled)
    return ClusterPlan("bfloat16", H, blocks, rows, sequences, split, spilled, threads, columns, shared, registers,
                       latency, work)  # fmt: skip


def _registers(device: Device, threads: int, other: int) -> int:
    """Registers of a thread that are left for weights, if the block is alone on its multiprocessor; below 0: none."""
    limit = min(device.registers_per_thread, device.registers_per_block // round_up(threads, 128) // 8 * 8)
    return limit - other


# --- the weights, in each thread's own order -----------------------------------------------------------------------


def pack(W: np.ndarray, it: ClusterPlan) -> np.ndarray:
    """W (H,H) float32 as the kernel reads it, padded with zeros: one flat array, float32 or (bfloat16) uint16."""
    padded = np.zeros((it.blocks * it.rows, it.columns), np.float32)
    padded[: len(W), : W.shape[1]] = W
    return _pack_for_cores(padded, it) if it.dtype == "float32" else _pack_for_tensor_cores(padded, it)


def _pack_for_cores(padded: np.ndarray, it: ClusterPlan) -> np.ndarray:
    """Each thread's chunks of four columns: of each of its rows in turn, `split` lanes side by side."""
    rows = it.split // 8  # that a lane has a share of
    parts = padded.reshape(it.blocks, it.rows // 4, 4 // rows, rows, it.chunks // rows, it.split, 4)
    #  axes: 0 block, 1 warp, 2 lane / split, 3 row of the lane, 4 chunk, 5 lane % split, 6 column
    return np.ascontiguousarray(parts.transpose(0, 4, 3, 1, 2, 5, 6)).reshape(-1)


def _pack_for_tensor_cores(padded: np.ndarray, it: ClusterPlan) -> np.ndarray:
    """The fragments of mma.m16n8k16, two a chunk of 32 columns; a lane has the columns that it also reads of h.

    Row = tile * 16 + upper * 8 + lane / 4; column = (share * chunks + chunk) * 32 + lane % 4 * 8 + i * 4 + later * 2
    + e. A fragment's four words are (upper, later) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    from rnnpar.kernels.tile import to_bfloat16

    tiles = it.rows // 16
    split = to_bfloat16(padded).reshape(it.blocks, tiles, 2, 8, it.split, it.chunks, 4, 2, 2, 2)
    #  axes: 0 block, 1 tile, 2 upper, 3 lane / 4, 4 share, 5 chunk, 6 lane % 4, 7 i, 8 later, 9 e
    return np.ascontiguousarray(split.transpose(0, 5, 7, 4, 1, 3, 6, 8, 2, 9)).reshape(-1)
