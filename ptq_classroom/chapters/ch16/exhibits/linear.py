"""A linear layer computed in integers."""

import torch
from torch import Tensor


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [n, in] times weight [out, in] plus bias [out]: 8-bit factors, a 32-bit sum."""
    x_scale = x.abs().max().clamp(min=1e-6) / 127
    w_scale = weight.abs().amax(1).clamp(min=1e-6) / 127
    x_codes = (x / x_scale).round().to(torch.int32)
    w_codes = (weight / w_scale[:, None]).round().to(torch.int32)
    bias_codes = (bias / w_scale).round().to(torch.int32)
    total = x_codes @ w_codes.T + bias_codes
    return total * (x_scale * w_scale)
