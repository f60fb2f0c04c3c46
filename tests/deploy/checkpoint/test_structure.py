"""A checkpoint knows its network's structure; a crafted header is named, never half believed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

import ptq_course
from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from ptq_course.deploy.checkpoint import load, save, size_report
from ptq_course.deploy.checkpoint.format import digest, structure_digest
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
    return save(
        quantizer.calibrate([X], progress=False, ranges="minmax").convert(),
        tmp_path / "q.safetensors",
    )


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
        quantized = (
            PTQQuantizer(model)
            .calibrate([torch.randn(8, 4)], progress=False, ranges="minmax")
            .convert()
        )
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
    "an unknown form of rounding": lambda h: h["inside"].update(
        {node: "zzz" for value in h["values"].values() for node in value["nodes"]}
    ),
    "a plan that is a word": lambda h: h.update(left_in_float="nothing"),
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


# --- any header ----------------------------------------------------------------------------------

MUTANTS = int(os.environ.get("PTQ_MUTANTS", "60"))
ODD = (
    None, True, 0, -1, 3, 2**40, 10**400, 0.5, float("nan"), "", "x", "float64", "per_token",
    "int32", [], [None], [1, -1], ["0"], {}, {"0": None}, {"scale": 1},
)  # fmt: skip


def places(tree, at=()):
    """Every place of a JSON tree as a path of keys, the root left out."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def mutated(header, rng):
    """One to three places of a header replaced, removed, doubled or swapped for another one."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spots = [place for place in places(header) if place[0] != "digests"]
        *above, last = rng.choice(spots)
        parent = reduce(getitem, above, header)
        kind = rng.randrange(4)
        if kind == 0:
            del parent[last]
        elif kind == 1:
            parent[last] = copy.deepcopy(reduce(getitem, rng.choice(spots), header))
        elif kind == 2 and isinstance(parent, dict):
            parent[f"{last}{rng.choice(('.', '0', 'x'))}"] = parent.pop(last)
        else:
            parent[last] = copy.deepcopy(rng.choice(ODD))


def survives(path, made):
    """Load and run; refusals by name are welcome, nothing else is."""
    try:
        made()(X)
        str(size_report(path))
    except QuantizationError as refusal:
        return str(path) in str(refusal) and "refused"
    return "loaded"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_mutated_header_is_refused_or_does_no_harm(path, dynamic):
    if dynamic:
        save(quantize_dynamic(network()), path)
    good, rng, loaded = path.read_bytes(), random.Random(0), 0
    for _ in range(MUTANTS):
        path.write_bytes(good)
        try:
            craft(path, lambda header: mutated(header, rng))
        except (LookupError, TypeError):  # two mutations that exclude each other
            continue
        found = survives(path, lambda: load(path, network()))
        assert found
        loaded += found == "loaded"
    assert 0 < loaded < MUTANTS / 2


@pytest.mark.parametrize(
    "text",
    ["[" * 5000 + "]" * 5000, '{"layers":' * 5000, "null", "[]", '"x"', "NaN", "1" * 5000, ""],
)
def test_a_header_that_is_no_object(path, text):
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    metadata |= {"header": text, "header_sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.write_bytes(safetensors.torch.save(stored, metadata))
    for read in (lambda: load(path, network()), lambda: size_report(path)):
        with pytest.raises(DataIntegrityError, match=r"q\.safetensors"):
            read()


def test_a_layer_of_another_format_is_refused_when_loaded(path):
    """It would load, and fail in forward()."""
    craft(path, layer(dtype="float64"))
    with pytest.raises(QuantizationError, match=r"'3' computes in float32 in it.*float64"):
        load(path, network())


def test_layers_of_several_formats_come_back_into_a_model_that_has_them(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.b(self.a(x).double())

    made = quantize_dynamic(Mixed(), weights_only=True)
    path, x = save(made, tmp_path / "m"), torch.randn(3, 4)
    assert torch.equal(load(path, Mixed())(x), made(x))


# --- files and names of before -------------------------------------------------------------------

BEFORE = Path(__file__).parent / "written_before"  # files of ptq_course 0.1.0, format version 2
OUTPUTS = {
    "static": [[-0.6836090, 0.0823263], [0.7558887, -1.3046380]],
    "dynamic": [[-0.7039818, 0.1747123], [0.7716428, -1.3516260]],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_that_were_written_before_still_load(name):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(12),
        nn.Linear(12, 2),
    )  # fmt: skip
    file = BEFORE / f"{name}.safetensors"
    x = torch.linspace(-1, 1, 64).reshape(2, 2, 4, 4)
    torch.testing.assert_close(load(file, model)(x), torch.tensor(OUTPUTS[name]))
    assert size_report(file).package == ""
    assert "an early ptq_course" in str(size_report(file))


def test_a_file_says_which_version_wrote_it(path):
    report = size_report(path)
    assert report.package == ptq_course.__version__
    assert f"ptq_course {ptq_course.__version__}" in str(report)


def test_storage_is_another_name_of_checkpoint():
    from ptq_course.deploy import checkpoint, storage

    assert storage is checkpoint
    assert (storage.save, storage.load, storage.size_report) == (save, load, size_report)
    with pytest.raises(ImportError, match="nothing"):
        from ptq_course.deploy import nothing  # noqa: F401
