"""What stands in for modules of onnx2torch computes what onnxruntime does, with the gradients that training needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import build, random

from onnx_obc.correction.torch_graph import _torchvision_or_none, check_agreement, to_torch
from onnx_obc.graph.layers import find_layers

torch = pytest.importorskip("torch")
with _torchvision_or_none():
    pytest.importorskip("onnx2torch")
    from onnx_obc.correction.torch_operators import _Bound, _Codes

make = onnx.helper.make_node


@pytest.mark.parametrize(
    ("operator", "operands", "bound"),
    [
        ("Max", ["c", "low"], True),
        ("Min", ["high", "c"], True),
        ("Min", ["c", "one"], True),
        ("Max", ["c", "channels"], False),
        ("Max", ["c", "deep"], False),
        ("Min", ["c", "x"], False),
        ("Max", ["c", "low", "x"], False),
        ("Max", ["c"], False),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) if isinstance(value, list) else "",
)
def test_smaller_and_larger(operator: str, operands: list[str], bound: bool) -> None:
    constants = {
        "low": np.float32(-0.2),
        "high": np.float32(0.3),
        "one": np.array([0.1], np.float32),
        "channels": random(3, 1, 1),
        "deep": np.zeros((1, 1, 1, 1, 1), np.float32),
    }
    nodes = [make("Conv", ["x", "w"], ["c"], "conv"), make(operator, operands, ["y"], "end")]
    weights = {"w": random(3, 3, 1, 1), **{name: constants[name] for name in operands if name in constants}}
    model = ir.from_proto(build(nodes, {"x": (2, 3, 5, 5)}, {"y": None}, weights))
    graph = to_torch(model, find_layers(model)[0], "--effort best", ["y"])
    check_agreement(graph, model, {"x": random(2, 3, 5, 5)})
    assert any(isinstance(inner, _Bound) for inner in graph.module.modules()) == bound


def test_normalization_over_an_axis_whose_size_no_value_tells() -> None:
    nodes = [
        make("MatMul", ["x", "w"], ["c"], "product"),
        make("Reshape", ["c", "where"], ["r"]),
        make("LayerNormalization", ["r", "scale", "shift"], ["y"], "norm"),
    ]
    weights = {"w": random(3, 8), "where": np.array([0, -1]), "scale": random(8), "shift": random(8, seed=1)}
    model = ir.from_proto(build(nodes, {"x": ("N", 3)}, {"y": None}, weights))
    for value in (node.outputs[0] for node in model.graph):
        value.shape = ir.Shape([None, None])
    graph = to_torch(model, find_layers(model)[0], "--effort best", ["y"])
    check_agreement(graph, model, {"x": random(4, 3)})


def test_smaller_of_integers_stays_an_integer() -> None:
    """As where exporters cut a length short: a slice takes no floats."""
    nodes = [
        make("Conv", ["x", "w"], ["c"], "conv"),
        make("Shape", ["c"], ["s"]),
        make("Gather", ["s", "axis"], ["d"]),
        make("Min", ["d", "most"], ["e"]),
        make("Slice", ["c", "start", "e", "axis"], ["y"]),
    ]
    numbers = {name: np.array([n], np.int64) for name, n in {"axis": 2, "most": 3, "start": 0}.items()}
    model = ir.from_proto(build(nodes, {"x": (2, 3, 5, 5)}, {"y": None}, {"w": random(3, 3, 1, 1), **numbers}))
    graph = to_torch(model, find_layers(model)[0], "--effort best", ["y"])
    check_agreement(graph, model, {"x": random(2, 3, 5, 5)})


@pytest.mark.parametrize("ends", [(0, 15), (-8, 7)])
def test_gradients_of_codes_pass_the_rounding(ends: tuple[int, int]) -> None:
    """They are those of a straight-through estimator that is written out."""

    def written_out(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        steps = x / scale
        return torch.clamp(steps + (steps.round() - steps).detach() + zero, *ends)

    def gradients(codes: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = torch.tensor(3 * random(2, 3, 5, 5), requires_grad=True)
        scale, zero = torch.tensor(0.21, requires_grad=True), torch.tensor(float(ends[0] + 5))
        dequantized = (codes(x, scale, zero) - zero) * scale
        (dequantized * torch.tensor(random(2, 3, 5, 5, seed=7))).sum().backward()
        assert x.grad is not None and scale.grad is not None and (x.grad == 0).any()
        return dequantized, x.grad, scale.grad

    for found, expected in zip(gradients(lambda *a: _Codes.apply(*a, *ends)), gradients(written_out), strict=True):
        torch.testing.assert_close(found, expected)
