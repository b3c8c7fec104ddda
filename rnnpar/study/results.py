"""Results as one tidy table: a row a measurement, the same columns for every experiment and every machine.

    runs = results.load(machine)                          # of the sweep; "mpi", "in_time", "peers" and "gpu" likewise
    one = results.pick(runs, "serial", T=128, B=1)        # those with T = 128 and B = 1, square, one layer
    one = results.with_predictions(one)                   # the same rows once more, as the cost model has them
    gain = results.speed_up(one, over="serial/naive")     # a column more, with its interval

`seconds` is the median of a call, `seconds_low` and `seconds_high` its 95% bootstrap interval, `us_per_step` the same
in microseconds over T. A point that has no time keeps its row: `status` says why, and its times are NaN. `code` is the
hash of the method's source that ran.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from rnnpar import machine, model, registry
from rnnpar.peaks import VERSION as PEAKS_VERSION
from rnnpar.study import measure, store
from rnnpar.study.cores import FEW, FEWEST
from rnnpar.words import did_you_mean
from rnnpar.work import Work

REFERENCE = "amd-epyc-znver5-2c-e3a5"  # whose results a machine without its own shows
SHOWS = {"04": "gpu", "05": "gpu", "06": "mpi", "07": "in_time", "09": "own"}  # a chapter's experiment, else the sweep
SHAPE = ["workload", "H", "I", "O", "T", "B", "layers"]
KEY = ["machine", "experiment", *SHAPE, "method", "threads", "kind"]  # what tells one measurement from all others
TIMES = ["seconds", "seconds_low", "seconds_high", "us_per_step", "us_per_step_low", "us_per_step_high"]
COLUMNS = [*KEY, "source", *TIMES, "first_call", "error", "status", "message", "date", "code", "samples"]
INTEGERS = ["H", "I", "O", "T", "B", "layers", "threads"]
EMPTY = pd.DataFrame(columns=COLUMNS).astype(
    {column: "int64" if column in INTEGERS else "float64" if column in [*TIMES, "first_call", "error"] else object if
     column == "samples" else "str" for column in COLUMNS})  # fmt: skip
DRAWS = 400  # of the bootstrap


# --- loading ---------------------------------------------------------------------------------------------------------


def where(name: str = "", experiment: str = "sweep") -> str:
    """The machine whose results a chapter shows: the one named, else this one if it has some, else the reference's.

    Where that has none either, the first that has; this machine where none has. store.ResultsError for a machine that
    nothing is known of.
    """
    known = store.machines()
    if name and name not in known and name != drawn_for():
        raise store.ResultsError(f"no results of a machine {name!r}{did_you_mean(name, known)}; "
                                 f"there are {', '.join(known) or 'none'}")  # fmt: skip
    having = [other for other in known if store.has(experiment, other)]
    wanted = name or drawn_for()
    return next((one for one in (wanted, REFERENCE, *having) if one in having), wanted)


def drawn_for() -> str:
    """The machine whose figures are drawn: RNNPAR_MACHINE, which `figures --machine` sets, or this one."""
    return os.environ.get("RNNPAR_MACHINE") or machine.name()


def load(name: str = "", experiment: str = "sweep") -> pd.DataFrame:
    """The measurements of an experiment on the machine that `where` chooses: a row each, the columns of COLUMNS.

    Empty, with all columns, where there are none. store.ResultsError for a corrupt file.
    """
    chosen = where(name, experiment)
    if not store.has(experiment, chosen):
        return EMPTY.copy()
    return table(store.load(experiment, chosen), experiment)


def live(methods: Sequence[str], H: int, T: int = 128, B: int = 1, **options: Any) -> pd.DataFrame:
    """Time some methods here and now on random weights, in turns, each held against the oracle: a row each.

    `options` are those of every method that takes them; `threads` is by default the cores allowed, but for ranks.
    """
    point, cases = measure.Point("random", H, H, H, T, B), []
    for name in methods:
        takes = registry.find(name).options()
        shared = {} if "ranks" in takes else {"threads": machine.cores_allowed()}  # a rank has one thread
        cases.append((name, {key: value for key, value in (shared | options).items() if key in takes}))
    timed = measure.measure_group(point, cases, 7, 0.2, np.random.default_rng(0))
    return table(store.frame(timed, machine.name()), "live")


def table(measurements: pd.DataFrame, experiment: str = "sweep") -> pd.DataFrame:
    """Measurements, as store.frame has them, with their medians and intervals: the columns of COLUMNS.

    Where the status is not ok, there is no time to tell: its samples are left out.
    """
    good = measurements["status"] == "ok"
    samples = [times[times > 0] if ok else times[:0] for times, ok in zip(measurements["samples"], good, strict=True)]
    ends = [np.quantile(bootstrap(times), [0.025, 0.975]) for times in samples]
    medians = measurements.rename(columns={"source": "code"}).assign(
        experiment=experiment, source="measured", samples=samples,
        seconds=[np.median(times) if len(times) else np.nan for times in samples],
        seconds_low=[low for low, _ in ends], seconds_high=[high for _, high in ends],
    )  # fmt: skip
    return per_step(medians)[COLUMNS].sort_values([*SHAPE, "method", "threads"], ignore_index=True)


def bootstrap(samples: np.ndarray) -> np.ndarray:
    """Medians (DRAWS,) of samples drawn from these; the draws are always the same. NaN where there is no sample."""
    if not len(samples):
        return np.full(DRAWS, np.nan)
    return np.median(samples[np.random.default_rng(0).integers(0, len(samples), (DRAWS, len(samples)))], axis=1)


def per_step(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the times of a call also as microseconds a step."""
    ends = ("", "_low", "_high")
    return table.assign(**{f"us_per_step{end}": 1e6 * table[f"seconds{end}"] / table["T"] for end in ends})


