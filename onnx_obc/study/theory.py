"""Expected errors of quantization and pruning at equal size, after Kuzmin et al. (2023): "Pruning vs Quantization"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from ..core.arrays import Float64
from ..core.errors import RecipeError
from .distributions import FAMILIES, Distribution, Family, Moments, of_kurtosis
from .size import FLOAT_BITS, Mask, density

Grid = Literal["int", "sym", "mid"]
BITS = range(2, 9)
_LEAST = 0.02  # of the root mean square: a grid that reaches no further has an SNR under 0.2 dB
_SCAN, _FINE, _MINIMA = 256, 512, 3
_NEAR = 0.25  # how far on the logarithm of delta the fine scan goes


@dataclass(frozen=True)
class Quantized:
    """A distribution rounded to a grid: the error's two parts are in units of W²; zeros = P(code 0); snr in dB."""

    delta: float
    rounding: float
    clipping: float
    zeros: float
    snr: float

    @property
    def error(self) -> float:
        """E[(W − Q(W))²]."""
        return self.rounding + self.clipping


@dataclass(frozen=True)
class Pruned:
    """A distribution whose |W| ≤ threshold became zero: the error is in units of W², snr in dB."""

    threshold: float
    error: float
    snr: float


@dataclass(frozen=True)
class Combined:
    """A share `density` of weights kept, at `bits` each. snr in dB."""

    bits: int
    density: float
    snr: float


@dataclass(frozen=True)
class Crossover:
    """Where pruning overtakes quantization: the family's parameter, its kurtosis, and the SNR of both in dB."""

    parameter: float
    kurtosis: float
    snr: float


def snr(square: float, error: float) -> float:
    """10 · log10(E[W²] / E[(W − F(W))²]) in dB; infinite where nothing is lost."""
    return float(10 * np.log10(square / error)) if error > 0 else np.inf


def codes(bits: int, grid: Grid = "int", signed: bool = True) -> Float64:
    """The codes q of a grid with values delta · q, ascending: (codes,) float64.

    int: −2^(b−1) to 2^(b−1) − 1, the paper's; sym: without the lowest; mid: 2^b halves, zero not among them. Weights
    that are never negative get 0 to 2^b − 1, whatever the grid. Raises RecipeError unless bits is one of 2 to 8.
    """
    if bits not in BITS:
        raise RecipeError(f"A grid of {bits} bits is not studied: use {BITS[0]} to {BITS[-1]}")
    half = 2.0 ** (bits - 1)
    if not signed:
        return np.arange(2 * half)
    return np.arange(-half + (grid == "sym"), half) + (0.5 if grid == "mid" else 0.0)


def quantize(distribution: Distribution, bits: int, grid: Grid = "int") -> Quantized:
    """The expected error at the delta that makes it least. Raises RecipeError as `codes` does."""
    levels = codes(bits, grid, distribution.signed)
    delta = _best_delta(distribution.between, levels, distribution.square, distribution.extent)
    return quantize_at(distribution, levels, delta)


def quantize_at(distribution: Distribution, levels: Float64, delta: float) -> Quantized:
    """The expected error on the grid delta · levels. levels: as `codes` gives them.

    What lies between the outermost levels is rounded, to the nearest; the rest is clipped to them.
    """
    cells, mass = _cells(distribution.between, levels, np.array([delta]))
    zeros = float(mass[0, np.pad(levels, 1, mode="edge") == 0].sum())
    rounding, clipping = float(cells[0, 1:-1].sum()), float(cells[0, 0] + cells[0, -1])
    return Quantized(delta, rounding, clipping, zeros, snr(distribution.square, rounding + clipping))


def prune(distribution: Distribution, sparsity: float) -> Pruned:
    """The expected error when the share `sparsity` of smallest magnitude becomes zero: ∫ w² p dw over |w| ≤ t."""
    lost, _ = distribution.pruned(sparsity)
    return Pruned(distribution.threshold(sparsity), lost, snr(distribution.square, lost))


