"""The recipe that returns the layers whose return gains most to what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from ..core.errors import plain, shortened
from .record import Debug, LayerRow, Return

FEWEST, MOST = 2, 8  # bits that a recipe can ask for


def gaining(debug: Debug, most: int) -> list[Return]:
    """The returns that gain something, at most so many, the best first."""
    return [row for row in debug.returns if row.gained > 0 or (row.gained_db > 0 and row.gained >= 0)][:most]


def recipe_text(debug: Debug, returns: Sequence[Return]) -> str:
    """A recipe file that leaves these layers in float, or gives them int8 weights. Of the others, those that are float
    in the compressed file stay so, and the rest becomes what most of them are there."""
    what = "the layers whose return gains most" if returns else "no layer's return gains anything"
    lines = [
        f"# {plain(debug.compressed)}: {what}.",
        f"# Output loss {debug.loss:.3g} on {shortened(plain(debug.source))}; what each return alone lowers it to:",
        *(f"# {plain(row.layer)}: {row.loss:.3g} ({row.fault})" for row in returns),
    ]
    rules: list[dict[str, Any]] = []
    for row in returns:
        rule: dict[str, Any] = {"match": row.layer}
        rule |= {"skip": True} if row.remedy == "float" else {"weights": "int8", "sparsity": "none"}
        rules.append(rule)
    returned = {row.layer for row in returns}
    floats = [row.name for row in debug.layers if row.form and row.bits is None and row.name not in returned]
    rules += [{"match": name, "skip": True} for name in floats]
    content = {**_uniform(debug), "layers": rules}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _uniform(debug: Debug) -> dict[str, str]:
    """What most layers of the compressed file are: their weights, and whether their inputs are integers."""
    layers = [row for row in debug.layers if row.bits is not None]
    if not layers:
        return {}
    width = Counter(_width(row) for row in layers).most_common(1)[0][0]
    values = {row.name: row for row in debug.values}
    known = [values[row.value] for row in layers if row.value in values]
    integers = sum(row.activations is not None for row in known) * 2 > len(known)
    dynamic = sum(row.dynamic for row in layers) * 2 > len(layers)
    return {"weights": f"int{width}", "activations": "none" if not integers else "dynamic" if dynamic else "int8"}


def _width(row: LayerRow) -> int:
    return min(max(row.bits or MOST, FEWEST), MOST)
