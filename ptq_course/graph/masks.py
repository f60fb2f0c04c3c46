"""Masks of attention scores, and the softmax that reads them. Chapter 04.

A masked score is minus infinity, which has no scale: masks stay in floating point, and the softmax
behind them turns minus infinity into weights of 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScoreMask(nn.Module):
    """Base of modules that put minus infinity on attention scores."""


class AttentionMask(ScoreMask):
    """Puts minus infinity (or a float mask's values) on scores [.., heads, queries, keys]."""

    def forward(
        self, scores: Tensor, attention: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """``attention`` [queries, keys] or [batch * heads, queries, keys], ``padding`` [.., keys].

        True means masked, as in nn.MultiheadAttention.
        """
        if attention is not None:
            if attention.dim() == 3 and scores.dim() == 4:
                attention = attention.reshape(-1, *scores.shape[1:])
            scores = _masked(scores, attention)
        if padding is not None:
            if padding.dim() == 2:
                padding = padding[:, None, None, :]
            scores = _masked(scores, padding)
        return scores


class DotProductMask(ScoreMask):
    """The mask of F.scaled_dot_product_attention, in which True means *not* masked."""

    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.is_causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = _masked(scores, future)
        if mask is not None:
            scores = _masked(scores, ~mask if mask.dtype == torch.bool else mask)
        return scores


class MaskedSoftmax(nn.Module):
    """Softmax over the last dimension that gives a row whose scores are all masked weights of 0.

    exp(-inf) / sum(exp(-inf)) is 0 / 0. Padded sequences have such rows; PyTorch's
    F.scaled_dot_product_attention also returns 0 for them.
    """

    def forward(self, scores: Tensor) -> Tensor:
        empty = (scores == float("-inf")).all(-1, keepdim=True)
        return torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)


class ZeroPadding(nn.Module):
    """What nn.TransformerEncoder does to padded positions in evaluation mode: it writes zeros.

    Its fast path packs the sequences without their padding (a nested tensor) and unpacks the result
    with zeros, but only where all padding stands at the end of the sequences.
    """

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x [batch, length, width]; padding [batch, length], True or minus infinity: padded."""
        if x.dim() != 3:
            return x
        padded = padding if padding.dtype == torch.bool else padding == float("-inf")
        at_the_end = ~(padded[:, :-1] & ~padded[:, 1:]).any()
        return x.masked_fill((padded & at_the_end).unsqueeze(-1), 0.0)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask, float("-inf"))
    return scores + mask
