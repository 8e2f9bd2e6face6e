from __future__ import annotations

import numpy as np
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.solver.exact.blocks import prune_blocks
from onnx_obc.solver.exact.elimination import Workspace
from onnx_obc.solver.exact.greedy import prune_rows, quantize_rows
from onnx_obc.solver.grid import fit_grid
from onnx_obc.solver.linalg.inverse import damp

problems = st.builds(
    layer,
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.sampled_from([1, 2, 5, 8, 33, 70, 150]),  # 150: four epochs
    samples=st.sampled_from([1, 10, 200]),
    decay=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
quick = settings(max_examples=30, deadline=None)


def each_row(weights, damped):
    groups, rows, _ = weights.shape
    for i in range(groups * rows):
        g, r = divmod(i, rows)
        yield i, weights[g, r], damped.inverse[g]


def arguments(weights, damped):
    base, floor, unit = damped.scaled("float64")
    return weights.reshape(-1, weights.shape[2]), base, floor, unit.repeat(weights.shape[1])


def space(flat, block=1, dtype="float64"):
    workspace = Workspace(flat.shape[1], dtype, block)
    return workspace.room, workspace.factor


@quick
@given(problems, st.sampled_from([(0, 1), (2, 4), (1, 4), (4, 8), (3, 4), (1, 2)]))
def test_single_weights(problem, pattern):
    weights, hessian = problem
    damped = damp(hessian)
    flat, base, floor, unit = arguments(weights, damped)
    wanted = [textbook.prune(w, inverse, *pattern) for _, w, inverse in each_row(weights, damped)]
    order = np.empty((len(flat), len(wanted[0][0])), np.int32)
    losses = np.empty(order.shape)
    prune_rows(flat, base, floor, *pattern, *space(flat), 0, len(flat), order, losses)
    for i, (pivots, increments) in enumerate(wanted):
        assert order[i].tolist() == pivots
        np.testing.assert_allclose(losses[i] * unit[i], increments, rtol=1e-8)


@quick
@given(problems, st.sampled_from([2, 3, 4, 16]))
def test_blocks(problem, size):
    weights, hessian = problem
    damped = damp(hessian)
    flat, base, floor, unit = arguments(weights, damped)
    order = np.empty((len(flat), -(-flat.shape[1] // size)), np.int32)
    losses = np.empty(order.shape)
    prune_blocks(flat, base, floor, size, *space(flat, size), 0, len(flat), order, losses)
    for i, w, inverse in each_row(weights, damped):
        blocks, increments = textbook.prune_blocks(w, inverse, size)
        assert order[i].tolist() == blocks
        np.testing.assert_allclose(losses[i] * unit[i], increments, rtol=1e-8)


@quick
@given(problems, st.sampled_from([2, 3, 4, 8]), st.booleans(), st.sampled_from(["minmax", "mse"]))
def test_quantization(problem, bits, symmetric, method):
    weights, hessian = problem
    damped = damp(hessian)
    flat, base, floor, unit = arguments(weights, damped)
    grid = fit_grid(weights, bits, symmetric, method)
    scale, zero = (x.reshape(flat.shape) for x in grid.spread(*weights.shape[1:]))
    codes, order = np.empty(flat.shape, np.int32), np.empty(flat.shape, np.int32)
    losses = np.empty(len(flat))
    kept = np.ones(flat.shape, bool)
    grids = (scale, zero, grid.qmin, grid.qmax)
    quantize_rows(flat, kept, base, floor, *grids, *space(flat), 0, len(flat), codes, order, losses)
    for i, w, inverse in each_row(weights, damped):
        wanted, pivots, increments = textbook.quantize(w, inverse, scale[i], zero[i], grid.qmin, grid.qmax)
        assert order[i].tolist() == pivots
        assert codes[i].tolist() == wanted.tolist()
        np.testing.assert_allclose(losses[i] * unit[i], sum(increments), rtol=1e-8)


def test_outliers_are_rounded_as_soon_as_they_appear():
    weights, hessian = layer(rows=1, columns=40, samples=60, seed=3)
    weights[0, 0, [5, 17]] = 3, -4  # outside −2 … 1.5
    damped = damp(hessian)
    flat, base, floor, _ = arguments(weights, damped)
    codes, order, losses = np.empty((1, 40), np.int32), np.empty((1, 40), np.int32), np.empty(1)
    scale, zero = np.full((1, 40), 0.5, np.float32), np.zeros((1, 40), np.int32)
    kept = np.ones(flat.shape, bool)
    quantize_rows(flat, kept, base, floor, scale, zero, -4, 3, *space(flat), 0, 1, codes, order, losses)
    assert order[0, 0] == 17
    assert order[0].tolist() == textbook.quantize(weights[0, 0], damped.inverse[0], 0.5, 0, -4, 3)[1]


def test_ties_go_to_the_lowest_column():
    flat, base, floor = np.ones((1, 80), np.float32), np.eye(80)[None], np.ones((1, 80))
    order, losses = np.empty((1, 80), np.int32), np.empty((1, 80))
    prune_rows(flat, base, floor, 0, 1, *space(flat), 0, 1, order, losses)
    assert order[0].tolist() == list(range(80))
    blocks, increments = np.empty((1, 20), np.int32), np.empty((1, 20))
    prune_blocks(flat, base, floor, 4, *space(flat, 4), 0, 1, blocks, increments)
    assert blocks[0].tolist() == list(range(20))


def test_a_call_for_some_rows_writes_those_and_the_same():
    weights, hessian = layer(groups=2, rows=5, columns=70)
    flat, _, floor, _ = arguments(weights, damped := damp(hessian))
    base = damped.scaled("float32")[0]
    whole, pieces = np.full((10, 70), -1, np.int32), np.full((10, 70), -1, np.int32)
    losses, partial = np.zeros((10, 70)), np.zeros((10, 70))
    rooms = space(flat, dtype="float32")
    prune_rows(flat, base, floor, 0, 1, *rooms, 0, 10, whole, losses)
    for start, stop in [(0, 1), (1, 4), (4, 9)]:
        prune_rows(flat, base, floor, 0, 1, *rooms, start, stop, pieces, partial)
    assert (pieces[:9] == whole[:9]).all() and (partial[:9] == losses[:9]).all()
    assert (pieces[9] == -1).all()
