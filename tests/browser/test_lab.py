"""A learner's chapter in JupyterLab, driven in Chromium: Run All, then a slider moves the picture.

Skipped, with the reason, where there is no Chromium (see conftest.py).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "learner"
CHAPTER = "01_affine_quantization.ipynb"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a fresh learner's copy of one chapter."""
    from ptq_classroom.kit.learner_copy import make

    folder = tmp_path_factory.mktemp("a course")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / CHAPTER, folder / "notebooks")
    make(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"),
    ]
    # All cells stay on the page, so that nothing has to be scrolled into sight first.
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    variables = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "HOME": str(folder),
    }
    variables.pop("PTQ_FIGURES", None)  # set where this run also compares notebooks
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server, folder / "lab.log")
            yield f"{address}/lab/tree/my_course/{CHAPTER}?token={TOKEN}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(chromium, lab):
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    yield page
    page.close()


def test_a_chapter_runs_in_the_browser_and_its_slider_draws(page):
    picture = ".jupyter-widgets .widget-html-content img[alt]"
    run_all(page, picture)
    wait_until_idle(page)
    image, status = page.locator(picture).first, page.locator('.jupyter-widgets [role="status"]')
    before = image.get_attribute("src"), image.get_attribute("alt"), status.first.inner_text()
    page.locator(".noUi-handle").first.focus()
    took = [redraw_after_a_key(page, picture) for _ in range(5)]
    print(f"key press to new picture: median {1000 * sorted(took)[2]:.0f} ms")
    after = image.get_attribute("src"), image.get_attribute("alt"), status.first.inner_text()
    assert all(old != new for old, new in zip(before, after, strict=True))


def run_all(page, picture: str) -> None:
    """Run > Run All Cells, until the widget's picture is there.

    A kernel that is still being connected loses what it is told, without a word; the page then is
    loaded again, finds the kernel running, and starts afresh.
    """
    from playwright.sync_api import TimeoutError as NotThere

    for _ in range(4):
        wait_until_idle(page)
        page.wait_for_timeout(1500)
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator('[data-command="runmenu:run-all"]').click()
        try:
            page.wait_for_selector(picture, state="attached", timeout=20_000)
            return
        except NotThere:
            page.reload()
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    pytest.fail("the widget never appeared")


def redraw_after_a_key(page, picture: str) -> float:
    """Press an arrow key on the slider in focus; seconds until the picture is another."""
    old = page.locator(picture).first.get_attribute("src")
    start = time.monotonic()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([selector, old]) => document.querySelector(selector).getAttribute('src') !== old",
        arg=[picture, old],
    )
    return time.monotonic() - start


def wait_until_idle(page) -> None:
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")


def test_no_cell_of_the_learners_copy_failed(page):
    """Stubs say "not attempted yet"; nothing raises, and the last cell was run."""
    wait_until_idle(page)
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    text = page.locator(".jp-Notebook").first.inner_text()
    assert "not attempted yet" in text
    assert "[ ]:" not in text.rsplit("Click to add a cell", 1)[0]  # every cell was run
