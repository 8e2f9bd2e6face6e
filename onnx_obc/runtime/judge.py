"""Judges compressed models by their outputs on samples, against the dense model's outputs, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from ..core.arrays import Feed
from .output_loss import OutputLoss, class_scores
from .session import Execution, open_session


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
        session = open_session(model, device=self._execution.device, threads=self._execution.threads)
        total = OutputLoss(self._scores)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            total.add(expected, session.run(feed))
        return total.value
