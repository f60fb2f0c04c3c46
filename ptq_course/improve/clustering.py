"""Weight clustering: a codebook of K values, which any weights may share. Chapter 13.

A codebook puts its values where the weights are, instead of on a uniform grid. Lloyd's algorithm
on sorted numbers needs prefix sums only.

Han, Mao, Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding", 2015; Lloyd, "Least Squares Quantization in PCM", 1957 (1982).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, whole
from ptq_course.graph.layer_types import weight_of
from ptq_course.grids.affine import QTensor
from ptq_course.grids.tensors import check_tensor
from ptq_course.improve.walk import Site


def cluster(weight: Tensor, bits: int = 4, iterations: int = 100) -> QTensor:
    """Codes of ``weight``'s shape and a codebook of at most 2^bits ascending values (float32).

    Lloyd's iterations from evenly spread quantiles and from an even grid; the better one counts.
    Deterministic. With no more different values than codes each has its own.
    Raises QuantizationError for NaN or infinity, an empty weight, bits outside 1..8.
    """
    check_tensor(weight, "cluster", filled=True)
    size = 2 ** whole("bits", bits, 1, 8)
    iterations = whole("iterations", iterations, 1)
    values = weight.detach().flatten().double()
    if not bool(torch.isfinite(values).all()):
        raise QuantizationError("cluster: the weight holds NaN or infinity; check the checkpoint.")
    ordered = values.sort().values
    distinct = ordered.unique()
    if len(distinct) <= size:
        return _coded(weight, distinct)
    places = (torch.arange(size, device=values.device) + 0.5) / size
    quantiles = ordered[(places * len(ordered)).long()]
    even = ordered[0] + (ordered[-1] - ordered[0]) * places.double()
    found = [_lloyd(ordered, start.unique(), iterations) for start in (quantiles, even)]
    return _coded(weight, min(found, key=lambda book: squared_error(ordered, book)))


def squared_error(values: Tensor, codebook: Tensor) -> float:
    """Summed squared distance of ``values`` to their nearest entry of an ascending codebook."""
    return float((values - codebook[_nearest(values, codebook)]).square().sum())


def _lloyd(ordered: Tensor, codebook: Tensor, iterations: int) -> Tensor:
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(iterations):
        middles = (codebook[1:] + codebook[:-1]) / 2
        cuts = torch.searchsorted(ordered, middles)
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(ordered))])
        counts = edges.diff()
        means = (sums[edges[1:]] - sums[edges[:-1]]) / counts.clamp(min=1)
        new = torch.where(counts > 0, means, codebook)
        if torch.equal(new, codebook):
            break
        codebook = new
    return codebook


def _nearest(values: Tensor, codebook: Tensor) -> Tensor:
    return torch.bucketize(values, (codebook[1:] + codebook[:-1]) / 2)


def _coded(weight: Tensor, codebook: Tensor) -> QTensor:
    codes = _nearest(weight.detach().double(), codebook).to(torch.uint8)
    return QTensor(codes, None, codebook.float())


class Cluster:
    """A step of `walk.improved`: every layer gets a codebook of its own. Weight-only networks.

    An integer kernel cannot multiply by a codebook, so biases must stay in floating point:
    ``QConfig(activation_bits=None)``; else QuantizationError.
    """

    def __init__(self, bits: int = 4) -> None:
        self.bits = whole("bits", bits, 1, 8)

    def __call__(self, site: Site) -> None:
        if site.layer.bias_codes is not None:
            raise QuantizationError(
                f"{site.layer.name}: its bias is in int32 with the scale of integer weights, which "
                "a codebook has not; use QConfig(activation_bits=None)."
            )
        site.use(cluster(weight_of(site.float_layer), self.bits))
