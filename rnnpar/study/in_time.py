"""Chapter 07's figures and sentences: parallel in time.

They are of the experiment "in_time", which the sweep's profile of that name measures: random networks of a set
spectral radius, trained networks, long sequences, sizes, and the parallel scan alone. A row's message tells what the
method said of itself (`iterations=4 evaluations=5 exponent=-0.62 error=2e-07`), or why it refused.

Letters: T steps, B sequences, H hidden, p processors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from rnnpar import machine, model
from rnnpar.backends.in_time import KINDS, Plan
from rnnpar.study import plots, store, tell
from rnnpar.study.scan_probe import SCANS

EXPERIMENT = "in_time"
OURS = [f"in_time/{name}" for name in KINDS]
CHAINS = ["serial/compiled", "threads/rows", "threads/wavefront"]  # what goes along the chain
TRAINED = ("kjv-h128", "kjv-h512", "kjv-2x256")
RADIUS_T, SIZE_T = 1000, 8192

# --- results ----------------------------------------------------------------------------------------------------------


def told(message: str) -> dict[str, float]:
    """The numbers of a message; of a refusal those that it names."""
    found = {key: float(value) for key, value in re.findall(r"(\w+)=(-?inf|-?[\d.e+-]+)", message)}
    if refused := re.search(r"exponent is (-?[\d.e+-]+) a step", message):
        found["exponent"] = float(refused[1])
    if refused := re.search(r"after (\d+) iterations", message):
        found["iterations"] = float(refused[1])
    return found


def results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its rows of this experiment: this machine's, else another's, and a line that says so."""
    from IPython.display import display

    known = [other for other in store.machines() if (store.results_folder(other) / f"{EXPERIMENT}.csv").exists()]
    chosen = name or machine.name()
    if chosen not in known and not name and known:
        chosen = known[0]
        display(Markdown(f"`make in-time` measures this machine. What follows was measured on {chosen}."))
    if chosen not in known:
        display(
            Markdown("Nothing is stored of this experiment; `make in-time` measures it. What was measured is empty.")
        )
        return chosen, pd.DataFrame(columns=["machine", *store.COLUMNS])
    frame = store.load(EXPERIMENT, chosen)
    extra = pd.DataFrame([told(message) for message in frame["message"].fillna("")], index=frame.index)
    return chosen, pd.concat([frame, extra.drop(columns=["error", "threads"], errors="ignore")], axis=1)


