"""The traced graph, and who owns a scale: one QParams per tensor value, shared by its consumers.

Chapters 04 and 06. `trace` turns a model into a torch.fx graph. `plan` reads the graph and says
which values become integers (`Value`) and which layers get integer weights (`LayerSite`). Nothing
here computes a scale: that is the quantizer's work.

A value is quantized because something that computes with integers consumes it. Three cases do not
get a scale of their own:

- what a ReLU or ReLU6 consumes alone: clamping is free after requantization, so the boundary lies
  behind it ("ReLU boundary");
- what only moves or averages codes (pooling, reshape): the output inherits the scale of its input;
- what nothing quantized consumes, such as the logits.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError


class Kind(Enum):
    """What an operation does to integers."""

    WEIGHTED = "has a weight, computes with integers"
    BINARY = "computes with two or more integer values"
    CLAMP = "only clamps: merges into the operation before it"
    CURVE = "a nonlinear function of one value: integers in, integers out"
    SOFTMAX = "a curve whose output range is known to be [0, 1]"
    INHERIT = "moves or averages codes: the output keeps the scale of its input"
    FLOAT = "stays in floating point"


WEIGHTED_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Linear,
)
_MODULE_KINDS: dict[type[nn.Module], Kind] = {
    **dict.fromkeys(WEIGHTED_MODULES, Kind.WEIGHTED),
    **dict.fromkeys((nn.ReLU, nn.ReLU6), Kind.CLAMP),
    **dict.fromkeys(
        (nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU),
        Kind.CURVE,
    ),
    nn.Softmax: Kind.SOFTMAX,
    **dict.fromkeys(
        (
            nn.MaxPool1d,
            nn.MaxPool2d,
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveMaxPool2d,
            nn.Flatten,
            nn.Unflatten,
            nn.ZeroPad2d,
            nn.PixelShuffle,
            nn.ChannelShuffle,
        ),
        Kind.INHERIT,
    ),
}
_FUNCTION_KINDS = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, torch.sub), Kind.BINARY),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), Kind.BINARY),
    **dict.fromkeys(
        (torch.cat, torch.concat, torch.matmul, operator.matmul, torch.bmm), Kind.BINARY
    ),
    **dict.fromkeys((F.relu, torch.relu, F.relu6), Kind.CLAMP),
    **dict.fromkeys(
        (
            F.hardswish,
            F.hardsigmoid,
            F.silu,
            F.gelu,
            F.leaky_relu,
            F.elu,
            torch.sigmoid,
            torch.tanh,
        ),
        Kind.CURVE,
    ),
    **dict.fromkeys((F.softmax, torch.softmax), Kind.SOFTMAX),
    **dict.fromkeys(
        (
            torch.flatten,
            torch.reshape,
            torch.transpose,
            torch.permute,
            torch.squeeze,
            torch.unsqueeze,
            torch.mean,
            torch.chunk,
            torch.split,
            operator.getitem,
            F.max_pool2d,
            F.avg_pool2d,
            F.adaptive_avg_pool2d,
            F.adaptive_max_pool2d,
            F.pixel_shuffle,
        ),
        Kind.INHERIT,
    ),
}
_METHOD_KINDS = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "contiguous",
         "mean", "chunk", "split", "t", "clone"),
        Kind.INHERIT,
    ),
    **dict.fromkeys(("relu", "relu_"), Kind.CLAMP),
    **dict.fromkeys(("sigmoid", "tanh"), Kind.CURVE),
    "softmax": Kind.SOFTMAX,
    **dict.fromkeys(("add", "add_", "mul", "mul_", "sub", "matmul", "bmm"), Kind.BINARY),
}  # fmt: skip
# Of the inheriting operations, those whose output is off the grid and must be rounded again.
_AVERAGING = {
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    torch.mean, F.avg_pool2d, F.adaptive_avg_pool2d, "mean",
}  # fmt: skip
# Their inputs and outputs are shapes and integers, never a tensor that could be quantized.
_NOT_TENSORS = {getattr, operator.floordiv, "size", "dim", "numel"}


@dataclass
class Value:
    """One tensor of the graph that becomes integers, and the scale it will own."""

    name: str
    node: str  # the fx node that computes it
    range: tuple[float, float] | None = None  # known beforehand (softmax), else calibrated
    inherited_by: list[str] = field(default_factory=list)  # averaging nodes that round to its grid


@dataclass
class LayerSite:
    """One layer whose weight becomes integers."""

    name: str  # path of the module in the user's model
    node: str
    input_value: str | None  # None: the layer stays in floating point


@dataclass
class Plan:
    """What will be quantized: values and layers by name, and what stays in floating point."""

    values: dict[str, Value]
    layers: dict[str, LayerSite]
    left_in_float: dict[str, str]  # operation -> why


class _Tracer(fx.Tracer):
    """torch.fx's tracer, which keeps every module of torch.nn as one node."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            return True
        return super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """A traced deep copy of ``model`` in evaluation mode; the model itself is left alone.

    A layer that the model calls twice is given a second name for its second call (``fc``,
    ``fc__call2``; the weight is shared), because its two inputs are two values with two scales.
    Raises UnsupportedError with torch.fx's reason where the model's Python depends on its data.
    """
    model = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx raises TraceError, TypeError, ... for the same cause
        raise UnsupportedError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}). "
            "Its forward() branches on tensor values; move such code out of the model, or accept "
            "module-level quantization."
        ) from error
    traced = fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)
    _name_repeated_calls(traced)
    _name_clamp_as_relu6(traced)
    traced.eval()
    return traced


