"""A sweep over machines: every point stored once whoever dies, machines kept apart, workers that differ refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import yaml

pytest.importorskip("distributed", reason="needs the extra cluster, which make installs")

from distributed import Client, LocalCluster

from rnnpar import machine, peaks
from rnnpar.backends.processes import Died, Failed
from rnnpar.study import bench, cluster, measure, notebooks, store, sweep
from rnnpar.study.cluster import ClusterError, Worker

TINY = dict(
    experiment="tiny",
    grids=[{"H": [4, 8], "T": [2], "B": [1, 3]}],
    methods=["serial/naive", "serial/hoisted"],
    samples=3,
    budget_s=0.01,
    limit_s=1.0,
    seed=0,
)
# 50 shapes, some 30 ms each: long enough for a kill to fall into one.
HUNDRED = TINY | {"grids": [{"H": list(range(1, 26)), "T": [2], "B": [1, 3]}], "samples": 12}
FORTY = HUNDRED | {"grids": [{"H": list(range(1, 11)), "T": [2], "B": [1, 3]}]}
CONDUCTOR = cluster.Conductor
A, B = "fake-cpu-2c-aaaa", "fake-cpu-2c-bbbb"  # two machines of one kind


USERS_OWN = dict(os.environ)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """What Dask's nannies set in this process too, later tests must not find."""
    yield
    for name in set(os.environ) - set(USERS_OWN) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]


@pytest.fixture(scope="module")
def two():
    """A cluster of two workers, which their nannies start again when they die."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as started:
        yield started


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder of the test's own, in which every machine has its peaks: they take long to measure."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path / "data"))
    for name in (machine.name(), A, B):
        store.save_peaks({"version": peaks.VERSION}, name)
    return tmp_path / "data"


@pytest.fixture
def conduct(monkeypatch):
    """Lets a test act when a job was handed out, and change what a worker says of itself."""

    def use(handed_out=lambda conductor: None, introduced=lambda worker: None, may=lambda conductor: True):
        class Watched(CONDUCTOR):
            def _hand_out(self):
                if may(self):
                    super()._hand_out()
                    handed_out(self)

            def _accept(self, worker, answer):
                introduction = worker.job is None
                super()._accept(worker, answer)
                if introduction:
                    introduced(worker)

        monkeypatch.setattr(cluster, "Conductor", Watched)

    return use


def as_machines(*names):
    """Workers take these machines' names in turn, as they introduce themselves."""
    left = list(names)

    def introduced(worker):
        worker.who["machine"] = worker.who["description"]["name"] = left.pop(0) if len(left) > 1 else left[0]

    return introduced


def stored(name=None, experiment="tiny") -> Counter:
    """How often each point stands in the file of results; empty where there is none."""
    file = store.results_folder(name) / f"{experiment}.jsonl"
    return Counter(one.point for one in store._scan(file)[0]) if file.exists() else Counter()


def each_once(points, name=None) -> None:
    found = stored(name)
    assert len(found) == points
    assert set(found.values()) == {1}


def finished(name) -> bool:
    return "tiny" in store.load_machine(name).get("measured", {})


# Runs in a worker, which has no tests: a lambda goes there whole. The newest of the worker's benches is the sweep's.
BENCH_PID = lambda dask_worker: list(dask_worker.rnnpar_benches.values())[-1].pid  # noqa: E731


# --- whoever dies


def test_a_hundred_points_with_one_worker_killed_twice(two, conduct, capsys):
    killed = []
    nanny = two.workers[0]

    def victim(conductor):
        found = conductor.workers.get(nanny.worker_address)
        return found if found and found.takes_part and found.address not in killed else None

    def may(conductor):  # the other worker must not finish before the killed one is back to be killed again
        return len(killed) != 1 or conductor.measured.total() < 60 or victim(conductor)

    def kill(conductor):
        found = victim(conductor)
        if len(killed) < 2 and conductor.measured.total() >= 20 and found and found.job:
            time.sleep(0.01)  # into the measuring
            killed.append(found.address)
            os.kill(nanny.pid, signal.SIGKILL)

    conduct(kill, may=may)
    names = cluster.run(HUNDRED, two.scheduler_address, crowded=True)
    assert len(set(killed)) == 2
    assert capsys.readouterr().out.count("; it goes back in line") == 2
    assert names == [machine.name()]
    each_once(100)
    assert finished(machine.name())


