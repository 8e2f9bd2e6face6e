"""Linear algebra: solves a layer's weight matrix at a level. Arrays in, arrays out; knows nothing of ONNX."""

from __future__ import annotations

from .baselines import baseline
from .grid import fit_grid, round_to_grid
from .linalg.inverse import Damped, damp
from .linalg.loss import layer_loss, output_energy
from .method import Method, Refine
from .solve import solve, solve_levels, warm_up

__all__ = [
    "Damped",
    "Method",
    "Refine",
    "baseline",
    "damp",
    "fit_grid",
    "layer_loss",
    "output_energy",
    "round_to_grid",
    "solve",
    "solve_levels",
    "warm_up",
]
