"""Rounding as a problem: which codes lose least, when errors of one weight can cancel another's?

Chapter 13. Rounding each weight to nearest is best for the weights and not for the output. With
the second moments H of the inputs, the squared error of one output row w is

    loss(codes) = (w_hat - w) H (w_hat - w)^T,      w_hat = (codes - zero_point) * scale,

a quadratic function of integers (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
Quantization", 2020, section 3). `adaround` and `gptq` look for good codes, `descend` improves any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, UnsupportedError, flag, number
from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import IntGrid, QParams, QTensor
from ptq_course.grids.blocks import parameter_for_blocks, split_into_blocks
from ptq_course.improve.matrices import has_matrices, matrices, unmatrix, weight_of
from ptq_course.improve.walk import Site


@dataclass(frozen=True, eq=False)
class Rounding:
    """One layer's rounding: G groups of O rows with K weights each.

    target: the weights wanted, float64 [G, O, K]. moments: H, symmetric, float64 [G, K, K]. scale,
    zero_point: [G, O, K], of each weight. Raises QuantizationError where shapes do not fit, or
    there is NaN or infinity.
    """

    target: Tensor
    moments: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: IntGrid

    def __post_init__(self) -> None:
        shape = self.target.shape
        fits = self.target.dim() == 3 and self.moments.shape == (shape[0], shape[2], shape[2])
        if not fits or self.scale.shape != shape or self.zero_point.shape != shape:
            raise QuantizationError(
                f"Rounding: weights {tuple(shape)}, moments {tuple(self.moments.shape)}, scale "
                f"{tuple(self.scale.shape)}, zero_point {tuple(self.zero_point.shape)}: needed are "
                "[G, O, K], [G, K, K] and twice [G, O, K]."
            )
        for name in ("target", "moments", "scale"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise QuantizationError(f"Rounding: NaN or infinity in the {name}.")

    def nearest(self, weights: Tensor | None = None) -> Tensor:
        """Codes [G, O, K] of ``weights`` (default: the target), each rounded by itself."""
        weights = self.target if weights is None else weights
        codes = torch.round(weights / self.scale) + self.zero_point
        return codes.clamp(self.grid.qmin, self.grid.qmax)

    def decoded(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point) * self.scale

    def loss(self, codes: Tensor) -> Tensor:
        """Squared error of each row's output, [G, O]; see the module."""
        error = self.decoded(codes) - self.target
        return ((error @ self.moments) * error).sum(-1)

    def better(self, first: Tensor, second: Tensor) -> Tensor:
        """Row by row the codes that lose less."""
        return torch.where((self.loss(second) < self.loss(first))[..., None], second, first)

    def descend(self, codes: Tensor, sweeps: int = 5) -> Tensor:
        """Move one code of a row by one wherever that loses less, column by column; never worse."""
        codes = codes.clone()
        slope = (self.decoded(codes) - self.target) @ self.moments
        for _ in range(sweeps):
            before = codes.clone()
            for k in range(codes.shape[2]):
                step, curve = self.scale[..., k], self.moments[:, k, k, None]
                way = -torch.sign(slope[..., k])
                moved = (codes[..., k] + way).clamp(self.grid.qmin, self.grid.qmax)
                gain = 2 * step * slope[..., k].abs() - step.square() * curve
                way = torch.where((gain > 0) & (moved != codes[..., k]), way, 0.0)
                codes[..., k] += way
                g, o = way.nonzero(as_tuple=True)
                if len(g):
                    slope[g, o] += (way * step)[g, o, None] * self.moments[g, k]
            if torch.equal(before, codes):
                break
        return codes


def spread_over(weight: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each element of ``weight``, float64, of its shape."""
    if qparams.block_size is None:
        both = qparams.scale.expand(weight.shape), qparams.zero_point.expand(weight.shape)
    else:
        blocks = split_into_blocks(weight, qparams.block_size)
        both = tuple(
            parameter_for_blocks(p, blocks).expand(blocks.shape).reshape(weight.shape)
            for p in (qparams.scale, qparams.zero_point)
        )
    return both[0].double(), both[1].double()


def damped(moments: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diagonal), so that it has an inverse; the identity where H is zero."""
    diagonal = torch.diagonal(moments, dim1=-2, dim2=-1).mean(-1)
    extra = damping * torch.where(diagonal > 0, diagonal, 1 / max(damping, 1e-12))
    identity = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return moments + extra[:, None, None] * identity


def compensated(weight: Tensor, moments: Tensor, mixed: Tensor, damping: float) -> Tensor:
    """The weights [G, O, K] that do best on the quantized network's inputs.

    They minimize |w x_float - v x_quantized|^2 over v, shrunk towards w by ``damping``:
    v = w (M + d) (H + d)^-1, M the mixed moments and d the damping (least squares).
    """
    extra = damped(moments, damping) - moments
    return torch.linalg.solve(damped(moments, damping), weight @ (mixed + extra), left=False)


class RoundWeights:
    """A way of rounding as a step of `walk.improved`; rows that lose by it keep the nearest codes.

    solve: codes from a `Rounding`. compensate: aim at the float network's output from the inputs
    that the quantized network has, else at the float weights; it wants many examples and ranges
    that hardly clip, since loud examples lead it. damping: share of the mean diagonal of H that is
    added to it. alone: H is of the float network's inputs, so that the codes of a layer depend on
    no other layer's and can be kept while others change; and layers without a matrix form (a
    transposed or 3-d convolution) keep the nearest codes, where the default refuses them by name.
    An Embedding always does: each of its outputs is one weight, for which nearest is best.
    """

    def __init__(
        self, solve: Callable[[Rounding], Tensor], compensate: bool = False, damping: float = 0.01,
        alone: bool = False,
    ) -> None:  # fmt: skip
        self.solve, self.compensate = solve, flag("compensate", compensate)
        self.damping, self.alone = number("damping", damping, "(0, inf)"), flag("alone", alone)
        if compensate and alone:
            raise QuantizationError("compensate=True needs the quantized network's inputs.")

    def __call__(self, site: Site) -> None:
        if not has_matrices(site.float_layer):
            if self.alone or known_type(site.float_layer).token_dimensions == 0:
                return
            raise UnsupportedError(
                f"layer {site.layer.name!r}: {type(site.float_layer).__name__} has no matrix form "
                "here (Linear, Conv1d and Conv2d have). alone=True leaves such layers rounded to "
                "nearest; float_layers in the config keeps this one in floating point."
            )
        qparams = site.layer.require_integers("a search for better rounding")
        layer = site.float_layer
        weight = matrices(layer).double()
        moments = site.float_moments if self.alone else site.moments
        moments = damped(moments, self.damping)
        target = weight
        if self.compensate:
            target = compensated(weight, site.moments, site.mixed_moments, self.damping)
        scale, zero_point = (matrices(layer, t) for t in spread_over(weight_of(layer), qparams))
        problem = Rounding(target, moments, scale, zero_point, qparams.grid)
        nearest = problem.better(problem.nearest(weight), problem.nearest())
        codes = problem.better(nearest, self.solve(problem))
        codes = unmatrix(layer, codes).to(qparams.grid.dtype)
        site.use(QTensor(codes, qparams))
