"""Runs CUDA kernels written in Python on a CPU, as they stand, with every thread of every block alive.

A thread is a greenlet. It runs until it waits (for its block, its warp, the grid) or looks at a word that another
thread may write; then the schedule says who is next. So blocks can wait for each other, which Numba's own simulator,
running block after block, cannot show. Three things make missing synchronisation visible:

    schedule   "adversarial": some warp always has right of way and runs as far as it can, and now and then the order
               changes, so that warps and blocks overtake each other wherever nothing holds them back
    memory     as weak as the memory model allows, for global memory: an ordinary store stays with its thread until a
               barrier, and with its block until a release or a fence; an ordinary load takes a line of 32 words into
               the block's own cache and finds it there again, however old, until an acquire or a fence
    poison     shared memory begins as NaN; each index is checked, and so is each wide access's alignment

What it does not show: whether blocks fit on a device together, how much shared memory there really is, the order in
which a GPU would make stores visible (here it is all or nothing), a fence between two loads of one thread (here they
are never exchanged: `timestep`'s first fence is held by tests/kernels/test_cubins.py), approximate instructions, time.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any

import greenlet
import numpy as np
from numba import cuda
from numba.cuda.dispatcher import CUDADispatcher

from rnnpar.kernels import ptx
from rnnpar.kernels.gpu import Gpu
from rnnpar.kernels.launch import WARP, Device, check_resident

LINE = 32  # words of a line of the block's cache
IDLE = 40  # rounds in which nobody got anywhere before it is called a deadlock


class Deadlock(RuntimeError):
    """Every thread that is left waits, and none can go on."""


class Misuse(RuntimeError):
    """What a GPU would punish: threads at different barriers, an index outside, a warp that is not whole."""


# --- one launch --------------------------------------------------------------------------------------------------


class Dim:
    def __init__(self, x: int, y: int = 1):
        self.x, self.y, self.z = x, y, 1


class Thread:
    __slots__ = ("block", "block_dim", "copies", "dead", "green", "lane", "looks", "started", "stores", "tid", "waits",
                 "warp")  # fmt: skip

    def __init__(self, tid: int, block: Block):
        self.tid, self.lane, self.block = tid, tid % WARP, block
        self.warp = block.warps[tid // WARP]
        self.waits: tuple[Barrier, int] | None = None
        self.looks = 0  # how often it has looked at a word that others write
        self.started = self.dead = False
        self.stores: dict[tuple[int, int], Any] = {}  # global memory as only this thread knows it
        self.copies: list[Callable[[], None]] = []  # asynchronous copies that are under way


class Barrier:
    """Where `size` threads meet; each may bring a value, and all see what all brought."""

    def __init__(self, size: int):
        self.size, self.round, self.brought, self.last = size, 0, {}, {}
        self.place: Any = None


class Block:
    def __init__(self, index: tuple[int, int], threads: int, shared: int):
        self.index = Dim(*index)
        self.barrier = Barrier(threads)
        self.warps = [Barrier(min(WARP, threads - first)) for first in range(0, threads, WARP)]
        self.dynamic = np.full(shared, 0xFF, np.uint8)
        self.fixed: dict[Any, SharedArray] = {}
        self.stores: dict[tuple[int, int], Any] = {}  # global memory as this block knows it
        self.cache: dict[tuple[int, int], np.ndarray] = {}  # (array, line) as it was when it was read


class GlobalArray:
    """An array in device memory. `values` is what the L2 cache holds; ordinary accesses see it through their block."""

    def __init__(self, values: np.ndarray):
        self.values = values

    ndim = property(lambda self: self.values.ndim)
    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.values.__array_interface__, "version": 3, "stream": None}

    def reshape(self, *shape: int) -> GlobalArray:
        return GlobalArray(self.values.reshape(*shape))

    def copy_to_host(self) -> np.ndarray:
        return self.values.copy()


class Access:
    """A GlobalArray as the kernel sees it."""

    def __init__(self, array: GlobalArray, number: int, run: Run):
        self.values, self.number, self.run = array.values.reshape(-1), number, run

    def __getitem__(self, index: int) -> Any:
        self.check(index)
        thread, key = self.run.current, (self.number, int(index))
        if self.run.order != "weak":  # past all caches
            self.run.publish_one(key)
            return self.values[index]
        if key in thread.stores:
            return thread.stores[key]
        if key in thread.block.stores:
            return thread.block.stores[key]
        if self.run.order_of_copy:  # asynchronous copies go past the cache
            return self.values[index]
        line = (self.number, int(index) // LINE)
        if line not in thread.block.cache:
            first = line[1] * LINE
            thread.block.cache[line] = self.values[first : first + LINE].copy()
        return thread.block.cache[line][int(index) % LINE]

    def __setitem__(self, index: int, value: Any) -> None:
        self.check(index)
        thread, key = self.run.current, (self.number, int(index))
        value = self.values.dtype.type(value)
        if self.run.order != "weak":
            thread.stores.pop(key, None)
            thread.block.stores.pop(key, None)
            self.run.write(thread.block, key, value)
        else:
            thread.stores[key] = value

    def check(self, index: int) -> None:
        if not 0 <= index < self.values.size:
            raise Misuse(f"index {index} of an array of {self.values.size}")


class SharedArray:
    def __init__(self, values: np.ndarray):
        self.values = values

    def __getitem__(self, index: int) -> Any:
        self.check(index)
        return self.values[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self.check(index)
        self.values[index] = value

    def check(self, index: int) -> None:
        if not 0 <= index < self.values.size:
            raise Misuse(f"index {index} of {self.values.size} words of shared memory")


class Run:
    """One launch of one kernel."""

    def __init__(self, grid: tuple[int, int], threads: int, shared: int, arrays: list[GlobalArray], seed: int):
        self.rng = random.Random(seed)
        self.order, self.order_of_copy = "weak", False
        self.grid_dim, self.block_dim = Dim(*grid), Dim(threads)
        self.blocks = [Block((x, y), threads, shared) for y in range(grid[1]) for x in range(grid[0])]
        self.threads = [Thread(tid, block) for block in self.blocks for tid in range(threads)]
        self.grid_barrier = Barrier(len(self.threads))
        self.arrays = [Access(array, number, self) for number, array in enumerate(arrays)]
        self.current: Thread = self.threads[0]

    # memory

    def write(self, block: Block, key: tuple[int, int], value: Any) -> None:
        """The value reaches the L2 cache, and the copy of its line that the writer's own block has."""
        self.arrays[key[0]].values[key[1]] = value
        line = (key[0], key[1] // LINE)
        if line in block.cache:
            block.cache[line][key[1] % LINE] = value

    def publish(self, thread: Thread) -> None:
        """Release: all that the thread has written, or has seen of its block, is there for everybody."""
        self.share(thread)
        for key, value in thread.block.stores.items():
            self.write(thread.block, key, value)
        thread.block.stores.clear()

    def publish_one(self, key: tuple[int, int]) -> None:
        thread = self.current
        if key in thread.stores or key in thread.block.stores:
            self.write(thread.block, key, thread.stores.pop(key, None) or thread.block.stores.pop(key))

    def share(self, thread: Thread) -> None:
        """A barrier of the block: the block knows what the thread has written."""
        thread.block.stores.update(thread.stores)
        thread.stores.clear()

    def acquire(self, thread: Thread) -> None:
        """What is read from now on is not older."""
        thread.block.cache.clear()

    # waiting

    def look(self) -> None:
        """Before a word is read that others may write: anything may happen first."""
        self.current.looks += 1
        self.main.switch()

    def meet(self, barrier: Barrier, who: Any, value: Any = None, place: Any = None) -> dict[Any, Any]:
        """Wait until all of the barrier's threads are here; what each brought."""
        if barrier.brought and place != barrier.place:
            raise Misuse(f"threads of one block wait at different barriers: lines {barrier.place[1]} and {place[1]}")
        barrier.place = place
        barrier.brought[who] = value
        if len(barrier.brought) == barrier.size:
            barrier.last, barrier.brought = barrier.brought, {}
            barrier.round += 1
        else:
            thread = self.current
            thread.waits = (barrier, barrier.round)
            self.main.switch()
            thread.waits = None
        return barrier.last

    def exchange(self, value: Any, bit: int) -> Any:
        thread = self.current
        return self.meet(thread.warp, thread.lane, value)[thread.lane ^ bit]

    # the schedule

    def go(self, function: Callable[..., None], args: list[Any], schedule: str) -> None:
        self.main = greenlet.getcurrent()
        for thread in self.threads:
            thread.green = greenlet.greenlet(function)
        warps: dict[Any, list[Thread]] = {}
        for thread in self.threads:
            warps.setdefault(thread.warp, []).append(thread)
        order = list(warps.values())
        self.rng.shuffle(order)
        if schedule != "fair":  # the threads of a warp go on by themselves, in any order
            for warp in order:
                self.rng.shuffle(warp)
        idle, left = 0, len(self.threads)
        while left:
            progress = False
            for warp in order:
                went, died = self.advance(warp, args)
                left -= died
                progress |= went
                if went and schedule == "adversarial":
                    break  # whoever has right of way goes first again
            if schedule == "fair":
                order = order[1:] + order[:1]
            elif self.rng.random() < (0.05 if schedule == "adversarial" else 1):
                self.rng.shuffle(order)
            idle = 0 if progress else idle + 1
            if idle == IDLE // 2:  # a store does not stay away for ever
                for thread in self.threads:
                    self.publish(thread)
            if idle > IDLE:
                raise Deadlock(self.describe())
        for thread in self.threads:
            self.publish(thread)

    def advance(self, warp: list[Thread], args: list[Any]) -> tuple[bool, int]:
        """Let each thread of the warp run as far as it can: (did one get anywhere, how many ended)."""
        progress, died = False, 0
        for thread in warp:
            if thread.dead or (thread.waits and thread.waits[0].round == thread.waits[1]):
                continue
            self.current, looks = thread, thread.looks
            if thread.started:
                thread.green.switch()
            else:
                thread.started = True
                thread.green.switch(*args)
            if thread.green.dead:
                thread.dead = True
                died += 1
            progress |= thread.dead or thread.looks == looks
        return progress, died

    def describe(self) -> str:
        alive = [thread for thread in self.threads if not thread.dead]
        waiting = sum(thread.waits is not None for thread in alive)
        ended = len(self.threads) - len(alive)
        return (
            f"{waiting} threads wait at a barrier, {len(alive) - waiting} look at words that nobody changes, {ended} "
            f"have ended; blocks that are left: {sorted({thread.block.index.x for thread in alive})}"
        )


# --- what kernels find under the names `cuda` and `ptx` ------------------------------------------------------------


class FakeCuda:
    """The part of numba.cuda that kernels may use; anything else is an AttributeError."""

    def __init__(self, run: Run):
        self._run = run
        self.blockDim, self.gridDim = run.block_dim, run.grid_dim
        self.shared = types.SimpleNamespace(array=self._shared_array)
        self.atomic = types.SimpleNamespace(cas=self._cas, exch=self._exch, add=self._add)
        self.cg = types.SimpleNamespace(this_grid=lambda: types.SimpleNamespace(sync=self._grid_sync))

    @property
    def threadIdx(self) -> Dim:
        return Dim(self._run.current.tid)

    @property
    def blockIdx(self) -> Dim:
        return self._run.current.block.index

    def grid(self, dimensions: int) -> int:
        return self.blockIdx.x * self.blockDim.x + self.threadIdx.x

    def syncthreads(self) -> None:
        run, thread = self._run, self._run.current
        frame = sys._getframe(1)
        run.share(thread)
        run.meet(thread.block.barrier, thread.tid, place=(frame.f_code, frame.f_lineno))

    def shfl_xor_sync(self, mask: int, value: Any, bit: int) -> Any:
        return self._run.exchange(value, bit)

    def threadfence(self) -> None:
        self._run.publish(self._run.current)
        self._run.acquire(self._run.current)

    def _grid_sync(self) -> None:
        run, thread = self._run, self._run.current
        run.publish(thread)
        run.meet(run.grid_barrier, thread)
        run.acquire(thread)

    def _atomic(self, array: Access, index: int, change: Callable[[Any], Any]) -> Any:
        run = self._run
        run.look()
        run.order = "relaxed"
        old = array[index]
        array[index] = change(old)
        run.order = "weak"
        return old

    def _cas(self, array: Access, index: int, old: Any, new: Any) -> Any:
        return self._atomic(array, index, lambda found: new if found == old else found)

    def _exch(self, array: Access, index: int, new: Any) -> Any:
        old = self._atomic(array, index, lambda found: new)
        self._run.current.looks -= 1  # that is more than a look
        return old

    def _add(self, array: Access, index: int, value: Any) -> Any:
        old = self._atomic(array, index, lambda found: found + value)
        self._run.current.looks -= 1
        return old

    def _shared_array(self, shape: int, dtype: Any, alignment: int | None = None) -> SharedArray:
        dtype, block = np.dtype(dtype), self._run.current.block
        if shape == 0:
            return SharedArray(block.dynamic.view(dtype))
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in block.fixed:
            block.fixed[key] = SharedArray(np.full(shape * dtype.itemsize, 0xFF, np.uint8).view(dtype))
        return block.fixed[key]


def twin_of(name: str, run: Run) -> Callable[..., Any]:
    """The instruction's meaning, with the waiting and the memory order that belong to it."""
    twin = ptx.TWINS[name]

    def call(*args: Any) -> Any:
        thread = run.current
        if twin.kind == "warp":
            return twin.function(*args, run.exchange)
        if twin.kind == "copy":
            thread.copies.append(lambda: twin.function(*args))
            return None
        if twin.kind == "wait":
            run.order_of_copy = True
            for copy in thread.copies:
                copy()
            thread.copies.clear()
            run.order_of_copy = False
        if twin.kind == "load":
            run.look()
        if twin.order == "release":
            run.publish(thread)
        run.order = "weak" if twin.order == "weak" else "relaxed"
        result = twin.function(*args)
        run.order = "weak"
        if twin.order == "acquire":
            run.acquire(thread)
        return result

    return call


def rebound(value: Any, run: Run, fake: FakeCuda, done: dict[int, Any]) -> Any:
    """What stands for `value`, a global or a closure variable of a kernel, on the CPU."""
    if value is cuda:
        return fake
    if value is ptx:
        names = {name: getattr(ptx, name) for name in dir(ptx)}
        return types.SimpleNamespace(**{name: rebound(item, run, fake, done) for name, item in names.items()})
    if isinstance(value, CUDADispatcher):
        return rebound_function(value.py_func, run, fake, done)
    if type(value).__name__ == "_Intrinsic" and value._name in ptx.TWINS:
        return twin_of(value._name, run)
    if type(value).__module__.startswith("numba.") and hasattr(value, "bitwidth"):  # float32, int32
        return np.dtype(str(value)).type
    return value


def rebound_function(function: Any, run: Run, fake: FakeCuda, done: dict[int, Any]) -> Any:
    """The same code with CPU stand-ins for its globals and closure variables."""
    if id(function) not in done:
        names = set(function.__code__.co_names)
        scope = {"__builtins__": __builtins__, "__name__": function.__module__}
        copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure=tuple(
            types.CellType(rebound(cell.cell_contents, run, fake, done)) for cell in function.__closure__ or ()
        ))  # fmt: skip
        done[id(function)] = copy
        scope.update({
            name: rebound(value, run, fake, done) for name, value in function.__globals__.items() if name in names
        })  # fmt: skip
    return done[id(function)]


