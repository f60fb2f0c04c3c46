"""What Linear layers read: which of them share a value, how large it is, and what is put before.

Used by the techniques that change an input and undo it in the weights (SmoothQuant, rotation).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, UnsupportedError
from ptq_course.graph import required_inputs
from ptq_course.simulation.observe import placed

SOME_ROWS = 1024  # of the first batch, on which settings are judged


def find_values(module: fx.GraphModule) -> dict[fx.Node, list[str]]:
    """Values that Linear layers read, with their paths; layers called twice are left out."""
    calls = [n.target for n in module.graph.nodes if n.op == "call_module"]
    layers = [module.get_submodule(str(target)) for target in calls]
    found: dict[fx.Node, list[str]] = {}
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        layer = module.get_submodule(str(node.target))
        once = sum(layer is other for other in layers) == 1
        if isinstance(layer, nn.Linear) and once and len(node.all_input_nodes) == 1:
            found.setdefault(node.all_input_nodes[0], []).append(str(node.target))
    return found


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
    name = f"{readers[0].replace('.', '_')}_{type(part).__name__.lower()}"
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
        rows = x.detach().flatten(0, -2)
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
