"""A detector whose layers have widths of their own: weights rounded one by one, and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ptq_classroom.pictures.average_precision import Matches, match
from ptq_classroom.pictures.boxes import detections
from ptq_classroom.pictures.detection import Scenes
from ptq_classroom.pictures.detector import load_detector
from ptq_course.grids.affine import IntGrid, block_minmax, choose_qparams, fake_quantize
from ptq_course.improve.pairs import prepared
from ptq_course.simulation.network import shallow_copy

SCALE_BYTES = 4  # a float32 scale


def rounded(weight: Tensor, bits: int, per_channel: bool = False) -> Tensor:
    """A layer's weight on its grid: symmetric, min-max, one scale for the layer (or a channel)."""
    block_size = (1, *weight.shape[1:]) if per_channel else None
    low, high = block_minmax(weight, block_size)
    grid = IntGrid(bits, narrow=True)
    qparams = choose_qparams(low, high, grid, symmetric=True, block_size=block_size)
    return fake_quantize(weight, qparams)


def int4(weight: Tensor) -> Tensor:
    """`rounded` with 4 bits and one scale for the whole layer."""
    return rounded(weight, 4)


def folded() -> nn.Module:
    """The shipped detector, traced, its batch norms folded into the convolutions."""
    return prepared(load_detector())


def layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions by path, in the order of the network."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def layer_bytes(layer: nn.Conv2d, bits: int, per_channel: bool = False) -> int:
    """Bytes of a layer's weights at this width, with its scales where they are integers."""
    scales = layer.out_channels if per_channel else 1
    return layer.weight.numel() * bits // 8 + (SCALE_BYTES * scales if bits <= 8 else 0)


def file_bytes(model: nn.Module, widths: Mapping[str, int], per_channel: bool = False) -> int:
    """Bytes of all weights; a layer that `widths` does not name has 32 bits."""
    found = layers(model).items()
    return sum(layer_bytes(layer, widths.get(name, 32), per_channel) for name, layer in found)


def with_widths(
    model: nn.Module, widths: Mapping[str, int], per_channel: bool = False
) -> nn.Module:
    """A copy whose named layers have weights rounded to so many bits; 16: float16, 32: as it is."""
    copy = shallow_copy(model)
    for name, bits in widths.items():
        layer = cast(nn.Conv2d, copy.get_submodule(name))
        weight = layer.weight.detach()
        if bits == 16:
            weight = weight.half().float()
        elif bits < 16:
            weight = rounded(weight, bits, per_channel)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return copy


def outputs(model: Callable, scenes: Scenes) -> Tensor:
    """The output of a detector, or of a session that runs its file: [N, 144, 5 + classes]."""
    with torch.inference_mode():
        parts = [torch.as_tensor(model(part)) for part in scenes.inputs().split(50)]
        return torch.cat(parts).clone()


def matches(model: Callable, scenes: Scenes) -> Matches:
    """Which of its detections show an object (overlap of at least 0.5): what mAP is made from."""
    return match(detections(outputs(model, scenes)), scenes, (0.5,))
