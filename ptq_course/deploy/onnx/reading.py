"""Reading an ONNX graph: who computes a tensor, who reads it, what a constant holds.

The file may come from anybody. Weights that lie beside it are not loaded; questions about a tensor
are answered by one pass forward over the nodes, so that long chains cost no more than short ones.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from ptq_course.errors import QuantizationError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
THROUGH = (QUANTIZE, DEQUANTIZE, "Transpose", "Identity")  # what a constant stays constant behind
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALL = 2**20  # bytes of a scale or zero point that are read from a file beside the graph's


def load(path: str | Path) -> onnx.ModelProto:
    """The model in a file, without the data that it keeps in other files.

    Raises QuantizationError where there is none or it is not ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise QuantizationError(f"there is no file {path}; export the model first.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own error types differ between versions
        raise QuantizationError(f"{path} is not an ONNX file ({error}).") from error
    if not proto.graph.node:
        raise QuantizationError(f"{path} holds no nodes; is it an ONNX file?")
    return proto


class GraphReader:
    """Look-ups in a graph; tensors are addressed by name, those of the graph around it included.

    folder: where data outside the file lie. outer: the graph around a branch or loop, whose readers
    count the nodes in there. Nodes without a name get one, for messages: a layer that of its
    weight, another node that of the layer, or the input, which it follows.
    Raises QuantizationError for nodes in a circle or out of order, or without the inputs they need.
    """

    def __init__(
        self, graph: onnx.GraphProto, folder: Path = Path(), outer: GraphReader | None = None
    ) -> None:
        self.nodes: list[NodeProto] = list(graph.node)
        self.folder, self.outer = folder, outer
        self.initializers: ChainMap[str, TensorProto] = _inside(outer and outer.initializers)
        self.producer: ChainMap[str, NodeProto] = _inside(outer and outer.producer)
        self._readers: ChainMap[str, list[NodeProto]] = _inside(outer and outer._readers)
        self._origins: dict[Callable, ChainMap[str, str]] = {}
        self.initializers.update({tensor.name: tensor for tensor in graph.initializer})
        inputs = [value.name for value in graph.input]
        for name in [*inputs, *self.initializers.maps[0]]:
            self._readers.maps[0][name] = []
        self._connect()
        self._name_nodes(inputs)
        self.inner = [
            GraphReader(inner, folder, self)
            for node in self.nodes
            for given in node.attribute
            for inner in ([given.g] if given.HasField("g") else given.graphs)
        ]

    def _connect(self) -> None:
        """Note who computes and who reads each tensor, in the order of the nodes."""
        later = {name for node in self.nodes for name in node.output}
        for node in self.nodes:
            least = 2 if node.op_type in (QUANTIZE, DEQUANTIZE, *WEIGHTED) else 0
            if len(node.input) < least or not node.output:
                raise QuantizationError(
                    f"{label(node)} has {len(node.input)} inputs and {len(node.output)} outputs: "
                    "the file is damaged; export the model again."
                )
            for name in dict.fromkeys(filter(None, node.input)):
                if name in self._readers:
                    self._readers[name].append(node)
                elif name in later:
                    raise QuantizationError(
                        f"{label(node)} reads {name!r} before it is computed: the nodes form a "
                        "circle or are out of order, which ONNX forbids; export the model again."
                    )
            for name in node.output:
                self.producer[name] = node
                self._readers.maps[0][name] = []
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self.initializers[node.output[0]] = value

    def _name_nodes(self, inputs: list[str]) -> None:
        behind = dict(zip(inputs, inputs, strict=True))  # tensor -> layer or input that it follows
        for node in self.nodes:
            weight = self.weight_name(node)
            before = weight or next((behind[n] for n in node.input if n in behind), "")
            if not node.name and before:
                node.name = f"{'of' if weight else 'behind'} {before!r}"
            behind |= dict.fromkeys(node.output, before) if before else {}

    def origin(self, name: str, passes: Callable[[NodeProto], bool]) -> str:
        """The tensor that ``name`` comes from through nodes that ``passes`` lets through."""
        return self._all_origins(passes).get(name, name)

    def _all_origins(self, passes: Callable[[NodeProto], bool]) -> ChainMap[str, str]:
        if passes not in self._origins:
            found = _inside(self.outer and self.outer._all_origins(passes))
            for node in self.nodes:
                if node.input and passes(node):
                    start = found.get(node.input[0], node.input[0])
                    found.update(dict.fromkeys(node.output, start))
            self._origins[passes] = found
        return self._origins[passes]

    def weight_name(self, node: NodeProto) -> str:
        """The layer that a node belongs to, told by the name of its weight; "" for none."""
        for name in node.input[:2] if node.op_type in WEIGHTED else node.input[:1]:
            name = self.origin(name, _stays_constant)
            if name in self.initializers and name.endswith(".weight"):
                return name.removesuffix(".weight")
        return ""

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor, those in branches and loops included."""
        return self._readers.get(name, [])

    def subgraphs(self) -> Iterator[GraphReader]:
        """This graph, and those in its branches and loops."""
        yield self
        for graph in self.inner:
            yield from graph.subgraphs()

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a constant tensor; None for one that is computed, or large and elsewhere.

        A scale that lies in another file is read, a weight is not.
        """
        tensor = self.initializers.get(name)
        if tensor is None or tensor.data_location != TensorProto.EXTERNAL:
            return None if tensor is None else numpy_helper.to_array(tensor)
        length = ExternalDataInfo(tensor).length
        if not length or length > SMALL:
            return None
        own = TensorProto()
        own.CopyFrom(tensor)
        load_external_data_for_tensor(own, str(self.folder))
        return numpy_helper.to_array(own)

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
        return self.origin(name, _stays_constant) in self.initializers

    def weight_node(self, name: str) -> tuple[NodeProto | None, list[int] | None]:
        """The DequantizeLinear of a weight, and the perm of a Transpose between it and the user.

        (None, None) where the weight does not come from a DequantizeLinear. An empty perm is that
        of a Transpose that names none: it reverses the axes.
        """
        node = self.comes_from(self.origin(name, _moves_weight), DEQUANTIZE)
        last = self.comes_from(self.origin(name, _is_identity), "Transpose")
        if node is None or last is None:
            return node, None
        return node, [int(axis) for axis in attribute(last, "perm", [])]


def _inside(outer: ChainMap | None) -> ChainMap:
    """Names of a graph, behind which those of the graph around it stand."""
    return ChainMap() if outer is None else outer.new_child()


def _stays_constant(node: NodeProto) -> bool:
    return node.op_type in THROUGH


def _is_identity(node: NodeProto) -> bool:
    return node.op_type == "Identity"


def _moves_weight(node: NodeProto) -> bool:
    return node.op_type in ("Transpose", "Identity")


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def label(node: NodeProto) -> str:
    """Type and name of a node, for messages (`GraphReader` names the nameless)."""
    return f"{node.op_type} {node.name or repr(node.output[0] if node.output else '')}"
