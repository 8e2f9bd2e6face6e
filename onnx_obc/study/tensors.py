"""Weights on their own: what quantization and pruning at equal size do to them, and what their kurtosis foretells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ..core.arrays import Float32
from ..core.level import Level
from ..solver.baselines import uncompensated
from .distributions import FAMILIES, Distribution, Family, sample
from .size import Mask, density, without_zeros
from .theory import predict, prune, quantize, snr

_LARGEST = 2**22  # weights that are looked at: more are thinned out evenly


@dataclass(frozen=True)
class TensorRow:
    """A weight at a budget of `bits` for each weight; all SNRs in dB, E[W²] / E[(W − Ŵ)²].

    quantized: on one grid for the whole weight, as Kuzmin et al. (2023) do it; zeros: the share of zero codes there.
    rows: rounded as this tool would without data, a grid for each row. pruned: by magnitude at equal size, by what the
    mask costs; None where the budget does not pay for any weight. natural: pruned by magnitude, mask free, to the size
    that quantization comes to where its zero codes are not stored. predicted: quantized and pruned, mask free, of the
    member of each family that has the weight's kurtosis.
    """

    bits: int
    quantized: float
    zeros: float
    rows: float
    pruned: Mapping[Mask, float | None]
    natural: float
    predicted: Mapping[Family, tuple[float, float]]


def thinned(weight: Float32) -> Distribution:
    """The distribution of a weight's values, of some of them where there are more than four million."""
    return sample(thinned_values(weight.reshape(-1), _LARGEST))


def thinned_values(values: Float32, most: int) -> Float32:
    """At most so many of the values, drawn at random where there are more. values: (n,) float32."""
    if values.size <= most:
        return values
    return values[np.random.default_rng(0).integers(values.size, size=most)]


def study_tensor(weight: Float32, distribution: Distribution, levels: Mapping[int, Level]) -> tuple[TensorRow, ...]:
    """A row for each budget, in bits. weight: (groups, rows, columns) float32, not constant. levels: what this tool
    would make of it with each number of bits."""
    made = []
    for bits, level in levels.items():
        whole = quantize(distribution, bits)
        rounded = uncompensated(weight, level, "mse").weights
        pruned: dict[Mask, float | None] = {}
        for mask in get_args(Mask):
            kept = density(bits, mask)
            pruned[mask] = None if kept is None else prune(distribution, 1 - kept).snr
        predicted = {family: predict(distribution.kurtosis, bits, family) for family in FAMILIES}
        natural = prune(distribution, 1 - (density(without_zeros(bits, whole.zeros)) or 0.0)).snr
        made.append(TensorRow(bits, whole.snr, whole.zeros, _snr(weight, rounded), pruned, natural, predicted))
    return tuple(made)


def _snr(weight: Float32, changed: Float32) -> float:
    wide = weight.astype(np.float64)
    return snr(float((wide**2).sum()), float(((wide - changed) ** 2).sum()))
