"""Types of the arrays that all share, and what is checked of them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ModelError

Float32: TypeAlias = npt.NDArray[np.float32]

Float64: TypeAlias = npt.NDArray[np.float64]

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]

Bool: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = dict[str, Array]  # what a model is run on, by input name


def check_finite(weights: Float32) -> None:
    """Raises ModelError if a layer's weight is NaN or infinite."""
    if not np.isfinite(weights).all():
        raise ModelError(
            "the layer's weights hold NaN or infinity: the model is damaged; export it again, or skip the layer"
        )
