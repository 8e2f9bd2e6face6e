"""Rounding learned by gradients: what defines each method."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Array, build, random

from onnx_obc.core.errors import ModelError
from onnx_obc.core.level import Level, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.correction.learned_rounding import Example, Learner, Learning, learn
from onnx_obc.correction.torch_graph import to_torch
from onnx_obc.graph.layers import find_layers
from onnx_obc.solver.baselines import uncompensated
from onnx_obc.solver.gpu.device import devices

make = onnx.helper.make_node


def gemm(columns: int, rows: int, activation: str | None = None) -> ir.Model:
    end = "h" if activation else "y"
    nodes = [make("Gemm", ["x", "w", "b"], [end], "layer", transB=1)]
    nodes += [make(activation, ["h"], ["y"])] if activation else []
    weights = {"w": random(rows, columns), "b": random(rows)}
    return ir.from_proto(build(nodes, {"x": ("N", columns)}, {"y": None}, weights))


def inputs(columns: int, samples: int = 256) -> Array:
    """Columns that depend on each other, of the size that outputs are about 1: the regulariser's weight is for that."""
    x = random(samples, columns) @ (random(columns, columns, seed=3) + np.eye(columns))
    return np.asarray(x / columns, np.float32)


def learned(
    model: ir.Model,
    x: Array,
    learner: Learner,
    level: Level,
    iterations: int,
    weight: Array | None = None,
    feeds: int = 8,
) -> tuple[Solution, Solution]:
    """What rounding to nearest gives, and what is learned."""
    layers = find_layers(model)[0]
    graph = to_torch(model, layers, f"--solver {learner}", ["y"])
    w, b = (model.graph.initializers[name].const_value.numpy() for name in "wb")
    target = x @ w.T + b
    if "Relu" in [node.op_type for node in model.graph]:
        target = np.maximum(target, 0)
    parts = np.array_split(np.arange(len(x)), feeds)
    examples = [Example({"x": x[i]}, target[i], None if weight is None else weight[i]) for i in parts]
    start = uncompensated(layers[0].matrix(), level, "mse")
    found = learn(graph, layers, {"layer": start}, examples, Learning(learner, iterations))
    return start, found["layer"]


def loss(model: ir.Model, x: Array, solution: Solution) -> float:
    w = model.graph.initializers["w"].const_value.numpy()
    return float((((w - solution.weights[0]) @ x.T.astype(np.float64)) ** 2).sum() / len(x))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["int3", "int4-asym", "int2-asym", "2:4+int4"])
def test_adaround_goes_to_one_of_the_two_nearest_codes(level: str) -> None:
    model, x = gemm(16, 8), inputs(16)
    start, found = learned(model, x, "adaround", parse_level(level), 800)
    assert start.grid is not None and found.codes is not None and found.grid is start.grid
    scale, zero = start.grid.spread(8, 16)
    steps = random(8, 16)[None] / scale + zero
    kept = np.ones(steps.shape, np.bool_) if start.mask is None else start.mask
    down = np.clip(np.floor(steps), start.grid.qmin, start.grid.qmax)
    up = np.clip(np.floor(steps) + 1, start.grid.qmin, start.grid.qmax)
    assert ((found.codes == down) | (found.codes == up))[kept].all()
    assert (found.weights[~kept] == 0).all()
    assert (found.weights == found.grid.dequantize(found.codes)).all()
    assert loss(model, x, found) < 0.8 * loss(model, x, start)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["int3-asym", "int4-asym"])
def test_adaround_comes_near_the_best_of_all_choices(level: str) -> None:
    model, x = gemm(6, 12), inputs(6)
    start, found = learned(model, x, "adaround", parse_level(level), 3000, feeds=1)
    assert start.grid is not None
    h = x.T.astype(np.float64) @ x / len(x)
    scale, zero = start.grid.spread(12, 6)
    dense = random(12, 6)
    ups = np.array(list(product((0, 1), repeat=6)))  # (64, 6)
    best = 0.0
    for w, s, z in zip(dense, scale[0], zero[0], strict=True):
        codes = np.clip(np.floor(w / s) + ups + z, start.grid.qmin, start.grid.qmax)
        off = (codes - z) * s - w  # (64, 6)
        best += float(((off @ h) * off).sum(axis=1).min())
    assert best * (1 - 1e-5) <= loss(model, x, found) < 1.2 * best < loss(model, x, start)


