"""prepare and its runners: choices, options, and bad input refused before any work."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import rnnpar
from rnnpar import machine, registry
from tests.conftest import assert_matches_oracle, random_input

NET = rnnpar.RNN.random(3, 8, 5, 2)


def test_reference_is_the_four_equations():
    """By hand: one unit, two steps."""
    layer = dict(W=np.array([[0.5]]), U=np.array([[2.0]]), b=np.array([0.1]))
    net = rnnpar.RNN.from_arrays([layer], V=np.array([[1.0], [-1.0]]), c=np.array([0.0, 0.5]))
    W, U, b, c = (float(np.float32(value)) for value in (0.5, 2.0, 0.1, 0.5))
    h1 = np.tanh(b + U * 0.3)
    h2 = np.tanh(b + W * h1 - U * 0.2)
    y, h = rnnpar.reference(net, np.array([[[0.3]], [[-0.2]]]))
    odds = np.exp([h2, c - h2])
    assert np.allclose(y[1, 0], odds / odds.sum(), rtol=1e-15)
    assert np.allclose(h, [[[h2]]], rtol=1e-15)


def test_methods_say_what_they_are():
    for method in rnnpar.methods():
        assert method.parallelises
        assert method.synchronises
        assert method.available == (not method.why_not)
        assert method.name in repr(rnnpar.methods())


def test_every_row_has_its_function_and_a_docstring():
    for method in rnnpar.methods():
        if method.available:
            text = method.load().__doc__
            assert "Parallelises" in text
            assert "Synchronises" in text
            assert "Moves" in text


def test_an_unavailable_method_says_what_to_install(monkeypatch):
    row = registry.Method("serial/imaginary", "nothing", "nothing", requires=(("no_such_module", "no-such-package"),))
    monkeypatch.setattr(registry, "TABLE", registry.Methods([row]))
    assert not row.available
    with pytest.raises(rnnpar.Unavailable, match="pip install no-such-package"):
        rnnpar.prepare(NET, "serial/imaginary")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rnnpar.prepare(NET, "threads/row"), ValueError, "unknown method 'threads/row'.*threads/rows"),
        (lambda: rnnpar.prepare(NET, 3), TypeError, "method is a int"),
        (lambda: rnnpar.prepare("net.npz"), TypeError, "net is a str"),
        (lambda: rnnpar.prepare(NET, "serial/naive", threads=2), TypeError, "takes no option threads; it takes: none"),
        (lambda: rnnpar.prepare(NET, "threads/rows", thread=2), TypeError, "no option thread; it takes: threads"),
        (lambda: rnnpar.prepare(NET, "threads/rows", threads=0), ValueError, "threads is 0; it must be at least 1"),
        (
            lambda: rnnpar.prepare(NET, "threads/rows", threads=100_000),
            ValueError,
            "threads is 100,000; this process may",
        ),
        (lambda: rnnpar.prepare(NET, threads=100_000), ValueError, "more than .* threads would wait for each other"),
        (lambda: rnnpar.prepare(NET, "Threads/Rows"), ValueError, "did you mean threads/rows"),
        (lambda: rnnpar.prepare(NET, "threads/rows", threads=-3), ValueError, "threads is -3"),
        (lambda: rnnpar.prepare(NET, "threads/rows", threads=1.5), TypeError, "threads is 1.5"),
        (lambda: rnnpar.prepare(NET, "threads/rows", threads=True), TypeError, "threads is True"),
        (lambda: rnnpar.prepare(NET, "serial/compiled", dtype="float16"), ValueError, "float16.*bfloat16"),
        (lambda: rnnpar.prepare(NET, dtype="float16"), ValueError, "float16.*bfloat16"),
    ],
)
def test_prepare_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


X = np.zeros((4, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "h0", "error", "words"),
    [
        ([[[0.0] * 3]], None, TypeError, "x is a list.*NumPy array"),
        (X.astype(np.float64), None, TypeError, r"x has dtype float64.*x.astype\(numpy.float32\)"),
        (X.astype(int), None, TypeError, "x has dtype int64"),
        (X[0], None, ValueError, r"x has shape \(2, 3\).*\(T, B, 3\)"),
        (X[..., :2], None, ValueError, r"x has shape \(4, 2, 2\).*\(T, B, 3\)"),
        (X, np.zeros((2, 2, 8)), TypeError, "h0 has dtype float64"),
        (X, [0.0], TypeError, "h0 has type list"),
        (X, np.zeros((2, 8), np.float32), ValueError, r"h0 has shape \(2, 8\).*\(2, 2, 8\)"),
        (X, np.zeros((2, 3, 8), np.float32), ValueError, r"h0 has shape \(2, 3, 8\)"),
    ],
)
@pytest.mark.parametrize("method", ["serial/naive", "threads/rows", "auto"])
def test_calls_refuse(method, x, h0, error, words):
    run = rnnpar.prepare(NET, method)
    with pytest.raises(error, match=words):
        run(x, h0)


def test_more_threads_than_cores_warns_and_is_right():
    with pytest.warns(UserWarning, match=f"this process may use {machine.cores_allowed()} cores"):
        run = rnnpar.prepare(NET, "threads/rows", threads=machine.cores_allowed() + 3)
    assert_matches_oracle(run, random_input(NET, 9, 2))


def test_nan_in_x_comes_out_as_nan():
    x = random_input(NET, 5, 2)
    x[2, 1, 0] = np.nan
    for method in ("serial/naive", "serial/compiled", "threads/rows"):
        y, _ = rnnpar.prepare(NET, method)(x)
        assert np.isnan(y[2:, 1]).all()
        assert np.isfinite(y[:, 0]).all()
        assert np.isfinite(y[:2, 1]).all()


def test_a_closed_runner_says_so():
    with rnnpar.prepare(NET, "threads/rows", threads=2) as run:
        run(random_input(NET, 3, 1))
    with pytest.raises(RuntimeError, match="closed"):
        run(random_input(NET, 3, 1))


@pytest.mark.parametrize(
    "method", ["serial/naive", "serial/compiled", "threads/timestep", "threads/rows", "threads/batch"]
)
@pytest.mark.parametrize("shared", [True, False], ids=["one runner", "a runner each"])
def test_calls_from_several_python_threads(method, shared):
    net = rnnpar.RNN.random(6, 70, 9)
    inputs = [random_input(net, 40, 1 + seed % 3, seed) for seed in range(4)]
    wanted = [rnnpar.reference(net, x)[0] for x in inputs]
    common = rnnpar.prepare(net, method)
    worst = []

    def work(index):
        run = common if shared else rnnpar.prepare(net, method)
        for _ in range(20):
            worst.append(np.abs(run(inputs[index])[0] - wanted[index]).max())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(worst) == 80
    assert max(worst) < 1e-6


RIGHT = """
import numpy as np, rnnpar
net = rnnpar.RNN.random(3, 70, 5, 2)
x = np.random.default_rng(0).standard_normal((50, 3, 3)).astype(np.float32)
wanted, _ = rnnpar.reference(net, x)
for method in ("threads/timestep", "threads/rows", "threads/batch", "threads/wavefront", "in_time/segments"):
    for threads in (2, 3):
        y, _ = rnnpar.prepare(net, method, threads=threads)(x)
        assert np.abs(y - wanted).max() < 1e-6, method
"""


def in_a_process(code, timeout=120, **variables):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value"),
    [("NUMBA_THREADING_LAYER", "tbb"), ("NUMBA_NUM_THREADS", "1"), ("OMP_THREAD_LIMIT", "1"), ("OMP_DYNAMIC", "true"),
     ("OMP_WAIT_POLICY", "active")],
)  # fmt: skip
def test_nothing_that_is_said_to_other_threads_counts_for_ours(variable, value):
    answer = in_a_process(RIGHT, **{variable: value})
    assert answer.returncode == 0, answer.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_one_core_allowed():
    answer = in_a_process(f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})\n{RIGHT}")
    assert answer.returncode == 0, answer.stderr


def test_import_is_light():
    """The face imports neither a compiler nor a plotting library: each costs a good part of a second."""
    code = "import sys, rnnpar; print([m for m in ('numba', 'matplotlib', 'pandas', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_timed_reports_the_wall_time_of_the_call():
    run = rnnpar.prepare(NET, "serial/naive")
    x = random_input(NET, 300, 2)
    run(x)
    start = time.perf_counter()
    seconds, y, _ = run.timed(x)
    assert 0 < seconds <= time.perf_counter() - start
    assert y.shape == (300, 2, 5)
