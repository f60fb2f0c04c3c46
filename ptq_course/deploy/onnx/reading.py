"""Reading an ONNX graph: who computes a tensor, who reads it, what a constant holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ptq_course.errors import QuantizationError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
THROUGH = (QUANTIZE, DEQUANTIZE, "Transpose", "Identity")  # what a constant stays constant behind
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
    """Look-ups in a graph; tensors are addressed by name, those of the graph around it included.

    outer: the graph around a branch or loop. Nodes without a name get one, for messages: a layer
    that of its weight, another node that of the layer, or the input, which it follows.
    """

    def __init__(self, graph: onnx.GraphProto, outer: GraphReader | None = None) -> None:
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers = {} if outer is None else dict(outer.initializers)
        self.initializers |= {tensor.name: tensor for tensor in graph.initializer}
        self.producer: dict[str, NodeProto] = {} if outer is None else dict(outer.producer)
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
        self._name_nodes([value.name for value in graph.input])

    def _name_nodes(self, inputs: list[str]) -> None:
        behind = dict(zip(inputs, inputs, strict=True))  # tensor -> layer or input that it follows
        for node in self.nodes:
            weight = self.weight_name(node)
            before = weight or next((behind[n] for n in node.input if n in behind), "")
            if not node.name and before:
                node.name = f"{'of' if weight else 'behind'} {before!r}"
            behind |= dict.fromkeys(node.output, before) if before else {}

    def weight_name(self, node: NodeProto) -> str:
        """The layer that a node belongs to, told by the name of its weight; "" for none."""
        names = node.input[:2] if node.op_type in WEIGHTED else node.input[:1]
        for name in names:
            while name in self.producer and self.producer[name].op_type in THROUGH:
                name = self.producer[name].input[0]
            if name in self.initializers and name.endswith(".weight"):
                return name.removesuffix(".weight")
        return ""

    def subgraphs(self) -> Iterator[GraphReader]:
        """This graph, and those in its branches and loops."""
        yield self
        for node in self.nodes:
            for given in node.attribute:
                for graph in [given.g] if given.HasField("g") else given.graphs:
                    yield from GraphReader(graph, self).subgraphs()

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
        return node is not None and node.op_type in THROUGH and self.is_constant(node.input[0])

    def weight_node(self, name: str) -> tuple[NodeProto | None, list[int] | None]:
        """The DequantizeLinear of a weight, and the perm of a Transpose between it and the user.

        (None, None) where the weight does not come from a DequantizeLinear.
        """
        perm = None
        node = self.producer.get(name)
        while node is not None and node.op_type in ("Transpose", "Identity"):
            perm = perm or attribute(node, "perm")
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
    """Type and name of a node, for messages (`GraphReader` names the nameless)."""
    return f"{node.op_type} {node.name or repr(node.output[0])}"
