"""All targets by name, and writing a model in a target's form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..graph.save import save_model
from . import deepsparse, onnxruntime, openvino, tensorrt
from .names import WeightForm
from .target import Target

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET for module in (onnxruntime, openvino, deepsparse, tensorrt)
}


def save_for(target: str, weight_form: WeightForm, model: ir.Model, path: Path) -> None:
    """Write a finished Q/DQ model in the form that a target takes. Raises OutputError."""
    lower = TARGETS[target].weight_forms[weight_form]
    save_model(model if lower is None else lower(model), path)
