"""The page of a report: what stands on it, that names stay text, and what is said of files that are no report."""

from __future__ import annotations

import json
import re
import unicodedata
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import small
from page_elements import Elements
from reports import budgets, make_report
from studies import HOSTILE

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import RecipeError, ReportError
from onnx_obc.graph.model import read_model
from onnx_obc.report import report_words as words
from onnx_obc.report.engine_pages import write_bench_page, write_check_page
from onnx_obc.report.overlay import overlay_paths, write_overlay
from onnx_obc.report.plain_report import PlainReport, checked_reports, read_reports
from onnx_obc.report.report_page import STEPS, report_page, rows_of, write_report_page
from onnx_obc.targets.bench import Benchmark, Timed
from onnx_obc.targets.check import FileCheck, KernelMatch
from onnx_obc.targets.finding import Finding

ALWAYS = {"schema", "version", "model", "recipe", "calibration", "layers", "file_bytes_after"}
LATER = {
    "speed": {
        "runtime": "onnxruntime 1.22.0",
        "batch": 1,
        "threads": 2,
        "dense_seconds": 0.02,
        "seconds": 0.01,
        "ratio": 2.0,
        "low": 1.9,
        "high": 2.1,
        "machine": "x",
        "layers": {"/features/block.1/conv/Conv": [0.4, 0.1]},
    },
    "metric": {
        "name": "accuracy",
        "dense": 0.926,
        "compressed": 0.921,
        "drop": 0.005,
        "samples": 500,
        "standard_error": 0.002,
    },
    "gates": [
        {"name": "drop", "wanted": "1 %", "reached": "2 %", "passed": False, "advice": "keep more layers in float"}
    ],
}


def page_of(plain: object) -> Elements:
    return Elements(report_page(checked_reports(plain, "here")))


def data_of(page: Elements) -> dict[str, Any]:
    (island,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.text, re.DOTALL)
    found: dict[str, Any] = json.loads(island)
    return found


def test_all_of_a_report_stands_on_its_page() -> None:
    page = page_of({**make_report(6), **LATER})
    assert page.sections == ["model", "quality", "size", "corrections", "left", "findings", "repeat"]
    said = " ".join(page.words.split())
    for part in (
        "4× smaller: 4 MB → 1 MB",
        "2× as fast as the dense model (1.9 … 2.1) in onnxruntime 1.22.0: 20 ms → 10 ms",
        "Accuracy 0.926 → 0.921, a drop of 0.5 % ± 0.2 % on 500 samples",
        "The dense model's class on 90 % of 10 held-out samples",
        "drop: wanted 1 %, reached 2 %",
        "Refused: it does not reach what was asked for",
        "keep more layers in float",
        "class 3 → 0",
        "no: undone",
        "its weight is no constant",
        "they dequantize bit for bit",
        "5 of 6 quantized layers run in integers",
        "9 nodes folded away",
        "onnx-obc models/net.onnx out/net.onnx --calib 'my data'",
        "onnxruntime 1.22.0, numpy 2.0.0, python 3.11.7",
        "a processor, 2 cores",
    ):
        assert part in said, part
    assert len(page.having("img", alt="")) == 8
    strip = [found for found in page.having("button") if "data-row" in found]
    assert [found["class"] for found in strip][3] == "as-is" and len(strip) == 7


def test_a_row_opens_to_what_the_report_says() -> None:
    plain = make_report(6)
    data = data_of(page_of(plain))
    assert [layer["name"] for layer in data["layers"]] == plain["order"]
    layer, given = data["layers"][0], plain["layers"][0]
    (run,) = layer["runs"]
    energy = given["loss"] / given["loss_relative"]
    wanted = [given[f"loss{end}"] for end in ("_baseline", "", "_greedy", "_measured", "_bound")]
    assert run["loss"] == pytest.approx(wanted, rel=1e-3) and run["energy"] == pytest.approx(energy, rel=1e-3)
    assert run["grid"] == [0.013, 7, 4] and run["input"][2] == [-1.0, 1.8]
    low, high, heights = layer["weight"]
    counts = plain["weights"][given["name"]]["histogram"]["counts"]
    assert (low, high, len(heights)) == (-0.5, 0.6, 64)
    assert STEPS.index(heights[int(np.argmax(counts))]) == len(STEPS) - 1
    assert all((step == "0") == (count == 0) for step, count in zip(heights, counts, strict=True))
    facts = dict(zip(data["terms"], run["facts"], strict=True))
    assert facts["weight matrix"] == f"1 × {given['rows']} × {given['columns']}"


