"""Complex numbers, integers and truth values inside a network; indices; batches without rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course import PTQQuantizer, quantize_dynamic
from ptq_course.deploy import storage
from ptq_course.errors import CalibrationError
from ptq_course.graph import plan, trace
from tests.networks import Net


def made(function, outputs=5, shape=(32, 8)):
    torch.manual_seed(0)
    model = Net(function, a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(outputs, 2)).eval()
    model.register_buffer("edges", torch.linspace(-1, 1, 9))
    return model, torch.randn(shape)


def quantized(model, x):
    quantizer = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax")
    return quantizer, quantizer.convert()


NOT_FLOAT = {
    "spectrum": (lambda s, x: s.c(torch.fft.rfft(s.a(x)).abs()), "abs_1"),
    "moved": (lambda s, x: s.c((torch.fft.rfft(s.a(x)).t() * 2).abs().t()), "abs_1"),
    "real": (lambda s, x: s.c(torch.fft.rfft(s.a(x)).real), "getattr_1"),
    "imag": (lambda s, x: s.c(torch.polar(h := s.a(x), h).imag[:, :5]), "getattr_1"),
    "as real": (lambda s, x: s.c(torch.view_as_real(torch.fft.rfft(s.a(x)))[..., 0]),
                "view_as_real"),
    "product": (lambda s, x: s.c((torch.fft.rfft(s.a(x)) * torch.fft.rfft(x)).abs()), "abs_1"),
    "stft": (lambda s, x: s.c(torch.stft(s.a(x).repeat(1, 4), 8, window=torch.ones(8),
                                         return_complex=True).abs().mean(-1)), "abs_1"),
    "search": (lambda s, x: s.c(torch.searchsorted(s.edges, s.a(x)).float()[:, :5]), "float_1"),
    "buckets": (lambda s, x: s.c((torch.bucketize(s.a(x), s.edges) * 1.5)[:, :5]), "mul"),
    "close": (lambda s, x: s.c((torch.isclose(h := s.a(x), x) * h + h)[:, :5]), "add"),
    "sign": (lambda s, x: s.c(torch.signbit(s.a(x))[:, :5].float()), "float_1"),
    "count": (lambda s, x: s.c(s.a(x).relu().count_nonzero(1).unsqueeze(1).expand(-1, 5) / 8),
              "truediv"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "value"), NOT_FLOAT.values(), ids=NOT_FLOAT)
def test_what_is_not_floating_point_passes_untouched(function, value, tmp_path):
    """What is computed of it in floating point has a scale again, so that both layers have one."""
    model, x = made(function)
    quantizer, found = quantized(model, x)
    assert quantizer.scales.keys() == {"a", "c"}
    assert quantizer.network.plan.layers["c"].input_value == value
    seen = {}
    for name, part in found.module.named_modules():
        if name.endswith("_quantizer"):
            part.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.dtype}))
    assert (found(x) - model(x)).norm() < 0.15 * model(x).norm()
    assert set(seen.values()) == {torch.float32}
    assert quantize_dynamic(model)(x).shape == (32, 2)
    storage.save(found, tmp_path / "q.safetensors")
    assert torch.equal(storage.load(tmp_path / "q.safetensors", model)(x), found(x))


def test_an_operation_that_gives_complex_numbers_is_not_left_in_silence():
    quantizer, _ = quantized(*made(NOT_FLOAT["spectrum"][0]))
    assert "no integer form" in quantizer.left_in_float["fft_rfft"]
    assert "not floating point" in quantizer.left_in_float["abs_1"]


def test_statistics_of_another_quantizer_bring_what_it_learned():
    model, x = made(NOT_FLOAT["search"][0])
    first, second = PTQQuantizer(model), PTQQuantizer(model)
    first.observe([x], progress=False)
    second.merge(first).compute_qparams("minmax")
    assert torch.equal(second.convert()(x), first.compute_qparams("minmax").convert()(x))


CHOSEN = {
    "topk": lambda h: torch.gather(h, 1, h.topk(2, dim=1)[1]),
    "topk by name": lambda h: h.gather(1, h.topk(2, dim=1).indices),
    "sort": lambda h: torch.gather(h, 1, h.sort(1)[1][:, :2]),
    "argsort": lambda h: torch.gather(h, 1, torch.argsort(h, 1)[:, :2]),
    "max": lambda h: torch.gather(h, 1, h.max(1, keepdim=True)[1].expand(-1, 2)),
    "min": lambda h: torch.gather(h, 1, torch.min(h, 1, keepdim=True)[1].repeat(1, 2)),
    "kthvalue": lambda h: torch.gather(h, 1, h.kthvalue(3, 1, keepdim=True)[1].expand(-1, 2)),
    "index_select": lambda h: h.index_select(1, h.sum(0).topk(2)[1]),
    "brackets": lambda h: h[:, h.sum(0).topk(2)[1]],
    "behind a sigmoid": lambda h: torch.gather(h, 1, (h * 2).sigmoid().topk(2, dim=1)[1]),
    "shifted": lambda h: torch.gather(h, 1, (h.topk(2, dim=1)[1] + 1) % 8),
    "rounded": lambda h: torch.gather(h, 1, (h[:, :2] * 2).long().clamp(0, 7)),
    "cast": lambda h: torch.gather(h, 1, (h[:, :2] * 2).to(torch.int64).clamp(0, 7)),
    "one of": lambda h: h[:, :2] + F.one_hot(h.argmax(1), 8)[:, :2],
}


@pytest.mark.parametrize("choose", CHOSEN.values(), ids=CHOSEN)
def test_an_index_does_not_make_an_index_of_the_network_in_front(choose):
    model, x = made(lambda s, x: s.c(choose(s.b(s.a(x).relu()))), 2)
    static = plan(trace(model))
    assert {n: s.input_value for n, s in static.layers.items() if n != "c"} == {
        "a": "x", "b": "relu"
    }  # fmt: skip
    quantizer, found = quantized(model, x)
    assert quantizer.scales.keys() == {"a", "b", "c"}
    # A choice among near equals may fall otherwise, so most rows count rather than all.
    error = (found(x) - model(x)).abs().amax(1)
    assert error.median() < 0.05 * model(x).abs().max()


class Routed(nn.Module):
    """Two experts, each of which sees the rows that are sent to it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x[x[:, 0] > 0]).relu()), self.c(x[x[:, 0] <= 0])


