"""Runs the model on calibration data and keeps, of every layer input, its Hessian, and of activations their range.

The inputs themselves are dropped as soon as they are accumulated, so memory does not grow with the number of samples.
What does not fit at once is captured in chunks, each with a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import CalibrationError
from ..graph.layers import Layer, Tap
from ..level import Float64
from ..runtime.session import Device, is_finite, open_session
from .data import Batch, Samples
from .hessian import HessianSum, pick_positions, positions_of, shape_of, unfold
from .ranges import RangeObserver

POSITIONS_PER_COLUMN = 64  # what more would gain is measured in benchmarks/sampling.py
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Chunk:
    """What one run over the calibration data captures: the Hessians of these layers, the ranges of these values."""

    layers: tuple[Layer, ...]
    ranges: tuple[str, ...]


@dataclass(frozen=True)
class Captured:
    """hessians: H = 2 X Xᵀ / n of every tap, (groups, columns, columns) float64; positions: the n of each."""

    hessians: dict[Tap, Float64]
    positions: dict[Tap, int]
    ranges: dict[str, RangeObserver]

    def hessian(self, layer: Layer) -> tuple[Float64, int]:
        """The Hessian of a layer over all nodes that use its weight, and its number of positions."""
        taps = [use.tap for use in layer.uses]
        total = sum(self.positions[tap] for tap in taps)
        if len(set(taps)) == 1:
            return self.hessians[taps[0]], self.positions[taps[0]]
        weighted = [self.hessians[tap] * (self.positions[tap] / max(total, 1)) for tap in taps]
        return np.sum(weighted, axis=0), total


def probe(model: ir.Model, values: Iterable[str], samples: Samples, device: Device, threads: int | None) -> Shapes:
    """The shape of each of these values in the smallest feed, from a run of the first sample."""
    names = list(dict.fromkeys(values))
    if not names:
        return {}
    session = open_session(model, names, device, threads)
    batch = next(samples.read(0, samples.step))
    return {name: array.shape for name, array in session.run(batch.feed).items()}


def plan_chunks(
    layers: Sequence[Layer], ranges: Sequence[str], shapes: Shapes, samples: Samples, memory: float
) -> list[Chunk]:
    """Split the capture so that each run's Hessians and activations stay under `memory` bytes, if one layer's do.

    The ranges come first, then the layers in the order of the graph.
    """
    batch_bytes = {name: 4 * prod(shape) * samples.batch / samples.step for name, shape in shapes.items()}
    chunks: list[Chunk] = []
    taken: list[Layer] = []
    watched: list[str] = []
    held: dict[Tap | str, float] = {}  # bytes of every Hessian and activation of the chunk that is being filled

    def make_room(needs: dict[Tap | str, float]) -> None:
        if held and sum((held | needs).values()) > memory:
            chunks.append(Chunk(tuple(taken), tuple(watched)))
            taken.clear()
            watched.clear()
            held.clear()
        held.update(needs)

    for name in ranges:
        make_room({name: batch_bytes[name]})
        watched.append(name)
    for layer in layers:
        needs: dict[Tap | str, float] = {}
        for tap in (use.tap for use in layer.uses):
            groups, columns = shape_of(tap.unfold, shapes[tap.value])
            needs |= {tap: 8.0 * groups * columns**2, tap.value: batch_bytes[tap.value]}
        make_room(needs)
        taken.append(layer)
    return [*chunks, Chunk(tuple(taken), tuple(watched))]


def capture(
    model: ir.Model,
    chunk: Chunk,
    samples: Samples,
    *,
    all_positions: bool = False,
    positions_per_column: int = POSITIONS_PER_COLUMN,
    seed: int = 0,
    device: Device = "auto",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Captured:
    """Run the model over all samples and accumulate what the chunk asks for.

    By default a sample contributes as many positions to a Hessian as keep the total near `positions_per_column`
    positions for every column. `progress` is called with the number of samples of each batch.

    Raises CalibrationError if a layer's input holds NaN or infinity.
    """
    owners = {use.tap: layer.name for layer in chunk.layers for use in layer.uses}
    sums: dict[Tap, HessianSum] = {}
    observers = {name: RangeObserver() for name in chunk.ranges}
    names = list(dict.fromkeys([*(tap.value for tap in owners), *observers]))
    session = open_session(model, names, device, threads)
    for batch in samples.read(0, samples.count):
        values = session.run(batch.feed)
        for name, array in values.items():
            if not is_finite(array):
                raise _not_finite(name, array, batch, owners)
        for tap in owners:
            array = values[tap.value]
            if tap not in sums:
                sums[tap] = HessianSum(*shape_of(tap.unfold, array.shape))
            take = None if all_positions else ceil(positions_per_column * sums[tap].columns / samples.count)
            _accumulate(sums[tap], tap, array, batch, take, seed)
        for name, observer in observers.items():
            observer.update(values[name], batch.count)
        progress(batch.count)
    return Captured(
        hessians={tap: total.mean() for tap, total in sums.items()},
        positions={tap: total.positions for tap, total in sums.items()},
        ranges=observers,
    )


def _accumulate(
    total: HessianSum, tap: Tap, array: npt.NDArray[Any], batch: Batch, take: int | None, seed: int
) -> None:
    slots, positions = positions_of(tap.unfold, array.shape, batch.count)
    picks = None
    if take is not None:
        drawn = range(batch.first, batch.first + slots)
        picks = pick_positions(positions, take * (batch.count // slots), seed, drawn)
    for x in unfold(array, tap.unfold, picks, slots):
        total.add(x)


def _not_finite(name: str, array: npt.NDArray[Any], batch: Batch, owners: dict[Tap, str]) -> CalibrationError:
    layer = next((owner for tap, owner in owners.items() if tap.value == name), None)
    what = f"the input of layer {layer!r}" if layer is not None else f"the activation {name!r}"
    if array.ndim and array.shape[0] == batch.count:
        bad = ~np.isfinite(array.reshape(batch.count, -1)).all(axis=1)
        where = f"sample {batch.first + int(np.argmax(bad))}"
    else:
        where = f"samples {batch.first} to {batch.first + batch.count - 1}"
    return CalibrationError(
        f"{what} holds NaN or infinity for {where}: the model itself overflows there; "
        "check the preprocessing, or leave that sample out"
    )
