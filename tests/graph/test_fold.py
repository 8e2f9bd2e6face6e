from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_graphs import Array, assert_same, build, random, run

from onnx_obc.graph import fold as fold_module
from onnx_obc.graph.fold import fold, remove_unused
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model

node = helper.make_node


def norm_weights(channels: int) -> dict[str, Array]:
    names = ("scale", "shift", "mean")
    return {
        **{name: random(channels, seed=seed) for seed, name in enumerate(names)},
        "var": np.abs(random(channels, seed=7)) + 0.1,
    }


NORM = ["scale", "shift", "mean", "var"]


def signature(model: ir.Model) -> object:
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return [[(value.name, value.type, value.shape) for value in side] for side in (inputs, model.graph.outputs)]


def folded(
    proto: onnx.ModelProto, x: Array | None = None, tolerance: float = 1e-5
) -> tuple[list[str], ir.Model, list[str]]:
    """The operators left, the model and the notes, after checking that all a user relies on is the same."""
    proto.producer_name, proto.domain, proto.doc_string = "tests", "org.example", "text"
    proto.metadata_props.add(key="k", value="v")
    before = proto.SerializeToString(deterministic=True)
    source = read_model(proto)
    model, notes = fold(source)
    assert proto.SerializeToString(deterministic=True) == before
    assert signature(model) == signature(source)
    assert dict(model.opset_imports) == dict(source.opset_imports)
    assert (model.producer_name, model.domain, model.doc_string) == ("tests", "org.example", "text")
    assert dict(model.metadata_props) == {"k": "v"}
    assert model.graph.name == source.graph.name
    if x is not None:
        feed = {source.graph.inputs[0].name: x}
        assert_same(run(model, feed), run(proto, feed), tolerance)
    assert not any("left out" in note for note in notes)
    return [n.op_type for n in model.graph], model, notes


# ------------------------------------------------ BatchNormalization


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("opset", [8, 13, 17])
def test_norm_into_conv(bias: bool, opset: int) -> None:
    proto = build(
        [
            node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", group=2, pads=[1] * 4),
            node("BatchNormalization", ["c", *NORM], ["y"], epsilon=0.01),
        ],
        {"x": ("N", 4, 5, 5)},
        {"y": ("N", 6, 5, 5)},
        {"w": random(6, 2, 3, 3), **({"b": random(6)} if bias else {}), **norm_weights(6)},
        opset=opset,
    )
    ops, model, notes = folded(proto, random(2, 4, 5, 5))
    assert ops == ["Conv"]
    assert model.graph[0].name == "conv"
    assert sorted(model.graph.initializers) == sorted(["w", "b" if bias else "w_bias"])
    assert notes == ["1 BatchNormalization fused into the layer before"]


@pytest.mark.parametrize("groups", [1, 2])
def test_norm_into_conv_transpose(groups: int) -> None:
    proto = build(
        [
            node("ConvTranspose", ["x", "w"], ["c"], group=groups, strides=[2, 2]),
            node("BatchNormalization", ["c", *NORM], ["y"]),
        ],
        {"x": (1, 4, 5, 5)},
        {"y": (1, 3 * groups, 11, 11)},
        {"w": random(4, 3, 3, 3), **norm_weights(3 * groups)},
    )
    assert folded(proto, random(1, 4, 5, 5))[0] == ["ConvTranspose"]


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (3,), (5, 3), "empty"])
def test_norm_into_gemm(trans_b: int, bias: object) -> None:
    weights = {"w": random(*((3, 4) if trans_b else (4, 3))), **norm_weights(3)}
    inputs = ["x", "w"]
    if bias == "empty":
        inputs.append("")
    elif isinstance(bias, tuple):
        inputs.append("b")
        weights["b"] = np.asarray(random(*bias))
    proto = build(
        [
            node("Gemm", inputs, ["c"], transB=trans_b, alpha=0.5, beta=0.25),
            node("BatchNormalization", ["c", *NORM], ["y"]),
        ],
        {"x": (5, 4)},
        {"y": (5, 3)},
        weights,
    )
    assert folded(proto, random(5, 4))[0] == ["Gemm"]


