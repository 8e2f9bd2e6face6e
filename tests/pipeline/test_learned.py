"""Solvers to compare with, as a user calls them: in a file, in order, and in a database."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli, top1
from small_graphs import build as build_graph
from small_graphs import random

from onnx_obc import (
    CalibrationError,
    DatabaseError,
    DataOptions,
    ModelError,
    Recipe,
    RecipeError,
    Result,
    build,
    compress,
    open_database,
    parse_budget,
    retarget,
)
from onnx_obc.pipeline.recipe import make_recipe

FEW = DataOptions(samples=128)
SOLVERS = ("baseline", "gmp", "lobs", "adaprune", "adaround", "adaquant", "brecq")
LEARNED = ("adaround", "adaquant", "brecq")


def weights(solver: str, steps: int = 60, path: Path | None = None, **fields: object) -> Result:
    values = {"weights": "int4", "activations": "none", "solver": solver, "effort": "fast"} | fields
    values |= {"iterations": steps} if solver in LEARNED else {}
    return compress(MODEL, CALIBRATION, Recipe.model_validate(values), path, data=FEW)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_each_works_from_the_command_line(solver: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, steps = tmp_path / "out.onnx", ["--iterations", 40] if solver in LEARNED else []
    report = tmp_path / "report.json"
    level = ["--weights", "int4"] if solver in LEARNED else ["--sparsity", "2:4", "--weights", "float"]
    arguments = [MODEL, out, "--calib", CALIBRATION, "--samples", 128, "--activations", "none", "--solver", solver]
    assert run_cli(*arguments, *level, *steps, "--report", report) == 0
    layers = json.loads(report.read_text())["layers"]
    assert {layer["solver"] for layer in layers} == {solver}
    assert all(layer["loss_bound"] is None and layer["loss_predicted"] == layer["loss_measured"] for layer in layers)
    onnx.checker.check_model(str(out))
    if solver not in ("baseline", "gmp"):
        assert top1(out) > 0.9
    assert f"solver: {solver}" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["adaround", "brecq"])
def test_learned_rounding_is_better_than_rounding_to_nearest(solver: str) -> None:
    """At 3 bits, by the loss of the outputs; two codes for every weight to choose from, and the same grids."""
    plain = weights("baseline", weights="int3")
    found = weights(solver, 300, weights="int3")
    sqnr = [result.report.outputs[0].sqnr_db for result in (plain, found)]
    assert sqnr[1] > sqnr[0] + 1


@pytest.mark.slow
def test_layers_at_different_levels_are_learned_together() -> None:
    """A rule keeps one layer of a block at 8 bits and leaves another as it is."""
    _, first, second, *_ = [layer.name for layer in weights("baseline").report.layers]
    rules = [{"match": first, "weights": "int8"}, {"match": second, "skip": True}]
    result = weights("brecq", 20, layers=rules)
    levels = {layer.name: layer.level for layer in result.report.layers}
    assert levels[first] == "int8" and second not in levels and set(levels.values()) == {"int8", "int4-asym"}


@pytest.mark.slow
@pytest.mark.parametrize("solver", [*LEARNED, "adaprune", "lobs"])
def test_in_order_on_compressed_inputs(solver: str) -> None:
    level = {} if solver in LEARNED else {"weights": "float", "sparsity": "2:4"}
    result = weights(solver, 40, sequential=True, activations="int8" if solver in LEARNED else "none", **level)
    if solver in LEARNED:  # there is no other solution to compare with, and so none is tried
        assert result.report.corrections == ()
    else:
        (attempt,) = result.report.corrections
        assert attempt.kinds == ("sequential",) and attempt.sites == len(result.report.layers)
    assert {layer.solver for layer in result.report.layers} == {solver}


@pytest.mark.slow
def test_what_adaquant_adds_to_biases_is_in_the_file() -> None:
    result = weights("adaquant", 40)
    plain = weights("baseline")
    biases = [
        {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.dims and len(t.dims) == 1}
        for proto in (onnx.load_from_string(_bytes(x)) for x in (plain, result))
    ]
    moved = [name for name in biases[0] if name in biases[1] and biases[0][name].dtype == np.float32
             and biases[0][name].shape == biases[1][name].shape and "scale" not in name
             and not np.array_equal(biases[0][name], biases[1][name])]  # fmt: skip
    assert len(moved) == len(result.report.layers)
    assert all("its bias was learned too" in " ".join(layer.notes) for layer in result.report.layers)


def interleaved() -> onnx.ModelProto:
    """Two products with their biases and activation functions, each kind in turn."""
    rng = np.random.default_rng(0)
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", "wa"], ["a"], "a"), make("MatMul", ["x", "wb"], ["b"], "b")]
    nodes += [make("Add", ["a", "ba"], ["aa"]), make("Add", ["b", "bb"], ["ab"])]
    nodes += [make("Relu", ["aa"], ["ra"]), make("Relu", ["ab"], ["rb"]), make("Sub", ["ra", "rb"], ["y"])]
    weights = {f"w{s}": rng.standard_normal((8, 6)).astype(np.float32) for s in "ab"}
    weights |= {f"b{s}": rng.standard_normal(6).astype(np.float32) for s in "ab"}
    return build_graph(nodes, {"x": ("N", 8)}, {"y": ("N", 6)}, weights)


@pytest.mark.parametrize("solver", LEARNED)
def test_layers_in_turn(solver: str) -> None:
    x = np.random.default_rng(1).standard_normal((96, 8)).astype(np.float32)
    values = {"weights": "int4", "activations": "none", "solver": solver, "iterations": 10, "sequential": True}
    result = compress(interleaved(), {"x": x}, Recipe.model_validate(values))
    assert [layer.solver for layer in result.report.layers] == [solver] * 2
    assert all(check.passed for check in result.report.checks)


def _bytes(result: Result) -> bytes:
    import onnx_ir as ir

    return ir.to_proto(result.model).SerializeToString()


@pytest.mark.slow
def test_blocks_are_learned_again_for_other_levels(tmp_path: Path) -> None:
    """At a level that one layer of a block lacks, the others' solutions depend on what else it can have."""
    recipe = Recipe(solver="brecq", iterations=3)
    build(MODEL, CALIBRATION, "2:4+int8,int8", tmp_path / "grown", recipe, data=FEW)
    build(MODEL, CALIBRATION, "2:4+int8,int8,int6", tmp_path / "grown", recipe, data=FEW)
    build(MODEL, CALIBRATION, "2:4+int8,int8,int6", tmp_path / "fresh", recipe, data=FEW)
    grown, fresh = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name / "layers").rglob("*.saf*")}
        for name in ("grown", "fresh")
    )
    assert grown == fresh


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["adaquant", "brecq"])
def test_a_database_of_learned_solutions(solver: str, tmp_path: Path) -> None:
    recipe = Recipe(solver=solver, iterations=10)  # type: ignore[arg-type]
    built = build(MODEL, CALIBRATION, "int8,int4", tmp_path / "db", recipe, data=FEW)
    again = build(MODEL, CALIBRATION, "int8,int4", tmp_path / "db", recipe, data=FEW)
    assert built.solved == 40 and (again.solved, again.reused) == (0, 40)
    other = recipe.model_copy(update={"iterations": 11})
    with pytest.raises(DatabaseError, match="was built with iterations 10, not 11"):
        build(MODEL, CALIBRATION, "int8,int4", tmp_path / "db", other, data=FEW)
    database = open_database(tmp_path / "db")
    solved = [database.solved(layer, database.choices[layer.name][-1]) for layer in database.layers]
    assert all((entry.solution.bias is not None) == (solver == "adaquant") for entry in solved)
    (result,) = retarget(tmp_path / "db", [parse_budget("size=0.2x")], [tmp_path / "out.onnx"])
    assert {layer.solver for layer in result.report.layers} == {solver}


