"""The CUDA kernels as linked sm_90a cubins, compiled with no driver: registers, spills, instructions."""

from __future__ import annotations

import re

import pytest

from rnnpar.backends import numba_cuda
from rnnpar.kernels import gpu
from rnnpar.kernels.launch import A100, H100, T4, plan_block, plan_persistent
from tests.cubin import FLOATS, INT, INTS, build, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def weights(dtype):
    return FLOATS if dtype == "float32" else INTS


def persistent(H, B, dtype="float32", barrier="flags", device=H100):
    plan = plan_persistent(device, H, B, dtype, barrier)
    signature = f"void({weights(dtype)},{FLOATS},{FLOATS},{INTS},{INTS},{INT},{INT},{INT},{INT})"
    kernel = numba_cuda.persistent_kernel(plan, device.capability >= (8, 0))
    return plan, build(kernel, signature, device.capability, links=barrier != "grid")


@pytest.mark.parametrize(
    ("H", "B", "dtype", "barrier"),
    [
        (512, 1, "float32", "flags"),
        (1024, 4, "float32", "values"),
        (1024, 64, "float32", "flags"),
        (2048, 1, "float32", "counter"),
        (2048, 4, "float32", "values"),
        (2500, 1, "float32", "flags"),
        (2048, 16, "bfloat16", "flags"),
        (4096, 1, "bfloat16", "flags"),
    ],
)
def test_persistent(H, B, dtype, barrier):
    """W of the registers stays there: no spill, no stack, and room for as many threads as were planned."""
    plan, report = persistent(H, B, dtype, barrier)
    assert report.spills == report.stack == 0
    assert report.registers <= plan.registers
    tile = plan.rows * plan.groups * (4 if dtype == "float32" else 2)
    assert report.registers > tile, "all of the tile is in registers"
    ptx = report.ptx
    assert not re.search(r"\b(ld|st)\.local", ptx)
    assert "tanh.approx" not in ptx, "libdevice's tanh, to an ulp or two"
    assert len(re.findall(r"ld\.global(\.nc)?\.v[24]\.", ptx)) >= plan.rows * plan.groups  # W, 128 or 64 bits at a time
    assert "fma.rn.f32" in ptx
    pair = min(2, plan.sequences)  # of sequences that are added up side by side
    shuffles = len(re.findall(r"shfl\.sync\.bfly", ptx)) / pair
    assert plan.rows - 1 <= shuffles < plan.rows + plan.extra + 24, "not five a row"
    expected = {
        "flags": ("ld.acquire.gpu.global.b32", "st.release.gpu.global.b32"),
        "counter": ("ld.acquire.gpu.global.b32", "red.release.gpu.global.add.s32"),
        "values": ("ld.relaxed.gpu.global.v4.b32", "st.relaxed.gpu.global.b32"),
    }[barrier]
    for instruction in expected:
        assert instruction in ptx, instruction
    assert ("cp.async.cg.shared.global" in ptx) == (not plan.direct)
    if barrier == "values":
        assert not re.search(r"\.(acquire|release)\b|membar|fence", ptx), "numbers need no fence"
    assert f".maxntid {plan.threads}" in ptx
    assert report.cubin[:4] == b"\x7fELF"


def test_the_grid_barrier_links_with_cuda_s_own_library():
    _, report = persistent(1024, 1, barrier="grid")
    assert "cudaCGSynchronize" in report.ptx
    assert report.cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize(("H", "dtype"), [(64, "float32"), (128, "float32"), (256, "float32"), (300, "bfloat16")])
def test_block(H, dtype):
    plan = plan_block(H100, H, 1, dtype)
    report = build(numba_cuda.block_kernel(plan), f"void({weights(dtype)},{FLOATS},{FLOATS},{INT},{INT},{INT})")
    assert report.spills == report.stack == 0
    assert plan.rows * plan.groups * (4 if dtype == "float32" else 2) < report.registers <= plan.registers
    assert "ld.shared.v4.f32" in report.ptx
    assert "tanh.approx" not in report.ptx
    assert not re.search(r"\.(acquire|release)\b|membar|fence", report.ptx), "blocks do not meet"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step(dtype):
    report = build(numba_cuda.step_kernel(dtype), f"void({weights(dtype)},{FLOATS},{FLOATS},{INT},{INT},{INT},{INT})")
    assert report.spills == report.stack == 0
    assert re.search(r"ld\.global(\.nc)?\.v4\.f32", report.ptx)
    assert "tanh.approx" not in report.ptx


def test_timestep():
    arguments = ",".join([FLOATS, FLOATS, FLOATS, INTS, FLOATS, *[INT] * 6])
    report = build(numba_cuda.timestep_kernel, f"void({arguments})")
    assert report.spills == report.stack == 0
    assert "atom" in report.ptx
    assert len(re.findall(r"membar\.gl|fence", report.ptx)) == 2, (
        "behind the flag that is read, before the one that is set"
    )
    assert "tanh.approx" not in report.ptx


@pytest.mark.parametrize("size", [1, 2])
def test_product(size):
    arguments = ",".join([FLOATS, INT, INT, FLOATS, INT, FLOATS, *[INT] * 5])
    report = build(gpu.product_kernel(size), f"void({arguments})")
    assert report.spills == report.stack == 0
    assert report.ptx.count("fma.rn.f32") >= 16 * size * size
    assert "ld.shared.v4.f32" in report.ptx


def test_softmax():
    report = build(gpu.softmax_rows, f"void({FLOATS},{FLOATS},{INT},{INT})")
    assert report.spills == report.stack == 0
    assert "shfl.sync.bfly" in report.ptx


@pytest.mark.parametrize(
    ("device", "H", "B", "dtype", "barrier"),
    [
        (T4, 768, 4, "float32", "flags"),
        (T4, 768, 4, "bfloat16", "flags"),
        (T4, 768, 1, "float32", "values"),
        (A100, 1536, 1, "float32", "flags"),
        (A100, 1536, 1, "bfloat16", "values"),
        (A100, 2048, 4, "float32", "counter"),
    ],
    ids=str,
)
def test_plans_for_older_cards_do_not_spill_either(device, H, B, dtype, barrier):
    plan, report = persistent(H, B, dtype, barrier, device)
    assert report.spills == report.stack == 0
    assert report.registers <= plan.registers
    assert ("cp.async" in report.ptx) == (device is A100 and not plan.direct)


@pytest.mark.parametrize("H", [128, 192])
@pytest.mark.parametrize("device", [T4, A100], ids=lambda device: device.name)
def test_a_block_does_not_spill_on_older_cards(device, H):
    plan = plan_block(device, H, 1)
    arguments = f"void({FLOATS},{FLOATS},{FLOATS},{INT},{INT},{INT})"
    report = build(numba_cuda.block_kernel(plan), arguments, device.capability)
    assert report.spills == report.stack == 0
