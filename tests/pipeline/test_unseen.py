"""What calibration never shows stays float: a later input must not meet a scale that was made up."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, build, random, run

from onnx_obc import Recipe, compress
from onnx_obc.runtime.sqnr import agreement_db

node = helper.make_node


def two_stages() -> onnx.ModelProto:
    """A second stage for the rows with a value above 3.5 alone."""
    nodes = [
        node("ReduceMax", ["x"], ["s"], axes=[1], keepdims=0),
        node("Greater", ["s", "limit"], ["c"]),
        node("NonZero", ["c"], ["i"]),
        node("Transpose", ["i"], ["t"]),
        node("GatherND", ["x", "t"], ["g"]),
        node("MatMul", ["g", "a"], ["h"], name="unreached"),
        node("Tanh", ["h"], ["r"]),
        node("Gemm", ["r", "b", "d"], ["y"], name="unreached too", transB=1),
        node("MatMul", ["x", "e"], ["z"], name="reached"),
    ]
    weights = {"limit": np.float32(3.5), "a": random(16, 16), "b": random(4, 16), "d": random(4), "e": random(16, 8)}
    return build(
        nodes, {"x": ("n", 16)}, {"y": ("k", 4), "z": ("n", 8)}, {k: np.asarray(v) for k, v in weights.items()}
    )


def dead_branch() -> onnx.ModelProto:
    """A Conv whose Relu lets nothing pass on the calibration data, between others."""
    nodes = [
        node("Conv", ["x", "u"], ["c"], name="first"),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v", "low"], ["d"], name="dead"),
        node("Relu", ["d"], ["s"]),
        node("Conv", ["s", "w"], ["e"], name="behind"),
        node("Add", ["e", "r"], ["f"]),
        node("Conv", ["f", "t"], ["y"], name="last"),
    ]
    weights = {name: random(8, 8, 1, 1, seed=ord(name)) for name in "uvwt"} | {"low": np.full(8, -60, np.float32)}
    return build(nodes, {"x": ("n", 8, 4, 4)}, {"y": ("n", 8, 4, 4)}, weights)


def outputs(model: ir.Model | onnx.ModelProto, x: Array) -> list[Array]:
    return run(ir.to_proto(model) if isinstance(model, ir.Model) else model, {"x": x})


@pytest.mark.slow
def test_a_stage_that_no_sample_reaches() -> None:
    x = np.clip(random(48, 16), -3, 3)
    result = compress(two_stages(), {"x": x})
    inputs = {layer.name: layer.activations for layer in result.report.layers}
    assert inputs == {"unreached": "float", "unreached too": "float", "reached": "int8"}
    assert all("no range" in " ".join(layer.notes) for layer in result.report.layers[:2])
    x[:, 0] = 4
    assert agreement_db(outputs(two_stages(), x)[0], outputs(result.model, x)[0]) > 25


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "deepsparse", "tensorrt"])
def test_an_activation_that_is_always_zero(target: str) -> None:
    recipe = Recipe.model_validate({"target": target, "layers": [{"match": "*"}]})
    result = compress(dead_branch(), {"x": random(48, 8, 4, 4)}, recipe)
    inputs = {layer.name: layer.activations for layer in result.report.layers}
    assert inputs == {"first": "int8", "dead": "int8", "behind": "float", "last": "int8"}
    assert "s" not in result.report.activations
    x = random(8, 8, 4, 4) * 8
    found, expected = outputs(result.model, x)[0], outputs(dead_branch(), x)[0]
    assert agreement_db(expected, found) > 0  # beyond what was seen, but of the same kind
