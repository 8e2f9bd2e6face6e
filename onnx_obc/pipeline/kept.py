"""Solutions as they wait to be written: the codes in as few bytes as numpy has, and beyond a budget in files."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from ..core.mapped import in_temporary_file
from ..core.solution import Solution

MAPPED_BYTES = 1 << 20  # smaller arrays are not worth a file


class Shelf:
    """Takes solutions, and holds them in memory up to so many bytes together; the rest lies in temporary files."""

    def __init__(self, memory: float) -> None:
        self._memory, self._held = memory, 0.0

    def keep(self, solution: Solution) -> Solution:
        """The same solution, where it is kept. Raises ModelError if there is no room for the files."""
        arrays = {x.name: a for x in fields(solution) if isinstance(a := getattr(solution, x.name), np.ndarray)}
        if solution.codes is not None and solution.grid is not None and solution.grid.bits <= 8:
            arrays["codes"] = solution.codes.astype(np.int8 if solution.grid.symmetric else np.uint8)
        size = sum(array.nbytes for array in arrays.values())
        if self._held + size <= self._memory:
            self._held += size
        else:
            arrays = {
                name: in_temporary_file(array, "solved weights") if array.nbytes >= MAPPED_BYTES else array
                for name, array in arrays.items()
            }
        return replace(solution, **arrays)  # type: ignore[arg-type]
