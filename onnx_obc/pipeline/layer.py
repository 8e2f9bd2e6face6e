"""One layer: from its weight and Hessian to a solution, and the figures that the report shows for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.capture import LayerHessian
from ..core.arrays import Float32, Float64, Int32
from ..core.level import FLOAT, Choice, Level, parse_bits
from ..core.plural import counted
from ..core.solution import Grid, Solution
from ..graph.cost import table_bytes, weight_bytes
from ..graph.layers import Embedding, Layer
from ..graph.scales import table_block
from ..graph.tied import Tie
from ..runtime.session import Device
from ..solver import (
    Damped,
    Method,
    baseline,
    damp,
    fit_grid,
    layer_loss,
    output_energy,
    round_to_grid,
    solve,
    solve_levels,
)
from ..solver.bound.bound import lower_bound
from ..solver.gpu.device import devices
from ..solver.linalg.damping import CONSTANT
from ..solver.method import SolverName
from ..solver.ordered.compare import compare_on_rows
from ..targets.registry import TARGETS
from .options import LEARNED
from .recipe import Recipe

SOLVER = 3  # rises when the solver's results change, so that a database does not mix old solutions with new ones
ENOUGH = 4  # positions for every column: with fewer, refinement may lose on other samples what it gains on these


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer.

    All losses are layer losses ‖WX − ŴX‖² / n over the calibration positions. loss_predicted, loss_greedy (as
    `Solution.loss_greedy`), loss_measured and loss_bound are on the damped Hessian, which the solver works with. No
    solution at the level falls below the bound (None where the solver is not the exact one). loss and loss_baseline
    (rounding or magnitude pruning at the same level) are on the plain Hessian, and relative to ‖WX‖² / n they are
    loss_relative and baseline_relative. solver: as in `Method`; ordered_over_exact: for the ordered one the ratio of
    its loss to the exact one's on some of the rows, None if even those would take too long. damping is the fraction of
    the mean diagonal really used. Bytes count true bits, scales and zero points included.
    """

    name: str
    op: str
    groups: int
    rows: int
    columns: int
    level: str
    activations: str
    solver: str
    loss_predicted: float
    loss_greedy: float
    loss_measured: float
    loss_bound: float | None
    loss: float
    loss_relative: float
    loss_baseline: float
    baseline_relative: float
    ordered_over_exact: float | None
    zeros: float
    damping: float
    dead_columns: int
    positions: int
    seconds: float
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddingReport:
    """One table that is stored as integers, by rounding, or that reads a layer's. error_relative: ‖T − T̂‖² / ‖T‖².

    Bytes are 0 where they are the layer's.
    """

    name: str
    rows: int
    columns: int
    level: str
    error_relative: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Solved:
    """A layer's solution and the report on it."""

    layer: Layer
    solution: Solution
    report: LayerReport


@dataclass(frozen=True, eq=False)
class Prepared:
    """A layer with what every level of it is solved from.

    weight: (groups, rows, columns) float32. hessian: (groups, columns, columns) float64, and damped. energy: ‖WX‖² / n.
    damping: what was asked for, by the recipe or by held-out samples; judged: whether either did ask.
    """

    layer: Layer
    weight: Float32
    hessian: Float64
    damped: Damped
    positions: int
    energy: float
    damping: float
    judged: bool
    left_out: int = 0  # positions with NaN or infinity


def solving_device(device: Device) -> str:
    """Where layers are solved: the first GPU, if one is asked for, or if any may be taken and there is one."""
    if device == "cpu":
        return "cpu"
    return next(iter(devices()), "cpu" if device == "auto" else "cuda")


def method_of(recipe: Recipe, device: str = "cpu") -> Method:
    """How the recipe wants layers solved, on a device as `Method` names it; exactly, where a schedule may say else."""
    shared = TARGETS[recipe.target].shared_scale
    solver: SolverName = "exact"
    if recipe.solver != "auto" and recipe.solver != "ordered":
        solver = recipe.solver
    return Method(
        solver, recipe.refine, recipe.grid, shared, recipe.precision, device, recipe.threads, recipe.iterations
    )


@dataclass(frozen=True)
class LayerMethod:
    """How one layer is solved. compared_rows: on how many rows the ordered solver, if the method says so, is compared
    with the exact one. learned: where solutions come from, without losses, that `Method` has no part in; it is called
    with the layer, the levels, and a function to tell the share that is done."""

    method: Method
    compared_rows: int = 0
    learned: Callable[[Layer, Sequence[Level], Callable[[float], None]], Iterator[Solution]] | None = None


