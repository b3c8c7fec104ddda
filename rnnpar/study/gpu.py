"""What the chapters on the GPU draw and say: from results of `make check-gpu` where there are any, else from the model.

Results are any machine's that has them, this one's first. A figure that no GPU has measured says "predicted, not
measured" in the picture, and a sentence about it begins so. Times are those from device arrays to device arrays,
unless a name says otherwise; each was checked against the oracle.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnnpar import machine, model_gpu
from rnnpar.kernels import launch
from rnnpar.kernels.launch import A100, H100, KNOWN, T4, Device, DoesNotFit
from rnnpar.model_gpu import LEVELS, GpuModel, Rates
from rnnpar.peaks import GPU_VERSION
from rnnpar.study import measure, plots, store, tell
from rnnpar.study.check_gpu import steps
from rnnpar.study.gpu_checks import CHECKS
from rnnpar.study.plots import BLUE, GREEN, INK, ORANGE, QUIET, RED, SKY, Median
from rnnpar.work import Work

EXPERIMENT = "gpu"
PREDICTED = "predicted, not measured"
T_STEPS = 512
SIZES = [16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
TICKS = [2**k for k in range(4, 13)]  # of an axis of H
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CARDS = (H100, A100, T4)
BARRIERS = {  # by kind: how it is drawn, and in words
    "flags": (ORANGE, "arrival flags"),
    "counter": (BLUE, "one counter"),
    "grid": (RED, "cooperative groups"),
    "values": (GREEN, "marked values"),
}
LEVEL_COLOURS = dict(zip(LEVELS, (GREEN, SKY, ORANGE, RED), strict=True))
PEERS = ("peers/cudnn tf32=False", "peers/cudnn tf32=True", "peers/jax_gpu")


@dataclass(frozen=True)
class Seen:
    """What there is to show: a device with its rates, and the results of the machine that has it, if any has."""

    device: Device
    rates: Rates
    machine: str  # whose figures these are: the machine that measured, or this one
    frame: pd.DataFrame  # empty where nothing was measured

    @property
    def measured(self) -> bool:
        return len(self.frame) > 0

    @property
    def model(self) -> GpuModel:
        return GpuModel(self.device, self.rates)

    @property
    def corner(self) -> str:
        """What a figure of results says of where its numbers come from."""
        if self.measured:
            return f"{self.machine} · {tell.last_day(self.frame)}"
        return f"{PREDICTED}: {self.device.name}" + ("" if self.rates.measured else ", from data sheets")

    @property
    def rates_corner(self) -> str:
        """The same of a figure that is drawn from the device's rates."""
        if self.rates.measured:
            return f"{self.machine}, measured peaks"
        return f"{PREDICTED}: {self.device.name}, from data sheets"


def results(name: str = "") -> Seen:
    """What was measured on a machine with a GPU: the one named, this one, or any other that has results.

    Where none has, the frame is empty and the device is the one here or else an H100, at published rates. Its figures
    lie under this machine's name then. store.ResultsError for a machine that has no such results.
    """
    if name and name not in with_results() and name != machine.name():
        raise store.ResultsError(
            f"{name} has no results of {EXPERIMENT!r}; those that have: {with_results() or 'none'}"
        )
    known = with_results()
    chosen = name if name in known else machine.name() if machine.name() in known else (known or [""])[-1]
    if not chosen:
        found, device = here(), here() or H100
        empty = pd.DataFrame(columns=["machine", *store.COLUMNS])
        return Seen(device, model_gpu.rates_of(peaks(machine.name()) if found else {}, device), machine.name(), empty)
    device = device_of(chosen)
    return Seen(device, model_gpu.rates_of(peaks(chosen), device), chosen, store.load(EXPERIMENT, chosen))


def with_results() -> list[str]:
    """The machines that have results of check-gpu's sweep, the one measured last at the end."""
    found = [name for name in store.machines() if (store.results_folder(name) / f"{EXPERIMENT}.csv").exists()]
    return sorted(found, key=lambda name: (tell.last_day(store.load(EXPERIMENT, name)), name))


def here() -> Device | None:
    """This machine's GPU, if it has one."""
    if not machine.gpu():
        return None
    try:
        return Device.current()
    except (RuntimeError, ValueError):
        return None


