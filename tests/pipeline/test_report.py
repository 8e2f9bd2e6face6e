from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from digits import small, text_like
from onnx import helper
from PIL import Image
from rich.console import Console, RenderableType
from small_graphs import build, random

from onnx_obc import DataOptions, OutputError, Recipe, compress
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.samples import Batch, Samples, Shown
from onnx_obc.calibration.thumbnails import picture_of
from onnx_obc.cli.inspect import impossible_levels, inspect_model
from onnx_obc.graph.cost import Cost, layer_costs
from onnx_obc.graph.layers import LeftOut, find_layers
from onnx_obc.graph.model import InputSpec, read_model
from onnx_obc.pipeline.attempts import CorrectionReport
from onnx_obc.pipeline.examine import MetricReport
from onnx_obc.pipeline.gates import Gate
from onnx_obc.pipeline.histograms import RowGrid, WeightPicture
from onnx_obc.pipeline.layer import EmbeddingReport, LayerReport
from onnx_obc.pipeline.report import Report
from onnx_obc.pipeline.speed import Speed
from onnx_obc.pipeline.verify import Check, OutputMatch
from onnx_obc.pipeline.worst import KEPT, WorstSample, WorstSamples
from onnx_obc.report.as_json import write_json
from onnx_obc.report.table import layer_table, report_table
from onnx_obc.runtime.output_loss import OutputLoss

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.fixture(scope="module")
def report() -> Report:
    ids = np.random.default_rng(0).integers(0, 64, (40, 6))
    return compress(text_like(), {"ids": ids}, Recipe(embeddings="int8")).report


