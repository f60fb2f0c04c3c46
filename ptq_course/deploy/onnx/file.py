"""What is changed in a finished ONNX file: traces of this machine, zero points, 4-bit weights."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper


def strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces and paths of this machine, which can outweigh the weights."""
    graph = proto.graph
    parts = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for item in [proto, graph, *parts]:
        item.ClearField("doc_string")
        del item.metadata_props[:]
    del graph.value_info[:]


def own_weights(proto: onnx.ModelProto) -> None:
    """Give every DequantizeLinear of a constant its own zero point, and its codes if shared.

    torch.onnx.export stores equal constants once. On x86 without VNNI, ONNX Runtime's exact mode
    rewrites int8 weights as uint8, each with its zero point, and fails where two share one.
    TensorRT wants a DequantizeLinear of its own for each layer.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    _separate_readers(proto, constants)
    used: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        for position in (0, 2):
            name = node.input[position] if len(node.input) > position else ""
            if not name:
                continue
            if name in used:
                own = onnx.TensorProto()
                own.CopyFrom(constants[name])
                own.name = f"{name}_of{number}_{position}"
                proto.graph.initializer.append(own)
                node.input[position] = own.name
            used.add(name)


def _separate_readers(proto: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Copy a DequantizeLinear of a constant for each further node that reads it."""
    nodes = list(proto.graph.node)
    for node in nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        readers = [reader for reader in nodes if node.output[0] in reader.input]
        for number, reader in enumerate(readers[1:], start=1):
            own = onnx.NodeProto()
            own.CopyFrom(node)
            suffix = f"_reader{number}"
            own.name, own.output[0] = node.name + suffix, node.output[0] + suffix
            proto.graph.node.insert(list(proto.graph.node).index(node) + 1, own)
            position = list(reader.input).index(node.output[0])
            reader.input[position] = own.output[0]


def pack_four_bits(proto: onnx.ModelProto) -> None:
    """Store the codes of every DequantizeLinear with blocks as INT4, two to a byte."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        blocks = any(a.name == "block_size" and a.i for a in node.attribute)
        if node.op_type != "DequantizeLinear" or not blocks:
            continue
        tensor = constants[node.input[0]]
        if tensor.data_type == TensorProto.INT8:
            codes = numpy_helper.to_array(tensor)
            packed = helper.make_tensor(tensor.name, TensorProto.INT4, codes.shape, codes.flatten())
            raw = bytes(packed.int32_data) if packed.int32_data else packed.raw_data
            packed.ClearField("int32_data")  # a varint would take two bytes for many of them
            packed.raw_data = raw
            tensor.CopyFrom(packed)
