"""The doctor: each fault, put in one at a time, is found and has a mend; a machine without faults has none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rnnpar import doctor
from rnnpar.doctor import NOTE, OK, WRONG, Facts

FLAGS = frozenset({"avx", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512cd", "avx512vl"})
BLAS = {"internal_api": "openblas", "architecture": "SkylakeX", "version": "0.3.31", "num_threads": 4}
WELL = Facts(
    cores_allowed=4, affinity=4, siblings=((0,), (1,), (2,), (3,)), flags=FLAGS, caches={"L2": 2**20}, blas=BLAS,
    governor="performance", frequency_driver="acpi-cpufreq", boost=True, huge_pages="madvise",
)  # fmt: skip
GPU = dict(nvidia=True, driver="580.65.06", gpu="NVIDIA H100",
           packages={"numba-cuda": "0.30.4", "cupy-cuda13x": "14.2.0", "cuda-bindings": "13.0.1"})  # fmt: skip


def haswell(**variables):
    return dict(blas=BLAS | {"architecture": "Haswell"}, variables=variables)


def test_a_machine_without_faults():
    for facts in (WELL, replace(WELL, **GPU), Facts()):
        findings = doctor.examine(facts)
        assert {finding.level for finding in findings} == {OK}
        assert doctor.report(findings).endswith("Nothing is wrong.")
    assert "cupy-cuda13x and numba-cuda fit it" in doctor.report(doctor.examine(replace(WELL, **GPU)))


FAULTS = {
    "an AVX-512 processor taken for a Haswell": (haswell(), WRONG, "for a Haswell, without AVX-512",
        "export OPENBLAS_CORETYPE=SkylakeX"),
    "because a variable says so": (haswell(OPENBLAS_CORETYPE="Haswell"), WRONG, "without AVX-512",
        "unset OPENBLAS_CORETYPE, which asks for Haswell"),
    "a core type that OpenBLAS does not know": (dict(variables={"OPENBLAS_CORETYPE": "Zen9"}), NOTE,
        "OPENBLAS_CORETYPE=Zen9, but NumPy's OpenBLAS runs as SkylakeX", "unset OPENBLAS_CORETYPE"),
    "a core type that it has no code of its own for": (haswell(OPENBLAS_CORETYPE="Zen"), WRONG, "for a Haswell",
        "unset OPENBLAS_CORETYPE, which asks for Zen"),
    "AVX-512 asked of a processor without": (dict(flags=frozenset({"avx2"})), WRONG, "illegal instruction",
        "unset OPENBLAS_CORETYPE"),
    "another cache": (dict(variables={"OPENBLAS_L2_SIZE": "512"}), WRONG, "OPENBLAS_L2_SIZE=512, but .* has 1024 KB",
        "unset OPENBLAS_L2_SIZE"),
    "nothing compiled": (dict(variables={"NUMBA_DISABLE_JIT": "1"}), WRONG,
        "nothing is compiled", "unset NUMBA_DISABLE_JIT"),
    "another processor's code": (dict(variables={"NUMBA_CPU_NAME": "generic"}), WRONG, "NUMBA_CPU_NAME=generic",
        "unset NUMBA_CPU_NAME"),
    "no optimisation": (dict(variables={"NUMBA_OPT": "0"}), WRONG, "NUMBA_OPT=0", "unset NUMBA_OPT"),
    "more threads than cores": (dict(variables={"OMP_NUM_THREADS": "16"}), WRONG,
        "OMP_NUM_THREADS=16, but this process may use 4", "export OMP_NUM_THREADS=4"),
    "nested threads": (dict(variables={"OMP_NUM_THREADS": "8,2"}), WRONG, "OMP_NUM_THREADS=8,", "=4"),
    "no number of threads": (dict(variables={"MKL_NUM_THREADS": "many"}), WRONG, "MKL_NUM_THREADS=many is no number",
        "export MKL_NUM_THREADS=4"),
    "a large pool": (dict(blas=BLAS | {"num_threads": 64}), WRONG, "started 64 threads on 4 cores",
        "OPENBLAS_NUM_THREADS=4"),
    "threads that spin": (dict(variables={"OMP_WAIT_POLICY": "ACTIVE"}), NOTE, "keep their cores between calls",
        "unset OMP_WAIT_POLICY"),
    "a quota": (dict(quota=1.5, affinity=16), WRONG, "1.5 cores' worth of time on 16 processors",
        "--cpuset-cpus 0.*OMP_NUM_THREADS=1 "),
    "a quota used up": (dict(quota=4.0, throttled=0.2), WRONG, "stopped in 20% of its periods", "fewer threads"),
    "a sleepy governor": (dict(governor="powersave"), WRONG, "the governor is powersave", "-g performance"),
    "no boost": (dict(boost=False), NOTE, "boost is off", "cpufreq/boost"),
    "on battery": (dict(on_battery=True), WRONG, "runs on its battery", "plug it in"),
    "load of others": (dict(busy=2.04), WRONG, "keep 2.0 of 4 cores busy", "quieter time"),
    "a busy host": (dict(stolen=0.3), WRONG, "gave 30% of this virtual machine's time", "quieter time"),
    "two threads a core": (dict(siblings=((0, 2), (1, 3))), NOTE, "the 4 processors are 2 cores", "threads=2"),
    "no huge pages": (dict(huge_pages="never"), NOTE, "small pages", "echo madvise"),
    "huge pages refused": (dict(variables={"NUMPY_MADVISE_HUGEPAGE": "0"}), NOTE, "small pages",
        "unset NUMPY_MADVISE_HUGEPAGE"),
    "a GPU and nothing to use it": (GPU | dict(packages={}), WRONG, "H100, but no numba-cuda and no cupy",
        r"pip install 'numba-cuda\[cu13\]' cupy-cuda13x"),
    "half of what a GPU needs": (GPU | dict(packages={"cupy-cuda13x": "14.2"}), WRONG, "but no numba-cuda to use it",
        r"pip install 'numba-cuda\[cu13\]'$"),
    "an older GPU's packages": (dict(nvidia=True, gpu="NVIDIA A10", driver="535.1", packages={}), WRONG, "A10, but no",
        "cupy-cuda12x"),
    "two cupys": (GPU | dict(packages=GPU["packages"] | {"cupy-cuda12x": "13.6"}), WRONG,
        "cupy-cuda12x and cupy-cuda13x are installed together", "pip uninstall -y cupy-cuda12x cupy-cuda13x"),
    "an old driver": (GPU | dict(driver="550.54.14"), WRONG, "built for CUDA 13, which needs driver 580 or newer; this "
        "one is 550.54.14", "newer driver, or pip install packages for CUDA 12"),
    "a driver without nvidia-smi": (dict(nvidia=True, driver="570.1", smi_error="version mismatch"), WRONG,
        "driver 570.1, but nvidia-smi tells of no GPU: version mismatch", "reboot"),
    "a hidden GPU": (GPU | dict(variables={"CUDA_VISIBLE_DEVICES": "-1"}), WRONG, "hides the NVIDIA H100",
        "unset CUDA_VISIBLE_DEVICES"),
    "packages and no GPU": (dict(packages={"cupy-cuda12x": "13.6"}), NOTE, "no NVIDIA GPU here", "none is needed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_with_its_mend(fault):
    change, level, found, mend = FAULTS[fault]
    findings = doctor.examine(replace(WELL, **change))
    bad = [finding for finding in findings if finding.level != OK]
    assert bad
    assert {finding.level for finding in bad} == {level}
    assert all(finding.mend for finding in bad)
    one = next(finding for finding in bad if re.search(found, finding.found) and re.search(mend, finding.mend))
    assert one.found in doctor.report(findings)
    assert ("are wrong." in doctor.report(findings)) == (level == WRONG)


def test_what_is_no_fault():
    harmless = [
        dict(governor="powersave", frequency_driver="intel_pstate"),  # there it is the name of the one that does rise
        dict(governor="powersave", frequency_driver="amd-pstate-epp"),
        dict(blas={"internal_api": "mkl", "architecture": None}),
        dict(blas={}),
        haswell() | dict(flags=frozenset({"avx2"})),
        dict(variables={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}),
        dict(cores_allowed=1, affinity=1, siblings=((0,),), blas={}),
        dict(quota=4.0),
        dict(busy=0.05),
        dict(caches={}, variables={"OPENBLAS_L2_SIZE": "512"}),
    ]
    for change in harmless:
        levels = {finding.level for finding in doctor.examine(replace(WELL, **change))}
        assert levels == {OK}, change


def test_the_report_puts_each_mend_below_its_finding():
    lines = doctor.report([doctor.Finding("a", OK, "fine"), doctor.Finding("bc", WRONG, "bad", "do this")]).split("\n")
    assert lines == ["ok     a   fine", "WRONG  bc  bad", "           mend: do this", "", "1 of 2 findings are wrong."]


def test_parsers():
    assert doctor.cpu_flags("processor: 0\nflags\t\t: fpu avx2\n\nprocessor: 1\nflags : x\n") == {"fpu", "avx2"}
    assert doctor.cpu_flags("") == frozenset()
    assert doctor.chosen("always [madvise] never\n") == "madvise"
    assert doctor.chosen("") == ""
    assert doctor.processors("0-2,8\n") == [0, 1, 2, 8]
    assert doctor.processors("") == []
    assert doctor.throttled_share("nr_periods 200\nnr_throttled 50\nthrottled_usec 7") == 0.25
    assert doctor.throttled_share("usage_usec 7") == doctor.throttled_share("") == 0.0
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.2.0"
    assert doctor.driver_version(text) == "580.65.06"
    assert doctor.driver_version("") == ""


def test_this_machine_can_be_read(monkeypatch):
    monkeypatch.setattr(doctor, "LOOK_S", 0.05)
    facts = doctor.read()
    assert 1 <= facts.cores_allowed <= facts.affinity
    assert 0 <= facts.stolen <= 1
    assert 0 <= facts.busy <= facts.affinity
    assert sum(map(len, facts.siblings)) in (0, facts.affinity)
    assert doctor.examine(facts)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("#!/bin/sh\necho 'NVIDIA H100, 80GB, 580.65.06'", (("NVIDIA H100, 80GB", "580.65.06"), "")),
        ("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
         (("", ""), "Failed to initialize NVML: Driver/library version mismatch")),
    ],
)  # fmt: skip
def test_nvidia_smi(tmp_path, monkeypatch, answer, wanted):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / "nvidia-smi").write_text(answer)
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert doctor._nvidia_smi() == wanted


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ((0.0, 0.0), ""),
        ((1.5, 0.0), "other programs keep 1.5 of "),
        ((0.0, 0.3), "gave 30% of this virtual machine's time"),
    ],
)
def test_who_else_is_on_the_cores_now(monkeypatch, load, said):
    monkeypatch.setattr(doctor, "_load", lambda allowed: load)
    found = doctor.disturbance()
    assert said in found
    assert bool(said) == bool(found)