def test_norms_that_must_stay() -> None:
    conv = node("Conv", ["x", "w"], ["c"])
    shapes = {"x": (2, 4, 5, 5)}, {"y": (2, 4, 5, 5)}
    weights = {"w": random(4, 4, 1, 1), **norm_weights(4)}
    x = random(2, 4, 5, 5)
    norm = node("BatchNormalization", ["c", *NORM], ["y"])
    two = build(
        [conv, node("BatchNormalization", ["c", *NORM], ["d"]), node("Add", ["c", "d"], ["y"])], *shapes, weights
    )
    ops, _, notes = folded(two, x)
    assert ops == ["Conv", "BatchNormalization", "Add"]
    assert notes == ["0 BatchNormalization fused into the layer before, 1 left: nothing before to fuse into"]
    output = build([conv, norm], *shapes, weights)
    output.graph.output.append(helper.make_tensor_value_info("c", 1, (2, 4, 5, 5)))
    assert folded(output, x)[0] == ["Conv", "BatchNormalization"]
    outputs = ["y", "m", "v"]
    training = build([conv, node("BatchNormalization", ["c", *NORM], outputs, training_mode=1)], *shapes, weights)
    assert folded(training, x)[0] == ["Conv", "BatchNormalization"]
    alone = build([node("BatchNormalization", ["x", *NORM], ["y"])], *shapes, weights)
    assert folded(alone, x)[0] == ["BatchNormalization"]


def test_norms_of_a_weight_that_several_layers_share_stay() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["d"]),
        node("Conv", ["d", "w"], ["e"]),
        node("BatchNormalization", ["e", *NORM], ["y"]),
    ]
    proto = build(nodes, {"x": (1, 4, 5, 5)}, {"y": (1, 4, 5, 5)}, {"w": random(4, 4, 1, 1), **norm_weights(4)})
    ops, model, _ = folded(proto, random(1, 4, 5, 5))
    assert ops == ["Conv", "BatchNormalization"] * 2
    (layer,) = find_layers(model)[0]
    assert len(layer.uses) == 2


def test_a_shared_bias_does_not_hinder() -> None:
    nodes = [
        node("Conv", ["x", "v", "b"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["d"]),
        node("Conv", ["d", "w", "b"], ["y"]),
    ]
    weights = {"v": random(4, 4, 1, 1), "w": random(4, 4, 1, 1, seed=3), "b": random(4, seed=5), **norm_weights(4)}
    ops, model, _ = folded(build(nodes, {"x": (1, 4, 5, 5)}, {"y": (1, 4, 5, 5)}, weights), random(1, 4, 5, 5))
    assert ops == ["Conv", "Conv"]
    np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), weights["b"])


def test_norm_of_each_pixel_stays() -> None:
    proto = build(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *NORM], ["y"], spatial=0)],
        {"x": (1, 4, 1, 1)},
        {"y": (1, 4, 1, 1)},
        {"w": random(4, 4, 1, 1), **norm_weights(4)},
        opset=7,
    )
    assert folded(proto)[0] == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("ir_version", [3, 6])
def test_initializers_listed_as_inputs(ir_version: int) -> None:
    weights = {"w": random(4, 4, 1, 1), **norm_weights(4), "free": np.float32(2)}
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["d"]),
        node("Mul", ["d", "free"], ["y"]),
    ]
    inputs = {"x": (1, 4, 5, 5), **{name: np.shape(array) for name, array in weights.items()}}
    proto = build(nodes, inputs, {"y": (1, 4, 5, 5)}, weights, opset=8, ir_version=ir_version)
    ops, model, _ = folded(proto, random(1, 4, 5, 5))
    assert ops == (["Conv"] if ir_version == 3 else ["Conv", "Mul"])
    kept = ["x"] if ir_version == 3 else ["x", "free"]  # before IR 4 the list was no choice
    assert [value.name for value in model.graph.inputs] == kept


# ------------------------------------------------ Pad


@pytest.mark.parametrize("opset", [10, 11, 17, 18])
def test_pad_into_conv(opset: int) -> None:
    pads = [0, 0, 1, 2, 0, 0, 3, 0]
    pad = node("Pad", ["x"], ["p"], pads=pads) if opset < 11 else node("Pad", ["x", "pads"], ["p"])
    proto = build(
        [pad, node("Conv", ["p", "w"], ["y"], name="conv", pads=[1, 0, 0, 1])],
        {"x": ("N", 2, "H", "W")},
        {"y": ("N", 3, None, None)},
        {"w": random(3, 2, 3, 3), **({} if opset < 11 else {"pads": np.array(pads)})},
        opset=opset,
    )
    ops, model, notes = folded(proto, random(2, 2, 5, 6))
    if opset < 11:
        assert ops == ["Pad", "Conv"]
        return
    assert ops == ["Conv"]
    assert model.graph[0].name == "conv"
    assert tuple(model.graph[0].attributes.get_ints("pads")) == (2, 2, 3, 1)
    assert "1 Pad fused into the Conv behind it" in notes


