"""Launch planning in pure Python: how many blocks and threads, and where the weights live, for a device's limits.

Nothing here needs a GPU, or imports CUDA: a `Device` is a row of numbers, and H100, A100, T4 and a small card are
written down. `Device.current()` alone asks the driver. What each part is for:

    why_no_gpu        why the GPU methods cannot run here, in words: what `registry.why_not` shows
    blocks_that_fit   occupancy: how many blocks of a kernel fit into one multiprocessor together
    check_resident    refuses a grid whose blocks wait for each other and that do not all fit together
    DoesNotFit        the error: which limit, what is needed, what there is

Sizes are in bytes, registers are 32 bits wide, a warp has 32 threads.
Sources: CUDA C++ Programming Guide, "Compute Capabilities"; the occupancy rules of cuda_occupancy.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

WARP = 32
KIB, MIB, GIB = 1024, 1024**2, 1024**3
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
OLDEST = (7, 0)  # acquire and release, and threads of a warp that wait for each other, begin with Volta


class DoesNotFit(ValueError):
    """A launch that the device cannot hold: `limit` names what is too small, `needs` and `has` are the numbers."""

    def __init__(self, what: str, limit: str, needs: int, has: int, advice: str = ""):
        self.limit, self.needs, self.has = limit, needs, has
        super().__init__(f"{what} needs {needs:,} {limit}, and there are {has:,}" + (f": {advice}" if advice else ""))


@dataclass(frozen=True)
class Device:
    """A GPU's limits. Bytes, 32-bit registers, hertz; `cluster` is the largest number of blocks of a cluster."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    registers: int  # of a multiprocessor
    registers_per_block: int
    registers_per_thread: int
    shared: int  # shared memory of a multiprocessor
    shared_per_block: int  # the most that one block may ask for (opt-in)
    shared_reserved: int  # what the system takes of it for each block
    threads: int  # resident in a multiprocessor
    threads_per_block: int
    blocks: int  # resident in a multiprocessor
    l2: int
    memory: int
    cluster: int
    clock: float

    @property
    def warps(self) -> int:
        """Warps that are resident in a multiprocessor at most."""
        return self.threads // WARP

    @classmethod
    def current(cls, number: int = 0) -> Device:
        """The GPU of that number, as its driver describes it; no package is needed, and no context is made.

        Raises RuntimeError where there is no GPU, saying why; ValueError for a number that there is not.
        """
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"device is {number!r}; it must be a whole number, 0 for the first GPU")
        driver, count, why = _driver()
        if why:
            raise RuntimeError(f"no GPU can be used here: {why}")
        if not 0 <= number < count:
            raise ValueError(f"device is {number}; this machine has {count} GPU(s), numbered from 0")
        handle = ctypes.c_int()
        _check(driver.cuDeviceGet(ctypes.byref(handle), number), "cuDeviceGet")
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        _check(driver.cuDeviceGetName(name, len(name), handle), "cuDeviceGetName")
        _check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), "cuDeviceTotalMem")

        def attribute(code: int) -> int:
            value = ctypes.c_int()
            _check(driver.cuDeviceGetAttribute(ctypes.byref(value), code, handle), f"cuDeviceGetAttribute {code}")
            return value.value

        capability = (attribute(75), attribute(76))
        return cls(
            name=name.value.decode(), capability=capability, multiprocessors=attribute(16),
            registers=attribute(82), registers_per_block=attribute(12), registers_per_thread=255,
            shared=attribute(81), shared_per_block=attribute(97),
            shared_reserved=attribute(111) if capability >= (8, 0) else 0,
            threads=attribute(39), threads_per_block=attribute(1), blocks=attribute(106),
            l2=attribute(38), memory=memory.value,
            cluster=1 if capability < (9, 0) else 16 if capability == (9, 0) else 8,
            clock=attribute(13) * 1e3,
        )  # fmt: skip


# Data sheets and the Programming Guide; clocks are the boost clocks.
H100 = Device(
    "NVIDIA H100 80GB HBM3", (9, 0), 132, 65536, 65536, 255, 228 * KIB, 227 * KIB, KIB, 2048, 1024, 32,
    50 * MIB, 80 * GIB, 16, 1.98e9,
)  # fmt: skip
A100 = Device(
    "NVIDIA A100-SXM4-40GB", (8, 0), 108, 65536, 65536, 255, 164 * KIB, 163 * KIB, KIB, 2048, 1024, 32,
    40 * MIB, 40 * GIB, 1, 1.41e9,
)  # fmt: skip
T4 = Device(
    "Tesla T4", (7, 5), 40, 65536, 65536, 255, 64 * KIB, 64 * KIB, 0, 1024, 1024, 16, 4 * MIB, 16 * GIB, 1, 1.59e9
)
SMALL = Device(
    "NVIDIA GeForce GTX 1650", (7, 5), 14, 65536, 65536, 255, 64 * KIB, 64 * KIB, 0, 1024, 1024, 16,
    MIB, 4 * GIB, 1, 1.665e9,
)  # fmt: skip
KNOWN = (H100, A100, T4, SMALL)


