"""SmoothQuant: divide the channels of an activation, multiply the weights that read it. Chapter 12.

Outlier channels of a transformer's activations set the one scale that all channels share. Dividing
channel j by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) moves the difficulty into the weights,
which have a scale per row. The division costs nothing where a LayerNorm stands before: its gamma
and beta take it. All layers that read one value (query, key and value) share one s. Elsewhere, as
in a transformer that normalizes behind its additions, where the residual reads the LayerNorm too,
the division is an operation of its own, in floating point, in front of the quantizer.

Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import (
    CalibrationError,
    QuantizationError,
    UnsupportedError,
    flag,
    number,
    whole,
)
from ptq_course.grids.affine import block_minmax, choose_qparams, fake_quantize
from ptq_course.grids.floats import FloatFormat
from ptq_course.improve.equalization import input_ranges
from ptq_course.improve.inputs import (
    at_layer,
    find_values,
    in_words,
    inputs_of,
    left_as_they_are,
    linear,
    put_before,
    some_of,
)
from ptq_course.improve.matrices import exact_in
from ptq_course.improve.pairs import prepared
from ptq_course.improve.sharing import read_alone
from ptq_course.simulation.qconfig import QConfig

ALPHAS = tuple(step / 10 for step in range(11))
NOT_FOLDED = "no norm before it can take the division; explicit=True divides"


def smoothing_factors(activations: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    """s [C] = activations^alpha / weights^(1 - alpha), equation 4 of the paper.

    activations, weights: [C], the largest |x| of each channel and the largest |w| that reads it.
    Channels that are zero in one of them keep their scale. Raises QuantizationError for lengths
    that differ, values that are negative or not finite, an alpha outside [0, 1].
    """
    number("alpha", alpha, "[0, 1]")
    if activations.shape != weights.shape or activations.dim() != 1:
        raise QuantizationError(
            f"smoothing_factors: {tuple(activations.shape)} activations and {tuple(weights.shape)} "
            "weights; both need one entry for each channel."
        )
    both = torch.stack([activations, weights]).double()
    if not bool((torch.isfinite(both) & (both >= 0)).all()):
        raise QuantizationError(
            "smoothing_factors: ranges are finite and not negative; check the data and the weights."
        )
    alive = (both > 0).all(0)
    factors = torch.where(alive, both[0] ** alpha / both[1] ** (1 - alpha), 1.0)
    return exact_in(weights.dtype, factors).to(weights.dtype)


def smooth(norm: nn.Module, readers: Sequence[nn.Linear], factors: Tensor) -> None:
    """Divide a norm's output by ``factors`` [C], multiply what ``readers`` read; in place.

    norm: a LayerNorm, or an RMSNorm.

    Raises UnsupportedError where the norm has no gamma of that length to take them, and
    QuantizationError where a factor is not positive.
    """
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, Tensor) or gamma.shape != factors.shape:
        raise UnsupportedError(
            f"{type(norm).__name__}: no gamma with {len(factors)} entries, which a fold needs "
            "(elementwise_affine=True, over the last dimension)."
        )
    if not bool((torch.isfinite(factors) & (factors > 0)).all()):
        raise QuantizationError("smooth: factors are positive and finite.")
    with torch.no_grad():
        for name in ("weight", "bias"):
            if isinstance(values := getattr(norm, name, None), Tensor):
                values.div_(factors)
        for layer in readers:
            layer.weight.mul_(factors)


def find_norms(module: fx.GraphModule) -> dict[str, list[str]]:
    """LayerNorms and RMSNorms, by path, that only Linear layers read, with these layers' paths.

    Where something else reads one (the residual of a post-norm transformer) nothing can be folded,
    nor where the weight of a norm or a layer has other readers (a tied head; `sharing`).
    """
    owners, values = read_alone(module), find_values(module)
    found = {}
    for node, readers in values.items():
        if node.op != "call_module" or node.target not in owners:
            continue
        norm = module.get_submodule(str(node.target))
        if not isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) or len(norm.normalized_shape) != 1:
            continue
        if len(readers) == len(node.users) and norm.weight is not None:
            found[str(node.target)] = readers
    return found


class InputScale(nn.Module):
    """x / factors, channel by channel along the last dimension: what no layer could take."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.inverse: Tensor
        self.register_buffer("inverse", 1 / factors)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inverse


