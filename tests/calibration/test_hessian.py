from __future__ import annotations

import errno
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from small_graphs import assert_same, build, random, run

from onnx_obc.calibration import unfold as unfolding
from onnx_obc.calibration.hessian import BLOCK, HessianSum, reflect
from onnx_obc.calibration.unfold import pick_positions, positions_of, shape_of, unfold
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.layers import Layer, Window, find_layers


def layer_of(op: str, x: Any, weight: Any, left: bool = False, **attributes: Any) -> tuple[Layer, Any]:
    """The layer of a one-node model, and its output in onnxruntime."""
    inputs = ["w", "x"] if left else ["x", "w"]
    model = build([helper.make_node(op, inputs, ["y"], **attributes)], {"x": x.shape}, {"y": None}, {"w": weight})
    ((layer,), _) = find_layers(ir.from_proto(model))
    (y,) = run(model, {"x": x})
    return layer, y


def gathered(x: Any, layer: Layer, slots: int = 1) -> Any:
    chunks = list(unfold(x, layer.uses[0].tap.unfold, None, slots))
    return np.concatenate(chunks, axis=1)  # (groups, n, columns)


def check_window(layer: Layer, x: Any, y: Any) -> None:
    """W·X is the output of onnxruntime: for every sample, group and pixel in turn."""
    how = layer.uses[0].tap.unfold
    assert isinstance(how, Window)
    assert shape_of(how, x.shape) == (layer.groups, layer.columns)
    assert positions_of(how, x.shape, len(x)) == (len(x), prod(y.shape[2:]))
    product = np.einsum("grk,gnk->ngr", layer.matrix().astype(np.float64), gathered(x, layer, len(x)))
    product = product.reshape(len(x), -1, layer.groups * layer.rows).transpose(0, 2, 1)  # (N, M, pixels)
    assert_same([product.reshape(y.shape).astype(np.float32)], [y])


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """op, input shape, weight shape, attributes."""
    rank = draw(st.integers(1, 3))
    ints = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    groups, channels, rows = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, strides, dilations = ints(1, 3), ints(1, 3), ints(1, 2)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    transposed = draw(st.booleans())
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    size = [r + 1 + extra for r, extra in zip(reach, ints(0, 3), strict=True)]
    choices = ["pads", "VALID", "SAME_UPPER", "SAME_LOWER"] + ["output_shape"] * transposed
    form = draw(st.sampled_from(choices))
    if form.startswith("SAME") and not transposed:
        attributes["dilations"] = [1] * rank  # onnxruntime refuses any other
    full = [(s - 1) * t + r + 1 for s, t, r in zip(size, strides, reach, strict=True)]  # of a transposed one
    if form in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        attributes["auto_pad"] = form
    elif form == "pads":
        attributes["pads"] = [*ints(0, 2), *ints(0, 2)]
        if transposed:
            attributes["pads"] = [min(p, (f - 1) // 2) for p, f in zip(attributes["pads"], full * 2, strict=True)]
    else:
        more = zip(full, ints(-2, 2), strides, strict=True)  # onnxruntime refuses what another input size would give
        attributes["output_shape"] = [max(f + min(m, s - 1), 1) for f, m, s in more]
        attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    if transposed and form != "output_shape":
        attributes["output_padding"] = [min(e, s - 1) for e, s in zip(ints(0, 2), strides, strict=True)]
    outer = (groups * channels, rows) if transposed else (groups * rows, channels)
    op = "ConvTranspose" if transposed else "Conv"
    return op, (2, groups * channels, *size), (*outer, *kernel), attributes


@settings(max_examples=150, deadline=None)
@given(windows())
def test_windows(case: tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]) -> None:
    op, x_shape, w_shape, attributes = case
    x = random(*x_shape, seed=1)
    layer, y = layer_of(op, x, random(*w_shape), **attributes)
    check_window(layer, x, y)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pads_that_crop(rank: int) -> None:
    x = random(2, 3, *[6] * rank)
    layer, y = layer_of("ConvTranspose", x, random(3, 2, *[2] * rank), pads=[3] * rank + [2] * rank, strides=[2] * rank)
    check_window(layer, x, y)


CONTRACTIONS = [  # left constant, input, weight
    (False, (5, 4), (4, 3)),
    (False, (2, 5, 4), (4, 3)),
    (False, (4,), (4, 3)),
    (False, (5, 4), (4,)),
    (False, (2, 5, 4), (4,)),
    (False, (4,), (4,)),
    (False, (2, 3, 5, 4), (3, 4, 6)),
    (False, (5, 4), (3, 4, 6)),
    (False, (2, 1, 5, 4), (2, 3, 4, 6)),
    (False, (2, 1, 5, 4), (3, 4, 6)),
    (False, (2, 3, 5, 4), (1, 4, 6)),
    (False, (2, 3, 5, 4), (2, 1, 4, 6)),
    (True, (4, 5), (3, 4)),
    (True, (2, 4, 5), (3, 4)),
    (True, (4,), (3, 4)),
    (True, (2, 4, 5), (4,)),
    (True, (2, 3, 4, 5), (3, 6, 4)),
    (True, (4, 5), (3, 6, 4)),
    (True, (3, 4, 5), (2, 1, 6, 4)),
]


@pytest.mark.parametrize(("left", "x_shape", "w_shape"), CONTRACTIONS)
def test_contractions(left: bool, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
    """The outputs of onnxruntime are the products W·X of every group, each as often as X holds its vector."""
    x, weight = random(*x_shape, seed=1), random(*w_shape)
    layer, y = layer_of("MatMul", x, weight, left)
    vectors = gathered(x, layer).astype(np.float64)
    assert vectors.shape[::2] == (layer.groups, layer.columns) == shape_of(layer.uses[0].tap.unfold, x.shape)
    assert vectors.shape[1] == prod(positions_of(layer.uses[0].tap.unfold, x.shape, 1))
    products = np.einsum("grk,gnk->gnr", layer.matrix(), vectors)
    assert products.size == y.size
    np.testing.assert_allclose(np.sort(products.ravel()), np.sort(y.ravel()), rtol=1e-4, atol=1e-5)
    # … and group by group, where the output keeps the weight's batch as its own axes
    if layer.groups > 1:
        batch = w_shape[:-2]
        kept = [y.ndim - 2 - len(batch) + axis for axis, size in enumerate(batch) if size > 1]
        by_group = np.moveaxis(y, kept, range(len(kept))).reshape(layer.groups, -1)
        for product, expected in zip(products, by_group, strict=True):
            np.testing.assert_allclose(np.sort(product.ravel()), np.sort(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(left: bool, trans_a: int, trans_b: int) -> None:
    a, b = random(*((4, 2) if trans_a else (2, 4))), random(*((3, 4) if trans_b else (4, 3)), seed=1)
    weight, x = (a, b) if left else (b, a)
    layer, y = layer_of("Gemm", x, weight, left, transA=trans_a, transB=trans_b)
    product = layer.matrix()[0] @ gathered(x, layer)[0].T  # (rows, n)
    assert_same([product if left else product.T], [y])


@pytest.mark.parametrize("batch", [1, 4, 30])
@pytest.mark.parametrize("groups", [1, 3])
def test_sum_is_the_naive_one(groups: int, batch: int) -> None:
    x = random(groups, 30, 7) + 1
    total = HessianSum(groups, 7)
    for start in range(0, 30, batch):
        total.add(x[:, start : start + batch])
    h = total.mean()
    naive = np.zeros((groups, 7, 7))
    for g in range(groups):
        for i in range(7):
            for j in range(7):
                naive[g, i, j] = 2 * sum(float(a) * float(b) for a, b in zip(x[g, :, i], x[g, :, j], strict=True)) / 30
    assert total.positions == 30
    np.testing.assert_allclose(h, naive, rtol=1e-12)
    np.testing.assert_array_equal(h, h.transpose(0, 2, 1))


# ------------------------------------------------ many columns: products in float32

WIDE = 260


def inputs_of_many_kinds() -> dict[str, Any]:
    """(n, columns) float32 each; those with few different values are what a plain sum in float32 gets wrong."""
    rng = np.random.default_rng(0)
    noise, n = rng.standard_normal((5000, WIDE)), 5000
    hidden = rng.standard_normal((n, 8)) @ rng.standard_normal((8, WIDE)) + 0.05 * noise
    sizes = rng.uniform(0.1, 1, WIDE)
    coin = rng.random((n, 1)) < 0.5
    return {
        "normal": noise,
        "correlated": hidden,
        "after a Relu": np.maximum(hidden, 0),
        "large mean, tiny variance": 100 + 1e-3 * noise,
        "mean and variance": 3 + 0.1 * noise,
        "constant": np.full((n, WIDE), 1 / 3) * sizes,
        "zeros and constants": np.where(coin, 1 / 3, 0) * sizes,
        "either sign": np.where(coin, 1 / 3, -1 / 3) * sizes,
        "alternating": np.where(np.arange(n) % 2, 1 / 3, -1 / 3)[:, None] * sizes,
        "few values": rng.choice([0.1, 0.7, -0.3], (n, WIDE)),
        "heavy tails": np.exp(2 * noise),
        "once": np.where(np.arange(n) == 77, 0.7, 0)[:, None] * sizes,
        "once each": np.where(rng.integers(0, n, WIDE) == np.arange(n)[:, None], 0.7, 0) * sizes,
        "very different columns": noise * np.exp(3 * rng.standard_normal(WIDE)),
        "tiny": 1e-25 * noise,
        "huge": 1e25 * noise,
        "one block and a bit": noise[: BLOCK + 3],
        "fewer than a block": 1 / 3 + 0 * noise[:40],
    }


INPUTS = inputs_of_many_kinds()


def errors(found: Any, x: Any) -> tuple[float, float]:
    """The error relative to the norm of H, and the largest one of an entry relative to √(H_ii H_jj)."""
    exact = 2 * x.T @ x / len(x)  # x in float64
    unit = np.sqrt(np.diagonal(exact))
    worst = float((np.abs(found - exact) / np.outer(unit, unit)).max())
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact)), worst


@pytest.mark.parametrize("kind", INPUTS)
def test_products_in_float32(kind: str) -> None:
    x = INPUTS[kind].astype(np.float32)
    total = HessianSum(1, WIDE)
    total.add(x[None])
    (h,) = total.mean()
    assert total.positions == len(x)
    whole, worst = errors(h, x.astype(np.float64))
    assert whole < 1e-6
    assert worst < (3e-6 if "once" in kind else 1e-6)  # one position against the rounding of a whole block
    np.testing.assert_array_equal(h, h.T)


def test_without_the_reflection_it_would_not_be() -> None:
    x = INPUTS["either sign"].astype(np.float32)
    blocks = [x[start : start + BLOCK] for start in range(0, len(x), BLOCK)]
    plain = sum((block.T @ block).astype(np.float64) for block in blocks)
    assert errors(2 * plain / len(x), x.astype(np.float64))[0] > 1e-6


@pytest.mark.parametrize("positions", [32, 96, BLOCK])
def test_reflection_changes_no_product(positions: int) -> None:
    x = random(positions, 9)
    y = x.copy()
    reflect(y)
    assert np.abs(y - x).max() > 0.01
    np.testing.assert_allclose(y.T.astype(np.float64) @ y, x.T.astype(np.float64) @ x, rtol=1e-5, atol=1e-5)
    ones = np.ones((positions, 1), np.float32)
    reflect(ones)
    assert abs(ones[-1]) > 0.9 * np.sqrt(positions)  # the mean goes to the last position
    zeros = np.zeros((positions, 2), np.float32)
    reflect(zeros)
    assert not zeros.any()


def test_many_columns_in_float64_are_exact() -> None:
    x = INPUTS["either sign"]
    total = HessianSum(1, WIDE)
    total.add(x[None])
    assert errors(total.mean()[0], x)[1] < 1e-13


def test_batches_of_many_columns_give_the_same_to_the_last_bit() -> None:
    x = INPUTS["correlated"].astype(np.float32)
    results = []
    for batch in (1000, 7, len(x)):
        total = HessianSum(1, WIDE)
        for start in range(0, len(x), batch):
            total.add(x[None, start : start + batch])
        results.append(total.mean())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


# ------------------------------------------------ sums in temporary files


def mapped_files(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at the maps of the process")
@pytest.mark.parametrize("columns", [7, WIDE])
def test_a_mapped_sum_is_the_same_and_its_file_goes(columns: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = random(1, 900, columns)
    plain, mapped = HessianSum(1, columns), HessianSum(1, columns, mapped=True)
    assert len(mapped_files(tmp_path)) == 1
    plain.add(x)
    mapped.add(x)
    h = mapped.mean()
    del mapped
    np.testing.assert_array_equal(h, plain.mean())
    assert len(mapped_files(tmp_path)) == 1
    del h
    assert mapped_files(tmp_path) == []
    with pytest.raises(ValueError, match="stop"):
        fail_with_a_mapped_sum()
    assert mapped_files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def fail_with_a_mapped_sum() -> None:
    total = HessianSum(1, 7, mapped=True)
    total.add(random(1, 3, 7))
    raise ValueError("stop")


def test_no_room_for_a_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(CalibrationError, match=r"no room for a Hessian of 0\.7 GiB in .*; set TMPDIR") as error:
        HessianSum(1, 10_000, mapped=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("groups", [1, 2])
def test_sum_of_nothing_is_zero(groups: int) -> None:
    total = HessianSum(groups, 3)
    total.add(np.zeros((groups, 0, 3), np.float32))
    assert total.positions == 0
    np.testing.assert_array_equal(total.mean(), np.zeros((groups, 3, 3)))


def test_chunks_hold_every_position_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(3, 4, 6, 5)
    layer, _ = layer_of("Conv", x, random(2, 4, 3, 3))
    whole = gathered(x, layer, 3)
    monkeypatch.setattr(unfolding, "CHUNK_ELEMENTS", 5 * layer.columns)
    chunks = list(unfold(x, layer.uses[0].tap.unfold, None, 3))
    assert len(chunks) > 5
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)


# ------------------------------------------------ sampled positions


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 60), st.integers(0, 5))
def test_one_position_of_every_stratum(positions: int, take: int, seed: int) -> None:
    picks = pick_positions(positions, take, seed, range(4, 9))
    if take >= positions:
        assert picks is None
        return
    assert picks is not None
    assert picks.shape == (5, take)
    for row in picks:
        for stratum, pick in enumerate(row):
            assert stratum * positions // take <= pick < (stratum + 1) * positions // take


def test_picks_depend_on_the_sample_alone() -> None:
    whole = pick_positions(100, 7, 3, range(10))
    assert whole is not None
    for first in range(10):
        (alone,) = pick_positions(100, 7, 3, range(first, first + 1))  # type: ignore[misc]
        np.testing.assert_array_equal(alone, whole[first])
    assert len(np.unique(whole, axis=0)) == 10
    assert not np.array_equal(whole, pick_positions(100, 7, 4, range(10)))


def test_picks_reach_every_position() -> None:
    picks = pick_positions(10, 3, 0, range(300))
    assert picks is not None
    assert set(picks.ravel()) == set(range(10))


@pytest.mark.parametrize(
    ("op", "x_shape", "w_shape"),
    [("Conv", (4, 3, 7, 6), (2, 3, 3, 3)), ("MatMul", (4, 9, 5), (5, 2)), ("MatMul", (4, 3, 9, 5), (3, 5, 2))],
)
def test_picked_vectors_are_the_ones_at_these_positions(
    op: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
) -> None:
    x = random(*x_shape)
    layer, _ = layer_of(op, x, random(*w_shape))
    how = layer.uses[0].tap.unfold
    slots, positions = positions_of(how, x.shape, 4)
    assert slots == 4
    picks = pick_positions(positions, 5, 0, range(4))
    assert picks is not None
    (found,) = unfold(x, how, picks, slots)
    expected = []
    for sample in range(4):
        (alone,) = unfold(x[sample : sample + 1], how, None, 1)  # (groups, positions, columns)
        expected.append(alone[:, picks[sample]])
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(1, 6))
def test_picked_windows_are_the_ones_at_these_positions(
    case: tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], take: int
) -> None:
    """With few picks pixels are read one by one, with many their channels are brought together."""
    op, x_shape, w_shape, attributes = case
    x = random(*x_shape, seed=1)
    layer, _ = layer_of(op, x, random(*w_shape), **attributes)
    how = layer.uses[0].tap.unfold
    _, positions = positions_of(how, x.shape, 2)
    picks = np.random.default_rng(take).integers(0, positions, (2, take))
    everything = gathered(x, layer, 2)  # (groups, 2 · positions, columns)
    found = np.concatenate(list(unfold(x, how, picks, 2)), axis=1)  # (groups, 2 · take, columns)
    np.testing.assert_array_equal(found, everything[:, (picks + np.array([[0], [positions]])).ravel()])


def test_samples_that_do_not_lie_along_the_first_axis_are_one_slot() -> None:
    layer, _ = layer_of("MatMul", random(5, 4), random(3, 4, 6))
    assert positions_of(layer.uses[0].tap.unfold, (5, 4), 2) == (1, 5)
    layer, _ = layer_of("MatMul", random(4), random(4, 6))
    assert positions_of(layer.uses[0].tap.unfold, (4,), 2) == (1, 1)


def test_no_positions() -> None:
    layer, _ = layer_of("MatMul", random(2, 3, 4), random(4, 6))
    how = layer.uses[0].tap.unfold
    empty = np.zeros((2, 0, 4), np.float32)
    assert positions_of(how, empty.shape, 2) == (2, 0)
    assert list(unfold(empty, how, None, 2)) == []
