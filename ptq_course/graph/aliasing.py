"""Work in place: `y += x`, `add_`, `nn.ReLU(inplace=True)`, and what others see of it. Chapter 04.

A graph names tensors, Python changes them. Before quantizers are put between the operations, every
reader of a changed tensor must read the operation that changed it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from ptq_course.graph.kinds import KINDS, Kind, operation_of


class InPlaceProxy(fx.Proxy):
    """Records ``y += x`` as it is, which torch.fx writes as ``y = y + x``: see `unalias`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable, other: Any) -> fx.Proxy:
        name = function.__name__.removeprefix("i")
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name)


_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def unalias(traced: fx.GraphModule) -> None:
    """Let every reader of a tensor that was changed in place read the result of that change.

    Otherwise a quantizer put between the two would separate them. Then ``y += x`` is written as
    ``y + x``, except where the change is seen through a view: after ``rows = x.view(..)`` and
    ``rows *= 2`` whoever reads x must find it doubled.
    """
    same: dict[fx.Node, fx.Node] = {}  # the first name of a tensor that a node stands for
    latest: dict[fx.Node, fx.Node] = {}  # first name -> the last node that changed it
    memory: dict[fx.Node, fx.Node] = {}  # the node that made the memory that a node may share
    for node in traced.graph.nodes:
        for source in node.all_input_nodes:
            node.replace_input_with(source, latest.get(same[source], source))
        same[node] = memory[node] = node
        if not node.all_input_nodes:
            continue
        first, changes = node.all_input_nodes[0], _in_place(traced, node)
        passes = KINDS.get(operation_of(traced, node)) is Kind.INHERIT or node.target is getattr
        if changes or passes:
            memory[node] = memory[first]
        if changes:
            same[node] = same[first]
            latest[same[node]] = node
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if node.target in _OUT_OF_PLACE:
            names = [n for n in order if memory[n] is memory[node] and order[n] < order[node]]
            if not any(order[user] > order[node] for n in names for user in n.users):
                node.target = _OUT_OF_PLACE[node.target]


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Does an operation change its first input? add_, F.relu(x, inplace=True), nn.ReLU(True)."""
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if not node.op.startswith("call"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    named = name.endswith("_") and not name.endswith("__")
    return named or node.target in _OUT_OF_PLACE or node.kwargs.get("inplace") is True
