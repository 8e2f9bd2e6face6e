"""Constants behind a layer become part of it, as onnxruntime sees them in the dense model."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, assert_same, build, random, run

from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model

node = helper.make_node


def folded(proto: onnx.ModelProto, x: Array) -> ir.Model:
    model, _ = fold(read_model(proto))
    assert_same(run(model, {"x": x}), run(proto, {"x": x}))
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), (), (1, 1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_mul_and_add_into_conv(shape: tuple[int, ...], bias: bool, left: bool) -> None:
    def two(*names: str) -> list[str]:
        return list(names[::-1] if left else names)

    nodes = [
        node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", group=2),
        node("Add", two("c", "s"), ["d"]),
        node("Mul", two("d", "t"), ["e"]),
        node("Add", two("e", "s"), ["f"]),
        node("Relu", ["f"], ["y"]),
    ]
    weights = {"w": random(6, 2, 3, 3), "s": random(*shape), "t": random(*shape, seed=2)}
    model = build(nodes, {"x": (2, 4, 5, 5)}, {"y": (2, 6, 3, 3)}, weights | ({"b": random(6, seed=4)} if bias else {}))
    found = folded(model, random(2, 4, 5, 5))
    assert ops(found) == ["Conv", "Relu"]
    assert found.graph[0].name == "conv"
    assert found.graph[0].outputs[0].name == "f"


def test_mul_into_a_grouped_conv_transpose_behind_a_norm() -> None:
    nodes = [
        node("ConvTranspose", ["x", "w"], ["c"], group=2),
        node("BatchNormalization", ["c", "b", "b", "b", "v"], ["d"]),
        node("Mul", ["d", "s"], ["y"]),
    ]
    weights = {"w": random(4, 3, 3, 3), "s": random(6, 1, 1), "b": random(6, seed=3), "v": abs(random(6, seed=5)) + 1}
    model = build(nodes, {"x": (2, 4, 5, 5)}, {"y": (2, 6, 7, 7)}, weights)
    assert ops(folded(model, random(2, 4, 5, 5))) == ["ConvTranspose"]


@pytest.mark.parametrize("why", ["rows", "batch", "read twice", "output", "wider", "shared weight"])
def test_what_must_stay(why: str) -> None:
    constant = {"rows": (5, 1), "batch": (2, 1, 1, 1), "wider": (1, 1, 6, 1, 1)}.get(why, (6, 1, 1))
    op, weights = "Mul" if why == "shared weight" else "Add", {"w": random(6, 4, 1, 1), "s": random(*constant)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node(op, ["c", "s"], ["y"])]
    outputs: dict[str, Any] = {"y": (1, 2, 6, 5, 5) if why == "wider" else (2, 6, 5, 5)}
    if why == "read twice":
        nodes, outputs = [*nodes, node("Relu", ["c"], ["z"])], outputs | {"z": (2, 6, 5, 5)}
    if why == "output":
        outputs["c"] = (2, 6, 5, 5)
    if why == "shared weight":
        nodes, outputs = [*nodes, node("Conv", ["x", "w"], ["z"])], outputs | {"z": (2, 6, 5, 5)}
    found = folded(build(nodes, {"x": (2, 4, 5, 5)}, outputs, weights), random(2, 4, 5, 5))
    assert ops(found)[:2] == ["Conv", op]


@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (1,), ()])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_the_bias_of_a_gemm_has_one_axis(shape: tuple[int, ...], trans_b: int) -> None:
    weights = {"w": random(*((3, 4) if trans_b else (4, 3))), "b": random(*shape)}
    model = build([node("Gemm", ["x", "w", "b"], ["y"], transB=trans_b)], {"x": (5, 4)}, {"y": (5, 3)}, weights)
    found = folded(model, random(5, 4))
    bias = found.graph[0].inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    assert bias.const_value.shape.numpy() == (3,)


def test_a_bias_for_each_sample_stays() -> None:
    weights = {"w": random(4, 3), "b": random(3, 1), "c": random(3, 3)}
    nodes = [node("Gemm", ["x", "w", "b"], ["y"]), node("Gemm", ["x", "w", "c"], ["z"])]
    found = folded(build(nodes, {"x": (3, 4)}, {"y": (3, 3), "z": (3, 3)}, weights), random(3, 4))
    assert [n.inputs[2].shape.numpy() for n in found.graph] == [(3, 1), (3, 3)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "weight", "kept"),
    [((2, 5, 4), (1, 4, 3), (4, 3)), ((2, 5, 4), (1, 1, 4, 3), (1, 1, 4, 3)), ((5, 4), (1, 4, 3), (1, 4, 3))],
)
def test_leading_axes_of_weights(data: tuple[int, ...], weight: tuple[int, ...], kept: tuple[int, ...]) -> None:
    shape = (*((1,) * (len(weight) - len(data))), *data[:-1], 3)
    model = build([node("MatMul", ["x", "w"], ["y"])], {"x": data}, {"y": shape}, {"w": random(*weight)})
    assert find_layers(folded(model, random(*data)))[0][0].weight.shape == kept


def test_norms_with_the_outputs_of_training_stay() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *"bbbv"], ["y", *"pqrs"])]
    weights = {"w": random(6, 4, 1, 1), "b": random(6), "v": abs(random(6)) + 1}
    model = build(nodes, {"x": (2, 4, 5, 5)}, {"y": (2, 6, 5, 5)}, weights, opset=9)
    found = folded(model, random(2, 4, 5, 5))
    assert ops(found) == ["Conv", "BatchNormalization"]
    assert "training" in fold(read_model(model))[1][0]
