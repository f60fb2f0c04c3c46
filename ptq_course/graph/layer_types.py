"""The layers that have integer weights: what each computes. Chapters 04 and 05."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

# A float layer's operation with a weight and a bias of our choosing.
OPERATIONS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Linear: lambda layer, x, w, b: F.linear(x, w, b),
    nn.Conv1d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.Conv2d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.Conv3d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.ConvTranspose1d: lambda layer, x, w, b: F.conv_transpose1d(
        x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    ),
    nn.ConvTranspose2d: lambda layer, x, w, b: F.conv_transpose2d(
        x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    ),
    nn.ConvTranspose3d: lambda layer, x, w, b: F.conv_transpose3d(
        x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    ),
    # x holds indices, which nothing quantizes; a row of the table is a channel (axis 0).
    nn.Embedding: lambda layer, x, w, b: F.embedding(x, w, layer.padding_idx),
}


def channel_axis(layer: nn.Module) -> int:
    """Axis of a layer's weight that holds its output channels: 1 for ConvTranspose, else 0."""
    return 1 if "Transpose" in type(layer).__name__ else 0
