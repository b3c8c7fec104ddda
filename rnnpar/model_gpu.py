"""The predicted time of each GPU method, from a device's limits and rates; no GPU is needed to predict.

Where W lies follows from the plans that the kernels themselves are launched by (kernels/launch.py). What it costs to
read it, to multiply by it and to meet follows from `Rates`: measured once on a machine with a GPU
(kernels/gpu_probe.py), or else what is published of a card. Of what is predicted only a cluster's step is fitted, to
the times of its kernel alone on an NVIDIA H200 (kernels/cluster_plan.py).

What is published, and where:
    float32 lanes, 128 bytes of shared memory a cycle: CUDA C++ Programming Guide, "Arithmetic Instructions" and "Shared
    Memory". Clocks, memory: NVIDIA's data sheets of H100 SXM5, A100 SXM4 40 GB and T4. L2: 5,120 bytes a cycle, NVIDIA
    A100 Tensor Core GPU Architecture (2020), taken for Hopper too.
What is assumed within what papers report, since it depends on which multiprocessor asks which slice of the L2 cache:
    260 cycles to the L2 cache of an A100 or H100. Jin et al., Uncovering Real GPU NoC Characteristics (MICRO 2024),
    find 200 to 250 on an A100 and about 400 from the far half of the chip; github.com/markdewing/AI_kernels, latency/,
    has 281 on a GH200. 188 cycles and 1.27 TB/s on a T4: attributed to Jia et al., Dissecting the NVIDIA Turing T4 GPU
    (arXiv:1903.07486), not looked up there again; github.com/sjfeng1999/gpu-arch-microbenchmark has 236 cycles on an
    RTX 2070. 180 cycles from one multiprocessor to another of its cluster: attributed to Luo et al.
    (arXiv:2402.13499), likewise; Jin et al. find 196 to 213. `make check-gpu` measures all of these.
What nobody publishes is assumed as an NVIDIA H200 measured it (peaks.json of data/results/nvidia-h200-16c-5bce): how
many such latencies a barrier takes, what a launch from Python and a node of a graph cost, the cycles of a barrier
within a block and of one thread's multiply-add. A step's own chain is a guess.

Letters: T steps, B batch, I input, H hidden, O output, L layers. Seconds, bytes, operations a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rnnpar import peaks, registry
from rnnpar.kernels import cluster_plan, launch
from rnnpar.kernels.launch import Device, DoesNotFit, plan_block, plan_persistent
from rnnpar.work import Work

LANES = {(7, 0): 64, (7, 5): 64, (8, 0): 64, (9, 0): 128}  # float32 multiply-adds a cycle of a multiprocessor; else 128
TENSOR = {(7, 0): 8, (7, 5): 8, (8, 0): 16, (9, 0): 15}  # times as fast as float32, with 16-bit factors
MEMORY = {"H100": 3.35e12, "H200": 4.8e12, "A100": 1.555e12, "T4": 0.32e12, "GTX 1650": 0.128e12}  # bytes a second
BLOCK_CHAIN = 250  # cycles of what cannot overlap in a step: a chain of multiply-adds, sums over lanes, tanh, a store
PRODUCT_REACH = 0.6  # of the peak rate that a product of whole matrices reaches
CARDS = {"H100": launch.H100, "H200": launch.H200, "A100": launch.A100, "T4": launch.T4, "GTX 1650": launch.SMALL}
LEVELS = ("registers", "shared memory", "L2 cache", "memory")


@dataclass(frozen=True)
class Rates:
    """What a GPU does at most, as a whole, and what meeting costs; `measured` or published."""

    launch: Mapping[str, float]  # seconds of a kernel's launch, one after another, by library: numba, cupy
    wait: float  # seconds until Python knows that the GPU is done
    graph_node: float  # seconds from a kernel to the next in a CUDA graph
    barrier: Mapping[str, float]  # seconds of a meeting of a block on every multiprocessor, by kind
    block_barrier: float  # seconds of a meeting of a block's threads
    cluster: float  # seconds to hand something over within a cluster, and to know that it has come
    latency: float  # seconds of a load from the L2 cache
    thread: float  # seconds of a multiply-add by one thread alone, its factors in a cache
    flops: float  # float32 operations, two a multiply-add
    tensor: float  # the same with 16-bit factors on tensor cores
    shared: float  # bytes a second
    l2: float
    memory: float
    to_device: tuple[float, float]  # seconds a copy, seconds a byte
    from_device: tuple[float, float]
    measured: bool = False

    def bandwidth(self, level: str) -> float:
        """Bytes a second of weights that can be drawn from one of LEVELS."""
        registers = self.flops / 2 * 4  # a float32 weight a multiply-add
        return dict(zip(LEVELS, (registers, self.shared, self.l2, self.memory), strict=True))[level]


def published(device: Device) -> Rates:
    """The rates of a card that nobody has measured here: data sheets, and what this file's docstring assumes."""
    cycle = 1 / device.clock
    flops = 2 * LANES.get(device.capability, 128) * device.multiprocessors * device.clock
    turing = device.capability < (8, 0)
    latency = (188 if turing else 260) * cycle
    memory = next((rate for name, rate in MEMORY.items() if name in device.name), 0.5e12)
    return Rates(
        launch={"numba": 5e-6, "cupy": 5e-6},
        wait=13e-6,
        graph_node=0.5e-6,
        barrier={
            "counter": 5 * latency + 2 * cycle * device.multiprocessors,  # additions to one address queue up
            "flags": 8 * latency,  # looks at many addresses queue up as well
            "grid": 13 * latency + 2 * cycle * device.multiprocessors,  # a counter, by way of one block, and back
            "values": 9 * latency,  # looked at by everybody, all the time
        },
        block_barrier=75 * cycle,
        cluster=1.25 * 180 * cycle,
        latency=latency,
        thread=64 * cycle,
        flops=flops,
        tensor=flops * TENSOR.get(device.capability, 8),
        shared=128 * device.multiprocessors * device.clock,
        l2=(1.27e12 * device.multiprocessors / 40) if turing else 5120 * device.clock,
        memory=memory,
        to_device=(10e-6, 1 / 10e9),
        from_device=(10e-6, 1 / 10e9),
    )


