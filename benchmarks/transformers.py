"""Transformers at the levels that they are shipped at, against onnxruntime's own quantizers on the same data.

    python -m benchmarks.transformers                        # the language model, and Whisper's three files
    python -m benchmarks.transformers --only LanguageModel --again
    python -m benchmarks.transformers --table                # run nothing, only write the page again

A finished row is kept in benchmarks/results/transformers.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir

from benchmarks.common.evaluation import Score, output_loss
from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.subjects import DECODERS, Subject, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.options import Activations
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.targets.bench import bench

NAMES = (*DECODERS, "MiniLM")
RECIPES: dict[str, dict[str, Any]] = {
    "int4, blocks of 32": {"weights": "int4", "activations": "none", "block": 32},
    "int8": {"weights": "int8"},
    "int8, weights alone": {"weights": "int8", "activations": "none"},
    "dynamic int8": {"weights": "int8", "activations": "dynamic"},
    "int8, activations of 16 bits": {"weights": "int8", "activations": "int16"},
    "2:4": {"weights": "float", "activations": "none", "sparsity": "2:4"},
}
TIME_LIMITS = {"Whisper": 30.0}  # seconds for solving all layers of a file
OURS, ROUNDING, THEIRS = "onnx-obc", "rounding", "onnxruntime"


def quantize_dynamic(source: Path, target: Path) -> None:
    """Weights of 8 bits, activations quantized as they come."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    quantize(source, target, weight_type=QuantType.QInt8, per_channel=True)


def matmul_nbits(source: Path, target: Path) -> None:
    """Weights rounded to 4 bits, with a scale and zero point for each 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)


THEIR_OWN: dict[str, Callable[[Path, Path], None]] = {
    "dynamic int8": quantize_dynamic,
    "int4, blocks of 32": matmul_nbits,
}


def speed(subject: Subject, file: Path) -> float:
    """How many times faster than the dense model a file runs in onnxruntime, in turn, on one sample at a time."""
    samples = open_data(ir.load(subject.path), subject.calibration, replace(subject.options, samples=1))
    return bench([subject.path, file], "onnxruntime", next(samples.feeds())).files[1].ratio


def levels(subject: Subject, rows: Rows, scratch: Path) -> None:
    """Add the rows of a model that are missing."""
    dense = subject.score(subject.path, None)
    add(subject, rows, "float", "dense", dense, dense, subject.path)
    data = calibration(subject)
    for level, recipe in RECIPES.items():
        if recipe.get("activations") not in (None, *get_args(Activations)):
            print(f"{subject.name} at {level} is skipped: this version of onnx-obc has no such activations")
            ours: dict[str, str] = {}
        else:
            ours = {OURS: "auto"} if subject.path.is_dir() else {OURS: "auto", ROUNDING: "baseline"}  # which takes long
        for tool, solver in ours.items():
            if (subject.name, level, tool) in rows:
                continue
            began, loss = time.perf_counter(), 0.0
            out = scratch / "ours" if subject.path.is_dir() else scratch / "ours.onnx"
            for source, target in files(subject, out):
                chosen = Recipe(**recipe, solver=solver, time_limit=TIME_LIMITS.get(subject.name), measure_speed=False)
                report = compress(source, data[source], chosen, target, data=subject.options).report
                loss += sum(layer.loss for layer in report.layers)
                print(f"{target.name}: {report.seconds}", *report.notes, sep="\n  ", flush=True)
            seconds = time.perf_counter() - began
            score = subject.score(out, dense.predictions)
            add(subject, rows, level, tool, dense, score, out, layer_loss=loss, seconds=seconds)
        if level in THEIR_OWN and (subject.name, level, THEIRS) not in rows:
            out = scratch / "theirs" if subject.path.is_dir() else scratch / "theirs.onnx"
            for source, target in files(subject, out):
                THEIR_OWN[level](source, target)
            add(subject, rows, level, THEIRS, dense, subject.score(out, dense.predictions), out)


def files(subject: Subject, out: Path) -> list[tuple[Path, Path]]:
    """The model's files, and where each goes if the model goes to `out`."""
    if not subject.path.is_dir():
        return [(subject.path, out)]
    out.mkdir(exist_ok=True)
    return [(path, out / path.name) for path in sorted(subject.path.glob("*.onnx"))]


def calibration(subject: Subject) -> dict[Path, object]:
    """What each of the model's files is calibrated on."""
    if not subject.path.is_dir():
        return {subject.path: subject.calibration}
    from benchmarks.common import speech  # which imports transformers

    return {
        subject.path / f"{name}.onnx": x for name, x in speech.calibration(subject.path, subject.calibration).items()
    }


def add(
    subject: Subject, rows: Rows, level: str, tool: str, dense: Score, score: Score, file: Path, **more: float
) -> None:
    """Keep one row."""
    row = {
        "model": subject.name,
        "level": level,
        "tool": tool,
        "bytes": sum(path.stat().st_size for path in (file.glob("*.onnx") if file.is_dir() else [file])),
        "metric": subject.metric,
        "score": score.value,
        "dense": dense.value,
        "agreement": score.agreement,
        "output_loss": output_loss(dense, score, subject.classifier),
        **more,
    }
    if file.is_file():  # of several files each would be called on its own
        row["speed"] = speed(subject, file) if tool != "dense" else 1.0
    rows.add(row)
    print(row, flush=True)


def page(rows: Sequence[Row]) -> str:
    """All rows as markdown."""
    parts = [
        "# Transformers",
        "`python -m benchmarks.transformers`. Calibrated on training text, scored on test text. *Rounding* is this "
        "tool with its solver off; *onnxruntime* is its `quantize_dynamic` and `MatMulNBitsQuantizer`. "
        "Output loss: KL divergence of the dense model's next token in nats, or the relative squared error of "
        "embeddings; layer loss: summed over the layers. Speed: times the dense model's in onnxruntime, in turn, on "
        "a sample of the calibration data. Whisper is the English tiny one, its three files together, on sentences "
        "spoken by espeak-ng, with half a minute for solving the layers of a file.",
    ]
    order = list(RECIPES)
    for name in NAMES:
        chosen = [row for row in rows if row["model"] == name]
        if not chosen:
            continue
        chosen.sort(key=lambda row: order.index(row["level"]) if row["level"] in order else -1)
        header = ("level", "by", "MB", chosen[0]["metric"], "change, %", "output loss", "layer loss", "speed")
        cells = [
            (
                row["level"],
                row["tool"],
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['score']:.4g}",
                f"{100 * (row['score'] / row['dense'] - 1):+.2f}",
                f"{row['output_loss']:.2e}",
                f"{row['layer_loss']:.4g}" if "layer_loss" in row else "",
                f"{row['speed']:.2f}" if "speed" in row else "",
            )
            for row in chosen
        ]
        parts += [f"## {name}", markdown(header, cells, left=2)]
    return "\n\n".join([*parts, f"Measured on {machine()}."]) + "\n"


def main() -> None:
    options = arguments(__doc__, NAMES).parse_args()
    measure("transformers", ("model", "level", "tool"), options, levels, page)


if __name__ == "__main__":
    main()
