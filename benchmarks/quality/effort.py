"""What `--effort normal` and `best` give at uniform levels, and what they take.

    python -m benchmarks.quality.effort                         # everything: hours on two cores
    python -m benchmarks.quality.effort --only ResNet-20 --levels 2:4 int2-asym --efforts normal

8w8a, which one command would make no other way, is solved once into a database in --databases, where parts that were
trained are kept too; levels of few bits, which are solved in order or whose parts are trained, and those with zeros are
made by one command each. A finished row is added to benchmarks/results/effort.jsonl at once, and rows that are there
are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.evaluation import output_loss
from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from benchmarks.quality.nonuniform import built, uniform
from onnx_obc import Recipe, compress
from onnx_obc.core.level import parse_choice
from onnx_obc.database.open import Database
from onnx_obc.pipeline.finish import Destination
from onnx_obc.pipeline.report import Report

LEVELS: dict[str, dict[str, Any] | None] = {  # what a recipe says of each; None: solved into a database
    "8w8a": None,
    "4w4a": {"weights": "int4", "activations": "int4"},
    "int4-asym": {"weights": "int4", "activations": "none"},
    "int3-asym": {"weights": "int3", "activations": "none"},
    "int2-asym": {"weights": "int2", "activations": "none"},
    "sparse-0.60": {"weights": "float", "activations": "none", "sparsity": "0.6"},
    "2:4": {"weights": "float", "activations": "none", "sparsity": "2:4"},
    "2:4+8w8a": {"sparsity": "2:4"},
    "4:8": {"weights": "float", "activations": "none", "sparsity": "4:8"},
    "block4-0.50": {"weights": "float", "activations": "none", "sparsity": "block4:0.5"},
}
EFFORTS = ("normal", "best")


def run(
    subject: Subject, levels: Sequence[str], efforts: Sequence[str], databases: Path, rows: Rows, scratch: Path
) -> None:
    """Score every level at the efforts that are not there yet."""
    wanted = [(level, effort) for level in levels for effort in efforts if (subject.name, level, effort) not in rows]
    if not wanted:
        return
    dense = subject.score(subject.path, None)
    path, folder = scratch / "model.onnx", databases / f"{subject.path.stem}-effort"
    for level, effort in wanted:
        database = built(subject, [level], folder) if LEVELS[level] is None else None
        began = time.perf_counter()
        report = _made(subject, level, effort, path, database)
        seconds = time.perf_counter() - began
        score = subject.score(path, dense.predictions)
        row = {
            "model": subject.name,
            "level": level,
            "effort": effort,
            "metric": subject.metric,
            "dense": dense.value,
            "score": score.value,
            "loss": output_loss(dense, score, subject.classifier),
            "corrections": [vars(attempt) for attempt in report.corrections],
            "seconds": seconds,
        }
        rows.add(row)
        print(
            f"{subject.name} {level} {effort}: {score.value:.4f}, loss {row['loss']:.5f} ({seconds:.0f} s)", flush=True
        )


def _made(subject: Subject, level: str, effort: str, path: Path, database: Database | None) -> Report:
    """The report on a model at this level and effort, which is written; by one command where no database is given."""
    recipe = Recipe.model_validate({"verify": False, "effort": effort, **(LEVELS[level] or {})})
    if database is None:
        return compress(subject.path, subject.calibration, recipe, path, data=subject.options).report
    return database.write(uniform(database, parse_choice(level)), recipe, Destination(path)).report


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for model in NAMES:
        for level in LEVELS:
            found = {row["effort"]: row for row in rows if (row["model"], row["level"]) == (model, level)}
            if "normal" not in found:
                continue
            normal, best = found["normal"], found.get("best")
            percent = normal["metric"] == "top-1"
            pair = [normal] if best is None else [normal, best]
            scores = [
                f"{100 * x:.1f}" if percent else f"{x:.4f}" for x in (normal["dense"], *(row["score"] for row in pair))
            ]
            losses = [f"{row['loss']:.5f}" if row["loss"] < 0.01 else f"{row['loss']:.4f}" for row in pair]
            seconds = [f"{row['seconds']:.0f}" for row in pair]
            change = "" if best is None else f"{100 * (best['loss'] / normal['loss'] - 1):+.0f} %"
            blank = [""] if best is None else []
            cells.append((model, level, *scores, *blank, *losses, *blank, change, *seconds, *blank))
    scored = ("dense", "normal", "best", "loss, normal", "loss, best", "change", "s, normal", "s, best")
    header = ("model", "level", *scored)
    return f"""# What `--effort` gives

`python -m benchmarks.quality.effort`, on {machine()}. Top-1 in %, for MiniLM Spearman's correlation on STS-B;
the loss is the mean KL divergence from the dense model on the same test data, for MiniLM the relative squared error of
embeddings.

Every layer is at the level, or without its pattern where that is impossible. `normal` corrects statistics, solves
integer weights of few bits in order, reorders channels for patterns, and trains parts of a small model, 100 steps each,
where weights have zeros or inputs 4 bits; `best` trains them at every level, 100 steps each and 400, and goes on with
what is better on held-out samples. (Rows of `best` of ResNet-56 and EfficientNet-Lite0 are older, 400 steps alone, but
for 8w8a, 4:8 and 2:4 with 8w8a of the latter. Where `normal` trains too, held-out samples prefer these, but for 4w4a of
EfficientNet-Lite0: there `best` now comes to what `normal` does; in those of 8w8a and 2:4+8w8a trained ranges of
inputs still could pass the Clip in front of them, which they may not any more.) 8w8a was solved into a database
before, so that its seconds are those of all that follows; all others are made by one command each. Nothing ran beside
EfficientNet-Lite0's int4-asym and 2:4 at `normal`, and next to nothing beside its 2:4+8w8a at `best`; other work ran
beside all others, so that seconds are an upper bound. Models, calibration and evaluation are those of accuracy.md.
EfficientNet-Lite0 is scored on 500 images: differences under 1.5 points are noise there, and the loss is not.

{markdown(header, cells, left=2)}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--efforts", choices=EFFORTS, nargs="+", default=list(EFFORTS), help="only these efforts")
    options = parser.parse_args()
    measure(
        "effort",
        ("model", "level", "effort"),
        options,
        lambda subject, rows, scratch: run(subject, options.levels, options.efforts, options.databases, rows, scratch),
        page,
        lambda row: row["level"] in options.levels and row["effort"] in options.efforts,
    )


if __name__ == "__main__":
    main()