def test_a_point_that_kills_its_process_is_reported_and_tried_again_by_the_next_sweep(two, conduct, capsys):
    deaths = []

    def kill(conductor):
        for worker in conductor.workers.values():
            if worker.job and worker.job.label.startswith("H=8 I=8 O=8 T=2 B=3"):
                pid = conductor.client.run(BENCH_PID, workers=[worker.address])[worker.address]
                with suppress(ProcessLookupError):  # it is dead, and the next has not been started yet
                    os.kill(pid, signal.SIGKILL)
                    deaths.append(pid)

    slow = TINY | {"samples": 300, "budget_s": 0.3}
    conduct(kill)
    with pytest.raises(ClusterError, match="1 requests were given up"):
        cluster.run(slow, two.scheduler_address)
    assert len(set(deaths)) == cluster.MOST_DEATHS
    said = capsys.readouterr().out
    assert f"not measured: H=8 I=8 O=8 T=2 B=3 L=1 on {machine.name()}" in said
    assert "ended (signal 9), 3 times" in said
    each_once(6)
    assert not finished(machine.name())
    conduct()
    cluster.run(slow, two.scheduler_address)
    assert "2 points to measure, 6 stored already" in capsys.readouterr().out
    each_once(8)
    assert finished(machine.name())


def test_what_a_request_raises_is_reported(two, conduct, monkeypatch, capsys):
    real = sweep.remaining

    def spoilt(planned, known):
        points = real(planned, known)
        return {
            point: [("no/method", {})] if point.H == 4 and point.B == 3 else cases for point, cases in points.items()
        }

    monkeypatch.setattr(sweep, "remaining", spoilt)
    with pytest.raises(ClusterError, match="1 requests were given up, as said above; all else is stored"):
        cluster.run(TINY, two.scheduler_address)
    assert "unknown method 'no/method'" in capsys.readouterr().out
    each_once(6)


# --- machines


def test_workers_of_one_machine_take_turns(two, conduct):
    busy = []
    conduct(lambda conductor: busy.append(sum(worker.job is not None for worker in conductor.workers.values())))
    cluster.run(TINY, two.scheduler_address)
    assert set(busy) <= {0, 1}
    assert 1 in busy
    each_once(8)
    description = store.load_machine(machine.name())
    assert description["cpu"] == machine.cpu()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # Dask's nanny sets them to 1
        assert description["thread_variables"].get(name) == USERS_OWN.get(name)


def test_each_machine_measures_all_points_in_its_own_name(two, conduct):
    conduct(introduced=as_machines(A, B))
    assert set(cluster.run(TINY, two.scheduler_address)) == {A, B}
    for name in (A, B):
        each_once(8, name)
        assert finished(name)
        assert store.load_machine(name)["name"] == name
    assert not stored()


def test_alike_machines_can_share_the_points(two, conduct, capsys):
    conduct(introduced=as_machines(A, B))
    cluster.run(FORTY, two.scheduler_address, share=True)
    at_a, at_b = stored(A), stored(B)
    assert len(at_a + at_b) == 40
    assert set((at_a + at_b).values()) == {1}
    assert at_a
    assert at_b
    assert "tiny on fake-cpu-2c: 40 points to measure" in capsys.readouterr().out
    assert not finished(A)  # it has not measured all of them itself
    conduct(introduced=as_machines(A, B))
    cluster.run(FORTY, two.scheduler_address, share=True)
    assert "0 points to measure, 40 stored already" in capsys.readouterr().out


