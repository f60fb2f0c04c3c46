from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ptq_course
from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.metrics import sqnr_db
from ptq_course.improve.equalization import Equalize
from ptq_course.ranges.calibrators import MinMaxCalibrator
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.network import check_same_outputs
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import (
    DataDependent,
    InvertedResidual,
    Residual,
    SharedLayer,
    batches,
    randomize_batch_norms,
)

NETWORKS = [Residual, InvertedResidual]
RULES = ["minmax", "moving_average", "percentile", "kl", "mse"]


def make(network=Residual) -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norms(network())


def calibrated(model: nn.Module, ranges: str | None = None, **kwargs) -> PTQQuantizer:
    return PTQQuantizer(model, **kwargs).calibrate(batches(), ranges=ranges, progress=False)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("preset", [QConfig.onnxruntime, QConfig.tensorrt, QConfig.arm])
def test_the_pipeline_keeps_the_output(network, preset):
    model = make(network)
    quantized = calibrated(model, config=preset()).convert()
    x = torch.cat([x for x, _ in batches()])
    assert sqnr_db(model(x), quantized(x)) > 20
    assert quantized.left_in_float == {}
    assert all(isinstance(m, QuantizedLayer) for m in quantized.quantized_layers().values())


@pytest.mark.parametrize("rule", RULES)
def test_every_range_rule_works_on_the_whole_network(rule):
    model = make()
    quantizer = PTQQuantizer(model, config=QConfig(activation_range=rule))
    quantized = quantizer.calibrate(batches(), progress=False, ranges="minmax").convert()
    x = batches()[0][0]
    assert sqnr_db(model(x), quantized(x)) > 10  # KL clips hard on so little data


def test_more_bits_are_closer():
    model = make()
    x = batches()[0][0]
    quantizer = calibrated(model)
    ratios = []
    for bits in (2, 4, 6, 8, 10):
        quantized = quantizer.compute_qparams(bits=bits).convert()
        ratios.append(sqnr_db(model(x), quantized(x)))
    assert ratios == sorted(ratios)
    assert ratios[-1] - ratios[0] > 20


def test_the_users_model_is_left_alone():
    model = make().train()
    weights = copy.deepcopy(model.state_dict())
    quantizer = calibrated(model)
    quantizer.convert()
    quantizer.quantize_weights()
    assert model.training
    assert all(torch.equal(a, model.state_dict()[n]) for n, a in weights.items())
    assert not any(isinstance(m, QuantizedLayer) for m in model.modules())


def test_a_name_keeps_its_meaning_from_step_to_step():
    """``model`` is the user's own, before and after each step; steps return what they make."""
    model = make()
    quantizer = PTQQuantizer(model, bits=6)
    prepared, names = quantizer.float_model, set(vars(quantizer))
    for step in (
        lambda: quantizer.observe(batches(), progress=False),
        lambda: quantizer.compute_qparams("minmax"),
        quantizer.convert,
        quantizer.quantize_weights,
    ):
        step()
        assert quantizer.model is model
        assert quantizer.float_model is prepared
        assert quantizer.bits == 6
        assert set(vars(quantizer)) == names
    assert PTQQuantizer(model, config=QConfig(weight_bits=None, activation_bits=4)).bits == 4


def test_a_fork_decides_for_itself():
    quantizer = calibrated(make())
    scales, fork = quantizer.scales, quantizer.fork()
    fork.compute_qparams(bits=4, config=QConfig(float_layers=("a",)))
    fork.observe(batches(1), progress=False)
    assert quantizer.scales == scales
    assert set(quantizer.convert().quantized_layers()) == {"stem", "a", "b", "fc"}
    assert (quantizer.statistics.num_batches, fork.statistics.num_batches) == (4, 5)


def test_decisions_repeat_without_a_second_pass():
    quantizer = PTQQuantizer(make())
    quantizer.observe(batches(), progress=False)
    first = quantizer.compute_qparams("minmax").scales
    other = quantizer.compute_qparams("kl").scales
    assert first != other
    assert quantizer.compute_qparams("minmax").scales == first
    fewer = quantizer.compute_qparams("minmax", bits=4).scales
    assert fewer["a"] == pytest.approx(first["a"] * 255 / 15, rel=1e-6)


def test_observing_in_two_calls_equals_one():
    data = batches(4)
    once = PTQQuantizer(make()).observe(data, progress=False)
    twice = PTQQuantizer(make())
    twice.observe(data[:1], progress=False).observe(data[1:], progress=False)
    for rule in ("minmax", "percentile", "kl", "mse"):
        assert once.compute_qparams(rule).scales == twice.compute_qparams(rule).scales
    assert twice.statistics.num_batches == 4


