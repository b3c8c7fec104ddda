"""The CUDA C++ kernels, run on this CPU with every thread alive; and that the executor tells what is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rnnpar.kernels import cluster_plan, cuda_source
from rnnpar.kernels.launch import H100
from rnnpar.kernels.tile import to_bfloat16
from rnnpar.reference import relative_error
from tests.kernels import cuda_on_cpu

pytestmark = pytest.mark.skipif(bool(cuda_on_cpu.WHY_NOT), reason=cuda_on_cpu.WHY_NOT)

BOUND = 1e-6
SEEDS = (0, 1, 2)
CLUSTERS = {  # dtype, H, B, blocks, sequences, split, spilled: one of each kind of way through the kernels
    "one block": ("float32", 20, 2, 1, 1, 8, 0),
    "two blocks": ("float32", 24, 2, 2, 2, 8, 0),
    "four blocks, a full slice, half of the weights in shared memory": ("float32", 36, 11, 4, 8, 8, 1),
    "sixteen blocks": ("float32", 64, 4, 16, 4, 8, 0),
    "sixteen lanes for two rows": ("float32", 68, 5, 2, 4, 16, 2),
    "a warp for four rows": ("float32", 140, 3, 4, 2, 32, 0),
    "a warp for four rows, eight sequences": ("float32", 24, 8, 1, 8, 32, 4),
    "tensor cores, one block": ("bfloat16", 20, 2, 1, 2, 2, 0),
    "tensor cores, two blocks, terms together": ("bfloat16", 32, 1, 2, 1, 2, 0),
    "tensor cores, four blocks, a full slice, in shared memory": ("bfloat16", 60, 9, 4, 8, 1, 1),
    "tensor cores, sixteen sequences": ("bfloat16", 36, 13, 2, 16, 1, 0),
}


def make_plan(dtype, H, blocks, sequences, split, spilled) -> cluster_plan.ClusterPlan:
    """The plan with just these settings: what the planner would not choose has to work, too."""
    make = cluster_plan._on_cores if dtype == "float32" else cluster_plan._on_tensor_cores
    plan = make(H, blocks, sequences, split, H100)
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    spill = 16 if dtype == "float32" else 32
    return cluster_plan.ClusterPlan(
        **fields | dict(spilled=spilled, shared=plan.shared + spilled * spill * plan.threads)
    )


def recurrence(W, b, x, h0):
    """(T,B,H) of h = tanh(b + W h + x), in float64."""
    h, states = h0.astype(np.float64), []
    for now in x.astype(np.float64):
        h = np.tanh(b + h @ W.T.astype(np.float64) + now)
        states.append(h)
    return np.array(states)


def arrays(H, B, T, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return draw(H, H) / np.float32(np.sqrt(H)), draw(H), draw(T, B, H), np.tanh(draw(B, H))


def rounded(W):
    return (to_bfloat16(W).astype(np.uint32) << 16).view(np.float32)


def run_cluster(kind, T=7, seed=0, remove=(), sanitize=False, change=()):
    """The relative error of a cluster's run; `change`: (what, by what) in the kernel's text, each must be found."""
    dtype, H, B, blocks, sequences, split, spilled = CLUSTERS[kind]
    plan = make_plan(dtype, H, blocks, sequences, split, spilled)
    W, b, x, h0 = arrays(H, B, T)
    states = x.copy()
    text = cuda_source.text(plan.kernel)
    for what, by in change:
        assert what in text
        text = text.replace(what, by)
    options = cuda_source.options(plan.constants())
    program = cuda_on_cpu.build_text(text, f"{plan.kernel}.cuh", f"rnn_{plan.kernel}", options, sanitize)
    program.launch(
        (plan.blocks * plan.clusters(B),), (plan.threads,), [cluster_plan.pack(W, plan), b, h0, states, T, B, H],
        plan.shared, seed, remove,
    )  # fmt: skip
    wanted = recurrence(W if dtype == "float32" else rounded(W), b, x, h0)
    return relative_error(states, wanted), program


@pytest.mark.parametrize("kind", CLUSTERS)
def test_clusters_match_the_oracle_under_any_schedule(kind):
    for seed in SEEDS:
        assert run_cluster(kind, seed=seed)[0] < BOUND, seed


@pytest.mark.parametrize("T", [1, 2, 3])
def test_short_sequences(T):
    assert run_cluster("two blocks", T, seed=1)[0] < BOUND
    assert run_cluster("tensor cores, two blocks, terms together", T, seed=1)[0] < BOUND


@pytest.mark.parametrize("kind", [kind for kind in CLUSTERS if "full slice" in kind])
def test_clusters_under_the_address_and_undefined_sanitizers(kind):
    assert run_cluster(kind, T=3, seed=1, sanitize=True)[0] < BOUND


def found_wrong(run) -> bool:
    """Whether under any of some schedules a run fails or gives a wrong result."""
    for seed in range(12):
        try:
            if not run(seed) < BOUND:
                return True
        except cuda_on_cpu.KernelFailed:
            return True
    return False


REMOVALS = [
    *[("cluster", kind, line) for kind in ("one block", "two blocks") for line in cuda_on_cpu.points("cluster")],
    *[
        ("cluster_mma", kind, line)
        for kind in ("tensor cores, one block", "tensor cores, sixteen sequences")
        for line in cuda_on_cpu.points("cluster_mma")
    ],
]


@pytest.mark.parametrize(("name", "kind"), sorted({removal[:2] for removal in REMOVALS}))
def test_every_barrier_and_wait_is_needed(name, kind):
    """Each that a run comes to is taken out: the result must be wrong, or the executor must say so."""
    _, program = run_cluster(kind, seed=1)
    used, points = dict(program.used), cuda_on_cpu.points(name)
    assert set(used) <= set(points)
    unnoticed = [
        f"{name}.cuh({line}): {points[line]}"
        for line in sorted(used)
        if not found_wrong(lambda seed, line=line: run_cluster(kind, seed=seed, remove=[line])[0])
    ]
    assert unnoticed == []


def test_the_removals_cover_every_barrier_and_wait():
    for name in ("cluster", "cluster_mma"):
        kinds = {removal[1] for removal in REMOVALS if removal[0] == name}
        used = set().union(*(run_cluster(kind, seed=1)[1].used for kind in kinds))
        assert used == set(cuda_on_cpu.points(name))


@pytest.mark.parametrize(
    "change",
    [
        ("(t - 1) >> 1 & 1", "0"),  # the phase: every second wait does not wait
        ("next = now ^ 1", "next = now"),  # one buffer: h[t] comes in while h[t-1] is being read
    ],
)
@pytest.mark.parametrize("kind", ["two blocks", "tensor cores, sixteen sequences"])
def test_wrong_phases_and_buffers_are_found(kind, change):
    assert found_wrong(lambda seed: run_cluster(kind, seed=seed, change=[change])[0])


# --- the hand-over alone ------------------------------------------------------------------------------------------


def run_hand_over(blocks, count, seed=0, remove=(), clusters=2):
    """The largest difference from what each lane must have: what began at the other end or here, plus the rounds."""
    program = cuda_on_cpu.build("hand_over", "rnn_hand_over", cuda_source.options(dict(CLUSTER=blocks)))
    last = np.full((clusters, blocks, blocks), -1, np.int32)
    program.launch((clusters * blocks,), (32,), [last, count], 128 + 2 * 16 * blocks, seed, remove)
    began = np.arange(blocks * blocks).reshape(blocks, blocks)
    return abs(last - count - (began.T if count % 2 else began)).max(), program


@pytest.mark.parametrize("blocks", [2, 8, 16])
def test_hand_overs_follow_each_other(blocks):
    for count in (0, 1, 2, 7):
        assert all(run_hand_over(blocks, count, seed)[0] == 0 for seed in SEEDS), count


def test_every_wait_of_the_hand_over_is_needed():
    points = cuda_on_cpu.points("hand_over")
    assert set(run_hand_over(8, 7, 1)[1].used) == set(points)
    for line in points:
        assert found_wrong(lambda seed, line=line: run_hand_over(8, 7, seed, [line])[0]), points[line]


# --- step ---------------------------------------------------------------------------------------------------------


def run_step(rows, sequences, half, H, B, warps=2, sanitize=False):
    W, b, x, h0 = arrays(H, B, 1)
    now = x[0].copy()
    constants = dict(ROWS=rows, SEQUENCES=sequences, WARPS=warps, BFLOAT16=half)
    program = cuda_on_cpu.build("step", "rnn_step", cuda_source.options(constants), sanitize)
    grid = (-(-H // (rows * warps)), -(-B // sequences))
    program.launch(grid, (warps * 32,), [to_bfloat16(W) if half else W, b, h0, now, H, B], seed=1)
    return relative_error(now, recurrence(rounded(W) if half else W, b, x, h0)[0])


@pytest.mark.parametrize(("rows", "sequences", "half"), [(1, 1, 0), (4, 8, 1)])
def test_step(rows, sequences, half):
    for H, B in ((4, 1), (28, 3), (132, sequences), (52, 2 * sequences + 1)):
        assert run_step(rows, sequences, half, H, B) < BOUND, (H, B)


def test_step_under_the_sanitizers():
    assert run_step(4, 8, 1, 28, 11, sanitize=True) < BOUND


# --- softmax ------------------------------------------------------------------------------------------------------


def run_softmax(function, rows, O, seed=0, remove=(), sanitize=False, scale=3.0):
    rng = np.random.default_rng(O)
    y, c = (scale * rng.standard_normal(shape) for shape in ((rows, O), O))
    y, c = y.astype(np.float32), c.astype(np.float32)
    o = y.astype(np.float64) + c
    e = np.exp(o - o.max(axis=1, keepdims=True))
    warps = 4
    program = cuda_on_cpu.build("softmax", function, cuda_source.options(dict(WARPS=warps)), sanitize)
    grid = -(-rows // warps) if function == "softmax_warps" else rows
    program.launch((grid,), (warps * 32,), [y, c, rows, O], seed=seed, remove=remove)
    return relative_error(y, e / e.sum(axis=1, keepdims=True)), program


@pytest.mark.parametrize("function", ["softmax_warps", "softmax_blocks"])
@pytest.mark.parametrize(("rows", "O"), [(1, 1), (5, 31), (3, 33), (2, 1031)])
def test_softmax(function, rows, O):
    for seed in (0, 1):
        assert run_softmax(function, rows, O, seed)[0] < 3e-6
    assert run_softmax(function, rows, O, scale=1000.0)[0] < 1e-4  # nothing overflows


def test_every_barrier_of_softmax_is_needed():
    points = cuda_on_cpu.points("softmax")
    assert set(run_softmax("softmax_blocks", 2, 300, 1)[1].used) == set(points)
    for line in points:
        assert found_wrong(lambda seed, line=line: run_softmax("softmax_blocks", 2, 300, seed, [line])[0] / 3), line


# --- the small functions ------------------------------------------------------------------------------------------

PROBE = """
extern "C" __global__ void probe(float* x, int n, int what) {
  int lane = threadIdx.x;
  if (what == 0)
    for (int i = lane; i < n; i += 32) x[i] = activate(x[i]);
  if (what == 1) {
    float v[8];
    for (int i = 0; i < 8; i++) v[i] = x[lane * 8 + i];
    x[lane * 8] = sum_over_lanes<8, 32>(v, lane);
  }
  if (what == 2 && lane < 16) __syncthreads();
  if (what == 3) {
    SHARED(float, v, 32);
    x[lane] = v[lane];
  }
  if (what == 4) x[lane + 32] = 1.f;
}
"""
ACTIVATE, SUMS, STUCK, USES_POISON, OUTSIDE = range(5)


def probe(what, x, sanitize=False):
    text = cuda_source.text("softmax").split('#line 1 "softmax.cuh"')[0] + PROBE
    program = cuda_on_cpu.build_text(text, "probe.cuh", "probe", (), sanitize)
    program.launch((1,), (32,), [x, x.size, what])
    return x


def test_activation_against_float64():
    x = np.concatenate([np.linspace(-12, 12, 20001), np.geomspace(1e-30, 1, 2000), [0.0, 100.0, -100.0]])
    x = x.astype(np.float32)
    got = probe(ACTIVATE, x.copy()).astype(np.float64)
    wanted = np.tanh(x.astype(np.float64))
    assert np.abs(got - wanted).max() < 3e-7
    assert (np.abs(got - wanted) <= 2e-6 * np.abs(wanted)).all()
    assert np.abs(got).max() <= 1
    assert np.isnan(probe(ACTIVATE, np.full(1, np.nan, np.float32))).all()


def test_sum_over_lanes_gives_each_group_of_lanes_its_sum():
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    got = probe(SUMS, x.copy())[:, 0]
    np.testing.assert_allclose(got, np.repeat(x.sum(axis=0), 4), rtol=1e-5)


def test_the_executor_sees_a_deadlock():
    with pytest.raises(cuda_on_cpu.KernelFailed, match="deadlock: 16 threads wait at __syncthreads"):
        probe(STUCK, np.zeros(32, np.float32))


def test_the_executor_sees_an_access_outside():
    with pytest.raises(cuda_on_cpu.KernelFailed, match="heap-buffer-overflow"):
        probe(OUTSIDE, np.zeros(32, np.float32), sanitize=True)


def test_shared_memory_begins_as_nan():
    assert np.isnan(probe(USES_POISON, np.zeros(32, np.float32))).all()


def test_the_headers_say_what_each_kernel_parallelises():
    for path in cuda_source.HERE.glob("*.cuh"):
        head = re.split(r"^[^/\n]", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        if path.name != "device.cuh":
            assert all(word in head for word in ("arallelises", "Moves", "Compiled with")), path.name
