"""What a finished ONNX graph says twice, or says though it is the default, and can do without.

Weights of a byte make everything else count: in a small network of 50 layers, names and second
copies of scales weigh a quarter of the file. Nothing here changes what the file computes.

What a reader of the graph needs stays: inputs and outputs keep their names, and each weight is
called as its layer (``blocks.3.conv.weight``). Other tensors get one or two letters, and nodes no
name, which ONNX allows.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from ptq_course.deploy.onnx.file import all_nodes, constant, is_dequantize, known, place, prune

# Defaults that ONNX's schema only describes in words.
WRITTEN_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}
WITH_AXIS = ("QuantizeLinear", "DequantizeLinear")


def compact(model: ir.Model) -> None:
    """The same graph, written with fewer bytes; `own_weights` has run."""
    drop_zero_points(model)
    multiply_bias_scales(model)
    drop_defaults(model)
    prune(model)
    shorten_names(model)


def drop_zero_points(model: ir.Model) -> None:
    """Remove the zero points, all 0, of biases and of the weights of integer convolutions.

    They are optional in ONNX. Gemm keeps them: without them ONNX Runtime does not fuse it. So does
    a convolution in floating point: there ONNX Runtime's exact mode, which rewrites int8 weights as
    uint8, gives a weight without a zero point one that is too short.
    """
    for node in filter(is_dequantize, all_nodes(model)):
        codes = constant(node.inputs[0])
        zeros = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if codes is None or zeros is None or zeros.numpy().any():
            continue
        readers = node.outputs[0].consumers()
        if codes.dtype == ir.DataType.INT32 or (
            len(readers) == 1
            and _is_integer_convolution(readers[0])
            and readers[0].inputs[1] is node.outputs[0]
        ):
            node.resize_inputs(2)


def _is_integer_convolution(node: ir.Node) -> bool:
    """Whether it becomes one integer kernel, whatever else is in the network.

    DQ in front, one Q behind, an int32 bias, and uint8 on both sides: on x86 the runtime has no
    kernel for int8 activations, and rewrites them as uint8 only where it can.
    """
    if node.op_type != "Conv" or node.outputs[0].is_graph_output():
        return False
    before = [value.producer() for value in node.inputs if value is not None]
    behind = node.outputs[0].consumers()
    if not all(map(is_dequantize, before)) or [n.op_type for n in behind] != ["QuantizeLinear"]:
        return False
    ends = [n for n in (before[0], *behind) if n is not None]
    zeros = [constant(n.inputs[2]) if len(n.inputs) > 2 else None for n in ends]
    return all(z is not None and z.dtype == ir.DataType.UINT8 for z in zeros)


def multiply_bias_scales(model: ir.Model) -> None:
    """Compute the scale of an int32 bias, s_x * s_w, in the file: a Mul instead of a constant.

    The runtime folds it when it opens the file. Only where the product is the scale to the bit.
    """
    for node in list(all_nodes(model)):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        x, weight, bias = (_producer(value) for value in node.inputs[:3])
        while x is not None and x.op_type in ("Reshape", "Flatten", "Transpose"):
            x = _producer(x.inputs[0])
        if x is None or weight is None or bias is None:
            continue
        parts = (x, weight, bias)
        if not all(is_dequantize(n) and constant(n.inputs[1]) is not None for n in parts):
            continue
        s_x, s_w, s_bias = (known(n.inputs[1]).numpy() for n in parts)
        if np.array_equal(s_x * s_w, s_bias):
            product = ir.Node("", "Mul", [x.inputs[1], weight.inputs[1]])
            place(bias).insert_before(bias, product)
            bias.replace_input_with(1, product.outputs[0])
    prune(model)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def drop_defaults(model: ir.Model) -> None:
    """Remove attributes that hold the default of their operator."""
    for node in all_nodes(model):
        if node.domain:
            continue
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""], "")
        scale = constant(node.inputs[1]) if node.op_type in WITH_AXIS else None
        for name, given in list(node.attributes.items()):
            scalar = name == "axis" and scale is not None and not len(scale.shape)
            if scalar or _is_default(given, schema, node.op_type):
                del node.attributes[name]


def _is_default(given: ir.Attr, schema: onnx.defs.OpSchema, op_type: str) -> bool:
    if op_type == "Conv" and given.name in WRITTEN_DEFAULTS:
        return all(n == WRITTEN_DEFAULTS[given.name] for n in given.as_ints())
    known = schema.attributes.get(given.name)
    if known is None or not known.default_value.type or given.is_ref():
        return False
    default = ir.from_proto(known.default_value)
    return default.type == given.type and default.value == given.value


def shorten_names(model: ir.Model) -> None:
    """Name each weight as its layer, other tensors by letters, and no node."""
    values = dict.fromkeys(v for node in all_nodes(model) for v in (*node.inputs, *node.outputs))
    values = [value for value in values if value is not None and value.name]
    taken = {value.name for value in [*values, *model.graph.inputs, *model.graph.outputs]}
    letters = (name for name in _letters() if name not in taken)
    for value in values:
        tensor = constant(value)
        if tensor is not None and len(tensor.shape) > 1:
            name = str(value.name).removesuffix("_codes")
            if name not in taken:
                value.name = name
                taken.add(name)
        elif not (value.is_graph_output() or value.is_graph_input()):
            value.name = next(letters)
    for node in all_nodes(model):
        node.name = None


def _letters() -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)
