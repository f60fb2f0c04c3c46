"""Exercise 04.1: fold a batch norm into the layer before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close


def fold_bn(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that does what the layer and its batch norm did."""
    factor = gamma / torch.sqrt(var + eps)
    start = 0.0 if b is None else b
    folded_w = w * factor.reshape(-1, *[1] * (w.dim() - 1))
    folded_b = (start - mean) * factor + beta
    return folded_w, folded_b


def _layers() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, shape: tuple[int, ...], seed: int, eps: float, bias: bool = True) -> tuple:
        g = torch.Generator().manual_seed(seed)
        w = torch.randn(shape, generator=g)
        row = [torch.randn(shape[0], generator=g) for _ in range(4)]
        var = torch.rand(shape[0], generator=g) * 2 + 0.1
        b, mean, gamma, beta = row
        named = {"mean": mean, "var": var, "gamma": gamma, "beta": beta, "eps": eps}
        return label, {"w": w, "b": b if bias else None, **named}

    one = {name: torch.tensor([v]) for name, v in (("mean", 1.0), ("var", 0.24), ("gamma", 2.0))}
    paper = {"w": torch.tensor([[0.5, -0.2]]), "b": torch.tensor([0.0]), **one}
    yield "the channel of the paper", {**paper, "beta": torch.tensor([0.3]), "eps": 0.01}
    yield case("a fully connected layer [4, 4]", (4, 4), 41, 1e-5)
    yield case("a convolution [5, 3, 3, 3]", (5, 3, 3, 3), 42, 1e-3)
    yield case("a convolution [4, 4, 1, 1] without bias", (4, 4, 1, 1), 43, 1e-5, bias=False)
    label, dead = case("a channel that hardly varies: eps decides", (3, 2, 3), 44, 1e-3)
    dead["var"] = torch.tensor([1.0, 1e-6, 0.5])
    yield label, dead


def _same_layer(got: Any, expected: tuple[Tensor, Tensor], **_: Any) -> None:
    expect_close(got, expected, ("w", "b"), rtol=1e-4, atol=1e-5)


def _factor(gamma: Tensor, var: Tensor, eps: float) -> Tensor:
    return gamma / torch.sqrt(var + eps)


def _shift(start: Tensor, mean: Tensor, factor: Tensor, beta: Tensor) -> Tensor:
    return (start - mean) * factor + beta


def _output_axis(factor: Tensor, w: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (w.dim() - 1))


def _fold_with(
    factor: Callable[..., Tensor] = _factor,
    shift: Callable[..., Tensor] = _shift,
    place: Callable[..., Tensor] = _output_axis,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The right folding with one of its three steps exchanged."""

    def fold(
        w: Tensor,
        b: Tensor | None,
        mean: Tensor,
        var: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        f = factor(gamma, var, eps)
        start = torch.zeros_like(mean) if b is None else b
        return w * place(f, w), shift(start, mean, f, beta)

    return fold


_no_eps = _fold_with(lambda gamma, var, eps: gamma / torch.sqrt(var))
_eps_outside = _fold_with(lambda gamma, var, eps: gamma / (torch.sqrt(var) + eps))
_no_root = _fold_with(lambda gamma, var, eps: gamma / (var + eps))
_bias_unscaled = _fold_with(shift=lambda start, mean, f, beta: start - mean * f + beta)
_bias_forgotten = _fold_with(shift=lambda start, mean, f, beta: -mean * f + beta)
_mean_forgotten = _fold_with(shift=lambda start, mean, f, beta: start * f + beta)
_gamma_forgotten = _fold_with(lambda gamma, var, eps: 1 / torch.sqrt(var + eps))
_mean_added = _fold_with(shift=lambda start, mean, f, beta: (start + mean) * f + beta)
_beta_scaled = _fold_with(shift=lambda start, mean, f, beta: (start - mean + beta) * f)
_last_axis = _fold_with(place=lambda f, w: f)
_input_axis = _fold_with(place=lambda f, w: f.reshape(1, -1, *[1] * (w.dim() - 2)))


def _fold_by_channel(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    weights, biases = [], []
    for c in range(len(w)):
        sigma = (float(var[c]) + eps) ** 0.5
        weights.append(w[c] * float(gamma[c]) / sigma)
        start = 0.0 if b is None else float(b[c])
        biases.append(float(gamma[c]) * (start - float(mean[c])) / sigma + float(beta[c]))
    return torch.stack(weights), torch.tensor(biases)


def _fold_by_einsum(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    factor = gamma.double() * (var.double() + eps).rsqrt()
    shift = (-mean if b is None else b - mean).double()
    weight = torch.einsum("c,c...->c...", factor, w.double())
    return weight, torch.addcmul(beta.double(), shift, factor)


FOLD = Exercise(
    id="04.1",
    title="Fold a batch norm",
    minutes=8,
    difficulty=2,
    signature="fold_bn(w, b, mean, var, gamma, beta, eps)",
    reference=fold_bn,
    cases=_layers,
    compare=_same_layer,
    accepted=(_fold_by_channel, _fold_by_einsum),
    diagnoses=(
        (_no_eps, "eps is missing: batch norm divides by sqrt(var + eps)"),
        (_eps_outside, "eps stands outside the root: it is sqrt(var + eps)"),
        (_no_root, "divided by the variance: batch norm divides by its square root"),
        (
            _bias_unscaled,
            "the layer's bias goes through the batch norm too: (b - mean) * factor",
        ),
        (_bias_forgotten, "the layer's own bias b is left out"),
        (
            _mean_forgotten,
            "the mean is left out: batch norm subtracts it first, (b - mean) * factor",
        ),
        (_gamma_forgotten, "gamma is left out: the factor is gamma / sqrt(var + eps)"),
        (_mean_added, "the mean has the wrong sign: batch norm subtracts it"),
        (_beta_scaled, "beta was multiplied by the factor; it is added at the very end"),
        (
            _last_axis,
            "w * factor multiplies along the last axis; the output channels are the first: "
            "reshape the factor to [C, 1, ...]",
        ),
        (
            _input_axis,
            "the factors went along axis 1, the input channels; a batch norm has one for "
            "each output channel, axis 0",
        ),
    ),
    hints=(
        (
            "Where do I begin?",
            "Write what batch norm does to y = w x + b: (y - mean) / sqrt(var + eps) * gamma "
            "+ beta. Collect what multiplies x, then the rest.",
        ),
        (
            "The shapes do not broadcast",
            "factor has one entry a channel, w has the channels first: reshape it to as many "
            "dimensions as w, with -1 first and 1 elsewhere.",
        ),
        ("b is None", "A convolution before a batch norm often has no bias: that is b = 0."),
    ),
)
