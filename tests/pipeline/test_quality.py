"""What a report warns of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from digits import CALIBRATION, MODEL, small

from onnx_obc import DataOptions, Recipe, compress
from onnx_obc.pipeline.layer import LayerReport
from onnx_obc.pipeline.quality import FEW, USUAL_DB, quality_notes, usual_db
from onnx_obc.pipeline.verify import OutputMatch


@pytest.fixture(scope="module")
def layers() -> list[LayerReport]:
    """Four layers at int8, of which `b` loses most."""
    x = {"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}
    (layer,) = compress(small(), x, Recipe(activations="none", effort="fast")).report.layers
    losses = {"a": 1e-4, "b": 3e-2, "c": 2e-3, "d": 5e-4}
    return [replace(layer, name=name, loss_relative=loss) for name, loss in losses.items()]


@pytest.mark.parametrize(
    ("held_out", "said"), [(0, ""), (1, "1 held-out sample:"), (2, "2 held-out samples:"), (FEW, "")]
)
def test_few_held_out_samples(held_out: int, said: str, layers: list[LayerReport]) -> None:
    notes = quality_notes(layers, [OutputMatch("y", 99.0, None)], held_out)
    assert len(notes) == bool(said) and all(said in note and f"{10 * FEW} samples" in note for note in notes)
    assert quality_notes(layers, [], held_out) == []  # nothing was compared


def test_the_layers_that_lose_most_are_named_where_outputs_are_worse_than_usual(layers: list[LayerReport]) -> None:
    usual = USUAL_DB[False][8]
    assert quality_notes(layers, [OutputMatch("y", usual, None)], 100) == []
    (note,) = quality_notes(layers, [OutputMatch("x", 99.0, None), OutputMatch("y", usual - 1, None)], 100)
    assert f"outputs keep {usual - 1:.1f} dB, models at int8 usually {usual:.0f} or more" in note
    assert "b (3.0e-02), c (2.0e-03), d (5.0e-04);" in note and "a (" not in note and "dynamic" not in note


@pytest.mark.parametrize(
    ("op", "target", "said"), [("MatMul", True, True), ("MatMul", False, False), ("Conv", True, False)]
)
def test_ranges_of_each_input_are_a_remedy(op: str, target: bool, said: bool, layers: list[LayerReport]) -> None:
    static = [replace(layer, op=op, activations="int8") for layer in layers]
    (note,) = quality_notes(static, [OutputMatch("y", USUAL_DB[True][8] - 1, None)], 100, target)
    assert ("try --activations dynamic" in note) == said


def test_samples_for_which_the_dense_model_overflows_are_named(layers: list[LayerReport]) -> None:
    for names, said in (
        (("sample 3",), "sample 3:"),
        (("sample 3", "sample 9", "a.png"), "sample 3 and 2 other sampl"),
    ):
        (note,) = quality_notes(layers, [OutputMatch("y", 99.0, None, names)], 100)
        assert f"output y of the dense model is NaN or infinite for {said}" in note


def test_the_coarsest_level_counts_and_pruned_models_have_none(layers: list[LayerReport]) -> None:
    assert usual_db(layers) == (USUAL_DB[False][8], "int8")
    mixed = [*layers, replace(layers[0], level="int3-asym")]
    assert usual_db(mixed) == (USUAL_DB[False][3], "int3")
    assert usual_db([*layers, replace(layers[0], activations="int8")]) == (USUAL_DB[True][8], "int8 with int8 inputs")
    for other in (replace(layers[0], level="2:4+int8"), replace(layers[0], activations="int4")):
        assert usual_db([*layers, other])[0] == -np.inf
    assert usual_db([])[0] == usual_db([replace(layers[0], level="sparse-0.50")])[0] == -np.inf


@pytest.mark.parametrize("table", USUAL_DB.values())
def test_more_bits_keep_more(table: dict[int, float]) -> None:
    assert sorted(table) == [2, 3, 4, 5, 6, 7, 8]
    assert all(table[bits] <= table[bits + 1] for bits in range(2, 8))


@pytest.mark.slow
def test_plain_rounding_to_few_bits_is_worse_than_usual() -> None:
    data, notes = DataOptions(samples=200), {}
    for solver in ("exact", "baseline"):
        recipe = Recipe(weights="int3", activations="none", solver=solver, refine="none")  # type: ignore[arg-type]
        report = compress(
            MODEL,
            CALIBRATION,
            recipe.model_copy(update={"effort": "normal" if solver == "exact" else "fast"}),
            data=data,
        ).report
        notes[solver] = [note for note in report.notes if note.startswith("outputs")]
        worst = max(report.layers, key=lambda layer: layer.loss_relative).name
    assert notes["exact"] == []
    assert "models at int3 usually" in notes["baseline"][0] and f"relative loss: {worst} (" in notes["baseline"][0]
