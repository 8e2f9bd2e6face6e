"""The weight form of older TensorRT releases: floats behind QuantizeLinear and DequantizeLinear, not integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph.edit import add_initializer, free_name, names_of
from ...graph.fold import remove_unused


def quantize_in_graph(model: ir.Model) -> ir.Model:
    """A copy of a Q/DQ model in which 8-bit weights are floats that a QuantizeLinear turns into the same integers.

    A float is code · scale, rounded to float32, which divided by the scale again rounds to the code. Weights in blocks
    and of 4 bits stay integers: releases that take those take integers.
    """
    copy = model.clone()
    taken = set(names_of(copy))
    for node in [node for node in copy.graph if node.op_type == "DequantizeLinear"]:
        codes, scale = node.inputs[0], node.inputs[1]
        constant = None if codes is None else ir.convenience.get_const_tensor(codes)
        steps = None if scale is None else ir.convenience.get_const_tensor(scale)
        if codes is None or constant is None or steps is None or constant.dtype != ir.DataType.INT8:
            continue
        if node.attributes.get_int("block_size", 0) != 0:
            continue
        array, step = constant.numpy().astype(np.float32), steps.numpy()
        axis = node.attributes.get_int("axis", 1)
        shape = [1] * array.ndim
        if step.size > 1:
            shape[axis] = -1
        name = free_name(f"{codes.name}_float", taken)
        taken.add(name)
        value = add_initializer(copy.graph, name, array * step.reshape(shape))
        attributes = {"axis": axis} if step.size > 1 else {}
        quantize = ir.node("QuantizeLinear", [value, *node.inputs[1:]], attributes=attributes)
        quantize.name = free_name(f"{codes.name}_QuantizeLinear", taken)
        quantize.outputs[0].name = free_name(f"{codes.name}_again", taken)
        quantize.outputs[0].dtype, quantize.outputs[0].shape = ir.DataType.INT8, value.shape
        taken |= {quantize.name, str(quantize.outputs[0].name)}
        copy.graph.insert_before(node, quantize)
        node.replace_input_with(0, quantize.outputs[0])
    remove_unused(copy)
    return copy
