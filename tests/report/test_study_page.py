"""The page of a study: what stands on it, that names stay text, and that it loads nothing; its JSON and its tables."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from page_elements import Elements
from rich.console import RenderableType
from studies import HOSTILE, make_study, make_whole, without

from onnx_obc.core.errors import OutputError
from onnx_obc.report import study_words as words
from onnx_obc.report.console import PlainConsole
from onnx_obc.report.study_json import write_study_json
from onnx_obc.report.study_page import write_study_page
from onnx_obc.report.study_table import study_table, theory_table
from onnx_obc.report.theory_page import write_theory_page
from onnx_obc.study.record import Study, Verdict


class Page(Elements):
    def __init__(self, path: Path) -> None:
        super().__init__(path.read_text(encoding="utf-8"))


def page_of(study: Study, folder: Path) -> Page:
    write_study_page(study, folder / "study.html")
    assert [path.name for path in folder.iterdir()] == ["study.html"]
    return Page(folder / "study.html")


def infinite() -> Study:
    """A study in which a layer loses nothing at some level, a bound says nothing, and another kurtosis is not known."""
    study = make_study(3, chunks=2)
    first, second, third = study.layers
    row = first.budgets[0]
    lossless = replace(row.ways[0], snr=math.inf, baseline=math.inf, bound=math.inf)
    other = replace(row.ways[1], snr=math.inf, bound=math.inf)
    verdict = Verdict("quantize", math.inf, True)
    rows = [replace(row, ways=(lossless, other), verdicts={**row.verdicts, "bytes": verdict})]
    rows.append(replace(first.budgets[1], ways=(replace(lossless, bound=None),), pruned={}))
    rows.append(replace(first.budgets[2], tensor=replace(row.tensor, bits=4, quantized=math.inf)))
    third = replace(third, kurtosis=math.nan)
    chunk = replace(study.chunks[0], bound={"quantize": math.inf, "prune": math.inf})
    lossless_chunk = replace(chunk, snr={"quantize": math.inf, "prune": 3.0})
    layers = (replace(first, budgets=tuple(rows)), second, third)
    return replace(study, layers=layers, chunks=(chunk, lossless_chunk, *study.chunks))


def unreached() -> Study:
    """A study that was ended after its first layer."""
    study, weights = make_study(4), make_study(4, samples=0)
    return replace(study, layers=(study.layers[0], *weights.layers[1:]), interrupted=True)


CASES = {
    "with data": lambda: make_study(5),
    "with chunks": lambda: make_study(5, chunks=3, whole=make_whole()),
    "weights alone": lambda: make_study(20, samples=0),
    "weights alone, by entropy": lambda: make_study(3, samples=0, size="entropy"),
    "one layer": lambda: make_study(1, bits=(4,)),
    "one weight": lambda: make_study(1, bits=(2,), samples=0),
    "all budgets": lambda: make_study(2, bits=range(2, 9), chunks=1),
    "infinite": infinite,
    "unreached": unreached,
    "nothing": lambda: replace(make_study(2), layers=tuple(without(x, "it is constant") for x in make_study(2).layers)),
    "hostile": lambda: make_study(8, chunks=2, names=HOSTILE, model="</title><script>x", notes=HOSTILE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_page_is_whole_and_loads_nothing(name: str, tmp_path: Path) -> None:
    study = CASES[name]()
    page = page_of(study, tmp_path)
    for address in ("http:", "https:", "//cdn", "url(", "@import"):
        assert address not in page.text
    loading = [found[key] for _, found in page.elements for key in ("src", "href", "data", "action") if key in found]
    assert set(loading) <= {"data:,", "#grid"} and len(page.having("script")) == 1
    assert not any(key.startswith("on") or key == "style" for _, found in page.elements for key in found)
    assert not any(unicodedata.category(x) in ("Cc", "Cf", "Cs") for x in page.text if x != "\n")
    for drawing in re.findall(r"<svg.*?</svg>", page.text, re.DOTALL):
        for place in ElementTree.fromstring(drawing).iter():
            assert not any(bad in value for value in place.attrib.values() for bad in ("nan", "inf")), place.attrib
    for budget in study.bits:
        assert words.headline(study, budget) in page.words
    assert page.sections[-2:] == ["caveats", "repeat"] and "conventions" in page.sections
    assert len(page.having("tbody")) >= len(study.layers)
    identities = [found["id"] for _, found in page.elements if "id" in found]
    assert len(identities) == len(set(identities))


@pytest.mark.slow
def test_the_sections_of_a_page(tmp_path: Path) -> None:
    whole = page_of(CASES["with chunks"](), tmp_path)
    order = ["plane", "bits", "kurtosis", "conventions", "all", "whole", "caveats", "repeat"]
    assert whole.sections == order
    assert "exact optimum reached for" in whole.words and "recipe-4bit.yaml" in whole.words
    assert len(whole.having("svg", **{"class": "plot small"})) == 5
    nothing = page_of(CASES["nothing"](), tmp_path)
    assert nothing.sections == ["conventions", "all", "caveats", "repeat"]
    assert "no layer could be studied" in nothing.words and "it is constant" in nothing.words


def test_names_stay_text(tmp_path: Path) -> None:
    page = page_of(CASES["hostile"](), tmp_path)
    assert "<script>alert" not in page.text and "<img" not in page.text and "</title><script>" not in page.text
    assert HOSTILE[0] in page.words and HOSTILE[2] in page.words and HOSTILE[3] in page.words
    assert "ab[31mredgnp.exe" in page.words
    (policy,) = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in str(policy["content"]) and "unsafe" not in str(policy["content"])


@pytest.mark.slow
def test_many_layers_make_a_page_of_sane_size(tmp_path: Path) -> None:
    page = page_of(make_study(200, chunks=8), tmp_path)
    assert len(page.text.encode()) < 3_000_000
    assert len(page.having("details")) == 1 and "The other 176 layers" in page.words
    page = page_of(make_study(400, samples=0), tmp_path)
    assert len(page.text.encode()) < 3_000_000 and len(page.having("tbody")) >= 400


def test_headlines() -> None:
    study = make_study(4, bits=(4,))
    given = [Verdict("quantize", 8.0, True), Verdict("quantize", 1.0, False), Verdict("both", 0.4, True)]
    layers = []
    for layer, verdict in zip(study.layers, given, strict=False):
        (row,) = layer.budgets
        layers.append(replace(layer, budgets=(replace(row, verdicts={"bytes": verdict}),)))
    study = replace(study, layers=(*layers, without(study.layers[3], "it is constant")))
    said = "At 4 bits per weight: quantize 2 of 3 layers, 1 proven; prune and quantize 1, 1 proven."
    assert words.headline(study, 4) == said
    assert words.counts(study, 4, "paper") is None and words.chunk_sentence(study, 4) is None
    alone = make_study(2, bits=(4,), samples=0)
    first = alone.layers[0].budgets[0]
    unpaid = replace(first, tensor=replace(first.tensor, pruned={"paper": None, "bitmap": None, "entropy": 60.0}))
    alone = replace(alone, layers=(replace(alone.layers[0], budgets=(unpaid,)), alone.layers[1]))
    assert words.headline(alone, 4).startswith(
        "At 4 bits per weight, by the weights alone (paper's convention): quantize"
    )
    entropy = words.counts(alone, 4, "entropy")
    assert entropy is not None and entropy.won["prune"] == 1 and words.counts(alone, 4, "bytes") is None
    assert words.headline(replace(alone, layers=alone.layers[:1]), 4).endswith("quantize 1 of 1 layer.")


def test_what_was_proven_of_chunks() -> None:
    study = make_study(2, bits=(4,), chunks=1)
    a, b = study.chunks
    a = replace(a, best={"quantize": 20.0, "prune": 8.0}, bound={"quantize": 20.0, "prune": 9.0})
    a = replace(a, exact={"quantize": True, "prune": False})
    b = replace(b, best={"quantize": 10.0, "prune": 9.5}, bound={"quantize": 12.0, "prune": 11.0})
    b = replace(b, exact={"quantize": True, "prune": False})
    assert words.chunk_sentence(replace(study, chunks=(a, b)), 4) == (
        "Of 2 chunks of up to 36 columns: 1 proven to be better quantized, 0 better pruned, 1 open; exact optimum "
        "reached for 100 % of the quantized and 0 % of the pruned."
    )
    assert words.share(999, 1000) == "99 %" and words.share(1, 1000) == "1 %"


@pytest.mark.parametrize("name", CASES)
def test_the_json_is_strict(name: str, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    study = CASES[name]()
    write_study_json(study, tmp_path / "study.json")
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["schema"] == 1 and found["bits"] == list(study.bits) and len(found["layers"]) == len(study.layers)
    assert [chunk["proven"] for chunk in found["chunks"]] == [chunk.proven for chunk in study.chunks]
    if name == "infinite":
        assert found["layers"][0]["budgets"][0]["ways"][0]["snr"] is None and found["layers"][2]["kurtosis"] is None


def printed(made: RenderableType, width: int) -> str:
    console = PlainConsole(width=width, file=io.StringIO(), force_terminal=False)
    console.print(made)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("name", CASES)
def test_the_table_fits_its_terminal(name: str, width: int) -> None:
    study = CASES[name]()
    text = printed(study_table(study, width), width)
    assert max(map(len, text.splitlines())) <= width
    assert " ".join(words.headline(study, study.bits[0]).split()) in " ".join(text.split())
    assert not any(unicodedata.category(x) in ("Cc", "Cf", "Cs") for x in text if x != "\n")
    if name == "hostile" and width == 160:
        assert "[bold red]markup[/]" in text and "<script>alert(1)</script>" in text
    if name == "unreached":
        assert "not solved" in text and "interrupted" in text


def test_a_table_says_words_where_they_fit() -> None:
    study = make_study(2, bits=range(2, 9))
    assert "quantize " in printed(study_table(study, 200), 200).partition("equal size")[0]
    short = printed(study_table(study, 80), 80)
    assert "Q: quantize" in " ".join(short.split()) and "8 bits" in short


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_study_page(make_study(1), tmp_path / "file" / "study.html")


@pytest.mark.slow
def test_the_theory(tmp_path: Path) -> None:
    write_theory_page(tmp_path / "theory.html")
    page = Page(tmp_path / "theory.html")
    assert page.sections == ["figures", "gaussian", "others", "crossings", "both"]
    text = printed(theory_table(160), 160)
    for figure in ("19.258", "0.33861", "28.35", "22.75", "15.43 / 8.91", "13.27 (3 × 0.67)", "alone is best"):
        assert figure in text and all(part in page.words for part in figure.split(" / "))
    assert max(map(len, printed(theory_table(80), 80).splitlines())) <= 80
    assert "http" not in page.text.replace("http-equiv", "") and len(page.having("svg", role="img")) == 2
