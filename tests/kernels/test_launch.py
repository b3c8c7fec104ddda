"""Launch planning: occupancy by hand, plans that hold on four devices, and each limit named where one is too small."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from rnnpar.kernels import launch
from rnnpar.kernels.launch import (
    A100,
    BARRIERS,
    FOUR,
    H100,
    KNOWN,
    MOST_ROWS,
    SMALL,
    T4,
    WARP,
    Device,
    DoesNotFit,
    blocks_that_fit,
    check_resident,
    plan_block,
    plan_persistent,
    register_ceiling,
    resident,
    why_no_gpu,
)

CASES = [
    (device, H, B) for device in KNOWN for H in (1, 50, 64, 131, 256, 512, 1000, 1024, 2048, 2500) for B in (1, 4, 64)
]


# --- occupancy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "threads", "registers", "shared", "fits"),
    [
        (H100, 1024, 32, 0, 2),  # threads: 2048 / 1024
        (H100, 32, 16, 0, 32),  # blocks: 32 a multiprocessor
        (T4, 32, 16, 0, 16),
        (H100, 256, 64, 0, 4),  # registers: 65536 / (256 x 64)
        (H100, 256, 65, 0, 3),  # 72 are handed out: 65536 / (256 x 72) = 3.6
        (H100, 512, 128, 0, 1),
        (H100, 33, 128, 0, 4),  # two warps, taken for four: 65536 / (128 x 128)
        (H100, 128, 16, 100 * 1024, 2),  # shared: 228 / (100 + 1)
        (H100, 128, 16, 227 * 1024, 1),
        (A100, 128, 16, 100 * 1024, 1),  # 164 / (100 + 1)
        (T4, 128, 16, 32 * 1024, 2),  # no reserve before Ampere: 64 / 32
    ],
)
def test_blocks_that_fit_by_hand(device, threads, registers, shared, fits):
    assert blocks_that_fit(device, threads, registers, shared) == fits
    assert resident(device, threads, registers, shared) == fits * device.multiprocessors


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "limit", "needs", "has"),
    [
        (1025, 32, 0, "threads a block", 1025, 1024),
        (32, 256, 0, "registers a thread", 256, 255),
        (512, 136, 0, "registers a block", 512 * 136, 65536),
        (32, 32, 227 * 1024 + 4, "bytes of shared memory a block", 227 * 1024 + 4, 227 * 1024),
    ],
)
def test_a_block_that_does_not_fit_names_the_limit(threads, registers, shared, limit, needs, has):
    with pytest.raises(DoesNotFit, match=f"needs {needs:,} {limit}, and there are {has:,}") as caught:
        blocks_that_fit(H100, threads, registers, shared)
    assert (caught.value.limit, caught.value.needs, caught.value.has) == (limit, needs, has)


def test_blocks_that_wait_for_each_other_must_all_fit():
    check_resident(H100, 132, 512, 128, 0, "a grid")
    with pytest.raises(DoesNotFit, match="a grid needs 133 blocks that are resident together, and there are 132"):
        check_resident(H100, 133, 512, 128, 0, "a grid")


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "H", "B"), CASES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plans_hold_or_say_what_is_too_small(device, H, B, dtype):
    """What a plan promises: all rows and columns and sequences covered once, within every limit of the device."""
    words = 1 if dtype == "float32" else 2
    for barrier in BARRIERS:
        try:
            plan = plan_persistent(device, H, B, dtype, barrier)
        except DoesNotFit as error:
            refused = error.needs > error.has and 4 / words * H * H > 70 * 1024 * device.multiprocessors
            if not refused:
                pytest.fail(f"W is small, or the numbers are wrong: {error}")
            continue
        own = plan.rows + plan.extra
        assert (plan.blocks - 1) * own < plan.H + FOUR
        assert plan.blocks * own >= H
        assert plan.Hp == plan.threads * FOUR * plan.groups
        assert plan.Hp >= H
        assert (plan.teams - 1) * plan.sequences < B <= plan.teams * plan.sequences
        assert plan.grid <= plan.resident
        assert plan.resident == resident(device, plan.threads, plan.registers, plan.shared)
        assert plan.threads % WARP == 0
        assert 1 <= plan.rows <= MOST_ROWS
        assert plan.extra >= 0
        assert plan.extra % FOUR == 0
        assert plan.rows * plan.groups * FOUR // words < plan.registers <= register_ceiling(device, plan.threads)
        assert plan.extra * plan.Hp * 4 // words < plan.shared <= device.shared_per_block
        assert 1 <= plan.chunk <= plan.sequences
        if barrier == "values":
            tail = B - (plan.teams - 1) * plan.sequences
            assert plan.sequences % plan.poll == tail % plan.poll == plan.chunk % plan.poll == 0


@pytest.mark.parametrize(("device", "H", "B"), CASES, ids=lambda value: getattr(value, "name", value))
def test_block_plans_hold_or_say_what_is_too_small(device, H, B):
    try:
        plan = plan_block(device, H, B)
    except DoesNotFit as error:
        if not (error.needs > error.has and H > 128 and "numba_cuda/persistent" in str(error)):
            pytest.fail(str(error))
        return
    own = plan.rows + plan.extra
    assert (plan.warps - 1) * own < H + FOUR <= plan.warps * own + FOUR
    assert plan.Hp >= H
    assert own <= MOST_ROWS
    assert plan.shared <= device.shared_per_block
    assert 1 <= plan.blocks <= max(B, 1)
    assert blocks_that_fit(device, plan.threads, plan.registers, plan.shared) >= 1


def test_where_w_lives_on_an_h100():
    """The field that cuDNN leaves open: W of up to 2,500 or so stays on the chip."""
    assert plan_block(H100, 256, 1).warps in (8, 16)
    for H in (512, 1024, 2048):
        assert plan_persistent(H100, H, 1).extra == 0, "registers alone hold it"
    assert plan_persistent(H100, 2500, 1).extra > 0, "shared memory too"
    assert plan_persistent(H100, 4300, 1, "bfloat16").extra > 0
    assert plan_persistent(H100, 1024, 64).teams > 1, "a W for each team"
    with pytest.raises(
        DoesNotFit, match=r"H = 4000, B = 1, float32 needs .* and there are .* dtype='bfloat16' halves W"
    ):
        plan_persistent(H100, 4000, 1)
    with pytest.raises(DoesNotFit, match="on Tesla T4"):
        plan_persistent(T4, 2500, 1)
    with pytest.raises(DoesNotFit, match="on NVIDIA GeForce GTX 1650"):
        plan_persistent(SMALL, 1200, 1)


def test_too_few_multiprocessors_for_the_teams():
    plan = plan_persistent(replace(H100, multiprocessors=2), 8, 64)
    assert plan.grid <= 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dtype="float16"), "dtype is 'float16'; it must be 'float32' or 'bfloat16'"),
        (dict(barrier="spin"), "barrier is 'spin'; it must be one of counter, flags, grid, values"),
        (dict(teams=0), "teams is 0; it must be 1 to 4"),
        (dict(teams=5), "teams is 5; it must be 1 to 4"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        plan_persistent(H100, 64, 4, **options)


# --- what is here ------------------------------------------------------------------------------------------------

ATTRIBUTES = {1: 1024, 12: 65536, 13: 1_980_000, 16: 132, 38: 50 * 2**20, 39: 2048, 75: 9, 76: 0, 81: 228 * 1024,
              82: 65536, 97: 227 * 1024, 106: 32, 111: 1024}  # fmt: skip


class FakeDriver:
    """libcuda as far as launch.py asks it."""

    def __init__(self, devices=1, init=0, count=0, attributes=None, broken=""):
        self.devices, self.init, self.count, self.broken = devices, init, count, broken
        self.attributes = {**ATTRIBUTES, **(attributes or {})}

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return self.count

    def cuDeviceGet(self, handle, number):
        handle._obj.value = number
        return 0

    def cuDeviceGetName(self, name, size, handle):
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def cuDeviceTotalMem_v2(self, memory, handle):
        memory._obj.value = 80 * 2**30
        return 0

    def cuDeviceGetAttribute(self, value, code, handle):
        value._obj.value = self.attributes[code]
        return 999 if self.broken == "attribute" else 0


@pytest.fixture
def driver(monkeypatch):
    """Puts a FakeDriver, or its absence, in libcuda's place."""

    def put(fake):
        def load(name):
            if fake is None:
                raise OSError(name)
            return fake

        launch._driver.cache_clear()
        monkeypatch.setattr(launch.ctypes, "CDLL", load)
        monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())

    yield put
    launch._driver.cache_clear()


