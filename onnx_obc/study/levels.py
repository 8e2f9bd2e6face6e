"""The levels that cost a layer equally much, by each convention of what a weight costs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ..core.arrays import Float32, Int32
from ..core.level import NM, Block, Level, Sparsity, Unstructured
from ..core.solution import Solution
from ..solver.baselines import uncompensated
from .distributions import Distribution
from .size import FLOAT_BITS, density
from .theory import snr_of_both

Size: TypeAlias = Literal["bytes", "paper", "bitmap", "entropy"]
Kind: TypeAlias = Literal["quantize", "prune", "both"]

COMPRESSION = "deflate"  # what zip, gzip, wheels and app packages use
WIDTHS = (2, 3, 4, 5, 6, 8)  # of values that are pruned as well: what runtimes store, and two between
PATTERNS = (NM(2, 4), NM(4, 8), NM(1, 4), NM(2, 8), NM(1, 8))
BLOCK = 4
_DENSITIES = (0.004, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3, 0.5, 0.75, 1.0)  # of floats
_FEWER = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)  # of integers
_DENSE = 0.95  # with more weights kept it is quantization alone
_MEASURED = 2**13  # weights that the cost of densities is measured on
_MATCHES = 0.05  # how far below the budget a pattern of fixed size may stay


@dataclass(frozen=True)
class Candidate:
    """One way to spend a budget. bits: what it is planned to cost for each weight."""

    kind: Kind
    level: Level
    bits: float


@dataclass(frozen=True)
class Curve:
    """Bits for each weight at some densities, both ascending."""

    densities: Sequence[float]
    bits: Sequence[float]

    def density(self, budget: float) -> float:
        """The largest density within the budget, between those measured; 0 where it pays for none of them."""
        return float(np.interp(budget, np.maximum.accumulate(self.bits), self.densities, left=0.0))


@dataclass(frozen=True)
class Prices:
    """Bits for each weight of a layer in a compressed file.

    quantized: by the bits of a budget. floats: of pruned float32 weights, by the size of their blocks. integers: of
    pruned ones, by their width.
    """

    quantized: Mapping[int, float]
    floats: Mapping[int, Curve]
    integers: Mapping[int, Curve]


def quantized_level(bits: int, zero_points: bool) -> Level:
    """What this tool makes of weights of so many bits: with zero points, where they are wanted, below 8 bits."""
    return Level(bits=bits, symmetric=bits == 8 or not zero_points)


def measure_prices(weight: Float32, quantized: Mapping[int, Level]) -> Prices:
    """Compress a few rows of a layer, pruned by magnitude and rounded. weight: (groups, rows, columns) float32.

    What is pruned lies in random places then, as the solver's masks do rather than those by magnitude, whose runs
    compress better.
    """
    rows = weight.reshape(1, -1, weight.shape[2])
    rows = rows[:, :: -(-rows.size // _MEASURED)]  # (1, some rows, columns)
    random = np.random.default_rng(0)

    def cost(density: float, width: int | None, block: int = 1) -> float:
        solution = uncompensated(rows, Level(pruned(1 - density, block), width), "mse")
        stored = solution.weights if solution.codes is None else solution.codes
        blocks = np.pad(stored.reshape(-1), (0, -stored.size % block)).reshape(-1, block)
        parts = random.permutation(blocks)  # (blocks, block)
        if solution.codes is None:
            return compressed_bits(replace(solution, weights=parts))
        return compressed_bits(replace(solution, codes=parts))

    return Prices(
        {bits: compressed_bits(uncompensated(rows, level, "mse")) for bits, level in quantized.items()},
        {size: Curve(_DENSITIES, [cost(d, None, size) for d in _DENSITIES]) for size in (1, BLOCK)},
        {width: Curve(_FEWER, [cost(d, width) for d in _FEWER]) for width in WIDTHS},
    )


def compressed_bits(solution: Solution) -> float:
    """Bits for each weight of a solution, packed as in the file, with its scales, after `COMPRESSION`."""
    grid, codes = solution.grid, solution.codes
    if grid is None or codes is None:
        stored = np.ascontiguousarray(solution.weights).tobytes()
    else:
        zeros = b"" if grid.symmetric else pack(grid.zero_point, grid.bits)
        stored = pack(codes, grid.bits) + grid.scale.tobytes() + zeros
    return 8 * len(zlib.compress(stored, 6)) / solution.weights.size


def pack(codes: Int32, bits: int) -> bytes:
    """Codes as a file holds them: four of 2 bits in a byte, two of 3 or 4, one of more."""
    parts = {2: 4, 3: 2, 4: 2}.get(bits, 1)
    flat = codes.reshape(-1).astype(np.uint8) & np.uint8(2 ** (8 // parts) - 1)
    flat = np.pad(flat, (0, -flat.size % parts)).reshape(-1, parts)  # (bytes, codes in each)
    packed = np.zeros(len(flat), np.uint8)
    for place in range(parts):
        packed |= flat[:, place] << np.uint8(place * (8 // parts))
    return packed.tobytes()


def candidates(
    bits: int, size: Size, quantized: Level, channels: int, distribution: Distribution, prices: Prices | None
) -> list[Candidate]:
    """The ways to spend a budget of `bits` for each weight: quantized; pruned anywhere, in blocks of 4, and by patterns
    whose size matches; pruned and quantized, with the width and density that lose least of the weights themselves.

    channels: of the layer, which blocks and patterns must divide. prices: of the layer, for `bytes`: the budget is then
    what the quantized layer costs. What the budget does not pay for is left out.
    """
    budget = float(bits) if prices is None else prices.quantized[bits]
    made = [Candidate("quantize", quantized, budget)]
    for block in (1, BLOCK):
        kept = _density(budget, size, FLOAT_BITS, block, None if prices is None else prices.floats[block])
        if 0 < kept < 1 and channels % block == 0:
            made.append(Candidate("prune", Level(pruned(1 - kept, block)), budget))
    for pattern in PATTERNS:
        cost = FLOAT_BITS * pattern.n / pattern.m + _mask_bits(pattern, size)
        if prices is None and channels % pattern.m == 0 and budget * (1 - _MATCHES) <= cost <= budget:
            made.append(Candidate("prune", Level(pattern), cost))
    kept_of = {w: _density(budget, size, w, 1, None if prices is None else prices.integers[w]) for w in WIDTHS}
    widths = [width for width, kept in kept_of.items() if 0 < kept < _DENSE]
    if widths:
        width = max(widths, key=lambda width: snr_of_both(distribution, width, kept_of[width]))
        level = Level(pruned(1 - kept_of[width]), width, symmetric=width == 8 or quantized.symmetric)
        made.append(Candidate("both", level, budget))
    return made


def _density(budget: float, size: Size, value_bits: float, block: int, prices: Curve | None) -> float:
    """The largest density within the budget, 0 where it pays for no weight. prices: of `bytes`."""
    if prices is not None:
        return prices.density(budget)
    assert size != "bytes"
    kept = density(block * budget, size, block * value_bits)  # one mask entry for each block
    return 0.0 if kept is None else kept


def _mask_bits(pattern: NM, size: Size) -> float:
    """What a pattern's mask costs for each weight; of `bytes` it is not known."""
    entropy = math.log2(math.comb(pattern.m, pattern.n)) / pattern.m
    return {"paper": 0.0, "bitmap": 1.0, "entropy": entropy, "bytes": math.inf}[size]


def pruned(sparsity: float, block: int = 1) -> Sparsity:
    """Rounded up to what four digits say, which the names of levels show."""
    digits = min(math.ceil(sparsity * 10**4) / 10**4, 1 - 10**-4)
    return Unstructured(digits) if block == 1 else Block(block, digits)
