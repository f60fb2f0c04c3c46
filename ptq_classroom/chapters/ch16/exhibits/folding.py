"""A convolution and its batch norm become one quantized convolution."""

import torch
from torch import Tensor, nn


def quantized_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Codes of the weight (int8) and a scale for each output channel."""
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight.detach()
    scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
    weight = weight * factor.detach()[:, None, None, None]
    codes = (weight / scale[:, None, None, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale
