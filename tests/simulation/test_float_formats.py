"""FP8, FP4, MXFP4 and NVFP4 through `QConfig` and the quantizer; what wants integers says so."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.deploy.checkpoint import load, save, size_report
from ptq_course.diagnosis.ablation import ablate
from ptq_course.diagnosis.mixed import mixed_precision
from ptq_course.diagnosis.reach import reach
from ptq_course.diagnosis.sensitivity import one_at_a_time
from ptq_course.diagnosis.sizes import layer_bytes
from ptq_course.errors import DataIntegrityError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import FloatQParams
from ptq_course.grids.floats import FLOAT_FORMATS, mxfp4, nvfp4
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.awq import AWQ
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.clustering import Cluster
from ptq_course.improve.distillation import fine_tune
from ptq_course.improve.float_weights import float_weights
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.smoothquant import SmoothQuant
from ptq_course.improve.walk import improved
from ptq_course.integer import to_integer
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.monitor import ClippingMonitor
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

X = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(3))
MX8 = QConfig(weight_format="mxfp4", activation_format="fp8_e4m3")
FP8 = QConfig(weight_format="fp8_e4m3", activation_format="fp8_e4m3", activation_range="minmax")


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16),
        nn.SiLU(), nn.ConvTranspose2d(16, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 25, 5),
    ).eval()  # fmt: skip


def quantized(config, model=None) -> Any:
    quantizer = PTQQuantizer(model or network(), config=config)
    if config.activation_bits is None:
        return quantizer.quantize_weights()
    return quantizer.calibrate([X], progress=False).convert()


@pytest.fixture(scope="module")
def fp8():
    return quantized(FP8)


@pytest.fixture(scope="module")
def mx8():
    return quantized(MX8)


# --- values --------------------------------------------------------------------------------------


def torch_fp8(x, largest, kind=torch.float8_e4m3fn):
    scale = largest / torch.finfo(kind).max
    return (x.double() / scale).to(kind).double() * scale


def test_fp8_computes_what_torch_float8_says():
    first, last = nn.Linear(8, 6), nn.Linear(6, 3)
    model = nn.Sequential(first, nn.ReLU(), last)
    x = torch.randn(32, 8)
    quantizer = PTQQuantizer(model, config=FP8).calibrate([x], progress=False)
    found = quantizer.convert()
    value, plain = x.double(), x  # ranges are those of the float network
    for layer in (first, last):
        rows = layer.weight.detach()
        weight = torch_fp8(rows, rows.abs().amax(1, keepdim=True).double())
        value = torch_fp8(value, plain.abs().max().double())
        value = F.linear(value, weight, layer.bias.double())
        if layer is first:
            value, plain = value.relu(), layer(x).relu()
    torch.testing.assert_close(found(x).double(), value, rtol=1e-5, atol=1e-6)
    assert all(layer.bias_codes is None for layer in found.quantized_layers().values())
    assert quantizer.zero_points == {"0": 0, "2": 0}
    assert quantizer.scales["0"] == pytest.approx(x.abs().max().item() / 448)


@pytest.mark.parametrize(("name", "choose"), [("mxfp4", mxfp4), ("nvfp4", nvfp4)])
def test_blocks_along_rows_are_those_of_float_weights(name, choose):
    layers = quantized(QConfig(weight_format=name, activation_bits=None)).quantized_layers()
    module: Any = float_weights(network(), choose).module
    assert torch.equal(layers["0"].weight, module.get_submodule("0").weight), "128 in a row"
    depthwise = network()[3].weight.flatten(1)
    rows = F.pad(depthwise, (0, -9 % (FLOAT_FORMATS[name].block or 1)))
    assert torch.equal(layers["3"].weight_scale, choose(rows).scale), "one short block a channel"


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_every_layer_type_has_a_form_near_the_float_one(name):
    model = network()
    made = quantized(QConfig(weight_format=name, activation_bits=None), model)
    assert list(made.quantized_layers()) == ["0", "3", "5", "7"]
    with torch.no_grad():
        error = (made(X) - model(X)).norm() / model(X).norm()
    assert 0 < error < (0.06 if name == "fp8_e4m3" else 0.12 if "fp8" in name else 0.3)
    table = nn.Sequential(nn.Embedding(10, 40), nn.Linear(40, 4))
    words = torch.randint(0, 10, (4, 7))
    made = quantized(QConfig(weight_format=name, activation_bits=None), table)
    assert list(made.quantized_layers()) == ["0", "1"]
    with torch.no_grad():
        assert (made(words) - table(words)).norm() < 0.3 * table(words).norm()


def test_groups_and_single_layers():
    config = QConfig(
        weight_format="fp4_e2m1", weight_granularity=2, activation_bits=None,
        layer_bits={"3": 8, "7": "fp8_e5m2"}, float_layers=("5",),
    )  # fmt: skip
    model = nn.Sequential(*network()[:3], nn.Conv2d(16, 16, 3), *network()[4:])
    layers = quantized(config, model).quantized_layers()
    bits = {name: layer.weight_qtensor.decoded_by for name, layer in layers.items()}
    assert "fp4_e2m1" in bits["0"]
    assert "integer" in bits["3"]
    assert "fp8_e5m2" in bits["7"]
    assert layers["0"].weight_scale.shape == (16, 4, 1, 1)


def test_without_a_graph():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    x = torch.randn(8, 64)
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(Odd(), config=MX8)
    made = quantizer.calibrate([x], progress=False).convert()
    assert isinstance(made.qparams["fc.input"], FloatQParams)
    assert torch.equal(copy.deepcopy(made)(x), made(x))


# --- the config ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_a_config_is_its_code(name):
    config = QConfig(weight_format=name, layer_bits={"a": "fp8_e5m2"}, activation_format="fp8_e4m3")
    assert config.weight_bits == FLOAT_FORMATS[name].bits
    assert eval(config.as_code()) == config
    assert config.formats == list(dict.fromkeys([name, "fp8_e4m3", "fp8_e5m2"]))
    assert config.with_integers(4) == QConfig(weight_bits=4, activation_format="fp8_e4m3")
    assert replace(config, activation_bits=None).activation_format is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"weight_format": "fp8"}, "weight_format: .*fp8_e4m3"),
        ({"weight_format": "mxfp4", "weight_bits": 5}, "weight_bits=5: it has 4"),
        ({"weight_format": "mxfp4", "weight_range": "mse"}, "weight_range='mse'"),
        ({"weight_format": "mxfp4", "weight_symmetric": False}, "no zero point"),
        ({"weight_format": "nvfp4", "weight_granularity": 32}, "blocks have 16"),
        ({"activation_format": "mxfp4"}, "activation_format='mxfp4'.*block of 32"),
        ({"layer_bits": {"fc": "fp9"}}, "layer_bits of 'fc'"),
        ({"layer_bits": {"fc": "mxfp4"}, "weight_range": "mse"}, "'fc'.*'mxfp4'"),
    ],
)
def test_what_a_config_refuses(wrong, why):
    with pytest.raises(QuantizationError, match=why):
        QConfig(**wrong)


def test_bits_do_not_overrule_a_format():
    with pytest.raises(QuantizationError, match="weight_format='mxfp4' has 4 bits"):
        PTQQuantizer(network(), bits=8, config=QConfig(weight_format="mxfp4"))
    assert FP8.with_bits(8) == FP8


# --- what is read from it ------------------------------------------------------------------------


def test_report_and_sizes(tmp_path, mx8):
    quantizer = PTQQuantizer(network(), config=MX8).calibrate([X], progress=False)
    report = quantizer.report()
    assert {row.weight_format for row in report.layers} == {"mxfp4"}
    assert "mxfp4" in str(report)
    row = report.layers[0]
    assert row.input_scale is not None
    assert row.input_high == pytest.approx(448 * row.input_scale)
    assert row.input_zero_point is None
    sizes = size_report(save(mx8, tmp_path / "a.safetensors"))
    first = sizes.layers[0]
    assert first.bits_per_weight == 4.25, "four blocks of 32 in each row"
    for layer in sizes.layers:
        held = mx8.quantized_layers()[layer.name]
        assert layer_bytes(held) == layer.code_bytes + layer.scale_bytes + layer.bias_bytes


def test_the_search_tries_what_knows_floats_and_others_are_refused():
    quantizer = PTQQuantizer(network(), config=MX8).observe([X], progress=False)
    quantizer.compute_qparams("search")
    assert quantizer.searched is not None
    assert {c.rule for c in quantizer.searched.tried} <= {"minmax", "percentile"}
    for rule in ("kl", "mse"):
        with pytest.raises(QuantizationError, match=f"{rule}.*grid of integers.*fp8_e4m3"):
            quantizer.compute_qparams(rule)


def test_clipping_is_counted(fp8):
    with ClippingMonitor(fp8) as monitor:
        fp8(X)
        assert set(monitor.shares().values()) == {0.0}, "min-max ranges clip nothing"
        monitor.reset()
        fp8(2 * X)
    share = monitor.shares()["input_1"]
    largest = X.abs().max()
    assert share == ((2 * X).abs() > largest * 464 / 448).double().mean().item() > 0


def test_diagnosis(fp8):
    model, data = network(), [X]

    def near(candidate):
        with torch.no_grad():
            return -(candidate(X) - model(X)).norm(dim=1)

    quantizer = PTQQuantizer(model, config=MX8).calibrate(data, progress=False)
    table = one_at_a_time(model, quantizer, near, bits=(8, 4), progress=False)
    assert {row.bits for row in table.rows} == {8, 4}
    alone = one_at_a_time(model, quantizer, near, progress=False)
    for row in alone.rows:  # at the width of its own format
        if row.name in ("0", "3", "5", "7"):
            assert row.bits == 4
            assert row.score != next(r.score for r in table.rows[4:] if r.name == row.name)
    assert [row.name for row in ablate(model, quantizer, near, progress=False).rows] == [
        "FP32", "W4A32", "W32A8", "W4A8"
    ]  # fmt: skip
    found = mixed_precision(
        model, quantizer, near, widths=(8, 4), target=-1e9, most=3, progress=False
    )
    assert set(dict(found.config.layer_bits)) == {"0", "3", "5", "7"}, "integers, by name"


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_a_checkpoint_comes_back(tmp_path, name):
    config = QConfig(
        weight_format=name, activation_format="fp8_e5m2", activation_range="minmax",
        layer_bits={"3": 4},
    )  # fmt: skip
    made = quantized(config)
    loaded = load(save(made, tmp_path / "a.safetensors"), network())
    assert torch.equal(loaded(X), made(X))
    assert loaded.config == made.config
    again = load(save(loaded, tmp_path / "b.safetensors", scales="float16"), network())
    assert again.quantized_layers()["0"].weight_scale.dtype == torch.float32


def test_crafted_files_are_refused(tmp_path):
    from deploy.checkpoint.test_structure import craft

    def tried(header=lambda h: None, tensors=lambda t: None):
        path = save(made, tmp_path / "a.safetensors")
        craft(path, header, tensors)
        with pytest.raises(QuantizationError, match=r"a\.safetensors") as caught:
            load(path, network())
        return caught.type

    made = quantized(QConfig(weight_format="nvfp4", activation_format="fp8_e4m3"))
    code = "layers/0/codes"
    for change in (
        {"values/zero_point": torch.ones(4, dtype=torch.int32)},
        {"layers/0/scale": torch.ones(16, 8)},
        {code: torch.zeros(3, dtype=torch.uint8)},
        {"layers/0/tensor_scale": torch.ones((), dtype=torch.float64)},
        {"layers/0/tensor_scale": torch.tensor(-1.0)},
    ):
        tried(tensors=lambda t, change=change: t.update(change))
    assert tried(tensors=lambda t: t.pop("layers/0/tensor_scale")) is not None
    for fields in ({"scale_format": "e9"}, {"row_axis": 7}, {"grid": ["float", 2]}, {"grid": []}):
        kind = tried(lambda h, fields=fields: h["layers"]["0"].update(fields))
        assert issubclass(kind, QuantizationError)
    made = quantized(QConfig(weight_format="fp8_e4m3", activation_bits=None))
    nan = torch.full((16 * 128,), 0x7F, dtype=torch.uint8)
    tried(tensors=lambda t: t.update({code: nan}))
    path = save(made, tmp_path / "b.safetensors")
    changed = bytearray(path.read_bytes())
    stored = made.quantized_layers()["0"].weight_codes.flatten()[:16].numpy().tobytes()
    changed[changed.index(stored)] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(DataIntegrityError, match=code):
        load(path, network())


# --- what wants integers -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [AdaRound(5), GPTQ()])
def test_a_search_for_codes_names_layer_format_and_remedy(step):
    quantizer = PTQQuantizer(network(), config=MX8).calibrate([X], progress=False)
    with pytest.raises(UnsupportedError, match=r"'0'.*mxfp4.*weight_bits"):
        improved(quantizer, [X], [step], progress=False)


def test_training_integer_execution_dynamic_and_reach_refuse(fp8):
    with pytest.raises(UnsupportedError, match=r"'0'.*fp8_e4m3.*weight_bits"):
        fine_tune(fp8, [X], 1, teacher=network(), progress=False)
    only = quantized(QConfig(activation_format="fp8_e4m3"))
    with pytest.raises(UnsupportedError, match=r"'input_1'.*fp8_e4m3.*activation_format"):
        fine_tune(only, [X], 1, teacher=network(), progress=False)
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(4, 8)
    made = PTQQuantizer(plain, config=FP8).calibrate([x], progress=False).convert()
    with pytest.raises(UnsupportedError, match=r"to_integer: .*fp8_e4m3.*activation_format"):
        to_integer(made)
    config = QConfig(weight_format="fp8_e4m3", activation_range="minmax")
    made = PTQQuantizer(plain, config=config).calibrate([x], progress=False).convert()
    with pytest.raises(UnsupportedError, match=r"to_integer: 0: .*fp8_e4m3"):
        to_integer(made)
    with pytest.raises(UnsupportedError, match=r"fp8_e4m3.*weights_only"):
        quantize_dynamic(plain, config=FP8)
    assert quantize_dynamic(plain, config=FP8, weights_only=True).quantized_layers()
    with pytest.raises(QuantizationError, match=r"reach: .*fp8_e4m3.*mixed_precision"):
        reach(plain, [x], lambda m: m(x).sum(1), config=FP8)


def test_what_needs_no_integers_works():
    data = [torch.randn(32, 64), torch.randn(32, 64)]
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    for steps in ([], [AWQ(data)], [SmoothQuant(data, explicit=True)]):
        quantizer = PTQQuantizer(model, config=MX8, steps=steps).calibrate(data, progress=False)
        better = improved(quantizer, data, [CorrectBias()], progress=False)
        with torch.no_grad():
            wanted = model(data[0])
            assert (better(data[0]) - wanted).norm() < 0.4 * wanted.norm()
    only = PTQQuantizer(model, config=QConfig(weight_format="mxfp4", activation_bits=None))
    book = improved(only, data, [Cluster(4)], progress=False).quantized_layers()["0"]
    assert book.codebook is not None
    assert book.weight_scale is None


@pytest.mark.parametrize(("what", "name"), [("weight", "mxfp4"), ("activation", "fp4_e2m1")])
def test_bits_given_beside_a_format_are_refused(what, name):
    made = QConfig(**{f"{what}_format": name})
    wanted = rf"{what}_format='{name}' .*{what}_bits=8.*leave {what}_bits out.*{what}_format=None"
    for config in (made, eval(made.as_code()), QConfig()):
        with pytest.raises(QuantizationError, match=wanted):
            replace(config, **{f"{what}_format": name, f"{what}_bits": 8})
    integers = replace(made, **{f"{what}_format": None, f"{what}_bits": 8})
    assert integers == QConfig()


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_default_bits_give_way_to_a_format(name):
    made = QConfig(weight_format=name)
    assert made.weight_bits == FLOAT_FORMATS[name].bits
    for plain in (QConfig(), QConfig.tensorrt(), replace(QConfig(), target="arm"),
                  copy.deepcopy(QConfig())):  # fmt: skip
        assert replace(plain, weight_format=name).weight_format == name
    assert eval(made.as_code()) == made
    assert QConfig(**asdict(made)) == made
    assert QConfig().as_code() == "QConfig()"