@pytest.mark.slow
def test_what_the_activation_function_hides_is_free() -> None:
    """With the function in the reconstruction, the error where it is open is lower than without."""
    x, level = inputs(16), parse_level("int2-asym")
    errors = []
    for model in (gemm(16, 8, "Relu"), gemm(16, 8)):
        _, found = learned(model, x, "adaround", level, 1500)
        w, b = (model.graph.initializers[name].const_value.numpy() for name in "wb")
        outputs = [np.maximum(x @ weights.T + b, 0) for weights in (w, found.weights[0])]
        errors.append(float(((outputs[0] - outputs[1]) ** 2).mean()))
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_brecq_of_one_layer_without_fisher_information_is_adaround() -> None:
    model, x = gemm(16, 8, "Relu"), inputs(16)
    level = parse_level("int3-asym")
    _, one = learned(model, x, "adaround", level, 500)
    _, plain = learned(model, x, "brecq", level, 500)
    _, ones = learned(model, x, "brecq", level, 500, np.ones((256, 8), np.float32))
    assert one.codes is not None and plain.codes is not None and ones.codes is not None
    assert (one.codes == plain.codes).all() and (one.codes == ones.codes).all()


@pytest.mark.slow
def test_outputs_of_more_weight_are_met_better() -> None:
    """Of two layers that share their input the second's outputs count for nothing: its choices are never pulled."""
    model, x = gemm(12, 2), 4 * inputs(12)
    weight = np.tile(np.array([1, 0], np.float32), (256, 1))
    start, found = learned(model, x, "brecq", parse_level("int2-asym"), 1500, weight)
    w = random(2, 12)
    before, after = (
        (((w - solution.weights[0]) @ x.T.astype(np.float64)) ** 2).sum(axis=1) for solution in (start, found)
    )
    assert after[0] < 0.7 * before[0] and after[1] > 0.9 * before[1]


def test_adaquant_moves_weights_scales_and_bias() -> None:
    model, x = gemm(16, 8), 4 * inputs(16)
    start, found = learned(model, x, "adaquant", parse_level("int8"), 300)
    assert start.grid is not None and found.grid is not None and found.codes is not None
    assert (found.grid.scale != start.grid.scale).all() and (found.grid.zero_point == start.grid.zero_point).all()
    assert (found.weights == found.grid.dequantize(found.codes)).all()
    assert found.bias is not None and found.bias.shape == (8,) and (found.bias != 0).all()
    outputs = [x @ (random(8, 16) - solution.weights[0]).T for solution in (start, found)]
    outputs[1] -= found.bias
    errors = [float((y**2).mean()) for y in outputs]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("learner", ["adaround", "adaquant"])
def test_convolutions_and_their_groups(learner: Learner) -> None:
    """Matrices of a convolution have their columns in another order than the tensor."""
    nodes = [make("Conv", ["x", "w", "b"], ["y"], "layer", group=2, pads=[1] * 4)]
    weights = {"w": random(6, 4, 3, 3), "b": random(6)}
    model = ir.from_proto(build(nodes, {"x": ("N", 8, 5, 5)}, {"y": None}, weights))
    layers = find_layers(model)[0]
    graph = to_torch(model, layers, "--solver adaround", ["y"])
    x = random(8, 8, 5, 5) / np.float32(2)
    import torch

    dense = torch.nn.functional.conv2d(
        torch.tensor(x), torch.tensor(weights["w"]), torch.tensor(weights["b"]), padding=1, groups=2
    ).numpy()
    start = uncompensated(layers[0].matrix(), parse_level("int8" if learner == "adaquant" else "int3-asym"), "mse")
    found = learn(graph, layers, {"layer": start}, [Example({"x": x}, dense)], Learning(learner, 300))
    errors = []
    for solution in (start, found["layer"]):
        shift = np.zeros(6) if solution.bias is None else solution.bias
        w = torch.tensor(layers[0].tensor(solution.weights))
        y = torch.nn.functional.conv2d(
            torch.tensor(x), w, torch.tensor(weights["b"] + shift.astype(np.float32)), padding=1, groups=2
        )
        errors.append(float(((y.numpy() - dense) ** 2).mean()))
    assert errors[1] < (0.95 if learner == "adaround" else 1.05) * errors[0]


