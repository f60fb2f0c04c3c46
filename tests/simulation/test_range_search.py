import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.metrics import sqnr_db
from ptq_course.ranges.calibrators import PERCENTILES
from ptq_course.simulation import observe, range_search
from ptq_course.simulation.observe import SAMPLE, Sample, output_noise, outputs_over
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.range_search import every_candidate, search_ranges
from tests.networks import InvertedResidual, Residual, batches, randomize_batch_norms


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x):
        return {"a": self.a(x), "more": (self.b(x), x.argmax(1))}


def observed(model, data):
    return PTQQuantizer(model).observe(data, progress=False)


def outlier_batches():
    data = batches()
    data[0][0][0, 0, 0, 0] = 500.0
    return data


def test_the_best_rule_is_the_one_nearest_to_fp32():
    torch.manual_seed(0)
    model, data = randomize_batch_norms(Residual()), outlier_batches()
    quantizer = observed(model, data)
    clean = batches(seed=1)
    found = search_ranges(quantizer, clean, progress=False)
    assert len(found.tried) == len(every_candidate())
    order = [(-t.data, -t.sqnr_db) for t in found.tried]
    assert order == sorted(order)
    assert found.best.data == 1.0
    assert found.best.rule != "minmax"  # one outlier made its steps coarse
    x = torch.cat([b[0] for b in clean])
    with torch.no_grad():
        reached = sqnr_db(model(x), quantizer.convert()(x))
    assert reached == pytest.approx(found.best.sqnr_db, abs=0.1)  # biases are now integers, too
    assert str(found.best) in str(found).splitlines()[1]


def brute_force(quantizer, model, x):
    """Decibels of every candidate, on all examples, from the definition."""
    found = {}
    with torch.no_grad():
        y = model(x).double()
        for rule, options in every_candidate():
            error = y - quantizer.fork().compute_qparams(rule, **options).convert()(x)
            ratio = y.square().sum() / error.square().sum()
            found[rule, tuple(options.values())] = 10 * ratio.log10().item()
    return found


@pytest.mark.parametrize("make", [Residual, InvertedResidual])
@pytest.mark.parametrize("data", [batches, outlier_batches])
def test_the_search_finds_what_trying_all_on_everything_finds(make, data):
    torch.manual_seed(0)
    model, data = randomize_batch_norms(make()), data()
    quantizer = observed(model, data)
    every = brute_force(quantizer, model, torch.cat([x for x, _ in data]))
    search = search_ranges(quantizer, data, progress=False)
    best = search.best
    assert every[best.rule, tuple(best.options.values())] > max(every.values()) - 1
    for tried in search.tried:
        if tried.data == 1.0:  # what was measured on everything is what it is
            reached = every[tried.rule, tuple(tried.options.values())]
            assert tried.sqnr_db == pytest.approx(reached, abs=0.4)  # biases are integers there


@pytest.mark.parametrize("sizes", [(64,), (16,) * 4, (4,) * 40])
def test_the_work_is_less_than_half_of_trying_all_on_everything(sizes, monkeypatch):
    """Counted in examples: sixteen candidates would run the data sixteen times.

    This is the worst case: on Gaussian data the rules are so alike that none is out of the race.
    """
    data = [torch.randn(n, 6) for n in sizes]
    quantizer = observed(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), data)
    rows = []

    def counting(run, batches):
        rows.extend(len(inputs[0]) for inputs in batches)
        return outputs_over(run, batches)

    monkeypatch.setattr(range_search, "outputs_over", counting)
    assert len(search_ranges(quantizer, data, progress=False).tried) == 16
    # candidates, FP32's own outputs, and the trial whether the batches can be cut
    assert sum(rows) <= (6.1 + 1 + 0.1) * sum(sizes)


@pytest.mark.parametrize("loud", [0.0, 1000.0])
def test_who_cannot_win_any_more_stops(loud):
    """With an outlier min-max is far behind; it must not run on everything to say so."""
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    x[5, 0] = loud
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.data[:, 0] = 0  # nothing is lost where it is clipped
    quantizer = observed(model, [x])
    tried = {t.rule: t for t in reversed(search_ranges(quantizer, [x], progress=False).tried)}
    assert (tried["minmax"].data < 0.5) == (loud > 0)


def regression(seed):
    """A network trained to add four positive inputs with a long tail (distances, energies)."""
    torch.manual_seed(seed)
    x = torch.randn(1000, 16).exp()
    y = x[:, :4].sum(1, keepdim=True)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    step = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        step.zero_grad()
        (net(x) - y).square().mean().backward()
        step.step()
    return net.eval(), x


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_kl_loses_on_a_regression_with_long_tails_and_the_search_does_not(seed):
    """The rare large values are the answer here, and not noise; small parts may hold none."""
    net, x = regression(seed)
    quantizer = observed(net, list(x.split(100)))
    with torch.no_grad():
        reached = {
            rule: sqnr_db(net(x), quantizer.compute_qparams(rule).convert()(x))
            for rule in ("minmax", "mse", "kl")
        }
        search = quantizer.compute_qparams("search").searched
        found = sqnr_db(net(x), quantizer.convert()(x))
    assert reached["kl"] < reached["minmax"] - 8
    assert reached["kl"] < reached["mse"] - 8
    assert search.best.rule != "kl"
    assert found > max(reached.values()) - 1