def rates_of(peaks: Mapping[str, Any], device: Device) -> Rates:
    """The rates of a machine whose GPU's peaks were measured (peaks.of_gpu); published ones where they were not.

    What a measurement leaves out (CuPy's launches where CuPy is not installed, clusters on an old card) is published.
    """
    known = published(device)
    if not peaks:
        return known
    names = set(Rates.__dataclass_fields__) - {"measured"}
    found = {name: peaks[name] for name in names & set(peaks)}
    for name in ("launch", "barrier"):
        found[name] = {**getattr(known, name), **found.get(name, {})}
    return Rates(**{name: found.get(name, getattr(known, name)) for name in names}, measured=True)


@dataclass(frozen=True)
class Prediction:
    """The seconds of a call, by what they are spent on, and how much of W lies where, in bytes of its own dtype."""

    parts: dict[str, float]
    where: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class GpuModel:
    """Predictions for one device: `predict(method, work)`, device arrays in and out unless transfers are asked for."""

    def __init__(self, device: Device, rates: Rates | None = None):
        self.device = device
        self.rates = rates or published(device)

    def predict(self, method: str, work: Work, transfers: bool = False, **options: Any) -> Prediction | None:
        """What a call takes; None for a method that the model knows nothing of. DoesNotFit where the method refuses.

        `options` are the method's own: dtype, barrier.
        """
        formula = FORMULAS.get(method)
        if formula is None:
            return None
        found = formula(self, work, options)
        if transfers:
            found.parts["copies"] = self.copies(work)
        return found

    def copies(self, work: Work) -> float:
        """Seconds to bring x and h0 to the device, and y and h back."""
        state = work.layers * work.B * work.H
        there = 4.0 * (work.T * work.B * work.I + state)
        back = 4.0 * (work.T * work.B * work.O + state)
        return sum(2 * call + size * byte for (call, byte), size in
                   ((self.rates.to_device, there), (self.rates.from_device, back)))  # fmt: skip

    def around(self, work: Work, library: str) -> dict[str, float]:
        """All but the recurrence: products over all steps at once, softmax, and the launches and the wait of a call."""
        rates, flops = self.rates, work.flops()
        outputs = 4.0 * work.T * work.B * work.O
        return {
            "U x": flops["U x"] / (PRODUCT_REACH * rates.flops),
            "V h": flops["V h"] / (PRODUCT_REACH * rates.flops),
            "softmax": 4 * outputs / (rates.l2 if outputs < self.device.l2 else rates.memory),
            "launches": (3 + 3 * work.layers) * rates.launch[library] + rates.wait,
        }

    def per_step(self, H: int, B: int, dtype: str = "float32") -> tuple[float, dict[str, float]]:
        """Seconds of one launched step's kernel, without its launch, and where it draws W from."""
        rates, size = self.rates, H * H * _bytes(dtype)
        level = "L2 cache" if size < 0.8 * self.device.l2 else "memory"
        arithmetic = 2.0 * B * H * H / rates.flops
        sweeps = math.ceil(B / 4)  # a warp takes four sequences while it has a row of W
        kernel = 3 * rates.latency + max(sweeps * size / rates.bandwidth(level), arithmetic)
        return kernel, {level: float(size)}


