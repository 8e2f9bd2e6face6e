"""What `--effort best` gains over `--effort normal`, at uniform levels, and what it takes.

    python -m benchmarks.quality.reconstruction                         # everything: hours on two cores
    python -m benchmarks.quality.reconstruction --only ResNet-20

Levels are solved once into a database in --databases; both efforts start from there. A finished row is added to
benchmarks/results/reconstruction.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.evaluation import output_loss
from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from benchmarks.quality.nonuniform import built, uniform
from onnx_obc import Recipe
from onnx_obc.core.level import parse_choice
from onnx_obc.pipeline.finish import Destination

LEVELS = ("4w4a", "int4-asym", "int3-asym", "int2-asym", "2:4", "4:8", "sparse-0.60", "block4-0.50")
EFFORTS = ("normal", "best")


def run(subject: Subject, levels: Sequence[str], databases: Path, rows: Rows) -> None:
    """Build what is missing, and score every level at both efforts that is not there yet."""
    wanted = [(level, effort) for level in levels for effort in EFFORTS if (subject.name, level, effort) not in rows]
    if not wanted:
        return
    database = built(subject, levels, databases / f"{subject.path.stem}-efforts")
    dense = subject.score(subject.path, None)
    for level, effort in wanted:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            recipe = Recipe.model_validate({"verify": False, "effort": effort})
            result = database.write(uniform(database, parse_choice(level)), recipe, Destination(path))
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
            "corrections": [vars(attempt) for attempt in result.report.corrections],
            "seconds": seconds,
        }
        rows.add(row)
        print(
            f"{subject.name} {level} {effort}: {score.value:.4f}, loss {row['loss']:.5f} ({seconds:.0f} s)", flush=True
        )


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for model in NAMES:
        for level in LEVELS:
            found = {row["effort"]: row for row in rows if (row["model"], row["level"]) == (model, level)}
            if found.keys() != set(EFFORTS):
                continue
            normal, best = (found[effort] for effort in EFFORTS)
            percent = normal["metric"] == "top-1"
            scores = [
                f"{100 * x:.1f}" if percent else f"{x:.4f}" for x in (normal["dense"], normal["score"], best["score"])
            ]
            losses = [f"{row['loss']:.4f}" for row in (normal, best)]
            change = f"{100 * (best['loss'] / normal['loss'] - 1):+.0f} %"
            seconds = [f"{row['seconds']:.0f}" for row in (normal, best)]
            cells.append((model, level, *scores, *losses, change, *seconds))
    header = (
        "model",
        "level",
        "dense",
        "normal",
        "best",
        "loss, normal",
        "loss, best",
        "change",
        "s, normal",
        "s, best",
    )
    return f"""# What training parts of the model gains

`python -m benchmarks.quality.reconstruction`, on {machine()}. Top-1 in %, for MiniLM Spearman's correlation on STS-B;
the loss is the mean KL divergence from the dense model on the same test data, for MiniLM the relative squared error of
embeddings.

Every layer is at the level, or without its pattern where that is impossible, and solved into a database before: seconds
are those of all that follows, for `--effort normal` statistics, for `best` reconstruction too. Other work ran beside
these, so that seconds are an upper bound. Models, calibration and evaluation are those of accuracy.md.
EfficientNet-Lite0 is scored on 500 images: differences under 1.5 points are noise there, and the loss is not.

{markdown(header, cells, left=2)}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS), help="only these levels")
    options = parser.parse_args()
    measure(
        "reconstruction",
        ("model", "level", "effort"),
        options,
        lambda subject, rows, _: run(subject, options.levels, options.databases, rows),
        page,
        lambda row: row["level"] in options.levels,
    )


if __name__ == "__main__":
    main()
