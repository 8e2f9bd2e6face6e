"""Scale moved from inputs into weights: what is computed stays, and rounding costs less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.helper import make_node as node
from small_graphs import assert_same, build, random, run

from onnx_obc import Recipe, compress
from onnx_obc.correction.transforms.scale_migration import (
    Channels,
    best_factors,
    look_at_channels,
    migrate,
    movable,
)
from onnx_obc.graph.layers import find_layers
from onnx_obc.runtime.session import open_session

RNG = np.random.default_rng(0)
OUTLIERS = np.where(np.arange(16) % 5 == 0, 30.0, 1.0).astype(np.float32)  # (channels,)


def blocks(before: str, form: str = "MatMul", residual: bool = False) -> onnx.ModelProto:
    """x (N, 3, 16) or (N, 16) through `before` to two products that read it, whose outputs are added."""
    shape: tuple[int | str, ...] = ("N", 16) if form == "Gemm" else ("N", 3, 16)
    weights = {
        "w": random(16, 8),
        "v": random(16, 8, seed=1),
        "g": OUTLIERS,
        "b": random(16, seed=2),
        "w8": random(8, 8),
    }
    makers = {
        "norm": [node("LayerNormalization", ["x", "g", "b"], ["h"], axis=-1)],
        "gelu": [node("Mul", ["x", "g"], ["s"]), node("Tanh", ["s"], ["t"]), node("Mul", ["t", "g"], ["h"])],
    }
    nodes = makers[before]
    if form == "Gemm":
        weights |= {"w": random(8, 16), "v": random(8, 16, seed=1)}
        nodes += [
            node("Gemm", ["h", "w"], ["p"], transB=1, name="p"),
            node("Gemm", ["h", "v"], ["q"], transB=1, name="q"),
        ]
    else:
        nodes += [node("MatMul", ["h", w], [y], name=y) for w, y in (("w", "p"), ("v", "q"))]
    outputs = {"y": (*shape[:-1], 8)}
    nodes += [node("Add", ["p", "q"], ["y"])]
    if residual:
        nodes += [node("Relu", ["h"], ["z"])]
        outputs["z"] = shape
    return build(nodes, {"x": shape}, outputs, weights)


def feed(form: str) -> dict[str, np.ndarray]:
    return {"x": random(*((40, 16) if form == "Gemm" else (40, 3, 16)), seed=7)}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("form", ["MatMul", "Gemm"])
@pytest.mark.parametrize("before", ["norm", "gelu"])
def test_what_is_computed_stays(before: str, form: str, residual: bool) -> None:
    proto = blocks(before, form, residual)
    model = ir.from_proto(proto)
    readers = movable(find_layers(model)[0], {"p", "q"})
    assert {value: [layer.name for layer in layers] for value, layers in readers.items()} == {"h": ["p", "q"]}
    factors = {"h": np.exp(RNG.standard_normal(16) * 2)}
    migrate(model, readers, factors)
    assert_same(run(model, feed(form)), run(proto, feed(form)), 1e-5)
    divided = sum(x.op_type == "Mul" for x in model.graph) - sum(x.op_type == "Mul" for x in proto.graph.node)
    assert divided == (0 if before == "norm" and not residual else 1)  # else a constant takes it, at no cost
    onnx.checker.check_model(ir.to_proto(model))


def test_inputs_that_cannot_give_scale() -> None:
    layers = find_layers(ir.from_proto(blocks("norm")))[0]
    assert movable(layers, {"p"}) == {}  # q reads it in float
    shared = build(
        [node("MatMul", ["x", "w"], ["p"], name="p"), node("MatMul", ["p", "w"], ["y"], name="q")],
        {"x": ("N", 8)}, {"y": ("N", 8)}, {"w": random(8, 8)},
    )  # fmt: skip
    assert movable(find_layers(ir.from_proto(shared))[0], {"p", "q", "w"}) == {}
    left = build([node("MatMul", ["w", "x"], ["y"], name="p")], {"x": (8, 5)}, {"y": (4, 5)}, {"w": random(4, 8)})
    assert movable(find_layers(ir.from_proto(left))[0], {"p"}) == {}


def test_channels_are_those_of_the_values() -> None:
    model, x = ir.from_proto(blocks("gelu")), feed("MatMul")
    session = open_session(model, ["h"], "cpu", 1)
    (found,) = look_at_channels(["h"], [session.run(feed) for feed in (x, {"x": 2 * x["x"]})]).values()
    h = np.concatenate([np.tanh(scale * x["x"] * OUTLIERS) * OUTLIERS for scale in (1, 2)]).reshape(-1, 16)
    np.testing.assert_allclose(found.low, h.min(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.high, h.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.square, (h.astype(np.float64) ** 2).mean(axis=0), rtol=1e-5)


def test_factors_lower_the_error_of_rounding() -> None:
    x = RNG.standard_normal((500, 16)) * OUTLIERS
    weight = random(8, 16)
    channels = Channels(x.min(axis=0), x.max(axis=0), np.square(x).mean(axis=0))
    s = best_factors(channels, [weight])
    assert s is not None

    def error(s: np.ndarray) -> float:
        scaled, w = x / s, weight * s
        step = (scaled.max() - scaled.min()) / 255
        rows = np.abs(w).max(axis=1, keepdims=True) / 127
        found = np.rint(scaled / step) * step @ (np.rint(w / rows) * rows).T
        return float(np.square(found - x @ weight.T).sum())

    assert error(s) < 0.3 * error(np.ones(16))


def test_factors_that_would_not_help() -> None:
    even = Channels(-np.ones(16), np.ones(16), np.full(16, 0.3))
    assert best_factors(even, [np.full((8, 16), 0.5, np.float32)]) is None
    assert best_factors(Channels(np.zeros(16), np.zeros(16), np.zeros(16)), [random(8, 16)]) is None
    dead = Channels(-np.arange(16.0), np.arange(16.0), np.arange(16.0) ** 2)  # the first channel is always zero
    s = best_factors(dead, [random(8, 16)])
    assert s is None or (np.isfinite(s).all() and (s > 0).all())
    assert best_factors(Channels(np.full(16, -np.inf), np.ones(16), np.ones(16)), [random(8, 16)]) is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_outputs_come_closer_in_the_pipeline(target: str) -> None:
    data = {"x": random(120, 3, 16, seed=9)}
    recipe = Recipe(device="cpu", threads=1, target=target, measure_speed=False)
    report = compress(blocks("gelu"), data, recipe).report
    attempt = next(x for x in report.corrections if x.kinds == ("scale migration",))
    assert attempt.kept and attempt.loss_after < 0.5 * attempt.loss_before
    without = compress(blocks("gelu"), data, recipe.model_copy(update={"effort": "fast"})).report
    assert report.output_loss is not None and without.output_loss is not None
    assert report.output_loss < 0.7 * without.output_loss and without.corrections[0].kinds != ("scale migration",)
    assert all(check.passed for check in report.checks)


def test_factors_are_those_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """By some of them alone, a channel that is loud in others would get a factor that makes it the loudest there."""
    seen = []

    def spy(values: list[str], runs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Channels]:
        kept = list(runs)
        seen.append(sum(len(array) for run in kept for array in run.values()) / len(values))
        return look_at_channels(values, kept)

    monkeypatch.setattr("onnx_obc.pipeline.transform.look_at_channels", spy)
    compress(blocks("gelu"), {"x": random(300, 3, 16)}, Recipe(device="cpu", threads=1, measure_speed=False))
    assert seen == [270]  # of 300, 30 are held out


@pytest.mark.parametrize("recipe", [Recipe(activations="none"), Recipe(target="deepsparse")])
def test_where_it_is_not_tried(recipe: Recipe) -> None:
    report = compress(blocks("gelu"), {"x": random(60, 3, 16)}, recipe.model_copy(update={"device": "cpu"})).report
    assert all(attempt.kinds != ("scale migration",) for attempt in report.corrections)
