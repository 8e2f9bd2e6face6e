"""How large the values of samples are, and what of that the user should know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...core.arrays import Feed
from ...core.plural import counted

FAR = 1000.0  # times the magnitude of the median sample: in 8 bits, all that the others hold is one step


def magnitudes(sample: Feed) -> dict[str, float]:
    """The largest magnitude in each float input of a sample: infinite if there is +∞; without −∞, as masks have."""
    return {name: _largest(array) for name, array in sample.items() if array.dtype.kind == "f"}


def magnitude_notes(found: Sequence[Mapping[str, float]], name_of: Callable[[int], str]) -> tuple[str, ...]:
    """Notes on samples whose values are hardly meant. found: the magnitudes of each; name_of: see `Samples`."""
    notes = []
    for name in found[0] if found else ():
        sizes = np.array([sample[name] for sample in found])  # (samples,)
        finite = np.where(np.isinf(sizes), 0, sizes)
        usual = float(np.median(finite[finite > 0])) if finite.any() else 0.0
        far = np.flatnonzero(finite > FAR * usual)
        if not sizes.any():
            notes.append(f"input {name!r} is zero in all samples: they say nothing of it; give real data")
        elif far.size:
            notes.append(
                f"input {name!r} reaches {finite[far].max():.3g} in {_named(far.tolist(), name_of)}, and {usual:.3g} "
                "in the median sample: ranges, Hessians and comparisons follow such values; leave out what is a mistake"
            )
        if (infinite := np.flatnonzero(np.isinf(sizes))).size:
            where = _named(infinite.tolist(), name_of)
            notes.append(f"input {name!r} holds infinity in {where}: mend what made it, or leave that out")
    return tuple(notes)


def _largest(array: np.ndarray[Any, Any]) -> float:
    known = array[array != -np.inf]
    return float(np.abs(known).max(initial=0))


def _named(positions: Sequence[int], name_of: Callable[[int], str]) -> str:
    """The first of some samples by name, and how many more there are."""
    more = f" and {counted(len(positions) - 1, 'other sample')}" if len(positions) > 1 else ""
    return f"{name_of(positions[0])}{more}"