def card(name: str) -> Device:
    """One of CARDS by its name, in capitals or not. ValueError lists them."""
    for known, device in CARDS.items():
        if name.strip().lower() in (known.lower(), device.name.lower()):
            return device
    raise ValueError(f"no GPU {name!r} is written down; those that are: {', '.join(CARDS)}")


def floor(
    device: Device, rates: Rates, H: int, B: int = 1, dtype: str = "float32", barrier: str = launch.BARRIERS[0]
) -> float:
    """Seconds that a step on the whole device takes at least: a meeting, and W once from where it lies.

    Or, for a batch, the arithmetic, where that takes longer than the bytes.
    """
    where = lives(device, H, dtype)
    size = sum(where.values())
    drawn = sum(part / rates.bandwidth(level) for level, part in where.items()) if size else 0.0
    return rates.barrier[barrier] + max(drawn, 2.0 * B * H * H / rates.flops)


def lives(device: Device, H: int, dtype: str = "float32", B: int = 1) -> dict[str, float]:
    """Where numba_cuda/persistent keeps W, in bytes by level; where it does not fit, where a launch a step reads it."""
    size = float(H * H * _bytes(dtype))
    try:
        plan = plan_persistent(device, H, B, dtype)
    except DoesNotFit:
        return {"L2 cache" if size < 0.8 * device.l2 else "memory": size}
    return _split(plan, size)


def _split(plan: Any, size: float) -> dict[str, float]:
    kept = plan.rows / (plan.rows + plan.extra)
    parts = {"registers": size * kept, "shared memory": size * (1 - kept)}
    return {level: part for level, part in parts.items() if part}


def _bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


# --- one formula a method ----------------------------------------------------------------------------------------

Options = Mapping[str, Any]


def _timestep(model: GpuModel, work: Work, options: Options) -> Prediction:
    """The chain of W h and flags, one thread at a time; what one multiprocessor cannot overlap comes on top."""
    T, B, H, rates = work.T, work.B, work.H, model.rates
    threads = min(T, 1024)
    chain = T * work.layers * (B * H * H * rates.thread + 2 * rates.latency)
    beside = B * (H * sum(work.inputs()) + H * work.O) * rates.thread
    busy = T / threads * beside
    parts = {"chain": chain, "U x and V h": max(beside, busy), "launches": 3 * rates.launch["numba"] + rates.wait}
    return Prediction(parts, {"L2 cache": 4.0 * H * H})


def _launched(model: GpuModel, work: Work, options: Options, library: str, launches: int) -> Prediction:
    """A step takes as long as its kernels, or as the launches of the next, whichever is longer."""
    kernel, where = model.per_step(work.H, work.B, options.get("dtype", "float32"))
    rates, steps = model.rates, work.T * work.layers
    waits = launches * max(rates.launch[library], rates.graph_node)
    hidden = max(0.0, launches * rates.graph_node + kernel - waits)  # what of the kernels the launches do not cover
    return Prediction({**model.around(work, library), "launches of steps": steps * waits, "W h": steps * hidden}, where)


def _numba_steps(model: GpuModel, work: Work, options: Options) -> Prediction:
    return _launched(model, work, options, "numba", 1)


def _cupy_steps(model: GpuModel, work: Work, options: Options) -> Prediction:
    """A product, an addition and tanh: three launches."""
    return _launched(model, work, options, "cupy", 3)


def _fused(model: GpuModel, work: Work, options: Options) -> Prediction:
    return _launched(model, work, options, "cupy", 1)


def _graph(model: GpuModel, work: Work, options: Options) -> Prediction:
    """The launches were made once, when the graph was captured; from node to node the GPU goes by itself."""
    kernel, where = model.per_step(work.H, work.B, options.get("dtype", "float32"))
    rates, steps = model.rates, work.T * work.layers
    around = model.around(work, "cupy") | {"launches": 3 * rates.launch["cupy"] + rates.wait}
    return Prediction({**around, "graph nodes": steps * rates.graph_node, "W h": steps * kernel}, where)


