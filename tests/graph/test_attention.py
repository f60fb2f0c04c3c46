from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.graph import copied, plan, trace
from ptq_course.graph.attention import Attention
from ptq_course.graph.fusion import fuse
from ptq_course.graph.transformer import rewrite_modules
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.quantizer import PTQQuantizer

WIDTH, HEADS, QUERIES, KEYS, BATCH = 8, 2, 5, 6, 3


def rewritten(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)  # biases start at zero: a lost one would not show
    return rewrite_modules(copied(module))


def assert_close(expected, got):
    for a, b in zip(expected, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 10}], ids=["packed", "separate"])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(2)},
        {"attn_mask": torch.randn(BATCH * HEADS, QUERIES, KEYS)},
        {"key_padding_mask": torch.arange(KEYS).expand(BATCH, -1) > 3, "need_weights": False},
        {
            "attn_mask": torch.randn(QUERIES, KEYS),
            "key_padding_mask": torch.eye(BATCH, KEYS) * -9,
        },
    ],
    ids=["plain", "no weights", "each head", "bool mask", "mask a head", "padding", "float masks"],
)
def test_equals_multihead_attention(batch_first, bias, sizes, call):
    original = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first, **sizes)
    ours = rewritten(original)
    assert isinstance(ours, Attention)
    q = torch.randn(BATCH, QUERIES, WIDTH)
    k = torch.randn(BATCH, KEYS, sizes.get("kdim", WIDTH))
    v = torch.randn(BATCH, KEYS, sizes.get("vdim", WIDTH))
    if not batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    with torch.no_grad():
        assert_close(original.eval()(q, k, v, **call), ours(q, k, v, **call))


def test_a_row_that_is_masked_completely_has_weights_of_zero():
    """As in torch's fused product; with need_weights, and in its fast path, torch gives NaN."""
    original = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    ours, x = rewritten(original), torch.randn(BATCH, KEYS, WIDTH)
    padding = torch.arange(KEYS).expand(BATCH, -1) > 3
    padding[1] = True
    expected = original.eval()(x, x, x, key_padding_mask=padding, need_weights=False)
    got, weights = ours(x, x, x, key_padding_mask=padding)
    assert_close(expected[:1], [got])
    assert torch.equal(weights[1], torch.zeros(KEYS, KEYS))


class Padded(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.out, self.need_weights = nn.Linear(WIDTH, 3), need_weights

    def forward(self, x, padding):
        mixed = self.attention(
            x, x, x, key_padding_mask=padding, need_weights=self.need_weights
        )[0]  # fmt: skip
        return self.out(mixed)


@pytest.mark.parametrize("need_weights", [False, True])
def test_calibration_with_a_sequence_of_nothing_but_padding(need_weights):
    torch.manual_seed(0)
    model, x = Padded(need_weights).eval(), torch.randn(BATCH, KEYS, WIDTH)
    padding = torch.arange(KEYS).expand(BATCH, -1) > 3
    padding[1] = True
    quantized = (
        PTQQuantizer(model).calibrate([(x, padding)], progress=False, ranges="minmax").convert()
    )
    with torch.no_grad():
        got, expected = quantized(x, padding), model(x, padding)
    assert got.isfinite().all()
    assert torch.allclose(got[[0, 2]], expected[[0, 2]], atol=0.1)


def test_dot_product_attention_with_a_masked_row():
    class DotProduct(nn.Module):
        def forward(self, q, mask):
            return F.scaled_dot_product_attention(q, q, q, mask)

    q = torch.randn(BATCH, HEADS, KEYS, WIDTH)
    mask = torch.ones(KEYS, KEYS, dtype=torch.bool)
    mask[2] = False
    float_mask = torch.zeros(KEYS, KEYS).masked_fill(~mask, float("-inf"))
    for given in (mask, float_mask):
        assert_close([DotProduct()(q, given)], [trace(DotProduct())(q, given)])


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(batch_first):
    original = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
    ours, x = rewritten(original), torch.randn(QUERIES, WIDTH)
    padding = torch.arange(QUERIES) > 3
    assert_close(
        original.eval()(x, x, x, key_padding_mask=padding), ours(x, x, x, key_padding_mask=padding)
    )


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", nn.SiLU()])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_encoder_and_decoder(norm_first, activation, causal):
    options = {"norm_first": norm_first, "activation": activation, "batch_first": True}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 12, **options),
        2,
        norm=nn.LayerNorm(WIDTH),
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 12, **options), 2)
    x, memory = torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES) if causal else None
    padding = torch.arange(KEYS).expand(BATCH, -1) > 4
    with torch.no_grad():
        ours = rewritten(encoder)
        assert_close([encoder.eval()(x, mask)], [ours(x, mask)])
        ours = rewritten(decoder)
        call = {"tgt_mask": mask, "memory_key_padding_mask": padding}
        assert_close([decoder.eval()(x, memory, **call)], [ours(x, memory, **call)])


