"""What is held out of a Hessian to choose its damping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import build, random

from onnx_obc.calibration.capture import Chunk, capture, plan_chunks, probe
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.held_out import held_samples, pieces
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Samples
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import InputSpec
from onnx_obc.runtime.session import Execution
from onnx_obc.solver.linalg.damping import CANDIDATES, choose_damping

node = helper.make_node
X = random(37, 3, 8, 8)


def network() -> ir.Model:
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], name="depthwise", group=4, strides=[2, 2]),
        node("Flatten", ["c"], ["g"]),
        node("Gemm", ["g", "w4"], ["y"], name="last"),
    ]
    weights = {"w1": random(4, 3, 3, 3), "w2": random(4, 1, 3, 3), "w4": random(36, 5)}
    return ir.from_proto(build(nodes, {"x": ("n", 3, 8, 8)}, {"y": None}, weights))


def samples(x: np.ndarray, batch: int) -> Samples:
    return open_samples({"x": x}, [InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))], DataOptions(batch=batch))


def chunk(model: ir.Model) -> Chunk:
    return Chunk(tuple(find_layers(model)[0]), (), choose_damping=True)


def test_one_in_four_is_held_out_in_runs_whatever_the_batch() -> None:
    whole = held_samples(0, 640, 640, 640)
    assert whole.sum() == 160 and (whole.reshape(64, 10).min(axis=1) == whole.reshape(64, 10).max(axis=1)).all()
    parts = [held_samples(first, 32, 32, 640) for first in range(0, 640, 32)]
    assert (np.concatenate(parts) == whole).all()
    assert held_samples(0, 12, 12, 12).nonzero()[0].tolist() == [3, 7, 11]
    assert not held_samples(0, 3, 3, 3).any()
    assert [bool(held_samples(first, 8, 1, 64).all()) for first in range(0, 64, 8)] == [False] * 3 + [True] + [
        False
    ] * 3 + [True]


def test_pieces_cover_every_vector_once() -> None:
    held = np.array([False, True, True, False])
    found = list(pieces(held, 5, 3, 14))  # the vectors 3 … 16, of slots of 5
    assert found == [(slice(0, 2), False), (slice(2, 12), True), (slice(12, 14), False)]


@pytest.mark.parametrize("all_positions", [True, False])
def test_the_hessian_is_that_of_all_samples(all_positions: bool) -> None:
    model = network()
    wanted, found = (
        capture(model, part, samples(X, 8), all_positions=all_positions, positions_per_column=5)
        for part in (replace(chunk(model), choose_damping=False), chunk(model))
    )
    assert found.positions == wanted.positions and not wanted.dampings
    assert found.dampings.keys() == found.hessians.keys()
    for tap, hessian in wanted.hessians.items():
        np.testing.assert_allclose(found.hessians[tap], hessian, rtol=1e-6, atol=1e-6 * np.abs(hessian).max())
        assert (found.hessians[tap] == found.hessians[tap].transpose(0, 2, 1)).all()


@pytest.mark.parametrize("all_positions", [True, False])
def test_neither_the_batch_nor_the_threads_change_a_choice(all_positions: bool) -> None:
    model = network()
    results = [
        capture(
            model,
            chunk(model),
            samples(X, batch),
            all_positions=all_positions,
            positions_per_column=5,
            execution=Execution(threads=threads),
        )
        for batch, threads in ((1, 1), (7, 1), (32, 1), (7, 3))
    ]
    assert all(result.dampings == results[0].dampings for result in results)


def test_the_choice_is_made_on_other_samples_than_the_fit() -> None:
    model = network()
    layer = find_layers(model)[0][-1]  # 36 columns: 37 samples are too few
    few = capture(model, chunk(model), samples(X, 8), all_positions=True)
    held = held_samples(0, 37, 37, 37)
    parts = [
        capture(model, Chunk((layer,), ()), samples(x, 8), all_positions=True).hessian(layer)[0]
        for x in (X[~held], X[held])
    ]
    assert few.damping(layer) == choose_damping(*parts) > CANDIDATES[0]
    many = capture(model, chunk(model), samples(random(4096, 3, 8, 8), 64), all_positions=True)
    chosen, before = many.damping(layer), few.damping(layer)
    assert chosen is not None and before is not None and chosen < before


def test_too_few_samples_choose_nothing() -> None:
    model = network()
    captured = capture(model, chunk(model), samples(X[:3], 2), all_positions=True)
    assert captured.dampings == {} and captured.damping(find_layers(model)[0][0]) is None
    assert all(n > 0 for n in captured.positions.values())


def test_the_second_sum_counts_as_memory() -> None:
    model, data = network(), samples(X, 1)
    layers = find_layers(model)[0]
    shapes = probe(model, [use.tap.value for layer in layers for use in layer.uses], data, Execution("cpu"))
    counts = [
        next(m for m in range(1000, 10**6, 1000) if len(plan_chunks(layers, [], shapes, data, m, choose)) == 1)
        for choose in (False, True)
    ]
    assert 1.5 * counts[0] < counts[1] <= 2 * counts[0] + 1000
