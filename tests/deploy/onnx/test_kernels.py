"""The kernels that ONNX Runtime makes of a file: the table of `graph.kernels`, held by the runtime.

Convolutions around each activation, in the file as a user gets it: no convolution may be left in
floating point, and what the table calls an integer kernel must be there.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn

from ptq_course.deploy import onnx as deploy
from ptq_course.graph.kernels import KERNELS
from ptq_course.grids.metrics import snr_pooled
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def norm(kind: type[nn.Module], *settings: int) -> nn.Module:
    """A layer whose parameters and statistics are not those of a fresh one."""
    layer = kind(*settings)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return layer


def slopes(lowest: float, highest: float) -> nn.PReLU:
    layer = nn.PReLU(8)
    layer.weight.data = torch.linspace(lowest, highest, 8)
    return layer


def network(between: nn.Module, second: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), between, nn.Conv2d(8, 8, 3, padding=1), second,
        nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip


# The operation, and the kernels of its own that the file must hold (twice each).
INTEGER: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "relu": (nn.ReLU, set()),
    "relu6": (nn.ReLU6, set()),
    "late batch norm": (lambda: nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d, 8)), set()),
    "hardswish": (nn.Hardswish, {"QLinearAdd", "QLinearMul"}),
    "hardsigmoid": (nn.Hardsigmoid, {"QLinearAdd"}),
    "leaky relu": (nn.LeakyReLU, {"QLinearLeakyRelu"}),
    "prelu with one slope": (nn.PReLU, {"QLinearLeakyRelu"}),
    "sigmoid": (nn.Sigmoid, {"QLinearSigmoid"}),
    "pooled and resized": (
        lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
        set(),
    ),
    "x - 3": (lambda: Function(lambda x: x - 3.0), {"QLinearAdd"}),
    "x / -3": (lambda: Function(lambda x: x / -3.0), {"QLinearMul"}),
    "factor": (lambda: Function(lambda x: x * 0.3), set()),
    "split": (lambda: Function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), {"Split"}),
    "padded": (lambda: Function(lambda x: nn.functional.pad(x, (1, 0, 1, 0))), {"Pad"}),
}
# Here what the runtime computes in floating point between two grids, in one node.
REAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gelu": (nn.GELU, "Gelu"),
    "silu": (nn.SiLU, "QuickGelu"),
    "silu as a function, in place": (
        lambda: Function(lambda x: nn.functional.silu(x, inplace=True)),
        "QuickGelu",
    ),
    "tanh": (nn.Tanh, "Tanh"),
    "prelu, slopes up to 1.5": (lambda: norm(nn.PReLU, 8), "Clip"),
    "prelu, slopes below 1": (lambda: slopes(0.05, 0.9), "Max"),
    "prelu, one slope is 0": (lambda: slopes(0.0, 0.9), "Clip"),
    "prelu, a negative slope": (lambda: slopes(-0.5, 0.9), "Clip"),
    "group norm": (lambda: nn.Sequential(norm(nn.GroupNorm, 2, 8), nn.ReLU()), "Mul"),
}


def made(model: nn.Module, path, **choices) -> tuple[dict[str, int], PTQQuantizer, float]:
    """The operators that the runtime makes of a model's file, the quantizer, and the file's SNR."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    quantizer = PTQQuantizer(model, config=QConfig(**choices)).observe([x], progress=False)
    quantized = quantizer.compute_qparams("minmax").convert()
    session = deploy.session(deploy.export(quantized, x, path))
    with torch.no_grad():
        assert snr_pooled(model(x), session(x)) > 25
        return session.operators, quantizer, snr_pooled(quantized(x), session(x))


@pytest.mark.parametrize("name", INTEGER)
def test_every_convolution_runs_in_integers_and_so_does_what_is_between(tmp_path, name):
    make, kernels = INTEGER[name]
    operators, quantizer, agreement = made(network(make(), make()), tmp_path / "file.onnx")
    assert not {"Conv", "FusedConv"} & set(operators)
    # The last convolution pads nothing and takes the batch norm in front of it in.
    assert operators["QLinearConv"] == (4 if name == "late batch norm" else 3)
    assert {kernel: operators.get(kernel) for kernel in kernels} == dict.fromkeys(kernels, 2)
    between = name in ("padded", "split")  # not carried through in codes
    assert operators["QuantizeLinear"] == (3 if between else 1)
    assert quantizer.left_in_float == {}
    assert agreement > 40


