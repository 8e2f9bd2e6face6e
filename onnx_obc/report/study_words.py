"""What a study says in words and counts, for the page and the terminal alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from ..core.plural import counted
from ..study.levels import Kind, Size
from ..study.record import BudgetRow, Study, Verdict
from ..study.size import Mask

DO: dict[Kind, str] = {"quantize": "quantize", "both": "prune and quantize", "prune": "prune"}
SIZES: dict[Size, tuple[str, str]] = {
    "paper": ("paper", "16d = b: what is kept stays FP16, and the mask is free, as Kuzmin et al. (2023) count"),
    "bitmap": ("bitmap", "16d + 1 = b: the mask costs one bit for each weight"),
    "entropy": ("entropy", "16d + H(d) = b: the mask costs its entropy, as a random one does at best"),
    "bytes": ("bytes", "what the written file costs after {compression}: pruned values in float32, scales included"),
}


@dataclass(frozen=True)
class Counts:
    """The verdicts of a budget: how many layers, and by winner how many and how many of those proven, and how many
    proven of the rows alone that were solved."""

    layers: int
    won: Mapping[Kind, int]
    proven: Mapping[Kind, int]
    on_rows: Mapping[Kind, int] = field(default_factory=dict)


def knows_outputs(study: Study) -> bool:
    """Whether any layer was solved; otherwise a study is of weights alone."""
    return any(row.verdicts for layer in study.layers for row in layer.budgets)


def verdict_of(row: BudgetRow, size: Size, outputs: bool) -> Verdict | None:
    """The verdict by a convention: of the layer's outputs, or, if those of no layer are known, of its weight alone."""
    if outputs:
        return row.verdicts.get(size)
    if size not in get_args(Mask):
        return None
    pruned = next(snr for mask, snr in row.tensor.pruned.items() if mask == size)
    if pruned is None:
        return Verdict("quantize", math.inf, False)
    margin = 0.0 if row.tensor.quantized == pruned else row.tensor.quantized - pruned
    return Verdict("quantize" if margin >= 0 else "prune", abs(margin), False)


def counts(study: Study, bits: int, size: Size) -> Counts | None:
    """The verdicts of a budget by a convention, with data of the layers that were solved; None if there are none."""
    rows = [row for layer in study.layers for row in layer.budgets if row.bits == bits]
    outputs = knows_outputs(study)
    verdicts = [verdict for row in rows if (verdict := verdict_of(row, size, outputs)) is not None]
    won = Counter(verdict.winner for verdict in verdicts)
    proven = Counter(verdict.winner for verdict in verdicts if verdict.proven)
    on_rows = Counter(verdict.winner for verdict in verdicts if verdict.on_rows and not verdict.proven)
    return Counts(len(verdicts), won, proven, on_rows) if verdicts else None


def judged_by(study: Study) -> Size:
    """The convention that headlines go by: the study's; the paper's for weights alone, where bytes are not known."""
    return study.size if knows_outputs(study) else "paper" if study.size == "bytes" else study.size


def headline(study: Study, bits: int) -> str:
    """One sentence for a budget: what to do with how many layers, and how many of the rankings are proven."""
    size = judged_by(study)
    found = counts(study, bits, size)
    start = f"At {bits} bits per weight"
    if not knows_outputs(study):
        start += f", by the weights alone ({convention(size)})"
    if found is None:
        return f"{start}: no layer could be studied."
    parts: list[str] = []
    for kind in sorted(DO, key=lambda kind: -found.won.get(kind, 0)):
        if number := found.won.get(kind, 0):
            of = "" if parts else f" of {counted(found.layers, 'layer')}"
            proven, on_rows = found.proven.get(kind, 0), found.on_rows.get(kind, 0)
            sure = f", {proven} proven" if proven else ""
            parts.append(
                f"{DO[kind]} {number}{of}{sure}" + (f", {on_rows} proven of the rows solved" if on_rows else "")
            )
    return f"{start}: {'; '.join(parts)}."


