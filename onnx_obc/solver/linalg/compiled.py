"""How kernels are compiled: for the types of the first call, kept on disk, and without the GIL while they run.

Division by zero gives infinity, as in NumPy: the check for it would keep loops out of wide registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile as written."""
    return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def compiled_fma(function: _Function) -> _Function:
    """The same, and a product may be fused with its addition; the order of operations stays as written."""
    return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function))


def compiled_finite(function: _Function) -> _Function:
    """The same, for numbers of which none is NaN: a minimum is then found in wide registers."""
    return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})(function))
