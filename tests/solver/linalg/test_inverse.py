from __future__ import annotations

import numpy as np
import pytest
from problems import layer

from onnx_obc.core.errors import CalibrationError, RecipeError
from onnx_obc.solver.linalg import threads
from onnx_obc.solver.linalg.inverse import damp, factorise, invert


@pytest.mark.parametrize("columns", [1, 9, 128, 129, 300])
def test_invert(columns):
    _, hessian = layer(columns=columns, samples=2 * columns)
    damped = damp(hessian)
    assert np.abs(damped.inverse[0] @ damped.hessian[0] - np.eye(columns)).max() < 1e-10
    assert (damped.inverse[0] == damped.inverse[0].T).all()
    mean = hessian[0].trace() / columns
    np.testing.assert_allclose(damped.hessian[0], hessian[0] + 0.01 * mean * np.eye(columns), rtol=1e-14)
    assert damped.damping.tolist() == [0.01]
    assert damped.dead == 0


@pytest.mark.slow
@pytest.mark.parametrize("columns", [5, 512, 700, 1300])
def test_the_factor_is_that_of_the_hessian_by_decreasing_diagonal(columns):
    _, hessian = layer(columns=columns, samples=2 * columns)
    damped = damp(hessian)
    order, factor = damped.order[0], damped.lower[0, ::-1, ::-1]
    diagonal = np.diag(hessian[0])[order]
    assert (np.diff(diagonal) <= 0).all() and sorted(order) == list(range(columns))
    assert (np.tril(factor, -1) == 0).all() and (np.diag(factor) > 0).all()
    wanted = damped.hessian[0][np.ix_(order, order)]
    assert np.abs(factor @ factor.T - wanted).max() < 1e-13 * wanted.max()
    natural = np.arange(columns)[::-1]
    np.testing.assert_allclose(factorise(damped.hessian[0], natural), np.linalg.cholesky(damped.hessian[0]), atol=1e-12)
    assert (factorise(damped.hessian[0], natural, threads=1) == factorise(damped.hessian[0], natural, threads=3)).all()


def test_a_mapped_hessian_and_one_group(tmp_path):
    _, hessian = layer(groups=3, columns=20)
    np.save(tmp_path / "h.npy", hessian)
    mapped, damped = damp(np.load(tmp_path / "h.npy", mmap_mode="r")), damp(hessian)
    assert (mapped.hessian == damped.hessian).all() and (mapped.lower == damped.lower).all()
    assert (damped.group(1).inverse[0] == damped.inverse[1]).all()
    assert (damped.group(2).inverse[0] == damped.inverse[2]).all() and len(damped.group(2).order) == 1


def test_ties_go_to_the_lowest_column():
    assert damp(np.eye(6)[None]).order.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_singular_hessian_without_damping_gets_the_least_that_works():
    _, hessian = layer(columns=20, samples=1)
    damped = damp(hessian, 0.0)
    assert 1e-6 <= damped.damping[0] <= 1e-4
    error = np.abs(damped.inverse[0] @ damped.hessian[0] - np.eye(20)).max()
    assert error < 1e-6


def test_dead_columns_are_counted_and_damped():
    _, hessian = layer(columns=10)
    hessian[0, [2, 7]] = hessian[0, :, [2, 7]] = 0
    damped = damp(hessian, 0.0)
    assert damped.dead == 2
    assert damped.damping[0] == 1e-6
    assert np.isfinite(damped.inverse).all()
    assert damp(hessian, 0.01).damping[0] == 0.01


def test_zero_group_becomes_a_multiple_of_the_identity():
    _, hessian = layer(groups=3, columns=8)
    hessian[1] = 0
    damped = damp(hessian)
    level = 0.01 * np.diagonal(hessian, axis1=1, axis2=2).mean()
    np.testing.assert_allclose(damped.hessian[1], level * np.eye(8))
    np.testing.assert_allclose(damped.inverse[1], np.eye(8) / level)
    assert damped.dead == 8
    nothing = damp(np.zeros((2, 8, 8)))
    assert (nothing.hessian == np.eye(8)).all()
    assert (nothing.inverse == np.eye(8)).all()


def test_nearly_zero_group_is_finite_in_float32():
    _, hessian = layer(groups=4, columns=8)
    hessian[1] *= 1e-60
    hessian[2] *= 1e-290
    hessian[3] *= 1e60
    damped = damp(hessian)
    base, floor, unit = damped.scaled("float32")
    assert np.isfinite(base).all() and np.isfinite(floor).all() and (base != 0).any(axis=(1, 2)).all()
    np.testing.assert_allclose(base / unit[:, None, None], damped.inverse, rtol=1e-6)


def test_auto_precision_follows_the_damping():
    _, hessian = layer(columns=64, samples=16)
    assert damp(hessian, 0.01).scaled("auto")[0].dtype == np.float32
    assert damp(hessian, 1e-5).scaled("auto")[0].dtype == np.float64


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_unusable_hessian(value):
    _, hessian = layer()
    hessian[0, 3, 3] = value
    with pytest.raises(CalibrationError, match="NaN"):
        damp(hessian)


@pytest.mark.parametrize("damping", [-0.1, np.nan])
def test_unusable_damping(damping):
    with pytest.raises(RecipeError, match="damping"):
        damp(layer()[1], damping)


def test_singular_to_rounding():
    with pytest.raises(np.linalg.LinAlgError):
        invert(np.ones((3, 3)))


def test_the_hessian_is_left_as_it_is():
    _, hessian = layer()
    before = hessian.copy()
    damp(hessian)
    assert (hessian == before).all()


def test_small_groups_start_no_threads_and_set_those_of_blas_once(monkeypatch):
    """What either takes would add up over thousands of groups."""
    hessian, limited = np.tile(layer(columns=9)[1], (20, 1, 1)), []
    controller = threads._controller()
    original = type(controller).limit

    def limit(self, **more):
        limited.append(1)
        return original(self, **more)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", lambda *args: pytest.fail("a thread"))
    monkeypatch.setattr(type(controller), "limit", limit)
    damp(hessian)
    assert len(limited) == 1
