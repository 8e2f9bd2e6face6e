"""How far rounding, the exact greedy and its refinement are from the optimum, on chunks where that is known.

A part of `python -m benchmarks.quality.bounds`. From every layer some chunks of 36 columns of one row (4 input channels
at 3 × 3 positions, or 36 features) are drawn, each a layer of its own, and solved at every level by the baseline, the
greedy and with refinement; exact search then finds the best codes on each solution's grid, or the best mask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from benchmarks.common.subjects import Subject, open_data
from benchmarks.common.tables import markdown
from onnx_obc.calibration.capture import Captured, Chunk, capture
from onnx_obc.core.level import Level, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.graph.layers import Layer
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.solver import Damped, Method, baseline, damp, layer_loss, solve
from onnx_obc.study.chunks import chunk_columns
from onnx_obc.study.exact.integers import solve_integers
from onnx_obc.study.exact.masks import solve_mask
from onnx_obc.study.exact.problem import Limit, Proof, Rounding

LEVELS = ("int8", "int4-asym", "int3-asym", "int2-asym", "sparse-0.50", "sparse-0.75", "2:4", "block4-0.50")
DRAWN, COLUMNS, SECONDS = 6, 36, 2.0
HEADER = ("model", "level", "chunks", "optimum proven", "in 0.5 s", "baseline", "greedy", "refined", "largest")


@dataclass(frozen=True)
class Gap:
    """One chunk at one level: losses over that of the optimum on the same grid; seconds: of the search."""

    model: str
    level: str
    baseline: float
    greedy: float
    refined: float
    proven: bool
    seconds: float


CapturedLayers: TypeAlias = tuple[Sequence[Layer], Captured]


def capture_layers(subject: Subject, samples: int, every: int) -> CapturedLayers:
    """Every so many of a model's layers, and their Hessians of so many samples."""
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), Recipe(weights="int4", activations="none"))
    data = open_data(dense, subject.calibration, replace(subject.options, samples=samples))
    layers = plan.layers[::every]
    return layers, capture(plan.model, Chunk(tuple(layers), ()), data)


def measure(model: str, data: CapturedLayers) -> list[Gap]:
    """Chunks of every layer that is large enough."""
    layers, captured = data
    random, found = np.random.default_rng(0), []
    for layer in layers:
        if layer.columns < COLUMNS:
            continue
        weights, damped = layer.matrix(), damp(captured.hessian(layer)[0])
        for _ in range(DRAWN):
            group, row = int(random.integers(layer.groups)), int(random.integers(layer.rows))
            columns = chunk_columns(layer.columns, layer.channels, COLUMNS, random)
            weight = weights[group, row, columns][None, None]  # (1, 1, columns)
            part = damp(damped.hessian[group][np.ix_(columns, columns)][None], 0.0)
            if weight.any() and len(columns) == COLUMNS:
                texts = [text for text in LEVELS if layer.impossible(parse_level(text)) is None]
                found += [gap(model, weight, part, text) for text in texts]
    return found


def gap(model: str, weight: np.ndarray, damped: Damped, text: str) -> Gap:
    """One chunk at one level. weight: (1, 1, columns) float32."""
    level = parse_level(text)
    solutions = [
        baseline(weight, damped, level),
        solve(weight, damped, level, Method(threads=1)),
        solve(weight, damped, level, Method(threads=1, refine="auto")),
    ]
    proofs, took = [], []
    for solution in solutions:
        began = time.monotonic()
        proofs.append(optimum(weight, damped, level, solution))
        took.append(time.monotonic() - began)
    ratios = [
        layer_loss(weight, solution.weights, damped.hessian) / max(proof.loss, 1e-300)
        for solution, proof in zip(solutions, proofs, strict=True)
    ]
    return Gap(model, text, *ratios, all(proof.proven for proof in proofs), max(took))


def optimum(weight: np.ndarray, damped: Damped, level: Level, solution: Solution) -> Proof:
    """The best codes on a solution's grid, or the best mask of its pattern."""
    wide, hessian = weight[0, 0].astype(np.float64), damped.hessian[0]
    limit = Limit(deadline=time.monotonic() + SECONDS)
    if solution.grid is None or solution.codes is None:
        assert level.sparsity is not None
        return solve_mask(wide, hessian, level.sparsity, limit=limit)
    grid = solution.grid
    problem = Rounding(wide, hessian, float(grid.scale[0, 0]), grid.qmin, grid.qmax, int(grid.zero_point[0, 0]))
    return solve_integers(problem, solution.codes[0, 0], limit)


def table(rows: Sequence[Gap]) -> str:
    """A row for each model and level: geometric means over the chunks whose optimum is proven."""
    cells = []
    for model, level in dict.fromkeys((row.model, row.level) for row in rows):
        part = [row for row in rows if (row.model, row.level) == (model, level)]
        known = [row for row in part if row.proven]
        quick = sum(row.proven and row.seconds <= 0.5 for row in part)
        cells.append(
            (
                model,
                level,
                str(len(part)),
                f"{100 * len(known) / len(part):.1f} %",
                f"{100 * quick / len(part):.1f} %",
                *(mean([getattr(row, name) for row in known]) for name in ("baseline", "greedy", "refined")),
                f"{max((row.refined for row in known), default=np.nan):.2f}",
            )
        )
    return markdown(HEADER, cells, left=2)


def mean(values: Sequence[float]) -> str:
    """The geometric mean."""
    return f"{np.exp(np.log(values).mean()):.3f}" if values else ""
