"""The peers against the oracle, and the process around them: it says what went wrong, never hangs, and goes away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.backends import peers, processes
from rnnpar.runner import Runner
from tests.conftest import Interrupted, assert_matches_oracle, children, random_input

ROOT = Path(__file__).parents[2]
X, H0 = np.zeros((3, 2, 4), np.float32), np.ones((1, 2, 5), np.float32)


def prepare(name: str, net: rnnpar.RNN) -> Runner:
    for module, _ in registry.find(name).requires:
        pytest.importorskip(module)
    return rnnpar.prepare(net, name, threads=machine.cores_allowed())


# --- The engines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["peers/torch", "peers/onnxruntime", "peers/openvino", "peers/jax"])
def test_peer_equals_oracle_by_every_formulation(name):
    """Stacked layers, odd sizes, one step and one sequence, an initial state; and its own clock."""
    net = rnnpar.RNN.random(3, 7, 5, 2)
    with prepare(name, net) as run:
        for T, B in ((13, 1), (6, 3), (1, 1)):
            x = random_input(net, T, B)
            h0 = np.random.default_rng(1).uniform(-1, 1, (2, B, 7)).astype(np.float32)
            assert_matches_oracle(run, x)
            assert_matches_oracle(run, x, h0)
            told = run._forward.info
            assert not told["failed"]
            assert told["formulation"] in told["tried"]
        seconds, y, h = run.timed(x, h0)
        assert 0 < seconds == run._forward.seconds < 1
        assert y.flags.writeable
        assert h.flags.writeable


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(registry, "_importable", lambda module: module != "openvino")
    with pytest.raises(rnnpar.Unavailable, match="pip install openvino"):
        rnnpar.prepare(rnnpar.RNN.random(1, 1, 1), "peers/openvino")


# --- Choosing the fastest ----------------------------------------------------------------------------------------


def test_fastest_leaves_out_what_is_slow_wrong_or_broken():
    def good(x, h0):
        return x + 1, h0

    def slow(x, h0):
        time.sleep(0.02)
        return x + 1, h0

    def wrong(x, h0):
        return x, h0

    def broken():
        raise ImportError("no such engine")

    builds = {"slow": lambda: slow, "wrong": lambda: wrong, "broken": broken, "good": lambda: good}
    forward = peers.Fastest(lambda T, B: builds)
    y, _ = forward(X, H0)
    assert np.array_equal(y, X + 1)
    assert forward.info["formulation"] == "good"
    assert set(forward.info["tried"]) == {"slow", "good"}
    assert set(forward.info["failed"]) == {"wrong", "broken"}
    assert "no such engine" in forward.info["failed"]["broken"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_fastest_chooses_by_ordinary_numbers(bad):
    """Two formulations whose answers to NaN differ are both right; the caller gets what the chosen one says of x."""
    seen = []

    def forward(x, h0):
        seen.append(x)
        return x * np.float32(10), h0

    x = np.ones_like(X)
    x[1, 1, 1] = bad
    fastest = peers.Fastest(lambda T, B: {"one": lambda: forward, "two": lambda: forward})
    with np.errstate(over="ignore"):
        y, _ = fastest(x, np.full_like(H0, np.nan))
    assert not fastest.info["failed"]
    assert all(tried[1, 1, 1] == 0 and tried.sum() == x.size - 1 for tried in seen[:-1])
    assert seen[-1] is x
    assert y[0, 0, 0] == 10


def test_fastest_says_why_nothing_runs():
    def broken():
        raise ImportError("no such engine")

    with pytest.raises(RuntimeError, match="one: ImportError: no such engine"):
        peers.Fastest(lambda T, B: {"one": broken})(X, H0)


# --- The process: forward passes that misbehave, made in the child -----------------------------------------------


def behaving(how: str):
    """What the child prepares: adds 1, or does what `how` says where x[0,0,0] asks for it."""
    if how == "refuses":
        raise ValueError("cannot prepare this")

    def forward(x, h0):
        print("an engine prints")
        if x[0, 0, 0] == 1:
            if how == "dies":
                print("the last words", file=sys.stderr, flush=True)
                os._exit(3)
            if how == "hangs":
                time.sleep(3600)
            if how == "fails":
                raise ValueError("cannot compute this")
        y = x + 1
        y.flags.writeable = False
        return y, h0

    return forward


def surroundings():
    """A forward pass that tells of its process: thread variables, and how many cores it may use."""
    y = np.array([float(os.environ.get(key, -1)) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")])
    return lambda x, h0: (y, np.array([len(os.sched_getaffinity(0))]))


def child(how: str) -> peers.Child:
    return peers.Child("peers/odd", f"{__name__}:behaving", (how,), threads=1)


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


ASKED = np.ones_like(X)


def test_close_ends_the_process():
    forward = child("well")
    y, h = forward(X, H0)
    assert np.array_equal(y, X + 1)
    assert np.array_equal(h, H0)
    assert y.flags.writeable
    seconds, *_ = forward.calls(X, H0, 4)
    assert len(seconds) == 4
    assert forward.seconds == seconds[-1] > 0
    forward.close()
    assert gone(forward.pid, 0)
    forward.close()
    with pytest.raises(RuntimeError, match=r"closed.*prepare a new one"):
        forward(X, H0)


def test_a_forgotten_runner_leaves_no_process():
    forward = child("well")
    pid = forward.pid
    del forward
    assert gone(pid)


def test_a_child_that_dies_is_told_with_its_last_words():
    forward = child("dies")
    forward(X, H0)
    with pytest.raises(RuntimeError, match=r"(?s)peers/odd ended \(exit status 3\).*the last words"):
        forward(ASKED, H0)
    assert np.array_equal(forward(X, H0)[0], X + 1)
    forward.close()


def test_a_child_that_is_killed_is_told():
    forward = child("well")
    os.kill(forward.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="signal 9"):
        forward(X, H0)


def test_a_child_that_hangs_is_ended():
    forward = child("hangs")
    forward.limit_s = 0.5
    with pytest.raises(RuntimeError, match=r"did not answer within 0\.5 s"):
        forward(ASKED, H0)
    assert gone(forward.pid)


def test_a_child_that_is_killed_from_another_thread_answers_the_next_request():
    forward = child("well")
    for _ in range(5):
        forward.kill()
        assert not forward.alive
        assert np.array_equal(forward(X, H0)[0], X + 1)


def test_a_process_that_nobody_asks_ends_and_the_next_request_starts_another():
    made = processes.Child("a list", "builtins:list", ("ab",), idle_s=3)  # time enough, on busy cores, to ask it first
    first = made.pid
    assert made.ask("pop") == "b"
    assert made._process.wait(60) == 0
    assert made.ask("pop") == "b"
    assert made.pid != first
    with pytest.raises(processes.Failed, match="a list failed in its process: AttributeError") as error:
        made.ask("pull")
    assert error.value.reason == "AttributeError: 'list' object has no attribute 'pull'"
    made.close()


def test_a_process_that_does_not_start_in_time_is_given_up():
    with pytest.raises(processes.Died, match=r"the process of a sleeper did not answer within 0\.2 s"):
        processes.Child("a sleeper", "time:sleep", (60,), limit_s=0.2)


def test_a_child_that_no_longer_reads_is_ended():
    forward = child("well")
    os.kill(forward.pid, signal.SIGSTOP)
    forward.limit_s = 0.5
    with pytest.raises(RuntimeError, match="did not answer"):
        forward(np.zeros((1000, 100, 4), np.float32), H0)
    assert gone(forward.pid)


def test_an_error_in_the_child_is_told_and_the_child_stays():
    forward = child("fails")
    with pytest.raises(RuntimeError, match=r"(?s)peers/odd failed.*ValueError: cannot compute this"):
        forward(ASKED, H0)
    assert np.array_equal(forward(X, H0)[0], X + 1)
    forward.close()


def test_an_error_while_preparing_is_told():
    with pytest.raises(RuntimeError, match=r"(?s)peers/odd failed.*cannot prepare this"):
        child("refuses")


def test_an_interrupt_ends_the_child_rather_than_mix_up_answers(interrupt):
    forward = child("hangs")
    forward(X, H0)
    pid, had = forward.pid, psutil.Process().num_fds()
    due = interrupt(0.3)
    with pytest.raises(Interrupted):
        forward(ASKED, H0)
    assert time.monotonic() - due < 0.3
    assert gone(pid)
    assert np.array_equal(forward(X + 2, H0)[0], X + 3), "a new child, and its own answer"
    assert psutil.Process().num_fds() == had
    forward.close()
    with pytest.raises(RuntimeError, match="prepare a new one"):
        forward(X, H0)


@pytest.mark.parametrize("seconds", [0.001, 0.003, 0.01, 0.05])
def test_an_interrupted_start_leaves_nothing(interrupt, seconds):
    had = psutil.Process().num_fds(), children()

    def begin() -> None:
        interrupt(seconds)
        child("well").close()
        time.sleep(5)

    with pytest.raises(Interrupted):
        begin()
    assert (psutil.Process().num_fds(), children()) == had


def test_a_forked_process_ends_no_child_and_starts_its_own():
    program = """
