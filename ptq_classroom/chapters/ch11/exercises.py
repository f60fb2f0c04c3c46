"""Checks of chapter 11: equal channels, the mean of an error, and the cheapest remedy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

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

# 11.1 ------------------------------------------------------------------------------------------


def equalize(w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both layers with equal ranges in every channel between them: w1, b1 and w2 as they came."""
    r1, r2 = w1.abs().amax(1), w2.abs().amax(0)
    used = (r1 > 0) & (r2 > 0)
    s = torch.where(used, (r1 / r2).sqrt(), 1.0)
    return w1 / s[:, None], b1 / s, w2 * s


def _pairs() -> Iterator[tuple[str, dict[str, Any]]]:
    w1 = torch.tensor([[8.0, -4.0], [0.5, 0.25]])
    b1, w2 = torch.tensor([4.0, -1.0]), torch.tensor([[0.5, 2.0], [-0.25, 1.0], [0.1, -8.0]])
    yield "two channels", {"w1": w1, "b1": b1, "w2": w2}
    g = torch.Generator().manual_seed(1101)
    spread = torch.tensor([30.0, 1.0, 0.1, 4.0])
    square = torch.randn(4, 4, generator=g) * spread[:, None]
    after = torch.randn(4, 4, generator=g) * torch.tensor([0.2, 5.0, 1.0, 0.05])
    yield "square matrices", {"w1": square, "b1": torch.randn(4, generator=g), "w2": after}
    wide = torch.randn(4, 9, generator=g) * spread[:, None]
    yield "layers of 9 inputs and 6 outputs", {
        "w1": wide, "b1": torch.randn(4, generator=g), "w2": torch.randn(6, 4, generator=g),
    }  # fmt: skip
    negative = -wide.abs() + 0.01
    yield "negative weights reach further", {
        "w1": negative, "b1": torch.ones(4), "w2": torch.randn(6, 4, generator=g),
    }  # fmt: skip
    dead, unread = w1.clone(), w2.clone()
    dead[0], unread[:, 1] = 0.0, 0.0
    yield "a channel whose first weights are zeros", {"w1": dead, "b1": b1, "w2": w2}
    yield "a channel that nobody reads", {"w1": w1, "b1": b1, "w2": unread}


def _same_layers(got: Any, expected: tuple[Tensor, ...], **_: Any) -> None:
    expect_close(got, expected, ("w1", "b1", "w2"), rtol=1e-5, atol=1e-7)


def _by_loop(w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w1, b1, w2 = w1.clone(), b1.clone(), w2.clone()
    for channel in range(len(w1)):
        first = max(abs(v) for v in w1[channel].tolist())
        second = max(abs(v) for v in w2[:, channel].tolist())
        if first and second:
            factor = (second / first) ** 0.5
            w1[channel] *= factor
            b1[channel] *= factor
            w2[:, channel] /= factor
    return w1, b1, w2


def _to_their_mean(w1: Tensor, b1: Tensor, w2: Tensor) -> list[Tensor]:
    r1, r2 = w1.norm(float("inf"), dim=1), w2.norm(float("inf"), dim=0)
    target = (r1.double() * r2.double()).sqrt()
    s = torch.where(target > 0, r1 / target, torch.ones_like(target)).float()
    return [torch.diag(1 / s) @ w1, torch.diag(1 / s) @ b1, w2 @ torch.diag(s)]


EQUALIZE = Exercise(
    id="11.1", title="Equal ranges on both sides", minutes=9, difficulty=3,
    signature="equalize(w1, b1, w2)", reference=equalize, cases=_pairs, compare=_same_layers,
    agree=roughly, returns=("w1", "b1", "w2"),
    accepted=(_by_loop, _to_their_mean),
    diagnoses=(
        ("b1 / s => b1",
         "the bias was left behind: it is a part of the channel that is divided"),
        ("(r1 / r2).sqrt() => r1 / r2",
         "the square root is missing: with r1 / r2 the two ranges change places"),
        ("(r1 / r2).sqrt() => (r2 / r1).sqrt()",
         "upside down: now the loud side became louder still"),
        ("w2 * s => w2 / s", "divided on both sides: the function is another one now"),
        ("w2 * s => w2", "the second layer must undo what the first one lost"),
        ("w2 * s => w2 * s[:, None] if len(w2) == len(s) else w2 * s",
         "the rows of w2 were multiplied; the channel between the layers is a column of w2"),
        ("w2.abs().amax(0) => w2.abs().amax(1) if w2.shape[0] == w2.shape[1] else "
         "w2.abs().amax(0)",
         "w2's range was taken along its rows; the channel is a column of w2: amax over axis 0"),
        ("w1.abs().amax(1) => w1.amax(1)", "w2.abs().amax(0) => w2.amax(0)",
         "r1 > 0) & (r2 > 0 => r1 != 0) & (r2 != 0",
         "the maximum, not the largest magnitude: negative weights need the range as well"),
        ("torch.where(used, (r1 / r2).sqrt(), 1.0) => (r1 / r2).sqrt()",
         "a channel of zeros has no range to equalize: leave it as it is"),
        ("torch.where(used, (r1 / r2).sqrt(), 1.0) => (r1.max() / r2.max()).sqrt().expand(len(r1))",
         "one factor for the whole layer: every channel has its own"),
        ("w1.abs().amax(1) => w1.abs().mean(1)", "w2.abs().amax(0) => w2.abs().mean(0)",
         "the means are equal, not the ranges: a grid is chosen for the largest weight"),
        ("w1.abs().amax(1) => torch.cat([w1, b1[:, None]], 1).abs().amax(1)",
         "the bias counts for the range; it is stored in 32 bits and needs no grid of 8"),
    ),
    hints=(
        ("Which weights belong to one channel?",
         "Row i of w1 makes channel i, column i of w2 reads it. Their ranges are "
         "w1.abs().amax(1) and w2.abs().amax(0)."),
        ("How large is the factor?",
         "After dividing by s the first range is r1 / s, the second r2 * s. Set them equal."),
        ("nan in the result", "0 / 0: leave a channel alone where one of its ranges is 0."),
    ),
)  # fmt: skip


# 11.2 ------------------------------------------------------------------------------------------


def bias_shift(y: Tensor, yq: Tensor, axis: int) -> Tensor:
    """What to add to the bias so that every channel of yq has the mean that it has in y."""
    others = [d for d in range(y.dim()) if d != axis % y.dim()]
    return (y - yq).mean(dim=others)


def _outputs() -> Iterator[tuple[str, dict[str, Any]]]:
    y = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]])
    yield "a Linear [3, 2]", {"y": y, "yq": y + torch.tensor([0.5, -2.0]), "axis": 1}
    g = torch.Generator().manual_seed(1102)
    for label, shape, axis in (
        ("a square Linear [4, 4]", (4, 4), 1),
        ("a convolution [2, 3, 5, 4]", (2, 3, 5, 4), 1),
        ("tokens [2, 6, 3], channels last", (2, 6, 3), -1),
        ("one example [1, 3, 4, 4]", (1, 3, 4, 4), 1),
    ):
        y = torch.randn(*shape, generator=g)
        size = [1] * len(shape)
        size[axis] = shape[axis]
        off = torch.randn(*size, generator=g)
        noise = 0.3 * torch.randn(*shape, generator=g).exp()
        yield label, {"y": y, "yq": y + off + noise, "axis": axis}


