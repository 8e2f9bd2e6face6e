"""Budgets as users write them, and tables of timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_obc.core.errors import RecipeError
from onnx_obc.search.budget import KINDS, Budget, Kind, parse_budget
from onnx_obc.search.latency.table import read_timings


@pytest.mark.parametrize(
    ("text", "budget", "fraction"),
    [
        ("bops=12x", Budget("bops", 12), 1 / 12),
        ("obc-bops=7.5x", Budget("obc-bops", 7.5), 1 / 7.5),
        ("flops=3x", Budget("flops", 3), 1 / 3),
        ("size=0.2x", Budget("size", 0.2), 0.2),
        (" Latency = 4X ", Budget("latency", 4), 0.25),
    ],
)
def test_budgets(text: str, budget: Budget, fraction: float) -> None:
    assert parse_budget(text) == budget == parse_budget(str(budget))
    assert budget.fraction == pytest.approx(fraction)


def test_a_drop_is_a_loss() -> None:
    assert parse_budget("drop=1%") == Budget("drop", 0.01) == parse_budget("drop=0.01")
    assert parse_budget("drop=0.7%") == parse_budget("drop=0.007")
    assert str(Budget("drop", 0.01)) == "drop=1%"


@pytest.mark.parametrize("text", ["bops=12x", "flops=3.5x", "size=0.2x", "latency=1000000x", "drop=1%", "drop=0.05%"])
def test_a_budget_gives_its_text_back(text: str) -> None:
    assert str(parse_budget(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bobs=12x", "did you mean bops"),
        ("speed", "known: bops"),
        ("bops=12", "'12' cannot be read"),
        ("bops=12%", "cannot be read"),
        ("drop=2x", "cannot be read"),
        ("drop=0%", "above 0"),
        ("drop=5", "Write drop=500% or drop=5%"),
        ("bops=0x", "leaves nothing, or everything"),
        ("bops=1x", "leaves nothing, or everything"),
        ("bops=-3x", "cannot be read"),
        ("bops=nanx", "cannot be read"),
        ("bops=", "cannot be read"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"--budget") as error:
        parse_budget(text)
    assert said in str(error.value)


def test_timings(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"layers": {"a": {"float": 2, "8w8a": 0.5}}, "rest": 1}))
    found = read_timings(path)
    assert found.layers == {"a": {"float": 2, "8w8a": 0.5}} and found.rest == 1
    for text, said in [
        ("{", "no valid JSON"),
        ("[]", "must have the form"),
        ('{"layers": {"a": 3}}', "must have the form"),
        ('{"layers": {"a": {"float": -1}}}', "a at float takes -1"),
        ('{"layers": {"a": {"float": "1"}}}', "give seconds above 0"),
        ('{"layers": {}, "rest": -2}', "rest is -2"),
    ]:
        path.write_text(text)
        with pytest.raises(RecipeError, match="--timings") as error:
            read_timings(path)
        assert said in str(error.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_timings(tmp_path / "nothing.json")


@given(st.sampled_from(KINDS), st.floats(1e-12, 1e12).filter(lambda value: value != 1))
def test_the_text_of_a_budget_reads_as_the_same_budget(kind: Kind, value: float) -> None:
    budget = Budget(kind, value)
    assert parse_budget(str(budget)) == budget
