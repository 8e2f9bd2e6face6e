"""All targets by name, and writing a model in a target's form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..graph.save import save_model
from . import deepsparse, onnxruntime, openvino, tensorrt
from .engine import Engine
from .names import WeightForm
from .target import Target

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET for module in (onnxruntime, openvino, deepsparse, tensorrt)
}


def engines_of(target: str, weight_form: WeightForm) -> dict[str, Engine]:
    """The engines that a Q/DQ file for a target is tried in, besides the final check: its own, and onnxruntime.

    None where the file only becomes another form, but for onnxruntime's "dq", which Q/DQ alone are too; and not those
    that build for minutes, on machines of their own.
    """
    own = (target, weight_form) == (onnxruntime.TARGET.name, "dq")
    if TARGETS[target].weight_forms[weight_form] is not None and not own:
        return {}
    names = dict.fromkeys((onnxruntime.TARGET.name, target))
    return {name: TARGETS[name].engine for name in names if TARGETS[name].build_elsewhere is None}


def save_for(target: str, weight_form: WeightForm, model: ir.Model, path: Path) -> None:
    """Write a finished Q/DQ model in the form that a target takes. Raises OutputError."""
    lower = TARGETS[target].weight_forms[weight_form]
    save_model(model if lower is None else lower(model), path)
