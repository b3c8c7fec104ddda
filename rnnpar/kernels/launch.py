"""Launch planning in pure Python: how many blocks and threads, and where the weights live, for a device's limits.

Nothing here needs a GPU, or imports CUDA: a `Device` is a row of numbers, and H100, A100, T4 and a small card are
written down. `Device.current()` alone asks the driver. What each part is for:

    why_no_gpu        why the GPU methods cannot run here, in words: what `registry.why_not` shows
    blocks_that_fit   occupancy: how many blocks of a kernel fit into one multiprocessor together
    check_resident    refuses a grid whose blocks wait for each other and that do not all fit together
    BlockPlan         numba_cuda/block: a block a sequence, all of W in its registers and shared memory
    PersistentPlan    numba_cuda/persistent: W spread over the device, blocks that meet in every step
    DoesNotFit        the error: which limit, what is needed, what there is

Sizes are in bytes, registers are 32 bits wide, a warp has 32 threads.
Sources: CUDA C++ Programming Guide, "Compute Capabilities"; the occupancy rules of cuda_occupancy.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

WARP = 32
KIB, MIB, GIB = 1024, 1024**2, 1024**3
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
HOPPER = (9, 0)  # compute capability
OLDEST_ASYNC = (8, 0)  # copies from global to shared memory that nobody waits for
OLDEST = (7, 0)  # acquire and release, and threads of a warp that wait for each other, begin with Volta


class DoesNotFit(ValueError):
    """A launch that the device cannot hold: `limit` names what is too small, `needs` and `has` are the numbers."""

    def __init__(self, what: str, limit: str, needs: int, has: int, advice: str = ""):
        self.what, self.limit, self.needs, self.has = what, limit, needs, has
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
    clusters: tuple[int, ...] = ()  # of 1, 2, 4, ... blocks, that are resident together with a multiprocessor a block

    @property
    def warps(self) -> int:
        """Warps that are resident in a multiprocessor at most."""
        return self.threads // WARP

    def resident_clusters(self, blocks: int) -> int:
        """How many clusters of so many blocks (a power of two) are resident together, with a multiprocessor a block.

        A cluster lies within a group of multiprocessors (GPC), and not every group has a multiple of its size.
        """
        number = blocks.bit_length() - 1
        return self.clusters[number] if number < len(self.clusters) else max(1, self.multiprocessors // blocks)

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


# Data sheets and the Programming Guide; clocks are the boost clocks. Clusters: what the driver of an H200 says.
H100 = Device(
    "NVIDIA H100 80GB HBM3", (9, 0), 132, 65536, 65536, 255, 228 * KIB, 227 * KIB, KIB, 2048, 1024, 32,
    50 * MIB, 80 * GIB, 16, 1.98e9, (132, 66, 30, 15, 7),
)  # fmt: skip
H200 = replace(H100, name="NVIDIA H200", l2=60 * MIB, memory=150_109_880_320)  # the same chip, more and faster memory
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
KNOWN = (H100, H200, A100, T4, SMALL)


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
    return why_not_this_numpy() if package == "numba_cuda" else ""


def why_not_this_numpy() -> str:
    """Why numba-cuda cannot compile beside this NumPy: 0.30.4 and older use a function that NumPy 2.5 has not."""
    try:
        versions = {name: metadata.version(name) for name in ("numba-cuda", "numpy")}
    except metadata.PackageNotFoundError:  # installed in a way that tells no version
        return ""
    compiler, numpy = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in versions.values())
    if compiler > (0, 30, 4) or numpy < (2, 5):
        return ""
    return f"numba-cuda {versions['numba-cuda']} does not work with NumPy {versions['numpy']}: pip install 'numpy<2.5'"


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


def blocks_that_fit(
    device: Device, threads: int, registers: int, shared: int = 0, what: str = "a block", advice: str = ""
) -> int:
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
            raise DoesNotFit(what, limit, needs, has, advice or f"on {device.name}")
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


# --- where W lives -----------------------------------------------------------------------------------------------
# A thread keeps a tile of W: `rows` rows in registers and `extra` more in shared memory, of `groups` times four
# columns each. A group's columns lie side by side, and a warp's threads side by side again, so that a warp reads 512
# bytes in one piece. Whatever lies beyond the last row or column is zero.

FOUR = 4  # float32 of a 128-bit access
MOST_ROWS = 32  # that the lanes of a warp can share out among themselves when they add up
OWN_REGISTERS = 48  # of a thread, beside its tile, its sums and its share of h: addresses, counters, what is under way
# Before Hopper ptxas keeps far more registers beside the tile of `persistent`, from the same PTX (sm_75 about 150 where
# sm_90a needs 70), and spills where fewer are left free. Found by compiling: tests/kernels/test_cubins.py.
OLDER_OWN_REGISTERS = 196
BARRIERS = ("counter", "flags", "grid", "values")  # the first is taken where nothing is said: the fastest on an H200


@dataclass(frozen=True)
class BlockPlan:
    """One block a sequence at a time. Each warp owns `rows` + `extra` rows of W, each lane `groups` x 4 columns.

    Hp is H rounded up to what the lanes span; shared is in bytes; registers is the compiler's ceiling for a thread.
    """

    H: int
    Hp: int
    rows: int
    extra: int
    groups: int
    warps: int
    blocks: int
    registers: int
    shared: int
    dtype: str

    @property
    def threads(self) -> int:
        return self.warps * WARP


def plan_block(device: Device, H: int, B: int, dtype: str = "float32") -> BlockPlan:
    """A block a sequence, for a hidden size of H and B sequences. DoesNotFit where W is too large for one block."""
    padded = round_up(H, FOUR)
    groups = -(-padded // (FOUR * WARP))
    Hp = groups * FOUR * WARP
    words = weights_a_word(dtype)
    what = f"a block that holds W ({H} x {H} {dtype}) alone"
    advice = f"on {device.name}; numba_cuda/persistent spreads W over the device"
    found, refused = [], []
    for most in (16, 8, 32):  # 16 warps: four for each of a multiprocessor's four schedulers
        own = -(-padded // min(most, padded // FOUR))
        warps = -(-padded // own)
        cap = register_ceiling(device, warps * WARP)
        rows = min(own, (cap - OWN_REGISTERS - own - FOUR * groups) // (FOUR * groups) * words)
        extra = own - rows
        shared = 4 * (warps * extra * Hp // words + 2 * Hp)
        try:
            if own > MOST_ROWS:
                raise DoesNotFit(what, "rows a warp", own, MOST_ROWS, advice)
            if rows < 1:
                raise DoesNotFit(what, "registers a thread", OWN_REGISTERS + own + 8 * groups, cap, advice)
            room = device.multiprocessors * blocks_that_fit(device, warps * WARP, cap, shared, what, advice)
        except DoesNotFit as error:
            refused.append(error)
            continue
        found.append(BlockPlan(H, Hp, rows, extra, groups, warps, min(max(B, 1), room), cap, shared, dtype))
    if not found:
        raise min(refused, key=lambda error: error.needs / max(error.has, 1))
    return min(found, key=block_cycles)


def block_cycles(plan: BlockPlan) -> float:
    """Roughly the cycles of a step of numba_cuda/block: arithmetic, what is read from shared memory, sums."""
    own = plan.rows + plan.extra
    lanes = min(128, plan.threads)
    staged = plan.warps * plan.Hp * (1 + plan.extra / weights_a_word(plan.dtype)) * 4 / 128
    return own * plan.warps * plan.Hp / lanes + staged + (plan.warps + 4) * (own + 3) / 2


@dataclass(frozen=True)
class PersistentPlan:
    """`blocks` blocks share the rows of W, `rows` + `extra` each; a block's threads share a row's columns.

    The batch is cut into `teams` of at most `sequences`: each team has a W of its own, so that fewer blocks meet and
    each reads less of h. `chunk` sequences are staged in shared memory at a time, `poll` are polled for together
    (barrier "values"). Hp is H rounded up to what the threads span; shared is in bytes; `registers` is the compiler's
    ceiling for a thread, `resident` how many blocks of this kind the device holds together.
    """

    H: int
    Hp: int
    B: int
    rows: int
    extra: int
    groups: int
    threads: int
    blocks: int
    teams: int
    sequences: int
    chunk: int
    poll: int
    registers: int
    shared: int
    resident: int
    dtype: str
    barrier: str
    BARRIERS: ClassVar[tuple[str, ...]] = BARRIERS

    @property
    def grid(self) -> int:
        return self.blocks * self.teams

    @property
    def direct(self) -> bool:
        """Whether h needs no shared memory: a sequence a team, whose columns are just those of the threads."""
        return self.sequences == 1 and round_up(self.H, FOUR) == self.Hp

    @property
    def warps(self) -> int:
        return self.threads // WARP


def plan_persistent(
    device: Device, H: int, B: int, dtype: str = "float32", barrier: str = BARRIERS[0], teams: int | None = None
) -> PersistentPlan:
    """The plan with the fewest cycles a step, of all that fit, by `step_cycles`; `teams` fixes their number.

    ValueError for an unknown dtype or barrier; DoesNotFit, with the limit that is nearest to being met, where W does
    not fit on the device.
    """
    weights_a_word(dtype)
    if barrier not in BARRIERS:
        raise ValueError(f"barrier is {barrier!r}; it must be one of {', '.join(BARRIERS)}")
    if teams is not None and not 1 <= teams <= min(B, device.multiprocessors):
        raise ValueError(f"teams is {teams}; it must be 1 to {min(B, device.multiprocessors)}, for B = {B}")
    found, refused = [], []
    for groups in (1, 2, 3, 4):
        for count in [teams] if teams else [2**i for i in range(8) if 2**i <= min(B, device.multiprocessors)]:
            try:
                found.append(_persistent(device, H, B, dtype, barrier, groups, count))
            except DoesNotFit as error:
                refused.append(error)
    if not found:
        raise min(refused, key=lambda error: error.needs / max(error.has, 1))
    return min(found, key=lambda plan: step_cycles(device, plan))


def _persistent(device: Device, H: int, B: int, dtype: str, barrier: str, groups: int, teams: int) -> PersistentPlan:
    what = f"numba_cuda/persistent with H = {H}, B = {B}, {dtype}"
    advice = f"on {device.name}; dtype='bfloat16' halves W, numba_cuda/steps takes any size"
    words, padded = weights_a_word(dtype), round_up(H, FOUR)
    threads = round_up(-(-padded // (FOUR * groups)), WARP)
    if threads > device.threads_per_block:
        raise DoesNotFit(what, "threads a block", threads, device.threads_per_block, advice)
    Hp = threads * FOUR * groups
    own = -(-padded // (device.multiprocessors // teams))
    blocks = -(-padded // own)
    sequences = -(-B // teams)
    teams = -(-B // sequences)
    tail = B - (teams - 1) * sequences
    poll = max(d for d in (1, 2, 3, 4) if sequences % d == 0 and tail % d == 0) if barrier == "values" else 1
    cap = register_ceiling(device, threads)
    hopper = device.capability >= HOPPER
    pair = min(2, sequences) if hopper else 1  # sequences that are multiplied together; see OLDER_OWN_REGISTERS
    piece = FOUR * groups if hopper else 0  # of rows that come from shared memory, beside those in registers
    beside = own_registers(device) + pair * FOUR * groups + (2 * FOUR * poll if barrier == "values" else 0)
    # Of the registers that are left beside h, a row takes its share of the tile and its sums; the rest are taken four
    # by four from shared memory.
    most = min(MOST_ROWS, (cap - beside) * words // (FOUR * groups + pair * words))
    if most < own:
        most = min(MOST_ROWS, (cap - beside - piece) * words // (FOUR * groups + pair * words))
    extra = round_up(max(0, own - most), FOUR)
    rows = own - extra
    if rows < 1:  # too few for four rows
        raise DoesNotFit(
            what, "registers a thread", beside + piece + FOUR * (FOUR * groups + pair * words) // words, cap, advice
        )
    # Shared memory holds what registers do not of W, and of each sequence in a chunk h, and the warps' sums twice.
    fixed, each = extra * Hp // words, Hp + 2 * (threads // WARP) * own
    chunk = min(sequences, (device.shared_per_block // 4 - fixed) // each) // poll * poll
    if chunk < 1:
        needs = 4 * (fixed + poll * each)
        raise DoesNotFit(what, "bytes of shared memory a block", needs, device.shared_per_block, advice)
    shared = 4 * (fixed + chunk * each)
    room = resident(device, threads, cap, shared)
    check_resident(device, blocks * teams, threads, cap, shared, what)
    return PersistentPlan(
        H, Hp, B, rows, extra, groups, threads, blocks, teams, sequences, chunk, poll, cap, shared, room, dtype, barrier
    )


def step_cycles(device: Device, plan: PersistentPlan) -> float:
    """The cycles of a step, to choose between plans: chains of what waits for what, and what fills a multiprocessor.

    Fitted to 156 plans' times on an NVIDIA H200 (median error 5%; its choice is the fastest plan or 3% slower).
    """
    own, S, pieces = plan.rows + plan.extra, plan.sequences, plan.extra // FOUR
    turns = -(-S // 2)  # of two sequences
    meeting = 1130 * -(-S // plan.chunk) + 1.9 * plan.blocks + (600 if S > 1 else 0)
    chains = turns * (480 + 300 * pieces) + 1225 * -(-S * own // plan.threads)
    multiply = 2.07 * S * own * plan.Hp / 128 * weights_a_word(plan.dtype)  # two cycles for 128 multiply-adds
    shuffles = 0.23 * S * plan.warps * (own + 3)
    staged = 0.6 * turns * plan.extra * plan.Hp * 4 / 128 / weights_a_word(plan.dtype)
    polls = S * round_up(plan.H, FOUR) * plan.grid / (20 * device.multiprocessors) if plan.barrier == "values" else 0
    return meeting + chains + multiply + shuffles + staged + polls


def register_ceiling(device: Device, threads: int) -> int:
    """The most registers that each of a block's threads can have, a multiple of 8."""
    return min(device.registers_per_thread, device.registers_per_block // round_up(threads, 4 * WARP) // 8 * 8)


def own_registers(device: Device) -> int:
    """The registers of a thread of `persistent` that are not for its tile, its sums and its share of h."""
    return OWN_REGISTERS if device.capability >= HOPPER else OLDER_OWN_REGISTERS


def weights_a_word(dtype: str) -> int:
    """How many weights a 32-bit word holds. ValueError for an unknown dtype."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32' or 'bfloat16'")
    return 1 if dtype == "float32" else 2
