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
    Operation,
    every_form,
    operation_of,
)
from ptq_course.graph.layer_types import known_type, layer_type
from ptq_course.improve.matrices import grouped
from ptq_course.improve.sharing import SHARED, read_alone
from ptq_course.simulation.quantized import check_float

NO_PAIR = "more than ReLU, LeakyReLU, pooling and flattening lies between it and other layers"
_RELU = ACTIVATIONS["relu"]
_LIMIT = "limit_of_"  # begins the name of a buffer with limits
_LEAKY = every_form("leaky_relu leaky_relu_") | {nn.LeakyReLU}
_POOLS = (AVERAGING - MEANS) | frozenset(MAX_POOLS)
_FLAT = every_form("flatten") | {nn.Flatten}
_NOTHING = every_form("contiguous clone dropout") | {nn.Identity, nn.Dropout, nn.Dropout2d}


@dataclass(frozen=True)
class Pair:
    """Two layers by their path.

    shifts: between them stands a ReLU alone, so that a bias can move. limit: the buffer with one
    limit for each channel between them (`with_limits`), "" where there is none.
    """

    first: str
    second: str
    shifts: bool = False
    limit: str = ""


def prepared(model: nn.Module) -> fx.GraphModule:
    """A traced, fused copy; of a graph a deep copy, which shares nothing with it.

    Without data nobody knows the rank of what a BatchNorm1d behind a Linear reads: rows of features
    [N, C] are taken for granted, and the norm is folded. On sequences [N, C, C], where it works
    along the positions, that would be another network: there take the technique as a step of
    PTQQuantizer, which compares with FP32 on the first batch and leaves such a norm unfolded.
    QuantizationError for what is quantized already.
    """
    check_float(model)
    if isinstance(model, fx.GraphModule):
        return fuse(model)
    return fuse(trace(plain_module(model)))


def find_pairs(module: fx.GraphModule) -> list[Pair]:
    """All pairs (first, second), in the order of the graph.

    Between the two stand only ReLU, LeakyReLU, pooling and flattening, which nothing else reads.
    Pictures come as a batch, which is what a Flatten behind a convolution is read for. A layer
    stands in no pair where another node reads its weight or bias too (`sharing`).
    """
    owners = read_alone(module)
    layers = {n: n.target for n in module.graph.nodes if _is_layer(module, n)}
    alone = {n for n, target in layers.items() if target in owners}
    found = []
    for node in filter(alone.__contains__, layers):
        at, between, limit = node, [], ""
        while len(at.users) == 1:
            at = next(iter(at.users))
            if at in layers or not _passes(module, node, at, between):
                break
            between.append(operation_of(module, at))
            limit = limit or _limit(at)
        if (
            at in alone
            and at is not node
            and len(at.all_input_nodes) == 1
            and _meet(module, node, at, between)
        ):
            shifts = len(between) == 1 and between[0] in _RELU
            found.append(Pair(str(node.target), str(at.target), shifts, limit))
    return found


def without_pair(module: fx.GraphModule) -> dict[str, str]:
    """The convolutions and Linear layers that stand in no pair of `find_pairs`, and why."""
    owners, pairs = read_alone(module), find_pairs(module)
    paired = {name for pair in pairs for name in (pair.first, pair.second)}
    names = [str(node.target) for node in module.graph.nodes if _is_layer(module, node)]
    return {n: NO_PAIR if n in owners else SHARED for n in names if n not in paired}


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


def with_limits(model: nn.Module) -> fx.GraphModule:
    """A traced, fused copy that computes the same, with a limit for each channel in place of ReLU6.

    min(relu(y), 6) / s = min(relu(y / s), 6 / s): a ReLU6 lets a factor through if its 6 goes
    along. So each becomes a ReLU and a minimum with a buffer [C, 1, ...], and its pairs can be
    equalized exactly. The price: a minimum with many limits is an operation of its own, for which
    ONNX Runtime has no integer kernel, while a ReLU6 costs nothing. A ReLU6 that does not stand
    directly behind a layer is left.
    """
    module = prepared(model)
    for node in list(module.graph.nodes):
        if operation_of(module, node) not in ACTIVATIONS["relu6"]:
            continue
        source = node.all_input_nodes[0]
        if not _is_layer(module, source):
            continue
        layer = module.get_submodule(str(source.target))
        kind = layer_type(layer)
        assert kind is not None
        weight, spatial = grouped(layer), kind.token_dimensions - 1
        name = f"{_LIMIT}{node.name}"
        shape = (weight.shape[0] * weight.shape[1], *[1] * spatial)
        module.register_buffer(name, weight.new_full(shape, 6.0))
        with module.graph.inserting_before(node):
            limits = module.graph.get_attr(name)
            relu = module.graph.call_function(torch.relu, (source,))
            node.replace_all_uses_with(module.graph.call_function(torch.minimum, (relu, limits)))
        module.graph.erase_node(node)
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _limit(node: fx.Node) -> str:
    """The buffer with the limits that a node of `with_limits` sets; "" for other nodes."""
    if node.target is torch.minimum and isinstance(node.args[1], fx.Node):
        name = str(node.args[1].target)
        return name if node.args[1].op == "get_attr" and name.startswith(_LIMIT) else ""
    return ""


def _is_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    kind = layer_type(module.get_submodule(str(node.target)))
    return kind is not None and kind.foldable


def _passes(
    module: fx.GraphModule, layer: fx.Node, node: fx.Node, between: list[Operation]
) -> bool:
    """Whether factors, one for each channel that ``layer`` writes, pass through ``node``.

    between: the operations that they have passed.
    """
    operation = operation_of(module, node)
    if _limit(node):
        return True
    if operation in _RELU | _LEAKY | _NOTHING:
        return len(node.all_input_nodes) == 1
    dims = known_type(module.get_submodule(str(layer.target))).token_dimensions - 1
    if not dims or _FLAT & {*between}:  # neither rows nor what was flattened have sides to pool
        return False
    if operation in _POOLS:  # over other dimensions it would pool channels
        return getattr(operation, "__name__", str(operation)).lower().endswith(f"{dims}d")
    return operation in _FLAT and _flattens_from_channels(module, node)


def _flattens_from_channels(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        flatten = module.get_submodule(str(node.target))
        return (getattr(flatten, "start_dim", 0), getattr(flatten, "end_dim", 0)) == (1, -1)
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _meet(
    module: fx.GraphModule, first: fx.Node, second: fx.Node, between: list[Operation]
) -> bool:
    """Whether the outputs of the first are the inputs of the second, one by one or in blocks.

    The channels must be on the same dimension, too: a Linear reads the last one, so behind a
    convolution that is not flattened it reads columns, however many there are.
    """
    layers = [module.get_submodule(str(node.target)) for node in (first, second)]
    writer, reader = map(grouped, layers)
    outputs, inputs = writer.shape[0] * writer.shape[1], reader.shape[0] * reader.shape[2]
    if _FLAT & {*between}:
        return isinstance(layers[1], nn.Linear) and inputs % outputs == 0
    dims = [known_type(layer).token_dimensions for layer in layers]
    return dims[0] == dims[1] and inputs == outputs