def test_pads_that_the_graph_computes() -> None:
    """As torch exports F.pad: zeros for the leading axes are made with ConstantOfShape and put before the rest."""
    nodes = [
        node("ConstantOfShape", ["four"], ["zeros"], value=numpy_helper.from_array(np.zeros(1, np.int64))),
        node("Concat", ["zeros", "last"], ["pads"], axis=0),
        node("Pad", ["x", "pads"], ["p"]),
        node("Conv", ["p", "w"], ["y"]),
    ]
    weights = {"w": random(3, 2, 3, 3), "four": np.array([6]), "last": np.array([1, 1])}
    proto = build(nodes, {"x": (1, 2, 5, 5)}, {"y": (1, 3, 4, 4)}, weights)
    ops, model, _ = folded(proto, random(1, 2, 5, 5))
    assert ops == ["Conv"]
    assert tuple(model.graph[0].attributes.get_ints("pads")) == (0, 0, 1, 1)


def test_pads_that_must_stay() -> None:
    weights = {"w": random(3, 2, 3, 3), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.float32(1)}
    for attributes, names in ({"mode": "reflect"}, ["x", "p"]), ({}, ["x", "p", "one"]):
        nodes = [node("Pad", names, ["c"], **attributes), node("Conv", ["c", "w"], ["y"])]
        proto = build(nodes, {"x": (1, 2, 5, 5)}, {"y": (1, 3, 5, 5)}, weights)
        assert folded(proto, random(1, 2, 5, 5))[0] == ["Pad", "Conv"]


# ------------------------------------------------ constants, functions, names


def test_constants_become_initializers() -> None:
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(random(4, 3))),
        node("Transpose", ["w"], ["t"], name="turn"),
        node("Transpose", ["t"], ["u"]),
        node("Constant", [], ["one"], value_float=1.0),
        node("Add", ["one", "one"], ["two"]),
        node("Mul", ["x", "two"], ["z"]),
        node("MatMul", ["z", "u"], ["y"]),
    ]
    ops, model, _ = folded(build(nodes, {"x": (2, 4)}, {"y": (2, 3)}), random(2, 4))
    assert ops == ["Mul", "MatMul"]
    assert len(model.graph.initializers) == 2


def test_a_table_that_two_nodes_read_stays_shared() -> None:
    nodes = [
        node("Gather", ["table", "i"], ["x"]),
        node("Transpose", ["table"], ["t"]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    proto = build(nodes, {}, {"y": (2, 64)}, {"table": random(64, 16)})
    proto.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [2]))
    ops, model, _ = folded(proto)
    assert ops == ["Gather", "Transpose", "MatMul"]
    assert list(model.graph.initializers) == ["table"]
    assert find_layers(model)[0][0].shared


def test_a_computed_weight_folds_at_any_size() -> None:
    """Weight standardisation: (w − mean) / deviation, of 36,864 values."""
    nodes = [
        node("ReduceMean", ["w"], ["mean"], axes=[1, 2, 3]),
        node("Sub", ["w", "mean"], ["centred"]),
        node("ReduceL2", ["centred"], ["norm"], axes=[1, 2, 3]),
        node("Div", ["centred", "norm"], ["v"]),
        node("Conv", ["x", "v"], ["y"], name="conv"),
    ]
    proto = build(nodes, {"x": ("N", 64, 5, 5)}, {"y": ("N", 64, 3, 3)}, {"w": random(64, 64, 3, 3)})
    ops, model, _ = folded(proto, random(2, 64, 5, 5))
    assert ops == ["Conv"]
    (layer,), left = find_layers(model)
    assert (layer.name, left) == ("conv", [])


def test_a_product_that_would_grow_is_not_stored() -> None:
    nodes = [node("MatMul", ["a", "b"], ["w"]), node("Mul", ["x", "w"], ["y"])]
    weights = {"a": random(600, 2), "b": random(2, 600)}
    ops, _, _ = folded(build(nodes, {"x": (600, 600)}, {"y": (600, 600)}, weights), random(600, 600))
    assert ops == ["MatMul", "Mul"]


