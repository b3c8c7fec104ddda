"""Sweeps: what a profile may say, what is measured, and that one cut short continues; the drawing of chapters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rnnpar import machine, peaks, registry
from rnnpar.study import corpus, figures, measure, notebooks, store, sweep
from rnnpar.study.measure import Point

TINY = dict(
    experiment="tiny",
    grids=[{"H": [4, 8], "T": [2], "B": [1, 3]}],
    workloads=[],
    methods=["serial/naive", "serial/hoisted"],
    threads=None,
    samples=3,
    budget_s=0.01,
    limit_s=1.0,
    seed=0,
)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder of the test's own, and trained networks that need no files."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sweep.peaks, "here", dict)  # they take half a minute
    monkeypatch.setattr(corpus, "models", lambda: dict.fromkeys(["kjv-h128", "kjv-h512", "kjv-2x256"]))
    monkeypatch.setattr(corpus, "load", lambda name: small_net())
    return tmp_path / "data"


def small_net():
    from rnnpar import RNN

    return RNN.random(4, 8, 4)


def write(path: Path, content) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


# --- profiles


@pytest.mark.parametrize("name", ["ci", "quick", "full"])
def test_the_profiles_are_in_order(name):
    profile = sweep.load_profile(name)
    assert set(profile) == set(sweep.KEYS)
    assert sweep.plan(profile | {"methods": ["serial/naive"]})


def test_what_the_quick_profile_covers():
    profile = sweep.load_profile("quick")
    points = [point for grid in profile["grids"] for point in sweep.expand(grid)]
    square = {(p.H, p.T, p.B) for p in points if p.layers == 1 and p.H == p.I == p.O}
    assert {(2**k, 128, 1) for k in range(4, 12)} <= square
    assert {(128, 1, 1), (128, 2048, 1)} <= square
    assert {(256, 32, 2**k) for k in range(8)} <= square
    assert any(point.layers > 1 for point in points)
    assert set(profile["workloads"]) >= {"origin-large", "origin-small", "kjv-h128", "kjv-h512", "kjv-2x256"}


def test_overrides_take_the_place_of_keys(tmp_path):
    profile = sweep.load_profile("ci", write(tmp_path / "my.yaml", {"samples": 2, "grids": []}))
    assert (profile["samples"], profile["grids"], profile["experiment"]) == (2, [], "ci")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampels": 3}, r"my.yaml: unknown key 'sampels' .did you mean 'samples'..; the keys are: experiment, grids"),
        ({"grids": [{"H": [1], "T": [1], "b": [1]}]}, "grid 1: unknown key 'b'"),
        ({"grids": [{"H": [1], "T": [1]}]}, "grid 1 lacks B"),
        ({"grids": [{"H": [0], "T": [1], "B": 1}]}, "grid 1: H has 0; it must be a whole number of at least 1"),
        ({"grids": [{"H": ["H"], "T": [1], "B": 1}]}, "grid 1: H has 'H'"),
        ({"grids": [{"H": [1.5], "T": [1], "B": 1}]}, "grid 1: H has 1.5"),
        ({"grids": [{"H": [1], "T": [1], "B": 1, "threads": "all"}]}, "grid 1: threads is 'all'"),
        ({"grids": {"H": [1]}}, "grids is .* it must be a list"),
        ({"methods": ["serial/fast"]}, "unknown method 'serial/fast'; the methods are: auto, serial/naive"),
        ({"methods": "serial/naive"}, "methods is 'serial/naive'; it must be 'all' or a list"),
        ({"workloads": ["origin"]}, "unknown workload 'origin'; there are: random, origin-large"),
        ({"samples": 0}, "samples is 0"),
        ({"budget_s": "1s"}, "budget_s is '1s'"),
        ({"limit_s": -1}, "limit_s is -1"),
        ({"seed": True}, "seed is True"),
        ({"threads": 2}, "threads is 2; it must be null, 'each', or a list"),
        ({"experiment": "../x"}, r"experiment is '\.\./x'; it names a file"),
        ([1], "my.yaml holds no keys"),
    ],
)
def test_a_profile_that_cannot_be_used(tmp_path, capsys, change, said):
    path = write(tmp_path / "my.yaml", change)
    with pytest.raises(sweep.ProfileError, match=said):
        sweep.load_profile("ci", path)
    assert sweep.main(["--profile", "ci", "--parameters", str(path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "fast"], "no profile 'fast'; there are ci, full, quick"),
        (["--parameters", "missing.yaml"], "cannot read missing.yaml: No such file"),
        (["--parameters", __file__], "is no YAML"),
    ],
)
def test_a_command_line_that_cannot_be_followed(capsys, arguments, said):
    assert sweep.main(arguments) == 1
    assert said in capsys.readouterr().err


# --- plans


def test_a_grid_is_every_combination():
    points = sweep.expand({"H": [4, 8], "I": ["H", 2], "O": 3, "T": [1], "B": [1]})
    assert points == [Point("random", H, I, 3, 1, 1) for H in (4, 8) for I in (H, 2)]
    assert sweep.expand({"H": 4, "T": 1, "B": 1, "layers": [2]}) == [Point("random", 4, 4, 4, 1, 1, 2)]


@pytest.mark.parametrize(
    ("threads", "cores", "counts"),
    [(None, 6, [6]), ("each", 6, [1, 2, 4, 6]), ("each", 1, [1]), ([1, 2, 64], 6, [1, 2]), ([64], 6, [6])],
)
def test_numbers_of_threads(monkeypatch, threads, cores, counts):
    monkeypatch.setattr(machine, "cores_allowed", lambda: cores)
    assert sweep.thread_counts(threads) == counts


def test_methods_without_threads_are_measured_once(monkeypatch):
    monkeypatch.setattr(machine, "cores_allowed", lambda: 2)
    monkeypatch.setattr(sweep, "_takes_threads", lambda name: name == "serial/hoisted")
    grids = [{"H": 4, "T": 2, "B": 1}, {"H": 4, "T": 2, "B": 1, "threads": "each"}]
    [(_, cases)] = sweep.plan(TINY | {"grids": grids}).items()
    assert cases == [("serial/naive", {}), ("serial/hoisted", {"threads": 2}), ("serial/hoisted", {"threads": 1})]


def test_all_methods_are_those_that_can_run_here(monkeypatch):
    table = registry.Methods(
        (
            registry.Method("serial/naive", "", ""),
            registry.Method("peers/naive", "", ""),
            registry.Method("serial/hoisted", "", "", requires=(("no_such_module", "no-such-package"),)),
        )
    )
    monkeypatch.setattr(registry, "methods", lambda: table)
    assert {name for cases in sweep.plan(TINY | {"methods": "all"}).values() for name, _ in cases} == {"serial/naive"}


# --- sweeps


def each_point_once(experiment="tiny", points=8) -> None:
    file = store.results_folder() / f"{experiment}.csv"
    firsts = Counter(row[0].point for row in store._scan(file)[0])
    assert len(firsts) == points
    assert set(firsts.values()) == {1}


def test_a_sweep_measures_each_point_once(capsys, monkeypatch):
    assert not sweep.finished("tiny")
    sweep.run(**TINY)
    assert "8 points to measure, 0 stored already" in capsys.readouterr().out
    each_point_once()
    assert sweep.finished("tiny")
    assert store.load_machine(machine.name())["cpu"] == machine.cpu()
    files = {file: file.read_bytes() for file in store.results_folder().iterdir() if file.is_file()}
    monkeypatch.setattr(machine, "describe", lambda: {"cpu": "another day's"})
    monkeypatch.setattr(store, "update_machine", lambda *_: pytest.fail("nothing was measured"))
    sweep.run(**TINY)
    assert {file: file.read_bytes() for file in files} == files  # what was measured keeps its date, and its machine
    assert "0 points to measure, 8 stored already" in capsys.readouterr().out
    each_point_once()
    assert sweep.summary("tiny").to_dict() == {"ok": {"serial/hoisted": 4, "serial/naive": 4}}


def test_what_changed_is_measured_again(monkeypatch, capsys):
    sweep.run(**TINY)
    real, changed = measure.source, "serial/hoisted"
    monkeypatch.setattr(measure, "source", lambda method: "new" if method == changed else real(method))
    sweep.run(**TINY)
    assert "4 points to measure, 4 stored already" in capsys.readouterr().out
    frame = store.load("tiny")
    assert set(frame[frame["source"] == "new"]["method"]) == {changed}
    assert frame["point"].nunique() == 8
    assert len(frame) == frame.query("sample == 0")["samples"].sum()  # the older measurements are not among them


def test_what_cannot_run_is_tried_again_and_kept_once(monkeypatch, capsys):
    def unavailable(*_, **__):
        raise registry.Unavailable("needs a GPU")

    monkeypatch.setattr(measure, "prepare", unavailable)
    sweep.run(**TINY)
    sweep.run(**TINY)
    each_point_once()
    assert set(store.load("tiny")["status"]) == {"unsupported"}
    monkeypatch.undo()


def test_a_corrupt_file_stops_a_sweep_before_it_measures(monkeypatch):
    sweep.run(**TINY)
    file = store.results_folder() / "tiny.csv"
    file.write_text(file.read_text().replace(",steady,", ",stedy,", 1))
    monkeypatch.setattr(measure, "measure_group", None)
    with pytest.raises(store.ResultsError, match="'stedy' as kind"):
        sweep.run(**TINY)


SLOW = """
import sys, time
from rnnpar import registry
from rnnpar.study import corpus, measure, sweep
corpus.models = lambda: {}
sweep.peaks.here = dict
real = measure.measure_group
def slow(*arguments):
    print("measuring", flush=True)
    time.sleep(float(sys.argv[2]))
    return real(*arguments)
