"""Which layers are solved exactly and which by the ordered solver, from the time that they would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..core.level import Choice, Level
from ..core.plural import counted
from ..graph.cost import density
from ..graph.layers import Layer
from ..solver import Method
from ..solver.forecast import LONGEST, TYPICAL, Forecast, Job, calibrate, choose_solvers, predict, rows_to_compare
from ..solver.traces import pattern_of
from .layer import LayerMethod
from .recipe import Recipe

SLOW = 1e9  # multiplications with addition per second that even a slow machine reaches
WORTH_A_LINE = 10.0  # seconds


@dataclass(frozen=True)
class Schedule:
    """ordered: the layers for the ordered solver, and on how many rows each is compared with the exact one.
    lines: the plan in words, for the user; empty if there is nothing to plan."""

    ordered: Mapping[str, int] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    def method_for(self, layer: str, method: Method) -> LayerMethod:
        """How a layer is solved, where `method` is the exact way."""
        if layer not in self.ordered:
            return LayerMethod(method)
        return LayerMethod(replace(method, solver="ordered"), self.ordered[layer])


def make_schedule(
    layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]], recipe: Recipe, device: str
) -> Schedule:
    """Choose a solver for every layer, as `Recipe.solver` and `Recipe.time_limit` say.

    choices: all that each layer is to be solved at, from least to most. Its time is that of all of them together.

    Only `auto` on a CPU times the machine, for about a second, and only if the layers could take long on a slow one; on
    a GPU it solves every layer exactly. `ordered` leaves those layers exact that take no longer so.
    """
    jobs = [_job(layer, [choice.level for choice in choices[layer.name]]) for layer in layers]
    if recipe.solver not in ("auto", "ordered") or (recipe.solver == "auto" and device != "cpu"):
        if recipe.time_limit is None:
            return Schedule()
        where = f"on {device}, where every layer is solved exactly" if recipe.solver == "auto" else "by this solver"
        return Schedule(lines=(f"the time limit is not kept {where}; it is for --solver auto on a CPU",))
    work = sum(job.groups * job.rows * job.columns**3 for job in jobs)
    if recipe.solver == "auto" and recipe.time_limit is None and work / SLOW < LONGEST:
        return Schedule()
    machine = calibrate(recipe.threads)
    forecasts = choose_solvers(jobs, machine, recipe.time_limit)
    if recipe.solver == "ordered":
        forecasts = tuple(replace(x, solver="ordered" if x.ordered < x.exact else "exact") for x in forecasts)
    rows = {
        layer.name: rows_to_compare(job, machine)
        for layer, job, forecast in zip(layers, jobs, forecasts, strict=True)
        if forecast.solver == "ordered"
    }
    return Schedule(rows, tuple(_in_words(layers, forecasts, recipe)))


def longest_first(
    layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]], schedule: Schedule
) -> tuple[Layer, ...]:
    """The layers in the order in which workers are to begin them, so that none is left over for one worker at last."""

    def seconds(layer: Layer) -> float:
        exact, ordered = predict(_job(layer, [choice.level for choice in choices[layer.name]]), TYPICAL)
        return ordered if layer.name in schedule.ordered else exact

    return tuple(sorted(layers, key=seconds, reverse=True))


def _job(layer: Layer, levels: Sequence[Level]) -> Job:
    """All levels of a layer as one: the last of them, with as many more rows as the others take time.

    One greedy serves all sparsities of a ladder. Weights that are left are quantized at each level anew, in time that
    falls with the cube of their share.
    """
    last = levels[-1]
    patterns = {pattern_of(level.sparsity) for level in levels if level.sparsity is not None}
    kept = [density(level) for level in levels if level.bits is not None]
    passes = len(patterns) + sum(share**3 for share in kept)
    times = max(1, round(passes / max(1, (last.sparsity is not None) + (last.bits is not None))))
    return Job(layer.groups, times * layer.rows, layer.columns, last)


def _in_words(layers: Sequence[Layer], forecasts: Sequence[Forecast], recipe: Recipe) -> list[str]:
    """One line about all layers, and one for each that takes long or is not solved exactly."""
    exact = [forecast.seconds for forecast in forecasts if forecast.solver == "exact"]
    ordered = [forecast.seconds for forecast in forecasts if forecast.solver == "ordered"]
    parts = [f"{counted(len(exact), 'layer')} exactly, about {_duration(sum(exact))}"] if exact else []
    parts += [f"{len(ordered)} by the ordered solver, about {_duration(sum(ordered))}"] if ordered else []
    lines = [f"plan: {'; '.join(parts)}; refinement not counted"]
    for layer, forecast in zip(layers, forecasts, strict=True):
        shape = f"{layer.name} ({layer.groups} × {layer.rows} × {layer.columns})"
        if forecast.solver == "ordered":
            lines.append(f"  {shape}: ordered, {_duration(forecast.ordered)}; exactly {_duration(forecast.exact)}")
        elif forecast.seconds > WORTH_A_LINE:
            lines.append(f"  {shape}: {_duration(forecast.seconds)}")
    total = sum(exact) + sum(ordered)
    if recipe.time_limit is not None and total > recipe.time_limit:
        lines.append(f"  that is more than the time limit of {_duration(recipe.time_limit)}, even so")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
