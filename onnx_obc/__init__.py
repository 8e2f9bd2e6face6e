"""Exact post-training pruning and quantization of ONNX models, by Optimal Brain Compression."""

from ._version import __version__
from .build import Built, build
from .calibration.data import Batch, DataOptions, Samples
from .compress import compress
from .errors import (
    CalibrationError,
    DatabaseError,
    ModelError,
    ObcError,
    OutputError,
    RecipeError,
    VerificationError,
)
from .finish import Result
from .opened import Database, open_database
from .profiles import SearchOptions
from .recipe import Recipe, Rule
from .retarget import compress_to_budget, retarget
from .search.budget import Budget, parse_budget

__all__ = [
    "Batch",
    "Budget",
    "Built",
    "CalibrationError",
    "DataOptions",
    "Database",
    "DatabaseError",
    "ModelError",
    "ObcError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Result",
    "Rule",
    "Samples",
    "SearchOptions",
    "VerificationError",
    "__version__",
    "build",
    "compress",
    "compress_to_budget",
    "open_database",
    "parse_budget",
    "retarget",
]