def device_of(name: str) -> Device:
    """The limits of a machine's GPU: as its driver told check-gpu, or those written down for its model."""
    known = store.load_machine(name)
    if known.get("gpu_limits"):
        limits = dict(known["gpu_limits"])
        return Device(**limits | {name: tuple(limits.get(name, ())) for name in ("capability", "clusters")})
    model = known.get("gpu", {}).get("name", "")
    return next((device for device in KNOWN if device.name == model), H100)


def peaks(name: str) -> dict[str, Any]:
    """The peaks of a machine's GPU as measured there; empty where they were not."""
    file = store.results_folder(name) / "peaks.json"
    try:
        found = json.loads(file.read_text()).get("gpu", {})
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise store.ResultsError(f"{file} is damaged ({error}); delete it, and the peaks are measured again") from None
    return found if found.get("version") == GPU_VERSION else {}


# --- what was measured, and what the model says ------------------------------------------------------------------


def points(seen: Seen, kind: str = "steady") -> pd.DataFrame:
    """The rows of calls from device arrays ("steady") or NumPy arrays ("transfer"), and of points without a time."""
    frame = seen.frame
    return frame[((frame["kind"] == kind) | (frame["status"] != "ok")) & (frame["T"] == frame["B"].map(steps))]


def times(seen: Seen, kind: str = "steady") -> dict[tuple[str, int, int], Median]:
    """Measured seconds a step, (method with options, H, B) -> Median."""
    found = plots.medians(points(seen, kind), ["method", "H", "B"])
    return {(method, H, B): value.over(float(steps(B))) for (method, H, B), value in found.items()}


def work(H: int, B: int) -> Work:
    return Work(steps(B), B, H, H, H)


def predict(seen: Seen, method: str, H: int, B: int, transfers: bool = False) -> float:
    """Predicted seconds a step of a method, which may carry options as results name them; NaN where there is none."""
    name, *options = method.split()
    pairs = (option.split("=") for option in options)
    chosen = {option: int(value) if value.isdigit() else value for option, value in pairs}
    try:
        found = seen.model.predict(name, work(H, B), transfers, **chosen)
    except DoesNotFit:
        return float("nan")
    return found.seconds / steps(B) if found else float("nan")


def predictions(seen: Seen, methods: Iterable[str], axis: str, fixed: int, sizes: Sequence[int]) -> dict[str, tuple]:
    """Predicted microseconds a step along H or B, as plots.draw_lines takes them; what does not fit is left out."""
    lines = {}
    for method in methods:
        shapes = [(size, fixed) if axis == "H" else (fixed, size) for size in sizes]
        found = [1e6 * predict(seen, method, H, B) for H, B in shapes]
        pairs = [(size, value) for size, value in zip(sizes, found, strict=True) if np.isfinite(value)]
        if pairs:
            lines[method] = tuple(zip(*pairs, strict=True))
    return lines


def as_results(seen: Seen, methods: Sequence[str], sizes: Sequence[int], batches: Sequence[int]) -> pd.DataFrame:
    """Predictions in the form of results, so that figures of results can draw them."""
    rows = []
    for method in methods:
        for H in sizes:
            for B in batches:
                seconds = predict(seen, method, H, B) * steps(B)
                status = "ok" if np.isfinite(seconds) else "unsupported"
                rows.append(dict(
                    machine=seen.corner, point="", workload="random", method=method, H=H, I=H, O=H, T=steps(B), B=B,
                    layers=1, threads=1, sample=1, samples=2, seconds=seconds if status == "ok" else None,
                    kind="steady", error=0.0, status=status, message="", source="", revision="", date=None,
                ))  # fmt: skip
    return pd.DataFrame(rows, columns=["machine", *store.COLUMNS])


# --- the parts of a page -----------------------------------------------------------------------------------------


def stamp(ax: Axes, measured: bool, where: tuple[float, float] = (0.02, 0.97)) -> None:
    """Say in the picture that no GPU has measured what is drawn."""
    if not measured:
        ax.text(*where, PREDICTED, transform=ax.transAxes, va="top", color=RED, size=9.5, weight="bold", zorder=5)


def along(seen: Seen, axis: str, fixed: int, methods: Sequence[str], kind: str = "steady") -> tuple[dict, dict]:
    """(measured microseconds a step, gaps) along H or B, by method."""
    other = "B" if axis == "H" else "H"
    rows = points(seen, kind)
    rows = rows[(rows[other] == fixed) & rows["method"].isin(methods)]
    lines: dict[str, dict[float, Median]] = {}
    for (method, size), value in plots.medians(rows, ["method", axis]).items():
        lines.setdefault(method, {})[size] = value.over(steps(fixed if axis == "H" else size) * 1e-6)
    return lines, plots.gaps(rows, ["method", axis])


