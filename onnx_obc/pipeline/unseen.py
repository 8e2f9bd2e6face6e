"""Activations that the calibration data never shows: they have no range, and stay float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..calibration.ranges import RangeObserver
from ..graph.layers import find_layers
from ..targets.registry import TARGETS
from .layer import Solved
from .plan import Plan

UNSEEN = (
    "its input is zero, or not reached at all, on every calibration sample, so that it has no range: it stays float"
)


def without_unseen(
    plan: Plan, solved: Mapping[str, Solved], ranges: Mapping[str, RangeObserver], target: str
) -> tuple[Plan, dict[str, Solved]]:
    """The plan, not written into yet, with the activations that were seen alone, and the reports that say so.

    Any scale would do for what was seen of the others, and none for what comes later. A layer that reads one of them
    has a float input; what is quantized around it is chosen again.
    """
    unseen = {value for value, observer in ranges.items() if observer.low == observer.high == 0}
    if not any(activation.value in unseen for activation in plan.activations):
        return plan, dict(solved)
    readers = {node for found in plan.activations if found.value in unseen for node, _ in found.readers}
    choices = dict(plan.choices)
    found = dict(solved)
    for layer in plan.layers:
        if choices[layer.name].activation_bits is None or not any(use.node in readers for use in layer.uses):
            continue
        choices[layer.name] = replace(choices[layer.name], activation_bits=None)
        if layer.name in found:
            report = found[layer.name].report
            report = replace(report, activations="float", notes=(*report.notes, UNSEEN))
            found[layer.name] = replace(found[layer.name], report=report)
    placed = TARGETS[target].place_qdq(plan.model, find_layers(plan.model)[0], choices)
    seen = tuple(one for one in placed if one.value in ranges and one.value not in unseen)
    return replace(plan, choices=choices, activations=seen), found
