"""The example that a network is exported with: its arguments, and which dimensions stay free."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ptq_course.errors import QuantizationError
from ptq_course.simulation.quantized import ConvertedModel


def arguments(model: nn.Module, example: Any) -> tuple:
    """The positional arguments of ``model`` for an example.

    example: a tensor, several in a tuple or list (which may hold tuples, lists or dicts of tensors,
    where the model takes such), or a dict that gives arguments by their names; what else it holds
    (labels) is left out. Raises QuantizationError for what the model does not take, and for
    anything but tensors of one dimension and more.
    """
    if isinstance(example, Mapping):
        signature = inspect.signature(_inner(model).forward)
        known = {name: x for name, x in example.items() if name in signature.parameters}
        try:
            bound = signature.bind(**known)
        except TypeError as error:
            raise QuantizationError(
                f"export: the model takes {signature}, the example names {', '.join(example)} "
                f"({error}); give every argument that has no default."
            ) from None
        if bound.kwargs:  # one without a value stands before them
            bound.apply_defaults()
        found = (*bound.args, *bound.kwargs.values())
    else:
        found = (example,) if isinstance(example, Tensor) else example
    if not isinstance(found, tuple | list) or not found:
        raise QuantizationError(
            f"export: example must be a tensor, several in a tuple, or a dict by name, got "
            f"{type(example).__name__}; pass an input of the model, batch first."
        )
    for x in pytree.tree_leaves(tuple(found)):
        if x is not None and (not isinstance(x, Tensor) or x.dim() == 0):
            what = "a tensor without dimensions" if isinstance(x, Tensor) else type(x).__name__
            raise QuantizationError(
                f"export: example holds {what}; pass tensors whose first dimension is the batch."
            )
    return tuple(found)


def tensors_of(given: tuple) -> list[Tensor]:
    """The tensors of arguments, those inside of tuples and dicts included."""
    return [x for x in pytree.tree_leaves(given) if x is not None]


def free_shapes(given: tuple, free: Sequence[int]) -> tuple:
    """What torch.export calls dynamic_shapes: for each tensor the dimensions that stay free.

    Raises QuantizationError for anything but positions counted from 0.
    """
    if not all(isinstance(d, int) and d >= 0 for d in free):
        raise QuantizationError(
            f"export: free_dimensions are positions from 0, the batch, got {free}; (0, 2, 3) "
            "leaves height and width of pictures free too."
        )
    batch = torch.export.Dim("batch")

    def of(x: Tensor | None) -> dict | None:
        if x is None:
            return None
        return {d: torch.export.Dim.DYNAMIC if d else batch for d in free if d < x.dim()}

    return pytree.tree_map(of, given, is_leaf=lambda x: x is None)


def _inner(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, ConvertedModel) else model
