"""What Linear layers read: which of them share a value, how large it is, and what is put before.

Used by the techniques that change an input and undo it in the weights (SmoothQuant, rotation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError, whole
from ptq_course.graph import required_inputs
from ptq_course.graph.reading import unused_name
from ptq_course.improve.sharing import SHARED, read_alone
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


def some_of(batches: Iterable, num_batches: int | None, who: str) -> Iterator:
    """The first ``num_batches`` of a loader (None: all); CalibrationError where it is a tensor."""
    if isinstance(batches, Tensor):
        raise CalibrationError(
            f"{who}: the loader is a tensor, whose rows would be taken one by one; pass a list of "
            "batches, such as [x]."
        )
    if num_batches is not None:
        num_batches = whole(f"{who}: num_batches", num_batches, 1, error=CalibrationError)
    return islice(batches, num_batches)


@contextmanager
def at_layer(name: str) -> Iterator[None]:
    """Errors about numbers say at which layer they were met."""
    try:
        yield
    except QuantizationError as error:
        if name in str(error):
            raise
        raise type(error)(f"layer {name!r}: {error}") from error


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
        if not len(rows):  # no token was routed here
            return
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
