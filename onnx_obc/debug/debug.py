"""Where a compressed file loses its accuracy: both files value by value, and each layer returned to what it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.samples import Samples
from ..calibration.split import first_samples
from ..core.arrays import Feed
from ..core.errors import ModelError, RecipeError
from ..core.progress import Feedback
from ..correction.transforms.channel_orders import in_same_order
from ..graph.half import BFLOAT16, widen
from ..graph.layers import find_layers
from ..graph.model import input_specs, read_model
from ..graph.save import save_model
from ..pipeline.plan import prepare
from ..runtime.output_loss import OutputLoss, class_scores
from ..runtime.session import Execution, is_finite, open_session
from ..runtime.sqnr import agreement_db, is_float
from ..targets.agreement import disagreement
from ..targets.registry import TARGETS
from .blame import Bench, returns
from .match import Matched, match
from .normal import normal_form, opset_of
from .parts import with_float_activations
from .record import Debug, OutputRow, SampleRow, to_db
from .walk import Error, walk
from .weights import Located, locate

SAMPLES = 64  # that are run unless more are asked for
PROBED = 4  # samples that tell values apart
WORST = 5  # samples that are named
DOMINANT = 0.5  # the share of the output loss from which a sample is said to make it up
SAME_DB = 30.0  # agreement of the normal form with the file itself, from which it is said that they differ
UNLIKE = 1.0  # the error of a layer's weights, in the middle of all layers, from which the models are unrelated

Source: TypeAlias = str | Path | bytes | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class DebugOptions:
    """threshold: the SQNR in decibels below which a value is out of order."""

    threshold: float = 20.0

    def check(self) -> None:
        """Raise RecipeError for what means nothing."""
        if not np.isfinite(self.threshold):
            raise RecipeError(f"--threshold {self.threshold}: give decibels, such as 20")


def debug_models(
    dense: Source,
    compressed: Source,
    calibration: object = "random",
    options: DebugOptions = DebugOptions(),
    *,
    data: DataOptions | None = None,
    execution: Execution = Execution(device="cpu"),
    feedback: Feedback | None = None,
) -> Debug:
    """Find where a compressed model departs from the dense one that it was made from, whoever made it.

    calibration, data: as for `compress`; random numbers unless they are given, on which integers look worse than they
    are. Raises ModelError where the two do not belong together, CalibrationError for data that cannot be used.
    """
    options.check()
    feedback = feedback or Feedback()
    given = read_model(dense), read_model(compressed)
    first, second = (widen(model) for model in given)
    check_alike(first, second)
    plain, first = first, in_same_order(first, second)
    data = data or DataOptions()
    if isinstance(calibration, str) and calibration == "random":
        data = replace(data, allow_random=True)
    samples = open_samples(calibration, input_specs(first), data, first)
    if data.samples is None and samples.count > SAMPLES:
        samples = first_samples(samples, SAMPLES)
    run = _Run(first, second, samples, execution)
    notes = [*samples.notes_on_values(), *run.notes]
    if (plain, second) != given:
        notes.append("half precision was computed in float32: what it loses by itself is not in these figures")
    opset = max(opset_of(first), opset_of(second))
    normal, said = zip(*(normal_form(model, opset) for model in (first, second)), strict=True)
    notes += [note for each in said for note in each]
    probe = _first(run.feeds[0], PROBED, run.counts[0])
    matched = match(normal[0], normal[1], probe, execution)
    located = locate(matched, find_layers(prepare(first).model)[0])
    _check_related(matched, located)
    names = {str(end.name): one.row.name for one in located for end in [part.end for part in one.parts]}
    walked = walk(matched, run.feeds, names, execution, lambda d, t: feedback.progress("walk", d, t))
    bench = Bench(run.feeds, run.wanted, class_scores(first), execution)
    notes += _notes(run, matched, located)
    found, tried = returns(matched, located, walked, bench, lambda d, t: feedback.progress("return", d, t))
    runs = widen(given[1], (BFLOAT16,)) is given[1]  # of bfloat16 onnxruntime has next to no kernels
    with _as_file(compressed if runs else second, second) as path:
        optimised = _optimised(path, run)
    worst, loss = run.worst(bench.scores), bench.quality(run.found).loss
    if samples.count > 1 and worst and worst[0].loss > DOMINANT * samples.count * loss > 0:
        notes.append(
            f"{worst[0].name} alone makes up most of the output loss: returns are about it; give more --samples"
        )
    return Debug(
        dense=_name(dense),
        compressed=_name(compressed),
        source=samples.source,
        samples=samples.count,
        synthetic=samples.synthetic,
        threshold=options.threshold,
        loss=loss,
        weights_loss=bench.judge(with_float_activations(matched.compressed.model)).loss,
        outputs=tuple(run.outputs()),
        optimised=optimised,
        first=next((row.name for row in walked.values if (to_db(row.error) or 0) < options.threshold), None),
        values=tuple(walked.values),
        layers=tuple(one.row for one in located),
        returns=tuple(found),
        tried=tried,
        worst=tuple(worst[:WORST]),
        unmatched=tuple(str(root.name) for root in matched.dense.place if root not in matched.pairs),
        notes=tuple(dict.fromkeys(notes)),
    )


def check_alike(dense: ir.Model, compressed: ir.Model) -> None:
    """Raise ModelError unless both have the same inputs and float outputs."""
    one, other = ({spec.name: spec for spec in input_specs(model)} for model in (dense, compressed))
    if missing := sorted(one.keys() - other.keys()) or sorted(other.keys() - one.keys()):
        where = "dense" if missing[0] in one else "compressed"
        raise ModelError(
            f"only the {where} model has an input {missing[0]!r}: these are not the same model; name the file that the "
            "compressed one was made from"
        )
    for name, spec in one.items():
        fits = len(spec.shape) == len(other[name].shape) and all(
            a is None or b is None or a == b for a, b in zip(spec.shape, other[name].shape, strict=True)
        )
        if not fits or spec.dtype != other[name].dtype:
            raise ModelError(
                f"input {name!r} is {spec.words} in the dense model and {other[name].words} in the compressed one; "
                "name the file that the compressed one was made from"
            )
    outputs = [{str(value.name): value for value in model.graph.outputs} for model in (dense, compressed)]
    if missing := sorted(outputs[0].keys() - outputs[1].keys()) or sorted(outputs[1].keys() - outputs[0].keys()):
        where = "dense" if missing[0] in outputs[0] else "compressed"
        raise ModelError(
            f"only the {where} model has an output {missing[0]!r}: these are not the same model; name the file that "
            "the compressed one was made from"
        )
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    if all(value.dtype is not None and value.dtype not in floats for value in outputs[0].values()):
        kinds = [
            f"{name} is {value.dtype.name.lower()}" for name, value in outputs[0].items() if value.dtype is not None
        ]
        raise ModelError(
            f"no output is float ({', '.join(kinds)}): errors cannot be measured; leave out their last step"
        )


class _Run:
    """Both files on all samples, as ONNX says and with the runtime's optimisations. Raises ModelError."""

    def __init__(self, dense: ir.Model, compressed: ir.Model, samples: Samples, execution: Execution) -> None:
        self.dense, self.compressed, self.samples, self.execution = dense, compressed, samples, execution
        batches = list(samples.read(0, samples.count))
        self.feeds = [batch.feed for batch in batches]
        self.places = [(batch.first, batch.count) for batch in batches]
        self.counts = [batch.count for batch in batches]
        self.wanted = self._outputs(dense, fuse=False)
        self.found = self._outputs(compressed, fuse=False)
        self.notes: list[str] = []
        if not any(is_float(array) for array in self.wanted[0].values()):
            raise ModelError("no output is float: errors cannot be measured; give the model without its last step")
        if not all(is_finite(array) for feed in self.wanted for array in feed.values() if is_float(array)):
            self.notes.append(
                "the dense outputs hold NaN or infinity, which do not count; check the model and the data"
            )
        self.fused = [_agreement(self._outputs(model, fuse=True), plain) for model, plain in self._both()]

    def _both(self) -> list[tuple[ir.Model, list[Feed]]]:
        return [(self.dense, self.wanted), (self.compressed, self.found)]

    def _outputs(self, model: ir.Model, fuse: bool) -> list[Feed]:
        session = open_session(model, device=self.execution.device, threads=self.execution.threads, fuse=fuse)
        return [session.run(feed) for feed in self.feeds]

    def outputs(self) -> Iterator[OutputRow]:
        """The float outputs."""
        for name in self.wanted[0]:
            if is_float(self.wanted[0][name]):
                total = Error()
                for wanted, found in zip(self.wanted, self.found, strict=True):
                    total.add(wanted[name], found[name])
                yield OutputRow(name, total.relative, self.fused[1][name], self.fused[0][name])

    def worst(self, scores: frozenset[str]) -> list[SampleRow]:
        """The samples with the highest output loss."""
        rows = []
        for (first, count), wanted, found in zip(self.places, self.wanted, self.found, strict=True):
            floats = {name: array for name, array in wanted.items() if is_float(array)}
            single = all(array.ndim and len(array) == count for array in floats.values())
            for number in range(count) if single else (0,):
                one = {name: array[number : number + 1] if single else array for name, array in floats.items()}
                other = {name: found[name][number : number + 1] if single else found[name] for name in floats}
                loss = OutputLoss(scores)
                loss.add(one, other)
                name = self.samples.name_of(first + number)
                if not single and count > 1:
                    name += f" to {self.samples.name_of(first + count - 1)}"
                rows.append(SampleRow(name, loss.value))
        return sorted(rows, key=lambda row: -row.loss)


