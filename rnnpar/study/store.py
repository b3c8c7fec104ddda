"""Results: one file an experiment, in a folder a machine, and machine.json beside it.

    <data>/results/<machine>/<experiment>.jsonl     JSON Lines: a line a measurement, the fields of `Measurement`
    <data>/results/<machine>/machine.json           what machine.describe() says, and which experiments are complete

Files only grow. A measurement goes down in one write, so a kill leaves at most an unfinished last line, which the next
`append` cuts off. A point that was measured again stands in the file twice, and the newer measurement counts. A sweep
over machines stores each machine's measurements in that machine's folder.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnpar import machine, peaks
from rnnpar.study.corpus import data_folder

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows: two sweeps at once are not kept apart there
    fcntl = None

STATUSES = ("ok", "unsupported", "oom", "error", "inaccurate")


class ResultsError(RuntimeError):
    """Results cannot be read or written; the message says what, where, and what would do."""


@dataclass(frozen=True)
class Measurement:
    """One method at one shape: its first call, its samples, and what the oracle said of it."""

    point: str  # short hash of workload, method, sizes and threads
    workload: str
    method: str
    H: int
    I: int
    O: int
    T: int
    B: int
    layers: int
    threads: int
    first_call: float | None  # seconds, with preparing and compiling; None where there is none to tell
    seconds: dict[str, list[float]]  # of a call, one a sample: steady; transfer, on a GPU, from NumPy arrays to NumPy's
    error: float | None  # relative, to the float64 oracle; may be infinite or NaN
    status: str
    message: str
    source: str  # registry.Method.source_hash()
    revision: str
    date: str  # ISO 8601, UTC


FIELDS = {field.name: field.type for field in fields(Measurement)}


def results_folder(name: str | None = None) -> Path:
    """Where the results of the machine `name` lie; this machine's by default."""
    return data_folder() / "results" / (name or machine.name())


def machines() -> list[str]:
    """The machines that have results, sorted by name."""
    return sorted({file.parent.name for file in (data_folder() / "results").glob("*/*.jsonl")})


def has(experiment: str, name: str) -> bool:
    """Whether the machine `name` has a file of results of an experiment."""
    return _file(experiment, name).exists()


def append(measurements: Iterable[Measurement], experiment: str, name: str | None = None) -> None:
    """Add measurements to a machine's results of an experiment, in one write that reaches the disk.

    `name` is the machine that measured them, this one by default. A line that a kill left unfinished at the end of the
    file is cut off first, and said. ResultsError where the file cannot be written; nothing stored before is lost then.
    ValueError for what is no measurement.
    """
    path = _file(experiment, name or machine.name())
    data = "".join(map(_line, measurements)).encode()
    with _clear_errors(path), _locked(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _append_locked(descriptor, path, data)
        finally:
            os.close(descriptor)


_lengths: dict[Path, int] = {}  # files whose content up to this length this process has read or written


def _append_locked(descriptor: int, path: Path, data: bytes) -> None:
    before = path.read_bytes()
    length = before.rfind(b"\n") + 1
    if length < len(before):
        print(f"{path.name}: cut off the last {len(before) - length} bytes, a line left unfinished", file=sys.stderr)
        os.ftruncate(descriptor, length)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):  # if even this fails, the next append cuts it off
            os.ftruncate(descriptor, length)
        raise
    _lengths[path] = length + len(data)


def load(experiment: str, machine: str | Iterable[str] | None = None) -> pd.DataFrame:
    """The newest measurement of every point, as `frame` has them.

    `machine` is a name, several, or None for every machine that has this experiment. ResultsError where there is
    nothing, or where a file is corrupt: which line, why, and what would do.
    """
    import pandas as pd  # only readers need it: a machine that measures may be without

    if machine is None:
        names = [name for name in machines() if has(experiment, name)]
    else:
        names = [machine] if isinstance(machine, str) else list(machine)
    frames = [frame(newest(experiment, name).values(), name) for name in names]
    if not any(map(len, frames)):
        of = f" of {', '.join(names)}" if names else ""
        raise ResultsError(f"no results of {experiment!r}{of} under {data_folder() / 'results'}; `make sweep` measures")
    return pd.concat(frames, ignore_index=True)


