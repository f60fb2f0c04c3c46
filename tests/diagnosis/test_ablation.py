"""The contract of evaluate, ablate and sensitivity."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import DataDependent, answering, batches, taught_by
from torch import nn

from ptq_course.diagnosis.ablation import ablate
from ptq_course.diagnosis.scores import Scores, against, score, top1_on
from ptq_course.diagnosis.sensitivity import sensitivity
from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

DATA = batches(2, 16)


def make(seed=0):
    return answering(DATA, seed)


def teacher(model, data=DATA):
    return top1_on(taught_by(model, data))


def test_the_four_versions_and_their_differences():
    model = make()
    table = ablate(
        model, DATA, teacher(model), config=QConfig(weight_bits=3, activation_bits=4),
        progress=False,
    )  # fmt: skip
    assert [row.name for row in table.rows] == ["FP32", "W3A32", "W32A4", "W3A4"]
    assert table["FP32"].score == 1.0
    for row in table.rows[1:]:
        assert row.difference == pytest.approx(row.score - 1)
        assert (row.lost, row.gained) == (round(32 * (1 - row.score)), 0)
        assert row.low <= row.difference <= row.high
    assert table["W3A4"].score < 1


def test_each_version_is_what_its_config_says():
    model, x = make(), DATA[0][0]
    seen = []

    def evaluate(net):
        seen.append(net(x))
        return torch.ones(3)

    ablate(model, DATA, evaluate, config=QConfig(activation_range="minmax"), progress=False)
    activation_only = PTQQuantizer(model, config=QConfig(weight_bits=None))
    activation_only = activation_only.calibrate(DATA, progress=False, ranges="minmax").convert()
    both = PTQQuantizer(model).calibrate(DATA, progress=False, ranges="minmax").convert()
    weight_only = PTQQuantizer(model).quantize_weights()
    for got, model_ in zip(seen, (model, weight_only, activation_only, both), strict=True):
        torch.testing.assert_close(got, model_(x), atol=2e-3, rtol=0)
    assert not torch.equal(seen[1], seen[0])


def test_activations_alone_hurt_where_one_picture_is_an_outlier():
    model = make()
    flash = [(torch.cat([x[:-1], x[-1:] * 500]), y) for x, y in DATA]
    config = QConfig(weight_bits=12)
    table = ablate(model, flash, teacher(model), config=config, more=True, progress=False)
    assert table["W32A8"].high < 0
    assert table["W12A32"].score > 0.95
    assert table["input only"].score < table["W12A32"].score
    assert table["all but stem"].score >= table["W12A8"].score
    assert "all but stem, fc" in str(table)


def test_only_one_kind_of_bits():
    model = make()
    table = ablate(
        model, DATA, teacher(model), config=QConfig(activation_bits=None), progress=False
    )
    assert [row.name for row in table.rows] == ["FP32", "W8A32"]
    nothing = QConfig(weight_bits=None, activation_bits=None)
    with pytest.raises(QuantizationError, match="quantizes nothing"):
        ablate(model, DATA, teacher(model), config=nothing, progress=False)


def test_an_observed_quantizer_is_used_and_left_as_it_was():
    model = make()
    quantizer = PTQQuantizer(model).observe(DATA, progress=False).compute_qparams("kl")
    scales, config = dict(quantizer.scales), quantizer.config
    table = ablate(
        model, quantizer, teacher(model), ranges="minmax", config=QConfig(weight_bits=4),
        progress=False,
    )  # fmt: skip
    assert table["W4A32"].name == "W4A32"
    assert (quantizer.scales, quantizer.config) == (scales, config)
    fork = quantizer.fork().compute_qparams(config=QConfig(float_layers=("fc",)))
    assert set(fork.convert().quantized_layers()) == {"stem", "a", "b"}
    assert set(quantizer.convert().quantized_layers()) == {"stem", "a", "b", "fc"}


def test_one_number_gives_no_interval_and_says_so():
    model = make()
    per_example = teacher(model)
    table = ablate(model, DATA, lambda net: per_example(net).mean().item(), progress=False)
    assert table["W8A8"].low is None
    assert not table["W8A8"].significant
    assert "one number" in str(table)
    assert "unknown" in table._repr_html_()


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 1000))
def test_lost_and_gained_account_for_the_difference(right, seed):
    first = torch.tensor(right, dtype=torch.double)
    second = first[torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))]
    row = against(Scores(first.mean().item(), first), Scores(second.mean().item(), second), "v")
    assert row.lost == row.gained
    assert row.difference == pytest.approx(0)
    assert row.low <= 1e-12
    assert row.high >= -1e-12


class TestSensitivity:
    def test_the_damaging_layer_is_worst_in_both_modes(self):
        model = make()
        with torch.no_grad():  # a weight that no value reaches sets the scale of all others
            model.stem_bn.bias[0] = -100
            model.a.weight[:, 0, 0, 0] = 100
        config = QConfig()
        alone = sensitivity(model, DATA, config=config, progress=False)
        assert alone.by == "snr_median"
        assert alone.worst(1)[0].name == "a"
        left = sensitivity(model, DATA, config=config, mode="float", progress=False)
        assert left.worst(1)[0].name == "a"
        assert [row.name for row in left.rows] == ["stem", "a", "b", "fc"]

    def test_by_evaluate_the_reference_is_the_network_around_it(self):
        model, config = make(), QConfig(weight_bits=2, activation_bits=3)
        evaluate = teacher(model)
        alone = sensitivity(model, DATA, evaluate, config=config, layers=["fc"], progress=False)
        assert alone.rows[0].difference == pytest.approx(alone.rows[0].score - 1)
        left = sensitivity(
            model, DATA, evaluate, mode="float", config=config, layers=["fc"], progress=False
        )
        quantized = (
            PTQQuantizer(model, config=config)
            .calibrate(DATA, progress=False, ranges="minmax")
            .convert()
        )
        whole = score(evaluate, quantized, "all").mean
        assert left.rows[0].difference == pytest.approx(left.rows[0].score - whole)
        assert "left in float" in str(left)
        assert "quantized alone" in alone._repr_html_()

    def test_untraced_models_too(self):
        torch.manual_seed(0)
        data = [torch.rand(4, 6), -torch.rand(4, 6)]
        with pytest.warns(UserWarning, match="traced"):
            table = sensitivity(DataDependent(), data, progress=False)
        assert [row.name for row in table.rows] == ["fc", "other"]
        assert all(row.score > 20 for row in table.rows)

    def test_bad_input(self):
        model = make()
        with pytest.raises(QuantizationError, match="mode"):
            sensitivity(model, DATA, mode="both", progress=False)
        with pytest.raises(QuantizationError, match="'nose' is not quantized"):
            sensitivity(model, DATA, layers=["nose"], progress=False)
        quantizer = PTQQuantizer(model).observe(DATA, progress=False)
        with pytest.raises(QuantizationError, match="data=loader"):
            sensitivity(model, quantizer, progress=False)
        with pytest.raises(CalibrationError, match="no batch"):
            sensitivity(model, quantizer, data=[], progress=False)


class TestEvaluate:
    def test_top1_on(self):
        model = nn.Identity()
        evaluate = top1_on(
            [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3), torch.arange(3))]
        )
        assert evaluate(model).tolist() == [1, 1, 0, 1, 1, 1]

    @pytest.mark.parametrize(
        "batch", [torch.eye(3), (torch.eye(3), torch.zeros(3)), (torch.eye(3),)]
    )
    def test_labels_are_missing(self, batch):
        with pytest.raises(CalibrationError, match="compare"):
            top1_on([batch])(nn.Identity())

    def test_empty_and_once_only(self):
        with pytest.raises(CalibrationError, match="no batch"):
            top1_on([])(nn.Identity())
        with pytest.raises(CalibrationError, match="only once"):
            top1_on(iter([1]))
        with pytest.raises(CalibrationError, match="a loader"):
            top1_on(3)

    @pytest.mark.parametrize(
        ("result", "match"),
        [
            (float("nan"), "NaN"),
            (torch.tensor([1.0, float("inf")]), "NaN or infinity"),
            (torch.zeros(0), "one score"),
            (torch.zeros(3, 4), "correct"),
        ],
    )
    def test_unusable_results(self, result, match):
        with pytest.raises(QuantizationError, match=match):
            ablate(make(), DATA, lambda _: result, progress=False)

    def test_other_examples_each_time(self):
        sizes = iter([4, 5])
        with pytest.raises(QuantizationError, match="same examples"):
            ablate(make(), DATA, lambda _: torch.ones(next(sizes)), progress=False)

    def test_not_a_function(self):
        with pytest.raises(QuantizationError, match="top1_on"):
            ablate(make(), DATA, DATA, progress=False)


def test_bad_models_and_data():
    model = make()
    evaluate = teacher(model)
    quantized = PTQQuantizer(model).calibrate(DATA, progress=False, ranges="minmax").convert()
    with pytest.raises(QuantizationError, match="quantized already"):
        ablate(quantized, DATA, evaluate, progress=False)
    with pytest.raises(CalibrationError, match="no batch"):
        ablate(model, [], evaluate, progress=False)
    with pytest.raises(CalibrationError, match="only once"):
        ablate(model, iter(DATA), evaluate, progress=False)


def test_the_model_is_not_changed():
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    evaluate = teacher(copy.deepcopy(model).eval())
    ablate(model, DATA, evaluate, more=True, progress=False)
    sensitivity(model, DATA, evaluate, progress=False)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Decoder(nn.Module):
    """torch hides the activation module of a copied decoder layer behind F.relu."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 32, activation=nn.Tanh(), batch_first=True)

    def forward(self, x):
        return self.layer(x, x)


