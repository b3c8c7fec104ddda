"""From CUDA C++ to a kernel: every way in which the tools can be missing or wrong, injected, and what is said then."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from rnnpar.kernels import cuda_source


class CUDARuntimeError(RuntimeError):
    pass


def module(built=13020, driver=13010, devices=1, nvrtc=None) -> ModuleType:
    """A cupy that finds this; `devices` and `nvrtc` may be errors to raise."""

    def answer(what):
        def call():
            if isinstance(what, Exception):
                raise what
            return what

        return call

    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            runtimeGetVersion=answer(built),
            driverGetVersion=answer(driver),
            getDeviceCount=answer(devices),
        ),
        nvrtc=SimpleNamespace(getVersion=answer(nvrtc or (13, 2))),
        compiler=SimpleNamespace(CompileException=KeyError),
    )
    return cupy


@pytest.fixture
def cupy_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))

    def install(cupy):
        monkeypatch.setitem(sys.modules, "cupy", cupy)

    return install


def test_a_working_cupy_is_handed_out(cupy_is, tmp_path):
    cupy = module(devices=2)
    cupy_is(cupy)
    assert cuda_source.open_cupy(1) is cupy
    assert (tmp_path / "cache").is_dir()


def test_a_device_that_is_none(cupy_is):
    cupy_is(module(devices=2))
    with pytest.raises(ValueError, match=r"device is 2; this machine has 2 GPU\(s\), numbered from 0"):
        cuda_source.open_cupy(2)
    for device in (True, "0", 1.0):
        with pytest.raises(TypeError, match="whole number"):
            cuda_source.open_cupy(device)


def test_cupy_for_another_cuda(cupy_is):
    cupy_is(module(driver=12040, devices=CUDARuntimeError("cudaErrorInsufficientDriver")))
    with pytest.raises(
        cuda_source.CudaUnavailable, match=r"built for CUDA 13\.2, .* offers 12\.4: .*install cupy-cuda12x"
    ):
        cuda_source.open_cupy()


def test_no_driver(cupy_is):
    cupy_is(module(driver=0, devices=CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device\nmore")))
    with pytest.raises(cuda_source.CudaUnavailable, match=r"no CUDA-capable device\): see nvidia-smi"):
        cuda_source.open_cupy()


def test_cupy_that_does_not_start(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcublas.so.13: cannot open shared object file')")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(cuda_source.CudaUnavailable, match=r"libcublas\.so\.13.*pip install 'cupy-cuda13x\[ctk\]'"):
        cuda_source.open_cupy()


def test_no_nvrtc(cupy_is):
    cupy_is(module(nvrtc=RuntimeError("Failed to load libnvrtc.so.13")))
    with pytest.raises(cuda_source.CudaUnavailable, match=r"no NVRTC .*pip install 'nvidia-cuda-nvrtc==13\.\*'"):
        cuda_source.open_cupy()


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path, what):
    file = tmp_path / "file"
    file.write_text("")
    folder = file if what == "a file" else file / "cache"
    monkeypatch.setenv("CUPY_CACHE_DIR", str(folder))
    with pytest.raises(cuda_source.CudaUnavailable, match=r"cannot be written.*set the variable CUPY_CACHE_DIR"):
        cuda_source.open_cupy()


def test_a_read_only_cache_folder(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_source.tempfile, "TemporaryFile", refuse)
    with pytest.raises(cuda_source.CudaUnavailable, match="Permission denied"):
        cuda_source.open_cupy()


def test_two_wheels_of_cupy_at_once(monkeypatch):
    def installed(*names):
        found = [SimpleNamespace(metadata={"Name": name}) for name in names]
        monkeypatch.setattr(cuda_source.metadata, "distributions", lambda: found)

    installed("numpy", "cupy-cuda13x", "cupy-cuda12x", "cupy-xarray")
    assert cuda_source.why_two_wheels() == (
        "cupy-cuda12x and cupy-cuda13x are installed together: pip uninstall -y cupy-cuda12x cupy-cuda13x, "
        "then pip install 'cupy-cuda13x[ctk]'"
    )
    assert cuda_source.why_no_cupy() == cuda_source.why_two_wheels()
    installed("numpy", "cupy-cuda13x")
    assert cuda_source.why_two_wheels() == ""


def test_a_compile_error_names_the_file_the_constants_and_the_line(cupy_is):
    class Refuses:
        def __init__(self, code, options, backend):
            pass

        def get_function(self, name):
            raise KeyError('step.cuh(18): error: identifier "b" is undefined\n1 error detected.')

    cupy = module()
    cupy.RawModule = Refuses
    with pytest.raises(cuda_source.CompileError) as caught:
        cuda_source.kernel(cupy, "step", "rnn_step", ROWS=1)
    told = str(caught.value)
    line = (cuda_source.HERE / "step.cuh").read_text().splitlines()[17].strip()
    assert told.splitlines()[0] == "step.cuh does not compile with ROWS=1:"
    assert 'step.cuh(18): error: identifier "b" is undefined' in told
    assert f"    {line}" in told


def test_a_log_of_another_form_is_shown_whole():
    assert "nvrtc: error: invalid value" in cuda_source.explain("step", {}, "nvrtc: error: invalid value for -arch")


def test_a_kernel_is_compiled_once_and_with_its_whole_text(cupy_is):
    calls = []

    class Module:
        def __init__(self, code, options, backend):
            calls.append((code, options))

        def get_function(self, name):
            return name

    cupy = module()
    cupy.RawModule = Module
    for _ in range(2):
        assert cuda_source.kernel(cupy, "softmax", "softmax_warps", WARPS=4) == "softmax_warps"
    ((code, options),) = calls
    assert "-DWARPS=4" in options
    assert code.startswith('#line 1 "device.cuh"')
    assert "#include" not in code  # NVRTC finds no header, and needs none


def test_importing_rnnpar_touches_no_cuda():
    code = "import sys, rnnpar; rnnpar.methods(); assert not {'cupy', 'numba_cuda', 'cuda'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_driver_counts_the_clusters_that_are_resident_together(monkeypatch):
    """The launch that it is asked about is laid out as in cuda.h: 56 bytes, an attribute 72."""
    asked = []

    def count(found, function, launch):
        config = ctypes.cast(launch, ctypes.POINTER(cuda_source._Launch)).contents
        dimension = config.attributes[0]
        asked.append((list(config.grid), config.shared, config.count, dimension.id, list(dimension.value[:3])))
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = 132 // config.grid[0] - 1
        return 0

    kernel = SimpleNamespace(kernel=SimpleNamespace(ptr=7))
    cupy = SimpleNamespace(
        RawKernel=lambda *text, **options: kernel,
        cuda=SimpleNamespace(driver=SimpleNamespace(funcSetAttribute=lambda *arguments: None)),
    )
    driver = SimpleNamespace(cuOccupancyMaxActiveClusters=count)
    monkeypatch.setattr(cuda_source, "_driver", lambda: (driver, 1, ""))
    assert cuda_source.resident_clusters(cupy, 4) == (131, 65, 32)
    assert asked[1] == ([2, 1, 1], 128 * 1024, 1, 4, [2, 1, 1])
    assert (ctypes.sizeof(cuda_source._Launch), ctypes.sizeof(cuda_source._Attribute)) == (56, 72)
    driver.cuOccupancyMaxActiveClusters = lambda *arguments: 1
    assert cuda_source.resident_clusters(cupy, 4) == ()
    monkeypatch.setattr(cuda_source, "_driver", lambda: (None, 0, "no driver"))
    assert cuda_source.resident_clusters(cupy, 4) == ()
