"""Check an ONNX file against the rules of TensorRT's explicit quantization, without TensorRT.

Chapter 15. "Explicit" means that Q/DQ nodes say where integers are. The rules are those of
NVIDIA's TensorRT documentation (chapters "Working with Quantized Types" and "Explicit
Quantization"), as far as a file shows them. TensorRT itself was not run here: a file without breach
can still be refused, for example for an operator or a shape, and some breaches (``fusion``,
``residual``) cost speed only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptq_course.deploy.onnx.reading import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    GraphReader,
    attribute,
    label,
    load,
)
from ptq_course.errors import QuantizationError, needs

with needs("onnx"):
    import onnx
    from onnx import NodeProto

MIN_OPSET, MAX_OPSET = 13, 20  # per-channel Q/DQ came with 13; TensorRT 10.0 reads up to 20

RULES = {
    "opset": f"the operator set is {MIN_OPSET} to {MAX_OPSET}",
    "format": "quantization is written as Q/DQ nodes around ordinary operators of ONNX itself",
    "type": "codes are int8: no uint8, int16, int32 or 4-bit activations and weights",
    "zero_point": "every zero point is a constant 0",
    "scale": "every scale is constant, positive and finite",
    "per_tensor": "an activation has one scale",
    "axis": "a weight has one scale, or exactly one per output channel",
    "block": "int8 has no scales per block",
    "pair": "a Q is read by DQ nodes only, with its own scale, zero point and axis",
    "weight": "the weight of an integer layer passes a DQ that serves this layer alone",
    "input": "both factors of a product are quantized, or neither",
    "bias": "a bias stays in floating point, without Q/DQ",
    # It costs speed where one input comes straight from a convolution: NVIDIA's guide has Q/DQ on
    # the identity branch only there, so that TensorRT computes convolution and Add in one kernel,
    # with a sum that is not rounded in between.
    "residual": "both inputs of an Add between integer layers are quantized (faster, since fused: "
    "a pair on the identity branch only)",
    "fusion": "no Q/DQ stands between a layer and its batch norm or ReLU",
}
_FORMATS = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm")
_MOVING = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Pad",
    "Slice", "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Resize",
)  # fmt: skip
_OWN_DOMAIN = ("", "ai.onnx")
_ACTIVATIONS = ("Relu", "BatchNormalization", "Clip")


@dataclass(frozen=True)
class Breach:
    """One place that breaks one rule: key of `RULES`, the node, what was found, what to do."""

    rule: str
    node: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}: {self.found}. {self.remedy}"


class Breaches(list[Breach]):
    """A list of breaches that prints one a line."""

    def __str__(self) -> str:
        if not self:
            return f"no breach of {len(RULES)} rules (TensorRT itself was not run)"
        places = "place" if len(self) == 1 else "places"
        return "\n".join([f"{len(self)} {places} to change:", *(f"  {b}" for b in self)])

    __repr__ = __str__


def check_tensorrt(path: str | Path, max_opset: int = MAX_OPSET) -> Breaches:
    """Every breach of TensorRT's explicit-quantization rules that can be read from the file.

    max_opset: the newest operator set that your release reads (its support matrix says which).
    Raises QuantizationError where the file is missing, is not ONNX or is damaged: nodes in a
    circle, inputs that are missing, constants whose data do not fit. Weights that the file keeps in
    another file are not read. See the module's text for what this cannot know.
    """
    proto = load(path)
    try:
        graphs = list(GraphReader(proto.graph, Path(path).parent).subgraphs())
        breaches = Breaches(_model_rules(proto, graphs, max_opset))
        for graph in graphs:
            breaches += _graph_rules(graph)
    except QuantizationError as error:
        raise QuantizationError(f"{path}: {error}") from error
    except Exception as error:  # a damaged byte can turn a constant or an attribute into anything
        raise QuantizationError(
            f"{path}: a constant or an attribute is damaged ({type(error).__name__}: {error}); "
            "export the model again."
        ) from error
    return breaches


def _graph_rules(graph: GraphReader) -> Iterator[Breach]:
    for node in graph.nodes:
        if node.domain not in _OWN_DOMAIN:
            continue  # the rule "format" speaks of it
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            yield from _grid_rules(graph, node)
        if node.op_type == QUANTIZE:
            yield from _pair_rules(graph, node)
            yield from _fusion_rules(graph, node)
        if node.op_type in WEIGHTED:
            yield from _layer_rules(graph, node)
        if node.op_type == "Add":
            yield from _add_rules(graph, node)


def _model_rules(
    proto: onnx.ModelProto, graphs: list[GraphReader], max_opset: int
) -> Iterator[Breach]:
    opset = next((o.version for o in proto.opset_import if o.domain in _OWN_DOMAIN), 0)
    if not MIN_OPSET <= opset <= max_opset:
        yield Breach(
            "opset", "the file", f"operator set {opset}",
            f"Export with {MIN_OPSET} to {max_opset}.",
        )  # fmt: skip
    nodes = [node for graph in graphs for node in graph.nodes]
    for node in nodes:
        if node.domain not in _OWN_DOMAIN:
            yield Breach(
                "format", label(node), f"an operator of {node.domain}, not of ONNX",
                "Write Q/DQ around ordinary operators, without extensions of one runtime.",
            )  # fmt: skip
        elif node.op_type.startswith(_FORMATS):
            yield Breach(
                "format", label(node), "an integer operator",
                "Write Q/DQ around the ordinary operator.",
            )  # fmt: skip
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE, *_FORMATS) for node in nodes):
        yield Breach(
            "format", "the file", "no Q/DQ node at all", "Export a quantized model."
        )  # fmt: skip


# --- one Q or DQ: its type, zero point and scales ------------------------------------------------


def _grid_rules(graph: GraphReader, node: NodeProto) -> Iterator[Breach]:
    if _is_bias(graph, node):
        return  # the rule "bias" speaks of it
    found = _code_type(graph, node)
    if found not in ("INT8", None):
        yield Breach(
            "type", label(node), f"the codes are {found.lower()}",
            "Quantize with QConfig.tensorrt(), which is signed.",
        )  # fmt: skip
    zero_name = node.input[2] if len(node.input) > 2 else ""
    zeros = graph.constant(zero_name) if zero_name else np.zeros(1)
    if zeros is None or np.any(zeros.astype(np.int64)):
        what = "computed" if zeros is None else f"{int(np.abs(zeros.astype(np.int64)).max())}"
        yield Breach(
            "zero_point", label(node), f"the zero point is {what}",
            "Use symmetric ranges: QConfig.tensorrt().",
        )  # fmt: skip
    scale = graph.constant(node.input[1])
    if scale is None or not np.all(np.isfinite(scale) & (scale > 0)):
        what = "is no constant here" if scale is None else f"holds {float(np.min(scale)):g}"
        yield Breach(
            "scale", label(node), f"the scale {what}", "Make every scale a positive constant."
        )  # fmt: skip
    if attribute(node, "block_size", 0):
        yield Breach(
            "block", label(node), f"blocks of {attribute(node, 'block_size')}",
            "Use one scale per tensor, or per output channel of a weight.",
        )  # fmt: skip
    elif scale is not None and scale.size > 1 and not graph.is_constant(node.input[0]):
        yield Breach(
            "per_tensor", label(node), f"an activation has {scale.size} scales",
            "Give the tensor one scale.",
        )  # fmt: skip


def _code_type(graph: GraphReader, node: NodeProto) -> str | None:
    """The integer type that a Q writes or a DQ reads; None where only another node can tell."""
    if node.op_type == DEQUANTIZE and node.input[0] in graph.initializers:
        return graph.type_name(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return graph.type_name(node.input[2])
    if node.op_type == QUANTIZE:
        wanted = attribute(node, "output_dtype", 0)
        return onnx.TensorProto.DataType.Name(wanted) if wanted else "UINT8"  # ONNX's default
    return None


# --- Q/DQ pairs, and what they must not separate -------------------------------------------------


def _pair_rules(graph: GraphReader, node: NodeProto) -> Iterator[Breach]:
    for reader in graph.readers(node.output[0]):
        if reader.op_type != DEQUANTIZE:
            yield Breach(
                "pair", label(node), f"its codes go to {label(reader)}",
                "Put a DequantizeLinear right behind it.",
            )  # fmt: skip
        elif not _same_grid(graph, node, reader):
            yield Breach(
                "pair",
                label(reader),
                f"its scale, zero point or axis is not that of {label(node)}",
                "Use the same constants for both.",
            )  # fmt: skip


def _same_grid(graph: GraphReader, first: NodeProto, second: NodeProto) -> bool:
    for position in (1, 2):
        names = [n.input[position] if len(n.input) > position else "" for n in (first, second)]
        if names[0] == names[1]:
            continue
        one, other = (graph.constant(n) if n else np.zeros(()) for n in names)
        if one is None or other is None or not _equal(one, other):
            return False
    scale = graph.constant(first.input[1])
    if scale is not None and scale.size == 1:
        return True
    return attribute(first, "axis", 1) == attribute(second, "axis", 1)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = np.broadcast_arrays(a, b)
    return bool(np.all((a == b) | ((a != a) & (b != b))))  # the rule "scale" speaks of NaN


def _fusion_rules(graph: GraphReader, node: NodeProto) -> Iterator[Breach]:
    before = graph.producer.get(node.input[0])
    if before is None or before.op_type not in WEIGHTED:
        return
    for pair in graph.readers(node.output[0]):
        for after in graph.readers(pair.output[0]) if pair.op_type == DEQUANTIZE else ():
            if after.op_type in _ACTIVATIONS:
                yield Breach(
                    "fusion", label(node), f"it separates {label(before)} from {label(after)}",
                    "Move the Q/DQ pair behind the activation, or fold the batch norm.",
                )  # fmt: skip


# --- layers with weights, residual additions -----------------------------------------------------


def _layer_rules(graph: GraphReader, node: NodeProto) -> Iterator[Breach]:
    x, weight = node.input[:2]
    left = node.op_type == "MatMul" and graph.is_constant(x) and not graph.is_constant(weight)
    if left:
        x, weight = weight, x
    if node.op_type == "MatMul" and not graph.is_constant(weight):
        if _is_dequantized(graph, x) != _is_dequantized(graph, weight):
            yield Breach(
                "input", label(node), "one of the two activations is quantized, the other is not",
                "Put a Q/DQ pair on both, or on neither.",
            )  # fmt: skip
        return  # a product of two activations has no weight
    dequantize, perm = graph.weight_node(weight)
    quantized_input = _is_dequantized(graph, x)
    if len(node.input) > 2 and graph.comes_from(node.input[2], DEQUANTIZE):
        yield _bias_breach(node)
    if dequantize is None:
        if quantized_input:
            yield Breach(
                "weight", label(node), "the input is quantized, the weight is not",
                "Store int8 codes and a DequantizeLinear, or leave the input unquantized too.",
            )  # fmt: skip
        return
    if not quantized_input:
        yield Breach(
            "input", label(node), "the weight is quantized, the input is not",
            "Quantize the activation too (activation_bits=8).",
        )  # fmt: skip
    if len(graph.readers(dequantize.output[0])) > 1:
        yield Breach(
            "weight", label(node), f"{label(dequantize)} serves several layers",
            "Give each layer a DequantizeLinear of its own.",
        )  # fmt: skip
    scale = graph.constant(dequantize.input[1])
    if scale is None or scale.size == 1 or attribute(dequantize, "block_size", 0):
        return
    axis = _axis(graph, dequantize)
    wanted = _output_axis(graph, node, dequantize, perm, left)
    codes = _codes(graph, dequantize)
    if codes is not None and codes.dims[axis] != scale.size:
        yield Breach(
            "axis", label(dequantize), f"{scale.size} scales for {codes.dims[axis]} channels",
            "Give the weight one scale, or one per output channel.",
        )  # fmt: skip
    elif axis != wanted:
        yield Breach(
            "axis", label(dequantize), f"the scales of the weight lie on axis {axis}",
            f"The output channels of {node.op_type} lie on axis {wanted}.",
        )  # fmt: skip


def _codes(graph: GraphReader, dequantize: NodeProto) -> onnx.TensorProto | None:
    name = dequantize.input[0]
    quantize = graph.comes_from(name, QUANTIZE)
    return graph.initializers.get(name if quantize is None else quantize.input[0])


def _rank(graph: GraphReader, dequantize: NodeProto) -> int:
    codes = _codes(graph, dequantize)
    return 2 if codes is None else len(codes.dims)


def _axis(graph: GraphReader, dequantize: NodeProto) -> int:
    return int(attribute(dequantize, "axis", 1)) % _rank(graph, dequantize)


def _output_axis(
    graph: GraphReader, node: NodeProto, dequantize: NodeProto, perm: list[int] | None,
    left: bool = False,
) -> int:  # fmt: skip
    """Axis of the stored weight that holds the output channels; left: it is a MatMul's first."""
    rank = _rank(graph, dequantize)
    if node.op_type == "Gemm":
        axis = 0 if attribute(node, "transB", 0) else 1
    else:
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 2 if left else rank - 1}[
            node.op_type
        ]
    if perm is None:
        return axis
    return perm[axis] if perm else rank - 1 - axis


