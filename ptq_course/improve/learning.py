"""A quantized network that can learn: float weights and ranges behind its rounding. Chapter 14.

`learning_copy` puts a part that lets gradients through in the place of each that rounds;
`written_back` makes codes of what they have learned. Batch norm is folded before all this, so
nothing here has a training mode.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from ptq_course.errors import UnsupportedError
from ptq_course.graph.layer_types import bias_of, known_type, weight_of
from ptq_course.grids.affine import SCALE_FLOOR, QParams, QTensor, quantize
from ptq_course.grids.blocks import parameter_for_blocks, split_into_blocks
from ptq_course.grids.floats import format_name
from ptq_course.improve.rounding import spread_over
from ptq_course.improve.straight_through import round_per_tensor, round_through
from ptq_course.simulation.bias import quantize_bias, scale_per_output
from ptq_course.simulation.curves import RoundedInside
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer, check_call
from ptq_course.simulation.network import replace_submodules
from ptq_course.simulation.quantized import QuantizedModel

MARGIN = 0.49  # of a step: a float weight that is still rounded to its code


class LearningLayer(nn.Module):
    """A quantized layer whose float weight, bias and scales are learned through the rounding."""

    def __init__(self, layer: QuantizedLayer, learn_scales: bool, margin: float = MARGIN) -> None:
        super().__init__()
        qparams = layer.require_integers("training through the rounding")
        floating = layer.float_layer
        self.name, self.floating, self.qparams = layer.name, floating, qparams
        # 16 bits are too few to learn in: what is learned is float32, what is computed the model's.
        dtype = torch.promote_types(weight_of(floating).dtype, torch.float32)
        weight = weight_of(floating).detach().to(dtype)
        self.weight = nn.Parameter(near_codes(weight, layer, margin))
        bias = bias_of(floating) if layer.bias is None else layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype, copy=True))
        self.scale = nn.Parameter(qparams.scale.clone(), requires_grad=learn_scales)

    def step_of_each_weight(self) -> Tensor:
        """The scale that rounds it, of the weight's shape."""
        return spread_over(self.weight.detach(), self.qparams)[0].to(self.weight.dtype)

    def rounded(self) -> Tensor:
        """The weight on its grid, with gradients."""
        weight, scale = self.weight, self.scale.clamp(min=SCALE_FLOOR)
        zero_point = self.qparams.zero_point.to(weight.dtype)
        if self.qparams.block_size is None:
            return round_through(weight, scale, zero_point, self.qparams.grid)
        blocks = split_into_blocks(weight, self.qparams.block_size)
        scale, zero_point = (parameter_for_blocks(p, blocks) for p in (scale, zero_point))
        return round_through(blocks, scale, zero_point, self.qparams.grid).reshape(weight.shape)

    def forward(self, input: Tensor, **options: object) -> Tensor:
        check_call(self.floating, self.name, input, options)
        dtype = weight_of(self.floating).dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return known_type(self.floating).compute(
            self.floating, input, self.rounded().to(dtype), bias
        )

    def write_to(self, layer: QuantizedLayer) -> None:
        """Put what was learned into the quantized layer, as codes."""
        scale = self.scale.detach().abs().clamp(min=SCALE_FLOOR)
        old, replaced = self.qparams, layer.weight_qtensor.require_qparams()
        qparams = QParams(scale, old.zero_point, old.grid, old.block_size)
        input_scale = None
        if layer.bias_codes is not None and layer.bias_scale is not None:
            per_output = scale_per_output(self.floating, replaced.scale)
            assert per_output is not None  # or the bias would have no codes
            input_scale = (layer.bias_scale / per_output).median()
        layer.put_weight(QTensor(quantize(self.weight.detach(), qparams), qparams))
        if self.bias is None:
            return
        per_output = scale_per_output(self.floating, scale)
        if input_scale is None or per_output is None:
            floating = copy.deepcopy(self.floating)
            bias = self.bias.detach().to(weight_of(floating).dtype, copy=True)
            floating.bias = nn.Parameter(bias, requires_grad=False)
            layer.float_layer = floating
        else:
            layer.bias_codes, layer.bias_scale = quantize_bias(
                self.bias.detach(), input_scale, per_output
            )


