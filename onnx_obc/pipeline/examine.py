"""The user's own metric, of the dense model and of compressed ones, on samples of the user's choice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.readers.iterables import load_function
from ..calibration.readers.text import open_tokenizer
from ..calibration.samples import Batch, Samples, existing
from ..core.errors import CalibrationError, RecipeError, one_line
from ..core.progress import Progress
from ..graph.model import input_specs
from ..runtime.metric import Metric, Sample, cut, standard_error
from ..runtime.metrics import named_metric
from ..runtime.output_loss import class_scores
from ..runtime.session import Execution, Session, open_session

ALL = 2**62  # samples: as many as there are
TAKEN = ("outputs", "labels", "feeds")  # what a user's function may ask for, by its parameters' names
Model: TypeAlias = ir.Model | Path


@dataclass(frozen=True)
class Evaluation:
    """What a user judges models by.

    metric: a name of `runtime.metrics`, `file.py:function`, or a function whose parameters are among `outputs`,
    `labels` and `feeds`, which returns a number, the higher the better. It is called with all samples, and again with
    parts of them for the standard error: outputs and feeds are dicts of name to array, the samples along the first axis
    (a list where they differ in shape), labels the same of what the data says of each sample, or None. What it asks for
    is held in memory for all samples, of the dense and of one compressed model.
    data: as calibration data; None: the calibration samples that are held out. options: how it is read.
    """

    metric: str | Callable[..., float]
    data: object = None
    options: DataOptions | None = None


@dataclass(frozen=True)
class MetricReport:
    """A metric of the dense and the compressed model.

    drop: how much worse it is, as a fraction of the dense model's value; below 0 where it is better. standard_error: of
    that, over the samples, None where it cannot be told. higher: whether more is better.
    """

    name: str
    dense: float
    compressed: float
    drop: float
    samples: int
    standard_error: float | None
    higher: bool


class Examiner:
    """Holds the samples, and the dense model's part of the metric."""

    def __init__(
        self, dense: ir.Model, metric: Metric, samples: Samples, execution: Execution, progress: Progress
    ) -> None:
        """Raises CalibrationError if the metric cannot read the labels or the dense model's outputs."""
        self._metric, self._samples = metric, samples
        self._execution, self._progress = execution, progress
        session = open_session(dense, device=execution.device, threads=execution.threads)
        self._notes: list[Any] = []
        with _told(metric):
            for batch in self._labelled():
                self._notes += self._note(session, batch)
            self.dense = _number(metric.value(self._notes, self._notes))

    def examine(self, model: Model) -> MetricReport:
        """The metric of a compressed model. Raises CalibrationError if it is not a number."""
        with _told(self._metric):
            notes, value = self._measure(model)
            error = standard_error(self._metric, self._notes, notes)
        size = abs(self.dense)
        return MetricReport(
            name=self._metric.name,
            dense=self.dense,
            compressed=value,
            drop=self._drop(value),
            samples=len(notes),
            standard_error=None if error is None or not size else error / size,
            higher=self._metric.higher,
        )

    def drop(self, model: Model) -> float:
        """Only how much worse a model is, as in the report; infinite where the metric cannot be taken of it."""
        try:
            return self._drop(self._measure(model)[1])
        except ValueError:
            return float("inf")

    def _measure(self, model: Model) -> tuple[list[Any], float]:
        session = open_session(model, device=self._execution.device, threads=self._execution.threads)
        notes: list[Any] = []
        for batch in self._samples.read(0, self._samples.count):
            notes += self._note(session, batch)
        return notes, _number(self._metric.value(notes, self._notes))

    def _drop(self, value: float) -> float:
        size = abs(self.dense)
        worse = self.dense - value if self._metric.higher else value - self.dense
        return worse / size if size else 0.0 if worse == 0 else float("inf") if worse > 0 else float("-inf")

    def _labelled(self) -> Iterator[Batch]:
        for batch in self._samples.read(0, self._samples.count):
            if self._metric.labels and batch.labels is None:
                raise CalibrationError(
                    f"--metric {self._metric.name}: {self._samples.source} have no labels; add an array `labels` to "
                    "the .npz, put images into one folder a class, or let a function yield them beside its inputs"
                )
            yield batch

    def _note(self, session: Session, batch: Batch) -> list[Any]:
        outputs = session.run(batch.feed)
        wide = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in outputs.items()}
        found = cut(batch.feed, wide, batch.count, batch.labels)
        self._progress("metric", batch.count, 2 * self._samples.count)
        return [self._metric.note(sample) for sample in found]


