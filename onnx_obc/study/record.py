"""What a study says: the record that pages, tables and JSON are made of. All SNRs are in dB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .levels import Kind, Size
from .tensors import TensorRow


@dataclass(frozen=True)
class Way:
    """A layer at a level. bits: what that costs for each weight. snr: of the layer's outputs, ‖WX‖² / ‖WX − ŴX‖², as
    this tool solves it; baseline: by rounding or magnitude; bound: what no solution at this level exceeds, None where
    nothing is known. Of pruned and of quantized weights alike the Hessian is the damped one that was solved for.
    """

    kind: Kind
    level: str
    bits: float
    snr: float
    baseline: float
    bound: float | None


@dataclass(frozen=True)
class Verdict:
    """winner: what loses least as solved. margin: to the best of another kind, in dB; infinite if there is none.

    proven: no solution of the pure kinds that it beats can reach it, with so many zeros, in these patterns and on these
    grids. on_rows: the same, of the rows that were solved alone.
    """

    winner: Kind
    margin: float
    proven: bool
    on_rows: bool = False


@dataclass(frozen=True)
class ChunkRow:
    """Some columns of one row of a layer, at a budget: quantized or pruned as a layer of its own.

    By kind, quantize and prune. snr: as this tool solves it; best: of the best solution known, on the same grid; bound:
    what no solution exceeds, which is `best` where that is proven to be the optimum (`exact`).
    """

    layer: str
    row: int
    columns: tuple[int, int]  # the first, and how many
    bits: int
    snr: Mapping[Kind, float]
    best: Mapping[Kind, float]
    bound: Mapping[Kind, float]
    exact: Mapping[Kind, bool]
    seconds: Mapping[Kind, float]

    @property
    def proven(self) -> Kind | None:
        """The kind whose solution no solution of the other can match; None if neither's is proven."""
        if self.best["quantize"] > self.bound["prune"]:
            return "quantize"
        return "prune" if self.best["prune"] > self.bound["quantize"] else None


@dataclass(frozen=True)
class BudgetRow:
    """A layer at a budget. tensor: its weight alone. ways: what was tried at the size that was asked for, empty without
    data. pruned: by convention, None where the budget pays for no weight; verdicts: by convention, of what is there."""

    bits: int
    tensor: TensorRow
    ways: tuple[Way, ...] = ()
    pruned: Mapping[Size, Way | None] = field(default_factory=dict)
    verdicts: Mapping[Size, Verdict] = field(default_factory=dict)

    def best(self, kind: Kind) -> Way | None:
        """The way of a kind that loses least."""
        return max((way for way in self.ways if way.kind == kind), key=lambda way: way.snr, default=None)


@dataclass(frozen=True)
class LayerRow:
    """A layer. studied: how many of its rows were solved; recalled: how many of its solutions a database had. budgets:
    empty where `reason` says why."""

    name: str
    op: str
    groups: int
    rows: int
    columns: int
    kurtosis: float | None = None
    studied: int = 0
    recalled: int = 0
    positions: int = 0
    damping: float | None = None
    budgets: tuple[BudgetRow, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class WholeModel:
    """All layers quantized, all pruned, or each in its best way, at a budget of `bits` for each weight.

    size: what it costs, in bits for each weight of all layers; floats: of these that stay float. loss: of the outputs
    on held-out samples. recipe: the file it was written to.
    """

    bits: int
    name: str
    size: float
    loss: float
    floats: int = 0
    recipe: str | None = None


@dataclass(frozen=True)
class Study:
    """All of it.

    size: the convention that verdicts go by first; compression: of `bytes`. samples: that calibrated, 0 if only weights
    were looked at. layers: in the graph's order. chunks: of all layers and budgets, of `chunk` columns at most. how:
    what it takes to repeat it. interrupted: whether it was ended early.
    """

    model: str
    bits: tuple[int, ...]
    size: Size
    compression: str
    chunk: int
    samples: int
    layers: tuple[LayerRow, ...]
    chunks: tuple[ChunkRow, ...]
    whole: tuple[WholeModel, ...]
    notes: tuple[str, ...]
    how: Mapping[str, object]
    interrupted: bool = False
