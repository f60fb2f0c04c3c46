"""What the user keeps in floating point: by name, by type, or everything behind a layer.

Chapters 06 and 10. An entry of ``float_layers`` is one of

    "head.conv"     an operation by its name: a module's path, or the name of a function's node
    "Sigmoid"       every operation of that type: a module's class, a function's or method's name
    "behind:head"   everything computed from the result of ``head``, which itself is quantized

A layer stands for all its calls; "fc__call1" and "fc__call2" are one of them each. What is a
module's path is no other operation's name besides (``block.fc`` has a node ``block_fc``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from ptq_course.errors import UnsupportedError
from ptq_course.graph.kinds import Kind, called, operation_of
from ptq_course.graph.reading import Reading
from ptq_course.graph.recurrent import Recurrent
from ptq_course.graph.tracing import SECOND_CALL

BEHIND = "behind:"


@dataclass
class Choice:
    """The nodes that stay in floating point because the user asked for it."""

    nodes: set[fx.Node] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)  # paths of weights inside recurrent layers
    why: str = "kept in floating point by float_layers"


def choose(traced: fx.GraphModule, reading: Reading, float_layers: Collection[str]) -> Choice:
    """Resolve ``float_layers`` in a graph; UnsupportedError for an entry that matches nothing."""
    choice = Choice()
    inside = {name for node in reading.kinds for name in parts_of(traced, node)}
    for entry in float_layers:
        if entry in inside:
            choice.parts.add(entry)
            continue
        name = entry.removeprefix(BEHIND)
        matched = [node for node in reading.kinds if _is_at(node, name)] or [
            node for node in reading.kinds if _matches(traced, node, name)
        ]
        if not matched:
            _refuse(traced, reading, entry)
        choice.nodes |= _descendants(matched) if entry.startswith(BEHIND) else set(matched)
    return choice


def parts_of(traced: fx.GraphModule, node: fx.Node) -> list[str]:
    """The paths of the layers that a recurrent layer consists of; none for any other node."""
    layer = called(traced, node)
    return (
        [f"{node.target}.{n}" for n in layer.part_names()] if isinstance(layer, Recurrent) else []
    )


def _is_at(node: fx.Node, path: str) -> bool:
    """Whether a node calls the module at a path: any of its calls, or one of them."""
    target = str(node.target)
    first = target.split(SECOND_CALL)[0]
    call = f"{first}{SECOND_CALL}1" if first == target else first
    return node.op == "call_module" and path in (target, first, call)


def _matches(traced: fx.GraphModule, node: fx.Node, name: str) -> bool:
    if not node.op.startswith("call"):
        return False
    if name == node.name:
        return True
    operation = operation_of(traced, node)
    return name == getattr(operation, "__name__", operation)


def _descendants(nodes: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = [user for node in nodes for user in node.users]
    while pending:
        node = pending.pop()
        if node not in found and node.op != "output":
            found.add(node)
            pending += node.users
    return found


def _refuse(traced: fx.GraphModule, reading: Reading, entry: str) -> None:
    layers = [str(n.target) for n, kind in reading.kinds.items() if kind is Kind.WEIGHTED]
    others = [
        str(n.target) if n.op == "call_module" else n.name
        for n in reading.kinds
        if n.op.startswith("call") and n in reading.floats and str(n.target) not in layers
    ]
    raise UnsupportedError(
        f"float_layers names {entry!r}, which is not an operation of the model. Its layers: "
        f"{', '.join(sorted(set(layers)))}. Its other operations: "
        f"{', '.join(dict.fromkeys(others)) or 'none'}."
    )


def check_float_layers(float_layers: Collection[str], layers: Collection[str]) -> None:
    """Raise UnsupportedError where ``float_layers`` names no layer of a model without a graph."""
    for name in float_layers:
        if name not in layers:
            raise UnsupportedError(
                f"float_layers names {name!r}, which is not a layer of the model. "
                f"Its layers: {', '.join(sorted(layers))}."
            )
