"""What the chapters say in words: tables, small live runs, and verdicts computed from the results.

A verdict is one bold sentence that the data makes, so that it is true on whichever machine it is read; it names its
baseline. Below it stand the predictions that the chapter made before measuring, each with how it fared.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import rnnpar
from rnnpar import machine, model, registry
from rnnpar.kernels.tile import WIDTH
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.study import corpus, measure, plots, store

EXPERIMENT = "sweep"
BITS = 1e-4  # how far a method's bits per character may be from the oracle's

# --- results, machines, methods --------------------------------------------------------------------------------------


def results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its results of the sweep: this machine's, unless another is named.

    Where this machine has none yet, those of another machine are taken, and a line says so; where there are none at
    all the frame is empty, and figures and verdicts say that nothing was measured.
    """
    known = store.machines()
    chosen = name or machine.name()
    if not name and chosen not in known:
        chosen = known[0] if known else chosen
        shown = f"What follows was measured on {chosen}." if known else "What follows is therefore empty."
        display(Markdown(f"This machine has no results yet; `make figures` measures it. {shown}"))
    if chosen not in known and not name:
        return chosen, pd.DataFrame(columns=["machine", *store.COLUMNS])
    return chosen, store.load(EXPERIMENT, chosen)


def family(backend: str) -> list[str]:
    """The names of a backend's methods, from plain to clever."""
    return [method.name for method in registry.methods() if method.backend == backend]


def methods_table() -> Markdown:
    """Every method: what it parallelises, what it waits for, and whether it runs here."""
    rows = [(f"`{method.name}`", method.parallelises, method.synchronises, method.why_not or "yes")
            for method in registry.methods()]  # fmt: skip
    return _table(("method", "parallelises", "waits for", "runs here"), rows)


