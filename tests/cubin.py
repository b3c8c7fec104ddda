"""Compiles a CUDA kernel written in Python to a linked cubin, with no driver and no GPU, and reads what ptxas says.

Numba asks a device for one thing only, its compute capability; here a stand-in answers. What is needed beside
numba-cuda is libNVVM and nvJitLink, as its extra `cu13` installs them.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

FLOATS, INTS, INT = "float32[::1]", "int32[::1]", "int64"


@dataclass(frozen=True)
class Report:
    """What became of a kernel: its PTX, and ptxas's registers a thread and bytes of stack and of spills."""

    ptx: str
    registers: int
    stack: int
    spills: int
    cubin: bytes


def why_not() -> str:
    """Why nothing can be compiled here; empty where it can."""
    try:
        from cuda.core import Linker  # noqa: F401
        from numba.cuda.cudadrv import nvvm

        nvvm.NVVM()
        from cuda.bindings import nvjitlink

        nvjitlink.version()
    except Exception as error:
        return f"no libNVVM or nvJitLink here (pip install 'numba-cuda[cu13]'): {type(error).__name__}: {error}"
    return ""


@contextmanager
def stand_in(capability: tuple[int, int]) -> Iterator[None]:
    """While this lasts, Numba takes it that a GPU of that compute capability is there."""
    from numba.cuda import codegen, dispatcher

    device = types.SimpleNamespace(compute_capability=capability, id=0)
    context = types.SimpleNamespace(device=device)
    with (
        mock.patch.object(dispatcher, "get_current_device", return_value=device),
        mock.patch.object(codegen, "devices", types.SimpleNamespace(get_context=lambda: context)),
    ):
        yield


def build(kernel: Any, signature: str, capability: tuple[int, int] = (9, 0), links: bool = True) -> Report:
    """Compile and link; `links=False` for a kernel that calls CUDA's device library, whose sum ptxas cannot tell."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba.cuda.core import sigutils
    from numba.cuda.dispatcher import _Kernel

    names = ("launch_bounds", "max_registers", "fastmath", "opt")
    options = {name: kernel.targetoptions[name] for name in names if kernel.targetoptions.get(name) is not None}
    target = (*capability, "a" if capability >= (9, 0) else "")
    with stand_in(capability):
        arguments, _ = sigutils.normalize_signature(signature)
        library = _Kernel(kernel.py_func, arguments, **options).library
        ptx = library.get_asm_str(cc=target)
        cubin = library.get_cubin(cc=target)
    if not links:
        return Report(ptx, 0, 0, 0, bytes(cubin.code))
    arch = "sm_{}{}{}".format(*target)
    linker = Linker(
        ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=arch, ptxas_options=["-v"], verbose=True)
    )
    code = linker.link("cubin").code
    log = linker.get_info_log()
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()
    )
    return Report(ptx, int(re.search(r"Used (\d+) registers", log)[1]), stack, stores + loads, bytes(code))