def test_the_driver_describes_its_device(driver):
    driver(FakeDriver())
    assert Device.current() == replace(H100, clusters=()), "how many clusters fit only a kernel can tell"
    assert why_no_gpu() == ""


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (None, r"no NVIDIA driver here \(.* is not found\): install one"),
        (FakeDriver(init=100), "finds no GPU: see nvidia-smi, and CUDA_VISIBLE_DEVICES"),
        (FakeDriver(devices=0), "finds no GPU"),
        (FakeDriver(init=803), r"does not start \(error 803\)"),
        (FakeDriver(count=3), r"does not start \(error 3\)"),
    ],
)
def test_no_gpu_says_why(driver, fake, words):
    driver(fake)
    with pytest.raises(RuntimeError, match=f"no GPU can be used here: .*{words}"):
        Device.current()
    assert why_no_gpu()


def test_an_old_card_says_so(driver):
    driver(FakeDriver(attributes={75: 6, 76: 1}))
    assert why_no_gpu() == "the GPU has compute capability 6.1; 7.0 or newer is needed"
    assert Device.current().cluster == 1


def test_a_method_may_need_a_newer_card(driver):
    driver(FakeDriver(attributes={75: 8, 76: 0}))
    assert why_no_gpu(oldest=(9, 0)) == "the GPU has compute capability 8.0; 9.0 or newer is needed"
    assert why_no_gpu() == ""


