"""Judges compressed models by their outputs on samples, against the dense model's outputs, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..core.arrays import Feed, Float64
from .output_loss import OutputLoss, class_scores
from .session import Execution, open_session


@dataclass(frozen=True, eq=False)
class Loss:
    """The output loss of a model. by_sample: (samples,), whose mean `value` is; see `OutputLoss.by_sample`."""

    value: float
    by_sample: Float64


def less(after: Loss, before: Loss, clearly: bool) -> tuple[bool, float | None]:
    """Whether a loss fell, clearly: by more than the standard error of its fall; both on the same samples; and that
    error.

    The differences of the samples are what spreads: samples that both models find hard do not count as noise. With a
    single sample, or where a loss is not finite, there is no error to tell (None), and any fall counts.
    """
    if before.value == inf or after.value == inf or len(after.by_sample) < 2:
        return after.value < before.value, None
    falls = before.by_sample - after.by_sample  # (samples,)
    error = float(falls.std(ddof=1)) / sqrt(len(falls))
    return bool(np.mean(falls) > (error if clearly else 0)), error if isfinite(error) else None


class Judge:
    """Holds feeds and the dense model's outputs on them."""

    def __init__(
        self,
        dense: ir.Model,
        feeds: Sequence[Feed],
        execution: Execution,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._execution = execution
        self._scores = class_scores(dense)
        self._feeds = feeds
        session = open_session(dense, device=execution.device, threads=execution.threads)
        self._expected = []
        for feed in self._feeds:
            self._expected.append(session.run(feed))
            progress(1)

    def loss(self, model: ir.Model | Path) -> float:
        """The output loss of a model, see `OutputLoss`. Raises ModelError if it does not run."""
        return self.losses(model).value

    def losses(self, model: ir.Model | Path) -> Loss:
        """The same, of each sample too."""
        session = open_session(model, device=self._execution.device, threads=self._execution.threads)
        total = OutputLoss(self._scores)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            total.add(expected, session.run(feed))
        return Loss(total.value, total.by_sample())
