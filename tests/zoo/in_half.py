"""Networks of the zoo in float16, as onnxruntime's own converter writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from . import networks
from .case import Case, Feed

CHOSEN = ("bert", "gpt2-past", "whisper-decoder", "segformer", "mobilenet-v2")


def in_half(case: Case) -> Case:
    """A case in float16, its inputs and outputs too."""

    def build(path: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        case.build(path)
        model = convert_float_to_float16(onnx.load(path), keep_io_types=False)
        for beside in path.parent.glob(f"{path.name}.*"):
            beside.unlink()
        onnx.save(model, path)

    def feeds(rng: np.random.Generator) -> list[Feed]:
        return [
            {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in feed.items()}
            for feed in case.feeds(rng)
        ]

    return Case(f"{case.name}-float16", build, feeds)


CASES = [in_half(case) for case in networks.CASES if case.name in CHOSEN]
