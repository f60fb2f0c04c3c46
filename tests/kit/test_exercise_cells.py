"""Exercises in the notebooks: card, stub, check, solution, in that order and consistent."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from ptq_classroom.kit import exercises

FOLDER = Path(exercises.__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARTS = ("exercise", "stub", "check", "solution")
HELPERS = {"hint", "reset", "solution"}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(cell: dict) -> ast.Module:
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in cell["source"]]
    return ast.parse("".join(lines))


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def defined(tree: ast.Module) -> set[str]:
    """Names that a cell defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {a.asname or a.name.split(".")[0] for a in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(getattr(n, "ctx", 0), ast.Store)
                      and isinstance(n, ast.Name)}  # fmt: skip
    return names


def faults(notebook: list[dict], chapter: str) -> list[str]:
    found = []
    registered = (
        {e.id: e for e in exercises.load(chapter)} if chapter in exercises.chapters() else {}
    )
    places: dict[str, list[tuple[int, str]]] = {}
    for number, cell in enumerate(notebook):
        key = cell["metadata"].get("ptq", {}).get("exercise")
        for tag in set(tags(cell)) & set(PARTS):
            places.setdefault(key, []).append((number, tag))
    for key in sorted({*places, *registered} - {None}):
        parts = [tag for _, tag in sorted(places.get(key, []))]
        if key not in registered:
            found.append(f"{key} is not in the checks")
        elif parts != list(PARTS):
            found.append(f"{key} has the cells {parts}, not {list(PARTS)}")
        else:
            stub = notebook[next(n for n, tag in places[key] if tag == "stub")]
            found += stub_faults(registered[key], stub)
    if None in places:
        found.append("an exercise cell has no metadata.ptq.exercise")
    found += solution_name_faults(notebook) + rebound_name_faults(notebook)
    return found + helper_faults(notebook)


def stub_faults(exercise: exercises.Exercise, stub: dict) -> list[str]:
    functions = [n for n in code(stub).body if isinstance(n, ast.FunctionDef)]
    names = [f"{f.name}({', '.join(a.arg for a in f.args.args)})" for f in functions]
    if names != [exercise.signature]:
        return [f"{exercise.id}: the stub defines {names}, the exercise is {exercise.signature}"]
    faults = []
    if not ast.get_docstring(functions[0]):
        faults.append(f"{exercise.id}: the stub has no docstring")
    if "raise NotImplementedError" not in "".join(stub["source"]):
        faults.append(f"{exercise.id}: the stub does not raise NotImplementedError")
    return faults


def helper_faults(notebook: list[dict]) -> list[str]:
    """A check that fails prints `stuck? hint("01.1")`; the learner must be able to run that."""
    known: set[str] = set()
    for number, cell in enumerate(notebook):
        if cell["cell_type"] == "code":
            known |= imported_from_the_classroom(code(cell))
        missing = HELPERS - known
        if "check" in tags(cell) and missing:
            return [f"cell {number} checks, and nobody imported {', '.join(sorted(missing))}"]
    return []


def imported_from_the_classroom(tree: ast.Module) -> set[str]:
    homes = ("ptq_classroom", "ptq_classroom.kit.helpers")
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module in homes]
    return {alias.name for node in imports for alias in node.names if alias.asname is None}


def solution_name_faults(notebook: list[dict]) -> list[str]:
    """Names that exist only because of a solution cell, used in a cell that the learner keeps."""
    trees = [(n, tags(c), code(c)) for n, c in enumerate(notebook) if c["cell_type"] == "code"]
    kept = set().union(*(defined(t) for _, tag, t in trees if "solution" not in tag), set())
    only = set().union(*(defined(t) for _, tag, t in trees if "solution" in tag), set()) - kept
    found = []
    for number, tag, tree in trees:
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        if "solution" not in tag and used & only:
            names = ", ".join(sorted(used & only))
            found.append(f"cell {number} uses {names} of a solution, absent from a learner's copy")
    return found


