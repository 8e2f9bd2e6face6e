"""Tables of seconds: how they are measured, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli

from onnx_obc import Recipe, RecipeError
from onnx_obc.core.level import FLOAT, Choice, parse_choice
from onnx_obc.core.level_sets import read_levels
from onnx_obc.core.machine import this_machine
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import possible, prepare
from onnx_obc.pipeline.speed import subject_of
from onnx_obc.search.latency.layer_times import time_layers, timed_choices
from onnx_obc.search.latency.table import Timings, check_timings, read_timings, write_timings
from onnx_obc.targets.engine import batch_of

NAME = np.load(CALIBRATION).files[0]
FEED = {NAME: np.load(CALIBRATION)[NAME][:4]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.search.latency.layer_times.RUN_SECONDS", 0.01)


@pytest.fixture(scope="module")
def timings() -> Timings:
    subject = subject_of(prepare(read_model(MODEL)))
    wanted = read_levels("8w8a,block4-0.5,int4-asym", zero_points=True)
    choices = {layer.name: [c for c in wanted if not possible(layer, c, "onnxruntime")] for layer in subject.layers}
    return time_layers(subject, choices, FEED, Recipe(threads=1))


@pytest.mark.slow
def test_every_layer_has_a_time_at_every_choice_that_it_can_take(timings: Timings) -> None:
    subject = subject_of(prepare(read_model(MODEL)))
    for layer in subject.layers:
        row = timings.layers[layer.name]
        assert {"float", "8w8a", "int4-asym"} <= row.keys() and all(seconds > 0 for seconds in row.values())
        assert ("block4-0.50" in row) == (layer.impossible(parse_choice("block4-0.5").level) is None)
    assert timings.batch == batch_of(FEED) == 4 and timings.threads == 1 and timings.machine == this_machine()
    assert set(timings.switches) == set(timings.layers)
    assert all(seconds >= 0 for row in timings.switches.values() for seconds in row.values())


@pytest.mark.slow
def test_the_layers_and_the_rest_add_up_to_the_whole(timings: Timings) -> None:
    from onnx_obc.targets.registry import TARGETS

    whole = np.median(TARGETS["onnxruntime"].engine.load(MODEL, FEED, 1).seconds(FEED, 50))
    total = timings.rest + sum(row["float"] for row in timings.layers.values())
    assert 0.2 < total / whole < 5  # machines are noisy; benchmarks/speed/runtimes.py shows how near it is


def test_of_a_ladder_some_sparsities_are_timed_and_the_others_lie_between() -> None:
    ladder = [choice for choice in read_levels("cpu", zero_points=False) if choice.level != FLOAT]
    timed = timed_choices(ladder)
    sparse = sorted(c.level.sparsity.sparsity for c in timed if c.level.sparsity is not None)  # type: ignore[union-attr]
    every = sorted(c.level.sparsity.sparsity for c in ladder if c.level.sparsity is not None)  # type: ignore[union-attr]
    assert parse_choice("8w8a") in timed and len(timed) == 7
    assert (sparse[0], sparse[-1]) == (every[0], every[-1])
    few = read_levels("gpu", zero_points=False)[1:]
    assert timed_choices(few) == list(few)


@pytest.mark.slow
def test_times_between_are_interpolated() -> None:
    subject = subject_of(prepare(read_model(MODEL)))
    wanted = [Choice(FLOAT), *(parse_choice(f"sparse-{0.1 * i:.1f}") for i in range(1, 10))]
    choices = {subject.layers[0].name: [Choice(FLOAT)], subject.layers[2].name: wanted}
    found = time_layers(subject, choices, FEED, Recipe(threads=1))
    row = found.layers[subject.layers[2].name]
    assert set(row) == {str(choice) for choice in wanted} and len(found.interpolated) == 3
    for text in found.interpolated:
        assert min(row.values()) <= row[text] <= max(row.values())


def test_tables_are_read_back(tmp_path: Path, timings: Timings) -> None:
    write_timings(timings, tmp_path / "t.json")
    assert read_timings(tmp_path / "t.json") == timings
    new = timings.over({"a": {"float": 1.0}}, {subject_of(prepare(read_model(MODEL))).layers[0].name: {"float": 2.0}})
    assert new.layers == timings.layers  # a layer that is not in the table stays out of it
    assert new.switches[subject_of(prepare(read_model(MODEL))).layers[0].name]["float"] == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"rest": -1},
        {"batch": "four"},
        {"machine": 3},
        {"switches": [1]},
        {"switches": {"a": {"x": -1}}},
    ],
)
def test_damaged_tables(tmp_path: Path, timings: Timings, change: dict[str, object]) -> None:
    write_timings(timings, tmp_path / "t.json")
    plain = json.loads((tmp_path / "t.json").read_text()) | change
    (tmp_path / "t.json").write_text(json.dumps(plain))
    with pytest.raises(RecipeError, match=r"--timings .*t\.json"):
        read_timings(tmp_path / "t.json")


def test_tables_do_not_mix(timings: Timings) -> None:
    check_timings(timings, "onnxruntime", this_machine())
    check_timings(timings, "onnxruntime", None)
    check_timings(Timings({}), "tensorrt", this_machine())  # by hand: it says nothing
    with pytest.raises(RecipeError, match="--target"):
        check_timings(timings, "tensorrt", this_machine())
    with pytest.raises(RecipeError, match="--other-machine"):
        check_timings(timings, "onnxruntime", "a toaster, 1 cores")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.json"
    assert run_cli("time", MODEL, "-o", out, "--levels", "8w8a", "--calib", CALIBRATION, "--batch", 2) == 0
    assert "8w8a" in capsys.readouterr().out
    assert read_timings(out).batch == 2
    assert "OUTPUT is missing" in refused(capsys, "time", MODEL)
    assert "names no level" in refused(capsys, "time", MODEL, "-o", out, "--levels", ",")
    assert "no layer can take any of int3" in refused(
        capsys, "time", MODEL, "-o", out, "--levels", "int3", "--target", "openvino"
    )
