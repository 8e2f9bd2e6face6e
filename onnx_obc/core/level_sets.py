"""The sets of levels that a database is built from, by name or given by hand."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from .errors import RecipeError
from .level import FLOAT, Block, Choice, Level, Unstructured, parse_choice

STEP = 0.9  # of what remains stays at each step of a ladder (OBC section 6)
BLOCK_STEPS, SINGLE_STEPS = 29, 44  # dense and 29 steps: 30 levels, up to 95 %; 44 steps: up to 99 %
DENSE = Choice(FLOAT)


def read_levels(text: str, zero_points: bool) -> tuple[Choice, ...]:
    """The choices of a level set, each once, dense first.

    text: the name of a set, or choices and sets separated by commas, `8w8a,2:4+8w8a,int4`.
      unstructured: each step prunes a tenth of the weights that remain, up to 99 %. block4: the same in blocks of 4, up
      to 95 %. gpu: 8w8a, 4w4a, and both at 2:4 (OBC's mixed GPU scenario). cpu: the block4 ladder with 8w8a (its CPU
      scenario). dynamic: 8w8a-dyn and 8w8a. weight-only: int8, int4, int3, int2.
    zero_points: whether the rows of `weight-only` below 8 bits have zero points, which not every target takes.
    Raises RecipeError for what is no set and no level.
    """
    choices: dict[Choice, None] = {DENSE: None}
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part in SETS:
            choices |= dict.fromkeys(SETS[part](zero_points))
            continue
        try:
            choices[parse_choice(part)] = None
        except RecipeError as error:
            near = difflib.get_close_matches(part, SETS, n=1)
            known = f"sets are {', '.join(SETS)}; levels are e.g. 8w8a, 2:4, int4"
            hint = f"did you mean {near[0]}?" if near else known
            raise RecipeError(f"--levels: {error}; {hint}") from error
    if len(choices) == 1:
        raise RecipeError(f"--levels {text!r} names no level; write a set ({', '.join(SETS)}), or e.g. 8w8a,2:4+8w8a")
    return tuple(choices)


def _ladder(steps: int) -> list[float]:
    """The sparsities of a ladder, to four digits, which their names show."""
    return [round(1 - STEP**step, 4) for step in range(1, steps + 1)]


def _unstructured(zero_points: bool) -> list[Choice]:
    return [Choice(Level(Unstructured(sparsity))) for sparsity in _ladder(SINGLE_STEPS)]


def _block4(zero_points: bool) -> list[Choice]:
    return [Choice(Level(Block(4, sparsity))) for sparsity in _ladder(BLOCK_STEPS)]


def _gpu(zero_points: bool) -> list[Choice]:
    return [parse_choice(text) for text in ("8w8a", "2:4+8w8a", "4w4a", "2:4+4w4a")]


def _cpu(zero_points: bool) -> list[Choice]:
    sparse = [Choice(Level(Block(4, sparsity), 8), 8) for sparsity in _ladder(BLOCK_STEPS)]
    return [parse_choice("8w8a"), *sparse]


def _dynamic(zero_points: bool) -> list[Choice]:
    return [parse_choice(text) for text in ("8w8a-dyn", "8w8a")]


def _weight_only(zero_points: bool) -> list[Choice]:
    narrow = [Choice(Level(None, bits, symmetric=not zero_points)) for bits in (4, 3, 2)]
    return [parse_choice("int8"), *narrow]


SETS: dict[str, Callable[[bool], list[Choice]]] = {
    "unstructured": _unstructured,
    "block4": _block4,
    "gpu": _gpu,
    "cpu": _cpu,
    "dynamic": _dynamic,
    "weight-only": _weight_only,
}
