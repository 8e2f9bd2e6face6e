"""MiniLM as onnxruntime's transformer optimizer leaves it: 4-bit weights in blocks of 32 at each accuracy level.

    python -m benchmarks.speed.few_bits --shared DIR --models DIR

Weights are rounded to nearest, so that nothing but the kernels differs. Prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from onnxruntime.transformers import optimizer

from benchmarks.common.evaluation import sts_spearman
from onnx_obc import Recipe, compress

ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32, as exported": args.models / "minilm.onnx"}
        files["float32, optimized"] = Path(folder) / "optimized.onnx"
        fused = optimizer.optimize_model(
            str(files["float32, as exported"]), model_type="bert", num_heads=12, hidden_size=384
        )
        fused.save_model_to_file(str(files["float32, optimized"]))
        samples = _sentences(64, 1, 32)
        for level in (None, 0, 4):
            name = "int4-b32, Q/DQ" if level is None else f"int4-b32, accuracy level {level}"
            files[name] = Path(folder) / f"{level}.onnx"
            recipe = Recipe(
                weights="int4", activations="none", block=32, accuracy_level=level, solver="baseline", effort="fast",
                measure_speed=False,
            )  # fmt: skip
            compress(files["float32, optimized"], samples, recipe, files[name])
        print("| file | MiB | Spearman | batch 1, ms | batch 16, ms |\n|---|---|---|---|---|")
        times = {batch: _times(files, batch) for batch in (1, 16)}
        for name, path in files.items():
            score = sts_spearman(path, args.shared / "data/stsb/stsb_test.csv", args.models / "minilm-tokenizer.json")
            size = path.stat().st_size / 2**20
            print(
                f"| {name} | {size:.1f} | {score.value:.4f} | {times[1][name]:.1f} | {times[16][name]:.0f} |",
                flush=True,
            )


def _sentences(count: int, batch: int, length: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(1000, 20000, (batch, length)),
            "attention_mask": np.ones((batch, length), np.int64),
            "token_type_ids": np.zeros((batch, length), np.int64),
        }
        for _ in range(count)
    ]


def _times(files: dict[str, Path], batch: int) -> dict[str, float]:
    """Milliseconds of a run on one thread, the files in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        n: onnxruntime.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for n, p in files.items()
    }
    (feed,) = _sentences(1, batch, 32)
    found: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(ROUNDS + 1):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, feed)
            if turn:
                found[name].append(1000 * (time.perf_counter() - began))
    return {name: median(taken) for name, taken in found.items()}


if __name__ == "__main__":
    main()