def open_examiner(
    dense: ir.Model, evaluation: Evaluation | None, held_out: Samples, execution: Execution, progress: Progress
) -> Examiner | None:
    """The examiner of a model, None without an evaluation. held_out: what serves where the user names no data.

    Raises RecipeError for a metric that is not known, CalibrationError for data or a function that cannot be used.
    """
    if evaluation is None:
        return None
    options = evaluation.options or DataOptions()
    metric = _metric(evaluation.metric, dense, options)
    samples = held_out
    if evaluation.data is not None:
        every = replace(options, samples=options.samples or ALL, augment=1)
        samples = open_samples(evaluation.data, input_specs(dense), every, dense)
    return Examiner(dense, metric, samples, execution, progress)


def _metric(named: str | Callable[..., float], dense: ir.Model, options: DataOptions) -> Metric:
    if callable(named):
        return users_metric(named, getattr(named, "__name__", "the metric"))
    if match := re.fullmatch(r"(.+\.py):(\w+)", named):
        return users_metric(load_function(existing(Path(match[1])), match[2]), named)
    decode = None
    if options.tokenizer is not None:
        decode = open_tokenizer(options.tokenizer).decode
    return named_metric(named, class_scores(dense), decode)


def users_metric(function: Callable[..., float], name: str) -> Metric:
    """The metric that a user's function is; see `Evaluation`. Raises RecipeError for other parameters."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of C functions
        parameters = []
    if not parameters or not set(parameters) <= set(TAKEN):
        raise RecipeError(
            f"--metric {name}: its parameters are {', '.join(parameters) or 'none'}; name them outputs, labels or "
            "feeds, as many as it needs"
        )

    def value(samples: Sequence[Sample], dense: Sequence[Sample]) -> float:
        labels = [sample.label for sample in samples]
        given: dict[str, Callable[[], Any]] = {
            "outputs": lambda: _together([sample.outputs for sample in samples]),
            "feeds": lambda: _together([sample.feed for sample in samples]),
            "labels": lambda: None if any(label is None for label in labels) else _stacked(labels),
        }
        try:
            return float(function(**{name: given[name]() for name in parameters}))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a user's function does, sys.exit too
            raise ValueError(
                f"raised {type(error).__name__}: {one_line(error)}; call it in Python to see why"
            ) from error

    def note(sample: Sample) -> Sample:
        """What it asks for, and no more: all of the data is held at once."""
        return Sample(
            sample.feed if "feeds" in parameters else {},
            sample.outputs if "outputs" in parameters else {},
            sample.label if "labels" in parameters else None,
        )

    return Metric(name, note, value, labels="labels" in parameters)


def _together(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}


def _stacked(values: Sequence[Any]) -> Any:
    """Samples along a new first axis; a list where they differ in shape, or are no arrays."""
    arrays = [np.asarray(value) for value in values if not isinstance(value, list | dict)]
    if len(arrays) == len(values) and len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return list(values)


@contextmanager
def _told(metric: Metric) -> Iterator[None]:
    """Turns what a metric cannot read into an error that names it."""
    try:
        yield
    except ValueError as error:
        raise CalibrationError(f"--metric {metric.name}: {one_line(error)}") from error


def _number(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"it is {value}, not a number; return one for every model, also for a bad one")
    return value
