"""Dense, norms, merges and what changes the shape, channels first. Chapter 15."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ptq_course.deploy.keras.calls import Call, Shape, axis_of, first_order, tensor
from ptq_course.deploy.keras.curves import activated
from ptq_course.deploy.keras.windows import CONVOLUTIONS

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _frozen(value: Any) -> nn.Parameter:
    return nn.Parameter(tensor(value), requires_grad=False)


def dense(call: Call) -> fx.Node:
    """Dense; on [N, ..., C] it is a convolution of width 1, whose channels may stay first."""
    layer, dims = call.layer, len(call.shape) - 2
    weight = tensor(layer.kernel).T.contiguous()
    biased = layer.use_bias
    kind = CONVOLUTIONS.get(dims)
    if dims and kind is None:
        raise call.refusal(f"reads a tensor of {dims + 2} dimensions")
    sizes = (weight.shape[1], weight.shape[0])
    module: Any = kind(*sizes, 1, bias=biased) if kind else nn.Linear(*sizes, bias=biased)
    module.weight = nn.Parameter(weight.reshape(*weight.shape, *[1] * dims), requires_grad=False)
    if biased:
        module.bias = _frozen(layer.bias)
    return activated(call, call.module(module, call.x))


def batch_norm(call: Call) -> fx.Node:
    """BatchNormalization with its running statistics."""
    layer, rank = call.layer, len(call.shape)
    if layer.axis % rank != rank - 1:
        raise call.refusal(f"normalizes axis {layer.axis}", "normalize the last axis")
    return _normalized(
        call, layer.moving_mean, layer.moving_variance, layer.epsilon,
        layer.gamma if layer.scale else None, layer.beta if layer.center else None,
    )  # fmt: skip


def _normalized(call: Call, mean: Any, var: Any, eps: float, gamma: Any, beta: Any) -> fx.Node:
    mean = tensor(mean)
    module: Any = NORMS[len(call.shape)](mean.numel(), eps=eps)
    module.running_mean, module.running_var = mean, tensor(var)
    if gamma is not None:
        module.weight = _frozen(gamma)
    if beta is not None:
        module.bias = _frozen(beta)
    return call.module(module, call.x)


def normalization(call: Call) -> fx.Node:
    """Normalization by constants: a batch norm that nothing absorbs."""
    layer, channels = call.layer, int(call.shape[-1] or 1)
    mean, var = (tensor(value).flatten() for value in (layer.mean, layer.variance))
    if mean.numel() not in (1, channels) or layer.invert:
        raise call.refusal("does not normalize the last axis")
    wide = var.clamp_min(1e-14).expand(channels)  # Keras: max(sqrt(variance), 1e-7)
    return _normalized(call, mean.expand(channels), wide, 0.0, None, None)


def layer_norm(call: Call) -> fx.Node:
    """LayerNormalization over the last axes of Keras, which are the last while it computes."""
    layer, rank = call.layer, len(call.shape)
    axes = sorted(a % rank for a in ([layer.axis] if isinstance(layer.axis, int) else layer.axis))
    sizes: Any = tuple(call.shape[a] for a in axes)
    if axes != list(range(rank - len(axes), rank)) or None in sizes:
        raise call.refusal(f"normalizes the axes {axes}", "normalize the last axes, of fixed size")
    if getattr(layer, "rms_scaling", False):
        raise call.refusal("scales by the root of the mean square")
    module: Any = nn.LayerNorm(sizes, eps=layer.epsilon)
    if layer.scale:
        module.weight = nn.Parameter(tensor(layer.gamma).reshape(sizes), requires_grad=False)
    if layer.center:
        module.bias = nn.Parameter(tensor(layer.beta).reshape(sizes), requires_grad=False)
    x = call.module(module, call.channels_last(call.x, rank))
    return call.channels_first(x, rank)


def flatten(call: Call) -> fx.Node:
    """Flatten in Keras's order: the channels run fastest."""
    rank = len(call.shape)
    if rank <= 2:
        return call.x
    still = call.shape[-1] == 1 or _one_place(call.shape)
    x = call.x if still else call.channels_last(call.x, rank)
    return call.function(torch.flatten, x, 1)


def reshape(call: Call) -> fx.Node:
    """Reshape in Keras's order."""
    rank, size = len(call.shape), call.shape_out[1:]
    if None in size:
        size = tuple(call.layer.target_shape)
    if _one_place(call.shape) and set(size[:-1]) <= {1}:  # a vector before and behind: no order
        return call.function(torch.reshape, call.x, (-1, size[-1], *[1] * (len(size) - 1)))
    x = call.x if _one_place(call.shape) else call.channels_last(call.x, rank)
    return call.channels_first(call.function(torch.reshape, x, (-1, *size)), len(size) + 1)


def _one_place(shape: Shape) -> bool:
    """Whether the channels are all that there is: [N, 1, 1, C]."""
    return set(shape[1:-1]) <= {1}


def permute(call: Call) -> fx.Node:
    """Permute."""
    rank = len(call.shape)
    order, first = [0, *call.layer.dims], first_order(rank)  # axis i here is first[i] in Keras
    return call.permuted(call.x, [first.index(order[axis]) for axis in first])


def _merge(call: Call, operation: Callable[..., Any]) -> fx.Node:
    if len({len(shape) for shape in call.shapes}) > 1:
        raise call.refusal(
            f"joins tensors of different ranks, {', '.join(map(str, call.shapes))}",
            "reshape them to one rank, such as Reshape((1, 1, channels))",
        )
    return functools.reduce(lambda a, b: call.function(operation, a, b), call.inputs)


def average(call: Call) -> fx.Node:
    """Average of several tensors."""
    return call.function(torch.mul, _merge(call, torch.add), 1 / len(call.inputs))


def concatenate(call: Call) -> fx.Node:
    """Concatenate along any axis."""
    return call.function(torch.cat, list(call.inputs), axis_of(call.layer.axis, len(call.shape)))


def rescaling(call: Call) -> fx.Node:
    """Rescaling by numbers."""
    scale, offset = tensor(call.layer.scale), tensor(call.layer.offset)
    if scale.numel() != 1 or offset.numel() != 1:
        ones = torch.ones(int(call.shape[-1] or 1))
        scale, offset = scale.flatten() * ones, offset.flatten() * ones
        return _normalized(call, ones * 0, ones, 0.0, scale, offset)
    x = call.function(torch.mul, call.x, float(scale))
    return call.function(torch.add, x, float(offset)) if float(offset) else x


def nothing(call: Call) -> fx.Node:
    """What only training needs."""
    return call.x


MERGES = {
    "Add": torch.add,
    "Subtract": torch.sub,
    "Multiply": torch.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}
IDLE = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout",
    "GaussianDropout", "GaussianNoise", "ActivityRegularization", "Identity",
)  # fmt: skip
SHAPES: dict[str, Callable[[Call], fx.Node]] = {
    "Dense": dense,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "Normalization": normalization,
    "Rescaling": rescaling,
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "Average": average,
    "Concatenate": concatenate,
    **{name: functools.partial(_merge, operation=made) for name, made in MERGES.items()},
    **dict.fromkeys(IDLE, nothing),
}
