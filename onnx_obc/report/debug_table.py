"""What debugging found, as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.errors import shortened
from ..debug.record import Debug
from . import debug_words as words
from .table import Column, fitted_table


def debug_table(found: Debug, width: int) -> RenderableType:
    """Every layer, what gains most, the samples that lose most, and what there is to say."""
    lines: list[RenderableType] = []
    if found.layers:
        lines.append(_layers(found, width))
        lines.append(Text("dB: 20 · log₁₀(‖y‖ / ‖y − ŷ‖) of the layer's output; less is worse"))
    lines += [Text(words.headline(found)), Text(words.first_sentence(found))]
    if said := words.entering(found):
        lines.append(Text(said))
    lines.append(Text(words.optimised_sentence(found), "yellow" if found.optimised else ""))
    if found.returns:
        lines.append(_returns(found, width))
        lines.append(
            Text(f"each returned alone, of {found.tried} that were tried; loss now {words.figure(found.loss)}")
        )
    if found.worst and not found.equal:
        samples = "; ".join(f"{shortened(row.name, 60)}: {words.figure(row.loss)}" for row in found.worst)
        lines.append(Text(f"highest output loss: {samples}"))
    lines += [Text(f"note: {note}", "yellow") for note in found.notes]
    return Group(*lines)


def _layers(found: Debug, width: int) -> RenderableType:
    rows = [(layer, found.value_of(layer)) for layer in found.layers]
    names = [layer.name + (" ¹" if words.layer_note(layer) else "") for layer, _ in rows]
    table = fitted_table(
        names,
        [
            Column("op", [layer.op for layer, _ in rows], rank=6, left=True),
            Column("weights", [layer.form for layer, _ in rows], rank=4, left=True),
            Column("dB", [words.db(None if row is None else row.error) for _, row in rows]),
            Column("× input's", [words.times(None if row is None else row.gain) for _, row in rows], rank=3),
            Column("by weights", [words.db(None if row is None else row.weights) for _, row in rows], rank=1),
            Column("by inputs", [words.db(None if row is None else row.activations) for _, row in rows], rank=1),
            Column("weight itself", [words.db(layer.weight) for layer, _ in rows], rank=5),
            Column("", ["<" if row is not None and row.name == found.first else "" for _, row in rows], rank=2),
        ],
        width,
    )
    notes = dict.fromkeys(words.layer_note(layer) for layer, _ in rows if words.layer_note(layer))
    return Group(table, *(Text(f"¹ {note}") for note in notes))


def _returns(found: Debug, width: int) -> RenderableType:
    rows = found.returns
    return fitted_table(
        [row.layer for row in rows],
        [
            Column("to", [words.remedy(row) for row in rows], left=True),
            Column("at fault", [row.fault for row in rows], left=True),
            Column("loss then", [words.figure(row.loss) for row in rows], rank=2),
            Column("gained", [words.figure(row.gained) for row in rows]),
            Column("dB gained", [words.signed_db(row.gained_db) for row in rows], rank=1),
            Column("by weights alone", [words.figure(row.weights_gained) for row in rows], rank=3),
        ],
        width,
        "return",
    )
