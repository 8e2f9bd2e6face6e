from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from small_graphs import Array, build, random, run
from written import random_solution, rounded, write_for

from onnx_obc.core.level import Choice, parse_level
from onnx_obc.core.solution import Grid
from onnx_obc.graph.edit import names_of
from onnx_obc.graph.fold import remove_unused
from onnx_obc.graph.layers import Layer, find_embeddings, find_layers
from onnx_obc.graph.opset import raise_opset
from onnx_obc.graph.scales import opset_needed, scale_layout, storage_type
from onnx_obc.graph.write import Activation, Writer, activation_grid
from onnx_obc.targets.registry import TARGETS

node = helper.make_node


def written_weight(model: ir.Model, layer: Layer, level: str) -> tuple[Array, Array]:
    """The weight that onnxruntime dequantizes from the written model, and the one of the solution."""
    solution = random_solution(layer, parse_level(level))
    writer = Writer(model)
    where = writer.weight(layer, solution)
    remove_unused(model)
    proto = ir.to_proto(model)
    proto.graph.output.append(helper.make_tensor_value_info(where.name, onnx.TensorProto.FLOAT, None))
    feed = {i.name: random(*(d.dim_value for d in i.type.tensor_type.shape.dim)) for i in proto.graph.input}
    return run(proto, feed)[-1], layer.tensor(solution.weights)


LAYERS = {  # node, input, weight, axis and block of the scales
    "conv": (node("Conv", ["x", "w"], ["y"]), (1, 4, 5, 5), (6, 4, 3, 3), (0, None)),
    "conv 1-D": (node("Conv", ["x", "w"], ["y"]), (1, 4, 5), (6, 4, 3), (0, None)),
    "conv 3-D": (node("Conv", ["x", "w"], ["y"]), (1, 2, 5, 5, 5), (6, 2, 3, 1, 2), (0, None)),
    "grouped conv": (node("Conv", ["x", "w"], ["y"], group=2), (1, 4, 5, 5), (6, 2, 3, 3), (0, None)),
    "depthwise": (node("Conv", ["x", "w"], ["y"], group=4), (1, 4, 5, 5), (4, 1, 3, 3), (0, None)),
    "one row": (node("Conv", ["x", "w"], ["y"]), (1, 4, 5, 5), (1, 4, 3, 3), (None, None)),
    "transposed": (node("ConvTranspose", ["x", "w"], ["y"]), (1, 4, 5, 5), (4, 6, 3, 3), (1, None)),
    "transposed depthwise": (
        node("ConvTranspose", ["x", "w"], ["y"], group=4),
        (1, 4, 5, 5),
        (4, 1, 3, 3),
        (0, None),
    ),
    "transposed grouped": (node("ConvTranspose", ["x", "w"], ["y"], group=2), (1, 4, 5, 5), (4, 3, 3, 3), (2, 3)),
    "matmul": (node("MatMul", ["x", "w"], ["y"]), (5, 4), (4, 3), (1, None)),
    "matmul vector": (node("MatMul", ["x", "w"], ["y"]), (5, 4), (4,), (None, None)),
    "matmul batched": (node("MatMul", ["x", "w"], ["y"]), (3, 5, 4), (3, 4, 6), (1, 4)),
    "matmul batched twice": (node("MatMul", ["x", "w"], ["y"]), (2, 3, 5, 4), (2, 3, 4, 6), (2, 4)),
    "matmul batch of one": (node("MatMul", ["x", "w"], ["y"]), (2, 5, 4), (1, 4, 6), (2, None)),
    "matmul left": (node("MatMul", ["w", "x"], ["y"]), (4, 5), (3, 4), (0, None)),
    "matmul left batched": (node("MatMul", ["w", "x"], ["y"]), (3, 4, 5), (3, 6, 4), (2, 4)),
    "gemm": (node("Gemm", ["x", "w"], ["y"]), (5, 4), (4, 3), (1, None)),
    "gemm transB": (node("Gemm", ["x", "w"], ["y"], transB=1), (5, 4), (3, 4), (0, None)),
    "gemm left": (node("Gemm", ["w", "x"], ["y"]), (4, 5), (3, 4), (0, None)),
    "gemm left transA": (node("Gemm", ["w", "x"], ["y"], transA=1), (4, 5), (4, 3), (1, None)),
}


