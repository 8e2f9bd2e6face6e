from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.level import FLOAT, NM, Unstructured, parse_level
from onnx_obc.core.solution import Grid
from onnx_obc.solver import baseline, damp, fit_grid, layer_loss, solve
from onnx_obc.solver.bound import bound, relax
from onnx_obc.solver.bound.bound import lower_bound

LEVELS = ["int8", "int4-asym", "int2-asym", "2:4", "4:8", "sparse-0.60", "block4-0.50", "2:4+int4-asym", "2:4+int2"]
# Groups, rows, columns of layers whose every solution can be tried.
TINY = {
    "int2": (1, 2, 6),
    "int3-asym": (1, 1, 4),
    "2:4": (1, 2, 7),
    "1:3": (2, 1, 8),
    "sparse-0.60": (2, 1, 5),
    "sparse-0.25": (1, 2, 5),
    "block2-0.50": (1, 2, 7),
    "block3-0.30": (2, 1, 7),
    "2:4+int2": (1, 1, 6),
    "sparse-0.50+int2-asym": (1, 2, 3),
    "block2-0.50+int2": (2, 1, 4),
}


def masks(level, shape):
    """Every mask that the pattern allows, without those that prune more than they must."""
    groups, rows, columns = shape
    sparsity, lines = level.sparsity, groups * rows
    if sparsity is None:
        yield np.ones(shape, bool)
    elif isinstance(sparsity, NM):
        starts = [start for _ in range(lines) for start in range(0, columns, sparsity.m)]
        spans = [range(start, min(start + sparsity.m, columns)) for start in starts]
        for picks in product(*[list(combinations(span, min(sparsity.n, len(span)))) for span in spans]):
            mask = np.zeros((lines, columns), bool)
            for i, pick in enumerate(picks):
                mask[i // (len(spans) // lines), list(pick)] = True
            yield mask.reshape(shape)
    else:
        size = 1 if isinstance(sparsity, Unstructured) else sparsity.size
        blocks = -(-columns // size)
        for pruned in combinations(range(lines * blocks), round(sparsity.sparsity * lines * blocks)):
            kept = np.ones(lines * blocks, bool)
            kept[list(pruned)] = False
            yield np.repeat(kept.reshape(lines, blocks), size, axis=1)[:, :columns].reshape(shape)


def optimum(weights, hessian, level, grid):
    """The least loss over all masks and all codes, or the exact refit, by trying them all; row by row for each mask."""
    seen = {}

    def row_loss(g, r, kept):
        if (g, r, kept) not in seen:
            w, own = weights[g, r].astype(float), np.array(kept)
            if grid is None:
                lost = hessian[g][np.ix_(~own, ~own)]
                if own.any() and not own.all():
                    across = hessian[g][np.ix_(~own, own)]
                    lost = lost - across @ np.linalg.solve(hessian[g][np.ix_(own, own)], across.T)
                seen[g, r, kept] = 0.5 * w[~own] @ lost @ w[~own]
            else:
                values = np.arange(grid.qmin, grid.qmax + 1, dtype=np.int32)[None, None] - grid.zero_point[g, r]
                values = (values[0, 0].astype(np.float32) * grid.scale[g, r]).astype(float)
                choices = np.array(list(product(*[values if k else [0.0] for k in kept])))  # (solutions, columns)
                off = w - choices
                seen[g, r, kept] = 0.5 * ((off @ hessian[g]) * off).sum(axis=1).min()
        return seen[g, r, kept]

    groups, rows, _ = weights.shape
    return min(
        sum(row_loss(g, r, tuple(mask[g, r])) for g in range(groups) for r in range(rows))
        for mask in masks(level, weights.shape)
    )


@pytest.mark.parametrize("text", TINY)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.3, 0.01, 1e-4]))
@pytest.mark.slow
def test_never_exceeds_the_optimum(text, seed, decay, damping):
    level = parse_level(text)
    weights, hessian = layer(*TINY[text], samples=12, decay=decay, seed=seed)
    damped = damp(hessian, damping)
    grid = fit_grid(weights, level.bits, level.symmetric) if level.bits else None
    best = optimum(weights, damped.hessian, level, grid)
    found = lower_bound(weights, damped, level, grid)
    assert 0 <= found <= best * (1 + 1e-9)
    assert solve(weights, damped, level).loss >= 0.99 * best or level.bits  # the optimum is one


@pytest.mark.slow
def test_is_a_good_part_of_the_optimum(capsys):
    """Where inputs are correlated as in real layers; a bound that says nothing would pass all other tests."""
    with capsys.disabled():
        for text, shape in TINY.items():
            level, parts, achieved = parse_level(text), [], []
            for seed in range(20):
                weights, hessian = layer(*shape, decay=1.0, seed=seed)
                damped = damp(hessian)
                solution = solve(weights, damped, level)
                found = lower_bound(weights, damped, level, solution.grid)
                best = optimum(weights, damped.hessian, level, solution.grid)
                assert found <= best * (1 + 1e-9) <= solution.loss * (1 + 1e-4)
                parts.append(found / best)
                achieved.append(found / solution.loss)
            shares = f"bound / optimum {np.mean(parts):.2f}, bound / achieved {np.mean(achieved):.2f}"
            print(f"\n{text:>22}: {shares}", end="")
            assert np.mean(parts) > 0.2