def chunk_sentence(study: Study, bits: int) -> str | None:
    """What was proven of a budget's chunks; None where there are none."""
    rows = [row for row in study.chunks if row.bits == bits]
    if not rows:
        return None
    proven = Counter(row.proven for row in rows)
    kinds: tuple[tuple[Kind, str], ...] = (("quantize", "quantized"), ("prune", "pruned"))
    exact = {kind: share(sum(row.exact[kind] for row in rows), len(rows)) for kind, _ in kinds}
    reached = " and ".join(f"{exact[kind]} of the {word}" for kind, word in kinds)
    return (
        f"Of {len(rows):,} chunks of up to {study.chunk} columns: {proven['quantize']:,} proven to be better "
        f"quantized, {proven['prune']:,} better pruned, {proven[None]:,} open; exact optimum reached for {reached}."
    )


def convention(size: Size) -> str:
    """How a sentence names a convention of equal size."""
    return "paper's convention" if size == "paper" else f"equal size: {size}"


def meaning(study: Study, size: Size) -> str:
    """What a convention of equal size means, for densities d and budgets of b bits."""
    return SIZES[size][1].format(compression=study.compression)


def caveats(study: Study) -> list[str]:
    """What the figures do not say."""
    means = "Equal size is a convention: what a mask costs decides close cases, see the table of conventions."
    if not knows_outputs(study):
        why = "It ended before a layer was solved" if study.samples else "There was no data"
        alone = (
            f"{why}: nothing is known about outputs. A weight's own error is what a layer loses only if all of its "
            "inputs are equally large and unrelated, and nothing makes up for what was lost."
        )
        return [alone, "By magnitude and by rounding to the nearest, nothing is proven.", means]
    said = [
        "A layer's SNR is not the accuracy of the model: errors of layers add up, cancel, or change no answer.",
        "Bounds hold for so many zeros, in these patterns, on these grids, and for the damped Hessian solved for.",
        means,
    ]
    if study.chunks:
        said.append(
            "A chunk has a target of its own, the grid of its row, and its density rounded up: it shows what is true "
            "of small problems like it, and proves nothing of its layer."
        )
    done = [(layer, layer.groups * layer.rows) for layer in study.layers if layer.studied]
    partly = [(layer, rows) for layer, rows in done if layer.studied < rows]
    if partly:
        solved, rows = sum(layer.studied for layer, _ in done), sum(rows for _, rows in done)
        said.append(
            f"{solved:,} of {rows:,} rows were solved; in {counted(len(partly), 'layer')} a part of them, drawn at "
            "random: there proofs are about these rows alone (--rows 0 solves all)."
        )
    return said


def left(study: Study) -> list[tuple[str, str]]:
    """The layers without figures, and why; with data also those that were not reached."""
    found = [(layer.name, layer.reason) for layer in study.layers if layer.reason is not None]
    if knows_outputs(study):
        rows = [x for x in study.layers if x.reason is None and not any(row.verdicts for row in x.budgets)]
        found += [(layer.name, "not solved: of its weight alone there are figures") for layer in rows]
    return found


def notes_of(study: Study) -> list[str]:
    """The notes on the whole study, and that it was ended early."""
    ended = "interrupted: what stands here was finished before"
    return [*study.notes, *([ended] if study.interrupted and ended not in study.notes else [])]


def by_note(study: Study) -> list[tuple[str, Sequence[str]]]:
    """Every note on layers once, with the layers it is about."""
    found: dict[str, list[str]] = {}
    for layer in study.layers:
        for note in layer.notes:
            found.setdefault(note, []).append(layer.name)
    return list(found.items())


def db(value: float | None, digits: int = 1) -> str:
    """An SNR as tables show it: a dash where it is not known."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def figure(value: float | None) -> str:
    """A figure to three digits."""
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def share(part: int, whole: int) -> str:
    """A share in per cent, never rounded to all or none of it."""
    percent = round(100 * part / whole)
    if 0 < part < whole:
        percent = min(max(percent, 1), 99)
    return f"{percent} %"
