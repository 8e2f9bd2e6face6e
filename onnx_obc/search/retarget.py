"""From a database to models: a budget chooses a level for every layer, and the solutions are stitched together."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ..calibration.capture import run_costs
from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.readers.iterables import load_function
from ..calibration.samples import Samples, existing
from ..calibration.split import split
from ..core.errors import RecipeError
from ..core.level import Choice, parse_choice
from ..core.level_sets import read_levels
from ..core.options import names
from ..core.progress import Feedback, Stopwatch
from ..database.build import build, check_recipe
from ..database.files import read_manifest
from ..database.open import Database, open_database
from ..graph.half import float_bytes
from ..graph.layers import find_embeddings, find_layers
from ..graph.model import input_specs, read_model
from ..graph.save import check_beside, check_output
from ..graph.tied import find_ties
from ..pipeline.correct import check_trainable
from ..pipeline.examine import Examiner, open_examiner
from ..pipeline.finish import Destination, Result, hand_over
from ..pipeline.gates import check_gates
from ..pipeline.options import FinishOptions, RunOptions
from ..pipeline.plan import check_rules, possible_choices, prepare, share_beside
from ..pipeline.recipe import Recipe, SkippedInBuild, make_recipe
from ..targets.registry import TARGETS
from .budget import Budget
from .global_magnitude import sparsity_of
from .latency.find import check_timing, find_in_time, table_of
from .latency.find import in_words as speed_in_words
from .profile import Profile, SearchOptions, find_profile, sensitivities
from .reach import check_budgets

# Fields of a recipe that a search decides: the others were decided when the database was built.
SEARCHED = (*names(FinishOptions), *names(RunOptions))


def retarget(
    database: Database | str | Path,
    budgets: Sequence[Budget],
    outputs: Sequence[Path | None],
    options: SearchOptions = SearchOptions(),
    recipe: Mapping[str, Any] | None = None,
    *,
    source: object = None,
    feedback: Feedback | None = None,
    examiner: Examiner | None = None,
) -> list[Result]:
    """A model for every budget, each written to its output (None: kept in memory).

    recipe: fields of a Recipe that do not change solutions, such as `effort` and `verify`, over those that the
    database was built with. source: the model that the database was built from, for the report; None: the copy in the
    database. feedback: as for `compress`. examiner: of the evaluation in the options, where it is open already. Raises
    RecipeError if a budget cannot be met, and what `open_database` and `compress` raise.
    """
    feedback = feedback or Feedback()
    progress = feedback.progress
    targets = [None if output is None else check_output(output, None) for output in outputs]
    database = database if isinstance(database, Database) else open_database(database)
    chosen = _recipe(database, recipe or {})
    choices = [database.choices[layer.name] for layer in database.layers]
    _check_pattern(chosen, [choice for found in choices for choice in found])
    check_budgets(budgets, database.layers, database.costs, choices, database.target, options.timings)
    _check_options(budgets, chosen, database.dense, options)
    if examiner is None:
        held_out, execution = database.samples["held_out"], chosen.execution()
        examiner = open_examiner(database.dense, options.evaluation, held_out, execution, progress)
    if chosen.solver == "gmp":  # one threshold decides, and no loss
        options = replace(options, sensitivity="layer", search="dp")
    losses = sensitivities(database, options, chosen, progress)
    if any(budget.kind == "latency" for budget in budgets):
        options = replace(options, timings=table_of(database, options, chosen, progress))
    results = []
    for budget, target in zip(budgets, targets, strict=True):
        feedback = replace(feedback, watch=Stopwatch())
        watch = feedback.watch
        with watch("search"):
            timed = None
            if budget.kind == "latency":
                timed = find_in_time(database, budget, losses, options, chosen, progress)
                profile = timed.profile
            else:
                profile = find_profile(database, budget, losses, options, chosen, progress, examiner)
        feedback.say(f"{budget}: {_in_words(profile)}")
        search = {
            "budget": str(budget),
            "search": "global magnitude" if chosen.solver == "gmp" else options.search,
            "sensitivity": options.sensitivity,
            "predicted_loss": profile.predicted,
            "costs": dict(profile.costs),
            "latency": None if timed is None or options.timings is None else speed_in_words(timed, options.timings),
        }
        destination = Destination(target, search, _beside_the_layers(budget, database, chosen))
        results.append(database.write(profile.choices, chosen, destination, feedback, source, examiner))
    hand_over(results)
    return results


def _beside_the_layers(budget: Budget, database: Database, recipe: Recipe) -> tuple[str, ...]:
    """A note for a budget of size where a good part of the model's weights stays float, which it does not count."""
    if budget.kind != "size":
        return ()
    tables = find_embeddings(database.graph)
    counted = {layer.weight_name for layer in database.layers}
    counted |= {tie.table.name for tie in find_ties(tables, database.layers)}  # of which the plan's notes tell
    sizes = {"embeddings": 0, "other weights": 0}
    for name, value in database.graph.graph.initializers.items():
        weight = value.const_value
        if weight is None or name in counted or len(weight.shape) < 2 or not weight.dtype.is_floating_point():
            continue
        table = any(table.name == name for table in tables)
        if not (table and recipe.embeddings != "float"):
            sizes["embeddings" if table else "other weights"] += float_bytes(database.graph) * weight.size
    told = " and ".join(what for what, size in sizes.items() if size)
    share = share_beside(sum(sizes.values()), database.layers)
    return () if share is None else (f"the budget counts the layers' weights only: {share} are {told}",)


