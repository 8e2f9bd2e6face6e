"""A small network, and any model in half precision, by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_graphs import build, random

node = helper.make_node


def network(opset: int = 17) -> onnx.ModelProto:
    """Convolution, product, norm, activation and Gemm."""
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c"], name="conv", pads=[1] * 4),
        node("Relu", ["c"], ["r"], name="relu"),
        node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten"),
        node("MatMul", ["f", "w1"], ["m"], name="product"),
        node("LayerNormalization", ["m", "scale", "shift"], ["l"], name="norm"),
        node("Gemm", ["l", "w2", "b2"], ["y"], name="gemm", transB=1),
    ]
    weights = {"w0": random(16, 8, 3, 3) / 8, "b0": random(16) / 8, "w1": random(16, 32) / 4, "w2": random(10, 32) / 4}
    weights |= {"b2": random(10) / 8, "scale": np.ones(32, np.float32), "shift": np.zeros(32, np.float32)}
    return build(nodes, {"x": ("N", 8, 6, 6)}, {"y": ("N", 10)}, weights, opset)


def in_half(model: onnx.ModelProto, kind: int, stored: bool = False) -> onnx.ModelProto:
    """The same in a half type, by hand: all of it, or only its constants, behind Cast."""
    model, constants = onnx.ModelProto.FromString(model.SerializeToString()), []
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        constants.append(helper.make_tensor(constant.name + "_half" * stored, kind, values.shape, values.ravel()))
        if stored:
            cast = node("Cast", [f"{constant.name}_half"], [constant.name], to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    for value in () if stored else (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    onnx.checker.check_model(model, full_check=True)
    return model
