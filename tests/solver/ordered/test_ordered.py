from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import check_pattern, layer

from onnx_obc.core.level import NM, Block, Unstructured, parse_level
from onnx_obc.solver.baselines import baseline
from onnx_obc.solver.exact.prune import prune, solve_kept
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.grid import fit_grid, round_to_grid
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.linalg.loss import layer_loss
from onnx_obc.solver.ordered import ordered
from onnx_obc.solver.ordered.ordered import prune_ordered, quantize_ordered
from onnx_obc.solver.ordered.refit import inner_product, refit
from onnx_obc.solver.solve import Method, solve

ORDERED = Method(solver="ordered")
SPARSITIES = st.one_of(
    st.builds(Unstructured, st.floats(0.01, 0.99)),
    st.builds(Block, st.integers(2, 6), st.floats(0.01, 0.99)),
    st.sampled_from([NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2)]),
)
WIDTHS = st.sampled_from([1, 9, 16, 17, 35, 50])


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(ordered, "BLOCK", 16)


def gptq(w, hessian, order, scale, zero, qmin, qmax):
    """GPTQ section 3.3, step 3 and Algorithm 1 with blocks of one column, in float64, one row."""
    w = w.astype(float)[order]
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T  # H⁻¹ = UᵀU
    codes, loss = np.zeros(len(w), int), 0.0
    for j in range(len(w)):
        code = np.clip(np.rint(w[j] / np.float64(scale)) + zero, qmin, qmax)
        error = (w[j] - float(np.float32(code - zero) * scale)) / upper[j, j]
        codes[order[j]] = code
        loss += 0.5 * error**2
        w[j:] -= error * upper[j, j:]
    return codes, loss


@pytest.mark.parametrize("seed", range(5))
def test_with_blocks_of_one_column_it_is_gptq(seed, monkeypatch):
    monkeypatch.setattr(ordered, "BLOCK", 1)
    weights, hessian = layer(2, 3, 40, seed=seed)
    damped, grid = damp(hessian), fit_grid(weights, 3, False)
    codes, loss = quantize_ordered(weights, damped, grid, precision="float64")
    total = 0.0
    for g, r in np.ndindex(2, 3):
        order = np.argsort(-np.diag(hessian[g]), kind="stable")
        wanted, part = gptq(
            weights[g, r], damped.hessian[g], order, grid.scale[g, r], grid.zero_point[g, r], grid.qmin, grid.qmax
        )
        assert codes[g, r].tolist() == wanted.tolist()
        total += part
    np.testing.assert_allclose(loss, total, rtol=1e-5)  # a column's best value is passed on in float32


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), WIDTHS, SPARSITIES)
def test_patterns_hold_and_the_loss_is_the_measured_one(seed, groups, rows, columns, sparsity):
    weights, hessian = layer(groups, rows, columns, seed=seed)
    damped = damp(hessian)
    solved, mask, loss = prune_ordered(weights, damped, sparsity)
    assert solved.dtype == np.float32 and (solved[~mask] == 0).all()
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian), rtol=1e-4)
    check_pattern(mask, sparsity)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4, 8]), st.booleans(), WIDTHS, st.booleans(), st.booleans())
