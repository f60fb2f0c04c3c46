"""The exhibits with what is hidden in their files: cause, repair, another right way, a test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptq_classroom.chapters.ch16.exhibits.affine import scale_and_zero_point
from ptq_classroom.chapters.ch16.exhibits.channels import quantized_weight
from ptq_classroom.chapters.ch16.exhibits.codes import to_int8
from ptq_classroom.chapters.ch16.exhibits.collecting import activation_scale
from ptq_classroom.chapters.ch16.exhibits.folding import quantized_conv
from ptq_classroom.chapters.ch16.exhibits.linear import integer_linear
from ptq_classroom.chapters.ch16.exhibits.peaks import peaks
from ptq_classroom.chapters.ch16.exhibits.ranges import output_range
from ptq_classroom.kit.mutation import mutation

Pipeline = Callable[..., Any]
Test = Callable[[Pipeline], bool]

CAUSES = (
    "calibrators never fed",
    "cast before saturate",
    "range without zero",
    "batch norm folded after the scale was chosen",
    "per-channel axis of the wrong side",
    "bias with the wrong scale",
    "scales averaged over batches",
    "train mode during calibration",
    "too few bins in the histogram",
    "rounding to even",
    "too few calibration pictures",
)

# Public threads that report the same kind of mistake. Averaging has none: toolkits offer it as a
# rule of its own (microsoft/onnxruntime #10753), so only the promise of the exhibit makes it wrong.
SIGHTINGS = {
    "peaks": "pytorch/pytorch #28951: observers without data, which return a default scale",
    "codes": "huggingface/sentence-transformers #3847: a cast to int8 without clipping",
    "affine": "pytorch/pytorch #23838: the observer's range need not contain zero",
    "folding": "es-ude/elastic-ai.creator #396: a float batch norm merged into fixed-point weights",
    "channels": "microsoft/onnxruntime #19694: ConvTranspose quantized along axis 0",
    "linear": "IntelLabs/distiller #11: the bias's scale factor was written upside down",
    "ranges": "openvinotoolkit/nncf #1828: range statistics collected in train mode",
}


@dataclass(frozen=True)
class Exhibit:
    """One pipeline, and what its file does not say.

    changes: the repair, as `mutation` takes it. variant: right as well, written differently.
    test: True for a pipeline without the bug.
    """

    broken: Pipeline
    cause: str
    changes: tuple[str, ...]
    variant: Pipeline
    test: Test

    @property
    def repaired(self) -> Pipeline:
        """The pipeline without its bug."""
        return mutation(self.broken, *self.changes)


def _closed(pipeline: Pipeline) -> Pipeline:
    """The pipeline behind a function that looks the same for all of them."""
    return lambda *given, **named: pipeline(*given, **named)


def judge(exhibit: Exhibit, cause: str, test: Test) -> str | None:
    """What is wrong with a diagnosis, or None where both cause and test are right.

    The test has to be False on the exhibit and True on two right pipelines. It gets them wrapped
    alike, so that it can call them and not look into them.
    """
    if cause not in CAUSES:
        return f"{cause!r} is none of the causes: choose one of CAUSES"
    verdicts = []
    for pipeline in (exhibit.broken, exhibit.repaired, exhibit.variant):
        try:
            verdict = test(_closed(pipeline))
            if verdict is None:
                return "the test returned None: is a `return` missing in it?"
            verdicts.append(bool(verdict))
        except Exception as error:
            return f"the test stopped with {type(error).__name__}: return False instead"
    if verdicts == [True] * 3:
        return "the test passes on everything: it does not see the bug"
    if verdicts == [False] * 3:
        return "the test fails on everything, also where the bug is repaired"
    if verdicts[0]:
        return "the test passes on the bug: it looks at something else"
    if not verdicts[1]:
        return "the test fails on the repaired pipeline: it looks at something else"
    if not verdicts[2]:
        return "the test asks for one way of writing it; another right pipeline fails"
    return None if cause == exhibit.cause else "the test is right, the cause is another one"


def _codes_variant(x: Tensor, scale: float) -> Tensor:
    return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)


def _codes_test(pipeline: Pipeline) -> bool:
    return pipeline(torch.tensor([200.0, -200.0]), 1.0).tolist() == [127, -128]


def _peaks_variant(net: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = max(found.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    hooks = [
        part.register_forward_pre_hook(keep(name))
        for name, part in net.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        for batch in batches:  # their shapes may differ
            net(batch)
    for hook in hooks:
        hook.remove()
    return found


def _peaks_test(pipeline: Pipeline) -> bool:
    net, x = nn.Sequential(nn.Linear(2, 2)), torch.tensor([[3.0, -5.0]])
    return abs(pipeline(net, [x, x / 2])["0"] - 5) < 1e-5


def _affine_variant(lo: float, hi: float) -> tuple[float, int]:
    scale = max(hi, 0.0, hi - lo, -lo) / 255 or 1e-12
    return scale, max(0, min(255, round(-min(lo, 0.0) / scale)))


def _affine_test(pipeline: Pipeline) -> bool:
    scale, zero_point = pipeline(2.0, 6.0)
    return scale * (255 - zero_point) > 5.9


def _folding_variant(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    fused = nn.utils.fuse_conv_bn_eval(copy.deepcopy(conv).eval(), copy.deepcopy(norm).eval())
    rows = fused.weight.detach().flatten(1)
    scale = rows.abs().max(1).values.clamp(min=1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).reshape(conv.weight.shape), scale


def _folding_test(pipeline: Pipeline) -> bool:
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
    nn.init.constant_(conv.weight, 1.0)
    norm.weight.data = torch.tensor([5.0, 0.1])
    codes, scale = pipeline(conv.eval(), norm.eval())
    return torch.allclose(codes.flatten() * scale, torch.tensor([5.0, 0.1]), rtol=0.01)


def _channels_variant(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    transposed = isinstance(layer, nn.ConvTranspose2d)
    rows = layer.weight.detach().transpose(0, 1) if transposed else layer.weight.detach()
    scale = rows.flatten(1).norm(float("inf"), 1).clamp(min=1e-12) / 127
    codes = (rows / scale[:, None, None, None]).round().to(torch.int8)
    return (codes.transpose(0, 1) if transposed else codes), scale


def _channels_test(pipeline: Pipeline) -> bool:
    layer = nn.ConvTranspose2d(3, 5, 2)
    return len(pipeline(layer)[1]) == 5 and len(pipeline(nn.Conv2d(3, 5, 2))[1]) == 5


def _linear_variant(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x_scale = x.abs().max().clamp(min=1e-6) / 127
    w_scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
    product = (x / x_scale).round() @ (weight / w_scale).round().T
    return product * (x_scale * w_scale).T + bias


def _linear_test(pipeline: Pipeline) -> bool:
    bias = torch.tensor([0.5, -2.0])
    got = pipeline(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), bias)
    return torch.allclose(got[0], bias, atol=0.02)


def _collecting_variant(batches: list[Tensor]) -> float:
    largest = 0.0
    for batch in batches:
        largest = max(largest, batch.max().item(), -batch.min().item())
    return largest / 127


def _collecting_test(pipeline: Pipeline) -> bool:
    return 8.0 / pipeline([torch.tensor([1.0]), torch.tensor([-8.0])]) < 127.5


def _ranges_variant(net: nn.Module, batches: list[Tensor]) -> tuple[float, float]:
    with torch.inference_mode():
        outputs = [copy.deepcopy(net).eval()(batch) for batch in batches]
    return min(o.min().item() for o in outputs), max(o.max().item() for o in outputs)


def _ranges_test(pipeline: Pipeline) -> bool:
    norm = nn.BatchNorm1d(1)
    pipeline(nn.Sequential(norm).eval(), [torch.tensor([[5.0], [7.0]])])
    return norm.running_mean is not None and norm.running_mean.item() == 0


_FEED = (
    "hooks = [] => hooks = [m.register_forward_pre_hook("
    "lambda _, x, n=n: calibrators[n].observe(x[0])) for n, m in layers.items()]"
)
# Zeros need a scale in which the codes of the bias fit 32 bits.
_ZEROS = (
    "x_scale = x.abs().max().clamp(min=1e-6) / 127 => "
    "largest = x.abs().max(); x_scale = largest.where(largest > 0, 1.0) / 127",
    "w_scale = weight.abs().amax(1).clamp(min=1e-6) / 127 => "
    "rows = weight.abs().amax(1); w_scale = rows.where(rows > 0, 1.0) / 127",
)

EXHIBITS = {
    "peaks": Exhibit(peaks, CAUSES[0], (_FEED,), _peaks_variant, _peaks_test),
    "codes": Exhibit(
        to_int8, CAUSES[1],
        ("codes = (x / scale).round().to(torch.int32) => codes = (x / scale).round()",
         "codes = codes.to(torch.int8) => codes = codes.clamp(-128, 127)",
         "return codes.clamp(-128, 127) => return codes.to(torch.int8)"),
        _codes_variant, _codes_test,
    ),
    "affine": Exhibit(
        scale_and_zero_point, CAUSES[2],
        ("scale = max(hi - lo, 1e-12) / 255 => lo, hi = min(lo, 0.0), max(hi, 0.0); "
         "scale = max(hi - lo, 1e-12) / 255",),
        _affine_variant, _affine_test,
    ),
    "folding": Exhibit(
        quantized_conv, CAUSES[3],
        ("weight = conv.weight.detach() => "
         "weight = conv.weight.detach() * factor.detach()[:, None, None, None]",
         "weight = weight * factor.detach()[:, None, None, None] => pass"),
        _folding_variant, _folding_test,
    ),
    "channels": Exhibit(
        quantized_weight, CAUSES[4],
        ("axis = 0 => axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0",),
        _channels_variant, _channels_test,
    ),
    "linear": Exhibit(
        integer_linear, CAUSES[5], ("bias / w_scale => bias / (x_scale * w_scale)", *_ZEROS),
        _linear_variant, _linear_test,
    ),
    "collecting": Exhibit(
        activation_scale, CAUSES[6], ("return sum(scales) / len(scales) => return max(scales)",),
        _collecting_variant, _collecting_test,
    ),
    "ranges": Exhibit(
        output_range, CAUSES[7], ("net.train() => net.eval()", ), _ranges_variant, _ranges_test
    ),
}  # fmt: skip
