"""The trained networks: small enough, traceable, verified, as accurate as the manifest says."""

import pytest
import torch
from torch import fx, nn

from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.datasets import load_split
from ptq_classroom.pictures.efficientnet import EfficientNet, SqueezeExcite
from ptq_classroom.pictures.evaluate import accuracy, logits
from ptq_classroom.pictures.models import (
    ARCHITECTURES,
    load_model,
    manifest,
    mobilenet,
    multiply_adds,
    resnet,
)

NAMES = sorted(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_at_most_ten_million_multiply_adds(name):
    count = multiply_adds(ARCHITECTURES[name](len(CLASS_NAMES)))
    assert 1_000_000 < count <= 10_250_000  # ResNet-20 as published: 10.2
    assert count == manifest(name)["multiply_adds"]


def test_multiply_adds_are_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        nn.Flatten(),
        nn.Linear(512, 5),
    ).train()
    # 8x8 positions after the stride: 27 inputs x 8, 9 x 8 depthwise; then the matrix
    assert multiply_adds(net, image_size=16) == 64 * 27 * 8 + 64 * 9 * 8 + 512 * 5
    assert net.training


@pytest.mark.parametrize("name", NAMES)
def test_traces_with_fx_and_gives_the_same_logits(name):
    model = load_model(name)
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
    assert model(x).shape == (2, len(CLASS_NAMES))


def test_the_residual_network_is_relu_and_the_depthwise_one_relu6():
    def kinds(model):
        return {type(module) for module in model.modules()}

    assert nn.ReLU in kinds(resnet())
    assert nn.ReLU6 not in kinds(resnet())
    assert nn.ReLU6 in kinds(mobilenet())
    assert nn.ReLU not in kinds(mobilenet())
    assert any(
        isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in mobilenet().modules()
    )


def test_the_efficientnet_like_one_has_silu_attention_and_depthwise_convolutions():
    net = EfficientNet().eval()
    kinds = {type(module) for module in net.modules()}
    assert {nn.SiLU, nn.Sigmoid, SqueezeExcite} <= kinds
    assert not {nn.ReLU, nn.ReLU6} & kinds
    assert any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in net.modules())
    assert multiply_adds(net) <= 8_000_000


def test_attention_multiplies_each_channel_by_a_factor_between_0_and_1():
    attention = SqueezeExcite(4, 2).eval()
    x = torch.rand(3, 4, 5, 5) + 0.1
    with torch.no_grad():
        factors = attention(x) / x
    assert torch.allclose(factors, factors[..., :1, :1].expand_as(factors), atol=1e-5)
    assert bool(((factors > 0) & (factors < 1)).all())


@pytest.mark.parametrize("name", NAMES)
def test_load_model_is_in_eval_mode_and_fresh_each_time(name):
    first, second = load_model(name), load_model(name)
    assert not any(module.training for module in first.modules())
    with torch.no_grad():
        first.fc.weight.zero_()
    assert second.fc.weight.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fp32_accuracy_is_the_manifests_and_leaves_room_on_both_sides(name):
    """A transformer learns less from 300,000 pictures than a convolutional network does."""
    split = load_split("test")
    top1 = accuracy(logits(load_model(name), split), split.labels)
    assert (0.75 if name == "vit" else 0.90) <= top1 <= 0.97
    assert top1 == pytest.approx(manifest(name)["fp32_accuracy"], abs=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_manifest_says_how_the_network_was_made(name):
    entry = manifest(name)
    assert entry["command"] == f"python scripts/train.py --arch {name}"
    for key in ("seed", "torch", "minutes", "pictures", "sha256", "bytes", "licence"):
        assert key in entry


def test_unknown_network_is_refused_by_name():
    for ask in (load_model, manifest):
        with pytest.raises(ValueError, match="resnet, mobilenet"):
            ask("vgg")
