"""The subject is built floor by floor: a file imports only from its own room and the rooms below.

Inside a room there is no circle (a search may use its criterion, not the other way round). The
classroom stands on top: it may import anything of the subject, and nothing of the subject imports
it. `python tests/test_floors.py --write` puts the table of rooms into CONTRIBUTING.md.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: the room, and what it holds. "" is the root of ptq_course.
ROOMS = {
    "": "errors, tables",
    "grids": "which numbers exist: integer grids, what rounding costs, exact products of integers",
    "ranges": "collect and decide: summaries, range rules with their criteria, calibrators",
    "graph": "prepare: tracing, rewriting to plain layers, what each operation does to integers, "
    "who owns a scale, fusion",
    "simulation": "apply: configuration, observation, quantized layers, the quantizers, report",
    "improve": "rescue: equalization, bias correction, better rounding, other scales, codebooks",
    "integer": "integers only",
    "deploy": "files: ONNX, checkpoints, TensorRT's rules; sessions that run them",
    "diagnosis": "compare layers, switch parts off, ask an engineer's questions",
}
CLASSROOM = {
    "kit": "check, hint, predict, the learner's file, figures, widgets, glossary",
    "pictures": "emoji, camera, networks",
    "text": "phrases and an encoder",
    "chapters": "one folder a chapter: exercises, figures, widget",
    "teaching": "the learner's edition, grading",
}
MAX_FLOORS = 10
FRONT_DOORS = {"ptq_course", "ptq_classroom"}  # name things, and are imported by no file inside
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"


def files_of(package):
    """Every module of a package: dotted name -> file."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = files_of("ptq_course") | files_of("ptq_classroom")


def floor_of(module):
    """(floor, room) of a dotted name; the classroom's rooms lie above the subject's."""
    package, *rest = module.split(".")
    room = rest[0] if len(rest) > 1 or (rest and (ROOT / package / rest[0]).is_dir()) else ""
    if package == "ptq_classroom":
        return len(ROOMS) + list(CLASSROOM).index(room), room
    return list(ROOMS).index(room), room


def imported(source, package):
    """The modules of the two packages that a source text imports, as dotted names.

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
            inside = {f"{base}.{alias.name}" for alias in node.names} & FILES.keys()
            names |= inside
            if len(inside) < len(node.names):
                names.add(base)
    return {name for name in names if name.split(".")[0] in FRONT_DOORS}


def imports_of(module):
    """What a file imports; a room's own front door counts only for what it re-exports to others."""
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return imported(file.read_text(encoding="utf-8"), package) - {module}


def faults(module, names):
    """What is wrong with a file that imports these modules."""
    found = []
    own, room = floor_of(module)
    for name in sorted(names):
        if name in FRONT_DOORS:
            found.append(f"{module} imports {name} itself: name the module that holds the thing")
            continue
        floor, other = floor_of(name)
        if name.startswith("ptq_classroom") and not module.startswith("ptq_classroom"):
            found.append(f"{module} imports the classroom: the subject never does")
        elif floor > own:
            found.append(f"{module} ({room}) imports {name} ({other}), which is above it")
    return found


INSIDE = [name for name in FILES if name not in FRONT_DOORS]


@pytest.mark.parametrize("module", INSIDE)
def test_imports_only_go_down(module):
    assert faults(module, imports_of(module)) == []


def test_there_is_no_circle():
    graph = {name: imports_of(name) & set(INSIDE) for name in INSIDE}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as problem:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(problem.args[1])}")


def test_the_root_is_a_front_door():
    held = {path.name for path in (ROOT / "ptq_course").iterdir() if path.name != "__pycache__"}
    rooms = {room for room in ROOMS if room}
    assert held == rooms | {"__init__.py", "errors.py", "tables.py", "py.typed"}
    assert len(ROOMS) + 1 <= MAX_FLOORS, "the subject's rooms, and the classroom on top"


def table():
    """The table of CONTRIBUTING.md: one row a floor, with its files."""
    rows = ["| floor | room | holds | files |", "|---|---|---|---|"]
    for number, (room, holds) in enumerate(ROOMS.items()):
        folder = ROOT / "ptq_course" / room
        names = folder.glob("*.py") if not room else folder.rglob("*.py")
        files = sorted(
            file.relative_to(folder).with_suffix("").as_posix()
            for file in names
            if file.name != "__init__.py"
        )
        place = f"`{room}/`" if room else "root"
        rows.append(f"| {number} | {place} | {holds} | {', '.join(f'`{f}`' for f in files)} |")
    classroom = "; ".join(f"`{room}/`: {holds}" for room, holds in CLASSROOM.items())
    rows.append(f"| {len(ROOMS)} | `ptq_classroom` | {classroom} | |")
    return "\n".join(rows)


def written(text, new):
    """A page's text with this table between the two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def test_the_table_of_floors_is_current():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert text == written(text, table()), "run: python tests/test_floors.py --write"


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from .quantizer import QConfig", "ptq_course.simulation", "simulation.quantizer"),
        ("from . import kl", "ptq_course.ranges", "ranges.kl"),
        ("from ..graph.fusion import fuse", "ptq_course.deploy", "graph.fusion"),
        ("from ptq_course.ranges import kl", "x", "ranges.kl"),
        ("from ptq_course.graph import trace", "x", "graph"),
        ("import ptq_course.deploy.onnx", "x", "deploy.onnx"),
    ],
)
def test_the_reading_of_imports(source, package, expected):
    assert imported(source, package) == {f"ptq_course.{expected}"}


def test_the_reading_of_other_imports():
    assert imported("from ptq_course import PTQQuantizer", "x") == {"ptq_course"}
    assert imported("def f():\n    from ptq_classroom import show", "x") == {"ptq_classroom"}
    assert imported("import torch, numpy\nfrom pathlib import Path", "ptq_course") == set()
    text = "from ptq_course.ranges import kl, Nothing"
    assert imported(text, "x") == {"ptq_course.ranges", "ptq_course.ranges.kl"}


def test_faults_are_found():
    assert "above it" in faults("ptq_course.grids.affine", {"ptq_course.ranges.calibrators"})[0]
    assert "classroom" in faults("ptq_course.deploy.session", {"ptq_classroom.kit.show"})[0]
    assert "itself" in faults("ptq_course.deploy.session", {"ptq_course"})[0]
    assert faults("ptq_course.deploy.session", {"ptq_course.grids.affine"}) == []
    assert faults("ptq_classroom.kit.show", {"ptq_course.diagnosis"}) == []
    assert "above it" in faults("ptq_classroom.kit.show", {"ptq_classroom.chapters.ch01"})[0]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(
            written(page.read_text(encoding="utf-8"), table()), encoding="utf-8", newline="\n"
        )
    else:
        print(table())
