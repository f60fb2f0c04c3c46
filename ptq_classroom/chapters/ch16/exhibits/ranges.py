"""Ranges of a network's outputs, from calibration data."""

import torch
from torch import Tensor, nn


def output_range(net: nn.Module, batches: list[Tensor]) -> tuple[float, float]:
    """Smallest and largest logit over all batches."""
    net.train()
    with torch.no_grad():
        outputs = torch.cat([net(batch) for batch in batches])
    net.eval()
    return float(outputs.min()), float(outputs.max())
