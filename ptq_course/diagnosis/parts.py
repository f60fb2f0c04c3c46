"""A quantized network taken apart: which quantizer feeds which layer, and copies made partly float.

Chapters 06 and 10. `compare`, `ablate` and `sensitivity` ask what each part costs; this file says
what the parts are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError
from ptq_course.graph import WEIGHTED_MODULES, Kind
from ptq_course.graph.kinds import called
from ptq_course.graph.reading import read
from ptq_course.graph.recurrent import Recurrent
from ptq_course.simulation.curves import RoundedInside
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.network import replace_submodules, shallow_copy
from ptq_course.simulation.quantized import QuantizedModel


def partly(
    quantized: QuantizedModel,
    layers: Collection[str] | None = None,
    quantizers: Collection[str] | None = None,
) -> QuantizedModel:
    """A copy (sharing the weights) in which only some parts are quantized.

    layers: names of the layers that keep integer weights; quantizers: paths of the activation
    quantizers that keep rounding (see `Parts`). None keeps all of them, () keeps none.
    """
    module = shallow_copy(quantized.module)
    new: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if isinstance(part, QuantizedLayer) and layers is not None and part.name not in layers:
            new[path] = part.float_layer
        if isinstance(part, ActivationQuantizer) and quantizers is not None:
            new[path] = part if path in quantizers else nn.Identity()
    if quantizers is not None and isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            part = called(module, node)
            if isinstance(part, RoundedInside) and not _source(module, node) & {*quantizers}:
                new[str(node.target)] = Exact(part)
    replace_submodules(module, new)
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return QuantizedModel(
        module, quantized.config, quantized.qparams, dict(quantized.left_in_float)
    )


class Exact(nn.Module):
    """An activation that rounds inside, without that."""

    def __init__(self, rounded: RoundedInside) -> None:
        super().__init__()
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        return self.rounded.exact(x)


def _source(module: fx.GraphModule, node: fx.Node) -> set[str]:
    """The path of the quantizer whose codes an operation of one value reads, if there is one."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if isinstance(called(module, node), ActivationQuantizer):
            return {str(node.target)}
    return set()


@dataclass
class Parts:
    """The parts of a quantized network, in the order of execution where it was traced.

    feeding: for each layer (and each other operation that reads rounded values, such as a residual
        add) the paths of the quantizers in front of it.
    layers: the names in ``feeding`` that have integer weights, in order.
    quantizers: paths of all activation quantizers. inputs: those at the network's own inputs.
    rows: node of the graph -> name, for traced networks. passes_codes: nodes that hand rounded
        values on (quantizers, pooling, reshape, ReLU).
    """

    feeding: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    quantizers: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    rows: dict[fx.Node, str] = field(default_factory=dict)
    passes_codes: set[fx.Node] = field(default_factory=set)

    def only(self, names: Collection[str]) -> tuple[list[str], set[str]]:
        """Arguments of `partly` that quantize these layers (weights, inputs) and nothing else."""
        return list(names), {q for name in names for q in self.feeding[name]}

    def all_but(self, names: Collection[str]) -> tuple[list[str], set[str]]:
        """Arguments of `partly` that leave these layers in floating point.

        A value that another operation reads too stays rounded: that operation needs its integers.
        """
        others = {q for name, qs in self.feeding.items() if name not in names for q in qs}
        own = {q for name in names for q in self.feeding[name]} - others
        return [n for n in self.layers if n not in names], set(self.quantizers) - own


def parts_of(quantized: QuantizedModel) -> Parts:
    """Read the parts of a converted model; QuantizationError where nothing in it is quantized."""
    module = quantized.module
    names = [n for n, m in module.named_modules() if isinstance(m, ActivationQuantizer)]
    parts = Parts(quantizers=names)
    if isinstance(module, fx.GraphModule):
        _read_graph(quantized, module, parts)
    else:
        _read_modules(module, parts)
    if not parts.layers and not parts.quantizers:
        raise QuantizationError(
            "the model holds no quantized layer and rounds no activation: pass what "
            "PTQQuantizer.convert() returned."
        )
    return parts


def _read_modules(module: nn.Module, parts: Parts) -> None:
    for part in module.modules():
        if isinstance(part, QuantizedLayer):
            parts.layers.append(part.name)
            parts.feeding.setdefault(part.name, ())
    for path in parts.quantizers:
        parts.feeding[path.removesuffix(".before")] = (path,)


def _read_graph(quantized: QuantizedModel, module: fx.GraphModule, parts: Parts) -> None:
    reading = read(cast(fx.GraphModule, partly(quantized, (), ()).module))
    kinds = {node.name: kind for node, kind in reading.kinds.items()}
    tensors = {node.name for node in reading.floats}
    sources: dict[fx.Node, tuple[str, ...]] = {}  # quantizers whose codes a node carries
    for node in module.graph.nodes:
        part = called(module, node)
        if isinstance(part, ActivationQuantizer):
            sources[node] = (node.target,)
            parts.passes_codes.add(node)
            if node.all_input_nodes[0].op == "placeholder":
                parts.inputs.append(node.target)
            continue
        reads = tuple(dict.fromkeys(q for n in node.all_input_nodes for q in sources.get(n, ())))
        if kinds[node.name] in (Kind.INHERIT, Kind.CLAMP):
            parts.passes_codes.add(node)
            sources[node] = reads
        elif inner := _inside(part):
            parts.layers += inner
            parts.feeding |= dict.fromkeys(inner, reads)
        elif isinstance(part, (QuantizedLayer, *WEIGHTED_MODULES)) or (
            reads and node.op.startswith("call") and node.name in tensors
        ):
            name = part.name if isinstance(part, QuantizedLayer) else _name(node)
            parts.rows[node] = name
            parts.feeding[name] = reads
            if isinstance(part, QuantizedLayer):
                parts.layers.append(name)


def _inside(part: nn.Module | None) -> list[str]:
    """The quantized layers that a recurrent layer consists of."""
    parts = part.modules() if isinstance(part, Recurrent) else ()
    return [m.name for m in parts if isinstance(m, QuantizedLayer)]


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
