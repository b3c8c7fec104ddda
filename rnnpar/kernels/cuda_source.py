"""CUDA C++ kernels: from their text to a function on the GPU, and what can go wrong on the way.

A kernel is one file, `<name>.cuh`, compiled together with `device.cuh` by NVRTC at first use, through CuPy, which keeps
the result in its cache folder for the next process. Sizes that the compiler should know are constants, `-DROWS=32`.
Nothing is imported here before it is needed: `import rnnpar` must not touch CUDA.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from rnnpar.kernels.launch import _driver, why_no_gpu
from rnnpar.registry import Unavailable

HERE = Path(__file__).parent
INSTALL = "cupy-cuda13x[ctk]"  # ctk: NVRTC and cuBLAS come along, so that no CUDA toolkit is needed
CLUSTERS = (9, 0)  # the compute capability that has them
NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
HALF_AND_MORE = 128 * 1024  # bytes of shared memory that no two blocks of a multiprocessor can have together
WITHOUT_ASKING = 48 * 1024  # bytes of shared memory that a kernel may have without an attribute


class CudaUnavailable(Unavailable):
    """CuPy, or what it stands on, cannot be used here; the message says why and what would do."""


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message shows its complaint and the line of source."""


def why_no_cupy(oldest: tuple[int, int] = (7, 0)) -> str:
    """Why a CuPy method cannot run here, with what would do; empty where it can. Does not import CuPy."""
    return why_two_wheels() or why_no_gpu("cupy", INSTALL, oldest)


def why_no_clusters() -> str:
    """The same for kernels that are launched in clusters of blocks."""
    return why_no_cupy(CLUSTERS)


def why_two_wheels() -> str:
    """Two builds of CuPy overwrite each other's files, and what is then imported is neither."""
    names = (it.metadata["Name"] or "" for it in metadata.distributions())
    wheels = sorted({name for name in names if re.fullmatch(r"cupy(-cuda.*|-rocm.*)?", name)})
    if len(wheels) < 2:
        return ""
    both = " ".join(wheels)
    return f"{' and '.join(wheels)} are installed together: pip uninstall -y {both}, then pip install '{INSTALL}'"


def open_cupy(device: int = 0) -> Any:
    """The module cupy, when it and the device of that number can really be used.

    Raises CudaUnavailable, saying what would do: CuPy that does not start or is built for another CUDA, a cache folder
    that cannot be written, no NVRTC; TypeError and ValueError for a device that is none.
    """
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError(f"device is {device!r}; it must be a whole number, 0 for the first GPU")
    check_cache_folder()
    try:
        import cupy
    except Exception as error:  # a missing library, an older NumPy, ...: CuPy's own words say which
        raise CudaUnavailable(f"CuPy does not start ({_first_line(error)}): pip install '{INSTALL}'") from error
    runtime = cupy.cuda.runtime
    built, offered = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if 0 < offered < built // 1000 * 1000:
            wheel = f"cupy-cuda{offered // 1000}x"
            raise CudaUnavailable(
                f"this CuPy is built for CUDA {_version(built)}, and the driver offers {_version(offered)}: "
                f"pip uninstall -y cupy-cuda{built // 1000}x && pip install {wheel}, or install a newer driver"
            ) from error
        raise CudaUnavailable(f"CUDA does not start ({_first_line(error)}): see nvidia-smi") from error
    if not 0 <= device < count:
        raise ValueError(f"device is {device}; this machine has {count} GPU(s), numbered from 0")
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        install = f"nvidia-cuda-nvrtc=={built // 1000}.*"
        raise CudaUnavailable(f"there is no NVRTC ({_first_line(error)}): pip install '{install}'") from error
    return cupy


def check_cache_folder() -> None:
    """CudaUnavailable where compiled kernels cannot be kept: CuPy makes its folder when it is imported, or dies."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CudaUnavailable(
            f"CuPy's cache folder {folder} cannot be written ({error.strerror}): "
            "set the variable CUPY_CACHE_DIR to a folder that can"
        ) from error


def text(name: str) -> str:
    """The source of a kernel: device.cuh and <name>.cuh as one text, which needs no header of CUDA's."""
    return "\n".join(f'#line 1 "{part}.cuh"\n{(HERE / f"{part}.cuh").read_text()}' for part in ("device", name))


def options(constants: dict[str, int]) -> tuple[str, ...]:
    """The compiler's options for these constants."""
    return ("--std=c++17", *(f"-D{name}={value}" for name, value in sorted(constants.items())))


def kernel(cupy: Any, name: str, function: str, **constants: int) -> Any:
    """The CuPy kernel `function` of `<name>.cuh`, compiled with these constants: compiled once.

    Raises CompileError with the compiler's complaint and the line that it is about.
    """
    try:
        return _function(cupy, name, function, options(constants))
    except cupy.cuda.compiler.CompileException as error:
        raise CompileError(explain(name, constants, str(error))) from error


@cache
def _function(cupy: Any, name: str, function: str, options: tuple[str, ...]) -> Any:
    return cupy.RawModule(code=text(name), options=options, backend="nvrtc").get_function(function)


def explain(name: str, constants: dict[str, int], log: str) -> str:
    """A compiler's log as a message: each error, and under it the line of source that it is about."""
    lines = [f"{name}.cuh does not compile with {' '.join(f'{k}={v}' for k, v in constants.items())}:"]
    for file, number, complaint in re.findall(r"(\w+\.cuh)\((\d+)\): (.*error.*)", log):
        source = (HERE / file).read_text().splitlines() if (HERE / file).exists() else []
        lines.append(f"{file}({number}): {complaint}")
        if 0 < int(number) <= len(source):
            lines.append(f"    {source[int(number) - 1].strip()}")
    return "\n".join(lines if len(lines) > 1 else [*lines, log.strip()])


def allow_shared(kernel: Any, size: int) -> None:
    """Let a kernel have `size` bytes of dynamic shared memory; more than 48 KB have to be asked for."""
    if size > WITHOUT_ASKING:
        kernel.max_dynamic_shared_size_bytes = size


def allow_large_cluster(cupy: Any, kernel: Any) -> None:
    """Let a kernel be launched in clusters of 16 blocks, which not every card of this architecture must have."""
    cupy.cuda.driver.funcSetAttribute(kernel.kernel.ptr, NON_PORTABLE_CLUSTER, 1)


def resident_clusters(cupy: Any, largest: int) -> tuple[int, ...]:
    """How many clusters of 1, 2, 4, ... `largest` blocks the driver can have resident together, a multiprocessor each.

    Empty where the driver does not tell.
    """
    driver, *_ = _driver()
    if driver is None:
        return ()
    nothing = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing", options=("--std=c++17",))
    allow_shared(nothing, HALF_AND_MORE)
    allow_large_cluster(cupy, nothing)
    found, size = [], 1
    while size <= largest:
        dimension = _Attribute(CLUSTER_DIMENSION, (size, 1, 1))
        launch = _Launch((size, 1, 1), (32, 1, 1), HALF_AND_MORE, None, ctypes.pointer(dimension), 1)
        count = ctypes.c_int()
        function = ctypes.c_void_p(nothing.kernel.ptr)
        if driver.cuOccupancyMaxActiveClusters(ctypes.byref(count), function, ctypes.byref(launch)):
            return ()
        found.append(count.value)
        size *= 2
    return tuple(found)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, of a cluster's dimension."""

    _fields_: ClassVar = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16)]

    def __init__(self, number: int, value: tuple[int, ...]):
        super().__init__(number, 0, value)


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_: ClassVar = [
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("shared", ctypes.c_uint32),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint32),
    ]  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
