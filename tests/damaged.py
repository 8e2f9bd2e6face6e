"""Compressed files of this tool with one layer damaged on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Damage:
    """What was done to which layer, and what is then at fault: weights or activations."""

    layer: str
    kind: str
    fault: str


class Wounded:
    """A healthy int8 file in Q/DQ form, and the layers whose weights and inputs it quantizes, by this tool's names."""

    def __init__(self, healthy: onnx.ModelProto) -> None:
        self._healthy = healthy
        producers = {output: node for node in healthy.graph.node for output in node.output}
        readers: dict[str, int] = {}
        for node in healthy.graph.node:
            for name in node.input:
                readers[name] = readers.get(name, 0) + 1
        outputs = {value.name for value in healthy.graph.output}
        self.weights: dict[str, str] = {}  # the layer's codes, by its name
        self.inputs: dict[str, str] = {}  # the scale of its input, where no other node reads that quantized
        for node in healthy.graph.node:
            weight = next((producers[name] for name in node.input[:2] if _is_weight(producers.get(name))), None)
            if node.op_type not in ("Conv", "MatMul", "Gemm") or weight is None:
                continue
            layer = weight.input[0].removesuffix(".weight_quantized")
            self.weights[layer] = weight.input[0]
            data = next((name for name in node.input[:2] if name != weight.output[0]), "")
            source = producers.get(data)
            if source is None or source.op_type != "DequantizeLinear" or data in outputs:
                continue
            if readers[data] == 1 and readers[source.input[0]] == 1:
                self.inputs[layer] = source.input[1]

    def trial(self, number: int) -> tuple[onnx.ModelProto, Damage]:
        """The damaged file of a trial: kinds in turn, layers drawn by the number."""
        rng = np.random.default_rng(number)
        kind = KINDS[number % len(KINDS)]
        model = onnx.ModelProto()
        model.CopyFrom(self._healthy)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        eligible = self.inputs if kind == "clipped input" else self.weights
        names = sorted(name for name in eligible if _can(kind, numpy_helper.to_array(tensors[self.weights[name]])))
        layer = names[int(rng.integers(len(names)))]
        if kind == "clipped input":
            name = self.inputs[layer]
        elif kind == "wrong scale":
            name = self.weights[layer].replace(".weight_quantized", ".weight_scale")
        else:
            name = self.weights[layer]
        changed = CHANGES[kind](numpy_helper.to_array(tensors[name]), rng)
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))
        return model, Damage(layer, kind, "activations" if kind == "clipped input" else "weights")


def _is_weight(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight_quantized")


def _can(kind: str, codes: Array) -> bool:
    if kind == "transposed weight":  # square, and not the same when it is turned
        return codes.shape[0] == codes.shape[1] > 1
    return kind != "permuted weight" or codes.shape[0] > 2


def _permuted(codes: Array, rng: np.random.Generator) -> Array:
    return np.roll(codes, int(rng.integers(1, len(codes))), axis=0)


def _zeroed(codes: Array, rng: np.random.Generator) -> Array:
    changed = codes.copy()
    axis = 0 if codes.ndim > 2 else 1
    rows = rng.permutation(codes.shape[axis])[: max(1, codes.shape[axis] // 2)]
    if axis == 0:
        changed[rows] = 0
    else:
        changed[:, rows] = 0
    return changed


CHANGES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "wrong scale": lambda scale, rng: np.asarray(scale * np.float32(rng.choice([0.4, 2.5]))),
    "permuted weight": _permuted,
    "clipped input": lambda scale, rng: np.asarray(scale / np.float32(rng.uniform(6, 12)), np.float32),
    "zeroed rows": _zeroed,
    "transposed weight": lambda codes, rng: np.swapaxes(codes, 0, 1),
}
KINDS = tuple(CHANGES)
