"""What a technique must leave alone: tensors that others read, dimensions that are no channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.graph import trace
from ptq_course.graph.reading import unused_name
from ptq_course.improve.awq import AWQ
from ptq_course.improve.equalization import Equalize, equalize, unequalize
from ptq_course.improve.float_weights import float_weights
from ptq_course.improve.pairs import find_pairs, prepared
from ptq_course.improve.rotation import Rotate
from ptq_course.improve.sharing import SHARED, read_alone
from ptq_course.improve.smoothquant import SmoothQuant, find_norms
from ptq_course.simulation.qconfig import QConfig

CONFIG = QConfig(weight_bits=4, activation_bits=None)
STEPS = {
    "equalize": lambda x: Equalize(),
    "smoothquant": lambda x: SmoothQuant([x], 0.7, explicit=True),
    "awq": lambda x: AWQ([x], steps=3, explicit=True),
    "rotate": lambda x: Rotate(),
}


class Tied(nn.Module):
    """A head that shares its weight with the table of tokens, as a layer or by the function."""

    def __init__(self, function: bool = False) -> None:
        super().__init__()
        self.table, self.norm, self.mid = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.last, self.function = nn.LayerNorm(8), function
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = self.last(x + F.relu(self.mid(self.norm(x))))
        return F.linear(x, self.table.weight) if self.function else self.head(x)


class TiedBehindReLU(Tied):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.mid(self.table(tokens))))


class CalledTwice(nn.Module):
    """One layer behind two norms (ALBERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.layer, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + F.relu(self.layer(norm(x)))
        return self.out(x)


class ReadInAFormula(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) * self.b.weight.abs().mean() + self.a.bias.sum()


class SharedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers[1].bias = self.layers[0].bias

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class Clashing(nn.Module):
    """Paths that differ in a dot alone."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 8)})
        self.block_fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_fc(F.gelu(self.block["fc"](x)))


class OverWidth(nn.Module):
    """A Linear over the columns of a picture, which are as many as its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.relu(self.conv(x)))))


class OverPositions(nn.Module):
    """A convolution over positions that are as many as the features of the Linear before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 8), nn.Conv1d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.linear(x)))


def oddly_laid_out() -> nn.Sequential:
    """Kernels of another library: the sides of each are swapped in memory."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, (3, 2)))
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        memory = layer.get_parameter("weight").detach().transpose(2, 3).contiguous()
        layer.weight = nn.Parameter(memory.transpose(2, 3))
    return model