@plots.styled
def step_times(seen: Seen, methods: Sequence[str], B: int = 1, sizes: Sequence[int] = SIZES) -> Figure:
    """Time a step against H at one B: measured lines with the model's dashed, or the model's alone."""
    lines, gaps = along(seen, "H", B, [*methods, *PEERS])
    tried = sorted({size for line in lines.values() for size in line}) or list(sizes)
    guessed = predictions(seen, methods, "H", B, tried)
    figure, (ax,) = plots.page(
        f"Time a step on a GPU, {B} sequence{'s' if B > 1 else ''}",
        f"T = {T_STEPS}, I = O = H, from device arrays to device arrays, U x, V h and softmax included.\n"
        + ("Lines: measured; dashed: predicted." if seen.measured else "Dashed: the cost model on published figures."),
        seen.corner, [3.6], right=2.1, left=0.95,
    )  # fmt: skip
    plots.draw_lines(ax, lines, gaps, plots.AXES["H"], predicted=guessed)
    plots.size_axis(ax, [size for size in TICKS if tried[0] <= size <= tried[-1]] or tried, plots.AXES["H"])
    room = (tried[-1] / tried[0]) ** 0.03
    ax.set_xlim(tried[0] / room, tried[-1] * room)
    ax.set_ylabel("time a step (µs)")
    stamp(ax, seen.measured)
    return figure


# --- chapter 04: the origin's kernel -----------------------------------------------------------------------------


def origin_limits(threads: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)) -> dict[str, list[float]]:
    """How many times as fast as one thread a thread a step can be, by workload: no more than T threads find work, and
    none is faster than the chain of W h through all of them."""
    shapes = {name: (I_H_O_T[0], I_H_O_T[1], I_H_O_T[2], I_H_O_T[3]) for name, I_H_O_T in origin_shapes().items()}
    found = {}
    for name, (I, H, O, T) in shapes.items():
        chain, beside = H * H, H * (I + O)
        one = T * (chain + beside)
        found[name] = [one / max(T * chain + beside, one / min(count, T)) for count in threads]
    return found


def origin_shapes() -> dict[str, tuple[int, int, int, int]]:
    """(I, H, O, T) of the origin's two workloads, and of a square one."""
    shapes = {name: (I, H, O, T) for name, (H, I, O, T, _) in measure.ORIGIN.items()}
    return shapes | {"I = O = H = 256": (256, 256, 256, T_STEPS)}


@plots.styled
def origin_scaling(seen: Seen) -> Figure:
    """What a thread a time step can gain at most, counted in multiplications alone, and how much of a GPU it uses."""
    threads = [2**k for k in range(11)]
    figure, (ax,) = plots.page(
        "One thread a time step: what it can gain at most",
        "Speed-up over one GPU thread if waiting cost nothing: counted in multiplications, all threads in one block.\n"
        "More threads than time steps find no work; and the chain W h, tanh, W h ... is as long as ever.",
        plots.COMPUTED, [3.0], right=2.0,
    )  # fmt: skip
    colours = dict(zip(origin_shapes(), (BLUE, ORANGE, RED), strict=True))
    plots.size_axis(ax, threads, "threads of the block")
    plots.log_axis(ax.yaxis, 0.9, 80, [1, 2, 4, 8, 16, 32, 64], suffix="×")
    ends = []
    for name, line in origin_limits(threads).items():
        ax.plot(threads, line, color=colours[name], marker="o", ms=4.5, mec="white", mew=0.6)
        ends.append((threads[-1], line[-1], f"{name}: {line[-1]:.1f}×", colours[name]))
    ax.plot(threads, threads, color=QUIET, ls=(0, (1, 1.5)), lw=1.2, scaley=False)
    ax.text(30, 38, "one a thread", color=QUIET, size=8.5, rotation=33, ha="center")
    ax.set(ylim=(0.9, 80), ylabel="speed-up, at most")
    plots.label_ends(ax, ends)
    return figure


# --- chapter 04: launches and barriers ---------------------------------------------------------------------------


