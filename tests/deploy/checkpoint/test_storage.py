from __future__ import annotations

import copy
import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_classroom.pictures.models import load_model, resnet
from ptq_course.deploy.checkpoint import load, save, size_report
from ptq_course.deploy.checkpoint.format import VERSION, read
from ptq_course.errors import DataIntegrityError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import QParams, QTensor
from ptq_course.simulation.dynamic import DynamicModel, quantize_dynamic
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer, QuantizedModel
from tests.networks import (
    DataDependent,
    InvertedResidual,
    Residual,
    SharedLayer,
    batches,
    randomize_batch_norms,
)

PICTURES = batches()[0][0]


class Tokens(nn.Module):
    """LayerNorm, a parameter of its own, a buffer: what stays in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6, bias=False)
        self.gain = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.gain + self.shift


def make(network=Residual, seed=0):
    torch.manual_seed(seed)
    return randomize_batch_norms(network())


def static(model, data=PICTURES, **config):
    quantizer = PTQQuantizer(model, config=QConfig(**config))
    return quantizer.calibrate([data], progress=False, ranges="minmax").convert()


def outputs(model, x=PICTURES):
    with torch.no_grad():
        return model(x)


def assert_same(one, other, x=PICTURES):
    assert torch.equal(outputs(one, x), outputs(other, x))
    assert one.config == other.config
    assert one.left_in_float == other.left_in_float
    ours, theirs = one.quantized_layers(), other.quantized_layers()
    assert list(ours) == list(theirs)
    for name, layer in ours.items():
        assert torch.equal(layer.weight_codes.long(), theirs[name].weight_codes.long())
        assert layer.raised_channels == theirs[name].raised_channels
        for part in ("bias_codes", "bias_scale", "weight_scale", "weight_zero_point"):
            mine, yours = getattr(layer, part), getattr(theirs[name], part)
            assert (mine is None) == (yours is None)
            assert mine is None or torch.equal(mine, yours)


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [Residual, InvertedResidual])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 9])
def test_a_network_comes_back_bit_for_bit(tmp_path, network, bits):
    quantized = static(make(network), weight_bits=bits)
    loaded = load(save(quantized, tmp_path / "m.safetensors"), make(network, seed=7))
    assert isinstance(loaded, QuantizedModel)
    assert_same(quantized, loaded)
    assert set(loaded.qparams) == set(quantized.qparams)
    for name, p in quantized.qparams.items():
        found = loaded.qparams[name]
        assert isinstance(p, QParams)
        assert isinstance(found, QParams)
        assert torch.equal(p.scale, found.scale)
        assert torch.equal(p.zero_point, found.zero_point)
        assert p.grid == found.grid


CONFIGS = {
    "tensorrt": {"activation_signed": True, "activation_symmetric": True},
    "affine weights": {"weight_symmetric": False, "weight_narrow": False, "weight_bits": 4},
    "per tensor": {"weight_granularity": "per_tensor"},
    "groups": {"weight_granularity": 2, "weight_bits": 3, "float_layers": ("stem",)},
    "float layers": {"float_layers": ("fc", "a")},
    "activations only": {"weight_bits": None},
    "float bias": {"quantize_bias": False},
    "11-bit activations": {"activation_bits": 11},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_config(tmp_path, name):
    quantized = static(make(), **CONFIGS[name])
    assert_same(quantized, load(save(quantized, tmp_path / "m"), Residual()))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
def test_dynamic_and_weight_only(tmp_path, granularity):
    model = make()
    quantized = quantize_dynamic(model, granularity=granularity)
    loaded = load(save(quantized, tmp_path / "dynamic"), Residual())
    assert isinstance(loaded, DynamicModel)
    assert loaded.granularity == granularity
    assert_same(quantized, loaded)
    only = quantize_dynamic(model, bits=4, weights_only=True)
    assert_same(only, load(save(only, tmp_path / "only"), Residual()))


class Curved(nn.Module):
    """A SiLU, rounded inside, a softmax, whose range is known, and pooling, which inherits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = nn.functional.avg_pool2d(nn.functional.silu(self.first(x)), 2)
        return self.second(x).softmax(1) * x.mean()


