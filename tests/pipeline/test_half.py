"""Models in half precision go through and come out in it; models in float32 come out in float16 where that is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from half_models import in_half, network
from onnx import TensorProto, helper
from small_graphs import Array, build, random, run

from onnx_obc import Recipe, compress, open_database, parse_budget, retarget
from onnx_obc import build as build_database
from onnx_obc.core.errors import RecipeError
from onnx_obc.runtime.sqnr import agreement_db

HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
FEEDS = [{"x": random(4, 8, 6, 6, seed=seed)} for seed in range(16)]
RECIPES = {
    "8w8a": Recipe(),
    "int4": Recipe(weights="int4", activations="none", sequential=False),
    "int4 in blocks": Recipe(weights="int4", activations="none", block=16),
    "int8 alone": Recipe(weights="int8", activations="none"),
    "2:4": Recipe(weights="float", activations="none", sparsity="2:4"),
    "in order": Recipe(weights="int4", activations="none", sequential=True),
}
DECIBELS = {"8w8a": 25, "int8 alone": 25, "int4": 8, "int4 in blocks": 8, "2:4": 4, "in order": 8}


def types_of(model: onnx.ModelProto) -> set[str]:
    """The types of what the graph takes and gives."""
    values = (*model.graph.input, *model.graph.output)
    return {TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower() for v in values}


def largest(model: onnx.ModelProto) -> set[str]:
    """The types of constants with many numbers."""
    many = [c for c in model.graph.initializer if np.prod(c.dims) > 64]
    return {TensorProto.DataType.Name(c.data_type).lower() for c in many}


def outputs(model: onnx.ModelProto) -> Array:
    """What the model gives for the first feed, in float32; a bfloat16 model is computed by onnx's reference."""
    kind, x = types_of(model), FEEDS[0]["x"]
    if kind == {"bfloat16"}:
        from onnx.reference import ReferenceEvaluator

        return np.asarray(
            ReferenceEvaluator(model).run(None, {"x": x.astype(ir.DataType.BFLOAT16.numpy())})[0], np.float32
        )
    return run(model, {"x": x.astype(np.float16 if kind == {"float16"} else np.float32)})[0].astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("level", RECIPES)
@pytest.mark.parametrize("stored", [False, True], ids=["computed", "stored"])
@pytest.mark.parametrize("kind", HALF)
def test_a_model_in_half_precision(kind: str, stored: bool, level: str, tmp_path: Path) -> None:
    given, out = in_half(network(opset=22), HALF[kind], stored), tmp_path / "out.onnx"
    result = compress(given, FEEDS, RECIPES[level], output=out)
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    assert types_of(written) == types_of(given)
    floats = largest(written) - {"int8", "int4", "uint8", "uint4"}
    assert floats <= {kind}, "no weight takes twice the room"
    assert all(check.passed for check in result.report.checks), result.report.checks
    assert len(result.report.layers) == (2 if "blocks" in level else 3)  # no convolution is scaled in blocks
    if kind == "float16" or stored:
        assert agreement_db(outputs(network(opset=22)), outputs(written)) > DECIBELS[level]


@pytest.mark.slow
def test_scales_are_written_in_the_type_that_a_layer_computes_in() -> None:
    given = in_half(network(), TensorProto.FLOAT16)
    model = ir.to_proto(compress(given, FEEDS, RECIPES["int4"]).model)
    scales = [c.data_type for c in model.graph.initializer if c.name.endswith("_scale")]
    assert scales == [TensorProto.FLOAT16] * 3


def test_layers_with_scales_too_small_for_float16_are_dequantized_in_float32() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    small = build(nodes, {"x": ("N", 16)}, {"y": ("N", 4)}, {"w": random(16, 4) * 1e-5})
    result = compress(in_half(small, TensorProto.FLOAT16), {"x": random(64, 16)}, RECIPES["int4"])
    model = ir.to_proto(result.model)
    kinds = {c.name: c.data_type for c in model.graph.initializer}
    assert kinds["n.weight_scale"] == TensorProto.FLOAT and types_of(model) == {"float16"}
    assert all(check.passed for check in result.report.checks)


@pytest.mark.slow
def test_half_precision_feeds_and_float32_feeds_are_the_same() -> None:
    given = in_half(network(), TensorProto.FLOAT16)
    half = [{"x": feed["x"].astype(np.float16)} for feed in FEEDS]
    wide = [{"x": feed["x"].astype(np.float32)} for feed in half]
    models = [ir.to_proto(compress(given, feeds, RECIPES["int4"]).model) for feeds in (half, wide)]
    assert models[0].SerializeToString() == models[1].SerializeToString()


def double() -> onnx.ModelProto:
    return in_half(network(), TensorProto.DOUBLE)