def test_fp32_is_scored_with_its_own_activation():
    torch.manual_seed(0)
    model, x = Decoder().eval(), torch.randn(4, 5, 16)
    with torch.no_grad():
        expected = model(x)
    table = ablate(model, [x], lambda m: -(m(x) - expected).abs().amax((1, 2)), progress=False)
    assert table["FP32"].score == pytest.approx(0, abs=1e-5)


def test_a_quantizer_of_another_model_is_refused():
    quantizer = PTQQuantizer(make(0)).observe(DATA, progress=False)
    for ask in (ablate, sensitivity):
        with pytest.raises(QuantizationError, match="made from another model"):
            ask(make(1), quantizer, teacher(make(1)), progress=False)


def test_scores_that_are_no_shares_are_shown_as_they_are():
    """A squared error with a minus sign: points and percent would read +0.0."""
    model, expected = make(), [make()(x) for x, *_ in DATA]

    def evaluate(net):
        errors = [(net(x) - y).square().mean(1) for (x, *_), y in zip(DATA, expected, strict=True)]
        return -torch.cat(errors)

    table = ablate(model, DATA, evaluate, config=QConfig(4, 4), progress=False)
    row = table["W4A4"]
    assert not row.is_share
    assert "points" not in str(row)
    assert row.cells()[1] == f"{row.score:.4g}"
    assert float(row.cells()[4]) == pytest.approx(row.difference, rel=1e-3)
    assert "points" in str(against(Scores(0.5), Scores(0.4), "x"))


@pytest.mark.parametrize("result", [{"top1": 0.5}, None, "high"])
def test_what_is_no_score_is_named(result):
    named = r"evaluate returned a (dict|NoneType|str) for FP32"
    with pytest.raises(QuantizationError, match=named):
        score(lambda _: result, make(), "FP32")


def test_top1_on_several_inputs_and_on_dicts():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    a, b, labels = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 0])
    expected = [1.0, 1.0, 0.0]
    assert top1_on([(a, b, labels)])(Two()).tolist() == expected
    assert top1_on([{"a": a, "b": b, "labels": labels}])(Two()).tolist() == expected
    for batch in ({"a": a, "b": b}, (a, b), labels):
        with pytest.raises(CalibrationError, match="integer labels"):
            top1_on([batch])(Two())
