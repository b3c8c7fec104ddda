"""The CUDA C++ kernels as machine code for real cards, compiled without one: by nvcc and by NVRTC, where they are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rnnpar.kernels import cluster_plan, cuda_source
from rnnpar.kernels.launch import H100, blocks_that_fit
from tests.kernels import nvcc

COMPILERS = [
    pytest.param("nvcc", marks=pytest.mark.skipif(bool(nvcc.WHY_NO_NVCC), reason=nvcc.WHY_NO_NVCC)),
    pytest.param(
        "nvrtc", marks=pytest.mark.skipif(nvcc.nvrtc() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc")
    ),
]


def compiled(compiler: str, name: str, capability: int, folder, **constants: int) -> nvcc.Compiled:
    text, options = cuda_source.text(name), cuda_source.options(constants)
    if compiler == "nvcc":
        return nvcc.compile_with_nvcc(text, options, capability, folder)
    return nvcc.compile_with_nvrtc(text, options, capability)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("capability", [80, 90])
def test_step_and_softmax_compile_for_ampere_and_hopper(compiler, capability, tmp_path):
    for rows, sequences, half in ((1, 1, 0), (4, 8, 1)):
        constants = dict(ROWS=rows, SEQUENCES=sequences, WARPS=8, BFLOAT16=half)
        step = compiled(compiler, "step", capability, tmp_path, **constants)
        assert step.spilled == 0
        assert step.registers <= (64 if rows == 1 else 128)
        assert "ld.global.nc.v4" in step.ptx or half  # 16 bytes at a time
    softmax = compiled(compiler, "softmax", capability, tmp_path, WARPS=8)
    assert softmax.spilled == 0
    assert softmax.registers <= 40


def interesting_plans() -> list[cluster_plan.ClusterPlan]:
    """Plans that take all there is: of each kind the ones with the most weights a thread."""
    plans = {}
    for dtype in ("float32", "bfloat16"):
        for H in (64, 256, 512, 768, 1024):
            for it in cluster_plan.candidates(H, 1024, dtype, H100):
                key = (dtype, it.sequences, it.split if dtype == "float32" else 0, it.spilled > 0)
                best = plans.get(key)
                if best is None or it.threads * it.chunks >= best.threads * best.chunks:
                    plans[key] = it
    return [*plans.values(), cluster_plan.plan(256, 1, "float32", H100), cluster_plan.plan(256, 1, "bfloat16", H100)]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_clusters_keep_their_weights_in_registers(compiler, tmp_path):
    """No spills, the registers that the plan reckoned with, the cluster's size and the instructions of Hopper."""
    for it in interesting_plans()[:: 4 if compiler == "nvcc" else 1]:  # nvcc takes three times as long
        got = compiled(compiler, it.kernel, 90, tmp_path, **it.constants())
        what = f"{it.kernel} {it.constants()}"
        assert got.spilled == 0, what
        assert blocks_that_fit(H100, it.threads, got.registers, it.shared) >= 1, what
        each = 4 if it.dtype == "float32" else 8
        kept = (it.chunks - it.spilled) * each
        assert kept <= got.registers, f"{what}: the weights are not in registers"
        assert f".reqnctapercluster {it.blocks}" in got.ptx, what
        assert (it.blocks == 1) or "st.async" in got.ptx, what
        assert (it.dtype == "float32") or "mma.sync" in got.ptx, what
        assert got.ptx.count("barrier.cluster.arrive") == 1, what  # at the beginning, and never in the loop


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_hand_over_compiles_to_messages_and_no_barrier_in_its_loop(compiler, tmp_path):
    got = compiled(compiler, "hand_over", 90, tmp_path, CLUSTER=16)
    assert got.spilled == 0
    assert ".reqnctapercluster 16" in got.ptx
    assert "st.async" in got.ptx
    assert got.ptx.count("barrier.cluster.arrive") == 1


@pytest.mark.parametrize("compiler", COMPILERS)
def test_clusters_do_not_compile_for_older_cards(compiler, tmp_path):
    with pytest.raises(nvcc.DoesNotCompile, match="cluster"):
        compiled(compiler, "cluster", 80, tmp_path, CLUSTER=2, ROWS=16, SEQUENCES=1, SPLIT=8, SPILLED=0)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compile_error_is_shown_with_its_line(compiler, tmp_path):
    constants = dict(CLUSTER=2, ROWS=16, SEQUENCES=1, SPLIT=8)  # SPILLED is missing
    with pytest.raises(nvcc.DoesNotCompile) as caught:
        compiled(compiler, "cluster", 90, tmp_path, **constants)
    told = cuda_source.explain("cluster", constants, str(caught.value))
    assert told.startswith("cluster.cuh does not compile with CLUSTER=2 ROWS=16 SEQUENCES=1 SPLIT=8:")
    assert 'identifier "SPILLED" is undefined' in told
    assert "\n    const int KEPT = CHUNKS - SPILLED;" in told


def test_a_compiler_that_is_not_here_is_skipped_with_its_reason():
    """These tests once more where PATH has no nvcc: what is left out is said, and NVRTC is not left out with it."""
    command = [sys.executable, "-m", "pytest", __file__, "-k", "hand_over", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=os.environ | {"PATH": ""}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no nvcc in PATH: install a CUDA toolkit" in done.stdout
    assert ("1 passed, 1 skipped" in done.stdout) == (nvcc.nvrtc() is not None)
