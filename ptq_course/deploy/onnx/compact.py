"""What a finished ONNX file says twice, or says though it is the default, and can do without.

Weights of a byte make everything else count: in a small network of 50 layers, names and second
copies of scales weigh a quarter of the file. Nothing here changes what the file computes.

What a reader of the graph needs stays: inputs and outputs keep their names, and each weight is
called as its layer (``blocks.3.conv.weight``). Other tensors get one or two letters, and nodes no
name, which ONNX allows.
"""

from __future__ import annotations

import itertools
import string
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

# Defaults that ONNX's schema only describes in words.
WRITTEN_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}


def compact(proto: onnx.ModelProto) -> None:
    """Write the same graph with fewer bytes; `own_weights` has run."""
    drop_zero_points(proto)
    multiply_bias_scales(proto)
    drop_defaults(proto)
    shorten_names(proto)


def drop_zero_points(proto: onnx.ModelProto) -> None:
    """Remove the zero points, all 0, of biases and of the weights of integer convolutions.

    They are optional in ONNX. Gemm keeps them: without them ONNX Runtime does not fuse it. So does
    a convolution in floating point: there ONNX Runtime's exact mode, which rewrites int8 weights as
    uint8, gives a weight without a zero point one that is too short.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    convolved = {node.input[1] for node in _integer_convolutions(proto)}
    for node in proto.graph.node:
        codes = constants.get(node.input[0]) if _is_dequantize(node) else None
        if codes is None or len(node.input) < 3 or node.input[2] not in constants:
            continue
        optional = codes.data_type == TensorProto.INT32 or node.output[0] in convolved
        if optional and not numpy_helper.to_array(constants[node.input[2]]).any():
            del node.input[2]
    _prune(proto)


def _integer_convolutions(proto: onnx.ModelProto) -> Iterator[NodeProto]:
    """The Conv nodes that become one integer kernel, whatever else is in the network.

    DQ in front, one Q behind, an int32 bias, and uint8 on both sides: on x86 the runtime has no
    kernel for int8 activations, and rewrites them as uint8 only where it can.
    """
    nodes = proto.graph.node
    unsigned = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.UINT8}
    producer = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in proto.graph.output}
    for node in nodes:
        if node.op_type != "Conv" or node.output[0] in outputs:
            continue
        before = [producer.get(name) for name in node.input]
        if all(n is not None and _is_dequantize(n) for n in before):
            behind = readers[node.output[0]]
            pair = [before[0], *behind]
            if [n.op_type for n in behind] == ["QuantizeLinear"] and all(
                len(n.input) > 2 and n.input[2] in unsigned for n in pair
            ):
                yield node


def multiply_bias_scales(proto: onnx.ModelProto) -> None:
    """Compute the scale of an int32 bias, s_x * s_w, in the file: a Mul instead of a constant.

    The runtime folds it when it opens the file. Only where the product is the scale to the bit.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    before: dict[str, NodeProto] = {}  # the Mul in front of a bias's DequantizeLinear
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        x = producer.get(node.input[0])
        while x is not None and x.op_type in ("Reshape", "Flatten", "Transpose"):
            x = producer.get(x.input[0])
        chain = [x, *(producer.get(name) for name in node.input[1:3])]
        if not all(n is not None and _is_dequantize(n) for n in chain):
            continue
        scales = [constants.get(n.input[1]) for n in chain]
        bias = chain[2]
        if bias.output[0] in before or any(scale is None for scale in scales):
            continue
        s_x, s_w, s_bias = map(numpy_helper.to_array, scales)
        if np.array_equal(s_x * s_w, s_bias):
            names, output = [n.input[1] for n in chain[:2]], f"{bias.input[1]}_of_{bias.output[0]}"
            before[bias.output[0]] = helper.make_node("Mul", names, [output])
            bias.input[1] = output
    nodes = [n for node in graph.node for n in (before.get(node.output[0]), node) if n is not None]
    _replace(graph.node, nodes)
    _prune(proto)


def drop_defaults(proto: onnx.ModelProto) -> None:
    """Remove attributes that hold the default of their operator."""
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        scalar = (_is_dequantize(node) or node.op_type == "QuantizeLinear") and (
            node.input[1] in constants and not constants[node.input[1]].dims
        )
        kept = [
            a
            for a in node.attribute
            if not _is_default(a, schema, node.op_type) and not (scalar and a.name == "axis")
        ]
        _replace(node.attribute, kept)


def _is_default(given: AttributeProto, schema: onnx.defs.OpSchema, op_type: str) -> bool:
    if op_type == "Conv" and given.name in WRITTEN_DEFAULTS:
        return all(n == WRITTEN_DEFAULTS[given.name] for n in given.ints)
    known = schema.attributes.get(given.name)
    default = known.default_value if known is not None else None
    if default is None or default.type == AttributeProto.UNDEFINED or default.type != given.type:
        return False
    return helper.get_attribute_value(default) == helper.get_attribute_value(given)


def shorten_names(proto: onnx.ModelProto) -> None:
    """Name each weight as its layer, other tensors by letters, and no node."""
    graph = proto.graph
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
           for node in graph.node for a in node.attribute):  # fmt: skip
        return  # branches and loops read tensors of the graph around them
    names = {value.name: value.name for value in [*graph.input, *graph.output]} | {"": ""}
    for tensor in graph.initializer:
        if len(tensor.dims) > 1 and tensor.name not in names:
            name = tensor.name.removesuffix("_codes")
            names[tensor.name] = tensor.name if name in names.values() else name
    taken = set(names.values())
    letters = (name for name in _letters() if name not in taken)

    def renamed(name: str) -> str:
        if name not in names:
            names[name] = next(letters)
        return names[name]

    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)


def _letters() -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)


def _is_dequantize(node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear"


def _prune(proto: onnx.ModelProto) -> None:
    """Remove constants that nothing reads."""
    graph = proto.graph
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])


def _replace(field: object, items: list) -> None:
    """Put ``items`` into a repeated field of a protocol buffer (copies, since they may be its)."""
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        copies.append(copy)
    del field[:]
    field.extend(copies)
