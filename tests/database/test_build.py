"""Databases: built, interrupted, moved, damaged, and searched."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, listing, refused, run_cli, small, top1
from digits import build as graph

from onnx_obc import DatabaseError, DataOptions, Recipe, RecipeError, Rule, build, open_database, parse_budget, retarget
from onnx_obc.core.level import parse_choice
from onnx_obc.database.files import SCHEMA, read_arrays
from onnx_obc.solver.linalg.damping import CANDIDATES

FEW = DataOptions(samples=64)
LEVELS = "8w8a,2:4+8w8a,sparse-0.50,sparse-0.80"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished database of the digits model. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "db"
    built = build(MODEL, CALIBRATION, LEVELS, folder, data=FEW)
    assert built.solved == 75 and built.reused == 0 and built.captured
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes | None]:
    """All that a build writes, without what a search adds."""
    return {name: data for name, data in listing(folder).items() if not name.startswith("sensitivity")}


@pytest.mark.slow
def test_its_manifest_names_every_solution(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["complete"] and manifest["schema"] == SCHEMA
    assert manifest["levels"] == ["float", "8w8a", "2:4+8w8a", "sparse-0.50", "sparse-0.80"]
    named = {f"layers/{x['folder']}/{level.replace(':', 'of')}.safetensors"
             for x in manifest["layers"] for level in x["solutions"]}  # fmt: skip
    assert named == {name for name in listing(whole) if name.startswith("layers/") and name.endswith("safetensors")}
    depthwise = next(x for x in manifest["layers"] if "features.5/body/body.2" in x["name"])
    assert depthwise["choices"] == ["float", "8w8a", "sparse-0.50", "sparse-0.80"]  # 2:4 is impossible for it


@pytest.mark.slow
def test_solutions_come_back_as_they_were(whole: Path) -> None:
    from onnx_obc import compress

    database = open_database(whole)
    report = compress(MODEL, CALIBRATION, Recipe(weights="float", sparsity="0.8", effort="fast"), data=FEW).report
    for layer, entry in zip(database.layers, report.layers, strict=True):
        solved = database.solved(layer, parse_choice("sparse-0.80"))
        assert solved.report.loss == pytest.approx(entry.loss, rel=1e-6)
        assert solved.solution.mask is not None
        np.testing.assert_array_equal(solved.solution.mask, solved.solution.weights != 0)


def test_a_second_build_solves_nothing_and_changes_nothing(copy: Path, whole: Path) -> None:
    built = build(MODEL, CALIBRATION, LEVELS, copy, data=FEW)
    assert (built.solved, built.reused, built.captured) == (0, 75, False)
    assert files(copy) == files(whole)


@pytest.mark.slow
def test_levels_can_be_added(copy: Path) -> None:
    built = build(MODEL, CALIBRATION, "int4", copy, data=FEW)
    assert (built.solved, built.reused, built.captured) == (20, 75, False)
    assert [*built.manifest.levels][-1] == "int4"


@pytest.mark.slow
def test_other_options_or_data_are_refused(copy: Path, whole: Path) -> None:
    """What took hours is not deleted for a word too few on the command line."""
    with pytest.raises(DatabaseError, match=r"was built with damp None, not 0\.02; name another folder, or delete"):
        build(MODEL, CALIBRATION, "sparse-0.50", copy, Recipe(damp=0.02), data=FEW)
    with pytest.raises(DatabaseError, match="was built with other samples; name another folder, or delete"):
        build(MODEL, CALIBRATION, "sparse-0.50", copy, data=DataOptions(samples=32))
    assert files(copy) == files(whole)


@pytest.mark.slow
def test_the_damping_is_chosen_with_the_hessian_unless_it_is_given(whole: Path, tmp_path: Path) -> None:
    def dampings(folder: Path) -> dict[str, float | None]:
        return {file.name: read_arrays(file)[1]["damping"] for file in folder.glob("hessians/*")}

    chosen, database = dampings(whole), open_database(whole)
    assert set(chosen.values()) <= set(CANDIDATES) and len(set(chosen.values())) > 1
    for layer in database.layers:
        report = database.solved(layer, parse_choice("sparse-0.80")).report
        assert report.damping == chosen[f"{database.entries[layer.name].hessian}.safetensors"]
        assert not any(note.startswith(("damping raised", "no samples")) for note in report.notes)
    given = tmp_path / "db"
    build(MODEL, CALIBRATION, "sparse-0.80", given, Recipe(damp=0.02), data=FEW)
    assert set(dampings(given).values()) == {None}
    assert open_database(given).solved(database.layers[0], parse_choice("sparse-0.80")).report.damping == 0.02


KILLED = """
import os, signal
import onnx_obc.database.build as module

