"""Which tools are compared, and which of their methods serve which level on which model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.subjects import NAMES

OURSELVES = "onnx-obc"
LEVELS = ("W8A8", "W4A8", "W4", "W4 in blocks", "W3", "W2", "W2 in blocks", "2:4")
TEXT = ("MiniLM",)
IMAGES = tuple(name for name in NAMES if name not in TEXT)


@dataclass(frozen=True)
class Offer:
    """A method of a tool. level: one of LEVELS. method: as its driver calls it. models: those it is run on."""

    level: str
    method: str
    models: Sequence[str] = NAMES


@dataclass(frozen=True)
class Peer:
    """A tool. package: its name for pip. lacks: what it does not offer, in words. The first offer of ours at a level is
    what the others' are compared with."""

    package: str
    offers: Sequence[Offer]
    lacks: str = ""


PEERS: dict[str, Peer] = {
    OURSELVES: Peer(
        "onnx-obc",
        (
            Offer("W8A8", "int8"),
            Offer("W8A8", "int8, embeddings too", TEXT),
            Offer("W4A8", "int4, int8 inputs"),
            Offer("W4", "int4"),
            Offer("W4", "int4, symmetric"),
            Offer("W4", "int4, in order"),
            Offer("W4", "int4, rounding"),
            Offer("W4 in blocks", "int4, blocks of 32", TEXT),
            Offer("W3", "int3"),
            Offer("W2", "int2"),
            Offer("W2 in blocks", "int2, blocks of 32", TEXT),
            Offer("2:4", "2:4"),
        ),
    ),
    "onnxruntime": Peer(
        "onnxruntime",
        (
            Offer("W8A8", "static min/max"),
            Offer("W8A8", "static percentile"),
            Offer("W8A8", "static entropy"),
            Offer("W8A8", "dynamic"),
            Offer("W4A8", "static min/max, int4 weights"),
            Offer("W4 in blocks", "MatMulNBits, blocks of 32", TEXT),
            Offer("W4 in blocks", "MatMulNBits k-quant", TEXT),
            Offer("W4 in blocks", "MatMulNBits GPTQ, blocks of 32", TEXT),
            Offer("W2 in blocks", "MatMulNBits, 2 bits, blocks of 32", TEXT),
        ),
        "weights alone only of MatMul, in blocks; no 3 bits; no sparsity",
    ),
}
