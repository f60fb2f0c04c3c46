"""A checkpoint knows its network's structure; a crafted header is named, never half believed."""

from __future__ import annotations

import hashlib
import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from ptq_course.deploy.checkpoint.header import digest
from ptq_course.deploy.checkpoint.storage import load, save
from ptq_course.deploy.checkpoint.structure import structure_digest
from ptq_course.errors import DataIntegrityError, QuantizationError
from tests.networks import DataDependent


def network(activation=nn.ReLU, features=144, **settings):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, **settings), activation(), nn.Flatten(), nn.Linear(features, 5)
    ).eval()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path):
    """A static checkpoint with 4-bit weights."""
    quantizer = PTQQuantizer(network(), config=QConfig(weight_bits=4))
    return save(quantizer.calibrate([X], progress=False).convert(), tmp_path / "q.safetensors")


OTHERS = {
    "stride": lambda: network(stride=2),
    "dilation": lambda: network(dilation=2),
    "activation": lambda: network(nn.ReLU6),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_tensor_is_noticed_too(path, name):
    with pytest.raises(QuantizationError, match=r"q\.safetensors: .*other operations or settings"):
        load(path, OTHERS[name]())


def test_what_does_not_change_the_result_does_not_count(path):
    assert load(path, network(lambda: nn.ReLU(inplace=True)).train())(X).shape == (4, 5)


def test_the_order_of_calls_and_their_arguments_count():
    class Calls(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

        def forward(self, x):
            return self.function(self, x)

    functions = [
        lambda s, x: s.b(F.relu(s.a(x))),
        lambda s, x: F.relu(s.b(s.a(x))),
        lambda s, x: s.b(s.a(x)).clamp(0, 3),
        lambda s, x: s.b(s.a(x)).clamp(0, 4),
        lambda s, x: s.b(s.a(x)) - x,
        lambda s, x: x - s.b(s.a(x)),
    ]
    digests = []
    for function in (*functions, functions[0]):
        model = Calls(function).eval()
        quantized = PTQQuantizer(model).calibrate([torch.randn(8, 4)], progress=False).convert()
        digests.append(structure_digest(quantized.module))
    assert len(set(digests)) == len(functions)
    assert digests[0] == digests[-1]


@pytest.mark.parametrize("weights_only", [False, True])
def test_dynamic_checkpoints(tmp_path, weights_only):
    made = quantize_dynamic(network(), weights_only=weights_only)
    path = save(made, tmp_path / "d.safetensors")
    assert torch.equal(load(path, network())(X), made(X))
    with pytest.raises(QuantizationError, match="other operations or settings"):
        load(path, network(stride=2))


def test_an_untraceable_network(tmp_path):
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(DataDependent())
    data = [(torch.ones(2, 6), torch.zeros(2)), (-torch.ones(2, 6), torch.zeros(2))]
    made = quantizer.observe(data, progress=False).compute_qparams("minmax").convert()
    path = save(made, tmp_path / "u.safetensors")
    assert torch.equal(load(path, DataDependent())(torch.ones(2, 6)), made(torch.ones(2, 6)))


# --- crafted files: digests right, contents wrong -------------------------------------------------


def craft(path, header=lambda h: None, tensors=lambda t: None):
    """Change a checkpoint and give it valid digests."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    fields = json.loads(metadata["header"])
    tensors(stored)
    fields["digests"] = {name: digest(name, tensor) for name, tensor in stored.items()}
    changed = header(fields)
    text = json.dumps(changed if isinstance(changed, list) else fields)
    metadata |= {"header": text, "header_sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.write_bytes(safetensors.torch.save(stored, metadata))


def layer(**fields):
    return lambda header: header["layers"]["0"].update(fields)


HEADERS = {
    "a list": lambda h: [1],
    "no layers": lambda h: h.pop("layers"),
    "an unknown field": lambda h: h.update(more=1),
    "an unknown field of a layer": layer(more=1),
    "config a number": lambda h: h.update(config=5),
    "a codebook that is not there": layer(grid=None),
    "an unknown dtype": layer(dtype="float99"),
    "an integer dtype": layer(dtype="int8"),
    "a value that is not there": layer(bias_from="zzz"),
    "a huge value": lambda h: [v.update(shape=[2**40]) for v in h["values"].values()][:0],
    "a shape of words": layer(shape=["a"]),
}
TENSORS = {
    "no scale": lambda t: t.pop("layers/0/scale"),
    "no codes": lambda t: t.pop("layers/0/codes"),
    "no values": lambda t: t.pop("values/scale"),
    "a short bias": lambda t: t.update({"layers/0/bias_codes": t["layers/0/bias_codes"][:2]}),
    "a real bias": lambda t: t.update({"layers/0/bias_codes": t["layers/0/bias_codes"].float()}),
    "integer scales": lambda t: t.update({"layers/0/scale": t["layers/0/scale"].int() + 1}),
    "real zero points": lambda t: t.update({"values/zero_point": t["values/zero_point"].float()}),
    "a tensor of no use": lambda t: t.update({"layers/0/more": torch.ones(1)}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_crafted_header_is_refused(path, name):
    change = HEADERS[name]
    craft(path, lambda h: [1] if name == "a list" else change(h) and None)
    with pytest.raises(QuantizationError, match=r"q\.safetensors") as caught:
        load(path, network())
    if name != "a shape of words":  # that is another architecture's
        assert caught.type is DataIntegrityError


@pytest.mark.parametrize("name", TENSORS)
def test_crafted_tensors_are_refused(path, name):
    craft(path, tensors=TENSORS[name])
    with pytest.raises(DataIntegrityError, match=r"q\.safetensors"):
        load(path, network())


def test_an_untouched_copy_still_loads(path):
    craft(path)
    assert load(path, network())(X).shape == (4, 5)
