"""The pipeline: read and fold, find, capture, solve, write, verify. Each stage takes plain values and returns them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.split import describe, split
from ..core.errors import ModelError
from ..core.progress import Feedback
from ..graph.model import input_specs, read_model
from ..graph.save import check_beside, check_output
from .correct import check_trainable
from .examine import Evaluation, open_examiner
from .finish import Destination, Result, finish, hand_over
from .gates import check_gates
from .learned import check_learning
from .material import Material
from .options import LEARNED
from .plan import make_plan, prepare
from .recipe import Recipe
from .sequential import solve_sequentially, worth_solving_in_order
from .solve import Solutions, capture_ranges, solve_plan
from .transform import transformed
from .verify import check_graph


def compress(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    *,
    data: DataOptions | None = None,
    evaluation: Evaluation | None = None,
    feedback: Feedback | None = None,
) -> Result:
    """Compress a trained ONNX model on calibration data, without labels.

    model:       a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model; never changed.
    calibration: a path or text as on the command line, a dict of arrays, a list of feeds, or a function that yields
                 feeds; see `onnx_obc.calibration.data.open_samples`.
    recipe:      what each layer is to become; None: int8 weights and activations.
    output:      where to write the result; None keeps it in memory.
    data:        how the calibration data is read.
    evaluation:  what the user judges models by; None: only outputs are compared.
    feedback:    where progress, plans and times are told.

    Raises ModelError, CalibrationError, RecipeError or OutputError for what cannot be done, before anything is
    written; VerificationError if the result fails a check, GateError if it fails one of the recipe's gates: it is then
    left under a `.rejected` name.
    """
    recipe, feedback = recipe or Recipe(), feedback or Feedback()
    data = data or DataOptions(seed=recipe.seed)
    check_trainable(recipe)
    check_learning(recipe)
    target = check_output(output, model) if output is not None else None
    watch = feedback.watch
    with watch("read"):
        dense = read_model(model)
        check_gates(recipe, dense, evaluation is not None)
        if target is not None:
            check_beside(dense, target)
        plain = prepare(dense, recipe.cast)
        plan = make_plan(plain, recipe)
        samples = open_samples(calibration, input_specs(plain.dense), data, plain.dense)
        calibrating, held_out = split(samples)
        about, notes = describe(samples, calibrating, held_out)
        examiner = open_examiner(plain.dense, evaluation, held_out, recipe.execution(), feedback.progress)
        folded, transforms = transformed(plain, plan, calibrating, held_out, recipe, feedback)
        plan = make_plan(folded, recipe) if folded is not plain else plan
        checks = [check_graph(plain.dense, plan.model, held_out, recipe)] if recipe.verify else []

    in_order, rival = bool(recipe.sequential and plan.layers), None
    if in_order and recipe.solver in LEARNED:  # to learn on dense inputs as well would take as long again
        solutions = Solutions(plan, {}, capture_ranges(plan, calibrating, recipe, feedback))
    else:
        solutions = solve_plan(plan, calibrating, recipe, feedback)
        if recipe.sequential is None and held_out is not calibrating:
            in_order = worth_solving_in_order(solutions, calibrating, recipe)
        rival = solutions if in_order else None
    if in_order:
        plan = make_plan(folded, recipe)
        try:
            exact = recipe.sequential is None  # or it would not be worth it
            solutions = solve_sequentially(plan, folded, solutions.ranges, calibrating, recipe, feedback, exact)
        except ModelError as error:
            if rival is None or recipe.sequential:
                raise
            rival, notes = None, [*notes, f"layers were not solved in order: {error}"]
    material = Material(model, folded, calibrating, held_out, about, notes, examiner, transforms, plain)
    result = finish(material, solutions, recipe, Destination(target), feedback, checks, rival)
    hand_over([result])
    return result