def meetings(seen: Seen) -> dict[str, float]:
    """Seconds of each way to let a step follow a step, dearest first."""
    rates = seen.rates
    found = {
        "a launch from Numba": rates.launch["numba"],
        "a launch from CuPy": rates.launch["cupy"],
        "a node of a CUDA graph": rates.graph_node,
    }
    found |= {f"a barrier: {words}": rates.barrier[kind] for kind, (_, words) in BARRIERS.items()}
    if seen.device.cluster > 1:
        found["a hand-over in a cluster"] = rates.cluster
    found["a barrier of one block"] = rates.block_barrier
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def draws(seen: Seen, H: int, B: int = 1, dtype: str = "float32") -> float:
    """Seconds that W h alone takes on the whole device: W once from where it lies, or the arithmetic if longer."""
    return model_gpu.floor(seen.device, seen.rates, H, B, dtype) - seen.rates.barrier[launch.BARRIERS[0]]


@plots.styled
def meeting_prices(seen: Seen) -> Figure:
    """What it costs to let a step follow a step, as bars, with what H such a cost pays for."""
    found = meetings(seen)
    figure, (ax,) = plots.page(
        "What it costs to let one step follow another",
        f"{seen.device.name}. In brackets: the H at which W h alone takes as long, while the whole device draws W\n"
        "from registers and shared memory. Below that H, meeting is most of a step.",
        seen.rates_corner, [0.31 * len(found) + 0.1], left=2.15, right=1.3, foot=0.7,
    )  # fmt: skip
    colours = {"launch": RED, "node": ORANGE, "barrier": BLUE, "hand-over": GREEN}
    for row, (name, seconds) in enumerate(found.items()):
        colour = next(colour for word, colour in colours.items() if word in name)
        ax.barh(row, 1e6 * seconds, color=colour, height=0.66)
        enough = worth(seen, seconds)
        told = f" (H = {enough:,})" if enough else " (never)"
        ax.text(1e6 * seconds * 1.08, row, f"{plots.short(1e6 * seconds)} µs{told}", va="center", size=8.5, color=INK)
        ax.text(-0.015, row, name, transform=ax.get_yaxis_transform(), ha="right", va="center", size=9)
    low = min(found.values()) * 1e6 / 2
    plots.log_axis(ax.xaxis, low, 2e6 * max(found.values()), [0.01, 0.1, 1, 10, 100])
    ax.set(xlim=(low, 2e6 * max(found.values())), ylim=(len(found) - 0.4, -0.6), yticks=[], xlabel="microseconds")
    ax.grid(False, axis="y")
    stamp(ax, seen.rates.measured, (0.58, 0.1))
    return figure


def worth(seen: Seen, seconds: float) -> int:
    """The smallest H of the grid whose W h takes as long on the whole device; 0 where none does while W stays near."""
    near = [H for H in range(16, 4097, 16) if {"registers", "shared memory"} & set(model_gpu.lives(seen.device, H))]
    return next((H for H in near if draws(seen, H) >= seconds), 0)


@plots.styled
def step_floor(seen: Seen, sizes: Sequence[int] = SIZES) -> Figure:
    """The least time of a step against H: the meeting, and W drawn from where it lies, by how steps are chained."""
    figure, (ax,) = plots.page(
        "The floor of a step: a meeting, and W once",
        f"{seen.device.name}, one sequence, float32: what no step can be faster than, by how steps follow each other.\n"
        "Launched steps draw W from the L2 cache or memory, the others from where a persistent kernel keeps it.",
        seen.rates_corner, [3.3], right=2.0,
    )  # fmt: skip
    ways = {
        "a launch from Numba": (seen.rates.launch["numba"], RED, "memory"),
        "a node of a CUDA graph": (seen.rates.graph_node, ORANGE, "memory"),
        "a barrier by one counter": (seen.rates.barrier["counter"], BLUE, "near"),
        "a hand-over in a cluster": (seen.rates.cluster, GREEN, "near"),
    }
    ends = []
    for name, (cost, colour, place) in ways.items():
        xs = [H for H in sizes if place == "memory" or near(seen, H)]
        ys = [1e6 * (cost + (draws(seen, H) if place == "near" else seen.model.per_step(H, 1)[0])) for H in xs]
        ax.plot(xs, ys, color=colour)
        ends.append((xs[-1], ys[-1], name, colour))
    alone = [1e6 * draws(seen, H) for H in sizes]
    ax.plot(sizes, alone, color=QUIET, lw=1.3, ls=(0, (4, 2)))
    ends.append((sizes[-1], alone[-1], "W h alone", QUIET))
    plots.size_axis(ax, TICKS, plots.AXES["H"])
    plots.log_axis(ax.yaxis, 0.03, 60)
    ax.set(ylim=(0.03, 60), ylabel="time a step (µs)")
    plots.label_ends(ax, ends)
    stamp(ax, seen.rates.measured)
    return figure


