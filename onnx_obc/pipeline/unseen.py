"""Activations that the calibration data never shows: they have no range, and stay float."""

from __future__ import annotations

from dataclasses import replace

from ..core.level import Choice
from ..graph.layers import find_layers
from ..targets.registry import TARGETS
from .solve import Solutions

UNSEEN = (
    "its input is zero, or not reached at all, on every calibration sample, so that it has no range: it stays float"
)


def without_unseen(solutions: Solutions, target: str) -> Solutions:
    """Solutions of a plan, not written into yet, with the activations that were seen alone; reports say so.

    Any scale would do for what was seen of the others, and none for what comes later. A layer that reads one of them
    has a float input; what is quantized around it is chosen again.
    """
    plan, ranges = solutions.plan, solutions.ranges
    unseen = {value for value, observer in ranges.items() if observer.low == observer.high == 0}
    if not any(activation.value in unseen for activation in plan.ranged):
        return solutions
    readers = {node for found in plan.ranged if found.value in unseen for node, _ in found.readers}
    choices = dict(plan.choices)
    found = dict(solutions.solved)
    for layer in plan.layers:
        choice = choices[layer.name]
        if choice.activation_bits is None or choice.dynamic or not any(use.node in readers for use in layer.uses):
            continue
        choices[layer.name] = Choice(choice.level)
        if layer.name in found:
            report = found[layer.name].report
            report = replace(report, activations="float", notes=(*report.notes, UNSEEN))
            found[layer.name] = replace(found[layer.name], report=report)
    placed = TARGETS[target].place_qdq(plan.model, find_layers(plan.model)[0], choices)
    seen = tuple(one for one in placed if one.dynamic or (one.value in ranges and one.value not in unseen))
    return replace(solutions, plan=replace(plan, choices=choices, activations=seen), solved=found)
