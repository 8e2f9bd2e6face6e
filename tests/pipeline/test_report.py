from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from digits import small, text_like
from onnx import helper
from rich.console import Console, RenderableType
from small_graphs import build, random

from onnx_obc import OutputError, Recipe, compress
from onnx_obc.cli.inspect import impossible_levels, inspect_model
from onnx_obc.graph.cost import layer_costs
from onnx_obc.graph.layers import LeftOut, find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.correct import CorrectionReport
from onnx_obc.pipeline.examine import MetricReport
from onnx_obc.pipeline.gates import Gate
from onnx_obc.pipeline.layer import EmbeddingReport, LayerReport
from onnx_obc.pipeline.report import Report
from onnx_obc.pipeline.speed import Speed
from onnx_obc.pipeline.verify import Check, OutputMatch
from onnx_obc.report.as_json import write_json
from onnx_obc.report.table import layer_table, report_table

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


@pytest.mark.parametrize(
    "kind",
    [Report, LayerReport, LeftOut, EmbeddingReport, CorrectionReport, OutputMatch, Check, Speed, MetricReport, Gate],
)
def test_every_field_is_documented(kind: type[Any]) -> None:
    section = {Report: "", LayerReport: "layers", LeftOut: "left_out", EmbeddingReport: "embeddings"}
    section |= {Speed: "speed", MetricReport: "metric", Gate: "gates"}
    section |= {OutputMatch: "outputs", Check: "checks", CorrectionReport: "corrections"}
    title, *parts = re.split(r"^## `(\w+)`$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = {"": title, **dict(zip(parts[::2], parts[1::2], strict=True))}[section[kind]]
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
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
    ir.save(model, tmp_path / "m.onnx")
    assert render(inspect_model(tmp_path / "m.onnx")(200), 200) == lines


def test_a_layer_that_no_integers_can_hold() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    (layer,), _ = find_layers(ir.from_proto(build([node], {"x": (3, 2, 1)}, {"y": (3, 2, 5)}, {"w": random(3, 1, 5)})))
    assert any(reason.startswith("integers: no DequantizeLinear") for reason in impossible_levels(layer))


def test_a_model_without_layers_has_an_empty_table() -> None:
    assert any("0 layers" in line for line in render(layer_table([], {}, {}, [], 80), 80))