def test_a_large_expansion_is_not_stored() -> None:
    nodes = [node("Expand", ["one", "shape"], ["large"]), node("Add", ["x", "large"], ["y"])]
    weights = {"one": np.float32(1), "shape": np.array([600, 600])}
    _, model, _ = folded(build(nodes, {"x": (600, 600)}, {"y": (600, 600)}, weights), random(600, 600))
    assert max(value.const_value.size for value in model.graph.initializers.values()) < 100


def test_random_draws_and_quantization_stay() -> None:
    nodes = [
        node("RandomNormal", [], ["r"], shape=[2, 2]),
        node("Bernoulli", ["half"], ["b"]),
        node("QuantizeLinear", ["half", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Sum", ["x", "r", "b", "d"], ["y"]),
    ]
    weights = {"half": np.full((2, 2), 0.5, np.float32), "s": np.float32(0.1), "z": np.int8(0)}
    ops, _, _ = folded(build(nodes, {"x": (2, 2)}, {"y": (2, 2)}, weights))
    assert ops == ["RandomNormal", "Bernoulli", "QuantizeLinear", "DequantizeLinear", "Sum"]


def test_functions_are_inlined() -> None:
    inner = [node("MatMul", ["a", "b"], ["c"]), node("Relu", ["c"], ["d"])]
    function = helper.make_function("local", "Dense", ["a", "b"], ["d"], inner, [helper.make_opsetid("", 17)])
    calls = [
        node("Dense", ["x", "w"], ["h"], domain="local", name="one"),
        node("Dense", ["h", "w"], ["y"], domain="local", name="two"),
    ]
    imports = [helper.make_opsetid("local", 1)]
    proto = build(calls, {"x": (2, 4)}, {"y": (2, 4)}, {"w": random(4, 4)}, imports=imports)
    proto.functions.append(function)
    ops, model, notes = folded(proto, random(2, 4))
    assert ops == ["MatMul", "Relu"] * 2
    assert not model.functions
    assert "1 function inlined" in notes


def test_odd_outputs() -> None:
    """An input as output, a constant, one value twice, unused inputs, Dropout: names and order stay."""
    nodes = [
        node("Identity", ["x"], ["same"]),
        node("Constant", [], ["fixed"], value=numpy_helper.from_array(random(2))),
        node("Relu", ["x"], ["r"]),
        node("Identity", ["r"], ["r1"]),
        node("Identity", ["r"], ["r2"]),
        node("Dropout", ["r"], ["dropped"]),
        node("Add", ["w", "w"], ["sum"]),
    ]
    outputs = {
        "same": (2, "M"),
        "fixed": (2,),
        "r1": (2, None),
        "r2": (2, None),
        "r": (2, None),
        "dropped": (2, "Q"),
        "sum": (2,),
    }
    proto = build(nodes, {"x": (2, "N"), "unused": (3,)}, outputs, {"w": random(2), "idle": random(2)})
    source = read_model(proto)
    model, notes = fold(source)
    assert not any("left out" in note for note in notes)
    assert signature(model) == signature(source)
    assert "idle" not in model.graph.initializers
    feed = {"x": random(2, 5), "unused": random(3)}
    assert_same(run(model, feed), run(proto, feed))


def test_shapes_stay_symbolic() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "minus": np.array([-1])}
    _, model, _ = folded(build(nodes, {"x": ("N", 2, 3)}, {"y": ("N", None)}, weights), random(5, 2, 3))
    assert_same(run(model, {"x": random(3, 2, 3)}), [random(3, 2, 3).reshape(3, 6)])


def test_bodies_stay_whole() -> None:
    inner = helper.make_graph(
        [
            node("Constant", [], ["k"], value=numpy_helper.from_array(random(2, 2))),
            node("MatMul", ["h", "k"], ["m"]),
            node("Identity", ["m"], ["out"]),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("out", 1, [2, 2])],
    )
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Cast", ["total"], ["yes"], to=onnx.TensorProto.BOOL),
        node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
    ]
    ops, _, _ = folded(build(nodes, {"x": (2, 2)}, {"y": (2, 2)}), random(2, 2))
    assert ops == ["Relu", "ReduceSum", "Cast", "If"]


