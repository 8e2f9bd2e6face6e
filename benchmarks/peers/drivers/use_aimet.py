"""AIMET on ONNX: a simulation with a scale for every output channel, improved, and written as Q/DQ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import onnx
from aimet_onnx import QuantizationSimModel, apply_adaround, apply_seq_mse, int8, qtype
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_onnx.cross_layer_equalization import equalize_model
from driver import Feed, Method, Task, main

Improve: TypeAlias = Callable[[QuantizationSimModel, "list[Feed]"], None]
STORED = (4, 8)  # bits for which the Q/DQ export has a type


def run(
    task: Task, bits: int, improve: Improve | None = None, equalize: bool = False, activations: bool = False
) -> None:
    model = onnx.load(task.model)
    if equalize:
        equalize_model(model)  # folds BatchNorm, too
    else:
        fold_all_batch_norms_to_weight(model)
    sim = QuantizationSimModel(
        model,
        param_type=qtype.int(bits),
        activation_type=int8,
        config_file=get_path_for_per_channel_config(),
    )
    feeds = task.feeds()
    if not activations:
        for name in sim.activation_names:
            sim.qc_quantize_op_dict[name].enabled = False
    if improve is not None:
        improve(sim, feeds)
    sim.compute_encodings(feeds)
    if bits in STORED:
        onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.output)
    else:
        sim.fold_param_quantizers()
        for quantizer in sim.qc_quantize_op_dict.values():
            if quantizer.bitwidth == bits:  # folded, but the export refuses its bits all the same
                quantizer.enabled = quantizer._is_encoding_frozen = False  # AdaRound froze it
                quantizer.set_bitwidth(8)
        onnx.save(sim.to_onnx_qdq(), task.output)


def adaround(sim: QuantizationSimModel, feeds: list[Feed]) -> None:
    apply_adaround(sim, feeds, num_iterations=200)


METHODS: dict[str, Method] = {
    "int8 min/max": partial(run, bits=8, activations=True),
    "int8 CLE": partial(run, bits=8, activations=True, equalize=True),
    "int8 AdaRound-200": partial(run, bits=8, activations=True, improve=adaround),
    "int4 min/max, int8 inputs": partial(run, bits=4, activations=True),
    "int4 AdaRound-200, int8 inputs": partial(run, bits=4, activations=True, improve=adaround),
    "int4 min/max": partial(run, bits=4),
    "int4 SeqMSE": partial(run, bits=4, improve=apply_seq_mse),
    "int4 AdaRound-200": partial(run, bits=4, improve=adaround),
    "int4 CLE, AdaRound-200": partial(run, bits=4, improve=adaround, equalize=True),
    "int3 AdaRound-200, as floats": partial(run, bits=3, improve=adaround),
    "int2 AdaRound-200, as floats": partial(run, bits=2, improve=adaround),
}

if __name__ == "__main__":
    main(METHODS)
