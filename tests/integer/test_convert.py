"""Whole networks with integers only: agreement with the simulation, no floats, named refusals."""

from dataclasses import replace

import pytest
import torch
from networks import DataDependent, InvertedResidual, Residual, batches, randomize_batch_norms
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.grids.affine import QTensor
from ptq_course.integer import agreement, products, to_integer
from ptq_course.integer.agreement import Recorder
from ptq_course.integer.averages import IntegerAveraging
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class Branches(nn.Module):
    """Concatenation, products, subtraction, pooling of every kind, functional style."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding="same")
        self.b = nn.Conv2d(3, 6, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(10, 8, 3, stride=2, groups=2)
        self.doubling = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.pad = nn.ZeroPad2d(1)
        self.pool = nn.AvgPool2d(2, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        a = F.relu6(self.a(x))
        x = torch.cat((a, self.b(x)), dim=1)
        x = F.relu(self.grouped(F.pad(self.pad(x), (0, 1, 0, 1))[:, :, :-1, :-1]))
        x = F.max_pool2d(x, 3, 1, 0) - self.pool(F.avg_pool2d(x, 1)) * x[:, :, :4, :4]
        x = self.doubling(x)
        x = x * x.mean((2, 3), keepdim=True)
        return self.fc(x.relu().mean((2, 3)))


class Signal(nn.Module):
    """One-dimensional convolutions with pooling, and a view that needs contiguous memory."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 5, stride=2, padding=2)
        self.pool = nn.MaxPool1d(2)
        self.conv2 = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.average = nn.AvgPool1d(2)
        self.fc = nn.Linear(18, 4)

    def forward(self, x):
        x = torch.relu(self.pool(self.conv1(x)))
        x = self.average(self.conv2(x))
        return self.fc(x.view(x.size(0), -1))


