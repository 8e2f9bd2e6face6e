"""Rows of the evidence as tables: a method a line, the mean over seeds and its standard deviation in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common.harness import Row
from benchmarks.common.tables import markdown


@dataclass(frozen=True)
class Cell:
    """score: of the task; loss: of the outputs; (seeds,) each. seconds: mean, NaN where a run was interrupted."""

    score: np.ndarray
    loss: np.ndarray
    seconds: float
    percent: bool
    steps: int | None

    @property
    def spread(self) -> float:
        """The standard deviation of the loss over the seeds; 0 for one."""
        return float(self.loss.std(ddof=1)) if len(self.loss) > 1 else 0.0

    def text(self) -> str:
        """Score and loss, ± their standard deviations; ¹ marks a single seed."""
        unit, digits = (100, 2) if self.percent else (1, 4)
        several = len(self.loss) > 1
        score = f"{unit * self.score.mean():.{digits}f}"
        loss = f"{self.loss.mean():.4f}"
        if several:
            score += f" ± {unit * self.score.std(ddof=1):.{digits}f}"
            loss += f" ± {self.spread:.4f}"
        return f"{score} · {loss}{'' if several else '¹'}"


def cell_of(rows: Sequence[Row]) -> Cell | None:
    """The seeds of one cell together; None if there are none."""
    if not rows:
        return None
    return Cell(
        np.array([row["score"] for row in rows]),
        np.array([row["loss"] for row in rows]),
        float(np.mean([np.nan if row["seconds"] is None else row["seconds"] for row in rows])),
        rows[0]["metric"] == "top-1",
        rows[0]["steps"],
    )


def grid_of(rows: Sequence[Row], levels: Sequence[str], methods: Sequence[str]) -> dict[tuple[str, str], Cell]:
    """The cells of one model's table, by method and level; those that were not run are missing."""
    grid = {}
    for method in methods:
        for level in levels:
            cell = cell_of([row for row in rows if (row["method"], row["level"]) == (method, level)])
            if cell is not None:
                grid[method, level] = cell
    return grid


def best(grid: dict[tuple[str, str], Cell], level: str) -> str | None:
    """The method with the lowest loss at a level; None if there is none."""
    there = {method: cell.loss.mean() for (method, at), cell in grid.items() if at == level}
    return min(there, key=there.__getitem__) if there else None


def as_table(grid: dict[tuple[str, str], Cell], levels: Sequence[str], methods: Sequence[str]) -> str:
    """A method a line, a level a column; the lowest loss of a column is bold. Seconds: mean over the levels."""
    lines = []
    leaders = {level: best(grid, level) for level in levels}
    for method in methods:
        cells = [grid.get((method, level)) for level in levels]
        there = [cell for cell in cells if cell is not None]
        if not there:
            continue
        texts = [
            "" if cell is None else f"**{cell.text()}**" if leaders[level] == method else cell.text()
            for level, cell in zip(levels, cells, strict=True)
        ]
        steps = next((f" ({cell.steps:,} steps)" for cell in there if cell.steps), "")
        known = [cell.seconds for cell in there if not np.isnan(cell.seconds)]  # not of runs that were held up
        lines.append((method + steps, *texts, f"{np.mean(known):.0f}" if known else "–"))
    return markdown(("method", *levels, "seconds"), lines)


def in_short(row: Row) -> str:
    """One row in a line."""
    return (
        f"{row['model']}, {row['table']}, {row['level']}, {row['method']}, seed {row['seed']}: "
        f"{row['score']:.4f} of {row['dense']:.4f}, output loss {row['loss']:.4f} ({row['seconds']:.0f} s)"
    )