def prepare_layer(layer: Layer, captured: LayerHessian, recipe: Recipe) -> Prepared:
    """Damp and factorise a layer's Hessian.

    The damping that held-out samples ask for counts if the recipe names none.
    """
    hessian, positions = captured.hessian, captured.positions
    damping = captured.damping if recipe.damp is None else recipe.damp
    judged = damping is not None
    if damping is None:
        damping = CONSTANT
    weight = layer.matrix()  # (groups, rows, columns)
    damped = damp(hessian, damping, recipe.threads)
    return Prepared(
        layer, weight, hessian, damped, positions, output_energy(weight, hessian), damping, judged, captured.left_out
    )


def trusted_method(prepared: Prepared, method: Method) -> Method:
    """The method, without refinement where `auto` would let it mislead: with too few positions for the columns."""
    few = prepared.positions < ENOUGH * prepared.layer.columns
    return replace(method, refine="none") if method.refine == "auto" and few else method


def solve_layer(
    prepared: Prepared,
    choices: Sequence[Choice],
    recipe: Recipe,
    how: LayerMethod,
    remark: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[Solved]:
    """Solve a layer at each of these levels, in this order, and compare with the baseline.

    progress: called with the rows done since the last call; every level counts all rows of the layer.
    """
    began, finished, method = time.perf_counter(), 0, how.method

    def advance(rows: int) -> None:
        nonlocal finished
        progress(rows - finished)
        finished = rows

    layer, levels = prepared.layer, [choice.level for choice in choices]
    if how.learned is None:
        solutions = solve_levels(prepared.weight, prepared.damped, levels, trusted_method(prepared, method), advance)
    else:
        rows = layer.groups * layer.rows * len(levels)
        learned = how.learned(layer, levels, lambda share: advance(int(share * rows)))
        solutions = (_measured(prepared, solution) for solution in learned)
    for number, (choice, solution) in enumerate(zip(choices, solutions, strict=True), 1):
        ratio = ordered_over_exact(prepared, solution, how)
        report = report_layer(prepared, choice, solution, recipe, method, ratio, remark)
        advance(number * layer.groups * layer.rows)
        ended = time.perf_counter()
        yield Solved(layer, solution, replace(report, seconds=ended - began))
        began = ended


def _measured(prepared: Prepared, solution: Solution) -> Solution:
    """A solution with its loss on the damped Hessian."""
    return replace(solution, loss=layer_loss(prepared.weight, solution.weights, prepared.damped.hessian))


def report_layer(
    prepared: Prepared,
    choice: Choice,
    solution: Solution,
    recipe: Recipe,
    method: Method,
    ordered_over_exact: float | None = None,
    remark: str | None = None,
) -> LayerReport:
    """The figures of a layer's solution. `seconds` is 0: the caller knows."""
    layer, weight, damped, energy = prepared.layer, prepared.weight, prepared.damped, prepared.energy
    simple = baseline(weight, damped, choice.level, grid=recipe.grid, shared_scale=method.shared_scale)
    loss, loss_baseline = (layer_loss(weight, x.weights, prepared.hessian) for x in (solution, simple))
    return LayerReport(
        name=layer.name,
        op=layer.op,
        groups=layer.groups,
        rows=layer.rows,
        columns=layer.columns,
        level=str(choice.level),
        activations=choice.activations,
        solver=method.solver,
        loss_predicted=solution.loss,
        loss_greedy=solution.loss if solution.loss_greedy is None else solution.loss_greedy,
        loss_measured=layer_loss(weight, solution.weights, damped.hessian),
        loss_bound=_bound(weight, damped, solution, method),
        loss=loss,
        loss_relative=loss / energy if energy > 0 else 0.0,
        loss_baseline=loss_baseline,
        baseline_relative=loss_baseline / energy if energy > 0 else 0.0,
        ordered_over_exact=ordered_over_exact,
        zeros=float((solution.weights == 0).mean()),
        damping=float(damped.damping.max()),
        dead_columns=damped.dead,
        positions=prepared.positions,
        seconds=0.0,
        bytes_before=weight_bytes(layer, FLOAT),
        bytes_after=weight_bytes(layer, choice.level),
        notes=tuple(_notes(prepared, choice, recipe, method))
        + (() if solution.bias is None else ("its bias was learned too, which layer losses leave out",))
        + _not_exact(method, ordered_over_exact, recipe)
        + ((remark,) if remark else ()),
    )


def ordered_over_exact(prepared: Prepared, solution: Solution, how: LayerMethod) -> float | None:
    """The loss of an ordered solution relative to the exact one's, on some rows; None for none, or another solver."""
    method = how.method
    if method.solver != "ordered":
        return None
    exact = replace(trusted_method(prepared, method), solver="exact", device="cpu")
    return compare_on_rows(
        prepared.weight,
        prepared.damped,
        solution,
        lambda w, h, level: solve(w, h, level, exact),
        how.compared_rows,
        method.threads,
    )


def _bound(weights: Float32, damped: Damped, solution: Solution, method: Method) -> float | None:
    """The lower bound, where the inverse that it needs is there anyway."""
    return lower_bound(weights, damped, solution.level, solution.grid) if method.solver == "exact" else None


def _not_exact(method: Method, ratio: float | None, recipe: Recipe) -> tuple[str, ...]:
    if method.solver != "ordered":
        return ()
    why = "not solved exactly, which would take too long" if recipe.solver == "auto" else "not solved exactly, as asked"
    if ratio is None:
        return (f"{why}; even a sample of rows would take too long to compare",)
    return (f"{why}: on a sample of rows the loss is {ratio:.3f} of the exact solver's",)


def _notes(prepared: Prepared, choice: Choice, recipe: Recipe, method: Method) -> list[str]:
    layer, damped, hessian, positions = prepared.layer, prepared.damped, prepared.hessian, prepared.positions
    notes = []
    if left := prepared.left_out:
        notes.append(f"{left} of {left + positions} positions of its input hold NaN or infinity, and are left out")
    if positions == 0 or not hessian.any():
        notes.append("the calibration data never reaches this layer: rounded to nearest or pruned by magnitude")
    elif (damped.damping > prepared.damping).any():
        raised = int((damped.damping > prepared.damping).sum())
        change = f"from {prepared.damping:g} to {damped.damping.max():g}"
        notes.append(f"damping raised {change} in {raised} of {layer.groups} groups")
    if how := _by_others(choice.level, method):
        notes.append(how)
    if not prepared.judged and positions > 0:
        notes.append(f"no samples could be held out to choose the damping by: {prepared.damping:g}")
    if damped.dead and hessian.any():
        be = "is" if damped.dead == 1 else "are"
        notes.append(f"{damped.dead} of {counted(layer.groups * layer.columns, 'input')} {be} always zero")
    few = f"{counted(positions, 'position')} for {counted(layer.columns, 'column')}"
    if 0 < positions < layer.columns:
        notes.append(f"{few}: the Hessian is rank-deficient and leans on damping")
    refined = method.mask_sweeps(choice.level, layer.columns) + method.code_sweeps(choice.level) > 0
    misled = refined and trusted_method(prepared, method) != method
    if misled and positions > 0:
        notes.append(f"not refined: {few}, too few to trust small gains; give more samples, or --refine 8")
    return notes


def _by_others(level: Level, method: Method) -> str | None:
    """What of a level a method to compare with has no way for, and what was done instead."""
    if method.solver in ("lobs", "adaprune") and level.bits is not None:
        return f"rounded to nearest: {method.solver} only prunes"
    if method.solver in LEARNED and level.sparsity is not None:
        return f"pruned by magnitude: {method.solver} only rounds"
    return None


def round_embedding(embedding: Embedding, recipe: Recipe) -> tuple[Int32, Grid, int | None, EmbeddingReport]:
    """A table in integers by rounding: its codes, its grid, the block if there is one, and the report on it."""
    bits = parse_bits(recipe.embeddings)
    assert bits is not None
    table = embedding.table()
    block = table_block(table.shape[1], bits)
    rows = table.T if block is None else table.reshape(-1, block)  # what shares a scale: a column, or a block of a row
    grid = fit_grid(rows[None], bits, symmetric=True, method=recipe.grid)
    codes = round_to_grid(rows[None], grid)  # (1, rows, columns)
    error = float(((grid.dequantize(codes) - rows[None]).astype(np.float64) ** 2).sum())
    energy = float((table.astype(np.float64) ** 2).sum())
    report = EmbeddingReport(
        name=embedding.name,
        rows=table.shape[0],
        columns=table.shape[1],
        level=str(Level(bits=bits)),
        error_relative=error / energy if energy > 0 else 0.0,
        bytes_before=table.size * embedding.float_bytes,
        bytes_after=table_bytes(table.size, bits, grid.scale.size, embedding.float_bytes),
    )
    codes = codes[0].T if block is None else codes[0].reshape(table.shape)
    return codes, grid, block, report


def tied_table(tie: Tie, entry: Solved) -> EmbeddingReport:
    """The report on a table that reads the integers of a solved layer."""
    table = tie.table.table()
    error, energy = (float(np.square(x, dtype=np.float64).sum()) for x in (entry.solution.weights[0] - table, table))
    return EmbeddingReport(
        name=tie.table.name,
        rows=table.shape[0],
        columns=table.shape[1],
        level=entry.report.level,
        error_relative=error / energy if energy > 0 else 0.0,
        bytes_before=0 if tie.table.weight_name == entry.layer.weight_name else tie.table.float_bytes * table.size,
        bytes_after=0,
    )
