"""Statistics of a whole network: merged, reduced over processes, and inputs that are integers."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

RULES = ("minmax", "percentile", "kl", "mse")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches(count: int = 4) -> list[Tensor]:
    return [
        (1 + i) * torch.randn(9, 6, generator=torch.Generator().manual_seed(i))
        for i in range(count)
    ]


def scales(quantizer: PTQQuantizer) -> list[dict[str, float]]:
    return [quantizer.compute_qparams(rule).scales for rule in RULES]


def observed(data: list[Tensor], **options) -> PTQQuantizer:
    return PTQQuantizer(network()).observe(data, progress=False, **options)


def test_merging_is_observing_both():
    data = batches()
    front, back = observed(data[:1]), observed(data[1:])
    before = scales(back)
    assert scales(back.fork().merge(front)) == scales(front.fork().merge(back))
    assert scales(back) == before, "fork and merge left it alone"
    front.merge(back)
    assert front.statistics.num_batches == 4
    assert scales(front) == scales(observed(data))


def test_merging_with_nothing():
    full, empty = observed(batches()), PTQQuantizer(network())
    expected = scales(full)
    assert scales(full.fork().merge(empty)) == expected
    assert scales(empty.merge(full)) == expected


@pytest.mark.parametrize(
    "other",
    [
        lambda: observed(batches(), ranges="minmax"),
        lambda: PTQQuantizer(nn.Sequential(nn.Linear(6, 2))).observe(batches(), progress=False),
    ],
)
def test_what_does_not_belong_together_is_not_merged(other):
    quantizer = observed(batches())
    expected = scales(quantizer)
    with pytest.raises(CalibrationError, match="merge"):
        quantizer.merge(other())
    assert scales(quantizer) == expected
    assert quantizer.statistics.num_batches == 4


def test_a_moving_average_does_not_merge():
    one, two = (observed(batches(), ranges="moving_average") for _ in range(2))
    with pytest.raises(UnsupportedError, match="order of the batches"):
        one.merge(two)


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = batches()
    quantizer = observed(data[:3] if rank else data[3:]).all_reduce()
    torch.save((quantizer.statistics.num_batches, scales(quantizer)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_know_what_one_would(tmp_path):
    mp.spawn(process, (str(tmp_path),), nprocs=2)
    expected = (4, scales(observed(batches())))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == expected


def test_all_reduce_needs_processes():
    with pytest.raises(UnsupportedError, match="init_process_group"):
        observed(batches()).all_reduce()


class Pixels(nn.Module):
    """Bytes in, as a camera gives them."""

    def __init__(self, convert) -> None:
        super().__init__()
        self.convert, self.conv, self.fc = convert, nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(self.convert(x))).mean((2, 3)))


@pytest.mark.parametrize("convert", [lambda x: x.float() / 255, lambda x: x / 255])
def test_pixels_as_bytes(convert):
    torch.manual_seed(0)
    model, data = Pixels(convert).eval(), [torch.randint(0, 256, (8, 3, 9, 9)).to(torch.uint8)]
    quantizer = PTQQuantizer(model).calibrate(data, progress=False, ranges="minmax")
    assert sqnr_db(model(data[0]), quantizer.convert()(data[0])) > 25
    assert "x" not in quantizer.qparams
    assert "truediv" in quantizer.qparams


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.b((torch.relu(self.a(x)) * mask.unsqueeze(-1)).sum(1))


def test_an_integer_input_needs_no_scale_and_is_named():
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(8, 5, 6)
    mask = torch.randint(0, 2, (8, 5))
    quantizer = PTQQuantizer(model).calibrate([(x, mask)], progress=False, ranges="minmax")
    assert sqnr_db(model(x, mask), quantizer.convert()(x, mask)) > 25
    assert quantizer.left_in_float["mask"] == "an input that arrives as integers"


def test_integers_for_a_layer_are_still_an_error():
    with pytest.raises((CalibrationError, RuntimeError)):
        observed([torch.ones(2, 6, dtype=torch.long)])


class OfOneSize(nn.Module):
    """Three models whose input cannot be cut in its first dimension."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3)
        self.positions, self.fc = nn.Parameter(torch.randn(8, 1, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "length first":
            return self.fc(x + self.positions)
        if self.kind == "no batch":
            return self.conv(x)
        return self.fc(x.reshape(8, 6))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("length first", (8, 5, 6)), ("no batch", (3, 9, 9)), ("fixed batch", (8, 6))],
)
def test_the_check_of_the_fusion_fits_the_input(kind, shape):
    model, x = OfOneSize(kind).eval(), torch.randn(shape)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    assert sqnr_db(model(x), quantized(x)) > 25


def test_batches_are_left_as_they_were():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.sub_(1.0).div_(2.0))

    data = batches()
    copies = [x.clone() for x in data]
    PTQQuantizer(InPlace()).calibrate(data, progress=False, ranges="minmax")
    assert all(map(torch.equal, data, copies))


def test_a_network_that_decides_nothing_converts():
    """An embedding and a layer kept in floating point: there is no activation to round."""
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 2)).eval()
    quantizer = PTQQuantizer(model, config=QConfig(float_layers=("1",)))
    quantizer.calibrate([torch.arange(10)], progress=False, ranges="minmax")
    assert set(quantizer.convert().quantized_layers()) == {"0"}


def test_a_loader_that_is_a_tensor_is_refused():
    with pytest.raises(CalibrationError, match=r"\[x\]"):
        observed(torch.randn(4, 6))


def test_an_unknown_option_of_a_rule_is_named():
    with pytest.raises(QuantizationError, match="'minmax' takes no option 'percentile'"):
        observed(batches()).compute_qparams("minmax", percentile=99)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_check_of_the_fusion_knows_the_dtype(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4)
    )
    model[1].running_var.uniform_(0.3, 2.0)
    model, x = model.eval().to(dtype), torch.randn(4, 3, 9, 9).to(dtype)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    assert sqnr_db(model(x), quantized(x)) > 20