class TwoRegressions(nn.Module):
    """A loud output that needs the full range, and a quiet one whose range is best clipped."""

    def __init__(self, loudness):
        super().__init__()
        self.full, self.bulk = nn.Linear(8, 4), nn.Linear(8, 4)
        self.loudness = loudness

    def forward(self, x):
        return self.loudness * self.full(x[:, :8]), self.bulk(x[:, 8:])


def two_regressions():
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    x[:, :8] = torch.rand(256, 8) * 2 - 1  # uniform: clipping loses
    x[::64, 8] = 60.0  # one outlier in 64 examples: not clipping loses
    return list(x.split(32))


def test_each_output_counts_by_its_own_ratio():
    """What multiplies one output by a thousand must not change the choice."""
    chosen = []
    for loudness in (1.0, 1e-4, 1e4):
        torch.manual_seed(1)
        data = two_regressions()
        quantizer = observed(TwoRegressions(loudness).eval(), data)
        search = search_ranges(quantizer, data, progress=False)
        chosen.append([(str(t), pytest.approx(t.sqnr_db, abs=0.01)) for t in search.tried[:2]])
    assert chosen[0] == chosen[1] == chosen[2]
    assert "minmax" not in chosen[0][0][0], "all values in one vector: the loud output's choice"


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(x.view(8, 6))


def test_a_model_of_one_batch_size_is_not_cut():
    data = [torch.randn(8, 6) for _ in range(3)]
    search = search_ranges(observed(FixedBatch().eval(), data), data, progress=False)
    assert {t.data for t in search.tried} <= {1 / 3, 2 / 3, 1.0}


def test_the_parts_of_the_data_are_spread_over_all_of_it():
    def first_part(data):
        pieces = range_search._pieces(data, nn.Identity())
        assert sum(len(x) for piece in pieces for (x,) in piece) == sum(len(x) for (x,) in data)
        return torch.cat([x for (x,) in pieces[0]])[:, 0].tolist()

    count = torch.arange(320.0)[:, None]
    assert first_part([[count]]) == list(range(0, 320, 16))
    assert first_part([[x] for x in count.split(10)]) == [*range(10), *range(160, 170)]
    assert first_part([[x] for x in count.split(160)]) == list(range(0, 160, 8))
    few = range_search._pieces([[torch.ones(3, 2)]], nn.Identity())
    assert [len(x) for piece in few for (x,) in piece] == [1, 1, 1]


# --- the default -----------------------------------------------------------------------------


def test_calibrate_searches_unless_a_rule_is_named():
    torch.manual_seed(0)
    model, data = randomize_batch_norms(Residual()), outlier_batches()
    default = PTQQuantizer(model).calibrate(data, progress=False)
    best = default.searched.best
    by_hand = PTQQuantizer(model).observe(data, progress=False)
    assert search_ranges(by_hand, data, progress=False).best == best
    assert default.scales == by_hand.scales
    named = by_hand.compute_qparams(best.rule, **best.options)
    assert default.scales == named.scales
    assert named.searched is None
    minmax = PTQQuantizer(model).calibrate(data, ranges="minmax", progress=False)
    assert minmax.searched is None
    assert minmax.scales == by_hand.compute_qparams("minmax").scales != default.scales
    percentile = PTQQuantizer(model).calibrate(
        data, ranges="percentile", percentile=99.0, progress=False
    )
    assert percentile.scales == by_hand.compute_qparams("percentile", percentile=99.0).scales
    config = QConfig(activation_range="minmax")
    assert PTQQuantizer(model, config=config).calibrate(data, progress=False).searched is None


def test_the_search_is_made_for_the_bits_that_are_asked_for():
    torch.manual_seed(0)
    model, data = randomize_batch_norms(Residual()), outlier_batches()
    quantizer = observed(model, data)
    quantizer.compute_qparams("search", bits=4)
    assert quantizer.config.activation_bits == 4
    four = quantizer.searched.best.sqnr_db
    assert four < quantizer.compute_qparams("search", bits=8).searched.best.sqnr_db - 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.compute_qparams("search", bits=12)
    assert "kl" not in {t.rule for t in quantizer.searched.tried}, "not meant for so many levels"


def test_without_a_rule_the_rule_is_one_that_was_collected():
    x = [torch.randn(64, 6)]
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    only = PTQQuantizer(model).observe(x, ranges="minmax", progress=False).compute_qparams("search")
    assert only.scales == PTQQuantizer(model).calibrate(x, ranges="minmax", progress=False).scales
    both = PTQQuantizer(model).observe(x, ranges="mse", progress=False).compute_qparams("search")
    assert {t.rule for t in both.searched.tried} == {"kl", "mse"}  # they read the same histogram
    average = PTQQuantizer(model).observe(x, ranges="moving_average", progress=False)
    with pytest.raises(CalibrationError, match="not collected"):
        average.compute_qparams("search")
    with pytest.raises(QuantizationError, match="'search' takes no option 'percentile'"):
        both.compute_qparams("search", percentile=99.0)
    floats = PTQQuantizer(model, config=QConfig(activation_bits=None)).compute_qparams("search")
    assert floats.searched is None
    assert floats.qparams == {}


