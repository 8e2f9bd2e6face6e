"""Exact post-training pruning and quantization of ONNX models, by Optimal Brain Compression."""

from ._version import __version__
from .calibration.data import Batch, DataOptions, Samples
from .compress import Result, compress
from .errors import CalibrationError, ModelError, ObcError, OutputError, RecipeError, VerificationError
from .recipe import Recipe, Rule

__all__ = [
    "Batch",
    "CalibrationError",
    "DataOptions",
    "ModelError",
    "ObcError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Result",
    "Rule",
    "Samples",
    "VerificationError",
    "__version__",
    "compress",
]
