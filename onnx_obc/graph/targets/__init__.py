"""The runtimes that a graph is written for: one module each, with its rules, and where they come from.

Everything that is particular to a runtime stands in its module, and is reached through `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...level import Choice
from ..finding import Finding
from ..layers import Layer
from ..model import save_model
from ..qdq import Activation
from . import deepsparse, onnxruntime, openvino, tensorrt
from .tensorrt_weights import quantize_in_graph


@dataclass(frozen=True)
class Target:
    """The rules of one runtime.

    refuse(layer, choice) → the reason why not, or None.
    activation_bits(layer, choice) → the bits that this runtime has a use for, and why if they differ.
    prepare(model, layers, choice of each layer by name): rewrites the model, in place, to an equal form that the
    runtime takes better. Layers without a choice stay float.
    place(model, layers, choices) → what to quantize in a model that was prepared.
    examine(model) → the rules that any ONNX file, whoever wrote it, breaks, as far as the graph alone shows them.
    lower(model) → a copy of a finished Q/DQ model in the form that this runtime takes; None: it takes that.
    avoid(layer, choice) → why a layer is better left in float, unless a rule of the user's names it, or None.
    shared_scale: whether all rows of a group of integer weights are to have the same scale.
    """

    refuse: Callable[[Layer, Choice], str | None]
    activation_bits: Callable[[Layer, Choice], tuple[int | None, str | None]]
    prepare: Callable[[ir.Model, Sequence[Layer], Mapping[str, Choice]], None]
    place: Callable[[ir.Model, Sequence[Layer], Mapping[str, Choice]], list[Activation]]
    examine: Callable[[ir.Model], list[Finding]]
    lower: Callable[[ir.Model], ir.Model] | None = None
    shared_scale: bool = False
    avoid: Callable[[Layer, Choice], str | None] = lambda layer, choice: None


TARGETS = {
    module.__name__.rpartition(".")[2]: Target(
        module.refuse, module.activation_bits, module.prepare, module.place, module.examine
    )
    for module in (onnxruntime, openvino)
}
TARGETS["tensorrt"] = Target(
    *(tensorrt.refuse, tensorrt.activation_bits, tensorrt.prepare, tensorrt.place, tensorrt.examine),
    avoid=tensorrt.avoid,
)
TARGETS["deepsparse"] = Target(
    *(deepsparse.refuse, deepsparse.activation_bits, deepsparse.prepare, deepsparse.place, deepsparse.examine),
    lower=deepsparse.lower,
    shared_scale=True,
)


def lowering(target: str, weight_form: str) -> Callable[[ir.Model], ir.Model] | None:
    """What makes of a finished Q/DQ model the form that a runtime takes; None where it is that form.

    weight_form: as in a Recipe.
    """
    return quantize_in_graph if weight_form == "qdq" else TARGETS[target].lower


def save_for(target: str, weight_form: str, model: ir.Model, path: Path) -> None:
    """Write a finished Q/DQ model in the form that a runtime takes. Raises OutputError."""
    lower = lowering(target, weight_form)
    save_model(model if lower is None else lower(model), path)
