"""JupyterLab in Chromium: a learner's chapter runs, and every widget is driven by keyboard.

Skipped, with the reason, where there is no Chromium (see conftest.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from small_widgets import NAMES

CHAPTER = "01_affine_quantization"
WIDGETS = "widgets"
ERROR = '[data-mime-type="application/vnd.jupyter.stderr"]'  # so JupyterLab shows what was raised
DIALOG = ".jp-Dialog .jp-mod-accept"
PICTURE = ".jupyter-widgets .widget-html-content img[alt]"

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# From key to picture inside the page: what driving it from here costs is not counted. The clock
# stops when the newest picture is decoded.
CLOCK = """() => {
  window.clock = {key: 0, took: null};
  document.addEventListener('keydown', () => { clock.key = performance.now(); clock.took = null; }, true);
  new MutationObserver(changes => {
    for (const change of changes) for (const node of change.addedNodes) {
      const image = node.nodeName === 'IMG' ? node : node.querySelector && node.querySelector('img[alt]');
      if (image) image.decode().then(() => { clock.took = performance.now() - clock.key; });
    }
  }).observe(document.body, {childList: true, subtree: true});
}"""  # fmt: skip  # noqa: E501


def opened(chromium: Any, address: str, wanted: int) -> Any:
    """A page on this notebook after Run All, with `wanted` widgets that show a picture."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    run_all(page, wanted)
    return page


def run_all(page: Any, wanted: int) -> None:
    """Run > Run All Cells, until the pictures are there.

    A kernel that is still being connected loses what it is told, without a word: no cell is then
    said to be waiting or to have run, and the command is given again.
    """
    for _ in range(20):
        wait_until_idle(page)
        page.wait_for_timeout(500)
        if page.locator(DIALOG).count():
            print(page.locator(".jp-Dialog").inner_text())
            page.locator(DIALOG).click()
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator('[data-command="runmenu:run-all"]').click()
        page.wait_for_timeout(1500)
        if page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).count():
            break
    page.wait_for_function(
        """([picture, error, wanted]) => document.querySelector(error) ||
           document.querySelectorAll(picture).length >= wanted""",
        arg=[PICTURE, ERROR, wanted],
    )
    wait_until_idle(page)
    assert not page.locator(ERROR).count(), page.locator(ERROR).first.inner_text()


def wait_until_idle(page: Any) -> None:
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")


@pytest.fixture(scope="module")
def chapter(chromium: Any, lab: str) -> Iterator[Any]:
    page = opened(chromium, lab.replace("NAME", CHAPTER), 1)
    yield page
    page.close()


@pytest.fixture(scope="module")
def widgets(chromium: Any, lab: str) -> Iterator[Any]:
    page = opened(chromium, lab.replace("NAME", WIDGETS), len(NAMES))
    page.evaluate(CLOCK)
    yield page
    page.close()


def test_no_cell_of_the_learners_copy_failed(chapter: Any):
    """Stubs say "not attempted yet"; nothing raises, and the last cell was run."""
    assert not chapter.locator(ERROR).count()
    text = chapter.locator(".jp-Notebook").first.inner_text()
    assert "not attempted yet" in text
    assert "[ ]:" not in text.rsplit("Click to add a cell", 1)[0]  # every cell was run


@pytest.mark.parametrize("name", NAMES)
def test_every_control_moves_the_picture_by_keyboard(widgets: Any, name: str):
    """Each number box, each slider's handle and each choice: focus, keys, another picture."""
    cell = widgets.locator(".jp-CodeCell").nth(1 + NAMES.index(name))
    took = []
    for kind, keys in (
        ("input[type=number]", ("ArrowUp", "ArrowDown")),
        (".noUi-handle", ("ArrowRight", "ArrowLeft")),
        ("input[type=radio]:not(:checked)", ("Space",)),
    ):
        for number in range(cell.locator(kind).count()):
            control = cell.locator(kind).nth(number)
            if not control.count():  # the choice that was moved before: another one is open now
                continue
            control.focus()
            took.append(moved(widgets, cell, keys))
            assert cell.locator(":focus").count() == 1, f"{kind} {number}: the keys went elsewhere"
    print(f"{name}: key to picture, median {sorted(took)[len(took) // 2]:.0f} ms of {len(took)}")
    assert "Error" not in cell.locator('[role="status"]').inner_text()


def moved(page: Any, cell: Any, keys: tuple[str, ...]) -> float:
    """Press each key until one changes the picture; milliseconds from that key to the picture."""
    for key in keys:  # a control at one end of its range moves in one direction only
        for _ in range(20):  # a small step may be less than a pixel
            old = cell.locator(PICTURE).get_attribute("src")
            page.keyboard.press(key)
            try:
                page.wait_for_function("() => clock.took !== null", timeout=1500)
            except Exception:  # at its end: nothing was drawn
                break
            if cell.locator(PICTURE).get_attribute("src") != old:
                return page.evaluate("() => clock.took")
    raise AssertionError(f"{cell.locator(':focus').evaluate('e => e.outerHTML')}: no other picture")
