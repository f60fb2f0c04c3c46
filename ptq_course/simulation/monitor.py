"""Do live data still fit the calibrated ranges? The share of values that the grid clips.

Chapter 09. Calibration chooses a range from a few hundred examples; what lies beyond it later is
clipped without a word. Counting it needs no labels and next to no time:

    with ClippingMonitor(quantized) as monitor:
        for x in live_batches:
            quantized(x)
    monitor.shares()                        # {"x": 0.0007, "relu": 0.0021, ...}

A high share says that live data are larger than calibration data. It says nothing where they are
smaller (dark pictures on a range made for bright ones): see the chapter.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import AnyQParams, FloatQParams, unclamped_codes
from ptq_course.grids.float_scales import outside_float
from ptq_course.simulation.layers import ActivationQuantizer


def clipped_share(x: Tensor, qparams: AnyQParams) -> float:
    """Share, 0 to 1, of the values of x whose code `quantize` would have to clamp.

    x: floating point, any shape. A value up to half a step beyond the last level still rounds to
    it and counts as inside. Raises QuantizationError for an empty tensor, integers or NaN and
    UnsupportedError for qparams that are not per-tensor.
    """
    return _outside(x, qparams) / x.numel()


class ClippingMonitor:
    """Counts clipped values of every quantized activation while a quantized model runs.

    quantized: a `QuantizedModel`, or any module that holds `ActivationQuantizer`s. It computes what
    it computes without the monitor. Counts from before stay when the monitor is entered again;
    `reset` forgets them. Raises QuantizationError for a model without quantized activations.
    """

    def __init__(self, quantized: nn.Module) -> None:
        self._model = quantized
        self._quantizers = _named_quantizers(quantized)
        if not self._quantizers:
            raise QuantizationError(
                f"{type(quantized).__name__} quantizes no activations, so nothing can be clipped: "
                "give the result of PTQQuantizer.convert() with activation_bits set."
            )
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self._clipped = dict.fromkeys(self._quantizers, 0)
        self._seen = dict.fromkeys(self._quantizers, 0)

    def shares(self) -> dict[str, float]:
        """Share, 0 to 1, of clipped values for each tensor value that was reached, in order.

        Raises CalibrationError before any live data.
        """
        found = {n: self._clipped[n] / seen for n, seen in self._seen.items() if seen}
        if not found:
            raise CalibrationError(
                "ClippingMonitor: no live data yet: run the model inside `with monitor:`."
            )
        return found

    def __enter__(self) -> ClippingMonitor:
        if self._hooks:
            raise QuantizationError("ClippingMonitor is running already: leave its block first.")
        done: set[str] = set()
        traced = any(isinstance(part, fx.GraphModule) for part in self._model.modules())
        self._hooks.append(self._model.register_forward_pre_hook(lambda *_: done.clear()))
        for name, quantizer in self._quantizers.items():

            def count(module: ActivationQuantizer, inputs: tuple, name: str = name) -> None:
                # A value that pooling or reshaping passes on is rounded again: count it once.
                # Without a graph every call is another value: the layer was called again.
                if inputs[0].numel() and (name not in done or not traced):
                    done.add(name)
                    self._clipped[name] += _outside(inputs[0], module.qparams, name)
                    self._seen[name] += inputs[0].numel()

            self._hooks.append(quantizer.register_forward_pre_hook(count))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _outside(x: Tensor, qparams: AnyQParams, name: str = "clipped_share") -> int:
    """How many values round to a code outside the grid."""
    if qparams.block_size is not None:
        raise UnsupportedError(
            f"{name}: counts clipped values of per-tensor activations, got block_size "
            f"{qparams.block_size}."
        )
    if not x.is_floating_point() or x.numel() == 0:
        raise QuantizationError(
            f"{name}: needs a floating-point tensor with values, got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    if bool(torch.isnan(x.detach().sum())) and bool(torch.isnan(x).any()):  # inf - inf is NaN too
        raise QuantizationError(f"{name}: the live data hold NaN: find the layer that makes it.")
    if isinstance(qparams, FloatQParams):
        return outside_float(x.detach(), qparams)
    codes = unclamped_codes(x.detach(), qparams)
    return int(((codes < qparams.grid.qmin) | (codes > qparams.grid.qmax)).sum())


def _named_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Every ActivationQuantizer by the name of its tensor value, or else by its path."""
    return {
        module.name or path: module
        for path, module in model.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
