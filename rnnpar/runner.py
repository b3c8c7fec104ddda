"""What `prepare` returns: a checked, reusable call of one method on one network."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from typing import Any

import numpy as np

from rnnpar import device_arrays, machine, registry
from rnnpar.network import RNN, refuse_masked

MOST_THREADS = 256  # or four a core: some more than there are cores are only slow, a thousand take seconds a step


_living: weakref.WeakSet[Runner] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child no call goes on: a lock that a thread of the parent held would never be released."""
    for runner in _living:
        runner._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
        self._begin_anew()
        self.checks_returned = method.function is not None  # what the package brings is held to it by its tests
        self._forward = method.load()(net, **options)
        if not callable(self._forward):
            raise TypeError(f"{self.method} returned a {type(self._forward).__name__} for the network; it must return "
                            "the forward pass, a function (x, h0) -> (y, h)")  # fmt: skip
        self._takes_device_arrays = getattr(self._forward, "on_gpu", method.on_gpu)  # in_time: with CuPy only
        _living.add(self)

    def _begin_anew(self) -> None:
        """Nobody is in a call. The lock lets its thread in again, that of a signal's handler, to be refused."""
        self._lock = threading.RLock()
        self._calling = False

    @property
    def info(self) -> dict[str, Any]:
        """What the method has to tell of its last call; empty for most."""
        return getattr(self._forward, "info", {})

    def __call__(self, x: Any, h0: Any = None) -> tuple[Any, Any]:
        with self._lock:
            if self._calling:
                self._refuse_nested()
            self._calling = True
            try:
                return self._run(*self._check(x, h0))
            finally:
                self._calling = False

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
        y, h = self(x, h0)
        if 0 in x.shape[:2]:
            return 0.0, y, h
        synchronize()
        seconds = time.perf_counter() - start
        return getattr(self._forward, "seconds", seconds), y, h

    def _refuse_nested(self) -> None:
        raise RuntimeError(f"a signal's handler called this {self.method} runner in the middle of a call; let it set a "
                           "flag, and call later")  # fmt: skip

    def __reduce__(self) -> Any:
        raise TypeError(f"a runner of {self.method} cannot be pickled: pickle its network, run.net, and prepare there")

    def _check(self, x: Any, h0: Any) -> tuple[Any, Any]:
        """x and h0 as the method takes them, or an error before any work."""
        if self._forward is None:
            raise RuntimeError(f"this {self.method} runner is closed; prepare a new one")
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
        if 0 not in x.shape[:2]:
            returned = self._forward(x, h0)
            if self.checks_returned and isinstance(x, np.ndarray):
                check_returned(self.method, self.net, x, returned)
            return returned
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


def check_threads(threads: int | None) -> int:
    """A usable number of threads: by default the cores allowed. Warns where there are more threads than cores."""
    allowed = machine.cores_allowed()
    if threads is None:
        return allowed
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"threads is {threads!r}; it must be a whole number of at least 1")
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1 (this process may use {allowed} cores)")
    most = max(MOST_THREADS, 4 * allowed)
    if threads > most:
        raise ValueError(f"threads is {threads:,}; this process may use {allowed} cores, and more than {most:,} "
                         "threads would wait for each other without end")  # fmt: skip
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
    if type(x) is not np.ndarray:
        refuse_masked(x, "x")
    if h0 is not None and not isinstance(h0, np.ndarray) and device_arrays.is_device_array(h0):
        raise TypeError(f"x is a NumPy array and h0 a device array ({device_arrays.kind(h0)}); give both of one kind")
    if x.dtype != np.float32:
        raise TypeError(f"x has dtype {x.dtype}; it must be float32: x.astype(numpy.float32)")
    if x.ndim != 3 or x.shape[2] != net.input_size:
        raise ValueError(f"x has shape {x.shape}; it must be (T, B, {net.input_size}): steps, batch, input_size")
    state = (net.num_layers, x.shape[1], net.hidden_size)
    if h0 is None:
        return np.ascontiguousarray(x), np.zeros(state, np.float32)
    refuse_masked(h0, "h0")
    if not isinstance(h0, np.ndarray) or h0.dtype != np.float32:
        given = f"dtype {h0.dtype}" if isinstance(h0, np.ndarray) else f"type {type(h0).__name__}"
        raise TypeError(f"h0 has {given}; it must be a NumPy array {state} of float32")
    if h0.shape != state:
        raise ValueError(f"h0 has shape {h0.shape}; with this x it must be (num_layers, B, hidden_size) = {state}")
    return np.ascontiguousarray(x), np.ascontiguousarray(h0)


def check_returned(method: str, net: RNN, x: Any, returned: Any) -> None:
    """TypeError or ValueError unless a method of the user's own returned y (T,B,O) and h (L,B,H), both float32."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        what = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}"
        raise TypeError(f"the forward pass of {method} returned {what}; it must return y, h")
    wanted = {"y": (*x.shape[:2], net.output_size), "h": (net.num_layers, x.shape[1], net.hidden_size)}
    for (name, shape), array in zip(wanted.items(), returned, strict=True):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{method} returned {name} as a {type(array).__name__}; it must be a NumPy array {shape}")
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"{method} returned {name} as {array.shape} of {array.dtype}; it must be {shape} of float32"
            )


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
