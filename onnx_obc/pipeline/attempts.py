"""The record of what was tried to bring a model's outputs nearer to the dense model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..calibration.samples import Samples
from ..runtime.judge import Judge, clearly_less
from ..runtime.session import Execution


@dataclass(frozen=True)
class CorrectionReport:
    """One attempt to correct statistics, or to do better in another way.

    kinds: what was corrected: the output of layers that had a BatchNormalization behind them (mean and variance), the
    output of other normalisations (mean and variance), the bias of other layers (mean); or `global AdaPrune`,
    `sequential`, `rounding`, `scale migration`. sites: at how many places.
    loss_before, loss_after: the output loss, see `OutputLoss`, on the samples that were held out, and, where these are
    few, on others that the correction did not look at; on the calibration samples where none could be held out.
    standard_error: of the difference, over these samples; None where it cannot be told. kept: whether the loss fell by
    more than that, and the correction stayed.
    """

    kinds: tuple[str, ...]
    sites: int
    loss_before: float
    loss_after: float
    standard_error: float | None
    kept: bool


def compared(
    kind: str, sites: int, models: Iterable[ir.Model], dense: ir.Model, held_out: Samples, execution: Execution
) -> CorrectionReport:
    """The record of an attempt of this kind, at so many places: two models, without it and with it, judged on samples
    that were held out."""
    judge = Judge(dense, list(held_out.feeds()), execution)
    before, after = (judge.losses(model) for model in models)
    kept, error = clearly_less(after, before)
    return CorrectionReport((kind,), sites, before.value, after.value, error, kept)
