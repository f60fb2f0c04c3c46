"""The network after conversion: the same module, every value on its integer grid. Chapter 06."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import AnyQParams
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.qconfig import QConfig


class ConvertedModel(nn.Module):
    """Base of `QuantizedModel` and `DynamicModel`: same inputs and outputs as the float model.

    ``config`` says how it was made, ``left_in_float`` what is computed in floating point, and why.
    """

    def __init__(self, module: nn.Module, config: QConfig, left_in_float: dict[str, str]) -> None:
        super().__init__()
        self.module = module
        self.config = config
        self.left_in_float = left_in_float
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        if isinstance(self.module, fx.GraphModule):
            self._check_arguments(self.module.graph, len(inputs), set(named))
        return self.module(*inputs, **named)

    @staticmethod
    def _check_arguments(graph: fx.Graph, count: int, named: set[str]) -> None:
        """Options of the float model's forward() are fixed since it was traced; say so."""
        names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
        if any(name.startswith("*") for name in names):
            return
        if count > len(names) or named - set(names):
            extra = sorted(named - set(names)) or f"{count} arguments"
            raise QuantizationError(
                f"the quantized network takes ({', '.join(names)}), got {extra}. Arguments with a "
                "default were fixed to it when the model was traced; to quantize with others, "
                "wrap the model in one whose forward() requires them."
            )

    def quantized_layers(self) -> dict[str, QuantizedLayer]:
        """The layers with integer weights, by their path in the user's model."""
        return {m.name: m for m in self.module.modules() if isinstance(m, QuantizedLayer)}

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """`to`, `half`, `double`: another device is welcome, another dtype would change scales."""
        if fn(torch.zeros(1)).dtype != torch.float32:
            raise QuantizationError(
                "a quantized model keeps its dtype: its scales were chosen in it. Convert the "
                "float model first (model.half()), then quantize."
            )
        return super()._apply(fn, recurse)


class QuantizedModel(ConvertedModel):
    """What `PTQQuantizer.convert` returns; ``qparams`` holds the QParams of each value.

    It simulates integers in floating point; `deploy.onnx.export` writes real ones.
    """

    def __init__(
        self, module: nn.Module, config: QConfig, qparams: dict[str, AnyQParams],
        left_in_float: dict[str, str],
    ) -> None:  # fmt: skip
        super().__init__(module, config, left_in_float)
        self.qparams = qparams


def check_float(model: nn.Module) -> None:
    """Raise QuantizationError where ``model`` is no module, or holds quantized parts already."""
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"model must be an nn.Module, got {type(model).__name__}.")
    for name, part in model.named_modules():
        if isinstance(part, (ConvertedModel, QuantizedLayer, ActivationQuantizer)):
            raise QuantizationError(
                f"the model is quantized already ({name or 'itself'} is a {type(part).__name__}): "
                "pass the float model that it was made from."
            )
