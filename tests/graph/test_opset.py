from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, assert_same, build, random, run

from onnx_obc.core.errors import ModelError
from onnx_obc.graph.fold import fold
from onnx_obc.graph.model import read_model
from onnx_obc.graph.opset import raise_opset

node = helper.make_node
SCALES = np.array([1, 1, 1.7, 2.3], np.float32)
NORM = {"a": random(4), "b": random(4, seed=1), "m": random(4, seed=2), "v": np.abs(random(4, seed=3)) + 0.5}


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# (from opset, operator, extra inputs, attributes); x is (2, 4, 6, 8)
CASES: list[tuple[int, str, dict[str, Array], dict[str, Any]]] = [
    (7, "Upsample", {}, {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}),
    (9, "Upsample", {"s": SCALES}, {"mode": "nearest"}),
    (9, "Upsample", {"s": SCALES}, {"mode": "linear"}),
    (10, "Resize", {"s": SCALES}, {"mode": "nearest"}),
    (10, "Resize", {"s": SCALES}, {"mode": "linear"}),
    (11, "Resize", {"r": np.empty(0, np.float32), "s": SCALES}, {"mode": "linear"}),
    (11, "Resize", {"r": np.empty(0, np.float32), "s": SCALES}, {"mode": "nearest", "nearest_mode": "ceil"}),
    (11, "Resize", {"r": np.empty(0, np.float32), "s": SCALES}, {"mode": "cubic"}),
    (17, "Resize", {"r": np.empty(0, np.float32), "s": SCALES}, {"mode": "cubic", "exclude_outside": 1}),
    (9, "Pad", {}, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 1.5}),
    (9, "Pad", {}, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "mode": "reflect"}),
    (11, "Pad", {"p": ints(0, 0, 1, 2, 0, 0, 3, 0), "c": np.array(0.5, np.float32)}, {}),
    (17, "Pad", {"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, {"mode": "edge"}),
    *[(11, op, {}, {"axes": [2, 3], "keepdims": 0}) for op in ("ReduceMean", "ReduceMax", "ReduceL2")],
    *[(17, op, {}, {"axes": [2, 3], "keepdims": 1}) for op in ("ReduceMean", "ReduceMax", "ReduceL2")],
    (11, "ReduceSum", {}, {"axes": [-1]}),
    (11, "ReduceMean", {}, {}),
    *[(11, op, {}, {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (0, 1, 2, 3, -1)],
    (11, "Softmax", {}, {}),
    (13, "Softmax", {}, {"axis": 1}),
    (8, "BatchNormalization", NORM, {"epsilon": 0.01}),
    (13, "BatchNormalization", NORM, {}),
    (17, "LayerNormalization", {"a": random(8), "b": random(8, seed=1)}, {"epsilon": 1e-3}),
    (11, "Unsqueeze", {}, {"axes": [0, 3]}),
    (13, "Unsqueeze", {"axes": ints(0, 3)}, {}),
    (9, "Clip", {}, {"min": -0.5, "max": 0.5}),
    (9, "Slice", {}, {"starts": [1, 2], "ends": [3, 5], "axes": [1, 3]}),
    (9, "Dropout", {}, {"ratio": 0.3}),
    (11, "Flatten", {}, {"axis": 2}),
    (11, "DepthToSpace", {}, {"blocksize": 2}),
    (8, "MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    (11, "MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    (7, "AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    (11, "AveragePool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    (11, "GlobalAveragePool", {}, {}),
    (7, "Conv", {"w": random(3, 4, 3, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    (7, "ConvTranspose", {"w": random(4, 3, 3, 3)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (11, "InstanceNormalization", {"a": random(4), "b": random(4, seed=1)}, {}),
    (11, "PRelu", {"s": random(4, 1, 1)}, {}),
    (11, "LeakyRelu", {}, {"alpha": 0.2}),
    (11, "Cast", {}, {"to": onnx.TensorProto.INT32}),
    (11, "Gather", {"i": ints(2, -1)}, {"axis": 1}),
    (11, "Expand", {"s": ints(3, 1, 1, 1, 1)}, {}),
    (11, "ArgMax", {}, {"axis": 1}),
    (11, "Concat", {"w": random(2, 4, 6, 8)}, {"axis": 1}),
    (16, "GridSample", {"g": random(2, 3, 3, 2)}, {"mode": "bilinear"}),
    (16, "GridSample", {"g": random(2, 3, 3, 2)}, {"mode": "bicubic"}),
    (18, "GroupNormalization", {"a": random(2), "b": random(2, seed=1)}, {"num_groups": 2}),
]  # fmt: skip


@pytest.mark.parametrize("target", [13, 21, 25])
@pytest.mark.parametrize(("opset", "op", "extra", "attributes"), CASES, ids=lambda v: str(v)[:20])
def test_outputs_stay(opset: int, op: str, extra: dict[str, Array], attributes: dict[str, Any], target: int) -> None:
    if target < opset:
        target = 22
    x = random(2, 4, 6, 8)
    proto = build(
        [node(op, ["x", *extra], ["y"], name="it", **attributes)],
        {"x": x.shape},
        {"y": (None,)},
        extra,
        opset=opset,
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if op in ("Cast", "ArgMax"):
        proto.graph.output[0].type.tensor_type.elem_type = (
            onnx.TensorProto.INT32 if op == "Cast" else onnx.TensorProto.INT64
        )
    raised = raise_opset(ir.from_proto(proto), target)
    assert raised.opset_imports[""] == target
    assert "it" in [n.name for n in raised.graph]
    assert_same(run(raised, {"x": x}), run(proto, {"x": x}), 1e-6)


def test_the_newest_axis_needs_no_reshaping() -> None:
    proto = build([node("Softmax", ["x"], ["y"], axis=2)], {"x": ("N", 3, 4)}, {"y": ("N", 3, 4)}, opset=11)
    raised = raise_opset(read_model(proto), 21)
    assert [(n.op_type, n.attributes.get_int("axis")) for n in raised.graph] == [("Softmax", -1)]


def test_all_else_stays() -> None:
    body = helper.make_graph(
        [
            node("Squeeze", ["h"], ["q"], axes=[1], name="inner"),
            node("ReduceSum", ["q"], ["out"], axes=[0], keepdims=0),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("out", 1, [4])],
    )
    nodes = [
        node("MatMul", ["x", "w"], ["p"], name="product"),
        node("Unsqueeze", ["p"], ["h"], axes=[1], name="outer"),
        node("BiasGelu", ["p", "b"], ["g"], domain="com.microsoft", name="custom"),
        node("If", ["yes"], ["y"], then_branch=body, else_branch=body, name="choice"),
    ]
    weights = {"w": random(4, 4), "b": random(4), "yes": np.array(True), "y_Constant": random(1)}
    imports = [helper.make_opsetid("com.microsoft", 1)]
    proto = build(nodes, {"x": ("N", 4)}, {"y": (4,), "g": ("N", 4)}, weights, opset=11, imports=imports)
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "text"
    proto.graph.node[1].doc_string = "about outer"
    source = read_model(proto)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    raised = raise_opset(source, 21)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before
    onnx.checker.check_model(ir.to_proto(raised), full_check=True)
    assert raised.ir_version == 10
    assert dict(raised.opset_imports) == {"": 21, "com.microsoft": 1}
    assert dict(raised.metadata_props) == {"k": "v"}
    assert raised.graph.doc_string == "text"
    assert [v.name for v in (*raised.graph.inputs, *raised.graph.outputs)] == ["x", "y", "g"]
    named = {n.name: n for n in raised.graph if n.op_type != "Constant"}
    assert list(named) == ["product", "outer", "custom", "choice"]
    assert named["outer"].doc_string == "about outer"
    assert set(weights) <= set(raised.graph.initializers)
    assert_same(run(raised, {"x": random(3, 4)}), run(proto, {"x": random(3, 4)}), 0)


@pytest.mark.parametrize(("version", "ir_version"), [(13, 8), (21, 10), (23, 11), (25, 13)])
def test_ir_version(version: int, ir_version: int) -> None:
    proto = build([node("Relu", ["x"], ["y"])], {"x": (1,)}, {"y": (1,)}, opset=11)
    assert raise_opset(read_model(proto), version).ir_version == ir_version


def test_never_lowered() -> None:
    proto = build([node("Relu", ["x"], ["y"])], {"x": (1,)}, {"y": (1,)}, opset=17)
    raised = raise_opset(read_model(proto), 13)
    assert (raised.opset_imports[""], raised.ir_version) == (17, 8)


def test_large_weights_never_reach_the_converter() -> None:
    """A weight that cannot be read would fail if anything but its shape were looked at."""
    proto = build([node("Conv", ["x", "w"], ["y"])], {"x": (1, 8, 9, 9)}, {"y": (1, 64, 1, 1)}, opset=11)
    model = ir.from_proto(proto)
    weight = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((64, 8, 9, 9)))
    weight.const_value = ir.ExternalTensor("none", 0, 4 * 64 * 8 * 81, ir.DataType.FLOAT, shape=weight.shape, name="w")
    model.graph[0].replace_input_with(1, weight)
    model.graph.register_initializer(weight)
    assert raise_opset(model, 22).graph.initializers["w"].const_value.location == "none"


def test_what_cannot_be_raised() -> None:
    nodes = [node("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=2, name="norm")]
    proto = build(nodes, {"x": ("N", "C", 3)}, {"y": ("N", "C", 3)}, {"s": random(2)}, opset=18)
    with pytest.raises(ModelError) as caught:
        raise_opset(ir.from_proto(proto), 21)
    assert str(caught.value) == (
        "GroupNormalization 'norm' cannot be raised from opset 18 to 21 (the number of its channels is not known); "
        "export the model with opset 21, or choose a level that needs no newer opset"
    )


@pytest.mark.parametrize(("op", "opset", "outputs"), [("Hardmax", 11, ["y"]), ("Dropout", 9, ["d", "y"])])
def test_what_the_converter_would_get_wrong(op: str, opset: int, outputs: list[str]) -> None:
    nodes = [node(op, ["x"], outputs)] + ([node("Neg", ["y"], ["z"])] if op == "Dropout" else [])
    proto = build(nodes, {"x": (2, 3, 4)}, {nodes[-1].output[0]: (2, 3, 4)}, opset=opset)
    with pytest.raises(ModelError, match=f"{op}.*cannot be raised from opset {opset} to 13"):
        raise_opset(ir.from_proto(proto), 13)


def test_per_pixel_normalization_cannot_be_raised() -> None:
    """spatial=0 was removed in opset 9: it must never be dropped in silence."""
    weights = {name: random(4, 2, 2) for name in "abmv"}
    proto = build(
        [node("BatchNormalization", ["x", *"abmv"], ["y"], spatial=0)],
        {"x": (1, 4, 2, 2)},
        {"y": (1, 4, 2, 2)},
        weights,
        opset=7,
    )
    with pytest.raises(ModelError, match=r"BatchNormalization .* cannot be raised from opset 7 to 13"):
        raise_opset(ir.from_proto(proto), 13)


@pytest.mark.parametrize("target", [21, 25])
def test_real_network(target: int, shared: Path) -> None:
    path = shared / "models" / "resnet20-cifar10.onnx"
    model, _ = fold(read_model(path))
    x = random(2, 3, 32, 32)
    raised = raise_opset(model, target)
    assert [n.name for n in raised.graph if n.op_type == "Conv"] == [n.name for n in model.graph if n.op_type == "Conv"]
    assert_same(run(raised, {"input": x}), run(model, {"input": x}), 1e-6)


@pytest.mark.parametrize(("op_type", "same"), [("Relu", True), ("Dropout", False)])
def test_functions_of_another_opset(op_type: str, same: bool) -> None:
    inner = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node(op_type, ["m"], ["y"])]
    function = helper.make_function("local", "dense", ["x", "w"], ["y"], inner, [helper.make_opsetid("", 12)])
    if same:
        function.opset_import[0].version = 16
    calls = [helper.make_node("dense", ["x", "w"], ["h"], domain="local"), helper.make_node("Tanh", ["h"], ["y"])]
    model = build(calls, {"x": (2, 4)}, {"y": (2, 3)}, {"w": random(4, 3)}, imports=[helper.make_opsetid("local", 1)])
    model.functions.append(function)
    if same:
        raised = raise_opset(ir.from_proto(model), 21)
        assert [node.op_type for node in raised.graph] == ["MatMul", op_type, "Tanh"]
        assert_same(run(raised, {"x": random(2, 4)}), run(model, {"x": random(2, 4)}))
    else:
        with pytest.raises(ModelError, match="function dense has"):
            raise_opset(ir.from_proto(model), 21)
