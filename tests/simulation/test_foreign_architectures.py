"""Networks that this package has never seen: quantized above 20 dB, or left in float by name."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ptq_course.errors import UnsupportedError
from ptq_course.graph import Kind, plan, trace
from ptq_course.graph.fusion import BATCH_NORMS, fuse
from ptq_course.graph.reading import read, source_of
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.foreign import ARCHITECTURES, realistic

NAMES = sorted(ARCHITECTURES)
TRACEABLE = [name for name in NAMES if ARCHITECTURES[name].traceable]


@cache
def converted(name: str) -> tuple[nn.Module, PTQQuantizer, QuantizedModel]:
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        quantizer = PTQQuantizer(model)
    quantizer.calibrate(architecture.batches(8, seed=1), progress=False, ranges="minmax")
    return model, quantizer, quantizer.convert()


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*[x.clone() for x in inputs]))  # it may work in place


def assert_same(expected: list[Tensor], got: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_signal_to_noise_ratio_on_unseen_data(name):
    model, _, quantized = converted(name)
    for batch in ARCHITECTURES[name].batches(2, seed=2):
        for expected, got in zip(outputs(model, batch), outputs(quantized, batch), strict=True):
            assert sqnr_db(expected, got) > 20
            assert not torch.equal(expected, got), "something was rounded"


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_in_floating_point_is_named_and_nothing_else(name):
    _, quantizer, _ = converted(name)
    expected = ARCHITECTURES[name].in_float
    assert set(quantizer.left_in_float) == set(expected)
    for operation, reason in expected.items():
        assert reason in quantizer.left_in_float[operation]


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_integer_weights(name):
    """Layers of the model are quantized under the path that they have in it."""
    model, _, converted_model = converted(name)
    quantized = converted_model.quantized_layers()
    assert quantized
    layers = {
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding))
    }
    assert layers <= set(quantized)


@pytest.mark.parametrize("name", TRACEABLE)
def test_tracing_and_fusing_change_nothing(name):
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse(trace(model))
    previous = torch.backends.mha.get_fastpath_enabled()
    for fast_path in (False, previous):
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for batch in architecture.batches(2, seed=3):
            if name == "text_encoder_packed" and not fast_path:
                continue  # without it the padding keeps what was computed there
            assert_same(outputs(model, batch), outputs(fused, batch))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("config", [QConfig.onnxruntime(), QConfig.tensorrt(), QConfig.arm()])
@pytest.mark.parametrize("name", TRACEABLE)
def test_nothing_is_silently_skipped(name, config):
    """Each floating-point tensor computed is read as integers, inherits, merges, or is named."""
    graph = fuse(trace(ARCHITECTURES[name].model()))
    reading = read(graph, config.fused_activations)
    result = plan(graph, (), config.fused_activations, config.target)
    rounded = {value.node for value in result.values.values()}
    for node, kind in reading.kinds.items():
        if node not in reading.floats or not node.op.startswith("call"):
            continue
        named = str(node.target if node.op == "call_module" else node.name)
        reads = [n for n in node.all_input_nodes if n in reading.floats]
        if named in result.left_in_float:
            assert kind is not Kind.CLAMP
        elif kind is Kind.WEIGHTED:
            embeds = isinstance(graph.get_submodule(node.target), nn.Embedding)
            assert (result.layers[node.target].input_value is None) == embeds
        elif kind in (Kind.BINARY, Kind.CURVE, Kind.SOFTMAX):
            assert all(_carries_codes(n, rounded, reading.kinds) for n in reads), named
        else:
            assert kind in (Kind.INHERIT, Kind.CLAMP)
            assert reads


def _carries_codes(node, rounded, kinds) -> bool:
    while node.name not in rounded and kinds[node] is Kind.INHERIT:
        node = source_of(node)
    return node.name in rounded


@pytest.mark.parametrize("name", ["hardswish", "inverted_se", "vision_transformer", "unet"])
@pytest.mark.parametrize("preset", [QConfig.tensorrt, QConfig.arm])
def test_other_presets(name, preset):
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    quantizer = PTQQuantizer(model, config=preset())
    quantized = quantizer.calibrate(
        architecture.batches(8, seed=1), progress=False, ranges="minmax"
    ).convert()
    batch = architecture.batches(1, seed=2)[0]
    ratios = [
        sqnr_db(a, b) for a, b in zip(outputs(model, batch), outputs(quantized, batch), strict=True)
    ]
    assert min(ratios) > 20


class RandomNet(nn.Module):
    """A convolutional network drawn by chance."""

    ACTIVATIONS = (F.relu, F.relu6, F.hardswish, F.silu, torch.sigmoid, F.leaky_relu)

    def __init__(self, widths, kernels, activations, norms, residuals, functional) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.plan = list(zip(activations, norms, residuals, strict=True))
        channels = 3
        for width, kernel, norm, residual in zip(widths, kernels, norms, residuals, strict=True):
            width = channels if residual else width
            self.convs.append(
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not norm)
            )
            self.norms.append(nn.BatchNorm2d(width) if norm else nn.Identity())
            channels = width
        self.head = nn.Linear(channels, 4)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, (activation, normed, residual) in zip(
            self.convs, self.norms, self.plan, strict=True
        ):
            y = conv(x)
            if normed and self.functional:
                y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            else:
                y = norm(y)
            y = self.ACTIVATIONS[activation](y)
            x = F.dropout(x + y if residual else y, training=self.training)
        return self.head(x.mean((2, 3)))


@st.composite
def random_nets(draw):
    depth = draw(st.integers(1, 5))

    def each(values):
        return draw(st.lists(values, min_size=depth, max_size=depth))

    return RandomNet(
        each(st.sampled_from([4, 8, 12])), each(st.sampled_from([1, 3])), each(st.integers(0, 5)),
        each(st.booleans()), each(st.booleans()), draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=30)
@given(net=random_nets(), seed=st.integers(0, 1000))
def test_random_networks_fuse_to_equal_outputs_and_quantize(net, seed):
    model = realistic(net, seed)
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(5)]
    fused = fuse(trace(model))
    assert not any(isinstance(m, (*BATCH_NORMS, nn.Dropout)) for m in fused.modules())
    assert not any(n.target in (F.batch_norm, F.dropout) for n in fused.graph.nodes)
    assert_same(outputs(model, (data[0],)), outputs(fused, (data[0],)))
    quantizer = PTQQuantizer(model).calibrate(data[:4], progress=False, ranges="minmax")
    assert all("silu" in name for name in quantizer.left_in_float), "the others have kernels"
    assert sqnr_db(model(data[4]), quantizer.convert()(data[4])) > 20


def test_a_network_of_functions_only_is_refused_when_nothing_is_constant():
    class Hyper(nn.Module):
        """The weight of its convolution is computed from its input."""

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight * 2)

    with pytest.raises(UnsupportedError, match="no layer to quantize"):
        PTQQuantizer(Hyper())
    graph = fuse(trace(Hyper()))
    assert "computed from data" in plan(graph).left_in_float["conv2d"]
