"""A network's structure as one digest: what it calls, in which order, with which settings.

Shapes alone do not tell a stride of 2 from one of 1, or ReLU from ReLU6: a checkpoint would load
into the wrong architecture without a word and compute something else.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer

# Settings that do not change what a module computes at inference.
IGNORED = {"training", "inplace"}


def structure_digest(module: nn.Module) -> str:
    """SHA-256 of the structure: graph targets, module types and settings, arguments but tensors.

    Of a module that could not be traced: the types and settings of all its parts. Weights, scales
    and the names of nodes do not count.
    """
    if isinstance(module, fx.GraphModule):
        numbers = {node: number for number, node in enumerate(module.graph.nodes)}
        parts = [_node(module, node, numbers) for node in module.graph.nodes]
    else:
        parts = [[name, *_settings(part)] for name, part in module.named_modules()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _node(module: fx.GraphModule, node: fx.Node, numbers: dict[fx.Node, int]) -> list:
    if node.op == "call_module":
        target = _settings(module.get_submodule(node.target))
    else:
        target = getattr(node.target, "__name__", str(node.target))
    arguments = [_plain(node.args, numbers), _plain(node.kwargs, numbers)]
    return [node.op, target, *(arguments if node.op != "placeholder" else [])]


def _settings(part: nn.Module) -> list:
    """The type of a module, and the numbers and words that it was made with."""
    if isinstance(part, DynamicLayer):
        part = part.quantized
    if isinstance(part, QuantizedLayer):
        part = part.float_layer
    kind = type(part)
    if isinstance(part, ActivationQuantizer) or not kind.__module__.startswith("torch."):
        return [kind.__name__]
    plain = {
        name: _plain(value, {})
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in IGNORED
    }
    return [kind.__name__, plain]


def _plain(value: Any, numbers: dict[fx.Node, int]) -> Any:
    """A value as JSON holds it; nodes by their number, tensors and other objects by their type."""
    if isinstance(value, fx.Node):
        return f"node {numbers[value]}"
    if isinstance(value, tuple | list):
        return [_plain(item, numbers) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, numbers) for key, item in value.items()}
    if isinstance(value, slice):
        return ["slice", *(_plain(v, numbers) for v in (value.start, value.stop, value.step))]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device | torch.memory_format):
        return str(value)
    return (
        "Tensor" if isinstance(value, Tensor) else getattr(value, "__name__", type(value).__name__)
    )
