"""The compilers that turn CUDA C++ into machine code, where they are: nvcc from a toolkit, or NVRTC from a pip wheel.

Either gives a cubin, an ELF file, in which what a kernel takes can be read: no GPU and no driver are needed.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NVCC = shutil.which("nvcc")
PTXAS = shutil.which("ptxas") or (NVCC and shutil.which("ptxas", path=str(Path(NVCC).resolve().parent)))
WHY_NO_NVCC = "" if NVCC and PTXAS else f"no {'ptxas' if NVCC else 'nvcc'} in PATH: install a CUDA toolkit"


class DoesNotCompile(RuntimeError):
    """The compiler's log."""


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel: the registers of a thread, bytes that spill, and the PTX that it went through."""

    registers: int
    spilled: int
    ptx: str


@cache
def nvrtc() -> ctypes.CDLL | None:
    """NVRTC, from the pip wheel nvidia-cuda-nvrtc or the system; None where there is none."""
    wheels = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.1?")]
    for name in [*map(str, sorted(wheels, reverse=True)), "libnvrtc.so"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile_with_nvcc(text: str, options: Sequence[str], capability: int, folder: Path) -> Compiled:
    """Compile for a capability such as 90 with nvcc; what ptxas reports. Raises DoesNotCompile."""
    source, ptx = folder / "kernel.cu", folder / "kernel.ptx"
    source.write_text(text)
    for command in (
        [NVCC, "-ptx", f"-arch=compute_{capability}", *options, str(source), "-o", str(ptx)],
        [PTXAS, "-v", f"-arch=sm_{capability}", str(ptx), "-o", str(folder / "kernel.cubin")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise DoesNotCompile(done.stdout + done.stderr)
    report = done.stdout + done.stderr
    spills = [int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill)", report)]
    return Compiled(max(map(int, re.findall(r"Used (\d+) registers", report))), sum(spills), ptx.read_text())


def compile_with_nvrtc(text: str, options: Sequence[str], capability: int) -> Compiled:
    """The same with NVRTC; registers and local memory are read from the cubin. Raises DoesNotCompile."""
    library = nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    flags = [option.encode() for option in (*options, f"-arch=sm_{capability}")]
    status = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))

    def get(what: str) -> bytes:
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, data)
        return data.raw

    if status:
        raise DoesNotCompile(get("ProgramLog").decode(errors="replace"))
    registers, frame = resources(get("CUBIN"))
    ptx = get("PTX").decode(errors="replace")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(registers, frame, ptx)


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack frame) of a cubin's kernels, the largest: .nv.info of an ELF file with 64 bits."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    each, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + each * i) for i in range(count)]
    registers = frame = 0
    for name, kind, _, _, start, size, *_ in sections:
        label = cubin[sections[names][4] + name :].split(b"\0", 1)[0]
        if label != b".nv.info" or kind != 0x70000000:
            continue
        at = start
        while at < start + size:
            form, attribute, value = struct.unpack_from("<BBH", cubin, at)
            if form == 4:  # a value of so many bytes follows: a symbol and a number
                if attribute == 0x2F:  # EIATTR_REGCOUNT
                    registers = max(registers, struct.unpack_from("<II", cubin, at + 4)[1])
                if attribute == 0x11:  # EIATTR_FRAME_SIZE
                    frame = max(frame, struct.unpack_from("<II", cubin, at + 4)[1])
                at += value
            at += 4
    return registers, frame
