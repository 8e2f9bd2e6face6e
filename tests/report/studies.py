"""Studies that nobody made: records with plausible figures, of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from onnx_obc.study.distributions import FAMILIES
from onnx_obc.study.layers import judge
from onnx_obc.study.levels import Kind, Size
from onnx_obc.study.record import BudgetRow, ChunkRow, LayerRow, Study, Way, WholeModel
from onnx_obc.study.size import Mask, density
from onnx_obc.study.tensors import TensorRow

BITS = (2, 3, 4, 8)
HOSTILE = (
    "<script>alert(1)</script>",
    "a\x00b\x1b[31mred\u202egnp.exe\ud800",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "/very/long/" + "x" * 400,
    "[bold red]markup[/]",
)


def make_study(
    count: int = 6,
    bits: Sequence[int] = BITS,
    chunks: int = 0,
    samples: int = 64,
    names: Sequence[str] = (),
    **others: object,
) -> Study:
    """A study of so many layers, with so many chunks of each; without samples of weights alone."""
    random = np.random.default_rng(count)
    names = [*names, *(f"features.{i}.conv" for i in range(len(names), count))]
    layers = [make_layer(name, bits, samples, random) for name in names]
    drawn = [make_chunk(layer, row, b, random) for layer in layers for row in range(chunks) for b in bits]
    values = {
        "model": "models/net.onnx",
        "bits": tuple(bits),
        "size": "bytes",
        "compression": "deflate",
        "chunk": 36,
        "samples": samples,
        "layers": tuple(layers),
        "chunks": tuple(drawn),
        "whole": (),
        "notes": (),
        "how": {"version": "0.1.0", "seed": 0, "target": "onnxruntime-cpu", "prove": 60.0 if chunks else 0.0},
        **others,
    }
    return Study(**values)  # type: ignore[arg-type]


def make_layer(name: str, bits: Sequence[int], samples: int, random: np.random.Generator) -> LayerRow:
    rows, columns = int(random.integers(8, 512)), int(random.integers(2, 64)) * 9
    tail = float(random.gamma(1.5, 0.35))
    kurtosis = 2.4 + 3 * tail**3
    gain, spread = random.normal(3, 1), random.normal(0, 1.5)
    budgets = []
    for b in bits:
        quantized, pruned = 6.1 * b - 4.5 - 4 * tail, 2.2 + 1.3 * b + 4 * tail + 0.3 * spread
        zeros = 0.5 * 2.0 ** (2 - b) * (1 + 0.4 * tail)
        masks: dict[Mask, float | None] = {
            mask: None if (kept := density(b, mask)) is None else pruned - 8 * (b / 16 - kept)
            for mask in get_args(Mask)
        }
        predicted = dict.fromkeys(FAMILIES, (quantized + 0.6, pruned - 0.4))
        tensor = TensorRow(b, quantized, min(zeros, 0.9), quantized + 1.1, masks, pruned - 2, predicted)
        budgets.append(_solved(tensor, masks, gain, spread) if samples else BudgetRow(b, tensor))
    if not samples:
        return LayerRow(name, "Conv", 1, rows, columns, kurtosis, budgets=tuple(budgets))
    studied = min(rows, 64)
    return LayerRow(name, "Conv", 1, rows, columns, kurtosis, studied, 0, 4096, 1e-3, tuple(budgets))


def without(layer: LayerRow, reason: str) -> LayerRow:
    return replace(layer, kurtosis=None, studied=0, budgets=(), reason=reason)


def make_chunk(layer: LayerRow, row: int, bits: int, random: np.random.Generator) -> ChunkRow:
    low = 6.2 * bits - 4 + float(random.normal(0, 1.5)), 3 + 1.5 * bits + float(random.gamma(2, 1.5))
    gap = float(random.gamma(1, 0.15)), float(random.gamma(1, 0.2))
    exact = bool(random.random() < 0.9), bool(random.random() < 0.97)
    bound = [a + g + (0 if sure else 1.5) for a, g, sure in zip(low, gap, exact, strict=True)]

    def both(pair: Sequence[float]) -> dict[Kind, float]:
        return {"quantize": pair[0], "prune": pair[1]}

    best = [b if sure else a for a, b, sure in zip(low, bound, exact, strict=True)]
    sure: dict[Kind, bool] = {"quantize": exact[0], "prune": exact[1]}
    return ChunkRow(layer.name, row, (9 * row, 36), bits, both(low), both(best), both(bound), sure, both((0.2, 0.1)))


def make_whole(bits: Sequence[int] = BITS) -> tuple[WholeModel, ...]:
    made = []
    for b in bits:
        made += [WholeModel(b, "all quantized", b + 0.1, 0.4 / 4.0**b), WholeModel(b, "all pruned", float(b), 0.9 / b)]
        made.append(WholeModel(b, "the best way for each", b + 0.05, 0.3 / 4.0**b, 1, f"recipe-{b}bit.yaml"))
    return tuple(made)


def _solved(tensor: TensorRow, masks: dict[Mask, float | None], gain: float, spread: float) -> BudgetRow:
    b = tensor.bits
    quantized = tensor.quantized + gain + 2
    pruned = 3 + 1.4 * b + gain + spread
    asymmetric = "int8" if b == 8 else f"int{b}-asym"
    ways = [Way("quantize", asymmetric, b + 0.08, quantized, quantized - 3, quantized + 0.4 + 0.3 * abs(spread))]
    ways.append(Way("prune", f"sparse-{1 - b / 18:.2f}", b - 0.03, pruned, pruned - 2.5, pruned + 0.8 + abs(spread)))
    if b in (2, 4, 8):
        ways.append(Way("prune", f"{b // 2}:8", b - 0.3, pruned - 1.7, pruned - 4, None))
    ways.append(Way("both", "sparse-0.41+int5", b + 0.02, quantized + spread, quantized - 2, None))
    by_size: dict[Size, Way | None] = {}
    for i, size in enumerate(get_args(Size)):
        paid = masks.get(size, 0) is not None
        way = Way("prune", f"sparse-{1 - b / 17:.4f}", b, pruned - i, pruned - 3, pruned + 1)
        by_size[size] = way if paid else None
    pure = {size: [ways[0], *([way] if way else [])] for size, way in by_size.items()}
    verdicts = {size: judge(ways if size == "bytes" else found, True) for size, found in pure.items()}
    assert all(math.isfinite(way.snr) for way in ways)
    return BudgetRow(b, tensor, tuple(ways), by_size, verdicts)
