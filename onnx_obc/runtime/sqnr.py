"""How close the outputs of two models are, in decibels."""

from __future__ import annotations

from math import inf, log10
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt


def agreement_db(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """The signal-to-noise ratio of `found`, 10 log₁₀(Σ y² / Σ (y − ŷ)²), in decibels; −inf for another shape.

    Elements that are the same infinity or not a number in both do not count.
    """
    if wanted.shape != found.shape:
        return -inf
    y, other = wanted.astype(np.float64), found.astype(np.float64)
    counts = ~((y == other) | (np.isnan(y) & np.isnan(other))) | np.isfinite(y)
    y, other = y[counts], other[counts]
    noise, signal = float(((y - other) ** 2).sum()), float((y**2).sum())
    return decibels(signal, noise) if np.isfinite(noise) else -inf


def worst_sqnr(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """The lowest ratio over the float outputs, in decibels. Integers such as classes may turn on the last digit."""
    worst = inf
    for name, wanted in expected.items():
        if is_float(wanted):
            match = Match()
            match.add(wanted, found[name], is_scores=False)
            worst = min(worst, match.sqnr_db)
    return worst


def is_numeric(value: Any) -> bool:
    """Whether an output is an array of numbers, not of strings and not a sequence or a map."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def is_float(value: Any) -> TypeGuard[npt.NDArray[Any]]:
    """Whether an output is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


class Match:
    """Running sums of one output."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.same = self.rows = 0

    def add(self, wanted: npt.NDArray[Any], found: npt.NDArray[Any], is_scores: bool) -> None:
        """Add a feed's output; is_scores: whether its largest element is a class, so that agreement is counted."""
        usable = np.isfinite(wanted) & np.isfinite(found)
        y = wanted[usable].astype(np.float64)
        self.signal += float((y**2).sum())
        self.noise += float(((y - found[usable]) ** 2).sum())
        if is_scores and wanted.ndim == 2 and wanted.shape[1] > 1:
            self.same += int((wanted.argmax(axis=1) == found.argmax(axis=1)).sum())
            self.rows += len(wanted)

    @property
    def sqnr_db(self) -> float:
        """10 log₁₀ of the ratio; infinite if nothing differs."""
        return decibels(self.signal, self.noise)

    @property
    def agreement(self) -> float | None:
        """The share of rows with the same largest element, None where none was counted."""
        return self.same / self.rows if self.rows else None


def decibels(signal: float, noise: float) -> float:
    """10 log₁₀(signal / noise): infinite without noise, −infinite without a signal."""
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf
