"""Signal-to-noise ratio over many examples: the median of all, or all powers pooled. Chapter 06.

Two averages that answer two questions. The **median** tells what a typical example suffers and is
not moved by a few. The **pooled** ratio adds up all signals and all errors, so that examples with
large errors decide it: a rule that ruins one example in twenty cannot hide.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Noise:
    """Signal and error of one tensor, example by example (along the first dimension)."""

    def __init__(self) -> None:
        self.decibels: list[Tensor] = []
        self.signal = self.noise = 0.0

    def add(self, reference: Any, approximation: Any) -> None:
        if not isinstance(reference, Tensor) or not reference.is_floating_point():
            return
        x = reference.double().reshape(max(1, len(reference) if reference.dim() else 1), -1)
        error = x - approximation.double().reshape(x.shape)
        signal, noise = x.square().sum(1), error.square().sum(1)
        known = (signal > 0) | (noise > 0)  # zeros that stay zeros say nothing
        self.decibels.append(10 * (signal / noise)[known].log10())
        self.signal += signal.sum().item()
        self.noise += noise.sum().item()

    @property
    def db(self) -> float | None:
        """Median over the examples, None where there was nothing to measure."""
        found = torch.cat(self.decibels) if self.decibels else torch.empty(0)
        if not len(found):
            return None
        ordered = found.sort().values
        low, high = ordered[(len(found) - 1) // 2].item(), ordered[len(found) // 2].item()
        return low if low == high else (low + high) / 2

    @property
    def pooled_db(self) -> float | None:
        """Power of all signals over power of all errors: loud examples decide it."""
        if self.signal == self.noise == 0:
            return None
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


def median_db(reference: Tensor, approximation: Tensor) -> float:
    """Median over the examples of the signal-to-noise ratio; inf where nothing differs."""
    noise = Noise()
    noise.add(reference, approximation)
    return math.inf if noise.db is None else noise.db
