"""Channels reordered: what is computed stays, whatever ties them, and patterns cost less."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.helper import make_node as node
from small_graphs import assert_same, build, random, run

from onnx_obc import Recipe, compress
from onnx_obc.core.level import parse_level
from onnx_obc.correction.transforms.channel_permutation import best_order, find_readers, reorder
from onnx_obc.correction.transforms.group_costs import cost_of
from onnx_obc.graph.layers import find_layers

IMAGES = {"x": ("N", 3, 6, 6)}
PATTERN = parse_level("2:4")


def conv(x: str, w: str, y: str, **attributes: object) -> onnx.NodeProto:
    return node("Conv", [x, w, f"{w}_b"], [y], name=y, **attributes)


def weights(**shapes: Sequence[int]) -> dict[str, np.ndarray]:
    found = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return found | {f"{name}_b": random(shape[0], seed=90 + i) for i, (name, shape) in enumerate(shapes.items())}


def chain() -> onnx.ModelProto:
    """BatchNormalization, a scale with the channels in the middle, a pool, a Gemm behind a Reshape of unknown size."""
    constants = weights(a=(8, 3, 3, 3), b=(16, 8, 3, 3))
    constants |= {name: np.abs(random(8, seed=i)) + 0.5 for i, name in enumerate(("g", "s", "m", "v"))}
    constants |= {"scale": random(8, 1, 1), "w": random(16, 5), "rest": np.array([-1])}
    nodes = [
        conv("x", "a", "h", pads=[1] * 4),
        node("BatchNormalization", ["h", "g", "s", "m", "v"], ["n"]),
        node("Mul", ["n", "scale"], ["t"]),
        node("Clip", ["t"], ["r"]),
        conv("r", "b", "p"),
        node("LeakyRelu", ["p"], ["q"]),
        node("GlobalAveragePool", ["q"], ["u"]),
        node("Shape", ["u"], ["size"], start=0, end=1),
        node("Concat", ["size", "rest"], ["to"], axis=0),
        node("Reshape", ["u", "to"], ["f"]),
        node("Gemm", ["f", "w"], ["y"], name="y"),
    ]
    return build(nodes, IMAGES, {"y": ("N", 5)}, constants)


def residual() -> onnx.ModelProto:
    """Two branches that are added, padded with channels of zeros, and added to again."""
    constants = weights(a=(8, 3, 1, 1), b=(8, 8, 3, 3), c=(8, 8, 3, 3), d=(16, 8, 1, 1), e=(4, 16, 1, 1))
    constants["pads"] = np.array([0, 4, 0, 0, 0, 4, 0, 0])
    nodes = [
        conv("x", "a", "h"),
        conv("h", "b", "p", pads=[1] * 4),
        node("Relu", ["p"], ["r"]),
        conv("r", "c", "q", pads=[1] * 4),
        node("Add", ["q", "h"], ["s"]),
        node("Pad", ["s", "pads"], ["wide"]),
        conv("s", "d", "t"),
        node("Add", ["wide", "t"], ["u"]),
        conv("u", "e", "y"),
    ]
    return build(nodes, IMAGES, {"y": ("N", 4, 6, 6)}, constants)


def depthwise() -> onnx.ModelProto:
    """As in MobileNet, and a grouped Conv, whose channels stay."""
    constants = weights(a=(8, 3, 1, 1), b=(8, 1, 3, 3), c=(16, 8, 1, 1), d=(8, 4, 1, 1))
    nodes = [
        conv("x", "a", "h"),
        conv("h", "b", "i", group=8, pads=[1] * 4),
        node("HardSigmoid", ["i"], ["r"]),
        conv("r", "c", "p"),
        conv("p", "d", "y", group=4),
    ]
    return build(nodes, IMAGES, {"y": ("N", 8, 6, 6)}, constants)


def concat() -> onnx.ModelProto:
    """Channels put together, as one axis added to, and split otherwise than they were put together."""
    constants = weights(a=(8, 3, 1, 1), b=(12, 3, 1, 1), c=(20, 20, 1, 1), d=(4, 12, 1, 1), e=(4, 8, 1, 1))
    nodes = [
        conv("x", "a", "h"),
        conv("x", "b", "i"),
        node("Concat", ["h", "i"], ["j"], axis=1),
        conv("j", "c", "k"),
        node("Add", ["k", "j"], ["l"]),
        node("Split", ["l", "sizes"], ["m", "n"], axis=1),
        conv("m", "d", "p"),
        conv("n", "e", "q"),
        node("Sub", ["p", "q"], ["y"]),
    ]
    return build(nodes, IMAGES, {"y": ("N", 4, 6, 6)}, constants | {"sizes": np.array([12, 8])})


def transformer() -> onnx.ModelProto:
    """Tables, LayerNorm, gates and a Gelu made of Erf; attention over heads of which none is reordered."""
    constants = {
        "table": random(30, 16), "g": random(16, seed=1), "b": random(16, seed=2), "two": np.float32(1.4),
        "q": random(16, 16), "k": random(16, 16, seed=1), "v": random(16, 16, seed=2), "o": random(16, 16, seed=3),
        "up": random(16, 32), "up_b": random(32), "down": random(32, 16), "head": random(16, 30),
        "to": np.array([0, 0, 2, 8]), "back": np.array([0, 0, 16]), "axes": np.array([2]),
    }  # fmt: skip
    nodes = [node("Gather", ["table", "tokens"], ["e"]), node("LayerNormalization", ["e", "g", "b"], ["n"])]
    for name in "qkv":
        nodes += [
            node("MatMul", ["n", name], [f"{name}1"], name=name),
            node("Reshape", [f"{name}1", "to"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["scores"]),
        node("Softmax", ["scores"], ["share"]),
        node("MatMul", ["share", "v3"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "back"], ["merged"]),
        node("MatMul", ["merged", "o"], ["out"], name="o"),
        node("Add", ["out", "n"], ["a"]),
        node("MatMul", ["a", "up"], ["u"], name="up"),
        node("Add", ["u", "up_b"], ["u1"]),
        node("Erf", ["u1"], ["u2"]),
        node("Mul", ["u1", "u2"], ["u3"]),
        node("MatMul", ["u3", "down"], ["d"], name="down"),
        node("Add", ["d", "a"], ["s"]),
        node("ReduceSum", ["s", "axes"], ["total"]),
        node("Div", ["s", "total"], ["z"]),
        node("MatMul", ["z", "head"], ["y"], name="head"),
    ]
    model = build(nodes, {"tokens": ("N", 5)}, {"y": ("N", 5, 30)}, constants)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def inferred(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def shuffled(model: ir.Model) -> tuple[ir.Model, set[str]]:
    """The model with everything reordered at random that can be, and the layers that read what was."""
    layers = find_layers(model)[0]
    readers = find_readers(model, layers, {layer.name: PATTERN for layer in layers}, {})
    assert all(part.part.stop - part.part.start > 4 for found in readers.values() for part in found)
    orders = {p: np.random.default_rng(p).permutation(x[0].part.stop - x[0].part.start) for p, x in readers.items()}
    other = model.clone()
    reorder(other, orders)
    return other, {reader.layer.name for found in readers.values() for reader in found}


@pytest.mark.parametrize(
    ("proto", "readers"),
    [
        (chain(), {"p", "y"}),
        (residual(), {"p", "q", "t", "y"}),
        (depthwise(), {"p"}),
        (concat(), {"k", "p", "q"}),
        (transformer(), {"q", "k", "v", "up", "down", "head"}),
    ],
    ids=["chain", "residual", "depthwise", "concat", "transformer"],
)
def test_what_is_computed_stays(proto: onnx.ModelProto, readers: set[str]) -> None:
    model = inferred(proto)
    other, found = shuffled(model)
    assert found == readers
    moved = [x for x in model.graph.initializers if not same(model, other, x)]
    assert len(moved) >= 3
    tokens = np.random.default_rng(0).integers(0, 30, (4, 5))
    feed = {"tokens": tokens} if model.graph.inputs[0].name == "tokens" else {"x": random(4, 3, 6, 6)}
    assert_same(run(other, feed), run(proto, feed), 1e-6)


def same(model: ir.Model, other: ir.Model, name: str) -> bool:
    one, two = (each.graph.initializers[name].const_value for each in (model, other))
    assert one is not None
    assert two is not None
    return np.array_equal(one.numpy(), two.numpy())


def test_what_is_seen_from_outside_stays() -> None:
    """A value that is an output, or that an operator without a rule reads, and all that is tied to it."""
    proto = residual()
    named = onnx.ModelProto.FromString(proto.SerializeToString())
    named.graph.output.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, ("N", 8, 6, 6)))
    assert shuffled(inferred(named))[1] == {"q"}  # r alone is tied to nothing that can be seen
    sorts = onnx.ModelProto.FromString(proto.SerializeToString())
    sorts.graph.node[2].CopyFrom(node("LRN", ["p"], ["r"], size=3))  # each channel with its neighbours
    assert shuffled(inferred(sorts))[1] == {"p", "t", "y"}


def test_a_table_that_shares_a_weight_goes_along_or_keeps_the_channels() -> None:
    model = inferred(transformer())
    layers = find_layers(model)[0]
    levels = {"head": PATTERN, "down": PATTERN}
    for table, expected in (("table", {"head", "down"}), ("q", {"down"})):  # q is read by, and is not, that axis
        readers = find_readers(model, layers, levels, {"head": table})
        assert {reader.layer.name for found in readers.values() for reader in found} == expected


@pytest.mark.parametrize("level", ["2:4", "4:8", "block4:0.5", "int4-b16", "int4-asym-b16"])
def test_costs_of_exchanges_are_those_of_the_groups(level: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 1 if "b16" in level else 3, 48))
    cost = cost_of(parse_level(level), weight, rng.random(weight.shape[1:]), slice(16, 48))
    assert cost is not None
    groups = rng.permutation(32).reshape(-1, cost.size)
    found = cost.exchanged(groups, 1)
    for i, k, channel in np.ndindex(*found.shape):
        other = groups[i : i + 1].copy()
        other[0, k] = channel
        assert abs(cost.of(other)[0] - found[i, k, channel]) < 1e-5 * np.abs(found).max()
    order, rest = best_order([cost, cost], 0, 1)
    assert sorted(order) == list(range(32))
    assert np.isclose(
        cost.of(order.reshape(-1, cost.size)).sum(), rest * cost.of(np.arange(32).reshape(-1, cost.size)).sum()
    )
    assert rest < 0.95
    assert (order == best_order([cost, cost], 0, 2)[0]).all()  # whatever the threads


def test_an_order_that_hides_the_pattern_is_undone() -> None:
    """Half of the channels matter: in the right order 2:4 costs nothing."""
    saliency = np.where(np.arange(32) < 16, 1.0, 0.0) * np.ones((5, 1))
    cost = cost_of(PATTERN, saliency[:, None], np.ones((1, 32)), slice(0, 32))
    assert cost is not None
    assert best_order([cost], 0, 1)[1] < 1e-6


@pytest.mark.slow
def test_outputs_come_closer_in_the_pipeline() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 32)).astype(np.float32) * np.where(np.arange(32) < 16, 3, 0.3).astype(np.float32)
    constants = {"a": random(8, 32), "w": np.ascontiguousarray(w.T)}
    nodes = [
        node("MatMul", ["x", "a"], ["h"], name="h"),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w"], ["y"], name="y"),
    ]
    model, data = build(nodes, {"x": ("N", 8)}, {"y": ("N", 16)}, constants), {"x": random(300, 8, seed=9)}
    recipe = Recipe(device="cpu", threads=1, weights="float", sparsity="2:4", activations="none", measure_speed=False)
    report = compress(model, data, recipe).report
    attempt = next(x for x in report.corrections if x.kinds == ("channel permutation",))
    assert attempt.kept and attempt.sites == 1 and attempt.loss_after < 0.8 * attempt.loss_before
    assert all(check.passed for check in report.checks)
    without = compress(model, data, recipe.model_copy(update={"sparsity": "0.5"})).report
    assert all(attempt.kinds != ("channel permutation",) for attempt in without.corrections)
    cramped = compress(model, data, recipe.model_copy(update={"memory": 1e-6})).report
    assert all(attempt.kinds != ("channel permutation",) for attempt in cramped.corrections)
    assert any("channels were not reordered: it takes the solutions of 1 layer at once" in x for x in cramped.notes)
