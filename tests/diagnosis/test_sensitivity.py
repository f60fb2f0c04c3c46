"""The sweeps over layers, at several widths, and the bytes that they show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import answering, batches, taught_by

from ptq_course.deploy.checkpoint import load, save, size_report
from ptq_course.diagnosis.scores import top1_on
from ptq_course.diagnosis.sensitivity import all_but_one, one_at_a_time
from ptq_course.diagnosis.sizes import fp16_bytes, layer_bytes
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

DATA = batches(2, 16)
LAYERS = ["stem", "a", "b", "fc"]


@pytest.fixture(scope="module")
def network():
    return answering(DATA, 0)


@pytest.fixture(scope="module")
def evaluate(network):
    return top1_on(taught_by(network, DATA))


@pytest.fixture(scope="module")
def quantizer(network):
    config = QConfig(activation_range="minmax")
    return PTQQuantizer(network, config=config).calibrate(DATA, progress=False)


class Counting(list):
    """A loader that counts how often it is read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_the_data_are_read_once_for_any_number_of_layers_and_widths(network, evaluate):
    loader = Counting(DATA)
    table = one_at_a_time(
        network, loader, evaluate, bits=(8, 4, 2), ranges="minmax", progress=False
    )
    calls = loader.reads
    assert len(table.rows) == 3 * len(LAYERS)
    loader.reads = 0
    one_at_a_time(network, loader, evaluate, layers=["fc"], ranges="minmax", progress=False)
    assert loader.reads == calls


def test_each_version_rounds_the_layer_that_it_names_and_no_other(network, quantizer):
    seen = []

    def watch(model):
        layers = getattr(model, "quantized_layers", dict)()
        seen.append({name: layer.weight_grid.bits for name, layer in layers.items()})
        return torch.ones(3)

    one_at_a_time(network, quantizer, watch, bits=(8, 3), progress=False)
    assert seen == [{}, *({n: 8} for n in LAYERS), *({n: 3} for n in LAYERS)]
    seen.clear()
    all_but_one(network, quantizer, watch, bits=(8, 3), progress=False)
    everything = {n: dict.fromkeys(LAYERS, b) for b, n in [(8, 0), (3, 1)]}
    wanted = []
    for whole in everything.values():
        wanted += [whole, *({m: b for m, b in whole.items() if m != name} for name in LAYERS)]
    assert seen == wanted


def test_any_metric_is_taken_and_a_single_number_has_no_interval(network, quantizer):
    x = DATA[0][0]
    expected = network(x)
    found = one_at_a_time(
        network, quantizer, lambda m: -(m(x) - expected).square().mean().item(), bits=(2, 8),
        progress=False,
    )  # fmt: skip
    scores = {(row.name, row.bits): row.score for row in found.rows}
    assert all(scores[name, 2] < scores[name, 8] < 0 for name in LAYERS)
    assert found.reference is not None
    assert found.reference.score == 0
    assert "one number" in str(found)


def test_printed_with_the_worst_first_and_the_bytes_beside(network, quantizer, evaluate):
    table = one_at_a_time(network, quantizer, evaluate, bits=(2, 8), progress=False)
    lines = str(table).splitlines()
    assert lines[0].split()[:3] == ["quantized", "alone", "bits"]
    shown = [float(line.split()[2]) for line in lines[2:10]]
    assert shown == sorted(shown)
    assert table.worst(1, bits=8)[0].bits == 8
    left = all_but_one(network, quantizer, evaluate, bits=2, progress=False)
    shown = [float(line.split()[2]) for line in str(left).splitlines()[2:6]]
    assert shown == sorted(shown, reverse=True)
    assert "count for size, not for speed" in str(left)
    assert table["fc"].bytes < table["fc"].fp16_bytes
    with pytest.raises(KeyError, match="no layer 'nose'"):
        table["nose"]


