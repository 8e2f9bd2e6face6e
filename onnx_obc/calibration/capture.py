"""Runs the model on calibration data and keeps, of every layer input, its Hessian, and of activations their range.

The inputs themselves are dropped as soon as they are accumulated, so memory does not grow with the number of samples.
What does not fit at once is captured in chunks, each with a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core.arrays import Bool, Float64
from ..core.errors import CalibrationError
from ..core.machine import workers
from ..graph.cost import Cost, layer_costs
from ..graph.layers import Layer, Tap, Window
from ..runtime.session import Execution, is_finite, open_session
from .held_out import held_samples, join, pieces
from .hessian import HessianSum, held_bytes
from .hessian_shifted import add_shifted, pays
from .ranges import RangeObserver
from .samples import Batch, Samples
from .unfold import Index, finite_positions, pick_positions, positions_of, shape_of, unfold

POSITIONS_PER_COLUMN = 64  # what more would gain is measured in benchmarks/quality/sampling.py
MAPPED = 1 / 4  # of the memory: a larger Hessian goes to a temporary file
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Chunk:
    """What one run over the calibration data captures: the Hessians of these layers, the ranges of these values.

    choose_damping: choose a damping for each Hessian too, which takes a second sum of the same size meanwhile.
    beside: values that other parts of the same run capture, elsewhere. The model gives them too, as what onnxruntime
    fuses, and with it the last digits of all, depends on what it is to give.
    """

    layers: tuple[Layer, ...]
    ranges: tuple[str, ...]
    mapped: frozenset[Tap] = frozenset()  # whose Hessians live in temporary files
    choose_damping: bool = False
    beside: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """What is captured, by name."""
        return tuple(dict.fromkeys([*(use.tap.value for layer in self.layers for use in layer.uses), *self.ranges]))


@dataclass(frozen=True, eq=False)
class LayerHessian:
    """H = 2 X Xᵀ / n of a layer, (groups, columns, columns) float64; positions: n. damping: what samples held out of it
    ask for, as a fraction of the mean diagonal; None if none could be. left_out: positions with NaN or infinity."""

    hessian: Float64
    positions: int
    damping: float | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Captured:
    """hessians: H = 2 X Xᵀ / n of every tap, (groups, columns, columns) float64; positions: the n of each.

    dampings: the damping that held-out samples say each Hessian needs; without a tap where there were none. left_out:
    how many other positions hold NaN or infinity.
    """

    hessians: dict[Tap, Float64]
    positions: dict[Tap, int]
    ranges: dict[str, RangeObserver]
    dampings: dict[Tap, float] = field(default_factory=dict)
    left_out: dict[Tap, int] = field(default_factory=dict)

    def hessian(self, layer: Layer) -> tuple[Float64, int]:
        """The Hessian of a layer over all nodes that use its weight, and its number of positions."""
        taps = [use.tap for use in layer.uses]
        total = sum(self.positions[tap] for tap in taps)
        if len(set(taps)) == 1:
            return self.hessians[taps[0]], self.positions[taps[0]]
        mean = np.zeros_like(self.hessians[taps[0]])  # (groups, columns, columns)
        for tap in taps:
            mean += self.hessians[tap] * (self.positions[tap] / max(total, 1))
        return mean, total

    def of(self, layer: Layer) -> LayerHessian:
        """The Hessian of a layer, over all nodes that use its weight."""
        left_out = sum(self.left_out.get(use.tap, 0) for use in layer.uses)
        return LayerHessian(*self.hessian(layer), self.damping(layer), left_out)

    def damping(self, layer: Layer) -> float | None:
        """The damping chosen for a layer's Hessian, the largest of all nodes; None if it could not be judged."""
        chosen = [self.dampings.get(use.tap) for use in layer.uses]
        known = [damping for damping in chosen if damping is not None]
        return max(known) if len(known) == len(chosen) else None


def probe(model: ir.Model, values: Iterable[str], samples: Samples, execution: Execution) -> Shapes:
    """The shape of each of these values in the smallest feed, from a run of the first sample."""
    names = list(dict.fromkeys(values))
    if not names:
        return {}
    session = open_session(model, names, execution.device, execution.threads)
    batch = next(samples.read(0, samples.step))
    return {name: array.shape for name, array in session.run(batch.feed).items()}


def run_costs(
    model: ir.Model, layers: Sequence[Layer], samples: Samples, execution: Execution = Execution()
) -> dict[str, Cost]:
    """The cost of every layer by name, at the shapes that it has in a run of the first sample."""
    values = [name for x in layers for use in x.uses for name in (use.tap.value, str(use.node.outputs[0].name))]
    shapes = probe(model, values, samples, execution)
    return layer_costs(model, layers, shapes, samples.step)