def frame(measurements: Iterable[Measurement], name: str) -> pd.DataFrame:
    """A row a measurement and kind of sample: machine, kind, samples (seconds), and the other fields as they are."""
    import pandas as pd

    rows = []
    for measurement in measurements:
        for kind, seconds in (measurement.seconds or {"steady": []}).items():
            rows.append(vars(measurement) | {"machine": name, "kind": kind, "samples": np.array(seconds, float)})
    columns = ["machine", *FIELDS, "kind", "samples"]
    return pd.DataFrame(rows, columns=columns).drop(columns="seconds").astype({"first_call": float, "error": float})


def newest(experiment: str, name: str | None = None) -> dict[str, Measurement]:
    """The newest measurement of each point by the point's key; empty where nothing was measured yet.

    Of the machine `name`, this one by default. ResultsError for a corrupt file.
    """
    path = _file(experiment, name or machine.name())
    if not path.exists():
        return {}
    measurements, _lengths[path] = _scan(path)
    return {measurement.point: measurement for measurement in measurements}  # the file is in order of time


def grown(experiment: str) -> bool:
    """Whether another process has stored results of this machine since this one last read them all or stored some."""
    path = _file(experiment, machine.name())
    return path.exists() and path.stat().st_size != _lengths.get(path)


def save_machine(description: dict[str, Any], name: str | None = None) -> None:
    """Write a machine's machine.json, this one's by default; what update_machine added before is kept. ResultsError."""
    _change_machine(lambda known: known | description, name)


def update_machine(key: str, value: Any, name: str | None = None) -> None:
    """Set one key of a machine's machine.json; a mapping is merged into the one that is there. ResultsError."""
    both = isinstance(value, dict)
    _change_machine(lambda known: known | {key: known.get(key, {}) | value if both else value}, name)


def facts(file: Path) -> dict[str, Any]:
    """What peaks.json or mpi.json holds; empty where there is no such file. ResultsError where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} is damaged ({error}); delete it, and it is measured again") from None
    if not isinstance(found, dict):
        raise ResultsError(f"{file} is damaged (no mapping); delete it, and it is measured again")
    return found


def has_peaks(name: str) -> bool:
    """Whether the peaks of the machine `name` are here, and are what is measured today. ResultsError where damaged."""
    return facts(results_folder(name) / "peaks.json").get("version") == peaks.VERSION


def save_peaks(found: dict[str, Any], name: str) -> None:
    """Keep the peaks that the machine `name` has measured of itself. ResultsError."""
    path = results_folder(name) / "peaks.json"
    with _clear_errors(path), _locked(path.parent):
        _replace(path, json.dumps(found, indent=1) + "\n")


def load_machine(name: str) -> dict[str, Any]:
    """What machine.json says of the machine `name`. ResultsError where there is none, or a damaged one."""
    path = results_folder(name) / "machine.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(machines()) or "none"
        raise ResultsError(f"{path}: no such file; the machines with results are: {known}") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}; remove it, and `make sweep` on that machine writes it anew") from None
    if not isinstance(description, dict):
        raise ResultsError(f"{path}: holds no mapping; remove it, and `make sweep` on that machine writes it anew")
    return description


def tile(name: str = "") -> tuple[int, int]:
    """Columns and rows of a machine's register tile: this one's, or another's, by what NumPy found on it.

    Older versions of NumPy name each vector instruction, newer ones levels of them. A machine of which machine.json
    says nothing has the last tile of `choose_tile`.
    """
    from rnnpar.kernels.tile import TILE, choose_tile

    shape = TILE
    if name not in ("", machine.name()):
        known = load_machine(name) if (results_folder(name) / "machine.json").exists() else {}
        names = {"avx512f": {"X86_V4", "AVX512F"}, "avx2": {"X86_V3", "AVX2"}, "fma": {"X86_V3", "FMA3"}}
        found = {feature: bool(any_of & set(known.get("numpy_simd", []))) for feature, any_of in names.items()}
        shape = choose_tile(found, known.get("system", "").split(" ")[-1])
    return shape.lanes * shape.vectors, shape.rows


def check_writable(name: str | None = None) -> None:
    """ResultsError unless a machine's results (this one's by default) can be written: better known before a sweep."""
    folder = results_folder(name)
    with _clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        try:
            probe.write_text("as large as a row, so that a full disk shows\n" * 100)
        finally:
            with suppress(OSError):
                probe.unlink()


def _file(experiment: str, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", experiment):
        raise ValueError(f"experiment is {experiment!r}; it names a file: letters, digits, '-', '_' and '.'")
    return results_folder(name) / f"{experiment}.jsonl"


def _line(measurement: Measurement) -> str:
    """A measurement as one line of a file; seconds to 6 significant digits. ValueError for what is none."""
    values = asdict(measurement)
    first, error = measurement.first_call, measurement.error
    values["first_call"] = None if first is None else _digits(first, 6)
    values["seconds"] = {kind: [_digits(one, 6) for one in times] for kind, times in measurement.seconds.items()}
    # JSON has no word for NaN and infinity.
    values["error"] = error if error is None else _digits(error, 3) if math.isfinite(error) else str(error)
    values["message"] = " ".join(measurement.message.split())
    if fault := _fault(values):
        raise ValueError(f"the measurement of {measurement.method} {fault}")
    return json.dumps(values, ensure_ascii=False) + "\n"


def _digits(value: float, count: int) -> float:
    return float(f"{value:.{count}g}")


def _scan(path: Path) -> tuple[list[Measurement], int]:
    """The measurements in a file, and how long it is. What a kill left behind the last whole line is none of them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    lines = data.split(b"\n")[:-1]
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)], len(data)


