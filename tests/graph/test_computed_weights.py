"""Weights that a hook or a parametrization computes are those of the present parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ptq_course import PTQQuantizer, quantize_dynamic
from ptq_course.deploy import storage
from ptq_course.errors import UnsupportedError
from ptq_course.graph import copying, trace

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


class Equalized:
    """The hook of progressive GANs: the weight is a scaled parameter."""

    def __call__(self, module, inputs):
        module.weight = module.weight_orig * 0.5

    @staticmethod
    def apply(layer):
        weight = layer._parameters.pop("weight")
        layer.register_parameter("weight_orig", weight)
        layer.weight = weight.data
        layer.register_forward_pre_hook(Equalized())
        return layer


WAYS = {
    "weight_norm": weight_norm,
    "weight_norm, another axis": lambda layer: weight_norm(layer, dim=1),
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": lambda layer: prune.random_unstructured(
        prune.ln_structured(layer, "weight", 0.25, 2, 0), "bias", 1
    ),
    "equalized": Equalized.apply,
    "parametrization": parametrizations.weight_norm,
}
LAYERS = {
    "Linear": (lambda: nn.Linear(8, 8), (16, 8)),
    "Conv2d": (lambda: nn.Conv2d(8, 8, 3), (4, 8, 6, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 8, 3), (4, 8, 6)),
}


def loaded(way, make):
    """A network built without gradients, whose parameters come from another one."""
    with torch.no_grad():
        model, other = (nn.Sequential(way(make())).eval() for _ in range(2))
        other(torch.randn(LAYER_SHAPE[make]))
        for value in other.parameters():
            value.mul_(torch.rand_like(value) + 0.5)
        model.load_state_dict(other.state_dict())
    return model


LAYER_SHAPE = dict(LAYERS.values())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_that_were_loaded(way, layer, tmp_path):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model, x = loaded(WAYS[way], make), torch.randn(shape)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    for found in (quantized, quantize_dynamic(model)):
        assert (found(x) - expected).norm() < 0.03 * expected.norm()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    storage.save(quantized, tmp_path / "q.safetensors")
    assert torch.equal(storage.load(tmp_path / "q.safetensors", model)(x), quantized(x))


def test_weights_of_the_last_training_step():
    """Built with gradients, trained, and never called since: deepcopy refuses such a tensor."""
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.ReLU(), spectral_norm(nn.Linear(4, 2)))
    x = torch.randn(8, 4)
    model(x).sum().backward()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value))
    model.eval()
    traced = trace(model)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))
    assert len(list(traced.parameters())) == 4


def test_a_recurrent_layer():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.LSTM(4, 4), "weight_hh_l0")).eval()
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        model[0].weight_hh_l0_g.mul_(3.0)
        torch.testing.assert_close(trace(model)(x)[0], model(x)[0])


def test_the_check_of_the_outputs_knows_the_weights_by_itself(monkeypatch):
    """With stale weights in the quantized copy, observation is refused."""
    model, x = loaded(weight_norm, LAYERS["Linear"][0]), torch.randn(16, 8)
    stale = model[0].weight.clone()

    def forget(module):
        if copying.hooked_weights(module):
            module._forward_pre_hooks.clear()
            del module.weight
            module.weight = nn.Parameter(stale)

    monkeypatch.setattr(copying, "_run_weight_hooks", forget)
    with pytest.raises(UnsupportedError, match="changed the model's output"):
        PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax")


def test_other_hooks_are_left_out_of_such_a_layer_too():
    model, calls = nn.Sequential(weight_norm(nn.Linear(4, 4))).eval(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="hooks are left out of the quantized copy: 0"):
        quantized = (
            PTQQuantizer(model)
            .calibrate([torch.randn(8, 4)], progress=False, ranges="minmax")
            .convert()
        )
    quantized(torch.randn(8, 4))
    assert calls == []
