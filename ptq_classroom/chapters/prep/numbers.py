"""Checks of the prep self-test: broadcasting, wrap-around, histograms, decibels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.exercises import Exercise

Case = tuple[str, dict[str, Any]]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# prep.1 broadcasting -----------------------------------------------------------------------------


def scale_channels(w: Tensor, s: Tensor) -> Tensor:
    """Multiply output channel c of a convolution's weight [O, I, kh, kw] by s[c]."""
    return w * s.reshape(-1, 1, 1, 1)


def _weights() -> Iterator[Case]:
    s = torch.tensor([1.0, 10.0, 100.0])
    yield "every dimension is 3", {"w": _random(3, 3, 3, 3, seed=1), "s": s}
    yield "four outputs, two inputs", {"w": _random(4, 2, 3, 3, seed=2), "s": torch.arange(1.0, 5)}
    yield "a depthwise weight", {"w": _random(5, 1, 3, 3, seed=3), "s": torch.arange(1.0, 6) / 4}


def _scaled_loop(w: Tensor, s: Tensor) -> Tensor:
    return torch.stack([channel * factor for channel, factor in zip(w, s, strict=True)])


def _scaled_into(w: Tensor, s: Tensor) -> Tensor:
    w *= s[:, None, None, None]
    return w


# prep.2 integer wrap-around ----------------------------------------------------------------------


def wrap(value: int, bits: int) -> int:
    """What a two's-complement integer of `bits` bits shows after `value` was put into it."""
    half = 2 ** (bits - 1)
    return (value + half) % 2**bits - half


def _whole_numbers() -> Iterator[Case]:
    pairs = [(5, 8), (127, 8), (128, 8), (130, 8), (-129, 8), (300, 8), (-300, 8), (255, 8)]
    for value, bits in [*pairs, (7, 4), (8, 4), (-9, 4), (40000, 16), (1000, 4), (-1000, 4)]:
        yield f"{value} in {bits} bits", {"value": value, "bits": bits}


def _wrap_once(value: int, bits: int) -> int:
    top, span = 2 ** (bits - 1), 2**bits
    return value - span if value >= top else value + span if value < -top else value


def _wrap_late(value: int, bits: int) -> int:
    rest = value % 2**bits
    return rest - 2**bits if rest > 2 ** (bits - 1) else rest


def _wrap_bits(value: int, bits: int) -> int:
    rest = value & (2**bits - 1)
    return rest - 2**bits if rest >> (bits - 1) else rest


def _wrap_loop(value: int, bits: int) -> int:
    while value >= 2 ** (bits - 1):
        value -= 2**bits
    while value < -(2 ** (bits - 1)):
        value += 2**bits
    return value


# prep.3 histograms -------------------------------------------------------------------------------


def histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Counts of x in `bins` equal bins over [low, high]; `high` belongs to the last bin."""
    inside = x[(x >= low) & (x <= high)]
    index = ((inside - low) / (high - low) * bins).long().clamp(max=bins - 1)
    return torch.bincount(index, minlength=bins)


def _samples() -> Iterator[Case]:
    x = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9, 0.95, 0.05])
    yield "all inside", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    x = torch.tensor([-3.0, 0.1, 0.4, 0.6, 0.7, 5.0])
    yield "two outside", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    x = torch.tensor([0.0, 0.3, 1.0, 1.0])
    yield "on the upper edge", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    yield "normal", {"x": _random(400, seed=4), "low": -2.0, "high": 2.0, "bins": 16}


def _binned(x: Tensor, low: float, high: float, bins: int, *, how: str) -> Tensor:
    at = (x - low) / (high - low) * bins
    if how == "fewer":
        at = (x - low) / (high - low) * (bins - 1)
    keep = (x >= low) & ((x < high) if how == "open" else (x <= high))
    if how == "piled":
        at, keep = at.clamp(0, bins - 1), torch.ones_like(keep)
    whole = torch.round(at[keep]) if how == "round" else torch.floor(at[keep])
    return torch.bincount(whole.long().clamp(0, bins - 1), minlength=bins)


def _histogram_numpy(x: Tensor, low: float, high: float, bins: int) -> np.ndarray:
    return np.histogram(x.numpy(), bins=bins, range=(low, high))[0]


def _histogram_loop(x: Tensor, low: float, high: float, bins: int) -> list[int]:
    edges = torch.linspace(low, high, bins + 1).tolist()
    counts = [sum(a <= v < b for v in x.tolist()) for a, b in itertools.pairwise(edges)]
    counts[-1] += sum(v == high for v in x.tolist())
    return counts


# prep.4 logarithms and decibels ------------------------------------------------------------------


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Signal-to-noise ratio in decibels: 10 log10(power of the signal / power of the error)."""
    return 10 * math.log10(float((signal**2).sum() / ((signal - noisy) ** 2).sum()))


def _signals() -> Iterator[Case]:
    x = torch.tensor([3.0, -4.0, 5.0, -2.0])
    yield "error of a tenth", {"signal": x, "noisy": x * 1.1}
    x = _random(6, 7, seed=5)
    yield "a noisy matrix", {"signal": x, "noisy": x + 0.3 * _random(6, 7, seed=6)}


def _power_ratio(signal: Tensor, noisy: Tensor) -> float:
    return float((signal**2).sum() / ((signal - noisy) ** 2).sum())


