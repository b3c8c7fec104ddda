"""What the chapters say in words: tables, small live runs, and verdicts computed from the results.

A verdict is one bold sentence that the data makes, so that it is true on whichever machine it is read; it names its
baseline. Below it stand the predictions that the chapter made before measuring, each with how it fared.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from rnnpar import machine, model, registry
from rnnpar.peaks import VERSION as PEAKS_VERSION
from rnnpar.study import measure, plots, store
from rnnpar.study.cores import FEW, FEWEST
from rnnpar.work import Work

EXPERIMENT = "sweep"
SHAPE = ["workload", "H", "I", "O", "T", "B", "layers"]  # what a point's sizes are called in the results


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


def last_day(frame: pd.DataFrame) -> str:
    """The day of the last sample in a frame of results."""
    dates = frame["date"].dropna().astype(str)
    return dates.max()[:10] if len(dates) else ""


def label(shape: Mapping[str, Any]) -> str:
    """A point in words: what differs from the plain case is named."""
    H, I, O = int(shape["H"]), int(shape["I"]), int(shape["O"])
    parts = [] if shape["workload"] == "random" else [str(shape["workload"])]
    parts += [f"H {H:,}"] + ([] if H == I == O else [f"I {I:,}", f"O {O:,}"])
    parts += [f"T {int(shape['T']):,}", f"B {int(shape['B']):,}"]
    return " ".join(parts + ([f"{int(shape['layers'])} layers"] if shape["layers"] > 1 else []))


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


def peaks_corner(name: str) -> str:
    """Which machine's peaks, and the day that they were measured."""
    return " · ".join(filter(None, [name, peaks(name).get("measured", "")]))


def cost_model(name: str = "") -> model.Model | None:
    """The cost model on a machine's peaks; None where they have not been measured."""
    found = peaks(name)
    return model.Model(found, *store.tile(name)) if found else None


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
        if few := frame.loc[frame["message"].str.contains(FEW, regex=False), "point"].nunique():
            parts.append(f"Of {few} of its {frame['point'].nunique():,} measurements fewer than {FEWEST} samples "
                         "are from whole cores (`rnnpar/study/cores.py`): all count there.")  # fmt: skip
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


def gpu_words(gpu: Mapping[str, Any]) -> str:
    """A GPU as machine.json describes it, in a line."""
    if not gpu:
        return "none"
    parts = [gpu["name"], f"driver {gpu['driver']}"]
    parts += [as_bytes(gpu["memory_bytes"])] if "memory_bytes" in gpu else []
    return ", ".join(parts)


def table_of(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    lines = [heads, ["---"] * len(heads), *rows]
    return Markdown(
        "\n".join("| " + " | ".join(str(field).replace("|", "/") for field in line) + " |" for line in lines)
    )


def as_bytes(count: float) -> str:
    """2048 -> 2 KB; 36700160 -> 35 MB."""
    power = 0
    while count >= 1024 and power < 3:
        count, power = count / 1024, power + 1
    return f"{count:,.0f} {UNITS[power]}" if count >= 100 or count == int(count) else f"{count:.3g} {UNITS[power]}"


UNITS = ("B", "KB", "MB", "GB")


# --- what the model says ---------------------------------------------------------------------------------------------


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
        works = [Work(T=s["T"], B=s["B"], I=s["H"], H=s["H"], O=s["H"]) for s in shapes]
        seconds = [costs.predict(method, work, int(threads)) / work.T for work in works]
        if np.isfinite(seconds).all():
            lines[method] = sizes, seconds
    return lines


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


def fared_at(prediction: str, letter: str, ratios: Mapping[int, float], holds: Callable[[float], bool],
               least: int = 0, most: float = np.inf) -> str:  # fmt: skip
    """A prediction about speed-ups at the sizes from `least` to `most`, and how it fared."""
    tried = {size: value for size, value in sorted(ratios.items()) if least <= size <= most}
    return outcome(
        prediction, {f"{letter} = {size:,} ({as_times(value)})": holds(value) for size, value in tried.items()}
    )


def as_times(value: float) -> str:
    return f"{plots.ratio(value)} times"


def compared_with(value: float, other: str) -> str:
    """A speed-up in words; below 1 the method is the slower one."""
    return f"as fast as {other}" if 0.97 <= value <= 1.03 else f"{as_times(value)} as fast as {other}"


def fixed_sizes(letters: Mapping[str, int]) -> str:
    return ", ".join(f"{letter} = {value:,}" for letter, value in letters.items()) + ", I = O = H"


def ratios_of(frame: pd.DataFrame, axis: str, method: str, over: str) -> tuple[dict[int, float], str]:
    """Speed-ups of a method over another along an axis, and what is held fixed."""
    rows, fixed = plots.along(frame, axis, [method, over])
    times = plots.medians(rows, ["method", axis])
    sizes = [size for name, size in times if name == method and (over, size) in times]
    return {size: times[over, size].value / times[method, size].value for size in sizes}, fixed_sizes(fixed)


def costs_of(frame: pd.DataFrame, axis: str) -> tuple[dict[str, dict[int, float]], str]:
    """Microseconds a step, of one sequence, by serial method along T or B, and what is held fixed."""
    rows, fixed = plots.along(frame, axis, family("serial"))
    costs: dict[str, dict[int, float]] = {}
    for (method, T, B), value in plots.medians(rows, ["method", "T", "B"]).items():
        costs.setdefault(method, {})[T if axis == "T" else B] = 1e6 * value.value / (T * B)
    return costs, fixed_sizes(fixed)


def on(frame: pd.DataFrame) -> str:
    return f"On {frame['machine'].iloc[0]}"


def team_size(frame: pd.DataFrame) -> int:
    """The largest number of threads that the threaded methods were measured with."""
    counts = frame.loc[frame["method"].str.startswith("threads/"), "threads"]
    return int(counts.max()) if len(counts) else 1
