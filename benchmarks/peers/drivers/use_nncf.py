"""NNCF on ONNX, as its documentation says: `quantize` of a data set, and `compress_weights`."""

from __future__ import annotations

from functools import partial
from typing import Any

import nncf
import onnx
from driver import Method, Task, main
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
from onnx import version_converter

INT4_OPSET = 21


def is_transformer(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Softmax" for node in model.graph.node)


def quantize(task: Task, **settings: Any) -> None:
    """SmoothQuant runs on transformers only, by default; `fast_bias_correction` on convolutions."""
    model, samples = onnx.load(task.model), task.samples()
    quantized = nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer(model) else None,
        **settings,
    )
    onnx.save(quantized, task.output)


def without(**settings: Any) -> Method:
    return partial(quantize, advanced_parameters=AdvancedQuantizationParameters(**settings))


def compress(task: Task, **settings: Any) -> None:
    """In all products; embeddings get 8 bits by default, and with `all_layers` onnxruntime refuses the file."""
    model = version_converter.convert_version(onnx.load(task.model), INT4_OPSET)
    if settings.pop("data", False):
        samples = task.samples()
        settings |= {"dataset": nncf.Dataset(samples), "subset_size": len(samples)}
    onnx.save(nncf.compress_weights(model, **settings), task.output)


SYM: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT4_SYM, "ratio": 1.0}
ASYM: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT4_ASYM, "ratio": 1.0}
AWARE = {"data": True, "awq": True, "scale_estimation": True}

METHODS: dict[str, Method] = {
    "ptq": quantize,
    "ptq, mixed preset": partial(quantize, preset=nncf.QuantizationPreset.MIXED),
    "ptq, no SmoothQuant": without(smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)),
    "ptq, no bias correction": without(disable_bias_correction=True),
    "ptq, accurate bias correction": partial(quantize, fast_bias_correction=False),
    "int8, weights alone": partial(compress, mode=nncf.CompressWeightsMode.INT8_ASYM),
    "int4, per channel": partial(compress, **ASYM, group_size=-1),
    "int4, per channel, AWQ and scale estimation": partial(compress, **ASYM, group_size=-1, **AWARE),
    "int4, blocks of 32": partial(compress, **ASYM, group_size=32),
    "int4, blocks of 32, AWQ and scale estimation": partial(compress, **ASYM, group_size=32, **AWARE),
    "int4 symmetric, blocks of 32, AWQ and scale estimation": partial(compress, **SYM, group_size=32, **AWARE),
}

if __name__ == "__main__":
    main(METHODS)
