"""Operations one by one: functional layers, embeddings, and what moves, averages or masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.graph import WEIGHTED_MODULES, kinds_of, plan, trace
from ptq_course.graph.fusion import fuse
from ptq_course.graph.kinds import KINDS, Kind
from ptq_course.graph.layer_types import LAYER_TYPES
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class Between(nn.Module):
    """A layer, an operation, a layer: does the operation's output need a scale of its own?"""

    def __init__(self, operation, width=8) -> None:
        super().__init__()
        self.operation = operation
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.LazyConv2d(2, 1)
        self.b(operation(torch.zeros(2, width, 6, 6)))

    def forward(self, x):
        return self.b(self.operation(self.a(x)))


def values_of(operation):
    """The plan for a runtime with an integer form of all operations and real results."""
    return plan(fuse(trace(Between(operation))), target="tensorrt")


MOVING = [
    lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(3, 1, 1), lambda x: torch.roll(x, 1, 2),
    lambda x: x.flip(-1), lambda x: x[:, :4], lambda x: x.chunk(2, 1)[1],
    lambda x: x.split([2, 6], 1)[1], lambda x: torch.unbind(x, 2)[0].unsqueeze(2),
    lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    nn.ReflectionPad2d(1), nn.ZeroPad2d(1), lambda x: F.interpolate(x, scale_factor=2),
    nn.Upsample(scale_factor=2), lambda x: F.pixel_shuffle(x, 2), nn.PixelUnshuffle(2),
    lambda x: x.permute(0, 1, 3, 2), lambda x: x.mT, lambda x: x.expand(2, -1, -1, -1),
    lambda x: x.repeat(1, 2, 1, 1), lambda x: x.unflatten(1, (4, 2)).flatten(1, 2),
    lambda x: x.amax(-1, keepdim=True), nn.AdaptiveMaxPool2d(2), lambda x: x.narrow(1, 0, 4),
    lambda x: F.channel_shuffle(x, 2), lambda x: x.detach().contiguous(),
]  # fmt: skip
AVERAGING = [
    lambda x: F.avg_pool2d(x, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1),
    lambda x: F.adaptive_avg_pool2d(x, 2), lambda x: x.mean((2, 3), keepdim=True),
    lambda x: torch.mean(x, dim=2, keepdim=True),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bilinear"),
]  # fmt: skip
COMPUTING = [
    lambda x: x + x, lambda x: x - 1.0, lambda x: x.sum(1, keepdim=True), torch.sigmoid,
    lambda x: torch.cat([x, x[:, :2]], 1), lambda x: torch.stack([x, x], 1).flatten(1, 2),
    lambda x: x @ x, lambda x: torch.maximum(x, x.flip(1)), lambda x: F.softmax(x, 1),
    nn.Hardtanh(), lambda x: -x, nn.LeakyReLU(),
]  # fmt: skip
IN_FLOAT = [
    (lambda x: F.gelu(x), "gelu"), (nn.ELU(), "ELU"), (nn.GroupNorm(2, 8), "GroupNorm"),
    (nn.InstanceNorm2d(8), "InstanceNorm2d"), (lambda x: F.instance_norm(x), "the norm"),
    (lambda x: torch.where(x > 0, x, 0.0), "where"), (lambda x: F.pad(x, (1, 1), value=1.0), "0"),
    (lambda x: x.masked_fill(x < 0, 0.0), "masked_fill"), (lambda x: F.normalize(x), "normalize"),
    (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "bicubic"),
    (lambda x: x / x.abs().amax((1, 2, 3), keepdim=True), "formula"),
    (lambda x: x.max(dim=1, keepdim=True).values, "max"), (lambda x: x.cumsum(1), "cumsum"),
    (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d"),
]  # fmt: skip


@pytest.mark.parametrize("operation", MOVING)
def test_what_moves_codes_inherits_the_scale(operation):
    result = values_of(operation)
    assert list(result.values) == ["x", "a"]
    assert result.values["a"].inherited_by == []
    assert result.layers["b"].input_value == "a"
    assert result.left_in_float == {}


@pytest.mark.parametrize("operation", AVERAGING)
def test_what_averages_codes_is_rounded_again(operation):
    result = values_of(operation)
    assert list(result.values) == ["x", "a"]
    assert len(result.values["a"].inherited_by) == 1
    assert result.left_in_float == {}


@pytest.mark.parametrize("operation", COMPUTING)
def test_what_computes_gets_a_scale_of_its_own(operation):
    result = values_of(operation)
    assert list(result.values)[:2] == ["x", "a"]
    assert len(result.values) > 2
    assert result.layers["b"].input_value not in ("x", "a")
    assert result.left_in_float == {}


@pytest.mark.parametrize(("operation", "word"), IN_FLOAT)
def test_what_stays_in_floating_point_says_why(operation, word):
    model = Between(operation).eval()
    quantizer = PTQQuantizer(model)
    assert any(word in f"{k} {v}" for k, v in quantizer.left_in_float.items())
    x = torch.randn(8, 4, 6, 6)
    quantized = quantizer.calibrate([x], progress=False, ranges="minmax").convert()
    assert sqnr_db(model(x), quantized(x)) > 20


class FunctionalLayers(nn.Module):
    """Each functional layer, with weights from a parameter, another layer, or a computation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 3, 2) * 0.5)
        self.kernel, self.bias = nn.Parameter(torch.randn(6, 6, 3)), nn.Parameter(torch.randn(6))
        self.table = nn.Embedding(10, 6)
        self.body = nn.Linear(6, 6)

    def forward(self, tokens):
        x = F.embedding(tokens, self.table.weight).transpose(1, 2)
        kernel = self.kernel - self.kernel.mean((1, 2), keepdim=True)
        x = F.conv1d(x, kernel, self.bias, padding=1, stride=1)
        x = F.linear(x.transpose(1, 2), weight=self.body.weight, bias=self.body.bias)
        x = F.linear(x, self.table.weight)[:, :, :4].transpose(1, 2)
        return F.conv_transpose1d(x, self.up, stride=2)


def test_functional_layers_become_modules():
    torch.manual_seed(0)
    model, tokens = FunctionalLayers().eval(), torch.randint(0, 10, (8, 5))
    traced = fuse(trace(model))
    torch.testing.assert_close(traced(tokens), model(tokens), atol=1e-5, rtol=1e-5)
    quantizer = PTQQuantizer(model).calibrate([tokens], progress=False, ranges="minmax")
    quantized = quantizer.convert()
    assert list(quantized.quantized_layers()) == [
        "table_embedding", "conv1d", "body_linear", "table_linear", "conv_transpose1d",
    ]  # fmt: skip
    assert set(quantizer.left_in_float) == {"conv_transpose1d"}  # no kernel in ONNX Runtime
    assert sqnr_db(model(tokens), quantized(tokens)) > 20


def test_shared_parameters_stay_shared():
    traced = trace(FunctionalLayers())
    assert traced.table_embedding.weight is traced.table_linear.weight


class Tagger(nn.Module):
    """Embeddings of arithmetic on indices, and a bag of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bag = nn.Embedding(40, 8, padding_idx=0), nn.EmbeddingBag(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, tags):
        shifted = (tokens * 2 + 1).unsqueeze(-1).squeeze(-1)
        return self.head(self.embed(shifted).mean(1) + self.bag(tags))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_embedding(granularity):
    torch.manual_seed(0)
    model = Tagger().eval()
    data = torch.randint(0, 10, (16, 6)), torch.randint(0, 10, (16, 4))
    config = QConfig(weight_granularity=granularity)
    quantizer = PTQQuantizer(model, config=config).calibrate(
        [data], progress=False, ranges="minmax"
    )
    quantized = quantizer.convert()
    assert not {"tokens", "tags", "mul", "add"} & set(quantized.qparams)
    layer = quantized.quantized_layers()["embed"]
    assert layer.weight_codes.dtype == torch.int8
    assert layer.weight_scale.numel() == (40 if granularity == "per_channel" else 1)
    assert torch.equal(layer(data[0]), layer.weight[data[0]])
    assert "EmbeddingBag sums" in quantized.left_in_float["bag"]
    assert "embed" in quantizer.report().__str__()
    assert sqnr_db(model(*data), quantized(*data)) > 20
    assert len([m for m in quantized.modules() if isinstance(m, ActivationQuantizer)]) == 3


def test_embedding_with_max_norm_and_transposed_convolution_with_output_size_are_named():
    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = nn.Embedding(9, 4, max_norm=1.0), nn.ConvTranspose1d(5, 2, 3, 2)
            self.ok = nn.Linear(4, 4)

        def forward(self, tokens):
            return self.up(self.ok(self.embed(tokens)), output_size=(10,))

    result = plan(fuse(trace(Refused())))
    assert list(result.layers) == ["ok"]
    assert "max_norm" in result.left_in_float["embed"]
    assert "output_size" in result.left_in_float["up"]


class Options(nn.Module):
    """Optional arguments, an input by keyword, a tuple of dicts as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, y, mask=None, *, double=False, labels=None):
        x = self.a(x) if mask is None else self.a(x * mask)
        x = x * 2 if double else x
        return ({"sum": self.b(x + y)}, [x, None])


def test_optional_arguments_keep_their_default():
    model, data = Options(), {"x": torch.randn(64, 4), "y": torch.randn(64, 4)}
    quantizer = PTQQuantizer(model).calibrate([data], progress=False, ranges="minmax")
    quantized = quantizer.convert()
    assert set(quantized.qparams) == {"x", "y", "a", "add"}
    (by_name, (first, none)) = quantized(data["x"], y=data["y"])
    assert none is None
    assert sqnr_db(model(**data)[0]["sum"], by_name["sum"]) > 20
    assert torch.equal(quantized(y=data["y"], x=data["x"])[1][0], first)


def test_an_option_in_the_data_that_is_not_used_is_said():
    data = {"x": torch.randn(4, 4), "y": torch.randn(4, 4), "mask": torch.ones(4)}
    with pytest.warns(UserWarning, match=r"\['mask'\].*as an option"):
        PTQQuantizer(Options()).calibrate([data], progress=False, ranges="minmax")


def test_names_of_values_do_not_depend_on_what_stays_in_float():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.c(self.relu(10 * self.b(self.relu(self.a(x)))))

    quantizer = PTQQuantizer(Twice()).calibrate(
        [torch.randn(32, 4)], progress=False, ranges="minmax"
    )
    scale = quantizer.scales["c"]
    quantizer.compute_qparams(config=QConfig(float_layers=("b",)))
    assert quantizer.scales["c"] == scale


def test_inputs_named_like_operations():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, mean, add):
            return self.a(mean) + self.a(add)

    result = plan(fuse(trace(Named())))
    assert list(result.values) == ["mean", "add"]
    assert {s.input_value for s in result.layers.values()} <= set(result.values)
    assert list(result.left_in_float) == ["add_1"]


def test_masks_of_minus_infinity_never_set_a_scale():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x):
            mask = torch.full((x.size(1), x.size(1)), float("-inf")).triu(1)
            return torch.softmax(self.a(x) + mask, -1) @ x

    model, x = Masked().eval(), torch.randn(8, 6, 6)
    quantizer = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax")
    assert "very large" in quantizer.left_in_float["add"]
    assert sqnr_db(model(x), quantizer.convert()(x)) > 20


def test_a_mask_made_from_an_integer_input():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x, mask):
            extended = (1.0 - mask[:, None, :].to(x.dtype)) * -10000.0
            return self.b(torch.softmax(self.a(x) @ x.mT + extended, -1) @ x)

    model, x, mask = Masked().eval(), torch.randn(8, 6, 8), torch.ones(8, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    quantizer = PTQQuantizer(model).calibrate([(x, mask)], progress=False, ranges="minmax")
    assert set(quantizer.left_in_float) == {"sub", "mul", "add", "softmax"}
    assert not {"mask", "sub", "mul"} & set(quantizer.qparams)
    assert sqnr_db(model(x, mask), quantizer.convert()(x, mask)) > 20


def test_tables_agree():
    assert tuple(LAYER_TYPES) == WEIGHTED_MODULES
    assert all(KINDS[kind] is Kind.WEIGHTED for kind in LAYER_TYPES)
    graph = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert list(kinds_of(graph).values()) == [Kind.FLOAT, Kind.WEIGHTED, Kind.CLAMP, Kind.FLOAT]


def test_parametrized_weights_are_computed_once():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    graph = fuse(trace(model))
    assert list(plan(graph).layers) == ["0", "1"]
    torch.testing.assert_close(graph(x), model(x))
    assert nn.utils.parametrize.is_parametrized(model[0]), "the model itself is left alone"
