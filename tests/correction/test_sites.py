"""Where statistics can be corrected, in small graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, build, random

from onnx_obc.correction.sites import Site, find_sites
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers

node = helper.make_node


def sites(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    x: Sequence[int | str] = ("N", 4),
    opset: int = 17,
) -> list[Site]:
    """The sites of a graph from x to y, folded."""
    proto = build(nodes, {"x": x}, {"y": None}, weights, opset=opset)
    norms = {n.output[0] for n in nodes if n.op_type == "BatchNormalization"}
    model, _ = fold(ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True)))
    return find_sites(model, find_layers(model)[0], norms)


def batchnorm(channels: int, prefix: str = "n") -> dict[str, Array]:
    names = [f"{prefix}{i}" for i in range(4)]
    return {name: np.abs(random(channels, seed=i)) + 0.5 for i, name in enumerate(names)}


def summary(found: Sequence[Site]) -> list[tuple[str, str, str, int, int, str | None]]:
    return [(s.kind, s.node.op_type, s.value, s.axis, s.channels, s.layer) for s in found]


def test_layers_in_the_order_of_the_graph() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first"),
        node("BatchNormalization", ["a", "n0", "n1", "n2", "n3"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("Conv", ["r", "v"], ["c"], name="grouped", group=2),
        node("ConvTranspose", ["c", "u"], ["t"], name="transposed", group=2),
        node("BatchNormalization", ["t", "m0", "m1", "m2", "m3"], ["d"]),
        node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g", "bias"], ["h"], name="head"),
        node("MatMul", ["h", "z"], ["i"], name="product"),
        node("Add", ["offset", "i"], ["y"], name="plus"),
    ]
    weights = {"w": random(6, 4, 3, 3), "v": random(4, 3, 1, 1), "u": random(4, 5, 1, 1), "g": random(10, 3)}
    weights |= {"bias": random(1, 3), "z": random(3, 7), "offset": random(1, 1, 7)}
    found = sites(nodes, weights | batchnorm(6) | batchnorm(10, "m"), ("N", 4, 8, 8))
    assert summary(found) == [
        ("batchnorm", "Conv", "b", 1, 6, "first"),
        ("bias", "Conv", "c", 1, 4, "grouped"),
        ("batchnorm", "ConvTranspose", "d", 1, 10, "transposed"),
        ("bias", "Gemm", "h", -1, 3, "head"),
        ("bias", "Add", "y", -1, 7, "product"),
    ]
    assert all(site.gain is None for site in found)
    assert [site.shift and (site.shift[0] is site.node, site.shift[1]) for site in found] == [
        *[(True, 2)] * 4,
        (True, 0),
    ]


def test_a_batchnorm_behind_a_gemm() -> None:
    nodes = [
        node("Gemm", ["x", "g"], ["a"], name="gemm", transB=1),
        node("BatchNormalization", ["a", "n0", "n1", "n2", "n3"], ["y"]),
    ]
    assert summary(sites(nodes, {"g": random(5, 4)} | batchnorm(5))) == [("batchnorm", "Gemm", "y", -1, 5, "gemm")]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("MatMul", ["x", "w"], ["y"])], {"w": random(4, 3)}),
        ([node("Gemm", ["x", "w"], ["y"])], {"w": random(4, 3)}),
        ([node("Gemm", ["x", "w", "c"], ["y"], beta=0.5)], {"w": random(4, 3), "c": random(3)}),
        ([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["y"])], {"w": random(4, 3), "c": random(1)}),
        ([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["y"])], {"w": random(4, 3), "c": random(3, 1)}),
        ([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "h"], ["y"])], {"w": random(4, 3)}),
        ([node("MatMul", ["x", "w"], ["h"]), node("Sub", ["h", "c"], ["y"])], {"w": random(4, 3), "c": random(3)}),
        ([node("MatMul", ["w", "x"], ["h"]), node("Add", ["h", "c"], ["y"])], {"w": random(5, 8), "c": random(4)}),
        ([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["y"])], {"w": random(2, 4, 3), "c": random(3)}),
        (
            [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["a"]), node("Mul", ["h", "a"], ["y"])],
            {"w": random(4, 3), "c": random(3)},
        ),
        (
            [node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=0), node("Gemm", ["x", "w", "m"], ["y"])],
            {"w": random(4, 4)},
        ),
    ],
    ids=[
        "no bias",
        "Gemm without C",
        "beta",
        "one bias for all channels",
        "a bias for every sample",
        "added to itself",
        "subtracted",
        "constant left factor",
        "batched weight",
        "read twice",
        "computed C",
    ],
)
def test_layers_that_cannot_take_a_shift(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> None:
    assert sites(nodes, weights, (8, 4) if nodes[0].input[0] == "w" else ("N", 4)) == []


def test_a_conv_whose_bias_is_computed() -> None:
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0),
        node("Conv", ["x", "w", "m"], ["y"]),
    ]
    assert sites(nodes, {"w": random(4, 4, 1, 1)}, ("N", 4, 5, 5)) == []


def test_a_shared_weight_takes_shifts_but_no_factor() -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["h"], name="first"), node("Conv", ["h", "w", "b"], ["y"], name="second")]
    weights = {"w": random(4, 4, 1, 1), "b": random(4)}
    model = ir.from_proto(build(nodes, {"x": ("N", 4, 5, 5)}, {"y": ("N", 4, 5, 5)}, weights))
    found = find_sites(model, find_layers(model)[0], {"h", "y"})
    assert [(site.kind, site.node.name) for site in found] == [("bias", "first"), ("bias", "second")]


@pytest.mark.parametrize(
    ("norm", "weights", "opset", "expected"),
    [
        (node("LayerNormalization", ["x", "g", "b"], ["y"]), {"g": random(6), "b": random(6)}, 17, (-1, 6)),
        (node("LayerNormalization", ["x", "g", "b"], ["y"], axis=2), {"g": random(6), "b": random(6)}, 17, (-1, 6)),
        (node("LayerNormalization", ["x", "g"], ["y"]), {"g": random(6)}, 17, (-1, 6)),
        (node("LayerNormalization", ["x", "g", "b"], ["y"], axis=1), {"g": random(6), "b": random(6)}, 17, None),
        (node("LayerNormalization", ["x", "g", "b"], ["y"]), {"g": random(1, 6), "b": random(6)}, 17, None),
        (node("InstanceNormalization", ["x", "g", "b"], ["y"]), {"g": random(4), "b": random(4)}, 17, (1, 4)),
        (
            node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=2),
            {"g": random(4), "b": random(4)},
            21,
            (1, 4),
        ),
        (
            node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=2),
            {"g": random(2), "b": random(2)},
            18,
            None,
        ),
    ],
    ids=[
        "layer",
        "layer, from the front",
        "layer, no β",
        "two axes",
        "γ of two axes",
        "instance",
        "group",
        "old group",
    ],
)
def test_norms(norm: onnx.NodeProto, weights: dict[str, Array], opset: int, expected: tuple[int, int] | None) -> None:
    found = sites([norm], weights, ("N", 4, 6), opset)
    assert [(s.kind, s.value, s.axis, s.channels) for s in found] == (
        [("norm", "y", *expected)] if expected is not None else []
    )
    for site in found:
        assert site.gain == (site.node, 1) and site.shift == (site.node, 2)


def decomposed(divide: bool, shifted: bool) -> list[onnx.NodeProto]:
    """LayerNorm as exporters write it; RMSNorm if it is not shifted."""
    start = [node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["c"])] if shifted else []
    value = "c" if shifted else "x"
    nodes = [
        *start,
        node("Mul", [value, value], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=[-1]),
        node("Add", ["v", "epsilon"], ["e"]),
        node("Sqrt", ["e"], ["q"]),
    ]
    if divide:
        nodes.append(node("Div", [value, "q"], ["n"]))
    else:
        nodes += [node("Reciprocal", ["q"], ["i"]), node("Mul", ["i", value], ["n"])]
    if not shifted:
        return [*nodes, node("Mul", ["g", "n"], ["y"], name="gain")]
    return [*nodes, node("Mul", ["n", "g"], ["k"], name="gain"), node("Add", ["b", "k"], ["y"], name="shift")]


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_decomposed_norms(divide: bool, shifted: bool) -> None:
    weights = {"epsilon": np.array(1e-5, np.float32), "g": random(6), "b": random(6)}
    (site,) = sites(decomposed(divide, shifted), weights, ("N", 4, 6))
    assert (site.kind, site.value, site.axis, site.channels, site.layer) == ("norm", "y", -1, 6, None)
    assert site.node.name == ("shift" if shifted else "gain")
    assert site.gain is not None and (site.gain[0].name, site.gain[1]) == ("gain", 1 if shifted else 0)
    if shifted:
        assert site.shift is not None and (site.shift[0].name, site.shift[1]) == ("shift", 0)
    else:
        assert site.shift is None


def test_a_product_that_normalises_nothing_is_no_site() -> None:
    nodes = [node("Div", ["x", "d"], ["h"]), node("Mul", ["h", "g"], ["y"])]
    assert sites(nodes, {"d": random(4), "g": random(4)}) == []
