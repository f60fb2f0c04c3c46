"""Upsampling as copies of pixels in files for ONNX Runtime: where, and that it is exact."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.deploy import onnx as deploy
from ptq_course.grids.metrics import snr_pooled
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

SIDE = 12


class Upsampled(nn.Module):
    """Two convolutions; between them what ``between`` does."""

    def __init__(self, between, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(channels, 2, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def exported(model, folder, target="onnxruntime", **options):
    """The operators of the file, the session, the quantized model and an input."""
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    config = getattr(QConfig, target)()
    quantizer = PTQQuantizer(model.eval(), config=config).observe([x], progress=False)
    quantized = quantizer.compute_qparams("minmax").convert()
    path = deploy.export(quantized, x, folder / "file.onnx", target=target, **options)
    written = [node.op_type for node in onnx.load(path).graph.node]
    return written, deploy.session(path), quantized, x


REPEATS = {
    "twice": lambda x: F.interpolate(x.relu(), scale_factor=2),
    "three times": lambda x: F.interpolate(x.relu(), scale_factor=3.0),
    "to a size": lambda x: F.interpolate(x, size=(5 * SIDE, 5 * SIDE)),
    "rows only": lambda x: F.interpolate(x.relu(), scale_factor=(2, 1)),
    "oblong": lambda x: F.interpolate(x.relu(), scale_factor=(3, 2)),
    "pooled": lambda x: F.interpolate(F.max_pool2d(x.relu(), 2), scale_factor=8),
    "behind a curve": lambda x: F.interpolate(F.silu(x), scale_factor=2),
}
STAYS = {
    "bilinear": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bilinear"),
    "one and a half": lambda x: F.interpolate(x.relu(), scale_factor=1.5),
    "nine times": lambda x: F.interpolate(x.relu(), scale_factor=9),
    "twice, and not whole": lambda x: F.interpolate(x.relu(), size=(2 * SIDE, 2 * SIDE + 1)),
}


@pytest.mark.parametrize("name", REPEATS)
def test_nearest_upsampling_by_whole_factors_copies_pixels_exactly(tmp_path, name):
    model = Upsampled(REPEATS[name])
    written, session, quantized, x = exported(model, tmp_path)
    assert "Resize" not in written
    assert written.count("Concat") == 2
    assert session.operators["QLinearConv"] == 2
    assert session.operators["Transpose"] == 2  # of the first input and of the last output
    assert snr_pooled(quantized(x), session(x)) > 40  # a pixel too far would cost 30 dB
    assert session(x[:3].repeat(3, 1, 1, 1)).shape[0] == 9  # the number of pictures stays free


def test_copies_and_resize_give_the_same_bits(tmp_path):
    _, session, quantized, x = exported(Upsampled(REPEATS["pooled"]), tmp_path)
    file = tmp_path / "resize.onnx"
    with_resize = deploy.session(deploy.export(quantized, x, file, upsample_by_copies=False))
    assert "Resize" in with_resize.operators
    assert torch.equal(session(x), with_resize(x))


@pytest.mark.parametrize("name", STAYS)
def test_other_resizing_stays(tmp_path, name):
    written, session, quantized, x = exported(Upsampled(STAYS[name]), tmp_path)
    assert "Resize" in written
    assert "Transpose" not in written
    assert snr_pooled(quantized(x), session(x)) > 40


def test_free_height_and_width_keep_resize(tmp_path):
    model = Upsampled(REPEATS["twice"])
    written, session, quantized, x = exported(model, tmp_path, free_dimensions=(0, 2, 3))
    assert "Resize" in written
    assert snr_pooled(quantized(x[:, :, 2:]), session(x[:, :, 2:])) > 40


@pytest.mark.parametrize("target", ["arm", "tensorrt"])
def test_files_for_other_runtimes_keep_resize(tmp_path, target):
    written, *_ = exported(Upsampled(REPEATS["twice"]), tmp_path, target)
    assert "Resize" in written
    assert "Transpose" not in written


class Joined(nn.Module):
    """Upsampled and joined to what came in: two readers, of which one takes real numbers."""

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(F.max_pool2d(x.relu(), 2), scale_factor=2)
        return torch.cat([up, x, F.gelu(up)], 1)


def test_what_several_read_is_right_whatever_is_written(tmp_path):
    _, session, quantized, x = exported(Upsampled(Joined(), channels=12), tmp_path)
    assert snr_pooled(quantized(x), session(x)) > 40
