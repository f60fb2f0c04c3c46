import pytest
import torch
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.metrics import sqnr_db
from ptq_course.ranges.calibrators import PERCENTILES
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.range_search import every_candidate, search_ranges
from tests.networks import Residual, batches, randomize_batch_norms


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
    order = [(-t.data, t.noise) for t in found.tried]
    assert order == sorted(order)
    assert found.best.data == 1.0
    assert found.best.rule != "minmax"  # one outlier made its steps coarse
    x = torch.cat([b[0] for b in clean])
    with torch.no_grad():
        reached = sqnr_db(model(x), quantizer.convert()(x))
    assert reached == pytest.approx(found.best.sqnr_db, abs=0.1)  # biases are now integers, too
    assert str(found.best) in str(found).splitlines()[1]


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


def test_the_last_candidate_is_not_left_as_the_model():
    data = outlier_batches()
    quantizer = observed(randomize_batch_norms(Residual()).eval(), data)
    before = quantizer.model
    search_ranges(quantizer, data, progress=False)
    assert quantizer.model is before


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