def test_a_symmetric_grid_counts_its_codes_from_the_lowest() -> None:
    plain = make_report(1)
    plain["weights"]["/features/block.0/conv/Conv"]["grid"] |= {"symmetric": True, "zero_point": 0}
    assert next(x for x in data_of(page_of(plain))["layers"] if x["runs"][0])["runs"][0]["grid"] == [0.013, 8, 4]


def test_several_budgets_stand_on_one_page() -> None:
    plain = budgets("bops=8x", "bops=12x", "bops=16x")
    page = page_of(plain)
    assert page.sections[0] == "budgets" and len(page.having("div", **{"class": "strip"})) == 3
    assert "3 budgets: 2× to 4× smaller" in page.words
    assert len(page.having("circle", **{"class": "dot q"})) == 3
    data = data_of(page)
    first = data["layers"][0]
    assert data["names"] == ["bops=8x", "bops=12x", "bops=16x"]
    assert [run is None for run in first["runs"]] == [False, False, True]
    assert first["left"][2] == "float, as the budget allows"
    assert page.words.count("onnx-obc models/net.onnx") == 1  # one command made them


def test_budgets_whose_files_grow_are_not_called_smaller() -> None:
    plain = budgets("bops=8x", "bops=12x")
    for report, size in zip(plain, (3_000_000, 5_000_000), strict=True):
        report["file_bytes_before"], report["file_bytes_after"] = 4_000_000, size
    assert "2 budgets: files of 0.75 to 1.25 of the dense one's size" in page_of(plain).words


def test_one_of_a_list_is_a_report() -> None:
    assert page_of([make_report(3)]).text == page_of(make_report(3)).text


def test_what_an_old_report_lacks_is_left_out() -> None:
    whole = make_report(4)
    plain = {key: whole[key] for key in ALWAYS}
    page = page_of(plain)
    assert page.sections == ["model", "size", "findings", "repeat"]
    assert "The file was not verified." in page.words and "None" not in page.words
    assert [row.name for row in rows_of(checked_reports(plain, ""))] == [x["name"] for x in whole["layers"]]
    page_of({**plain, "layers": [], "file_bytes_before": None})
    nothing = {name: None for name in whole["layers"][0] if name.startswith("loss") or name.endswith("relative")}
    page_of({**plain, "layers": [{**whole["layers"][0], **nothing}]})


def test_names_are_text_wherever_they_stand() -> None:
    hostile = "</script><script>alert(1)</script>\x1b[31m\u202e\u2028"
    names = (*HOSTILE, hostile)
    plain = make_report(9, names, model=f"a/{hostile}", notes=[hostile], machine=hostile, command=[hostile])
    plain["outputs"][0] |= {"name": hostile, "not_finite": [hostile]}
    plain["worst"] = [{"name": hostile, "loss": 1.0, "text": hostile}]
    plain["recipe"] = {"weights": hostile}
    page = page_of(plain)
    assert len(page.having("script")) == 2 and not [x for x in page.having("img") if "onerror" in x]
    assert "&lt;/script&gt;" in page.text and "7 * 7" in page.text
    control = [x for x in page.text if unicodedata.category(x) in ("Cc", "Cf", "Cs") and x != "\n"]
    assert control == [] and "\u2028" not in page.text.split('id="data"')[1]
    assert any(layer["name"].endswith("x" * 400) for layer in data_of(page)["layers"])


