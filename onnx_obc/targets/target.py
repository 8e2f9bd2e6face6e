"""What a target is: one runtime, with its rules, its engine, and all else that depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from ..core.arrays import Feed
from ..core.level import Choice
from ..core.solution import Solution
from ..graph.layers import Layer
from ..graph.write import Activation
from .engine import Engine
from .finding import Finding
from .names import TargetName, WeightForm

Lowering: TypeAlias = Callable[[ir.Model], ir.Model]


@dataclass(frozen=True)
class Target:
    """One runtime that a graph can be written for.

    name: as users write it; title: as the runtime's makers write it. engine: runs files, where it is installed.
    unsupported(layer, choice) → why the runtime cannot take a layer so, or None.
    activation_bits(layer, choice) → the bits that this runtime has a use for, and why if they differ.
    not_dynamic(layer) → why a layer's input is better quantized on a range of calibration data where the user asks for
    that of each input, or None.
    unprofitable(layer, choice) → why a layer is better left in float, unless a rule of the user's names it, or None.
    prepare(model, layers, choice of each layer by name): rewrites the model, in place, to an equal form that the
    runtime takes better. Layers without a choice stay float.
    place_qdq(model, layers, choices) → what to quantize in a model that was prepared.
    fit_to_biases(layer, its solution) → the solution on scales that the biases in the written model fit, where an
    engine rounds those to the scales.
    check(model) → the rules that any ONNX file, whoever wrote it, breaks, as far as the graph alone shows them.
    one_reader(layer, choice) → whether a weight's integers may have one reader: nodes that share it have a copy each.
    weight_forms: the forms that integer weights are written in, and what rewrites a copy of a finished Q/DQ model to
    that form, or gives the model itself where it has that already; None: all have.
    zero_points(activation bits) → whether rows of weights below 8 bits have zero points unless the user says otherwise.
    signed_activations: whether activations are symmetric; shared_scale: whether all rows of a group of integer weights
    have the same scale; dynamic: whether inputs of products can be quantized on the range of each; embeddings: whether
    tables of integers can be looked up; tables_in_blocks: of 4 bits in blocks.
    divided_inputs: whether a product's input may be divided channel by channel in front of it.
    half_integers: whether products of integers are fused where they stand between floats of half precision.
    zeros: what pruned weights gain there, besides a compressed file that is smaller, as a sentence.
    latency_levels: the level set for budgets of latency where the user names none; size_levels: for those of size and
    loss.
    build_elsewhere(file, feed, its name) → how to run a file on a machine that has the engine; None: nothing to say.
    """

    name: TargetName
    title: str
    engine: Engine
    unsupported: Callable[[Layer, Choice], str | None]
    activation_bits: Callable[[Layer, Choice], tuple[int | None, str | None]]
    prepare: Callable[[ir.Model, Sequence[Layer], Mapping[str, Choice]], None]
    place_qdq: Callable[[ir.Model, Sequence[Layer], Mapping[str, Choice]], list[Activation]]
    fit_to_biases: Callable[[Layer, Solution], Solution]
    check: Callable[[ir.Model], list[Finding]]
    not_dynamic: Callable[[Layer], str | None] = lambda layer: None
    unprofitable: Callable[[Layer, Choice], str | None] = lambda layer, choice: None
    one_reader: Callable[[Layer, Choice], bool] = lambda layer, choice: False
    weight_forms: Mapping[WeightForm, Lowering | None] = field(default_factory=lambda: {"dq": None})
    zero_points: Callable[[int | None], bool] = lambda activation_bits: False
    signed_activations: bool = False
    shared_scale: bool = False
    dynamic: bool = False
    embeddings: bool = True
    tables_in_blocks: bool = False
    divided_inputs: bool = True
    half_integers: bool = True
    zeros: str = "zeros make nothing faster"
    latency_levels: str = "8w8a"
    size_levels: str = "weight-only"
    build_elsewhere: Callable[[Path, Feed, str], Finding] | None = None
