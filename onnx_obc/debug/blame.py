"""What it gains to return one layer alone to what it was, measured on the outputs of the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Feed
from ..core.errors import ModelError
from ..runtime.output_loss import OutputLoss
from ..runtime.session import Execution, open_session
from .match import Matched
from .parts import Replacement, put_back
from .record import Remedy, Return, ValueRow, to_db
from .walk import Error
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

    def quality(self, outputs: object) -> Quality:
        """Outputs, feed by feed."""
        loss, errors = OutputLoss(self.scores), {}
        for wanted, found in zip(self.wanted, outputs, strict=True):  # type: ignore[call-overload]
            loss.add(wanted, found)
            for name, array in wanted.items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    errors.setdefault(name, Error()).add(array, found[name])
        return Quality(loss.value, max((error.relative for error in errors.values()), default=0.0))


def returns(
    matched: Matched,
    located: Sequence[Located],
    values: Mapping[str, ValueRow],
    bench: Bench,
    types: Mapping[str, np.dtype[np.generic]],
    progress: Callable[[int, int], None],
) -> tuple[list[Return], int]:
    """The layers whose return gains most, and how many were tried. values: by name. Raises ModelError."""
    candidates = sorted((one for one in located if _own(one, values) > 0), key=lambda one: -_own(one, values))
    candidates = candidates[:MOST_TRIED]
    before = bench.judge(matched.compressed.model)
    found = []
    for one in candidates:
        row = _returned(matched, one, values, bench, types, before)
        if row is not None:
            found.append(row)
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


def _returned(
    matched: Matched,
    one: Located,
    values: Mapping[str, ValueRow],
    bench: Bench,
    types: Mapping[str, np.dtype[np.generic]],
    before: Quality,
) -> Return | None:
    row = values[str(one.row.value)]
    fault: str = "weights" if (row.weights or 0.0) >= (row.activations or 0.0) else "activations"
    given = {}
    if one.narrow and one.layer is not None:
        given = {one.row.name: (one.layer, rounded_to_int8(one.layer))}
    try:
        whole = bench.judge(put_back(matched, one.parts, Replacement({}, quantized_inputs=False), types))
        weights = bench.judge(put_back(matched, one.parts, Replacement(given, quantized_inputs=True), types))
    except ModelError:
        return None  # of a part with bodies
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
        fault=fault,  # type: ignore[arg-type]
    )


def _gained(before: Quality, after: Quality) -> float:
    return 0.0 if before.loss == after.loss else before.loss - after.loss