# --- what is here ------------------------------------------------------------------------------------------------


def why_no_gpu(package: str = "numba_cuda", install: str = "numba-cuda[cu13]", oldest: tuple[int, int] = OLDEST) -> str:
    """Why a GPU method that is built on `package` cannot run here, with what would do; empty where it can.

    Asks in this order: is the package installed, is there a driver, is there a device, is one of compute capability
    `oldest` or newer. The first question imports nothing; only where the package is there, the driver is asked.
    """
    if importlib.util.find_spec(package) is None:
        return f"needs {install}: pip install '{install}'"
    _, count, why = _driver()
    if why:
        return why
    newest = max(Device.current(number).capability for number in range(count))
    if newest < oldest:
        return f"the GPU has compute capability {_dotted(newest)}; {_dotted(oldest)} or newer is needed"
    return ""


@cache
def _driver() -> tuple[Any, int, str]:
    """(libcuda, how many devices, why there is none): the driver's own library, with no package's help."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None, 0, f"no NVIDIA driver here ({name} is not found): install one, on a machine with an NVIDIA GPU"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status == NO_DEVICE or (status == 0 and count.value == 0):
        return None, 0, "the NVIDIA driver finds no GPU: see nvidia-smi, and CUDA_VISIBLE_DEVICES"
    if status != 0:
        return None, 0, f"the NVIDIA driver does not start (error {status}): see nvidia-smi"
    return driver, count.value, ""


def _check(status: int, call: str) -> None:
    if status != 0:
        raise RuntimeError(f"the NVIDIA driver refuses {call} (error {status}): see nvidia-smi")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


# --- occupancy ---------------------------------------------------------------------------------------------------


def blocks_that_fit(device: Device, threads: int, registers: int, shared: int = 0, what: str = "a block") -> int:
    """How many blocks are resident together in one multiprocessor; at least 1.

    threads: of a block; registers: of a thread; shared: bytes of a block, static and dynamic.
    Raises DoesNotFit with the limit's name where not even one does.
    """
    for limit, needs, has in (
        ("threads a block", threads, device.threads_per_block),
        ("registers a thread", registers, device.registers_per_thread),
        ("bytes of shared memory a block", shared, device.shared_per_block),
        ("registers a block", _block_registers(threads, registers), device.registers_per_block),
    ):
        if needs > has:
            raise DoesNotFit(what, limit, needs, has, f"on {device.name}")
    by_registers = device.registers // 4 // _warp_registers(registers) * 4 // round_up(_warps(threads), 4)
    used = round_up(shared + device.shared_reserved, 128)
    by_shared = device.shared // used if used else device.blocks
    return min(device.blocks, device.warps // _warps(threads), by_registers, by_shared)


def resident(device: Device, threads: int, registers: int, shared: int = 0) -> int:
    """How many blocks are resident together on the whole device: as many may wait for each other."""
    return device.multiprocessors * blocks_that_fit(device, threads, registers, shared)


def check_resident(device: Device, blocks: int, threads: int, registers: int, shared: int, what: str) -> None:
    """Refuses `blocks` blocks that wait for each other where they do not all fit together (DoesNotFit).

    A block that waits for one that has not been started, because there was no room for it, would wait for ever.
    """
    room = device.multiprocessors * blocks_that_fit(device, threads, registers, shared, what)
    if blocks > room:
        raise DoesNotFit(what, "blocks that are resident together", blocks, room, f"on {device.name}")


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _warps(threads: int) -> int:
    return -(-threads // WARP)


def _warp_registers(registers: int) -> int:
    """Registers are handed out to a warp, 256 at a time."""
    return round_up(max(registers, 1) * WARP, 256)


def _block_registers(threads: int, registers: int) -> int:
    """A block's warps are dealt out to the four quarters of a multiprocessor: as if there were a multiple of four."""
    return _warp_registers(registers) * round_up(_warps(threads), 4)
