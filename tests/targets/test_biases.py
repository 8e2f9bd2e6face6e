"""onnxruntime rounds biases to int32 by itself: what it computes with that is what the file says."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from small_graphs import Array, build, random, run
from written import rounded

from onnx_obc import Recipe, compress
from onnx_obc.core.level import Level
from onnx_obc.graph.layers import find_layers
from onnx_obc.runtime.sqnr import agreement_db
from onnx_obc.targets.onnxruntime.biases import MOST, fit_to_biases

DEAD, ZERO = 3, 5  # rows of nearly no weight, and of none


def network(op: str, weight: float, bias: float) -> onnx.ModelProto:
    """Two products with a Relu between, whose first has rows that next to nothing but their bias reaches."""
    convolves = op == "Conv"
    w, v = random(16, 8, *([3, 3] * convolves)), random(4, 16, *([1, 1] * convolves))
    b = random(16) * np.float32(bias)
    w *= np.float32(weight)
    w[DEAD] *= np.float32(1e-9)
    w[ZERO] = 0
    b[[DEAD, ZERO]] = [2 * bias, 0.4 * bias]
    weights = {"w": w, "v": v, "b": b, "c": random(4)}
    if op == "Gemm":
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first", transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="second", transB=1),
        ]
    elif op == "MatMul":
        weights |= {"w": np.ascontiguousarray(w.T), "v": np.ascontiguousarray(v.T)}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
            helper.make_node("Add", ["m", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
        ]
        del weights["c"]
    else:
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Conv", ["r", "v", "c"], ["y"], name="second"),
        ]
    return build(nodes, {"x": ("n", 8, *([6, 6] * convolves))}, {"y": ("n", 4, *(["h", "w"] * convolves))}, weights)


def fused(model: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def check(op: str, scales: tuple[float, float, float], **options: object) -> None:
    data, weight, bias = scales
    model = network(op, weight, bias)
    x = np.abs(random(48, 8, *([6, 6] * (op == "Conv")))) * np.float32(data)
    found = ir.to_proto(compress(model, {"x": x}, Recipe.model_validate(options)).model)
    expected, optimized, meant = run(model, {"x": x})[0], fused(found, {"x": x}), run(found, {"x": x})[0]
    assert agreement_db(meant, optimized) > 40
    assert agreement_db(expected, optimized) > 25


@pytest.mark.slow
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("effort", ["normal", "fast"])
def test_biases_of_dead_and_empty_rows(op: str, effort: str) -> None:
    check(op, (1, 1, 1), effort=effort)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("scales", list(product((1e-6, 1, 1e6), repeat=3)))
def test_whatever_the_scale_of_inputs_weights_and_biases(op: str, scales: tuple[float, float, float]) -> None:
    check(op, scales)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"asymmetric": True}, {"target": "openvino"}])
def test_other_grids(options: dict[str, object]) -> None:
    check("Conv", (255, 1e-2, 1), **options)


def test_rows_that_need_nothing_stay_as_they_are() -> None:
    model = ir.from_proto(network("Conv", 1, 1))
    layer = find_layers(model)[0][0]
    solution = rounded(layer, Level(bits=8))
    assert fit_to_biases(layer, solution) is solution  # its input is float
    compressed = compress(network("Conv", 1, 1), {"x": np.abs(random(48, 8, 6, 6))})
    notes = compressed.report.layers[0].notes
    assert any(note.startswith("1 of 16 rows") for note in notes)
    assert not any("rows are next to nothing" in note for note in compressed.report.layers[1].notes)


@pytest.mark.slow
def test_a_bias_is_within_int32() -> None:
    graph = compress(network("Conv", 1, 1), {"x": np.abs(random(48, 8, 6, 6))}).model.graph
    node = next(node for node in graph if node.name == "first")
    steps = [node.inputs[index].producer().inputs[1].const_value.numpy() for index in (0, 1)]  # type: ignore[union-attr]
    bias = node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
    units = np.abs(bias / (steps[0] * steps[1]))
    assert units.max() <= MOST
    assert units[ZERO] >= 2**23