def test_a_step_that_fails_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ir.Model) -> str | None:
        model.graph.outputs.clear()
        raise RuntimeError("first line\nsecond line")

    def renames(model: ir.Model) -> str | None:
        model.graph.outputs[0].name = "other"
        return "done"

    monkeypatch.setattr(fold_module, "_fold_constants", broken)
    monkeypatch.setattr(fold_module, "_fuse_pads", renames)
    proto = build(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *NORM], ["y"])],
        {"x": (1, 4, 2, 2)},
        {"y": (1, 4, 2, 2)},
        {"w": random(4, 4, 1, 1), **norm_weights(4)},
    )
    model, notes = fold(read_model(proto))
    assert notes == [
        "folding constants was left out: first line",
        "fusing Pad into Conv was left out: it would change the model's outputs",
        "1 BatchNormalization fused into the layer before",
    ]
    assert_same(run(model, {"x": random(1, 4, 2, 2)}), run(proto, {"x": random(1, 4, 2, 2)}))


def test_the_argument_stays_as_it_is() -> None:
    proto = build(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *NORM], ["y"])],
        {"x": (1, 4, 2, 2)},
        {"y": (1, 4, 2, 2)},
        {"w": random(4, 4, 1, 1), **norm_weights(4)},
    )
    source = read_model(proto)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    result, _ = fold(source)
    remove_unused(result)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


def test_remove_unused_drops_the_inputs_of_replaced_weights() -> None:
    proto = build([node("MatMul", ["x", "w"], ["y"])], {"x": (2, 2), "w": (2, 2)}, {"y": (2, 2)}, {"w": random(2, 2)})
    model = read_model(proto)
    new = ir.Value(name="v", const_value=ir.tensor(random(2, 2), name="v"))
    model.graph.register_initializer(new)
    model.graph[0].replace_input_with(1, new)
    remove_unused(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["v"]


@pytest.mark.parametrize("name", ["resnet20-cifar10", "resnet56-cifar10"])
def test_real_networks(name: str, shared: Path) -> None:
    path = shared / "models" / f"{name}.onnx"
    model, _ = fold(read_model(path))
    assert "BatchNormalization" not in {n.op_type for n in model.graph}
    assert "Constant" not in {n.op_type for n in model.graph}
    x = random(2, 3, 32, 32)
    assert_same(run(model, {"input": x}), run(onnx.load(path), {"input": x}))


LARGE_RESULTS = {
    "Expand": ["column", "sizes"],
    "Tile": ["column", "repeats"],
    "Range": ["zero", "end", "one"],
    "Add": ["column", "row"],
    "MatMul": ["column", "row"],
    "Where": ["choice", "column", "row"],
    "OneHot": ["ids", "end", "pair"],
    "Pad": ["column", "pads"],
}


@pytest.mark.parametrize("op", LARGE_RESULTS)
def test_what_would_be_large_is_not_computed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of constants stand for 2³⁶ elements and more, which no machine has to make room for."""
    n = 2**18
    weights = {
        "column": np.ones((n, 1), np.float32),
        "row": np.ones((1, n), np.float32),
        "choice": np.ones((n, 1), bool),
        "sizes": np.array([n, n]),
        "repeats": np.array([1, n]),
        "pads": np.array([0, 0, 0, n]),
        "ids": np.zeros(n, np.int64),
        "pair": np.array([0, 1], np.float32),
        **{name: np.array(value) for name, value in {"zero": 0, "one": 1, "end": n * n}.items()},
    }
    used = {name: weights[name] for name in LARGE_RESULTS[op]}
    nodes = [
        node(op, LARGE_RESULTS[op], ["large"]),
        node("Shape", ["large"], ["size"]),
        node("Cast", ["size"], ["number"], to=onnx.TensorProto.FLOAT),
        node("ReduceSum", ["number"], ["total"], keepdims=0),
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "total"], ["y"]),
    ]
    proto = build(nodes, {"x": ("n", 4)}, {"y": ("n", 4)}, {**used, "w": random(4, 4)})
    model, notes = fold(ir.from_proto(proto))
    assert not any("left out" in note for note in notes)
    assert [layer.op for layer in find_layers(model)[0] if layer.name == "h" or layer.op == "MatMul"]
    assert all(v.const_value is None or v.const_value.size <= n for v in model.graph.initializers.values())


def test_results_that_are_no_larger_than_their_inputs_fold_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "LARGE", 8)
    nodes = [node("Mul", ["a", "b"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    proto = build(nodes, {"x": ("n", 8)}, {"y": ("n", 8)}, {"a": random(8, 8), "b": random(8, 8, seed=1)})
    model, _ = fold(ir.from_proto(proto))
    assert [n.op_type for n in model.graph] == ["MatMul"]
