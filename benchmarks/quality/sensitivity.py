"""What it costs to find each layer's sensitivity to each level: time and operations against running whole models.

python -m benchmarks.quality.sensitivity
python -m benchmarks.quality.sensitivity --only ResNet-20   # half a minute; writes nothing
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from benchmarks.common.subjects import Subject, find_subjects, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.samples import Batch
from onnx_obc.core.arrays import Float32
from onnx_obc.core.level import Choice, Level
from onnx_obc.graph.cost import layer_costs
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.runtime import stepper
from onnx_obc.runtime.output_loss import OutputLoss, class_scores
from onnx_obc.runtime.session import Session, open_session
from onnx_obc.search import sensitivity

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("ResNet-20", "EfficientNet-Lite0")
REPEATS = 3
EVERY = {"ResNet-20": 1, "EfficientNet-Lite0": 5}  # each so-manieth layer, from the middle of the first so many
SAMPLES, BATCH = 16, 8
BITS = (8, 6, 4, 3)  # the levels: every weight rounded to so many bits
Losses = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Setting:
    """A folded model, the layers to replace, their weights at every level, feeds, and the dense outputs of each."""

    model: ir.Model
    layers: list[Layer]
    weights: dict[str, list[Float32]]
    batches: list[Batch]
    dense: list[dict[str, Any]]

    def loss(self, run: Callable[[Batch], dict[str, Any]]) -> float:
        """The output loss of what `run` gives."""
        total = OutputLoss(class_scores(self.model))
        for batch, expected in zip(self.batches, self.dense, strict=True):
            total.add(expected, run(batch))
        return total.value


@dataclass(frozen=True)
class Row:
    """Seconds of reloaded, whole and here, and the ratios of the first two to here, medians of the repeats.

    operations: here, as a fraction of all whole runs. apart: how far the losses differ at most, relatively.
    """

    name: str
    layers: int
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    operations: float
    apart: float


def prepare(subject: Subject) -> Setting:
    dense = read_model(subject.path)
    samples = open_data(dense, subject.calibration, replace(subject.options, samples=SAMPLES, batch=BATCH))
    batches = list(samples.read(0, samples.count))
    model, _ = fold(dense)
    layers = find_layers(model)[0][EVERY[subject.name] // 2 :: EVERY[subject.name]]
    session = open_session(model)
    outputs = [session.run(batch.feed) for batch in batches]
    weights = {layer.name: [rounded(layer.matrix(), bits) for bits in BITS] for layer in layers}
    return Setting(model, layers, weights, batches, outputs)


def rounded(matrix: Float32, bits: int) -> Float32:
    """A weight matrix, (groups, rows, columns), each row rounded to a symmetric grid that spans it."""
    scale = np.maximum(np.abs(matrix).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1), 1e-30)  # (groups, rows, 1)
    return (np.rint(matrix / scale) * scale).astype(np.float32)


def reloaded(setting: Setting) -> Losses:
    """The whole model, loaded anew for every layer and level."""
    found = {}
    for layer in setting.layers:
        use = layer.uses[0]
        old = use.node.inputs[use.index]
        assert old is not None and len(layer.uses) == 1
        losses = []
        for matrix in setting.weights[layer.name]:
            value = ir.Value(name="replaced", const_value=ir.Tensor(layer.tensor(matrix), name="replaced"))
            setting.model.graph.register_initializer(value)
            use.node.replace_input_with(use.index, value)
            session = open_session(setting.model)
            losses.append(setting.loss(lambda batch, session=session: session.run(batch.feed)))
            use.node.replace_input_with(use.index, old)
            del setting.model.graph.initializers["replaced"]
        found[layer.name] = tuple(losses)
    return found


def whole(setting: Setting) -> Losses:
    """The whole model, loaded once with all layers' weights as inputs."""
    model = setting.model.clone()
    dense = {}
    for layer in find_layers(model)[0]:
        shape, name = ir.Shape(layer.weight.shape), f"{layer.name}.weight"
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        model.graph.inputs.append(value)
        for use in layer.uses:
            use.node.replace_input_with(use.index, value)
        dense[name] = layer.weight
    session = open_session(model)
    found = {}
    for layer in setting.layers:
        losses = []
        for matrix in setting.weights[layer.name]:
            feed = {**dense, f"{layer.name}.weight": layer.tensor(matrix)}
            losses.append(setting.loss(lambda batch, feed=feed: session.run({**feed, **batch.feed})))
        found[layer.name] = tuple(losses)
    return found


