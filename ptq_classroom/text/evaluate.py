"""How good sentence vectors are: near to FP32's, finding paraphrases, telling topics apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ptq_classroom.text.phrases import Phrases, tokens


@lru_cache(maxsize=8)
def by_length(sentences: tuple[str, ...]) -> tuple[list[Tensor], Tensor]:
    """Batches of tokens, shortest sentences first so that little is padded, and their places."""
    lengths = torch.tensor([int(row.ne(0).sum()) for part in tokens(sentences) for row in part])
    order = lengths.argsort(stable=True)
    return tokens([sentences[i] for i in order.tolist()]), order


def embed(run: Callable[[Tensor], Tensor], phrases: Phrases) -> Tensor:
    """Unit vectors of `phrases.sentences`, float32 [2 N, D]; `run` is an encoder or a session."""
    batches, order = by_length(phrases.sentences)
    with torch.no_grad():
        return torch.cat([run(batch) for batch in batches])[order.argsort()]


def cosines(reference: Tensor, other: Tensor) -> Tensor:
    """The cosine of each vector to its counterpart, [N]; 1 where nothing has changed."""
    return torch.cosine_similarity(reference, other, dim=1)


def found(vectors: Tensor) -> Tensor:
    """1 for each first sentence whose paraphrase is nearest of all second ones, else 0; [N]."""
    first, second = vectors.chunk(2)
    return ((first @ second.T).argmax(dim=1) == torch.arange(len(first))).double()


def margins(vectors: Tensor) -> Tensor:
    """How much nearer the paraphrase is than the nearest other sentence, [N]; below 0: missed."""
    first, second = vectors.chunk(2)
    near = first @ second.T
    own = near.diagonal().clone()
    return own - near.fill_diagonal_(-torch.inf).amax(dim=1)


def probe(vectors: Tensor, labels: Tensor, ridge: float = 0.1) -> Callable[[Tensor], Tensor]:
    """A linear classifier on frozen vectors, by least squares with a ridge: vectors -> labels."""
    x = torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1).double()
    wanted = torch.nn.functional.one_hot(labels).double() * 2 - 1
    system = x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(system, x.T @ wanted)
    return lambda v: (v.double() @ weights[:-1] + weights[-1]).argmax(dim=1)
