"""What chapter 05 draws and says beside chapter 04's (study/gpu.py): clusters, tensor cores, two libraries compared.

Clusters are predicted by the plans that the kernel is launched with (kernels/cluster_plan.py); measured results take
the predictions' place wherever a machine with a GPU has some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from IPython.display import Markdown
from matplotlib.figure import Figure

from rnnpar import model_gpu
from rnnpar.kernels import cluster_plan
from rnnpar.kernels.launch import DoesNotFit
from rnnpar.study import gpu, gpu_cublas, plots, tell
from rnnpar.study.gpu import Seen, predict, say, short_name, stamp, times
from rnnpar.study.plots import BLUE, GREEN, ORANGE, QUIET, RED, SKY

PACKAGE = Path(model_gpu.__file__).parent
HALF = "cupy_gpu/cluster dtype=bfloat16"
COLOURS = (SKY, BLUE, GREEN, ORANGE, RED)
PAIRS = {  # the same design in both libraries, by what it does: (backend, section, further files)
    "a launch a step": (("numba_cuda", "steps", ()), ("cupy_gpu", "fused", ("step.cuh",))),
    "one launch a sequence": (("numba_cuda", "persistent", ()), ("cupy_gpu", "cluster", ("cluster.cuh",))),
}


# --- clusters -----------------------------------------------------------------------------------------------------


def cluster_steps(seen: Seen, H: int, B: int = 1, measured: bool = False) -> dict[int, float]:
    """Seconds of a whole step by the number of blocks of a cluster, float32, where W fits: predicted or measured."""
    blocks = [size for size in cluster_plan.BLOCKS if size <= seen.device.cluster]
    names = {size: f"cupy_gpu/cluster blocks={size}" for size in blocks}
    if measured:
        found = times(seen)
        return {size: found[name, H, B].value for size, name in names.items() if (name, H, B) in found}
    steps = {size: predict(seen, name, H, B) for size, name in names.items()}
    return {size: seconds for size, seconds in steps.items() if np.isfinite(seconds)}


def blocks_measured(seen: Seen) -> bool:
    """Whether a GPU ran clusters of several sizes."""
    return any("blocks=" in name for name, *_ in times(seen))


@plots.styled
def cluster_sizes(seen: Seen, sizes: Sequence[int] = (64, 128, 256, 512, 1024)) -> Figure:
    """The time of a step against the blocks of a cluster, one line an H: more lanes, and a way between the blocks."""
    measured = blocks_measured(seen)
    figure, (ax,) = plots.page(
        "How many blocks for one sequence?",
        f"{short_name(seen.device)}, one sequence, float32, T = {gpu.T_STEPS}, U x, V h and softmax included. "
        f"{'Lines: measured; dashed' if measured else 'Dashed'}: predicted.\n"
        "A line begins where W fits. One block needs no way to another; dotted: that way alone.",
        seen.corner if measured else f"{gpu.PREDICTED}: from the launch plans", [3.2], right=1.2,
    )  # fmt: skip
    blocks = [size for size in cluster_plan.BLOCKS if size <= seen.device.cluster]
    plots.size_axis(ax, blocks, "blocks of the cluster")
    ends, values = [], []
    for H, colour in zip(sizes, COLOURS, strict=False):
        lines = [{size: 1e6 * it for size, it in cluster_steps(seen, H, measured=kind).items()} for kind in (0, 1)]
        for line, look in zip(lines, (dict(ls="--", ms=2.5), dict(ms=4.5, mec="white")), strict=True):
            ax.plot(list(line), list(line.values()), color=colour, marker="o", mew=0.6, **look)
            values += line.values()
        last = lines[1] or lines[0]
        if last:
            ends.append((max(last), last[max(last)], f"H = {H:,}", colour))
    if not values:
        plots.nothing(ax, f"{short_name(seen.device)} has no clusters")
        return figure
    way = 1e6 * seen.rates.cluster
    ax.plot([2, blocks[-1]], [way, way], color=QUIET, ls=(0, (1, 1.5)), lw=1.3)
    low, high = min([way, *values]) / 1.4, max(values) * 1.4
    plots.log_axis(ax.yaxis, low, high)
    ax.set(ylim=(low, high), ylabel="time a step (µs)")
    plots.label_ends(ax, ends)
    stamp(ax, measured, (0.36, 0.97))
    return figure


def cluster_verdict(seen: Seen, sizes: Sequence[int] = (32, 64, 128, 192, 256, 384, 512, 768, 1024)) -> Markdown:
    """From which H on several blocks are better than one, and how many."""
    measured = blocks_measured(seen)
    best = {H: min(found, key=found.get) for H in sizes if (found := cluster_steps(seen, H, measured=measured))}
    if not best:
        return tell.say(f"{short_name(seen.device)} has no clusters, so there is nothing to compare")
    alone = max((H for H, blocks in best.items() if blocks == 1), default=0)
    told = f"up to H = {alone:,} one block is enough" if alone else "several blocks are always better"
    most = max(best.values())
    first = min(H for H, blocks in best.items() if blocks == most)
    largest = cluster_plan.largest_hidden_size("float32", seen.device, seen.device.cluster)
    half = cluster_plan.largest_hidden_size("bfloat16", seen.device, seen.device.cluster)
    claim = "one block is best up to H = 128, and several above"
    fared = {f"H = {H:,} ({blocks})": (blocks == 1) == (H <= 128) for H, blocks in best.items()} if measured else {}
    return say(
        measured,
        f"{told}; from H = {first:,} of those tried on {most} are best; and by the plans a cluster holds W up to "
        f"H = {largest:,}, with bfloat16 weights {half:,}",
        tell.outcome(claim, fared),
    )


def hand_over_verdict(seen: Seen) -> Markdown:
    """A hand-over within a cluster against the cheapest meeting of the whole device."""
    barrier = seen.rates.barrier
    kind = min(barrier, key=barrier.get)
    flags, cluster = barrier["flags"], seen.rates.cluster
    fared = {f"{short_name(seen.device)} ({plots.ratio(flags / cluster)} times)": flags >= 2 * cluster}
    return say(
        seen.rates.measured,
        f"a hand-over within a cluster takes {plots.short(1e9 * cluster)} ns, a barrier of flags over the whole device "
        f"{plots.ratio(flags / cluster)} times as long, and the cheapest way there ({gpu.BARRIERS[kind][1]}) "
        f"{plots.ratio(barrier[kind] / cluster)} times",
        tell.outcome(
            "a hand-over in a cluster takes at most half of a barrier over the device",
            fared if seen.rates.measured else {},
        ),
    )


def microsecond_verdict(seen: Seen, most: float = 1e-6) -> Markdown:
    """Whether a step of the cluster takes less than a microsecond up to H = 256, one sequence."""
    claim = "cupy_gpu/cluster takes under 1 µs a step at B = 1, H <= 256"
    found = {
        H: value.value
        for (name, H, B), value in times(seen).items()
        if name == "cupy_gpu/cluster" and B == 1 and H <= 256
    }
    if found:
        told = {f"H = {H:,} ({plots.short(1e6 * value)} µs)": value < most for H, value in sorted(found.items())}
        return say(
            True, f"it takes {plots.short(1e6 * max(found.values()))} µs a step at most", tell.outcome(claim, told)
        )
    guessed = {H: predict(seen, "cupy_gpu/cluster", H, 1) for H in (64, 128, 256)}
    told = ", ".join(f"{plots.short(1e6 * value)} µs at H = {H}" for H, value in guessed.items() if np.isfinite(value))
    return say(False, f"a step takes {told or 'no time here: this device has no clusters'}", tell.outcome(claim, {}))


# --- tensor cores -------------------------------------------------------------------------------------------------


def both_measured(seen: Seen) -> bool:
    """Whether a GPU ran the cluster with float32 and with bfloat16 weights."""
    return {name for name, *_ in times(seen)} >= {"cupy_gpu/cluster", HALF}


def half_measured(seen: Seen) -> dict[tuple[int, int], float]:
    """(H, B) -> how many times as fast a step was with bfloat16 weights on the tensor cores."""
    found = times(seen)
    both = [key[1:] for key in found if key[0] == HALF and ("cupy_gpu/cluster", *key[1:]) in found]
    return {size: found["cupy_gpu/cluster", *size].value / found[HALF, *size].value for size in sorted(both)}


def half_pays(seen: Seen, H: int, B: int) -> float:
    """The same by the plans; NaN where W does not fit."""
    try:
        one, other = (
            cluster_plan.plan(H, B, dtype, seen.device).seconds(seen.device, B) for dtype in ("float32", "bfloat16")
        )
    except DoesNotFit:
        return float("nan")
    return one / other


@plots.styled
def tensor_cores(
    seen: Seen,
    sizes: Sequence[int] = (64, 128, 256, 512, 1024),
    batches: Sequence[int] = tuple(2**k for k in range(10)),
) -> Figure:
    """How many times as fast the cluster's step is on tensor cores, against B, one line an H."""
    both = both_measured(seen)
    figure, (ax,) = plots.page(
        "When do tensor cores pay?",
        f"{short_name(seen.device)}. Clusters: bfloat16 weights on tensor cores, over float32 ones on ordinary lanes.\n"
        "The state is float32 in both. Above 1 the tensor cores are faster. "
        f"{'Points: measured; dashed' if both else 'Dashed'}: by the plans.",
        seen.corner if both else f"{gpu.PREDICTED}: from the launch plans", [3.2], right=1.2,
    )  # fmt: skip
    plots.size_axis(ax, batches, plots.AXES["B"])
    ends, values, measured = [], [1.0], half_measured(seen)
    for H, colour in zip(sizes, COLOURS, strict=False):
        line = {B: ratio for B in batches if np.isfinite(ratio := half_pays(seen, H, B))}
        seen_at = {B: ratio for (h, B), ratio in measured.items() if h == H}
        if line:
            ax.plot(list(line), list(line.values()), color=colour, ls="--", lw=1.3)
            ax.plot(list(seen_at), list(seen_at.values()), color=colour, ls="", marker="o", ms=7, mec="white", mew=0.8)
            ends.append((max(line), line[max(line)], f"H = {H:,}", colour))
            values += [*line.values(), *seen_at.values()]
    ax.axhline(1, color=QUIET, lw=1.2, zorder=1)
    low, high = min(values) / 1.25, max(values) * 1.25
    plots.log_axis(ax.yaxis, low, high, [0.25, 0.5, 1, 2, 4, 8, 16], suffix="×")
    ax.set(ylim=(low, high), ylabel="times as fast")
    plots.label_ends(ax, ends)
    stamp(ax, both)
    return figure


