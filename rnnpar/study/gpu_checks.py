"""What no CPU executor can show, each tested on a real GPU by one function here; `make check-gpu` runs them all.

The kernels' own tests run on a CPU. Its executor has a weak memory too, but one of its own making; there every block is
alive, shared memory has no end and arithmetic is the CPU's. So too many blocks, too much shared memory, a careless
approximation, and how a GPU's memory really behaves, stay unseen. `CHECKS` says which check looks for which; a check
returns what it saw, or raises Fault. Each runs in a process of its own, within a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rnnpar import device_arrays, registry
from rnnpar.auto import prepare
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.study.measure import BOUND

HANDOVERS = 100_000  # of the message that is passed from block to block
REPEATS = 20  # calls whose bits have to be the same
TANH_BOUND = 1e-6  # absolute
SAME_BITS = ((256, 1), (1024, 3))  # H, B
SAME_BITS_STEPS = 300
RESIDENT = (64, 500, 1000, 1536, 2048)  # H, beside those at which a block gets one more row
BATCHES = (1, 40)
STAY = (20, 2, 40)  # T, B, H of the call from device arrays


class Fault(AssertionError):
    """The GPU, or the code for it, does not do what is relied on; the message says what was seen."""


@dataclass(frozen=True)
class Check:
    """A function of this module by its name, and what a CPU cannot show that it looks for."""

    name: str
    function: str
    unseen: str


CHECKS = (
    Check(
        "fences", "fences", "how late another multiprocessor really sees a value: the executor's weak memory is a model"
    ),
    Check("same bits", "same_bits", "a race that the schedules of the executor do not happen to meet"),
    Check("co-residency", "co_residency", "blocks that wait for others which the device has no room to start"),
    Check("too many blocks", "too_many_blocks", "a launch that would wait for ever, and must be refused before"),
    Check("shared memory", "shared_memory", "more shared memory or registers than there are, at the largest sizes"),
    Check("tanh and exp", "tanh_and_exp", "the GPU's own approximations of tanh, and what rounding is left out"),
    Check("device arrays", "device_arrays_stay", "a copy through the host that nobody asked for"),
    Check("devices", "devices", "limits of a card that differ from what is written down; an array on another device"),
    Check("bad launches", "bad_launches", "what a driver says, and whether the user is told what would do"),
)


def run(name: str) -> str:
    """Run the check of that name; what it saw. Raises Fault, or what the libraries raise."""
    [check] = [check for check in CHECKS if check.name == name]
    return globals()[check.function]()


# --- the memory model --------------------------------------------------------------------------------------------


def fences() -> str:
    """A message from one block to another: plain stores, then a released flag; an acquired flag, then plain loads."""
    stale = handover(released=True)
    if stale:
        raise Fault(f"{stale:,} of {HANDOVERS:,} messages were read before they were there, behind an acquired flag")
    relaxed = handover(released=False)
    return f"no stale message in {HANDOVERS:,} for each pair of blocks; {relaxed:,} where the flag only is relaxed"


def handover(released: bool) -> int:
    """How many loads found an old value, over all pairs of blocks; unless `released`, the flag orders nothing."""
    from rnnpar.kernels.gpu import open_gpu
    from rnnpar.kernels.gpu_probe import TOGETHER

    gpu = open_gpu(0)
    pairs = gpu.device.multiprocessors // 2
    with gpu:
        stale = gpu.send(np.zeros(pairs, np.int32))
        data, flags = gpu.send(np.zeros(pairs * 32, np.int32)), gpu.send(np.zeros(2 * pairs * 32, np.int32))
        kernel = handover_kernel(released)
        gpu.launch(kernel, 2 * pairs, 32, data, flags, stale, HANDOVERS, plan=TOGETHER, what="passing a message")
        return int(gpu.fetch(stale).sum())


def handover_kernel(released: bool) -> Any:
    """Block 2 i writes 32 words for block 2 i + 1, which looks at them and answers, again and again."""
    from numba import cuda, int32

    from rnnpar.kernels import ptx

    store = ptx.st_release if released else ptx.st_relaxed
    load = ptx.ld_acquire if released else ptx.ld_relaxed

    @cuda.jit
    def messages(data, flags, stale, count):
        pair, lane = cuda.blockIdx.x // 2, cuda.threadIdx.x
        there, back = pair * 32, (cuda.gridDim.x // 2 + pair) * 32  # a cache line each
        wrong = int32(0)
        for t in range(1, count + 1):
            if cuda.blockIdx.x % 2 == 0:
                data[pair * 32 + lane] = int32(t)
                cuda.syncthreads()
                if lane == 0:
                    store(flags, there, int32(t))
                    while load(flags, back) < t:
                        pass
                cuda.syncthreads()
            else:
                if lane == 0:
                    while load(flags, there) < t:
                        pass
                cuda.syncthreads()
                if data[pair * 32 + lane] != t:
                    wrong += int32(1)
                cuda.syncthreads()
                if lane == 0:
                    store(flags, back, int32(t))
        if wrong > 0:
            cuda.atomic.add(stale, pair, wrong)

    return messages


def same_bits() -> str:
    """Every method that meets other blocks, at sizes where blocks are many and where they are few, again and again."""
    seen = []
    for method, options in meeting_methods():
        for H, B in SAME_BITS:
            net = RNN.random(16, H, 16, 1, seed=1)
            x = np.random.default_rng(2).standard_normal((SAME_BITS_STEPS, B, 16), dtype=np.float32)
            with refusals(seen, method, H), prepare(net, method, **options) as runner:
                first = runner(x)
                check_answer(net, x, first, f"{method} {options}, H = {H}")
                for call in range(1, REPEATS):
                    again = runner(x)
                    if not all(np.array_equal(*pair) for pair in zip(first, again, strict=True)):
                        raise Fault(f"{method} {options}, H = {H}, B = {B}: call {call} gave other bits than the first")
                seen.append(f"{method} {' '.join(map(str, options.values()))} H={H}".replace("  ", " "))
    return f"{REPEATS} calls each, all bits the same: {', '.join(seen)}"


def meeting_methods() -> list[tuple[str, dict[str, Any]]]:
    """The methods that can run here whose blocks meet, with each kind of barrier."""
    from rnnpar.kernels.launch import BARRIERS

    here = {method.name for method in registry.methods() if method.available}
    found: list[tuple[str, dict[str, Any]]] = [("numba_cuda/persistent", {"barrier": kind}) for kind in BARRIERS]
    found.append(("cupy_gpu/cluster", {}))
    return [(name, options) for name, options in found if name in here]


# --- what fits ---------------------------------------------------------------------------------------------------


def co_residency() -> str:
    """Every plan whose blocks wait for each other, run with as many blocks as the device holds."""
    from rnnpar.kernels.launch import DoesNotFit, plan_persistent

    device, ran = current(), []
    for H in (*RESIDENT, 4 * device.multiprocessors - 4, 4 * device.multiprocessors):
        for B in BATCHES:
            try:
                plan = plan_persistent(device, H, B)
            except DoesNotFit:
                continue
            try:
                answer(H, B, "numba_cuda/persistent")
            except DoesNotFit as error:
                raise Fault(f"planned for {plan.grid} blocks at H = {H}, B = {B}, and then refused: {error}") from error
            ran.append(f"{plan.grid} blocks of {plan.threads} at H={H} B={B}")
    if not ran:
        raise Fault("no plan fits this device at all")
    return "; ".join(ran)


def too_many_blocks() -> str:
    """One block more than there is room for: refused, with the limit's name."""
    from rnnpar.backends.numba_cuda import APART
    from rnnpar.kernels.gpu import open_gpu
    from rnnpar.kernels.gpu_probe import TOGETHER, meetings_kernel
    from rnnpar.kernels.launch import DoesNotFit

    gpu = open_gpu(0)
    blocks = gpu.device.multiprocessors * gpu.device.blocks + 1
    with gpu:
        memory = gpu.send(np.zeros(blocks * APART, np.int32))
        try:
            gpu.launch(meetings_kernel("flags"), blocks, 1024, memory, 0, 2, plan=TOGETHER, what="a meeting")
            gpu.synchronize()
        except DoesNotFit as error:
            return f"refused: {error}"
    raise Fault(f"{blocks:,} blocks that wait for each other were launched on {gpu.device.name}")


