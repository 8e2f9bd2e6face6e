"""Graphs written by hand, node by node: forms that no exporter writes today, or that need no framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .case import Case, Input, feeds

X16 = {"x": Input(("batch", 16))}
IMAGE = {"x": Input(("batch", 8, 9, 9))}


def graph_case(
    name: str,
    text: str,
    weights: Callable[[np.random.Generator], dict[str, np.ndarray]],
    inputs: dict[str, Input] = X16,
    *,
    change: Callable[[onnx.ModelProto], None] = lambda model: None,
) -> Case:
    """A model in ONNX's textual form, its initializers, and what is then done to it."""

    def build(path: Path) -> None:
        model = onnx.parser.parse_model(text)
        for key, value in weights(np.random.default_rng(0)).items():
            model.graph.initializer.append(numpy_helper.from_array(value, key))
        change(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)

    return Case(name, build, feeds(inputs))


def normal(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """Float32 weights of these shapes, scaled by the square root of their mean dimension."""
    return lambda rng: {
        name: (rng.standard_normal(shape) / np.sqrt(np.mean(shape))).astype(np.float32)
        for name, shape in shapes.items()
    }


def initializers_as_inputs(model: onnx.ModelProto) -> None:
    """As every file of IR version 3 had it."""
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))


def constants(model: onnx.ModelProto) -> None:
    """Weights as Constant nodes, no initializer left."""
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    rest = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes + rest)


def unnamed(model: onnx.ModelProto) -> None:
    """Nodes without names, value names that are no identifiers."""
    names = {t.name: f"layers/0.{t.name}:0 (kernel)" for t in model.graph.initializer}
    for t in model.graph.initializer:
        t.name = names[t.name]
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            node.name = ""
            node.input[:] = [names.get(i, i) for i in node.input]
            graphs += [a.g for a in node.attribute if a.HasField("g")]


def half_stored(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "v": rng.standard_normal((8, 16)).astype(np.float16) / np.float16(4),
        "w": rng.standard_normal((12, 8)).astype(np.float32) / 3,
    }


def all_half(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w": rng.standard_normal((16, 8)).astype(np.float16) / np.float16(4)}


def quantized(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "codes": rng.integers(-127, 128, (8, 16)).astype(np.int8),
        "scale": np.full(8, 0.01, np.float32),
        "zero": np.zeros(8, np.int8),
        "w": rng.standard_normal((8, 4)).astype(np.float32) / 3,
    }


def integers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "codes": rng.integers(-127, 128, (16, 16)).astype(np.int8),
        "w": rng.standard_normal((16, 8)).astype(np.float32) / 500,
    }


def doubles(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"v": rng.standard_normal((16, 8)) / 4, "w": rng.standard_normal((8, 4)).astype(np.float32) / 3}


def broken_rows(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A row of zeros, a constant row, and rows that differ in size by twelve orders of magnitude."""
    w = rng.standard_normal((16, 8)).astype(np.float32) / 4
    w[:, 0], w[:, 1] = 0, 0.5
    w[:, 2] *= np.float32(1e-6)
    w[:, 3] *= np.float32(1e6)
    return {"w": w}


IF = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  h = MatMul (x, a)
  r = ReduceMean <keepdims = 0> (h)
  zero = Constant <value = float {0}> ()
  up = Greater (r, zero)
  y = If (up) <
    then_branch = yes () => (float[batch, 8] p) { p = MatMul (h, b) },
    else_branch = no () => (float[batch, 8] q) { g = Relu (h)  q = Gemm <transB = 1> (g, c) }>
}"""

LOOP = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 4] y) {
  n = Constant <value_int = 3> ()
  yes = Constant <value = bool {1}> ()
  h = Loop (n, yes, x) <
    body = step (int64 i, bool go, float[batch, 16] s) => (bool on, float[batch, 16] t) {
      on = Identity (go)
      m = MatMul (s, a)
      t = Tanh (m)
    }>
  y = MatMul (h, b)
}"""

FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  h = local.dense (x, a, c)
  y = local.dense (h, b, e)
}
<domain: "local", opset_import: ["" : 17]>
dense (x, w, bias) => (y) {
  m = MatMul (x, w)
  s = Add (m, bias)
  y = Relu (s)
}"""

GEMM = """<ir_version: 7, opset_import: ["" : 13]>
net (float[batch, 16] x) => (float[4, batch] y) {
  h = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, a, c)
  r = Relu (h)
  g = Gemm <alpha = 1.5, beta = 0.25> (r, b, e)
  t = Transpose <perm = [1, 0]> (g)
  y = Gemm <transA = 1, transB = 1> (d, g)
}"""

AUTO_PAD = """<ir_version: 7, opset_import: ["" : 12]>
net (float[batch, 8, 9, 9] x) => (float[batch, 5, h, w] y) {
  a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, u, b)
  r = Relu (a)
  c = Conv <auto_pad = "SAME_LOWER", kernel_shape = [2, 4]> (r, v)
  s = Relu (c)
  d = Conv <auto_pad = "VALID"> (s, w1)
  y = ConvTranspose <output_shape = [6, 6], strides = [2, 2]> (d, z)
}"""

