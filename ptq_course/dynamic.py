"""Dynamic quantization: weights rounded beforehand, activation scales computed from each input.

Chapter 07. No calibration data is needed. At run time each layer looks at the range of what it was
given, chooses scale and zero point, rounds its input to integers, multiplies integers by integers
into int32, and returns floating point. So activations *are* quantized, only later than in static
quantization, and what stands between the layers (adds, softmax) stays in floating point.

One scale for each token is the choice of Yao, Aminabadi, Zhang, Wu, Li, He, "ZeroQuant: Efficient
and Affordable Post-Training Quantization for Large-Scale Transformers", 2022.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from ptq_course.affine import (
    IntGrid,
    QParams,
    QTensor,
    block_minmax,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from ptq_course.bias import INT32_MAX
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.exact import exact_product
from ptq_course.graph import Kind, kinds_of
from ptq_course.layers import OPERATIONS, LayerStandIn, QuantizedLayer, check_call
from ptq_course.qconfig import QConfig
from ptq_course.quantized import ConvertedModel, QuantizedModel, check_float
from ptq_course.quantizer import PTQQuantizer

GRANULARITIES = ("per_tensor", "per_token")
# Layers whose input is rounded at run time, and how many of its last dimensions make one token:
# a row of a Linear's input, a whole picture [C, H, W] of a convolution's.
TOKEN_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Linear: 1,
    nn.Conv1d: 2,
    nn.ConvTranspose1d: 2,
    nn.Conv2d: 3,
    nn.ConvTranspose2d: 3,
    nn.Conv3d: 4,
    nn.ConvTranspose3d: 4,
}


def quantize_dynamic(
    model: nn.Module,
    bits: int | None = None,
    granularity: str = "per_token",
    weights_only: bool = False,
    *,
    config: QConfig | None = None,
) -> DynamicModel | QuantizedModel:
    """Quantize a trained model without data: its weights now, its activations at run time.

    model: any nn.Module; it is copied and never changed. Batch norm is folded where it can be
    traced, else the layers are quantized one by one.
    bits: for weights and activations, 2 to 16; default: those of ``config``, which is
    `QConfig.onnxruntime()` where none is given (affine activations; `QConfig.tensorrt()` has
    symmetric ones). ``activation_range`` is not used: the range of the present input is the range.
    granularity: of the activations. "per_tensor": one scale for all of a layer's input.
    "per_token": one for each row along the last dimension of a Linear's input, one for each picture
    (or sequence) of a convolution's. Weights have ``config.weight_granularity``.
    weights_only: leave the activations in floating point. The result is then a QuantizedModel, as
    `PTQQuantizer.quantize_weights` gives it.

    Raises QuantizationError for an unknown granularity or a config without weight bits, and
    UnsupportedError, naming the layer, where a sum of products could exceed int32.
    """
    check_float(model)
    config = config or QConfig.onnxruntime()
    config = config if bits is None else config.with_bits(bits)
    if config.weight_bits is None:
        raise QuantizationError("quantize_dynamic rounds the weights: give config weight_bits.")
    _check_granularity(granularity)
    if weights_only:
        config = replace(config, activation_bits=None)
    ahead = PTQQuantizer(model, config=replace(config, activation_bits=None)).quantize_weights()
    return ahead if config.activation_bits is None else round_inputs(ahead, config, granularity)


def round_inputs(quantized: QuantizedModel, config: QConfig, granularity: str) -> DynamicModel:
    """A weight-only model whose layers round their inputs from now on; ``quantized`` is used up.

    ``config`` says with how many bits, and whether symmetrically.
    """
    module, left_in_float = quantized.module, dict(quantized.left_in_float)
    if isinstance(module, fx.GraphModule):
        left_in_float |= _between_layers(module)
    made: dict[nn.Module, DynamicLayer] = {}  # a layer under two names stays one
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(layer, QuantizedLayer):
            continue
        kind = type(layer.float_layer)
        if kind not in TOKEN_DIMENSIONS:
            left_in_float[path] = f"only the weights of {kind.__name__} are integers"
            continue
        if layer not in made:
            quantizer = DynamicQuantizer(
                config.activation_grid, config.activation_symmetric, granularity,
                TOKEN_DIMENSIONS[kind], layer.name,
            )  # fmt: skip
            made[layer] = DynamicLayer(layer, quantizer)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, made[layer])
    return DynamicModel(module, config, granularity, left_in_float)


def _check_granularity(granularity: str) -> None:
    if granularity not in GRANULARITIES:
        raise QuantizationError(
            f"granularity must be 'per_tensor' or 'per_token', got {granularity!r}; weights have "
            "their own, QConfig.weight_granularity."
        )


def _between_layers(module: fx.GraphModule) -> dict[str, str]:
    """Operations that static quantization computes with integers and this scheme does not."""
    why = "computed in floating point between the layers, whose outputs are not rounded"
    return {
        node.name: why
        for node, kind in kinds_of(module).items()
        if kind in (Kind.BINARY, Kind.CURVE, Kind.SOFTMAX)
    }


class DynamicModel(ConvertedModel):
    """The network after `quantize_dynamic`: same inputs and outputs.

    ``config`` and ``granularity`` say how it was made, ``left_in_float`` what is computed in
    floating point and why. (Clamps, pooling and reshapes between the layers work on floating-point
    outputs, and are not listed.)
    """

    def __init__(
        self, module: nn.Module, config: QConfig, granularity: str, left_in_float: dict[str, str]
    ) -> None:
        super().__init__(module, config, left_in_float)
        self.granularity = granularity

    def dynamic_layers(self) -> dict[str, DynamicLayer]:
        """The layers that round their input at run time, by their path in the user's model."""
        return {m.name: m for m in self.module.modules() if isinstance(m, DynamicLayer)}

    def codes_of(self, *inputs: Tensor) -> dict[str, QTensor]:
        """Run once; the integers that each layer made of its input, with their scales."""
        seen: dict[str, QTensor] = {}

        def keep(layer: DynamicLayer, given: tuple[Tensor, ...]) -> None:
            seen[layer.name] = layer.quantizer.codes(given[0])

        hooks = [m.register_forward_pre_hook(keep) for m in self.dynamic_layers().values()]
        try:
            with torch.no_grad():
                self(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


class DynamicQuantizer(nn.Module):
    """Chooses scale and zero point from each tensor that it is given, and rounds to them.

    granularity: "per_tensor", or "per_token": one scale for each block of the last
    ``token_dimensions`` dimensions. Raises QuantizationError, with the layer's ``name``, for NaN,
    infinity, or an empty input.
    """

    def __init__(
        self, grid: IntGrid, symmetric: bool, granularity: str, token_dimensions: int = 1,
        name: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        _check_granularity(granularity)
        self.grid, self.symmetric, self.granularity = grid, symmetric, granularity
        self.token_dimensions, self.name = token_dimensions, name

    @property
    def largest(self) -> int:
        """Bound of |code - zero point|, whatever the zero point will be."""
        if self.symmetric:
            return max(-self.grid.qmin, self.grid.qmax)
        return self.grid.qmax - self.grid.qmin

    def qparams(self, x: Tensor) -> QParams:
        """Scale and zero point from the smallest and largest value of x, or of each token of x."""
        block_size = None
        if self.granularity == "per_token":
            whole = min(self.token_dimensions, x.dim())
            block_size = (1,) * (x.dim() - whole) + (-1,) * whole
        try:
            low, high = block_minmax(x.detach(), block_size)
            return choose_qparams(low, high, self.grid, self.symmetric, block_size)
        except QuantizationError as error:
            raise type(error)(f"layer {self.name!r}, its input at run time: {error}") from error

    def codes(self, x: Tensor) -> QTensor:
        """The integers that stand for x, with the scales that were just chosen."""
        qparams = self.qparams(x)
        return QTensor(quantize(x, qparams), qparams)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams(x))

    def extra_repr(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.granularity}, {kind}, bits={self.grid.bits}"


class DynamicLayer(LayerStandIn):
    """A layer that rounds its input at run time, multiplies integers, and returns floating point.

        codes of the input  ->  int32 sums of products  ->  times s_x * s_w, plus the float bias

    ``quantized`` is the layer with integer weights, ``quantizer`` rounds its input. With weights
    per group each group has an int32 sum of its own, and these are added in floating point.
    Raises UnsupportedError, naming the layer, where a sum could exceed int32, for codebooks, and
    for weights per group in a convolution with groups.
    """

    stands_for = "quantized"

    def __init__(self, quantized: QuantizedLayer, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.quantized, self.quantizer, self.name = quantized, quantizer, quantized.name
        if quantized.codebook is not None:
            raise UnsupportedError(
                f"layer {self.name!r}: a codebook has no integer product; use weights_only=True."
            )
        rows = less_zero_point(quantized.weight_qtensor).movedim(quantized.channel_axis, 0)
        self.bound = rows.flatten(1).double().abs().sum(1).max().item() * quantizer.largest
        if self.bound > INT32_MAX:
            raise UnsupportedError(
                f"layer {self.name!r}: a sum of products can reach {self.bound:.3g}, beyond int32. "
                "Use fewer bits, or keep it in floating point (float_layers)."
            )
        if len(self._weight_scales()) > 1 and getattr(quantized.float_layer, "groups", 1) > 1:
            raise UnsupportedError(
                f"layer {self.name!r}: weights per group in a convolution with groups have no "
                "dynamic form here; use weight_granularity='per_channel'."
            )

    @property
    def weight(self) -> Tensor:
        return self.quantized.weight

    @property
    def bias(self) -> Tensor | None:
        return self.quantized.bias

    def forward(self, input: Tensor, **options: object) -> Tensor:
        check_call(self.quantized.float_layer, self.name, input, options)
        x, given = input, self.quantizer.codes(input)
        # Parts of the input channels that share a weight scale; one part unless there are groups.
        scales, axis = self._weight_scales(), self.quantized.channel_axis
        integers = less_zero_point(given)
        inputs = integers.chunk(len(scales), dim=-self.quantizer.token_dimensions)
        weights = less_zero_point(self.quantized.weight_qtensor).chunk(len(scales), dim=1 - axis)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        output = torch.zeros((), dtype=dtype, device=x.device)
        for part, weight, weight_scale in zip(inputs, weights, scales, strict=True):
            sums = self.sums(part, weight)
            output = output + sums.to(dtype) * (given.qparams.scale * weight_scale).to(dtype)
        if self.quantized.bias is not None:
            output = output + self._per_channel(self.quantized.bias.to(dtype))
        return output.to(x.dtype)

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """int32 sums of products of integers that float32 tensors hold. Exact.

        In float32 where that is exact, else in float64 (`exact.exact_product`).
        """
        layer = self.quantized.float_layer
        operation = OPERATIONS[type(layer)]
        return exact_product(
            lambda given, w: operation(layer, given, w, None),
            x, weight, self.bound, self.quantizer.largest,
        )  # fmt: skip

    def simulate(self, x: Tensor) -> Tensor:
        """The layer by fake quantization: equal to `forward` up to floating-point rounding."""
        return self.quantized(self.quantizer(x))

    def _weight_scales(self) -> list[Tensor]:
        """Weight scales that broadcast against the output: one tensor for each group of inputs."""
        scale, axis = self.quantized.weight_scale, self.quantized.channel_axis
        if scale.dim() == 0:
            return [scale]
        by_row = scale.movedim(axis, 0).flatten(1)
        layer = self.quantized.float_layer
        repeats = getattr(layer, "groups", 1) if axis == 1 else 1  # ConvTranspose shares its rows
        return [self._per_channel(column.repeat(repeats)) for column in by_row.unbind(1)]

    def _per_channel(self, values: Tensor) -> Tensor:
        """[channels], shaped to broadcast against the output."""
        return values.reshape(-1, *(1,) * (self.quantizer.token_dimensions - 1))


def less_zero_point(q: QTensor) -> Tensor:
    """Codes less their zero points: what is multiplied, as integers that float32 holds."""
    p = q.qparams
    unit = QParams(torch.ones_like(p.scale), p.zero_point, p.grid, p.block_size)
    return dequantize(q.codes, unit)