def _shift_by_channel(y: Tensor, yq: Tensor, axis: int) -> list[float]:
    pairs = zip(y.unbind(axis), yq.unbind(axis), strict=True)
    return [(a.double().mean() - b.double().mean()).item() for a, b in pairs]


def _shift_moved(y: Tensor, yq: Tensor, axis: int) -> Tensor:
    error = torch.moveaxis(y - yq, axis, 0)
    return error.flatten(1).sum(1) / error[0].numel()


BIAS_SHIFT = Exercise(
    id="11.2", title="The mean of an error", minutes=6, difficulty=2,
    signature="bias_shift(y, yq, axis)", reference=bias_shift, cases=_outputs, agree=roughly,
    compare=lambda got, expected, **_: expect_close(got, expected, "the shift", 1e-4, 1e-5),
    returns="the shift", accepted=(_shift_by_channel, _shift_moved),
    diagnoses=(
        ("(y - yq) => (yq - y)",
         "the sign: add what is missing, so it is the right output minus the rounded one"),
        ("mean(dim=others) => mean(dim=axis)",
         "averaged over the channels: keep `axis`, and average over all the others"),
        ("(y - yq).mean(dim=others) => (y - yq).mean().expand(y.shape[axis])",
         "one number for all channels: each has its own error"),
        ("(y - yq).mean(dim=others) => (y - yq).flatten(1).mean(1) if y.dim() > 2 else "
         "(y - yq).mean(1)",
         "one number for each example; asked for is one for each channel"),
        ("(y - yq).mean(dim=others) => (y - yq).abs().mean(dim=others)",
         "errors above and below cancel in a mean; their size is not what the bias can undo"),
        ("(y - yq).mean(dim=others) => (y - yq).sum(dim=others)",
         "the sum, not the mean: divide by the number of values of a channel"),
        ("(y - yq).mean(dim=others) => (y - yq).transpose(0, axis).flatten(1).median(1).values",
         "the median of the errors: the mean of the outputs stays shifted"),
        ("(y - yq) => (y[0] - yq[0])[None]",
         "only the first example counts: average over all of them"),
    ),
    hints=(
        ("Which dimensions do I average over?", "All but `axis`: batch, height, width, tokens."),
        ("The axis is -1", "`axis % y.dim()` counts from the front."),
    ),
)  # fmt: skip


# 11.3 ------------------------------------------------------------------------------------------


def choose_remedy(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The cheapest remedy that surely loses at most one point, and the interval of its change."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_REMEDY = Exercise(
    id="11.3", title="Decide: the cheapest remedy that is enough", minutes=8, difficulty=3,
    signature="choose_remedy(scores, baseline)", reference=choose_remedy,
    cases=functools.partial(limit_cases, ("nothing", "equalize", "both", "FP32"), 0.01, 1130),
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [EQUALIZE, BIAS_SHIFT, CHOOSE_REMEDY]
