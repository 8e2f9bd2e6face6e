"""What reordering channels before the solver gains, with patterns and with scales in blocks.

    python -m benchmarks.quality.permutation                         # everything: an hour on two cores
    python -m benchmarks.quality.permutation --only ResNet-20

Every level is compressed as a user would, and once more without the reordering. A finished row is added to
benchmarks/results/permutation.jsonl at once; the table is a section of benchmarks/results/beyond.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common.evaluation import output_loss
from benchmarks.common.harness import RESULTS, Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from onnx_obc import Recipe, compress
from onnx_obc.pipeline import transform

LEVELS: dict[str, dict[str, Any]] = {
    "2:4": {"weights": "float", "sparsity": "2:4"},
    "4:8": {"weights": "float", "sparsity": "4:8"},
    "block4-0.50": {"weights": "float", "sparsity": "block4:0.5"},
    "int4-b32": {"weights": "int4", "block": 32},
}
ALONE = {"activations": "none", "sequential": False, "reconstruction": False, "measure_speed": False}
PAGE, TITLE = RESULTS / "beyond.md", "## Channel permutation"
KIND = ("channel permutation",)


def run(subject: Subject, levels: Sequence[str], rows: Rows, scratch: Path) -> None:
    """Compress and score what is not there yet."""
    wanted = [
        (level, reordered)
        for level in levels
        for reordered in (False, True)
        if (subject.name, level, reordered) not in rows and (level != "int4-b32" or subject.name == "MiniLM")
    ]
    dense = subject.score(subject.path, None) if wanted else None
    for level, reordered in wanted:
        assert dense is not None
        recipe = Recipe.model_validate(ALONE | LEVELS[level])
        way = transform.permuted if reordered else (lambda folded, *_: (folded, ()))
        began = time.perf_counter()
        with mock.patch.object(transform, "permuted", way):
            path = scratch / "model.onnx"
            report = compress(subject.path, subject.calibration, recipe, path, data=subject.options).report
        seconds = time.perf_counter() - began
        score = subject.score(path, dense.predictions)
        attempt = next((x for x in report.corrections if x.kinds == KIND), None)
        row = {
            "model": subject.name,
            "level": level,
            "reordered": reordered,
            "metric": subject.metric,
            "dense": dense.value,
            "score": score.value,
            "layers": len(report.layers),
            "layer_losses": sum(layer.loss_relative for layer in report.layers),
            "held_out": report.output_loss,
            "loss": output_loss(dense, score, subject.classifier),
            "attempt": None if attempt is None else vars(attempt),
            "seconds": seconds,
        }
        rows.add(row)
        print(row, flush=True)


def section(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for model in NAMES:
        for level in LEVELS:
            found = {row["reordered"]: row for row in rows if (row["model"], row["level"]) == (model, level)}
            if len(found) < 2:
                continue
            plain, other = found[False], found[True]
            percent, attempt = plain["metric"] == "top-1", other["attempt"]
            tried = "0" if attempt is None else str(attempt["sites"]) if attempt["kept"] else "undone"
            losses = [
                f"{plain[key]:.4g} → {other[key]:.4g} ({other[key] / plain[key] - 1:+.0%})"
                for key in ("layer_losses", "held_out", "loss")
            ]
            scores = [f"{100 * x:.1f}" if percent else f"{x:.4f}" for x in (plain["score"], other["score"])]
            took = f"{plain['seconds']:.0f} → {other['seconds']:.0f}"
            cells.append((model, level, str(plain["layers"]), tried, *losses, " → ".join(scores), took))
    header = ("model", "level", "layers", "orders", "layer losses", "held-out loss", "test loss", "score", "seconds")
    return f"""{TITLE}

`python -m benchmarks.quality.permutation`, on {machine()}.
Each figure without → with the reordering, all else by default, activations in floats. *Layers*: compressed; *orders*:
how many sets of channels got one. *Layer losses*: the sum of the relative losses on calibration data, after the solver.
*Held-out loss*: the output loss on the calibration samples that were held out, *test loss*: the same on the test data;
KL in nats, for MiniLM the relative squared error of embeddings. Scores are top-1 in %, for MiniLM Spearman's
correlation on STS-B; EfficientNet-Lite0 is scored on 500 images. *Seconds*: of the whole run, other work beside it.

{markdown(header, cells, left=2)}
"""


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with this section in its place, or at the end."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Beyond the layers\n"
    before, found, after = text.partition(TITLE + "\n")
    _, mark, rest = after.partition("\n## ")
    return f"{before.rstrip()}\n\n{section(rows)}" + (f"\n{mark.strip()} {rest}" if found and mark else "")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--levels", choices=list(LEVELS), nargs="+", default=list(LEVELS), help="only these levels")
    options = parser.parse_args()
    measure(
        "permutation",
        ("model", "level", "reordered"),
        options,
        lambda subject, rows, scratch: run(subject, options.levels, rows, scratch),
        page,
        lambda row: row["level"] in options.levels,
        path=PAGE,
    )


if __name__ == "__main__":
    main()
