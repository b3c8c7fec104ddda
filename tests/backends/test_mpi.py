"""mpi against the oracle on 1 to 4 ranks; and every way for ranks to end: none may hang, and none be left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.backends import mpi_start
from rnnpar.backends.mpi import LAUNCHED, size_told
from rnnpar.runner import Runner
from tests.conftest import Interrupted, assert_matches_oracle, children, random_input

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ ranks x")
ROOT = Path(__file__).parents[2]
NET = rnnpar.RNN.random(3, 40, 5, 2)


def job(case: str, ranks: int, timeout: float = 120) -> tuple[int, str, float]:
    """A job under mpiexec: exit status, what was written, and seconds; none of its processes may be left."""
    mark = uuid.uuid4().hex
    command = [*mpi_start.mpiexec(), "-n", str(ranks), sys.executable, "-m", "tests.backends.mpi_cases", case, mark]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout, env=os.environ | mpi_start.SUITED, stdin=subprocess.DEVNULL)  # fmt: skip
    took = time.monotonic() - begin
    until = time.monotonic() + 10
    while left := [process for process in psutil.process_iter() if has(process, mark)]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.05)
    return done.returncode, done.stdout, took


def has(process: psutil.Process, mark: str) -> bool:
    try:
        return mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# --- Under mpiexec -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_strategy_equals_the_oracle(ranks):
    status, said, _ = job("equal", ranks)
    assert status == 0, said
    assert "cases are equal" in said


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("shapes", ["rank 0 has x of shape (4, 2, 3), rank 1 has x of shape (5, 2, 3)"]),
        ("weights", ["prepare: the ranks disagree", "rank 1 has other weights or options"]),
        ("raises", ["rank 1 of 2 ended by ArithmeticError: this rank has had enough"]),
        ("killed", ["signal 9"]),
        ("unprepared", ["a rank ended by TypeError: net is a NoneType"]),
        ("within", ["ArithmeticError: this rank has had enough", "rank 1 has closed its runner"]),
    ],
)
def test_every_rank_ends_with_the_reason(case, words):
    status, said, took = job(case, 2, timeout=30)
    assert status != 0
    for word in words:
        assert word in said
    assert took < 15  # with the start of the processes, which takes seconds of its own


def test_all_ranks_refuse_what_one_was_given_and_may_go_on():
    status, said, _ = job("refused", 2, timeout=30)
    assert status == 0, said
    assert "rank 1 heard TypeError: x has dtype float64" in said
    assert "rank 0 heard ValueError: run: rank 1 has it wrong, so no rank goes on: x has dtype float64" in said
    assert "and went on" in said


def test_the_others_hear_of_a_rank_that_has_left():
    status, said, took = job("leaves", 2, timeout=30)
    assert status == 0, said
    assert "ValueError: run: the ranks disagree" in said
    assert "rank 1 has come to the end of its program" in said
    assert "RuntimeError: run: a rank has come to the end of its program" in said
    assert took < 15


def test_a_job_of_one_rank_runs_everything_and_starts_more():
    status, said, _ = job("single", 1, timeout=120)
    assert status == 0, said
    for name in ("mpi/rows", "mpi/batch", "mpi/pipeline"):
        assert f"{name} on {{}}: 0 started" in said
        assert f"{name} on {{'ranks': 1}}: 0 started" in said
        assert f"{name} on {{'ranks': 2}}: 2 started" in said


def test_a_rank_whose_call_is_given_up_goes_no_further():
    status, said, _ = job("given_up", 1, timeout=120)
    assert status == 0, said


def test_other_ranks_than_mpiexec_started_are_refused():
    status, said, _ = job("too_many", 2, timeout=30)
    assert status == 0, said
    assert said.count("ranks is 3, but mpiexec started 2") == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_forked_children_of_ranks_end_nothing(ranks):
    status, said, _ = job("forks", ranks, timeout=120)
    assert status == 0, said
    assert said.count("a child has its own") == ranks
    for does in ("ends", "calls", "fails"):
        assert f"after a child that {does}" in said


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({}, None),
        ({"PMI_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.7.0", "SLURM_STEP_NUM_TASKS": "3"}, 3),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "prterun-a-1@1", "SLURM_STEP_NUM_TASKS": "3"}, None),
    ],
)
def test_the_size_of_a_job_as_its_launcher_tells_it(monkeypatch, told, size):
    for name in [*LAUNCHED, "PMIX_NAMESPACE", "SLURM_STEP_NUM_TASKS"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert size_told() == size


def test_started_ranks_inherit_no_job_but_what_tunes_them(monkeypatch):
    gone = ["PMI_FD", "PMIX_RANK", "HYDI_CONTROL_FD", "HYDRA_HOST_FILE", "OMPI_COMM_WORLD_SIZE", "OMPI_MCA_ess",
            "SLURM_JOB_NODELIST", "PBS_NODEFILE"]  # fmt: skip
    kept = ["OMPI_MCA_btl", "OMPI_ALLOW_RUN_AS_ROOT", "PMIX_MCA_gds", "MPICH_ASYNC_PROGRESS", "FI_PROVIDER", "UCX_TLS"]
    for name in (*gone, *kept):
        monkeypatch.setenv(name, "1")
    found = mpi_start.own_environment()
    assert not set(gone) & set(found)
    assert set(kept) <= set(found)


@pytest.mark.skipif(machine.cores_allowed() < 2, reason="two cores to bind two ranks to")
def test_ranks_that_are_bound_to_a_core_each_are_not_crowded():
    status, said, _ = job("bound", 2, timeout=60)
    assert status == 0, said
    assert said.count("2 cores, in turns: False, with 2 threads each: True") == 2
    assert said.count("1 cores, in turns: True") == 2
    assert "2 ranks x 2 threads, but they may use 2 cores" in said


# --- Started from here -------------------------------------------------------------------------------------------


def ended(pids: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while any(mpi_start.alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def often(run: Runner, x: np.ndarray) -> None:
    for _ in range(100):
        run(x)


def test_ranks_are_started_kept_and_ended():
    run = rnnpar.prepare(NET, "mpi/rows", ranks=2)
    pids = run.info["pids"]
    kept = []
    for T, B in ((5, 1), (30, 3), (30, 3), (30, 3), (30, 3), (1, 1), (0, 2)):
        x = random_input(NET, T, B, seed=len(kept))
        assert_matches_oracle(run, x, np.full((2, B, 40), 0.25, np.float32))
        y, h = run(x)
        kept.append((y, h, y.copy(), h.copy()))
    for y, h, y_then, h_then in kept:  # results are the caller's own, whatever was called after
        assert np.array_equal(y, y_then)
        assert np.array_equal(h, h_then)
        y[:] = 0
    seconds, *_ = run.timed(random_input(NET, 30, 3))
    assert 0 < seconds < run.info["whole_s"]
    assert run.info["ranks"] == 2
    assert run.info["exchange"] == "window"
    assert run.info["pids"] == pids, "the same ranks serve every call"
    run.close()
    assert ended(pids, 0)
    run.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(random_input(NET, 5, 1))


def test_overlap_asks_for_messages():
    net = rnnpar.RNN.random(3, 97, 5)
    with rnnpar.prepare(net, "mpi/rows", ranks=2, overlap=2) as run:
        assert_matches_oracle(run, random_input(net, 9, 2), np.full((1, 2, 97), 0.25, np.float32))
        assert (run.info["exchange"], run.info["overlap"]) == ("messages", 2)


def test_a_rank_that_is_killed_ends_all_and_says_so():
    with rnnpar.prepare(NET, "mpi/pipeline", ranks=2) as run:
        pids = run.info["pids"]
        run(random_input(NET, 5, 1))
        os.kill(pids[1], signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=r"mpi/pipeline on 2 ranks: rank \d ended"):
            often(run, random_input(NET, 5, 1))
        assert time.monotonic() - begin < 10
        assert ended(pids, 5)
        assert_matches_oracle(run, random_input(NET, 5, 1))
        assert not set(pids) & set(run.info["pids"]), "new ranks"


def test_a_rank_that_is_killed_within_a_call():
    """The other rank is waiting in compiled code for its part of the state."""
    net = rnnpar.RNN.random(3, 600, 5)
    with rnnpar.prepare(net, "mpi/rows", ranks=2) as run:
        pids = run.info["pids"]
        x = random_input(net, 60_000, 1)
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {pids[0]}"])
        with pytest.raises(RuntimeError, match=r"rank \d ended"):
            often(run, x)
        killer.wait()
        assert ended(pids, 5)


def descriptors() -> int:
    return psutil.Process().num_fds()


def test_an_interrupted_call_ends_the_ranks_and_the_next_one_starts_new_ones(interrupt):
    net = rnnpar.RNN.random(3, 600, 5)
    with rnnpar.prepare(net, "mpi/rows", ranks=2) as run:
        run(random_input(net, 3, 1))
        pids, had = run.info["pids"], descriptors()
        due = interrupt(0.5)
        with pytest.raises(Interrupted):
            often(run, random_input(net, 60_000, 1))
        assert time.monotonic() - due < 0.5  # 0.05 s where nothing else runs
        assert ended(pids, 1)
        assert_matches_oracle(run, random_input(net, 3, 1))
        assert not set(pids) & set(run.info["pids"])
        assert descriptors() == had
    with pytest.raises(RuntimeError, match="closed"):
        run(random_input(net, 3, 1))


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.1, 0.4])
def test_an_interrupted_start_leaves_nothing(interrupt, monkeypatch, tmp_path, seconds):
    folder = tmp_path / "rnnpar-x"

    def mkdtemp(**how):
        folder.mkdir()  # only now: the interrupt may come before
        return str(folder)

    monkeypatch.setattr(mpi_start.tempfile, "mkdtemp", mkdtemp)
    had, children_had = descriptors(), children()

    def begin() -> None:
        interrupt(seconds)
        rnnpar.prepare(NET, "mpi/rows", ranks=2).close()
        time.sleep(5)

    with pytest.raises(Interrupted):
        begin()
    assert children() == children_had
    assert not folder.exists()
    assert descriptors() == had


FORKS = """
import gc, os, sys, time, numpy, rnnpar
net = rnnpar.RNN.random(3, 40, 5)
x = numpy.random.default_rng(0).standard_normal((6, 2, 3), dtype=numpy.float32)
wanted = rnnpar.reference(net, x)[0]
run = rnnpar.prepare(net, "mpi/rows", ranks=2)
first = run(x)[0]
pids = run.info["pids"]
for does in ("end", "exit", "forget", "close", "call"):
    child = os.fork()
    if child == 0:
        if does == "end":
            os._exit(0)
        if does == "forget":
            del run
            gc.collect()
        if does == "close":
            run.close()
        if does == "call":
            for _ in range(2):
                assert abs(run(x)[0] - wanted).max() < 1e-5
            assert not set(pids) & set(run.info["pids"])
            grandchild = os.fork()
            if grandchild == 0:
                sys.exit(0)
            os.waitpid(grandchild, 0)
            assert run(x)[0].shape == (6, 2, 5)
        sys.exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if does == "end" else 7), (does, status)
    assert abs(run(x)[0] - wanted).max() < 1e-5
    assert run.info["pids"] == pids
