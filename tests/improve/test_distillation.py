"""Training through the rounding: its gradients, what is learned, what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.improve.distillation import distillation_loss, fine_tune
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


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


def test_a_network_that_works_in_place_leaves_the_data_alone(teacher, data):
    """Or the student would see twice what the teacher has changed once."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = teacher

        def forward(self, x):
            x -= 1
            return self.net(x)

    model = InPlace().eval()
    quantizer = PTQQuantizer(model, config=QConfig(weight_bits=2))
    student = quantizer.observe(data, progress=False).compute_qparams("minmax").convert()
    before = [x.clone() for x in data]
    fine_tune(student, data, 3, teacher=model, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))


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


class Strange(nn.Module):
    """Two inputs, a norm between the layers, several outputs."""

    def __init__(self, outputs: str = "one") -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(3, 8), nn.LayerNorm(8)
        self.out, self.outputs = nn.Linear(8, 4), outputs

    def forward(self, x, y):
        z = self.out(self.norm(self.a(x) + self.b(y)))
        return {"one": z, "two": (z, z.sum()), "dict": {"z": z}}[self.outputs]


def strange(outputs: str = "one") -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(4)
    model = Strange(outputs).eval()
    pairs = [(torch.randn(16, 6), torch.randn(16, 3)) for _ in range(2)]
    config = QConfig(weight_bits=2, activation_bits=None)
    return model, pairs, PTQQuantizer(model, config=config).quantize_weights()


def test_the_teacher_answers_in_evaluation_mode_and_stays_as_it_is():
    """Running statistics would learn, dropout would drop, and the modes would be lost."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    data = [torch.randn(16, 6) for _ in range(2)]
    student = PTQQuantizer(model, config=QConfig(activation_bits=None)).quantize_weights()
    quiet = fine_tune(student, data, 4, teacher=copy.deepcopy(model).eval(), progress=False)
    model.train()
    model[2].eval()

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError

    before = copy.deepcopy(model.state_dict())
    loud = fine_tune(student, data, 4, teacher=model, progress=False)
    assert torch.equal(quiet(data[0]), loud(data[0]))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [part.training for part in model] == [True, True, False, True]
    with pytest.raises(ZeroDivisionError):
        fine_tune(student, data, 4, teacher=model, progress=False, loss=fails)
    assert [part.training for part in model] == [True, True, False, True]


def test_what_stays_in_floating_point_learns_and_is_kept():
    model, pairs, student = strange()
    seen = []

    def gamma(network: nn.Module) -> torch.Tensor:
        return network.get_parameter("norm.weight").detach().clone()

    learned = fine_tune(
        student, pairs, 6, teacher=model, rate=1e-2, every=3, progress=False,
        watch=lambda _, network: seen.append(gamma(network.module)),
    )  # fmt: skip
    assert not torch.equal(gamma(learned.module), gamma(model))
    assert torch.equal(gamma(learned.module), seen[-1])
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(gamma(student.module), gamma(model))


def test_batches_are_those_of_observe_and_outputs_those_of_the_loss():
    model, pairs, student = strange()
    labels = torch.randint(4, (16,), generator=torch.Generator().manual_seed(6))
    named = [{"y": y, "x": x, "labels": labels} for x, y in pairs]
    for teacher in (model, None):
        tuples = [(x, y, labels) for x, y in pairs]
        one, two = (
            fine_tune(student, batches, 3, progress=False, teacher=teacher)
            for batches in (tuples, named)
        )
        assert torch.equal(one(*pairs[0]), two(*pairs[0]))
    with pytest.raises(QuantizationError, match="teacher="):
        fine_tune(student, pairs, 3, progress=False)
    for outputs, name in (("two", "tuple"), ("dict", "dict")):
        model, pairs, student = strange(outputs)
        with pytest.raises(QuantizationError, match=f"returns a {name}: pass loss="):
            fine_tune(student, pairs, 3, teacher=model, progress=False)

    def first(a, b):
        return nn.functional.mse_loss(a["z"], b["z"])

    learned = fine_tune(student, pairs, 120, teacher=model, loss=first, rate=3e-3, progress=False)
    with torch.no_grad():
        wanted = model(*pairs[0])
        assert first(learned(*pairs[0]), wanted) < first(student(*pairs[0]), wanted)


def test_pictures_of_logits_have_their_classes_elsewhere():
    with pytest.raises(QuantizationError, match="last dimension"):
        distillation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_loaders_that_cannot_be_read_again_are_named(student, teacher, data):
    with pytest.raises(CalibrationError, match=r"after 4 steps.*DataLoader"):
        fine_tune(student, iter(data), 9, teacher=teacher, progress=False)
    with pytest.raises(CalibrationError, match="rows would be taken"):
        fine_tune(student, data[0], 9, teacher=teacher, progress=False)
    plain: Any = teacher
    with pytest.raises(QuantizationError, match="got a Sequential"):
        fine_tune(plain, data, 9, teacher=teacher, progress=False)
