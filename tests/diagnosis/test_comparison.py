"""compare and the parts it stands on: hand-computed ratios, a damaged layer, labels or none."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DataDependent, InvertedResidual, Residual, batches, randomize_batch_norms
from torch import nn

from ptq_course.diagnosis.comparison import compare, labels_of
from ptq_course.diagnosis.parts import partly, parts_of
from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.affine import QParams
from ptq_course.grids.metrics import snr_median
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def make(seed=0, net=Residual):
    torch.manual_seed(seed)
    return randomize_batch_norms(net(), seed)


def converted(model, data, ranges=None, **options):
    quantizer = PTQQuantizer(model, **options)
    return quantizer.calibrate(data, ranges=ranges, progress=False).convert()


def labelled(count=2, size=8, classes=5):
    return [(x, torch.arange(len(x)) % classes) for x, _ in batches(count, size)]


def test_one_linear_layer_by_hand():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 3)), torch.randn(5, 6)
    quantized = converted(model, [x], bits=4)
    layer = quantized.quantized_layers()["0"]
    (step,) = quantized.qparams.values()
    assert isinstance(step, QParams)
    rounded = (torch.round(x / step.scale) + step.zero_point).clamp(0, 15) - step.zero_point
    y = model(x)
    error = (rounded * step.scale) @ layer.weight.T + layer.bias - y
    by_hand = (10 * torch.log10(y.square().sum(1) / error.square().sum(1))).median().item()
    result = compare(model, quantized, [x], progress=False)
    (row,) = result.layers
    assert row.isolated_db == pytest.approx(by_hand, abs=1e-3)
    assert row.cumulative_db == pytest.approx(row.isolated_db)
    assert result.output_db == pytest.approx(by_hand, abs=1e-3)
    pooled = 10 * math.log10(y.square().sum() / error.square().sum())
    assert row.pooled_db == pytest.approx(pooled, abs=1e-3)


def test_names_match_the_report_and_adds_are_listed():
    model, data = make(), labelled()
    quantizer = PTQQuantizer(model).calibrate(data, progress=False, ranges="minmax")
    result = compare(model, quantizer.convert(), data, progress=False)
    names = [row.name for row in result.layers]
    assert [n for n in names if n != "add"] == [row.name for row in quantizer.report().layers]
    assert "add" in names
    add = result.layers[names.index("add")]
    assert add.weight_db is None
    assert math.isfinite(add.isolated_db)


def test_isolated_is_what_the_network_does_with_that_layer_alone():
    model, data = make(), batches(1)
    quantized = converted(model, data)
    parts = parts_of(quantized)
    result = compare(model, quantized, data, progress=False)
    alone = partly(quantized, *parts.only(["fc"]))  # the last layer: its output is the model's
    expected = snr_median(model(data[0][0]).detach(), alone(data[0][0]).detach())
    assert result.layers[-1].name == "fc"
    assert result.layers[-1].isolated_db == pytest.approx(expected, abs=1e-2)
    assert result.layers[-1].cumulative_db == pytest.approx(result.output_db, abs=1e-2)


@pytest.mark.parametrize("name", ["stem", "a", "b", "fc"])
def test_a_layer_with_a_wrong_scale_is_named_first(name):
    model, data = make(), batches(2)
    quantized = converted(model, data)
    quantized.quantized_layers()[name].weight_scale.mul_(1.3)
    result = compare(model, quantized, data, progress=False)
    assert result.worst(1)[0].name == name
    assert result.by_damage().layers[0].name == name
    assert result.worst(1)[0].isolated_db < 30 < result.worst(2)[1].isolated_db


def test_a_scale_wrong_by_three_tenths_is_10_db():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 32, bias=False)), torch.randn(100, 64)
    quantized = converted(model, [x])
    quantized.quantized_layers()["0"].weight_scale.mul_(1.3)
    row = compare(model, quantized, [x], progress=False).layers[0]
    assert row.isolated_db == pytest.approx(-20 * math.log10(0.3), abs=0.2)
    assert row.weight_db == pytest.approx(-20 * math.log10(0.3), abs=0.2)
    assert row.input_db > 35


def test_an_outlier_channel_shows_in_the_weights_and_cumulatively():
    model, data = make(net=InvertedResidual), batches(2)
    with torch.no_grad():
        model.block[6].weight[0, 0] *= 300
    quantized = converted(model, data, config=QConfig(weight_granularity="per_tensor"))
    result = compare(model, quantized, data, progress=False)
    weights = {row.name: row.weight_db for row in result.layers if row.weight_db is not None}
    rows = {row.name: row for row in result.layers}
    typical = model.block[6].weight.detach()[1:]
    codes = quantized.quantized_layers()["block.6"].weight.detach()[1:]
    assert (codes - typical).square().sum() / typical.square().sum() > 1e-3
    assert set(weights) == {"stem.0", "block.0", "block.3", "block.6", "head"}
    assert rows["block.6"].cumulative_db <= rows["block.3"].cumulative_db + 20


def test_a_float_layer_has_no_isolated_number():
    model, data = make(), batches(1)
    quantized = converted(model, data, config=QConfig(float_layers=("a",)))
    rows = {r.name: r for r in compare(model, quantized, data, progress=False).layers}
    assert rows["a"].weight_db is None
    assert rows["a"].cumulative_db < math.inf


@settings(max_examples=10)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_the_cut_into_batches_does_not_matter(sizes):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(sum(sizes), 6)
    quantized = converted(model, [x])
    whole = compare(model, quantized, [x], progress=False)
    cut = compare(model, quantized, list(x.split(sizes)), progress=False)
    for one, other in zip(whole.layers, cut.layers, strict=True):
        assert one.isolated_db == pytest.approx(other.isolated_db, abs=0.05)
        assert one.cumulative_db == pytest.approx(other.cumulative_db, abs=0.05)
    assert whole.changed == cut.changed


def test_labels_give_flips_and_an_interval_and_none_gives_agreement():
    model, data = make(), labelled()
    quantized = converted(model, data, bits=3)
    with_labels = compare(model, quantized, data, progress=False)
    assert with_labels.flips.total == 16
    low, high = with_labels.drop[1:]
    assert low <= with_labels.drop[0] <= high
    assert with_labels.drop[0] == pytest.approx(-with_labels.flips.net / 16)
    without = compare(model, quantized, [x for x, _ in data], progress=False)
    assert without.flips is None
    assert without.drop is None
    assert without.changed == with_labels.changed
    assert "no labels" in str(without)


def test_what_counts_as_labels():
    x, y = torch.zeros(3, 2), torch.arange(3)
    assert labels_of((x, y), 1, 3) is y
    assert labels_of({"x": x, "labels": y}, 1, 3) is y
    for batch in (x, (x,), (x, y.float()), (x, y[:2]), (x, "cat")):
        assert labels_of(batch, 1, 3) is None


def test_an_untraced_model_is_read_by_hooks_and_says_so():
    model = DataDependent()
    data = [torch.rand(4, 6), -torch.rand(4, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = converted(model, data)
    result = compare(model, quantized, data, progress=False)
    assert [row.name for row in result.layers] == ["fc", "other"]
    assert "could not be traced" in result.notes[0]
    quantized.quantized_layers()["other"].weight_scale.mul_(1.5)
    assert compare(model, quantized, data, progress=False).worst(1)[0].name == "other"


def test_operations_in_place_are_not_counted_twice():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.a(x))
            y += x
            return self.b(y)

    torch.manual_seed(0)
    model, data = InPlace(), [torch.randn(32, 6)]
    result = compare(model, converted(model, data), data, progress=False)
    assert all(row.isolated_db > 25 for row in result.layers)


def test_table_plot_and_html():
    model, data = make(), labelled()
    result = compare(model, converted(model, data), data, progress=False)
    text = str(result)
    for which in ("weight, pooled", "input, median", "isolated, median", "cumulative, median"):
        assert f"{which} dB" in text.splitlines()[0]
    assert f"output: {result.output_db:.1f} dB (median over {result.total} examples)" in text
    assert "top-1" in text
    assert "95 % interval" in text
    assert result._repr_html_().count("<tr>") == len(result.layers) + 1
    ax = result.plot()
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(
        [row.isolated_db for row in result.layers]
    )
    assert "dB" in ax.get_xlabel()


def test_neither_model_is_changed():
    model, data = make().train(), labelled()
    quantized = converted(model, data)
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(quantized.state_dict())
    compare(model, quantized, data, progress=False)
    assert model.training
    for old, new in zip(before, (model.state_dict(), quantized.state_dict()), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[k], new[k]) for k in old if isinstance(old[k], torch.Tensor))
    assert not any(m._forward_hooks for m in model.modules())


class TestErrors:
    def test_the_wrong_models(self):
        model, data = make(), batches(1)
        quantized = converted(model, data)
        with pytest.raises(QuantizationError, match="quantized already"):
            compare(quantized, quantized, data, progress=False)
        with pytest.raises(QuantizationError, match="convert"):
            compare(model, model, data, progress=False)
        with pytest.raises(QuantizationError, match="another model"):
            compare(make(seed=1), quantized, data, progress=False)

    def test_no_data(self):
        model = make()
        quantized = converted(model, batches(1))
        with pytest.raises(CalibrationError, match="no batch"):
            compare(model, quantized, [], progress=False)

    def test_nothing_is_quantized(self):
        quantized = converted(make(), batches(1))
        with pytest.raises(QuantizationError, match="no quantized layer"):
            parts_of(partly(quantized, (), ()))


class TestParts:
    def test_partly_agrees_with_float_layers(self):
        model, data = make(), batches(2)
        quantized = converted(model, data, "minmax")  # a search may choose another for the rest
        ours = partly(quantized, *parts_of(quantized).all_but(["fc"]))
        official = converted(model, data, "minmax", config=QConfig(float_layers=("fc",)))
        assert torch.equal(ours(data[0][0]), official(data[0][0]))
        assert set(ours.quantized_layers()) == set(official.quantized_layers())

    def test_nothing_quantized_is_the_float_network(self):
        model, data = make(), batches(1)
        quantized = converted(model, data)
        torch.testing.assert_close(partly(quantized, (), ())(data[0][0]), model(data[0][0]))

    def test_the_original_keeps_its_parts(self):
        quantized = converted(make(), batches(1))
        partly(quantized, (), ())
        assert len(quantized.quantized_layers()) == 4
        assert any(isinstance(m, ActivationQuantizer) for m in quantized.modules())

    def test_inputs_and_order(self):
        parts = parts_of(converted(make(), batches(1)))
        assert parts.layers == ["stem", "a", "b", "fc"]
        assert len(parts.inputs) == 1
        assert parts.feeding["stem"] == tuple(parts.inputs)
        assert len(parts.feeding["add"]) == 2


def test_the_function_is_not_hidden_by_a_module_of_its_name():
    code = (
        "import ptq_course.diagnosis\n"
        "from ptq_course import ablate, compare, diagnose, sensitivity, top1_on\n"
        "assert all(map(callable, (ablate, compare, diagnose, sensitivity, top1_on)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Decoder(nn.Module):
    """torch hides the activation module of a copied decoder layer behind F.relu."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 32, activation=nn.Tanh(), batch_first=True)

    def forward(self, x):
        return self.layer(x, x)


