"""Layers that a model calls as functions (F.conv2d, F.linear, ...) become modules.

Chapter 04. Only a module's weight can be replaced by integer codes. A function whose weight is a
parameter, or is computed from parameters alone, becomes the module that computes the same; one
whose weight depends on the network's input is left, and the plan says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ptq_course.graph.layer_types import LAYER_TYPES, LayerType
from ptq_course.graph.reading import attribute, unused_name

_LAYERS: dict[Any, LayerType] = {row.function: row for row in LAYER_TYPES.values()}
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "setitem"}


def rewrite_functional_layers(traced: fx.GraphModule) -> None:
    """Replace, in place, each function of a constant weight by a module of the same name.

    The module stands beside the parameter: ``block.weight`` used by F.conv2d becomes
    ``block.conv2d``.
    """
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        layer = _layer(traced, node)
        if layer is None:
            continue
        with traced.graph.inserting_before(node):
            given = _given(node)
            value = insert_layer(traced, layer, given["input"], given["weight"], node)
        node.replace_all_uses_with(value)
        traced.graph.erase_node(node)


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    kind, given = _LAYERS[node.target], _given(node)
    if not isinstance(given.get("input"), fx.Node):
        return None
    weight, bias = (constant(traced, given.get(name)) for name in ("weight", "bias"))
    settings = {k: v for k, v in given.items() if k not in ("input", "weight", "bias")}
    computed = given.get("bias") is not None and bias is None
    constants = all(map(_is_number, settings.values()))
    if weight is None or weight.dim() < 2 or computed or not constants:
        return None
    if settings.get("max_norm") is not None:  # changes its weight
        return None
    if "bias" in kind.arguments:
        settings["bias"] = bias is not None
    sizes = kind.sizes(tuple(weight.shape), settings.get("groups", 1))
    layer = kind.module(*sizes, device="meta", **settings)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer.eval()


def _given(node: fx.Node) -> dict[str, Any]:
    """The arguments of a layer's function by name."""
    return {**dict(zip(_LAYERS[node.target].arguments, node.args, strict=False)), **node.kwargs}


def constant(traced: fx.GraphModule, value: Any) -> Tensor | None:
    """The tensor at a node that depends on parameters only, computed if need be; else None."""
    if not isinstance(value, fx.Node) or _reads_data(value):
        return None
    if value.op == "get_attr":
        found = attribute(traced, str(value.target))
        return found if isinstance(found, Tensor) else None
    name = getattr(value.target, "__name__", str(value.target))
    if not value.op.startswith("call") or name.endswith("_") or name in _IN_PLACE:
        return None
    known = {n: constant(traced, n) for n in value.all_input_nodes}
    if not known or any(tensor is None for tensor in known.values()):
        return None
    args = map_arg(value.args, known.__getitem__)
    kwargs = map_arg(value.kwargs, known.__getitem__)
    with torch.no_grad():
        if value.op == "call_module":
            result = traced.get_submodule(str(value.target))(*args, **kwargs)
        elif value.op == "call_method":
            result = getattr(args[0], str(value.target))(*args[1:], **kwargs)
        else:
            result = cast(Callable, value.target)(*args, **kwargs)
    return result if isinstance(result, Tensor) else None


def _reads_data(node: fx.Node) -> bool:
    """Whether an input of the network reaches a node."""
    seen, pending = {node}, [node]
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return True
        pending += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return False


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor  # shared with whoever else uses it
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _is_number(setting: Any) -> bool:
    if isinstance(setting, (tuple, list)):
        return all(map(_is_number, setting))
    return setting is None or isinstance(setting, (int, float, str))


def insert_layer(
    traced: fx.GraphModule, layer: nn.Module, x: fx.Node, weight: fx.Node, node: fx.Node
) -> fx.Node:
    """The call of a new layer that stands for ``node``, at the graph's present place.

    Its path is that of the first parameter of ``weight``, its name that of the operation.
    """
    while weight.op != "get_attr":  # computed from parameters: named after the first of them
        weight = weight.all_input_nodes[0]
    parent = str(weight.target).rpartition(".")[0]
    owner = traced.get_submodule(parent)
    joint = "." if parent else ""
    if parent and type(owner).__module__.startswith("torch.nn"):
        joint = "_"  # beside a layer that other nodes may call, not inside it
    base = path = f"{parent}{joint}{getattr(node.target, '__name__', node.target)}"
    count = 1
    while _exists(traced, path):
        count += 1
        path = f"{base}_{count}"
    traced.add_submodule(path, layer)
    return traced.graph.call_module(path, (x,))


def _exists(traced: fx.GraphModule, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return hasattr(traced.get_submodule(parent), name)


def own_constants(traced: fx.GraphModule) -> None:
    """A copy of each tensor of a called module that a formula reads (``layer.weight.norm()``).

    Folding, equalizing and rounding change the layer's tensor; the formula means the one there was.
    """
    layers = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    copies: dict[str, str] = {}
    for node in traced.graph.nodes:
        path = str(node.target)
        if node.op != "get_attr" or path.rpartition(".")[0] not in layers:
            continue
        value = attribute(traced, path)
        if not isinstance(value, Tensor):
            continue
        if path not in copies:
            copies[path] = unused_name(traced, f"{path.replace('.', '_')}_value")
            traced.register_buffer(copies[path], value.detach().clone())
        node.target = copies[path]


def erase_unused_constants(traced: fx.GraphModule) -> None:
    """Remove what computed the weights of the new modules."""
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and constant(traced, node) is not None:
            traced.graph.erase_node(node)