@pytest.mark.slow
def test_a_database_by_layers_is_that_of_a_file(tmp_path: Path) -> None:
    """AdaRound on dense inputs: a layer's solution does not depend on where it is asked for."""
    recipe = Recipe(solver="adaround", iterations=5, effort="fast")
    build(MODEL, CALIBRATION, "int8,int4", tmp_path / "db", recipe, data=FEW)
    database = open_database(tmp_path / "db")
    result = weights("adaround", 5, asymmetric=False)
    assert all(
        np.isclose(database.solved(layer, c).report.loss, report.loss, rtol=1e-6)
        for layer, report in zip(database.layers, result.report.layers, strict=True)
        for c in database.choices[layer.name]
        if str(c) == "int4"
    )


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="iterations: solver exact takes no gradient steps; leave it out"):
        make_recipe({"solver": "exact", "iterations": 5})
    with pytest.raises(RecipeError, match="global_adaprune: solver adaquant trains biases already"):
        make_recipe({"solver": "adaquant", "global_adaprune": 2})
    with pytest.raises(RecipeError, match="solver adaquant moves the scale of each row, but --target deepsparse has"):
        compress(MODEL, CALIBRATION, Recipe(solver="adaquant", target="deepsparse"), data=FEW)
    message = refused(capsys, MODEL, tmp_path / "x.onnx", "--calib", CALIBRATION, "--solver", "gmp", "--sequential")
    assert "sequential: solver gmp takes no inputs into account; leave one of them out" in message


def test_without_torch_it_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx2torch" else found(name))
    with pytest.raises(RecipeError, match=r"solver brecq needs onnx2torch, not installed; install"):
        compress(MODEL, CALIBRATION, Recipe(solver="brecq"), data=FEW)


def test_damaged_data_is_refused() -> None:
    images = np.load(CALIBRATION)["image"][:64].copy()
    images[3] = np.nan
    with pytest.raises((CalibrationError, ModelError), match="NaN"):
        compress(MODEL, {"image": images}, Recipe(solver="adaround", iterations=5))


@pytest.mark.slow
def test_a_block_of_layers_that_follow_one_another_is_learned_in_order() -> None:
    """Its second layer reads what statistics are brought back of, which is then asked for twice."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1] * 4),
        onnx.helper.make_node("Conv", ["a", "w2", "b2"], ["c"], "second"),
        onnx.helper.make_node("Add", ["c", "x"], ["d"]),
        onnx.helper.make_node("Relu", ["d"], ["y"]),
    ]
    weights = {"w1": random(8, 8, 3, 3) / 8, "w2": random(8, 8, 1, 1, seed=1) / 3, "b1": random(8), "b2": random(8)}
    graph = build_graph(nodes, {"x": ("N", 8, 6, 6)}, {"y": ("N", 8, 6, 6)}, weights)
    recipe = Recipe(weights="int4", activations="none", solver="brecq", iterations=5, sequential=True)
    report = compress(graph, {"x": random(80, 8, 6, 6)}, recipe).report
    assert [layer.solver for layer in report.layers] == ["brecq", "brecq"]
    assert all(check.passed for check in report.checks)
