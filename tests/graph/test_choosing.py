"""What an entry of float_layers means where names are alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class AlikeButForADot(nn.Module):
    """The node of ``block.fc`` is called ``block_fc``, as the other layer's path is."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.block_fc = nn.ModuleDict({"fc": nn.Linear(4, 4)}), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_fc(F.relu(self.block["fc"](x)))


class Functions(nn.Module):
    """Layers named after their function, whose nodes are numbered otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.a, self.b, self.c):
            x = F.relu(F.linear(x, weight))
        return x


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(F.relu(self.fc(F.relu(self.fc(x)))))))


@pytest.mark.parametrize("model", [AlikeButForADot(), Functions(), Called()])
def test_a_path_keeps_its_own_layer_and_no_other(model):
    config = QConfig(activation_bits=None)
    layers = set(PTQQuantizer(model, config=config).quantize_weights().quantized_layers())
    for name in layers:
        alone = f"{name}__call1" if name == "fc" else name
        kept = PTQQuantizer(model, config=QConfig(activation_bits=None, float_layers=(alone,)))
        assert layers - set(kept.quantize_weights().quantized_layers()) == {name}
        assert [n for n, why in kept.left_in_float.items() if "float_layers" in why] == [name]
    if "fc" in layers:
        every = PTQQuantizer(model, config=QConfig(activation_bits=None, float_layers=("fc",)))
        assert set(every.quantize_weights().quantized_layers()) == {"out"}