def test_float64_is_left_or_cast() -> None:
    feeds = [{"x": feed["x"].astype(np.float64)} for feed in FEEDS]
    with pytest.raises(RecipeError, match="--cast float32"):
        compress(double(), feeds, RECIPES["int4"])
    result = compress(double(), feeds, RECIPES["int4"].model_copy(update={"cast": "float32"}))
    model = ir.to_proto(result.model)
    assert types_of(model) == {"float"} and len(result.report.layers) == 3
    assert agreement_db(outputs(network()), outputs(model)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("io", [False, True])
@pytest.mark.parametrize("level", ["8w8a", "int4", "2:4"])
def test_float32_comes_out_in_float16(level: str, io: bool, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = compress(
        network(), FEEDS, RECIPES[level].model_copy(update={"float16": True, "float16_io": io}), output=out
    )
    written = onnx.load(out)
    assert types_of(written) == {"float16" if io else "float"}
    assert any("float16: output loss" in note for note in result.report.notes)
    assert all(check.passed for check in result.report.checks)
    if level == "2:4":
        assert largest(written) == {"float16"}
    assert agreement_db(outputs(network()), outputs(written)) > DECIBELS[level]


def test_what_overflows_float16_stays_float32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="n"),
        helper.make_node("Mul", ["h", "many"], ["m"], name="times"),
        helper.make_node("Mul", ["m", "few"], ["y"], name="again"),
    ]
    weights: dict[str, Array] = {"w": random(16, 4), "many": np.float32([6e4]), "few": np.float32([1 / 6e4])}
    model = build(nodes, {"x": ("N", 16)}, {"y": ("N", 4)}, weights)
    recipe = RECIPES["int4"].model_copy(update={"float16": True})
    result = compress(model, {"x": random(64, 16)}, recipe)
    (note,) = [note for note in result.report.notes if "65504" in note]
    assert note.startswith("float16: 2 Mul stay float32: values up to ")
    x = random(8, 16)
    assert agreement_db(run(model, {"x": x})[0], run(ir.to_proto(result.model), {"x": x})[0]) > 8


def test_large_inputs_stay_float32() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    model = build(nodes, {"x": ("N", 16)}, {"y": ("N", 4)}, {"w": random(16, 4) * 1e-3})
    data, recipe = {"x": random(64, 16) * 1e6}, RECIPES["int4"].model_copy(update={"float16": True})
    result = compress(model, data, recipe)
    assert any("1 MatMul stay float32: values up to" in note for note in result.report.notes)
    with pytest.raises(RecipeError, match=r"float16_io: 'x' holds values up to .*; leave it out"):
        compress(model, data, recipe.model_copy(update={"float16_io": True}))


def test_what_float16_rounds_away_is_in_the_note() -> None:
    """On a CPU onnxruntime computes this in float32, whatever the file says."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="n"),
        helper.make_node("Add", ["h", "many"], ["a"]),
        helper.make_node("Sub", ["a", "many"], ["y"]),
    ]
    model = build(nodes, {"x": ("N", 16)}, {"y": ("N", 4)}, {"w": random(16, 4), "many": np.float32([2000])})
    result = compress(model, {"x": random(64, 16)}, RECIPES["int8 alone"].model_copy(update={"float16": True}))
    (note,) = [note for note in result.report.notes if note.startswith("float16: output loss")]
    before, after = (float(text) for text in re.findall(r"[\d.]+e[-+]\d+|[\d.]+(?= on)", note)[:2])
    assert after > 10 * before


@pytest.mark.parametrize("other", [{"activations": "dynamic"}, {"weights": "int4", "block": 16, "accuracy_level": 4}])
def test_bfloat16_in_a_form_of_the_targets(other: dict[str, Any]) -> None:
    recipe = Recipe(**{"activations": "none", **other})
    result = compress(in_half(network(opset=22), TensorProto.BFLOAT16), FEEDS, recipe)
    assert all(check.passed for check in result.report.checks), result.report.checks


def test_float16_for_deepsparse_is_refused() -> None:
    with pytest.raises(RecipeError, match="float16: DeepSparse computes in float32"):
        compress(network(), FEEDS, Recipe(target="deepsparse", float16=True))


@pytest.mark.slow
def test_a_model_in_half_precision_needs_no_float16() -> None:
    result = compress(
        in_half(network(), TensorProto.FLOAT16), FEEDS, RECIPES["int4"].model_copy(update={"float16": True})
    )
    assert any("in half precision already" in note for note in result.report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "double"])
def test_a_database(kind: str, tmp_path: Path) -> None:
    given = in_half(network(), getattr(TensorProto, kind.upper()))
    recipe = Recipe(cast="float32" if kind == "double" else "none")
    folder = tmp_path / "db"
    build_database(given, FEEDS, "int4,int8", folder, recipe)
    stored = onnx.load(folder / "model.onnx")
    assert types_of(stored) == ({"float16"} if kind == "float16" else {"float"})
    sizes = {layer.name: layer.float_bytes for layer in open_database(folder).layers}
    assert set(sizes.values()) == {2 if kind == "float16" else 4} and len(sizes) == 3
    (result,) = retarget(folder, [parse_budget("size=3x")], [tmp_path / "out.onnx"])
    assert types_of(onnx.load(tmp_path / "out.onnx")) == types_of(stored)
    before, after = (sum(getattr(x, f"bytes_{when}") for x in result.report.layers) for when in ("before", "after"))
    assert before >= 3 * after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "level"),
    [("openvino", "8w8a"), ("openvino", "int4"), ("openvino", "2:4"), ("tensorrt", "8w8a"), ("tensorrt", "2:4")],
)
def test_other_targets(target: str, level: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    given = in_half(network(), TensorProto.FLOAT16)
    result = compress(given, FEEDS, RECIPES[level].model_copy(update={"target": target}), output=out)
    written = onnx.load(out)
    assert types_of(written) == {"float16"}
    assert all(check.passed for check in result.report.checks), result.report.checks
    assert agreement_db(outputs(network()), outputs(written)) > DECIBELS[level]
