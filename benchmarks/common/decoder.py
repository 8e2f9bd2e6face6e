"""A decoder of the Llama shape with random weights, written to disk tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. Its weights are hidden² · (4 + 3 · inner / hidden) for each block, and two tables."""

    blocks: int = 12
    hidden: int = 2048
    inner: int = 5632
    heads: int = 16
    vocabulary: int = 32000
    length: int = 64


def write_decoder(path: Path, shape: Shape, seed: int = 0) -> int:
    """Write `path` and, beside it, `path.name + ".data"`; returns the bytes of the weights. One weight is in memory.

    Input `tokens` int64 (batch, length); output `logits` (batch, length, vocabulary). Causal, with rotary positions.
    """
    writer = _Writer(path.name + ".data", seed)
    with path.with_name(writer.location).open("wb") as writer.file:
        _build(writer, shape)
    graph = helper.make_graph(
        writer.nodes,
        "decoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", shape.length])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", shape.length, shape.vocabulary])],
        writer.tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return writer.offset


class _Writer:
    """Collects nodes, and writes weights as they come."""

    def __init__(self, location: str, seed: int) -> None:
        self.location, self.offset = location, 0
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int) -> str:
        """A random weight beside the model; rows of unit length in the mean."""
        array = self._random.standard_normal(shape, np.float32)
        array *= np.float32(shape[0] ** -0.5)
        tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": self.location, "offset": str(self.offset), "length": str(array.nbytes)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        array.tofile(self.file)
        self.offset += array.nbytes
        self.tensors.append(tensor)
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant inside the model."""
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        """A node with one output, which it is named by."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _build(w: _Writer, shape: Shape) -> None:
    wide, size = shape.hidden, shape.hidden // shape.heads
    angles = np.arange(shape.length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)  # (length, size / 2)
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        w.constant(name, np.concatenate([table, table], 1).astype(np.float32)[None, None])
    w.constant("mask", np.triu(np.full((shape.length, shape.length), -1e9, np.float32), 1))
    w.constant("scale", np.float32(size**-0.5))
    w.constant("two", np.float32(2))
    w.constant("tiny", np.float32(1e-5))
    w.constant("split", np.array([0, 0, shape.heads, size], np.int64))
    w.constant("merge", np.array([0, 0, wide], np.int64))
    x = w.node("Gather", [w.weight("embedding", shape.vocabulary, wide), "tokens"], "embedded")
    for index in range(shape.blocks):
        at = f"block{index}"
        x = w.node("Add", [x, _attention(w, _norm(w, x, f"{at}/norm1", wide), at, shape)], f"{at}/attended")
        normal = _norm(w, x, f"{at}/norm2", wide)
        gate = w.node("MatMul", [normal, w.weight(f"{at}/gate.weight", wide, shape.inner)], f"{at}/gate")
        up = w.node("MatMul", [normal, w.weight(f"{at}/up.weight", wide, shape.inner)], f"{at}/up")
        silu = w.node("Mul", [gate, w.node("Sigmoid", [gate], f"{at}/sigmoid")], f"{at}/silu")
        product = w.node("Mul", [silu, up], f"{at}/product")
        down = w.node("MatMul", [product, w.weight(f"{at}/down.weight", shape.inner, wide)], f"{at}/down")
        x = w.node("Add", [x, down], f"{at}/out")
    w.node("MatMul", [_norm(w, x, "norm", wide), w.weight("head.weight", wide, shape.vocabulary)], "logits")


def _norm(w: _Writer, x: str, at: str, wide: int) -> str:
    """RMSNorm."""
    mean = w.node("ReduceMean", [w.node("Pow", [x, "two"], f"{at}/square")], f"{at}/mean", axes=[-1])
    root = w.node("Sqrt", [w.node("Add", [mean, "tiny"], f"{at}/safe")], f"{at}/root")
    unit = w.node("Div", [x, root], f"{at}/unit")
    return w.node("Mul", [unit, w.constant(f"{at}/gain", np.ones(wide, np.float32))], f"{at}/normed")


def _attention(w: _Writer, x: str, at: str, shape: Shape) -> str:
    heads = {}
    for name in "qkv":
        flat = w.node("MatMul", [x, w.weight(f"{at}/{name}.weight", shape.hidden, shape.hidden)], f"{at}/{name}")
        split = w.node("Reshape", [flat, "split"], f"{at}/{name}_split")
        heads[name] = w.node("Transpose", [split], f"{at}/{name}_heads", perm=[0, 2, 1, 3])
    q, k = (_rotated(w, heads[name], f"{at}/{name}") for name in "qk")
    scores = w.node("MatMul", [q, w.node("Transpose", [k], f"{at}/k_turned", perm=[0, 1, 3, 2])], f"{at}/scores")
    masked = w.node("Add", [w.node("Mul", [scores, "scale"], f"{at}/scaled"), "mask"], f"{at}/masked")
    mixed = w.node("MatMul", [w.node("Softmax", [masked], f"{at}/shares", axis=-1), heads["v"]], f"{at}/mixed")
    merged = w.node(
        "Reshape", [w.node("Transpose", [mixed], f"{at}/merged_heads", perm=[0, 2, 1, 3]), "merge"], f"{at}/merged"
    )
    return w.node("MatMul", [merged, w.weight(f"{at}/o.weight", shape.hidden, shape.hidden)], f"{at}/o")


def _rotated(w: _Writer, x: str, at: str) -> str:
    """Rotary positions: x · cos + (−x₂, x₁) · sin."""
    first, second = f"{at}/first", f"{at}/second"
    w.nodes.append(helper.make_node("Split", [x], [first, second], name=f"{at}/halves", axis=-1))
    turned = w.node("Concat", [w.node("Neg", [second], f"{at}/negative"), first], f"{at}/turned", axis=-1)
    parts = [w.node("Mul", [x, "cos"], f"{at}/by_cos"), w.node("Mul", [turned, "sin"], f"{at}/by_sin")]
    return w.node("Add", parts, f"{at}/rotated")