class Pooled(nn.Module):
    """A fully convolutional classifier: what follows the last layer stays real."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.classifier(F.relu(self.conv(x))))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


class Shuffled(nn.Module):
    """Channels split, shuffled and concatenated; an unquantized average is the output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        left, right = self.conv(x).chunk(2, dim=1)
        x = torch.cat((left, F.relu(self.branch(right))), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return torch.add(x, self.conv(x.permute(0, 1, 3, 2)[:, :3])).flatten(2).mean(2)


def converted(model, config=None, shape=(3, 12, 12), ranges="minmax"):
    torch.manual_seed(0)
    data = batches(shape=shape)
    config = config or QConfig.arm()  # integers throughout
    quantizer = PTQQuantizer(randomize_batch_norms(model), config=config)
    return quantizer.observe(data, progress=False).compute_qparams(ranges).convert(), data[0][0]


NETWORKS = {
    "residual": (Residual, (3, 12, 12)),
    "inverted residual": (InvertedResidual, (3, 12, 12)),
    "pooled": (Pooled, (3, 12, 12)),
    "signal": (Signal, (3, 24)),
    "branches": (Branches, (3, 12, 12)),
    "shuffled": (Shuffled, (3, 12, 12)),
}


# Runtimes that compute some of a network in floating point: no kernel, or nobody reads the sum.
LESS_THAN_ALL = {"branches": {"onnxruntime"}, "shuffled": {"tensorrt"}}


@pytest.mark.parametrize("preset", [QConfig.onnxruntime(), QConfig.tensorrt(), QConfig.arm()])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_operation_is_one_step_from_the_simulation_at_most(name, preset):
    make, shape = NETWORKS[name]
    quantized, x = converted(make(), preset, shape)
    if name in LESS_THAN_ALL and preset.target in LESS_THAN_ALL[name]:
        with pytest.raises(UnsupportedError, match=r"no integer kernel|not quantized codes"):
            to_integer(quantized)
        return
    integer = to_integer(quantized)
    table = agreement(integer, quantized, x)
    assert len(table.isolated) == len(integer.quantizers) >= 2
    for operation, differences in table.isolated.items():
        assert differences.largest <= 1, operation
        # Averages of few codes often lie in the middle, where float32 falls to either side.
        share = 0.9 if isinstance(integer.layers().get(operation), IntegerAveraging) else 0.99
        assert differences.equal > share * differences.codes, operation
    assert (integer(x) - quantized(x)).abs().max() < 0.05 * quantized(x).abs().max()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(
    "config",
    [
        QConfig(),
        QConfig(weight_granularity="per_tensor"),
        QConfig(weight_symmetric=False, weight_narrow=False),
        QConfig(weight_symmetric=False, weight_narrow=False, weight_granularity="per_tensor"),
    ],
    ids=["per channel", "per tensor", "affine weights", "affine weights per tensor"],
)
def test_two_to_eight_bits(bits, config):
    quantized, x = converted(InvertedResidual(), config.with_bits(bits))
    table = agreement(to_integer(quantized), quantized, x)
    assert max(d.largest for d in table.isolated.values()) <= 1


def test_the_result_does_not_depend_on_the_batch_size():
    quantized, x = converted(Residual())
    assert torch.equal(to_integer(quantized, batch_size=3)(x), to_integer(quantized)(x))
    with pytest.raises(QuantizationError, match="batch_size"):
        to_integer(quantized, batch_size=0)


# --- integers only --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_no_float_between_the_first_quantize_and_the_last_dequantize(name):
    make, shape = NETWORKS[name]
    quantized, x = converted(make(), None, shape)
    integer = to_integer(quantized)
    run = Recorder(integer.module)
    run.run(x)
    values = [(n.name, run.values[n.name]) for n in integer.module.graph.nodes]
    floating = [n for n, v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]
    last = list(integer.operations())[-1]
    first_real = next(n for n, _ in values if integer.module.graph and n == floating[1])
    assert floating[0] == "x"
    part = integer.module.get_submodule(first_real)
    assert part is last


class NoFloats(TorchDispatchMode):
    """Fails on every operator that sees or makes a floating-point tensor."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in (*args, *(result if isinstance(result, tuple) else (result,))):
            if isinstance(value, torch.Tensor):
                assert not value.is_floating_point(), f"{func} with {value.dtype}"
        self.operators += 1
        return result


@pytest.mark.parametrize("name", NETWORKS)
def test_no_operator_inside_touches_a_float(name, monkeypatch):
    """With the product in PyTorch's integers, not one operator computes in floating point."""
    make, shape = NETWORKS[name]
    quantized, x = converted(make(), None, shape)
    integer = to_integer(quantized)
    expected = integer(x)
    monkeypatch.setattr("ptq_course.integer.operations.int_matmul", lambda a, b: a.int() @ b.int())
    *inside, _ = integer.operations()
    seen = []
    for op in inside:
        plain = op.forward

        def watched(*codes, plain=plain):
            with NoFloats() as mode:
                result = plain(*codes)
            seen.append(mode.operators)
            return result

        op.forward = watched
    assert torch.equal(integer(x), expected)
    assert len(seen) == len(inside)
    assert min(seen) > 3


def test_the_watcher_sees_floats():
    with NoFloats(), pytest.raises(AssertionError, match="float32"):
        torch.ones(2, dtype=torch.int8).float()


def test_stored_numbers_are_integers():
    quantized, _ = converted(Residual())
    floats = {k for k, v in to_integer(quantized).state_dict().items() if v.is_floating_point()}
    assert floats == {"module.x_quantizer.scale", "module.fc.finish.scale"}


def test_both_products_give_the_same_logits(monkeypatch):
    quantized, x = converted(Residual())
    integer = to_integer(quantized)
    by = {}
    for trusted in (True, False):
        monkeypatch.setattr(products, "int_mm_is_exact", lambda trusted=trusted: trusted)
        monkeypatch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int())
        by[trusted] = integer(x)
    assert torch.equal(by[True], by[False])


# --- accumulators ---------------------------------------------------------------------------------