@pytest.mark.parametrize("share", [False, True])
def test_a_machine_that_goes_for_good(conduct, capsys, share):
    """Its points are reported; those that were shared, an alike machine measures."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50, processes=False
    ) as started:
        gone = []

        def leave(conductor):
            if not gone and conductor.measured[B] >= 4:
                gone.append(next(w for w in conductor.workers.values() if w.machine == B).address)
                victim = next(w for w in started.workers.values() if w.address == gone[0])
                started.sync(victim.close, nanny=False)

        conduct(leave, as_machines(A, B))
        if share:
            cluster.run(FORTY, started.scheduler_address, share=True, patience_s=1)
            assert sum((stored(A) + stored(B)).values()) == len(stored(A) + stored(B)) == 40
        else:
            with pytest.raises(ClusterError, match="requests were given up"):
                cluster.run(FORTY, started.scheduler_address, patience_s=1)
            each_once(40, A)
            assert 4 <= len(stored(B)) < 40
            assert set(stored(B).values()) == {1}
            assert f"on {B}: no worker came back in 1 s" in capsys.readouterr().out
        assert gone


def test_workers_that_come_late(conduct, capsys):
    """The second joins in; the third, which has another NumPy, is left alone."""
    came = []

    def introduced(worker):
        came.append(worker)
        if len(came) == 3:
            worker.who["versions"] = worker.who["versions"] | {"numpy": "1.0"}
        if len(came) > 1:
            worker.who["machine"] = worker.who["description"]["name"] = B

    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50, processes=False
    ) as started:

        def arrive(conductor):
            if conductor.measured.total() >= 6 * len(started.workers):
                started.scale(min(3, len(started.workers) + 1))

        latest = time.monotonic() + 90  # a worker that never comes makes the test fail, and not wait for ever

        def may(conductor):
            return conductor.measured.total() < 30 or len(came) == 3 or time.monotonic() > latest

        conduct(arrive, introduced, may)
        cluster.run(FORTY, started.scheduler_address)
    each_once(40)
    each_once(40, B)
    said = capsys.readouterr().out
    assert f"{B} at {came[1].address} has joined" in said
    assert f"{B} at {came[2].address} came late and is not used: numpy is 1.0 on " in said


def test_a_machine_without_peaks_measures_its_own_first(two, conduct, monkeypatch, capsys):
    (store.results_folder(A) / "peaks.json").unlink()
    real, asked = cluster.Conductor._ask, []

    def ask(self, address, what, arguments, limit_s):
        asked.append(what)
        if what != "peaks":
            return real(self, address, what, arguments, limit_s)
        answer = {"peaks": {"version": peaks.VERSION, "call": 1.0}, "disturbed": len(asked) > 8}
        return self.client.submit(lambda: answer, pure=False)

    monkeypatch.setattr(cluster.Conductor, "_ask", ask)
    conduct(introduced=as_machines(A))
    cluster.run(TINY, two.scheduler_address)
    assert asked[:4] == ["introduce", "introduce", "peaks", "measure"]
    assert json.loads((store.results_folder(A) / "peaks.json").read_text())["call"] == 1.0
    assert len(asked) == 7
    (store.results_folder(A) / "peaks.json").unlink()
    asked += ["", ""]
    conduct(introduced=as_machines(A))
    cluster.run(TINY, two.scheduler_address)
    assert "its peaks are not kept" in capsys.readouterr().out
    assert not store.has_peaks(A)


# --- what cannot work is said before any point runs


def worker(number=1, source="s1", error="", **versions) -> Worker:
    who = dict(
        machine=f"m{number}", source=source, revision="abc", versions=dict.fromkeys(cluster.COMPARED, "1") | versions
    )
    return Worker(f"tcp://{number}", who={"error": error} if error else who)


def test_workers_that_are_alike():
    assert cluster.differences([worker(1), worker(2), worker(3)], "s1") == []


@pytest.mark.parametrize("package", cluster.COMPARED)
def test_versions_that_differ(package):
    [fault] = cluster.differences([worker(1), worker(2), worker(3, **{package: "2"})], "s1")
    assert fault == f"{package} is 1 on m1 at tcp://1, m2 at tcp://2; 2 on m3 at tcp://3"


def test_another_revision_of_rnnpar(monkeypatch):
    monkeypatch.setattr(measure, "revision", lambda: "def")
    [fault] = cluster.differences([worker(1), worker(2, source="s2")], "s1")
    assert fault == (
        "rnnpar's source is s1 on this machine (revision def), m1 at tcp://1 (revision abc); "
        "s2 on m2 at tcp://2 (revision abc)"
    )


def test_a_worker_that_cannot_measure():
    faults = cluster.differences([worker(1), worker(2, error="No module named 'rnnpar'")], "s1")
    assert faults == ["tcp://2 cannot measure: No module named 'rnnpar'"]


def test_workers_that_differ_measure_nothing(two, conduct):
    def older(worker):
        worker.who["versions"] = worker.who["versions"] | {"numba": worker.address}

    conduct(introduced=older)
    with pytest.raises(ClusterError, match=r"numba is tcp://.* nothing was measured: install the same everywhere"):
        cluster.run(TINY, two.scheduler_address)
    assert not stored()


def test_another_revision_than_ours_measures_nothing(two, monkeypatch):
    monkeypatch.setattr(bench, "source", lambda: "other")
    with pytest.raises(ClusterError, match="rnnpar's source is other on this machine"):
        cluster.run(TINY, two.scheduler_address)
    assert not stored()


def test_a_worker_without_rnnpar_is_named(two, tmp_path):
    (tmp_path / "rnnpar.py").write_text("raise ModuleNotFoundError('there is no rnnpar here')")
    command = [sys.executable, "-m", "distributed.cli.dask_worker", two.scheduler_address, "--nthreads", "1"]
    command += ["--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    bare = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        with Client(two.scheduler_address) as client:
            client.wait_for_workers(3, timeout=60)
        with pytest.raises(ClusterError, match="cannot measure: ModuleNotFoundError: there is no rnnpar here"):
            cluster.run(TINY, two.scheduler_address)
        assert bare.poll() is None
    finally:
        bare.terminate()
        bare.wait(20)
        with Client(two.scheduler_address) as client:  # later tests count the workers
            deadline = time.monotonic() + 20
            while len(client.scheduler_info(n_workers=-1)["workers"]) > 2 and time.monotonic() < deadline:
                time.sleep(0.1)
    assert not stored()


def test_a_scheduler_without_workers():
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as started,
        pytest.raises(ClusterError, match=r"no workers, and none came in 0.5 s; .*: dask worker tcp://"),
    ):
        cluster.run(TINY, started.scheduler_address, patience_s=0.5)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("nowhere.json", "'nowhere.json' is neither an address"),
        ("ftp://127.0.0.1:9", "no Dask scheduler answers at ftp://127.0.0.1:9"),
    ],
)
def test_a_scheduler_that_cannot_be_reached(monkeypatch, scheduler, said):
    assert cluster.REACH_S < 10
    monkeypatch.setattr(cluster, "REACH_S", 0.5)
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=said):
        cluster.run(TINY, scheduler)
    assert time.monotonic() - begin < 5


# --- the bench


def test_a_bench_answers_and_says_what_went_wrong():
    process = bench.start(dropped=["RNNPAR_DROPPED"])
    try:
        who = process.ask("introduce", TINY, bench.source(), limit_s=60)
        assert who["machine"] == machine.name()
        assert who["plan"] == sweep.plan(TINY)
        assert "plan" not in process.ask("introduce", TINY, "another source", limit_s=60)
        with pytest.raises(Failed, match="no attribute 'request'"):
            process.ask("request", limit_s=60)
        assert process.alive
        large = measure.Point("random", 512, 512, 512, 512, 8)
        with pytest.raises(Died, match=r"did not answer within 0.05 s"):
            process.ask("measure", large, [("serial/naive", {})], (30, 9, 9), [0], limit_s=0.05)
        assert not process.alive
    finally:
        process.close()


HOLD = """
import sys, time
from rnnpar.study import measure
with measure.alone():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_measures_on_a_machine():
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    code = "from rnnpar.study import measure\nwith measure.alone(): print('mine')"
    waiter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(1.5)
    holder.kill()
    assert waiter.communicate(timeout=20)[0] == "mine\n"
    holder.communicate()