@pytest.mark.parametrize("rule", ["minmax", "percentile", "kl", "mse", "moving_average"])
def test_batches_without_rows_add_nothing(rule):
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(64, 4)
    here, there = x[x[:, 0] > 0], x[x[:, 0] <= 0]

    def scales(batches):
        quantizer = PTQQuantizer(model)
        quantizer.observe(batches, ranges=rule, progress=False).compute_qparams(rule)
        return quantizer.scales, quantizer.convert()

    found, converted = scales([there, here, there, here])
    assert found.keys() == {"a", "b", "c"}
    inside = {"b"}  # read no other rows than these
    expected = scales(
        [here, there] if rule == "moving_average" else [torch.cat([here, here, there])]
    )
    assert all(found[name] == pytest.approx(expected[0][name]) for name in inside)
    for rows in (here, there):
        wanted = model(rows)
        for got in (converted(rows), quantize_dynamic(model)(rows)):
            assert [t.shape for t in got] == [t.shape for t in wanted]
            for a, b in zip(got, wanted, strict=True):
                assert (a - b).norm() <= 0.1 * b.norm()


def test_data_without_a_row_for_a_layer_are_refused_by_name():
    model, x = Routed().eval(), torch.randn(64, 4)
    quantizer = PTQQuantizer(model).observe([x[x[:, 0] <= 0]], progress=False)
    with pytest.raises(CalibrationError, match=r"no calibration data reached it"):
        quantizer.compute_qparams()
