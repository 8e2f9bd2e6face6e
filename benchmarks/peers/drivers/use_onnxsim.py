"""onnxsim's quantization and pruning passes, on a model that it simplified, as its README says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx
import onnxsim
from driver import Feed, Method, Task, main
from onnx import version_converter

INT4_OPSET = 21


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simple, _ = onnxsim.simplify(model)
    return simple


def save(model: onnx.ModelProto, task: Task) -> None:
    """Simplified once more, which drops the float weights that nothing reads any longer."""
    onnx.save(simplified(model), task.output)


def static(task: Task, method: str) -> None:
    save(onnxsim.quantize_static(simplified(onnx.load(task.model)), task.feeds(), method=method), task)


def static_corrected(task: Task) -> None:
    model, feeds = simplified(onnx.load(task.model)), task.feeds()
    save(onnxsim.correct_bias(model, onnxsim.quantize_static(model, feeds), feeds), task)


def dynamic(task: Task) -> None:
    save(onnxsim.quantize_dynamic(simplified(onnx.load(task.model))), task)


def int4(task: Task, improve: Callable[..., onnx.ModelProto] | None = None, **settings: Any) -> None:
    """Rounded to 4 bits in blocks of 32 inputs, then improved on the calibration data."""
    model = version_converter.convert_version(simplified(onnx.load(task.model)), INT4_OPSET)
    quantized = onnxsim.quantize_weight_only_int4(model)
    if improve is not None:
        feeds: list[Feed] = task.feeds()
        quantized = improve(model, quantized, feeds, **settings)
    save(quantized, task)


def prune(task: Task, method: Callable[..., onnx.ModelProto]) -> None:
    save(method(simplified(onnx.load(task.model)), task.feeds(), n=2, m=4), task)


METHODS: dict[str, Method] = {
    "static min/max": partial(static, method="minmax"),
    "static entropy": partial(static, method="entropy"),
    "static min/max, bias correction": static_corrected,
    "dynamic": dynamic,
    "int4, blocks of 32": int4,
    "int4 GPTQ, blocks of 32": partial(int4, improve=onnxsim.apply_gptq),
    "int4 Qronos, blocks of 32": partial(int4, improve=onnxsim.apply_qronos),
    "int4 QuantEase, blocks of 32": partial(int4, improve=onnxsim.apply_quantease),
    "int4 AdaRound-300, blocks of 32": partial(int4, improve=onnxsim.apply_adaround),
    "2:4 Wanda": partial(prune, method=onnxsim.apply_wanda_pruning),
    "2:4 SparseGPT": partial(prune, method=onnxsim.apply_sparsegpt_pruning),
}

if __name__ == "__main__":
    main(METHODS)
