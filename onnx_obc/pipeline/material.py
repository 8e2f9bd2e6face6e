"""What a compressed model is made and judged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from ..calibration.samples import Samples
from ..core.arrays import Array
from .attempts import CorrectionReport
from .examine import Examiner
from .plan import Folded


class PartStore(Protocol):
    """Where parts of a model that were trained are kept."""

    def key(self, *parts: object) -> str:
        """The key of what is trained from these arrays and plain values, on the samples that the store belongs to."""

    def recall(self, key: str) -> Mapping[str, Array] | None:
        """What was kept under a key; None if nothing was."""

    def keep(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep what training came to, at once."""


@dataclass(frozen=True)
class Material:
    """What a compressed model is made and judged with.

    source: what the user named the model by. folded: the model. feeds: samples that corrections look at; held_out:
    those that outputs are compared on. calibration: what the report says of the data; notes: what else it says.
    examiner: measures the user's metric, if there is one. transforms: what was tried on the model before it was solved;
    untransformed: the folded model before that, where it is another one. trained: where parts that were trained are
    kept; None: nowhere.
    """

    source: object
    folded: Folded
    feeds: Samples
    held_out: Samples
    calibration: Mapping[str, Any]
    notes: Sequence[str]
    examiner: Examiner | None = None
    transforms: Sequence[CorrectionReport] = ()
    untransformed: Folded | None = None
    trained: PartStore | None = None

    @property
    def dense(self) -> ir.Model:
        """The model as the user gave it."""
        return self.folded.dense