def tensor_verdict(seen: Seen, enough: float = 1.5) -> Markdown:
    """Where the tensor cores are clearly faster, and where they are no faster."""
    grid = half_measured(seen) or {
        (H, B): half_pays(seen, H, B) for H in (64, 128, 256, 512, 1024) for B in (1, 4, 16, 64, 256)
    }
    grid = {key: value for key, value in grid.items() if np.isfinite(value)}
    if not grid:
        return tell.say(f"{short_name(seen.device)} has no clusters, so there is nothing to compare")
    pays = [key for key, value in grid.items() if value >= enough]
    not_at_all = [key for key, value in grid.items() if value < 1.05]
    best = max(grid, key=grid.get)
    fared = {
        f"H = {H:,} ({plots.ratio(grid[H, 1])} times)": grid[H, 1] < enough for H in (64, 128, 256) if (H, 1) in grid
    }
    return say(
        both_measured(seen),
        f"tensor cores bring {enough:g} times or more at {len(pays)} of {len(grid)} sizes, nothing at "
        f"{len(not_at_all)}, and most at H = {best[0]:,}, B = {best[1]} ({plots.ratio(grid[best])} times)",
        tell.outcome(
            f"with one sequence up to H = 256 they bring less than {enough:g} times",
            fared if both_measured(seen) else {},
        ),
    )