# --- the command line


def test_the_command_measures_through_the_notebook(two, tmp_path):
    name = f"test-{os.getpid()}"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in TINY.items() if k != "experiment"}))
    executed = notebooks.ROOT / "build" / f"sweep-{name}.ipynb"
    command = [sys.executable, "-m", "rnnpar.study.sweep", "--profile", "ci", "--experiment", name]
    command += ["--parameters", str(tmp_path / "tiny.yaml"), "--scheduler", two.scheduler_address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "8 points to measure" in done.stdout
        assert "8/8" in done.stderr
        assert "serial/hoisted" in executed.read_text()
    finally:
        executed.unlink(missing_ok=True)
    assert len(stored(experiment=name)) == 8


def test_sharing_needs_a_scheduler(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--share"])
    assert "--share is for machines beside each other" in capsys.readouterr().err


def test_without_dask_the_sweep_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "rnnpar.study.cluster")
    monkeypatch.delattr("rnnpar.study.cluster")
    assert sweep.main(["--profile", "ci", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "pip install 'rnnpar[cluster]'" in capsys.readouterr().err


def test_a_local_cluster_starts_with_one_command_and_its_end_ends_a_sweep(conduct):
    """The sweep says within seconds that the scheduler is lost; nothing is left running."""
    command = [sys.executable, "-m", "rnnpar.study.cluster", "--workers", "1", "--port", "0"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    address = started.stdout.readline().split()[1]
    pids, ended = [], []

    def end(conductor):
        if conductor.measured.total() >= 4 and not ended:
            pids.extend(conductor.client.run(os.getpid).values())
            pids.extend(conductor.client.run(BENCH_PID).values())
            started.terminate()
            ended.append(time.monotonic())

    conduct(end)
    with pytest.raises(ClusterError, match=r"lost the scheduler at tcp://.*; what was measured is stored"):
        cluster.run(HUNDRED, address)
    assert time.monotonic() - ended[0] < 10
    assert 4 <= len(stored()) < 100
    assert set(stored().values()) == {1}
    started.wait(20)
    started.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


def test_the_slurm_script_starts_scheduler_and_workers_and_ends_them(tmp_path):
    """With a stand-in for srun, which runs what it is given here: the script's own doing is what is tested."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({key: TINY[key] for key in TINY if key != "experiment"}))
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    name = f"test-slurm-{os.getpid()}"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": name, "SLURM_SUBMIT_DIR": str(notebooks.ROOT),
        "RNNPAR_PYTHON": sys.executable,
    }  # fmt: skip
    command = ["bash", str(notebooks.ROOT / "slurm" / "sweep.sbatch"), "--profile", "ci", "--experiment", name]
    command += ["--parameters", str(tmp_path / "tiny.yaml")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        (notebooks.ROOT / "build" / f"sweep-{name}.ipynb").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    assert len(stored(experiment=name)) == 8
    assert not list((notebooks.ROOT / "build").glob(f"scheduler-{name}*"))
    mine = [
        p for p in psutil.process_iter(["cmdline"]) if f"scheduler-{name}.json" in " ".join(p.info["cmdline"] or [])
    ]
    assert not mine


def test_the_slurm_script_says_what_it_needs(tmp_path):
    environment = os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    command = ["bash", str(notebooks.ROOT / "slurm" / "sweep.sbatch")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "submit this from the checkout, after make .venv/.cluster" in done.stderr
