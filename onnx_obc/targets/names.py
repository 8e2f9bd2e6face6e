"""The names of the runtimes, without loading anything that belongs to them."""

from __future__ import annotations

from typing import Literal, TypeAlias

TargetName: TypeAlias = Literal["onnxruntime", "openvino", "deepsparse", "tensorrt"]
WeightForm: TypeAlias = Literal["dq", "qdq", "nbits-0", "nbits-1", "nbits-4"]  # nbits: MatMulNBits, its accuracy level
