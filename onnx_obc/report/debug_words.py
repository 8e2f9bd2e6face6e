"""The words of what debugging found, which the terminal and the page share."""

from __future__ import annotations

import math

from ..core.plural import counted
from ..debug.record import Debug, LayerRow, Return, ValueRow, to_db


def db(error: float | None) -> str:
    """A relative error in decibels."""
    found = to_db(error)
    if found is None:
        return "–"
    return ("∞" if found > 0 else "−∞") if math.isinf(found) else f"{found:.1f}".replace("-", "−")


def times(gain: float | None) -> str:
    """How many times larger an error is behind than before."""
    return "–" if gain is None or not math.isfinite(gain) else f"{gain:.2f}"


def figure(value: float) -> str:
    """A loss, or a difference of two."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:.3g}".replace("-", "−")


def signed_db(value: float) -> str:
    """A difference in decibels."""
    return f"{value:+.1f}".replace("-", "−") if math.isfinite(value) else figure(value)


def larger(row: ValueRow | None) -> str:
    """Which of a layer's own errors is the larger one."""
    if row is None or (row.weights is None and row.activations is None):
        return ""
    return "weights" if (row.weights or 0.0) >= (row.activations or 0.0) else "activations"


def remedy(row: Return) -> str:
    """What a layer returns to."""
    return "float" if row.remedy == "float" else "int8 weights"


def headline(debug: Debug) -> str:
    """What there is to say first."""
    if debug.equal:
        return "Both files compute the same: every value that they share agrees to the last bit."
    worst = max((row.error for row in debug.outputs), default=0.0)
    said = f"Outputs agree to {db(worst)} dB, output loss {figure(debug.loss)}"
    if any(row.activations is not None for row in debug.values):
        said += f"; with all activations back in float {figure(debug.weights_loss)}"
    return f"{said}."


def first_sentence(debug: Debug) -> str:
    """Where the threshold is left."""
    if debug.first is None:
        return f"No value is below {debug.threshold:g} dB."
    row = next(row for row in debug.values if row.name == debug.first)
    where = f", the output of {row.layer}" if row.layer and row.layer != row.name else ""
    return f"The first value below {debug.threshold:g} dB: {row.name}{where}, {db(row.error)} dB."


def entering(debug: Debug) -> str:
    """Where most error enters."""
    rows = [(max(row.weights or 0.0, row.activations or 0.0), row) for row in debug.values]
    most, row = max(rows, key=lambda entry: entry[0], default=(0.0, None))
    if row is None or most == 0:
        return ""
    return f"Most error enters at {row.layer or row.name}, with its {larger(row)}: {db(most)} dB by itself."


def optimised_sentence(debug: Debug) -> str:
    """What the runtime's optimisations change."""
    if debug.optimised is not None:
        return f"Optimised ≠ unoptimised: {debug.optimised}."
    closest = min((row.optimised_db for row in debug.outputs), default=math.inf)
    how = "agree to the last bit" if math.isinf(closest) and closest > 0 else f"agree to {closest:.1f} dB"
    return f"With and without the runtime's graph optimisations the compressed outputs {how}."


def layer_note(layer: LayerRow) -> str:
    """What else there is to say of a layer."""
    if layer.reason is not None:
        return layer.reason
    if not layer.others:
        return ""
    return f"measured together with {layer.others[0]}" + (
        f" and {counted(len(layer.others) - 1, 'other')}" if len(layer.others) > 1 else ""
    )
