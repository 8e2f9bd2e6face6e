"""What a file must reach: metrics, gates that refuse and accept, and what is slower than it was."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL, TEST, listing, refused, run_cli, small, top1
from rich.console import Console

from onnx_obc import CalibrationError, DataOptions, GateError, Recipe, RecipeError, VerificationError, compress
from onnx_obc.calibration.samples import Samples
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.examine import Evaluation, MetricReport, open_examiner, users_metric
from onnx_obc.pipeline.floor import parse_quality
from onnx_obc.pipeline.speed import SHORTEST, Speed, _of_both
from onnx_obc.report.table import report_table
from onnx_obc.runtime.metric import Sample
from onnx_obc.runtime.session import Execution

X = np.random.default_rng(1).standard_normal((80, 4)).astype(np.float32)
RECIPE = Recipe(weights="int3", activations="none", device="cpu", threads=1)
DIGITS = ("--calib", CALIBRATION, "--samples", 128, "--weights", "int2", "--activations", "none", "--quiet")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test digits, their labels under the name that metrics look for."""
    arrays = np.load(TEST)
    names = {name: ("labels" if name.startswith("label") else name) for name in arrays.files}
    path = tmp_path_factory.mktemp("eval") / "test.npz"
    np.savez(path, **{names[name]: arrays[name] for name in arrays.files})
    return path


def speeds(ratio: float, layers: dict[str, tuple[float, float]] | None = None) -> Speed:
    return Speed("engine 1", "machine", 1, 1, 1e-3, 1e-3 / ratio, ratio, 0.99 * ratio, 1.01 * ratio, layers)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("30dB", ("dB", 30)), ("30 db", ("dB", 30)), ("agreement=99%", ("agreement", 0.99)), ("drop=1%", ("drop", 0.01)),
     ("metric=0.82", ("metric", 0.82)), ("metric=-3", ("metric", -3))],
)  # fmt: skip
def test_floors_are_read(text: str, wanted: tuple[str, float]) -> None:
    assert parse_quality(text) == (wanted[0], pytest.approx(wanted[1]))


@pytest.mark.parametrize("text", ["30", "dB", "99%", "agreement=990%", "drop=", "drop=1", "drop=100%", "sqnr=30", ""])
def test_floors_that_cannot_be_read(text: str) -> None:
    with pytest.raises(RecipeError, match="min-quality"):
        parse_quality(text)


