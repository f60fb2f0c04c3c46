"""One call of a Keras layer, as its converter sees it. Chapter 15.

Keras keeps the channels last, [N, H, W, C], PyTorch keeps them first, [N, C, H, W]. Every tensor
of three and more dimensions is converted once, at the input; `axis` says where an axis of Keras
has gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ptq_course.errors import UnsupportedError

Shape = tuple[int | None, ...]


@dataclass
class Target:
    """The PyTorch module that is being written: its graph, and which part stands for which layer.

    parts: by layer and suffix, the path and the module made for it, for layers called again.
    """

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    parts: dict[tuple[int, str], list[tuple[str, nn.Module]]] = field(default_factory=dict)

    def place(self, path: str) -> str:
        """A free path in the module for a layer's path in Keras; folders are made on the way."""
        *folders, name = [_identifier(part) for part in path.split("/")]
        folder = self.root
        for part in folders:
            if not hasattr(folder, part):
                folder.add_module(part, nn.Module())
            folder = folder.get_submodule(part)
        free, count = name, 1
        while hasattr(folder, free) or hasattr(fx.GraphModule, free):
            count += 1
            free = f"{name}_{count}"
        return ".".join([*folders, free])

    def add(self, path: str, module: nn.Module) -> None:
        """Put a module at a place that `place` has found."""
        parent, _, name = path.rpartition(".")
        self.root.get_submodule(parent).add_module(name, module)


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name)
    return text if re.match(r"[A-Za-z_]", text) else f"layer_{text}"


@dataclass
class Call:
    """A layer of Keras, called: its path, its inputs as nodes of the graph, and their Keras shapes.

    shapes, shape_out: with the batch first, which is None, and the channels last.
    """

    target: Target
    layer: Any
    path: str
    inputs: Sequence[Any]
    shapes: Sequence[Shape]
    shape_out: Shape

    @property
    def x(self) -> fx.Node:
        """The input of a layer that has one."""
        if len(self.inputs) != 1:
            raise self.refusal(f"is called with {len(self.inputs)} tensors")
        return self.inputs[0]

    @property
    def shape(self) -> Shape:
        """The Keras shape of the first input."""
        return self.shapes[0]

    def refusal(self, reason: str, remedy: str = "") -> UnsupportedError:
        """An error that names the layer's path and class."""
        kind = type(self.layer).__name__
        remedy = remedy or "replace the layer, or cut the model before it"
        return UnsupportedError(f"from_keras: layer {self.path!r} ({kind}) {reason}; {remedy}.")

    def module(self, module: nn.Module, x: fx.Node, suffix: str = "") -> fx.Node:
        """``module`` called on ``x``. A layer that was called before is the same module again, or
        shares its parameters, where its settings depend on the size of its input."""
        before = self.target.parts.setdefault((id(self.layer), suffix), [])
        for path, known in before:
            if repr(known) == repr(module):
                return self.target.graph.call_module(path, (x,))
        for _, known in before[:1]:
            for name, parameter in known.named_parameters():
                owner, _, last = name.rpartition(".")
                setattr(module.get_submodule(owner), last, parameter)
        path = self.target.place(f"{self.path}_{suffix}" if suffix else self.path)
        self.target.add(path, module)
        before.append((path, module))
        return self.target.graph.call_module(path, (x,))

    def function(self, function: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function."""
        return self.target.graph.call_function(function, args, kwargs)

    def constant(self, value: Tensor, suffix: str) -> fx.Node:
        """A parameter that is no layer's weight."""
        before = self.target.parts.setdefault((id(self.layer), suffix), [])
        if not before:
            path = self.target.place(f"{self.path}_{suffix}")
            parent, _, name = path.rpartition(".")
            parameter = nn.Parameter(value, requires_grad=False)
            self.target.root.get_submodule(parent).register_parameter(name, parameter)
            before.append((path, nn.Module()))
        return self.target.graph.get_attr(before[0][0])

    def permuted(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        """``x`` with its axes in another order; as it is where the order stays."""
        if list(order) == list(range(len(order))):
            return x
        return self.function(torch.permute, x, tuple(order))

    def channels_last(self, x: fx.Node, rank: int) -> fx.Node:
        """From PyTorch's order of axes to Keras's."""
        return self.permuted(x, last_order(rank))

    def channels_first(self, x: fx.Node, rank: int) -> fx.Node:
        """From Keras's order of axes to PyTorch's."""
        return self.permuted(x, first_order(rank))


def last_order(rank: int) -> list[int]:
    """The permutation that brings the channels from axis 1 to the end."""
    return [0, *range(2, rank), 1] if rank > 2 else list(range(rank))


def first_order(rank: int) -> list[int]:
    """The permutation that brings the channels from the end to axis 1."""
    return [0, rank - 1, *range(1, rank - 1)] if rank > 2 else list(range(rank))


def axis_of(axis: int, rank: int) -> int:
    """Where an axis of a Keras tensor of that rank stands in PyTorch's order."""
    return first_order(rank).index(axis % rank)


def tensor(variable: Any) -> Tensor:
    """A variable of Keras, or an array, as a float32 tensor of its own."""
    array = variable.numpy() if hasattr(variable, "numpy") else variable
    return torch.from_numpy(np.array(array, dtype=np.float32))
