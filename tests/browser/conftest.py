"""One JupyterLab for all browser tests: a learner's chapter, and a notebook of every widget."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from driving import ROOT, WIDGETS, every_widget, jupyterlab

CHAPTER = "01_affine_quantization"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab; NAME in it stands for a notebook of the learner's copy."""
    from ptq_classroom.kit.learner_copy import make

    folder = tmp_path_factory.mktemp("a course")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / f"{CHAPTER}.ipynb", folder / "notebooks")
    make(folder)
    (folder / "my_course" / f"{WIDGETS}.ipynb").write_text(every_widget(), encoding="utf-8")
    with jupyterlab(folder) as address:
        yield address
