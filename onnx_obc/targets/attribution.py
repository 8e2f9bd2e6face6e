"""Which nodes of a file each kernel computes, and which layer its time belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .engine import Kernel


def covered(graph: ir.Graph, owners: Mapping[ir.Node, int]) -> dict[int, list[str]]:
    """The names of the nodes that each kernel computes.

    owners: the kernel of each node that an engine names. A node that it does not name was fused into what reads it.
    """
    found: dict[int, list[str]] = defaultdict(list)
    for node in graph:
        reader: ir.Node | None = node
        while reader is not None and reader not in owners:
            reader = next((use.node for value in reader.outputs for use in value.uses()), None)
        if reader is not None:
            found[owners[reader]].append(node_name(node))
    return found


def node_name(node: ir.Node) -> str:
    """A node's name, or that of its output where it has none."""
    return str(node.name or node.outputs[0].name)


def seconds_of_layers(
    kernels: Sequence[Kernel], layers: Mapping[str, str], shares: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """The seconds of each layer by name, and those that belong to none.

    layers: the layer of each node that multiplies, by the node's name. A kernel that covers several layers counts for
    each in proportion to `shares`, its operations. One that covers none, such as a sum, a pooling or a conversion,
    belongs where the last of the kernels that it reads belongs: its type follows from theirs. Kernels before the first
    layer belong to none.
    """
    owners: list[tuple[str, ...]] = []
    found: dict[str, float] = {}
    rest = 0.0
    for kernel in kernels:
        own = tuple(dict.fromkeys(layers[node] for node in kernel.nodes if node in layers))
        if not own:
            before = [owners[source] for source in sorted(kernel.sources) if source < len(owners) and owners[source]]
            own = before[-1][-1:] if before else ()
        owners.append(own)
        if not own:
            rest += kernel.seconds
            continue
        total = sum(shares.get(name, 1.0) for name in own)
        for name in own:
            part = shares.get(name, 1.0) / total if total > 0 else 1 / len(own)
            found[name] = found.get(name, 0.0) + part * kernel.seconds
    return found, rest
