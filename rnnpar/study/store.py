"""Results: one CSV an experiment, in a folder a machine, and machine.json beside it.

    <data>/results/<machine>/<experiment>.csv       one row a timed sample; the fields of `Row` are the columns
    <data>/results/<machine>/machine.json           what machine.describe() says, and the peaks that were measured

Files only grow. All rows of a shape go down in one write, so a kill leaves at most one point incomplete, at the end
of the file, where the next `append` cuts it off. A point that was measured again stands in the file twice, and `load`
takes the newer measurement. A sweep over machines stores each machine's rows in that machine's folder.
"""

from __future__ import annotations

import csv
import errno
import io
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

from rnnpar import machine, peaks
from rnnpar.study.corpus import data_folder

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows: two sweeps at once are not kept apart there
    fcntl = None

KINDS = ("steady", "compile", "transfer")
STATUSES = ("ok", "unsupported", "oom", "error", "inaccurate")


class ResultsError(RuntimeError):
    """Results cannot be read or written; the message says what, where, and what would do."""


@dataclass(frozen=True)
class Row:
    """One timed sample. A measurement of a point is `samples` rows in a row, `sample` counting from 0."""

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
    sample: int
    samples: int
    seconds: float | None  # of one call; None where there is no time to tell
    kind: str  # compile, the first call; steady; transfer, on a GPU: a call from NumPy arrays, with its copies
    error: float | None  # relative, to the float64 oracle
    status: str
    message: str
    source: str  # registry.Method.source_hash()
    revision: str
    date: str  # ISO 8601, UTC


Measurement = list[Row]
COLUMNS = [field.name for field in fields(Row)]
_TYPES = {field.name: field.type for field in fields(Row)}
_HEADER = ",".join(COLUMNS)


def results_folder(name: str | None = None) -> Path:
    """Where the results of the machine `name` lie; this machine's by default."""
    return data_folder() / "results" / (name or machine.name())


def machines() -> list[str]:
    """The machines that have results, sorted by name."""
    return sorted({file.parent.name for file in (data_folder() / "results").glob("*/*.csv")})


def has(experiment: str, name: str) -> bool:
    """Whether the machine `name` has a file of results of an experiment."""
    return _file(experiment, name).exists()


def append(rows: Iterable[Row], experiment: str, name: str | None = None) -> None:
    """Add whole measurements to a machine's results of an experiment, in one write that reaches the disk.

    `name` is the machine that measured them, this one by default. What a kill left incomplete at the end of the file
    is cut off first, and said. ResultsError where the file is corrupt or cannot be written; nothing stored before is
    lost then. ValueError for rows that are no measurements.
    """
    path = _file(experiment, name or machine.name())
    text = "".join(map(_line, rows))
    _, incomplete = _measurements(text.split("\n")[:-1], "the rows given", first=1)
    if incomplete:
        raise ValueError(f"the rows of point {incomplete[0].point} are {len(incomplete)} of {incomplete[0].samples}")
    with _clear_errors(path), _locked(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _append_locked(descriptor, path, text)
        finally:
            os.close(descriptor)


_lengths: dict[Path, int] = {}  # files whose content up to this length this process has read, checked or written


def _append_locked(descriptor: int, path: Path, text: str) -> None:
    length = os.fstat(descriptor).st_size
    if length and _lengths.get(path) != length:
        _, intact = _scan(path)
        if intact < length:
            print(f"{path.name}: cut off the last {length - intact} bytes, a point left incomplete", file=sys.stderr)
            os.ftruncate(descriptor, intact)
            length = intact
    data = (text if length else f"{_HEADER}\n{text}").encode()
    os.lseek(descriptor, length, os.SEEK_SET)
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
    """The newest complete measurement of every point: a column a field of `Row`, and `machine` before them.

    `machine` is a name, several, or None for every machine that has this experiment. ResultsError where there is
    nothing, or where a file is corrupt: which line, why, and what would do.
    """
    import pandas as pd  # only readers need it: a machine that measures may be without

    if machine is None:
        names = [name for name in machines() if _file(experiment, name).exists()]
    else:
        names = [machine] if isinstance(machine, str) else list(machine)
    frames = [_frame(newest(experiment, name).values(), name) for name in names]
    if not any(map(len, frames)):
        of = f" of {', '.join(names)}" if names else ""
        raise ResultsError(f"no results of {experiment!r}{of} under {data_folder() / 'results'}; `make sweep` measures")
    return pd.concat(frames, ignore_index=True)


def newest(experiment: str, name: str | None = None) -> dict[str, Measurement]:
    """The newest complete measurement of each point by the point's key; empty where nothing was measured yet.

    Of the machine `name`, this one by default. ResultsError for a corrupt file.
    """
    path = _file(experiment, name or machine.name())
    if not path.exists():
        return {}
    measurements, _lengths[path] = _scan(path)
    return {measurement[0].point: measurement for measurement in measurements}  # the file is in order of time


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
    return results_folder(name) / f"{experiment}.csv"


def _frame(measurements: Iterable[Measurement], name: str) -> pd.DataFrame:
    import pandas as pd

    rows = [row for measurement in measurements for row in measurement]
    columns = {column: [getattr(row, column) for row in rows] for column in COLUMNS}
    frame = pd.DataFrame(columns).astype({"seconds": float, "error": float})
    frame.insert(0, "machine", name)
    return frame


def _line(row: Row) -> str:
    """A row as one line of the file; seconds to 6 significant digits."""
    values = asdict(row)
    values["seconds"] = "" if row.seconds is None else f"{row.seconds:.6g}"
    values["error"] = "" if row.error is None else f"{row.error:.3g}"
    values["message"] = " ".join(row.message.split())
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values.values())
    return out.getvalue()