def test_scales_belong_to_the_input_of_each_layer():
    model = make()
    quantizer = calibrated(model, "minmax")
    x = torch.cat([x for x, _ in batches()])
    expected = (x.max() - x.min()) / 255
    assert quantizer.scales["stem"] == pytest.approx(expected.item(), rel=1e-5)
    assert isinstance(quantizer.calibrators["stem"], MinMaxCalibrator)
    assert quantizer.calibrators["stem"].max_val == x.max().item()
    assert quantizer.zero_points["a"] == 0, "after a ReLU"
    assert set(quantizer.scales) == set(quantizer.zero_points) == {"stem", "a", "b", "fc"}
    assert quantizer.scales["stem"] == quantizer.qparams["x"].scale.item()


def test_one_value_with_two_consumers_has_one_scale():
    quantized = calibrated(make()).convert()
    quantizers = [m for m in quantized.modules() if isinstance(m, ActivationQuantizer)]
    assert len(quantizers) == len(quantized.qparams) == 5


def test_all_batch_kinds():
    x = torch.randn(16, 3, 12, 12)
    labels = torch.zeros(16)
    loaders = [
        [x[:8], x[8:]],
        [(x[:8], labels[:8]), (x[8:], labels[8:])],
        [{"x": x[:8], "label": labels[:8]}, {"x": x[8:], "label": labels[8:]}],
        DataLoader(TensorDataset(x, labels), batch_size=8),
        ((x[i : i + 8], labels) for i in (0, 8)),
    ]
    scales = [
        PTQQuantizer(make()).calibrate(k, progress=False, ranges="minmax").scales for k in loaders
    ]
    assert all(s == scales[0] for s in scales)


def test_num_batches_stops_early():
    data = batches(5)
    quantizer = PTQQuantizer(make()).calibrate(data, num_batches=2, progress=False, ranges="minmax")
    assert quantizer.statistics.num_batches == 2
    assert (
        quantizer.scales
        == PTQQuantizer(make()).calibrate(data[:2], progress=False, ranges="minmax").scales
    )


def test_weight_only_and_activation_only():
    model, x = make(), batches()[0][0]
    weight_only = PTQQuantizer(model, config=QConfig(activation_bits=None)).convert()
    assert not any(isinstance(m, ActivationQuantizer) for m in weight_only.modules())
    activation_only = calibrated(model, config=QConfig(weight_bits=None)).convert()
    assert not any(isinstance(m, QuantizedLayer) for m in activation_only.modules())
    both = calibrated(model).convert()
    worst = sqnr_db(model(x), both(x))
    assert sqnr_db(model(x), weight_only(x)) > worst
    assert sqnr_db(model(x), activation_only(x)) > worst


def test_float_layers_stay_float():
    quantizer = calibrated(make(), config=QConfig(float_layers=("fc", "stem")))
    quantized = quantizer.convert()
    assert set(quantized.quantized_layers()) == {"a", "b"}
    assert set(quantizer.scales) == {"a", "b"}
    later = quantizer.compute_qparams(config=replace(quantizer.config, float_layers=("fc",)))
    assert set(later.convert().quantized_layers()) == {"stem", "a", "b"}


def test_quantize_weights_needs_no_data_as_in_the_founding_notebook():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    quantizer = PTQQuantizer(model, bits=8)
    quantized = quantizer.quantize_weights()
    codes = quantized.quantized_layers()["0"].weight_codes
    assert codes.dtype == torch.int8
    x = torch.randn(4, 64)
    assert sqnr_db(model(x), quantized(x)) > 30


def test_convolutions_are_quantized_too():
    quantizer = PTQQuantizer(nn.Sequential(nn.Conv2d(3, 4, 3)), bits=8)
    assert list(quantizer.quantize_weights().quantized_layers()) == ["0"]


def test_an_untraceable_model_is_quantized_layer_by_layer_and_says_so():
    model = DataDependent()
    data = [torch.ones(4, 6), -torch.ones(4, 6)]
    with pytest.warns(UserWarning, match="cannot be traced"):
        quantizer = PTQQuantizer(model)
    quantized = quantizer.calibrate(data, progress=False, ranges="minmax").convert()
    assert set(quantized.quantized_layers()) == {"fc", "other"}
    assert "(between layers)" in quantized.left_in_float
    for x in data:
        assert sqnr_db(model(x), quantized(x)) > 20


def test_a_branch_that_no_data_reached_is_named():
    with pytest.warns(UserWarning, match="cannot be traced"):
        quantizer = PTQQuantizer(DataDependent())
    with pytest.raises(CalibrationError, match=r"'other\.input'.*no calibration data"):
        quantizer.calibrate([torch.ones(4, 6)], progress=False, ranges="minmax")


