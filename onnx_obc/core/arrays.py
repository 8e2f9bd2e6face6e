"""Types of the arrays that all share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]

Float64: TypeAlias = npt.NDArray[np.float64]

Int32: TypeAlias = npt.NDArray[np.int32]

Bool: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = dict[str, Array]  # what a model is run on, by input name
