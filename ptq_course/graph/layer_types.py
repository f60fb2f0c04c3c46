"""One row a layer type: all that the package asks about a layer with a weight. Chapters 04 and 05.

Planning, folding, functions that become layers, quantized layers, dynamic and integer execution
read this table; to teach the package another layer is to add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

Compute = Callable[[nn.Module, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class LayerType:
    """What is known of one class of layers.

    function, arguments: the same as a function, and its arguments in order. compute: its operation
    with a weight and a bias of our choosing. sizes: the class's first arguments, from a weight's
    shape and the number of groups. channel_axis: of the weight, which holds the output channels.
    token_dimensions: how many of the input's last dimensions make one token, a row of a Linear's
    input, a whole picture [C, H, W] of a convolution's; the output's channels are the first of
    them. 0: its input holds indices. foldable: it can absorb a batch norm. integer: `integer/`
    computes it.
    """

    module: type[nn.Module]
    function: Callable[..., Tensor]
    arguments: tuple[str, ...]
    compute: Compute
    sizes: Callable[[tuple[int, ...], int], tuple[Any, ...]]
    channel_axis: int = 0
    token_dimensions: int = 0
    foldable: bool = True
    integer: bool = False


def _convolution(
    module: type[nn.Module], function: Callable[..., Tensor], dims: int, integer: bool = False
) -> LayerType:
    return LayerType(
        module, function, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        lambda layer, x, w, b: cast(Any, layer)._conv_forward(x, w, b),
        lambda shape, groups: (shape[1] * groups, shape[0], shape[2:]),
        token_dimensions=dims + 1, integer=integer,
    )  # fmt: skip


def _transposed(module: type[nn.Module], function: Callable[..., Tensor], dims: int) -> LayerType:
    settings = ("stride", "padding", "output_padding", "groups", "dilation")
    return LayerType(
        module, function, ("input", "weight", "bias", *settings),
        lambda layer, x, w, b: function(x, w, b, *(getattr(layer, name) for name in settings)),
        lambda shape, groups: (shape[0], shape[1] * groups, shape[2:]),
        channel_axis=1, token_dimensions=dims + 1,
    )  # fmt: skip


LAYER_TYPES: dict[type[nn.Module], LayerType] = {
    row.module: row
    for row in (
        LayerType(
            nn.Linear, F.linear, ("input", "weight", "bias"),
            lambda layer, x, w, b: F.linear(x, w, b), lambda shape, groups: shape[::-1],
            token_dimensions=1, integer=True,
        ),
        _convolution(nn.Conv1d, F.conv1d, 1, integer=True),
        _convolution(nn.Conv2d, F.conv2d, 2, integer=True),
        _convolution(nn.Conv3d, F.conv3d, 3),
        _transposed(nn.ConvTranspose1d, F.conv_transpose1d, 1),
        _transposed(nn.ConvTranspose2d, F.conv_transpose2d, 2),
        _transposed(nn.ConvTranspose3d, F.conv_transpose3d, 3),
        # x holds indices, which nothing quantizes; a row of the table is a channel.
        LayerType(
            nn.Embedding, F.embedding, ("input", "weight", "padding_idx", "max_norm"),
            lambda layer, x, w, b: F.embedding(x, w, cast(Any, layer).padding_idx),
            lambda shape, groups: shape, foldable=False,
        ),
    )
}  # fmt: skip


# What a subclass may define again and still compute the same.
_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters", "__doc__", "__module__"}


@cache
def plain_type(kind: type[nn.Module]) -> type[nn.Module]:
    """torch.nn's class that a subclass computes as; itself, where it computes in its own way."""
    for depth, base in enumerate(kind.__mro__):
        if base.__module__.startswith("torch.nn."):
            own = {name for part in kind.__mro__[:depth] for name in vars(part)} - _HARMLESS
            changed = {"weight", "bias"} & own or any(
                name in vars(part) for name in own for part in base.__mro__[:-1]
            )
            return kind if changed else base
    return kind


def layer_type(layer: nn.Module) -> LayerType | None:
    """The row of a layer, None where it is none of the table."""
    return LAYER_TYPES.get(plain_type(type(layer)))


def known_type(layer: nn.Module) -> LayerType:
    """The row of a layer that is in the table."""
    return LAYER_TYPES[plain_type(type(layer))]


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer of the table."""
    return cast(Tensor, layer.weight)


def bias_of(layer: nn.Module) -> Tensor | None:
    """The bias of a layer, None where it has none (an Embedding cannot)."""
    return getattr(layer, "bias", None)


def own_forward(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model that are subclasses of a layer and compute in their own way."""
    return {
        name or type(part).__name__: part
        for name, part in model.named_modules()
        if isinstance(part, tuple(LAYER_TYPES)) and layer_type(part) is None
    }


def rescales(layer: nn.Module) -> bool:
    """Whether it changes its weight at run time: an Embedding with max_norm."""
    return getattr(layer, "max_norm", None) is not None


def channel_axis(layer: nn.Module) -> int:
    """Axis of a layer's weight that holds its output channels: 1 for ConvTranspose, else 0."""
    return known_type(layer).channel_axis


def row_repeats(layer: nn.Module) -> int:
    """How many output channels share a row of the channel axis: the groups of a ConvTranspose."""
    return getattr(layer, "groups", 1) if channel_axis(layer) == 1 else 1


def output_channels(layer: nn.Module) -> int:
    """How many output channels a layer has."""
    return weight_of(layer).shape[channel_axis(layer)] * row_repeats(layer)


def swap_last(x: Tensor) -> Tensor:
    """x with its last two dimensions swapped; a vector as it is. w @ x is a layer between two."""
    return x.transpose(-2, -1) if x.dim() > 1 else x