@pytest.mark.slow
def test_a_metric_by_name_stands_in_the_report(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert run_cli(MODEL, out, *DIGITS, "--metric", "top-1", "--eval", labelled, "--report", tmp_path / "r.json") == 0
    metric = json.loads((tmp_path / "r.json").read_text())["metric"]
    assert metric["dense"] == pytest.approx(top1(MODEL)) and metric["compressed"] == pytest.approx(top1(out))
    assert metric["drop"] == pytest.approx(1 - metric["compressed"] / metric["dense"])
    assert metric["samples"] == len(np.load(labelled)["labels"]) and 0 < metric["standard_error"] < 0.05


@pytest.mark.slow
def test_a_function_of_the_users_own(labelled: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def share(outputs: dict[str, np.ndarray], labels: np.ndarray, feeds: dict[str, np.ndarray]) -> float:
        seen.append({"outputs": outputs, "labels": labels, "feeds": feeds})
        return float(np.mean(next(iter(outputs.values())).argmax(axis=1) == labels))

    result = compress(
        MODEL, str(CALIBRATION), RECIPE, data=DataOptions(samples=128), evaluation=Evaluation(share, str(labelled))
    )
    metric = result.report.metric
    assert metric is not None and metric.name == "share" and metric.dense == pytest.approx(top1(MODEL))
    arrays = np.load(labelled)
    assert len(seen[0]["labels"]) == len(arrays["labels"])
    assert {len(array) for array in (*seen[0]["outputs"].values(), *seen[0]["feeds"].values())} == {
        len(arrays["labels"])
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "met"),
    [("1dB", True), ("90dB", False), ("agreement=50%", True), ("agreement=100%", True), ("drop=50%", True),
     ("drop=0%", True), ("metric=0.5", True), ("metric=0.9999", False)],
)  # fmt: skip
def test_gates_of_quality(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: str, met: bool
) -> None:
    code = run_cli(
        *(MODEL, tmp_path / "out.onnx", "--calib", CALIBRATION, "--samples", 450, "--quiet", "--weights", "int3"),
        *("--activations", "none", "--solver", "baseline", "--effort", "fast", "--metric", "top-1", "--eval", labelled),
        *("--min-quality", gate, "--report", tmp_path / "r.json"),
    )
    report = json.loads((tmp_path / "r.json").read_text())
    (found,) = report["gates"]
    assert found["passed"] == met and found["wanted"] == gate
    names = {path.name for path in tmp_path.iterdir()}
    if met:
        assert code == 0 and names == {"out.onnx", "r.json"}
        return
    assert code == 3 and names == {"out.onnx.rejected", "r.json"}
    assert report["output"].endswith("out.onnx.rejected")
    said = capsys.readouterr().err
    assert said.startswith(f"error: min-quality {gate} was not met: ") and said.count("\n") == 1 and "try" in said


@pytest.mark.slow
def test_a_refused_file_that_cannot_be_left_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.onnx.rejected").mkdir()
    line = refused(capsys, MODEL, tmp_path / "out.onnx", *DIGITS, "--min-quality", "90dB")
    assert "out.onnx.rejected: " in line and "remove what is there" in line
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.rejected"]


@pytest.mark.parametrize(("ratio", "met"), [(2.0, True), (1.2, False)])
def test_the_gate_of_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ratio: float, met: bool) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.finish.measure_speed", lambda *_: speeds(ratio))
    recipe = RECIPE.model_copy(update={"min_speedup": 1.5})
    if met:
        assert compress(small(), {"x": X}, recipe, tmp_path / "out.onnx").report.gates[0].passed
        assert (tmp_path / "out.onnx").exists()
        return
    with pytest.raises(GateError, match=r"min-speedup 1.5x was not met: 1.20 x in engine 1") as caught:
        compress(small(), {"x": X}, recipe, tmp_path / "out.onnx")
    (result,) = caught.value.results
    assert result.path == tmp_path / "out.onnx.rejected" and result.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.rejected"]