import gc, os, sys, threading, time
import numpy as np
from tests.backends.test_peers import ASKED, H0, X, child
forward, busy = child("well"), child("hangs")
threading.Thread(target=busy, args=(ASKED, H0), daemon=True).start()  # has the locks that a call takes
time.sleep(0.3)
pid = forward.pid
for does in ("end", "exit", "forget", "close", "call"):
    fork = os.fork()
    if fork == 0:
        if does == "end":
            os._exit(0)
        if does == "forget":
            del forward, busy
            gc.collect()
        if does == "close":
            forward.close()
        if does == "call":
            for _ in range(2):
                assert np.array_equal(forward(X, H0)[0], X + 1)
            assert forward.pid != pid
        sys.exit(0)
    assert os.waitpid(fork, 0)[1] == 0, does
    assert np.array_equal(forward(X, H0)[0], X + 1)
    assert forward.pid == pid
print("all right")
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert "all right" in done.stdout, done.stderr
    assert "ResourceWarning: subprocess" not in done.stderr


def test_the_child_ends_with_its_parent_even_in_a_call():
    program = f"""
import os, threading
from tests.backends.test_peers import ASKED, H0, child
forward = child("hangs")
threading.Thread(target=forward, args=(ASKED, H0), daemon=True).start()
print(forward.pid, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    parent = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    assert gone(int(parent.stdout))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_child_has_its_own_thread_variables_and_as_many_cores_as_threads(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    forward = peers.Child("peers/odd", f"{__name__}:surroundings", (), threads=1, environment={"OMP_NUM_THREADS": "1"})
    variables, cores = forward(X, H0)
    assert variables.tolist() == [1, -1]
    assert cores.tolist() == [1]
    forward.close()
