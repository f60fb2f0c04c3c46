"""Links of the course's Markdown, which point to files of the repository, made to point to pages.

A notebook says `../ptq_course/grids/affine.py`; the page has that module's reference instead.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from web_page.errors import PageError

# Files that have a page, and that page; files that keep their place are listed too.
PAGES = {
    "README.md": "index.md",
    "TEACHING.md": "TEACHING.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "docs/claims.md": "docs/claims.md",
    "docs/clinic.md": "docs/clinic.md",
    "data/README.md": "data/README.md",
}
# A link, whose label may hold code; or code, whose brackets are no link.
LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)+)\]\(([^()\s]+)\)|(`+).+?\3")


def rewritten(text: str, file: str, root: Path, place: str = "") -> str:
    """The Markdown `text` of a repository's `file` with its links to pages of the site.

    A file of the repository that has no page stays as its bare name. place: what a finding calls
    the text (default: its file). Raises PageError for links to what does not exist.
    """
    findings: list[str] = []

    def link(match: re.Match[str]) -> str:
        label, target, code = match.groups()
        if code or re.match(r"[a-z]+:|#", target):
            return match.group(0)
        found = page_of(target, file, root)
        if found is None:
            findings.append(f"{place or file}: the link [{label}]({target}) leads nowhere")
            return match.group(0)
        return f"[{label}]({found})" if found else label

    text = outside_code(text, lambda part: LINK.sub(link, part))
    if findings:
        raise PageError(findings)
    return text


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with its prose changed and fenced code kept; a link's label may hold code spans."""
    parts = re.split(r"(?ms)(^```.*?^```[^\n]*$)", text)
    return "".join(part if k % 2 else change(part) for k, part in enumerate(parts))


def page_of(target: str, file: str, root: Path) -> str | None:
    """Where a link from `file` leads on the site; "" for a file without a page, None: nowhere."""
    path, _, anchor = target.partition("#")
    here = posixpath.dirname(PAGES.get(file, file))
    full = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if full.startswith("..") or not (root / full).exists():
        return None
    if full in PAGES:
        page = PAGES[full]
    elif full.startswith("notebooks/") and full.endswith(".ipynb"):
        page = full
    elif full.startswith("recipes/") and full.endswith(".py"):
        return f"recipe-{Path(full).stem.replace('_', '-')}"  # a label of docs/recipes.md
    elif full == "ptq_course" or full.startswith("ptq_course/"):
        return full.removesuffix(".py").removesuffix("/__init__").replace("/", ".")  # its reference
    else:
        return ""
    found = posixpath.relpath(page, here or ".")
    return f"{found}#{anchor}" if anchor else found
