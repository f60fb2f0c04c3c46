"""A plain HTML export: what the metadata hide is closed, everything else is on the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

CHAPTER = "01_affine_quantization.ipynb"


@pytest.fixture(scope="module")
def page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chapter, converted by the command that TEACHING.md names."""
    (command,) = [
        line.split() for line in (root / "TEACHING.md").read_text("utf-8").split("\n")
        if line.startswith("python -m nbconvert")
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("pages")
    place = [f"--output-dir={folder}", str(root / "notebooks" / CHAPTER)]
    words = [sys.executable, *command[1:-1], *place]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=root)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Alternative text is missing" not in run.stderr
    return (folder / CHAPTER).with_suffix(".html")


@pytest.fixture(scope="module")
def soup(page: Path) -> Any:
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


@pytest.fixture(scope="module")
def cells(root: Path) -> list[dict]:
    notebook = json.loads((root / "notebooks" / CHAPTER).read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_exactly_what_the_metadata_hide_is_folded(soup: Any, cells: list[dict]):
    shown = soup.select("div.jp-CodeCell")
    assert len(shown) == len(cells)
    for html, cell in zip(shown, cells, strict=True):
        hidden = cell["metadata"].get("jupyter", {})
        code = html.select_one(".jp-CodeMirrorEditor")
        assert (code.find_parent("details") is not None) == bool(hidden.get("source_hidden"))
        for output in html.select(".jp-OutputArea-output"):
            folded = output.find_parent("details") is not None
            assert folded == bool(hidden.get("outputs_hidden"))
    assert not soup.select("details[open]")
    names = [summary.get_text(" ", strip=True) for summary in soup.select("details > summary")]
    assert names[:2] == ["Solution 01.1", "Proof"]
    assert names[-1] == "Answers"


def test_every_picture_has_the_alt_text_of_its_metadata(soup: Any, cells: list[dict]):
    wanted = [
        output["metadata"]["image/png"]["alt"]
        for cell in cells
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(wanted) > 5
    assert [image["alt"] for image in soup.select(".jp-OutputArea img")] == wanted


@pytest.mark.browser
def test_a_solution_is_seen_after_the_keyboard_opened_it(chromium: Any, page: Path):
    tab = chromium.new_page()
    tab.route("http*://**", lambda route: route.abort())  # MathJax from a network
    tab.goto(page.as_uri(), wait_until="domcontentloaded")
    code = tab.get_by_text("qparams_solution").first
    assert not code.is_visible()
    tab.locator("summary", has_text="Solution 01.1").focus()
    tab.keyboard.press("Enter")
    assert code.is_visible()
    tab.close()
