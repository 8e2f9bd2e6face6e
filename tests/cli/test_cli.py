"""The command line: what it shows, and that options arrive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, build, listing, refused, run_cli, small, text_like, top1
from onnx import TensorProto, helper
from small_decoders import decoder

import onnx_obc
from onnx_obc import DataOptions, Recipe
from onnx_obc.cli.help import USAGES
from onnx_obc.cli.options import CalibrationOptions, FinishOptions, MethodOptions, RunOptions, UniformOptions
from onnx_obc.core.options import Doc, names


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `compress` is called with; it does nothing."""
    found: dict[str, Any] = {}

    def note(source: Path, calib: str, recipe: Recipe, output: Path, **more: Any) -> None:
        found.update(source=source, calib=calib, recipe=recipe, output=output, **more)

    monkeypatch.setattr("onnx_obc.pipeline.compress.compress", note)
    monkeypatch.chdir(tmp_path)
    yield found


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.slow
def test_a_run_shows_its_layers_and_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    assert run_cli(MODEL, out, "--calib", CALIBRATION, "--sparsity", "2:4", "--report", report) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    without = "¹ 5 layers: 2:4: C/groups = 1 is not a multiple of 4: quantized without zeros"
    for part in ("2:4+int8", "baseline", "✓ losses", "✓ patterns: 15", without, "dB SQNR", "388,"):
        assert part in printed.out
    assert "/features/features.10/body/body.0/body.0.0/Conv" in printed.out  # on one line, where there is no terminal
    assert set(listing(tmp_path)) == {"out.onnx", "r.json"}
    assert top1(out) > 0.97
    plain = json.loads(report.read_text(encoding="utf-8"))
    assert plain["schema"] == 1 and plain["version"] == onnx_obc.__version__
    assert plain["model"] == str(MODEL) and plain["output"] == str(out)
    assert len(plain["layers"]) == 20 and len(plain["left_out"]) == 0
    assert plain["totals"]["mean_loss_relative"] < 0.2 * plain["totals"]["mean_baseline_relative"]
    assert plain["file_bytes_after"] == out.stat().st_size
    assert all(math.isfinite(number) for number in numbers(plain))


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(small(), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    assert run_cli(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npy", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out.onnx").is_file()


def test_one_is_no_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    weights = {"w": np.eye(4, 8, dtype=np.float32), "b": np.ones(8, np.float32)}
    onnx.save(build(nodes, {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 8]}, weights), model)
    np.savez(tmp_path / "x.npz", x=np.eye(4, dtype=np.float32)[:1])
    data = ["--calib", tmp_path / "x.npz", "--threads", 1]
    assert run_cli(model, out, *data, "--samples", 2, "--sparsity", "0.5") == 0
    assert run_cli("build", model, tmp_path / "db", *data, "--levels", "int8") == 0
    assert run_cli("inspect", model) == 0
    assert run_cli("check", out, "--target", "onnxruntime", *data) == 0
    assert run_cli("bench", model, out, "--rounds", 1, *data) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"(?<!of )\b1 [a-z-]+s\b", printed) == []
    assert "1 position for 4 columns" in printed and "1 layer, 1 solution solved" in printed


@pytest.mark.slow
def test_corrections_say_what_they_were_judged_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    weights = {"w": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32), "b": np.ones(8, np.float32)}
    onnx.save(build(nodes, {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 8]}, weights), tmp_path / "in.onnx")
    x = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    for count, where in ((1, "the calibration samples themselves"), (40, "other samples")):
        np.savez(tmp_path / "x.npz", x=x[:count])
        assert (
            run_cli(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npz", "--weights", "int3")
            == 0
        )
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("corrected bias"))
        assert line.partition(": dropped")[0].endswith(f" on {where}")


