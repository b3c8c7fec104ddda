"""`make check-gpu` on fake GPU methods: what is wrong, dies or hangs is found and named, and a killed sweep goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rnnpar import machine
from rnnpar.study import check_gpu, gpu_checks, store
from tests import fake_gpu

ROOT = Path(__file__).parents[2]
GOOD = "good$"  # the method with its defaults, as --methods


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A machine with an imaginary GPU and an empty data folder."""
    fake_gpu.install(setting=monkeypatch.setattr)
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setattr(machine, "gpu", lambda: fake_gpu.GPU)
    monkeypatch.setattr(machine, "name", lambda: "imaginary-9-2c-0000")
    monkeypatch.setattr(check_gpu, "FACTORY", "tests.fake_gpu:worker")
    monkeypatch.setattr(check_gpu, "SHAPES", [(1, 1, 1, 1, 1, 1), (5, 2, 3, 7, 4, 2), (0, 2, 3, 7, 4, 1)])
    monkeypatch.setattr(check_gpu, "FEW", [(4, 1, 2, 5, 3, 1)])
    monkeypatch.setattr(check_gpu, "SWEEP", [(8, 1), (6, 2)])
    monkeypatch.setattr(check_gpu, "T_SWEEP", 4)
    monkeypatch.setattr(check_gpu, "SAMPLES", 3)
    monkeypatch.setattr(check_gpu, "NUMPY_SAMPLES", 2)
    return tmp_path / "results" / "imaginary-9-2c-0000"


def command(*arguments: str) -> int:
    return check_gpu.main(list(arguments))


def checks(folder: Path) -> dict:
    return json.loads((folder / "machine.json").read_text())["gpu_checks"]


def test_without_a_gpu_it_says_what_would_do(monkeypatch, capsys):
    monkeypatch.setattr(machine, "gpu", dict)
    monkeypatch.setattr(machine, "gpu_problem", lambda: "there is no NVIDIA driver: nvidia-smi is not in PATH")
    assert command() == 2
    error = capsys.readouterr().err
    assert "no NVIDIA driver" in error
    assert "needs a machine with an NVIDIA GPU, its driver, and numba-cuda or CuPy" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "answer"], "unknown part answer; the parts are: answers, sanitizers"),
        (["--only", ","], "unknown part none"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--methods", "("], "error: "),
    ],
)
def test_arguments_that_mean_nothing(arguments, words, capsys):
    assert command(*arguments) == 1
    assert words in capsys.readouterr().err


def test_right_answers_are_kept_and_not_asked_for_again(here, capsys):
    assert command("--only", "answers", "--methods", GOOD) == 0
    entry = checks(here)["answers numba_cuda/good"]
    assert entry["status"] == "ok"
    assert "5 cases, error" in entry["words"]  # three shapes, and two more seeds of the few
    assert command("--only", "answers", "--methods", GOOD) == 0
    assert "(before, with the same source)" in capsys.readouterr().out
    assert command("--only", "answers", "--methods", GOOD, "--again") == 0
    assert "(before" not in capsys.readouterr().out


def test_options_are_cases_of_their_own(here):
    labels = [case.label for case in check_gpu.cases("good")]
    assert labels[0] == "numba_cuda/good"
    assert {"numba_cuda/good barrier=counter", "numba_cuda/good barrier=grid", "numba_cuda/good dtype=bfloat16",
            "numba_cuda/good dtype=bfloat16 barrier=grid"} <= set(labels)  # fmt: skip
    assert "numba_cuda/good barrier=flags" not in labels, "that is the default"
    assert [case.bound for case in check_gpu.cases("good( dtype|$)")][:2] == [1e-5, 3e-2]


def test_clusters_are_tried_with_every_number_of_blocks_and_timed_so_with_one_sequence(here, monkeypatch):
    def cluster(net, dtype: str = "float32", device: int = 0, blocks: int | None = None):
        return fake_gpu.Forward(net)

    fake_gpu.install((fake_gpu.row("cupy_gpu/cluster", cluster),), monkeypatch.setattr)
    labels = [case.label for case in check_gpu.cases("cluster")]
    for blocks in (1, 2, 4, 8, 16):
        assert f"cupy_gpu/cluster blocks={blocks}" in labels
        assert f"cupy_gpu/cluster dtype=bfloat16 blocks={blocks}" in labels
    for B, count in ((1, 5), (2, 0)):
        due = check_gpu.still_due(check_gpu.point_of((8, B)), "cluster", {}, False)
        assert sum("blocks" in case.label for case in due) == count


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("wrong", "relative error 0.0"),
        ("broken", "the launch failed: too many resources requested"),
        ("dying", "ended (exit status 139)"),
    ],
)
def test_what_is_wrong_is_found_and_named(here, capsys, method, words):
    assert command("--only", "answers", "--methods", f"/{method}$") == 1
    out = capsys.readouterr().out
    assert f"WRONG: answers numba_cuda/{method}" in out
    assert words in out
    assert checks(here)[f"answers numba_cuda/{method}"]["status"] == "wrong"


