"""What engines make of it: accuracy and measured speed of dense, uniform and budgeted models, each in its own runtime.

    python -m benchmarks.speed.runtimes                                   # everything: hours on two cores
    python -m benchmarks.speed.runtimes --only ResNet-56 --runtime deepsparse

For each engine that is installed, at a small and a large batch: dense float32, every layer at 8w8a, and levels chosen
for a speed-up of 2, 3, 4 and 5 (`--budget latency=4x`), as far as the engine can be that fast; for MiniLM also 4-bit
weights alone. The levels are 8w8a, and
for DeepSparse also blocks of four at eight sparsities with it. Databases are kept in --databases. Nothing else should
run meanwhile.

A finished row is added to benchmarks/results/runtimes.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import Subject
from benchmarks.common.tables import machine, markdown
from onnx_obc import ObcError, Recipe, build, compress, open_database, parse_budget, retarget
from onnx_obc.core.arrays import Feed
from onnx_obc.core.level import FLOAT, Choice, parse_choice
from onnx_obc.database.open import Database
from onnx_obc.graph.save import file_bytes
from onnx_obc.pipeline.finish import Destination
from onnx_obc.pipeline.speed import timing_feed
from onnx_obc.targets.bench import bench
from onnx_obc.targets.check import check_file
from onnx_obc.targets.registry import TARGETS

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("ResNet-56", "EfficientNet-Lite0", "MiniLM")
RUNTIMES = ("onnxruntime", "openvino", "deepsparse")
BATCHES = (1, 64)
BLOCKS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
LEVELS = dict.fromkeys(RUNTIMES, "8w8a") | {
    "deepsparse": ",".join(["8w8a", *(f"block4-{sparsity}+8w8a" for sparsity in BLOCKS)])
}
BLOCKS_OF_64 = "int4 weights, blocks of 64"
BUDGETS = (2, 3, 4, 5)
NAMED = ("dense float32", "8w8a", BLOCKS_OF_64, *(f"latency={factor}x" for factor in BUDGETS))  # the rows of a batch


def run(subject: Subject, runtime: str, databases: Path, rows: Rows) -> None:
    try:
        version = TARGETS[runtime].engine.version()
    except ObcError as error:
        print(f"{runtime} is skipped: {error}")
        return
    folder = databases / f"{subject.path.stem}-{runtime}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    recipe = Recipe(target=runtime)
    built = build(subject.path, subject.calibration, LEVELS[runtime], folder, recipe, data=subject.options)
    print(f"{subject.name} {version}: built in {time.perf_counter() - began:.0f} s, {built.solved} solved", flush=True)
    database = open_database(folder)
    for batch in BATCHES:
        # what budgets of latency are about, so that figures compare
        feed = timing_feed(database.folded, database.samples["calibration"], batch)
        with tempfile.TemporaryDirectory() as scratch:
            for name in NAMED:
                if name == BLOCKS_OF_64 and (subject.name != "MiniLM" or runtime == "deepsparse"):
                    continue
                if (subject.name, runtime, batch, name) in rows:
                    continue
                path = Path(scratch) / "model.onnx"
                try:
                    about = make(database, subject, name, batch, path)
                except ObcError as error:  # e.g. an engine that is not that fast at these levels
                    row = {"error": " ".join(str(error).split())}
                else:
                    row = about | figures(subject, runtime, path, feed)
                row |= {"model": subject.name, "runtime": runtime, "version": version, "batch": batch, "name": name}
                rows.add(row)
                print("  ", {k: v for k, v in row.items() if k not in ("model", "version")}, flush=True)


def make(database: Database, subject: Subject, name: str, batch: int, path: Path) -> dict[str, Any]:
    """Write the model of a row."""
    recipe = Recipe(target=database.manifest.recipe["target"])
    if name == "dense float32":
        path.write_bytes(subject.path.read_bytes())
        return {}
    if name == BLOCKS_OF_64:
        recipe = recipe.model_copy(update={"weights": "int4", "block": 64, "activations": "none"})
        compress(subject.path, subject.calibration, recipe, path, data=subject.options)
        return {}
    if name == "8w8a":
        profile = {
            n: next((c for c in found if c == parse_choice(name)), Choice(FLOAT))
            for n, found in database.choices.items()
        }
        database.write(profile, recipe, Destination(path))
        return {}
    (result,) = retarget(database, [parse_budget(name)], [path], recipe={"timing_batch": batch})
    search = result.report.search or {}
    return {"latency": search["latency"], "predicted_loss": search["predicted_loss"]}


def figures(subject: Subject, runtime: str, path: Path, feed: Feed) -> dict[str, Any]:
    found = bench((subject.path, path), runtime, feed)
    dense, timed = found.files
    kept, promised = check_file(path, runtime, feed).count("int8")
    score = subject.score(path, None)
    return {
        "score": score.value,
        "metric": subject.metric,
        "dense_ms": 1e3 * dense.seconds,
        "ms": 1e3 * timed.seconds,
        "ratio": timed.ratio,
        "quartiles": [timed.low, timed.high],
        "bytes": file_bytes(path),
        "fused": [kept, promised],
    }


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for model in NAMES:
        for runtime in RUNTIMES:
            found = sorted(
                (row for row in rows if (row["model"], row["runtime"]) == (model, runtime)),
                key=lambda row: (row["batch"], NAMED.index(row["name"])),
            )
            if not found:
                parts.append(f"## {model}, {runtime}: not run\n")
                continue
            cells = [cell(row) for row in found]
            header = ("batch", "model", "score", "predicted ×", "measured ×", "quartiles", "ms", "MB", "in integers")
            parts.append(f"## {model}, {found[0]['version']}\n\n{markdown(header, cells, left=2)}\n")
    return f"""# What engines make of it