def test_padded_tokens_do_not_reach_the_others():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True), 1
    )
    x, padding = torch.randn(BATCH, QUERIES, WIDTH), torch.zeros(BATCH, QUERIES, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        expected = encoder.eval()(x, src_key_padding_mask=padding)  # nested tensors inside
        got = rewrite_modules(copied(encoder))(x, src_key_padding_mask=padding)
    torch.testing.assert_close(expected[~padding], got[~padding], atol=1e-5, rtol=1e-5)


class DotProduct(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.qkv, self.options = nn.Linear(WIDTH, 3 * WIDTH), options

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, -1)
        masked = {"attn_mask": mask} if self.options.get("masked") else {}
        options = {name: value for name, value in self.options.items() if name != "masked"}
        return F.scaled_dot_product_attention(q, k, v, **masked, **options)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.2}, {"masked": True}], ids=str
)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_equals_scaled_dot_product_attention(options, kind):
    model = DotProduct(**options).eval()
    x = torch.randn(BATCH, QUERIES, WIDTH)
    mask = (torch.rand(QUERIES, QUERIES) + torch.eye(QUERIES) > 0.5).to(kind)
    traced = trace(model)
    assert not any(n.target is F.scaled_dot_product_attention for n in traced.graph.nodes)
    torch.testing.assert_close(model(x, mask), traced(x, mask), atol=1e-6, rtol=1e-5)


def test_a_copied_decoder_layer_keeps_its_activation():
    """copy.deepcopy of nn.TransformerDecoderLayer(activation=a module) computes ReLU instead."""
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 12, activation=nn.SiLU(), batch_first=True)
    x, memory = torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, WIDTH)
    expected = layer.eval()(x, memory)
    torch.testing.assert_close(expected, trace(layer)(x, memory), atol=1e-5, rtol=1e-5)


def test_grouped_query_attention_is_named():
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 4)

        def forward(self, x):
            return F.scaled_dot_product_attention(self.q(x), x, x, enable_gqa=True)

    assert "scaled_dot_product_attention" in plan(fuse(trace(Grouped()))).left_in_float


def test_unusual_attention_is_left_and_named():
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, add_bias_kv=True)

        def forward(self, x):
            x = self.a(x)
            return self.b(x, x, x)[0]

    result = plan(fuse(trace(Biased())))
    assert "bias_k" in result.left_in_float["b"]
    assert list(result.layers) == ["a"]


def encoder_and_data():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 3)).eval()
    return model, [torch.randn(4, QUERIES, WIDTH) for _ in range(3)]


def test_layers_keep_recognisable_names():
    model, data = encoder_and_data()
    quantized = PTQQuantizer(model).calibrate(data, progress=False, ranges="minmax").convert()
    names = [f"0.layers.{i}" for i in (0, 1)]
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
    expected = {f"{n}.{p}" for n in names for p in [*parts, "linear1", "linear2"]} | {"1"}
    assert set(quantized.quantized_layers()) == expected


def test_no_fast_path_skips_a_quantizer():
    model, data = encoder_and_data()
    quantized = PTQQuantizer(model).calibrate(data, progress=False, ranges="minmax").convert()
    calls: dict[nn.Module, int] = {}

    def count(module, *_):
        calls[module] = calls.get(module, 0) + 1

    parts = [m for m in quantized.modules() if isinstance(m, (ActivationQuantizer, QuantizedLayer))]
    assert len(parts) == len(quantized.qparams) + 13
    for part in parts:
        part.register_forward_hook(count)
    with torch.inference_mode():
        before = quantized(data[0])
        assert set(calls.values()) == {1}
        assert set(calls) == set(parts)
        for name, layer in quantized.quantized_layers().items():
            codes = layer.weight_codes.clone()
            layer.weight_codes.zero_()
            assert not torch.equal(quantized(data[0]), before), name
            layer.weight_codes.copy_(codes)
        assert torch.equal(quantized(data[0]), before)


def test_each_product_reads_integers_and_the_softmax_is_in_0_1():
    model, _ = encoder_and_data()
    result = plan(fuse(trace(model)))
    assert [v.range for v in result.values.values() if v.range] == [(0.0, 1.0)] * 2
    assert sum(name.startswith("softmax") for name in result.values) == 2
    norms = {f"0.layers.{i}.norm{j}" for i in (0, 1) for j in (1, 2)}
    residuals = {"add", "add_1", "add_2", "add_3"}  # only a LayerNorm reads them
    assert set(result.left_in_float) == norms | residuals