def test_bounds_hold_and_are_reached():
    """A layer whose input takes the worst codes reaches its bound exactly."""
    quantized, x = converted(Residual())
    integer = to_integer(quantized)
    integer(x)
    layer = integer.layers()["fc"]
    _, high = layer.ranges_by_channel()
    channel = int(high.argmax())
    grid = next(iter(integer.qparams.values())).grid  # one for all activations
    worst = torch.where(layer.weight_codes[channel] > 0, grid.qmax, grid.qmin).to(grid.dtype)
    reached = int(layer.accumulate(worst.unsqueeze(0))[0, channel])
    bias = int(layer.bias_codes[channel])
    assert reached == int(high[channel]) - max(bias, 0) + bias
    for op in integer.operations():
        lowest, highest = op.accumulator_range()
        assert lowest <= 0 <= highest


def test_the_table_says_how_many_bits_each_accumulator_needs():
    quantized, x = converted(Residual())
    integer = to_integer(quantized)
    assert "pool" in str(integer.accumulators())
    before = {row.name: row.terms for row in integer.accumulators().rows}
    assert before["pool"] == 0
    integer(x)
    rows = {row.name: row for row in integer.accumulators().rows}
    assert list(rows) == ["stem", "a", "b", "add", "pool", "fc"]
    assert rows["a"].terms == 8 * 9
    assert rows["pool"].terms == 144
    for row in rows.values():
        assert -(2 ** (row.bits - 1)) <= row.low <= row.high < 2 ** (row.bits - 1)
        assert max(-row.low, row.high + 1) > 2 ** (row.bits - 2)
    assert integer.accumulators().bits == max(row.bits for row in rows.values()) <= 32
    assert "<table>" in integer.accumulators()._repr_html_()


def test_an_accumulator_that_could_overflow_is_named():
    quantized, _ = converted(Residual())
    layer = quantized.quantized_layers()["a"]
    layer.bias_codes = layer.bias_codes.clone()
    layer.bias_codes[2] = 2**31 - 5
    with pytest.raises(UnsupportedError, match=r"accumulator of a can reach .* 33 bits.*Use fewer"):
        to_integer(quantized)


def test_a_picture_too_large_to_average_is_named():
    quantized, _ = converted(Residual())
    integer = to_integer(quantized)
    pool = integer.layers()["pool"]
    with pytest.raises(UnsupportedError, match="pool: the sum of 9000000 codes"):
        pool(torch.zeros((), dtype=torch.uint8).expand(1, 8, 3000, 3000))


# --- refusals -------------------------------------------------------------------------------------


class With(nn.Module):
    """A convolution, one more operation, a linear layer."""

    def __init__(self, operation, **conv):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, **conv)
        self.operation = operation
        self.fc = nn.LazyLinear(2)

    def forward(self, x):
        return self.fc(self.operation(self.conv(x)).flatten(1))


def refused(model, match, config=None, shape=(3, 12, 12)):
    model(torch.zeros(1, *shape))
    quantized, _ = converted(model, config, shape)
    with pytest.raises(UnsupportedError, match=match):
        to_integer(quantized)


@pytest.mark.parametrize(
    ("operation", "match"),
    [
        (nn.SiLU(), "operation"),
        (nn.Hardswish(), "operation"),
        (nn.Sigmoid(), "operation"),
        (nn.Softmax(1), "operation"),
        (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "unequal"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "unequal"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_operations_without_integers_are_refused_by_name(operation, match):
    refused(With(operation), match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (QConfig(activation_bits=None), "input is not quantized"),
        (QConfig(weight_bits=None), "fc|conv"),
        (QConfig(quantize_bias=False), "quantize_bias=True"),
        (QConfig(weight_granularity=2), "per_channel"),
        (QConfig(weight_bits=12, activation_bits=8), "12 bits"),
        (QConfig(activation_bits=10), "10 bits"),
        (QConfig(float_layers=("fc",)), "fc stays in floating point"),
    ],
)
def test_choices_without_integers_are_refused_by_name(config, match):
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 4, 1)
    model.relu = nn.ReLU()
    model.flatten = nn.Flatten()
    model.fc = nn.Linear(4 * 144, 2)
    if config.weight_granularity == 2:
        model.conv = nn.Conv2d(3, 4, 1)
        config = replace(config, weight_granularity=3)
    refused(model, match, config)


class BatchMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x - x.mean(0, keepdim=True))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)
        self.offset = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.b(self.a(x) + self.offset)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