def test_the_same_seed_gives_the_same_and_progress_is_told() -> None:
    model, x = gemm(16, 8), inputs(16)
    one, same = (learned(model, x, "adaround", parse_level("int3"), 100)[1] for _ in range(2))
    assert one.codes is not None and same.codes is not None and (one.codes == same.codes).all()
    layers = find_layers(model)[0]
    told: list[float] = []
    start = uncompensated(layers[0].matrix(), parse_level("int3"), "mse")
    graph = to_torch(model, layers, "--solver adaround", ["y"])
    example = Example({"x": x}, random(256, 8))
    learn(graph, layers, {"layer": start}, [example], Learning("adaround", 4), told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not devices(), reason="needs an NVIDIA GPU that torch sees")
@pytest.mark.parametrize("learner", ["adaround", "adaquant", "brecq"])
def test_on_a_gpu(learner: Learner) -> None:
    """Sums come in another order there: as good, not the same."""
    model, x = gemm(16, 8), inputs(16)
    layers = find_layers(model)[0]
    level = parse_level("int8" if learner == "adaquant" else "int3-asym")
    start = uncompensated(layers[0].matrix(), level, "mse")
    target = x @ random(8, 16).T + random(8)
    losses = []
    for device in ("cpu", devices()[0]):
        graph = to_torch(model, layers, f"--solver {learner}", ["y"])
        examples = [Example({"x": x}, target, np.ones_like(target))]
        found = learn(graph, layers, {"layer": start}, examples, Learning(learner, 300, device=device))
        losses.append(loss(model, x, found["layer"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("learner", ["adaround", "adaquant"])
def test_what_is_not_finite_is_refused(learner: Learner, value: float) -> None:
    """Even in one sample of the last feed."""
    model, x = gemm(16, 8), inputs(16)
    x[-1, 4] = value
    with pytest.raises(ModelError, match="y: it is NaN or infinite on some of the calibration samples"):
        learned(model, x, learner, parse_level("int3"), 5)


@pytest.mark.slow
def test_layers_without_codes_are_what_they_start_from() -> None:
    """A block of two products, the first only pruned: what the second learns makes up for it."""
    nodes = [make("Gemm", ["x", "u"], ["h"], "first"), make("Gemm", ["h", "v"], ["y"], "second")]
    model = ir.from_proto(build(nodes, {"x": ("N", 6)}, {"y": None}, {"u": random(6, 6), "v": random(6, 4)}))
    layers = find_layers(model)[0]
    graph = to_torch(model, layers, "--solver brecq", ["y"])
    x = inputs(6)
    levels = {"first": parse_level("sparse-0.50"), "second": parse_level("int3-asym")}
    starts = {layer.name: uncompensated(layer.matrix(), levels[layer.name], "mse") for layer in layers}
    examples = [Example({"x": x}, x @ random(6, 6) @ random(6, 4))]
    found = learn(graph, layers, starts, examples, Learning("brecq", 1500))
    alone = learn(graph, layers[1:], starts, examples, Learning("brecq", 1500))
    assert found["first"] is starts["first"]

    def error(second: Solution) -> float:
        h = x @ starts["first"].weights[0].T
        return float(((h @ second.weights[0].T - examples[0].target) ** 2).mean())

    assert error(found["second"]) < error(alone["second"])