PADS = """<ir_version: 9, opset_import: ["" : 19]>
net (float[batch, 8, 9, 9] x) => (float[batch, 16, h, w] y) {
  p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 2, 2]> ()
  q = Pad (x, p)
  a = Conv <pads = [0, 1, 2, 3], strides = [2, 1]> (q, u)
  b = BatchNormalization (a, gamma, beta, mean, var)
  y = Clip (b, low, high)
}"""

CHAIN = """<ir_version: 7, opset_import: ["" : 13]>
net (float[batch, 16] x) => (float[batch, 12] y) {
  f = Cast <to = 1> (v)
  t = Transpose <perm = [1, 0]> (f)
  i = Identity (t)
  h = MatMul (x, i)
  r = Relu (h)
  y = Gemm <transB = 1> (r, w)
}"""

HALF = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  h = Cast <to = 10> (x)
  m = MatMul (h, w)
  y = Cast <to = 1> (m)
}"""

QUANTIZED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 4] y) {
  v = DequantizeLinear <axis = 0> (codes, scale, zero)
  h = Gemm <transB = 1> (x, v)
  r = Relu (h)
  y = MatMul (r, w)
}"""

ONE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) { y = MatMul (x, w) }"""

VECTOR = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch] y, float[batch, 8] h) {
  h = MatMul (x, w)
  y = MatMul (h, vector)
}"""

SHARED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 16] y, float[batch, 16] z) {
  h = MatMul (x, w)
  r = Relu (h)
  y = Gemm <transB = 1> (r, w)
  n = ReduceL2 <axes = [1], keepdims = 0> (w)
  z = Div (y, n)
}"""

BATCHED = """<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 2, 3, 5, 16] x) => (float[batch, 2, 3, 5, 8] y) { y = MatMul (x, w) }"""

LEFT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16, 6] x) => (float[batch, 4, 6] y) {
  h = MatMul (a, x)
  r = Relu (h)
  y = MatMul (b, r)
}"""

MIXED = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  h = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (x, a)
  g = com.microsoft.BiasGelu (h, c)
  y = MatMul (g, b)
}"""

UNRANKED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[16] x, int64[n] shape) => (float[8] y, float z, int64 best) {
  h = MatMul (x, a)
  g = MatMul (h, b)
  y = Identity (g)
  r = Reshape (h, shape)
  z = MatMul (r, b)
  best = ArgMax <keepdims = 0> (g)
}"""

EXPOSED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 16] h, float[batch, 8] y, float[16, 8] b, float[batch, 8] twice) {
  h = MatMul (x, a)
  y = MatMul (h, b)
  y_dequantized = Relu (y)
  twice = Add (y_dequantized, y_dequantized)
}"""

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 8, 9, 9] x) => (float[batch, 8, 9, 9] y, float[batch, 8, 9, 9] z) {
  c = Conv <pads = [1, 1, 1, 1]> (x, u)
  n = BatchNormalization (c, gamma, beta, mean, var)
  y = Add (n, c)
  s = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x)
  d = Conv <pads = [1, 1, 1, 1]> (y, u, s)
  z, unused = Dropout (d)
}"""

NINE = """<ir_version: 4, opset_import: ["" : 9]>
net (float[batch, 8, 9, 9] x) => (float[batch, 10] y) {
  p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], mode = "reflect"> (x)
  c = Conv <group = 2> (p, u)
  n = BatchNormalization <epsilon = 0.001> (c, gamma, beta, mean, var)
  r = Clip <min = 0.0, max = 6.0> (n)
  s = Slice <axes = [2, 3], starts = [1, 1], ends = [9, 9]> (r)
  m = Upsample <mode = "nearest"> (s, sizes)
  g = GlobalAveragePool (m)
  f = Flatten (g)
  q = Squeeze <axes = [0]> (bias)
  y = Gemm <transB = 1> (f, w, q)
}"""

DOUBLE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 4] y) {
  d = Cast <to = 11> (x)
  m = MatMul (d, v)
  f = Cast <to = 1> (m)
  y = MatMul (f, w)
}"""

FLAT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  zero = Constant <value = float {0}> ()
  nothing = Mul (x, zero)
  h = MatMul (nothing, a)
  i = Add (h, c)
  j = MatMul (i, b)
  k = MatMul (x, b)
  y = Add (j, k)
}"""

