"""Several budgets of size from one database, and a plot of what they reached.

python examples/budget_and_plot.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib
import onnx
from onnx import numpy_helper

from onnx_obc import DataOptions, Evaluation, build, parse_budget, retarget
from onnx_obc import SearchOptions as Options

MODELS = Path(__file__).parents[1] / "models"
BUDGETS = ("size=0.25x", "size=0.18x")


def main(folder: Path) -> None:
    """Solve every layer once, then ask as often as you like: each answer takes seconds."""
    model, samples = MODELS / "digits.onnx", MODELS / "digits_calibration.npz"
    build(model, samples, "int8,int4-asym", folder / "DB", data=DataOptions(samples=128))
    outputs = [folder / f"digits-{number}.onnx" for number in range(len(BUDGETS))]
    judged = Evaluation("agreement")  # how often the class is the dense model's, on held-out samples: no labels needed
    options = Options(sensitivity="layer", evaluation=judged)
    results = retarget(folder / "DB", [parse_budget(text) for text in BUDGETS], outputs, options)

    weights = sum(numpy_helper.to_array(each).nbytes for each in onnx.load(model).graph.initializer)
    points = []
    for text, result in zip(BUDGETS, results, strict=True):
        size, loss = result.report.totals["bytes_after"] / weights, result.report.output_loss
        points.append((size, loss))
        print(f"{text}: {size:.3f} of the weights' bytes, output loss {loss:.2g}")

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axis.plot(*zip(*points, strict=True), "o-")
    axis.set(xlabel="bytes of the weights, of the dense model's", ylabel="output loss", yscale="log")
    figure.savefig(folder / "pareto.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
