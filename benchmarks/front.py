"""The figures of README.md, docs/choosing.md and docs/results.md: each stands between `<!-- NAME -->` and `<!-- / -->`.

python -m benchmarks.front           # writes them, and the plot
python -m benchmarks.front --check   # says which of them are not those of the results, and fails
python -m benchmarks.front --demo    # first runs the demo, into benchmarks/results/demo.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.tables import markdown
from benchmarks.peers.catalogue import LEVELS as LEVELS_OF_PEERS
from benchmarks.peers.page import beside_others

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "results" / "front.svg"
PAGES = (ROOT / "README.md", ROOT / "docs" / "choosing.md", ROOT / "docs" / "results.md")
MODELS = ("ResNet-20", "ResNet-56", "EfficientNet-Lite0", "MiniLM")
LEVELS = {
    "W8A8": "8w8a",
    "W4 asymmetric": "int4-asym",
    "W3 asymmetric": "int3-asym",
    "W2 asymmetric": "int2-asym",
    "2:4": "2:4",
    "2:4 W8A8": "2:4+8w8a",
    "4:8": "4:8",
    "block4 0.5": "block4-0.50",
    "sparse 0.6": "sparse-0.60",
}  # as the benchmarks of accuracy and of efforts name them
BESIDE_OTHERS = ("W8A8", "W4", "2:4")  # of the levels that benchmarks.peers compares
BITS = {8: "W8A8", 4: "W4 asymmetric", 3: "W3 asymmetric", 2: "W2 asymmetric"}
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """What a benchmark measured."""
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def accuracy() -> dict[tuple[str, str], Row]:
    """The benchmark of accuracy, with the default refinement, by model and level."""
    return {(row["model"], row["level"]): row for row in rows("accuracy") if row["refine"] == "auto"}


def score(value: float, metric: str) -> str:
    """A score as tables show it."""
    return f"{value:.3f}" if metric == "Spearman" else f"{100 * value:.1f}"


def demo() -> str:
    """The table that `onnx-obc demo` prints."""
    cells = [
        [row["level"], *(f"{100 * row[by]:.1f} %" for by in ("dense", "baseline", "exact")), f"{row['bytes']:,}"]
        for row in rows("demo")
    ]
    return markdown(("level", "dense", "rounding or magnitude", "onnx-obc", "file, bytes"), cells)


def levels() -> str:
    """Rounding or magnitude pruning → onnx-obc by default → `--effort best`, of whole models; layers alone (°) where
    the default was not measured."""
    found, efforts = accuracy(), {(row["model"], row["level"], row["effort"]): row for row in rows("effort")}
    cells = []
    dense = [score(found[model, "W8A8"]["dense"], found[model, "W8A8"]["metric"]) for model in MODELS]
    cells.append(["dense", *dense])
    for level, name in LEVELS.items():
        line = [level]
        for model in MODELS:
            row = found[model, level]
            given = [
                efforts[key]["score"] for effort in ("normal", "best") if (key := (model, name, effort)) in efforts
            ]
            shown = [score(value, row["metric"]) for value in (row["baseline"]["score"], *given)]
            alone = [] if given else [f"{score(row['exact']['score'], row['metric'])}°"]
            line.append(" → ".join([*shown, *alone]))
        cells.append(line)
    return markdown(("level", *MODELS), cells)


def peers() -> str:
    """What the others reach at a few levels."""
    return beside_others(rows("peers"), BESIDE_OTHERS)


def others() -> str:
    """The same at all of them."""
    return beside_others(rows("peers"), LEVELS_OF_PEERS)


def speeds() -> str:
    """How many times faster than the dense file each engine runs, at batch 64, and the score."""
    every = rows("runtimes")
    cells = []
    for model in dict.fromkeys(row["model"] for row in every):
        here = [row for row in every if row["model"] == model and row["batch"] == 64 and "ratio" in row]
        line = [model]
        for runtime in ("onnxruntime", "openvino", "deepsparse"):
            (row,) = [row for row in here if row["runtime"] == runtime and row["name"] == "8w8a"]
            line.append(f"{row['ratio']:.1f} at {score(row['score'], row['metric'])}")
        sparse = [row for row in here if row["runtime"] == "deepsparse" and row["name"].startswith("latency")]
        fastest = max(sparse, key=lambda row: row["ratio"])
        cells.append([*line, f"{fastest['ratio']:.1f} at {score(fastest['score'], fastest['metric'])}"])
    header = (
        "",
        "onnxruntime, 8w8a",
        "OpenVINO, 8w8a",
        "DeepSparse, 8w8a",
        "DeepSparse, fastest budget of latency met",
    )
    return markdown(header, cells)


FIGURES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "levels": levels,
    "peers": peers,
    "others": others,
    "speeds": speeds,
}


def plot(path: Path) -> None:
    """The score of each network against the bits of its weights, rounded and solved."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "front"
    from matplotlib import pyplot

    found = accuracy()
    figure, axes = pyplot.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    for axis, model in zip(axes, ("ResNet-56", "EfficientNet-Lite0", "MiniLM"), strict=True):
        for by, label, style in (("baseline", "rounding", "o--"), ("exact", "onnx-obc", "s-")):
            values = [found[model, level][by]["score"] for level in BITS.values()]
            factor = 1 if model == "MiniLM" else 100
            axis.plot(range(len(BITS)), [factor * value for value in values], style, label=label)
        axis.set_xticks(range(len(BITS)), ["8, inputs too", "4", "3", "2"])
        axis.set(title=model, xlabel="bits of a weight")
        axis.set_ylabel("Spearman" if model == "MiniLM" else "top-1, %")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def run_demo() -> None:
    """Run the demo into its results."""
    from onnx_obc.cli.demo import demo_rows

    found = [json.dumps(row) for row in demo_rows(lambda stage, done, total: None)]
    (RESULTS / "demo.jsonl").write_text("\n".join(found) + "\n", encoding="utf-8")


def written(text: str) -> str:
    """A page with the figures of the results in their places."""

    def replaced(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{FIGURES[match[1]]()}\n\n<!-- / -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- / -->", replaced, text, flags=re.DOTALL)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    if options.demo:
        run_demo()
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = [page.name for page, text in pages.items() if written(text) != text]
    if options.check:
        sys.exit(f"not the figures of benchmarks/results: {', '.join(stale)}" if stale else 0)
    for page, text in pages.items():
        page.write_text(written(text), encoding="utf-8")
    plot(PLOT)


if __name__ == "__main__":
    main()
