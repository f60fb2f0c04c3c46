"""The bug museum: a symptom for each exhibit, a repair that ends it, refusal of wrong tests."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_classroom import load_model, load_split, loader, logits
from ptq_classroom.chapters.ch16 import museum
from ptq_classroom.chapters.ch16.museum import CAUSES, EXHIBITS, judge
from ptq_course.grids.metrics import correct, paired_bootstrap, snr_pooled

EACH = pytest.mark.parametrize("name", EXHIBITS)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return load_model("resnet").eval()


@pytest.fixture(scope="module")
def test_set():
    return load_split("test")[:400]


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return [x for x, *_ in loader(load_split("calibration"), batch_size=32, limit=64)]


@pytest.fixture(scope="module")
def weights(net: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of the last layer of the network, on pictures."""
    kept = []
    hook = net.fc.register_forward_pre_hook(lambda _, x: kept.append(x[0]))
    with torch.no_grad():
        net(next(iter(loader(load_split("calibration"), batch_size=64)))[0])
    hook.remove()
    return kept[0], net.fc.weight.detach(), net.fc.bias.detach()


def versions(name: str):
    exhibit = EXHIBITS[name]
    return exhibit.broken, exhibit.repaired, exhibit.variant


def is_repaired(broken: float, repaired: float, variant: float, least: float = 10) -> None:
    assert repaired > broken + least, (broken, repaired)
    assert variant == pytest.approx(repaired, abs=1.0)


def test_codes_lose_decibels_beyond_the_range(weights):
    x = weights[0]
    scale = float(x.abs().quantile(0.99)) / 127
    is_repaired(*(snr_pooled(x, p(x, scale).float() * scale) for p in versions("codes")), least=5)


def test_the_range_of_a_tensor_far_from_zero(weights):
    """A construction: real activations, moved by 4."""
    x = weights[0] + 4

    def decoded(pipeline):
        scale, zero = pipeline(float(x.min()), float(x.max()))
        return scale * ((x / scale + zero).round().clamp(0, 255) - zero)

    is_repaired(*(snr_pooled(x, decoded(p)) for p in versions("affine")))


def test_a_folded_convolution(net):
    conv, norm = net.layer2.conv1, net.layer2.bn1
    fused = nn.utils.fuse_conv_bn_eval(copy.deepcopy(conv), copy.deepcopy(norm)).weight.detach()

    def decoded(pipeline):
        codes, scale = pipeline(conv, norm)
        return codes.float() * scale[:, None, None, None]

    is_repaired(*(snr_pooled(fused, decoded(p)) for p in versions("folding")), least=5)


def test_a_transposed_convolution(net):
    """A construction: weights of a convolution, with output channels spread from 0.1 to 10."""
    source = net.layer1.conv1.weight.detach()
    layer = nn.ConvTranspose2d(source.shape[0], source.shape[1], 3, bias=False)
    spread = torch.logspace(-1, 1, source.shape[1])[:, None, None]
    layer.weight.data = source * spread
    x = torch.randn(4, source.shape[0], 6, 6, generator=torch.Generator().manual_seed(0))

    def computed(pipeline):
        codes, scale = pipeline(layer)
        return F.conv_transpose2d(x, codes.float()) * scale[:, None, None]

    y = layer(x).detach()
    is_repaired(*(snr_pooled(y, computed(p)) for p in versions("channels")))


def test_the_last_layer_in_integers(weights):
    x, weight, bias = weights
    y = F.linear(x, weight, bias)
    is_repaired(*(snr_pooled(y, p(x, weight, bias)) for p in versions("linear")))


def test_one_scale_for_quiet_and_loud_batches(weights):
    """A construction: real activations, three batches of four made quieter."""
    x = weights[0]
    parts = [x[:16] / 8, x[16:32] / 4, x[32:48] / 2, x[48:]]

    def decoded(pipeline):
        scale = pipeline(parts)
        return (parts[-1] / scale).round().clamp(-128, 127) * scale

    is_repaired(*(snr_pooled(parts[-1], decoded(p)) for p in versions("collecting")))


def with_rounded_inputs(net: nn.Module, peaks: dict[str, float]) -> nn.Module:
    """A copy whose layers get inputs on 8-bit grids that reach up to these peaks.

    The pictures stay as they are: a few loud pixels make min-max of the first input costly, which
    is a matter of the range rule (chapter 02) and would hide what the repair does.
    """
    net = copy.deepcopy(net)
    for name, peak in peaks.items():
        if name == "conv":
            continue
        scale = peak / 127
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, x, s=scale: ((x[0] / s).round().clamp(-127, 127) * s,)
        )
    return net


def test_peaks_cost_accuracy(net, test_set, batches):
    right = []
    for pipeline in versions("peaks"):
        rounded = with_rounded_inputs(net, pipeline(net, batches))
        right.append(correct(logits(rounded, test_set), test_set.labels).double())
    broken, repaired, variant = right
    floating = correct(logits(net, test_set), test_set.labels).double()
    assert paired_bootstrap(broken, repaired)[1] > 0
    assert paired_bootstrap(floating, repaired)[1] > -0.06, "the repair leaves a large loss"
    assert abs(repaired.mean() - variant.mean()) < 0.01


