from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from small_graphs import assert_same, build, random, run

from onnx_obc.core.level import parse_level
from onnx_obc.graph.layers import Contraction, Embedding, Layer, LeftOut, Window, find_embeddings, find_layers

node = helper.make_node


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    layers, left = find_layers(ir.from_proto(model))
    assert left == []
    for layer in layers:
        matrix = layer.matrix()
        assert matrix.shape == (layer.groups, layer.rows, layer.columns)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(layer.tensor(matrix), layer.weight)
        codes = matrix.astype(np.int8)
        assert layer.tensor(codes).dtype == np.int8
        np.testing.assert_array_equal(layer.tensor(codes), layer.weight.astype(np.int8))
        assert layer.columns % layer.channels == 0
    return layers


def left_of(model: onnx.ModelProto) -> list[LeftOut]:
    layers, left = find_layers(ir.from_proto(model))
    assert layers == []
    return left


# ------------------------------------------------ the order of columns, against onnxruntime


def naive_conv(layer: Layer, x: Any, y_shape: tuple[int, ...], pads: tuple[int, ...], window: Window) -> Any:
    """W @ X with X gathered value by value: columns (kernel…, channel), one position for every output pixel."""
    spatial, size = y_shape[2:], x.shape[2:]
    y = np.zeros(y_shape, np.float64)
    w = layer.matrix().astype(np.float64)
    for n in range(x.shape[0]):
        for g in range(layer.groups):
            for pixel in itertools.product(*map(range, spatial)):
                column = []
                for tap in itertools.product(*map(range, window.kernel)):
                    source = []
                    for o, k, s, d, p in zip(pixel, tap, window.strides, window.dilations, pads, strict=False):
                        if window.transposed:
                            at, rest = divmod(o + p - k * d, s)
                            source.append(at if rest == 0 else -1)
                        else:
                            source.append(o * s + k * d - p)
                    inside = all(0 <= i < limit for i, limit in zip(source, size, strict=True))
                    for c in range(layer.channels):
                        column.append(x[(n, g * layer.channels + c, *source)] if inside else 0.0)
                y[(n, slice(g * layer.rows, (g + 1) * layer.rows), *pixel)] = w[g] @ np.array(column)
    return y