def render(table: RenderableType, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    return lines


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def test_json(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(report, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert plain["schema"] == 1
    assert [set(layer) for layer in plain["layers"]] == [{f.name for f in dataclasses.fields(LayerReport)}] * 2
    assert all(math.isfinite(leaf) for leaf in leaves(plain) if isinstance(leaf, float))
    assert plain["totals"]["layers"] == 2 and plain["calibration"]["samples"] + plain["calibration"]["held_out"] == 40
    assert set(plain) == {f.name for f in dataclasses.fields(Report)} | {"totals"}
    assert all(low <= 0 <= high for low, high in plain["activations"].values()) and plain["activations"]


def test_what_is_not_finite_becomes_null(report: Report, tmp_path: Path) -> None:
    odd = replace(report, outputs=(OutputMatch("y", math.inf, None), OutputMatch("z", math.nan, np.float32(0.5))))  # type: ignore[arg-type]
    write_json(odd, tmp_path / "r.json")
    outputs = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["outputs"]
    assert [x["sqnr_db"] for x in outputs] == [None, None]
    assert outputs[1]["top1_agreement"] == 0.5


def test_a_report_that_cannot_be_written_leaves_nothing(report: Report, tmp_path: Path) -> None:
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*r\.json: Is a directory.*; the model was written"):
        write_json(report, tmp_path / "r.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


KINDS = (
    Report,
    LayerReport,
    LeftOut,
    EmbeddingReport,
    CorrectionReport,
    OutputMatch,
    Check,
    WeightPicture,
    WorstSample,
    Speed,
    MetricReport,
    Gate,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_documented(kind: type[Any]) -> None:
    section = {Report: "", LayerReport: "layers", LeftOut: "left_out", EmbeddingReport: "embeddings"}
    section |= {Speed: "speed", MetricReport: "metric", Gate: "gates"}
    section |= {OutputMatch: "outputs", Check: "checks", CorrectionReport: "corrections"}
    section |= {WeightPicture: "weights", WorstSample: "worst"}
    title, *parts = re.split(r"^## `(\w+)`$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = {"": title, **dict(zip(parts[::2], parts[1::2], strict=True))}[section[kind]]
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert all(f"`{field.name}`" in text for field in dataclasses.fields(RowGrid) if kind is WeightPicture)
    assert documented - {"totals"} == {field.name for field in dataclasses.fields(kind)}


def test_totals_are_documented(report: Report) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in report.totals)
    assert all(f"`{name}`" in text for name in report.calibration)


def test_the_table_at_any_width(report: Report) -> None:
    name = "/features/features.10/body/body.2/body.2.0/Conv"
    long = replace(report, layers=(replace(report.layers[0], name=name, notes=("odd",)), *report.layers[1:]))
    wide = render(report_table(long, 200), 200)
    for title in ("layer", "op", "level", "input", "loss", "baseline", "damping", "seconds", "bytes", "was"):
        assert title in wide[1]
    assert any(line.strip().startswith(f"{name} ¹") for line in wide)
    assert f"¹ {name}: odd" in wide
    narrow = render(report_table(long, 80), 80)
    assert all(title in narrow[1] for title in ("layer", "level", "relative", "baseline"))
    assert "seconds" not in narrow[1] and "damping" not in narrow[1]
    first = next(line for line in narrow if line.strip().startswith("/features"))
    assert len(first.split()[0]) >= 30 and " int8 " in first
    assert any("✓ losses" in line for line in narrow) and any(line.strip().startswith("table") for line in narrow)
    for width in (20, 40, 60, 100, 120):
        render(report_table(long, width), width)


@pytest.mark.parametrize(
    ("after", "kept", "said"),
    [
        (0.9, True, "output loss 1 → 0.9 on other samples"),
        (0.9, False, "output loss 1 → 0.9 on other samples: dropped, as the gain is within its standard error of 0.2"),
        (0.7, False, "output loss 1 → 0.7 on other samples: dropped"),
        (1.1, False, "output loss 1 → 1.1 on other samples: dropped"),
    ],
)
def test_why_a_gain_was_dropped(report: Report, after: float, kept: bool, said: str) -> None:
    tried = CorrectionReport(("bias",), 2, 1.0, after, 0.2, kept)
    lines = render(report_table(replace(report, corrections=(tried,)), 200), 200)
    assert f"corrected bias at 2 places, {said}" in lines


def test_square_brackets_in_names_are_no_markup(report: Report) -> None:
    odd = replace(report, layers=(replace(report.layers[0], name="[red]a[/red]"),), notes=("[bold]",))
    lines = "\n".join(render(report_table(odd, 200), 200))
    assert "[red]a[/red]" in lines and "note: [bold]" in lines


def test_what_was_left_out_is_one_line_for_each_reason(report: Report) -> None:
    left = [*(LeftOut(f"layer{i}", "Conv", "too odd") for i in range(5)), LeftOut("x", "LSTM", "no layer")]
    lines = render(report_table(replace(report, left_out=tuple(left)), 200), 200)
    assert "left as it is: layer0, layer1, layer2 and 2 more: too odd" in lines
    assert "left as it is: x: no layer" in lines


def test_the_layers_of_a_model(tmp_path: Path) -> None:
    model = read_model(small(columns=6))
    layers, left = find_layers(model)
    impossible = {layer.name: impossible_levels(layer) for layer in layers}
    lines = render(layer_table(layers, layer_costs(model, layers), impossible, left, 200), 200)
    assert [word for line in lines if line.startswith(" product") for word in line.split()] == [
        "product", "MatMul", "1", "×", "8", "×", "6", "48", "96", "2:4,", "4:8,", "block4",
    ]  # fmt: skip
    assert "2:4: the number of columns = 6 is not a multiple of 4: 1 layer" in lines
    assert "1 layer, 48 parameters, 96 FLOPs a sample" in lines
    unknown = render(layer_table(layers, {"product": Cost(48, None)}, impossible, left, 200), 200)
    assert "1 layer, 48 parameters, 0 FLOPs a sample in 0 layers: of the others shapes are not known" in unknown
    ir.save(model, tmp_path / "m.onnx")
    assert render(inspect_model(tmp_path / "m.onnx")(200), 200) == lines


def test_a_layer_that_no_integers_can_hold() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    (layer,), _ = find_layers(ir.from_proto(build([node], {"x": (3, 2, 1)}, {"y": (3, 2, 5)}, {"w": random(3, 1, 5)})))
    assert any(reason.startswith("integers: no DequantizeLinear") for reason in impossible_levels(layer))


def test_a_model_without_layers_has_an_empty_table() -> None:
    assert any("0 layers" in line for line in render(layer_table([], {}, {}, [], 80), 80))


def test_numbers_in_lists_stand_on_one_line(report: Report, tmp_path: Path) -> None:
    odd = replace(report, notes=("[\n 1,\n 2\n]", "[1, 2]"))
    write_json(odd, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == odd.to_dict()
    assert all(re.fullmatch(r'\s*"counts": \[[\d, ]+\],?', line) for line in text.splitlines() if '"counts"' in line)


def test_a_report_of_many_layers_is_small(report: Report, tmp_path: Path) -> None:
    """With histograms of every weight and activation, at their longest: without pictures, under a megabyte for 200."""
    layer, name = report.layers[0], report.layers[0].name
    picture = report.weights[name]
    full = replace(picture.histogram, counts=(123456,) * 64)
    weights = {f"{name}.{i}": replace(picture, histogram=full) for i in range(200)}
    layers = tuple(replace(layer, name=other) for other in weights)
    activations = {f"{other}_input": (-1.23456789, 9.87654321) for other in weights}
    many = replace(report, layers=layers, weights=weights, activations=activations)
    write_json(replace(many, histograms=dict.fromkeys(activations, full)), tmp_path / "r.json")
    assert (tmp_path / "r.json").stat().st_size < 700_000


def test_histograms_count_what_is_there(report: Report) -> None:
    for layer in report.layers:
        picture = report.weights[layer.name]
        assert sum(picture.histogram.counts) == layer.groups * layer.rows * layer.columns
        assert picture.grid is not None and picture.grid.smallest <= picture.grid.scale <= picture.grid.largest
        assert picture.nodes and (picture.input in report.activations) == (layer.activations == "int8")
    assert report.histograms.keys() == report.activations.keys()
    for name, found in report.histograms.items():
        assert len(found.counts) == 64 and sum(found.counts) > 0
        assert found.low <= report.activations[name][0] and report.activations[name][1] <= found.high


def test_the_order_is_that_of_the_graph(report: Report) -> None:
    assert [name for name in report.order if name in report.weights] == [layer.name for layer in report.layers]
    assert {*report.order} == {layer.name for layer in report.layers} | {one.name for one in report.left_out}


def test_what_it_was_made_with_is_said(report: Report) -> None:
    assert report.command is None and report.machine.endswith("cores")
    assert report.versions.keys() == {"onnx-obc", "onnxruntime", "numpy", "python"}


def samples_of(count: int) -> Samples:
    def read(start: int, stop: int) -> Iterator[Batch]:
        yield Batch({"x": np.zeros((stop - start, 3), np.float32)}, start, stop - start)

    return Samples(count, "data", read, shown=lambda position: Shown(text=f"text {position}"))


def test_the_worst_samples_are_those_with_the_largest_loss() -> None:
    random = np.random.default_rng(0)
    y = random.standard_normal((40, 5)).astype(np.float32)
    error = random.permutation(40).astype(np.float32)[:, None] / 100
    worst = WorstSamples(["y"])
    for start in (0, 15):
        stop = 15 if start == 0 else 40
        batch = Batch({"x": np.zeros((stop - start, 3), np.float32)}, start, stop - start)
        found = y[start:stop] * (1 - error[start:stop])
        worst.add(batch, {"y": y[start:stop], "n": np.array([3])}, {"y": found, "n": np.array([4])})
    found_samples = worst.found(samples_of(40))
    losses = []
    for index in range(40):
        one = OutputLoss(["y"])
        one.add({"y": y[index : index + 1]}, {"y": y[index : index + 1] * (1 - error[index])})
        losses.append(one.value)
    order = np.argsort(losses)[::-1][:KEPT]
    assert [one.name for one in found_samples] == [f"sample {index}" for index in order]
    assert [one.loss for one in found_samples] == pytest.approx([losses[index] for index in order])
    assert [one.text for one in found_samples] == [f"text {index}" for index in order]
    assert [one.dense_class for one in found_samples] == [int(y[index].argmax()) for index in order]
    wanted = [-20 * math.log10(error[index, 0]) for index in order]
    assert [one.sqnr_db for one in found_samples] == pytest.approx(wanted, abs=1e-3)


def test_equal_outputs_have_no_worst_sample_and_odd_outputs_say_nothing() -> None:
    worst, y = WorstSamples([]), np.ones((4, 2), np.float32)
    batch = Batch({"x": y}, 0, 4)
    worst.add(batch, {"y": y}, {"y": y.copy()})
    worst.add(batch, {"y": np.ones((7, 2), np.float32)}, {"y": np.zeros((7, 2), np.float32)})  # along no sample
    worst.add(batch, {"y": np.array(["a"])}, {"y": np.array(["b"])})
    assert worst.found(samples_of(4)) == ()
    worst.add(Batch({"x": y}, 0, 1), {"y": np.ones((7, 2), np.float32)}, {"y": np.zeros((7, 2), np.float32)})
    assert [one.loss for one in worst.found(samples_of(4))] == [1.0]  # a feed of one sample is that sample


def test_pictures_of_samples(tmp_path: Path) -> None:
    grey = picture_of({"x": np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)})
    assert grey is not None and grey.startswith("data:image/jpeg;base64,")
    assert picture_of({"x": np.zeros((1, 300, 200, 3), np.uint8)}) is not None
    assert picture_of({"x": np.full((1, 1, 8, 8), np.inf)}) is None
    for shape in (1, 7), (1, 2, 8, 8), (1, 1, 2, 2), (2, 1, 8, 8):
        assert picture_of({"x": np.zeros(shape, np.float32)}) is None
    assert picture_of({"x": np.zeros((1, 1, 8, 8)), "y": np.zeros((1, 1))}) is None
    Image.fromarray(np.zeros((200, 100, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(tmp_path / "b.png")
    spec = InputSpec("x", np.dtype(np.float32), (None, 3, 32, 32))
    samples = open_samples(tmp_path, [spec], DataOptions(preprocess="unit"))
    shown = samples.part(1, 2).shown(0)
    assert shown is not None and shown.image is not None
    with Image.open(io.BytesIO(base64.b64decode(shown.image.partition(",")[2]))) as found:
        assert found.size == (32, 32) and found.convert("L").getpixel((3, 3)) in (0, 255)
