"""The sets of levels."""

from __future__ import annotations

import pytest

from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import FLOAT, Block, Choice, Level, Unstructured, parse_choice
from onnx_obc.core.level_sets import SETS, read_levels


def names(text: str, zero_points: bool = True) -> list[str]:
    return [str(choice) for choice in read_levels(text, zero_points)]


def test_named_sets() -> None:
    assert names("gpu") == ["float", "8w8a", "2:4+8w8a", "4w4a", "2:4+4w4a"]
    assert names("weight-only") == ["float", "int8", "int4-asym", "int3-asym", "int2-asym"]
    assert names("weight-only", zero_points=False) == ["float", "int8", "int4", "int3", "int2"]
    block, cpu, single = names("block4"), names("cpu"), names("unstructured")
    assert len(block) == 30 and block[:3] == ["float", "block4-0.10", "block4-0.19"] and block[-1] == "block4-0.9529"
    assert len(single) == 45 and single[-1] == "sparse-0.9903"
    assert cpu[1:3] == ["8w8a", "block4-0.10+8w8a"] and len(cpu) == 31


def test_each_step_prunes_a_tenth_of_what_remains() -> None:
    kept = [1 - x.level.sparsity.sparsity for x in read_levels("unstructured", True)[1:]]  # type: ignore[union-attr]
    for more, less in zip([1.0, *kept], kept, strict=False):
        assert less == pytest.approx(0.9 * more, abs=1e-4)


def test_lists_by_hand() -> None:
    assert names("8w8a, int4 ,2:4,8w8a") == ["float", "8w8a", "int4", "2:4"]
    assert names("gpu,int4")[-1] == "int4"


@pytest.mark.parametrize("text", [str(c) for name in SETS for c in read_levels(name, True)])
def test_names_read_back(text: str) -> None:
    assert str(parse_choice(text)) == text


def test_choices_have_a_text_form() -> None:
    assert parse_choice("2:4+8w8a") == Choice(Level(parse_choice("2:4").level.sparsity, 8), 8)
    assert parse_choice("block4-0.50+4w8a-asym") == Choice(Level(Block(4, 0.5), 4, False), 8)
    assert parse_choice("sparse-0.60") == Choice(Level(Unstructured(0.6)))
    assert str(Choice(Level(None, 3), None)) == "int3"
    assert parse_choice("float") == Choice(FLOAT)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gppu", "did you mean gpu?"),
        ("", "names no level"),
        ("float", "names no level"),
        ("9w9a", "float, int8"),
        ("8w7a", "activations take 16, 8 or 4 bits"),
        ("2:4+banana", "sets are"),
    ],
)
def test_refusals(text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=r"--levels") as error:
        read_levels(text, True)
    assert hint in str(error.value)
