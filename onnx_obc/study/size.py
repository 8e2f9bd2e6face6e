"""Equal size: the density that pruning may keep for the bits of a quantized weight."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import brentq

Mask = Literal["paper", "bitmap", "entropy"]
FLOAT_BITS = 16.0


def density(bits: float, mask: Mask = "paper", value_bits: float = FLOAT_BITS) -> float | None:
    """The largest share of weights that may be kept in a budget of `bits` for each weight; None if nothing fits.

    A density d costs d · value_bits and what says where the kept weights are: nothing (`paper`, as Kuzmin et al. 2023
    count), one bit for each weight (`bitmap`), or the mask's entropy H(d) (`entropy`). H rises and falls: value_bits
    that fit the budget by themselves give 1, any others the one density that fills it.
    """
    left = bits - (mask == "bitmap")
    if left < 0:
        return None
    if left >= value_bits:
        return 1.0
    if mask != "entropy":
        return left / value_bits
    dearest = 1 / (1 + 2.0**-value_bits)  # where d · value_bits + H(d) turns
    return float(brentq(lambda d: d * value_bits + entropy(d) - bits, 0.0, dearest, xtol=1e-15))


def entropy(share: float) -> float:
    """H of a mask that keeps a share of the weights, in bits for each weight."""
    return -sum(float(p * np.log2(p)) for p in (share, 1 - share) if p > 0)


def without_zeros(bits: float, zeros: float) -> float:
    """The bits for each weight of a quantized weight whose share `zeros` of zero codes is not stored."""
    return (1 - zeros) * bits