def near(seen: Seen, H: int) -> bool:
    """Whether W stays in registers and shared memory for a whole sequence."""
    return bool({"registers", "shared memory"} & set(model_gpu.lives(seen.device, H)))


# --- chapter 04: where W lives -----------------------------------------------------------------------------------


@plots.styled
def where_w_lives(cards: Sequence[Device] = CARDS) -> Figure:
    """The share of W in registers, shared memory, the L2 cache and memory against H, by card and width of a weight."""
    figure, panels = plots.page(
        "Where W lives as H grows",
        "Share of W's bytes by the plans of numba_cuda/persistent; where none fits, as a launch a step reads it.\n"
        "From the limits of the cards alone: left float32 weights, right bfloat16.",
        "computed from the launch plans", [1.15] * len(cards), columns=2, right=0.2, left=0.62, gap=0.72, head=0.25,
        foot=0.95,
    )  # fmt: skip
    sizes, found_in = list(range(64, 6145, 64)), []
    for index, ax in enumerate(panels):
        device, dtype = cards[index // 2], ("float32", "bfloat16")[index % 2]
        shares = {level: np.zeros(len(sizes)) for level in LEVELS}
        for at, H in enumerate(sizes):
            found = model_gpu.lives(device, H, dtype)
            for level, size in found.items():
                shares[level][at] = 100 * size / sum(found.values())
        found_in = [level for level in LEVELS if level in found_in or shares[level].any()]
        ax.stackplot(sizes, shares.values(), colors=[LEVEL_COLOURS[level] for level in LEVELS], alpha=0.85, lw=0)
        ax.set(xlim=(64, 6144), ylim=(0, 100), xticks=[1024, 2048, 3072, 4096, 5120, 6144], yticks=[0, 50, 100])
        ax.set_xticklabels([f"{tick:,}" for tick in (1024, 2048, 3072, 4096, 5120, 6144)])
        ax.set_yticklabels(["0%", "50%", "100%"])
        ax.set_title(f"{short_name(device)}, {dtype}", size=9, loc="left", pad=4)
        ax.grid(False)
    for ax in panels[-2:]:
        ax.set_xlabel(plots.AXES["H"])
    marks = [panels[0].scatter([], [], marker="s", s=60, color=LEVEL_COLOURS[level], label=level) for level in found_in]
    figure.legend(handles=marks, loc="lower left", ncols=4, frameon=False, fontsize=9, bbox_to_anchor=(0.05, 0.0))
    return figure


def short_name(device: Device) -> str:
    """H100, A100, T4: what people call a card."""
    words = device.name.replace("-", " ").split()
    return next((word for word in words if any(c.isdigit() for c in word)), device.name)


def largest(device: Device, dtype: str = "float32") -> int:
    """The largest multiple of 16 up to which numba_cuda/persistent keeps W on the chip, one sequence."""
    fits = [H for H in range(16, 8193, 16) if "registers" in model_gpu.lives(device, H, dtype)]
    return max(fits, default=0)


# --- chapter 05 and 08: which method on the GPU ------------------------------------------------------------------


@plots.styled
def decision(seen: Seen, methods: Sequence[str], sizes: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
             batches: Sequence[int] = (1, 4, 16, 64, 256)) -> Figure:  # fmt: skip
    """The fastest method at each H and B, with its time a step: measured where a GPU ran, else predicted."""
    if seen.measured:
        fair = [name for name in PEERS if "tf32=True" not in name]  # at equal error
        return plots.best_map(points(seen)[lambda frame: frame["method"].isin([*methods, *fair])], all_sizes=True)
    figure = plots.best_map(as_results(seen, methods, sizes, batches), methods)
    figure.text(0.985, 0.985, PREDICTED, color=RED, size=9.5, weight="bold", ha="right", va="top")
    return figure


@plots.styled
def launch_overhead(seen: Seen, steps: int = T_STEPS) -> Figure:
    """What the launches of a whole sequence cost, by who launches, against the number of steps."""
    figure, (ax,) = plots.page(
        "What launching costs over a sequence",
        f"{seen.device.name}. The time that launches or meetings alone take, however small the network.",
        seen.rates_corner, [3.0], right=2.0,
    )  # fmt: skip
    rates, lengths = seen.rates, [2**k for k in range(13)]
    ways = {
        "CuPy, three a step": (3 * rates.launch["cupy"], plots.LOOKS["cupy_gpu/steps"].colour),
        "Numba, one a step": (rates.launch["numba"], RED),
        "CuPy, one a step": (rates.launch["cupy"], plots.LOOKS["cupy_gpu/fused"].colour),
        "a graph, replayed": (rates.graph_node, BLUE),
        "one launch, a counter": (rates.barrier["counter"], ORANGE),
        "one launch, a cluster": (rates.cluster, plots.LOOKS["cupy_gpu/cluster"].colour),
    }
    plots.size_axis(ax, lengths, plots.AXES["T"])
    ends = []
    for name, (a_step, colour) in ways.items():
        first = (
            rates.launch["numba" if "counter" in name else "cupy"] if "one launch" in name or "graph" in name else 0.0
        )
        line = [1e6 * (first + T * a_step) for T in lengths]
        ax.plot(lengths, line, color=colour)
        ends.append((lengths[-1], line[-1], name, colour))
    low, high = 1e6 * rates.launch["cupy"] / 2, max(y for _, y, _, _ in ends) * 1.5
    plots.log_axis(ax.yaxis, low, high)
    ax.set(ylim=(low, high), ylabel="microseconds")
    plots.label_ends(ax, ends)
    stamp(ax, seen.rates.measured)
    return figure


def tensor_cores(seen: Seen, H: int, B: int) -> float:
    """How many times as fast W h's arithmetic is on tensor cores, when a step also has to meet: 1 is not at all."""
    arithmetic, least = 2.0 * B * H * H, seen.rates.cluster + model_gpu.BLOCK_CHAIN / seen.device.clock
    rows = max(B, 8) / B  # a tile of a tensor core has at least eight rows, filled or not
    return (least + arithmetic / seen.rates.flops) / (least + rows * arithmetic / seen.rates.tensor)


# --- sentences ---------------------------------------------------------------------------------------------------


def say(measured: bool, verdict: str, *fared: str) -> Markdown:
    """A verdict; where no GPU has measured what it speaks of, it says so itself."""
    whole = verdict if measured else f"{PREDICTED}: {verdict}"
    named = "/" in whole.split()[0]  # a method's name keeps its letters
    return tell.say(whole if named else f"{whole[0].upper()}{whole[1:]}", *fared)


def source(seen: Seen) -> Markdown:
    """Where the numbers of this page come from."""
    if not seen.measured:
        return Markdown(
            f"No machine has results of a GPU yet. What follows is the cost model for {a(short_name(seen.device))} "
            "on published figures; `make check-gpu` on a machine with a GPU replaces it by what is measured there."
        )
    rates = "with its measured peaks" if seen.rates.measured else "with published peaks"
    told = f"What follows was measured on `{seen.machine}` ({seen.device.name}); the model predicts {rates}."
    old = older(seen)
    shapes = ", ".join(f"H = {H:,} with B = {B}" for H, B in sorted(set(zip(old["H"], old["B"], strict=True))))
    if shapes:
        told += f" Some of our methods were last measured with an earlier version of their kernels: at {shapes}."
    return Markdown(told)


def older(seen: Seen) -> pd.DataFrame:
    """The points of our methods whose source is not the one that the method was measured with last."""
    frame = seen.frame[~seen.frame["method"].str.startswith("peers/")]
    points = frame.drop_duplicates(["method", "H", "B", "T"], keep="last")
    backend = points["method"].str.split("/").str[0]
    newest = points.sort_values("date").groupby(backend)["source"].last()
    return points[points["source"] != backend.map(newest)]


def a(name: str) -> str:
    """The article before a card's name: an H100, a T4."""
    return f"{'an' if name[0] in 'AEFHILMNORSX' else 'a'} {name}"


def origin_verdict(seen: Seen) -> Markdown:
    """Why the origin's kernel could not scale."""
    limits = {name: line[-1] for name, line in origin_limits().items()}
    told = ", ".join(f"{limit:.1f} times on {name}" for name, limit in limits.items())
    used = 100 / seen.device.multiprocessors
    return tell.say(
        f"A thread a time step gains at most {told} over one thread of the same GPU, and leaves all but one of "
        f"{a(short_name(seen.device))}'s {seen.device.multiprocessors} multiprocessors idle ({100 - used:.1f}% of it)"
    )


def launch_verdict(seen: Seen) -> Markdown:
    """What a launch a step costs, against what there is to compute in it."""
    rates = seen.rates
    enough = worth(seen, rates.launch["numba"])
    until = f"takes as long only from H = {enough:,} on" if enough else "never takes as long while W fits on the chip"
    share = rates.launch["numba"] / (rates.launch["numba"] + draws(seen, 1024))
    return say(
        rates.measured,
        f"a launch from Numba takes {plots.short(1e6 * rates.launch['numba'])} µs, and W h {until}; at H = 1,024 the "
        f"launch is {100 * share:.3g}% of a launch and W h together",
    )


def barrier_verdict(seen: Seen) -> Markdown:
    """Which barrier is cheapest, and the prediction about flags and the counter."""
    barrier = seen.rates.barrier
    cheapest = min(barrier, key=barrier.get)
    times = seen.rates.launch["numba"] / barrier["flags"]
    fared = {f"{short_name(seen.device)} ({plots.ratio(barrier['counter'] / barrier['flags'])} times)":
             barrier["counter"] > barrier["flags"]} if seen.rates.measured else {}  # fmt: skip
    return say(
        seen.rates.measured,
        f"the cheapest way to meet is {BARRIERS[cheapest][1]}, {plots.short(1e9 * barrier[cheapest])} ns; a barrier of "
        f"flags takes {plots.short(1e9 * barrier['flags'])} ns, {times:.0f} times less than a launch",
        tell.outcome("one counter is dearer than flags, since all blocks add to the same word", fared),
    )


def where_verdict(cards: Sequence[Device] = CARDS) -> Markdown:
    """Up to which H the cards keep W on the chip."""
    told = "; ".join(
        f"{a(short_name(card))} up to H = {largest(card):,}, with bfloat16 weights {largest(card, 'bfloat16'):,}"
        for card in cards
    )
    return tell.say(f"By the launch plans, a whole sequence runs with W on the chip on {told}")


def peers_verdict(
    seen: Seen,
    method: str,
    peer: str = PEERS[0],
    B: Sequence[int] = (1, 4),
    H: tuple[int, int] = (1, 10**9),
    least: float = 1.0,
) -> Markdown:
    """How many times as fast as a peer a method is, over the measured sizes in a range, against a claim."""
    found = times(seen)
    ratios = {
        (h, b): found[peer, h, b].value / value.value
        for (name, h, b), value in found.items()
        if name == method and b in B and H[0] <= h <= H[1] and (peer, h, b) in found
    }
    where = f"B of {min(B)} to {max(B)}, H of {H[0]:,} to {H[1]:,}"
    claim = f"{method} is at least {least:g} times as fast as {peer} at {where}"
    if not ratios:
        return tell.say("No GPU has run this comparison yet, so there is no verdict", tell.outcome(claim, {}))
    middle = float(np.exp(np.mean(np.log(list(ratios.values())))))
    told = {
        f"H = {h:,}, B = {b} ({plots.ratio(value)} times)": value >= least for (h, b), value in sorted(ratios.items())
    }
    return say(True, f"{method} is {plots.ratio(middle)} times as fast as {peer}, in the geometric mean over "
               f"{len(ratios)} sizes", tell.outcome(claim, told))  # fmt: skip


def share_of_floor(seen: Seen, method: str = "numba_cuda/persistent", B: int = 1) -> dict[int, float]:
    """The floor of a step over the time of a step, by H: measured, or predicted where nothing was measured."""
    found = times(seen)
    tried = [H for H in SIZES if near(seen, H) and ((method, H, B) in found or not seen.measured)]
    barrier = dict(option.split("=") for option in method.split()[1:]).get("barrier", launch.BARRIERS[0])
    shares = {}
    for H in tried:
        took = found[method, H, B].value if seen.measured else predict(seen, method, H, B)
        shares[H] = model_gpu.floor(seen.device, seen.rates, H, B, barrier=barrier) / took
    return shares


def floor_verdict(seen: Seen, least: float = 0.5) -> Markdown:
    """How near the persistent kernel is to its floor."""
    shares = share_of_floor(seen)
    if not shares:
        return tell.say("No GPU has measured anything yet that the floor could be compared with")
    held = {f"H = {H:,} ({plots.percent(share)})": share > least for H, share in shares.items()}
    claim = f"the floor (a meeting, and W once from where it lies) is over {plots.percent(least)} of a step"
    words = "the model gives" if not seen.measured else "one sequence reaches"
    return say(
        seen.measured,
        f"{words} the floor {plots.percent(min(shares.values()))} to {plots.percent(max(shares.values()))} of the time "
        "of a step of numba_cuda/persistent",
        tell.outcome(claim, held if seen.measured else {}),
    )


def model_verdict(seen: Seen) -> Markdown:
    """How far the model's predictions are from what was measured."""
    found = {
        key: predict(seen, *key) / value.value for key, value in times(seen).items() if np.isfinite(predict(seen, *key))
    }
    if not found:
        return tell.say("No GPU has measured anything yet that the model could be held against")
    off = np.exp(np.median(np.abs(np.log(list(found.values())))))
    worst = max(found, key=lambda key: abs(np.log(found[key])))
    ratio, shape = plots.ratio(found[worst]), f"H = {worst[1]:,}, B = {worst[2]}"
    return say(True, f"the model is off by a factor of {off:.2f} in the median over {len(found)} points; farthest at "
               f"{worst[0]}, {shape}, where it says {ratio} times what was measured")  # fmt: skip


def model_table(seen: Seen) -> Markdown:
    """By method: at how many sizes it was measured, and what the model says over what was measured."""
    ratios: dict[str, list[float]] = {}
    for key, value in times(seen).items():
        guess = predict(seen, *key)
        if np.isfinite(guess) and "blocks=" not in key[0]:
            ratios.setdefault(key[0], []).append(guess / value.value)
    lines = ["| method | sizes | predicted / measured, median | least | most |", "| --- " * 5 + "|"]
    for method in plots.in_order(ratios):
        told = " | ".join(plots.ratio(of(ratios[method])) for of in (np.median, min, max))
        lines.append(f"| `{method}` | {len(ratios[method])} | {told} |")
    return Markdown("\n".join(lines) if ratios else "No GPU has measured anything yet.")


def plans(seen: Seen) -> pd.DataFrame:
    """A row a launch plan: microseconds of a step of its kernel alone, by revision of the kernels; empty without any.

    Columns: method, dtype, barrier, H, B, blocks, sequences, split, groups, teams, us, revision.
    """
    file = store.results_folder(seen.machine) / "plans.csv"
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["method", "dtype", "H", "B", "us", "revision"])


