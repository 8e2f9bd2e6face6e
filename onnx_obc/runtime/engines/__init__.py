"""The engines that run files: one module each, reached through `ENGINES`. None is loaded before it is asked for."""

from __future__ import annotations

from ..engine import Engine
from . import deepsparse, onnxruntime, openvino, tensorrt

ENGINES: dict[str, Engine] = {
    module.__name__.rpartition(".")[2]: Engine(module.version, module.load)
    for module in (deepsparse, onnxruntime, openvino, tensorrt)
}
