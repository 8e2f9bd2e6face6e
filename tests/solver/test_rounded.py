from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.level import parse_level
from onnx_obc.solver import Method, damp, fit_grid, solve
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.linalg.loss import row_losses

TINY = st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 12, 24])


def losses_of(weights, damped, level, method):
    return row_losses(weights, solve(weights, damped, level, method).weights, damped.hessian)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(*TINY, st.sampled_from(["2:4+int2-asym", "2:4+int3", "sparse-0.50+int2-asym", "block4-0.50+int4", "4:8+int2"]))
def test_joint_levels_are_never_worse_than_without_refinement_row_by_row(seed, columns, text):
    weights, hessian = layer(rows=6, columns=columns, samples=2 * columns, seed=seed)
    damped, level = damp(hessian), parse_level(text)
    greedy = losses_of(weights, damped, level, Method())
    for refine in ("auto", 1):
        assert (losses_of(weights, damped, level, Method(refine=refine)) <= greedy * (1 + 1e-5)).all()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(*TINY, st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_symmetric_rows_are_never_worse_than_on_the_grid_of_the_authors(seed, columns, bits, blocks):
    weights, hessian = layer(groups=2, rows=6, columns=columns, samples=2 * columns, seed=seed)
    damped, level = damp(hessian), replace(parse_level(f"int{bits}"), block=4 if blocks else None)
    for whole_span in (True, False):
        grid = fit_grid(weights, bits, block=level.block, whole_span=whole_span)
        only = row_losses(weights, grid.dequantize(quantize(weights, damped, grid)[0]), damped.hessian)
        assert (losses_of(weights, damped, level, Method()) <= only * (1 + 1e-5)).all()


def test_the_grid_of_the_authors_is_the_better_one_for_some_rows():
    weights, hessian = layer(rows=200, columns=12, seed=1)
    damped = damp(hessian)
    first = fit_grid(weights, 4)
    both = solve(weights, damped, parse_level("int4"))
    assert 0.01 < (both.grid.scale != first.scale).mean() < 0.5
    alone = row_losses(weights, first.dequantize(quantize(weights, damped, first)[0]), damped.hessian)
    assert row_losses(weights, both.weights, damped.hessian).sum() < alone.sum()


@pytest.mark.parametrize("text", ["2:4+int3", "int3"])
def test_rows_that_share_a_scale_go_on_sharing_it(text):
    weights, hessian = layer(groups=3, rows=5, columns=16, seed=2)
    solution = solve(weights, damp(hessian), parse_level(text), Method(shared_scale=True, refine=2))
    assert (solution.grid.scale == solution.grid.scale[:, :1]).all()