class SmoothQuant:
    """A step: ``PTQQuantizer(model, steps=[SmoothQuant(batches)])``; the network computes the same.

    batches: some calibration data (labels are not used). alpha: 0 leaves the outliers with the
    activations, 1 moves all of them into the weights; None tries `ALPHAS` for each value and takes
    the one whose layers' outputs, both sides rounded per `config`, err least on the first batch.
    explicit: where no norm can take the division, divide in an `InputScale`; else the value stays
    as it is. Afterwards ``alphas`` holds the exponent of each layer, ``left_out`` says why of each
    Linear layer that stayed.
    Raises CalibrationError without data, UnsupportedError where nothing can be divided.
    """

    def __init__(
        self,
        batches: Iterable,
        alpha: float | None = 0.5,
        num_batches: int = 16,
        explicit: bool = False,
    ) -> None:
        self.alpha = None if alpha is None else number("alpha", alpha, "[0, 1]")
        self.batches, self.num_batches = batches, whole("num_batches", num_batches, 1)
        self.explicit = flag("explicit", explicit)
        self.alphas: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def __call__(self, module: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
        module = prepared(module)
        self.alphas = {}
        norms = {tuple(readers): name for name, readers in find_norms(module).items()}
        values = {
            node: readers
            for node, readers in find_values(module).items()
            if self.explicit or tuple(readers) in norms
        }
        done = [name for readers in values.values() for name in readers]
        self.left_out = left_as_they_are(module, done, NOT_FOLDED)
        if not values and self.explicit:
            raise UnsupportedError(
                "SmoothQuant: no Linear layer with an input of its own to divide; leave the step "
                f"out. {in_words(self.left_out)}"
            )
        if not values:
            raise UnsupportedError(
                "SmoothQuant: no LayerNorm that only Linear layers read, so nothing can be folded; "
                "explicit=True divides in an operation of its own. " + in_words(self.left_out)
            )
        firsts = [readers[0] for readers in values.values()]
        data = some_of(self.batches, self.num_batches, "SmoothQuant")
        seen = inputs_of(module, firsts, data)
        for node, readers in values.items():
            layers = [linear(module, name) for name in readers]
            if readers[0] not in seen:
                raise CalibrationError(
                    f"SmoothQuant: no batch has reached layer {readers[0]!r}: pass more data."
                )
            largest, some = seen[readers[0]]
            with at_layer(readers[0]):
                factors = self._factors(readers, layers, largest, some, quantizer.config)
            if tuple(readers) in norms:
                smooth(module.get_submodule(norms[tuple(readers)]), layers, factors)
            else:
                divide(module, node, readers, factors)
        module.recompile()
        return module

    def _factors(
        self,
        readers: list[str],
        layers: list[nn.Linear],
        largest: Tensor,
        some: Tensor,
        config: QConfig,
    ) -> Tensor:
        weights = torch.stack([input_ranges(layer) for layer in layers]).amax(0)
        tried = {
            alpha: smoothing_factors(largest, weights, alpha)
            for alpha in (ALPHAS if self.alpha is None else (self.alpha,))
        }
        errors = {
            alpha: sum(output_error(layer, some, factors, config) for layer in layers)
            for alpha, factors in tried.items()
            if len(tried) > 1
        }
        best = min(errors, key=errors.__getitem__) if errors else next(iter(tried))
        self.alphas |= dict.fromkeys(readers, best)
        return tried[best]


def output_error(layer: nn.Linear, x: Tensor, factors: Tensor, config: QConfig) -> float:
    """Squared error of the layer's output where x / s and weight * s are rounded as by ``config``.

    x: [rows, C]. The activations' range is their min-max. What ``config`` leaves in floating point
    is not rounded.
    """
    scaled, weight = x / factors, layer.weight.detach() * factors
    if config.activation_grid is not None:
        low, high = block_minmax(scaled)
        qparams = choose_qparams(low, high, config.activation_grid, config.activation_symmetric)
        scaled = fake_quantize(scaled, qparams)
    grid = config.weight_grid
    if isinstance(grid, FloatFormat):
        weight = fake_quantize(weight, grid.choose(weight, (1, -1)))
    elif grid is not None:
        low, high = block_minmax(weight, (1, -1))
        weight = fake_quantize(weight, choose_qparams(low, high, grid, True, (1, -1)))
    return float((scaled @ weight.T - x @ layer.weight.detach().T).square().sum())


def divide(module: fx.GraphModule, value: fx.Node, readers: Sequence[str], factors: Tensor) -> None:
    """Put an `InputScale` between a value and the layers ``readers``; their weights undo it."""
    put_before(module, value, readers, InputScale(factors))
    with torch.no_grad():
        for reader in readers:
            linear(module, reader).weight.mul_(factors)
