"""Reading an ONNX graph: who computes a tensor, who reads it, what a constant holds."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ptq_course.errors import QuantizationError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def load(path: str | Path) -> onnx.ModelProto:
    """The model in a file; QuantizationError where there is none or it is not ONNX."""
    path = Path(path)
    if not path.is_file():
        raise QuantizationError(f"there is no file {path}; export the model first.")
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's own error types differ between versions
        raise QuantizationError(f"{path} is not an ONNX file ({error}).") from error
    if not proto.graph.node:
        raise QuantizationError(f"{path} holds no nodes; is it an ONNX file?")
    return proto


class GraphReader:
    """Look-ups in the main graph of a model; tensors are addressed by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = list(proto.graph.node)
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.output:
                self.producer[name] = node
            for name in filter(None, node.input):
                self.readers[name].append(node)
            if node.op_type == "Constant":
                value = next((a.t for a in node.attribute if a.name == "value"), None)
                if value is not None:
                    self.initializers[node.output[0]] = value

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a constant tensor; None for one that is computed."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def type_name(self, name: str) -> str | None:
        """INT8, FLOAT, ... of a constant tensor; None for one that is computed."""
        tensor = self.initializers.get(name)
        return None if tensor is None else TensorProto.DataType.Name(tensor.data_type)

    def comes_from(self, name: str, op_type: str) -> NodeProto | None:
        """The node that computes a tensor, if it is of that type."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == op_type else None

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is constant, also through Q/DQ and Transpose nodes."""
        if name in self.initializers:
            return True
        node = self.producer.get(name)
        through = (QUANTIZE, DEQUANTIZE, "Transpose", "Identity")
        return node is not None and node.op_type in through and self.is_constant(node.input[0])

    def weight_node(self, name: str) -> tuple[NodeProto | None, list[int] | None]:
        """The DequantizeLinear of a weight, and the Transpose (its perm) between it and the user.

        (None, None) where the weight does not come from a DequantizeLinear.
        """
        perm = None
        node = self.producer.get(name)
        if node is not None and node.op_type == "Transpose":
            perm = attribute(node, "perm")
            node = self.producer.get(node.input[0])
        if node is None or node.op_type != DEQUANTIZE:
            return None, None
        return node, perm


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def label(node: NodeProto) -> str:
    """Type and name of a node, for messages."""
    return f"{node.op_type} {node.name or node.output[0]!r}"