def plan_chunks(
    layers: Sequence[Layer],
    ranges: Sequence[str],
    shapes: Shapes,
    samples: Samples,
    memory: float,
    choose_damping: bool = False,
) -> list[Chunk]:
    """Split the capture so that each run's Hessians and activations stay under `memory` bytes, if one layer's do.

    The ranges come first, then the layers in the order of the graph. Hessians of more than MAPPED of the memory are
    mapped to temporary files, as the solver holds several copies of one. Not counted: the model, and what is unfolded
    at a time, 16 MiB for each thread.
    """
    batch_bytes = {name: 4 * prod(shape) * samples.batch / samples.step for name, shape in shapes.items()}
    chunks: list[Chunk] = []
    taken: list[Layer] = []
    watched: list[str] = []
    held: dict[Tap | str, float] = {}  # bytes of every Hessian and activation of the chunk that is being filled

    def close() -> None:
        mapped = frozenset(key for key, size in held.items() if isinstance(key, Tap) and size > MAPPED * memory)
        chunks.append(Chunk(tuple(taken), tuple(watched), mapped, choose_damping))

    def make_room(needs: dict[Tap | str, float]) -> None:
        if held and sum((held | needs).values()) > memory:
            close()
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
            size = held_bytes(*shape_of(tap.unfold, shapes[tap.value])) * (2 if choose_damping else 1)
            needs |= {tap: size, tap.value: batch_bytes[tap.value]}
        make_room(needs)
        taken.append(layer)
    close()
    return chunks


def capture(
    model: ir.Model,
    chunk: Chunk,
    samples: Samples,
    *,
    all_positions: bool = False,
    positions_per_column: int = POSITIONS_PER_COLUMN,
    seed: int = 0,
    execution: Execution = Execution(),
    progress: Callable[[int], None] = lambda done: None,
) -> Captured:
    """Run the model over all samples and accumulate what the chunk asks for.

    By default a sample contributes as many positions to a Hessian as keep the total near `positions_per_column`
    positions for every column. `progress` is called with the number of samples of each batch.

    Layers are shared out over the threads of `execution`, which changes no result, provided that BLAS is held to one.
    Positions with NaN or infinity are left out and counted: a mask may make them, and nothing reads them then. Raises
    CalibrationError if a sample has no other, or if the disk has no room for a mapped Hessian.
    """
    owners = {use.tap: layer.name for layer in chunk.layers for use in layer.uses}
    sums: dict[Tap, HessianSum] = {}
    spared: dict[Tap, HessianSum] = {}  # of the samples that dampings are judged on
    observers = {name: RangeObserver() for name in chunk.ranges}
    names = list(dict.fromkeys([*(tap.value for tap in owners), *observers]))
    session = open_session(model, chunk.beside or names, execution.device, execution.threads)
    session = replace(session, outputs=tuple(names))

    def take(batch: Batch) -> None:  # a function, so that its values are gone before the next batch is run
        values = samples.outputs(session.run, batch)
        for tap in owners:
            if tap not in sums:
                shape = shape_of(tap.unfold, values[tap.value].shape)
                sums[tap] = HessianSum(*shape, tap in chunk.mapped)
                if chunk.choose_damping:
                    spared[tap] = HessianSum(*shape, tap in chunk.mapped)
        work: dict[str, list[Future[None]]] = {name: [] for name in names}
        for name, observer in observers.items():
            work[name].append(pool.submit(observer.update, values[name], batch.count))
        drawn: dict[tuple[int, ...], Index | None] = {}  # most layers draw the same positions as another one
        for tap in sorted(owners, key=lambda tap: -sums[tap].columns):
            array = values[tap.value]
            slots, positions = positions_of(tap.unfold, array.shape, batch.count)
            picks = None
            if not all_positions:
                wanted = wanted_positions(sums[tap].columns, batch.count, slots, samples.count, positions_per_column)
                if (key := (slots, positions, wanted)) not in drawn:
                    samples_drawn = range(batch.first, batch.first + slots)
                    drawn[key] = pick_positions(positions, wanted, seed, samples_drawn)
                picks = drawn[key]
            held = np.zeros(slots, bool)
            if chunk.choose_damping:
                held = held_samples(batch.first, batch.count, slots, samples.count)
            work[tap.value].append(pool.submit(_accumulate, sums[tap], spared.get(tap), tap, array, picks, held))
        _check_finite(values, batch, samples.name_of, owners, observers)
        for parts in work.values():
            for part in parts:
                part.result()

    with ThreadPoolExecutor(workers(execution.threads), "capture") as pool:  # each sum is one thread's at a time
        for batch in samples.read(0, samples.count):
            take(batch)
            progress(batch.count)
        positions = {tap: total.positions for tap, total in sums.items()}
        positions |= {tap: positions[tap] + part.positions for tap, part in spared.items()}
        left_out = {tap: total.left_out for tap, total in sums.items()}
        if not chunk.choose_damping:
            hessians = dict(zip(sums, pool.map(HessianSum.mean, sums.values()), strict=True))
            return Captured(hessians, positions, observers, left_out=left_out)
    hessians, dampings = {}, {}
    for tap, total in sums.items():  # one by one: each takes more memory meanwhile
        hessians[tap], damping = join(total, spared.pop(tap))
        if damping is not None:
            dampings[tap] = damping
    return Captured(hessians, positions, observers, dampings, left_out)


