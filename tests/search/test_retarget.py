"""Budgets to models: names of files, level sets, and what a search may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import small, text_like
from onnx import helper
from small_graphs import build as build_graph
from small_graphs import random

from onnx_obc import (
    CalibrationError,
    Recipe,
    RecipeError,
    SearchOptions,
    build,
    compress_to_budget,
    parse_budget,
    retarget,
)
from onnx_obc.core.errors import EngineError
from onnx_obc.search.budget import Budget
from onnx_obc.search.latency.table import Timings
from onnx_obc.search.retarget import default_levels, load_task, output_names

X = np.random.default_rng(1).standard_normal((80, 4)).astype(np.float32)


def test_one_budget_keeps_the_name_and_several_give_names_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    one, two = parse_budget("bops=12x"), parse_budget("drop=1%")
    assert output_names(out, [one]) == [out]
    assert [path.name for path in output_names(out, [one, two])] == ["out-bops-12x.onnx", "out-drop-1pct.onnx"]
    with pytest.raises(RecipeError, match="same budget was given twice"):
        output_names(out, [one, one])


@pytest.mark.parametrize(
    ("budget", "target", "levels"),
    [
        ("bops=12x", "onnxruntime", "gpu"),
        ("size=0.2x", "onnxruntime", "weight-only"),
        ("drop=1%", "deepsparse", "cpu"),
        ("flops=3x", "tensorrt", "unstructured"),
        ("latency=2x", "onnxruntime", "8w8a"),
        ("latency=2x", "deepsparse", "cpu"),
        ("latency=2x", "tensorrt", "gpu"),
    ],
)
def test_the_levels_that_fit_a_budget(budget: str, target: str, levels: str) -> None:
    assert default_levels(parse_budget(budget), target) == levels


@pytest.mark.parametrize(
    ("budget", "recipe", "options", "said"),
    [
        ("size=0.5x", {"fix_slow": True}, {}, "--fix-slow returns layers to float, which a budget may not pay for"),
        ("size=0.5x", {}, {"other_machine": True}, "--other-machine has no effect without --budget latency"),
        ("size=0.5x", {}, {"timings": Timings({})}, "--timings has no effect without --budget latency"),
        ("latency=2x", {"float16": True}, {}, "budgets of latency time models in float32"),
        ("latency=2x", {}, {"timings": Timings({}, batch=7)}, "batches of 7, not 1; say --timing-batch 7"),
        ("latency=2x", {"threads": 1}, {"timings": Timings({}, threads=64)}, "64 threads, not 1; say --threads 64"),
        ("latency=2x", {}, {"timings": Timings({}, runtime="openvino 1")}, "the table is for openvino 1, but"),
    ],
)
def test_what_no_budget_can_have_is_refused_before_any_work(
    budget: str, recipe: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    wanted = SearchOptions(levels="8w8a", database=tmp_path / "db", **options)
    with pytest.raises(RecipeError, match=said):
        compress_to_budget(small(), {"x": X}, [parse_budget(budget)], [None], Recipe(**recipe), wanted)
    assert not (tmp_path / "db").exists()


def test_without_the_engine_no_budget_of_latency_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_OBC_TRTEXEC", str(tmp_path / "nothing"))
    wanted = SearchOptions(database=tmp_path / "db")
    with pytest.raises(EngineError, match="no trtexec"):
        compress_to_budget(small(), {"x": X}, [parse_budget("latency=2x")], [None], Recipe(target="tensorrt"), wanted)
    assert not (tmp_path / "db").exists()


def test_what_the_database_was_built_with_cannot_be_changed(tmp_path: Path) -> None:
    build(small(), {"x": X}, "int4", tmp_path / "db", Recipe(damp=0.02, device="cpu"))
    with pytest.raises(RecipeError, match=r"--damp 0\.5: .* was built with 0\.02; build another one"):
        retarget(tmp_path / "db", [parse_budget("size=0.5x")], [None], recipe={"damp": 0.5})
    (result,) = retarget(tmp_path / "db", [parse_budget("size=0.5x")], [None], recipe={"verify": False})
    assert result.report.recipe["damp"] == 0.02 and result.report.outputs == ()


@pytest.mark.slow
def test_build_and_search_in_one_keep_the_database_where_it_is_wanted(tmp_path: Path) -> None:
    options = SearchOptions(levels="int8,int4", database=tmp_path / "db")
    outputs = [tmp_path / "out.onnx"]
    (result,) = compress_to_budget(small(), {"x": X}, [parse_budget("size=0.4x")], outputs, Recipe(), options)
    assert (tmp_path / "db" / "manifest.json").is_file() and outputs[0].is_file()
    assert result.report.search is not None and result.report.search["costs"]["size"] <= 0.4


@pytest.mark.slow
def test_a_budget_of_size_says_that_it_counts_no_embeddings() -> None:
    ids = {"ids": np.random.default_rng(0).integers(0, 64, (40, 6))}
    size, bops = parse_budget("size=0.5x"), parse_budget("bops=2x")

    def notes(budget: Budget, **recipe: Any) -> list[str]:
        (result,) = compress_to_budget(text_like(), ids, [budget], [None], Recipe(**recipe))
        return [note for note in result.report.notes if "embeddings" in note]

    counted = "the budget counts the layers' weights only: 0.00819 of the 0.0153 MB are embeddings"
    floats = "embeddings stay float, 0.00819 of the 0.0153 MB that weights had"
    remedy = "; --embeddings int8 makes them smaller"
    assert sorted(notes(size)) == [f"{floats}{remedy}", counted]
    assert sorted(notes(size, target="tensorrt")) == [floats, counted]  # which cannot look up integers
    assert notes(bops) == [f"{floats}{remedy}"] and notes(size, embeddings="int8") == []


@pytest.mark.slow
def test_a_budget_of_size_says_that_it_counts_no_recurrent_weights() -> None:
    weights = {"W": random(8, 16), "g": random(1, 48, 8), "r": random(1, 48, 16), "V": random(16, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], name="in"),
        helper.make_node("MatMul", ["a", "U"], ["b"], name="in_2"),
        helper.make_node("GRU", ["b", "g", "r"], ["", "h"], name="gru", hidden_size=16),
        helper.make_node("Squeeze", ["h", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "V"], ["y"], name="out"),
    ]
    weights |= {"U": random(16, 8), "axis": np.array([0])}
    graph = build_graph(nodes, {"x": (5, "N", 8)}, {"y": ("N", 4)}, weights)
    feeds = [{"x": random(5, 1, 8, seed=seed)} for seed in range(40)]
    (result,) = compress_to_budget(graph, feeds, [parse_budget("size=0.5x")], [None])
    told = "the budget counts the layers' weights only: 0.00461 of the 0.00589 MB are other weights"
    assert told in result.report.notes


def test_a_task_is_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def loss(outputs, labels):\n    return 1.0\n")
    assert load_task(f"{tmp_path / 'task.py'}:loss")({}, None) == 1.0
    with pytest.raises(RecipeError, match=r"write module\.py:function"):
        load_task("loss")
    with pytest.raises(CalibrationError, match="not found"):
        load_task(f"{tmp_path / 'other.py'}:loss")