def tuning_table(
    seen: Seen, sizes: Sequence[int] = (128, 256, 512, 1024, 2048), B: Sequence[int] = (1, 16, 64)
) -> Markdown:
    """The fastest plan of each kernel, float32, at the first revision that was measured and at the last."""
    frame = plans(seen)
    frame = frame[(frame["dtype"] == "float32") & frame["H"].isin(sizes) & frame["B"].isin(B)]
    lines = ["| kernel alone | H | B | first, µs a step | last | times as fast |", "| --- " * 6 + "|"]
    for (method, b, h), rows in frame.groupby(["method", "B", "H"]):
        best = rows.groupby("revision", sort=False)["us"].min()
        if len(best) > 1:
            first, last = best.iloc[0], best.iloc[-1]
            lines.append(f"| `{method}` | {h:,} | {b} | {first:.2f} | {last:.2f} | {plots.ratio(first / last)} |")
    return Markdown("\n".join(lines) if len(lines) > 2 else "No launch plans were measured on this machine.")


def checks_table(seen: Seen) -> Markdown:
    """What no CPU executor can show, the check that looks for it, and what it saw on the machine of these results."""
    told = store.load_machine(seen.machine).get("gpu_checks", {}) if seen.measured else {}
    lines = ["| what a CPU cannot show | `check-gpu` tests it as | on this page's GPU |", "| --- | --- | --- |"]
    for check in CHECKS:
        found: Mapping[str, Any] = told.get(f"hardware {check.name}", {})
        lines.append(f"| {check.unseen} | {check.name} | {found.get('status', 'not run')} |")
    tools = {"memcheck": "reads and writes outside of arrays", "racecheck": "races in shared memory",
             "synccheck": "threads that miss a barrier"}  # fmt: skip
    for tool, what in tools.items():
        states = sorted({entry["status"] for name, entry in told.items() if name.startswith(tool)}) or ["not run"]
        lines.append(f"| {what} | compute-sanitizer's {tool} | {', '.join(states)} |")
    return Markdown("\n".join(lines))


def here_and_now() -> Markdown:
    """The GPU of the machine that runs this page, or what would do."""
    if machine.gpu():
        return Markdown(
            f"This machine has a GPU: {tell.gpu_words(machine.gpu())}. `make check-gpu` checks and measures it."
        )
    return Markdown(f"This machine has no GPU that can be used: {machine.gpu_problem()}.")
