"""Training through the rounding: its gradients, what is learned, what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.affine import IntGrid
from ptq_course.improve import distillation
from ptq_course.improve.distillation import distillation_loss, fine_tune, round_through
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

GRID = IntGrid(4)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 6, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def student(teacher, data):
    quantizer = PTQQuantizer(teacher, config=QConfig(weight_bits=2))
    return quantizer.observe(data, progress=False).compute_qparams("minmax").convert()


def mean_loss(net, teacher, data):
    with torch.no_grad():
        return sum(distillation_loss(net(x), teacher(x)).item() for x in data) / len(data)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8),
    st.floats(0.2, 3.0),
    st.integers(-3, 3),
)
def test_gradients_through_the_rounding_are_those_of_the_papers(values, step, zero):
    """One value at a time, written out: inside, below and above the grid."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    y = round_through(x, scale, torch.tensor(float(zero), dtype=torch.float64), GRID)
    weights = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    (y * weights).sum().backward()
    low, high, of_scale = GRID.qmin - zero, GRID.qmax - zero, 0.0
    for i, value in enumerate(x.tolist()):
        v = value / step
        if min(abs(v - low), abs(v - high)) < 1e-9:
            return  # at the very end both are right
        inside = low < v < high
        assert x.grad is not None
        assert x.grad[i].item() == pytest.approx((i + 1) * inside)
        code = round(min(max(v, low), high))
        assert y[i].item() == pytest.approx(code * step)
        of_scale += (i + 1) * (code - v if inside else code)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(of_scale, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_and_its_gradient_are_the_sums_written_out(temperature):
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_()
    found = distillation_loss(a, b, temperature)
    found.backward()
    total = 0.0
    for row, other in zip(a.tolist(), b.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in r] for r in (other, row))
        p, q = ([v / sum(r) for v in r] for r in (p, q))
        total += sum(v * math.log(v / w) for v, w in zip(p, q, strict=True))
    assert found.item() == pytest.approx(temperature**2 * total / 3)
    softened = (a / temperature).softmax(1) - (b / temperature).softmax(1)
    assert a.grad is not None
    assert torch.allclose(a.grad, softened.detach() * temperature / 3)


def test_the_loss_refuses_what_it_cannot_compare():
    with pytest.raises(QuantizationError, match="temperature"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)
    with pytest.raises(QuantizationError, match=r"\(1, 2\).*\(1, 3\)"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 3))


def test_training_starts_from_the_quantized_network(student, data):
    copied = distillation.learning_copy(student)
    assert torch.allclose(copied(data[0]), student(data[0]), atol=1e-4)


@pytest.mark.parametrize("learn_scales", [False, True])
def test_distillation_comes_nearer_to_the_teacher(student, teacher, data, learn_scales):
    before = copy.deepcopy(student)
    learned = fine_tune(
        student, data, 80, teacher=teacher, rate=1e-2, learn_scales=learn_scales, progress=False
    )
    assert mean_loss(learned, teacher, data) < 0.7 * mean_loss(student, teacher, data)
    assert torch.equal(before(data[0]), student(data[0])), "the one given was changed"
    for layer in learned.quantized_layers().values():
        q = layer.weight_qtensor.require_qparams()
        assert layer.weight_qtensor.codes.min() >= q.grid.qmin
        assert layer.weight_qtensor.codes.max() <= q.grid.qmax


def test_training_twice_gives_the_same_network(student, teacher, data):
    one, two = (fine_tune(student, data, 5, teacher=teacher, progress=False) for _ in range(2))
    assert torch.equal(one(data[0]), two(data[0]))


def test_labels_are_learned_too(student, data):
    labelled = [(x, (x[:, 0] > 0).long()) for x in data]
    learned = fine_tune(student, labelled, 80, rate=1e-2, progress=False)

    def hits(net):
        return sum((net(x).argmax(1) == y).sum().item() for x, y in labelled)

    assert hits(learned) > hits(student)


def test_the_watcher_sees_each_interval_and_the_end(student, teacher, data):
    seen = []
    fine_tune(
        student, data, 7, teacher=teacher, every=3, progress=False,
        watch=lambda step, _: seen.append(step),
    )  # fmt: skip
    assert seen == [3, 6, 7]


def test_what_cannot_be_trained_is_refused_with_its_reason(student, teacher, data):
    with pytest.raises(CalibrationError, match="no batch"):
        fine_tune(student, [], 1, teacher=teacher, progress=False)
    with pytest.raises(QuantizationError, match="teacher="):
        fine_tune(student, data, 1, progress=False)
    bad = [torch.full_like(data[0], math.nan)]
    with pytest.raises(QuantizationError, match="smaller rate"):
        fine_tune(student, bad, 1, teacher=teacher, progress=False)
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"every": -1}):
        with pytest.raises(QuantizationError):
            fine_tune(student, data, **{"steps": 1, "teacher": teacher, **wrong}, progress=False)
