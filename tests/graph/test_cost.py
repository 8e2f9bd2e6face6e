from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, build, random

from onnx_obc.core.level import parse_choice, parse_level
from onnx_obc.graph.cost import Cost, bops, density, layer_costs, level_flops, obc_bops, table_bytes, weight_bytes
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model

node = helper.make_node


def cost_of(nodes: list[Any], x: Any, weights: dict[str, Array], outputs: tuple[str, ...] = ("y",)) -> Cost:
    model = ir.from_proto(build(nodes, {"x": x}, dict.fromkeys(outputs), weights))
    layers, _ = find_layers(model)
    (cost,) = layer_costs(model, layers).values()
    return cost


def test_conv() -> None:
    conv = node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1] * 4)
    cost = cost_of([conv], (7, 4, 9, 9), {"w": random(6, 2, 3, 3)})
    assert cost == Cost(6 * 2 * 9, 2 * (6 * 5 * 5) * (2 * 9))  # output values × multiply-adds of each


def test_conv_transpose_counts_input_pixels() -> None:
    up = node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    cost = cost_of([up], (7, 4, 9, 9), {"w": random(4, 6, 2, 2)})
    assert cost.flops == 2 * (4 * 9 * 9) * (6 * 2 * 2)  # input values × outputs that each adds to


@pytest.mark.parametrize(
    ("x", "w", "left", "expected", "free"),
    [
        ((7, 4), (4, 3), False, 4 * 3, ()),
        (("N", 4), (4, 3), False, 4 * 3, ()),
        (("N", 5, 4), (4, 3), False, 5 * 4 * 3, ()),
        (("N", "T", 4), (4, 3), False, 4 * 3, ("T",)),
        (("N", 2, 5, 4), (2, 4, 3), False, 2 * 5 * 4 * 3, ()),
        (("N", 1, 5, 4), (2, 4, 3), False, 2 * 5 * 4 * 3, ()),
        ((4,), (4, 3), False, 4 * 3, ()),
        (("N", 4, 5), (3, 4), True, 3 * 4 * 5, ()),
        ((4, 5), (3, 4), True, 3 * 4 * 5, ()),
    ],
)
def test_products(x: Any, w: tuple[int, ...], left: bool, expected: int, free: tuple[str, ...]) -> None:
    cost = cost_of([node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])], x, {"w": random(*w)})
    assert cost == Cost(int(np.prod(w)), 2 * expected, free)


