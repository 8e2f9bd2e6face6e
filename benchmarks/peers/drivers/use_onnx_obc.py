"""onnx-obc itself, by the same rules as the others: defaults, and what its documentation names for the level."""

from __future__ import annotations

from functools import partial
from typing import Any

from driver import Method, Task, main

from onnx_obc import Recipe, compress


def run(task: Task, **recipe: Any) -> None:
    compress(task.model, str(task.calibration), Recipe.model_validate(recipe), task.output)


def weights(bits: int, **recipe: Any) -> Method:
    return partial(run, weights=f"int{bits}", activations="none", **recipe)


METHODS: dict[str, Method] = {
    "int8": run,
    "int8, embeddings too": partial(run, embeddings="int8"),
    "int4, int8 inputs": partial(run, weights="int4"),
    "int4": weights(4),
    "int4, symmetric": weights(4, asymmetric=False),
    "int4, rounding": weights(4, solver="baseline", effort="fast"),
    "int4, blocks of 32": weights(4, block=32),
    "int3": weights(3),
    "int2": weights(2),
    "int2, blocks of 32": weights(2, block=32),
    "2:4": partial(run, weights="float", activations="none", sparsity="2:4"),
}

if __name__ == "__main__":
    main(METHODS)