heard, says = os.pipe()
child = os.fork()
if child == 0:
    os.read(heard, 1)
    assert abs(first - wanted).max() < 1e-5, "the parent's next answers lie elsewhere"
    sys.exit(0)
del first
for _ in range(4):
    run(numpy.zeros_like(x))
os.write(says, b".")
assert os.waitpid(child, 0)[1] == 0
child = os.fork()
if child == 0:
    os.close(1)
    os.close(2)
    time.sleep(60)
print("all right", child, *pids, flush=True)
"""


def test_a_forked_child_ends_no_ranks_and_starts_its_own():
    done = subprocess.run([sys.executable, "-X", "dev", "-c", FORKS], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert "all right" in done.stdout, done.stderr
    assert "ResourceWarning: subprocess" not in done.stderr
    last, *pids = map(int, done.stdout.split()[2:])
    assert ended(pids), "though a child of the process that started them lives on"
    os.kill(last, signal.SIGKILL)


def test_ranks_leave_no_memory_with_a_name():
    """/dev/shm has 64 MiB in many a container; MPICH takes 2 of it for a job until MPI ends in good order."""
    with rnnpar.prepare(NET, "mpi/batch", ranks=2) as run:
        for pid in run.info["pids"]:
            assert not re.findall("/dev/shm/mpich_shm_.*[^)]$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)


def test_close_gives_everything_back():
    had = descriptors()
    run = rnnpar.prepare(NET, "mpi/batch", ranks=2)
    y, _ = run(random_input(NET, 30, 3))
    run.close()
    assert descriptors() == had + 1, "that of the memory of y"
    assert y.sum() == pytest.approx(90, rel=1e-5)
    del y
    assert descriptors() == had


def test_a_full_disk_is_told(monkeypatch, tmp_path):
    def save(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(mpi_start.tempfile, "tempdir", None)
    monkeypatch.setattr(rnnpar.RNN, "save", save)
    with pytest.raises(OSError, match=r"the network cannot be written.*No space left.*TMPDIR name another folder"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["with a space and \u00e4", "\u00e4" * 40])
def test_any_folder_for_temporary_files_will_do(monkeypatch, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(mpi_start.tempfile, "tempdir", None)
    with rnnpar.prepare(NET, "mpi/batch", ranks=2) as run:
        assert_matches_oracle(run, random_input(NET, 3, 2))
    assert not list(folder.iterdir())


def test_ranks_that_never_come_are_given_up(monkeypatch, tmp_path):
    script = tmp_path / "mpiexec"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("RNNPAR_MPIEXEC", str(script))
    for name, value in (("START_S", 0.5), ("WORDS_S", 0.1)):
        monkeypatch.setattr(mpi_start, name, value)
    had = children()
    with pytest.raises(RuntimeError, match=r"its ranks did not start within 0\.5 s"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)
    assert children() == had


def test_ranks_end_with_the_process_that_started_them():
    program = (
        "import rnnpar, numpy, time\n"
        "run = rnnpar.prepare(rnnpar.RNN.random(3, 40, 5), 'mpi/batch', ranks=2)\n"
        "run(numpy.zeros((3, 2, 3), numpy.float32))\n"
        "print(*run.info['pids'], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    starters = [psutil.Process(pid).parent().pid for pid in pids]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ended([*pids, *starters])


def test_a_start_that_fails_leaves_no_files(monkeypatch, tmp_path):
    real, made = mpi_start.tempfile.mkdtemp, []
    monkeypatch.setattr(mpi_start.tempfile, "mkdtemp", lambda **how: made.append(real(**how)) or made[-1])
    monkeypatch.setattr(mpi_start.shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("RNNPAR_MPIEXEC", raising=False)
    with pytest.raises(rnnpar.Unavailable):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)
    for command in ("/nowhere/mpiexec", "false"):
        monkeypatch.setenv("RNNPAR_MPIEXEC", command)
        with pytest.raises((rnnpar.Unavailable, RuntimeError)):
            rnnpar.prepare(NET, "mpi/rows", ranks=2)
    assert made
    assert not [folder for folder in made if Path(folder).exists()]
    left = tmp_path / "rnnpar-left"
    left.mkdir()
    (left / "net.npz").touch()
    command = [sys.executable, "-m", "rnnpar.backends.mpi_start", str(left / "calls"), "{}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no process waits for this rank any more" in done.stderr
    assert not left.exists()


def test_a_rank_that_cannot_prepare_says_why(monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "")
    monkeypatch.setenv("RNNPAR_MPIEXEC", "false")
    with pytest.raises(RuntimeError, match=r"its ranks did not start \(mpiexec: exit status 1\)"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)


def test_processes_that_are_no_job_are_told_apart(monkeypatch, tmp_path):
    """An mpiexec of another MPI starts as many single ranks as it is asked for."""
    script = tmp_path / "mpiexec"
    script.write_text('#!/bin/sh\nshift 2\n"$@" &\n"$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("RNNPAR_MPIEXEC", str(script))
    with pytest.raises(RuntimeError, match=r"belongs to another MPI than mpi4py.*RNNPAR_MPIEXEC"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)


def test_no_mpi(monkeypatch):
    monkeypatch.setenv("RNNPAR_MPIEXEC", "/nowhere/mpiexec")
    with pytest.raises(rnnpar.Unavailable, match="/nowhere/mpiexec cannot be run"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)
    monkeypatch.delenv("RNNPAR_MPIEXEC")
    monkeypatch.setattr(mpi_start.shutil, "which", lambda *_, **__: None)
    with pytest.raises(rnnpar.Unavailable, match=r"no mpiexec.*pip install mpich"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)
    monkeypatch.setattr(registry, "_importable", lambda module: module != "mpi4py")
    with pytest.raises(rnnpar.Unavailable, match="pip install mpi4py mpich"):
        rnnpar.prepare(NET, "mpi/rows", ranks=2)


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("mpi/rows", {}, ValueError, "has no ranks: start the program by `mpiexec -n 2"),
        ("mpi/rows", {"ranks": 0}, ValueError, "ranks is 0; it must be at least 1"),
        ("mpi/rows", {"ranks": 1.5}, TypeError, "ranks is 1.5; it must be a whole number"),
        ("mpi/batch", {"ranks": 2, "threads": 0}, ValueError, "threads is 0"),
        ("mpi/batch", {"ranks": 2, "exchange": "allgather"}, ValueError, "must be one of auto, window, messages$"),
        ("mpi/rows", {"ranks": 2, "exchange": "pigeon"}, ValueError, "pigeon.*allgather"),
        ("mpi/pipeline", {"ranks": 2, "chunk": -1}, ValueError, "chunk is -1"),
        ("mpi/batch", {"ranks": 2, "chunk": 1}, TypeError, "takes no option chunk"),
        (
            "mpi/rows",
            {"ranks": 2, "exchange": "window", "overlap": 1},
            ValueError,
            "an option of messages, but exchange",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_starts(method, options, error, words):
    with pytest.raises(error, match=words):
        rnnpar.prepare(NET, method, **options)


def test_more_ranks_than_cores_warn():
    from rnnpar.backends.mpi import warn_of_cores

    with pytest.warns(UserWarning, match="1000 ranks x 2 threads, but they may use 8 cores"):
        warn_of_cores(1000, 2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cores(2, 4, 8)
