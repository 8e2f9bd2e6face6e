"""`--effort best` and `--reconstruction`, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import run_cli
from small_graphs import build, random
from trained_blocks import SPARSE, X, blocks, few_steps, loss_after, tried  # noqa: F401  few_steps is for every test

from onnx_obc import Recipe, compress, open_database
from onnx_obc import build as build_database
from onnx_obc.core.level import parse_choice
from onnx_obc.core.progress import Feedback
from onnx_obc.correction import units
from onnx_obc.graph.write import activation_grid, activation_pairs
from onnx_obc.pipeline import reconstruct as module
from onnx_obc.pipeline import training_walk
from onnx_obc.pipeline.finish import Destination

pytest.importorskip("torch")

from onnx_obc.correction.reconstruction import reconstruct

make = onnx.helper.make_node


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two bits and 8-bit inputs: nearer to the dense model, checked like any other file."""
    onnx.save(blocks(), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", **X)
    reports = {}
    for effort in ("normal", "best"):
        out, report = tmp_path / f"{effort}.onnx", tmp_path / f"{effort}.json"
        arguments = [
            tmp_path / "in.onnx",
            out,
            "--calib",
            tmp_path / "x.npz",
            "--weights",
            "int2",
            "--solver",
            "baseline",
        ]
        assert run_cli(*arguments, "--effort", effort, "--report", report) == 0
        reports[effort] = json.loads(report.read_text())
        assert [check for check in reports[effort]["checks"] if check["passed"] is False] == []
    best = reports["best"]
    (attempt,) = (x for x in best["corrections"] if x["kinds"] == ["reconstruction"])
    assert attempt["kept"] and attempt["sites"] == 4
    assert best["outputs"][0]["sqnr_db"] > reports["normal"]["outputs"][0]["sqnr_db"] + 0.2
    assert all(module.TRAINED in layer["notes"] for layer in best["layers"])
    assert "reconstruction" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"weights": "float", "sparsity": "2:4"}, {"activations": "dynamic"}],
    ids=["pruned", "dynamic inputs"],
)
def test_what_is_written_passes_all_checks(options: dict[str, object]) -> None:
    report = compress(
        blocks(), X, Recipe.model_validate({"weights": "int2", "effort": "best", "solver": "baseline"} | options)
    ).report
    assert all(check.passed for check in report.checks)
    assert ("reconstruction",) in tried(report)


@pytest.mark.slow
def test_an_operator_that_torch_does_not_know_is_named_and_the_rest_goes_on() -> None:
    report = compress(
        blocks("Mish"), X, Recipe(weights="int2", activations="none", effort="best", solver="baseline")
    ).report
    (note,) = (note for note in report.notes if "not trained by --effort best" in note)
    assert note.startswith("2 layers not trained by --effort best: ") and "Mish" in note and "leave out" not in note
    trained = {layer.name for layer in report.layers if module.TRAINED in layer.notes}
    assert trained == {"third", "fourth"}


@pytest.mark.slow
def test_progress_adds_up() -> None:
    told: list[tuple[int, int]] = []
    feedback = Feedback(lambda stage, done, total: told.append((done, total)) if stage == "reconstruct" else None)
    compress(blocks("Mish"), X, Recipe(weights="int2", activations="none", effort="best"), feedback=feedback)
    assert sum(done for done, _ in told) == told[0][1] and len({total for _, total in told}) == 1


@pytest.mark.slow
def test_few_samples_train_nothing_and_it_is_said() -> None:
    report = compress(blocks(), {"x": X["x"][:20]}, Recipe(effort="best")).report
    assert ("reconstruction",) not in tried(report)
    assert any(note.startswith("--effort best trains on 32 samples or more, and 18") for note in report.notes)


@pytest.mark.slow
def test_a_part_that_reads_a_list_of_tensors_is_named_and_the_rest_goes_on() -> None:
    nodes = [
        make("SplitToSequence", ["x", "eight"], ["parts"], axis=1),
        make("SequenceAt", ["parts", "one"], ["right"]),
        make("MatMul", ["right", "w0"], ["a"], "first"),
        make("SequenceInsert", ["parts", "a"], ["more"]),
        make("ConcatFromSequence", ["more"], ["all"], axis=1),
        make("MatMul", ["all", "w1"], ["y"], "second"),
    ]
    weights = {"w0": random(8, 4) / 3, "w1": random(20, 8) / 4, "one": np.array(1), "eight": np.array(8)}
    model = build(nodes, {"x": ("N", 16)}, {"y": ("N", 8)}, weights)
    recipe = Recipe(weights="int2", activations="none", effort="best", solver="baseline")
    report = compress(model, {"x": random(160, 16)}, recipe).report
    (note,) = (note for note in report.notes if "not trained" in note)
    assert note.startswith("1 layer not trained by --effort best: ") and "parts" in note and "not a tensor" in note
    assert sum(module.TRAINED in layer.notes for layer in report.layers) == 1