@pytest.mark.parametrize(
    ("make", "shape", "match"),
    [
        (BatchMean, (6,), "averages over the batch"),
        (Constant, (6,), "offset is a constant"),
        (Attention, (5, 8), "to_integer: .*(layer|softmax|matmul|mul|norm)"),
    ],
)
def test_networks_without_integers_are_refused_by_name(make, shape, match):
    refused(make().eval(), match, shape=shape)


def test_hardtanh_is_a_clamp_of_codes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.clamp, self.b = nn.Linear(6, 6), nn.Hardtanh(-0.5, 0.7), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.clamp(self.a(x)))

    quantized, x = converted(Net(), shape=(6,))
    table = agreement(to_integer(quantized), quantized, x)
    assert "clamp" in table.isolated
    assert max(row.largest for row in table.isolated.values()) <= 1


def test_a_codebook_is_refused():
    quantized, _ = converted(Residual())
    layer = quantized.quantized_layers()["a"]
    codes = layer.weight_codes.long() + 128
    clustered = QuantizedLayer(
        layer.float_layer, QTensor(codes, codebook=torch.randn(256)), layer.bias_codes,
        layer.bias_scale, name="a",
    )  # fmt: skip
    quantized.module.a = clustered
    with pytest.raises(UnsupportedError, match="a: a codebook"):
        to_integer(quantized)


def test_an_untraced_model_is_refused():
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(DataDependent())
    data = [(torch.ones(2, 6), torch.zeros(2)), (-torch.ones(2, 6), torch.zeros(2))]
    quantized = quantizer.observe(data, progress=False).compute_qparams("minmax").convert()
    with pytest.raises(UnsupportedError, match="could not be traced"):
        to_integer(quantized)


def test_a_float_model_is_refused():
    with pytest.raises(QuantizationError, match="convert"):
        to_integer(nn.Linear(2, 2))


def test_agreement_wants_the_model_it_came_from():
    quantized, x = converted(Residual())
    other, _ = converted(Signal(), shape=(3, 24))
    with pytest.raises(QuantizationError, match="another model"):
        agreement(to_integer(quantized), other, x)


def test_what_a_learner_reads():
    quantized, x = converted(Residual())
    integer = to_integer(quantized)
    assert "stem): Conv2d 8x3x3x3 int8 -> int32 -> codes" in repr(integer)
    assert "4 layers with int8 weights" in repr(integer)
    table = agreement(integer, quantized, x)
    assert "same decision: 8 of 8" in str(table)
    assert "<table>" in table._repr_html_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_agreement_in_the_dtype_of_the_model(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval().to(dtype)
    x = torch.randn(16, 8, dtype=dtype)
    simulated = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    result = agreement(to_integer(simulated), simulated, x)
    assert result.decisions == 16
    assert all(d.largest <= 1 for d in result.isolated.values())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        y = self.body(x)
        return {"one": self.one(y), "both": (self.one(y), self.two(y))}


def test_outputs_by_name():
    torch.manual_seed(0)
    x = torch.randn(100, 8)  # more than one piece
    simulated = (
        PTQQuantizer(Named().eval()).calibrate([x], progress=False, ranges="minmax").convert()
    )
    got, expected = to_integer(simulated)(x), simulated(x)
    assert torch.allclose(got["one"], expected["one"], atol=1e-2)
    assert torch.allclose(got["both"][1], expected["both"][1], atol=1e-2)
