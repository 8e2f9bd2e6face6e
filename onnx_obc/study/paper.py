"""What Kuzmin et al. (2023) say of distributions, computed: the tables of the theory, and the curves of its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np

from .distributions import FAMILIES, Distribution, Family, gaussian, laplace, of_kurtosis, truncated_t, uniform
from .size import FLOAT_BITS, Mask
from .theory import BITS, Combined, Crossover, combine, crossover, prune, quantize

TOGETHER = (2, 4)  # budgets at which both are tried together: each takes a second
_KURTOSES = (1.85, 1000.0)  # ends of the curve
_POINTS = 17


@dataclass(frozen=True)
class GaussianRow:
    """N(0, 1) at b bits, and pruned to b/16. delta: of the best grid; int, sym and mid: SNRs in dB of the grids; zeros:
    P(code 0) of the first. pruned: SNR in dB at a threshold."""

    bits: int
    delta: float
    int_snr: float
    sym_snr: float
    mid_snr: float
    zeros: float
    sparsity: float
    threshold: float
    pruned: float


@dataclass(frozen=True)
class Compared:
    """SNRs in dB at a budget, pruned to b/16."""

    bits: int
    quantized: float
    pruned: float


@dataclass(frozen=True)
class Named:
    """A distribution at all budgets."""

    name: str
    kurtosis: float
    rows: tuple[Compared, ...]


@dataclass(frozen=True)
class Crossing:
    """Where pruning overtakes quantization, in a family; None if it does not."""

    family: Family
    bits: int
    at: Crossover | None


@dataclass(frozen=True)
class Both:
    """A distribution at a budget: quantized alone, and pruned and quantized with a mask of some cost; SNRs in dB."""

    name: str
    bits: int
    alone: float
    mask: Mask
    together: Combined | None


@dataclass(frozen=True)
class Theory:
    """All of it. curve: the truncated Student-t by its kurtosis, ascending."""

    gaussian: tuple[GaussianRow, ...]
    others: tuple[Named, ...]
    crossings: tuple[Crossing, ...]
    both: tuple[Both, ...]
    curve: tuple[Named, ...]


@cache
def theory() -> Theory:
    """The paper's theory at 2 to 8 bits: some seconds, the first time."""
    t10, t100 = truncated_t(10.0), truncated_t(100.0)
    others = [("Laplace", laplace()), ("uniform", uniform())]
    others += [("truncated t, r = 10", t10), ("truncated t, r = 100", t100)]
    curve = [("truncated t", of_kurtosis(float(x))) for x in np.geomspace(*_KURTOSES, _POINTS)]
    return Theory(
        gaussian=tuple(_gaussian(gaussian(), bits) for bits in BITS),
        others=tuple(_compared(name, each) for name, each in others),
        crossings=tuple(Crossing(family, bits, crossover(family, bits)) for family in FAMILIES for bits in BITS),
        both=tuple(
            Both(name, bits, quantize(each, bits).snr, mask, combine(each, bits, mask))
            for name, each in (("Gaussian", gaussian()), ("Laplace", laplace()))
            for bits in TOGETHER
            for mask in get_args(Mask)
        ),
        curve=tuple(_compared(name, each) for name, each in curve),
    )


def _gaussian(normal: Distribution, bits: int) -> GaussianRow:
    found, sparsity = quantize(normal, bits), 1 - bits / FLOAT_BITS
    pruned = prune(normal, sparsity)
    return GaussianRow(
        bits=bits,
        delta=found.delta,
        int_snr=found.snr,
        sym_snr=quantize(normal, bits, "sym").snr,
        mid_snr=quantize(normal, bits, "mid").snr,
        zeros=found.zeros,
        sparsity=sparsity,
        threshold=pruned.threshold,
        pruned=pruned.snr,
    )


def _compared(name: str, each: Distribution) -> Named:
    rows = [Compared(bits, quantize(each, bits).snr, prune(each, 1 - bits / FLOAT_BITS).snr) for bits in BITS]
    return Named(name, each.kurtosis, tuple(rows))