def unevenly(model: nn.Module) -> nn.Module:
    """Weights, norms and biases whose channels differ by much, one of them dead."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = (len(parameter), *[1] * (parameter.dim() - 1))
            parameter.mul_(torch.exp(torch.randn(shape, generator=generator)))
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


NOTHING_TO_DO = {
    ("over positions", "rotate"): "linear: no block of 8",
    ("odd layout", "rotate"): "There is none",
    ("odd layout", "smoothquant"): "There is none",
}
TOKENS, ROWS, PICTURE = torch.arange(12).view(2, 6) % 9, torch.randn(5, 8), torch.randn(2, 3, 8, 8)
NETWORKS = {
    "tied head": (Tied, TOKENS),
    "tied function": (lambda: Tied(function=True), TOKENS),
    "tied behind ReLU": (TiedBehindReLU, TOKENS),
    "called twice": (CalledTwice, ROWS),
    "read in a formula": (ReadInAFormula, ROWS),
    "shared bias": (SharedBias, ROWS),
    "clashing paths": (Clashing, ROWS),
    "over width": (OverWidth, PICTURE),
    "over positions": (OverPositions, torch.randn(3, 8, 4)),
    "odd layout": (oddly_laid_out, PICTURE),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    build, x = NETWORKS[name]
    return unevenly(build()), x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_the_network_also_a_second_time(name, step):
    model, x = made(name)
    with torch.no_grad():
        expected, module = model(x), trace(model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        if (name, step) in NOTHING_TO_DO:
            with pytest.raises(UnsupportedError, match=NOTHING_TO_DO[name, step]):
                STEPS[step](x)(module, SimpleNamespace(config=CONFIG))
            return
        for _ in range(2):
            module = STEPS[step](x)(module, SimpleNamespace(config=CONFIG))
            torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change", [equalize, unequalize])
def test_an_odd_layout_is_changed_like_any_other(change):
    model, x = made("odd layout")
    plain = made("odd layout")[0]
    for name in ("0", "2"):
        layer = plain.get_submodule(name)
        layer.weight = nn.Parameter(layer.get_parameter("weight").detach().contiguous())
    assert find_pairs(prepared(model))
    one, two = change(model), change(plain)
    first, second, old = (m.get_parameter("0.weight") for m in (one, two, model))
    assert torch.equal(first, second)
    assert not torch.equal(first, old)
    torch.testing.assert_close(one(x), model(x), atol=1e-5, rtol=1e-5)
    scales: Any = SimpleNamespace(nbits_per_value=lambda _: 1.0)
    rounded = float_weights(model, lambda rows: scales, lambda rows, _: rows.round()).module
    assert torch.equal(rounded.get_parameter("2.weight"), model.get_parameter("2.weight").round())


def test_who_reads_a_tensor_alone():
    assert read_alone(trace(made("tied head")[0])) == {"norm", "mid", "last"}
    assert read_alone(trace(made("called twice")[0])) == {"norms.0", "norms.1", "out"}
    assert read_alone(trace(made("read in a formula")[0])) == set()
    assert read_alone(prepared(made("read in a formula")[0])) == {"a", "b"}  # it reads copies
    assert read_alone(trace(made("shared bias")[0])) == {"layers.2"}
    part = nn.Module()
    part.register_buffer("name", torch.zeros(1))
    assert (unused_name(part, "name"), unused_name(part, "other")) == ("name_2", "other")


def test_pools_over_other_dimensions_and_behind_a_flatten_stand_in_no_pair():
    for between in (
        [nn.Flatten(), nn.MaxPool1d(3)],  # its windows cross the borders of channels
        [nn.MaxPool1d(2)],  # over a picture without a batch: not a pool of Conv2d's output
    ):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *between, nn.Linear(24, 4))
        assert find_pairs(prepared(model)) == []


def test_each_step_says_what_it_leaves():
    model, x = made("called twice")
    equalized, rotated, smoothed = Equalize(), Rotate(), SmoothQuant([x], explicit=True)
    for step in (equalized, rotated, smoothed):
        step(trace(model), SimpleNamespace(config=CONFIG))
    shared = {"layer": SHARED, "layer__call2": SHARED}
    assert equalized.left_out.keys() == {"layer", "layer__call2", "out"}
    assert shared.items() <= equalized.left_out.items()
    assert rotated.left_out == smoothed.left_out == shared
    with pytest.raises(UnsupportedError, match=f"layer: {SHARED}; layer__call2: "):
        SmoothQuant([x])(trace(model), SimpleNamespace(config=CONFIG))
    with pytest.raises(UnsupportedError, match="no Linear layer"):
        SmoothQuant([PICTURE], explicit=True)(
            trace(nn.Sequential(nn.Conv2d(3, 4, 1))), SimpleNamespace(config=CONFIG)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("step", STEPS)
def test_other_dtypes_keep_the_network_as_exactly_as_they_can(step, dtype):
    torch.manual_seed(2)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model, x = unevenly(model).to(dtype), torch.randn(32, 16, dtype=dtype)
    changed = STEPS[step](x)(trace(model), SimpleNamespace(config=CONFIG))
    with torch.no_grad():
        expected, found = model(x), changed(x)
    assert found.dtype == dtype
    if dtype == torch.bfloat16 and step != "rotate":  # powers of two multiply exactly
        assert torch.equal(found, expected)
    scale = expected.abs().max()
    limit = 0.05 if dtype == torch.bfloat16 else 1e-12
    assert (found - expected).abs().max() <= limit * scale


def test_an_rms_norm_takes_the_division_and_any_order_of_readers_will_do():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(8)
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            v, k, q = self.v(y), self.k(y), self.q(y)
            return torch.softmax(q @ k.T, -1) @ v

    torch.manual_seed(3)
    model = unevenly(Block())
    assert {n: set(r) for n, r in find_norms(trace(model)).items()} == {"norm": {*"qkv"}}
    step = SmoothQuant([ROWS])
    changed = step(trace(model), SimpleNamespace(config=CONFIG))
    assert set(step.alphas) == {*"qkv"}
    assert not step.left_out
    old, new = (m.get_parameter("norm.weight") for m in (model, changed))
    assert not torch.equal(old, new)
    torch.testing.assert_close(changed(ROWS), model(ROWS), atol=1e-4, rtol=1e-4)


def test_awq_names_what_it_has_no_form_for_and_reads_a_picture_without_a_batch():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.lstm, self.out = nn.Embedding(9, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.lstm(self.table(tokens))[0])

    step = AWQ([TOKENS], steps=2, explicit=True)
    step(trace(Text().eval()), SimpleNamespace(config=CONFIG))
    assert set(step.found) == {"out"}
    assert set(step.left_out) == {"table", "lstm.ih_l0", "lstm.hh_l0"}
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    alone, batch = AWQ([PICTURE[0]], steps=4), AWQ([PICTURE[:1]], steps=4)
    for step in (alone, batch):
        step(trace(model), SimpleNamespace(config=CONFIG))
    assert alone.found.keys() == batch.found.keys() == {"2"}
    assert torch.equal(alone.found["2"].factors, batch.found["2"].factors)