def one_layer(name: str, opset: int = 13) -> tuple[ir.Model, Layer]:
    op, x, weight, _ = LAYERS[name]
    model = ir.from_proto(build([op], {"x": x}, {"y": None}, {"w": random(*weight)}, opset=opset))
    ((layer,), _) = find_layers(model)
    return model, layer


# ------------------------------------------------ weights


@pytest.mark.parametrize("name", LAYERS)
def test_layout_gives_every_row_its_scale(name: str) -> None:
    _, layer = one_layer(name)
    layout = scale_layout(layer)
    assert layout is not None
    assert (layout.axis, layout.block) == LAYERS[name][3]
    owner = np.arange(layer.groups * layer.rows).reshape(layer.groups, layer.rows, 1)
    owner = layer.tensor(np.broadcast_to(owner, (layer.groups, layer.rows, layer.columns)))
    if layout.axis is None:
        assert not owner.any()
    elif layout.block is None:
        shape = [1] * owner.ndim
        shape[layout.axis] = -1
        np.testing.assert_array_equal(np.broadcast_to(layout.rows.reshape(shape), owner.shape), owner)
    else:
        np.testing.assert_array_equal(np.repeat(layout.rows, layout.block, layout.axis), owner)


@pytest.mark.parametrize("level", ["int8", "int8-asym", "int7", "int4", "int4-asym", "int3", "int2", "int2-asym"])
@pytest.mark.parametrize("name", LAYERS)
def test_file_dequantizes_to_the_solution_bit_for_bit(name: str, level: str) -> None:
    model, layer = one_layer(name)
    model = raise_opset(model, opset_needed(layer, Choice(parse_level(level))))
    ((layer,), _) = find_layers(model)
    found, expected = written_weight(model, layer, level)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(
    ("bits", "symmetric", "expected"),
    [(8, True, "INT8"), (5, False, "UINT8"), (4, True, "INT4"), (3, False, "UINT4"), (2, True, "INT2")],
)
def test_storage_is_the_smallest_type(bits: int, symmetric: bool, expected: str) -> None:
    assert storage_type(bits, symmetric) == ir.DataType[expected]


@pytest.mark.parametrize(
    ("name", "level", "activations", "opset"),
    [
        ("conv", "float", None, 0),
        ("conv", "2:4", None, 0),
        ("conv", "int8", 8, 13),
        ("conv", "int5-asym", None, 13),
        ("conv", "int4", 8, 21),
        ("conv", "int8", 4, 21),
        ("matmul batched", "int8", None, 21),
        ("transposed grouped", "int8", None, 21),
        ("conv", "int2", None, 25),
        ("conv", "sparse-0.5+int2", 4, 25),
    ],
)
def test_opset_needed(name: str, level: str, activations: int | None, opset: int) -> None:
    _, layer = one_layer(name)
    assert opset_needed(layer, Choice(parse_level(level), activations)) == opset


def test_a_float_solution_replaces_the_weight() -> None:
    model, layer = one_layer("conv")
    solution = rounded(layer, parse_level("float"))
    writer = Writer(model)
    where = writer.weight(layer, solution)
    remove_unused(model)
    assert where.codes is None
    assert list(model.graph.initializers) == [where.name]
    assert len(list(model.graph)) == 1


def test_a_weight_behind_a_chain_is_replaced_where_the_node_sees_it() -> None:
    nodes = [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])]
    model = ir.from_proto(build(nodes, {"x": (5, 4)}, {"y": None}, {"w": random(3, 4)}))
    ((layer,), _) = find_layers(model)
    found, expected = written_weight(model, layer, "int8")
    np.testing.assert_array_equal(found, expected)
    assert [n.op_type for n in model.graph] == ["DequantizeLinear", "MatMul"]
    assert "w" not in model.graph.initializers