`python -m benchmarks.speed.runtimes`, on {machine()}. Every figure is of the engine that the section names, and
*measured* is how many times faster the file runs than the dense float32 file in the same engine, in turn with it: the
median of 15 rounds, with quartiles. *Predicted* is what the table of layer times said. *In integers*: of the products
that are quantized in the file, how many the engine runs so. *Score*: top-1 in %, or Spearman's correlation, computed by
onnxruntime from the written file; corrections included. *Refused*: the engine is not that fast with these levels;
how fast it was at most. MiniLM runs on sentences of 51 tokens.

What keeps engines from more: onnxruntime and OpenVINO skip no zeros here, so all layers at 8w8a are their limit. In
DeepSparse, EfficientNet-Lite0 spends a third of its time at 8w8a in depthwise convolutions, which have no sparse
kernel, and its 1×1 convolutions have few channels to skip.

{chr(10).join(parts)}"""


def cell(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        most = re.search(r"([\d.]+)x at most", row["error"])
        return (str(row["batch"]), row["name"], "refused", most[1] if most else "", *[""] * 5)
    percent = row["metric"] == "top-1"
    timed = row.get("latency") or {}
    return (
        str(row["batch"]),
        row["name"],
        f"{100 * row['score']:.2f}" if percent else f"{row['score']:.4f}",
        f"{timed['predicted']:.2f}" if timed else "",
        f"{row['ratio']:.2f}",
        "{:.2f} … {:.2f}".format(*row["quartiles"]),
        f"{row['ms']:.2f}",
        f"{row['bytes'] / 1e6:.1f}",
        "{} of {}".format(*row["fused"]) if row["fused"][1] else "",
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runtime", choices=RUNTIMES, action="append", help="only this engine; may be given again")
    options = parser.parse_args()
    runtimes = tuple(options.runtime or RUNTIMES)

    def work(subject: Subject, rows: Rows, _: Path) -> None:
        for runtime in runtimes:
            run(subject, runtime, options.databases, rows)

    key = ("model", "runtime", "batch", "name")
    measure("runtimes", key, options, work, page, lambda row: row["runtime"] in runtimes)


if __name__ == "__main__":
    main()
