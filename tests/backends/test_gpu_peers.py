"""The GPU peers' formulations, computed where the engines can: on the CPU, in a process of their own as ever."""

import contextlib
import gc
import re
import types
import weakref

import numpy as np
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.backends import peers
from tests.conftest import assert_matches_oracle, random_input

NET = rnnpar.RNN.random(3, 7, 5, 2)
FACTORY = "rnnpar.backends.peers:fastest_on_gpu"


def child(*arguments, **environment) -> peers.Child:
    return peers.Child("peers/odd", FACTORY, arguments, 1, {"JAX_PLATFORMS": "cpu", **environment}, timeout_s=120)


@pytest.mark.parametrize(
    ("engine", "module", "options", "works"),
    [
        ("cudnn", "torch", {"place": "cpu"}, {"nn.RNN"}),  # a CUDA graph needs a GPU
        ("jax_gpu", "jax", {}, {"scan, unroll 1", "scan, unroll 8"}),
    ],
)
def test_formulations_equal_the_oracle(engine, module, options, works):
    """Stacked layers, odd sizes, an initial state; NumPy in and out, and as on a device."""
    pytest.importorskip(module)
    x, h0 = random_input(NET, 13, 2), np.random.default_rng(1).uniform(-1, 1, (2, 2, 7)).astype(np.float32)
    forward = child(engine, NET, options)
    forward.net = NET
    assert_matches_oracle(forward, x, h0)
    assert set(forward.info["tried"]) == works
    seconds, y, h = forward.device_calls(x, h0, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert_matches_oracle(Answered(NET, y, h), x, h0)
    forward.close()


class Answered:
    """What was answered already, for `assert_matches_oracle`."""

    def __init__(self, net, y, h):
        self.net, self.answer = net, (y, h)

    def __call__(self, x, h0):
        return self.answer


def test_the_loop_equals_the_oracle():
    """On a GPU it is recorded as a CUDA graph; its arithmetic is the same without."""
    torch = pytest.importorskip("torch")
    formulations, place = peers.cudnn_formulations(NET, place="cpu")
    build = formulations(6, 2)["loop, graph"]
    build = type(build)(build.func, build.args[0], False, *build.args[2:])  # not recorded
    x, h0 = random_input(NET, 6, 2), np.zeros((2, 2, 7), np.float32)
    with torch.inference_mode():
        y, h = build()(place.put(x), place.put(h0))
    assert_matches_oracle(Answered(NET, place.get(y), place.get(h)), x, h0)


def test_a_recorded_pass_keeps_the_weights_that_it_reads(monkeypatch):
    """A CUDA graph reads the module's own copies of the weights, by address: so the module has to live on."""
    torch = pytest.importorskip("torch")
    made = []
    plain = torch.nn.RNN

    def recorded_module(*sizes, **options):
        module = plain(*sizes, **options)
        made.append(weakref.ref(module))
        return module

    nothing = types.SimpleNamespace(wait_stream=lambda stream: None, replay=lambda: None)
    monkeypatch.setattr(torch.nn, "RNN", recorded_module)
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda: nothing)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    formulations, _ = peers.cudnn_formulations(NET, place="cpu")
    forward = formulations(6, 2)["nn.RNN, graph"]()
    gc.collect()
    assert [found() is not None for found in made] == [True]
    assert forward


def test_tf32_is_said_for_every_product():
    torch = pytest.importorskip("torch")
    for allowed, word in ((True, "tf32"), (False, "ieee")):
        peers._set_tf32(torch, allowed)
        parts = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
        assert [part.fp32_precision for part in parts] == [word] * 2


def test_without_tf32_the_environment_forbids_it_too(monkeypatch):
    made = []
    monkeypatch.setattr(peers, "Child", lambda *arguments: made.append(arguments))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    peers.cudnn(NET, device=1)
    peers.cudnn(NET, tf32=True)
    peers.jax_gpu(NET)
    rules = [arguments[-1] for arguments in made]
    assert [each.get("NVIDIA_TF32_OVERRIDE") for each in rules] == ["0", None, "0"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in rules] == ["5", "3", "3"]
    with pytest.raises(ValueError, match="device is 2; CUDA_VISIBLE_DEVICES shows 2"):
        peers.cudnn(NET, device=2)


def test_a_child_that_is_late_for_its_own_limit_is_ended():
    forward = peers.Child("peers/odd", f"{__name__}:sleeper", (), 1, timeout_s=3)
    assert forward.ask("nap", 0.0) == "slept"
    with pytest.raises(RuntimeError, match="did not answer within 3 s"):
        forward.ask("nap", 60.0)


def sleeper():
    import time

    class Sleeper:
        def nap(self, seconds):
            time.sleep(seconds)
            return "slept"

    return Sleeper()


@pytest.mark.parametrize(("name", "module"), [("peers/cudnn", "torch"), ("peers/jax_gpu", "jax")])
def test_a_build_for_the_cpu_says_so(name, module):
    pytest.importorskip(module)
    why = registry.find(name).why_not
    assert re.search(r"built without CUDA: install|CPU only: pip install|nvidia-smi", why)
    with pytest.raises(rnnpar.Unavailable, match=re.escape(why)):
        rnnpar.prepare(NET, name)


def test_a_build_for_cuda_is_told_by_its_version_file(monkeypatch, tmp_path):
    (tmp_path / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    found = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda module: found)
    monkeypatch.setattr(machine, "gpu", lambda: {"name": "a GPU"})
    assert peers.why_no_cudnn() == peers.why_no_jax_gpu() == ""
    monkeypatch.setattr(machine, "gpu", dict)
    monkeypatch.setattr(machine, "gpu_problem", lambda: "no GPU, for a reason")
    assert peers.why_no_cudnn() == peers.why_no_jax_gpu() == "no GPU, for a reason"