@pytest.mark.parametrize("network", [Residual, Curved])
@pytest.mark.parametrize("make_it", [static, quantize_dynamic])
def test_a_file_carries_its_plan(tmp_path, monkeypatch, network, make_it):
    """Whatever a later version would plan, the file says what is rounded, and where."""
    quantized = make_it(make(network))
    path = save(quantized, tmp_path / "m")

    def plan(*args, **options):
        raise AssertionError("loading plans nothing")

    monkeypatch.setattr("ptq_course.simulation.network.plan", plan)
    loaded = load(path, network())
    assert_same(quantized, loaded)
    assert loaded.left_in_float == quantized.left_in_float
    again = save(loaded, tmp_path / "again")
    assert read(again)[0] == read(path)[0]


@pytest.mark.parametrize("places", [[], ["elsewhere"]])
def test_a_place_that_the_model_has_not_is_named(tmp_path, monkeypatch, places):
    path = save(static(make()), tmp_path / "m")
    header, tensors = read(path)
    name = next(iter(header.values))
    header.values[name].nodes = places
    monkeypatch.setattr("ptq_course.deploy.checkpoint.saving.read", lambda _: (header, tensors))
    with pytest.raises(QuantizationError, match=f"a value '{name}', the model has not"):
        load(path, Residual())


def test_what_is_rounded_inside_must_be_there(tmp_path, monkeypatch):
    path = save(static(make()), tmp_path / "m")
    header, tensors = read(path)
    header.inside = {"elsewhere": "silu"}
    monkeypatch.setattr("ptq_course.deploy.checkpoint.saving.read", lambda _: (header, tensors))
    with pytest.raises(QuantizationError, match="rounds inside 'elsewhere', which the model has"):
        load(path, Residual())


def test_parameters_that_stay_in_floating_point(tmp_path):
    model, x = Tokens(), torch.randn(3, 5, 6)
    for quantized in (static(model, x), quantize_dynamic(model)):
        torch.manual_seed(99)
        loaded = load(save(quantized, tmp_path / "m"), Tokens())
        assert_same(quantized, loaded, x)
        assert torch.equal(loaded.module.norm.weight, model.norm.weight)


def test_untraced_and_shared(tmp_path):
    model = DataDependent()
    with pytest.warns(UserWarning, match="cannot be traced"):
        quantizer = PTQQuantizer(model)
    data = [torch.ones(4, 6), -torch.ones(4, 6)]
    quantized = quantizer.calibrate(data, progress=False, ranges="minmax").convert()
    loaded = load(save(quantized, tmp_path / "m"), DataDependent())
    for x in data:
        assert_same(quantized, loaded, x)
    x = torch.randn(4, 6)
    shared = static(SharedLayer(), x)
    assert_same(shared, load(save(shared, tmp_path / "s"), SharedLayer()), x)


def test_other_layers_and_dtypes(tmp_path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 6)
            self.up = nn.ConvTranspose1d(6, 4, 3, stride=2)
            self.mix = nn.Conv1d(4, 4, 3, groups=2)

        def forward(self, ids):
            return self.mix(torch.relu(self.up(self.words(ids).transpose(1, 2))))

    ids = torch.randint(0, 11, (3, 7))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        quantized = PTQQuantizer(Mixed().to(dtype), bits=5).quantize_weights()
        assert "up" in quantized.quantized_layers()
        loaded = load(save(quantized, tmp_path / "m"), Mixed())
        assert outputs(loaded, ids).dtype == dtype
        assert_same(quantized, loaded, ids)


