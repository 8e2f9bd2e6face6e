"""The parts of a model that rounding is learned on: layers with what follows them, and residual blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import MODEL
from small_graphs import build, random, run

from onnx_obc.correction.units import CHAIN, Unit, block_units, chain_units, layer_units
from onnx_obc.graph.edit import submodel
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model

make = onnx.helper.make_node


def residual() -> ir.Model:
    """A stem, a residual block with an activation function behind it, and a head."""
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["s"], "stem", pads=[1] * 4),
        make("Relu", ["s"], ["r0"]),
        make("Conv", ["r0", "w1"], ["a"], "first", pads=[1] * 4),
        make("Relu", ["a"], ["r1"]),
        make("Conv", ["r1", "w2"], ["c"], "second", pads=[1] * 4),
        make("Add", ["c", "r0"], ["d"]),
        make("Relu", ["d"], ["r2"]),
        make("GlobalAveragePool", ["r2"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "w3"], ["y"], "head"),
    ]
    weights = {"w0": random(4, 3, 3, 3), "b0": random(4), "w1": random(4, 4, 3, 3), "w2": random(4, 4, 3, 3, seed=1)}
    return ir.from_proto(build(nodes, {"x": ("N", 3, 6, 6)}, {"y": None}, weights | {"w3": random(4, 5)}))


def attention() -> ir.Model:
    """Two blocks, each with a shape and a mask that pass beside the layers."""
    nodes = [make("Sub", ["m", "one"], ["n"]), make("Mul", ["n", "large"], ["mask"])]
    source = "x"
    for block in "ab":
        q, k, o, s, t = (f"{block}_{part}" for part in ("q", "k", "o", "s", "t"))
        nodes += [
            make("Shape", [source], [f"{block}_shape"]),
            make("MatMul", [source, "wq"], [f"{q}_raw"], q),
            make("Add", [f"{q}_raw", "bias"], [q]),
            make("MatMul", [source, f"wk{block}"], [k], k),
            make("Transpose", [k], [t], perm=[0, 2, 1]),
            make("MatMul", [q, t], [f"{s}_raw"]),
            make("Add", [f"{s}_raw", "mask"], [s]),
            make("Softmax", [s], [f"{s}_p"], axis=-1),
            make("MatMul", [f"{s}_p", k], [f"{o}_raw"]),
            make("Reshape", [f"{o}_raw", f"{block}_shape"], [f"{o}_flat"]),
            make("Add", [f"{o}_flat", source], [f"{block}_out"]),
        ]
        source = f"{block}_out"
    nodes.append(make("Identity", [source], ["y"]))
    weights = {"one": np.ones(1, np.float32), "large": np.full(1, 1e3, np.float32), "bias": random(6)}
    weights |= {"wq": random(6, 6), "wka": random(6, 6, seed=1), "wkb": random(6, 6, seed=2)}
    return ir.from_proto(build(nodes, {"x": ("N", 4, 6), "m": ("N", 1, 4)}, {"y": None}, weights))


def in_short(units: list[Unit]) -> list[tuple[tuple[str, ...], list[str], str]]:
    return [(unit.layers, [node.op_type for node in unit.nodes], unit.output) for unit in units]


def test_a_layer_with_its_bias_and_its_activation_function() -> None:
    model = residual()
    assert in_short(layer_units(model, find_layers(model)[0])) == [
        (("stem",), ["Conv", "Relu"], "r0"),
        (("first",), ["Conv", "Relu"], "r1"),
        (("second",), ["Conv"], "c"),  # the other branch is no bias
        (("head",), ["Gemm"], "y"),
    ]
    model = attention()
    units = layer_units(model, find_layers(model)[0])
    assert [(unit.layers, len(unit.nodes)) for unit in units] == [(("wq",), 2), (("a_k",), 1), (("b_k",), 1)]


def test_residual_blocks() -> None:
    model = residual()
    units = block_units(model, find_layers(model)[0])
    assert [unit.layers for unit in units] == [("stem",), ("first", "second"), ("head",)]
    assert [node.op_type for node in units[1].nodes] == ["Conv", "Relu", "Conv", "Add", "Relu"]
    assert list(units[1].inputs) == ["r0"] and units[1].output == "r2"


def test_masks_and_shapes_are_no_paths() -> None:
    model = attention()
    units = block_units(model, find_layers(model)[0])
    assert [unit.layers for unit in units] == [("wq", "a_k"), ("b_k",)]  # wq is learned where it comes first
    assert units[0].output == "a_out" and list(units[0].inputs) == ["x", "mask", "a_shape"]


def test_a_chain_has_no_blocks() -> None:
    nodes = [make("Conv", ["x", "w"], ["a"], "one"), make("Relu", ["a"], ["b"]), make("Conv", ["b", "v"], ["y"], "two")]
    weights = {"w": random(4, 3, 1, 1), "v": random(5, 4, 1, 1)}
    model = ir.from_proto(build(nodes, {"x": ("N", 3, 6, 6)}, {"y": None}, weights))
    layers = find_layers(model)[0]
    assert in_short(block_units(model, layers)) == in_short(layer_units(model, layers))


def test_chains_are_put_together_but_not_across_what_others_read() -> None:
    names = [f"v{number}" for number in range(CHAIN + 3)]
    nodes = [make("Conv", [a, f"w_{b}"], [b], b, pads=[1] * 4) for a, b in pairwise(names)]
    weights = {f"w_{name}": random(3, 3, 3, 3) for name in names[1:]}
    model = ir.from_proto(build(nodes, {"v0": ("N", 3, 6, 6)}, {names[-1]: None}, weights))
    units = chain_units(model, find_layers(model)[0])
    assert [len(unit.layers) for unit in units] == [CHAIN, len(nodes) - CHAIN]
    assert [block.output for block in units[0].blocks] == names[1 : CHAIN + 1]

    nodes.append(make("Relu", ["v1"], ["side"]))  # so that v1 leaves the model
    model = ir.from_proto(build(nodes, {"v0": ("N", 3, 6, 6)}, {names[-1]: None, "side": None}, weights))
    units = chain_units(model, find_layers(model)[0])
    assert [unit.layers for unit in units] == [("v1",), tuple(names[2 : CHAIN + 2]), (names[-1],)]


def test_shapes_of_values_inside_are_computed_inside() -> None:
    """Else what they depend on would run before the layers in between are written."""
    nodes = [
        make("MatMul", ["x", "w"], ["q"], "first"),
        make("Shape", ["q"], ["shape"]),
        make("Identity", ["shape"], ["same"]),
        make("Relu", ["q"], ["r"]),
        make("MatMul", ["r", "v"], ["p"], "second"),
        make("Reshape", ["p", "same"], ["s"]),
        make("Add", ["s", "x"], ["y"]),
    ]
    weights = {"w": random(6, 6), "v": random(6, 6, seed=1)}
    model = ir.from_proto(build(nodes, {"x": ("N", 4, 6)}, {"y": None}, weights))
    (unit,) = block_units(model, find_layers(model)[0])
    assert list(unit.inputs) == ["x"] and unit.output == "y" and len(unit.nodes) == 7


def test_paths_that_never_meet_again_are_no_block() -> None:
    nodes = [
        make("Conv", ["x", "w"], ["a"], "stem"),
        make("Conv", ["a", "u"], ["b"], "left"),
        make("Conv", ["a", "v"], ["c"], "right"),
        make("Relu", ["c"], ["z"]),
        make("Relu", ["b"], ["y"]),
    ]
    weights = {"w": random(4, 3, 1, 1), "u": random(5, 4, 1, 1), "v": random(6, 4, 1, 1)}
    model = ir.from_proto(build(nodes, {"x": ("N", 3, 6, 6)}, {"y": None, "z": None}, weights))
    layers = find_layers(model)[0]
    assert in_short(block_units(model, layers)) == in_short(layer_units(model, layers))


@pytest.mark.parametrize(("make_units", "most"), [(layer_units, 1), (block_units, 3), (chain_units, 7)])
def test_every_layer_is_in_one_unit_in_the_order_of_the_graph(make_units, most: int) -> None:  # type: ignore[no-untyped-def]
    model, _ = fold(read_model(MODEL))
    layers = find_layers(model)[0]
    units = make_units(model, layers)
    assert [name for unit in units for name in unit.layers] == [layer.name for layer in layers]
    assert max(len(unit.layers) for unit in units) == most


@pytest.mark.parametrize("make_units", [block_units, chain_units])
@pytest.mark.parametrize("graph", [residual, attention])
def test_a_part_computes_what_the_model_does(graph, make_units) -> None:  # type: ignore[no-untyped-def]
    model = graph()
    feed = {v.name: random(2, *v.shape[1:]) for v in model.graph.inputs}
    for unit in make_units(model, find_layers(model)[0]):
        whole = model.clone()
        values = {value.name: value for node in whole.graph for value in node.outputs}
        asked = [name for name in (*unit.inputs, unit.output) if name in values]
        whole.graph.outputs.clear()
        for name in asked:
            values[name].type = values[name].type or ir.TensorType(ir.DataType.FLOAT)
            if name.endswith("shape"):
                values[name].type = ir.TensorType(ir.DataType.INT64)
            whole.graph.outputs.append(values[name])
        known = feed | dict(zip(asked, run(whole, feed), strict=True))
        given = {name: known[name] for name in unit.inputs}
        (found,) = run(submodel(model, given, [unit.output]), given)
        np.testing.assert_allclose(found, known[unit.output], rtol=1e-5, atol=1e-5)
