"""Files that were made to harm: each is refused on one line, with exit code 2, and nothing is written or waited for."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import listing, refused, run_cli, small

import onnx_obc.core.files as files
from onnx_obc import OutputError, build
from onnx_obc.core.machine import usable_cores
from onnx_obc.core.plural import counted
from onnx_obc.graph.save import check_output

DATA = {"x": np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "in.onnx")
    np.savez("x.npz", **DATA)
    return tmp_path


def refuse(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    before = listing(Path())
    message = refused(capsys, "in.onnx", "out.onnx", "--calib", "x.npz", *options)
    assert listing(Path()) == before
    assert len(message) < 1700
    return message


LAUGHS = "weights: [&a [lol,lol,lol,lol,lol,lol,lol,lol]" + "".join(
    f", &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 8)}]" for i in range(12)
)
RECIPES = {
    "deep": ("[" * 5000, "nested too deep for a recipe"),
    "deep map": ("{a: " * 5000, "nested too deep for a recipe"),
    "deep and closed": (f"layers: {'[' * 900}{']' * 900}", "nested too deep for a recipe"),
    "laughs": (f"{LAUGHS}]", "not valid YAML (more than 20000 values)"),
    "itself": ("layers: &a [*a]", "not valid YAML (more than 20000 values)"),
    "long number": (f"refine: 0x{'f' * 5000}", "not a number of thousands of digits"),
    "long number as text": (f"sparsity: 0x{'f' * 5000}", "not a number of thousands of digits"),
    "long text": (f"weights: {'w' * 100_000}", "not 'www"),
    "long sparsity": (f"sparsity: {'w' * 100_000}", "is not known; write 2:4"),
    "long name": (f"? {'w' * 100_000}\n: 5", "unknown option"),
    "large": ("# " + "x" * 2**20, "cannot be read (is larger than 1024 KiB)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RECIPES)
def test_recipes(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = RECIPES[case]
    Path("r.yaml").write_text(text)
    assert message in refuse(capsys, "--recipe", "r.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    assert "pipe: cannot be read (is not a regular file)" in refuse(capsys, "--recipe", "pipe")
    assert "pipe: a pipe or device cannot be read again; give a file" in refused(
        capsys, "in.onnx", "out.onnx", "--calib", "pipe"
    )
    message = refused(capsys, "pipe", "out.onnx", "--calib", "x.npz")
    assert message == "error: model pipe is not a regular file; name another"
    message = refused(capsys, "search", ".", "--budget", "latency=2x", "-o", "out.onnx", "--timings", "pipe")
    assert "--timings pipe: cannot be read (is not a regular file)" in message


def test_deep_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.json").write_text("[" * 100_000)
    message = refused(capsys, "search", ".", "--budget", "latency=2x", "-o", "out.onnx", "--timings", "t.json")
    assert "--timings t.json: no valid JSON" in message
    Path("db").mkdir()
    Path("db/manifest.json").write_text("[" * 100_000)
    assert "manifest.json is damaged" in refused(capsys, "search", "db", "--budget", "size=0.4x", "-o", "out.onnx")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "db"
    build(small(), DATA, "int8", path)
    return path


MANIFESTS = {
    "no choices": lambda m: m["layers"][0].update(choices=[]),
    "unknown choices": lambda m: m["layers"][0].update(choices=["float", "int99"]),
    "no solutions": lambda m: m["layers"][0].update(solutions={}),
    "no folder": lambda m: m["layers"][0].update(folder=None),
    "folder elsewhere": lambda m: m["layers"][0].update(folder="../../elsewhere"),
    "hessian elsewhere": lambda m: m["layers"][0].update(hessian=".."),
    "rows": lambda m: m["layers"][0].update(rows="8"),
    "layers": lambda m: m.update(layers=[5]),
    "recipe": lambda m: m.update(recipe=[1]),
    "skip": lambda m: m["recipe"].pop("skip"),
    "notes": lambda m: m.update(calibration={"notes": 5}),
    "calibration": lambda m: m.update(calibration=None),
    "ranges": lambda m: m.update(ranges={"../x": "key"}),
    "keys": lambda m: m.update(samples=5),
    "levels": lambda m: m.update(levels=[5]),
    "ordered": lambda m: m.update(ordered=[5]),
    "surplus": lambda m: m.update(surplus=5),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_changed_by_hand(case: str, folder: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((database / "manifest.json").read_text())
    MANIFESTS[case](manifest)
    Path("db").mkdir()
    Path("db/manifest.json").write_text(json.dumps(manifest))
    message = refused(capsys, "search", "db", "--budget", "size=0.4x", "-o", "out.onnx")
    assert "manifest.json is damaged; delete it, then run the same onnx-obc build again" in message


def test_a_folder_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    message = refused(capsys, "build", "in.onnx", "/proc/db", "--calib", "x.npz", "--levels", "int8")
    assert message.startswith("error: cannot make the folder /proc/db: ") and message.endswith("name another one")


def test_escape_codes_in_names_do_not_reach_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07\x1b[31mred\x9b1m\u202egnp.exe"
    proto = small()
    proto.graph.node[0].name = evil
    onnx.save(proto, "in.onnx")
    shown = []
    for command in (["inspect", "in.onnx"], ["in.onnx", "out.onnx", "--calib", "x.npz"]):
        assert run_cli(*command) == 0
        printed = capsys.readouterr()
        shown.append(printed.out + printed.err)
        assert "]0;title[31mred1mgnp.exe" in shown[-1]
    shown.append(refused(capsys, f"{evil}.onnx", "out.onnx", "--calib", "x.npz"))
    shown.append(refused(capsys, "in.onnx", "out.onnx", "--calib", "x.npz", f"--{evil}", "5"))
    shown.append(refused(capsys, "in.onnx", f"none{evil}/out.onnx", "--calib", "x.npz"))
    for text in shown:
        assert not set(text) & set("\x1b\x07\x9b\u202e")


def test_threads_beyond_the_cores(folder: Path) -> None:
    Path("r.yaml").write_text("threads: 1024\n")
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", "--recipe", "r.yaml", "--report", "r.json") == 0
    there = counted(usable_cores(), "core")
    note = f"1024 threads were asked for, but the machine has {there}: as many were used"
    assert note in json.loads(Path("r.json").read_text())["notes"]


@pytest.mark.parametrize(
    ("option", "what"), [(["--global-adaprune", 1], "global AdaPrune"), (["--effort", "best"], "--effort best")]
)
@pytest.mark.parametrize("budget", [[], ["--budget", "size=0.4x", "--levels", "int8"]])
def test_training_without_torch_is_refused_before_the_work(
    option: list[object],
    what: str,
    budget: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx2torch" else there(name))
    monkeypatch.setattr("onnx_obc.pipeline.compress.solve_plan", lambda *args: pytest.fail("the work has begun"))
    monkeypatch.setattr("onnx_obc.search.retarget.build", lambda *args, **more: pytest.fail("the work has begun"))
    message = refuse(capsys, *option, *budget)
    assert f"{what} needs onnx2torch, not installed; install onnx-obc[torch], or leave it out" in message


def test_what_a_killed_run_left_is_removed_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that of processes that are gone, of this machine."""
    monkeypatch.setattr(files, "_runs", lambda process: process != 4711)
    mine = files.scratch_prefix()
    gone = mine.replace(f"-{os.getpid()}-", "-4711-")
    assert gone != mine
    (folder / f"{gone}abc").mkdir()
    (folder / f"{gone}abc" / "out.onnx").write_bytes(b"half of it")
    (folder / f"{gone}r.json.tmp").write_bytes(b"{")
    kept = [f"{mine}abc", ".onnx-obc-otherhost-4711-abc", ".onnx-obc-4711", ".onnx-obc-mine", ".out.onnx.4711.tmp"]
    for name in kept:
        (folder / name).mkdir()
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz") == 0
    assert {path.name for path in folder.iterdir()} == {"in.onnx", "x.npz", "out.onnx", *kept}


def test_a_database_loses_what_a_killed_build_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(small(), DATA, "int8", "db")
    before = listing(Path("db"))
    monkeypatch.setattr(files, "_runs", lambda process: process != 4711)
    gone = files.scratch_prefix().replace(f"-{os.getpid()}-", "-4711-")
    for place in (".", "layers", "hessians", *(str(p.relative_to("db")) for p in Path("db/layers").iterdir())):
        (Path("db") / place / f"{gone}x.safetensors.tmp").write_bytes(b"half of it")
    build(small(), DATA, "int8", "db")
    assert listing(Path("db")) == before


def test_a_scratch_name_is_taken_by_a_process_that_runs(tmp_path: Path) -> None:
    (tmp_path / f"{files.scratch_prefix()}x").mkdir()
    check_output(tmp_path / "out.onnx", "in.onnx")
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OutputError):
        check_output(tmp_path / "none" / "out.onnx", "in.onnx")
