"""Which layers stand in a row, with nothing between them but what lets factors through.

Chapter 11. The graph search behind `equalization`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ptq_course.graph import plain_module, trace
from ptq_course.graph.fusion import fuse
from ptq_course.graph.kinds import (
    ACTIVATIONS,
    AVERAGING,
    MAX_POOLS,
    MEANS,
    every_form,
    operation_of,
)
from ptq_course.graph.layer_types import layer_type
from ptq_course.improve.matrices import grouped

_RELU = ACTIVATIONS["relu"]
_LEAKY = every_form("leaky_relu leaky_relu_") | {nn.LeakyReLU}
_POOLS = (AVERAGING - MEANS) | frozenset(MAX_POOLS)
_FLAT = every_form("flatten") | {nn.Flatten}
_NOTHING = every_form("contiguous clone dropout") | {nn.Identity, nn.Dropout, nn.Dropout2d}


@dataclass(frozen=True)
class Pair:
    """Two layers by their path; ``shifts``: between them a ReLU alone, so that a bias can move."""

    first: str
    second: str
    shifts: bool = False


def prepared(model: nn.Module) -> fx.GraphModule:
    """A traced, fused copy; of a graph a deep copy, which shares nothing with it."""
    if isinstance(model, fx.GraphModule):
        return fuse(model)
    return fuse(trace(plain_module(model)))


def find_pairs(module: fx.GraphModule) -> list[Pair]:
    """All pairs (first, second), in the order of the graph.

    Between the two stand only ReLU, LeakyReLU, pooling and flattening, which nothing else reads.
    A layer whose weight another layer shares stands in no pair, and neither does an Embedding.
    """
    layers = {n: n.target for n in module.graph.nodes if _is_layer(module, n)}
    weights = [id(module.get_submodule(str(t)).weight) for t in layers.values()]
    alone = {
        n for n, t in layers.items() if weights.count(id(module.get_submodule(str(t)).weight)) == 1
    }
    found = []
    for node in filter(alone.__contains__, layers):
        at, between = node, []
        while len(at.users) == 1:
            at = next(iter(at.users))
            if at in layers or not _passes(module, node, at):
                break
            between.append(operation_of(module, at))
        if (
            at in alone
            and at is not node
            and len(at.all_input_nodes) == 1
            and _meet(module, node, at)
        ):
            found.append(
                Pair(str(node.target), str(at.target), len(between) == 1 and between[0] in _RELU)
            )
    return found


def without_relu6(model: nn.Module) -> fx.GraphModule:
    """A traced, fused copy with ReLU for every ReLU6, so that all its pairs can be equalized.

    It does not compute the same where a value exceeds 6: measure it before anything else.
    """
    module = prepared(model)
    for node in module.graph.nodes:
        if operation_of(module, node) in ACTIVATIONS["relu6"]:
            node.op, node.target = "call_function", torch.relu
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _is_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    kind = layer_type(module.get_submodule(str(node.target)))
    return kind is not None and kind.foldable


def _passes(module: fx.GraphModule, layer: fx.Node, node: fx.Node) -> bool:
    """Whether factors, one for each channel that ``layer`` writes, pass through ``node``."""
    operation = operation_of(module, node)
    if operation in _RELU | _LEAKY | _NOTHING:
        return len(node.all_input_nodes) == 1
    pictures = not isinstance(module.get_submodule(str(layer.target)), nn.Linear)
    if operation in _POOLS:
        return pictures
    if operation in _FLAT and pictures:
        return _flattens_from_channels(module, node)
    return False


def _flattens_from_channels(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        flatten = module.get_submodule(str(node.target))
        return (getattr(flatten, "start_dim", 0), getattr(flatten, "end_dim", 0)) == (1, -1)
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _meet(module: fx.GraphModule, first: fx.Node, second: fx.Node) -> bool:
    """Whether the outputs of the first are the inputs of the second, one by one or in blocks."""
    writer, reader = (grouped(module.get_submodule(str(n.target))) for n in (first, second))
    outputs, inputs = writer.shape[0] * writer.shape[1], reader.shape[0] * reader.shape[2]
    flattened = isinstance(module.get_submodule(str(second.target)), nn.Linear) and not isinstance(
        module.get_submodule(str(first.target)), nn.Linear
    )
    return inputs == outputs or (flattened and inputs % outputs == 0)
