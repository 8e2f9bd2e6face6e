"""Exact post-training pruning and quantization of ONNX models, by Optimal Brain Compression."""

from importlib import import_module
from typing import TYPE_CHECKING

from .core.version import __version__

if TYPE_CHECKING:
    from .calibration.options import DataOptions
    from .calibration.samples import Batch, Samples
    from .core.errors import (
        CalibrationError,
        DatabaseError,
        EngineError,
        GateError,
        ModelError,
        ObcError,
        OutputError,
        RecipeError,
        VerificationError,
        WorkerError,
    )
    from .core.progress import Feedback
    from .database.build import Built, build
    from .database.open import Database, open_database
    from .debug.debug import DebugOptions, debug_models
    from .debug.record import Debug
    from .pipeline.compress import compress
    from .pipeline.examine import Evaluation
    from .pipeline.finish import Result
    from .pipeline.recipe import Recipe, Rule
    from .search.budget import Budget, parse_budget
    from .search.profile import SearchOptions
    from .search.retarget import compress_to_budget, retarget
    from .study.record import Study
    from .study.study import StudyOptions, study_model
else:
    # Where each name is: loaded when it is asked for (PEP 562), so that the command line answers at once.
    _HOMES = {
        "calibration.options": ("DataOptions",),
        "calibration.samples": ("Batch", "Samples"),
        "core.errors": (
            *("CalibrationError", "DatabaseError", "EngineError", "GateError", "ModelError", "ObcError"),
            *("OutputError", "RecipeError", "VerificationError", "WorkerError"),
        ),
        "core.progress": ("Feedback",),
        "database.build": ("Built", "build"),
        "database.open": ("Database", "open_database"),
        "debug.debug": ("DebugOptions", "debug_models"),
        "debug.record": ("Debug",),
        "pipeline.compress": ("compress",),
        "pipeline.examine": ("Evaluation",),
        "pipeline.finish": ("Result",),
        "pipeline.recipe": ("Recipe", "Rule"),
        "search.budget": ("Budget", "parse_budget"),
        "search.profile": ("SearchOptions",),
        "search.retarget": ("compress_to_budget", "retarget"),
        "study.record": ("Study",),
        "study.study": ("StudyOptions", "study_model"),
    }

    def __getattr__(name):
        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f".{home}", __name__), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})

    # What shows a result in a notebook, which the room that makes results may not know.
    import_module(".core.display", __name__).page_of = lambda result: import_module(
        ".report.notebook", __name__
    ).framed(result)


__all__ = [
    "Batch",
    "Budget",
    "Built",
    "CalibrationError",
    "DataOptions",
    "Database",
    "DatabaseError",
    "Debug",
    "DebugOptions",
    "EngineError",
    "Evaluation",
    "Feedback",
    "GateError",
    "ModelError",
    "ObcError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Result",
    "Rule",
    "Samples",
    "SearchOptions",
    "Study",
    "StudyOptions",
    "VerificationError",
    "WorkerError",
    "__version__",
    "build",
    "compress",
    "compress_to_budget",
    "debug_models",
    "open_database",
    "parse_budget",
    "retarget",
    "study_model",
]
