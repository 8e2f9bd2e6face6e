"""Half precision: a model in float32, the same in float16, and the first written in float16, at each level.

    python -m benchmarks.quality.half
    python -m benchmarks.quality.half --only ResNet-20 --again

The float16 model is made by onnxruntime's own converter, which keeps inputs and outputs float32. A finished row is kept
in benchmarks/results/half.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from benchmarks.common.evaluation import Score, output_loss
from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.subjects import Subject
from benchmarks.common.tables import machine, markdown
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.recipe import Recipe

NAMES = ("ResNet-20", "MiniLM")
RECIPES: dict[str, dict[str, Any]] = {
    "8w8a": {},
    "int4": {"weights": "int4", "activations": "none", "sequential": False},
    "2:4": {"weights": "float", "activations": "none", "sparsity": "2:4", "reconstruction": False},
}
WIDE, GIVEN, WRITTEN = "float32", "float16, given", "float16, written"


def levels(subject: Subject, rows: Rows, scratch: Path) -> None:
    """Add the rows of a model that are missing."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half, out = scratch / "half.onnx", scratch / "out.onnx"
    onnx.save(convert_float_to_float16(onnx.load(subject.path), keep_io_types=True), half)
    dense = subject.score(subject.path, None)
    for form, path in ((WIDE, subject.path), (GIVEN, half)):
        if (subject.name, "float", form) not in rows:
            _add(subject, rows, "float", form, dense, path)
    for level, recipe in RECIPES.items():
        for form, path in ((WIDE, subject.path), (GIVEN, half), (WRITTEN, subject.path)):
            if (subject.name, level, form) in rows:
                continue
            wanted = Recipe(**recipe, float16=form == WRITTEN, measure_speed=False)
            report = compress(path, subject.calibration, wanted, out, data=subject.options).report
            _add(subject, rows, level, form, dense, out, [note for note in report.notes if "float16" in note])


def _add(
    subject: Subject, rows: Rows, level: str, form: str, dense: Score, path: Path, notes: Sequence[str] = ()
) -> None:
    """Keep one row."""
    score = subject.score(path, dense.predictions)
    row = {
        "model": subject.name,
        "level": level,
        "form": form,
        "bytes": path.stat().st_size,
        "metric": subject.metric,
        "score": score.value,
        "output_loss": output_loss(dense, score, subject.classifier),
        "notes": list(notes),
    }
    rows.add(row)
    print(row, flush=True)


def page(rows: Sequence[Row]) -> str:
    """All rows as markdown."""
    parts = [
        "# Half precision",
        "`python -m benchmarks.quality.half`. *Given*: the model in float16, by onnxruntime's converter, goes in. "
        "*Written*: the float32 model goes in, and `--float16` writes what stays float in float16. Output loss against "
        "the float32 model: KL divergence in nats, or the relative squared error of embeddings. Run on a CPU, where "
        "onnxruntime computes much of a float16 file in float32: a GPU rounds more.",
    ]
    order = ["float", *RECIPES]
    for name in NAMES:
        chosen = sorted((row for row in rows if row["model"] == name), key=lambda row: order.index(row["level"]))
        if not chosen:
            continue
        header = ("level", "model", "MB", chosen[0]["metric"], "output loss")
        cells = [
            (row["level"], row["form"], f"{row['bytes'] / 1e6:.3f}", f"{row['score']:.4f}", f"{row['output_loss']:.2e}")
            for row in chosen
        ]
        parts += [f"## {name}", markdown(header, cells, left=2)]
    return "\n\n".join([*parts, f"Measured on {machine()}."]) + "\n"


def main() -> None:
    options = arguments(__doc__, NAMES).parse_args()
    measure("half", ("model", "level", "form"), options, levels, page)


if __name__ == "__main__":
    main()
