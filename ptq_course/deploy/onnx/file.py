"""What is changed in a finished ONNX graph: traces of this machine, shared weights, 4-bit weights.

The passes here and in `compact` work on onnx_ir's graph, the one that torch.onnx.export fills: a
value knows who reads it, branches and loops included, so that nothing walks the graph to find out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from ptq_course.deploy.onnx.optimizing import is_look_up

LSTM_CODES = (1, 2, 9, 11)  # inputs of DynamicQuantizeLSTM: two weights, and their zero points


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the graph, those in its branches and loops, and those of its functions."""
    for graph in (model.graph, *model.functions.values()):
        yield from ir.traversal.RecursiveGraphIterator(graph)


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether this is a DequantizeLinear; None is no node."""
    return node is not None and node.op_type == "DequantizeLinear"


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant of the file; None for what is computed, and for no value."""
    return value.const_value if value is not None and value.is_initializer() else None


def known(value: ir.Value | None) -> ir.TensorProtocol:
    """The tensor of what is known to be a constant of the file."""
    tensor = constant(value)
    assert tensor is not None
    return tensor


def place(part: ir.Node | ir.Value) -> ir.Graph | ir.Function:
    """The graph, branch or function that a part of the model stands in."""
    assert part.graph is not None
    return part.graph


def strip(model: ir.Model) -> None:
    """Remove stack traces and paths of this machine, which can outweigh the weights.

    So can the shapes of what is computed in between, which a runtime infers.
    """
    ClearMetadataAndDocStringPass()(model)
    for part in (model, model.graph, *model.graph.inputs, *model.graph.outputs):
        part.doc_string = None
        part.metadata_props.clear()
    for node in all_nodes(model):
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None


def own_weights(model: ir.Model) -> None:
    """Give every reader of constant codes zero points of its own, and codes if they are shared.

    torch.onnx.export stores equal constants once. On x86 without VNNI, ONNX Runtime's exact mode
    rewrites int8 weights as uint8, each with its zero point, and fails where two share one.
    TensorRT wants a DequantizeLinear of its own for each layer.
    """
    _separate_readers(model)
    used: set[ir.Value | None] = set()
    recurrent = [n for n in all_nodes(model) if n.op_type == "DynamicQuantizeLSTM"]
    for node in [*_of_constants(model), *recurrent]:
        for position in (0, 2) if is_dequantize(node) else LSTM_CODES:
            value = node.inputs[position] if len(node.inputs) > position else None
            if value is not None and value in used and constant(value) is not None:
                value = _copied(value, f"{node.outputs[0].name}_own{position}")
                node.replace_input_with(position, value)
            used.add(value)


def _of_constants(model: ir.Model) -> list[ir.Node]:
    found = [node for node in all_nodes(model) if is_dequantize(node)]
    return [node for node in found if constant(node.inputs[0]) is not None]


def _copied(value: ir.Value, name: str) -> ir.Value:
    """A constant of its own with the same tensor, in the same graph."""
    tensor = ir.Tensor(known(value).numpy(), dtype=known(value).dtype, name=name)
    own = ir.Value(name=name, const_value=tensor, type=value.type, shape=value.shape)
    graph = place(value)
    assert isinstance(graph, ir.Graph)  # a function holds no constants
    graph.register_initializer(own)
    return own


def _separate_readers(model: ir.Model) -> None:
    """Copy a DequantizeLinear of a constant for each further node that reads it."""
    for node in _of_constants(model):
        output = node.outputs[0]
        for number, (reader, position) in enumerate(list(output.uses())[1:], start=1):
            name = f"{output.name}_reader{number}"
            own = ir.Node(
                "", node.op_type, node.inputs, node.attributes.values(),
                outputs=[ir.Value(name=name)],
            )  # fmt: skip
            place(node).insert_after(node, own)
            reader.replace_input_with(position, own.outputs[0])


def pack_four_bits(model: ir.Model, convolutions: bool = False) -> None:
    """Store the codes of every DequantizeLinear with blocks as INT4, two to a byte.

    convolutions: those of convolutions too, where every code fits 4 bits.
    """
    for node in _of_constants(model):
        codes, blocks = known(node.inputs[0]), node.attributes.get("block_size")
        if codes.dtype != ir.DataType.INT8:
            continue
        if (blocks is not None and blocks.as_int()) or (
            convolutions
            and all("Conv" in reader.op_type for reader in node.outputs[0].consumers())
            and np.all(codes.numpy() == np.clip(codes.numpy(), -8, 7))
        ):
            for value in filter(None, (node.inputs[0], *node.inputs[2:])):  # and zero points
                packed = known(value).numpy().astype(ir.DataType.INT4.numpy())
                value.const_value = ir.Tensor(packed, dtype=ir.DataType.INT4, name=value.name)
                value.dtype = ir.DataType.INT4


def pack_codebooks(model: ir.Model) -> None:
    """Store codes of 4 bits or fewer that look up a codebook as UINT4, two to a byte."""
    for node in all_nodes(model):
        source = node.inputs[1].producer() if node.op_type == "Gather" and node.inputs[1] else None
        if source is None or not is_look_up(source):
            continue
        codes, book = source.inputs[0], constant(node.inputs[0])
        if codes is None or book is None or book.shape.numpy()[0] > 16:
            continue
        if known(codes).dtype == ir.DataType.UINT8:
            packed = known(codes).numpy().astype(ir.DataType.UINT4.numpy())
            codes.const_value = ir.Tensor(packed, dtype=ir.DataType.UINT4, name=codes.name)
            codes.dtype = ir.DataType.UINT4


def part_fp8_from_clamps(model: ir.Model) -> None:
    """Put a Max of one input, which changes nothing, between a clamp and a QuantizeLinear to FP8.

    ONNX Runtime (1.32) looks whether the quantizer makes the clamp needless, knows integers only,
    and refuses to open the file.
    """
    fp8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
    for node in [n for n in all_nodes(model) if n.op_type == "QuantizeLinear"]:
        x, _, zeros = node.inputs
        clamp = x.producer() if x is not None else None
        to_fp8 = (tensor := constant(zeros)) is not None and tensor.dtype in fp8
        if to_fp8 and clamp is not None and clamp.op_type in ("Relu", "Clip"):
            between = ir.Node("", "Max", [x])
            place(node).insert_before(node, between)
            node.replace_input_with(0, between.outputs[0])


def prune(model: ir.Model) -> None:
    """Remove constants that nothing reads, in no graph."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
