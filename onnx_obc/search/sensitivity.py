"""What a level of a single layer does to the model's outputs, all other layers dense.

Layers × levels whole runs are not needed. The dense model is walked through once; at each layer what comes before it is
known, what does not depend on it is run once, and the rest is one session that takes the layer's weight as an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from ..calibration.samples import Batch
from ..core.arrays import Array, Feed, Float32
from ..core.errors import CalibrationError, ModelError
from ..core.level import FLOAT, Choice
from ..graph.edit import free_name, names_of
from ..graph.fold import remove_unused
from ..graph.layers import Layer
from ..graph.write import activation_grid
from ..runtime.output_loss import OutputLoss, class_scores
from ..runtime.session import Execution, Session, open_session
from ..runtime.stepper import Stepper

Candidates: TypeAlias = Mapping[str, Sequence[tuple[Choice, Callable[[], Float32]]]]
Span: TypeAlias = Callable[[str, int], tuple[float, float, bool]]
Task: TypeAlias = Callable[[dict[str, Array], Array | None], float]

SEPARATED = 1e-4  # of the outputs' energy: what cutting the graph in two may change


class _Loss(Protocol):
    """A loss that adds up over feeds."""

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], batch: Batch) -> None: ...

    @property
    def value(self) -> float: ...


def output_sensitivity(
    model: ir.Model,
    layers: Sequence[Layer],
    candidates: Candidates,
    batches: Sequence[Batch],
    span: Span,
    *,
    execution: Execution = Execution(),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[float, ...]]:
    """The output loss, see `OutputLoss`, of the model with one layer at one choice, for every layer and choice.

    model: folded and dense; layers: its layers. candidates: for each layer by name its choices, each with a function
    that gives the weight matrix (groups, rows, columns). batches: feeds. span: the interval of an activation for so
    many bits, and whether its integers are signed, without a zero point. A choice with activation bits quantizes the
    layer's input as well (of several uses only the first one's), not its output. Dense choices are 0 by definition.

    Returns a tuple for every layer of the candidates, in the order of its choices. progress: called with 1 for each.
    Raises ModelError if the model does not run, or if it cannot be cut in two at a layer.
    """
    scores = class_scores(model)
    walk = _Walk(model, batches, span, lambda: _Outputs(scores), execution, progress)
    return walk.run(layers, candidates)


def task_sensitivity(
    model: ir.Model,
    layers: Sequence[Layer],
    candidates: Candidates,
    batches: Sequence[Batch],
    span: Span,
    task: Task | None = None,
    *,
    execution: Execution = Execution(),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[float, ...]]:
    """The same by a task: how much its loss rises with one layer at one choice.

    task: called with the outputs of a feed by name, and its labels or None; returns a mean over the feed's samples.
    Without one it is the cross-entropy of the labels under the first output that is class scores.
    Raises CalibrationError if that needs labels which the data does not have, or if the task fails.
    """
    if task is None:
        scores = sorted(class_scores(model))
        if not scores:
            raise CalibrationError(
                "--sensitivity task: no output of this model is class scores; give --task module.py:function"
            )
        if any(batch.labels is None for batch in batches):
            raise CalibrationError(
                "--sensitivity task: the data has no labels; add an array `labels` to the .npz, put images into one "
                "folder a class, or give --task module.py:function"
            )
        name = next(str(value.name) for value in model.graph.outputs if value.name in scores)
        task = _cross_entropy(name)
    chosen = task
    walk = _Walk(model, batches, span, lambda: _Tasks(chosen), execution, progress)
    return walk.run(layers, candidates)


class _Walk:
    """One walk through a model: the dense outputs of each feed, and what has been run so far."""

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Batch],
        span: Span,
        loss: Callable[[], _Loss],
        execution: Execution,
        progress: Callable[[int], None],
    ) -> None:
        self._model, self._batches, self._span = model, batches, span
        self._loss, self._progress = loss, progress
        self._execution = replace(execution, memory=execution.memory / 2)  # two steppers are there at a time
        feeds = [batch.feed for batch in batches]
        session = open_session(model, device=execution.device, threads=execution.threads)
        self._expected = [session.run(feed) for feed in feeds]
        self._stepper = Stepper(model, feeds, self._execution)
        whole = loss()
        for expected, batch in zip(self._expected, batches, strict=True):
            whole.add(expected, expected, batch)
        self._dense = whole.value

    def run(self, layers: Sequence[Layer], candidates: Candidates) -> dict[str, tuple[float, ...]]:
        found = {}
        for layer in layers:
            if layer.name in candidates:
                found[layer.name] = self._layer(layer, candidates[layer.name])
        return found

    def _layer(self, layer: Layer, choices: Sequence[tuple[Choice, Callable[[], Float32]]]) -> tuple[float, ...]:
        use = layer.uses[0]
        try:
            self._stepper.advance([use.tap.value])
            part, feeds = self._rest(layer)
        except ModelError as error:
            raise ModelError(f"at layer {layer.name!r}: {error}; or use --sensitivity layer") from error
        weight, source = _free_inputs(part, layer)
        session = open_session(part, device=self._execution.device, threads=self._execution.threads)
        self._check(session, layer, {**feeds[0], weight: layer.weight, source: feeds[0][use.tap.value]})
        losses = []
        for choice, load in choices:
            losses.append(0.0)
            if choice == Choice(FLOAT):
                continue
            tensor, total = layer.tensor(load()), self._loss()
            for batch, expected, feed in zip(self._batches, self._expected, feeds, strict=True):
                seen = self._quantized(feed[use.tap.value], use.tap.value, choice)
                outputs = session.run({**feed, weight: tensor, source: seen})
                total.add(expected, {**expected, **outputs}, batch)
            losses[-1] = total.value - self._dense
            self._progress(1)
        return tuple(losses)

    def _rest(self, layer: Layer) -> tuple[ir.Model, list[Feed]]:
        """What depends on a layer, as a model, and its feeds; all else that it reads is run here, once."""
        part, feeds = self._stepper.rest()
        outputs = {str(use.node.outputs[0].name) for use in layer.uses}
        dependent: set[ir.Node] = set()
        reached: set[ir.Value] = set()
        for node in part.graph:
            if outputs & {v.name for v in node.outputs} or any(v in reached for v in node.inputs) or _has_body(node):
                dependent.add(node)
                reached |= set(node.outputs)
        read = [value for node in dependent for value in node.inputs if value is not None]
        needed = {str(v.name) for v in (*read, *part.graph.outputs) if v not in reached and v.producer() is not None}
        if not needed:
            return part, feeds
        ahead = Stepper(part, feeds, self._execution)
        ahead.advance(sorted(needed))
        return ahead.rest()

    def _quantized(self, x: Array, value: str, choice: Choice) -> Array:
        """An activation after QuantizeLinear and DequantizeLinear, in their arithmetic."""
        bits = choice.activation_bits
        if bits is None:
            return x
        if choice.dynamic:
            smallest, largest, symmetric = float(x.min(initial=0)), float(x.max(initial=0)), False
        else:
            smallest, largest, symmetric = self._span(value, bits)
        scale, zero = activation_grid(smallest, largest, bits, symmetric)
        low = -(2 ** (bits - 1)) if symmetric else 0
        codes = np.clip(np.rint(x / np.float32(scale)) + np.float32(zero), low, low + 2**bits - 1)
        return np.asarray((codes - np.float32(zero)) * np.float32(scale), np.float32)

    def _check(self, session: Session, layer: Layer, feed: Feed) -> None:
        """Raise ModelError unless the dense layer's outputs are the dense model's: then the cut separates."""
        expected = self._expected[0]
        for name, found in session.run(feed).items():
            wanted = expected[name]
            if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
                continue
            usable = np.isfinite(wanted) & np.isfinite(found)
            error = float(((wanted - found)[usable].astype(np.float64) ** 2).sum())
            if error > SEPARATED * float((wanted[usable].astype(np.float64) ** 2).sum()):
                raise ModelError(
                    f"what follows layer {layer.name!r} gives another {name} on its own than in the whole model, as if "
                    "it drew random numbers; use --sensitivity layer"
                )


class _Outputs:
    """The output loss."""

    def __init__(self, scores: frozenset[str]) -> None:
        self._total = OutputLoss(scores)

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], batch: Batch) -> None:
        self._total.add(expected, found)

    @property
    def value(self) -> float:
        return self._total.value


class _Tasks:
    """A task's loss, a mean over samples."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sum, self._count = 0.0, 0

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], batch: Batch) -> None:
        try:
            loss = float(self._task(dict(found), batch.labels))
        except (Exception, SystemExit) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise CalibrationError(f"--task raised {what}; call it in Python to see where") from error
        self._sum += loss * batch.count
        self._count += batch.count

    @property
    def value(self) -> float:
        mean = self._sum / max(self._count, 1)
        return mean if math.isfinite(mean) else math.inf