def test_a_codebook(tmp_path):
    model, x = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 7)
    for count in (1, 2, 3, 5, 16, 17, 300):
        quantized = PTQQuantizer(model).quantize_weights()
        book = torch.randn(count)
        codes = torch.randint(0, count, (5, 7))
        layer = quantized.module.get_submodule("0")
        setattr(
            quantized.module, "0",
            QuantizedLayer(layer.float_layer, QTensor(codes, codebook=book), name="0"),
        )  # fmt: skip
        loaded = load(save(quantized, tmp_path / "m"), copy.deepcopy(model))
        assert_same(quantized, loaded, x)
        assert loaded.quantized_layers()["0"].codebook.dtype == torch.float32
        bits = {1: 1, 2: 1, 3: 2, 5: 3, 16: 4, 17: 5, 300: 9}[count]
        assert size_report(tmp_path / "m").layers[0].bits == bits


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bits=st.integers(2, 16), sizes=st.lists(st.integers(1, 13), min_size=2, max_size=4),
    granularity=st.sampled_from(["per_tensor", "per_channel", "group"]), seed=st.integers(0, 999),
    symmetric=st.booleans(), bias=st.booleans(), conv=st.booleans(),
)  # fmt: skip
def test_round_trip_of_any_shape(tmp_path, bits, sizes, granularity, seed, symmetric, bias, conv):
    torch.manual_seed(seed)

    def network():
        layers = [
            nn.Conv1d(a, b, 1, bias=bias) if conv else nn.Linear(a, b, bias=bias)
            for a, b in itertools.pairwise(sizes)
        ]
        return nn.Sequential(*layers)

    common = next(d for d in (3, 2, 1) if all(a % d == 0 for a in sizes[:-1]))
    config = QConfig(
        weight_bits=bits, weight_symmetric=symmetric, weight_narrow=symmetric,
        weight_granularity=common if granularity == "group" else granularity,
        activation_bits=None if bits > 8 else 8,
    )  # fmt: skip
    x = torch.randn(5, sizes[0], 3) if conv else torch.randn(5, sizes[0])
    quantizer = PTQQuantizer(network(), config=config)
    quantized = (
        quantizer.quantize_weights()
        if bits > 8
        else quantizer.calibrate([x], progress=False, ranges="minmax").convert()
    )
    path = save(quantized, tmp_path / "m")
    assert_same(quantized, load(path, network()), x)
    for layer in size_report(path).layers:
        stored = -(-layer.weights * bits // 8) if bits <= 8 else 2 * layer.weights
        assert layer.code_bytes == stored


def test_the_users_model_is_left_alone(tmp_path):
    path = save(static(make()), tmp_path / "m")
    model = make(seed=3).train()
    before = copy.deepcopy(model.state_dict())
    load(path, model)
    assert model.training
    assert all(torch.equal(a, model.state_dict()[n]) for n, a in before.items())


def test_float_layers_hold_what_the_codes_stand_for(tmp_path):
    quantized = static(make())
    loaded = load(save(quantized, tmp_path / "m"), Residual())
    for name, layer in loaded.quantized_layers().items():
        assert torch.equal(layer.float_layer.weight, quantized.quantized_layers()[name].weight)
        assert torch.equal(layer.float_layer.bias, quantized.quantized_layers()[name].bias)


# --- float16 scales ------------------------------------------------------------------------------


def test_float16_scales_move_by_half_a_tenth_of_a_percent(tmp_path):
    quantized = static(make())
    loaded = load(save(quantized, tmp_path / "m", scales="float16"), Residual())
    for name, layer in quantized.quantized_layers().items():
        other = loaded.quantized_layers()[name]
        assert torch.equal(layer.weight_codes, other.weight_codes)
        assert torch.equal(layer.bias_codes, other.bias_codes)
        moved = (other.weight_scale / layer.weight_scale - 1).abs()
        assert moved.max() <= 2**-11
        assert moved.max() > 0 or layer.weight_scale.min() < 6.1e-5, "kept in float32"
        torch.testing.assert_close(other.bias, layer.bias, rtol=2**-10, atol=0)
        sources = [q.scale * other.weight_scale.flatten() for q in loaded.qparams.values()]
        assert any(torch.equal(source, other.bias_scale) for source in sources), "still s_x * s_w"
    assert not torch.equal(outputs(quantized), outputs(loaded))
    again = load(save(loaded, tmp_path / "again", scales="float16"), Residual())
    assert_same(loaded, again)


def test_a_scale_beyond_float16_keeps_its_layer_in_float32(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight *= 1e-6
        model[2].weight *= 1e3
    x = torch.randn(8, 4) * 1e5
    quantized = static(model, x)
    path = save(quantized, tmp_path / "m", scales="float16")
    _, tensors = read(path)
    assert tensors["layers/0/scale"].dtype == torch.float32
    assert tensors["layers/2/scale"].dtype == torch.float16
    back = load(path, copy.deepcopy(model))
    assert torch.equal(
        back.quantized_layers()["0"].weight, quantized.quantized_layers()["0"].weight
    )


def test_a_bias_scale_that_no_value_explains_is_stored(tmp_path):
    quantized = static(make())
    layer = quantized.quantized_layers()["fc"]
    layer.bias_scale = layer.bias_scale * 1.5
    path = save(quantized, tmp_path / "m")
    assert "layers/fc/bias_scale" in read(path)[1]
    assert_same(quantized, load(path, Residual()))
    half = load(save(quantized, tmp_path / "h", scales="float16"), Residual())
    grown = half.quantized_layers()["fc"]
    growth = (grown.weight_scale / layer.weight_scale).flatten()
    torch.testing.assert_close(grown.bias_scale, layer.bias_scale * growth)


# --- damage and mistakes -------------------------------------------------------------------------


def small(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    return save(static(model, torch.randn(8, 3)), tmp_path / "small"), model


def test_any_changed_byte_is_noticed_and_the_file_named(tmp_path):
    path, model = small(tmp_path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    assert start < len(good)
    for place in range(len(good)):
        for flip in (1, 0x80) if place >= start else (1,):
            data = bytearray(good)
            data[place] ^= flip
            path.write_bytes(data)
            with pytest.raises(DataIntegrityError, match="small") as caught:
                load(path, model)
            assert place < start or "tensor '" in str(caught.value)
    path.write_bytes(good)
    load(path, model)


def test_truncated_foreign_and_missing_files(tmp_path):
    path, model = small(tmp_path)
    good = path.read_bytes()
    for length in (0, 5, 40, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataIntegrityError, match="damaged or not a safetensors file"):
            load(path, model)
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(DataIntegrityError, match="foreign is not a ptq_course quantized"):
        load(tmp_path / "foreign", model)
    with pytest.raises(QuantizationError, match="there is no file"):
        load(tmp_path / "nowhere", model)


def test_a_later_version_is_named(tmp_path, monkeypatch):
    path, model = small(tmp_path)
    monkeypatch.setattr("ptq_course.deploy.checkpoint.format.VERSION", VERSION + 1)
    with pytest.raises(UnsupportedError, match=rf"version {VERSION}, .*reads {VERSION + 1}"):
        load(path, model)


class TestWrongArchitecture:
    @pytest.fixture
    def path(self, tmp_path):
        return save(static(make()), tmp_path / "m")

    def test_the_first_layer_that_does_not_fit_is_named(self, path):
        with pytest.raises(
            QuantizationError, match=r"layer 'stem'.*\(8, 3, 3, 3\).*\(6, 3, 3, 3\)"
        ):
            load(path, Residual(channels=6))
        with pytest.raises(QuantizationError, match=r"layer 'fc'.*\(5, 8\).*\(4, 8\)"):
            load(path, Residual(classes=4))

    def test_other_networks(self, path):
        with pytest.raises(QuantizationError, match=r"'stem\.0' of the model is not in it"):
            load(path, InvertedResidual())

        class Longer(Residual):
            def __init__(self) -> None:
                super().__init__()
                self.extra = nn.Linear(5, 5)

            def forward(self, x):
                return self.extra(super().forward(x))

        with pytest.raises(QuantizationError, match="'extra' of the model is not in it"):
            load(path, Longer())
        with pytest.raises(QuantizationError, match=r"nn\.Module"):
            load(path, "resnet")

    def test_a_shorter_network_and_another_bias(self, tmp_path):
        long = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        path = save(static(long, torch.randn(8, 3)), tmp_path / "m")
        with pytest.raises(QuantizationError, match="it has a layer '2', the model has not"):
            load(path, nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
        bare = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3))
        with pytest.raises(QuantizationError, match="'0' has a bias in the file only"):
            load(path, bare)

    def test_other_connections_or_parameters(self, tmp_path):
        class Same(Tokens):
            def forward(self, x):
                return self.down(torch.relu(self.up(self.norm(x)))) * self.gain + self.shift

        path = save(static(Tokens(), torch.randn(4, 6)), tmp_path / "m")
        with pytest.raises(QuantizationError, match="other operations or settings"):
            load(path, Same())
        only = save(quantize_dynamic(Tokens(), weights_only=True), tmp_path / "only")
        other = Tokens()
        other.gain = nn.Parameter(torch.rand(1))
        with pytest.raises(QuantizationError, match=r"'gain' is \(6,\) in it, \(1,\) in the model"):
            load(only, other)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path, model = small(tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(static(model, torch.randn(8, 3), weight_bits=4), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_refusals_of_save(tmp_path):
    quantized = static(make())
    with pytest.raises(QuantizationError, match=r"got Residual.*convert\(\)"):
        save(make(), tmp_path / "m")
    with pytest.raises(QuantizationError, match="'float8'"):
        save(quantized, tmp_path / "m", scales="float8")
    for path in (tmp_path / "no" / "m", tmp_path):
        with pytest.raises(QuantizationError, match="existing folder"):
            save(quantized, path)


# --- size ----------------------------------------------------------------------------------------


def test_the_bytes_of_the_report_add_up(tmp_path):
    quantized = static(make(), weight_bits=4, float_layers=("fc",))
    path = save(quantized, tmp_path / "m")
    report = size_report(path)
    parts = sum(s.code_bytes + s.scale_bytes + s.bias_bytes for s in report.layers)
    total = parts + report.activation_bytes + report.other_bytes + report.header_bytes
    assert total == report.file_bytes == path.stat().st_size
    numbers = sum(p.numel() for p in quantized.module.parameters())  # folded: with biases
    assert report.fp32_bytes == 4 * numbers
    stem = report.layers[0]
    assert (stem.name, stem.weights, stem.code_bytes, stem.scale_bytes) == ("stem", 216, 108, 32)
    assert stem.bits_per_weight == pytest.approx(4 + 32 * 8 / 216)
    assert "of it" in str(report)
    assert report.bits_per_weight == pytest.approx(
        quantized.quantized_layers()["a"].weight_qtensor.nbits_per_value, abs=0.3
    )


def test_the_residual_network_meets_its_budgets(tmp_path):
    """With its scales, INT8 takes at most 0.28 of FP32 and packed INT4 at most 0.16."""
    model = load_model("resnet")
    data = torch.randn(8, 3, 48, 48)
    int8 = static(model, data)
    assert size_report(save(int8, tmp_path / "int8")).ratio <= 0.28
    config = replace(QConfig(), weight_bits=4)
    for granularity, scales in ((64, "float32"), ("per_channel", "float16")):
        chosen = replace(config, weight_granularity=granularity)
        made = (
            PTQQuantizer(model, config=chosen)
            .calibrate([data], progress=False, ranges="minmax")
            .convert()
        )
        path = save(made, tmp_path / "int4", scales=scales)
        assert size_report(path).ratio <= 0.16
    assert_same(made, made, data)
    assert_same(int8, load(tmp_path / "int8", resnet()), data)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads Linux's memory map")
def test_a_loaded_model_does_not_hold_its_file_open(tmp_path):
    model = make()
    path = save(static(model), tmp_path / "held.safetensors")
    loaded = load(path, model)
    assert isinstance(loaded, QuantizedModel)
    with open("/proc/self/maps") as maps:
        assert "held.safetensors" not in maps.read()
    names = [m.name for m in loaded.modules() if isinstance(m, ActivationQuantizer)]
    assert set(names) == set(loaded.qparams)  # named as before saving
