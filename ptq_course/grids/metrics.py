"""How much did quantization change? Two signal-to-noise ratios, paired flips, a paired interval.

Pure functions on arrays; nothing here knows a model. Chapters 00, 01 and 06 use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, number, whole


def snr_pooled(reference: Tensor, approximation: Tensor) -> float:
    """Signal-to-noise ratio in decibels: 10 log10(mean x^2 / mean (x - x_hat)^2) over all values.

    `ptq_course.sqnr_db` is this function. Loud examples decide it: `Noise` says when the median
    over the examples is the better question.

    Both tensors have the same shape, any float dtype. Equal tensors give ``inf``; a reference of
    zeros with any error gives ``-inf``. Infinities that are equal in both (a mask's) are no
    difference and no signal. Raises QuantizationError where the shapes differ, for empty tensors,
    and for NaN or infinity in one of the two.
    """
    if reference.numel() == approximation.numel() == 0:
        raise QuantizationError(
            f"decibels: the tensors are empty, shape {tuple(reference.shape)}: compare values."
        )
    signal, noise = (power.item() for power in _powers(reference, approximation, rows=1))
    if not (math.isfinite(signal) and math.isfinite(noise)):
        raise QuantizationError(
            "decibels: NaN, or infinity in one of the two: find the layer that makes it."
        )
    return _decibels(signal, noise)


sqnr_db = snr_pooled  # the name under which ptq_course exports it


def snr_median(reference: Tensor, approximation: Tensor) -> float:
    """Median over the examples, along the first dimension, of their ratios; see `Noise`.

    inf where nothing differs, also where there is nothing but zeros.
    """
    noise = Noise()
    noise.add(reference, approximation)
    return math.inf if noise.snr_median is None else noise.snr_median


class Noise:
    """Signal and error of one tensor, example by example (along the first dimension).

    Two averages answer two questions. `snr_median` tells what a typical example suffers and is not
    moved by a few. `snr_pooled` adds up all signals and all errors, so that examples with large
    errors decide it: a rule that ruins one example in twenty cannot hide. Both are in decibels, and
    None where there was nothing to measure; examples that hold NaN in the reference are left out.
    """

    def __init__(self) -> None:
        self.decibels: list[Tensor] = []
        self.signal = self.noise = 0.0

    def add(self, reference: Any, approximation: Any) -> None:
        if not isinstance(reference, Tensor) or not reference.is_floating_point():
            return
        rows = len(reference) if reference.dim() and reference.numel() else 1
        signal, noise = _powers(reference, approximation, rows)
        known = signal + noise > 0  # zeros that stay zeros say nothing
        signal, noise = signal[known], noise[known]
        self.decibels.append(10 * (signal / noise).log10())
        self.signal += signal.sum().item()
        self.noise += noise.sum().item()

    @property
    def snr_median(self) -> float | None:
        found = torch.cat(self.decibels) if self.decibels else torch.empty(0)
        if not len(found):
            return None
        ordered = found.sort().values
        low, high = ordered[(len(found) - 1) // 2].item(), ordered[len(found) // 2].item()
        return low if low == high else (low + high) / 2

    @property
    def snr_pooled(self) -> float | None:
        return None if self.signal == self.noise == 0 else _decibels(self.signal, self.noise)


def _powers(reference: Tensor, approximation: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Sums of x^2 and of (x - x_hat)^2, float64 [rows] each."""
    if reference.shape != approximation.shape:
        raise QuantizationError(
            f"decibels: shapes differ, {tuple(reference.shape)} and {tuple(approximation.shape)}; "
            "compare the same tensor before and after quantization."
        )
    exact, found = (t.double().reshape(rows, -1) for t in (reference, approximation))
    signal = exact.masked_fill(exact.isinf(), 0).square().sum(1)
    noise = (exact - found).masked_fill(exact == found, 0).square().sum(1)
    return signal, noise.masked_fill(noise.isnan() & ~signal.isnan(), math.inf)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def rounding_limit(reference: Tensor) -> float:
    """How far apart two floating-point computations of the same tensor may lie.

    A thousandth of its largest value, or eight units in the last place of a shorter dtype; NaN and
    infinity in ``reference`` are left out.
    """
    if not reference.is_floating_point():
        return 0.0
    largest = reference.detach().double().masked_fill(~reference.isfinite(), 0).abs().max().item()
    return max(1e-3, 8 * torch.finfo(reference.dtype).eps) * largest + 1e-6


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of ``logits`` [N, classes] whose largest entry is at ``labels`` [N]."""
    return _correct(logits, labels).double().mean().item()


@dataclass(frozen=True)
class Flips:
    """What two models did on the same examples, counted in examples."""

    total: int
    both_right: int
    lost: int  # the first was right, the second is wrong
    gained: int  # the first was wrong, the second is right
    both_wrong: int
    changed: int  # predictions that differ, right or wrong

    @property
    def net(self) -> int:
        """Examples lost, net of those gained: the drop in accuracy times ``total``."""
        return self.lost - self.gained

    def __str__(self) -> str:
        return (
            f"{self.changed} of {self.total} predictions changed: {self.lost} lost, "
            f"{self.gained} gained, net {-self.net:+d}"
        )


def flips(reference_logits: Tensor, other_logits: Tensor, labels: Tensor) -> Flips:
    """Compare two models example by example; logits are [N, classes], labels [N].

    Two accuracies that differ by 0.1 points can hide a hundred changed answers; flips show them.
    """
    right = _correct(reference_logits, labels)
    other = _correct(other_logits, labels)
    changed = reference_logits.argmax(1) != other_logits.argmax(1)
    return Flips(
        total=len(labels),
        both_right=int((right & other).sum()),
        lost=int((right & ~other).sum()),
        gained=int((~right & other).sum()),
        both_wrong=int((~right & ~other).sum()),
        changed=int(changed.sum()),
    )


def paired_bootstrap(
    first: Tensor, second: Tensor, *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``second - first`` over the same examples, with a bootstrap percentile interval.

    ``first`` and ``second`` are [N] scores an example (0 or 1 for right or wrong). Returns
    (difference, low, high). The difference is significant where the interval excludes zero.
    Pairing matters: both models find the same images hard (Efron, "Bootstrap methods", 1979).
    Raises QuantizationError for other shapes, no examples, scores that are NaN or infinite,
    ``confidence`` outside (0, 1) or fewer than one of ``samples``.
    """
    if first.shape != second.shape or first.dim() != 1 or len(first) == 0:
        raise QuantizationError(
            f"paired_bootstrap: needs two equally long vectors of scores, got shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    number("paired_bootstrap: confidence (0.95 means 95 %)", confidence, "(0, 1)")
    samples = whole("paired_bootstrap: samples", samples, 1)
    differences = (second.double() - first.double()).cpu().numpy()
    if not np.isfinite(differences).all():
        raise QuantizationError("paired_bootstrap: a score is NaN or infinite: score again.")
    # The bootstrap only needs how often each distinct difference is drawn: a multinomial.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(differences), counts / counts.sum(), size=samples
    )
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(differences.mean()), float(low), float(high)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the prediction is right, 0.0 elsewhere: [N], ready for ``paired_bootstrap``."""
    return _correct(logits, labels).double()


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise QuantizationError(
            f"logits must be [N, classes] and labels [N] with N > 0, got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}."
        )
    if torch.isnan(logits).any():
        raise QuantizationError("logits contain NaN: find the layer that makes it before scoring.")
    return logits.argmax(1) == labels