def here(setting: Setting) -> Losses:
    candidates = {
        name: [(Choice(Level(bits=bits)), lambda m=matrix: m) for bits, matrix in zip(BITS, matrices, strict=True)]
        for name, matrices in setting.weights.items()
    }
    return sensitivity.output_sensitivity(
        setting.model, setting.layers, candidates, setting.batches, lambda value, bits: (0.0, 0.0, False)
    )


class Counted:
    """A session that counts the layers' operations in what it runs."""

    def __init__(self, session: Session, flops: int, total: list[float]) -> None:
        self._session, self._flops, self._total = session, flops, total

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        self._total[0] += self._flops
        return self._session.run(feed)


@contextmanager
def counted(setting: Setting) -> Iterator[list[float]]:
    """Counts the layers' operations in all that is run here, as a fraction of a whole run for each layer and level.

    All batches count the same. Yields a list of one number, which is the sum over all repeats once the block is left.
    """
    layers, _ = find_layers(setting.model)
    costs = layer_costs(setting.model, layers)
    flops = {str(layer.uses[0].node.outputs[0].name): costs[layer.name].flops or 0 for layer in layers}
    total = [0.0]

    def opened(model: ir.Model, *arguments: Any, **more: Any) -> Any:
        part = sum(flops.get(str(node.outputs[0].name), 0) for node in model.graph)
        return Counted(open_session(model, *arguments, **more), part, total)

    with mock.patch.object(sensitivity, "open_session", opened), mock.patch.object(stepper, "open_session", opened):
        yield total
    total[0] /= sum(flops.values()) * len(setting.batches) * len(setting.layers) * len(BITS)


def measure(subject: Subject) -> Row:
    """The three ways in turn, each the median of its repeats."""
    setting = prepare(subject)
    seconds: list[list[float]] = []
    with counted(setting) as total:
        for _ in range(REPEATS):
            found, times = zip(*(clock(way, setting) for way in (reloaded, whole, here)), strict=True)
            seconds.append(list(times))
    times = tuple(median(column) for column in zip(*seconds, strict=True))
    ratios = tuple(median(turn[way] / turn[-1] for turn in seconds) for way in (0, 1))
    return Row(subject.name, len(setting.layers), times, ratios, total[0] / REPEATS, apart(found))


def clock(way: Callable[[Setting], Losses], setting: Setting) -> tuple[Losses, float]:
    began = time.perf_counter()
    return way(setting), time.perf_counter() - began


def apart(found: Sequence[Losses]) -> float:
    """The largest relative difference between a loss of one of the ways and ours."""
    *others, ours = [np.array(list(losses.values())) for losses in found]
    return max(float((np.abs(other - ours) / other).max()) for other in others)


def page(rows: Sequence[Row]) -> str:
    """The whole markdown page."""
    header = ("model", "layers", "reloaded s", "whole s", "here s", "reloaded / here", "whole / here", "operations")
    cells = [
        (
            row.name,
            str(row.layers),
            *(f"{seconds:.1f}" for seconds in row.seconds),
            *(f"{ratio:.1f}" for ratio in row.ratios),
            f"{row.operations:.2f}",
        )
        for row in rows
    ]
    apart = "; ".join(f"{row.name} {row.apart:.0e}" for row in rows)
    return f"""# Sensitivity

`python -m benchmarks.quality.sensitivity`, on {machine()}.

Seconds to find the output loss of the model with each layer alone at each of {len(BITS)} levels: weights rounded to
{", ".join(map(str, BITS[:-1]))} and {BITS[-1]} bits, on {SAMPLES} samples in batches of {BATCH}. Of
EfficientNet-Lite0 it is every {EVERY["EfficientNet-Lite0"]}th layer.

- *reloaded*: the whole model, loaded anew for each layer and level;
- *whole*: the whole model, loaded once with all weights as inputs;
- *here*: `search/sensitivity.py`, with a session for each layer that starts at that layer.

The three take turns, and each figure is the median of {REPEATS}, a ratio that of the ratios of each turn.

*operations*: those of the layers in all that is run here, the walk through the model and the check of each cut among
them, as a fraction of a whole run for each layer and level, which both others need.

{markdown(header, cells)}

The largest relative difference between a loss found here and by another way: {apart}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--only", choices=NAMES, action="append", help="only this model")
    arguments = parser.parse_args()

    rows: list[Row] = []
    names = tuple(name for name in NAMES if name in (arguments.only or NAMES))
    with tempfile.TemporaryDirectory() as scratch:
        for subject in find_subjects(arguments.models, arguments.shared, Path(scratch), names):
            rows.append(measure(subject))
            print(rows[-1], flush=True)
    text = page(rows)
    print(text)
    if len(rows) == len(NAMES):
        (RESULTS / "sensitivity.md").write_text(text)


if __name__ == "__main__":
    main()
