"""Every recipe of the clinic runs, is short, and is found from its page."""

import ast
import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from networks import answering, batches, taught_by
from torch import nn

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy.onnx import export

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
MOST_LINES = 15


def recipe(name):
    return runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))["run"]


@pytest.fixture(scope="module")
def pairs():
    return batches(count=3, size=16)


@pytest.fixture(scope="module")
def data(pairs):
    return [x for x, _ in pairs]


@pytest.fixture(scope="module")
def model(pairs):
    return answering(pairs)


@pytest.fixture(scope="module")
def labelled(model, pairs):
    return taught_by(model, pairs)


@pytest.fixture(scope="module")
def files(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    quantizer = PTQQuantizer(model, config=QConfig.onnxruntime()).calibrate(data, progress=False)
    x = data[0]
    return export(model, x, folder / "fp32.onnx"), export(
        quantizer.convert(), x, folder / "int8.onnx"
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_short_and_says_what_it_answers(path):
    source = path.read_text(encoding="utf-8")
    (function,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    lines = [line for line in source.splitlines() if line.strip() and '"""' not in line]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert function.name == "run"
    assert len(lines) - len(imports) <= MOST_LINES
    assert ast.get_docstring(ast.parse(source))


def test_the_page_leads_to_every_recipe():
    page = (ROOT / "docs" / "clinic.md").read_text(encoding="utf-8")
    for path in RECIPES:
        assert f"../recipes/{path.name}" in page, path.name
    assert len(RECIPES) == 10


def test_own_checkpoint(model, labelled, tmp_path, capsys):
    x, labels = (torch.cat(parts) for parts in zip(*labelled, strict=True))
    found = recipe("own_checkpoint")(model, labelled, x, labels, tmp_path / "int8.onnx")
    assert found.agreement > 0.95
    assert (tmp_path / "int8.onnx").is_file()


def test_lost_points(model, labelled, capsys):
    found = recipe("lost_points")(model, labelled, labelled)
    assert "Is the drop real?" in str(found)


def test_too_slow(files, data, capsys):
    kernels, speedup = recipe("too_slow")(*files, data[0])
    assert kernels.integer
    assert speedup.median > 0


def test_judge_onnx(files, labelled, capsys):
    x, labels = labelled[0]
    before, after, kernels = recipe("judge_onnx")(*files, x, labels)
    assert before.shape == after.shape
    assert kernels.integer


def test_transformer(capsys):
    """An outlier channel, which a scale for each token or SmoothQuant takes care of."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight[3] = 60.0
    first = nn.Linear(16, 32)
    with torch.no_grad():
        first.weight[:, 3] *= 0.02
    model = nn.Sequential(norm, first, nn.GELU(), nn.Linear(32, 4)).eval()
    data = [torch.randn(8, 5, 16) for _ in range(4)]
    _, decibels = recipe("transformer")(model, data, data[0])
    assert decibels["static, SmoothQuant"] > decibels["static"] + 3
    assert decibels["dynamic"] > 20


class Head(nn.Module):
    """Boxes up to 96 pixels beside scores up to 1: a grid for both leaves the scores few codes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        found = self.head(self.body(x).relu())
        return torch.cat([found[:, :4].sigmoid() * 96, found[:, 4:].sigmoid()], dim=1)


def test_detector(data, capsys):
    torch.manual_seed(0)
    model = Head().eval()
    with torch.no_grad():
        expected = model(data[0])

    def evaluate(network):
        with torch.no_grad():
            return -(network(data[0]) - expected)[:, 4].abs().mean().item()

    _, found = recipe("detector")(model, data, evaluate, ["head", "behind:head"])
    assert found["head in FP32"] > found["all INT8"]


def test_four_bits(model, data, tmp_path, capsys):
    quantized, report = recipe("four_bits")(model, data, tmp_path / "int4.safetensors")
    assert (tmp_path / "int4.safetensors").is_file()
    assert all(layer.weight_grid.bits == 4 for layer in quantized.quantized_layers().values())
    assert {layer.bits for layer in report.layers} == {4}


def test_monitor(model, data, capsys):
    quantized = PTQQuantizer(model).calibrate(data, progress=False).convert()
    run = recipe("monitor")
    assert run(quantized, data, data) == {}
    assert run(quantized, data, [5 * x for x in data]) != {}


def test_several_machines(model, data, tmp_path):
    """One process is a group, too; tests/simulation and tests/ranges have two."""
    if dist.is_initialized():
        pytest.skip("a group of processes is open already")
    place = (tmp_path / "store").as_uri()
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        found = recipe("several_machines")(model, data)
    finally:
        dist.destroy_process_group()
    alone = PTQQuantizer(model, config=QConfig.onnxruntime())
    alone = alone.observe(data, ranges="mse", progress=False).compute_qparams("mse").convert()
    with torch.no_grad():
        assert torch.equal(found(data[0]), alone(data[0]))


def test_tensorrt_file(model, data, tmp_path, capsys):
    assert recipe("tensorrt_file")(model, data, data[0], tmp_path / "a.onnx") == []
