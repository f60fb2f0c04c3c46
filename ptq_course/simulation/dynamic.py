"""Dynamic quantization: weights rounded beforehand, activation scales computed from each input.

Chapter 07. No calibration data is needed. At run time each layer looks at the range of what it was
given, chooses scale and zero point, rounds its input to integers, multiplies integers by integers
into int32, and returns floating point. So activations *are* quantized, only later than in static
quantization, and what stands between the layers (adds, softmax) stays in floating point.

One scale for each token is the choice of Yao, Aminabadi, Zhang, Wu, Li, He, "ZeroQuant: Efficient
and Affordable Post-Training Quantization for Large-Scale Transformers", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError, flag
from ptq_course.graph import Kind, kinds_of
from ptq_course.graph.layer_types import known_type
from ptq_course.graph.recurrent import LSTM, Recurrent
from ptq_course.grids.affine import IntGrid, QTensor
from ptq_course.simulation.dynamic_layers import (
    DynamicLayer,
    DynamicQuantizer,
    check_granularity,
)
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import ConvertedModel, QuantizedModel, check_float
from ptq_course.simulation.quantizer import PTQQuantizer


def quantize_dynamic(
    model: nn.Module,
    bits: int | None = None,
    granularity: str = "per_token",
    weights_only: bool = False,
    *,
    config: QConfig | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
) -> DynamicModel | QuantizedModel:
    """Quantize a trained model without data: its weights now, its activations at run time.

    model: any nn.Module; it is copied and never changed. Batch norm is folded where it can be
    traced, else the layers are quantized one by one.
    bits: for weights and activations, 2 to 16; default: those of ``config``, which is
    `QConfig.onnxruntime()` where none is given (affine activations; `QConfig.tensorrt()` has
    symmetric ones). ``activation_range`` is not used: the range of the present input is the range.
    granularity: of the activations. "per_tensor": one scale for all of a layer's input.
    "per_token": one for each row along the last dimension of a Linear's input, one for each picture
    (or sequence) of a convolution's. ONNX files have one scale for the tensor, whichever was
    simulated (`deploy.onnx.export`). Weights have ``config.weight_granularity``.
    weights_only: leave the activations in floating point. The result is then a QuantizedModel, as
    `PTQQuantizer.quantize_weights` gives it.

    example: an input, for layers whose forward() asks for its shape (see `PTQQuantizer`).

    Raises QuantizationError for an unknown granularity or a config without weight bits, and
    UnsupportedError, naming the layer, where a sum of products could exceed int32.
    """
    check_float(model)
    config = config or QConfig.onnxruntime()
    config = config if bits is None else config.with_bits(bits)
    if config.weight_bits is None:
        raise QuantizationError("quantize_dynamic rounds the weights: give config weight_bits.")
    check_granularity(granularity)
    if flag("weights_only", weights_only):
        config = replace(config, activation_bits=None)
    elif config.activation_format or (config.weight_format and config.activation_bits):
        found = config.weight_format or config.activation_format
        raise UnsupportedError(
            f"quantize_dynamic multiplies integers, and the config has {found!r}; use "
            "weights_only=True, or PTQQuantizer, which simulates floats with calibrated scales."
        )
    weights = replace(config, activation_bits=None)
    ahead = PTQQuantizer(model, config=weights, example=example).quantize_weights()
    return ahead if config.activation_bits is None else round_inputs(ahead, config, granularity)


def round_inputs(quantized: QuantizedModel, config: QConfig, granularity: str) -> DynamicModel:
    """A weight-only model whose layers round their inputs from now on; ``quantized`` is used up.

    ``config`` says with how many bits, and whether symmetrically.
    """
    module, left_in_float = quantized.module, dict(quantized.left_in_float)
    if isinstance(module, fx.GraphModule):
        left_in_float |= _between_layers(module)
    made: dict[nn.Module, DynamicLayer] = {}  # a layer under two names stays one
    grid = config.activation_grid
    if not isinstance(grid, IntGrid):
        raise QuantizationError("round_inputs: the config rounds no activations to integers.")
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(layer, QuantizedLayer):
            continue
        parent, _, name = path.rpartition(".")
        owner = module.get_submodule(parent)
        kind = known_type(layer.float_layer)
        stays = isinstance(owner, Recurrent) and not isinstance(owner, LSTM)
        if stays or not kind.token_dimensions:
            of = type(owner if stays else layer.float_layer).__name__
            left_in_float[path] = f"only the weights of {of} are integers"
            continue
        if layer not in made:
            quantizer = DynamicQuantizer(
                grid, config.activation_symmetric, granularity,
                kind.token_dimensions, layer.name,
            )  # fmt: skip
            made[layer] = DynamicLayer(layer, quantizer)
        setattr(owner, name, made[layer])
    return DynamicModel(module, config, granularity, left_in_float)


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
