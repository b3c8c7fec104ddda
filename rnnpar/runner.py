"""`prepare` and what it returns: a checked, reusable call of one method on one network."""

from __future__ import annotations

import inspect
import threading
import time
import warnings
from typing import Any

import numpy as np

from rnnpar import machine, registry
from rnnpar.network import RNN


class Runner:
    """One method, prepared for one network: `y, h = run(x, h0)`.

    x (T,B,I) float32, h0 (L,B,H) float32 (zeros if None) -> y (T,B,O) probabilities, h (L,B,H) the last hidden
    states, both float32 and the caller's own. Calls from several Python threads are taken one after another.
    `run.method` names the method, `run.options` its options, `run.info` what it has to tell of its last call.
    """

    def __init__(self, net: RNN, method: registry.Method, options: dict[str, Any]):
        self.net = net
        self.method = method.name
        self.options = options
        self._lock = threading.Lock()
        self._forward = method.load()(net, **options)

    @property
    def info(self) -> dict[str, Any]:
        """What the method has to tell of its last call; empty for most."""
        return getattr(self._forward, "info", {})

    def __call__(self, x: np.ndarray, h0: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        return self.timed(x, h0)[1:]

    def timed(self, x: np.ndarray, h0: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """(seconds, y, h): one call and its wall time, from NumPy input to NumPy output.

        A method that computes in processes of its own (`peers`, and `mpi` on ranks that it started) reports the
        seconds that passed there, so that the way to them is not charged to it. Where this process is itself one of
        several ranks, y and h are None on all but rank 0.
        """
        start = time.perf_counter()
        with self._lock:
            if self._forward is None:
                check_input(self.net, x, h0)
                raise RuntimeError(f"this {self.method} runner is closed; prepare a new one")
            if hasattr(self._forward, "agree"):  # one rank of several: all accept their input, or all refuse it
                x, h0 = self._forward.agree(check_input, self.net, x, h0)
            else:
                x, h0 = check_input(self.net, x, h0)
            if x.size == 0 and 0 in x.shape[:2]:  # no steps or no sequences: nothing to compute, the state stays
                if not getattr(self._forward, "root", True):
                    return 0.0, None, None
                return 0.0, np.empty((*x.shape[:2], self.net.output_size), np.float32), h0.copy()
            y, h = self._forward(x, h0)
            seconds = time.perf_counter() - start
            return getattr(self._forward, "seconds", seconds), y, h

    def close(self) -> None:
        """Free what the runner holds: buffers, and processes where it started some."""
        with self._lock:
            forward, self._forward = self._forward, None
        if hasattr(forward, "close"):
            forward.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"<{self.method}{options} of {self.net!r}>"


class AutoRunner(Runner):
    """A runner that asks the model which method is fastest at x's shape; `method` is that of the last call."""

    def __init__(self, net: RNN, options: dict[str, Any]):
        self.net = net
        self.method = "auto"
        self.options = options
        self._runners: dict[str, Runner] = {}
        self._choice: dict[tuple[int, int], str] = {}

    @property
    def info(self) -> dict[str, Any]:
        return self._runners[self.method].info if self.method in self._runners else {}

    def timed(self, x: np.ndarray, h0: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        check_input(self.net, x, h0)
        runner = self._pick(*x.shape[:2])
        self.method = runner.method
        return runner.timed(x, h0)

    def _pick(self, T: int, B: int) -> Runner:
        from rnnpar import model

        if (T, B) not in self._choice:
            threads = self.options.get("threads", machine.cores_allowed())
            self._choice[T, B] = model.fastest(self.net, T, B, threads)
        name = self._choice[T, B]
        if name not in self._runners:
            known = registry.find(name).options()
            self._runners[name] = prepare(self.net, name, **{k: v for k, v in self.options.items() if k in known})
        return self._runners[name]

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def prepare(net: RNN, method: str = "auto", **options: Any) -> Runner:
    """Do once what is done once (pack, compile, start) and return a runner, `y, h = run(x, h0)`.

    `method` is a name from `rnnpar.methods()`, or "auto": the model's choice, made from x's shape at each call.
    `options` are the method's own, such as threads=2; threads default to the cores that this process may use.
    Raises TypeError or ValueError for a wrong network, method or option, Unavailable where it cannot run.
    """
    if not isinstance(net, RNN):
        raise TypeError(f"net is a {type(net).__name__}; it must be an rnnpar.RNN, from RNN.from_arrays or the like")
    if not isinstance(method, str):
        raise TypeError(f"method is a {type(method).__name__}; it must be a name such as 'threads/rows'")
    if method == "auto":
        known: dict[str, Any] = {"threads": None, "dtype": "float32"}
    else:
        row = registry.find(method)
        known = row.options()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{method} takes no option {', '.join(unknown)}; it takes: {', '.join(known) or 'none'}")
    if method == "auto" and options.get("dtype", "float32") not in ("float32", "bfloat16"):
        # A named method refuses it when it packs the weights; auto packs only when it has seen x.
        raise ValueError(f"dtype is {options['dtype']!r}; it must be 'float32' or 'bfloat16'")
    if "threads" in options or known.get("threads", 1) in (
        None,
        inspect.Parameter.empty,
    ):  # else it has its own default
        options["threads"] = check_threads(options.get("threads"))
    return AutoRunner(net, options) if method == "auto" else Runner(net, row, options)


def check_threads(threads: int | None) -> int:
    """A usable number of threads: by default the cores allowed. Warns where there are more threads than cores."""
    allowed = machine.cores_allowed()
    if threads is None:
        return allowed
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"threads is {threads!r}; it must be a whole number of at least 1")
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1 (this process may use {allowed} cores)")
    if threads > allowed:
        warnings.warn(
            f"threads={threads}, but this process may use {allowed} cores: the result is right, the time is not",
            UserWarning,
            stacklevel=3,
        )
    return int(threads)


def check_input(net: RNN, x: np.ndarray, h0: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """x and h0 as C-ordered float32 arrays that fit the network, or an error that says what would."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x is a {type(x).__name__}; it must be a NumPy array (T, B, {net.input_size}) of float32")
    if x.dtype != np.float32:
        raise TypeError(f"x has dtype {x.dtype}; it must be float32: x.astype(numpy.float32)")
    if x.ndim != 3 or x.shape[2] != net.input_size:
        raise ValueError(f"x has shape {x.shape}; it must be (T, B, {net.input_size}): steps, batch, input_size")
    state = (net.num_layers, x.shape[1], net.hidden_size)
    if h0 is None:
        h0 = np.zeros(state, np.float32)
    elif not isinstance(h0, np.ndarray) or h0.dtype != np.float32:
        given = f"dtype {h0.dtype}" if isinstance(h0, np.ndarray) else f"type {type(h0).__name__}"
        raise TypeError(f"h0 has {given}; it must be a NumPy array {state} of float32")
    elif h0.shape != state:
        raise ValueError(f"h0 has shape {h0.shape}; with this x it must be (num_layers, B, hidden_size) = {state}")
    return np.ascontiguousarray(x), np.ascontiguousarray(h0)
