"""A JupyterLab for a folder, and pages in it: what the browser tests and a benchmark drive."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from small_widgets import NAMES

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "learner"
WIDGETS = "widgets"
ERROR = '[data-mime-type="application/vnd.jupyter.stderr"]'  # so JupyterLab shows what was raised
DIALOG = ".jp-Dialog .jp-mod-accept"
PICTURE = ".jupyter-widgets .widget-html-content img[alt]"
CONTROLS = (  # each with the keys that move it: at one end it moves in one direction only
    ("input[type=number]", ("ArrowUp", "ArrowDown")),
    (".noUi-handle", ("ArrowUp", "ArrowDown")),
    ("input[type=radio]:checked", ("ArrowDown", "ArrowUp")),
)

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
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
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


def restart_kernel(page: Any) -> None:
    """Kernel > Restart Kernel, and yes to the question."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Kernel$")).click()
    page.locator('[data-command="kernelmenu:restart"]').click()
    page.locator(DIALOG).click()


VALUE = """() => {
  const control = document.activeElement;
  return [control.value, control.getAttribute('aria-valuetext')].join();
}"""


def moved(page: Any, cell: Any, keys: tuple[str, ...]) -> float:
    """Press each key until one changes the picture; milliseconds from that key to the picture."""
    for key in keys:  # a control at one end of its range moves in one direction only
        for _ in range(20):  # a small step may be less than a pixel
            old, value = cell.locator(PICTURE).get_attribute("src"), page.evaluate(VALUE)
            page.keyboard.press(key)
            if page.evaluate(VALUE) == value:
                break
            page.wait_for_function("() => clock.took !== null")
            if cell.locator(PICTURE).get_attribute("src") != old:
                return page.evaluate("() => clock.took")
    raise AssertionError(f"{page.evaluate('document.activeElement.outerHTML')}: no other picture")


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab on `folder`; NAME in it stands for a notebook of my_course/.

    Each in a workspace of its own: one workspace opens all that was opened before beside it.
    """
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
            yield f"{address}/lab/workspaces/NAME/tree/my_course/NAME.ipynb?token={TOKEN}"
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
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def every_widget() -> str:
    """A notebook with a cell a widget, which shows it as its chapter does, on small data."""
    where = str(ROOT / "tests")
    cells = [f"import sys\nsys.path.insert(0, {where!r})\nfrom small_widgets import explorer"]
    cells += [f"explorer({name!r}).show()" for name in NAMES]
    made = [
        {
            "cell_type": "code", "execution_count": None, "id": f"cell-{number}", "metadata": {},
            "outputs": [], "source": source,
        }
        for number, source in enumerate(cells)
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )
