"""The one table of methods: name, what it parallelises, what it synchronises by, and why it cannot run here.

A method is `backend/strategy`: the function `strategy` in `rnnpar/backends/<backend>.py`. That function takes the
network and its own options, does everything that is done once (packing, compiling, starting processes) and returns
the forward pass, `forward(x, h0) -> (y, h)`. To add a method: write the function, add its row here. To try one
without touching the package, in a notebook for instance: `register` it, for as long as the process lives.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rnnpar.words import did_you_mean

PACKAGE = Path(__file__).parent
GPU_BACKENDS = ("numba_cuda", "cupy_gpu")


class Unavailable(RuntimeError):
    """The method exists but cannot run here; the message says why and what would do."""


@dataclass(frozen=True)
class Method:
    """One row of the table. `requires` are (module to import, what to install) pairs; all else is prose.

    `probe` is "module:function" of this package: asked where all that is installed, it says why the method cannot run
    here all the same, with what would do, or nothing where it can. A method that `register` added carries its
    `function`, the hash of that one's `source`, and where it was given what it `predicts`: the formula
    (model, work, threads) -> seconds.
    """

    name: str
    parallelises: str
    synchronises: str
    requires: tuple[tuple[str, str], ...] = ()
    probe: str = ""
    function: Callable[..., Any] | None = None
    source: str = ""
    predicts: Callable[..., float] | None = None

    @property
    def backend(self) -> str:
        return self.name.split("/")[0]

    @property
    def strategy(self) -> str:
        return self.name.split("/")[1]

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU in this process, and so takes device arrays and returns them."""
        return self.backend in GPU_BACKENDS

    @property
    def why_not(self) -> str:
        """Why the method cannot run here, with what would do; empty where it can."""
        missing = [package for module, package in self.requires if not _importable(module)]
        if missing:
            return f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        return _probed(self.probe) if self.probe else ""

    @property
    def available(self) -> bool:
        return not self.why_not

    def load(self) -> Callable[..., Any]:
        """The strategy's function. Raises Unavailable where the method cannot run."""
        if self.why_not:
            raise Unavailable(f"{self.name} cannot run here: {self.why_not}")
        if self.function:
            return self.function
        return getattr(importlib.import_module(f"rnnpar.backends.{self.backend}"), self.strategy)

    def options(self) -> dict[str, Any]:
        """The options that the strategy takes, with their defaults."""
        parameters = list(inspect.signature(self.load()).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def source_hash(self) -> str:
        """A short hash of the code that runs: the backend's file, and the kernels' that it imports, directly or not."""
        if self.function:
            return self.source
        files = source_files(PACKAGE / "backends" / f"{self.backend}.py")
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:10]


def source_files(backend: Path) -> list[Path]:
    """A backend's file, then the files of `kernels` that it imports, directly or through each other, by name.

    Imports within functions count as well. CUDA C++ belongs to whoever loads it: all of it, where a file names any.
    """
    found: set[Path] = set()
    new = [backend]
    while new:
        file = new.pop()
        text = file.read_text(encoding="utf-8")
        needed = {PACKAGE / "kernels" / f"{name}.py" for name in _kernels_imported(text)}
        if ".cuh" in text:
            needed |= set((PACKAGE / "kernels").glob("*.cuh"))
        fresh = {path for path in needed if path.is_file()} - found
        found |= fresh
        new += [path for path in fresh if path.suffix == ".py"]
    return [backend, *sorted(found)]


def _kernels_imported(text: str) -> set[str]:
    """The names under rnnpar.kernels that a Python file imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "rnnpar.kernels":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rnnpar.kernels."):
            names.add(node.module.split(".")[2])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith("rnnpar.kernels.")}
    return names


class Methods(tuple):
    """The methods, printed as a table."""

    def __repr__(self) -> str:
        width = max((len(method.name) for method in self), default=0)
        return "\n".join(
            f"{method.name:{width}}  {method.parallelises}" + ("" if method.available else f"  [{method.why_not}]")
            for method in self
        )


def compiled(*row: str, **more: Any) -> Method:
    """A row of a method that Numba compiles for the CPU."""
    return Method(*row, probe="registry:why_not_compiled", **more)


def why_not_compiled() -> str:
    """Why nothing can be compiled here; asked without Numba, which takes half a second to import."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0"):
        return ""
    return "NUMBA_DISABLE_JIT is set, and this is compiled: unset it"