def test_a_method_that_hangs_is_ended_in_time(here, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "CASE_S", 3.0)
    begin = time.monotonic()
    assert command("--only", "answers", "--methods", "hanging") == 1
    assert time.monotonic() - begin < 20
    assert "did not answer within 3 s" in capsys.readouterr().out


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_a_sweep_tells_device_arrays_from_numpy_arrays(here, capsys):
    assert command("--only", "sweep", "--methods", GOOD) == 0
    found = kept(here)
    assert [(one["method"], one["H"], one["B"], one["T"]) for one in found] == [
        ("numba_cuda/good", 8, 1, 4), ("numba_cuda/good", 6, 2, 4)
    ]  # fmt: skip
    for one in found:
        assert {kind: len(times) for kind, times in one["seconds"].items()} == {"steady": 3, "transfer": 2}
        assert min(one["first_call"], *one["seconds"]["steady"], *one["seconds"]["transfer"]) > 0
        assert one["error"] < 1e-6
    assert len(store.load("gpu", "imaginary-9-2c-0000")) == 4
    known = json.loads((here / "machine.json").read_text())
    assert known["gpu"]["name"] == "NVIDIA Imaginary 9"
    assert "gpu" in known["measured"]
    assert command("--only", "sweep", "--methods", GOOD) == 0
    assert "0 points to measure" in capsys.readouterr().out
    assert kept(here) == found


def test_what_has_been_sampled_long_enough_is_sampled_no_more(here, monkeypatch):
    """On the first GPU one method that took ten seconds a call used up the time of thirty shapes."""
    monkeypatch.setattr(check_gpu, "ENOUGH_S", 0.0)
    assert command("--only", "sweep", "--methods", GOOD) == 0
    assert [[len(times) for times in one["seconds"].values()] for one in kept(here)] == [[1, 1]] * 2


def test_shapes_without_results_come_first(here, monkeypatch, capsys):
    """A method's source has changed since one shape was measured: what nobody has seen yet is more telling."""
    with monkeypatch.context() as earlier:
        earlier.setattr(check_gpu, "SWEEP", [(8, 1)])
        assert command("--only", "sweep", "--methods", GOOD) == 0
    monkeypatch.setattr(check_gpu, "source_of", lambda method: "changed")
    assert command("--only", "sweep", "--methods", GOOD) == 0
    assert [(one["H"], one["B"]) for one in kept(here)] == [(8, 1), (6, 2), (8, 1)]


def test_methods_in_time_meet_the_others_on_one_long_sequence(here, monkeypatch):
    known = check_gpu.registry._importable
    monkeypatch.setattr(check_gpu.registry, "_importable", lambda name: name == "cupy" or known(name))
    long, short = check_gpu.long_point(), check_gpu.point_of((8, 1))
    labels = [[case.label for case in check_gpu.still_due(point, "", {}, False)] for point in (long, short)]
    assert [label for label in labels[0] if label.startswith("in_time/")] == [
        f"in_time/{name} array_module=cupy" for name in ("jacobi", "segments", "quasi_deer", "deer")
    ]
    assert not any("good" in label for label in labels[0])
    assert not any("in_time" in label for label in labels[1])


def test_options_are_named_in_the_results(here):
    assert command("--only", "sweep", "--methods", "good barrier=(counter|grid)$") == 0
    assert {one["method"] for one in kept(here)} == {"numba_cuda/good barrier=counter", "numba_cuda/good barrier=grid"}


@pytest.mark.parametrize(
    ("method", "status", "words"), [("wrong", "inaccurate", "over the bound"), ("dying", "error", "exit status 139")]
)
def test_what_is_wrong_is_never_a_time(here, capsys, method, status, words):
    assert command("--only", "sweep", "--methods", f"/{method}$") == 1
    found = kept(here)
    assert {one["status"] for one in found} == {status}
    assert not any(one["seconds"] or one["first_call"] for one in found)
    assert words in found[0]["message"]
    assert f"WRONG: numba_cuda/{method} at H=8 B=1: {status}" in capsys.readouterr().out


