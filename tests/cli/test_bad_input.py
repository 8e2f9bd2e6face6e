"""What a user can get wrong: one line that says what to do, exit code 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import MODEL, build, listing, refused, run_cli, small, text_like
from onnx import TensorProto, helper, numpy_helper

from onnx_obc import CalibrationError, DataOptions, ModelError, ObcError, compress

GOOD = {"x": np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good model and good data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "in.onnx")
    np.savez("x.npz", **GOOD)
    return tmp_path


def refuse(
    capsys: pytest.CaptureFixture[str], *options: object, model: str = "in.onnx", output: str = "out.onnx",
    calib: str = "x.npz",
) -> str:  # fmt: skip
    """The message of a run that must fail and leave its folder as it was."""
    before = listing(Path())
    message = refused(capsys, model, output, "--calib", calib, *options)
    assert listing(Path()) == before
    return message


def change(edit: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    proto = small()
    edit(proto)
    return proto


def outside(location: str) -> onnx.ModelProto:
    proto = small()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


# The files of models, and what the message must say about each.
MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is truncated or not ONNX"),
    "text": (b"<html>404 not found</html>", "is truncated or not ONNX"),
    "truncated": (MODEL.read_bytes()[:200_000], "is truncated or not ONNX; export or download it again"),
    "old opset": (small(opset=5).SerializeToString(), "uses opset 5, older than 7; export it again with opset 17"),
    "new opset": (small(opset=99).SerializeToString(), "uses opset 99"),
    "no opset": (change(lambda m: m.ClearField("opset_import")).SerializeToString(), "opset"),
    "unknown operator": (
        change(lambda m: setattr(m.graph.node[1], "op_type", "Rleu")).SerializeToString(),
        "is not a valid ONNX model: No Op registered for Rleu",
    ),
    "missing input": (change(lambda m: m.graph.node[1].input.pop()).SerializeToString(), "is not a valid ONNX model"),
    "unknown value": (
        change(lambda m: m.graph.node[1].input.__setitem__(0, "nowhere")).SerializeToString(),
        "is not a valid ONNX model",
    ),
    "weights above": (outside("../w.bin").SerializeToString(), "lies in ../w.bin, outside the model's folder"),
    "weights elsewhere": (outside("/etc/passwd").SerializeToString(), "outside the model's folder"),
    "weights missing": (outside("w.bin").SerializeToString(), "lies in w.bin, which is missing"),
    "no layer": (
        build(
            [helper.make_node("Relu", ["x"], ["y"])], {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 4]}, {}
        ).SerializeToString(),
        "the model has no Conv, ConvTranspose, MatMul or Gemm with a constant weight",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, message = MODELS[case]
    Path("in.onnx").write_bytes(data)
    assert message in refuse(capsys)
    if case != "no layer":
        assert run_cli("inspect", "in.onnx") == 2
        assert message in capsys.readouterr().err


def test_models_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse(capsys, model="nope.onnx") == "error: model nope.onnx does not exist; check the path"
    assert refuse(capsys, model=".") == "error: model . is a folder; name the .onnx file in it"


def test_damaged_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = small()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[2, 3] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, "in.onnx")
    message = refuse(capsys)
    assert message == "error: layer 'product': NaN or infinity among its weights; export it again, or skip it"


x = GOOD["x"]
bad, huge = x.copy(), x.copy()
bad[5, 1], huge[7, 0] = np.nan, 3e38
ARRAYS: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "name": ({"X": x}, ["has no array for the model's input 'x', only for 'X'", "rename 'X'"]),
    "one too many": ({"x": x, "label": x[:, 0]}, ["has 'label', which the model does not take; leave it out"]),
    "rank": ({"x": x.ravel()}, ["'x' has 1 axis,", "the model takes (any, 4)", "add the batch axis"]),
    "size": ({"x": x[:, :3]}, ["'x' is (64, 3), but the model takes (any, 4)"]),
    "integers": ({"x": x.astype(np.uint8)}, ["'x' holds uint8 values, but the model takes float32; scale them"]),
    "complex": ({"x": x.astype(np.complex64)}, ["'x' holds complex64 values"]),
    "strings": ({"x": x.astype(str)}, ["'x' holds", "the model takes float32"]),
    "no samples": ({"x": x[:0]}, ["there are no samples", "at least one"]),
    "no arrays": ({}, ["has no array for the model's input 'x'"]),
    "nan": ({"x": bad}, ["sample 5", "'x' holds NaN; remove the sample"]),
    "infinity": (
        {"x": np.full_like(x, np.inf)},
        ["'product' holds NaN or infinity for sample 0 of x.npz, as 'x'"],
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_calibration_arrays(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, parts = ARRAYS[case]
    np.savez("x.npz", **arrays)
    message = refuse(capsys)
    assert all(part in message for part in parts), message


def test_activations_that_overflow_name_the_layer_and_the_sample(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("MatMul", ["square", "w"], ["y"], name="product"),
    ]
    weight = np.ones((4, 8), np.float32)
    onnx.save(build(nodes, {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 8]}, {"w": weight}), "in.onnx")
    for batch in (1, 32):
        few = np.ones((40, 4), np.float32)
        few[10] = 3e38
        np.savez("x.npz", x=few)
        message = refuse(capsys, "--batch", batch)
        said = "the input of layer 'product' holds NaN or infinity for sample 10 of x.npz: the model itself overflows"
        assert said in message


def test_infinity_in_the_data_names_the_sample_as_the_user_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shape in ((64, 4), (64, 1, 4)):  # samples, and whole feeds of one sample each
        values = GOOD["x"].reshape(shape).copy()
        values[40] = np.inf
        np.savez("x.npz", x=values)
        name = "sample 40 of x.npz" if len(shape) == 2 else "feed 40 of x.npz"
        said = f"the input of layer 'product' holds NaN or infinity for {name}, as 'x' in the data does; check"
        assert said in refuse(capsys)
    Path("many").mkdir()
    for name in "abcdefgh":
        np.savez(f"many/{name}.npz", x=np.where(np.arange(8)[:, None] == 5, {"c": np.inf}.get(name, 1), x[:8]))
    assert "for sample 5 of many/c.npz, as 'x'" in refuse(capsys, calib="many")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [(), ("--sequential",), ("--budget", "size=0.5x")])
def test_one_absurd_sample_and_nothing_but_zeros_are_noted(
    options: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "b": np.ones(8, np.float32)}
    conv = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")]
    onnx.save(build(conv, {"x": (TensorProto.FLOAT, ["N", 3, 6, 6])}, {"y": ["N", 8, 4, 4]}, weights), "in.onnx")
    values = rng.standard_normal((40, 3, 6, 6)).astype(np.float32)
    values[17] *= 1e30
    np.savez("x.npz", x=values)
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", *options) == 0
    printed = capsys.readouterr()
    assert "Warning" not in printed.err
    assert "e+30 in sample 17 of x.npz, and" in " ".join(printed.out.split())
    np.savez("x.npz", x=np.zeros_like(values))
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", *options) == 0
    assert "note: input 'x' is zero in all samples: they say nothing of it; give real data" in capsys.readouterr().out


def test_ids_that_the_model_does_not_know(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(text_like(), "in.onnx")
    ids = np.random.default_rng(0).integers(0, 64, (40, 6))
    ids[17, 3] = 64
    np.savez("x.npz", ids=ids)
    line = (
        "input 'ids' holds 64, and the table that 'lookup' looks it up in has rows 0 to 63: check the data, and that "
    )
    line += "the tokenizer is this model's"
    for options in ((), ("--weights", "int4", "--activations", "none"), ("--budget", "size=0.5x")):
        assert refuse(capsys, *options) == f"error: sample 17 of x.npz: {line}"
    assert refused(capsys, "bench", "in.onnx", "in.onnx", "--calib", "x.npz", "--batch", 40) == f"error: {line}"
    assert run_cli("check", "in.onnx", "--target", "onnxruntime", "--calib", "x.npz", "--batch", 40) == 0
    assert f"not run: {line}" in capsys.readouterr().out


def test_rows_of_a_table_that_the_model_computes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("CumSum", ["ids", "axis"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["e"], name="places"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
    ]
    weights = {"axis": np.array(1), "table": np.ones((5, 4), np.float32), "w": np.ones((4, 8), np.float32)}
    onnx.save(build(nodes, {"ids": (TensorProto.INT64, ["N", "L"])}, {"y": ["N", "L", 8]}, weights), "in.onnx")
    np.savez("x.npz", ids=np.ones((40, 6), np.int64))
    line = "error: sample 0 of x.npz: 'places' looks up row 5 of a table with rows 0 to 4: the data holds ids"
    assert refuse(capsys).startswith(line)


@pytest.mark.slow
def test_infinity_in_samples_that_are_held_out_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = GOOD["x"].copy()
    values[[59, 39], 1] = np.inf  # both of the last hand
    note = "note: input 'x' holds infinity in {} 39 of {} and 1 other sample: mend what made it, or leave that out"
    np.savez("x.npz", x=values)
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz") == 0
    printed = capsys.readouterr().out
    overflow = "output y of the dense model is NaN or infinite for sample 39 of x.npz and 1 other sample:"
    assert note.format("sample", "x.npz") in printed and overflow in printed
    feeds = compress("in.onnx", [{"x": row[None]} for row in values[:40]]).report
    assert feeds.notes[0] == "input 'x' holds infinity in feed 39 of the list: mend what made it, or leave that out"
    masked = np.where(np.isinf(values), -values, values)
    assert not any("infinity" in text for text in compress("in.onnx", {"x": masked}).report.notes)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY"], ids=["empty", "zip", "npy"])
def test_damaged_calibration_files(data: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.npz", "x.npy"):
        Path(name).write_bytes(data)
        assert "cannot be read" in refuse(capsys, calib=name)


@pytest.mark.parametrize(
    ("missing", "there", "near"),
    [
        ("image.npz", ["images.npz", "x.npz"], "images.npz"),
        ("calib.npz", ["clib.npz", "data.npz"], "clib.npz"),
        ("data.npy", ["data.csv", "data.npz"], "data.csv"),
        ("val", ["vals", "evaluation"], "vals"),
        ("data.npz", ["two.npz"], None),
        ("calib.npz", ["xcinfall.npz"], None),
        ("test.npz", ["results.npz", "in.onnx"], None),
        ("images", ["model.onnx"], None),
    ],
)
def test_only_near_names_are_suggested(
    missing: str, there: list[str], near: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(small(), tmp_path / "model.onnx")
    data = tmp_path / "data"
    data.mkdir()
    for name in there:
        (data / name).write_bytes(b"")
    message = refused(capsys, tmp_path / "model.onnx", tmp_path / "out.onnx", "--calib", data / missing)
    said = "check the path, or give an .npz file" if near is None else f"did you mean {data / near}?"
    assert message.startswith(f"error: {data / missing}: not found; {said}")


@pytest.mark.parametrize(
    ("calib", "message"),
    [
        ("none.npz", "none.npz: not found; "),
        ("xx.npz", "did you mean x.npz?"),
        ("nowhere/x.npz", "nor is the folder nowhere"),
        ("", "--calib is empty: name the calibration data, an .npz file, a folder"),
        ("empty", "this folder holds no .npz, .npy or image file"),
        ("feeds.py", "say which function makes the feeds, e.g. feeds.py:feeds"),
        ("feeds.py:fedes", "feeds.py has no function 'fedes'; did you mean 'feeds'?"),
        ("feeds.py:broken", "broken() raised ValueError: no luck today"),
        ("random", "--allow-random to try things out"),
        ("in.onnx", ".onnx is no known kind of data"),
    ],
)
def test_calibration_that_is_not_there(
    calib: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("feeds.py").write_text("def feeds():\n    yield {}\ndef broken():\n    raise ValueError('no luck\\ntoday')\n")
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        message_given = refuse(capsys, calib=calib)
    finally:
        sys.dont_write_bytecode = before
    assert message in message_given.replace("feeds.py:broken raised", "broken() raised")


OPTIONS: dict[str, str] = {
    "--sparsity 3:2": "sparsity '3:2' must keep some of the weights, and not all of them; write e.g. 2:4",
    "--sparsity block4": "sparsity 'block4' is not known; write 2:4",
    "--sparsity 1.5": "the pruned fraction must lie between 0 and 1; write e.g. 0.6",
    "--sparsity 2:3": "no layer can take the sparsity (2:3: the number of columns = 4 is not a multiple of 3)",
    "--weights int9": 'Invalid value "int9" for --weights. Choose from: "float", "int8"',
    "--weights float": "no layer can be compressed (float, as the recipe says); choose another level",
    "--skip *": "no layer can be compressed (skipped, as --skip says)",
    "--target tensorrt --asymmetric": "TensorRT takes symmetric weights only",
    "--weigths int4": "Unknown option: --weigths. Did you mean --weights?",
    "--damp -1": "damp: should be greater than or equal to 0, not -1",
    "--damp nan": "damp: should be a finite number, not nan",
    "--damp x": "--damp",
    "--threads 0": "threads: should be greater than or equal to 1, not 0",
    "--threads x": 'Invalid value for --threads: unable to convert "x" into int',
    "--memory 0": "memory: should be greater than 0",
    "--seed -1": "seed: should be greater than or equal to 0, not -1",
    "--samples 0": "--samples 0: ask for at least 1",
    "--samples -3": "--samples -3: ask for at least 1",
    "--batch 0": "--batch 0: ask for at least 1",
    "--augment 0": "--augment 0: ask for at least 1",
    "--max-tokens 0": "--max-tokens 0: ask for at least 1",
    "--preprocess imagenet": "--preprocess does not apply to arrays; leave it out",
    "--mean 0.5 0.5": "--mean does not apply to arrays; leave it out",
    "--tokenizer t.json": "--tokenizer does not apply to arrays; leave it out",
    "--device cuda": "this onnxruntime has no CUDA; install onnx-obc[gpu], or use --device cpu",
    "--recipe none.yaml": "none.yaml: cannot be read (No such file or directory); check the path of --recipe",
    "--recipe r.yaml": "r.yaml: unknown option 'weigths'; did you mean 'weights'?",
    "--report none/r.json": "cannot write none/r.json: folder none does not exist; create it first",
    "--report in.onnx": "cannot write in.onnx: it is the model itself; name another file",
    "--report out.onnx": "cannot write the report to out.onnx: the model goes there; name another file",
    "--report .": "it is a folder",
    "surplus": "unexpected argument 'surplus'",
    "--report": "--report requires an argument",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda" in options:
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("there is CUDA here")
    Path("r.yaml").write_text("weigths: int4\n")
    assert OPTIONS[options] in refuse(capsys, *options.split())


def test_a_report_without_a_place_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.compress.compress", lambda *args, **more: pytest.fail("the work has begun"))
    assert "none/r.json" in refuse(capsys, "--report", "none/r.json")
    assert "is a folder" in refuse(capsys, "--report", ".")


def test_missing_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--calib is missing: name the calibration data, an .npz file" in refused(capsys, "in.onnx", "out.onnx")
    assert "OUTPUT is missing; usage: onnx-obc SOURCE OUTPUT --calib DATA" in refused(capsys, "in.onnx")
    assert "SOURCE is missing" in refused(capsys, "inspect")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slip", "command"),
    [("inspec", "inspect"), ("Inspect", "inspect"), ("compres", "compress"), ("serach", "search"), ("benhc", "bench")],
)
def test_misspelt_commands(slip: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"error: {slip!r} is no command, and no file of that name is there; did you mean {command}?"
    for more in ((), ("in.onnx",), ("out.onnx", "--calib", "x.npz"), ("--help",)):
        assert refused(capsys, slip, *more) == line
    Path("in.onnx").rename(slip)
    assert run_cli(slip, "out.onnx", "--calib", "x.npz", "--quiet") == 0
    for other in ("model", "data", "inspec.onnx"):
        assert "did you mean" not in refused(capsys, other, "out.onnx", "--calib", "x.npz")


@pytest.mark.slow
def test_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.onnx").symlink_to("in.onnx")
    assert "it is the model itself; name another file" in refuse(capsys, output="in.onnx")
    assert "it is the model itself" in refuse(capsys, output="link.onnx")
    assert "it is the model itself" in refuse(capsys, output=f"../{folder.name}/in.onnx")
    assert "folder none does not exist; create it first" in refuse(capsys, output="none/out.onnx")
    assert "folder x.npz does not exist" in refuse(capsys, output="x.npz/out.onnx")
    assert "it is a folder; name a file in it" in refuse(capsys, output=".")
    for length in (250, 400):
        assert "its name is longer than 180 bytes" in refuse(capsys, output="n" * length)
        assert "its name is longer than 180 bytes" in refuse(capsys, "--html", "n" * length)
    if os.access("/proc", os.F_OK):
        assert "cannot write into /proc" in refuse(capsys, output="/proc/out.onnx")


def test_the_weights_of_the_model_are_not_replaced_by_those_of_the_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(small(rows=128), "in.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    for budget in ((), ("--budget", "size=0.3x")):
        assert "out.onnx.data holds the model's own weights; name another file" in refuse(capsys, *budget)
    assert run_cli("in.onnx", "other.onnx", "--calib", "x.npz") == 0


@pytest.mark.slow
def test_what_is_read_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.npz").symlink_to("x.npz")
    Path("r.yaml").write_text("weights: int4\n")
    Path("t.json").write_text("{}")
    Path("feeds.py").write_text("def feeds(): yield {}\n")
    Path("e.onnx").write_bytes(b"")
    read = ["--recipe", "r.yaml", "--tokenizer", "t.json", "--encoder", "e.onnx"]
    options = {"x.npz": "calib", "link.npz": "calib", "r.yaml": "recipe", "t.json": "tokenizer", "e.onnx": "encoder"}
    for name, option in options.items():
        message = f"error: cannot write {name}: --{option} reads it; name another file"
        assert refuse(capsys, *read, output=name) == message
        assert refuse(capsys, *read, "--report", name) == message
    judged = ["--metric", "feeds.py:feeds", "--eval", "e.npz"]
    np.savez("e.npz", x=np.load("x.npz")["x"])
    for name, option in {"e.npz": "eval", "feeds.py": "metric"}.items():
        for result in ("--report", "--html"):
            assert f"cannot write {name}: --{option} reads it" in refuse(capsys, *judged, result, name)
    for command in (("check", "in.onnx", "--target", "onnxruntime"), ("bench", "in.onnx", "in.onnx")):
        message = refused(capsys, *command, "--calib", "x.npz", "--html", "x.npz")
        assert message == "error: cannot write x.npz: --calib reads it; name another file"
    assert "--calib reads it" in refused(capsys, "time", "in.onnx", "--calib", "x.npz", "-o", "x.npz")
    assert "cannot write feeds.py: --calib reads it" in refuse(capsys, calib="feeds.py:feeds", output="feeds.py")
    message = "error: cannot write the report to out.onnx.data: the model goes there; name another file"
    assert refuse(capsys, "--report", "out.onnx.data") == message
    assert "the model goes there" in refuse(capsys, "--report", "out.onnx.rejected")
    assert "it is not a regular file" in refuse(capsys, output=os.devnull)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_are_read_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o555)
    assert "cannot write into locked: Permission denied" in refuse(capsys, output="locked/out.onnx")


def test_errors_in_python_are_of_one_family() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        compress("nope.onnx", GOOD)
    with pytest.raises(CalibrationError, match="int cannot be read"):
        compress(small(), 5)
    with pytest.raises(CalibrationError, match="pass the function that makes it"):
        compress(small(), iter([GOOD]))
    for data in (DataOptions(samples=0), DataOptions(batch=-1), DataOptions(augment=0)):
        with pytest.raises(ObcError, match="ask for at least 1"):
            compress(small(), GOOD, data=data)
    with pytest.raises(CalibrationError, match="--seed -1: give 0 or more"):
        compress(small(), GOOD, data=DataOptions(seed=-1))


INTERRUPTED = {
    "between chunks of rows": """