MPI = (("mpi4py", "mpi4py mpich"),)  # mpich brings mpiexec; a system's or a cluster's own MPI does as well
NUMBA = ((("numba_cuda", "'numba-cuda[cu13]'"),), "kernels.launch:why_no_gpu")  # requires, probe

CUPY = ((("cupy", "'cupy-cuda13x[ctk]'"),), "kernels.cuda_source:why_no_cupy")
CUPY_CLUSTER = (CUPY[0], "kernels.cuda_source:why_no_clusters")

TABLE = Methods((
    Method("serial/naive", "nothing: NumPy, a step at a time, as on paper", "nothing"),
    Method("serial/hoisted", "nothing: U x and V h as one product each over all time steps", "nothing"),
    compiled("serial/compiled", "vector lanes of one core: register tiles, vectorised tanh and softmax", "nothing"),
    compiled("threads/timestep", "time steps over threads, as the origin did", "one ready flag a step"),
    compiled("threads/rows", "rows of W over threads, each keeping its share in its own cache", "one barrier a step"),
    compiled("threads/batch", "sequences of the batch over threads", "nothing"),
    compiled("threads/wavefront", "layers, and the products around them, pipelined over time", "one flag a chunk"),
    compiled("in_time/jacobi", "time steps, all at once, until nothing moves", "one barrier an iteration"),
    compiled("in_time/segments", "segments of time, each step by step from a guess", "two barriers an iteration"),
    compiled("in_time/quasi_deer", "time: Newton's correction by a scan of diagonals", "three barriers an iteration"),
    compiled("in_time/deer", "time: Newton's correction by a scan of dense Jacobians", "three barriers an iteration"),
    compiled("mpi/batch", "sequences of the batch over ranks", "nothing; one gather at the end", requires=MPI),
    compiled("mpi/pipeline", "layers, and the products around them, over ranks", "one message a chunk", requires=MPI),
    compiled("mpi/rows", "rows of W over ranks", "one allgather of the state a step", requires=MPI),
    Method("numba_cuda/timestep", "time steps over threads of one block, as the origin did", "an atomic flag a step",
           *NUMBA),
    Method("numba_cuda/steps", "rows of W over warps, a launch a step", "one launch a step", *NUMBA),
    Method("numba_cuda/block", "sequences over blocks, each with W in its registers", "a block, once a step", *NUMBA),
    Method("numba_cuda/persistent", "rows of W over blocks that keep them for the whole sequence",
           "a team of blocks, once a step", *NUMBA),
    Method("cupy_gpu/steps", "rows of W within each of three array operations a step", "three launches a step", *CUPY),
    Method("cupy_gpu/fused", "rows of W and sequences over warps, a launch a step", "one launch a step", *CUPY),
    Method("cupy_gpu/graph", "the launches of fused, recorded once and replayed", "one node of a graph a step", *CUPY),
    Method("cupy_gpu/cluster", "rows of W over a cluster's blocks, slices of the batch over clusters",
           "messages within a cluster, counted once a step", *CUPY_CLUSTER),
    Method("peers/torch", "PyTorch at its best: rows and columns of each product", "a fork and a join an operation",
           requires=(("torch", "torch==2.13.0"),)),
    Method("peers/onnxruntime", "ONNX Runtime at its best: columns of each product", "a fork and a join an operation",
           requires=(("onnxruntime", "onnxruntime"), ("onnx", "onnx"))),
    Method("peers/openvino", "OpenVINO at its best: rows and columns of each product", "a fork and a join an operation",
           requires=(("openvino", "openvino"),)),
    Method("peers/jax", "JAX at its best: rows and columns of each product, where large", "XLA's own pool",
           requires=(("jax", "jax"),)),
    Method("peers/cudnn", "PyTorch on a GPU, cuDNN's RNN or cuBLAS in a CUDA graph: rows and columns of each product",
           "a launch a step", requires=(("torch", "torch"),), probe="backends.peers:why_no_cudnn"),
    Method("peers/jax_gpu", "JAX on a GPU: rows and columns of each product", "a launch an operation",
           requires=(("jax", "jax"),), probe="backends.peers:why_no_jax_gpu"),
))  # fmt: skip


