"""From solutions to a file: what is written, reported, rejected, and kept of two drafts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, small

from onnx_obc import Recipe, VerificationError, compress
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.split import describe, split
from onnx_obc.core.progress import Feedback
from onnx_obc.graph.model import input_specs, read_model
from onnx_obc.pipeline.draft import better, make_draft
from onnx_obc.pipeline.finish import Destination, finish
from onnx_obc.pipeline.material import Material
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.solve import Solutions, solve_plan

X = np.random.default_rng(1).standard_normal((80, 4)).astype(np.float32)
RECIPE = Recipe(weights="int3", activations="none", device="cpu", threads=1)


@pytest.fixture
def work() -> tuple[Material, Solutions]:
    folded = prepare(read_model(small()))
    dense = folded.dense
    samples = open_samples({"x": X}, input_specs(dense), DataOptions())
    calibrating, held_out = split(samples)
    material = Material(small(), folded, calibrating, held_out, *describe(samples, calibrating, held_out))
    return material, solve_plan(make_plan(folded, RECIPE), calibrating, RECIPE, Feedback())


def test_the_file_the_report_and_the_times(work: tuple[Material, Solutions], tmp_path: Path) -> None:
    feedback = Feedback()
    result = finish(*work, RECIPE, Destination(tmp_path / "out.onnx", {"budget": "size=0.2x"}), feedback)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert result.path == tmp_path / "out.onnx" and result.report.output == str(result.path)
    assert result.report.search == {"budget": "size=0.2x"}
    assert result.report.file_bytes_after == (tmp_path / "out.onnx").stat().st_size
    assert {"write", "verify"} <= result.report.seconds.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_without_a_destination_nothing_is_written(
    work: tuple[Material, Solutions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = finish(*work, RECIPE, Destination(None), Feedback())
    assert result.path is None and result.report.output == "" and not list(tmp_path.iterdir())


def test_a_solution_with_a_wrong_loss_is_rejected(work: tuple[Material, Solutions], tmp_path: Path) -> None:
    material, solutions = work
    ((name, entry),) = solutions.solved.items()
    wrong = replace(entry, report=replace(entry.report, loss_predicted=2 * entry.report.loss_measured))
    solutions = replace(solutions, solved={name: wrong})
    with pytest.raises(VerificationError, match=r"losses failed.*out\.onnx\.rejected"):
        finish(material, solutions, RECIPE, Destination(tmp_path / "out.onnx"), Feedback())
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.rejected"]


def test_of_two_drafts_the_one_with_the_lower_loss_is_kept(work: tuple[Material, Solutions]) -> None:
    material, solutions = work
    finer = RECIPE.model_copy(update={"weights": "int8"})
    folded = material.folded
    good = make_draft(
        material, solve_plan(make_plan(folded, finer), material.feeds, finer, Feedback()), finer, Feedback()
    )
    bad = make_draft(material, solutions, RECIPE, Feedback())
    for ordered, rival in ((good, bad), (bad, good)):
        chosen = better(ordered, rival, material, RECIPE)
        attempt = chosen.corrections[-1]
        assert chosen.plan is good.plan and attempt.kinds == ("sequential",)
        assert attempt.kept == (ordered is good) and (attempt.loss_after < attempt.loss_before) == attempt.kept


def test_a_failed_check_comes_before_the_gates(work: tuple[Material, Solutions], tmp_path: Path) -> None:
    material, solutions = work
    ((name, entry),) = solutions.solved.items()
    wrong = replace(entry, report=replace(entry.report, loss_predicted=2 * entry.report.loss_measured))
    recipe = RECIPE.model_copy(update={"min_quality": "drop=1%"})  # of a metric that is not measured any more
    with pytest.raises(VerificationError, match=r"losses failed.*out\.onnx\.rejected"):
        finish(
            material, replace(solutions, solved={name: wrong}), recipe, Destination(tmp_path / "out.onnx"), Feedback()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.rejected"]


def test_rounding_is_a_rival_of_the_draft_that_was_chosen(
    work: tuple[Material, Solutions], monkeypatch: pytest.MonkeyPatch
) -> None:
    material, solutions = work
    rival = solve_plan(make_plan(material.folded, RECIPE), material.feeds, RECIPE, Feedback())
    seen: list[Solutions] = []
    monkeypatch.setattr("onnx_obc.pipeline.draft.rounded", lambda found, *_: seen.append(found))
    monkeypatch.setattr("onnx_obc.pipeline.finish.better", lambda ordered, other, *_: other)
    finish(material, solutions, RECIPE, Destination(None), Feedback(), rival=rival)
    assert seen and seen[0].plan is rival.plan


@pytest.mark.slow
def test_as_many_layers_are_rounded_as_have_8_bits() -> None:
    data, recipe = DataOptions(samples=64), {"activations": "none", "device": "cpu", "threads": 1}
    names = [layer.name for layer in compress(MODEL, str(CALIBRATION), Recipe(**recipe), data=data).report.layers]
    mixed = Recipe(**recipe, layers=({"match": names[0], "weights": "int4"},))
    (attempt,) = (
        x for x in compress(MODEL, str(CALIBRATION), mixed, data=data).report.corrections if "rounding" in x.kinds
    )
    assert attempt.sites == len(names) - 1
