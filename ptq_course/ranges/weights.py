"""The range of a weight by squared error: clip its largest values where that rounds better.

Chapters 05 and 13. A weight is at hand, so that each candidate is simply tried, block by block. At
8 bits min-max is nearly always best; at 4 bits a few large weights make every step too wide.

Banner, Nahshan, Soudry, "Post Training 4-bit Quantization of Convolutional Networks for
Rapid-Deployment", 2019, choose the clipping threshold of weights by squared error as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq_course.grids.affine import IntGrid, block_minmax, choose_qparams, fake_quantize
from ptq_course.grids.blocks import BlockSize, split_into_blocks

WEIGHT_RANGES = ("minmax", "mse")
SHARES = 36  # candidates, from LEAST to 1 of the extremes
LEAST = 0.3


def mse_range(
    x: Tensor, grid: IntGrid, symmetric: bool = True, block_size: BlockSize = None
) -> tuple[Tensor, Tensor]:
    """(low, high) of each block that round x with the least squared error, shaped as block_minmax.

    The candidates are shares of the block's extremes; of equals the widest. Never worse than
    min-max. Raises QuantizationError as `block_minmax` and `choose_qparams` do.
    """
    low, high = block_minmax(x, block_size)
    best_low, best_high = low, high
    least = torch.full_like(low, torch.inf, dtype=torch.float64)
    for share in torch.linspace(1.0, LEAST, SHARES).tolist():
        qparams = choose_qparams(low * share, high * share, grid, symmetric, block_size)
        errors = (fake_quantize(x, qparams).double() - x.double()).square()
        if block_size is None:
            error = errors.sum()
        else:
            blocks = split_into_blocks(errors, block_size)
            error = blocks.sum(dim=tuple(range(1, blocks.ndim, 2)))
        better = error < least
        least = torch.where(better, error, least)
        best_low = torch.where(better, low * share, best_low)
        best_high = torch.where(better, high * share, best_high)
    return best_low, best_high
