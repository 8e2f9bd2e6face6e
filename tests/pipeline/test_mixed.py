"""Layers that return to float by themselves, as few as reach the quality that is asked for."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, build, small
from onnx import TensorProto, helper
from rich.console import Console

from onnx_obc import DataOptions, GateError, Recipe, RecipeError, compress
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.split import describe, split
from onnx_obc.core.level import Choice
from onnx_obc.core.progress import Feedback
from onnx_obc.graph.model import input_specs, read_model
from onnx_obc.pipeline.draft import make_draft
from onnx_obc.pipeline.examine import Evaluation
from onnx_obc.pipeline.material import Material
from onnx_obc.pipeline.mixed import Option, in_order, smallest
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.solve import solve_plan
from onnx_obc.pipeline.switches import make_switchboard
from onnx_obc.pipeline.verify import compare_outputs
from onnx_obc.report.table import report_table
from onnx_obc.search.budget import parse_budget
from onnx_obc.search.profile import SearchOptions
from onnx_obc.search.retarget import compress_to_budget

X = np.random.default_rng(1).standard_normal((80, 16, 2, 2)).astype(np.float32)
RECIPE = Recipe(solver="baseline", device="cpu", threads=1, measure_speed=False)
LOUD = 500.0  # times the others: a channel that leaves these next to nothing of 8 bits


def chain(loud: bool = True, classes: bool = False) -> onnx.ModelProto:
    """Four convolutions; one channel of what the third reads is loud, and nothing comes of it.

    classes: with the place of the largest output beside it.
    """
    rng = np.random.default_rng(0)
    weights = {f"w{index}": (rng.standard_normal((16, 16, 1, 1)) / 3).astype(np.float32) for index in range(4)}
    if loud:
        weights["w1"][0] *= LOUD
        weights["w2"][:, 0] = 0
    nodes = []
    for index in range(4):
        nodes.append(helper.make_node("Conv", [f"h{index}", f"w{index}"], [f"p{index}"], name=f"layer{index}"))
        if index < 3:
            nodes.append(helper.make_node("Relu", [f"p{index}"], [f"h{index + 1}"]))
    shape = ["N", 16, 2, 2]
    model = build(nodes, {"h0": (TensorProto.FLOAT, shape)}, {"p3": shape}, weights)
    if classes:
        model.graph.node.append(helper.make_node("ArgMax", ["p3"], ["class"], axis=1, keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N", 2, 2]))
    return model


def test_the_layer_at_fault_alone_has_a_float_input(tmp_path: Path) -> None:
    plain = compress(chain(), {"h0": X}, RECIPE)
    assert plain.report.outputs[0].sqnr_db < 28
    said: list[str] = []
    recipe = RECIPE.model_copy(update={"min_quality": "30dB"})
    report = compress(chain(), {"h0": X}, recipe, tmp_path / "o.onnx", feedback=Feedback(say=said.append)).report
    assert report.outputs[0].sqnr_db >= 30 and report.gates[0].passed and (tmp_path / "o.onnx").exists()
    assert {layer.name: layer.activations for layer in report.layers} == {
        "layer0": "int8", "layer1": "int8", "layer2": "float", "layer3": "int8"
    }  # fmt: skip
    (layer,) = [layer for layer in report.layers if layer.name == "layer2"]
    assert "its input stays float to reach 30dB" in layer.notes and layer.level == "int8"
    (note,) = [note for note in report.notes if note.startswith("mixed precision for 30dB")]
    assert "with 0 of 4 layers in float, and the inputs of 1 more" in note and "layer2 (its input) " in note
    assert any("looking for the layers to leave in float" in line for line in said)
    assert not report.left_out


def test_a_file_that_is_good_enough_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.finish.mix_precisions", lambda *_: pytest.fail("it was good enough"))
    report = compress(chain(loud=False), {"h0": X}, RECIPE.model_copy(update={"min_quality": "20dB"})).report
    assert report.gates[0].passed and len(report.layers) == 4


def test_weights_stay_float_where_they_are_at_fault() -> None:
    recipe = RECIPE.model_copy(update={"activations": "none", "min_quality": "40dB"})
    layers = [{"match": "layer3", "weights": "int2"}]
    recipe = Recipe(**{**recipe.model_dump(), "layers": layers})
    report = compress(chain(loud=False), {"h0": X}, recipe).report
    assert [(entry.name, entry.reason) for entry in report.left_out] == [("layer3", "float to reach 40dB")]
    assert report.outputs[0].sqnr_db >= 40 and len(report.layers) == 3


def test_what_no_mix_reaches_is_refused_as_planned() -> None:
    with pytest.raises(GateError, match="min-quality 200dB was not met") as caught:
        compress(chain(), {"h0": X}, RECIPE.model_copy(update={"min_quality": "200dB"}))
    report = caught.value.results[0].report
    assert [layer.activations for layer in report.layers] == ["int8"] * 4
    assert any(note.startswith("200dB is out of reach: with a single layer compressed, ") for note in report.notes)


def test_a_metric_judges_and_the_output_loss_ranks() -> None:
    def near(outputs: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> float:
        wanted = dense(feeds["h0"])
        return 1 - float(np.square(outputs["p3"] - wanted).sum() / np.square(wanted).sum())

    def dense(x: np.ndarray) -> np.ndarray:
        weights = {init.name: onnx.numpy_helper.to_array(init) for init in chain().graph.initializer}
        for index in range(4):
            x = np.einsum("oi,nihw->nohw", weights[f"w{index}"][:, :, 0, 0], x)
            x = np.maximum(x, 0) if index < 3 else x
        return x

    recipe = RECIPE.model_copy(update={"min_quality": "drop=0.1%"})
    report = compress(chain(), {"h0": X}, recipe, evaluation=Evaluation(near)).report
    assert report.metric is not None and report.metric.drop <= 0.001
    assert [layer.name for layer in report.layers if layer.activations == "float"] == ["layer2"]


def test_outputs_of_integers_do_not_count_in_decibels() -> None:
    recipe = RECIPE.model_copy(update={"weights": "int2", "activations": "none", "min_quality": "7dB"})
    report = compress(chain(loud=False, classes=True), {"h0": X}, recipe).report
    worse = {match.name: match.sqnr_db for match in report.outputs}
    assert worse["class"] < 7 < worse["p3"] and report.gates[0].passed and "p3" in report.gates[0].reached
    assert len(report.layers) == 4 and not any("output class" in note for note in report.notes)
    console = Console(width=200, file=StringIO())
    console.print(report_table(report, 200))
    assert "output class: integers, which do not count in dB" in console.file.getvalue()  # type: ignore[attr-defined]
    model = chain(classes=True)
    del model.graph.output[0]
    with pytest.raises(RecipeError, match="no output of this model is of floats"):
        compress(model, {"h0": X}, recipe)


@pytest.fixture(scope="module")
def digits() -> Material:
    folded = prepare(read_model(MODEL))
    samples = open_samples(str(CALIBRATION), input_specs(folded.dense), DataOptions(samples=80))
    calibrating, held_out = split(samples)
    return Material(MODEL, folded, calibrating, held_out, *describe(samples, calibrating, held_out))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_switches_are_the_written_model(digits: Material, target: str) -> None:
    recipe = RECIPE.model_copy(update={"target": target, "effort": "fast"})
    plan = make_plan(digits.folded, recipe)
    solutions = solve_plan(plan, digits.feeds, recipe, Feedback())
    board = make_switchboard(solutions, digits, recipe, True)
    assert max(board.noise(()).values()) < 1e-8
    draft = make_draft(digits, solutions, recipe, Feedback())
    (match,), _, _ = compare_outputs(digits.dense, draft.plan.model, digits.held_out, recipe.execution())
    assert 10 * -np.log10(board.noise(board.every)[match.name]) == pytest.approx(match.sqnr_db, abs=0.5)
    for name, choice in plan.choices.items():
        assert bool(board.inputs[name]) == (choice != Choice(choice.level)) and board.weights[name]
        assert board.noise(board.weights[name])[match.name] > 0


@pytest.mark.parametrize("most", [1, 2, 7, 40])
def test_the_smallest_number_is_found_whatever_the_guess(most: int) -> None:
    for wanted in range(1, most + 2):
        for guess in (1, most // 2, most):
            asked: list[int] = []
            found = smallest(lambda n, asked=asked, wanted=wanted: asked.append(n) or n >= wanted, guess, most)
            assert found == (wanted if wanted <= most else None)
            assert len(asked) == len(set(asked)) <= 2 * most.bit_length() + 1


def test_the_order_is_of_what_is_gained_for_its_cost() -> None:
    def option(layer: str, choice: str | None, gain: tuple[float, float], cost: float) -> Option:
        return Option(layer, None if choice is None else object(), np.array(gain), cost)  # type: ignore[arg-type]

    noise, goal = np.array([1.0, 0.2]), 0.1
    options = [
        option("cheap", None, (0.1, 0.0), 0.1),
        option("first", None, (0.8, 0.0), 0.2),
        option("other output", "input", (0.0, 0.15), 0.2),
        option("other output", None, (0.0, 0.16), 0.4),
        option("dear", None, (0.9, 0.1), 5.0),
    ]
    order, enough = in_order(options, noise, goal)
    assert [x.layer for x in order[:3]] == ["first", "cheap", "other output"] and enough == 3
    assert order[2].choice is not None and len(order) == 5
    assert in_order(options, noise, None)[1] == 1


def test_a_budget_keeps_its_profile(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"min_quality": "60dB"})
    options = SearchOptions(levels="int8,int2", sensitivity="layer")
    with pytest.raises(GateError, match="min-quality 60dB was not met"):
        compress_to_budget(chain(), {"h0": X}, [parse_budget("size=0.3x")], [None], recipe, options)


def test_a_single_layer_is_refused_rather_than_left() -> None:
    recipe = RECIPE.model_copy(update={"weights": "int2", "activations": "none", "min_quality": "60dB"})
    with pytest.raises(GateError) as caught:
        compress(small(), {"x": X[:, :4, 0, 0]}, recipe)
    assert any("no layer can be left in float" in note for note in caught.value.results[0].report.notes)