import onnx_obc.solver.linalg.threads as threads
finished = threads.as_completed
def hook(futures):
    yield next(iter(finished(futures)))
    signal.raise_signal(signal.SIGINT)
threads.as_completed = hook
""",
    "in a layer": """
import onnx_obc.pipeline.solve as solve
solve.solve_layer = lambda *args: signal.raise_signal(signal.SIGINT)
""",
    "in verification": """
import onnx_obc.pipeline.finish as finish
finish.verify = lambda *args: signal.raise_signal(signal.SIGINT)
""",
}


@pytest.mark.parametrize("when", INTERRUPTED)
@pytest.mark.slow
def test_ctrl_c_leaves_nothing(when: str, folder: Path) -> None:
    """The signal comes from inside the work itself, so the machine's speed does not matter."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((512, 512)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    onnx.save(build([node], {"x": (TensorProto.FLOAT, ["N", 512])}, {"y": ["N", 512]}, weights), "in.onnx")
    np.savez("x.npz", x=rng.standard_normal((256, 512)).astype(np.float32))
    before = listing(folder)
    code = f"import signal\n{INTERRUPTED[when]}\nfrom onnx_obc.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, "in.onnx", "out.onnx", "--calib", "x.npz", "--sparsity", "0.9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was written\n")
    assert listing(folder) == before


