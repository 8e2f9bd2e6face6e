from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import NM, Block, Unstructured
from onnx_obc.solver.exact import prune, quantize
from onnx_obc.solver.gpu.batches import invert, prune_order, solve_kept
from onnx_obc.solver.gpu.batches import quantize as quantize_torch
from onnx_obc.solver.gpu.device import devices
from onnx_obc.solver.grid import fit_grid
from onnx_obc.solver.linalg.inverse import damp

torch = pytest.importorskip("torch")

from onnx_obc.solver.gpu import device as greedy_torch_device  # noqa: E402, they need torch
from onnx_obc.solver.gpu import lockstep as greedy_torch_lockstep  # noqa: E402

problems = st.builds(
    layer,
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.sampled_from([1, 2, 5, 8, 33, 70]),  # 70: rebased twice
    samples=st.sampled_from([10, 200]),
    decay=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
quick = settings(max_examples=30, deadline=None)
on_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not devices(), reason="needs an NVIDIA GPU that torch sees")],
        ),
    ],
)
PATTERNS = [Unstructured(0.5), NM(2, 4), NM(4, 8), Block(4, 0.5), Block(7, 0.5)]


def each_row(weights, damped):
    groups, rows, _ = weights.shape
    for i, (g, r) in enumerate(np.ndindex(groups, rows)):
        yield i, g, r, weights[g, r], damped.inverse[g]


@quick
@given(problems, st.sampled_from([(0, 1), (2, 4), (1, 4), (4, 8), (3, 4), (1, 2)]))
def test_single_weights_are_the_textbook(problem, pattern):
    weights, hessian = problem
    damped = damp(hessian)
    sparsity = NM(*pattern) if pattern[0] else Unstructured(0.5)
    order, losses, width = prune_order(weights, damped, sparsity, "cpu", "float64")
    assert width == 1 and order.dtype == np.int32
    for i, _, _, w, inverse in each_row(weights, damped):
        pivots, increments = textbook.prune(w, inverse, *pattern)
        assert order[i].tolist() == pivots
        np.testing.assert_allclose(losses[i], increments, rtol=1e-8)


@quick
@given(problems, st.sampled_from([2, 3, 4, 16]))
def test_blocks_are_the_textbook(problem, size):
    weights, hessian = problem
    damped = damp(hessian)
    order, losses, width = prune_order(weights, damped, Block(size, 0.5), "cpu", "float64")
    assert width == size
    for i, _, _, w, inverse in each_row(weights, damped):
        blocks, increments = textbook.prune_blocks(w, inverse, size)
        assert order[i].tolist() == blocks
        np.testing.assert_allclose(losses[i], increments, rtol=1e-8)


@quick
@given(problems, st.sampled_from([2, 3, 4, 8]), st.booleans(), st.sampled_from(["minmax", "mse"]), st.booleans())
def test_quantization_is_the_textbook_on_the_kept_columns(problem, bits, symmetric, method, sparse):
    weights, hessian = problem
    mask = np.ones(weights.shape, bool)
    if sparse:  # rows that keep different numbers, some none
        mask = np.random.default_rng(7).random(weights.shape) < np.linspace(0, 1.2, weights.shape[1])[:, None]
        weights[~mask] = 0
    damped = damp(hessian)
    grid = fit_grid(weights, bits, symmetric, method)
    codes, losses = quantize_torch(weights, damped, grid, "cpu", mask if sparse else None, "float64")
    assert codes.dtype == np.int32
    for i, g, r, w, _ in each_row(weights, damped):
        kept, zero = np.flatnonzero(mask[g, r]), grid.zero_point[g, r]
        inverse = np.linalg.inv(damped.hessian[g][np.ix_(kept, kept)])
        wanted, _, increments = textbook.quantize(w[kept], inverse, grid.scale[g, r], zero, grid.qmin, grid.qmax)
        assert codes[g, r, kept].tolist() == wanted.tolist()
        assert (codes[g, r, ~mask[g, r]] == zero).all()
        np.testing.assert_allclose(losses[i], sum(increments), rtol=1e-7, atol=1e-30)


@on_devices
@pytest.mark.parametrize("sparsity", PATTERNS, ids=str)
def test_pruning_is_that_of_the_cpu_engine(sparsity, device):
    weights, hessian = layer(2, 6, 150)
    damped = damp(hessian)
    wanted, increments, width = prune.greedy_order(weights, damped, sparsity, None, "float64", None)
    order, losses, own_width = prune_order(weights, damped, sparsity, device, "float64")
    assert (order == wanted).all() and own_width == width
    np.testing.assert_allclose(losses, increments, rtol=1e-9)
    _, increments, _ = prune.greedy_order(weights, damped, sparsity, None, "float32", None)
    _, losses, _ = prune_order(weights, damped, sparsity, device, "float32")
    np.testing.assert_allclose(losses.sum(axis=1), increments.sum(axis=1), rtol=1e-4)


