"""docs/results.md: every table and figure, from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.harness import Row
from benchmarks.common.subjects import NAMES
from benchmarks.common.tables import machine
from benchmarks.evidence import budgets, first_layers
from benchmarks.evidence.methods import EPOCHS, TABLES
from benchmarks.evidence.tables import Cell, as_table, best, grid_of
from benchmarks.front import others

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
PICTURES = PAGE.parent / "results"
OURS = ("ExactOBS", "OBQ", "refined", "refined, in order", "refined + global AdaPrune")


def page(rows: Sequence[Row]) -> str:
    """The page; writes its figures beside it."""
    PICTURES.mkdir(exist_ok=True)
    parts = [_patterns(rows, "patterns"), _patterns(rows, "bits"), _budgets(rows), _patterns(rows, "global")]
    return f"""# Results

{_first(rows)}

All of it: `python -m benchmarks.evidence`, on {machine()}; the last column of each table, on a part of the data,
in minutes: `make evidence-quick`.

Cells read *score · output loss*: top-1 accuracy in %, or for MiniLM Spearman's correlation on the STS benchmark; and
KL(dense ‖ compressed) per sample in nats, or for MiniLM ‖y − ŷ‖² / ‖y‖² of its embeddings, which tells models apart
that an accuracy on 500 images cannot. Mean ± standard deviation over three seeds, which draw the positions that make up
the Hessians and the order of gradient steps; calibration samples are the same. ¹: one seed. Bold: the lowest output
loss. Every method has the same samples, grids, damping and corrections of statistics, and no parts are trained
afterwards. Weights have BatchNormalization folded in, as files that are deployed have: masks by magnitude depend on
that.

*In order*: each layer on the inputs that the compressed ones before it produce (`--sequential`, the tool's default for
weights of 4, 3 and 2 bits), in these rows kept only where outputs on held-out samples come closer: where they do not,
the row is that of the method without it. AdaRound, AdaQuant and BRECQ are in order by themselves. Their steps are those
that the rows say; published are 10,000, 1,000 and 20,000, on a GPU. What they, L-OBS and AdaPrune do here, and where
that differs from the papers: [to compare with](recipe.md#to-compare-with). Seconds are those of the whole run of one
model, on a machine that did other things as well.

{chr(10).join(part for part in parts if part)}
## Beside other people's quantizers

[All rows](../benchmarks/results/peers.md), where others are better, and what failed. Here, at each level, the method of
theirs with the lowest output loss, after 256 calibration samples; bold: the lower loss; ×: of the dense file's speed in
onnxruntime; †: not every method of the others was run there.

<!-- others -->

{others()}

<!-- / -->

{_figure_2(rows)}
## What else has its counterpart

| OBC | here |
|---|---|
| figure 3 a-c: mixed precision by bit operations | [levels by a budget](../benchmarks/results/nonuniform.md) |
| figure 3 d: blocks and integers by CPU time | [runtimes](../benchmarks/results/runtimes.md) |
| run times | [solver](../benchmarks/results/solver.md), [networks](../benchmarks/results/resnet50_shapes.md) |
| corrections of statistics, solved in order | [corrections](../benchmarks/results/corrections.md) |
| number of samples, augmentation | [sampling](../benchmarks/results/sampling.md) |
"""


def _first(rows: Sequence[Row]) -> str:
    """What a reader can know in a minute: where the best of this tool's rows is best, where not."""
    won, close, lost = 0, 0, []
    for name in ("patterns", "bits"):
        table = TABLES[name]
        for model in NAMES:
            grid = _grid(rows, name, model)
            for level in table.levels:
                leader = best(grid, level)
                ours = [cell for (method, at), cell in grid.items() if at == level and method in OURS]
                others = {method for method, at in grid if at == level} - set(OURS)
                if leader is None or not ours or not others:
                    continue
                if leader in OURS:
                    won += 1
                elif any(_within(cell, grid[leader, level]) for cell in ours):
                    close += 1
                else:
                    lost.append(f"{model} at {level} ({leader})")
    behind = f" It is behind at: {'; '.join(lost)}." if lost else ""
    near = f" In {close} more it is within one standard deviation of the best." if close else ""
    cells = won + close + len(lost)
    where = f"In {won} of {cells} columns of the first two tables"
    return f"{where} a row of this tool has the lowest output loss.{near}{behind}"


def _within(cell: Cell, leader: Cell) -> bool:
    return float(cell.loss.mean() - leader.loss.mean()) <= max(cell.spread, leader.spread)


def _grid(rows: Sequence[Row], table: str, model: str) -> dict[tuple[str, str], Cell]:
    chosen = [row for row in rows if (row["table"], row["model"]) == (table, model)]
    return grid_of(chosen, list(TABLES[table].levels), list(TABLES[table].methods))


def _patterns(rows: Sequence[Row], name: str) -> str:
    """A table of levels against methods, for every model that it was run on."""
    table = TABLES[name]
    parts = []
    for model in NAMES:
        grid = _grid(rows, name, model)
        if grid:
            dense = next(row for row in rows if (row["table"], row["model"]) == (name, model))
            parts.append(f"{_title(dense)}\n\n{as_table(grid, list(table.levels), list(table.methods))}\n")
    about = f"{EPOCHS} epochs. " if name == "global" else ""
    return f"## {table.title}\n\n{about}OBC: {table.source}.\n\n{chr(10).join(parts)}" if parts else ""


def _budgets(rows: Sequence[Row]) -> str:
    levels = [f"FLOPs / {budget[:-1]}" for budget in budgets.BUDGETS]
    methods = [name for method in budgets.SOLVERS for name in budgets.names_of(method)]
    parts = []
    for model in NAMES:
        chosen = [row for row in rows if (row["table"], row["model"]) == ("budgets", model)]
        if chosen:
            table = as_table(grid_of(chosen, levels, methods), levels, methods)
            parts.append(f"{_title(chosen[0])}\n\n{table}\n")
    if not parts:
        return ""
    return f"""## Pruned anywhere, to a number of FLOPs

OBC: table 1. All methods with the sparsities that the search chose for ExactOBS, and each with those that it chooses
from its own losses; magnitude: one threshold for all layers. *L-OBS, one threshold*: on the scores of all layers, from
Hessians of the 512 samples that a database keeps. Solutions are not refined.

{chr(10).join(parts)}"""


def _figure_2(rows: Sequence[Row]) -> str:
    parts = []
    for model in first_layers.LAYER:
        found: list[dict[str, Any]] = [dict(row) for row in rows if (row["table"], row["model"]) == ("figure 2", model)]
        if found:
            picture = PICTURES / f"figure-2-{model.lower()}.svg"
            first_layers.plot(found, picture)
            parts.append(f"![{model}](results/{picture.name})")
    if not parts:
        return ""
    return f"""## The error of one layer against its sparsity

OBC: figure 2. The first layer of a model, pruned anywhere; every method by its own cut over all rows.

{chr(10).join(parts)}
"""


def _title(row: Row) -> str:
    dense = f"{100 * row['dense']:.2f} %" if row["metric"] == "top-1" else f"{row['dense']:.4f}"
    return f"### {row['model']}, dense {dense}"
