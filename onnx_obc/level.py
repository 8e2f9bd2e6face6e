"""The vocabulary that everyone shares: how a layer is compressed, and what came out of it. No logic lives here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import RecipeError

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int32: TypeAlias = npt.NDArray[np.int32]
Bool: TypeAlias = npt.NDArray[np.bool_]

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Unstructured:
    """A fraction `sparsity` of the layer's weights is zero, anywhere."""

    sparsity: float

    def __str__(self) -> str:
        return f"sparse-{_fraction(self.sparsity)}"


@dataclass(frozen=True)
class NM:
    """Of every `m` consecutive columns at most `n` are non-zero ("2:4", "4:8")."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Block:
    """A fraction `sparsity` of the blocks of `size` consecutive columns is zero as a whole."""

    size: int
    sparsity: float

    def __str__(self) -> str:
        return f"block{self.size}-{_fraction(self.sparsity)}"


Sparsity: TypeAlias = Unstructured | NM | Block


@dataclass(frozen=True)
class Level:
    """One way to compress a layer's weights: prune to `sparsity`, then quantize what remains to `bits`.

    `sparsity` is None for a dense layer, `bits` None for float weights. The text form is what users write and
    reports show: `int8`, `int4-asym`, `2:4`, `block4-0.70`, `sparse-0.60+int4`, `float`.
    """

    sparsity: Sparsity | None = None
    bits: int | None = None
    symmetric: bool = True

    def __str__(self) -> str:
        parts = []
        if self.sparsity is not None:
            parts.append(str(self.sparsity))
        if self.bits is not None:
            parts.append(f"int{self.bits}" + ("" if self.symmetric else "-asym"))
        return "+".join(parts) or "float"


FLOAT = Level()


@dataclass(frozen=True)
class Choice:
    """What a layer becomes: its level, and the bits that its input is quantized to (None: it stays float).

    The text form is that of the level where the input stays float, and otherwise `8w8a`, `2:4+4w4a`, `4w8a-asym`.
    """

    level: Level
    activation_bits: int | None = None

    @property
    def kind(self) -> str:
        """What the layer multiplies: `int8`, `int4`, or `float` where its input stays float."""
        return "float" if self.activation_bits is None else f"int{self.activation_bits}"

    def __str__(self) -> str:
        if self.activation_bits is None or self.level.bits is None:
            return str(self.level)
        both = f"{self.level.bits}w{self.activation_bits}a" + ("" if self.level.symmetric else "-asym")
        return both if self.level.sparsity is None else f"{self.level.sparsity}+{both}"


@dataclass(frozen=True)
class Grid:
    """The values that a quantized row may take: `(code − zero_point) · scale`.

    scale: (groups, rows) float32, positive. zero_point: (groups, rows) int32, all zero if `symmetric`.
    Symmetric codes are signed, −2^(bits−1) … 2^(bits−1)−1; asymmetric codes are unsigned, 0 … 2^bits−1, and the zero
    point lies among them, so that zero is always exactly representable.
    """

    scale: Float32
    zero_point: Int32
    bits: int
    symmetric: bool

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return int(self.qmin + 2**self.bits - 1)

    def dequantize(self, codes: Int32) -> Float32:
        """The weights of integer codes (groups, rows, columns), by the arithmetic of ONNX DequantizeLinear."""
        shifted = (codes - self.zero_point[:, :, None]).astype(np.float32)
        return shifted * self.scale[:, :, None]


@dataclass(frozen=True)
class Solution:
    """A layer solved at a level.

    weights: (groups, rows, columns) float32; exactly `grid.dequantize(codes)` where the level quantizes.
    codes:   (groups, rows, columns) int32, or None for float weights.
    grid:    the rows' grids, or None for float weights.
    mask:    (groups, rows, columns) bool, True where a weight was kept, or None for a dense level.
    loss:    the layer loss that the solver's own bookkeeping predicts, ½ tr(ΔHΔᵀ) for the damped H, summed over rows
             and groups.
    loss_greedy: the same without refinement, or None if nothing was refined; where weights are both pruned and rounded,
             the greedy's loss of pruning and that of rounding what the refined mask left.
    """

    level: Level
    weights: Float32
    codes: Int32 | None
    grid: Grid | None
    mask: Bool | None
    loss: float
    loss_greedy: float | None = None


def parse_sparsity(text: str) -> Sparsity | None:
    """Read `none`, `2:4`, `0.6`, `sparse-0.6`, `block4:0.7` or `block4-0.70`. Raises RecipeError."""
    text = text.strip().lower()
    if text in ("none", "dense", "0"):
        return None
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise RecipeError(f"sparsity {text!r} must keep some of the weights, and not all of them; write e.g. 2:4")
        return NM(n, m)
    if match := re.fullmatch(r"(?:block(\d+)[:-]|sparse-)?(\d*\.?\d+)", text):
        fraction = float(match[2])
        if not 0 < fraction < 1:
            raise RecipeError(
                f"sparsity {text!r}: the pruned fraction must lie between 0 and 1; write e.g. 0.6, or 2:4"
            )
        if match[1] is None:
            return Unstructured(fraction)
        if int(match[1]) < 2:
            raise RecipeError(f"sparsity {text!r}: a block has at least 2 weights; for single ones write {fraction}")
        return Block(int(match[1]), fraction)
    raise RecipeError(f"sparsity {text!r} is not known; write 2:4, 4:8, block4:0.7, a fraction such as 0.6, or none")


def parse_bits(text: str) -> int | None:
    """Read `float` or `int2` … `int8`. Raises RecipeError."""
    text = text.strip().lower()
    if text in ("float", "none"):
        return None
    if (match := re.fullmatch(r"int(\d)", text)) and int(match[1]) in WEIGHT_BITS:
        return int(match[1])
    raise RecipeError(f"weights {text!r} are not known; write float, int8, int4, int3 or int2")


def parse_level(text: str) -> Level:
    """Read the text form of a level, as `str(level)` writes it. Raises RecipeError."""
    sparsity, bits, symmetric = None, None, True
    for part in text.lower().split("+"):
        name = part.removesuffix("-asym")
        if re.fullmatch(r"float|int\d", name):
            bits, symmetric = parse_bits(name), name == part
        else:
            sparsity = parse_sparsity(part)
    return Level(sparsity, bits, symmetric)


def parse_choice(text: str) -> Choice:
    """Read the text form of a choice, as `str(choice)` writes it. Raises RecipeError."""
    *first, last = text.lower().split("+")
    match = re.fullmatch(r"(\d)w(\d)a(-asym)?", last.strip())
    if match is None:
        return Choice(parse_level(text))
    level = parse_level("+".join([*first, f"int{match[1]}{match[3] or ''}"]))
    if int(match[2]) not in (4, 8):
        raise RecipeError(f"level {text!r}: activations take 8 or 4 bits; write e.g. 8w8a, or int{match[1]} for float")
    return Choice(level, int(match[2]))


def _fraction(value: float) -> str:
    """At least two digits, and as many as it takes to read the same number back: 0.6 → 0.60, 0.125 → 0.125."""
    short = f"{value:.2f}"
    return short if float(short) == value else repr(value)
