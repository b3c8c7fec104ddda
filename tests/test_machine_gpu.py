"""The GPU among what is known of a machine: told by nvidia-smi or by the driver, and its peaks beside the CPU's."""

from __future__ import annotations

import json
import re

import pytest

from rnnpar import machine, peaks
from rnnpar.kernels import launch

TWO = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB, 9.0\n1, GPU-bbbb, Tesla T4, 580.65.06, 15360 MiB, 7.5"
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "driver": "580.65.06",
    "memory_bytes": 81559 * 2**20,
    "compute_capability": "9.0",
}


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Put a program of that name into PATH, which runs a shell script; returns what this machine's GPU then is."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def ask(script: str) -> tuple[dict, str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return machine._ask_for_gpu.__wrapped__()

    return ask


def says(text: str) -> str:
    return f"cat <<END\n{text}\nEND"


def test_the_first_gpu_is_the_machines(nvidia_smi):
    assert nvidia_smi(says(TWO)) == (H100, "")


@pytest.mark.parametrize(
    ("visible", "name"), [("1", "Tesla T4"), ("1,0", "Tesla T4"), ("GPU-bb", "Tesla T4"), ("0", H100["name"])]
)
def test_what_cuda_may_see_counts(nvidia_smi, monkeypatch, visible, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvidia_smi(says(TWO))[0]["name"] == name


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-cccc"])
def test_a_gpu_that_is_hidden_is_none(nvidia_smi, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, why = nvidia_smi(says(TWO))
    assert not found
    assert "hides every GPU; there are: 0 (NVIDIA H100 80GB HBM3), 1 (Tesla T4)" in why


def test_what_it_cannot_tell_is_left_out(nvidia_smi):
    found, _ = nvidia_smi(says("0, GPU-aaaa, NVIDIA Thor, 580.00, [N/A], [N/A]"))
    assert found == {"name": "NVIDIA Thor", "driver": "580.00"}


def test_an_old_driver_knows_no_compute_capability(nvidia_smi):
    script = "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\n"
    found, _ = nvidia_smi(script + says("0, GPU-aaaa, Tesla K80, 418.67, 11441 MiB"))
    assert found == {"name": "Tesla K80", "driver": "418.67", "memory_bytes": 11441 * 2**20}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9",
            r"exit status 9\): NVIDIA-SMI has failed",
        ),
        ("echo 'No devices were found'", "No devices were found"),
        ("true", "knows of no GPU"),
        ("printf '\\377\\376\\n'", "nvidia-smi failed"),
        ("kill -SEGV $$", "nvidia-smi failed"),
    ],
)
def test_a_broken_one_is_no_gpu_and_says_why(nvidia_smi, script, words):
    found, why = nvidia_smi(script)
    assert not found
    assert re.search(words, why)


def test_one_that_hangs_is_given_up(nvidia_smi, monkeypatch):
    monkeypatch.setattr(machine, "SMI_S", 0.5)
    found, why = nvidia_smi("exec sleep 30")
    assert not found
    assert "does not answer" in why


def test_without_nvidia_smi_the_driver_is_asked(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(launch.Device, "current", classmethod(lambda cls, number=0: launch.T4))
    found, why = machine._ask_for_gpu.__wrapped__()
    assert (found["name"], found["compute_capability"], why) == ("Tesla T4", "7.5", "")

    def none(cls, number=0):
        raise RuntimeError("no GPU can be used here: no NVIDIA driver")

    monkeypatch.setattr(launch.Device, "current", classmethod(none))
    found, why = machine._ask_for_gpu.__wrapped__()
    assert not found
    assert "no NVIDIA driver" in why


def test_a_machine_with_a_gpu_is_named_after_it(monkeypatch):
    monkeypatch.setattr(machine, "gpu", lambda: H100)
    assert re.fullmatch(r"nvidia-h100-80gb-hbm3-\d+c-[0-9a-f]{4}", machine.name.__wrapped__())


# --- peaks -------------------------------------------------------------------------------------------------------

CPU = {
    "version": peaks.VERSION,
    "barrier": {"2": 3e-7},
    "steps": {"2": [[32, 1, 3e-7]]},
    "launch": {"1": 3e-7},
    "products": {"1": [[64, 64, 2e-6]]},
}


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Where the peaks are kept, and a list of what was measured, "cpu" or "gpu"."""
    pytest.importorskip("numba_cuda", reason="pip install 'numba-cuda[cu13]'")
    from rnnpar.kernels import gpu_probe

    path = tmp_path / "peaks.json"
    measured: list[str] = []
    monkeypatch.setattr(machine, "folder", lambda: tmp_path)
    monkeypatch.setattr(machine, "gpu", lambda: H100)
    monkeypatch.setattr(peaks, "measure", lambda: measured.append("cpu") or CPU)
    monkeypatch.setattr(gpu_probe, "measure", lambda: measured.append("gpu") or {"latency": 1e-7})
    peaks._here.cache_clear()
    peaks._of_gpu.cache_clear()
    yield path, measured
    peaks._here.cache_clear()
    peaks._of_gpu.cache_clear()


def test_the_gpus_peaks_leave_the_cpus_alone(file):
    _, measured = file
    peaks.here()
    assert measured == ["cpu"] * peaks.GOOD
    assert peaks.of_gpu()["latency"] == 1e-7
    peaks._here.cache_clear()
    peaks._of_gpu.cache_clear()
    assert peaks.here()["gpu"]["name"] == H100["name"]
    assert peaks.of_gpu()["latency"] == 1e-7
    assert measured == [*["cpu"] * peaks.GOOD, "gpu"], "each measured once"


def test_the_gpus_peaks_may_come_first(file):
    path, measured = file
    peaks.of_gpu()
    assert set(json.loads(path.read_text())) == {"gpu"}
    assert peaks.here()["gpu"]["latency"] == 1e-7
    assert set(json.loads(path.read_text())) == {*CPU, "gpu"}
    assert measured == ["gpu", *["cpu"] * peaks.GOOD]


def test_another_gpu_or_another_way_to_measure_is_measured_anew(file, monkeypatch):
    _, measured = file
    peaks.of_gpu()
    for change in (lambda: monkeypatch.setattr(machine, "gpu", lambda: {**H100, "name": "Tesla T4"}),
                   lambda: monkeypatch.setattr(peaks, "GPU_VERSION", 99)):  # fmt: skip
        change()
        peaks._of_gpu.cache_clear()
        peaks.of_gpu()
    assert measured == ["gpu"] * 3


def test_forgetting_one_keeps_the_other(file):
    path, _ = file
    peaks.here()
    peaks.of_gpu()
    peaks.forget("cpu")
    assert set(json.loads(path.read_text())) == {"gpu"}
    peaks.forget("gpu")
    assert not path.exists()
    peaks.forget("gpu")
    path.write_text("{ half")
    peaks.forget("gpu")
    assert not path.exists()


def test_without_numba_cuda_it_says_what_to_install(file, monkeypatch):
    from rnnpar import model_gpu, registry

    monkeypatch.setattr(peaks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(registry.Unavailable, match="pip install 'numba-cuda"):
        peaks.of_gpu()
    monkeypatch.setattr(launch.Device, "current", classmethod(lambda cls, number=0: launch.T4))
    assert model_gpu.here().rates == model_gpu.published(launch.T4)


def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr(machine, "gpu", dict)
    monkeypatch.setattr(machine, "gpu_problem", lambda: "no driver")
    assert peaks.of_gpu() == {}
    assert peaks.main(["--gpu"]) == 2
    assert "no GPU to measure: no driver" in capsys.readouterr().err