def _parse(line: bytes, file: Path, number: int) -> Measurement:
    try:
        values = json.loads(line)
    except ValueError as error:  # text that is not UTF-8 is one too
        raise _corrupt(file, number, f"is no JSON ({error})") from None
    if fault := _fault(values):
        raise _corrupt(file, number, fault)
    if isinstance(values["error"], str):
        values["error"] = float(values["error"])
    return Measurement(**values)


def _fault(values: Any) -> str:
    """Why these are not the fields of a measurement; "" if they are."""
    if not isinstance(values, dict):
        return "is no mapping"
    if unlike := values.keys() ^ FIELDS.keys():
        name = min(unlike)
        return f"has {'an unknown' if name in values else 'no'} {name}"
    return next((f"has {value!r} as {name}" for name, value in values.items() if not _may_be(name, value)), "")


def _may_be(name: str, value: Any) -> bool:
    kind = FIELDS[name]
    if kind == "int":
        return type(value) is int and value >= 0
    if kind == "str":
        return isinstance(value, str) and (name != "status" or value in STATUSES)
    if kind == "float | None":
        return value is None or _is_time(value) or (name == "error" and value in ("nan", "inf"))
    return isinstance(value, dict) and all(isinstance(times, list) and all(map(_is_time, times))
                                           for times in value.values())  # fmt: skip


def _is_time(value: Any) -> bool:
    """Whether it is a number, not negative, and neither infinite nor NaN."""
    return isinstance(value, int | float) and 0 <= value < math.inf


def _corrupt(file: Path | str, line: int, what: str) -> ResultsError:
    return ResultsError(
        f"{file}, line {line}: {what}; nothing was changed: mend or delete that line, "
        "take the file back from git, or move it away and measure again"
    )


def _change_machine(change: Any, name: str | None) -> None:
    name = name or machine.name()
    path = results_folder(name) / "machine.json"
    with _clear_errors(path), _locked(path.parent):
        known = load_machine(name) if path.exists() else {}
        _replace(path, json.dumps(change(known), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder (made if it is missing) against other processes; a killed process's hold ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of `path` into one line that also says what would do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG)
        advice = "free some space" if full else "make the folder writable, or let RNNPAR_DATA name another data folder"
        why = error.strerror or str(error)
        raise ResultsError(f"cannot write {path}: {why}; nothing stored is lost: {advice}, and run it again") from None
