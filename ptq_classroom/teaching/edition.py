"""`python course.py learner OUT`: the learner's edition of the notebooks, to hand out.

Without solutions, answers of the quiz and outputs: the same version that `course.py lab` makes
into my_course/. Standard library only.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[1] / "kit"
COPY = runpy.run_path(str(KIT / "learner_copy.py"))


def write(notebooks: Path, out: Path) -> list[str]:
    """Write the edition into `out`, a new or empty folder; returns the names of its files.

    FileExistsError where `out` holds something: nobody's work is written over.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(p for p in notebooks.rglob("*") if p.is_file()):
        if COPY["_hidden"](path, notebooks):
            continue
        target = out / path.relative_to(notebooks)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            text = COPY["learner_version"](path.read_text(encoding="utf-8"))
            target.write_text(text, encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(path, target)
        names.append(target.relative_to(out).as_posix())
    return names


def main(arguments: list[str], notebooks: Path, help_text: str) -> int:
    """The command: OUT and --nbgrader."""
    places = [word for word in arguments if not word.startswith("-")]
    if len(places) != 1 or {*arguments} - {*places, "--nbgrader"}:
        print(f"learner needs one new folder.\n\n{help_text.strip()}", file=sys.stderr)
        return 2
    out = Path(places[0])
    try:
        if "--nbgrader" in arguments:
            names = runpy.run_path(str(Path(__file__).with_name("nbgrader.py")))["write"](
                notebooks, out
            )
        else:
            names = write(notebooks, out)
    except OSError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{len(names)} files in {out}")
    return 0
