"""Global AdaPrune on the small classifier, pruned by magnitude and rounded to nearest; its own accuracy is 99.3 %."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL, top1
from small_graphs import Array, build, random
from written import rounded

from onnx_obc.core.errors import ModelError
from onnx_obc.core.level import Level, Unstructured, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.correction.global_adaprune import AdaPruned, Training, adaprune
from onnx_obc.graph.fold import fold, remove_unused
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.graph.opset import raise_opset
from onnx_obc.graph.write import Writer
from onnx_obc.runtime.session import open_session
from onnx_obc.solver.baselines.magnitude import magnitude_mask

EPOCHS = 4


def dense() -> tuple[ir.Model, list[Layer]]:
    model, _ = fold(read_model(MODEL))
    return model, find_layers(model)[0]


def feeds(count: int = 256, size: int = 32) -> list[dict[str, Array]]:
    images = np.load(CALIBRATION)["image"][:count]
    return [{"image": images[start : start + size]} for start in range(0, count, size)]


def pruned(layer: Layer, level: Level) -> Solution:
    """The smallest weights are 0; the others are as they were, or rounded."""
    assert level.sparsity is not None
    mask = magnitude_mask(layer.matrix(), level.sparsity)
    solution = rounded(layer, level)
    if solution.grid is None or solution.codes is None:
        return replace(solution, weights=np.where(mask, solution.weights, np.float32(0)), mask=mask)
    codes = np.where(mask, solution.codes, solution.grid.zero_point[:, :, None])
    return replace(solution, codes=codes, weights=solution.grid.dequantize(codes), mask=mask)


def accuracy(solutions: dict[str, Solution], biases: dict[str, Array], path: Path) -> float:
    """Top-1 of the model that is written with these."""
    model = raise_opset(dense()[0], 21)
    writer = Writer(model)
    for layer in find_layers(model)[0]:
        writer.weight(layer, solutions[layer.name])
    for name, value in biases.items():
        model.graph.initializers[name].const_value = ir.Tensor(value, name=name)
    remove_unused(model)
    ir.save(model, path)
    return top1(path)


def check(before: dict[str, Solution], found: AdaPruned) -> None:
    """Patterns hold, codes lie on the grids that they had, and weights are what the codes stand for."""
    assert list(found.solutions) == list(before)
    for name, old in before.items():
        new = found.solutions[name]
        assert new.weights.shape == old.weights.shape and new.weights.dtype == np.float32
        assert new.mask is old.mask and new.grid is old.grid and new.level == old.level
        if new.mask is not None:
            assert not new.weights[~new.mask].any()
        if new.grid is not None:
            assert new.codes is not None and new.codes.dtype == np.int32
            assert new.codes.min() >= new.grid.qmin and new.codes.max() <= new.grid.qmax
            assert np.array_equal(new.weights, new.grid.dequantize(new.codes))


# The factor by which the objective falls in four epochs, and the accuracy before and after: measured 3.1, 1.66 and 2.5;
# 16.9 → 94.7 %, 97.3 → 98.9 % and 18.2 → 90.0 %; here with a margin.
CASES = {"sparse-0.60": (2.5, 0.3, 0.9), "int3-asym": (1.4, 0.98, 0.983), "sparse-0.60+int4": (2.0, 0.3, 0.8)}


@pytest.mark.parametrize("level", CASES)
@pytest.mark.slow
def test_outputs_come_back(level: str, tmp_path: Path) -> None:
    factor, worst, floor = CASES[level]
    model, layers = dense()
    parsed = parse_level(level)
    before = {x.name: pruned(x, parsed) if parsed.sparsity else rounded(x, parsed) for x in layers}
    assert accuracy(before, {}, tmp_path / "before.onnx") < worst
    calls: list[int] = []
    found = adaprune(model, layers, before, feeds(), Training(EPOCHS), progress=calls.append)
    check(before, found)
    assert len(found.losses) == EPOCHS + 1 and calls == [1] * EPOCHS
    assert min(found.losses) * factor < found.losses[0]
    assert accuracy(found.solutions, found.biases, tmp_path / "after.onnx") > floor


def test_the_objective_is_that_of_the_models_in_onnxruntime() -> None:
    model, layers = dense()
    before = {x.name: pruned(x, Level(Unstructured(0.6))) for x in layers[:3]}
    data = feeds(64)
    found = adaprune(model, layers, before, data, Training(1))
    names = [str(layer.uses[0].node.outputs[0].name) for layer in layers]
    wanted = [open_session(model, names, device="cpu").run(dict(feed)) for feed in data]
    for solutions, biases, loss in ((before, {}, found.losses[0]), (found.solutions, found.biases, found.losses[1])):
        changed = dense()[0]
        writer = Writer(changed)
        for layer in find_layers(changed)[0]:
            if layer.name in solutions:
                writer.weight(layer, solutions[layer.name])
        for name, value in biases.items():
            changed.graph.initializers[name].const_value = ir.Tensor(value, name=name)
        given = [open_session(changed, names, device="cpu").run(dict(feed)) for feed in data]
        expected = 0.0
        for name in names:
            off = sum(
                float(((y[name] - z[name]).astype(np.float64) ** 2).sum()) for y, z in zip(wanted, given, strict=True)
            )
            expected += off / sum(float((y[name].astype(np.float64) ** 2).sum()) for y in wanted)
        assert loss == pytest.approx(expected, rel=1e-4)
    assert found.losses[1] < found.losses[0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_and_another_does_not() -> None:
    model, layers = dense()
    before = {x.name: pruned(x, Level(Unstructured(0.6))) for x in layers}
    one, same, other = (adaprune(model, layers, before, feeds(64, 8), Training(1, seed)) for seed in (1, 1, 2))
    assert one.losses == same.losses and one.losses != other.losses
    for name in before:
        assert np.array_equal(one.solutions[name].weights, same.solutions[name].weights)
    assert all(np.array_equal(one.biases[name], same.biases[name]) for name in one.biases)


@pytest.mark.slow
def test_layers_without_a_solution_stay_with_their_biases() -> None:
    model, layers = dense()
    before = {x.name: pruned(x, Level(Unstructured(0.6))) for x in layers[2:4]}
    found = adaprune(model, layers, before, feeds(64), Training(1))
    assert list(found.solutions) == [x.name for x in layers[2:4]]
    assert set(found.biases) == {str(x.uses[0].node.inputs[2].name) for x in layers[2:4]}
    nothing = adaprune(model, layers, {}, feeds(64), Training(1))
    assert nothing == AdaPruned({}, {}, (0.0,))


def test_a_bias_shared_with_a_layer_without_a_solution_stays() -> None:
    make = onnx.helper.make_node
    nodes = [make("Gemm", ["x", "v", "b"], ["h"], "one"), make("Gemm", ["h", "w", "b"], ["y"], "two")]
    weights = {"v": random(7, 7), "w": random(7, 7, seed=1), "b": random(7)}
    model = ir.from_proto(build(nodes, {"x": (8, 7)}, {"y": None}, weights))
    layers, _ = find_layers(model)
    data = [{"x": random(8, 7, seed=seed)} for seed in range(4)]
    before = {x.name: pruned(x, Level(Unstructured(0.5))) for x in layers}
    both, one = (
        adaprune(model, layers, before, data, Training(1)),
        adaprune(model, layers, {"one": before["one"]}, data, Training(1)),
    )
    assert set(both.biases) == {"b"} and not one.biases


def test_what_makes_it_worse_is_not_returned() -> None:
    model, layers = dense()
    before = {x.name: rounded(x, parse_level("int8")) for x in layers}
    found = adaprune(model, layers, before, feeds(64), Training(2, learning_rate=100.0))
    assert found.losses[1] > found.losses[0]
    check(before, found)
    if min(found.losses) == found.losses[0]:
        for name, old in before.items():
            assert np.array_equal(found.solutions[name].weights, old.weights)
            assert np.array_equal(found.solutions[name].codes, old.codes)
        assert all(np.array_equal(v, model.graph.initializers[n].const_value.numpy()) for n, v in found.biases.items())


def test_codes_stay_in_the_range_of_an_asymmetric_grid() -> None:
    model, layers = dense()
    before = {x.name: rounded(x, parse_level("int2-asym")) for x in layers}
    found = adaprune(model, layers, before, feeds(64), Training(1, learning_rate=0.3))
    check(before, found)


def test_a_row_of_zeros_can_be_trained_where_it_was_kept() -> None:
    model, layers = dense()
    layer = layers[1]
    weights = layer.matrix()
    weights[:, 0] = 0
    kept, none = Solution(Level(), weights, None, None, None, 0.0), np.zeros(weights.shape, np.bool_)
    found = adaprune(model, layers, {layer.name: kept}, feeds(64), Training(1))
    assert found.solutions[layer.name].weights[:, 0].any() and found.losses[1] < found.losses[0]
    gone = replace(kept, weights=np.zeros_like(weights), mask=none)
    assert not adaprune(model, layers, {layer.name: gone}, feeds(64), Training(1)).solutions[layer.name].weights.any()


def test_values_that_are_not_finite_are_an_error() -> None:
    model, layers = dense()
    layer = layers[1]
    weights = layer.matrix()
    weights[0, 0, 0] = np.inf
    broken = {layer.name: Solution(Level(), weights, None, None, None, 0.0)}
    with pytest.raises(ModelError, match="NaN or infinite"):
        adaprune(model, layers, broken, feeds(64), Training(1))


@pytest.mark.slow
def test_importing_it_does_not_load_torch() -> None:
    code = "import sys, onnx_obc.correction.global_adaprune as _; print({'torch', 'onnx2torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
