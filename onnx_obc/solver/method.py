"""How a layer is solved, whichever its level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..core.level import NM, Level
from .grid import GridMethod
from .linalg.inverse import Precision

Refine: TypeAlias = Literal["none", "auto"] | int
SolverName: TypeAlias = Literal[
    "exact", "ordered", "baseline", "gmp", "lobs", "adaprune", "adaround", "adaquant", "brecq"
]

_SWEEPS = 8  # of codes, and of N:M masks; most rows have no gain left after three or four, and end there
_ONCE = 1  # of other masks: more gain half a percent at most, and cost a ladder of levels ten times its greedy
_WIDE = 1280  # columns; beyond, exchanging weights takes longer than pruning them
ROUNDING = 3e-5  # relative; what float32 may cost a predicted loss


@dataclass(frozen=True)
class Method:
    """How layers are solved.

    solver:    exact: the greedy of OBC. ordered: exact within blocks of columns only, for layers too large for that.
               The others are what is compared with: `baselines`, and, for a model as a whole, what is learned by
               gradients (adaround, adaquant, brecq), which this package has no part in.
    iterations: gradient steps of those that take them, None for their own; of adaprune None is for least squares.
    refine:    how long better solutions are looked for after the greedy, in sweeps; auto: where it pays.
    grid:      how quantization grids are fitted, to the weights left by pruning. shared_scale: all rows of a group
               have the same, which is not refined then.
    precision: of the greedy; `auto` solves again in float64 where the loss predicted in float32 is off by more than
               3e-5.
    device:    "cpu", or a GPU that torch sees, "cuda:0"; it is for the exact greedy, the rest runs on the CPU.
    threads:   of the CPU; None for all usable cores. The solution does not depend on it.
    """

    solver: SolverName = "exact"
    refine: Refine = "none"
    grid: GridMethod = "mse"
    shared_scale: bool = False
    precision: Precision = "auto"
    device: str = "cpu"
    threads: int | None = None
    iterations: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether it is one of this tool's own, not what is compared with."""
        return self.solver in ("exact", "ordered")

    def mask_sweeps(self, level: Level, columns: int) -> int:
        """How many sweeps of `refine_mask` follow the pruning; 0 for none."""
        if level.sparsity is None or self.solver != "exact":  # a matrix for every row is what `ordered` cannot afford
            return 0
        if self.refine == "auto":
            return 0 if columns > _WIDE else _SWEEPS if isinstance(level.sparsity, NM) else _ONCE
        return 0 if self.refine == "none" else self.refine

    def code_sweeps(self, level: Level) -> int:
        """How many sweeps of `refine_codes` follow the rounding; 0 for none."""
        if level.bits is None or self.refine == "none" or self.shared_scale:  # it moves each row's scale
            return 0
        if not self.greedy:
            return 0
        if self.refine == "auto":  # a sweep takes a multiple of the ordered solver's time
            return 1 if self.solver == "ordered" else _SWEEPS
        return self.refine
