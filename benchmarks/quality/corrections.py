"""What corrections, the sequential mode and global AdaPrune gain, at uniform levels.

    python -m benchmarks.quality.corrections                         # everything: hours on two cores
    python -m benchmarks.quality.corrections --only ResNet-20

Every level is solved once into a database in --databases; each variant starts from there. A finished row is added to
benchmarks/results/corrections.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.subjects import NAMES, Subject, find_subjects
from benchmarks.common.tables import machine, markdown
from benchmarks.quality.nonuniform import uniform
from onnx_obc import Recipe, build, open_database
from onnx_obc.core.level import parse_choice
from onnx_obc.core.progress import Stopwatch
from onnx_obc.database.open import material_of, stitch
from onnx_obc.pipeline.finish import finish

RESULTS = Path(__file__).parents[1] / "results"
LEVELS = ("8w8a", "int4-asym", "int3-asym", "2:4", "2:4+8w8a", "sparse-0.60")
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"correct": False},
    "corrections": {},
    "sequential": {"correct": False, "sequential": True},
    "sequential + corrections": {"sequential": True},
    "AdaPrune + corrections": {"global_adaprune": 5},
}


def run(
    subject: Subject,
    levels: Sequence[str],
    variants: Sequence[str],
    databases: Path,
    done: set[tuple[str, ...]],
    file: Path,
) -> None:
    """Build what is missing, and score every level and variant that is not there yet."""
    wanted = [(level, name) for level in levels for name in variants if (subject.name, level, name) not in done]
    if not wanted:
        return
    target = databases / f"{subject.path.stem}-levels"
    target.parent.mkdir(parents=True, exist_ok=True)
    build(subject.path, subject.calibration, ",".join(levels), target, data=subject.options)
    database = open_database(target)
    dense = subject.score(subject.path, None).value
    for level, name in wanted:
        recipe = Recipe(verify=False, **VARIANTS[name])
        began = time.perf_counter()
        plan, solved = stitch(database, uniform(database, parse_choice(level)), recipe)
        material = material_of(database)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            result = finish(material, plan, solved, database.ranges, recipe, path, (), Stopwatch(), lambda *_: None)
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
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--databases", type=Path, default=Path("work-models/databases"), help="where databases are")
    parser.add_argument("--only", choices=NAMES, action="append", help="only this model; may be given again")
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=list(VARIANTS), help="only these")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page again")
    options = parser.parse_args()
    file = RESULTS / "corrections.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["model"], row["level"], row["variant"]) for row in rows}
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), tuple(options.only or NAMES)):
                run(subject, options.levels, options.variants, options.databases, done, file)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not rows:
        sys.exit("there is nothing to report")
    (RESULTS / "corrections.md").write_text(page(rows))


if __name__ == "__main__":
    main()