@pytest.mark.slow
def test_one_budget_that_is_refused_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_cli(
        *(MODEL, tmp_path / "out.onnx", "--calib", CALIBRATION, "--samples", 64, "--quiet"),
        *("--levels", "int8,int2", "--budget", "size=0.26x", "--budget", "size=0.1x", "--sensitivity", "layer"),
        *("--min-quality", "25dB"),
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert code == 3 and {"out-size-0.26x.onnx", "out-size-0.1x.onnx.rejected", "out-pareto.csv"} <= names
    assert capsys.readouterr().err.count("was not met") == 1


@pytest.mark.slow
def test_a_budget_of_the_metric(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code = run_cli(
        *(MODEL, out, "--calib", CALIBRATION, "--samples", 64, "--quiet", "--levels", "int8,int4,int2"),
        *("--budget", "drop=2%", "--sensitivity", "layer", "--metric", "top-1", "--eval", labelled),
        *("--report", tmp_path / "r.json"),
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and report["metric"]["drop"] <= 0.02
    assert top1(out) >= 0.98 * top1(MODEL) and report["search"]["costs"]["size"] < 0.25


@pytest.mark.slow
def test_a_budget_asks_for_the_standard_error_of_the_result_alone(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("onnx_obc.pipeline.examine.standard_error", lambda *_: calls.append(1))
    code = run_cli(
        *(MODEL, tmp_path / "out.onnx", "--calib", CALIBRATION, "--samples", 64, "--quiet", "--levels", "int8,int2"),
        *("--budget", "drop=2%", "--sensitivity", "layer", "--metric", "top-1", "--eval", labelled),
    )
    assert code == 0 and len(calls) == 1


def test_the_speed_of_every_file_is_measured(tmp_path: Path) -> None:
    speed = compress(small(), {"x": X}, RECIPE, tmp_path / "out.onnx").report.speed
    assert speed is not None and speed.runtime.startswith("onnxruntime") and speed.batch == 1
    assert speed.seconds > 0 and speed.low <= speed.ratio <= speed.high and set(speed.layers or {}) == {"product"}
    unmeasured = RECIPE.model_copy(update={"measure_speed": False})
    assert compress(small(), {"x": X}, unmeasured).report.speed is None
    assert compress(small(), {"x": X}, RECIPE.model_copy(update={"verify": False})).report.speed is None


@pytest.mark.slow
def test_the_last_line_says_what_is_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [layer.name for layer in compress(MODEL, str(CALIBRATION), RECIPE).report.layers]
    slow = speeds(0.5, {names[0]: (1e-3, 3e-3), names[1]: (1e-3, 1e-3), "in float": (1e-3, 9e-3)})
    monkeypatch.setattr("onnx_obc.pipeline.finish.measure_speed", lambda *_: slow)
    assert run_cli(MODEL, tmp_path / "out.onnx", *DIGITS[:-1]) == 0
    last = " ".join(capsys.readouterr().out.split("slower than the dense model")[1].split())
    assert last.startswith(": 0.50 (0.49 … 0.51) times its speed in engine 1, batch 1")
    assert f"{names[0]} (+2 ms)" in last and f"{names[1]} (" not in last and "--fix-slow" in last
    assert "in float (" not in last
    assert run_cli(MODEL, tmp_path / "out.onnx", *DIGITS[:-1], "--fix-slow") == 0
    assert "--fix-slow" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("helps", [True, False])
def test_slow_layers_return_to_float_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, helps: bool
) -> None:
    data = DataOptions(samples=64)
    names = [layer.name for layer in compress(MODEL, str(CALIBRATION), RECIPE, data=data).report.layers]
    first = speeds(0.8, {name: (1e-3, 2e-3 if name == names[1] else 5e-4) for name in names})
    second = speeds(
        1.5 if helps else 0.8, {**dict.fromkeys(names, (0.001, 0.0005)), names[1]: (0.001, 0.002)}
    )  # by chance slower still, though float by then: it is not returned twice
    turns = iter([first, second])
    monkeypatch.setattr("onnx_obc.pipeline.finish.measure_speed", lambda *_: next(turns))
    recipe = RECIPE.model_copy(update={"fix_slow": True})
    report = compress(MODEL, str(CALIBRATION), recipe, tmp_path / "o.onnx", data=data).report
    assert [layer.name for layer in report.layers] == [n for n in names if n != names[1] or not helps]
    assert report.speed == (second if helps else first)
    if helps:
        (left,) = [entry for entry in report.left_out if entry.name == names[1]]
        assert left.reason == "engine 1 runs it slower than in float: it stays float"
        assert "1 layer returned to float: 0.80 → 1.50 times faster" in report.notes


def test_a_model_whose_layers_are_all_slow_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.finish.measure_speed", lambda *_: speeds(0.5, {"product": (1e-3, 2e-3)}))
    report = compress(small(), {"x": X}, RECIPE.model_copy(update={"fix_slow": True})).report
    assert [layer.name for layer in report.layers] == ["product"]
    assert "every layer is slower than in float in engine 1: the dense model is the fastest" in report.notes


@pytest.mark.slow
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], labelled: Path) -> None:
    source = tmp_path / "score.py"
    source.write_text(
        "def crash(outputs):\n    raise OSError('no')\n"
        "def nan(outputs):\n    return float('nan')\n"
        "def leave(outputs):\n    raise SystemExit(0)\n"
        "def other(predictions):\n    return 1.0\n"
        "def good(outputs, labels):\n    return 1.0\n"
    )
    short = tmp_path / "short.npz"
    arrays = np.load(labelled)
    np.savez(short, **{name: arrays[name][: 10 if name == "labels" else 20] for name in arrays.files})
    before = listing(tmp_path)
    run = (MODEL, tmp_path / "o.onnx", *DIGITS)
    assert "has no effect without --metric" in refused(capsys, *run, "--eval", labelled)
    assert "did you mean top-1?" in refused(capsys, *run, "--metric", "top1", "--eval", labelled)
    assert "have no labels" in refused(capsys, *run, "--metric", "top-1")
    assert "of each of the 20 samples" in refused(capsys, *run, "--metric", "top-1", "--eval", short)
    assert "not found" in refused(capsys, *run, "--metric", "top-1", "--eval", tmp_path / "gone.npz")
    assert "raised OSError: no" in refused(capsys, *run, "--metric", f"{source}:crash")
    assert "it is nan, not a number" in refused(capsys, *run, "--metric", f"{source}:nan")
    assert "raised SystemExit" in refused(capsys, *run, "--metric", f"{source}:leave")
    assert "name them outputs, labels or feeds" in refused(capsys, *run, "--metric", f"{source}:other")
    assert "have no labels" in refused(capsys, *run, "--metric", f"{source}:good")
    assert "has no function 'gone'" in refused(capsys, *run, "--metric", f"{source}:gone")
    assert "labels are (height, width)" in refused(capsys, *run, "--metric", "mean-iou", "--eval", labelled)
    assert "is about a metric; give --metric" in refused(capsys, *run, "--min-quality", "drop=1%")
    assert "need the checks" in refused(capsys, *run, "--min-quality", "30dB", "--no-verify")
    assert "cannot be read; write 30dB" in refused(capsys, *run, "--min-quality", "good")
    assert "min_speedup" in refused(capsys, *run, "--min-speedup", "0")
    for option in (("--min-speedup", "2"), ("--fix-slow",)):
        assert "leave out --no-measure-speed" in refused(capsys, *run, *option, "--no-measure-speed")
    line = refused(capsys, *run, "--min-speedup", "2", "--target", "tensorrt")
    assert line.startswith("error: --min-speedup 2 cannot be measured: ")
    judging = (*run, "--metric", f"{source}:good", "--eval", short)
    assert "--eval reads it" in refused(capsys, *judging, "--report", short)
    assert "--metric reads it" in refused(capsys, *judging, "--html", source)
    assert listing(tmp_path) == before


def test_gates_that_a_model_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no output of this model is class scores"):
        compress(small(), {"x": X}, RECIPE.model_copy(update={"min_quality": "agreement=99%"}), tmp_path / "o.onnx")
    with pytest.raises(CalibrationError, match="--metric top-1: labels are classes 0 … 7, not 8"):
        data = {"x": X, "labels": np.full(80, 8)}
        compress(small(), {"x": X}, RECIPE, evaluation=Evaluation("top-1", data))
    assert not list(tmp_path.iterdir())


def test_a_slow_file_is_clearly_slow() -> None:
    assert speeds(0.9).slower and not speeds(1.1).slower
    assert not replace(speeds(0.9), high=1.05).slower


def test_a_metric_that_fails_on_the_compressed_model_leaves_the_file(tmp_path: Path) -> None:
    asked: list[int] = []

    def crash_later(outputs: dict[str, np.ndarray]) -> float:
        asked.append(1)
        return 1.0 if len(asked) == 1 else float("nan")

    with pytest.raises(VerificationError, match=r"metric failed.*it is nan.*out\.onnx\.rejected") as caught:
        compress(small(), {"x": X}, RECIPE, tmp_path / "out.onnx", evaluation=Evaluation(crash_later))
    assert "please report it" not in str(caught.value)  # it is the user's own function
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.rejected"]


def test_a_metric_is_measured_of_files_that_are_not_verified() -> None:
    recipe = RECIPE.model_copy(update={"verify": False})
    metric = compress(small(), {"x": X}, recipe, evaluation=Evaluation("agreement")).report.metric
    assert metric is not None and metric.dense == 1


@pytest.mark.slow
def test_a_metric_that_does_not_fit_is_refused_before_a_database_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], labelled: Path
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr("onnx_obc.search.retarget.build", never)
    run = (MODEL, tmp_path / "o.onnx", "--calib", CALIBRATION, "--samples", 64, "--quiet", "--budget", "size=0.2x")
    assert "did you mean top-1?" in refused(capsys, *run, "--metric", "top1", "--eval", labelled)
    assert "have no labels" in refused(capsys, *run, "--metric", "top-1")
    assert not list(tmp_path.iterdir())


