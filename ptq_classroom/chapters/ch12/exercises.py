"""Checks of chapter 12: how far a channel stands out, factors that smooth it, and a choice."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer of WRONG_INTERVALS calls it)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close, roughly

# 12.1 ------------------------------------------------------------------------------------------


def outlier_ratio(x: Tensor) -> float:
    """The largest magnitude of the loudest channel over that of the median channel."""
    largest = x.abs().flatten(0, -2).amax(0)
    return (largest.max() / largest.median()).item()


def _activations() -> Iterator[tuple[str, dict[str, Any]]]:
    yield (
        "three tokens, three channels",
        {"x": torch.tensor([[1.0, -8.0, 0.5], [-2.0, 4.0, 1.0], [0.5, 3.0, -1.0]])},
    )
    g = torch.Generator().manual_seed(1201)
    for label, shape in (
        ("[40, 9]", (40, 9)),
        ("as many tokens as channels [7, 7]", (7, 7)),
        ("sentences [4, 6, 11]", (4, 6, 11)),
        ("one token [1, 5]", (1, 5)),
    ):
        x = torch.randn(*shape, generator=g)
        x[..., 2] *= 20
        yield label, {"x": x}
    negative = torch.rand(30, 9, generator=g)
    negative[..., 4] -= 25
    yield "the loud channel is negative", {"x": negative}
    even = torch.rand(30, 9, generator=g) + 1
    yield "no channel stands out", {"x": even}


def _ratio_numpy(x: Tensor) -> float:
    rows = np.abs(np.asarray(x, dtype=np.float64)).reshape(-1, x.shape[-1])
    largest = rows.max(axis=0)
    return float(largest.max() / np.median(largest))


def _ratio_sorted(x: Tensor) -> Tensor:
    channels = x.unbind(-1)
    largest = sorted(max(c.max().item(), -c.min().item()) for c in channels)
    return torch.tensor(largest[-1] / largest[len(largest) // 2])


OUTLIER_RATIO = Exercise(
    id="12.1", title="How far a channel stands out", minutes=6, difficulty=2,
    signature="outlier_ratio(x)", reference=outlier_ratio, cases=_activations, agree=roughly,
    compare=lambda got, expected, **_: expect_close(got, expected, "the ratio", 1e-4, 1e-6),
    returns="the ratio", accepted=(_ratio_numpy, _ratio_sorted),
    diagnoses=(
        ("flatten(0, -2).amax(0) => flatten(0, -2).amax(1)",
         "the largest value of each token; a channel is the last dimension: reduce the others"),
        ("x.abs() => x", "the maximum, not the largest magnitude: a channel may be loud below 0"),
        ("largest.median() => largest.mean()",
         "the mean: the loud channel pulls it up itself; take the median"),
        ("largest.median() => x.abs().median()",
         "the median of all values; each channel counts once, with its largest magnitude"),
        ("largest.max() / largest.median() => largest.median() / largest.max()", "upside down"),
        ("largest.median() => largest.min()",
         "the quietest channel; a dead one would make the ratio infinite: take the median"),
        ("flatten(0, -2).amax(0) => flatten(0, -2).mean(0)",
         "the mean magnitude of each channel; the range of a grid is set by the largest"),
        ("flatten(0, -2).amax(0) => flatten(0, -2).std(0, unbiased=False)",
         "the spread of each channel; the range of a grid is set by the largest magnitude"),
        ("x.abs().flatten(0, -2) => x.abs() if x.dim() == 2 else x[0].abs()",
         "only the first sentence was looked at"),
    ),
    hints=(
        ("Which dimension is the channel?",
         "The last one. x.flatten(0, -2) makes [tokens, channels] of any number of dimensions."),
        ("What is the largest of each channel?", "x.abs() first, then amax over the tokens."),
    ),
)  # fmt: skip


# 12.2 ------------------------------------------------------------------------------------------


def smooth_scales(act_max: Tensor, w_max: Tensor, alpha: float) -> Tensor:
    """What each channel is divided by: act_max^alpha / w_max^(1 - alpha), 1 where one is 0."""
    alive = (act_max > 0) & (w_max > 0)
    return torch.where(alive, act_max**alpha / w_max ** (1 - alpha), 1.0)


def _ranges() -> Iterator[tuple[str, dict[str, Any]]]:
    act, w = torch.tensor([16.0, 1.0, 4.0]), torch.tensor([0.25, 1.0, 4.0])
    for alpha in (0.5, 0.25):
        yield f"three channels, alpha {alpha}", {"act_max": act, "w_max": w, "alpha": alpha}
    g = torch.Generator().manual_seed(1202)
    act, w = torch.rand(9, generator=g) * 20 + 0.1, torch.rand(9, generator=g) + 0.05
    for alpha in (0.0, 0.75, 1.0):
        yield f"nine channels, alpha {alpha}", {"act_max": act, "w_max": w, "alpha": alpha}
    act, w = act.clone(), w.clone()
    act[1], w[4], act[6], w[6] = 0.0, 0.0, 0.0, 0.0
    yield "channels that are never used", {"act_max": act, "w_max": w, "alpha": 0.6}


def _scales_by_logarithm(act_max: Tensor, w_max: Tensor, alpha: float) -> np.ndarray:
    a, w = act_max.double().numpy(), w_max.double().numpy()
    used = (a > 0) & (w > 0)
    log = alpha * np.log(np.where(used, a, 1)) - (1 - alpha) * np.log(np.where(used, w, 1))
    return np.exp(log)


def _scales_by_loop(act_max: Tensor, w_max: Tensor, alpha: float) -> list[float]:
    pairs = zip(act_max.tolist(), w_max.tolist(), strict=True)
    return [a**alpha * w ** (alpha - 1) if a and w else 1.0 for a, w in pairs]


SMOOTH_SCALES = Exercise(
    id="12.2", title="Factors between activations and weights", minutes=6, difficulty=2,
    signature="smooth_scales(act_max, w_max, alpha)", reference=smooth_scales, cases=_ranges,
    compare=lambda got, expected, **_: expect_close(got, expected, "the factors", 1e-4, 1e-6),
    agree=roughly, returns="the factors",
    accepted=(_scales_by_logarithm, _scales_by_loop),
    diagnoses=(
        ("act_max**alpha / w_max ** (1 - alpha) => act_max ** (1 - alpha) / w_max**alpha",
         "alpha and 1 - alpha have changed places: alpha 1 must move everything to the weights"),
        ("act_max**alpha / w_max ** (1 - alpha) => act_max**alpha * w_max ** (1 - alpha)",
         "multiplied: large weights ask for a smaller factor, so divide by them"),
        ("w_max ** (1 - alpha) => w_max**alpha",
         "both exponents are alpha; that of the weights is 1 - alpha"),
        ("act_max**alpha / w_max ** (1 - alpha) => w_max ** (1 - alpha) / act_max**alpha",
         "upside down: the activations are divided by it, so that loud ones need a large factor"),
        ("act_max**alpha / w_max ** (1 - alpha) => act_max**alpha",
         "the weights are left out: where they are small there is room for more"),
        ("act_max**alpha / w_max ** (1 - alpha) => alpha * act_max / ((1 - alpha) * w_max + 1e-9)",
         "alpha is an exponent, no factor"),
        ("torch.where(alive, act_max**alpha / w_max ** (1 - alpha), 1.0) => "
         "act_max**alpha / w_max ** (1 - alpha)",
         "a channel that is never used has no range: its factor is 1, not 0 or infinite"),
        ("(act_max > 0) & (w_max > 0) => w_max > 0",
         "an activation that is always 0 gives the factor 0, and 0 / 0 behind it: use 1"),
        ("torch.where(alive, act_max**alpha / w_max ** (1 - alpha), 1.0) => "
         "(act_max**alpha / w_max.clamp_min(1e-5) ** (1 - alpha)).clamp_min(1e-5)",
         "a small number in place of 0 gives a huge or a tiny factor: unused channels keep 1"),
        ("act_max**alpha / w_max ** (1 - alpha) => act_max.max() ** alpha / w_max.max() ** "
         "(1 - alpha)",
         "one factor for all channels: each has its own"),
    ),
    hints=(
        ("What are the two ends?",
         "alpha = 1: s is the activation's range, so that every channel reaches 1. alpha = 0: s is "
         "1 over the weights' range."),
        ("inf or nan in the result", "0 to a negative power. torch.where with 1 for these."),
    ),
)  # fmt: skip


# 12.3 ------------------------------------------------------------------------------------------


def choose_encoder(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The cheapest version that surely loses at most two points, and the interval of its change."""
    limit = 0.02
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_ENCODER = Exercise(
    id="12.3", title="Decide: which encoder do you ship?", minutes=8, difficulty=3,
    signature="choose_encoder(scores, baseline)", reference=choose_encoder,
    cases=functools.partial(
        limit_cases, ("static", "smoothed", "rotated", "dynamic", "FP32"), 0.02, 1230
    ),
    compare=functools.partial(defended, objection=cheapest_within(0.02)), agree=same_decision,
    accepted=(first_that_fits(0.02), by_standard_error(0.02)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [OUTLIER_RATIO, SMOOTH_SCALES, CHOOSE_ENCODER]