def _add_rules(graph: GraphReader, node: NodeProto) -> Iterator[Breach]:
    constants = [graph.is_constant(name) for name in node.input]
    if any(constants):
        bias = node.input[constants.index(True)]
        if graph.comes_from(bias, DEQUANTIZE):
            yield _bias_breach(node)
        return
    quantized = [_is_dequantized(graph, name) for name in node.input]
    if all(quantized):
        return
    if any(quantized) or _feeds_quantize(graph, node):
        what = "one input is" if any(quantized) else "its inputs are"
        yield Breach(
            "residual", label(node), f"{what} not quantized",
            "Put a Q/DQ pair on both inputs; else it is computed in floating point.",
        )  # fmt: skip


def _is_dequantized(graph: GraphReader, name: str) -> bool:
    """Whether a tensor comes from a DQ, also through operations that only move values."""
    return graph.comes_from(graph.origin(name, _moves), DEQUANTIZE) is not None


def _moves(node: NodeProto) -> bool:
    if node.op_type == "Resize" and attribute(node, "mode", b"nearest") != b"nearest":
        return False  # it averages neighbours
    return node.op_type in _MOVING


def _feeds_quantize(graph: GraphReader, node: NodeProto) -> bool:
    readers = graph.readers(node.output[0])
    behind = [r for n in readers if n.op_type in _ACTIVATIONS for r in graph.readers(n.output[0])]
    return any(reader.op_type == QUANTIZE for reader in [*readers, *behind])


def _is_bias(graph: GraphReader, node: NodeProto) -> bool:
    """Whether a Q or DQ belongs to a bias (the third input of a layer, or a constant in an Add)."""
    for reader in graph.readers(node.output[0]):
        if reader.op_type == DEQUANTIZE and node.op_type == QUANTIZE:
            return _is_bias(graph, reader)
        if reader.op_type in WEIGHTED and list(reader.input).index(node.output[0]) == 2:
            return True
        if reader.op_type == "Add" and graph.is_constant(node.input[0]):
            return True
    return False


def _bias_breach(node: NodeProto) -> Breach:
    return Breach(
        "bias", label(node), "the bias is quantized",
        "Write it in floating point: export(..., target='tensorrt').",
    )  # fmt: skip
