"""What a report warns of: outputs compared on few samples, or worse than a level usually leaves them."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.level import parse_level
from ..core.plural import counted
from .layer import LayerReport
from .verify import OutputMatch

POOR_DB = 10.0  # below this the model may be of no use at all

# Held-out samples below which the SQNR is rough. Of random draws from 450 digits (the model of `onnx-obc demo`, int8
# and int4), the middle nine tenths span 12 dB for one sample, 8 for two, 6 for four, 4 for eight, 2 for thirty-two.
FEW = 8

# The SQNR in dB that outputs usually keep, by the bits of the coarsest weights, for float and for int8 inputs: 5 less
# than the lowest of these, on held-out calibration samples. By default options, all levels: the model of the demo
# (49.8 at int8, 25.9 at int4, 19.8 at int3; with int8 inputs 19.8, 18.7, 16.8) and ResNet-20 on CIFAR-10 (47.8, 25.2,
# 20.6; 33.6, 25.1, 20.5). Unrefined, about 100 samples, at int8: EfficientNet-Lite0 (32.8; with int8 inputs 26.4) and
# MiniLM (with int8 inputs 19.6). With float inputs 7 to 5 bits lie evenly between int8 and int4. At int4
# EfficientNet-Lite0 keeps 10.7, and loses 5 points of accuracy: it is to be warned of.
USUAL_DB = {
    False: {8: 27.0, 7: 25.0, 6: 23.0, 5: 21.0, 4: 20.0, 3: 14.0, 2: 8.0},
    True: {8: 14.0, 7: 14.0, 6: 14.0, 5: 13.0, 4: 13.0, 3: 11.0, 2: 8.0},
}
NAMED = 3  # layers that a warning names


def quality_notes(
    layers: Sequence[LayerReport], outputs: Sequence[OutputMatch], held_out: int, dynamic: bool = False
) -> list[str]:
    """What the user should know of how well the outputs agree. held_out: samples, 0 if none were. dynamic: whether
    inputs of products can be quantized on the range of each."""
    notes = []
    if outputs and 0 < held_out < FEW:
        notes.append(
            f"outputs were compared on {counted(held_out, 'held-out sample')}: their SQNR says little; "
            f"calibrate on {10 * FEW} samples or more"
        )
    for match in outputs:
        if bad := match.not_finite:
            more = f" and {counted(len(bad) - 1, 'other sample')}" if len(bad) > 1 else ""
            notes.append(
                f"output {match.name} of the dense model is NaN or infinite for {bad[0]}{more}: such samples do not "
                "count in its SQNR; leave them out, or mend what overflows"
            )
        if match.sqnr_db < POOR_DB and not match.integers:
            text = f"is only {match.sqnr_db:.1f} dB from the dense model's: check the task metric before use"
            notes.append(f"output {match.name} {text}")
    usual, level = usual_db(layers)
    worst = min((match.sqnr_db for match in outputs if not match.integers), default=usual)
    if worst < usual:
        costly = sorted(layers, key=lambda layer: -layer.loss_relative)[:NAMED]
        named = ", ".join(f"{layer.name} ({layer.loss_relative:.1e})" for layer in costly)
        static = any(layer.activations == "int8" and layer.op in ("MatMul", "Gemm") for layer in layers)
        ranges = "; or try --activations dynamic, with ranges of each input" if dynamic and static else ""
        notes.append(
            f"outputs keep {worst:.1f} dB, models at {level} usually {usual:.0f} or more; the layers with the largest "
            f"relative loss: {named}; give them more bits by a rule of a recipe, or --skip them{ranges}; or let "
            f"--min-quality {usual:.0f}dB leave the fewest layers in float that it takes"
        )
    return notes


def usual_db(layers: Sequence[LayerReport]) -> tuple[float, str]:
    """The SQNR that outputs usually keep, and at which level; −inf where layers are pruned or none is of integers."""
    levels = [parse_level(layer.level) for layer in layers]
    bits = min((level.bits for level in levels if level.bits is not None), default=None)
    if bits is None or any(level.sparsity is not None for level in levels):
        return float("-inf"), ""
    quantized = any(layer.activations in ("int8", "dynamic") for layer in layers)
    if any(layer.activations == "int4" for layer in layers):
        return float("-inf"), ""
    return USUAL_DB[quantized][bits], f"int{bits}" + (" with int8 inputs" if quantized else "")
