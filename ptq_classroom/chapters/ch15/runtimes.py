"""Where two runtimes of one file differ: the roundings that OpenVINO leaves out."""

from __future__ import annotations

import copy

from torch import fx, nn

from ptq_course.graph.kinds import ADDITIONS
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.quantized import QuantizedModel


def before_sums(quantized: QuantizedModel) -> list[str]:
    """Names of the quantizers between a convolution and a residual sum, one for each sum.

    A runtime that computes the sum inside the convolution rounds only once, behind both. It can do
    so with one of two convolutions: the one that the sum reads first.
    """
    graph = _graph(quantized)
    found = []
    for node in graph.graph.nodes:
        if node.target in ADDITIONS:
            rounded = [n for n in node.all_input_nodes if _rounds_a_layer(graph, n)]
            found += [rounded[0].name] if rounded else []
    return found


def without(quantized: QuantizedModel, names: list[str]) -> QuantizedModel:
    """A copy of the simulation that does not round these values."""
    changed = copy.deepcopy(quantized)
    graph = _graph(changed)
    for node in list(graph.graph.nodes):
        if node.name in names:
            node.replace_all_uses_with(node.all_input_nodes[0])
    graph.recompile()
    return changed


def _graph(quantized: QuantizedModel) -> fx.GraphModule:
    module = quantized.module
    assert isinstance(module, fx.GraphModule)
    return module


def _rounds_a_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    part, source = _part(graph, node), node.all_input_nodes[:1]
    made = isinstance(part, ActivationQuantizer) and len(node.users) == 1
    return made and isinstance(_part(graph, source[0]), QuantizedLayer)


def _part(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None
