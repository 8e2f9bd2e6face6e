"""Expected errors against tables, in every digit that they print, and against plain arithmetic on samples."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from scipy.stats import norm

from onnx_obc.core.arrays import Float64
from onnx_obc.core.errors import RecipeError
from onnx_obc.study.distributions import Distribution, gaussian, laplace, of_kurtosis, sample, truncated_t, uniform
from onnx_obc.study.size import Mask
from onnx_obc.study.theory import Combined, Grid, codes, combine, crossover, predict, prune, quantize, quantize_at, snr

GAUSSIAN = """
2  1.04839 1.4943e-1  8.256  7.208  9.250 .3999 .8750 1.5341  3.031
3   .60182 4.0638e-2 13.911 13.292 14.267 .2365 .8125 1.3180  4.303
4   .33861 1.1864e-2 19.258 18.898 19.377 .1344 .7500 1.1503  5.585
5   .18879 3.5260e-3 24.527 24.326 24.565 .0752 .6875 1.0100  6.912
6   .10418 1.0429e-3 29.818 29.709 29.829 .0415 .6250  .8871  8.314
7   .05689 3.0458e-4 35.163 35.106 35.167 .0227 .5625  .7764  9.821
8   .03077 8.7707e-5 40.570 40.540 40.571 .0123 .5000  .6745 11.468
"""  # bits, delta, error, SNR of the three grids, P(code 0); sparsity, threshold, SNR
PARTS = {2: (".07747", ".07196"), 4: (".00944", ".002424"), 8: ("7.887e-5", "8.84e-6")}
OTHERS = {
    "laplace": (laplace(), "6.84/4.62 11.43/6.27 15.98/7.87 25.36/11.15 35.21/14.77"),
    "uniform": (uniform(), "9.69/1.74 16.91/2.71 23.52/3.75 35.99/6.12 48.13/9.03"),
    "t, 10": (truncated_t(10.0), "6.05/5.66 10.46/7.34 15.43/8.91 26.52/12.03 38.29/15.43"),
    "t, 100": (truncated_t(100.0), "3.19/9.17 5.11/10.89 7.33/12.49 13.66/15.63 23.07/19.04"),
}  # SNR of quantization / pruning at 2, 3, 4, 6, 8 bits
STUDENT = """
2  11.091  8.873  5.869
3  18.614 15.985  8.554
4  29.366 28.350 10.898
5  45.902 51.771 13.101
6  71.726 97.710 15.249
7 111.914 189.14 17.400
8 173.550 370.98 19.607
"""  # bits, where pruning overtakes: r, kurtosis, SNR
SHAPES = {2: (".702", "10.99"), 3: (".582", "16.81"), 4: (".518", "22.75")}  # shape, kurtosis
COMBINED = """
gaussian 2 paper   13.27 3  .67
gaussian 2 bitmap   7.96 2  .50
gaussian 2 entropy  8.26 2 1.00
gaussian 4 paper   21.40 5  .80
gaussian 4 bitmap  17.58 4  .75
gaussian 4 entropy 19.26 4 1.00
laplace  2 paper   13.21 4  .50
laplace  2 bitmap   8.92 3  .33
laplace  2 entropy  9.29 3  .35
laplace  4 paper   20.57 5  .80
laplace  4 bitmap  16.69 5  .60
laplace  4 entropy 16.86 5  .61
"""  # bits, mask, SNR, bits of a kept weight, density: 1 is quantization alone
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "gaussian": RANDOM.standard_normal(432),
    "few": RANDOM.standard_normal(36),
    "heavy": RANDOM.standard_t(1.5, 2000),
    "positive": np.maximum(RANDOM.standard_normal(300), 0),
    "skewed": RANDOM.exponential(size=300) - 0.1,
}


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def is_printed(value: float, text: str) -> bool:
    """Whether `text` is the value, to its last digit."""
    return abs(value - float(text)) <= 0.500001 * 10.0 ** int(Decimal(text).as_tuple().exponent)


@pytest.mark.parametrize("row", rows(GAUSSIAN), ids=lambda row: row[0])
def test_gaussian(row: list[str]) -> None:
    bits, (delta, error, own, symmetric, middle, zeros, sparsity, threshold, pruning) = int(row[0]), row[1:]
    found = quantize(gaussian(), bits)
    assert is_printed(found.delta, delta) and is_printed(found.error, error) and is_printed(found.snr, own)
    assert is_printed(found.zeros, zeros)
    assert is_printed(quantize(gaussian(), bits, "sym").snr, symmetric)
    assert is_printed(quantize(gaussian(), bits, "mid").snr, middle)
    pruned = prune(gaussian(), 1 - bits / 16)
    assert 1 - bits / 16 == float(sparsity)
    assert is_printed(pruned.threshold, threshold) and is_printed(pruned.snr, pruning)
    assert pruned.error == pytest.approx(
        float(sparsity) - 2 * pruned.threshold * np.exp(-(pruned.threshold**2) / 2) / np.sqrt(2 * np.pi), rel=1e-12
    )
    if bits in PARTS:
        assert is_printed(found.rounding, PARTS[bits][0]) and is_printed(found.clipping, PARTS[bits][1])


def test_the_figures_of_the_paper() -> None:
    """It prints 19.1 dB for 4 bits, from a coarse grid of ranges, and 5.6 dB for pruning 75 %."""
    assert quantize(gaussian(), 4).snr == pytest.approx(19.1, abs=0.2)
    assert prune(gaussian(), 0.75).snr == pytest.approx(5.6, abs=0.2)


@pytest.mark.parametrize("name", OTHERS)
def test_other_distributions(name: str) -> None:
    distribution, table = OTHERS[name]
    for bits, cell in zip((2, 3, 4, 6, 8), table.split(), strict=True):
        quantization, pruning = cell.split("/")
        assert is_printed(quantize(distribution, bits).snr, quantization), bits
        assert is_printed(prune(distribution, 1 - bits / 16).snr, pruning), bits


def test_moments_of_the_truncated_t() -> None:
    assert is_printed(truncated_t(10.0).kurtosis, "7.96") and is_printed(truncated_t(10.0).variance, "3.361")
    assert is_printed(truncated_t(100.0).kurtosis, "159.67") and is_printed(truncated_t(100.0).variance, "7.905")


@pytest.mark.parametrize("row", rows(STUDENT), ids=lambda row: row[0])
def test_where_pruning_overtakes_with_the_truncated_t(row: list[str]) -> None:
    found = crossover("truncated-t", int(row[0]))
    assert found is not None
    assert is_printed(found.parameter, row[1]) and is_printed(found.kurtosis, row[2]) and is_printed(found.snr, row[3])


@pytest.mark.parametrize("bits", SHAPES)
def test_where_pruning_overtakes_with_the_generalised_gaussian(bits: int) -> None:
    found = crossover("generalised-gaussian", bits)
    assert found is not None
    assert is_printed(found.parameter, SHAPES[bits][0]) and is_printed(found.kurtosis, SHAPES[bits][1])


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(COMBINED), ids=" ".join)
def test_both_together(row: list[str]) -> None:
    family, bits, mask, together, value_bits, share = row
    found = combine({"gaussian": gaussian, "laplace": laplace}[family](), int(bits), _mask(mask))
    assert found is not None and found.bits == int(value_bits)
    assert is_printed(found.density, share) and is_printed(found.snr, together)


def test_below_two_bits_only_combinations_exist() -> None:
    found = combine(gaussian(), 1.5, "entropy")
    assert found is not None and 0 < found.density < 1 and found.snr > prune(gaussian(), 1 - 1.5 / 16).snr
    assert combine(gaussian(), 0.8, "bitmap") is None


def test_a_kurtosis_predicts_and_decides_nothing() -> None:
    """The member's own SNRs; at a kurtosis of 10 and 2 bits the families disagree on which method is better."""
    assert predict(truncated_t(10.0).kurtosis, 4) == pytest.approx((15.43, 8.91), abs=0.006)
    assert predict(3.0, 4, "generalised-gaussian") == pytest.approx((19.258, 5.585), abs=0.0006)
    assert predict(1.2, 4) == predict(np.nan, 4) == pytest.approx((23.52, 3.75), abs=0.006)
    student, generalised = predict(10.0, 2), predict(10.0, 2, "generalised-gaussian")
    assert student[0] < student[1] and generalised[0] > generalised[1]


