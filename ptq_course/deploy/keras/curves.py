"""Activations of Keras: settings of a layer, layers of their own, and functions. Chapter 15."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.deploy.keras.calls import Call, axis_of, tensor

# By Keras's name of the function, with Keras's own settings.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "hard_tanh": nn.Hardtanh,
    "silu": nn.SiLU,
    "hard_silu": nn.Hardswish,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "log_sigmoid": nn.LogSigmoid,
}
ALONG_CHANNELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
}


def activated(call: Call, x: fx.Node) -> fx.Node:
    """``x`` with the ``activation`` of the call's layer behind it."""
    activation = call.layer.activation
    rank = len(call.shape_out)
    if isinstance(activation, Callable) and type(activation).__name__ in CURVES:
        inner = Call(
            call.target, activation, f"{call.path}_{activation.name}", [x], [call.shape_out],
            call.shape_out,
        )  # fmt: skip
        return CURVES[type(activation).__name__](inner)
    name = getattr(activation, "__name__", str(activation))
    if activation is None or name == "linear":
        return x
    if not getattr(activation, "__module__", "").startswith("keras."):
        raise call.refusal(f"has the activation {name}, which is not Keras's own")
    if name == "exponential":
        return call.function(torch.exp, x)
    if name in ALONG_CHANNELS:
        return call.module(ALONG_CHANNELS[name](dim=axis_of(-1, rank)), x, name)
    if name not in ACTIVATIONS:
        known = ", ".join(sorted([*ACTIVATIONS, *ALONG_CHANNELS, "exponential"]))
        raise call.refusal(f"has the activation {name}", f"known are {known}")
    return call.module(ACTIVATIONS[name](), x, "" if _is_alone(call) else name)


def _is_alone(call: Call) -> bool:
    return type(call.layer).__name__ == "Activation"


def activation(call: Call) -> fx.Node:
    """Activation."""
    return activated(call, call.x)


def relu(call: Call) -> fx.Node:
    """ReLU, with max_value and negative_slope."""
    layer = call.layer
    slope, top = float(layer.negative_slope or 0), layer.max_value
    if layer.threshold:
        raise call.refusal("has a threshold other than 0")
    if slope:
        x = call.module(nn.LeakyReLU(slope), call.x)
        return x if top is None else call.function(torch.clamp, x, max=float(top))
    if top is None:
        return call.module(nn.ReLU(), call.x)
    return call.module(nn.ReLU6() if top == 6 else nn.Hardtanh(0.0, float(top)), call.x)


def leaky_relu(call: Call) -> fx.Node:
    """LeakyReLU."""
    return call.module(nn.LeakyReLU(float(call.layer.negative_slope)), call.x)


def prelu(call: Call) -> fx.Node:
    """PReLU: a slope a channel is PyTorch's layer, one an element an expression."""
    slopes = tensor(call.layer.alpha)
    if slopes.numel() in (1, slopes.shape[-1]):
        module = nn.PReLU(slopes.numel())
        module.weight = nn.Parameter(slopes.flatten(), requires_grad=False)
        return call.module(module, call.x)
    x = call.x
    slope = call.constant(slopes.movedim(-1, 0)[None].contiguous(), "alpha")
    below = call.function(torch.mul, x, slope)
    return call.function(torch.where, call.function(torch.gt, x, 0), x, below)


def elu(call: Call) -> fx.Node:
    """ELU."""
    return call.module(nn.ELU(float(call.layer.alpha)), call.x)


def softmax(call: Call) -> fx.Node:
    """Softmax over one axis."""
    axis: Any = call.layer.axis
    if not isinstance(axis, int):
        raise call.refusal("takes the softmax over several axes")
    return call.module(nn.Softmax(dim=axis_of(axis, len(call.shape))), call.x)


CURVES: dict[str, Callable[[Call], fx.Node]] = {
    "Activation": activation,
    "ReLU": relu,
    "LeakyReLU": leaky_relu,
    "PReLU": prelu,
    "ELU": elu,
    "Softmax": softmax,
}

# Operations of keras.ops on one tensor, by their class.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Relu6": F.relu6,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Silu": F.silu,
    "HardSigmoid": F.hardsigmoid,
    "HardSilu": F.hardswish,
}
