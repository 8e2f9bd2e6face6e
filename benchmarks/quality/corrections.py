"""What corrections, the sequential mode and global AdaPrune gain, at uniform levels.

    python -m benchmarks.quality.corrections                         # everything: hours on two cores
    python -m benchmarks.quality.corrections --only ResNet-20

Every level is solved once into a database in --databases; each variant starts from there. A finished row is added to
benchmarks/results/corrections.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from benchmarks.quality.nonuniform import built, uniform
from onnx_obc import Recipe
from onnx_obc.core.level import parse_choice
from onnx_obc.pipeline.finish import Destination

RESULTS = Path(__file__).parents[1] / "results"
LEVELS = ("8w8a", "int4-asym", "int3-asym", "2:4", "2:4+8w8a", "sparse-0.60")
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"effort": "fast"},
    "corrections": {},
    "sequential": {"effort": "fast", "sequential": True},
    "sequential + corrections": {"sequential": True},
    "AdaPrune + corrections": {"global_adaprune": 5},
}


def run(
    subject: Subject,
    levels: Sequence[str],
    variants: Sequence[str],
    databases: Path,
    rows: Rows,
) -> None:
    """Build what is missing, and score every level and variant that is not there yet."""
    wanted = [(level, name) for level in levels for name in variants if (subject.name, level, name) not in rows]
    if not wanted:
        return
    database = built(subject, levels, databases / f"{subject.path.stem}-levels")
    dense = subject.score(subject.path, None).value
    for level, name in wanted:
        recipe = Recipe(verify=False, **VARIANTS[name])
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            result = database.write(uniform(database, parse_choice(level)), recipe, Destination(path))
            seconds = time.perf_counter() - began
            score = subject.score(path, None).value
        row = {
            "model": subject.name,
            "level": level,
            "variant": name,
            "metric": subject.metric,
            "dense": dense,
            "score": score,
            "corrections": [vars(attempt) for attempt in result.report.corrections],
            "seconds": seconds,
        }
        rows.add(row)
        print(f"{subject.name} {level} {name}: {score:.4f} of {dense:.4f} ({seconds:.0f} s)", flush=True)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for model in NAMES:
        for level in LEVELS:
            found = {row["variant"]: row for row in rows if (row["model"], row["level"]) == (model, level)}
            if not found:
                continue
            first = next(iter(found.values()))
            percent = first["metric"] == "top-1"
            scores = {n: f"{100 * r['score']:.2f}" if percent else f"{r['score']:.4f}" for n, r in found.items()}
            dense = f"{100 * first['dense']:.2f}" if percent else f"{first['dense']:.4f}"
            dropped = [n for n, r in found.items() if any(not x["kept"] for x in r["corrections"])]
            cells.append((model, level, dense, *(scores.get(name, "") for name in VARIANTS), ", ".join(dropped)))
    header = ("model", "level", "dense", *VARIANTS, "with something dropped")
    return f"""# What corrections gain

`python -m benchmarks.quality.corrections`, on {machine()}. Top-1 in %, for MiniLM Spearman's correlation on STS-B.

Every layer is at the level, or without its pattern where that is impossible. *None*: solved on dense inputs, nothing
corrected. *Corrections*: batch-norm, norm and bias statistics on 96 calibration samples (128 or 256 when these were
run). *Sequential*: solved again in order, on up to 512 samples, whether or not it helps, while the tool keeps the
better of the two. *AdaPrune*: five epochs of global AdaPrune on up to 512 samples, then corrections. Each correction is
kept only if it lowers the output loss of other calibration samples: *with something dropped* names the variants in
which one was not. Models, calibration and evaluation are those of accuracy.md. EfficientNet-Lite0 is scored on 500
images: differences under 1.5 points are noise there.

{markdown(header, cells, left=2)}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=list(VARIANTS), help="only these")
    options = parser.parse_args()
    measure(
        "corrections",
        ("model", "level", "variant"),
        options,
        lambda subject, rows, _: run(subject, options.levels, options.variants, options.databases, rows),
        page,
        lambda row: row["level"] in options.levels and row["variant"] in options.variants,
    )


if __name__ == "__main__":
    main()