def test_shared_weights_are_stored_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"], name="one"), node("MatMul", ["h", "w"], ["y"], name="two")]
    model = ir.from_proto(build(nodes, {"x": (5, 4)}, {"y": None}, {"w": random(4, 4)}))
    ((layer,), _) = find_layers(model)
    written_weight(model, layer, "int8")
    dequantize, one, two = model.graph
    assert one.inputs[1] is two.inputs[1] is dequantize.outputs[0]
    assert sum(value.const_value.size == 16 for value in model.graph.initializers.values()) == 1  # type: ignore[union-attr]


def test_what_something_else_reads_stays() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("Identity", ["w"], ["z"])]
    model = ir.from_proto(build(nodes, {"x": (5, 4)}, {"y": None, "z": None}, {"w": random(4, 4)}))
    ((layer,), _) = find_layers(model)
    assert layer.shared
    written_weight(model, layer, "int8")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), random(4, 4))  # type: ignore[union-attr]


def test_weights_listed_as_inputs_are_no_longer_inputs() -> None:
    proto = build(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])],
        {"x": (5, 4), "w": (4, 3), "b": (3,)},
        {"y": None},
        {"w": random(4, 3), "b": random(3)},
        ir_version=3,
        opset=13,
    )
    model = ir.from_proto(proto)
    ((layer,), _) = find_layers(model)
    writer = Writer(model)
    writer.weight(layer, rounded(layer, parse_level("int8")))
    remove_unused(model)
    assert [value.name for value in model.graph.inputs] == ["x", "b"]
    assert "w" not in model.graph.initializers


# ------------------------------------------------ activations


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e30, 0),
    st.floats(0, 1e30),
    st.sampled_from([4, 8]),
    st.booleans(),
)
def test_activation_grid_covers_its_interval(low: float, high: float, bits: int, symmetric: bool) -> None:
    scale, zero = activation_grid(low, high, bits, symmetric)
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert np.float32(scale) > 0
    assert first <= zero <= last
    assert not symmetric or zero == 0
    if high - low > 1e-30:
        assert (first - zero) * scale <= low + 0.5001 * scale
        assert (last - zero) * scale >= high - 0.5001 * scale


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40])
def test_activation_grid_of_next_to_nothing(value: float) -> None:
    assert activation_grid(0.0, value, 8, False) == (1.0, 0)
    assert activation_grid(-value, 0.0, 8, True) == (1.0, 0)


def quantized(x: Array, low: float, high: float, bits: int, symmetric: bool) -> Array:
    scale, zero = activation_grid(low, high, bits, symmetric)
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, first, last)
    return ((codes - zero) * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_an_activation_is_quantized_for_its_readers_alone(symmetric: bool, bits: int) -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("Exp", ["h"], ["y"], name="e"), node("Neg", ["h"], ["z"])]
    proto = build(nodes, {"x": (40, 4)}, {"y": None, "z": None}, opset=21, ir_version=10)
    model = ir.from_proto(proto)
    exp = model.graph[1]
    writer = Writer(model)
    writer.activation(Activation("h", bits, symmetric, ((exp, 0),)), 0.0, 2.0)
    remove_unused(model)
    x = random(40, 4)
    y, z = run(model, {"x": x})
    np.testing.assert_array_equal(z, -np.maximum(x, 0))
    np.testing.assert_allclose(y, np.exp(quantized(np.maximum(x, 0), 0.0, 2.0, bits, symmetric)), rtol=1e-6)
    reference = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_allclose(reference[0], y, rtol=1e-5)


