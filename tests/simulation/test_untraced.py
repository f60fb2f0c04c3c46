"""Models without a graph: the code around the layers is the user's, and asks what it likes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.quantizer import PTQQuantizer

pytestmark = pytest.mark.filterwarnings("ignore:Quantizing layer by layer")
PICTURES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Asking(nn.Module):
    """Reads settings of its layers, and calls one by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(800, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.sum() > -1e9 else -x
        x = self.conv(F.pad(x, (self.conv.padding[0],) * 2).to(self.conv.weight.dtype)[..., 1:-1])
        return self.fc(input=torch.relu(x).reshape(-1, self.fc.in_features))


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: (
            PTQQuantizer(model).calibrate([PICTURES], progress=False, ranges="minmax").convert()
        ),
        lambda model: PTQQuantizer(model).quantize_weights(),
        quantize_dynamic,
    ],
)
def test_settings_of_layers_can_be_read(convert):
    torch.manual_seed(0)
    model = Asking().eval()
    assert sqnr_db(model(PICTURES), convert(model)(PICTURES)) > 25


def test_no_tensor_is_borrowed_from_the_float_layer():
    layer = quantize_dynamic(nn.Sequential(nn.Linear(4, 2))).dynamic_layers()["0"]
    assert layer.in_features == 4
    assert torch.equal(layer.weight, layer.quantized.weight)
    for name in ("no_such_setting", "running_mean"):
        with pytest.raises(AttributeError, match=name):
            getattr(layer, name)


class ToSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.sum() > -1e9 else -x
        return self.up(self.conv(x), output_size=(18, 18))


def test_a_setting_given_with_the_call_is_refused_by_name():
    for convert in (
        lambda model: (
            PTQQuantizer(model).calibrate([PICTURES], progress=False, ranges="minmax").convert()
        ),
        quantize_dynamic,
    ):
        with pytest.raises(UnsupportedError, match=r"'up'.*output_size.*float_layers"):
            convert(ToSize())(PICTURES)


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b, self.out = self.a, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.sum() > -1e9 else -x
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))))


def test_a_layer_under_two_names_stays_one():
    model = quantize_dynamic(TwoNames())
    assert model.module.a is model.module.b
    assert isinstance(model.module.b, DynamicLayer)
