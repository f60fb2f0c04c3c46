"""`python scripts/link_chapters.py`: previous, contents and next as the last cell of each chapter.

    python scripts/link_chapters.py --repository owner/name [--branch main]

writes badges for Colab and Binder too, and a first cell that installs the course there; another
address replaces them, `--repository none` takes them away, and without the option they stay.
The cell is tagged `links` and made from the files that are there, so that no link leads nowhere.
Running it again changes nothing; outputs are left alone, so no notebook has to be executed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import elsewhere
from elsewhere import Address

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


def published(folder: Path) -> Address | None:
    """The address that the badges of the notebooks in `folder` lead to now."""
    texts = (path.read_text(encoding="utf-8") for path in chapters(folder))
    return next(filter(None, map(elsewhere.found, texts)), None)


def link(folder: Path, address: Address | None = None) -> list[str]:
    """Write the links into every notebook of `folder`; the names of those that changed.

    address: where badges lead to; without one there are none.
    """
    paths = chapters(folder)
    read = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    titles, changed = [title(notebook) for notebook in read], []
    for here, (path, notebook) in enumerate(zip(paths, read, strict=True)):
        parts = [CONTENTS]
        if here > 0:
            parts.insert(0, f"previous: [{titles[here - 1]}]({paths[here - 1].name})")
        if here + 1 < len(paths):
            parts.append(f"next: [{titles[here + 1]}]({paths[here + 1].name})")
        if address:
            parts.append(address.badges(path.name, up="../"))
        cell = {
            "cell_type": "markdown",
            "id": "links",
            "metadata": {"tags": [TAG]},
            "source": [" · ".join(parts)],
        }
        kept = [c for c in notebook["cells"] if TAG not in c["metadata"].get("tags", ())]
        cells = [*elsewhere.with_cell(kept, address), cell]
        if notebook["cells"] == cells:
            continue
        notebook["cells"] = cells
        text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        changed.append(path.name)
    return changed


def main(words: list[str], folder: Path = NOTEBOOKS) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Link the chapters.")
    parser.add_argument("--repository", help="owner/name on GitHub, or none")
    parser.add_argument("--branch", default="main")
    given = parser.parse_args(words)
    try:
        if given.repository is None:
            address = published(folder)
        else:
            address = (
                None if given.repository == "none" else Address(given.repository, given.branch)
            )
    except ValueError as problem:
        parser.error(str(problem))
    changed = link(folder, address)
    readme = folder.parent / "README.md"
    before = readme.read_text(encoding="utf-8")
    first = next(path.name for path in chapters(folder) if path.name[0].isdigit())
    after = elsewhere.in_readme(before, address, first)
    if after != before:
        readme.write_text(after, encoding="utf-8", newline="\n")
        changed.append("README.md")
    print("\n".join(changed) or "nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