def numbers(runs: pd.DataFrame) -> pd.DataFrame:
    """The table, and a column for each number that the messages name, as in `iterations=4 exponent=-0.62`."""
    found = runs["message"].str.extractall(r"(?P<name>\w+)=(?P<value>-?inf|-?[\d.]+(?:e[+-]?\d+)?)")
    wide = found.droplevel("match").set_index("name", append=True)["value"].astype(float).unstack()
    return runs.join(wide[[name for name in wide if name not in runs]])


# --- picking, comparing, predicting ----------------------------------------------------------------------------------


def pick(runs: pd.DataFrame, methods: str | Sequence[str] = "", layers: int | None = 1, threads: int | str = "most",
         **sizes: Any) -> pd.DataFrame:  # fmt: skip
    """The rows with these values: pick(runs, "threads", B=1, T=128), or a list of values for one of them.

    `methods` is a backend, a method, or a list of methods. Unless I, O or workload is named: random weights, I = O = H.
    `layers` None takes any number of them. `threads` is a number, "most", of each method's, or "each". ValueError for
    a column that is not there.
    """
    for column in sizes:
        if column not in runs:
            raise ValueError(f"no column {column!r}{did_you_mean(column, runs.columns)}; there are {', '.join(runs)}")
    if methods:
        one = isinstance(methods, str)
        runs = runs[runs["method"].str.startswith(f"{methods}/") | (runs["method"] == methods) if one else
                    runs["method"].isin(methods)]  # fmt: skip
    if not {"I", "O", "workload"} & set(sizes):
        runs = runs[(runs["workload"] == "random") & (runs["H"] == runs["I"]) & (runs["H"] == runs["O"])]
    sizes |= {} if layers is None else {"layers": layers}
    sizes |= {} if isinstance(threads, str) else {"threads": threads}
    for column, value in sizes.items():
        runs = runs[runs[column].isin(list(value) if isinstance(value, list | tuple | set | range) else [value])]
    if threads == "most":
        runs = runs[runs["threads"] == runs.groupby("method")["threads"].transform("max")]
    return runs


def series(runs: pd.DataFrame, by: str | list[str], value: str, method: str = "") -> pd.Series:
    """A column over one or more others, in their order: series(gain, "H", "speed_up", "threads/rows").loc[256:]."""
    rows = runs[runs["method"] == method] if method else runs
    return rows.dropna(subset=value).set_index(by)[value].sort_index()


def speed_up(runs: pd.DataFrame, over: str | Mapping[str, Any]) -> pd.DataFrame:
    """How many times as fast as a baseline each row is: columns speed_up, speed_up_low and speed_up_high.

    `over` is a method, or the values that make the baseline of a row that is equal otherwise: {"threads": 1}. The
    baseline's own rows, and those that have none, are left out. The interval is the bootstrap's, of the quotient.
    """
    fixed = {"method": over} if isinstance(over, str) else dict(over)
    free = {*fixed, *({"threads"} if "method" in fixed else ())}
    same = [column for column in [*KEY, "source"] if column not in free]
    is_base = np.logical_and.reduce([runs[column] == value for column, value in fixed.items()])
    base = runs[is_base].drop_duplicates(same, keep="last")[[*same, "seconds", "samples"]]
    both = runs[~is_base].merge(base, on=same, suffixes=("", "_base"))
    # The divisor's draws are reversed, so that equal seeds do not pair equal draws.
    quotients = [bootstrap(base) / bootstrap(mine)[::-1] for base, mine in
                 zip(both["samples_base"], both["samples"], strict=True)]  # fmt: skip
    both["speed_up"] = both["seconds_base"] / both["seconds"]
    for end, share in (("low", 0.025), ("high", 0.975)):
        both[f"speed_up_{end}"] = np.array([np.quantile(draws, share) for draws in quotients], float)
    return both.drop(columns=["seconds_base", "samples_base"])


