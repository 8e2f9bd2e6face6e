"""Budgets of latency: measured speed, and what becomes of tables that are not from here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli
from half_models import in_half
from onnx import helper
from small_graphs import build as onnx_model
from small_graphs import random

from onnx_obc import Database, Recipe, RecipeError, build, open_database
from onnx_obc.core.level import FLOAT, Choice
from onnx_obc.core.machine import this_machine
from onnx_obc.pipeline.speed import timing_feed
from onnx_obc.search.budget import parse_budget
from onnx_obc.search.latency.find import find_in_time, table_of
from onnx_obc.search.latency.table import Timings, read_timings, write_timings
from onnx_obc.search.profile import SearchOptions, fastest_profiles, sensitivities
from onnx_obc.targets.bench import Benchmark, Timed

QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("latency") / "db"
    build(MODEL, CALIBRATION, "8w8a", folder, Recipe(refine="none"))
    return open_database(folder)


def by_hand(database: Database, machine: str, gain: float = 2.0) -> Timings:
    """Integers are `gain` times faster in every layer, and switches are free."""
    layers = {
        name: {str(c): 1e-3 / (gain if c.kind != "float" else 1) for c in cs} for name, cs in database.choices.items()
    }
    return Timings(layers, 0.0, "onnxruntime 0.0", machine, 1, 1)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What every model will be measured at, times faster than dense; and how often it was."""
    found = {"ratio": 1.5, "times": 0.0}

    def fake(files: object, *args: object) -> Benchmark:
        found["times"] += 1
        timed = Timed("", 1.0, found["ratio"], 1.0, 1.0, 30.0, None, 1)
        return Benchmark("onnxruntime 0.0", "", 1, 1, 1, (timed, timed))

    monkeypatch.setattr("onnx_obc.search.latency.find.bench", fake)
    monkeypatch.setattr(
        "onnx_obc.search.latency.find.time_file", lambda subject, *_: ({x.name: 1e-3 for x in subject.layers}, 0.0)
    )
    return found


def test_what_is_as_fast_as_predicted_is_taken_at_once(database: Database, speed: dict[str, float]) -> None:
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, this_machine()))
    losses = sensitivities(database, options, Recipe(), QUIET)
    found = find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)
    assert found.measured == 1.5 and found.predicted >= 1.5 and speed["times"] == 1
    assert sum(choice.kind == "float" for choice in found.profile.choices.values()) > 0


def test_what_is_slower_is_timed_in_place_and_chosen_again(database: Database, speed: dict[str, float]) -> None:
    speed["ratio"] = 0.9
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, this_machine()))
    losses = sensitivities(database, options, Recipe(), QUIET)
    with pytest.raises(RecipeError, match=r"1\.00x at most was measured"):
        find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)
    assert speed["times"] > 1


def test_what_the_table_rules_out_is_measured_before_it_is_refused(database: Database, speed: dict[str, float]) -> None:
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, this_machine(), gain=1.2))
    losses = sensitivities(database, options, Recipe(), QUIET)
    found = find_in_time(database, parse_budget("latency=1.4x"), losses, options, Recipe(), QUIET)
    assert found.predicted == pytest.approx(1.2) and speed["times"] == 1
    assert all(choice.kind == "int8" for choice in found.profile.choices.values())
    with pytest.raises(RecipeError, match=r"1\.50x at most was measured"):
        find_in_time(database, parse_budget("latency=2x"), losses, options, Recipe(), QUIET)


def test_a_table_of_another_machine_predicts_only(database: Database, speed: dict[str, float]) -> None:
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, "a toaster"), other_machine=True)
    losses = sensitivities(database, options, Recipe(), QUIET)
    assert table_of(database, options, Recipe(), QUIET) is options.timings
    found = find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)
    assert found.measured is None and speed["times"] == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_of_a_table_by_hand_the_user_says_whether_it_is_of_this_machine(
    elsewhere: bool, database: Database, speed: dict[str, float]
) -> None:
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, ""), other_machine=elsewhere)
    losses = sensitivities(database, options, Recipe(), QUIET)
    found = find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)
    assert found.measured == (None if elsewhere else 1.5) and speed["times"] == (0 if elsewhere else 1)


@pytest.mark.slow
def test_a_model_in_half_precision_is_timed_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "in"), helper.make_node("Relu", ["h"], ["y"])]
    model = in_half(
        onnx_model(nodes, {"x": ("N", 8)}, {"y": ("N", 16)}, {"w": random(8, 16)}), onnx.TensorProto.FLOAT16
    )
    build(model, {"x": random(80, 8).astype(np.float16)}, "8w8a", tmp_path / "db", Recipe(refine="none"))
    database, timed = open_database(tmp_path / "db"), []

    def fake(files: tuple[Path, ...], *args: object) -> Benchmark:
        timed.extend(onnx.load(file).graph.input[0].type.tensor_type.elem_type for file in files)
        one = Timed("", 1.0, 1.5, 1.0, 1.0, 30.0, None, 1)
        return Benchmark("onnxruntime 0.0", "", 1, 1, 1, (one, one))

    monkeypatch.setattr("onnx_obc.search.latency.find.bench", fake)
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, this_machine(), gain=1.5))
    losses = sensitivities(database, options, Recipe(), QUIET)
    find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)
    assert timed == [onnx.TensorProto.FLOAT16] * 2


