"""8-bit weights with a scale for each output channel."""

import torch
from torch import Tensor, nn


def quantized_weight(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Codes (int8, shaped as the weight) and one scale for each output channel."""
    weight = layer.weight.detach()
    axis = 0
    others = [d for d in range(weight.dim()) if d != axis]
    scale = weight.abs().amax(others, keepdim=True).clamp(min=1e-12) / 127
    codes = (weight / scale).round().clamp(-127, 127)
    return codes.to(torch.int8), scale.flatten()
