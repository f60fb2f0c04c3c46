"""PReLU with a slope for each channel, written as arithmetic. Chapter 15.

ONNX Runtime computes PRelu value by value, with a branch for each sign: on random signs 3 to 4
nanoseconds a value, as long as 30 multiplications by a vector take.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq_course.deploy.onnx.file import NewNodes, all_nodes, constant


def write_slopes_as_arithmetic(model: ir.Model) -> None:
    """max(x, slope * x) where all slopes lie in (0, 1], else max(x, 0) + slope * min(x, 0).

    Every value is that of PRelu, to the bit. Files of two convolutions with a PReLU behind each
    took less than half of their time in FP32, and a third in INT8 (`benchmarks/activations.py`).
    """
    for node in list(all_nodes(model)):
        if node.op_type != "PRelu" or node.domain or not isinstance(node.graph, ir.Graph):
            continue
        x, slope = node.inputs
        given, new = constant(slope), NewNodes(node)
        if given is not None and ((given.numpy() > 0) & (given.numpy() <= 1)).all():
            result = new.add("Max", [x, new.add("Mul", [x, slope])])
        else:
            negative = new.add("Clip", [x, None, new.constant(0.0)])
            result = new.add("Add", [new.add("Relu", [x]), new.add("Mul", [negative, slope])])
        old = node.outputs[0]
        result.type, result.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)
        result.name, old.name = old.name, None