def test_quantized_rows_with_zeros(seed, bits, symmetric, columns, masked, zeroed):
    weights, hessian = layer(2, 3, columns, seed=seed)
    damped, mask = damp(hessian), None
    if masked:
        mask = np.random.default_rng(seed).random(weights.shape) < 0.6
        mask[0, 0], mask[1, 1] = True, False
        weights = np.where(mask, weights, 0) if zeroed else weights
    grid = fit_grid(weights, bits, symmetric)
    codes, loss = quantize_ordered(weights, damped, grid, mask)
    assert codes.dtype == np.int32 and codes.min() >= grid.qmin and codes.max() <= grid.qmax
    if mask is not None:
        assert (codes == grid.zero_point[:, :, None])[~mask].all()
    np.testing.assert_allclose(loss, layer_loss(weights, grid.dequantize(codes), damped.hessian), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("columns", [1, 9, 100, 128])
def test_a_single_block_is_the_exact_solver(columns):
    weights, hessian = layer(2, 4, columns)
    damped = damp(hessian)
    grid = fit_grid(weights, 4)
    got, wanted = quantize_ordered(weights, damped, grid), quantize(weights, damped, grid)
    assert (got[0] == wanted[0]).all() and got[1] == wanted[1].sum()
    for sparsity in (NM(2, 4), Unstructured(0.6), Block(4, 0.5)):
        got, wanted = prune_ordered(weights, damped, sparsity), prune(weights, damped, sparsity)
        assert (got[0] == wanted[0]).all() and (got[1] == wanted[1]).all() and got[2] == wanted[2]


@pytest.mark.parametrize("level", ["int4", "int3-asym", "2:4", "sparse-0.60", "block4-0.50", "2:4+int4-asym"])
def test_between_the_baseline_and_the_exact_solver(level):
    weights, hessian = layer(1, 8, 300, samples=1200, decay=0.7)
    damped, level = damp(hessian), parse_level(level)
    exact, simple = solve(weights, damped, level), baseline(weights, damped, level)
    seen = []
    solution = solve(weights, damped, level, ORDERED, seen.append)
    np.testing.assert_allclose(solution.loss, layer_loss(weights, solution.weights, damped.hessian), rtol=1e-4)
    assert solution.loss < 0.7 * simple.loss
    assert 0.8 * exact.loss < solution.loss < 1.35 * exact.loss
    assert seen == sorted(seen) and seen[-1] == 8
    if level.bits:
        assert (solution.weights == solution.grid.dequantize(solution.codes)).all()


@pytest.mark.slow
def test_threads_change_nothing():
    weights, hessian = layer(2, 300, 200, samples=800)
    damped = damp(hessian)
    for level in ("int3", "2:4+int4", "sparse-0.60"):
        one, three = (solve(weights, damped, parse_level(level), Method("ordered", threads=n)) for n in (1, 3))
        assert (one.weights == three.weights).all() and one.loss == three.loss


@pytest.mark.usefixtures("small_blocks")
def test_dead_columns_and_a_zero_hessian():
    weights, hessian = layer(2, 3, 40)
    grid = fit_grid(weights, 4)
    codes, _ = quantize_ordered(weights, damp(hessian * 0), grid)
    assert (codes == round_to_grid(weights, grid)).all()
    hessian[0, [2, 37]] = hessian[0, :, [2, 37]] = 0
    damped = damp(hessian)
    solution = solve(weights, damped, parse_level("sparse-0.50+int4"), ORDERED)
    np.testing.assert_allclose(solution.loss, layer_loss(weights, solution.weights, damped.hessian), rtol=1e-4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scale", [2.0**-200, 2.0**200])
def test_any_scale_of_the_hessian(scale):
    weights, hessian = layer(1, 3, 40)
    for level in ("int3", "2:4+int4"):
        plain, scaled = (solve(weights, damp(h), parse_level(level), ORDERED) for h in (hessian, hessian * scale))
        np.testing.assert_allclose(scaled.loss, plain.loss * scale, rtol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_refit_gains_what_it_says_and_comes_close(precision):
    weights, hessian = layer(2, 5, 80, samples=320)
    damped = damp(hessian)
    mask = np.random.default_rng(0).random(weights.shape) < 0.5
    mask[0, 0], mask[1, 1] = True, False
    solved = np.where(mask, weights, np.float32(0))
    before = layer_loss(weights, solved, damped.hessian)
    gain = refit(weights, solved, mask, damped, precision=precision)
    after = layer_loss(weights, solved, damped.hessian)
    best = layer_loss(weights, solve_kept(weights, mask, damped.hessian), damped.hessian)
    np.testing.assert_allclose(before - gain, after, rtol=1e-5)
    assert best <= after * (1 + 1e-6) and after < 1.02 * best < 0.9 * before
    assert (solved[~mask] == 0).all() and (solved[0, 0] == weights[0, 0]).all()


def test_inner_product():
    a, hessian = layer(2, 3, 20)
    b = layer(2, 3, 20, seed=1)[0]
    damped = damp(hessian)
    wanted = sum(np.trace(a[g] @ damped.hessian[g] @ b[g].T) for g in range(2))
    np.testing.assert_allclose(inner_product(a, b, damped), wanted, rtol=1e-5)
