"""What a file must reach to be handed over: its quality, and its speed where it is to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core.errors import EngineError, RecipeError
from ..graph.half import DOUBLE, FLOAT, HALVES
from ..runtime.output_loss import class_scores
from ..targets.registry import TARGETS
from .examine import MetricReport
from .floor import parse_quality
from .recipe import Recipe
from .speed import Speed
from .verify import OutputMatch

FLOATS = (FLOAT, DOUBLE, *HALVES)


@dataclass(frozen=True)
class Gate:
    """What was wanted and what was reached, in words; advice: what to try where it was not."""

    name: str
    wanted: str
    reached: str
    passed: bool
    advice: str

    def __str__(self) -> str:
        return f"{self.name} {self.wanted} was not met: {self.reached}; {self.advice}"


def check_gates(recipe: Recipe, dense: ir.Model, metric: bool) -> None:
    """Raise RecipeError or EngineError, before any work, for gates that nothing here could judge.

    metric: whether there is one.
    """
    if not (recipe.min_quality or recipe.min_speedup or recipe.fix_slow):
        return
    if not recipe.verify:
        raise RecipeError("--min-quality, --min-speedup and --fix-slow need the checks; leave out --no-verify")
    if recipe.min_quality is not None:
        kind, _ = parse_quality(recipe.min_quality)
        if kind in ("metric", "drop") and not metric:
            raise RecipeError(f"--min-quality {recipe.min_quality} is about a metric; give --metric, or write 30dB")
        if kind == "dB" and not any(value.dtype in FLOATS for value in dense.graph.outputs):
            raise RecipeError(
                f"--min-quality {recipe.min_quality}: no output of this model is of floats; give --metric, and drop=1%"
            )
        if kind == "agreement" and not class_scores(dense):
            raise RecipeError(
                f"--min-quality {recipe.min_quality}: no output of this model is class scores; write 30dB, or give "
                "--metric"
            )
    if recipe.min_speedup is not None or recipe.fix_slow:
        option = "--fix-slow" if recipe.min_speedup is None else f"--min-speedup {recipe.min_speedup:g}"
        if not recipe.measure_speed:
            raise RecipeError(f"{option} needs the speed that is measured; leave out --no-measure-speed")
        try:
            TARGETS[recipe.target].engine.version()
        except EngineError as error:
            raise EngineError(f"{option} cannot be measured: {error}") from error


def judge(
    recipe: Recipe, outputs: Sequence[OutputMatch], metric: MetricReport | None, speed: Speed | None
) -> tuple[Gate, ...]:
    """The gates of a recipe, each with what was reached."""
    gates = []
    if recipe.min_quality is not None:
        gates.append(quality_gate(recipe.min_quality, outputs, metric))
    if recipe.min_speedup is not None:
        wanted, ratio = recipe.min_speedup, None if speed is None else speed.ratio
        reached = "not measured" if speed is None else f"{speed.ratio:.2f} x in {speed.runtime}, batch {speed.batch}"
        advice = "try --fix-slow, --budget latency=…, or another target or level; docs/runtimes.md says what is fast"
        gates.append(Gate("min-speedup", f"{wanted:g}x", reached, ratio is not None and ratio >= wanted, advice))
    return tuple(gates)


def quality_gate(text: str, outputs: Sequence[OutputMatch], metric: MetricReport | None) -> Gate:
    """The gate of quality. Outputs of integers have no SQNR that counts: a class is right or wrong."""
    kind, wanted = parse_quality(text)
    advice = "try more bits for the layers that lose most (onnx-obc debug names them), --effort best, or more samples"
    if kind == "dB":
        worst = min((x for x in outputs if not x.integers), key=lambda match: match.sqnr_db, default=None)
        value = math.nan if worst is None else worst.sqnr_db
        reached = "no output was compared" if worst is None else f"output {worst.name} keeps {worst.sqnr_db:.1f} dB"
        return Gate("min-quality", text, reached, value >= wanted, advice)
    if kind == "agreement":
        shares = {x.name: x.top1_agreement for x in outputs if x.top1_agreement is not None}
        name = min(shares, key=lambda name: shares[name], default=None)
        value = math.nan if name is None else shares[name]
        reached = "no output was compared" if name is None else f"output {name} agrees on {100 * value:.2f} %"
        return Gate("min-quality", text, reached, value >= wanted, advice)
    assert metric is not None
    reached = f"{metric.name} is {metric.compressed:.5g}, dense {metric.dense:.5g}"
    if kind == "drop":
        return Gate("min-quality", text, f"{reached}, {100 * metric.drop:.2f} % worse", metric.drop <= wanted, advice)
    passed = metric.compressed >= wanted if metric.higher else metric.compressed <= wanted
    return Gate("min-quality", text, reached, passed, advice)
