"""NVIDIA ModelOpt on ONNX files, as its documentation says: `modelopt.onnx.quantization.quantize`.

It writes Q/DQ for TensorRT, and by default turns what stays float into float16.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from driver import Feed, Method, Task, main, padded
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The feeds, any number of times."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = feeds
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def get_first(self) -> Feed:
        return self._feeds[0]

    def rewind(self) -> None:
        self._left = iter(self._feeds)


def run(task: Task, mode: str, **settings: Any) -> None:
    quantize(
        str(task.model),
        quantize_mode=mode,
        calibration_data_reader=Reader(padded(task.feeds()) if mode == "int4" else task.feeds()),
        calibration_eps=["cpu"],
        output_path=str(task.output),
        **settings,
    )


METHODS: dict[str, Method] = {
    "int8 entropy, float16": partial(run, mode="int8"),
    "int8 entropy, float32": partial(run, mode="int8", high_precision_dtype="fp32"),
    "int8 entropy, float32, DQ only": partial(run, mode="int8", high_precision_dtype="fp32", dq_only=True),
    "int8 max, float32": partial(run, mode="int8", calibration_method="max", high_precision_dtype="fp32"),
    "int4 AWQ lite, blocks of 128": partial(run, mode="int4", calibration_method="awq_lite"),
    "int4 AWQ clip, blocks of 128": partial(run, mode="int4", calibration_method="awq_clip"),
    "int4 AWQ clip, blocks of 32": partial(run, mode="int4", calibration_method="awq_clip", block_size=32),
    "int4 rounding, blocks of 32": partial(run, mode="int4", calibration_method="rtn_dq", block_size=32),
}

if __name__ == "__main__":
    main(METHODS)
