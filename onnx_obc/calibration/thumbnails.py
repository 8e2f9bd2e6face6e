"""Samples as people see them: small pictures as data: URIs, which a page holds without a file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

MOST = 96  # pixels of a side
QUALITY = 80  # of JPEG: a kilobyte or three for each picture


def thumbnail(image: Image.Image) -> str:
    """An image as the data: URI of a JPEG, no side longer than MOST."""
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((MOST, MOST))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def picture_of(feed: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The feed of one sample as a picture, its values stretched over all greys or colours; None if it is none.

    A picture is the only input, (1, C, H, W), (1, H, W, C) or (1, H, W), with 1 or 3 channels and sides of 4 or more.
    """
    from PIL import Image

    if len(feed) != 1:
        return None
    (array,) = feed.values()
    if array.dtype.kind not in "fu" or array.ndim not in (3, 4) or len(array) != 1:
        return None
    values = array[0] if array.ndim == 4 else array
    if values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, -1)  # (H, W, C)
    if values.shape[-1] not in (1, 3) or min(values.shape[:2]) < 4 or not np.isfinite(values).all():
        return None
    low, high = float(values.min()), float(values.max())
    grey = np.rint(255 * (values.astype(np.float64) - low) / ((high - low) or 1)).astype(np.uint8)
    return thumbnail(Image.fromarray(grey[:, :, 0] if grey.shape[-1] == 1 else grey))
