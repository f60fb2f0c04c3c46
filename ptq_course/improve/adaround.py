"""AdaRound: learn for each weight whether to round it up or down. Chapter 13.

Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", 2020. The binary choice is relaxed to h(v) in [0, 1], gradient descent finds v, and a
penalty drives h to 0 or 1. Here the loss is its Gram form (`rounding`): the second moments of the
inputs replace stored activations, and an iteration costs one product with H. What gradient descent
leaves is polished by moving single codes, which is monotone, and compared with GPTQ's codes,
polished likewise: gradient descent finds a local optimum only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptq_course.errors import whole
from ptq_course.improve.gptq import gptq
from ptq_course.improve.rounding import Rounding, RoundWeights

GAMMA, ZETA = -0.1, 1.1  # the rectified sigmoid reaches 0 and 1 (Louizos et al., 2018)
PENALTY = 0.1  # weight of the penalty, beside a loss in units of one step's own error
RATE = 0.02  # of Adam


def adaround(problem: Rounding, iterations: int = 300, sweeps: int = 5) -> Tensor:
    """Codes [G, O, K]: each weight up or down, then polished by `Rounding.descend`.

    iterations: of Adam; 0 polishes rounding to nearest. Deterministic. The result loses no more in
    any row than rounding to nearest does.
    """
    iterations = whole("iterations", iterations, 0)
    nearest = problem.nearest()
    if not iterations:
        return problem.descend(nearest, sweeps)
    steps = problem.target / problem.scale
    floor = steps.floor()
    size = problem.moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)[:, None, None]
    metric = (problem.moments / size).float()  # one step's error costs about 1
    rest = (steps - floor).float()
    relative = (problem.scale / problem.scale.mean((1, 2), keepdim=True)).float()
    free = v_of(rest)
    optimizer = torch.optim.Adam([free], lr=RATE)
    for i in range(iterations):
        gate = torch.sigmoid(free)
        h = (gate * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        slope = 2 * (((h - rest) * relative) @ metric) * relative
        progress = (i / iterations - 0.2) / 0.8
        if progress > 0:  # the first fifth of the way only the loss counts
            beta = 2 + 18 * (1 + math.cos(math.pi * progress)) / 2
            far = 2 * h - 1
            slope -= PENALTY * 2 * beta * far.abs().pow(beta - 1) * far.sign()
        inside = (h > 0) & (h < 1)
        free.grad = torch.where(inside, slope * gate * (1 - gate) * (ZETA - GAMMA), 0.0)
        optimizer.step()
    h = (torch.sigmoid(free) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    codes = (floor + (h > 0.5) + problem.zero_point).clamp(problem.grid.qmin, problem.grid.qmax)
    learned = problem.descend(problem.better(nearest, codes), sweeps)
    return problem.better(learned, problem.descend(gptq(problem), sweeps))


def v_of(rest: Tensor) -> Tensor:
    """v with h(v) = rest: the relaxation begins at the weight itself."""
    return torch.logit(((rest - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4))


class AdaRound(RoundWeights):
    """`adaround` as a step: ``improved(quantizer, batches, [AdaRound()])``. See `RoundWeights`."""

    def __init__(
        self,
        iterations: int = 300,
        compensate: bool = False,
        damping: float = 0.01,
        alone: bool = False,
    ) -> None:
        whole("iterations", iterations, 0)
        super().__init__(lambda problem: adaround(problem, iterations), compensate, damping, alone)
