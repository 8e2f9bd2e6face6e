"""Products of matrices of all shapes, on every target: a layer runs in integers, or its input stays float."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, build, random, run

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import RecipeError
from onnx_obc.runtime.sqnr import agreement_db

SHAPES = [
    ((2, 7, 16), (1, 16, 8), "int8"),
    ((7, 16), (1, 16, 8), "float"),
    ((2, 3, 7, 16), (1, 1, 16, 8), "int8"),
    ((2, 7, 16), (1, 1, 16, 8), "float"),
    ((16,), (2, 16, 1), "float"),
    ((2, 7, 16), (2, 16, 8), "float"),
    ((7, 16), (3, 16, 1), "float"),
    ((7, 16), (16,), "int8"),
]


def product(data: tuple[int, ...], weight: tuple[int, ...]) -> onnx.ModelProto:
    shape = np.matmul(np.zeros(data), np.zeros(weight)).shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])]
    return build(nodes, {"x": data}, {"y": shape}, {"w": random(*weight)})


def feeds(*shape: int) -> list[dict[str, Array]]:
    return [{"x": random(*shape, seed=seed)} for seed in range(12)]


@pytest.mark.parametrize(("data", "weight", "inputs"), SHAPES)
def test_weights_of_many_axes(data: tuple[int, ...], weight: tuple[int, ...], inputs: str) -> None:
    model, samples = product(data, weight), feeds(*data)
    result = compress(model, samples)
    assert [layer.activations for layer in result.report.layers] == [inputs]
    got, expected = run(ir.to_proto(result.model), samples[0])[0], run(model, samples[0])[0]
    assert agreement_db(expected, got) > 25


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "deepsparse", "tensorrt"])
@pytest.mark.parametrize(("data", "weight", "inputs"), SHAPES)
def test_weights_of_many_axes_elsewhere(
    target: str, data: tuple[int, ...], weight: tuple[int, ...], inputs: str
) -> None:
    try:
        compress(product(data, weight), feeds(*data), Recipe.model_validate({"target": target}))
    except RecipeError as error:
        assert inputs == "float", error


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_square_weights_for_deepsparse(op: str) -> None:
    attributes = {"transB": 1} if op == "Gemm" else {}
    nodes = [
        helper.make_node(op, ["x", "w"], ["h"], name="first", **attributes),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node(op, ["r", "v"], ["y"], name="second", **attributes),
    ]
    model = build(nodes, {"x": ("n", 16)}, {"y": ("n", 16)}, {"w": random(16, 16), "v": random(16, 16, seed=1)}, 13)
    result = compress(model, {"x": random(32, 16)}, Recipe.model_validate({"target": "deepsparse"}))
    assert {node.op_type for node in result.model.graph} >= {"MatMulInteger"}


@pytest.mark.parametrize("gelu", ["Tanh", "QuickGelu"])
def test_a_constant_times_a_vector_whose_rank_is_not_known(gelu: str) -> None:
    domain = "com.microsoft" if gelu == "QuickGelu" else ""
    nodes = [helper.make_node(gelu, ["x"], ["g"], domain=domain), helper.make_node("MatMul", ["a", "g"], ["y"])]
    imports = [helper.make_opsetid("com.microsoft", 1)]
    model = build(nodes, {"x": (16,)}, {"y": (8,)}, {"a": random(8, 16)}, imports=imports)
    samples = feeds(16)
    result = compress(model, samples)
    got, expected = run(ir.to_proto(result.model), samples[0])[0], run(model, samples[0])[0]
    assert agreement_db(expected, got) > 30


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_shared_weight_runs_in_its_kernel(weights: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    model = build(nodes, {"x": ("n", 5, 32)}, {"y": ("n", 5, 32)}, {"w": random(32, 32)})
    recipe = Recipe.model_validate({"weights": weights, "activations": "none"})
    report = compress(model, {"x": random(32, 5, 32)}, recipe).report
    assert report.engine is not None
    assert report.engine["integer_weights"] == report.engine["in_weight_kernels"] == 2
    assert "each has a copy" in " ".join(report.layers[0].notes)


@pytest.mark.slow
def test_a_constant_on_the_left_for_openvino() -> None:
    model = build([helper.make_node("MatMul", ["a", "x"], ["y"])], {"x": (16, 6)}, {"y": (8, 6)}, {"a": random(8, 16)})
    report = compress(model, feeds(16, 6), Recipe.model_validate({"target": "openvino"})).report
    assert report.layers[0].activations == "float"
    assert "constant left operand" in " ".join(report.layers[0].notes)
    assert not any("zero point" in note or "no rule that is known" in note for note in report.notes)
