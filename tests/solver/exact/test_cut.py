from __future__ import annotations

import numpy as np
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.level import Block, Unstructured
from onnx_obc.solver.exact.cut import cut, row_weights
from onnx_obc.solver.exact.prune import prune
from onnx_obc.solver.linalg.inverse import damp


def total(losses, depth):
    return sum(row[:d].sum() for row, d in zip(losses, depth, strict=True))


def problem(rows, steps, data):
    values = st.lists(st.integers(0, 50), min_size=rows * steps, max_size=rows * steps)
    return np.array(data.draw(values), float).reshape(rows, steps)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_it_is_the_optimum_where_losses_only_grow(rows, steps, data):
    losses = np.sort(problem(rows, steps, data), axis=1)
    count = data.draw(st.integers(0, rows * steps))
    depth = cut(losses, count)
    assert depth.sum() == count
    assert total(losses, depth) == textbook.cut(losses, count)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_it_is_the_optimum_between_the_edges_of_the_hulls(rows, steps, data):
    losses = problem(rows, steps, data)
    count = data.draw(st.integers(0, rows * steps))
    depth = cut(losses, count)
    assert depth.sum() == count
    whole = [d for d in range(rows) if not on_the_hull(losses[d], depth[d])]
    assert len(whole) <= 1  # a single row stops within an edge
    if not whole:
        assert total(losses, depth) <= textbook.cut(losses, count) * (1 + 1e-12)


def on_the_hull(row, depth):
    """Whether the point at this depth of the running sum lies on its lower convex hull."""
    sums, n = np.r_[0.0, np.cumsum(row)], len(row)
    chords = [
        sums[a] + (sums[b] - sums[a]) * (depth - a) / (b - a) for a in range(depth) for b in range(depth + 1, n + 1)
    ]
    return sums[depth] <= min(chords, default=np.inf) + 1e-9


def test_a_dear_step_goes_with_the_cheap_ones_behind_it():
    assert cut(np.array([[9.0, 0.0, 0.0], [4.0, 5.0, 6.0]]), 3).tolist() == [3, 0]
    assert cut(np.array([[9.0, 0.0], [1.0, 2.0]]), 2).tolist() == [0, 2]
    assert cut(np.array([[9.0, 0.0], [1.0, 20.0]]), 3).tolist() == [2, 1]


def test_weights_count_and_zero_goes_first():
    losses = np.array([[1.0, 2.0], [10.0, 20.0], [1e9, 1e9]])
    assert cut(losses, 4, np.array([1, 0.01, 0])).tolist() == [0, 2, 2]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([Unstructured(0.5), Block(4, 0.6)]))
def test_a_scale_counts_by_its_root(seed, sparsity):
    """A row of 2^20 times the scale: its weight is 2^-20, so that its losses count 2^20 times and not 2^40."""
    weights, hessian = layer(rows=5, columns=24, seed=seed)
    damped = damp(hessian)
    large = weights * np.float32(2.0) ** np.array([0, 0, 20, 0, 0], np.float32)[:, None]
    worth = row_weights(large, damped.hessian) / row_weights(weights, damped.hessian)
    np.testing.assert_allclose(worth, [1, 1, 2.0**-20, 1, 1])
    all_alike = prune(weights * np.float32(2.0**20), damped, sparsity)[1]
    assert (all_alike == prune(weights, damped, sparsity)[1]).all()


def test_a_row_that_puts_out_nothing_counts_nothing():
    weights, hessian = layer(groups=2, rows=3, columns=8)
    weights[1, 2] = 0
    worth = row_weights(weights, damp(hessian).hessian)
    assert worth[5] == 0 and (worth[:5] > 0).all()
