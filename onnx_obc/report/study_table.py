"""A study, and the theory alone, as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.plural import counted
from ..study.levels import Kind, Size
from ..study.paper import theory
from ..study.record import LayerRow, Study, Verdict
from ..study.size import Mask
from ..study.theory import BITS
from . import study_words as words
from .table import Column, fitted_table
from .theory_page import FAMILY_NAMES, by_bits, by_mask, together

_NAMED = 3  # layers that a note names of all that it is about
_ROOM = 24  # what names get at least before verdicts are shortened to letters


def study_table(study: Study, width: int) -> RenderableType:
    """What a study shows when it is done: a sentence for each budget, every layer, conventions, whole models, notes."""
    budgets = sorted(study.bits)
    lines: list[RenderableType] = []
    for bits in budgets:
        lines.append(Text(words.headline(study, bits), "bold"))
        if said := words.chunk_sentence(study, bits):
            lines.append(Text(said))
    lines += [_layer_table(study, budgets, width), _conventions(study, budgets)]
    if study.whole:
        lines.append(_whole(study))
    for note, about in words.by_note(study):
        lines.append(Text(f"¹ {_some(about)}: {note}"))
    for reason, about in _by_reason(study):
        lines.append(Text(f"without figures: {_some(about)}: {reason}", "yellow"))
    lines += [Text(f"note: {note}", "yellow") for note in words.notes_of(study)]
    lines += [Text(said, "dim") for said in words.caveats(study)]
    return Group(*lines)


def theory_table(width: int) -> RenderableType:
    """The tables of the theory. width: of the terminal; distributions show fewer budgets where it is narrow."""
    found = theory()
    normal = _plain_table("b", "δ*", "INT dB", "sym dB", "mid dB", "P(code 0)", "sparsity", "threshold", "pruned dB")
    for row in found.gaussian:
        snrs = [words.db(value, 3) for value in (row.int_snr, row.sym_snr, row.mid_snr)]
        zeros, sparsity, threshold = (f"{value:.4f}" for value in (row.zeros, row.sparsity, row.threshold))
        cells = [f"{row.delta:.5f}", *snrs, zeros, sparsity, threshold, words.db(row.pruned, 3)]
        normal.add_row(str(row.bits), *cells)
    rows = [[f"{words.db(x.quantized, 2)} / {words.db(x.pruned, 2)}" for x in each.rows] for each in found.others]
    columns = [Column("kurtosis", [f"{each.kurtosis:.2f}" for each in found.others], rank=1)]
    for i, bits in enumerate(BITS):
        columns.append(Column(f"{bits} bits", [row[i] for row in rows], rank=0 if bits in (2, 4, 8) else 2 + i))
    others = fitted_table([each.name for each in found.others], columns, width, "INT / pruned, dB")
    names = list(FAMILY_NAMES.values())
    crossing = _plain_table("b", "r", "kurtosis", "SNR dB", "shape", "kurtosis", "SNR dB")
    for bits, families in by_bits(found.crossings):
        cells = []
        for family in FAMILY_NAMES:
            at = families[family].at
            known = None if at is None else [f"{at.parameter:.3f}", f"{at.kurtosis:.2f}", words.db(at.snr, 2)]
            cells += known or ["–"] * 3
        crossing.add_row(str(bits), *cells)
    both = _plain_table("", "bits", "alone", *(f"mask: {mask}" for mask in get_args(Mask)))
    for masks in by_mask(found.both):
        first = masks[0]
        both.add_row(first.name, str(first.bits), words.db(first.alone, 2), *(together(each) for each in masks))
    heads = [
        "N(0, 1), quantized to b bits, and pruned to b/16 of FP16 with a free mask:",
        "Other distributions:",
        f"Where pruning overtakes: {names[0]}, then {names[1]}:",
        "Both together: bits of what is kept × density, by what the mask costs; dB:",
    ]
    parts: list[RenderableType] = []
    for head, table in zip(heads, (normal, others, crossing, both), strict=True):
        parts += [Text(head, "bold"), table]
    return Group(*parts)


def _layer_table(study: Study, budgets: Sequence[int], width: int) -> RenderableType:
    """A row for each layer. Verdicts are words where they fit, and letters where they do not."""
    names = [layer.name + (" ¹" if layer.notes else "") for layer in study.layers]
    first = [
        Column("op", [layer.op for layer in study.layers], rank=20, left=True),
        Column("weight matrix", [f"{x.groups} × {x.rows} × {x.columns}" for x in study.layers], rank=19),
        Column("kurtosis", [words.figure(layer.kurtosis) for layer in study.layers], rank=18),
    ]
    by, known = words.judged_by(study), words.knows_outputs(study)
    room = min(_ROOM, max(map(len, names), default=0))
    for short in (False, True):
        verdicts = [
            Column(f"{bits} bits", [_verdict(layer, bits, by, short, known) for layer in study.layers], left=True)
            for bits in budgets
        ]
        if room + sum(column.width for column in verdicts) <= width:
            break
    letters = "; Q: quantize, P: prune" + (", B: both" if known else "") if short else ""
    ranked = (
        "; ✓: no solution of the other kind, quantized or pruned, could match it, (✓): on the rows that were solved"
        if known
        else ""
    )
    legend = f"what loses least, by how many dB against the best of another kind{ranked}{letters}"
    return Group(fitted_table(names, [*first, *verdicts], width), Text(legend))


def _verdict(layer: LayerRow, bits: int, size: Size, short: bool, outputs: bool) -> str:
    found = next((words.verdict_of(row, size, outputs) for row in layer.budgets if row.bits == bits), None)
    if found is None:
        return "–"
    sure = " ✓" if found.proven else " (✓)" if found.on_rows else ""
    return f"{_kind(found, short)} {words.db(found.margin)}{sure}"


def _kind(found: Verdict, short: bool) -> str:
    return found.winner[0].upper() if short else found.winner


def _conventions(study: Study, budgets: Sequence[int]) -> RenderableType:
    """How many layers are quantized, pruned and both, by each convention of equal size."""
    by = words.judged_by(study)
    kinds: tuple[Kind, ...] = ("quantize", "prune", "both") if words.knows_outputs(study) else ("quantize", "prune")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("equal size")
    for bits in budgets:
        table.add_column(f"{bits} bits", justify="right")
    for size in words.SIZES:
        cells = []
        for bits in budgets:
            found = words.counts(study, bits, size)
            won = [str(found.won.get(k, 0)) if k != "both" or size == by else "–" for k in kinds] if found else ["–"]
            cells.append(" / ".join(won))
        table.add_row(f"{size}{' *' if size == by else ''}", *cells)
    lines = [
        Text(f"layers to {' / '.join(kinds)}; * the convention above, in which blocks, patterns and both were tried")
    ]
    lines += [Text(f"{size}: {words.meaning(study, size)}", "dim") for size in words.SIZES]
    return Group(table, *lines)


def _whole(study: Study) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for title, side in (("bits", "right"), ("model", "left"), ("bits per weight", "right"), ("output loss", "right")):
        table.add_column(title, justify="left" if side == "left" else "right")
    table.add_column("recipe", overflow="fold")
    for one in study.whole:
        loss = f"{one.loss:.3g}" if math.isfinite(one.loss) else "–"
        name = one.name + (f", {counted(one.floats, 'layer')} in float" if one.floats else "")
        table.add_row(str(one.bits), Text(name), f"{one.size:.2f}", loss, Text(one.recipe or ""))
    return table


def _plain_table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right")
    return table


def _by_reason(study: Study) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for name, reason in words.left(study):
        found.setdefault(reason, []).append(name)
    return list(found.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