def rebound_name_faults(notebook: list[dict]) -> list[str]:
    """Other cells than the stub that give a learner's function's name to something else.

    `check` would then look at that. The result of `learner.function` may have the name.
    """
    trees = [(n, tags(c), code(c)) for n, c in enumerate(notebook) if c["cell_type"] == "code"]
    own = set().union(*(defined(t) for _, tag, t in trees if "stub" in tag), set())
    found = []
    for number, tag, tree in trees:
        body = [node for node in tree.body if not asks_learner(node)]
        names = defined(ast.Module(body, [])) & own if "stub" not in tag else set()
        anew = "anew, which the learner writes"
        found += [f"cell {number} defines {name} {anew}" for name in sorted(names)]
    return found


def asks_learner(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and "learner.function(" in ast.unparse(node.value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exercise_cells(path: Path):
    assert faults(cells(path), path.stem.split("_")[0]) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_solutions_pass_their_checks(path: Path):
    """With nothing of the notebook but its imports around them."""
    code_cells = [c for c in cells(path) if c["cell_type"] == "code"]
    imports = [
        node for c in code_cells for node in code(c).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]  # fmt: skip
    space: dict = {"__name__": "__main__"}
    exec(compile(ast.Module(imports, []), path.name, "exec"), space)
    for cell in code_cells:
        if "solution" in tags(cell):
            exec(compile(code(cell), path.name, "exec"), space)  # its check is strict, and raises


def sample() -> list[dict]:
    from ptq_classroom.kit.authoring import NotebookBuilder

    nb = NotebookBuilder("01", "Affine")
    nb.code("from ptq_classroom import check, hint, reset, solution  # noqa: F401")
    for id, signature in (
        ("01.1", "qparams(lo, hi, grid)"),
        ("01.3", "fewest_bits(scores, baseline, limit)"),
        ("01.2", "quantize(x, scale, zero_point, grid)"),
    ):
        nb.exercise(id, f'def {signature}:\n    """Do it."""\n    raise NotImplementedError')
        nb.solution(id)
    return nb.cells


def test_a_good_notebook_has_no_faults():
    assert faults(sample(), "01") == []


def test_a_name_may_hold_what_learner_function_gives():
    notebook = sample()
    notebook[3].update(source=['qparams, b = (learner.function(n) for n in ("qparams", "b"))'])
    assert faults(notebook, "01") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop(), "01.2 has the cells"),
        (lambda c: c.insert(1, c.pop(4)), "01.1 has the cells"),
        (lambda c: c[2].update(source=["def qparams(a, b):\n", "    pass"]), "the exercise is"),
        (lambda c: c[2]["source"].__setitem__(1, "    # nothing\n"), "no docstring"),
        (lambda c: c[2]["source"].__setitem__(2, "    return 1"), "does not raise"),
        (lambda c: c[1]["metadata"]["ptq"].update(exercise="01.9"), "01.9 is not in the checks"),
        (lambda c: c[1]["metadata"].pop("ptq"), "no metadata.ptq.exercise"),
        (lambda c: c[3].update(source=["qparams_solution(0, 1, 2)"]), "uses qparams_solution"),
        (lambda c: c.pop(0), "nobody imported hint, reset, solution"),
        (lambda c: c[0].update(source=["from ptq_classroom import hint"]), "imported reset"),
        (lambda c: c.append(c.pop(0)), "cell 2 checks, and nobody imported"),
        (lambda c: c[3].update(source=["from a import qparams"]), "cell 3 defines qparams anew"),
        (lambda c: c[4].update(source=["def quantize(x): pass"]), "cell 4 defines quantize anew"),
    ],
)  # fmt: skip
def test_each_fault_is_found(change, said: str):
    notebook = sample()
    change(notebook)
    assert any(said in fault for fault in faults(notebook, "01")), faults(notebook, "01")
