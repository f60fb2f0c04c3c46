"""Builds the web page: fetch scripts, stage the texts, run Sphinx, read the result again.

The page is made beside its place and moved there when it is whole; a build that fails leaves what
was there before.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from web_page import npm, pages
from web_page.checking import check
from web_page.errors import PageError
from web_page.links import PAGES, rewritten
from web_page.notebooks import Widget, stage

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MARK = ".buildinfo"  # Sphinx puts it into every site that it builds
MATH_AS_SOURCE = "// MathJax could not be fetched: formulas are shown as their source.\n"


def main(arguments: Sequence[str]) -> int:
    """`python course.py site [OUT]`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python course.py site")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "site")
    out = parser.parse_args(arguments).out.resolve()
    start = time.monotonic()
    print("building the page; half a minute on two idle processors", flush=True)
    try:
        number = build(out)
    except PageError as problem:
        for finding in problem.findings:
            print(f"ERROR {finding}", file=sys.stderr)
        print("The page was not built; what was there before is unchanged.", file=sys.stderr)
        return 1
    print(f"{number} pages in {time.monotonic() - start:.0f} s: open {out / 'index.html'}")
    return 0


def build(out: Path, root: Path = ROOT, cache: Path = ROOT / "build" / "npm") -> int:
    """Build the whole page into `out`; returns how many pages it has.

    Raises PageError for every fault of the texts, of Sphinx's own reading and of the built pages,
    and where `out` holds something that is no such page.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise PageError([f"{out} holds other files and is no such page: name another folder"])
    work = out.with_name(f"{out.name}.making")
    shutil.rmtree(work, ignore_errors=True)
    try:
        source, made = work / "source", work / "made"
        static = source / "_static"
        shutil.copytree(HERE / "static", static)
        live = scripts(static / "npm", cache)
        stage_all(root, source, live)
        run_sphinx(source, made, work / "doctrees")
        number = check(made)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        made.rename(out)
        return number
    finally:
        shutil.rmtree(work, ignore_errors=True)


def scripts(folder: Path, cache: Path) -> bool:
    """Put the fetched scripts into `folder`; whether saved widgets can be drawn."""
    there = {}
    for package in (npm.MATHJAX, npm.WIDGETS):
        there[package.name] = found = npm.fetch(package, cache)
        if found is not None:
            shutil.copytree(found, folder / package.short)
    folder.mkdir(exist_ok=True)
    if there[npm.MATHJAX.name] is None:
        (folder / "none.js").write_text(MATH_AS_SOURCE, encoding="utf-8")
        print("note: npm's registry does not answer; formulas are shown as their source")
    if there[npm.WIDGETS.name] is None:
        print("note: npm's registry does not answer; widgets are shown by pictures only")
    return there[npm.WIDGETS.name] is not None


def stage_all(root: Path, source: Path, live: bool) -> None:
    """Write every text of the page into `source`, with every broken link and mute picture found."""
    findings: list[str] = []
    widgets: list[Widget] = []
    order = sorted((root / "notebooks").glob("*.ipynb"), key=lambda f: (f.stem[0] != "p", f.name))
    for file in order:
        try:
            widgets += stage(file, root, source, live)
        except PageError as problem:
            findings += problem.findings
    names = [file.stem for file in order]
    texts: dict[str, str] = {}
    for name, page in PAGES.items():
        try:
            texts[page] = rewritten((root / name).read_text(encoding="utf-8"), name, root)
        except PageError as problem:
            findings += problem.findings
    if findings:
        raise PageError(findings)
    from ptq_classroom.kit.glossary import terms

    texts["index.md"] = pages.contents(texts["index.md"], names, root / "ptq_course")
    texts["glossary.rst"] = pages.glossary(terms(), names)
    texts["widgets.md"] = pages.widget_page(widgets)
    texts["docs/recipes.md"] = pages.recipes(sorted((root / "recipes").glob("*.py")))
    for name, text in pages.reference(root / "ptq_course").items():
        texts[f"api/{name}.rst"] = text
    for name, text in texts.items():
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for picture in (root / "docs").glob("*.png"):
        shutil.copy(picture, source / "docs")
    from web_page.extension import definitions

    (source / "_static" / "terms.js").write_text(definitions(), encoding="utf-8")
    shutil.copy(HERE / "conf.py", source)


def processes() -> int:
    """How many read and write pages: elsewhere than on Linux a forked PyTorch may fail."""
    return min(4, os.cpu_count() or 1) if sys.platform.startswith("linux") else 1


def run_sphinx(source: Path, made: Path, doctrees: Path) -> None:
    """Build the pages; every warning is an error, and all of them are named at once."""
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    nocolor()
    said, warned = io.StringIO(), io.StringIO()
    with patch_docutils(str(source)), docutils_namespace():
        app = Sphinx(
            str(source), str(source), str(made), str(doctrees), "html",
            status=said, warning=warned, parallel=processes(),
        )  # fmt: skip
        app.build(force_all=True)
    lines = [line for line in warned.getvalue().splitlines() if line.strip()]
    if lines or app.statuscode:
        here = f"{source}/"
        raise PageError([line.replace(here, "") for line in lines] or ["Sphinx failed"])