def _scan(path: Path) -> tuple[list[Measurement], int]:
    """The complete measurements in a file, and how many bytes they fill: what is behind them a kill left there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    whole = data[: data.rfind(b"\n") + 1]
    try:
        lines = whole.decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        raise _corrupt(path, line, "is no text in UTF-8") from None
    if not lines and f"{_HEADER}\n".encode().startswith(data):
        return [], 0
    if not lines or lines[0] != _HEADER:
        raise _corrupt(path, 1, f"is not the header {','.join(COLUMNS[:3])},...,{COLUMNS[-1]}")
    measurements, incomplete = _measurements(lines[1:], path, first=2)
    tail = lines[len(lines) - len(incomplete) :]
    return measurements, len(whole) - sum(len(line.encode()) + 1 for line in tail)


def _measurements(lines: list[str], file: Path | str, first: int) -> tuple[list[Measurement], Measurement]:
    """Lines as measurements, and the rows of a last one that is incomplete. `first` is the number of lines[0]."""
    measurements, current = [], []
    for number, line in enumerate(lines, first):
        row = _parse(line, file, number)
        found = (row.point, row.samples, row.sample)
        due = (current[0].point, current[0].samples, len(current)) if current else (row.point, row.samples, 0)
        if found != due:
            is_here, belongs = ("sample {2} of {1} of point {0}".format(*place) for place in (found, due))
            raise _corrupt(file, number, f"is {is_here} where {belongs} belongs")
        current.append(row)
        if len(current) == row.samples:
            measurements.append(current)
            current = []
    return measurements, current


def _parse(line: str, file: Path | str, number: int) -> Row:
    try:
        values = next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise _corrupt(file, number, f"is no CSV ({error})") from None
    if len(values) != len(COLUMNS):
        raise _corrupt(file, number, f"has {len(values)} fields, not {len(COLUMNS)}")
    parsed = {}
    for column, value in zip(COLUMNS, values, strict=True):
        try:
            parsed[column] = _value(column, value)
        except ValueError:
            raise _corrupt(file, number, f"has {value!r} as {column}") from None
    return Row(**parsed)


def _value(column: str, text: str) -> Any:
    """A field's value. ValueError where the text cannot be one."""
    kind = _TYPES[column]
    if kind == "int":
        value = int(text)
        if value < (column == "samples"):
            raise ValueError
        return value
    if kind == "float | None":
        value = float(text) if text else None
        # An error may be infinite or NaN (that is what makes a method inaccurate); a time may not.
        if column == "seconds" and value is not None and not 0 <= value < math.inf:
            raise ValueError
        return value
    known = {"kind": KINDS, "status": STATUSES}.get(column)
    if (known and text not in known) or (column in ("point", "method") and not text):
        raise ValueError
    return text


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