@st.composite
def conv_cases(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    ints = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    case = {
        "groups": draw(st.integers(1, 3)),
        "channels": draw(st.integers(1, 3)),
        "rows": draw(st.integers(1, 3)),
        "kernel": ints(1, 3),
        "strides": ints(1, 2),
        "dilations": ints(1, 2),
        "pads": [*ints(0, 1), *ints(0, 1)],
        "extra": ints(0, 2),
        "transposed": draw(st.booleans()),
    }
    return case


@settings(max_examples=50, deadline=None)
@given(conv_cases())
def test_conv_columns(case: dict[str, Any]) -> None:
    groups, channels, rows, kernel = case["groups"], case["channels"], case["rows"], case["kernel"]
    outer = (groups * channels, rows) if case["transposed"] else (groups * rows, channels)
    size = [(k - 1) * d + 1 + e for k, d, e in zip(kernel, case["dilations"], case["extra"], strict=True)]
    x = random(2, groups * channels, *size, seed=1)
    attributes = {key: case[key] for key in ("strides", "dilations", "pads")} | {"group": groups}
    op = "ConvTranspose" if case["transposed"] else "Conv"
    if op == "ConvTranspose":
        attributes["output_padding"] = [s - 1 for s in case["strides"]]
        size_out = [
            (i - 1) * s + (k - 1) * d + s
            for i, k, s, d in zip(size, kernel, case["strides"], case["dilations"], strict=True)
        ]
        attributes["pads"] = [min(p, o // 2) for p, o in zip(case["pads"], size_out * 2, strict=True)]
        if min(o - 2 for o in size_out) < 1:
            attributes["pads"] = [0] * len(case["pads"])
    model = build(
        [node(op, ["x", "w"], ["y"], **attributes)],
        {"x": x.shape},
        {"y": None},
        {"w": random(*outer, *kernel)},
    )
    (y,) = run(model, {"x": x})
    (layer,) = layers_of(model)
    window = layer.uses[0].tap.unfold
    assert isinstance(window, Window)
    assert (layer.groups, layer.rows, layer.channels) == (groups, rows, channels)
    assert window.pads == tuple(attributes["pads"])
    got = naive_conv(layer, x, y.shape, window.pads, window)
    assert_same([got.astype(np.float32)], [y])


@pytest.mark.parametrize(("auto_pad", "begin"), [("SAME_UPPER", 0), ("SAME_LOWER", 1), ("VALID", 0)])
def test_conv_auto_pad(auto_pad: str, begin: int) -> None:
    x = random(1, 4, 6, 6)
    convolve = node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[1, 1], group=2)
    model = build([convolve], {"x": x.shape}, {"y": None}, {"w": random(6, 2, 2, 2)})
    (layer,) = layers_of(model)
    window = layer.uses[0].tap.unfold
    assert isinstance(window, Window)
    assert window.auto_pad == auto_pad
    (y,) = run(model, {"x": x})
    assert_same([naive_conv(layer, x, y.shape, (begin, begin), window).astype(np.float32)], [y])


def test_conv_transpose_output_shape_keeps_the_spatial_part() -> None:
    x = random(1, 2, 3, 3)
    up = node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[6, 6], auto_pad="SAME_UPPER")
    model = build([up], {"x": x.shape}, {"y": None}, {"w": random(2, 3, 3, 3)})
    (layer,) = layers_of(model)
    window = layer.uses[0].tap.unfold
    assert isinstance(window, Window)
    assert window.output_shape == (6, 6)
    (y,) = run(model, {"x": x})
    assert_same([naive_conv(layer, x, y.shape, (0, 0), window).astype(np.float32)], [y])


@pytest.mark.parametrize(
    ("left", "x_shape", "w_shape"),
    [
        (False, (5, 4), (4, 3)),
        (False, (2, 5, 4), (4, 3)),
        (False, (4,), (4, 3)),
        (False, (2, 5, 4), (4,)),
        (False, (2, 3, 5, 4), (3, 4, 6)),
        (False, (5, 4), (3, 4, 6)),
        (False, (2, 1, 5, 4), (2, 3, 4, 6)),
        (True, (4, 5), (3, 4)),
        (True, (2, 4, 5), (3, 4)),
        (True, (4,), (3, 4)),
        (True, (2, 4, 5), (4,)),
        (True, (2, 3, 4, 5), (3, 6, 4)),
    ],
)
def test_matmul_columns(left: bool, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
    x = random(*x_shape)
    names = ["w", "x"] if left else ["x", "w"]
    model = build([node("MatMul", names, ["y"])], {"x": x_shape}, {"y": None}, {"w": random(*w_shape, seed=1)})
    (y,) = run(model, {"x": x})
    (layer,) = layers_of(model)
    use = layer.uses[0]
    assert use.index == (0 if left else 1)
    contraction = use.tap.unfold
    assert isinstance(contraction, Contraction)
    axis = contraction.along(x.ndim)
    assert x.shape[axis] == layer.columns == layer.channels
    assert contraction.batch == w_shape[:-2]
    assert layer.groups == int(np.prod(contraction.batch))
    vectors = np.moveaxis(x, axis, -1)  # (…, columns)
    if vectors.ndim == 1:
        vectors = vectors[None]
    matrix = layer.matrix().reshape(*contraction.batch, layer.rows, layer.columns)
    products = np.einsum("...nk,...rk->...nr", vectors, matrix)  # (…, vectors, rows)
    if left:
        products = np.swapaxes(products, -1, -2)
    assert_same([products.reshape(y.shape)], [y])


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("constant", ["A", "B"])
def test_gemm_columns(trans_a: int, trans_b: int, constant: str) -> None:
    a = random(*((4, 2) if trans_a else (2, 4)))
    b = random(*((3, 4) if trans_b else (4, 3)), seed=1)
    weight, x = (a, b) if constant == "A" else (b, a)
    names = ["w", "x"] if constant == "A" else ["x", "w"]
    gemm = node("Gemm", names, ["y"], transA=trans_a, transB=trans_b, alpha=0.5)
    model = build([gemm], {"x": x.shape}, {"y": None}, {"w": weight})
    (y,) = run(model, {"x": x})
    (layer,) = layers_of(model)
    contraction = layer.uses[0].tap.unfold
    assert isinstance(contraction, Contraction)
    vectors = np.moveaxis(x, contraction.axis, 0)  # (columns, vectors)
    product = 0.5 * (layer.matrix()[0] @ vectors)  # (rows, vectors)
    assert_same([product if constant == "A" else product.T], [y])


# ------------------------------------------------ where the weight comes from


def test_weight_behind_a_chain() -> None:
    weight = random(2, 3, 4)
    nodes = [
        node("Constant", [], ["raw"], value=onnx.numpy_helper.from_array(weight)),
        node("Identity", ["raw"], ["same"]),
        node("Transpose", ["same"], ["turned"], perm=[2, 0, 1]),
        node("Unsqueeze", ["turned", "front"], ["wide"]),
        node("Squeeze", ["wide", "front"], ["narrow"]),
        node("Flatten", ["narrow"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["square"]),
        node("Cast", ["square"], ["float"], to=onnx.TensorProto.FLOAT),
        node("MatMul", ["x", "float"], ["y"], name="product"),
    ]
    model = build(nodes, {"x": (2, 4)}, {"y": None}, {"front": np.array([0]), "shape": np.array([0, -1])})
    (layer,) = layers_of(model)
    np.testing.assert_array_equal(layer.weight, weight.transpose(2, 0, 1).reshape(4, 6))
    assert (layer.name, layer.weight_name, layer.shared) == ("product", "raw", False)
    x = random(2, 4)
    assert_same([x @ layer.matrix()[0].T], run(model, {"x": x}))


def test_equal_chains_are_one_layer() -> None:
    nodes = [
        node("Transpose", ["w"], ["t1"], perm=[1, 0]),
        node("Identity", ["w"], ["same"]),
        node("Transpose", ["same"], ["t2"], perm=[1, 0]),
        node("MatMul", ["x", "t1"], ["y"], name="first"),
        node("MatMul", ["y", "t2"], ["z"], name="second"),
        node("MatMul", ["z", "w"], ["out"], name="third"),
    ]
    tied, other = layers_of(build(nodes, {"x": (2, 4)}, {"out": None}, {"w": random(4, 4)}))
    assert [use.node.name for use in tied.uses] == ["first", "second"]
    assert [use.tap.value for use in tied.uses] == ["x", "y"]
    assert tied.name == "w"
    assert other.name == "third"
    assert tied.shared
    assert other.shared


def test_tied_embedding_is_a_shared_layer() -> None:
    nodes = [
        node("Gather", ["table", "tokens"], ["x"], name="lookup"),
        node("Transpose", ["table"], ["head"]),
        node("MatMul", ["x", "head"], ["y"]),
    ]
    model = build(nodes, {}, {"y": None}, {"table": random(64, 16)})
    model.graph.input.append(helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, [3]))
    (layer,) = layers_of(model)
    assert layer.shared
    assert (layer.rows, layer.columns) == (64, 16)
    (embedding,) = find_embeddings(ir.from_proto(model))
    assert embedding.nodes[0].name == "lookup"
    assert embedding == Embedding("table", "table", embedding.nodes, (64, 16))


def test_small_or_computed_tables_are_no_embeddings() -> None:
    nodes = [
        node("Gather", ["tiny", "i"], ["a"]),
        node("Gather", ["cube", "i"], ["b"]),
        node("Gather", ["wide", "i"], ["c"], axis=1),
    ]
    tables = {"tiny": random(4, 4), "cube": random(16, 16, 16), "wide": random(64, 64), "i": np.array([1])}
    model = build(nodes, {}, {"a": None, "b": None, "c": None}, tables)
    assert find_embeddings(ir.from_proto(model)) == []


def test_two_convs_with_one_weight_and_other_strides_are_one_layer() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one"),
        node("Conv", ["x", "w"], ["b"], name="two", strides=[2, 2]),
        node("Conv", ["x", "w"], ["c"], name="three"),
    ]
    model = build(nodes, {"x": (1, 2, 5, 5)}, dict.fromkeys("abc"), {"w": random(2, 2, 3, 3)})
    (layer,) = layers_of(model)
    first, second, third = (use.tap for use in layer.uses)
    assert first == third != second
    assert not layer.shared


def test_one_weight_seen_in_two_ways_is_two_layers() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"], name="right"), node("MatMul", ["w", "x"], ["b"], name="left")]
    right, left = layers_of(build(nodes, {"x": (4, 4)}, dict.fromkeys("ab"), {"w": random(4, 4)}))
    np.testing.assert_array_equal(right.matrix(), np.swapaxes(left.matrix(), 1, 2))


def test_names_are_unique_and_never_empty() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["y"], name="b"),
        node("MatMul", ["y", "b"], ["z"]),
        node("MatMul", ["z", "c"], ["out"], name="b_2"),
    ]
    weights = {name: random(2, 2) for name in "abc"}
    layers = layers_of(build(nodes, {"x": (2, 2)}, {"out": None}, weights))
    assert [layer.name for layer in layers] == ["b", "b_2", "b_2_2"]


