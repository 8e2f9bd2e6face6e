"""Layers solved in order, on what the compressed ones before them produce."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL, small, top1
from onnx import helper
from small_graphs import build, random

from onnx_obc import DataOptions, Recipe, compress
from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.core.errors import GateError, ModelError
from onnx_obc.core.progress import Feedback
from onnx_obc.pipeline.draft import Draft
from onnx_obc.pipeline.mixed import Mixed
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.reconstruct import noted
from onnx_obc.pipeline.sequential import solve_sequentially
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.runtime.judge import Loss
from onnx_obc.solver import damp, layer_loss, solve

X = random(512, 6, seed=9)


def samples() -> Samples:
    return Samples(512, "x", lambda a, b: (Batch({"x": X[i : i + 64]}, i, 64) for i in range(a, b, 64)), batch=64)


def constants(model: ir.Model) -> dict[str, np.ndarray]:
    values = model.graph.initializers.items()
    return {name: value.const_value.numpy().copy() for name, value in values if value.const_value is not None}


def two_products() -> ir.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
    ]
    weights = {"u": random(6, 16), "w": random(16, 8)}
    return ir.from_proto(build(nodes, {"x": ["N", 6]}, {"y": ["N", 8]}, weights))


def test_it_is_least_squares_for_the_new_inputs_and_then_the_exact_solver() -> None:
    recipe = Recipe(weights="float", sparsity="0.5", all_positions=True, refine="none", damp=0.01, device="cpu")
    model = two_products()
    plan = make_plan(prepare(model), recipe)
    before = constants(plan.model)
    found = solve_sequentially(plan, prepare(model), {}, samples(), recipe, Feedback()).solved
    assert all(np.array_equal(array, before[name]) for name, array in constants(plan.model).items())
    first, second = plan.layers
    u = found["first"].solution.weights[0].astype(np.float64)  # (16, 6)
    w = second.matrix()[0].astype(np.float64)  # (5, 16)
    seen = np.maximum(X @ u.T, 0)  # X̂ᵀ, (512, 16)
    goal = np.maximum(X @ first.matrix()[0].T, 0) @ w.T  # (WX)ᵀ, (512, 5)
    hessian = 2 / 512 * seen.T @ seen
    damped = damp(hessian[None], 0.01)
    extra = damped.hessian[0] - hessian  # λ
    best = np.linalg.solve(hessian + extra, 2 / 512 * seen.T @ goal + extra @ w.T).T  # (5, 16), ridge around W
    expected = solve(best[None].astype(np.float32), damped, plan.choices["second"].level)
    np.testing.assert_array_equal(found["second"].solution.mask, expected.mask)
    np.testing.assert_allclose(found["second"].solution.weights, expected.weights, rtol=1e-3, atol=1e-4)
    report = found["second"].report
    assert report.loss_predicted == pytest.approx(report.loss_measured, rel=1e-4)
    dense = np.maximum(X @ first.matrix()[0].T, 0)  # Xᵀ, (512, 16)
    alone = solve(second.matrix(), damp((2 / 512 * dense.T @ dense)[None]), plan.choices["second"].level)

    def error(weights: np.ndarray) -> float:
        return float(((goal - seen @ weights[0].T.astype(np.float64)) ** 2).sum())

    assert error(found["second"].solution.weights) < 0.9 * error(alone.weights)
    assert layer_loss(best[None].astype(np.float32), expected.weights, damped.hessian) > 0


def test_the_first_layer_is_solved_as_ever() -> None:
    recipe = Recipe(weights="int4", activations="none", all_positions=True, device="cpu")
    model = two_products()
    one = compress(model, samples(), recipe.model_copy(update={"effort": "fast"}))
    two = compress(model, samples(), recipe.model_copy(update={"effort": "fast", "sequential": True}))
    codes = [constants(result.model) for result in (one, two)]
    assert np.array_equal(*(found["first.weight_quantized"] for found in codes))
    attempt = two.report.corrections[-1]
    assert attempt.kinds == ("sequential",) and attempt.sites == 2
    assert attempt.kept == (not np.array_equal(*(found["second.weight_quantized"] for found in codes)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ([0.2, 0.2], [0.1, 0.1], True),
        ([0.1, 0.1], [0.2, 0.2], False),
        ([0.1, 0.3], [0.3, 0.12], True),  # by chance: of few bits it is better to begin with
    ],
)
def test_what_comes_closer_to_the_dense_model_is_kept(
    monkeypatch: pytest.MonkeyPatch, before: list[float], after: list[float], kept: bool
) -> None:
    losses = iter([Loss(float(np.mean(x)), np.array(x)) for x in (before, after)])  # solved each for itself comes first
    monkeypatch.setattr("onnx_obc.pipeline.attempts.Judge.losses", lambda judge, model: next(losses))
    recipe = Recipe(weights="int2", activations="none", device="cpu", effort="fast")
    plain = compress(two_products(), samples(), recipe)
    ordered = compress(two_products(), samples(), recipe.model_copy(update={"sequential": True}))
    attempt = ordered.report.corrections[0]
    assert (attempt.kept, attempt.loss_before) == (kept, float(np.mean(before)))
    name = "second.weight_quantized"
    same = np.array_equal(constants(plain.model)[name], constants(ordered.model)[name])
    assert same == (not kept)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int2", "activations": "none"},
        {"weights": "int4", "activations": "int4"},
        {"sparsity": "0.8", "weights": "float"},
    ],
)
@pytest.mark.slow
def test_it_helps_on_a_real_model(options: dict[str, str], tmp_path: Path) -> None:
    losses = {}
    for sequential in (False, True):
        recipe = Recipe.model_validate({**options, "sequential": sequential, "effort": "fast"})
        result = compress(MODEL, CALIBRATION, recipe, tmp_path / f"{sequential}.onnx")
        assert all(check.passed for check in result.report.checks)
        losses[sequential] = result.report.output_loss
    assert losses[True] is not None and losses[False] is not None and losses[True] < 0.8 * losses[False]
    assert top1(tmp_path / "True.onnx") > 0.9


@pytest.mark.slow
def test_memory_does_not_matter() -> None:
    recipe = Recipe(weights="int4", sequential=True, device="cpu")
    data = DataOptions(samples=64)
    recipes = [recipe.model_copy(update={"memory": memory}) for memory in (None, 1e-4)]
    one, two = (constants(compress(MODEL, CALIBRATION, each, data=data).model) for each in recipes)
    assert all(np.array_equal(one[name], two[name]) for name in one if "quantized" in name)


@pytest.mark.slow
def test_one_sample_is_enough_to_run() -> None:
    for sequential in (False, True):
        result = compress(small(), {"x": np.ones((1, 4), np.float32)}, Recipe(weights="int4", sequential=sequential))
        assert all(check.passed for check in result.report.checks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tried"),
    [
        ({"weights": "int4"}, True),
        ({"weights": "int4", "activations": "none", "effort": "best"}, True),
        ({"weights": "int8", "layers": [{"match": "second", "weights": "int3"}]}, True),
        ({"weights": "int8"}, False),
        ({"weights": "int4", "effort": "fast"}, False),
        ({"weights": "int4", "sequential": False}, False),
        ({"weights": "int4", "activations": "int4"}, False),
        ({"weights": "int4", "layers": [{"match": "second", "sparsity": "2:4"}]}, False),
        ({"weights": "int4", "time_limit": 60}, False),
        ({"weights": "int4", "solver": "baseline"}, False),
        ({"weights": "int4", "solver": "ordered"}, True),  # so small that they are solved exactly in less time
        ({"weights": "float", "sparsity": "0.5"}, False),
    ],
    ids=str,
)
def test_few_bits_are_solved_in_order_by_default(options: dict[str, object], tried: bool) -> None:
    if options.get("effort") == "best":
        pytest.importorskip("torch")
    report = compress(two_products(), {"x": X}, Recipe.model_validate({"device": "cpu", **options})).report
    assert (("sequential",) in [attempt.kinds for attempt in report.corrections]) == tried
    assert report.recipe["sequential"] is options.get("sequential")


def test_nothing_is_solved_in_order_without_samples_to_judge_by() -> None:
    report = compress(two_products(), {"x": X[:1]}, Recipe(weights="int4", device="cpu")).report
    assert ("sequential",) not in [attempt.kinds for attempt in report.corrections]


def test_nothing_is_solved_in_order_on_more_samples_than_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.sequential.MOST", 400)
    report = compress(two_products(), {"x": X}, Recipe(weights="int4", device="cpu")).report
    assert ("sequential",) not in [attempt.kinds for attempt in report.corrections]


def test_layers_that_were_solved_are_not_lost_for_want_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ModelError("no room for values")

    monkeypatch.setattr("onnx_obc.pipeline.compress.solve_sequentially", full)
    report = compress(two_products(), {"x": X}, Recipe(weights="int4", device="cpu")).report
    assert "layers were not solved in order: no room for values" in report.notes and len(report.layers) == 2
    with pytest.raises(ModelError, match="no room"):
        compress(two_products(), {"x": X}, Recipe(weights="int4", device="cpu", sequential=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begins", "notes"),
    [("reconstruct._trained", ()), ("finish.mix_precisions", ()), ("finish.mix_precisions", ("x",))],
)
def test_what_goes_on_from_layers_takes_those_solved_each_for_itself(
    begins: str, notes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, and the search for layers to be left in float, whatever training had to tell."""
    pytest.importorskip("torch")
    given: list[Solutions] = []

    def begin(start: Solutions | Draft, *_: object) -> object:
        given.append(start if isinstance(start, Solutions) else start.source)
        return (None, []) if begins == "reconstruct._trained" else Mixed(None, "out of reach")

    monkeypatch.setattr(f"onnx_obc.pipeline.{begins}", begin)
    monkeypatch.setattr("onnx_obc.pipeline.draft.unless_clearly_worse", lambda one: replace(one, kept=True))
    if notes:
        monkeypatch.setattr("onnx_obc.pipeline.finish.reconstructed", lambda draft, *_: noted(draft, notes))
    more: dict[str, Any] = {"effort": "best"} if begins == "reconstruct._trained" else {"min_quality": "90dB"}
    recipe = Recipe(weights="int2", activations="none", device="cpu", **more)
    try:
        result = compress(two_products(), {"x": X}, recipe)
    except GateError as error:
        (result,) = error.results
    alone = compress(two_products(), {"x": X}, Recipe(weights="int2", activations="none", device="cpu", effort="fast"))
    codes = given[0].solved["second"].solution.codes
    assert codes is not None and ("sequential",) in [attempt.kinds for attempt in result.report.corrections]
    stored = [constants(one.model)["second.weight_quantized"] for one in (result, alone)]
    assert not np.array_equal(*stored)
    assert np.array_equal(np.sort(codes.ravel()), np.sort(stored[1].ravel()))