def machine_table(name: str = "") -> Markdown:
    """What is known of a machine: from its results, or asked of this one."""
    stored = name and (store.results_folder(name) / "machine.json").exists()
    known = store.load_machine(name) if stored else machine.describe()
    blas = known.get("blas") or {}
    took = f" (takes the processor for {blas.get('architecture')})" if blas.get("architecture") else ""
    versions = known.get("versions", {})
    system = known.get("system", "").split()
    rows = [
        ("name here", f"`{known['name']}`"),
        ("processor", known["cpu"]),
        ("cores that may be used", known["cores_allowed"]),
        (
            "caches of a core",
            ", ".join(f"{level} {_bytes(size)}" for level, size in known["caches"].items()) or "unknown",
        ),
        ("memory", _bytes(known["memory_bytes"])),
        ("GPU", known["gpu"].get("name", "none")),
        ("NumPy's BLAS", f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}{took}"),
        ("system", " ".join(system[:1] + system[-1:])),
        (
            "versions",
            ", ".join(
                f"{package} {versions[package]}" for package in ("python", "numpy", "numba") if package in versions
            ),
        ),
    ]
    return _table(("", ""), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    lines = [heads, ["---"] * len(heads), *rows]
    return Markdown(
        "\n".join("| " + " | ".join(str(field).replace("|", "/") for field in line) + " |" for line in lines)
    )


def _bytes(count: float) -> str:
    """2048 -> 2 KB; 36700160 -> 35 MB."""
    power = 0
    while count >= 1024 and power < 3:
        count, power = count / 1024, power + 1
    return f"{count:,.0f} {UNITS[power]}" if count >= 100 or count == int(count) else f"{count:.3g} {UNITS[power]}"


UNITS = ("B", "KB", "MB", "GB")


# --- arithmetic and bytes, before anything is measured ---------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """What one core can do at most: float32 operations and bytes a second, and the latency of a step."""

    name: str
    flops: float
    levels: tuple[tuple[float, float], ...]  # (holds up to so many bytes, gives so many bytes a second)
    latency: float  # of one step: a chain of multiply-adds, a sum over them, a tanh, none of which can overlap

    def bandwidth(self, size: float) -> float:
        """Bytes a second of the nearest level that holds `size` bytes."""
        return next((speed for holds, speed in self.levels if size <= holds), self.levels[-1][1])


# Measured on one core of the machine that this study began on, but for the latency, which is an estimate; kept here as
# an example of a present-day core.
EXAMPLE = Core("an AMD Zen 5 core with AVX-512", 235e9, ((2**20, 200e9), (32 * 2**20, 95e9), (np.inf, 36e9)), 30e-9)
SIZES = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def floor_parts(B: int = 1, core: Core = EXAMPLE, sizes: Sequence[int] = SIZES) -> dict[str, list[float]]:
    """Seconds that W h alone must take in a step by each of its bounds, for each H in `sizes`."""
    return {
        "arithmetic": [2 * H * H * B / core.flops for H in sizes],
        "bytes of W": [4 * H * H / core.bandwidth(4 * H * H) for H in sizes],
        "latency": [core.latency for _ in sizes],
    }


def floor(B: int = 1, core: Core = EXAMPLE, sizes: Sequence[int] = SIZES) -> tuple[list[int], list[float]]:
    """Seconds of a whole step at least, on one core, I = O = H: W h by its largest bound, U x and V h by arithmetic."""
    waits = np.max(list(floor_parts(B, core, sizes).values()), axis=0)
    return list(sizes), [float(w) + 4 * H * H * B / core.flops for w, H in zip(waits, sizes, strict=True)]


def shapes() -> dict[str, plots.Shape]:
    """The workloads whose arithmetic chapter 01 looks at: the origin's, the trained networks', and square ones."""
    found = {name: plots.Shape(I, H, O) for name, (H, I, O, _, _) in measure.ORIGIN.items()}
    try:
        trained = corpus.models()
    except FileNotFoundError:
        trained = {}
    for name, entry in trained.items():
        if entry["num_layers"] == 1:
            found[name] = plots.Shape(entry["input_size"], entry["hidden_size"], entry["output_size"])
    return found | {"I = O = H": plots.Shape(256, 256, 256)}


def predicted(frame: pd.DataFrame, axis: str, methods: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    """What the cost model says of a slice of the sweep, for `plots.step_time`; nothing without measured peaks."""
    rows, fixed = plots.along(frame, axis, methods)
    peaks = store.results_folder(frame["machine"].iloc[0]) / "peaks.json" if len(rows) else None
    if peaks is None or not peaks.exists():
        return {}
    costs = model.Model(json.loads(peaks.read_text()), WIDTH)
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for (method, threads), group in rows.groupby(["method", "threads"]):
        sizes = sorted({int(size) for size in group[axis]})
        shapes = [{**fixed, axis: size} for size in sizes]
        works = [model.Work(T=s["T"], B=s["B"], I=s["H"], H=s["H"], O=s["H"]) for s in shapes]
        seconds = [costs.predict(method, work, int(threads)) / work.T for work in works]
        if np.isfinite(seconds).all():
            lines[method] = sizes, seconds
    return lines


def amdahl(threads: Sequence[int] = (2, 4, 8, 64)) -> Markdown:
    """The largest speed-up over one thread where W h is done by one thread at a time, and all else is shared."""
    rows = []
    for name, shape in shapes().items():
        waits = shape.shares()["W h"]
        limits = [plots.ratio(1 / (waits + (1 - waits) / count)) for count in threads]
        rows.append((name, plots.percent(waits), *limits, plots.ratio(1 / waits)))
    return _table(("workload", "share of W h", *(f"{count} threads" for count in threads), "any number"), rows)


def arithmetic() -> Markdown:
    """The verdict of chapter 01, which needs no measurement."""
    origin = {name: plots.Shape(I, H, O).shares()["W h"] for name, (H, I, O, _, _) in measure.ORIGIN.items()}
    parts = " and ".join(f"{plots.percent(share)} of {name}" for name, share in origin.items())
    return _say(
        f"W h, the only product that waits for the step before, is {parts}, counted in multiplications: the rest, "
        f"{100 * (1 - max(origin.values())):.0f}% or more, can be done for all time steps at once"
    )


# --- small live runs -------------------------------------------------------------------------------------------------


def live(methods: Sequence[str], H: int, T: int = 128, B: int = 1) -> pd.DataFrame:
    """Time some methods here and now on random weights, checked like every timed point; the first is the baseline."""
    point = measure.Point("random", H, H, H, T, B)
    threads = {name: {"threads": machine.cores_allowed()} if "threads" in registry.find(name).options() else {}
               for name in methods}  # fmt: skip
    rows = measure.measure_group(point, list(threads.items()), 7, 0.2, np.random.default_rng(0))
    frame = pd.DataFrame(rows)
    times = plots.medians(frame, ["method"])
    table = []
    for name in methods:
        first = frame[frame["method"] == name].iloc[0]
        row = {"method": name, TIME: plots.STATUS.get(first["status"], "–"), ERROR: "–", f"over {methods[0]}": "–"}
        if pd.notna(first["error"]):
            row[ERROR] = plots.short(1e6 * first["error"])
        if name in times:
            row[TIME] = f"{1e6 * times[name].value / T:.3g}"
            if methods[0] in times:
                row[f"over {methods[0]}"] = f"{plots.ratio(times[methods[0]].value / times[name].value)}×"
        table.append(row)
    return pd.DataFrame(table).set_index("method")


TIME, ERROR = "time a step (µs)", "error to the oracle (millionths)"


def bits(batch: int = 8, steps: int = 1000) -> pd.DataFrame:
    """Bits per character and error to the oracle of every method on every trained network, computed here and now."""
    rows = []
    x, targets = corpus.sequences(batch, steps)
    for network in corpus.models():
        net = corpus.load(network)
        wanted, _ = reference(net, x)
        shared = dict(network=network, oracle=corpus.bits_per_character(wanted, targets))
        rows += [shared | _bits_of(method, net, x, targets, wanted) for method in registry.methods()]
    return pd.DataFrame(rows)


def _bits_of(
    method: registry.Method, net: RNN, x: np.ndarray, targets: np.ndarray, wanted: np.ndarray
) -> dict[str, Any]:
    row = dict(method=method.name, bits=np.nan, error=np.nan, status="unsupported")
    try:
        with rnnpar.prepare(net, method.name) as run:
            y, _ = run(x)
    except registry.Unavailable:
        return row
    except MemoryError:
        return row | dict(status="oom")
    error = relative_error(y, wanted)
    status = "ok" if error <= getattr(method, "bound", measure.BOUND) else "inaccurate"
    return row | dict(bits=corpus.bits_per_character(y, targets), error=error, status=status)


def this_machine() -> str:
    """The name of the machine that runs this."""
    return machine.name()


def today() -> str:
    """The date that a figure of live numbers carries."""
    return datetime.now(UTC).date().isoformat()


# --- verdicts --------------------------------------------------------------------------------------------------------


def _say(verdict: str, *fared: str) -> Markdown:
    return Markdown("\n\n".join([f"**{verdict}.**", *fared]))


NOT_MEASURED = "No verdict: this has not been measured on this machine"


def _fared(prediction: str, outcomes: Mapping[str, bool]) -> str:
    """A prediction and how it fared, by the places where it was tried."""
    failed = [place for place, held in outcomes.items() if not held]
    more = f" and {len(failed) - 6} more" if len(failed) > 6 else ""
    how = f"It failed at {', '.join(failed[:6])}{more}" if failed else "It held" if outcomes else "Not measured here"
    return f"*Predicted: {prediction}.* {how}."


def _predicted(prediction: str, letter: str, ratios: Mapping[int, float], holds: Callable[[float], bool],
               least: int = 0, most: float = np.inf) -> str:  # fmt: skip
    """A prediction about speed-ups at the sizes from `least` to `most`, and how it fared."""
    tried = {size: value for size, value in sorted(ratios.items()) if least <= size <= most}
    return _fared(prediction, {f"{letter} = {size:,} ({_times(value)})": holds(value) for size, value in tried.items()})


def _times(value: float) -> str:
    return f"{plots.ratio(value)} times"


def _compared(value: float, other: str) -> str:
    """A speed-up in words; below 1 the method is the slower one."""
    return f"as fast as {other}" if 0.97 <= value <= 1.03 else f"{_times(value)} as fast as {other}"


def _fixed(letters: Mapping[str, int]) -> str:
    return ", ".join(f"{letter} = {value:,}" for letter, value in letters.items()) + ", I = O = H"


def _ratios(frame: pd.DataFrame, axis: str, method: str, over: str) -> tuple[dict[int, float], str]:
    """Speed-ups of a method over another along an axis, and what is held fixed."""
    rows, fixed = plots.along(frame, axis, [method, over])
    times = plots.medians(rows, ["method", axis])
    sizes = [size for name, size in times if name == method and (over, size) in times]
    return {size: times[over, size].value / times[method, size].value for size in sizes}, _fixed(fixed)


def _costs(frame: pd.DataFrame, axis: str) -> tuple[dict[str, dict[int, float]], str]:
    """Microseconds a step, of one sequence, by serial method along T or B, and what is held fixed."""
    rows, fixed = plots.along(frame, axis, family("serial"))
    costs: dict[str, dict[int, float]] = {}
    for (method, T, B), value in plots.medians(rows, ["method", "T", "B"]).items():
        costs.setdefault(method, {})[T if axis == "T" else B] = 1e6 * value.value / (T * B)
    return costs, _fixed(fixed)


def _where(frame: pd.DataFrame) -> str:
    return f"On {frame['machine'].iloc[0]}"


def _threads(frame: pd.DataFrame) -> int:
    counts = frame.loc[frame["method"].str.startswith("threads/"), "threads"]
    return int(counts.max()) if len(counts) else 1


def _stays_ahead(ratios: Mapping[int, float]) -> int | None:
    """The size from which on every speed-up is above 1."""
    ahead = [size for size in ratios if all(value > 1 for other, value in ratios.items() if other >= size)]
    return min(ahead, default=None)


def hoisting(frame: pd.DataFrame) -> Markdown:
    """How much taking U x and V h out of the loop brings."""
    ratios, fixed = _ratios(frame, "H", "serial/hoisted", "serial/naive")
    fared = _predicted("2 to 4 times as fast as serial/naive at every H", "H", ratios, lambda r: 2 <= r <= 4)
    if not ratios:
        return _say(NOT_MEASURED, fared)
    small, large = min(ratios), max(ratios)
    return _say(
        f"{_where(frame)}, taking U x and V h out of the loop makes serial/hoisted "
        f"{_compared(ratios[small], 'serial/naive')} at H = {small:,} and {_times(ratios[large])} at H = {large:,} "
        f"({fixed})",
        fared,
    )


def compiling(frame: pd.DataFrame) -> Markdown:
    """What compiling the loop adds to hoisting."""
    ratios, fixed = _ratios(frame, "H", "serial/compiled", "serial/hoisted")
    both, _ = _ratios(frame, "H", "serial/compiled", "serial/naive")
    fared = [
        _predicted("at least 10 times as fast as serial/hoisted up to H = 32", "H", ratios, lambda r: r >= 10, most=32),
        _predicted("less than 3 times from H = 1,024 on", "H", ratios, lambda r: r < 3, least=1024),
    ]
    if not ratios or not both:
        return _say(NOT_MEASURED, *fared)
    small, large = min(ratios), max(ratios)
    return _say(
        f"{_where(frame)}, serial/compiled is {_compared(ratios[small], 'serial/hoisted')} at H = {small:,} and "
        f"{_times(ratios[large])} at H = {large:,}; over serial/naive, hoisting and compiling together bring "
        f"{_times(both[min(both)])} and {_times(both[max(both)])} ({fixed})",
        *fared,
    )


def lengths(frame: pd.DataFrame) -> Markdown:
    """What a step costs in short and in long sequences."""
    costs, fixed = _costs(frame, "T")
    level = {
        f"{method} at T = {T:,}": cost < 1.25 * each[max(each)]
        for method, each in costs.items()
        for T, cost in each.items()
        if 64 <= T < max(each)
    }
    mine = costs.get("serial/compiled", {})
    long = max(mine, default=0)
    steep = {1: mine[1] / mine[long]} if 1 in mine and long > 1 else {}
    fared = [
        _fared("from T = 64 on, a step costs at most a quarter more than in the longest sequence", level),
        _predicted("serial/compiled, more than 3 times as much in a sequence of one step", "T", steep, lambda r: r > 3),
    ]
    if len(mine) < 2:
        return _say(NOT_MEASURED, *fared)
    short = min(mine)
    call = max(0.0, short * (mine[short] - mine[long]))
    return _say(
        f"{_where(frame)}, a step of serial/compiled costs {plots.short(mine[short])} µs in a sequence of {short:,} "
        f"and {plots.short(mine[long])} µs in one of {long:,}: a call as such costs {plots.short(call)} µs ({fixed})",
        *fared,
    )


def batches(frame: pd.DataFrame) -> Markdown:
    """What a sequence gains from company."""
    costs, fixed = _costs(frame, "B")
    gains = {method: each[min(each)] / each[max(each)] for method, each in costs.items() if len(each) > 1}
    fared = [
        _fared(f"a sequence among the most gains {text} in {method}",
               {_times(gains[method]): holds(gains[method])} if method in gains else {})
        for method, text, holds in (("serial/naive", "at least 4 times", lambda r: r >= 4),
                                    ("serial/compiled", "less than 3 times", lambda r: r < 3))
    ]  # fmt: skip
    if not {"serial/naive", "serial/compiled"} <= set(gains):
        return _say(NOT_MEASURED, *fared)
    few, many = min(costs["serial/naive"]), max(costs["serial/naive"])
    return _say(
        f"{_where(frame)}, per sequence, B = {many:,} is {_times(gains['serial/naive'])} as fast as B = {few:,} "
        f"in serial/naive and {_times(gains['serial/compiled'])} in serial/compiled ({fixed})",
        *fared,
    )


def timestep(frame: pd.DataFrame) -> Markdown:
    """The origin's idea against one thread that hoists."""
    ratios, fixed = _ratios(frame, "H", "threads/timestep", "serial/compiled")
    fared = [
        _predicted("it loses to serial/compiled below H = 128", "H", ratios, lambda r: r < 1, most=127),
        _predicted("it is nowhere twice as fast", "H", ratios, lambda r: r < 2),
    ]
    if not ratios:
        return _say(NOT_MEASURED, *fared)
    worst, best = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    return _say(
        f"{_where(frame)}, threads/timestep on {_threads(frame)} threads is at best "
        f"{_compared(ratios[best], 'serial/compiled')} on one (at H = {best:,}), and at worst "
        f"{_times(ratios[worst])} (at H = {worst:,}; {fixed})",
        *fared,
    )


def rows(frame: pd.DataFrame, name: str = "") -> Markdown:
    """Rows of W over threads against one thread; the machine's name leads to the size of its caches."""
    ratios, fixed = _ratios(frame, "H", "threads/rows", "serial/compiled")
    fared = [
        _predicted("up to H = 64 the barrier costs more than it saves", "H", ratios, lambda r: r < 1, most=64),
        _predicted("at least 1.5 times as fast from H = 256 on", "H", ratios, lambda r: r >= 1.5, least=256),
    ]
    if not ratios:
        return _say(NOT_MEASURED, *fared)
    threads, cache = _threads(frame), store.load_machine(name)["caches"].get("L2", 0) if name else 0
    fits = {H: value for H, value in ratios.items() if 0.75 * cache < 4 * H * H <= 0.75 * cache * threads}
    if fits:
        text = f"more than {threads} times where W fits all the threads' L2 caches but not one"
        fared.append(_predicted(text, "H", fits, lambda r: r > threads))
    ahead, best = _stays_ahead(ratios), max(ratios, key=ratios.__getitem__)
    crossing = f"is ahead of serial/compiled from H = {ahead:,} on" if ahead else "never stays ahead of serial/compiled"
    return _say(
        f"{_where(frame)}, threads/rows on {threads} threads {crossing}, and is at best "
        f"{_times(ratios[best])} as fast (at H = {best:,}; {fixed})",
        *fared,
    )


def batch(frame: pd.DataFrame) -> Markdown:
    """Sequences over threads against one thread, and against rows."""
    ratios, fixed = _ratios(frame, "B", "threads/batch", "serial/compiled")
    against, _ = _ratios(frame, "B", "threads/batch", "threads/rows")
    threads, most = _threads(frame), max(against, default=0)
    fared = [
        _predicted("alone, a sequence gains nothing", "B", ratios, lambda r: r < 1.1, most=1),
        _predicted("with 8 sequences a thread or more, at least 85% of the ideal", "B", ratios,
                   lambda r: r >= 0.85 * threads, least=8 * threads),
        _predicted("batch loses to rows at B = 1", "B", against, lambda r: r < 1, most=1),
        _predicted("and beats it at the most sequences", "B", against, lambda r: r > 1, least=max(2, most)),
    ]  # fmt: skip
    if not ratios:
        return _say(NOT_MEASURED, *fared)
    large, ahead = max(ratios), _stays_ahead(against)
    stays = (
        f"it stays ahead of threads/rows from B = {ahead:,} on" if ahead else "it does not stay ahead of threads/rows"
    )
    crossing = f"; {stays}" if against else ""
    return _say(
        f"{_where(frame)}, threads/batch on {threads} threads is {_compared(ratios[large], 'serial/compiled')} at "
        f"B = {large:,}{crossing} ({fixed})",
        *fared,
    )


def wavefront(frame: pd.DataFrame) -> Markdown:
    """Stacked layers, pipelined over time, against one thread."""
    ratios, fixed = _ratios(frame, "layers", "threads/wavefront", "serial/compiled")
    threads = _threads(frame)
    text = "with 4 layers, at least 70% of the ideal (as many times as there are threads, but not more than 7)"
    fared = _predicted(text, "layers", ratios, lambda r: r >= 0.7 * min(threads, 7), least=4, most=4)
    if not ratios:
        return _say(NOT_MEASURED, fared)
    few, many = min(ratios), max(ratios)
    return _say(
        f"{_where(frame)}, threads/wavefront on {threads} threads is {_compared(ratios[few], 'serial/compiled')} with "
        f"{few} layer{'s' * (few > 1)} and {_times(ratios[many])} with {many} ({fixed})",
        fared,
    )


def scaling(frame: pd.DataFrame) -> Markdown:
    """What the last thread still brings, where threads were varied."""
    rows = plots.square(frame).query("layers == 1")
    times = plots.medians(rows, ["H", "T", "B", "method", "threads"])
    best: dict[str, tuple[float, int, str]] = {}
    for (H, T, B, method, threads), value in times.items():
        one = times.get((H, T, B, method, 1))
        if threads > 1 and threads == _threads(frame) and one is not None:
            found = (one.value / value.value, threads, f"H = {H:,}, T = {T:,}, B = {B:,}")
            best[method] = max(best.get(method, found), found)
    if not best:
        return _say(NOT_MEASURED)
    parts = [f"{method} {_times(gain)} ({plots.percent(gain / threads)} of the ideal, at {where})"
             for method, (gain, threads, where) in sorted(best.items(), key=lambda item: -item[1][0])]  # fmt: skip
    return _say(
        f"{_where(frame)}, {_threads(frame)} threads bring, over one of the same method, at best {'; '.join(parts)}"
    )


def glance(frame: pd.DataFrame) -> Markdown:
    """The study in one sentence: who is fastest for a single sequence, by how much."""
    rows, fixed = plots.along(frame, "H")
    times = plots.medians(rows, ["H", "method"])
    best = {H: min((value.value, method) for (size, method), value in times.items() if size == H) for H, _ in times}
    naive = {H: value.value for (H, method), value in times.items() if method == "serial/naive"}
    gains = [naive[H] / seconds for H, (seconds, _) in best.items() if H in naive]
    if not gains or len({method for _, method in times}) < 2:
        return _say(NOT_MEASURED)
    winners = plots.in_order(method for _, method in best.values())
    sizes = ["H = " + ", ".join(f"{H:,}" for H in sorted(best) if best[H][1] == method) for method in winners]
    named = "; ".join(f"{method} at {where}" for method, where in zip(winners, sizes, strict=True))
    low, high = plots.ratio(min(gains)), _times(max(gains))
    return _say(
        f"{_where(frame)}, the fastest method is {low} to {high} as fast as serial/naive ({_fixed(fixed)}): {named}"
    )


def hoisting_the_origin(frame: pd.DataFrame) -> Markdown:
    """What hoisting alone, on one thread, brings on the origin's workloads."""
    rows = plots.steady(frame)
    times = plots.medians(rows[rows["workload"].isin(measure.ORIGIN)], ["workload", "method"])
    gains = {name: times[name, "serial/naive"].value / times[name, "serial/hoisted"].value for name in measure.ORIGIN
             if {(name, "serial/naive"), (name, "serial/hoisted")} <= set(times)}  # fmt: skip
    outcomes = {f"{name} ({_times(gain)})": 1.2 <= gain <= 3 for name, gain in gains.items()}
    fared = _fared("1.2 to 3 times as fast as serial/naive on both", outcomes)
    if not gains:
        return _say(NOT_MEASURED, fared)
    parts = " and ".join(f"{_compared(gain, 'serial/naive')} on {name}" for name, gain in gains.items())
    return _say(f"{_where(frame)}, hoisting alone, still on one thread, makes serial/hoisted {parts}", fared)


def origin(frame: pd.DataFrame) -> Markdown:
    """The origin's workloads: the best of ours over both baselines."""
    drawn = plots.all_cores(plots.steady(frame))
    times = plots.medians(drawn[drawn["workload"].isin(measure.ORIGIN)], ["workload", "method"])
    parts, outcomes = [], {}
    for workload in measure.ORIGIN:
        here = {method: value.value for (name, method), value in times.items() if name == workload}
        if {"serial/naive", "serial/compiled"} <= set(here):
            best = min(here, key=here.__getitem__)
            naive, compiled = (here[name] / here[best] for name in ("serial/naive", "serial/compiled"))
            parts.append(f"{best} on {workload}, {_compared(naive, 'serial/naive')} and "
                         f"{_compared(compiled, 'serial/compiled')}")  # fmt: skip
            outcomes[f"{workload} ({_times(naive)})"] = naive >= 4
    fared = _fared("the best method is at least 4 times as fast as serial/naive on both", outcomes)
    if not parts:
        return _say(NOT_MEASURED, fared)
    return _say(f"{_where(frame)}, the best method is {'; '.join(parts)}", fared)


def same_bits(table: pd.DataFrame) -> Markdown:
    """Whether all methods give the oracle's bits per character."""
    ran = table[table["status"].isin(["ok", "inaccurate"])]
    away = (ran["bits"] - ran["oracle"]).abs()
    outcomes = dict(zip(ran["method"] + " on " + ran["network"], away < BITS, strict=True))
    fared = _fared(f"every method within {plots.plain(BITS)} bits of the oracle", outcomes)
    if ran.empty:
        return _say(NOT_MEASURED, fared)
    bits, error = (plots.short(1e6 * value) for value in (away.max(), ran["error"].max()))
    methods, networks = ran["method"].nunique(), ran["network"].nunique()
    return _say(
        f"On this machine {methods} methods ran on {networks} trained networks: none is more than {bits} millionths of "
        f"a bit per character away from the float64 oracle, and none has a relative error above {error} millionths",
        fared,
    )
