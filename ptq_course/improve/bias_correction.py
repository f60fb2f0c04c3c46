"""Bias correction: take away the mean of the error that rounding leaves in each channel.

Chapter 11. Rounded weights give outputs whose mean has moved, by E[(W - W_hat) x] a channel; the
next layers add up such shifts, and a bias can take them away for nothing. With data the shift is
measured; without, the input's mean follows from the batch norm before the ReLU.

Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and
Bias Correction", 2019, section 4.2 and appendix C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError, flag
from ptq_course.graph.kinds import ACTIVATIONS, operation_of
from ptq_course.graph.layer_types import layer_type
from ptq_course.improve.matrices import grouped, weight_of
from ptq_course.improve.walk import Site
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.quantized import QuantizedModel


def mean_shift(expected: list[Tensor], found: list[Tensor], channel: int) -> Tensor:
    """Mean of found - expected over all dimensions but ``channel``, float64 [C].

    Raises QuantizationError for lists of different lengths or shapes, or without a value.
    """
    if len(expected) != len(found) or any(
        a.shape != b.shape for a, b in zip(expected, found, strict=False)
    ):
        raise QuantizationError("mean_shift: expected and found differ in their shapes.")
    parts = [
        (b.double() - a.double()).movedim(channel, 0).flatten(1)
        for a, b in zip(expected, found, strict=True)
    ]
    count = sum(part.shape[1] for part in parts)
    if not count:
        raise QuantizationError("mean_shift: no values to average; pass at least one example.")
    return torch.stack([part.sum(1) for part in parts]).sum(0) / count


def relu_mean(mean: Tensor, deviation: Tensor, ceiling: float = math.inf) -> Tensor:
    """E[min(max(y, 0), ceiling)] of y ~ N(mean, deviation^2), elementwise (appendix C).

    ceiling: 6 for a ReLU6. A deviation of 0 is a constant. Raises QuantizationError where a
    deviation is negative.
    """
    if bool((deviation < 0).any()):
        raise QuantizationError("relu_mean: a deviation is negative; pass |gamma|.")
    mean, deviation = mean.double(), deviation.double()
    above = _above(mean, deviation, 0.0)
    return above if math.isinf(ceiling) else above - _above(mean, deviation, ceiling)


def _above(mean: Tensor, deviation: Tensor, t: float) -> Tensor:
    """E[max(y - t, 0)]."""
    z = (mean - t) / deviation.clamp(min=1e-300)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    inside = (mean - t) * torch.special.ndtr(z) + deviation * density
    return torch.where(deviation > 0, inside, (mean - t).clamp(min=0))


def analytic_shift(layer: nn.Module, rounded: Tensor, input_mean: Tensor) -> Tensor:
    """E[(W_hat - W) x], float64 [O], from the mean of each input channel, [I].

    rounded: the weight W_hat, of the layer's shape. Zeros of a padding count as data.
    Raises QuantizationError where the mean does not fit, UnsupportedError for other layers.
    """
    error = grouped(layer, rounded.detach().double() - weight_of(layer).double())
    if input_mean.shape != (error.shape[0] * error.shape[2],):
        raise QuantizationError(
            f"analytic_shift: {tuple(input_mean.shape)} means for "
            f"{error.shape[0] * error.shape[2]} input channels."
        )
    per_group = input_mean.double().to(error.device).view(error.shape[0], -1)
    return torch.einsum("goit,gi->go", error, per_group).flatten()


def subtract_from_bias(layer: QuantizedLayer, shift: Tensor) -> None:
    """Take ``shift`` [C] from a quantized layer's bias, in place; int32 codes are rounded again.

    A float layer without a bias gets one. Its weight stays shared with the float network.
    """
    if layer.bias_codes is not None and layer.bias_scale is not None:
        bias = layer.bias_codes.double() * layer.bias_scale.double() - shift
        limit = torch.iinfo(torch.int32).max
        codes = (bias / layer.bias_scale.double()).round().clamp(-limit, limit)
        layer.bias_codes = codes.to(torch.int32)
        return
    floating = layer.float_layer
    weight = weight_of(floating)
    old = getattr(floating, "bias", None)
    new = (0 if old is None else old.detach().double()) - shift
    floating.bias = nn.Parameter(new.to(weight.dtype), requires_grad=False)


class CorrectBias:
    """Empirical bias correction as a step of `walk.improved`.

    The mean output of each channel becomes that of the float layer, both on the inputs that the
    quantized network has: what rounding the weights has shifted. ``inherited=True`` takes the
    float layer on the float network's inputs, so that the errors of all layers before are
    corrected, too. That is dangerous where ranges clip: a few loud examples move the mean, and the
    correction moves all the others.
    """

    def __init__(self, inherited: bool = False) -> None:
        self.inherited = flag("inherited", inherited)

    def __call__(self, site: Site) -> None:
        kind = layer_type(site.float_layer)
        if kind is None or kind.token_dimensions == 0:
            return  # an Embedding has no bias
        inputs = site.x_float if self.inherited else site.x_quantized
        expected = [site.float_layer(x) for x in inputs]
        found = [site.layer(x) for x in site.x_quantized]
        shift = mean_shift(expected, found, -kind.token_dimensions)
        if not bool(torch.isfinite(shift).all()):
            raise QuantizationError("CorrectBias: NaN or infinity in the outputs; check the data.")
        subtract_from_bias(site.layer, shift)


def _bias(layer: nn.Module) -> Tensor | float:
    """Of a float or a quantized layer, float64; 0 where there is none."""
    bias = getattr(layer, "bias", None)
    return bias.detach().double() if isinstance(bias, Tensor) else 0.0


def input_means(module: fx.GraphModule) -> dict[str, Tensor]:
    """Mean of each input channel [I] of the layers whose input a batch norm tells, by their path.

    module: traced and fused. Between the layer that absorbed the batch norm and the one that reads
    stands nothing, a ReLU or a ReLU6. Other layers are left out: their inputs need data.
    """
    found = {}
    for node in module.graph.nodes:
        if node.op != "call_module" or layer_type(module.get_submodule(str(node.target))) is None:
            continue
        source, ceiling = node.all_input_nodes[0], None
        for name, limit in (("relu", math.inf), ("relu6", 6.0)):
            if operation_of(module, source) in ACTIVATIONS[name]:
                source, ceiling = source.all_input_nodes[0], limit
        before = module.get_submodule(str(source.target)) if source.op == "call_module" else None
        beta, gamma = (getattr(before, f"folded_{name}", None) for name in ("beta", "gamma"))
        if isinstance(beta, Tensor) and isinstance(gamma, Tensor):
            mean = beta if ceiling is None else relu_mean(beta, gamma.abs(), ceiling)
            found[str(node.target)] = mean
    return found


def correct_bias_without_data(quantized: QuantizedModel, float_model: nn.Module) -> list[str]:
    """Analytic bias correction of every layer that `input_means` knows, in place; their names.

    quantized: what ``convert()`` gave; float_model: the quantizer's, from whose biases the shifts
    are taken, so that a second call changes nothing. Raises UnsupportedError for a
    network without a graph, and where no layer stands behind a batch norm.
    """
    means = input_means(float_model) if isinstance(float_model, fx.GraphModule) else {}
    layers = quantized.quantized_layers()
    done = [name for name in means if name in layers]
    if not done:
        raise UnsupportedError(
            "correct_bias_without_data: no layer reads the output of a batch norm, whose "
            "statistics this needs; use CorrectBias with data."
        )
    for name in done:
        layer, exact = layers[name], float_model.get_submodule(name)
        shift = analytic_shift(exact, layer.weight, means[name])
        subtract_from_bias(layer, shift + _bias(layer) - _bias(exact))
    return done
