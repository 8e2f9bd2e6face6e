"""The runtimes that a graph is written for: one module each, with its rules, and where they come from.

A target answers two questions. `refuse`: why a layer cannot take a level with activations of so many bits on this
runtime, None if it can. `place`: which activations are to be quantized, and for which readers, once every layer's
choice is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...level import Choice
from ..layers import Layer
from ..qdq import Activation
from . import onnxruntime, tensorrt


@dataclass(frozen=True)
class Target:
    """The rules of one runtime.

    refuse(layer, choice) → the reason why not, or None.
    activation_bits(layer, choice) → the bits that this runtime has a use for, and why if they differ.
    place(model, layers, choice of each layer by name) → what to quantize. Layers without a choice stay float.
    It may also rewrite the model to an equal form that the runtime takes better (onnxruntime: biases of products).
    """

    name: str
    refuse: Callable[[Layer, Choice], str | None]
    activation_bits: Callable[[Layer, Choice], tuple[int | None, str | None]]
    place: Callable[[ir.Model, Sequence[Layer], Mapping[str, Choice]], list[Activation]]


TARGETS = {
    "onnxruntime": Target("onnxruntime", onnxruntime.refuse, onnxruntime.activation_bits, onnxruntime.place),
    "tensorrt": Target("tensorrt", tensorrt.refuse, tensorrt.activation_bits, tensorrt.place),
}
