"""Weights on any grid of small floats, of one's own too, without a quantizer. Chapter 13.

    found = float_weights(model, mxfp4)
    PTQQuantizer(found.module, config=QConfig(weight_bits=None))     # then the activations

Each row of a layer's matrix is rounded as `grids.floats` says, or by functions of one's own; the
module holds the rounded weights as float32. `QConfig(weight_format="mxfp4")` does the same for the
named formats, with codes: its layers are stored in few bits, and a row that whole blocks do not
fill ends with a shorter one, where this leaves the layer out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph.layer_types import layer_type
from ptq_course.grids.floats import FloatQParams, fake_quantize_float
from ptq_course.improve.matrices import grouped, put_grouped
from ptq_course.improve.pairs import prepared

Choose = Callable[[Tensor], FloatQParams]
Apply = Callable[[Tensor, FloatQParams], Tensor]


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """A network with rounded weights.

    bits: what a weight takes, scales included, by layer. left_out: why other layers stayed.
    """

    module: fx.GraphModule
    bits: dict[str, float]
    left_out: dict[str, str]


def float_weights(
    model: nn.Module, choose: Choose, apply: Apply = fake_quantize_float, keep: Collection[str] = ()
) -> FloatWeights:
    """A traced, fused copy of ``model`` whose Linear and convolution weights lie on floats' grids.

    choose: scales and grid from rows [O, K], such as `floats.mxfp4`, whose blocks run along K.
    apply: from rows and what ``choose`` gave to the rounded rows. keep: layers that stay. So do
    those whose rows the blocks do not divide. Raises UnsupportedError where no layer is rounded.
    """
    module = prepared(model)
    bits: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, layer in module.named_modules():
        kind = layer_type(layer)
        if kind is None or not kind.foldable:
            continue
        if name in keep:
            left_out[name] = "asked to stay"
            continue
        view = grouped(layer)  # [G, O / G, I / G, taps]
        rows = view.flatten(0, 1).flatten(1)
        try:
            qparams = choose(rows)
            rounded = apply(rows, qparams)
        except QuantizationError as error:
            left_out[name] = str(error)
            continue
        bits[name] = qparams.nbits_per_value(rows.numel())
        put_grouped(layer, rounded.reshape(view.shape))
    if not bits:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UnsupportedError(f"float_weights: no layer was rounded. {reasons}")
    return FloatWeights(module, bits, left_out)
