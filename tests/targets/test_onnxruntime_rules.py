from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from small_graphs import Array, build, random, run
from written import Written, write_for

from onnx_obc.core.level import Choice, parse_level
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.targets.registry import TARGETS

IMAGE = {"x": (2, 8, 8, 8)}
FLOAT_PRODUCTS = {"Conv", "FusedConv", "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "ConvTranspose", "MatMulNBits"}


def conv(x: str, y: str, *weights: str, **attributes: Any) -> onnx.NodeProto:
    """A Conv named after its output; 3 × 3 if not told otherwise."""
    return helper.make_node("Conv", [x, *weights], [y], name=f"conv_{y}", **({"pads": [1, 1, 1, 1]} | attributes))


def op(kind: str, inputs: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [y], name=f"{kind.lower()}_{y}", **attributes)


WEIGHTS = {
    "w": random(8, 8, 3, 3),
    "v": random(8, 8, 3, 3, seed=2),
    "u": random(8, 8, 3, 3, seed=3),
    "d": random(8, 1, 3, 3),
    "b": random(8),
    "c": random(8, seed=2),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "one": np.array(1, np.float32),
    "minus": np.array(-3, np.float32),
}
PRODUCTS = {
    "m": random(16, 12),
    "mt": random(12, 16),
    "n": random(12, 8),
    "k": random(16, 8, seed=1),
    "b": random(12),
    "c": random(8),
    "one": np.array([2.0], np.float32),
}


def image(*nodes: onnx.NodeProto, outputs: str = "y") -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    return build(nodes, IMAGE, dict.fromkeys(outputs.split()), {k: v for k, v in WEIGHTS.items() if k in read})


def product(*nodes: onnx.NodeProto, rank: int = 2, outputs: str = "y") -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    shape = (5, 16) if rank == 2 else (2,) * (rank - 2) + (5, 16)
    return build(nodes, {"x": shape}, dict.fromkeys(outputs.split()), {k: v for k, v in PRODUCTS.items() if k in read})


def optimized(written: Written, folder: Path) -> tuple[list[str], list[Array]]:
    """The operators that onnxruntime makes of a model, and its outputs with them."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(written.model.SerializeToString(), options, ["CPUExecutionProvider"])
    found = session.run(None, written.feed)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node], list(found)


def signal_to_noise(found: Array, expected: Array) -> float:
    """In decibels."""
    noise = float(((found.astype(np.float64) - expected) ** 2).sum())
    return 10 * np.log10(float((expected.astype(np.float64) ** 2).sum()) / noise) if noise > 0 else np.inf


def check_numbers(proto: onnx.ModelProto, written: Written, found: list[Array], decibels: float = 28) -> None:
    """Near the dense model, and, step by step or fused, nearly the same."""
    for dense, plain, fused in zip(run(proto, written.feed), run(written.model, written.feed), found, strict=True):
        assert fused.shape == dense.shape
        assert signal_to_noise(plain, dense) > decibels
        assert signal_to_noise(fused, plain) > decibels


# ------------------------------------------------ onnxruntime: what runs in integers

CONVOLUTIONS = {
    "conv-relu-conv": (image(conv("x", "a", "w", "b"), op("Relu", "a", "r"), conv("r", "y", "v", "c")), 2),
    "without bias": (image(conv("x", "a", "w"), op("Relu", "a", "r"), conv("r", "y", "v")), 2),
    "conv-conv": (image(conv("x", "a", "w", "b"), conv("a", "y", "v")), 2),
    "clip": (image(conv("x", "a", "w", "b"), op("Clip", "a zero six", "r"), conv("r", "y", "v")), 2),
    "clip below zero": (image(conv("x", "a", "w", "b"), op("Clip", "a minus six", "r"), conv("r", "y", "v")), 2),
    "clip above zero": (image(conv("x", "a", "w", "b"), op("Clip", "a one six", "r"), conv("r", "y", "v")), 2),
    "residual": (
        image(
            conv("x", "a", "w", "b"),
            op("Relu", "a", "r"),
            conv("r", "s", "v", "c"),
            op("Add", "s x", "t"),
            op("Relu", "t", "q"),
            conv("q", "y", "u"),
        ),
        3,
    ),
    "several readers": (
        image(
            conv("x", "a", "w", "b"),
            op("Relu", "a", "r"),
            op("Sigmoid", "a", "s"),
            conv("r", "y", "v"),
            conv("s", "z", "u"),
            outputs="y z",
        ),
        3,
    ),
    "relu with several readers": (
        image(
            conv("x", "a", "w", "b"),
            op("Relu", "a", "r"),
            op("Sigmoid", "r", "s"),
            conv("r", "y", "v"),
            conv("r", "z", "u"),
            outputs="y z s",
        ),
        3,
    ),
    "depthwise": (image(conv("x", "a", "d", "b", group=8), op("Relu", "a", "r"), conv("r", "y", "v")), 2),
    "output and read": (image(conv("x", "a", "w", "b"), conv("a", "y", "v"), outputs="a y"), 2),
    "relu output and read": (
        image(conv("x", "a", "w", "b"), op("Relu", "a", "r"), conv("r", "y", "v"), outputs="r y"),
        2,
    ),
    "shared input": (image(conv("x", "y", "w", "b"), conv("x", "z", "v"), outputs="y z"), 2),
    "tied weight": (image(conv("x", "a", "w", "b"), op("Relu", "a", "r"), conv("r", "y", "w")), 2),
}


@pytest.mark.parametrize("level", ["int8", "int8-asym", "int6"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_run_in_integers(name: str, level: str, tmp_path: Path) -> None:
    proto, count = CONVOLUTIONS[name]
    written = write_for("onnxruntime", proto, level)
    assert written.remarks == {} == written.refused
    kinds, found = optimized(written, tmp_path)
    assert kinds.count("QLinearConv") == count
    assert not FLOAT_PRODUCTS & set(kinds)
    check_numbers(proto, written, found, 22 if level == "int6" else 28)
    assert [value.name for value in written.model.graph.output] == [value.name for value in proto.graph.output]


@pytest.mark.parametrize("level", ["int8", "int8-asym"])
@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int, level: str, tmp_path: Path) -> None:
    weights = {"w": random(4, 4, *[3] * rank), "v": random(4, 4, *[3] * rank, seed=1), "b": random(4)}
    nodes = [conv("x", "a", "w", "b", pads=[1] * 2 * rank), op("Relu", "a", "r"), conv("r", "y", "v", pads=None)]
    del nodes[2].attribute[:]
    proto = build(nodes, {"x": (2, 4, *[6] * rank)}, {"y": None}, weights)
    written = write_for("onnxruntime", proto, level)
    kinds, found = optimized(written, tmp_path)
    assert kinds.count("QLinearConv") == 2
    check_numbers(proto, written, found)


GEMM, MATMUL, QLINEAR = "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"
CHAIN = [op("MatMul", "x m", "a"), op("Add", "a b", "s"), op("Relu", "s", "r"), op("MatMul", "r n", "y")]
MATRIX_PRODUCTS = {
    "matmul": (product(op("MatMul", "x m", "y")), [MATMUL]),
    "matmul 3-D": (product(op("MatMul", "x m", "y"), rank=3), [MATMUL]),
    "matmul bias": (product(op("MatMul", "x m", "a"), op("Add", "a b", "y")), [GEMM]),
    "matmul bias first": (product(op("MatMul", "x m", "a"), op("Add", "b a", "y")), [GEMM]),
    "matmul 3-D bias": (product(op("MatMul", "x m", "a"), op("Add", "a b", "y"), rank=3), [MATMUL]),
    "matmul 4-D bias": (product(op("MatMul", "x m", "a"), op("Add", "b a", "y"), rank=4), [MATMUL]),
    "matmul 3-D bias gelu": (
        product(
            op("MatMul", "x m", "a"), op("Add", "a b", "s"), op("Tanh", "s", "t"), op("MatMul", "t n", "y"), rank=3
        ),
        [MATMUL, MATMUL],
    ),
    "matmul chain": (product(*CHAIN), [GEMM, MATMUL]),
    "matmul 3-D chain": (product(*CHAIN, rank=3), [MATMUL, MATMUL]),
    "matmul matmul": (product(op("MatMul", "x m", "a"), op("MatMul", "a n", "y")), [QLINEAR, MATMUL]),
    "gemm": (product(op("Gemm", "x m", "y")), [GEMM]),
    "gemm alpha": (product(op("Gemm", "x m", "y", alpha=0.5)), [GEMM]),
    "gemm transB": (product(op("Gemm", "x mt", "y", transB=1)), [GEMM]),
    "gemm bias": (product(op("Gemm", "x m b", "y")), [GEMM]),
    "gemm transB bias": (product(op("Gemm", "x mt b", "y", transB=1)), [GEMM]),
    "gemm alpha bias": (product(op("Gemm", "x m b", "y", alpha=0.5)), [GEMM]),
    "gemm bias of one": (product(op("Gemm", "x m one", "y")), [GEMM]),
    "gemm relu gemm": (
        product(op("Gemm", "x m b", "a"), op("Relu", "a", "r"), op("Gemm", "r n c", "y")),
        [GEMM, GEMM],
    ),
    "gemm tanh gemm": (
        product(op("Gemm", "x m b", "a"), op("Tanh", "a", "r"), op("Gemm", "r n c", "y")),
        [GEMM, GEMM],
    ),
    "gemm read twice": (
        product(op("Gemm", "x m b", "a"), op("Tanh", "a", "z"), op("Gemm", "a n c", "y"), outputs="z y"),
        [GEMM, GEMM],
    ),
    "gemm output and read": (product(op("Gemm", "x m b", "a"), op("Gemm", "a n c", "y"), outputs="a y"), [GEMM, GEMM]),
    "shared input": (product(op("MatMul", "x m", "y"), op("MatMul", "x k", "z"), outputs="y z"), [MATMUL, MATMUL]),
}


@pytest.mark.parametrize("level", ["int8", "int8-asym"])
@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
def test_matrix_products_run_in_integers(name: str, level: str, tmp_path: Path) -> None:
    proto, expected = MATRIX_PRODUCTS[name]
    written = write_for("onnxruntime", proto, level)
    assert written.remarks == {} == written.refused
    kinds, found = optimized(written, tmp_path)
    assert sorted(kind for kind in kinds if kind in (GEMM, MATMUL, QLINEAR)) == sorted(expected)
    assert not FLOAT_PRODUCTS & set(kinds)
    check_numbers(proto, written, found)
    assert [value.name for value in written.model.graph.output] == [value.name for value in proto.graph.output]


def test_a_moved_bias_changes_no_number() -> None:
    for name in ("gemm bias", "gemm read twice", "gemm output and read", "matmul 3-D bias", "matmul bias"):
        proto, _ = MATRIX_PRODUCTS[name]
        model = ir.from_proto(proto)
        layers, _ = find_layers(model)
        choices = {layer.name: Choice(parse_level("int8"), 8) for layer in layers}
        TARGETS["onnxruntime"].prepare(model, layers, choices)
        feed = {"x": random(*[d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])}
        for found, expected in zip(run(model, feed), run(proto, feed), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_biases_stay_where_they_are_without_integers() -> None:
    proto = product(op("Gemm", "x m b", "y"))
    for level, activations in (("int8", None), ("int4", 8), ("2:4", None)):
        written = write_for("onnxruntime", proto, level, activations)
        (gemm,) = written.nodes("Gemm")
        assert gemm.input[2] == "b"


def test_biases_stay_where_a_quantized_output_lets_them() -> None:
    written = write_for("onnxruntime", MATRIX_PRODUCTS["gemm relu gemm"][0])
    first, last = written.nodes("Gemm")
    assert list(first.input[2:]) == ["b"]
    assert len(last.input) == 2
    (add,) = written.nodes("Add")
    assert list(add.input) == [last.output[0], "c"]


@pytest.mark.parametrize("skipped", ["conv_a", "conv_s", "conv_y"])
def test_a_layer_left_in_float_reads_no_dequantized_value(skipped: str, tmp_path: Path) -> None:
    proto, _ = CONVOLUTIONS["residual"]
    written = write_for("onnxruntime", proto, skip=(skipped,))
    (layer,) = (node for node in written.nodes("Conv") if node.name == skipped)
    for name in layer.input:
        producer = written.producer(name)
        assert producer is None or producer.op_type != "DequantizeLinear"
    _, found = optimized(written, tmp_path)
    optimal = onnx.load(tmp_path / "optimized.onnx")
    kept = [node for node in optimal.graph.node if node.name == skipped or skipped in node.name]
    assert [node.op_type in ("Conv", "FusedConv") for node in kept] == [True]
    check_numbers(proto, written, found)


def test_float_products_beside_integer_ones_stay_float(tmp_path: Path) -> None:
    proto = product(op("Gemm", "x m b", "a"), op("Relu", "a", "r"), op("Gemm", "r n c", "y"))
    for skipped in ("gemm_a", "gemm_y"):
        written = write_for("onnxruntime", proto, skip=(skipped,))
        kinds, found = optimized(written, tmp_path)
        assert kinds.count("QGemm") == 1
        assert len(FLOAT_PRODUCTS & set(kinds)) == 1
        check_numbers(proto, written, found)


@pytest.mark.parametrize("activations", [8, 4, None])
@pytest.mark.parametrize("level", ["int8", "int8-asym", "int4", "int4-asym", "int3", "int2", "int2-asym", "float"])
@pytest.mark.parametrize("name", ["conv", "matmul", "gemm"])
def test_every_pair_of_types_loads_and_is_right(name: str, level: str, activations: int | None, tmp_path: Path) -> None:
    protos = {
        "conv": CONVOLUTIONS["conv-relu-conv"][0],
        "matmul": MATRIX_PRODUCTS["matmul matmul"][0],
        "gemm": MATRIX_PRODUCTS["gemm relu gemm"][0],
    }
    written = write_for("onnxruntime", protos[name], level, activations if level != "float" else None)
    _, found = optimized(written, tmp_path)
    for fused, plain in zip(found, run(written.model, written.feed), strict=True):
        # MatMulNBits, which takes float activations, rounds them to 8 bits by itself
        assert signal_to_noise(fused, plain) > (24 if activations == 4 else 30)
    assert bool(written.activations) == (activations is not None and level not in ("int2", "int2-asym", "float"))


def test_layers_of_different_types_in_a_row(tmp_path: Path) -> None:
    proto = image(conv("x", "a", "w", "b"), op("Relu", "a", "r"), conv("r", "s", "v", "c"), conv("s", "y", "u"))
    for first in ("int8", "int4", "int2"):
        for second in ("int8", "int4", "int2"):
            for activations in (8, 4):
                levels = {"conv_a": first, "conv_s": second, "conv_y": first}
                written = write_for("onnxruntime", proto, levels, activations)
                _, found = optimized(written, tmp_path)
                (plain,) = run(written.model, written.feed)
                assert signal_to_noise(found[0], plain) > (15 if activations == 4 else 30)


def only_layer(node: onnx.NodeProto, x: tuple[int, ...], weight: Array) -> Layer:
    ((layer,), _) = find_layers(ir.from_proto(build([node], {"x": x}, {"y": None}, {"w": weight})))
    return layer


@pytest.mark.parametrize(
    ("layer", "level", "remark"),
    [
        (only_layer(op("ConvTranspose", "x w", "y"), (1, 4, 5, 5), random(4, 2, 3, 3)), "int8", "no integer ConvT"),
        (only_layer(op("MatMul", "w x", "y"), (4, 5), random(3, 4)), "int8", "constant left operand"),
        (only_layer(op("MatMul", "x w", "y"), (3, 5, 4), random(3, 4, 2)), "int8", "batched or grouped weights"),
        (only_layer(op("Gemm", "x w", "y"), (5, 4), random(4, 2)), "int2", "cannot load 2-bit weights"),
    ],
)
def test_inputs_that_stay_float(layer: Layer, level: str, remark: str, tmp_path: Path) -> None:
    bits, why = TARGETS["onnxruntime"].activation_bits(layer, Choice(parse_level(level), 8))
    assert bits is None
    assert why is not None
    assert remark in why
    assert TARGETS["onnxruntime"].activation_bits(layer, Choice(parse_level(level), None)) == (None, None)


def test_four_bit_activations_become_eight_beside_eight_bit_weights() -> None:
    layer = only_layer(op("Gemm", "x w", "y"), (5, 4), random(4, 2))
    rules = TARGETS["onnxruntime"]
    assert rules.activation_bits(layer, Choice(parse_level("int4"), 4)) == (4, None)
    bits, why = rules.activation_bits(layer, Choice(parse_level("int8"), 4))
    assert bits == 8
    assert why is not None
    assert "4-bit" in why


def test_a_left_out_input_leaves_the_surroundings_float(tmp_path: Path) -> None:
    nodes = [conv("x", "a", "w", "b"), op("Relu", "a", "r"), op("ConvTranspose", "r v", "y")]
    proto = image(*nodes)
    written = write_for("onnxruntime", proto)
    assert written.activations == ("x",)
    kinds, found = optimized(written, tmp_path)
    assert "ConvTranspose" in kinds
    check_numbers(proto, written, found)


def test_activations_are_quantized_once_each() -> None:
    for proto, _ in (*CONVOLUTIONS.values(), *MATRIX_PRODUCTS.values()):
        written = write_for("onnxruntime", proto)
        assert len(set(written.activations)) == len(written.activations)
        assert len(written.nodes("QuantizeLinear")) == len(written.activations)
        sources = [node.input[0] for node in written.nodes("QuantizeLinear")]
        assert len(set(sources)) == len(sources)


def test_readers_inside_bodies_keep_reading_the_value_itself() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    choice = helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)
    nodes = [conv("x", "a", "w", "b"), choice, conv("a", "y", "v")]
    weights = {key: WEIGHTS[key] for key in "wbv"} | {"yes": np.array(True)}
    proto = build(nodes, IMAGE, {"y": None, "z": None}, weights)
    written = write_for("onnxruntime", proto)
    (kept,) = written.nodes("If")
    assert kept.attribute[0].g.node[0].input[0] == "a"
    dense, plain = run(proto, written.feed), run(written.model, written.feed)
    np.testing.assert_allclose(plain[1], np.maximum(dense[1], 0), atol=0.5)


@pytest.mark.parametrize("kind", ["Relu", "Add"])
def test_a_layer_that_only_a_body_reads(kind: str) -> None:
    inner = helper.make_node(kind, ["a"] if kind == "Relu" else ["a", "b"], ["inner"])
    body = helper.make_graph(
        [inner], "body", [], [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)]
    )
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body)
    yes = {"yes": np.array(True)}
    if kind == "Relu":
        proto = build([conv("x", "a", "w"), choice], IMAGE, {"y": None}, yes | {"w": WEIGHTS["w"]})
    else:
        weights = yes | {key: PRODUCTS[key] for key in "mb"}
        proto = build([op("MatMul", "x m", "a"), choice], {"x": (2, 5, 16)}, {"y": None}, weights)
    written = write_for("onnxruntime", proto)
    assert written.activations == ("x",)
    (body_after,) = {attribute.g.SerializeToString() for attribute in written.nodes("If")[0].attribute}
    assert body_after == body.SerializeToString()
    assert signal_to_noise(run(written.model, written.feed)[0], run(proto, written.feed)[0]) > 28


# ------------------------------------------------ TensorRT

EVERYTHING = (
    *((f"conv {name}", proto) for name, (proto, _) in CONVOLUTIONS.items()),
    *((name, proto) for name, (proto, _) in MATRIX_PRODUCTS.items()),
    ("conv transpose", image(op("ConvTranspose", "x w b", "a"), op("Relu", "a", "r"), conv("r", "y", "v"))),
)


@pytest.mark.parametrize(("name", "proto"), EVERYTHING, ids=[name for name, _ in EVERYTHING])
def test_tensorrt_rules_hold_in_the_written_graph(name: str, proto: onnx.ModelProto) -> None:
    written = write_for("tensorrt", proto)
    assert written.refused == {}
    axes = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
    for node in written.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = written.constant(node.input[2])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (written.constant(node.input[1]) > 0).all()
    weighted = written.nodes("Conv", "ConvTranspose", "MatMul", "Gemm")
    assert weighted
    for node in weighted:
        data, weight = (written.producer(node.input[i]) for i in (0, 1))
        assert data is not None and weight is not None
        assert data.op_type == weight.op_type == "DequantizeLinear"
        quantize = written.producer(data.input[0])
        assert quantize is not None
        assert quantize.op_type == "QuantizeLinear"
        assert written.constant(data.input[1]).shape == ()  # per tensor
        scale, codes = written.constant(weight.input[1]), written.constant(weight.input[0])
        axis = {a.name: a.i for a in weight.attribute}["axis"]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        assert axis == axes.get(node.op_type, 0 if transposed else 1)
        assert scale.shape == (codes.shape[axis],)
        if len(node.input) > 2:
            assert written.producer(node.input[2]) is None
            assert written.constant(node.input[2]).dtype == np.float32
    outputs = {node.output[0] for node in weighted}
    inputs = {name for node in weighted for name in node.input[:2]}
    for node in written.nodes("QuantizeLinear"):  # an output is quantized only where it is another layer's input
        if node.input[0] in outputs:
            (dequantize,) = (n for n in written.nodes("DequantizeLinear") if n.input[0] == node.output[0])
            assert dequantize.output[0] in inputs
    assert [value.name for value in written.model.graph.output] == [value.name for value in proto.graph.output]
    for plain, dense in zip(run(written.model, written.feed), run(proto, written.feed), strict=True):
        assert signal_to_noise(plain, dense) > 25


@pytest.mark.parametrize(
    ("node", "x", "weight"),
    [
        (op("Conv", "x w", "y"), (1, 4, 5, 5), (1, 4, 3, 3)),
        (op("ConvTranspose", "x w", "y"), (1, 4, 5, 5), (4, 1, 3, 3)),
    ],
)
def test_tensorrt_takes_one_output_channel(node: onnx.NodeProto, x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    proto = build([node], {"x": x}, {"y": None}, {"w": random(*weight)})
    written = write_for("tensorrt", proto)
    assert written.refused == {} and written.activations == ("x",)
    assert signal_to_noise(run(written.model, written.feed)[0], run(proto, written.feed)[0]) > 28


@pytest.mark.parametrize("order", ["s x", "x s"])
def test_tensorrt_quantizes_the_skip_branch_alone(order: str) -> None:
    nodes = [conv("x", "a", "w", "b"), op("Relu", "a", "r"), conv("r", "s", "v", "c"), op("Add", order, "y")]
    written = write_for("tensorrt", image(*nodes))
    (add,) = written.nodes("Add")
    by_name = {
        name: producer.op_type if (producer := written.producer(name)) is not None else None for name in add.input
    }
    assert sorted(str(kind) for kind in by_name.values()) == ["Conv", "DequantizeLinear"]
    assert by_name["s"] == "Conv"


def test_tensorrt_adds_of_constants_and_of_two_convolutions() -> None:
    constant = image(conv("x", "a", "w"), op("Add", "a one", "y"))
    assert write_for("tensorrt", constant).activations == ("x",)
    both = image(conv("x", "a", "w"), conv("x", "s", "v"), op("Add", "a s", "y"))
    written = write_for("tensorrt", both)
    assert written.activations == ("x", "s")
    (add,) = written.nodes("Add")
    assert add.input[0] == "a"


def test_tensorrt_leaves_the_skip_branch_of_a_convolution_that_others_read_too() -> None:
    shared = image(conv("x", "a", "w"), op("Add", "a x", "y"), op("Relu", "a", "z"), outputs="y z")
    (add,) = write_for("tensorrt", shared).nodes("Add")
    assert list(add.input) == ["a", "x"]


@pytest.mark.parametrize(
    ("node", "x", "weight", "level", "activations", "reason"),
    [
        (op("Gemm", "x w", "y"), (5, 4), (4, 2), "int8-asym", 8, "symmetric weights only"),
        (op("Gemm", "x w", "y"), (5, 4), (4, 2), "int4", 8, "no kernel for int4"),
        (op("Gemm", "x w", "y"), (5, 4), (4, 2), "int8", 4, "no 4-bit integer activations"),
        (op("MatMul", "x w", "y"), (3, 5, 4), (3, 4, 2), "int8", 8, "one scale for each output channel"),
        (op("ConvTranspose", "x w", "y", group=2), (1, 4, 5, 5), (4, 3, 3, 3), "int8", 8, "one scale for each output"),
    ],
)
def test_tensorrt_refuses(
    node: onnx.NodeProto,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    level: str,
    activations: int | None,
    reason: str,
) -> None:
    layer = only_layer(node, x, random(*weight))
    why = TARGETS["tensorrt"].unsupported(layer, Choice(parse_level(level), activations))
    assert why is not None
    assert reason in why
    assert TARGETS["tensorrt"].unsupported(layer, Choice(parse_level("sparse-0.5"), None)) is None


def test_a_clip_before_4_bits_loads(tmp_path: Path) -> None:
    """onnxruntime 1.32 does not load a Clip whose only reader is a QuantizeLinear to 4 bits."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Clip", ["h", "low", "high"], ["r"], name="relu6"),
        helper.make_node("Conv", ["r", "v", "b"], ["y"], name="second"),
    ]
    weights = {"w": random(4, 4, 1, 1), "v": random(4, 4, 1, 1, seed=1), "b": random(4)}
    bounds = {"low": np.array(0, np.float32), "high": np.array(0.5, np.float32)}
    proto = build(nodes, {"x": [2, 4, 3, 3]}, {"y": [2, 4, 3, 3]}, weights | bounds)
    for levels in ("int4", {"first": "int8", "second": "int4"}):
        written = write_for("onnxruntime", proto, levels, 4)
        assert not written.nodes("Clip") and len(written.nodes("Max", "Min")) == 2
        assert written.activations == ("x", "r")
        _, found = optimized(written, tmp_path)
        check_numbers(proto, written, found, decibels=8)


