"""Models as onnxruntime and its transformer optimizer leave them: taken apart, they compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, assert_same, build, random, run

from onnx_obc import Recipe, RecipeError, compress
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.graph.opset import raise_opset

MICROSOFT = [helper.make_opsetid("com.microsoft", 1)]


def fused(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name="fused", domain="com.microsoft", **attributes)


def apart(proto: onnx.ModelProto, feed: dict[str, Array], tolerance: float = 1e-5) -> ir.Model:
    """The model folded, which must compute the same at its own opset and at the newest."""
    model, notes = fold(read_model(proto))
    assert not any("left out" in note for note in notes), notes
    expected = run(proto, feed)
    for version in (0, 21, 25):
        assert_same(run(raise_opset(model, version), feed), expected, tolerance)
    return model


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_fused_matmul(turned: tuple[int, int], alpha: float) -> None:
    left, right = [[(2, 5, 8), (2, 8, 5)][turned[0]], [(8, 6), (6, 8)][turned[1]]]
    node = fused("FusedMatMul", ["x", "w"], ["y"], transA=turned[0], transB=turned[1], alpha=alpha)
    proto = build([node], {"x": left}, {"y": (2, 5, 6)}, {"w": random(*right)}, imports=MICROSOFT)
    model = apart(proto, {"x": random(*left)})
    (layer,), left_out = find_layers(model)
    assert (layer.op, layer.name, layer.rows, layer.columns) == ("MatMul", "fused", 6, 8) and not left_out


def test_fused_matmul_of_two_activations_stays() -> None:
    node = fused("FusedMatMul", ["x", "z"], ["y"], transB=1, alpha=0.5)
    shapes = {"x": (2, 5, 8), "z": (2, 6, 8)}
    model = apart(
        build([node], shapes, {"y": (2, 5, 6)}, imports=MICROSOFT), {k: random(*s) for k, s in shapes.items()}
    )
    assert [node.op_type for node in model.graph] == ["FusedMatMul"] and find_layers(model) == ([], [])


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Relu", {}),
        ("Tanh", {}),
        ("LeakyRelu", {"activation_alpha": 0.3}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ],
)
def test_fused_gemm(activation: str, parameters: dict[str, float]) -> None:
    node = fused("FusedGemm", ["x", "w", "b"], ["y"], activation=activation, transB=1, **parameters)
    weights = {"w": random(6, 8), "b": random(6)}
    proto = build([node], {"x": (5, 8)}, {"y": (5, 6)}, weights, imports=MICROSOFT)
    (layer,), _ = find_layers(apart(proto, {"x": random(5, 8)}))
    assert (layer.op, layer.name) == ("Gemm", "fused")


@pytest.mark.parametrize("added", [False, True])
def test_fused_conv(added: bool) -> None:
    node = fused("FusedConv", ["x", "w", "b", *(["z"] if added else [])], ["y"], activation="Relu", pads=[1, 1, 1, 1])
    feed = {"x": random(2, 4, 7, 7)} | ({"z": random(2, 6, 7, 7)} if added else {})
    shapes = {name: array.shape for name, array in feed.items()}
    weights = {"w": random(6, 4, 3, 3), "b": random(6)}
    (layer,), _ = find_layers(apart(build([node], shapes, {"y": (2, 6, 7, 7)}, weights, imports=MICROSOFT), feed))
    assert (layer.op, layer.name) == ("Conv", "fused")


def attention(opset: int, mask: tuple[int, ...] | None, past: bool = False, **attributes: object) -> onnx.ModelProto:
    sizes = list(attributes.get("qkv_hidden_sizes", [16, 16, 16]))  # type: ignore[call-overload]
    inputs = ["x", "w", "b", "mask" if mask else "", *(["past"] if past else [])]
    outputs = ["y", *(["present"] if past else [])]
    shapes: dict[str, tuple[int, ...]] = {"x": (2, 5, 16)} | ({"past": (2, 2, 2, 3, 8)} if past else {})
    weights = {"w": random(16, sum(sizes)) / 4, "b": random(sum(sizes))}
    node = fused("Attention", inputs, outputs, num_heads=2, **attributes)
    declared = {"y": (2, 5, sizes[2]), **({"present": (2, 2, 2, 8, 8)} if past else {})}
    proto = build([node], shapes, declared, weights, opset=opset, imports=MICROSOFT)
    if mask:
        proto.graph.input.append(helper.make_tensor_value_info("mask", onnx.TensorProto.INT32, mask))
    return proto


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(
    ("mask", "past", "attributes"),
    [
        (None, False, {}),
        ((2,), False, {}),
        ((2, 5), False, {"mask_filter_value": -1e4}),
        (None, False, {"unidirectional": 1, "scale": 0.2}),
        (None, True, {"unidirectional": 1}),
        (None, False, {"qkv_hidden_sizes": [16, 16, 32]}),
    ],
)
def test_attention(opset: int, mask: tuple[int, ...] | None, past: bool, attributes: dict[str, object]) -> None:
    feed = {"x": random(2, 5, 16)} | ({"past": random(2, 2, 2, 3, 8)} if past else {})
    if mask:
        feed["mask"] = np.array([5, 3] if len(mask) == 1 else [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    model = apart(attention(opset, mask, past, **attributes), feed, tolerance=1e-4)
    (layer,), left_out = find_layers(model)
    assert (layer.op, layer.name, layer.columns) == ("MatMul", "fused", 16) and not left_out
    assert [node.op_type for node in model.graph if node.domain] == ["MultiHeadAttention"]


def test_attention_that_cannot_be_taken_apart_is_left_out_and_named() -> None:
    proto = attention(17, (2, 1, 5, 5))
    for mask in ((2, 1, 5, 5), (4,), (2, 1)):  # MultiHeadAttention takes none of them
        model, _ = fold(read_model(attention(17, mask)))
        _, (left,) = find_layers(model)
        assert left.op == "Attention" and "cannot be taken apart" in left.reason
    with pytest.raises(RecipeError, match="cannot be taken apart"):
        compress(proto, [{"x": random(2, 5, 16), "mask": np.ones((2, 1, 5, 5), np.int32)}], Recipe(weights="int4"))


@pytest.mark.parametrize("segments", [False, True])
def test_embeddings(segments: bool) -> None:
    names = ["ids", "kind" if segments else "", "words", "places", "kinds" if segments else "", "g", "b", "mask"]
    weights = {
        "words": random(99, 32),
        "places": random(64, 32),
        "kinds": random(2, 32),
        "g": random(32),
        "b": random(32),
    }
    if not segments:
        del weights["kinds"]
    proto = build(
        [fused("EmbedLayerNormalization", names, ["y", "count"])], {}, {"y": (2, 5, 32)}, weights, imports=MICROSOFT
    )
    feed = {"ids": np.arange(10, dtype=np.int32).reshape(2, 5), "mask": np.array([[1] * 5, [1, 1, 1, 0, 0]], np.int32)}
    if segments:
        feed["kind"] = np.array([[0, 0, 1, 1, 1]] * 2, np.int32)
    for name in feed:
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT32, (2, 5)))
    proto.graph.output.append(helper.make_tensor_value_info("count", onnx.TensorProto.INT32, (2,)))
    model = apart(proto, feed)
    assert {node.op_type for node in model.graph} >= {"Gather", "SkipLayerNormalization", "ReduceSum"}


@pytest.mark.slow
def test_operators_in_onnxs_domain_that_only_onnxruntime_has() -> None:
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["h"], name="first"),
        helper.make_node("LayerNormalization", ["h", "k", "b"], ["m"], axis=-1),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="second"),
    ]
    weights = {"g": random(8), "w": random(8, 16), "k": random(16), "b": random(16), "v": random(16, 4)}
    proto = build(nodes, {"x": (2, 5, 8)}, {"y": (2, 5, 4)}, weights, opset=14)
    layers, _ = find_layers(apart(proto, {"x": random(2, 5, 8)}))
    assert [layer.name for layer in layers] == ["first", "second"]
    samples = {"x": random(40, 5, 8)}
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    for recipe in (Recipe(), Recipe(weights="int4", activations="none")):
        assert all(check.passed for check in compress(proto, samples, recipe).report.checks)


def test_shapes_behind_onnxruntimes_operators() -> None:
    nodes = [
        fused("SkipLayerNormalization", ["x", "x", "g", "b"], ["s", "", "", "sum"]),
        helper.make_node("FastGelu", ["sum"], ["f"], domain="com.microsoft"),
        helper.make_node("Add", ["s", "f"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weights = {"g": random(8), "b": random(8), "w": random(8, 4)}
    model, _ = fold(read_model(build(nodes, {"x": ("N", 5, 8)}, {"y": ("N", 5, 4)}, weights, imports=MICROSOFT)))
    (layer,), _ = find_layers(model)
    source = layer.uses[0].node.inputs[0]
    assert source is not None and source.shape is not None and list(source.shape)[1:] == [5, 8]


def test_what_is_quantized_already_is_named() -> None:
    codes, scales = np.full((8, 1, 16), 0x77, np.uint8), np.ones(8, np.float32)
    nodes = [
        fused("MatMulNBits", ["x", "c", "s"], ["h"], K=32, N=8, bits=4, block_size=32),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="plain"),
    ]
    proto = build(
        nodes, {"x": ("N", 32)}, {"y": ("N", 4)}, {"c": codes, "s": scales, "w": random(8, 4)}, imports=MICROSOFT
    )
    report = compress(proto, {"x": random(40, 32)}, Recipe(weights="int4", activations="none")).report
    assert [layer.name for layer in report.layers] == ["plain"]
    assert [(x.name, x.op, x.reason) for x in report.left_out] == [("fused", "MatMulNBits", "already int4")]