@pytest.mark.parametrize("producer", [True, False])
def test_graph_outputs_keep_their_names(producer: bool) -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("Exp", ["h"], ["y"])]
    model = ir.from_proto(build(nodes, {"x": (40, 4)}, {"h": (40, 4), "y": None}))
    exp = model.graph[1]
    writer = Writer(model)
    writer.activation(Activation("h", 8, False, ((exp, 0),), replaces_output=producer), 0.0, 2.0)
    remove_unused(model)
    proto = ir.to_proto(model)
    assert [value.name for value in proto.graph.output] == ["h", "y"]
    assert [d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim] == [40, 4]
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto))
    x = random(40, 4)
    h, y = run(proto, {"x": x})
    exact = np.maximum(x, 0)
    np.testing.assert_array_equal(h, quantized(exact, 0.0, 2.0, 8, False) if producer else exact)
    np.testing.assert_allclose(y, np.exp(quantized(exact, 0.0, 2.0, 8, False)), rtol=1e-6)


def test_an_input_is_quantized_in_front_of_the_first_node() -> None:
    model = ir.from_proto(build([node("Exp", ["x"], ["y"])], {"x": (4, 4)}, {"y": None}))
    writer = Writer(model)
    writer.activation(Activation("x", 8, True, ((model.graph[0], 0),)), -1.0, 1.0)
    assert [n.op_type for n in model.graph] == ["QuantizeLinear", "DequantizeLinear", "Exp"]


def test_a_shared_activation_is_quantized_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], name="one"), node("MatMul", ["x", "v"], ["z"], name="two")]
    proto = build(nodes, {"x": (5, 4)}, {"y": None, "z": None}, {"w": random(4, 4), "v": random(4, 3)})
    written = write_for("onnxruntime", proto)
    assert len(written.nodes("QuantizeLinear")) == 1
    one, two = written.nodes("MatMul")
    assert one.input[0] == two.input[0] != "x"


# ------------------------------------------------ embeddings


def table_grid(table: Array, bits: int, block: int | None) -> tuple[Any, Grid]:
    rows = table.T if block is None else table.reshape(-1, block)
    scale = (np.abs(rows).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
    codes = np.rint(rows / scale[:, None]).astype(np.int32)
    return (codes.T if block is None else codes.reshape(table.shape)), Grid(
        scale[None], np.zeros((1, len(scale)), np.int32), bits, True
    )


@pytest.mark.parametrize("as_output", [False, True])
@pytest.mark.parametrize(
    ("bits", "block", "in_blocks", "kernel"),
    [
        (8, None, True, "Gather"),
        (4, 8, True, "Gather"),
        (4, 32, False, "Gather"),
        (4, 16, True, "GatherBlockQuantized"),
        (4, 32, True, "GatherBlockQuantized"),
    ],
)
def test_embeddings(bits: int, block: int | None, in_blocks: bool, kernel: str, as_output: bool) -> None:
    table = random(50, 32)
    nodes = [
        node("Gather", ["t", "i"], ["e"], name="look"),
        node("Gather", ["t", "j"], ["f"], name="again"),
        node("Add", ["e", "f"], ["y"]),
    ]
    proto = build(nodes, {}, {"y": None} | ({"e": None} if as_output else {}), {"t": table}, opset=21, ir_version=10)
    for name in "ij":
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [3]))
    model = ir.from_proto(proto)
    (embedding,) = find_embeddings(model)
    codes, grid = table_grid(table, bits, block)
    writer = Writer(model)
    writer.embedding(embedding, codes, grid, block, in_blocks)
    remove_unused(model)
    assert [n.op_type for n in model.graph if "Gather" in n.op_type] == [kernel] * 2
    scale = (
        np.broadcast_to(grid.scale, table.shape) if block is None else np.repeat(grid.scale.reshape(50, -1), block, 1)
    )
    expected = codes.astype(np.float32) * scale
    i, j = np.array([0, 49, 7]), np.array([3, 3, 1])
    found = run(model, {"i": i, "j": j})
    np.testing.assert_array_equal(found[0], expected[i] + expected[j])
    if as_output:
        np.testing.assert_array_equal(found[1], expected[i])
    proto = ir.to_proto(model)
    assert [value.name for value in proto.graph.output] == ["y", "e"][: 1 + as_output]
    assert [t.name for t in proto.graph.initializer if t.name == "t"] == []