def test_what_a_function_does_not_ask_for_is_not_kept() -> None:
    sample = Sample({"x": X}, {"y": X}, 3)
    kept = {
        "labels": users_metric(lambda labels: 1.0, "f").note(sample),
        "outputs": users_metric(lambda outputs: 1.0, "f").note(sample),
        "feeds": users_metric(lambda feeds: 1.0, "f").note(sample),
    }
    assert kept["labels"].label == 3 and not kept["labels"].feed and not kept["labels"].outputs
    assert kept["outputs"].outputs == sample.outputs and not kept["outputs"].feed
    assert kept["feeds"].feed == sample.feed and not kept["feeds"].outputs


def test_layers_that_an_engine_counts_for_others_have_no_speed() -> None:
    before = {"both": 1e-3, "hidden before": SHORTEST, "hidden now": 1e-3}
    assert _of_both(before, {"both": 2e-3, "hidden before": 1e-3, "hidden now": SHORTEST}) == {"both": (1e-3, 2e-3)}


@pytest.mark.slow
def test_only_compressed_layers_return_to_float_and_what_was_judged_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, recipe = DataOptions(samples=64), Recipe(device="cpu", threads=1, activations="none", fix_slow=True)
    names = [layer.name for layer in compress(MODEL, str(CALIBRATION), RECIPE, data=data).report.layers]
    first = speeds(0.8, {names[1]: (1e-3, 2e-3)})
    second = speeds(1.5, {names[1]: (1e-3, 1.2e-3)})  # float by now: noise
    turns = iter([first, second])
    monkeypatch.setattr("onnx_obc.pipeline.finish.measure_speed", lambda *_: next(turns))
    report = compress(MODEL, str(CALIBRATION), recipe, tmp_path / "o.onnx", data=data).report
    assert report.speed == second and [x.name for x in report.left_out if x.name in names] == [names[1]]
    assert [attempt.kinds for attempt in report.corrections].count(("rounding",)) == 1


