"""Convolutions, pooling, padding and resizing of Keras, channels first. Chapter 15.

``padding="same"`` pads so that the output has ceil(input / stride) places. Where that is an odd
number, the extra zero stands at the end, for which PyTorch's layers have no setting. What is missed
there is a separate F.pad, a pooling in ceil_mode, or an output that is one place too long and cut.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.deploy.keras.calls import Call, tensor
from ptq_course.deploy.keras.curves import activated
from ptq_course.deploy.keras.files import import_keras

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
GLOBAL_AVERAGE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
Sides = list[tuple[int, int]]


def _dims(call: Call) -> int:
    """The spatial dimensions of a call whose layer keeps its channels last."""
    if getattr(call.layer, "data_format", "channels_last") != "channels_last":
        raise call.refusal("keeps its channels first", "build it with data_format='channels_last'")
    return len(call.shape) - 2


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def same_sides(call: Call, kernel: Sequence[int], stride: Sequence[int]) -> Sides:
    """What ``padding="same"`` adds (before, behind) along each axis; ``kernel`` with its dilation.

    Raises UnsupportedError where a stride makes it depend on a size that the model leaves open.
    """
    sides = []
    for size, width, step in zip(call.shape[1:-1], kernel, stride, strict=True):
        if step == 1:
            total = width - 1
        elif size is None:
            raise call.refusal(
                "pads to 'same' with a stride, and the size of its input is open",
                "build the model with a fixed input size, such as Input((224, 224, 3))",
            )
        else:
            total = max((-(-size // step) - 1) * step + width - size, 0)
        sides.append((total // 2, total - total // 2))
    return sides


def _padded(call: Call, x: fx.Node, sides: Sides) -> fx.Node:
    """Zeros around x; F.pad counts from the last axis."""
    if not any(map(any, sides)):
        return x
    return call.function(F.pad, x, tuple(n for pair in reversed(sides) for n in pair))


def _convolution(
    call: Call, x: fx.Node, kernel: Any, bias: Any, groups: int, suffix: str = ""
) -> fx.Node:
    """A convolution with the padding of the layer; kernel: a tensor [out, in / groups, ...]."""
    layer, dims = call.layer, _dims(call)
    size = tuple(kernel.shape[2:])
    stride, dilation = _each(layer.strides, dims), _each(layer.dilation_rate, dims)
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    sides = [(0, 0)] * dims
    if layer.padding == "same":
        sides = same_sides(call, reach, stride)
    elif layer.padding == "causal":
        sides = [(reach[0] - 1, 0)]
    if all(before == behind for before, behind in sides):
        padding = tuple(before for before, _ in sides)
    else:
        x, padding = _padded(call, x, sides), (0,) * dims
    module = CONVOLUTIONS[dims](
        kernel.shape[1] * groups, kernel.shape[0], size, stride, padding, dilation, groups,
        bias is not None,
    )  # fmt: skip
    _fill(module, kernel, bias)
    return call.module(module, x, suffix)


def _fill(module: Any, kernel: torch.Tensor, bias: Any) -> None:
    module.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(tensor(bias), requires_grad=False)


def _bias(layer: Any) -> Any:
    return layer.bias if layer.use_bias else None


def _depthwise_kernel(variable: Any) -> torch.Tensor:
    """[..., in, multiplier] -> [in * multiplier, 1, ...]."""
    kernel = tensor(variable)
    dims = kernel.dim() - 2
    return kernel.permute(dims, dims + 1, *range(dims)).flatten(0, 1).unsqueeze(1)


def _kernel(variable: Any) -> torch.Tensor:
    """[..., in, out] -> [out, in, ...]."""
    kernel = tensor(variable)
    dims = kernel.dim() - 2
    return kernel.permute(dims + 1, dims, *range(dims))


def convolution(call: Call) -> fx.Node:
    """Conv1D, Conv2D, Conv3D."""
    kernel = _kernel(call.layer.kernel)
    made = _convolution(call, call.x, kernel, _bias(call.layer), call.layer.groups)
    return activated(call, made)


def depthwise(call: Call) -> fx.Node:
    """DepthwiseConv1D, DepthwiseConv2D."""
    kernel = _depthwise_kernel(call.layer.kernel)
    made = _convolution(call, call.x, kernel, _bias(call.layer), int(call.shape[-1] or 0))
    return activated(call, made)


def separable(call: Call) -> fx.Node:
    """SeparableConv1D, SeparableConv2D: two convolutions, the second of width 1."""
    layer, dims = call.layer, _dims(call)
    kernel = _depthwise_kernel(layer.depthwise_kernel)
    x = _convolution(call, call.x, kernel, None, int(call.shape[-1] or 0), "depthwise")
    kernel, bias = _kernel(layer.pointwise_kernel), _bias(layer)
    mixing = CONVOLUTIONS[dims](kernel.shape[1], kernel.shape[0], 1, bias=bias is not None)
    _fill(mixing, kernel, bias)
    return activated(call, call.module(mixing, x, "pointwise"))


def transposed(call: Call) -> fx.Node:
    """Conv1DTranspose, Conv2DTranspose: "same" gives input * stride places."""
    layer, dims = call.layer, _dims(call)
    kernel = _kernel(layer.kernel)  # Keras has [..., out, in] here, so that this is [in, out, ...]
    size, bias = tuple(kernel.shape[2:]), _bias(layer)
    stride, dilation = _each(layer.strides, dims), _each(layer.dilation_rate, dims)
    given = layer.output_padding
    extra = [None] * dims if given is None else list(_each(given, dims))
    cuts = [
        _cut((k - 1) * d + 1, s, more, layer.padding)
        for k, d, s, more in zip(size, dilation, stride, extra, strict=True)
    ]
    longer = tuple(max(-behind, 0) for _, behind in cuts)
    if any(n >= max(s, d) for n, s, d in zip(longer, stride, dilation, strict=True)):
        raise call.refusal("has an output_padding as large as its stride")
    module = TRANSPOSED[dims](
        kernel.shape[0], kernel.shape[1], size, stride, tuple(before for before, _ in cuts),
        longer, groups=1, bias=bias is not None, dilation=dilation,
    )  # fmt: skip
    _fill(module, kernel, bias)
    x = call.module(module, call.x)
    return activated(call, _cut_off(call, x, [(0, max(r - b, 0)) for b, r in cuts]))


def _cut(reach: int, stride: int, extra: int | None, padding: str) -> tuple[int, int]:
    """How many places a transposed convolution loses (before, behind); below 0: gains."""
    if padding == "valid":
        return 0, -(max(reach, stride) - reach if extra is None else extra)
    total = stride + reach - 2 if extra is None else reach + reach % 2 - 2 + extra
    before = min(total - total // 2, reach - 1)
    return reach - 1 - before, reach - 1 - (total - before)


def _cut_off(call: Call, x: fx.Node, sides: Sides) -> fx.Node:
    if not any(map(any, sides)):
        return x
    cuts = [slice(before, -behind if behind else None) for before, behind in sides]
    return call.function(operator.getitem, x, (slice(None), slice(None), *cuts))


def _pooling(call: Call, kinds: dict[int, Callable[..., nn.Module]], **settings: Any) -> fx.Node:
    layer, dims = call.layer, _dims(call)
    size, stride = _each(layer.pool_size, dims), _each(layer.strides, dims)
    if layer.padding == "valid":
        return call.module(kinds[dims](size, stride, **settings), call.x)
    sides = same_sides(call, size, stride)
    uneven = [before != behind for before, behind in sides]
    if any(uneven) and settings and _repeats_border():
        warnings.warn(
            f"from_keras: layer {call.path!r} averages over a border of uneven width. Keras on "
            "PyTorch repeats the picture there; TensorFlow and JAX leave the border out, and so "
            "does the converted module.",
            stacklevel=2,
        )
    # Where the stride is 1, one more place before, whose output is cut off; else ceil_mode.
    lead = [odd and step == 1 for odd, step in zip(uneven, stride, strict=True)]
    padding = tuple(before + more for (before, _), more in zip(sides, lead, strict=True))
    ceil = any(odd and not more for odd, more in zip(uneven, lead, strict=True))
    if ceil:
        settings = {**settings, "ceil_mode": True}
    x = call.module(kinds[dims](size, stride, padding, **settings), call.x)
    return _cut_off(call, x, [(int(more), 0) for more in lead])


def _repeats_border() -> bool:
    return import_keras().backend.backend() == "torch"


def max_pooling(call: Call) -> fx.Node:
    """MaxPooling1D, 2D, 3D."""
    return _pooling(call, MAX_POOLS)


def average_pooling(call: Call) -> fx.Node:
    """AveragePooling1D, 2D, 3D: what was padded does not count."""
    return _pooling(call, AVERAGE_POOLS, count_include_pad=False)


def _global(call: Call, kinds: dict[int, Callable[..., nn.Module]]) -> fx.Node:
    x = call.module(kinds[_dims(call)](1), call.x)
    return x if call.layer.keepdims else call.function(torch.flatten, x, 1)


def global_max(call: Call) -> fx.Node:
    """GlobalMaxPooling1D, 2D, 3D."""
    return _global(call, GLOBAL_MAX)


def global_average(call: Call) -> fx.Node:
    """GlobalAveragePooling1D, 2D, 3D."""
    return _global(call, GLOBAL_AVERAGE)


def upsampling(call: Call) -> fx.Node:
    """UpSampling1D, 2D, 3D: nearest, or bilinear."""
    layer, dims = call.layer, _dims(call)
    mode = getattr(layer, "interpolation", "nearest")
    if mode not in ("nearest", "bilinear"):
        raise call.refusal(f"interpolates by {mode}", "use nearest or bilinear")
    align = False if mode == "bilinear" else None
    scale = tuple(float(n) for n in _each(layer.size, dims))
    return call.module(nn.Upsample(scale_factor=scale, mode=mode, align_corners=align), call.x)


def _pairs(value: Any, dims: int) -> Sides:
    """Keras's padding: a number, a number an axis, or a pair an axis; of one axis also a pair."""
    if isinstance(value, int):
        return [(value, value)] * dims
    value = list(value)
    if dims == 1 and len(value) == 2:
        return [(value[0], value[1])]
    return [(v, v) if isinstance(v, int) else (v[0], v[1]) for v in value]


