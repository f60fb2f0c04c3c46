"""JupyterLab in Chromium: a learner's chapter runs, and every widget is driven by keyboard.

Skipped, with the reason, where there is no Chromium (see conftest.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from driving import CLOCK, CONTROLS, ERROR, WIDGETS, moved, opened, restart_kernel
from small_widgets import NAMES, explorer

from ptq_classroom.kit.controls import Choice, Slider

CHAPTER = "01_affine_quantization"
NUMBER = re.compile(r"-?\d+(\.\d+)?( \D+)?")  # with its unit; no exponent

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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


def cell_of(widgets: Any, name: str) -> Any:
    return widgets.locator(".jp-CodeCell").nth(1 + NAMES.index(name))


def test_no_cell_of_the_learners_copy_failed(chapter: Any):
    """Stubs say "not attempted yet"; nothing raises, and the last cell was run."""
    assert not chapter.locator(ERROR).count()
    text = chapter.locator(".jp-Notebook").first.inner_text()
    assert "not attempted yet" in text
    assert "[ ]:" not in text.rsplit("Click to add a cell", 1)[0]  # every cell was run


@pytest.mark.parametrize("name", NAMES)
def test_a_screen_reader_hears_names_values_and_one_status(widgets: Any, name: str):
    cell, controls = cell_of(widgets, name), explorer(name).controls.values()
    sliders = [c for c in controls if isinstance(c, Slider)]
    choices = [c for c in controls if isinstance(c, Choice)]
    shown = cell.locator(".jp-OutputArea").first
    tree = shown.aria_snapshot()
    assert f'group "{explorer(name).title}"' in tree
    for slider in sliders:
        said = f"{slider.label or slider.name}" + (f" ({slider.unit})" if slider.unit else "")
        assert shown.get_by_role("spinbutton", name=said, exact=True).count() == 1
        handle = shown.get_by_role("slider", name=slider.label or slider.name, exact=True)
        value = handle.get_attribute("aria-valuetext")
        box = shown.get_by_role("spinbutton", name=said, exact=True).input_value()
        assert NUMBER.fullmatch(value), value
        assert value == f"{float(box):g}" + (f" {slider.unit}" if slider.unit else "")
    for choice in choices:
        group = shown.get_by_role("radiogroup", name=choice.label or choice.name, exact=True)
        assert group.get_by_role("radio").count() == len(choice.options)
    assert len(sliders) + len(choices) == len(explorer(name).controls)
    assert shown.get_by_role("status").count() == 1
    assert shown.get_by_role("img").get_attribute("alt")
    assert not shown.locator('[title="null"]').count()


@pytest.mark.parametrize("name", NAMES)
def test_every_control_moves_the_picture_by_keyboard(widgets: Any, name: str):
    """Each number box, each slider's handle and each choice: focus, arrow keys, another picture.

    The line of text is the same element before and after: a live region that is replaced is silent.
    """
    cell, took = cell_of(widgets, name), []
    status = cell.get_by_role("status")
    status.evaluate("element => { element.here = true; }")
    for kind, keys in CONTROLS:
        for number in range(cell.locator(kind).count()):
            cell.locator(kind).nth(number).focus()
            took.append(moved(widgets, cell, keys))
            assert cell.locator(":focus").count() == 1, f"{kind} {number}: the keys went elsewhere"
    median, load = sorted(took)[len(took) // 2], os.getloadavg()[0]
    print(f"{name}: key to picture, median {median:.0f} ms of {len(took)} (load {load:.1f})")
    assert "Error" not in status.inner_text()
    assert status.evaluate("element => element.here")
    assert cell.locator('.jp-OutputArea [role="status"], .jp-OutputArea [aria-live]').count() == 1


def test_a_slider_says_what_its_box_says_after_every_key(widgets: Any):
    """1.3, where its arithmetic makes 1.2999999999999998; a number, where it moves a logarithm."""
    playwright = pytest.importorskip("playwright.sync_api")
    for name in ("ch01", "ch03"):
        cell = cell_of(widgets, name)
        for number in range(cell.locator(".noUi-handle").count()):
            handle = cell.locator(".noUi-handle").nth(number)
            handle.focus()
            box = cell.locator("input[type=number]").nth(number)
            for key in ("ArrowDown", "ArrowUp", "ArrowDown"):
                before = handle.get_attribute("aria-valuetext")
                widgets.keyboard.press(key)
                said = handle.get_attribute("aria-valuetext")
                assert said != before
                assert NUMBER.fullmatch(said)
                playwright.expect(box).to_have_value(said)  # it comes from the kernel


def test_nothing_complained(widgets: Any):
    assert widgets.complaints == []


def test_after_a_restart_the_place_says_what_to_do(widgets: Any):
    """At once, and when the page is opened again; the last test, for it ends the kernel."""
    cell = cell_of(widgets, NAMES[0])
    note = cell.locator("[class$=-note]")
    assert not note.is_visible()
    widgets.keyboard.press("Control+s")
    widgets.wait_for_selector(".jp-mod-dirty", state="detached")
    restart_kernel(widgets)
    note.wait_for(state="visible")
    widgets.reload()
    cell.get_by_text("model not found").wait_for()  # ipywidgets' own words, which help nobody
    assert note.is_visible()
    assert "Run this cell again" in note.inner_text()