def _agreement(ones: Sequence[Feed], others: Sequence[Feed]) -> dict[str, float]:
    """How close float outputs are, the worst feed of each."""
    return {
        name: min(agreement_db(other[name], one[name]) for one, other in zip(ones, others, strict=True))
        for name, array in ones[0].items()
        if is_float(array)
    }


def _first(feed: Feed, most: int, count: int) -> Feed:
    """The first samples of a feed, where all inputs have as many."""
    single = all(array.ndim and len(array) == count for array in feed.values())
    return {name: np.ascontiguousarray(array[:most]) for name, array in feed.items()} if single else feed


def _check_related(matched: Matched, located: Sequence[Located]) -> None:
    if located and not any(one.parts for one in located):
        raise ModelError(
            "no layer of the dense model has a counterpart in the compressed one: these are different models; name the "
            "file that the compressed one was made from"
        )


def _notes(run: _Run, matched: Matched, located: Sequence[Located]) -> Iterator[str]:
    if run.samples.synthetic:
        yield (
            "random numbers: ranges that were calibrated on data clip them, so that a file with integer activations "
            "looks worse than it is; give --calib data like what the model will see"
        )
    elif run.samples.count == 1:
        yield "one sample: errors and gains are those of it alone; give more with --calib"
    own = agreement_normal(run, matched)
    if own < SAME_DB:
        yield (
            f"errors are measured on the compressed graph as floats and Q/DQ, which is {own:.1f} dB close to the file: "
            "roundings fall another way, or an operator is not understood"
        )
    errors = [one.row.weight for one in located if one.row.weight is not None]
    if len(errors) > 2 and float(np.median(errors)) > UNLIKE:
        yield "most weights have nothing in common with the dense ones: was the compressed file made from this model?"
    missing = [one.row.name for one in located if not one.parts]
    if missing:
        yield f"not matched: {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")


def agreement_normal(run: _Run, matched: Matched) -> float:
    """How close the compressed graph in normal form is to the file, in decibels: the worst output on the first feed."""
    session = open_session(matched.compressed.model, device="cpu", threads=run.execution.threads, fuse=False)
    found = _agreement([session.run(run.feeds[0])], [run.found[0]])
    return min(found.values(), default=float("inf"))


def _optimised(path: Path, run: _Run) -> str | None:
    """Which output the runtime computes otherwise with its optimisations, in words; None if none."""
    found = disagreement(
        path, TARGETS["onnxruntime"].engine, run.feeds[0], run.execution.threads, dense=dict(run.wanted[0])
    )
    if found is None:
        return None
    where = f", from {found.node} on" if found.node else ""
    return f"with its graph optimisations onnxruntime computes another {found.output}{where}: {found.db:.1f} dB"


@contextmanager
def _as_file(source: Source, model: ir.Model) -> Iterator[Path]:
    if isinstance(source, str | Path):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        yield path


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the model"