written = 0

def hook(owner, name, after):
    original = getattr(owner, name)
    def killing(*args):
        global written
        original(*args)
        written += 1
        if written == after:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, killing)

"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize("after", [0, 1, 25, 60])
def test_killed_and_run_again_it_ends_in_the_same_bytes(after: int, whole: Path, tmp_path: Path) -> None:
    """Killed from inside when so many solutions lie on disk; 0: when the manifest does, before anything is solved."""
    folder = tmp_path / "db"
    arguments = ["build", MODEL, folder, "--calib", CALIBRATION, "--levels", LEVELS, "--samples", "64"]
    hook = f"hook(module._Folder, 'put', {after})" if after else "hook(module, 'write_manifest', 1)"
    code = f"{KILLED}{hook}\nfrom onnx_obc.cli.main import main; main({[str(x) for x in arguments]!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob("layers/*/*.safetensors"))) == after and (folder / "manifest.json").exists()
    there = {p: p.stat().st_mtime_ns for p in folder.glob("layers/*/*.safetensors")}
    assert len(there) < 75
    with pytest.raises(DatabaseError, match="not finished"):
        open_database(folder)
    built = build(MODEL, CALIBRATION, LEVELS, folder, data=FEW)
    assert built.reused == len(there) and built.solved == 75 - len(there)
    assert {p: p.stat().st_mtime_ns for p in there} == there  # nothing was solved twice
    assert files(folder) == files(whole)


def test_inputs_of_text(tmp_path: Path) -> None:
    """Text is kept as the bytes that it is, and gives the same key each time."""
    rng, words = np.random.default_rng(0), np.array([["a"], ["b"], ["ü"], ["d"]])
    nodes = [
        onnx.helper.make_node(
            *("LabelEncoder", ["s"], ["i"]),
            domain="ai.onnx.ml",
            keys_strings=list("abüd"),
            values_floats=[0.0, 1.0, 2.0, 3.0],
        ),
        onnx.helper.make_node("Concat", ["x", "i"], ["c"], axis=1),
        onnx.helper.make_node("MatMul", ["c", "w"], ["y"], name="product"),
    ]
    inputs = {"x": (onnx.TensorProto.FLOAT, ["N", 7]), "s": (onnx.TensorProto.STRING, ["N", 1])}
    proto = graph(nodes, inputs, {"y": ["N", 8]}, {"w": rng.standard_normal((8, 8)).astype(np.float32)})
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    data = {"x": rng.standard_normal((64, 7)).astype(np.float32), "s": words[np.arange(64) % 4]}
    built = build(proto, data, "int8", tmp_path / "db")
    again = build(proto, {**data, "s": data["s"].astype(object)}, "int8", tmp_path / "db")
    assert built.solved == 1 and (again.solved, again.captured) == (0, False)
    feeds = next(open_database(tmp_path / "db").samples["held_out"].read(0, 6)).feed
    assert feeds["s"].dtype == object and set(feeds["s"].ravel()) <= set("abüd") and feeds["s"].shape == (6, 1)
    (result,) = retarget(tmp_path / "db", [parse_budget("size=0.4x")], [tmp_path / "out.onnx"])
    assert result.report.outputs[0].sqnr_db > 25


