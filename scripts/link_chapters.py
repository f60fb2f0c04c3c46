"""`python scripts/link_chapters.py`: previous, contents and next as the last cell of each chapter.

The cell is tagged `links` and made from the files that are there, so that no link leads nowhere.
Running it again changes nothing; outputs are left alone, so no notebook has to be executed again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TAG = "links"
CONTENTS = "[contents](../README.md#chapters-and-modules)"


def chapters(folder: Path) -> list[Path]:
    """The notebooks in the order of reading: the self-test first, then by number."""
    return sorted(folder.glob("*.ipynb"), key=lambda path: (path.name[0].isdigit(), path.name))


def title(notebook: dict[str, Any]) -> str:
    """The first heading of a notebook, without its mark."""
    for cell in notebook["cells"]:
        first = "".join(cell["source"]).strip().split("\n")[0]
        if cell["cell_type"] == "markdown" and first.startswith("# "):
            return first.removeprefix("# ").strip()
    raise ValueError("a notebook without a heading: give its first markdown cell a `# title`")


def link(folder: Path) -> list[str]:
    """Write the links into every notebook of `folder`; the names of those that changed."""
    paths = chapters(folder)
    read = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    titles, changed = [title(notebook) for notebook in read], []
    for here, (path, notebook) in enumerate(zip(paths, read, strict=True)):
        parts = [CONTENTS]
        if here > 0:
            parts.insert(0, f"previous: [{titles[here - 1]}]({paths[here - 1].name})")
        if here + 1 < len(paths):
            parts.append(f"next: [{titles[here + 1]}]({paths[here + 1].name})")
        cell = {
            "cell_type": "markdown",
            "id": "links",
            "metadata": {"tags": [TAG]},
            "source": [" · ".join(parts)],
        }
        kept = [c for c in notebook["cells"] if TAG not in c["metadata"].get("tags", ())]
        if notebook["cells"] == [*kept, cell]:
            continue
        notebook["cells"] = [*kept, cell]
        text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        changed.append(path.name)
    return changed


if __name__ == "__main__":
    print("\n".join(link(NOTEBOOKS)) or "nothing to change")
    sys.exit(0)