def test_samples_along_another_axis() -> None:
    """(x Lᵀ) as L xᵀ, and tokens first: neither the run's samples nor the axis that they lie along change the count."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 2, 0]),
        node("MatMul", ["w", "t"], ["l"], "left"),
        node("Transpose", ["l"], ["r"], perm=[0, 2, 1]),
        node("MatMul", ["r", "v"], ["y"], "right"),
    ]
    proto = build(nodes, {"x": ("N", 5, 16)}, {"y": None}, {"w": random(12, 16), "v": random(12, 8)})
    model = ir.from_proto(proto)
    layers, _ = find_layers(model)
    expected = {"left": Cost(12 * 16, 2 * 5 * 12 * 16), "right": Cost(12 * 8, 2 * 5 * 12 * 8)}
    assert layer_costs(model, layers) == expected
    for count in (1, 32):
        run = {"t": (5, 16, count), "l": (5, 12, count), "r": (5, count, 12), "y": (5, count, 8)}
        assert layer_costs(model, layers, run, count) == expected


def test_uses_add_up() -> None:
    nodes = [node("Conv", ["x", "w"], ["y"]), node("Conv", ["x", "w"], ["z"], strides=[2, 2])]
    cost = cost_of(nodes, (1, 2, 4, 4), {"w": random(2, 2, 1, 1)}, ("y", "z"))
    assert cost.flops == 2 * 4 * (16 + 4)


def test_unknown_shapes() -> None:
    cost = cost_of([node("MatMul", ["x", "w"], ["y"])], None, {"w": random(4, 3)})
    assert cost == Cost(12, None)


@pytest.mark.parametrize(
    ("x", "samples", "expected"), [((1, 5, 4), 1, 5), ((6, 5, 4), 6, 5), ((12, 5, 4), 6, 10), ((5, 1, 4), 1, 5)]
)
def test_shapes_of_a_run(x: tuple[int, ...], samples: int, expected: int) -> None:
    """Parts of a sample along axis 0, such as the windows of an image, count; samples do not."""
    graph = build([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", "T", 4)}, {"y": None}, {"w": random(4, 3)})
    model = ir.from_proto(graph)
    layers, _ = find_layers(model)
    (cost,) = layer_costs(model, layers, {"x": x, "y": (*x[:2], 3)}, samples).values()
    assert cost == Cost(12, 2 * expected * 4 * 3)
    conv = ir.from_proto(build([node("Conv", ["x", "w"], ["y"])], {"x": None}, {"y": None}, {"w": random(6, 2, 1, 1)}))
    (cost,) = layer_costs(conv, find_layers(conv)[0], {"x": (8, 2, 3, 3), "y": (8, 6, 3, 3)}, 2).values()
    assert cost.flops == 4 * 2 * (6 * 3 * 3) * 2


def test_the_model_stays_as_it_is() -> None:
    model = ir.from_proto(build([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 4)}, {"y": None}, {"w": random(4, 3)}))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    layer_costs(model, find_layers(model)[0])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("float", 4 * 6 * 27),
        ("2:4", 4 * 6 * 27),
        ("int8", 6 * 27 + 4 * 6),
        ("int4", 81 + 4 * 6),
        ("int3", 61 + 4 * 6),  # 60.75
        ("sparse-0.6+int4-asym", 81 + 4 * 6 + 3),
    ],
)
def test_weight_bytes(level: str, expected: int) -> None:
    model = build(
        [node("Conv", ["x", "w"], ["y"], group=2)], {"x": (1, 6, 4, 4)}, {"y": None}, {"w": random(6, 3, 3, 3)}
    )
    (layer,) = find_layers(ir.from_proto(model))[0]
    assert weight_bytes(layer, parse_level(level)) == expected


@pytest.mark.parametrize(
    ("level", "kept"), [("float", 1), ("int4", 1), ("2:4", 1 / 2), ("1:4+int8", 1 / 4), ("block4-0.70", 0.3)]
)
def test_density(level: str, kept: float) -> None:
    assert density(parse_level(level)) == pytest.approx(kept)
    assert level_flops(Cost(10, 1000), parse_level(level)) == pytest.approx(1000 * kept)


@pytest.mark.parametrize(
    ("choice", "product", "widest"),
    [
        ("float", 32 * 32, 32),
        ("8w8a", 8 * 8, 8),
        ("4w4a", 4 * 4, 4),
        ("4w8a", 4 * 8, 8),
        ("int4", 4 * 32, 32),  # floats are multiplied
        ("2:4", 32 * 32 / 2, 32 / 2),
        ("2:4+8w8a", 8 * 8 / 2, 8 / 2),
        ("sparse-0.75+4w4a", 4 * 4 / 4, 4 / 4),
    ],
)
def test_bit_operations(choice: str, product: float, widest: float) -> None:
    assert bops(Cost(10, 1000), parse_choice(choice)) == 1000 * product
    assert obc_bops(Cost(10, 1000), parse_choice(choice)) == 1000 * widest


def test_without_flops_there_are_no_bit_operations() -> None:
    unknown, choice = Cost(10, None), parse_choice("2:4+8w8a")
    assert bops(unknown, choice) is obc_bops(unknown, choice) is level_flops(unknown, choice.level) is None


def test_table_bytes() -> None:
    assert table_bytes(1000, 4, 32, 4) == 500 + 128
    assert table_bytes(1000, 4, 32, 2) == 500 + 64


def test_real_network(shared: Path) -> None:
    path = shared / "models" / "resnet20-cifar10.onnx"
    model, _ = fold(read_model(path))
    costs = layer_costs(model, find_layers(model)[0])
    assert sum(cost.parameters for cost in costs.values()) == 267_696 + 640  # convolutions and the classifier
    assert sum(cost.flops or 0 for cost in costs.values()) == 2 * 40_551_040  # 40.55 M multiply-adds
