"""Checks of chapter 14: a gradient through rounding, a loss with a temperature, and a choice."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    made_scores,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer of WRONG_INTERVALS calls it)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close, roughly

# 14.1 ------------------------------------------------------------------------------------------


def ste_backward(g: Tensor, x: Tensor, scale: float, qmin: int, qmax: int) -> Tensor:
    """The gradient for x where g is that of the rounded x: straight through, but for what clips."""
    codes = x / scale
    inside = (codes >= qmin) & (codes <= qmax)
    return torch.where(inside, g, 0.0)


def _gradients() -> Iterator[tuple[str, dict[str, Any]]]:
    x = torch.tensor([-3.0, -0.6, 0.2, 0.7, 1.4, 9.0])
    g = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 4.0])
    yield "six values, codes -2 to 1", {"g": g, "x": x, "scale": 0.5, "qmin": -2, "qmax": 1}
    yield "codes 0 to 3", {"g": g, "x": x, "scale": 0.5, "qmin": 0, "qmax": 3}
    yield "nothing clips", {"g": g, "x": x / 10, "scale": 0.25, "qmin": -4, "qmax": 4}
    generator = torch.Generator().manual_seed(1401)
    x, g = (torch.randn(5, 7, generator=generator) * 3 for _ in range(2))
    yield "a matrix", {"g": g, "x": x, "scale": 0.75, "qmin": -3, "qmax": 3}
    ends = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5])
    yield "values at the ends", {
        "g": torch.ones(5), "x": ends, "scale": 0.5, "qmin": -2, "qmax": 2,
    }  # fmt: skip


def _ste_by_product(g: Tensor, x: Tensor, scale: float, qmin: int, qmax: int) -> Tensor:
    return g * ((x >= qmin * scale) & (x <= qmax * scale))


def _ste_by_loop(g: Tensor, x: Tensor, scale: float, qmin: int, qmax: int) -> np.ndarray:
    pairs = zip(g.flatten().tolist(), x.flatten().tolist(), strict=True)
    kept = [a if qmin <= b / scale <= qmax else 0.0 for a, b in pairs]
    return np.array(kept, dtype=np.float32).reshape(g.shape)


STE = Exercise(
    id="14.1", title="A gradient through rounding", minutes=6, difficulty=2,
    signature="ste_backward(g, x, scale, qmin, qmax)", reference=ste_backward, cases=_gradients,
    agree=roughly, returns="the gradient",
    compare=lambda got, expected, **_: expect_close(got, expected, "the gradient", 1e-5, 1e-7),
    accepted=(_ste_by_product, _ste_by_loop),
    diagnoses=(
        ("torch.where(inside, g, 0.0) => g",
         "all of it passes: a value that is clipped does not move the output, so nothing comes "
         "back to it"),
        ("torch.where(inside, g, 0.0) => torch.zeros_like(g)",
         "the true gradient of rounding, 0 everywhere: nothing could be learned"),
        ("torch.where(inside, g, 0.0) => torch.where(inside, 0.0, g)",
         "the mask is turned round: what is inside the grid passes"),
        ("torch.where(inside, g, 0.0) => torch.where(inside, g / scale, 0.0)",
         "divided by the scale: x is divided by it and multiplied again, which cancels"),
        ("torch.where(inside, g, 0.0) => torch.where(inside, g * scale, 0.0)",
         "multiplied by the scale: x is divided by it and multiplied again, which cancels"),
        ("codes = x / scale => codes = x",
         "x itself was compared with the ends of the grid: those are codes, so divide by scale"),
        ("codes = x / scale => codes = g / scale",
         "the gradient was compared with the grid: x is what is rounded and clipped"),
        ("torch.where(inside, g, 0.0) => g.clamp(qmin * scale, qmax * scale)",
         "the gradient was clamped; where x is clipped it is 0, elsewhere it stays as it is"),
        ("(codes >= qmin) & (codes <= qmax) => (codes >= 0) & (codes <= qmax)",
         "values below zero were cut off: the grid begins at qmin"),
        ("torch.where(inside, g, 0.0) => torch.where(inside, torch.ones_like(g), 0.0)",
         "1 instead of g: what comes from above has to be handed on"),
        ("(codes >= qmin) & (codes <= qmax) => (codes > qmin) & (codes < qmax)",
         "a value exactly at an end of the grid is not clipped"),
    ),
    hints=(
        ("What does rounding do to a gradient?",
         "Nothing: pretend that it is the identity. That is the straight-through estimator."),
        ("And clipping?", "Where x / scale lies outside qmin ... qmax the output does not change."),
    ),
)  # fmt: skip


# 14.2 ------------------------------------------------------------------------------------------


def distill_loss(student: Tensor, teacher: Tensor, T: float) -> float:
    """T^2 times KL(softmax(teacher / T) || softmax(student / T)), averaged over the examples."""
    p = F.softmax(teacher / T, dim=1)
    log_p, log_q = F.log_softmax(teacher / T, dim=1), F.log_softmax(student / T, dim=1)
    each = (p * (log_p - log_q)).sum(1)
    return (T**2 * each.mean()).item()


def _logits() -> Iterator[tuple[str, dict[str, Any]]]:
    one = torch.tensor([[2.0, 0.0, -1.0]])
    other = torch.tensor([[0.5, 1.5, -1.0]])
    yield "one example", {"student": other, "teacher": one, "T": 1.0}
    yield "one example, T = 4", {"student": other, "teacher": one, "T": 4.0}
    generator = torch.Generator().manual_seed(1402)
    for label, shape, temperature in (
        ("six examples", (6, 4), 2.0),
        ("as many examples as classes", (5, 5), 3.0),
        ("large logits", (4, 3), 1.5),
    ):
        student, teacher = (
            torch.randn(*shape, generator=generator) * (200 if "large" in label else 3)
            for _ in range(2)
        )
        yield label, {"student": student, "teacher": teacher, "T": temperature}
    yield "the same logits", {"student": one, "teacher": one, "T": 2.0}


def _loss_of_torch(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    log_q, log_p = (F.log_softmax(v.double() / T, dim=-1) for v in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * T * T


def _loss_by_cross_entropy(student: Tensor, teacher: Tensor, T: float) -> float:
    p = torch.softmax(teacher.double() / T, 1)
    cross = F.cross_entropy(student.double() / T, p)
    entropy = F.cross_entropy(teacher.double() / T, p)
    return float(T**2 * (cross - entropy))


DISTILL = Exercise(
    id="14.2", title="A loss with a temperature", minutes=7, difficulty=3,
    signature="distill_loss(student, teacher, T)", reference=distill_loss, cases=_logits,
    agree=roughly, returns="the loss",
    compare=lambda got, expected, **_: expect_close(got, expected, "the loss", 1e-4, 1e-5),
    accepted=(_loss_of_torch, _loss_by_cross_entropy),
    diagnoses=(
        ("T**2 * each.mean() => each.mean()",
         "the factor T^2 is missing: the gradients would shrink as T grows"),
        ("T**2 * each.mean() => T * each.mean()", "multiplied by T, and not by T^2"),
        ("each.mean() => each.sum()", "the sum over the examples: take their mean"),
        ("each.mean() => each.mean() / student.shape[1]",
         "averaged over the classes, too: a divergence is a sum over them"),
        ("p * (log_p - log_q) => F.softmax(student / T, dim=1) * (log_q - log_p)",
         "KL(student || teacher): the weights are the teacher's probabilities"),
        ("p * (log_p - log_q) => -p * log_q",
         "the cross entropy: it is not 0 where the two agree; subtract the teacher's entropy"),
        ("F.softmax(teacher / T, dim=1) => F.softmax(teacher, dim=1)",
         "F.log_softmax(teacher / T, dim=1) => F.log_softmax(teacher, dim=1)",
         "the temperature was not applied to the teacher: both need it"),
        ("F.log_softmax(student / T, dim=1) => F.log_softmax(student, dim=1)",
         "the temperature was not applied to the student: both need it"),
        ("F.softmax(teacher / T, dim=1) => F.softmax(teacher * T, dim=1)",
         "F.log_softmax(teacher / T, dim=1) => F.log_softmax(teacher * T, dim=1)",
         "F.log_softmax(student / T, dim=1) => F.log_softmax(student * T, dim=1)",
         "multiplied by T: a high temperature makes answers softer, so divide"),
        ("p = F.softmax(teacher / T, dim=1) => p = F.one_hot(teacher.argmax(1), "
         "teacher.shape[1]).float()",
         "log_p, log_q = F.log_softmax(teacher / T, dim=1) => log_p, log_q = 0.0",
         "only the teacher's first answer was used; the others are what it knows beyond labels"),
        ("F.softmax(teacher / T, dim=1) => F.softmax(teacher / T, dim=0)",
         "F.log_softmax(teacher / T, dim=1) => F.log_softmax(teacher / T, dim=0)",
         "F.log_softmax(student / T, dim=1) => F.log_softmax(student / T, dim=0)",
         "the softmax ran over the examples; it belongs to the classes, dimension 1"),
        ("F.log_softmax(teacher / T, dim=1) => F.softmax(teacher / T, dim=1).log()",
         "F.log_softmax(student / T, dim=1) => F.softmax(student / T, dim=1).log()",
         "a softmax that is 0 in float32 has no logarithm: F.log_softmax computes both at once"),
    ),
    hints=(
        ("What is compared?",
         "Two distributions over the classes: softmax of the logits divided by T, of both."),
        ("nan or inf", "`torch.log_softmax` instead of the logarithm of a softmax."),
        ("A constant factor is off", "T**2, and the mean over the examples, not over all entries."),
    ),
)  # fmt: skip


# 14.3 ------------------------------------------------------------------------------------------


def choose_effort(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The least effort that surely loses at most ten points, and the interval of its change."""
    limit = 0.1
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