def shared_memory() -> str:
    """The largest networks that the plans accept here run and are right; the next larger one is refused by name."""
    from rnnpar.kernels.launch import DoesNotFit, plan_block, plan_persistent

    device, seen = current(), []
    for method, plan in (("numba_cuda/block", plan_block), ("numba_cuda/persistent", plan_persistent)):
        for dtype in ("float32", "bfloat16"):
            H = largest(lambda H, plan=plan, dtype=dtype: plan(device, H, 1, dtype))
            found = plan(device, H, 1, dtype)
            answer(H, 1, method, dtype=dtype)
            try:
                answer(H + 4, 1, method, dtype=dtype)
            except DoesNotFit as error:
                seen.append(f"{method} {dtype}: H = {H} runs, {found.shared:,} bytes a block; {H + 4}: {error.limit}")
                continue
            raise Fault(f"{method} {dtype}: H = {H + 4} ran, though its plan does not fit")
    return "; ".join(seen)


def largest(plan: Any) -> int:
    """The largest hidden size, a multiple of four, that a plan accepts while it accepts all smaller ones tried."""
    from rnnpar.kernels.launch import DoesNotFit

    def fits(H: int) -> bool:
        try:
            plan(H)
        except DoesNotFit:
            return False
        return True

    low, high = 4, 8192
    while high - low > 4:
        middle = (low + high) // 8 * 4
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- arithmetic --------------------------------------------------------------------------------------------------


