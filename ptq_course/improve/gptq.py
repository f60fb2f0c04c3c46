"""GPTQ: round one column after the other, and let the columns to come make up for the error.

Chapter 13. Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", 2022; the update is that of Optimal Brain Surgeon (Hassibi,
Stork, 1993). All rows share the order of the columns, and so the Cholesky factor of H^-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq_course.errors import flag
from ptq_course.improve.rounding import Rounding, RoundWeights

BLOCK = 64  # columns whose errors reach the columns behind them in one product of matrices


def gptq(problem: Rounding, ordered: bool = True) -> Tensor:
    """Codes [G, O, K] of a `Rounding` whose moments are damped already.

    ordered: columns with large moments first, while many others can still make up for them
    ("act-order"). Groups keep the scales that they were given. Rounding to nearest can be better
    on a row: `RoundWeights` compares.
    """
    flag("ordered", ordered)
    moments, weights = problem.moments, problem.target.clone()
    size = weights.shape[2]
    order = torch.arange(size, device=weights.device).expand(len(weights), size)
    if ordered:
        diagonal = torch.diagonal(moments, dim1=1, dim2=2)
        order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    rows = order[:, None, :].expand(weights.shape)
    weights, scale, zero_point = (
        t.gather(2, rows) for t in (weights, problem.scale, problem.zero_point)
    )
    group = torch.arange(len(weights), device=weights.device)[:, None, None]
    moments = moments[group, order[:, :, None], order[:, None, :]]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    # One row of memory is one column of weights from here on: [G, K, O].
    left, scale, zero_point = (t.transpose(1, 2).contiguous() for t in (weights, scale, zero_point))
    codes, errors = torch.empty_like(left), torch.empty_like(left)
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        for k in range(begin, end):
            w, s, z = left[:, k], scale[:, k], zero_point[:, k]
            codes[:, k] = (torch.round(w / s) + z).clamp(problem.grid.qmin, problem.grid.qmax)
            errors[:, k] = (w - (codes[:, k] - z) * s) / factor[:, k, k, None]
            left[:, k:end] -= factor[:, k, k:end, None] * errors[:, None, k]
        left[:, end:] -= factor[:, begin:end, end:].transpose(1, 2) @ errors[:, begin:end]
    codes = codes.transpose(1, 2).contiguous()
    return torch.empty_like(codes).scatter_(2, rows, codes)


class GPTQ(RoundWeights):
    """`gptq` as a step: ``improved(quantizer, batches, [GPTQ()])``. See `RoundWeights`."""

    def __init__(
        self, ordered: bool = True, compensate: bool = False, damping: float = 0.01,
        alone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(lambda problem: gptq(problem, ordered), compensate, damping, alone)
