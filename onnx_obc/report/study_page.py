"""A study as a page: one HTML file with its figures, which loads nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

from ..core.errors import shortened
from ..core.plural import counted
from ..study.distributions import FAMILIES
from ..study.record import LayerRow, Study, Verdict
from ..study.size import Mask
from . import study_words as words
from .render import sortable, write_page
from .report_words import file_name
from .study_figures import (
    CSS,
    against_bits,
    against_kurtosis,
    crossovers,
    plane,
    shade,
    verdict_bar,
)

_FIRST = 24  # layers whose figures are shown at once


def write_study_page(study: Study, path: Path) -> None:
    """Write one HTML file, whole or not at all. Raises OutputError."""
    by, outputs = words.judged_by(study), words.knows_outputs(study)
    budgets = sorted(study.bits)

    def verdict_at(layer: LayerRow, bits: int) -> Verdict | None:
        return next((words.verdict_of(row, by, outputs) for row in layer.budgets if row.bits == bits), None)

    def words_of(layer: LayerRow) -> str:
        """What the filter of verdicts finds a layer by."""
        verdicts = [verdict for bits in budgets if (verdict := verdict_at(layer, bits)) is not None]
        found = {verdict.winner for verdict in verdicts} | {"proven" for verdict in verdicts if verdict.proven}
        return " ".join(sorted(found)) or "none"

    values = {
        "study": study,
        "name": file_name(study.model),
        "known": words.knows_outputs(study),
        "by": by,
        "budgets": budgets,
        "sizes": list(words.SIZES),
        "masks": get_args(Mask),
        "families": list(FAMILIES),
        "css": CSS,
        "first": _FIRST,
        "plane": plane(study),
        "multiples": against_bits(study),
        "kurtosis": against_kurtosis(study),
        "crossing": crossovers(study),
        "least": {one.bits: min(x.loss for x in study.whole if x.bits == one.bits) for one in study.whole},
        "notes": words.notes_of(study),
        "by_note": words.by_note(study),
        "left": words.left(study),
        "verdict_at": verdict_at,
        "words_of": words_of,
    }
    functions = {
        "headline": words.headline,
        "counts": words.counts,
        "chunk_sentence": words.chunk_sentence,
        "meaning": words.meaning,
        "caveats": words.caveats,
        "db": words.db,
        "layers": lambda count: counted(count, "layer"),
        "shortened": shortened,
        "shade": shade,
        "verdict_bar": verdict_bar,
        "zeros": _zeros,
        "short": words.figure,
        "small": _small,
        "signed": _signed,
        "sortable": sortable,
    }
    write_page("study.html.j2", {**values, **functions}, path)


def _zeros(layer: LayerRow) -> str:
    """The share of natural zeros at the fewest bits, and at the most."""
    found = [row.tensor.zeros for row in sorted(layer.budgets, key=lambda row: row.bits)]
    if not found:
        return "–"
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (found[0], found[-1]))
    return f"{' … '.join(ends)} %"


def _small(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "∞" if loss > 0 else "–"


def _signed(verdict: Verdict) -> str:
    """A margin as the table is sorted by it: against quantization below zero."""
    return sortable(verdict.margin if verdict.winner == "quantize" else -verdict.margin)