@pytest.mark.parametrize("config", [
    QConfig(), QConfig(layer_bits={"a": 4, "fc": 2, "b": 11}), QConfig(weight_granularity=4),
    QConfig(weight_symmetric=False, weight_bits=3),
])  # fmt: skip
def test_bytes_are_those_of_the_checkpoint(network, tmp_path, config):
    quantized = PTQQuantizer(network, config=config)
    if config.weight_granularity == 4:
        config = QConfig(weight_granularity=4, layer_bits={"a": 4}, float_layers=("stem",))
        quantized = PTQQuantizer(network, config=config)
    model = quantized.quantize_weights()
    sizes = size_report(save(model, tmp_path / "m.safetensors")).layers
    for size in sizes:
        stored = size.code_bytes + size.scale_bytes + size.bias_bytes
        assert layer_bytes(model.quantized_layers()[size.name]) == stored
    assert fp16_bytes(network.fc) == 2 * (8 * 5 + 5)


class TestLayerBits:
    def test_one_layer_has_its_own_width_in_model_report_and_checkpoint(self, network, tmp_path):
        config = QConfig(layer_bits={"a": 4, "fc": 3})
        quantizer = PTQQuantizer(network, config=config).calibrate(DATA, progress=False)
        model = quantizer.convert()
        layers: dict[str, Any] = model.quantized_layers()
        bits = {name: layer.weight_grid.bits for name, layer in layers.items()}
        assert bits == {"stem": 8, "a": 4, "b": 8, "fc": 3}
        assert {r.name: r.weight_bits for r in quantizer.report().layers} == bits
        alike = PTQQuantizer(network, config=QConfig(weight_bits=4)).quantize_weights()
        torch.testing.assert_close(
            model.quantized_layers()["a"].weight, alike.quantized_layers()["a"].weight
        )
        again = load(save(model, tmp_path / "m.safetensors"), network)
        assert again.config == model.config
        assert torch.equal(again(DATA[0][0]), model(DATA[0][0]))

    def test_pairs_and_mappings_are_the_same_and_hashable(self):
        assert QConfig(layer_bits={"a": 4}) == QConfig(layer_bits=[["a", 4]])
        assert hash(QConfig(layer_bits={"a": 4})) == hash(QConfig(layer_bits=(("a", 4),)))
        assert QConfig(layer_bits={"a": 4}).with_bits(6).layer_bits == (("a", 4),)

    @pytest.mark.parametrize(("options", "match"), [
        ({"layer_bits": {"a": 1}}, "layer_bits of 'a' must be an integer from 2 to 16, got 1"),
        ({"layer_bits": {"a": "4"}}, "layer_bits of 'a'"),
        ({"layer_bits": 4}, "mapping"),
        ({"layer_bits": ["a"]}, "mapping"),
        ({"layer_bits": [("a", 4), ("a", 5)]}, "once"),
        ({"layer_bits": {"a": 4}, "float_layers": ("a",)}, "'a' stands in float_layers"),
        ({"layer_bits": {"a": 4}, "weight_bits": None}, "'a' has a width"),
    ])  # fmt: skip
    def test_wrong_settings_name_the_layer(self, options, match):
        with pytest.raises(QuantizationError, match=match):
            QConfig(**options)

    def test_layers_that_are_not_there_or_stay_in_float(self, network):
        with pytest.raises(QuantizationError, match=r"gives 'nose' 4 bits.*Its layers: a, b"):
            PTQQuantizer(network, config=QConfig(layer_bits={"nose": 4}))
        quantizer = PTQQuantizer(network).observe(DATA, progress=False)
        before = quantizer.config
        kept = QConfig(layer_bits={"a": 4}, float_layers=("Conv2d",))
        with pytest.raises(QuantizationError, match="'a' 4 bits, but its weight stays"):
            quantizer.compute_qparams(config=kept)
        assert quantizer.config is before


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"bits": 1}, QuantizationError, "bits must be an integer from 2 to 16"),
    ({"bits": ()}, QuantizationError, "at least one width"),
    ({"bits": "48"}, QuantizationError, "bits must be"),
    ({"layers": ["nose"]}, QuantizationError, "'nose' is not quantized; there are stem"),
    ({"config": QConfig(weight_bits=None), "bits": 4}, QuantizationError, "weight_bits=None"),
    ({"config": QConfig(float_layers=("nose",))}, UnsupportedError, "names 'nose'"),
])  # fmt: skip
def test_bad_input(network, evaluate, options, error, match):
    with pytest.raises(error, match=match):
        one_at_a_time(network, DATA, evaluate, progress=False, **options)
