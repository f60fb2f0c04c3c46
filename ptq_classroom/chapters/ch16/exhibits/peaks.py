"""The largest input of every layer, for its scale."""

import torch
from torch import Tensor, nn


class Peak:
    """The largest magnitude seen so far; 1 before anything was seen."""

    def __init__(self) -> None:
        self.seen, self.value = False, 1.0

    def observe(self, x: Tensor) -> None:
        largest = float(x.abs().max())
        self.value = max(self.value, largest) if self.seen else largest
        self.seen = True


def peaks(net: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Layer name -> the largest magnitude of its input over all batches."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    calibrators = {name: Peak() for name in layers}
    hooks = []
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for hook in hooks:
        hook.remove()
    return {name: calibrator.value for name, calibrator in calibrators.items()}
