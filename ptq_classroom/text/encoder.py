"""A sentence encoder of the BERT family, as plain layers: LayerNorm behind each addition, GELU.

The architecture is Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", 2019; the averaged tokens are Reimers, Gurevych,
"Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", 2019. `weights.py` fills it with
all-MiniLM-L6-v2. Every projection is a Linear layer of its own, so that it can be traced,
quantized and looked at by name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens that are no padding: [N, T, D] -> [N, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.root = heads, math.sqrt(width // heads)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [N, heads, T, D / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """padding: bool [N, 1, 1, T], True where a token is none."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        scores = self.split(query) @ self.split(key).transpose(-2, -1) / self.root
        weights = torch.softmax(scores.masked_fill(padding, -math.inf), dim=-1)
        return self.out((weights @ self.split(value)).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, add, LayerNorm; feed-forward with GELU, add, LayerNorm ("post-LN")."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.norm1 = SelfAttention(width, heads), nn.LayerNorm(width, eps=1e-12)
        self.up, self.act, self.down = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, padding))
        return self.norm2(x + self.down(self.act(self.up(x))))


class Encoder(nn.Module):
    """Token numbers int64 [N, T], 0 being padding -> unit vectors [N, D], one a sentence."""

    def __init__(
        self, words: int, width: int, layers: int, heads: int, inner: int, longest: int = 512
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(torch.zeros(longest, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens.eq(0)
        x = self.norm(self.words(tokens) + self.positions[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, padding[:, None, None, :])
        there = padding.logical_not()[:, :, None].to(x.dtype)
        mean = (x * there).sum(dim=1) / there.sum(dim=1)
        return mean / mean.norm(dim=1, keepdim=True)