@pytest.mark.parametrize("text", LEVELS)
def test_below_every_solver_and_well_above_zero(text):
    level = parse_level(text)
    for seed in range(3):
        weights, hessian = layer(2, 5, 72, samples=400, seed=seed)
        damped = damp(hessian)
        exact, simple = solve(weights, damped, level), baseline(weights, damped, level)
        assert lower_bound(weights, damped, level, exact.grid) > 0.02 * exact.loss
        for solution in (exact, simple):
            measured = layer_loss(weights, solution.weights, damped.hessian)
            assert lower_bound(weights, damped, level, solution.grid) < measured


@pytest.mark.parametrize("text", LEVELS)
def test_the_relaxation_raises_it(text, monkeypatch):
    level = parse_level(text)
    weights, hessian = layer(1, 6, 72, samples=400)
    damped = damp(hessian)
    grid = solve(weights, damped, level).grid
    found = lower_bound(weights, damped, level, grid)
    monkeypatch.setattr(bound, "relax", lambda part, base, unit: np.zeros_like(part.weights))
    assert found > 1.1 * lower_bound(weights, damped, level, grid)


@pytest.mark.parametrize("text", LEVELS)
def test_holds_for_any_expansion_point(text, monkeypatch):
    """The proof needs nothing of u, so rounding or a bad splitting can only loosen the bound."""
    level = parse_level(text)
    weights, hessian = layer(2, 3, 24)
    damped = damp(hessian)
    solution = solve(weights, damped, level)
    for seed, size in enumerate([1e-3, 0.1, 1.0, 1e3]):
        anywhere = size * np.random.default_rng(seed).standard_normal(weights.shape)
        monkeypatch.setattr(bound, "relax", lambda part, base, unit, u=anywhere: u)
        assert lower_bound(weights, damped, level, solution.grid) <= solution.loss


@pytest.mark.parametrize("text", LEVELS)
def test_scales_with_the_square_of_the_weights(text):
    level = parse_level(text)
    weights, hessian = layer(2, 4, 30)
    damped = damp(hessian)
    grid = fit_grid(weights, level.bits, level.symmetric) if level.bits else None
    larger = grid and Grid(8 * grid.scale, grid.zero_point, grid.bits, grid.symmetric)
    assert lower_bound(8 * weights, damped, level, larger) == 64 * lower_bound(weights, damped, level, grid) > 0


def test_exact_where_the_hessian_is_diagonal():
    """Nothing can make up for anything: rounding and magnitude pruning are the optimum."""
    for columns in (30, 100):
        weights, hessian = layer(2, 4, columns)
        damped = damp(hessian * 0)
        for text in ("int4", "2:4", "sparse-0.60", "block4-0.50", "2:4+int4"):
            solution = solve(weights, damped, parse_level(text))
            found = lower_bound(weights, damped, parse_level(text), solution.grid)
            assert 0.99 * solution.loss < found <= solution.loss * (1 + 1e-6)


@pytest.mark.parametrize("text", LEVELS)
@pytest.mark.parametrize("damping", [0.01, 1e-6])
def test_dead_inputs_zero_groups_and_zero_rows(text, damping):
    weights, hessian = layer(groups=3, rows=4, columns=36)
    hessian[0, [3, 20]] = hessian[0, :, [3, 20]] = 0
    hessian[1] = 0
    weights[0, 2] = weights[2, 0] = 0
    damped = damp(hessian, damping)
    solution = solve(weights, damped, parse_level(text))
    found = lower_bound(weights, damped, parse_level(text), solution.grid)
    assert 0 < found <= layer_loss(weights, solution.weights, damped.hessian)


@pytest.mark.parametrize("text", LEVELS)
def test_nearly_singular(text):
    weights, hessian = layer(rows=3, columns=80, samples=79, decay=4.0)
    damped = damp(hessian, 0.0)
    solution = solve(weights, damped, parse_level(text))
    assert 0 <= lower_bound(weights, damped, parse_level(text), solution.grid) <= solution.loss


@pytest.mark.parametrize("text", LEVELS)
def test_in_parts(text, monkeypatch):
    """A layer too large for one go: parts by group, and by every so many rows of a group."""
    level = parse_level(text)
    weights, hessian = layer(3, 10, 24, samples=200)
    damped = damp(hessian)
    solution = solve(weights, damped, level)
    whole = lower_bound(weights, damped, level, solution.grid)
    apart = level.sparsity is None or isinstance(level.sparsity, NM)  # no row depends on another
    for chunk in (600, 60):
        monkeypatch.setattr(bound, "_CHUNK", chunk)
        found = lower_bound(weights, damped, level, solution.grid)
        assert found <= solution.loss
        np.testing.assert_allclose(found, whole, rtol=0.05 if apart else 0.3)  # each part picks its best bound


def test_the_minorant_lies_below_the_hessian():
    for seed, columns in enumerate((1, 9, 65, 130)):
        damped = damp(layer(2, 1, columns, seed=seed)[1])
        below = bound._minorant(damped.hessian, damped.inverse)  # (groups, columns)
        assert (below > 0).all()
        for hessian, diagonal in zip(damped.hessian, below, strict=True):
            least = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(diagonal, diagonal)))[0]
            assert 1 < least < 1.01


def test_shares_keep_as_many_as_asked():
    q = np.random.default_rng(0).random((50, 8), np.float32)
    q[0, 3:] = 0
    z = q.copy()
    relax.fill(z, 5)
    assert ((z >= 0) & (z <= 1)).all()
    np.testing.assert_allclose(z[1:].sum(axis=1), 5, rtol=2e-3)
    assert z[0].tolist() == [1] * 3 + [0] * 5


def test_a_dense_float_layer_loses_nothing():
    weights, hessian = layer()
    assert lower_bound(weights, damp(hessian), FLOAT) == 0