def test_a_page_loads_nothing_and_runs_only_its_own_script() -> None:
    page = page_of(make_report(3))
    (policy,) = [x["content"] for x in page.having("meta") if x.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    sources = [value for _, found in page.elements for name, value in found.items() if name in ("src", "href")]
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    assert not [found for _, found in page.elements if "style" in found or any(name.startswith("on") for name in found)]
    assert "http" not in page.text.replace("http-equiv", "")


@pytest.mark.slow
def test_pages_grow_little_with_layers() -> None:
    few, many = (len(page_of(make_report(count)).text) for count in (100, 500))
    assert (many - few) / 400 < 1500
    assert page_of(make_report(500)).text.count("class=late") == 301  # rows that are not laid out at first


REPORTS: dict[str, tuple[object, str]] = {
    "a number": (3, "is no report of a run of onnx-obc"),
    "another thing": ({"layers": [], "nodes": []}, "is no report of a run of onnx-obc"),
    "a study": ({"model": "x", "layers": [], "bits": [2]}, "is no report of a run of onnx-obc"),
    "an empty list": ([], "a list without a report"),
    "a list with another thing": ([make_report(1), 3], "report 2: is no report"),
    "a later schema": ({**make_report(1), "schema": 9}, "schema 9, but this version reads 1"),
    "a schema of another kind": ({**make_report(1), "schema": {}}, "schema {}"),
    "a field of another kind": ({**make_report(1), "file_bytes_after": "many"}, "file_bytes_after: Input should be"),
    "a field that is missing": ({**make_report(1), "model": None}, "model: Input should be a valid string"),
    "layers of another kind": ({**make_report(1), "layers": [{"name": "a"}]}, "layers.0.op: Field required"),
    "a number without end": ({**make_report(1), "output_loss": float("inf")}, "output_loss: Input should be a finite"),
    "a huge number": ({**make_report(1), "file_bytes_after": 10**400}, "file_bytes_after: "),
    "a histogram of nothing": (
        {**make_report(1), "histograms": {"x": {"low": 0, "high": 1, "counts": []}}},
        "histograms.x.counts: ",
    ),
    "an image from elsewhere": (
        {**make_report(1), "worst": [{"name": "a", "loss": 1, "image": "https://example.com/a.png"}]},
        "worst.0.image: ",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_no_report_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    plain, message = REPORTS[name]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(ReportError) as caught:
        read_reports(path)
    said = str(caught.value)
    assert said.startswith(f"{path}") and message in said and "\n" not in said and len(said) < 600


def test_a_histogram_of_one_value_is_drawn() -> None:
    plain = make_report(1)
    plain["weights"]["/features/block.0/conv/Conv"]["histogram"] = {"low": 0.5, "high": 0.5, "counts": [0, 0, 0]}
    assert next(x for x in data_of(page_of(plain))["layers"] if x["runs"][0])["weight"] == [0.5, 0.5, "000"]


def test_figures_in_words() -> None:
    assert [words.size(x) for x in (None, 1, 812, 999_600, 25_300, 10**13)] == [
        *("–", "1 byte", "812 bytes", "1 MB", "25.3 kB", "10 TB"),
    ]
    assert [words.percent(x) for x in (None, 1.0, 0.99996, 0.0, 0.00001, 0.984)] == [
        *("–", "100 %", "99.996 %", "0 %", "0.001 %", "98.4 %"),
    ]
    assert [words.duration(x) for x in (2e-6, 0.0123, 3.5, 600)] == ["2 µs", "12.3 ms", "3.5 s", "10 min"]


def test_a_result_shows_itself_in_a_notebook() -> None:
    inputs = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    result = compress(small(), {"x": inputs}, Recipe())
    shown = result._repr_html_()
    assert shown is not None and shown.startswith("<iframe") and "allow-same-origin" not in shown
    (source,) = re.findall(r'srcdoc="([^"]*)"', shown)
    (wanted,) = checked_reports([result.report.to_dict()], "")
    assert unescape(source) == report_page([wanted])


@pytest.fixture
def written(tmp_path: Path) -> PlainReport:
    inputs = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    result = compress(small(), {"x": inputs}, Recipe(), tmp_path / "net.onnx")
    (report,) = checked_reports(result.report.to_dict(), "")
    return report


def test_node_data_for_model_explorer(written: PlainReport, tmp_path: Path) -> None:
    ((loss, level, size, speed),) = overlay_paths(tmp_path / "o.json")
    untimed = PlainReport.model_validate({**written.model_dump(by_alias=True), "speed": None})
    assert write_overlay(untimed, (loss, level, size, speed)) == [loss, level, size]
    nodes = {node.name for node in read_model(tmp_path / "net.onnx").graph}
    for path in (loss, level, size):
        plain = json.loads(path.read_text(encoding="utf-8"))
        assert plain.keys() == {"name", "results"} and plain["results"].keys() <= nodes
        assert all(one.keys() == {"value", "bgColor", "textColor"} for one in plain["results"].values())
    assert json.loads(level.read_text())["results"]["product"]["value"] == "int8"
    timed = PlainReport.model_validate(
        {**written.model_dump(by_alias=True), "speed": {**LATER["speed"], "layers": {"product": [0.4, 0.1]}}}  # type: ignore[dict-item]
    )
    assert write_overlay(timed, (loss, level, size, speed))[3:] == [speed]
    assert json.loads(speed.read_text())["results"]["product"]["value"] == 4.0


def test_model_explorer_reads_its_node_data(written: PlainReport, tmp_path: Path) -> None:
    builder = pytest.importorskip(
        "model_explorer.node_data_builder", reason="needs ai-edge-model-explorer, which is not there"
    )
    (paths,) = overlay_paths(tmp_path / "o.json")
    for path in write_overlay(written, paths):
        plain = json.loads(path.read_text(encoding="utf-8"))
        results = {name: builder.NodeDataResult(**one) for name, one in plain["results"].items()}
        found = json.loads(builder.GraphNodeData(results=results, name=plain["name"]).to_json_string())
        assert found.items() >= plain.items()


def test_metadata_of_nodes_for_netron(written: PlainReport, tmp_path: Path) -> None:
    ((path,),) = overlay_paths(tmp_path / "o.onnx")
    write_overlay(written, [path])
    onnx.checker.check_model(onnx.load(path))
    (node,) = [node for node in ir.load(path).graph if node.metadata_props]
    assert node.name == "product" and node.metadata_props["onnx-obc level"] == "int8, input int8"
    assert {"onnx-obc bytes", "onnx-obc relative loss"} <= node.metadata_props.keys()


def test_an_overlay_that_cannot_be_made(written: PlainReport, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--overlay x\.txt: name a \.json file"):
        overlay_paths(Path("x.txt"))
    names = [[path.name for path in paths] for paths in overlay_paths(Path("o.onnx"), ["bops=8x", "drop=1%"])]
    assert names == [["o-bops-8x.onnx"], ["o-drop-1pct.onnx"]]
    for change, message in (
        ({"output": ""}, "was not written"),
        ({"layers": [make_report(1)["layers"][0]]}, "none of the"),
    ):
        other = PlainReport.model_validate({**written.model_dump(by_alias=True), **change})
        with pytest.raises(ReportError, match=message):
            write_overlay(other, [tmp_path / "o.onnx"])
    assert not (tmp_path / "o.onnx").exists()


def test_the_page_of_a_check(tmp_path: Path) -> None:
    findings = (
        Finding("note", "odd", "", "worth knowing"),
        *(Finding("error", "refused", f"<b>{i}</b>", "cannot be read", "write it anew") for i in range(20)),
    )
    runs = (KernelMatch("a", "Conv", "int8", "QLinearConv", "int8", True, 0.0, None),)
    found = FileCheck("a/net.onnx", "tensorrt", "TensorRT 10", True, findings, runs, 0.98)
    write_check_page(found, tmp_path / "c.html")
    page = Elements((tmp_path / "c.html").read_text(encoding="utf-8"))
    said = " ".join(page.words.split())
    assert "net.onnx for tensorrt" in said and "20 errors" in said and "<b>0</b>" in said and "and 8 more" in said
    assert said.index("cannot be read") < said.index("worth knowing")
    assert "1 of 1 quantized products run in integers" in said and not page.having("b")
    write_check_page(FileCheck("x", "openvino", "not installed", False, (), ()), tmp_path / "c.html")
    assert "Nothing speaks against it" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_the_page_of_a_benchmark(tmp_path: Path) -> None:
    times = (Timed("a/m.onnx", 0.02, 1, 1, 1, float("inf"), 1, 10), Timed("b/m.onnx", 0.01, 2, 1.8, 2.2, 30.5, None, 5))
    write_bench_page(Benchmark("onnxruntime 1", "a machine", 1, 2, 15, times), tmp_path / "b.html")
    page = Elements((tmp_path / "b.html").read_text(encoding="utf-8"))
    said = " ".join(page.words.split())
    for part in ("b/m.onnx against a/m.onnx", "2.00× as fast: 20 ms → 10 ms", "1.80 … 2.20", "equal", "30.5 dB"):
        assert part in said, part
    assert len(page.having("svg", **{"class": "bench"})) == 2


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_report_page(checked_reports(make_report(2), ""), tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_rounding_is_told_in_layers() -> None:
    assert words.correction_words(("rounding",), 3) == "3 layers of 8 bits rounded to nearest"