def test_a_shared_layer_is_quantized_at_both_calls():
    model = SharedLayer()
    data = [torch.randn(64, 6)]
    quantizer = PTQQuantizer(model).calibrate(data, progress=False, ranges="minmax")
    quantized = quantizer.convert()
    assert set(quantized.quantized_layers()) == {"fc", "fc__call2", "out"}
    assert quantizer.scales["fc"] != quantizer.scales["fc__call2"]
    assert sqnr_db(model(data[0]), quantized(data[0])) > 20


def test_steps_run_on_the_fused_graph():
    seen = []

    def step(module, quantizer):
        seen.append((isinstance(module, fx.GraphModule), quantizer.config.weight_bits))
        return module

    PTQQuantizer(make(), steps=[step])
    assert seen == [(True, 8)]


@pytest.mark.parametrize("steps", [Equalize(), Equalize, [Equalize], "equalize", [None], None])
def test_steps_that_are_no_list_of_objects(steps):
    with pytest.raises(QuantizationError, match=r"steps is a list .* \[Equalize\(\)\]"):
        PTQQuantizer(make(), steps=steps)


def test_the_report_prints_and_plots():
    quantizer = calibrated(make())
    report = quantizer.report()
    text = str(report)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["stem", "a", "b", "fc"]
    assert "<table>" in report._repr_html_()
    assert report.version == ptq_course.__version__
    assert f"ptq_course {report.version}" in report._repr_html_()
    decibels = [layer.weight_sqnr_db for layer in report.layers]
    assert report.worst_weights(1)[0].weight_sqnr_db == min(decibels)
    ax = report.plot()
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(decibels)
    assert "dB" in ax.get_xlabel()


def test_report_before_calibration_and_with_float_layers():
    text = str(PTQQuantizer(make(), config=QConfig(float_layers=("fc",))).report())
    assert "float" in text
    assert "fc (kept in floating point by float_layers)" in text


class TestErrors:
    def test_asked_before_data(self):
        quantizer = PTQQuantizer(make())
        with pytest.raises(CalibrationError, match="observe"):
            quantizer.compute_qparams()
        with pytest.raises(CalibrationError, match="calibrate"):
            quantizer.convert()

    def test_no_batch(self):
        with pytest.raises(CalibrationError, match="no batch"):
            PTQQuantizer(make()).calibrate([], progress=False, ranges="minmax")
        with pytest.raises(CalibrationError, match="num_batches"):
            PTQQuantizer(make()).calibrate(
                batches(), num_batches=0, progress=False, ranges="minmax"
            )

    def test_nan_names_the_value_and_changes_nothing(self):
        quantizer = calibrated(make(), "minmax")
        before = quantizer.scales
        bad = batches(2)
        bad[1][0][0, 0, 0, 0] = float("nan")
        with pytest.raises(CalibrationError, match=r"value 'x'.*NaN"):
            quantizer.observe(bad, progress=False)
        assert quantizer.statistics.num_batches == 4
        assert quantizer.compute_qparams("minmax").scales == before

    def test_wrong_batches(self):
        with pytest.raises(CalibrationError, match=r"\['image'\].*needs \['x'\]"):
            PTQQuantizer(make()).calibrate(
                [{"image": torch.ones(1)}], progress=False, ranges="minmax"
            )
        with pytest.raises(CalibrationError, match="str"):
            PTQQuantizer(make()).calibrate(["image.png"], progress=False, ranges="minmax")
        with pytest.raises(CalibrationError, match="ndarray"):
            PTQQuantizer(make()).calibrate(
                [(torch.ones(2).numpy(),)], progress=False, ranges="minmax"
            )

    def test_unknown_rule_bits_and_model(self):
        with pytest.raises(QuantizationError, match=r"'entropy'.*kl"):
            PTQQuantizer(make()).observe(batches(), ranges="entropy", progress=False)
        for bits in (1, 17, 8.0):
            with pytest.raises(QuantizationError, match="bits"):
                PTQQuantizer(make(), bits=bits)
        with pytest.raises(QuantizationError, match=r"nn.Module"):
            PTQQuantizer("resnet50")

    def test_nothing_to_quantize(self):
        with pytest.raises(UnsupportedError, match="no layer to quantize"):
            PTQQuantizer(nn.Sequential(nn.ReLU()))

    def test_a_rule_that_was_not_collected(self):
        quantizer = calibrated(make(), "minmax")
        with pytest.raises(CalibrationError, match="ranges='kl'"):
            quantizer.compute_qparams("kl")

    def test_config(self):
        with pytest.raises(QuantizationError, match=r"\('fc',\)"):
            QConfig(float_layers="fc")
        with pytest.raises(QuantizationError, match="signed"):
            QConfig(activation_symmetric=True)


