"""The built wheel gives an engineer `ptq_course` alone, and what is missing is said by name."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

QUANTIZES = """
import importlib, importlib.util, sys
for name in ("onnx", "onnxruntime", "matplotlib", "ipywidgets", "jupyterlab", "scipy", "pytest"):
    assert importlib.util.find_spec(name) is None, f"{name} is there: this environment is not empty"

import torch, ptq_course
from torch import nn
from ptq_course import PTQQuantizer, sqnr_db, to_integer
from ptq_course.deploy import checkpoint

for name in ptq_course.__all__:
    getattr(ptq_course, name)
print(ptq_course.__version__, ptq_course.__file__)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)
).eval()
batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
quantizer = PTQQuantizer(model, bits=8)
quantizer.observe(batches)
quantizer.compute_qparams(ranges="minmax")
quantized = quantizer.convert()
with torch.no_grad():
    assert sqnr_db(model(batches[0]), quantized(batches[0])) > 30
    checkpoint.save(quantized, "int8.safetensors")
    kept = checkpoint.load("int8.safetensors", model)
    assert torch.equal(kept(batches[0]), quantized(batches[0]))
    to_integer(quantized)(batches[0])
assert "ptq_classroom" not in sys.modules
"""
REFUSALS = """
import importlib, ptq_course
for name in ("deploy.onnx", "deploy.session", "deploy.tensorrt", "deploy.validate"):
    for again in range(2):  # the second attempt says the same as the first
        try:
            importlib.import_module("ptq_course." + name)
        except ImportError as problem:
            assert isinstance(problem, ptq_course.QuantizationError)
            print(name, "|", problem)
for name in ("ptq_classroom", "ptq_classroom.kit.show"):
    try:
        importlib.import_module(name)
    except ImportError as problem:
        print(name, "|", problem)
"""
WITHOUT_DATA = """
import ptq_course
from ptq_classroom import load_model
try:
    load_model("resnet")
except ptq_course.DataIntegrityError as problem:
    print(problem)
"""


def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def brought(wanted):
    """The names of these requirements and of all that they require in turn, extras left out."""
    from packaging.requirements import Requirement

    found = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and requirement.name not in found:
            found.add(requirement.name)
            wanted += metadata.requires(requirement.name) or []
    return found


def link(names, site):
    """Put the installed files of these distributions into another environment, as links."""
    for name in names:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            try:
                (site / top).symlink_to(distribution.locate_file(top))
            except FileExistsError:
                continue  # two distributions that share a folder
            except OSError as problem:
                pytest.skip(f"this system makes no links: {problem}")


class Fresh:
    """An empty environment with the wheel, and of the other libraries what the extras bring."""

    def __init__(self, folder, wheel, wanted):
        self.folder = folder
        run([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
        self.python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        answer = run([self.python, "-c", "import site; print(site.getsitepackages()[-1])"], folder)
        link(brought(list(wanted)), Path(answer.strip()))
        pip = [sys.executable, "-m", "pip", f"--python={self.python}", "install"]
        run([*pip, "--no-index", "--no-deps", wheel], folder)

    def run(self, code):
        """What the environment's Python prints for this code, far from the repository."""
        return run([self.python, "-I", "-c", code], self.folder)


def run(command, folder):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", *project(root)["license-files"]):
        shutil.copy(root / name, source)
    for name in ("ptq_course", "ptq_classroom"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", "made"]
    run([sys.executable, "-m", "pip", "wheel", *options, "."], source)
    (made,) = (source / "made").glob("ptq_course-*.whl")
    return made


@pytest.fixture(scope="module")
def bare(root, wheel, tmp_path_factory):
    """The wheel with its base dependencies alone."""
    return Fresh(tmp_path_factory.mktemp("bare"), wheel, project(root)["dependencies"])


def test_an_engineer_gets_the_subject_and_quantizes_a_network(bare, root):
    version, place = bare.run(QUANTIZES).split()
    assert version == project(root)["version"]
    assert Path(place).is_relative_to(bare.folder)


def test_what_needs_an_extra_says_which_and_how_to_get_it(bare):
    lines = bare.run(REFUSALS).splitlines()
    said = [tuple(line.split(" | ")) for line in lines]
    rooms = ["deploy.onnx", "deploy.session", "deploy.tensorrt", "deploy.validate"]
    names = [name for room in rooms for name in (room, room)]
    assert [name for name, _ in said] == [*names, "ptq_classroom", "ptq_classroom.kit.show"]
    for name, text in said:
        extra = "course" if name.startswith("ptq_classroom") else "onnx"
        assert re.search(rf"\w+ is not installed.*pip install 'ptq-course\[{extra}\]'", text)


def test_the_classroom_says_where_its_data_is_to_be_had(root, wheel, tmp_path, bare):
    extras = project(root)["optional-dependencies"]
    libraries = [text for text in extras["course"] + extras["onnx"] if "ptq-course" not in text]
    # JupyterLab itself is of no use here, and a hundred libraries.
    wanted = [text for text in libraries if not text.startswith("jupyterlab")] + ["ipython"]
    made = Fresh(tmp_path, wheel, project(root)["dependencies"] + wanted)
    said = made.run(WITHOUT_DATA)
    assert "data is not there" in said
    assert "clone the repository" in said
    assert "PTQ_COURSE" in said
    found = f"import os; os.environ['PTQ_COURSE'] = {str(root)!r}\n{WITHOUT_DATA}\nprint('found')"
    assert made.run(found) == "found\n"
    onnx = "from ptq_course.deploy import onnx, session, tensorrt, validate; print(onnx.TARGETS)"
    assert "onnxruntime" in made.run(onnx)
