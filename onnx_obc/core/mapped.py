"""Arrays in temporary files, which take no memory that is not free."""

from __future__ import annotations

import tempfile

import numpy as np

from .arrays import Array
from .errors import ModelError


def in_temporary_file(array: Array, what: str) -> Array:
    """The same array, mapped to a temporary file, which is gone when nothing refers to it any more.

    what: it is, in the message. Raises ModelError where there is no room.
    """
    if array.nbytes == 0:
        return array
    file = tempfile.TemporaryFile(prefix="onnx-obc-")  # noqa: SIM115  the map keeps it open
    try:
        np.ascontiguousarray(array).tofile(file)
        file.flush()
    except OSError as error:
        raise ModelError(
            f"no room for {array.nbytes / 2**30:.1f} GiB of {what} in {tempfile.gettempdir()} "
            f"({error.strerror}); set TMPDIR to a folder with more, raise --memory, or give fewer samples"
        ) from error
    return np.memmap(file, array.dtype, "r+", shape=array.shape)