@pytest.mark.parametrize("moved", [(), ("Transpose",), ("Transpose", "Transpose")])
def test_a_max_pool_before_4_bits_loads(moved: tuple[str, ...], tmp_path: Path) -> None:
    """onnxruntime moves a 4-bit QuantizeLinear before a MaxPool, and then does not load that."""
    values = ["p", *(f"t{i}" for i in range(len(moved)))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="first"),
        helper.make_node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2], name="pool"),
        *(helper.make_node(kind, [values[i]], [values[i + 1]], perm=[0, 1, 3, 2]) for i, kind in enumerate(moved)),
        helper.make_node("Conv", [values[-1], "v"], ["y"], name="second"),
    ]
    weights = {"w": random(4, 4, 1, 1), "v": random(4, 4, 1, 1, seed=1)}
    proto = build(nodes, {"x": [2, 4, 4, 4]}, {"y": [2, 4, 3, 3]}, weights)
    for levels in ("int4", {"first": "int8", "second": "int4"}):
        written = write_for("onnxruntime", proto, levels, 4)
        assert written.activations == ("x", values[-1]) or written.activations == ("x", values[-1], "h")
        _, found = optimized(written, tmp_path)
        check_numbers(proto, written, found, decibels=8)


@pytest.mark.parametrize("outputs", [4, 5, 6, 12])
def test_two_bit_products_are_right_or_refused(outputs: int) -> None:
    weights = {"w": random(16, outputs)}
    written = write_for(
        "onnxruntime", build([op("MatMul", "x w", "y")], {"x": (5, 16)}, {"y": (5, outputs)}, weights), "int2", None
    )
    assert bool(written.refused) == bool(outputs % 4)
    session = onnxruntime.InferenceSession(written.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert signal_to_noise(session.run(None, written.feed)[0], run(written.model, written.feed)[0]) > 20
