"""One JupyterLab for all browser tests: a learner's chapter, and a notebook of every widget."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "learner"
CHAPTER = "01_affine_quantization"
WIDGETS = "widgets"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab; NAME in it stands for a notebook of the learner's copy.

    Each in a workspace of its own: one workspace opens all that was opened before beside it.
    """
    from ptq_classroom.kit.learner_copy import make

    folder = tmp_path_factory.mktemp("a course")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / f"{CHAPTER}.ipynb", folder / "notebooks")
    make(folder)
    (folder / "my_course" / f"{WIDGETS}.ipynb").write_text(every_widget(), encoding="utf-8")
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
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def every_widget() -> str:
    """A notebook with a cell a widget, which shows it as its chapter does, on small data."""
    from small_widgets import NAMES

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