_own: dict[str, Method] = {}  # what `register` added to the table, in this process


def methods() -> Methods:
    """Every method: `name`, `parallelises`, `synchronises`, `available` and, where it is not, `why_not`."""
    return Methods((*TABLE, *_own.values()))


def find(name: str) -> Method:
    """The method of that name. ValueError says which are near it, or else lists the names there are."""
    names = [method.name for method in methods()]
    if name in names:
        return methods()[names.index(name)]
    near = did_you_mean(str(name), names)
    if near:
        raise ValueError(f"unknown method {name!r}{near} (`python -m rnnpar methods` lists them all)")
    raise ValueError(f"unknown method {name!r}; the methods are: auto, {', '.join(names)}")


def register(
    name: str,
    function: Callable[..., Any],
    parallelises: str = "not said",
    synchronises: str = "not said",
    predicts: Callable[..., float] | None = None,
) -> Method:
    """Add a method of your own to the table, for this process, and return its row; `unregister` takes it out again.

    `name` is "backend/strategy", with a backend of your own: what the package brings is never replaced, but
    registering a name of yours again is, so that a notebook's cell can be run again. `function(net, **options)`
    returns `forward(x, h0) -> (y, h)`, as every method's does; x (T,B,I), h0 and h (L,B,H), y (T,B,O), float32.
    `predicts(model, work, threads)`, if you have a formula, gives the seconds of a call. Processes that are started
    by others, such as papermill's kernels, do not know the method. TypeError or ValueError for what cannot be one.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]\w*/[a-z]\w*", name, re.ASCII):
        raise ValueError(f"name is {name!r}; it must be 'backend/strategy' in small letters, such as 'mine/first'")
    taken = {method.backend for method in TABLE}
    if name.split("/")[0] in taken:
        raise ValueError(
            f"name is {name!r}; the backends {', '.join(sorted(taken))} are the package's own: take another"
        )
    for what, value in (("parallelises", parallelises), ("synchronises", synchronises)):
        if not isinstance(value, str):
            raise TypeError(f"{what} is a {type(value).__name__}; it must be some words")
    for what, value in (("function", function), ("predicts", predicts)):
        if not callable(value) and not (what == "predicts" and value is None):
            raise TypeError(f"{what} is a {type(value).__name__}; it must be a function")
    _check_signature(name, function)
    row = Method(name, parallelises, synchronises, function=function, source=_source_of(function), predicts=predicts)
    _own[name] = row
    return row


def unregister(name: str) -> None:
    """Take a method that `register` added out of the table. ValueError for any other; runners of it go on working."""
    if name not in _own:
        raise ValueError(f"{name!r} was not registered; what was: {', '.join(_own) or 'nothing'}")
    del _own[name]


def formula(name: str) -> Callable[..., float] | None:
    """The formula of a method that was registered with one."""
    return _own[name].predicts if name in _own else None


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """TypeError unless the function takes a network and then named options, as `prepare` passes them."""
    first, *options = list(inspect.signature(function).parameters.values()) or [None]
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"the function of {name} must take the network as its first parameter")
    for option in options:
        if option.kind not in (option.POSITIONAL_OR_KEYWORD, option.KEYWORD_ONLY):
            raise TypeError(f"the function of {name} has the parameter {option}; options have a name each")


def _source_of(function: Callable[..., Any]) -> str:
    """A short hash of a function's text; of all of its file, if that is a module, since it may use the rest of it."""
    try:
        module = inspect.getmodule(function)
        whole = module is not None and module.__name__ != "__main__" and getattr(module, "__file__", None)
        text = inspect.getsource(module if whole else function)
    except (OSError, TypeError):
        raise ValueError(
            f"the source of {function!r} cannot be read, and results carry its hash: define it in a file or a notebook"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@cache
def _probed(probe: str) -> str:
    module, function = probe.split(":")
    return getattr(importlib.import_module(f"rnnpar.{module}"), function)()
