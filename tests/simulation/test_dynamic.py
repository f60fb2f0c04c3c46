from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph.layer_types import LAYER_TYPES
from ptq_course.grids.affine import IntGrid, QTensor, fake_quantize
from ptq_course.grids.int32_bound import less_zero_point
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.dynamic import DynamicModel, quantize_dynamic
from ptq_course.simulation.dynamic_layers import DynamicLayer, DynamicQuantizer
from ptq_course.simulation.layers import QuantizedLayer, weight_qparams
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from tests.networks import (
    DataDependent,
    InvertedResidual,
    Residual,
    SharedLayer,
    batches,
    randomize_batch_norms,
)

NARROW = IntGrid(8, narrow=True)
GRIDS = [(IntGrid(8, signed=False), False), (IntGrid(8), True), (IntGrid(4), False)]
LAYERS = [
    (nn.Linear(6, 4), (6,)),
    (nn.Linear(6, 4), (3, 6)),
    (nn.Linear(6, 4, bias=False), (2, 5, 6)),
    (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3), (4, 8, 8)),
    (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 5, 5)),
]


def dynamic(layer, grid=GRIDS[0], granularity="per_token", weights="per_channel", symmetric=True):
    qparams = weight_qparams(layer, NARROW if symmetric else IntGrid(8), weights, symmetric)
    quantized = QuantizedLayer.from_float(layer, qparams, name="here")
    quantizer = DynamicQuantizer(
        *grid, granularity, LAYER_TYPES[type(layer)].token_dimensions, "here"
    )
    return DynamicLayer(quantized, quantizer)


