"""Factors for the inputs of layers, searched by the error of the output: the arithmetic of AWQ.

Chapter 13. Pure functions from weights and statistics of the input to factors; `awq` moves them
into a network.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han, "AWQ: Activation-aware Weight Quantization
for LLM Compression and Acceleration", 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_course.errors import QuantizationError, UnsupportedError, whole
from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import fake_quantize
from ptq_course.improve.matrices import (
    exact_in,
    grouped,
    matrices,
    put_grouped,
    second_moments,
    weight_of,
)
from ptq_course.simulation.layers import weight_qparams
from ptq_course.simulation.qconfig import QConfig

Rounded = Callable[[nn.Module], Tensor]  # the weight of a layer, rounded, in its shape


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What AWQ knows of a layer's input.

    magnitudes: mean |x| of each channel, [C]. moments: summed over positions, float64 [1, K, K],
    with K = C * taps (`matrices.second_moments`).
    """

    magnitudes: Tensor
    moments: Tensor

    def __add__(self, other: InputStatistics) -> InputStatistics:
        return InputStatistics(self.magnitudes + other.magnitudes, self.moments + other.moments)

    @classmethod
    def of(cls, layer: nn.Module, x: Tensor) -> InputStatistics:
        """Of one batch. Raises UnsupportedError, by name, where AWQ has no form for the layer."""
        check_supported(layer)
        channels = x.dim() - known_type(layer).token_dimensions  # a picture may come alone
        others = [d for d in range(x.dim()) if d != channels]
        return cls(x.detach().double().abs().mean(others), second_moments(layer, x))


@dataclass(frozen=True, eq=False)
class Found:
    """What `search_factors` found: factors [C], their exponent, and the squared output errors.

    The errors are of the outputs at that time: in `AWQ` a later layer may divide them.
    """

    factors: Tensor
    alpha: float
    error: float
    nearest: float


def check_supported(layer: nn.Module) -> None:
    """UnsupportedError, by name, for what is neither Linear nor an ungrouped Conv1d or Conv2d.

    A depthwise filter reads one channel: a factor moves its scale along, and nothing is won.
    """
    matrices(layer)
    if getattr(layer, "groups", 1) != 1:
        raise UnsupportedError(
            f"AWQ: {type(layer).__name__} with groups={layer.groups}: its rows read few channels, "
            "whose factor their scale undoes; use GPTQ or AdaRound."
        )


def awq_factors(magnitudes: Tensor, alpha: float) -> Tensor:
    """s [C] = magnitudes^alpha, over the root of largest times smallest; 1 for dead channels.

    Raises QuantizationError for magnitudes that are negative or not finite.
    """
    if magnitudes.dim() != 1 or not bool((torch.isfinite(magnitudes) & (magnitudes >= 0)).all()):
        raise QuantizationError(
            "awq_factors: one finite magnitude of at least 0 a channel; check the data."
        )
    alive = magnitudes > 0
    if not bool(alive.any()):
        return torch.ones_like(magnitudes)
    least = 1e-4 * magnitudes.max()  # a nearly dead channel shall not stretch the others
    s = magnitudes.clamp(min=float(least)) ** alpha
    return torch.where(alive, s / (s[alive].max() * s[alive].min()).sqrt(), 1.0)


def output_error(layer: nn.Module, found: Tensor, moments: Tensor) -> float:
    """Squared error of a layer's output with the weight ``found``, on inputs with these moments."""
    error = matrices(layer, found.double() - weight_of(layer).double())
    return float(((error @ moments) * error).sum())


def scaled_copy(layer: nn.Module, factors: Tensor) -> nn.Module:
    """A copy whose weights are multiplied by the factor [C] of the channel that they read."""
    other = copy.deepcopy(layer)
    put_grouped(other, grouped(other) * factors.to(weight_of(other)).view(1, 1, -1, 1))
    return other


def search_factors(
    layers: Sequence[nn.Module],
    statistics: Sequence[InputStatistics],
    rounded: Rounded,
    steps: int = 20,
) -> Found:
    """The factors of one input, which ``layers`` read, with the least squared output error.

    rounded: how a layer's weight is rounded. alpha is tried at 0, 1 / steps, ..., 1; of equals the
    smallest. Never worse than rounding to nearest, which is alpha 0.
    """
    steps = whole("steps", steps, 1)
    if not layers:
        raise QuantizationError("search_factors: no layer.")
    for layer in layers:
        check_supported(layer)
    magnitudes = torch.stack([s.magnitudes for s in statistics]).mean(0)
    best: Found | None = None
    nearest = 0.0
    for step in range(steps + 1):
        factors = exact_in(weight_of(layers[0]).dtype, awq_factors(magnitudes, step / steps))
        error = 0.0
        for layer, known in zip(layers, statistics, strict=True):
            weight = rounded(scaled_copy(layer, factors))
            undone = grouped(layer, weight) / factors.to(weight).view(1, 1, -1, 1)
            error += output_error(layer, undone.reshape(weight.shape), known.moments)
        nearest = error if best is None else nearest
        if best is None or error < best.error:
            best = Found(factors, step / steps, error, nearest)
    assert best is not None
    return best


def to_nearest(config: QConfig) -> Rounded:
    """How `PTQQuantizer` rounds a weight with this config."""
    grid = config.weight_grid
    if grid is None:
        raise QuantizationError("AWQ: weight_bits is None, so nothing is rounded; set it.")

    def rounded(layer: nn.Module) -> Tensor:
        qparams = weight_qparams(
            layer, grid, config.weight_granularity, config.weight_symmetric, config.weight_range
        )
        return fake_quantize(weight_of(layer), qparams)

    return rounded