def tanh_and_exp() -> str:
    """The kernels' tanh over all magnitudes against float64, the instruction that approximates it, and softmax."""
    x = np.concatenate([np.linspace(-12, 12, 200_001), *(sign * np.logspace(-30, 30, 5_001) for sign in (-1, 1)),
                        [0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)  # fmt: skip
    exact, rough = on_device_tanh(x)
    wanted = np.tanh(x.astype(np.float64))
    errors = [float(np.max(np.abs(found - wanted))) for found in (exact, rough)]
    if not errors[0] <= TANH_BOUND:
        raise Fault(f"tanh is off by {errors[0]:.2g}, over {TANH_BOUND:g}")
    if not errors[1] <= 2e-3:
        raise Fault(f"tanh.approx is off by {errors[1]:.2g}, over 0.002")
    net = RNN.random(4, 8, 5, 1, seed=3)
    large = replace(net, V=(300 * net.V).astype(np.float32))  # logits of some hundreds: exp must not overflow
    inputs = np.random.default_rng(4).standard_normal((9, 2, 4), dtype=np.float32)
    y, _ = prepare(large, "numba_cuda/steps")(inputs)
    if not np.allclose(y.sum(-1), 1, atol=1e-5):
        raise Fault(f"probabilities do not add up to 1 where logits are large: {y.sum(-1).min():.3g}")
    return f"tanh is off by {errors[0]:.1e} at most, tanh.approx by {errors[1]:.1e}; softmax stands logits of hundreds"


def on_device_tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """tanh of each element as the kernels compute it, and by the approximating instruction."""
    import math

    from numba import cuda

    from rnnpar.kernels import ptx
    from rnnpar.kernels.gpu import open_gpu

    @cuda.jit
    def both(x, exact, rough):
        i = cuda.grid(1)
        if i < x.size:
            exact[i] = math.tanh(x[i])
            rough[i] = ptx.tanh_approx(x[i])

    gpu = open_gpu(0)
    with gpu:
        exact, rough = gpu.empty((x.size,)), gpu.empty((x.size,))
        gpu.launch(both, -(-x.size // 256), 256, gpu.send(x), exact, rough)
        return gpu.fetch(exact), gpu.fetch(rough)


# --- arrays, devices, launches -----------------------------------------------------------------------------------


def device_arrays_stay() -> str:
    """A second call from device arrays: same kind, same bits as from NumPy, and no copy through the host."""
    seen = []
    for method in available():
        T, B, H = STAY
        net = RNN.random(8, H, 8, 1, seed=5)
        x = np.random.default_rng(6).standard_normal((T, B, 8), dtype=np.float32)
        backend = method.split("/")[0]
        with prepare(net, method) as runner:
            wanted = runner(x)
            given = device_arrays.put(x, backend)
            runner(given)
            with no_host_copies():
                found = runner(given)
            if {type(array) for array in found} != {type(given)}:
                raise Fault(f"{method} was given a {device_arrays.kind(given)} and returned {type(found[0]).__name__}")
            fetched = [device_arrays.fetch(array) for array in (*found, given)]
            if not all(np.array_equal(*pair) for pair in zip(fetched, (*wanted, x), strict=True)):
                raise Fault(f"{method} gives other bits from device arrays than from NumPy's, or changes its input")
        seen.append(method)
    return ", ".join(seen)


@contextmanager
def no_host_copies() -> Iterator[None]:
    """Any copy between host and device by a Numba array is a Fault in here: our own methods make no other."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Fault("a call from device arrays copied through the host")

    places = [("numba.cuda.cudadrv.devicearray", "DeviceNDArray", name) for name in ("copy_to_host", "copy_to_device")]
    undo = []
    import importlib

    for module, holder, name in places:
        target = getattr(importlib.import_module(module), holder)
        undo.append((target, name, getattr(target, name)))
        setattr(target, name, refuse)
    try:
        yield
    finally:
        for target, name, original in undo:
            setattr(target, name, original)


def devices() -> str:
    """What the driver says of this card against what is written down; a device that there is not; arrays elsewhere."""
    from rnnpar.kernels.launch import KNOWN, Device

    device = current()
    written = [known for known in KNOWN if known.name == device.name]
    exact = ("capability", "multiprocessors", "registers", "shared", "shared_per_block", "shared_reserved", "threads",
             "blocks", "l2", "cluster")  # fmt: skip
    for known in written:
        wrong = [name for name in exact if getattr(known, name) != getattr(device, name)]
        if wrong:
            told = ", ".join(f"{name} {getattr(device, name)}, not {getattr(known, name)}" for name in wrong)
            raise Fault(f"the limits written down for {device.name} are others than the driver's: {told}")
    count = 0
    while True:
        try:
            Device.current(count)
        except ValueError:
            break
        count += 1
    try:
        prepare(RNN.random(2, 4, 2), "numba_cuda/steps", device=count)
    except ValueError as error:
        refused = str(error)
    else:
        raise Fault(f"a runner was made for device {count}, and there are {count}")
    told = (
        f"limits as written down for {device.name}" if written else f"{device.name} is not among the cards written down"
    )
    return f"{told}; device {count}: {refused}; {elsewhere(count)}"


def elsewhere(count: int) -> str:
    """An array on the second device, for a runner on the first."""
    if count < 2:
        return "arrays on another device not tried: there is one GPU"
    from numba import cuda

    with cuda.gpus[1]:
        x = cuda.to_device(np.zeros((3, 1, 2), np.float32))
    try:
        prepare(RNN.random(2, 4, 2), "numba_cuda/steps")(x)
    except ValueError as error:
        return str(error)
    raise Fault("a runner on device 0 took an array that lies on device 1")


def bad_launches() -> str:
    """More shared memory than a block can have: an error that names the kernel, the device and what was asked for."""
    from rnnpar.kernels.gpu import open_gpu
    from rnnpar.kernels.gpu_probe import nothing

    gpu = open_gpu(0)
    with gpu:
        try:
            gpu.launch(nothing, 1, 32, shared=gpu.device.shared_per_block + 4096, what="nothing")
            gpu.synchronize()
        except (RuntimeError, ValueError) as error:
            answer(32, 1, "numba_cuda/steps")  # and the device still works
            return str(error)
    raise Fault("a launch with more shared memory than there is was not refused")


# --- helpers -----------------------------------------------------------------------------------------------------


def current() -> Any:
    from rnnpar.kernels.launch import Device

    return Device.current()


def available() -> list[str]:
    """The GPU's methods that can run here."""
    return [method.name for method in registry.methods() if method.on_gpu and method.available]


def answer(H: int, B: int, method: str, **options: Any) -> None:
    """Run a small problem of that size and hold it against the oracle. Fault where it is wrong."""
    net = RNN.random(8, H, 8, 1, seed=7)
    x = np.random.default_rng(8).standard_normal((6, B, 8), dtype=np.float32)
    with prepare(net, method, **options) as runner:
        check_answer(net, x, runner(x), f"{method} with H = {H}, B = {B}", options.get("dtype", "float32"))


def check_answer(net: RNN, x: np.ndarray, answer: tuple[Any, Any], what: str, dtype: str = "float32") -> None:
    bound = 3e-2 if dtype == "bfloat16" else BOUND
    errors = [relative_error(*pair) for pair in zip(answer, reference(net, x), strict=True)]
    if not max(errors) <= bound:
        raise Fault(f"{what}: relative error {max(errors):.2g}, over the bound of {bound:g}")


@contextmanager
def refusals(seen: list[str], method: str, H: int) -> Iterator[None]:
    """A size that a method refuses is no fault; it is told."""
    from rnnpar.kernels.launch import DoesNotFit

    try:
        yield
    except DoesNotFit as error:
        seen.append(f"{method} H={H} refused ({error.limit})")