# --- two libraries, one design ------------------------------------------------------------------------------------


def lines_of_code(backend: str, section: str, files: Sequence[str] = ()) -> int:
    """Lines that are neither blank nor comment nor docstring: of a section of a backend's file, and of its kernels."""
    text = (PACKAGE / "backends" / f"{backend}.py").read_text(encoding="utf-8")
    found = re.search(rf"^# --- {section}:.*?$(.*?)(?=^# --- |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"backends/{backend}.py has no section {section!r}")
    python = re.sub(r'""".*?"""', "", found[1], flags=re.DOTALL)
    cuda = "\n".join((PACKAGE / "kernels" / name).read_text(encoding="utf-8") for name in files)
    marks = ((python, "#"), (cuda, "//"))
    return sum(
        bool(line.strip()) and not line.strip().startswith(mark) for text, mark in marks for line in text.split("\n")
    )


def compile_seconds(seen: Seen, method: str) -> float:
    """The longest of a method's first calls: one of them compiled. NaN where no GPU measured any."""
    rows = seen.frame[(seen.frame["kind"] == "compile") & (seen.frame["status"] == "ok")]
    return float(rows[rows["method"] == method]["seconds"].max()) if len(rows) else float("nan")


def compared(seen: Seen, H: int = 256, B: int = 1) -> Markdown:
    """The same design in both libraries: code, launch, compile time, and the time of a step."""
    rows = ["| | method | lines of code | a launch | the first call | a step, H = 256, B = 1 |", "| --- " * 6 + "|"]
    for what, pair in PAIRS.items():
        for backend, section, files in pair:
            method = f"{backend}/{section}"
            first = compile_seconds(seen, method)
            measured = times(seen).get((method, H, B))
            step = measured.value if measured else predict(seen, method, H, B)
            launch = seen.rates.launch["cupy" if backend == "cupy_gpu" else "numba"]
            rows.append(
                f"| {what} | `{method}` | {lines_of_code(backend, section, files)} | {plots.short(1e6 * launch)} µs"
                f"{'' if seen.rates.measured else ' (assumed)'} | "
                f"{'not run' if np.isnan(first) else plots.short(first) + ' s'} | {plots.short(1e6 * step)} µs"
                f"{'' if measured else ' (predicted)'} |"
            )
    return Markdown("\n".join(rows))


def libraries_verdict(seen: Seen) -> Markdown:
    """Which library launches faster, and what the same design costs in lines."""
    launch = seen.rates.launch
    counts = {name: [lines_of_code(*it) for it in pair] for name, pair in PAIRS.items()}
    ours, theirs = counts["a launch a step"]
    claim = "a launch from CuPy takes at most 0.7 times one from Numba"
    share = launch["cupy"] / launch["numba"]
    fared = {f"{short_name(seen.device)} ({plots.ratio(share)} times)": share <= 0.7} if seen.rates.measured else {}
    return say(
        seen.rates.measured,
        f"a launch from CuPy takes {plots.ratio(share)} times one from Numba; a launch a step is {ours} lines with "
        f"Numba and {theirs} with CuPy and CUDA C++",
        tell.outcome(claim, fared),
    )


def replay_verdict(seen: Seen) -> Markdown:
    """What replaying a graph saves over asking for each launch."""
    rates = seen.rates
    found = times(seen)
    shared = [(H, B) for (name, H, B) in found if name == "cupy_gpu/fused" and ("cupy_gpu/graph", H, B) in found]
    if shared:
        ratios = {key: found["cupy_gpu/fused", *key].value / found["cupy_gpu/graph", *key].value for key in shared}
        kind = "measured"
    else:
        shapes = [(H, 1) for H in (64, 256, 1024)]
        ratios = {key: predict(seen, "cupy_gpu/fused", *key) / predict(seen, "cupy_gpu/graph", *key) for key in shapes}
        kind = "predicted"
    told = {f"H = {H:,}, B = {B} ({plots.ratio(value)} times)": value >= 2 for (H, B), value in sorted(ratios.items())
            if B == 1 and H <= 1024}  # fmt: skip
    return say(
        bool(shared),
        f"a replayed graph is {plots.ratio(min(ratios.values()))} to {plots.ratio(max(ratios.values()))} times as fast "
        f"as the same launches from Python; a node takes {plots.short(1e6 * rates.graph_node)} µs, a launch "
        f"{plots.short(1e6 * rates.launch['cupy'])} µs",
        tell.outcome("at least twice as fast at B = 1 up to H = 1,024", told if kind == "measured" else {}),
    )


def cublas_shares(seen: Seen, least: int = gpu_cublas.LARGE) -> dict[tuple[int, int], tuple[float, str]]:
    """Time of cuBLAS's products alone over that of the fastest CuPy method with float32 weights, where both were
    measured: (H, B) -> (share, method), for `least` sequences and more."""
    found = times(seen)
    shares = {}
    for (name, H, B), alone in found.items():
        methods = [method for method in tell.family("cupy_gpu") if (method, H, B) in found]
        if name == gpu_cublas.METHOD and least <= B and methods:
            best = min(methods, key=lambda method, H=H, B=B: found[method, H, B].value)
            shares[H, B] = alone.value / found[best, H, B].value, best
    return dict(sorted(shares.items()))


def cublas_verdict(seen: Seen, least: float = 0.95) -> Markdown:
    """How near a whole forward pass comes to the products of cuBLAS that it consists of, where the batch is large."""
    claim = f"with {gpu_cublas.LARGE} sequences or more the products run at {plots.percent(least)} of cuBLAS's rate"
    shares = cublas_shares(seen)
    if not shares:
        return tell.say("No GPU has run these sizes beside cuBLAS yet, so there is no verdict", tell.outcome(claim, {}))
    best = max(shares, key=shares.get)
    told = {f"H = {H:,}, B = {B} ({plots.percent(share)})": share >= least for (H, B), (share, _) in shares.items()}
    return say(
        True,
        f"the fastest CuPy method runs at {plots.percent(shares[best][0])} of the rate of cuBLAS's products alone at "
        f"best ({shares[best][1]} at H = {best[0]:,}, B = {best[1]}), with sums, tanh and softmax in its time",
        tell.outcome(claim, told),
    )


# --- which one ----------------------------------------------------------------------------------------------------


def candidates() -> list[str]:
    """The methods of both libraries that a user would choose among."""
    return [*tell.family("numba_cuda")[1:], *tell.family("cupy_gpu")]


def decision_verdict(
    seen: Seen, sizes: Sequence[int] = (64, 128, 256, 512, 1024, 2048), batches: Sequence[int] = (1, 4, 16, 64, 256)
) -> Markdown:
    """How often each method is the fastest, over H and B."""
    found = times(seen)
    wins: dict[str, list[tuple[int, int]]] = {}
    for H in sizes:
        for B in batches:
            here = {
                method: found[method, H, B].value if seen.measured else predict(seen, method, H, B)
                for method in candidates()
                if not seen.measured or (method, H, B) in found
            }
            here = {method: value for method, value in here.items() if np.isfinite(value)}
            if here:
                wins.setdefault(min(here, key=here.get), []).append((H, B))
    if not wins:
        return tell.say("None of these methods has been measured at these sizes")
    total = sum(map(len, wins.values()))
    told = "; ".join(
        f"{method} at {len(won)} (H of {min(H for H, _ in won):,} to {max(H for H, _ in won):,})"
        for method, won in sorted(wins.items(), key=lambda item: -len(item[1]))
    )
    return say(seen.measured, f"over {total} sizes the fastest is {told}")