def test_initializer_that_is_also_an_input_is_constant() -> None:
    model = build([node("MatMul", ["x", "w"], ["y"])], {"x": (2, 2), "w": (2, 2)}, {"y": None}, {"w": random(2, 2)})
    (layer,) = layers_of(model)
    assert layer.weight_name == "w"


# ------------------------------------------------ what is left out


def test_product_of_activations_has_no_weight() -> None:
    assert left_of(build([node("MatMul", ["x", "x"], ["y"])], {"x": (2, 2)}, {"y": None})) == []


def test_deep_graphs_do_not_exhaust_the_stack() -> None:
    chain = [node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(3000)]
    model = build([*chain, node("MatMul", ["x3000", "x2999"], ["y"])], {"x0": (2, 2)}, {"y": None})
    assert left_of(model) == []


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_weight_from_the_input(op: str) -> None:
    shape = (2, 2) if op == "Gemm" else (2, 2, 1, 1)
    model = build([node(op, ["x", "v"], ["y"], name="n")], {"x": shape, "v": shape}, {"y": None})
    assert left_of(model) == [LeftOut("n", op, "the weight is computed from the model's inputs")]


def test_untraceable_weight() -> None:
    nodes = [node("Mul", ["w", "w"], ["squared"]), node("MatMul", ["x", "squared"], ["y"], name="n")]
    (left,) = left_of(build(nodes, {"x": (2, 2)}, {"y": None}, {"w": random(2, 2)}))
    assert left.reason == "the weight comes out of Mul, which was not folded into a constant"