@pytest.mark.parametrize(
    ("compiler", "numpy", "words"),
    [
        ("0.30.4", "2.5.2", "numba-cuda 0.30.4 does not work with NumPy 2.5.2: pip install 'numpy<2.5'"),
        ("0.30.4", "2.4.6", ""),
        ("0.31.0", "2.5.0rc1", ""),
    ],
)
def test_a_numpy_that_is_too_new_for_numba_cuda(driver, monkeypatch, compiler, numpy, words):
    driver(FakeDriver())
    monkeypatch.setattr(launch.metadata, "version", {"numba-cuda": compiler, "numpy": numpy}.get)
    assert why_no_gpu() == words

    def unknown(name):
        raise launch.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(launch.metadata, "version", unknown)
    assert why_no_gpu() == ""


def test_a_missing_package_comes_first(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert why_no_gpu() == "needs numba-cuda[cu13]: pip install 'numba-cuda[cu13]'"
    assert why_no_gpu("cupy", "cupy-cuda13x") == "needs cupy-cuda13x: pip install 'cupy-cuda13x'"


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (2, ValueError, r"device is 2; this machine has 2 GPU\(s\), numbered from 0"),
        (-1, ValueError, "device is -1"),
        (1.0, TypeError, "device is 1.0; it must be a whole number"),
        (True, TypeError, "device is True"),
    ],
)
def test_a_wrong_device(driver, number, error, words):
    driver(FakeDriver(devices=2))
    with pytest.raises(error, match=words):
        Device.current(number)


def test_a_driver_that_refuses(driver):
    driver(FakeDriver(broken="attribute"))
    with pytest.raises(RuntimeError, match=r"refuses cuDeviceGetAttribute 75 \(error 999\)"):
        Device.current()


def test_nothing_of_this_imports_cuda():
    assert launch.ctypes is ctypes  # the driver is asked by hand
    assert not {"numba", "cupy", "cuda"} & set(vars(launch))