class LearningQuantizer(nn.Module):
    """An activation quantizer that lets gradients through.

    learn_range: learn its scale, and its zero point except where that is 0 or an end of the grid:
    there the range begins or ends at 0, as behind a ReLU, or is symmetric, as the target wants it.
    """

    def __init__(self, quantizer: ActivationQuantizer, learn_range: bool = False) -> None:
        super().__init__()
        q = quantizer.qparams
        if not isinstance(q, QParams):
            raise UnsupportedError(
                f"value {quantizer.name!r} is rounded to {format_name(q)}, and training through "
                "the rounding needs a grid of integers; leave activation_format out."
            )
        self.name, self.made_from, self.learns = quantizer.name, q, learn_range
        scale, zero, grid = q.scale, q.zero_point, q.grid
        fixed = set(zero.flatten().tolist()) <= {0, grid.qmin, grid.qmax}
        self.scale = nn.Parameter(scale.clone(), requires_grad=learn_range)
        self.zero_point = nn.Parameter(zero.float(), requires_grad=learn_range and not fixed)

    @property
    def qparams(self) -> QParams:
        """As they are now; those it was made from, to the bit, where nothing is learned."""
        if not self.learns:
            return self.made_from
        old = self.made_from
        scale = self.scale.detach().clamp(min=SCALE_FLOOR)
        zero = self.zero_point.detach().round().clamp(old.grid.qmin, old.grid.qmax)
        return QParams(scale, zero.to(torch.int32), old.grid, old.block_size)

    def forward(self, x: Tensor) -> Tensor:
        q = self.made_from
        if self.learns:
            scale = self.scale.clamp(min=SCALE_FLOOR)
            return round_per_tensor(x, scale, self.zero_point, q.grid).to(x.dtype)
        return round_through(x, q.scale, q.zero_point.to(x.dtype), q.grid).to(x.dtype)


class LearningInside(nn.Module):
    """An activation that rounds inside, with the gradient of the one that does not."""

    def __init__(self, rounded: RoundedInside) -> None:
        super().__init__()
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        exact = self.rounded.exact(x)
        return exact + (self.rounded(x) - exact).detach()


def near_codes(weight: Tensor, layer: QuantizedLayer, margin: float = MARGIN) -> Tensor:
    """The float weight, moved to within ``margin`` steps of the code that the layer has.

    So training starts from the quantized network as it is, also where the codes are not the nearest
    ones (AdaRound, GPTQ).
    """
    decoded, codes = layer.weight.detach().to(weight.dtype), layer.weight_qtensor
    scale = spread_over(decoded, codes.require_qparams())[0].to(decoded.dtype)
    return torch.maximum(torch.minimum(weight, decoded + margin * scale), decoded - margin * scale)


def learning_copy(
    quantized: QuantizedModel, learn_scales: bool = False, learn_ranges: Collection[str] = (),
    margin: float = MARGIN,
) -> nn.Module:  # fmt: skip
    """The quantized network with float weights behind its codes, ready for an optimizer.

    learn_scales: those of the weights. learn_ranges: names of the activations whose scale and zero
    point are learned. margin: how far from its code a weight begins at most, in steps.
    """
    module = copy.deepcopy(quantized.module)
    new: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if isinstance(part, QuantizedLayer):
            new[path] = LearningLayer(part, learn_scales, margin)
        elif isinstance(part, ActivationQuantizer):
            learns = part.name in learn_ranges and part.scale.dim() == 0
            new[path] = LearningQuantizer(part, learns)
        elif isinstance(part, RoundedInside):
            new[path] = LearningInside(part)
    replace_submodules(module, new)
    return module


def written_back(learned: nn.Module, quantized: QuantizedModel) -> QuantizedModel:
    """A copy of ``quantized`` with the codes of what was learned."""
    return write_layers(learned, copy.deepcopy(quantized))


def write_layers(learned: nn.Module, result: QuantizedModel) -> QuantizedModel:
    """``result``, whose layers have the codes of what was learned from now on."""
    layers = dict(result.module.named_modules())
    with torch.no_grad():
        for path, part in learned.named_modules():
            if isinstance(part, LearningLayer):
                part.write_to(cast(QuantizedLayer, layers[path]))
    return result
