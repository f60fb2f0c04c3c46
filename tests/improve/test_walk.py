"""The walk on networks that strangers write: work in place, recurrent layers, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.awq import AWQ
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.clustering import Cluster
from ptq_course.improve.equalization import equalize
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.matrices import columns, second_moments
from ptq_course.improve.smoothquant import SmoothQuant
from ptq_course.improve.walk import Site, improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

WEIGHTS = QConfig(weight_bits=3, activation_bits=None)


class Spy:
    """A step that changes nothing and keeps what it sees."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def __call__(self, site: Site) -> None:
        assert all(torch.equal(a, b) for a, b in zip(site.x_float, site.x_float, strict=True))
        self.seen[site.layer.name] = [*site.x_float, *site.x_quantized]


class NormalizesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        return self.b(F.relu_(self.a(x)))


class Text(nn.Module):
    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(8, 3)
        self.rnn = kind(6, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.rnn(self.table(tokens))[0][:, -1])


TOKENS = torch.arange(24).view(4, 6) % 9


def test_a_network_that_works_in_place_on_its_input_is_walked_on_its_own_copies():
    torch.manual_seed(0)
    model, x = NormalizesItsInput().eval(), torch.rand(16, 6)
    spy, before = Spy(), x.clone()
    improved(PTQQuantizer(model, config=WEIGHTS), [x], [spy], progress=False)
    for seen in spy.seen["a"]:
        torch.testing.assert_close(seen, (x - 0.5) / 0.25)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_rounding_a_recurrent_layer_leaves_the_float_network_alone(kind):
    torch.manual_seed(0)
    model = Text(kind).eval()
    quantizer = PTQQuantizer(model, config=WEIGHTS)
    with torch.no_grad():
        expected = model(TOKENS)
        first = quantizer.quantize_weights()
        assert torch.equal(quantizer.float_model(TOKENS), expected)
        assert not torch.allclose(first(TOKENS), expected)
        assert torch.equal(quantizer.quantize_weights()(TOKENS), first(TOKENS))
    assert {"rnn.ih_l0", "rnn.hh_l0"} <= first.quantized_layers().keys()


@pytest.mark.parametrize("step", [GPTQ(), AdaRound(5), CorrectBias(), Cluster(3)])
def test_layers_inside_a_recurrent_one_are_named(step):
    quantizer = PTQQuantizer(Text().eval(), config=WEIGHTS)
    with pytest.warns(UserWarning, match=r"rnn\.ih_l0, rnn\.hh_l0: part of a larger module"):
        better = improved(quantizer, [TOKENS], [step], progress=False)
    plain = quantizer.quantize_weights().quantized_layers()
    table, codes = better.quantized_layers()["table"], plain["table"].weight
    # A lookup reads one weight for each output: no other codes than the nearest are better.
    assert torch.equal(table.weight, codes) != isinstance(step, Cluster)


def test_what_has_no_matrix_form_is_refused_by_its_path_and_left_on_request():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    quantizer, data = PTQQuantizer(model, config=WEIGHTS), [torch.randn(4, 2, 6, 6)]
    plain = quantizer.quantize_weights().quantized_layers()
    for step in (GPTQ, AdaRound):
        with pytest.raises(UnsupportedError, match=r"'0': ConvTranspose2d.*alone=True.*float_lay"):
            improved(quantizer, data, [step()], progress=False)
        found = improved(quantizer, data, [step(alone=True)], progress=False).quantized_layers()
        assert torch.equal(found["0"].weight, plain["0"].weight)
        assert not torch.equal(found["2"].weight, plain["2"].weight)
    kept = PTQQuantizer(model, config=replace(WEIGHTS, float_layers=("0",)))
    assert set(improved(kept, data, [GPTQ()], progress=False).quantized_layers()) == {"2"}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", groups=2), (4, 7, 6)),
        (nn.Conv1d(4, 6, 3, dilation=2, padding=2), (4, 9)),
        (nn.Linear(5, 3), (5,)),
    ],
)
def test_one_example_without_a_batch_has_the_moments_of_a_batch_of_one(layer, shape):
    x = torch.randn(shape)
    assert torch.equal(columns(layer, x), columns(layer, x[None]))
    assert torch.equal(second_moments(layer, x), second_moments(layer, x[None]))


def test_bad_data_and_steps_are_refused_by_name_and_change_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    quantizer, good = PTQQuantizer(model, config=WEIGHTS), torch.randn(6, 8)
    bad = good.clone()
    bad[2, 3] = torch.nan
    for step in (GPTQ(), AdaRound(3), CorrectBias(), CorrectBias(inherited=True)):
        with pytest.raises(QuantizationError, match=r"'1'.*NaN"):
            improved(quantizer, [bad], [step], progress=False)
    for step in (SmoothQuant, AWQ):
        with pytest.raises(QuantizationError, match=r"layer '1': .*finite"):
            PTQQuantizer(model, config=WEIGHTS, steps=[step([bad])])
        with pytest.raises(CalibrationError, match="rows would be taken"):
            PTQQuantizer(model, config=WEIGHTS, steps=[step(good)])
        with pytest.raises(QuantizationError, match="num_batches"):
            step([good], num_batches=0)
    with pytest.raises(CalibrationError, match="rows would be taken"):
        improved(quantizer, good, [GPTQ()], progress=False)
    number: Any
    for number in (0, -1, 1.5):
        with pytest.raises(CalibrationError, match="num_batches"):
            improved(quantizer, [good], [GPTQ()], num_batches=number, progress=False)
    steps: Any
    for steps in ([GPTQ], GPTQ()):  # a class would be made and thrown away
        with pytest.raises(QuantizationError, match="list of objects"):
            improved(quantizer, [good], steps, progress=False)
    quantized: Any = quantizer.quantize_weights()
    with pytest.raises(QuantizationError, match="takes the PTQQuantizer"):
        improved(quantized, [good], [GPTQ()], progress=False)
    with pytest.raises(QuantizationError, match="quantized"):
        equalize(quantized)
    model.get_parameter("1.weight").data[0, 0] = torch.inf
    with pytest.raises(QuantizationError, match="layer '1': equalizing_factors"):
        equalize(model)
