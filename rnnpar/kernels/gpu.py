"""What every CUDA method shares: memory on a device, launches, and the parts of a pass that wait for nothing.

U x of all steps before the recurrence and V h with softmax after it are products of whole matrices:

    product    C = A B^T; a block makes a tile of C, each thread a square of it in registers
    softmax    y = softmax(y + c), a row a warp
    place      h0 into the states' first slot, with zeros up to a multiple of four
    take       the last states out of them
    clear      words become 0

The states of a layer are (T + 1, B, Hs) float32, Hs being H rounded up to a multiple of four: slot 0 holds h0, slot
t + 1 holds U x[t] before step t, and h[t] after it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba import cuda, float32

from rnnpar.kernels import cublas, ptx
from rnnpar.kernels.launch import FOUR, WARP, Device, DoesNotFit, check_resident, round_up, why_no_gpu
from rnnpar.network import RNN

Forward = Callable[[Any, Any], tuple[Any, Any]]
ALIGNED = 16  # bytes: 128-bit accesses
DEPTH = 16  # columns of A and B that a product keeps in shared memory at a time
ROWS = 8  # warps of a softmax block, a row each
EVERYBODY = 0xFFFFFFFF  # all lanes of a warp
SLACK = 3  # rows behind the states, which a warp that takes four sequences may read; what it makes of them is not used
POOL = 2  # results that are kept for reuse: a caller often holds the last one during the next call


# --- the parts that wait for nothing -----------------------------------------------------------------------------


@cache
def product_kernel(size: int) -> Any:
    """C[m, n] = the sum of A[m, k] B[n, k]: 256 threads make a tile of 64 * size squared of C.

    Parallelises: tiles of C over blocks, squares of 4 * size over threads. Synchronises: a block, twice for DEPTH
    columns. Moves: each of A and B from memory once for each tile across.
    """
    TILE, PITCH, LOADS, SUMS = 64 * size, 64 * size + FOUR, 4 * size, 16 * size * size
    ROOM = DEPTH * PITCH

    @cuda.jit(launch_bounds=(256, 1))
    def product(A, a0, lda, B, ldb, C, c0, ldc, M, N, K):
        left = cuda.shared.array(ROOM, float32, alignment=ALIGNED)
        right = cuda.shared.array(ROOM, float32, alignment=ALIGNED)
        tid = cuda.threadIdx.x
        row, column = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
        down, across = FOUR * (tid // 16), FOUR * (tid % 16)
        sums = ptx.zeros(SUMS)
        for k0 in range(0, K, DEPTH):
            for i in range(LOADS):
                k, r = tid % DEPTH, tid // DEPTH + DEPTH * i
                inside = k0 + k < K
                m, n = row + r, column + r
                left[k * PITCH + r] = A[a0 + m * lda + k0 + k] if inside and m < M else float32(0)
                right[k * PITCH + r] = B[n * ldb + k0 + k] if inside and n < N else float32(0)
            cuda.syncthreads()  # the columns are there
            for k in range(DEPTH):
                a = ptx.tile_load(left, k * PITCH + down, 0, 64, 1, size)
                b = ptx.tile_load(right, k * PITCH + across, 0, 64, 1, size)
                sums = ptx.outer(a, b, sums)
            cuda.syncthreads()  # all have used them
        ptx.tile_store(C, c0, ldc, row + down, M, column + across, N, 64, sums)

    return product


@cuda.jit
def softmax_rows(y, c, M, O):
    """Each row of y (M, O) becomes softmax(y + c). A warp takes a row; its lanes meet by shuffles."""
    lane = cuda.threadIdx.x % WARP
    row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // WARP
    if row < M:
        most = float32(-math.inf)
        for i in range(lane, O, WARP):
            logit = y[row * O + i] + c[i]
            y[row * O + i] = logit
            most = max(most, logit)
        for bit in (16, 8, 4, 2, 1):
            most = max(most, cuda.shfl_xor_sync(EVERYBODY, most, bit))
        total = float32(0)
        for i in range(lane, O, WARP):
            e = math.exp(y[row * O + i] - most)
            y[row * O + i] = e
            total += e
        for bit in (16, 8, 4, 2, 1):
            total += cuda.shfl_xor_sync(EVERYBODY, total, bit)
        scale = float32(1) / total
        for i in range(lane, O, WARP):
            y[row * O + i] *= scale


@cuda.jit
def clear(words, size):
    """The first words become 0."""
    i = cuda.grid(1)
    if i < size:
        words[i] = 0


@cuda.jit
def place(h0, start, states, slot, B, H, Hs):
    """The states from `slot` on = h0[start:], (B, H) into (B, Hs), with zeros behind each row."""
    i = cuda.grid(1)
    if i < B * Hs:
        b, k = i // Hs, i % Hs
        states[slot + i] = h0[start + b * H + k] if k < H else float32(0)


@cuda.jit
def take(states, slot, h, start, B, H, Hs):
    """h[start:] = the states from `slot` on, (B, Hs) into (B, H)."""
    i = cuda.grid(1)
    if i < B * H:
        h[start + i] = states[slot + i // H * Hs + i % H]


# --- memory and launches -----------------------------------------------------------------------------------------


class Gpu:
    """One device: its limits, memory on it and launches on it, all in its default stream."""

    def __init__(self, number: int = 0):
        self.device = Device.current(number)
        self.number = number
        self._ready: dict[Any, Any] = {}
        self._pools: dict[Any, list[Any]] = {}

    def __enter__(self) -> Gpu:
        self._context = cuda.gpus[self.number]
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Memory on the device, not filled. MemoryError says how much was asked for."""
        try:
            return cuda.device_array(shape, dtype)
        except Exception as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if "OUT_OF_MEMORY" in str(error).upper().replace(" ", "_"):
                raise MemoryError(
                    f"{self.device.name} has no room for {size:,} bytes more, for an array {shape}: "
                    "take fewer steps or sequences in a call (h0 carries the state from one to the next)"
                ) from error
            raise

    def result(self, shape: tuple[int, ...]) -> Any:
        """Memory for a result that is handed out. It comes back, to be used again, once nobody holds a view of it:
        to take memory from the driver and to give it back costs as much as a short pass."""
        size = max(1, math.prod(shape)) * 4
        pool = self._pools.setdefault(size, [])
        buffer = pool.pop() if pool else self.empty((size,), np.uint8)

        def come_back() -> None:
            if len(pool) < POOL:
                pool.append(buffer)

        base = buffer.gpu_data
        memory = cuda.MemoryPointer(base.context, base.device_pointer, size, finalizer=come_back)
        strides = tuple(4 * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cuda.devicearray.DeviceNDArray(shape, strides, np.float32, gpu_data=memory)

    def send(self, array: np.ndarray) -> Any:
        """A copy on the device, one-dimensional."""
        target = self.empty((array.size,), array.dtype)
        target.copy_to_device(np.ascontiguousarray(array).ravel())
        return target

    def fetch(self, array: Any) -> np.ndarray:
        """A copy of a device array in the host's memory; waits for what makes it."""
        return array.copy_to_host()

    def take_in(self, array: Any) -> Any:
        """The caller's array on the device: NumPy's is copied, a device array is taken where it lies."""
        if not isinstance(array, np.ndarray):
            return self.view(array)
        copy = self.result(array.shape)
        copy.copy_to_device(np.ascontiguousarray(array))
        return copy

    def view(self, array: Any) -> Any:
        """The same memory as a Numba array, whoever made it; nothing is copied, and no stream is waited for."""
        return array if isinstance(array, cuda.devicearray.DeviceNDArray) else cuda.as_cuda_array(array, sync=False)

    def launch(
        self, kernel: Any, grid: Any, threads: int, *args: Any, shared: int = 0, plan: Any = None, what: str = ""
    ) -> None:
        """kernel<<<grid, threads, shared>>>(*args), args being arrays on the device and whole numbers. With a `plan`,
        its blocks wait for each other: a cooperative launch, refused before it happens where they do not all fit on
        the device together."""
        key = (kernel, grid, threads, shared)
        if key not in self._ready:
            self._ready[key] = self._prepare(kernel, grid, threads, args, shared, plan, what)
        try:
            self._ready[key](args)
        except Exception as error:
            raise RuntimeError(
                f"the launch of {what or kernel.py_func.__name__} on {self.device.name} failed ({grid} blocks of "
                f"{threads} threads, {shared:,} bytes of shared memory): {error}"
            ) from error

    def _prepare(self, kernel: Any, grid: Any, threads: int, args: tuple, shared: int, plan: Any, what: str) -> Launch:
        """Compile, and tell the driver what the kernel needs; done once for each kernel and shape of launch."""
        flat = [arg.reshape(-1) if getattr(arg, "ndim", 1) > 1 else arg for arg in args]
        compiled = kernel.compile(tuple(kernel.typeof_pyval(arg) for arg in flat))
        function = compiled.library.get_cufunc()
        if shared > 48 * 1024:
            allow_shared(function, shared)
        if plan is not None:
            check_resident(self.device, grid, threads, compiled.regs_per_thread, shared, what)
            room = compiled.max_cooperative_grid_blocks(threads, shared)  # and the driver's own count
            if grid > room:
                raise DoesNotFit(what, "blocks that are resident together", grid, room, f"on {self.device.name}")
        return Launch(function, grid, threads, shared, cooperative=plan is not None)

    def synchronize(self) -> None:
        """Wait for all that was launched. RuntimeError if any of it failed."""
        with self:
            status, *_ = driver.cuStreamSynchronize(0)
            if status:
                raise RuntimeError(f"a kernel failed on {self.device.name}: {status.name}")

    def hand_back(self, like: Any, array: Any) -> Any:
        """`array` as the kind that `like` is: NumPy's, CuPy's, or Numba's own."""
        if isinstance(like, np.ndarray):
            return self.fetch(array)
        if type(like).__module__.split(".")[0] == "cupy":
            import cupy

            return cupy.asarray(array)  # the same memory, which CuPy's array keeps alive
        return array


class Launch:
    """A compiled kernel with its shape of launch: called with arguments, it asks the driver, in the default stream.

    Numba's own way there looks at each argument anew, and takes as long as a hundred steps of a small network. Here all
    that Numba's kernels expect of an argument is put into 64-bit words: of an array that it has no owner, how many
    elements it has of how many bytes, where it lies, its length and its stride; of a whole number itself.
    """

    def __init__(self, function: Any, grid: Any, threads: int, shared: int, cooperative: bool):
        self.ask = driver.cuLaunchCooperativeKernel if cooperative else driver.cuLaunchKernel
        self.end = () if cooperative else (0,)
        self.function = driver.CUfunction(int(function.handle))
        self.shape = (*(grid if isinstance(grid, tuple) else (grid, 1)), 1, threads, 1, 1, shared, 0)
        self.words: Any = None

    def __call__(self, args: tuple) -> None:
        words: list[int] = []
        for arg in args:
            words += (arg,) if isinstance(arg, int) else words_of(arg)
        if self.words is None:
            self.words = (ctypes.c_int64 * len(words))()
            first = ctypes.addressof(self.words)
            self.places = (ctypes.c_uint64 * len(words))(*range(first, first + 8 * len(words), 8))
            self.where = ctypes.addressof(self.places)
        self.words[:] = words
        status = self.ask(self.function, *self.shape, self.where, *self.end)[0]
        if status:
            raise RuntimeError(status.name)


def words_of(array: Any) -> tuple[int, ...]:
    """A contiguous device array as Numba's kernels take it, with one dimension."""
    size, each = array.size, array.dtype.itemsize
    return 0, 0, size, each, array.device_ctypes_pointer.value, size, each


def allow_shared(function: Any, size: int) -> None:
    """More than 48 KB of dynamic shared memory is for those that ask for it."""
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    status, *_ = driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the driver refuses {size:,} bytes of shared memory a block: {status.name}")


def open_gpu(number: int) -> Gpu:
    """The device of that number, or RuntimeError saying why there is none."""
    why = why_no_gpu()
    if why:
        raise RuntimeError(f"no GPU can be used here: {why}")
    return Gpu(number)


# --- a whole pass around a recurrence ----------------------------------------------------------------------------


class Pass:
    """`forward(x, h0)` around a recurrence: everything but W h, for all layers and steps, on the device.

    `recur(layer, b, states, T, B)` turns the states of one layer from U x into h. NumPy in, NumPy out; device
    arrays in, device arrays out, which are ready when `synchronize` returns or for what follows in the same stream.
    """

    def __init__(self, net: RNN, gpu: Gpu, recur: Callable[[int, Any, Any, int, int], None], products: str = "auto"):
        self.net, self.gpu, self.recur = net, gpu, recur
        self.products = choose_products(products)
        self.info: dict[str, Any] = {"products": self.products, "device": gpu.device.name}
        self.Hs = round_up(net.hidden_size, FOUR)
        with gpu:
            self.inputs = [
                (gpu.send(padded(layer.U, self.Hs, layer.U.shape[1])), gpu.send(padded(layer.b[None], 1, self.Hs)))
                for layer in net.layers
            ]
            self.V, self.c = gpu.send(net.V), gpu.send(net.c)
        self.shape: tuple[int, int] | None = None

    def __call__(self, x: Any, h0: Any) -> tuple[Any, Any]:
        gpu, net, Hs = self.gpu, self.net, self.Hs
        T, B, _ = x.shape
        H, O, L = net.hidden_size, net.output_size, net.num_layers
        with gpu:
            self._room(T, B)
            below, ld = gpu.take_in(x), net.input_size
            before = gpu.take_in(h0)
            h, first = None, 0  # where the rows of `below` begin
            for l in range(L):
                U, b = self.inputs[l]
                states = self.states[l % 2]
                gpu.launch(place, blocks_for(B * Hs), 256, before, l * B * H, states, 0, B, H, Hs)
                fan_in = net.input_size if l == 0 else H
                self.multiply(below, first, ld, U, fan_in, states, B * Hs, Hs, T * B, Hs, fan_in)
                self.recur(l, b, states, T, B)
                if h is None:
                    h = gpu.result((L, B, H))  # the GPU is busy with the steps: this costs no time, nor what follows
                gpu.launch(take, blocks_for(B * H), 256, states, T * B * Hs, h, l * B * H, B, H, Hs)
                below, first, ld = states, B * Hs, Hs
            y = gpu.result((T, B, O))
            self.multiply(below, first, ld, self.V, H, y, 0, O, T * B, O, H)
            gpu.launch(softmax_rows, -(-T * B // ROWS), ROWS * WARP, y, self.c, T * B, O)
            return gpu.hand_back(x, y), gpu.hand_back(x, h)

    def multiply(
        self, A: Any, a0: int, lda: int, weights: Any, ldb: int, C: Any, c0: int, ldc: int, M: int, N: int, K: int
    ) -> None:
        """C = A weights^T: by the kernel above, or by cuBLAS, which CuPy brings."""
        if self.products == "cublas":
            import cupy

            left, right, to = (array.device_ctypes_pointer.value for array in (A, weights, C))
            with cupy.cuda.Stream.null:  # where the kernels run, whatever stream the caller works in
                cublas.product(cupy.cuda, left + 4 * a0, lda, right, ldb, to + 4 * c0, ldc, M, N, K)
            return
        size = 2 if 2 * self.gpu.device.multiprocessors <= (-(-M // 128)) * (-(-N // 128)) else 1
        tiles = (-(-M // (64 * size)), -(-N // (64 * size)))
        self.gpu.launch(product_kernel(size), tiles, 256, A, a0, lda, weights, ldb, C, c0, ldc, M, N, K)

    def synchronize(self) -> None:
        """Wait for the last call's results."""
        self.gpu.synchronize()

    def _room(self, T: int, B: int) -> None:
        """States for this shape; they stay for the next call's."""
        if self.shape != (T, B):
            self.shape, self.states = None, []
            size = ((T + 1) * B + SLACK) * self.Hs
            self.states = [self.gpu.empty((size,)) for _ in range(min(2, self.net.num_layers))]
            self.shape = (T, B)


def choose_products(products: str) -> str:
    """'own' or 'cublas' as given; 'auto' is cuBLAS where CuPy is installed."""
    if products not in ("auto", "own", "cublas"):
        raise ValueError(f"products is {products!r}; it must be 'auto', 'own' or 'cublas'")
    here = importlib.util.find_spec("cupy") is not None
    if products == "cublas" and not here:
        raise ValueError("products is 'cublas', which CuPy brings: pip install cupy-cuda13x, or say products='own'")
    return products if products != "auto" else "cublas" if here else "own"


def blocks_for(items: int, threads: int = 256) -> int:
    return max(1, -(-items // threads))


def padded(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The matrix with zeros below and to the right, (rows, columns) float32."""
    wide = np.zeros((rows, columns), np.float32)
    wide[: matrix.shape[0], : matrix.shape[1]] = matrix
    return wide


def weights_of(matrix: np.ndarray, rows: int, columns: int, dtype: str) -> np.ndarray:
    """W as kernels read it: padded, float32; or int32 with two bfloat16 each, the left one in the lower half."""
    wide = padded(matrix, rows, columns)
    if dtype == "float32":
        return wide
    bits = wide.view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1) >> 16  # to the nearest, ties to even
    return (rounded[:, 0::2] | rounded[:, 1::2] << 16).view(np.int32)
