"""A study from a model and data to its record, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from digits import CALIBRATION, MODEL
from half_models import in_half
from onnx import helper
from small_graphs import build, random

from onnx_obc import Recipe, compress, open_database
from onnx_obc import build as build_database
from onnx_obc.core.errors import CalibrationError, DatabaseError, ModelError, RecipeError
from onnx_obc.core.progress import Feedback
from onnx_obc.pipeline.recipe import read_recipe
from onnx_obc.study.study import StudyOptions, study_model
from onnx_obc.study.whole import BEST, PRUNED, QUANTIZED


def model(weight: np.ndarray | None = None) -> onnx.ModelProto:
    """Two products: the first a matrix of 12 × 16, or what is given."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    first = random(12, 16) if weight is None else weight
    weights = {"a": first, "b": random(16, 5, seed=1)}
    return build(nodes, {"x": ("n", 12)}, {"y": ("n", 5)}, weights)


def samples(count: int = 200) -> dict[str, np.ndarray]:
    return {"x": random(count, 12, seed=2)}


@pytest.mark.slow
def test_a_whole_study(tmp_path: Path) -> None:
    stages = set()
    feedback = Feedback(lambda stage, done, total: stages.add(stage))
    options = StudyOptions(bits=(3, 4), prove=1e6, recipe=tmp_path / "r.yaml", chunk=10)
    found = study_model(model(), samples(), options, feedback=feedback)
    assert [row.name for row in found.layers] == ["first", "second"] and not found.interrupted
    for layer in found.layers:
        assert layer.reason is None and layer.studied == layer.rows and layer.positions > 0
        assert [row.bits for row in layer.budgets] == [3, 4]
        assert all(math.isfinite(way.snr) for row in layer.budgets for way in row.ways)
    assert {row.layer for row in found.chunks} == {"first", "second"}
    assert all(row.columns[1] <= 10 for row in found.chunks)
    assert [row.verdicts["bytes"].winner for layer in found.layers for row in layer.budgets if row.bits == 4] == [
        max(row.ways, key=lambda way: way.snr).kind for layer in found.layers for row in layer.budgets if row.bits == 4
    ]
    assert sum("bytes" in row.verdicts for layer in found.layers for row in layer.budgets if row.bits == 4) == 2
    assert {"weights", "study", "prove", "compare"} <= stages
    assert [(x.bits, x.name) for x in found.whole] == [
        (bits, name) for bits in (3, 4) for name in (QUANTIZED, PRUNED, BEST)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r-3bit.yaml", "r-4bit.yaml"]


@pytest.mark.slow
def test_the_recipe_gives_the_layers_their_verdicts(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    found = study_model(model(), samples(), StudyOptions(bits=(4,), size="paper", recipe=file))
    text = file.read_text()
    assert text.startswith("# ") and "in onnxruntime zeros make nothing faster" in text
    plain = yaml.safe_load(text)
    best = {layer.name: max(layer.budgets[0].ways, key=lambda way: way.snr).level for layer in found.layers}
    assert [rule["match"] for rule in plain["layers"]] == list(best)
    made = compress(model(), samples(), read_recipe(file).model_copy(update={"effort": "fast"}))
    assert {layer.name: layer.level for layer in made.report.layers} == best
    (whole,) = (x for x in found.whole if x.name == BEST)
    assert made.report.output_loss == pytest.approx(whole.loss, rel=1e-3) and whole.recipe == str(file)


def test_weights_alone() -> None:
    found = study_model(model(), None, StudyOptions(bits=(4,)))
    assert found.samples == 0 and not found.chunks
    for layer in found.layers:
        (row,) = layer.budgets
        assert not row.ways and not row.verdicts and row.tensor.quantized > 10 and layer.kurtosis is not None


@pytest.mark.slow
def test_the_same_study_says_the_same() -> None:
    first, second = (study_model(model(), samples(), StudyOptions(bits=(3,), rows=8)) for _ in range(2))
    assert first == second and first.layers[0].studied == 8
    other = study_model(model(), samples(), StudyOptions(bits=(3,), rows=8), Recipe(seed=1))
    assert first.layers != other.layers


@pytest.mark.slow
def test_rows_without_an_answer_say_why() -> None:
    flat = study_model(model(np.ones((12, 16), np.float32)), samples(), StudyOptions(bits=(4,), prove=1e6))
    assert "all of its weights are equal" in str(flat.layers[0].reason) and not flat.layers[0].budgets
    assert flat.layers[1].reason is None and {row.layer for row in flat.chunks} == {"second"}
    broken = random(12, 16)
    broken[3, 3] = np.nan
    assert "NaN" in str(study_model(model(broken), None, StudyOptions(bits=(4,))).layers[0].reason)
    dead = study_model(model(-np.abs(random(12, 16))), {"x": np.abs(random(50, 12))}, StudyOptions(bits=(4,)))
    assert "never reaches it" in str(dead.layers[1].reason)  # behind a Relu of what is never positive


@pytest.mark.slow
def test_too_few_positions_are_said() -> None:
    found = study_model(model(), samples(8), StudyOptions(bits=(4,)))
    assert any("null space" in note for note in found.layers[0].notes)
    single = study_model(model(), samples(1), StudyOptions(bits=(4,)))
    assert single.layers[0].budgets[0].ways


def test_a_budget_that_no_density_meets() -> None:
    found = study_model(model(), samples(), StudyOptions(bits=(2,), size="bitmap"))
    assert all(row.tensor.pruned["bitmap"] is not None for layer in found.layers for row in layer.budgets)


def test_what_is_refused(tmp_path: Path) -> None:
    def refused(options: StudyOptions, calibration: object = None) -> str:
        with pytest.raises(RecipeError) as error:
            study_model(model(), calibration, options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "2 to 8 bits" in refused(StudyOptions(bits=(1,))) and "2 to 8 bits" in refused(StudyOptions(bits=()))
    assert "--chunk 1" in refused(StudyOptions(chunk=1)) and "--chunk 65" in refused(StudyOptions(chunk=65))
    assert "not below 0" in refused(StudyOptions(rows=-1), samples())
    assert "not below 0" in refused(StudyOptions(prove=math.nan), samples())
    with pytest.raises(RecipeError, match="--solver baseline"):
        study_model(model(), samples(), recipe=Recipe(solver="baseline"))
    assert "needs --calib" in refused(StudyOptions(prove=5.0))
    assert "needs --calib" in refused(StudyOptions(recipe=tmp_path / "r.yaml"))
    relu = build([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 4)}, {"y": (1, 4)}, {})
    with pytest.raises(ModelError, match="no layer with a constant weight"):
        study_model(relu)
    with pytest.raises(CalibrationError):
        study_model(model(), {"x": random(20, 11)})


@pytest.mark.slow
def test_solutions_come_from_a_database(tmp_path: Path) -> None:
    build_database(model(), samples(), "int4-asym,int8", tmp_path / "db", Recipe(refine="none"))
    options = StudyOptions(bits=(4,), rows=6)
    plain = study_model(model(), samples(), options)
    stored = study_model(model(), samples(), StudyOptions(bits=(4,), rows=6, database=tmp_path / "db"))
    for a, b in zip(plain.layers, stored.layers, strict=True):
        assert a.studied == b.studied
    told = f"{tmp_path / 'db'}, of which solutions are taken, was built with refine none, not auto"
    assert told in stored.notes and f"2 solutions came from {tmp_path / 'db'}" in stored.notes
    assert [layer.recalled for layer in stored.layers] == [1, 1] and not any(layer.recalled for layer in plain.layers)
    assert stored.how["database"] == str(tmp_path / "db")
    other = model(random(12, 16, seed=9))
    with pytest.raises(DatabaseError, match="another model"):
        study_model(other, samples(), StudyOptions(database=tmp_path / "db"))


def test_only_solutions_of_this_tool_are_recalled(tmp_path: Path) -> None:
    build_database(model(), samples(), "int4", tmp_path / "db", Recipe(solver="baseline"))
    with pytest.raises(DatabaseError, match="was solved by baseline, not by this tool; leave it out"):
        study_model(model(), samples(), StudyOptions(bits=(4,), database=tmp_path / "db"))


def test_a_database_of_a_model_in_half_precision_with_its_channels_reordered(tmp_path: Path) -> None:
    """What is recalled belongs to the rows and columns that are studied, which have the database's order."""
    given = in_half(model(), onnx.TensorProto.FLOAT16)
    build_database(given, samples(), "2:4,int8", tmp_path / "db", Recipe(device="cpu"))
    database = open_database(tmp_path / "db")
    assert database.manifest.orders is not None and database.transforms[0].kept
    found = study_model(given, samples(), StudyOptions(bits=(8,), database=tmp_path / "db"), Recipe(device="cpu"))
    quantized = [way for layer in found.layers for row in layer.budgets for way in row.ways if way.kind == "quantize"]
    assert len(quantized) == 2 and all(way.snr > 30 for way in quantized)  # of other rows it would be noise


def test_an_interrupt_leaves_what_was_finished() -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "study":
            raise KeyboardInterrupt

    found = study_model(model(), samples(), StudyOptions(bits=(4,), prove=1e6), feedback=Feedback(interrupt))
    assert found.interrupted
    assert found.layers[0].budgets[0].ways and not found.layers[1].budgets[0].ways and not found.chunks


def test_an_interrupt_at_once_leaves_the_names() -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    found = study_model(model(), None, StudyOptions(bits=(4,)), feedback=Feedback(interrupt))
    assert found.interrupted and [layer.name for layer in found.layers] == ["first", "second"]


def test_layers_that_the_target_cannot_take_stay_float(tmp_path: Path) -> None:
    """TensorRT takes 8 bits alone: at 3 bits only pruning is left, which the recipe says."""
    file = tmp_path / "r.yaml"
    recipe = Recipe(target="tensorrt")
    found = study_model(model(), samples(), StudyOptions(bits=(3,), size="paper", recipe=file), recipe)
    text = file.read_text()
    assert "the way that loses least is not for TensorRT" in text and "target: tensorrt" in text
    names = {x.name for x in found.whole}
    assert QUANTIZED not in names and BEST in names
    assert all(rule["weights"] == "float" for rule in yaml.safe_load(text)["layers"])


@pytest.mark.slow
def test_the_demo_model(tmp_path: Path) -> None:
    found = study_model(MODEL, CALIBRATION, StudyOptions(bits=(4,), prove=20.0, size="paper"))
    assert len(found.layers) == 20 and all(layer.reason is None for layer in found.layers)
    proven = [row.proven for row in found.chunks]
    assert len(proven) > 50 and proven.count("quantize") > 0.8 * len(proven)
    verdicts = [row.verdicts["bitmap"] for layer in found.layers for row in layer.budgets]
    quantized = [v for v in verdicts if v.winner == "quantize"]
    assert len(quantized) >= 15