class Attentive(nn.Module):
    """Cannot be traced; its attention is rewritten to layers that the float model does not name."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return x if x.sum() > 1e9 else self.attention(x, x, x)[0]


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.tensor([False, False, False, True])
        return self.fc(x).masked_fill(hidden, float("-inf"))


@pytest.mark.filterwarnings("ignore:Quantizing layer by layer")
@pytest.mark.parametrize("network", [Decoder, Attentive, Masked])
def test_the_float_model_is_recognized(network):
    torch.manual_seed(0)
    model, data = network().eval(), [torch.randn(4, 5, 16)]
    if network is Masked:
        data = [torch.randn(8, 16)]
    result = compare(model, converted(model, data), data, progress=False)
    assert all(layer.cumulative_db > 20 for layer in result.layers if layer.cumulative_db)


class Reshaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

    def forward(self, x):
        x.mul_(2.0)
        x = torch.relu(self.conv(x))
        return self.fc(x.view(x.size(0), x.shape[1] * 16))


def test_shapes_are_no_layers_and_inputs_may_be_changed_in_place():
    torch.manual_seed(0)
    model, batch = Reshaping().eval(), torch.randn(8, 3, 6, 6)
    before = batch.clone()
    quantized = PTQQuantizer(model).calibrate([batch], progress=False, ranges="minmax").convert()
    result = compare(model, quantized, [batch], progress=False)
    assert [row.name for row in result.layers] == ["mul_", "conv", "fc"]
    assert result.output_db > 25
    assert torch.equal(batch, before)
