"""A layer at equal size: SNRs that can be recomputed, bounds above them, verdicts that say only what follows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from onnx_obc.core.level import Level, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.solver import Method, baseline, damp, layer_loss, output_energy, solve
from onnx_obc.study.layers import Rows, draw_rows, judge, plan_layer, study_layer, study_weight, take_rows
from onnx_obc.study.levels import Size, quantized_level
from onnx_obc.study.record import BudgetRow, Way

LEVELS = {bits: quantized_level(bits, True) for bits in (2, 4)}
METHOD = Method(refine="auto")


def problem(seed: int = 0, scale: float = 1.0) -> Rows:
    random = np.random.default_rng(seed)
    weight = (scale * random.standard_normal((1, 12, 32))).astype(np.float32)
    inputs = random.standard_normal((32, 32)) @ random.standard_normal((32, 400)) + random.standard_normal((32, 400))
    return Rows(weight, damp(2 * (inputs @ inputs.T)[None] / 400, 0.01), 8)


def studied(rows: Rows, size: Size) -> tuple[BudgetRow, ...]:
    _, tensors = study_weight(rows.weight, LEVELS)
    return study_layer(rows, plan_layer(rows.weight, rows.channels, LEVELS), size, tensors, METHOD)


@pytest.fixture(scope="module")
def paper() -> tuple[BudgetRow, ...]:
    return studied(problem(), "paper")


def test_every_snr_is_that_of_the_level_solved(paper: tuple[BudgetRow, ...]) -> None:
    rows = problem()
    hessian = rows.damped.hessian
    energy = output_energy(rows.weight, hessian)
    assert {way.kind for row in paper for way in row.ways} == {"quantize", "prune", "both"}
    for way in (way for row in paper for way in row.ways):
        level = parse_level(way.level)
        solved = solve(rows.weight, rows.damped, level, METHOD)
        assert way.snr == pytest.approx(10 * math.log10(energy / layer_loss(rows.weight, solved.weights, hessian)))
        simple = baseline(rows.weight, rows.damped, level)
        assert way.baseline == pytest.approx(10 * math.log10(energy / simple.loss))
        assert way.snr > way.baseline
        assert (way.bound is None) == (way.kind == "both")
        assert way.bound is None or way.bound >= way.snr


def test_every_convention_has_a_verdict_and_a_pruned_way(paper: tuple[BudgetRow, ...]) -> None:
    for row in paper:
        assert set(row.verdicts) == set(row.pruned) == set(get_args(Size))
        for size, way in row.pruned.items():
            assert way is not None and way.level.startswith("sparse-")
            quantized = row.best("quantize")
            assert quantized is not None
            if size != "paper":  # only these two were tried
                winner = row.verdicts[size].winner
                assert winner == ("quantize" if quantized.snr >= way.snr else "prune")


def test_the_scale_of_weights_changes_nothing(paper: tuple[BudgetRow, ...]) -> None:
    for ours, theirs in zip(paper, studied(problem(scale=1e-4), "paper"), strict=True):
        assert [way.level for way in ours.ways] == [way.level for way in theirs.ways]
        assert [way.snr for way in ours.ways] == pytest.approx([way.snr for way in theirs.ways], abs=0.05)
        assert ours.tensor.quantized == pytest.approx(theirs.tensor.quantized, abs=1e-3)
        assert ours.tensor.rows == pytest.approx(theirs.tensor.rows, abs=1e-3)


@pytest.mark.slow
def test_compressed_files_come_out_equally_large() -> None:
    random = np.random.default_rng(1)
    rows = problem()
    rows = replace(rows, weight=np.asarray(random.standard_normal((1, 96, 32)), np.float32))
    for row in studied(rows, "bytes"):
        (budget,) = (way.bits for way in row.ways if way.kind == "quantize")
        assert {way.kind for way in row.ways} == {"quantize", "prune", "both"}
        assert all(0.94 * budget <= way.bits <= 1.04 * budget for way in row.ways)


def test_solutions_from_elsewhere_are_taken() -> None:
    rows, asked = problem(), []
    known = baseline(rows.weight, rows.damped, LEVELS[4])

    def recall(level: Level) -> Solution | None:
        asked.append(level)
        return known if level == LEVELS[4] else None

    row = studied(replace(rows, recall=recall), "paper")[1]
    (way,) = (way for way in row.ways if way.kind == "quantize")
    assert LEVELS[4] in asked and way.snr == way.baseline


def test_rows_are_drawn_once_each_and_fewer_of_wide_layers() -> None:
    random = np.random.default_rng(0)
    assert draw_rows(1, 16, 144, None, random) == list(range(16))
    assert len(draw_rows(1, 1000, 144, None, random)) == 40
    assert len(draw_rows(1, 1000, 2304, None, random)) == 10
    assert len(draw_rows(1, 1000, 100_000, None, random)) == 8
    assert len(draw_rows(32, 100, 9, None, random)) == 1 and len(draw_rows(500, 4, 9, None, random)) == 1
    assert draw_rows(2, 100, 9, 0, random) == list(range(100))
    picked = draw_rows(1, 1000, 144, 200, random)
    assert len(picked) == len(set(picked)) == 200 and picked == sorted(picked)


def test_some_rows_of_a_solution() -> None:
    rows = problem()
    whole = solve(rows.weight, rows.damped, LEVELS[4], METHOD)
    part = take_rows(whole, [1, 5])
    assert part.codes is not None and part.grid is not None
    assert (part.weights == whole.weights[:, [1, 5]]).all()
    assert (part.grid.dequantize(part.codes) == part.weights).all()


def way(kind: str, snr: float, bound: float | None) -> Way:
    return Way(kind, "int4", 4.0, snr, snr - 1, bound)  # type: ignore[arg-type]


def test_verdicts() -> None:
    quantized, pruned = way("quantize", 20.0, 22.0), way("prune", 10.0, 15.0)
    verdict = judge([quantized, pruned], True)
    assert (verdict.winner, verdict.margin, verdict.proven, verdict.on_rows) == ("quantize", 10.0, True, True)
    sampled = judge([quantized, pruned], False)
    assert sampled.on_rows and not sampled.proven  # a mask that is shared out over all rows may do better
    assert not judge([quantized, way("prune", 10.0, 21.0)], True).on_rows
    assert not judge([quantized, way("prune", 10.0, None)], True).proven
    assert not judge([quantized, pruned, way("prune", 9.0, 20.5)], True).proven  # one pattern could still win
    both = judge([quantized, pruned, way("both", 22.5, None)], True)
    assert (both.winner, both.margin, both.proven) == ("both", 2.5, True)
    assert not judge([quantized, pruned, way("both", 21.0, None)], True).proven
    alone = judge([quantized], True)
    assert alone.winner == "quantize" and alone.margin == math.inf and not alone.proven
    for tie in (20.0, math.inf):
        same = judge([way("quantize", tie, tie), way("prune", tie, tie)], True)
        assert same.margin == 0 and not same.proven


@pytest.mark.slow
def test_a_proof_on_some_rows_is_not_one_of_the_layer() -> None:
    """Rows of very different energy share a mask: a sample that misses the heavy ones proves what is not so."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((1, 100, 32)).astype(np.float32)
    weight[:, :2] *= 100
    whole = replace(problem(), weight=weight)
    part = replace(whole, weight=np.ascontiguousarray(weight[:, 50:]), whole=False)
    verdicts = [v for row in studied(part, "bitmap") for v in row.verdicts.values()]
    assert not any(v.proven for v in verdicts) and any(v.on_rows for v in verdicts)
    assert any(v.proven for row in studied(whole, "bitmap") for v in row.verdicts.values())
