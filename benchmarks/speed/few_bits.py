"""MiniLM as onnxruntime's transformer optimizer leaves it: 4-bit weights in blocks of 32 at each accuracy level.

    python -m benchmarks.speed.few_bits --shared DIR --models DIR

Weights are rounded to nearest, so that nothing but the kernels differs. Writes a page.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.transformers import optimizer

from benchmarks.common.evaluation import sts_spearman
from benchmarks.common.tables import machine, markdown
from onnx_obc import Recipe, compress
from onnx_obc.core.arrays import Feed
from onnx_obc.targets.bench import bench

PAGE = Path(__file__).parents[1] / "results" / "few_bits.md"
EXPORTED, OPTIMIZED = "float32, as exported", "float32, optimized"
BATCHES = (1, 16)
TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {EXPORTED: args.models / "minilm.onnx", OPTIMIZED: Path(folder) / "optimized.onnx"}
        fused = optimizer.optimize_model(str(files[EXPORTED]), model_type="bert", num_heads=12, hidden_size=384)
        fused.save_model_to_file(str(files[OPTIMIZED]))
        for level in (None, 0, 4):
            name = "int4-b32, Q/DQ" if level is None else f"int4-b32, accuracy level {level}"
            files[name] = Path(folder) / f"{level}.onnx"
            recipe = Recipe(
                weights="int4", activations="none", block=32, accuracy_level=level, solver="baseline", effort="fast",
                measure_speed=False,
            )  # fmt: skip
            compress(files[OPTIMIZED], [sentences(1, seed) for seed in range(64)], recipe, files[name])
        timed = {batch: bench(list(files.values()), "onnxruntime", sentences(batch), threads=1) for batch in BATCHES}
        rows = []
        for index, (name, path) in enumerate(files.items()):
            score = sts_spearman(path, args.shared / "data/stsb/stsb_test.csv", args.models / "minilm-tokenizer.json")
            found = [timed[batch].files[index] for batch in BATCHES]
            speeds = [cell for one in found for cell in (f"{1000 * one.seconds:.1f}", f"{one.ratio:.2f}")]
            rows.append([name, f"{path.stat().st_size / 1e6:.1f}", f"{score.value:.4f}", *speeds])
            print(*rows[-1], flush=True)
    header = ["file", "MB", "Spearman", *(cell for n in BATCHES for cell in (f"batch {n}, ms", "times faster"))]
    PAGE.write_text(
        f"""# Weights of 4 bits at each accuracy level

`python -m benchmarks.speed.few_bits`: MiniLM as onnxruntime's transformer optimizer leaves it, {timed[1].runtime} on
one thread, sentences of {TOKENS} tokens, on {machine()}. Weights are rounded to nearest,
so that nothing but the kernels differs. *Times faster* than the file as exported, the files in turn.

{markdown(header, rows)}
""",
        encoding="utf-8",
    )


def sentences(batch: int, seed: int = 0) -> Feed:
    """Tokens at random."""
    ids = np.random.default_rng(seed).integers(1000, 20000, (batch, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


if __name__ == "__main__":
    main()