def _name_repeated_calls(traced: fx.GraphModule) -> None:
    seen: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        seen[node.target] = seen.get(node.target, 0) + 1
        if seen[node.target] > 1 and isinstance(
            traced.get_submodule(node.target), WEIGHTED_MODULES
        ):
            twin = copy.copy(traced.get_submodule(node.target))  # shares the parameters
            twin._parameters = dict(twin._parameters)
            target = f"{node.target}__call{seen[node.target]}"
            traced.add_submodule(target, twin)
            node.target = target
    traced.recompile()


def _name_clamp_as_relu6(traced: fx.GraphModule) -> None:
    """clamp(x, 0, 6) is ReLU6 under another name."""
    for node in traced.graph.nodes:
        if not node.op.startswith("call") or node.target not in (torch.clamp, "clamp"):
            continue
        bounds = (*node.args[1:], *(node.kwargs.get(k) for k in ("min", "max") if k in node.kwargs))
        if bounds == (0, 6):
            node.op, node.target = "call_function", F.relu6
            node.args, node.kwargs = (node.args[0],), {}
    traced.recompile()


def kinds_of(traced: fx.GraphModule) -> dict[fx.Node, Kind]:
    """What the operation at each node of the graph does to integers."""
    tensors = _tensor_nodes(traced)
    return {node: _kind_of(traced, node, tensors) for node in traced.graph.nodes}


def _kind_of(traced: fx.GraphModule, node: fx.Node, tensors: set[fx.Node]) -> Kind:
    if node.op == "call_module":
        kind = _MODULE_KINDS.get(type(traced.get_submodule(node.target)), Kind.FLOAT)
    elif node.op == "call_function":
        kind = _FUNCTION_KINDS.get(node.target, Kind.FLOAT)
    elif node.op == "call_method":
        kind = _METHOD_KINDS.get(node.target, Kind.FLOAT)
    else:
        kind = Kind.FLOAT
    sources = [n for n in node.all_input_nodes if n in tensors]
    if kind is Kind.BINARY and len(sources) < 2:
        repeated = sum(1 for a in node.args if isinstance(a, fx.Node)) == 2  # x + x
        return Kind.BINARY if repeated else Kind.CURVE  # x * 0.5: one value in, one out
    return kind


def plan(traced: fx.GraphModule, float_layers: Collection[str] = ()) -> Plan:
    """Decide which values and layers of a traced (and fused) model become integers.

    ``float_layers``: module paths that stay in floating point. Raises UnsupportedError for a name
    in it that the model does not have.
    """
    kinds = kinds_of(traced)
    names = {n.target for n, k in kinds.items() if k is Kind.WEIGHTED}
    check_float_layers(float_layers, names)

    def computes_with_integers(node: fx.Node) -> bool:
        if kinds[node] is Kind.WEIGHTED:
            return node.target not in float_layers
        return kinds[node] in (Kind.BINARY, Kind.CURVE, Kind.SOFTMAX)

    def is_wanted(node: fx.Node) -> bool:
        """Does anything consume this value as integers?"""
        for user in node.users:
            if computes_with_integers(user) or (kinds[user] is Kind.INHERIT and is_wanted(user)):
                return True
            # conv, pool, ReLU: the pooling separates the clamp from the layer it could merge into
            if kinds[node] is Kind.INHERIT and kinds[user] is Kind.CLAMP and is_wanted(user):
                return True
        return False

    tensors = _tensor_nodes(traced)
    result = Plan({}, {}, {})
    owner: dict[fx.Node, str] = {}  # node -> name of the value whose scale it carries
    for node in traced.graph.nodes:
        if kinds[node] is Kind.INHERIT and node.all_input_nodes[0] in owner:
            owner[node] = owner[node.all_input_nodes[0]]
            if _averages(traced, node) and is_wanted(node):
                result.values[owner[node]].inherited_by.append(node.name)
            continue
        if node in tensors and is_wanted(node):
            name = str(node.target) if node.op == "call_module" else node.name
            name = name if name not in result.values else f"{name}__{node.name}"
            known = (0.0, 1.0) if kinds[node] is Kind.SOFTMAX else None
            result.values[name] = Value(name, node.name, known)
            owner[node] = name
        if kinds[node] is Kind.FLOAT and node.op.startswith("call") and node in tensors:
            result.left_in_float[node.name] = _describe(traced, node)
        if kinds[node] is Kind.WEIGHTED:
            skipped = node.target in float_layers
            source = None if skipped else owner.get(node.all_input_nodes[0])
            result.layers[node.target] = LayerSite(node.target, node.name, source)
            if skipped:
                result.left_in_float[node.target] = "kept in floating point by float_layers"
    return result


def check_float_layers(float_layers: Collection[str], layers: Collection[str]) -> None:
    """Raise UnsupportedError where ``float_layers`` names something that is not a layer."""
    for name in float_layers:
        if name not in layers:
            raise UnsupportedError(
                f"float_layers names {name!r}, which is not a layer of the model. "
                f"Its layers: {', '.join(sorted(layers))}."
            )


def _averages(traced: fx.GraphModule, node: fx.Node) -> bool:
    target = type(traced.get_submodule(node.target)) if node.op == "call_module" else node.target
    return target in _AVERAGING


def _tensor_nodes(traced: fx.GraphModule) -> set[fx.Node]:
    """The nodes that compute tensors, not shapes or numbers taken from shapes."""
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        from_tensors = any(source in found for source in node.all_input_nodes)
        calls = node.op.startswith("call") and node.target not in _NOT_TENSORS
        if node.op in ("placeholder", "get_attr", "call_module") or (calls and from_tensors):
            found.add(node)
    return found


def _describe(traced: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{type(traced.get_submodule(node.target)).__name__} has no integer form here"
    return f"{getattr(node.target, '__name__', node.target)} has no integer form here"
