"""onnxruntime's quantization tools, as its documentation says: shape inference and graph optimization first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from driver import Feed, Method, Task, main, padded
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The feeds, one after the other."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def preprocessed(task: Task, then: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preprocessed.onnx"
        reads_text = any(node.op_type == "Softmax" for node in onnx.load(task.model).graph.node)
        quant_pre_process(str(task.model), str(path), skip_symbolic_shape=reads_text)  # it fails on MiniLM
        then(path)


def static(task: Task, calibrate: CalibrationMethod, weights: QuantType = QuantType.QInt8) -> None:
    histogram = calibrate is not CalibrationMethod.MinMax  # it joins the activations of all feeds

    def quantize(path: Path) -> None:
        quantize_static(
            str(path),
            str(task.output),
            Reader(padded(task.samples()) if histogram else task.feeds()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=weights,
            calibrate_method=calibrate,
        )

    preprocessed(task, quantize)


def dynamic(task: Task) -> None:
    preprocessed(task, lambda path: quantize_dynamic(str(path), str(task.output), per_channel=True))


def nbits(task: Task, config: Callable[[Task], Any]) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(task.model), algo_config=config(task))
    quantizer.process()
    quantizer.model.save_model_to_file(str(task.output))


METHODS: dict[str, Method] = {
    "static min/max": partial(static, calibrate=CalibrationMethod.MinMax),
    "static percentile": partial(static, calibrate=CalibrationMethod.Percentile),
    "static entropy": partial(static, calibrate=CalibrationMethod.Entropy),
    "static min/max, int4 weights": partial(static, calibrate=CalibrationMethod.MinMax, weights=QuantType.QInt4),
    "dynamic": dynamic,
    "MatMulNBits, blocks of 32": partial(nbits, config=lambda task: DefaultWeightOnlyQuantConfig(block_size=32)),
    "MatMulNBits, 2 bits, blocks of 32": partial(
        nbits, config=lambda task: DefaultWeightOnlyQuantConfig(block_size=32, bits=2)
    ),
    "MatMulNBits k-quant": partial(nbits, config=lambda task: KQuantWeightOnlyQuantConfig()),
    "MatMulNBits GPTQ": partial(nbits, config=lambda task: GPTQWeightOnlyQuantConfig(Reader(task.feeds()))),
}

if __name__ == "__main__":
    main(METHODS)