@on_devices
@pytest.mark.parametrize("sparsity", [None, Unstructured(0.6), NM(2, 4), Block(4, 0.5)], ids=str)
def test_quantization_is_that_of_the_cpu_engine(sparsity, device):
    weights, hessian = layer(2, 6, 150)
    damped, mask = damp(hessian), None
    if sparsity is not None:
        weights, mask, _ = prune.prune(weights, damped, sparsity)
    grid = fit_grid(weights, 4)
    wanted, loss = quantize.quantize(weights, damped, grid, mask, precision="float64")
    codes, losses = quantize_torch(weights, damped, grid, device, mask, "float64")
    assert (codes == wanted).all() and losses.shape == (12,)
    np.testing.assert_allclose(losses.sum(), loss.sum(), rtol=1e-9)
    codes, losses = quantize_torch(weights, damped, grid, device, mask, "float32")
    assert (codes != wanted).mean() < 0.05  # a near tie that float32 decides otherwise changes what follows
    np.testing.assert_allclose(losses.sum(), loss.sum(), rtol=1e-3)


@on_devices
def test_float32_quantizes_within_1e_4_where_no_near_tie_turns(device):
    weights, hessian = layer(2, 6, 100, decay=0.5)
    damped = damp(hessian)
    grid = fit_grid(weights, 8)
    _, loss = quantize.quantize(weights, damped, grid, precision="float32")
    _, losses = quantize_torch(weights, damped, grid, device, precision="float32")
    np.testing.assert_allclose(losses.sum(), loss.sum(), rtol=1e-4)


@on_devices
def test_ties_go_to_the_lowest_column(device):
    weights, damped = np.ones((1, 2, 80), np.float32), damp(np.eye(80)[None])
    assert (prune_order(weights, damped, Unstructured(0.5), device)[0] == np.arange(80)).all()
    assert (prune_order(weights, damped, Block(4, 0.5), device)[0] == np.arange(20)).all()
    assert (prune_order(weights, damped, NM(1, 2), device)[0] == np.arange(0, 80, 2)).all()


@on_devices
def test_thousands_of_tiny_groups_some_of_which_are_dead(device):
    weights, hessian = layer(1500, 1, 9)
    hessian[::7] = 0
    damped = damp(hessian)
    wanted = prune.greedy_order(weights, damped, Unstructured(0.5), None, "float64", None)
    order, losses, _ = prune_order(weights, damped, Unstructured(0.5), device, "float64")
    assert (order == wanted[0]).all()
    np.testing.assert_allclose(losses, wanted[1], rtol=1e-9)
    grid = fit_grid(weights, 4)
    codes, _ = quantize_torch(weights, damped, grid, device, precision="float64")
    assert (codes == quantize.quantize(weights, damped, grid, precision="float64")[0]).all()


@on_devices
def test_kept_weights_are_those_of_the_cpu(device):
    weights, hessian = layer(2, 5, 60)
    damped = damp(hessian)
    mask = np.random.default_rng(0).random(weights.shape) < 0.5
    mask[0, 0], mask[1, 3] = True, False
    solved = solve_kept(weights, mask, damped.hessian, device)
    assert solved.dtype == np.float32 and (solved[~mask] == 0).all() and (solved[0, 0] == weights[0, 0]).all()
    np.testing.assert_allclose(solved, prune.solve_kept(weights, mask, damped.hessian), rtol=1e-5, atol=1e-7)
    assert not solve_kept(weights, mask & False, damped.hessian, device).any()


@on_devices
def test_inverses_are_those_of_the_cpu(device):
    hessian = damp(layer(3, 1, 90)[1]).hessian
    got = invert(hessian, device)
    assert (got == got.transpose(0, 2, 1)).all()
    for one, h in zip(got, hessian, strict=True):
        np.testing.assert_allclose(one @ h, np.eye(90), atol=1e-10)
    with pytest.raises(np.linalg.LinAlgError):
        invert(np.ones((1, 5, 5)), device)
    with pytest.raises(np.linalg.LinAlgError):
        invert(-np.eye(5)[None], device)