def test_statistics_of_a_layer_can_be_read():
    quantizer = PTQQuantizer(make()).observe(batches(), progress=False)
    value = quantizer.network.plan.layers["a"].input_value
    histogram = quantizer.statistics.summaries[value][DyadicHistogram]
    assert histogram.count == 4 * 8 * 8 * 144


def test_a_failed_decision_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    q = PTQQuantizer(model).observe([torch.randn(16, 8)], ranges="minmax", progress=False)
    q.compute_qparams()
    before = q.config, dict(q.qparams), q.left_in_float
    other = replace(QConfig.arm(), float_layers=("0",))
    with pytest.raises(CalibrationError, match="not collected"):
        q.compute_qparams("kl", bits=4, config=other)
    assert (q.config, q.qparams, q.left_in_float) == before
    last = list(q.qparams)[-1]
    mine = q.statistics.summaries
    mine[last] = {kind: kind() for kind in mine[last]}
    with pytest.raises(CalibrationError, match=last):
        q.compute_qparams()
    assert q.convert().qparams.keys() == before[1].keys()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(16, 8))


def test_streams_and_iterators():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    q = PTQQuantizer(model).observe(DataLoader(Stream(), batch_size=4), progress=False)
    assert q.statistics.num_batches == 4
    batches = iter([torch.full((2, 8), float(i)) for i in range(6)])
    q.observe(batches, num_batches=2, progress=False)
    q.observe(batches, num_batches=2, progress=False)
    assert next(batches)[0, 0] == 4  # none was taken and thrown away


class Repeats(nn.Module):
    """Cannot be traced; one layer stands at three places."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8)] * 3)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.filterwarnings("ignore:Quantizing layer by layer")
def test_a_layer_under_several_names_is_quantized_under_all():
    model, x = Repeats().eval(), torch.randn(16, 8)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    assert len({id(layer) for layer in quantized.module.layers}) == 1
    assert sum(isinstance(m, QuantizedLayer) for m in quantized.modules()) == 1
    assert not any(isinstance(layer, nn.Linear) for layer in quantized.module.layers)


class Adds(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.1])
def test_a_rewritten_network_that_computes_something_else_is_refused(value):
    with pytest.raises(UnsupportedError, match="changed the model's output"):
        check_same_outputs(nn.Identity(), Adds(value), [torch.ones(2)])


def test_equal_infinities_are_no_difference():
    masked = torch.tensor([1.0, float("-inf")])
    check_same_outputs(nn.Identity(), Adds(1e-5), [masked])


def test_outputs_are_compared_by_their_own_scale():
    """Probabilities over a thousand classes are near 0.001; twice as much must not pass."""
    small = torch.full((2, 5), 1e-4)
    with pytest.raises(UnsupportedError, match="changed the model's output"):
        check_same_outputs(nn.Identity(), Adds(1e-4), [small])
    check_same_outputs(nn.Identity(), Adds(1e-8), [small])
    check_same_outputs(nn.Identity(), Adds(1e-3), [torch.full((2, 5), 1e3)])


def test_a_value_that_is_nan_in_the_reference_is_none_to_reach():
    class Repaired(nn.Module):
        def forward(self, x):
            return x.nan_to_num(0.0)

    check_same_outputs(nn.Identity(), Repaired(), [torch.tensor([1.0, float("nan")])])


def test_a_batch_norm_over_another_axis_is_refused_also_without_data():
    """A graph cannot tell [N, L, C] from [N, C]; the layer sees its input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[1].running_mean.normal_()
    for convert in (lambda m: PTQQuantizer(m).quantize_weights(), quantize_dynamic):
        quantized = convert(model)
        assert sqnr_db(model(torch.ones(3, 4)), quantized(torch.ones(3, 4))) > 25
        with pytest.raises(UnsupportedError, match=r"layer '0'.*batch norm.*\(3, 4, 4\)"):
            quantized(torch.randn(3, 4, 4))


def test_a_value_that_was_always_zero_is_named():
    """Its scale says nothing: in use, its values would be rounded to whole numbers."""
    torch.manual_seed(0)
    first = nn.Linear(4, 4)
    nn.init.constant_(first.bias, -100)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))
    quantizer = PTQQuantizer(model)
    with pytest.warns(UserWarning, match="^1: 0 in all calibration data"):
        quantizer.calibrate([torch.randn(8, 4)], ranges="minmax")
    quantizer.observe([torch.full((8, 4), 1000.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.compute_qparams("minmax")
