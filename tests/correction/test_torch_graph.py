"""A model in torch computes what onnxruntime does, with the model's own constants and with others in their place."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Array, Shapes, assert_same, build, random, run

from onnx_obc.core.errors import ModelError
from onnx_obc.core.level import FLOAT
from onnx_obc.core.solution import Solution
from onnx_obc.correction.torch_graph import check_agreement, to_torch
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.write import Writer

make = onnx.helper.make_node


def conv(op: str = "Conv", weight: tuple[int, ...] = (6, 4, 3, 3), **attributes: object) -> onnx.ModelProto:
    channels = weight[1] * int(attributes.get("group", 1)) if op == "ConvTranspose" else weight[0]  # type: ignore[call-overload]
    inputs: Shapes = {"x": (2, 4, 8, 8)}
    weights = {"w": random(*weight), "b": random(channels)}
    return build([make(op, ["x", "w", "b"], ["y"], "layer", **attributes)], inputs, {"y": None}, weights)


def gemm(columns_first: bool = True, bias: Sequence[int] = (5,), **attributes: object) -> onnx.ModelProto:
    weights = {"w": random(7, 5) if columns_first else random(5, 7), "b": random(*bias)}
    nodes = [make("Gemm", ["x", "w", "b"], ["y"], "layer", **attributes)]
    return build(nodes, {"x": (3, 7)}, {"y": None}, weights)


def product(nodes: Sequence[onnx.NodeProto], **weights: Array) -> onnx.ModelProto:
    return build(nodes, {"x": (2, 3, 7)}, {"y": None}, weights)


MODELS = {
    "conv": conv(),
    "conv with uneven padding": conv(pads=[0, 1, 2, 1], strides=[2, 2]),
    "conv that pads at the end": conv(auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv that pads at the beginning": conv(weight=(6, 4, 2, 3), auto_pad="SAME_LOWER"),
    "grouped conv": conv(weight=(6, 2, 3, 3), group=2, dilations=[2, 2], auto_pad="VALID"),
    "transposed conv": conv("ConvTranspose", (4, 3, 2, 2), group=2, strides=[2, 2]),
    "gemm": gemm(),
    "gemm with a turned weight": gemm(False, transB=1),
    "gemm with factors": gemm(alpha=0.5),
    "gemm with a bias of two axes": gemm(False, (1, 5), transB=1),
    "product": product([make("MatMul", ["x", "w"], ["y"], "layer")], w=random(7, 5)),
    "product and bias": product(
        [make("MatMul", ["x", "w"], ["h"], "layer"), make("Add", ["b", "h"], ["y"])], w=random(7, 5), b=random(5)
    ),
    "product behind a transpose": product(
        [make("Transpose", ["w"], ["t"], perm=[1, 0]), make("MatMul", ["x", "t"], ["y"], "layer")], w=random(5, 7)
    ),
    "one weight in two nodes": product(
        [
            make("MatMul", ["x", "w"], ["h"], "one"),
            make("Relu", ["h"], ["r"]),
            make("MatMul", ["r", "w"], ["y"], "two"),
        ],
        w=random(7, 7),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_constants_can_be_replaced(kind: str) -> None:
    import torch

    model = ir.from_proto(MODELS[kind])
    layers, _ = find_layers(model)
    (layer,) = layers
    feed = {v.name: random(*v.shape.numpy(), seed=3) for v in model.graph.inputs}
    graph = to_torch(model, layers, "--global-adaprune")
    check_agreement(graph, model, feed)
    assert len(graph.places) == len(layer.uses)
    weight = random(layer.groups, layer.rows, layer.columns, seed=4)
    biases = {name: random(*value.shape, seed=5) for name, value in graph.bias_values.items()}
    assert set(biases) == {name for name in model.graph.initializers if name == "b"}

    tensors = {layer.name: torch.tensor(layer.tensor(weight))}
    found = graph.run(feed, tensors, {name: torch.tensor(value) for name, value in biases.items()}, "cpu")
    Writer(model).weight(layer, Solution(FLOAT, weight, None, None, None, 0.0))
    for name, value in biases.items():
        model.graph.initializers[name].const_value = ir.Tensor(value, name=name)
    assert_same([found[-1].numpy()], run(model, feed), 1e-5)


def around(nodes: Sequence[onnx.NodeProto], opset: int, **constants: Array) -> ir.Model:
    """x → nodes → h → MatMul, so that torch must run the nodes."""
    last = make("MatMul", ["h", "w"], ["y"], "layer")
    weights = {"w": random(6, 5), **constants}
    return ir.from_proto(build([*nodes, last], {"x": (4, 6, 6)}, {"y": None}, weights, opset, ir_version=10))


OPERATORS = {
    "newer versions": (
        [make("Cast", ["x"], ["c"], to=1), make("Identity", ["c"], ["i"]), make("Reshape", ["i", "shape"], ["h"])],
        22,
        {"shape": np.array([4, 6, 6])},
    ),
    "axes as an input": ([make("ReduceMean", ["x", "axes"], ["h"], keepdims=0)], 18, {"axes": np.array([1])}),
    "no axes": ([make("ReduceMax", ["x"], ["m"]), make("Mul", ["x", "m"], ["h"])], 18, {}),
    "gelu": ([make("Gelu", ["x"], ["h"], approximate="tanh")], 20, {}),
    "flatten at the end": (
        [make("Flatten", ["x"], ["f"], axis=3), make("Reshape", ["f", "shape"], ["h"])],
        17,
        {"shape": np.array([24, 6])},
    ),
    "zeros in a shape that are meant": (
        [make("Reshape", ["x", "shape"], ["h"], allowzero=1)],
        21,
        {"shape": np.array([4, 6, 6])},
    ),
    "pool that pads": (
        [
            make("Neg", ["x"], ["n"]),
            make("MaxPool", ["n"], ["p"], "lower", kernel_shape=[4], auto_pad="SAME_LOWER"),
            make("MaxPool", ["p"], ["h"], "upper", kernel_shape=[4], strides=[1], auto_pad="SAME_UPPER"),
        ],
        17,
        {},
    ),
    "slice backwards": (
        [make("Slice", ["x", "starts", "ends", "axes", "steps"], ["h"])],
        17,
        {
            "starts": np.array([-1, 1]),
            "ends": np.array([np.iinfo(np.int64).min, 5]),
            "axes": np.array([2, 1]),
            "steps": np.array([-1, 2]),
        },
    ),
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_what_onnx2torch_lacks(kind: str) -> None:
    nodes, opset, constants = OPERATORS[kind]
    model = around(nodes, opset, **constants)
    graph = to_torch(model, find_layers(model)[0], "--global-adaprune")
    check_agreement(graph, model, {"x": random(4, 6, 6)})


def test_unknown_operators_are_named() -> None:
    model = around([make("Det", ["x"], ["d"]), make("Mul", ["x", "one"], ["h"])], 17, one=random(6))
    to_torch(model, find_layers(model)[0], "--global-adaprune")  # no layer depends on it
    model = around([make("GlobalLpPool", ["x"], ["p"]), make("Mul", ["x", "p"], ["h"])], 17)
    with pytest.raises(ModelError, match=r"operator GlobalLpPool \(ai.onnx, opset 17\); leave out --global-adaprune"):
        to_torch(model, find_layers(model)[0], "--global-adaprune")
    model = ir.from_proto(conv("ConvTranspose", (4, 3, 2, 2), group=2, auto_pad="SAME_UPPER"))
    with pytest.raises(ModelError, match=r"cannot convert the operator ConvTranspose .*SAME_UPPER"):
        to_torch(model, find_layers(model)[0], "--global-adaprune")
    nodes = [make("FusedGelu", ["x"], ["h"], domain="com.example")]
    proto = build([*nodes, make("MatMul", ["h", "w"], ["y"])], {"x": (4, 6)}, {"y": None}, {"w": random(6, 5)})
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    model = ir.from_proto(proto)
    with pytest.raises(ModelError, match=r"FusedGelu \(com.example, opset 1\)"):
        to_torch(model, find_layers(model)[0], "--global-adaprune")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = around([make("Relu", ["x"], ["h"])], 17)
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ModelError, match=r"needs onnx2torch, which is not installed; install onnx-obc\[torch\]"):
        to_torch(model, find_layers(model)[0], "--global-adaprune")


def test_what_a_newer_version_added_is_refused() -> None:
    pads = {"pads": np.array([1, 1]), "zero": np.float32(0).reshape(()), "axes": np.array([1])}
    model = around([make("Pad", ["x", "pads", "zero", "axes"], ["h"])], 18, **pads)
    with pytest.raises(ModelError, match=r"operator Pad \(ai.onnx, opset 18\): 4 inputs came after version 13"):
        to_torch(model, find_layers(model)[0], "--global-adaprune")


def test_disagreement_is_an_error() -> None:
    model = around([make("Relu", ["x"], ["h"])], 17)
    graph = to_torch(model, find_layers(model)[0], "--global-adaprune")
    model.graph.initializers["w"].const_value = ir.Tensor(random(6, 5, seed=9), name="w")
    with pytest.raises(ModelError, match="layer layer: torch and onnxruntime disagree"):
        check_agreement(graph, model, {"x": random(4, 6, 6)})


def test_a_bias_that_something_else_reads_is_left() -> None:
    nodes = [make("Gemm", ["x", "w", "b"], ["g"], "layer"), make("Mul", ["g", "b"], ["y"])]
    model = ir.from_proto(build(nodes, {"x": (3, 7)}, {"y": None}, {"w": random(7, 5), "b": random(5)}))
    graph = to_torch(model, find_layers(model)[0], "--global-adaprune")
    assert not graph.biases and graph.places[0].bias is None


def test_every_use_of_a_weight_is_a_place() -> None:
    nodes = [
        make("MatMul", ["x", "w"], ["h"], "one"),
        make("Add", ["h", "b"], ["a"]),
        make("Relu", ["a"], ["r"]),
        make("MatMul", ["r", "w"], ["g"], "two"),
        make("Add", ["c", "g"], ["y"]),
    ]
    model = ir.from_proto(product(nodes, w=random(7, 7), b=random(7), c=random(7)))
    graph = to_torch(model, find_layers(model)[0], "--global-adaprune")
    assert [(place.value, place.bias) for place in graph.places] == [("a", "b"), ("y", "c")]
    check_agreement(graph, model, {"x": random(2, 3, 7)})
