"""Databases that workers build: the same bytes, whoever did what, and whoever died of it."""

from __future__ import annotations

from pathlib import Path

import at_work
import pytest
from digits import CALIBRATION, MODEL, listing, refused
from hypothesis import given
from hypothesis import strategies as st

from onnx_obc import DataOptions, Feedback, RecipeError, build
from onnx_obc.calibration.capture import Chunk
from onnx_obc.database import spread
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import prepare
from onnx_obc.pipeline.recipe import Recipe

FEW = DataOptions(samples=64)
LEVELS = "8w8a,2:4+8w8a,sparse-0.50"
LAYERS = tuple(find_layers(prepare(read_model(MODEL)).model)[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes. Not to be changed."""
    return build(MODEL, CALIBRATION, LEVELS, tmp_path_factory.mktemp("alone") / "db", data=FEW).folder


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    feedback = Feedback(lambda *what: told.append(what))
    built = build(MODEL, CALIBRATION, LEVELS, tmp_path / "db", data=FEW, workers="2", feedback=feedback)
    assert listing(built.folder) == listing(alone)
    assert built.captured and built.solved == sum(len(x.solutions) for x in built.manifest.layers)
    for stage in ("capture", "solve"):
        assert sum(done for name, done, _ in told if name == stage) == next(x[2] for x in told if x[0] == stage)
    again = build(MODEL, CALIBRATION, LEVELS, tmp_path / "db", data=FEW, workers="2")
    assert (again.solved, again.reused, again.captured) == (0, built.solved, False)
    assert listing(built.folder) == listing(alone)


@pytest.mark.slow
def test_small_memory_and_many_runs_over_the_data_make_the_same_bytes(tmp_path: Path) -> None:
    recipe = Recipe(memory=0.001)
    made = [
        listing(build(MODEL, CALIBRATION, LEVELS, tmp_path / str(w), recipe, data=FEW, workers=w).folder)
        for w in (None, "3")
    ]
    assert made[0] == made[1] and sum(name.startswith("ranges/") for name in made[0]) > 1


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_a_layer(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed from inside, with a layer solved and not handed back: twice."""
    fatal = tmp_path / "fatal"
    fatal.mkdir()
    for number in range(2):
        (fatal / str(number)).touch()
    monkeypatch.setenv(at_work.FATAL, str(fatal))
    monkeypatch.setattr(spread, "do_solve", at_work.solve)
    built = build(MODEL, CALIBRATION, LEVELS, tmp_path / "db", data=FEW, workers="2")
    assert listing(built.folder) == listing(alone) and not list(fatal.iterdir())


@pytest.mark.slow
def test_interrupted_it_goes_on_anywhere(alone: Path, tmp_path: Path) -> None:
    solved = 0

    def interrupt(stage: str, done: int, total: int) -> None:
        nonlocal solved
        solved += bool(stage == "solve" and done)
        if solved == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(MODEL, CALIBRATION, LEVELS, tmp_path / "db", data=FEW, workers="2", feedback=Feedback(interrupt))
    there = {p: p.stat().st_mtime_ns for p in tmp_path.glob("db/layers/*/*.safetensors")}
    assert there and {p.name for p in tmp_path.glob("db/hessians/*")} == {p.name for p in alone.glob("hessians/*")}
    built = build(MODEL, CALIBRATION, LEVELS, tmp_path / "db", data=FEW)
    assert not built.captured and built.reused == len(there)
    assert {p: p.stat().st_mtime_ns for p in there} == there
    assert listing(built.folder) == listing(alone)


@given(
    st.sets(st.sampled_from(range(len(LAYERS)))),
    st.lists(st.text(max_size=3), unique=True, max_size=9),
    st.integers(1, 9),
)
def test_parts_of_a_run_are_all_of_it(chosen: set[int], ranges: list[str], most: int) -> None:
    chunk = Chunk(tuple(LAYERS[i] for i in sorted(chosen)), tuple(ranges), choose_damping=True)
    parts = spread.split_chunk(chunk, most, 64)
    assert len(parts) == min(most, len({layer.uses[0].tap for layer in chunk.layers}) + len(ranges))
    assert sorted(x.name for part in parts for x in part.layers) == sorted(layer.name for layer in chunk.layers)
    assert sorted(value for part in parts for value in part.ranges) == sorted(ranges)
    taps = [{use.tap for layer in part.layers for use in layer.uses} for part in parts]
    assert sum(map(len, taps)) == len(set().union(*taps))


def test_what_learns_on_the_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="solver adaround learns on the model as a whole"):
        build(MODEL, CALIBRATION, "8w8a", tmp_path / "db", Recipe(solver="adaround"), data=FEW, workers="2")


def test_the_command_line_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--calib", CALIBRATION, "--samples", 64, "--levels", "8w8a", "--workers", "many")
    assert "error: --workers many: give a number of processes, auto," in refused(
        capsys, "build", MODEL, tmp_path / "db", *options
    )
