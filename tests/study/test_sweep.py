"""Sweeps: what a profile may say, what is measured, and that one cut short continues; the drawing of chapters."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import rnnpar
from rnnpar import machine, peaks, registry
from rnnpar.study import corpus, figures, measure, notebooks, store, sweep
from rnnpar.study.cores import FEW
from rnnpar.study.measure import Point

TINY = dict(
    experiment="tiny",
    grids=[{"H": [4, 8], "T": [2], "B": [1, 3]}],
    methods=["serial/naive", "serial/hoisted"],
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


@pytest.mark.parametrize("name", [path.stem for path in sweep.PROFILES.glob("*.yaml")])
def test_the_profiles_are_in_order(name, monkeypatch):
    monkeypatch.setattr(sweep, "why_not", lambda method: "")
    monkeypatch.setattr(sweep, "options_of", lambda method, threads, ranks: [{"threads": 1}])
    for experiment in sweep.load_profile(name):
        assert set(experiment) == set(sweep.KEYS)
        planned = sweep.plan(experiment)
        assert planned
        for point, cases in planned.items():
            assert "in_time/deer" not in dict(cases) or point.H <= 256  # a map costs H^3 a step


def test_full_holds_all_of_a_machine_and_quick_some_of_each():
    names = [[one["experiment"] for one in sweep.load_profile(name)] for name in ("full", "quick")]
    assert names == [["sweep", "mpi", "in_time", "peers"]] * 2
    assert sweep.load_profile("full")[1:] == [sweep.load_profile(name)[0] for name in ("mpi", "in_time", "peers")]


def test_what_the_quick_profile_covers():
    profile = sweep.load_profile("quick")[0]
    points = [point for grid in profile["grids"] for point in sweep.expand(grid)]
    square = {(p.H, p.T, p.B) for p in points if p.layers == 1 and p.H == p.I == p.O}
    assert {(2**k, 128, 1) for k in range(4, 12)} <= square
    assert {(128, 1, 1), (128, 2048, 1)} <= square
    assert {(256, 32, 2**k) for k in range(8)} <= square
    assert any(point.layers > 1 for point in points)
    assert {p.workload for p in points} >= {"origin-large", "origin-small", "kjv-h128"}


def test_overrides_take_the_place_of_keys(tmp_path):
    [profile] = sweep.load_profile("ci", write(tmp_path / "my.yaml", {"samples": 2, "grids": []}))
    assert (profile["samples"], profile["grids"], profile["experiment"]) == (2, [], "ci")
    assert sweep.load_profile("ci", experiment="mine")[0]["experiment"] == "mine"
    assert {one["samples"] for one in sweep.load_profile("quick", tmp_path / "my.yaml")} == {2}
    with pytest.raises(sweep.ProfileError, match="the profile 'quick' has sweep, mpi, in_time, peers"):
        sweep.load_profile("quick", experiment="mine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampels": 3}, r"my.yaml: unknown key 'sampels': did you mean samples\?"),
        ({"colour": 3}, "unknown key 'colour'; the keys are: experiment, grids"),
        ({"grids": [{"H": [1], "T": [1], "b": [1]}]}, "grid 1: unknown key 'b'"),
        ({"grids": [{"H": [1], "T": [1]}]}, "grid 1 lacks B"),
        ({"grids": [{"H": [0], "T": [1], "B": 1}]}, "grid 1: H has 0; it must be a whole number of at least 1"),
        ({"grids": [{"H": ["H"], "T": [1], "B": 1}]}, "grid 1: H has 'H'"),
        ({"grids": [{"H": [1.5], "T": [1], "B": 1}]}, "grid 1: H has 1.5"),
        ({"grids": [{"H": [1], "T": [1], "B": 1, "threads": "all"}]}, "grid 1: threads is 'all'"),
        ({"grids": {"H": [1]}}, "grids is .* it must be a list"),
        ({"methods": ["serial/fast"]}, "unknown method 'serial/fast'; the methods are: auto, serial/naive"),
        ({"methods": "serial/naive"}, "methods is 'serial/naive'; it must be 'all' or a list"),
        ({"grids": [{"workload": "origin"}]}, "grid 1: unknown workload 'origin'; there are: random, radius-0.9 and"),
        ({"grids": [{"workload": "origin-large", "H": 4}]}, "grid 1: origin-large has its own H; only T and B"),
        ({"grids": [{"workload": "radius-0.9", "T": 4, "B": 1}]}, "grid 1 lacks H"),
        ({"grids": [{"workload": "radius-0.9", "H": 4, "T": 4, "B": 1, "layers": 2}]}, "radius-0.9 has one layer"),
        ({"grids": [{"H": 1, "T": 1, "B": 1, "methods": ["mpi/row"]}]}, "grid 1: methods: unknown method 'mpi/row'"),
        ({"ranks": 2}, "ranks is 2; it must be null or a list"),
        ({"timing": "burst"}, "timing is 'burst'; it must be one of calls, bursts"),
        ({"probes": ["scans"]}, "probes has 'scans'; there are scan, messages"),
        ({"probes": ["messages"]}, "the probe messages needs ranks"),
        ({"needs": ["serial/fast"]}, "needs: unknown method 'serial/fast'"),
        ({"again": -1}, "again is -1"),
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
        (["--profile", "fast"], "no profile 'fast'; there are ci, full, in_time, mpi, peers, quick"),
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
    radii = {"workload": ["radius-0.5", "radius-2"], "H": 4, "O": 3, "T": 9, "B": 1}
    assert sweep.expand(radii) == [Point(f"radius-{radius}", 4, 4, 3, 9, 1) for radius in ("0.5", "2")]
    assert sweep.expand({"workload": "origin-large"}) == [Point("origin-large", 50, 50, 8000, 15, 1)]
    assert [(p.T, p.B) for p in sweep.expand({"workload": "kjv-h128"})] == [(1000, 1), (1000, 8)]
    assert [(p.T, p.B) for p in sweep.expand({"workload": "kjv-h128", "T": 7, "B": [2, 3]})] == [(7, 2), (7, 3)]


@pytest.mark.parametrize(
    ("threads", "cores", "counts"),
    [
        (None, 6, [6]),
        ("each", 6, [1, 2, 4, 6]),
        ("each", 1, [1]),
        ([1, 2, 64], 6, [1, 2]),
        ([64], 6, [6]),
        ([1, "cores"], 6, [1, 6]),
    ],
)
def test_numbers_of_threads(monkeypatch, threads, cores, counts):
    monkeypatch.setattr(machine, "cores_allowed", lambda: cores)
    assert sweep.thread_counts(threads) == counts


def test_a_method_is_measured_with_the_options_that_it_takes(monkeypatch):
    monkeypatch.setattr(machine, "cores_allowed", lambda: 2)
    grids = [{"H": 4, "T": 2, "B": 1}, {"H": 4, "T": 2, "B": 1, "threads": "each"},
             {"H": 4, "T": 2, "B": 1, "methods": ["auto"]}]  # fmt: skip
    [(_, cases)] = sweep.plan(TINY | {"grids": grids, "methods": ["serial/naive", "threads/rows"]}).items()
    two = ("threads/rows", {"threads": 2})
    assert cases == [("serial/naive", {}), two, ("threads/rows", {"threads": 1}), ("auto", {"threads": 2})]
    taking = SimpleNamespace(options=lambda: {"ranks": None, "threads": 1})
    monkeypatch.setattr(registry, "find", lambda name: taking)
    assert sweep.options_of("mpi/rows", "each", [1, 4]) == [{"ranks": 1}, {"ranks": 4}]
    assert sweep.options_of("mpi/rows", None, None) == [{"ranks": 2}]


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
    file = store.results_folder() / f"{experiment}.jsonl"
    firsts = Counter(one.point for one in store._scan(file)[0])
    assert len(firsts) == points
    assert set(firsts.values()) == {1}


def test_a_sweep_measures_each_point_once(capsys, monkeypatch):
    assert not sweep.finished("tiny")
    sweep.run([TINY])
    assert "8 points to measure, 0 stored already" in capsys.readouterr().out
    each_point_once()
    assert sweep.finished("tiny")
    assert store.load_machine(machine.name())["cpu"] == machine.cpu()
    files = {file: file.read_bytes() for file in store.results_folder().iterdir() if file.is_file()}
    monkeypatch.setattr(machine, "describe", lambda: {"cpu": "another day's"})
    monkeypatch.setattr(store, "update_machine", lambda *_: pytest.fail("nothing was measured"))
    sweep.run([TINY])
    assert {file: file.read_bytes() for file in files} == files  # what was measured keeps its date, and its machine
    assert "0 points to measure, 8 stored already" in capsys.readouterr().out
    each_point_once()
    assert sweep.summary(["tiny"]).to_dict() == {"ok": {"serial/hoisted": 4, "serial/naive": 4}}


def test_what_changed_is_measured_again(monkeypatch, capsys):
    sweep.run([TINY])
    real, changed = measure.source, "serial/hoisted"
    monkeypatch.setattr(measure, "source", lambda method: "new" if method == changed else real(method))
    sweep.run([TINY])
    assert "4 points to measure, 4 stored already" in capsys.readouterr().out
    frame = store.load("tiny")
    assert set(frame[frame["source"] == "new"]["method"]) == {changed}
    assert frame["point"].nunique() == len(frame) == 8  # the older measurements are not among them


def test_what_cannot_run_is_tried_again_and_kept_once(monkeypatch, capsys):
    def unavailable(*_, **__):
        raise registry.Unavailable("needs a GPU")

    monkeypatch.setattr(measure, "prepare", unavailable)
    sweep.run([TINY])
    sweep.run([TINY])
    each_point_once()
    assert set(store.load("tiny")["status"]) == {"unsupported"}
    monkeypatch.undo()


def test_what_an_experiment_needs_and_what_is_absent_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "why_not", lambda name: "needs more" if name.startswith("peers/") else "")
    methods = TINY["methods"] + ["peers/torch"]
    names = sweep.run([TINY | {"needs": ["peers/torch"], "experiment": "without"}, TINY | {"methods": methods}])
    assert names == [machine.name()]
    printed = capsys.readouterr().out
    assert "without is left out: peers/torch needs more" in printed
    assert "tiny without peers/torch: it needs more" in printed
    assert (sweep.finished("without"), sweep.finished("tiny")) == (False, True)
    each_point_once()


def test_probes_are_asked_whether_they_are_due(monkeypatch, capsys):
    ran = []
    probe = SimpleNamespace(due=lambda experiment, stored: len(ran) < 2, run=lambda experiment: ran.append(1) or [])
    monkeypatch.setitem(sweep.PROBES, "scan", probe)
    for _ in range(3):
        sweep.run([TINY | {"probes": ["scan"], "grids": []}])
    assert len(ran) == 2
    assert re.findall(r"tiny on .*: (\d) points", capsys.readouterr().out) == ["1", "1", "0"]


def test_what_auto_ran_is_measured_again_where_it_would_now_choose_otherwise(monkeypatch):
    choice = ["serial/compiled"]
    monkeypatch.setattr(sweep.model, "fastest", lambda *_, **__: choice[0])
    monkeypatch.setattr(measure, "source", {"serial/compiled": "a", "serial/naive": "a"}.get)
    point, options = Point("random", 4, 4, 4, 2, 1), {"threads": 1}
    planned = {point: [("auto", options)]}
    row = SimpleNamespace(status="ok", message="serial/compiled; told", source="a")
    stored = {measure.key(point, "auto", 1): row}
    assert sweep.remaining(planned, {}) == planned
    assert sweep.remaining(planned, stored) == {}
    row.source = "b"
    assert sweep.remaining(planned, stored) == planned
    row.source, choice[0] = "a", "serial/naive"
    assert sweep.remaining(planned, stored) == planned


def test_only_disturbed_shapes_are_measured_again_and_last(monkeypatch):
    """Whether the cores were whole decides, never the times."""
    measured, real = [], measure.measure_group

    def measure_group(point, *arguments):
        measured.append(point)
        said = FEW if measured in ([point], [point] * 2) or len(measured) == 5 else ""  # the 1st, and once more
        return [dataclasses.replace(row, message=said) for row in real(point, *arguments)]

    monkeypatch.setattr(measure, "measure_group", measure_group)
    sweep.run([TINY | {"again": 2}])
    assert len(set(measured[:4])) == 4
    assert measured[4:] == [measured[0]] * 2


def test_a_corrupt_file_stops_a_sweep_before_it_measures(monkeypatch):
    sweep.run([TINY])
    file = store.results_folder() / "tiny.jsonl"
    file.write_text(file.read_text().replace('"ok"', '"okay"', 1))
    monkeypatch.setattr(measure, "measure_group", None)
    with pytest.raises(store.ResultsError, match="'okay' as status"):
        sweep.run([TINY])


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
sweep.run([eval(sys.argv[1])])
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
    assert sweep.summary(["tiny"]).to_dict() == {
        "ok": {"serial/hoisted": 4, "serial/naive": 0},
        "unsupported": {"serial/hoisted": 0, "serial/naive": 4},
    }


def test_a_sweep_measures_what_another_was_at_when_it_was_killed(data, capsys):
    other = start(TINY, point_s=60)
    while "measuring" not in other.stdout.readline():
        assert other.poll() is None
    killer = threading.Timer(0.5, other.kill)
    killer.start()
    sweep.run([TINY])
    assert not killer.is_alive()  # it waited for its turn as long as the other lived
    other.communicate()
    each_point_once()
    assert "8 points to measure, 0 stored already" in capsys.readouterr().out
    assert sweep.finished("tiny")


def test_a_killed_sweep_continues(data, capsys):
    profile = TINY | {"grids": [{"H": list(range(1, 21)), "T": [2], "B": [1]}]}
    file = store.results_folder() / "tiny.jsonl"
    sweeping = start(profile)
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeping.kill()
    sweeping.communicate()
    stored = len(store.newest("tiny"))
    assert 0 < stored < 40
    assert not sweep.finished("tiny")
    with file.open("ab") as end:  # and the kill fell into a write
        end.write(file.read_bytes().splitlines(keepends=True)[1][:-7])
    sweep.run([profile])
    printed = capsys.readouterr()
    assert f"{40 - stored} points to measure, {stored} stored already" in printed.out
    assert "left unfinished" in printed.err
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
    sweep.execute([{"experiment": "tiny"}], tmp_path / "tiny.ipynb")
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


def test_chapters_are_drawn_in_order_and_a_failure_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RNNPAR_MACHINE", "")
    chapter(tmp_path, "01_bad.ipynb", "raise ValueError('no')")
    chapter(tmp_path, "00_good.ipynb", "")
    chapter(tmp_path, "explore.ipynb", "")
    sources = figures.chapters(tmp_path)
    assert [source.name for source in sources] == ["00_good.ipynb", "01_bad.ipynb"]
    [failure] = figures.draw(sources, "a-machine", tmp_path / "rendered", {})
    assert failure.startswith("01_bad.ipynb: cell [1] failed: ValueError: no (kept as ")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[:2] for line in printed) == [["00_good", "drawn"], ["01_bad", "FAILED"]]
    assert all(line.endswith(" s") for line in printed)
    assert "drawn for a-machine" in (tmp_path / "rendered" / "00_good.ipynb").read_text()
    assert sorted(os.listdir(tmp_path / "rendered")) == ["00_good.ipynb", "01_bad.failed.ipynb"]


def test_kernels_are_compiled_ahead_in_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    compiled = []
    for _ in range(2):
        sweep.compile_ahead([TINY | {"methods": ["serial/naive", "threads/timestep"]}])
        compiled.append({path.name for path in (tmp_path / "kernels").rglob("*.nbc")})
    assert any(name.startswith("threads.timestep") for name in compiled[0])
    assert compiled[0] == compiled[1]


def test_each_method_is_called_once_at_its_first_point_whatever_fails():
    called = []

    def broken(net):
        raise RuntimeError("no")

    def counted(net, dtype="float32"):
        def forward(x, h0):
            called.append((dtype, x.shape))
            return np.zeros((*x.shape[:2], net.output_size), np.float32), h0

        return forward

    methods = {"mine/broken": broken, "mine/counted": counted}
    for name, factory in methods.items():
        rnnpar.register(name, factory, "nothing", "nothing")
    try:
        for more in ({}, sweep.BFLOAT16):
            sweep._call_once([TINY | {"methods": ["serial/naive", *methods]}], "mine", more)
    finally:
        for name in methods:
            rnnpar.unregister(name)
    assert called == [("float32", (2, 1, 4)), ("bfloat16", (2, 1, 4))]


def die(experiments, backend, more):
    os._exit(9)


def test_a_process_that_dies_as_it_compiles_is_left_to_the_sweep(monkeypatch):
    monkeypatch.setattr(sweep, "_call_once", die)
    sweep.compile_ahead([TINY])  # nothing is raised: what cannot run, the sweep itself finds and says


def test_figures_measure_once(monkeypatch, tmp_path, data):
    for folder in ("text", "models", "results/elsewhere", f"results/{machine.name()}"):
        (data / folder).mkdir(parents=True)
    swept = []
    monkeypatch.setattr(figures, "chapters", lambda: [])
    for variable in ("RNNPAR_FIGURES", "RNNPAR_MACHINE"):
        monkeypatch.setenv(variable, "")

    def execute(experiments, target):
        assert os.environ["RNNPAR_DATA"] == str(tmp_path / "apart" / "data")
        swept.append(target)
        sweep.run([TINY | {"experiment": experiments[0]["experiment"]}])

    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setattr(sweep, "compile_ahead", lambda experiments: swept.append(experiments[0]["experiment"]))
    for _ in range(2):
        monkeypatch.setenv("RNNPAR_DATA", str(data))
        assert figures.main(["--profile", "ci", "--scratch", str(tmp_path / "apart")]) == 0
    assert swept == ["sweep", tmp_path / "apart" / "sweep.ipynb"]
    assert sorted(os.listdir(tmp_path / "apart" / "data")) == ["models", "results", "text"]
    assert sorted(os.listdir(tmp_path / "apart/data/results")) == sorted(["elsewhere", machine.name()])
    assert os.listdir(data / "results" / machine.name()) == []  # the real results are untouched


def status(arguments: list[str]) -> int:
    """The exit status of the command, however it ends."""
    try:
        return figures.main(arguments)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machine", "nobody"], "no results of 'nobody'"),
        (["--only", "02", "-p", "T", "3"], "name a folder with --to"),
        (["--only", "77", "--to", "x"], "no chapter 77; there are 00, 01"),
        (["--only", "02", "-p", "colour", "3", "--to", "x"], "02_serial.ipynb has no parameter colour"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_measured(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RNNPAR_FIGURES", "")
    monkeypatch.setattr(sweep, "execute", lambda *_: pytest.fail("it measured"))
    assert status(arguments) in (1, 2)
    assert said in capsys.readouterr().err


def test_the_ci_profile_needs_a_place_apart(capsys):
    with pytest.raises(SystemExit) as stopped:
        figures.main(["--profile", "ci"])
    assert stopped.value.code == 2
    assert "--scratch" in capsys.readouterr().err


def test_all_leaves_the_gpus_methods_to_check_gpu(monkeypatch) -> None:
    from tests import fake_gpu

    fake_gpu.install(setting=monkeypatch.setattr)
    profile = sweep.load_profile("ci")[0] | {"methods": "all"}
    planned = {name for cases in sweep.plan(profile).values() for name, _ in cases}
    assert "serial/compiled" in planned
    assert not {name for name in planned if name.startswith(("numba_cuda/", "cupy_gpu/", "peers/"))}
