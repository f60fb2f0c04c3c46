"""What Linear layers read: which of them share a value, how large it is, and what is put before.

Used by the techniques that change an input and undo it in the weights (SmoothQuant, rotation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, UnsupportedError
from ptq_course.graph import required_inputs
from ptq_course.improve.sharing import SHARED, read_alone, unused_name
from ptq_course.simulation.observe import placed

SOME_ROWS = 1024  # of the first batch, on which settings are judged


def find_values(module: fx.GraphModule) -> dict[fx.Node, list[str]]:
    """Values that Linear layers read, with their paths; shared layers are left out (`sharing`)."""
    owners = read_alone(module)
    found: dict[fx.Node, list[str]] = {}
    for node in module.graph.nodes:
        alone = (
            node.op == "call_module" and node.target in owners and len(node.all_input_nodes) == 1
        )
        if alone and isinstance(module.get_submodule(str(node.target)), nn.Linear):
            found.setdefault(node.all_input_nodes[0], []).append(str(node.target))
    return found


def left_as_they_are(module: fx.GraphModule, done: Collection[str], why: str) -> dict[str, str]:
    """The Linear layers that are called and not among ``done``, with the reason.

    why: for those that no other layer shares a weight with.
    """
    owners = read_alone(module)
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    return {
        name: why if name in owners else SHARED
        for name in calls
        if name not in done and isinstance(module.get_submodule(name), nn.Linear)
    }


def in_words(left_out: Mapping[str, str]) -> str:
    """``left_out`` for a message."""
    return "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "There is none."


def linear(module: fx.GraphModule, name: str) -> nn.Linear:
    """The Linear layer at that path."""
    layer = module.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise UnsupportedError(f"{name} is {type(layer).__name__}, no Linear layer.")
    return layer


def put_before(
    module: fx.GraphModule, value: fx.Node, readers: Sequence[str], part: nn.Module
) -> None:
    """Let the layers ``readers`` read ``part(value)`` instead of ``value``."""
    base = f"{readers[0].replace('.', '_')}_{type(part).__name__.lower()}"
    name = unused_name(module, base)  # of the second of two steps, or beside another layer's
    module.add_submodule(name, part)
    with module.graph.inserting_after(value):
        changed = module.graph.call_module(name, (value,))
    for node in list(value.users):
        if node.op == "call_module" and str(node.target) in readers:
            node.replace_input_with(value, changed)


def inputs_of(
    module: fx.GraphModule, names: Sequence[str], batches: Iterable
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of what ``names`` read: largest |x| of each channel, and some rows of the first batch."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        largest = rows.abs().amax(0)
        if name in found:
            found[name] = torch.maximum(found[name][0], largest), found[name][1]
        else:
            found[name] = largest, rows[:SOME_ROWS].clone()

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: keep(str(name), inputs[0])
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                module(*placed(batch, required_inputs(module), module))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise CalibrationError(
            "The loader gave no batch, so nothing is known of the layers' inputs: pass one."
        )
    return found
