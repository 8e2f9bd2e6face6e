"""Exact post-training pruning and quantization of ONNX models, by Optimal Brain Compression."""

from .calibration.samples import Batch, DataOptions, Samples
from .core.errors import (
    CalibrationError,
    DatabaseError,
    ModelError,
    ObcError,
    OutputError,
    RecipeError,
    VerificationError,
)
from .core.progress import Feedback
from .core.version import __version__
from .database.build import Built, build
from .database.open import Database, open_database
from .pipeline.compress import compress
from .pipeline.finish import Result
from .pipeline.recipe import Recipe, Rule
from .search.budget import Budget, parse_budget
from .search.profile import SearchOptions
from .search.retarget import compress_to_budget, retarget

__all__ = [
    "Batch",
    "Budget",
    "Built",
    "CalibrationError",
    "DataOptions",
    "Database",
    "DatabaseError",
    "Feedback",
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