def everything(weights, damped, memory, precision="float64", progress=None):
    """All that the functions return for a layer, with so many bytes of memory."""
    results = [prune_order(weights, damped, p, "cpu", precision, memory, progress)[:2] for p in PATTERNS]
    mask = np.random.default_rng(3).random(weights.shape) < 0.5
    sparse = solve_kept(weights, mask, damped.hessian, "cpu", memory, progress)
    grid = fit_grid(weights, 4)
    results.append(quantize_torch(weights, damped, grid, "cpu", None, precision, memory, progress))
    results.append(quantize_torch(sparse, damped, grid, "cpu", mask, precision, memory, progress))
    return [array for pair in results for array in pair] + [sparse, invert(damped.hessian, "cpu", memory)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(precision):
    weights, hessian = layer(3, 5, 70)
    damped, finished = damp(hessian), []
    whole = everything(weights, damped, 2**30, precision, finished.append)
    assert finished == [15] * 8
    finished.clear()
    single = everything(weights, damped, 1, precision, finished.append)  # a row at a time
    assert finished == list(range(1, 16)) * 8
    for one, other in zip(single, whole, strict=True):
        if one.dtype == np.int32:
            assert (one == other).all()
        else:
            np.testing.assert_allclose(one, other, rtol=1e-4 if precision == "float32" else 1e-9, atol=1e-7)


@pytest.mark.slow
def test_a_batch_that_runs_out_of_memory_is_halved(monkeypatch):
    weights, hessian = layer(3, 5, 70)
    damped, tried = damp(hessian), []
    whole = everything(weights, damped, 2**30)
    eliminate = greedy_torch_lockstep.eliminate

    def with_room_for_four(state, *arguments):
        tried.append(len(state.w))
        trace = eliminate(state, *arguments)
        if len(state.w) > 4:
            raise torch.OutOfMemoryError("forced")
        return trace

    monkeypatch.setattr(greedy_torch_lockstep, "eliminate", with_room_for_four)
    halved = everything(weights, damped, 2**30)
    assert tried[:7] == [15, 7, 3, 3, 3, 3, 3]
    for one, other in zip(halved, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_row_that_does_not_fit_is_an_error_that_says_so(monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("forced")

    monkeypatch.setattr(greedy_torch_lockstep, "eliminate", never)
    weights, hessian = layer(1, 3, 20)
    with pytest.raises(RecipeError, match=r"does not hold one row.*--device cpu"):
        prune_order(weights, damp(hessian), NM(2, 4), "cpu")


def test_products_are_in_full_float32_and_the_setting_is_restored(monkeypatch):
    seen = []
    eliminate = greedy_torch_lockstep.eliminate

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return eliminate(*arguments)

    monkeypatch.setattr(greedy_torch_lockstep, "eliminate", watched)
    weights, hessian = layer(1, 3, 20)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        prune_order(weights, damp(hessian), NM(2, 4), "cpu")
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_that_have_finished_take_part_in_nothing():
    weights, hessian = layer(1, 3, 80)
    base, floor = torch.tensor(damp(hessian).scaled("float32")[0]), torch.ones(3, 80, 1, dtype=torch.float64) * 1e-3
    index, gone = torch.arange(80).expand(3, 80), torch.arange(80) >= torch.tensor([[40], [0], [80]])
    w = torch.tensor(weights[0, :, :, None]).double()
    state = greedy_torch_lockstep.begin(w, floor, base, torch.zeros(3, dtype=torch.int64), index, gone, gone[:, :0])
    trace = greedy_torch_lockstep.eliminate(state, greedy_torch_lockstep.prune_rule, 1, 80)
    active = torch.arange(80) < torch.tensor([[40], [0], [80]])
    assert ((trace.pivot >= 0) == active).all() and ((trace.shift[..., 0] != 0) == active).all()
    assert sorted(trace.pivot[0, :40].tolist()) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 4])
def test_a_step_asks_the_device_for_no_number(block):
    """Else it could not be captured; tensors on `meta` have no numbers to give."""

    def empty(*shape, dtype=torch.float64):
        return torch.empty(shape, dtype=dtype, device="meta")

    base, long = empty(2, 12, 12, dtype=torch.float32), {"dtype": torch.int64}
    w, gone, left = empty(5, 12 // block, block), empty(5, 12 // block, dtype=torch.bool), empty(5, 3, **long)
    rows = greedy_torch_lockstep.begin(w, w.clone(), base, empty(5, **long), empty(5, 12 // block, **long), gone, left)
    trace = greedy_torch_lockstep.Trace(empty(5, 3, **long), empty(5, 3, block), empty(5, 3, block), empty(1, **long))
    scale = empty(5, 1, 1, dtype=torch.float32)
    rules = [greedy_torch_lockstep.prune_rule]
    rules += [greedy_torch_lockstep.quantize_rule(scale, scale.double(), -8, 7)] if block == 1 else []
    for rule in rules:
        factor, graph = greedy_torch_lockstep._epoch(rows, trace, rule, 4, 3, None)
        assert factor.shape == (5, 3 * block, 12) and graph is None


def test_devices_that_are_not_there(monkeypatch):
    weights, hessian = layer(1, 2, 8)
    with pytest.raises(RecipeError, match=r"device cuda:99: torch sees .*--device cpu"):
        invert(hessian, "cuda:99")
    monkeypatch.setattr(greedy_torch_device.importlib.util, "find_spec", lambda name: None)
    assert devices() == []
    with pytest.raises(RecipeError, match=r"torch is not installed; pip install"):
        prune_order(weights, damp(hessian), NM(2, 4), "cpu")


def test_importing_the_module_loads_no_torch():
    code = "import sys, onnx_obc.solver.gpu.batches; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    assert importlib.util.find_spec("torch") is not None  # it was not for want of one
