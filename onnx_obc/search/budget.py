"""Budgets as users write them."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias, get_args

from ..core.errors import RecipeError

Kind: TypeAlias = Literal["bops", "obc-bops", "flops", "size", "latency", "drop"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXAMPLE = "write e.g. bops=12x (a twelfth is left), size=0.2x (a fifth is left) or drop=1%"


@dataclass(frozen=True)
class Budget:
    """What a model must meet. value: of `drop` the largest output loss (see `OutputLoss`), 0.01 for 1 %.

    Of the other kinds a factor: above 1 it says how many times less than the dense model, below 1 what is left of it.
    """

    kind: Kind
    value: float

    def __str__(self) -> str:
        exact = Decimal(repr(float(self.value)))  # the text of one budget never reads as another's
        if self.kind == "drop":
            return f"drop={(100 * exact).normalize():f}%"
        return f"{self.kind}={exact.normalize():f}x"

    @property
    def fraction(self) -> float:
        """The fraction of the dense model's cost that is left."""
        return 1 / self.value if self.value > 1 else self.value


def parse_budget(text: str) -> Budget:
    """Read `bops=12x`, `flops=3x`, `size=0.2x`, `latency=4x`, `drop=1%` or `drop=0.01`. Raises RecipeError."""
    name, _, amount = text.strip().lower().partition("=")
    kind = next((known for known in KINDS if known == name.strip()), None)
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}"
        raise RecipeError(f"--budget {text!r}: {name!r} is no kind of budget; {hint}")
    match = re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?)([x×%]?)", amount.strip())
    if match is None or (kind == "drop") != (match[2] not in ("x", "×")):
        raise RecipeError(f"--budget {text!r}: {amount!r} cannot be read; {EXAMPLE}")
    value = float(match[1])
    if kind == "drop":
        if match[2] == "%":
            value = float(Decimal(match[1]) / 100)
        elif 1 <= value < math.inf:  # drop=5 is hardly meant as 500 %
            raise RecipeError(
                f"--budget {text!r}: {amount} or {amount} per cent? Write drop={100 * value:g}% or drop={amount}%"
            )
        if not 0 < value < math.inf:
            raise RecipeError(f"--budget {text!r}: the output loss must be allowed to be above 0; write e.g. drop=1%")
    elif not (0 < value < math.inf and value != 1):
        raise RecipeError(f"--budget {text!r}: {match[1]}x leaves nothing, or everything; {EXAMPLE}")
    return Budget(kind, value)
