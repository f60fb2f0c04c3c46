"""What each exhibit does to a real network: one number for a pipeline, broken or repaired.

Three are constructions, made to show the effect: activations moved away from zero ("affine"),
output channels spread ("channels"), batches made quieter ("collecting").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_classroom.chapters.ch16.museum import EXHIBITS, Pipeline
from ptq_classroom.pictures.datasets import Split, load_split, loader
from ptq_classroom.pictures.evaluate import logits
from ptq_classroom.pictures.models import load_model
from ptq_course.grids.metrics import correct, snr_pooled


@cache
def net() -> nn.Module:
    """The residual network."""
    return load_model("resnet").eval()


@cache
def test() -> Split:
    """400 test pictures."""
    return load_split("test")[:400]


@cache
def batches() -> tuple[Tensor, ...]:
    """64 calibration pictures, 32 at a time."""
    return tuple(x for x, *_ in loader(load_split("calibration"), batch_size=32, limit=64))


@cache
def last_layer() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of the last layer, on the calibration pictures."""
    model, kept = copy.deepcopy(net()), []
    layer = model.get_submodule("fc")
    layer.register_forward_pre_hook(lambda _, x: kept.append(x[0]))
    with torch.no_grad():
        model(torch.cat(batches()))
    weight, bias = (layer.get_parameter(name).detach() for name in ("weight", "bias"))
    return kept[0], weight, bias


def right(model: nn.Module) -> Tensor:
    """1.0 for each of the test pictures that is answered right."""
    return correct(logits(model, test()), test().labels).double()


def with_rounded_inputs(peaks: dict[str, float], source: nn.Module | None = None) -> nn.Module:
    """The network with the inputs of its layers, but for the pictures, on grids up to the peaks."""
    model = copy.deepcopy(net() if source is None else source)
    for name, peak in peaks.items():
        if name != "conv":
            scale = peak / 127
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, x, s=scale: ((x[0] / s).round().clamp(-127, 127) * s,)
            )
    return model


def accuracy_of_peaks(pipeline: Pipeline) -> float:
    """Percent right with the scales that the pipeline found."""
    return 100 * right(with_rounded_inputs(pipeline(net(), list(batches())))).mean().item()


def accuracy_after_ranges(pipeline: Pipeline) -> float:
    """Percent right of the float network, after its output range was collected four at a time."""
    model = copy.deepcopy(net())
    pipeline(model, list(torch.cat(batches()).split(4)))
    return 100 * right(model.eval()).mean().item()


def released(*repairs: str) -> Tensor:
    """Right answers of an INT8 network that went through "ranges" and "peaks", with these repairs.

    A float pass over the outputs first, four pictures at a time, then the peaks of what it left.
    """

    def pipeline(name: str) -> Pipeline:
        exhibit = EXHIBITS[name]
        return exhibit.repaired if name in repairs else exhibit.broken

    model = copy.deepcopy(net())
    pipeline("ranges")(model, list(torch.cat(batches()).split(4)))
    return right(with_rounded_inputs(pipeline("peaks")(model.eval(), list(batches())), model))


def decibels_of_codes(pipeline: Pipeline) -> float:
    """dB of the last layer's input, its range ending at the 99 % quantile."""
    x = last_layer()[0]
    scale = float(x.abs().quantile(0.99)) / 127
    return snr_pooled(x, pipeline(x, scale).float() * scale)


def decibels_of_affine(pipeline: Pipeline) -> float:
    """dB of the last layer's input, moved by 4 (a construction)."""
    x = last_layer()[0] + 4
    scale, zero = pipeline(float(x.min()), float(x.max()))
    return snr_pooled(x, scale * ((x / scale + zero).round().clamp(0, 255) - zero))


def decibels_of_linear(pipeline: Pipeline) -> float:
    """dB of the last layer's output."""
    x, weight, bias = last_layer()
    return snr_pooled(F.linear(x, weight, bias), pipeline(x, weight, bias))


def decibels_of_collecting(pipeline: Pipeline) -> float:
    """dB of the loud batch, three others having been made quieter (a construction)."""
    x = last_layer()[0]
    parts = [x[:16] / 8, x[16:32] / 4, x[32:48] / 2, x[48:]]
    scale = pipeline(parts)
    return snr_pooled(parts[-1], (parts[-1] / scale).round().clamp(-128, 127) * scale)


def decibels_of_folding(pipeline: Pipeline) -> float:
    """dB of the folded weight of a convolution in the network."""
    conv, norm = (net().get_submodule(f"layer2.{name}") for name in ("conv1", "bn1"))
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = nn.utils.fuse_conv_bn_eval(copy.deepcopy(conv), copy.deepcopy(norm)).weight.detach()
    codes, scale = pipeline(conv, norm)
    return snr_pooled(fused, codes.float() * scale[:, None, None, None])


def decibels_of_channels(pipeline: Pipeline) -> float:
    """dB of a transposed convolution, its channels spread from 0.1 to 10 (a construction)."""
    source = net().get_submodule("layer1.conv1").get_parameter("weight").detach()
    layer = nn.ConvTranspose2d(source.shape[0], source.shape[1], 3, bias=False)
    layer.weight.data = source * torch.logspace(-1, 1, source.shape[1])[:, None, None]
    x = torch.randn(4, source.shape[0], 6, 6, generator=torch.Generator().manual_seed(0))
    codes, scale = pipeline(layer)
    found = F.conv_transpose2d(x, codes.float()) * scale[:, None, None]
    return snr_pooled(layer(x).detach(), found)


SYMPTOMS: dict[str, tuple[Callable[[Pipeline], float], str]] = {
    "codes": (decibels_of_codes, "dB"),
    "peaks": (accuracy_of_peaks, "%"),
    "ranges": (accuracy_after_ranges, "%"),
    "affine": (decibels_of_affine, "dB"),
    "linear": (decibels_of_linear, "dB"),
    "collecting": (decibels_of_collecting, "dB"),
    "folding": (decibels_of_folding, "dB"),
    "channels": (decibels_of_channels, "dB"),
}


def symptom(name: str, pipeline: Pipeline) -> float:
    """The number of exhibit ``name`` for this pipeline."""
    return SYMPTOMS[name][0](pipeline)