def test_merged_statistics_do_not_depend_on_who_saw_which_examples():
    x = torch.randn(64, 6)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    first, second = observed(model, [x[:32]]), observed(model, [x[32:]])
    first.merge(second)
    with pytest.raises(CalibrationError, match=r"after merge or all_reduce.*name a rule"):
        first.compute_qparams("search")
    assert first.compute_qparams("kl").scales == observed(model, [x]).compute_qparams("kl").scales
    assert (
        search_ranges(first, [x], progress=False).best
        == search_ranges(observed(model, [x]), [x], progress=False).best
    )
    first.observe([x], progress=False)  # its own examples again, and not those of the other
    with pytest.raises(CalibrationError, match="after merge"):
        first.compute_qparams("search")


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_the_sample_is_small_and_evenly_spread(sizes):
    sample = Sample()
    for number, size in enumerate(sizes):
        sample.add([torch.full((size, 1), float(number))])
    kept = [int(x[0, 0]) for (x,) in sample.batches]
    assert kept == list(range(0, len(sizes), sample.step))
    assert sum(sizes[k] for k in kept) <= SAMPLE or len(kept) == 1
    assert sample.step & (sample.step - 1) == 0


def test_the_sample_of_large_inputs_is_limited_by_its_size(monkeypatch):
    monkeypatch.setattr(observe, "SAMPLE_BYTES", 4000)
    sample = Sample()
    for _ in range(9):
        sample.add([torch.zeros(1, 100), torch.zeros(1, 150)])  # 1,000 bytes
        assert len(sample.batches) <= 4
    assert sample.step == 4


def test_a_loader_that_uses_its_memory_again_does_not_change_the_sample():
    buffer = torch.empty(8, 6)

    def stream():
        for number in range(3):
            yield buffer.fill_(number)

    quantizer = PTQQuantizer(nn.Sequential(nn.Linear(6, 3))).observe(stream(), progress=False)
    assert [x[0, 0].item() for (x,) in quantizer._sample.batches] == [0, 1, 2]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (x, x) if self.calls == 1 else (x,)


def test_outputs_that_cannot_be_compared_are_refused():
    once, again = (outputs_over(model, [[torch.ones(2, 3)]] * 2) for model in [Branches()] * 2)
    with pytest.raises(QuantizationError, match="rounding changed a branch"):
        output_noise(once, again, [])
    with pytest.raises(QuantizationError, match="shapes differ"):
        output_noise([[torch.ones(2, 3)]], [[torch.ones(3, 2)]], [])


def test_percentiles_are_six_to_a_decade():
    assert PERCENTILES[0] == 99
    assert PERCENTILES[6] == 99.9
    assert PERCENTILES[-1] == 99.99
    assert list(PERCENTILES) == sorted(PERCENTILES)


def test_several_outputs_and_own_candidates():
    torch.manual_seed(0)
    data = [torch.randn(8, 6) for _ in range(3)]
    quantizer = observed(TwoOutputs(), data)
    found = search_ranges(quantizer, data, [("kl", {}), ("minmax", {})], progress=False)
    assert {t.rule for t in found.tried} == {"kl", "minmax"}


def test_a_failure_leaves_the_quantizer_as_it_was():
    quantizer = observed(nn.Sequential(nn.Linear(6, 3)), [torch.randn(8, 6)])
    quantizer.compute_qparams("minmax")
    before = dict(quantizer.scales)
    with pytest.raises(QuantizationError):
        search_ranges(
            quantizer,
            [torch.randn(8, 6)],
            [("percentile", {"percentile": 50.0}), ("nonsense", {})],
            progress=False,
        )
    assert quantizer.scales == before


def test_bad_input_is_named():
    quantizer = observed(nn.Sequential(nn.Linear(6, 3)), [torch.randn(8, 6)])
    with pytest.raises(CalibrationError, match="no batch"):
        search_ranges(quantizer, [], progress=False)
    with pytest.raises(QuantizationError, match="no candidates"):
        search_ranges(quantizer, [torch.randn(8, 6)], [], progress=False)


def test_kl_with_many_bits_warns():
    quantizer = observed(nn.Sequential(nn.Linear(6, 3)), [torch.randn(8, 6)])
    with pytest.warns(UserWarning, match="'kl' with 10 bits"):
        quantizer.compute_qparams("kl", bits=10)


class WithAName(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(x), "a name"


def test_outputs_that_are_no_tensors_are_left_out():
    x = torch.randn(16, 8)
    quantizer = observed(WithAName().eval(), [x])
    assert search_ranges(quantizer, [x], (("minmax", {}),), progress=False).best.sqnr_db > 20