def _cross_entropy(output: str) -> Task:
    def task(outputs: dict[str, Array], labels: Array | None) -> float:
        scores = outputs[output].astype(np.float64)
        assert labels is not None
        if labels.shape != (len(scores),) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels are {labels.dtype.name}{list(labels.shape)}, not a class for each sample")
        if labels.min() < 0 or labels.max() >= scores.shape[-1]:
            raise ValueError(f"labels {labels.min()} … {labels.max()} for {output} of shape {scores.shape}")
        if (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):  # behind a Softmax already
            scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
        shifted = scores - scores.max(axis=1, keepdims=True)
        each = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        return float(each.mean())

    return task


def _free_inputs(part: ir.Model, layer: Layer) -> tuple[str, str]:
    """Make a layer's weight, and its first use's input, inputs of the model; returns their names.

    The old weight is taken out where nothing else reads it, so that no session has to load it.
    """
    taken = set(names_of(part))
    nodes = {str(value.name): node for node in part.graph for value in node.outputs}
    uses = [(nodes[str(use.node.outputs[0].name)], use.index) for use in layer.uses]
    node, index = uses[0]
    data = node.inputs[1 - index]
    assert data is not None
    weight, source = (
        ir.Value(name=free_name(f"{layer.name}.{end}", taken), type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        for end, shape in (("weight", ir.Shape(layer.weight.shape)), ("input", data.shape))
    )
    part.graph.inputs.extend([weight, source])
    for node, index in uses:
        node.replace_input_with(index, weight)
    uses[0][0].replace_input_with(1 - uses[0][1], source)
    remove_unused(part)
    return str(weight.name), str(source.name)


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
