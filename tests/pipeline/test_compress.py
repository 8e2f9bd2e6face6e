"""The pipeline end to end through Python, on the small classifier. Its accuracy without compression is 99.3 %."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from digits import CALIBRATION, MODEL, listing, small, text_like, top1

from onnx_obc import DataOptions, Recipe, Rule, Samples, VerificationError, compress
from onnx_obc.calibration.split import HELD_OUT, split
from onnx_obc.core.progress import Feedback
from onnx_obc.graph.fold import fold
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.recipe import make_recipe
from onnx_obc.pipeline.verify import Check

FEW = DataOptions(samples=64)

# What a layer becomes, how many of the 20 layers can, and the accuracy that it must keep (measured less a margin).
GOLDEN: dict[str, tuple[dict[str, Any], int, float]] = {
    "int8": ({}, 20, 0.98),
    "int8-asym": ({"asymmetric": True}, 20, 0.98),
    "int4": ({"weights": "int4", "activations": "none", "asymmetric": False}, 20, 0.98),
    "int4-asym": ({"weights": "int4", "activations": "none"}, 20, 0.98),
    "int3-asym": ({"weights": "int3", "activations": "none"}, 20, 0.96),
    "int2-asym": ({"weights": "int2", "activations": "none"}, 20, 0.55),
    "2:4+int8": ({"sparsity": "2:4", "strict_pattern": True}, 15, 0.97),
    "4:8+int8": ({"sparsity": "4:8", "strict_pattern": True}, 15, 0.97),
    "block4-0.50": ({"sparsity": "block4:0.5", "weights": "float"}, 15, 0.95),
    "sparse-0.60": ({"sparsity": "0.6", "weights": "float"}, 20, 0.95),
    "sparse-0.60+int4-asym": ({"sparsity": "0.6", "weights": "int4", "activations": "none"}, 20, 0.92),
}

BLOCKED = ("int4", "int3")  # onnxruntime computes no 2-bit Gemm of 10 outputs


@pytest.mark.parametrize("level", GOLDEN)
@pytest.mark.slow
def test_levels(level: str, tmp_path: Path) -> None:
    options, layers, floor = GOLDEN[level]
    result = compress(MODEL, CALIBRATION, make_recipe(options), tmp_path / "out.onnx")
    report = result.report
    assert result.path == tmp_path / "out.onnx"
    assert list(listing(tmp_path)) == ["out.onnx"]
    assert top1(result.path) >= floor
    assert {x.level for x in report.layers} == {level}
    assert len(report.layers) == layers and len(report.layers) + len(report.left_out) == 20
    assert report.totals["mean_loss_relative"] < report.totals["mean_baseline_relative"]
    lowered = ["lowered"] * (options.get("weights") in BLOCKED)  # the classifier's Gemm becomes MatMulNBits
    names = ["graph", "engines", "file", "weights", "patterns", "losses", "outputs", *lowered]
    assert all(check.passed for check in report.checks)
    assert sorted(check.name for check in report.checks) == sorted(names)
    assert report.file_bytes_after == result.path.stat().st_size
    if options.get("weights") != "float":
        assert report.totals["bytes_after"] < 0.3 * report.totals["bytes_before"]


@pytest.mark.slow
def test_sparse_runs_beat_magnitude_by_far() -> None:
    report = compress(MODEL, CALIBRATION, Recipe(sparsity="2:4", weights="float"), data=FEW).report
    assert report.totals["mean_loss_relative"] < 0.2 * report.totals["mean_baseline_relative"]
    assert all(x.loss < x.loss_baseline for x in report.layers)
    assert all(x.zeros >= 0.5 for x in report.layers)


@pytest.mark.slow
def test_the_baseline_is_what_its_reports_call_so() -> None:
    exact, baseline = (
        compress(MODEL, CALIBRATION, Recipe(weights="int3", solver=solver, sequential=False), data=FEW).report  # type: ignore[arg-type]
        for solver in ("exact", "baseline")
    )
    assert [x.loss for x in baseline.layers] == [x.loss_baseline for x in baseline.layers]
    assert [x.loss_baseline for x in exact.layers] == [x.loss_baseline for x in baseline.layers]


@pytest.mark.slow
def test_tensorrt(tmp_path: Path) -> None:
    result = compress(MODEL, CALIBRATION, Recipe(target="tensorrt"), tmp_path / "out.onnx")
    assert top1(tmp_path / "out.onnx") >= 0.97
    proto = onnx.load(tmp_path / "out.onnx")
    zeros = {x.name: onnx.numpy_helper.to_array(x) for x in proto.graph.initializer if x.name.endswith("zero_point")}
    assert zeros and all(array.dtype == np.int8 and not array.any() for array in zeros.values())
    assert {x.activations for x in result.report.layers} == {"int8"}


@pytest.mark.slow
def test_rules_for_layers_first_match_wins(tmp_path: Path) -> None:
    recipe = make_recipe(
        {
            "layers": [
                {"match": "*classifier*", "skip": True},
                {"match": "*features.2/body/body.0*", "weights": "int4", "activations": "none"},
                {"match": "*features.2/*", "sparsity": "2:4"},
                {"match": "*features.2/body/body.0*", "weights": "int2"},
            ]
        }
    )
    report = compress(MODEL, CALIBRATION, recipe, data=FEW).report
    levels = {x.name: x.level for x in report.layers}
    assert levels["/features/features.2/body/body.0/body.0.0/Conv"] == "int4-asym"
    assert levels["/features/features.2/body/body.2/body.2.0/Conv"] == "2:4+int8"
    assert sorted(set(levels.values())) == ["2:4+int8", "int4-asym", "int8"]
    assert [(x.name, x.reason) for x in report.left_out] == [
        ("/classifier/classifier.2/Gemm", "skipped, as the recipe says")
    ]


@pytest.mark.slow
def test_levels_that_some_layers_cannot_have_leave_those_as_they_are() -> None:
    result = compress(MODEL, CALIBRATION, Recipe(sparsity="2:4", weights="float"), data=FEW)
    left = {x.name: x.reason for x in result.report.left_out}
    name = "/features/features.0/features.0.0/Conv"
    assert left[name] == "2:4: C/groups = 1 is not a multiple of 4"
    weights = {node.name: node.inputs[1].const_value for node in result.model.graph if node.op_type == "Conv"}
    assert np.count_nonzero(weights[name].numpy()) == weights[name].size


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_embeddings(bits: str) -> None:
    model, ids = text_like(), np.random.default_rng(0).integers(0, 64, (40, 6))
    result = compress(model, {"ids": ids}, Recipe(embeddings=bits))  # type: ignore[arg-type]
    (table,) = result.report.embeddings
    assert (table.name, table.rows, table.columns, table.level) == ("table", 64, 32, bits)
    assert 0 < table.error_relative < (1e-4 if bits == "int8" else 2e-2)
    assert table.bytes_after < table.bytes_before / (3 if bits == "int8" else 5)
    assert {x.name for x in result.report.layers} == {"block/up", "block/down"}


@pytest.mark.slow
def test_embeddings_that_stay_float_are_named() -> None:
    ids = np.random.default_rng(0).integers(0, 64, (40, 6))

    def notes(**recipe: Any) -> list[str]:
        report = compress(text_like(), {"ids": ids}, Recipe(**recipe)).report
        return [note for note in report.notes if note.startswith("embeddings")]

    said = "embeddings stay float, 0.00819 of the 0.0153 MB that weights had"
    assert notes() == [f"{said}; --embeddings int8 makes them smaller"]
    assert notes(target="tensorrt") == [said]  # which cannot look up integers
    assert notes(embeddings="int8") == notes(weights="float", activations="none", sparsity="2:4") == []


def test_only_the_embeddings(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (40, 6))
    result = compress(text_like(), {"ids": ids}, Recipe(weights="float", embeddings="int8"), tmp_path / "out.onnx")
    assert result.report.layers == () and len(result.report.embeddings) == 1
    assert result.report.outputs[0].sqnr_db > 30
    assert result.report.totals["mean_loss_relative"] == 0


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_looked_up_value_that_is_an_output(bits: str) -> None:
    proto = text_like()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["N", 6, 32]))
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    ids = np.random.default_rng(0).integers(0, 64, (40, 6))
    result = compress(model, {"ids": ids}, make_recipe({"embeddings": bits}))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert [(o.name, o.dtype) for o in result.model.graph.outputs] == [
        ("scores", ir.DataType.FLOAT),
        ("e", ir.DataType.FLOAT),
    ]
    assert all(match.sqnr_db > (30 if bits == "int8" else 15) for match in result.report.outputs)


def test_asymmetric_float_is_float() -> None:
    recipe = Recipe(asymmetric=True, layers=(make_recipe({"layers": [{"match": "*up", "weights": "float"}]}).layers))
    report = compress(text_like(), {"ids": np.arange(60).reshape(10, 6)}, recipe).report
    assert [x.reason for x in report.left_out] == ["float, as the recipe says"]


@pytest.mark.slow
def test_every_kind_of_model_gives_the_same_and_stays_as_it_was(tmp_path: Path) -> None:
    data = MODEL.read_bytes()
    given: list[Any] = [MODEL, str(MODEL), data, onnx.load(MODEL), ir.load(MODEL)]
    proto_before, ir_before = copy.deepcopy(given[3]), ir.to_proto(given[4]).SerializeToString()
    for number, model in enumerate(given):
        compress(model, CALIBRATION, Recipe(weights="int4"), tmp_path / f"{number}.onnx", data=FEW)
    assert len(set(listing(tmp_path).values())) == 1
    assert MODEL.read_bytes() == data
    assert given[3] == proto_before
    assert ir.to_proto(given[4]).SerializeToString() == ir_before


@pytest.mark.slow
def test_in_memory_is_what_is_written(tmp_path: Path) -> None:
    kept = compress(MODEL, CALIBRATION, Recipe(weights="int4"), data=FEW)
    compress(MODEL, CALIBRATION, Recipe(weights="int4"), tmp_path / "out.onnx", data=FEW)
    assert kept.path is None and kept.report.output == ""
    assert ir.to_proto(kept.model).SerializeToString() == (tmp_path / "out.onnx").read_bytes()


@pytest.mark.slow
def test_neither_threads_nor_batch_nor_memory_change_the_file(tmp_path: Path) -> None:
    runs: list[tuple[dict[str, Any], int | None]] = [
        ({"threads": 1}, None), ({"threads": 2}, None), ({"threads": 2}, 7), ({"memory": 1e-4}, None),
    ]  # fmt: skip
    for number, (options, batch) in enumerate(runs):
        data = DataOptions(samples=64, batch=batch)
        recipe = make_recipe({"sparsity": "2:4", "weights": "int4", "effort": "fast", **options})
        compress(MODEL, CALIBRATION, recipe, tmp_path / f"{number}.onnx", data=data)
    assert len(set(listing(tmp_path).values())) == 1


def test_a_report_is_plain_numbers(tmp_path: Path) -> None:
    report = compress(text_like(), {"ids": np.arange(60).reshape(10, 6)}, Recipe(activations="none")).report
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["schema"] == 1
    assert plain["model"] == "ModelProto" and plain["file_bytes_before"] == text_like().ByteSize()
    assert math.isfinite(plain["totals"]["mean_loss_relative"])


@pytest.mark.slow
def test_too_few_samples_is_a_note() -> None:
    report = compress(small(), {"x": np.eye(4, dtype=np.float32)}, data=DataOptions(samples=100)).report
    assert any("4 of 100 samples asked for" in note for note in report.notes), report.notes
    report = compress(small(), {"x": np.ones((1, 4), np.float32)}).report
    assert any("too few samples to hold any out" in note for note in report.notes), report.notes


def test_random_data_is_noted() -> None:
    report = compress(small(), "random", data=DataOptions(allow_random=True)).report
    assert report.calibration["synthetic"] is True
    assert any("do not ship this model" in note for note in report.notes)


@pytest.mark.parametrize(
    ("count", "step", "held_out"), [(1, 1, 1), (2, 1, 1), (10, 1, 1), (512, 1, 51), (9999, 1, HELD_OUT), (64, 32, 32)]
)
def test_split(count: int, step: int, held_out: int) -> None:
    samples = Samples(count, "test", lambda start, stop: iter(()), step=step)
    calibrating, apart = split(samples)
    assert apart.count == held_out and apart.count % step == 0
    if count > held_out:
        assert calibrating.count == count - held_out
    else:
        assert calibrating is apart is samples


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        (Recipe(sparsity="0.5"), {"transform": 1, "compile": 1, "capture": 1, "solve": 1, "correct": 1, "verify": 1}),
        (
            Recipe(weights="int4"),  # both ways are corrected
            {"transform": 1, "compile": 2, "capture": 1, "solve": 1, "order": 1, "correct": 2, "verify": 1},
        ),
    ],
    ids=["zeros", "few bits"],
)
@pytest.mark.slow
def test_progress_adds_up(recipe: Recipe, stages: dict[str, int]) -> None:
    done: dict[str, int] = {}
    totals: dict[str, set[int]] = {}

    def advance(stage: str, count: int, total: int) -> None:
        done[stage] = done.get(stage, 0) + count
        totals.setdefault(stage, set()).add(total)

    compress(MODEL, CALIBRATION, recipe, data=FEW, feedback=Feedback(advance))
    assert {stage: {count // stages[stage]} for stage, count in done.items()} == totals
    assert all(count % stages[stage] == 0 for stage, count in done.items())
    assert list(done) == list(stages)


def test_a_failed_check_leaves_only_the_rejected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Check("losses", False, "layer a: predicted 1, measured 2")
    monkeypatch.setattr("onnx_obc.pipeline.verify.check_losses", lambda reports: fault)
    output = tmp_path / "out.onnx"
    with pytest.raises(VerificationError, match=r"losses failed: layer a.*out\.onnx\.rejected") as caught:
        compress(small(), {"x": np.eye(4, dtype=np.float32)}, output=output)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert list(listing(tmp_path)) == ["out.onnx.rejected"]
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx.rejected"))
    with pytest.raises(VerificationError, match="losses failed") as caught:
        compress(small(), {"x": np.eye(4, dtype=np.float32)})
    assert "rejected" not in str(caught.value)


def test_without_verification_the_report_says_so(tmp_path: Path) -> None:
    report = compress(small(), {"x": np.eye(4, dtype=np.float32)}, Recipe(verify=False), tmp_path / "out.onnx").report
    assert report.checks == () and "the file was not verified" in report.notes


@pytest.mark.slow
def test_weights_beside_the_file(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    ir.save(ir.load(MODEL), source, external_data="in.onnx.data")
    before = listing(tmp_path)
    recipe = Recipe(weights="int4", layers=(Rule(match="/classifier/*", skip=True),))  # whose weights stay large
    result = compress(source, CALIBRATION, recipe, tmp_path / "out.onnx", data=FEW)
    after = listing(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) == {"in.onnx", "in.onnx.data", "out.onnx", "out.onnx.data"}
    assert result.report.file_bytes_before == sum(len(x or b"") for x in before.values())
    assert result.report.file_bytes_after == sum(len(after[name] or b"") for name in set(after) - set(before))
    onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    read_model(tmp_path / "out.onnx")


@pytest.mark.slow
def test_corrections_leave_skipped_layers_as_they_are() -> None:
    name = onnx.load(MODEL).graph.node[0].name
    recipe = Recipe(sparsity="0.7", weights="float", refine="none", layers=(Rule(match=name, skip=True),))
    result = compress(MODEL, CALIBRATION, recipe)
    assert any(attempt.kept for attempt in result.report.corrections)
    before, after = (
        {n.name: [x.const_value for x in n.inputs[1:] if x is not None] for n in model.graph}
        for model in (fold(ir.load(MODEL))[0], result.model)
    )
    for old, new in zip(before[name], after[name], strict=True):
        assert old is not None and new is not None
        np.testing.assert_array_equal(old.numpy(), new.numpy())


@pytest.mark.slow
def test_statistics_are_brought_back_to_the_dense_models_after_adaprune(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def biases(model: ir.Model) -> list[ir.Value]:
        return [node.inputs[2] for node in model.graph if node.op_type == "Conv"]  # type: ignore[misc]

    def train(material: Any, plan: Any, solved: Any, *_: Any) -> Any:
        for value in biases(plan.model):
            assert value.const_value is not None
            value.const_value = ir.Tensor(value.const_value.numpy() + 1, name=value.name)
        return solved, ()

    def correct(material: Any, plan: Any, reference: Any, sites: Any, solved: Any, *_: Any) -> Any:
        for expected, found in zip(biases(fold(ir.load(MODEL))[0]), biases(reference), strict=True):
            assert expected.const_value is not None and found.const_value is not None
            np.testing.assert_array_equal(found.const_value.numpy(), expected.const_value.numpy())
        seen.append(reference)
        return solved, ()

    monkeypatch.setattr("onnx_obc.pipeline.draft.train_all", train)
    monkeypatch.setattr("onnx_obc.pipeline.draft.correct_statistics", correct)
    compress(MODEL, CALIBRATION, Recipe(solver="baseline", global_adaprune=1, verify=False))
    assert len(seen) == 1