@pytest.mark.parametrize("name", REAL)
def test_what_has_no_kernel_is_named_and_leaves_the_convolutions_in_integers(tmp_path, name):
    make, operator = REAL[name]
    operators, quantizer, agreement = made(network(make(), make()), tmp_path / "file.onnx")
    assert not {"Conv", "FusedConv"} & set(operators)
    assert operators["QLinearConv"] == 3
    assert operators[operator] == 2
    assert len(quantizer.left_in_float) == 2
    assert agreement > 40


@pytest.mark.parametrize("ends", [(0.05, 1.0), (0.0, 0.5), (-0.5, 2.0)])
def test_a_prelu_of_fp32_is_the_same_to_the_bit(tmp_path, ends):
    model = nn.Sequential(slopes(*ends)).eval()
    x = torch.randn(4, 8, 5, 5)
    special = torch.tensor([0.0, -0.0, torch.inf, 1e-40, -1e-40, 3e38, -3e38])
    x.view(-1)[:: x.numel() // 7][:7] = special
    session = deploy.session(deploy.export(model, x, tmp_path / "file.onnx"))
    assert "PRelu" not in session.operators
    assert torch.equal(session(x), model(x))


def test_the_last_convolution_stays_real_where_the_configuration_asks_for_it(tmp_path):
    model = network(nn.ReLU(), nn.ReLU())
    operators, quantizer, _ = made(model, tmp_path / "file.onnx", float_layers=("4",))
    assert operators["QLinearConv"] == 2
    assert operators.get("Conv", 0) + operators.get("FusedConv", 0) == 1
    assert list(quantizer.left_in_float) == ["4"]


def test_a_silu_that_reads_real_numbers_is_left_to_the_runtime(tmp_path):
    """Behind a Linear, whose kernel returns real numbers, and in a file of FP32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(16, 6)
    quantizer = PTQQuantizer(model).observe([x], progress=False).compute_qparams("minmax")
    for version in (model, quantizer.convert()):
        path = deploy.export(version, x, tmp_path / "file.onnx")
        assert {"Sigmoid", "Mul"} <= {node.op_type for node in onnx.load(path).graph.node}
        assert "QuickGelu" in deploy.session(path).operators


@pytest.mark.parametrize("target", ["arm", "tensorrt"])
def test_files_for_other_runtimes_hold_none_of_its_own_operators(tmp_path, target):
    x = torch.randn(4, 3, 8, 8)
    quantizer = PTQQuantizer(network(nn.SiLU(), nn.SiLU()), config=getattr(QConfig, target)())
    quantized = quantizer.observe([x], progress=False).compute_qparams("minmax").convert()
    file = onnx.load(deploy.export(quantized, x, tmp_path / "file.onnx", target=target))
    assert {node.domain for node in file.graph.node} == {""}


FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "reshape": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).reshape(-1, 8),
    "by hand": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).reshape(x.shape[0], 2, 4)[:, 1],
}


@pytest.mark.parametrize("form", FLATTENED)
def test_pictures_stay_channels_last_up_to_the_pooled_rows(tmp_path, form):
    """One turn, that of the input: none in front of the last activation and its pooling."""
    torch.manual_seed(0)
    pooling, last = Function(FLATTENED[form]), nn.Linear(4 if form == "by hand" else 8, 5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), pooling, last
    )
    operators, _, agreement = made(model.eval(), tmp_path / "file.onnx")
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["Transpose"] == 1
    assert agreement > 40


def test_no_turn_is_written_where_the_runtime_needs_none(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    made(model.eval(), tmp_path / "file.onnx")
    nodes = [node.op_type for node in onnx.load(tmp_path / "file.onnx").graph.node]
    assert "GlobalAveragePool" in nodes
    assert "Transpose" not in nodes


def test_what_is_pooled_to_a_square_is_not_turned(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    *_, agreement = made(model.eval(), tmp_path / "file.onnx")
    assert agreement > 40


def test_each_kernel_of_the_table_is_asked_for_by_a_test():
    mine = {kernel for _, kernels in INTEGER.values() for kernel in kernels}
    table = {n for k in KERNELS["onnxruntime"].values() for n in k.name.split(", ")}
    elsewhere = {"QLinearConv", "QGemm", "Gather", "QLinearMatMul", "QLinearSoftmax",
                 "QLinearConcat",
                 "QLinearAveragePool"}  # fmt: skip
    assert table - elsewhere <= mine
