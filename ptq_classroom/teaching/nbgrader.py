"""`python course.py learner OUT --nbgrader`: the notebooks in nbgrader's own markup.

Each stub holds its solution between nbgrader's markers, which `nbgrader generate_assignment` takes
out; each check is a locked test cell of one point that calls the course's own check. nbgrader runs
a submission in one process with its tests and protects nothing. Standard library only.
"""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parents[1] / "kit"
COPY = runpy.run_path(str(KIT / "learner_copy.py"))
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TIMEOUT = 300  # seconds for one cell
CONFIG = f'''"""Settings of nbgrader for the course; run its commands in this folder."""

c = get_config()  # noqa: F821  (nbgrader's)
c.CourseDirectory.course_id = "ptq"
c.ExecutePreprocessor.timeout = {TIMEOUT}  # seconds for one cell
c.ClearSolutions.code_stub = {{"python": "raise NotImplementedError"}}
'''


def write(notebooks: Path, out: Path) -> list[str]:
    """Write OUT/source/CHAPTER/NOTEBOOK and OUT/nbgrader_config.py; returns the files' names.

    FileExistsError where `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    names = ["nbgrader_config.py"]
    for path in sorted(notebooks.glob("*.ipynb")):
        name = f"source/chapter_{path.name.split('_')[0]}/{path.name}"
        (out / name).parent.mkdir(parents=True)
        text = marked_up(path.read_text(encoding="utf-8"))
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        names.append(name)
    out.mkdir(exist_ok=True)
    (out / names[0]).write_text(CONFIG, encoding="utf-8", newline="\n")
    return names


def marked_up(text: str) -> str:
    """A notebook's text in nbgrader's markup."""
    solutions = {
        _exercise(cell): _source(cell)
        for cell in json.loads(text)["cells"]
        if "solution" in _tags(cell) and _exercise(cell)
    }
    notebook = json.loads(COPY["learner_version"](text))
    for cell in notebook["cells"]:
        id, tags = _exercise(cell), _tags(cell)
        if cell["cell_type"] != "code" or not id:
            continue
        if "stub" in tags:
            cell["source"] = with_solution(_source(cell), solutions[id])
            cell["metadata"]["nbgrader"] = _metadata(f"answer_{id}", solution=True)
        elif "check" in tags:
            function = _checked(_source(cell))
            own = f'{function}.__module__.startswith("ptq_")'
            refused = f'assert not {own}, "this is the function of the course"'
            cell["source"] = f'{refused}\ncheck("{id}", {function}, strict=True)'
            cell["metadata"]["nbgrader"] = _metadata(f"check_{id}", solution=False)
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def with_solution(stub: str, solution: str) -> str:
    """The stub with the solution between the markers: in its body, or below it.

    Below it where the solution is more than one function; there it defines the stub's name again.
    """
    made = ast.parse(stub).body
    other = [node for node in ast.parse(solution).body if not _is_check(node)]
    lines = solution.splitlines()
    if len(other) == 1 and _fits(head := made[-1], tail := other[0]):
        assert isinstance(head, ast.FunctionDef) and isinstance(tail, ast.FunctionDef)  # noqa: PT018
        first, last = tail.body[1 if ast.get_docstring(tail) else 0], head.body[-1]
        body = "\n".join(lines[first.lineno - 1 : tail.end_lineno])
        body = body.replace(f"{head.name}_solution", head.name).splitlines()
        kept = stub.splitlines()
        kept[last.lineno - 1 : last.end_lineno] = [f"    {BEGIN}", *body, f"    {END}"]
        return "\n".join(kept)
    start, end = other[0].lineno, other[-1].end_lineno
    names = [node.name for node in made if isinstance(node, ast.FunctionDef)]
    text = "\n".join(lines[start - 1 : end])
    for name in names:
        text = text.replace(f"{name}_solution", name)
    return f"{stub.rstrip()}\n\n\n{BEGIN}\n{text}\n{END}"


def _fits(stub: ast.stmt, solution: ast.stmt) -> bool:
    """Whether the body of the solution can take the place of the stub's `raise`."""
    if not (isinstance(stub, ast.FunctionDef) and isinstance(solution, ast.FunctionDef)):
        return False
    names = [[a.arg for a in node.args.args] for node in (stub, solution)]
    return isinstance(stub.body[-1], ast.Raise) and names[0] == names[1]


def _is_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (
        getattr(node.value.func, "id", "") == "check"
    )  # fmt: skip


def _checked(source: str) -> str:
    """The name of the function that a check cell hands over."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
            return ast.unparse(node.args[1])
    raise ValueError(f"no check in {source!r}")


def _metadata(name: str, solution: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "grade": not solution,
        "grade_id": name.replace(".", "_"),
        "locked": not solution,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    return found if solution else {**found, "points": 1}


def _exercise(cell: dict) -> str:
    return cell["metadata"].get("ptq", {}).get("exercise", "")


def _tags(cell: dict) -> set[str]:
    return {*cell["metadata"].get("tags", ())}


def _source(cell: dict) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)
