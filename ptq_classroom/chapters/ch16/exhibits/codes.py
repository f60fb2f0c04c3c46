"""From floating point to 8-bit codes."""

import torch
from torch import Tensor


def to_int8(x: Tensor, scale: float) -> Tensor:
    """Codes in -128 .. 127 of x, as int8; what lies beyond takes the end of the range."""
    codes = (x / scale).round().to(torch.int32)
    codes = codes.to(torch.int8)
    return codes.clamp(-128, 127)
