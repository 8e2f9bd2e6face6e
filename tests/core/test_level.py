from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import (
    FLOAT,
    NM,
    Block,
    Choice,
    Level,
    Sparsity,
    Unstructured,
    parse_bits,
    parse_choice,
    parse_level,
    parse_sparsity,
)
from onnx_obc.core.solution import Grid

fractions = st.floats(1e-3, 0.999)
patterns = st.one_of(
    st.none(),
    fractions.map(Unstructured),
    st.integers(2, 64).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m))),
    st.builds(Block, st.integers(2, 64), fractions),
)


@given(patterns, st.sampled_from([None, 2, 3, 4, 5, 6, 7, 8]), st.booleans())
def test_a_level_reads_back_what_it_writes(sparsity: Sparsity | None, bits: int | None, symmetric: bool) -> None:
    level = Level(sparsity, bits, symmetric or bits is None)
    assert parse_level(str(level)) == level


@pytest.mark.parametrize(
    ("text", "choice", "kind", "activations"),
    [
        ("8w8a", Choice(Level(bits=8), 8), "int8", "int8"),
        ("8w8a-dyn", Choice(Level(bits=8), 8, dynamic=True), "float", "dynamic"),
        ("2:4+7w8a-dyn-asym", Choice(Level(NM(2, 4), 7, symmetric=False), 8, dynamic=True), "float", "dynamic"),
        ("8w16a", Choice(Level(bits=8), 16), "int16", "int16"),
        ("4w4a-asym", Choice(Level(bits=4, symmetric=False), 4), "int4", "int4"),
        ("int8", Choice(Level(bits=8)), "float", "float"),
    ],
)
def test_texts_of_choices(text: str, choice: Choice, kind: str, activations: str) -> None:
    assert parse_choice(text) == choice
    assert (str(choice), choice.kind, choice.activations) == (text, kind, activations)


@pytest.mark.parametrize(
    ("text", "hint"), [("8w4a-dyn", "write 8w8a-dyn"), ("8w16a-dyn", "write 8w8a-dyn"), ("8w12a", "16, 8 or 4 bits")]
)
def test_choices_that_there_are_not(text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        parse_choice(text)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("float", FLOAT),
        ("int8", Level(bits=8)),
        ("int4-asym", Level(bits=4, symmetric=False)),
        ("2:4", Level(NM(2, 4))),
        ("2:4+int8", Level(NM(2, 4), 8)),
        ("block4-0.70", Level(Block(4, 0.7))),
        ("sparse-0.60+int4", Level(Unstructured(0.6), 4)),
    ],
)
def test_texts_of_levels(text: str, level: Level) -> None:
    assert parse_level(text) == level
    assert str(level) == text


@pytest.mark.parametrize(
    ("text", "sparsity"),
    [
        ("none", None),
        ("dense", None),
        ("0", None),
        (" 2:4 ", NM(2, 4)),
        ("4:8", NM(4, 8)),
        ("1:64", NM(1, 64)),
        ("0.6", Unstructured(0.6)),
        (".5", Unstructured(0.5)),
        ("sparse-0.125", Unstructured(0.125)),
        ("block4:0.7", Block(4, 0.7)),
        ("BLOCK8-0.50", Block(8, 0.5)),
    ],
)
def test_sparsity(text: str, sparsity: Sparsity | None) -> None:
    assert parse_sparsity(text) == sparsity


@pytest.mark.parametrize(
    "text",
    [
        "3:2",
        "4:4",
        "0:4",
        "1:0",
        "-1:4",
        "2:4:8",
        "block4",
        "block:0.5",
        "block1:0.5",
        "block4:1",
        "1.0",
        "1",
        "1.5",
        "-0.5",
        "nan",
        "inf",
        "1e-1",
        "60%",
        "0.5.5",
        "two:four",
    ],
)
def test_sparsity_that_is_none(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_sparsity(text)
    message = str(caught.value)
    assert repr(text) in message and "write" in message and "\n" not in message


def test_bits() -> None:
    assert [parse_bits(text) for text in ("float", "none", "int2", "INT8")] == [None, None, 2, 8]
    for text in ("int1", "int9", "int16", "8", "", "uint8"):
        with pytest.raises(RecipeError, match="write float, int8"):
            parse_bits(text)


@pytest.mark.parametrize("text", ["int9", "2:4+int1", "2:4+", "", "int8-asymmetric", "float+2:5:3"])
def test_levels_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_level(text)


@pytest.mark.parametrize(
    ("bits", "symmetric", "limits"), [(8, True, (-128, 127)), (2, True, (-2, 1)), (3, False, (0, 7))]
)
def test_grid(bits: int, symmetric: bool, limits: tuple[int, int]) -> None:
    scale, zero = np.array([[0.5, 2.0]], np.float32), np.array([[0, 0 if symmetric else 3]], np.int32)
    grid = Grid(scale, zero, bits, symmetric)
    assert (grid.qmin, grid.qmax) == limits
    codes = np.array([[[-1, 1], [3, 0]]], np.int32)  # (1, 2, 2)
    expected = [[[-0.5, 0.5], [6.0, 0.0] if symmetric else [0.0, -6.0]]]
    np.testing.assert_array_equal(grid.dequantize(codes), np.array(expected, np.float32))
    assert grid.dequantize(codes).dtype == np.float32
