"""Figure 2 of OBC: the squared error of one layer against its sparsity, by every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.harness import Rows
from benchmarks.common.subjects import Subject, open_data
from onnx_obc.calibration.capture import Chunk, capture
from onnx_obc.core.level import Level, Unstructured
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.layer import Prepared, prepare_layer
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.solver import Method, layer_loss, solve_levels

SPARSITIES = [step / 20 for step in range(2, 20)]  # 10 % to 95 %
METHODS = {
    "magnitude": Method("gmp"),
    "L-OBS": Method("lobs"),
    "AdaPrune": Method("adaprune", iterations=1000),
    "AdaPrune, least squares": Method("adaprune"),
    "ExactOBS": Method("exact"),
    "refined": Method("exact", "auto"),
}
LAYER = {"ResNet-20": 0, "EfficientNet-Lite0": 0, "MiniLM": 0}  # of the graph's layers


def prepared_layer(subject: Subject, samples: int | None = None) -> Prepared:
    """The layer of a subject that is looked at, with its Hessian."""
    dense = read_model(subject.path)
    recipe = Recipe.model_validate({"weights": "float", "activations": "none", "sparsity": "0.5"})
    plan = make_plan(prepare(dense), recipe)
    layer = plan.layers[LAYER[subject.name]]
    options = subject.options if samples is None else replace(subject.options, samples=samples)
    data = open_data(dense, subject.calibration, options)
    captured = capture(plan.model, Chunk((layer,), (), choose_damping=True), data)
    return prepare_layer(layer, captured.of(layer), recipe)


def curves(subject: Subject, rows: Rows, sparsities: Sequence[float] = SPARSITIES, samples: int | None = None) -> None:
    """A row for each method: the relative layer losses, one for each sparsity."""
    wanted = [name for name in METHODS if ("figure 2", subject.name, "", name, 0) not in rows]
    if not wanted:
        return
    prepared = prepared_layer(subject, samples)
    for name in wanted:
        levels = [Level(Unstructured(sparsity)) for sparsity in sparsities]
        solutions = solve_levels(prepared.weight, prepared.damped, levels, METHODS[name])
        losses = [layer_loss(prepared.weight, x.weights, prepared.hessian) / prepared.energy for x in solutions]
        row: dict[str, Any] = {"table": "figure 2", "model": subject.name, "level": "", "method": name, "seed": 0}
        layer = f"{prepared.layer.name}, {prepared.layer.rows} × {prepared.layer.columns}"
        rows.add(row | {"layer": layer, "sparsities": list(sparsities), "losses": losses})
        print(f"{subject.name}, {layer}, {name}: {', '.join(f'{loss:.2e}' for loss in losses)}", flush=True)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All curves of one model."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "onnx-obc", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for row in sorted(rows, key=lambda row: list(METHODS).index(row["method"])):
        axes.plot(row["sparsities"], row["losses"], label=row["method"], marker=".", linewidth=1)
    axes.set(
        xlabel="sparsity", ylabel="‖WX − ŴX‖² / ‖WX‖²", yscale="log", title=f"{rows[0]['model']}: {rows[0]['layer']}"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
