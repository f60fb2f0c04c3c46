"""Where ONNX Runtime keeps pictures channels-last, and what would make it turn them early.

Its integer convolutions read [N, H, W, C]. It turns the first input and moves the turn back, past
what it knows, to where something asks for [N, C, H, W]. Chapter 15.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ptq_course.deploy.onnx.file import NewNodes, all_nodes, constant, is_dequantize

NEAREST = {
    "nearest_mode": "floor",
    "coordinate_transformation_mode": "asymmetric",
}  # pixel i of the result is pixel floor(i / factor)
LARGEST = 8  # a factor; each copy is an input of a Concat
# Behind these it pools channels-last by itself.
PASSED = ("Conv", "Relu", "Clip", "Add", "MaxPool")


def turn_behind_pooling(model: ir.Model) -> None:
    """Write a turn where pooled pictures become rows: pooling then runs channels-last as well.

    Flattening [N, C, 1, 1] and [N, 1, 1, C] gives the same rows, so the Transpose changes nothing,
    and it cancels the one that ONNX Runtime would put in front of the last activation, where that
    is a curve such as SiLU. Pooling and that turn took 78 us of 1.62 ms with it in front, 8 us
    without, in the course's EfficientNet-like network (32 pictures, one thread). Only behind
    rounded values: in floating point the runtime has another layout.
    """
    for node in list(all_nodes(model)):
        value = node.inputs[0] if _makes_rows(node) else None
        pooled = _computed_by(value)
        if value is None or pooled is None or pooled.op_type != "GlobalAveragePool":
            continue
        source = pooled.inputs[0]
        if source is None or not is_dequantize(source.producer()):
            continue
        before = _computed_by(source)
        if before is None or before.op_type in PASSED:
            continue
        if source.shape is None or len(source.shape) != 4:
            continue
        turn = ir.Node(
            "", "Transpose", [value], [ir.AttrInt64s("perm", (0, 2, 3, 1))],
            outputs=[ir.Value(name=f"{value.name}_rows", type=value.type)],
        )  # fmt: skip
        assert node.graph is not None
        node.graph.insert_before(node, turn)
        node.replace_input_with(0, turn.outputs[0])


def repeat_channels_last(model: ir.Model) -> None:
    """Write nearest upsampling of codes by whole factors as copies of pixels and of rows.

    ONNX Runtime turns a Resize to channels-last as well, and has no fast path for it there. Copies
    of whole pixels are contiguous: Concat makes them, between two turns that cancel those of the
    convolutions around. A network of convolutions, pooling and upsampling took 0.62 of its time
    with Resize (`benchmarks/activations.py`). Where height or width stay free, Resize stays.
    (OpenVINO has a fast Resize: there the same network took 2.6 times as long with copies.)
    """
    for node in list(all_nodes(model)):
        factors = _whole_factors(node)
        if factors is None or node.outputs[0].is_graph_output():
            continue
        behind = node.outputs[0].consumers()
        if len(behind) != 1 or behind[0].op_type != "QuantizeLinear" or not _moves_codes(node):
            continue
        quantize, (source, *_) = behind[0], node.inputs
        picture = _picture(node.outputs[0])
        assert node.graph is not None
        assert picture is not None
        channels, height, width = picture
        new = NewNodes(node)
        x = new.add("QuantizeLinear", [source, *quantize.inputs[1:]])
        x = new.add("Transpose", [x], perm=(0, 2, 3, 1))
        x = new.add("Concat", [x] * factors[1], axis=3)
        x = new.add("Reshape", [x, new.constant([0, 0, 1, -1])])
        x = new.add("Concat", [x] * factors[0], axis=2)
        x = new.add("Reshape", [x, new.constant([-1, height, width, channels])])
        x = new.add("Transpose", [x], perm=(0, 3, 1, 2))
        quantize.outputs[0].replace_all_uses_with(x)
        node.graph.remove([quantize, node], safe=True)
    RemoveUnusedNodesPass()(model)  # what computed the sizes


def _whole_factors(node: ir.Node) -> tuple[int, int] | None:
    """By how much a Resize repeats rows and columns of pictures; None where it does more."""
    if node.op_type != "Resize" or not isinstance(node.graph, ir.Graph):
        return None
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return None
    if any(node.attributes.get_string(name, "") != value for name, value in NEAREST.items()):
        return None
    before, after = _picture(node.inputs[0]), _picture(node.outputs[0])
    if before is None or after is None or before[0] != after[0]:
        return None
    rows, columns = after[1] // before[1], after[2] // before[2]
    exact = (before[1] * rows, before[2] * columns) == after[1:]
    if not exact or not (1 <= rows <= LARGEST and 1 <= columns <= LARGEST):
        return None
    return (rows, columns) if rows * columns > 1 else None


def _picture(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Channels, height and width of pictures; None where one is free, or these are no pictures."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    known = [n for n in value.shape[1:] if isinstance(n, int)]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def _moves_codes(node: ir.Node) -> bool:
    """Whether a node reads decoded values, pooling passed over."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    while before is not None and before.op_type == "MaxPool" and before.inputs[0] is not None:
        before = before.inputs[0].producer()
    return is_dequantize(before)


def _makes_rows(node: ir.Node) -> bool:
    """Whether a node writes the values it reads in their order, whatever their dimensions are."""
    if node.domain:
        return False
    if node.op_type == "Flatten":
        axis = node.attributes.get("axis")
        return axis is None or axis.as_int() == 1
    shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    return shape is not None and not (shape.numpy()[1:] == 0).any()  # 0 would copy a dimension


def _computed_by(value: ir.Value | None) -> ir.Node | None:
    """The node that computed a value, Q/DQ nodes passed over; theirs have one scale for all."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node