def _block(model: GpuModel, work: Work, options: Options) -> Prediction:
    """Sequences dealt out to the blocks; a step is arithmetic and reads from shared memory of one multiprocessor."""
    plan = plan_block(model.device, work.H, work.B, options.get("dtype", "float32"))
    rates, clock = model.rates, model.device.clock
    together = math.ceil(plan.blocks / model.device.multiprocessors)  # that share a multiprocessor
    a_step = launch.block_cycles(plan) * together / clock + BLOCK_CHAIN / clock
    turns = work.T * work.layers * math.ceil(work.B / plan.blocks)
    parts = {"W h": turns * a_step, "meeting": turns * rates.block_barrier}
    return Prediction({**model.around(work, "numba"), **parts}, _split(plan, _size(work, options)))


def _persistent(model: GpuModel, work: Work, options: Options) -> Prediction:
    """A step is a meeting, h from the L2 cache to every block, the block's share of W h, and sums over its threads."""
    dtype, barrier = options.get("dtype", "float32"), options.get("barrier", launch.BARRIERS[0])
    plan = plan_persistent(model.device, work.H, work.B, dtype, barrier, options.get("teams"))
    rates, device = model.rates, model.device
    own, S, each = plan.rows + plan.extra, plan.sequences, device.multiprocessors
    arithmetic = 2.0 * S * own * plan.Hp / (rates.flops / each) * (2 if dtype == "bfloat16" else 1)
    staged = 4.0 * S * plan.Hp * (2 + plan.extra * _bytes(dtype) / 4) / (rates.shared / each)
    sums = S * max(plan.warps, 4) * (own + 3) / 2 / device.clock
    h = 4.0 * S * work.H * (2 if barrier == "values" else 1)
    exchange = rates.latency + max(plan.grid * h / rates.l2, h / 64 / device.clock)
    steps = work.T * work.layers
    parts = {
        "meeting": steps * rates.barrier[barrier],
        "h to every block": steps * exchange,
        "W h": steps * (max(arithmetic, staged) + sums / 2 + BLOCK_CHAIN / device.clock),
    }
    return Prediction({**model.around(work, "numba"), **parts}, _split(plan, _size(work, options)))


def _cluster(model: GpuModel, work: Work, options: Options) -> Prediction:
    """A step by the plan that the kernel is launched with; slices of the batch over clusters, which take turns."""
    device, dtype = model.device, options.get("dtype", "float32")
    if device.cluster < 2:
        raise DoesNotFit("cupy_gpu/cluster", "blocks a cluster", 2, device.cluster, f"on {device.name}")
    plan = cluster_plan.plan(work.H, work.B, dtype, device, options.get("blocks"))
    steps, (turns, _) = work.T * work.layers, plan.turns(device, work.B)
    handed = turns * (model.rates.cluster if plan.blocks > 1 else model.rates.block_barrier)
    parts = {"hand-over": steps * handed, "W h": steps * (plan.seconds(device, work.B) - handed)}
    size, kept = _size(work, options), 1 - plan.spilled / plan.chunks
    where = {"registers": size * kept, "shared memory": size * (1 - kept)}
    return Prediction({**model.around(work, "cupy"), **parts}, {level: part for level, part in where.items() if part})


def _size(work: Work, options: Options) -> float:
    return float(work.H**2 * _bytes(options.get("dtype", "float32")))


FORMULAS: dict[str, Callable[[GpuModel, Work, Options], Prediction]] = {
    "numba_cuda/timestep": _timestep,
    "numba_cuda/steps": _numba_steps,
    "numba_cuda/block": _block,
    "numba_cuda/persistent": _persistent,
    "cupy_gpu/steps": _cupy_steps,
    "cupy_gpu/fused": _fused,
    "cupy_gpu/graph": _graph,
    "cupy_gpu/cluster": _cluster,
}
AUTO = ("numba_cuda/steps", "numba_cuda/block", "numba_cuda/persistent", "cupy_gpu/graph", "cupy_gpu/cluster")


def here() -> GpuModel:
    """The model of this machine's GPU; measures its peaks if that was never done. RuntimeError where there is none.

    Without numba-cuda, which measures them, the rates are published ones: a rougher guess to choose by.
    """
    device = Device.current()
    try:
        found = peaks.of_gpu()
    except registry.Unavailable:
        found = {}
    return GpuModel(device, rates_of(found, device))


def fastest(model: GpuModel, work: Work, methods: tuple[str, ...], transfers: bool, dtype: str) -> tuple[str, float]:
    """The method among `methods` that is expected to be fastest, and its seconds; ("", inf) where none can do it."""
    found = {}
    for method in methods:
        try:
            prediction = model.predict(method, work, transfers, dtype=dtype)
        except DoesNotFit:
            continue
        if prediction is not None:
            found[method] = prediction.seconds
    best = min(found, key=found.get, default="")
    return best, found.get(best, math.inf)