@pytest.mark.parametrize("grid", ["int", "sym", "mid"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_sample_is_quantized_as_by_hand(name: str, grid: Grid) -> None:
    w = WEIGHTS[name]
    for bits in (2, 3, 8):
        levels = codes(bits, grid, signed=bool((w < 0).any()))
        found = quantize(sample(w), bits, grid)
        values = levels * found.delta
        nearest = np.abs(w[:, None] - values).argmin(axis=1)
        errors = (w - values[nearest]) ** 2
        clipped = (w < values[0]) | (w > values[-1])
        assert found.rounding == pytest.approx(errors[~clipped].sum() / len(w), rel=1e-7, abs=1e-14)
        assert found.clipping == pytest.approx(errors[clipped].sum() / len(w), rel=1e-7, abs=1e-14)
        assert found.snr == pytest.approx(10 * np.log10(np.mean(w * w) / errors.mean()), abs=1e-6)
        assert found.zeros == pytest.approx(np.mean(levels[nearest] == 0))


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_best_of_many_minima_is_found(name: str) -> None:
    """Of 500 deltas none is better by more than 0.02 dB."""
    distribution = sample(WEIGHTS[name])
    for bits in (2, 4, 8):
        found, levels = quantize(distribution, bits), codes(bits, "int", distribution.signed)
        many = found.delta * np.concatenate([np.geomspace(0.02, 50, 200), np.linspace(0.8, 1.25, 300)])
        best = max(quantize_at(distribution, levels, float(delta)).snr for delta in many)
        assert found.snr > best - 0.02, bits


@pytest.mark.parametrize("name", ["heavy", "skewed"])
def test_a_sample_is_pruned_and_quantized_as_by_hand(name: str) -> None:
    w = WEIGHTS[name]
    found = combine(sample(w), 3, "bitmap")
    assert found is not None and found.density == pytest.approx(2 / found.bits)
    kept = np.argsort(np.abs(w))[round((1 - found.density) * len(w)) :]
    best = 0.0
    for delta in np.geomspace(1e-3, 10, 4000) * w.std():
        result = np.zeros_like(w)
        result[kept] = np.clip(np.round(w[kept] / delta), -(2 ** (found.bits - 1)), 2 ** (found.bits - 1) - 1) * delta
        best = max(best, snr(float(np.mean(w * w)), float(np.mean((w - result) ** 2))))
    assert best - 0.01 < found.snr < best + 0.05


@pytest.mark.parametrize("factor", [1e-4, 1e-12, 3e5])
def test_scale_does_not_matter(factor: float) -> None:
    w = WEIGHTS["heavy"]
    one, other = sample(w), sample(w * factor)
    for bits in (2, 4, 8):
        expected, found = quantize(one, bits), quantize(other, bits)
        assert found.snr == pytest.approx(expected.snr, abs=1e-6)
        assert found.delta == pytest.approx(expected.delta * factor, rel=1e-6)
        assert prune(other, 1 - bits / 16).snr == pytest.approx(prune(one, 1 - bits / 16).snr, abs=1e-9)
        assert found.zeros == pytest.approx(expected.zeros, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_small_weights_keep_their_snr(dtype: type[np.floating]) -> None:
    """Gaussian weights of deviation 0.001: squares of theirs vanish in half precision, and a range of 0.5 loses all."""
    w = (norm.ppf((np.arange(200_000) + 0.5) / 200_000) * 1e-3).astype(dtype)
    for bits, expected in ((2, 8.256), (4, 19.258), (8, 40.570)):
        assert quantize(sample(w), bits).snr == pytest.approx(expected, abs=0.1)
        assert prune(sample(w), 1 - bits / 16).snr == pytest.approx(prune(gaussian(), 1 - bits / 16).snr, abs=0.05)


def test_codes() -> None:
    np.testing.assert_array_equal(codes(2), [-2, -1, 0, 1])
    np.testing.assert_array_equal(codes(2, "sym"), [-1, 0, 1])
    np.testing.assert_array_equal(codes(2, "mid"), [-1.5, -0.5, 0.5, 1.5])
    for grid in ("int", "sym", "mid"):
        np.testing.assert_array_equal(codes(3, grid, signed=False), np.arange(8))
    for bits in (1, 9):
        with pytest.raises(RecipeError, match=rf"^A grid of {bits} bits is not studied: use 2 to 8$"):
            codes(bits)


def test_zeros_alone_lose_nothing() -> None:
    zero = sample(np.zeros(5))
    assert quantize(zero, 4).snr == prune(zero, 0.5).snr == np.inf and quantize(zero, 4).zeros == 1
    assert combine(zero, 4) == Combined(2, 1.0, np.inf)


def test_a_share_of_zeros_costs_nothing_to_prune() -> None:
    w = np.concatenate([np.zeros(70), np.arange(1.0, 31.0)])
    assert prune(sample(w), 0.7).error == 0 and prune(sample(w), 0.71).error == pytest.approx(1 / 100)


def test_heavy_tails_of_any_kurtosis_have_errors() -> None:
    members: list[Distribution] = [of_kurtosis(k, "generalised-gaussian") for k in (1.81, 50.0, 1e9)]
    members += [of_kurtosis(k) for k in (1.81, 50.0, 1e9)]
    found: Float64 = np.array([[quantize(m, b).snr - prune(m, 1 - b / 16).snr for b in (2, 8)] for m in members])
    assert np.isfinite(found).all() and (found[[0, 3]] > 0).all() and (found[[2, 5]] < 0).all()


def _mask(name: str) -> Mask:
    assert name in ("paper", "bitmap", "entropy")
    return name  # type: ignore[return-value]
