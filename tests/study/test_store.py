"""Results: what is written comes back, and no kill, full disk or damaged file loses what was stored."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rnnpar import machine, peaks
from rnnpar.kernels import tile
from rnnpar.study import store

ONE = store.Measurement(
    point="p0", workload="random", method="serial/naive", H=64, I=32, O=16, T=8, B=2, layers=1, threads=1,
    first_call=0.00123456789, seconds={"steady": [1.0]}, error=1.23e-7, status="ok", message="", source="s0",
    revision="r0", date="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def measurement(point: str = "p0", seconds: float = 1.0, **changes) -> list[store.Measurement]:
    return [replace(ONE, point=point, seconds={"steady": [seconds]}, **changes)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The results of this machine, named "here", in a data folder of the test's own."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setattr(machine, "name", lambda: "here")
    return tmp_path / "results" / "here"


def test_measurements_come_back():
    seconds = {"steady": [1.23456789, 2.0], "transfer": [3.0]}
    store.append([replace(ONE, message='a "quoted", and\nbroken   line', seconds=seconds)], "e")
    frame = store.load("e", "here")
    assert list(frame["kind"]) == ["steady", "transfer"]
    assert list(map(list, frame["samples"])) == [[1.23457, 2.0], [3.0]]  # 6 significant digits
    assert list(frame["first_call"]) == [0.00123457] * 2
    assert list(frame["message"]) == ['a "quoted", and broken line'] * 2
    assert set(frame["machine"]) == {"here"}
    assert frame["H"].dtype == int


@pytest.mark.parametrize("error", [None, 0.0, 0.1, float("inf"), float("nan")])
def test_errors_come_back(error):
    store.append([replace(ONE, error=error)], "e")
    [kept] = store.newest("e").values()
    assert repr(kept.error) == repr(error)


def test_a_failure_has_no_time():
    store.append([replace(ONE, first_call=None, seconds={}, error=None, status="oom", message="too large")], "e")
    [row] = store.load("e").itertuples()
    assert (len(row.samples), row.kind, row.status) == (0, "steady", "oom")
    assert np.isnan(row.first_call)


def test_the_newest_measurement_of_a_point_wins():
    store.append(measurement("a", 1.0) + measurement("b", 2.0), "e")
    store.append(measurement("a", 3.0, source="s1"), "e")
    assert {point: one.seconds["steady"] for point, one in store.newest("e").items()} == {"a": [3.0], "b": [2.0]}


def test_machines_are_kept_apart(folder, monkeypatch):
    store.append(measurement(seconds=1.0), "e")
    before = (folder / "e.jsonl").read_bytes()
    monkeypatch.setattr(machine, "name", lambda: "there")
    store.append(measurement(seconds=2.0), "e")
    assert (folder / "e.jsonl").read_bytes() == before
    assert store.machines() == ["here", "there"]
    both = store.load("e")
    assert dict(zip(both["machine"], both["samples"], strict=True)) == {"here": [1.0], "there": [2.0]}
    assert set(store.load("e", "there")["machine"]) == {"there"}


def test_nothing_measured_says_what_would_do():
    with pytest.raises(store.ResultsError, match=r"no results of 'e' of here .*make sweep"):
        store.load("e", "here")
    assert store.newest("e") == {}
    assert store.machines() == []


@pytest.mark.parametrize("left", [1, 20, 150, -1])
def test_what_a_kill_left_is_cut_off(folder, capsys, left):
    store.append(measurement("a"), "e")
    file = folder / "e.jsonl"
    first = file.read_bytes()
    store.append(measurement("b"), "e")
    whole = file.read_bytes()
    file.write_bytes(first + whole[len(first) :][:left])
    assert set(store.newest("e")) == {"a"}  # reading leaves the file alone
    store.append(measurement("b"), "e")
    assert "left unfinished" in capsys.readouterr().err
    assert file.read_bytes() == whole


def test_what_is_cut_off_may_be_longer_than_what_follows(folder):
    store.append(measurement("a"), "e")
    file = folder / "e.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + store._line(replace(ONE, seconds={"steady": [1.0] * 999})).encode()[:-1])
    store.append(measurement("c"), "e")
    assert file.read_bytes().startswith(whole + b'{"point": "c"')
    assert set(store.newest("e")) == {"a", "c"}


def test_a_kill_in_the_very_first_write(folder):
    folder.mkdir(parents=True)
    (folder / "e.jsonl").write_text('{"point": "p')
    assert store.newest("e") == {}
    store.append(measurement(), "e")
    assert set(store.newest("e")) == {"p0"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"point":', '"dot":', "has an unknown dot"),
        ('"H": 64,', "", "has no H"),
        ("64", '"sixty-four"', "'sixty-four' as H"),
        ("64", "-1", "-1 as H"),
        ("64", "true", "True as H"),
        ('"ok"', '"fine"', "'fine' as status"),
        ("[1.0]", "[-1]", "{'steady': [-1]} as seconds"),
        ("[1.0]", "[NaN]", "{'steady': [nan]} as seconds"),
        ("[1.0]", "1.0", "{'steady': 1.0} as seconds"),
        ("1.23e-07", '"small"', "'small' as error"),
        ('"s0"', "7", "7 as source"),
        ("}\n", "\n", "is no JSON"),
        ('"ok"', '"\xff"', "is no JSON"),
    ],
)
def test_a_corrupt_file_is_named_and_left_alone(folder, old, new, said):
    store.append(measurement("a") + measurement("b"), "e")
    file = folder / "e.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    assert old in second
    damaged = (first + second.replace(old, new, 1) + first).encode("latin-1")  # not the end of the file is damaged
    file.write_bytes(damaged)
    with pytest.raises(store.ResultsError) as error:
        store.load("e")
    assert "e.jsonl, line 2: " in str(error.value)
    assert said in str(error.value)
    assert "measure again" in str(error.value)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("name", ["", "../e", "a/b", ".hidden"])
def test_an_experiment_names_a_file(name):
    with pytest.raises(ValueError, match="names a file"):
        store.append(measurement(), name)


def test_what_is_no_measurement_is_not_taken(folder):
    with pytest.raises(ValueError, match="serial/naive has 'good' as status"):
        store.append([ONE, replace(ONE, status="good")], "e")
    assert not (folder / "e.jsonl").exists()


@pytest.mark.parametrize("file_exists", [True, False])
def test_a_full_disk_loses_nothing(folder, monkeypatch, file_exists):
    if file_exists:
        store.append(measurement("a"), "e")
    before = (folder / "e.jsonl").read_bytes() if file_exists else b""
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:-50])  # a full disk takes what still fits

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(store.ResultsError, match=r"e.jsonl: No space left on device; nothing stored is lost: free"):
        store.append(measurement("b"), "e")
    assert (folder / "e.jsonl").read_bytes() == before
    monkeypatch.undo()
    assert (folder / "e.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    for act in (
        store.check_writable,
        lambda: store.append(measurement(), "e"),
        lambda: store.save_machine({"name": "here"}),
    ):
        with pytest.raises(store.ResultsError, match=r"cannot write .*let RNNPAR_DATA name"):
            act()


def test_a_read_only_folder(monkeypatch):
    # chmod does not stop root: let the system say what it says of a read-only file system.
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    store.append(measurement(), "e")
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(store.ResultsError, match=r"cannot write .*Read-only file system; .* make the folder writable"):
        store.append(measurement("b"), "e")
    monkeypatch.undo()


def test_another_machines_results_are_kept_in_its_own_folder(folder):
    store.append(measurement(), "sweep", "elsewhere-4c-abcd")
    store.save_machine({"name": "elsewhere-4c-abcd"}, "elsewhere-4c-abcd")
    store.update_machine("measured", {"sweep": "today"}, "elsewhere-4c-abcd")
    assert store.machines() == ["elsewhere-4c-abcd"]
    assert list(store.newest("sweep", "elsewhere-4c-abcd")) == ["p0"]
    assert store.load_machine("elsewhere-4c-abcd") == {"name": "elsewhere-4c-abcd", "measured": {"sweep": "today"}}


@pytest.mark.parametrize("content", [b"[", b"[]", b"\xff"])
def test_a_damaged_file_of_facts(folder, content):
    file = folder / "mpi.json"
    assert store.facts(file) == {}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(store.ResultsError, match=r"mpi\.json is damaged .*; delete it, and it is measured again"):
        store.facts(file)


def test_peaks_of_another_machine():
    assert not store.has_peaks("elsewhere")
    store.save_peaks({"version": peaks.VERSION}, "elsewhere")
    assert store.has_peaks("elsewhere")
    store.save_peaks({"version": peaks.VERSION - 1}, "elsewhere")
    assert not store.has_peaks("elsewhere")
    (store.results_folder("elsewhere") / "peaks.json").write_text("[")
    with pytest.raises(store.ResultsError, match="damaged"):
        store.has_peaks("elsewhere")


def test_machine_json(folder):
    store.update_machine("peaks", {"flops": 1.0})
    store.save_machine({"name": "here", "cpu": "one"})
    store.update_machine("peaks", {"bytes": 2.0})
    store.save_machine({"name": "here", "cpu": "two"})
    wanted = {"name": "here", "cpu": "two", "peaks": {"flops": 1.0, "bytes": 2.0}}
    assert store.load_machine("here") == wanted
    assert os.listdir(folder) == ["machine.json"]


def test_machine_json_is_replaced_whole(folder, monkeypatch):
    store.save_machine({"name": "here"})

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(store.ResultsError, match="No space left"):
        store.update_machine("peaks", {"flops": 1.0})
    assert json.loads((folder / "machine.json").read_text()) == {"name": "here"}
    assert os.listdir(folder) == ["machine.json"]


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_machine_json(folder, content):
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(content, encoding="latin-1")
    with pytest.raises(store.ResultsError, match=r"machine.json: .*remove it"):
        store.load_machine("here")
    with pytest.raises(store.ResultsError, match="no such file"):
        store.load_machine("elsewhere")


@pytest.mark.parametrize(
    ("found", "system", "columns", "rows"),
    [
        (["X86_V3", "X86_V4", "AVX512_ICL"], "Linux 6.1 x86_64", 32, 8),
        (["SSE42", "AVX", "FMA3", "AVX2", "AVX512F"], "Linux 6.1 x86_64", 32, 8),
        (["X86_V3"], "Windows 11 AMD64", 16, 6),
        ([], "Darwin 24.1.0 arm64", 16, 6),
        ([], "Linux 6.1 x86_64", 8, 4),
    ],
)
def test_the_tile_of_a_machine(folder, found, system, columns, rows, monkeypatch):
    store.save_machine({"name": "here", "numpy_simd": found, "system": system})
    assert store.tile("here") == store.tile() == (tile.WIDTH, tile.ROWS)
    monkeypatch.setattr(machine, "name", lambda: "there")
    assert store.tile("here") == (columns, rows)
    assert store.tile("elsewhere") == (8, 4)


def test_what_another_process_stored_is_noticed(folder):
    assert not store.grown("e")
    store.append(measurement("a"), "e")
    assert not store.grown("e")
    other = multiprocessing.get_context("fork").Process(target=_append_often, args=(["b"],))
    other.start()
    other.join(60)
    assert store.grown("e")
    assert set(store.newest("e")) == {"a", "b"}
    assert not store.grown("e")
    with (folder / "e.jsonl").open("ab") as file:
        file.write(b'{"point": "c"')  # and what a kill left is no measurement
    assert store.grown("e")
    assert set(store.newest("e")) == {"a", "b"}


def _append_often(points: list[str]) -> None:
    for point in points:
        store.append(measurement(point), "e")


def test_who_appends_waits_for_who_holds_the_folder(folder):
    fcntl = pytest.importorskip("fcntl")
    store.append(measurement("a"), "e")
    before = (folder / "e.jsonl").read_bytes()
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    writer = threading.Thread(target=store.append, args=(measurement("b"), "e"))
    writer.start()
    time.sleep(0.3)
    assert (folder / "e.jsonl").read_bytes() == before
    os.close(holder)
    writer.join(60)
    assert set(store.newest("e")) == {"a", "b"}


def test_two_processes_do_not_interleave():
    context = multiprocessing.get_context("fork")  # the machine's name is patched in this process
    names = [[f"{letter}{n}" for n in range(40)] for letter in "ab"]
    workers = [context.Process(target=_append_often, args=(points,)) for points in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert set(store.newest("e")) == {*names[0], *names[1]}
    assert len(store.load("e")) == 80
