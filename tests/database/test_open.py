"""An opened database: its solutions, and the models that are made from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import small

from onnx_obc import Recipe, build, open_database
from onnx_obc.core.level import FLOAT, Choice, parse_choice
from onnx_obc.core.progress import Feedback
from onnx_obc.database.open import Database, stitch
from onnx_obc.pipeline.finish import Destination

X = np.random.default_rng(1).standard_normal((80, 4)).astype(np.float32)
EIGHT, THREE = parse_choice("8w8a"), parse_choice("int3-asym")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("open") / "db"
    build(small(rows=8), {"x": X}, "8w8a,int3-asym", folder, Recipe(device="cpu", threads=1))
    return open_database(folder)


def test_float_is_the_layers_own_weight_and_levels_are_the_stored_ones(database: Database) -> None:
    (layer,) = database.layers
    assert (database.weight(layer, Choice(FLOAT)) == layer.matrix()).all()
    solved = database.solved(layer, THREE)
    assert (database.weight(layer, THREE) == solved.solution.weights).all()
    assert solved.report.level == "int3-asym" and solved.report.activations == "float"
    assert database.solved(layer, EIGHT).report.activations == "int8"


def test_stitching_reads_stored_solutions_and_leaves_the_folded_graph_alone(database: Database) -> None:
    before = database.graph.clone()
    (name,) = database.choices
    solutions = stitch(database, {name: THREE}, Recipe(device="cpu"))
    assert solutions.plan.choices == {name: THREE}
    assert (solutions.solved[name].solution.codes >= 0).all()
    assert [n.op_type for n in database.graph.graph] == [n.op_type for n in before.graph]


def test_samples_keep_their_names(database: Database) -> None:
    given = np.stack([batch.feed["x"] for batch in database.samples["held_out"].read(0, 8)])  # one feed of eight
    names = [database.samples["held_out"].name_of(position) for position in range(8)]
    assert [f"sample {np.flatnonzero((row == X).all(axis=1))[0]} of the dict of arrays" for row in given[0]] == names


def test_writing_a_profile_makes_a_checked_file(database: Database, tmp_path: Path) -> None:
    (name,) = database.choices
    feedback = Feedback()
    result = database.write({name: THREE}, Recipe(device="cpu"), Destination(tmp_path / "out.onnx"), feedback)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert [layer.level for layer in result.report.layers] == ["int3-asym"]
    assert all(check.passed for check in result.report.checks)
    assert result.report.model == str(database.folder / "model.onnx")
    again = database.write(stitch(database, {name: THREE}, Recipe(device="cpu")), Recipe(device="cpu"), source=b"mine")
    assert again.report.model == "bytes" and again.path is None