def combine(distribution: Distribution, bits: float, mask: Mask = "paper") -> Combined | None:
    """The best of both together at `bits` for each weight; density 1 is quantization alone. None where nothing fits.

    Weights are pruned by magnitude; as many are kept as fit with their mask (`density`), and rounded to the `int` grid
    of 2 to 8 bits with the delta that is best for them. The grid keeps its zero: what it rounds to zero costs its bits.
    """
    found = [
        Combined(each, share, snr_of_both(distribution, each, share))
        for each in BITS
        if (share := density(bits, mask, each))
    ]
    return max(found, key=lambda both: both.snr, default=None)


def snr_of_both(distribution: Distribution, bits: int, density: float) -> float:
    """The SNR in dB when the share `density` of largest magnitude is kept, and rounded to the best grid for it."""
    lost, between = distribution.pruned(1 - density)
    levels = codes(bits, "int", distribution.signed)
    delta = _best_delta(between, levels, distribution.square - lost, distribution.extent)
    left = float(_cells(between, levels, np.array([delta]))[0].sum())
    return snr(distribution.square, lost + left)


def crossover(family: Family, bits: int) -> Crossover | None:
    """The member of a family for which pruning to b/16 loses as much as quantization to b bits; None without one."""
    make, *ends = FAMILIES[family]

    def lead(log_parameter: float) -> float:
        member = make(float(np.exp(log_parameter)))
        return quantize(member, bits).snr - prune(member, 1 - bits / FLOAT_BITS).snr

    low, high = np.log(ends)
    if lead(low) * lead(high) > 0:
        return None
    parameter = float(np.exp(brentq(lead, low, high, xtol=1e-9)))
    member = make(parameter)
    return Crossover(parameter, member.kurtosis, quantize(member, bits).snr)


def predict(kurtosis: float, bits: int, family: Family = "truncated-t") -> tuple[float, float]:
    """The SNRs in dB of quantization, and of pruning to b/16, that a kurtosis foretells: those of the family's member.

    Which of the two is larger depends on the family: a kurtosis predicts, and decides nothing.
    """
    member = of_kurtosis(kurtosis, family)
    return quantize(member, bits).snr, prune(member, 1 - bits / FLOAT_BITS).snr


def _cells(between: Moments, levels: Float64, deltas: Float64) -> tuple[Float64, Float64]:
    """What each cell costs and holds, (deltas, levels + 2) both; the first and last are what is clipped."""
    middles = (levels[1:] + levels[:-1]) / 2
    inner = np.concatenate([levels[:1], middles, levels[-1:]]) * deltas[:, None]
    edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))
    values = np.pad(levels, 1, mode="edge") * deltas[:, None]
    zeroth, first, second = between(edges)
    return np.maximum(second - 2 * values * first + values * values * zeroth, 0.0), zeroth


def _best_delta(between: Moments, levels: Float64, square: float, extent: float) -> float:
    """The delta of least error. Relative to the weights throughout, so that their scale does not matter.

    A sample's error has many minima: a coarse scan finds the region, a fine one its best minima, and each is refined.
    """
    if not square > 0:
        return 1.0

    def errors(log_deltas: Float64) -> Float64:
        costs, _ = _cells(between, levels, np.exp(log_deltas))
        return np.asarray(costs.sum(axis=1))

    low = np.log(_LEAST * np.sqrt(square) / np.abs(levels).max())
    coarse = np.linspace(low, np.log(2 * extent / levels[-1]), _SCAN)
    fine = coarse[np.argmin(errors(coarse))] + np.linspace(-_NEAR, _NEAR, _FINE)
    costs = errors(fine)
    minima = 1 + np.flatnonzero((costs[1:-1] <= costs[:-2]) & (costs[1:-1] <= costs[2:]))
    best = (float(costs.min()), float(fine[np.argmin(costs)]))
    for at in minima[np.argsort(costs[minima])[:_MINIMA]]:
        found = minimize_scalar(
            lambda log_delta: float(errors(np.array([log_delta]))[0]),
            bounds=(fine[at - 1], fine[at + 1]),
            method="bounded",
            options={"xatol": 1e-10},
        )
        best = min(best, (float(found.fun), float(found.x)))
    return float(np.exp(best[1]))
