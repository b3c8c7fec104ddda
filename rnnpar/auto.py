"""`prepare`, which makes a runner of a method's name, and "auto", which lets the model choose the method.

The front door: above it is whoever calls, below it are the runner, the registry of methods and the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnpar import device_arrays, machine, model, registry
from rnnpar.kernels.launch import DoesNotFit
from rnnpar.network import RNN
from rnnpar.runner import Runner, check_device_input, check_input, check_threads


def prepare(net: RNN, method: str = "auto", **options: Any) -> Runner:
    """Do once what is done once (pack, compile, start) and return a runner, `y, h = run(x, h0)`.

    `method` is a name from `rnnpar.methods()`, or "auto": the model's choice, made from x's shape at each call.
    `options` are the method's own, such as threads=2; threads default to the cores that this process may use.
    Raises TypeError or ValueError for a wrong network, method or option, Unavailable where it cannot run.
    """
    if isinstance(method, str) and method.startswith("mpi/"):
        from rnnpar.backends import mpi

        mpi.attend()  # what one rank of a job raises here, the others have to hear of
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
    needed = [name for name, default in known.items() if default is inspect.Parameter.empty and name != "threads"]
    if missing := [name for name in needed if name not in options]:
        raise TypeError(
            f"{method} needs a value for {', '.join(missing)}, as in prepare(net, {method!r}, {missing[0]}=...); a "
            "method takes the network and returns its forward pass, which takes x and h0"
        )
    if "threads" in options or known.get("threads", 1) in (
        None,
        inspect.Parameter.empty,
    ):  # else it has its own default
        options["threads"] = check_threads(options.get("threads"))
    return AutoRunner(net, options) if method == "auto" else Runner(net, row, options)


class AutoRunner(Runner):
    """A runner that asks the model which method is fastest at x's shape; `method` is that of the last call.

    A method that the model chose and that then finds that it does not fit the device (DoesNotFit: the driver has less
    room than its limits tell) is left out from then on at that shape, and the next is taken.
    """

    def __init__(self, net: RNN, options: dict[str, Any]):
        self.net = net
        self.method = "auto"
        self.options = options
        self._runners: dict[str, Runner] = {}
        self._choice: dict[tuple[int, int, bool], str] = {}
        self._too_small: dict[tuple[int, int, bool], set[str]] = {}  # the methods that did not fit, by shape
        self._closed = False

    @property
    def info(self) -> dict[str, Any]:
        return self._runners[self.method].info if self.method in self._runners else {}

    def __call__(self, x: Any, h0: Any = None) -> tuple[Any, Any]:
        return self._first_that_fits(x, h0, lambda runner: runner(x, h0))

    def timed(self, x: Any, h0: Any = None) -> tuple[float, Any, Any]:
        return self._first_that_fits(x, h0, lambda runner: runner.timed(x, h0))

    def _first_that_fits(self, x: Any, h0: Any, call: Callable[[Runner], Any]) -> Any:
        while True:
            try:
                return call(self._runner_for(x, h0))
            except DoesNotFit:
                shape = (*x.shape[:2], not isinstance(x, np.ndarray))
                self._too_small.setdefault(shape, set()).add(self._choice.pop(shape))

    def _runner_for(self, x: Any, h0: Any) -> Runner:
        if self._closed:
            raise RuntimeError("this auto runner is closed; prepare a new one")
        on_device = not isinstance(x, np.ndarray) and device_arrays.is_device_array(x)
        if on_device:
            check_device_input(self.net, x, h0, device=0)
        else:
            check_input(self.net, x, h0)
        runner = self._pick(*x.shape[:2], on_device)
        self.method = runner.method
        return runner

    def _pick(self, T: int, B: int, on_device: bool) -> Runner:
        if (T, B, on_device) not in self._choice:
            threads = self.options.get("threads", machine.cores_allowed())
            dtype = self.options.get("dtype", "float32")
            without = self._too_small.get((T, B, on_device), set())
            self._choice[T, B, on_device] = model.fastest(self.net, T, B, threads, on_device, dtype, without)
        name = self._choice[T, B, on_device]
        if name not in self._runners:
            known = registry.find(name).options()
            self._runners[name] = prepare(self.net, name, **{k: v for k, v in self.options.items() if k in known})
        return self._runners[name]

    def close(self) -> None:
        self._closed = True
        for runner in self._runners.values():
            runner.close()
        self._runners = {}
