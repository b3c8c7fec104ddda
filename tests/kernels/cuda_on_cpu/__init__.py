"""The CPU executor for CUDA C++: compiles a kernel with g++ and runs it, every thread of every block alive at once.

`build` makes a program of one kernel and its constants; `Program.launch` runs it in a process of its own, so that a
kernel that writes where it must not takes no test with it. What it can and cannot show: cuda_on_cpu.h.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from rnnpar.kernels import cuda_source

HERE = Path(__file__).parent
CXX = os.environ.get("CXX") or "g++"
WHY_NOT = "" if shutil.which(CXX) else f"{CXX} is not installed: the kernels cannot be run on this CPU"
FLAGS = ("-std=c++20", "-O1", "-w")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
POINTS = ("__syncthreads", "__syncwarp", "cluster_barrier", "mbarrier_wait", "mbarrier_expect")


class KernelFailed(RuntimeError):
    """The executor found the kernel wrong: a deadlock, a message to nobody, or what a sanitizer says."""


@dataclass
class Program:
    """A kernel as a program. `used`: how often each line with a barrier or wait was come to in the last launch."""

    path: Path
    file: str
    cluster: int = 1
    used: dict[int, int] = field(default_factory=dict)

    def launch(
        self, grid: Sequence[int], block: Sequence[int], arguments: Iterable[object], shared: int = 0, seed: int = 0,
        remove: Sequence[int] = (), timeout_s: float = 60,
    ) -> None:  # fmt: skip
        """Run the kernel once; arrays among the arguments are changed in place. `remove`: lines to leave out.

        Raises KernelFailed with what the executor or a sanitizer says.
        """
        arguments = list(arguments)
        three = lambda sizes: [*sizes, 1, 1][:3]  # noqa: E731
        job = struct.pack("<10i", *three(grid), *three(block), shared, seed, self.cluster, len(arguments))
        spans = []
        for it in arguments:
            if isinstance(it, np.ndarray):
                assert it.flags.c_contiguous
                data = it.tobytes()
                job += struct.pack("<iQ", 1, len(data))
                spans.append((it, len(job), len(data)))
                job += data
            else:
                job += struct.pack("<ii", 0, int(it))
        with tempfile.NamedTemporaryFile(suffix=".job") as file:
            file.write(job)
            file.flush()
            command = [str(self.path), file.name, self.file, *map(str, remove)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise KernelFailed(f"it does not end within {timeout_s} s") from None
            if done.returncode:
                raise KernelFailed((done.stdout + done.stderr).strip()[:4000] or f"exit status {done.returncode}")
            self.used = {int(line): int(count) for line, count in re.findall(r"used (\d+) (\d+)", done.stdout)}
            after = Path(file.name).read_bytes()
        for array, start, size in spans:
            array.reshape(-1)[:] = np.frombuffer(after[start : start + size], array.dtype)


@cache
def folder() -> Path:
    """Where programs are kept for this process; removed at its end."""
    import atexit

    path = Path(tempfile.mkdtemp(prefix="rnnpar-executor-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def build(name: str, function: str, options: tuple[str, ...], sanitize: bool = False) -> Program:
    """Compile `function` of `<name>.cuh` with the options that NVRTC gets. RuntimeError with the compiler's words."""
    return build_text(cuda_source.text(name), f"{name}.cuh", function, options, sanitize)


def build_text(text: str, file: str, function: str, options: tuple[str, ...], sanitize: bool = False) -> Program:
    """The same for any text; `file` is what its #line directives call it."""
    key = hashlib.sha256(repr((text, function, options, sanitize)).encode()).hexdigest()[:16]
    path = header(sanitize) / key
    cluster = [int(option.split("=")[1]) for option in options if option.startswith("-DCLUSTER=")]
    if not path.exists():
        main = f"int main(int argc, char** argv) {{ return executor::run({function}, argc, argv); }}"
        path.with_suffix(".cpp").write_text(f'#include "cuda_on_cpu.h"\n{text}\n{main}\n')
        defines = [option for option in options if option.startswith("-D")]
        _compile([*FLAGS, *(SANITIZERS if sanitize else ()), *defines, f"{path}.cpp", "-o", str(path)], file)
    return Program(path, file, cluster[0] if cluster else 1)


@cache
def header(sanitize: bool) -> Path:
    """A folder with the executor's header, compiled once: that is most of what a kernel takes to compile."""
    path = folder() / ("sanitized" if sanitize else "plain")
    path.mkdir()
    shutil.copy(HERE / "cuda_on_cpu.h", path)
    name = path / "cuda_on_cpu.h"
    _compile([*FLAGS, *(SANITIZERS if sanitize else ()), str(name), "-o", f"{name}.gch"], name.name)
    return path


def _compile(arguments: list[str], file: str) -> None:
    done = subprocess.run([CXX, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{file} does not compile with {CXX}:\n{done.stderr[:4000]}")


def points(name: str) -> dict[int, str]:
    """The lines of a kernel on which it waits or meets, line -> text: what a test may take out."""
    lines = (cuda_source.HERE / f"{name}.cuh").read_text().splitlines()
    calls = re.compile(rf"\b({'|'.join(POINTS)})\(")
    return {number: line.strip() for number, line in enumerate(lines, 1) if calls.search(line.split("//")[0])}
