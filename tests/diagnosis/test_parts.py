"""Parts that stand inside others: what is rounded in an activation, layers of a recurrent one."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.diagnosis.ablation import ablate
from ptq_course.diagnosis.comparison import compare
from ptq_course.diagnosis.mixed import mixed_precision
from ptq_course.diagnosis.parts import partly, parts_of
from ptq_course.diagnosis.sensitivity import all_but_one, one_at_a_time
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.hardswish(self.b(F.hardswish(self.a(x)))).mean((2, 3), keepdim=True))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.rnn, self.out = nn.Linear(4, 6), nn.GRU(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.into(x))[0])


class Recycled(nn.Module):
    """A layer that is called twice, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.relu(self.a(x)))))


def near(model: nn.Module, data: list[Tensor]):
    """A score for each example: minus the squared distance from FP32's output."""
    with torch.no_grad():
        expected = [model(x) for x in data]

    def evaluate(network: nn.Module) -> Tensor:
        with torch.no_grad():
            pairs = [(network(x), y) for x, y in zip(data, expected, strict=True)]
        return torch.cat([-(a - b).square().flatten(1).mean(1) for a, b in pairs])

    return evaluate


@pytest.fixture(scope="module")
def hard():
    torch.manual_seed(0)
    model, data = Hard().eval(), [2 * torch.randn(4, 3, 8, 8) for _ in range(2)]
    quantizer = PTQQuantizer(model, bits=4).calibrate(data, ranges="minmax", progress=False)
    return model, data, quantizer


def test_without_quantizers_nothing_is_rounded_inside_either(hard):
    model, data, quantizer = hard
    quantized = quantizer.convert()
    with torch.no_grad():
        torch.testing.assert_close(partly(quantized, (), ())(data[0]), model(data[0]))
        half = partly(quantized, (), parts_of(quantized).quantizers)(data[0])
        assert torch.equal(half, partly(quantized, (), None)(data[0]))
        assert not torch.allclose(half, model(data[0]))
    assert compare(model, quantized, data, progress=False).total == 8
    weights = QConfig(weight_bits=4, activation_bits=None)
    alone = PTQQuantizer(model, config=weights).quantize_weights()
    row = ablate(model, quantizer, near(model, data), progress=False).rows[1]
    assert row.name == "W4A32"
    score = near(model, data)(alone).mean().item()  # but for the bias in int32
    assert row.score == pytest.approx(score, rel=0.1)


def test_an_activation_rounds_inside_only_where_what_it_reads_is_rounded(hard):
    quantized = hard[2].convert()
    parts = parts_of(quantized)
    of_first = partly(quantized, *parts.only(["a"]))
    inside = [n for n, m in of_first.module.named_modules() if type(m).__name__ == "Exact"]
    assert len(inside) == 2  # the input of "a" is rounded, and neither Hardswish reads that


@pytest.mark.parametrize("sweep", [one_at_a_time, all_but_one])
def test_layers_inside_a_recurrent_one_have_rows(sweep):
    torch.manual_seed(0)
    model, data = Sequence().eval(), [torch.randn(5, 3, 4)]
    config = QConfig(weight_bits=3, activation_bits=None)
    table = sweep(model, data, near(model, data), config=config, progress=False)
    rows = {row.name: row.score for row in table.rows}
    assert set(rows) == {"into", "rnn.ih_l0", "rnn.hh_l0", "out"}
    assert len(set(rows.values())) == 4
    quantized = PTQQuantizer(model, config=config).quantize_weights()
    assert compare(model, quantized, data, progress=False).total


def test_widths_of_inner_layers_and_of_single_calls_are_chosen():
    torch.manual_seed(0)
    for model, data in (
        (Sequence().eval(), [torch.randn(5, 3, 4)]),
        (Recycled().eval(), [torch.randn(32, 4)]),
    ):
        for guide in ("evaluate", "output"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = mixed_precision(
                    model, data, near(model, data), target=-1e-7, widths=("fp16", 8, 2),
                    guide=guide, config=QConfig(activation_bits=None), progress=False,
                )  # fmt: skip
            wide = {name for name, width in found.point.widths.items() if width == "fp16"}
            assert found.model.quantized_layers().keys() == found.point.widths.keys() - wide
            score = near(model, data)(found.model).mean().item()
            assert score == pytest.approx(found.point.score)


class Branching(nn.Module):
    """Asks for a value, so that it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return self.b(y if y.mean() > 0 else -y)


def test_a_network_without_a_graph_counts_what_stays_in_floating_point():
    torch.manual_seed(0)
    model, data = Branching().eval(), [torch.randn(16, 4)]
    config = QConfig(activation_bits=None)
    with pytest.warns(UserWarning, match="layer by layer"):
        found = mixed_precision(
            model, data, near(model, data), target=0.0, widths=("fp16", 8), config=config,
            progress=False,
        )  # fmt: skip
    whole = 2 * sum(p.numel() for p in model.parameters())
    assert [p.bytes for p in found.points if set(p.widths.values()) == {"fp16"}] == [whole]
    kept = replace(config, float_layers=("b",))
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(model, config=kept)
    with pytest.warns(UserWarning, match="layer by layer"):
        other = mixed_precision(
            model, data, near(model, data), budget=10**6, widths=("fp16", 8), config=kept,
            progress=False,
        )  # fmt: skip
    assert set(quantizer.quantize_weights().quantized_layers()) == {"a"}
    assert quantizer.left_in_float["b"] == "kept in floating point by float_layers"
    assert [p.bytes for p in other.points if p.widths == {"a": "fp16"}] == [whole]
