"""How fast a file is where it is to run: against the dense model, and layer by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ..calibration.readers.feeds import fixed_batch
from ..calibration.samples import Samples
from ..core.arrays import Feed
from ..core.errors import EngineError
from ..graph.cost import layer_costs
from ..graph.layers import Layer, find_layers
from ..graph.model import input_specs
from ..graph.narrow import narrow
from ..targets.attribution import node_name, seconds_of_layers
from ..targets.bench import ROUNDS, TURN_SECONDS, bench
from ..targets.registry import TARGETS, save_for
from .plan import Folded
from .recipe import Recipe

QUICK_ROUNDS, QUICK_SECONDS = 5, 0.02  # a first look; what seems slower than dense is timed as `bench` does
PROFILE_SECONDS = 0.1  # that layers are profiled for, at a first look
RUNS = (5, 200)  # at least and at most
SHORTEST = 1e-9  # seconds
NOTICED = 1.1  # times the dense layer's that a slow layer takes at least


@dataclass(frozen=True)
class Speed:
    """A file against the dense model, in turn, in the target's engine.

    runtime: its name and version. ratio: how many times faster than dense; low, high: quartiles. dense_seconds,
    seconds: medians of a run of `batch` samples. layers: seconds of each layer in the dense model and in the file, by
    the engine's profile, without layers that it counts for others in one of them; None where it gives none.
    """

    runtime: str
    machine: str
    batch: int
    threads: int
    dense_seconds: float
    seconds: float
    ratio: float
    low: float
    high: float
    layers: Mapping[str, tuple[float, float]] | None

    @property
    def slower(self) -> bool:
        """Whether it is clearly slower than the dense model."""
        return self.high < 1

    @property
    def slow_layers(self) -> list[str]:
        """The layers that take longer than in the dense model, those that cost most first."""
        layers = self.layers or {}
        slow = {name: now - before for name, (before, now) in layers.items() if now > NOTICED * before}
        return sorted(slow, key=lambda name: -slow[name])


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be timed. layers: those of the folded graph. shares: the operations of each layer."""

    folded: Folded
    layers: tuple[Layer, ...]
    shares: Mapping[str, float]


def subject_of(folded: Folded) -> Subject:
    """What timing has to know about a model, which stays as it is."""
    layers, _ = find_layers(folded.model)
    costs = layer_costs(folded.model, layers)
    return Subject(folded, tuple(layers), {n: float(cost.flops or cost.parameters) for n, cost in costs.items()})


def measure_speed(folded: Folded, path: Path, feed: Feed, recipe: Recipe) -> Speed | None:
    """The speed of a file against the model that it was made from; None where the target's engine is not here.

    A first look is short, as most files are clearly faster; one that is not, or of which much depends, is timed longer.
    """
    gated = recipe.min_speedup is not None or recipe.fix_slow
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        dense = Path(folder) / "dense.onnx"
        model = folded.model if folded.types is None else narrow(folded.model, folded.types)
        save_for(recipe.target, recipe.form, model, dense)
        files, threads = (dense, path), recipe.threads
        try:
            found = bench(files, recipe.target, feed, threads, QUICK_ROUNDS, turn_seconds=QUICK_SECONDS)
            if gated or found.files[1].low < 1:
                found = bench(files, recipe.target, feed, threads, ROUNDS, turn_seconds=TURN_SECONDS)
        except EngineError:
            return None  # not installed, or the checks of the file say why it does not run
        try:
            subject = subject_of(folded)
            before, now = (time_file(subject, file, feed, recipe, PROFILE_SECONDS)[0] for file in files)
            layers = _of_both(before, now)
        except EngineError:
            layers = None  # an engine that keeps its profile to itself
    dense_time, time = found.files
    return Speed(
        runtime=found.runtime,
        machine=found.machine,
        batch=found.batch,
        threads=found.threads,
        dense_seconds=dense_time.seconds,
        seconds=time.seconds,
        ratio=time.ratio,
        low=time.low,
        high=time.high,
        layers=layers,
    )


def _of_both(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The seconds of layers that take some in both: what an engine hides in another layer has none to compare."""
    return {name: (x, now[name]) for name, x in before.items() if min(x, now[name]) > SHORTEST}


def timing_feed(folded: Folded, samples: Samples, batch: int) -> Feed:
    """The first of these samples, tiled to `batch`; unchanged where the model fixes its batch, or where they are a
    whole feed of the user's own."""
    first = next(iter(samples.read(0, samples.count)))
    whole = any(array.shape[0] != first.count for array in first.feed.values() if array.ndim)
    if whole or fixed_batch(input_specs(folded.dense)) is not None:
        return first.feed
    copies = -(-batch // first.count)
    return {n: np.concatenate([a] * copies)[:batch] if a.ndim else a for n, a in first.feed.items()}


def time_file(
    subject: Subject, path: Path, feed: Feed, recipe: Recipe, run_seconds: float
) -> tuple[dict[str, float], float]:
    """Seconds of each layer in a file, and of what belongs to none: together what a run takes.

    run_seconds: that it is run for, and as long under the engine's profiler.
    """
    loaded = TARGETS[recipe.target].engine.load(path, feed, recipe.threads)
    try:
        first = min(loaded.seconds(feed, 2))
        repeats = int(np.clip(run_seconds / max(first, 1e-9), *RUNS))
        whole = median(loaded.seconds(feed, repeats))
        kernels = loaded.kernels(feed, repeats)
    finally:
        loaded.close()
    total = sum(kernel.seconds for kernel in kernels)
    scaled = [replace(kernel, seconds=kernel.seconds * (whole / total if total > 0 else 1)) for kernel in kernels]
    nodes = {node_name(use.node): layer.name for layer in subject.layers for use in layer.uses}
    found, rest = seconds_of_layers(scaled, nodes, subject.shares)
    # A layer that an engine computes beforehand, or hides in another one, takes next to no time.
    return {layer.name: max(found.get(layer.name, 0.0), SHORTEST) for layer in subject.layers}, rest