def test_skip_and_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(text_like(), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", ids=np.random.default_rng(0).integers(0, 64, (40, 6)))
    paths = [tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npz"]
    assert run_cli(*paths, "--skip", "*down", "--embeddings", "int8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["table", "Gather", "int8"] for line in lines)
    assert "left as it is: block/down: skipped, as --skip says" in [line.strip() for line in lines]


@pytest.mark.slow
def test_a_report_says_who_skipped_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(text_like(), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", ids=np.random.default_rng(0).integers(0, 64, (40, 6)))
    (tmp_path / "r.yaml").write_text("layers: [{match: '*down', skip: true}]")
    data, output = ["--calib", tmp_path / "x.npz"], tmp_path / "out.onnx"
    options: dict[str, tuple[object, ...]] = {
        "as --skip says": ("--skip", "*down"),
        "as the recipe says": ("--recipe", tmp_path / "r.yaml"),
    }
    for said, given in options.items():
        for budget in ((), ("--budget", "size=0.5x")):
            assert run_cli(tmp_path / "in.onnx", output, *data, *given, *budget) == 0
            assert f"left as it is: block/down: skipped, {said}\n" in capsys.readouterr().out
    build = ["build", tmp_path / "in.onnx", tmp_path / "db", *data, "--levels", "int8", "--skip", "*down"]
    assert run_cli(*build) == run_cli("search", tmp_path / "db", "-o", output, "--budget", "size=0.5x") == 0
    assert "left as it is: block/down: skipped, as the build says\n" in capsys.readouterr().out


def test_a_skip_that_matches_nothing_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_obc.calibration.capture.probe", lambda *args: pytest.fail("the work has begun"))
    onnx.save(text_like(), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", ids=np.zeros((40, 6), np.int64))
    data = ["--calib", tmp_path / "x.npz", "--skip", "*/dawn"]
    line = "error: --skip or a rule of the recipe: '*/dawn' matches no layer; did you mean 'block/down'?"
    for command in (["compress"], ["build"], ["compress", "--budget", "size=0.3x"]):
        more = ["--levels", "int8"] if command == ["build"] else []
        assert refused(capsys, command[0], tmp_path / "in.onnx", tmp_path / "out", *data, *command[1:], *more) == line
    assert set(listing(tmp_path)) == {"in.onnx", "x.npz"}


def test_the_command_line_comes_before_the_recipe_file(seen: dict[str, Any]) -> None:
    Path("r.yaml").write_text(
        "weights: int4\nsparsity: 2:4\nasymmetric: true\nverify: false\nseed: 3\ndamp: 0.5\n"
        "layers:\n- {match: a, weights: int2}\n"
    )
    options = ["--weights", "int8", "--no-asymmetric", "--damp", "0", "--skip", "b*", "--skip", "c", "--verify"]
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", "--recipe", "r.yaml", "--quiet", *options) == 0
    recipe = seen["recipe"]
    assert (recipe.weights, recipe.sparsity, recipe.asymmetric) == ("int8", "2:4", False)
    assert (recipe.verify, recipe.damp, recipe.seed) == (True, 0.0, 3)
    assert [(rule.match, rule.skip) for rule in recipe.layers] == [("b*", True), ("c", True), ("a", False)]
    assert seen["data"] == DataOptions(seed=3)


def test_every_option_arrives(seen: dict[str, Any]) -> None:
    recipe = {
        "weights": "int4", "activations": "none", "sparsity": "block4:0.5", "asymmetric": True, "embeddings": "int4",
        "strict_pattern": True,
        "target": "tensorrt", "solver": "baseline", "grid": "minmax", "ranges": "percentile", "all_positions": True,
        "damp": 0.1, "precision": "float64", "seed": 5, "device": "cpu", "threads": 1, "memory": 2.5, "verify": False,
    }  # fmt: skip
    data = {
        "samples": 9, "batch": 2, "preprocess": "tf", "mean": (0.1, 0.2), "std": (0.3, 0.4), "size": (5, 6),
        "layout": "NHWC", "augment": 3, "tokenizer": "t.json", "max_tokens": 7, "encoder": "e.onnx",
        "allow_random": True,
    }  # fmt: skip
    tokens: list[object] = []
    for name, value in {**recipe, **data}.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            tokens.append(f"--{option}" if value else f"--no-{option}")
        else:
            tokens += [f"--{option}", *(value if isinstance(value, tuple) else [value])]
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", "--quiet", *tokens) == 0
    assert seen["recipe"] == Recipe(**recipe)
    assert seen["data"] == DataOptions(**data, seed=5)
    assert (seen["source"], seen["calib"], seen["output"]) == (Path("in.onnx"), "x.npz", Path("out.onnx"))


def test_the_options_are_those_of_the_recipe_and_of_the_data() -> None:
    groups = (UniformOptions, MethodOptions, FinishOptions, RunOptions)
    found = [field for group in groups for field in dataclasses.fields(group)]
    assert sorted(field.name for field in found) == sorted(set(Recipe.model_fields) - {"layers"})
    assert all(field.default is None for field in (*found, *dataclasses.fields(CalibrationOptions)))
    assert names(CalibrationOptions) == names(DataOptions)
    said = [extra.text for field in Recipe.model_fields.values() for extra in field.metadata if isinstance(extra, Doc)]
    assert len(set(said)) == len(found)  # each has words of its own


def test_options_that_are_wrong_are_refused_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "damp": "-1",
        "time-limit": "0",
        "memory": "inf",
        "threads": "0",
        "global-adaprune": "1001",
    }.items():
        line = refused(capsys, "in.onnx", "out.onnx", "--calib", "x.npz", f"--{name}", value)
        assert line.startswith(f"error: command line: {name.replace('-', '_')}: should be "), line


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_cli("--help-all") == 0
    shown = capsys.readouterr().out
    assert run_cli("compress", "--help-all") == 0
    options = [re.findall(r"^│ \*? *((?:--\S+ )+)", text, re.MULTILINE) for text in (shown, capsys.readouterr().out)]
    of_all = {"--help ", "--version ", "--install-completion "}
    assert set(options[0]) - set(options[1]) == of_all and set(options[1]) <= set(options[0])
    assert "Usage: onnx-obc SOURCE OUTPUT --calib DATA [OPTIONS]" in shown
    titles = re.findall(r"^╭─ ([^─]+) ─", shown, re.MULTILINE)
    assert titles[-6:] == [
        "What the layers become",
        "Calibration data",
        "How a budget chooses",
        "How it is done",
        "What the file must reach",
        "Run",
    ]
    assert all(len(line) <= 80 for line in shown.splitlines())
    monkeypatch.setenv("COLUMNS", "300")
    assert run_cli("--help-all") == 0
    words = " ".join(re.sub(r"[│\n]|--no-[\w-]+", " ", capsys.readouterr().out).split())
    for name, field in Recipe.model_fields.items():
        if name != "layers":
            assert f"--{name.replace('_', '-')}" in words, name
        if name != "layers" and field.default is not None:
            default = {True: "yes", False: "no"}[field.default] if isinstance(field.default, bool) else field.default
            assert re.search(rf"--{name.replace('_', '-')} [^[]*\[default: {default}\]", words), name
        for extra in field.metadata:
            assert not isinstance(extra, Doc) or extra.text in words, name
    assert run_cli("inspect", "--help") == 0
    assert "which levels are impossible" in capsys.readouterr().out


def test_help_shows_what_most_people_need(
    seen: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_cli("--help") == 0
    shown = capsys.readouterr().out
    assert run_cli() == 0
    assert capsys.readouterr().out == shown
    assert 10 <= len(re.findall(r"^│ [* ]* ?--(?!help|version)", shown, re.MULTILINE)) <= 16
    for name in ("calib", "target", "weights", "sparsity", "budget", "skip", "recipe", "report", "quiet", "tokenizer"):
        assert f" --{name} " in shown, name
    assert "--damp" not in shown and shown.endswith("All options: onnx-obc --help-all\n")
    examples = re.findall(r"^  onnx-obc (.*)$", shown, re.MULTILINE)
    assert len(examples) == 4
    monkeypatch.setattr("onnx_obc.search.retarget.compress_to_budget", lambda *args, **more: [])
    for example in examples:  # each whole, on one line
        assert run_cli(*shlex.split(example), "--quiet") == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "search", "check", "bench", "time"])
def test_the_help_of_every_command_names_all_of_its_options_on_request(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(command, "--help") == 0
    brief = capsys.readouterr().out
    assert run_cli(command, "--help-all") == 0
    everything = capsys.readouterr().out
    names = [set(re.findall(r"--[\w-]+", text)) - {"--help-all"} for text in (brief, everything)]
    assert names[0] < names[1]
    assert brief.splitlines()[0] == everything.splitlines()[0] == f"Usage: {USAGES[command]}"
    assert brief.endswith(f"All options: onnx-obc {command} --help-all\n") and "--help-all" not in everything


def test_compress_is_a_command_too(seen: dict[str, Any]) -> None:
    plain = ["in.onnx", "out.onnx", "--calib", "x.npz", "--quiet", "--weights", "int4"]
    assert run_cli(*plain) == 0
    first = dict(seen)
    assert run_cli("compress", *plain) == 0
    for name in ("-o", "--output"):
        assert run_cli("compress", "in.onnx", "--calib", "x.npz", "--quiet", "--weights", "int4", name, "out.onnx") == 0
        assert {**seen, "feedback": None} == {**first, "feedback": None}


@pytest.mark.slow
def test_the_same_words_in_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(small(), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    for target in ("--target", "--runtime"):
        for report in ("--report", "--json"):
            command = ["bench", "in.onnx", "in.onnx", target, "onnxruntime", "--rounds", 1, "--quiet"]
            assert run_cli(*command, report, f"{target[2:]}{report}.json") == 0
            assert json.loads(Path(f"{target[2:]}{report}.json").read_text(encoding="utf-8"))
    assert run_cli("check", "in.onnx", "--target", "onnxruntime", "--report", "check.json") == 0
    assert json.loads(Path("check.json").read_text(encoding="utf-8"))
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npy", "--quiet", "--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["output"] == "out.onnx"


def loaded_by(arguments: list[str], modules: tuple[str, ...]) -> list[str]:
    """Which of these modules a command has loaded when it is done."""
    code = f"""import sys
from onnx_obc.cli.main import main
try:
    main({arguments!r})
except SystemExit:
    pass
print(*(name for name in {modules!r} if name in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("arguments", [["--version"], ["--nix"], ["in.onnx", "out.onnx", "--nix", "3"], ["build", "x"]])
def test_answers_that_need_no_model_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("numpy", "onnx", "onnx_ir", "numba", "pydantic", "torch", "onnxruntime", "scipy", "yaml", "psutil")
    assert loaded_by(arguments, (*heavy, "cyclopts")) == ["cyclopts"]


@pytest.mark.slow
def test_inspect_loads_no_solver_and_no_runtime() -> None:
    heavy = ("numba", "pydantic", "torch", "scipy", "matplotlib")
    assert loaded_by(["inspect", str(MODEL)], (*heavy, "onnx_ir")) == ["onnx_ir"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("--version") == 0
    assert capsys.readouterr().out.strip() == onnx_obc.__version__


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("inspect", MODEL) == 0
    shown = capsys.readouterr().out
    assert "/classifier/classifier.2/Gemm" in shown and "20 layers, " in shown
    assert "2:4: C/groups = 1 is not a multiple of 4: 5 layers" in shown


@pytest.mark.slow
def test_a_decoder_with_caches_is_looked_at_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, out = tmp_path / "decoder.onnx", tmp_path / "out.onnx"
    onnx.save(decoder(), dense)
    assert run_cli("inspect", dense) == 0
    shown = capsys.readouterr().out
    assert "with tokens = 1" in shown and "unk" not in shown
    recipe = ("--weights", "int4", "--block", 16, "--activations", "none", "--solver", "baseline", "--effort", "fast")
    data = ("--calib", "random", "--allow-random", "--samples", 8)
    assert run_cli(dense, out, *data, *recipe, "--no-measure-speed", "--quiet") == 0
    capsys.readouterr()
    assert run_cli("check", out, "--target", "onnxruntime") == 0
    seen = capsys.readouterr()
    assert seen.err == "" and "5 of 5 with integer weights alone run in kernels for them" in seen.out
    assert "0 of 0" not in seen.out
    assert run_cli("bench", dense, out, "--rounds", 1, "--quiet") == 0
    assert "batch 1" in capsys.readouterr().out
    assert run_cli("debug", dense, out, "--samples", 2, "--quiet") == 0


@pytest.mark.slow
def test_the_installed_program(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    program = Path(sys.executable).with_name("onnx-obc")
    if not program.is_file():
        pytest.skip("onnx-obc is not installed beside this Python")
    command = [program, "in.onnx", "out.onnx", "--calib", "x.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ weights: 1 layer reads weights" in done.stdout
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    failed = subprocess.run([*command, "--weights", "int1"], cwd=tmp_path, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.slow
def test_progress_is_shown_in_a_terminal_and_goes_away(weights: str, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    import os

    onnx.save(small(rows=64, columns=64), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.eye(64, dtype=np.float32))
    ours, theirs = pty.openpty()
    code = "from onnx_obc.cli.main import main; main()"
    command = [sys.executable, "-c", code, "in.onnx", "out.onnx", "--calib", "x.npy", "--weights", weights]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.set_blocking(ours, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(ours, 1 << 16):  # a terminal gives so much at a time as it likes
            parts.append(part)
    shown = b"".join(parts).decode()
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0 and "✓ losses" in done.stdout.decode()
    assert "solving rows" in shown and "64/64" in shown
    assert ("solving rows in order" in shown) == (weights == "int4")
    assert all(int(count) <= int(total) for count, total in re.findall(r"(\d+)/(\d+)", shown))
    assert re.search(r"\x1b\[2K[^\w]*$", shown)  # the last thing is that the lines are cleared