def _in_words(profile: Profile) -> str:
    """How many layers have which level, the most frequent ones first."""
    counts = Counter(str(choice) for choice in profile.choices.values()).most_common()
    shown = ", ".join(f"{count} × {name}" for name, count in counts[:6])
    return shown + (", …" if len(counts) > 6 else "")


def compress_to_budget(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object,
    budgets: Sequence[Budget],
    outputs: Sequence[Path | None],
    recipe: Recipe | None = None,
    options: SearchOptions = SearchOptions(),
    *,
    data: DataOptions | None = None,
    feedback: Feedback | None = None,
) -> list[Result]:
    """`build` and `retarget` in one. Without a database in the options the solutions are thrown away at the end.

    A budget that is out of reach whatever the losses are, and a metric that does not fit, is refused before anything is
    solved.
    """
    dense, feedback = read_model(model), feedback or Feedback()
    for output in outputs:
        if output is not None:
            check_beside(dense, check_output(output, model))
    recipe = recipe or Recipe()
    levels = options.levels or ("unstructured" if recipe.solver == "gmp" else default_levels(budgets[0], recipe.target))
    _check_options(budgets, recipe, dense, options)
    over = {name: value for name, value in dict(recipe).items() if name in (*SEARCHED, "layers")}
    folded = prepare(dense, recipe.cast)
    samples = open_samples(calibration, input_specs(folded.dense), data or DataOptions(seed=recipe.seed), folded.dense)
    _check_reachable(budgets, folded.model, samples, levels, recipe, options)
    held_out = split(samples)[1]  # with labels of all kinds, of which a database keeps classes alone
    examiner = open_examiner(folded.dense, options.evaluation, held_out, recipe.execution(), feedback.progress)
    with ExitStack() as stack:
        folder = options.database or stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-obc-"))
        build(folded, samples, levels, folder, recipe, feedback=feedback)
        return retarget(folder, budgets, outputs, options, over, source=model, feedback=feedback, examiner=examiner)


def _check_reachable(
    budgets: Sequence[Budget],
    graph: ir.Model,
    samples: Samples,
    levels: str,
    recipe: Recipe,
    options: SearchOptions,
) -> None:
    """`check_budgets` for a database that is not built yet: by these levels, and those that it has from before."""
    check_recipe(recipe)
    layers, left_out = find_layers(graph)
    check_rules(graph, layers, left_out, recipe)
    wanted = read_levels(levels, zero_points=TARGETS[recipe.target].zero_points(None))
    earlier = read_manifest(Path(options.database)) if options.database is not None else None
    named = list(dict.fromkeys([*map(str, wanted), *(earlier.levels if earlier is not None else ())]))
    _check_pattern(recipe, [parse_choice(name) for name in named])
    choices = possible_choices(layers, [parse_choice(name) for name in named], recipe)
    if any(len(found) > 1 for found in choices.values()):  # if not, `build` says so
        costs = run_costs(graph, layers, split(samples)[0], recipe.execution())
        found, target = list(choices.values()), TARGETS[recipe.target]
        check_budgets(budgets, layers, costs, found, target, options.timings)


def _check_options(budgets: Sequence[Budget], recipe: Recipe, dense: ir.Model, options: SearchOptions) -> None:
    """Raise RecipeError or EngineError, before any work, for what does not go together or nothing here could judge."""
    check_trainable(recipe)
    check_gates(recipe, dense, options.evaluation is not None)
    if recipe.fix_slow:
        raise RecipeError("--fix-slow returns layers to float, which a budget may not pay for; leave it out")
    if any(budget.kind == "latency" for budget in budgets):
        check_timing(options, recipe)
    elif options.timings is not None or options.other_machine:
        name = "--timings" if options.timings is not None else "--other-machine"
        raise RecipeError(f"{name} has no effect without --budget latency=…; add it, or leave the option out")


def _check_pattern(recipe: Recipe, choices: Sequence[Choice]) -> None:
    """Raise RecipeError if the recipe's solver is gmp and one threshold cannot decide among these."""
    for choice in choices if recipe.solver == "gmp" else ():
        sparsity_of(choice)


def default_levels(budget: Budget, target: str) -> str:
    """The level set for a budget where none was named; for latency what the runtime is faster with."""
    if budget.kind == "latency":
        return TARGETS[target].latency_levels
    if budget.kind in ("size", "drop"):
        return TARGETS[target].size_levels
    return "unstructured" if budget.kind == "flops" else "gpu"


def output_names(output: Path, budgets: Sequence[Budget]) -> list[Path]:
    """The files for several budgets: out.onnx becomes out-bops-12x.onnx and so on; for one or none as it is."""
    if len(budgets) < 2:
        return [output]
    names = [f"{output.stem}-{str(budget).replace('=', '-').replace('%', 'pct')}{output.suffix}" for budget in budgets]
    if len(set(names)) < len(names):
        raise RecipeError("--budget: the same budget was given twice; leave one out")
    return [output.with_name(name) for name in names]


def load_task(text: str) -> Callable[..., Any]:
    """The function of `module.py:function`. Raises CalibrationError."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py"):
        raise RecipeError(f"--task {text}: write module.py:function, a Python file and a function in it")
    return load_function(existing(Path(path)), name)


def _recipe(database: Database, over: Mapping[str, Any]) -> Recipe:
    """The recipe that the database was built with, and over it what a search may choose."""
    built = dict(database.manifest.recipe)
    rules = [SkippedInBuild(match=pattern) for pattern in built.pop("skip")]
    for name, value in over.items():
        if name in built and built[name] != value:
            raise RecipeError(
                f"--{name.replace('_', '-')} {value}: {database.folder} was built with {built[name]}; build another one"
            )
    return make_recipe({**built, "layers": rules, **over}, "search")
