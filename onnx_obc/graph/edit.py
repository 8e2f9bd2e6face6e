"""The names that are taken in a model, and free ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir


def names_of(model: ir.Model) -> Iterator[str]:
    """Every name of a value or a node, those inside bodies too."""
    for graph in model.graphs():
        yield from (value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name)
    for node in model.graph.all_nodes():
        if node.name:
            yield node.name
        yield from (value.name for value in node.outputs if value.name)


def free_name(name: str, taken: Collection[str]) -> str:
    """This name, or the first of name_1, name_2, … that is not taken."""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
