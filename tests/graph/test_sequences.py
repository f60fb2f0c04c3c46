"""Batch norms beside a Linear: of rows they are absorbed, of sequences they stay."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.checkpoint import load, save
from ptq_course.errors import UnsupportedError
from ptq_course.graph.fusion import BATCH_NORMS, fuse
from ptq_course.graph.sequences import leave_norms, norms_of_sequences
from ptq_course.graph.tracing import trace
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.equalization import Equalize
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import randomize_batch_norms

C = 6  # channels, and the length of the sequences: the graph alone cannot tell the two


class Function(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, 3)

    def forward(self, x):
        n = self.norm
        h = F.batch_norm(self.a(x), n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
        return self.b(h.relu())


MODELS = {
    "in front": lambda: nn.Sequential(
        nn.Linear(C, C), nn.BatchNorm1d(C), nn.ReLU(), nn.Linear(C, 3)
    ),
    "behind": lambda: nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.BatchNorm1d(C), nn.Linear(C, 3)),
    "between": lambda: nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, 3)),
    "dropout": lambda: nn.Sequential(
        nn.Linear(C, C), nn.Dropout(0.5), nn.BatchNorm1d(C), nn.ReLU(), nn.Linear(C, 3)
    ),
    "function": Function,
}
SEQUENCES, ROWS = (8, C, C), (64, C)


def made(name):
    torch.manual_seed(0)
    return randomize_batch_norms(MODELS[name]()).eval()


def quantizer(model, shape=SEQUENCES, **options):
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    found = PTQQuantizer(model, **options).observe(batches, progress=False)
    return found.compute_qparams("minmax")


def norms(module):
    return [n for n in module.graph.nodes if n.target is F.batch_norm] + [
        part for part in module.modules() if isinstance(part, BATCH_NORMS)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_of_rows_it_is_absorbed_and_of_sequences_it_stays(name):
    for shape, count in ((ROWS, 0), (SEQUENCES, 1)):
        model, x = made(name), torch.randn(shape)
        quantized = quantizer(model, shape).convert()
        assert len(norms(quantized.module)) == count
        assert len(quantized.left_in_float) == count
        assert snr_pooled(model(x), quantized(x)) > 25


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantize", [False, True])
def test_files_of_sequences_compute_what_the_model_does(tmp_path, name, quantize):
    model, x = made(name), torch.randn(SEQUENCES)
    version = quantizer(model).convert() if quantize else model
    session = deploy.session(deploy.export(version, x, tmp_path / "file.onnx"))
    torch.testing.assert_close(session(x), version(x), atol=0.1 if quantize else 1e-5, rtol=0)


@pytest.mark.parametrize("name", ["in front", "behind"])
def test_a_checkpoint_remembers_it(tmp_path, name):
    quantized, x = quantizer(made(name)).convert(), torch.randn(SEQUENCES)
    loaded = load(save(quantized, tmp_path / "m"), MODELS[name]())
    assert torch.equal(loaded(x), quantized(x))


def test_an_example_tells_before_any_data_does():
    model, x = made("in front"), torch.randn(SEQUENCES)
    only = PTQQuantizer(model, example=x).quantize_weights()
    assert snr_pooled(model(x), only(x)) > 25


def test_steps_work_on_the_network_that_was_fused_again():
    """Equalization fuses its graph once more, which must not absorb the norm either."""
    model, x = made("in front"), torch.randn(SEQUENCES)
    quantized = quantizer(model, steps=[Equalize()]).convert()
    assert len(norms(quantized.module)) == 1
    assert snr_pooled(model(x), quantized(x)) > 25


def test_merged_statistics_bring_it_along():
    model, x = made("behind"), torch.randn(SEQUENCES)
    observed = quantizer(model)
    merged = PTQQuantizer(model).merge(observed).compute_qparams("minmax").convert()
    assert torch.equal(merged(x), observed.convert()(x))


class Both(nn.Module):
    """One norm of sequences, one of rows: each is known by what it reads."""

    def __init__(self):
        super().__init__()
        self.a, self.first, self.b = nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, C)
        self.second, self.c = nn.BatchNorm1d(C), nn.Linear(C, 3)

    def forward(self, x):
        x = self.b(self.first(self.a(x)).relu().mean(1))
        return self.c(self.second(x).relu())


def test_only_what_reads_sequences_stays():
    torch.manual_seed(0)
    model, x = randomize_batch_norms(Both()).eval(), torch.randn(SEQUENCES)
    traced = trace(model)
    assert norms_of_sequences(traced, [x]) == ["first"]
    leave_norms(traced, ["first", "nothing"])
    fused = fuse(traced)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert len(norms(fused)) == 1
    assert len(norms(fuse(fused))) == 1  # a copy knows it, too


@pytest.mark.parametrize("late", [False, True])
def test_norms_of_pictures_are_never_absorbed_by_a_linear(late):
    torch.manual_seed(0)
    parts = [nn.ReLU(), nn.BatchNorm2d(C)] if late else [nn.BatchNorm2d(C), nn.ReLU()]
    model = nn.Sequential(nn.Linear(C, C), *parts, nn.Linear(C, 3))
    randomize_batch_norms(model).eval()
    x = torch.randn(2, C, 4, C)
    torch.testing.assert_close(fuse(trace(model))(x), model(x), atol=1e-5, rtol=1e-5)


class Unlike(nn.Module):
    """What no graph holds: it computes something else while it is traced."""

    def __init__(self):
        super().__init__()
        self.inner = made("in front")

    def forward(self, x):
        return self.inner(x) + (0.0 if isinstance(x, fx.Proxy) else 1.0)


def test_another_difference_is_refused_as_before():
    quantizing = PTQQuantizer(Unlike())
    before = quantizing.network
    with pytest.raises(UnsupportedError, match="changed the model's output"):
        quantizing.observe([torch.randn(SEQUENCES)], progress=False)
    assert quantizing.network is before