def test_when_the_time_is_up_it_says_so(here, monkeypatch, capsys):
    assert command("--minutes", "0.05", "--methods", GOOD) == 3
    out = capsys.readouterr().out
    assert "not finished: answers" in out
    assert "the same command continues" in out


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    """Killed, not interrupted: what is stored is whole, and the processes that it had started are gone too."""
    arguments = [sys.executable, "-m", "tests.fake_gpu", "--only", "sweep", "--methods", GOOD]
    environment = os.environ | {"RNNPAR_DATA": str(tmp_path)}
    how = dict(cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(arguments, **how) as process:
        for line in process.stdout:
            if "shape 1 of 3" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait(20) == -signal.SIGKILL
    folder = tmp_path / "results" / "imaginary-9-2c-0000"
    before = kept(folder)
    done = subprocess.run(arguments, timeout=60, **how)
    assert done.returncode == 0
    left = 3 - len({one["H"] for one in before})
    assert f"{left} points to measure at {left} shapes" in done.stdout
    assert 1 <= left <= 2
    after = kept(folder)
    assert after[: len(before)] == before
    assert sorted(one["H"] for one in after) == [5, 6, 8]


# --- sanitizers and the hardware's checks ------------------------------------------------------------------------


def test_without_compute_sanitizer_it_says_so(here, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "find_sanitizer", lambda: None)
    assert command("--only", "sanitizers") == 0
    assert "left out: compute-sanitizer: it is neither in PATH nor under CUDA_HOME" in capsys.readouterr().out


def test_compute_sanitizer_is_found_in_a_toolkit(monkeypatch, tmp_path):
    program = tmp_path / "compute-sanitizer" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert check_gpu.find_sanitizer() == str(program)


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (
            "echo '========= ERROR SUMMARY: 0 errors'; echo 'right: relative error 1e-7'",
            "ok",
            "ERROR SUMMARY: 0 errors",
        ),
        ("echo '========= Invalid __shared__ read of size 4'; exit 86", "wrong", "86: Invalid __shared__ read"),
        ("echo 'not correct: relative error 0.3'; exit 1", "wrong", "not correct: relative error 0.3"),
        ("sleep 60", "wrong", "did not end within 1 s"),
        (  # a newer cuda-bindings asks an older driver for functions that it has not: no fault of ours
            'case "$*" in *"memcheck --report-api-errors no"*|*racecheck*|*synccheck*) echo right;; *) exit 86; esac',
            "ok",
            "no errors",
        ),
    ],
)
def test_what_a_sanitizer_says(here, monkeypatch, tmp_path, script, status, words):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(check_gpu, "find_sanitizer", lambda: str(program))
    monkeypatch.setattr(check_gpu, "SANITIZER_S", 1.0)
    assert command("--only", "sanitizers", "--methods", GOOD) == (0 if status == "ok" else 1)
    for tool in ("memcheck", "racecheck", "synccheck"):
        entry = checks(here)[f"{tool} numba_cuda/good"]
        assert entry["status"] == status
        assert words in entry["words"]


def test_a_sanitizer_that_only_lacked_time_is_not_wrong(here, monkeypatch, tmp_path, capsys):
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(check_gpu, "find_sanitizer", lambda: str(program))
    monkeypatch.setattr(check_gpu.Session, "need", lambda self, seconds: None)
    monkeypatch.setattr(check_gpu.Session, "left", lambda self: 0.5)
    assert command("--only", "sanitizers", "--methods", GOOD) == 3
    assert "not finished: sanitizers" in capsys.readouterr().out


def test_what_a_sanitizer_watches_is_checked_by_the_oracle(here, capsys):
    assert check_gpu.one(json.dumps(["numba_cuda/good", {}, (5, 2, 3, 6, 4, 2)])) == 0
    assert check_gpu.one(json.dumps(["numba_cuda/wrong", {}, (5, 2, 3, 6, 4, 2)])) == 1
    assert capsys.readouterr().out.split(":")[0] == "right"


def test_the_hardwares_checks_run_apart(here):
    assert check_gpu.in_child("tests.fake_gpu:looks_fine", ("fences",), 30) == "fences: nothing unusual"
    with pytest.raises(RuntimeError, match="3 of 10 messages were stale"):
        check_gpu.in_child("tests.fake_gpu:finds_fault", ("fences",), 30)


def test_first_calls_compile_in_both_libraries(here):
    """A kernel that CuPy had kept on disk would make its first call look fast."""
    assert check_gpu.in_child("os:getenv", ("CUPY_CACHE_IN_MEMORY",), 30) == "1"


def test_a_fault_of_the_hardware_is_named(here, capsys):
    """Here there is no GPU behind the fakes, so every check fails, each with its reason."""
    assert command("--only", "hardware", "--methods", "co-residency") == 1
    out = capsys.readouterr().out
    assert "WRONG: hardware co-residency:" in out
    assert len(out.split("WRONG: hardware co-residency:")[1].split("\n")[0]) > 20


def test_every_check_has_its_function():
    for check in gpu_checks.CHECKS:
        assert callable(getattr(gpu_checks, check.function))
        assert check.unseen
    assert len({check.name for check in gpu_checks.CHECKS}) == len(gpu_checks.CHECKS)


def test_neither_notebooks_nor_pandas_are_needed(tmp_path):
    """With nothing of the study's packages to be had, it checks and measures all the same."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pandas', 'papermill', 'IPython', 'matplotlib', 'nbformat', "
        "'tqdm', 'yaml', 'seaborn'))); from tests.fake_gpu import check_small; "
        "sys.exit(check_small('--only', 'answers,sweep', '--methods', 'good$'))"
    )
    environment = os.environ | {"RNNPAR_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert "3 points to measure at 3 shapes" in done.stdout
    assert len(kept(tmp_path / "results" / "imaginary-9-2c-0000")) == 3
