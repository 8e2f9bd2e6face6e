"""When parts of a model are trained unasked, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trained_blocks import SPARSE, X, blocks, few_steps, loss_after, tried  # noqa: F401  few_steps is for every test

from onnx_obc import Recipe, compress, open_database
from onnx_obc import build as build_database
from onnx_obc.core.level import parse_choice
from onnx_obc.pipeline import reconstruct as module
from onnx_obc.pipeline import training_walk
from onnx_obc.pipeline.finish import Destination

pytest.importorskip("torch")

from onnx_obc.correction.reconstruction import reconstruct

FOUR_BITS = {"sparsity": "none", "weights": "int4", "activations": "int4"}
PLAIN = {"sparsity": "none", "weights": "int8", "activations": "int8"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "trained"),
    [
        ({}, True),
        (FOUR_BITS, True),
        (PLAIN, False),
        ({"sparsity": "none", "weights": "int8"}, False),
        ({"reconstruction": False}, False),
        ({"effort": "fast"}, False),
        ({"solver": "baseline"}, False),
        ({"time_limit": 60.0}, False),
        ({"effort": "best", "reconstruction": False}, False),
        ({"global_adaprune": 1}, False),
    ],
    ids=[
        *("sparse", "inputs of 4 bits", "of 8 bits", "no zeros", "told not to", "fast", "another solver"),
        *("a time limit", "best, told not to", "global AdaPrune"),
    ],
)
def test_normal_trains_where_most_is_gained(changed: dict[str, object], trained: bool) -> None:
    report = compress(blocks(), X, Recipe.model_validate(SPARSE | changed)).report
    assert (("reconstruction",) in tried(report)) == trained
    assert any(module.TRAINED in layer.notes for layer in report.layers) == trained
    assert not any("not trained" in note for note in report.notes)


@pytest.mark.slow
def test_normal_trains_nothing_on_few_samples() -> None:
    report = compress(blocks(), {"x": X["x"][:100]}, Recipe.model_validate(SPARSE)).report
    assert ("reconstruction",) not in tried(report)


@pytest.mark.slow
def test_batches_from_python_are_the_samples_in_them() -> None:
    feeds = [{"x": X["x"][start : start + 16]} for start in range(0, len(X["x"]), 16)]
    report = compress(blocks(), feeds, Recipe.model_validate(SPARSE)).report
    assert len(feeds) < module.FEWEST and ("reconstruction",) in tried(report)
    assert any(module.TRAINED in layer.notes for layer in report.layers)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"effort": "fast"}, {"sparsity": "none", "weights": "int2"}])
def test_training_that_was_asked_for(changed: dict[str, object]) -> None:
    report = compress(blocks(), X, Recipe.model_validate(SPARSE | {"reconstruction": True} | changed)).report
    assert ("reconstruction",) in tried(report)


@pytest.mark.slow
def test_a_large_model_is_not_trained_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNASKED_FLOPS", 1e6)
    report = compress(blocks(), X, Recipe.model_validate(SPARSE)).report
    assert ("reconstruction",) not in tried(report)
    assert any("not trained, as a model of this size takes long" in note for note in report.notes)


@pytest.mark.slow
def test_without_torch_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing_for_training", lambda: "onnx2torch")
    report = compress(blocks(), X, Recipe.model_validate(SPARSE)).report
    assert ("reconstruction",) not in tried(report)
    (note,) = (note for note in report.notes if "training parts" in note)
    assert "needs onnx2torch, not installed: install onnx-obc[torch]" in note


@pytest.mark.slow
def test_best_trains_briefly_and_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """More steps do not always come nearer: the better of both goes on."""
    steps: list[int] = []

    def noted(*arguments: Any) -> object:
        steps.append(arguments[6].steps)
        return reconstruct(*arguments)

    monkeypatch.setattr(training_walk, "reconstruct", noted)
    reports = {
        effort: compress(blocks(), X, Recipe.model_validate(SPARSE | {"effort": effort})).report
        for effort in ("normal", "best")
    }
    assert steps == [30, 30, 40]
    assert loss_after(reports["best"]) < loss_after(reports["normal"])
    monkeypatch.setattr(module, "STEPS", 1)
    best = compress(blocks(), X, Recipe.model_validate(SPARSE | {"effort": "best"})).report
    assert loss_after(best) == loss_after(reports["normal"])
    assert any(note.startswith("parts were trained in 30 steps each: ") for note in best.notes)


@pytest.mark.slow
def test_models_from_a_database_are_not_trained_unasked(tmp_path: Path) -> None:
    recipe = Recipe(solver="ordered", device="cpu")
    build_database(blocks(), X, "2:4", tmp_path / "db", recipe)
    database = open_database(tmp_path / "db")
    profile = {name: parse_choice("2:4") for name in database.choices}
    for asked in (None, True):
        changed = recipe.model_copy(update={"reconstruction": asked})
        report = database.write(profile, changed, Destination(tmp_path / "out.onnx")).report
        assert (("reconstruction",) in tried(report)) == bool(asked)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, True])
def test_what_nobody_asked_for_does_not_end_a_run(asked: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> object:
        raise TypeError("no such thing")

    monkeypatch.setattr(training_walk, "reconstruct", fails)
    recipe = Recipe.model_validate(SPARSE | {"reconstruction": asked})
    if asked:
        with pytest.raises(TypeError):
            compress(blocks(), X, recipe)
        return
    report = compress(blocks(), X, recipe).report
    assert "parts were not trained, as that failed (TypeError: no such thing); please report it" in report.notes
