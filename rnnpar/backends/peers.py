"""What a user would pick instead: PyTorch, ONNX Runtime, OpenVINO, JAX, each at its best on a number of threads.

Each engine computes the whole forward pass in float32 in a process of its own, so that no two thread pools fight and
none meets settings made for another. In there it has several formulations of the same pass, what its manual would
write first and what turned out faster. At the first call of a shape it builds them all, times them in turn for a few
tenths of a second each, keeps the fastest and frees the rest; `forward.info` says which one that was, what each took,
and which could not run.

Two engines compute on a GPU: PyTorch, whose RNN is cuDNN's, and JAX. Theirs too are processes of their own, and so
take NumPy arrays only; `Child.device_calls` tells what a call takes there from device arrays to device arrays.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h0, h (L,B,H), y (T,B,O), float32.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnnpar import machine
from rnnpar.backends import processes
from rnnpar.network import RNN

Forward = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Build = Callable[[], Forward]
Formulations = Callable[[int, int], Mapping[str, Build]]  # (T, B) -> by name, what builds the pass for that shape

TIMEOUT_S = 600.0  # a child that has not answered for so long is taken for hung, and killed
LONG_S = 0.1  # a call that takes longer is timed once and needs no other before it
TF32_CLOSE = 0.02  # how far two formulations that round to 10 bits may be apart
SHAPES = 8  # shapes whose chosen formulation is kept; the oldest goes first


# --- The four strategies -----------------------------------------------------------------------------------------


def torch(net: RNN, threads: int) -> Child:
    """PyTorch: torch.nn.RNN, or a loop over U x that TorchScript runs, with plain or oneDNN-packed weights.

    Parallelises: each product's rows and columns. Synchronises: OpenMP, a fork and a join an operation. Moves: W in
    every step; U and V once in a call.
    """
    pools = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return Child("peers/torch", "rnnpar.backends.peers:fastest", ("torch", net, threads), threads, pools)


def onnxruntime(net: RNN, threads: int) -> Child:
    """ONNX Runtime: the RNN operator, or a Scan whose body is Gemm and Tanh, behind one MatMul for all U x.

    Parallelises: each product's columns. Synchronises: its own spinning pool, a fork and a join an operation. Moves:
    W in every step; U and V once in a call.
    """
    return Child("peers/onnxruntime", "rnnpar.backends.peers:fastest", ("onnxruntime", net, threads), threads)


def openvino(net: RNN, threads: int) -> Child:
    """OpenVINO: RNNSequence (oneDNN's recurrent primitive), or a TensorIterator of MatMul, Add and Tanh.

    Parallelises: each product's rows and columns. Synchronises: TBB, a fork and a join an operation. Moves: W in
    every step; U and V once in a call.
    """
    return Child("peers/openvino", "rnnpar.backends.peers:fastest", ("openvino", net, threads), threads)


def jax(net: RNN, threads: int) -> Child:
    """JAX: lax.scan over U x, compiled by XLA for one shape; as rows or as a vector, unrolled or not.

    Parallelises: each product's rows and columns, where they are large. Synchronises: XLA's own pool. Moves: W in
    every step; U and V once in a call.
    """
    pools = {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",  # a call computes where it was made, instead of waking a thread
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PJRT_NPROC": str(threads),  # XLA's pool; without it as many threads as there are cores
    }
    return Child("peers/jax", "rnnpar.backends.peers:fastest", ("jax", net, threads), threads, pools)


def cudnn(net: RNN, tf32: bool = False, device: int = 0) -> Child:
    """PyTorch on a GPU: torch.nn.RNN, which is cuDNN's, or a loop of cuBLAS products; launched, or as a CUDA graph.

    Parallelises: each product's rows and columns. Synchronises: a launch a step, or within cuDNN's persistent kernel
    where it has one for the size. Moves: W in every step from L2 or memory; U and V once in a call. With `tf32` the
    tensor cores round the factors of each product to 10 bits, PyTorch's default for cuDNN; without, all is float32.
    """
    return _on_gpu("peers/cudnn", ("cudnn", net, {"tf32": tf32}), gpu_environment(device, tf32))


def jax_gpu(net: RNN, device: int = 0) -> Child:
    """JAX on a GPU: lax.scan over U x, compiled by XLA for one shape, unrolled or not; float32 throughout.

    Parallelises: each product's rows and columns. Synchronises: a launch or a graph node an operation. Moves: W in
    every step from L2 or memory; U and V once in a call.
    """
    return _on_gpu("peers/jax_gpu", ("jax_gpu", net, {}), gpu_environment(device))


def why_no_cudnn() -> str:
    """Why peers/cudnn cannot run here; empty where it can. PyTorch itself, slow to import, is left alone."""
    origin = Path(importlib.util.find_spec("torch").origin)
    try:
        built = re.search(r"^cuda\b.*= *'([0-9.]+)'", (origin.parent / "version.py").read_text(), re.MULTILINE)
    except OSError:
        built = True  # nobody knows; importing it will tell
    if not built:
        return "the PyTorch here is built without CUDA: install it from https://pytorch.org with CUDA"
    return "" if machine.gpu() else machine.gpu_problem()


def why_no_jax_gpu() -> str:
    """Why peers/jax_gpu cannot run here; empty where it can. JAX itself is left alone."""
    if not any(importlib.util.find_spec(f"jax_{cuda}_plugin") for cuda in ("cuda13", "cuda12")):
        return "the JAX here computes on the CPU only: pip install 'jax[cuda13]'"
    return "" if machine.gpu() else machine.gpu_problem()


def gpu_environment(device: int = 0, tf32: bool = False) -> dict[str, str]:
    """What a process that computes on one GPU finds in its environment: it sees that GPU alone."""
    seen = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    if seen and not 0 <= device < len(seen):
        raise ValueError(f"device is {device}; CUDA_VISIBLE_DEVICES shows {len(seen)}, numbered from 0")
    rules = {
        "CUDA_VISIBLE_DEVICES": seen[device] if seen else str(device),
        "JAX_PLATFORMS": "cuda",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else it takes most of the GPU's memory, which others need too
    }
    return (
        rules if tf32 else rules | {"NVIDIA_TF32_OVERRIDE": "0"}
    )  # heeded by NVIDIA's libraries, whatever else is set


def _on_gpu(name: str, arguments: tuple, environment: dict[str, str]) -> Child:
    return Child(name, "rnnpar.backends.peers:fastest_on_gpu", arguments, machine.cores_allowed(), environment)


# --- What each engine has to choose from: these run in the child -------------------------------------------------


def torch_formulations(net: RNN, threads: int) -> Formulations:
    """The operators that the packed loop uses are those that torch.compile writes for constant weights. (It itself
    is no candidate: it compiles an unrolled loop for half a minute, and is no faster than TorchScript's.)"""
    import torch
    from torch.nn.functional import linear

    layers = [tuple(map(torch.from_numpy, (layer.W, layer.U, layer.b))) for layer in net.layers]
    V, c = torch.from_numpy(net.V), torch.from_numpy(net.c)
    packed_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

    def module() -> Forward:
        rnn = torch.nn.RNN(net.input_size, net.hidden_size, net.num_layers)
        weights = {}
        for index, (W, U, b) in enumerate(layers):
            weights |= {f"weight_hh_l{index}": W, f"weight_ih_l{index}": U, f"bias_ih_l{index}": b}
            weights[f"bias_hh_l{index}"] = torch.zeros_like(b)
        rnn.load_state_dict(weights)

        def forward(x, h0):
            hidden, h = rnn(x, h0)
            return torch.softmax(linear(hidden, V, c), -1), h

        return forward

    @torch.jit.script
    def steps(a, h, W):  # a (T,B,H) becomes the hidden states; W (H,H) transposed
        for a_t in a.unbind(0):
            h = a_t.addmm_(h, W).tanh_()
        return a

    def loop(transposed: bool) -> Forward:
        W_ = [W.t().contiguous() if transposed else W.t() for W, _, _ in layers]

        def forward(x, h0):
            below, last = x, []
            for (_, U, b), W, h in zip(layers, W_, h0.unbind(0), strict=True):
                below = steps(linear(below, U, b), h, W)
                last.append(below[-1])
            return torch.softmax(linear(below, V, c), -1), torch.stack(last)

        return forward

    def packed(T: int, B: int, W_too: bool) -> Forward:
        pack = torch.ops.mkldnn._reorder_linear_weight
        inner = [(pack(W, B) if W_too else W.t(), pack(U, T * B), b) for W, U, b in layers]
        V_ = pack(V, T * B)

        def all_steps(x, weights, bias):
            return packed_linear(x.flatten(0, 1), weights, bias, "none", [], "").view(T, B, -1)

        @torch.jit.script
        def packed_steps(a, h, W):
            for a_t in a.unbind(0):
                h = a_t.add_(torch.ops.mkldnn._linear_pointwise(h, W, None, "none", [], "")).tanh_()
            return a

        def forward(x, h0):
            below, last = x, []
            for (W, U, b), h in zip(inner, h0.unbind(0), strict=True):
                below = (packed_steps if W_too else steps)(all_steps(below, U, b), h, W)
                last.append(below[-1])
            return torch.softmax(all_steps(below, V_, c), -1), torch.stack(last)

        return forward

    def on(count: int, build: Build) -> Forward:
        inner = build()

        def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with torch.inference_mode():
                torch.set_num_threads(count)
                y, h = inner(torch.from_numpy(x), torch.from_numpy(h0))
                return y.numpy(), h.numpy()

        return forward

    def formulations(T: int, B: int) -> dict[str, Build]:
        plain = {"nn.RNN": module, "loop": partial(loop, False), "loop, W transposed": partial(loop, True)}
        if packed_linear is not None:
            plain |= {"loop, all packed": partial(packed, T, B, True), "loop, U V packed": partial(packed, T, B, False)}
        return {
            name + _on(count, threads): partial(on, count, build)
            for name, build in plain.items()
            for count in _counts(threads)
        }

    return formulations


def onnxruntime_formulations(net: RNN, threads: int) -> Formulations:
    """One model for all shapes. (Unrolled graphs are no candidates: every step would pack a copy of W of its own.)"""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    L, H = net.num_layers, net.hidden_size
    node, constant = helper.make_node, lambda array, name: numpy_helper.from_array(np.array(array), name)

    def tensor(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def operator() -> tuple[list, list]:
        nodes, constants = [], []
        for i, layer in enumerate(net.layers):
            bias = np.concatenate([layer.b, np.zeros_like(layer.b)])[None]
            constants += [constant(layer.U[None], f"U{i}"), constant(layer.W[None], f"W{i}"), constant(bias, f"b{i}")]
            nodes += [
                node("Slice", ["h0", f"n{i}", f"n{i + 1}"], [f"start{i}"]),
                node("RNN", [f"x{i}", f"U{i}", f"W{i}", f"b{i}", "", f"start{i}"], [f"y{i}", f"end{i}"], hidden_size=H),
                node("Squeeze", [f"y{i}", "n1"], [f"x{i + 1}"]),
            ]
        return nodes, constants

    def scan() -> tuple[list, list]:
        nodes, constants = [], []
        for i, layer in enumerate(net.layers):
            constants += [constant(layer.U.T, f"U{i}"), constant(layer.W.T, f"W{i}"), constant(layer.b, f"b{i}")]
            step = [node("Gemm", ["h", f"W{i}", "a"], ["sum"]), node("Tanh", ["sum"], ["new"]),
                    node("Identity", ["new"], ["out"])]  # fmt: skip
            body = helper.make_graph(step, "step", [tensor("h", "B", H), tensor("a", "B", H)],
                                     [tensor("new", "B", H), tensor("out", "B", H)])  # fmt: skip
            nodes += [
                node("Gather", ["h0", f"i{i}"], [f"start{i}"]),
                node("MatMul", [f"x{i}", f"U{i}"], [f"u{i}"]),
                node("Add", [f"u{i}", f"b{i}"], [f"a{i}"]),
                node("Scan", [f"start{i}", f"a{i}"], [f"last{i}", f"x{i + 1}"], body=body, num_scan_inputs=1),
                node("Unsqueeze", [f"last{i}", "n0"], [f"end{i}"]),
            ]
        return nodes, constants

    @cache
    def session(recurrence: Callable[[], tuple[list, list]], count: int) -> Any:
        nodes, constants = recurrence()
        constants += [constant(net.V.T, "V"), constant(net.c, "c")]
        constants += [constant(np.array([i]), f"n{i}") for i in range(max(L, 1) + 1)]
        constants += [constant(np.array(i), f"i{i}") for i in range(L)]
        head = [node("Identity", ["x"], ["x0"]), *nodes,
                node("MatMul", [f"x{L}", "V"], ["v"]), node("Add", ["v", "c"], ["o"]), node("Softmax", ["o"], ["y"]),
                node("Concat", [f"end{i}" for i in range(L)], ["h"], axis=0)]  # fmt: skip
        graph = helper.make_graph(
            head, "rnn", [tensor("x", "T", "B", net.input_size), tensor("h0", L, "B", H)],
            [tensor("y", "T", "B", net.output_size), tensor("h", L, "B", H)], constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = count
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
        settings.log_severity_level = 3
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def build(recurrence: Callable[[], tuple[list, list]], count: int) -> Forward:
        run = session(recurrence, count).run
        return lambda x, h0: run(["y", "h"], {"x": x, "h0": h0})

    def formulations(T: int, B: int) -> dict[str, Build]:
        return {
            name + _on(count, threads): partial(build, recurrence, count)
            for name, recurrence in {"RNN operator": operator, "Scan": scan}.items()
            for count in _counts(threads)
        }

    return formulations


def openvino_formulations(net: RNN, threads: int) -> Formulations:
    """A model for each shape. Unrolled graphs are the TensorIterator whose body takes up to 16 steps at once."""
    sys.modules["openvino_telemetry"] = None  # its import would fork this process, and send news of it home
    import openvino
    from openvino import opset13 as op

    core, float32 = openvino.Core(), openvino.Type.f32
    L, H = net.num_layers, net.hidden_size

    def state(h0: Any, index: int, shape: list[int]) -> Any:
        return op.reshape(op.gather(h0, op.constant(np.array([index])), op.constant(0)), shape, False)

    def sequence(x: Any, h0: Any, T: int, B: int) -> tuple[Any, list]:
        below, last = op.transpose(x, [1, 0, 2]), []
        lengths = op.constant(np.full(B, T, np.int32))
        for i, layer in enumerate(net.layers):
            weights = [op.constant(array[None]) for array in (layer.U, layer.W, layer.b)]
            cell = op.rnn_sequence(below, state(h0, i, [B, 1, H]), lengths, *weights, H, "forward", ["tanh"])
            below = op.reshape(cell.output(0), [B, T, H], False)
            last.append(op.reshape(cell.output(1), [1, B, H], False))
        return op.transpose(below, [1, 0, 2]), last

    def iterator(most: int, x: Any, h0: Any, T: int, B: int) -> tuple[Any, list]:
        some = next(steps for steps in range(min(most, T), 0, -1) if T % steps == 0)  # steps in one iteration
        below, last = x, []
        for i, layer in enumerate(net.layers):
            a = op.add(op.matmul(below, op.constant(layer.U), False, True), op.constant(layer.b))
            first, taken = op.parameter([B, H], float32), op.parameter([some * B, H], float32)
            W, h, hidden = op.constant(layer.W), first, []
            for a_t in op.split(taken, op.constant(0), some).outputs():
                h = op.tanh(op.add(op.matmul(h, W, False, True), a_t))
                hidden.append(h)
            together = op.concat(hidden, 0)
            loop = op.tensor_iterator()
            loop.set_body(openvino.Model([h, together], [first, taken]))
            rows = op.reshape(a, [T * B, H], False)
            loop.set_sliced_input(taken, rows.output(0), 0, some * B, some * B, -1, 0)
            loop.set_merged_input(first, state(h0, i, [B, H]).output(0), h.output(0))
            last.append(op.reshape(loop.get_iter_value(h.output(0), -1), [1, B, H], False))
            slices = loop.get_concatenated_slices(together.output(0), 0, some * B, some * B, -1, 0)
            below = op.reshape(slices, [T, B, H], False)
        return below, last

    def build(recurrence: Callable, T: int, B: int, count: int) -> Forward:
        x, h0 = op.parameter([T, B, net.input_size], float32), op.parameter([L, B, H], float32)
        hidden, last = recurrence(x, h0, T, B)
        o = op.add(op.matmul(hidden, op.constant(net.V), False, True), op.constant(net.c))
        model = openvino.Model([op.softmax(o, -1), op.concat(last, 0)], [x, h0])
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": count,
            "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the processor has it
        }  # fmt: skip
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            y, h = np.empty((T, B, net.output_size), np.float32), np.empty((L, B, H), np.float32)
            for index, array in enumerate((x, h0)):
                request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
            for index, array in enumerate((y, h)):
                request.set_output_tensor(index, openvino.Tensor(array, shared_memory=True))
            request.infer()
            return y, h

        return forward

    def formulations(T: int, B: int) -> dict[str, Build]:
        recurrences = {"RNNSequence": sequence, "TensorIterator": partial(iterator, 1)}
        if T > 1:
            recurrences["TensorIterator, unrolled"] = partial(iterator, 16)
        return {
            name + _on(count, threads): partial(build, recurrence, T, B, count)
            for name, recurrence in recurrences.items()
            for count in _counts(threads)
        }

    return formulations


def jax_formulations(net: RNN, threads: int) -> Formulations:
    """`threads` is in the environment and the affinity: XLA takes its pool from there, not from a setting."""
    import jax
    import jax.numpy as jnp

    rows_ = [(layer.W.T, layer.U.T, layer.b) for layer in net.layers]
    columns_ = [(layer.W, layer.U.T, layer.b) for layer in net.layers]
    V, c = jax.device_put(np.ascontiguousarray(net.V.T)), jax.device_put(net.c)

    def build(vector: bool, unroll: int, wide: bool, T: int, B: int) -> Forward:
        layers = [[jax.device_put(np.ascontiguousarray(array)) for array in layer]
                  for layer in (columns_ if vector else rows_)]  # fmt: skip

        def whole(layers, V, c, x, h0):
            below, last = x.reshape(T * B, -1), []
            for (W, U, b), h in zip(layers, h0, strict=True):

                def step(h, a_t, W=W):
                    h = jnp.tanh(a_t + (W @ h if vector else h @ W))
                    return h, h

                a = below @ U + b
                h, a = (h[0], a) if vector else (h, a.reshape(T, B, -1))
                h, hidden = jax.lax.scan(step, h, a, unroll=unroll)
                last.append(h.reshape(B, -1))
                below = hidden.reshape(T * B, -1)
            return jax.nn.softmax(below @ V + c, -1).reshape(T, B, -1), jnp.stack(last)

        compiled = jax.jit(whole, compiler_options={"xla_cpu_prefer_vector_width": 512} if wide else None)

        def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            y, h = compiled(layers, V, c, x, h0)
            return np.asarray(y), np.asarray(h)

        return forward

    def formulations(T: int, B: int) -> dict[str, Build]:
        kinds = [(1, True), (1, False), (4, True)] if T > 1 else [(1, True), (1, False)]
        return {
            f"scan, {'W h' if vector else 'h W'}, unroll {unroll}{', 512-bit vectors' if wide else ''}":
                partial(build, vector, unroll, wide, T, B)
            for vector, (unroll, wide) in itertools.product((False, True) if B == 1 else (False,), kinds)
        }  # fmt: skip

    return formulations


class Place(NamedTuple):
    """How an engine's arrays come to its device and back. Its formulations take and return arrays that lie there, and
    return when these are filled."""

    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]


def cudnn_formulations(net: RNN, tf32: bool = False, place: str = "cuda") -> tuple[Formulations, Place]:
    """A loop is no match for cuDNN's, unless it is a CUDA graph; cuDNN's own launches a step can become one too."""
    import torch
    from torch.nn.functional import linear

    _set_tf32(torch, tf32)
    target = torch.device(place)
    put = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(target)  # noqa: E731
    layers = [tuple(map(put, (layer.W, layer.U, layer.b))) for layer in net.layers]
    V, c = put(net.V), put(net.c)

    def module() -> Forward:
        rnn = torch.nn.RNN(net.input_size, net.hidden_size, net.num_layers, device=target)
        weights = {}
        for index, (W, U, b) in enumerate(layers):
            weights |= {f"weight_hh_l{index}": W, f"weight_ih_l{index}": U, f"bias_ih_l{index}": b}
            weights[f"bias_hh_l{index}"] = torch.zeros_like(b)
        rnn.load_state_dict(weights)
        rnn.flatten_parameters()

        def forward(x, h0):
            hidden, h = rnn(x, h0)
            return torch.softmax(linear(hidden, V, c), -1), h

        return forward

    def loop() -> Forward:
        def forward(x, h0):
            below, last = x, []
            for (W, U, b), h in zip(layers, h0.unbind(0), strict=True):
                below = linear(below, U, b)
                for a_t in below.unbind(0):
                    h = a_t.addmm_(h, W.t()).tanh_()
                last.append(h)
            return torch.softmax(linear(below, V, c), -1), torch.stack(last)

        return forward

    def graph(inner: Forward, T: int, B: int) -> Forward:
        """`inner`, recorded once; its input and output lie where they lay then, so they are copied in and out."""
        x = torch.zeros(T, B, net.input_size, device=target)
        h0 = torch.zeros(net.num_layers, B, net.hidden_size, device=target)
        aside = torch.cuda.Stream()  # libraries take their workspaces at a first call, which must not be recorded
        with torch.cuda.stream(aside):
            for _ in range(3):
                inner(x, h0)
        torch.cuda.current_stream().wait_stream(aside)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            y, h = inner(x, h0)

        def forward(x_, h0_):
            x.copy_(x_)
            h0.copy_(h0_)
            recorded.replay()
            return y.clone(), h.clone()

        forward.inner = inner  # the graph reads the weights where they lay: without their owner, others' numbers
        return forward

    def build(recurrence: Build, recorded: bool, T: int, B: int) -> Forward:
        with torch.inference_mode():
            inner = recurrence()
            inner = graph(inner, T, B) if recorded else inner

        def forward(x: Any, h0: Any) -> tuple[Any, Any]:
            with torch.inference_mode():
                y, h = inner(x, h0)
                if target.type == "cuda":
                    torch.cuda.synchronize()
                return y, h

        return forward

    def formulations(T: int, B: int) -> dict[str, Build]:
        tried = {"nn.RNN": (module, False), "nn.RNN, graph": (module, True), "loop, graph": (loop, True)}
        return {name: partial(build, *how, T, B) for name, how in tried.items()}

    return formulations, Place(put, lambda array: array.cpu().numpy())


def _set_tf32(torch: Any, allowed: bool) -> None:
    """Say for all of PyTorch's products on a GPU whether TF32 may be used: newer versions have one word for it."""
    backends = torch.backends
    if not hasattr(backends.cudnn, "rnn"):  # before 2.9
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = allowed
        return
    for part in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn):
        part.fp32_precision = "tf32" if allowed else "ieee"


def jax_gpu_formulations(net: RNN) -> tuple[Formulations, Place]:
    """Scans that differ in how many steps an iteration holds: each iteration of a loop on the host costs a launch."""
    import jax
    import jax.numpy as jnp

    put = lambda array: jax.device_put(np.ascontiguousarray(array))  # noqa: E731
    layers = [(put(layer.W.T), put(layer.U.T), put(layer.b)) for layer in net.layers]
    V, c = put(net.V.T), put(net.c)

    def build(unroll: int, T: int, B: int) -> Forward:
        def whole(layers, V, c, x, h0):
            below, last = x.reshape(T * B, -1), []
            for (W, U, b), h in zip(layers, h0, strict=True):

                def step(h, a_t, W=W):
                    h = jnp.tanh(a_t + h @ W)
                    return h, h

                h, hidden = jax.lax.scan(step, h, (below @ U + b).reshape(T, B, -1), unroll=unroll)
                last.append(h)
                below = hidden.reshape(T * B, -1)
            return jax.nn.softmax(below @ V + c, -1).reshape(T, B, -1), jnp.stack(last)

        compiled = jax.jit(whole)
        return lambda x, h0: jax.block_until_ready(compiled(layers, V, c, x, h0))

    def formulations(T: int, B: int) -> dict[str, Build]:
        return {f"scan, unroll {unroll}": partial(build, unroll, T, B) for unroll in (1, 8, 32) if unroll <= T}

    return formulations, Place(put, np.asarray)


def _counts(threads: int) -> tuple[int, ...]:
    """The numbers of threads to try: a small shape is faster on one."""
    return (threads,) if threads == 1 else (threads, 1)


def _on(count: int, threads: int) -> str:
    return "" if count == threads else f", {count} thread"


# --- Choosing the fastest: in the child --------------------------------------------------------------------------


def fastest(engine: str, net: RNN, threads: int) -> Fastest:
    """The forward pass of `engine`, which takes for each shape the formulation that is fastest there."""
    formulations = {
        "torch": torch_formulations, "onnxruntime": onnxruntime_formulations,
        "openvino": openvino_formulations, "jax": jax_formulations,
    }  # fmt: skip
    return Fastest(formulations[engine](net, threads))


def fastest_on_gpu(engine: str, net: RNN, options: Mapping[str, Any]) -> FastestOnGpu:
    """The forward pass of an engine that computes on a GPU."""
    formulations = {"cudnn": cudnn_formulations, "jax_gpu": jax_gpu_formulations}[engine]
    return FastestOnGpu(*formulations(net, **options), close=TF32_CLOSE if options.get("tf32") else Fastest.CLOSE)


class Fastest:
    """A forward pass that at the first call of a shape tries every formulation, and stays with the fastest.

    `info`: the `formulation`, the microseconds of a call of each that was tried, and which `failed`, and how.
    """

    ROUNDS = 5
    BURST_S = 0.03  # a formulation's calls in a round
    ENOUGH_S = 0.5  # what has had so much time gets no more
    CLOSE = 1e-4  # formulations compute the same, so one that differs more from the first is wrong

    def __init__(self, formulations: Formulations, close: float = CLOSE):
        self._formulations = formulations
        self._close = close
        self._chosen: dict[tuple[int, int], tuple[Forward, dict[str, Any]]] = {}
        self.info: dict[str, Any] = {}

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._for(x, h0)(x, h0)

    def _for(self, x: np.ndarray, h0: np.ndarray) -> Forward:
        shape = tuple(x.shape[:2])
        if shape not in self._chosen:
            while len(self._chosen) >= SHAPES:
                del self._chosen[next(iter(self._chosen))]
            self._chosen[shape] = self._choose(self._put(_ordinary(x)), self._put(_ordinary(h0)))
        forward, self.info = self._chosen[shape]
        return forward

    def _put(self, array: np.ndarray) -> Any:
        return array

    def _host(self, array: Any) -> np.ndarray:
        return array

    def _choose(self, x: Any, h0: Any) -> tuple[Forward, dict[str, Any]]:
        built, seconds, failed = {}, {}, {}
        wanted = None
        for name, build in self._formulations(*x.shape[:2]).items():
            try:
                forward = build()
                y = self._host(forward(x, h0)[0])  # compiles
                if wanted is None:
                    wanted = y
                if not np.linalg.norm(y - wanted) <= self._close * np.linalg.norm(wanted):
                    raise ArithmeticError("its result is another than the first formulation's")
                seconds[name] = _burst(forward, x, h0, 0.0)
                built[name] = forward
            except Exception as error:
                failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not built:
            raise RuntimeError("no formulation can run: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
        spent = dict.fromkeys(built, 0.0)
        for _ in range(self.ROUNDS):
            near = 3 * min(seconds.values())
            hopeful = [name for name in built if seconds[name] <= near and spent[name] < self.ENOUGH_S]
            for name in random.sample(hopeful, len(hopeful)):
                time.sleep(0.005)  # the one before may still be spinning
                begin = time.perf_counter()
                seconds[name] = min(seconds[name], _burst(built[name], x, h0, self.BURST_S))
                spent[name] += time.perf_counter() - begin
        best = min(seconds, key=seconds.get)
        tried = {name: round(1e6 * took, 1) for name, took in seconds.items()}
        return built[best], {"formulation": best, "tried": tried, "failed": failed}


class FastestOnGpu(Fastest):
    """The same on a GPU: it chooses by what a call takes from device arrays to device arrays."""

    def __init__(self, formulations: Formulations, place: Place, close: float):
        super().__init__(formulations, close)
        self._place = place

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, h = self._for(x, h0)(self._put(x), self._put(h0))
        return self._host(y), self._host(h)

    def device_calls(self, x: np.ndarray, h0: np.ndarray, count: int) -> tuple[list, np.ndarray, np.ndarray, dict]:
        """Seconds of `count` calls from device arrays to device arrays that are filled, y and h of the last, `info`."""
        seconds, y, h = timed_calls(self._for(x, h0), self._put(x), self._put(h0), count)
        return seconds, self._host(y), self._host(h), self.info

    def _put(self, array: np.ndarray) -> Any:
        return self._place.put(array)

    def _host(self, array: Any) -> np.ndarray:
        return self._place.get(array)


LARGE = 1e6  # what is larger might overflow in a product


def _ordinary(array: np.ndarray) -> np.ndarray:
    """`array` with 0 for what is not finite or very large: of NaN nobody can tell which formulation is right."""
    return np.where(np.abs(array) < LARGE, array, np.float32(0))


def _burst(forward: Forward, x: np.ndarray, h0: np.ndarray, seconds: float) -> float:
    """The median seconds of a call among those that fit into so many seconds, at least two; the first only wakes up."""
    took, end = [], time.perf_counter() + seconds
    while len(took) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        forward(x, h0)
        took.append(time.perf_counter() - begin)
        if took[0] > LONG_S:
            return took[0]
    return float(np.median(took[1:]))


# --- The process: the parent's side, then the child's ------------------------------------------------------------


class Child(processes.Child):
    """A forward pass in a process of its own, on as many cores as it has threads.

    `factory`, "module:function", called there with `arguments`, gives the forward pass. The process finds none of this
    one's thread variables but those of `environment`. `seconds` is what the last call took in there, from NumPy input
    to NumPy output; `info` what the forward pass tells of itself.
    """

    def __init__(self, name: str, factory: str, arguments: tuple, threads: int,
                 environment: Mapping[str, str] | None = None, timeout_s: float | None = None):  # fmt: skip
        self.seconds = 0.0
        self.info: dict[str, Any] = {}
        inherited = {key: value for key, value in os.environ.items() if key not in machine.THREAD_VARIABLES}
        super().__init__(name, "rnnpar.backends.peers:Timed", (factory, arguments), threads=threads,
                         environment=inherited | dict(environment or {}), limit_s=timeout_s or TIMEOUT_S)  # fmt: skip

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.calls(x, h0, 1)[1:]

    def calls(self, x: np.ndarray, h0: np.ndarray, count: int) -> tuple[list[float], np.ndarray, np.ndarray]:
        """The seconds of `count` calls, one right after another, and y and h of the last."""
        seconds, y, h, self.info = self.ask("calls", _writeable(x), _writeable(h0), count)
        self.seconds = seconds[-1]
        return seconds, _writeable(y), _writeable(h)

    def device_calls(self, x: np.ndarray, h0: np.ndarray, count: int) -> tuple[list[float], np.ndarray, np.ndarray]:
        """The seconds of `count` calls on a GPU, from device arrays to device arrays, and y and h of the last."""
        seconds, y, h, self.info = self.ask("device_calls", _writeable(x), _writeable(h0), count)
        return seconds, _writeable(y), _writeable(h)


class Timed:
    """In the process: the forward pass, whose calls are timed; it is asked whatever else by the name of its method."""

    def __init__(self, factory: str, arguments: tuple):
        self._forward = processes.imported(factory)(*arguments)

    def calls(self, x: np.ndarray, h0: np.ndarray, count: int) -> tuple[list[float], Any, Any, dict[str, Any]]:
        return *timed_calls(self._forward, x, h0, count), getattr(self._forward, "info", {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forward, name)


def _writeable(array: np.ndarray) -> np.ndarray:
    """`array`, or a copy that may be written to: a read-only one stays so on its way through a pipe."""
    return array if array.flags.writeable else array.copy()


def timed_calls(forward: Forward, x: Any, h0: Any, count: int) -> tuple[list[float], Any, Any]:
    """Seconds of `count` calls, one right after another, and y and h of the last."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        y, h = forward(x, h0)
        seconds.append(time.perf_counter() - start)
    return seconds, y, h