@pytest.mark.slow
def test_the_table_is_measured_once_and_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.search.latency.layer_times.RUN_SECONDS", 0.01)
    options, recipe = SearchOptions(), Recipe(threads=1, timing_batch=2)
    first = table_of(database, options, recipe, QUIET)
    assert first.batch == 2 and first.threads == 1
    monkeypatch.setattr("onnx_obc.search.latency.find.time_layers", lambda *_: pytest.fail("it is there"))
    assert table_of(database, options, recipe, QUIET) == first
    path = database.folder / "timings" / "onnxruntime-batch2-threads1.json"
    write_timings(replace(first, machine="a toaster"), path)  # the database was copied from elsewhere
    monkeypatch.setattr("onnx_obc.search.latency.find.time_layers", lambda *_: first)
    assert table_of(database, options, recipe, QUIET) == first == read_timings(path)
    path.write_text("{")
    assert table_of(database, options, recipe, QUIET) == first == read_timings(path)


def test_feeds_of_any_batch(database: Database) -> None:
    for batch in (1, 3, 100):
        feed = timing_feed(database.folded, database.samples["calibration"], batch)
        assert {array.shape[0] for array in feed.values()} == {batch}


def test_the_fastest_profile_is_all_integers_where_they_are_faster(database: Database) -> None:
    losses = sensitivities(database, SearchOptions(sensitivity="layer"), Recipe(), QUIET)
    (found,) = fastest_profiles(database, losses, by_hand(database, ""))
    assert all(choice.kind == "int8" for choice in found.choices.values())


def test_no_layer_in_float_is_tried_too(database: Database, speed: dict[str, float]) -> None:
    """A single layer that the table has faster in float may cost more in conversions than the table knows."""
    table = by_hand(database, this_machine())
    name = next(iter(table.layers))
    slow = {**table.layers[name], "8w8a": 2e-3}
    table = replace(table, layers={**table.layers, name: slow})
    losses = sensitivities(database, SearchOptions(sensitivity="layer"), Recipe(), QUIET)
    mixed, uniform = fastest_profiles(database, losses, table)
    assert [n for n, c in mixed.choices.items() if c.kind == "float"] == [name]
    assert all(choice.kind == "int8" for choice in uniform.choices.values())
    with pytest.raises(RecipeError, match=r"1\.50x at most"):
        options = SearchOptions(sensitivity="layer", timings=table)
        find_in_time(database, parse_budget("latency=9x"), losses, options, Recipe(), QUIET)
    assert speed["times"] == 2


def test_where_nothing_is_faster(database: Database, speed: dict[str, float]) -> None:
    speed["ratio"] = 0.8
    options = SearchOptions(sensitivity="layer", timings=by_hand(database, this_machine(), gain=0.5))
    losses = sensitivities(database, options, Recipe(), QUIET)
    with pytest.raises(RecipeError, match=r"1\.00x at most"):
        find_in_time(database, parse_budget("latency=1.5x"), losses, options, Recipe(), QUIET)


@pytest.mark.slow
def test_in_one_command(
    database: Database,
    speed: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("onnx_obc.search.latency.find.time_layers", lambda *_: by_hand(database, this_machine()))
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    budget = ("--budget", "latency=1.2x", "--timing-batch", 8, "--refine", "none")
    assert run_cli(MODEL, out, "--calib", CALIBRATION, *budget, "--report", report) == 0
    assert "speed-up: predicted" in capsys.readouterr().out
    latency = json.loads(report.read_text())["search"]["latency"]
    assert latency["measured"] == speed["ratio"] and latency["runtime"].startswith("onnxruntime")


@pytest.mark.slow
def test_bad_input(database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.json"
    search = (
        "search",
        database.folder,
        "--budget",
        "latency=1.5x",
        "-o",
        tmp_path / "o.onnx",
        "--sensitivity",
        "layer",
        "--threads",
        1,
    )
    write_timings(by_hand(database, "a toaster, 1 cores"), table)
    assert "a toaster" in refused(capsys, *search, "--timings", table)
    write_timings(replace(by_hand(database, this_machine()), runtime="openvino 2026.0"), table)
    assert "the table is for openvino 2026.0" in refused(capsys, *search, "--timings", table)
    write_timings(by_hand(database, this_machine()), table)
    assert "batches of 1, not 4" in refused(capsys, *search, "--timings", table, "--timing-batch", 4)
    assert "greater than or equal to 1" in refused(capsys, *search, "--timing-batch", 0)
    assert "at most was measured" in refused(capsys, *search[:3], "latency=300x", *search[4:], "--timings", table)
    assert not (tmp_path / "o.onnx").exists()


def test_a_whole_feed_is_timed_as_it_is(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["v", "h"], ["y"])]
    model = onnx_model(nodes, {"x": (8, 4), "v": (3, 8)}, {"y": (3, 2)}, {"w": random(4, 2)})
    feeds = [{"x": random(8, 4, seed=i), "v": random(3, 8, seed=i + 50)} for i in range(20)]
    build(model, feeds, "8w8a", tmp_path / "db", Recipe(refine="none"))
    database = open_database(tmp_path / "db")
    feed = timing_feed(database.folded, database.samples["calibration"], 16)
    assert {name: array.shape for name, array in feed.items()} == {"x": (8, 4), "v": (3, 8)}


def test_the_fastest_profile_takes_nothing_that_breaks_the_model(database: Database) -> None:
    losses = sensitivities(database, SearchOptions(sensitivity="layer"), Recipe(), QUIET)
    name, choices = next((n, c) for n, c in database.choices.items() if len(c) > 1)
    broken = {**losses, name: np.array([0.0 if c == Choice(FLOAT) else np.inf for c in choices])}
    (found,) = fastest_profiles(database, broken, by_hand(database, ""))
    assert found.choices[name] == Choice(FLOAT)