@pytest.mark.slow
def test_a_layer_whose_input_was_quantized_for_others_before() -> None:
    nodes = [
        make("Tanh", ["x"], ["t"]),
        make("MatMul", ["t", "w0"], ["a"], "first"),
        make("Relu", ["a"], ["r"]),
        make("MatMul", ["r", "w1"], ["b"], "second"),
        make("MatMul", ["t", "w2"], ["c"], "third"),
    ]
    weights = {"w0": random(8, 8), "w1": random(8, 8), "w2": random(8, 8)}
    model = build(nodes, {"x": ("N", 8)}, {"a": ("N", 8), "b": ("N", 8), "c": ("N", 8)}, weights)
    recipe = Recipe(weights="int4", activations="int8", effort="best", solver="baseline")
    report = compress(model, {"x": random(160, 8)}, recipe).report
    assert ("reconstruction",) in tried(report)
    assert sum(module.TRAINED in layer.notes for layer in report.layers) >= 1


@pytest.mark.slow
def test_blocks_are_trained_alone_where_the_whole_part_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of memory."""

    def small(*arguments: Any) -> object:
        if len(arguments[1]) > 2:
            raise RuntimeError("out of memory")
        return reconstruct(*arguments)

    monkeypatch.setattr(training_walk, "reconstruct", small)
    told: list[tuple[int, int]] = []
    feedback = Feedback(lambda stage, done, total: told.append((done, total)) if stage == "reconstruct" else None)
    report = compress(blocks(), X, Recipe.model_validate(SPARSE | {"effort": "best"}), feedback=feedback).report
    assert all(module.TRAINED in layer.notes for layer in report.layers)
    assert not any("not trained" in note for note in report.notes)
    assert sum(done for done, _ in told) == told[0][1]


@pytest.mark.slow
def test_a_head_that_is_tied_to_its_table() -> None:
    nodes = [
        make("Gather", ["E", "ids"], ["e"]),
        make("MatMul", ["e", "w0"], ["a"], "first"),
        make("Relu", ["a"], ["r"]),
        make("MatMul", ["r", "w1"], ["c"], "second"),
        make("Transpose", ["E"], ["turned"], perm=[1, 0]),
        make("MatMul", ["c", "turned"], ["y"], "head"),
    ]
    weights = {"E": random(64, 32), "w0": random(32, 48) / 6, "w1": random(48, 32) / 7}
    model = build(nodes, {"ids": ("N", 6)}, {"y": ("N", 6, 64)}, weights)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    ids = np.random.default_rng(0).integers(0, 64, (160, 6))
    recipe = Recipe(weights="int4", activations="none", effort="best", solver="baseline")
    report = compress(model, {"ids": ids}, recipe).report
    assert not any("not trained" in note for note in report.notes)
    assert any(module.TRAINED in layer.notes for layer in report.layers)


@pytest.mark.parametrize("feeds", [1, 4])
def test_a_batch_that_the_graph_fixes(feeds: int) -> None:
    nodes = [
        make("MatMul", ["x", "w0"], ["a"], "first"),
        make("Relu", ["a"], ["r"]),
        make("Reshape", ["r", "split"], ["s"]),
        make("MatMul", ["s", "w1"], ["c"], "second"),
        make("Reshape", ["c", "flat"], ["f"]),
        make("Add", ["f", "x"], ["y"]),
    ]
    weights = {"w0": random(16, 32), "w1": random(8, 4), "split": np.array([32, 4, 8]), "flat": np.array([32, 16])}
    model = build(nodes, {"x": (32, 16)}, {"y": (32, 16)}, weights)
    recipe = Recipe(weights="int2", activations="none", effort="best", solver="baseline")
    report = compress(model, {"x": random(32 * (feeds + 1), 16)}, recipe).report
    told = [note for note in report.notes if "one feed that cannot be taken apart" in note]
    assert bool(told) == (feeds == 1) and bool(told) != (("reconstruction",) in tried(report))


@pytest.mark.slow
def test_ranges_of_activations_are_trained() -> None:
    """Of 4 bits they move; the report and the file say the same, and zero points stay."""
    made = {}
    for effort in ("normal", "best"):
        recipe = Recipe.model_validate(
            {"weights": "int4", "activations": "int4", "effort": effort, "solver": "baseline", "seed": 1}
        )
        made[effort] = compress(blocks(), X, recipe)
    before, after = (made[effort].report.activations for effort in ("normal", "best"))
    moved = [value for value in before if before[value] != after[value]]
    assert moved and before.keys() == after.keys()
    for value in moved:
        (low, high), (least, most) = before[value], after[value]
        assert least / low == pytest.approx(most / high) if low else least == 0
    for pair in activation_pairs(made["best"].model):
        low, high = after[pair.value]
        scale, zero = (made["best"].model.graph.initializers[str(v.name)] for v in pair.quantize.inputs[1:] if v)
        assert scale.const_value is not None and zero.const_value is not None
        expected = activation_grid(low, high, 4, False)
        assert (float(scale.const_value.numpy()), int(zero.const_value.numpy())) == pytest.approx(expected)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(reconstruction=True, solver="baseline", device="cpu")
    build_database(blocks(), X, "int2-asym,4w4a", tmp_path / "db", recipe)
    database = open_database(tmp_path / "db")
    profile = {name: parse_choice("4w4a") for name in database.choices}
    trained: list[int] = []

    def counted(*arguments: object) -> object:
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return reconstruct(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training_walk, "reconstruct", counted)
    monkeypatch.setattr(units, "CHAIN", 2)
    with pytest.raises(KeyboardInterrupt):
        database.write(profile, recipe, Destination(tmp_path / "never.onnx"))
    assert len(list((tmp_path / "db/trained").iterdir())) == 1 and not (tmp_path / "never.onnx").exists()
    database.write(profile, recipe, Destination(tmp_path / "on.onnx"))
    assert len(trained) == 3, "one part had been trained, one was interrupted"
    database.write(profile, recipe, Destination(tmp_path / "again.onnx"))
    assert len(trained) == 3
    shutil.rmtree(tmp_path / "db/trained")
    database.write(profile, recipe, Destination(tmp_path / "whole.onnx"))
    assert len(trained) == 5
    whole = (tmp_path / "whole.onnx").read_bytes()
    assert whole == (tmp_path / "on.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    other = {name: parse_choice("int2-asym") for name in database.choices}
    database.write(other, recipe, Destination(tmp_path / "other.onnx"))
    assert len(trained) == 7


@pytest.mark.slow
def test_parts_trained_behind_a_table_are_those_of_its_integers(tmp_path: Path) -> None:
    nodes = [
        make("Cast", ["number"], ["ids"], to=onnx.TensorProto.INT64),
        make("Gather", ["table", "ids"], ["x"], "table"),
        make("MatMul", ["x", "w1"], ["a"], "first"),
        make("Relu", ["a"], ["r"]),
        make("MatMul", ["r", "w2"], ["c"], "second"),
        make("Add", ["c", "x"], ["y"]),
    ]
    weights = {"table": random(50, 32), "w1": random(32, 32) / 5, "w2": random(32, 32, seed=1) / 5}
    model = build(nodes, {"number": ("N", 6)}, {"y": ("N", 6, 32)}, weights)
    numbers = {"number": np.random.default_rng(0).integers(0, 50, (200, 6)).astype(np.float32)}
    recipe = Recipe(reconstruction=True, device="cpu")
    build_database(model, numbers, "int3-asym", tmp_path / "db", recipe)
    database = open_database(tmp_path / "db")
    profile = {name: parse_choice("int3-asym") for name in database.choices}
    trained = []
    for embeddings in ("float", "int4", "int4"):
        database.write(profile, recipe.model_copy(update={"embeddings": embeddings}))
        trained.append(len(list((tmp_path / "db/trained").iterdir())))
    assert trained == [1, 2, 2]


@pytest.mark.slow
def test_a_pair_of_the_users_own_without_zero_point() -> None:
    model = blocks()
    pair = [make("QuantizeLinear", ["y", "step"], ["q"]), make("DequantizeLinear", ["q", "step"], ["out"])]
    model.graph.node.extend(pair)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.01), "step"))
    model.graph.output[0].name = "out"
    report = compress(model, X, Recipe(weights="int2", effort="best", solver="baseline")).report
    assert ("reconstruction",) in tried(report) and all(check.passed for check in report.checks)


@pytest.mark.slow
def test_trained_ranges_stay_within_the_clips_that_make_their_values() -> None:
    """Beyond them onnxruntime keeps the Clip, and computes the layer in front of it in float."""
    nodes = [
        make("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4),
        make("Clip", ["a", "zero", "six"], ["b"]),
        make("Conv", ["b", "w2"], ["c"], "second", pads=[1] * 4),
        make("Clip", ["c", "zero", "six"], ["d"]),
        make("Conv", ["d", "w3"], ["y"], "third", pads=[1] * 4),
    ]
    weights = {f"w{n}": 2 * random(8, 8, 3, 3, seed=n) for n in range(1, 4)}
    weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    model = build(nodes, {"x": ("N", 8, 6, 6)}, {"y": ("N", 8, 6, 6)}, weights, opset=18)
    report = compress(model, X, Recipe(sparsity="2:4", reconstruction=True, measure_speed=False)).report
    (attempt,) = (attempt for attempt in report.corrections if attempt.kinds == ("reconstruction",))
    assert attempt.kept and report.activations["x"][1] != 6
    assert all(low == 0 and high <= 6 for low, high in (report.activations[value] for value in ("b", "d")))
    assert report.engine is not None and report.engine["in_integers"] == report.engine["quantized"] == 3
