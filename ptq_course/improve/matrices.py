"""A layer as matrices: the view in which every technique of this room works. Chapters 11 and 13.

A convolution is a product of matrices too: each output position multiplies the patch under the
kernel. With G groups (1 for Linear, C for a depthwise convolution) the weight is G matrices
[O / G, K], K = I / G * taps, and the input G matrices [K, N], N positions of all examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.graph.layer_types import channel_axis, layer_type

CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2}


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a Linear or convolution, detached; UnsupportedError, by name, for others."""
    weight, kind = getattr(layer, "weight", None), layer_type(layer)
    if kind is None or not kind.foldable or not isinstance(weight, Tensor):
        raise UnsupportedError(
            f"{type(layer).__name__} is no convolution and no Linear layer, which this technique "
            "needs; leave it out."
        )
    return weight.detach()


def grouped(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weight as [G, O / G, I / G, taps], for reading; `put_grouped` writes.

    weight: another tensor of the weight's shape, viewed in its place.
    """
    own = weight_of(layer)
    weight = own if weight is None else weight
    groups = int(getattr(layer, "groups", 1))
    if channel_axis(layer) == 1:  # ConvTranspose: [I, O / G, ...]
        return weight.unflatten(0, (groups, -1)).flatten(3).transpose(1, 2)
    taps = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    return taps.unflatten(0, (groups, -1))


def put_grouped(layer: nn.Module, values: Tensor) -> None:
    """Write a weight given as `grouped` gives it, [G, O / G, I / G, taps], into the layer.

    A weight whose memory has another order (kernels of another library, transposed) has no such
    view, so that what is written into one would be lost.
    """
    weight = weight_of(layer)
    if channel_axis(layer) == 1:
        values = values.transpose(1, 2)
    with torch.no_grad():
        weight.copy_(values.flatten(0, 1).reshape(weight.shape))


def exact_in(dtype: torch.dtype, factors: Tensor) -> Tensor:
    """Factors for weights of ``dtype``: in 16 bits the nearest powers of two, else as they are.

    Any other factor would round each weight of a bfloat16 network anew, by up to 0.4 %.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return torch.exp2(factors.double().log2().round()).to(factors)
    return factors


def matrices(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weight of a Linear, Conv1d or Conv2d (or ``weight`` of its shape) as [G, O / G, K].

    UnsupportedError for other layers: a transposed convolution scatters where these gather.
    """
    weight_of(layer)
    if not has_matrices(layer):
        raise UnsupportedError(
            f"{type(layer).__name__} has no matrix form here (Linear, Conv1d and Conv2d have); "
            "round it to nearest."
        )
    return grouped(layer, weight).flatten(2)


def has_matrices(layer: nn.Module) -> bool:
    """Is it a layer that `matrices` takes?"""
    named = type(layer).__name__ in ("Linear", *CONVOLUTIONS)
    return named or isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def unmatrix(layer: nn.Module, matrix: Tensor) -> Tensor:
    """Back from [G, O / G, K] to the shape of the layer's weight."""
    return matrix.reshape(weight_of(layer).shape)


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs of a layer's products, [G, K, N], from its input x.

    x: [..., features] of a Linear, [B, C, (H,) W] or one [C, (H,) W] of a convolution. Padding is
    part of it.
    """
    matrices(layer)
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    flat = isinstance(layer, nn.Conv1d)
    if x.dim() == (2 if flat else 3):
        x = x.unsqueeze(0)
    if layer._reversed_padding_repeated_twice and any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if flat:
        x, kernel, dilation, stride = (
            x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride),
        )  # fmt: skip
    patches = F.unfold(x, kernel, dilation, 0, stride)  # [B, C * taps, positions]
    return patches.transpose(0, 1).unflatten(0, (layer.groups, -1)).flatten(2)


def second_moments(layer: nn.Module, x: Tensor, other: Tensor | None = None) -> Tensor:
    """The Gram matrices of the layer's inputs, summed over positions: float64 [G, K, K].

    The squared error of an output is (w - w_hat) H (w - w_hat)^T, so H is all that a rounding
    method needs to know of the data, whose activations need not be kept. With ``other``, another
    input of x's shape: the mixed moments, other times x transposed.
    """
    a = columns(layer, x).double()
    b = a if other is None else columns(layer, other).double()
    return torch.einsum("gkn,gln->gkl", b, a)
