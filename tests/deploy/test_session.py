from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy import session as module
from ptq_course.deploy.session import Speedup, Timing, products_saturate, timings
from ptq_course.errors import QuantizationError
from ptq_course.simulation.quantizer import PTQQuantizer


@pytest.fixture(scope="module")
def extreme(tmp_path_factory):
    """A layer whose products reach the ends of the 8-bit grids, and its integer file."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 8))
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
        layer[0].bias.zero_()
    x = torch.full((4, 64), 2.0)
    quantized = PTQQuantizer(layer).calibrate([x], progress=False, ranges="minmax").convert()
    path = tmp_path_factory.mktemp("extreme") / "extreme.onnx"
    return quantized, x, deploy.export(quantized, x, path)


def test_the_guarded_session_is_right_on_every_processor(extreme):
    quantized, x, path = extreme
    run = deploy.session(path)
    torch.testing.assert_close(run(x), quantized(x).detach(), atol=1e-3, rtol=1e-4)
    assert run.saturation_guard == products_saturate()


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, True, "2", None])
def test_threads_are_a_number_of_threads(extreme, threads):
    with pytest.raises(QuantizationError, match=r"threads must be an integer from 1 to 256"):
        deploy.session(extreme[2], threads)


def test_another_number_of_inputs(extreme):
    _, x, path = extreme
    for given in ((), (x, x)):
        with pytest.raises(QuantizationError, match=rf"takes 1 inputs \(.+\), got {len(given)}"):
            deploy.session(path)(*given)


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(QuantizationError, match=r"cannot open .*text\.onnx.*Is it an ONNX file"):
        deploy.session(tmp_path / "text.onnx")


def test_turn_by_turn():
    """A slow spell that lasts a turn slows both, so that their ratio stays."""
    calls = []

    def sleeping(seconds):
        def run(x):
            calls.append(seconds)

        return run

    times = timings({"a": sleeping(1), "b": sleeping(2)}, torch.zeros(1), rounds=5, calls=3)
    assert all(len(t.turns) == 5 for t in times.values())
    assert all(t.best <= min(t.turns) for t in times.values())
    peer, ours = Timing(1, 1, (2.0, 40.0, 2.0)), Timing(1, 1, (1.0, 20.0, 1.0))
    assert Speedup.of(peer, ours) == Speedup(2.0, 2.0, 2.0)
    wide = Speedup.of(Timing(1, 1, (1.0, 2.0, 3.0, 4.0, 5.0)), Timing(1, 1, (1.0,) * 5))
    assert wide == Speedup(3.0, 2.0, 4.0)
    assert str(wide) == "3.00x (2.00 to 4.00)"


def test_without_the_guard_a_saturating_processor_is_wrong(extreme):
    quantized, x, path = extreme
    if not products_saturate():
        pytest.skip("this processor multiplies bytes exactly (VNNI or Arm)")
    wrong = deploy.session(path, exact=False)(x)
    assert (wrong - quantized(x)).abs().max() > 1


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.classes = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return self.boxes(x), self.classes(x)


def test_a_session_returns_every_output(tmp_path):
    torch.manual_seed(0)
    model, x = TwoHeads().eval(), torch.randn(4, 6)
    run = deploy.session(deploy.export(model, x, tmp_path / "heads.onnx"))
    for expected, got, array in zip(model(x), run(x), run(x.numpy()), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert isinstance(array, np.ndarray)


def test_what_cannot_be_guarded_is_opened_without_and_says_so(tmp_path, monkeypatch):
    """ONNX Runtime 1.32 cannot guard some files that its own quantizer makes."""
    opened = module._open

    def refuses(path, threads, exact, optimized=None):
        if exact:
            raise RuntimeError("Attempt to replace the existing tensor")
        return opened(path, threads, exact, optimized)

    path = deploy.export(nn.Linear(4, 2).eval(), torch.randn(3, 4), tmp_path / "file.onnx")
    monkeypatch.setattr(module, "_open", refuses)
    monkeypatch.setattr(module, "products_saturate", lambda: True)
    with pytest.warns(UserWarning, match="may saturate on this processor"):
        unguarded = module.session(path)
    assert not unguarded.saturation_guard
    assert unguarded(torch.randn(5, 4)).shape == (5, 2)
    with pytest.raises(QuantizationError, match="cannot open"):  # who asks for the guard gets it
        module.session(path, exact=True)
