"""What choices cost, of each kind of budget."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from digits import MODEL
from onnx import helper
from small_graphs import build, random

from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import Choice, Level, parse_choice
from onnx_obc.core.level_sets import read_levels
from onnx_obc.graph.cost import layer_costs, weight_bytes
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.search.costs import cost_table
from onnx_obc.search.latency.table import Timings
from onnx_obc.targets.registry import TARGETS

TARGET = TARGETS["onnxruntime"]


def test_costs_of_choices() -> None:
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers, _ = find_layers(model)
    dense = [Choice(Level())]
    expected = [
        ("8w8a", "bops", 16),
        ("4w4a", "bops", 64),
        ("int4", "bops", 8),
        ("8w8a", "obc-bops", 4),
        ("4w4a", "obc-bops", 8),
        ("int4", "obc-bops", 1),
        ("sparse-0.50", "flops", 2),
        ("int4", "flops", 1),
    ]
    for text, kind, times in expected:
        choice = next(c for c in read_levels(text, True) if str(c) == text)
        table = cost_table(kind, layers, layer_costs(model, layers), [[*dense, choice]] * len(layers), TARGET)
        assert table.dense == pytest.approx(sum(float(row[0]) for row in table.layers))
        assert all(row[0] / row[1] == pytest.approx(times) for row in table.layers)
    sparse = next(c for c in read_levels("2:4+4w4a", True) if str(c) == "2:4+4w4a")
    table = cost_table("obc-bops", layers[-1:], layer_costs(model, layers), [[*dense, sparse]], TARGET)
    assert table.layers[0][0] / table.layers[0][1] == pytest.approx(16)


def test_layers_that_stay_float_count_at_their_dense_cost() -> None:
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers, _ = find_layers(model)
    costs, dense, narrow = layer_costs(model, layers), Choice(Level()), parse_choice("4w4a")
    table = cost_table("obc-bops", layers, costs, [[dense], *[[dense, narrow]] * (len(layers) - 1)], TARGET)
    assert [len(row) for row in table.layers] == [1] + [2] * (len(layers) - 1)
    assert table.layers[0][0] == 32 * costs[layers[0].name].flops and table.fixed == 0  # type: ignore[operator]
    assert table.dense == 32 * sum(cost.flops or 0 for cost in costs.values())
    sizes = cost_table("size", layers, costs, [[dense, narrow]] * len(layers), TARGET)
    assert [list(row) for row in sizes.layers] == [
        [weight_bytes(layer, dense.level), weight_bytes(layer, narrow.level)] for layer in layers
    ]


def test_latency_comes_from_the_table() -> None:
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers = find_layers(model)[0][:2]
    choices = [[Choice(Level()), parse_choice("8w8a")]] * 2
    names = [layer.name for layer in layers]
    timings = Timings({name: {"float": 4.0, "8w8a": 1.0 + i} for i, name in enumerate(names)}, rest=0.5)
    table = cost_table("latency", layers, layer_costs(model, layers), choices, TARGET, timings)
    assert [list(row) for row in table.layers] == [[4, 1], [4, 2]]
    assert (table.dense, table.fixed) == (8.5, 0.5)
    with pytest.raises(RecipeError, match="needs --timings"):
        cost_table("latency", layers, layer_costs(model, layers), choices, TARGET)
    for missing in ("8w8a", "float"):
        fewer = {name: {c: s for c, s in row.items() if c != missing} for name, row in timings.layers.items()}
        with pytest.raises(RecipeError, match=f"no time for layer '{names[0]}' at {missing}; add it"):
            cost_table("latency", layers, layer_costs(model, layers), choices, TARGET, Timings(fewer))


def test_a_layer_of_unknown_flops_is_named() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    model = ir.from_proto(build([product], {"x": None}, {"y": None}, {"w": random(4, 3)}))
    layers, _ = find_layers(model)
    costs, choices = layer_costs(model, layers), [[Choice(Level()), parse_choice("8w8a")]]
    for kind in ("bops", "obc-bops", "flops"):
        with pytest.raises(RecipeError, match=f"layer '{layers[0].name}': its FLOPs are not known.*budget of size"):
            cost_table(kind, layers, costs, choices, TARGET)
    assert list(cost_table("size", layers, costs, choices, TARGET).layers[0]) == [48, 12 + 4 * 3]


def test_a_size_counts_every_copy_of_a_shared_weight() -> None:
    nodes = [helper.make_node("MatMul", [x, "w"], [y]) for x, y in (("x", "y"), ("y", "z"))]
    model = ir.from_proto(build(nodes, {"x": (2, 4)}, {"z": (2, 4)}, {"w": random(4, 4)}))
    layers, _ = find_layers(model)
    choices = [[Choice(Level()), parse_choice("int4"), parse_choice("8w8a")]]
    once = [weight_bytes(layers[0], choice.level) for choice in choices[0]]
    for name, copies in (("onnxruntime", (1, 2, 1)), ("openvino", (1, 1, 1))):  # its kernel takes no shared codes
        table = cost_table("size", layers, layer_costs(model, layers), choices, TARGETS[name])
        assert list(table.layers[0]) == [a * b for a, b in zip(once, copies, strict=True)]
        assert table.dense == 64
