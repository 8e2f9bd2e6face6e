"""The record of what was tried to bring a model's outputs nearer to the dense model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..calibration.samples import Samples
from ..core.level import Choice
from ..runtime.judge import Judge, less
from ..runtime.session import Execution

WHOLE = (("sequential",), ("reconstruction",), ("rounding",))
PLAIN_BITS = 8  # at which rounding to nearest loses next to nothing


@dataclass(frozen=True)
class CorrectionReport:
    """One attempt to correct statistics, or to do better in another way.

    kinds: what was corrected: the output of layers that had a BatchNormalization behind them (mean and variance), the
    output of other normalisations (mean and variance), the bias of other layers (mean); or `global AdaPrune`,
    `sequential`, `rounding`, `scale migration`, `channel permutation`, `reconstruction`.
    sites: at how many places.
    loss_before, loss_after: the output loss, see `OutputLoss`, on the samples that were held out, and, where these are
    few, on others that the correction did not look at; on the calibration samples where none could be held out.
    standard_error: of the difference, over these samples; None where it cannot be told. kept: whether the loss fell,
    see `must_be_clear`, and the correction stayed; of what is better to begin with (a channel permutation, few bits
    solved in order, parts trained at levels coarser than 8 bits), whether it did not clearly rise.
    """

    kinds: tuple[str, ...]
    sites: int
    loss_before: float
    loss_after: float
    standard_error: float | None
    kept: bool


def of_whole_models(attempts: Iterable[CorrectionReport]) -> tuple[CorrectionReport, ...]:
    """Those of the attempts that compared whole models: they stay true when one of these is written again."""
    return tuple(attempt for attempt in attempts if attempt.kinds in WHOLE)


def without_order(attempts: Iterable[CorrectionReport]) -> tuple[CorrectionReport, ...]:
    """The same attempts where a model goes on whose layers were solved each for itself after all."""
    return tuple(replace(one, kept=False) if one.kinds == ("sequential",) else one for one in attempts)


def is_plain(choice: Choice) -> bool:
    """Whether a layer's weights become integers of PLAIN_BITS, without zeros."""
    return choice.level.bits == PLAIN_BITS and choice.level.sparsity is None


def rounds_inputs_coarsely(choice: Choice) -> bool:
    """Whether a layer's input becomes integers of fewer than PLAIN_BITS."""
    return choice.activation_bits is not None and choice.activation_bits < PLAIN_BITS


def of_few_bits(choices: Mapping[str, Choice]) -> bool:
    """Whether weights are integers, some of fewer than PLAIN_BITS, without zeros, and inputs have at least so many."""
    levels = [choice.level for choice in choices.values()]
    integers = all(level.sparsity is None for level in levels)
    fine = not any(map(rounds_inputs_coarsely, choices.values()))
    return integers and fine and any(level.bits is not None and level.bits < PLAIN_BITS for level in levels)


def unless_clearly_worse(attempt: CorrectionReport) -> CorrectionReport:
    """The attempt, kept also where the loss rose by no more than the standard error of the difference: for what is
    better to begin with, which few samples cannot prove."""
    rise, error = attempt.loss_after - attempt.loss_before, attempt.standard_error
    return replace(attempt, kept=attempt.kept or (error is not None and rise <= error))


def must_be_clear(choices: Mapping[str, Choice]) -> bool:
    """Whether an attempt has to lower the loss by more than the standard error of the difference to be kept.

    It has where all layers are plain: what there is to gain is little, and chance as large. Coarser levels shift the
    statistics of what they compute so far that corrections help nearly always, by less than a few samples can prove.
    """
    return all(is_plain(choice) for choice in choices.values())


def compared(
    kind: str,
    sites: int,
    models: Iterable[ir.Model],
    dense: ir.Model,
    held_out: Samples,
    execution: Execution,
    clearly: bool,
) -> CorrectionReport:
    """The record of an attempt of this kind, at so many places: two models, without it and with it, judged on samples
    that were held out. clearly: see `must_be_clear`."""
    judge = Judge(dense, list(held_out.feeds()), execution)
    before, after = (judge.losses(model) for model in models)
    kept, error = less(after, before, clearly)
    return CorrectionReport((kind,), sites, before.value, after.value, error, kept)