SCAN = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[5, batch, 16] y) {
  h = MatMul (x, a)
  last, y = Scan <num_scan_inputs = 1, body = step (float[batch, 16] s, float[16] k)
      => (float[batch, 16] t, float[batch, 16] o) { g = MatMul (s, a)  t = Mul (g, k)  o = Add (t, h) }> (h, ks)
}"""

SEQUENCE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  parts = SplitToSequence <axis = 1, keepdims = 1> (x, eight)
  one = Constant <value = int64 {1}> ()
  right = SequenceAt (parts, one)
  h = MatMul (right, a)
  more = SequenceInsert (parts, h)
  all = ConcatFromSequence <axis = 1> (more)
  y = MatMul (all, b)
}"""

INTEGERS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 16] x) => (float[batch, 8] y) {
  q, scale, zero = DynamicQuantizeLinear (x)
  m = MatMulInteger (q, codes, zero)
  f = Cast <to = 1> (m)
  h = Mul (f, scale)
  y = MatMul (h, w)
}"""

RESIZE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 8, 9, 9] x) => (float[batch, 12, 18, 18] y) {
  c = Conv <kernel_shape = [1, 1]> (x, u)
  r = Resize <mode = "linear"> (c, , scales)
  p, indices = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)
  y = Conv (p, v)
}"""

AB = normal(a=(16, 16), b=(16, 8), c=(8, 16))
CASES: list[Case] = [
    graph_case("if", IF, AB),
    graph_case("loop", LOOP, normal(a=(16, 16), b=(16, 4))),
    graph_case("function", FUNCTION, normal(a=(16, 16), b=(16, 8), c=(16,), e=(8,))),
    graph_case("gemm-alpha-beta", GEMM, normal(a=(12, 16), b=(12, 8), c=(12,), d=(8, 4), e=(1, 8))),
    graph_case("auto-pad", AUTO_PAD,
               normal(u=(16, 8, 3, 3), b=(16,), v=(12, 16, 2, 4), w1=(8, 12, 3, 3), z=(8, 5, 2, 2)), IMAGE),
    graph_case("pads", PADS, lambda rng: normal(u=(16, 8, 3, 3), gamma=(16,), beta=(16,), mean=(16,))(rng)
               | {"var": np.linspace(0.1, 4, 16, dtype=np.float32), "low": np.array(0, np.float32),
                  "high": np.array(6, np.float32)}, IMAGE),
    graph_case("weight-chain", CHAIN, half_stored),
    graph_case("half", HALF, all_half),
    graph_case("quantized-already", QUANTIZED, quantized),
    graph_case("broken-rows", ONE, broken_rows),
    graph_case("vector", VECTOR, normal(w=(16, 8), vector=(8,))),
    graph_case("shared-three-ways", SHARED, normal(w=(16, 16))),
    graph_case("batched", BATCHED, normal(w=(2, 3, 16, 8)), {"x": Input(("batch", 2, 3, 5, 16))}),
    graph_case("left", LEFT, normal(a=(8, 16), b=(1, 4, 8)), {"x": Input(("batch", 16, 6))}),
    graph_case("foreign-operators", MIXED, normal(a=(16, 16), b=(16, 8), c=(16,))),
    graph_case("ir3-inputs", IF.replace("ir_version: 8", "ir_version: 3").replace("17", "11"), AB,
               change=initializers_as_inputs),
    graph_case("constant-nodes", LEFT, normal(a=(8, 16), b=(1, 4, 8)), {"x": Input(("batch", 16, 6))},
               change=constants),
    graph_case("odd-names", IF, AB, change=unnamed),
    graph_case("unranked", UNRANKED, normal(a=(16, 16), b=(16, 8)),
               {"x": Input((16,)), "shape": Input((1,), 17, 16)}),
    graph_case("exposed-values", EXPOSED, normal(a=(16, 16), b=(16, 8))),
    graph_case("branches", BRANCHES, lambda rng: normal(u=(8, 8, 3, 3), gamma=(8,), beta=(8,), mean=(8,))(rng)
               | {"var": np.linspace(0.1, 4, 8, dtype=np.float32)}, IMAGE),
    graph_case("opset-9", NINE, lambda rng:
               normal(u=(16, 4, 3, 3), gamma=(16,), beta=(16,), mean=(16,), w=(10, 16), bias=(1, 10))(rng)
               | {"var": np.ones(16, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32)}, IMAGE),
    graph_case("double", DOUBLE, doubles),
    graph_case("flat-activations", FLAT, normal(a=(16, 16), b=(16, 8), c=(16,))),
    graph_case("scan", SCAN, normal(a=(16, 16), ks=(5, 16))),
    graph_case("sequence", SEQUENCE, lambda rng: normal(a=(8, 4), b=(20, 8))(rng) | {"eight": np.array(8)}),
    graph_case("integers-already", INTEGERS, integers),
    graph_case("resize", RESIZE, lambda rng: normal(u=(16, 8, 1, 1), v=(12, 16, 1, 1))(rng)
               | {"scales": np.array([1, 1, 2, 2], np.float32)}, IMAGE),
    graph_case("fixed-batch-one", ONE.replace("batch", "1"), normal(w=(16, 8)), {"x": Input((1, 16))}),
]  # fmt: skip
