"""What debugging a compressed file found: the record that tables, pages and JSON are made of.

Errors are relative, ‖y − ŷ‖ / ‖y‖ over all samples, ŷ the compressed value: 0 where both are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Fault = Literal["weights", "activations"]
Remedy = Literal["float", "int8"]


def to_db(error: float | None) -> float | None:
    """A relative error as a signal-to-noise ratio in decibels, −20 log₁₀; infinite for none, None where unknown."""
    if error is None or math.isnan(error):
        return None
    if error == 0:
        return math.inf
    return -math.inf if math.isinf(error) else -20 * math.log10(error)


@dataclass(frozen=True)
class ValueRow:
    """A value that both graphs compute.

    name: in the dense graph; compressed: in the other, in normal form. op: what computes it in the dense graph. layer:
    whose output it is, or None. error: accumulated, of the compressed model's value. weights, activations: what the
    part of the graph from the matched values before it adds where these are the dense ones: with its compressed
    constants alone, and with its quantized inputs alone; None where nothing there is compressed. gain: the error over
    the largest of the inputs' errors.
    """

    name: str
    compressed: str
    op: str
    layer: str | None
    error: float
    weights: float | None = None
    activations: float | None = None
    gain: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """A layer of the dense model, by its name there.

    value: its output, a `ValueRow`; None where it could not be matched, and `reason` says why. others: layers that its
    part of the graph holds too. form: what its weight is in the file. zeros: the share of it that is zero.
    weight: the error of the weight itself, None where the two have no common form. dynamic: whether its input is
    quantized on its own range.
    """

    name: str
    op: str
    value: str | None
    form: str = ""
    bits: int | None = None
    zeros: float | None = None
    weight: float | None = None
    others: tuple[str, ...] = ()
    reason: str | None = None
    dynamic: bool = False


@dataclass(frozen=True)
class Return:
    """What it gains to return a layer alone to what it was, measured on the whole model.

    remedy: what the layer returns to: float with a float input, or, of pruned weights and those below 8 bits, where
    that suffices, int8 weights with the input as it is. loss: the output loss then, and gained: by how much it is
    lower. gained_db: by how much the outputs' SQNR is higher. weights_gained: what the weight's return alone gains.
    fault: what makes most of the layer's own error.
    """

    layer: str
    remedy: Remedy
    loss: float
    gained: float
    gained_db: float
    weights_gained: float
    fault: Fault


@dataclass(frozen=True)
class OutputRow:
    """A float output. error: of the compressed file as ONNX says. optimised_db: how close the compressed file is to
    itself with the runtime's graph optimisations; dense_optimised_db: the same of the dense file."""

    name: str
    error: float
    optimised_db: float
    dense_optimised_db: float


@dataclass(frozen=True)
class SampleRow:
    """A sample, or a feed of the data where outputs have no row for each, and its output loss."""

    name: str
    loss: float


@dataclass(frozen=True)
class Debug:
    """All of it.

    dense, compressed: the files. samples: how many were run. values: all that were matched, in the order of the dense
    graph. first: the first of them below `threshold` decibels. loss: the output loss; weights_loss: with all
    activations back in float. optimised: what the runtime's optimisations change, in words; None if nothing. tried: how
    many layers were returned. worst: of all samples those with the highest loss.
    """

    dense: str
    compressed: str
    source: str
    samples: int
    synthetic: bool
    threshold: float
    loss: float
    weights_loss: float
    outputs: tuple[OutputRow, ...]
    optimised: str | None
    first: str | None
    values: tuple[ValueRow, ...]
    layers: tuple[LayerRow, ...]
    returns: tuple[Return, ...]
    tried: int
    worst: tuple[SampleRow, ...]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        errors = [row.error for row in self.outputs] + [row.error for row in self.values]
        return not any(errors)

    def value_of(self, layer: LayerRow) -> ValueRow | None:
        """The output of a layer."""
        return next((row for row in self.values if row.name == layer.value), None)
