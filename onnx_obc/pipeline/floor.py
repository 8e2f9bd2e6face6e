"""The least quality that a user takes, as they write it."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from ..core.errors import RecipeError

Kind: TypeAlias = Literal["dB", "agreement", "metric", "drop"]
KINDS = "30dB, agreement=99%, metric=0.82 or drop=1%"


def parse_quality(text: str) -> tuple[Kind, float]:
    """Read `30dB`, `agreement=99%`, `metric=0.82` or `drop=1%`. Raises RecipeError."""
    plain = text.strip()
    if match := re.fullmatch(r"(-?\d*\.?\d+)\s*dB", plain, re.IGNORECASE):
        return "dB", float(match[1])
    match = re.fullmatch(r"(agreement|metric|drop)=(-?\d*\.?\d+)(%?)", plain)
    if match is None:
        raise RecipeError(f"--min-quality {text!r} cannot be read; write {KINDS}")
    kind, value = match[1], float(match[2]) / (100 if match[3] else 1)
    if kind != "metric" and not 0 <= value <= 1:
        raise RecipeError(f"--min-quality {text!r}: a share lies between 0 and 100 %; write {KINDS}")
    if kind == "drop" and value == 1:
        raise RecipeError(f"--min-quality {text!r} refuses nothing: it is 100 %; write drop=1%")
    return ("agreement" if kind == "agreement" else "metric" if kind == "metric" else "drop"), value
