"""Which layer each kernel's time belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .engine import Kernel


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