EXERCISES = [
    Exercise(
        id="prep.1",
        title="Broadcasting",
        minutes=2,
        difficulty=1,
        signature="scale_channels(w, s)",
        reference=scale_channels,
        cases=_weights,
        returns="the weight",
        accepted=(
            _scaled_loop,
            lambda w, s: torch.einsum("oihw,o->oihw", w, s),
            lambda w, s: (w.transpose(0, -1) * s).transpose(0, -1),
        ),
        diagnoses=(
            (
                lambda w, s: w * s,
                "w * s lines s up with the LAST dimension (the kernel's width); "
                "reshape s to [O, 1, 1, 1]",
            ),
            (
                lambda w, s: w * s[:, None, None],
                "s was lined up with the input channels; the output "
                "channels come first: s[:, None, None, None]",
            ),
            (
                lambda w, s: w * s[:, None],
                "s was lined up with the kernel's height; it needs three "
                "trailing dimensions of size 1",
            ),
            (lambda w, s: w / s.reshape(-1, 1, 1, 1), "divided instead of multiplied"),
        ),
        hints=(
            (
                "It runs when all sizes are 3 and fails otherwise",
                "Broadcasting lines shapes up from the right: s is [O], w is [O, I, kh, kw].",
            ),
            ("How do I add dimensions", "s[:, None, None, None] or s.reshape(-1, 1, 1, 1)."),
        ),
    ),
    Exercise(
        id="prep.2",
        title="Integer wrap-around",
        minutes=2,
        difficulty=2,
        signature="wrap(value, bits)",
        reference=wrap,
        cases=_whole_numbers,
        returns="the integer",
        accepted=(_wrap_bits, _wrap_loop),
        diagnoses=(
            (
                lambda value, bits: min(max(value, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1),
                "this saturates; a plain cast wraps around instead",
            ),
            (
                lambda value, bits: value % 2**bits,
                "this is the unsigned integer; a signed one has negatives above 2^(bits-1) - 1",
            ),
            (_wrap_once, "large values go round more than once: use the remainder (%)"),
            (_wrap_late, "2^(bits-1) itself has no room: 128 in 8 bits shows -128"),
        ),
        hints=(
            (
                "What happens to 128 in 8 bits",
                "The highest is 127; one more lands on the lowest, -128.",
            ),
            (
                "Where to begin",
                "Python's % is never negative. Shift by 2^(bits-1), take the remainder "
                "of 2^bits, shift back.",
            ),
        ),
    ),
    Exercise(
        id="prep.3",
        title="A histogram",
        minutes=3,
        difficulty=2,
        signature="histogram(x, low, high, bins)",
        reference=histogram,
        cases=_samples,
        returns="counts",
        accepted=(_histogram_numpy, _histogram_loop),
        diagnoses=(
            (
                lambda *a: _binned(*a, how="open"),
                "a value equal to `high` was lost; it belongs to the last bin",
            ),
            (
                lambda *a: _binned(*a, how="piled"),
                "values outside the range were piled into the end bins; leave them out",
            ),
            (
                lambda *a: _binned(*a, how="fewer"),
                "the width of a bin is (high - low) / bins, not / (bins - 1)",
            ),
            (
                lambda *a: _binned(*a, how="round"),
                "the bin's number is rounded down, not to the nearest",
            ),
        ),
        hints=(
            (
                "Which bin does a value fall into",
                "floor((x - low) / width), where width is (high - low) / bins.",
            ),
            (
                "The sum is too small",
                "A value equal to `high` computes to bin number `bins`: one too far.",
            ),
        ),
    ),
    Exercise(
        id="prep.4",
        title="Decibels",
        minutes=2,
        difficulty=1,
        signature="sqnr_db(signal, noisy)",
        reference=sqnr_db,
        cases=_signals,
        returns="the ratio in dB",
        rtol=1e-4,
        accepted=(
            lambda signal, noisy: 20 * torch.log10(signal.norm() / (signal - noisy).norm()),
            lambda signal, noisy: -10 * np.log10(1 / _power_ratio(signal, noisy)),
        ),
        diagnoses=(
            (
                lambda signal, noisy: 20 * math.log10(_power_ratio(signal, noisy)),
                "20 log10 belongs to a ratio of amplitudes; a ratio of powers takes 10 log10",
            ),
            (
                lambda signal, noisy: 10 * math.log(_power_ratio(signal, noisy)),
                "the natural logarithm was used; decibels take log10",
            ),
            (
                lambda signal, noisy: -10 * math.log10(_power_ratio(signal, noisy)),
                "the ratio is upside down: signal above, error below",
            ),
            (
                lambda signal, noisy: 10 * math.log10(_power_ratio(signal, noisy)) / 2,
                "a ratio of amplitudes takes 20 log10 (or square them and take 10)",
            ),
            (
                lambda signal, noisy: 10 * math.log10(float((signal**2).sum() / (noisy**2).sum())),
                "the error is signal - noisy; the power of `noisy` itself was used",
            ),
        ),
        hints=(
            ("What is the noise", "The difference between the two tensors, squared and summed."),
            (
                "I get twice (or half) the value",
                "Power goes with the square of the amplitude: 10 log10(a^2) = 20 log10(a).",
            ),
        ),
    ),
]
