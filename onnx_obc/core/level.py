"""The vocabulary that everyone shares: how a layer is compressed, and what came out of it. No logic lives here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from .errors import RecipeError

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (4, 8, 16)
BLOCKS = (16, 32, 64, 128, 256)  # columns that share a scale; what onnxruntime's MatMulNBits takes


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

    `sparsity` is None for a dense layer, `bits` None for float weights. `block`: so many consecutive columns of a row
    share a scale and zero point; None: the whole row. The text form is what users write and reports show: `int8`,
    `int4-asym`, `int4-b64`, `2:4`, `block4-0.70`, `sparse-0.60+int4`, `float`.
    """

    sparsity: Sparsity | None = None
    bits: int | None = None
    symmetric: bool = True
    block: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.sparsity is not None:
            parts.append(str(self.sparsity))
        if self.bits is not None:
            ends = ("" if self.symmetric else "-asym") + ("" if self.block is None else f"-b{self.block}")
            parts.append(f"int{self.bits}{ends}")
        return "+".join(parts) or "float"


FLOAT = Level()


@dataclass(frozen=True)
class Choice:
    """What a layer becomes: its level, and the bits that its input is quantized to (None: it stays float).

    dynamic: the range of the input is that of the input itself, found when the file runs, not on calibration data.
    The text form is that of the level where the input stays float, and otherwise `8w8a`, `8w8a-dyn`, `2:4+4w4a`,
    `4w8a-asym`.
    """

    level: Level
    activation_bits: int | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        assert self.activation_bits is not None or not self.dynamic, "a float input has no range"

    @property
    def kind(self) -> str:
        """What the layer takes from others and gives them: `int8`, `int4`, or `float`, which a dynamic one converts."""
        return "float" if self.activation_bits is None or self.dynamic else f"int{self.activation_bits}"

    @property
    def activations(self) -> str:
        """What its input becomes, in a recipe's word: `float`, `int8`, `int4`, `int16`, `dynamic`."""
        return "dynamic" if self.dynamic else "float" if self.activation_bits is None else f"int{self.activation_bits}"

    def __str__(self) -> str:
        if self.activation_bits is None or self.level.bits is None:
            return str(self.level)
        both = f"{self.level.bits}w{self.activation_bits}a" + ("-dyn" if self.dynamic else "")
        both += "" if self.level.symmetric else "-asym"
        both += "" if self.level.block is None else f"-b{self.level.block}"
        return both if self.level.sparsity is None else f"{self.level.sparsity}+{both}"


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
    sparsity, bits, symmetric, block = None, None, True, None
    for part in text.lower().split("+"):
        if match := re.fullmatch(r"(float|int\d)(-asym)?(-b\d+)?", part):
            bits, symmetric = parse_bits(match[1]), match[2] is None
            block = parse_block(match[3][2:]) if match[3] else None
        else:
            sparsity = parse_sparsity(part)
    return Level(sparsity, bits, symmetric, block)


def parse_block(text: str) -> int:
    """Read how many columns share a scale. Raises RecipeError."""
    if text.isdigit() and int(text) in BLOCKS:
        return int(text)
    raise RecipeError(f"block {text!r} is not supported; use {', '.join(map(str, BLOCKS))}")


def parse_choice(text: str) -> Choice:
    """Read the text form of a choice, as `str(choice)` writes it. Raises RecipeError."""
    *first, last = text.lower().split("+")
    match = re.fullmatch(r"(\d)w(\d{1,2})a(-dyn)?(-asym)?(-b\d+)?", last.strip())
    if match is None:
        return Choice(parse_level(text))
    level = parse_level("+".join([*first, f"int{match[1]}{match[4] or ''}{match[5] or ''}"]))
    bits, dynamic = int(match[2]), match[3] is not None
    if bits not in ACTIVATION_BITS:
        known = "activations take 16, 8 or 4 bits"
        raise RecipeError(f"level {text!r}: {known}; write e.g. 8w8a, or int{match[1]} for float")
    if dynamic and bits != 8:
        raise RecipeError(f"level {text!r}: dynamic activations have 8 bits; write {match[1]}w8a-dyn")
    return Choice(level, bits, dynamic)


def _fraction(value: float) -> str:
    """At least two digits, and as many as it takes to read the same number back: 0.6 → 0.60, 0.125 → 0.125."""
    short = f"{value:.2f}"
    return short if float(short) == value else repr(value)
