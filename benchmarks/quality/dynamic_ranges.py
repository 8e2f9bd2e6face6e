"""Ranges of inputs: of calibration data, of each batch as it runs, and in 16 bits, on MiniLM's sentences.

    python -m benchmarks.quality.dynamic_ranges

Weights are rounded to 8 bits, a scale for each row, so that files differ in their inputs alone. Writes
benchmarks/results/dynamic_ranges.md.
"""

from __future__ import annotations

import csv
import tempfile
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.common.evaluation import embed
from benchmarks.common.harness import RESULTS
from benchmarks.common.subjects import find_subjects, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.options import Activations
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.targets.bench import bench

KINDS: tuple[Activations, ...] = ("int8", "dynamic", "int16", "none")
BATCHES, SENTENCES = (1, 8, 50), 690  # of the test set, the first text of each pair


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--samples", type=int, default=256, help="sentences that calibrate")
    options = parser.parse_args()
    tokenizer = options.models / "minilm-tokenizer.json"
    with (
        tempfile.TemporaryDirectory() as scratch,
        (options.shared / "data/stsb/stsb_test.csv").open(newline="", encoding="utf-8") as file,
    ):
        (subject,) = find_subjects(options.models, options.shared, Path(scratch), ("MiniLM",))
        sentences = [row[0] for row in csv.reader(file)][:SENTENCES]
        data = replace(subject.options, samples=options.samples)
        dense = embed(subject.path, sentences, tokenizer, threads=1)  # (sentences, width)
        files, losses = [subject.path], []
        for kind in KINDS:
            files.append(Path(scratch) / f"{kind}.onnx")
            recipe = Recipe(activations=kind, solver="baseline", verify=False, measure_speed=False)
            compress(subject.path, subject.calibration, recipe, files[-1], data=data)
            losses.append([_loss(dense, embed(files[-1], sentences, tokenizer, n, 1)) for n in BATCHES])
            print(kind, losses[-1], flush=True)
        samples = open_data(ir.load(subject.path), subject.calibration, replace(subject.options, samples=1))
        timed = bench(files, "onnxruntime", next(samples.feeds()), 1).files[1:]
    cells = [
        (kind, *(f"{loss:.2e}" for loss in row), f"{one.ratio:.2f}", f"{one.low:.2f} … {one.high:.2f}")
        for kind, row, one in zip(KINDS, losses, timed, strict=True)
    ]
    header = ("activations", *(f"batches of {n}" for n in BATCHES), "speed", "quartiles")
    text = (
        "# Ranges of inputs\n\n`python -m benchmarks.quality.dynamic_ranges`. MiniLM, 8-bit weights rounded to "
        f"nearest, {options.samples} sentences calibrate. Relative squared error of the embeddings of {SENTENCES} "
        "sentences, in batches of like length; times the dense model's speed in onnxruntime, one sentence of 20 "
        f"tokens, one thread, in turn.\n\n{markdown(header, cells)}\n\nMeasured on {machine()}.\n"
    )
    (RESULTS / "dynamic_ranges.md").write_text(text, encoding="utf-8")


def _loss(dense: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(dense - found).sum() / np.square(dense).sum())


if __name__ == "__main__":
    main()
