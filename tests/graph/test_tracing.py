"""What may be handed in as a model, and what its Python may do."""

from __future__ import annotations

import io
import operator

import pytest
import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph import copied, trace
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def data(count: int = 2) -> list[Tensor]:
    return [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def quantized(model: nn.Module) -> nn.Module:
    return PTQQuantizer(model).calibrate(data(), progress=False, ranges="minmax").convert()


def test_a_model_in_a_container():
    model = network()
    expected = quantized(model)(data()[0])
    for container in (nn.DataParallel(model), torch.compile(model)):
        found = quantized(container)
        assert set(found.quantized_layers()) == {"0", "2"}
        assert torch.equal(found(data()[0]), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (torch.jit.script, "TorchScript"),
        (lambda model: torch.export.export(model, (data()[0],)).module(), "exported"),
        (lambda model: model.to("meta"), "meta device"),
        (lambda model: nn.Sequential(nn.LazyLinear(4)), "run one batch"),
    ],
)
def test_what_has_no_python_or_no_values_is_refused(make, reason):
    with pytest.raises(UnsupportedError, match=reason):
        PTQQuantizer(make(network()))


@pytest.mark.parametrize(
    "convert", [quantized, lambda model: PTQQuantizer(model).quantize_weights(), quantize_dynamic]
)
def test_a_model_that_is_quantized_already_is_refused(convert):
    model = convert(network())
    for again in (PTQQuantizer, quantize_dynamic):
        with pytest.raises(QuantizationError, match="quantized already"):
            again(model)


@pytest.mark.parametrize("convert", [quantized, quantize_dynamic])
def test_another_dtype_is_refused_and_nothing_has_changed(convert):
    model = convert(network())
    expected = model(data()[0])
    for change in (model.half, model.double, lambda: model.to(torch.bfloat16)):
        with pytest.raises(QuantizationError, match="float model first"):
            change()
    assert torch.equal(model.to("cpu")(data()[0]), expected)


def test_hooks_stay_with_the_users_model():
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append("whole"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("layer"))
    with pytest.warns(UserWarning, match=r"hooks are left out.*\(the model itself\), 0"):
        found = quantized(model)
    found(data()[0])
    assert calls == []
    model(data()[0])
    assert calls == ["layer", "whole"]
    with pytest.warns(UserWarning, match="hooks are left out"):
        assert not copied(model)._forward_hooks


def test_a_converted_network_can_be_saved_whole():
    file = io.BytesIO()
    model = quantized(network())
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(data()[0]), model(data()[0]))


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x if mask is None else x * mask)


@pytest.mark.parametrize("extra", [lambda x: (x, x), lambda x: {"x": x, "mask": x}])
def test_an_option_in_the_batch_is_mentioned(extra):
    with pytest.warns(UserWarning, match="mask"):
        PTQQuantizer(Options()).calibrate(
            [extra(x) for x in data()], progress=False, ranges="minmax"
        )


def test_an_option_of_the_quantized_network_is_refused_by_name():
    model, (x, mask) = quantized(Options()), data()
    for call in (lambda: model(x, mask), lambda: model(x, mask=mask)):
        with pytest.raises(QuantizationError, match=r"takes \(x\)"):
            call()
    dynamic = quantize_dynamic(Options())
    assert torch.equal(dynamic(x=x), dynamic(x))


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, *xs: Tensor, **unused: Tensor) -> Tensor:
        return torch.relu(self.a(xs[0])) + torch.relu(self.b(xs[1]))


def test_any_number_of_inputs():
    model, batch = Variadic(), tuple(data())
    found = PTQQuantizer(model).calibrate([batch], progress=False, ranges="minmax").convert()
    assert sqnr_db(model(*batch), found(*batch)) > 30


class ByKeyword(Options):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return super().forward(x, mask)


def test_an_input_by_keyword_only_is_named():
    with pytest.warns(UserWarning, match=r"needs 'mask' by keyword"):
        PTQQuantizer(ByKeyword())


def test_a_graph_with_a_default_argument():
    graph = fx.Graph()
    x, factor = graph.placeholder("x"), graph.placeholder("factor", default_value=2.0)
    graph.output(graph.call_function(operator.mul, (graph.call_module("a", (x,)), factor)))
    model = fx.GraphModule(nn.ModuleDict({"a": nn.Linear(6, 4)}), graph)
    assert sqnr_db(model(data()[0]), quantized(model)(data()[0])) > 30


class Statements(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += 1.0
        y *= 2.0
        y -= 0.5
        y /= 4.0
        return y


def test_statements_in_place_are_written_out_of_place_where_nobody_can_tell():
    traced = trace(Statements())
    names = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    subtracted = operator.add  # y - 1 is written as y + (-1)
    assert names == [operator.add, operator.mul, subtracted, operator.truediv]
    assert torch.equal(traced(data()[0]), Statements.forward(traced, data()[0]))


class SeenThroughAView(Statements):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        halves = y.view(-1, 2, 2)
        halves *= 2.0
        return y


def test_statements_in_place_that_others_see_stay():
    model, x = SeenThroughAView(), data()[0]
    with torch.no_grad():
        assert torch.equal(trace(model)(x), model(x))


class SecondCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.fc(torch.relu(self.fc(x)))))


def test_float_layers_names_all_calls_of_a_layer():
    config = QConfig(float_layers=("fc",))
    quantizer = PTQQuantizer(SecondCall(), config=config).calibrate(
        data(), progress=False, ranges="minmax"
    )
    assert set(quantizer.convert().quantized_layers()) == {"out"}
    assert set(quantizer.left_in_float) == {"fc", "fc__call2"}
    config = QConfig(float_layers=("fc__call2",))
    quantizer = PTQQuantizer(SecondCall(), config=config).calibrate(
        data(), progress=False, ranges="minmax"
    )
    assert set(quantizer.convert().quantized_layers()) == {"fc", "out"}
