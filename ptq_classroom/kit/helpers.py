"""What a learner may ask for while stuck: `hint`, `solution`, `reset`."""

from __future__ import annotations

import json
import textwrap

from ptq_classroom.kit import cells, exercises, learner
from ptq_classroom.kit.place import course_folder

_given: dict[str, int] = {}


def hint(id: str, n: int | None = None) -> None:
    """Print hint number `n` (from 1); without `n`, the next one each time."""
    exercise = _known(id)
    if exercise is None:
        return
    total = len(exercise.hints)
    if n is None:
        n = _given.get(id, 0) + 1
        if n > total:
            print(f'That were all {total} hints. solution("{id}") shows a solution.')
            return
    if not 1 <= n <= total:
        print(f"{id} has hints 1 to {total}.")
        return
    _given[id] = n
    symptom, text = exercise.hints[n - 1]
    print(f"Hint {n} of {total} for {id} {exercise.function}: {symptom}")
    print(textwrap.fill(" ".join(text.split()), 88, initial_indent="  ", subsequent_indent="  "))
    rest = [f"{i} {title}" for i, (title, _) in enumerate(exercise.hints, 1) if i != n]
    if rest:
        print(f'Others, hint("{id}", number): {"; ".join(rest)}')


def solution(id: str) -> None:
    """Print the solution cell of the committed notebook; works from my_course/ as well."""
    found = _found(id, "solution")
    if found:
        print(found[1])


def reset(id: str) -> None:
    """Bring the exercise's stub back, in a new cell below this one; what was saved stays saved."""
    found = _found(id, "stub")
    if found is None:
        return
    exercise, cell = found
    shell = cells.notebook()
    if shell is None:
        print(cell)
    else:
        shell.set_next_input(cell)
        print(f"A fresh stub of {id} {exercise.function} is in the cell below; delete the old one.")
    if learner.holds(exercise):
        print(
            "my_ptq.py still holds the version that passed; the next one that passes replaces it."
        )


def _known(id: str) -> exercises.Exercise | None:
    """The exercise, or None once it is printed which ones there are."""
    try:
        return exercises.get(id)
    except KeyError as unknown:
        print(unknown.args[0])
        return None


def _found(id: str, tag: str) -> tuple[exercises.Exercise, str] | None:
    """The exercise and its cell of that kind, or None once it is printed what there is not."""
    exercise = _known(id)
    cell = _find(id, tag) if exercise else None
    if exercise and cell is None:
        print(f"No notebook holds a {tag} cell for {id} {exercise.function}.")
    return (exercise, cell) if exercise and cell is not None else None


def _find(id: str, tag: str) -> str | None:
    """Source of the cell tagged `tag` whose metadata says {"ptq": {"exercise": id}}."""
    chapter = id.split(".")[0]
    folder = course_folder() / "notebooks"
    for path in sorted(folder.glob(f"{chapter}*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            meta = cell.get("metadata", {})
            if tag in meta.get("tags", ()) and meta.get("ptq", {}).get("exercise") == id:
                return "".join(cell["source"])
    return None