def tokens(shape, seed=0):
    """Rows, or pictures, of very different ranges."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    spread = torch.tensor([0.01, 1.0, 100.0, 3.0])[: shape[0] if len(shape) > 1 else 1]
    return x * spread.repeat(4)[: x.shape[0] if x.dim() > 1 else 1].reshape(
        -1, *(1,) * (x.dim() - 1)
    )


def reference(made, x):
    """The values on the grids, multiplied in float64 by PyTorch."""
    layer = made.quantized.float_layer
    bias = None if layer.bias is None else layer.bias.double()
    given = made.quantizer(x).double()
    return LAYER_TYPES[type(layer)].compute(layer, given, made.quantized.weight.double(), bias)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0].bits}{'sym' if g[1] else 'aff'}")
@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
@pytest.mark.parametrize("weights", ["per_tensor", "per_channel"])
def test_integer_sums_give_what_the_simulation_gives(layer, shape, grid, granularity, weights):
    made = dynamic(layer, grid, granularity, weights)
    x = tokens(shape)
    with torch.no_grad():
        integer, simulated = made(x), made.simulate(x)
        exact = reference(made, x)
    assert integer.dtype == torch.float32
    assert integer.shape == simulated.shape == layer(x).shape
    largest = exact.abs().max().item()
    torch.testing.assert_close(integer.double(), exact, atol=1e-6 * largest, rtol=1e-5)
    torch.testing.assert_close(integer, simulated, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.Linear(12, 5), nn.Conv2d(12, 5, 3), nn.ConvTranspose2d(12, 5, 3)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_per_group_have_a_sum_for_each_group(layer, symmetric):
    made = dynamic(layer, weights=4, symmetric=symmetric)
    shape = (7, 12) if isinstance(layer, nn.Linear) else (2, 12, 6, 6)
    x = tokens(shape)
    assert len(made._weight_scales()) == 3
    torch.testing.assert_close(made(x), made.simulate(x), atol=1e-3, rtol=1e-4)


def test_the_sums_are_the_integers_themselves():
    layer = nn.Linear(300, 20)
    for grid in (*GRIDS, (IntGrid(12, signed=False), False)):
        made = dynamic(layer, grid)
        codes = made.quantizer.codes(torch.randn(9, 300))
        sums = made.sums(less_zero_point(codes), less_zero_point(made.quantized.weight_qtensor))
        x = codes.codes.long() - codes.require_qparams().zero_point
        expected = x @ made.quantized.weight_codes.long().T
        assert sums.dtype == torch.int32
        assert torch.equal(sums.long(), expected)


def test_the_float32_path_and_the_float64_path_give_the_same_integers(monkeypatch):
    layer = nn.Conv2d(8, 8, 3)
    made = dynamic(layer)
    x, w = (
        torch.randint(-255, 256, (4, 8, 9, 9)).float(),
        less_zero_point(made.quantized.weight_qtensor),
    )
    short = made.sums(x, w)
    monkeypatch.setattr("ptq_course.grids.exact.float32_is_exact", lambda device, largest: False)
    assert torch.equal(short, made.sums(x, w))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_shorter_float_formats_do_not_change_a_layer(bits):
    """`torch.set_float32_matmul_precision`, set after the first call, would round the sums."""
    torch.manual_seed(0)
    layer, x = quantize_dynamic(nn.Linear(512, 512), bits=bits), torch.randn(64, 512)
    expected = layer(x)
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(layer(x), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


# --- scales at run time --------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 40), seed=st.integers(0, 2**31 - 1),
    grid=st.sampled_from(GRIDS), spread=st.floats(0, 6),
)  # fmt: skip
def test_error_is_at_most_half_a_step_of_the_tokens_own(rows, columns, seed, grid, spread):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x = x * 10 ** (spread * torch.rand(rows, 1, generator=generator) - spread / 2)
    quantizer = DynamicQuantizer(*grid, "per_token")
    scale = quantizer.qparams(x).scale
    assert scale.shape == (rows, 1)
    error = (quantizer(x) - x).abs()
    assert (error <= scale * (0.5 + 256 * 2**-24) + 1e-30).all()
    for row in range(rows):  # each token is quantized as if it were alone
        alone = quantizer.codes(x[row])
        assert torch.equal(alone.codes, quantizer.codes(x).codes[row])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1), row=st.integers(0, 4), factor=st.floats(1e-3, 1e3),
    grid=st.sampled_from(GRIDS),
)  # fmt: skip
def test_scaling_one_token_leaves_the_codes_of_the_others(seed, row, factor, grid):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    scaled = x.clone()
    scaled[row] *= factor
    others = [r for r in range(5) if r != row]
    quantizer = DynamicQuantizer(*grid, "per_token")
    before, after = quantizer.codes(x), quantizer.codes(scaled)
    assert torch.equal(before.codes[others], after.codes[others])
    assert torch.equal(before.qparams.scale[others], after.qparams.scale[others])
    assert (before.codes[row].int() - after.codes[row].int()).abs().max() <= 1  # rounding of x


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_pytorch_rounds_the_same_way_with_the_same_scale(grid):
    x = torch.randn(64, 200) * 3
    q = DynamicQuantizer(*grid, "per_tensor")
    p = q.qparams(x)
    peer = torch.fake_quantize_per_tensor_affine(x, p.scale, p.zero_point, p.grid.qmin, p.grid.qmax)
    assert ((q(x) - peer).abs() > 1e-6).float().mean() < 1e-4  # PyTorch multiplies by 1 / scale
    assert (q(x) - peer).abs().max() <= p.scale * 1.001


def test_pytorch_chooses_the_same_range_at_run_time():
    x = torch.randn(64, 200) * 3 + 1
    p = DynamicQuantizer(IntGrid(8, signed=False), False, "per_tensor").qparams(x)
    scale, zero_point = torch._choose_qparams_per_tensor(x, reduce_range=False)
    assert p.scale.item() == pytest.approx(scale, rel=1e-6)
    assert int(p.zero_point) == zero_point


def test_per_picture_scales_of_a_convolution():
    made = dynamic(nn.Conv2d(3, 4, 3), granularity="per_token")
    codes = made.quantizer.codes(tokens((4, 3, 6, 6)))
    assert codes.qparams.scale.shape == (4, 1, 1, 1)
    assert codes.codes.dtype == torch.uint8
    assert (codes.codes.amax((1, 2, 3)) == 255).all(), "each picture uses its whole grid"


def test_a_constant_input_decodes_to_itself():
    made = dynamic(nn.Linear(3, 2, bias=False))
    for value in (0.0, 2.5, -7.0):
        x = torch.full((2, 3), value)
        torch.testing.assert_close(made.quantizer(x), x)
    assert torch.equal(made(torch.zeros(2, 3)), torch.zeros(2, 2))


# --- whole networks ------------------------------------------------------------------------------


def make(network=Residual):
    torch.manual_seed(0)
    return randomize_batch_norms(network())


@pytest.mark.parametrize("network", [Residual, InvertedResidual])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
@pytest.mark.parametrize("preset", [QConfig.onnxruntime, QConfig.tensorrt])
def test_a_network_keeps_its_output_without_any_data(network, granularity, preset):
    model, x = make(network), batches()[0][0]
    quantized = quantize_dynamic(model, granularity=granularity, config=preset())
    assert isinstance(quantized, DynamicModel)
    assert sqnr_db(model(x), quantized(x)) > 25
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quantized.modules()), "folded"
    assert set(quantized.dynamic_layers()) == set(quantized.quantized_layers())


def test_what_stays_in_float_is_named():
    quantized = quantize_dynamic(make())
    assert list(quantized.left_in_float) == ["add"]
    assert "between the layers" in quantized.left_in_float["add"]
    partly = quantize_dynamic(make(), config=QConfig(float_layers=("fc",)))
    assert "fc" in partly.left_in_float
    assert set(partly.dynamic_layers()) == {"stem", "a", "b"}


def test_per_token_does_not_depend_on_the_rest_of_the_batch():
    model, x = make(), batches()[0][0]
    x[3] *= 5000
    per_token, per_tensor = (
        quantize_dynamic(model, granularity=g) for g in ("per_token", "per_tensor")
    )
    torch.testing.assert_close(per_token(x)[:2], per_token(x[:2]))
    assert (per_tensor(x)[:2] - per_tensor(x[:2])).abs().max() > 0.01
    assert sqnr_db(model(x[:2]), per_token(x)[:2]) > sqnr_db(model(x[:2]), per_tensor(x)[:2]) + 10


def test_weights_only():
    model, x = make(), batches()[0][0]
    only = quantize_dynamic(model, weights_only=True)
    assert isinstance(only, QuantizedModel)
    assert only.config.activation_bits is None
    both = quantize_dynamic(model, config=QConfig(activation_bits=5))
    assert sqnr_db(model(x), only(x)) > sqnr_db(model(x), both(x)) + 5
    for name, layer in both.quantized_layers().items():
        assert torch.equal(layer.weight_codes, only.quantized_layers()[name].weight_codes)
    same = quantize_dynamic(model, config=QConfig(activation_bits=None))
    assert torch.equal(same(x), only(x))


def test_bits_and_groups():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(16, 64)
    ratios = [sqnr_db(model(x), quantize_dynamic(model, bits=b)(x)) for b in (2, 4, 6, 8)]
    assert ratios == sorted(ratios)
    grouped = quantize_dynamic(model, config=QConfig(weight_bits=4, weight_granularity=16))
    per_channel = quantize_dynamic(model, config=QConfig(weight_bits=4))
    assert sqnr_db(model(x), grouped(x)) > sqnr_db(model(x), per_channel(x))
    assert grouped.dynamic_layers()["0"].quantizer.grid.bits == 8


def test_the_users_model_is_left_alone():
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    quantize_dynamic(model)(batches()[0][0])
    assert model.training
    assert all(torch.equal(a, model.state_dict()[n]) for n, a in before.items())
    assert not any(isinstance(m, QuantizedLayer) for m in model.modules())


def test_an_untraceable_model_and_a_shared_layer():
    model = DataDependent()
    with pytest.warns(UserWarning, match="cannot be traced"):
        quantized = quantize_dynamic(model)
    assert set(quantized.dynamic_layers()) == {"fc", "other"}
    assert "(between layers)" in quantized.left_in_float
    for x in (torch.ones(4, 6), -torch.ones(4, 6)):  # no calibration: a branch cannot be missed
        assert sqnr_db(model(x), quantized(x)) > 25
    shared = quantize_dynamic(SharedLayer())
    assert set(shared.dynamic_layers()) == {"fc", "fc__call2", "out"}


def test_codes_of_shows_what_each_layer_rounded():
    model = make()
    quantized = quantize_dynamic(model)
    x = batches()[0][0]
    codes = quantized.codes_of(x)
    assert set(codes) == {"stem", "a", "b", "fc"}
    assert all(isinstance(c, QTensor) and c.codes.dtype == torch.uint8 for c in codes.values())
    assert codes["stem"].shape == x.shape
    layer = quantized.dynamic_layers()["stem"]
    expected = fake_quantize(x, layer.quantizer.qparams(x))
    assert torch.equal(codes["stem"].dequantize(), expected)
    assert not layer._forward_pre_hooks


def test_float64_and_half():
    model = nn.Sequential(nn.Linear(8, 4))
    x = torch.randn(3, 8)
    expected = quantize_dynamic(model)(x)
    for dtype, tolerance in ((torch.float64, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.05)):
        got = quantize_dynamic(copy.deepcopy(model).to(dtype))(x.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=0.05)


class TestRefusals:
    def test_words_and_bits(self):
        with pytest.raises(QuantizationError, match=r"'per_row'.*weight_granularity"):
            quantize_dynamic(make(), granularity="per_row")
        with pytest.raises(QuantizationError, match="bits"):
            quantize_dynamic(make(), bits=1)
        with pytest.raises(QuantizationError, match="weight_bits"):
            quantize_dynamic(make(), config=QConfig(weight_bits=None))
        with pytest.raises(QuantizationError, match=r"nn.Module"):
            quantize_dynamic("resnet50")
        with pytest.raises(UnsupportedError, match="no layer to quantize"):
            quantize_dynamic(nn.Sequential(nn.ReLU()))
        with pytest.raises(UnsupportedError, match="float_layers names 'nope'"):
            quantize_dynamic(make(), config=QConfig(float_layers=("nope",)))

    def test_bad_inputs_name_the_layer(self):
        quantized = quantize_dynamic(make())
        x = batches()[0][0]
        for value in (float("nan"), float("inf")):
            bad = x.clone()
            bad[0, 0, 0, 0] = value
            with pytest.raises(
                QuantizationError, match=r"layer 'stem', its input at run time.*NaN"
            ):
                quantized(bad)
        assert quantized(x[:0]).shape == make()(x[:0]).shape  # no row, nothing to round

    def test_sums_beyond_int32(self):
        model = nn.Sequential(nn.Linear(100_000, 1))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        with pytest.raises(UnsupportedError, match=r"layer '0'.*beyond int32.*float_layers"):
            quantize_dynamic(model)
        assert quantize_dynamic(model, weights_only=True)(torch.ones(1, 100_000)).shape == (1, 1)

    def test_codebooks_and_groups_in_grouped_convolutions(self):
        layer = nn.Linear(4, 2)
        book = QTensor(torch.zeros(2, 4, dtype=torch.uint8), codebook=torch.tensor([0.5]))
        with pytest.raises(UnsupportedError, match=r"'fc'.*codebook.*weights_only"):
            DynamicLayer(
                QuantizedLayer(layer, book, name="fc"), DynamicQuantizer(*GRIDS[0], "per_token")
            )
        with pytest.raises(UnsupportedError, match=r"'0'.*groups.*per_channel"):
            quantize_dynamic(
                nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), config=QConfig(weight_granularity=2)
            )


def test_products_agree_with_the_integer_modules_products():
    products = pytest.importorskip("ptq_course.integer.products")
    made = dynamic(nn.Linear(150, 20), (IntGrid(8), True))
    codes = made.quantizer.codes(torch.randn(9, 150))
    ours = made.sums(less_zero_point(codes), less_zero_point(made.quantized.weight_qtensor))
    theirs = products.int_matmul(codes.codes, made.quantized.weight_codes.T.contiguous())
    assert torch.equal(ours, theirs)


def test_an_embedding_has_integer_weights_and_no_input_to_round():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 6)
            self.fc = nn.Linear(6, 3)

        def forward(self, ids):
            return self.fc(self.table(ids))

    model, ids = Words(), torch.randint(0, 9, (4, 5))
    quantized = quantize_dynamic(model)
    assert set(quantized.quantized_layers()) == {"table", "fc"}
    assert set(quantized.dynamic_layers()) == {"fc"}
    assert quantized.left_in_float["table"] == "only the weights of Embedding are integers"
    assert sqnr_db(model(ids), quantized(ids)) > 30


def test_attention_rounds_the_input_of_each_of_its_linear_layers():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 7, 16)
    quantized = quantize_dynamic(model)
    assert len(quantized.dynamic_layers()) == 6
    assert all(q.qparams.scale.shape == (2, 7, 1) for q in quantized.codes_of(x).values())
    assert any("softmax" in name for name in quantized.left_in_float)
    assert sqnr_db(model(x), quantized(x)) > 30