@pytest.mark.parametrize(("bits", "block"), [(8, None), (4, 16)])
def test_what_was_looked_up_can_be_quantized_too(bits: int, block: int | None) -> None:
    table = random(50, 32)
    nodes = [node("Gather", ["t", "i"], ["e"]), node("MatMul", ["e", "w"], ["y"], name="m")]
    proto = build(nodes, {}, {"y": None}, {"t": table, "w": random(32, 4)}, opset=21, ir_version=10)
    proto.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [3]))
    model = ir.from_proto(proto)
    (embedding,) = find_embeddings(model)
    codes, grid = table_grid(table, bits, block)
    writer = Writer(model)
    writer.embedding(embedding, codes, grid, block)
    writer.activation(Activation("e", 8, False, ((model.graph[-1], 0),)), -4.0, 4.0)
    remove_unused(model)
    i = np.array([0, 49, 7])
    (found,) = run(model, {"i": i})
    np.testing.assert_allclose(found, table[i] @ random(32, 4), atol=0.4 if bits == 8 else 4)


# ------------------------------------------------ names


def test_names_that_the_model_has_already() -> None:
    taken = ["layer.weight", "layer.weight_quantized", "layer.weight_scale", "layer.weight_zero_point"]
    taken += ["layer.weight_dequantized", "x_scale", "x_zero_point", "x_quantized", "x_dequantized"]
    names = [*taken, "layer.weight_DequantizeLinear", "x_QuantizeLinear", "x_DequantizeLinear"]
    nodes = [node("MatMul", ["x", "w"], ["h"], name="layer")]
    for number, name in enumerate(names):
        last = "h" if number == 0 else names[number - 1]
        nodes.append(node("Relu", [last], [name], name=names[-1 - number]))
    inner = helper.make_graph(
        [node("Neg", [names[-1]], ["layer.weight_scale_1"])],
        "body",
        [],
        [helper.make_tensor_value_info("layer.weight_scale_1", onnx.TensorProto.FLOAT, None)],
    )
    nodes.append(node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner))
    proto = build(nodes, {"x": (5, 4)}, {"y": None}, {"w": random(4, 3), "yes": np.array(True)})
    written = write_for("onnxruntime", proto)
    every = [name for n in written.model.graph.node for name in n.output]
    every += [t.name for t in written.model.graph.initializer] + [i.name for i in written.model.graph.input]
    assert len(set(every)) == len(every)
    assert "layer.weight_scale_1" not in every
    node_names = [n.name for n in written.model.graph.node]
    assert len(set(node_names)) == len(node_names)
    (found,), (dense,) = run(written.model, written.feed), run(proto, written.feed)
    np.testing.assert_allclose(found, dense, atol=0.1)


def test_nodes_without_a_name() -> None:
    gemm = node("Gemm", ["x", "w", "b"], ["y"])
    model = ir.from_proto(build([gemm], {"x": (5, 4)}, {"y": (5, 3)}, {"w": random(4, 3), "b": random(3)}))
    model.graph[0].name = None
    layers, _ = find_layers(model)
    TARGETS["onnxruntime"].prepare(model, layers, {layers[0].name: Choice(parse_level("int8"), 8)})
    assert [(n.op_type, n.name) for n in model.graph] == [("Gemm", None), ("Add", "y_bias")]
    assert "None" not in set(names_of(model))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_written_models_pass_the_checker(target: str) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="c"),
        node("Relu", ["a"], ["r"]),
        node("ConvTranspose", ["r", "v"], ["t"], name="t"),
        node("Flatten", ["t"], ["f"]),
        node("Gemm", ["f", "g", "b"], ["y"], name="g"),
    ]
    weights = {"w": random(4, 3, 3, 3), "v": random(4, 2, 3, 3), "g": random(72, 5), "b": random(5)}
    proto = build(nodes, {"x": (2, 3, 6, 6)}, {"y": (2, 5)}, weights)
    written = write_for(target, proto)
    onnx.checker.check_model(written.model, full_check=True)
    (found,), (dense,) = run(written.model, written.feed), run(proto, written.feed)
    assert np.abs(found - dense).max() < 0.1 * np.abs(dense).max()