def launch(
    kernel: CUDADispatcher,
    grid: int | tuple[int, int],
    threads: int,
    *args: Any,
    shared: int = 0,
    schedule: str = "adversarial",
    seed: int = 0,
) -> None:
    """kernel<<<grid, threads, shared>>>(*args); arrays are GlobalArray, or NumPy's, which are written to."""
    grid = (grid, 1) if isinstance(grid, int) else tuple(grid)
    arrays = [GlobalArray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    found = [arg for arg in arrays if isinstance(arg, GlobalArray)]
    run = Run(grid, threads, shared, found, seed)
    access = iter(run.arrays)
    fake = FakeCuda(run)
    function = rebound_function(kernel.py_func, run, fake, {})
    run.go(function, [next(access) if isinstance(arg, GlobalArray) else arg for arg in arrays], schedule)


# --- a whole method --------------------------------------------------------------------------------------------------


class FakeGpu(Gpu):
    """rnnpar.kernels.gpu.Gpu on the executor: memory is NumPy's, and poisoned; launches are run to their end."""

    def __init__(self, device: Device, schedule: str = "adversarial", seed: int = 0):
        self.device, self.number, self.schedule, self.seed = device, 0, schedule, seed
        self.launches: list[str] = []
        self.sent = 0  # arrays that came from the host
        self.copied = False  # between host and device, for a call's arrays

    def __enter__(self) -> FakeGpu:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> GlobalArray:
        array = GlobalArray(np.empty(shape, dtype))
        array.values.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    result = empty

    def send(self, array: np.ndarray) -> GlobalArray:
        self.sent += 1
        return GlobalArray(np.array(array).ravel())

    def take_in(self, array: Any) -> GlobalArray:
        if not isinstance(array, np.ndarray):
            return array
        self.copied = True
        return GlobalArray(array.copy())

    def launch(
        self, kernel: Any, grid: Any, threads: int, *args: Any, shared: int = 0, plan: Any = None, what: str = ""
    ) -> None:
        if plan is not None:
            check_resident(self.device, grid, threads, plan.registers, shared, what)
        self.launches.append(kernel.py_func.__name__)
        self.seed += 1
        launch(kernel, grid, threads, *args, shared=shared, schedule=self.schedule, seed=self.seed)

    def synchronize(self) -> None:
        pass

    def hand_back(self, like: Any, array: GlobalArray) -> Any:
        return array.values.copy() if isinstance(like, np.ndarray) else array