@pytest.mark.slow
def test_it_can_be_moved(copy: Path, tmp_path: Path) -> None:
    moved = copy.rename(tmp_path / "elsewhere")
    (result,) = retarget(moved, [parse_budget("bops=20x")], [tmp_path / "out.onnx"])
    assert top1(tmp_path / "out.onnx") > 0.97
    assert result.report.search is not None and result.report.search["costs"]["bops"] <= 1 / 20


def test_what_is_no_database_is_refused(whole: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="does not exist; make one with onnx-obc build"):
        open_database(tmp_path / "nowhere")
    with pytest.raises(DatabaseError, match="is no database"):
        open_database(tmp_path)
    onnx.save(small(), tmp_path / "small.onnx")
    with pytest.raises(DatabaseError, match="a database of another model; name another folder"):
        build(tmp_path / "small.onnx", {"x": np.eye(4, dtype=np.float32)}, "int8", copy)
    shutil.copy(tmp_path / "small.onnx", copy / "model.onnx")
    with pytest.raises(DatabaseError, match="is not the model that the database was built from"):
        open_database(copy)
    with pytest.raises(DatabaseError, match="other files in it"):
        build(MODEL, CALIBRATION, "int8", tmp_path, data=FEW)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("schema", "said"),
    [(SCHEMA - 1, "older onnx-obc .* build it again"), (SCHEMA + 1, "newer onnx-obc .* upgrade onnx-obc")],
)
def test_other_versions_are_refused(schema: int, said: str, copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(DatabaseError, match=said):
        open_database(copy)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "header", "cut", "gone", "foreign"])
def test_damage_is_found_and_mended_by_building_again(damage: str, copy: Path, whole: Path) -> None:
    first, second = sorted(copy.glob("layers/*/int8.safetensors"))[:2]
    data = bytearray(first.read_bytes())
    if damage in ("flip", "header"):
        data[-3 if damage == "flip" else data.index(b"loss_greedy")] ^= 1
        first.write_bytes(data)
    elif damage == "cut":
        first.write_bytes(data[:-10])
    elif damage == "gone":
        first.unlink()
    else:
        shutil.copy(second, first)
    database = open_database(copy)
    with pytest.raises(DatabaseError, match="run the same onnx-obc build again"):
        database.solved(database.layers[0], parse_choice("8w8a"))
    built = build(MODEL, CALIBRATION, LEVELS, copy, data=FEW)
    assert built.solved == 1
    assert files(copy) == files(whole)


def test_a_damaged_manifest(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DatabaseError, match=r"manifest\.json is damaged; delete it, then run the same"):
        open_database(copy)


def test_a_deleted_manifest_is_made_anew(copy: Path, whole: Path) -> None:
    (copy / "trained").mkdir()  # as a search that trains leaves it
    (copy / "manifest.json").unlink()
    built = build(MODEL, CALIBRATION, LEVELS, copy, data=FEW)
    assert built.solved == 0 and built.reused == 75 and not built.captured
    (copy / "trained").rmdir()
    assert files(copy) == files(whole)


@pytest.mark.slow
def test_tables_of_times_belong_to_a_database(copy: Path) -> None:
    """They do not keep a manifest from being made anew, and stay."""
    (copy / "timings").mkdir()
    (copy / "timings" / "onnxruntime-batch1-threads2.json").write_text("{}")
    (copy / "manifest.json").unlink()
    build(MODEL, CALIBRATION, LEVELS, copy, data=FEW)
    assert (copy / "timings").exists()


