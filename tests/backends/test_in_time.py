"""Parallel in time: right or refused, whatever the network; and what it says of itself is true."""

import sys
import tracemalloc

import numpy as np
import pytest

import rnnpar
from rnnpar.backends import in_time
from rnnpar.backends.in_time import NotConverged, Plan
from rnnpar.reference import relative_error
from rnnpar.work import Work
from tests.conftest import BOUND, assert_matches_oracle, random_input
from tests.fake_arrays import FakeArrays

NAMES = list(in_time.KINDS)
ENGINES = [{"threads": 1}, {"threads": 2}, {"array_module": "numpy"}]


@pytest.fixture(autouse=True)
def the_longest_window(monkeypatch):
    """Which window is fastest is the model's to say (tests/test_model.py); here it is the same on every machine."""
    monkeypatch.setattr(in_time.model, "best_window", lambda method, work, threads, choices: max(choices))


def network(radius: float, H: int = 32, I: int = 8, O: int = 10, layers: int = 1, seed: int = 0) -> rnnpar.RNN:
    """Gaussian weights of a given spectral radius; weak inputs, so that the radius says most of what happens."""
    rng = np.random.default_rng(seed)
    built = []
    for layer in range(layers):
        W = rng.standard_normal((H, H))
        W *= radius / np.abs(np.linalg.eigvals(W)).max()
        fan_in = H if layer else I
        built.append(dict(W=W, U=0.3 * rng.uniform(-1, 1, (H, fan_in)) / np.sqrt(fan_in), b=np.zeros(H)))
    return rnnpar.RNN.from_arrays(built, rng.uniform(-1, 1, (O, H)) / np.sqrt(H), np.zeros(O))


def exponent(net: rnnpar.RNN, x: np.ndarray) -> float:
    """The largest Lyapunov exponent of one layer and sequence, by the book: one tangent, normalised in every step."""
    W, U, b = (getattr(net.layers[0], name).astype(float) for name in "WUb")
    h, v, total = np.zeros(len(b)), np.ones(len(b)) / np.sqrt(len(b)), 0.0
    for step in x[:, 0]:
        h = np.tanh(b + W @ h + U @ step)
        v = (1 - h * h) * (W @ v)
        length = np.linalg.norm(v)
        v, total = v / length, total + np.log(length)
    return total / len(x)