measure.measure_group = slow
prepare = measure.prepare
def unless_unavailable(net, method, **options):
    if method == sys.argv[3]:
        raise registry.Unavailable("needs a GPU")
    return prepare(net, method, **options)
measure.prepare = unless_unavailable
sweep.run(**eval(sys.argv[1]))
"""


def start(profile, point_s=0.1, unavailable="") -> subprocess.Popen:
    """A sweep in a process of its own; each of its shapes takes so many seconds longer, and a method cannot run."""
    command = [sys.executable, "-c", SLOW, repr(profile), str(point_s), unavailable]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_two_sweeps_at_the_same_time_share_the_points(data):
    profile = TINY | {"grids": [{"H": list(range(1, 11)), "T": [2], "B": [1]}]}
    sweeps = [start(profile), start(profile)]
    printed = [sweeping.communicate(timeout=60)[0] for sweeping in sweeps]
    assert [sweeping.returncode for sweeping in sweeps] == [0, 0]
    each_point_once(points=20)
    assert sweep.finished("tiny")
    measured = [text.count("measuring") for text in printed]  # shapes, of two points each
    assert sum(measured) == 10
    for text, own in zip(printed, measured, strict=True):  # the second may have started when the first was further
        told = int(re.search(r"(\d+) points to measure", text)[1])
        assert told == 2 * own or f"{told - 2 * own} of them another sweep has measured meanwhile" in text


def test_two_sweeps_store_once_what_cannot_run(data):
    sweeps = [start(TINY, unavailable="serial/naive") for _ in range(2)]
    assert [sweeping.communicate(timeout=60) and sweeping.returncode for sweeping in sweeps] == [0, 0]
    each_point_once()
    assert sweep.summary("tiny").to_dict() == {
        "ok": {"serial/hoisted": 4, "serial/naive": 0},
        "unsupported": {"serial/hoisted": 0, "serial/naive": 4},
    }


def test_a_sweep_measures_what_another_was_at_when_it_was_killed(data, capsys):
    other = start(TINY, point_s=60)
    while "measuring" not in other.stdout.readline():
        assert other.poll() is None
    killer = threading.Timer(0.5, other.kill)
    killer.start()
    sweep.run(**TINY)
    assert not killer.is_alive()  # it waited for its turn as long as the other lived
    other.communicate()
    each_point_once()
    assert "8 points to measure, 0 stored already" in capsys.readouterr().out
    assert sweep.finished("tiny")


def test_a_killed_sweep_continues(data, capsys):
    profile = TINY | {"grids": [{"H": list(range(1, 21)), "T": [2], "B": [1]}]}
    file = store.results_folder() / "tiny.csv"
    sweeping = start(profile)
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_bytes().count(b"\n") > 12) and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeping.kill()
    sweeping.communicate()
    stored = len(store.newest("tiny"))
    assert 0 < stored < 40
    assert not sweep.finished("tiny")
    with file.open("ab") as end:  # and the kill fell into a write
        end.write(file.read_bytes().splitlines(keepends=True)[1][:-7])
    sweep.run(**profile)
    printed = capsys.readouterr()
    assert f"{40 - stored} points to measure, {stored} stored already" in printed.out
    assert "left incomplete" in printed.err
    each_point_once(points=40)
    assert sweep.finished("tiny")


# --- the command line, through the notebook


def run_command(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path / "tiny.yaml", {key: value for key, value in TINY.items() if key != "experiment"})


def test_the_command_measures_through_the_notebook(tiny, tmp_path):
    name = f"test-{os.getpid()}"
    store.save_peaks({"version": peaks.VERSION}, machine.name())  # they take half a minute to measure
    done = run_command("rnnpar.study.sweep", "--profile", "ci", "--parameters", str(tiny), "--experiment", name)
    executed = notebooks.ROOT / "build" / f"sweep-{name}.ipynb"
    try:
        assert done.returncode == 0, done.stderr
        assert "8 points to measure" in done.stdout
        assert "8/8" in done.stderr  # the bar, as it went
        assert "serial/hoisted" in executed.read_text()
    finally:
        executed.unlink(missing_ok=True)
    each_point_once(name)


def test_each_sweep_has_a_notebook_of_its_own_until_it_is_done(tmp_path, monkeypatch):
    used = []

    def execute(source, target, parameters, limit_s):
        used.append(target)
        target.write_text("executed")

    monkeypatch.setattr(notebooks, "execute", execute)
    sweep.execute({"experiment": "tiny"}, tmp_path / "tiny.ipynb")
    assert used == [tmp_path / f"tiny-{os.getpid()}.ipynb"]
    assert sorted(os.listdir(tmp_path)) == ["data", "tiny.ipynb"]


def test_no_place_for_results_is_one_line(data, tiny):
    data.mkdir()
    (data / "results").write_text("a file in place of the folder")
    done = run_command("rnnpar.study.sweep", "--profile", "ci", "--parameters", str(tiny))
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write ")
    assert done.stderr.count("\n") == 1


# --- figures


def chapter(folder: Path, name: str, code: str) -> None:
    import nbformat

    cell = nbformat.v4.new_code_cell(f"machine = None\n{code}", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("print('drawn for', machine)")])
    (folder / name).write_text(notebooks.canonical(notebook))


def test_chapters_are_drawn_in_order_and_a_failure_does_not_stop_the_others(tmp_path, capsys):
    chapter(tmp_path, "01_bad.ipynb", "raise ValueError('no')")
    chapter(tmp_path, "00_good.ipynb", "")
    chapter(tmp_path, "explore.ipynb", "")
    sources = figures.chapters(tmp_path)
    assert [source.name for source in sources] == ["00_good.ipynb", "01_bad.ipynb"]
    [failure] = figures.draw(sources, tmp_path / "rendered")
    assert failure.startswith("01_bad.ipynb: cell [1] failed: ValueError: no (kept as ")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed] == [["00_good", "drawn"], ["01_bad", "FAILED"]]
    assert all(line.endswith(" s") for line in printed)
    assert f"drawn for {machine.name()}" in (tmp_path / "rendered" / "00_good.ipynb").read_text()
    assert sorted(os.listdir(tmp_path / "rendered")) == ["00_good.ipynb", "01_bad.failed.ipynb"]


def test_figures_measure_once(monkeypatch, tmp_path, data):
    for folder in ("text", "models", "results/elsewhere", f"results/{machine.name()}"):
        (data / folder).mkdir(parents=True)
    swept = []
    monkeypatch.setattr(figures, "chapters", lambda: [])
    monkeypatch.setenv("RNNPAR_FIGURES", "")

    def execute(profile, target):
        assert os.environ["RNNPAR_DATA"] == str(tmp_path / "apart" / "data")
        swept.append(target)
        sweep.run(**TINY | {"experiment": profile["experiment"]})

    monkeypatch.setattr(sweep, "execute", execute)
    for _ in range(2):
        monkeypatch.setenv("RNNPAR_DATA", str(data))
        assert figures.main(["--profile", "ci", "--scratch", str(tmp_path / "apart")]) == 0
    assert swept == [tmp_path / "apart" / "sweep.ipynb"]
    assert sorted(os.listdir(tmp_path / "apart" / "data")) == ["models", "results", "text"]
    assert sorted(os.listdir(tmp_path / "apart/data/results")) == sorted(["elsewhere", machine.name()])
    assert os.listdir(data / "results" / machine.name()) == []  # the real results are untouched


def test_the_ci_profile_needs_a_place_apart(capsys):
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--profile", "ci"])
    assert stopped.value.code == 2
    assert "--scratch" in capsys.readouterr().err


def test_all_leaves_the_gpus_methods_to_check_gpu(monkeypatch) -> None:
    from tests import fake_gpu

    fake_gpu.install(setting=monkeypatch.setattr)
    profile = sweep.load_profile("ci") | {"methods": "all"}
    planned = {name for cases in sweep.plan(profile).values() for name, _ in cases}
    assert "serial/compiled" in planned
    assert not {name for name in planned if name.startswith(("numba_cuda/", "cupy_gpu/", "peers/"))}