def with_predictions(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows, and one for each that the cost model can predict, with `source` "predicted" and no interval."""
    return pd.concat([runs, predicted(runs)], ignore_index=True)


def predicted(runs: pd.DataFrame) -> pd.DataFrame:
    """What the cost model says of each row, from the peaks of the row's machine; empty without measured peaks."""
    models = {name: cost_model(name) for name in runs["machine"].unique()}
    seconds = [models[row.machine].predict(row.method, work(row), int(row.threads)) if models[row.machine] else np.nan
               for row in runs.itertuples()]  # fmt: skip
    nothing = dict(seconds_low=np.nan, seconds_high=np.nan, error=np.nan, status="ok", message="")
    rows = runs.assign(
        seconds=np.array(seconds, float), source="predicted", samples=[np.empty(0)] * len(runs), **nothing
    )
    return per_step(rows[np.isfinite(rows["seconds"])])


def work(row: Any) -> Work:
    """A row's sizes as the cost model takes them."""
    return Work(**{letter: int(getattr(row, letter)) for letter in ("T", "B", "I", "H", "O", "layers")})


def label(row: Mapping[str, Any]) -> str:
    """A shape in words, as "H 512 T 64 B 4 2 layers": what differs from the plain case is named."""
    square = row["H"] == row["I"] == row["O"]
    parts = [row["workload"] if row["workload"] != "random" else "", f"H {row['H']:,}",
             "" if square else f"I {row['I']:,} O {row['O']:,}", f"T {row['T']:,} B {row['B']:,}",
             f"{row['layers']} layers" if row["layers"] > 1 else ""]  # fmt: skip
    return " ".join(filter(None, parts))


def beside(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a measurement with its `predicted` seconds beside the measured ones; those without both are left out."""
    known = predicted(runs)[[*KEY, "seconds"]].rename(columns={"seconds": "predicted"})
    return runs.dropna(subset="seconds").merge(known, on=KEY)


# --- machines --------------------------------------------------------------------------------------------------------


def peaks(name: str = "") -> dict[str, Any]:
    """A machine's measured peaks (what they are: rnnpar/peaks.py), this one's by default; empty without any."""
    here = name in ("", machine.name())
    found = store.facts((machine.folder() if here else store.results_folder(name)) / "peaks.json")
    return found if found.get("version") == PEAKS_VERSION else {}


def cost_model(name: str = "") -> model.Model | None:
    """The cost model on a machine's peaks, with that machine's own tile; None where no peaks have been measured."""
    found = peaks(name)
    return model.Model(found, *store.tile(name)) if found else None


def caches(name: str = "") -> dict[str, int]:
    """Bytes of each data cache of a machine's core, {"L1": ..., "L2": ..., "L3": ...}; empty where unknown."""
    try:
        return store.load_machine(name or machine.name()).get("caches", {})
    except store.ResultsError:
        return machine.caches() if name in ("", machine.name()) else {}


def banner(*tables: pd.DataFrame, here: str = "") -> Markdown:
    """What was measured where and when, a line a table; and `here`, what is computed while the page runs."""
    lines = [_measured_where(runs) for runs in tables if len(runs)]
    if len(lines) < len(tables) or any((runs["machine"] != drawn_for()).any() for runs in tables):
        lines.insert(0, f"`{drawn_for()}` has not measured this, or not all of it: `make help` says what measures it.")
    if here:
        lines.append(f"Computed while this page ran, on `{machine.name()}`: {here}.")
    return Markdown("  \n".join(lines))


def _measured_where(runs: pd.DataFrame) -> str:
    name, experiment = runs["machine"].iloc[0], runs["experiment"].iloc[0]
    days = sorted({str(date)[:10] for date in runs["date"].dropna()})
    when = f"from {days[0]} to {days[-1]}" if len(days) > 1 else f"on {days[0]}" if days else ""
    known = (store.results_folder(name) / "machine.json").exists()
    about = store.load_machine(name) if known else {}
    parts = [
        about.get("cpu", ""),
        f"{about['cores_allowed']} cores" if "cores_allowed" in about else "",
        (about.get("gpu") or {}).get("name", ""),
    ]
    words = ", ".join(part for part in parts if part)
    said = (f"{experiment}: measured on `{name}`{f' ({words})' if words else ''} {when}, "
            f"{len(runs):,} measurements of {runs['method'].nunique()} methods.")  # fmt: skip
    few = runs["message"].str.contains(FEW, regex=False).sum()
    return said + (f" In {few} of them fewer than {FEWEST} samples are from whole cores "
                   "(`rnnpar/study/cores.py`): all count there." if few else "")  # fmt: skip


def methods_of(backend: str) -> list[str]:
    """The names of a backend's methods, from plain to clever."""
    return [method.name for method in registry.methods() if method.backend == backend]
