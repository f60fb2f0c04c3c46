"""Batch norms behind something else than a layer: in the layer behind, or a layer of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ptq_course.errors import QuantizationError
from ptq_course.graph.fusion import BATCH_NORMS, fuse
from ptq_course.graph.norms import rank
from ptq_course.graph.planning import plan
from ptq_course.graph.tracing import trace
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import randomize_batch_norms


class Called(nn.Module):
    """F.batch_norm behind a ReLU, in a way of its own for each rank."""

    def __init__(self, front, norm, behind):
        super().__init__()
        self.front, self.norm, self.behind = front, norm, behind

    def forward(self, x):
        n = self.norm
        h = self.front(x).relu()
        h = F.batch_norm(h, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
        return self.behind(h)


ROWS = (lambda: nn.Linear(5, 6), nn.BatchNorm1d, lambda p, g: nn.Linear(6, 4), (7, 5))
SEQUENCES = (
    lambda: nn.Conv1d(5, 6, 3, padding=1), nn.BatchNorm1d,
    lambda p, g: nn.Conv1d(6, 4, 3, padding=p, groups=g), (2, 5, 9),
)  # fmt: skip
PICTURES = (
    lambda: nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d,
    lambda p, g: nn.Conv2d(6, 4, 3, padding=p, groups=g, bias=False), (2, 5, 8, 8),
)  # fmt: skip
VOLUMES = (
    lambda: nn.Conv3d(5, 6, 2), nn.BatchNorm3d,
    lambda p, g: nn.Conv3d(6, 4, 2, padding=p, groups=g), (2, 5, 4, 4, 4),
)  # fmt: skip


@pytest.mark.parametrize("case", [ROWS, SEQUENCES, PICTURES, VOLUMES])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000), called=st.booleans(), padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2]), affine=st.booleans(),
)  # fmt: skip
def test_a_late_batch_norm_of_any_rank_computes_the_same_and_is_a_layer(
    case, seed, called, padding, groups, affine
):
    front, norm, behind, shape = case
    torch.manual_seed(seed)
    parts = (front(), norm(6, affine=affine), behind(padding, groups))
    model = Called(*parts) if called else nn.Sequential(parts[0], nn.ReLU(), *parts[1:])
    randomize_batch_norms(model, seed).eval()
    x = torch.randn(shape)
    fused = fuse(trace(model))
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, BATCH_NORMS) for m in fused.modules())
    assert not any(n.target is F.batch_norm for n in fused.graph.nodes)
    found = plan(fused)
    assert found.left_in_float == {}
    own = padding and case is not ROWS  # a layer of its own where padding is in the way
    assert len(found.layers) == (3 if own else 2)


@pytest.mark.parametrize("called", [True, False])
def test_quantizing_it_leaves_the_users_model_alone(called):
    torch.manual_seed(0)
    front, norm, behind = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
    parts = (front, nn.ReLU(), norm, behind)
    model = Called(front, norm, behind) if called else nn.Sequential(*parts)
    randomize_batch_norms(model).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(64, 5)
    quantizer = PTQQuantizer(model)
    quantizer.calibrate([x])
    error = quantizer.convert()(x) - model(x)
    assert error.norm() < 0.03 * model(x).norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Twice(nn.Module):
    """A batch norm with two readers, or one that also reads something else."""

    def __init__(self, shared):
        super().__init__()
        self.a, self.bn, self.b, self.c = (
            nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5),
        )  # fmt: skip
        self.shared = shared

    def forward(self, x):
        h = self.bn(self.a(x).relu())
        return self.b(h) + self.b(x) if self.shared else self.b(h) + self.c(h)


@pytest.mark.parametrize(("shared", "stays"), [(True, False), (False, True)])
def test_a_norm_with_two_readers_stays_and_is_named(shared, stays):
    """A second call of a layer is a layer of its own, whose weights may change alone."""
    torch.manual_seed(0)
    model = randomize_batch_norms(Twice(shared)).eval()
    fused = fuse(trace(model))
    x = torch.randn(8, 5)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert ("bn" in plan(fused).left_in_float) is stays


class Axis(nn.Module):
    """Sequences [N, L, C]: a BatchNorm1d normalizes axis 1, a Linear behind it reads axis 2."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x).relu()))


def test_channels_on_another_axis_than_the_linear_reads():
    torch.manual_seed(0)
    model = randomize_batch_norms(Axis()).eval()
    fused = fuse(trace(model))
    x = torch.randn(2, 6, 6)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert isinstance(fused.get_submodule("bn"), nn.Conv1d)


def test_a_factor_alone_goes_through_padding():
    """Nothing is shifted: 0 around the image stays 0."""
    norm = nn.BatchNorm2d(3)
    norm.running_var = torch.rand(3) + 0.5
    model = nn.Sequential(nn.ReLU(), norm, nn.Conv2d(3, 4, 3, padding=1)).eval()
    fused = fuse(trace(model))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert len(plan(fused).layers) == 1


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU(), nn.MaxPool1d(2)), 3),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), 4),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), None),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.ReLU()), None),
    ],
)
def test_the_rank_is_known_where_a_layer_tells(model, found):
    traced = trace(model.eval())
    (node,) = (
        n for n in traced.graph.nodes if n.op == "call_module" and n.target == last_relu(model)
    )
    assert rank(traced, node) == found


def last_relu(model):
    return [name for name, part in model.named_children() if isinstance(part, nn.ReLU)][-1]


@pytest.mark.parametrize("reader", [nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1)])
def test_a_late_norm_with_a_negative_variance_is_refused(reader):
    norm = nn.BatchNorm2d(4)
    norm.running_var = torch.full((4,), -1.0)
    with pytest.raises(QuantizationError, match="variance is negative"):
        fuse(trace(nn.Sequential(nn.ReLU(), norm, reader).eval()))


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 6)])
def test_a_norm_on_the_networks_input_serves_rows_and_sequences(shape):
    """Nothing tells which of the two it reads: it stays, and both compute as before."""
    torch.manual_seed(0)
    model = randomize_batch_norms(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))).eval()
    x = torch.randn(shape)
    torch.testing.assert_close(fuse(trace(model))(x), model(x), atol=1e-5, rtol=1e-5)
    PTQQuantizer(model).calibrate([x])  # which compares with the user's model
