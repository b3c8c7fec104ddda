"""`prepare` and what it returns: a checked, reusable call of one method on one network."""

from __future__ import annotations

import inspect
import threading
import time
import warnings
from typing import Any

import numpy as np

from rnnpar import device_arrays, machine, registry
from rnnpar.network import RNN


class Runner:
    """One method, prepared for one network: `y, h = run(x, h0)`.

    x (T,B,I) float32, h0 (L,B,H) float32 (zeros if None) -> y (T,B,O) probabilities, h (L,B,H) the last hidden
    states, both float32 and the caller's own. NumPy in, NumPy out. A GPU's method also takes device arrays, which
    must be C-contiguous and on its device, and then returns device arrays without waiting for them to be filled.
    Calls from several Python threads are taken one after another.
    `run.method` names the method, `run.options` its options, `run.info` what it has to tell of its last call.
    """

    def __init__(self, net: RNN, method: registry.Method, options: dict[str, Any]):
        self.net = net
        self.method = method.name
        self.options = options
        self._zeros: dict[tuple[str, int], Any] = {}  # the initial state on the device, by kind of array and batch
        self._lock = threading.Lock()
        self._forward = method.load()(net, **options)
        self._takes_device_arrays = getattr(self._forward, "on_gpu", method.on_gpu)  # in_time: with CuPy only

    @property
    def info(self) -> dict[str, Any]:
        """What the method has to tell of its last call; empty for most."""
        return getattr(self._forward, "info", {})

    def __call__(self, x: Any, h0: Any = None) -> tuple[Any, Any]:
        with self._lock:
            return self._run(*self._check(x, h0))

    def timed(self, x: Any, h0: Any = None) -> tuple[float, Any, Any]:
        """(seconds, y, h): one call and its wall time, from input to output that is there to be read.

        From NumPy to NumPy arrays, or from device arrays to device arrays: the GPU has nothing else to do when the
        time starts, and is done when it ends. A method that computes in processes of its own (`peers`, and `mpi` on
        ranks that it started) reports the seconds that passed there, so that the way to them is not charged to it.
        Where this process is itself one of several ranks, y and h are None on all but rank 0.
        """
        synchronize = getattr(self._forward, "synchronize", lambda: None)
        if not isinstance(x, np.ndarray):
            synchronize()  # what was put into the GPU's queue before, such as the filling of x, is not this call's
        start = time.perf_counter()
        with self._lock:
            x, h0 = self._check(x, h0)
            y, h = self._run(x, h0)
            if 0 in x.shape[:2]:
                return 0.0, y, h
            synchronize()
            seconds = time.perf_counter() - start
            return getattr(self._forward, "seconds", seconds), y, h

    def _check(self, x: Any, h0: Any) -> tuple[Any, Any]:
        """x and h0 as the method takes them, or an error before any work."""
        if hasattr(self._forward, "agree"):  # one rank of several: all accept their input, or all refuse it
            return self._forward.agree(check_input, self.net, x, h0)
        if isinstance(x, np.ndarray) or not device_arrays.is_device_array(x):
            return check_input(self.net, x, h0)
        if not self._takes_device_arrays:
            raise TypeError(refuse_device_array(self.method, x))
        h0 = check_device_input(self.net, x, h0, self.options.get("device", 0))
        if h0 is None:
            shape = (self.net.num_layers, x.shape[1], self.net.hidden_size)
            key = (device_arrays.kind(x), x.shape[1])
            if key not in self._zeros:
                self._zeros = {key: device_arrays.zeros(x, shape)}
            h0 = self._zeros[key]
        return x, h0

    def _run(self, x: Any, h0: Any) -> tuple[Any, Any]:
        if self._forward is None:
            raise RuntimeError(f"this {self.method} runner is closed; prepare a new one")
        if 0 not in x.shape[:2]:
            return self._forward(x, h0)
        if not getattr(self._forward, "root", True):
            return None, None
        shape = (*x.shape[:2], self.net.output_size)  # no steps or no sequences: nothing to compute, the state stays
        if isinstance(x, np.ndarray):
            return np.empty(shape, np.float32), h0.copy()
        return device_arrays.empty(x, shape), device_arrays.duplicate(h0)

    def close(self) -> None:
        """Free what the runner holds: buffers, and processes where it started some."""
        with self._lock:
            forward, self._forward = self._forward, None
            self._zeros = {}
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
        self._choice: dict[tuple[int, int, bool], str] = {}

    @property
    def info(self) -> dict[str, Any]:
        return self._runners[self.method].info if self.method in self._runners else {}

    def __call__(self, x: Any, h0: Any = None) -> tuple[Any, Any]:
        return self._runner_for(x, h0)(x, h0)

    def timed(self, x: Any, h0: Any = None) -> tuple[float, Any, Any]:
        return self._runner_for(x, h0).timed(x, h0)

    def _runner_for(self, x: Any, h0: Any) -> Runner:
        on_device = not isinstance(x, np.ndarray) and device_arrays.is_device_array(x)
        if on_device:
            check_device_input(self.net, x, h0, device=0)
        else:
            check_input(self.net, x, h0)
        runner = self._pick(*x.shape[:2], on_device)
        self.method = runner.method
        return runner

    def _pick(self, T: int, B: int, on_device: bool) -> Runner:
        from rnnpar import model

        if (T, B, on_device) not in self._choice:
            threads = self.options.get("threads", machine.cores_allowed())
            dtype = self.options.get("dtype", "float32")
            self._choice[T, B, on_device] = model.fastest(self.net, T, B, threads, on_device, dtype)
        name = self._choice[T, B, on_device]
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
    if h0 is not None and not isinstance(h0, np.ndarray) and device_arrays.is_device_array(h0):
        raise TypeError(f"x is a NumPy array and h0 a device array ({device_arrays.kind(h0)}); give both of one kind")
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


def check_device_input(net: RNN, x: Any, h0: Any, device: int) -> Any:
    """h0 (None stays None) where the device arrays x and h0 fit the network and lie on `device`, as they are.

    TypeError or ValueError say what was given and what would do; nothing is copied.
    """
    wanted = f"(T, B, {net.input_size})"
    shape = device_arrays.check("x", x, wanted, device)
    if len(shape) != 3 or shape[2] != net.input_size:
        raise ValueError(f"x has shape {shape}; it must be {wanted}: steps, batch, input_size")
    state = (net.num_layers, shape[1], net.hidden_size)
    if h0 is None:
        return None
    if isinstance(h0, np.ndarray) or not device_arrays.is_device_array(h0):
        raise TypeError(f"x is a device array ({device_arrays.kind(x)}) and h0 a {type(h0).__name__}; give both of "
                        "one kind, since nothing is copied to the device behind your back")  # fmt: skip
    found = device_arrays.check("h0", h0, str(state), device)
    if found != state:
        raise ValueError(f"h0 has shape {found}; with this x it must be (num_layers, B, hidden_size) = {state}")
    return h0


def refuse_device_array(method: str, x: Any) -> str:
    """Why `method` does not take the device array x, and what would do."""
    kind = device_arrays.kind(x)
    to_host = {"cupy": "cupy.asnumpy(x)", "torch": "x.cpu().numpy()"}.get(kind.split(".")[0], "x.copy_to_host()")
    able = [row.name for row in registry.methods() if row.on_gpu and row.available]
    instead = f"or take a method that computes there: {', '.join(able)}" if able else "and no GPU method can run here"
    where = "computes in a process of its own" if method.startswith("peers/") else "computes on the CPU"
    return f"{method} {where}, and x is a device array ({kind}): give it {to_host}, {instead}"
