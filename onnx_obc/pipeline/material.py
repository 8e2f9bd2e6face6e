"""What a compressed model is made and judged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..calibration.samples import Samples


@dataclass(frozen=True)
class Material:
    """What a compressed model is made and judged with.

    source: what the user named the model by. feeds: samples that corrections look at; held_out: those that outputs are
    compared on. calibration: what the report says of the data; notes: what else it says.
    """

    source: object
    dense: ir.Model
    feeds: Samples
    held_out: Samples
    calibration: Mapping[str, Any]
    notes: Sequence[str]