def test_a_metric_that_stays_the_same_is_not_said_to_be_better() -> None:
    report = compress(small(), {"x": X}, RECIPE).report
    same = replace(report, metric=MetricReport("f1", 0.9, 0.9, 0.0, 20, 0.001, True))
    console = Console(width=200, file=StringIO())
    console.print(report_table(same, 200))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "f1: 0.9 → 0.9, 0.00 ± 0.10 % worse on 20 samples" in said


def test_a_metric_that_fails_on_a_ruined_model_does_not_stop_a_search(labelled: Path, tmp_path: Path) -> None:
    def strict(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
        share = float(np.mean(next(iter(outputs.values())).argmax(axis=1) == labels))
        if share < 0.9:
            raise ValueError("nothing was recognised")
        return share

    examiner = open_examiner(
        read_model(MODEL), Evaluation(strict, str(labelled)), samples_of_nothing(), Execution("cpu", 1), lambda *_: None
    )
    assert examiner is not None and examiner.drop(read_model(MODEL)) == 0
    ruined = read_model(MODEL)
    for value in ruined.graph.initializers.values():
        if value.const_value is not None and len(value.shape or ()) == 4:
            value.const_value = ir.Tensor(np.zeros_like(value.const_value.numpy()), name=value.name)
    assert examiner.drop(ruined) == np.inf
    with pytest.raises(CalibrationError, match="nothing was recognised"):
        examiner.examine(ruined)


def samples_of_nothing() -> Samples:
    return Samples(0, "nothing", lambda start, stop: iter(()))
