"""Cross-layer equalization: move scale from one layer to the next, without any data. Chapter 11.

A ReLU lets a positive factor through: relu(s * y) = s * relu(y). So channel i of one layer may be
divided by s_i, and the weights that read it multiplied; the network computes the same, and the
ranges of the channels, which one per-tensor scale has to serve, become alike.

Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and
Bias Correction", 2019, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, number, whole
from ptq_course.graph.layer_types import channel_axis
from ptq_course.improve.inputs import at_layer
from ptq_course.improve.matrices import exact_in, grouped, put_grouped, weight_of
from ptq_course.improve.pairs import Pair, find_pairs, prepared, without_pair


def output_ranges(layer: nn.Module) -> Tensor:
    """Largest |weight| of each output channel, [O]."""
    return grouped(layer).abs().amax((2, 3)).flatten()


def input_ranges(layer: nn.Module) -> Tensor:
    """Largest |weight| that reads each input channel, [I]."""
    return grouped(layer).abs().amax((1, 3)).flatten()


def equalizing_factors(first: Tensor, second: Tensor) -> Tensor:
    """What to divide the channels between two layers by, [C], so that both ranges become equal.

    first, second: [C], the range of each channel's weights in the layer that writes it and in the
    layer that reads it. s = sqrt(first / second) gives both the range sqrt(first * second)
    (equation 11 of the paper); in 16 bits the nearest power of two, which multiplies exactly. A
    channel that is zero in one of them keeps its scale.
    Raises QuantizationError for ranges of different lengths, negative or not finite ones.
    """
    if first.shape != second.shape or first.dim() != 1:
        raise QuantizationError(
            f"equalizing_factors: ranges of shape {tuple(first.shape)} and {tuple(second.shape)}; "
            "both need one entry for each channel between the layers."
        )
    both = torch.stack([first, second]).double()
    if not bool((torch.isfinite(both) & (both >= 0)).all()):
        raise QuantizationError(
            "equalizing_factors: ranges are finite and not negative; check the weights."
        )
    alive = (both > 0).all(0)
    factors = torch.where(alive, (both[0] / both[1]).sqrt(), 1.0)
    return exact_in(first.dtype, factors).to(first.dtype)


def rescale(first: nn.Module, second: nn.Module, factors: Tensor) -> None:
    """Divide the outputs of ``first`` by ``factors`` [C], multiply what ``second`` reads; in place.

    Between the two only operations may stand that let positive factors through (`pairs`).
    The inputs of ``second`` may be a multiple of C: a flattened picture has its pixels beside each
    other. Batch-norm statistics that fusion left behind are rescaled, too.
    Raises QuantizationError where a factor is not positive or the channels do not fit.
    """
    weights, readers = grouped(first), grouped(second)
    outputs, inputs = weights.shape[0] * weights.shape[1], readers.shape[0] * readers.shape[2]
    if factors.shape != (outputs,) or inputs % outputs:
        raise QuantizationError(
            f"rescale: {outputs} outputs meet {inputs} inputs and factors {tuple(factors.shape)}."
        )
    if not bool((torch.isfinite(factors) & (factors > 0)).all()):
        raise QuantizationError("rescale: factors are positive and finite.")
    spread = factors.repeat_interleave(inputs // outputs)
    put_grouped(first, weights / factors.view(weights.shape[0], -1, 1, 1))
    put_grouped(second, readers * spread.view(readers.shape[0], 1, -1, 1))
    with torch.no_grad():
        for name in ("bias", "folded_gamma", "folded_beta"):
            values = getattr(first, name, None)
            if isinstance(values, Tensor):
                values.div_(factors)


def _move(module: fx.GraphModule, pair: Pair, factors: Tensor) -> None:
    """`rescale` the layers of a pair, and the limits of the channels between them."""
    rescale(module.get_submodule(pair.first), module.get_submodule(pair.second), factors)
    if pair.limit:
        limits = module.get_buffer(pair.limit)
        limits.div_(factors.view(-1, *[1] * (limits.dim() - 1)))


def equalize(model: nn.Module, sweeps: int = 20, tolerance: float = 1e-3) -> fx.GraphModule:
    """A traced, fused copy of ``model`` whose layers share their ranges; it computes the same.

    All pairs of `find_pairs` take turns until no factor differs from 1 by more than ``tolerance``,
    ``sweeps`` times at most (a depthwise convolution stands in two pairs). ReLU6 is no ReLU: its
    pairs stay as they are, unless `pairs.with_limits` gives each channel a limit that goes along
    (exact, and an operation more), or `pairs.without_relu6` makes it a ReLU (what that breaks must
    be measured). A step of PTQQuantizer: ``steps=[Equalize()]``.
    Raises QuantizationError for settings out of range, UnsupportedError where it is not traceable.
    """
    sweeps = whole("sweeps", sweeps, 1)
    number("tolerance", tolerance, "[0, inf]")
    module = prepared(model)
    pairs = find_pairs(module)
    for _ in range(sweeps):
        moved = 0.0
        for pair in pairs:
            first, second = module.get_submodule(pair.first), module.get_submodule(pair.second)
            ranges = output_ranges(first)
            readers = input_ranges(second).view(len(ranges), -1).amax(1)
            with at_layer(pair.first):
                factors = equalizing_factors(ranges, readers)
            _move(module, pair, factors)
            moved = max(moved, float(factors.log().abs().max()))
        if moved <= tolerance:
            break
    return module


def unequalize(model: nn.Module, spread: int = 4, seed: int = 0) -> fx.GraphModule:
    """The inverse, for demonstrations: channels rescaled at random by 2^-spread .. 2^spread.

    Powers of two: floating point computes the same to the bit (short of under- and overflow), and
    one INT8 scale per tensor is ruined.
    """
    spread = whole("spread", spread, 1, 30)
    module = prepared(model)
    generator = torch.Generator().manual_seed(seed)
    for pair in find_pairs(module):
        ranges = output_ranges(module.get_submodule(pair.first))
        powers = torch.randint(-spread, spread + 1, (len(ranges),), generator=generator)
        _move(module, pair, torch.exp2(powers.to(ranges.dtype)).to(ranges.device))
    return module


class Equalize:
    """`equalize` as a step: ``PTQQuantizer(model, steps=[Equalize()])``.

    Afterwards ``left_out`` says of each layer that stands in no pair why.
    """

    def __init__(self, sweeps: int = 20, tolerance: float = 1e-3) -> None:
        self.sweeps, self.tolerance = sweeps, tolerance
        self.left_out: dict[str, str] = {}

    def __call__(self, module: fx.GraphModule, quantizer: object) -> fx.GraphModule:
        module = equalize(module, self.sweeps, self.tolerance)
        self.left_out = without_pair(module)
        return module


# --- high biases ---------------------------------------------------------------------------------


def high_bias(beta: Tensor, gamma: Tensor, deviations: float = 3.0) -> Tensor:
    """How much of each channel is there nearly always: max(0, beta - deviations * |gamma|), [C].

    beta, gamma: the batch norm before the ReLU; its output has this mean and deviation.
    """
    if beta.shape != gamma.shape:
        raise QuantizationError(
            f"high_bias: beta {tuple(beta.shape)} and gamma {tuple(gamma.shape)} must be alike."
        )
    return (beta - number("deviations", deviations, "[0, inf]") * gamma.abs()).clamp(min=0)


def absorb(first: nn.Module, second: nn.Module, constant: Tensor) -> None:
    """Move ``constant`` [C] from the bias of ``first`` into that of ``second``, in place.

    Exact wherever the output of ``first`` stays above ``constant``: relu(y - c) = relu(y) - c.
    Section 4.1.3 of the paper. Raises QuantizationError where a layer has no bias to take it, or
    ``second`` pads its input: zeros at the border stand for no c.
    """
    biases = [getattr(layer, "bias", None) for layer in (first, second)]
    if not isinstance(biases[0], Tensor) or not isinstance(biases[1], Tensor):
        name = "first" if not isinstance(biases[0], Tensor) else "second"
        raise QuantizationError(f"absorb: the {name} layer has no bias; give it one of zeros.")
    if not can_absorb(second):
        raise QuantizationError("absorb: the second layer pads its input, where c is missing.")
    readers = grouped(second)
    if constant.shape != output_ranges(first).shape or readers.shape[0] * readers.shape[2] != len(
        constant
    ):
        raise QuantizationError(f"absorb: a constant of shape {tuple(constant.shape)} fits not.")
    moved = torch.einsum("goit,gi->go", readers, constant.view(readers.shape[0], -1).to(readers))
    with torch.no_grad():
        biases[0].sub_(constant)
        biases[1].add_(moved.flatten())
        if isinstance(beta := getattr(first, "folded_beta", None), Tensor):
            beta.sub_(constant)


def can_absorb(layer: nn.Module) -> bool:
    """Whether the layer reads nothing but its input: padding would have to be c, and is 0."""
    padding = getattr(layer, "_reversed_padding_repeated_twice", ())
    return not any(padding) and channel_axis(layer) == 0  # a transposed one has borders, too


def absorb_high_biases(model: nn.Module, deviations: float = 3.0) -> fx.GraphModule:
    """`absorb` for every pair whose first layer had a batch norm, in a traced, fused copy.

    It computes nearly the same (0.1 % of values of a normal distribution lie beyond 3 deviations);
    pass the result to PTQQuantizer as the model. Pairs through a ReLU whose second layer pads are
    left as they are.
    """
    module = prepared(model)
    for pair in find_pairs(module):
        first, second = module.get_submodule(pair.first), module.get_submodule(pair.second)
        beta, gamma = getattr(first, "folded_beta", None), getattr(first, "folded_gamma", None)
        if pair.shifts and isinstance(beta, Tensor) and isinstance(gamma, Tensor):
            fits = input_ranges(second).shape == beta.shape
            if fits and can_absorb(second):
                if second.bias is None:
                    weight = weight_of(second)
                    second.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
                absorb(first, second, high_bias(beta, gamma, deviations))
    return module