def zero_padding(call: Call) -> fx.Node:
    """ZeroPadding1D, 2D, 3D."""
    return _padded(call, call.x, _pairs(call.layer.padding, _dims(call)))


def cropping(call: Call) -> fx.Node:
    """Cropping1D, 2D, 3D."""
    return _cut_off(call, call.x, _pairs(call.layer.cropping, _dims(call)))


def _forms(name: str, dims: Sequence[int]) -> list[str]:
    return [name.replace("#", f"{n}D") for n in dims]


WINDOWS: dict[str, Callable[[Call], fx.Node]] = {
    name: converter
    for pattern, dims, converter in (
        ("Conv#", (1, 2, 3), convolution),
        ("DepthwiseConv#", (1, 2), depthwise),
        ("SeparableConv#", (1, 2), separable),
        ("Conv#Transpose", (1, 2, 3), transposed),
        ("MaxPooling#", (1, 2, 3), max_pooling),
        ("AveragePooling#", (1, 2, 3), average_pooling),
        ("GlobalMaxPooling#", (1, 2, 3), global_max),
        ("GlobalAveragePooling#", (1, 2, 3), global_average),
        ("UpSampling#", (1, 2, 3), upsampling),
        ("ZeroPadding#", (1, 2, 3), zero_padding),
        ("Cropping#", (1, 2, 3), cropping),
    )
    for name in _forms(pattern, dims)
}