def wanted_positions(columns: int, count: int, slots: int, samples: int, per_column: int = POSITIONS_PER_COLUMN) -> int:
    """How many positions to draw from each slot of a batch of `count` samples, of `samples` in all."""
    return ceil(per_column * columns / samples) * (count // slots)


def _accumulate(
    total: HessianSum, spared: HessianSum | None, tap: Tap, array: npt.NDArray[Any], picks: Index | None, held: Bool
) -> None:
    """Add a batch of a layer's input to its sum, the slots (n,) held out to `spared`; NaN and infinity to neither."""
    slots, whole = len(held), is_finite(array)
    if whole and picks is None and isinstance(tap.unfold, Window) and pays(tap.unfold, array.shape):
        images = np.repeat(held, len(array) // slots)
        if not images.all():
            add_shifted(total, array[~images] if images.any() else array, tap.unfold)
        if spared is not None and images.any():
            add_shifted(spared, array[images], tap.unfold)
        return
    each = picks.shape[1] if picks is not None else positions_of(tap.unfold, array.shape, slots)[1]
    start = 0
    for x in unfold(array, tap.unfold, picks, slots):  # (groups, n, columns)
        good = np.ones(x.shape[1], bool) if whole else finite_positions(x)
        total.left_out += len(good) - int(np.count_nonzero(good))
        for part, out in pieces(held, each, start, x.shape[1]):
            kept = x[:, part] if whole else x[:, part][:, good[part]]
            (spared if spared is not None and out else total).add(kept)
        start += x.shape[1]


def _check_finite(
    values: Mapping[str, npt.NDArray[Any]],
    batch: Batch,
    name_of: Callable[[int], str],
    owners: dict[Tap, str],
    names: Iterable[str],
) -> None:
    """Raise CalibrationError if a sample holds NaN or infinity everywhere: in a layer's input, at each position.

    The error names what first holds any in that sample, and the model's input if that does. name_of: see `Samples`.
    names: the activations that are watched besides.
    """
    watched: list[tuple[str, int | None, str]]
    watched = [(tap.value, _axis(tap), f"the input of layer {layer!r}") for tap, layer in owners.items()]
    watched += [(name, None, f"the activation {name!r}") for name in names]
    odd = [(values[name], axis, what) for name, axis, what in watched if not is_finite(values[name])]
    for array, axis, what in odd:
        finite = np.isfinite(array)
        if axis is not None and array.ndim:
            finite = finite.all(axis=axis, keepdims=True)
        good = np.asarray(_by_sample(finite, batch).any(axis=1))  # (count,) or (1,)
        if good.all():
            continue
        sample = int(np.argmin(good))
        where = name_of(batch.first + sample)
        if len(good) < batch.count:
            where = f"one of the {batch.count} samples of a feed, the first of which is {where}"
        else:
            what = next(text for x, _, text in odd if not _finite_in(x, batch, sample))
        given = [name for name, x in batch.feed.items() if not is_finite(x) and not _finite_in(x, batch, sample)]
        cause = f", as {given[0]!r} in the data does" if given else ": the model itself overflows there"
        raise CalibrationError(
            f"{what} holds NaN or infinity for {where}{cause}; check the preprocessing, or leave that sample out"
        )


def _axis(tap: Tap) -> int:
    """The axis of a layer's input along which a position's values lie: for a convolution, those of a pixel."""
    return 1 if isinstance(tap.unfold, Window) else tap.unfold.axis


def _finite_in(array: npt.NDArray[Any], batch: Batch, sample: int) -> bool:
    """Whether no value of this sample of a batch is NaN or infinite; of any, where samples lie along no axis."""
    finite = _by_sample(np.isfinite(array), batch)
    return bool(finite[sample if len(finite) == batch.count else 0].all())


def _by_sample(array: npt.NDArray[Any], batch: Batch) -> npt.NDArray[Any]:
    """An array as (samples, values); as (1, values) where samples do not lie along its first axis."""
    return array.reshape(batch.count if array.ndim and array.shape[0] == batch.count else 1, -1)