def test_constant_times_constant() -> None:
    nodes = [node("MatMul", ["w", "w"], ["c"], name="n"), node("Add", ["x", "c"], ["y"])]
    (left,) = left_of(build(nodes, {"x": (2, 2)}, {"y": None}, {"w": random(2, 2)}))
    assert left == LeftOut("n", "MatMul", "both of its inputs are constant")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types(dtype: str) -> None:
    model = build(
        [node("MatMul", ["x", "w"], ["y"], name="n")], {"x": (2, 2)}, {"y": None}, {"w": random(2, 2).astype(dtype)}
    )
    (left,) = left_of(model)
    assert left.reason == f"weights are {dtype}" + ("; write --cast float32" if dtype == "float64" else "")


@pytest.mark.parametrize("group", [0, -1])
def test_no_groups(group: int) -> None:
    weights = {"w": random(4, 3, 3, 3)}
    model = build([node("Conv", ["x", "w"], ["y"], group=group)], {"x": (1, 3, 8, 8)}, {"y": None}, weights)
    layers, (left,) = find_layers(ir.from_proto(model))
    assert not layers
    assert f"{group} groups" in left.reason


def test_a_reshape_to_another_size() -> None:
    weights = {"w": random(50), "s": np.array([11, 5])}
    nodes = [node("Reshape", ["w", "s"], ["v"]), node("MatMul", ["x", "v"], ["y"])]
    layers, (left,) = find_layers(ir.from_proto(build(nodes, {"x": (2, 11)}, {"y": None}, weights)))
    assert not layers
    assert "Reshape" in left.reason