@pytest.mark.parametrize(("when", "written"), [("as_json.write_json", "out.onnx"), ("table.show", "out.onnx, r.json")])
def test_ctrl_c_after_the_result_was_written(
    when: str, written: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"onnx_obc.report.{when}", interrupted)
    Path("out.onnx").write_bytes(b"an older one")
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", "--report", "r.json") == 130
    assert capsys.readouterr() == ("", f"interrupted; written: {written}\n")
    assert set(listing(folder)) == {"in.onnx", "x.npz", *written.split(", ")}
    onnx.checker.check_model(onnx.load("out.onnx"))


@pytest.mark.slow
def test_no_onnxruntime(folder: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from onnx_obc.cli.main import main; main()"
    command, before = [sys.executable, "-c", code], listing(folder)
    shown = subprocess.run([*command, "inspect", "in.onnx"], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "") and "product" in shown.stdout
    failed = subprocess.run([*command, "in.onnx", "out.onnx", "--calib", "x.npz"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    assert failed.stderr.startswith("error: onnxruntime is not installed; install onnx-obc[cpu]")
    assert listing(folder) == before


def test_a_rejected_file(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnx_obc.pipeline.verify.broken_pattern", lambda *args: "3 of 4 weights are not zero, 2 allowed"
    )
    assert run_cli("in.onnx", "out.onnx", "--calib", "x.npz", "--sparsity", "2:4") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "check of the patterns failed: product: 3 of 4 weights are not zero" in printed.err
    assert "out.onnx.rejected" in printed.err
    assert set(listing(folder)) == {"in.onnx", "x.npz", "out.onnx.rejected"}
