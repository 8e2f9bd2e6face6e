"""The options of the command line, in panels. Those of recipes and of data are said in `pipeline/options.py` and
`calibration/options.py`; here they only get their panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from cyclopts import Group, Parameter

from ..calibration import options as data
from ..core.errors import RecipeError
from ..core.options import Doc
from ..pipeline import options as recipe
from ..targets.names import TargetName

if TYPE_CHECKING:
    from ..pipeline.recipe import Recipe

LEVELS = Group("What the layers become", sort_key=1)
DATA = Group("Calibration data", sort_key=2)
METHOD = Group("How it is done", sort_key=4)
SEARCH = Group("How a budget chooses", sort_key=3)
STUDY = Group("What is studied", sort_key=1)
DEBUG = Group("What is looked for", sort_key=1)
QUALITY = Group("What the file must reach", sort_key=5)
RUN = Group("Run", sort_key=6)

Flag = Parameter(negative="")
Several = Parameter(consume_multiple=True)

# The same words in every command.
Calib: TypeAlias = Annotated[
    str,
    Parameter(
        group=DATA,
        help="An .npz file; a folder of .npz or .npy files; a folder or zip of images; a .csv, .tsv, .txt or .jsonl "
        "text, for which --tokenizer is needed; module.py:function yielding feeds; or random.",
    ),
]
Budgets: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        group=SEARCH,
        help="What the model may cost: bops=12x, obc-bops=8x, flops=3x, size=0.2x, latency=4x or drop=1%; a level is "
        "then chosen for every layer. Several give several files, and a plot of what they reach.",
    ),
]
Metric: TypeAlias = Annotated[
    str | None,
    Parameter(
        group=QUALITY,
        help="Judge the model by top-1, top-5, agreement, mean-iou, map, spearman, perplexity, word-error-rate, or "
        "file.py:function(outputs, labels) giving a number, the higher the better; --budget drop=1% is then about it.",
    ),
]
Eval: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--eval",
        group=QUALITY,
        help="Labelled data for --metric, as for --calib and read like it. [default: calibration samples held out]",
    ),
]
Output: TypeAlias = Annotated[Path, Parameter(name=("--output", "-o"), group="Arguments")]
Report: TypeAlias = Annotated[Path | None, Parameter(name=("--report", "--json"), group=RUN)]
Html: TypeAlias = Annotated[Path | None, Parameter(group=RUN)]
Overlay: TypeAlias = Annotated[Path | None, Parameter(group=RUN)]
Target: TypeAlias = Annotated[TargetName, Parameter(group=RUN)]


def _options(group: type, panel: Group, panels: Mapping[str, Group], **more: Parameter) -> Any:
    """The options of a group, each None unless it is given: the recipe file, or else the default, then decides.

    panels: of options that stand elsewhere; more: what else the command line has to know of one.
    """
    made = []
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        doc = next(extra.text for extra in hint.__metadata__ if isinstance(extra, Doc))
        if isinstance(field.default, bool):
            doc += f" [default: {'yes' if field.default else 'no'}]"
        elif field.default is not None:
            doc += f" [default: {field.default}]"
        about = Parameter(group=panels.get(field.name, panel), help=doc)
        about = Parameter.combine(about, more[field.name]) if field.name in more else about
        made.append((field.name, Annotated[hint.__origin__ | None, about], None))
    return Parameter(name="*")(make_dataclass(group.__name__, made, frozen=True, namespace={"__module__": __name__}))


if TYPE_CHECKING:
    CalibrationOptions: TypeAlias = data.DataOptions
    FinishOptions: TypeAlias = recipe.FinishOptions
    MethodOptions: TypeAlias = recipe.MethodOptions
    RunOptions: TypeAlias = recipe.RunOptions
    StudyDataOptions: TypeAlias = data.DataOptions
    DebugDataOptions: TypeAlias = data.DataOptions
    UniformOptions: TypeAlias = recipe.UniformOptions
else:
    _finish = {
        **dict.fromkeys(("weight_form", "accuracy_level", "float16", "float16_io", "embeddings"), LEVELS),
        **dict.fromkeys(("min_quality", "min_speedup", "fix_slow"), QUALITY),
        **dict.fromkeys(("verify", "measure_speed", "timing_batch"), RUN),
    }
    UniformOptions = _options(recipe.UniformOptions, LEVELS, {})
    MethodOptions = _options(recipe.MethodOptions, METHOD, {"target": LEVELS})
    FinishOptions = _options(recipe.FinishOptions, METHOD, _finish)
    RunOptions = _options(recipe.RunOptions, RUN, {})
    _read = {"mean": Several, "std": Several, "allow_random": Flag, "seed": Parameter(parse=False)}
    CalibrationOptions = _options(data.DataOptions, DATA, {}, **_read, size=Parameter(name=("--image-size", "--size")))
    StudyDataOptions = _options(data.DataOptions, DATA, {}, **_read, size=Parameter(name="--image-size"))
    _few = Parameter(help="Run at most so many samples, evenly spread over the data. [default: 64]")
    _debugged = {**_read, "allow_random": Parameter(parse=False), "samples": _few}
    DebugDataOptions = _options(data.DataOptions, DATA, {}, **_debugged, size=Parameter(name="--image-size"))


@Parameter(name="*", group=SEARCH)
@dataclass(frozen=True)
class SearchingOptions:
    """How a budget chooses levels."""

    sensitivity: Literal["layer", "output", "task"] = "output"
    """What a level costs in quality: its layer loss, the output loss with it alone, or a task's. [default: output]"""
    search: Literal["dp", "spdy"] = "dp"
    """dp: the optimum for the sum of sensitivities; spdy: a search around it, judged on whole models. [default: dp]"""
    task: str | None = None
    """module.py:function(outputs, labels) giving a loss, for --sensitivity task. [default: cross-entropy of labels]"""
    timings: Path | None = None
    """A table of seconds that onnx-obc time wrote, for --budget latency. [default: measured here]"""
    other_machine: Annotated[bool, Flag] = False
    """Let --timings of another machine pass: the speed-up is then predicted, not measured."""


def chosen_recipe(path: Path | None, skip: Sequence[str], *options: object) -> Recipe:
    """The recipe file, if any, with the options of the command line over it and --skip before its rules."""
    from ..pipeline.recipe import Recipe, SkipOption, make_recipe, read_recipe

    base = Recipe() if path is None else read_recipe(path)
    rules = (*(SkipOption(match=pattern) for pattern in skip), *base.layers)
    return make_recipe({**dict(base), **given(*options), "layers": rules}, source="command line")


def check_threads(threads: int | None) -> None:
    """Raise RecipeError for a number of threads that no runtime can be given."""
    if threads is not None and threads < 1:
        raise RecipeError(f"--threads {threads}: ask for at least 1")


def given(*options: object) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for group in options for name, value in vars(group).items() if value is not None}
