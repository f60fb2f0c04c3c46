"""A constant operand of a product is a weight: the twin with nn.Linear is the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ptq_course import PTQQuantizer, quantize_dynamic
from ptq_course.deploy import onnx as deploy
from ptq_course.graph import Kind, kinds_of, plan, trace
from ptq_course.integer import to_integer

torch.manual_seed(0)
W, B = torch.randn(12, 8) * torch.logspace(-2, 0, 8), torch.randn(8)


class Holder(nn.Module):
    """Calls ``function(self, x)`` with a parameter w [12, 8] and a bias b [8]."""

    def __init__(self, function, w=W, b=B):
        super().__init__()
        self.w, self.b = nn.Parameter(w.clone()), nn.Parameter(b.clone())
        self.register_buffer("c", w.clone())
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Conv1D(nn.Module):
    """The linear layer of GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(W.clone()), nn.Parameter(B.clone())

    def forward(self, x):
        shape = x.size()[:-1] + (8,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


# Each computes x @ W + B.
WAYS = {
    "matmul": lambda s, x: x @ s.w + s.b,
    "buffer": lambda s, x: s.b + torch.matmul(x, s.c),
    "method": lambda s, x: x.matmul(s.w).add(s.b),
    "transposed": lambda s, x: (s.w.t() @ x.transpose(-1, -2) + s.b.unsqueeze(1)).mT,
    "three dimensions": lambda s, x: x @ s.w.unsqueeze(0)[0] + s.b,
    "linear": lambda s, x: nn.functional.linear(x, s.w.t(), s.b),
    "einsum": lambda s, x: torch.einsum("...k,kn->...n", x, s.w) + s.b,
    "einsum, weight first": lambda s, x: torch.einsum("ab,xya->xyb", s.w, x) + s.b,
    "einsum to another order": lambda s, x: (
        torch.einsum("bld,dk->kbl", [x, s.w]) + s.b[:, None, None]
    ).movedim(0, 2),
    "einsum of heads": lambda s, x: (
        torch.einsum("bld,dhk->bhlk", x, s.w.view(12, 2, 4)) + s.b.view(2, 1, 4)
    ).transpose(1, 2).flatten(2),
    "einsum of swapped heads": lambda s, x: (
        torch.einsum("bld,dhk->bklh", x, s.w.view(12, 2, 4)) + s.b.view(2, 4).t().unsqueeze(1)
    ).permute(0, 2, 3, 1).flatten(2),
    "einsum over heads": lambda s, x: torch.einsum(
        "blhd,hdk->blk", x.unflatten(2, (3, 4)), s.w.view(3, 4, 8)
    ) + s.b,
}  # fmt: skip
# ... of rows [N, 12].
FLAT = {
    "addmm": lambda s, x: torch.addmm(s.b, x, s.w),
    "addmm of numbers": lambda s, x: torch.addmm(s.b / 2, x, s.w * 4, beta=2, alpha=0.25),
    "method addmm": lambda s, x: s.b.addmm(x, s.w),
    "mm": lambda s, x: torch.mm(x, s.w) + s.b,
    "weight first": lambda s, x: (s.b[:, None] + torch.mm(s.w.t(), x.t())).t(),
}
CASES = [(f, (6, 5, 12)) for f in WAYS.values()] + [(f, (30, 12)) for f in FLAT.values()]


def twin():
    linear = nn.Linear(12, 8)
    with torch.no_grad():
        linear.weight.copy_(W.t())
        linear.bias.copy_(B)
    return linear


def decibels(exact, got):
    return 10 * math.log10(exact.square().sum() / (exact - got).square().sum())


def worst_channel(exact, got):
    return min(decibels(exact[..., i], got[..., i]) for i in range(8))


@pytest.mark.parametrize(("function", "shape"), CASES, ids=[*WAYS, *FLAT])
def test_as_good_as_its_twin_with_linear(function, shape):
    torch.manual_seed(1)
    x, model = torch.randn(shape), Holder(function).eval()
    exact = twin()(x).detach()
    torch.testing.assert_close(model(x), exact)
    static = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax")
    assert static.network.plan.left_in_float == {}
    expected = PTQQuantizer(nn.Sequential(twin())).calibrate([x], progress=False, ranges="minmax")
    found, wanted = (q.convert()(x) for q in (static, expected))
    assert worst_channel(exact, found) > worst_channel(exact, wanted) - 1
    for options in ({}, {"weights_only": True}):
        found = quantize_dynamic(model, **options)
        wanted = quantize_dynamic(nn.Sequential(twin()), **options)(x)
        assert found.quantized_layers()
        assert worst_channel(exact, found(x)) > worst_channel(exact, wanted) - 1


@pytest.mark.parametrize("name", ["matmul", "transposed", "einsum, weight first"])
def test_the_file_multiplies_integers(tmp_path, name):
    x, model = torch.randn(6, 5, 12), Holder(WAYS[name]).eval()
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    session = deploy.session(deploy.export(quantized, x, tmp_path / "q.onnx"), 1)
    assert decibels(quantized(x), session(x)) > 40
    assert not {"MatMul", "Gemm"} & set(session.operators)


def test_the_linear_layer_of_gpt2_with_integers_only():
    model = nn.Sequential(Conv1D(), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(64, 12)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    layer = quantized.quantized_layers()["0_addmm"]
    assert layer.weight_scale.shape == (8, 1)
    assert layer.bias_codes is not None
    assert decibels(quantized(x), to_integer(quantized)(x)) > 40


# Products with w [3, 4, 2], one matrix for each head or expert, and b [3, 1, 2].
BATCHED = {
    "bmm": (lambda s, x: torch.bmm(x, s.w) + s.b, (3, 5, 4)),
    "bmm, weight first": (lambda s, x: torch.bmm(s.w.mT, x) + s.b.mT, (3, 4, 5)),
    "baddbmm": (lambda s, x: torch.baddbmm(s.b, x, s.w), (3, 5, 4)),
    "experts": (lambda s, x: torch.einsum("ecd,edf->ecf", x, s.w) + s.b, (3, 5, 4)),
    "heads": (lambda s, x: torch.einsum("bhld,hdk->bhlk", x, s.w) + s.b, (2, 3, 5, 4)),
    "heads to another order": (
        lambda s, x: torch.einsum("blhd,hdk->bkhl", x, s.w) + s.b.permute(2, 0, 1), (2, 5, 3, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shape"), BATCHED.values(), ids=BATCHED)
def test_a_matrix_for_each_entry_of_a_batch_is_a_grouped_layer(function, shape):
    torch.manual_seed(1)
    w = torch.randn(3, 4, 2) * torch.logspace(-2, 0, 6).view(3, 1, 2)
    x, model = torch.randn(shape), Holder(function, w, torch.randn(3, 1, 2) / 10).eval()
    quantizer = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax")
    quantized, exact = quantizer.convert(), model(x).detach()
    (layer,) = quantized.quantized_layers().values()
    assert layer.weight_scale.numel() == layer.bias_codes.numel() == 6
    assert quantizer.left_in_float == {}
    assert decibels(exact, quantized(x)) > 35
    assert decibels(exact, quantize_dynamic(model)(x)) > 35
    assert decibels(quantized(x), to_integer(quantized, batch_size=64)(x)) > 40


def test_a_product_of_a_batch_whose_dimensions_are_not_known_is_said_to_stay():
    model = nn.Sequential(nn.Linear(4, 4), Holder(lambda s, x: x @ s.w, torch.randn(3, 4, 2)))
    traced = trace(model.eval())
    (why,) = plan(traced).left_in_float.values()
    assert "several matrices" in why


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: x @ s.w[:, 0],
        lambda s, x: x.mv(s.w[:, 0]),
        lambda s, x: s.w[:, 0] @ x.t(),
        lambda s, x: torch.dot(x[0], s.w[:, 0]),
        lambda s, x: torch.mv(s.w.t(), x[0]),
    ],
    ids=["x @ v", "mv", "v @ x", "dot", "w x"],
)
def test_vectors(function):
    x, model = torch.randn(30, 12), Holder(function).eval()
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    assert len(quantized.quantized_layers()) == 1
    assert decibels(model(x), quantized(x)) > 30


def test_products_of_data_and_of_constants_stay_what_they_are():
    both = Holder(lambda s, x: x @ x.transpose(-1, -2) + (s.w.t() @ s.w)[0, 0])
    traced = trace(both.eval())
    assert not [n for n in traced.graph.nodes if n.op == "call_module"]
    assert Kind.BINARY in kinds_of(traced).values()
    changed = Holder(lambda s, x: x @ s.c.mul_(2.0))  # a buffer that forward() changes
    assert not [n for n in trace(changed.eval()).graph.nodes if n.op == "call_module"]


def test_an_addition_that_is_no_bias_stays_an_addition():
    added = torch.randn(30, 8)
    x, model = torch.randn(30, 12), Holder(lambda s, x: torch.addmm(s.b, x, s.w), b=added).eval()
    torch.testing.assert_close(trace(model)(x), model(x))
    again = Holder(lambda s, x: (h := x @ s.w) + s.b + h).eval()  # h is read twice
    torch.testing.assert_close(trace(again)(x), again(x))