def test_ranges_leave_the_network_another_one(net, test_set):
    """Small batches, as memory often asks for: with 32 pictures each the loss is much smaller."""
    small = [x for x, *_ in loader(load_split("calibration"), batch_size=4, limit=64)]
    floating = correct(logits(net, test_set), test_set.labels).double()
    right = []
    for pipeline in versions("ranges"):
        patient = copy.deepcopy(net)
        pipeline(patient, small)
        right.append(correct(logits(patient, test_set), test_set.labels).double())
    broken, repaired, variant = right
    assert paired_bootstrap(broken, repaired)[1] > 0
    assert repaired.equal(floating)
    assert variant.equal(floating)


@EACH
def test_the_right_diagnosis_is_accepted(name: str):
    exhibit = EXHIBITS[name]
    assert judge(exhibit, exhibit.cause, exhibit.test) is None


@EACH
def test_wrong_diagnoses_are_refused(name: str):
    exhibit = EXHIBITS[name]
    other = next(cause for cause in CAUSES if cause != exhibit.cause)
    right, wrong = exhibit.test, exhibit.cause
    assert "another one" in (judge(exhibit, other, right) or "")
    assert "none of the causes" in (judge(exhibit, "bad luck", right) or "")
    assert "on everything: it does" in (judge(exhibit, wrong, lambda _: True) or "")
    assert "fails on everything" in (judge(exhibit, wrong, lambda _: False) or "")
    assert "passes on the bug" in (judge(exhibit, wrong, lambda p: not right(p)) or "")
    repaired_only = [False, True, False]
    assert "another right" in (judge(exhibit, wrong, lambda _: repaired_only.pop(0)) or "")
    assert "ZeroDivisionError" in (judge(exhibit, wrong, lambda _: 1 / 0 > 0) or "")


@EACH
def test_a_test_cannot_look_into_the_pipeline(name: str):
    exhibit = EXHIBITS[name]
    code, source = exhibit.broken.__code__, inspect.getsource(exhibit.broken)
    for peeping in (
        lambda p: p is not exhibit.broken,
        lambda p: p.__code__ is not code,
        lambda p: p.__name__ != exhibit.broken.__name__,
        lambda p: inspect.getsource(p) != source,
    ):
        assert "on everything" in (judge(exhibit, exhibit.cause, peeping) or "")
    assert "returned None" in (judge(exhibit, exhibit.cause, lambda _: None) or "")  # type: ignore


def _codes_far_away(pipeline) -> bool:
    far = torch.tensor([1e10, -1e10, float("inf"), -float("inf")])
    return pipeline(far, 1.0).tolist() == [127, -128, 127, -128]


def _peak_of_vectors(pipeline) -> bool:
    line = nn.Sequential(nn.Linear(2, 2))
    return pipeline(line, [torch.tensor([3.0, -5.0]), torch.tensor([1.0, -7.0])])["0"] == 7


def _peak_of_pictures_of_two_sizes(pipeline) -> bool:
    pictures = [torch.full((1, 1, 4, 4), 3.0), torch.full((2, 1, 8, 8), 4.0)]
    return pipeline(nn.Sequential(nn.Conv2d(1, 1, 1)), pictures)["0"] == 4


def _bias_of_zeros(pipeline) -> bool:
    bias, zeros, ones = torch.tensor([0.5, -2.0]), torch.zeros(2, 2), torch.ones(2, 2)
    return all(
        torch.allclose(pipeline(x, weight, bias), bias, atol=0.02)
        for x, weight in ((zeros, ones), (ones, zeros), (zeros, zeros))
    )


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("codes", _codes_far_away),
        ("peaks", _peak_of_vectors),
        ("peaks", _peak_of_pictures_of_two_sizes),
        ("linear", _bias_of_zeros),
    ],
)
def test_a_test_at_a_corner_of_the_promise_is_accepted(name: str, test):
    assert judge(EXHIBITS[name], EXHIBITS[name].cause, test) is None


@EACH
def test_a_test_of_another_exhibit_does_not_pass(name: str):
    for other, exhibit in EXHIBITS.items():
        if other != name:
            assert judge(EXHIBITS[name], EXHIBITS[name].cause, exhibit.test) is not None


@EACH
def test_a_file_is_short_and_does_not_name_its_bug(name: str):
    module = inspect.getmodule(EXHIBITS[name].broken)
    assert module is not None
    source = inspect.getsource(module)
    assert len(source.splitlines()) <= 40
    assert EXHIBITS[name].cause not in source
    assert "bug" not in source.lower()


def test_eight_exhibits_with_eight_causes_and_distractors():
    assert len(EXHIBITS) == len({e.cause for e in EXHIBITS.values()}) == 8
    assert len(museum.CAUSES) >= 11
