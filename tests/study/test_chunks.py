"""Chunks: which columns, what is solved of them, and what is proven."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import build, random

from onnx_obc.calibration.capture import LayerHessian
from onnx_obc.core.level import Unstructured
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.pipeline.layer import prepare_layer
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.solver import Method, fit_grid
from onnx_obc.study import chunks
from onnx_obc.study.chunks import Problem, chunk_columns, draw_problems, prove
from onnx_obc.study.layers import Rows, plan_layer, study_layer, study_weight
from onnx_obc.study.levels import quantized_level
from onnx_obc.study.record import ChunkRow

LEVELS = {bits: quantized_level(bits, True) for bits in (2, 4)}


def seeded() -> np.random.Generator:
    return np.random.default_rng(0)


def conv() -> Layer:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    model = ir.from_proto(build([node], {"x": (1, 8, 6, 6)}, {"y": None}, {"w": random(4, 8, 3, 3)}))
    return find_layers(model)[0][0]


def drawn(count: int = 3) -> list[Problem]:
    layer, inputs = conv(), seeded().standard_normal((72, 500))
    prepared = prepare_layer(layer, LayerHessian(2 * (inputs @ inputs.T)[None] / 500, 500, 0.01), Recipe())
    _, tensors = study_weight(prepared.weight, LEVELS)
    planned = plan_layer(prepared.weight, layer.channels, LEVELS)
    rows = study_layer(Rows(prepared.weight, prepared.damped, layer.channels), planned, "paper", tensors, Method())
    return draw_problems(layer, prepared, rows, "paper", 36, seeded())[:count]


def test_a_chunk_of_a_convolution_is_some_channels_at_all_positions() -> None:
    columns = chunk_columns(72, 8, 36, seeded())  # 9 positions, 8 channels innermost
    assert len(columns) == 36 and (np.diff(columns) > 0).all()
    channels = {int(column) % 8 for column in columns}
    first = min(channels)
    assert channels == set(range(first, first + 4))
    assert {int(column) // 8 for column in columns} == set(range(9))


def test_other_chunks() -> None:
    assert (chunk_columns(27, 3, 36, seeded()) == np.arange(27)).all()  # all of a small layer
    features = chunk_columns(500, 500, 36, seeded())
    assert len(features) == 36 and (np.diff(features) == 1).all()
    large = chunk_columns(49 * 4, 4, 36, seeded())  # a kernel of 7 × 7 alone has more
    assert len(large) == 36 and (np.diff(large) == 1).all()
    assert len(chunk_columns(9 * 2, 2, 12, seeded())) == 9


@pytest.mark.slow
def test_what_is_drawn_belongs_to_the_layer() -> None:
    for problem in drawn():
        assert problem.hessian.shape == (36, 36) and problem.weight.shape == (36,)
        assert (problem.weight == conv().matrix()[0, problem.row, problem.columns]).all()
        assert set(problem.budgets) == set(LEVELS)
        grid, pruned = problem.budgets[4]
        assert grid.scale == fit_grid(conv().matrix(), 4, False).scale[0, problem.row]  # the row's own
        assert isinstance(pruned.sparsity, Unstructured)
        assert round(pruned.sparsity.sparsity * 36) == 27  # 4 of 16 bits are a quarter of the weights
        two = problem.budgets[2][1].sparsity
        assert isinstance(two, Unstructured) and round(two.sparsity * 36) == 31  # 4.5 kept: rounded up
    assert len({problem.row for problem in drawn()}) == 3


def rows(seconds: float = 1e6) -> list[ChunkRow]:
    return list(prove(drawn(), seconds, Method(refine="auto"), lambda *_: None))


def test_what_is_proven_lies_above_what_is_solved() -> None:
    found = rows()
    assert len(found) == 3 * len(LEVELS)
    for row in found:
        for kind in ("quantize", "prune"):
            assert row.snr[kind] <= row.best[kind] + 1e-9 <= row.bound[kind] + 2e-9  # type: ignore[index]
            assert not row.exact[kind] or row.bound[kind] == pytest.approx(row.best[kind])  # type: ignore[index]
    assert all(row.exact["prune"] and row.exact["quantize"] for row in found)
    assert {row.proven for row in found} == {"quantize"}


def test_without_time_nothing_is_proven() -> None:
    assert rows(0.0) == []


@pytest.mark.slow
def test_where_search_stops_a_bound_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_obc.study.exact.problem import Limit

    whole = {(row.layer, row.row, row.columns, row.bits): row for row in rows()}
    monkeypatch.setattr(chunks, "Limit", lambda deadline: Limit(nodes=1))
    for relaxed in (True, False):
        monkeypatch.setattr(chunks, "relaxation_installed", lambda relaxed=relaxed: relaxed)
        for row in rows():
            known = whole[row.layer, row.row, row.columns, row.bits]
            for kind in ("quantize", "prune"):
                assert row.bound[kind] >= known.best[kind] - 1e-6  # type: ignore[index]


def test_each_layer_has_its_turn_before_another_of_any() -> None:
    turns = []
    names = ("a", "a", "a", "b", "c", "c")
    problems = [replace(problem, layer=name) for problem, name in zip(drawn(1) * 6, names, strict=True)]
    for row in prove([replace(x, budgets={4: x.budgets[4]}) for x in problems], 1e6, Method(), lambda *_: None):
        turns.append(row.layer)
    assert turns == ["a", "b", "c", "a", "c", "a"]


def test_verdicts_of_chunks() -> None:
    def proven(best: tuple[float, float], bound: tuple[float, float]) -> str | None:
        row = SimpleNamespace(
            best=dict(zip(("quantize", "prune"), best, strict=True)),
            bound=dict(zip(("quantize", "prune"), bound, strict=True)),
        )
        return ChunkRow.proven.fget(row)  # type: ignore[attr-defined]

    assert proven((20, 8), (22, 9)) == "quantize" and proven((8, 20), (9, 22)) == "prune"
    assert proven((10, 9), (12, 11)) is None


@pytest.mark.slow
def test_a_singular_hessian_leaves_a_chunk_open() -> None:
    (problem,) = drawn(1)
    flat = np.ones_like(problem.hessian) + 1e-15 * np.eye(len(problem.weight))
    (row, *_) = prove([replace(problem, hessian=flat)], 1e6, Method(), lambda *_: None)
    assert row.proven is None and not row.exact["prune"]
