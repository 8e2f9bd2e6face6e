"""AMD Quark on ONNX: the presets that its documentation recommends for CNNs and transformers, and its algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from driver import Feed, Method, Task, main
from onnxruntime.quantization.calibrate import CalibrationDataReader
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.quantization.config.spec import CalibMethod, QuantGranularity


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The feeds, any number of times."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = feeds
        self.reset_iter()

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def reset_iter(self) -> None:
        self._left = iter(self._feeds)


def run(task: Task, config: Any) -> None:
    # With samples of batch 1, which its fine-tuning puts into batches of its own.
    ModelQuantizer(config).quantize_model(str(task.model), str(task.output), Reader(task.samples()))


def preset(task: Task, name: str, **options: Any) -> None:
    config = QConfig.get_default_config(name)
    config.global_quant_config.extra_options |= options
    run(task, config)


def nbits(task: Task, **options: Any) -> None:
    config = QConfig.get_default_config("MATMUL_NBITS")
    config.global_quant_config.extra_options["MatMulNBitsParams"] |= options
    run(task, config)


def per_channel(task: Task, algorithms: Sequence[Any] = ()) -> None:
    activation = UInt8Spec(calibration_method=CalibMethod.MinMax)
    weight = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    run(task, QConfig(QLayerConfig(activation=activation, weight=weight), algo_config=list(algorithms)))


FINE = {"batch_size": 2, "num_iterations": 500, "early_stop": True}

METHODS: dict[str, Method] = {
    "INT8_CNN_DEFAULT": partial(preset, name="INT8_CNN_DEFAULT"),
    "INT8_CNN_ACCURATE (AdaRound-1000)": partial(preset, name="INT8_CNN_ACCURATE"),
    "INT8_TRANSFORMER_DEFAULT": partial(preset, name="INT8_TRANSFORMER_DEFAULT"),
    "XINT8": partial(preset, name="XINT8"),
    "per channel": per_channel,
    "per channel, AdaRound-500": partial(per_channel, algorithms=[AdaRoundConfig(learning_rate=0.1, **FINE)]),
    "per channel, AdaQuant-500": partial(per_channel, algorithms=[AdaQuantConfig(learning_rate=1e-5, **FINE)]),
    "MatMulNBits, blocks of 32": partial(nbits, GroupSize=32, Symmetric=False),
    "MatMulNBits GPTQ, blocks of 32": partial(nbits, GroupSize=32, Symmetric=False, Algorithm="GPTQ"),
}

if __name__ == "__main__":
    main(METHODS)
