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
from rnnpar.advice import advise, cautions, check_sizes, gpu_here
from rnnpar.kernels.tile import WIDTH
from rnnpar.network import RNN
from rnnpar.peaks import VERSION as PEAKS_VERSION
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


def peaks(name: str = "") -> dict[str, Any]:
    """A machine's measured peaks (what they are: rnnpar/peaks.py), this one's by default; empty without any."""
    here = name in ("", machine.name())
    file = (machine.folder() if here else store.results_folder(name)) / "peaks.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        return found if found.get("version") == PEAKS_VERSION else {}
    except (ValueError, AttributeError) as error:
        raise store.ResultsError(f"{file} is damaged ({error}); delete it, and the peaks are measured again") from None


def cost_model(name: str = "") -> model.Model | None:
    """The cost model on a machine's peaks; None where they have not been measured."""
    found = peaks(name)
    return model.Model(found, WIDTH) if found else None


def caches(name: str = "") -> dict[str, int]:
    """Bytes of each data cache of a machine's core, {"L1": ..., "L2": ..., "L3": ...}; empty where unknown."""
    try:
        return store.load_machine(name or machine.name()).get("caches", {})
    except store.ResultsError:
        return machine.caches() if name in ("", machine.name()) else {}


def ran(frame: pd.DataFrame, here: str = "", name: str = "") -> Markdown:
    """What of a chapter ran on which machine: that of its results, and `here`, what is computed while it runs."""
    parts = []
    if len(frame):
        where = str(frame["machine"].iloc[0])
        times = frame[(frame["kind"] == "steady") & (frame["status"] == "ok")]
        days = sorted({str(date)[:10] for date in frame["date"].dropna()})
        when = f" from {days[0]} to {days[-1]}" if len(days) > 1 else f" on {days[0]}" if days else ""
        methods, shapes = frame["method"].nunique(), len(frame[SHAPE].drop_duplicates())
        parts.append(f"Measured on `{where}`{_in_words(where)}{when}: {len(times):,} samples of {methods} methods at "
                     f"{shapes:,} shapes.")  # fmt: skip
    else:
        parts.append(f"Nothing of this has been measured on `{name or machine.name()}` yet.")
    if here:
        parts.append(f"Computed while this page ran, on `{machine.name()}`: {here}.")
    return Markdown(" ".join(parts))


def _in_words(name: str) -> str:
    """A machine's processor, cores and GPU in brackets; empty where nothing is known of it."""
    try:
        known = store.load_machine(name)
    except store.ResultsError:
        return ""
    cores, gpu = known.get("cores_allowed", 0), (known.get("gpu") or {}).get("name", "")
    parts = [known.get("cpu", ""), f"{cores} core{'s' * (cores > 1)}" if cores else "", gpu]
    said = ", ".join(part for part in parts if part)
    return f" ({said})" if said else ""


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
        ("GPU", gpu_words(known["gpu"])),
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


