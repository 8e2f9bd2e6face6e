"""Which tools are compared, and which of their methods serve which level on which model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
            Offer("W4 in blocks", "MatMulNBits GPTQ", TEXT),
            Offer("W2 in blocks", "MatMulNBits, 2 bits, blocks of 32", TEXT),
        ),
        "weights alone only of MatMul, in blocks; no 3 bits; no sparsity",
    ),
    "nncf": Peer(
        "nncf",
        (
            Offer("W8A8", "ptq"),
            Offer("W8A8", "ptq, mixed preset"),
            Offer("W8A8", "ptq, no SmoothQuant", TEXT),
            Offer("W8A8", "ptq, no bias correction"),
            Offer("W8A8", "ptq, accurate bias correction", IMAGES),
            Offer("W4", "int4, per channel", TEXT),
            Offer("W4", "int4, per channel, AWQ and scale estimation", TEXT),
            Offer("W4 in blocks", "int4, blocks of 32", TEXT),
            Offer("W4 in blocks", "int4, blocks of 32, AWQ and scale estimation", TEXT),
            Offer("W4 in blocks", "int4 symmetric, blocks of 32, AWQ and scale estimation", TEXT),
        ),
        "on ONNX 4 bits only of MatMul (convolutions stay at 8), and no GPTQ; nothing below 4 bits; no sparsity",
    ),
    "modelopt": Peer(
        "nvidia-modelopt",
        (
            Offer("W8A8", "int8 entropy, float16"),
            Offer("W8A8", "int8 entropy, float32"),
            Offer("W8A8", "int8 entropy, float32, DQ only"),
            Offer("W8A8", "int8 max, float32"),
            Offer("W4 in blocks", "int4 AWQ lite, blocks of 128", TEXT),
            Offer("W4 in blocks", "int4 AWQ clip, blocks of 128", TEXT),
            Offer("W4 in blocks", "int4 AWQ clip, blocks of 32", TEXT),
            Offer("W4 in blocks", "int4 rounding, blocks of 32", TEXT),
        ),
        "on ONNX 4 bits only of MatMul, in blocks; nothing below 4 bits; no sparsity",
    ),
    "onnxsim": Peer(
        "onnxsim",
        (
            Offer("W8A8", "static min/max"),
            Offer("W8A8", "static entropy"),
            Offer("W8A8", "static min/max, bias correction"),
            Offer("W8A8", "dynamic", TEXT),
            Offer("W4 in blocks", "int4, blocks of 32"),
            Offer("W4 in blocks", "int4 GPTQ, blocks of 32"),
            Offer("W4 in blocks", "int4 Qronos, blocks of 32"),
            Offer("W4 in blocks", "int4 QuantEase, blocks of 32"),
            Offer("W4 in blocks", "int4 AdaRound-300, blocks of 32"),
            Offer("2:4", "2:4 Wanda"),
            Offer("2:4", "2:4 SparseGPT"),
        ),
        "sums of residual blocks stay in float, nearer to the dense model and slower in onnxruntime; "
        "dynamic only of MatMul and Gemm; 4 bits only in blocks of 32; no plain 3- or 2-bit integers",
    ),
    "quark": Peer(
        "amd-quark",
        (
            Offer("W8A8", "INT8_CNN_DEFAULT", IMAGES),
            Offer("W8A8", "INT8_CNN_ACCURATE (AdaRound-1000)", IMAGES),
            Offer("W8A8", "INT8_TRANSFORMER_DEFAULT", TEXT),
            Offer("W8A8", "XINT8", IMAGES),
            Offer("W8A8", "per channel"),
            Offer("W8A8", "per channel, AdaRound-500"),
            Offer("W8A8", "per channel, AdaQuant-500"),
            Offer("W4 in blocks", "MatMulNBits, blocks of 32", TEXT),
            Offer("W4 in blocks", "MatMulNBits GPTQ, blocks of 32", TEXT),
        ),
        "on ONNX 4 bits only of MatMul, in blocks (GPTQConfig wrote 8-bit codes at 4 bits); nothing below; no sparsity",
    ),
    "aimet": Peer(
        "aimet-onnx",
        (
            Offer("W8A8", "int8 min/max"),
            Offer("W8A8", "int8 CLE", IMAGES),
            Offer("W8A8", "int8 AdaRound-200"),
            Offer("W4A8", "int4 min/max, int8 inputs"),
            Offer("W4A8", "int4 AdaRound-200, int8 inputs"),
            Offer("W4", "int4 min/max"),
            Offer("W4", "int4 SeqMSE"),
            Offer("W4", "int4 AdaRound-200"),
            Offer("W4", "int4 CLE, AdaRound-200", IMAGES),
            Offer("W3", "int3 AdaRound-200, as floats"),
            Offer("W2", "int2 AdaRound-200, as floats"),
        ),
        "3- and 2-bit weights only simulated, in a file of floats; no sparsity",
    ),
}


def not_run(rows: Iterable[Mapping[str, Any]], model: str) -> list[tuple[str, Offer]]:
    """The tools and methods that are listed for a model and have no row."""
    ran = {(row["level"], row["peer"], row["method"]) for row in rows if row["model"] == model}
    return [
        (peer, offer)
        for peer, about in PEERS.items()
        for offer in about.offers
        if model in offer.models and (offer.level, peer, offer.method) not in ran
    ]