def first(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """A row a point and method, with its numbers, where the columns have these values; of the most threads."""
    rows = frame[(frame["sample"] == 0)]
    for key, value in wanted.items():
        rows = rows[rows[key] == value]
    return rows[rows["threads"] == rows.groupby(["workload", "method", "T", "H"])["threads"].transform("max")]


def times(frame: pd.DataFrame, axis: str, **fixed: int) -> dict[str, dict[int, plots.Median]]:
    """Seconds a step by method and by T or H, of random networks on all cores."""
    rows = plots.steady(frame[(frame["workload"] == "random") & frame["method"].isin([*CHAINS, *OURS])])
    for key, value in fixed.items():
        rows = rows[rows[key] == value]
    rows = rows[rows["threads"] == rows.groupby("method")["threads"].transform("max")] if len(rows) else rows
    lines: dict[str, dict[int, plots.Median]] = {}
    for (method, size, T), value in plots.medians(rows, ["method", axis, "T" if axis != "T" else "H"]).items():
        lines.setdefault(method, {})[int(size)] = value.over(size if axis == "T" else T)
    return lines


# --- predictions: p processors ----------------------------------------------------------------------------------------

PROCESSORS = [2**k for k in range(15)]


def chain_seconds(frame: pd.DataFrame, H: int, T: int) -> float | None:
    """Measured seconds of a step along the chain alone: serial/compiled less what in_time takes for U x and V h."""
    rows = frame[(frame["workload"] == "random") & (frame["H"] == H) & (frame["T"] == T) & (frame["threads"] == 1)]
    if "inputs" not in rows:
        return None
    around = (rows["inputs"] + rows["outputs"]).dropna().median()
    whole = plots.medians(plots.steady(rows[rows["method"] == "serial/compiled"]), ["method"]).get("serial/compiled")
    return (whole.value - around) / T if whole and around < whole.value else None


def on_processors(
    cost: model.Model, method: str, p: int, H: int, T: int, chain: float | None = None, memory: int = 40,
    iterations: float = 4,
) -> float:  # fmt: skip
    """Seconds of the recurrence alone, on p processors like a core of this machine: what the chapter predicts with.

    Along the chain: T steps of `chain` seconds (the model's, by default), and with several processors a meeting in
    each, whose cost grows with log2(p). In time: passes over all steps, shared by all, and for each iteration log2(p)
    rounds of meeting; a segment shorter than the network's `memory` needs more sweeps (segments), or maps of H rows to
    its end (deer).
    """
    chain = chain or cost.step(1, H, H)
    row = cost.product(64, H, H) / 64 + cost.line("tanh", 0, 2 * H)
    meet = cost.meet(2, H) * max(1.0, math.log2(p)) if p > 1 else 0.0
    n = max(1.0, T / p)  # steps a processor
    panels = max(1, math.ceil(H / cost.width))
    if method == "serial/compiled":
        return T * chain
    if method == "threads/rows":
        return T * (chain * max(1 / p, 1 / panels) + meet)
    check = 2 * n * row + meet
    if method == "in_time/jacobi":
        return memory * (n * row + meet) + check
    if method == "in_time/quasi_deer":
        return memory * (2 * n * row + 4 * meet) + check
    if method == "in_time/segments":
        again = math.ceil(memory / n) * (min(n, memory) * row + meet)
        return 2 * n * row + again + check  # a whole sweep and the last evaluation, and each start anew
    maps = min(n, memory) * H * row + (math.log2(p) * H * row if n < memory else 0.0)
    return iterations * (3 * n * row + maps + 3 * meet) + n * row + check


def crossover(cost: model.Model, method: str, H: int, T: int, chain: float | None = None) -> int | None:
    """The fewest processors (a power of two) with which `method` is ahead of the chain, on one or on all of them."""
    for p in PROCESSORS:
        sequential = min(on_processors(cost, name, p, H, T, chain) for name in ("serial/compiled", "threads/rows"))
        if on_processors(cost, method, p, H, T, chain) < sequential:
            return p
    return None


H100 = dict(lanes=16_896, flops=67e12, share=0.1, launch=4e-6, step=0.6e-6, bytes=80e9, bandwidth=3.35e12)


def on_h100(method: str, H: int, T: int, memory: int = 40, iterations: float = 4, segments: int = 2048) -> float:
    """Seconds on an H100's 16,896 lanes, from its data sheet and three guesses; no GPU has been timed at it.

    Guessed: 0.6 µs a step of one block along the chain, 4 µs a launch, a tenth of the float32 peak in small products.
    The array code launches about 4 kernels a step of a segment.
    """
    if method == "serial/compiled":
        return T * H100["step"]
    pass_s = 2 * H * H * T / (H100["flops"] * H100["share"]) + 24 * T * H / H100["bandwidth"]
    rounds = 4 * math.ceil(T / segments) * H100["launch"]
    work = {
        "in_time/jacobi": (memory + 1) * (pass_s + 4 * H100["launch"]),
        "in_time/segments": (2 + math.ceil(memory * segments / T)) * (pass_s + rounds),
        "in_time/quasi_deer": memory * (3 * pass_s + 2 * rounds),
        "in_time/deer": iterations * (pass_s * (3 + H) + 2 * rounds),
    }[method]
    return work + 2 * pass_s + rounds  # the check


def corner(rows: pd.DataFrame) -> str:
    """Which machine measured, and the day of the last sample."""
    names = list(rows["machine"].unique()) if "machine" in rows else []
    return " · ".join([*names, *([str(rows["date"].max())[:10]] if len(rows) else [])])


# --- figures ----------------------------------------------------------------------------------------------------------


@plots.styled
def iterations_figure(frame: pd.DataFrame) -> Figure:
    """Iterations against the Lyapunov exponent, trained networks as stars; those refused in a row at the top."""
    rows = first(frame[frame["method"].isin(OURS) & ~frame["workload"].isin(["random", "scan"])])
    title = "What forgets is quickly solved; at an exponent of 0 it ends"
    under = f"Random networks, spectral radius 0.3 to 2, H = 32, T = {RADIUS_T:,}. Stars: trained. Crosses: refused."
    figure, (ax,) = plots.page(title, under, corner(rows), [3.6])
    if rows.empty or "iterations" not in rows:
        plots.nothing(ax)
        return figure
    ends = []
    for method in plots.in_order(rows["method"].unique()):
        colour = plots.look(method).colour
        mine = rows[rows["method"] == method].sort_values("exponent")
        good = mine[(mine["status"] == "ok") & mine["workload"].str.startswith("radius-")]
        ax.plot(good["exponent"], good["iterations"], color=colour, marker=plots.look(method).marker, mec="white")
        stars = mine[(mine["status"] == "ok") & ~mine["workload"].str.startswith("radius-")]
        ax.plot(stars["exponent"], stars["iterations"], color=colour, marker="*", ms=13, mec=plots.INK, mew=0.5, ls="")
        lost = mine[mine["status"] != "ok"]
        place = 0.97 - 0.035 * len(ends)
        ax.plot(
            lost["exponent"], [place] * len(lost), transform=ax.get_xaxis_transform(), color=colour, marker="x", ls=""
        )
        if len(good):
            ends.append((good["exponent"].iloc[-1], good["iterations"].iloc[-1], method, colour))
    ax.axvline(0, color=plots.QUIET, lw=1, ls=(0, (4, 2)))
    ax.set_xlabel("largest Lyapunov exponent, a step")
    plots.log_axis(ax.yaxis, 0.9, 3000, (1, 3, 10, 30, 100, 300, 1000))
    ax.set(ylim=(0.9, 9000), ylabel="iterations")
    plots.label_ends(ax, ends)
    return figure


@plots.styled
def iterations_by_length(frame: pd.DataFrame) -> Figure:
    """Iterations against T, on a network that forgets."""
    rows = first(frame[frame["method"].isin(OURS)], workload="random", H=32)
    figure, (ax,) = plots.page(
        "A longer sequence needs hardly more iterations", "Random weights as PyTorch draws them, H = 32, one sequence.",
        corner(rows), [2.6],
    )  # fmt: skip
    if rows.empty or "iterations" not in rows:
        plots.nothing(ax)
        return figure
    ends = []
    for method in plots.in_order(rows["method"].unique()):
        mine = rows[rows["method"] == method].drop_duplicates("T").sort_values("T")
        colour, marker = plots.look(method)
        ax.plot(mine["T"], mine["iterations"], color=colour, marker=marker, mec="white")
        ends.append((mine["T"].iloc[-1], mine["iterations"].iloc[-1], method, colour))
    plots.size_axis(ax, sorted(rows["T"].unique()), "time steps T")
    plots.log_axis(ax.yaxis, 0.9, 60, (1, 2, 5, 10, 20, 50))
    ax.set(ylim=(0.9, 60), ylabel="iterations")
    plots.label_ends(ax, ends)
    return figure


@plots.styled
def time_figure(frame: pd.DataFrame, axis: str = "T") -> Figure:
    """Time a step against T (H = 32) or H (T = 8,192), all cores, beside what goes along the chain."""
    fixed = {"H": 32} if axis == "T" else {"T": SIZE_T}
    lines = {
        method: {size: value.over(1e-6) for size, value in points.items()}
        for method, points in times(frame, axis, **fixed).items()
    }
    what = "the sequence grows" if axis == "T" else "the hidden state grows"
    threads = int(frame["threads"].max()) if len(frame) else 1
    said = ", ".join(f"{letter} = {value:,}" for letter, value in fixed.items())
    figure, (ax,) = plots.page(
        f"Time a step as {what}", f"{said}, I = O = H, one sequence, {threads} threads. {plots.BANDS}",
        corner(frame), [3.4], right=1.6,
    )  # fmt: skip
    plots.draw_lines(ax, lines, {}, plots.AXES[axis])
    ax.set_ylabel("time a step (µs)")
    return figure


@plots.styled
def processors_figure(cost: model.Model | None, frame: pd.DataFrame, name: str, H: int = 32, T: int = 65536) -> Figure:
    """The recurrence's predicted time a step against processors; measured points (solve and check) where there are."""
    title = "On how many processors does it pay?"
    under = f"Predicted time a step of the recurrence, H = {H}, T = {T:,}, cores like this machine's. Marks: measured."
    figure, (ax,) = plots.page(title, under, tell.peaks_corner(name), [3.6], right=1.6)
    if cost is None:
        plots.nothing(ax)
        return figure
    ends, chain = [], chain_seconds(frame, H, T)
    for method in ["serial/compiled", "threads/rows", *OURS]:
        line = [1e6 * on_processors(cost, method, p, H, T, chain) / T for p in PROCESSORS]
        colour, marker = plots.look(method)
        ax.plot(PROCESSORS, line, color=colour, ls=(0, (4, 2)), lw=1.6)
        ends.append((PROCESSORS[-1], line[-1], method, colour))
        for threads, seconds in measured_parts(frame, method, H, T).items():
            ax.plot(threads, 1e6 * seconds / T, color=colour, marker=marker, ms=7, mec="white")
    plots.log_axis(ax.xaxis, 1, 2**14, [4**k for k in range(8)])
    plots.log_axis(ax.yaxis, 5e-5, 10, (0.0001, 0.001, 0.01, 0.1, 1, 10))
    ax.set(xlim=(0.9, 2**14 * 1.1), ylim=(5e-5, 10), xlabel="processors", ylabel="time a step (µs)")
    plots.label_ends(ax, ends)
    return figure


def measured_parts(frame: pd.DataFrame, method: str, H: int, T: int) -> dict[int, float]:
    """threads -> seconds of solve and check, as the method said of the call that was checked."""
    rows = frame[(frame["workload"] == "random") & (frame["H"] == H) & (frame["T"] == T) & (frame["method"] == method)]
    if "solve" not in rows or method not in OURS:
        return {}
    rows = rows[(rows["sample"] == 0) & (rows["status"] == "ok")]
    return {int(row["threads"]): row["solve"] + row["check"] for _, row in rows.iterrows()}


@plots.styled
def memory_figure(T: int = 65536, threads: int = 2) -> Figure:
    """Bytes against H: a dense Jacobian a step, one map a segment, and the diagonal alone; what an H100 holds."""
    sizes = [16, 32, 64, 128, 256, 512, 1024]
    figure, (ax,) = plots.page(
        "The wall of the dense Jacobian", f"Bytes of a window of {T:,} steps, one sequence, float32.", plots.COMPUTED,
        [3.0], right=2.0,
    )  # fmt: skip

    def ours(name: str) -> list[float]:
        return [Plan.of(name, model.Work(T, 1, 16, H, 16), threads, T, False, 4).bytes for H in sizes]

    lines = {
        "a Jacobian a step": ([4.0 * T * H * H for H in sizes], plots.BLUE),
        "deer: a map a segment": (ours("deer"), plots.look("in_time/deer").colour),
        "the other methods": (ours("jacobi"), plots.look("in_time/jacobi").colour),
    }
    for values, colour in lines.values():
        ax.plot(sizes, np.array(values) / 2**30, color=colour)
    plots.size_axis(ax, sizes, "hidden size H")
    plots.log_axis(ax.yaxis, 0.01, 1000, (0.01, 0.1, 1, 10, 100, 1000), suffix=" GB")
    ax.axhline(H100["bytes"] / 2**30, color=plots.QUIET, lw=1, ls=(0, (1, 1.5)))
    ax.set(ylim=(0.01, 1000))
    ends = [(sizes[-1], values[-1] / 2**30, name, colour) for name, (values, colour) in lines.items()]
    plots.label_ends(ax, [*ends, (sizes[-1], H100["bytes"] / 2**30, "an H100's memory", plots.QUIET)])
    return figure


# --- sentences --------------------------------------------------------------------------------------------------------


def convergence(frame: pd.DataFrame) -> Markdown:
    """Verdict: where is it solved, where refused, and in how many iterations."""
    rows = first(frame[frame["method"].isin(OURS) & frame["workload"].str.startswith("radius-")])
    if rows.empty or "exponent" not in rows:
        return tell.say(tell.NOT_MEASURED)
    good, lost = rows[rows["status"] == "ok"], rows[rows["status"] != "ok"]
    deer = good[good["method"] == "in_time/deer"]
    few = deer[deer["exponent"] < -0.1]["iterations"].max()
    worst = good["error"].max()
    said = f"Every answer given was within {worst:.1g} of the oracle, and {len(lost)} of {len(rows)} were refused"
    said += f", all at an exponent above {lost['exponent'].min():.2g}" if len(lost) else ""
    said += f"; below an exponent of -0.1 `deer` needed at most {few:.0f} iterations" if few == few else ""
    outcomes = lambda mask, holds: {  # noqa: E731
        f"{row['method']} at {row['exponent']:.2g}": holds(row) for _, row in rows[mask].iterrows()
    }
    return tell.say(
        said,
        tell.outcome("`deer` in at most 8 iterations below an exponent of -0.1", outcomes(
            (rows["method"] == "in_time/deer") & (rows["exponent"] < -0.1),
            lambda row: row["status"] == "ok" and row["iterations"] <= 8)),
        tell.outcome("everything solved below an exponent of 0", outcomes(
            rows["exponent"] < 0, lambda row: row["status"] == "ok")),
        tell.outcome("at radius 2 refused", outcomes(
            rows["workload"] == "radius-2.0", lambda row: row["status"] != "ok")),
        tell.outcome("`quasi_deer` in fewer iterations than `jacobi`", _fewer(good)),
    )  # fmt: skip


def _fewer(good: pd.DataFrame) -> dict[str, bool]:
    table = good.pivot_table(index="workload", columns="method", values="iterations")
    if not {"in_time/jacobi", "in_time/quasi_deer"} <= set(table):
        return {}
    both = table[["in_time/jacobi", "in_time/quasi_deer"]].dropna()
    return {name: bool(row.iloc[1] < row.iloc[0]) for name, row in both.iterrows()}


def trained(frame: pd.DataFrame) -> Markdown:
    """A table of the trained networks: exponent, iterations, and time over the fastest along the chain."""
    rows = first(frame[frame["workload"].isin(TRAINED)])
    medians = plots.medians(plots.steady(rows.iloc[:0] if rows.empty else frame[frame["workload"].isin(TRAINED)]),
                            ["workload", "method"])  # fmt: skip
    lines = []
    for network_name in TRAINED:
        chain = [m.value for (w, name), m in medians.items() if w == network_name and name in CHAINS]
        for _, row in rows[(rows["workload"] == network_name) & rows["method"].isin(OURS)].iterrows():
            time_ = medians.get((network_name, row["method"]))
            over = f"{time_.value / min(chain):.1f}×" if time_ and chain else row["status"]
            lines.append((network_name, f"`{row['method']}`", f"{row.get('exponent', np.nan):.2g}",
                          f"{row.get('iterations', np.nan):.0f}", over))  # fmt: skip
    heads = ("network", "method", "exponent", "iterations", "time over the fastest along the chain")
    return table(heads, lines)


def memory_of_trained(frame: pd.DataFrame) -> Markdown:
    """Verdict: how many iterations the trained networks need, beside random ones of the same exponent."""
    rows = first(frame[frame["method"].isin(OURS)])
    if "iterations" not in rows or not rows["workload"].isin(TRAINED).any():
        return tell.say(tell.NOT_MEASURED)
    good = rows[rows["status"] == "ok"]
    of = good[good["workload"].isin(TRAINED) & (good["method"] == "in_time/deer")]
    random = good[good["workload"].str.startswith("radius-") & (good["method"] == "in_time/deer")]
    if of.empty or random.empty:
        return tell.say(tell.NOT_MEASURED)
    like = random[random["exponent"] <= of["exponent"].max()]["iterations"].max()
    outcomes = {row["workload"]: bool(row["iterations"] <= 8) for _, row in of.iterrows()}
    said = f"Trained networks need {of['iterations'].min():.0f} to {of['iterations'].max():.0f} iterations of `deer`"
    said += f", where random ones of no larger exponent need {like:.0f} at most" if like == like else ""
    return tell.say(said, tell.outcome("at most 8 iterations of `deer`, since the exponents are below -0.1", outcomes))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A table in Markdown."""
    return Markdown(
        "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [heads, ["---"] * len(heads), *rows])
    )


def pays(frame: pd.DataFrame) -> Markdown:
    """Verdict: on this machine's cores, against the fastest method along the chain."""
    ratios = {}
    for axis, fixed in (("T", {"H": 32}), ("H", {"T": SIZE_T})):
        lines = times(frame, axis, **fixed)
        for size in sorted({size for points in lines.values() for size in points}):
            chain = [lines[name][size].value for name in CHAINS if size in lines.get(name, {})]
            ours = {name: lines[name][size].value for name in OURS if size in lines.get(name, {})}
            if chain and ours:
                best = min(ours, key=ours.get)
                ratios[f"{axis} = {size:,}"] = (min(chain) / ours[best], best)
    if not ratios:
        return tell.say(tell.NOT_MEASURED)
    where = max(ratios, key=lambda place: ratios[place][0])
    ratio, best = ratios[where]
    cores = int(frame["threads"].max())
    wins = [place for place, (value, _) in ratios.items() if value > 1.03]
    if wins:
        said = (
            f"On {cores} cores it pays at {', '.join(wins)}, at most {plots.ratio(ratio)} times as fast as the fastest "
        )
        said += f"method along the chain ({best}, {where})"
    else:
        said = f"On {cores} cores it does not pay: at its best, {best} at {where}, it is {plots.ratio(ratio)} times "
        said += "as fast as the fastest method along the chain"
    lost = {place: value < 1 for place, (value, _) in ratios.items()}
    return tell.say(said, tell.outcome("behind the fastest method along the chain everywhere", lost))


def scan_efficiency(frame: pd.DataFrame) -> Markdown:
    """Verdict: the scan alone on all cores, against its own time on one; what it costs beyond the plain recurrence."""
    rows = plots.steady(frame[frame["workload"] == "scan"])
    medians = plots.medians(rows, ["method", "threads"])
    cores = int(rows["threads"].max()) if len(rows) else 1
    lines, shares = [], {}
    for name in SCANS:
        if (name, 1) in medians and (name, cores) in medians and cores > 1:
            one, all_ = medians[name, 1].value, medians[name, cores].value
            shares[name] = one / all_ / cores
            lines.append(f"`{name}`: {1e3 * one:.2f} ms on one thread, {1e3 * all_:.2f} ms on {cores}: "
                         f"{plots.percent(shares[name])} of linear")  # fmt: skip
    if not shares:
        return tell.say(tell.NOT_MEASURED)
    worst = min(shares, key=shares.get)
    said = f"The same scan, cut alike, reaches {plots.percent(shares[worst])} of linear or more on {cores} threads"
    listed = "\n".join(f"- {line}" for line in lines)
    return tell.say(said, listed, tell.outcome("at least 80% of linear", {n: v >= 0.8 for n, v in shares.items()}))


def few_or_many(cost: model.Model | None, frame: pd.DataFrame, H: int = 32, T: int = 65536) -> Markdown:
    """Verdict: from how many processors on each method is predicted to be ahead, and what an H100 should do."""
    if cost is None:
        return tell.say(tell.NOT_MEASURED)
    lines, chain = [], chain_seconds(frame, H, T)
    for method in OURS:
        p = crossover(cost, method, H, T, chain)
        most = min(on_processors(cost, name, 16384, H, T, chain) for name in ("serial/compiled", "threads/rows"))
        gain = most / on_processors(cost, method, 16384, H, T, chain)
        gpu = on_h100("serial/compiled", H, T) / on_h100(method, H, T)
        lines.append((f"`{method}`", f"{p:,}" if p else "never", f"{plots.ratio(gain)}×", f"{plots.ratio(gpu)}×"))
    firsts = [crossover(cost, method, H, T, chain) or math.inf for method in OURS]
    least = min(firsts)
    said = f"By the model it pays from {least:,.0f} processors on (H = {H}, T = {T:,}, a network that forgets)"
    heads = ("method", "ahead of the chain from", "on 16,384 cores", "on an H100 (guessed)")
    made = table(heads, lines).data
    measured = [
        f"`{method}` on {threads} thread{'s' * (threads > 1)}: {1e9 * seconds / T:.0f} ns a step"
        for method in OURS
        for threads, seconds in sorted(measured_parts(frame, method, H, T).items())
    ]
    if chain and measured:
        made += (
            f"\n\nMeasured, solving and checking alone: {'; '.join(measured)}. The chain alone: {1e9 * chain:.0f} ns."
        )
    guessed = "the last column comes from a data sheet and three guesses (`study.in_time.on_h100`)"
    note = f"No GPU has been timed at this: {guessed}."
    return tell.say(said if least < math.inf else "By the model it never pays", made, note)
