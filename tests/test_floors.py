"""The subject is built floor by floor: a module imports only from its own floor and those below.

Within a floor there is no circle (a search may use its criterion, not the other way round). The
classroom stands outside: it may import anything, and nothing of the subject imports it.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ptq_course"
FLOORS = {
    "errors": 0,
    "blocks": 1,
    "affine": 1,
    "metrics": 1,
    "noise": 1,
    "tables": 1,
    "counting": 2,
    "reduction": 2,
    "summaries": 2,
    "histograms": 2,
    "kl": 2,
    "mse": 2,
    "sweeps": 2,
    "ranges": 2,
    "qconfig": 2,
    "exact": 2,
    "calibrators": 3,
    "observe": 3,
    "statistics": 3,
    "bias": 4,
    "graph": 4,
    "fusion": 4,
    "layers": 4,
    "network": 4,
    "untraced": 4,
    "improve": 5,
    "quantized": 6,
    "decisions": 6,
    "quantizer": 6,
    "dynamic": 6,
    "dynamic_layers": 5,
    "report": 6,
    "monitor": 7,
    "range_search": 7,
    "integer": 7,
    "diagnosis": 7,
    "deploy": 7,
}
OUTSIDE = {"__init__", "classroom"}  # the front door, which only names things, and the classroom
MODULES = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir())
SUBJECT = [name for name in MODULES if name not in OUTSIDE and not name.startswith("__pycache__")]


def imported(source, package):
    """The first-level modules of ptq_course that a source text imports ("" for the package itself).

    `package`: the dotted name of the package that the text stands in, for relative imports.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            known = [alias.name for alias in node.names if alias.name in (*FLOORS, "classroom")]
            if base == "ptq_course" and known:
                names |= {f"ptq_course.{name}" for name in known}
            else:
                names.add(base)
    inside = [name.split(".") for name in names if name.split(".")[0] == "ptq_course"]
    return {parts[1] if len(parts) > 1 else "" for parts in inside}


def imports_of(module):
    """The first-level modules that a module, or any file of a package, imports, itself left out."""
    single = PACKAGE / f"{module}.py"
    files = [single] if single.exists() else sorted((PACKAGE / module).rglob("*.py"))
    names = set()
    for file in files:
        package = ".".join(["ptq_course", *file.relative_to(PACKAGE).parts[:-1]])
        names |= imported(file.read_text(encoding="utf-8"), package)
    return names - {module}


def faults(module, names):
    """What is wrong with a module that imports these first-level modules."""
    found = []
    for name in sorted(names):
        if name == "":
            found.append(
                f"{module} imports the package itself: name the module that holds the thing"
            )
        elif name == "classroom":
            found.append(f"{module} imports the classroom: the subject never does")
        elif FLOORS.get(name, 0) > FLOORS[module]:
            above, own = FLOORS[name], FLOORS[module]
            found.append(
                f"{module} (floor {own}) imports {name} (floor {above}), which is above it"
            )
    return found


@pytest.mark.parametrize("module", SUBJECT)
def test_imports_only_go_down(module):
    assert module in FLOORS, f"give {module} its floor in tests/test_floors.py (see DESIGN: floors)"
    assert faults(module, imports_of(module)) == []


def test_there_is_no_circle():
    try:
        list(TopologicalSorter({module: imports_of(module) for module in SUBJECT}).static_order())
    except CycleError as problem:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(problem.args[1])}")


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from .quantizer import QConfig", "ptq_course", {"quantizer"}),
        ("from . import kl, mse", "ptq_course", {"kl", "mse"}),
        ("from ..fusion import fuse", "ptq_course.deploy", {"fusion"}),
        ("from .session import Session", "ptq_course.deploy", {"deploy"}),
        ("from ptq_course import affine", "x", {"affine"}),
        ("from ptq_course import PTQQuantizer", "x", {""}),
        ("import ptq_course.deploy.onnx", "x", {"deploy"}),
        ("def f():\n    from ptq_course.classroom import show", "x", {"classroom"}),
        ("import torch, numpy\nfrom pathlib import Path", "ptq_course", set()),
    ],
)
def test_the_reading_of_imports(source, package, expected):
    assert imported(source, package) == expected


def test_faults_are_found():
    assert "above it" in faults("affine", {"calibrators"})[0]
    assert "classroom" in faults("deploy", {"classroom"})[0]
    assert "package itself" in faults("deploy", {""})[0]
    assert faults("deploy", {"affine", "quantizer"}) == []