@pytest.mark.parametrize("engine", [*ENGINES, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_windows_layers_batch_and_h0_equal_the_oracle(name, engine):
    net = rnnpar.RNN.random(5, 33, 7, 2)
    h0 = np.random.default_rng(1).uniform(-1, 1, (2, 3, 33)).astype(np.float32)
    x = random_input(net, 150, 3)
    bound = 2e-7 if engine.get("dtype") else BOUND
    for window in (None, 1, 64, 1000):
        run = rnnpar.prepare(net, f"in_time/{name}", window=window, **engine)
        assert_matches_oracle(run, x, h0, bound)
        assert run.info["window"] == min(window or 150, 150)
        assert run.info["windows"] == -(-150 // run.info["window"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("radius", [0.3, 0.9, 1.1, 1.3, 1.5, 2.0, 3.0])
def test_right_or_refused_never_wrong(radius, name):
    """From forgetful to chaotic: an answer is within the bound, in both precisions; and forgetful networks get one."""
    net = network(radius)
    answers = 0
    for T in (20, 200, 1500):
        x = random_input(net, T, 1)
        y, h = rnnpar.reference(net, x)
        for options in ({"threads": 2}, {"threads": 2, "window": 100}, {"dtype": "float64", "window": 100}):
            try:
                got_y, got_h = rnnpar.prepare(net, f"in_time/{name}", **options)(x)
            except NotConverged as refusal:
                said = str(refusal)
                if "iterations" not in said or "residual" not in said or radius < 1.4 or T * radius <= 40:
                    pytest.fail(f"T={T}, radius={radius}: {said}")
            else:
                answers += 1
                assert relative_error(got_y, y) < BOUND
                assert relative_error(got_h, h) < BOUND
    assert answers >= (9 if radius < 1.4 else 3 if radius < 3 else 1)


def test_a_chaotic_network_in_float64_reaches_further():
    """At radius 2 an error doubles every ten steps or so: float32 is used up where float64 is not."""
    net = network(2.0)
    x = random_input(net, 250, 1)
    with pytest.raises(NotConverged, match="Lyapunov exponent is 0"):
        rnnpar.prepare(net, "in_time/deer", threads=2)(x)
    run = rnnpar.prepare(net, "in_time/deer", dtype="float64")
    assert_matches_oracle(run, x)
    assert run.info["exponent"] > 0


def orthogonal(radius: float, H: int = 32, I: int = 8, V: float = 1.0, seed: int = 0) -> rnnpar.RNN:
    rng = np.random.default_rng(seed)
    W = radius * np.linalg.qr(rng.standard_normal((H, H)))[0]
    layer = dict(W=W, U=rng.uniform(-1, 1, (H, I)) / np.sqrt(I), b=np.zeros(H))
    return rnnpar.RNN.from_arrays([layer], V * rng.uniform(-1, 1, (10, H)) / np.sqrt(H), np.zeros(10))


@pytest.mark.parametrize("engine", [{"threads": 1}, {"array_module": "numpy"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_error_that_has_faded_at_the_end_is_an_error(name, engine):
    """Chaos for 75 steps of weak input, then input so strong that all states are told by it alone.

    The last state is right whatever was before it, but what came out in the middle is not: float32 along the chain
    is off by 0.3% here.
    """
    net = orthogonal(2.6)
    x = random_input(net, 150, 1)
    x[:75] *= 0.01
    x[75:] *= 20
    h0 = np.random.default_rng(1).uniform(-1, 1, (1, 1, 32)).astype(np.float32)
    wanted_y, wanted_h = rnnpar.reference(net, x, h0)
    y, h = rnnpar.prepare(net, "serial/compiled")(x, h0)
    assert relative_error(h, wanted_h) < BOUND < 1e-4 < relative_error(y, wanted_y)
    with pytest.raises(NotConverged, match=r"a residual of [\d.e-]+ after \d+ iterations, but not to an answer"):
        rnnpar.prepare(net, f"in_time/{name}", **engine)(x, h0)


@pytest.mark.parametrize("engine", [{"threads": 1}, {"array_module": "numpy"}], ids=str)
def test_large_weights_enlarge_the_error_that_is_expected(engine):
    """V makes of an error in h what comes of it in y; and rounding before a tanh grows with W."""
    said = {}
    for V, radius in ((1.0, 0.9), (100.0, 0.9), (1.0, 90.0)):
        net = orthogonal(radius, V=V)
        x = random_input(net, 300, 1)
        run = rnnpar.prepare(net, "in_time/segments", **engine)
        try:
            y, _ = run(x)
            assert relative_error(y, rnnpar.reference(net, x)[0]) < BOUND
        except NotConverged as refusal:
            assert radius == 90.0 or V == 100.0
            said[V, radius] = refusal.info["error"]
        else:
            said[V, radius] = run.info["error"]
    assert said[100.0, 0.9] > 5 * said[1.0, 0.9]
    assert said[1.0, 90.0] > said[1.0, 0.9]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_network_with_two_places_to_settle_in_is_solved_in_short_windows(engine):
    """H = 1, W = 2.1: zeros are between the two, and Newton settles few steps with each correction."""
    net = rnnpar.RNN.from_arrays([dict(W=[[2.1]], U=[[0.1]], b=[0.0])], [[1.0], [-1.0]], [0.0, 0.0])
    x = random_input(net, 1500, 1)
    run = rnnpar.prepare(net, "in_time/deer", **engine)
    assert_matches_oracle(run, x)
    assert run.info["window"] < 100
    assert run.info["exponent"] < -1
    in_vain = run.info["evaluations"]
    run(x)
    assert run.info["evaluations"] < in_vain - 100, "the second call knows"
    with pytest.raises(NotConverged, match="a smaller window"):
        rnnpar.prepare(net, "in_time/deer", window=1500, **engine)(x)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_any_weights_right_or_refused(seed, engine):
    """Other matrices than Gaussian ones: errors grow along a chain of elements, turn, or settle in one place."""
    rng = np.random.default_rng(seed)
    H, T, B, layers = (int(rng.choice(some)) for some in ((5, 32, 50), (20, 127, 300), (1, 3), (1, 2)))
    shapes = {
        "shift": lambda: np.diag(np.ones(H - 1), -1),
        "rotation": lambda: np.linalg.qr(rng.standard_normal((H, H)))[0],
        "triangle": lambda: np.triu(rng.standard_normal((H, H))),
        "symmetric": lambda: (lambda a: (a + a.T) / np.sqrt(8 * H))(rng.standard_normal((H, H))),
    }
    for make in shapes.values():
        built = [dict(W=rng.uniform(0.5, 3) * make(), U=rng.uniform(0.1, 2) * rng.uniform(-1, 1, (H, H if i else 4)),
                      b=np.zeros(H)) for i in range(layers)]  # fmt: skip
        net = rnnpar.RNN.from_arrays(built, rng.uniform(-1, 1, (6, H)), np.zeros(6))
        x = random_input(net, T, B, seed)
        x[T // 2 :] *= rng.choice([1, 20])
        h0 = rng.uniform(-1, 1, (layers, B, H)).astype(np.float32)
        y, h = rnnpar.reference(net, x, h0)
        for name in NAMES:
            run = rnnpar.prepare(net, f"in_time/{name}", window=int(rng.choice([3, 64, 500])), **engine)
            try:
                got_y, got_h = run(x, h0)
            except NotConverged:
                continue
            assert relative_error(got_y, y) < BOUND
            assert relative_error(got_h, h) < BOUND


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("radius", [0.3, 0.9, 1.2])
def test_the_exponent_is_the_exponent(radius, engine):
    net = network(radius)
    x = random_input(net, 3000, 1)
    run = rnnpar.prepare(net, "in_time/segments", **engine | ({} if "threads" in engine else {"dtype": "float64"}))
    run(x)
    assert run.info["exponent"] == pytest.approx(exponent(net, x), abs=0.02)


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.3])
def test_the_estimated_error_bounds_the_error_and_not_by_far(radius):
    net = network(radius)
    x = random_input(net, 1000, 1)
    run = rnnpar.prepare(net, "in_time/deer", threads=2)
    _, h = run(x)
    error = np.sqrt(np.mean((h - rnnpar.reference(net, x)[1]) ** 2))
    assert error / 2 < run.info["error"] < BOUND


def test_newton_needs_few_iterations_over_a_long_sequence():
    """The figure of the DEER paper's kind of task: T = 65,536, H = 32, from zeros, on a contractive network."""
    net = rnnpar.RNN.random(32, 32, 4)
    run = rnnpar.prepare(net, "in_time/deer", threads=2, window=65536)
    assert_matches_oracle(run, random_input(net, 65536, 1))
    assert run.info["window"] == 65536
    assert 2 <= run.info["iterations"] <= 8


@pytest.mark.parametrize("name", NAMES)
def test_what_info_says(name):
    net = rnnpar.RNN.random(4, 32, 5)
    run = rnnpar.prepare(net, f"in_time/{name}", threads=2, window=500)  # one window, whatever this machine's peaks
    run(random_input(net, 500, 1))
    info = run.info
    assert len(info["residuals"]) == info["iterations"] + 1
    assert info["residuals"][-1] <= 1e-6 < info["residuals"][0]
    assert info["residual"] == info["residuals"][-1]
    assert info["evaluations"] >= info["iterations"]
    assert set(info["seconds"]) == {"inputs", "solve", "check", "outputs"}
    assert all(seconds > 0 for seconds in info["seconds"].values())
    assert -1.5 < info["exponent"] < 0
    assert 0 < info["error"] < BOUND


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", ["jacobi", "segments"])
def test_exact_after_as_many_iterations_as_there_are_steps(name, engine):
    """Chaos, but too short for it to show: no contraction helps, and each iteration settles at least one more step."""
    net = network(2.0)
    run = rnnpar.prepare(net, f"in_time/{name}", **engine)
    assert_matches_oracle(run, random_input(net, 12, 1))
    assert run.info["iterations"] <= 12


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_too_few_iterations_are_refused(name, engine):
    net = network(0.95)
    run = rnnpar.prepare(net, f"in_time/{name}", max_iterations=1, **engine)
    with pytest.raises(NotConverged, match=r"did not converge after 1 iterations, residual 0\.\d"):
        run(random_input(net, 600, 1))
    assert_matches_oracle(rnnpar.prepare(net, f"in_time/{name}", **engine), random_input(net, 600, 1))


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", ["deer", "quasi_deer"])
def test_damping_slows_down_and_gives_the_same(name, engine):
    net = network(0.8)
    x = random_input(net, 400, 1)
    counts = []
    for damping in (0.0, 0.5):
        run = rnnpar.prepare(net, f"in_time/{name}", damping=damping, **engine)
        assert_matches_oracle(run, x)
        counts.append(run.info["iterations"])
        assert run.info["exponent"] == pytest.approx(exponent(net, x), abs=0.03)
    if name == "deer":
        assert counts[1] > counts[0]


@pytest.mark.filterwarnings("ignore:threads=5")
@pytest.mark.parametrize("name", NAMES)
def test_every_call_gives_the_same_bits_with_more_threads_than_cores(name):
    """A thread that comes late reads what the others had written before, not what they have written since."""
    net = orthogonal(1.0)  # which forgets nothing
    T, calls = (2000, 60) if name in ("deer", "segments") else (600, 10)  # these need hundreds of iterations
    x = random_input(net, T, 1)
    with rnnpar.prepare(net, f"in_time/{name}", threads=5, window=T) as run:
        assert len({(run(x)[0].tobytes(), run.info["iterations"]) for _ in range(calls)}) == 1


def test_any_number_of_threads_and_a_wide_batch():
    net = rnnpar.RNN.random(3, 20, 6)
    x = random_input(net, 90, 17)
    for name in NAMES:
        for threads in (1, 2):
            assert_matches_oracle(rnnpar.prepare(net, f"in_time/{name}", threads=threads, window=50), x)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "bfloat16"}, ValueError, "'float32' or 'float64'"),
        ({"window": 0}, ValueError, "window is 0"),
        ({"window": 1.5}, ValueError, r"window is 1\.5"),
        ({"max_iterations": -1}, ValueError, "max_iterations is -1"),
        ({"damping": 1.0}, ValueError, r"damping is 1\.0"),
        ({"array_module": "torch"}, ValueError, "'numpy' or 'cupy'"),
    ],
)
def test_wrong_options_are_named(options, error, says):
    with pytest.raises(error, match=says):
        rnnpar.prepare(rnnpar.RNN.random(2, 3, 4), "in_time/deer", **options)


def test_cupy_without_a_gpu_is_unavailable():
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:
        with pytest.raises(rnnpar.Unavailable, match="needs"):
            rnnpar.prepare(rnnpar.RNN.random(2, 3, 4), "in_time/deer", array_module="cupy")
    else:
        assert_matches_oracle(
            rnnpar.prepare(network(0.9), "in_time/deer", array_module="cupy"), random_input(network(0.9), 500, 1)
        )


@pytest.mark.parametrize("name", NAMES)
def test_fewer_segments_than_threads(name):
    """Three steps for two threads are one segment: every thread still has room of its own, and nobody writes beyond."""
    plan = Plan.of(name, Work(3, 2, 4, 600, 3), 2, 3, False, 4)
    assert plan.S == 1
    assert plan.ends(2) == 2 * 2 * plan.ld
    net = rnnpar.RNN.random(4, 600, 3)
    run = rnnpar.prepare(net, f"in_time/{name}", threads=2)
    engine = run._forward.engine
    begin, canaries = engine.begin, []

    def guarded(*arguments):
        """Each buffer in the middle of a larger one, so that a write beyond its ends shows."""
        results = begin(*arguments)
        for buffer in ("z", "h", "g", "r", "ends", "maps"):
            old = engine.job._arrays[buffer]
            wide = np.full(len(old) + 4096, np.float32(7.25))
            wide[2048:-2048] = 0
            engine.job.set(**{buffer: wide[2048:-2048]})
            canaries.append((buffer, wide))
        engine.z, engine.h = (engine.job._arrays[buffer] for buffer in ("z", "h"))
        return results

    engine.begin = guarded
    assert_matches_oracle(run, random_input(net, 3, 2))
    for buffer, wide in canaries:
        assert (wide[:2048] == 7.25).all(), buffer
        assert (wide[-2048:] == 7.25).all(), buffer


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"threads": 2}, {"array_module": "numpy"}, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(20_000, 1, 16, 32, 8), (3_000, 4, 8, 64, 40)], ids=str)
def test_peak_memory_is_as_predicted(sizes, name, options):
    T, B, I, H, O = sizes
    net = rnnpar.RNN.random(I, H, O)
    x = random_input(net, T, B)
    rnnpar.prepare(net, f"in_time/{name}", **options)(x[:200])  # what is compiled and loaded once is not the call's
    run = rnnpar.prepare(net, f"in_time/{name}", **options)
    tracemalloc.start()
    try:
        run(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 1.3 < run.info["bytes"] < peak * 1.3


@pytest.mark.parametrize("options", [{"threads": 2}, {"array_module": "numpy"}], ids=str)
def test_windows_shrink_to_what_fits_and_what_never_fits_is_refused(options, monkeypatch):
    net = rnnpar.RNN.random(4, 64, 4)
    x = random_input(net, 4000, 1)
    run = rnnpar.prepare(net, "in_time/deer", **options)
    whole = Plan.of("deer", Work.of(net, 4000, 1), 2, 4000, "threads" not in options, 4).bytes
    engine = type(run._forward.engine)
    monkeypatch.setattr(engine, "room", lambda self: whole / 3)
    assert_matches_oracle(run, x)
    assert run.info["window"] < 4000
    assert run.info["bytes"] <= whole / 3
    monkeypatch.setattr(engine, "room", lambda self: 10_000)
    with pytest.raises(MemoryError, match=r"in_time/deer needs [\d,]+ bytes at T=4000, B=1, H=64.*10,000"):
        rnnpar.prepare(net, "in_time/deer", **options)(x)


# --- on a GPU: the array code on arrays as strict as CuPy's -----------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeArrays()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_array_code_runs_on_arrays_as_strict_as_cupys(gpu, name, dtype):
    """NumPy in, NumPy out: what goes over is x and h0, once; what comes back is y, h and a few numbers a look."""
    net = rnnpar.RNN.random(5, 13, 7, 2)
    run = rnnpar.prepare(net, f"in_time/{name}", array_module="cupy", dtype=dtype, window=40)
    x, h0 = random_input(net, 90, 3), np.full((2, 3, 13), 0.5, np.float32)
    gpu.uploads = gpu.downloads = 0
    assert_matches_oracle(run, x, h0)
    looks = 2 * 3 * (6 * run.info["segments"] * 3 + 2 * run.info["iterations"] + 4)  # layers, windows: found, residuals
    assert x.size + h0.size <= gpu.uploads <= x.size + h0.size + 6 * 2 * 13 * run.info["segments"] + looks
    assert gpu.downloads <= 90 * 3 * 7 + 2 * h0.size * 3 + 2 * looks
    assert run.info["engine"] == f"cupy, {dtype}"


@pytest.mark.parametrize("name", NAMES)
def test_device_arrays_in_and_out_without_a_copy(gpu, name):
    net = rnnpar.RNN.random(5, 13, 7, 2)
    run = rnnpar.prepare(net, f"in_time/{name}", array_module="cupy", window=40)
    host = random_input(net, 90, 3), np.full((2, 3, 13), 0.5, np.float32)
    x, h0 = (gpu.asarray(a) for a in host)
    gpu.uploads = gpu.downloads = 0
    y, h = run(x, h0)
    wanted = rnnpar.reference(net, *host)
    for found, right in zip((y, h), wanted, strict=True):
        assert type(found) is type(x)
        assert relative_error(found.host, right) < BOUND
    assert gpu.uploads < 6 * 2 * 13 * run.info["segments"] * 3, "the signs of the rounding, and no more"
    assert gpu.downloads < 90 * 3 * 7, "what is looked at: residuals, and how errors grow"
    assert np.array_equal(h0.host, host[1]), "h0 is the caller's"
    seconds, again, _ = run.timed(x)
    assert gpu.waits == 2
    assert seconds > 0
    assert relative_error(again.host, rnnpar.reference(net, host[0])[0]) < BOUND


def test_device_arrays_without_cupy_are_refused(gpu):
    net = rnnpar.RNN.random(5, 13, 7)
    with pytest.raises(TypeError, match=r"computes on the CPU.*cupy\.asnumpy"):
        rnnpar.prepare(net, "in_time/deer")(gpu.asarray(random_input(net, 9, 1)))


def test_what_cupy_keeps_in_its_pool_is_free(gpu):
    engine = rnnpar.prepare(rnnpar.RNN.random(2, 3, 4), "in_time/deer", array_module="cupy")._forward.engine
    before = engine.room()
    gpu.pooled = 2**20
    assert engine.room() == before + in_time.MEMORY * 2**20