def gpu_words(gpu: Mapping[str, Any]) -> str:
    """A GPU as machine.json describes it, in a line."""
    if not gpu:
        return "none"
    parts = [gpu["name"], f"driver {gpu['driver']}"]
    parts += [_bytes(gpu["memory_bytes"])] if "memory_bytes" in gpu else []
    return ", ".join(parts)


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
    costs = cost_model(frame["machine"].iloc[0]) if len(rows) else None
    if costs is None:
        return {}
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
    return say(
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
    """Bits per character and error to the oracle of every method on every trained network, computed here and now.

    But for the peers and mpi: each would need processes of its own, and some seconds to start them.
    """
    rows = []
    x, targets = corpus.sequences(batch, steps)
    methods = [method for method in registry.methods() if method.backend not in measure.ELSEWHERE]
    for network in corpus.models():
        net = corpus.load(network)
        wanted, _ = reference(net, x)
        shared = dict(network=network, oracle=corpus.bits_per_character(wanted, targets))
        rows += [shared | _bits_of(method, net, x, targets, wanted) for method in methods]
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


def say(verdict: str, *fared: str) -> Markdown:
    return Markdown("\n\n".join([f"**{verdict}.**", *fared]))


NOT_MEASURED = "No verdict: this has not been measured on this machine"


def outcome(prediction: str, outcomes: Mapping[str, bool]) -> str:
    """A prediction and how it fared, by the places where it was tried."""
    failed = [place for place, held in outcomes.items() if not held]
    more = f" and {len(failed) - 6} more" if len(failed) > 6 else ""
    how = f"It failed at {', '.join(failed[:6])}{more}" if failed else "It held" if outcomes else "Not measured here"
    return f"*Predicted: {prediction}.* {how}."


def _predicted(prediction: str, letter: str, ratios: Mapping[int, float], holds: Callable[[float], bool],
               least: int = 0, most: float = np.inf) -> str:  # fmt: skip
    """A prediction about speed-ups at the sizes from `least` to `most`, and how it fared."""
    tried = {size: value for size, value in sorted(ratios.items()) if least <= size <= most}
    return outcome(
        prediction, {f"{letter} = {size:,} ({_times(value)})": holds(value) for size, value in tried.items()}
    )


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


def team_size(frame: pd.DataFrame) -> int:
    """The largest number of threads that the threaded methods were measured with."""
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
        return say(NOT_MEASURED, fared)
    small, large = min(ratios), max(ratios)
    return say(
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
        return say(NOT_MEASURED, *fared)
    small, large = min(ratios), max(ratios)
    return say(
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
        outcome("from T = 64 on, a step costs at most a quarter more than in the longest sequence", level),
        _predicted("serial/compiled, more than 3 times as much in a sequence of one step", "T", steep, lambda r: r > 3),
    ]
    if len(mine) < 2:
        return say(NOT_MEASURED, *fared)
    short = min(mine)
    call = max(0.0, short * (mine[short] - mine[long]))
    return say(
        f"{_where(frame)}, a step of serial/compiled costs {plots.short(mine[short])} µs in a sequence of {short:,} "
        f"and {plots.short(mine[long])} µs in one of {long:,}: a call as such costs {plots.short(call)} µs ({fixed})",
        *fared,
    )


def batches(frame: pd.DataFrame) -> Markdown:
    """What a sequence gains from company."""
    costs, fixed = _costs(frame, "B")
    gains = {method: each[min(each)] / each[max(each)] for method, each in costs.items() if len(each) > 1}
    fared = [
        outcome(f"a sequence among the most gains {text} in {method}",
               {_times(gains[method]): holds(gains[method])} if method in gains else {})
        for method, text, holds in (("serial/naive", "at least 4 times", lambda r: r >= 4),
                                    ("serial/compiled", "less than 3 times", lambda r: r < 3))
    ]  # fmt: skip
    if not {"serial/naive", "serial/compiled"} <= set(gains):
        return say(NOT_MEASURED, *fared)
    few, many = min(costs["serial/naive"]), max(costs["serial/naive"])
    return say(
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
        return say(NOT_MEASURED, *fared)
    worst, best = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    return say(
        f"{_where(frame)}, threads/timestep on {team_size(frame)} threads is at best "
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
        return say(NOT_MEASURED, *fared)
    threads, cache = team_size(frame), caches(name).get("L2", 0) if name else 0
    fits = {H: value for H, value in ratios.items() if 0.75 * cache < 4 * H * H <= 0.75 * cache * threads}
    if fits:
        text = f"more than {threads} times where W fits all the threads' L2 caches but not one"
        fared.append(_predicted(text, "H", fits, lambda r: r > threads))
    ahead, best = _stays_ahead(ratios), max(ratios, key=ratios.__getitem__)
    crossing = f"is ahead of serial/compiled from H = {ahead:,} on" if ahead else "never stays ahead of serial/compiled"
    return say(
        f"{_where(frame)}, threads/rows on {threads} threads {crossing}, and is at best "
        f"{_times(ratios[best])} as fast (at H = {best:,}; {fixed})",
        *fared,
    )


def batch(frame: pd.DataFrame) -> Markdown:
    """Sequences over threads against one thread, and against rows."""
    ratios, fixed = _ratios(frame, "B", "threads/batch", "serial/compiled")
    against, _ = _ratios(frame, "B", "threads/batch", "threads/rows")
    threads, most = team_size(frame), max(against, default=0)
    fared = [
        _predicted("alone, a sequence gains nothing", "B", ratios, lambda r: r < 1.1, most=1),
        _predicted("with 8 sequences a thread or more, at least 85% of the ideal", "B", ratios,
                   lambda r: r >= 0.85 * threads, least=8 * threads),
        _predicted("batch loses to rows at B = 1", "B", against, lambda r: r < 1, most=1),
        _predicted("and beats it at the most sequences", "B", against, lambda r: r > 1, least=max(2, most)),
    ]  # fmt: skip
    if not ratios:
        return say(NOT_MEASURED, *fared)
    large, ahead = max(ratios), _stays_ahead(against)
    stays = (
        f"it stays ahead of threads/rows from B = {ahead:,} on" if ahead else "it does not stay ahead of threads/rows"
    )
    crossing = f"; {stays}" if against else ""
    return say(
        f"{_where(frame)}, threads/batch on {threads} threads is {_compared(ratios[large], 'serial/compiled')} at "
        f"B = {large:,}{crossing} ({fixed})",
        *fared,
    )


def wavefront(frame: pd.DataFrame) -> Markdown:
    """Stacked layers, pipelined over time, against one thread."""
    ratios, fixed = _ratios(frame, "layers", "threads/wavefront", "serial/compiled")
    threads = team_size(frame)
    text = "with 4 layers, at least 70% of the ideal (as many times as there are threads, but not more than 7)"
    fared = _predicted(text, "layers", ratios, lambda r: r >= 0.7 * min(threads, 7), least=4, most=4)
    if not ratios:
        return say(NOT_MEASURED, fared)
    few, many = min(ratios), max(ratios)
    return say(
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
        if threads > 1 and threads == team_size(frame) and one is not None:
            found = (one.value / value.value, threads, f"H = {H:,}, T = {T:,}, B = {B:,}")
            best[method] = max(best.get(method, found), found)
    if not best:
        return say(NOT_MEASURED)
    parts = [f"{method} {_times(gain)} ({plots.percent(gain / threads)} of the ideal, at {where})"
             for method, (gain, threads, where) in sorted(best.items(), key=lambda item: -item[1][0])]  # fmt: skip
    return say(
        f"{_where(frame)}, {team_size(frame)} threads bring, over one of the same method, at best {'; '.join(parts)}"
    )


def glance(frame: pd.DataFrame) -> Markdown:
    """The study in one sentence: who is fastest for a single sequence, by how much."""
    rows, fixed = plots.along(frame, "H")
    times = plots.medians(rows, ["H", "method"])
    best = {H: min((value.value, method) for (size, method), value in times.items() if size == H) for H, _ in times}
    naive = {H: value.value for (H, method), value in times.items() if method == "serial/naive"}
    gains = [naive[H] / seconds for H, (seconds, _) in best.items() if H in naive]
    if not gains or len({method for _, method in times}) < 2:
        return say(NOT_MEASURED)
    winners = plots.in_order(method for _, method in best.values())
    sizes = ["H = " + ", ".join(f"{H:,}" for H in sorted(best) if best[H][1] == method) for method in winners]
    named = "; ".join(f"{method} at {where}" for method, where in zip(winners, sizes, strict=True))
    low, high = plots.ratio(min(gains)), _times(max(gains))
    return say(
        f"{_where(frame)}, the fastest method is {low} to {high} as fast as serial/naive ({_fixed(fixed)}): {named}"
    )


def hoisting_the_origin(frame: pd.DataFrame) -> Markdown:
    """What hoisting alone, on one thread, brings on the origin's workloads."""
    rows = plots.steady(frame)
    times = plots.medians(rows[rows["workload"].isin(measure.ORIGIN)], ["workload", "method"])
    gains = {name: times[name, "serial/naive"].value / times[name, "serial/hoisted"].value for name in measure.ORIGIN
             if {(name, "serial/naive"), (name, "serial/hoisted")} <= set(times)}  # fmt: skip
    outcomes = {f"{name} ({_times(gain)})": 1.2 <= gain <= 3 for name, gain in gains.items()}
    fared = outcome("1.2 to 3 times as fast as serial/naive on both", outcomes)
    if not gains:
        return say(NOT_MEASURED, fared)
    parts = " and ".join(f"{_compared(gain, 'serial/naive')} on {name}" for name, gain in gains.items())
    return say(f"{_where(frame)}, hoisting alone, still on one thread, makes serial/hoisted {parts}", fared)


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
    fared = outcome("the best method is at least 4 times as fast as serial/naive on both", outcomes)
    if not parts:
        return say(NOT_MEASURED, fared)
    return say(f"{_where(frame)}, the best method is {'; '.join(parts)}", fared)


def same_bits(table: pd.DataFrame) -> Markdown:
    """Whether all methods give the oracle's bits per character."""
    ran = table[table["status"].isin(["ok", "inaccurate"])]
    away = (ran["bits"] - ran["oracle"]).abs()
    outcomes = dict(zip(ran["method"] + " on " + ran["network"], away < BITS, strict=True))
    fared = outcome(f"every method within {plots.plain(BITS)} bits of the oracle", outcomes)
    if ran.empty:
        return say(NOT_MEASURED, fared)
    bits, error = (plots.short(1e6 * value) for value in (away.max(), ran["error"].max()))
    methods, networks = ran["method"].nunique(), ran["network"].nunique()
    return say(
        f"On this machine {methods} methods ran on {networks} trained networks: none is more than {bits} millionths of "
        f"a bit per character away from the float64 oracle, and none has a relative error above {error} millionths",
        fared,
    )


# --- chapter 02: where a serial program's time goes ------------------------------------------------------------------


def stairs(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> Markdown:
    """What each change brings, from naive to hoisted to compiled."""
    hoisted, fixed = _ratios(frame, "H", "serial/hoisted", "serial/naive")
    compiled, _ = _ratios(frame, "H", "serial/compiled", "serial/hoisted")
    both = {H: (hoisted[H], compiled[H]) for H in sizes if H in hoisted and H in compiled}
    outcomes = {f"H = {H:,} ({_times(first)} and {_times(second)})": second > first if H < 200 else first > second
                for H, (first, second) in both.items()}  # fmt: skip
    fared = outcome("compiling brings more than hoisting in the small network, hoisting more in the others", outcomes)
    if not both:
        return say(NOT_MEASURED, fared)
    parts = [f"{_times(first)} by hoisting and {_times(second)} by compiling at H = {H:,}"
             for H, (first, second) in both.items()]  # fmt: skip
    return say(f"{_where(frame)}, from serial/naive to serial/compiled one gains {'; '.join(parts)} ({fixed})", fared)


def tile_table(name: str = "", sizes: Sequence[int] = (64, 256, 1024), rows: Sequence[int] = (1, 4, 64)) -> Markdown:
    """One product alone: NumPy's time over the tile's, on one thread, from a machine's peaks."""
    found = peaks(name)
    tile = {(H, r): seconds for H, r, seconds in found.get("products", {}).get("1", [])}
    blas = {(H, r): seconds for H, r, seconds in found.get("blas", [])}
    there = [(H, [r for r in rows if (H, r) in tile and (H, r) in blas]) for H in sizes]
    lines = [[f"H = {H:,}", *(f"{plots.ratio(blas[H, r] / tile[H, r])}×" if r in some else "–" for r in rows)]
             for H, some in there if some]  # fmt: skip
    if not lines:
        return Markdown(NO_PEAKS)
    heads = ["NumPy's product over the tile's", *(f"{r} row{'s' * (r > 1)}" for r in rows)]
    return _table(heads, lines)


NO_PEAKS = "The peaks of this machine have not been measured, so there is nothing to compare with."


def arithmetic_peak(found: Mapping[str, Any]) -> float:
    """Floating-point operations a second of the fastest product that one thread was seen to do."""
    return max(2 * H * H * rows / seconds for H, rows, seconds in found["products"]["1"])


def bandwidth(found: Mapping[str, Any], sizes: Mapping[str, int], H: int) -> tuple[str, float]:
    """The level of cache that holds a W of H x H, and the bytes a second at which one thread multiplies by such."""
    levels = [(level, size) for level, size in sorted(sizes.items()) if size >= 4 * H * H]
    level, most = levels[0] if levels else ("memory", np.inf)
    least = max([size for size in sizes.values() if size < most], default=0) if sizes else 0
    speeds = {side: 4 * side * side / seconds for side, rows, seconds in found["products"]["1"] if rows == 1}
    inside = [speed for side, speed in speeds.items() if least < 4 * side * side <= most]
    return level, max(inside) if inside else speeds[min(speeds, key=lambda side: abs(side - H))]


def peak_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """What share of the machine's peak serial/compiled reaches: of arithmetic for many sequences, of bytes for one.

    For one sequence the least time is that of the bytes of W, from the cache that holds it, and that of the arithmetic
    of U x and V h, which are products of matrices; the share is the least time over the measured one.
    """
    rows = plots.square(frame).query("method == 'serial/compiled' and layers == 1")
    found = peaks(frame["machine"].iloc[0]) if len(rows) else {}
    table = []
    if found:
        sizes, flops = caches(frame["machine"].iloc[0]), arithmetic_peak(found)
        for (H, T, B), value in plots.medians(rows, ["H", "T", "B"]).items():
            step = value.value / T
            if B >= 16:
                rate, least = f"{6e-9 * H * H * B / step:.0f} of {1e-9 * flops:.0f} GFLOP/s", 6 * H * H * B / flops
                table.append(dict(H=H, T=T, B=B, bound="arithmetic", reached=rate, share=least / step))
            elif B == 1 and T >= 64:
                level, speed = bandwidth(found, sizes, H)
                least = 4 * H * H / speed + 4 * H * H / flops
                rate = f"{4e-9 * H * H / max(step - 4 * H * H / flops, 1e-12):.0f} of {1e-9 * speed:.0f} GB/s"
                table.append(dict(H=H, T=T, B=B, bound=f"bytes of W, {level}", reached=rate, share=least / step))
    return pd.DataFrame(table, columns=["H", "T", "B", "bound", "reached", "share"])


def peak_table(shares: pd.DataFrame, sizes: Sequence[int] = (64, 256, 512, 1024, 2048)) -> Markdown:
    """`peak_shares` at some sizes, a line a point."""
    some = shares[shares["H"].isin(sizes) & shares["B"].isin([1, 16, 64])].drop_duplicates(["H", "B"], keep="last")
    if some.empty:
        return Markdown(NO_PEAKS)
    lines = [(f"{s.H:,}", f"{s.B:,}", f"{s.T:,}", s.bound, s.reached, plots.percent(s.share))
             for s in some.sort_values(["B", "H"]).itertuples()]  # fmt: skip
    return _table(("H", "B", "T", "bound by", "reached, of the peak", "share"), lines)


def peak(frame: pd.DataFrame, shares: pd.DataFrame) -> Markdown:
    """How near serial/compiled comes to the machine's measured peak."""
    many = shares[(shares["bound"] == "arithmetic") & (shares["H"] >= 128)]
    one = shares[(shares["bound"] != "arithmetic") & (shares["H"] >= 128)]
    said = lambda s: f"H = {s.H:,}, B = {s.B:,} ({plots.percent(s.share)})"  # noqa: E731
    fared = [
        outcome("from 16 sequences and H = 128 on, at least 75% of the arithmetic peak",
               {said(s): s.share >= 0.75 for s in many.itertuples()}),
        outcome("one sequence, from H = 128 on, at least 70% of what W's cache level gives",
               {said(s): s.share >= 0.7 for s in one.itertuples()}),
    ]  # fmt: skip
    if many.empty or one.empty:
        return say(NOT_MEASURED, *fared)
    return say(
        f"{_where(frame)}, serial/compiled reaches, in the median from H = 128 on, "
        f"{plots.percent(many['share'].median())} of the core's measured arithmetic peak with 16 sequences or more, "
        f"and with one sequence {plots.percent(one['share'].median())} of what arithmetic and the cache level that "
        "holds W allow",
        *fared,
    )


# --- chapter 03: what meeting costs, and what sharing brings ---------------------------------------------------------

MEETINGS = {
    "barrier": "a barrier of flags",
    "counter_barrier": "a barrier with one counter",
    "launch": "a new parallel region",
    "python_launch": "starting Python threads",
}


def meeting_costs(name: str = "") -> dict[str, dict[int, float]]:
    """Seconds of a meeting by kind and number of threads, from a machine's peaks; empty where none were measured."""
    found = peaks(name)
    tables = {text: {int(n): s for n, s in found.get(key, {}).items() if int(n) > 1} for key, text in MEETINGS.items()}
    return {text: by for text, by in tables.items() if by}


def peaks_corner(name: str) -> str:
    """Which machine's peaks, and the day that they were measured."""
    return " · ".join(filter(None, [name, peaks(name).get("measured", "")]))


def step_times(frame: pd.DataFrame, sizes: Sequence[int] = (64, 256, 1024)) -> dict[str, float]:
    """Seconds of a step of serial/compiled at some H, by "H = 64"."""
    rows, fixed = plots.along(frame, "H", ["serial/compiled"])
    times = plots.medians(rows, ["H"])
    return {f"H = {H:,}": times[H].value / fixed["T"] for H in sizes if H in times}


def meetings(frame: pd.DataFrame, name: str) -> Markdown:
    """What it costs to meet, by kind, with all threads."""
    costs = meeting_costs(name)
    flags, counter, region, python = (costs.get(text, {}) for text in MEETINGS.values())
    most = max(flags, default=0)
    over = lambda a, b: {n: a[n] / b[n] for n in sorted(a) if n in b}  # noqa: E731
    fared = [
        _predicted("a new parallel region costs at least 5 barriers of flags", "threads", over(region, flags),
                   lambda r: r >= 5),
        _predicted("starting Python threads costs at least 5 parallel regions", "threads", over(python, region),
                   lambda r: r >= 5),
        _predicted("a counter is cheaper than flags for 2 threads", "threads", over(counter, flags), lambda r: r < 1,
                   most=2),
        _predicted("and dearer from 8 threads on", "threads", over(counter, flags), lambda r: r > 1, least=8),
    ]  # fmt: skip
    if not most:
        return say(NOT_MEASURED, *fared)
    others = [f"{text} {_times(by[most] / flags[most])} as much" for text, by in costs.items()
              if by is not flags and most in by]  # fmt: skip
    steps = step_times(frame)
    beside = f"; a whole step of serial/compiled takes {_listed(steps)}" if steps else ""
    return say(
        f"On {name}, with {most} threads, a barrier of flags costs {plots.duration(flags[most])}"
        f"{', ' if others else ''}{', '.join(others)}{beside}",
        *fared,
        *cautions(peaks(name)),
    )


def _listed(times: Mapping[str, float]) -> str:
    return ", ".join(f"{plots.duration(seconds)} at {where}" for where, seconds in times.items())


def rows_or_batch(frame: pd.DataFrame) -> Markdown:
    """From which B on sequences should be shared out rather than rows, at one H and over the map."""
    line, fixed = _ratios(frame, "B", "threads/batch", "threads/rows")
    table = plots.over_both(frame, ["threads/rows", "threads/batch"])
    times = plots.medians(table, ["H", "B", "method"])
    at: dict[int, dict[int, float]] = {}
    for (H, B, method), value in times.items():
        if method == "threads/batch" and (H, B, "threads/rows") in times:
            at.setdefault(H, {})[B] = times[H, B, "threads/rows"].value / value.value
    level = {H: {B: value / 0.97 for B, value in ratios.items()} for H, ratios in at.items()}
    from_on = {H: _stays_ahead(ratios) for H, ratios in level.items()}
    many = 8 * team_size(frame)
    large = {f"H = {H:,}, B = {B:,} ({_times(value)})": value > 0.97
             for H, ratios in at.items() for B, value in ratios.items() if many <= B}  # fmt: skip
    alone = {f"H = {H:,} ({_times(ratios[1])})": ratios[1] < 1 for H, ratios in at.items() if 1 in ratios and H >= 128}
    fared = [
        outcome("from 8 sequences a thread on, threads/batch is nowhere more than 3% behind", large),
        outcome("one sequence, from H = 128 on: threads/rows is ahead", alone),
    ]
    if not line:
        return say(NOT_MEASURED, *fared)
    found = plots.crossing(line)
    if found:
        cross = f"is level with threads/rows or ahead from about B = {plots.short(found)} on"
    elif line[max(line)] > 0.97:
        cross = f"is level with threads/rows or ahead from B = {min(line):,} on"
    else:
        cross = f"does not reach threads/rows up to B = {max(line):,}"
    where = ", ".join(f"{f'from B = {B:,} on' if B else 'never'} at H = {H:,}" for H, B in sorted(from_on.items()))
    mapped = f"; of the sizes in the map: {where}" if where else ""
    return say(f"{_where(frame)}, threads/batch {cross} ({fixed}){mapped}", *fared)


def pipeline_ideals(frame: pd.DataFrame) -> dict[str, dict[int, float]]:
    """What a pipeline could bring at most: all the work over its longest stage, and as many times as there are layers.

    The stages follow from serial/compiled alone: a further layer costs U x and the recurrence, and what one layer costs
    beyond that is the output. U x is taken to cost as much as the output, which is the same product.
    """
    rows, _ = plots.along(frame, "layers", ["serial/compiled"])
    times = {layers: value.value for layers, value in plots.medians(rows, ["layers"]).items()}
    if len(times) < 2 or 1 not in times:
        return {}
    layer = (times[max(times)] - times[1]) / (max(times) - 1)
    output = min(max(times[1] - layer, 0.0), layer / 2)
    longest = layer - output
    if longest <= 0:
        return {}
    return {
        "all work / longest stage": {layers: max(1.0, seconds / longest) for layers, seconds in times.items()},
        "layers": {layers: float(layers) for layers in times},
    }


def pipeline(frame: pd.DataFrame) -> Markdown:
    """How much of the ideal threads/wavefront reaches, by layers."""
    ratios, fixed = _ratios(frame, "layers", "threads/wavefront", "serial/compiled")
    threads, ideals = team_size(frame), pipeline_ideals(frame)
    most = {layers: min(threads, value) for layers, value in next(iter(ideals.values()), {}).items()}
    shares = {layers: ratios[layers] / most[layers] for layers in ratios if layers in most}
    outcomes = {f"{n} layer{'s' * (n > 1)} ({plots.percent(share)})": share >= 0.8 for n, share in shares.items()}
    fared = outcome("at least 80% of what the longest stage and the threads allow, with 1 layer as with more", outcomes)
    if not shares:
        return say(NOT_MEASURED, fared)
    parts = [f"{plots.percent(share)} with {n} layer{'s' * (n > 1)} ({plots.ratio(ratios[n])} of "
             f"{plots.ratio(most[n])} times)" for n, share in shares.items()]  # fmt: skip
    return say(
        f"{_where(frame)}, threads/wavefront on {threads} threads reaches, over serial/compiled, of what the longest "
        f"stage and the threads allow: {', '.join(parts)} ({fixed})",
        fared,
    )


def weight_peaks(frame: pd.DataFrame) -> dict[str, tuple[list[int], list[float]]]:
    """Bytes a second of W h alone, from the machine's peaks, as serial/compiled and as threads/rows share it."""
    rows, _ = plots.along(frame, "H", ["serial/compiled", "threads/rows"])
    costs = cost_model(frame["machine"].iloc[0]) if len(rows) else None
    if costs is None:
        return {}
    sizes, threads = sorted({int(H) for H in rows["H"] if H >= 32}), team_size(frame)
    shared = [-(-H // (threads * WIDTH)) * WIDTH for H in sizes]  # a thread's rows, in whole panels
    return {
        "serial/compiled": (sizes, [4 * H * H / costs.product(1, H, H) for H in sizes]),
        "threads/rows": (
            sizes,
            [4 * H * H / costs.product(1, mine, H, threads) for H, mine in zip(sizes, shared, strict=True)],
        ),
    }


def weights(frame: pd.DataFrame, name: str) -> Markdown:
    """How fast W is read, and what becomes of it where W leaves a cache."""
    rows, fixed = plots.along(frame, "H", ["serial/compiled", "threads/rows"])
    speeds: dict[str, dict[int, float]] = {}
    for (method, H), value in plots.medians(rows, ["method", "H"]).items():
        speeds.setdefault(method, {})[H] = 4e-9 * H * H * fixed["T"] / value.value
    one, many = speeds.get("serial/compiled", {}), speeds.get("threads/rows", {})
    threads, L2 = team_size(frame), caches(name).get("L2", 0)
    gain = {H: many[H] / one[H] for H in one if H in many}
    inside = {H: value for H, value in gain.items() if H >= 256 and 4 * H * H <= 0.75 * L2}
    between = {H: value for H, value in gain.items() if 0.75 * L2 < 4 * H * H <= 0.75 * threads * L2}
    falls = {H: one[H] / max(one.values()) for H in one if L2 and 4 * H * H > 2 * L2}
    fared = [
        _predicted("serial/compiled reads a W of more than twice its L2 at less than 85% of its best rate", "H", falls,
                   lambda r: r < 0.85),
        outcome("threads/rows gains most where W has left one core's L2 and not yet all threads'",
               {f"H = {H:,} ({_times(between[H])})": between[H] > max(inside.values()) for H in between if inside}),
    ]  # fmt: skip
    if not one or not many:
        return say(NOT_MEASURED, *fared)
    best = {method: max(by, key=by.__getitem__) for method, by in speeds.items()}
    last = {method: max(by) for method, by in speeds.items()}
    parts = [f"{method} reads W at up to {plots.short(speeds[method][best[method]])} GB/s (at H = {best[method]:,}) "
             f"and at {plots.short(speeds[method][last[method]])} at H = {last[method]:,}"
             for method in plots.in_order(speeds)]  # fmt: skip
    return say(f"{_where(frame)}, U x and V h included, {'; '.join(parts)} ({_fixed(fixed)})", *fared)


HALVED = ("serial/compiled", "threads/rows", "threads/batch", "threads/wavefront")  # have the option dtype="bfloat16"


def bfloat16_bits(batch: int = 8, steps: int = 500, methods: Sequence[str] = HALVED) -> pd.DataFrame:
    """Bits per character and error to the oracle with float32 and with bfloat16 weights, computed here and now."""
    rows = []
    x, targets = corpus.sequences(batch, steps)
    for network in corpus.models():
        net = corpus.load(network)
        wanted, _ = reference(net, x)
        for method in methods:
            row: dict[str, Any] = dict(method=method, network=network)
            for dtype in ("float32", "bfloat16"):
                with rnnpar.prepare(net, method, dtype=dtype) as run:
                    y, _ = run(x)
                row |= {dtype: corpus.bits_per_character(y, targets), f"error {dtype}": relative_error(y, wanted)}
            rows.append(row)
    return pd.DataFrame(rows)


def bfloat16_speed(
    sizes: Mapping[int, int] | None = None, methods: Sequence[str] = HALVED, rounds: int = 9
) -> dict[tuple[str, int], plots.Median]:
    """Speed-up of bfloat16 weights over float32, one sequence, by (method, H): interleaved rounds, here and now.

    `sizes` is the number of steps for each H.
    """
    found: dict[tuple[str, int], plots.Median] = {}
    rng = np.random.default_rng(0)
    for H, T in (sizes or {512: 64, 1024: 32, 2048: 16}).items():
        net = RNN.random(H, H, H, seed=0)
        x = rng.standard_normal((T, 1, H), dtype=np.float32)
        keys = [(method, dtype) for method in methods for dtype in ("float32", "bfloat16")]
        runs = {(method, dtype): rnnpar.prepare(net, method, dtype=dtype) for method, dtype in keys}
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
        for _ in range(rounds + 1):
            for index in rng.permutation(len(keys)):
                runs[keys[index]].timed(x)  # the ones before it have taken the caches
                seconds[keys[index]].append(runs[keys[index]].timed(x)[0])
        for run in runs.values():
            run.close()
        for method in methods:
            full, half = (plots.median(seconds[method, dtype][1:]) for dtype in ("float32", "bfloat16"))
            found[method, H] = full.over(half)
    return found


def bfloat16_table(bits: pd.DataFrame, speed: Mapping[tuple[str, int], plots.Median]) -> Markdown:
    """Both, a line a method: error, bits per character beside float32's, and speed-up over float32."""
    networks, sizes = list(dict.fromkeys(bits["network"])), sorted({H for _, H in speed})
    lines = []
    for method, group in bits.groupby("method", sort=False):
        cells = [f"{half:.4f} ({full:.4f})" for full, half in zip(group["float32"], group["bfloat16"], strict=True)]
        times = [speed.get((method, H)) for H in sizes]
        gains = [" to ".join(f"{plots.ratio(end)}×" for end in (t.low, t.high)) if t else "–" for t in times]
        half, full = (plots.short(1e6 * group[f"error {dtype}"].max()) for dtype in ("bfloat16", "float32"))
        lines.append((f"`{method}`", f"{half} ({full})", *cells, *gains))
    heads = ("method", "largest error, millionths", *networks, *(f"H = {H:,}" for H in sizes))
    return _table(heads, lines)


def bfloat16(bits: pd.DataFrame, speed: Mapping[tuple[str, int], plots.Median]) -> Markdown:
    """What half the bytes of W bring, and what they cost."""
    lost = (bits["bfloat16"] - bits["float32"]).abs()
    where = bits["method"] + " on " + bits["network"]
    L2, one = machine.caches().get("L2", 0), "serial/compiled"
    past = {H: value.value for (method, H), value in speed.items() if method == one and 4 * H * H > 2 * L2}
    worst_of = bits.groupby("network")["error bfloat16"].max()
    errors = {
        f"{network} ({plots.short(1e6 * value)} millionths)": value <= 2e-3 for network, value in worst_of.items()
    }
    fared = [
        outcome("an error of a thousandth or two", errors),
        outcome("no more than 0.01 bits lost", dict(zip(where, lost <= 0.01, strict=True))),
        _predicted("serial/compiled at least 1.4 times as fast where W is more than twice the core's L2", "H", past,
                   lambda r: r >= 1.4),
    ]  # fmt: skip
    gains = {key: value.value for key, value in speed.items()}
    if bits.empty or not gains:
        return say(NOT_MEASURED, *fared)
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    error = plots.short(1e6 * bits["error bfloat16"].max())
    return say(
        f"On {machine.name()}, here and now, bfloat16 weights are {_compared(gains[worst], 'float32')} in {worst[0]} "
        f"at H = {worst[1]:,} and {_times(gains[best])} in {best[0]} at H = {best[1]:,}, with one sequence; on the "
        f"trained networks they change the bits per character by at most {plots.short(1e3 * lost.max())} thousandths, "
        f"with errors up to {error} millionths",
        *fared,
    )


# --- chapter 08: which method? ---------------------------------------------------------------------------------------

SHAPE = ["workload", "H", "I", "O", "T", "B", "layers"]


def label(shape: Mapping[str, Any]) -> str:
    """A point in words: what differs from the plain case is named."""
    H, I, O = int(shape["H"]), int(shape["I"]), int(shape["O"])
    parts = [] if shape["workload"] == "random" else [str(shape["workload"])]
    parts += [f"H {H:,}"] + ([] if H == I == O else [f"I {I:,}", f"O {O:,}"])
    parts += [f"T {int(shape['T']):,}", f"B {int(shape['B']):,}"]
    return " ".join(parts + ([f"{int(shape['layers'])} layers"] if shape["layers"] > 1 else []))


def _work(shape: Mapping[str, Any]) -> model.Work:
    return model.Work(**{letter: int(shape[letter]) for letter in ("T", "B", "I", "H", "O", "layers")})


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a point and method of the sweep that has a time and a prediction: both in seconds a call."""
    by = [*SHAPE, "method", "threads"]
    columns = ["machine", "date", *by, "measured", "predicted"]
    rows = plots.steady(frame)
    costs = cost_model(frame["machine"].iloc[0]) if len(rows) else None
    if costs is None:
        return pd.DataFrame(columns=columns)
    found = []
    last = rows["date"].dropna().astype(str).max()
    for key, value in plots.medians(rows[(rows["T"] > 0) & (rows["B"] > 0)], by).items():
        shape = dict(zip(by, key, strict=True))
        seconds = costs.predict(shape["method"], _work(shape), int(shape["threads"]))
        if seconds > 0:  # NaN for a method that the model knows nothing of
            found.append(shape | dict(machine=frame["machine"].iloc[0], date=last, measured=value.value,
                                      predicted=seconds))  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def model_table(table: pd.DataFrame) -> Markdown:
    """How far off the predictions are, by method and over all."""
    if table.empty:
        return Markdown("No prediction to hold against a measurement: the peaks or the sweep are missing.")
    lines = []
    groups = [(name, table[table["method"] == name]) for name in plots.in_order(table["method"])]
    for name, group in [*groups, ("all", table)]:
        off = group["predicted"] / group["measured"]
        away = (off - 1).abs()
        worst = off.index[np.log(off).abs().argmax()]
        lines.append((
            f"`{name}`" if name != "all" else "**all**", f"{len(group):,}", plots.percent(away.median()),
            f"{plots.ratio(off.median())}×", plots.percent((away <= 0.25).mean()),
            f"{plots.ratio(off[worst])}× at {label(group.loc[worst])}",
        ))  # fmt: skip
    return _table(("method", "points", "median error", "median predicted / measured", "within 25%", "worst"), lines)


def model_error(table: pd.DataFrame, name: str = "") -> Markdown:
    """How well the cost model predicts what was measured."""
    away = (table["predicted"] / table["measured"] - 1).abs()
    medians = {method: float(away[table["method"] == method].median()) for method in plots.in_order(table["method"])}
    outcomes = {f"{method} ({plots.percent(error)})": error <= 0.25 for method, error in medians.items()}
    fared = outcome("for each method, half of the predictions are within 25% of the measurement", outcomes)
    rest = [fared, *(cautions(peaks(name)) if name else [])]
    if len(table) < 2:
        return say(NOT_MEASURED, *rest)
    best, worst = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    each = f", by method from {plots.percent(medians[best])} ({best}) to {plots.percent(medians[worst])} ({worst})"
    return say(
        f"{_where(table)}, the model is off by {plots.percent(away.median())} in the median over {len(table):,} points"
        f"{each if len(medians) > 1 else ''}",
        *rest,
    )


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a point: what auto picks there, the best measured method, and the time of each candidate over its time.

    All of them with all threads. `auto` is the time of the pick over the best one's; `sure` says whether the bootstrap
    intervals of the two lie apart.
    """
    columns = [*SHAPE, "pick", "best", "sure", "auto", *model.AUTO]
    drawn = plots.all_cores(plots.steady(frame))
    costs = cost_model(frame["machine"].iloc[0]) if len(drawn) else None
    if costs is None:
        return pd.DataFrame(columns=columns)
    threads, found = team_size(frame), []
    times: dict[tuple, dict[str, plots.Median]] = {}
    for (*shape, method), value in plots.medians(drawn, [*SHAPE, "method"]).items():
        times.setdefault(tuple(shape), {})[method] = value
    for key, here in times.items():
        shape = dict(zip(SHAPE, key, strict=True))
        able = model.AUTO if threads > 1 else model.AUTO[:1]
        if not shape["T"] or not shape["B"] or len(here) < 2:
            continue
        pick = min(able, key=lambda name: costs.predict(name, _work(shape), threads))
        best = min(here, key=lambda name: here[name].value)
        if pick not in here:
            continue
        over = {name: here[name].value / here[best].value if name in here else np.nan for name in model.AUTO}
        sure = pick != best and here[pick].low > here[best].high
        found.append(shape | dict(pick=pick, best=best, sure=sure, auto=over[pick]) | over)
    return pd.DataFrame(found, columns=columns)


def last_day(frame: pd.DataFrame) -> str:
    """The day of the last sample in a frame of results."""
    dates = frame["date"].dropna().astype(str)
    return dates.max()[:10] if len(dates) else ""


def ways(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `choices` that are times over the best one's, auto first."""
    return table[["auto", *model.AUTO]].astype(float)


def choice(frame: pd.DataFrame, table: pd.DataFrame) -> Markdown:
    """How often auto is right, and what it costs where it is wrong."""
    wrong = table[table["auto"] > 1.1]
    fared = outcome("auto is within 10% of the best method everywhere",
                   {f"{label(s)} ({_times(s['auto'])})": s["auto"] <= 1.1
                    for _, s in table.sort_values("auto", ascending=False).iterrows()})  # fmt: skip
    if table.empty:
        return say(NOT_MEASURED, fared)
    worst = table.loc[table["auto"].idxmax()]
    singles = {name: (table[name] <= 1.1).sum() for name in model.AUTO}
    single = max(singles, key=singles.__getitem__)
    loses = (
        f"its dearest choice, {worst['pick']} instead of {worst['best']} at {label(worst)}, takes "
        f"{_times(worst['auto'])} as long" if worst["auto"] > 1 else "it never picks another than the best"
    )  # fmt: skip
    return say(
        f"{_where(frame)}, auto is within 10% of the best measured method at "
        f"{plots.percent(1 - len(wrong) / len(table))} of {len(table):,} points and within 3% at "
        f"{plots.percent((table['auto'] <= 1.03).mean())}; {loses}; {single} for everything, the best single method, "
        f"is within 10% at {plots.percent(singles[single] / len(table))}",
        fared,
    )


def wrong_choices(table: pd.DataFrame, most: int = 8) -> Markdown:
    """The points at which auto loses most."""
    some = table[table["auto"] > 1.03].sort_values("auto", ascending=False).head(most)
    if some.empty:
        return Markdown("auto loses more than 3% nowhere." if len(table) else "Nothing was measured to choose from.")
    lines = [(label(s), s["pick"], s["best"], f"{plots.ratio(s['auto'])}×", "yes" if s["sure"] else "no")
             for _, s in some.iterrows()]  # fmt: skip
    return _table(("point", "auto picks", "fastest", "takes", "intervals apart"), lines)


def peer_results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its results beside the peers; another machine's where this has none, and a line says so."""
    chosen = name or machine.name()
    known = [other for other in store.machines() if (store.results_folder(other) / "peers.csv").exists()]
    if chosen in known:
        return chosen, store.load("peers", chosen)
    shown = f"What follows was measured on {known[0]}, not here." if known else "What follows is therefore empty."
    display(Markdown(f"Peers not measured on this machine ({chosen}): `make peers` does it. {shown}"))
    if known:
        return known[0], store.load("peers", known[0])
    return chosen, pd.DataFrame(columns=["machine", *store.COLUMNS])


def beside_peers(frame: pd.DataFrame, ours: str = "auto") -> pd.DataFrame:
    """A row a shape that has a time of ours and of a peer, the one where we fare worst first.

    label, ours (seconds a call), the method that ours was, best (peer), ratio (best over ours) with low and high, and
    a column a peer with its seconds. Of the numbers of threads, the largest.
    """
    rows = plots.steady(frame)
    rows = rows[rows["threads"] == rows["threads"].max()]
    peers = [name for name in plots.in_order(rows["method"]) if name.startswith("peers/")]
    columns = [*SHAPE, "label", "ours", "method", "best", "ratio", "low", "high", *peers]
    times: dict[tuple, dict[str, plots.Median]] = {}
    for (*shape, method), value in plots.medians(rows, [*SHAPE, "method"]).items():
        times.setdefault(tuple(shape), {})[method] = value
    said = rows[(rows["method"] == ours) & (rows["status"] == "ok")].groupby(SHAPE)["message"].last()
    found = []
    for key, here in times.items():
        there = [name for name in peers if name in here]
        if ours not in here or not there:
            continue
        shape = dict(zip(SHAPE, key, strict=True))
        best = min(there, key=lambda name: here[name].value)
        over = here[best].over(here[ours])
        found.append(shape | {name: here[name].value if name in here else np.nan for name in peers} | dict(
            label=label(shape), ours=here[ours].value, method=str(said.get(key, "")).split(";")[0] or ours, best=best,
            ratio=over.value, low=over.low, high=over.high))  # fmt: skip
    return pd.DataFrame(found, columns=columns).sort_values("ratio", kind="stable").reset_index(drop=True)


def peer_table(table: pd.DataFrame) -> Markdown:
    """Each peer's own column: its time over ours, and the geometric mean below."""
    peers = [name for name in table.columns if name.startswith("peers/")]
    if table.empty:
        return Markdown("No shape has both a peer's time and ours.")
    over = table[peers].div(table["ours"], axis=0)
    cell = lambda value: f"{plots.ratio(value)}×" if np.isfinite(value) else "–"  # noqa: E731
    lines = [(s["label"], s["method"], plots.short(1e6 * s["ours"] / s["T"]), *(cell(v) for v in over.loc[i]))
             for i, s in table.iterrows()]  # fmt: skip
    means = [cell(float(np.exp(np.log(over[name].dropna()).mean()))) if over[name].notna().any() else "–"
             for name in peers]  # fmt: skip
    return _table(("shape", "auto was", "µs a step", *(name.removeprefix("peers/") for name in peers)),
                  [*lines, ("**geometric mean**", "", "", *means)])  # fmt: skip


def peers(frame: pd.DataFrame, table: pd.DataFrame) -> Markdown:
    """How far ahead of the best peer auto is, and where it is worst."""
    ratios = table["ratio"]
    mean = float(np.exp(np.log(ratios.astype(float)).mean())) if len(ratios) else np.nan
    fared = [
        outcome("1.6 times as fast as the best peer in the geometric mean",
               {_times(mean): mean >= 1.6} if len(ratios) else {}),
        outcome("ahead of the best peer, by 5% or more, at every shape",
               {f"{s['label']} ({_times(s['ratio'])}, {s['best']})": s["ratio"] >= 1.05 for _, s in table.iterrows()}),
    ]  # fmt: skip
    if table.empty:
        return say(NOT_MEASURED, *fared)
    worst, threads = table.iloc[0], int(frame["threads"].max())
    return say(
        f"{_where(frame)}, on {threads} threads, auto is {_times(mean)} as fast as the best peer in the geometric mean "
        f"over {len(table)} shapes, and {_times(worst['ratio'])} as fast as {worst['best']} at the worst, "
        f"{worst['label']}",
        *fared,
    )


def behind(frame: pd.DataFrame, table: pd.DataFrame, name: str = "", within: float = 1.05) -> Markdown:
    """The shapes at which a peer is ahead, or less than 5% behind, each with how near the peak our arithmetic came.

    `frame` and `table`: as for `peers`; `name`: the machine, whose peaks say what the least time could be.
    """
    close = table[table["ratio"] < within]
    if close.empty:
        return Markdown("At no shape is a peer ahead, or less than 5% behind." if len(table) else "")
    found, threads = peaks(name), int(frame["threads"].max())
    lines = []
    for _, s in close.iterrows():
        noise = "" if s["high"] < 1 or s["ratio"] > 1 else " (within the noise)"
        lines.append(f"- {s['label']}: {s['best']} takes {_times(s['ratio'])} as long as auto, which was "
                     f"{s['method']}{noise}{_room(s, found, threads)}.")  # fmt: skip
    return Markdown("\n".join(["A peer is ahead here, or close behind:", "", *lines]))


def _room(shape: Mapping[str, Any], found: Mapping[str, Any], threads: int) -> str:
    """What share of the measured peak our arithmetic reached at a shape, and what that leaves to gain."""
    if not found:
        return ""
    share = sum(_work(shape).flops().values()) / (shape["ours"] * threads * arithmetic_peak(found))
    at = f". Our products ran at {plots.percent(share)} of this machine's peak of arithmetic"
    if share >= 0.75:
        return f"{at}: whoever multiplies well is nearly as fast"
    return f"{at}, which leaves room; why it is not used is not known yet"


def advice(H: int, T: int, B: int, I: int, O: int, layers: int = 1, name: str = "", threads: int = 0) -> Markdown:
    """The predicted time of each method at given sizes on a machine, what to take, and why."""
    costs, where, work = cost_model(name), name or machine.name(), model.Work(T=T, B=B, I=I, H=H, O=O, layers=layers)
    try:
        check_sizes(work)
        if costs is None:
            return Markdown(f"No advice: the peaks of {where} are not measured; `rnnpar.prepare(net)` measures them.")
        threads = threads or max(int(n) for n in costs.peaks["launch"])
        gpu = gpu_here(work) if where == machine.name() else None
        advised = advise(costs, work, threads, where, gpu)
    except ValueError as error:
        return Markdown(str(error))
    best = advised.seconds[advised.method]
    lines = [(f"`{method}`", plots.duration(value), plots.short(1e6 * value / T), f"{plots.ratio(value / best)}×")
             for method, value in advised.seconds.items()]  # fmt: skip
    table = _table(("method", "predicted time of a call", "µs a step", "over the advice"), lines).data
    told = [gpu.sentence] if gpu else []
    left_out = "\n".join(["Not considered:", "", *(f"- {line}" for line in advised.not_considered)])
    size = work if where == machine.name() else None
    return Markdown("\n\n".join([f"**{advised.sentence}**", advised.details, table, *told, left_out,
                                 *cautions(costs.peaks, size)]))  # fmt: skip