NAMES = ("nearest", "GPTQ", "labels", "distillation", "FP32")


def _efforts() -> Iterator[tuple[str, dict[str, Any]]]:
    """What each loses against FP32, in accuracy; many pictures, and few."""
    for number, (label, pictures, lost) in enumerate((
        ("two bits as we know them", 4_000, (0.85, 0.15, 0.07, 0.06)),
        ("the nearest codes will do", 4_000, (0.02, 0.01, 0.01, 0.01)),
        ("too few pictures to promise anything", 150, (0.5, 0.12, 0.08, 0.02)),
        ("very few pictures, and a small loss", 100, (0.6, 0.3, 0.09, 0.03)),
        ("GPTQ gains", 4_000, (0.4, -0.05, 0.01, 0.01)),
        ("nothing fits but FP32", 4_000, (0.9, 0.4, 0.2, 0.15)),
    )):  # fmt: skip
        shares = {name: 0.92 - loss for name, loss in zip(NAMES, (*lost, 0.0), strict=True)}
        yield label, {"scores": made_scores(pictures, shares, 1430 + number), "baseline": "FP32"}
    gains = {"nearest": 0.75, "GPTQ": 0.75, "labels": 0.62, "distillation": 0.61, "FP32": 0.6}
    yield "the least effort gains much", {
        "scores": made_scores(4_000, gains, 1440), "baseline": "FP32",
    }  # fmt: skip
    weak = {"nearest": 0.1, "GPTQ": 0.42, "labels": 0.52, "distillation": 0.55, "FP32": 0.6}
    yield "FP32 itself is often wrong", {
        "scores": made_scores(20_000, weak, 1441), "baseline": "FP32",
    }  # fmt: skip


EFFORT = Exercise(
    id="14.3", title="Decide: how much effort is enough?", minutes=8, difficulty=3,
    signature="choose_effort(scores, baseline)", reference=choose_effort,
    cases=_efforts,
    compare=functools.partial(defended, objection=cheapest_within(0.1)), agree=same_decision,
    accepted=(first_that_fits(0.1), by_standard_error(0.1)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [STE, DISTILL, EFFORT]
