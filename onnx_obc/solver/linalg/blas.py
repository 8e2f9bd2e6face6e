"""BLAS and LAPACK inside compiled code: SciPy's, called on parts of larger arrays and writing in place."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import get_cython_function_address, overload

from .compiled import compiled

_char, _int = types.CPointer(types.uint8), types.CPointer(types.int32)


def _external(library: str, name: str, *arguments: Any) -> Any:
    """A routine of SciPy's `cython_blas` or `cython_lapack`, known to compiled code, and to its cache, by name."""
    symbol = f"onnx_obc_{name}"
    llvmlite.binding.add_symbol(symbol, get_cython_function_address(f"scipy.linalg.{library}", name))
    return types.ExternalFunction(symbol, types.void(*arguments))


def _syrk_routine(name: str, real: Any) -> Any:
    """?SYRK(uplo, trans, n, k, alpha, a, lda, beta, c, ldc)."""
    pointer = types.CPointer(real)
    return _external("cython_blas", name, _char, _char, _int, _int, pointer, pointer, _int, pointer, pointer, _int)


def _triangle_routine(name: str, real: Any) -> Any:
    """?POTRF and ?POTRI(uplo, n, a, lda, info)."""
    return _external("cython_lapack", name, _char, _int, types.CPointer(real), _int, _int)


_SYRK = {numba.float32: _syrk_routine("ssyrk", numba.float32), numba.float64: _syrk_routine("dsyrk", numba.float64)}
_POTRF = {
    numba.float32: _triangle_routine("spotrf", numba.float32),
    numba.float64: _triangle_routine("dpotrf", numba.float64),
}
_POTRI = {
    numba.float32: _triangle_routine("spotri", numba.float32),
    numba.float64: _triangle_routine("dpotri", numba.float64),
}


def _syrk(flags: np.ndarray, sizes: np.ndarray, factors: np.ndarray, v: np.ndarray, a: np.ndarray) -> None:
    raise NotImplementedError("only in compiled code")


@overload(_syrk)  # type: ignore[untyped-decorator]
def _syrk_of_dtype(flags: Any, sizes: Any, factors: Any, v: Any, a: Any) -> Any:
    call = _SYRK[a.dtype]

    def run(flags: Any, sizes: Any, factors: Any, v: Any, a: Any) -> None:
        call(
            flags.ctypes,
            flags[1:].ctypes,
            sizes.ctypes,
            sizes[1:].ctypes,
            factors.ctypes,
            v.ctypes,
            sizes[2:].ctypes,
            factors[1:].ctypes,
            a.ctypes,
            sizes[3:].ctypes,
        )

    return run


@compiled
def subtract_products(a: np.ndarray, v: np.ndarray, size: int, k: int) -> None:
    """a[:size, :size] −= v[:k, :size]ᵀ v[:k, :size], the lower triangle alone. a, v: of one dtype, C order."""
    flags = np.array([ord("U"), ord("N")], np.uint8)  # for Fortran the rows are columns, and lower is upper
    sizes = np.array([size, k, v.shape[1], a.shape[1]], np.int32)
    factors = np.empty(2, a.dtype)
    factors[0], factors[1] = -1, 1
    _syrk(flags, sizes, factors, v, a)


def _invert(flag: np.ndarray, sizes: np.ndarray, a: np.ndarray) -> None:
    raise NotImplementedError("only in compiled code")


@overload(_invert)  # type: ignore[untyped-decorator]
def _invert_of_dtype(flag: Any, sizes: Any, a: Any) -> Any:
    factorise, invert = _POTRF[a.dtype], _POTRI[a.dtype]

    def run(flag: Any, sizes: Any, a: Any) -> None:
        factorise(flag.ctypes, sizes.ctypes, a.ctypes, sizes.ctypes, sizes[1:].ctypes)
        if sizes[1] == 0:
            invert(flag.ctypes, sizes.ctypes, a.ctypes, sizes.ctypes, sizes[1:].ctypes)

    return run


@compiled
def invert_triangle(a: np.ndarray) -> bool:
    """a = a⁻¹ in place, of which only the lower triangle is read and written; False if it is not positive definite.

    a: (size, size) float32 or float64, C order, size at least 1.
    """
    flag = np.array([ord("U")], np.uint8)  # for Fortran the rows are columns, and lower is upper
    sizes = np.array([a.shape[0], 0], np.int32)
    _invert(flag, sizes, a)
    return bool(sizes[1] == 0)