def test_integer_and_empty_weights() -> None:
    nodes = [node("MatMul", ["x", "i"], ["y"]), node("MatMul", ["x", "e"], ["z"])]
    weights = {"i": np.ones((2, 2), np.int32), "e": np.ones((2, 0), np.float32)}
    reasons = [left.reason for left in left_of(build(nodes, {"x": (2, 2)}, {"y": None, "z": None}, weights))]
    assert reasons == ["weights are int32", "the weight is empty"]


def test_already_quantized() -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"]),
        node("Transpose", ["d"], ["t"]),
        node("MatMul", ["x", "t"], ["y"], name="dq"),
        node("MatMulInteger", ["q", "w"], ["z"], name="integer"),
    ]
    weights = {"w": np.ones((2, 2), np.int8), "s": np.array(0.1, np.float32)}
    left = left_of(build(nodes, {"x": (2, 2), "q": (2, 2)}, {"y": None, "z": None}, weights))
    assert [(out.name, out.reason) for out in left] == [("dq", "already quantized"), ("integer", "already quantized")]


def test_unhandled_operators() -> None:
    nodes = [
        node("LSTM", ["x", "w", "r"], ["h"], hidden_size=2, name="rnn"),
        node("Einsum", ["x", "k"], ["e"], equation="abc,cd->abd"),
        node("FusedMatMul", ["x", "k"], ["f"], domain="com.microsoft"),
        node("BiasGelu", ["x", "b"], ["g"], domain="com.microsoft"),
    ]
    weights = {"w": random(1, 8, 2), "r": random(1, 8, 2), "k": random(2, 2), "b": random(2)}
    left = left_of(build(nodes, {"x": (2, 2, 2)}, dict.fromkeys("hefg"), weights))
    assert [out.reason for out in left] == [
        "LSTM weights are not handled, they stay float",
        "Einsum weights are not handled, they stay float",
        "FusedMatMul in a form that cannot be taken apart into ONNX's operators, its weights stay as they are",
    ]
    assert [out.name for out in left] == ["rnn", "e", "f"]


def test_inside_a_body() -> None:
    inner = helper.make_graph(
        [node("MatMul", ["x", "w"], ["out"], name="inner"), node("MatMul", ["x", "x"], ["unused"])],
        "body",
        [],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [2, 2])],
    )
    branch = node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner, name="choice")
    model = build([branch], {"x": (2, 2)}, {"y": (2, 2)}, {"w": random(2, 2), "yes": np.array(True)})
    assert left_of(model) == [LeftOut("inner", "MatMul", "inside the body of If 'choice'")] * 2


# ------------------------------------------------ levels that a layer cannot take


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2:4", "2:4: C/groups = 3 is not a multiple of 4"),
        ("block4-0.70", "block4: C/groups = 3 is not a multiple of 4"),
        ("1:3+int8", None),
        ("block3-0.5", None),
        ("sparse-0.6+int4", None),
        ("int8", None),
    ],
)
def test_impossible_levels(text: str, expected: str | None) -> None:
    model = build(
        [node("Conv", ["x", "w"], ["y"], group=2)], {"x": (1, 6, 4, 4)}, {"y": None}, {"w": random(4, 3, 4, 4)}
    )
    (layer,) = layers_of(model)
    assert layer.impossible(parse_level(text)) == expected


def test_impossible_for_a_product() -> None:
    (layer,) = layers_of(build([node("MatMul", ["x", "w"], ["y"])], {"x": (2, 6)}, {"y": None}, {"w": random(6, 8)}))
    assert layer.impossible(parse_level("2:4")) == "2:4: the number of columns = 6 is not a multiple of 4"