@pytest.mark.slow
def test_the_form_of_weights_is_chosen_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db, out = tmp_path / "db", tmp_path / "o.onnx"
    build(MODEL, CALIBRATION, "8w8a", db, Recipe(target="tensorrt", refine="none"), data=FEW)
    for form in ("dq", "qdq"):
        assert run_cli("search", db, "--budget", "size=0.3x", "-o", out, "--weight-form", form) == 0
        constants = {x.name for x in onnx.load(out).graph.initializer}
        weights = [n for n in onnx.load(out).graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants]
        assert bool(weights) == (form == "qdq")
    capsys.readouterr()
    assert "weight-form" in refused(
        capsys, "build", MODEL, db, "--calib", CALIBRATION, "--levels", "8w8a", "--weight-form", "qdq"
    )


def test_a_folder_with_a_model_of_the_users_is_left_alone(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()
    with pytest.raises(DatabaseError, match="another model"):
        build(MODEL, CALIBRATION, "int8", tmp_path, data=FEW)
    assert (tmp_path / "model.onnx").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "fixed", [{"weights": "int4"}, {"sparsity": "2:4"}, {"activations": "none"}, {"asymmetric": True}]
)
def test_a_recipe_that_fixes_levels_is_refused(fixed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fixes a level, but with a budget the search chooses"):
        build(MODEL, CALIBRATION, "int8", tmp_path / "db", Recipe(**fixed))


def test_rules_do_not_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fixes a level, but with a budget the search chooses"):
        build(MODEL, CALIBRATION, "int8", tmp_path / "db", Recipe(layers=(Rule(match="*", weights="int4"),)))
    assert not (tmp_path / "db").exists()


def test_skipped_layers_stay_dense(tmp_path: Path) -> None:
    recipe = Recipe(layers=(Rule(match="*features*", skip=True),))
    built = build(MODEL, CALIBRATION, "int8", tmp_path / "db", recipe, data=FEW)
    assert [x.choices for x in built.manifest.layers if len(x.choices) > 1] == [("float", "int8")]


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = tmp_path / "db"
    assert run_cli("build", MODEL, db, "--calib", CALIBRATION, "--samples", 64, "--levels", "8w8a,4w4a") == 0
    assert "20 layers, 40 solutions solved" in capsys.readouterr().out
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    assert run_cli("search", db, "--budget", "obc-bops=5x", "--budget", "size=0.2x", "-o", out, "--report", report) == 0
    printed = capsys.readouterr()
    assert "obc-bops=5x: " in printed.err and "budget size=0.2x: of the dense model's layers" in printed.out
    names = {"out-obc-bops-5x.onnx", "out-size-0.2x.onnx", "out-pareto.csv", "out-pareto.svg", "r.json", "db"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert [x["search"]["budget"] for x in json.loads(report.read_text())] == ["obc-bops=5x", "size=0.2x"]
    rows = (tmp_path / "out-pareto.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("budget,file,")
    assert "obc-bops=5x" in (tmp_path / "out-pareto.svg").read_text()
    line = refused(capsys, "search", db, "--budget", "obc-bops=5x", "-o", out, "--report", out)
    assert "the model goes there" in line
    line = refused(capsys, "search", db, "--budget", "obc-bops=9x", "-o", out)
    assert "obc-bops=9x cannot be met" in line and "8x at most" in line


@pytest.mark.slow
def test_one_command_for_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    paths = [MODEL, out, "--calib", CALIBRATION, "--samples", 64]
    assert run_cli(*paths, "--target", "tensorrt", "--budget", "bops=12x") == 0
    assert top1(out) > 0.97
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert run_cli(*paths, "--target", "tensorrt", "--budget", "bops=12x", "--report", tmp_path / "r.json") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["model"] == str(MODEL) and report["file_bytes_before"] == MODEL.stat().st_size
    capsys.readouterr()
    assert "needs a --budget" in refused(capsys, *paths, "--levels", "gpu")
    assert "--weights fixes a level" in refused(capsys, *paths, "--budget", "bops=12x", "--weights", "int4")
    assert "did you mean bops?" in refused(capsys, *paths, "--budget", "bobs=12x")
    assert "--search needs a --budget" in refused(capsys, *paths, "--search", "spdy")
