"""What is passed, chapter by chapter: the exercises of the notebooks against my_course/my_ptq.py.

Read from the files, so that it needs no library.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .environment import ROOT
from .words import fitted


def show() -> int:
    """Print one row a chapter: how many exercises are passed, and which comes next."""
    chapters = exercises(ROOT / "notebooks")
    done = passed(ROOT / "my_course" / "my_ptq.py")
    width = max((len(title) for title in chapters), default=0)
    every = [id for ids in chapters.values() for id in ids]
    for title, ids in chapters.items():
        left = [id for id in ids if id not in done]
        word = f"next: {left[0]}" if left else "complete"
        print(fitted(f"{title:<{width}}  {len(ids) - len(left):2} of {len(ids):2}  {word}"))
    count = len(done.intersection(every))
    print(f"\n{count} of {len(every)} exercises are passed.", end=" ")
    print("Counted is what stands in my_course/my_ptq.py.")
    return 0


def exercises(folder: Path) -> dict[str, list[str]]:
    """Title of each chapter that has exercises -> their numbers, in order; the self-test first."""
    files = sorted(folder.glob("*.ipynb"), key=lambda file: (file.name[:1].isdigit(), file.name))
    found = {}
    for file in files:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        marked = [cell.get("metadata", {}).get("ptq", {}).get("exercise") for cell in cells]
        heading = re.search(r"^# (.+)$", "".join(cells[0]["source"]) if cells else "", re.MULTILINE)
        if ids := list(dict.fromkeys(filter(None, marked))):
            found[heading[1].removeprefix("Chapter ") if heading else file.stem] = ids
    return found


def passed(file: Path) -> set[str]:
    """The exercises whose function is kept in my_ptq.py, which a passed check does."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return set(re.findall(r"^# <<< (\S+)$", text, flags=re.MULTILINE))
