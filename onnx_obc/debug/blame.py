"""What it gains to return one layer alone to what it was, measured on the outputs of the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core.arrays import Feed
from ..runtime.output_loss import OutputLoss
from ..runtime.session import Execution, open_session
from ..runtime.sqnr import is_float
from .match import Matched
from .record import Fault, Remedy, Return, ValueRow, to_db
from .rerun import Rerun, in_order
from .walk import Error, Walked
from .weights import Located, rounded_to_int8

MOST_TRIED, SHOWN = 24, 10  # layers that are returned, those with the largest errors of their own; and that are named
SUFFICES = 0.7  # of what a float layer gains, from which int8 weights are the remedy


@dataclass(frozen=True)
class Quality:
    """Outputs of a model against the dense ones: the output loss, and the relative error of the worst output."""

    loss: float
    error: float

    def gained_db(self, after: Quality) -> float:
        """By how much the SQNR is higher after."""
        before_db, after_db = to_db(self.error), to_db(after.error)
        if before_db is None or after_db is None or before_db == after_db:
            return 0.0
        return after_db - before_db


@dataclass(frozen=True, eq=False)
class Bench:
    """What models are judged on: feeds, the dense outputs on them, and which outputs are class scores."""

    feeds: Sequence[Feed]
    wanted: Sequence[Feed]
    scores: frozenset[str]
    execution: Execution

    def judge(self, model: ir.Model) -> Quality:
        """A model as ONNX says what it does. Raises ModelError."""
        session = open_session(model, device=self.execution.device, threads=self.execution.threads, fuse=False)
        return self.quality(session.run(feed) for feed in self.feeds)

    def quality(self, outputs: Iterable[Feed]) -> Quality:
        """Outputs, feed by feed."""
        errors: dict[str, Error] = {}
        loss = OutputLoss(self.scores)
        for wanted, found in zip(self.wanted, outputs, strict=True):
            loss.add(wanted, found)
            for name, array in wanted.items():
                if is_float(array):
                    errors.setdefault(name, Error()).add(array, found[name])
        return Quality(loss.value, max((error.relative for error in errors.values()), default=0.0))


def returns(
    matched: Matched,
    located: Sequence[Located],
    walked: Walked,
    bench: Bench,
    progress: Callable[[int, int], None],
) -> tuple[list[Return], int]:
    """The layers whose return gains most, and how many were tried. Raises ModelError."""
    values = {row.name: row for row in walked.values}
    candidates = sorted((one for one in located if _own(one, values) > 0), key=lambda one: -_own(one, values))
    candidates = in_order(matched, candidates[:MOST_TRIED])
    before = bench.judge(matched.compressed.model)
    rerun = Rerun(matched, candidates, walked, bench.feeds, bench.execution)
    found = []
    for one in candidates:
        narrow = {one.row.name: rounded_to_int8(one.layer)} if one.narrow and one.layer is not None else {}
        outputs = rerun(one, narrow)
        if outputs is not None:
            qualities = [bench.quality(each) for each in outputs]
            found.append(_return(one, values[str(one.row.value)], before, qualities[0], qualities[1]))
        progress(1, len(candidates))
    found.sort(key=lambda row: (-_comparable(row.gained), -row.gained_db))
    return found[:SHOWN], len(found)


def _comparable(gained: float) -> float:
    return -math.inf if math.isnan(gained) else gained


def _own(one: Located, values: Mapping[str, ValueRow]) -> float:
    """A layer's own error, of weights and inputs together."""
    row = values.get(one.row.value or "")
    if row is None:
        return 0.0
    return math.hypot(row.weights or 0.0, row.activations or 0.0)


def _return(one: Located, row: ValueRow, before: Quality, whole: Quality, weights: Quality) -> Return:
    """What a layer's return gains: `whole`, as in the dense model; `weights`, its weights alone."""
    fault: Fault = "weights" if (row.weights or 0.0) >= (row.activations or 0.0) else "activations"
    gained, by_weights = _gained(before, whole), _gained(before, weights)
    suffices = one.narrow and by_weights > 0 and by_weights >= SUFFICES * gained
    remedy: Remedy = "int8" if suffices else "float"
    after = weights if suffices else whole
    return Return(
        layer=one.row.name,
        remedy=remedy,
        loss=after.loss,
        gained=_gained(before, after),
        gained_db=before.gained_db(after),
        weights_gained=by_weights,
        fault=fault,
    )


def _gained(before: Quality, after: Quality) -> float:
    return 0.0 if before.loss == after.loss else before.loss - after.loss
