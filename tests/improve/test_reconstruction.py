"""Reconstruction: nearer to FP32 on unseen data, real integers at the end, nothing else changed."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import session
from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import QParams
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.clustering import Cluster
from ptq_course.improve.distillation import fine_tune
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.reconstruction import draws, reconstruct
from ptq_course.improve.walk import improved
from ptq_course.simulation.observe import output_tensors, placed
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.foreign import ARCHITECTURES


class Residual(nn.Module):
    """Depthwise and grouped convolutions, an add, a pool that inherits its scale."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.act, self.pool, self.fc = nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 6)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.grouped(self.act(self.depthwise(x)))
        return self.fc(self.pool(x).flatten(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(5)
    return Residual().eval()


def pictures(seed: int, batches: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = nn.AvgPool2d(3, 1, 1)  # neighbours are alike, as in pictures
    return [3 * smooth(torch.randn(32, 3, 12, 12, generator=generator)) for _ in range(batches)]


@pytest.fixture(scope="module")
def data():
    return pictures(0)


def calibrated(model, data, **choices):
    settings: dict[str, Any] = {"weight_bits": 4, "activation_bits": 4} | choices
    config = QConfig(**settings)
    return PTQQuantizer(model, config=config).calibrate(data, ranges="minmax", progress=False)


@pytest.fixture(scope="module")
def quantizer(model, data):
    return calibrated(model, data)


@pytest.fixture(scope="module")
def learned(quantizer, data):
    return reconstruct(quantizer, data, 150, progress=False)


def decibels(model, made, batches):
    with torch.no_grad():
        outputs = [torch.cat([net(x) for x in batches]) for net in (model, made)]
    return snr_pooled(*outputs)


def test_unseen_data_come_nearer_to_fp32_than_adaround_brings_them(model, data, quantizer, learned):
    unseen = pictures(9)
    rounded = improved(quantizer, data, [GPTQ()], progress=False)
    before = decibels(model, rounded, unseen)
    assert decibels(model, learned, unseen) > before + 3
    further = reconstruct(quantizer, data, 150, start=rounded, progress=False)
    assert decibels(model, further, unseen) > before + 3


def test_good_codes_of_two_bits_are_kept_where_nothing_better_is_learned(model, data):
    """GPTQ's codes are seldom the nearest: float weights at the edge of a code would fall back."""
    quantizer = calibrated(model, data, weight_bits=2, activation_bits=8)
    start = improved(quantizer, data, [GPTQ()], progress=False)
    before = decibels(model, start, data)
    assert before > decibels(model, quantizer.convert(), data)
    for rate in (0.01, 0.9):
        made = reconstruct(quantizer, data, 10, start=start, rate=rate, progress=False)
        assert decibels(model, made, data) >= before


class Heads(nn.Module):
    """One layer under two names, and what a user may return."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        if self.kind == "one value an example":
            return x.mean(-1)
        if self.kind == "classes, too":
            return x, x.argmax(-1)
        if self.kind == "classes alone":
            return x.argmax(-1)
        return x


def rows(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*length, 6, generator=generator) for length in lengths]


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        ("one value an example", rows((80,), (80,))),
        ("classes, too", rows((80,), (80,))),
        ("sequences of two lengths", rows((40, 5), (40, 9))),
    ],
)
def test_outputs_of_any_kind_are_compared(kind, batches):
    torch.manual_seed(4)
    model = Heads(kind).eval()
    quantizer = calibrated(model, batches, activation_bits=8, weight_bits=2)
    before, made = quantizer.convert(), reconstruct(quantizer, batches, 150, progress=False)
    wanted, old, new = (output_tensors(net(batches[0]))[0] for net in (model, before, made))
    assert snr_pooled(wanted, new) > snr_pooled(wanted, old) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_learn_in_32_bits_or_more(dtype):
    """A step of a weight's code is below what 16 bits resolve; the network keeps its type."""
    torch.manual_seed(4)
    model = Heads("").eval().to(dtype)
    batches = [x.to(dtype) for x in rows((80,), (80,))]
    quantizer = calibrated(model, batches, activation_bits=8, weight_bits=2)
    before = quantizer.convert()
    learned = reconstruct(quantizer, batches, 150, progress=False)
    tuned = fine_tune(before, batches, 100, teacher=model, loss=mse_loss, progress=False)
    wanted = model(batches[0])
    start = snr_pooled(wanted, before(batches[0]))
    for made in (learned, tuned):
        found = made(batches[0])
        assert found.dtype == dtype
        assert snr_pooled(wanted, found) > start + 1


def test_classes_alone_are_refused():
    batches = rows((20,))
    quantizer = calibrated(Heads("classes alone").eval(), batches)
    with pytest.raises(QuantizationError, match="no real-valued output"):
        reconstruct(quantizer, batches, 1, progress=False)


def test_a_mask_with_as_many_rows_as_examples_is_not_shuffled():
    """Six sequences of six tokens: the mask's rows are positions, not examples."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.value, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x, mask):
            return self.out(mask @ self.value(x))

    torch.manual_seed(2)
    model = Masked().eval()
    mask = torch.ones(6, 6).tril()
    data = [(x, mask) for x in rows((6, 6), (6, 6), (6, 6))]
    inputs = [list(pair) for pair in data]
    targets = [[model(*pair)] for pair in inputs]
    drawn = draws(inputs, targets, torch.Generator().manual_seed(0))
    for _ in range(6):
        (x, given), (wanted,) = next(drawn)
        assert torch.allclose(model(x, given), wanted)
        assert torch.equal(given, mask)


def test_the_result_is_integers_with_one_scale_a_value(quantizer, learned):
    ranges = {n: m for n, m in learned.module.named_modules() if hasattr(m, "qparams")}
    assert any(
        not torch.equal(learned.qparams[name].scale, old.scale)
        for name, old in quantizer.qparams.items()
    )
    for part in ranges.values():
        assert torch.equal(part.scale, learned.qparams[part.name].scale)
    for name, layer in learned.quantized_layers().items():
        q = layer.weight_qtensor.require_qparams()
        assert int(layer.weight_codes.min()) >= q.grid.qmin
        assert int(layer.weight_codes.max()) <= q.grid.qmax
        source = learned.qparams[quantizer.network.plan.layers[name].input_value]
        assert layer.bias_codes.dtype == torch.int32
        products = source.scale * q.scale.flatten()
        assert torch.allclose(layer.bias_scale, products, rtol=1e-5)


def test_the_file_computes_what_was_learned(model, data, tmp_path):
    quantizer = calibrated(model, data, weight_bits=8, activation_bits=8)
    learned = reconstruct(quantizer, data, 10, progress=False)
    path = deploy.export(learned, data[0][:2], tmp_path / "learned.onnx")
    found = session(path)(data[0])
    with torch.no_grad():
        expected = learned(data[0])
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_range_that_begins_at_zero_or_is_symmetric_stays_so(model, data, learned):
    assert learned.qparams["stem.2"].zero_point == 0  # behind a ReLU, unsigned
    symmetric = calibrated(model, data, activation_signed=True, activation_symmetric=True)
    made = reconstruct(symmetric, data, 20, progress=False)
    assert all(isinstance(q, QParams) and q.symmetric for q in made.qparams.values())


def test_it_is_deterministic_and_leaves_all_it_was_given_alone(model, quantizer, data):
    weights, scales = copy.deepcopy(model.state_dict()), copy.deepcopy(quantizer.qparams)
    start = improved(quantizer, data, [GPTQ()], progress=False)
    codes = {n: layer.weight_codes.clone() for n, layer in start.quantized_layers().items()}
    one, two = (reconstruct(quantizer, data, 5, start=start, progress=False) for _ in range(2))
    assert torch.equal(one(data[0]), two(data[0]))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(q.scale, scales[n].scale) for n, q in quantizer.qparams.items())
    for name, layer in start.quantized_layers().items():
        assert torch.equal(layer.weight_codes, codes[name])


@pytest.mark.parametrize("granularity", ["per_tensor", 3])
def test_weights_alone_can_be_learned_in_any_granularity(granularity):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 5)).eval()
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(12, 12, generator=generator)
    data = [torch.randn(64, 12, generator=generator) @ mixed for _ in range(4)]
    config = QConfig(weight_bits=3, activation_bits=None, weight_granularity=granularity)
    quantizer = PTQQuantizer(model, config=config)
    made = reconstruct(quantizer, data[:3], 150, progress=False)
    before = decibels(model, quantizer.quantize_weights(), data[3:])
    assert decibels(model, made, data[3:]) > before + 2


NAMES = ["siamese", "text_encoder", "unet", "inverted_residual", "nested", "gru"]


@pytest.mark.parametrize("name", NAMES)
def test_what_has_learned_nothing_is_the_network_it_began_with(name):
    """Several inputs, tokens, concatenations, recurrent layers: all come back as they were."""
    architecture = ARCHITECTURES[name]
    batches = architecture.batches(2, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = calibrated(architecture.model(), batches)
        expected = quantizer.convert()
        made = reconstruct(quantizer, batches, 1, rate=1e-9, progress=False)
        for batch in batches:
            inputs = placed(batch, quantizer.network.input_names, expected)
            for a, b in zip(
                output_tensors(expected(*inputs)), output_tensors(made(*inputs)), strict=True
            ):
                assert torch.allclose(a, b, atol=1e-6 * a.abs().max().item())


def test_what_cannot_be_learned_is_refused_with_its_reason(model, quantizer, data):
    with pytest.raises(CalibrationError, match="no batch"):
        reconstruct(quantizer, [], progress=False)
    with pytest.raises(CalibrationError, match="no scales yet"):
        reconstruct(PTQQuantizer(model), data, progress=False)
    refused: list[dict[str, Any]] = [
        {"steps": 0}, {"rate": 0}, {"rate": math.nan}, {"steps": 1.5},
    ]  # fmt: skip
    for wrong in refused:
        with pytest.raises(QuantizationError, match="reconstruct"):
            reconstruct(quantizer, data, **wrong, progress=False)
    bad = [torch.full_like(data[0], math.nan)]
    with pytest.raises(QuantizationError, match="NaN or infinity for batch 1"):
        reconstruct(quantizer, [data[0], *bad], 1, progress=False)
    other = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), data)
    with pytest.raises(QuantizationError, match="another quantizer"):
        reconstruct(quantizer, data, start=other.convert(), progress=False)
    weights = calibrated(model, data, activation_bits=None)
    clustered = improved(weights, data, [Cluster(4)], progress=False)
    with pytest.raises(UnsupportedError, match="codebook"):
        reconstruct(weights, data, start=clustered, progress=False)
