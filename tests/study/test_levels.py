"""Levels of equal size: what they cost by each convention, and what the compressed file says."""

from __future__ import annotations

import math
import zlib
from itertools import pairwise

import numpy as np
import pytest

from onnx_obc.core.level import NM, Block, Level, Unstructured, parse_level
from onnx_obc.solver.baselines import uncompensated
from onnx_obc.study.levels import (
    Candidate,
    Size,
    candidates,
    compressed_bits,
    measure_prices,
    pack,
    pruned,
    quantized_level,
)
from onnx_obc.study.size import entropy
from onnx_obc.study.tensors import thinned

WEIGHT = np.random.default_rng(0).standard_normal((1, 48, 288)).astype(np.float32)
LEVELS = {bits: quantized_level(bits, True) for bits in (2, 3, 4, 8)}
PRICES = measure_prices(WEIGHT, LEVELS)


def planned(bits: int, size: Size, channels: int = 32) -> list[Candidate]:
    prices = PRICES if size == "bytes" else None
    return candidates(bits, size, LEVELS[bits], channels, thinned(WEIGHT), prices)


def mask_bits(level: Level, size: Size) -> float:
    """What the mask costs for each weight."""
    match level.sparsity:
        case None:
            return 0.0
        case NM(n, m):
            return {"paper": 0.0, "bitmap": 1.0}.get(size, math.log2(math.comb(m, n)) / m)
        case Block(block, sparsity):
            return {"paper": 0.0, "bitmap": 1.0 / block}.get(size, entropy(sparsity) / block)
        case Unstructured(sparsity):
            return {"paper": 0.0, "bitmap": 1.0}.get(size, entropy(sparsity))


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("size", ["paper", "bitmap", "entropy"])
def test_what_is_planned_fits_the_budget_and_fills_it(bits: int, size: Size) -> None:
    for found in planned(bits, size):
        sparsity = found.level.sparsity
        kept = (
            1.0 if sparsity is None else sparsity.n / sparsity.m if isinstance(sparsity, NM) else 1 - sparsity.sparsity
        )
        cost = kept * (found.level.bits or 16) + mask_bits(found.level, size)
        assert cost <= bits + 1e-9
        slack = 0.05 * bits if isinstance(sparsity, NM) else 0.01 + 16e-4
        assert cost >= bits - slack, str(found.level)


def test_patterns_stand_where_their_size_matches() -> None:
    def patterns(bits: int, size: Size, channels: int = 32) -> list[str]:
        return [str(x.level) for x in planned(bits, size, channels) if isinstance(x.level.sparsity, NM)]

    assert patterns(8, "paper") == ["2:4", "4:8"]
    assert patterns(4, "paper") == ["1:4", "2:8"]
    assert patterns(2, "paper") == ["1:8"] and patterns(3, "paper") == []
    assert patterns(8, "paper", channels=4) == ["2:4"]  # of 4 channels no group of 8 can be had
    assert patterns(8, "paper", channels=3) == []
    assert all(patterns(bits, "bytes") == [] for bits in LEVELS)  # what they compress to is not known beforehand


def test_blocks_need_whole_blocks_of_channels() -> None:
    kinds = {channels: {type(x.level.sparsity) for x in planned(4, "paper", channels)} for channels in (3, 4)}
    assert Block in kinds[4] and Block not in kinds[3]


def test_a_budget_that_pays_for_no_weight_leaves_pruning_out() -> None:
    two = candidates(2, "bitmap", LEVELS[2], 32, thinned(WEIGHT), None)
    assert {x.kind for x in two} == {"quantize", "prune", "both"}
    none = candidates(2, "bytes", LEVELS[2], 32, thinned(WEIGHT), measure_prices(WEIGHT[:, :1, :2], LEVELS))
    assert next(x.kind for x in none) == "quantize"


@pytest.mark.parametrize("text", ["int2-asym", "int3", "int4-asym", "int5", "int8", "sparse-0.90", "sparse-0.50+int4"])
def test_packing_is_that_of_the_file(text: str) -> None:
    solution = uncompensated(WEIGHT, parse_level(text), "mse")
    if solution.codes is None or solution.grid is None:
        stored = solution.weights.tobytes()
    else:
        bits, parts = solution.grid.bits, {2: 4, 3: 2, 4: 2}.get(solution.grid.bits, 1)
        packed = pack(solution.codes, bits)
        assert len(packed) == solution.codes.size // parts
        width = 8 // parts
        fields = [(np.frombuffer(packed, np.uint8) >> (width * i)) & (2**width - 1) for i in range(parts)]
        codes = np.stack(fields, axis=1).reshape(-1).astype(np.int64)
        signed = np.where(codes >= 2 ** (width - 1), codes - 2**width, codes) if solution.grid.symmetric else codes
        assert (signed == solution.codes.reshape(-1)).all()
        zeros = b"" if solution.grid.symmetric else pack(solution.grid.zero_point, bits)
        stored = packed + solution.grid.scale.tobytes() + zeros
    assert compressed_bits(solution) == 8 * len(zlib.compress(stored, 6)) / WEIGHT.size


def test_prices_rise_with_density_and_with_width() -> None:
    for curve in (*PRICES.floats.values(), *PRICES.integers.values()):
        assert all(a <= b * 1.02 for a, b in pairwise(curve.bits))  # but for what deflate makes of chance
    assert PRICES.quantized[2] < PRICES.quantized[3] < PRICES.quantized[4] < PRICES.quantized[8] < 8


def test_sparsities_are_rounded_up() -> None:
    assert pruned(0.12341) == Unstructured(0.1235) and pruned(0.5, 4) == Block(4, 0.5)
    assert pruned(0.99999) == Unstructured(0.9999)
